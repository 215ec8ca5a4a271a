// What the page calls: an engine for each network. The worker, and with it the network, is loaded
// by the first call of `start`.
const engines = new Map()
export function engineOf(network) {
  if (!engines.has(network)) engines.set(network, new Engine(network))
  return engines.get(network)
}

class Engine {
  constructor(network) {
    Object.assign(this, {network, started: false, number: 0})
    this.waiting = new Map()                   // number of a trajectory -> [resolve, reject]
  }

  start() {
    this.starting ??= new Promise((resolve, reject) => {
      const options = {type: 'module', name: this.network}
      this.worker = new Worker(new URL('worker.mjs', import.meta.url), options)
      this.worker.onmessage = ({data: {ready, failed, id, frame, error}}) => {
        if (ready) return resolve(this.started = true)
        if (failed) return reject(new Error(failed))
        const [answered, refused] = this.waiting.get(id) ?? []
        this.waiting.delete(id)
        if (error) refused?.(new Error(error))
        else answered?.(frame)
      }
      this.worker.onerror = event => {
        event.preventDefault()
        reject(new Error(event.message || 'it could not be loaded'))
      }
    })
    this.starting.catch(() => { this.starting = undefined })   // the next call tries again
    return this.starting
  }

  // The frames {t, x, x0} of a trajectory, each computed when it is asked for
  async* trajectory(options) {
    await this.start()
    const id = this.number++
    const ask = message => new Promise((...calls) => {
      this.waiting.set(id, calls)
      this.worker.postMessage({id, ...message})
    })
    try {
      for (let frame = await ask({options}); frame; frame = await ask({})) yield frame
    } finally { this.worker.postMessage({id, stop: true}) }
  }
}
