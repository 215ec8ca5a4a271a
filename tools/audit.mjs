/* Look at a built site in Chromium, as a reader does: each page, wide and narrow, light and dark.

     make audit                                         installs what this needs, then runs it
     node tools/audit.mjs [--quick] [_site] [PAGE ...]  (--quick: without axe-core)

It counts what is cut off at the right edge, violations that axe-core finds, errors in the console,
and requests to another host; it fails if there are any. What scrolls within itself is no fault,
provided that it shows it and can be reached by keyboard: it is counted apart.

Needs playwright-core and axe-core in NODE_MODULES (node_modules), and Chromium at CHROMIUM. */
import { createServer } from 'node:http'
import { readFileSync, readdirSync, existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import { extname, join, resolve } from 'node:path'

const require = createRequire(resolve(process.env.NODE_MODULES ?? 'node_modules') + '/')
const { chromium } = require('playwright-core')
const axe = readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8')
const quick = process.argv.includes('--quick')
const [site = '_site', ...chosen] = process.argv.slice(2).filter((a) => a !== '--quick')
const WIDTHS = (process.env.WIDTHS ?? '1400,390').split(',').map(Number)

// What scrolls or is cut, by kind; a page that is wider than the window; small targets for a finger
function measure() {
  const wide = (e) => e.scrollWidth > e.clientWidth + 1
  const root = document.documentElement
  const count = (selector) => [...document.querySelectorAll(selector)].filter(wide)
  const where = (e) => (e.closest('[id]')?.id ?? '') + ' +' + (e.scrollWidth - e.clientWidth)
  const targets = [...document.querySelectorAll(
    'header :is(a, button, input), nav :is(a, button), aside a, summary, .anim-buttons button')]
  const small = targets.filter((e) => {
    const { width, height } = e.getBoundingClientRect()
    return e.checkVisibility() && width > 1 && (height < 43.5 || width < 24)
  })
  return {
    code: count('main pre').map(where),
    equations: count('main :is(.katex-display, .narrow-math > .formula)').map(where),
    tables: count('main table, main .sd-table').map(where),
    page: wide(root) ? [`+${root.scrollWidth - innerWidth}`] : [],
    targets: innerWidth > 800 ? [] : small.map((e) => e.outerHTML.slice(0, 90)),
  }
}

async function violations(page, options) {
  const found = await page.evaluate((o) => axe.run(document, o), options)
  return found.violations.flatMap((v) => v.nodes.map((n) =>
    `${v.id}: ${n.target.join(' ')} ${(n.any[0]?.data?.contrastRatio ?? '')}`))
}

async function look(browser, url, name, width) {
  const page = await browser.newPage({ viewport: { width, height: 900 }, reducedMotion: 'reduce' })
  const errors = [], others = []
  page.on('console', (m) => m.type() === 'error' && errors.push(m.text()))
  page.on('pageerror', (e) => errors.push(String(e)))
  const other = (u) => /^https?:/.test(u) && !u.startsWith(url)
  page.on('request', (r) => other(r.url()) && others.push(r.url()))
  await page.goto(url + name, { waitUntil: 'load' })
  await page.evaluate(async () => {
    document.querySelectorAll('details').forEach((d) => { d.open = true })
    await document.fonts.ready
  })
  await page.waitForFunction(() => !document.querySelector('.piece:not(.shown)'))  // laid out
  const found = await page.evaluate(measure)
  if (quick) { await page.close(); return { ...found, errors, others } }
  await page.evaluate(axe)
  const light = await violations(page, {})
  await page.evaluate(() => document.querySelector('.quarto-color-scheme-toggle').click())
  await page.waitForSelector('.quarto-dark')
  const dark = await violations(page, { runOnly: ['color-contrast', 'link-in-text-block'] })
  await page.close()
  return { ...found, light, dark, errors, others }
}

function serve(folder) {
  const types = {
    '.html': 'text/html', '.css': 'text/css', '.js': 'text/javascript', '.mjs': 'text/javascript',
    '.svg': 'image/svg+xml', '.json': 'application/json', '.wasm': 'application/wasm' }
  const server = createServer((request, response) => {
    const file = join(folder, decodeURIComponent(new URL(request.url, 'http://x').pathname))
    if (!existsSync(file)) { response.writeHead(404).end(); return }
    response.writeHead(200, { 'Content-Type': types[extname(file)] ?? 'application/octet-stream' })
    response.end(readFileSync(file))
  })
  return new Promise((done) => server.listen(0, '127.0.0.1', () => done(server)))
}

const server = await serve(site)
const url = `http://127.0.0.1:${server.address().port}/`
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox'] })
const pages = chosen.length ? chosen : readdirSync(site).filter((f) => f.endsWith('.html')).sort()
const SCROLLS = ['code', 'equations', 'tables']
const FAULTS = ['page', 'targets', 'light', 'dark', 'errors', 'others']
const total = {}
for (const width of WIDTHS) for (const name of pages) {
  const found = await look(browser, url, name, width)
  for (const [kind, list] of Object.entries(found)) {
    const key = `${kind} ${width}`
    total[key] = (total[key] ?? 0) + list.length
    for (const item of list) console.log(`${width} ${name} ${kind}: ${item}`)
  }
}
await browser.close()
server.close()
console.log('\n' + ['', ...WIDTHS].join('\t'))
const counts = (kind) => WIDTHS.map((w) => total[`${kind} ${w}`] ?? '')
for (const kind of [...SCROLLS, ...FAULTS]) console.log([kind, ...counts(kind)].join('\t'))
process.exit(FAULTS.some((kind) => counts(kind).some(Boolean)) ? 1 : 0)
