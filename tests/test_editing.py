"Editing: known pixels to the last bit under every solver, closed forms of Gaussians, walks that go up, and a user's mistakes"
import copy, math
import numpy as np
import pytest
import torch
from torch import nn
from diffusion_scratch.denoiser import EPS, V, X0, Denoiser, clipped
from diffusion_scratch.editing import View, consistent, edited, gray, inpaint, interpolate, invert, pooled, resampled, steered
from diffusion_scratch.guidance import NULL, guided
from diffusion_scratch.noising import q_sample
from diffusion_scratch.oracle import GaussianOracle, MixtureOracle
from diffusion_scratch.pretrained import load
from diffusion_scratch.sampling import Noise, ancestral, fixed_large, sample, trajectory
from diffusion_scratch.schedule import Schedule, cosine_betas, linear_betas, log_snr, zero_terminal_snr
from diffusion_scratch.solvers import ddim, dpm_solver_pp, heun, trapezoid
from diffusion_scratch.unet import UNet

LINEAR, COSINE, SHORT = Schedule(linear_betas()), Schedule(cosine_betas()), Schedule(cosine_betas(60))
STEPS = {'ancestral': ancestral(), 'fixed_large': ancestral(fixed_large), 'ddim': ddim(), 'ddim 0.5': ddim(0.5), 'ddim 1': ddim(1.), '2M': dpm_solver_pp(), 'SDE-2M': dpm_solver_pp(1.), 'heun': heun(), 'heun trapezoid': heun(trapezoid)}
gen = lambda seed=0: torch.Generator().manual_seed(seed)
close = lambda a, b, tol=1e-9: torch.testing.assert_close(a, b, rtol=tol, atol=tol)
def draw(denoiser, shape, schedule=SHORT, **kw): return sample(denoiser, schedule, tuple(shape), progress=False, **kw)

class Net(nn.Module):
    "A small network of 4 x 4 pictures with four labels and dropout; it counts its calls, and where they were"
    def __init__(self, channels=1, dropout=0.):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.label = nn.Embedding(5, 8)
            self.body = nn.Sequential(nn.Linear(16 * channels + 9, 48), nn.SiLU(), nn.Dropout(dropout), nn.Linear(48, 16 * channels))
        self.times = []
    def forward(self, x, t, y=None):
        self.times.append(int(t[0]))
        y = torch.full_like(t, NULL) if y is None else y
        return self.body(torch.cat([x.flatten(1), t[:, None].to(x) / 60, self.label(y + 1)], 1)).view(x.shape)

KNOWN = torch.rand(3, 1, 4, 4, generator=gen()) * 2 - 1
MASK = torch.rand(3, 1, 4, 4, generator=gen(1)) < 0.5
Y = torch.tensor([0, 1, 3])
rough = lambda x0: (x0 - x0.flip(3)).square().flatten(1).sum(1)
bright = lambda x0: -x0.flatten(1).mean(1)
pixels = View(lambda x: x * MASK[:1], lambda y: y * MASK[:1])       # inpainting as a linear map

# ------------------------------------------------------------ a change of the belief (eq-edit)
@pytest.mark.parametrize('P', [EPS, X0, V])
def test_the_noise_agrees_with_the_changed_image(P):
    "eq-edit, and every label and level reaches those who need it"
    d, x = Denoiser(Net().double(), P), torch.randn(3, 1, 4, 4, generator=gen()).double()
    level, seen = SHORT.at(torch.tensor([5, 30, 60]), x), []
    p = edited(d, lambda x0, level: (seen.append(level), 2 * x0 + 1)[1])(x, level, Y)
    close(p.x0, 2 * d(x, level, Y).x0 + 1); close(level.signal * p.x0 + level.noise * p.eps, x)
    assert seen[0] is level

def test_clipping_is_an_edit():
    d, x = Denoiser(Net(), V), 3 * torch.randn(3, 1, 4, 4, generator=gen())
    ours, theirs = edited(d, lambda x0, level: x0.clamp(-1, 1)), clipped(d)
    assert torch.equal(ours(x, SHORT.at(50, x), Y).x0, theirs(x, SHORT.at(50, x), Y).x0) and torch.equal(draw(ours, x.shape, seed=1), draw(theirs, x.shape, seed=1))

# ------------------------------------------------------------ known pixels (eq-paste)
def test_two_pixels_on_paper():
    "eq-paste-toy"
    twins = MixtureOracle(torch.tensor([[1., 1.], [-1., -1.]]))
    x = torch.tensor([[0.6, -0.6]], dtype=torch.float64)
    level = Schedule(torch.tensor([0.64], dtype=torch.float64)).at(1, x)            # signal 0.6, noise 0.8
    p = inpaint(twins, torch.tensor([[1., 0.]]), torch.tensor([[True, False]]))(x, level)
    close(p.x0, torch.tensor([[1., 0.]]).double()); close(p.eps, torch.tensor([[0., -0.75]]).double())

WRAPPED = {'inpaint': lambda d: inpaint(d, KNOWN, MASK),
           'clipped outside': lambda d: clipped(inpaint(d, KNOWN, MASK)),
           'clipped inside': lambda d: inpaint(clipped(d), KNOWN, MASK),
           'guided inside': lambda d: inpaint(guided(d, Y, 2.), KNOWN, MASK),
           'guided outside': lambda d: guided(inpaint(d, KNOWN, MASK), Y, 2.),
           'steered inside': lambda d: inpaint(steered(d, rough, 3.), KNOWN, MASK),
           'steered twice inside': lambda d: inpaint(steered(steered(d, rough, 1.), bright, 2.), KNOWN, MASK),
           'steered, guided and clipped': lambda d: clipped(inpaint(steered(guided(d, Y, 0.5), rough, 3.), KNOWN, MASK)),
           'a thumbnail inside': lambda d: inpaint(consistent(d, pooled(2).measure(KNOWN), pooled(2)), KNOWN, MASK),
           'twice': lambda d: inpaint(inpaint(d, KNOWN, MASK), KNOWN, MASK)}
WALKS = {'falling': SHORT.times(6), 'one step': [60, 0], 'resampled': resampled(SHORT.times(6), 2, 3), 'over and over from 0': resampled(SHORT.times(3), 3, 2), 'all': None}

@pytest.mark.parametrize('step', STEPS.values(), ids=STEPS)
@pytest.mark.parametrize('wrap', WRAPPED.values(), ids=WRAPPED)
def test_known_pixels_are_exact_under_every_solver_wrapper_and_walk(wrap, step):
    "eq-paste: to the last bit, in single and in double precision"
    for name, times in WALKS.items():
        if name == 'all' and wrap is not WRAPPED['inpaint']: continue
        for P, net in ((V, Net()), (X0, Net().double())):
            x = draw(wrap(Denoiser(net, P)), KNOWN.shape, step=step, times=times, seed=3)
            assert torch.equal(x[MASK], KNOWN.to(x)[MASK]), name
            assert x.isfinite().all() and not torch.equal(x, KNOWN.to(x)), name

@pytest.mark.parametrize('step', STEPS.values(), ids=STEPS)
def test_known_pixels_are_exact_from_the_middle_and_from_a_picture(step):
    d = inpaint(Denoiser(Net(), V), KNOWN, MASK)
    for times in ([40, 20, 0], [0, 40, 20, 0]):
        x = draw(d, KNOWN.shape, step=step, times=times, x_T=torch.randn(3, 1, 4, 4, generator=gen()), seed=0)
        assert torch.equal(x[MASK], KNOWN[MASK])

@pytest.mark.parametrize('times', [SHORT.times(20), resampled(SHORT.times(20), 4, 3)], ids=['falling', 'resampled'])
def test_known_pixels_carry_the_right_noise_on_the_way(times):
    "Whatever the denoiser says, a known pixel k of x_t is N(signal k, noise^2): the posterior of eq-posterior, and eq-step upwards. Cosine, so that x_T may start at N(0, 1)"
    known = torch.full((2000, 4), 0.7)
    for f in trajectory(inpaint(GaussianOracle(torch.zeros(4), torch.eye(4)), known, known > 0), SHORT, known.shape, times=times, seed=0):
        if f.t in (60, 0): continue
        z = ((f.x - SHORT.signal[f.t] * 0.7) / SHORT.noise[f.t]).double()
        assert abs(z.mean()) < 4.5 / math.sqrt(8000) and abs(z.std() - 1) < 4.5 / math.sqrt(16000), f.t

def test_a_solver_without_chance_keeps_a_known_pixels_noise():
    for step in (ddim(), dpm_solver_pp()):
        frames = list(trajectory(inpaint(Denoiser(Net().double(), V), KNOWN, MASK), SHORT, KNOWN.shape, step=step, times=SHORT.times(8), seed=0))
        eps = [((f.x - SHORT.signal[f.t] * KNOWN.double()) / SHORT.noise[f.t])[MASK] for f in frames[:-1]]
        for e in eps: close(e, eps[0], 1e-8)

def test_one_picture_or_one_mask_for_all():
    d, one = Denoiser(Net(), V), torch.tensor([[[[True, False, True, False]] * 4]])
    for known, mask in ((KNOWN[:1], one), (KNOWN, one), (KNOWN[:1], MASK[:1]), (KNOWN, MASK.any(3, keepdim=True))):
        x = draw(inpaint(d, known, mask), KNOWN.shape, times=SHORT.times(3), seed=0)
        full = mask.expand_as(known).expand_as(x)
        assert torch.equal(x[full], known.expand_as(x)[full]) and not torch.equal(x[0], x[1])

def test_nothing_known_and_everything_known():
    d = Denoiser(Net(), V)
    nothing = draw(inpaint(d, KNOWN, torch.zeros_like(MASK)), KNOWN.shape, times=SHORT.times(4), seed=0)
    assert torch.equal(draw(inpaint(d, KNOWN, torch.ones_like(MASK)), KNOWN.shape, times=SHORT.times(4), seed=0), KNOWN)
    torch.testing.assert_close(nothing, draw(d, KNOWN.shape, times=SHORT.times(4), seed=0))

def test_what_the_mask_leaves_out_may_be_anything_and_stays_as_it_was():
    known = KNOWN.where(MASK, float('nan')); before = known.clone()
    d = inpaint(Denoiser(Net(), V), known, MASK)
    x = draw(inpaint(steered(d, rough, 2.), known, MASK), KNOWN.shape, times=SHORT.times(4), seed=0)
    assert x.isfinite().all() and torch.equal(x[MASK], KNOWN[MASK]) and torch.equal(known.isnan(), before.isnan())
    known.zero_()
    assert torch.equal(draw(d, KNOWN.shape, times=SHORT.times(4), seed=0)[MASK], KNOWN[MASK])       # the wrapper has its own copy

# ------------------------------------------------------------ how wrong pasting is, against the exact conditional of a Gaussian (eq-conditional)
MEAN, COV, GIVEN = np.array([0.3, -0.2]), np.array([[0.25, 0.225], [0.225, 0.25]]), 0.9
RIGHT = MEAN[1] + COV[1, 0] / COV[0, 0] * (GIVEN - MEAN[0]), math.sqrt(COV[1, 1] - COV[1, 0]**2 / COV[0, 0])     # eq-conditional
pair = GaussianOracle(torch.from_numpy(MEAN), torch.from_numpy(COV))
given, first = torch.tensor([[GIVEN, 0.]], dtype=torch.float64), torch.tensor([[True, False]])

def pasted(times, schedule=LINEAR, small=True):
    "Mean and covariance of pasting with ancestral steps, written out in numpy: the denoiser is a matrix, a step is affine (eq-paste, eq-ancestral, eq-step)"
    ab, m, C = schedule.alpha_bar.numpy(), np.zeros(2), np.eye(2)
    for t, s in zip(times, times[1:]):
        r = ab[max(t, s)] / ab[min(t, s)]
        if s > t: m, C = math.sqrt(r) * m, r * C + (1 - r) * np.eye(2); continue
        a, v = math.sqrt(ab[t]), 1 - ab[t]
        G = a * COV @ np.linalg.inv(a * a * COV + v * np.eye(2))
        bias = MEAN - G @ (a * MEAN)
        G[0], bias[0] = 0, GIVEN
        c0, ct = math.sqrt(ab[s]) * (1 - r) / v, math.sqrt(r) * (1 - ab[s]) / v
        A, b, var = c0 * G + ct * np.eye(2), c0 * bias, (1 - r) * (1 - ab[s]) / v if small else (1 - r) * (s > 0)
        m, C = A @ m + b, A @ C @ A.T + var * np.eye(2)
    return m, C

@pytest.mark.parametrize('small', [True, False])
@pytest.mark.parametrize('jump, repeats', [(1, 1), (1, 3), (5, 2), (20, 2)])
def test_pasted_samples_have_the_moments_that_follow_by_hand(jump, repeats, small):
    n, times = 4000, resampled(LINEAR.times(20), jump, repeats)
    m, C = pasted(times, small=small)
    x = draw(inpaint(pair, given, first), (n, 2), LINEAR, times=times, step=ancestral() if small else ancestral(fixed_large), seed=7).double()
    assert m[0] == GIVEN and C[0, 0] == 0 and (x[:, 0] == torch.tensor(GIVEN).float()).all()
    assert abs(x[:, 1].mean() - m[1]) < 4.5 * math.sqrt(C[1, 1] / n) and abs(x[:, 1].var() / C[1, 1] - 1) < 4.5 * math.sqrt(2 / n)

def test_pasting_is_biased_and_walking_again_shrinks_the_bias():
    "eq-conditional against what pasting draws: two thirds of the way in one walk, nearly all of it in twenty, and more steps alone do not help"
    off = lambda n, jump=1, repeats=1: RIGHT[0] - pasted(resampled(LINEAR.times(n), jump, repeats))[0][1]
    assert abs(off(1000) - off(200)) < 0.02 and 0.15 < off(1000) < 0.2
    gaps = [off(100, 1, r) for r in (1, 2, 3, 5, 10, 20)]
    assert all(0 < b < a for a, b in zip(gaps, gaps[1:])) and gaps[-1] < 0.1 * gaps[0]
    assert off(200, 5, 10) < 0.25 * off(200)

def test_steering_with_the_right_strength_takes_the_bias_away():
    "eq-steer-exact, pointwise: the belief given x_t and the known pixel, which is that of the conditional Gaussian; so the samples have its moments (1,000 steps)"
    def certainty(level): return 1 / torch.linalg.inv(torch.linalg.inv(torch.from_numpy(COV)) + level.snr.flatten()[0] * torch.eye(2))[0, 0]
    d = inpaint(steered(pair, lambda x0: (x0 - given)[:, 0].square() / 2, certainty, least=0.), given, first)
    x = torch.randn(50, 2, generator=gen()).double()
    for t in (1, 50, 400, 800, 1000):
        ab = LINEAR.alpha_bar[t].item()
        C = np.linalg.inv(np.linalg.inv(COV) + ab / (1 - ab) * np.eye(2))
        hat = (np.linalg.solve(COV, MEAN) + math.sqrt(ab) / (1 - ab) * x.numpy()) @ C
        want = hat - (hat[:, :1] - GIVEN) * C[:, 0] / C[0, 0]
        np.testing.assert_allclose(d(x, LINEAR.at(t, x)).x0, want, atol=1e-8)
    n = 4000
    x = draw(d, (n, 2), LINEAR, step=ancestral(fixed_large), times=LINEAR.times(250), x_T=torch.randn(n, 2, generator=gen(1)).double(), seed=0)[:, 1]
    assert abs(x.mean() - RIGHT[0]) < 4.5 * RIGHT[1] / math.sqrt(n) and abs(x.std() / RIGHT[1] - 1) < 4.5 / math.sqrt(2 * n) + 0.02   # 2% for steps that are not infinitely short

# ------------------------------------------------------------ walks that go up
def test_resampled_by_its_definition():
    for n in (1, 2, 5, 7, 12):
        times = list(range(3 * n, -1, -3))
        for jump in range(1, n + 2):
            for repeats in (1, 2, 4):
                out = resampled(times, jump, repeats)
                moves = list(zip(out, out[1:]))
                down, up = [m for m in moves if m[1] < m[0]], [m for m in moves if m[1] > m[0]]
                assert out[0] == times[0] and out[-1] == 0 and len(down) + len(up) == len(moves)
                assert sorted(down) == sorted(list(zip(times, times[1:])) * repeats)              # every step, so many times
                assert all(s - t == 3 * min(jump, n - (3 * n - s) // 3) for t, s in up) and len(up) == -(-n // jump) * (repeats - 1)
    assert resampled(torch.tensor([9, 6, 3, 0]), 2, 1) == [9, 6, 3, 0] and resampled(range(4, -1, -2), 1, 2) == [4, 2, 4, 2, 0, 2, 0]

@pytest.mark.parametrize('s, t', [(0, 1), (0, 700), (0, 1000), (300, 301), (300, 700), (999, 1000)])
@pytest.mark.parametrize('schedule', [LINEAR, Schedule(zero_terminal_snr(linear_betas()))], ids=['linear', 'zero terminal'])
def test_a_jump_up_is_the_forward_process(s, t, schedule):
    "eq-step by Monte Carlo: mean and variance of x_t given x_s, over 20,000 numbers, and no correlation with x_s"
    x_s = torch.randn(20_000, 1, generator=gen()).double()
    f = next(trajectory(GaussianOracle(torch.zeros(1), torch.eye(1)), schedule, x_s.shape, times=[s, t, 0], x_T=x_s, seed=5))
    ratio = (schedule.alpha_bar[t] / schedule.alpha_bar[s]).item()
    fresh = f.x - math.sqrt(ratio) * x_s
    assert f.t == t and abs(fresh.mean()) < 4.5 * math.sqrt((1 - ratio) / 20_000)
    assert abs(fresh.var() / (1 - ratio) - 1) < 4.5 * math.sqrt(2 / 20_000)
    assert abs((fresh * x_s).mean()) < 4.5 * math.sqrt((1 - ratio) / 20_000)

@pytest.mark.parametrize('step', STEPS.values(), ids=STEPS)
def test_a_walk_with_jumps_is_its_walks_down_one_after_another(step):
    "No solver carries its memory over a jump: each walk down is as if it were the first, with the noise of the whole walk in order"
    d, shape, times = Denoiser(Net().double(), V), (3, 1, 4, 4), [60, 45, 30, 50, 30, 15, 0, 20, 10, 0]
    noise = (z.double() for z in Noise(9, 3).draws(shape[1:], 30))
    x = next(noise)
    for part, jump in (([60, 45, 30], 50), ([50, 30, 15, 0], 20), ([20, 10, 0], None)):
        memory, visits = {}, getattr(step, 'visits', list)(part)
        for t, s in zip(visits, visits[1:]):
            t, s = SHORT.at(t, x), SHORT.at(s, x)
            with torch.no_grad(): p = step(x, d(x, t), t, s, memory)
            x = p.mean if p.std.ndim == 0 and p.std == 0 else p.sample(next(noise))
        if jump:
            r = (SHORT.alpha_bar[jump] / SHORT.alpha_bar[part[-1]]).item()
            x = math.sqrt(r) * x + math.sqrt(1 - r) * next(noise)
    close(draw(d, shape, step=step, times=times, seed=9), x)

@pytest.mark.parametrize('step, want', [(ddim(), [60, 30, 50, 20, 40]), (heun(), [60, 30, 30, 10, 50, 20, 20, 40])], ids=['ddim', 'heun'])
def test_nobody_is_asked_at_the_foot_of_a_jump(step, want, capsys):
    "At 10 and at 0; but heun's second look at 10 belongs to the step that ends there"
    d, times = Denoiser(Net(), V), [60, 30, 10, 50, 20, 0, 40, 0]
    frames = [f.t for f in trajectory(d, SHORT, (1, 1, 4, 4), step=step, times=times, seed=0)]
    assert d.net.times == want and frames == [*want, 0]
    sample(d, SHORT, (1, 1, 4, 4), step=step, times=times, seed=0)
    assert f'{len(frames)}/{len(frames)}' in capsys.readouterr().err                   # the bar knows

def test_an_exact_sampler_is_still_exact_after_jumps():
    "A Gaussian's mean and variance, with a jump from 300 to 700 on the way"
    oracle = GaussianOracle(torch.tensor([0.3]), torch.tensor([[0.25]]))
    x = draw(oracle, (4000, 1), LINEAR, step=ancestral(fixed_large), times=[*range(1000, 299, -4), *range(700, -1, -4)], seed=0).double()
    assert abs(x.mean() - 0.3) < 4.5 * 0.5 / math.sqrt(4000) and abs(x.var() / 0.25 - 1) < 4.5 * math.sqrt(2 / 4000) + 0.02    # 2% for strides of 4

def test_from_a_picture_up_and_back():
    "SDEdit: low noise keeps the mode that the picture is of, more noise loses it as often as it crosses the plane between the two (which the flow, being symmetric, does not cross), full noise forgets it; the seed rules all"
    modes = torch.tensor([[-0.7, 0., 0.5], [0.4, 0.1, -0.5]])
    oracle, x0 = MixtureOracle(modes, 0.05), modes[:1].expand(60, 3)
    def again(t, seed=0, n=60): return draw(oracle, (n, 3), COSINE, step=ddim(), times=[0, *range(t, -1, -20)], x_T=modes[:1].expand(n, 3), seed=seed)
    nearest = lambda x: torch.cdist(x, modes).argmin(1)
    for t in (200, 400):
        level, n = COSINE.at(t, torch.zeros(1, 1)), 4000
        lost = torch.special.ndtr(-level.signal * (modes[0] - modes[1]).norm() / 2 / level.noise).item()
        assert abs(nearest(again(t, n=n)).double().mean() - lost) < 4 * math.sqrt(lost * (1 - lost) / n), t
    assert (nearest(again(100)) == 0).all() and 0.25 < nearest(again(1000)).double().mean() < 0.75
    assert torch.equal(again(600), again(600)) and not torch.equal(again(600), again(600, 1))
    close(again(600)[:5], draw(oracle, (5, 3), COSINE, step=ddim(), times=[0, *range(600, -1, -20)], x_T=x0[:5], seed=0), 1e-5)

# ------------------------------------------------------------ steering (eq-steer-bayes, eq-steer, eq-steer-cov)
def test_steering_is_minus_lambda_times_covariance_times_slope():
    "eq-steer-cov with the covariance of a Gaussian and of a coin, and a loss that is not linear"
    x, target = torch.randn(40, 2, generator=gen()).double(), torch.tensor([0.5, 1.5]).double()
    for t in (1, 100, 500, 1000):
        level = LINEAR.at(t, x); x0 = pair(x, level).x0
        C = torch.linalg.inv(torch.linalg.inv(torch.from_numpy(COV)) + level.snr.flatten()[0] * torch.eye(2))
        p = steered(pair, lambda x0: (x0 - target).pow(4).sum(1), 0.7, least=0.)(x, level)
        close(p.x0, x0 - 0.7 * (4 * (x0 - target)**3) @ C, 1e-7); close(level.signal * p.x0 + level.noise * p.eps, x)
    coin, x = MixtureOracle(torch.tensor([[1.], [-1.]])), x[:, :1]
    level = LINEAR.at(250, x); x0 = coin(x, level).x0
    close(steered(coin, lambda x0: -x0[:, 0], 3.)(x, level).x0, x0 + 3 * (1 - x0**2), 1e-7)

@pytest.mark.parametrize('lam', [-2., 0., 0.5, 4.])
def test_a_linear_loss_tilts_a_gaussian_exactly(lam):
    "eq-steer-bayes is no approximation here: the steered denoiser is the exact one of N(mean - lam cov a, cov), at every level"
    a = torch.tensor([1., -0.5]).double()
    tilted = GaussianOracle(torch.from_numpy(MEAN) - lam * torch.from_numpy(COV) @ a, torch.from_numpy(COV))
    x = torch.randn(30, 2, generator=gen()).double()
    for t in (1, 100, 500, 1000): close(steered(pair, lambda x0: x0 @ a, lam, least=0.)(x, LINEAR.at(t, x)).x0, tilted(x, LINEAR.at(t, x)).x0, 1e-7)

def test_a_quadratic_loss_with_the_right_scale_tilts_a_gaussian_exactly_and_with_a_constant_one_too_much():
    "p(x0) exp(-lam/2 (a x0 - b)^2) has precision cov^-1 + lam a a^T; the belief's own doubt a C a must be added to 1 / lam (eq-steer-bayes, beyond the mean)"
    a, b, lam, cov = torch.tensor([1., -0.5]).double(), 0.4, 3., torch.from_numpy(COV)
    precision = torch.linalg.inv(cov) + lam * a.outer(a)
    mean = torch.linalg.solve(precision, torch.linalg.solve(cov, torch.from_numpy(MEAN)) + lam * b * a)
    tilted, loss = GaussianOracle(mean, torch.linalg.inv(precision)), lambda x0: (x0 @ a - b).square() / 2
    def scale(level): return 1 / (1 / lam + a @ torch.linalg.inv(torch.linalg.inv(cov) + level.snr.flatten()[0] * torch.eye(2)) @ a)
    x = torch.randn(30, 2, generator=gen()).double()
    for t in (1, 100, 500, 1000):
        level = LINEAR.at(t, x)
        close(steered(pair, loss, scale, least=0.)(x, level).x0, tilted(x, level).x0, 1e-7)
        naive, plain = (d(x, level).x0 @ a for d in (steered(pair, loss, lam, least=0.), pair))
        close((naive - plain) / (tilted(x, level).x0 @ a - plain), (lam / scale(level)).expand(30), 1e-5)
    assert lam / scale(LINEAR.at(1000, x)) > 1.25                                                             # a quarter too much at the start

def test_the_gradient_goes_through_any_network():
    "eq-steer against central differences, in every parameterization"
    x, h = torch.randn(2, 1, 4, 4, generator=gen()).double(), 1e-5
    for P in (EPS, X0, V):
        d, level = Denoiser(Net().double(), P), SHORT.at(40, x)
        with torch.no_grad():
            bumps = h * torch.eye(16).double().view(16, 1, 1, 4, 4)
            slope = torch.stack([(rough(d(x + e, level, Y[:2]).x0) - rough(d(x - e, level, Y[:2]).x0)) / (2 * h) for e in bumps], 1).view(x.shape)
            want = d(x, level, Y[:2]).x0 - 0.3 * level.noise**2 / level.signal * slope
        close(steered(d, rough, 0.3)(x, level, Y[:2]).x0, want, 1e-6)

def test_steered_samples_follow_the_tilted_gaussian():
    n, a = 4000, torch.tensor([1., -0.5]).double()
    x = draw(steered(pair, lambda x0: x0 @ a.to(x0), 1.), (n, 2), COSINE, step=ancestral(fixed_large), times=COSINE.times(250), x_T=torch.randn(n, 2, generator=gen(3)).double(), seed=0)
    mean = torch.from_numpy(MEAN) - torch.from_numpy(COV) @ a
    assert ((x.mean(0) - mean).abs() < 4.5 * 0.5 / math.sqrt(n) + 0.005).all()             # 0.005 for `least` and the length of steps
    assert (x.std(0) / 0.5 - 1).abs().max() < 4.5 / math.sqrt(2 * n) + 0.02

def test_scale_0_changes_nothing_and_losses_add_up():
    d, x, a = Denoiser(Net().double(), V), torch.randn(3, 1, 4, 4, generator=gen()).double(), torch.tensor([1., -0.5]).double()
    close(steered(d, rough, 0.)(x, SHORT.at(30, x), Y).x0, d(x, SHORT.at(30, x), Y).x0)
    z = torch.randn(5, 2, generator=gen()).double(); level = LINEAR.at(300, z)
    one, other = (lambda x0: x0 @ a), (lambda x0: 2 * x0[:, 1])
    close(steered(steered(pair, one, 0.5), other, 2.)(z, level).x0, steered(pair, lambda x0: 0.5 * one(x0) + 2 * other(x0), 1.)(z, level).x0)   # linear losses: tilts commute

def test_three_in_a_row_through_attention():
    "Steering around steering asks for no second derivative, which attention does not have on a CPU"
    with torch.random.fork_rng():
        torch.manual_seed(0); net = UNet(1, 8, (1,), 1, (0,))
        for p in net.parameters(): nn.init.normal_(p, std=0.2)
    d, x = Denoiser(net, V), torch.randn(2, 1, 8, 8, generator=gen())
    p = steered(clipped(steered(steered(d, bright, 1.), rough, 0.1)), bright, 1.)(x, SHORT.at(30, x))
    assert p.x0.isfinite().all() and not p.x0.requires_grad and all(q.grad is None for q in net.parameters())

def test_the_slope_is_divided_by_no_signal_below_least():
    x = torch.randn(4, 2, generator=gen()).double()
    step = lambda t, least: (steered(pair, lambda x0: x0[:, 0], 1., least=least)(x, COSINE.at(t, x)).x0 - pair(x, COSINE.at(t, x)).x0)
    assert COSINE.signal[990] < 0.05 < COSINE.signal[900]
    close(step(900, 0.05), step(900, 0.))
    close(step(990, 0.05), step(990, 0.) * (COSINE.signal[990] / 0.05).item(), 1e-6)
    zero = Schedule(zero_terminal_snr(linear_betas()))
    for least in (0., 0.05): assert torch.equal(steered(pair, lambda x0: x0[:, 0], 1., least=least)(x, zero.at(1000, x)).x0, pair(x, zero.at(1000, x)).x0)   # no signal, no slope

def test_a_scale_by_level():
    d, x = Denoiser(Net().double(), V), torch.randn(3, 1, 4, 4, generator=gen()).double()
    level, only = SHORT.at(torch.tensor([10, 30, 50]), x), lambda level: 2. * (level.t <= 30).view(-1, 1, 1, 1)
    p, full, none = steered(d, rough, only)(x, level).x0, steered(d, rough, 2.)(x, level).x0, d(x, level).x0
    close(p[:2], full[:2]); close(p[2], none[2])

# ------------------------------------------------------------ no footprints
ALL = {'edited': lambda d: edited(d, lambda x0, level: 0.9 * x0), 'inpaint': lambda d: inpaint(d, KNOWN[:1], MASK[:1]), 'consistent': lambda d: consistent(d, pooled(2).measure(KNOWN[:1]), pooled(2)),
       'steered': lambda d: steered(d, rough, 1.), 'all': lambda d: clipped(inpaint(consistent(steered(d, rough, 1.), pooled(2).measure(KNOWN[:1]), pooled(2)), KNOWN[:1], MASK[:1]))}

@pytest.mark.parametrize('wrap', ALL.values(), ids=ALL)
def test_modes_gradients_and_randomness_are_left_alone(wrap):
    net = Net(dropout=0.5)
    for mode in (True, False):
        d = wrap(Denoiser(net, V).train(mode))
        assert all(m.training == mode for m in d.modules())
        rng = torch.random.get_rng_state()
        a, b = (draw(d, KNOWN.shape, times=SHORT.times(4), seed=0) for _ in range(2))
        assert torch.equal(a, b) and all(m.training == mode for m in d.modules())          # dropout is off while sampling
        assert torch.is_grad_enabled() and not a.requires_grad and all(p.grad is None and p.requires_grad for p in net.parameters())
        assert torch.equal(torch.random.get_rng_state(), rng)

@pytest.mark.parametrize('wrap', ALL.values(), ids=ALL)
def test_under_no_grad_and_inference_mode(wrap):
    kw = dict(times=SHORT.times(4), seed=0)
    want = draw(wrap(Denoiser(Net(), V)), KNOWN.shape, **kw)
    with torch.no_grad(): close(draw(wrap(Denoiser(Net(), V)), KNOWN.shape, **kw), want, 1e-6)
    d = Denoiser(Net(), V)
    with torch.inference_mode(): close(draw(wrap(d), KNOWN.shape, y=torch.tensor([NULL] * 3), **kw).clone(), want, 1e-6)     # made and asked inside

def test_a_loss_with_dropout_is_asked_in_eval_mode():
    class Loss(nn.Module):
        def __init__(self): super().__init__(); self.drop = nn.Dropout(0.5)
        def forward(self, x0): return self.drop(x0).flatten(1).sum(1)
    d = steered(Denoiser(Net(), V), Loss(), 1.)
    a, b = (draw(d, KNOWN.shape, times=SHORT.times(4), seed=0) for _ in range(2))
    assert torch.equal(a, b) and d.loss.training

@pytest.mark.parametrize('wrap', ALL.values(), ids=ALL)
@pytest.mark.parametrize('step', [ancestral(), dpm_solver_pp(), heun()], ids=['ancestral', '2M', 'heun'])
def test_an_image_is_the_same_in_any_batch(wrap, step):
    "Up to the order of sums in a matrix product: 1e-5"
    kw = dict(step=step, times=resampled(SHORT.times(6), 3, 2), seed=4)
    whole = draw(wrap(Denoiser(Net(), V)), (7, 1, 4, 4), **kw)
    for n, first in ((1, 0), (2, 3), (4, 3)): close(draw(wrap(Denoiser(Net(), V)), (n, 1, 4, 4), first=first, **kw), whole[first:first + n], 1e-5)
    assert torch.equal(whole, draw(wrap(Denoiser(Net(), V)), (7, 1, 4, 4), **kw)) and not torch.equal(whole, draw(wrap(Denoiser(Net(), V)), (7, 1, 4, 4), **kw | dict(seed=5)))

def test_a_wrapper_can_be_copied_and_moved():
    d = ALL['all'](Denoiser(Net(), V))
    twin = copy.deepcopy(d).to(torch.float64)
    x = torch.randn(3, 1, 4, 4, generator=gen()).double()
    close(twin(x, SHORT.at(20, x)).x0.float(), d(x.float(), SHORT.at(20, x)).x0, 1e-5)
    assert [k for k in d.state_dict() if 'known' in k or 'mask' in k] == []                  # pictures are no weights

# ------------------------------------------------------------ linear views (eq-view)
VIEWS = {'pooled(2)': (pooled(2), (1, 4, 4)), 'pooled(4)': (pooled(4), (3, 4, 8)), 'gray': (gray(), (3, 2, 3)), 'gray, equal': (gray((1/3, 1/3, 1/3)), (3, 2, 2)), 'two colours': (gray((0.7, 0.3)), (2, 2, 2))}

@pytest.mark.parametrize('view, shape', VIEWS.values(), ids=VIEWS)
def test_views_against_the_pseudo_inverse_and_least_squares(view, shape):
    "eq-view: numpy's pseudo-inverse; and of all images that agree, the one nearest to the belief"
    unit = torch.eye(math.prod(shape)).double().view(-1, *shape)
    seen = view.measure(unit)
    A = seen.flatten(1).T.numpy()
    lifted = view.lift(torch.eye(len(A)).double().view(-1, *seen.shape[1:])).flatten(1).T.numpy()
    np.testing.assert_allclose(lifted, np.linalg.pinv(A), atol=1e-7)
    x0, truth = (torch.rand(5, *shape, generator=gen(i)).double() * 2 - 1 for i in (0, 1))
    ours = consistent(Fixed(x0), view.measure(truth), view)(truth, SHORT.at(30, truth)).x0
    shift = np.linalg.lstsq(A, (A @ (truth - x0).flatten(1).T.numpy()), rcond=None)[0].T           # the least change that fits
    np.testing.assert_allclose(ours.flatten(1), x0.flatten(1).numpy() + shift, atol=1e-7)

class Fixed(nn.Module):
    "A denoiser that always believes the same"
    def __init__(self, x0): super().__init__(); self.x0 = x0
    def forward(self, x_t, level, y=None): return X0.predict(self.x0.to(x_t), x_t, level)

@pytest.mark.parametrize('step', STEPS.values(), ids=STEPS)
def test_what_is_known_of_the_result_is_as_given(step):
    "Up to rounding, 1e-5"
    truth = torch.rand(3, 3, 4, 4, generator=gen()) * 2 - 1
    for view in (pooled(2), gray()):
        x = draw(consistent(Denoiser(Net(3), V), view.measure(truth), view), truth.shape, step=step, times=resampled(SHORT.times(6), 2, 2), seed=0)
        close(view.measure(x), view.measure(truth), 1e-5)
        assert (x - truth).abs().max() > 0.05

def test_inpainting_is_the_special_case():
    d, x = Denoiser(Net().double(), V), torch.randn(3, 1, 4, 4, generator=gen()).double()
    mine, theirs = inpaint(d, KNOWN, MASK[:1]), consistent(d, KNOWN * MASK[:1], pixels)
    close(mine(x, SHORT.at(30, x)).x0, theirs(x, SHORT.at(30, x)).x0, 1e-6)

def test_average_of_a_block_and_luminance_by_hand():
    x = torch.arange(16.).view(1, 1, 4, 4)
    assert pooled(2).measure(x).flatten().tolist() == [2.5, 4.5, 10.5, 12.5] and pooled(2).lift(torch.tensor([[[[1., 2.]]]])).tolist() == [[[[1, 1, 2, 2], [1, 1, 2, 2]]]]
    close(gray().measure(torch.tensor([1., 0., -1.]).view(1, 3, 1, 1)), torch.tensor(0.299 - 0.114).view(1, 1, 1, 1), 1e-6)

# ------------------------------------------------------------ inversion (eq-invert)
@pytest.mark.parametrize('schedule', [COSINE, LINEAR], ids=['cosine', 'linear'])
def test_inverting_a_standard_normal_is_a_product_of_cosines(schedule):
    "eq-ddim-toy upwards; the start (eq-invert) puts signal_1 + noise_1^2 signal_1 in front, since eps = noise_1 x there"
    line, x0 = GaussianOracle(torch.zeros(2), torch.eye(2)), torch.tensor([[1., -0.5]]).double()
    angle = np.arctan2(schedule.noise.numpy(), schedule.signal.numpy())
    for n in (1, 4, 25):
        rising = [1, *schedule.times(n)[-2::-1]]
        want = math.cos(angle[1]) * (1 + math.sin(angle[1])**2) * np.prod(np.cos(np.diff(angle[rising])))
        close(invert(line, schedule, x0, schedule.times(n)), want * x0)

def test_inversion_converges_to_the_exact_flow():
    "eq-gaussian-flow read backwards: along an axis, (x_T / signal - mu) grows by sqrt((var + rho^2) / var). DDIM with order 1, DPM-Solver++ 2M with at least 1.8"
    var, mu = torch.tensor([0.25, 0.09]).double(), torch.tensor([0.3, -0.5]).double()
    oracle, x0 = GaussianOracle(mu, var.diag()), torch.randn(20, 2, generator=gen()).double() * 0.4
    rho, signal = COSINE.noise[950] / COSINE.signal[950], COSINE.signal[950]
    exact = signal * (mu + (x0 - mu) * ((var + rho**2) / var).sqrt())
    def times(n): return [t for t in COSINE.times(n, log_snr) if t < 950]
    error = {name: [(invert(oracle, COSINE, x0, [950, *times(n)], step=step) - exact).square().mean().sqrt().item() for n in (20, 40, 80)] for name, step in (('ddim', ddim()), ('2M', dpm_solver_pp()))}
    order = {k: math.log2(e[0] / e[2]) / 2 for k, e in error.items()}
    assert 0.8 < order['ddim'] < 1.2 and order['2M'] > 1.8 and error['2M'][2] < 0.05 * error['ddim'][2], (error, order)

def test_the_round_trip_improves_with_steps_and_with_the_order():
    oracle, x0 = MixtureOracle(torch.tensor([[-0.8], [0.5]]), 0.2), torch.linspace(-1, 1, 21).double()[:, None]
    def trip(n, step):
        x_T = invert(oracle, LINEAR, x0, LINEAR.times(n, log_snr), step=step)
        return (draw(oracle, x0.shape, LINEAR, step=step, times=LINEAR.times(n, log_snr), x_T=x_T) - x0).abs().mean().item()
    euler, second = ([trip(n, step) for n in (25, 50, 100, 200)] for step in (ddim(), dpm_solver_pp()))
    assert all(b < 0.65 * a for a, b in zip(euler, euler[1:])) and second[-1] < 0.1 * euler[-1]

def test_inverting_part_of_the_way_and_with_labels():
    d = Denoiser(Net().double(), V)
    x0, times = KNOWN.double(), [30, 20, 10, 5, 2, 1, 0]
    told, free = invert(d, SHORT, x0, times, y=Y), invert(d, SHORT, x0, times)
    assert not torch.equal(told, free) and d.net.times == [1, 1, 2, 5, 10, 20] * 2
    close(told, invert(guided(d, Y, 0.), SHORT, x0, times))
    level = SHORT.at(1, x0)
    one = invert(d, SHORT, x0, [1, 0])
    with torch.no_grad(): close(one, level.signal * x0 + level.noise * d(level.signal * x0, level).eps)      # eq-invert, its first line

def test_inversion_leaves_no_footprints():
    net = Net(dropout=0.5).train()
    x0 = KNOWN.clone().requires_grad_()
    a, b = (invert(Denoiser(net, V), SHORT, x0, SHORT.times(5)) for _ in range(2))
    assert torch.equal(a, b) and net.training and not a.requires_grad and torch.is_grad_enabled()
    torch.testing.assert_close(invert(Denoiser(net, V), SHORT, KNOWN[1:2], SHORT.times(5)), a[1:2])

# ------------------------------------------------------------ interpolation (eq-slerp)
def test_slerp_turns_evenly():
    "eq-slerp in the plane: a turn by w times the angle; in general, lengths stay and angles are even"
    for degrees in (1., 60., 90., 170.):
        a, b = torch.tensor([[[1., 0.]], [[math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]]], dtype=torch.float64)
        w = torch.linspace(0, 1, 7).double()
        want = torch.stack([(w * math.radians(degrees)).cos(), (w * math.radians(degrees)).sin()], 1)
        close(interpolate(a, b, w), want)
    a, b = torch.randn(2, 5, 3, 4, 4, generator=gen()).double()
    assert torch.equal(interpolate(a, b, 0.), a) and torch.equal(interpolate(a, b, 1.), b)
    close(interpolate(a, b, 0.3), interpolate(b, a, 0.7)); close(interpolate(a, 2 * a, 0.25), 1.25 * a)      # parallel: the straight line
    long = torch.randn(2, 1, 10_000, generator=gen())
    assert abs(interpolate(long[0], long[1], 0.5).std() - 1) < 0.03 and long.mean(0).std() < 0.75             # noise stays noise

def test_slerp_of_batches():
    a, b = torch.randn(2, 4, 1, 3, 3, generator=gen())
    w = torch.tensor([0., 0.2, 0.7, 1.])
    whole = interpolate(a, b, w)
    for i in range(4): close(interpolate(a[i:i+1], b[i:i+1], w[i].item()), whole[i:i+1], 1e-6)
    close(interpolate(a[:1], b, 0.2)[1:2], interpolate(a[:1], b[1:2], 0.2), 1e-6)
    assert interpolate(a[:1], b[:1], w).shape == (4, 1, 3, 3) and a.dtype == whole.dtype

# ------------------------------------------------------------ altogether
def test_guided_steered_inpainted_in_fifteen_steps_is_one_expression():
    d, plan = Denoiser(Net(), V), dict(step=dpm_solver_pp(), times=SHORT.times(15), seed=0)
    x = draw(clipped(inpaint(steered(guided(d, Y, 0.5), rough, 0.5), KNOWN, MASK)), KNOWN.shape, **plan)
    assert torch.equal(x[MASK], KNOWN[MASK]) and x.abs().max() <= 1 and len(d.net.times) == 30
    def drawn(y=Y, scale=0.5, strength=0.5, mask=MASK): return draw(clipped(inpaint(steered(guided(d, y, scale), rough, strength), KNOWN, mask)), KNOWN.shape, **plan)
    assert torch.equal(drawn(), x)
    for other in (drawn(y=Y.flip(0)), drawn(scale=0.), drawn(mask=~MASK)): assert (x - other)[MASK.logical_not()].abs().max() > 1e-3       # each part counts
    assert rough(x).sum() < 0.95 * rough(drawn(strength=0.)).sum()                                                                         # and the steering steers

# ------------------------------------------------------------ every step is yours: x_t changed on the way
HANDS = {'ancestral': ancestral(), 'ddim': ddim(), 'ddim 1': ddim(1.), '2M': dpm_solver_pp(), 'SDE-2M': dpm_solver_pp(1.), 'heun': heun()}
TIMES = [60, 45, 30, 15, 5, 0]
def twist(x): return 0.9 * x.rot90(1, (2, 3)) + 0.1                                   # twice is not once
CHANGED = {'none': lambda i, t: False, 'all': lambda i, t: True, 'the first': lambda i, t: i == 0, 'some': lambda i, t: i in (1, 4), 't = 30': lambda i, t: t == 30, 'the result': lambda i, t: t == 0}

def by_hand(d, step, when, x_T=None, times=TIMES):
    "A plain loop: change x, ask about what it has become, and call the step, with one memory and the noise of the seed in order"
    visits, noise, memory = getattr(step, 'visits', list)(times), (z.double() for z in Noise(9, 3).draws((1, 4, 4), 30)), {}
    x = next(noise)                                                                   # drawn even where x_T is given
    if x_T is not None: x = x_T
    for i, (t, s) in enumerate(zip(visits, visits[1:])):
        if when(i, t): x = twist(x)
        t, s = SHORT.at(t, x), SHORT.at(s, x)
        with torch.no_grad(): p = step(x, d(x, t), t, s, memory)
        x = p.mean if p.std.ndim == 0 and p.std == 0 else p.sample(next(noise))
    return twist(x) if when(len(visits) - 1, 0) else x

def by_frames(d, step, when, x_T=None, **kw):
    "The same by writing into the frames of `trajectory`"
    for i, frame in enumerate(trajectory(d, SHORT, KNOWN.shape, step=step, times=TIMES, x_T=x_T, seed=9, **kw)):
        if when(i, frame.t): frame.x.copy_(twist(frame.x))
    return frame.x

@pytest.mark.parametrize('step', HANDS.values(), ids=HANDS)
@pytest.mark.parametrize('when', CHANGED.values(), ids=CHANGED)
def test_a_frame_changed_in_place_is_where_the_walk_goes_on(when, step):
    "To 1e-12 what a plain loop gives, from noise and from an x_T, which stays as it was; one more call for each changed frame but the result, and none for one that was only read"
    d, x_T = Denoiser(Net().double(), V), torch.randn(3, 1, 4, 4, generator=gen()).double()
    before, visits = x_T.clone(), getattr(step, 'visits', list)(TIMES)
    want = [t for i, t in enumerate(visits[:-1]) for _ in range(1 + when(i, t))]
    for start in (None, x_T):
        with torch.no_grad(): x = by_frames(d, step, when, start)
        assert d.net.times == want, 'calls'
        d.net.times.clear()
        close(x, by_hand(d, step, when, start), 1e-12)
        d.net.times.clear()
        assert torch.equal(by_frames(d, step, when, start), x)                        # and with gradients on
        d.net.times.clear()
    assert torch.equal(x_T, before)

@pytest.mark.parametrize('step', HANDS.values(), ids=HANDS)
def test_reading_changes_nothing_and_a_write_of_the_same_only_costs_a_call(step):
    d, visits = Denoiser(Net(), V), getattr(step, 'visits', list)(TIMES)
    x = draw(d, KNOWN.shape, step=step, times=TIMES, seed=9)
    def walk(touch):
        d.net.times.clear()
        with torch.no_grad():
            for frame in trajectory(d, SHORT, KNOWN.shape, step=step, times=TIMES, seed=9): touch(frame.x)
        assert torch.equal(frame.x, x)
        return len(d.net.times)
    assert walk(lambda x: (x.clone().zero_(), x.flip(3).neg_(), x.mean().item(), x.numpy().sum())) == len(visits) - 1
    assert walk(lambda x: x.copy_(x.clone())) == 2 * (len(visits) - 1)

def test_a_frame_changed_under_a_wrapper_and_with_labels():
    "The second question is put to the same denoiser, with the same labels; what inpaint knows still comes out exactly"
    d = Denoiser(Net().double(), V)
    told, free = (list(trajectory(d, SHORT, KNOWN.shape, times=TIMES, y=y, seed=9))[-1].x for y in (Y, None))
    def zeroed(denoiser, **kw):
        for f in trajectory(denoiser, SHORT, KNOWN.shape, times=TIMES, seed=9, **kw):
            if f.t == 30: f.x.zero_()
        return f.x
    close(zeroed(d, y=Y), zeroed(guided(d, Y, 0.))); assert (zeroed(d, y=Y) - zeroed(d)).abs().max() > 1e-3 and not torch.equal(told, free)
    assert torch.equal(zeroed(inpaint(d, KNOWN, MASK))[MASK], KNOWN.double()[MASK])

def test_in_inference_mode_a_write_is_not_noticed():
    "PyTorch counts none there: the step sees the new x beside the old belief"
    d = Denoiser(Net(), V)
    with torch.inference_mode():
        for f in trajectory(d, SHORT, KNOWN.shape, step=ddim(), times=TIMES, seed=9): f.x.mul_(0.9)
    assert d.net.times == TIMES[:-1]

@pytest.mark.parametrize('name, same', [('ddim', True), ('2M', False), ('heun', False), ('ancestral', False)])
def test_stop_change_and_start_anew(name, same):
    "Another walk from a frame is this one going on, for a step with neither memory nor chance. 2M has lost the belief before, heun its correction if left at the first of two frames, and noise starts from the beginning"
    d, step = Denoiser(Net().double(), V), HANDS[name]
    def on(x): return draw(d, KNOWN.shape, step=step, times=[30, 15, 5, 0], x_T=twist(x), seed=9)
    with torch.no_grad():
        here = by_frames(d, step, lambda i, t, seen=[]: t == 30 and not (seen or seen.append(1)))
        for frame in trajectory(d, SHORT, KNOWN.shape, step=step, times=TIMES, seed=9):
            if frame.t == 30: break
        off = (on(frame.x) - here).abs().max()
    assert off < 1e-9 if same else off > 1e-3, off

def test_heun_left_at_the_second_of_its_frames_has_no_memory_to_lose():
    d, step = Denoiser(Net().double(), V), heun()
    frames = list(trajectory(d, SHORT, KNOWN.shape, step=step, times=TIMES, seed=9))
    first, second = [f.x for f in frames if f.t == 30]
    close(draw(d, KNOWN.shape, step=step, times=[30, 15, 5, 0], x_T=second), frames[-1].x)
    assert (draw(d, KNOWN.shape, step=step, times=[30, 15, 5, 0], x_T=first) - frames[-1].x).abs().max() > 1e-4

# ------------------------------------------------------------ one seed, one picture
def test_with_a_label_one_seed_is_one_picture_from_ten_to_a_thousand_steps():
    "Three threes by the network that comes with the package: whichever solver without chance, each is the one of 1,000 steps of DPM-Solver++, far nearer than two of them are to each other. Chance draws others"
    net, schedule = load('mnist-mini')
    def drawn(step, n): return draw(clipped(net), (3, 1, 28, 28), schedule, step=step, times=schedule.times(n), y=torch.full((3,), 3), seed=0).flatten(1)
    threes = drawn(dpm_solver_pp(), 1000)
    between = torch.pdist(threes).min()
    for step in (ddim(), dpm_solver_pp(), heun()):
        for n in (10, 20, 50): assert torch.cdist(drawn(step, n), threes).diag().max() < between / 4
    for step in (ancestral(), ddim(1.), dpm_solver_pp(1.)): assert torch.cdist(drawn(step, 20), threes).diag().min() > between / 2

# ------------------------------------------------------------ mistakes
D = Denoiser(Net(), V)
at30 = lambda x: SHORT.at(30, x)
X = torch.zeros(3, 1, 4, 4)

@pytest.mark.parametrize('case, error, match', [
    (lambda: inpaint(D, KNOWN, MASK.float()), TypeError, r'mask is torch\.float32; it must be torch\.bool'),
    (lambda: inpaint(D, KNOWN, MASK.long()), TypeError, r'mask is torch\.int64'),
    (lambda: inpaint(D, KNOWN, MASK[0, 0]), ValueError, r'mask has shape \(4, 4\), but known \(3, 1, 4, 4\)'),
    (lambda: inpaint(D, KNOWN, MASK[:2]), ValueError, r'mask has shape \(2, 1, 4, 4\)'),
    (lambda: inpaint(D, KNOWN[:1], MASK), ValueError, r'mask has shape \(3, 1, 4, 4\), but known \(1, 1, 4, 4\)'),
    (lambda: inpaint(D, 127 * KNOWN, MASK), ValueError, r'outside \[-1, 1\]: they lie in -1.*data\.to_float'),
    (lambda: inpaint(D, KNOWN.where(~MASK, float('nan')), MASK), ValueError, r'outside \[-1, 1\]'),
    (lambda: inpaint(D, ((KNOWN + 1) * 127.5).to(torch.uint8), MASK), TypeError, r'known is torch\.uint8; it must be float'),
    (lambda: inpaint(D, KNOWN[0, 0, 0], MASK[0, 0, 0]), ValueError, r'known has shape \(4,\)'),
    (lambda: inpaint(D, KNOWN[:2], MASK[:2])(X, at30(X)), ValueError, r'known has shape \(2, 1, 4, 4\), but the images are \(3, 1, 4, 4\)'),
    (lambda: inpaint(D, KNOWN[..., :3], MASK[..., :3])(X, at30(X)), ValueError, r'known has shape \(3, 1, 4, 3\), but the images are'),
    (lambda: draw(inpaint(D, KNOWN, MASK), (2, 1, 4, 4), seed=0), ValueError, r'known has shape \(3, 1, 4, 4\), but the images are \(2, 1, 4, 4\)'),
    (lambda: edited(D, 0.5), TypeError, 'change = 0.5 is not a function'),
    (lambda: edited(D, lambda x0, level: x0[:1])(X, at30(X)), ValueError, r'the change returned \(1, 1, 4, 4\) for images \(3, 1, 4, 4\)'),
    (lambda: consistent(D, torch.zeros(3, 1, 3, 3), pooled(2))(X, at30(X)), ValueError, r'known has shape \(3, 1, 3, 3\), but the view of the images is \(3, 1, 2, 2\)'),
    (lambda: consistent(D, torch.zeros(3, 1, 1, 1), pooled(3))(X, at30(X)), ValueError, r'cannot be cut into blocks of 3 x 3'),
    (lambda: consistent(D, torch.full((1, 1, 2, 2), torch.inf), pooled(2)), ValueError, 'not finite'),
    (lambda: consistent(D, torch.ones(1, 1, 2, 2), View(pooled(2).measure, lambda y: 2 * pooled(2).lift(y))), ValueError, r'no image agrees .* off by 1.* pseudo-inverse'),
    (lambda: consistent(D, torch.ones(1, 1, 2, 2).long(), pooled(2)), TypeError, 'known is torch.int64'),
    (lambda: pooled(0), ValueError, 'k = 0'), (lambda: pooled(1.5), TypeError, 'float'), (lambda: gray((0., 0., 0.)), ValueError, 'weigh nothing'),
    (lambda: steered(D, 'bright', 1.), TypeError, "loss = 'bright' is not a function"),
    (lambda: steered(D, bright, float('nan')), ValueError, 'scale = nan'),
    (lambda: steered(D, bright, 1., least=2.), ValueError, r'least = 2\.0 is outside 0\.\.1'),
    (lambda: steered(D, lambda x0: x0.mean(), 1.)(X, at30(X)), ValueError, r'the loss returned shape \(\); it must return one number for each of the 3 images'),
    (lambda: steered(D, lambda x0: x0.flatten(1), 1.)(X, at30(X)), ValueError, r'the loss returned shape \(3, 16\)'),
    (lambda: steered(D, lambda x0: 3., 1.)(X, at30(X)), ValueError, 'the loss returned float'),
    (lambda: steered(D, lambda x0: x0.detach().flatten(1).sum(1), 1.)(X, at30(X)), ValueError, 'the loss is not differentiable'),
    (lambda: steered(D, lambda x0: (x0 > 0).float().flatten(1).sum(1), 1.)(X, at30(X)), ValueError, 'the loss is not differentiable'),
    (lambda: steered(D, lambda x0: D.net.label.weight.sum(1)[:3], 1.)(X, at30(X)), ValueError, 'does not depend on x0'),
    (lambda: steered(Fixed(X), bright, 1.)(X, at30(X)), ValueError, 'lets no gradient through'),
    (lambda: draw(guided(Denoiser(UNet(1, 8, (1,), 1, (), num_classes=3), V), [0, 1, 3], 1.), X.shape, seed=0), ValueError, r'labels y lie in 0\.\.3; this network takes 0\.\.2'),
    (lambda: resampled([60, 30], 1, 2), ValueError, 'times must fall and end at 0'), (lambda: resampled([60, 30, 40, 0], 1, 2), ValueError, r'must fall .* not \[60, 30, 40, 0\]'),
    (lambda: resampled([60, 0], 0, 2), ValueError, 'jump = 0'), (lambda: resampled([60, 0], 1, 0), ValueError, 'repeats = 0'), (lambda: resampled([60, 0], 1.5, 1), TypeError, 'float'),
    (lambda: draw(D, X.shape, times=[60, 30, 30, 0], seed=0), ValueError, '30 is followed by 30'),
    (lambda: draw(D, X.shape, times=[60, 30, 61, 0], seed=0), ValueError, r't = 61, which is outside 1\.\.60'),
    (lambda: draw(D, X.shape, times=[60, 30, 40], seed=0), ValueError, r'down to 0, not end with \[60, 30, 40\]'),
    (lambda: draw(D, X.shape, times=[0, 30, 0], seed=0), ValueError, 'times start at 0, but the noise is that of T = 60: give x_T'),
    (lambda: invert(D, SHORT, KNOWN, [60, 30, 40, 0]), ValueError, 'times must fall'), (lambda: invert(D, SHORT, KNOWN, [61, 0]), ValueError, r't = 61 is outside'),
    (lambda: invert(D, SHORT, KNOWN.long(), [60, 0]), TypeError, 'x0 is torch.int64'), (lambda: invert(D, SHORT, KNOWN, [60, 0], y=Y[:2]), ValueError, '2 labels y for 3 images'),
    (lambda: invert(D, SHORT, KNOWN, [60, 30, 0], step=ancestral()), ValueError, 'draws noise'), (lambda: invert(D, SHORT, KNOWN, [60, 30, 0], step=ddim(0.5)), ValueError, 'draws noise'),
    (lambda: invert(D, SHORT, KNOWN, [60, 30, 0], step=heun()), ValueError, 'asks more than once'),
    (lambda: invert(D, Schedule(zero_terminal_snr(linear_betas(60))), KNOWN, [60, 30, 0]), ValueError, r'at t = 60 no signal is left .* start at 59'),
    (lambda: interpolate(X[:2], X, 0.5), ValueError, 'do not fit'), (lambda: interpolate(X, X[..., :2], 0.5), ValueError, 'do not fit'), (lambda: interpolate(X, X, 0.5), ValueError, 'one is 0'),
    (lambda: interpolate(KNOWN, -KNOWN, 0.5), ValueError, 'opposite'), (lambda: interpolate(KNOWN, KNOWN, torch.zeros(2)), ValueError, 'do not fit')])
def test_mistakes_are_named(case, error, match):
    with pytest.raises(error, match=match): case()

def test_mistakes_leave_the_modes_as_they_were():
    d = steered(Denoiser(Net(), V).train(), lambda x0: x0.mean(), 1.)
    with pytest.raises(ValueError, match='one number for each'): draw(d, X.shape, seed=0)
    assert torch.is_grad_enabled() and all(m.training for m in d.modules())
