"""Editing: known pixels to the last bit under every solver, closed forms of Gaussians, walks that
go up, and a user's mistakes"""
import copy, math
import numpy as np, pytest, torch
from torch import nn
from diffusion_scratch.denoiser import EPS, V, X0, Denoiser, clipped
from diffusion_scratch.editing import (View, consistent, edited, gray, inpaint, interpolate, invert,
                                       pooled, resampled, steered)
from diffusion_scratch.guidance import NULL, guided
from diffusion_scratch.oracle import GaussianOracle, MixtureOracle
from diffusion_scratch.pretrained import load
from diffusion_scratch.sampling import (Coefficients, Noise, ancestral, fixed_large, sample,
                                        trajectory)
from diffusion_scratch.schedule import (Schedule, cosine_betas, linear_betas, log_snr,
                                        zero_terminal_snr)
from diffusion_scratch.solvers import ddim, dpm_solver_pp, heun, trapezoid
from diffusion_scratch.unet import UNet

LINEAR, DARK = Schedule(linear_betas()), Schedule(zero_terminal_snr(linear_betas()))
COSINE, SHORT = Schedule(cosine_betas()), Schedule(cosine_betas(60))
SOLVERS = [ancestral(), ancestral(fixed_large), ddim(), ddim(0.5), ddim(1.), dpm_solver_pp(),
           dpm_solver_pp(1.), heun(), heun(trapezoid)]
every_solver = pytest.mark.parametrize('step', SOLVERS, ids=repr)
def gen(seed=0): return torch.Generator().manual_seed(seed)
def close(a, b, tol=1e-9): torch.testing.assert_close(a, b, rtol=tol, atol=tol)
def draw(denoiser, shape=(3, 1, 4, 4), schedule=SHORT, seed=0, **kw):
    return sample(denoiser, schedule, tuple(shape), seed=seed, progress=False, **kw)

class Net(nn.Module):
    "A small network of 4 x 4 pictures with four labels; it keeps the times of its calls"
    def __init__(self, channels=1, dropout=0.):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.label, first = nn.Embedding(5, 8), nn.Linear(16 * channels + 9, 48)
            last = nn.Linear(48, 16 * channels)
            self.body = nn.Sequential(first, nn.SiLU(), nn.Dropout(dropout), last)
        self.times = []
    def forward(self, x, t, y=None):
        self.times.append(int(t[0]))
        y = torch.full_like(t, NULL) if y is None else y
        told = torch.cat([x.flatten(1), t[:, None].to(x) / 60, self.label(y + 1)], 1)
        return self.body(told).view(x.shape)

def single(P=V, **kw): return Denoiser(Net(**kw), P)
def double(P=V, **kw): return Denoiser(Net(**kw).double(), P)

class Fixed(nn.Module):
    "A denoiser that always predicts the same"
    def __init__(self, x0): super().__init__(); self.x0 = x0
    def forward(self, x_t, level, y=None): return X0.predict(self.x0.to(x_t), x_t, level)

KNOWN = torch.rand(3, 1, 4, 4, generator=gen()) * 2 - 1
MASK = torch.rand(3, 1, 4, 4, generator=gen(1)) < 0.5
X = torch.randn(3, 1, 4, 4, generator=gen()).double()
Y = torch.tensor([0, 1, 3])
def rough(x0): return (x0 - x0.flip(3)).square().flatten(1).sum(1)
def bright(x0): return -x0.flatten(1).mean(1)
def pasting(d): return inpaint(d, KNOWN, MASK)
def halving(d, known=KNOWN): return consistent(d, pooled(2).measure(known), pooled(2))

# ------------------------------------------------------------ a change of the image (eq-edit)
@pytest.mark.parametrize('P', [EPS, X0, V])
def test_the_noise_agrees_with_the_changed_image(P):
    "eq-edit, and every label and level reaches those who need it"
    d, level, seen = double(P), SHORT.at(torch.tensor([5, 30, 60]), X), []
    p = edited(d, lambda x0, level: (seen.append(level), 2 * x0 + 1)[1])(X, level, Y)
    close(p.x0, 2 * d(X, level, Y).x0 + 1); close(level.signal * p.x0 + level.noise * p.eps, X)
    assert seen[0] is level

def test_clipping_is_an_edit():
    d, x = single(), 3 * X.float()
    ours, theirs = edited(d, lambda x0, level: x0.clamp(-1, 1)), clipped(d)
    assert torch.equal(ours(x, SHORT.at(50, x), Y).x0, theirs(x, SHORT.at(50, x), Y).x0)
    assert torch.equal(draw(ours), draw(theirs))

# ------------------------------------------------------------ known pixels (eq-paste)
def test_two_pixels_on_paper():
    "eq-paste-toy, at signal 0.6 and noise 0.8"
    two = lambda a, b: torch.tensor([[a, b]], dtype=torch.float64)
    twins, x = MixtureOracle(torch.cat([two(1, 1), two(-1, -1)])), two(0.6, -0.6)
    level = Schedule(torch.tensor([0.64], dtype=torch.float64)).at(1, x)
    p = inpaint(twins, two(1, 0), torch.tensor([[True, False]]))(x, level)
    close(p.x0, two(1, 0)); close(p.eps, two(0, -0.75))

WRAPPED = {
    'inpaint': pasting,
    'clipped outside': lambda d: clipped(pasting(d)),
    'clipped inside': lambda d: pasting(clipped(d)),
    'guided inside': lambda d: pasting(guided(d, Y, 2.)),
    'guided outside': lambda d: guided(pasting(d), Y, 2.),
    'steered inside': lambda d: pasting(steered(d, rough, 3.)),
    'steered twice inside': lambda d: pasting(steered(steered(d, rough, 1.), bright, 2.)),
    'steered and guided': lambda d: clipped(pasting(steered(guided(d, Y, 0.5), rough, 3.))),
    'a thumbnail inside': lambda d: pasting(halving(d)),
    'twice': lambda d: pasting(pasting(d))}
WALKS = [SHORT.times(6), [60, 0], resampled(SHORT.times(6), 2, 3), resampled(SHORT.times(3), 3, 2)]

@every_solver
@pytest.mark.parametrize('wrap', WRAPPED.values(), ids=WRAPPED)
def test_known_pixels_are_exact_under_every_solver_wrapper_and_walk(wrap, step):
    "eq-paste: to the last bit, in single and in double precision; from noise, in the middle, at 0"
    walks = WALKS + [None] * (wrap is pasting)
    starts = [([40, 20, 0], X), ([0, 40, 20, 0], X)] * (wrap is pasting)
    for times, x_T in [(times, None) for times in walks] + starts:
        for d in (single(), double(X0)):
            x = draw(wrap(d), step=step, times=times, x_T=x_T, seed=3)
            assert torch.equal(x[MASK], KNOWN.to(x)[MASK]), times
            assert x.isfinite().all() and not torch.equal(x, KNOWN.to(x)), times

@pytest.mark.parametrize('times', [SHORT.times(20), resampled(SHORT.times(20), 4, 3)],
                         ids=['falling', 'resampled'])
def test_known_pixels_carry_the_right_noise_on_the_way(times):
    """Whatever is predicted, a known pixel k of x_t is N(signal k, noise^2): the posterior of
    eq-posterior, and eq-step upwards. Cosine, so that x_T may start at N(0, 1)"""
    known = torch.full((2000, 4), 0.7)
    d = inpaint(GaussianOracle(torch.zeros(4), torch.eye(4)), known, known > 0)
    for f in trajectory(d, SHORT, known.shape, times=times, seed=0):
        if f.t in (60, 0): continue
        z = ((f.x - SHORT.signal[f.t] * 0.7) / SHORT.noise[f.t]).double()
        assert abs(z.mean()) < 4.5 / math.sqrt(8000), f.t
        assert abs(z.std() - 1) < 4.5 / math.sqrt(16000), f.t

@pytest.mark.parametrize('step', [ddim(), dpm_solver_pp()], ids=repr)
def test_a_deterministic_solver_keeps_a_known_pixels_noise(step):
    walk = trajectory(pasting(double()), SHORT, X.shape, step=step, times=SHORT.times(8), seed=0)
    known, at = KNOWN.double(), SHORT
    first, *others = [(f.x - at.signal[f.t] * known) / at.noise[f.t] for f in walk if f.t]
    for eps in others: close(eps[MASK], first[MASK], 1e-8)

def test_one_picture_or_one_mask_for_all():
    d, one = single(), torch.tensor([[[[True, False, True, False]] * 4]])
    for known, mask in ((KNOWN[:1], one), (KNOWN, one), (KNOWN[:1], MASK[:1]),
                        (KNOWN, MASK.any(3, keepdim=True))):
        x = draw(inpaint(d, known, mask), times=SHORT.times(3))
        full = mask.expand_as(x)
        assert torch.equal(x[full], known.expand_as(x)[full]) and not torch.equal(x[0], x[1])

def test_nothing_known_and_everything_known():
    d, walk = single(), dict(times=SHORT.times(4))
    assert torch.equal(draw(inpaint(d, KNOWN, torch.ones_like(MASK)), **walk), KNOWN)
    close(draw(inpaint(d, KNOWN, torch.zeros_like(MASK)), **walk), draw(d, **walk), 1e-5)

def test_what_the_mask_leaves_out_may_be_anything_and_stays_as_it_was():
    known, walk = KNOWN.where(MASK, float('nan')), dict(times=SHORT.times(4))
    d = inpaint(single(), known, MASK)
    x = draw(inpaint(steered(d, rough, 2.), known, MASK), **walk)
    assert x.isfinite().all() and torch.equal(x[MASK], KNOWN[MASK])
    assert torch.equal(known.isnan(), ~MASK)
    known.zero_()  # the wrapper has its own copy
    assert torch.equal(draw(d, **walk)[MASK], KNOWN[MASK])

# ------------------------------------------------------------ how wrong pasting is
MEAN, COV, GIVEN = np.array([0.3, -0.2]), np.array([[0.25, 0.225], [0.225, 0.25]]), 0.9
RIGHT = (MEAN[1] + COV[1, 0] / COV[0, 0] * (GIVEN - MEAN[0]),      # eq-conditional
         math.sqrt(COV[1, 1] - COV[1, 0]**2 / COV[0, 0]))
mean, cov = torch.from_numpy(MEAN), torch.from_numpy(COV)
pair, first = GaussianOracle(mean, cov), torch.tensor([[True, False]])
given = torch.tensor([[GIVEN, 0.]], dtype=torch.float64)
def covariance(level):
    "Cov(x0 | x_t) of the pair"
    return torch.linalg.inv(torch.linalg.inv(cov) + level.snr.flatten()[0] * torch.eye(2))
def pixels(n, seed=0): return torch.randn(n, 2, generator=gen(seed)).double()

def pasted(times, schedule=LINEAR, small=True):
    """Mean and covariance of pasting with ancestral steps, written out in numpy: the denoiser is a
    matrix, a step is affine (eq-paste, eq-ancestral, eq-step)"""
    ab, m, C = schedule.alpha_bar.numpy(), np.zeros(2), np.eye(2)
    for t, s in zip(times, times[1:]):
        r = ab[max(t, s)] / ab[min(t, s)]
        if s > t: m, C = math.sqrt(r) * m, r * C + (1 - r) * np.eye(2); continue
        a, v = math.sqrt(ab[t]), 1 - ab[t]
        G = a * COV @ np.linalg.inv(a * a * COV + v * np.eye(2))
        bias = MEAN - G @ (a * MEAN)
        G[0], bias[0] = 0, GIVEN
        c0, ct = math.sqrt(ab[s]) * (1 - r) / v, math.sqrt(r) * (1 - ab[s]) / v
        var = (1 - r) * (1 - ab[s]) / v if small else (1 - r) * (s > 0)
        A = c0 * G + ct * np.eye(2)
        m, C = A @ m + c0 * bias, A @ C @ A.T + var * np.eye(2)
    return m, C

@pytest.mark.parametrize('small', [True, False])
@pytest.mark.parametrize('jump, repeats', [(1, 1), (1, 3), (5, 2), (20, 2)])
def test_pasted_samples_have_the_moments_that_follow_by_hand(jump, repeats, small):
    n, times = 4000, resampled(LINEAR.times(20), jump, repeats)
    m, C = pasted(times, small=small)
    step = ancestral() if small else ancestral(fixed_large)
    x = draw(inpaint(pair, given, first), (n, 2), LINEAR, times=times, step=step, seed=7).double()
    assert m[0] == GIVEN and C[0, 0] == 0 and (x[:, 0] == torch.tensor(GIVEN).float()).all()
    assert abs(x[:, 1].mean() - m[1]) < 4.5 * math.sqrt(C[1, 1] / n)
    assert abs(x[:, 1].var() / C[1, 1] - 1) < 4.5 * math.sqrt(2 / n)

def test_pasting_is_biased_and_walking_again_shrinks_the_bias():
    """eq-conditional against what pasting draws: two thirds of the way in one walk, nearly all of
    it in twenty, and more steps alone do not help"""
    def off(n, jump=1, repeats=1):
        return RIGHT[0] - pasted(resampled(LINEAR.times(n), jump, repeats))[0][1]
    assert abs(off(1000) - off(200)) < 0.02 and 0.15 < off(1000) < 0.2
    gaps = [off(100, 1, r) for r in (1, 2, 3, 5, 10, 20)]
    assert all(0 < b < a for a, b in zip(gaps, gaps[1:])) and gaps[-1] < 0.1 * gaps[0]
    assert off(200, 5, 10) < 0.25 * off(200)

def test_steering_with_the_right_strength_takes_the_bias_away():
    """eq-steer-exact, pointwise: the prediction given x_t and the known pixel is that of the
    conditional Gaussian; so the samples have its moments"""
    def certainty(level): return 1 / covariance(level)[0, 0]
    def off(x0): return (x0 - given)[:, 0].square() / 2
    d, x = inpaint(steered(pair, off, certainty, least=0.), given, first), pixels(50)
    for t in (1, 50, 400, 800, 1000):
        ab = LINEAR.alpha_bar[t].item()
        C = np.linalg.inv(np.linalg.inv(COV) + ab / (1 - ab) * np.eye(2))
        hat = (np.linalg.solve(COV, MEAN) + math.sqrt(ab) / (1 - ab) * x.numpy()) @ C
        want = hat - (hat[:, :1] - GIVEN) * C[:, 0] / C[0, 0]
        np.testing.assert_allclose(d(x, LINEAR.at(t, x)).x0, want, atol=1e-8)
    n, walk = 4000, dict(step=ancestral(fixed_large), times=LINEAR.times(250))
    x = draw(d, (n, 2), LINEAR, x_T=pixels(n, 1), **walk)[:, 1]
    assert abs(x.mean() - RIGHT[0]) < 4.5 * RIGHT[1] / math.sqrt(n)
    # 2 % for steps that are not infinitely short
    assert abs(x.std() / RIGHT[1] - 1) < 4.5 / math.sqrt(2 * n) + 0.02

# ------------------------------------------------------------ walks that go up
def test_resampled_by_its_definition():
    for n in (1, 2, 5, 7, 12):
        times = list(range(3 * n, -1, -3))
        for jump, repeats in ((j, r) for j in range(1, n + 2) for r in (1, 2, 4)):
            out = resampled(times, jump, repeats)
            moves = list(zip(out, out[1:]))
            down, up = [m for m in moves if m[1] < m[0]], [m for m in moves if m[1] > m[0]]
            assert out[0] == times[0] and out[-1] == 0 and len(down) + len(up) == len(moves)
            assert sorted(down) == sorted(list(zip(times, times[1:])) * repeats)  # so many times
            assert all(s - t == 3 * min(jump, n - (3 * n - s) // 3) for t, s in up)
            assert len(up) == -(-n // jump) * (repeats - 1)
    assert resampled(torch.tensor([9, 6, 3, 0]), 2, 1) == [9, 6, 3, 0]
    assert resampled(range(4, -1, -2), 1, 2) == [4, 2, 4, 2, 0, 2, 0]

@pytest.mark.parametrize('s, t', [(0, 1), (0, 700), (0, 1000), (300, 301), (300, 700), (999, 1000)])
@pytest.mark.parametrize('schedule', [LINEAR, DARK], ids=['linear', 'zero terminal'])
def test_a_jump_up_is_the_forward_process(s, t, schedule):
    """eq-step by Monte Carlo: mean and variance of x_t given x_s, over 20,000 numbers, and no
    correlation with x_s"""
    x_s = torch.randn(20_000, 1, generator=gen()).double()
    d = GaussianOracle(torch.zeros(1), torch.eye(1))
    f = next(trajectory(d, schedule, x_s.shape, times=[s, t, 0], x_T=x_s, seed=5))
    ratio = (schedule.alpha_bar[t] / schedule.alpha_bar[s]).item()
    added, error = f.x - math.sqrt(ratio) * x_s, 4.5 * math.sqrt((1 - ratio) / 20_000)
    assert f.t == t and abs(added.mean()) < error and abs((added * x_s).mean()) < error
    assert abs(added.var() / (1 - ratio) - 1) < 4.5 * math.sqrt(2 / 20_000)

def rows(step, times):
    "t and coefficients of each step of a walk that falls"
    t = torch.tensor(step.visits(times))
    c = step.coefficients(SHORT.at(t[:-1], t[:-1]), SHORT.at(t[1:], t[1:]))
    return zip(t.tolist(), (Coefficients(*row) for row in zip(*torch.broadcast_tensors(*c))))

def normal(noise): return noise.draw((1, 4, 4)).double()

def one_step(d, x, t, c, previous, noise):
    "x_s and the predicted image, by eq-coefficients; noise is drawn where the step has any"
    with torch.no_grad(): x0 = d(x, SHORT.at(t, x)).x0
    x = c.x0 * x0 + c.x_t * x + c.previous * previous
    return (x + c.std * normal(noise) if c.std else x), x0

@every_solver
def test_a_walk_with_jumps_is_its_walks_down_one_after_another(step):
    """No solver carries anything over a jump: each walk down is as if it were the first, with the
    noise of the whole walk in order"""
    d, times, noise = double(), [60, 45, 30, 50, 30, 15, 0, 20, 10, 0], Noise(9, 3)
    x = normal(noise)
    for part, jump in (([60, 45, 30], 50), ([50, 30, 15, 0], 20), ([20, 10, 0], None)):
        previous = 0
        for t, c in rows(step, part): x, previous = one_step(d, x, t, c, previous, noise)
        if jump:
            r = (SHORT.alpha_bar[jump] / SHORT.alpha_bar[part[-1]]).item()
            x = math.sqrt(r) * x + math.sqrt(1 - r) * normal(noise)
    close(draw(d, step=step, times=times, seed=9), x)

@pytest.mark.parametrize('step, want', [(ddim(), [60, 30, 50, 20, 40]),
                                        (heun(), [60, 30, 30, 10, 50, 20, 20, 40])], ids=repr)
def test_nothing_is_predicted_at_the_foot_of_a_jump(step, want, capsys):
    "At 10 and at 0; but heun's second look at 10 belongs to the step that ends there"
    d, walk = single(), dict(step=step, times=[60, 30, 10, 50, 20, 0, 40, 0], seed=0)
    frames = [f.t for f in trajectory(d, SHORT, (1, 1, 4, 4), **walk)]
    assert d.net.times == want and frames == [*want, 0]
    sample(d, SHORT, (1, 1, 4, 4), **walk)
    assert f'{len(frames)}/{len(frames)}' in capsys.readouterr().err  # the bar knows

def test_an_exact_sampler_is_still_exact_after_jumps():
    "A Gaussian's mean and variance, with a jump from 300 to 700 on the way"
    oracle = GaussianOracle(torch.tensor([0.3]), torch.tensor([[0.25]]))
    times = [*range(1000, 299, -4), *range(700, -1, -4)]
    x = draw(oracle, (4000, 1), LINEAR, step=ancestral(fixed_large), times=times).double()
    assert abs(x.mean() - 0.3) < 4.5 * 0.5 / math.sqrt(4000)
    assert abs(x.var() / 0.25 - 1) < 4.5 * math.sqrt(2 / 4000) + 0.02  # 2 % for strides of 4

def test_from_a_picture_up_and_back():
    """SDEdit: low noise keeps the mode that the picture is of; more noise loses it as often as it
    crosses the plane between the two, which the flow, being symmetric, does not; full noise forgets
    it; the seed rules all"""
    modes = torch.tensor([[-0.7, 0., 0.5], [0.4, 0.1, -0.5]])
    oracle, nearest = MixtureOracle(modes, 0.05), lambda x: torch.cdist(x, modes).argmin(1)
    def again(t, seed=0, n=60):
        walk = dict(step=ddim(), times=[0, *range(t, -1, -20)], seed=seed)
        return draw(oracle, (n, 3), COSINE, x_T=modes[:1].expand(n, 3), **walk)
    for t in (200, 400):
        level, n = COSINE.at(t, torch.zeros(1, 1)), 4000
        half = (modes[0] - modes[1]).norm() / 2
        lost = torch.special.ndtr(-level.signal * half / level.noise).item()
        found = nearest(again(t, n=n)).double().mean()
        assert abs(found - lost) < 4 * math.sqrt(lost * (1 - lost) / n), t
    assert (nearest(again(100)) == 0).all()
    assert 0.25 < nearest(again(1000)).double().mean() < 0.75
    assert torch.equal(again(600), again(600)) and not torch.equal(again(600), again(600, 1))
    close(again(600)[:5], again(600, n=5), 1e-5)

# ------------------------------------------------------------ steering
def test_steering_is_minus_lambda_times_covariance_times_slope():
    "eq-steer-cov with the covariance of a Gaussian and of a coin, and a loss that is not linear"
    x, target = pixels(40), torch.tensor([0.5, 1.5]).double()
    d = steered(pair, lambda x0: (x0 - target).pow(4).sum(1), 0.7, least=0.)
    for t in (1, 100, 500, 1000):
        level = LINEAR.at(t, x)
        p, x0 = d(x, level), pair(x, level).x0
        close(p.x0, x0 - 0.7 * (4 * (x0 - target)**3) @ covariance(level), 1e-7)
        close(level.signal * p.x0 + level.noise * p.eps, x)
    coin, x, level = MixtureOracle(torch.tensor([[1.], [-1.]])), x[:, :1], LINEAR.at(250, x)
    x0 = coin(x, level).x0
    close(steered(coin, lambda x0: -x0[:, 0], 3.)(x, level).x0, x0 + 3 * (1 - x0**2), 1e-7)

A = torch.tensor([1., -0.5]).double()
def slope(x0): return x0 @ A.to(x0)

@pytest.mark.parametrize('lam', [-2., 0., 0.5, 4.])
def test_a_linear_loss_tilts_a_gaussian_exactly(lam):
    """eq-steer-bayes is no approximation here: the steered denoiser is the exact one of
    N(mean - lam cov a, cov), at every level"""
    tilted, x = GaussianOracle(mean - lam * cov @ A, cov), pixels(30)
    for t in (1, 100, 500, 1000):
        level = LINEAR.at(t, x)
        close(steered(pair, slope, lam, least=0.)(x, level).x0, tilted(x, level).x0, 1e-7)

def test_a_quadratic_loss_tilts_a_gaussian_exactly_with_the_right_scale_alone():
    """p(x0) exp(-lam/2 (a x0 - b)^2) has precision cov^-1 + lam a a^T; the variance a C a of the
    prediction must be added to 1 / lam (eq-steer-bayes, beyond the mean)"""
    b, lam, x = 0.4, 3., pixels(30)
    precision = torch.linalg.inv(cov) + lam * A.outer(A)
    m = torch.linalg.solve(precision, torch.linalg.solve(cov, mean) + lam * b * A)
    tilted, loss = GaussianOracle(m, torch.linalg.inv(precision)), lambda x0: (slope(x0) - b)**2 / 2
    def scale(level): return 1 / (1 / lam + A @ covariance(level) @ A)
    exact, naive = (steered(pair, loss, w, least=0.) for w in (scale, lam))
    for t in (1, 100, 500, 1000):
        level = LINEAR.at(t, x)
        close(exact(x, level).x0, tilted(x, level).x0, 1e-7)
        moved, right = ((d(x, level).x0 - pair(x, level).x0) @ A for d in (naive, tilted))
        close(moved / right, (lam / scale(level)).expand(30), 1e-5)
    assert lam / scale(LINEAR.at(1000, x)) > 1.25  # a constant one is a quarter too much there

@pytest.mark.parametrize('P', [EPS, X0, V])
def test_the_gradient_goes_through_any_network(P):
    "eq-steer against central differences"
    d, x, h = double(P), X[:2], 1e-5
    level = SHORT.at(40, x)
    with torch.no_grad():
        image = lambda x: d(x, level, Y[:2]).x0
        bumps = h * torch.eye(16).double().view(16, 1, 1, 4, 4)
        pairs = [(rough(image(x + e)) - rough(image(x - e))) / (2 * h) for e in bumps]
        grad = torch.stack(pairs, 1).view(x.shape)
        want = image(x) - 0.3 * level.noise**2 / level.signal * grad
    close(steered(d, rough, 0.3)(x, level, Y[:2]).x0, want, 1e-6)

def test_steered_samples_follow_the_tilted_gaussian():
    n, walk = 4000, dict(step=ancestral(fixed_large), times=COSINE.times(250))
    x = draw(steered(pair, slope, 1.), (n, 2), COSINE, x_T=pixels(n, 3), **walk)
    # 0.005 for `least` and the length of steps
    assert ((x.mean(0) - (mean - cov @ A)).abs() < 4.5 * 0.5 / math.sqrt(n) + 0.005).all()
    assert (x.std(0) / 0.5 - 1).abs().max() < 4.5 / math.sqrt(2 * n) + 0.02

def test_scale_0_changes_nothing_and_losses_add_up():
    d, level = double(), SHORT.at(30, X)
    close(steered(d, rough, 0.)(X, level, Y).x0, d(X, level, Y).x0)
    z, other = pixels(5), lambda x0: 2 * x0[:, 1]
    twice = steered(steered(pair, slope, 0.5), other, 2.)  # linear losses: tilts commute
    once = steered(pair, lambda x0: 0.5 * slope(x0) + 2 * other(x0), 1.)
    close(twice(z, LINEAR.at(300, z)).x0, once(z, LINEAR.at(300, z)).x0)

def test_three_in_a_row_through_attention():
    "Steering around steering asks for no second derivative, which attention does not have on a CPU"
    with torch.random.fork_rng():
        torch.manual_seed(0); net = UNet(1, 8, (1,), 1, (0,))
        for p in net.parameters(): nn.init.normal_(p, std=0.2)
    d, x = Denoiser(net, V), torch.randn(2, 1, 8, 8, generator=gen())
    inner = steered(steered(d, bright, 1.), rough, 0.1)
    p = steered(clipped(inner), bright, 1.)(x, SHORT.at(30, x))
    assert p.x0.isfinite().all() and not p.x0.requires_grad
    assert all(q.grad is None for q in net.parameters())

def test_the_slope_is_divided_by_no_signal_below_least():
    x = pixels(4)
    def shift(t, least, schedule=COSINE):
        level, d = schedule.at(t, x), steered(pair, lambda x0: x0[:, 0], 1., least=least)
        return d(x, level).x0 - pair(x, level).x0
    assert COSINE.signal[990] < 0.05 < COSINE.signal[900]
    close(shift(900, 0.05), shift(900, 0.))
    close(shift(990, 0.05), shift(990, 0.) * (COSINE.signal[990] / 0.05).item(), 1e-6)
    for least in (0., 0.05): assert not shift(1000, least, DARK).any()  # no signal, no slope

def test_a_scale_by_level():
    d, level = double(), SHORT.at(torch.tensor([10, 30, 50]), X)
    def early(level): return 2. * (level.t <= 30).view(-1, 1, 1, 1)
    some, full = (steered(d, rough, scale)(X, level).x0 for scale in (early, 2.))
    close(some[:2], full[:2]); close(some[2], d(X, level).x0[2])

# ------------------------------------------------------------ no footprints
ALL = {'edited': lambda d: edited(d, lambda x0, level: 0.9 * x0),
       'inpaint': lambda d: inpaint(d, KNOWN[:1], MASK[:1]),
       'consistent': lambda d: halving(d, KNOWN[:1]),
       'steered': lambda d: steered(d, rough, 1.)}
ALL['all'] = lambda d: clipped(ALL['inpaint'](ALL['consistent'](ALL['steered'](d))))
every_wrapper = pytest.mark.parametrize('wrap', ALL.values(), ids=ALL)

@every_wrapper
def test_modes_gradients_and_randomness_are_left_alone(wrap):
    net = Net(dropout=0.5)
    for mode in (True, False):
        d, rng = wrap(Denoiser(net, V).train(mode)), torch.random.get_rng_state()
        assert all(m.training == mode for m in d.modules())
        a, b = (draw(d, times=SHORT.times(4)) for _ in range(2))
        assert torch.equal(a, b) and all(m.training == mode for m in d.modules())  # no dropout
        assert torch.is_grad_enabled() and not a.requires_grad
        assert all(p.grad is None and p.requires_grad for p in net.parameters())
        assert torch.equal(torch.random.get_rng_state(), rng)

@every_wrapper
def test_under_no_grad_and_inference_mode(wrap):
    "Also where the wrapper and the labels are made inside"
    want, d = draw(wrap(single()), times=SHORT.times(4)), single()
    with torch.no_grad(): close(draw(wrap(single()), times=SHORT.times(4)), want, 1e-6)
    with torch.inference_mode():
        x = draw(wrap(d), times=SHORT.times(4), y=torch.tensor([NULL] * 3))
        close(x.clone(), want, 1e-6)

def test_a_loss_with_dropout_is_evaluated_in_eval_mode():
    class Loss(nn.Module):
        def __init__(self): super().__init__(); self.drop = nn.Dropout(0.5)
        def forward(self, x0): return self.drop(x0).flatten(1).sum(1)
    d = steered(single(), Loss(), 1.)
    a, b = (draw(d, times=SHORT.times(4)) for _ in range(2))
    assert torch.equal(a, b) and d.loss.training

@every_wrapper
@pytest.mark.parametrize('step', [ancestral(), dpm_solver_pp(), heun()], ids=repr)
def test_an_image_is_the_same_in_any_batch(wrap, step):
    "Up to the order of sums in a matrix product: 1e-5"
    def images(n, first=0, seed=4):
        walk = dict(step=step, times=resampled(SHORT.times(6), 3, 2))
        return draw(wrap(single()), (n, 1, 4, 4), first=first, seed=seed, **walk)
    whole = images(7)
    for n, i in ((1, 0), (2, 3), (4, 3)): close(images(n, i), whole[i:i + n], 1e-5)
    assert torch.equal(whole, images(7)) and not torch.equal(whole, images(7, seed=5))

def test_a_wrapper_can_be_copied_and_moved():
    d = ALL['all'](single())
    twin, level = copy.deepcopy(d).to(torch.float64), SHORT.at(20, X)
    close(twin(X, level).x0.float(), d(X.float(), level).x0, 1e-5)
    assert not any('known' in k or 'mask' in k for k in d.state_dict())  # pictures are no weights

# ------------------------------------------------------------ linear views (eq-view)
VIEWS = {'pooled(2)': (pooled(2), (1, 4, 4)), 'pooled(4)': (pooled(4), (3, 4, 8)),
         'gray': (gray(), (3, 2, 3)), 'gray, equal': (gray((1/3, 1/3, 1/3)), (3, 2, 2)),
         'two colours': (gray((0.7, 0.3)), (2, 2, 2))}

@pytest.mark.parametrize('view, shape', VIEWS.values(), ids=VIEWS)
def test_views_against_the_pseudo_inverse_and_least_squares(view, shape):
    "eq-view: numpy's pseudo-inverse; of all images that agree, the one nearest to the prediction"
    columns = lambda x: x.flatten(1).T.numpy()
    seen = view.measure(torch.eye(math.prod(shape)).double().view(-1, *shape))
    A = columns(seen)
    lifted = view.lift(torch.eye(len(A)).double().view(-1, *seen.shape[1:]))
    np.testing.assert_allclose(columns(lifted), np.linalg.pinv(A), atol=1e-7)
    x0, truth = (torch.rand(5, *shape, generator=gen(i)).double() * 2 - 1 for i in (0, 1))
    ours = consistent(Fixed(x0), view.measure(truth), view)(truth, SHORT.at(30, truth)).x0
    least = np.linalg.lstsq(A, A @ columns(truth - x0), rcond=None)[0]  # the least change that fits
    np.testing.assert_allclose(columns(ours), columns(x0) + least, atol=1e-7)

@every_solver
@pytest.mark.parametrize('view', [pooled(2), gray()], ids=['pooled', 'gray'])
def test_what_is_known_of_the_result_is_as_given(step, view):
    "Up to rounding, 1e-5"
    truth = torch.rand(3, 3, 4, 4, generator=gen()) * 2 - 1
    d = consistent(single(channels=3), view.measure(truth), view)
    x = draw(d, truth.shape, step=step, times=resampled(SHORT.times(6), 2, 2))
    close(view.measure(x), view.measure(truth), 1e-5)
    assert (x - truth).abs().max() > 0.05

def test_inpainting_is_the_special_case():
    cut = View(lambda x: x * MASK[:1], lambda y: y * MASK[:1])
    d, level = double(), SHORT.at(30, X)
    mine, theirs = inpaint(d, KNOWN, MASK[:1]), consistent(d, KNOWN * MASK[:1], cut)
    close(mine(X, level).x0, theirs(X, level).x0, 1e-6)

def test_average_of_a_block_and_luminance_by_hand():
    x, colour = torch.arange(16.).view(1, 1, 4, 4), torch.tensor([1., 0., -1.]).view(1, 3, 1, 1)
    assert pooled(2).measure(x).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    lifted = pooled(2).lift(torch.tensor([[[[1., 2.]]]]))
    assert lifted.tolist() == [[[[1, 1, 2, 2], [1, 1, 2, 2]]]]
    assert gray().measure(colour).item() == pytest.approx(0.299 - 0.114, abs=1e-6)

# ------------------------------------------------------------ inversion (eq-invert)
@pytest.mark.parametrize('schedule', [COSINE, LINEAR], ids=['cosine', 'linear'])
def test_inverting_a_standard_normal_is_a_product_of_cosines(schedule):
    """eq-ddim-toy upwards; the start (eq-invert) puts signal_1 + noise_1^2 signal_1 in front, since
    eps = noise_1 x there"""
    line, x0 = GaussianOracle(torch.zeros(2), torch.eye(2)), torch.tensor([[1., -0.5]]).double()
    angle = np.arctan2(schedule.noise.numpy(), schedule.signal.numpy())
    start = math.cos(angle[1]) * (1 + math.sin(angle[1])**2)
    for n in (1, 4, 25):
        rising = [1, *schedule.times(n)[-2::-1]]
        want = start * np.prod(np.cos(np.diff(angle[rising])))
        close(invert(line, schedule, x0, schedule.times(n)), want * x0)

def test_inversion_converges_to_the_exact_flow():
    """eq-gaussian-flow backwards: along an axis, (x_T / signal - mu) grows by
    sqrt((var + rho^2) / var). DDIM with order 1, DPM-Solver++ 2M with at least 1.8"""
    var, mu = torch.tensor([0.25, 0.09]).double(), torch.tensor([0.3, -0.5]).double()
    oracle, x0 = GaussianOracle(mu, var.diag()), 0.4 * pixels(20)
    rho, signal = COSINE.noise[950] / COSINE.signal[950], COSINE.signal[950]
    exact = signal * (mu + (x0 - mu) * ((var + rho**2) / var).sqrt())
    def error(n, step):
        times = [950, *(t for t in COSINE.times(n, log_snr) if t < 950)]
        return (invert(oracle, COSINE, x0, times, step=step) - exact).square().mean().sqrt().item()
    first, second = ([error(n, step) for n in (20, 40, 80)] for step in (ddim(), dpm_solver_pp()))
    order = [math.log2(e[0] / e[2]) / 2 for e in (first, second)]
    assert 0.8 < order[0] < 1.2 and order[1] > 1.8 and second[2] < 0.05 * first[2], order

def test_the_round_trip_improves_with_steps_and_with_the_order():
    oracle = MixtureOracle(torch.tensor([[-0.8], [0.5]]), 0.2)
    x0 = torch.linspace(-1, 1, 21).double()[:, None]
    def trip(n, step):
        walk = dict(times=LINEAR.times(n, log_snr), step=step)
        x_T = invert(oracle, LINEAR, x0, **walk)
        return (draw(oracle, x0.shape, LINEAR, x_T=x_T, **walk) - x0).abs().mean().item()
    numbers, solvers = (25, 50, 100, 200), (ddim(), dpm_solver_pp())
    first, second = ([trip(n, step) for n in numbers] for step in solvers)
    assert all(b < 0.65 * a for a, b in zip(first, first[1:])) and second[-1] < 0.1 * first[-1]

def test_inverting_part_of_the_way_and_with_labels():
    d, x0, times = double(), KNOWN.double(), [30, 20, 10, 5, 2, 1, 0]
    told, free = invert(d, SHORT, x0, times, y=Y), invert(d, SHORT, x0, times)
    assert not torch.equal(told, free) and d.net.times == [1, 1, 2, 5, 10, 20] * 2
    close(told, invert(guided(d, Y, 0.), SHORT, x0, times))
    level = SHORT.at(1, x0)
    x = level.signal * x0
    with torch.no_grad(): x = x + level.noise * d(x, level).eps  # eq-invert, its first line
    for step in (ddim(), dpm_solver_pp()): close(invert(d, SHORT, x0, [1, 0], step=step), x)

def test_inversion_leaves_no_footprints():
    d, x0, times = single(dropout=0.5).train(), KNOWN.clone().requires_grad_(), SHORT.times(5)
    a, b = (invert(d, SHORT, x0, times) for _ in range(2))
    assert torch.equal(a, b) and not a.requires_grad and torch.is_grad_enabled()
    assert all(m.training for m in d.modules())
    close(invert(d, SHORT, KNOWN[1:2], times), a[1:2], 1e-5)

# ------------------------------------------------------------ interpolation (eq-slerp)
def test_slerp_turns_evenly():
    "eq-slerp in the plane: a turn by w times the angle; anywhere: ends, order, length"
    def on_circle(angle): return torch.stack([angle.cos(), angle.sin()], -1)
    w = torch.linspace(0, 1, 7).double()
    for angle in torch.tensor([1., 60., 90., 170.]).double().deg2rad().view(4, 1):
        close(interpolate(on_circle(0 * angle), on_circle(angle), w), on_circle(w * angle))
    a, b = torch.randn(2, 5, 3, 4, 4, generator=gen()).double()
    assert torch.equal(interpolate(a, b, 0.), a) and torch.equal(interpolate(a, b, 1.), b)
    close(interpolate(a, b, 0.3), interpolate(b, a, 0.7))
    close(interpolate(a, 2 * a, 0.25), 1.25 * a)  # parallel: the straight line
    long = torch.randn(2, 1, 10_000, generator=gen())
    assert long.mean(0).std() < 0.75 and abs(interpolate(*long, 0.5).std() - 1) < 0.03

def test_slerp_of_batches():
    a, b = torch.randn(2, 4, 1, 3, 3, generator=gen())
    w = torch.tensor([0., 0.2, 0.7, 1.])
    whole = interpolate(a, b, w)
    for i in range(4): close(interpolate(a[[i]], b[[i]], w[i].item()), whole[[i]], 1e-6)
    close(interpolate(a[:1], b, 0.2)[1:2], interpolate(a[:1], b[1:2], 0.2), 1e-6)
    assert interpolate(a[:1], b[:1], w).shape == (4, 1, 3, 3) and a.dtype == whole.dtype

# ------------------------------------------------------------ altogether
def test_guided_steered_inpainted_in_fifteen_steps_is_one_expression():
    d = single()
    def drawn(y=Y, scale=0.5, strength=0.5, mask=MASK):
        edit = clipped(inpaint(steered(guided(d, y, scale), rough, strength), KNOWN, mask))
        return draw(edit, step=dpm_solver_pp(), times=SHORT.times(15))
    x = drawn()
    assert torch.equal(x[MASK], KNOWN[MASK]) and x.abs().max() <= 1 and len(d.net.times) == 30
    assert torch.equal(drawn(), x)
    for other in (drawn(y=Y.flip(0)), drawn(scale=0.), drawn(mask=~MASK)):  # each part counts
        assert (x - other)[~MASK].abs().max() > 1e-3
    assert rough(x).sum() < 0.95 * rough(drawn(strength=0.)).sum()          # and steering steers

# ------------------------------------------------------------ x_t changed on the way
HANDS = [ancestral(), ddim(), ddim(1.), dpm_solver_pp(), dpm_solver_pp(1.), heun()]
every_hand = pytest.mark.parametrize('step', HANDS, ids=repr)
TIMES = [60, 45, 30, 15, 5, 0]
def twist(x): return 0.9 * x.rot90(1, (2, 3)) + 0.1  # twice is not once
CHANGED = {'none': lambda i, t: False, 'all': lambda i, t: True, 'first': lambda i, t: i == 0,
           'some': lambda i, t: i in (1, 4), '30': lambda i, t: t == 30, 'end': lambda i, t: t == 0}

def by_hand(d, step, when, x_T=None):
    "A plain loop: change x, predict from what it has become, go on, with the seed's noise in order"
    noise, previous = Noise(9, 3), 0
    x = normal(noise)  # drawn even where x_T is given
    if x_T is not None: x = x_T
    for i, (t, c) in enumerate(rows(step, TIMES)):
        if when(i, t): x = twist(x)
        x, previous = one_step(d, x, t, c, previous, noise)
    return twist(x) if when(i + 1, 0) else x

def frames(d, step, **kw):
    return trajectory(d, SHORT, X.shape, step=step, times=TIMES, seed=9, **kw)

def by_frames(d, step, when, **kw):
    "The same by writing into the frames of `trajectory`"
    for i, frame in enumerate(frames(d, step, **kw)):
        if when(i, frame.t): frame.x.copy_(twist(frame.x))
    return frame.x

@every_hand
@pytest.mark.parametrize('when', CHANGED.values(), ids=CHANGED)
def test_a_frame_changed_in_place_is_where_the_walk_goes_on(when, step):
    """To 1e-12 what a plain loop gives, from noise and from an x_T, which stays as it was; one more
    call for each changed frame but the result, and none for one that was only read"""
    before, visits = X.clone(), step.visits(TIMES)
    want = [t for i, t in enumerate(visits[:-1]) for _ in range(1 + when(i, t))]
    for x_T in (None, X):
        d = double()
        with torch.no_grad(): x = by_frames(d, step, when, x_T=x_T)
        assert d.net.times == want, 'calls'
        close(x, by_hand(d, step, when, x_T), 1e-12)
        assert torch.equal(by_frames(d, step, when, x_T=x_T), x)  # and with gradients on
    assert torch.equal(X, before)

@every_hand
def test_reading_changes_nothing_and_a_write_of_the_same_only_costs_a_call(step):
    d, calls = single(), len(step.visits(TIMES)) - 1
    x = draw(d, step=step, times=TIMES, seed=9)
    def walk(touch):
        d.net.times.clear()
        with torch.no_grad():
            for frame in frames(d, step): touch(frame.x)
        assert torch.equal(frame.x, x)
        return len(d.net.times)
    def look(x): x.clone().zero_(), x.flip(3).neg_(), x.mean().item(), x.numpy().sum()
    assert walk(look) == calls and walk(lambda x: x.copy_(x.clone())) == 2 * calls

def test_a_frame_changed_under_a_wrapper_and_with_labels():
    """The second call is of the same denoiser, with the same labels; what inpaint knows still comes
    out exactly"""
    d = double()
    def zeroed(denoiser, **kw):
        for f in frames(denoiser, ancestral(), **kw):
            if f.t == 30: f.x.zero_()
        return f.x
    close(zeroed(d, y=Y), zeroed(guided(d, Y, 0.)))
    assert (zeroed(d, y=Y) - zeroed(d)).abs().max() > 1e-3
    assert torch.equal(zeroed(pasting(d))[MASK], KNOWN.double()[MASK])

def test_in_inference_mode_a_write_is_not_noticed():
    "PyTorch counts none there: the step sees the new x beside the old prediction"
    d = single()
    with torch.inference_mode():
        for f in frames(d, ddim()): f.x.mul_(0.9)
    assert d.net.times == TIMES[:-1]

@pytest.mark.parametrize('step, same', [(ddim(), True), (dpm_solver_pp(), False), (heun(), False),
                                        (ancestral(), False)], ids=repr)
def test_stop_change_and_start_anew(step, same):
    """Another walk from a frame is this one going on, for DDIM. 2M has lost the prediction before,
    heun its correction if left at the first of two frames, and noise starts from the beginning"""
    d = double()
    first_30 = next(i for i, t in enumerate(step.visits(TIMES)) if t == 30)
    here = by_frames(d, step, lambda i, t: i == first_30)
    frame = next(f for f in frames(d, step) if f.t == 30)
    anew = draw(d, step=step, times=[30, 15, 5, 0], x_T=twist(frame.x), seed=9)
    off = (anew - here).abs().max()
    assert off < 1e-9 if same else off > 1e-3, off

def test_heun_left_at_the_second_of_its_frames_has_nothing_to_lose():
    d, step = double(), heun()
    seen = list(frames(d, step))
    first, second = (draw(d, step=step, times=[30, 15, 5, 0], x_T=f.x) for f in seen if f.t == 30)
    close(second, seen[-1].x)
    assert (first - seen[-1].x).abs().max() > 1e-4

# ------------------------------------------------------------ one seed, one picture
def test_with_a_label_one_seed_is_one_picture_from_ten_to_a_thousand_steps():
    """Three threes by the network that comes with the package: whichever the deterministic solver,
    each is the one of 1,000 steps of DPM-Solver++, far nearer than two of them are to each other.
    Noise draws others"""
    net, schedule = load('mnist-mini')
    def drawn(step, n):
        walk = dict(step=step, times=schedule.times(n), y=torch.full((3,), 3))
        return draw(clipped(net), (3, 1, 28, 28), schedule, **walk).flatten(1)
    threes = drawn(dpm_solver_pp(), 1000)
    def off(step, n): return torch.cdist(drawn(step, n), threes).diag()
    between = torch.pdist(threes).min()
    for step in (ddim(), dpm_solver_pp(), heun()):
        for n in (10, 20, 50): assert off(step, n).max() < between / 4
    for step in (ancestral(), ddim(1.), dpm_solver_pp(1.)): assert off(step, 20).min() > between / 2

# ------------------------------------------------------------ mistakes
D, ZERO = single(), torch.zeros(3, 1, 4, 4)
def at_zero(d): return d(ZERO, SHORT.at(30, ZERO))
def steer(loss, scale=1., **kw): return at_zero(steered(D, loss, scale, **kw))
def walk(times, **kw): return draw(D, times=times, **kw)
def up(times, step=ddim(), x0=KNOWN, schedule=SHORT, y=None):
    return invert(D, schedule, x0, times, step=step, y=y)
NAN = float('nan')
BYTES = ((KNOWN + 1) * 127.5).to(torch.uint8)
ONES = torch.ones(1, 1, 2, 2)
TOO_MUCH = View(pooled(2).measure, lambda y: 2 * pooled(2).lift(y))
THREE_CLASSES = Denoiser(UNet(1, 8, (1,), 1, (), num_classes=3), V)

@pytest.mark.parametrize('case, match', [
    # inpaint
    (lambda: inpaint(D, KNOWN, MASK[0, 0]), r'mask has shape \(4, 4\), but known \(3, 1, 4, 4\)'),
    (lambda: inpaint(D, KNOWN, MASK[:2]), r'mask has shape \(2, 1, 4, 4\)'),
    (lambda: inpaint(D, KNOWN[:1], MASK),
     r'mask has shape \(3, 1, 4, 4\), but known \(1, 1, 4, 4\)'),
    (lambda: inpaint(D, 127 * KNOWN, MASK), r'outside \[-1, 1\]: they lie in -1.*data\.to_float'),
    (lambda: inpaint(D, KNOWN.where(~MASK, NAN), MASK), r'outside \[-1, 1\]'),
    (lambda: inpaint(D, KNOWN[0, 0, 0], MASK[0, 0, 0]), r'known has shape \(4,\)'),
    (lambda: at_zero(inpaint(D, KNOWN[:2], MASK[:2])),
     r'known has shape \(2, 1, 4, 4\), but the images are \(3, 1, 4, 4\)'),
    (lambda: at_zero(inpaint(D, KNOWN[..., :3], MASK[..., :3])),
     r'known has shape \(3, 1, 4, 3\), but the images are'),
    (lambda: draw(pasting(D), (2, 1, 4, 4)),
     r'known has shape \(3, 1, 4, 4\), but the images are \(2, 1, 4, 4\)'),
    # edited, consistent and its views
    (lambda: at_zero(edited(D, lambda x0, level: x0[:1])),
     r'the change returned \(1, 1, 4, 4\) for images \(3, 1, 4, 4\)'),
    (lambda: at_zero(consistent(D, ZERO[..., 1:, 1:], pooled(2))),
     r'known has shape \(3, 1, 3, 3\), but the view of the images is \(3, 1, 2, 2\)'),
    (lambda: at_zero(consistent(D, ZERO[..., :1, :1], pooled(3))),
     'cannot be cut into blocks of 3 x 3'),
    (lambda: consistent(D, torch.inf * ONES, pooled(2)), 'not finite'),
    (lambda: consistent(D, ONES, TOO_MUCH), r'no image agrees .* off by 1.* pseudo-inverse'),
    (lambda: pooled(0), 'k = 0'),
    (lambda: gray((0., 0., 0.)), 'weigh nothing'),
    # steered
    (lambda: steer(bright, NAN), 'scale = nan'),
    (lambda: steer(bright, least=2.), r'least = 2\.0 is outside 0\.\.1'),
    (lambda: steer(lambda x0: x0.mean()),
     r'the loss returned shape \(\); it must return one number for each of the 3 images'),
    (lambda: steer(lambda x0: x0.flatten(1)), r'the loss returned shape \(3, 16\)'),
    (lambda: steer(lambda x0: 3.), 'the loss returned float'),
    (lambda: steer(lambda x0: bright(x0.detach())), 'the loss is not differentiable'),
    (lambda: steer(lambda x0: bright((x0 > 0).float())), 'is not differentiable'),
    (lambda: steer(lambda x0: D.net.label.weight.sum(1)[:3]), 'does not depend on x0'),
    (lambda: at_zero(steered(Fixed(ZERO), bright, 1.)), 'lets no gradient through'),
    (lambda: draw(guided(THREE_CLASSES, [0, 1, 3], 1.)),
     r'labels y lie in 0\.\.3; this network takes 0\.\.2'),
    # times that go up
    (lambda: resampled([60, 30], 1, 2), 'times must fall and end at 0'),
    (lambda: resampled([60, 30, 40, 0], 1, 2), r'must fall .* not \[60, 30, 40, 0\]'),
    (lambda: resampled([60, 0], 0, 2), 'jump = 0'),
    (lambda: resampled([60, 0], 1, 0), 'repeats = 0'),
    (lambda: walk([60, 30, 30, 0]), '30 is followed by 30'),
    (lambda: walk([60, 30, 61, 0]), r't = 61, which is outside 1\.\.60'),
    (lambda: walk([60, 30, 40]), r'down to 0, not end with \[60, 30, 40\]'),
    (lambda: walk([0, 30, 0]), 'start at 0, but the noise is that of T = 60: give x_T'),
    # invert and interpolate
    (lambda: up([60, 30, 40, 0]), 'times must fall'),
    (lambda: up([61, 0]), 't = 61 is outside'),
    (lambda: up([60, 0], y=Y[:2]), '2 labels y for 3 images'),
    (lambda: up([60, 30, 0], ancestral()), 'draws noise'),
    (lambda: up([60, 30, 0], ddim(0.5)), 'draws noise'),
    (lambda: up([60, 30, 0], heun()), 'asks more than once'),
    (lambda: up([1000, 30, 0], schedule=DARK), 'at t = 1000 no signal is left .* start at 999'),
    (lambda: interpolate(ZERO[:2], ZERO, 0.5), 'do not fit'),
    (lambda: interpolate(ZERO, ZERO[..., :2], 0.5), 'do not fit'),
    (lambda: interpolate(KNOWN, KNOWN, torch.zeros(2)), 'do not fit'),
    (lambda: interpolate(ZERO, ZERO, 0.5), 'one is 0'),
    (lambda: interpolate(KNOWN, -KNOWN, 0.5), 'opposite')])
def test_mistakes_are_named(case, match):
    with pytest.raises(ValueError, match=match): case()

@pytest.mark.parametrize('case, match', [
    (lambda: inpaint(D, KNOWN, MASK.float()), r'mask is torch\.float32; it must be torch\.bool'),
    (lambda: inpaint(D, KNOWN, MASK.long()), r'mask is torch\.int64'),
    (lambda: inpaint(D, BYTES, MASK), r'known is torch\.uint8; it must be float'),
    (lambda: edited(D, 0.5), 'change = 0.5 is not a function'),
    (lambda: consistent(D, ONES.long(), pooled(2)), 'known is torch.int64'),
    (lambda: pooled(1.5), 'float'),
    (lambda: steer('bright'), "loss = 'bright' is not a function"),
    (lambda: resampled([60, 0], 1.5, 1), 'float'),
    (lambda: up([60, 0], x0=KNOWN.long()), 'x0 is torch.int64')])
def test_what_is_of_another_type_is_named(case, match):
    with pytest.raises(TypeError, match=match): case()

def test_mistakes_leave_the_modes_as_they_were():
    d = steered(single().train(), lambda x0: x0.mean(), 1.)
    with pytest.raises(ValueError, match='one number for each'): draw(d)
    assert torch.is_grad_enabled() and all(m.training for m in d.modules())
