"The loss, its weights and the variational bound, against closed forms, quadrature and scipy"
import math
import numpy as np, pytest, scipy.stats, torch
from torch import nn
from diffusion_scratch.data import mnist_mini
from diffusion_scratch.denoiser import EPS, V, X0, Denoiser, Prediction
from diffusion_scratch.loss import (
    decoder_nll,
    diffusion_loss,
    min_snr,
    uniform,
    v_weight,
    vlb_terms,
    vlb_weight,
    x0_weight,
)
from diffusion_scratch.noising import Gaussian, q_sample
from diffusion_scratch.oracle import GaussianOracle, MixtureOracle
from diffusion_scratch.sampling import fixed_large
from diffusion_scratch.schedule import Schedule, cosine_betas, linear_betas, zero_terminal_snr

LINEAR = Schedule(linear_betas())
def gen(seed=0): return torch.Generator().manual_seed(seed)
def levels(schedule, like=1):
    return schedule.at(torch.arange(1, schedule.T + 1), torch.zeros(schedule.T, *[1] * like))
def oracle(mu=0.2, sigma=0.5):
    return GaussianOracle(torch.full((1,), mu), torch.full((1, 1), sigma**2))
def gaussian_data(n, mu=0.2, sigma=0.5, seed=0):
    return mu + sigma * torch.randn(n, 1, generator=gen(seed), dtype=torch.float64)

class Net(nn.Module):
    "Some network; with dropout, so that its mode matters"
    def __init__(self, p=0.0):
        super().__init__()
        self.w, self.drop = nn.Parameter(torch.tensor(0.3)), nn.Dropout(p)
    def forward(self, x, t, y=None):
        return self.drop(self.w * x + (0 if y is None else y.view(-1, *[1] * (x.ndim - 1))))

# ------------------------------------------------------------ weights
@pytest.mark.parametrize(
    'betas', [linear_betas(), cosine_betas(50), zero_terminal_snr(linear_betas(100))]
)
def test_weights_are_functions_of_alpha_bar(betas):
    S = Schedule(betas)
    ab = S.alpha_bar.numpy()[1:]
    snr = ab / (1 - ab)
    for weight, want in (
        (uniform, snr),
        (x0_weight, np.ones_like(snr)),
        (v_weight, snr + 1),
        (min_snr(), np.minimum(snr, 5)),
        (min_snr(0.1), np.minimum(snr, 0.1)),
    ):
        w = weight(levels(S))
        assert w.shape == (S.T, 1)
        np.testing.assert_allclose(w.flatten(), want, rtol=1e-9)

@pytest.mark.parametrize(
    'betas', [linear_betas(), cosine_betas(50), zero_terminal_snr(linear_betas(100))]
)
def test_vlb_weight(betas):
    S = Schedule(betas)
    ab = S.alpha_bar.numpy()
    beta = 1 - ab[2:] / ab[1:-1]
    posterior_var = (1 - ab[1:-1]) / (1 - ab[2:]) * beta            # Ho et al. 2020, eq. 7
    in_mean = np.sqrt(ab[1:-1]) * beta / (1 - ab[2:])
    w = vlb_weight(S)(levels(S)).flatten().numpy()
    np.testing.assert_allclose(w[1:], in_mean**2 / (2 * posterior_var), rtol=1e-7)
    # t = 1: finite, L_0's Gaussian
    assert w[0] == pytest.approx(1 / (2 * posterior_var[0]), rel=1e-9)

def test_vlb_weight_in_any_order_and_shape():
    t = torch.tensor([7, 1, 1000, 1])
    w, all_ = vlb_weight(LINEAR)(LINEAR.at(t, torch.zeros(4, 3, 2, 2))), vlb_weight(LINEAR)(
        levels(LINEAR, 3)
    )
    assert w.shape == (4, 1, 1, 1) and torch.equal(w, all_[t - 1])

def test_vlb_weight_needs_two_steps():
    with pytest.raises(ValueError, match='at least 2 steps'): vlb_weight(Schedule([0.5]))

# ------------------------------------------------------------ diffusion_loss
@pytest.mark.parametrize(
    'parameterization, weight', [(EPS, uniform), (X0, x0_weight), (V, v_weight)]
)
def test_each_weight_is_the_plain_mse_of_its_own_target(parameterization, weight):
    "eq-simple for EPS, and its siblings (eq-error-weights)"
    x0 = torch.rand(64, 3, 4, 4, generator=gen(), dtype=torch.float64) * 2 - 1
    found = diffusion_loss(
        Denoiser(Net(), parameterization), LINEAR, x0, weight=weight, generator=gen(1)
    )
    g = gen(1)
    t = torch.randint(1, 1001, (64,), generator=g)
    eps = torch.randn(x0.shape, generator=g, dtype=x0.dtype)
    a = LINEAR.alpha_bar[t].view(-1, 1, 1, 1)
    x_t = a.sqrt() * x0 + (1 - a).sqrt() * eps
    target = {'eps': eps, 'x0': x0, 'v': a.sqrt() * eps - (1 - a).sqrt() * x0}[
        parameterization.name
    ]
    torch.testing.assert_close(
        found, (target - 0.3 * x_t).square().mean((1, 2, 3)), rtol=1e-7, atol=1e-9
    )

def test_float32_is_accurate_at_every_level():
    x0 = torch.rand(1000, 1, 4, 4, generator=gen()) * 2 - 1
    class All(nn.Module):  # one image at each level, the noise known
        def forward(self, x, t): return torch.zeros_like(x)
    for weight, p in ((uniform, EPS), (v_weight, V), (vlb_weight(LINEAR), V)):
        single = diffusion_loss(Denoiser(All(), p), LINEAR, x0, weight=weight, generator=gen(3))
        g = gen(3)
        t, eps = (
            torch.randint(1, 1001, (1000,), generator=g),
            torch.randn(x0.shape, generator=g).double(),
        )
        level = LINEAR.at(t, x0)
        error = Denoiser(All(), p)(q_sample(x0.double(), level, eps), level).x0 - x0.double()
        torch.testing.assert_close(
            single.double(), (weight(level) * error**2).mean((1, 2, 3)), rtol=3e-3, atol=0
        )

def test_every_timestep_is_drawn_equally():
    seen = []
    class Spy(nn.Module):
        def forward(self, x, t): seen.append(t); return x
    S = Schedule(linear_betas(10))
    diffusion_loss(Denoiser(Spy()), S, torch.zeros(20_000, 1), generator=gen())
    count = torch.bincount(seen[0], minlength=11)
    assert count[0] == 0 and len(count) == 11
    assert scipy.stats.chisquare(count[1:].numpy()).pvalue > 1e-4

@pytest.mark.parametrize('weight', [uniform, x0_weight, v_weight, min_snr(5.)])
def test_mean_over_t_of_the_exact_denoiser(weight):
    n, lv = 100_000, levels(LINEAR)
    loss = diffusion_loss(oracle(), LINEAR, gaussian_data(n), weight=weight, generator=gen(1))
    exact = (weight(lv) * 1 / (1 / 0.25 + lv.snr)).mean()
    assert abs(loss.mean() - exact) < 5 * loss.std() / math.sqrt(n)

def test_no_denoiser_beats_the_exact_one():
    class Scaled(nn.Module):
        def __init__(self, by): super().__init__(); self.by = by
        def forward(self, x, level, y=None):
            return Prediction(self.by * oracle()(x, level).x0, x, level)
    x0 = gaussian_data(50_000)
    of = {
        by: diffusion_loss(Scaled(by), LINEAR, x0, weight=x0_weight, generator=gen(1)).mean()
        for by in (0.9, 1.0, 1.1)
    }
    assert of[1.] < of[0.9] and of[1.] < of[1.1]

def test_loss_of_an_image_is_its_own():
    "One number an image, and no image's loss depends on another's pixels"
    x0 = torch.rand(8, 1, 5, 5, generator=gen())
    a = diffusion_loss(Denoiser(Net()), LINEAR, x0, generator=gen(1))
    x0[3] += 1
    b = diffusion_loss(Denoiser(Net()), LINEAR, x0, generator=gen(1))
    assert a.shape == (8,) and (a != b).tolist() == [i == 3 for i in range(8)]

def test_gradients_labels_and_footprints():
    x0, y = torch.rand(8, 1, 5, 5, generator=gen()), torch.arange(8)
    before, rng = x0.clone(), torch.random.get_rng_state()
    d = Denoiser(Net())
    with_y = diffusion_loss(d, LINEAR, x0, y, generator=gen(1))
    assert not torch.allclose(with_y, diffusion_loss(d, LINEAR, x0, generator=gen(1)))
    with_y.mean().backward()
    assert d.net.w.grad.abs() > 0 and d.training
    assert torch.equal(x0, before) and torch.equal(torch.random.get_rng_state(), rng)

def test_without_a_generator_torchs_own_is_used():
    x0 = torch.zeros(8, 2)
    draw = lambda: diffusion_loss(Denoiser(Net()), LINEAR, x0)
    with torch.random.fork_rng():
        torch.manual_seed(5); a = draw(); b = draw()
        torch.manual_seed(5); c = draw()
    assert torch.equal(a, c) and not torch.equal(a, b)

def test_bytes_are_refused():
    with pytest.raises(TypeError, match='torch.uint8.*to_float'):
        diffusion_loss(Denoiser(Net()), LINEAR, torch.zeros(2, 1, 4, 4, dtype=torch.uint8))

def test_zero_terminal_snr():
    S, x0 = Schedule(zero_terminal_snr(linear_betas(2))), torch.rand(64, 2, generator=gen())
    for weight in (uniform, v_weight, min_snr(), vlb_weight(S)):
        assert (
            diffusion_loss(Denoiser(Net(), V), S, x0, weight=weight, generator=gen())
            .isfinite()
            .all()
        )
    with pytest.raises(ValueError, match='predict V or X0'):
        diffusion_loss(Denoiser(Net(), EPS), S, x0, generator=gen())

# ------------------------------------------------------------ decoder
GRAYS = torch.arange(256, dtype=torch.float64) / 127.5 - 1

@pytest.mark.parametrize('mean', [-1.3, -1., -0.2, 0.5, 0.999, 1.2])
@pytest.mark.parametrize('std', [0.003, 0.05, 0.7])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_decoder_is_scipys_interval_probability(mean, std, dtype):
    z = lambda x: (x - mean) / std
    g = GRAYS.numpy()
    lo, hi = np.where(g < -0.999, -np.inf, z(g - 1/255)), np.where(g > 0.999, np.inf, z(g + 1/255))
    p = np.where(
        lo > 0,
        scipy.stats.norm.sf(lo) - scipy.stats.norm.sf(hi),
        scipy.stats.norm.cdf(hi) - scipy.stats.norm.cdf(lo),
    )
    nll = decoder_nll(
        GRAYS.to(dtype), Gaussian(torch.tensor(mean, dtype=dtype), torch.tensor(std, dtype=dtype))
    )
    # float32 rounds z where std is small
    tolerance = dict(rtol=1e-9, atol=1e-9) if dtype == torch.float64 else dict(rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(nll.double(), -np.log(np.maximum(p, 1e-12)), **tolerance)
    if dtype == torch.float64: assert (-nll).exp().sum() == pytest.approx(1, abs=1e-9)

def test_decoder_is_symmetric_in_float32():
    "Black on white costs what white on black costs: the upper tail is as exact as the lower"
    x, mean = GRAYS.float(), torch.linspace(-1, 1, 256)
    a, b = (decoder_nll(s * x[:, None], Gaussian(s * mean, torch.tensor(0.05))) for s in (1, -1))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert 27 < a.max() < 27.7

# ------------------------------------------------------------ the bound
def test_terms_of_known_data():
    "Order, shape and L_T of chosen images, in float32, more than one pixel"
    S, x0 = Schedule(linear_betas(20, 1e-3, 0.3)), torch.rand(3, 1, 4, 4, generator=gen()) * 2 - 1
    terms = vlb_terms(Denoiser(Net()), S, x0, generator=gen())
    a = S.alpha_bar[-1]
    L_T = 0.5 * (a * (x0.double()**2 - 1) - (1 - a).log()).mean((1, 2, 3)) / math.log(2)
    assert terms.shape == (21, 3) and terms.isfinite().all() and (terms >= 0).all()
    torch.testing.assert_close(terms[-1].double(), L_T, rtol=1e-4, atol=1e-7)

@pytest.mark.parametrize('posterior', ['small', 'large'])
def test_every_step_has_its_closed_form(posterior):
    """Each L_{t-1} of the exact Gaussian denoiser, both variances
    (eq-snr-difference, eq-gaussian-bound)"""
    S, n = Schedule(linear_betas(10, 0.01, 0.6)), 40_000
    ab, snr = S.alpha_bar, S.alpha_bar[1:] / (1 - S.alpha_bar[1:])
    mmse = 1 / (4 + snr)
    r = 1.
    exact = 0.5 * (snr[:-1] - snr[1:]) * mmse[1:]
    if posterior == 'large':
        r = (1 - ab[1:-1]) / (1 - ab[2:])  # ratio of the posterior's variance to the forward step's
        exact = r * exact + 0.5 * (r - 1 - r.log())
    terms = vlb_terms(
        oracle(),
        S,
        gaussian_data(n),
        generator=gen(1),
        **({} if posterior == 'small' else dict(posterior=fixed_large))
    )[1:-1] * math.log(2)
    assert ((terms.mean(1) - exact).abs() < 5 * terms.std(1) / math.sqrt(n)).all()

def test_decoder_term_by_quadrature():
    "E L_0 of the exact Gaussian denoiser: integrate over x_1 | x_0 numerically (eq-decoder)"
    S, n = Schedule([0.02, 0.05, 0.3]), 20_000
    ab = S.alpha_bar.numpy()
    x0 = GRAYS[(GRAYS - 0.2).abs().argmin()].item()
    z = np.linspace(-8, 8, 4001)
    x1 = np.sqrt(ab[1]) * x0 + np.sqrt(1 - ab[1]) * z
    guess = 0.2 + np.sqrt(ab[1]) * 0.25 / (ab[1] * 0.25 + 1 - ab[1]) * (x1 - np.sqrt(ab[1]) * 0.2)
    std = np.sqrt((1 - ab[1]) / (1 - ab[2]) * (1 - ab[2] / ab[1]))
    p = scipy.stats.norm.cdf((x0 + 1 / 255 - guess) / std) - scipy.stats.norm.cdf(
        (x0 - 1 / 255 - guess) / std
    )
    exact = np.trapezoid(-np.log2(np.maximum(p, 1e-12)) * scipy.stats.norm.pdf(z), z)
    L_0 = vlb_terms(oracle(), S, torch.full((n, 1), x0, dtype=torch.float64), generator=gen())[0]
    assert abs(L_0.mean() - exact) < 5 * L_0.std() / math.sqrt(n)

def test_bound_is_the_entropy_plus_what_is_known_to_be_lost():
    """The code length of Gaussian data: the entropy of its gray values, plus the excess of each
    step, plus that of the last step's width (eq-vlb, eq-jensen)"""
    sigma, n = 0.25, 20_000
    edges = np.concatenate([[-np.inf], GRAYS.numpy()[:-1] + 1/255, [np.inf]])
    p = np.diff(scipy.stats.norm.cdf(edges / sigma)); p = p[p > 0]
    entropy = -(p * np.log2(p)).sum()
    snr = (LINEAR.alpha_bar / (1 - LINEAR.alpha_bar)).numpy()[1:]
    precision = 1 / sigma**2 + snr                                  # of x_0 given x_t
    steps = (
        0.5 * ((snr[:-1] - snr[1:]) / precision[1:] - np.log(precision[:-1] / precision[1:])).sum()
    )
    r = 1 / precision[0] / ((1 - LINEAR.alpha_bar[1]) * (1 - snr[1] / snr[0])).item()
    lost = (steps + 0.5 * (r - 1 - math.log(r))) / math.log(2)
    x0 = ((gaussian_data(n, 0, sigma).clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    bound = vlb_terms(oracle(0., sigma), LINEAR, x0, generator=gen(1)).sum(0)
    se = bound.std() / math.sqrt(n)
    assert se < 0.03 and lost > 0.5 and abs(bound.mean() - entropy - lost) < 4 * se

def test_weighted_loss_estimates_the_sum_of_the_steps():
    """T times the mean of diffusion_loss with vlb_weight is L_1 + ... + L_{T-1}, plus the
    quadratic part of L_0"""
    S, n = Schedule(linear_betas(10, 0.01, 0.6)), 200_000
    loss = (
        diffusion_loss(oracle(), S, gaussian_data(n), weight=vlb_weight(S), generator=gen(1)) * S.T
    )
    lv = levels(S)
    exact = (vlb_weight(S)(lv) / (4 + lv.snr)).sum()
    steps = vlb_terms(oracle(), S, gaussian_data(n // 4, seed=2), generator=gen(3))[1:-1].sum(
        0
    ) * math.log(2)
    first = (vlb_weight(S)(lv) / (4 + lv.snr))[0]
    assert abs(loss.mean() - exact) < 5 * loss.std() / math.sqrt(n)
    assert abs(loss.mean() - first - steps.mean()) < 5 * math.hypot(
        loss.std() / math.sqrt(n), steps.std() / math.sqrt(n / 4)
    )

def test_skipping_steps_costs_more():
    """Each stair that is cut in two becomes cheaper (the sum lies above an integral: eq-stairs);
    L_0 and L_T stay"""
    x0, few, more = (
        gaussian_data(4000),
        [1000, 30, 10, 5, 0],
        [1000, 700, 400, 200, 100, 50, 30, 20, 10, 5, 0],
    )
    few, more = (vlb_terms(oracle(), LINEAR, x0, times=t, generator=gen()) for t in (few, more))
    assert few.shape == (5, 4000) and torch.equal(few[-1], more[-1])
    gap = few.sum(0) - more.sum(0)
    assert gap.mean() > 10 * gap.std() / math.sqrt(4000)

def test_labels_shorten_the_code():
    means, y = torch.tensor([[-0.6], [0.6]]), torch.tensor([0, 1]).repeat(500)
    d = MixtureOracle(means, 0.05, labels=torch.tensor([0, 1]))
    x0 = means[y] + 0.05 * torch.randn(1000, 1, generator=gen())
    S = Schedule(linear_betas(50, 1e-3, 0.2))
    with_y, without = (
        vlb_terms(d, S, x0, label, generator=gen()).sum(0).mean() for label in (y, None)
    )
    # about the one bit that the label holds; the bound is not tight
    assert 0.7 < without - with_y < 1.3

def test_a_better_denoiser_of_real_digits_has_the_smaller_loss_and_bound():
    x = mnist_mini()[:][0]
    f = x.flatten(1).double()
    knows_mean, knows_cov = GaussianOracle(x.mean(0), torch.diag(f.var(0))), GaussianOracle(
        x.mean(0), f.T.cov()
    )
    S = Schedule(linear_betas(100, 1e-3, 0.2))
    for measure in (
        lambda d: diffusion_loss(d, S, x[::50], generator=gen()).mean(),
        lambda d: vlb_terms(d, S, x[::250], generator=gen()).sum(0).mean(),
    ):
        assert measure(knows_cov) < 0.9 * measure(knows_mean)

def test_measuring_leaves_no_footprints():
    d = Denoiser(Net(p=0.5)).train()
    d.net.drop.eval(); d.net.drop.train()
    x0 = torch.rand(4, 1, 3, 3, generator=gen())
    before, rng = x0.clone(), torch.random.get_rng_state()
    S = Schedule(linear_betas(5, 0.01, 0.5))
    loud = vlb_terms(d, S, x0, generator=gen())
    assert all(m.training for m in d.modules())
    assert (
        torch.equal(torch.random.get_rng_state(), rng)
        and torch.equal(x0, before)
        and not loud.requires_grad
    )
    d.eval()
    assert torch.equal(loud, vlb_terms(d, S, x0, generator=gen()))  # dropout was off in both
    assert not any(m.training for m in d.modules())
    # a part left in train mode by hand: measured without dropout, left as it was
    d.net.drop.train()
    assert torch.equal(loud, vlb_terms(d, S, x0, generator=gen()))
    assert d.net.drop.training and not d.training

@pytest.mark.parametrize(
    'times, match',
    [
        ([1000, 0], 'at least 2 steps'),
        ([1000, 500, 1], r'end at 0, not with \[1000, 500, 1\]'),
        ([], 'end at 0'),
        ([500, 700, 0], 's must be less than t'),
        ([1001, 500, 0], '1001 is outside'),
    ],
)
def test_bad_times(times, match):
    with pytest.raises(ValueError, match=match):
        vlb_terms(oracle(), LINEAR, torch.zeros(2, 1), times=times)
