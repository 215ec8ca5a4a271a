"The baselines of chapter 33 and its tables: gradients against closed forms, runs made twice"
import json, math, sys
from types import SimpleNamespace
import pytest, torch
from torch.nn import functional as F
from conftest import ROOT, gen
from diffusion_scratch.data import mnist_mini
from diffusion_scratch.engine import forked_random
from diffusion_scratch.evaluation import wilson_interval

sys.path.insert(0, str(ROOT/'tools'))
import claims
from trainings import program

MODELS, MINI = claims.models(), mnist_mini()

@pytest.fixture(autouse=True)
def own_randomness():
    "The runs seed torch's own generator, which other tests may use"
    with forked_random(torch.device('cpu')): yield

class Judged(claims.Judge):
    "A judge with the small set of digits in the place of MNIST"
    def __init__(self):
        self.eye, self.data = claims.digit_classifier(), MINI
        self.real = self.eye(MINI.images[::5])
        self.moments = claims.moments(self.real.x)

@pytest.mark.parametrize('kind', MODELS)
def test_a_run_depends_on_its_arguments_alone(kind, monkeypatch):
    "The same row twice, whatever was drawn before, and another one with another seed"
    monkeypatch.setattr(claims, 'IMAGES', 200)  # few, for speed: more than the 64 features
    monkeypatch.setattr(claims, 'ON_THE_WAY', 100)
    monkeypatch.setattr(MODELS['ddpm'], 'draw', few_steps)
    judge, steps = Judged(), [3, 3] if kind == 'vqvae' else 4
    def row(seed):
        torch.randn(7)
        found, images, _ = claims.run(judge, kind, 1e-3, seed, steps, (0.5,))
        assert images.shape == (200, 1, 28, 28) and images.abs().max() <= 1
        return {k: v for k, v in found.items() if k != 'cpu_seconds'}, images
    (one, images), (two, same), (other, _) = row(0), row(0), row(1)
    assert one == two and torch.equal(images, same)
    assert one['measures'] != other['measures']
    assert [n for n, _ in one['curve']] == [3, 6] if kind == 'vqvae' else [2, 4]
    assert json.loads(json.dumps(one))['measures'] == one['measures']

drawn = MODELS['ddpm'].draw
def few_steps(model, n, seed, steps=2, **how): return drawn(model, n, seed, steps=2, **how)

def test_the_table_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    "Stopped in the sixth run: the next call makes the sixth; seeds one after the other"
    Judged.in_place = lambda judge: {}
    made, judge = [], Judged()
    def run(judge, kind, lr, seed, steps, shares=()):
        if len(made) == 5 and not stopped: raise KeyboardInterrupt
        made.append((kind, lr, seed))
        row = dict(model=kind, lr=lr, seed=seed, steps=steps, measures=None, cpu_seconds=1.)
        return row, torch.full((3, 1, 28, 28), math.nan), None
    for name, value in dict(ASSETS=tmp_path, Judge=lambda root: judge, run=run, SEEDS=2).items():
        monkeypatch.setattr(claims, name, value)
    claims.write(tmp_path/'steps.json', dict(seconds=dict.fromkeys(claims.RATES, 0.5)))
    stopped, a = False, SimpleNamespace(root=None)
    with pytest.raises(KeyboardInterrupt): claims.stable(a)
    stopped = True
    claims.stable(a)
    rows = claims.read('stable')['rows']
    assert [(r['model'], r['lr'], r['seed']) for r in rows] == made and len(set(made)) == 32
    assert [seed for *_, seed in made] == [0] * 16 + [1] * 16
    assert all(r['steps'] == 240 for r in rows)  # 120 s of steps of half a second
    for kind, rate in claims.RATES.items():
        rates = {lr for k, lr, _ in made if k == kind}
        assert len(rates) == 4 and max(rates) / min(rates) == pytest.approx(30)

def test_models_have_as_many_parameters():
    "Within 5 % of the UNet's, as the chapter says"
    counts = {kind: claims.parameters(Model(1e-3)) for kind, Model in MODELS.items()}
    assert all(abs(n / counts['ddpm'] - 1) < 0.05 for n in counts.values()), counts

def test_a_run_that_is_not_finite_has_no_measures():
    found, images, _ = claims.run(Judged(), 'vae', 1e6, 0, 30, ())
    assert not found['finite'] and found['measures'] is None and images.isnan().all()

def test_the_r1_penalty_of_a_linear_score():
    "score = a . x has the gradient a at every image: gamma / 2 |a|^2, and its gradient gamma a"
    gan = MODELS['gan_r1'](1e-3)
    a = torch.randn(784, generator=gen(0), requires_grad=True)
    x = torch.randn(5, 1, 28, 28, generator=gen(1)).requires_grad_()
    found = gan.penalty(x, x.flatten(1) @ a)
    torch.testing.assert_close(found, gan.gamma / 2 * a.square().sum())
    [slope] = torch.autograd.grad(found, a)
    torch.testing.assert_close(slope, gan.gamma * a.detach())

def test_the_r1_penalty_against_finite_differences():
    "Of D itself, in float64: central differences of the score in 10 random pixels of one image"
    D = MODELS['gan_r1'](1e-3).D.double()
    x = torch.rand(1, 1, 28, 28, generator=gen(2), dtype=torch.float64).requires_grad_()
    [slope] = torch.autograd.grad(D(x).sum(), x)
    gan = MODELS['gan_r1'](1e-3)
    expected = gan.gamma / 2 * slope.square().sum()
    torch.testing.assert_close(gan.penalty(x, D(x)), expected)
    for i in torch.randperm(784, generator=gen(3))[:10]:
        e = torch.zeros(784, dtype=torch.float64); e[i] = 1e-6
        e = e.view_as(x)
        with torch.no_grad(): difference = (D(x + e) - D(x - e)).item() / 2e-6
        assert difference == pytest.approx(slope.flatten()[i].item(), rel=1e-4, abs=1e-9)

def test_spectral_norm_bounds_every_layer():
    "After power iterations the largest singular value of each weight is 1"
    D = MODELS['gan_sn'](1e-3).D.train()
    for _ in range(200): D(torch.randn(2, 1, 28, 28, generator=gen(0)))
    weights = [m.weight for m in D.modules() if hasattr(m, 'parametrizations')]
    assert len(weights) == 3
    for w in weights:  # 1e-2: the iteration converges slowly where two values are close
        assert torch.linalg.matrix_norm(w.flatten(1), 2).item() == pytest.approx(1, abs=1e-2)

def test_the_gradient_goes_straight_through_the_codebook():
    "The encoder gets the decoder's gradient at the code; the code is the nearest vector"
    book = MODELS['vqvae'](1e-3).codebook
    z = torch.randn(2, 7, 7, 16, generator=gen(0)).requires_grad_()
    a = torch.randn(2, 7, 7, 16, generator=gen(1))
    q, codes = book(z)
    torch.testing.assert_close(q.detach(), book.vectors[codes])
    [slope] = torch.autograd.grad((q.square() * a).sum(), z)
    torch.testing.assert_close(slope, 2 * q.detach() * a)
    apart = (z.detach()[..., None, :] - book.vectors).square().sum(-1)
    assert torch.equal(apart.argmin(-1), codes)

def test_a_codebook_moves_to_the_means_of_its_codes():
    "Two far groups and two vectors: after many steps each vector is the mean of a group"
    book = type(MODELS['vqvae'](1e-3).codebook)(2, 16)
    z = torch.cat([torch.full((50, 16), 3.), torch.full((50, 16), -3.)])
    z = z + 0.1 * torch.randn(100, 16, generator=gen(0))
    for _ in range(2000): book.move(z, book.codes(z))
    means = torch.stack([z[:50].mean(0), z[50:].mean(0)])
    found = book.vectors[book.vectors[:, 0].argsort(descending=True)]
    torch.testing.assert_close(found, means, atol=1e-4, rtol=0)  # 0.99**2000 = 2e-9

def test_a_vector_that_is_not_used_begins_anew():
    "A vector far from all z is set to one of them"
    book = type(MODELS['vqvae'](1e-3).codebook)(2, 16)
    z = torch.randn(100, 16, generator=gen(0))
    book.vectors[1] = 1e3
    book.move(z, book.codes(z))
    assert (z == book.vectors[1]).all(1).any()

def test_a_prior_sees_only_codes_before():
    "Logits at place i do not change with codes from i on, and drawing uses the same logits"
    prior = MODELS['vqvae'](1e-3).prior
    codes = torch.randint(128, (3, 49), generator=gen(0))
    logits, changed = prior(codes), codes.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % 128
    torch.testing.assert_close(prior(changed)[:, :21], logits[:, :21])
    assert (prior(changed)[:, 21:] - logits[:, 21:]).abs().amax() > 1e-4
    x, past = torch.full((3,), 128), [None] * len(prior.blocks)
    for i, place in enumerate(prior.place):  # one code at a time, with what was kept
        h = (prior.embed(x) + place)[:, None]
        for k, block in enumerate(prior.blocks): h, past[k] = block(h, past[k])
        torch.testing.assert_close(prior.head(h[:, 0]), logits[:, i], atol=1e-4, rtol=1e-4)
        x = codes[:, i]

def test_the_bound_of_the_vae_against_torch():
    "KL and pixels by torch.distributions, with the same noise"
    vae, x = MODELS['vae'](0.), torch.rand(4, 1, 28, 28, generator=gen(0)) * 2 - 1
    torch.manual_seed(5); found = vae.update(x)
    with torch.no_grad():
        mean, log_std = vae.encoder(x).chunk(2, 1)
        torch.manual_seed(5); code = mean + log_std.exp() * torch.randn_like(mean)
        q, p = (torch.distributions.Normal(*v) for v in ((mean, log_std.exp()), (0., 1.)))
        kl = torch.distributions.kl_divergence(q, p).sum()
        pixels = torch.distributions.ContinuousBernoulli(logits=vae.decoder(code))
        logits = pixels.logits
        bce = -((x + 1) / 2 * F.logsigmoid(logits) + (1 - x) / 2 * F.logsigmoid(-logits)).sum()
    assert found == pytest.approx((kl + bce).item() / 4, rel=1e-4)

@pytest.mark.parametrize('k, n', [(0, 10), (3, 10), (10, 10), (57, 160)])
def test_wilson_against_scipy(k, n):
    stats = pytest.importorskip('scipy.stats')
    there = stats.binomtest(k, n).proportion_ci(method='wilson')
    found = wilson_interval(k / n, n)
    assert (found.low, found.high) == pytest.approx((there.low, there.high), abs=1e-9)

def test_the_median_of_few_seeds_against_scipy():
    "The bootstrap of the chapter: the percentile interval of the median"
    stats = pytest.importorskip('scipy.stats')
    x = [3., 8., 5., 12., 7., 6., 30., 4., 9., 5.5]
    there = stats.bootstrap((x,), lambda v, axis: torch.from_numpy(v).quantile(0.5, axis).numpy(),
                            method='percentile', n_resamples=9999, random_state=0)
    space = {}
    exec('\n'.join(program(claims.CHAPTER, 'median_interval')), space)
    value, low, high = space['median_interval'](x)
    assert value == pytest.approx(6.5)  # 0.6: medians of ten numbers are a coarse grid
    assert abs(low - there.confidence_interval.low) <= 0.6
    assert abs(high - there.confidence_interval.high) <= 0.6
