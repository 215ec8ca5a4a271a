// Chapter 1: the betas, what they leave of the image, and where a digit can no longer be read
import {explorable, number} from './explore.js'
import {levelsOf, linearBetas, makers, range} from './diffusion.js'

export function schedule({kind, T, start, end}) {
  const betas = kind === 'linear' ? linearBetas(T, start, end) : makers[kind](T)
  return {betas, levels: levelsOf(betas)}
}

export function lost(levels, half) {  // the first timestep with a lower log SNR; T + 1 if none has
  const t = levels.findIndex(level => level.logSnr < half)
  return t < 0 ? levels.length : t
}

function draw({kind, T, start, end}, {half}) {
  const {betas, levels} = schedule({kind, T, start, end}), steps = range(T).map(i => i + 1)
  const after = levels.slice(1), first = lost(levels, Number(half)), last = after.at(-1)
  const x = {label: 'timestep t', min: 0, max: T}
  const marks = first > T ? [] : [{kind: 'dotted', x: first}]
  const line = curve => [{kind: 'a', x: steps, y: curve}]
  const beta = {label: 'beta', min: 1e-5, max: 1, log: true}
  const figures = [
    {title: 'beta', x, y: beta, marks, lines: line(betas)},
    {title: 'alpha_bar', x, y: {min: 0, max: 1}, marks,
     lines: [{kind: 'a', x: [0, ...steps], y: levels.map(l => l.alphaBar)}]},
    {title: 'log SNR (nats)', x, y: {min: -20, max: 10}, marks,
     lines: [...line(after.map(l => l.logSnr)), {kind: 'dotted', x: [0, T], y: [+half, +half]}]},
  ]
  const share = (T - first + 1) / T
  const noisy = first > T ? `No step reaches the noise at which half of the digits are misread.`
    : `From t = ${first} on, half of the digits or more are misread: ` +
      `${number(100 * share, 2)} % of the steps.`
  const state = [
    `The last level has alpha_bar = ${number(last.alphaBar)}, ` +
      `signal ${number(last.signal)} and noise ${number(last.noise)}.`, noisy]
  if (kind !== 'linear') state.push('The beta sliders act on the linear schedule only.')
  const legend = [['a', 'this schedule'],
                  ['dotted', `log SNR = ${number(+half, 2)}: half of the digits are misread`]]
  return {figures, legend, state}
}

export const page = {
  controls: {
    kind: {label: 'schedule', choices: ['linear', 'cosine', 'sigmoid'], value: 'linear'},
    T: {label: 'steps T', values: [10, 20, 50, 100, 200, 500, 1000], value: 1000},
    start: {label: 'beta_1, linear', values: [1e-5, 1e-4, 1e-3, 1e-2], value: 1e-4},
    end: {label: 'beta_T, linear', values: [.01, .02, .03, .05, .1, .2, .4], value: .02},
  },
  presets: {'Try 1': {T: 10}, 'Try 2': {kind: 'cosine'}},
  draw,
}
explorable('schedule', page)
