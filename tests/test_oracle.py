"""Chapter 4 from outside. The later chapters trust the oracles, so the truths here are independent
of them: conditional Gaussians by NumPy, integrals on grids and by quad, SciPy's densities, SciPy's
softmax, Monte Carlo with its standard error (tolerance 5 SE)"""
import math
import numpy as np
import pytest
import torch
from scipy import integrate, special, stats
from diffusion_scratch.data import mnist_mini
from diffusion_scratch.denoiser import Prediction, clipped
from diffusion_scratch.noising import q_sample
from diffusion_scratch.oracle import GaussianOracle, MixtureOracle
from diffusion_scratch.schedule import Schedule, cosine_betas, linear_betas, zero_terminal_snr

SCHEDULE = Schedule(linear_betas())
DARK = Schedule(zero_terminal_snr(linear_betas()))

def rng(seed=0): return torch.Generator().manual_seed(seed)
def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=rng(seed), dtype=dtype)
def f64(x): return torch.tensor(x, dtype=torch.float64)
def numbers(level, i=0): return float(level.signal.flatten()[i]), float(level.noise.flatten()[i])
def close(a, b, atol=1e-10): np.testing.assert_allclose(a, b, rtol=0, atol=atol)

def random_gaussian(D=5, seed=0):
    A = randn(D, D, seed=seed)
    return randn(D, seed=seed + 1), A @ A.T / D

def random_mixture(K=4, D=3, seed=0, std=None):
    std = 0.1 + torch.rand(K, generator=rng(seed + 1), dtype=torch.float64) if std is None else std
    weights = 0.5 + torch.rand(K, generator=rng(seed + 2), dtype=torch.float64)
    return 2 * randn(K, D, seed=seed), std, weights

def draw_mixture(means, std, weights, n, seed=0):
    k = torch.multinomial(weights, n, replacement=True, generator=rng(seed))
    std = torch.as_tensor(std).expand(len(means))[k, None]
    return means[k] + std * randn(n, means.shape[1], seed=seed + 1), k

# --- the Gaussian --------------------------------------------------------------------------------

@pytest.mark.parametrize('t', [1, 10, 200, 600, 1000])
@pytest.mark.parametrize('rank', [5, 2], ids=['full rank', 'singular'])
def test_gaussian_is_the_conditional_of_the_joint(t, rank):
    """eq-gaussian-oracle: x0 and eps stacked are one Gaussian, x_t is linear in it; the textbook
    conditional mean and covariance follow"""
    mean, _ = random_gaussian()
    A = randn(5, rank, seed=3)
    cov = (A @ A.T).numpy()
    x_t = 2 * randn(7, 5, seed=4)
    level = SCHEDULE.at(t, x_t)
    s, n = numbers(level)
    cross, total = s * cov, s**2 * cov + n**2 * np.eye(5)
    want = mean.numpy() + (x_t.numpy() - s * mean.numpy()) @ np.linalg.inv(total) @ cross
    got = GaussianOracle(mean, torch.from_numpy(cov))(x_t, level)
    close(got.x0, want, 1e-9)
    close(s * got.x0 + n * got.eps, x_t)

def test_gaussian_special_cases():
    x_t = randn(6, 3)
    for t in (1, 400, 1000):
        level = SCHEDULE.at(t, x_t)
        # N(0, I): the gain is the signal
        close(GaussianOracle(torch.zeros(3), torch.eye(3))(x_t, level).x0, level.signal * x_t)
        # a single image
        close(GaussianOracle(f64([1, 2, 3]), torch.zeros(3, 3))(x_t, level).x0,
              f64([[1, 2, 3]]).expand(6, 3))
    # no prior knowledge: x_t / signal
    close(GaussianOracle(torch.zeros(3), 1e12 * torch.eye(3))(x_t, level).x0 * level.signal, x_t,
          1e-6)

def test_gaussian_turns_with_its_data():
    "Rotating the data rotates the answer; nothing prefers the pixel axes"
    mean, cov = random_gaussian()
    Q = torch.linalg.qr(randn(5, 5, seed=8)).Q
    x_t = randn(4, 5, seed=9)
    level = SCHEDULE.at(350, x_t)
    close(GaussianOracle(Q @ mean, Q @ cov @ Q.T)(x_t @ Q.T, level).x0,
          GaussianOracle(mean, cov)(x_t, level).x0 @ Q.T)

@pytest.mark.parametrize('t', [30, 300, 700])
def test_gaussian_error_is_the_mmse(t):
    """eq-gaussian-mmse, by the trace of the textbook conditional covariance; 20,000 draws, 5
    standard errors"""
    mean, cov = random_gaussian()
    x0 = mean + randn(20_000, 5, seed=5) @ torch.linalg.cholesky(cov).T
    level = SCHEDULE.at(t, x0)
    s, n = numbers(level)
    oracle = GaussianOracle(mean, cov)
    err = (oracle(q_sample(x0, level, randn(*x0.shape, seed=6)), level).x0 - x0).square().sum(1)
    cov = cov.numpy()
    left = np.trace(cov - s**2 * cov @ np.linalg.inv(s**2 * cov + n**2 * np.eye(5)) @ cov)
    close((n**2 * oracle.variances / (s**2 * oracle.variances + n**2)).sum(), left)
    assert abs(err.mean() - left) < 5 * err.std() / len(x0)**0.5

def test_gaussian_error_needs_two_moments_only():
    """A linear denoiser's error on *any* data depends on their mean and covariance: here on a
    finite set, without noise in the average"""
    data = randn(50, 4).sign() * randn(50, 4, seed=1)**2
    oracle = GaussianOracle(data.mean(0), torch.cov(data.T, correction=0))
    level = SCHEDULE.at(300, data)
    s, n = numbers(level)
    variances, axes = oracle.variances, oracle.axes
    gain = axes @ torch.diag(s * variances / (s**2 * variances + n**2)) @ axes.T
    # the noise adds n^2 |gain|^2, exactly
    bias = (oracle(s * data, level).x0 - data).square().sum(1).mean()
    mmse = (n**2 * variances / (s**2 * variances + n**2)).sum()
    close(bias + n**2 * gain.square().sum(), mmse, 1e-9)

# --- the mixture, by brute force -----------------------------------------------------------------

MODES = [(-1.5, 0.3, 1.0), (0.0, 0.05, 3.0), (0.4, 0.8, 2.0)]  # mean, std, weight of each
ONE_PIXEL = MixtureOracle(f64([[m] for m, *_ in MODES]), f64([s for _, s, _ in MODES]),
                          f64([w for *_, w in MODES]))

@pytest.mark.parametrize('t', [3, 100, 400, 950])
@pytest.mark.parametrize('x', [-2.5, -0.9, 0.05, 1.7])
def test_mixture_is_the_numeric_posterior_mean(t, x):
    """eq-mixture-oracle: Bayes' rule integrated by Simpson's rule on 200,001 points; steps of 1e-4
    against features of 0.009"""
    level = SCHEDULE.at(t, torch.zeros(1, 1))
    s, n = numbers(level)
    a = np.linspace(-10, 10, 200_001)
    log = special.logsumexp([np.log(w) + stats.norm.logpdf(a, m, d) for m, d, w in MODES], 0)
    log = log + stats.norm.logpdf(x, s * a, n)
    joint = np.exp(log - log.max())
    want = integrate.simpson(a * joint, a) / integrate.simpson(joint, a)
    close(ONE_PIXEL(f64([[x]]), level).x0.item(), want, 1e-7)

@pytest.mark.parametrize('t', [150, 500])
def test_two_pixels_on_a_grid(t):
    """Both oracles at once: a mixture of three round Gaussians, and one tilted Gaussian, each by a
    sum over a 401 x 401 grid"""
    means, std, w = f64([[-1, 0.5], [1, 1], [0.2, -1.2]]), f64([0.3, 0.2, 0.5]), f64([1, 2, 1])
    tilted, mean = f64([[0.5, 0.3], [0.3, 0.4]]), f64([0.2, -0.3])
    axis = np.linspace(-5, 5, 401)
    points = np.stack(np.meshgrid(axis, axis, indexing='ij'), -1).reshape(-1, 2)
    densities = [sum(float(w[k]) * stats.multivariate_normal(means[k], float(std[k])**2).pdf(points)
                     for k in range(3)), stats.multivariate_normal(mean, tilted).pdf(points)]
    x_t = randn(5, 2, seed=2)
    level = SCHEDULE.at(t, x_t)
    s, n = numbers(level)
    for p, oracle in zip(densities, (MixtureOracle(means, std, w), GaussianOracle(mean, tilted))):
        for i in range(5):
            joint = p * np.exp(-((x_t[i].numpy() - s * points)**2).sum(1) / (2 * n**2))
            close(oracle(x_t[i:i+1], SCHEDULE.at(t, x_t[:1])).x0[0], joint @ points / joint.sum(),
                  1e-6)

def test_one_round_mode_is_a_gaussian():
    mean, x_t = randn(2, 3, 2), randn(6, 2, 3, 2, seed=1)
    for t in (1, 300, 1000):
        level = SCHEDULE.at(t, x_t)
        a = MixtureOracle(mean[None], 0.7)
        b = GaussianOracle(mean, 0.49 * torch.eye(12, dtype=torch.float64))
        close(a(x_t, level).x0, b(x_t, level).x0)

def test_width_to_zero_is_the_finite_set():
    means, _, w = random_mixture()
    x_t = randn(6, 3, seed=5)
    level = SCHEDULE.at(300, x_t)
    close(MixtureOracle(means, 1e-5, w)(x_t, level).x0, MixtureOracle(means, 0., w)(x_t, level).x0,
          1e-7)

def test_equal_modes_are_one_of_more_weight_and_order_is_nothing():
    means, std, w = random_mixture()
    x_t = randn(6, 3, seed=5)
    level = SCHEDULE.at(300, x_t)
    want = MixtureOracle(means, std, w)(x_t, level).x0
    close(MixtureOracle(means, std, 17 * w)(x_t, level).x0, want)  # weights need not add up to 1
    back = torch.tensor([2, 0, 3, 1])
    close(MixtureOracle(means[back], std[back], w[back])(x_t, level).x0, want)
    twice = MixtureOracle(torch.cat([means, means[:1]]), torch.cat([std, std[:1]]),
                          torch.cat([w, w[:1]]))(x_t, level).x0
    close(twice, MixtureOracle(means, std, w * f64([2, 1, 1, 1]))(x_t, level).x0)

# --- responsibilities ----------------------------------------------------------------------------

@pytest.mark.parametrize('t', [1, 200, 1000])
def test_responsibilities_are_bayes_rule_with_scipys_densities(t):
    "eq-responsibility, in logarithms; far points too, where every density is 0 in floating point"
    means, std, w = random_mixture(K=6)
    x_t = torch.cat([3 * randn(20, 3, seed=5), 1000 * randn(3, 3, seed=6)])
    level = SCHEDULE.at(t, x_t)
    s, n = numbers(level)
    log = np.stack([math.log(w[k]) + stats.multivariate_normal(s * means[k].numpy(),
                                                               s**2 * float(std[k])**2
                                                               + n**2).logpdf(x_t)
                    for k in range(6)], 1)
    r = MixtureOracle(means, std, w).responsibilities(x_t, level)
    close(r, special.softmax(log, 1), 1e-9)
    close(r.sum(1), np.ones(23))

@pytest.mark.parametrize('t', [50, 300, 600])
def test_responsibilities_are_calibrated(t):
    """Over draws of x_t, r_k averages to the weight of mode k, and is unbiased as a prediction of
    the mode that was drawn: 5 standard errors"""
    means, std, w = random_mixture()
    x0, k = draw_mixture(means, std, w, 20_000)
    level = SCHEDULE.at(t, x0)
    r = MixtureOracle(means, std, w).responsibilities(q_sample(x0, level, randn(*x0.shape, seed=7)),
                                                      level)
    miss = r - torch.nn.functional.one_hot(k, 4)
    for factor in (torch.ones_like(r[:, :1]), r, r.flip(1)):
        m = miss * factor
        assert ((m.mean(0)).abs() < 5 * m.std(0) / len(x0)**0.5 + 1e-12).all()
    assert ((r.mean(0) - w / w.sum()).abs() < 5 * r.std(0) / len(x0)**0.5
            + 5 * (0.25 / len(x0))**0.5).all()

# --- Tweedie -------------------------------------------------------------------------------------

@pytest.mark.parametrize('t', [20, 300, 900])
def test_tweedie(t):
    """eq-tweedie: eps is minus noise times the slope of SciPy's log density of the noised data, by
    central differences"""
    x = randn(5, 3, seed=3)
    level = SCHEDULE.at(t, x)
    s, n = numbers(level)
    means, std, w = random_mixture()
    mean, cov = random_gaussian(3)
    modes = [stats.multivariate_normal(s * m.numpy(), s**2 * float(d)**2 + n**2)
             for m, d in zip(means, std)]
    log_w = [math.log(a) for a in w]
    mixture = lambda x: special.logsumexp([l + p.logpdf(x) for l, p in zip(log_w, modes)], 0)
    gauss = stats.multivariate_normal(s * mean, s**2 * cov.numpy() + n**2 * np.eye(3)).logpdf
    h = 1e-5
    for oracle, log_p in ((MixtureOracle(means, std, w), mixture),
                          (GaussianOracle(mean, cov), gauss)):
        slope = np.stack([(log_p(x.numpy() + h * e) - log_p(x.numpy() - h * e)) / (2 * h)
                          for e in np.eye(3)], 1)
        got = oracle(x, level)
        close(got.eps, -n * slope, 1e-5)
        close(got.x0 * s, x.numpy() + n**2 * slope, 1e-5)

def test_jacobian_is_the_posterior_covariance():
    """Exercise 1, eq-tweedie differentiated once more: for points in 2-D, by the weighted
    covariance of the points themselves"""
    images = randn(7, 2)
    oracle, x = MixtureOracle(images), randn(1, 2, seed=4)
    level = SCHEDULE.at(350, x)
    s, n = numbers(level)
    J = torch.autograd.functional.jacobian(lambda x: oracle(x, level).x0[0], x)[:, 0]
    r = oracle.responsibilities(x, level)[0].numpy()
    close(n**2 / s * J, np.cov(images.numpy().T, aweights=r, ddof=0), 1e-9)

# --- the optimum of the squared error ------------------------------------------------------------

def cases():
    means, std, w = random_mixture()
    x0, _ = draw_mixture(means, std, w, 20_000)
    yield 'mixture', MixtureOracle(means, std, w), x0
    near = 0.2 * means  # so that the points are in doubt even at t = 60
    yield 'finite set', MixtureOracle(near, 0., w), draw_mixture(near, f64(0.), w, 20_000)[0]
    mean, cov = random_gaussian(3)
    x0 = mean + randn(20_000, 3, seed=5) @ torch.linalg.cholesky(cov).T
    yield 'Gaussian', GaussianOracle(mean, cov), x0

@pytest.mark.parametrize('name, oracle, x0', list(cases()), ids=[c[0] for c in cases()])
@pytest.mark.parametrize('t', [60, 300, 600])
def test_no_disturbance_helps(name, oracle, x0, t):
    """eq-best-guess: the error is uncorrelated with every function of x_t (5 standard errors), so
    each disturbance raises it by its own size"""
    level = SCHEDULE.at(t, x0)
    x_t = q_sample(x0, level, randn(*x0.shape, seed=11))
    m = oracle(x_t, level).x0
    changes = dict(shift=torch.ones_like(m), scale=m, towards_x_t=x_t - m, wave=torch.sin(3 * x_t),
                   swapped=m.roll(1, 1), step=(x_t > 0.3).double())
    for what, g in changes.items():
        cross = (g * (m - x0)).sum(1)
        assert cross.mean().abs() < 5 * cross.std() / len(x0)**0.5, what
        for d in (-0.2, 0.2):
            worse = (m + d*g - x0).square().sum(1) - (m - x0).square().sum(1)
            noise, size = 5 * worse.std() / len(x0)**0.5, d**2 * g.square().sum(1).mean()
            assert worse.mean() > 0 or size < noise, what

def test_wrong_oracles_are_noticed():
    """The test above has teeth: an oracle with a slightly wrong width, weight or level fails it by
    more than 10 standard errors"""
    means, std, w = random_mixture()
    x0, _ = draw_mixture(means, std, w, 20_000)
    level = SCHEDULE.at(300, x0)
    x_t = q_sample(x0, level, randn(*x0.shape, seed=11))
    right = MixtureOracle(means, std, w)(x_t, level).x0
    for wrong, at in ((MixtureOracle(means, 1.3 * std, w), 300),
                      (MixtureOracle(means, std, w.flip(0)**3), 300),
                      (MixtureOracle(means, std, w), 340)):
        m = wrong(x_t, SCHEDULE.at(at, x_t)).x0
        cross = ((m - right) * (m - x0)).sum(1)
        assert cross.mean() > 10 * cross.std() / len(x0)**0.5

@pytest.mark.parametrize('weights', [[1, 1], [1, 1, 1, 1, 1], [1, 5, 2]])
def test_area_under_the_error_is_the_entropy(weights):
    """eq-i-mmse (Guo, Shamai & Verdu 2005), for points of unequal weight: half the area is -sum w
    log w. Gauss-Hermite over the noise, Simpson over log SNR"""
    w = f64(weights)
    points = torch.linspace(-1, 1, len(w), dtype=torch.float64)[:, None]
    oracle = MixtureOracle(points, weights=w)
    z, q = np.polynomial.hermite_e.hermegauss(161)
    z, q = torch.from_numpy(z), torch.from_numpy(q / q.sum())
    p = w / w.sum()
    at = Schedule(cosine_betas())
    log_snr = np.linspace(-9, 7, 801)
    mmse = []
    for l in log_snr:
        a = 1 / (1 + math.exp(-l))
        x0 = points.expand(-1, len(z)).reshape(-1, 1)
        level = at.at(1, x0)._replace(signal=torch.full_like(x0, a**0.5),
                                      noise=torch.full_like(x0, (1 - a)**0.5))
        x_t = level.signal * x0 + level.noise * z.repeat(len(w))[:, None]
        mmse.append(float(((oracle(x_t, level).x0 - x0).square().view(len(w), -1) @ q) @ p))
    area = 0.5 * integrate.simpson(np.array(mmse) * np.exp(log_snr),
                                   log_snr) + 0.5 * mmse[0] * math.exp(-9)
    # what lies below SNR = e^-9 is a rectangle
    assert abs(area - float(-(p * p.log()).sum())) < 1e-4

# --- labels --------------------------------------------------------------------------------------

def labelled():
    means, std, w = random_mixture(K=6)
    return means, std, w, torch.tensor([0, 2, 0, 5, 2, 2])

def test_a_label_leaves_the_modes_of_its_class():
    "eq-label-oracle: as if the others had never been there; a batch may mix labels, and -1 is none"
    means, std, w, labels = labelled()
    oracle = MixtureOracle(means, std, w, labels)
    x_t = 2 * randn(5, 3, seed=5)
    level = SCHEDULE.at(400, x_t)
    y = torch.tensor([0, 2, 5, -1, 2])
    got = oracle(x_t, level, y)
    for i, k in enumerate(y.tolist()):
        keep = labels == k if k >= 0 else labels >= 0
        close(got.x0[i], MixtureOracle(means[keep], std[keep], w[keep])(x_t, level).x0[i])
    assert torch.equal(oracle(x_t, level, torch.full((5,), -1)).x0, oracle(x_t, level).x0)
    assert (oracle.responsibilities(x_t, level, torch.full((5,), 5))
            == f64([0, 0, 0, 1, 0, 0])).all()
    close(level.signal * got.x0 + level.noise * got.eps, x_t)

def test_labelled_answers_average_to_the_unlabelled_one():
    "eq-label-oracle, the tower rule"
    means, std, w, labels = labelled()
    oracle = MixtureOracle(means, std, w, labels)
    x_t = 2 * randn(9, 3, seed=5)
    level = SCHEDULE.at(500, x_t)
    r = oracle.responsibilities(x_t, level)
    total = sum(r[:, labels == k].sum(1, keepdim=True) * oracle(x_t, level, torch.full((9,), k)).x0
                for k in (0, 2, 5))
    close(total, oracle(x_t, level).x0)

def test_a_label_far_from_the_evidence_is_obeyed():
    "The class's best guess has probability e^-10000 by the image; no underflow"
    oracle = MixtureOracle(f64([[-10.], [10.], [11.]]), labels=torch.tensor([0, 1, 1]))
    x_t = f64([[-10.]])
    assert 9.99 < float(oracle(x_t, SCHEDULE.at(100, x_t), torch.tensor([1])).x0) < 10.01

# --- numbers: extremes, precision, size ----------------------------------------------------------

def both(D=4):
    means, std, w = random_mixture(D=D)
    return dict(mixture=MixtureOracle(means, std, w), finite=MixtureOracle(means, 0., w),
                gaussian=GaussianOracle(*random_gaussian(D)))

@pytest.mark.parametrize('name', ['mixture', 'finite', 'gaussian'])
def test_precision_device_and_shape_are_those_of_the_input(name):
    oracle = both(12)[name]
    x = randn(3, 2, 3, 2, seed=4)
    level = SCHEDULE.at(torch.tensor([1, 300, 1000]), x)
    wide = oracle(x, level)
    assert isinstance(wide, Prediction) and wide.x0.shape == x.shape
    assert wide.x0.dtype == torch.float64
    narrow, before = x.float(), x.float()
    got = oracle(narrow, level)
    assert got.x0.dtype == got.eps.dtype == torch.float32 and torch.equal(narrow, before)
    torch.testing.assert_close(got.x0.double(), wide.x0, rtol=1e-4, atol=1e-4)

@pytest.mark.parametrize('name', ['mixture', 'finite', 'gaussian'])
def test_an_image_does_not_depend_on_its_batch(name):
    oracle = both()[name]
    x = randn(6, 4, seed=4)
    level = SCHEDULE.at(torch.tensor([1, 20, 300, 500, 800, 1000]), x)
    whole = oracle(x, level)
    for i in range(6):
        close(oracle(x[i:i+1], SCHEDULE.at(int(level.t[i]), x[i:i+1])).x0[0], whole.x0[i], 1e-12)

@pytest.mark.parametrize('name', ['mixture', 'finite', 'gaussian'])
def test_no_signal_leaves_the_mean(name):
    """At zero terminal SNR x_t says nothing: the answer is the mean of the data, and all of x_t is
    noise"""
    oracle, x = both()[name], 5 * randn(3, 4, seed=4)
    got = oracle(x, DARK.at(1000, x))
    mean = oracle.mean if name == 'gaussian' else oracle.log_weights.exp() @ oracle.means
    close(got.x0, mean.expand(3, 4), 1e-12)
    close(got.eps, x, 1e-12)

def test_finite_set_stays_in_the_hull_of_its_images():
    images = 2 * torch.rand(30, 4, generator=rng(), dtype=torch.float64) - 1
    x = 3 * randn(200, 4, seed=4)
    for t in (1, 50, 400, 1000):
        got = MixtureOracle(images)(x, SCHEDULE.at(t, x)).x0
        assert (got <= images.max(0).values + 1e-12).all()
        assert (got >= images.min(0).values - 1e-12).all()

def test_large_images_close_together():
    """D = 3,072 and two images that differ by 0.01 in one pixel, at the smallest noise (0.01): a
    difference of half a nat among squared lengths of 3,000. Float32 could not tell them apart; the
    direct difference in float64 is the truth"""
    base = torch.rand(3072, generator=rng(), dtype=torch.float64)
    other = base.clone(); other[7] += 0.01
    x = base[None] * SCHEDULE.alpha_bar[1].sqrt()
    level = SCHEDULE.at(1, x)
    s, n = numbers(level)
    apart = ((x[0] - s*other)**2).sum() - ((x[0] - s*base)**2).sum()
    want = special.expit(apart.item() / (2 * n**2))
    close(MixtureOracle(torch.stack([base, other])).responsibilities(x, level)[0, 0].item(), want,
          1e-8)
    far = MixtureOracle(torch.stack([base, other]))(100 * x, level)
    assert far.x0.isfinite().all() and far.eps.isfinite().all()

def test_scalars_and_tables_survive_a_state_dict():
    "One-number images (B,), and the oracle as a module: its tables move and save like any other's"
    oracle, x = MixtureOracle(f64([-1, 1])), f64([0.5, -0.5])
    level = SCHEDULE.at(300, x)
    s, n = level.signal[0], level.noise[0]
    close(oracle(x, level).x0, torch.tanh(s * x / n**2))
    copy = MixtureOracle(torch.zeros(2)); copy.load_state_dict(oracle.state_dict())
    assert torch.equal(copy(x, level).x0, oracle(x, level).x0)
    g = GaussianOracle(*random_gaussian(4))
    h = GaussianOracle(torch.zeros(4), torch.eye(4)); h.load_state_dict(g.state_dict())
    y = randn(2, 4)
    assert torch.equal(h(y, SCHEDULE.at(9, y)).x0, g(y, SCHEDULE.at(9, y)).x0)
    assert not list(oracle.parameters())  # nothing to train

# --- real digits ---------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def digits():
    x, y = mnist_mini()[:]
    order = torch.randperm(5000, generator=rng())
    return x[order[:4000]], y[order[:4000]], x[order[4000:]]

def test_digits_by_direct_differences(digits):
    "eq-finite-set on 784 pixels, with SciPy's softmax and no expanded square"
    train, _, unseen = digits
    train, x0 = train[:500], unseen[:4]
    oracle = MixtureOracle(train)
    for t in (1, 150, 450, 1000):
        level = SCHEDULE.at(t, x0)
        s, n = numbers(level)
        x = q_sample(x0, level, randn(*x0.shape, seed=t, dtype=torch.float32))
        direct = np.stack([((a.double().numpy() - s * train.double().numpy())**2).sum((1, 2, 3))
                           for a in x])
        r = special.softmax(-direct / (2 * n**2), 1)
        close(oracle.responsibilities(x, level), r, 1e-8)
        close(oracle(x, level).x0.flatten(1), r @ train.flatten(1).double().numpy(), 1e-6)

def test_memory(digits):
    """A known digit comes back whole from t = 200; an unseen one comes back as its nearest
    neighbour, with that neighbour's distance"""
    train, _, unseen = digits
    oracle = MixtureOracle(train)
    known = oracle(q_sample(train[:20], level := SCHEDULE.at(200, train[:20]),
                            randn(20, 1, 28, 28, dtype=torch.float32)), level).x0
    assert (known - train[:20]).abs().max() < 1e-3
    x = unseen[:20]
    got = oracle(SCHEDULE.alpha_bar[1].sqrt().float() * x, SCHEDULE.at(1, x)).x0
    nearest = torch.cdist(x.flatten(1).double(), train.flatten(1).double())
    assert (got - train[nearest.argmin(1)]).abs().max() < 1e-6
    assert nearest.min(1).values.min() > 1  # none of the unseen is in the set
    assert torch.equal(clipped(oracle)(x, SCHEDULE.at(500, x)).x0,
                       oracle(x, SCHEDULE.at(500, x)).x0)

def test_gaussian_of_digits_generalises_and_the_finite_set_does_not(digits):
    """Singular covariance (border pixels never vary); error within 10% of the closed form on unseen
    digits at t = 100, the finite set's 3 times that"""
    train, _, unseen = digits
    cov = torch.cov(train.flatten(1).T, correction=0)
    gauss, finite = GaussianOracle(train.mean(0), cov), MixtureOracle(train)
    level = SCHEDULE.at(100, unseen)
    s, n = numbers(level)
    lam = torch.linalg.eigvalsh(cov.double()).clamp(min=0)
    floor = float((n**2 * lam / (s**2 * lam + n**2)).mean())
    x = q_sample(unseen, level, randn(*unseen.shape, dtype=torch.float32))
    mse = lambda o, k: float((o(x[:k], SCHEDULE.at(100, x[:k])).x0 - unseen[:k]).square().mean())
    assert abs(mse(gauss, 1000) / floor - 1) < 0.1
    assert mse(finite, 100) > 3 * floor

# --- bad inputs ----------------------------------------------------------------------------------

def test_gaussian_refuses():
    eye = torch.eye(3)
    with pytest.raises(ValueError, match=r'cov has shape \(2, 2\); a mean of 3 numbers needs \(3, '
                       r'3\)'):
        GaussianOracle(torch.zeros(3), torch.eye(2))
    with pytest.raises(ValueError, match='cov has shape'):
        GaussianOracle(torch.zeros(3), torch.ones(3))
    with pytest.raises(ValueError, match='negative eigenvalue, -1'):
        GaussianOracle(torch.zeros(3), -eye)
    with pytest.raises(ValueError, match='negative eigenvalue, -1'):
        GaussianOracle(torch.zeros(2), f64([[0., 1], [1, 0]]))
    with pytest.raises(ValueError, match='differs from its transpose by 0.5'):
        GaussianOracle(torch.zeros(2), f64([[1, 0.5], [0, 1]]))
    with pytest.raises(ValueError, match='mean or cov is not finite'):
        GaussianOracle(torch.zeros(2), f64([[1, math.nan], [math.nan, 1]]))
    oracle, x = GaussianOracle(torch.zeros(3), eye), randn(2, 3)
    with pytest.raises(ValueError, match='knows no labels'):
        oracle(x, SCHEDULE.at(5, x), torch.zeros(2).long())
    with pytest.raises(ValueError, match='x_t has 4 numbers an image, but the oracle was made for '
                       '3'):
        oracle(randn(2, 4), SCHEDULE.at(5, randn(2, 4)))
    with pytest.raises(ValueError, match='t = 0'): oracle(x, SCHEDULE.at(0, x))
    with pytest.raises(ValueError, match=r'the level has shape \(1, 1\)'):
        oracle(x, SCHEDULE.at(5, x[:1]))

def test_mixture_refuses():
    m = torch.zeros(3, 2)
    with pytest.raises(ValueError, match='means is empty'): MixtureOracle(torch.zeros(0, 2))
    with pytest.raises(ValueError, match='some means are not finite'): MixtureOracle(m / m)
    for w in ([1., 2], [1., 0, 1], [1., -1, 1], [1., math.nan, 1]):
        with pytest.raises(ValueError, match='weights must be 3 positive numbers'):
            MixtureOracle(m, weights=torch.tensor(w))
    for s in (-0.1, [0.1, 0.2], [0.1, -1, 1], math.nan):
        with pytest.raises(ValueError, match='std must be one number or 3, none below 0'):
            MixtureOracle(m, torch.tensor(s))
    with pytest.raises(ValueError, match=r'labels has shape \(2,\); 3 modes need \(3,\)'):
        MixtureOracle(m, labels=torch.tensor([0, 1]))
    x, y = randn(2, 2), torch.tensor([0, 7])
    with pytest.raises(ValueError, match='made without labels'):
        MixtureOracle(m)(x, SCHEDULE.at(5, x), y)
    with pytest.raises(ValueError, match=r'no mode has the label y = 7; there are \[0, 1\]'):
        MixtureOracle(m, labels=torch.tensor([0, 1, 1]))(x, SCHEDULE.at(5, x), y)
    with pytest.raises(ValueError, match=r'y has shape \(1,\)'):
        MixtureOracle(m, labels=torch.tensor([0, 1, 1]))(x, SCHEDULE.at(5, x), y[:1])
    with pytest.raises(ValueError, match='x_t has 3 numbers an image, but the oracle was made for '
                       '2'):
        MixtureOracle(m)(randn(2, 3), SCHEDULE.at(5, randn(2, 3)))
    with pytest.raises(ValueError, match='t = 0'):
        MixtureOracle(m)(x, SCHEDULE.at(torch.tensor([5, 0]), x))
    with pytest.raises(ValueError, match='the level has shape'):
        MixtureOracle(m)(x, SCHEDULE.at(5, x[:1]))
