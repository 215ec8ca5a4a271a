"Few steps: each solver against its paper's formula, the exact flow, and diffusers, frame by frame"
import itertools, json, math
from datetime import date
from pathlib import Path
from unittest.mock import patch
import diffusers, pytest, scipy.integrate, torch
from conftest import assert_gaussian, even_schedule, gen, refused, within
from diffusers import (DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler,
                       HeunDiscreteScheduler)
from torch import nn
from tqdm import tqdm
from diffusion_scratch.denoiser import EPS, V, X0, Denoiser, clipped
from diffusion_scratch.oracle import GaussianOracle, MixtureOracle
from diffusion_scratch.sampling import (Noise, ancestral, coefficient_table, fixed_large,
                                        fixed_small, sample, trajectory)
from diffusion_scratch.schedule import (Level, Schedule, cosine_betas, leading, linear_betas,
                                        linspace, log_snr, trailing, zero_terminal_snr)
from diffusion_scratch.solvers import ddim, dpm_solver_pp, exponential, heun, trapezoid
from diffusion_scratch.unet import UNet

SCHEDULES = LINEAR, COSINE, DARK = (Schedule(linear_betas()), Schedule(cosine_betas()),
                                    Schedule(zero_terminal_snr(linear_betas())))
CALM = ddim(), dpm_solver_pp(), heun(), heun(trapezoid)                         # deterministic
STEPS, X = (*CALM, ddim(0.5), ddim(1), dpm_solver_pp(1), ancestral()), torch.zeros(2)
CENTRES = torch.tensor([[-0.6, 0.], [0.6, 0.2], [0., -0.7]])
MODES = MixtureOracle(CENTRES, 0.25, labels=torch.arange(3))
every_solver = pytest.mark.parametrize('step', STEPS, ids=repr)
every_schedule = pytest.mark.parametrize('schedule', SCHEDULES, ids=['linear', 'cosine', 'dark'])

def draw(denoiser=MODES, schedule=LINEAR, shape=(4, 2), **kw):
    return sample(denoiser, schedule, shape, progress=False, **kw)
def frames_of(step, times, denoiser=MODES, schedule=LINEAR, shape=(4, 2), **kw):
    return list(trajectory(denoiser, schedule, shape, step=step, times=times, **kw))
@every_schedule
def test_ancestral_is_ddim_with_eta_1(schedule):
    "eq-ddim: the same step between any levels, and the same images from the same seed"
    T, s = schedule.T, torch.randint(1, schedule.T, (300,), generator=gen(1))
    t = (s + 1 + (torch.rand(300, generator=gen(2)) * (T - s)).long()).clamp(max=T)
    t, s = schedule.at(t, t), schedule.at(s, s)
    one, other = (step.coefficients(t, s) for step in (ddim(1.), ancestral()))
    for a, b in zip(one, other): within(a, b, 1e-12)
    x_T = torch.randn(4, 2, generator=gen(), dtype=torch.float64)
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
def test_the_start_alone_decides_where_there_is_no_chance(step):
    x = torch.randn(4, 2, generator=gen())
    a, b, c = (draw(step=step, times=LINEAR.times(8), x_T=x_T, seed=seed)
               for x_T, seed in ((x, 0), (x, 1), (-x, 0)))
    assert torch.equal(a, b) == (step in CALM) and not torch.equal(a, c)

@pytest.mark.parametrize('eta', [0., 0.4, 1.])
def test_the_first_step_is_ddims_and_so_is_one_after_a_jump_up(eta):
    "A prediction from before the jump is no neighbour"
    ours, ddims = (coefficient_table(step, LINEAR, [1000, 700, 800, 500, 0])
                   for step in (dpm_solver_pp(eta), ddim(eta)))
    assert ours[0] == ddims[0] and ours[2] == ddims[2] and ours[1].std > 0 and ours[1].x0 == 0

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
    "eq-heun; with the trapezoid also as in diffusers, below"
    x_T = torch.randn(4, 2, generator=gen(), dtype=torch.float64)
    frames = frames_of(heun(rule), [900, 500, 120, 0], x_T=x_T)
    assert [f.t for f in frames] == [900, 500, 500, 120, 120, 0]
    for first, second, after in (frames[:3], frames[2:5]):
        t, s = LINEAR.at(first.t, x_T), LINEAR.at(second.t, x_T)
        c, h = ddim().coefficients(t, s), (s.log_snr - t.log_snr) / 2
        within(second.x, c.x0 * first.x0 + c.x_t * first.x, 1e-12)
        within(after.x - second.x, s.signal * rule(h) * (second.x0 - first.x0), 1e-10)

@pytest.mark.parametrize('times, visits', [
    ([9, 0], [9, 0]), ([9, 4, 0], [9, 4, 4, 0]), ([9, 4, 1, 0], [9, 4, 4, 1, 1, 0]),
    ([9, 4, 7, 2, 0], [9, 4, 4, 7, 2, 2, 0]), (range(3, -1, -1), [3, 2, 2, 1, 1, 0])])
def test_which_times_heun_visits(times, visits):
    "Twice each that a step leads down to, but for 0"
    assert heun().visits(times) == visits

# ---- what they draw (their order of convergence: chapter 10)
@pytest.mark.parametrize('time', [0.3, 0.8, 1.3])
def test_the_velocity_of_the_flow_is_a_mean_of_velocities(time):
    "eq-mean-velocity, by the mean of one Gaussian given another; the way preserves no variance"
    s, n = math.cos(time)**2, math.sin(time) * (1 + time)  # signal and noise, and their slopes
    a, b = -math.sin(2 * time), math.cos(time) * (1 + time) + math.sin(time)
    x, (mean, var) = torch.linspace(-2, 2, 41).double()[:, None], torch.tensor([0.3, 0.25]).double()
    level = Level(torch.ones(41).long(), torch.full_like(x, s), torch.full_like(x, n))
    p = GaussianOracle(mean.view(1), var.view(1, 1))(x, level)
    slope = (a * s * var + b * n) / (s**2 * var + n**2)  # Cov(a x0 + b eps, x) / Var(x)
    within(a * p.x0 + b * p.eps, a * mean + slope * (x - s * mean), 1e-9)

@pytest.mark.parametrize('step, n', [
    (ddim(0.5), 250), (dpm_solver_pp(1), 60), (dpm_solver_pp(0.5), 60),
    (ancestral(fixed_large), 250)], ids=str)
def test_the_stochastic_solvers_draw_the_right_distribution(step, n):
    "3,000 draws; in 60 steps the first-order solver would be off by 5 standard errors"
    long = even_schedule(20_000, 18, -10)
    mean, cov = torch.tensor([0.3, -0.5]).double(), torch.tensor([[25, 10], [10, 9]]).double() / 100
    options = dict(step=step, times=long.times(n, log_snr), seed=0)
    assert_gaussian(draw(GaussianOracle(mean, cov), long, (3000, 2), **options).double(), mean, cov)

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

@pytest.mark.parametrize('case, match', [
    *((lambda make=make, eta=eta: make(eta), rf'eta = {eta} is outside 0\.\.1')
      for make in (ddim, dpm_solver_pp) for eta in (-0.1, 1.5, math.nan, math.inf)),
    *((lambda step=step: step.coefficients(LINEAR.at(100, X), LINEAR.at(500, X)),
       's must be less than t, but s = 500 and t = 100') for step in (ddim(0.5), dpm_solver_pp(1))),
    (lambda: coefficient_table(heun(), LINEAR, [10, 5, 2, 0]),  # it would be DDIM
     r'heun\(\) visits each time twice, but these times go from t = 5 to 2')])
def test_what_is_refused(case, match): refused(case, match)  # lists of times: test_sampling
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
