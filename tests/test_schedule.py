"Schedules against NumPy, SciPy and the papers' own recipes; every refusal"
import math
import numpy as np, pytest, torch
from conftest import gen, refused
from scipy.special import expit
from diffusion_scratch.schedule import (Schedule, cast_like, cosine_betas, leading, linear_betas,
                                        linspace, log_snr, sigmoid_betas, trailing,
                                        zero_terminal_snr)

pytestmark = pytest.mark.any_processor
MAKERS = [linear_betas, cosine_betas, sigmoid_betas]
SPACINGS = [trailing, leading, linspace, log_snr]
TEN = Schedule(linear_betas(10))
images = torch.zeros(4, 3, 5, 7)
every_maker = pytest.mark.parametrize('make', MAKERS)
every_spacing = pytest.mark.parametrize('spacing', SPACINGS)

# The tables
@every_maker
@pytest.mark.parametrize('T', [1, 2, 10, 1000, 4000])
def test_every_maker_gives_a_valid_schedule(make, T):
    betas = make(T)
    assert betas.shape == (T,) and betas.dtype == torch.float64
    schedule = Schedule(betas)
    assert schedule.T == T and schedule.alpha_bar.shape == (T + 1,)
    assert schedule.alpha_bar[0] == 1 and (schedule.alpha_bar.diff() < 0).all()

def test_alpha_bar_is_the_running_product():  # eq-alpha-bar, in extended precision
    betas = np.random.default_rng(0).uniform(1e-5, 0.5, 60)
    truth = np.cumprod(1 - betas.astype(np.longdouble))
    np.testing.assert_allclose(Schedule(betas).alpha_bar[1:], truth.astype(float), rtol=1e-13)

def test_betas_may_come_in_any_clothes_and_a_schedule_keeps_its_own():
    truth = torch.tensor([1, 0.9, 0.72], dtype=torch.float64)
    for kind in (list, tuple, np.array, torch.DoubleTensor):
        torch.testing.assert_close(Schedule(kind([0.1, 0.2])).alpha_bar, truth, rtol=1e-14, atol=0)
    schedule = Schedule(betas := linear_betas())
    betas[0] = 0.5
    assert schedule.betas[0] == 1e-4
    assert repr(schedule) == 'Schedule(T=1000, beta 0.0001..0.02, alpha_bar_T=4.04e-05)'
    assert Schedule([0.5, 1.0]).alpha_bar.tolist() == [1, 0.5, 0]  # only the last may be 1

@every_maker
@pytest.mark.parametrize('T', [1, 10, 1000, 4000, 100_000])
def test_the_same_betas_of_another_processor_are_close(make, T):
    "Doubles whose last two bits are another's, of the line or of the curve behind the betas"
    other = lambda x: x * (1 + 2.0**-52 * torch.randint(-2, 3, x.shape, generator=gen()))
    schedule = Schedule(make(T))
    betas = schedule.betas if make is linear_betas else 1 - other(1 - schedule.betas)
    assert schedule.is_close(Schedule(other(betas))) and schedule.is_close(schedule)

def test_other_betas_are_not_close():
    betas = cosine_betas()
    changed = betas.clone(); changed[499] *= 1 + 1e-8
    for other in (changed, betas[:-1], cosine_betas(1001), linear_betas(),
                  zero_terminal_snr(betas)):
        assert not Schedule(betas).is_close(Schedule(other))
    assert Schedule(betas).is_close(Schedule(changed), rtol=1e-7)

# Schedule.at and Level
def test_at_gives_each_image_its_own_level():
    "With as many dimensions as the batch, and in float64, also for images in half precision"
    schedule, t = Schedule(cosine_betas(50)), [0, 1, 25, 50]
    for like in (images, torch.zeros(4).half(), torch.zeros(4, 2)):
        level = schedule.at(torch.tensor(t), like)
        assert level.signal.shape == level.noise.shape == (4, *[1] * (like.ndim - 1))
        assert level.t.tolist() == t and level.signal.dtype == torch.float64
        for i, n in enumerate(t):
            alone = schedule.at(n, like[i:i+1])
            assert alone.signal == level.signal[i] and alone.noise == level.noise[i]
        one = torch.ones_like(level.signal)
        torch.testing.assert_close(level.signal**2 + level.noise**2, one, rtol=1e-15, atol=0)

@pytest.mark.parametrize('t', [7, np.int64(7), torch.tensor(7), torch.full((4,), 7),
                               torch.full((4,), 7, dtype=torch.int32), [7] * 4])
def test_t_may_come_in_any_clothes(t):
    level = TEN.at(t, images)
    assert level.t.dtype == torch.long and level.t.tolist() == [7] * 4

def test_snr_from_infinity_to_zero():  # eq-snr
    schedule = Schedule(zero_terminal_snr(cosine_betas(20)))
    level = schedule.at(torch.arange(21), torch.zeros(21))
    assert level.snr[0] == level.log_snr[0] == math.inf
    assert level.snr[-1] == 0 and level.log_snr[-1] == -math.inf
    assert (level.snr.diff()[1:] < 0).all()
    by_log_snr = torch.sigmoid(level.log_snr)
    torch.testing.assert_close(level.alpha_bar, by_log_snr, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(level.alpha_bar, schedule.alpha_bar, rtol=1e-14, atol=0)

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_coefficients_go_where_the_images_are(dtype):
    "In float32 at least; `meta` is a device that is always there and is not the CPU"
    images = torch.zeros(2, 3, dtype=dtype, device='meta')
    level = Schedule(linear_betas()).at(torch.tensor([1, 1000]), images)
    there = cast_like(images, level.signal, level.noise)
    assert {c.device.type for c in there} == {'meta'} and level.signal.device.type == 'cpu'
    wide = torch.promote_types(dtype, torch.float32)
    assert {c.dtype for c in there} == {wide} and there[1].shape == (2, 1)
    [noise] = cast_like(torch.zeros(2, 3, dtype=dtype), level.noise)
    assert torch.equal(noise, level.noise.to(wide))

# Schedule.times and its spacings
@every_spacing
@pytest.mark.parametrize(
    'make', MAKERS + [lambda T: zero_terminal_snr(linear_betas(T)) if T > 1 else torch.ones(1)])
def test_every_spacing_gives_a_walk_for_every_n(spacing, make):
    """n times fall within 1..T, then 0; all but `leading` start at T, linspace and log_snr end at
    1. `trailing`, which is the default, takes strides that differ by one at most"""
    for T in [*range(1, 31), 97, 200]:
        schedule = Schedule(make(T))
        for n in range(1, T + 1) if T < 31 else (1, 2, 3, T // 3, T - 1, T):
            times = schedule.times(n, spacing)
            gaps = [a - b for a, b in zip(times, times[1:])]
            assert len(gaps) == n and times[-1] == 0 and min(gaps) > 0, (T, n)
            assert all(type(t) is int for t in times)
            assert times[0] == (1 + (n - 1) * (T // n) if spacing is leading else T), (T, n)
            assert times[-2] == 1 or spacing is trailing or n == 1, (T, n)
            if spacing is trailing:
                assert times == schedule.times(n) and max(gaps) <= min(gaps) + 1, (T, n)

@every_maker
def test_log_snr_spacing_is_even_in_log_snr(make):  # eq-spacing
    "No stop is further from its place than a whole timestep there is long"
    schedule = Schedule(make(1000))
    lam = schedule.at(torch.arange(1, 1001), torch.zeros(1000)).log_snr.numpy()
    for n in (2, 5, 10):
        stops = lam[np.array(schedule.times(n, log_snr)[:-1]) - 1]
        for stop, wanted in zip(stops, np.linspace(lam[-1], lam[0], n)):
            off = np.abs(lam - wanted)
            i = off.argmin()
            assert abs(stop - wanted) <= off[i] + np.abs(np.diff(lam))[max(0, i - 2):i + 2].max()

def test_a_spacing_of_ones_own():
    schedule = Schedule(linear_betas(100))
    assert schedule.times(3, lambda s, n: [s.T, 9.6, 1]) == [100, 10, 1, 0]
    assert schedule.times(2, lambda s, n: torch.tensor([50, 3])) == [50, 3, 0]

# The makers
def test_linear_is_the_published_schedule():
    "eq-linear (Ho et al.'s code); ten steps of it, not scaled, leave the image in place"
    np.testing.assert_allclose(linear_betas(), np.linspace(1e-4, 0.02, 1000), rtol=1e-15)
    assert Schedule(linear_betas()).alpha_bar[-1].item() == pytest.approx(4.0358e-5, rel=1e-4)
    assert linear_betas(7, 0.1, 0.4)[[0, -1]].tolist() == [0.1, 0.4]
    assert 0.90 < TEN.alpha_bar[-1] < 0.91

@pytest.mark.parametrize('T, s', [(1000, 0.008), (10, 0.008), (50, 0.1)])
def test_cosine_is_the_published_recipe(T, s):
    "eq-cosine, eq-betas-from; Nichol & Dhariwal 2021, eq. 17 and the cap of section 3.2"
    f = lambda t: math.cos((t/T + s) / (1 + s) * math.pi/2)**2
    truth = [min(1 - f(t) / f(t - 1), 0.999) for t in range(1, T + 1)]
    np.testing.assert_allclose(cosine_betas(T, s), truth, rtol=1e-9, atol=1e-14)

@pytest.mark.parametrize('start, end, tau', [(-3, 3, 1.), (-3, 3, 0.5), (0, 3, 0.7)])
def test_sigmoid_is_the_published_curve(start, end, tau):  # eq-sigmoid, against SciPy's sigmoid
    g = expit((start + (end - start) * np.linspace(0, 1, 201)) / tau)
    ab = Schedule(sigmoid_betas(200, start, end, tau)).alpha_bar
    np.testing.assert_allclose(ab[:-1], ((g[-1] - g) / (g[-1] - g[0]))[:-1], rtol=1e-10)

@every_maker
@pytest.mark.parametrize('T', [2, 10, 1000])
def test_zero_terminal_snr_is_the_published_algorithm(make, T):
    "eq-zero-terminal; Lin et al. 2024, algorithm 1, in NumPy; the second time it does nothing"
    betas = make(T)
    kept = betas.clone()
    root = np.sqrt(np.cumprod(1 - betas.numpy()))
    truth = ((root - root[-1]) * root[0] / (root[0] - root[-1]))**2
    result = zero_terminal_snr(betas)
    ab = Schedule(result).alpha_bar
    np.testing.assert_allclose(ab[1:], truth, rtol=1e-9, atol=1e-13)
    assert ab[-1] == 0 and result[-1] == 1 and torch.equal(betas, kept)
    assert ab[1].item() == pytest.approx(1 - betas[0].item(), abs=1e-14)
    torch.testing.assert_close(zero_terminal_snr(result), result, rtol=1e-9, atol=1e-12)

# Refused
def of(betas): return lambda: Schedule(betas)
def at(t): return lambda: TEN.at(t, images)
def times(n, spacing): return lambda: TEN.times(n, spacing)

@pytest.mark.parametrize('case', [
    (of([0.1, 0.0, 0.1]), r'beta_2 = 0 is outside \(0, 1\)'), (of([-0.1]), r'beta_1 = -0.1 '),
    (of([1.0, 0.5]), r'beta_1 = 1 .*only the last may be exactly 1'),
    (of([0.5, 1.1]), r'beta_2 = 1.1 '), (of([0.5, math.nan]), r'beta_2 = nan '),
    (of([math.inf]), r'beta_1 = inf '), (of([]), r'shape \(0,\)'), (of(0.5), r'shape \(\)'),
    (of([[0.1, 0.2]]), r'shape \(1, 2\)'),
    # the published line, scaled to ten steps, reaches two
    (of(linear_betas(10, 1e-4 * 100, 0.02 * 100)), r'beta_6 = 1\.11556 is outside'),
    (at(-1), r't = -1 is outside 1\.\.10'), (at(11), r't = 11 is outside 1\.\.10'),
    (at(torch.tensor([1, 2, 99, 3])), r't = 99 is outside'),
    (at(torch.tensor([1, 2])), r'shape \(2,\).* 4 images'),
    (at(torch.ones(4, 1).long()), r'shape \(4, 1\)'),
    (at(0.5), r'whole numbers 0\.\.10, not torch\.float'),
    (at(torch.rand(4)), r'whole numbers 0\.\.10, not torch\.float32'),
    (times(3, 'leading'), "spacing = 'leading' is not a spacing: give schedule.trailing, leading, "
                          'linspace or log_snr'),
    (times(3, None), 'spacing = None is not a spacing'),
    (times(3, lambda s, n: [9, 5]),
     r'the spacing gave \[9, 5\]; it must give 3 timesteps that fall within 10\.\.1'),
    *((times(3, lambda s, n, t=t: t), 'it must give 3 timesteps that fall')
      for t in ([11, 5, 1], [9, 9, 1], [9, 1, 0], [1, 5, 9])),
    *((times(n, spacing), rf'n = {n} steps are outside 1\.\.10')
      for n in (0, -3, 11) for spacing in SPACINGS),
    *((times(n, spacing), rf'n = {n!r} is not a number of steps: give a whole number, 1\.\.10',
       TypeError) for n in (2.5, 10., '10', None) for spacing in SPACINGS),
    *((lambda make=make, T=T: make(T), f'T = {T} is not a number of steps')
      for make in MAKERS for T in (0, -1)),
    (lambda: zero_terminal_snr(torch.tensor([0.5])), 'T must be at least 2'),
    (lambda: zero_terminal_snr(torch.tensor([2., 0.5])), 'beta_1 = 2 ')])
def test_refused_by_name_and_value(case): refused(*case)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_timesteps_may_live_on_the_gpu():
    level = TEN.at(torch.tensor([1, 2, 3, 4], device='cuda'), images.cuda())
    assert level.signal.device.type == 'cpu' and level.t.tolist() == [1, 2, 3, 4]
