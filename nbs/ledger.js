// The filter of the equation ledger: entries without one of the words are hidden, and so are
// chapters without entries.
const input = document.getElementById('ledger-filter')
const entries = [...document.querySelectorAll('.ledger-entry')]
const texts = entries.map(entry => entry.textContent.toLowerCase())

function filter() {
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean)
  let shown = 0
  entries.forEach((entry, i) => {
    entry.hidden = !words.every(word => texts[i].includes(word))
    shown += !entry.hidden
  })
  for (const chapter of document.querySelectorAll('main section.level2'))
    chapter.hidden = !chapter.querySelector('.ledger-entry:not([hidden])')
  const says = words.length ? `${shown} of ${entries.length} equations` : ''
  document.querySelector('output[for=ledger-filter]').textContent = says
}

if (input) input.addEventListener('input', filter)
