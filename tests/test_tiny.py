"The page with all of DDPM on it, run but for its training, beside the library"
import ast, base64, io, json
import numpy as np, pytest, torch
from conftest import ROOT
from PIL import Image
from diffusion_scratch.denoiser import EPS, V, Denoiser, clipped
from diffusion_scratch.features import digit_classifier
from diffusion_scratch.guidance import guided
from diffusion_scratch.noising import q_sample
from diffusion_scratch.sampling import Noise, sample
from diffusion_scratch.schedule import Schedule, cosine_betas
import ledger

CELLS = json.loads((ROOT/'nbs'/'00_tiny.ipynb').read_text(encoding='utf-8'))['cells']
CODE = [''.join(c['source']) for c in CELLS
        if c['cell_type'] == 'code' and not c['source'][0].startswith('#| hide')]

@pytest.fixture(scope='module')
def page():
    "Every name that the page defines, but what only training makes; and an untrained network"
    [loop] = [i for i, source in enumerate(CODE) if 'optimizer.step()' in source]
    needs_training = [s for s in CODE[loop:] if 'losses' in s or 'sample(average' in s]
    assert len(needs_training) == 3
    names = {}
    for source in CODE:
        if source not in needs_training: exec(source, names)
    class Net(names['UNet']):
        "The library calls a network without a label where it has none to give"
        def forward(self, x, t, y=None):
            return super().forward(x, t, torch.full_like(t, names['NONE']) if y is None else y)
    torch.manual_seed(1)
    return names | dict(net=Net(), schedule=Schedule(cosine_betas(names['T'])))

def test_it_fits_on_a_page_and_chapter_1_stays_the_schedule():
    "90 lines, none wider than a page, import only the digits; no equation (none is in the ledger)"
    shown = [s for s in CODE if '#| code-fold: true' not in s]
    lines = [l for s in shown for l in s.split('\n') if l.strip() and not l.startswith('#|')]
    assert len(lines) <= 90 and max(map(len, lines)) <= 88
    imports = [ast.unparse(n) for s in CODE for n in ast.walk(ast.parse(s))
               if isinstance(n, (ast.Import, ast.ImportFrom))]
    ours = [line for line in imports if 'diffusion_scratch' in line]
    assert ours == ['from diffusion_scratch.data import mnist_mini']
    equations, problems = ledger.read(ROOT)
    assert (equations[0].number, equations[0].chapter) == ('1.1', '01_schedule') and not problems
    assert '{#eq-' not in ''.join(''.join(c['source']) for c in CELLS)

def test_schedule_and_noising_are_the_librarys(page):
    schedule = page['schedule']
    here, there = (page['alpha_bar'], page['beta'][1:]), (schedule.alpha_bar, schedule.betas)
    torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-12)
    x0, t = page['digits'][::700], torch.tensor([0, 1, 2, 50, 100, 150, 199, 200])
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(page['q_sample'](x0, t, eps), q_sample(x0, schedule.at(t, x0), eps))

def test_loss_is_the_squared_error_of_v(page):
    "The division makes the noise's error that of v; a tenth of the labels is dropped"
    x0, y = page['digits'][::50], page['labels'][::50]
    torch.manual_seed(3)
    with torch.no_grad(): loss = page['ddpm_loss'](page['net'], x0, y)
    torch.manual_seed(3)  # the same draws, in the same order
    level = page['schedule'].at(torch.randint(1, page['T'] + 1, (100,)), x0)
    eps, kept = torch.randn_like(x0), torch.rand(100) > 0.1
    y, x_t = y.where(kept, page['NONE']), q_sample(x0, level, eps)
    with torch.no_grad(): p = Denoiser(page['net'], EPS)(x_t, level, y)
    wrong = V.target(x0, eps, level) - V.target(p.x0, p.eps, level)
    torch.testing.assert_close(loss, wrong.square().mean(), rtol=1e-4, atol=0)

@pytest.mark.parametrize('w', [0., 1.])
def test_sampler_is_the_librarys(page, w, monkeypatch):
    "From the same noise, all T steps: ancestral sampling, clipped and guided"
    y, source = torch.tensor([3, 7]), Noise(4, 2)
    with monkeypatch.context() as m:
        for name in ('randn', 'randn_like'):
            m.setattr(torch, name, lambda *_: source.draw((1, 28, 28)))
        ours = page['sample'](page['net'], y, w)
    denoiser = clipped(guided(Denoiser(page['net'], EPS), y, w))
    theirs = sample(denoiser, page['schedule'], (2, 1, 28, 28), seed=4, progress=False)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)

def test_a_stranger_reads_the_picture():
    "The stored grid opens the page, and a classifier new to it reads row k as the digit k"
    [cell] = [c for c in CELLS if 'sample(average' in ''.join(c['source'])]
    [png] = [o['data']['image/png'] for o in cell['outputs'] if 'image/png' in o.get('data', {})]
    png, file = base64.b64decode(png), ROOT/'nbs'/'assets'/'tiny_digits.png'
    assert file.read_bytes() == png and len(png) < 80_000, 'run `python tools/run_nbs.py 00`'
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert('L'))[::2, ::2]  # each is drawn 2 x 2
    images = torch.tensor(pixels).view(10, 28, 10, 28).transpose(1, 2).reshape(100, 1, 28, 28)
    read = digit_classifier()(images.float() / 127.5 - 1).p
    assert (read.argmax(1) == torch.arange(100) // 10).sum() >= 95
    assert (read.amax(1) > 0.9).sum() >= 90
