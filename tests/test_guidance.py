"Guidance: against closed forms of Gaussians, raw network outputs, and a user's mistakes"
import math
import numpy as np, pytest, torch
from conftest import SHORT, Labelled, close, draw, gen, randn, refused
from torch import nn
from diffusion_scratch.denoiser import EPS, V, X0, Denoiser, clipped
from diffusion_scratch.guidance import NULL, drop_labels, guided
from diffusion_scratch.oracle import MixtureOracle
from diffusion_scratch.schedule import Schedule, cosine_betas, linear_betas
from diffusion_scratch.unet import UNet

LINEAR = Schedule(linear_betas())

@pytest.mark.parametrize('p', [0.02, 0.1, 0.3, 0.5, 0.9])
def test_labels_are_dropped_with_probability_p_in_each_class_and_independently(p):
    "eq-cfg-dropout; of two neighbours both with p^2"
    d = (drop_labels(torch.arange(10).repeat(20_000), p, gen()) == NULL).double()
    def error(p, n): return 5 * math.sqrt(p * (1 - p) / n)
    assert (d.view(-1, 10).mean(0) - p).abs().max() < error(p, 20_000)
    assert abs((d[:-1] * d[1:]).mean() - p**2) < error(p**2, 100_000)

def test_drop_labels_leaves_its_input_the_rest_and_other_generators_alone():
    y, state = torch.arange(1000) % 7, torch.get_rng_state()
    before, (z, again, other) = y.clone(), (drop_labels(y, 0.5, gen(s)) for s in (5, 5, 6))
    assert torch.equal(y, before) and z.dtype == torch.long and torch.equal(z, again)
    assert torch.equal(z, y.where(z != NULL, NULL)) and not torch.equal(z, other)
    assert torch.equal(drop_labels(y, 0, gen()), y) and (drop_labels(y, 1, gen()) == NULL).all()
    assert torch.equal(state, torch.get_rng_state())
    z = drop_labels(y, 0.4)  # without one, torch's own is used
    torch.set_rng_state(state)
    assert torch.equal(drop_labels(y, 0.4), z)

@pytest.mark.parametrize('P', [EPS, X0, V])
@pytest.mark.parametrize('scale', [-1., -0.5, 0., 0.5, 2., 8.])
def test_the_networks_own_output_is_guided_in_every_parameterization(P, scale):
    "eq-cfg, eq-cfg-affine"
    net, y, x = Labelled(2).double(), torch.arange(16) % 3, randn(16, 2)
    level = SHORT.at(torch.arange(1, 60, 3)[:16], x)
    raw = (1 + scale) * net(x, level.t, y) - scale * net(x, level.t)
    p = guided(Denoiser(net, P), y, scale)(x, level)
    close(P.target(p.x0, p.eps, level), raw); close(level.signal * p.x0 + level.noise * p.eps, x)

def test_each_image_is_guided_by_its_own_label_and_one_without_a_label_is_not():
    "Labels may come as a list or an array; scale 0 costs one call of the network, others two"
    d, x = Denoiser(Labelled(2).double(), V), randn(7, 2)
    y = torch.tensor([0, 1, 2, 2, 1, 0, NULL])
    def x0(y, x=x, scale=3.): return guided(d, y, scale)(x, SHORT.at(5, x)).x0
    whole = x0(y)
    for i in range(7): close(x0(y[[i]], x[[i]]), whole[[i]])
    close(whole[6:], d(x[6:], SHORT.at(5, x[6:])).x0)
    for given in (y.tolist(), y.numpy()): assert torch.equal(x0(given), whole)
    for scale, calls in ((0., 1), (0.5, 2), (8., 2)):
        d.net.times.clear(); x0(y, scale=scale)
        assert len(d.net.times) == calls, scale

@pytest.mark.parametrize('scale', [0.5, 2., 8.])
def test_clip_last(scale):
    "Two points, +1 and -1, at x_t = 0: the guided image is 1 + scale (eq-cfg-toy)"
    toy = MixtureOracle(torch.tensor([[1.], [-1.]]), labels=torch.tensor([0, 1]))
    x, y = torch.zeros(4, 1).double(), torch.zeros(4).long()
    level = LINEAR.at(300, x)
    close(guided(clipped(toy), y, scale)(x, level).x0, x + 1 + scale)
    p = clipped(guided(toy, y, scale))(x, level)
    close(p.x0, x + 1); close(level.signal * p.x0 + level.noise * p.eps, x)

class Partly(nn.Module):
    "Guided while t is at most `last`; before, the labels as trained"
    def __init__(self, oracle, y, scale, last):
        super().__init__()
        self.last, self.trained, self.guided = last, guided(oracle, y, 0.), guided(oracle, y, scale)
    def forward(self, x_t, level, y=None):
        return (self.guided if level.t.max() <= self.last else self.trained)(x_t, level)

HEIGHTS = {100: 1.498, 80: 1.476, 60: 1.403, 40: 1.278, 30: 1.199}  # 20,000 samples, seed 0

def test_guidance_at_high_noise_makes_the_overshoot():
    """What solution 3 of chapter 12 reports: the mean height of the plane's samples, guided at
    t <= last of 100, and that of the tilted density (eq-cfg-tilt) on a grid. Their standard error
    is 0.007"""
    corners, ticks = torch.tensor([90., 210., 330.]).deg2rad(), np.linspace(-5, 6, 551)
    means = torch.stack([corners.cos(), corners.sin()], 1)
    plane, top = MixtureOracle(means, 0.6, labels=torch.arange(3)), torch.zeros(5000).long()
    def height(last):
        denoiser = Partly(plane, top, 2., last)
        return draw(denoiser, (5000, 2), Schedule(cosine_betas(100)), seed=0)[:, 1].mean().item()
    X, Y = np.meshgrid(ticks, ticks)
    each = [np.exp(-((X - a)**2 + (Y - b)**2) / (2 * 0.6**2)) for a, b in means.numpy()]
    tilted = each[0]**3 / sum(each)**2
    assert (tilted * Y).sum() / tilted.sum() == pytest.approx(1.223, abs=0.001)
    for last, reported in HEIGHTS.items(): assert height(last) == pytest.approx(reported, abs=0.03)

class NoLabels(nn.Module):
    def forward(self, x, t): return x

D, X, Y = Denoiser(Labelled(2), V), torch.zeros(2, 2), [0, 0]
UNCLASSED = Denoiser(UNet(1, 8, (1,), 1, ()))
TAKES_NONE = r'NoLabels takes no labels, as net\(x_t, t\): call it without y'
def ask(d, x=X, *y): return d(x, SHORT.at(5, x), *y)

@pytest.mark.parametrize('error, match, case', [
    *((ValueError, rf'p = {p} is outside 0\.\.1', lambda p=p: drop_labels(torch.tensor(Y), p))
      for p in (-0.1, 1.01, 10, math.nan)),
    *((ValueError, r'y has shape .*one label for each image', lambda y=y: guided(D, y, 1.))
      for y in (3, torch.tensor(3), torch.zeros(2, 1, 1).long())),
    *((ValueError, f'scale = {w}', lambda w=w: guided(D, Y, w)) for w in (math.nan, math.inf)),
    (ValueError, 'its labels already', lambda: ask(guided(D, Y, 1.), X, torch.tensor(Y))),
    *((ValueError, f'holds {n} labels for a batch of 2', lambda n=n: ask(guided(D, [0] * n, 1.)))
      for n in (1, 3)),
    (ValueError, 'num_classes=0', lambda: ask(guided(UNCLASSED, Y, 1.), torch.zeros(2, 1, 4, 4))),
    (ValueError, 'without labels', lambda: ask(guided(MixtureOracle(X), Y, 1.))),
    (TypeError, TAKES_NONE, lambda: ask(guided(Denoiser(NoLabels()), Y, 1.))),
    (TypeError, TAKES_NONE, lambda: ask(Denoiser(NoLabels()), X, torch.tensor(Y)))])
def test_mistakes_are_named(error, match, case): refused(case, match, error)
