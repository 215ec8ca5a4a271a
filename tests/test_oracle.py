"Chapter 4 by independent truths: Gaussians by NumPy, SciPy's densities and softmax"
import math
import numpy as np, pytest, torch
from conftest import gen, randn, refused
from scipy import special, stats
from diffusion_scratch.denoiser import Prediction
from diffusion_scratch.oracle import GaussianOracle, MixtureOracle
from diffusion_scratch.schedule import Schedule, linear_betas, zero_terminal_snr

SCHEDULE = Schedule(linear_betas())
N = 20_000  # draws for an average

def f64(x): return torch.tensor(x, dtype=torch.float64)
def close(a, b, atol=1e-10): np.testing.assert_allclose(a, b, rtol=0, atol=atol)
def error(x): return x.std(0) / len(x)**0.5  # standard error of the mean

def at(t, x):
    "The level of `x` at `t`, and its signal and noise as numbers"
    level = SCHEDULE.at(t, x)
    return level, float(level.signal.flatten()[0]), float(level.noise.flatten()[0])

def random_gaussian(D):
    A = randn(D, D)
    return randn(D, seed=1), A @ A.T / D

def random_mixture(K=4, D=3):
    std = 0.1 + torch.rand(K, generator=gen(1), dtype=torch.float64)
    return 2 * randn(K, D), std, 0.5 + torch.rand(K, generator=gen(2), dtype=torch.float64)

def draw_mixture(means, std, weights):  # images, and the mode of each
    k = torch.multinomial(weights, N, replacement=True, generator=gen())
    std = torch.as_tensor(std).expand(len(means))[k, None]
    return means[k] + std * randn(N, means.shape[1], seed=1), k

@pytest.mark.parametrize('t', [1, 10, 200, 600, 1000])
@pytest.mark.parametrize('A', [randn(5, 5, seed=3), randn(5, 2, seed=3), torch.eye(5).double(),
                               torch.zeros(5, 5).double(), 1e6 * torch.eye(5).double()],
                         ids=['full rank', 'singular', 'white', 'one image', 'all alike'])
def test_gaussian_is_the_conditional_of_the_joint(t, A):
    "eq-gaussian-oracle: x0 and x_t are one Gaussian; its textbook conditional mean follows"
    mean, x_t, cov = randn(5, seed=1), 2 * randn(7, 5, seed=4), (A @ A.T).numpy()
    level, s, n = at(t, x_t)
    want = (x_t - s * mean).numpy() @ np.linalg.inv(s**2 * cov + n**2 * np.eye(5)) @ (s * cov)
    got = GaussianOracle(mean, torch.from_numpy(cov))(x_t, level)
    close(got.x0, mean.numpy() + want, 1e-9)
    close(s * got.x0 + n * got.eps, x_t)

@pytest.mark.parametrize('t', [1, 300, 1000])
def test_mixtures_that_are_the_same(t):
    means, std, w = random_mixture()
    x_t, back = randn(6, 3, seed=5), [2, 0, 3, 1]
    answer = lambda *mixture: MixtureOracle(*mixture)(x_t, SCHEDULE.at(t, x_t)).x0
    want = answer(means, std, w)
    close(answer(means, std, 17 * w), want)  # weights need not add up to 1
    close(answer(means[back], std[back], w[back]), want)  # the order is nothing
    twice = (torch.cat([a, a[:1]]) for a in (means, std, w))  # equal modes: one of more weight
    close(answer(*twice), answer(means, std, w * f64([2, 1, 1, 1])))
    close(answer(means, 1e-6, w), answer(means, 0., w), 1e-7)  # width to zero: the finite set
    gaussian = GaussianOracle(means[0], 0.49 * torch.eye(3).double())  # one round mode
    close(answer(means[:1], 0.7), gaussian(x_t, SCHEDULE.at(t, x_t)).x0)
    x = f64([0.5, -0.5])
    level, s, n = at(t, x)  # images of one number
    close(MixtureOracle(f64([-1, 1]))(x, level).x0, torch.tanh(s * x / n**2))

@pytest.mark.parametrize('t', [1, 200, 1000])
def test_responsibilities_are_bayes_rule_with_scipys_densities(t):
    "eq-responsibility, in logarithms; far points too, where every density is 0 in floating point"
    means, std, w = random_mixture(K=6)
    x_t = torch.cat([3 * randn(20, 3, seed=5), 1000 * randn(3, 3, seed=6)])
    level, s, n = at(t, x_t)
    modes = [stats.multivariate_normal(s * m.numpy(), s**2 * d.item()**2 + n**2)
             for m, d in zip(means, std)]
    r = MixtureOracle(means, std, w).responsibilities(x_t, level)
    close(r, special.softmax([a.logpdf(x_t) for a in modes] + w.log().numpy()[:, None], 0).T, 1e-9)

def test_a_label_leaves_the_modes_of_its_class():
    "eq-label-oracle; labelled answers average to the unlabelled one, the tower rule"
    (means, std, w), labels = random_mixture(K=6), torch.tensor([0, 2, 0, 5, 2, 2])
    oracle, x_t = MixtureOracle(means, std, w, labels), 2 * randn(5, 3, seed=5)
    level = SCHEDULE.at(400, x_t)
    y, plain = torch.tensor([0, 2, 5, -1, 2]), oracle(x_t, level).x0
    got = oracle(x_t, level, y)
    for i, k in enumerate(y.tolist()):
        keep = labels == k if k >= 0 else labels >= 0
        close(got.x0[i], MixtureOracle(means[keep], std[keep], w[keep])(x_t, level).x0[i])
    close(level.signal * got.x0 + level.noise * got.eps, x_t)
    all_of = lambda k: torch.full((5,), k)
    assert torch.equal(oracle(x_t, level, all_of(-1)).x0, plain)
    assert (oracle.responsibilities(x_t, level, all_of(5)) == f64([0, 0, 0, 1, 0, 0])).all()
    r = oracle.responsibilities(x_t, level)
    close(sum(r[:, labels == k].sum(1, keepdim=True) * oracle(x_t, level, all_of(k)).x0
              for k in (0, 2, 5)), plain)

def test_a_label_far_from_the_evidence_is_obeyed():
    "The class's best guess has probability e^-10000 by the image; no underflow"
    oracle = MixtureOracle(f64([[-10.], [10.], [11.]]), labels=torch.tensor([0, 1, 1]))
    x_t = f64([[-10.]])
    assert 9.99 < float(oracle(x_t, SCHEDULE.at(100, x_t), torch.tensor([1])).x0) < 10.01

@pytest.fixture(params=['mixture', 'finite', 'gaussian'])
def oracle(request):  # of images (2,3,2)
    if request.param == 'gaussian': return GaussianOracle(*random_gaussian(12))
    means, std, w = random_mixture(D=12)
    return MixtureOracle(means, std if request.param == 'mixture' else 0., w)

def test_an_image_depends_on_neither_its_batch_nor_its_precision(oracle):
    x = randn(6, 2, 3, 2, seed=4)
    level = SCHEDULE.at(torch.tensor([1, 20, 300, 500, 800, 1000]), x)
    whole = oracle(x, level)
    assert isinstance(whole, Prediction) and (whole.x0.shape, whole.x0.dtype) == (x.shape, x.dtype)
    for i in range(6):
        close(oracle(x[i:i+1], SCHEDULE.at(int(level.t[i]), x[i:i+1])).x0[0], whole.x0[i], 1e-12)
    got = oracle(narrow := x.float(), level)
    assert got.x0.dtype == got.eps.dtype == torch.float32 and torch.equal(narrow, x.float())
    torch.testing.assert_close(got.x0.double(), whole.x0, rtol=1e-4, atol=1e-4)

def test_no_signal_leaves_the_mean(oracle):
    "At zero terminal SNR x_t says nothing: the mean of the data is left, and all of x_t is noise"
    x = 5 * randn(3, 2, 3, 2, seed=4)
    got = oracle(x, Schedule(zero_terminal_snr(linear_betas())).at(1000, x))
    mean = oracle.mean if hasattr(oracle, 'mean') else oracle.log_weights.exp() @ oracle.means
    close(got.x0.flatten(1), mean.expand(3, 12), 1e-12)
    close(got.eps, x, 1e-12)

def test_large_images_close_together():
    "D = 3,072, 0.01 apart in one pixel: half a nat among squares of 3,000; direct differences"
    pair = torch.rand(3072, generator=gen(), dtype=torch.float64).repeat(2, 1)
    pair[1, 7] += 0.01
    oracle, x = MixtureOracle(pair), pair[:1] * SCHEDULE.alpha_bar[1].sqrt()
    level, s, n = at(1, x)
    near, far = (x - s * pair).square().sum(1).tolist()
    close(oracle.responsibilities(x, level)[0, 0], special.expit((far - near) / (2 * n**2)), 1e-8)
    got = oracle(100 * x, level)
    assert got.x0.isfinite().all() and got.eps.isfinite().all()

def test_tables_survive_a_state_dict():
    "An oracle is a module: its tables move and save like any other's; there is nothing to train"
    y = randn(2, 4)
    for a, b in ((GaussianOracle(*random_gaussian(4)), GaussianOracle(y[0], torch.eye(4))),
                 (MixtureOracle(*random_mixture(D=4)), MixtureOracle(torch.zeros(4, 4)))):
        b.load_state_dict(a.state_dict())
        assert torch.equal(a(y, SCHEDULE.at(9, y)).x0, b(y, SCHEDULE.at(9, y)).x0)
        assert not list(a.parameters())

M3 = torch.zeros(3, 2)
GAUSSIAN, MIXTURE = GaussianOracle(torch.zeros(2), torch.eye(2)), MixtureOracle(M3)
LABELLED = MixtureOracle(M3, labels=torch.tensor([0, 1, 1]))

def gaussian(cov): return lambda: GaussianOracle(torch.zeros(3), cov)
def mixture(**options): return lambda: MixtureOracle(**dict(means=M3) | options)
def answer(oracle, y=None, D=2, t=5, rows=2):
    x = randn(2, D)
    return lambda: oracle(x, SCHEDULE.at(torch.tensor(t), x[:rows]), y and torch.tensor(y))

@pytest.mark.parametrize('call, message', [
    (gaussian(torch.eye(2)), r'cov has shape \(2, 2\); a mean of 3 numbers needs \(3, 3\)'),
    (gaussian(torch.ones(3)), 'cov has shape'),
    (gaussian(-torch.eye(3)), 'negative eigenvalue, -1'),
    (gaussian(f64([[0, 1, 0], [1, 0, 0], [0, 0, 1]])), 'negative eigenvalue, -1'),
    (gaussian(f64([[1, 0.5, 0], [0, 1, 0], [0, 0, 1]])), 'differs from its transpose by 0.5'),
    (gaussian(math.nan * torch.eye(3)), 'mean or cov is not finite'),
    (mixture(means=M3[:0]), 'means is empty'), (mixture(means=M3 / 0), 'some means are not finite'),
    *((mixture(weights=torch.tensor(w)), 'weights must be 3 positive numbers')
      for w in ([1., 2], [1., 0, 1], [1., -1, 1], [1., math.nan, 1])),
    *((mixture(std=torch.tensor(s)), 'std must be one number or 3, none below 0')
      for s in (-0.1, [0.1, 0.2], [0.1, -1, 1], math.nan)),
    (mixture(labels=torch.tensor([0, 1])), r'labels has shape \(2,\); 3 modes need \(3,\)'),
    *((answer(oracle, **given), message) for oracle in (GAUSSIAN, MIXTURE) for given, message in (
        (dict(D=3), 'x_t has 3 numbers an image, but the oracle was made for 2'),
        (dict(t=0), 't = 0'), (dict(t=[5, 0]), 't = 0'),
        (dict(rows=1), r'the level has shape \(1, 1\)'))),
    (answer(GAUSSIAN, [0, 0]), 'takes no labels'), (answer(MIXTURE, [0, 7]), 'made without labels'),
    (answer(LABELLED, [0, 7]), r'no mode has the label y = 7; there are \[0, 1\]'),
    (answer(LABELLED, [0]), r'y has shape \(1,\)')])
def test_what_makes_no_oracle_and_what_none_answers(call, message): refused(call, message)
