"One model, many names: schedules from tables, and the processes that differ by a scale and a clock"
import math
import pytest
import torch
from conftest import gen, randn, refused, within
from torch import nn
from diffusion_scratch.checkpoint import load_checkpoint, save_checkpoint
from diffusion_scratch.data import ImageSet
from diffusion_scratch.denoiser import EPS, V, VELOCITY, X0, Denoiser
from diffusion_scratch.doctor import diagnose
from diffusion_scratch.export import export_diffusers
from diffusion_scratch.likelihood import bound, density_nll, encode, flow_bits
from diffusion_scratch.loss import (loss_at, uniform, v_weight, velocity_weight, vlb_terms,
                                    vlb_weight)
from diffusion_scratch.noising import q_posterior, q_sample, q_step, transition
from diffusion_scratch.oracle import MixtureOracle
from diffusion_scratch.pretrained import load, save
from diffusion_scratch.report import generate
from diffusion_scratch.sampling import ancestral, fixed_large, sample, trajectory
from diffusion_scratch.schedule import Level, Schedule, linear_betas, log_snr, prior_std
from diffusion_scratch.solvers import ddim, dpm_solver_pp, heun, trapezoid
from diffusion_scratch.training import TrainState, fit, warmup_constant
from diffusion_scratch.unet import UNet

VP = Schedule(linear_betas())
U = torch.linspace(0, 1, 1001, dtype=torch.float64)
LINE = Schedule.from_tables(1 - U, U)                      # flow matching
VE = Schedule.from_tables(torch.ones(1001), 80 * U**3)     # variance exploding
CENTRES = torch.tensor([[-0.6, 0.], [0.6, 0.2], [0., -0.7]])
HILLS = MixtureOracle(CENTRES, 0.25, labels=torch.arange(3))
STEPS = (ancestral(), ddim(), ddim(0.5), ddim(1), dpm_solver_pp(), dpm_solver_pp(1), heun(),
         heun(trapezoid))
every_process = pytest.mark.parametrize('schedule', [VP, LINE, VE], ids=['VP', 'line', 'VE'])

def same_rho(c):
    "The process of VP, each x_t divided by c_t"
    return Schedule.from_tables(VP.signal / c, VP.noise / c)
RESCALED = dict(line=same_rho(VP.signal + VP.noise), VE=same_rho(VP.signal), odd=same_rho(1 + U**2))
rescaled = pytest.mark.parametrize('other', RESCALED.values(), ids=RESCALED)

def images(n, seed=0): return randn(n, 2, seed=seed)

# A schedule from tables
def test_the_tables_of_a_schedule_make_it_again():
    again = Schedule.from_tables(VP.signal, VP.noise)
    assert again.is_close(VP) and VP.is_close(again) and not LINE.is_close(again)
    assert again.T == VP.T and again.times(10) == VP.times(10)
    assert again.times(10, log_snr) == VP.times(10, log_snr)
    assert repr(LINE) == 'Schedule(T=1000, signal 1..0, noise 0..1)'
    assert (LINE.at(300, images(2)).signal == 0.7).all()

@pytest.mark.parametrize('signal, noise, words', [
    ([1, 0.5], [0, 0.5, 1], ['signal has 2 entries and noise 3']),
    ([1], [0], ['vector']), ([[1, 0]], [0, 1], ['vector']),
    ([0.9, 0.5], [0, 1], ['index 0 is the data']), ([1, 0.5], [0.1, 1], ['index 0 is the data']),
    ([1, 0, 0], [0, 1, 2], ['signal_2 = 0']), ([1, -0.1], [0, 1], ['signal_1 = -0.1']),
    ([1, 0.5, 0.5], [0, 1, 1], ['from t = 1 to t = 2']),
    ([1, 2, 4], [0, 1, 1], ['from t = 1 to t = 2']), ([1, math.nan], [0, 1], ['finite']),
    ([1, 0], 'u', ['noise = .*T . 1 numbers', TypeError])])
def test_tables_that_are_no_process_are_refused(signal, noise, words):
    refused(lambda: Schedule.from_tables(signal, noise), *words)

def test_a_schedule_from_tables_has_no_betas():
    for name, words in dict(betas='tables .* has no betas', size='no size',
                            alpha_bar='tables .* has no alpha_bar').items():
        assert not hasattr(LINE, name)
        refused(lambda: getattr(LINE, name), words, AttributeError)

# The forward process
@every_process
def test_steps_lead_where_the_jump_leads(schedule):  # eq-step, eq-jump
    "The moments of q(x_t | x_0) through s, and the posterior by Bayes, with other formulas"
    x = images(50)
    for t, s in ((1000, 400), (600, 599), (2, 1)):
        t, s = schedule.at(t, x), schedule.at(s, x)
        scale, var = transition(t, s)
        within(scale * s.signal, t.signal, 1e-12)
        within(scale**2 * s.noise**2 + var, t.noise**2, 1e-9)
        x_t = q_step(q_sample(x, s, images(50, seed=1)), t, s, images(50, seed=2))
        p = q_posterior(x, x_t, t, s)
        precision = 1 / s.noise**2 + scale**2 / var
        within(p.std**-2, precision, 1e-6 * precision.max().item())
        mean = (s.signal * x / s.noise**2 + scale * x_t / var) / precision
        within(p.mean, mean, 1e-9 * (1 + mean.abs().max().item()))

# Sampling
@pytest.mark.parametrize('step', STEPS, ids=repr)
@rescaled
def test_a_process_with_the_same_rho_draws_the_same_images(other, step):  # eq-rescaled
    "Frame by frame, from the same noise, after division by the scale"
    times = VP.times(20)
    ours, theirs = (list(trajectory(HILLS.double(), s, (8, 2), step=step, times=times, seed=3))
                    for s in (VP, other))
    for a, b in zip(ours, theirs):
        c = prior_std(other.at(a.t, a.x)).float()
        torch.testing.assert_close(b.x / c, a.x, atol=2e-5, rtol=2e-4)
        torch.testing.assert_close(b.x0, a.x0, atol=2e-5, rtol=2e-4)

# Training and the bound
@every_process
@pytest.mark.parametrize('p', [EPS, X0, VELOCITY], ids=repr)
def test_coordinates_on_any_process(schedule, p):  # eq-velocity, eq-velocity-inverse
    x0, eps = images(50), images(50, seed=1)
    level = schedule.at(torch.arange(1, 1000, 20), x0)
    x_t = q_sample(x0, level, eps)
    read = p.predict(p.target(x0, eps, level), x_t, level)
    within(read.x0, x0, 1e-9)
    within(read.eps, eps, 1e-7)

@every_process
def test_velocity_weight_counts_the_error_of_the_velocity(schedule):  # eq-velocity-weight
    class Off(nn.Module):
        def forward(self, x_t, t): return 0.3 * x_t + 0.1
    x0, eps = images(50), images(50, seed=1)
    level = schedule.at(torch.arange(1, 1001, 20), x0)
    loss = loss_at(Denoiser(Off(), VELOCITY), x0, level, eps, weight=velocity_weight)
    error = 0.3 * q_sample(x0, level, eps) + 0.1 - (eps - x0)
    torch.testing.assert_close(loss, error.square().mean(1))

@rescaled
def test_the_bound_does_not_see_the_scale(other):
    "Each term but L_0, whose std is a convention, is a KL between Gaussians: no scale changes it"
    x0, times, schedules = images(16).clamp(-1, 1), VP.times(30), (VP, other)
    a, b = (vlb_terms(HILLS, s, x0, times=times, generator=gen()) for s in schedules)
    torch.testing.assert_close(a[1:], b[1:], atol=1e-9, rtol=1e-9)
    a, b = (bound(HILLS, s, x0, decoder=density_nll, times=times, seed=0, progress=False).L_t
            for s in schedules)
    within(a, b, 1e-9)
    level = [s.at(torch.arange(2, 101), torch.zeros(99, 1)) for s in schedules]
    within(*map(uniform, level), 0, rtol=1e-9)
    within(*(vlb_weight(s)(l) for s, l in zip(schedules, level)), 0, rtol=1e-9)

def test_fit_trains_on_a_straight_line(one_thread):
    torch.manual_seed(0)
    data = ImageSet(torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8))
    state = TrainState(Denoiser(UNet(1, 8, (1, 2), 1, ()), VELOCITY))
    metrics = list(fit(state, LINE, data, steps=60, batch_size=32, lr=warmup_constant(3e-3, 10),
                       weight=velocity_weight))
    losses = [m.loss for m in metrics]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    x = sample(state.ema, LINE, (2, 1, 8, 8), step=ddim(), times=LINE.times(5), progress=False)
    assert x.isfinite().all()

def test_a_velocity_network_is_saved_and_loaded_with_betas_and_with_no_tables(tmp_path):
    net, about, file = UNet(1, 8, (1, 2), 1, ()), dict(shape=[1, 8, 8]), tmp_path/'a.safetensors'
    denoiser = Denoiser(net, VELOCITY)
    for call in (lambda: save(denoiser, LINE, tmp_path/'model'),
                 lambda: save_checkpoint(file, TrainState(denoiser), LINE),
                 lambda: export_diffusers(Denoiser(net), LINE, tmp_path/'pipe', about),
                 lambda: generate(denoiser, LINE, (1, 8, 8), 2, tmp_path/'images', progress=False)):
        refused(call, 'made from tables .* has no betas', AttributeError)
    refused(lambda: export_diffusers(denoiser, VP, tmp_path/'pipe', about),
            'cannot read a prediction of velocity')
    assert not list(tmp_path.iterdir())
    save_checkpoint(file, TrainState(denoiser), VP)
    for again, schedule in (load(save(denoiser, VP, tmp_path/'model')), load_checkpoint(file)):
        assert again.parameterization is VELOCITY and schedule.is_close(VP)

# Refused
def test_what_needs_the_circle_refuses_a_straight_line():
    x = images(2)
    level = LINE.at(500, x)
    for call in (lambda: V.target(x, x, level), lambda: V.x0(x, x, level),
                 lambda: v_weight(level), lambda: fixed_large(x, x, level, LINE.at(400, x)),
                 lambda: flow_bits(HILLS, LINE, x.float(), width=None, progress=False),
                 lambda: encode(HILLS, LINE, torch.ones(2, 2), times=LINE.times(5)),
                 lambda: sample(HILLS, LINE, (2, 2), step=ancestral(fixed_large), progress=False),
                 lambda: diagnose(HILLS, LINE, None, [1.], weight=uniform)):
        refused(call, r'signal\^2 \+ noise\^2 = 1')

# The chapter: its equations, by other means than its own

SMOOTH = dict(circle=lambda u: (torch.cos(1.5 * u), torch.sin(1.5 * u)),
              line=lambda u: (1 - u, u), VE=lambda u: (1 + 0 * u, 5 * u**2),
              odd=lambda u: (torch.exp(-2 * u**2), u + u**3))
smooth = pytest.mark.parametrize('pair', SMOOTH.values(), ids=SMOOTH)

def rates(pair, u):
    "signal, noise and their derivatives, f and g^2, by automatic differentiation"
    u = torch.tensor(float(u), dtype=torch.float64, requires_grad=True)
    d = lambda y: torch.autograd.grad(y, u, retain_graph=True)[0].item()
    signal, noise = pair(u)
    f, g2 = d(signal.log()), signal.item()**2 * d((noise / signal)**2)
    return signal.item(), noise.item(), d(signal), d(noise), f, g2

@pytest.mark.parametrize('eta', [0., 0.4, 1.])
@smooth
def test_a_short_ddim_step_is_the_reverse_sde(pair, eta):  # eq-reverse-sde
    "Its drift and its variance, for a mixture, against f, g^2 and the score of the known density"
    weights, means = torch.tensor([0.3, 0.7]).double(), torch.tensor([-0.8, 0.5]).double()
    oracle = MixtureOracle(means[:, None], 0.3, weights)
    u, h, one = 0.5, 1e-6, torch.ones(21, 1, dtype=torch.float64)
    signal, noise, _, _, f, g2 = rates(pair, u)
    x = torch.linspace(-2, 2, 21, dtype=torch.float64, requires_grad=True)
    var = (0.3 * signal)**2 + noise**2
    log_p = (weights * torch.exp(-(x[:, None] - signal * means)**2 / (2 * var))).sum(1).log()
    score, = torch.autograd.grad(log_p.sum(), x)
    x = x.detach()
    earlier = rates(pair, u - h)
    t, s = (Level(torch.full((21,), k), a * one, b * one)
            for k, (a, b) in ((2, (signal, noise)), (1, earlier[:2])))
    c = ddim(eta).coefficients(t, s)
    step = (c.x0[:, 0] * oracle(x[:, None], t).x0[:, 0] + c.x_t[:, 0] * x - x) / -h
    within(step, f * x - (1 + eta**2) / 2 * g2 * score, 1e-3)
    within(c.std[0, 0].item()**2 / h, eta**2 * g2, 1e-3)
