// <diffusion-live>: images drawn in the browser by a network that comes with the package.
//
//   network   mnist-conditional (default), or faces, whose controls are `attributes`, not `digit`
//   networks  those that a reader can choose from, with spaces between them
//   mode      draw (default); compare: two solvers; edit: a drawing, noised or filled in
//   controls  which of digit, attributes, guidance, steps, seed, solver, level, in this order
//   images    how many images at once (default 1)
//   digit, guidance, steps, seed, solver, level   their first values
//   attributes                                    attribute=value, with spaces between them
//   guidance-min, guidance-max, steps-max         ends of the sliders
//   button    what is written on the button
//
// What stands inside the element is its picture until something is drawn, and all there is
// without JavaScript. Loaded with the page: this file and three small ones. The engine and the
// network follow when the button is pressed.
import {about} from './built/about.mjs'
import {engineOf} from './engine.mjs'
import {Pad} from './pad.mjs'
import {SIZE, paint} from './pictures.mjs'
import {python} from './python.mjs'

const SOLVERS = {ancestral: 'ancestral', ddim: 'DDIM', dpm_solver_pp: 'DPM-Solver++ (2M)',
                 heun: 'Heun'}
const ANY = -1
const still = matchMedia('(prefers-reduced-motion: reduce)')
const pause = ms => new Promise(done => setTimeout(done, ms))

class DiffusionLive extends HTMLElement {
  connectedCallback() {
    if (this.panels) return
    if (!about.engine) return this.sayNoEngine()
    if (!this.about) return this.remove()      // a site without the weights of this network
    this.poster = this.querySelector('picture')
    this.addEventListener('input', event => this.changed(event.target))
    this.addEventListener('change', event => this.changed(event.target))
    this.fill()
  }

  fill() {                                     // the element, for its network
    this.options = this.firstOptions()
    this.innerHTML = this.page()
    this.querySelector('.live-poster').append(this.poster ?? '')
    this.button = this.querySelector('.live-draw')
    this.scrubber = this.querySelector('.live-scrubber')
    this.status = this.querySelector('[role=status]')
    this.panels = [...this.querySelectorAll('.live-panel')].map(panel => ({
      panel, frames: [], canvases: panel.querySelectorAll('canvas'),
      captions: panel.querySelectorAll('figcaption')}))
    this.button.addEventListener('click', () => {
      this.filling = false
      this.draw()
    })
    this.scrubber.addEventListener('input', () => this.show())
    if (this.mode === 'edit') this.makePad()
    this.write()
  }

  get mode() { return this.getAttribute('mode') ?? 'draw' }
  get network() { return this.getAttribute('network') ?? 'mnist-conditional' }
  get networks() {
    return (this.getAttribute('networks') ?? '').split(' ').filter(name => about.networks[name])
  }
  get about() { return about.networks[this.network] }          // noun, shape, attributes, megabytes
  get engine() { return engineOf(this.network) }

  // ---------------------------------------------------------------- options
  firstOptions() {
    const given = (name, otherwise) => this.getAttribute(name) ?? otherwise
    const shared = {
      digit: given('digit', 'any') === 'any' ? ANY : Number(given('digit')),
      guidance: Number(given('guidance', 0.5)), seed: Number(given('seed', 0)),
      level: Number(given('level', 600)), images: Number(given('images', 1)),
      attributes: this.firstAttributes(given('attributes', ''))}
    const solvers = given('solver', 'ddim').split(' '), steps = given('steps', '20').split(' ')
    const two = this.mode === 'compare' ? [0, 1] : [0]
    return {...shared, each: two.map(k => ({solver: solvers[k] ?? solvers[0],
                                            steps: Number(steps[k] ?? steps[0])}))}
  }

  firstAttributes(text) {                      // attribute -> number of its value, or ANY
    const stated = Object.fromEntries(text.split(' ').map(one => one.split('=')))
    return Object.fromEntries(Object.entries(this.about.attributes ?? {}).map(
      ([name, values]) => [name, values.indexOf(stated[name])]))
  }

  changed(input) {
    const {name, value, type} = input
    if (!name || type === 'radio' && !input.checked) return
    if (name === 'network') return this.choose(value)
    const panel = Number(input.closest('[data-panel]')?.dataset.panel ?? 0)
    const into = [this.options, this.options.each[panel], this.options.attributes].find(
      options => name in options)
    const after = name === 'solver' ? value : Number(value)
    if (!into || into[name] === after) return
    into[name] = after
    this.write()
    if (this.running || this.panels.some(p => p.frames.length)) this.draw({again: true})
  }

  choose(network) {                            // another network, whose animation stands there
    if (network === this.network) return
    this.run = null                            // what is being drawn is no longer wanted
    this.running = false
    this.classList.remove('live-drawn')
    this.setAttribute('network', network)
    const {noun} = this.about
    this.poster = Object.assign(document.createElement('picture'), {innerHTML:
      `<source media="(prefers-reduced-motion: reduce)" srcset="live/${noun}s.webp">
       <img src="live/noise_to_${noun}s.webp" alt="Squares of noise become ${noun}s.">`})
    this.fill()
    this.querySelector(`[name=network][value=${network}]`).focus()
  }

  write() {                                    // numbers beside the sliders, button, Python
    for (const input of this.querySelectorAll('input[type=range][name]')) {
      input.nextElementSibling.value = input.value
    }
    if (this.mode !== 'edit') {
      this.button.textContent = this.getAttribute('button') ?? `Draw ${this.what()}`
      this.querySelector('.live-python code').textContent = python({
        ...this.options, shape: this.about.shape, attributes: this.about.attributes,
        network: this.network, stated: this.stated()})
    }
  }

  what() {
    const {digit, images} = this.options, {noun, attributes} = this.about
    if (images > 1) return `${images} ${noun}s`
    return attributes || digit === ANY ? `a ${noun}` : digit === 8 ? 'an 8' : `a ${digit}`
  }

  label() {                                    // of an image, for the network
    const {digit, attributes} = this.options
    return this.about.attributes ? Object.values(attributes) : digit
  }

  stated() {                                   // the same in words, empty if it is none
    const {digit, attributes} = this.options
    if (!this.about.attributes) return digit === ANY ? '' : String(digit)
    return Object.entries(attributes).filter(([, k]) => k !== ANY).map(
      ([name, k]) => `${name}=${this.about.attributes[name][k]}`).join(',')
  }

  // ---------------------------------------------------------------- drawing
  // `again`: a slider has moved. The images stay until the new ones are complete
  async draw({again = false} = {}) {
    const run = this.run = Symbol('the latest run'), quiet = again || still.matches
    this.running = true
    if (!again) this.say(this.engine.started ? 'Drawing.' : 'Loading the network and the program '
                         + `that evaluates it (about ${this.about.megabytes} MB).`)
    const started = performance.now()
    try {
      await this.engine.start()
      if (this.run !== run) return
      const begun = performance.now()
      const found = await this.follow(run, quiet)
      if (this.run !== run) return
      this.setFrames(found, again)
      this.times = {start: begun - started, draw: performance.now() - begun}
      this.say(this.summary())
    } catch (error) {
      this.say(`This browser could not evaluate the network: ${error.message}. `
               + 'The recorded animation remains.')
    }
    if (this.run === run) this.running = false
  }

  async follow(run, quiet) {
    const {images, guidance, seed, each} = this.options
    const shared = {y: Array(images).fill(this.label()), guidance, seed, ...this.drawing()}
    const walks = each.map(own => this.engine.trajectory({...shared, ...own}))
    const found = each.map(() => [])
    const wait = Math.min(90, 2000 / Math.max(...each.map(own => own.steps)))
    for (let open = walks.length; open && this.run === run;) {
      const next = performance.now() + wait
      const replies = await Promise.all(walks.map(walk => walk.next()))
      open = replies.filter(reply => !reply.done).length
      replies.forEach(({value}, k) => { if (value) found[k].push(value) })
      if (quiet || !open || this.run !== run) continue
      this.setFrames(found)
      await pause(next - performance.now())
    }
    await Promise.all(walks.map(walk => walk.return()))
    return found
  }

  setFrames(found, keepPlace = false) {
    const last = Math.max(...found.map(frames => frames.length)) - 1
    const place = keepPlace && this.scrubber.max > 0 ? this.scrubber.value / this.scrubber.max : 1
    this.panels.forEach((panel, k) => { panel.frames = found[k] })
    this.scrubber.max = last
    this.scrubber.value = Math.round(place * last)
    this.scrubber.disabled = false
    this.classList.add('live-drawn')
    this.show()
  }

  show() {                                     // the frames at the scrubber's place
    const place = this.scrubber.max > 0 ? this.scrubber.value / this.scrubber.max : 0
    for (const {frames, canvases, captions} of this.panels) {
      if (!frames.length) continue
      const {t, x, x0} = frames[Math.round(place * (frames.length - 1))]
      paint(canvases[0], x, this.about.shape)
      paint(canvases[1], x0, this.about.shape)
      captions[0].querySelector('output').value = t
    }
    const {t} = this.panels[0].frames[Math.round(place * (this.panels[0].frames.length - 1))]
    this.scrubber.setAttribute('aria-valuetext', `t = ${t}`)
  }

  summary() {
    const seconds = (this.times.draw / 1000).toFixed(1)
    const calls = this.panels.map(({frames}) => frames.length - 1)
    const label = this.about.attributes ? 'attributes' : 'label'
    const twice = this.options.guidance && this.stated()
    const each = twice ? `, each with and without the ${label}` : ''
    if (this.mode !== 'compare') {
      return `${calls[0]} evaluations of the network${each}, in ${seconds} s.`
    }
    const [a, b] = this.panels.map(({frames}) => frames.at(-1).x)
    const squares = a.reduce((sum, a_i, i) => sum + (a_i - b[i]) ** 2, 0)
    return `${calls[0]} and ${calls[1]} evaluations of the network${each}. Root mean square `
      + `difference of the two images: ${Math.sqrt(squares / a.length).toFixed(3)}.`
  }

  say(text) { this.status.textContent = text }

  sayNoEngine() {
    const note = this.querySelector('.live-note')
    if (note) note.textContent = 'This site was built without the program that evaluates the '
      + 'network in a browser. So here is a recorded animation.'
  }

  // ---------------------------------------------------------------- editing
  makePad() {
    const find = name => this.querySelector(`[data-do=${name}]`)
    const fill = find('fill')
    this.pad = new Pad(this.querySelector('.live-pad canvas'), () => {
      fill.disabled = !this.pad?.marked.some(Boolean)
    })
    for (const tool of this.querySelectorAll('[name=tool]')) {
      tool.addEventListener('change', () => { this.pad.tool = tool.value })
    }
    find('clear').addEventListener('click', () => this.pad.clear())
    find('real').addEventListener('click', () => this.loadReal())
    find('half').addEventListener('click', () => {
      this.pad.marked = Uint8Array.from({length: SIZE}, (_, i) => i >= SIZE / 2)
      this.pad.show()
    })
    fill.addEventListener('click', () => {
      this.filling = true
      this.draw()
    })
  }

  drawing() {                                  // what `trajectory` is given of the pad
    if (!this.pad) return {}
    const {image, marked} = this.pad
    if (this.filling) return {image, mask: marked.map(mark => 1 - mark)}
    return {image, first: this.options.level}
  }

  async loadReal() {
    const reply = await fetch(new URL('built/mnist-conditional/digits.json', import.meta.url))
    const digits = await reply.json()
    const {digit, seed} = this.options
    const bytes = atob(digits[digit === ANY ? seed % digits.length : digit])
    this.pad.load(Uint8Array.from(bytes, byte => byte.charCodeAt(0)))
  }

  // ---------------------------------------------------------------- what the element contains
  page() {
    const names = (this.getAttribute('controls')
      ?? `${this.about.attributes ? 'attributes' : 'digit'} guidance steps seed`).split(' ')
    const compare = this.mode === 'compare', edit = this.mode === 'edit'
    const own = name => compare && ['solver', 'steps'].includes(name)
    const label = name => ['digit', 'attributes'].includes(name)
    const shared = names.filter(name => !own(name) && !label(name))
    const sliders = shared.map(name => this.control(name)).join('')
    const labels = names.filter(label).map(name => this.control(name)).join('')
    const network = this.networks.length > 1 ? this.choice() : ''
    const panels = this.options.each.map((_, k) => this.panel(k, names.filter(own))).join('')
    const beside = this.mode === 'draw' && this.options.images === 1 ? ' live-beside' : ''
    return `<div class="live-main${beside}">${edit ? this.padPage() : ''}
      <div class="live-stage"><div class="live-poster"></div>${panels}
        <label class="live-walk"><span>Noise</span><input type="range" class="live-scrubber"
          aria-label="Step, from noise to image" min="0" max="1" value="1" disabled>
          <span>Image</span></label></div>
      <div class="live-side">${edit ? this.tools() : ''}${network}${labels}
        <div class="live-act"><button type="button" class="live-draw">Noise it, then draw it again
          </button>${edit ? `<button type="button" data-do="fill" disabled>Fill in the marked part
          </button>` : ''}</div>
        <div class="live-controls">${sliders}</div></div>
      <p role="status" class="live-status"></p></div>
      ${edit ? '' : `<details class="live-python"><summary>The same in Python</summary>
        <pre tabindex="0"><code></code></pre></details>`}`
  }

  panel(k, names) {
    const wide = this.options.images > 1 ? ' live-row' : ''
    const controls = names.map(name => this.control(name, k)).join('')
    const [, height, width] = this.about.shape
    const picture = (label, caption) => `<figure><canvas width="${width}" height="${height}"
      role="img" aria-label="${label}"></canvas><figcaption>${caption}</figcaption></figure>`
    return `<div class="live-panel${wide}" data-panel="${k}">
      ${controls && `<div class="live-controls">${controls}</div>`}
      <div class="live-pair">
        ${picture('The noisy image', '<i>x<sub>t</sub></i> at <i>t</i> = <output></output>')}
        ${picture('The image that the network predicts from it',
                  'predicted <i>x</i><sub>0</sub>')}
      </div></div>`
  }

  control(name, panel = 0) {
    const {options} = this, own = options.each[panel]
    const number = (attribute, otherwise) => Number(this.getAttribute(attribute) ?? otherwise)
    const slider = (label, min, max, step, value) => `<label class="live-slider">
      <span>${label}</span><input type="range" name="${name}" min="${min}" max="${max}"
      step="${step}" value="${value}"><output></output></label>`
    if (name === 'guidance') {
      return slider('Guidance scale', number('guidance-min', 0), number('guidance-max', 4), 0.5,
                    options.guidance)
    }
    const of = this.mode === 'compare' ? ` ${panel + 1}` : ''  // labels that differ
    if (name === 'steps') {
      const label = of ? `Steps of solver${of}` : 'Steps'
      return slider(label, 1, number('steps-max', 50), 1, own.steps)
    }
    if (name === 'seed') return slider('Seed', 0, 99, 1, options.seed)
    if (name === 'level') return slider('Noise it to <i>t</i>', 50, 1000, 50, options.level)
    const choice = (label, name, choices, value) => `<label class="live-choice">
      <span>${label}</span><select name="${name}">${choices.map(([key, label]) =>
        `<option value="${key}"${key === value ? ' selected' : ''}>${label}</option>`).join('')}
      </select></label>`
    if (name === 'solver') return choice(`Solver${of}`, name, Object.entries(SOLVERS), own.solver)
    if (name === 'attributes') {
      const choices = Object.entries(this.about.attributes).map(([of, values]) => choice(
        of.replace('_', ' '), of, [[ANY, 'any'], ...values.entries()], options.attributes[of]))
      return `<fieldset class="live-attributes" aria-label="Attributes">${choices.join('')}
        </fieldset>`
    }
    const group = `digit-${DiffusionLive.count++}`             // radio buttons belong together
    const digits = [ANY, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9].map(digit => `<label><input type="radio"
      name="digit" form="${group}" value="${digit}"${digit === options.digit ? ' checked' : ''}>
      <span>${digit === ANY ? 'any' : digit}</span></label>`)
    return `<form id="${group}" hidden></form>
      <fieldset class="live-digits"><legend>Digit</legend>${digits.join('')}</fieldset>`
  }

  choice() {                                   // of the network
    const group = `network-${DiffusionLive.count++}`
    const networks = this.networks.map(name => `<label><input type="radio" name="network"
      form="${group}" value="${name}"${name === this.network ? ' checked' : ''}>
      <span>${about.networks[name].noun}s</span></label>`)
    return `<form id="${group}" hidden></form><fieldset class="live-digits live-networks"
      aria-label="What to draw">${networks.join('')}</fieldset>`
  }

  padPage() {
    return `<figure class="live-pad"><canvas width="28" height="28" tabindex="0" role="application"
      aria-label="Your drawing. The arrow keys move the pen, the space bar draws, Shift and an
      arrow key draw a line."></canvas><figcaption>draw here</figcaption></figure>`
  }

  tools() {
    const group = `tool-${DiffusionLive.count++}`
    const tools = Object.entries({pen: 'Draw', eraser: 'Erase', mark: 'Mark'}).map(
      ([tool, label], i) => `<label><input type="radio" name="tool" form="${group}"
        value="${tool}"${i ? '' : ' checked'}><span>${label}</span></label>`)
    return `<form id="${group}" hidden></form><div class="live-act">
      <fieldset class="live-digits" aria-label="Tool">${tools.join('')}</fieldset>
      <button type="button" data-do="real">A real digit</button>
      <button type="button" data-do="half">Mark the lower half</button>
      <button type="button" data-do="clear">Clear</button></div>`
  }
}
DiffusionLive.count = 0
customElements.define('diffusion-live', DiffusionLive)
