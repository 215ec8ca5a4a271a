// Chapter 10: three solvers of one flow, and how their errors fall with the number of steps
import {explorable, number} from './explore.js'
import {ddim, dpmSolverPP, heun, levelsOf, linspace, Mixture, range, straightBetas, sum,
        trajectory, walk} from './diffusion.js'

export const solvers = {ddim: ddim(), dpm_solver_pp: dpmSolverPP(), heun: heun()}
const kinds = {ddim: 'a', dpm_solver_pp: 'b', heun: 'c'}
const counts = [2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128]
const starts = linspace(-2, 2, 17)

export const modes = width => new Mixture([-0.8, 0.5], width, [0.4, 0.6])
export const levels = n => levelsOf(straightBetas(n, 18, -10)).reverse()  // from T to 0

export function solve(name, {n, width}, x_T) {
  const visits = walk(levels(n), solvers[name])
  return {visits, frames: trajectory(modes(width), visits, x_T)}
}

export function exact(width, x_T) {
  const [start, end] = [levels(2)[0], levels(2).at(-1)]
  return modes(width).flow(x_T, start, end)
}

export function error(name, {n, width}, ends) {  // root mean square over the starts
  const visits = walk(levels(n), solvers[name]), data = modes(width)
  const off = starts.map((x, i) => (trajectory(data, visits, x).at(-1) - ends[i]) ** 2)
  return Math.sqrt(sum(off) / off.length)
}

const remembered = {}
function errorsOf(width) {
  const ends = starts.map(x => exact(width, x))
  remembered[width] ??= Object.fromEntries(Object.keys(solvers).map(name =>
    [name, counts.map(n => error(name, {n, width}, ends))]))
  return remembered[width]
}

function draw({n, width, x_T}) {
  const all = errorsOf(width), names = Object.keys(solvers), i = counts.indexOf(n)
  const lambda = level => Math.min(level.logSnr / 2, 6)  // the end, at the right edge
  const fine = levels(64), data = modes(width)
  const flow = x => ({x: fine.map(lambda), y: fine.map(l => data.flow(x, fine[0], l))})
  const runs = names.map(name => [name, solve(name, {n, width}, x_T)])
  const errors = {
    title: 'error',
    x: {label: 'steps', min: 2, max: 128, log: true, ticks: [2, 8, 32, 128]},
    y: {min: 1e-4, max: 2, log: true},
    lines: [
      {kind: 'dotted', x: [2, 128], y: [.5, .5 / 64]},
      {kind: 'dotted', x: [2, 128], y: [.5, .5 / 64 ** 2]},
      ...names.map(name => ({kind: kinds[name], x: counts, y: all[name]}))],
    points: names.map(name => ({kind: kinds[name], x: n, y: all[name][i]})),
  }
  const paths = {
    title: `x_t in ${n} steps`,
    x: {label: 'log(signal/noise)', min: -5, max: 6.2}, y: {min: -1.6, max: 1.6},
    lines: [...range(9).map(k => ({kind: 'thin', ...flow(k / 2 - 2)})),
            {kind: 'dotted', ...flow(x_T)},
            ...runs.map(([name, {visits, frames}]) =>
              ({kind: kinds[name], x: visits.levels.map(lambda), y: frames}))],
    points: runs.flatMap(([name, {visits, frames}]) =>
      frames.map((y, i) => ({kind: kinds[name], x: lambda(visits.levels[i]), y}))),
  }
  const next = i + 2 < counts.length ? i : counts.length - 3
  const order = e => Math.log(e[next] / e[next + 2]) / Math.log(counts[next + 2] / counts[next])
  const state = names.map(name => `${name}: error ${number(all[name][i])}, ` +
    `order ${number(order(all[name]), 2)} from ${counts[next]} to ${counts[next + 2]} steps, ` +
    `${name === 'heun' ? 2 * n - 1 : n} evaluations.`)
  const legend = [...names.map(name => [kinds[name], name]),
                  ['dotted', 'slopes −1 and −2; the exact path'],
                  ['thin', 'other exact paths']]
  return {figures: [errors, paths], legend, state}
}

export const page = {
  controls: {
    n: {label: 'steps', values: counts, value: 8},
    width: {label: 'std of modes', values: [.06, .12, .25, .5, 1], value: .25},
    x_T: {label: 'x_T of paths', min: -2, max: 2, step: .05, value: -.35},
  },
  presets: {'Try 1': {width: .06}, 'Try 2': {n: 64, width: .5}},
  draw,
}
explorable('solvers', page)
