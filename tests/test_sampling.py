"The reverse process: exact where the truth is known, repeatable image by image, no footprints"
import inspect, math
from dataclasses import dataclass
from itertools import islice
import numpy as np, pytest, scipy.stats, torch
from conftest import gen, within
from torch import nn
from diffusion_scratch.data import mnist_mini
from diffusion_scratch.denoiser import V, X0, Denoiser, Prediction, clipped
from diffusion_scratch.loss import optimal
from diffusion_scratch.noising import q_sample
from diffusion_scratch.oracle import MixtureOracle
from diffusion_scratch.sampling import (Coefficients, Frame, Noise, Solver, ancestral,
                                        coefficient_table, first_stream, fixed_large, fixed_small,
                                        sample, trajectory)
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

class Net(nn.Module):
    "A network with dropout, so that its mode matters; it counts its calls"
    calls = 0
    def __init__(self, p=0., dtype=torch.float32):
        super().__init__()
        self.w, self.drop = nn.Parameter(torch.tensor(0.3, dtype=dtype)), nn.Dropout(p)
    def forward(self, x, t, y=None):
        self.calls += 1
        return self.drop(self.w * x)

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
def test_a_predicted_image_loses_variance_and_no_mean(eta):
    "eq-lost-width: with the posterior mean for x0, a^2 E Var(x0 | x_t) of variance is missing"
    n, g = 200_000, gen(5)
    means, std, pi = torch.tensor([[-0.8], [0.6]], dtype=torch.float64), 0.2, torch.tensor([.3, .7])
    k = torch.multinomial(pi, n, replacement=True, generator=g)
    x0, eps, z = torch.randn(3, n, 1, generator=g, dtype=torch.float64)
    x0 = means[k] + std * x0
    for i, j in ((600, 100), (400, 300), (300, 290)):
        t, s = LINEAR.at(i, x0), LINEAR.at(j, x0)
        x_t = q_sample(x0, t, eps)
        c = ddim(eta).coefficients(LINEAR.at(i, x0[0]), LINEAR.at(j, x0[0]))
        guess = MixtureOracle(means, std, pi)(x_t, t).x0
        true, ours = (c.x0 * x + c.x_t * x_t + c.std * z for x in (x0, guess))
        lost = (c.x0**2 * (x0 - guess).square().mean()).item()
        ours, true = ours.flatten(), true.flatten()
        within(true.mean(), s.signal[0, 0] * x0.mean(), 4 / math.sqrt(n))
        within(ours.mean(), true.mean(), 4 * math.sqrt(lost / n))
        within(true.var(), s.alpha_bar[0, 0] * x0.var() + s.noise[0, 0]**2, 4 * math.sqrt(2 / n))
        within(ours.var() + lost, true.var(), 8 * math.sqrt(lost / n))
    assert lost < 2e-3

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

@pytest.mark.parametrize('kw, error, match', [
    (dict(seed=-1), ValueError, r'seed = -1 is outside 0\.\.2\^64-1'),
    (dict(seed=2**64), ValueError, 'seed = 18446744073709551616'),
    (dict(seed=1.5), TypeError, 'seed = 1.5 .*whole'),
    (dict(seed=0, first=-2), ValueError, 'first = -2')])
def test_bad_seeds(kw, error, match):
    with pytest.raises(error, match=match): Noise(**kw, n=1)
    with pytest.raises(error, match=match): draw(ORACLE, **kw)

# ---- the loop
def test_frames():
    d, kw = Denoiser(Net()), dict(times=[10, 7, 3, 0], seed=0)
    frames = frames_of(d, **kw)
    assert [f.t for f in frames] == [10, 7, 3, 0] and all(isinstance(f, Frame) for f in frames)
    assert d.net.calls == 3                                  # one a step
    assert torch.equal(frames[0].x, Noise(0, 4).draw((3,)))  # starts at the noise
    assert torch.equal(frames[-1].x, frames[-2].x0) and frames[-1].x0 is frames[-1].x
    for x_T in (None, frames[0].x): assert torch.equal(draw(d, x_T=x_T, **kw), frames[-1].x)
    assert [f.t for f in frames_of(d)] == list(range(10, -1, -1))

def test_each_frame_follows_from_the_one_before():
    "The loop by hand (eq-ancestral), to float32's rounding: ours forms its factors in float64"
    noise, frames = Noise(3, 4), frames_of(ORACLE, step=ancestral(fixed_large), seed=3)
    x = noise.draw((3,))
    for f, t in zip(frames, range(10, 0, -1)):
        within(f.x, x, 1e-6)
        now, then = SHORT.at(t, x), SHORT.at(t - 1, x)
        assert torch.equal(f.x0, ORACLE(f.x, now).x0)
        x = fixed_large(f.x0, f.x, now, then).sample(noise.draw((3,)))
    within(frames[-1].x, x, 1e-6)

@pytest.mark.parametrize('times', [[10, 7, 3, 0], [10, 5, 8, 2, 0]], ids=['down', 'down and up'])
def test_networks_are_given_contiguous_images(times):
    "Networks may `view` what they are given"
    frames = list(trajectory(Denoiser(Net()), SHORT, (4, 3, 2), times=times, seed=0))
    assert len(frames) == 4 and all(f.x.is_contiguous() and f.x0.is_contiguous() for f in frames)

@pytest.mark.parametrize('progress', [True, False])
@pytest.mark.parametrize('kind', [tuple, torch.tensor, np.array, iter, lambda t: range(10, -1, -2)])
def test_times_may_be_any_iterable(kind, progress):
    times = [10, 8, 6, 4, 2, 0]
    x = sample(ORACLE, SHORT, (4, 3), times=kind(times), seed=0, progress=progress)
    assert torch.equal(x, draw(ORACLE, times=times, seed=0))

def test_starting_in_the_middle():
    "At a low level the mode survives"
    x0 = torch.tensor([[-0.7, 0., 0.5]]).expand(50, 3)
    x_t = q_sample(x0, SHORT.at(2, x0), torch.randn(x0.shape, generator=gen()))
    frame, *_, end = trajectory(ORACLE, SHORT, (50, 3), x_T=x_t, times=[2, 1, 0], seed=1)
    assert frame.t == 2 and torch.equal(frame.x, x_t) and (end.x - x0).abs().mean() < 0.15

def test_stopping_early_asks_no_more():
    d = Denoiser(Net(), V)
    *_, frame = islice(trajectory(d, LINEAR, (2, 3), seed=0), 11)
    assert frame.t == 990 and d.net.calls == 11

@pytest.mark.parametrize('progress', [True, False])
def test_progress_bar(progress, capsys):
    sample(ORACLE, SHORT, (2, 3), progress=progress)
    out, err = capsys.readouterr()
    assert out == '' and ('11/11' in err if progress else err == '')

# ---- precision
@pytest.mark.parametrize('weights, x_T, images', [
    (torch.float64, None, torch.float64), (torch.bfloat16, None, torch.float32),
    (torch.float16, torch.float16, torch.float32), (torch.float32, torch.float64, torch.float64)])
def test_images_are_float32_at_least_and_the_network_sees_its_own_precision(weights, x_T, images):
    seen = []
    class Seeing(Net):
        def forward(self, x, t): seen.append(x.dtype); return super().forward(x, t)
    frames = frames_of(Denoiser(Seeing(dtype=weights), V), x_T=x_T and torch.zeros(4, 3, dtype=x_T))
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
        def __init__(self): super().__init__(); self.inner = Denoiser(Net().double(), V)
        def forward(self, x_t, level, y=None):
            assert level.signal.dtype == torch.float64
            return Prediction(self.inner(x_t.double(), level).x0.float(), x_t, level)
    x_T = torch.randn(4, 3, generator=gen())
    exact = draw(Denoiser(Net().double(), V), x_T=x_T.double(), seed=0)
    within(draw(Double(), x_T=x_T, seed=0), exact.float(), 1e-5)

# ---- no footprints
def modes(d): return [m.training for m in d.modules()]

@pytest.mark.parametrize('arrange', [
    lambda d: d.train(), lambda d: d.eval(), lambda d: (d.eval(), d.net.drop.train()),
    lambda d: (d.train(), d.net.eval())])
def test_modes_are_restored_and_dropout_is_off(arrange):
    "After a walk, and also between two steps"
    d = Denoiser(Net(p=0.5), V)
    want = draw(d.eval(), seed=0)
    arrange(d)
    before = modes(d)
    for frame in trajectory(d, SHORT, (4, 3), seed=0): assert modes(d) == before
    assert torch.equal(frame.x, want) and torch.equal(draw(d, seed=0), want) and modes(d) == before

def test_modes_are_restored_when_the_network_fails():
    class Failing(Net):
        def forward(self, x, t):
            if t[0] < 5: raise RuntimeError('out of memory')
            return super().forward(x, t)
    d = Denoiser(Failing(), V).train()
    with pytest.raises(RuntimeError, match='out of memory'): draw(d, seed=0)
    assert all(modes(d)) and torch.is_grad_enabled()

@pytest.mark.parametrize('part', [lambda d: d, lambda d: d.denoiser, lambda d: d.denoiser.net])
def test_modes_changed_by_the_caller_between_steps_stay(part):
    "Whoever trains the network between two frames finds it so; the walk has no dropout"
    d = clipped(Denoiser(Net(p=0.5), V)).eval()
    frames = trajectory(d, SHORT, (4, 3), seed=0)
    next(frames); part(d).train(); next(frames)
    assert all(modes(part(d)))
    assert torch.equal(list(frames)[-1].x, draw(d.eval(), seed=0))

def test_global_randomness_gradients_and_arguments_are_untouched():
    global_rng = lambda: [*torch.random.get_rng_state().tolist(), *np.random.get_state()[1]]
    rng = global_rng()
    x_T, times, y = torch.randn(4, 3, generator=gen()).requires_grad_(), [10, 5, 0], torch.zeros(4)
    before = x_T.detach().clone()
    x = draw(Denoiser(Net(), V), x_T=x_T, times=times, y=y)
    assert not x.requires_grad and not x.is_inference() and x_T.grad is None
    assert torch.equal(x_T, before) and times == [10, 5, 0] and (y == 0).all()
    assert global_rng() == rng

# ---- the right distribution

@pytest.mark.parametrize('betas', [
    linear_betas(), cosine_betas(), zero_terminal_snr(linear_betas())])
def test_mixture_as_a_whole(betas):
    "Kolmogorov-Smirnov against the mixture's distribution function; a shift of 0.04 is seen"
    modes, weights, std, schedule = torch.tensor([-0.5, 0.7]), [0.3, 0.7], 0.2, Schedule(betas)
    class Cloud(nn.Module):  # an image of many points that ignore each other
        def forward(self, x, level, y=None):
            a, s = level.signal[..., None], level.noise[..., None]
            var, d = a**2 * std**2 + s**2, x[..., None] - a * modes
            r = (torch.tensor(weights).log() - d**2 / (2 * var)).softmax(-1)
            return Prediction((r * (modes + a * std**2 / var * d)).sum(-1).to(x), x, level)
    x = draw(Cloud(), schedule, (2, 2000), times=schedule.times(500), seed=2).flatten().numpy()
    cdf = lambda z: scipy.stats.norm.cdf(z[:, None], modes, std) @ weights
    assert scipy.stats.kstest(x, cdf).pvalue > 1e-3
    assert scipy.stats.kstest(x + 0.04, cdf).pvalue < 1e-4

def test_real_digits_come_out_of_the_finite_set_as_they_are():
    known = mnist_mini()[:][0][::25]
    x = draw(MixtureOracle(known), LINEAR, (5, 1, 28, 28), times=LINEAR.times(25), seed=3)
    assert all((known == image).flatten(1).all(1).any() for image in x)

# ---- a solver of one's own
@dataclass(frozen=True, repr=False)
class halfway(Solver):
    "DDIM whose steps to t > 0 are visited twice, the second time doing nothing"
    def visits(self, times): return [t for t in times[:-1] for _ in range(2)] + [0]
    def coefficients(self, t, s): return ddim().coefficients(t, s)

def test_a_solver_may_choose_its_visits():
    "The walk given is checked, frames follow the visits, a row from t to t changes nothing"
    frames = frames_of(ORACLE, step=halfway(), times=[10, 4, 0], seed=0)
    assert [f.t for f in frames] == [10, 10, 4, 4, 0] and torch.equal(frames[0].x, frames[1].x)
    within(frames[-1].x, draw(ORACLE, step=ddim(), times=[10, 4, 0], seed=0), 1e-6)
    with pytest.raises(ValueError, match='4 is followed by 4'):
        draw(ORACLE, step=halfway(), times=[10, 4, 4, 0])

@dataclass(frozen=True, repr=False)
class averaging(Solver):
    "Goes to the mean of this prediction and the one before, so that `previous` can be told"
    def coefficients(self, t, s):
        half = torch.full_like(t.signal, 0.5)
        half[0] = 1
        return Coefficients(half, 0 * half, 1 - half, 0 * half)

def test_previous_is_the_prediction_one_step_before():
    frames = frames_of(ORACLE, step=averaging(), times=[10, 8, 5, 2, 0], seed=0)
    assert torch.equal(frames[1].x, frames[0].x0)
    for before, now, after in zip(frames, frames[1:], frames[2:]):
        assert torch.equal(after.x, 0.5 * now.x0 + 0.5 * before.x0)

# ---- what is refused
@pytest.mark.parametrize('step', [ddim, 'ddim', None, fixed_small])
def test_what_is_no_solver(step):
    with pytest.raises(TypeError, match=r'is no solver; give one such as ancestral\(\), ddim\(\)'):
        draw(ORACLE, step=step)

@pytest.mark.parametrize('step', [ancestral(), ddim(0.5), dpm_solver_pp(), heun()], ids=repr)
@pytest.mark.parametrize('kw, error, match', [
    (dict(times=[10, 5]), ValueError, r'down to 0, not end with \[10, 5\]'),
    *[(dict(times=times), ValueError, 'down to 0') for times in ([10], [], [0])],
    (dict(times=[10, 5, 5, 0]), ValueError, '5 is followed by 5'),
    (dict(times=[8, 4, 0]), ValueError,
     'times start at 8, but the noise is that of T = 10: give x_T, or start at 10'),
    *[(dict(times=[10, t, 0]), ValueError, f't = {t}, which is outside 1..10') for t in (-1, 15)],
    *[(dict(times=[11, 4, 0], x_T=x_T), ValueError, r't = 11, which is outside 1\.\.10')
      for x_T in (None, torch.zeros(4, 3))],
    (dict(times=[10, 0.5, 0]), TypeError,
     r'such as Schedule\.times\(n\) makes, not \[10, 0\.5, 0\]: .*float'),
    (dict(times=torch.linspace(10, 0, 4)), TypeError, r'times must be whole numbers.*6\.6667'),
    (dict(times=[10, math.nan, 0]), TypeError, 'times must be whole numbers.*nan'),
    (dict(x_T=torch.zeros(4, 2)), ValueError, r'x_T has shape \(4, 2\) but shape = \(4, 3\)'),
    (dict(x_T=torch.zeros(4, 3).long()), TypeError, 'x_T must be float, not torch.int64'),
    (dict(y=torch.zeros(3)), ValueError, '3 labels y for 4 images'),
    (dict(shape=(0, 3)), ValueError, r'shape = \(0, 3\) holds no image'),
    (dict(shape=()), ValueError, 'holds no image')])
def test_bad_walks(step, kw, error, match):
    kw = dict(shape=(4, 3), step=step) | kw
    with pytest.raises(error, match=match): draw(ORACLE, **kw)
    with pytest.raises(error, match=match): next(trajectory(ORACLE, SHORT, **kw))

def test_options_are_by_name_and_the_same_in_both():
    a, b = (list(inspect.signature(f).parameters.values()) for f in (trajectory, sample))
    assert [p.name for p in a] == [p.name for p in b if p.name != 'progress']
    assert all(p.kind == p.KEYWORD_ONLY for p in b[3:])
