// What the page calls. The worker, and with it the network, is loaded by the first call of `start`.
export let started = false
let starting, worker, number = 0
const waiting = new Map()                      // number of a trajectory -> [resolve, reject]

export function start() {
  starting ??= new Promise((resolve, reject) => {
    worker = new Worker(new URL('worker.mjs', import.meta.url), {type: 'module'})
    worker.onmessage = ({data: {ready, failed, id, frame, error}}) => {
      if (ready) return resolve(started = true)
      if (failed) return reject(new Error(failed))
      const [answered, refused] = waiting.get(id) ?? []
      waiting.delete(id)
      if (error) refused?.(new Error(error))
      else answered?.(frame)
    }
    worker.onerror = event => {
      event.preventDefault()
      reject(new Error(event.message || 'it could not be loaded'))
    }
  })
  starting.catch(() => { starting = undefined })               // the next call tries again
  return starting
}

// The frames {t, x, x0} of a trajectory, each computed when it is asked for
export async function* trajectory(options) {
  await start()
  const id = number++
  const ask = message => new Promise((...calls) => {
    waiting.set(id, calls)
    worker.postMessage({id, ...message})
  })
  try {
    for (let frame = await ask({options}); frame; frame = await ask({})) yield frame
  } finally { worker.postMessage({id, stop: true}) }
}
