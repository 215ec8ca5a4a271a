// Light and dark, and parts that fold: what the site needs of Bootstrap's 80 KB of script.
{
  const root = document.documentElement, KEY = 'smalldocs-scheme'
  const prefers = matchMedia('(prefers-color-scheme: dark)')

  function scheme(dark) {  // the head of each page does this for a stored choice, before it is drawn
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
}
