// Chapter 2: one digit at every noise level, as the sum of its signal and its noise
import {explorable, number} from './explore.js'
import {levelsOf, makers, qSample} from './diffusion.js'

export const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0))
export const digit = text => Array.from(bytes(text), byte => byte / 127.5 - 1)  // in [-1, 1]
export const floats = text => Array.from(new Float32Array(bytes(text).buffer))

export function parts({kind, t}, x0, eps) {
  const level = levelsOf(makers[kind](1000))[t]
  const x_t = x0.map((value, i) => qSample(value, level, eps[i]))
  return {level, x_t, signal: x0.map(v => level.signal * v), noise: eps.map(v => level.noise * v)}
}

function draw({kind, t}, data) {
  const {level, x_t, signal, noise} = parts({kind, t}, digit(data.x0), floats(data.eps))
  const side = Math.sqrt(x_t.length)
  const figures = [
    {title: 'signal × x0', side, pixels: signal},
    {title: 'noise × eps', side, pixels: noise},
    {title: 'their sum, x_t', side, pixels: x_t},
  ]
  const state = [`At t = ${t} of the ${kind} schedule, signal = ${number(level.signal)} and ` +
    `noise = ${number(level.noise)}.`,
    `alpha_bar = ${number(level.alphaBar)} of the image's variance is left.`]
  return {figures, state}
}

export const page = {
  controls: {
    kind: {label: 'schedule', choices: ['linear', 'cosine', 'sigmoid'], value: 'cosine'},
    t: {label: 't of 1000', min: 0, max: 1000, step: 10, value: 400},
  },
  presets: {'Try 1': {kind: 'linear', t: 600}, 'Try 2': {t: 600}},
  draw,
}
explorable('noising', page)
