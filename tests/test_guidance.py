"Guidance from outside: against closed forms of Gaussians, raw network outputs, and a user's mistakes"
import math
import numpy as np
import pytest
import torch
from torch import nn
from diffusion_scratch.denoiser import EPS, V, X0, Denoiser, Prediction, clipped
from diffusion_scratch.guidance import NULL, drop_labels, guided
from diffusion_scratch.oracle import GaussianOracle, MixtureOracle
from diffusion_scratch.sampling import sample
from diffusion_scratch.schedule import Schedule, cosine_betas, linear_betas
from diffusion_scratch.unet import UNet

SCALES = [-1., -0.5, 0., 0.5, 2., 8.]
gen = lambda seed: torch.Generator().manual_seed(seed)

class Net(nn.Module):
    "A small network with labels, that counts its calls"
    def __init__(self, dropout=0.):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.label, self.body = nn.Embedding(4, 8), nn.Sequential(nn.Linear(2 + 8, 32), nn.SiLU(), nn.Dropout(dropout), nn.Linear(32, 2))
        self.calls = 0
    def forward(self, x, t, y=None):
        self.calls += 1
        y = torch.full_like(t, NULL) if y is None else y
        return self.body(torch.cat([x, self.label(y + 1).to(x)], 1))

# ---- drop_labels (eq-cfg-dropout)

@pytest.mark.parametrize('p', [0.02, 0.1, 0.5, 0.9])
def test_the_dropped_share_is_p_in_every_class(p):
    y = torch.arange(10).repeat(20_000)
    dropped = drop_labels(y, p, gen(0)) == NULL
    by_class = dropped.view(-1, 10).double().mean(0)
    assert (by_class - p).abs().max() < 5 * math.sqrt(p * (1 - p) / 20_000)

def test_labels_are_dropped_independently_of_each_other():
    d = (drop_labels(torch.zeros(200_000, dtype=torch.long), 0.3, gen(1)) == NULL).double()
    both = (d[:-1] * d[1:]).mean()                        # of neighbours: p^2
    assert abs(both - 0.09) < 5 * math.sqrt(0.09 * 0.91 / 100_000)

def test_drop_labels_leaves_its_input_and_the_rest_alone():
    y = torch.arange(1000) % 7
    before = y.clone()
    z = drop_labels(y, 0.5, gen(2))
    assert torch.equal(y, before) and z.dtype == torch.long and z.shape == y.shape
    assert torch.equal(z[z != NULL], y[z != NULL])
    assert torch.equal(drop_labels(y, 0), y) and (drop_labels(y, 1) == NULL).all()

def test_drop_labels_is_a_function_of_its_generator():
    y, state = torch.arange(500) % 3, torch.get_rng_state()
    a, b, c = (drop_labels(y, 0.4, gen(s)) for s in (5, 5, 6))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(state, torch.get_rng_state())      # a given generator leaves the global one untouched
    with torch.random.fork_rng():
        torch.manual_seed(3); d = drop_labels(y, 0.4)
        torch.manual_seed(3); e = drop_labels(y, 0.4)
    assert torch.equal(d, e)                              # without one, torch's own is used

@pytest.mark.parametrize('p', [-0.1, 1.01, 10, float('nan')])
def test_a_share_outside_0_1_is_refused(p):
    with pytest.raises(ValueError, match=rf'p = {p} is outside 0\.\.1'): drop_labels(torch.zeros(3).long(), p)

def test_NULL_is_what_the_unet_takes_for_no_label():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(1, 8, (1,), 1, (), num_classes=3)
        for p in net.parameters(): nn.init.normal_(p, std=0.2)
    x, t = torch.randn(4, 1, 6, 6, generator=gen(0)), torch.tensor([1, 2, 3, 4])
    torch.testing.assert_close(net(x, t, torch.full((4,), NULL)), net(x, t))
    assert (net(x, t, torch.zeros(4).long()) - net(x, t)).abs().max() > 1e-3

# ---- guided (eq-cfg, eq-cfg-bayes, eq-cfg-affine)

@pytest.mark.parametrize('scale', SCALES)
def test_guided_score_is_that_of_the_tilted_noised_density(scale):
    "eq-cfg-bayes in closed form, for two Gaussian classes of unequal width and weight, written out in numpy"
    m, sd, pi = np.array([1.5, -0.5]), np.array([0.5, 1.0]), np.array([0.25, 0.75])
    oracle = MixtureOracle(torch.from_numpy(m)[:, None], torch.from_numpy(sd), torch.from_numpy(pi), labels=torch.tensor([0, 1]))
    schedule, x = Schedule(linear_betas()), np.linspace(-4, 4, 41)
    for t in (10, 200, 500, 900):
        a, b2 = math.sqrt(schedule.alpha_bar[t]), 1 - float(schedule.alpha_bar[t])
        var = a**2 * sd**2 + b2
        density = pi * np.exp(-(x[:, None] - a * m)**2 / (2 * var)) / np.sqrt(var)
        score = -(x[:, None] - a * m) / var
        free = (density * score).sum(1) / density.sum(1)
        for y in (0, 1):
            want = (1 + scale) * score[:, y] - scale * free
            xt = torch.from_numpy(x)[:, None]
            p = guided(oracle, torch.full((41,), y), scale)(xt, schedule.at(t, xt))
            np.testing.assert_allclose(-p.eps.flatten().numpy() / math.sqrt(b2), want, rtol=1e-9, atol=1e-9)

@pytest.mark.parametrize('P', [EPS, X0, V])
@pytest.mark.parametrize('scale', SCALES)
def test_guiding_the_networks_own_output_is_the_same_in_every_parameterization(P, scale):
    net, y = Net().double(), torch.arange(16) % 3
    x, schedule = torch.randn(16, 2, generator=gen(0)).double(), Schedule(cosine_betas(100))
    level = schedule.at(torch.arange(1, 100, 6)[:16], x)
    raw = (1 + scale) * net(x, level.t, y) - scale * net(x, level.t)
    p = guided(Denoiser(net, P), y, scale)(x, level)
    torch.testing.assert_close(P.target(p.x0, p.eps, level), raw, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(level.signal * p.x0 + level.noise * p.eps, x, rtol=1e-9, atol=1e-9)

def test_each_image_is_guided_by_its_own_label():
    net, x = Denoiser(Net(), V), torch.randn(6, 2, generator=gen(1))
    level, y = Schedule(cosine_betas(10)).at(5, x), torch.tensor([0, 1, 2, 2, 1, 0])
    whole = guided(net, y, 3.)(x, level).x0
    for i in range(6):
        one = guided(net, y[i:i+1], 3.)(x[i:i+1], Schedule(cosine_betas(10)).at(5, x[i:i+1])).x0
        torch.testing.assert_close(one, whole[i:i+1])

def test_a_null_label_is_left_unguided():
    net, x = Denoiser(Net(), V), torch.randn(5, 2, generator=gen(1))
    level = Schedule(cosine_betas(10)).at(5, x)
    torch.testing.assert_close(guided(net, torch.full((5,), NULL), 4.)(x, level).x0, net(x, level).x0)

def test_scale_0_costs_one_call_and_others_two():
    x, level = torch.zeros(2, 2), Schedule(cosine_betas(10)).at(5, torch.zeros(2, 2))
    for scale, calls in ((0., 1), (0.5, 2), (8., 2)):
        net = Net()
        guided(Denoiser(net, V), torch.tensor([0, 1]), scale)(x, level)
        assert net.calls == calls, scale

def test_labels_may_come_as_a_list_or_an_array():
    net, x = Denoiser(Net(), V), torch.randn(3, 2, generator=gen(2))
    level = Schedule(cosine_betas(10)).at(5, x)
    want = guided(net, torch.tensor([2, 0, 1]), 1.)(x, level).x0
    assert torch.equal(guided(net, [2, 0, 1], 1.)(x, level).x0, want) and torch.equal(guided(net, np.array([2, 0, 1]), 1.)(x, level).x0, want)

def test_clip_last():
    "Two points, +1 and -1, at x_t = 0: the guided belief is 1 + scale (eq-cfg-toy)"
    points = MixtureOracle(torch.tensor([[1.], [-1.]]), labels=torch.tensor([0, 1]))
    x, y = torch.zeros(4, 1), torch.zeros(4, dtype=torch.long)
    level = Schedule(linear_betas()).at(300, x)
    for scale in (0.5, 2., 8.):
        torch.testing.assert_close(guided(clipped(points), y, scale)(x, level).x0, torch.full((4, 1), 1 + scale))
        p = clipped(guided(points, y, scale))(x, level)
        torch.testing.assert_close(p.x0, torch.ones(4, 1))
        torch.testing.assert_close(level.signal.float() * p.x0 + level.noise.float() * p.eps, x)

# ---- guided sampling

class Lines(nn.Module):
    "Classes N(m_y, 0.5^2) whose means are themselves N(0, 1): with a label and without, the exact denoiser is a straight line"
    def __init__(self, means):
        super().__init__()
        self.told = [GaussianOracle(torch.tensor([m]), torch.tensor([[0.25]])) for m in means]
        self.free = GaussianOracle(torch.zeros(1), torch.tensor([[1.25]]))
    def forward(self, x, level, y=None):
        if y is None: return self.free(x, level)
        ps = [d(x, level) for d in self.told]
        pick = lambda name: torch.stack([getattr(p, name) for p in ps])[y, torch.arange(len(x))]
        return Prediction(pick('x0'), pick('eps'))

@pytest.mark.parametrize('scale', [-1., 0., 0.5, 2.])
def test_moments_of_guided_samples_follow_from_a_recursion(scale):
    "Every step is x_s = A x_t + B m + C z, so mean and variance of the result are known, guidance and finite steps included"
    schedule, m, n = Schedule(cosine_betas(100)), 1.5, 3000
    ab, times = schedule.alpha_bar.numpy(), schedule.times(50)
    mean, var = 0., 1.
    for t, s in zip(times, times[1:]):
        a, v = math.sqrt(ab[t]), 1 - ab[t]
        gains = [a * c / (a * a * c + v) for c in (0.25, 1.25)]            # x0 = m + gain (x - a m), and gain x
        slope, shift = (1 + scale) * gains[0] - scale * gains[1], (1 + scale) * m * (1 - gains[0] * a)
        r = ab[t] / ab[s]
        c0, ct, std2 = math.sqrt(ab[s]) * (1 - r) / v, math.sqrt(r) * (1 - ab[s]) / v, (1 - r) * (1 - ab[s]) / v
        mean, var = (c0 * slope + ct) * mean + c0 * shift, (c0 * slope + ct)**2 * var + std2
    x = sample(guided(Lines([-7., m]), torch.ones(n).long(), scale), schedule, (n, 1), times=times, seed=0, progress=False).double()
    assert abs(x.mean() - mean) < 4.5 * math.sqrt(var / n)
    assert abs(x.var() / var - 1) < 4.5 * math.sqrt(2 / n)
    if scale > 0:                                                           # and it is not the tilted density p(x) p(y|x)^(1+scale) (eq-cfg-tilt)
        precision = (1 + scale) / 0.25 - scale / 1.25
        assert mean > (1 + scale) * m / 0.25 / precision + 0.05

def test_more_guidance_less_variety_and_further_out():
    means = torch.tensor([[0., 1.], [-0.9, -0.5], [0.9, -0.5]])
    oracle, schedule = MixtureOracle(means, 0.6, labels=torch.arange(3)), Schedule(cosine_betas(50))
    draws = [sample(guided(oracle, torch.zeros(400).long(), w), schedule, (400, 2), seed=1, progress=False) for w in (0., 1., 4.)]
    heights, spreads = [x[:, 1].mean() for x in draws], [x.var(0).sum() for x in draws]
    assert heights[0] < heights[1] - 0.1 < heights[2] - 0.2 and spreads[0] > spreads[1] > spreads[2]

def test_sampling_through_guided_switches_dropout_off_and_leaves_the_mode():
    net = Net(dropout=0.5).double().train()
    g = guided(Denoiser(net, V), torch.tensor([0, 1, 2]), 2.)
    kw = dict(times=[10, 5, 0], seed=0, progress=False)
    a, b = (sample(g, Schedule(cosine_betas(10)), (3, 2), **kw) for _ in range(2))
    assert torch.equal(a, b) and net.training and a.dtype == torch.float64 and not a.requires_grad

def test_scale_minus_1_samples_as_if_there_were_no_labels():
    d, schedule, kw = Denoiser(Net(), V), Schedule(cosine_betas(20)), dict(seed=4, progress=False)
    torch.testing.assert_close(sample(guided(d, torch.tensor([0, 2]), -1.), schedule, (2, 2), **kw), sample(d, schedule, (2, 2), **kw))

# ---- mistakes

def test_labels_given_twice_are_refused():
    g, schedule = guided(Denoiser(Net(), V), torch.tensor([0, 1]), 1.), Schedule(cosine_betas(10))
    with pytest.raises(ValueError, match='holds its labels already'): sample(g, schedule, (2, 2), y=torch.tensor([0, 1]), seed=0, progress=False)

@pytest.mark.parametrize('n', [1, 3])
def test_a_wrong_number_of_labels_is_refused(n):
    g = guided(Denoiser(Net(), V), torch.zeros(n).long(), 1.)
    with pytest.raises(ValueError, match=f'holds {n} labels for a batch of 2'): sample(g, Schedule(cosine_betas(10)), (2, 2), seed=0, progress=False)

@pytest.mark.parametrize('y', [3, torch.tensor(3), torch.zeros(2, 1).long()])
def test_labels_that_are_no_vector_are_refused(y):
    with pytest.raises(ValueError, match=r'y has shape .*one label for each image'): guided(Net(), y, 1.)

@pytest.mark.parametrize('scale', [float('nan'), float('inf')])
def test_a_scale_that_is_no_number_is_refused(scale):
    with pytest.raises(ValueError, match=f'scale = {scale}'): guided(Net(), torch.zeros(2).long(), scale)

def test_guiding_a_model_that_learned_no_labels_is_refused():
    x = torch.zeros(2, 1, 4, 4)
    level = Schedule(cosine_betas(10)).at(5, x)
    with pytest.raises(ValueError, match='num_classes=0'): guided(Denoiser(UNet(1, 8, (1,), 1, ())), torch.zeros(2).long(), 1.)(x, level)
    class Plain(nn.Module):
        def forward(self, x, t): return x
    for asked in (lambda d: guided(d, torch.zeros(2).long(), 1.)(x, level), lambda d: d(x, level, torch.zeros(2).long())):
        with pytest.raises(TypeError, match=r'Plain takes no labels, as net\(x_t, t\): ask without y'): asked(Denoiser(Plain()))
    with pytest.raises(ValueError, match='without labels'): guided(MixtureOracle(torch.zeros(2, 1, 4, 4)), torch.zeros(2).long(), 1.)(x, level)
