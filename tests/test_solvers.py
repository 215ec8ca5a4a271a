"Few steps: each solver against its paper's formula, the exact flow, and diffusers, frame by frame"
import itertools, json, math
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from unittest.mock import patch
import diffusers, numpy as np, pytest, scipy.integrate, scipy.stats, torch
from conftest import assert_gaussian, even_schedule, gen, within
from diffusers import (DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler,
                       HeunDiscreteScheduler)
from torch import nn
from tqdm import tqdm
from diffusion_scratch.data import mnist_mini
from diffusion_scratch.denoiser import EPS, V, X0, Denoiser, clipped
from diffusion_scratch.guidance import guided
from diffusion_scratch.noising import Gaussian, q_posterior
from diffusion_scratch.oracle import GaussianOracle, MixtureOracle
from diffusion_scratch.sampling import (Coefficients, Noise, Solver, ancestral, coefficient_table,
                                        fixed_large, fixed_small, sample, trajectory)
from diffusion_scratch.schedule import (Level, Schedule, cosine_betas, leading, linear_betas,
                                        linspace, log_snr, trailing, zero_terminal_snr)
from diffusion_scratch.solvers import ddim, dpm_solver_pp, exponential, heun, trapezoid
from diffusion_scratch.unet import UNet

SCHEDULES = LINEAR, COSINE, DARK = (Schedule(linear_betas()), Schedule(cosine_betas()),
                                    Schedule(zero_terminal_snr(linear_betas())))
CALM = ddim(), dpm_solver_pp(), heun(), heun(trapezoid)                         # deterministic
STEPS = *CALM, ddim(0.5), ddim(1), dpm_solver_pp(1), ancestral()
CENTRES = torch.tensor([[-0.6, 0.], [0.6, 0.2], [0., -0.7]])
MODES = MixtureOracle(CENTRES, 0.25, labels=torch.arange(3))
every_solver = pytest.mark.parametrize('step', STEPS, ids=repr)
every_schedule = pytest.mark.parametrize('schedule', SCHEDULES, ids=['linear', 'cosine', 'dark'])

def draw(denoiser=MODES, schedule=LINEAR, shape=(4, 2), **kw):
    return sample(denoiser, schedule, shape, progress=False, **kw)
def frames_of(step, times, denoiser=MODES, schedule=LINEAR, shape=(4, 2), **kw):
    return list(trajectory(denoiser, schedule, shape, step=step, times=times, **kw))
def pairs(schedule=LINEAR, n=300):
    "x_t, x0 and random levels s < t, 0 < s"
    x_t, x0 = torch.randn(2, n, 3, generator=gen(), dtype=torch.float64)
    s = torch.randint(1, schedule.T, (n,), generator=gen(1))
    t = s + 1 + (torch.rand(n, generator=gen(2)) * (schedule.T - s)).long()
    return x_t, x0, schedule.at(t.clamp(max=schedule.T), x_t), schedule.at(s, x_t)
def at(*lams, last=1):
    "Any levels, by their log(signal/noise); the times fall to `last`"
    lam = torch.tensor(lams, dtype=torch.float64)[:, None]
    t = torch.arange(last + len(lams) - 1, last - 1, -1)
    return Level(t, (2 * lam).sigmoid().sqrt(), (-2 * lam).sigmoid().sqrt())
def one_step(step, x_t, x0, t, s):
    "Where a solver goes from x_t, for each image at its own levels"
    c = step.coefficients(t, s)
    return Gaussian(c.x0 * x0 + c.x_t * x_t, c.std)

# ---- one step of DDIM
@pytest.mark.parametrize('eta', [0., 0.3, 1., 1, 0])
def test_ddim_is_the_papers_formula(eta):
    "eq-ddim, eq-eta: Song et al. 2021, eq. 12, 16; 1e-16 of rounding over 1 - ab_1 = 1e-4"
    x_t, x0, t, s = pairs()
    ab_t, ab_s = t.alpha_bar.numpy(), s.alpha_bar.numpy()
    eps = (x_t.numpy() - np.sqrt(ab_t) * x0.numpy()) / np.sqrt(1 - ab_t)
    sigma = eta * np.sqrt((1 - ab_s) / (1 - ab_t)) * np.sqrt(1 - ab_t / ab_s)
    mean = np.sqrt(ab_s) * x0.numpy() + np.sqrt(1 - ab_s - sigma**2) * eps
    p = one_step(ddim(eta), x_t, x0, t, s)
    np.testing.assert_allclose(p.mean, mean, rtol=0, atol=1e-9)
    np.testing.assert_allclose(p.std.expand(300, 1), sigma, rtol=0, atol=1e-9)

@every_schedule
def test_ancestral_is_ddim_with_eta_1(schedule):
    "eq-ddim: the same Gaussian at any levels, and the same images from the same seed"
    x_t, x0, t, s = pairs(schedule)
    ours = one_step(ddim(1.), x_t, x0, t, s)
    for other in (one_step(ancestral(), x_t, x0, t, s), q_posterior(x0, x_t, t, s)):
        for a, b in zip(ours, other): within(a, b, 1e-12)
    x_T, T = torch.randn(4, 2, generator=gen(), dtype=torch.float64), schedule.T
    for times in (schedule.times(17), schedule.times(20, log_snr), [T, 1, 0], [T, 0]):
        a, b = (draw(schedule=schedule, step=step, times=times, x_T=x_T, seed=3)
                for step in (ddim(1.), ancestral()))
        within(a, b, 1e-12)

# ---- what every solver keeps
@every_solver
@every_schedule
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_last_frame_is_the_last_prediction_bit_for_bit(step, schedule, dtype):
    "In every precision, also where no signal is left at T; nothing on the way is NaN"
    x_T = torch.randn(3, 2, generator=gen()).to(dtype)
    for times in ([schedule.T, 0], [schedule.T, 400, 0], [schedule.T, 900, 30, 1, 0]):
        frames = frames_of(step, times, schedule=schedule, shape=(3, 2), x_T=x_T, seed=0)
        assert torch.equal(frames[-1].x, frames[-2].x0)
        assert frames[-1].x.dtype == torch.promote_types(dtype, torch.float32)
        assert all(f.x.isfinite().all() for f in frames)

@every_solver
def test_one_point_is_drawn_exactly_by_one_step_and_by_many(step):
    "Where the prediction never changes no solver makes an error"
    point = torch.tensor([[0.3, -0.9]])
    for times in ([1000, 0], [1000, 999, 10, 0], LINEAR.times(40, log_snr)):
        within(draw(MixtureOracle(point), step=step, times=times, seed=0), point.expand(4, 2), 1e-6)

@every_solver
def test_a_step_has_no_state(step):
    "Two trajectories that take turns with one step do not disturb each other"
    kw = dict(step=step, times=LINEAR.times(7))
    *_, ends = zip(*(trajectory(MODES, LINEAR, (2, 2), seed=seed, **kw) for seed in (1, 2)))
    for end, seed in zip(ends, (1, 2)):
        assert torch.equal(end.x, draw(shape=(2, 2), seed=seed, **kw))

@every_solver
def test_an_image_depends_on_its_seed_and_number_alone(step):
    "In any batch, but for matrix products of other sizes"
    kw = dict(step=step, times=LINEAR.times(20), seed=5)
    whole = draw(shape=(7, 2), **kw)
    for n, first in ((1, 0), (2, 3), (4, 3)):
        part = draw(shape=(n, 2), first=first, **kw)
        within(part, whole[first : first + n], 1e-6)

@every_solver
def test_the_start_alone_decides_where_there_is_no_chance(step):
    x = torch.randn(4, 2, generator=gen())
    a, b, c = (draw(step=step, times=LINEAR.times(8), x_T=x_T, seed=seed)
               for x_T, seed in ((x, 0), (x, 1), (-x, 0)))
    assert torch.equal(a, b) == (step in CALM) and not torch.equal(a, c)

@every_solver
def test_clipping_works_with_every_solver(step):
    class Wild(nn.Module):
        def forward(self, x, t): return 3 * torch.sin(5 * x)
    wild, kw = Denoiser(Wild(), X0), dict(shape=(4, 1, 5, 7), seed=0)
    largest = lambda d: max(f.x0.abs().max() for f in frames_of(step, LINEAR.times(9), d, **kw))
    assert largest(clipped(wild)) <= 1 < largest(wild)

@every_solver
def test_labels_work_with_every_solver(step):
    "Each image near its own mode: 4.4 standard deviations"
    y, kw = torch.tensor([0, 1, 2, 2]), dict(step=step, times=LINEAR.times(50, log_snr), seed=0)
    labelled = draw(y=y, **kw)
    assert (labelled - CENTRES[y]).abs().max() < 1.1
    assert torch.equal(labelled, draw(guided(MODES, y, 0.), **kw))

@every_solver
def test_how_often_the_network_is_called(step, capsys):
    "n calls for n steps; for Heun 2n - 1; the progress bar shows them"
    class Counting(nn.Module):
        calls = 0
        def forward(self, x, level, y=None): self.calls += 1; return MODES(x, level)
    for n in (1, 2, 7):
        calls = 2*n - 1 if isinstance(step, heun) else n
        sample(d := Counting(), LINEAR, (4, 2), step=step, times=LINEAR.times(n), seed=0)
        assert d.calls == calls and f' {calls + 1}/{calls + 1} ' in capsys.readouterr().err

# ---- DPM-Solver++
@pytest.mark.parametrize('eta', [0., 1.])
def test_the_multistep_formulas(eta):
    "eq-multistep, eq-multistep-sde: as Lu et al. 2022 print them, steps of unequal length"
    x, x0_before, x0 = torch.randn(3, 5, 1, generator=gen(), dtype=torch.float64)
    t, s = at(-1.3, -0.4, last=2), at(-0.4, 0.1)
    h, before = 0.5, 0.9
    D = (1 + h / (2 * before)) * x0 - h / (2 * before) * x0_before
    ratio, signal, noise = s.noise[-1] / t.noise[-1], s.signal[-1], s.noise[-1]
    if eta:
        mean = ratio * math.exp(-h) * x - signal * math.expm1(-2 * h) * D
        std = noise * math.sqrt(-math.expm1(-2 * h))
    else: mean, std = ratio * x - signal * math.expm1(-h) * D, 0 * noise
    c = Coefficients(*(z[-1] for z in dpm_solver_pp(eta).coefficients(t, s)))
    within(c.x0 * x0 + c.x_t * x + c.previous * x0_before, mean, 1e-12, rtol=1e-12)
    within(c.std, std, 1e-12, rtol=1e-12)

@pytest.mark.parametrize('eta', [0., 0.4, 1.])
def test_the_first_step_is_ddims_and_so_is_one_after_a_jump_up(eta):
    "A prediction from before the jump is no neighbour"
    ours, ddims = (coefficient_table(step, LINEAR, [1000, 700, 800, 500, 0])
                   for step in (dpm_solver_pp(eta), ddim(eta)))
    assert ours[0] == ddims[0] and ours[2] == ddims[2] and ours[1].std > 0 and ours[1].x0 == 0

def test_the_flow_is_an_average_of_predictions():
    "eq-variation by quadrature along eq-gaussian-flow; eq-flow by its slope"
    var, mu = 0.3**2, -0.2
    path = lambda lam: mu + 1.7 * math.sqrt(var + math.exp(-2 * lam))
    prediction = lambda lam: mu + var / (var + math.exp(-2 * lam)) * (path(lam) - mu)
    eps = lambda lam: (path(lam) - prediction(lam)) * math.exp(lam)
    for a, b in ((-3., -2.), (-1., 1.5), (0.5, 4.)):
        t, s = at(a), at(b)
        integral, _ = scipy.integrate.quad(lambda lam: math.exp(lam - b) * prediction(lam), a, b,
                                           epsabs=1e-13)
        x_s = s.noise / t.noise * t.signal * path(a) + s.signal * integral
        assert x_s.item() == pytest.approx((s.signal * path(b)).item(), abs=1e-10)
        rise, run = path(a + 1e-5) - path(a - 1e-5), math.exp(-a - 1e-5) - math.exp(-a + 1e-5)
        assert rise / run == pytest.approx(eps(a), rel=1e-6)
    oracle = GaussianOracle(torch.tensor([mu]), torch.tensor([[var]]))
    assert oracle(at(0.5).signal * path(0.5), at(0.5)).x0.item() == pytest.approx(prediction(0.5),
                                                                                  abs=1e-7)

# ---- Heun
@pytest.mark.parametrize('h', [1e-3, 0.1, 1., 5.])
def test_what_the_two_rules_add(h):
    "eq-heun-rules: an integral, and half of e^h - 1; both are h/2 for short steps"
    integral, _ = scipy.integrate.quad(lambda lam: math.exp(lam - h) * lam / h, 0, h)
    a, b = (rule(torch.tensor(h, dtype=torch.float64)).item() for rule in (exponential, trapezoid))
    assert a == pytest.approx(integral, rel=1e-9)
    assert b == pytest.approx((math.exp(h) - 1) / 2, rel=1e-12)
    if h == 1e-3: assert [a, b] == pytest.approx([h / 2, h / 2], rel=1e-3)
    assert exponential(torch.tensor(math.inf)) == 1

@pytest.mark.parametrize('rule', [exponential, trapezoid])
def test_heun_takes_a_step_evaluates_again_and_corrects(rule):
    "eq-heun; the trapezoid also as in Karras et al. 2022, algorithm 1"
    x_T = torch.randn(4, 2, generator=gen(), dtype=torch.float64)
    frames = frames_of(heun(rule), [900, 500, 120, 0], x_T=x_T)
    assert [f.t for f in frames] == [900, 500, 500, 120, 120, 0]
    for first, second, after in (frames[:3], frames[2:5]):
        t, s = LINEAR.at(first.t, x_T), LINEAR.at(second.t, x_T)
        euler = one_step(ddim(), first.x, first.x0, t, s).mean
        h = (s.log_snr - t.log_snr) / 2
        within(second.x, euler, 1e-12)
        within(after.x, euler + s.signal * rule(h) * (second.x0 - first.x0), 1e-10)
        if rule is trapezoid:
            slopes = [(f.x - l.signal * f.x0) / l.noise for f, l in ((first, t), (second, s))]
            rise = (s.noise / s.signal - t.noise / t.signal) * (slopes[0] + slopes[1]) / 2
            within(after.x / s.signal, first.x / t.signal + rise, 1e-10)

@pytest.mark.parametrize('times, visits', [
    ([9, 0], [9, 0]), ([9, 4, 0], [9, 4, 4, 0]), ([9, 4, 1, 0], [9, 4, 4, 1, 1, 0]),
    ([9, 4, 7, 2, 0], [9, 4, 4, 7, 2, 2, 0]), (range(3, -1, -1), [3, 2, 2, 1, 1, 0])])
def test_which_times_heun_visits(times, visits):
    "Twice each that a step leads down to, but for 0"
    assert heun().visits(times) == visits

def test_heun_refuses_times_that_are_visited_once():
    "It would be DDIM, without an error"
    message = r'heun\(\) visits each time twice, but these times go from t = 5 to 2'
    with pytest.raises(ValueError, match=message): coefficient_table(heun(), LINEAR, [10, 5, 2, 0])
    @dataclass(frozen=True, repr=False)
    class hidden(Solver):                                            # a wrapper that hides `visits`
        def coefficients(self, t, s): return heun().coefficients(t, s)
    with pytest.raises(ValueError, match='visits each time twice'):
        draw(step=hidden(), times=[1000, 500, 0], seed=0)

# ---- convergence
LONG = even_schedule(20_000, 18, -10)
START = torch.randn(50, 2, generator=gen(), dtype=torch.float64)
MEAN, COV = torch.tensor([0.3, -0.5]).double(), torch.tensor([[0.25, 0.1], [0.1, 0.09]]).double()
GAUSSIAN = GaussianOracle(MEAN, COV)

@cache
def solved(oracle, schedule):
    "Where eq-flow leads from START: by SciPy, with log(noise/signal) as its clock"
    signal, noise = schedule.signal[-1].item(), schedule.noise[-1].item()
    def slope(log_rho, y):
        level = at(*[-log_rho] * len(START))
        x = torch.from_numpy(y.reshape(START.shape)) * level.signal
        return (math.exp(log_rho) * oracle(x, level).eps).numpy().ravel()
    span, y = (math.log(noise / signal), math.log(1e-7)), (START / signal).numpy().ravel()
    path = scipy.integrate.solve_ivp(slope, span, y, method='DOP853', rtol=1e-10, atol=1e-12)
    return torch.from_numpy(path.y[:, -1].reshape(START.shape))

def error(step, oracle, n, schedule=LONG, spacing=log_snr):
    x = draw(oracle, schedule, START.shape, step=step, times=schedule.times(n, spacing), x_T=START)
    return (x - solved(oracle, schedule)).square().mean().sqrt().item()

# ---- the flow keeps the marginals
LINE_MEANS, LINE_STDS, LINE_WEIGHTS = np.array([-0.8, 0.5]), np.array([0.12, 0.3]), [0.4, 0.6]
LINE = MixtureOracle(torch.from_numpy(LINE_MEANS)[:, None], torch.from_numpy(LINE_STDS),
                     torch.tensor(LINE_WEIGHTS))

def on_an_arc(time, n):
    "A level that is not variance preserving, for n points, and the derivatives of its two numbers"
    signal, noise = math.cos(time)**2, math.sin(time) * (1 + time)
    slopes = -math.sin(2 * time), math.cos(time) * (1 + time) + math.sin(time)
    tables = (torch.full((n, 1), c, dtype=torch.float64) for c in (signal, noise))
    return Level(torch.ones(n).long(), *tables), slopes

def mean_velocity(oracle, x, time):
    "eq-mean-velocity, from the predictions"
    level, (signal_slope, noise_slope) = on_an_arc(time, len(x))
    p = oracle(x, level)
    return signal_slope * p.x0 + noise_slope * p.eps

@pytest.mark.parametrize('time', [0.3, 0.8, 1.3])
def test_the_velocity_of_the_flow_is_a_mean_of_velocities(time):
    "eq-mean-velocity by quadrature over x0; eq-flow by the quotient rule"
    level, (a, b) = on_an_arc(time, 41)
    s, n, x = level.signal[0].item(), level.noise[0].item(), np.linspace(-2, 2, 41)
    x0 = np.linspace(-3, 3, 6001)[:, None]
    prior = sum(w * scipy.stats.norm.pdf(x0, m, sd)
                for w, m, sd in zip(LINE_WEIGHTS, LINE_MEANS, LINE_STDS))
    weight = prior * scipy.stats.norm.pdf(x, s * x0, n)
    want = (weight * (a * x0 + b * (x - s * x0) / n)).sum(0) / weight.sum(0)
    x = torch.from_numpy(x)[:, None]
    got = mean_velocity(LINE, x, time)
    np.testing.assert_allclose(got.flatten(), want, rtol=0, atol=1e-6)
    within((got - x / s * a) / s, LINE(x, level).eps * (b - n / s * a) / s, 1e-9)

@pytest.mark.parametrize('oracle', [GAUSSIAN, MODES], ids=['gaussian', 'modes'])
@pytest.mark.parametrize('step', CALM, ids=repr)
def test_order_of_convergence(step, oracle):
    "eq-order: 1/n for DDIM, 1/n^2 for the others; the next order bends the line by under 0.1"
    ns, first_order = (50, 100, 200, 500), step == ddim()
    errors = [error(step, oracle, n) for n in ns]
    order = -np.polyfit(np.log(ns), np.log(errors), 1)[0]
    assert abs(order - (1 if first_order else 2)) < 0.1, (order, errors)
    assert errors[-1] < (5e-3 if first_order else 1e-4)

def test_few_steps_on_the_usual_schedules():
    "Ten steps: second order pays, and Heun's default rule is the safe one on the cosine schedule"
    for schedule in (LINEAR, COSINE):
        of_ddim, of_dpm, of_heun, of_trapezoid = errors = [
            error(step, MODES, 10, schedule, trailing) for step in CALM]
        assert max(of_dpm, of_heun) < of_ddim < 0.2, errors
    assert of_trapezoid > 30 * of_heun

@pytest.mark.parametrize('step, n', [
    (ddim(0.5), 250), (dpm_solver_pp(1), 60), (dpm_solver_pp(0.5), 60),
    (ancestral(fixed_large), 250)], ids=str)
def test_the_stochastic_solvers_draw_the_right_distribution(step, n):
    "3,000 draws; in 60 steps the first-order solver would be off by 5 standard errors"
    x = draw(GAUSSIAN, LONG, (3000, 2), step=step, times=LONG.times(n, log_snr), seed=0)
    assert_gaussian(x.double(), MEAN, COV)

def test_the_same_seed_is_the_same_digit_from_a_hundred_to_a_thousand_steps_and_mostly_from_ten():
    "Exact denoiser of 100 digits, 20 seeds; by chance 1 in 100 would agree"
    known = mnist_mini()[:][0][::50]
    oracle, shape = MixtureOracle(known), (20, 1, 28, 28)
    def which(step, n):
        x = draw(oracle, LINEAR, shape, step=step, times=LINEAR.times(n), seed=0)
        return torch.cdist(x.flatten(1), known.flatten(1)).argmin(1)
    truth = which(dpm_solver_pp(), 1000)
    agree = lambda step, n: (which(step, n) == truth).double().mean()
    assert len(truth.unique()) > 10
    for step in CALM: assert agree(step, 10) >= 0.8 and agree(step, 100) >= 0.95, step
    assert agree(ddim(1.), 100) < 0.3

# ---- the field
def a_net():
    "A UNet with random weights, none of them small, in float64"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(1, 32, (1,), 1, ()).double().eval()
        for p in net.parameters(): nn.init.normal_(p, std=0.5 / max(1, p[0].numel())**0.5)
    return net
NET, SHAPE = a_net(), (2, 1, 4, 4)
TYPES = {'eps': (EPS, 'epsilon'), 'x0': (X0, 'sample'), 'v': (V, 'v_prediction')}
LINSPACE, TRAILING = dict(timestep_spacing='linspace'), dict(timestep_spacing='trailing')
SDE = dict(algorithm_type='sde-dpmsolver++')
# our step, their scheduler, its options, the options of its step, the tolerance: their DPM-Solver
# computes in float32, the others in float64. In their DDIM the noise agrees with the clipped image
RIVALS = {
    **{f'DDPM {variance.__name__}': (
        ancestral(variance), DDPMScheduler, dict(LINSPACE, variance_type=variance.__name__), {},
        1e-12) for variance in (fixed_small, fixed_large)},
    **{f'DDIM eta {eta:g}': (
        ddim(eta), DDIMScheduler, TRAILING, dict(eta=eta, use_clipped_model_output=True),
        1e-12) for eta in (0., 0.5, 1.)},
    'DPM-Solver++ 2M': (dpm_solver_pp(), DPMSolverMultistepScheduler, {}, {}, 5e-6),
    'SDE-DPM-Solver++ 2M': (
        dpm_solver_pp(1.), DPMSolverMultistepScheduler, SDE, dict(variance_noise=None), 5e-6),
    'Heun': (heun(trapezoid), HeunDiscreteScheduler, {}, {}, 1e-12),
}
COUNTS, CLIP = (5, 10, 50), ('', 'clipped')
CASES = list(itertools.product(RIVALS, TYPES, CLIP, COUNTS))
TABLE = Path(__file__).parents[1] / 'nbs' / 'assets' / 'solvers' / 'conformance.json'

@torch.no_grad()
def theirs(scheduler, times, visits, options, seed):
    "The x of every moment on our scale, with our tables and noise; their timesteps count from 0"
    noise, scale = Noise(seed, 2), torch.ones(len(visits))
    fresh = (noise.draw(SHAPE[1:]).double() for _ in range(len(times) + 1))
    scheduler.alphas_cumprod = LINEAR.alpha_bar[1:]
    if isinstance(scheduler, (DDPMScheduler, DDIMScheduler)):
        scheduler.set_timesteps(len(times) - 1)
    else: scheduler.set_timesteps(timesteps=[t - 1 for t in times[:-1]])
    assert (scheduler.timesteps.long() + 1).tolist() == visits[:-1]
    if isinstance(scheduler, HeunDiscreteScheduler): scale = LINEAR.signal[visits]  # x / signal
    if hasattr(scheduler, 'sigmas'): scheduler.sigmas = (LINEAR.noise / LINEAR.signal)[visits]
    xs, randn = [next(fresh) / scale[0]], 'diffusers.schedulers.scheduling_ddpm.randn_tensor'
    for a, t in zip(scale, scheduler.timesteps):
        if options: options = dict(options, variance_noise=next(fresh))
        out = NET(a * xs[-1], (t.long() + 1).expand(2))
        with patch(randn, lambda *_, **__: next(fresh)):
            xs.append(scheduler.step(out, t, xs[-1], **options).prev_sample)
    return [a * x for a, x in zip(scale, xs)]

def both(name, times, kind='v', clip='', seed=7, **more):
    "Every x of a trajectory, ours and diffusers': same network, same noise"
    (step, make, config, options, _), (parameterization, word) = RIVALS[name], TYPES[kind]
    clipping = dict(clip_sample=bool(clip))
    if make is DPMSolverMultistepScheduler:  # with a ceiling of 1 that is clipping
        clipping = dict(thresholding=bool(clip), sample_max_value=1.)
    scheduler = make(trained_betas=LINEAR.betas.tolist(), prediction_type=word,
                     **clipping, **config | more)
    denoiser = Denoiser(NET, parameterization)
    if clip: denoiser = clipped(denoiser)
    return ([f.x for f in frames_of(step, times, denoiser, shape=SHAPE, seed=seed)],
            theirs(scheduler, times, step.visits(times), options, seed))

def difference(ours, field):
    "The largest of all frames, relative to the frame's largest value; NaN if any is"
    assert len(ours) == len(field) and ours[0].dtype == torch.float64
    gaps = [(a - b).abs().max() / b.abs().max() for a, b in zip(ours, field)]
    return torch.stack(gaps).max().item()

def measured(name, kind, clip, n):
    "One number of the published table"
    times = LINEAR.times(n, linspace if 'DDPM' in name else trailing)
    return difference(*both(name, times, kind, clip))

@pytest.mark.parametrize('name, kind, clip, n', [
    case for case in CASES if case[-1] < 50 or 'v' in case])  # 50 steps in one parameterization
def test_whole_trajectories_are_those_of_diffusers(name, kind, clip, n):
    assert measured(name, kind, clip, n) <= RIVALS[name][-1]

def test_the_published_table_is_that_of_these_trajectories():
    """Chapter 10 shows what `python tests/test_solvers.py` last wrote. Digits this small are
    rounding, and other on another machine: so each within its tolerance, and one of each kind
    within a factor of 100 of what is measured here, or of 1e-15"""
    rows = json.loads(TABLE.read_text())['rows']
    assert [tuple(case) for *case, _ in rows] == CASES
    assert all(0 <= published <= RIVALS[name][-1] for name, *_, published in rows)
    for *case, published in rows[::19]:
        assert 1 / 100 < max(published, 1e-15) / max(measured(*case), 1e-15) < 100, case

ODD = sorted(torch.randperm(998, generator=gen())[:9].add(2).tolist(), reverse=True)
@pytest.mark.parametrize('times', [LINEAR.times(15, log_snr), [1000, *ODD, 1, 0]],
                         ids=['log_snr', 'random'])
@pytest.mark.parametrize('name', ['DPM-Solver++ 2M', 'SDE-DPM-Solver++ 2M', 'Heun'])
def test_multistep_trajectories_of_diffusers_on_other_times(name, times):
    "Any list of times; their DPM-Solver computes in float32, through very unequal steps"
    assert difference(*both(name, times, seed=3)) < (1e-12 if name == 'Heun' else 2e-5)

def test_their_ddpm_adds_noise_at_the_end_where_ours_does_not():
    "Their last step draws unless it starts at their t = 0, which `trailing` never visits"
    times, noise = LINEAR.times(5), Noise(7, 2)
    ours, field = both('DDPM fixed_large', times, **TRAILING)
    *_, z = (noise.draw(SHAPE[1:]) for _ in range(6))
    within(ours[-2], field[-2], 1e-12)
    within(field[-1] - ours[-1], (1 - LINEAR.alpha_bar[times[-2]]).sqrt() * z.double(), 1e-9)

@pytest.mark.parametrize('n', [1, 2, 3, 4, 7, 10, 25, 50, 250, 333, 999, 1000])
@pytest.mark.parametrize('spacing', [leading, linspace, trailing])
def test_spacings_are_those_of_diffusers(spacing, n):
    "eq-spacing; theirs make one step of `linspace` at t = 0, which cannot be meant"
    for make in (DDPMScheduler, DDIMScheduler):
        scheduler = make(num_train_timesteps=1000, timestep_spacing=spacing.__name__)
        scheduler.set_timesteps(n)
        want = (scheduler.timesteps + 1).tolist()
        if spacing is linspace and n == 1: want = [1000]
        assert LINEAR.times(n, spacing) == [*want, 0]

# ---- what is refused; lists of times in test_sampling.py
@pytest.mark.parametrize('make', [ddim, dpm_solver_pp])
@pytest.mark.parametrize('eta', [-0.1, 1.5, math.nan, math.inf])
def test_eta_outside_0_to_1(make, eta):
    with pytest.raises(ValueError, match=rf'eta = {eta} is outside 0\.\.1'): make(eta)

@pytest.mark.parametrize('step', [ddim(0.5), dpm_solver_pp(1)], ids=repr)
def test_a_noisy_step_does_not_go_up(step):
    x = torch.zeros(2)
    with pytest.raises(ValueError, match='s must be less than t, but s = 500 and t = 100'):
        step.coefficients(LINEAR.at(100, x), LINEAR.at(500, x))

# ---- the table of chapter 10
if __name__ == '__main__':
    rows = [(*case, float(f'{measured(*case):.2g}')) for case in tqdm(CASES, unit='trajectory')]
    TABLE.parent.mkdir(exist_ok=True)
    about = dict(command='python tests/test_solvers.py', date=f'{date.today()}',
                 diffusers=diffusers.__version__,
                 columns=['method', 'prediction', 'clip', 'steps', 'difference'])
    lines = ',\n'.join(map(json.dumps, rows))
    TABLE.write_text(json.dumps(about)[:-1] + ', "rows": [\n' + lines + ']}\n')
    print(f'wrote {TABLE}')
