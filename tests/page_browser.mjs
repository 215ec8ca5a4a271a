// Formulas and pieces of pages, as headless Chromium lays them out: test_screen.py runs this.
//   node page_browser.mjs PLAYWRIGHT CHROMIUM FOLDER -> one line of JSON
import {createRequire} from 'node:module'

const [, , playwright, executablePath, folder] = process.argv
const {chromium} = createRequire(import.meta.url)(playwright)
const browser = await chromium.launch({executablePath, args: ['--no-sandbox']})
const tab = await browser.newPage({viewport: {width: 1200, height: 800}})
const found = {}
const open = async (name, hash = '') => {
  await tab.goto('about:blank')
  await tab.goto(`file://${folder}/${name}.html${hash}`)
  await tab.evaluate(() => document.fonts.ready)
}

// Each glyph, rule and outline of a formula: what it is, and where it stands in its paragraph
const marks = () => [...document.querySelectorAll('p')].map(p => {
  const box = p.getBoundingClientRect(), range = document.createRange(), marks = []
  const place = (what, {left, bottom, width}) => marks.push(
    [what, left - box.left, bottom - box.top, width])
  const texts = document.createTreeWalker(p.querySelector('.katex-html'), NodeFilter.SHOW_TEXT)
  for (let text; (text = texts.nextNode());) for (let i = 0; i < text.length; i++) {
    if (/[\s\u200b]/.test(text.data[i])) continue
    range.setStart(text, i)
    range.setEnd(text, i + 1)
    place(text.data[i], range.getBoundingClientRect())
  }
  for (const e of p.querySelectorAll('.katex-html svg, .frac-line'))
    place(e.tagName.toLowerCase(), e.getBoundingClientRect())
  return marks.sort((a, b) => a[0] < b[0] ? -1 : a[0] > b[0] ? 1 : a[1] - b[1] || a[2] - b[2])
})
for (const name of ['theirs', 'ours']) {
  await open(name)
  found[name] = await tab.evaluate(marks)
}

// At which widths a sign does not stand on the line of the formula's end, and how many lines the
// longest formula takes at the smallest
await open('signs')
found.signs = await tab.evaluate(() => {
  const apart = [], range = document.createRange(), p = document.querySelector('p')
  for (let width = 120; width < 600; width += 3) {
    p.style.width = `${width}px`
    for (const kept of document.querySelectorAll('.kept')) {
      range.selectNodeContents(kept.lastChild)
      const sign = range.getBoundingClientRect()
      const end = [...kept.querySelectorAll('.base')].at(-1).getBoundingClientRect()
      if (sign.left < end.right - 1) apart.push([width, kept.lastChild.data])
    }
  }
  p.style.width = '120px'
  const tops = [...document.querySelectorAll('#long .base')].map(b => b.getBoundingClientRect().top)
  return {kept: document.querySelectorAll('.kept').length, apart, lines: new Set(tops).size}
})

const pieces = () => tab.evaluate(() => ({
  shown: document.querySelectorAll('.piece.shown').length,
  all: document.querySelectorAll('.piece').length,
  skipped: [...document.querySelectorAll('.piece > *')].filter(
    e => !e.checkVisibility({contentVisibilityAuto: true})).length,
  top: document.getElementById('last').getBoundingClientRect().top}))
const still = await browser.newContext({javaScriptEnabled: false})
const other = await still.newPage()
await other.goto(`file://${folder}/pieces.html`)
found.withoutScript = await other.locator('.piece.shown').count()
await open('pieces')
found.text = await tab.evaluate(() => window.find('needle'))
await tab.waitForFunction(() => !document.querySelector('.piece:not(.shown)'))
found.atRest = await pieces()
await open('pieces', '#last')
await tab.waitForTimeout(300)
found.atHash = await pieces()
await open('pieces')
await tab.locator('#to-last').click()
await tab.waitForTimeout(300)
found.afterLink = await pieces()

await browser.close()
console.log(JSON.stringify(found))
