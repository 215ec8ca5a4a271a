"The loss, its weights and the variational bound, against closed forms, quadrature and scipy"
import math
import numpy as np, pytest, torch
from conftest import gen, randn, refused
from scipy import stats
from torch import nn
from diffusion_scratch.denoiser import EPS, V, X0, Denoiser
from diffusion_scratch.loss import (decoder_nll, diffusion_loss, loss_at, min_snr, optimal,
    uniform, v_weight, vlb_terms, vlb_weight, x0_variance, x0_weight)
from diffusion_scratch.noising import Gaussian, q_posterior, q_sample
from diffusion_scratch.oracle import GaussianOracle
from diffusion_scratch.sampling import fixed_large
from diffusion_scratch.schedule import Schedule, cosine_betas, linear_betas, zero_terminal_snr

LINEAR, STEEP = Schedule(linear_betas()), Schedule(linear_betas(10, 0.01, 0.6))
GRAYS = torch.arange(256, dtype=torch.float64) / 127.5 - 1
every_schedule = pytest.mark.parametrize('schedule', [
    LINEAR, Schedule(cosine_betas(50)), Schedule(zero_terminal_snr(linear_betas(100)))],
    ids=['linear', 'cosine', 'dark'])

def levels(schedule): return schedule.at(range(1, schedule.T + 1), torch.zeros(schedule.T, 1))
def oracle(mu=0.2, sigma=0.5):
    return GaussianOracle(torch.full((1,), mu), torch.full((1, 1), sigma**2))
def gaussian_data(n, mu=0.2, sigma=0.5, seed=0): return mu + sigma * randn(n, 1, seed=seed)
def uniform_data(*shape): return torch.rand(shape, generator=gen()) * 2 - 1
def images_mean(x): return x.flatten(1).mean(1)
def se(x): return x.std() / math.sqrt(len(x))

class Net(nn.Module):
    "Some network; with dropout, so that its mode matters"
    def __init__(self, p=0.0):
        super().__init__()
        self.w, self.drop = nn.Parameter(torch.tensor(0.3)), nn.Dropout(p)
    def forward(self, x, t, y=None):
        return self.drop(self.w * x + (0 if y is None else y.view(-1, *[1] * (x.ndim - 1))))

# Weights
@every_schedule
@pytest.mark.parametrize('weight, want', [
    (uniform, lambda snr: snr), (x0_weight, np.ones_like), (v_weight, lambda snr: snr + 1),
    (min_snr(), lambda snr: np.minimum(snr, 5)), (min_snr(0.1), lambda snr: np.minimum(snr, 0.1))])
def test_weights_are_functions_of_alpha_bar(schedule, weight, want):
    ab = schedule.alpha_bar.numpy()[1:, None]
    found = weight(levels(schedule))
    assert found.shape == (schedule.T, 1)
    np.testing.assert_allclose(found, want(ab / (1 - ab)), rtol=1e-9)

@every_schedule
def test_vlb_weight(schedule):
    "Ho et al. 2020, eq. 7; finite at t = 1, where it is that of L_0's Gaussian"
    ab = schedule.alpha_bar.numpy()
    before, after = ab[1:-1], ab[2:]
    beta = 1 - after / before
    posterior_var, in_mean = (1 - before) / (1 - after) * beta, np.sqrt(before) * beta / (1 - after)
    w = vlb_weight(schedule)(levels(schedule)).flatten().numpy()
    np.testing.assert_allclose(w[1:], in_mean**2 / (2 * posterior_var), rtol=1e-7)
    assert w[0] == pytest.approx(1 / (2 * posterior_var[0]), rel=1e-9)

def test_vlb_weight_in_any_order_and_shape():
    t, weight = torch.tensor([7, 1, 1000, 1]), vlb_weight(LINEAR)
    w = weight(LINEAR.at(t, torch.zeros(4, 3, 2, 2)))
    assert w.shape == (4, 1, 1, 1) and torch.equal(w.flatten(), weight(levels(LINEAR))[t - 1, 0])

# diffusion_loss
@pytest.mark.parametrize('p, weight', [(EPS, uniform), (X0, x0_weight), (V, v_weight)])
def test_each_weight_is_the_plain_mse_of_its_own_target(p, weight):
    "eq-simple for EPS, and its siblings (eq-error-weights)"
    x0 = uniform_data(64, 3, 4, 4).double()
    found = diffusion_loss(Denoiser(Net(), p), LINEAR, x0, weight=weight, generator=gen(1))
    g = gen(1)
    a = LINEAR.alpha_bar[torch.randint(1, 1001, (64,), generator=g)].view(-1, 1, 1, 1)
    eps = torch.randn(x0.shape, generator=g, dtype=x0.dtype)
    x_t = a.sqrt() * x0 + (1 - a).sqrt() * eps
    target = {'eps': eps, 'x0': x0, 'v': a.sqrt() * eps - (1 - a).sqrt() * x0}[p.name]
    torch.testing.assert_close(found, images_mean((target - 0.3 * x_t)**2), rtol=1e-7, atol=1e-9)

@pytest.mark.parametrize('p, weight', [(EPS, uniform), (V, v_weight), (V, vlb_weight(LINEAR))])
def test_float32_is_accurate_at_every_level(p, weight):
    x0, denoiser = uniform_data(1000, 1, 4, 4), Denoiser(lambda x, t: torch.zeros_like(x), p)
    found = diffusion_loss(denoiser, LINEAR, x0, weight=weight, generator=gen(3))
    g = gen(3)
    level = LINEAR.at(torch.randint(1, 1001, (1000,), generator=g), x0)
    eps, x0 = torch.randn(x0.shape, generator=g).double(), x0.double()
    error = denoiser(q_sample(x0, level, eps), level).x0 - x0
    want = images_mean(weight(level) * error**2)
    torch.testing.assert_close(found.double(), want, rtol=3e-3, atol=0)

def test_every_timestep_is_drawn_equally():
    seen = []
    net = lambda x, t: seen.append(t) or x
    diffusion_loss(Denoiser(net), STEEP, torch.zeros(20_000, 1), generator=gen())
    count = torch.bincount(seen[0], minlength=11)
    assert count[0] == 0 and len(count) == 11 and stats.chisquare(count[1:].numpy()).pvalue > 1e-4

def test_gradients_labels_and_footprints():
    x0, d, rng = uniform_data(8, 1, 5, 5), Denoiser(Net()), torch.random.get_rng_state()
    loss = lambda y=None: diffusion_loss(d, LINEAR, x0, y, generator=gen(1))
    with_y = loss(torch.arange(8))
    assert not torch.allclose(with_y, loss())
    bounds = [vlb_terms(d, STEEP, x0, y, generator=gen()) for y in (torch.arange(8), None)]
    assert not torch.allclose(*bounds)
    with_y.mean().backward()
    assert d.net.w.grad.abs() > 0 and d.training
    assert torch.equal(x0, uniform_data(8, 1, 5, 5))
    assert torch.equal(torch.random.get_rng_state(), rng)

def test_without_a_generator_torchs_own_is_used():
    draw = lambda: diffusion_loss(Denoiser(Net()), LINEAR, torch.zeros(8, 2))
    with torch.random.fork_rng():
        torch.manual_seed(5); a = draw(); b = draw()
        torch.manual_seed(5); c = draw()
    assert torch.equal(a, c) and not torch.equal(a, b)

def test_zero_terminal_snr():
    S = Schedule(zero_terminal_snr(linear_betas(2)))
    loss = lambda p, weight: diffusion_loss(Denoiser(Net(), p), S, uniform_data(64, 2),
                                            weight=weight, generator=gen())
    for weight in (uniform, v_weight, min_snr(), vlb_weight(S)):
        assert loss(V, weight).isfinite().all()
    with pytest.raises(ValueError, match='predict V or X0'): loss(EPS, uniform)

@pytest.mark.parametrize('p', [EPS, X0, V], ids=repr)
def test_half_precision_is_finite_at_the_noisiest_level(p):
    "Network and images in float16; signal_T = 5e-5 on the cosine schedule"
    S, x0 = Schedule(cosine_betas(1000)), uniform_data(4, 1, 3, 3).half()
    level, eps = S.at(1000, x0), randn(4, 1, 3, 3).half()
    assert loss_at(Denoiser(Net().half(), p), x0, level, eps).isfinite().all()

# The decoder
@pytest.mark.parametrize('mean', [-1.3, -1., -0.2, 0.5, 0.999, 1.2])
@pytest.mark.parametrize('std', [0.003, 0.05, 0.7])
def test_decoder_is_scipys_interval_probability(mean, std):
    "eq-decoder; float32 rounds z where std is small"
    edges = (np.concatenate([[-np.inf], GRAYS[:-1] + 1/255, [np.inf]]) - mean) / std
    cdf, sf = stats.norm.cdf(edges), stats.norm.sf(edges)
    p = np.where(edges[:-1] > 0, -np.diff(sf), np.diff(cdf))
    for dtype, rtol, atol in ((torch.float64, 1e-9, 1e-9), (torch.float32, 1e-4, 1e-5)):
        nll = decoder_nll(GRAYS.to(dtype), Gaussian(*torch.tensor([mean, std], dtype=dtype)))
        np.testing.assert_allclose(nll, -np.log(np.maximum(p, 1e-12)), rtol, atol)
        if dtype == torch.float64: assert (-nll).exp().sum() == pytest.approx(1, abs=1e-9)

def test_decoder_in_half_precision():
    "A bin too far away costs the limit, 1e-12, which float16 does not have"
    x0, p = torch.tensor([-1., 1.]).half(), Gaussian(torch.ones(2), torch.tensor(0.05))
    half = decoder_nll(x0, Gaussian(p.mean.half(), p.std.half()))
    torch.testing.assert_close(half, decoder_nll(x0.float(), p), rtol=1e-2, atol=1e-3)
    assert half[0].item() == pytest.approx(-math.log(1e-12), rel=1e-5)

# The bound
def test_terms_of_known_data():
    "Order, shape and L_T of chosen images, in float32, more than one pixel"
    S, x0 = Schedule(linear_betas(20, 1e-3, 0.3)), uniform_data(3, 1, 4, 4)
    terms, a = vlb_terms(Denoiser(Net()), S, x0, generator=gen()), S.alpha_bar[-1]
    L_T = 0.5 * images_mean(a * (x0.double()**2 - 1) - (1 - a).log()) / math.log(2)
    assert terms.shape == (21, 3) and terms.isfinite().all() and (terms >= 0).all()
    torch.testing.assert_close(terms[-1].double(), L_T, rtol=1e-4, atol=1e-7)

@pytest.mark.parametrize('posterior', [q_posterior, fixed_large])
def test_every_step_has_its_closed_form(posterior):
    "eq-snr-difference, eq-gaussian-bound, both variances; r is the ratio of the two variances"
    ab, snr, n = STEEP.alpha_bar, levels(STEEP).snr.flatten(), 40_000
    exact = 0.5 * (snr[:-1] - snr[1:]) / (4 + snr[1:])
    if posterior is fixed_large:
        r = (1 - ab[1:-1]) / (1 - ab[2:])
        exact = r * exact + 0.5 * (r - 1 - r.log())
    terms = vlb_terms(oracle(), STEEP, gaussian_data(n), posterior=posterior, generator=gen(1))
    for L, want in zip(terms[1:-1] * math.log(2), exact, strict=True):
        assert abs(L.mean() - want) < 5 * se(L)

# The best variance of a step
def mmse(schedule, sigma=0.5): return 1 / (1 / sigma**2 + levels(schedule).snr.flatten())

@every_schedule
def test_optimal_is_the_variance_of_one_gaussian_given_another(schedule):
    "Any s < t: Var(x_s | x_t) of Gaussian data from their joint covariance (eq-optimal-variance)"
    t, s = torch.triu_indices(schedule.T, schedule.T, 1)[:, ::97].flip(0) + 1
    x = torch.zeros(len(t), 1, dtype=torch.float64)
    t, s, best = schedule.at(t, x), schedule.at(s, x), optimal([0, *mmse(schedule)])
    p, var = best(x + 0.3, x - 1, t, s), lambda l: l.alpha_bar * 0.25 + l.noise**2
    cov = t.signal / s.signal * var(s)
    torch.testing.assert_close(p.std**2, var(s) - cov**2 / var(t), rtol=1e-7, atol=1e-12)
    assert torch.equal(p.mean, q_posterior(x + 0.3, x - 1, t, s).mean)
    assert not best(x, x, t, schedule.at(0, x)).std.any()

def test_optimal_is_the_best_of_a_denoiser_that_errs():
    "eq-optimal-cost of a wrong denoiser too; another variance costs more"
    times, x0, d = [10, 6, 3, 2, 1, 0], gaussian_data(40_000), oracle(-0.3, 0.4)
    snr = STEEP.alpha_bar[times] / (1 - STEEP.alpha_bar[times])
    table = x0_variance(d, STEEP, x0, times=times, generator=gen(1))
    def cost(posterior):
        terms = vlb_terms(d, STEEP, x0, posterior=posterior, times=times, generator=gen(1))
        return terms[1:-1].mean(1).flip(0) * math.log(2)
    best = cost(optimal(table))
    want = 0.5 * ((snr[1:-1] - snr[:-2]) * table[times[:-2]]).log1p()
    torch.testing.assert_close(best, want, rtol=2e-2, atol=0)
    for other in (q_posterior, fixed_large, optimal(0.7 * table), optimal(1.4 * table)):
        assert (cost(other) > best).all()

def test_optimal_is_data():
    "Equal tables are equal solvers; unmeasured times are refused by name"
    table = x0_variance(oracle(), LINEAR, gaussian_data(9), times=[1000, 30, 0])
    assert optimal(table) == optimal(table) and hash(optimal(table)) == hash(optimal(table))
    assert repr(optimal(table)) == 'optimal(2 timesteps)' and optimal(table) != optimal([0, 1])
    x = torch.zeros(2, 1)
    for t in (500, 1000):
        with pytest.raises(ValueError, match=f't = {t} is not one of them.*x0_variance the times'):
            optimal(table[:-1])(x, x, LINEAR.at(t, x), LINEAR.at(5, x))

def test_bound_is_the_entropy_plus_what_is_known_to_be_lost():
    "eq-vlb, eq-jensen: the grays' entropy, each step's excess and that of the last width"
    S, sigma, n = Schedule(linear_betas(200, 5e-4, 0.1)), 0.25, 20_000
    edges = np.concatenate([[-np.inf], GRAYS[:-1] + 1/255, [np.inf]])
    entropy = stats.entropy(np.diff(stats.norm.cdf(edges / sigma)), base=2)
    snr = levels(S).snr.flatten().numpy()
    precision = 1 / sigma**2 + snr                                  # of x_0 given x_t
    excess = (snr[:-1] - snr[1:]) / precision[1:] - np.log(precision[:-1] / precision[1:])
    r = 1 / precision[0] / ((1 - S.alpha_bar[1]) * (1 - snr[1] / snr[0])).item()
    lost = 0.5 * (excess.sum() + r - 1 - math.log(r)) / math.log(2)
    x0 = ((gaussian_data(n, 0, sigma).clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    bound = vlb_terms(oracle(0., sigma), S, x0, generator=gen(1)).sum(0)
    assert se(bound) < 0.03 and lost > 0.5
    assert abs(bound.mean() - entropy - lost) < 4 * se(bound)

@pytest.mark.parametrize('measure', [vlb_terms, x0_variance])
def test_measuring_leaves_no_footprints(measure):
    "Dropout is off in every mode, also in a part left in train mode by hand, and modes stay"
    d, x0, found = Denoiser(Net(p=0.5)), uniform_data(4, 1, 3, 3), []
    rng, S = torch.random.get_rng_state(), Schedule(linear_betas(5, 0.01, 0.5))
    for part, training in ((d, True), (d, False), (d.net.drop, True)):
        part.train(training)
        modes = [m.training for m in d.modules()]
        found.append(measure(d, S, x0, torch.ones(4), generator=gen()))
        assert [m.training for m in d.modules()] == modes and not found[-1].requires_grad
        assert torch.equal(found[-1], found[0]) and found[0].isfinite().all()
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert torch.equal(x0, uniform_data(4, 1, 3, 3))

OTHER = Schedule(cosine_betas(1000)).at(500, torch.zeros(2, 1))  # its weight would be below 0

@pytest.mark.parametrize('case', [
    *((lambda t=t: vlb_terms(oracle(), LINEAR, torch.zeros(2, 1), times=t), says) for t, says in (
        ([1000, 0], 'at least 2 steps'), ([1000, 500, 1], r'end at 0, not with \[1000, 500, 1\]'),
        ([], 'end at 0'), ([500, 700, 0], 's must be less than t'),
        ([1001, 500, 0], '1001 is outside'))),
    (lambda: optimal(0.3), r'table = 0.3: .*x0_variance\(denoiser', TypeError),
    (lambda: optimal(oracle()), 'table = ', TypeError),
    (lambda: optimal([0., 0.1, -0.2]), 'table holds -0.2 at t = 2'),
    (lambda: optimal([0., math.inf]), 'table holds inf at t = 1'),
    (lambda: vlb_weight(LINEAR)(OTHER), 't = 500 has signal 0.70.*vlb_weight has 0.28'),
    (lambda: vlb_weight(Schedule([0.5])), 'at least 2 steps'),
    (lambda: diffusion_loss(oracle(), LINEAR, torch.zeros(8)), r'x0 has shape \(8,\): .*\(B, 1\)')])
def test_refused(case): refused(*case)
