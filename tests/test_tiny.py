"""The page with all of DDPM on it, beside the library that it does not use.

Its own cells are run, but the loop that trains: a network with random weights serves to compare
the arithmetic.
"""
import ast, base64, io, json, sys
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
from diffusion_scratch.denoiser import EPS, V, Denoiser, clipped
from diffusion_scratch.features import digit_classifier
from diffusion_scratch.guidance import guided
from diffusion_scratch.noising import q_sample
from diffusion_scratch.sampling import Noise, ancestral, sample
from diffusion_scratch.schedule import Schedule, cosine_betas

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
import ledger

CELLS = json.loads((ROOT/'nbs'/'00_tiny.ipynb').read_text(encoding='utf-8'))['cells']
CODE = [''.join(c['source']) for c in CELLS if c['cell_type'] == 'code']


@pytest.fixture(scope='module')
def page():
    """Every name that the page defines, but what only training makes; and a network with random
    weights"""
    names = {}
    [loop] = [i for i, source in enumerate(CODE) if 'optimizer.step()' in source]
    needs_training = [s for s in CODE[loop:] if 'losses' in s or 'sample(average' in s]
    assert len(needs_training) == 3
    for source in CODE:
        if source not in needs_training: exec(source, names)
    torch.manual_seed(1)
    names['net'] = names['UNet']()
    return names


class Ours(torch.nn.Module):
    "The page's network as the library calls a network: without a label where it has none to give"
    def __init__(self, page):
        super().__init__()
        self.net, self.none = page['net'], page['NONE']

    def forward(self, x, t, y=None):
        return self.net(x, t, torch.full_like(t, self.none) if y is None else y)


@pytest.fixture(scope='module')
def schedule(page): return Schedule(cosine_betas(page['T']))


def test_it_fits_on_a_page():
    """What is printed is at most 90 lines, none wider than a page, and imports no more of the
    package than the digits"""
    shown = [s for s in CODE if '#| code-fold: true' not in s]
    lines = [l for s in shown for l in s.split('\n') if l.strip() and not l.startswith('#|')]
    assert len(lines) <= 90 and max(map(len, lines)) <= 88
    imports = [
        n
        for s in CODE
        for n in ast.walk(ast.parse(s))
        if isinstance(n, (ast.Import, ast.ImportFrom))
    ]
    ours = [ast.unparse(n) for n in imports if 'diffusion_scratch' in ast.unparse(n)]
    assert ours == ['from diffusion_scratch.data import mnist_mini']


def test_chapter_1_stays_the_schedule():
    equations, problems = ledger.read(ROOT)
    assert (equations[0].number, equations[0].chapter) == ('1.1', '01_schedule') and not problems
    # the ledger does not look here
    assert '{#eq-' not in ''.join(''.join(c['source']) for c in CELLS)


def test_schedule_is_the_librarys(page, schedule):
    torch.testing.assert_close(page['alpha_bar'], schedule.alpha_bar, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(page['beta'][1:], schedule.betas, rtol=1e-9, atol=1e-12)


def test_noising_is_the_librarys(page, schedule):
    x0, t = page['digits'][::700], torch.tensor([0, 1, 2, 50, 100, 150, 199, 200])
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(page['q_sample'](x0, t, eps), q_sample(x0, schedule.at(t, x0), eps))


def test_loss_is_the_squared_error_of_v(page, schedule):
    "The division makes the noise's error that of v; a tenth of the labels is dropped"
    x0, y = page['digits'][::50], page['labels'][::50]
    torch.manual_seed(3)
    with torch.no_grad(): loss = page['ddpm_loss'](page['net'], x0, y)
    torch.manual_seed(3)  # the same draws, in the same order
    t, eps, kept = (
        torch.randint(1, page['T'] + 1, (100,)),
        torch.randn_like(x0),
        torch.rand(100) > 0.1,
    )
    level = schedule.at(t, x0)
    x_t = q_sample(x0, level, eps)
    with torch.no_grad(): p = Denoiser(Ours(page), EPS)(x_t, level, y.where(kept, page['NONE']))
    wrong = V.target(x0, eps, level) - V.target(p.x0, p.eps, level)
    torch.testing.assert_close(loss, wrong.square().mean(), rtol=1e-4, atol=0)


@pytest.mark.parametrize('w', [0., 1.])
def test_sampler_is_the_librarys(page, schedule, w, monkeypatch):
    "From the same noise, all T steps: ancestral sampling, clipped and guided"
    y, source = torch.tensor([3, 7]), Noise(4, 2)
    draws = iter([source.draw((1, 28, 28)) for _ in range(page['T'] + 1)])
    with monkeypatch.context() as m:
        m.setattr(torch, 'randn', lambda *shape: next(draws))
        m.setattr(torch, 'randn_like', lambda x: next(draws))
        ours = page['sample'](page['net'], y, w)
    denoiser = clipped(guided(Denoiser(Ours(page), EPS), y, w))
    theirs = sample(denoiser, schedule, ours.shape, step=ancestral(), seed=4, progress=False)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)


def test_a_stranger_reads_the_picture():
    """The stored grid opens the page, and a classifier that has never seen it reads row k as the
    digit k"""
    [cell] = [c for c in CELLS if 'sample(average' in ''.join(c['source'])]
    [png] = [o['data']['image/png'] for o in cell['outputs'] if 'image/png' in o.get('data', {})]
    png = base64.b64decode(png)
    file = ROOT/'nbs'/'assets'/'tiny_digits.png'
    assert file.read_bytes() == png and len(png) < 80_000, 'run `python tools/run_nbs.py 00`'
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert('L'))[::2, ::2]  # each is drawn 2 x 2
    images = torch.tensor(pixels).view(10, 28, 10, 28).transpose(1, 2).reshape(100, 1, 28, 28)
    read = digit_classifier()(images.float() / 127.5 - 1).p
    asked = torch.arange(10).repeat_interleave(10)
    assert (read.argmax(1) == asked).sum() >= 95 and (read.amax(1) > 0.9).sum() >= 90
