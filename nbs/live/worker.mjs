// A network and the reverse process, in a thread of their own, so that the page stays responsive.
// The worker has the name of its network.
import * as ort from './built/ort.wasm.bundle.min.mjs'
import {Schedule, clipped, denoiser, guided, inpaint, noised, solvers, trajectory}
  from './sampler.mjs'

const built = name => new URL(`built/${name}`, import.meta.url).href
ort.env.wasm.numThreads = 1                    // more threads need headers that most hosts lack
ort.env.wasm.wasmPaths = {wasm: built('ort-wasm-simd-threaded.wasm')}

let session, schedule, shape                    // of one image: channels, height, width
async function load() {
  const [network, tables] = await Promise.all([
    ort.InferenceSession.create(built(`${name}/network.onnx`), {executionProviders: ['wasm']}),
    fetch(built(`${name}/tables.json`)).then(reply => reply.json())])
  session = network
  schedule = new Schedule(tables)
  shape = tables.shape
}

async function network(x, t, y) {              // x_t, t for each image, labels -> v
  const whole = (numbers, sizes) => new ort.Tensor(
    'int64', BigInt64Array.from(numbers.flat(), BigInt), sizes)
  const n = y.length, rows = Array.isArray(y[0]) ? [n, y[0].length] : [n]
  const images = new ort.Tensor('float32', x, [n, ...shape])
  return (await session.run({x: images, t: whole(t, [n]), y: whole(y, rows)})).out.data
}

// With an image and a mask, what is not known is filled in. With an image alone, it is noised to
// the timestep `first` and drawn again from there
function begin({y, guidance, solver, steps, seed, first, image, mask}) {
  const labelled = guided(denoiser(network), guidance)
  const denoise = clipped(mask ? inpaint(labelled, image, mask) : labelled)
  const size = shape.reduce((product, n) => product * n)
  const times = schedule.times(steps, first)
  const options = {y, size, solver: solvers[solver], times, seed}
  if (!image || mask) return trajectory(denoise, schedule, options)
  const x_T = noised(image, schedule.at(times[0]), seed)
  return trajectory(denoise, schedule, {...options, x_T, seed: seed + 1})  // not the same noise
}

// The page asks for one frame at a time
const running = new Map()
let queue = Promise.resolve()
async function answer({id, options, stop}) {
  try {
    if (stop) return running.delete(id)
    if (options) running.set(id, begin(options))
    const {value, done} = await running.get(id).next()
    if (done) running.delete(id)
    postMessage({id, frame: value})
  } catch (error) { postMessage({id, error: String(error.message ?? error)}) }
}
onmessage = ({data}) => { queue = queue.then(() => answer(data)) }
load().then(() => postMessage({ready: true}), error => postMessage({failed: error.message}))
