// The reverse process of chapters 7, 10, 12 and 13, on flat arrays of numbers.
// A level is {t, signal, noise}. A denoiser maps (x_t, level, y) to the predicted x0.
import {Noise} from './noise.mjs'

export const NULL = -1                                         // no label
const unlabelled = y => Array.isArray(y) ? y.map(unlabelled) : NULL    // a row of attributes, or y

// The schedule's signal and noise for t = 0, ..., T, made by Python
export class Schedule {
  constructor({signal, noise}) { Object.assign(this, {signal, noise, T: signal.length - 1}) }

  at(t) { return {t, signal: this.signal[t], noise: this.noise[t]} }

  times(n, first = this.T) {                 // n equal steps from T to 0; only those below `first`
    const step = this.T / n, half = Math.floor((n + 1) / 2)    // from both ends, as torch.linspace
    const at = i => i < half ? this.T - step * i : step * (n - i)
    const all = Array.from({length: n + 1}, (_, i) => roundToEven(at(i)))
    return first === this.T ? all : [first, ...all.filter(t => t < first)]
  }
}

function roundToEven(x) {                                      // as PyTorch and NumPy round
  const whole = Math.floor(x + 0.5)
  return whole - x === 0.5 && whole % 2 ? whole - 1 : whole
}

const snr = level => (level.signal / level.noise) ** 2
const stepLength = (t, s) => Math.log(s.signal / s.noise) - Math.log(t.signal / t.noise)

// ---------------------------------------------------------------- solvers
// A solver maps the levels of a trajectory to rows of four numbers, one for each step
// (eq-coefficients): x_s = x0 * predicted x0 + x_t * current x_t + previous * previous x0 + std * z

function ddimStep(t, s, eta) {                                 // eq-ddim
  const variance = eta ** 2 * s.noise ** 2 * (1 - snr(t) / snr(s))
  const k = Math.sqrt(s.noise ** 2 - variance) / t.noise
  return {x0: s.signal - k * t.signal, x_t: k, previous: 0, std: Math.sqrt(variance)}
}

export function ddim(levels, eta = 0) {
  return levels.slice(1).map((s, i) => ddimStep(levels[i], s, eta))
}

export const ancestral = levels => ddim(levels, 1)             // eq-ancestral

export function dpm_solver_pp(levels, eta = 0) {               // eq-multistep, eq-multistep-sde
  return ddim(levels, eta).map((row, i) => {
    const [before, t, s] = [levels[i - 1], levels[i], levels[i + 1]]
    const straight = before && s.noise > 0                     // not in the first and last step
    const r = straight ? stepLength(t, s) / (2 * stepLength(before, t)) : 0
    return {...row, x0: row.x0 * (1 + r), previous: -row.x0 * r}
  })
}

export function heun(levels) {                                 // eq-heun, with the rule exponential
  return ddim(levels).map((row, i) => {
    const [before, t, s] = [levels[i - 1], levels[i], levels[i + 1]]
    if (t.t !== s.t) return row
    const h = stepLength(before, t)                            // of the step that is corrected
    const c = s.signal * (1 - (1 - Math.exp(-h)) / h)
    return {...row, x0: row.x0 + c, previous: -c}
  })
}
heun.visits = times => times.flatMap((t, i) => i && t ? [t, t] : [t])

export const solvers = {ancestral, ddim, dpm_solver_pp, heun}

// ---------------------------------------------------------------- denoisers
// From a network that predicts v: (x_t, t for each image, y) -> v. Of each image, y has a label or
// a row of attributes. Some may be NULL
export function denoiser(network) {
  return async (x, level, y) => {
    const v = await network(x, y.map(() => level.t), y)
    return x.map((x_i, i) => level.signal * x_i - level.noise * v[i])
  }
}

export function guided(denoise, scale) {                       // eq-cfg
  return async (x, level, y) => {
    if (scale === 0 || y.flat().every(label => label === NULL)) return denoise(x, level, y)
    const twice = new Float32Array(2 * x.length)
    twice.set(x)
    twice.set(x, x.length)
    const both = await denoise(twice, level, [...y, ...unlabelled(y)])
    const [withLabel, without] = [both.subarray(0, x.length), both.subarray(x.length)]
    return withLabel.map((x0, i) => x0 + scale * (x0 - without[i]))
  }
}

export function clipped(denoise) {
  return async (x, level, y) => {
    const x0 = await denoise(x, level, y)
    return x0.map(x0_i => Math.min(1, Math.max(-1, x0_i)))
  }
}

export function inpaint(denoise, known, mask) {                // eq-paste; mask is 1 where known
  return async (x, level, y) => {
    const x0 = await denoise(x, level, y)
    return x0.map((x0_i, i) => mask[i] ? known[i] : x0_i)
  }
}

// ---------------------------------------------------------------- the loop
// Noise a known image to level t (eq-jump)
export function noised(image, level, seed) {
  const eps = new Noise(seed, 1).draw(image.length)
  return eps.map((eps_i, i) => level.signal * image[i] + level.noise * eps_i)
}

// Algorithm 2: yields {t, x, x0} for each call of the denoiser, then the result
export async function* trajectory(denoise, schedule, {y, size, solver, times, seed, x_T}) {
  const visited = solver.visits ? solver.visits(times) : times
  const levels = visited.map(t => schedule.at(t))
  const noise = new Noise(seed, y.length), first = noise.draw(size)
  let x = x_T ? Float32Array.from(x_T) : first
  let x0 = new Float32Array(x.length)
  for (const [i, c] of solver(levels).entries()) {
    const previous = x0
    x0 = await denoise(x, levels[i], y)
    yield {t: visited[i], x, x0}
    const mean = i => c.x0 * x0[i] + c.x_t * x[i] + c.previous * previous[i]
    const z = c.std ? noise.draw(size) : first
    x = x.map((_, i) => mean(i) + c.std * z[i])
  }
  yield {t: 0, x, x0: x}
}
