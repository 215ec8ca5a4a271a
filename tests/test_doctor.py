"""The doctor, examined: closed forms, least squares, Monte Carlo, patients ill on purpose,
and a user's mistakes"""
import math
from itertools import permutations
import numpy as np
import pytest
import torch
from torch import nn
from diffusion_scratch.data import ImageSet, mnist_mini
from diffusion_scratch.denoiser import EPS, PARAMETERIZATIONS, V, X0, Denoiser, Prediction
from diffusion_scratch.doctor import (EARLY, VERDICTS, Diagnosis, LevelLoss, diagnose,
                                      loss_by_level, references, trend)
from diffusion_scratch.guidance import NULL
from diffusion_scratch.loss import min_snr, uniform, v_weight, vlb_weight, x0_weight
from diffusion_scratch.noising import q_sample
from diffusion_scratch.oracle import MixtureOracle
from diffusion_scratch.schedule import Schedule, cosine_betas, linear_betas, zero_terminal_snr
from diffusion_scratch.unet import UNet

SCHEDULE = Schedule(cosine_betas(1000))
COINS = ImageSet(torch.tensor([-1., 1.]).repeat(100).view(-1, 1, 1, 1), name='coins')

class Spoken(nn.Module):
    "A denoiser as a network that speaks in some coordinates, as if it had learned that"
    def __init__(self, denoiser, parameterization, schedule=SCHEDULE):
        super().__init__()
        self.denoiser, self.parameterization, self.schedule = denoiser, parameterization, schedule
    def forward(self, x_t, t, y=None):
        level = self.schedule.at(t, x_t)
        p = self.denoiser(x_t, level, y)
        return self.parameterization.target(p.x0, p.eps, level)

class Const(nn.Module):
    "Guesses one number for every pixel"
    def __init__(self, value): super().__init__(); self.value = value
    def forward(self, x_t, level, y=None):
        return Prediction(torch.full_like(x_t, self.value), x_t, level)

@pytest.fixture(scope='module')
def digits():
    d = mnist_mini()
    small = d.images[::10, :, ::4, ::4]                            # 500 of 7x7
    return ImageSet(small, d.labels[::10], d.classes, 'small digits')

@pytest.fixture(scope='module')
def oracle(digits): return MixtureOracle(digits[:][0], labels=digits.labels)

def level_of(losses, scatter=0.15, n=400, seed=0):
    "Losses of a run that goes nowhere: around a value"
    return losses * (1 + scatter * np.random.default_rng(seed).standard_normal(n))

def its_losses(denoiser, data, weight=v_weight, schedule=SCHEDULE, **kw):
    "Level losses around what the denoiser's loss really is"
    x0, y = data[torch.arange(200) % len(data)]
    times = [t for t in range(5, schedule.T + 1, 10) if schedule.signal[t] > 0]
    loss, _ = loss_by_level(denoiser, schedule, x0, y, weight=weight, times=times).over()
    return level_of(loss, **kw)

def examined(denoiser, data, losses=None, weight=v_weight, n=64, schedule=SCHEDULE, **kw):
    "A diagnosis; losses are those that the denoiser has, if none are given"
    if losses is None: losses = its_losses(denoiser, data, weight, schedule)
    return diagnose(denoiser, schedule, data, losses, weight=weight, n=n, **kw)

def normal_like(x, seed=0):
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))

# ---- the loss by level

def closed_form_coin(snr):
    "eq-doctor-coin, by plain numerical integration over the noise"
    z = np.linspace(-10, 10, 20001)
    density = np.exp(-z**2 / 2) / math.sqrt(2 * math.pi)
    return 1 - np.trapezoid(density * np.tanh(snr + math.sqrt(snr) * z), z)

@pytest.mark.parametrize('t', [50, 300, 500, 700, 950])
def test_references_of_a_coin_are_the_closed_forms(t):
    "eq-doctor-coin, eq-doctor-level: optimum tanh, line 1 / (1 + SNR), mean 1"
    x0 = COINS[torch.arange(3000) % 200][0]
    refs, snr = references(COINS), SCHEDULE.at(t, x0[:1]).snr.item()
    for d, exact in zip(refs[:3], (closed_form_coin(snr), 1 / (1 + snr), 1.)):
        l = loss_by_level(d, SCHEDULE, x0, weight=x0_weight, times=[t])
        assert abs(l.mean[0].item() - exact) < 4 * l.error[0].item() + 1e-6

@pytest.mark.parametrize('weight', [uniform, x0_weight, v_weight, min_snr(), vlb_weight(SCHEDULE)])
def test_loss_is_weight_times_squared_error(weight):
    "eq-doctor-level, by hand"
    x0 = torch.linspace(-1, 1, 24).view(6, 1, 2, 2)
    l = loss_by_level(Const(0.5), SCHEDULE, x0, weight=weight, times=[700, 10])
    assert l.times == [10, 700] and l.losses.shape == (2, 6) and l.losses.dtype == torch.float64
    for row, t in zip(l.losses, l.times):
        w = weight(SCHEDULE.at(t, x0[:1])).item()
        mse = (x0 - 0.5).square().flatten(1).mean(1).double()
        torch.testing.assert_close(row, w * mse, rtol=1e-5, atol=1e-9)

def test_standard_errors_are_those_of_repetitions(oracle, digits):
    """eq-doctor-level, eq-doctor-paired: the error claimed is the scatter over seeds, also over
    correlated timesteps and for differences"""
    data, rng = digits[:][0], np.random.default_rng(0)
    runs, claims = [], []
    for s in range(150):
        x0 = data[torch.from_numpy(rng.integers(0, 500, 40))]
        a, b = (loss_by_level(d, SCHEDULE, x0, weight=x0_weight, times=[600, 650], seed=s)
                for d in (oracle, Const(-0.7)))
        got = [a.over(), b.over(), a.minus(b).over(), (a.mean[0].item(), a.error[0].item())]
        runs.append([m for m, _ in got]); claims.append([e for _, e in got])
    ratio = np.std(runs, 0, ddof=1) / np.sqrt(np.mean(np.square(claims), 0))
    assert (abs(ratio - 1) < 0.25).all(), ratio           # 4 / sqrt(2 * 150)

def test_batches_and_company_change_nothing(oracle, digits):
    x0, y = digits[:37]
    def losses(x0, y, times=(100, 600), seed=3, **kw):
        return loss_by_level(oracle, SCHEDULE, x0, y, weight=v_weight, times=times, seed=seed,
                             **kw).losses
    whole = losses(x0, y)
    for part in (losses(x0, y, batch_size=5), losses(x0[:20], y[:20]),
                 losses(x0, y, times=[600, 100, 900])[:2]):
        torch.testing.assert_close(part, whole[:, :part.shape[1]], rtol=1e-4, atol=1e-9)
    assert not torch.equal(losses(x0, y, seed=4), whole)

def test_no_footprints(digits):
    net = UNet(1, 4, (1,), 1, (), num_classes=10, dropout=0.5)
    nn.init.normal_(net.head[-1].weight)
    d = Denoiser(net, V).train(); net.middle.eval()
    modes, state = [m.training for m in d.modules()], torch.get_rng_state()
    np_state = np.random.get_state()[1].copy()
    first, second = (examined(d, digits, level_of(0.5), n=8) for _ in range(2))
    assert torch.equal(first.network.losses, second.network.losses)  # dropout is off
    assert str(first) == str(second) and modes == [m.training for m in d.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert (np_state == np.random.get_state()[1]).all()
    assert torch.is_grad_enabled() and all(p.grad is None for p in d.parameters())

def test_modes_come_back_after_a_network_that_raises():
    class Raises(nn.Module):
        def forward(self, x, level, y=None): raise RuntimeError('no')
    d = Raises().train()
    with pytest.raises(RuntimeError):
        loss_by_level(d, SCHEDULE, torch.zeros(2, 1, 1, 1), weight=uniform, times=[5])
    assert d.training and torch.is_grad_enabled()

# ---- references

def test_linear_reference_is_least_squares(digits):
    """eq-doctor-linear: no affine map fitted to many noised copies of the same images does better
    than the closed form by more than it overfits"""
    refs = references(digits)
    assert digits.shape == (1, 7, 7) and not refs.notes
    x0 = digits[:][0].repeat(60, 1, 1, 1)
    level = SCHEDULE.at(600, x0)
    x_t = q_sample(x0, level, normal_like(x0))
    A, B = np.c_[x_t.flatten(1).double(), np.ones(len(x0))], x0.flatten(1).double().numpy()
    fitted = ((A @ np.linalg.lstsq(A, B, rcond=None)[0] - B)**2).mean()
    ours = ((refs.linear(x_t, level).x0.flatten(1).double().numpy() - B)**2).mean()
    assert fitted <= ours < 1.005 * fitted

def test_pixel_reference_is_a_line_a_pixel(digits):
    """eq-doctor-linear, one number at a time: numpy's own regression of each pixel, and the error
    the formula promises"""
    refs = references(digits, side=10)
    assert 'one number at a time' in refs.notes[0]
    x0 = digits[:][0].repeat(40, 1, 1, 1)
    level = SCHEDULE.at(500, x0)
    x_t = q_sample(x0, level, normal_like(x0))
    got = refs.linear(x_t, level).x0.flatten(1).double().numpy()
    X, Y = x_t.flatten(1).double().numpy(), x0.flatten(1).double().numpy()
    j = 24
    slope, intercept = np.polyfit(X[:, j], Y[:, j], 1)
    assert abs(got[:, j] - (slope * X[:, j] + intercept)).max() < 0.03
    var, s2, n2 = Y.var(0), level.signal[0].item()**2, level.noise[0].item()**2
    assert ((got - Y)**2).mean() == pytest.approx((var * n2 / (s2 * var + n2)).mean(), rel=0.02)
    p = refs.linear(x_t[:3], SCHEDULE.at(500, x_t[:3]))
    torch.testing.assert_close(q_sample(p.x0, SCHEDULE.at(500, p.x0), p.eps), x_t[:3])

def test_order_of_references_at_every_level(digits, oracle):
    "eq-doctor-excess: optimum <= linear <= trivial on the images of the set"
    x0, y = digits[:]
    refs = references(digits)
    a, b, c = (loss_by_level(d, SCHEDULE, x0, y, weight=v_weight, times=range(50, 1000, 100)).mean
               for d in refs[:3])
    assert (a < b).all() and (b < c).all()

def test_what_is_left_out_is_said():
    big = ImageSet(torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8))
    refs = references(big, limit=1000)
    assert refs.optimum is None and len(refs.notes) == 2
    assert '9 x 768' in refs.notes[0] and '1,000' in refs.notes[0]
    assert 'fit the images themselves' in refs.notes[1]
    d = examined(refs.trivial, big, [], x0_weight, n=4)
    assert d.optimum is not None and 'optimum' in d.table[0]
    assert any('9 images of 768' in n for n in d.notes)

def test_moments_of_many_images_are_those_of_numpy():
    g = torch.Generator().manual_seed(0)
    data = ImageSet(torch.randint(0, 256, (2345, 1, 2, 3), dtype=torch.uint8, generator=g))
    x = data[:][0].flatten(1).double().numpy()
    refs = references(data)
    np.testing.assert_allclose(refs.linear.denoiser.mean, x.mean(0), atol=1e-12)
    oracle = refs.linear.denoiser
    cov = oracle.axes * oracle.variances @ oracle.axes.T
    np.testing.assert_allclose(cov, np.cov(x.T, ddof=0), atol=1e-12)

# ---- the trend

def test_trend_by_hand():
    "eq-doctor-trend"
    losses = np.r_[np.full(30, 9.), np.tile([1., 3.], 5), np.tile([0., 2.], 5)]
    t = trend(losses)
    assert (t.before, t.now, t.n) == (2, 1, 10) and t.relative == -0.5
    assert t.error == pytest.approx(math.sqrt(2 * (10 / 9) / 10))
    assert t.z == pytest.approx(-1 / t.error)
    assert trend(losses[:49]) is None and trend([]) is None and trend([2.] * 50).z == 0
    assert trend([2.] * 40 + [1.] * 10).z == -math.inf

def test_trend_cries_wolf_as_seldom_as_it_says():
    "eq-doctor-trend: z of flat runs is standard normal"
    z = np.array([trend(level_of(1., n=500, seed=s)).z for s in range(1500)])
    assert abs(z.mean()) < 4 / 1500**0.5 and abs(z.std() - 1) < 0.08 and (abs(z) > 3).mean() < 0.01

# ---- verdicts

def test_the_oracle_as_a_network_has_plateaued_and_knows_all_by_heart(digits, oracle):
    "eq-doctor-heart: it has gone the whole way; eq-doctor-agree: its loss is what it was"
    for p in (V, X0):
        d = examined(Denoiser(Spoken(oracle, p), p), digits, its_losses(oracle, digits))
        assert d.verdict == 'plateaued as expected', str(d)
        assert any('100% of the way' in r and '500 pictures' in r for r in d.reasons), str(d)
        torch.testing.assert_close(d.network.mean, d.optimum.mean, rtol=1e-3, atol=1e-5)

def test_the_oracle_of_a_coin_has_plateaued_though_a_line_is_as_good_at_most_levels():
    o = MixtureOracle(torch.tensor([-1., 1.]))
    d = examined(o, COINS, weight=uniform, n=256, schedule=Schedule(linear_betas()))
    assert d.verdict == 'plateaued as expected', str(d)

def test_one_that_guesses_the_mean_or_a_line_is_stuck(digits):
    refs = references(digits)
    for o in (refs.linear, refs.trivial):
        d = examined(o, digits)
        said = 'stuck at what a linear map can do: it is better in 0 of the'
        assert d.verdict == 'broken' and any(said in r for r in d.reasons), str(d)

def test_worse_than_the_mean_is_broken_where_it_is(digits):
    d = diagnose(Const(1.), SCHEDULE, digits, its_losses(Const(1.), digits), weight=x0_weight, n=64)
    assert d.verdict == 'broken' and sum('worse than the mean image' in r for r in d.reasons) == 4
    class Half(nn.Module):
        def forward(self, x_t, level, y=None):
            return refs.linear(x_t, level) if level.t[0] <= 750 else Const(1.)(x_t, level)
    refs = references(digits)
    d = examined(Half(), digits)
    first = next(r for r in d.reasons if 'worse' in r)
    assert first.startswith('At t 776..976 it is worse') and d.verdict == 'broken'

def test_a_hair_worse_than_the_mean_is_not_worse(digits):
    "sure, by pairs, but neither a tenth nor a hundredth of the loss"
    refs = references(digits)
    class Nearly(nn.Module):
        def forward(self, x_t, level, y=None):
            p = refs.optimum(x_t, level, y) if level.t[0] <= 750 else refs.trivial(x_t, level)
            return Prediction(p.x0 + 0.08 * (level.t[0] > 750), x_t, level)
    d = diagnose(Nearly(), SCHEDULE, digits, its_losses(Nearly(), digits), weight=v_weight, n=128)
    excess, error = d.network.minus(d.trivial).over(range(15, 20))
    assert excess > 3 * error and d.verdict == 'plateaued as expected', str(d)

def test_falling_is_learning_and_rising_is_broken(digits):
    refs = references(digits)
    base = its_losses(refs.linear, digits)
    ramp = np.linspace(2, 1, 400)
    d = examined(refs.linear, digits, base * ramp, n=32, steps_planned=1000)
    assert d.verdict == 'learning' and 'falling' in d.reasons[0] and '400 of 1,000 steps' in str(d)
    d = examined(refs.linear, digits, base * ramp[::-1], n=32)
    assert d.verdict == 'broken' and 'rising' in d.reasons[0] and 'checkpoint' in d.advice

def test_a_run_that_was_stopped_is_too_short_but_one_that_rests_is_stuck(digits):
    "eq-doctor-trend: level now, and two fifths ago still a tenth or more above, or not"
    line = references(digits).linear
    base = its_losses(line, digits)
    for before, verdict in ((1.3, 'too early to tell'), (1.05, 'broken')):
        d = examined(line, digits, base * np.r_[np.full(240, before), np.ones(160)], n=32)
        assert d.verdict == verdict and (('train longer' in d.advice) == (before > 1.1)), str(d)

def test_a_jump_and_bad_guesses_mean_a_learning_rate_too_high_even_while_it_falls(digits):
    shape = np.r_[0.5, np.full(20, 300.), np.linspace(1.8, 1, 379)]
    losses = its_losses(Const(1.), digits, x0_weight) * shape
    d = examined(Const(1.), digits, losses, x0_weight, n=32)
    assert d.verdict == 'broken' and 'learning rate that is too high' in d.reasons[1]
    assert 'ten times lower' in d.advice

@pytest.mark.parametrize('n', [0, 1, 30, 49, 50, EARLY - 1])
def test_a_young_run_is_not_judged(digits, n):
    d = examined(Const(1.), digits, level_of(0.9, n=n), x0_weight, n=8)
    assert VERDICTS == ('learning', 'plateaued as expected', 'broken', 'too early to tell')
    assert d.verdict == 'too early to tell'
    assert f'{n:,} steps' in str(d)

@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named(digits, bad):
    net = UNet(1, 4, (1,), 1, (), num_classes=10)
    net.stem.weight.data[0, 0, 0, 0] = bad
    d = examined(Denoiser(net, V), digits, level_of(0.5), n=4)
    assert d.verdict == 'broken' and 'net.stem.weight (1 of 36 numbers)' in d.reasons[0]
    assert str(d) and d.plot()

def test_losses_that_are_not_finite_are_counted(digits):
    losses = level_of(0.5); losses[123:] = math.nan
    d = examined(references(digits).linear, digits, losses, n=4)
    assert d.verdict == 'broken' and 'step 124 is nan, the first of 277' in d.reasons[0]
    assert d.trend is None and d.plot()

def test_outputs_that_are_not_finite_are_placed(digits):
    class Root(nn.Module):
        def forward(self, x_t, level, y=None):
            return Prediction(x_t * (500. - level.t[0]).sqrt(), x_t, level)
    d = examined(Root(), digits, level_of(0.5), n=4)
    assert d.verdict == 'broken' and 't = 526, 576' in d.reasons[0] and d.plot()

def test_a_network_that_raises_is_broken_and_says_what_it_said(digits):
    d = examined(Denoiser(UNet(3, 4, (1,), 1, ())), digits, level_of(0.5), n=4)
    assert d.verdict == 'broken' and '(1, 7, 7)' in d.reasons[0]
    assert d.network is None and 'network' not in d.table[0]
    assert str(d) and d.plot()

@pytest.mark.parametrize('spoken, read', list(permutations(PARAMETERIZATIONS.values(), 2)))
def test_the_wrong_coordinates_are_found(digits, spoken, read):
    "A denoiser of eps, x0 or v read as another: eq-doctor-agree"
    o = references(digits).linear                   # no oracle: it has trained as well as a line
    d = examined(Denoiser(Spoken(o, spoken), read), digits, its_losses(o, digits), n=32)
    assert d.verdict == 'broken' and 'not used as it was trained' in d.reasons[0], str(d)
    assert f'was it trained as {spoken}?' in d.reasons[-1], str(d)

@pytest.mark.parametrize('by', [100, -100])
def test_a_timestep_off_by_100_is_found(digits, oracle, by):
    "eq-doctor-excess: the truth about t is best"
    class Told(nn.Module):
        def __init__(self): super().__init__(); self.net = Spoken(oracle, V)
        def forward(self, x, t, y=None): return self.net(x, (t + by).clamp(1, 1000), y)
    d = examined(Denoiser(Told(), V), digits)
    assert d.verdict == 'broken' and f'Told t {-by:+}' in d.reasons[0], str(d)

def test_data_in_0_1_is_suspected(digits, oracle):
    with pytest.warns(UserWarning): wrong = ImageSet((digits[:][0] + 1) / 2, digits.labels)
    d = examined(Denoiser(Spoken(oracle, V), V), wrong, its_losses(oracle, digits), n=32)
    assert d.verdict == 'broken' and '[0, 1]' in d.reasons[1]

def test_a_line_is_no_failure_where_it_is_the_optimum():
    "No quarter has room above the linear map: a faint coin, and a single picture"
    faint = ImageSet(torch.tensor([-0.02, 0.02]).repeat(100).view(-1, 1, 1, 1))
    single = ImageSet(torch.full((50, 1, 1, 1), 0.5))
    for data, losses in ((faint, None), (single, level_of(1e-12))):
        line = references(data).linear
        d = examined(line, data, losses, x0_weight)
        assert d.verdict == 'plateaued as expected', str(d)
    class Worse(nn.Module):
        def forward(self, x_t, level, y=None):
            return Prediction(line(x_t, level).x0 + 0.01, x_t, level)
    d = examined(Worse(), data, level_of(1e-4), x0_weight)
    assert d.verdict == 'broken'

# ---- labels, schedules, shapes

def test_labels_reach_the_denoiser_and_the_optimum(digits, oracle):
    seen = []
    class Watch(nn.Module):
        def forward(self, x_t, level, y=None):
            seen.append(y)
            return oracle(x_t, level, y)
    d = examined(Watch(), digits, [], n=32)
    assert all(y is not None and y.shape == (32,) for y in seen)
    unlabelled = MixtureOracle(digits[:][0])
    plain = examined(unlabelled, ImageSet(digits.images), [], n=32)
    assert d.optimum.over()[0] < plain.optimum.over()[0]
    assert torch.equal(d.linear.losses, plain.linear.losses)
    x0, _ = digits[:16]
    a, b = (loss_by_level(o, SCHEDULE, x0, y, weight=v_weight, times=[800]).losses
            for o, y in ((oracle, torch.full((16,), NULL)), (unlabelled, None)))
    torch.testing.assert_close(a, b)

@pytest.mark.parametrize('T', [2, 4, 10, 1000])
def test_zero_terminal_snr_leaves_the_last_step_out(T):
    schedule = Schedule(zero_terminal_snr(linear_betas(T, 0.01, 0.2 if T < 1000 else 0.02)))
    o = MixtureOracle(torch.tensor([-1., 1.]))
    network = Denoiser(Spoken(o, EPS, schedule), EPS)
    d = examined(network, COINS, [], uniform, n=8, schedule=schedule)
    assert max(d.times) < T and d.network is not None and d.network.losses.isfinite().all()
    assert str(d) and d.plot()

def test_a_schedule_of_one_step():
    schedule = Schedule([0.5])
    d = diagnose(references(COINS).optimum, schedule, COINS, level_of(0.5), weight=x0_weight, n=8)
    assert d.times == [1] and str(d)

def test_few_images_are_used_several_times_and_with_other_noise():
    few = ImageSet(torch.rand(3, 3, 2, 5) * 2 - 1)
    d = diagnose(references(few).trivial, SCHEDULE, few, [], weight=x0_weight, n=64)
    assert d.network.losses.shape == (20, 64)
    values = d.network.losses[0].round(decimals=6).tolist()
    assert sorted({values.count(v) for v in values}) == [21, 22]  # the mean image sees no noise
    assert len({round(v, 9) for v in d.linear.losses[0].tolist()}) == 64

# ---- what it shows

def test_table_print_and_plot(digits, oracle, tmp_path):
    d = examined(oracle, digits, n=16, steps_planned=500)
    assert isinstance(d, Diagnosis) and len(d.table) == 20
    row = d.table[3]
    names = ('network', 'optimum', 'linear', 'trivial')
    assert list(row) == ['t', *(k for name in names for k in (name, f'{name}_error'))]
    third = d.linear.losses[3]
    assert row['t'] == 176 and row['linear'] == pytest.approx(third.mean().item())
    assert row['linear_error'] == pytest.approx(third.std().item() / 4)
    text = str(d)
    assert text.startswith('plateaued as expected (400 of 500 steps)')
    assert 't 26..226' in text and 'What to do:' in text
    d.plot(tmp_path/'d.png'); assert (tmp_path/'d.png').stat().st_size > 10_000
    from matplotlib.figure import Figure
    axes = Figure().subplots(1, 2)
    assert d.plot(axes) is axes[0].figure and axes[0].get_yscale() == 'log'
    assert len(axes[1].lines) == 3

# ---- mistakes

@pytest.mark.parametrize('kw, message', [
    (dict(times=[]), 'times = .* 1..1000'), (dict(times=[0, 5]), r'times = \[0, 5\]'),
    (dict(times=[1001]), '1..1000'), (dict(times=[5], seed=-1), 'seed = -1'),
    (dict(times=[5], batch_size=0), 'batch_size = 0')])
def test_bad_arguments_of_loss_by_level(kw, message):
    with pytest.raises(ValueError, match=message):
        loss_by_level(Const(0.), SCHEDULE, torch.zeros(2, 1, 1, 1), weight=uniform, **kw)

def test_bad_images_and_labels_are_refused():
    def loss(x0, y=None, d=Const(0.), schedule=SCHEDULE, t=5):
        return loss_by_level(d, schedule, x0, y, weight=uniform, times=[t])
    two, eps = torch.zeros(2, 1, 1, 1), Denoiser(Spoken(Const(0.), EPS))
    with pytest.raises(TypeError, match='uint8'): loss(two.byte())
    with pytest.raises(ValueError, match='empty'): loss(two[:0])
    with pytest.raises(ValueError, match='3 labels for 2 images'): loss(two, torch.zeros(3).long())
    with pytest.raises(ValueError, match='no signal is left'):
        loss(two, d=eps, schedule=Schedule([0.5, 1.]), t=2)

@pytest.mark.parametrize('kw, message', [
    (dict(n=1), 'n = 1'), (dict(seed=-1), 'seed = -1'),
    (dict(steps_planned=0), 'steps_planned = 0'),
    (dict(losses=[[1.], [2.]]), r'losses must be one number a step, not of shape \(2, 1\)')])
def test_bad_arguments_of_diagnose(kw, message):
    kw = dict(losses=[1.], weight=uniform) | kw
    with pytest.raises(ValueError, match=message): diagnose(Const(0.), SCHEDULE, COINS, **kw)

def test_losses_that_are_no_pairs_are_refused():
    a, b = LevelLoss([1], torch.zeros(1, 4)), LevelLoss([2], torch.zeros(1, 4))
    with pytest.raises(ValueError, match='are not pairs'): a.minus(b)
