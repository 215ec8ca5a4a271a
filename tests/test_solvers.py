"Few steps: each solver against its paper's formula, the exact flow, and diffusers, frame by frame"
import itertools, json, math
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from unittest.mock import patch
import diffusers, numpy as np, pytest, scipy.integrate, torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
)
from torch import nn
from tqdm import tqdm
from diffusion_scratch.data import mnist_mini
from diffusion_scratch.denoiser import EPS, V, X0, Denoiser, clipped
from diffusion_scratch.guidance import guided
from diffusion_scratch.noising import Gaussian, q_posterior
from diffusion_scratch.oracle import GaussianOracle, MixtureOracle
from diffusion_scratch.sampling import (
    Coefficients,
    Noise,
    Solver,
    ancestral,
    coefficient_table,
    fixed_large,
    sample,
    trajectory,
)
from diffusion_scratch.schedule import (
    Level,
    Schedule,
    cosine_betas,
    leading,
    linear_betas,
    linspace,
    log_snr,
    trailing,
    zero_terminal_snr,
)
from diffusion_scratch.solvers import ddim, dpm_solver_pp, exponential, heun, trapezoid
from diffusion_scratch.unet import UNet

LINEAR, COSINE, DARK = (
    Schedule(linear_betas()),
    Schedule(cosine_betas()),
    Schedule(zero_terminal_snr(linear_betas())),
)
MAKE = {
    'ddim': ddim,
    'ddim(0.5)': lambda: ddim(0.5),
    'ddim(1)': lambda: ddim(1),
    'dpm_solver_pp': dpm_solver_pp,
    'dpm_solver_pp(1)': lambda: dpm_solver_pp(1),
    'heun': heun,
    'heun(trapezoid)': lambda: heun(trapezoid),
}
STEPS = {name: make() for name, make in MAKE.items()}
CALM = ['ddim', 'dpm_solver_pp', 'heun', 'heun(trapezoid)']   # without chance
HILLS = MixtureOracle(
    torch.tensor([[-0.6, 0.0], [0.6, 0.2], [0.0, -0.7]]), 0.25, labels=torch.arange(3)
)
def draw(denoiser=HILLS, schedule=LINEAR, shape=(4, 2), **kw):
    return sample(denoiser, schedule, shape, progress=False, **kw)
def gen(seed=0): return torch.Generator().manual_seed(seed)
def pairs(n=300, schedule=LINEAR, dtype=torch.float64):
    "x_t, x0 and random levels s < t, 0 < s"
    x_t, x0 = torch.randn(2, n, 3, generator=gen(), dtype=dtype)
    s = torch.randint(1, schedule.T, (n,), generator=gen(1))
    t = s + 1 + (torch.rand(n, generator=gen(2)) * (schedule.T - s)).long()
    return x_t, x0, schedule.at(t.clamp(max=schedule.T), x_t), schedule.at(s, x_t)
def level(lam, t=1, n=1):
    "Any level, by its log(signal/noise)"
    a = 1 / (1 + math.exp(-2 * lam))
    return Level(
        torch.full((n,), t),
        *(torch.full((n, 1), c, dtype=torch.float64).sqrt() for c in (a, 1 - a))
    )
def one_step(step, x_t, x0, t, s):
    "Where a solver goes from x_t, for each image at its own levels"
    c = step.coefficients(t, s)
    return Gaussian(c.x0 * x0 + c.x_t * x_t, c.std)
def last(step, lams, x, predictions):
    "Where `step` goes at the end of a walk along `lams`, if the last two predictions are these"
    levels = [level(lam, 9 - i) for i, lam in enumerate(lams)]
    ends = [
        Level(*(torch.stack([l[k].flatten()[0] for l in part]) for k in range(3)))
        for part in (levels[:-1], levels[1:])
    ]
    c = Coefficients(*(z[-1] for z in step.coefficients(*ends)))
    return Gaussian(c.x0 * predictions[-1] + c.x_t * x + c.previous * predictions[-2], c.std)

# ------------------------------------------------------------ one step of DDIM
@pytest.mark.parametrize('eta', [0., 0.3, 1., 1, 0])
def test_ddim_is_the_papers_formula(eta):
    """eq-ddim, eq-eta: Song et al. 2021, eq. 12 and 16, in NumPy, with the noise that is predicted
    beside the image"""
    x_t, x0, t, s = pairs()
    at, as_ = t.alpha_bar.numpy(), s.alpha_bar.numpy()
    eps = (x_t.numpy() - np.sqrt(at) * x0.numpy()) / np.sqrt(1 - at)
    sigma = eta * np.sqrt((1 - as_) / (1 - at)) * np.sqrt(1 - at / as_)
    p = one_step(ddim(eta), x_t, x0, t, s)
    # 1 - alpha_bar_1 is 1e-4: 1e-16 over it, times eps
    np.testing.assert_allclose(
        p.mean, np.sqrt(as_) * x0.numpy() + np.sqrt(1 - as_ - sigma**2) * eps, rtol=0, atol=1e-9
    )
    np.testing.assert_allclose(p.std.expand(300, 1), sigma, rtol=0, atol=1e-9)

@pytest.mark.parametrize('eta', [0., 0.2, 0.7, 1.])
def test_every_member_of_the_family_keeps_the_marginals(eta):
    """eq-family: with the true image and the true noise, x_s has the mean and the variance of
    level s"""
    _, x0, t, s = pairs()
    step = lambda x_t: one_step(ddim(eta), x_t, x0, t, s)
    mean, shift = step(t.signal * x0).mean, step(t.signal * x0 + t.noise).mean
    torch.testing.assert_close(mean, s.signal * x0, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        (shift - mean) ** 2 + step(x0).std ** 2, (s.noise**2).expand(300, 3), rtol=1e-9, atol=1e-12
    )

@pytest.mark.parametrize(
    'schedule', [LINEAR, COSINE, DARK], ids=['linear', 'cosine', 'zero terminal']
)
def test_ancestral_is_ddim_with_eta_1(schedule):
    """eq-ddim: the same Gaussian, for one step, whatever the levels; and the same images, from the
    same seed"""
    x_t, x0, t, s = pairs(schedule=schedule)
    ours, theirs, truth = (
        one_step(ddim(1.0), x_t, x0, t, s),
        one_step(ancestral(), x_t, x0, t, s),
        q_posterior(x0, x_t, t, s),
    )
    for a, b in ((ours, theirs), (ours, truth)):
        torch.testing.assert_close(a.mean, b.mean, rtol=0, atol=1e-12)
        torch.testing.assert_close(a.std, b.std, rtol=0, atol=1e-12)
    x_T = torch.randn(4, 2, generator=gen(), dtype=torch.float64)
    for times in (
        schedule.times(17),
        schedule.times(20, log_snr),
        [schedule.T, 1, 0],
        [schedule.T, 0],
    ):
        torch.testing.assert_close(
            draw(schedule=schedule, step=ddim(1.0), times=times, x_T=x_T, seed=3),
            draw(schedule=schedule, step=ancestral(), times=times, x_T=x_T, seed=3),
            rtol=0,
            atol=1e-12,
        )

# ------------------------------------------------------------ every solver's last step, types,
# footprints
@pytest.mark.parametrize('name', STEPS)
@pytest.mark.parametrize(
    'schedule', [LINEAR, COSINE, DARK], ids=['linear', 'cosine', 'zero terminal']
)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_last_frame_is_the_last_prediction_bit_for_bit(name, schedule, dtype):
    """On long walks and short ones, in every precision, also where no signal is left at T; nothing
    on the way is NaN"""
    x_T = torch.randn(3, 2, generator=gen()).to(dtype)
    for times in ([schedule.T, 0], [schedule.T, 400, 0], [schedule.T, 900, 30, 1, 0]):
        frames = list(
            trajectory(HILLS, schedule, (3, 2), step=STEPS[name], times=times, x_T=x_T, seed=0)
        )
        assert (
            torch.equal(frames[-1].x, frames[-2].x0)
            and frames[-1].x.dtype == torch.promote_types(dtype, torch.float32)
            and all(f.x.isfinite().all() for f in frames)
        )

@pytest.mark.parametrize('name', STEPS)
def test_one_point_is_drawn_exactly_by_one_step_and_by_many(name):
    "Where the prediction never changes no solver makes an error"
    point = torch.tensor([[0.3, -0.9]])
    for times in ([1000, 0], [1000, 999, 10, 0], LINEAR.times(40, log_snr)):
        torch.testing.assert_close(
            draw(MixtureOracle(point), step=STEPS[name], times=times, seed=0),
            point.expand(4, 2),
            rtol=0,
            atol=1e-6,
        )

@pytest.mark.parametrize('name', STEPS)
def test_a_step_has_no_state(name):
    "Two trajectories that take turns with one step do not disturb each other"
    times = LINEAR.times(7)
    one, two = (
        trajectory(HILLS, LINEAR, (2, 2), step=STEPS[name], times=times, seed=s) for s in (1, 2)
    )
    ends = [(a, b) for a, b in zip(one, two)][-1]
    for end, seed in zip(ends, (1, 2)):
        assert torch.equal(end.x, draw(shape=(2, 2), step=STEPS[name], times=times, seed=seed))

@pytest.mark.parametrize('name', STEPS)
def test_an_image_depends_on_its_seed_and_number_alone(name):
    kw = dict(step=STEPS[name], times=LINEAR.times(6), seed=5)
    whole = draw(shape=(6, 2), **kw)
    # matrix products of other sizes
    torch.testing.assert_close(
        torch.cat([draw(shape=(2, 2), **kw), draw(shape=(4, 2), first=2, **kw)]),
        whole,
        rtol=0,
        atol=1e-6,
    )

@pytest.mark.parametrize('name', CALM)
def test_without_chance_the_start_alone_decides(name):
    x_T = torch.randn(4, 2, generator=gen())
    a, b = (draw(step=STEPS[name], times=LINEAR.times(8), x_T=x_T, seed=seed) for seed in (0, 1))
    assert torch.equal(a, b) and not torch.equal(
        a, draw(step=STEPS[name], times=LINEAR.times(8), x_T=-x_T)
    )
    chance = draw(step=ddim(0.5), times=LINEAR.times(8), x_T=x_T, seed=0)
    assert not torch.equal(chance, draw(step=ddim(0.5), times=LINEAR.times(8), x_T=x_T, seed=1))

@pytest.mark.parametrize('name', STEPS)
def test_wrappers_and_labels_work_with_every_solver(name):
    class Wild(nn.Module):
        def forward(self, x, t): return 3 * torch.sin(5 * x)
    x = draw(clipped(Denoiser(Wild(), X0)), step=STEPS[name], times=LINEAR.times(9), seed=0)
    assert (
        x.abs().max()
        <= 1
        < draw(Denoiser(Wild(), X0), step=STEPS[name], times=LINEAR.times(9), seed=0).abs().max()
    )
    y = torch.tensor([0, 1, 2, 2])
    labelled = draw(step=STEPS[name], times=LINEAR.times(50, log_snr), y=y, seed=0)
    # 4.4 of the hills' standard deviations
    assert (
        labelled - torch.tensor([[-0.6, 0.0], [0.6, 0.2], [0.0, -0.7], [0.0, -0.7]])
    ).abs().max() < 1.1
    assert torch.equal(
        labelled,
        draw(guided(HILLS, y, 0.0), step=STEPS[name], times=LINEAR.times(50, log_snr), seed=0),
    )

# ------------------------------------------------------------ DPM-Solver++
@pytest.mark.parametrize('eta', [0., 1.])
def test_the_multistep_formulas(eta):
    "eq-multistep, eq-multistep-sde: as Lu et al. 2022 print them, steps of unequal length"
    x, a, b = torch.randn(3, 5, 1, generator=gen(), dtype=torch.float64)
    lams = [-1.3, -0.4, 0.1]
    h, before = 0.5, 0.9
    D = (1 + h / (2 * before)) * b - h / (2 * before) * a
    t, s = level(-0.4), level(0.1)
    p = last(dpm_solver_pp(eta), lams, x, [a, b])
    if eta:
        want, std = s.noise / t.noise * math.exp(-h) * x + s.signal * -math.expm1(
            -2 * h
        ) * D, s.noise * math.sqrt(-math.expm1(-2 * h))
    else: want, std = s.noise / t.noise * x - s.signal * math.expm1(-h) * D, 0 * s.noise
    torch.testing.assert_close(p.mean, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        p.std.expand(5, 1).double(), std.expand(5, 1), rtol=1e-12, atol=1e-12
    )

@pytest.mark.parametrize('eta', [0., 0.4, 1.])
def test_the_first_step_is_ddims_and_so_is_one_after_a_jump_up(eta):
    "A prediction from before the jump is no neighbour"
    walk = [1000, 700, 800, 500, 0]
    ours, ddims = (
        coefficient_table(step, LINEAR, walk) for step in (dpm_solver_pp(eta), ddim(eta))
    )
    assert ours[0] == ddims[0] and ours[2] == ddims[2] and ours[1].std > 0 and ours[1].x0 == 0

def test_the_flow_is_an_average_of_predictions():
    """eq-variation by quadrature along the exact path of a Gaussian, which eq-gaussian-flow knows;
    eq-flow by its slope"""
    var, mu = 0.3**2, -0.2
    path = lambda lam: mu + 1.7 * math.sqrt(var + math.exp(-2 * lam))
    belief = lambda lam: mu + var / (var + math.exp(-2 * lam)) * (path(lam) - mu)
    eps = lambda lam: (path(lam) - belief(lam)) * math.exp(lam)
    for a, b in ((-3., -2.), (-1., 1.5), (0.5, 4.)):
        t, s = level(a), level(b)
        integral, _ = scipy.integrate.quad(
            lambda lam: math.exp(lam - b) * belief(lam), a, b, epsabs=1e-13
        )
        assert (
            s.noise / t.noise * t.signal * path(a) + s.signal * integral
        ).item() == pytest.approx((s.signal * path(b)).item(), abs=1e-10)
        assert (path(a + 1e-5) - path(a - 1e-5)) / (
            math.exp(-a - 1e-5) - math.exp(-a + 1e-5)
        ) == pytest.approx(eps(a), rel=1e-6)
    oracle = GaussianOracle(torch.tensor([mu]), torch.tensor([[var]]))
    x = torch.tensor([[level(0.5).signal.item() * path(0.5)]], dtype=torch.float64)
    # the mean is float32
    assert oracle(x, level(0.5)).x0.item() == pytest.approx(belief(0.5), abs=1e-7)

# ------------------------------------------------------------ Heun
@pytest.mark.parametrize('h', [1e-3, 0.1, 1., 5.])
def test_what_the_two_rules_add(h):
    """eq-heun-rules: the exponential is an integral; the trapezoid is half of e^h - 1; both are
    h/2 for short steps"""
    integral, _ = scipy.integrate.quad(lambda lam: math.exp(lam - h) * lam / h, 0, h)
    H = torch.tensor(h, dtype=torch.float64)
    assert exponential(H).item() == pytest.approx(integral, rel=1e-9) and trapezoid(
        H
    ).item() == pytest.approx((math.exp(h) - 1) / 2, rel=1e-12)
    if h == 1e-3:
        assert exponential(H).item() == pytest.approx(h / 2, rel=1e-3) and trapezoid(
            H
        ).item() == pytest.approx(h / 2, rel=1e-3)
    assert exponential(torch.tensor(math.inf)) == 1

def test_heun_takes_a_step_looks_and_corrects():
    """eq-heun: with either rule; and as Karras et al. 2022
    (algorithm 1) write the trapezoid, in x / signal, noise / signal and eps"""
    times = [900, 500, 120, 0]
    x_T = torch.randn(4, 2, generator=gen(), dtype=torch.float64)
    for rule in (exponential, trapezoid):
        frames = list(trajectory(HILLS, LINEAR, (4, 2), step=heun(rule), times=times, x_T=x_T))
        assert [f.t for f in frames] == [900, 500, 500, 120, 120, 0]
        for first, second, after in (frames[:3], frames[2:5]):
            t, s = LINEAR.at(first.t, x_T), LINEAR.at(second.t, x_T)
            euler = one_step(ddim(), first.x, first.x0, t, s).mean
            h = (s.log_snr - t.log_snr) / 2
            torch.testing.assert_close(second.x, euler, rtol=0, atol=1e-12)
            torch.testing.assert_close(
                after.x, euler + s.signal * rule(h) * (second.x0 - first.x0), rtol=0, atol=1e-10
            )
            if rule is trapezoid:
                bar, rho = lambda x, l: x / l.signal, lambda l: l.noise / l.signal
                slopes = [(f.x - l.signal * f.x0) / l.noise for f, l in ((first, t), (second, s))]
                torch.testing.assert_close(
                    bar(after.x, s),
                    bar(first.x, t) + (rho(s) - rho(t)) * (slopes[0] + slopes[1]) / 2,
                    rtol=0,
                    atol=1e-10,
                )

def test_what_a_walk_costs():
    "n looks for n steps; for Heun 2n - 1; the progress bar knows"
    class Counting(nn.Module):
        calls = 0
        def forward(self, x, level, y=None): self.calls += 1; return HILLS(x, level)
    for name, step in STEPS.items():
        for n in (1, 2, 7):
            d = Counting()
            draw(d, step=step, times=LINEAR.times(n), seed=0)
            assert d.calls == (2*n - 1 if 'heun' in name else n), (name, n)

def test_the_progress_bar_counts_both_looks(capsys):
    sample(HILLS, LINEAR, (2, 2), step=heun(), times=LINEAR.times(4), seed=0)
    assert '8/8' in capsys.readouterr().err

def test_heun_refuses_a_loop_that_looks_once():
    "It would be DDIM, without a word"
    with pytest.raises(
        ValueError, match=r'heun\(\) looks at each time twice, but this loop went from t = 5 to 2'
    ):
        coefficient_table(heun(), LINEAR, [10, 5, 2, 0])
    @dataclass(frozen=True, repr=False)
    class hidden(Solver):                                            # a wrapper that hides `visits`
        def coefficients(self, t, s): return heun().coefficients(t, s)
    with pytest.raises(ValueError, match='looks at each time twice'):
        draw(step=hidden(), times=[1000, 500, 0], seed=0)

@pytest.mark.parametrize(
    'times, visits',
    [
        ([9, 0], [9, 0]),
        ([9, 4, 0], [9, 4, 4, 0]),
        ([9, 4, 1, 0], [9, 4, 4, 1, 1, 0]),
        ([9, 4, 7, 2, 0], [9, 4, 4, 7, 2, 2, 0]),
        (range(3, -1, -1), [3, 2, 2, 1, 1, 0]),
    ],
)
def test_which_times_heun_visits(times, visits):
    """Each that a step leads down to, but for 0; a walk that goes up again arrives there without a
    step"""
    assert heun().visits(times) == visits

# ------------------------------------------------------------ convergence
def straight(T, top, bottom):
    "A schedule whose log SNR falls on a line: steps of any length, all alike"
    ab = torch.cat([
        torch.ones(1, dtype=torch.float64),
        torch.sigmoid(torch.linspace(top, bottom, T, dtype=torch.float64)),
    ])
    return Schedule(1 - ab[1:] / ab[:-1])
LONG = straight(20_000, 18, -10)
START = torch.randn(50, 2, generator=gen(), dtype=torch.float64)

def solved(oracle, schedule, x_T, rtol=1e-10):
    "eq-flow by SciPy, with log(noise/signal) as its clock"
    signal, noise = schedule.signal[-1].item(), schedule.noise[-1].item()
    def slope(log_rho, y):
        l = level(-log_rho, n=len(x_T))
        return (
            (math.exp(log_rho) * oracle(torch.from_numpy(y.reshape(x_T.shape)) * l.signal, l).eps)
            .numpy()
            .ravel()
        )
    y = scipy.integrate.solve_ivp(
        slope,
        (math.log(noise / signal), math.log(1e-7)),
        (x_T / signal).numpy().ravel(),
        method='DOP853',
        rtol=rtol,
        atol=1e-12,
    ).y[:, -1]
    return torch.from_numpy(y.reshape(x_T.shape))

MEAN, COV = torch.tensor([0.3, -0.5]).double(), torch.tensor([[0.25, 0.1], [0.1, 0.09]]).double()
def on_paper(schedule, x_T):
    "eq-gaussian-flow"
    variances, axes = torch.linalg.eigh(COV)
    rho = schedule.noise[-1] / schedule.signal[-1]
    return (
        MEAN
        + (x_T / schedule.signal[-1] - MEAN)
        @ axes
        * (variances / (variances + rho**2)).sqrt()
        @ axes.T
    )

def test_the_gaussians_flow_is_known():
    "eq-gaussian-flow against SciPy, which knows only eq-flow"
    for schedule in (LONG, LINEAR):
        torch.testing.assert_close(
            solved(GaussianOracle(MEAN, COV), schedule, START),
            on_paper(schedule, START),
            rtol=0,
            atol=1e-8,
        )

TRUTHS = {
    'gaussian': (GaussianOracle(MEAN, COV), on_paper(LONG, START)),
    'hills': (HILLS, solved(HILLS, LONG, START)),
}
def error(step, oracle, truth, n, schedule=LONG, spacing=log_snr):
    x = draw(oracle, schedule, START.shape, step=step, times=schedule.times(n, spacing), x_T=START)
    return (x - truth).square().mean().sqrt().item()

@pytest.mark.parametrize('oracle', TRUTHS)
@pytest.mark.parametrize('name', CALM)
def test_order_of_convergence(name, oracle):
    """eq-order: errors of the whole walk against the exact flow fall as 1/n for DDIM and as 1/n^2
    for the others; the next order bends the line by less than 0.1"""
    ns = (50, 100, 200, 500)
    errors = [error(STEPS[name], *TRUTHS[oracle], n) for n in ns]
    order = -np.polyfit(np.log(ns), np.log(errors), 1)[0]
    assert abs(order - (1 if name == 'ddim' else 2)) < 0.1, (order, errors)
    assert errors[-1] < (5e-3 if name == 'ddim' else 1e-4)

def test_the_toy_in_closed_form():
    """eq-ddim-toy: for N(0, 1) a DDIM step is a product with the cosine of the angle between two
    levels"""
    oracle, x = GaussianOracle(torch.zeros(1), torch.eye(1)), torch.ones(1, 1, dtype=torch.float64)
    times = LINEAR.times(12)
    angle = torch.atan2(LINEAR.noise, LINEAR.signal)[times]
    assert draw(oracle, shape=(1, 1), step=ddim(), times=times, x_T=x).item() == pytest.approx(
        (angle.diff()).cos().prod().item(), rel=1e-12
    )

def test_few_steps_on_the_usual_schedules():
    """Ten steps with the default spacing: second order pays already, and the default rule of Heun
    is the safe one on the cosine schedule"""
    for schedule in (LINEAR, COSINE):
        truth = solved(HILLS, schedule, START)
        e = {name: error(STEPS[name], HILLS, truth, 10, schedule, trailing) for name in CALM}
        assert max(e['dpm_solver_pp'], e['heun']) < e['ddim'] < 0.2, e
    assert e['heun(trapezoid)'] > 30 * e['heun']

def test_the_stochastic_solvers_draw_the_right_distribution():
    """Mean and covariance of 3,000 draws from a Gaussian, each entry within 4.5 standard errors
    and 2% of the largest. A solver of the first order takes more steps to be as near as that: in
    60, it alone would be off by 5 standard errors"""
    n = 3000
    for step, steps in ((ddim(0.5), 250), (dpm_solver_pp(1), 60), (dpm_solver_pp(0.5), 60)):
        x = draw(
            GaussianOracle(MEAN, COV),
            LONG,
            (n, 2),
            step=step,
            times=LONG.times(steps, log_snr),
            seed=0,
        ).double()
        assert ((x.mean(0) - MEAN) / (COV.diagonal() / n).sqrt()).abs().max() < 4.5
        se = ((COV**2 + COV.diagonal().outer(COV.diagonal())) / n).sqrt()
        assert ((x.T.cov() - COV).abs() < 4.5 * se + 0.02 * COV.max()).all(), x.T.cov()

def test_the_same_seed_is_the_same_digit_from_a_hundred_to_a_thousand_steps_and_mostly_from_ten():
    """100 real digits with their exact denoiser, 20 seeds. A few starts lie so near to a border
    that ten steps fall on its other side; by chance 1 in 100 would agree"""
    known = mnist_mini()[:][0][::50]
    oracle, shape = MixtureOracle(known), (20, 1, 28, 28)
    which = lambda step, n, spacing=trailing: torch.cdist(
        draw(oracle, LINEAR, shape, step=step, times=LINEAR.times(n, spacing), seed=0).flatten(1),
        known.flatten(1),
    ).argmin(1)
    truth = which(dpm_solver_pp(), 1000)
    assert len(truth.unique()) > 10
    for name, step in STEPS.items():
        if name in CALM:
            assert (which(step, 10) == truth).double().mean() >= 0.8 and (
                which(step, 100) == truth
            ).double().mean() >= 0.95, name
    assert (which(ddim(1.), 100) == truth).double().mean() < 0.3

# ------------------------------------------------------------ the field
def a_net():
    "A UNet with random weights, none of them small, in float64"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(1, 32, (1,), 1, ()).double().eval()
        for p in net.parameters(): nn.init.normal_(p, std=0.5 / max(1, p[0].numel())**0.5)
    return net
NET, SHAPE = a_net(), (2, 1, 4, 4)
TYPES = {'eps': (EPS, 'epsilon'), 'x0': (X0, 'sample'), 'v': (V, 'v_prediction')}
SDE = dict(algorithm_type='sde-dpmsolver++')
# our step, their scheduler, its options, the options of its step, the tolerance: their DPM-Solver
# computes in float32, the others in float64
RIVALS = {
    'DDPM fixed_small': (
        ancestral(),
        DDPMScheduler,
        dict(variance_type='fixed_small', timestep_spacing='linspace'),
        {},
        1e-12,
    ),
    'DDPM fixed_large': (
        ancestral(fixed_large),
        DDPMScheduler,
        dict(variance_type='fixed_large', timestep_spacing='linspace'),
        {},
        1e-12,
    ),
    'DDIM eta 0': (ddim(), DDIMScheduler, dict(timestep_spacing='trailing'), dict(eta=0.0), 1e-12),
    'DDIM eta 0.5': (
        ddim(0.5),
        DDIMScheduler,
        dict(timestep_spacing='trailing'),
        dict(eta=0.5),
        1e-12,
    ),
    'DDIM eta 1': (
        ddim(1.0),
        DDIMScheduler,
        dict(timestep_spacing='trailing'),
        dict(eta=1.0),
        1e-12,
    ),
    'DPM-Solver++ 2M': (dpm_solver_pp(), DPMSolverMultistepScheduler, {}, {}, 5e-6),
    'SDE-DPM-Solver++ 2M': (
        dpm_solver_pp(1.0),
        DPMSolverMultistepScheduler,
        SDE,
        dict(variance_noise=None),
        5e-6,
    ),
    'Heun': (heun(trapezoid), HeunDiscreteScheduler, {}, {}, 1e-12),
}

@torch.no_grad()
def theirs(scheduler, times, visits, options, seed):
    """The x of every moment, on our scale, with our float64 tables and our noise; their timesteps
    count from 0"""
    noise = Noise(seed, 2)
    fresh = (noise.draw(SHAPE[1:]) for _ in range(len(times) + 1))
    scheduler.alphas_cumprod = LINEAR.alpha_bar[1:]
    if isinstance(scheduler, (DDPMScheduler, DDIMScheduler)):
        scheduler.set_timesteps(len(times) - 1)
    else: scheduler.set_timesteps(timesteps=[t - 1 for t in times[:-1]])
    assert (scheduler.timesteps.long() + 1).tolist() == visits[:-1]
    # it walks x / signal
    scale = (
        LINEAR.signal[visits]
        if isinstance(scheduler, HeunDiscreteScheduler)
        else torch.ones(len(visits))
    )
    if hasattr(scheduler, 'sigmas'): scheduler.sigmas = (LINEAR.noise / LINEAR.signal)[visits]
    xs = [next(fresh).double() / scale[0]]
    for a, t in zip(scale, scheduler.timesteps):
        if options: options['variance_noise'] = next(fresh).double()
        with patch(
            'diffusers.schedulers.scheduling_ddpm.randn_tensor',
            lambda *_, **__: next(fresh).double(),
        ):
            xs.append(
                scheduler.step(
                    NET(a * xs[-1], (t.long() + 1).expand(2)), t, xs[-1], **options
                ).prev_sample
            )
    return [a * x for a, x in zip(scale, xs)]

COUNTS, CLIP, TABLE = (
    (5, 10, 50),
    {'': False, 'clipped': True},
    Path(__file__).parents[1] / 'nbs' / 'assets' / 'solvers' / 'conformance.json',
)
CASES = list(itertools.product(RIVALS, TYPES, CLIP, COUNTS))

def difference(name, kind, clip, n):
    """The largest difference on a whole trajectory, of all frames, relative to the frame's largest
    value: same network, same first noise, same fresh noise"""
    step, make, config, options, _ = RIVALS[name]
    (parameterization, word), clip = TYPES[kind], CLIP[clip]
    times = LINEAR.times(n, linspace if make is DDPMScheduler else trailing)
    # with a ceiling of 1 that is clipping
    if make is DPMSolverMultistepScheduler:
        config = dict(config, thresholding=clip, sample_max_value=1.0)
    else: config = dict(config, clip_sample=clip)
    # the noise made to agree with the clipped image
    if make is DDIMScheduler: options = dict(options, use_clipped_model_output=True)
    field = theirs(
        make(trained_betas=LINEAR.betas.tolist(), prediction_type=word, **config),
        times,
        step.visits(times),
        dict(options),
        seed=7,
    )
    denoiser = Denoiser(NET, parameterization)
    ours = [
        f.x
        for f in trajectory(
            clipped(denoiser) if clip else denoiser, LINEAR, SHAPE, step=step, times=times, seed=7
        )
    ]
    assert len(ours) == len(field) and ours[0].dtype == torch.float64
    # NaN if any is
    return (
        torch.stack([(a - b).abs().max() / b.abs().max() for a, b in zip(ours, field)]).max().item()
    )

@pytest.mark.parametrize('name, kind, clip, n', CASES)
def test_whole_trajectories_are_those_of_diffusers(name, kind, clip, n):
    assert difference(name, kind, clip, n) <= RIVALS[name][-1]

def test_the_published_table_is_that_of_these_trajectories():
    """Chapter 10 shows what `python tests/test_solvers.py` last wrote. Digits this small are
    rounding, and other on another machine: so each within its tolerance, and one of each kind
    within a factor of 100 of what is measured here, or of 1e-15"""
    table = json.loads(TABLE.read_text())
    assert [tuple(case) for *case, _ in table['rows']] == CASES and all(
        0 <= published <= RIVALS[name][-1] for name, *_, published in table['rows']
    )
    for *case, published in table['rows'][::19]:
        assert 1 / 100 < max(published, 1e-15) / max(difference(*case), 1e-15) < 100, case

def test_multistep_walks_of_diffusers_on_other_times():
    """Their DPM-Solver and Heun take any list, and so do ours: log-SNR spacing, and one drawn at
    random"""
    odd = [
        1000,
        *sorted(torch.randperm(998, generator=gen())[:9].add(2).tolist(), reverse=True),
        1,
        0,
    ]
    for times, name in itertools.product(
        (LINEAR.times(15, log_snr), odd), ('DPM-Solver++ 2M', 'SDE-DPM-Solver++ 2M', 'Heun')
    ):
        step, make, config, options, _ = RIVALS[name]
        field = theirs(
            make(trained_betas=LINEAR.betas.tolist(), prediction_type='v_prediction', **config),
            times,
            step.visits(times),
            dict(options),
            seed=3,
        )
        ours = [
            f.x for f in trajectory(Denoiser(NET, V), LINEAR, SHAPE, step=step, times=times, seed=3)
        ]
        # float32, through steps of very unequal length
        assert max((a - b).abs().max() / b.abs().max() for a, b in zip(ours, field)) < (
            1e-12 if name == 'Heun' else 2e-5
        )

def test_their_ddpm_adds_noise_at_the_end_where_ours_does_not():
    """What the chapter says of it: their last step draws unless it starts at their t = 0, which
    `trailing` never visits"""
    times = LINEAR.times(5)
    scheduler = DDPMScheduler(
        trained_betas=LINEAR.betas.tolist(),
        prediction_type='v_prediction',
        variance_type='fixed_large',
        timestep_spacing='trailing',
        clip_sample=False,
    )
    field = theirs(scheduler, times, times, {}, seed=7)
    ours = [
        f.x
        for f in trajectory(
            Denoiser(NET, V), LINEAR, SHAPE, step=ancestral(fixed_large), times=times, seed=7
        )
    ]
    noise = Noise(7, 2)
    *_, z = (noise.draw(SHAPE[1:]) for _ in range(6))
    torch.testing.assert_close(ours[-2], field[-2], rtol=0, atol=1e-12)
    torch.testing.assert_close(
        field[-1] - ours[-1],
        (1 - LINEAR.alpha_bar[times[-2]]).sqrt() * z.double(),
        rtol=0,
        atol=1e-9,
    )

@pytest.mark.parametrize('n', [1, 2, 3, 4, 7, 10, 25, 50, 250, 333, 999, 1000])
@pytest.mark.parametrize('spacing', [leading, linspace, trailing])
def test_spacings_are_those_of_diffusers(spacing, n):
    """eq-spacing; theirs start `linspace` with one step at the last timestep, t = 0, which cannot
    be meant"""
    for make in (DDPMScheduler, DDIMScheduler):
        scheduler = make(num_train_timesteps=1000, timestep_spacing=spacing.__name__)
        scheduler.set_timesteps(n)
        want = (
            [1000, 0]
            if spacing is linspace and n == 1
            else (scheduler.timesteps + 1).tolist() + [0]
        )
        assert LINEAR.times(n, spacing) == want

# ------------------------------------------------------------ what is refused
@pytest.mark.parametrize('make', [ddim, dpm_solver_pp])
@pytest.mark.parametrize('eta', [-0.1, 1.5, math.nan, math.inf])
def test_eta_outside_0_to_1(make, eta):
    with pytest.raises(ValueError, match=rf'eta = {eta} is outside 0\.\.1'): make(eta)

@pytest.mark.parametrize('name', STEPS)
@pytest.mark.parametrize(
    'times, error, match',
    [
        ([], ValueError, 'down to 0'),
        ([1000], ValueError, 'down to 0'),
        ([1000, 500], ValueError, r'down to 0, not end with \[1000, 500\]'),
        ([1000, 500, 500, 0], ValueError, '500 is followed by 500'),
        ([1000, 200, 1500, 0], ValueError, r't = 1500, which is outside 1\.\.1000'),
        ([1001, 500, 0], ValueError, r't = 1001, which is outside 1\.\.1000'),
        ([900, 0], ValueError, 'give x_T, or start at 1000'),
        (
            [1000, 0.5, 0],
            TypeError,
            (
                r'times must be whole numbers, such as Schedule\.times\(n\) makes, not \[1000,'
                r' 0\.5, 0\]'
            ),
        ),
        ([1000, -5, 0], ValueError, r't = -5, which is outside 1\.\.1000'),
    ],
)
def test_times_that_are_no_walk(name, times, error, match):
    with pytest.raises(error, match=match): draw(step=STEPS[name], times=times, seed=0)

def test_a_noisy_step_does_not_go_up():
    x = torch.zeros(2)
    for step in (ddim(0.5), dpm_solver_pp(1)):
        with pytest.raises(ValueError, match='s must be less than t, but s = 500 and t = 100'):
            step.coefficients(LINEAR.at(100, x), LINEAR.at(500, x))

# ------------------------------------------------------------ the table of chapter 10
if __name__ == '__main__':
    rows = [(*case, float(f'{difference(*case):.2g}')) for case in tqdm(CASES, unit='trajectory')]
    TABLE.parent.mkdir(exist_ok=True)
    about = dict(
        command='python tests/test_solvers.py',
        date=f'{date.today()}',
        diffusers=diffusers.__version__,
        columns=['method', 'prediction', 'clip', 'steps', 'difference'],
    )
    TABLE.write_text(
        json.dumps(about)[:-1] + ', "rows": [\n' + ',\n'.join(map(json.dumps, rows)) + ']}\n'
    )
    print(f'wrote {TABLE}')
