// Chapter 2: two Gaussians, what x0 and what x_t say about x_s, and their product
import {explorable, number} from './explore.js'
import {cosineBetas, levelsOf, linspace, qPosterior, transition} from './diffusion.js'

const levels = levelsOf(cosineBetas(1000))

export function gaussians({t, s, x0, x_t}) {  // each over x_s
  const {scale, var: variance} = transition(levels[t], levels[s])
  return {
    jump: {mean: levels[s].signal * x0, std: levels[s].noise},
    step: {mean: x_t / scale, std: Math.sqrt(variance) / scale},
    posterior: qPosterior(x0, x_t, levels[t], levels[s]),
  }
}

const bell = (x, {mean, std}) => Math.exp(-(((x - mean) / std) ** 2) / 2)

function draw({t, s: wanted, x0, x_t}) {
  const s = Math.min(wanted, t - 10)
  const {jump, step, posterior} = gaussians({t, s, x0, x_t})
  const x = linspace(-3, 3, 601), curve = g => x.map(v => bell(v, g))
  const figures = [{
    title: 'densities of x_s, scaled to height 1',
    x: {label: 'x_s', min: -3, max: 3}, y: {min: 0, max: 1.05},
    areas: [{kind: '', x, y: curve(posterior)}],
    lines: [{kind: 'b', x, y: curve(jump)}, {kind: 'c', x, y: curve(step)},
            {kind: 'a', x, y: curve(posterior)}],
  }]
  const legend = [['b', 'jump from x0'], ['c', 'step to x_t'], ['a', 'posterior']]
  const say = (name, g) => `${name}: mean ${number(g.mean)}, std ${number(g.std)}.`
  const state = [`Step from t = ${t} to s = ${s}${s < wanted ? ' (s must be less than t)' : ''}.`,
    say('Jump from x0', jump), say('Step to x_t', step), say('Posterior', posterior)]
  return {figures, legend, state}
}

export const page = {
  controls: {
    t: {label: 't', min: 20, max: 990, step: 10, value: 600},
    s: {label: 's, less than t', min: 10, max: 980, step: 10, value: 500},
    x0: {label: 'x0', min: -2, max: 2, step: .1, value: .7},
    x_t: {label: 'x_t', min: -2, max: 2, step: .1, value: -1.2},
  },
  presets: {'Try 1': {t: 600, s: 590}, 'Try 2': {t: 600, s: 10}},
  draw,
}
explorable('posterior', page)
