// The formulas of the library that the explorables need, for numbers instead of images, in the same
// order as there. tests/test_explore.py compares them with the library's.

import * as tables from '../live/sampler.mjs'

export const range = n => Array.from({length: n}, (_, i) => i)
export const linspace = (start, end, n) =>
  range(n).map(i => n > 1 ? start + (end - start) * i / (n - 1) : start)
export const sum = list => list.reduce((a, b) => a + b, 0)
const sigmoid = a => 1 / (1 + Math.exp(-a))

// ---------------------------------------------------------------- schedule
export const linearBetas = (T, start = 1e-4, end = 0.02) => linspace(start, end, T)  // eq-linear

const betasFrom = alphaBar =>  // eq-betas-from
  range(alphaBar.length - 1).map(i => Math.min(1 - alphaBar[i + 1] / alphaBar[i], 0.999))

export function cosineBetas(T, offset = 0.008) {  // eq-cosine
  const f = linspace(0, 1, T + 1).map(u => Math.cos((u + offset) / (1 + offset) * Math.PI / 2) ** 2)
  return betasFrom(f.map(v => v / f[0]))
}

export function sigmoidBetas(T, start = -3, end = 3, tau = 1) {  // eq-sigmoid
  const g = linspace(start, end, T + 1).map(a => sigmoid(-a / tau))
  return betasFrom(g.map(v => (v - g[T]) / (g[0] - g[T])))
}

export function straightBetas(T, top, bottom) {  // log SNR on a line, as in chapter 10
  const alphaBar = [1, ...linspace(top, bottom, T).map(sigmoid)]
  return range(T).map(i => 1 - alphaBar[i + 1] / alphaBar[i])
}

export const makers = {linear: linearBetas, cosine: cosineBetas, sigmoid: sigmoidBetas}

export function levelsOf(betas) {  // t -> {signal, noise, alphaBar, logSnr}; index 0 is the data
  let alphaBar = 1
  const level = t => ({t, alphaBar, signal: Math.sqrt(alphaBar), noise: Math.sqrt(1 - alphaBar),
                        logSnr: Math.log(alphaBar / (1 - alphaBar))})
  return [level(0), ...betas.map((beta, i) => {  // eq-alpha-bar
    alphaBar *= 1 - beta
    return level(i + 1)
  })]
}

// ---------------------------------------------------------------- noising
export const qSample = (x0, level, eps) => level.signal * x0 + level.noise * eps  // eq-jump

export function transition(t, s) {  // eq-step
  const scale = t.signal / s.signal
  return {scale, var: t.noise ** 2 - scale ** 2 * s.noise ** 2}
}

export function qPosterior(x0, x_t, t, s) {  // eq-posterior
  const {scale, var: variance} = transition(t, s)
  const fromX0 = s.signal * variance / t.noise ** 2
  const fromXt = scale * s.noise ** 2 / t.noise ** 2
  return {mean: fromX0 * x0 + fromXt * x_t, std: s.noise * Math.sqrt(variance) / t.noise}
}

export const density = (x, mean, std) =>
  Math.exp(-(((x - mean) / std) ** 2) / 2) / (std * Math.sqrt(2 * Math.PI))

export function ndtr(x) {  // the distribution function of N(0, 1): a series of positive terms
  if (Math.abs(x) > 8) return x > 0 ? 1 : 0
  let term = x, total = x
  for (let k = 3; Math.abs(term) > 1e-17 * Math.abs(total); k += 2) total += term *= x * x / k
  return 0.5 + density(x, 0, 1) * total
}

// ---------------------------------------------------------------- oracle
export class Mixture {  // the exact denoiser of a mixture of Gaussians in one dimension
  constructor(means, std = 0, weights = means.map(() => 1)) {
    Object.assign(this, {means, std, weights: weights.map(w => w / sum(weights))})
    this.logWeights = this.weights.map(Math.log)
  }

  responsibilities(x_t, level) {  // eq-responsibility
    const variance = (level.signal * this.std) ** 2 + level.noise ** 2, r = []
    let most = -Infinity, total = 0
    for (let k = 0; k < this.means.length; k++) {
      r[k] = this.logWeights[k] - (x_t - level.signal * this.means[k]) ** 2 / (2 * variance)
      most = Math.max(most, r[k])
    }
    for (let k = 0; k < r.length; k++) total += r[k] = Math.exp(r[k] - most)
    for (let k = 0; k < r.length; k++) r[k] /= total
    return r
  }

  x0(x_t, level) {  // eq-mixture-oracle
    const variance = (level.signal * this.std) ** 2 + level.noise ** 2
    const gain = level.signal * this.std ** 2 / variance
    const r = this.responsibilities(x_t, level)
    let mean = 0
    for (let k = 0; k < r.length; k++) mean += r[k] * this.means[k]
    return mean + gain * (x_t - level.signal * mean)
  }

  density(x, level) {
    const std = Math.hypot(level.signal * this.std, level.noise)
    return sum(this.means.map((m, k) => this.weights[k] * density(x, level.signal * m, std)))
  }

  below(x, level) {  // the probability of less than x
    const std = Math.hypot(level.signal * this.std, level.noise)
    return sum(this.means.map((m, k) => this.weights[k] * ndtr((x - level.signal * m) / std)))
  }

  flow(x_t, t, s) {  // where eq-flow takes x_t: in one dimension it maps quantiles to quantiles
    const p = this.below(x_t, t)
    let [low, high] = [-12, 12]
    for (let i = 0; i < 60; i++) {
      const middle = (low + high) / 2
      if (this.below(middle, s) < p) low = middle; else high = middle
    }
    return (low + high) / 2
  }
}

export const guided = (withLabel, without, w) =>  // eq-cfg
  ({x0: (x, level) => (1 + w) * withLabel.x0(x, level) - w * without.x0(x, level)})

// ---------------------------------------------------------------- solvers
// A solver maps the levels that are visited to four numbers a step (eq-coefficients)
export const ddim = (eta = 0) => ({
  visits: levels => levels,
  coefficients: levels => tables.ddim(levels, eta),
})

export const dpmSolverPP = () => ({visits: levels => levels, coefficients: tables.dpm_solver_pp})

export const heun = () => ({  // every level but the first and the last is visited twice
  visits: levels => levels.flatMap((level, i) => i && level.noise ? [level, level] : [level]),
  coefficients: tables.heun,
})

export function walk(levels, solver) {  // levels as visited, and the table
  const visited = solver.visits(levels)
  return {levels: visited, table: solver.coefficients(visited)}
}

export function trajectory(denoiser, {levels, table}, x, draw = () => 0) {  // x_t at every level
  const frames = [x]
  let previous = 0
  table.forEach((c, i) => {
    const x0 = denoiser.x0(x, levels[i])
    x = c.x0 * x0 + c.x_t * x + c.previous * previous + (c.std ? c.std * draw(i) : 0)
    previous = x0
    frames.push(x)
  })
  return frames
}
