// Chapter 12: two classes on a line; the density that guidance draws, and the tilted one
import {explorable, number} from './explore.js'
import {cosineBetas, ddim, density, guided, levelsOf, linspace, Mixture, ndtr, range, sum,
        trajectory, walk} from './diffusion.js'

const levels = levelsOf(cosineBetas(100)), data = levels[0]
const flow = walk([...levels].reverse(), ddim())
const starts = linspace(-4, 4, 161)
const grid = linspace(-5, 7, 301), dx = grid[1] - grid[0]

export function guide({w, std}, x_T) {  // where DDIM takes x_T, guided to the class at 1
  const wanted = new Mixture([1], std), both = new Mixture([1, -1], std)
  return trajectory(guided(wanted, both, w), flow, x_T).at(-1)
}

export function tilt({w, std}, level) {  // eq-cfg-tilt on the grid, of data noised to `level`
  const both = new Mixture([1, -1], std)
  const p = grid.map(x => both.density(x, level) * both.responsibilities(x, level)[0] ** (1 + w))
  const total = sum(p) * dx
  return p.map(v => v / total)
}

export function noised(p, level) {  // a density on the grid after a jump to `level`
  const jump = (x, i) => density(x, level.signal * grid[i], level.noise)
  return grid.map(x => dx * sum(p.map((v, i) => v * jump(x, i))))
}

const meanStd = p => {
  const mean = sum(p.map((v, i) => v * grid[i])) * dx
  return {mean, std: Math.sqrt(sum(p.map((v, i) => v * (grid[i] - mean) ** 2)) * dx)}
}

export function samples({w, std}) {  // the density of what is drawn: the flow keeps probability
  const ends = starts.map(x => guide({w, std}, x)), weights = []
  const x = range(starts.length - 1).map(i => (ends[i] + ends[i + 1]) / 2)
  const y = x.map((_, i) => {
    weights.push(ndtr(starts[i + 1]) - ndtr(starts[i]))
    return weights[i] / (ends[i + 1] - ends[i])
  })
  const total = sum(weights), mean = sum(x.map((v, i) => weights[i] * v)) / total
  const variance = sum(x.map((v, i) => weights[i] * (v - mean) ** 2)) / total
  return {x, y, mean, std: Math.sqrt(variance)}
}

function draw({w, std, t}) {
  const drawn = samples({w, std}), tilted = tilt({w, std}, data), level = levels[t]
  const truth = grid.map(x => density(x, 1, std)), {mean, std: spread} = meanStd(tilted)
  const x = {label: 'x0', min: -3, max: 5}
  const figures = [
    {title: 'density of x0', x,
     y: {min: 0, max: 1.1 * Math.max(...drawn.y, ...tilted, ...truth)},
     lines: [{kind: 'dotted', x: grid, y: truth}, {kind: 'b', x: grid, y: tilted},
             {kind: 'a', ...drawn}]},
  ]
  const noisedFirst = tilt({w, std}, level), tiltedFirst = noised(tilted, level)
  figures.push({
    title: `density of x_t at t = ${t}`, x: {...x, label: 'x_t'},
    y: {min: 0, max: 1.1 * Math.max(...noisedFirst, ...tiltedFirst)},
    lines: [{kind: 'b', x: grid, y: tiltedFirst}, {kind: 'a', x: grid, y: noisedFirst}]})
  const apart = sum(noisedFirst.map((p, i) => Math.abs(p - tiltedFirst[i]))) * dx / 2
  const legend = [['a', 'guided; x_t: noised, then tilted'],
                  ['b', 'tilted; x_t: tilted, then noised'], ['dotted', 'the class as it is']]
  const state = [
    `The class has mean 1 and std ${number(std)}.`,
    `Guided samples at scale ${number(w)}: mean ${number(drawn.mean)}, std ${number(drawn.std)}.`,
    `The tilted density: mean ${number(mean)}, std ${number(spread)}.`,
    `At t = ${t} the densities of x_t differ in ${Math.round(100 * apart)} % of their mass.`]
  return {figures, legend, state}
}

export const page = {
  controls: {
    w: {label: 'scale w', min: -1, max: 8, step: .25, value: 2},
    std: {label: 'std of a class', min: .3, max: 1.2, step: .05, value: .75},
    t: {label: 't of x_t, of 100', min: 5, max: 95, step: 5, value: 60},
  },
  presets: {'Try 1': {w: 0}, 'Try 2': {w: 6}},
  draw,
}
explorable('guidance', page)
