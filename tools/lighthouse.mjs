// Lighthouse on a built site: the median of three runs a page, on a phone and on a desktop.
//
//     node tools/lighthouse.mjs [SITE] [--runs 3] [--pages index,schedule] [--form mobile,desktop]
//
// The site is served gzipped from this machine. `lighthouse` and `chrome-launcher` come from npm:
// NODE_MODULES names the folder they lie in, CHROME_PATH the browser. Fails below a bound.
import { createServer } from 'node:http'
import { createRequire } from 'node:module'
import { readFile } from 'node:fs/promises'
import { extname, join, normalize, resolve } from 'node:path'
import { gzipSync } from 'node:zlib'
import { parseArgs } from 'node:util'

const { values: args, positionals } = parseArgs({ allowPositionals: true, options: {
  runs: { type: 'string', default: '3' }, form: { type: 'string', default: 'mobile,desktop' },
  pages: { type: 'string', default: 'index,schedule,sampling,export' },
  port: { type: 'string', default: '8099' } } })
const site = positionals[0] ?? '_site', runs = Number(args.runs)
const BOUNDS = { mobile: { performance: 90 }, desktop: { performance: 98 } }
const KB = page => page === 'index' ? 600 : 900
const BLOCKING = 200
const TYPES = { '.html': 'text/html; charset=utf-8', '.css': 'text/css', '.js': 'text/javascript',
  '.mjs': 'text/javascript', '.json': 'application/json', '.svg': 'image/svg+xml',
  '.png': 'image/png', '.webp': 'image/webp', '.gif': 'image/gif', '.woff2': 'font/woff2',
  '.wasm': 'application/wasm', '.txt': 'text/plain', '.xml': 'application/xml' }
const PACKED = new Set(['.png', '.webp', '.gif', '.woff2'])

const modules = createRequire(resolve(process.env.NODE_MODULES ?? 'node_modules') + '/')
const { default: lighthouse, desktopConfig } = await import(modules.resolve('lighthouse'))
const { launch } = await import(modules.resolve('chrome-launcher'))

function serve() {
  const server = createServer(async (request, response) => {
    const path = normalize(decodeURIComponent(new URL(request.url, 'http://a').pathname))
    const file = join(site, path.endsWith('/') ? path + 'index.html' : path), type = extname(file)
    const body = await readFile(file).catch(() => null)
    if (!body) return response.writeHead(404).end()
    const head = { 'content-type': TYPES[type] ?? 'application/octet-stream',
      'cache-control': 'max-age=600' }
    if (PACKED.has(type)) return response.writeHead(200, head).end(body)
    response.writeHead(200, { ...head, 'content-encoding': 'gzip' }).end(gzipSync(body))
  })
  return new Promise(done => server.listen(Number(args.port), '127.0.0.1', () => done(server)))
}

async function measure(page, form) {
  const chrome = await launch({ chromeFlags: ['--headless=new', '--no-sandbox'] })
  const url = `http://127.0.0.1:${args.port}/${page}.html`
  const config = form === 'desktop' ? desktopConfig : undefined
  try { return (await lighthouse(url, { port: chrome.port, logLevel: 'error' }, config)).lhr }
  finally { chrome.kill() }
}

const score = (lhr, category) => Math.round(100 * lhr.categories[category].score)
const number = (lhr, audit) => lhr.audits[audit].numericValue
const FIGURES = {
  performance: lhr => score(lhr, 'performance'), accessibility: lhr => score(lhr, 'accessibility'),
  practices: lhr => score(lhr, 'best-practices'), seo: lhr => score(lhr, 'seo'),
  'FCP s': lhr => number(lhr, 'first-contentful-paint') / 1000,
  'LCP s': lhr => number(lhr, 'largest-contentful-paint') / 1000,
  'blocking ms': lhr => number(lhr, 'total-blocking-time'),
  shift: lhr => number(lhr, 'cumulative-layout-shift'),
  KB: lhr => number(lhr, 'total-byte-weight') / 1024,
  requests: lhr => lhr.audits['network-requests'].details.items.length,
}
const median = values => values.sort((a, b) => a - b)[Math.floor(values.length / 2)]

const server = await serve(), problems = []
console.log(['page', 'form', ...Object.keys(FIGURES)].join(' | '))
for (const form of args.form.split(',')) for (const page of args.pages.split(',')) {
  const reports = []
  for (let i = 0; i < runs; i++) reports.push(await measure(page, form))
  const row = Object.fromEntries(Object.entries(FIGURES)
    .map(([name, figure]) => [name, median(reports.map(figure))]))
  console.log([page, form, ...Object.values(row).map(x => +x.toFixed(2))].join(' | '))
  const want = { accessibility: 100, practices: 100, seo: 100, ...BOUNDS[form] }
  for (const [name, bound] of Object.entries(want))
    if (row[name] < bound) problems.push(`${page}, ${form}: ${name} ${row[name]} < ${bound}`)
  if (row.KB > KB(page)) problems.push(`${page}, ${form}: ${row.KB.toFixed()} KB > ${KB(page)}`)
  if (row['blocking ms'] >= BLOCKING)
    problems.push(`${page}, ${form}: blocked for ${row['blocking ms'].toFixed()} ms`)
  const failed = Object.values(reports[0].audits).filter(a => a.score === 0 &&
    ['accessibility', 'best-practices', 'seo'].some(c =>
      reports[0].categories[c].auditRefs.some(r => r.id === a.id && r.weight)))
  for (const a of failed) problems.push(`${page}, ${form}: ${a.id}: ${a.title}`)
}
server.close()
for (const p of problems) console.error(p)
process.exitCode = problems.length ? 1 : 0
