"""The reverse process: exact where the truth is known, repeatable image by image, and without
footprints"""
import inspect, math
from dataclasses import dataclass
import numpy as np, pytest, scipy.stats, torch
from torch import nn
from diffusion_scratch.data import mnist_mini
from diffusion_scratch.denoiser import V, X0, Denoiser, Prediction, clipped
from diffusion_scratch.noising import Gaussian, q_posterior, q_sample
from diffusion_scratch.oracle import GaussianOracle, MixtureOracle
from diffusion_scratch.sampling import (
    Coefficients,
    Frame,
    Noise,
    Solver,
    ancestral,
    coefficient_table,
    fixed_large,
    fixed_small,
)
from diffusion_scratch.sampling import sample, trajectory
from diffusion_scratch.solvers import ddim, dpm_solver_pp, heun
from diffusion_scratch.schedule import Schedule, cosine_betas, linear_betas, zero_terminal_snr

LINEAR = Schedule(linear_betas())
SHORT = Schedule(linear_betas(10, 0.01, 0.6))
def draw(denoiser, schedule=SHORT, shape=(4, 3), **kw):
    return sample(denoiser, schedule, shape, progress=False, **kw)
def gen(seed=0): return torch.Generator().manual_seed(seed)

class Net(nn.Module):
    "A network with dropout, so that its mode matters; it counts its calls"
    def __init__(self, p=0.0, dtype=torch.float32):
        super().__init__()
        self.w, self.drop, self.calls = (
            nn.Parameter(torch.tensor(0.3, dtype=dtype)),
            nn.Dropout(p),
            0,
        )
    def forward(self, x, t, y=None):
        self.calls += 1
        return self.drop(self.w * x + (0 if y is None else y.view(-1, *[1] * (x.ndim - 1))))

ORACLE = MixtureOracle(
    torch.tensor([[-0.7, 0.0, 0.5], [0.4, 0.1, -0.5]]),
    0.1,
    torch.tensor([0.3, 0.7]),
    labels=torch.tensor([0, 1]),
)

# ------------------------------------------------------------ one step
def test_the_two_variances_at_neighbouring_steps():
    """eq-total-variance, as in Ho et al. 2020, section 3.2: beta_t, and beta_t (1 - ab_{t-1}) /
    (1 - ab_t)"""
    t = torch.arange(2, 1001)
    x = torch.zeros(999, 1, dtype=torch.float64)
    ab, beta = LINEAR.alpha_bar, LINEAR.betas[1:]
    small, large = (
        v(x, x, LINEAR.at(t, x), LINEAR.at(t - 1, x)).std.flatten() ** 2
        for v in (fixed_small, fixed_large)
    )
    torch.testing.assert_close(large, beta, rtol=1e-9, atol=0)
    torch.testing.assert_close(small, beta * (1 - ab[1:-1]) / (1 - ab[2:]), rtol=1e-9, atol=0)

@pytest.mark.parametrize('variance', [fixed_small, fixed_large])
@pytest.mark.parametrize(
    'schedule', [LINEAR, Schedule(cosine_betas(20)), Schedule(zero_terminal_snr(linear_betas(50)))]
)
def test_the_last_step_is_the_prediction(variance, schedule):
    "At s = 0 the coefficients are exactly 1, 0, 0 and 0, from any t"
    t = torch.arange(1, schedule.T + 1)
    c = ancestral(variance).coefficients(schedule.at(t, t), schedule.at(0, t))
    assert (c.x0 == 1).all() and not any(z.any() for z in (c.x_t, c.previous, c.std))

def test_mixed_levels_in_one_batch():
    "Only the images that arrive at 0 get no noise"
    x = torch.zeros(3, 2)
    p = fixed_large(
        x, x, SHORT.at(torch.tensor([5, 5, 1]), x), SHORT.at(torch.tensor([3, 0, 0]), x)
    )
    assert (p.std.flatten() > 0).tolist() == [True, False, False]

@pytest.mark.parametrize('variance', [fixed_small, fixed_large])
def test_a_step_is_its_gaussian(variance):
    """eq-ancestral, eq-coefficients: for any image and any levels the table says what the
    posterior says"""
    x_t, x0 = torch.randn(2, 200, generator=gen(), dtype=torch.float64)
    s = torch.randint(0, 999, (200,), generator=gen(1))
    t, s = LINEAR.at(
        (s + torch.randint(1, 500, (200,), generator=gen(2))).clamp(max=1000), x0
    ), LINEAR.at(s, x0)
    c, p = ancestral(variance).coefficients(t, s), variance(x0, x_t, t, s)
    torch.testing.assert_close(c.x0 * x0 + c.x_t * x_t, p.mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(c.std, p.std, rtol=0, atol=0)

def test_a_table_has_a_row_for_each_step_down_and_up():
    "Down: the step of the solver; up: eq-step, with the variance that brings x_s to x_t"
    table = coefficient_table(ddim(), SHORT, [10, 4, 7, 0])
    assert len(table) == 3 and table[2] == (1, 0, 0, 0)
    up = table[1]
    assert (up.x0, up.previous) == (0, 0)
    assert up.x_t == pytest.approx((SHORT.signal[7] / SHORT.signal[4]).item(), rel=1e-12)
    assert up.x_t**2 * SHORT.noise[4] ** 2 + up.std**2 == pytest.approx(
        SHORT.noise[7].item() ** 2, rel=1e-12
    )

def test_solvers_are_data_with_a_name():
    assert repr(ddim(0.5)) == 'ddim(eta=0.5)' and repr(dpm_solver_pp()) == 'dpm_solver_pp(eta=0.0)'
    assert (
        repr(ancestral(fixed_large)) == 'ancestral(variance=fixed_large)'
        and repr(heun()) == 'heun(rule=exponential)'
    )
    assert (
        ddim(0.5) == ddim(eta=0.5) != ddim()
        and len({ddim(), ddim(0.0), ancestral(), ancestral(fixed_small)}) == 2
    )
    with pytest.raises(AttributeError): ddim().eta = 1.

# ------------------------------------------------------------ noise
def test_noise_of_an_image_depends_on_seed_and_number_alone():
    whole = Noise(7, 6)
    first, second = whole.draw((2, 3)), whole.draw((2, 3))
    for n, start in ((1, 0), (3, 2), (2, 4)):
        part = Noise(7, n, first=start)
        assert torch.equal(part.draw((2, 3)), first[start : start + n]) and torch.equal(
            part.draw((2, 3)), second[start : start + n]
        )
    golden = (1 + math.sqrt(5)) / 2  # eq-streams, in float64
    stream = torch.Generator().manual_seed(math.floor(2**32 * ((7 + 1) * golden % 1)) + 3)
    for z in (first, second):
        assert torch.equal(z[3].flatten(), torch.randn(16, generator=stream)[:6])
    assert (
        first.dtype == torch.float32
        and first.is_contiguous()
        and len({tuple(r.flatten().tolist()) for r in torch.cat([first, second])}) == 12
    )

@pytest.mark.parametrize('times', [[10, 7, 3, 0], [10, 5, 8, 2, 0]], ids=['down', 'down and up'])
def test_networks_are_given_contiguous_images(times):
    "Networks may `view` what they are given"
    frames = list(trajectory(Denoiser(Net()), SHORT, (4, 3, 2), times=times, seed=0))
    assert len(frames) == 4 and all(f.x.is_contiguous() and f.x0.is_contiguous() for f in frames)

def test_every_seed_is_its_own():
    "Also above 2^63, where a float key would merge neighbours"
    seeds = [0, 1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1]
    assert len({Noise(s, 1).draw(()).item() for s in seeds}) == len(seeds)
    # 0: torch's own, of manual_seed(0)
    starts = sorted([0] + [Noise(s, 1).streams[0].initial_seed() for s in range(1000)])
    # images each, before two share a stream
    assert min(b - a for a, b in zip(starts, starts[1:] + [2**32])) > 1e6
    after = 2**32 - Noise(0, 1).streams[0].initial_seed()
    # the streams go round
    assert [s.initial_seed() for s in Noise(0, 2, first=after - 1).streams] == [2**32 - 1, 0]
    assert (
        Noise(np.int64(5), 1).draw(()) == Noise(torch.tensor(5), 1).draw(()) == Noise(5, 1).draw(())
    )

def test_noise_is_standard_normal_within_and_across_images():
    for z in (Noise(0, 2).draw((20_000,)).flatten(), Noise(0, 4000).draw((2,)).flatten()):
        assert scipy.stats.kstest(z.numpy(), 'norm').pvalue > 1e-3

def test_neighbouring_streams_know_nothing_of_each_other():
    """Generators that start at neighbouring numbers: chi-square of 20,000 pairs, in 100 equally
    likely boxes, of one image's number and another's, or another of its own"""
    z = Noise(0, 20_000).draw((20,)).double()
    u = torch.special.ndtr(z) * 10
    for a, b in (
        (u[:-1, 0], u[1:, 0]),
        (u[:-2, 0], u[2:, 0]),
        (u[:-1, 0], u[1:, 1]),
        (u[:-1, 16], u[1:, 16]),
        (u[:, 0], u[:, 1]),
        (u[:, 0], u[:, 8]),
        (u[:, 0], u[:, 16]),
    ):
        assert (
            scipy.stats.chisquare((a.long() * 10 + b.long()).bincount(minlength=100).numpy()).pvalue
            > 1e-3
        )

def test_fresh_noise_without_a_seed():
    assert not torch.equal(Noise(None, 1).draw((4,)), Noise(None, 1).draw((4,)))
    assert not torch.equal(draw(ORACLE), draw(ORACLE))

@pytest.mark.parametrize(
    'kw, error, match',
    [
        (dict(seed=-1), ValueError, r'seed = -1 is outside 0\.\.2\^64-1'),
        (dict(seed=2**64), ValueError, 'seed = 18446744073709551616'),
        (dict(seed=1.5), TypeError, 'float'),
        (dict(seed=0, first=-2), ValueError, 'first = -2'),
    ],
)
def test_bad_seeds(kw, error, match):
    with pytest.raises(error, match=match): Noise(**kw, n=1)
    with pytest.raises(error, match=match): draw(ORACLE, **kw)

# ------------------------------------------------------------ the loop
def test_frames():
    d = Denoiser(Net())
    frames = list(trajectory(d, SHORT, (4, 3), times=[10, 7, 3, 0], seed=0))
    assert [f.t for f in frames] == [10, 7, 3, 0] and all(isinstance(f, Frame) for f in frames)
    assert d.net.calls == 3                                  # one a step
    assert torch.equal(frames[0].x, Noise(0, 4).draw((3,)))  # starts at the noise
    assert torch.equal(frames[-1].x, frames[-2].x0) and frames[-1].x0 is frames[-1].x
    assert torch.equal(draw(d, times=[10, 7, 3, 0], seed=0), frames[-1].x)
    assert [f.t for f in trajectory(d, SHORT, (1, 3))] == list(range(10, -1, -1))

def test_each_frame_follows_from_the_one_before():
    """The loop by hand, with its noise (eq-ancestral), to float32's rounding: the sampler forms
    the factors of its steps in float64, all at once"""
    noise, frames = Noise(3, 4), list(
        trajectory(ORACLE, SHORT, (4, 3), step=ancestral(fixed_large), seed=3)
    )
    x = noise.draw((3,))
    for f, t in zip(frames, range(10, 0, -1)):
        torch.testing.assert_close(f.x, x, rtol=0, atol=1e-6)
        now, then = SHORT.at(t, x), SHORT.at(t - 1, x)
        assert torch.equal(f.x0, ORACLE(f.x, now).x0)
        x = fixed_large(f.x0, f.x, now, then).sample(noise.draw((3,)))
    torch.testing.assert_close(frames[-1].x, x, rtol=0, atol=1e-6)

@pytest.mark.parametrize(
    'times',
    [
        range(10, -1, -2),
        torch.tensor([10, 8, 6, 4, 2, 0]),
        np.array([10, 8, 6, 4, 2, 0]),
        (10, 8, 6, 4, 2, 0),
    ],
)
def test_times_of_any_kind_of_sequence(times):
    assert torch.equal(
        draw(ORACLE, times=times, seed=0), draw(ORACLE, times=[10, 8, 6, 4, 2, 0], seed=0)
    )

def test_an_image_is_the_same_in_any_batch():
    whole = draw(ORACLE, LINEAR, (7, 3), times=LINEAR.times(20), seed=5)
    for n, first in ((1, 0), (2, 3), (4, 3)):
        torch.testing.assert_close(
            draw(ORACLE, LINEAR, (n, 3), times=LINEAR.times(20), seed=5, first=first),
            whole[first : first + n],
            rtol=1e-5,
            atol=1e-6,
        )

def test_x_T_made_of_the_same_noise_changes_nothing():
    x_T = Noise(5, 4).draw((3,))
    before = x_T.clone()
    assert torch.equal(draw(ORACLE, x_T=x_T, seed=5), draw(ORACLE, seed=5)) and torch.equal(
        x_T, before
    )

def test_starting_in_the_middle():
    x0 = torch.tensor([[-0.7, 0., 0.5]]).expand(50, 3)
    x_t = q_sample(x0, SHORT.at(2, x0), torch.randn(x0.shape, generator=gen()))
    ends = draw(ORACLE, shape=(50, 3), x_T=x_t, times=[2, 1, 0], seed=1)
    assert (ends - x0).abs().mean() < 0.15                    # at a low level the mode survives
    frame = next(trajectory(ORACLE, SHORT, (50, 3), x_T=x_t, times=[2, 0]))
    assert frame.t == 2 and torch.equal(frame.x, x_t)

def test_a_walk_first_walked_in_inference_mode_gives_gradients_later():
    schedule = Schedule(linear_betas(10, 0.01, 0.6))
    with torch.inference_mode(): first = draw(Denoiser(Net(), V), schedule, (2, 3), seed=0)
    class Looking(nn.Module):
        def forward(self, x_t, level, y=None):
            with torch.enable_grad():
                loss = (
                    Denoiser(Net(), V)(x := x_t.detach().requires_grad_(), level).x0.square().sum()
                )
            assert torch.autograd.grad(loss, x)[0].any()
            return Denoiser(Net(), V)(x_t, level)
    assert torch.equal(draw(Looking(), schedule, (2, 3), seed=0), first)

def test_stopping_early_asks_no_more():
    d = Denoiser(Net(), V)
    for frame in trajectory(d, LINEAR, (2, 3), seed=0):
        if frame.t <= 990: break
    assert frame.t == 990 and d.net.calls == 11

def test_labels_reach_the_denoiser():
    for label, mode in ((0, [-0.7, 0., 0.5]), (1, [0.4, 0.1, -0.5])):
        x = draw(
            ORACLE, LINEAR, (40, 3), times=LINEAR.times(50), y=torch.full((40,), label), seed=1
        )
        assert (x - torch.tensor(mode)).abs().max() < 0.6
    assert not torch.equal(
        draw(Denoiser(Net(), V), y=torch.tensor([0, 1, 2, 3]), seed=0),
        draw(Denoiser(Net(), V), seed=0),
    )

@pytest.mark.parametrize('progress', [True, False])
def test_progress_bar(progress, capsys):
    sample(ORACLE, SHORT, (2, 3), seed=0, progress=progress)
    sample(ORACLE, SHORT, (2, 3), times=[10, 5, 0], seed=0, progress=progress)
    out, err = capsys.readouterr()
    assert out == '' and (('11/11' in err and '3/3' in err) if progress else err == '')

# ------------------------------------------------------------ precision
def test_images_are_float32_at_least_and_the_network_sees_its_own_precision():
    seen = []
    class Seeing(Net):
        def forward(self, x, t, y=None): seen.append(x.dtype); return super().forward(x, t, y)
    for weights, x_T, images in (
        (torch.float64, None, torch.float64),
        (torch.bfloat16, None, torch.float32),
        (torch.float16, torch.float16, torch.float32),
        (torch.float32, torch.float64, torch.float64),
    ):
        start = None if x_T is None else torch.zeros(4, 3, dtype=x_T)
        frames = list(
            trajectory(Denoiser(Seeing(dtype=weights), V), SHORT, (4, 3), x_T=start, seed=0)
        )
        assert {f.x.dtype for f in frames} == {images} and seen.pop() == weights

@pytest.mark.parametrize('step', [ancestral(), ddim(), dpm_solver_pp(), heun()], ids=repr)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_thousand_steps_of_a_network_in_16_bits_keep_the_width(step, dtype):
    """The exact denoiser of N(0, 1), computed in 16 bits: x0 = signal x_t. The std of 4,000
    numbers is that of float64, within 4 standard errors
    of the difference of two draws of the same noise and 1 %, as 16 bits predict x0 to 0.4 %
    at best. Were x kept in bfloat16, 20 % would be lost
    """
    class Exact(nn.Module):
        def __init__(self, dtype):
            super().__init__()
            self.one = nn.Parameter(torch.ones(1, dtype=dtype))
        def forward(self, x, t): return self.one * x * LINEAR.signal[t].to(x).view(-1, 1)
    std = {
        d: draw(Denoiser(Exact(d), X0), LINEAR, (40, 100), step=step, seed=0).double().std().item()
        for d in (dtype, torch.float64)
    }
    assert abs(std[dtype] / std[torch.float64] - 1) < 0.01

# ------------------------------------------------------------ no footprints
def modes(d): return [m.training for m in d.modules()]

@pytest.mark.parametrize(
    'arrange',
    [
        lambda d: d.train(),
        lambda d: d.eval(),
        lambda d: (d.eval(), d.net.drop.train()),
        lambda d: (d.train(), d.net.eval()),
    ],
)
def test_modes_are_restored_and_dropout_is_off(arrange):
    d = Denoiser(Net(p=0.5), V)
    want = draw(d.eval(), seed=0)
    arrange(d)
    before = modes(d)
    # also between two steps
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

@pytest.mark.parametrize(
    'part',
    [lambda d: d, lambda d: d.denoiser, lambda d: d.denoiser.net],
    ids=['wrapper', 'denoiser', 'network'],
)
def test_modes_changed_by_the_caller_between_steps_stay(part):
    """Whoever trains the network between two frames, by whatever name it is known, finds it as it
    was left, and the walk has no dropout"""
    d = clipped(Denoiser(Net(p=0.5), V)).eval()
    frames = trajectory(d, SHORT, (4, 3), seed=0)
    next(frames); part(d).train(); next(frames)
    assert all(modes(part(d)))
    assert torch.equal(list(frames)[-1].x, draw(d.eval(), seed=0))

def test_a_denoiser_may_change_the_precision_of_a_walk():
    """Levels are cast once, for the images of the walk; a wrapper that computes in another
    precision gets them in that"""
    class Double(nn.Module):
        def __init__(self): super().__init__(); self.inner = Denoiser(Net().double(), V)
        def forward(self, x_t, level, y=None):
            assert (
                level.to(x_t).signal.dtype == torch.float32 and level.signal.dtype == torch.float64
            )
            return Prediction(self.inner(x_t.double(), level).x0.float(), x_t, level)
    x_T = torch.randn(4, 3, generator=gen())
    exact = draw(Denoiser(Net().double(), V), x_T=x_T.double(), step=ancestral(), seed=0)
    torch.testing.assert_close(draw(Double(), x_T=x_T, seed=0), exact.float(), rtol=0, atol=1e-5)

def test_global_randomness_and_gradients_are_untouched():
    torch_rng, numpy_rng = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    x_T, times, y = torch.randn(4, 3, generator=gen()).requires_grad_(), [10, 5, 0], torch.zeros(4)
    x = draw(Denoiser(Net(), V), x_T=x_T, times=times, y=y)
    assert (
        not x.requires_grad
        and not x.is_inference()
        and x_T.grad is None
        and times == [10, 5, 0]
        and (y == 0).all()
    )
    assert (
        torch.equal(torch.random.get_rng_state(), torch_rng)
        and (np.random.get_state()[1] == numpy_rng).all()
    )

# ------------------------------------------------------------ the right distribution
def exact_variance(data_var):
    "The law of total variance for N(mean, data_var): the step that makes no error at any length"
    def variance(x0, x_t, t, s):
        r = 1 - t.snr / s.snr
        var = (s.noise**2 * r + s.alpha_bar * r**2 / (1 / data_var + t.snr)).where(
            s.t.view_as(r) > 0, 0.0
        )
        return Gaussian(q_posterior(x0, x_t, t, s).mean, var.sqrt().to(x_t))
    return variance

def test_gaussian_moments_at_any_number_of_steps():
    "With the exact variance three steps suffice; with either of the paper's they do not"
    n, times, oracle = (
        4000,
        [1000, 500, 1, 0],
        GaussianOracle(torch.tensor([0.3]), torch.tensor([[0.25]])),
    )
    def moments(variance):
        x = draw(oracle, LINEAR, (n, 1), step=ancestral(variance), times=times, seed=0)
        return x.mean().item(), x.var().item()
    mean, var = moments(exact_variance(0.25))
    assert abs(mean - 0.3) < 4 * 0.5 / math.sqrt(n) and abs(var / 0.25 - 1) < 4 * math.sqrt(2 / n)
    assert moments(fixed_small)[1] < 0.7 * 0.25 and moments(fixed_large)[1] > 1.2 * 0.25

def test_correlated_gaussian_moments():
    """Mean and covariance of a 3-D Gaussian, 300 steps of an even schedule, each entry within 4.5
    standard errors and 2%"""
    mean, A = torch.tensor([0.5, -0.3, 0.1]), torch.tensor(
        [[0.6, 0.0, 0.0], [-0.4, 0.3, 0.0], [0.2, 0.2, 0.4]]
    )
    cov, n = A @ A.T, 2000
    snr = torch.logspace(3.5, -4, 300, dtype=torch.float64)
    ab = torch.cat([torch.ones(1, dtype=torch.float64), snr / (1 + snr)])
    x = draw(
        GaussianOracle(mean, cov),
        Schedule(1 - ab[1:] / ab[:-1]),
        (n, 3),
        step=ancestral(fixed_large),
        seed=1,
    )
    assert ((x.mean(0) - mean) / (cov.diagonal() / n).sqrt()).abs().max() < 4.5
    se = ((cov**2 + cov.diagonal().outer(cov.diagonal())) / n).sqrt()
    # 2% more, for steps that are not infinitely short
    assert ((x.T.cov() - cov).abs() < 4.5 * se + 0.02 * cov.max()).all()

@pytest.mark.parametrize(
    'schedule',
    [LINEAR, Schedule(cosine_betas(1000)), Schedule(zero_terminal_snr(linear_betas(1000)))],
)
def test_mixture_as_a_whole(schedule):
    "Kolmogorov-Smirnov against the mixture's distribution function"
    class Cloud(nn.Module):  # an image of many points that ignore each other
        def forward(self, x, level, y=None):
            a, s = level.signal, level.noise
            modes, w, v = torch.tensor([-0.5, 0.7]), torch.tensor([0.3, 0.7]), 0.2**2
            var = (a**2 * v + s**2)[..., None]
            d = x[..., None] - a[..., None] * modes
            r = (w.log() - d**2 / (2 * var)).softmax(-1)
            x0 = (r * (modes + a[..., None] * v / var * d)).sum(-1).to(x)
            return Prediction(x0, x, level)
    x = draw(Cloud(), schedule, (2, 2000), times=schedule.times(500), seed=2).flatten().numpy()
    cdf = lambda z: 0.3 * scipy.stats.norm.cdf(z, -0.5, 0.2) + 0.7 * scipy.stats.norm.cdf(
        z, 0.7, 0.2
    )
    assert scipy.stats.kstest(x, cdf).pvalue > 1e-3
    assert scipy.stats.kstest(x + 0.04, cdf).pvalue < 1e-4    # the test has power

def test_real_digits_come_out_of_the_finite_set_as_they_are():
    known = mnist_mini()[:][0][::25]
    x = draw(MixtureOracle(known), LINEAR, (5, 1, 28, 28), times=LINEAR.times(25), seed=3)
    assert all((known == image).flatten(1).all(1).any() for image in x)

def test_clipped_stays_in_range():
    class Wild(nn.Module):
        def forward(self, x, t): return 3 * torch.sin(5 * x)
    frames = list(trajectory(clipped(Denoiser(Wild(), X0)), SHORT, (4, 1, 5, 7), seed=0))
    assert max(f.x0.abs().max() for f in frames) <= 1 and frames[-1].x.abs().max() <= 1
    assert draw(Denoiser(Wild(), X0), shape=(4, 1, 5, 7), seed=0).abs().max() > 1

# ------------------------------------------------------------ a solver of one's own
@dataclass(frozen=True, repr=False)
class halfway(Solver):
    "DDIM whose steps to t > 0 are visited twice, the second time doing nothing"
    def visits(self, times): return [t for t in times[:-1] for _ in range(2)] + [0]
    def coefficients(self, t, s): return ddim().coefficients(t, s)

def test_a_solver_may_choose_its_visits():
    """The walk that the caller gives is checked, and the frames follow the visits; a row from t to
    t changes nothing"""
    frames = list(trajectory(ORACLE, SHORT, (4, 3), step=halfway(), times=[10, 4, 0], seed=0))
    assert [f.t for f in frames] == [10, 10, 4, 4, 0] and torch.equal(frames[0].x, frames[1].x)
    torch.testing.assert_close(
        frames[-1].x, draw(ORACLE, step=ddim(), times=[10, 4, 0], seed=0), rtol=0, atol=1e-6
    )
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
    frames = list(
        trajectory(ORACLE, SHORT, (4, 3), step=averaging(), times=[10, 8, 5, 2, 0], seed=0)
    )
    assert torch.equal(frames[1].x, frames[0].x0)
    for before, now, after in zip(frames, frames[1:], frames[2:]):
        assert torch.equal(after.x, 0.5 * now.x0 + 0.5 * before.x0)

# ------------------------------------------------------------ what is refused
@pytest.mark.parametrize(
    'step', [ddim, 'ddim', None, lambda *a: None], ids=['class', 'name', 'none', 'function']
)
def test_what_is_no_solver(step):
    with pytest.raises(TypeError, match=r'is no solver; give one such as ancestral\(\), ddim\(\)'):
        draw(ORACLE, step=step)

@pytest.mark.parametrize(
    'kw, error, match',
    [
        (dict(times=[10, 5]), ValueError, r'down to 0, not end with \[10, 5\]'),
        (dict(times=[10]), ValueError, 'down to 0'),
        (dict(times=[]), ValueError, 'down to 0'),
        (dict(times=[0]), ValueError, 'down to 0'),
        (dict(times=[10, -1, 3, 0]), ValueError, r't = -1, which is outside 1\.\.10'),
        (dict(times=[10, 5, 5, 0]), ValueError, '5 is followed by 5'),
        (dict(times=[10, 2.5, 0]), TypeError, 'float'),
        (dict(times=[8, 4, 0]), ValueError, 'times start at 8, but the noise is that of T = 10'),
        (dict(times=[11, 4, 0]), ValueError, r't = 11, which is outside 1\.\.10'),
        (
            dict(times=[11, 4, 0], x_T=torch.zeros(4, 3)),
            ValueError,
            r't = 11, which is outside 1\.\.10',
        ),
        (dict(times=torch.linspace(10, 0, 4)), TypeError, r'times must be whole numbers.*6\.6667'),
        (dict(times=[10, float('nan'), 0]), TypeError, 'times must be whole numbers.*nan'),
        (dict(x_T=torch.zeros(4, 2)), ValueError, r'x_T has shape \(4, 2\) but shape = \(4, 3\)'),
        (
            dict(x_T=torch.zeros(4, 3, dtype=torch.long)),
            TypeError,
            'x_T must be float, not torch.int64',
        ),
        (dict(y=torch.zeros(3)), ValueError, '3 labels y for 4 images'),
        (dict(shape=(0, 3)), ValueError, r'shape = \(0, 3\) holds no image'),
        (dict(shape=()), ValueError, 'holds no image'),
    ],
)
def test_bad_walks(kw, error, match):
    with pytest.raises(error, match=match): draw(ORACLE, **kw)
    shape = kw.pop('shape', (4, 3))
    with pytest.raises(error, match=match): next(trajectory(ORACLE, SHORT, shape, **kw))

@pytest.mark.parametrize('progress', [True, False])
def test_times_may_be_any_iterable(progress):
    want = draw(ORACLE, times=[10, 4, 0], seed=0)
    for times in ((10, 4, 0), torch.tensor([10, 4, 0]), np.array([10, 4, 0]), iter([10, 4, 0])):
        assert torch.equal(
            sample(ORACLE, SHORT, (4, 3), times=times, seed=0, progress=progress), want
        )

def test_options_are_by_name_and_the_same_in_both():
    a, b = (inspect.signature(f).parameters for f in (trajectory, sample))
    assert list(a) == [k for k in b if k != 'progress']
    assert all(
        p.kind == p.KEYWORD_ONLY for k, p in b.items() if k not in ('denoiser', 'schedule', 'shape')
    )
