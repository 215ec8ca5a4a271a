"Guidance: against closed forms of Gaussians, raw network outputs, and a user's mistakes"
import itertools, math
import numpy as np, pytest, torch
from conftest import SHORT, Labelled, close, draw, gen, moments, randn
from torch import nn
from diffusion_scratch.denoiser import EPS, V, X0, Denoiser, Prediction, clipped
from diffusion_scratch.guidance import NULL, drop_labels, guided
from diffusion_scratch.oracle import MixtureOracle
from diffusion_scratch.schedule import Schedule, cast_like, cosine_betas, linear_betas
from diffusion_scratch.unet import UNet

LINEAR = Schedule(linear_betas())
every_scale = pytest.mark.parametrize('scale', [-1., -0.5, 0., 0.5, 2., 8.])

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

def test_NULL_is_what_the_unet_takes_for_no_label():
    net = UNet(1, 8, (1,), 1, (), num_classes=3)
    for p in net.parameters(): nn.init.normal_(p, std=0.2, generator=gen(1))
    x, t = torch.randn(4, 1, 6, 6, generator=gen()), torch.tensor([1, 2, 3, 4])
    close(net(x, t, torch.full((4,), NULL)), net(x, t), 1e-5)
    assert (net(x, t, torch.zeros(4).long()) - net(x, t)).abs().max() > 1e-3

@every_scale
def test_guided_score_is_that_of_the_tilted_noised_density(scale):
    "eq-cfg-bayes in closed form, in numpy: two Gaussian classes of unequal width and weight"
    x, m = np.linspace(-4, 4, 41)[:, None], np.array([1.5, -0.5])
    sd, pi = np.array([0.5, 1.0]), np.array([0.25, 0.75])
    x_t, *mixture = map(torch.from_numpy, (x, m[:, None], sd, pi))
    oracle = MixtureOracle(*mixture, torch.tensor([0, 1]))
    for t, y in itertools.product((10, 200, 500, 900), (0, 1)):
        a, b2 = math.sqrt(LINEAR.alpha_bar[t]), 1 - float(LINEAR.alpha_bar[t])
        var = a**2 * sd**2 + b2
        density, score = pi * np.exp(-(x - a * m)**2 / (2 * var)) / np.sqrt(var), -(x - a * m) / var
        want = (1 + scale) * score[:, y] - scale * (density * score).sum(1) / density.sum(1)
        p = guided(oracle, [y] * 41, scale)(x_t, LINEAR.at(t, x_t))
        close(-p.eps.flatten() / math.sqrt(b2), torch.from_numpy(want))

@pytest.mark.parametrize('P', [EPS, X0, V])
@every_scale
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

class Lines(nn.Module):
    "Classes N(m, 0.25), with m from N(0, 1): with a label and without, exact and a straight line"
    def forward(self, x, level, y=None):
        a, b = cast_like(x, level.signal, level.noise)
        m, var = (0., 1.25) if y is None else (torch.tensor([[-7.], [1.5]])[y], 0.25)
        return Prediction(m + a * var / (a**2 * var + b**2) * (x - a * m), x, level)

@pytest.mark.parametrize('scale', [-1., 0., 0.5, 2.])
def test_moments_of_guided_samples_follow_from_a_recursion(scale):
    """Every step is x_s = A x_t + B m + C z, so mean and variance of the result are known, guidance
    and finite steps included; they are not those of the tilted density (eq-cfg-tilt)"""
    schedule, m, mean, var = Schedule(cosine_betas(100)), 1.5, 0., 1.
    ab, times = schedule.alpha_bar.numpy(), schedule.times(50)
    for t, s in zip(times, times[1:]):
        a, v, r = math.sqrt(ab[t]), 1 - ab[t], ab[t] / ab[s]
        told, free = (a * c / (a * a * c + v) for c in (0.25, 1.25))
        # x0 = m + told (x - a m) with a label, and free x without
        slope, shift = (1 + scale) * told - scale * free, (1 + scale) * m * (1 - told * a)
        c0, ct = math.sqrt(ab[s]) * (1 - r) / v, math.sqrt(r) * (1 - ab[s]) / v
        mean = (c0 * slope + ct) * mean + c0 * shift
        var = (c0 * slope + ct)**2 * var + (1 - r) * (1 - ab[s]) / v
    x = draw(guided(Lines(), [1] * 3000, scale), (3000, 1), schedule, times=times)
    moments(x, mean, math.sqrt(var))
    tilted = (1 + scale) * m / 0.25 / ((1 + scale) / 0.25 - scale / 1.25)
    assert scale <= 0 or mean > tilted + 0.05

def test_more_guidance_less_variety_and_further_out():
    means = torch.tensor([[0., 1.], [-0.9, -0.5], [0.9, -0.5]])
    oracle, top = MixtureOracle(means, 0.6, labels=torch.arange(3)), torch.zeros(400).long()
    draws = [draw(guided(oracle, top, scale), (400, 2), seed=1) for scale in (0., 1., 4.)]
    heights, spreads = [x[:, 1].mean() for x in draws], [x.var(0).sum() for x in draws]
    assert heights[0] < heights[1] - 0.1 < heights[2] - 0.2
    assert spreads[0] > spreads[1] > spreads[2]

class Partly(nn.Module):
    "Guided while t is at most `last`; before, the labels as trained"
    def __init__(self, oracle, y, scale, last):
        super().__init__()
        self.y, self.oracle, self.last = y, oracle, last
        self.guided = guided(oracle, y, scale)

    def forward(self, x_t, level, y=None):
        if level.t.max() <= self.last: return self.guided(x_t, level)
        return self.oracle(x_t, level, self.y)

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

def test_sampling_through_guided_switches_dropout_off_and_leaves_the_mode():
    d = Denoiser(Labelled(2, dropout=0.5).double(), V).train()
    a, b = (draw(guided(d, [0, 1, 2], 2.), (3, 2), times=[60, 30, 0]) for _ in range(2))
    assert torch.equal(a, b) and d.net.training and a.dtype == torch.float64 and not a.requires_grad

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
def test_mistakes_are_named(error, match, case):
    with pytest.raises(error, match=match): case()
