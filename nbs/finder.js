// Ranks the documents of the site for a query, with MiniSearch. Used by search.js in the browser
// and by tools/search.py in node.

// Words that say nothing of what is looked for
const STOP = new Set(('a an and are as at be by can do does for from how i if in is it my of on ' +
  'or that the this to what when which with you your').split(' '))
const WEIGHT = { section: 1, exercise: .4, api: 1, helper: .3, method: .6, term: .5 }

// A word without its ending, so that training, trained and train are one word
function ending(word) {
  word = word.toLowerCase().normalize('NFD').replace(/\p{M}/gu, '')
  if (word.length < 4 || word.endsWith('ss')) return word
  const short = word.replace(/(?:ings?|ed|ers?|es|s)$/, '')
  return (short.length < 3 ? word : short).replace(/(..)e$/, '$1')
}
const known = new Map()
function stem(word) {
  let s = known.get(word)
  if (s === undefined) known.set(word, s = ending(word))
  return s
}

export const words = text => text.split(/[\n\r\p{Z}\p{P}$=+<>|~^]+/u).filter(Boolean)

// The words of a query, without those that say nothing unless there are no others
const telling = text => {
  const all = words(text), some = all.filter(word => !STOP.has(word.toLowerCase()))
  return (some.length ? some : all).map(stem)
}

export function makeFinder(MiniSearch, { documents, concepts }) {
  const index = new MiniSearch({
    fields: ['title', 'names', 'page', 'text'], tokenize: words, processTerm: stem })
  const numbered = documents.map((d, id) => ({ id, ...d }))
  for (const c of concepts) c.stems = c.names.map(telling)

  // The concepts that a query names, each with the query in the book's own words. A common word,
  // such as *rate*, names one only if it is the whole query.
  function meant(query) {
    const found = []
    for (const c of concepts) for (const [i, name] of c.stems.entries()) {
      const at = query.findIndex((_, k) => name.every((word, j) => query[k + j] === word))
      const whole = name.length === query.length
      const common = name.length === 1 && c.names[i] === c.names[i].toLowerCase()
      if (!name.length || at < 0 || common && !whole) continue
      found.push({ pages: c.pages, whole, own: c.stems[0],
        query: [...query.slice(0, at), ...c.stems[0], ...query.slice(at + name.length)] })
      break
    }
    return found
  }

  // Documents with a word, or with one that begins like it if it may be unfinished; if there are
  // none, with one that is spelled almost like it, or begins in the same way
  function having(word, open) {
    const find = (text, options) => index.search(text, { processTerm: x => x, ...options,
      boost: { title: 6, names: 4, page: 2 }, weights: { prefix: .4, fuzzy: .15 } })
    let found = find(word, { prefix: open && word.length > 1 })
    if (!found.length && word.length > 4) found = find(word, { fuzzy: .2 })
    if (found.length || word.length < 6) return found
    return find(word.slice(0, Math.max(4, word.length / 2)), { prefix: true })
  }

  // Adds the scores of the documents for some words. A document without one of them loses more,
  // the rarer the word.
  function add(scores, words, factor, open) {
    const found = new Map(), weights = new Map()
    let total = 0
    for (const word of new Set(words)) {
      const results = having(word, open && word === words.at(-1))
      const weight = Math.log(1 + documents.length / (1 + results.length))
      total += weight
      for (const { id, score } of results) {
        found.set(id, (found.get(id) || 0) + score)
        weights.set(id, (weights.get(id) || 0) + weight)
      }
    }
    for (const [id, score] of found)
      scores.set(id, (scores.get(id) || 0) + factor * score * (weights.get(id) / total) ** 3)
  }

  function find(text) {
    const query = telling(text), scores = new Map()
    if (!query.length) return []
    const found = meant(query), explain = new Set(found.flatMap(c => c.pages))
    add(scores, query, 1, true)
    for (const c of found) {
      add(scores, c.query, .8, false)
      if (!c.whole) add(scores, c.own, .4, false)
    }
    const page = d => d.href.split('#')[0]
    const order = [...scores].map(([id, score]) => [score * WEIGHT[documents[id].kind] *
      (explain.has(page(documents[id])) ? 1.6 : 1), documents[id]])
    const ranked = order.sort((a, b) => b[0] - a[0]).map(([, d]) => d)
    // First what has the query as its name; then, for a name of a term, the best section of each
    // of the (two) chapters that explain it
    const named = ranked.filter(d =>
      d.kind !== 'term' && d.title.toLowerCase() === text.trim().toLowerCase())
    const pages = [...new Set(found.filter(c => c.whole).flatMap(c => c.pages))].slice(0, 2)
    const best = pages.map(p => ranked.find(d => page(d) === p)).filter(Boolean)
    best.sort((a, b) => ranked.indexOf(a) - ranked.indexOf(b))
    return [...new Set([...named, ...best, ...ranked])]
  }

  // A piece of a text around the first word of the query, as [text, is it such a word?]
  function excerpt(text, query, length = 160) {
    const asked = new Set([telling(query), ...meant(telling(query)).map(c => c.query)].flat())
    const pieces = text.split(/([\p{L}\p{N}]+)/u)
    const first = Math.max(0, pieces.findIndex(word => asked.has(stem(word))))
    let start = first, room = length / 3
    while (start > 0 && (room -= pieces[start - 1].length) > 0) start--
    const shown = []
    for (let i = start, left = length; i < pieces.length && left > 0; left -= pieces[i++].length)
      shown.push([pieces[i], asked.has(stem(pieces[i]))])
    return start ? [['… ', false], ...shown] : shown
  }

  return { find, excerpt, addAll: () => index.addAll(numbered),
    addAllAsync: () => index.addAllAsync(numbered, { chunkSize: 60 }) }
}
