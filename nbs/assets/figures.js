// Players (tools/figures.py): one tall picture of all frames behind a window, a button and a slider.
for (const player of document.querySelectorAll('.player')) {
  const [button, slider] = player.querySelectorAll('button, input'), last = +slider.max;
  let timer = 0;
  const show = frame => {
    player.style.setProperty('--frame', slider.value = frame);
    slider.setAttribute('aria-valuetext', `${+frame + 1} of ${last + 1}`);
  };
  const label = (name, sign) => { button.setAttribute('aria-label', name); button.textContent = sign; };
  const stop = () => { clearInterval(timer); timer = 0; label('Play', '▶'); };
  const play = () => {
    if (+slider.value === last) show(0);
    label('Pause', '❚❚');
    timer = setInterval(() => { show(+slider.value + 1); if (+slider.value === last) stop(); },
                        +player.dataset.interval);
  };
  button.onclick = () => timer ? stop() : play();
  slider.oninput = () => { stop(); show(slider.value); };
  const seen = new IntersectionObserver(([entry]) => {  // once, when a reader comes to it
    if (!entry.isIntersecting || matchMedia('(prefers-reduced-motion: reduce)').matches) return;
    seen.disconnect();
    play();
  }, {threshold: 0.6});
  seen.observe(player);
}
// A wide figure scrolls on a phone: by keyboard too
const wide = () => document.querySelectorAll('.figure-wide').forEach(figure => {
  if (figure.checkVisibility?.({contentVisibilityAuto: true}) === false) return;  // not laid out yet
  if (figure.scrollWidth > figure.clientWidth + 1) figure.tabIndex = 0;
  else figure.removeAttribute('tabindex');
});
wide();
addEventListener('resize', wide);
document.addEventListener('shown', wide);  // a piece of a page, by page.js
