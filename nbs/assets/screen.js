// What scrolls sideways says so and takes the focus; the drawer and the lists of a phone close again.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)]

  // A fade at each edge beyond which there is more (styles.css), and a place for the keyboard
  const SCROLLS = 'main :is(pre, .katex-display, .formula, .sd-table, .cell-output-display, .ledger)'
  const NAMES = { PRE: 'Code or output', SPAN: 'Equation', DIV: 'Table or picture' }
  const edges = (e) => {
    const right = e.scrollWidth - e.clientWidth
    const down = e.tagName === 'PRE' ? e.scrollHeight - e.clientHeight : 0
    const more = [
      right > 1 && e.scrollLeft > 1 && 'left', right > 1 && e.scrollLeft < right - 1 && 'right',
      down > 2 && e.scrollTop > 1 && 'up', down > 2 && e.scrollTop < down - 2 && 'down']
    return more.filter(Boolean).join(' ')
  }
  const update = (e, more = edges(e)) => {
    e.dataset.more = more
    if (!more) delete e.dataset.more
    if (e.getAttribute('role') === 'group') return
    if (!more) return e.removeAttribute('tabindex')  // tools/screen.py gives it to long lines
    e.setAttribute('tabindex', '0')
    e.setAttribute('role', 'group')
    e.setAttribute('aria-label', `${NAMES[e.tagName]}; it scrolls`)
    e.addEventListener('scroll', () => update(e), { passive: true })
  }
  const laidOut = (e) => e.checkVisibility?.({ contentVisibilityAuto: true }) ?? true  // not before page.js shows it
  const look = (root = document) => {  // reads before it writes: one layout for the whole page
    const found = all(SCROLLS, root).filter(laidOut).map((e) => [e, edges(e)])
    found.forEach(([e, more]) => { if (more || e.dataset.more || e.hasAttribute('tabindex')) update(e, more) })
  }
  let queued = 0
  const later = () => { cancelAnimationFrame(queued); queued = requestAnimationFrame(() => look()) }
  addEventListener('load', later)
  addEventListener('resize', later)
  document.fonts?.ready.then(later)
  document.addEventListener('toggle', (event) => look(event.target), true)
  document.addEventListener('shown', (event) => look(event.target))  // a piece of a page, by page.js

  // The chapters: a drawer on a phone
  const sidebar = document.querySelector('#quarto-sidebar')
  const glass = document.querySelector('#quarto-sidebar-glass')
  const opener = document.querySelector('.quarto-btn-toggle')
  if (sidebar && opener) {
    new MutationObserver(() => {
      const open = sidebar.classList.contains('show')
      if (String(open) === opener.getAttribute('aria-expanded')) return
      opener.setAttribute('aria-expanded', String(open))
      const link = sidebar.querySelector('a[aria-current]') ?? sidebar.querySelector('a')
      ;(open ? link : opener).focus()
    }).observe(sidebar, { attributeFilter: ['class'] })
    sidebar.querySelector('.sidebar-close')?.addEventListener('click', () => glass.click())
  }

  // "On this page" closes on a choice, outside, and by Escape
  const lists = all('details.page-toc')
  document.addEventListener('click', (event) => lists.forEach((list) => {
    if (!list.contains(event.target) || event.target.closest('a')) list.open = false
  }))
  document.addEventListener('keydown', (event) => {
    if (event.key !== 'Escape') return
    if (sidebar?.classList.contains('show')) glass.click()
    for (const list of lists.filter((l) => l.open)) {
      list.open = false
      list.querySelector('summary').focus()
    }
  })
})()
