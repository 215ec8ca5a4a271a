"""The bound, the flow and the codec, against closed forms, quadrature, exact traces and the bytes
themselves"""
import math
import numpy as np, pytest, torch
from scipy.stats import norm
from torch import nn
from diffusion_scratch import likelihood as lib
from diffusion_scratch.data import mnist_mini, to_float, to_uint8
from diffusion_scratch.denoiser import EPS, V, X0, Denoiser
from diffusion_scratch.likelihood import (Bits, Bound, axes, bound, decode, density_nll, encode,
                                          flow_bits, gaussian, rademacher, rate_distortion)
from diffusion_scratch.loss import decoder_nll, vlb_terms
from diffusion_scratch.noising import Gaussian, q_posterior
from diffusion_scratch.oracle import GaussianOracle, MixtureOracle
from diffusion_scratch.sampling import Noise, fixed_large
from diffusion_scratch.schedule import (Schedule, cosine_betas, linear_betas, log_snr, trailing,
                                        zero_terminal_snr)

LINEAR, COSINE = Schedule(linear_betas()), Schedule(cosine_betas())
SHORT = Schedule(linear_betas(40, 1e-3, 0.4))
MU, SIGMA = 0.2, 0.5
def gen(seed=0): return torch.Generator().manual_seed(seed)
def one_pixel(): return GaussianOracle(torch.full((1,), MU), torch.full((1, 1), SIGMA**2))
def normal(*shape, seed=0): return torch.randn(*shape, generator=gen(seed), dtype=torch.float64)
def draws(n, seed=0): return MU + SIGMA * normal(n, 1, seed=seed)
def to_bytes(x): return to_float(to_uint8(x.float()))
def quiet(f, *args, **kwargs): return f(*args, progress=False, **kwargs)

class Net(nn.Module):
    "Some network, smooth, with dropout, so that its mode matters"
    def __init__(self, p=0.5):
        super().__init__()
        self.conv, self.drop = nn.Conv2d(1, 1, 3, padding=1), nn.Dropout(p)
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
        with torch.no_grad():
            for q in self.conv.parameters(): q.copy_(0.2 * torch.randn(q.shape, generator=gen(3)))
    def forward(self, x, t, y=None):
        h = x + t.view(-1, 1, 1, 1) / 1000 + (0 if y is None else y.view(-1, 1, 1, 1))
        return self.drop(torch.tanh(self.conv(h)) * self.frozen)

def bytes_like(n=6, seed=0):
    return to_float(torch.randint(0, 256, (n, 1, 4, 4), generator=gen(seed), dtype=torch.uint8))

# ------------------------------------------------------------ the bound
def closed(schedule, times, mu=MU, sigma=SIGMA):
    "L_T, L_t, L_0 in bits, averaged over Gaussian data, from alpha_bar alone"
    ab = schedule.alpha_bar.numpy()[times]
    snr = ab[:-1] / (1 - ab[:-1])
    mmse = (1 - ab[:-1]) * sigma**2 / (ab[:-1] * sigma**2 + 1 - ab[:-1])
    L_T = 0.5 * (ab[0] * (mu**2 + sigma**2 - 1) - np.log(1 - ab[0]))
    L_t = 0.5 * ((snr[1:] - snr[:-1]) * mmse[:-1]).sum()
    var = (1 - ab[-2]) * (1 - snr[-2] / snr[-1])  # of the step before the last
    return np.array([L_T, L_t, 0.5 * np.log(2 * np.pi * var) + mmse[-1] / (2 * var)]) / math.log(2)

ENTROPY = math.log2(SIGMA * math.sqrt(2 * math.pi * math.e))

@pytest.mark.parametrize('schedule, times', [(SHORT, None), (LINEAR, LINEAR.times(25)),
                                             (COSINE, COSINE.times(30, log_snr))])
def test_bound_of_gaussian_data_is_the_closed_form(schedule, times):
    """eq-bound-parts, eq-density-decoder, eq-gaussian-bound: each part and the whole, to 4 standard
    errors of 4,000 images"""
    b = quiet(bound, one_pixel(), schedule, draws(4000), decoder=density_nll, times=times, seed=0,
              batch_size=4000)
    exact = closed(schedule, schedule.times(schedule.T) if times is None else times)
    assert abs(b.total - exact.sum()) < 4 * b.error
    assert b.L_T == pytest.approx(exact[0], abs=0.02)
    assert b.L_T + b.L_t + b.L_0 == pytest.approx(b.total, abs=1e-9)
    assert b.n == 4000 and b.error == pytest.approx(b.each.std().item() / 4000**0.5)
    assert b.total == pytest.approx(b.each.mean().item())
    assert b.total > ENTROPY - 4 * b.error  # no less than the entropy

def test_with_the_right_width_the_bound_is_the_entropy():
    "eq-right-width: the reverse step is then the true one, at any number of steps"
    def posterior(x0, x_t, t, s):
        q, c = q_posterior(x0, x_t, t, s), s.signal * (1 - t.snr / s.snr)
        mmse = t.noise**2 * SIGMA**2 / (t.signal**2 * SIGMA**2 + t.noise**2)
        return Gaussian(q.mean, (q.std**2 + c**2 * mmse).sqrt())
    times, x = LINEAR.times(8, log_snr), draws(4000, 1)
    a = LINEAR.at(times[-2], x)
    width = (a.noise * SIGMA / (a.signal**2 * SIGMA**2 + a.noise**2).sqrt())[0]
    def decoder(x0, p): return density_nll(x0, Gaussian(p.mean, width))
    b = quiet(bound, one_pixel(), LINEAR, x, posterior=posterior, decoder=decoder, times=times,
              seed=0, batch_size=4000)
    assert abs(b.total - ENTROPY) < 4 * b.error

def test_bound_and_vlb_terms_are_the_same_average():
    """Two implementations that share formulas but not noise; bytes, a wider reverse step; 4
    standard errors of the difference"""
    x, net = bytes_like(400), Denoiser(Net(0.), X0)
    theirs = vlb_terms(net, SHORT, x, posterior=fixed_large, generator=gen()).double()
    ours = quiet(bound, net, SHORT, x, posterior=fixed_large, seed=1)
    for a, b in ((ours.L_T, theirs[-1]), (ours.L_t, theirs[1:-1].sum(0)), (ours.L_0, theirs[0])):
        assert abs(a - b.mean()) < 1e-6 + 6 * b.std() / 20
    gap = ours.each - theirs.sum(0)
    assert abs(gap.mean()) < 4 * gap.std() / 20

def test_density_nll_is_scipys():
    x, m, s = torch.randn(3, 50, generator=gen(), dtype=torch.float64).unbind(); s = s.exp()
    np.testing.assert_allclose(density_nll(x, Gaussian(m, s)), -norm.logpdf(x, m, s), rtol=1e-12)

def test_bytes_of_a_known_pmf():
    """Two gray values, exact denoiser: L_t is the entropy and the stairs above it, below 0.1 bits;
    L_0, where all is decided, the mass that the lent width leaves in a bin"""
    two = torch.tensor([[60.], [200.]], dtype=torch.float64) / 127.5 - 1
    weights = torch.tensor([0.25, 0.75])
    x = two[torch.multinomial(weights, 4000, replacement=True, generator=gen())]
    H, times = -(weights * weights.log2()).sum().item(), LINEAR.times(250, log_snr)
    b = quiet(bound, MixtureOracle(two, weights=weights), LINEAR, x, times=times, seed=0,
              batch_size=4000)
    ab = LINEAR.alpha_bar.numpy()[times[-3:-1]]
    std = math.sqrt((1 - ab[1]) * (1 - ab[0] / (1 - ab[0]) * (1 - ab[1]) / ab[1]))
    assert H - 4 * b.error < b.L_t < H + 0.1 + 4 * b.error
    assert b.L_0 == pytest.approx(-math.log2(2 * norm.cdf(1 / 255 / std) - 1), abs=1e-6)

@pytest.mark.parametrize('draws_', [1, 3, 17])
def test_some_steps_stand_for_all(draws_):
    """eq-slices, eq-standard-bill: integrated over u on a fine grid, any terms come out whole; and
    a step's share is its closed form"""
    times = LINEAR.times(100)
    share = lib.step_probabilities(LINEAR, times)
    ab = LINEAR.alpha_bar.numpy()[times[:-1]]
    cost = np.diff(ab / (1 - ab)) * (1 - ab[:-1])
    np.testing.assert_allclose(share, 0.5 * cost / cost.sum() + 0.5 / 99, rtol=1e-9)
    terms = torch.rand(99, generator=gen(), dtype=torch.float64)
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    k, w = lib.stratified_steps(share, draws_, u)
    assert k.shape == w.shape == (draws_, 200_000) and (k >= 0).all() and (k < 99).all()
    assert (w * terms[k]).sum(0).mean() == pytest.approx(terms.sum().item(), rel=1e-3)

def test_the_cheap_estimate_is_unbiased_and_its_error_honest():
    "eq-slices: against all steps on the same images, 4 standard errors of the difference"
    x = draws(3000, 2)
    whole, some = (quiet(bound, one_pixel(), SHORT, x, decoder=density_nll, draws=d, seed=s,
                         batch_size=3000) for d, s in ((None, 0), (4, 1)))
    gap = some.each - whole.each
    assert abs(gap.mean()) < 4 * gap.std() / 3000**0.5 and some.error >= 0.9 * whole.error

# ------------------------------------------------------------ the flow
def of_flow(x, schedule, mu, sigma):
    "eq-gaussian-density, by alpha_bar alone: bits of the flow's own density, N(0, 1) at its end"
    ab = schedule.alpha_bar[-1].item()
    r = math.sqrt((ab * sigma**2 + 1 - ab) / sigma**2)  # signal_T times the stretch
    return -(norm.logpdf(math.sqrt(ab) * mu + (x - mu) * r) + math.log(r)) / math.log(2)

@pytest.mark.parametrize('schedule, spacing', [
    (LINEAR, log_snr), (COSINE, trailing), (Schedule(zero_terminal_snr(linear_betas())), trailing)])
def test_flow_of_a_gaussian_converges_with_order_two(schedule, spacing):
    """eq-log-density, eq-angle-flow, eq-heun-angle, eq-gaussian-density: error below 2e-3 bits at
    100 steps, and quartered when steps double"""
    x = draws(200, 3)
    want = torch.as_tensor(of_flow(x[:, 0].numpy(), schedule, MU, SIGMA))
    def error(n):
        b = quiet(flow_bits, one_pixel(), schedule, x, width=None, probes=axes,
                  times=schedule.times(n, spacing), batch_size=200)
        return (b.each - want).abs().mean().item()
    error = [error(n) for n in (25, 50, 100)]
    assert error[-1] < 2e-3 and all(1.7 < math.log2(a / b) < 2.4 for a, b in zip(error, error[1:]))

def test_flow_of_correlated_pixels_has_their_density():
    """eq-log-density with a Jacobian that is not diagonal: three pixels, exact trace; what N(0, I)
    misses at alpha_bar_T = 2.4e-9 is below 1e-3"""
    a = torch.randn(3, 3, generator=gen(), dtype=torch.float64)
    mean, cov = torch.tensor([0.1, -0.2, 0.3]).double(), 0.2 * a @ a.T + 0.1 * torch.eye(3)
    law = torch.distributions.MultivariateNormal(mean, cov)
    x = mean + normal(50, 3, seed=1) @ torch.linalg.cholesky(cov).T
    b = quiet(flow_bits, GaussianOracle(mean, cov), COSINE, x, width=None, probes=axes,
              times=COSINE.times(250))
    assert (b.each + law.log_prob(x) / (3 * math.log(2))).abs().max() < 3e-3

def test_flow_of_a_mixture_has_its_density():
    """eq-log-density where the flow bends: the tails and the valley of two hills, to 0.01 bits at
    250 steps"""
    m = torch.tensor([[-0.5], [0.4]]).double()
    s, w = torch.tensor([0.2, 0.3]).double(), torch.tensor([0.3, 0.7]).double()
    x = torch.linspace(-1.2, 1.4, 30, dtype=torch.float64)[:, None]
    density = (w * torch.from_numpy(norm.pdf(x, m.T, s))).sum(1)
    b = quiet(flow_bits, MixtureOracle(m, s, w), COSINE, x, width=None, probes=axes,
              times=COSINE.times(250))
    assert (b.each + density.log2()).abs().max() < 0.01

@pytest.mark.parametrize('probes, fourth', [(rademacher(20_000), 1), (gaussian(20_000), 3)])
def test_hutchinson_is_unbiased_with_the_variance_of_the_formula(probes, fourth):
    """eq-hutchinson: against the exact trace to 4 standard errors; a variance from 20,000 draws is
    good to about 3 %"""
    J = torch.randn(5, 5, generator=gen(), dtype=torch.float64); J = J + J.T
    z = probes(Noise(0, 1), (5,))[:, 0].double()
    found, diagonal = torch.einsum('ki,ij,kj->k', z, J, z), J.diagonal().square().sum()
    variance = 2 * (J.square().sum() - diagonal) + (fourth - 1) * diagonal
    assert abs(found.mean() - J.trace()) < 4 * (variance / 20_000)**0.5
    assert found.var().item() == pytest.approx(variance.item(), rel=0.12)

def test_slope_is_v_and_its_divergence_the_trace_of_the_jacobian():
    "eq-angle-flow: v, and the sum of a dense Jacobian's diagonal, by torch.autograd.functional"
    net, x = Denoiser(Net(0.), EPS).double(), normal(2, 1, 3, 3)
    level = LINEAR.at(400, x)
    def v(x):
        x0, eps = net(x, level)
        return level.signal * eps - level.noise * x0
    probes = axes(Noise(0, 2), (1, 3, 3))
    slope, spread = lib.velocity_and_divergence(net, x, level, None, probes)
    J = torch.autograd.functional.jacobian(v, x).view(2, 9, 2, 9)
    torch.testing.assert_close(slope, v(x).detach())
    exact = torch.stack([J[i, :, i].diagonal().sum() for i in (0, 1)])
    torch.testing.assert_close(spread, exact, rtol=1e-5, atol=1e-6)

def test_random_probes_find_the_exact_number():
    """eq-hutchinson within the walk: 400 copies of one image, each with its own probes, average to
    the exact trace's bits"""
    g, d = gen(4), 8
    a = torch.randn(d, d, generator=g, dtype=torch.float64)
    oracle = GaussianOracle(torch.zeros(d), 0.1 * a @ a.T + 0.2 * torch.eye(d))
    x = torch.randn(1, d, generator=g, dtype=torch.float64).expand(400, d)
    times = COSINE.times(20)
    exact = quiet(flow_bits, oracle, COSINE, x[:2], width=None, probes=axes, times=times).total
    for probes in (rademacher(), gaussian(2)):
        b = quiet(flow_bits, oracle, COSINE, x, width=None, probes=probes, times=times, seed=0,
                  batch_size=400)
        assert abs(b.total - exact) < 4 * b.error and b.error > 0

def test_dequantised_bytes_cost_the_bits_of_their_bins():
    """eq-dequantise: a broad Gaussian, rounded to bytes; the flow of the unrounded Gaussian costs
    their entropy, to 4 standard errors"""
    sigma = 0.25
    x = to_bytes(sigma * normal(3000, 1, 1, 1))
    var = torch.full((1, 1), sigma**2 + (2/255)**2 / 12)
    b = quiet(flow_bits, GaussianOracle(torch.zeros(1, 1, 1), var), COSINE, x.double(), probes=axes,
              times=COSINE.times(100), seed=0, batch_size=3000)
    P = np.diff(norm.cdf((np.arange(257) - 128) / 127.5, scale=sigma))
    P[0] += norm.cdf(-128 / 127.5, scale=sigma)
    P[-1] += norm.sf(128 / 127.5, scale=sigma)
    assert abs(b.total + (P * np.log2(P)).sum()) < 4 * b.error + 0.005

# ------------------------------------------------------------ rate and distortion
def test_rate_and_distortion_of_gaussian_data():
    """eq-rate-distortion: against closed forms; rates to 13 %, the MMSE to 4 standard errors of a
    mean of squares"""
    x = to_bytes(0.3 * normal(2000, 1, 1, 1)).double()
    oracle, times = GaussianOracle(torch.zeros(1, 1, 1), torch.full((1, 1), 0.09)), COSINE.times(12)
    c = quiet(rate_distortion, oracle, COSINE, x, times=times, seed=0, batch_size=2000)
    ab = COSINE.alpha_bar.numpy()[times[:-1]]
    mmse, snr = (1 - ab) * 0.09 / (ab * 0.09 + 1 - ab), ab / (1 - ab)
    np.testing.assert_allclose(c.distortion[:-1], 127.5 * mmse**0.5, rtol=4 * (2 / 2000)**0.5 / 2)
    rate = np.cumsum(0.5 * (snr[1:] - snr[:-1]) * mmse[:-1]) / math.log(2)
    np.testing.assert_allclose(c.rate[1:-1], rate, rtol=0.13, atol=1e-4)
    b = quiet(bound, oracle, COSINE, x, times=times, seed=0, batch_size=2000)
    assert c.t == times and c.distortion[-1] == 0 and abs(c.rate[-1] - b.total) < 6 * b.error

# ------------------------------------------------------------ no footprints, any batch
def cases(net, x, y=None, **kw):
    yield lambda **k: quiet(bound, net, SHORT, x, y, **kw, **k)
    yield lambda **k: quiet(bound, net, SHORT, x, y, draws=5, **kw, **k)
    yield lambda **k: quiet(flow_bits, net, SHORT, x, y, times=SHORT.times(10), **kw, **k)

@pytest.mark.parametrize('i', range(3))
def test_an_image_costs_the_same_in_any_batch(i):
    x, y, net = bytes_like(7), torch.arange(7) / 10, Denoiser(Net(), V)
    costs = [list(cases(net, x, y, seed=5))[i](batch_size=size).each for size in (1, 3, 64)]
    for c in costs[1:]: torch.testing.assert_close(c, costs[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(list(cases(net, x, y, seed=6))[i]().each, costs[0], atol=1e-3)

def test_rate_distortion_in_any_batch():
    net, x = Denoiser(Net(), V), bytes_like(7)
    a, b = (quiet(rate_distortion, net, SHORT, x, seed=5, batch_size=n) for n in (2, 7))
    torch.testing.assert_close(a.rate, b.rate, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(a.distortion, b.distortion, rtol=1e-5, atol=1e-5)

@pytest.mark.parametrize('i', range(3))
@pytest.mark.parametrize('surroundings', [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_no_footprints(i, surroundings):
    net, x = Denoiser(Net(), V), bytes_like()
    net.train(); net.net.conv.eval()
    state, before = torch.random.get_rng_state(), x.clone()
    with surroundings():
        enabled = torch.is_grad_enabled()
        list(cases(net, x, seed=0))[i]()
        assert torch.is_grad_enabled() == enabled
    assert net.training and net.net.drop.training and not net.net.conv.training
    assert all(p.grad is None for p in net.parameters())
    assert net.net.conv.weight.requires_grad and not net.net.frozen.requires_grad
    assert torch.equal(x, before) and not x.requires_grad
    assert torch.equal(state, torch.random.get_rng_state())

def test_modes_come_back_after_an_error():
    class Broken(nn.Module):
        def forward(self, x, level, y=None): raise RuntimeError('broken')
    net = Broken()
    for f in cases(net, bytes_like(), seed=0):
        with pytest.raises(RuntimeError, match='broken'): f()
        assert net.training and torch.is_grad_enabled()

def test_what_is_printed():
    b = Bound(2.4304, 0.0001, 1.455, 0.9756, 0.0251, 300, torch.zeros(300))
    assert str(b) == ('2.430 ± 0.025 bits per dimension of 300: '
                      'L_T 0.000 + L_t 1.455 + L_0 0.976')
    b = Bits(2.6234, 0.0557, 60, torch.zeros(60))
    assert str(b) == '2.623 ± 0.056 bits per dimension of 60'

# ------------------------------------------------------------ the codec
def wider(x0, x_t, t, s):
    q = q_posterior(x0, x_t, t, s)
    return Gaussian(q.mean, q.std * 1.5**0.5)

GLYPHS = torch.tensor([[0, 0, 1, 1], [1, 0, 1, 0], [1, 1, 1, 0]], dtype=torch.float64) - 0.5
def sent(n=24): return to_bytes(GLYPHS[torch.arange(n) % 3] + 0.1 * normal(n, 4)).view(n, 1, 2, 2)
WALK = dict(times=[1000, 496, 328, 189, 93, 0], posterior=wider, seed=3)

def test_a_file_of_the_defaults_holds_its_images():
    x, oracle = sent(9).float(), MixtureOracle(GLYPHS, 0.1)
    data = encode(oracle, COSINE, x, times=WALK['times'], patience=2**10)
    frames = list(decode(data, oracle, COSINE, x.shape, times=WALK['times']))
    assert isinstance(data, bytes) and torch.equal(to_uint8(frames[-1].x.float()), to_uint8(x))

def test_a_file_holds_its_images_and_costs_the_bound_and_a_price_for_each_draw():
    """eq-poisson: lossless; not below the bound by more than 4 standard errors, above it by at most
    4 bits a draw (KL + log2(KL + 1) + 4 is the theorem's)"""
    x, oracle = sent(), MixtureOracle(GLYPHS, 0.1)
    data = encode(oracle, COSINE, x, patience=2**13, **WALK)
    frames = list(decode(data, oracle, COSINE, x.shape, **WALK))
    assert [f.t for f in frames] == WALK['times']
    assert torch.equal(to_uint8(frames[-1].x.float()), to_uint8(x))
    b = quiet(bound, oracle, COSINE, x.double(), posterior=wider, times=WALK['times'], seed=0)
    bits = 8 * len(data) / x.numel()
    assert b.total - 4 * b.error < bits < b.total + 5 * 4 / 4

def test_the_first_bytes_give_the_first_frames():
    x, oracle = sent(), MixtureOracle(GLYPHS, 0.1)
    data = encode(oracle, COSINE, x, patience=2**13, **WALK)
    whole, reached = list(decode(data, oracle, COSINE, x.shape, **WALK)), []
    for n in range(0, len(data), 5):
        part = list(decode(data[:n], oracle, COSINE, x.shape, **WALK))
        assert len(part) < len(whole) and all(torch.equal(a.x, b.x) for a, b in zip(part, whole))
        reached.append(len(part))
    assert reached == sorted(reached) and reached[0] == 0 and reached[-1] >= 5
    error = [(f.x0 - x).square().mean().item() for f in whole]
    assert error[-1] < 1e-12 and error[3] < error[1] < error[0]

def test_the_chosen_draw_has_the_law_of_q():
    """eq-poisson: mean and variance in two dimensions to 4 standard errors of 3,000 draws, and the
    number's length below KL + 1.54 bits"""
    q, p = (np.array([0.4, -0.3]), np.array([0.5, 0.6])), (np.zeros(2), np.array([0.8, 0.75]))
    n = 3000
    numbers = [lib.choose_point(lib.shared_points(1, 2, i, 2), q, p) for i in range(n)]
    z = np.array([p[1] * lib.find_point(lib.shared_points(1, 2, i, 2), k)
                  for i, k in enumerate(numbers)])
    assert (abs(z.mean(0) - q[0]) < 4 * q[1] / n**0.5).all()
    assert (abs(z.var(0) / q[1]**2 - 1) < 4 * (2 / n)**0.5).all()
    assert abs(np.corrcoef(z.T)[0, 1]) < 4 / n**0.5
    q, p = (Gaussian(*map(torch.from_numpy, g)) for g in (q, p))
    kl = q.kl(p).sum().item() / math.log(2)
    assert np.log2(numbers).mean() < kl + 1.54

def test_the_arithmetic_code_reaches_the_entropy_and_stops_where_bytes_stop():
    """Any symbols come back; the length is the sum of -log2 P, rounded up to bytes, and no more
    than one byte above"""
    rng = np.random.default_rng(0)
    def table(k): return [0, *np.cumsum(rng.integers(1, 50, size=k)).tolist()]
    tables = [table(k) for k in rng.integers(2, 9, 300)]
    symbols = [int(rng.integers(len(t) - 1)) for t in tables]
    writer, bits = lib.ArithmeticEncoder(), 0.
    for t, s in zip(tables, symbols):
        assert writer.code(t, s) == s
        bits -= math.log2((t[s + 1] - t[s]) / t[-1])
    data = writer.to_bytes()
    assert bits / 8 <= len(data) <= bits / 8 + 2
    for more in (b'', b'\x00', b'\xff\xff'):
        reader = lib.ArithmeticDecoder(data + more)
        assert [reader.code(t) for t in tables] == symbols
    reader, got = lib.ArithmeticDecoder(data[:20]), []
    with pytest.raises(EOFError):
        for t in tables: got.append(reader.code(t))
    assert 0 < len(got) < 300 and got == symbols[:len(got)]

@pytest.mark.parametrize('numbers', [[1], [1, 2, 3, 4, 5, 1000, 65536, 7, 1, 1],
                                     list(range(1, 70))])
def test_numbers_come_back(numbers):
    writer, seen = lib.ArithmeticEncoder(), []
    for k in numbers: lib.code_integer(writer, k, seen)
    reader, seen = lib.ArithmeticDecoder(writer.to_bytes()), []
    assert [lib.code_integer(reader, None, seen) for _ in numbers] == numbers

# ------------------------------------------------------------ refusals
@pytest.mark.parametrize('f, error, says', [
    (lambda x, n: quiet(bound, n, SHORT, (x + 1) / 2), ValueError, 'gray values'),
    (lambda x, n: quiet(bound, n, SHORT, x * 1.5), ValueError, 'gray values'),
    (lambda x, n: quiet(flow_bits, n, SHORT, x + 0.001), ValueError, 'width=None'),
    (lambda x, n: quiet(bound, n, SHORT, to_uint8(x)), TypeError, 'to_float'),
    (lambda x, n: quiet(bound, n, SHORT, x[:1]), ValueError, 'at least two'),
    (lambda x, n: quiet(bound, n, SHORT, x * float('nan')), ValueError, 'not finite'),
    (lambda x, n: quiet(bound, n, SHORT, x, torch.zeros(3)), ValueError, '3 labels'),
    (lambda x, n: quiet(bound, n, SHORT, x, draws=0), ValueError, 'outside 1..39'),
    (lambda x, n: quiet(bound, n, SHORT, x, draws=40), ValueError, 'outside 1..39'),
    (lambda x, n: quiet(bound, n, SHORT, x, times=[40, 0]), ValueError, 'at least 2 steps'),
    (lambda x, n: quiet(bound, n, SHORT, x, times=[40, 20, 1]), ValueError, 'to 0'),
    (lambda x, n: quiet(flow_bits, n, SHORT, x, times=[40, 20, 30, 0]), ValueError, 'must fall'),
    (lambda x, n: quiet(flow_bits, n, SHORT, x, times=[41, 0]), ValueError, '41'),
    (lambda x, n: quiet(flow_bits, n, SHORT, x, width=-1.), ValueError, 'width = -1'),
    (lambda x, n: quiet(flow_bits, n, SHORT, x, probes=rademacher(0)), ValueError, 'n = 0 probes'),
    (lambda x, n: quiet(bound, n, SHORT, x, batch_size=0), ValueError, 'batch_size = 0'),
    (lambda x, n: quiet(bound, n, SHORT, x, seed=-1), ValueError, 'seed = -1'),
    (lambda x, n: encode(n, SHORT, x, times=[40, 20, 0], posterior=q_posterior),
     ValueError, 'p is wider'),
    (lambda x, n: encode(n, SHORT, (x + 1) / 2, times=[40, 20, 0]), ValueError, 'gray values'),
])
def test_refusals(f, error, says):
    oracle = MixtureOracle(torch.zeros(1, 1, 4, 4), 0.3)
    with pytest.raises(error, match=says): f(bytes_like(), oracle)

def test_the_shipped_network():
    "A number that a digit network must reach: far below the 8 bits of no model, above 0"
    from diffusion_scratch.pretrained import load
    network, schedule = load('mnist-mini')
    x, y = mnist_mini()[100::600]
    right = quiet(bound, network, schedule, x, y, draws=6, seed=0)
    assert 1 < right.total < 4
