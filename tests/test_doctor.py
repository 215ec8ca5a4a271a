"The doctor, examined: closed forms, least squares, Monte Carlo, patients ill on purpose, mistakes"
import math, re
from itertools import permutations
import numpy as np
import pytest
import torch
from conftest import refused
from matplotlib.figure import Figure
from torch import nn
from torch.testing import assert_close
from diffusion_scratch.data import ImageSet, mnist_mini, to_uint8
from diffusion_scratch.denoiser import EPS, V, X0, Denoiser, Prediction
from diffusion_scratch.doctor import (EARLY, VERDICTS, Diagnosis, LevelLoss, diagnose,
                                      loss_by_level, references, trend)
from diffusion_scratch.guidance import NULL
from diffusion_scratch.loss import min_snr, uniform, v_weight, vlb_weight, x0_weight
from diffusion_scratch.noising import q_sample
from diffusion_scratch.oracle import GaussianOracle, MixtureOracle
from diffusion_scratch.schedule import Schedule, cosine_betas, linear_betas, zero_terminal_snr
from diffusion_scratch.unet import UNet

SCHEDULE = Schedule(cosine_betas(1000))
COINS = ImageSet(torch.tensor([-1., 1.]).repeat(100).view(-1, 1, 1, 1), name='coins')
COIN_ORACLE = MixtureOracle(torch.tensor([-1., 1.]))

class Spoken(nn.Module):
    "A denoiser as a network that speaks in some coordinates, and may be told another timestep"
    def __init__(self, denoiser, parameterization, schedule=SCHEDULE, by=0):
        super().__init__()
        self.denoiser, self.parameterization = denoiser, parameterization
        self.schedule, self.by = schedule, by
    def forward(self, x_t, t, y=None):
        level = self.schedule.at((t + self.by).clamp(1, self.schedule.T), x_t)
        p = self.denoiser(x_t, level, y)
        return self.parameterization.target(p.x0, p.eps, level)

class Guess(nn.Module):
    "A denoiser whose image is any function of x_t, level and y"
    def __init__(self, image): super().__init__(); self.image = image
    def forward(self, x_t, level, y=None):
        return Prediction(self.image(x_t, level, y), x_t, level)

def const(value): return Guess(lambda x_t, level, y: torch.full_like(x_t, value))

@pytest.fixture(scope='module')
def digits():
    "500 of 7 x 7"
    d = mnist_mini()
    return ImageSet(d.images[::10, :, ::4, ::4], d.labels[::10], d.classes, 'small digits')

@pytest.fixture(scope='module')
def oracle(digits): return MixtureOracle(digits[:][0], labels=digits.labels)

@pytest.fixture(scope='module')
def refs(digits): return references(digits)

def level_of(losses, n=400, seed=0):
    "Losses of a run that goes nowhere: around a value"
    return losses * (1 + 0.15 * np.random.default_rng(seed).standard_normal(n))

def its_losses(denoiser, data, weight=v_weight, schedule=SCHEDULE):
    "Level losses around what the denoiser's loss really is"
    x0, y = data[torch.arange(200) % len(data)]
    times = [t for t in range(5, schedule.T + 1, 20) if schedule.signal[t] > 0]
    return level_of(loss_by_level(denoiser, schedule, x0, y, weight=weight, times=times).over()[0])

def examined(denoiser, data, losses=None, weight=v_weight, n=64, schedule=SCHEDULE, **kw):
    "A diagnosis; losses are those that the denoiser has, if none are given"
    if losses is None: losses = its_losses(denoiser, data, weight, schedule)
    return diagnose(denoiser, schedule, data, losses, weight=weight, n=n, **kw)

# ---- the loss by level
@pytest.mark.parametrize('weight', [uniform, x0_weight, v_weight, min_snr(), vlb_weight(SCHEDULE)])
def test_loss_is_weight_times_squared_error(weight):
    "eq-doctor-level, by hand"
    x0 = torch.linspace(-1, 1, 24).view(6, 1, 2, 2)
    l = loss_by_level(const(0.5), SCHEDULE, x0, weight=weight, times=[700, 10])
    assert l.times == [10, 700] and l.losses.shape == (2, 6) and l.losses.dtype == torch.float64
    mse = (x0 - 0.5).square().flatten(1).mean(1).double()
    for row, t in zip(l.losses, l.times):
        assert_close(row, weight(SCHEDULE.at(t, x0[:1])).item() * mse, rtol=1e-5, atol=1e-9)

def test_standard_errors_are_those_of_repetitions(oracle, digits):
    "eq-doctor-level, eq-doctor-paired: the error is the scatter over seeds, of differences too"
    rng, runs, claims = np.random.default_rng(0), [], []
    for s in range(150):
        x0, _ = digits[torch.from_numpy(rng.integers(0, 500, 40))]
        a, b = (loss_by_level(d, SCHEDULE, x0, weight=x0_weight, times=[600, 650], seed=s)
                for d in (oracle, const(-0.7)))
        got = [a.over(), b.over(), a.minus(b).over(), (a.mean[0].item(), a.error[0].item())]
        runs.append([m for m, _ in got]); claims.append([e for _, e in got])
    ratio = np.std(runs, 0, ddof=1) / np.sqrt(np.mean(np.square(claims), 0))
    assert (abs(ratio - 1) < 0.25).all(), ratio           # 4 / sqrt(2 * 150)

def test_batches_and_company_change_nothing(oracle, digits):
    x0, y = digits[:37]
    def losses(n=37, times=(100, 600), seed=3, **kw):
        return loss_by_level(oracle, SCHEDULE, x0[:n], y[:n], weight=v_weight, times=times,
                             seed=seed, **kw).losses
    whole = losses()
    for part in (losses(batch_size=5), losses(20), losses(times=[600, 100, 900])[:2]):
        assert_close(part, whole[:, :part.shape[1]], rtol=1e-4, atol=1e-9)
    assert not torch.equal(losses(seed=4), whole)

def test_no_footprints(digits):
    "Nor after a network that raises"
    net = UNet(1, 4, (1,), 1, (), num_classes=10, dropout=0.5)
    nn.init.normal_(net.head[-1].weight)
    d, raising = Denoiser(net, V).train(), Guess(None).train()
    net.middle.eval()
    modes, state = [m.training for m in d.modules()], torch.get_rng_state()
    np_state = np.random.get_state()[1].copy()
    first, second = (examined(d, digits, level_of(0.5), n=8) for _ in range(2))
    assert torch.equal(first.network.losses, second.network.losses)  # dropout is off
    refused(by_level(denoiser=raising), 'not callable', TypeError)
    assert str(first) == str(second) and modes == [m.training for m in d.modules()]
    assert torch.equal(state, torch.get_rng_state()) and all(np_state == np.random.get_state()[1])
    assert all(p.grad is None for p in d.parameters())
    assert raising.training and torch.is_grad_enabled()

# ---- references
def rows(x): return x.flatten(1).double().numpy()

def noised(x0, t):
    level = SCHEDULE.at(t, x0)
    return level, q_sample(x0, level, torch.randn(x0.shape, dtype=x0.dtype,
                                                  generator=torch.Generator().manual_seed(0)))

@pytest.mark.parametrize('side', [1024, 10])
def test_linear_reference_is_least_squares(digits, side):
    "eq-doctor-linear: NumPy's regression on noised copies is better only by what it overfits"
    refs = references(digits, side=side)
    assert side > 49 and not refs.notes or 'one number at a time' in refs.notes[0]
    x0 = digits[:][0].repeat(60, 1, 1, 1)
    level, x_t = noised(x0, 600)
    p, X, Y = refs.linear(x_t, level), rows(x_t), rows(x0)
    def left(X, Y):
        A = np.c_[X, np.ones(len(X))]
        return ((A @ np.linalg.lstsq(A, Y, rcond=None)[0] - Y)**2).mean()
    fitted = left(X, Y) if side > 49 else np.mean([left(X[:, j], Y[:, j]) for j in range(49)])
    assert fitted <= ((rows(p.x0) - Y)**2).mean() < 1.005 * fitted
    assert_close(q_sample(p.x0, level, p.eps), x_t)

def test_what_is_left_out_is_said():
    big = ImageSet(torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8))
    refs = references(big, limit=1000)
    assert refs.optimum is None and len(refs.notes) == 2
    assert '9 x 768' in refs.notes[0] and '1,000' in refs.notes[0]
    assert 'fit the images themselves' in refs.notes[1]
    d = examined(refs.trivial, big, [], x0_weight, n=4)
    assert d.optimum is not None and 'optimum' in d.table[0]
    assert any('9 images of 768' in n for n in d.notes)

def test_references_of_many_images_have_their_moments():
    g = torch.Generator().manual_seed(0)
    data = ImageSet(torch.randint(0, 256, (2345, 1, 2, 3), dtype=torch.uint8, generator=g))
    refs, x0 = references(data), data[:][0].double()
    mean, cov = x0.mean(0), torch.from_numpy(np.cov(rows(x0).T, ddof=0))
    level, x_t = noised(x0, 500)
    exact = GaussianOracle(mean, cov)(x_t, level).x0
    assert_close(refs.linear(x_t, level).x0, exact, rtol=0, atol=1e-10)
    assert_close(refs.trivial(x_t, level).x0, mean.expand_as(x_t), rtol=0, atol=1e-12)

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

# ---- verdicts
@pytest.mark.parametrize('p', [V, X0])
def test_the_oracle_as_a_network_has_plateaued_and_knows_all_by_heart(digits, oracle, p):
    "eq-doctor-heart: it has gone the whole way; eq-doctor-agree: its loss is what it was"
    d = examined(Denoiser(Spoken(oracle, p), p), digits, its_losses(oracle, digits))
    assert d.verdict == 'plateaued as expected', str(d)
    assert any('100% of the way' in r and '500 images' in r for r in d.reasons), str(d)
    assert_close(d.network.mean, d.optimum.mean, rtol=1e-3, atol=1e-5)

STUCK = 'stuck at what a linear map can do: it is better in 0 of the.*What to do: see whether'
def stopped(before): return np.r_[np.full(240, before), np.ones(160)]

@pytest.mark.parametrize('who, shape, verdict, said', [
    ('linear', 1., 'broken', STUCK), ('trivial', 1., 'broken', STUCK),
    ('linear', np.linspace(2, 1, 400), 'learning', '\n- The loss is falling.*: let it run'),
    ('linear', np.linspace(1, 2, 400), 'broken', '\n- The loss is rising.*do: .*checkpoint'),
    # level now, and two fifths ago still a tenth or more above, or not
    ('linear', stopped(1.3), 'too early to tell', 'do: train longer'),
    ('linear', stopped(1.05), 'broken', STUCK),
    # a jump and bad guesses, even while it falls
    ('bright', np.r_[0.5, np.full(20, 300.), np.linspace(1.8, 1, 379)], 'broken',
     '\n\n- .*\n- [^\n]*learning rate that is too high.*do: .*ten times lower')])
def test_the_losses_of_a_run_that_does_not_beat_a_line_tell_what_it_is(
        digits, refs, who, shape, verdict, said):
    "eq-doctor-trend"
    d = const(1.) if who == 'bright' else getattr(refs, who)
    d = examined(d, digits, its_losses(d, digits) * shape, n=32, steps_planned=1000)
    assert d.verdict == verdict and re.search(said, str(d), re.DOTALL), str(d)
    assert str(d).startswith(f'{verdict} (400 of 1,000 steps)\n')

def late(early, image):
    "The image of one denoiser, but after t = 750 another"
    return Guess(lambda x_t, level, y: early(x_t, level, y).x0 if level.t[0] <= 750
                 else image(x_t, level))

def test_worse_than_the_mean_is_broken_where_it_is(digits, refs):
    d = examined(const(1.), digits, None, x0_weight)
    assert d.verdict == 'broken' and sum('worse than the mean image' in r for r in d.reasons) == 4
    d = examined(late(refs.linear, lambda x_t, level: torch.ones_like(x_t)), digits)
    first = next(r for r in d.reasons if 'worse' in r)
    assert first.startswith('At t 776..976 it is worse') and d.verdict == 'broken'

def test_a_hair_worse_than_the_mean_is_not_worse(digits, refs):
    "sure, by pairs, but neither a tenth nor a hundredth of the loss"
    d = examined(late(refs.optimum, lambda *at: refs.trivial(*at).x0 + 0.08), digits, n=128)
    excess, error = d.network.minus(d.trivial).over(range(15, 20))
    assert excess > 3 * error and d.verdict == 'plateaued as expected', str(d)

@pytest.mark.parametrize('n', [0, 1, 30, 49, 50, EARLY - 1])
def test_a_young_run_is_not_judged(digits, n):
    d = examined(const(1.), digits, level_of(0.9, n=n), x0_weight, n=8)
    assert VERDICTS == ('learning', 'plateaued as expected', 'broken', 'too early to tell')
    assert d.verdict == 'too early to tell' and f'{n:,} steps' in str(d)

def with_weight(value):
    d = Denoiser(UNet(1, 4, (1,), 1, (), num_classes=10), V)
    d.net.stem.weight.data[0, 0, 0, 0] = value
    return d

@pytest.mark.parametrize('d, first, said', [
    (with_weight(math.nan), 400, 'net.stem.weight (1 of 36 numbers)'),
    (with_weight(math.inf), 400, 'net.stem.weight (1 of 36 numbers)'),
    (const(0.), 123, 'step 124 is nan, the first of 277'),
    (Guess(lambda x_t, level, y: x_t * (500. - level.t[0]).sqrt()), 400, 't = 526, 576'),
    (Denoiser(UNet(3, 4, (1,), 1, ())), 400, '(1, 7, 7)')])
def test_what_is_not_finite_or_raises_is_broken_and_named(digits, d, first, said):
    losses = level_of(0.5)
    losses[first:] = math.nan
    d = examined(d, digits, losses, n=4)
    assert d.verdict == 'broken' and said in d.reasons[0] and said in str(d) and d.plot()
    assert (d.trend is None) == (first < 400)
    assert (d.network is None) == ('network' not in d.table[0]) == (said == '(1, 7, 7)')

@pytest.mark.parametrize('spoken, read', list(permutations((EPS, X0, V), 2)))
def test_the_wrong_coordinates_are_found(digits, refs, spoken, read):
    "A denoiser of eps, x0 or v read as another: eq-doctor-agree"
    o = refs.linear                                 # no oracle: it has trained as well as a line
    d = examined(Denoiser(Spoken(o, spoken), read), digits, its_losses(o, digits), n=32)
    assert d.verdict == 'broken' and 'not used as it was trained' in d.reasons[0], str(d)
    assert f'was it trained as {spoken}?' in d.reasons[-1], str(d)

@pytest.mark.parametrize('by', [100, -100])
def test_a_timestep_off_by_100_is_found(digits, oracle, by):
    "eq-doctor-excess: the truth about t is best"
    d = examined(Denoiser(Spoken(oracle, V, by=by), V), digits)
    assert d.verdict == 'broken' and f'With t {-by:+}' in d.reasons[0], str(d)

def test_data_in_0_1_is_suspected(digits, oracle):
    with pytest.warns(UserWarning): wrong = ImageSet((digits[:][0] + 1) / 2, digits.labels)
    d = examined(Denoiser(Spoken(oracle, V), V), wrong, its_losses(oracle, digits), n=32)
    assert d.verdict == 'broken' and '[0, 1]' in d.reasons[1]

def test_a_line_is_no_failure_where_it_is_the_optimum():
    "No quarter has room above the linear map: a faint coin, and a single picture"
    faint = ImageSet(torch.tensor([-0.02, 0.02]).repeat(100).view(-1, 1, 1, 1))
    single = ImageSet(torch.full((50, 1, 1, 1), 0.5))
    for data, losses in ((faint, None), (single, level_of(1e-12))):
        d = examined(line := references(data).linear, data, losses, x0_weight)
        assert d.verdict == 'plateaued as expected', str(d)
    worse = Guess(lambda x_t, level, y: line(x_t, level).x0 + 0.01)
    assert examined(worse, single, level_of(1e-4), x0_weight).verdict == 'broken'

# ---- labels, schedules, shapes
def test_labels_reach_the_denoiser_and_the_optimum(digits, oracle):
    seen = []
    d = examined(Guess(lambda x_t, level, y: seen.append(y) or oracle(x_t, level, y).x0),
                 digits, [], n=32)
    assert all(y is not None and y.shape == (32,) for y in seen)
    unlabelled = MixtureOracle(digits[:][0])
    plain = examined(unlabelled, ImageSet(digits.images), [], n=32)
    assert d.optimum.over()[0] < plain.optimum.over()[0]
    assert torch.equal(d.linear.losses, plain.linear.losses)
    a, b = (loss_by_level(o, SCHEDULE, digits[:16][0], y, weight=v_weight, times=[800]).losses
            for o, y in ((oracle, torch.full((16,), NULL)), (unlabelled, None)))
    assert_close(a, b)

@pytest.mark.parametrize('T', [2, 4, 10, 1000])
def test_zero_terminal_snr_leaves_the_last_step_out(T):
    schedule = Schedule(zero_terminal_snr(linear_betas(T, 0.01, 0.2 if T < 1000 else 0.02)))
    network = Denoiser(Spoken(COIN_ORACLE, EPS, schedule), EPS)
    d = examined(network, COINS, [], uniform, n=8, schedule=schedule)
    assert max(d.times) < T and d.network.losses.isfinite().all() and str(d) and d.plot()

def test_a_schedule_of_one_step():
    d = examined(COIN_ORACLE, COINS, level_of(0.5), x0_weight, n=8, schedule=Schedule([0.5]))
    assert d.times == [1] and str(d)

def test_few_images_are_used_several_times_and_with_other_noise():
    few = ImageSet(torch.rand(3, 3, 2, 5) * 2 - 1)
    d = examined(references(few).trivial, few, [], x0_weight)
    assert d.network.losses.shape == (20, 64)
    values = d.network.losses[0].round(decimals=6).tolist()
    assert sorted({values.count(v) for v in values}) == [21, 22]  # the mean image sees no noise
    assert len({round(v, 9) for v in d.linear.losses[0].tolist()}) == 64

# ---- what it shows
def test_table_print_and_plot(digits, oracle, tmp_path):
    d = examined(oracle, digits, n=16, steps_planned=500)
    assert isinstance(d, Diagnosis) and len(d.table) == 20
    row, third = d.table[3], d.linear.losses[3]
    assert list(row) == ['t', *(name + part for name in ('network', 'optimum', 'linear', 'trivial')
                                for part in ('', '_error'))]
    assert row['t'] == 176 and row['linear'] == pytest.approx(third.mean().item())
    assert row['linear_error'] == pytest.approx(third.std().item() / 4)
    assert str(d).startswith('plateaued as expected (400 of 500 steps)')
    assert 't 26..226' in str(d) and 'What to do:' in str(d)
    d.plot(tmp_path/'d.png'); assert (tmp_path/'d.png').stat().st_size > 10_000
    axes = Figure().subplots(1, 2)
    assert d.plot(axes) is axes[0].figure and axes[0].get_yscale() == 'log'
    assert len(axes[1].lines) == 3

# ---- signs of particular bugs
def signs(denoiser, data, losses=None, **kw):
    return examined(denoiser, data, losses, **kw).signs

def single(denoiser, data):
    "The losses of single images at random timesteps"
    x0, y = data[torch.arange(200) % len(data)]
    return loss_by_level(denoiser, SCHEDULE, x0, y, weight=v_weight,
                         times=range(5, 1000, 20)).losses

def test_betas_of_another_T_leave_signal():
    for T, found in ((1000, 0), (100, 1)):
        got = signs(COIN_ORACLE, COINS, schedule=Schedule(linear_betas(T)))
        assert sum('x_T still holds' in s for s in got) == found, got

def test_inputs_that_make_no_difference_are_named(digits, oracle):
    right = Denoiser(Spoken(oracle, V), V)
    blind = Denoiser(Spoken(Guess(lambda x_t, level, y: oracle(x_t, level).x0), V), V)
    late = Denoiser(Spoken(oracle, X0, by=1000), X0)        # it always gets t = 1000
    assert not signs(right, digits), signs(right, digits)
    [said] = signs(blind, digits)
    assert 'label of another image' in said
    assert any('ignores its timestep' in s for s in signs(late, digits))

def test_an_average_that_lags_is_named(digits, refs):
    for average, last, found in ((refs.trivial, refs.linear, True),
                                 (refs.linear, refs.trivial, False)):
        got = signs(average, ImageSet(digits.images), last=last, losses=[1.] * 10)
        assert any('loss of the average' in s for s in got) == found, got

def test_rows_that_no_step_changed_are_named(digits):
    torch.manual_seed(0)
    average, last = (Denoiser(UNet(1, 8, (1,), 1, (), num_classes=10), V) for _ in range(2))
    def said():
        return [s for s in signs(average, digits, level_of(1.), last=last) if 'No step' in s]
    with torch.no_grad():
        for p in average.parameters(): p.add_(0.01 * torch.randn_like(p))
        assert not said()
        last.net.label.weight[0] = average.net.label.weight[0]
    assert 'net.label.weight (1 of 11 rows)' in said()[0]

def test_training_that_was_easier_is_named(digits, oracle, refs):
    "Losses 30 % below those measured on the same images; the last weights count, not the average"
    linear = refs.linear
    for factor, found in ((1., False), (0.7, True)):
        got = signs(linear, ImageSet(digits.images), its_losses(linear, digits) * factor)
        assert any('was training easier' in s for s in got) == found, got
    got = signs(refs.trivial, ImageSet(digits.images), its_losses(linear, digits), last=linear)
    assert not any('was training easier' in s for s in got), got

@pytest.mark.parametrize('images, found', [(64, False), (4, True)])
def test_batches_that_share_their_draws_are_named(digits, refs, images, found):
    "Means over 64, or over 4, of the losses of single images; the ratio is known to 10 %"
    each, rng = single(refs.linear, digits).flatten().numpy(), np.random.default_rng(0)
    losses = rng.choice(each, (1000, images)).mean(1)
    got = [s for s in signs(refs.linear, ImageSet(digits.images), losses, batch_size=64)
           if 'as if a batch' in s]
    assert bool(got) == found, got
    if found: assert 2 <= int(re.search(r'only (\d+)', got[0])[1]) <= 7, got

def seeded(): return torch.Generator().manual_seed(0)

@pytest.mark.parametrize('change, said', [
    (lambda x: x, None), (lambda x: to_uint8(x), None),
    (lambda x: x + torch.randn(x.shape, generator=seeded()), 'grain'),
    (lambda x: x[:1].expand(50, -1, -1, -1), 'variety'),
    (lambda x: x / 2 + 0.5, 'brightness'), (lambda x: x / 3, 'contrast')])
def test_samples_unlike_the_data_are_named(digits, oracle, change, said):
    "The network is the oracle, whose own samples are images of the set"
    got = [s for s in signs(oracle, digits, samples=change(digits[:][0])) if 'samples' in s]
    assert bool(got) == bool(said) and (said or '') in ''.join(got), got

def test_signs_are_printed_and_change_no_verdict(digits, oracle, refs):
    d = examined(refs.linear, digits, its_losses(refs.linear, digits) * np.linspace(1.5, 1, 400))
    assert d.verdict == 'learning' and d.signs
    assert str(d).index('Sign of a bug: With the label') < str(d).index('The loss is falling')

# ---- mistakes
TWO, NO_SIGNAL = torch.zeros(2, 1, 1, 1), Schedule([0.5, 1.])

def by_level(**kw):
    good = dict(denoiser=const(0.), schedule=SCHEDULE, x0=TWO, weight=uniform, times=[5])
    return lambda: loss_by_level(**good | kw)
def diagnosis(**kw): return lambda: examined(const(0.), COINS, **dict(losses=[1.]) | kw)

@pytest.mark.parametrize('case', [
    (by_level(times=[]), 'times = .* 1..1000'), (by_level(times=[0, 5]), r'times = \[0, 5\]'),
    (by_level(times=[1001]), '1..1000'), (by_level(seed=-1), 'seed = -1'),
    (by_level(batch_size=0), 'batch_size = 0'), (by_level(x0=TWO[:0]), 'empty'),
    (by_level(x0=TWO.byte()), 'uint8', TypeError),
    (by_level(y=torch.zeros(3).long()), '3 labels y for 2 images'),
    (by_level(denoiser=Denoiser(Spoken(const(0.), EPS)), schedule=NO_SIGNAL, times=[2]),
     'no signal is left'),
    (diagnosis(samples=TWO[:, :, 0]), r'samples have shape \(2, 1, 1\); give .* \(N, 1, 1, 1\)'),
    (diagnosis(samples=TWO.tolist()), 'give images as a tensor', TypeError),
    (diagnosis(n=1), 'n = 1'), (diagnosis(seed=-1), 'seed = -1'),
    (diagnosis(steps_planned=0), 'planned = 0'),
    (diagnosis(losses=[[1.], [2.]]), r'losses must be one number a step, not of shape \(2, 1\)'),
    (lambda: LevelLoss([1], TWO).minus(LevelLoss([2], TWO)), 'are not pairs')])
def test_bad_arguments(case): refused(*case)
