"Editing: known pixels to the last bit under every solver, closed forms, walks up, mistakes"
import copy, math
import numpy as np, pytest, torch
from conftest import SHORT, Labelled, close, draw, gen, randn, refused
from torch import nn
from diffusion_scratch.denoiser import EPS, V, X0, Denoiser, clipped
from diffusion_scratch.editing import (View, consistent, edited, gray, inpaint, interpolate, invert,
                                       pooled, resampled, steered)
from diffusion_scratch.guidance import NULL, guided
from diffusion_scratch.oracle import GaussianOracle
from diffusion_scratch.sampling import Noise, ancestral, fixed_large, sample, trajectory
from diffusion_scratch.schedule import (Schedule, cosine_betas, linear_betas, log_snr,
                                        zero_terminal_snr)
from diffusion_scratch.solvers import ddim, dpm_solver_pp, heun, trapezoid
from diffusion_scratch.unet import UNet

LINEAR, COSINE = Schedule(linear_betas()), Schedule(cosine_betas())
DARK = Schedule(zero_terminal_snr(linear_betas()))
SOLVERS = [ancestral(), ancestral(fixed_large), ddim(), ddim(0.5), ddim(1.), dpm_solver_pp(),
           dpm_solver_pp(1.), heun(), heun(trapezoid)]
every_solver = pytest.mark.parametrize('step', SOLVERS, ids=repr)
KNOWN, X = torch.rand(3, 1, 4, 4, generator=gen()) * 2 - 1, randn(3, 1, 4, 4)
MASK, Y = torch.rand(3, 1, 4, 4, generator=gen(1)) < 0.5, torch.tensor([0, 1, 3])
def single(P=V, **kw): return Denoiser(Labelled(**kw), P)
def double(P=V): return single(P).double()
def rough(x0): return (x0 - x0.flip(3)).square().flatten(1).sum(1)
def bright(x0): return -x0.flatten(1).mean(1)
def pasting(d): return inpaint(d, KNOWN.where(MASK, float('nan')), MASK)
def halving(d, known=KNOWN): return consistent(d, pooled(2).measure(known), pooled(2))

@pytest.mark.parametrize('P', [EPS, X0, V])
def test_the_noise_agrees_with_the_changed_image(P):
    "eq-edit, and every label and level reaches those who need it; clipping is an edit"
    d, level, seen = double(P), SHORT.at(torch.tensor([5, 30, 60]), X), []
    p = edited(d, lambda x0, level: (seen.append(level), 2 * x0 + 1)[1])(X, level, Y)
    close(p.x0, 2 * d(X, level, Y).x0 + 1); close(level.signal * p.x0 + level.noise * p.eps, X)
    assert seen[0] is level
    ours = edited(d, lambda x0, level: x0.clamp(-1, 1))(3 * X, level, Y)
    assert torch.equal(ours.x0, clipped(d)(3 * X, level, Y).x0)

# ------------------------------------------------------------ known pixels (eq-paste)
WRAPPED = [
    pasting, lambda d: pasting(pasting(d)), lambda d: clipped(pasting(d)),
    lambda d: pasting(clipped(d)), lambda d: pasting(guided(d, Y, 2.)),
    lambda d: guided(pasting(d), Y, 2.), lambda d: pasting(steered(d, rough, 3.)),
    lambda d: pasting(steered(steered(d, rough, 1.), bright, 2.)), lambda d: pasting(halving(d)),
    lambda d: clipped(pasting(steered(guided(d, Y, 0.5), rough, 3.)))]
WALKS = [SHORT.times(6), [60, 0], resampled(SHORT.times(6), 2, 3), resampled(SHORT.times(3), 3, 2)]

@every_solver
@pytest.mark.parametrize('wrap', WRAPPED)
def test_known_pixels_are_exact_under_every_solver_wrapper_and_walk(wrap, step):
    "eq-paste, in single and double, from noise or the middle; what the mask leaves out may be NaN"
    walks = [(times, None) for times in WALKS] if wrap is pasting else [(WALKS[3], None)]
    starts = [(None, None), ([40, 20, 0], X), ([0, 40, 20, 0], X)] * (wrap is pasting)
    for times, x_T in [*walks, *starts]:
        for d in (single(), double(X0)):
            x = draw(wrap(d), step=step, times=times, x_T=x_T, seed=3)
            assert torch.equal(x[MASK], KNOWN.to(x)[MASK]), times
            assert x.isfinite().all() and not torch.equal(x, KNOWN.to(x)), times

def test_one_picture_or_one_mask_for_all_and_nothing_or_everything_known():
    d, walk = single(), dict(times=SHORT.times(4))
    one = torch.tensor([True, False, True, False]).expand(1, 1, 4, 4)
    for known, mask in ((KNOWN[:1], one), (KNOWN, one), (KNOWN[:1], MASK[:1]),
                        (KNOWN, MASK.any(3, keepdim=True)), (KNOWN, MASK | True)):
        x, full = draw(inpaint(d, known, mask), **walk), mask.expand(3, 1, 4, 4)
        assert torch.equal(x[full], known.expand_as(x)[full]) and not torch.equal(x[0], x[1])
    close(draw(inpaint(d, KNOWN, MASK & False), **walk), draw(d, **walk), 1e-5)
    d, _ = inpaint(d, known := KNOWN.clone(), MASK), known.zero_()  # the wrapper has its own copy
    assert torch.equal(draw(d, **walk)[MASK], KNOWN[MASK])

# ------------------------------------------------------------ walks that go up
@pytest.mark.parametrize('jump', range(1, 14))
@pytest.mark.parametrize('n', [1, 2, 5, 7, 12])
def test_resampled_by_its_definition(n, jump):
    "Each stretch of `jump` steps is walked so many times, before the next"
    times = range(3 * n, -1, -3)
    stretches = [list(times[i:i + jump + 1]) for i in range(0, n, jump)]
    for k in (1, 2, 4):
        want = [3 * n, *(t for stretch in stretches for t in (stretch * k)[1:])]
        assert resampled(torch.tensor(times), jump, k) == resampled(times, jump, k) == want

def twist(x): return 0.9 * x.rot90(1, (2, 3)) + 0.1  # twice is not once

def by_hand(d, step, *walks, change=lambda i, t: None, x_T=None, y=None):
    """A plain loop by eq-coefficients, with the seed's noise in order: change x, predict from what
    it has become, go on; between two walks down a jump up by eq-step"""
    noise, last = Noise(9, 3), None
    def z(): return noise.draw((1, 4, 4)).double()
    x = z()  # drawn even where x_T is given
    if x_T is not None: x = x_T
    for times in walks:
        if last is not None:
            r = (SHORT.alpha_bar[times[0]] / SHORT.alpha_bar[last]).item()
            x = math.sqrt(r) * x + math.sqrt(1 - r) * z()
        t, before, last = torch.tensor(step.visits(times)), 0, times[-1]
        table = step.coefficients(SHORT.at(t[:-1], t[:-1]), SHORT.at(t[1:], t[1:]))
        for i, (t, *row) in enumerate(zip(t.tolist(), *torch.broadcast_tensors(*table))):
            if new := change(i, t): x = new(x)
            with torch.no_grad(): x0 = d(x, SHORT.at(t, x), y).x0
            of_x0, of_x_t, of_before, std = row
            x, before = of_x0 * x0 + of_x_t * x + of_before * before, x0
            if std: x = x + std * z()
    return (change(i + 1, 0) or torch.clone)(x)

@every_solver
def test_a_walk_with_jumps_is_its_walks_down_one_after_another(step, capsys):
    """No solver carries anything over a jump: each walk down is as if it were the first. Nothing is
    predicted at the foot of a jump, but by heun, where a step ends, if not at 0; the bar knows"""
    d, walks = double(), ([60, 45, 30], [50, 30, 15, 0], [20, 10, 0])
    x = sample(d, SHORT, X.shape, step=step, times=sum(walks, []), seed=9)
    calls = d.net.times.copy()
    close(x, by_hand(d, step, *walks))
    assert d.net.times == 2 * calls and f'{len(calls) + 1}/' in capsys.readouterr().err
    assert not isinstance(step, ddim) or calls == [60, 45, 50, 30, 15, 20, 10]

# ------------------------------------------------------------ steering (eq-steer)
mean, cov = np.array([0.3, -0.2]), np.array([[0.25, 0.225], [0.225, 0.25]])
mean, cov, A = map(torch.from_numpy, (mean, cov, np.array([1., -0.5])))
pair = GaussianOracle(mean, cov)
def slope(x0): return x0 @ A.to(x0)
def nudged(loss, strength, d=pair): return steered(d, loss, strength, least=0.)

@pytest.mark.parametrize('lam', [-2., 0., 0.5, 4.])
def test_a_linear_loss_tilts_a_gaussian_exactly(lam):
    """eq-steer-cov; eq-steer-bayes is no approximation here: the steered denoiser is the exact one
    of N(mean - lam cov a, cov), at every level; and losses in a row add up"""
    tilted, x = GaussianOracle(mean - lam * cov @ A, cov), randn(40, 2)
    in_a_row = nudged(lambda x0: lam * x0[:, 0], 1., nudged(lambda x0: x0[:, 1], -lam / 2))
    for level in (LINEAR.at(t, x) for t in (1, 50, 400, 800, 1000)):
        for p in (nudged(slope, lam)(x, level), in_a_row(x, level)):
            close(p.x0, tilted(x, level).x0, 1e-8)
            close(level.signal * p.x0 + level.noise * p.eps, x)

@pytest.mark.parametrize('P', [EPS, X0, V])
def test_the_gradient_goes_through_any_network_and_the_scale_goes_by_level(P):
    "eq-steer against central differences; steered until t = 30"
    d, h, level = double(P), 1e-5, SHORT.at(torch.tensor([10, 30, 50]), X)
    def scale(level): return 0.3 * (level.t <= 30).view(-1, 1, 1, 1)
    with torch.no_grad():
        def image(x): return d(x, level, Y).x0
        bumps = h * torch.eye(16).double().view(16, 1, 1, 4, 4)
        pairs = [(rough(image(X + e)) - rough(image(X - e))) / (2 * h) for e in bumps]
        grad = torch.stack(pairs, 1).view(X.shape)
        want = image(X) - scale(level) * level.noise**2 / level.signal * grad
    close(steered(d, rough, scale)(X, level, Y).x0, want, 1e-6)

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
    x = randn(4, 2)
    def shift(t, least, schedule=COSINE):
        d, level = steered(pair, slope, 1., least=least), schedule.at(t, x)
        return d(x, level).x0 - pair(x, level).x0
    assert COSINE.signal[990] < 0.05 < COSINE.signal[900]
    close(shift(900, 0.05), shift(900, 0.))
    close(shift(990, 0.05), shift(990, 0.) * (COSINE.signal[990] / 0.05).item(), 1e-6)
    for least in (0., 0.05): assert not shift(1000, least, DARK).any()  # no signal, no slope

ALL = {'edited': lambda d: edited(d, lambda x0, level: 0.9 * x0),
       'inpaint': lambda d: inpaint(d, KNOWN[:1], MASK[:1]),
       'consistent': lambda d: halving(d, KNOWN[:1]),
       'steered': lambda d: steered(d, rough, 1.)}
ALL['all'] = lambda d: clipped(ALL['inpaint'](ALL['consistent'](ALL['steered'](d))))
every_wrapper = pytest.mark.parametrize('wrap', ALL.values(), ids=ALL)

@every_wrapper
def test_a_wrapper_leaves_no_footprints_and_can_be_copied_and_moved(wrap):
    "Under no_grad and in inference mode too, also where the wrapper and the labels are made inside"
    net, walk = Labelled(dropout=0.5), dict(times=SHORT.times(4))
    for mode in (True, False):
        d, rng = wrap(Denoiser(net, V).train(mode)), torch.random.get_rng_state()
        assert all(m.training == mode for m in d.modules())
        want, again = (draw(d, **walk) for _ in range(2))
        assert torch.equal(want, again) and all(m.training == mode for m in d.modules())
        assert torch.is_grad_enabled() and not want.requires_grad
        assert all(p.grad is None and p.requires_grad for p in net.parameters())
        assert torch.equal(torch.random.get_rng_state(), rng)
    close(draw(copy.deepcopy(d).to(torch.float64), **walk).float(), want, 1e-5)
    assert not any('known' in k or 'mask' in k for k in d.state_dict())  # pictures are no weights
    with torch.no_grad(): close(draw(wrap(Denoiser(net, V)), **walk), want, 1e-6)
    with torch.inference_mode():
        x = draw(wrap(Denoiser(net, V)), **walk, y=torch.tensor([NULL] * 3))
        close(x.clone(), want, 1e-6)

def test_a_loss_is_evaluated_in_eval_mode_and_modes_outlive_a_mistake():
    loss = nn.Sequential(nn.Dropout(0.5), nn.AvgPool2d(4), nn.Flatten(0))
    d, walk = steered(single(), loss, 1.), dict(times=SHORT.times(4))
    assert torch.equal(draw(d, **walk), draw(d, **walk)) and loss.training
    d = steered(single().train(), lambda x0: x0.mean(), 1.)
    with pytest.raises(ValueError, match='one number for each'): draw(d)
    assert torch.is_grad_enabled() and all(m.training for m in d.modules())

@every_wrapper
@pytest.mark.parametrize('step', [ancestral(), dpm_solver_pp(), heun()], ids=repr)
def test_an_image_is_the_same_in_any_batch(wrap, step):
    d, walk = wrap(single()), dict(step=step, times=resampled(SHORT.times(6), 3, 2))
    def images(n, first=0, seed=4): return draw(d, (n, 1, 4, 4), first=first, seed=seed, **walk)
    whole = images(7)
    for n, i in ((1, 0), (2, 3), (4, 3)):  # up to the order of sums in a matrix product
        close(images(n, i), whole[i:i + n], 1e-5)
    assert torch.equal(whole, images(7)) and not torch.equal(whole, images(7, seed=5))

CUT = View(lambda x: x * MASK[0], lambda y: y * MASK[0])  # inpainting is this special case

@pytest.mark.parametrize('view, shape', [
    (pooled(2), (1, 4, 4)), (pooled(4), (3, 4, 8)), (CUT, (1, 4, 4)), (gray(), (3, 2, 3)),
    (gray((1/3, 1/3, 1/3)), (3, 2, 2)), (gray((0.7, 0.3)), (2, 2, 2))])
def test_views_against_the_pseudo_inverse_and_least_squares_and_under_every_solver(view, shape):
    "eq-view, by NumPy; what is known of a result is as given, up to rounding, 1e-5"
    def columns(x): return x.flatten(1).T.numpy()
    seen = view.measure(torch.eye(math.prod(shape)).double().view(-1, *shape))
    A = columns(seen)
    lifted = view.lift(torch.eye(len(A)).double().view(-1, *seen.shape[1:]))
    np.testing.assert_allclose(columns(lifted), np.linalg.pinv(A), atol=1e-7)
    x0, truth = (torch.rand(3, *shape, generator=gen(i)).double() * 2 - 1 for i in (0, 1))
    fixed = edited(single(size=A.shape[1]), lambda *_: x0)  # always predicts the same
    ours = consistent(fixed, view.measure(truth), view)(truth.float(), SHORT.at(30, truth)).x0
    least = np.linalg.lstsq(A, A @ columns(truth - x0), rcond=None)[0]  # the least change that fits
    np.testing.assert_allclose(columns(ours), columns(x0) + least, atol=1e-7)
    known = view.measure(truth.float())
    for step in SOLVERS:
        d = consistent(single(size=A.shape[1]), known, view)
        x = draw(d, truth.shape, step=step, times=resampled(SHORT.times(6), 2, 2))
        close(view.measure(x), known, 1e-5)
        assert (x - truth).abs().max() > 0.05

def test_average_of_a_block_and_luminance_by_hand():
    x, red = torch.arange(16.).view(1, 1, 4, 4), torch.tensor([1., 0., -1.]).view(1, 3, 1, 1)
    assert pooled(2).measure(x).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert pooled(2).lift(x[..., :1, :2]).tolist() == [[[[0, 0, 1, 1], [0, 0, 1, 1]]]]
    assert gray().measure(red).item() == pytest.approx(0.299 - 0.114, abs=1e-6)

# ------------------------------------------------------------ inversion (eq-invert)
def test_inversion_converges_to_the_exact_flow():
    "eq-gaussian-flow backwards: DDIM with order 1, DPM-Solver++ 2M with at least 1.8"
    var, mu = torch.tensor([0.25, 0.09]).double(), torch.tensor([0.3, -0.5]).double()
    oracle, x0 = GaussianOracle(mu, var.diag()), 0.4 * randn(20, 2)
    rho, signal = COSINE.noise[950] / COSINE.signal[950], COSINE.signal[950]
    exact = signal * (mu + (x0 - mu) * ((var + rho**2) / var).sqrt())
    def error(n, step):
        times = [950, *(t for t in COSINE.times(n, log_snr) if t < 950)]
        return (invert(oracle, COSINE, x0, times, step=step) - exact).square().mean().sqrt().item()
    first, second = ([error(n, step) for n in (20, 40, 80)] for step in (ddim(), dpm_solver_pp()))
    order = [math.log2(e[0] / e[2]) / 2 for e in (first, second)]
    assert 0.8 < order[0] < 1.2 and order[1] > 1.8 and second[2] < 0.05 * first[2], order

def test_inverting_part_of_the_way_with_labels_and_without_footprints():
    d, x0, times = double(), KNOWN.double(), [30, 20, 10, 5, 2, 1, 0]
    told, free = invert(d, SHORT, x0, times, y=Y), invert(d, SHORT, x0, times)
    assert not torch.equal(told, free) and d.net.times == [1, 1, 2, 5, 10, 20] * 2
    close(told, invert(guided(d, Y, 0.), SHORT, x0, times))
    level = SHORT.at(1, x0)
    with torch.no_grad(): eps = d(level.signal * x0, level).eps
    start = level.signal * x0 + level.noise * eps  # eq-invert, its first line
    for step in (ddim(), dpm_solver_pp()): close(invert(d, SHORT, x0, [1, 0], step=step), start)
    d, x0 = single(dropout=0.5).train(), KNOWN.clone().requires_grad_()
    a, b, part = (invert(d, SHORT, x, SHORT.times(5)) for x in (x0, x0, KNOWN[1:2]))
    assert torch.equal(a, b) and not a.requires_grad and torch.is_grad_enabled()
    assert all(m.training for m in d.modules())
    close(part, a[1:2], 1e-5)

def test_slerp_turns_evenly_alone_and_in_batches():
    "eq-slerp in the plane: a turn by w times the angle; anywhere: ends, order, length"
    def on_circle(angle): return torch.stack([angle.cos(), angle.sin()], -1)
    w = torch.linspace(0, 1, 7).double()
    for angle in torch.tensor([1., 60., 90., 170.]).double().deg2rad().view(4, 1):
        close(interpolate(on_circle(0 * angle), on_circle(angle), w), on_circle(w * angle))
    a, b = randn(2, 5, 3, 4, 4)
    assert torch.equal(interpolate(a, b, 0.), a) and torch.equal(interpolate(a, b, 1.), b)
    close(interpolate(a, b, 0.3), interpolate(b, a, 0.7))
    close(interpolate(a, 2 * a, 0.25), 1.25 * a)  # parallel: the straight line
    long = torch.randn(2, 1, 10_000, generator=gen())
    assert long.mean(0).std() < 0.75 and abs(interpolate(*long, 0.5).std() - 1) < 0.03
    w, a, b = w[[0, 1, 3, 5, 6]], a.float(), b.float()
    whole = interpolate(a, b, w)
    for i in range(5): close(interpolate(a[[i]], b[[i]], w[i].item()), whole[[i]], 1e-6)
    close(interpolate(a[:1], b, 0.2)[1:2], interpolate(a[:1], b[1:2], 0.2), 1e-6)
    assert interpolate(a[:1], b[:1], w).shape == whole.shape and whole.dtype == a.dtype

# ------------------------------------------------------------ x_t changed on the way
TIMES = [60, 45, 30, 15, 5, 0]
CHANGED = {
    'never': lambda i, t: None, 'always': lambda i, t: twist, 'same': lambda i, t: torch.clone,
    'first': lambda i, t: i == 0 and twist, 'some': lambda i, t: i in (1, 4) and twist,
    '30': lambda i, t: t == 30 and twist, 'end': lambda i, t: t == 0 and twist}

def by_frames(d, step, touch, **kw):
    "Where a walk ends if each of its frames is touched"
    for i, frame in enumerate(trajectory(d, SHORT, X.shape, step=step, times=TIMES, seed=9, **kw)):
        touch(i, frame)
    return frame.x

@every_solver
@pytest.mark.parametrize('change', CHANGED.values(), ids=CHANGED)
def test_a_frame_changed_in_place_is_where_the_walk_goes_on(change, step):
    "As a plain loop goes; one more call for each frame that was written to, but for the result"
    def touch(i, f):
        f.x.clone().zero_(), f.x.flip(3).neg_(), f.x.mean().item(), f.x.numpy().sum()  # reading
        if new := change(i, f.t): f.x.copy_(new(f.x))
    before, visits = X.clone(), step.visits(TIMES)
    want = [t for i, t in enumerate(visits[:-1]) for _ in range(1 + bool(change(i, t)))]
    for options in (dict(), dict(y=Y), dict(x_T=X)):
        d = double()
        with torch.no_grad(): x = by_frames(d, step, touch, **options)
        assert d.net.times == want, 'calls'
        close(x, by_hand(d, step, TIMES, change=change, **options), 1e-12)
        assert torch.equal(by_frames(d, step, touch, **options), x)  # and with gradients on
    assert torch.equal(X, before)

def test_a_frame_changed_in_inference_mode():
    "There PyTorch counts no writes: the step has the old prediction"
    with torch.inference_mode(): by_frames(d := double(), ddim(), lambda i, f: f.x.mul_(0.9))
    assert d.net.times == TIMES[:-1]

# ------------------------------------------------------------ mistakes
D, ZERO, ONES, NAN = single(), torch.zeros(3, 1, 4, 4), torch.ones(1, 1, 2, 2), float('nan')
TOO_MUCH = View(pooled(2).measure, lambda y: 2 * pooled(2).lift(y))
def at_zero(d): return d(ZERO, SHORT.at(30, ZERO))
def steer(loss, scale=1., d=D, **kw): return at_zero(steered(d, loss, scale, **kw))
def up(*times, x0=KNOWN, schedule=SHORT, **kw): return invert(D, schedule, x0, times, **kw)

@pytest.mark.parametrize('case', [
    *((lambda given=given: at_zero(inpaint(D, *given)), *told) for given, *told in [
        ((KNOWN, MASK[0, 0]), r'mask has shape \(4, 4\), but known \(3, 1, 4, 4\)'),
        ((KNOWN, MASK[:2]), r'mask has shape \(2, 1, 4, 4\)'),
        ((KNOWN[:1], MASK), r'\(3, 1, 4, 4\), but known \(1, 1, 4, 4\)'),
        ((127 * KNOWN, MASK), r'outside \[-1, 1\]: they lie in -1.*data\.to_float'),
        ((KNOWN.where(~MASK, NAN), MASK), r'outside \[-1, 1\]'),
        ((KNOWN[0, 0, 0], MASK[0, 0, 0]), r'known has shape \(4,\)'),
        ((KNOWN[:2], MASK[:2]), r'known has shape \(2, 1, 4, 4\), but the images are \(3, 1, 4, '),
        ((KNOWN[..., :3], MASK[..., :3]), r'\(3, 1, 4, 3\), but the images'),
        ((KNOWN, MASK.float()), r'mask is torch\.float32; it must be torch\.bool', TypeError),
        (((127 * KNOWN).byte(), MASK), r'known is torch\.uint8; it must be float', TypeError)]),
    (lambda: at_zero(edited(D, lambda x0, level: x0[:1])),
     r'the change returned \(1, 1, 4, 4\) for images \(3, 1, 4, 4\)'),
    (lambda: at_zero(consistent(D, ZERO[..., 1:, 1:], pooled(2))),
     r'known has shape \(3, 1, 3, 3\), but the view of the images is \(3, 1, 2, 2\)'),
    (lambda: at_zero(consistent(D, ONES, pooled(3))), 'cannot be cut into blocks of 3 x 3'),
    (lambda: consistent(D, torch.inf * ONES, pooled(2)), 'not finite'),
    (lambda: consistent(D, ONES, TOO_MUCH), r'no image agrees .* off by 1.* pseudo-inverse'),
    (lambda: consistent(D, ONES.long(), pooled(2)), 'known is torch.int64', TypeError),
    (lambda: edited(D, 0.5), 'change = 0.5 is not a function', TypeError),
    (lambda: pooled(0), 'k = 0'), (lambda: pooled(1.5), 'k = 1.5 .*whole', TypeError),
    (lambda: gray((0., 0., 0.)), 'weigh nothing'),
    (lambda: steer('oh'), "loss = 'oh' is not a function", TypeError),
    (lambda: steer(bright, NAN), 'scale = nan'), (lambda: steer(id), 'returned int'),
    (lambda: steer(bright, least=2.), 'least = 2.0 is outside 0..1'),
    (lambda: steer(torch.mean),
     r'returned shape \(\); it must return one number for each of the 3 images'),
    (lambda: steer(torch.abs), r'returned shape \(3, 1, 4, 4\)'),
    (lambda: steer(lambda x0: bright(x0.detach())), 'the loss is not differentiable'),
    (lambda: steer(lambda x0: D.net.label.weight.sum(1)[:3]), 'does not depend on x0'),
    (lambda: steer(bright, d=edited(D, lambda x0, level: x0.detach())), 'lets no gradient through'),
    *((lambda given=given: resampled(*given), *told) for given, *told in [
        (([60, 30], 1, 2), 'times must fall and end at 0'), (([60, 0], 0, 2), 'jump = 0'),
        (([60, 30, 40, 0], 1, 2), r'must fall .* not \[60, 30, 40, 0\]'),
        (([60, 0], 1, 0), 'repeats = 0'), (([60, 0], 1.5, 1), 'jump = 1.5 .*whole', TypeError)]),
    (lambda: up(60, 30, 40, 0), 'times must fall'), (lambda: up(61, 0), 't = 61 is outside'),
    (lambda: up(60, 0, y=Y[:2]), '2 labels y for 3 images'),
    (lambda: up(60, 0, x0=KNOWN.long()), 'x0 is torch.int64', TypeError),
    (lambda: up(60, 30, 0, step=ancestral()), 'draws noise'),
    (lambda: up(60, 0, step=ddim(0.5)), 'draws noise'),
    (lambda: up(60, 30, 0, step=heun()), 'more than once'),
    (lambda: up(1000, 30, 0, schedule=DARK), 'at t = 1000 no signal is left .* start at 999'),
    *((lambda given=given: interpolate(*given), says) for *given, says in [
        (ZERO[:2], ZERO, 0.5, 'not fit'), (ZERO, ZERO[..., :2], 0.5, 'not fit'),
        (KNOWN, KNOWN, [0., 1.], 'not fit'), (ZERO, ZERO, 0.5, 'is 0'),
        (KNOWN, -KNOWN, 0.5, 'opposite')])])
def test_mistakes_are_named(case): refused(*case)
