// The search box. What ranks the results is loaded when the box gets the focus.
const input = document.querySelector('.book-search input')
const list = element('div', { id: 'search-results', class: 'book-results', role: 'listbox',
  hidden: '', 'aria-label': 'Results' })
const status = element('div', { class: 'visually-hidden', role: 'status' })
document.body.append(list, status)

let finder, active = -1

function load() {
  finder ||= (async () => {
    const [{ makeFinder }, { default: MiniSearch }, data] = await Promise.all([
      import('./finder.js'), import('./assets/minisearch/index.js'),
      fetch('search-index.json').then(r => r.json())])
    const made = makeFinder(MiniSearch, data)
    await made.addAllAsync()
    return made
  })()
  finder.catch(() => { finder = undefined })  // the next key tries again
  return finder
}

function element(tag, attributes, text = '') {
  const e = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) e.setAttribute(name, value)
  e.textContent = text
  return e
}

function result(d, i, excerpt) {
  const a = element('a', { href: d.href, id: `result-${i}`, class: 'book-result', role: 'option',
    tabindex: -1, 'aria-selected': false })
  const text = element('div', { class: 'book-result-text' })
  for (const [piece, asked] of excerpt) text.append(asked ? element('mark', {}, piece) : piece)
  a.append(element('span', { class: 'book-result-title' }, d.title), ' ',
    element('span', { class: 'book-result-page' }, d.page), text)
  return a
}

const says = text => element('div', { class: 'book-none' }, text)

function close() {
  list.hidden = true
  select(-1)
  input.setAttribute('aria-expanded', 'false')
}

function open() {
  const header = input.closest('nav, header').getBoundingClientRect()
  list.style.top = `${header.bottom}px`
  list.hidden = false
  input.setAttribute('aria-expanded', 'true')
}

// Selects a result; -1 is none, and up and down go round
function select(i) {
  const options = list.querySelectorAll('[role=option]'), places = options.length + 1
  active = (i + 1 + places) % places - 1
  options.forEach((o, k) => o.setAttribute('aria-selected', k === active))
  if (active < 0) return input.removeAttribute('aria-activedescendant')
  input.setAttribute('aria-activedescendant', options[active].id)
  options[active].scrollIntoView({ block: 'nearest' })
}

async function search() {
  const query = input.value.trim()
  if (query.length < 2) return close()
  const tell = text => { list.replaceChildren(says(text)); open() }
  const late = setTimeout(() => tell('Loading …'), 200)
  let f
  try { f = await load() }
  catch { return tell('The search could not be loaded.') }
  finally { clearTimeout(late) }
  if (query !== input.value.trim()) return
  const begun = performance.now(), found = f.find(query)
  const options = found.slice(0, 12).map((d, i) => result(d, i, f.excerpt(d.text, query)))
  list.replaceChildren(...(options.length ? options : [says('Nothing found.')]))
  list.dataset.milliseconds = performance.now() - begun
  status.textContent = options.length ? `${options.length} results` : 'Nothing found'
  select(-1)
  list.scrollTop = 0
  open()
}

const keys = {
  ArrowDown: () => select(active + 1),
  ArrowUp: () => select(active - 1),
  Enter: () => (list.querySelectorAll('a')[Math.max(active, 0)])?.click(),
  Escape: () => { list.hidden ? input.blur() : close() },
}

if (input) {
  input.addEventListener('focus', () => { load().catch(() => {}); if (input.value) search() })
  input.addEventListener('input', search)
  input.addEventListener('keydown', e => {
    if (!keys[e.key] || e.isComposing || (list.hidden && e.key !== 'Escape')) return
    e.preventDefault()
    keys[e.key]()
  })
  input.addEventListener('blur', close)
  list.addEventListener('mousedown', e => e.preventDefault())  // the box keeps the focus
  list.addEventListener('click', () => { close(); input.blur() })  // a result on this page
  document.addEventListener('keydown', e => {
    const typing = e.target.closest?.('input, textarea, select, [contenteditable]')
    const slash = e.key === '/' && !typing && !e.ctrlKey && !e.metaKey && !e.altKey
    if (!slash && !(e.key === 'k' && (e.ctrlKey || e.metaKey))) return
    e.preventDefault()
    input.focus()
    input.select()
  })
}
