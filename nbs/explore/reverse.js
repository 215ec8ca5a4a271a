// Chapter 7: the true reverse step for data -1 and 1 is a mixture; a short one is nearly a Gaussian
import {explorable, number} from './explore.js'
import {density, levelsOf, linearBetas, linspace, Mixture, qPosterior, sum} from './diffusion.js'

const levels = levelsOf(linearBetas(1000)), data = new Mixture([-1, 1])

export function trueStep({t, s, x_t}) {  // eq-reverse-mixture
  const r = data.responsibilities(x_t, levels[t])
  const parts = data.means.map(m => qPosterior(m, x_t, levels[t], levels[s]))
  const means = parts.map(p => p.mean), {std} = parts[0]
  const mean = sum(means.map((m, k) => r[k] * m))
  const best = {mean, std: Math.sqrt(std ** 2 + sum(means.map((m, k) => r[k] * (m - mean) ** 2)))}
  const mixture = x => sum(means.map((m, k) => r[k] * density(x, m, std)))
  return {r, means, std, best, mixture, apart: (means[1] - means[0]) / std}
}

export function divergence({mixture, best}) {  // KL(true step || best Gaussian), in nats
  const x = linspace(best.mean - 10 * best.std, best.mean + 10 * best.std, 4001)
  const terms = x.map(v => {
    const p = mixture(v)
    return p > 0 ? p * Math.log(p / density(v, best.mean, best.std)) : 0
  })
  return sum(terms) * (x[1] - x[0])
}

function draw({t, s: wanted, x_t}) {
  const s = Math.min(wanted, t - 10), step = trueStep({t, s, x_t}), {best, r, means, std} = step
  const x = linspace(best.mean - 4 * best.std, best.mean + 4 * best.std, 401)
  const truth = x.map(step.mixture), gaussian = x.map(v => density(v, best.mean, best.std))
  const figures = [{
    title: 'density of x_s, given x_t',
    x: {label: 'x_s', min: x[0], max: x.at(-1)},
    y: {min: 0, max: 1.08 * Math.max(...truth, ...gaussian)},
    areas: means.map((m, k) => ({kind: '', x, y: x.map(v => r[k] * density(v, m, std))})),
    lines: [{kind: 'a', x, y: truth}, {kind: 'b', x, y: gaussian}],
  }]
  const legend = [['a', 'true reverse step'], ['b', 'best Gaussian'], ['area', 'its components']]
  const state = [
    `Step from t = ${t} to s = ${s}${s < wanted ? ' (s must be less than t)' : ''}.`,
    `x_t came from −1 with probability ${number(r[0])} and from 1 with ${number(r[1])}.`,
    `The components lie ${number(step.apart)} of their standard deviations apart.`,
    `KL(true step || best Gaussian) = ${number(Math.max(divergence(step), 0))} nats.`]
  return {figures, legend, state}
}

export const page = {
  controls: {
    t: {label: 't', min: 20, max: 1000, step: 10, value: 400},
    s: {label: 's, less than t', min: 10, max: 990, step: 10, value: 100},
    x_t: {label: 'x_t', min: -2, max: 2, step: .1, value: .1},
  },
  presets: {'Try 1': {t: 400, s: 300}, 'Try 2': {t: 1000, s: 700}},
  draw,
}
explorable('reverse', page)
