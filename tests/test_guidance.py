"Guidance: against closed forms of Gaussians, raw network outputs, and a user's mistakes"
import math
import numpy as np, pytest, torch
from torch import nn
from diffusion_scratch.denoiser import EPS, V, X0, Denoiser, Prediction, clipped
from diffusion_scratch.guidance import NULL, drop_labels, guided
from diffusion_scratch.oracle import GaussianOracle, MixtureOracle
from diffusion_scratch.sampling import sample
from diffusion_scratch.schedule import Schedule, cosine_betas, linear_betas
from diffusion_scratch.unet import UNet

SCALES = [-1., -0.5, 0., 0.5, 2., 8.]
LINEAR, SHORT = Schedule(linear_betas()), Schedule(cosine_betas(10))
def gen(seed): return torch.Generator().manual_seed(seed)
def points(n, seed=1): return torch.randn(n, 2, generator=gen(seed))
def draw(denoiser, schedule, shape, seed=0, **kw):
    return sample(denoiser, schedule, shape, seed=seed, progress=False, **kw)

class Net(nn.Module):
    "A small network with labels, that counts its calls"
    def __init__(self, dropout=0.):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.label, layers = nn.Embedding(4, 8), (nn.Linear(2 + 8, 32), nn.SiLU())
            self.body = nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(32, 2))
        self.calls = 0
    def forward(self, x, t, y=None):
        self.calls += 1
        y = torch.full_like(t, NULL) if y is None else y
        return self.body(torch.cat([x, self.label(y + 1).to(x)], 1))

# ------------------------------------------------------------ drop_labels (eq-cfg-dropout)
@pytest.mark.parametrize('p', [0.02, 0.1, 0.5, 0.9])
def test_each_class_is_dropped_with_probability_p(p):
    dropped = drop_labels(torch.arange(10).repeat(20_000), p, gen(0)) == NULL
    by_class = dropped.view(-1, 10).double().mean(0)
    assert (by_class - p).abs().max() < 5 * math.sqrt(p * (1 - p) / 20_000)

def test_labels_are_dropped_independently_of_each_other():
    d = (drop_labels(torch.zeros(200_000, dtype=torch.long), 0.3, gen(1)) == NULL).double()
    both = (d[:-1] * d[1:]).mean()  # of neighbours: p^2
    assert abs(both - 0.09) < 5 * math.sqrt(0.09 * 0.91 / 100_000)

def test_drop_labels_leaves_its_input_and_the_rest_alone():
    y = torch.arange(1000) % 7
    before, z = y.clone(), drop_labels(y, 0.5, gen(2))
    assert torch.equal(y, before) and z.dtype == torch.long and z.shape == y.shape
    assert torch.equal(z[z != NULL], y[z != NULL])
    assert torch.equal(drop_labels(y, 0), y) and (drop_labels(y, 1) == NULL).all()

def test_drop_labels_is_a_function_of_its_generator():
    y, state = torch.arange(500) % 3, torch.get_rng_state()
    a, b, c = (drop_labels(y, 0.4, gen(s)) for s in (5, 5, 6))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(state, torch.get_rng_state())  # a given generator spares the global one
    with torch.random.fork_rng():
        torch.manual_seed(3); d = drop_labels(y, 0.4)
        torch.manual_seed(3); e = drop_labels(y, 0.4)
    assert torch.equal(d, e)                          # without one, torch's own is used

def test_NULL_is_what_the_unet_takes_for_no_label():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(1, 8, (1,), 1, (), num_classes=3)
        for p in net.parameters(): nn.init.normal_(p, std=0.2)
    x, t = torch.randn(4, 1, 6, 6, generator=gen(0)), torch.tensor([1, 2, 3, 4])
    torch.testing.assert_close(net(x, t, torch.full((4,), NULL)), net(x, t))
    assert (net(x, t, torch.zeros(4).long()) - net(x, t)).abs().max() > 1e-3

# ------------------------------------------------------------ guided
@pytest.mark.parametrize('scale', SCALES)
def test_guided_score_is_that_of_the_tilted_noised_density(scale):
    "eq-cfg-bayes in closed form, in numpy: two Gaussian classes of unequal width and weight"
    m, sd, pi = np.array([1.5, -0.5]), np.array([0.5, 1.0]), np.array([0.25, 0.75])
    modes, std, weights = torch.from_numpy(m)[:, None], torch.from_numpy(sd), torch.from_numpy(pi)
    oracle, x = MixtureOracle(modes, std, weights, torch.tensor([0, 1])), np.linspace(-4, 4, 41)
    x_t = torch.from_numpy(x)[:, None]
    for t in (10, 200, 500, 900):
        a, b2 = math.sqrt(LINEAR.alpha_bar[t]), 1 - float(LINEAR.alpha_bar[t])
        var = a**2 * sd**2 + b2
        density = pi * np.exp(-(x[:, None] - a * m)**2 / (2 * var)) / np.sqrt(var)
        score = -(x[:, None] - a * m) / var
        free = (density * score).sum(1) / density.sum(1)
        for y in (0, 1):
            want = (1 + scale) * score[:, y] - scale * free
            p = guided(oracle, torch.full((41,), y), scale)(x_t, LINEAR.at(t, x_t))
            ours = -p.eps.flatten().numpy() / math.sqrt(b2)
            np.testing.assert_allclose(ours, want, rtol=1e-9, atol=1e-9)

@pytest.mark.parametrize('P', [EPS, X0, V])
@pytest.mark.parametrize('scale', SCALES)
def test_the_networks_own_output_is_guided_in_every_parameterization(P, scale):
    "eq-cfg, eq-cfg-affine"
    net, y, x = Net().double(), torch.arange(16) % 3, points(16, 0).double()
    level = Schedule(cosine_betas(100)).at(torch.arange(1, 100, 6)[:16], x)
    raw = (1 + scale) * net(x, level.t, y) - scale * net(x, level.t)
    p = guided(Denoiser(net, P), y, scale)(x, level)
    close = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    close(P.target(p.x0, p.eps, level), raw); close(level.signal * p.x0 + level.noise * p.eps, x)

def test_each_image_is_guided_by_its_own_label_and_one_without_a_label_is_not():
    net, x, y = Denoiser(Net(), V), points(7), torch.tensor([0, 1, 2, 2, 1, 0, NULL])
    whole = guided(net, y, 3.)(x, SHORT.at(5, x)).x0
    for i in range(7):
        one = guided(net, y[[i]], 3.)(x[[i]], SHORT.at(5, x[[i]])).x0
        torch.testing.assert_close(one, whole[[i]])
    torch.testing.assert_close(whole[6:], net(x[6:], SHORT.at(5, x[6:])).x0)

def test_scale_0_costs_one_call_and_others_two():
    x = torch.zeros(2, 2)
    for scale, calls in ((0., 1), (0.5, 2), (8., 2)):
        net = Net()
        guided(Denoiser(net, V), torch.tensor([0, 1]), scale)(x, SHORT.at(5, x))
        assert net.calls == calls, scale

def test_labels_may_come_as_a_list_or_an_array():
    net, x = Denoiser(Net(), V), points(3)
    one, *others = (guided(net, y, 1.)(x, SHORT.at(5, x)).x0
                    for y in (torch.tensor([2, 0, 1]), [2, 0, 1], np.array([2, 0, 1])))
    for other in others: assert torch.equal(one, other)

@pytest.mark.parametrize('scale', [0.5, 2., 8.])
def test_clip_last(scale):
    "Two points, +1 and -1, at x_t = 0: the guided image is 1 + scale (eq-cfg-toy)"
    toy = MixtureOracle(torch.tensor([[1.], [-1.]]), labels=torch.tensor([0, 1]))
    x, y = torch.zeros(4, 1), torch.zeros(4, dtype=torch.long)
    level = LINEAR.at(300, x)
    x0 = guided(clipped(toy), y, scale)(x, level).x0
    torch.testing.assert_close(x0, torch.full((4, 1), 1 + scale))
    p = clipped(guided(toy, y, scale))(x, level)
    torch.testing.assert_close(p.x0, torch.ones(4, 1))
    torch.testing.assert_close(level.signal.float() * p.x0 + level.noise.float() * p.eps, x)

# ------------------------------------------------------------ guided sampling
class Lines(nn.Module):
    """Classes N(m_y, 0.5^2) whose means are themselves N(0, 1): with a label and without, the exact
    denoiser is a straight line"""
    def __init__(self, means):
        super().__init__()
        self.told = [GaussianOracle(torch.tensor([m]), torch.tensor([[0.25]])) for m in means]
        self.free = GaussianOracle(torch.zeros(1), torch.tensor([[1.25]]))
    def forward(self, x, level, y=None):
        if y is None: return self.free(x, level)
        x0 = torch.stack([d(x, level).x0 for d in self.told])
        return Prediction(x0[y, torch.arange(len(x))], x, level)

@pytest.mark.parametrize('scale', [-1., 0., 0.5, 2.])
def test_moments_of_guided_samples_follow_from_a_recursion(scale):
    """Every step is x_s = A x_t + B m + C z, so mean and variance of the result are known, guidance
    and finite steps included; they are not those of the tilted density (eq-cfg-tilt)"""
    schedule, m, n = Schedule(cosine_betas(100)), 1.5, 3000
    ab, times = schedule.alpha_bar.numpy(), schedule.times(50)
    mean, var = 0., 1.
    for t, s in zip(times, times[1:]):
        a, v = math.sqrt(ab[t]), 1 - ab[t]
        told, free = (a * c / (a * a * c + v) for c in (0.25, 1.25))
        # x0 = m + told (x - a m) with a label, and free x without
        slope, shift = (1 + scale) * told - scale * free, (1 + scale) * m * (1 - told * a)
        r = ab[t] / ab[s]
        c0, ct = math.sqrt(ab[s]) * (1 - r) / v, math.sqrt(r) * (1 - ab[s]) / v
        mean = (c0 * slope + ct) * mean + c0 * shift
        var = (c0 * slope + ct)**2 * var + (1 - r) * (1 - ab[s]) / v
    lines = guided(Lines([-7., m]), torch.ones(n).long(), scale)
    x = draw(lines, schedule, (n, 1), times=times).double()
    assert abs(x.mean() - mean) < 4.5 * math.sqrt(var / n)
    assert abs(x.var() / var - 1) < 4.5 * math.sqrt(2 / n)
    precision = (1 + scale) / 0.25 - scale / 1.25
    if scale > 0: assert mean > (1 + scale) * m / 0.25 / precision + 0.05

def test_more_guidance_less_variety_and_further_out():
    means = torch.tensor([[0., 1.], [-0.9, -0.5], [0.9, -0.5]])
    oracle, schedule = MixtureOracle(means, 0.6, labels=torch.arange(3)), Schedule(cosine_betas(50))
    top = torch.zeros(400).long()
    draws = [draw(guided(oracle, top, w), schedule, (400, 2), seed=1) for w in (0., 1., 4.)]
    heights, spreads = [x[:, 1].mean() for x in draws], [x.var(0).sum() for x in draws]
    assert heights[0] < heights[1] - 0.1 < heights[2] - 0.2
    assert spreads[0] > spreads[1] > spreads[2]

def test_sampling_through_guided_switches_dropout_off_and_leaves_the_mode():
    net = Net(dropout=0.5).double().train()
    g = guided(Denoiser(net, V), torch.tensor([0, 1, 2]), 2.)
    a, b = (draw(g, SHORT, (3, 2), times=[10, 5, 0]) for _ in range(2))
    assert torch.equal(a, b) and net.training and a.dtype == torch.float64 and not a.requires_grad

def test_scale_minus_1_samples_as_if_there_were_no_labels():
    d, schedule = Denoiser(Net(), V), Schedule(cosine_betas(20))
    without = guided(d, torch.tensor([0, 2]), -1.)
    torch.testing.assert_close(draw(without, schedule, (2, 2)), draw(d, schedule, (2, 2)))

# ------------------------------------------------------------ mistakes
class NoLabels(nn.Module):
    def forward(self, x, t): return x

D, X, Y = Denoiser(Net(), V), torch.zeros(2, 2), torch.zeros(2).long()
IMAGES = torch.zeros(2, 1, 4, 4)
NAN, INF = float('nan'), float('inf')
TAKES_NONE = r'NoLabels takes no labels, as net\(x_t, t\): ask without y'

@pytest.mark.parametrize('case, error, match', [
    *((lambda p=p: drop_labels(Y, p), ValueError, rf'p = {p} is outside 0\.\.1')
      for p in (-0.1, 1.01, 10, NAN)),
    *((lambda y=y: guided(Net(), y, 1.), ValueError, r'y has shape .*one label for each image')
      for y in (3, torch.tensor(3), torch.zeros(2, 1).long())),
    *((lambda w=w: guided(Net(), Y, w), ValueError, f'scale = {w}') for w in (NAN, INF)),
    (lambda: draw(guided(D, Y, 1.), SHORT, (2, 2), y=Y), ValueError, 'holds its labels already'),
    *((lambda n=n: draw(guided(D, torch.zeros(n).long(), 1.), SHORT, (2, 2)), ValueError,
       f'holds {n} labels for a batch of 2') for n in (1, 3)),
    # models that learned no labels
    (lambda: guided(Denoiser(UNet(1, 8, (1,), 1, ())), Y, 1.)(IMAGES, SHORT.at(5, IMAGES)),
     ValueError, 'num_classes=0'),
    (lambda: guided(Denoiser(NoLabels()), Y, 1.)(X, SHORT.at(5, X)), TypeError, TAKES_NONE),
    (lambda: Denoiser(NoLabels())(X, SHORT.at(5, X), Y), TypeError, TAKES_NONE),
    (lambda: guided(MixtureOracle(X), Y, 1.)(X, SHORT.at(5, X)), ValueError, 'without labels')])
def test_mistakes_are_named(case, error, match):
    with pytest.raises(error, match=match): case()
