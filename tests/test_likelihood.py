"The bound, the flow and the codec: against closed forms, quadrature, exact traces and the bytes"
import math
import numpy as np, pytest, torch
from conftest import Labelled, gen, moments, randn
from scipy.stats import norm
from diffusion_scratch.data import mnist_mini, to_float, to_uint8
from diffusion_scratch.denoiser import V, X0, Denoiser
from diffusion_scratch.likelihood import (
    ArithmeticDecoder, ArithmeticEncoder, Bits, Bound, axes, bound, choose_point, code_integer,
    decode, density_nll, encode, find_point, flow_bits, gaussian, rademacher, rate_distortion,
    shared_points, step_probabilities, stratified_steps)
from diffusion_scratch.loss import vlb_terms
from diffusion_scratch.noising import Gaussian, q_posterior
from diffusion_scratch.oracle import GaussianOracle, MixtureOracle
from diffusion_scratch.pretrained import load
from diffusion_scratch.sampling import fixed_large
from diffusion_scratch.schedule import (Schedule, cosine_betas, linear_betas, log_snr, trailing,
                                        zero_terminal_snr)

LINEAR, COSINE = Schedule(linear_betas()), Schedule(cosine_betas())
SHORT, MU, SIGMA = Schedule(linear_betas(40, 1e-3, 0.4)), 0.2, 0.5
ENTROPY = math.log2(SIGMA * math.sqrt(2 * math.pi * math.e))
PIXEL = GaussianOracle(torch.full((1,), MU), torch.full((1, 1), SIGMA**2))
DENSITY = dict(seed=0, batch_size=4000, decoder=density_nll)
EXACT = dict(width=None, probes=axes)
def draws(n, seed=0): return MU + SIGMA * randn(n, 1, seed=seed)
def to_bytes(x): return to_float(to_uint8(x.float()))
def bytes_like(n): return to_bytes(2 * torch.rand(n, 1, 4, 4, generator=gen()) - 1)

@pytest.mark.parametrize('schedule, times', [(SHORT, None), (LINEAR, LINEAR.times(25)),
                                             (COSINE, COSINE.times(30, log_snr))])
def test_bound_of_gaussian_data_is_the_closed_form(schedule, times):
    "eq-bound-parts, eq-density-decoder, eq-gaussian-bound: to 4 standard errors of 4,000 images"
    b = bound(PIXEL, schedule, draws(4000), times=times, **DENSITY)
    ab = schedule.alpha_bar.numpy()[times or schedule.times(schedule.T)]
    snr = ab[:-1] / (1 - ab[:-1])
    mmse = (1 - ab[:-1]) * SIGMA**2 / (ab[:-1] * SIGMA**2 + 1 - ab[:-1])
    L_T = 0.5 * (ab[0] * (MU**2 + SIGMA**2 - 1) - np.log(1 - ab[0])) / math.log(2)
    L_t = 0.5 * ((snr[1:] - snr[:-1]) * mmse[:-1]).sum() / math.log(2)
    var = (1 - ab[-2]) * (1 - snr[-2] / snr[-1])  # of the step before the last
    L_0 = (0.5 * np.log(2 * np.pi * var) + mmse[-1] / (2 * var)) / math.log(2)
    assert abs(b.total - L_T - L_t - L_0) < 4 * b.error and b.L_T == pytest.approx(L_T, abs=0.02)
    assert b.total > ENTROPY - 4 * b.error and b.total == pytest.approx(b.each.mean().item())
    assert b.L_T + b.L_t + b.L_0 == pytest.approx(b.total, abs=1e-9)
    assert b.n == 4000 and b.error == pytest.approx(b.each.std().item() / 4000**0.5)

def test_bound_and_vlb_terms_are_the_same_average():
    "Two implementations that share formulas, not noise; bytes, a wider step; 4 standard errors"
    x, net = bytes_like(400), Denoiser(Labelled(), X0)
    theirs = vlb_terms(net, SHORT, x, posterior=fixed_large, generator=gen()).double()
    ours = bound(net, SHORT, x, posterior=fixed_large, seed=1)
    for a, b in ((ours.L_T, theirs[-1]), (ours.L_t, theirs[1:-1].sum(0)), (ours.L_0, theirs[0])):
        assert abs(a - b.mean()) < 1e-6 + 6 * b.std() / 20
    gap = ours.each - theirs.sum(0)
    assert abs(gap.mean()) < 4 * gap.std() / 20

@pytest.mark.parametrize('m', [1, 3, 17])
def test_some_steps_stand_for_all(m):
    "eq-slices, eq-standard-cost: integrated over u any terms come out whole"
    times, n = LINEAR.times(100), 200_000
    share, ab = step_probabilities(LINEAR, times), LINEAR.alpha_bar.numpy()[times[:-1]]
    cost = np.diff(ab / (1 - ab)) * (1 - ab[:-1])
    np.testing.assert_allclose(share, 0.5 * cost / cost.sum() + 0.5 / 99, rtol=1e-9)
    terms = torch.rand(99, generator=gen(), dtype=torch.float64)
    k, w = stratified_steps(share, m, (torch.arange(n, dtype=torch.float64) + 0.5) / n)
    assert k.shape == w.shape == (m, n) and (k >= 0).all() and (k < 99).all()
    assert (w * terms[k]).sum(0).mean() == pytest.approx(terms.sum().item(), rel=1e-3)

def test_the_cheap_estimate_is_unbiased_and_its_error_correct():
    "eq-slices: against all steps on the same images, 4 standard errors of the difference"
    whole, some = (bound(PIXEL, SHORT, draws(3000, 2), draws=m, **DENSITY | dict(seed=seed))
                   for m, seed in ((None, 0), (4, 1)))
    gap = some.each - whole.each
    assert abs(gap.mean()) < 4 * gap.std() / 3000**0.5 and some.error >= 0.9 * whole.error

@pytest.mark.parametrize('schedule, spacing', [
    (LINEAR, log_snr), (COSINE, trailing), (Schedule(zero_terminal_snr(linear_betas())), trailing)])
def test_flow_of_a_gaussian_converges_with_order_two(schedule, spacing):
    """eq-log-density, eq-angle-flow, eq-heun-angle, eq-gaussian-density: bits of the flow's own
    density, N(0, 1) at its end. Error below 2e-3 at 100 steps, and quartered when steps double"""
    x, ab = draws(200, 3), schedule.alpha_bar[-1].item()
    r = math.sqrt((ab * SIGMA**2 + 1 - ab) / SIGMA**2)  # signal_T times the stretch
    z = math.sqrt(ab) * MU + (x[:, 0] - MU) * r
    want = -(torch.from_numpy(norm.logpdf(z)) + math.log(r)) / math.log(2)
    walks = (schedule.times(n, spacing) for n in (25, 50, 100))
    found = [flow_bits(PIXEL, schedule, x, times=t, batch_size=200, **EXACT).each for t in walks]
    error = [(each - want).abs().mean().item() for each in found]
    assert error[-1] < 2e-3 and all(1.7 < math.log2(a / b) < 2.4 for a, b in zip(error, error[1:]))

def test_flow_of_correlated_pixels_and_of_a_mixture_has_their_density():
    """eq-log-density with a Jacobian that is not diagonal, to 3e-3 bits, of which N(0, I) at T
    misses 1e-3; and where the flow bends, the tails and the valley of two hills, to 0.01"""
    a, mean = torch.randn(3, 3, generator=gen()).double(), torch.tensor([0.1, -0.2, 0.3]).double()
    cov = 0.2 * a @ a.T + 0.1 * torch.eye(3)
    law = torch.distributions.MultivariateNormal(mean, cov)
    x = mean + randn(50, 3, seed=1) @ torch.linalg.cholesky(cov).T
    m, s, w = torch.tensor([[-0.5, 0.4], [0.2, 0.3], [0.3, 0.7]]).double()
    z = torch.linspace(-1.2, 1.4, 30, dtype=torch.float64)[:, None]
    hills = (w * torch.from_numpy(norm.pdf(z, m, s))).sum(1)
    for oracle, x, log_p, tolerance in (
            (GaussianOracle(mean, cov), x, law.log_prob(x) / 3, 3e-3),
            (MixtureOracle(m[:, None], s, w), z, hills.log(), 0.01)):
        b = flow_bits(oracle, COSINE, x, times=COSINE.times(250), **EXACT)
        assert (b.each + log_p / math.log(2)).abs().max() < tolerance

def test_random_probes_find_the_exact_number():
    "eq-hutchinson in a walk: 400 copies of one image average to the bits of the exact trace"
    a, times = randn(8, 8, seed=4), COSINE.times(20)
    oracle = GaussianOracle(torch.zeros(8), 0.1 * a @ a.T + 0.2 * torch.eye(8))
    x = randn(1, 8, seed=5).expand(400, 8)
    exact = flow_bits(oracle, COSINE, x[:2], times=times, **EXACT).total
    for probes in (rademacher(), gaussian(2)):
        some = dict(times=times, seed=0, batch_size=400, width=None, probes=probes)
        b = flow_bits(oracle, COSINE, x, **some)
        assert abs(b.total - exact) < 4 * b.error and b.error > 0

def test_dequantised_bytes_cost_the_bits_of_their_bins():
    "eq-dequantise: the flow of a broad Gaussian costs its bytes' entropy, to 4 standard errors"
    x, var = to_bytes(0.25 * randn(3000, 1)).double(), torch.tensor([[0.25**2 + (2/255)**2 / 12]])
    walk = dict(times=COSINE.times(100), seed=0, batch_size=3000)
    b = flow_bits(GaussianOracle(torch.zeros(1), var), COSINE, x, probes=axes, **walk)
    edges = np.r_[-np.inf, (np.arange(1, 256) - 128) / 127.5, np.inf]
    P = np.diff(norm.cdf(edges, scale=0.25))
    assert abs(b.total + (P * np.log2(P)).sum()) < 4 * b.error + 0.005

def test_rate_and_distortion_of_gaussian_data():
    "eq-rate-distortion: rates to 13 %, the MMSE to 4 standard errors of a mean of squares"
    x, times = to_bytes(0.3 * randn(2000, 1)).double(), COSINE.times(12)
    walk = dict(times=times, seed=0, batch_size=2000)
    of = GaussianOracle(torch.zeros(1), torch.tensor([[0.09]])), COSINE, x
    c, b = rate_distortion(*of, **walk), bound(*of, **walk)
    ab = COSINE.alpha_bar.numpy()[times[:-1]]
    mmse, snr = (1 - ab) * 0.09 / (ab * 0.09 + 1 - ab), ab / (1 - ab)
    np.testing.assert_allclose(c.distortion[:-1], 127.5 * mmse**0.5, rtol=4 * (2 / 2000)**0.5 / 2)
    rate = np.cumsum(0.5 * (snr[1:] - snr[:-1]) * mmse[:-1]) / math.log(2)
    np.testing.assert_allclose(c.rate[1:-1], rate, rtol=0.13, atol=1e-4)
    assert c.t == times and c.distortion[-1] == 0 and abs(c.rate[-1] - b.total) < 6 * b.error

MEASURES = {
    'bound': lambda *a, **kw: bound(*a, **kw).each,
    'some steps': lambda *a, **kw: bound(*a, draws=5, **kw).each,
    'flow': lambda *a, **kw: flow_bits(*a, times=SHORT.times(10), **kw).each,
    'curve': lambda *a, **kw: torch.cat(rate_distortion(*a, **kw)[1:])}
every_measure = pytest.mark.parametrize('measure', MEASURES.values(), ids=MEASURES)

@every_measure
def test_an_image_costs_the_same_in_any_batch(measure):
    x, y, net = bytes_like(7), torch.arange(7) % 4, Denoiser(Labelled(dropout=0.5), V)
    whole, *others = (measure(net, SHORT, x, y, seed=5, batch_size=n) for n in (64, 1, 3))
    for other in others: torch.testing.assert_close(other, whole, rtol=1e-5, atol=1e-5)
    for y, seed in ((y, 6), (None, 5)):
        assert not torch.allclose(measure(net, SHORT, x, y, seed=seed), whole, atol=1e-3)

@every_measure
@pytest.mark.parametrize('surroundings', [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_no_footprints(measure, surroundings):
    "Nor after an error, of a label that the network does not have"
    net, x = Denoiser(Labelled(dropout=0.5), V).train(), bytes_like(6)
    net.net.label.eval().requires_grad_(False)
    def seen():
        weights = [(p.grad, p.requires_grad) for p in net.parameters()]
        world = torch.random.get_rng_state().tolist(), torch.is_grad_enabled()
        return [m.training for m in net.modules()], weights, x.tolist(), x.requires_grad, *world
    with surroundings():
        before = seen()
        measure(net, SHORT, x, seed=0)
        assert seen() == before
        with pytest.raises(IndexError): measure(net, SHORT, x, torch.full((6,), 9), seed=0)
        assert seen() == before
    assert torch.is_grad_enabled()

def test_what_is_printed():
    b = Bound(2.4304, 0.0001, 1.455, 0.9756, 0.0251, 300, torch.zeros(300))
    assert str(b) == '2.430 ± 0.025 bits per dimension of 300: L_T 0.000 + L_t 1.455 + L_0 0.976'
    assert str(Bits(2.6234, 0.0557, 60, 0)) == '2.623 ± 0.056 bits per dimension of 60'

def wider(x0, x_t, t, s):
    q = q_posterior(x0, x_t, t, s)
    return Gaussian(q.mean, q.std * 1.5**0.5)

GLYPHS = torch.tensor([[0, 0, 1, 1], [1, 0, 1, 0], [1, 1, 1, 0]], dtype=torch.float64) - 0.5
SENT = to_bytes(GLYPHS.repeat(8, 1) + 0.1 * randn(24, 4)).view(24, 1, 2, 2)
CODE, TIMES = (MixtureOracle(GLYPHS, 0.1), COSINE), [1000, 496, 328, 189, 93, 0]
WALK = dict(times=TIMES, posterior=wider, seed=3)

def test_a_file_holds_its_images_and_costs_the_bound_and_a_price_for_each_draw():
    """eq-poisson: lossless, by the defaults too; within 4 standard errors below the bound and 4
    bits a draw above (by the theorem KL + log2(KL + 1) + 4); first bytes give first frames"""
    for x, patience, walk in ((SENT[:9], 2**10, dict(times=TIMES)), (SENT, 2**13, WALK)):
        data = encode(*CODE, x, patience=patience, **walk)
        whole = list(decode(data, *CODE, x.shape, **walk))
        assert isinstance(data, bytes) and [f.t for f in whole] == TIMES
        assert torch.equal(to_uint8(whole[-1].x.float()), to_uint8(x))
    b = bound(*CODE, SENT.double(), posterior=wider, times=TIMES, seed=0)
    assert b.total - 4 * b.error < 8 * len(data) / SENT.numel() < b.total + 5 * 4 / 4
    parts = [list(decode(data[:n], *CODE, x.shape, **WALK)) for n in range(0, len(data), 5)]
    for part in parts: assert all(torch.equal(a.x, b.x) for a, b in zip(part, whole))
    reached = [len(part) for part in parts]
    assert reached == sorted(reached) and reached[0] == 0 and 5 <= reached[-1] < len(whole)
    error = [(f.x0 - x).square().mean().item() for f in whole]
    assert error[-1] < 1e-12 and error[3] < error[1] < error[0]

def test_the_chosen_draw_has_the_law_of_q():
    "eq-poisson: moments to 4.5 standard errors of 3,000 draws; length below KL + 1.54 bits"
    q, p, n = np.array([[0.4, -0.3], [0.5, 0.6]]), np.array([[0, 0], [0.8, 0.75]]), 3000
    numbers = [choose_point(shared_points(1, 2, i, 2), q, p) for i in range(n)]
    z = [p[1] * find_point(shared_points(1, 2, i, 2), k) for i, k in enumerate(numbers)]
    z, q, p = (torch.from_numpy(np.array(a)) for a in (z, q, p))
    moments(z, *q)
    assert abs(z.T.corrcoef()[0, 1]) < 4 / n**0.5
    kl = Gaussian(*q).kl(Gaussian(*p)).sum().item() / math.log(2)
    assert np.log2(numbers).mean() < kl + 1.54

def test_the_arithmetic_code_reaches_the_entropy_and_stops_where_bytes_stop():
    "Any symbols and numbers come back; the length is the sum of -log2 P, and a byte at most"
    rng, writer = np.random.default_rng(0), ArithmeticEncoder()
    sizes = rng.integers(2, 9, 300)
    tables = [[0, *np.cumsum(rng.integers(1, 50, size=k)).tolist()] for k in sizes]
    symbols = [int(rng.integers(len(t) - 1)) for t in tables]
    assert [writer.code(t, s) for t, s in zip(tables, symbols)] == symbols
    bits = -sum(math.log2((t[s + 1] - t[s]) / t[-1]) for t, s in zip(tables, symbols))
    data = writer.to_bytes()
    assert bits / 8 <= len(data) <= bits / 8 + 2
    for more in (b'', b'\x00', b'\xff\xff'):
        reader = ArithmeticDecoder(data + more)
        assert [reader.code(t) for t in tables] == symbols
    reader, got = ArithmeticDecoder(data[:20]), []
    with pytest.raises(EOFError):
        for t in tables: got.append(reader.code(t))
    assert 0 < len(got) < 300 and got == symbols[:len(got)]
    for numbers in ([1], [1, 2, 3, 4, 5, 1000, 65536, 7, 1, 1], [*range(1, 70)]):
        writer, sent, seen = ArithmeticEncoder(), [], []
        for k in numbers: code_integer(writer, k, sent)
        reader = ArithmeticDecoder(writer.to_bytes())
        assert [code_integer(reader, None, seen) for _ in numbers] == numbers

BYTES, CODED = bytes_like(6), dict(times=[40, 20, 0])

@pytest.mark.parametrize('f, options, says', [
    (bound, dict(x0=(BYTES + 1) / 2), 'gray values'), (bound, dict(x0=BYTES * 1.5), 'gray values'),
    (encode, dict(CODED, x0=(BYTES + 1) / 2), 'gray values'), (bound, dict(seed=-1), 'seed = -1'),
    (bound, dict(x0=BYTES * math.nan), 'not finite'), (bound, dict(x0=BYTES[:1]), 'at least two'),
    (flow_bits, dict(x0=BYTES + 0.001), 'width=None'), (bound, dict(y=torch.zeros(3)), '3 labels'),
    (bound, dict(draws=0), 'outside 1..39'), (bound, dict(times=[40, 0]), 'at least 2 steps'),
    (bound, dict(times=[40, 20, 1]), 'to 0'), (flow_bits, dict(times=[40, 20, 30, 0]), 'must fall'),
    (flow_bits, dict(times=[41, 0]), '41'), (flow_bits, dict(width=-1.), 'width = -1'),
    (bound, dict(batch_size=0), 'batch_size = 0'), (bound, dict(draws=40), 'outside 1..39'),
    (encode, dict(CODED, posterior=q_posterior), 'p is wider'),
    (bound, dict(x0=to_uint8(BYTES)), 'to_float'), (rademacher, dict(n=0), 'n = 0 probes')])
def test_refusals(f, options, says):
    oracle = MixtureOracle(torch.zeros(1, 1, 4, 4), 0.3)
    given = {} if f is rademacher else dict(denoiser=oracle, schedule=SHORT, x0=BYTES)
    error = TypeError if says == 'to_float' else ValueError
    with pytest.raises(error, match=says): f(**given | options)

def test_the_shipped_network():
    "A number that a digit network must reach: far below the 8 bits of no model, above 0"
    assert 1 < bound(*load('mnist-mini'), *mnist_mini()[100::600], draws=6, seed=0).total < 4
