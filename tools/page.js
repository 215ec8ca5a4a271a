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

  const pieces = [...document.querySelectorAll('.piece:not(.shown)')]
  const show = count => {
    for (const piece of pieces.splice(0, count)) piece.classList.add('shown')
    if (pieces.length) requestAnimationFrame(() => setTimeout(show, 0, 1))
    else dispatchEvent(new Event('resize'))  // for scripts that measure what they find
  }
  const showAll = () => pieces.length && show(Infinity)
  const [arrival] = performance.getEntriesByType('navigation')
  if (location.hash || arrival?.type !== 'navigate') showAll()  // to scroll to the right place
  else addEventListener('load', () => setTimeout(show, 0, 1))
  document.addEventListener('click', event => {
    if (event.target.closest('a[href*="#"]')) showAll()
  })
}
