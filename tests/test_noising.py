"""The forward process and its posterior against joint Gaussians, brute force, SciPy and
torch.distributions; every refusal"""
import math

import numpy as np
import pytest
import torch
from scipy import stats

from diffusion_scratch.noising import Gaussian, q_posterior, q_sample, q_step
from diffusion_scratch.schedule import (
    Level,
    Schedule,
    cosine_betas,
    linear_betas,
    sigmoid_betas,
    zero_terminal_snr,
)

SCHEDULES = dict(
    linear=Schedule(linear_betas()),
    cosine=Schedule(cosine_betas()),
    short=Schedule(sigmoid_betas(10)),
    dark=Schedule(zero_terminal_snr(linear_betas(100))),
)


def normal(seed, *shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)

def pairs(schedule, n, seed=0):
    "n random pairs of timesteps 0 <= s < t <= T"
    rng = np.random.default_rng(seed)
    st = np.sort(np.stack([rng.choice(schedule.T + 1, 2, replace=False) for _ in range(n)]), 1)
    return torch.from_numpy(st[:, 0]), torch.from_numpy(st[:, 1])

def within(x, mean, std, n_se=4.5):
    "Do the mean and the variance of the draws x agree with N(mean, std^2)?"
    n = x.numel()
    assert abs(x.mean().item() - mean) < n_se * std / n**.5
    assert abs(x.var().item() - std**2) < n_se * std**2 * (2/n)**.5


# ---------------------------------------------------------------- forward

@pytest.mark.parametrize('name', SCHEDULES)
def test_small_steps_have_the_betas(name):  # eq-step against the definition, Ho et al. 2020, eq. 2
    schedule = SCHEDULES[name]
    t = torch.arange(1, schedule.T + 1)
    one, zero = torch.ones(schedule.T, dtype=torch.float64), torch.zeros(
        schedule.T, dtype=torch.float64
    )
    T, S = schedule.at(t, one), schedule.at(t - 1, one)
    torch.testing.assert_close(
        q_step(one, T, S, zero), (1 - schedule.betas).sqrt(), rtol=1e-9, atol=1e-12
    )
    torch.testing.assert_close(q_step(zero, T, S, one)**2, schedule.betas, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize('name', SCHEDULES)
def test_a_jump_from_the_data_is_a_step_from_zero(name):  # eq-jump is eq-step at s = 0
    schedule = SCHEDULES[name]
    x0, eps = normal(0, 6, 2, 3), normal(1, 6, 2, 3)
    t = torch.linspace(1, schedule.T, 6).long()
    level = schedule.at(t, x0)
    torch.testing.assert_close(
        q_step(x0, level, schedule.at(0, x0), eps), q_sample(x0, level, eps), rtol=1e-12, atol=1e-14
    )
    for i in range(6):
        ab = schedule.alpha_bar[t[i]].item()
        torch.testing.assert_close(
            q_sample(x0, level, eps)[i],
            math.sqrt(ab) * x0[i] + math.sqrt(1 - ab) * eps[i],
            rtol=1e-14,
            atol=1e-15,
        )


def test_many_steps_and_one_jump_are_one_distribution():
    # eq-jump by Monte Carlo: moments, and Kolmogorov-Smirnov for the shape
    schedule, n = Schedule(cosine_betas(12)), 100_000
    x0 = torch.full((n,), -0.8, dtype=torch.float64)
    L = [schedule.at(t, x0) for t in range(13)]
    walk = x0
    for i, (s, t) in enumerate([(0, 1), (1, 2), (2, 5), (5, 6), (6, 9)]):
        walk = q_step(walk, L[t], L[s], normal(i, n))
    jump = q_sample(x0, L[9], normal(50, n))
    mean, std = (
        -0.8 * schedule.alpha_bar[9].sqrt().item(),
        (1 - schedule.alpha_bar[9]).sqrt().item(),
    )
    for x in (walk, jump):
        within(x, mean, std)
        assert stats.kstest(x.numpy(), stats.norm(mean, std).cdf).pvalue > 1e-4


def test_nothing_happens_at_zero():
    x0, eps = normal(0, 3, 1, 4, 4, dtype=torch.float32), normal(1, 3, 1, 4, 4, dtype=torch.float32)
    assert torch.equal(q_sample(x0, SCHEDULES['linear'].at(0, x0), eps), x0)


def test_nothing_is_left_at_zero_terminal_snr():
    schedule, x0, eps = SCHEDULES['dark'], normal(0, 3, 4), normal(1, 3, 4)
    assert torch.equal(q_sample(x0, schedule.at(100, x0), eps), eps)
    # x_T tells nothing of x_s
    post = q_posterior(x0, 1e6 * eps, schedule.at(100, x0), schedule.at(40, x0))
    torch.testing.assert_close(post.mean, schedule.alpha_bar[40].sqrt() * x0)
    torch.testing.assert_close(post.std.flatten(), (1 - schedule.alpha_bar[40]).sqrt().expand(3))


# ---------------------------------------------------------------- the posterior

@pytest.mark.parametrize('name', SCHEDULES)
def test_posterior_is_the_conditional_of_the_joint_gaussian(name):
    # eq-posterior by a Schur complement, no completed square
    schedule = SCHEDULES[name]
    s, t = pairs(schedule, 40)
    x0, x_t = normal(2, 40), normal(3, 40) * 3
    post = q_posterior(x0, x_t, schedule.at(t, x0), schedule.at(s, x0))
    for i in range(40):
        keep = np.prod(1 - schedule.betas[s[i]:t[i]].numpy())  # of the variance, from s to t
        a, b = np.prod(1 - schedule.betas[: s[i]].numpy()), np.prod(
            1 - schedule.betas[: t[i]].numpy()
        )
        mean, cov = np.sqrt([a, b]) * x0[i].item(), np.array(
            [[1 - a, np.sqrt(keep) * (1 - a)], [np.sqrt(keep) * (1 - a), 1 - b]]
        )
        gain = cov[0, 1] / cov[1, 1]
        assert post.mean[i].item() == pytest.approx(
            mean[0] + gain * (x_t[i].item() - mean[1]), rel=1e-9, abs=1e-11
        )
        assert post.std[i].item() ** 2 == pytest.approx(
            cov[0, 0] - gain * cov[0, 1], rel=1e-8, abs=1e-13
        )


@pytest.mark.parametrize(
    't, s', [((0.3, 0.95), (0.8, 0.6)), ((1.0, 3.0), (1.0, 0.5)), ((0.2, 0.4), (0.7, 0.6))]
)
def test_posterior_by_brute_force_for_any_pairs_of_levels(t, s):
    # eq-bayes on a grid; also where signal^2 + noise^2 is not 1
    level = lambda t, pair: Level(
        torch.tensor([t]), *(torch.tensor([c], dtype=torch.float64) for c in pair)
    )
    T, S = level(2, t), level(1, s)
    x0, x_t = 0.6, -1.1
    post = q_posterior(torch.tensor([x0]).double(), torch.tensor([x_t]).double(), T, S)
    grid = np.linspace(-12, 12, 60_001)
    scale = t[0] / s[0]
    w = stats.norm(s[0] * np.float32(x0), s[1]).pdf(grid) * stats.norm(
        scale * grid, np.sqrt(t[1] ** 2 - scale**2 * s[1] ** 2)
    ).pdf(np.float32(x_t))
    w /= w.sum()
    mean = (w * grid).sum()
    assert post.mean.item() == pytest.approx(mean, abs=1e-9)
    assert post.std.item() == pytest.approx(np.sqrt((w * (grid - mean)**2).sum()), abs=1e-9)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_last_step_is_x0_exactly_and_without_noise(dtype):
    x0, x_t = normal(0, 5, 1, 3, 3).to(dtype), normal(1, 5, 1, 3, 3).to(dtype) * 5
    for schedule in SCHEDULES.values():
        post = q_posterior(x0, x_t, schedule.at(schedule.T, x0), schedule.at(0, x0))
        assert torch.equal(post.mean, x0.to(post.mean)) and (post.std == 0).all()
        # float32 at least
        assert post.mean.dtype == post.std.dtype == torch.promote_types(dtype, torch.float32)
        assert torch.equal(post.sample(torch.full_like(x0, 100)), x0.to(post.mean))


def test_walking_back_visits_the_levels_of_the_jump():
    # eq-consistent by Monte Carlo, over uneven strides
    schedule, n = SCHEDULES['cosine'], 100_000
    x0 = torch.full((n,), 0.4, dtype=torch.float64)
    x = q_sample(x0, schedule.at(980, x0), normal(0, n))
    for i, (t, s) in enumerate([(980, 700), (700, 699), (699, 150), (150, 3)]):
        x = q_posterior(x0, x, schedule.at(t, x0), schedule.at(s, x0)).sample(normal(i + 1, n))
        within(
            x, 0.4 * schedule.alpha_bar[s].sqrt().item(), (1 - schedule.alpha_bar[s]).sqrt().item()
        )


@pytest.mark.parametrize('name', SCHEDULES)
def test_posterior_in_float32_keeps_float32_precision(name):
    # coefficients are formed in float64, then cast
    schedule = SCHEDULES[name]
    t = torch.arange(2, schedule.T + 1)
    one = torch.ones(len(t), dtype=torch.float64)
    T, S = schedule.at(t, one), schedule.at(t - 1, one)
    for x0, x_t in ((one, 0*one), (0*one, one)):
        exact, single = q_posterior(x0, x_t, T, S), q_posterior(x0.float(), x_t.float(), T, S)
        torch.testing.assert_close(single.mean.double(), exact.mean, rtol=1.2e-7, atol=0)
        torch.testing.assert_close(single.std.double(), exact.std, rtol=1.2e-7, atol=0)
        assert single.mean.dtype == torch.float32


def test_each_image_of_a_batch_has_its_own_way():
    schedule = SCHEDULES['linear']
    x0, x_t, eps = (normal(i, 4, 1, 3, 3, dtype=torch.float32) for i in range(3))
    t, s = torch.tensor([1000, 500, 2, 30]), torch.tensor([3, 499, 1, 0])
    T, S = schedule.at(t, x0), schedule.at(s, x0)
    together = q_posterior(x0, x_t, T, S).sample(eps), q_step(x0, T, S, eps), q_sample(x0, T, eps)
    for i in range(4):
        one = slice(i, i + 1)
        Ti, Si = schedule.at(t[one], x0[one]), schedule.at(s[one], x0[one])
        alone = (
            q_posterior(x0[one], x_t[one], Ti, Si).sample(eps[one]),
            q_step(x0[one], Ti, Si, eps[one]),
            q_sample(x0[one], Ti, eps[one]),
        )
        for a, b in zip(together, alone): assert torch.equal(a[one], b)


def test_no_footprints():
    schedule = SCHEDULES['linear']
    x0, x_t = normal(0, 2, 3), normal(1, 2, 3)
    kept, state = (x0.clone(), x_t.clone()), torch.get_rng_state()
    T, S = schedule.at(700, x0), schedule.at(30, x0)
    q_posterior(x0, x_t, T, S).sample(x_t); q_step(x0, T, S, x_t); q_sample(x0, T, x_t)
    assert (
        torch.equal(x0, kept[0])
        and torch.equal(x_t, kept[1])
        and torch.equal(torch.get_rng_state(), state)
    )


def test_gradients_flow_through_the_posterior():  # a sampler that is guided needs them
    schedule, x0 = SCHEDULES['linear'], torch.zeros(1, 2, requires_grad=True)
    q_posterior(
        x0, torch.ones(1, 2), schedule.at(500, x0), schedule.at(100, x0)
    ).mean.sum().backward()
    assert (x0.grad > 0).all()


# ---------------------------------------------------------------- Gaussian

def test_kl_is_that_of_torch_distributions():  # eq-kl
    q, p = (Gaussian(normal(i, 200), normal(i + 10, 200).exp()) for i in (0, 1))
    truth = torch.distributions.kl_divergence(
        torch.distributions.Normal(*q), torch.distributions.Normal(*p)
    )
    torch.testing.assert_close(q.kl(p), truth, rtol=1e-10, atol=1e-12)
    assert (q.kl(p) > 0).all() and (q.kl(q) == 0).all()


def test_kl_by_monte_carlo():
    q, p, n = (
        Gaussian(torch.tensor(0.3).double(), torch.tensor(0.5).double()),
        Gaussian(torch.tensor(-0.4).double(), torch.tensor(0.8).double()),
        200_000,
    )
    x = q.sample(normal(7, n)).numpy()
    draws = stats.norm(0.3, 0.5).logpdf(x) - stats.norm(-0.4, 0.8).logpdf(x)
    assert (
        abs(
            draws.mean()
            - stats.norm(0.3, 0.5).expect(
                lambda u: stats.norm(0.3, 0.5).logpdf(u) - stats.norm(-0.4, 0.8).logpdf(u)
            )
        )
        < 4.5 * draws.std() / n**0.5
    )
    assert abs(draws.mean() - q.kl(p).item()) < 4.5 * draws.std() / n**.5


def test_kl_of_near_equals_survives_float32():
    # two widths a thousandth apart: the answer is 1e-6, the terms are near 1
    q, p = Gaussian(torch.zeros(1), torch.tensor([1.001])), Gaussian(torch.zeros(1), torch.ones(1))
    exact = (
        0.5
        * (torch.tensor(1.001).double() ** 2 - 1 - 2 * torch.tensor(1.001).double().log()).item()
    )
    assert q.kl(p).item() == pytest.approx(exact, rel=1e-3)


def test_a_point_is_infinitely_far_from_a_cloud():
    point, cloud = Gaussian(torch.zeros(2), torch.zeros(2)), Gaussian(torch.zeros(2), torch.ones(2))
    assert (point.kl(cloud) == math.inf).all()


def test_std_broadcasts_over_an_image():
    q, p = Gaussian(torch.zeros(2, 1, 3, 3), torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)), Gaussian(
        torch.ones(2, 1, 3, 3), torch.ones(2, 1, 1, 1)
    )
    assert q.kl(p).shape == (2, 1, 3, 3) and torch.equal(q.kl(p)[0], torch.full((1, 3, 3), 0.5))
    assert torch.equal(q.sample(torch.ones(2, 1, 3, 3))[1], torch.full((1, 3, 3), 2.))


@pytest.mark.parametrize('name, bits', [('linear', 7.28e-6), ('cosine', None), ('dark', 0.)])
def test_prior_gap_is_the_kl_of_the_last_level(name, bits):
    # eq-prior-gap of chapter 1, by this chapter's Gaussian.kl
    schedule, x0 = SCHEDULES[name], torch.full((1, 50), 0.5, dtype=torch.float64)
    top = schedule.at(schedule.T, x0)
    gap = Gaussian(top.signal * x0, top.noise).kl(
        Gaussian(torch.zeros_like(x0), torch.ones_like(x0))
    ).mean().item() / math.log(2)
    ab = schedule.alpha_bar[-1].item()
    assert gap == pytest.approx(
        (ab * (0.25 - 1) - math.log1p(-ab)) / (2 * math.log(2)), rel=1e-6, abs=1e-15
    )
    if bits is not None: assert gap == pytest.approx(bits, rel=1e-3, abs=1e-15)


# ---------------------------------------------------------------- refusals

x = torch.zeros(4, 1, 5, 5)
LINEAR = SCHEDULES['linear']
at = lambda t, like=x: LINEAR.at(t, like)

@pytest.mark.parametrize(
    'call, said',
    [
        (lambda: q_sample(x, at(5), x[0]), r'x0 has shape \(4, 1, 5, 5\) but eps has \(1, 5, 5\)'),
        (lambda: q_sample(x, at(5), x[:1]), r'eps has \(1, 1, 5, 5\)'),
        (
            lambda: q_step(x, at(5), at(4), x[..., :1]),
            r'x_prev has shape \(4, 1, 5, 5\) but eps has \(4, 1, 5, 1\)',
        ),
        (
            lambda: q_posterior(x, x[:, 0], at(5), at(4)),
            r'x0 has shape \(4, 1, 5, 5\) but x_t has \(4, 5, 5\)',
        ),
        (
            lambda: q_sample(x.flatten(1), at(5), x.flatten(1)),
            r'level has shape \(4, 1, 1, 1\), but x0 \(4, 25\) needs \(4, 1\)',
        ),
        (lambda: q_sample(x, at(5, x[:2]), x), r'level has shape \(2, 1, 1, 1\)'),
        (lambda: q_sample(x, at(5, x[:1]), x), r'level has shape \(1, 1, 1, 1\)'),
        (lambda: q_step(x, at(5), at(4, x[:, 0]), x), r'level has shape \(4, 1, 1\)'),
        (lambda: q_posterior(x, x, at(5), at(4, x[0])), r'level has shape'),
    ],
)
def test_shapes_that_would_broadcast_are_refused(call, said):
    with pytest.raises(ValueError, match=said): call()


@pytest.mark.parametrize('dtype', [torch.uint8, torch.long])
def test_whole_numbers_are_refused(dtype):  # cast to bytes, every signal below 1 would be 0
    with pytest.raises(TypeError, match=f'x0 is {dtype}'): q_sample(x.to(dtype), at(5), x.to(dtype))


@pytest.mark.parametrize(
    't, s, said',
    [
        (5, 5, 's = 5 and t = 5'),
        (5, 900, 's = 900 and t = 5'),
        (torch.tensor([9, 9, 2, 9]), torch.tensor([1, 1, 7, 1]), 's = 7 and t = 2'),
    ],
)
def test_time_must_run_the_right_way(t, s, said):
    with pytest.raises(ValueError, match=f's must be less than t, but {said}'):
        q_posterior(x, x, at(t), at(s))
    with pytest.raises(ValueError, match=f's must be less than t, but {said}'):
        q_step(x, at(t), at(s), x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_images_may_live_on_the_gpu():
    x0, x_t = normal(0, 2, 3, 4, 4, dtype=torch.float32), normal(1, 2, 3, 4, 4, dtype=torch.float32)
    T, S = LINEAR.at(500, x0), LINEAR.at(20, x0)
    here, there = q_posterior(x0, x_t, T, S).sample(x_t), q_posterior(
        x0.cuda(), x_t.cuda(), T, S
    ).sample(x_t.cuda())
    assert there.device.type == 'cuda'
    torch.testing.assert_close(there.cpu(), here)
    torch.testing.assert_close(q_step(x0.cuda(), T, S, x_t.cuda()).cpu(), q_step(x0, T, S, x_t))
