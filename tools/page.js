// Light and dark, parts that fold, and a page laid out piece by piece (tools/pieces.py): what the
// site needs of Bootstrap's 80 KB of script, and a little more.
{
  const root = document.documentElement, KEY = 'smalldocs-scheme'
  const prefers = matchMedia('(prefers-color-scheme: dark)')

  function scheme(dark) {  // the head of each page has done this before the page was drawn
    root.dataset.bsTheme = dark ? 'dark' : 'light'
    root.dataset.scheme = dark ? 'alternate' : 'default'
    root.classList.toggle('quarto-dark', dark)
  }
  function stored() { try { return localStorage.getItem(KEY) } catch { return null } }

  window.smalldocsToggleScheme = () => {
    const dark = root.dataset.bsTheme !== 'dark'
    try { localStorage.setItem(KEY, dark ? 'alternate' : 'default') } catch { /* private window */ }
    scheme(dark)
  }
  prefers.addEventListener('change', event => { if (!stored()) scheme(event.matches) })

  document.addEventListener('click', event => {
    const target = event.target.closest('[data-bs-toggle="collapse"]')?.dataset.bsTarget
    if (!target) return
    const open = document.querySelector(target).classList.toggle('show')
    for (const button of document.querySelectorAll(`[data-bs-target="${target}"]`)) {
      button.classList.toggle('collapsed', !open)
      button.setAttribute('aria-expanded', open)
    }
  })

  // A browser lays out what comes near the window (content-visibility in styles.css). The rest
  // follows, a piece whenever the browser has nothing to do, so that links and the scroll bar lead
  // to the right place; all at once for who arrives in the middle, or follows a link to it.
  const pieces = [...document.querySelectorAll('.piece:not(.shown)')]
  const idle = window.requestIdleCallback ?? (what => setTimeout(what, 50))
  const show = count => {
    const now = pieces.splice(0, count)
    for (const piece of now) piece.classList.add('shown')
    requestAnimationFrame(() => setTimeout(() => {
      for (const piece of now) piece.dispatchEvent(new Event('shown', { bubbles: true }))
      if (pieces.length) idle(() => show(pieces[0].tagName === 'TR' ? 4 : 1))
    }))
  }
  const showAll = () => pieces.length && show(Infinity)
  const [arrival] = performance.getEntriesByType('navigation')
  if (location.hash || arrival?.type !== 'navigate') showAll()
  else addEventListener('load', () => idle(() => show(1)))
  document.addEventListener('click', event => {
    if (event.target.closest('a[href*="#"]')) showAll()
  })
  document.addEventListener('contentvisibilityautostatechange', event => {
    if (!event.skipped) requestAnimationFrame(() =>
      event.target.dispatchEvent(new Event('shown', { bubbles: true })))
  })
}
