"The digits that a page draws in the browser: the same numbers as in Python"
import json, re, shutil, subprocess, threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
import pytest
import torch
from conftest import ROOT, draw
from fastcore.test import test_eq as equal
from helpers_browser import browser_or_skip, in_browser
from torch import nn
import live
from diffusion_scratch.denoiser import Denoiser, V, clipped
from diffusion_scratch.editing import inpaint
from diffusion_scratch.guidance import guided
from diffusion_scratch.noising import q_sample
from diffusion_scratch.pretrained import load
from diffusion_scratch.sampling import Noise, ancestral, coefficient_table, sample
from diffusion_scratch.schedule import Schedule, cosine_betas
from diffusion_scratch.solvers import ddim, dpm_solver_pp, heun

SCHEDULE = Schedule(cosine_betas())
SOLVERS = dict(ancestral=ancestral(), ddim=ddim(), dpm_solver_pp=dpm_solver_pp(), heun=heun())
SHAPE = (3, 1, 7, 7)                       # 49 numbers an image: not a multiple of 16
LABELS = torch.tensor([4, -1, 9])
TIMES, IMAGE = SCHEDULE.times(10), torch.linspace(-1, 1, 49).view(1, 1, 7, 7)

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

def walk(denoise, solver, x_T='undefined', times=TIMES, **given):
    "The frames of a trajectory of the toy; `denoise` and `x_T` in JavaScript"
    return node(f'''const solver = live.solvers[given.solver], toys = live.denoiser(toy)
        const options = {{...given, size: 49, solver, x_T: {x_T}}}
        const frames = []
        for await (const f of live.trajectory({denoise}, schedule, options)) frames.push(f)
        return frames''', solver=solver, times=times, **given)

SEEDS = [0, 1, 12345, 2**53 - 1]

@pytest.mark.parametrize('seeds, size', [(SEEDS, 784), (SEEDS, 49), (SEEDS, 1), ([3], 1000 * 16)])
def test_noise_is_that_of_torch(seeds, size):  # eq-streams
    "The last is more than one block of the generator. Logarithm and cosine are of float32"
    found = node('''return given.seeds.map(seed => {
        const noise = new Noise(seed, 3)
        return [noise.draw(given.size), noise.draw(given.size)] })''', seeds=seeds, size=size)
    for seed, draws in zip(seeds, found):
        noise = Noise(seed, 3)
        for draw in draws: close(draw, noise.draw((size,)), 1e-5)

def test_times_are_those_of_the_schedule():
    found = node('return Array.from({length: 1000}, (_, i) => schedule.times(i + 1))')
    equal([n for n, times in enumerate(found, 1) if times != SCHEDULE.times(n)], [])
    equal(node('return schedule.times(5, 500)'), [500, 400, 200, 0])

@pytest.mark.parametrize('name', SOLVERS)
def test_table_of_a_solver(name):  # eq-coefficients
    times = SCHEDULE.times(20)
    rows = node('''const solver = live.solvers[given.name]
        const visited = solver.visits ? solver.visits(given.times) : given.times
        return solver(visited.map(t => schedule.at(t)))''', name=name, times=times)
    expected = coefficient_table(SOLVERS[name], SCHEDULE, SOLVERS[name].visits(times))
    found = [[row[k] for k in expected[0]._fields] for row in rows]
    close(found, torch.tensor(expected, dtype=torch.float64), 1e-12)

@pytest.mark.parametrize('name', SOLVERS)
def test_sample_of_a_toy_network(name):
    found = walk('live.clipped(live.guided(toys, 1.5))', name, y=LABELS.tolist(), seed=5)
    net = clipped(guided(Denoiser(Toy(), V), LABELS, 1.5))
    expected = draw(net, SHAPE, SCHEDULE, step=SOLVERS[name], times=TIMES, seed=5)
    equal([f['t'] for f in found], [*SOLVERS[name].visits(TIMES)])
    close(found[-1]['x'], expected, 1e-5)

def test_rows_of_attributes_some_of_them_not_stated():
    "Not clipped: the images reach 20"
    y = torch.tensor([[1, -1], [0, 2], [-1, -1]])
    found = walk('live.guided(toys, 1.5)', 'ddim', y=y.tolist(), seed=5)
    net = guided(Denoiser(Toy(torch.tensor([-1, -1])), V), y, 1.5)
    close(found[-1]['x'], draw(net, SHAPE, SCHEDULE, step=ddim(), times=TIMES, seed=5), 1e-4)

def test_noised_drawing_drawn_again():
    times = [*range(600, -1, -100)]
    found = walk('toys', 'ancestral', 'live.noised(given.image, schedule.at(600), 3)', y=[2],
                 seed=4, times=times, image=IMAGE.flatten().tolist())
    start = q_sample(IMAGE, SCHEDULE.at(600, IMAGE), Noise(3, 1).draw((1, 7, 7)))
    expected = draw(Denoiser(Toy(), V), IMAGE.shape, SCHEDULE, step=ancestral(), seed=4,
                    times=times, x_T=start, y=[2])
    close(found[-1]['x'], expected, 1e-5)

def test_inpainting():  # eq-paste
    mask = torch.zeros(1, 1, 7, 7, dtype=torch.bool)
    mask[..., :4, :] = True
    found = walk('live.clipped(live.inpaint(live.guided(toys, 0.5), given.known, given.mask))',
                 'dpm_solver_pp', y=[2], seed=4, known=IMAGE.flatten().tolist(),
                 mask=mask.flatten().tolist())[-1]['x']
    net = clipped(inpaint(guided(Denoiser(Toy(), V), torch.tensor([2]), 0.5), IMAGE, mask))
    expected = draw(net, IMAGE.shape, SCHEDULE, step=dpm_solver_pp(), seed=4, times=TIMES)
    close(found, expected, 1e-5)
    equal(torch.tensor(found).view_as(IMAGE)[mask], IMAGE[mask])

# ---------------------------------------------------------------- in a browser
def html(chapter: str) -> str:
    "A page with nothing but the component of a chapter"
    cells = json.loads((ROOT/f'nbs/{chapter}.ipynb').read_text(encoding='utf-8'))['cells']
    [text] = [s for s in (''.join(c['source']) for c in cells) if '<diffusion-live' in s]
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>live</title>'
    head += '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
    return head + '<main>' + text[text.index('<link'):] + '</main>'

class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    "What happened in headless Chromium"
    driver, chromium = browser_or_skip()
    site = tmp_path_factory.mktemp('site')
    shutil.copytree(ROOT/'nbs/live', site/'live', ignore=shutil.ignore_patterns('built'))
    if not live.build(site/'live/built'): pytest.skip('npm package onnxruntime-web is not at hand')
    shutil.copytree(site/'live', site/'bare', ignore=shutil.ignore_patterns('*.wasm', '*.onnx'))
    (site/'bare/built/about.mjs').write_text('export const about = {engine: false}')
    unknown = '<diffusion-live network="not there"'
    pages = dict(index=html('index'), solvers=html('10_solvers'), editing=html('13_editing'),
                 no_engine=html('index').replace('live/live.mjs', 'bare/live.mjs'),
                 no_weights=html('index').replace('<diffusion-live', unknown))
    if 'faces' in live.networks(): pages['faces'] = html('32_faces')
    for name, text in pages.items(): (site/f'{name}.html').write_text(text, encoding='utf-8')
    handler = partial(QuietHandler, directory=site)
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}'
        try: return in_browser('live_browser.mjs', driver, chromium, url)
        finally: server.shutdown()

def drawn_by(python: str) -> list[torch.Tensor]:
    "The images that the printed lines of Python make"
    names = {}
    exec(python, names)
    return [v for k, v in names.items() if k.startswith('images')]

@pytest.mark.parametrize('found, python', [('draw', 'python'), ('nextSeed', 'nextPython'),
                                           ('compare', 'comparePython')])
def test_browser_draws_what_the_printed_python_draws(browser, found, python):
    for panel, images in zip(browser[found], drawn_by(browser[python]), strict=True):
        close(panel['x'], images, 1e-3)

def test_options_that_the_keyboard_set(browser):
    assert 'torch.tensor([8])' in browser['python'] and 'seed=0' in browser['python']
    assert 'seed=1' in browser['nextPython']
    equal(browser['draw'][0]['ts'], SCHEDULE.times(20))
    equal(browser['compare'][1]['ts'], heun().visits(SCHEDULE.times(4)))
    equal(browser['valueText'], 't = 950')
    assert browser['scrubbed'].endswith('t = 950')
    assert browser['status'].startswith('20 evaluations of the network')

def test_engine_comes_on_click_from_this_site_and_without_it_an_animation_is_shown(browser):
    assert browser['beforeClick'] and len(browser['hosts']) == 1
    equal(browser['errors'], [])
    assert browser['buttonEnds'] < 600
    assert 'recorded animation' in browser['withoutScript']
    assert browser['withoutWasm'] and browser['withoutEngine']

def test_phone_and_reduced_motion(browser):
    equal((browser['overflow'], browser['small']), (0, []))
    equal(browser['shown'], 1)  # the end at once

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
