// Render formulas with KaTeX: JSON in, JSON out. tools/katex.py runs it, once for the whole site.
const katex = require(require('path').resolve(process.argv[2]))
const formulas = JSON.parse(require('fs').readFileSync(0, 'utf8'))
const rendered = formulas.map(([tex, displayMode]) => {
  try { return { html: katex.renderToString(tex, { displayMode, strict: 'ignore' }) } }
  catch (error) { return { error: error.message } }
})
process.stdout.write(JSON.stringify(rendered))
