"The digits that a page draws in the browser: the same numbers as in Python"
import json, re, shutil, subprocess, sys, threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from fastcore.test import test_eq as equal
from torch import nn

from diffusion_scratch.denoiser import Denoiser, V, clipped
from diffusion_scratch.editing import inpaint
from diffusion_scratch.guidance import guided
from diffusion_scratch.noising import q_sample
from diffusion_scratch.pretrained import load
from diffusion_scratch.sampling import Noise, ancestral, coefficient_table, sample
from diffusion_scratch.schedule import Schedule, cosine_betas
from diffusion_scratch.solvers import ddim, dpm_solver_pp, heun

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
import live  # noqa: E402
from helpers_browser import browser_or_skip, in_browser  # noqa: E402

SCHEDULE = Schedule(cosine_betas())
SOLVERS = dict(ancestral=ancestral(), ddim=ddim(), dpm_solver_pp=dpm_solver_pp(), heun=heun())
SHAPE = (3, 1, 7, 7)                       # 49 numbers an image: not a multiple of 16
LABELS = torch.tensor([4, -1, 9])


class Toy(nn.Module):
    "A network of one line, which `TOY` repeats in JavaScript"
    def __init__(self, none=torch.tensor(-1)):
        super().__init__()
        self.none = none

    def forward(self, x, t, y=None):
        y = self.none.expand(len(t), *self.none.shape) if y is None else y
        of_labels = y.view(len(y), -1).sum(1)
        return 0.4 * x + (torch.sin(t / 200) + 0.1 * of_labels).view(-1, 1, 1, 1)


TOY = '''const toy = (x, t, y) => x.map((x_i, i) => {
  const image = Math.floor(i / (x.length / y.length))
  const ofLabels = [y[image]].flat().reduce((a, b) => a + b)
  return 0.4 * x_i + Math.sin(t[image] / 200) + 0.1 * ofLabels
})
'''


def node(body: str, **given):
    "What a script returns, with the modules of the page and the values `given` at hand"
    if not shutil.which('node'): pytest.skip('node is not installed')
    live = (ROOT/'nbs/live').as_uri()
    script = f'''import * as live from '{live}/sampler.mjs'
import {{Noise}} from '{live}/noise.mjs'
import {{readFileSync}} from 'node:fs'
const given = JSON.parse(readFileSync(0)), schedule = new live.Schedule(given.schedule)
{TOY}async function run() {{ {body} }}
console.log(JSON.stringify(await run(), (k, v) => ArrayBuffer.isView(v) ? [...v] : v))'''
    given['schedule'] = dict(signal=SCHEDULE.signal.tolist(), noise=SCHEDULE.noise.tolist())
    done = subprocess.run(['node', '--input-type=module', '-e', script], text=True,
                          input=json.dumps(given), capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def close(found, expected, eps):
    found = torch.tensor(found, dtype=expected.dtype).view(expected.shape)
    torch.testing.assert_close(found, expected, atol=eps, rtol=0)


@pytest.mark.parametrize('size', [784, 49, 1])
def test_noise_is_that_of_torch(size):  # eq-streams
    seeds = [0, 1, 12345, 2**53 - 1]
    found = node('''return given.seeds.map(seed => {
        const noise = new Noise(seed, 3)
        return [noise.draw(given.size), noise.draw(given.size)] })''', seeds=seeds, size=size)
    for seed, draws in zip(seeds, found):
        noise = Noise(seed, 3)
        for draw in draws: close(draw, noise.draw((size,)), 1e-5)  # float32 log and cos


def test_noise_beyond_one_block_of_the_generator():
    [found] = node('return [new Noise(3, 1).draw(1000 * 16)]')
    close(found, Noise(3, 1).draw((1000 * 16,)), 1e-5)


def test_times_are_those_of_the_schedule():
    found = node('return Array.from({length: 1000}, (_, i) => schedule.times(i + 1))')
    equal([n for n, times in enumerate(found, 1) if times != SCHEDULE.times(n)], [])
    equal(node('return schedule.times(5, 500)'), [500, 400, 200, 0])


@pytest.mark.parametrize('name', SOLVERS)
def test_table_of_a_solver(name):  # eq-coefficients
    step = SOLVERS[name]
    times = SCHEDULE.times(20)
    rows = node('''const solver = live.solvers[given.name]
        const visited = solver.visits ? solver.visits(given.times) : given.times
        return solver(visited.map(t => schedule.at(t)))''', name=name, times=times)
    expected = coefficient_table(step, SCHEDULE, step.visits(times))
    found = [[row[k] for k in expected[0]._fields] for row in rows]
    close(found, torch.tensor(expected, dtype=torch.float64), 1e-12)


@pytest.mark.parametrize('name', SOLVERS)
def test_sample_of_a_toy_network(name):
    found = node('''const denoise = live.clipped(live.guided(live.denoiser(toy), 1.5))
        const options = {y: given.y, size: 49, solver: live.solvers[given.name],
                         times: schedule.times(10), seed: 5}
        const frames = []
        for await (const f of live.trajectory(denoise, schedule, options)) frames.push(f)
        return frames''', name=name, y=LABELS.tolist())
    net = clipped(guided(Denoiser(Toy(), V), LABELS, 1.5))
    times = SCHEDULE.times(10)
    expected = sample(net, SCHEDULE, SHAPE, step=SOLVERS[name], times=times, seed=5,
                      progress=False)
    equal([f['t'] for f in found], [*SOLVERS[name].visits(times)])
    close(found[-1]['x'], expected, 1e-5)


def test_rows_of_attributes_some_of_them_not_stated():
    y = torch.tensor([[1, -1], [0, 2], [-1, -1]])
    found = node('''const denoise = live.guided(live.denoiser(toy), 1.5)
        const options = {y: given.y, size: 49, solver: live.ddim, seed: 5,
                         times: schedule.times(10)}
        let last
        for await (const f of live.trajectory(denoise, schedule, options)) last = f
        return last.x''', y=y.tolist())
    net = guided(Denoiser(Toy(torch.tensor([-1, -1])), V), y, 1.5)
    expected = sample(net, SCHEDULE, SHAPE, step=ddim(), times=SCHEDULE.times(10), seed=5,
                      progress=False)
    close(found, expected, 1e-4)           # not clipped: the images reach 20


def test_noised_drawing_drawn_again():
    image = torch.linspace(-1, 1, 49).view(1, 1, 7, 7)
    found = node('''const x_T = live.noised(given.image, schedule.at(600), 3)
        const options = {y: [2], size: 49, solver: live.ancestral, seed: 4, x_T,
                         times: schedule.times(10, 600)}
        let last
        for await (const f of live.trajectory(live.denoiser(toy), schedule, options)) last = f
        return last.x''', image=image.flatten().tolist())
    start = q_sample(image, SCHEDULE.at(600, image), Noise(3, 1).draw((1, 7, 7)))
    expected = sample(Denoiser(Toy(), V), SCHEDULE, image.shape, step=ancestral(), seed=4,
                      times=range(600, -1, -100), x_T=start, y=[2], progress=False)
    close(found, expected, 1e-5)


def test_inpainting():  # eq-paste
    known = torch.linspace(-1, 1, 49).view(1, 1, 7, 7)
    mask = torch.zeros(1, 1, 7, 7, dtype=torch.bool)
    mask[..., :4, :] = True
    found = node('''const net = live.guided(live.denoiser(toy), 0.5)
        const denoise = live.clipped(live.inpaint(net, given.known, given.mask))
        const options = {y: [2], size: 49, solver: live.dpm_solver_pp, seed: 4,
                         times: schedule.times(10)}
        let last
        for await (const f of live.trajectory(denoise, schedule, options)) last = f
        return last.x''', known=known.flatten().tolist(), mask=mask.flatten().tolist())
    net = clipped(inpaint(guided(Denoiser(Toy(), V), torch.tensor([2]), 0.5), known, mask))
    expected = sample(net, SCHEDULE, known.shape, step=dpm_solver_pp(), seed=4,
                      times=SCHEDULE.times(10), progress=False)
    close(found, expected, 1e-5)
    equal(torch.tensor(found).view_as(known)[mask], known[mask])


# ---------------------------------------------------------------- in a browser
def embedded(chapter: str) -> str:
    "The cell of a chapter that holds the component"
    cells = json.loads((ROOT/f'nbs/{chapter}.ipynb').read_text(encoding='utf-8'))['cells']
    [source] = [s for s in (''.join(c['source']) for c in cells) if '<diffusion-live' in s]
    return source


def html(chapter: str) -> str:
    "A page with nothing but the component of a chapter"
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>live</title>'
    head += '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
    text = embedded(chapter)
    return head + '<main>' + text[text.index('<link'):] + '</main>'


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    "What happened in headless Chromium"
    driver, chromium = browser_or_skip()
    site = tmp_path_factory.mktemp('site')
    shutil.copytree(ROOT/'nbs/live', site/'live', ignore=shutil.ignore_patterns('built'))
    if not live.build(site/'live/built'): pytest.skip('npm package onnxruntime-web is not at hand')
    for name in ('index', '10_solvers', '13_editing'):
        (site/f'{name.split("_")[-1]}.html').write_text(html(name), encoding='utf-8')
    shutil.copytree(site/'live', site/'bare', ignore=shutil.ignore_patterns('*.wasm', '*.onnx'))
    (site/'bare/built/about.mjs').write_text('export const about = {engine: false}')
    bare = html('index').replace('live/live.mjs', 'bare/live.mjs')
    (site/'no_engine.html').write_text(bare, encoding='utf-8')
    unknown = html('index').replace('<diffusion-live', '<diffusion-live network="not there"')
    (site/'no_weights.html').write_text(unknown, encoding='utf-8')
    if 'faces' in live.networks():
        (site/'faces.html').write_text(html('32_faces'), encoding='utf-8')
    handler = partial(QuietHandler, directory=site)
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}'
        try: return in_browser('live_browser.mjs', driver, chromium, url)
        finally: server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


def drawn_by(python: str) -> list[torch.Tensor]:
    "The images that the printed lines of Python make"
    names = {}
    exec(python, names)
    return [v for k, v in names.items() if k.startswith('images')]


@pytest.mark.parametrize('found, python', [('draw', 'python'), ('nextSeed', 'nextPython'),
                                           ('compare', 'comparePython')])
def test_browser_draws_what_the_printed_python_draws(browser, found, python):
    expected = drawn_by(browser[python])
    equal(len(browser[found]), len(expected))
    for panel, images in zip(browser[found], expected): close(panel['x'], images, 1e-3)


def test_options_that_the_keyboard_set(browser):
    assert 'torch.tensor([8])' in browser['python'] and 'seed=0' in browser['python']
    assert 'seed=1' in browser['nextPython']
    equal(browser['draw'][0]['ts'], SCHEDULE.times(20))
    equal(browser['compare'][1]['ts'], heun().visits(SCHEDULE.times(4)))
    equal(browser['valueText'], 't = 950')
    assert browser['scrubbed'].endswith('t = 950')
    assert browser['status'].startswith('20 evaluations of the network')


def test_engine_is_loaded_on_click_and_from_this_site(browser):
    assert browser['beforeClick'] and len(browser['hosts']) == 1
    equal(browser['errors'], [])
    assert browser['buttonEnds'] < 600


def test_phone_and_reduced_motion(browser):
    equal((browser['overflow'], browser['small']), (0, []))
    equal(browser['shown'], 1)             # the end at once


def test_drawing_noised_or_filled_in_as_in_python(browser):
    assert browser['inkOfMouse'] > 15 and browser['inkOfKeys'] > 5
    denoiser, schedule = load('mnist-conditional')
    image = torch.tensor(browser['drawing']).view(1, 1, 28, 28)
    seed, level, [own] = (browser['edit'][k] for k in ('seed', 'level', 'each'))
    times = schedule.times(own['steps'])
    options = dict(step=dpm_solver_pp(), progress=False)
    start = q_sample(image, schedule.at(level, image), Noise(seed, 1).draw((1, 28, 28)))
    below = [level, *(t for t in times if t < level)]
    again = sample(clipped(denoiser), schedule, image.shape, x_T=start, times=below,
                   seed=seed + 1, **options)
    close(browser['redrawn'][0]['x'], again, 1e-3)
    mask = torch.zeros(1, 1, 28, 28, dtype=torch.bool)
    mask[..., :14, :] = True
    filled = sample(clipped(inpaint(denoiser, image, mask)), schedule, image.shape, times=times,
                    seed=seed, **options)
    close(browser['filled'][0]['x'], filled, 1e-3)


def test_faces_of_the_stated_attributes_as_in_python(browser):
    if 'faces' not in live.networks(): pytest.skip('the weights of faces do not come with it')
    assert re.search(r"'hat=yes,glasses=\w+,beard=red'", browser['facesPython'])
    [expected] = drawn_by(browser['facesPython'])
    equal(expected.shape, (1, 3, 64, 64))
    close(browser['faces'][0]['x'], expected, 1e-3)
    colors = torch.tensor(browser['facesCanvas']).view(64, 64, 4)
    shown = ((expected[0] + 1) * 127.5).permute(1, 2, 0)
    assert (colors[..., :3] - shown).abs().max() < 1
    assert (colors[..., 3] == 255).all()
    assert "torch.tensor" not in browser['anyFacePython']
    close(browser['anyFace'][0]['x'], *drawn_by(browser['anyFacePython']), 1e-3)


def test_first_page_offers_faces_too(browser):
    if 'faces' not in live.networks(): pytest.skip('the weights of faces do not come with it')
    assert browser['chosen'] and "'hat=yes,glasses=yes'" in browser['chosenPython']
    close(browser['chosenFace'][0]['x'], *drawn_by(browser['chosenPython']), 1e-3)


def test_network_whose_weights_are_not_there(browser, tmp_path, monkeypatch):
    equal(browser['withoutWeights'], 0)
    cell = '<diffusion-live mode="draw" network="faces">'
    monkeypatch.setattr(live, 'PACKAGE', tmp_path)
    assert live.is_left_out(cell) and not live.is_left_out('<diffusion-live> <b network="faces">')
    (tmp_path/'weights/faces').mkdir(parents=True)
    assert not live.is_left_out(cell)
    equal(live.networks(), ['faces'])


def test_animation_without_javascript_wasm_or_engine(browser):
    assert 'recorded animation' in browser['withoutScript']
    assert browser['withoutWasm'] and browser['withoutEngine']


def test_site_without_npm_has_no_engine(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('npm.CACHE', tmp_path)
    monkeypatch.setattr(live.shutil, 'which', lambda name: None)
    assert not live.build(tmp_path/'built')
    equal([f.name for f in (tmp_path/'built').iterdir()], ['about.mjs'])
    assert '{"engine": false}' in (tmp_path/'built/about.mjs').read_text()
    assert 'npm or its registry is not at hand' in capsys.readouterr().err


def test_exported_weights_are_exact():
    "16 bits hold the shipped weights, so that the export loses nothing"
    for name in live.networks():
        weights = load(name)[0].state_dict().values()
        assert all(torch.equal(w, w.half().float()) for w in weights if w.is_floating_point())
