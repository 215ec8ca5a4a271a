// Sliders, choices and plots of the explorables. An explorable is one file beside this one:
//
//     explorable(name, {controls, presets, draw})
//
// `controls` is name -> {label, value} with `choices` (a list), `values` (a list of numbers under a
// slider) or `min`, `max` and `step`. `presets` is the text of a button -> values. `draw` maps the
// values to {figures, legend, state}: figures are plots or images (below), `state` is a list of
// sentences. It takes the place of each <div data-explore="name">. Nothing moves by itself.

export function explorable(name, {controls, presets = {}, draw}) {
  if (typeof document === 'undefined') return  // node, which tests the formulas
  const near = new IntersectionObserver(entries => {  // it is drawn when the reader comes near
    for (const {isIntersecting, target} of entries) {
      if (!isIntersecting) continue
      near.unobserve(target)
      styled().then(() => mount(target, controls, presets, draw))
    }
  }, {rootMargin: '1000px'})
  document.querySelectorAll(`[data-explore="${name}"]`).forEach(place => near.observe(place))
}

let styles
function styled() {  // the style sheet, once for all explorables of a page
  const href = new URL('explore.css', import.meta.url)
  styles ??= new Promise(ready => {
    const link = element('link', {rel: 'stylesheet', href})
    link.onload = link.onerror = ready
    document.head.append(link)
  })
  return styles
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag)
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value)
  made.append(...children)
  return made
}

let count = 0  // for ids

function mount(place, controls, presets, draw) {
  const start = Object.fromEntries(Object.entries(controls).map(([key, c]) => [key, c.value]))
  const inputs = {}, values = {...start}
  const form = element('form'), sliders = element('div', {class: 'explore-controls'})
  const figures = element('div', {class: 'explore-figures'})
  const legend = element('ul', {class: 'explore-legend', 'aria-hidden': 'true'})
  const state = element('ul', {class: 'explore-state'})
  const spoken = element('p', {class: 'explore-spoken', 'aria-live': 'polite'})
  for (const [key, control] of Object.entries(controls)) {
    inputs[key] = input(control, value => { values[key] = value; render() })
    sliders.append(inputs[key].row)
  }
  const set = chosen => {
    Object.assign(values, start, chosen)
    for (const key in inputs) inputs[key].set(values[key])
    render()
    speak()
  }
  const buttons = Object.entries({...presets, 'Start again': {}}).map(([text, chosen]) => {
    const button = element('button', {type: 'button'}, text)
    button.onclick = () => set(chosen)
    return button
  })
  form.append(sliders, element('div', {class: 'explore-buttons'}, ...buttons))
  form.addEventListener('submit', event => event.preventDefault())
  form.addEventListener('change', () => speak())
  place.replaceChildren(figures, legend, form, state, spoken)  // what grows comes last
  place.classList.add('explore')

  const speak = () => { spoken.textContent = state.textContent }
  let drawn
  const render = () => { drawn = draw({...values}, place.dataset); show() }
  const show = () => {
    const images = drawn.figures.every(f => f.pixels), gap = 16, n = drawn.figures.length
    const columns = images || figures.clientWidth >= 560 ? n : 1
    const width = Math.floor((figures.clientWidth - gap * (columns - 1)) / columns)
    const about = drawn.state.join(' '), height = columns === n ? 250 - 15 * (n - 1) : 150
    figures.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`
    figures.replaceChildren(...drawn.figures.map(f =>
      f.pixels ? image(f) : plot({...f, height}, width, about)))
    legend.replaceChildren(...(drawn.legend ?? []).map(([kind, text]) => key(kind, text)))
    state.replaceChildren(...drawn.state.map(text => element('li', {}, text)))
  }
  render()
  let before = figures.clientWidth
  new ResizeObserver(() => {
    if (figures.clientWidth === before) return
    before = figures.clientWidth
    show()
  }).observe(figures)
}

function input(control, changed) {
  const id = `explore-${++count}`, {choices, values} = control
  const shown = element('output', {for: id})
  const label = element('label', {for: id}, control.label)
  if (choices) {
    const select = element('select', {id})
    for (const choice of choices) select.append(element('option', {value: choice}, choice))
    select.value = control.value
    select.oninput = () => changed(select.value)
    const row = element('div', {class: 'explore-control'}, label, select)
    return {row, set: value => { select.value = value }}
  }
  const [min, max, step] = values ? [0, values.length - 1, 1]
    : [control.min, control.max, control.step]
  const slider = element('input', {id, type: 'range', min, max, step})
  const write = value => {
    shown.textContent = number(value)
    slider.setAttribute('aria-valuetext', number(value))
  }
  const set = value => {
    slider.value = values ? values.indexOf(value) : value
    write(value)
  }
  slider.oninput = () => {
    const value = values ? values[slider.value] : Number(slider.value)
    write(value)
    changed(value)
  }
  set(control.value)
  return {row: element('div', {class: 'explore-control'}, label, shown, slider), set}
}

const key = (kind, text) => element('li', {class: kind}, element('span'), text)

export function number(value, digits = 3) {
  if (!Number.isFinite(value)) return value > 0 ? '∞' : '−∞'
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return String(value).replace('-', '−')
  const size = Math.abs(value)
  if (size >= 1e-3 && size < 1e5)
    return String(Number(value.toPrecision(digits))).replace('-', '−')
  const [factor, power] = value.toExponential(digits - 1).split('e')
  const raise = c => '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'['-0123456789'.indexOf(c)]
  const raised = [...String(Number(power))].map(raise).join('')
  return (Number(factor) === 1 ? '' : `${factor.replace('-', '−')} · `) + `10${raised}`
}

// ---------------------------------------------------------------- images: {title, side, pixels}
function image({title, side, pixels}) {  // gray: black is -1.5 or less, white is 1.5 or more
  const canvas = element('canvas', {width: side, height: side, role: 'img', 'aria-label': title})
  const context = canvas.getContext('2d'), data = context.createImageData(side, side)
  pixels.forEach((value, i) => {
    const gray = 255 * (value + 1.5) / 3
    data.data.set([gray, gray, gray, 255], 4 * i)
  })
  context.putImageData(data, 0, 0)
  return element('figure', {}, canvas, element('figcaption', {}, title))
}

// ---------------------------------------------------------------- plots
// {title, x, y, lines, areas, points, marks}; an axis is {label, min, max, log, ticks}; a line is
// {kind, x, y} (two lists), an area too; a point is {kind, x, y}; a mark is {kind, x}, a vertical
// line. `kind` is a class of explore.css: its colour and dashes. A plot is SVG in the text's colour.
export function plot({title, x, y, lines = [], areas = [], points = [], marks = [], height},
                     width, about) {
  const left = 46, top = 26, right = 18, bottom = 40
  const w = Math.max(width - left - right, 60), h = height - top - bottom
  const place = (axis, size) => {
    const f = axis.log ? Math.log10 : v => v, [a, b] = [f(axis.min), f(axis.max)]
    return v => size * (f(v) - a) / (b - a)
  }
  const px = place(x, w), up = place(y, h), py = v => h - up(v)
  const pen = v => Math.max(-1e4, Math.min(1e4, v)).toFixed(1)
  const path = line => {
    let d = '', drawing = false
    line.x.forEach((v, i) => {
      const at = [px(v), py(line.y[i])]
      const seen = at.every(Number.isFinite)
      if (seen) d += `${drawing ? 'L' : 'M'}${pen(at[0])} ${pen(at[1])}`
      drawing = seen
    })
    return d
  }
  const closed = area => `${path(area)}L${pen(px(area.x.at(-1)))} ${h}L${pen(px(area.x[0]))} ${h}Z`
  const inside = [
    ...areas.map(a => `<path class="area ${a.kind}" d="${closed(a)}"/>`),
    ...marks.map(m => [m.kind, pen(px(m.x))]).map(([kind, at]) =>
      `<line class="${kind}" x1="${at}" x2="${at}" y2="${h}"/>`),
    ...lines.map(l => `<path class="${l.kind}" d="${path(l)}"/>`),
    ...points.map(p =>
      `<circle class="${p.kind}" cx="${pen(px(p.x))}" cy="${pen(py(p.y))}" r="3.5"/>`),
  ].join('')
  const xs = (x.ticks ?? ticks(x, w / 64)).map(v => {
    const at = left + px(v)
    return `<line class="tick" x1="${at}" x2="${at}" y1="${top + h}" y2="${top + h + 4}"/>` +
      `<text x="${at}" y="${top + h + 17}" text-anchor="middle">${number(v)}</text>`
  })
  const ys = (y.ticks ?? ticks(y, h / 32)).map(v => {
    const at = top + py(v)
    return `<line class="tick" x1="${left - 4}" x2="${left}" y1="${at}" y2="${at}"/>` +
      `<text x="${left - 6}" y="${at + 4}" text-anchor="end">${number(v)}</text>`
  })
  const box = element('div', {class: 'explore-plot'})
  const size = `width="${width}" height="${height}" viewBox="0 0 ${width} ${height}"`
  box.innerHTML = `<svg role="img" ${size}>
    <text class="title" x="${left}" y="16">${title}</text>
    <svg x="${left}" y="${top}" width="${w}" height="${h}">${inside}</svg>
    <path class="frame" d="M${left} ${top}V${top + h}H${left + w}"/>${xs.join('')}${ys.join('')}
    <text x="${left + w / 2}" y="${height - 5}" text-anchor="middle">${x.label}</text></svg>`
  box.firstChild.setAttribute('aria-label', `${title}, over ${x.label}. ${about}`)
  return box
}

export function ticks({min, max, log}, most) {
  if (log) {
    const [a, b] = [Math.ceil(Math.log10(min) - 1e-9), Math.floor(Math.log10(max) + 1e-9)]
    const step = Math.max(1, Math.ceil((b - a + 1) / Math.max(most, 1)))
    return Array.from({length: Math.floor((b - a) / step) + 1}, (_, i) => 10 ** (a + i * step))
  }
  const rough = (max - min) / Math.max(most, 2), power = 10 ** Math.floor(Math.log10(rough))
  const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= rough * (1 - 1e-9))
  const first = Math.ceil(min / step - 1e-9)
  const n = Math.floor(max / step + 1e-9) - first + 1
  return Array.from({length: n}, (_, i) => Number(((first + i) * step).toPrecision(12)))
}
