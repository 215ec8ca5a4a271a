// Render formulas with KaTeX: JSON in, JSON out. tools/katex.py runs it, once for the whole site.
//
// KaTeX builds a formula out of many nested spans, five for each thing that is raised or lowered.
// What it means is kept here and written with about a third of the elements: a shift is a relative
// position, things above each other share the cell of a grid, a space is the margin of its
// neighbour, and each outline of a root is on a page once. MathML loses its looks.
// Where a formula in a line of text may break stands a <wbr>.
const path = require('path'), fs = require('fs')
const katex = require(path.resolve(process.argv[2]))
const css = fs.readFileSync(path.join(path.dirname(process.argv[2]), 'katex.min.css'), 'utf8')
const STYLED = new Set([...css.matchAll(/\.([a-z][\w-]*)/gi)].map((m) => m[1]))  // what means a look
const SIZES = [0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.44, 1.728, 2.074, 2.488]
const ABOVE = 0.85, BELOW = 0.3  // em of a line that is there without a strut (measured: tests)
const KEEPS = /^(inner|delim-size\d)$/  // classes that style their children as spans
const APART = /^(hide-tail|stretchy|accent-body|frac-line|inner|fix|[crl]lap|above|root)$/

const em = (length) => parseFloat(length ?? 0)
const inEm = (number) => { const x = +number.toFixed(4); return x ? `${x}em` : undefined }
const escaped = (text) => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt()};`)
const element = (classes, style, children, more = {}) =>
  ({ classes, style, children, attributes: {}, scale: 1, ...more })
const bare = (e) => !e.classes.length && !e.italic && !Object.keys(e.attributes).length &&
  e.scale === 1 && Object.values(e.style).every((value) => value === undefined)
const is = (node, name) => node.classes?.includes(name)

// ---------------------------------------------------------------- the tree that a reader sees
function lean(node) {  // a node of KaTeX as a list of elements and texts
  if ('text' in node) return [symbol(node)]
  if (!node.classes) return [{ svg: node }]
  if (is(node, 'vlist-t')) return [stack(node)]
  if (is(node, 'mspace') && !node.children.length && Object.keys(node.style).join() === 'marginRight')
    return [{ space: em(node.style.marginRight) }]
  const made = element(node.classes.filter((c) => STYLED.has(c)), { ...node.style }, [],
    { attributes: { ...node.attributes } })
  const [from, to] = ['reset-size', 'size'].map((name) =>
    +made.classes.find((c) => c.startsWith(name))?.slice(name.length))
  if (is(made, 'sizing') && from && to) {
    made.scale = SIZES[to - 1] / SIZES[from - 1]
    made.classes = made.classes.filter((c) => !/^(reset-)?siz(e\d+|ing)$/.test(c))
  }
  made.children = spaced(node.children.flatMap(lean), made.classes.some((c) => KEEPS.test(c)))
  if (is(made, 'base')) drop(made)
  if (is(made, 'msupsub') && !made.children.some((c) => is(c, 'v'))) made.classes = []
  return [joined(made)]
}

function symbol({ text, classes, style, italic }) {
  const made = element(classes.filter((c) => STYLED.has(c) && c !== 'mathnormal'),
    { ...(italic > 0 && { marginRight: inEm(italic) }), ...style }, [escaped(text)])
  return { ...made, italic: classes.includes('mathnormal'), symbol: true }
}

function stack(node) {  // KaTeX's table of things at several heights
  const parts = node.children[0].children[0].children.filter((part) => part.children.length)
  const made = parts.map((part) => {
    const strut = part.children.find((child) => is(child, 'pstrut'))
    const shift = em(part.style.top) + em(strut?.style.height)
    const children = spaced(part.children.filter((child) => child !== strut).flatMap(lean))
    const { top, ...style } = part.style
    for (const side of ['marginLeft', 'marginRight']) style[side] = inEm(em(style[side]))
    const box = children.find((child) => child.children?.some((inner) => inner.svg))
    if (box) box.style = { width: '100%', ...box.style, display: 'inline-block',  // a drawing:
      position: 'relative', marginTop: '-0.05em', marginBottom: inEm(-shift) }  // as its strut
    else if (inEm(shift)) Object.assign(style, { position: 'relative', top: inEm(shift) })
    return joined(element(part.classes.filter((c) => STYLED.has(c)), style, children),
      parts.length > 1)
  })
  return parts.length === 1 ? made[0] : element(['v'], {}, made)
}

function drop(base) {  // a strut that is no taller than any line
  const strut = base.children.find((child) => is(child, 'strut'))
  const below = -em(strut?.style.verticalAlign), above = em(strut?.style.height) - below
  if (strut && below <= BELOW && above <= ABOVE) base.children.splice(base.children.indexOf(strut), 1)
}

function spaced(children, keep) {  // without spaces and spans that have no look of their own
  const flat = children.flatMap((c) => c.children && !c.symbol && !keep && bare(c) ? c.children : [c])
  const found = []
  let left = 0
  const margin = (e, side, space) => {
    e.style[side] = inEm(em(e.style[side]) + space / e.scale)
  }
  flat.forEach((child, i) => {
    const before = found.at(-1)
    if (child.space === undefined) {
      if (left && child.children) margin(child, 'marginLeft', left)
      left = 0
      found.push(child)
    } else if (before?.children && !APART.test(before.classes) && !is(before, 'strut'))
      margin(before, 'marginRight', child.space)
    else if (flat[i + 1]?.children && !APART.test(flat[i + 1].classes)) left += child.space
    else found.push(element(['mspace'], { marginRight: inEm(child.space) }, []))
  })
  return found
}

function joined(outer, inStack = false) {  // an element and its only child as one
  const [inner] = outer.children
  if (outer.children.length !== 1 || !inner.children || outer.classes.length || outer.italic ||
      Object.keys(outer.attributes).length || inner.classes.some((c) => APART.test(c)) ||
      inStack && (is(inner, 'v') || !inner.symbol)) return outer
  const style = { ...inner.style }
  for (const [name, value] of Object.entries(outer.style))
    style[name] = /^(margin|top)/.test(name) ? inEm(em(style[name]) + em(value) / inner.scale) : value
  return { ...inner, style, scale: outer.scale * inner.scale }
}

// ---------------------------------------------------------------- markup
const written = new Map()  // a style -> how often it is used; then -> its class
const outlines = new Map()  // the outline of a root or a brace -> its id

function styleOf({ style, scale }) {
  const all = { ...style, fontSize: inEm(scale) === '1em' ? undefined : inEm(scale) }
  return Object.entries(all).filter(([, value]) => value !== undefined).sort()
    .map(([name, value]) => `${name.replace(/[A-Z]/g, (c) => '-' + c.toLowerCase())}:` +
      value.replace(/\b0(?=\.\d)/, '')).join(';')
}

function visit(nodes, what) {
  for (const node of nodes) if (node.children) { what(node); visit(node.children, what) }
}

function markup(node, inStack = false) {  // text is no part of a stack: CSS cannot place it
  if (typeof node === 'string') return node
  if (node.svg) return drawn(node.svg)
  const style = styleOf(node), name = written.get(style)
  const classes = [...node.classes, ...(typeof name === 'string' ? [name] : [])].join(' ')
  const attributes = Object.entries(node.attributes).map(([key, value]) => ` ${key}="${escaped(value)}"`)
  const plain = !classes && !style && !attributes.length && node.symbol && !inStack
  const inside = node.children.map((child) => markup(child, is(node, 'v'))).join('')
  if (plain && !node.italic) return inside
  const tag = node.italic ? 'i' : 'span'
  return `<${tag}${classes && ` class="${classes}"`}` +
    `${style && typeof name !== 'string' ? ` style="${style}"` : ''}${attributes.join('')}>${inside}</${tag}>`
}

function drawn(svg) {
  return svg.toMarkup().replace(' xmlns="http://www.w3.org/2000/svg"', '')
    .replace(/<path d="([^"]*)"\/>/g, (_, outline) => {
      if (!outlines.has(outline)) outlines.set(outline, `outline-${outlines.size + 1}`)
      return `<use href="#${outlines.get(outline)}"/>`
    })
}

const mathml = (node) => node.toMarkup().replace(' xmlns="http://www.w3.org/1998/Math/MathML"', '')
  .replace(/<annotation\b.*?<\/annotation>|<\/?semantics>/gs, '')  // the same in TeX

const LOOKS = ['columnalign', 'columnspacing', 'displaystyle', 'fence', 'lspace', 'rowspacing', 'rspace',
  'scriptlevel', 'separator', 'stretchy']
const upright = (node) => node.type === 'mi' && node.attributes.mathvariant === 'normal' &&
  /^[A-Za-z]+$/.test(node.children[0].text)

function plain(node) {  // MathML is for the ear: without looks, with words in one piece
  if (!node.children) return node
  for (const name of LOOKS) delete node.attributes?.[name]
  node.children = node.children.map(plain)
  if (node.type === 'mstyle') node.type = 'mrow'
  if (!['mrow', 'mtd'].includes(node.type)) return node
  const parts = []
  for (const child of node.children) {
    if (child.type === 'mrow' && !child.children.length) continue
    const before = parts.at(-1)
    if (before && upright(before) && upright(child)) before.children[0].text += child.children[0].text
    else parts.push(child)
  }
  node.children = parts
  const row = node.type === 'mrow' && parts.length === 1 && !Object.keys(node.attributes).length
  return row && parts[0].toMarkup ? parts[0] : node
}

// ---------------------------------------------------------------- all formulas
const formulas = JSON.parse(fs.readFileSync(0, 'utf8')).map(([tex, displayMode]) => {
  try {
    const tree = katex.__renderToDomTree(tex, { displayMode, strict: 'ignore' })
    const [spoken, seen] = (displayMode ? tree.children[0] : tree).children
    return { displayMode, spoken: mathml(plain(spoken)), seen: seen.children.flatMap(lean) }
  } catch (error) { return { error: error.message } }
})
for (const { seen } of formulas) visit(seen ?? [], (node) => {
  const style = styleOf(node)
  if (style) written.set(style, (written.get(style) ?? 0) + 1)
})
let number = 0, rules = ''
for (const [style, times] of [...written].sort((a, b) => b[1] - a[1])) {
  if (times < 20) break
  written.set(style, `k${(number++).toString(36)}`)
  rules += `.katex .${written.get(style)}{${style}}`
}
const pages = formulas.map(({ error, displayMode, spoken, seen }) => {
  if (error) return { error }
  const html = `<span class="katex">${spoken}<span class="katex-html" aria-hidden="true">` +
    `${seen.map((node) => markup(node)).join(displayMode ? '' : '<wbr>')}</span></span>`
  return { html: displayMode ? `<span class="katex-display">${html}</span>` : html }
})
process.stdout.write(JSON.stringify({ formulas: pages, rules, outlines: Object.fromEntries(
  [...outlines].map(([outline, id]) => [id, outline])) }))
