"The forward process and its posterior against joint Gaussians; every refusal"
import math
import numpy as np, pytest, torch
from conftest import randn, refused
from diffusion_scratch.noising import Gaussian, q_posterior, q_sample, q_step
from diffusion_scratch.schedule import (Schedule, cosine_betas, linear_betas, sigmoid_betas,
                                        zero_terminal_snr)

LINEAR, COSINE = Schedule(linear_betas()), Schedule(cosine_betas())
SHORT, DARK = Schedule(sigmoid_betas(10)), Schedule(zero_terminal_snr(linear_betas(100)))
SCHEDULES = [LINEAR, COSINE, SHORT, DARK]
every_schedule = pytest.mark.parametrize('schedule', SCHEDULES,
                                         ids=['linear', 'cosine', 'short', 'dark'])
close = torch.testing.assert_close

# Forward
@every_schedule
def test_a_jump_from_the_data_is_a_step_from_zero(schedule):
    "eq-jump is eq-step at s = 0, where nothing happens"
    x0, eps = randn(6, 2, 3), randn(6, 2, 3, seed=1)
    t = torch.linspace(1, schedule.T, 6).long()
    level, zero = schedule.at(t, x0), schedule.at(0, x0)
    jump, ab = q_sample(x0, level, eps), schedule.alpha_bar[t].view(6, 1, 1)
    close(q_step(x0, level, zero, eps), jump, rtol=1e-12, atol=1e-14)
    close(jump, ab.sqrt() * x0 + (1 - ab).sqrt() * eps, rtol=1e-14, atol=1e-15)
    assert torch.equal(q_sample(x0, zero, eps), x0)

def test_nothing_is_left_at_zero_terminal_snr():
    "There x_T is noise, and tells nothing of x_s"
    x0, eps = randn(3, 4), randn(3, 4, seed=1)
    assert torch.equal(q_sample(x0, DARK.at(100, x0), eps), eps)
    post = q_posterior(x0, 1e6 * eps, DARK.at(100, x0), DARK.at(40, x0))
    close(post.mean, DARK.alpha_bar[40].sqrt() * x0)
    close(post.std.flatten(), (1 - DARK.alpha_bar[40]).sqrt().expand(3))

# The posterior
@every_schedule
def test_posterior_is_the_conditional_of_the_joint_gaussian(schedule):
    "eq-posterior by a Schur complement, no completed square"
    rng = np.random.default_rng(0)
    s, t = np.sort([rng.choice(schedule.T + 1, 2, replace=False) for _ in range(40)]).T
    x0, x_t = randn(40, seed=2), randn(40, seed=3) * 3
    post = q_posterior(x0, x_t, schedule.at(t, x0), schedule.at(s, x0))
    kept = np.cumprod([1, *(1 - schedule.betas.numpy())])  # of the variance of x0
    a, b, x0, x_t = kept[s], kept[t], x0.numpy(), x_t.numpy()
    across = np.sqrt(b / a) * (1 - a)                      # the covariance of x_s and x_t
    gain = across / (1 - b)
    mean = np.sqrt(a) * x0 + gain * (x_t - np.sqrt(b) * x0)
    assert post.mean.numpy() == pytest.approx(mean, rel=1e-9, abs=1e-11)
    assert post.std.numpy()**2 == pytest.approx(1 - a - gain * across, rel=1e-8, abs=1e-13)

@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_last_step_is_x0_exactly_and_without_noise(dtype):
    "In float32 at least"
    x0, x_t = (randn(5, 1, 3, 3, seed=i).to(dtype) for i in range(2))
    for schedule in SCHEDULES:
        post = q_posterior(x0, 5 * x_t, schedule.at(schedule.T, x0), schedule.at(0, x0))
        assert torch.equal(post.mean, x0.to(post.mean)) and (post.std == 0).all()
        assert post.mean.dtype == post.std.dtype == torch.promote_types(dtype, torch.float32)
        assert torch.equal(post.sample(torch.full_like(x0, 100)), x0.to(post.mean))

@every_schedule
def test_posterior_in_float32_keeps_float32_precision(schedule):
    "Coefficients are formed in float64, then cast"
    t = torch.arange(2, schedule.T + 1)
    one = torch.ones(len(t), dtype=torch.float64)
    T, S = schedule.at(t, one), schedule.at(t - 1, one)
    for x0, x_t in ((one, 0*one), (0*one, one)):
        exact, single = q_posterior(x0, x_t, T, S), q_posterior(x0.float(), x_t.float(), T, S)
        close(single.mean.double(), exact.mean, rtol=1.2e-7, atol=0)
        close(single.std.double(), exact.std, rtol=1.2e-7, atol=0)
        assert single.mean.dtype == torch.float32

def test_each_image_of_a_batch_has_its_own_way():
    x0, x_t, eps = (randn(4, 1, 3, 3, seed=i, dtype=torch.float32) for i in range(3))
    t, s = torch.tensor([1000, 500, 2, 30]), torch.tensor([3, 499, 1, 0])
    def ways(i):
        x, e, T, S = x0[i], eps[i], LINEAR.at(t[i], x0[i]), LINEAR.at(s[i], x0[i])
        return q_posterior(x, x_t[i], T, S).sample(e), q_step(x, T, S, e), q_sample(x, T, e)
    for i in range(4):
        one = slice(i, i + 1)
        for a, b in zip(ways(slice(4)), ways(one)): assert torch.equal(a[one], b)

def test_no_footprints():
    x0, x_t = randn(2, 3), randn(2, 3, seed=1)
    state, T, S = torch.get_rng_state(), LINEAR.at(700, x0), LINEAR.at(30, x0)
    q_posterior(x0, x_t, T, S).sample(x_t); q_step(x0, T, S, x_t); q_sample(x0, T, x_t)
    assert torch.equal(x0, randn(2, 3)) and torch.equal(x_t, randn(2, 3, seed=1))
    assert torch.equal(torch.get_rng_state(), state)

def test_gradients_flow_through_the_posterior():  # a sampler that is guided needs them
    x0 = torch.zeros(1, 2, requires_grad=True)
    post = q_posterior(x0, torch.ones(1, 2), LINEAR.at(500, x0), LINEAR.at(100, x0))
    post.mean.sum().backward()
    assert (x0.grad > 0).all()

# Gaussian
def test_kl_of_near_equals_and_of_points():
    "eq-kl: of widths 0.001 apart, 1e-6 of terms near 1, in float32; a point is infinitely far"
    zero, one, near = torch.zeros(1), torch.ones(1), torch.tensor([1.001])
    exact = 0.5 * (near.double()**2 - 1 - 2 * near.double().log()).item()
    assert Gaussian(zero, near).kl(Gaussian(zero, one)).item() == pytest.approx(exact, rel=1e-3)
    assert Gaussian(zero, zero).kl(Gaussian(zero, one)) == math.inf

def test_std_broadcasts_over_an_image():
    one = torch.ones(2, 1, 3, 3)
    q = Gaussian(0 * one, torch.tensor([1., 2.]).view(2, 1, 1, 1))
    kl = q.kl(Gaussian(one, torch.ones(2, 1, 1, 1)))
    assert kl.shape == (2, 1, 3, 3) and torch.equal(kl[0], torch.full((1, 3, 3), 0.5))
    assert torch.equal(q.sample(one)[1], torch.full((1, 3, 3), 2.))

# Refusals
x = torch.zeros(4, 1, 5, 5)
at = lambda t, like=x: LINEAR.at(t, like)

@pytest.mark.parametrize('case', [
    (lambda: q_sample(x, at(5), x[0]), r'x0 has shape \(4, 1, 5, 5\) but eps has \(1, 5, 5\)'),
    (lambda: q_sample(x, at(5), x[:1]), r'eps has \(1, 1, 5, 5\)'),
    (lambda: q_step(x, at(5), at(4), x[..., :1]),
     r'x_prev has shape \(4, 1, 5, 5\) but eps has \(4, 1, 5, 1\)'),
    (lambda: q_posterior(x, x[:, 0], at(5), at(4)),
     r'x0 has shape \(4, 1, 5, 5\) but x_t has \(4, 5, 5\)'),
    (lambda: q_sample(x.flatten(1), at(5), x.flatten(1)),
     r'level has shape \(4, 1, 1, 1\), but x0 \(4, 25\) needs \(4, 1\)'),
    *((lambda n=n: q_sample(x, at(5, x[:n]), x), rf'level has shape \({n}, 1, 1, 1\)')
      for n in (1, 2)),
    (lambda: q_step(x, at(5), at(4, x[:, 0]), x), r'level has shape \(4, 1, 1\)'),
    (lambda: q_posterior(x, x, at(5), at(4, x[0])), r'level has shape'),
    # cast to bytes, every signal below 1 would be 0
    *((lambda d=d: q_sample(x.to(d), at(5), x.to(d)), f'x0 is {d}', TypeError)
      for d in (torch.uint8, torch.long)),
    *((lambda f=f, t=t, s=s: f(t, s), f's must be less than t, but {says}')
      for f in (lambda t, s: q_posterior(x, x, at(t), at(s)),
                lambda t, s: q_step(x, at(t), at(s), x))
      for t, s, says in ((5, 5, 's = 5 and t = 5'), (5, 900, 's = 900 and t = 5'),
                         (torch.tensor([9, 9, 2, 9]), torch.tensor([1, 1, 7, 1]),
                          's = 7 and t = 2')))])
def test_shapes_that_would_broadcast_whole_numbers_and_times_the_wrong_way(case): refused(*case)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_images_may_live_on_the_gpu():
    x0, x_t = (randn(2, 3, 4, 4, seed=i, dtype=torch.float32) for i in range(2))
    T, S = LINEAR.at(500, x0), LINEAR.at(20, x0)
    here = q_posterior(x0, x_t, T, S).sample(x_t), q_step(x0, T, S, x_t)
    x0, x_t = x0.cuda(), x_t.cuda()
    there = q_posterior(x0, x_t, T, S).sample(x_t), q_step(x0, T, S, x_t)
    for a, b in zip(there, here):
        assert a.device.type == 'cuda'
        close(a.cpu(), b)
