// What a reader does on a page with <diffusion-live>, in headless Chromium: test_live.py runs this.
//   node live_browser.mjs PLAYWRIGHT CHROMIUM URL -> one line of JSON
import {createRequire} from 'node:module'

const [, , playwright, executablePath, url] = process.argv
const {chromium} = createRequire(import.meta.url)(playwright)
const browser = await chromium.launch({executablePath, args: ['--no-sandbox']})
const found = {errors: [], hosts: new Set(), bytes: {}}

async function open(page, options = {}) {
  const context = await browser.newContext({viewport: {width: 1400, height: 900}, ...options})
  const tab = await context.newPage()
  tab.on('console', message => {
    if (message.type() === 'error') found.errors.push(message.text())
  })
  tab.on('pageerror', error => found.errors.push(error.message))
  tab.on('request', request => found.hosts.add(new URL(request.url()).host))
  await tab.goto(`${url}/${page}.html`)
  return tab
}

const ready = tab => tab.waitForFunction(() => {
  const live = document.querySelector('diffusion-live')
  return live.times && !live.running
}, null, {timeout: 240_000})
const last = tab => tab.evaluate(() => document.querySelector('diffusion-live').panels.map(
  ({frames}) => ({ts: frames.map(({t}) => t), x: [...frames.at(-1).x]})))
const text = (tab, selector) => tab.evaluate(
  where => document.querySelector(`diffusion-live ${where}`).textContent, selector)

// Press Tab until an element has the focus
async function tabTo(tab, selector) {
  for (let i = 0; i < 40; i++) {
    await tab.keyboard.press('Tab')
    const there = await tab.evaluate(where => document.activeElement.matches(where), selector)
    if (there) return
  }
  throw new Error(`the Tab key does not reach ${selector}`)
}

{  // the first page, by keyboard
  const tab = await open('index')
  await tab.waitForSelector('.live-draw')
  found.beforeClick = [...found.hosts].length === 1 && !await tab.evaluate(
    () => performance.getEntriesByType('resource').some(({name}) => /wasm|onnx$/.test(name)))
  const button = await tab.locator('.live-draw').boundingBox()
  found.buttonEnds = button.y + button.height
  await tabTo(tab, '[name=digit]')
  await tab.keyboard.press('ArrowRight')                       // one digit further
  await tabTo(tab, '.live-draw')
  await tab.keyboard.press('Enter')
  await ready(tab)
  found.draw = await last(tab)
  found.python = await text(tab, '.live-python code')
  found.status = await text(tab, '[role=status]')
  found.times = await tab.evaluate(() => document.querySelector('diffusion-live').times)
  await tab.locator('.live-scrubber').focus()
  await tab.keyboard.press('Home')
  await tab.keyboard.press('ArrowRight')
  found.scrubbed = await text(tab, '.live-panel figcaption')
  found.valueText = await tab.locator('.live-scrubber').getAttribute('aria-valuetext')
  await tab.locator('[name=seed]').focus()
  await tab.keyboard.press('ArrowRight')                       // draws again, in the same place
  await tab.waitForFunction(() => document.querySelector('diffusion-live').running)
  await ready(tab)
  found.nextSeed = await last(tab)
  found.nextPython = await text(tab, '.live-python code')
  const face = tab.locator('[name=network][value=faces]')
  if (await face.count()) {                                    // the other network
    await tab.locator('[name=network]:checked').focus()
    await tab.keyboard.press('ArrowRight')
    found.chosen = await face.isChecked() && !await tab.locator('[name=digit]').count()
    await tab.evaluate(() => { document.querySelector('diffusion-live').times = null })
    await tab.locator('.live-draw').click()
    await ready(tab)
    found.chosenFace = await last(tab)
    found.chosenPython = await text(tab, '.live-python code')
  }
  await tab.context().close()
}
{  // two solvers, on a phone, with reduced motion
  const tab = await open('solvers', {viewport: {width: 390, height: 844}, reducedMotion: 'reduce'})
  await tab.waitForSelector('.live-draw')
  await tab.evaluate(() => {
    window.shown = 0
    new MutationObserver(() => { window.shown++ }).observe(
      document.querySelector('.live-scrubber'), {attributeFilter: ['aria-valuetext']})
  })
  await tab.selectOption('[data-panel="1"] select', 'heun')
  for (const panel of [0, 1]) {
    const steps = tab.locator(`[data-panel="${panel}"] [name=steps]`)
    await steps.focus()
    await tab.keyboard.press('Home')
    for (let i = 0; i < 3; i++) await tab.keyboard.press('ArrowRight')
  }
  await tab.locator('.live-draw').click()
  await ready(tab)
  found.compare = await last(tab)
  found.comparePython = await text(tab, '.live-python code')
  found.shown = await tab.evaluate(() => window.shown)
  found.overflow = await tab.evaluate(() => document.documentElement.scrollWidth - innerWidth)
  found.small = await tab.evaluate(() => [...document.querySelectorAll(
    'diffusion-live :is(button, select, .live-digits label, input[type=range])')]
    .filter(target => target.getBoundingClientRect().height < 44).map(target => target.outerHTML))
  await tab.context().close()
}
{  // a drawing by mouse and keyboard, noised and drawn again; then a part of it filled in
  const tab = await open('editing')
  const pad = tab.locator('.live-pad canvas')
  const box = await pad.boundingBox()
  const ink = () => tab.evaluate(
    () => document.querySelector('diffusion-live').pad.image.filter(x => x > 0).length)
  await tab.mouse.move(box.x + 0.6 * box.width, box.y + 0.2 * box.height)
  await tab.mouse.down()
  await tab.mouse.move(box.x + 0.45 * box.width, box.y + 0.8 * box.height, {steps: 8})
  await tab.mouse.up()
  found.inkOfMouse = await ink()
  await pad.focus()
  for (const key of [...Array(6).fill('ArrowLeft'), ' ', ...Array(4).fill('Shift+ArrowUp')]) {
    await tab.keyboard.press(key)
  }
  found.inkOfKeys = await ink() - found.inkOfMouse
  await tab.locator('.live-draw').click()
  await ready(tab)
  found.redrawn = await last(tab)
  await tab.locator('[data-do=half]').click()
  await tab.evaluate(() => { document.querySelector('diffusion-live').times = null })
  await tab.locator('[data-do=fill]').click()
  await ready(tab)
  found.filled = await last(tab)
  found.drawing = await tab.evaluate(() => [...document.querySelector('diffusion-live').pad.image])
  found.edit = await tab.evaluate(() => document.querySelector('diffusion-live').options)
  await tab.context().close()
}
if ((await fetch(`${url}/faces.html`)).ok) {  // a face, some of whose attributes are stated
  const tab = await open('faces')
  await tabTo(tab, '[name=glasses]')
  for (const key of ['ArrowDown', 'ArrowDown']) await tab.keyboard.press(key)  // second value
  await tabTo(tab, '.live-draw')
  await tab.keyboard.press('Enter')
  await ready(tab)
  found.faces = await last(tab)
  found.facesPython = await text(tab, '.live-python code')
  found.facesTimes = await tab.evaluate(() => document.querySelector('diffusion-live').times)
  found.facesCanvas = await tab.evaluate(() => {
    const context = document.querySelector('diffusion-live canvas').getContext('2d')
    return [...context.getImageData(0, 0, 64, 64).data]
  })
  for (const name of ['hat', 'glasses', 'beard']) {
    await tab.selectOption(`[name=${name}]`, 'any')
  }
  await ready(tab)
  found.anyFace = await last(tab)
  found.anyFacePython = await text(tab, '.live-python code')
  await tab.context().close()
}
{  // a network whose weights the site lacks
  const tab = await open('no_weights')
  await tab.waitForFunction(() => customElements.get('diffusion-live'))
  found.withoutWeights = await tab.locator('diffusion-live').count()
  await tab.context().close()
}
{  // without JavaScript
  const tab = await open('index', {javaScriptEnabled: false})
  found.withoutScript = await tab.locator('diffusion-live img').isVisible()
    && await tab.locator('.live-note').innerText()
  await tab.context().close()
}
{  // without WebAssembly
  const errors = found.errors.length
  const tab = await open('index')
  await tab.route('**/*.wasm', route => route.abort())
  await tab.locator('.live-draw').click()
  await tab.waitForFunction(() => /could not/.test(
    document.querySelector('diffusion-live [role=status]').textContent), null, {timeout: 120_000})
  found.withoutWasm = await tab.locator('diffusion-live img').isVisible()
  found.errors.length = errors                                 // the browser reports the request
  await tab.context().close()
}
{  // a site that was built without the engine
  const tab = await open('no_engine')
  await tab.waitForFunction(() => /without the program/.test(document.body.textContent))
  found.withoutEngine = await tab.locator('diffusion-live img').isVisible()
  await tab.context().close()
}
await browser.close()
console.log(JSON.stringify({...found, hosts: [...found.hosts]}))
