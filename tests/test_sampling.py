"The reverse process: exact where the truth is known, repeatable image by image, no footprints"
import math
from itertools import islice
import numpy as np, pytest, scipy.stats, torch
from conftest import Labelled, gen, refused, within
from torch import nn
from diffusion_scratch.denoiser import V, X0, Denoiser, Prediction
from diffusion_scratch.loss import optimal
from diffusion_scratch.oracle import GaussianOracle, MixtureOracle
from diffusion_scratch.sampling import (Frame, Noise, ancestral, coefficient_table, first_stream,
                                        fixed_large, fixed_small, sample, trajectory)
from diffusion_scratch.schedule import Schedule, cosine_betas, linear_betas, zero_terminal_snr
from diffusion_scratch.solvers import ddim, dpm_solver_pp, heun

LINEAR, SHORT = Schedule(linear_betas()), Schedule(linear_betas(10, 0.01, 0.6))
ORACLE = MixtureOracle(torch.tensor([[-0.7, 0., 0.5], [0.4, 0.1, -0.5]]), 0.1,
                       torch.tensor([0.3, 0.7]))
every_variance = pytest.mark.parametrize(
    'variance', [fixed_small, fixed_large, optimal([0.] + [0.1] * 1000)])

def draw(denoiser, schedule=SHORT, shape=(4, 3), **kw):
    return sample(denoiser, schedule, shape, progress=False, **kw)
def frames_of(denoiser, **kw): return list(trajectory(denoiser, SHORT, (4, 3), **kw))
def denoiser(dropout=0.): return Denoiser(Labelled(3, dropout), V)

# ---- one step
def test_the_two_variances_at_neighbouring_steps():
    "eq-total-variance (Ho et al. 2020, 3.2); only an image that arrives at 0 gets no noise"
    t = torch.arange(1, 1001)
    x, ab = torch.zeros(1000, 1, dtype=torch.float64), LINEAR.alpha_bar
    small, large = (v(x, x, LINEAR.at(t, x), LINEAR.at(t - 1, x)).std.flatten()**2
                    for v in (fixed_small, fixed_large))
    within(large, LINEAR.betas.where(t > 1, 0.), 0, rtol=1e-9)
    within(small, LINEAR.betas * (1 - ab[:-1]) / (1 - ab[1:]), 0, rtol=1e-9)

@every_variance
@pytest.mark.parametrize('betas', [
    linear_betas(), cosine_betas(20), zero_terminal_snr(linear_betas(50))])
def test_the_last_step_is_the_prediction(variance, betas):
    "At s = 0 the coefficients are exactly 1, 0, 0 and 0, from any t"
    schedule, t = Schedule(betas), torch.arange(1, len(betas) + 1)
    c = ancestral(variance).coefficients(schedule.at(t, t), schedule.at(0, t))
    assert (c.x0 == 1).all() and not any(z.any() for z in (c.x_t, c.previous, c.std))

@every_variance
def test_a_step_is_its_gaussian(variance):
    "eq-ancestral, eq-coefficients: the table says what the posterior says, at any levels"
    x_t, x0 = torch.randn(2, 200, generator=gen(), dtype=torch.float64)
    s = torch.randint(0, 999, (200,), generator=gen(1))
    t = (s + torch.randint(1, 500, (200,), generator=gen(2))).clamp(max=1000)
    t, s = LINEAR.at(t, x0), LINEAR.at(s, x0)
    c, p = ancestral(variance).coefficients(t, s), variance(x0, x_t, t, s)
    within(c.x0 * x0 + c.x_t * x_t, p.mean, 1e-12)
    within(c.std, p.std, 0)

@pytest.mark.parametrize('eta', [0., 1.])
def test_a_predicted_image_loses_variance(eta):
    "eq-lost-width, exactly, of Gaussian data: a^2 E Var(x0 | x_t) of the variance is missing"
    one, var = torch.ones(3, 1, dtype=torch.float64), 0.5
    t, s = (LINEAR.at(torch.tensor(i), one) for i in ([600, 400, 300], [100, 300, 290]))
    guess = GaussianOracle(torch.zeros(1), torch.tensor([[var]]))(one, t).x0  # times x_t
    c, var_t = ddim(eta).coefficients(t, s), var * t.alpha_bar + t.noise**2
    lost = c.x0**2 * var * t.noise**2 / var_t
    ours = (c.x0 * guess + c.x_t)**2 * var_t + c.std**2
    within(ours + lost, var * s.alpha_bar + s.noise**2, 1e-12)

def test_a_table_has_a_row_for_each_step_down_and_up():
    "Down: the step of the solver; up: eq-step, with the variance that brings x_s to x_t"
    _, up, last = coefficient_table(ddim(), SHORT, [10, 4, 7, 0])
    assert last == (1, 0, 0, 0) and (up.x0, up.previous) == (0, 0)
    assert up.x_t == pytest.approx((SHORT.signal[7] / SHORT.signal[4]).item(), rel=1e-12)
    var = up.x_t**2 * SHORT.noise[4]**2 + up.std**2
    assert var.item() == pytest.approx(SHORT.noise[7].item()**2, rel=1e-12)

def test_solvers_are_data_with_a_name():
    assert str([ddim(0.5), dpm_solver_pp(), ancestral(fixed_large), heun()]) == (
        '[ddim(eta=0.5), dpm_solver_pp(eta=0.0), ancestral(variance=fixed_large), '
        'heun(rule=exponential)]')
    assert ddim(0.5) == ddim(eta=0.5) != ddim()
    assert len({ddim(), ddim(0.), ancestral(), ancestral(fixed_small)}) == 2
    with pytest.raises(AttributeError): ddim().eta = 1.

# ---- noise
def test_noise_of_an_image_depends_on_seed_and_number_alone():
    "And is torch's stream of that number (eq-streams, in float64)"
    noise = Noise(7, 6)
    whole = torch.stack([noise.draw((2, 3)), noise.draw((2, 3))])
    for n, start in ((1, 0), (3, 2), (2, 4)):
        part = Noise(7, n, first=start)
        for z in whole: assert torch.equal(part.draw((2, 3)), z[start : start + n])
    golden = (1 + math.sqrt(5)) / 2
    stream = gen(math.floor(2**32 * ((7 + 1) * golden % 1)) + 3)
    for z in whole: assert torch.equal(z[3].flatten(), torch.randn(16, generator=stream)[:6])
    assert whole.dtype == torch.float32 and len(whole.view(12, 6).unique(dim=0)) == 12

def test_every_seed_is_its_own():
    "Also above 2^63, where a float key would merge neighbours"
    seeds = [0, 1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1]
    assert len({Noise(s, 1).draw(()).item() for s in seeds}) == len(seeds)
    assert len({Noise(s, 1).draw(()).item() for s in (5, np.int64(5), torch.tensor(5))}) == 1

def test_streams_are_far_apart_and_go_round():
    "A million images before two of 1,000 seeds, or torch's own manual_seed(0), share a stream"
    starts = sorted([0, *map(first_stream, range(1000))])
    assert min(b - a for a, b in zip(starts, starts[1:] + [2**32])) > 1e6
    z = Noise(0, 2, first=2**32 - 1 - first_stream(0)).draw((16,))
    assert torch.equal(z, torch.stack([torch.randn(16, generator=gen(k)) for k in (2**32 - 1, 0)]))

def test_neighbouring_streams_know_nothing_of_each_other():
    "Chi-square of 20,000 pairs in 100 equally likely boxes, of one image's number and another's"
    u = torch.special.ndtr(Noise(0, 20_000).draw((20,)).double()) * 10
    pairs = [(u[:-n, i], u[n:, j]) for n, i, j in ((1, 0, 0), (2, 0, 0), (1, 0, 1), (1, 16, 16))]
    for a, b in pairs + [(u[:, 0], u[:, j]) for j in (1, 8, 16)]:
        boxes = (a.long() * 10 + b.long()).bincount(minlength=100)
        assert scipy.stats.chisquare(boxes.numpy()).pvalue > 1e-3

def test_fresh_noise_without_a_seed():
    assert not torch.equal(Noise(None, 1).draw((4,)), Noise(None, 1).draw((4,)))
    assert not torch.equal(draw(ORACLE), draw(ORACLE))

# ---- the loop
def test_frames():
    "Contiguous, as networks may `view` them; where a walk stops, another may go on"
    d, kw = denoiser(), dict(times=[10, 7, 3, 0], seed=0)
    frames = frames_of(d, **kw)
    assert [f.t for f in frames] == [10, 7, 3, 0] and all(isinstance(f, Frame) for f in frames)
    assert d.net.times == [10, 7, 3]                         # one call a step
    assert torch.equal(frames[0].x, Noise(0, 4).draw((3,)))  # starts at the noise
    assert torch.equal(frames[-1].x, frames[-2].x0) and frames[-1].x0 is frames[-1].x
    for x_T in (None, frames[0].x): assert torch.equal(draw(d, x_T=x_T, **kw), frames[-1].x)
    assert [f.t for f in frames_of(d)] == list(range(10, -1, -1))
    _, middle, *_, end = frames = frames_of(d, step=ddim(), **kw)
    assert all(f.x.is_contiguous() and f.x0.is_contiguous() for f in frames)
    assert torch.equal(draw(d, step=ddim(), times=[7, 3, 0], x_T=middle.x), end.x)

@pytest.mark.parametrize('progress', [True, False])
@pytest.mark.parametrize('kind', [tuple, torch.tensor, np.array, iter, lambda t: range(10, -1, -2)])
def test_times_may_be_any_iterable_and_a_bar_counts_frames(kind, progress, capsys):
    times = [10, 8, 6, 4, 2, 0]
    x = sample(ORACLE, SHORT, (4, 3), times=kind(times), seed=0, progress=progress)
    assert torch.equal(x, draw(ORACLE, times=times, seed=0))
    out, err = capsys.readouterr()
    assert out == '' and ('6/6' in err if progress else err == '')

def test_stopping_early_asks_no_more():
    *_, frame = islice(trajectory(d := denoiser(), LINEAR, (2, 3), seed=0), 11)
    assert frame.t == 990 and len(d.net.times) == 11

# ---- precision
@pytest.mark.parametrize('weights, x_T, images', [
    (torch.float64, None, torch.float64), (torch.bfloat16, None, torch.float32),
    (torch.float16, torch.float16, torch.float32), (torch.float32, torch.float64, torch.float64)])
def test_images_are_float32_at_least_and_the_network_sees_its_own_precision(weights, x_T, images):
    d, seen = denoiser().to(weights), []
    d.net.register_forward_pre_hook(lambda net, args: seen.append(args[0].dtype))
    frames = frames_of(d, x_T=x_T and torch.zeros(4, 3, dtype=x_T))
    assert {f.x.dtype for f in frames} == {images} and set(seen) == {weights}

@pytest.mark.parametrize('step', [ancestral(), ddim(), dpm_solver_pp(), heun()], ids=repr)
def test_a_thousand_steps_of_a_network_in_16_bits_keep_the_width(step):
    "N(0, 1): the same noise, and x0 good to 0.4 %, so 1 %; were x in bfloat16, 20 % would be lost"
    class Exact(nn.Module):
        def __init__(self, dtype):
            super().__init__()
            self.one = nn.Parameter(torch.ones(1, dtype=dtype))
        def forward(self, x, t): return self.one * x * LINEAR.signal[t].to(x).view(-1, 1)
    want, *got = (draw(Denoiser(Exact(d), X0), LINEAR, (40, 100), step=step, seed=0).double().std()
                  for d in (torch.float64, torch.bfloat16, torch.float16))
    assert all(abs(std / want - 1) < 0.01 for std in got)

def test_a_denoiser_may_change_the_precision_of_a_walk():
    "Levels are float64, and a wrapper may compute in another precision"
    class Double(nn.Module):
        inner = denoiser().double()
        def forward(self, x_t, level, y=None):
            assert level.signal.dtype == torch.float64
            return Prediction(self.inner(x_t.double(), level).x0.float(), x_t, level)
    x_T = torch.randn(4, 3, generator=gen())
    exact = draw(Double.inner, x_T=x_T.double(), seed=0)
    within(draw(Double(), x_T=x_T, seed=0), exact.float(), 1e-5)

# ---- no footprints
def modes(d): return [m.training for m in d.modules()]

@pytest.mark.parametrize('arrange', [
    lambda d: d.train(), lambda d: d.eval(), lambda d: (d.eval(), d.net.body[2].train()),
    lambda d: (d.train(), d.net.eval())])
def test_modes_are_restored_and_dropout_is_off(arrange):
    "After a walk, and also between two steps"
    want = draw(d := denoiser(dropout=0.5).eval(), seed=0)
    arrange(d)
    before = modes(d)
    for frame in trajectory(d, SHORT, (4, 3), seed=0): assert modes(d) == before
    assert torch.equal(frame.x, want) and torch.equal(draw(d, seed=0), want) and modes(d) == before

def test_global_randomness_gradients_and_arguments_are_untouched():
    global_rng = lambda: [*torch.random.get_rng_state().tolist(), *np.random.get_state()[1]]
    rng, times, y = global_rng(), [10, 5, 0], torch.zeros(4).long()
    x_T = torch.randn(4, 3, generator=gen()).requires_grad_()
    before = x_T.detach().clone()
    x = draw(denoiser(), x_T=x_T, times=times, y=y)
    assert not x.requires_grad and not x.is_inference() and x_T.grad is None
    assert torch.equal(x_T, before) and times == [10, 5, 0] and (y == 0).all()
    assert global_rng() == rng

# ---- what is refused
@pytest.mark.parametrize('step', [ancestral(), ddim(0.5), dpm_solver_pp(), heun()], ids=repr)
@pytest.mark.parametrize('case', [
    (dict(times=[10, 5]), r'down to 0, not end with \[10, 5\]'),
    *[(dict(times=times), 'down to 0') for times in ([10], [], [0])],
    (dict(times=[10, 5, 5, 0]), '5 is followed by 5'),
    (dict(times=[8, 4, 0]),
     'times start at 8, but the noise is that of T = 10: give x_T, or start at 10'),
    *[(dict(times=[10, t, 0]), f't = {t}, which is outside 1..10') for t in (-1, 15)],
    *[(dict(times=[11, 4, 0], x_T=x_T), r't = 11, which is outside 1\.\.10')
      for x_T in (None, torch.zeros(4, 3))],
    (dict(times=[10, 0.5, 0]), r'such as Schedule\.times\(n\) makes, not \[10, 0\.5, 0\]: .*float',
     TypeError),
    (dict(times=torch.linspace(10, 0, 4)), r'times must be whole numbers.*6\.6667', TypeError),
    (dict(times=[10, math.nan, 0]), 'times must be whole numbers.*nan', TypeError),
    (dict(x_T=torch.zeros(4, 2)), r'x_T has shape \(4, 2\) but shape = \(4, 3\)'),
    (dict(x_T=torch.zeros(4, 3).long()), 'x_T must be float, not torch.int64', TypeError),
    (dict(y=torch.zeros(3)), '3 labels y for 4 images'), (dict(shape=()), 'holds no image'),
    (dict(shape=(0, 3)), r'shape = \(0, 3\) holds no image'),
    (dict(seed=-1), r'seed = -1 is outside 0\.\.2\^64-1'),
    (dict(seed=2**64), 'seed = 18446744073709551616'), (dict(first=-2), 'first = -2'),
    (dict(seed=1.5), 'seed = 1.5 .*whole', TypeError),
    *[(dict(step=step), r'is no solver; give one such as ancestral\(\), ddim\(\)', TypeError)
      for step in (ddim, 'ddim', None, fixed_small)]])
def test_bad_walks(step, case):
    kw, *told = case
    kw = dict(shape=(4, 3), step=step) | kw
    refused(lambda: draw(ORACLE, **kw), *told)
    refused(lambda: next(trajectory(ORACLE, SHORT, **kw)), *told)
