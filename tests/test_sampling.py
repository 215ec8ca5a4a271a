"The reverse process: exact where the truth is known, repeatable image by image, and without footprints"
import gc, inspect, math
import numpy as np, pytest, scipy.stats, torch
from torch import nn
from diffusion_scratch.data import mnist_mini
from diffusion_scratch.denoiser import V, X0, Denoiser, Prediction, clipped
from diffusion_scratch.noising import Gaussian, q_posterior, q_sample
from diffusion_scratch.oracle import GaussianOracle, MixtureOracle
from diffusion_scratch.sampling import Frame, Noise, Solver, ancestral, fixed_large, fixed_small, sample, trajectory
from diffusion_scratch.schedule import Schedule, cosine_betas, linear_betas, zero_terminal_snr

LINEAR = Schedule(linear_betas())
SHORT = Schedule(linear_betas(10, 0.01, 0.6))
def draw(denoiser, schedule=SHORT, shape=(4, 3), **kw): return sample(denoiser, schedule, shape, progress=False, **kw)
def gen(seed=0): return torch.Generator().manual_seed(seed)

class Net(nn.Module):
    "A network with dropout, so that its mode matters; it counts its calls"
    def __init__(self, p=0., dtype=torch.float32): super().__init__(); self.w, self.drop, self.calls = nn.Parameter(torch.tensor(0.3, dtype=dtype)), nn.Dropout(p), 0
    def forward(self, x, t, y=None): self.calls += 1; return self.drop(self.w * x + (0 if y is None else y.view(-1, *[1]*(x.ndim - 1))))

ORACLE = MixtureOracle(torch.tensor([[-0.7, 0., 0.5], [0.4, 0.1, -0.5]]), 0.1, torch.tensor([0.3, 0.7]), labels=torch.tensor([0, 1]))

# ------------------------------------------------------------ one step
def test_the_two_variances_at_neighbouring_steps():
    "eq-total-variance, as in Ho et al. 2020, section 3.2: beta_t, and beta_t (1 - ab_{t-1}) / (1 - ab_t)"
    t = torch.arange(2, 1001)
    x = torch.zeros(999, 1, dtype=torch.float64)
    ab, beta = LINEAR.alpha_bar, LINEAR.betas[1:]
    small, large = (v(x, x, LINEAR.at(t, x), LINEAR.at(t - 1, x)).std.flatten()**2 for v in (fixed_small, fixed_large))
    torch.testing.assert_close(large, beta, rtol=1e-9, atol=0)
    torch.testing.assert_close(small, beta * (1 - ab[1:-1]) / (1 - ab[2:]), rtol=1e-9, atol=0)

@pytest.mark.parametrize('variance', [fixed_small, fixed_large])
@pytest.mark.parametrize('schedule', [LINEAR, Schedule(cosine_betas(20)), Schedule(zero_terminal_snr(linear_betas(50)))])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_the_last_step_is_the_prediction_bit_for_bit(variance, schedule, dtype):
    x_t, x0 = torch.randn(2, 8, 3, generator=gen(), dtype=dtype)
    t = torch.randint(1, schedule.T + 1, (8,), generator=gen())
    p = ancestral(variance)(x_t, Prediction(x0, x_t), schedule.at(t, x_t), schedule.at(0, x_t), {})
    assert torch.equal(p.mean, x0) and (p.std == 0).all() and p.mean.dtype == p.std.dtype == dtype
    assert torch.equal(p.sample(torch.full_like(x0, 5.)), x0)

def test_mixed_levels_in_one_batch():
    "Only the images that arrive at 0 get no noise"
    x = torch.zeros(3, 2)
    p = ancestral(fixed_large)(x, Prediction(x, x), SHORT.at(torch.tensor([5, 5, 1]), x), SHORT.at(torch.tensor([3, 0, 0]), x), {})
    assert (p.std.flatten() > 0).tolist() == [True, False, False]

# ------------------------------------------------------------ noise
def test_noise_of_an_image_depends_on_seed_and_number_alone():
    whole = Noise(7, 6)
    first, second = whole.draw((2, 3)), whole.draw((2, 3))
    for n, start in ((1, 0), (3, 2), (2, 4)):
        part = Noise(7, n, first=start)
        assert torch.equal(part.draw((2, 3)), first[start:start + n]) and torch.equal(part.draw((2, 3)), second[start:start + n])
    golden = (1 + math.sqrt(5)) / 2                                                      # eq-streams, in float64
    stream = torch.Generator().manual_seed(math.floor(2**32 * ((7 + 1) * golden % 1)) + 3)
    for z in (first, second): assert torch.equal(z[3].flatten(), torch.randn(16, generator=stream)[:6])
    assert first.dtype == torch.float32 and first.is_contiguous() and len({tuple(r.flatten().tolist()) for r in torch.cat([first, second])}) == 12

@pytest.mark.parametrize('n, shape, count', [(1, (), 3), (3, (2, 3), 7), (5, (1, 200, 200), 4), (2, (3, 300, 300), 2), (2, (0,), 3)], ids=str)
def test_noise_made_in_blocks_is_the_same_noise(n, shape, count):
    "Many small draws at once, a few larger ones, one at a time: the numbers of `draw`, in its order"
    noise, blocks = Noise(3, n, first=4), list(Noise(3, n, first=4).draws(shape, count))
    assert len(blocks) == count and all(torch.equal(z, noise.draw(shape)) for z in blocks)
    assert all(a.dtype == torch.float64 and torch.equal(a, b.double()) for a, b in zip(Noise(3, n, first=4).draws(shape, count, like=torch.empty(0, dtype=torch.float64)), blocks))

@pytest.mark.parametrize('times', [[10, 7, 3, 0], [10, 5, 8, 2, 0]], ids=['down', 'down and up'])
def test_networks_are_given_contiguous_images(times):
    "The noise of a step is a slice of a block, which is not contiguous; what is made of it is, as networks may `view` it"
    frames = list(trajectory(Denoiser(Net()), SHORT, (4, 3, 2), times=times, seed=0))
    assert len(frames) == 4 and all(f.x.is_contiguous() and f.x0.is_contiguous() for f in frames)

def test_every_seed_is_its_own():
    "Also above 2^63, where a float key would merge neighbours"
    seeds = [0, 1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1]
    assert len({Noise(s, 1).draw(()).item() for s in seeds}) == len(seeds)
    starts = sorted([0] + [Noise(s, 1).streams[0].initial_seed() for s in range(1000)])      # 0: torch's own, of manual_seed(0)
    assert min(b - a for a, b in zip(starts, starts[1:] + [2**32])) > 1e6                    # images each, before two share a stream
    after = 2**32 - Noise(0, 1).streams[0].initial_seed()
    assert [s.initial_seed() for s in Noise(0, 2, first=after - 1).streams] == [2**32 - 1, 0]  # the streams go round
    assert Noise(np.int64(5), 1).draw(()) == Noise(torch.tensor(5), 1).draw(()) == Noise(5, 1).draw(())

def test_noise_is_standard_normal_within_and_across_images():
    for z in (Noise(0, 2).draw((20_000,)).flatten(), Noise(0, 4000).draw((2,)).flatten()):
        assert scipy.stats.kstest(z.numpy(), 'norm').pvalue > 1e-3

def test_neighbouring_streams_know_nothing_of_each_other():
    "Generators that start at neighbouring numbers: chi-square of 20,000 pairs, in 100 equally likely boxes, of one image's number and another's, or another of its own"
    z = Noise(0, 20_000).draw((20,)).double()
    u = torch.special.ndtr(z) * 10
    for a, b in ((u[:-1, 0], u[1:, 0]), (u[:-2, 0], u[2:, 0]), (u[:-1, 0], u[1:, 1]), (u[:-1, 16], u[1:, 16]), (u[:, 0], u[:, 1]), (u[:, 0], u[:, 8]), (u[:, 0], u[:, 16])):
        assert scipy.stats.chisquare((a.long() * 10 + b.long()).bincount(minlength=100).numpy()).pvalue > 1e-3

def test_fresh_noise_without_a_seed():
    assert not torch.equal(Noise(None, 1).draw((4,)), Noise(None, 1).draw((4,)))
    assert not torch.equal(draw(ORACLE), draw(ORACLE))

@pytest.mark.parametrize('kw, error, match', [(dict(seed=-1), ValueError, r'seed = -1 is outside 0\.\.2\^64-1'), (dict(seed=2**64), ValueError, 'seed = 18446744073709551616'), (dict(seed=1.5), TypeError, 'float'),
                                              (dict(seed=0, first=-2), ValueError, 'first = -2')])
def test_bad_seeds(kw, error, match):
    with pytest.raises(error, match=match): Noise(**kw, n=1)
    with pytest.raises(error, match=match): draw(ORACLE, **kw)

# ------------------------------------------------------------ the loop
def test_frames():
    d = Denoiser(Net())
    frames = list(trajectory(d, SHORT, (4, 3), times=[10, 7, 3, 0], seed=0))
    assert [f.t for f in frames] == [10, 7, 3, 0] and all(isinstance(f, Frame) for f in frames)
    assert d.net.calls == 3                                  # one a step
    assert torch.equal(frames[0].x, Noise(0, 4).draw((3,)))  # starts at the noise
    assert torch.equal(frames[-1].x, frames[-2].x0) and frames[-1].x0 is frames[-1].x
    assert torch.equal(draw(d, times=[10, 7, 3, 0], seed=0), frames[-1].x)
    assert [f.t for f in trajectory(d, SHORT, (1, 3))] == list(range(10, -1, -1))

def test_each_frame_follows_from_the_one_before():
    "The loop by hand, with its noise (eq-ancestral), to float32's rounding: the sampler forms the factors of its steps in float64, all at once"
    noise, frames = Noise(3, 4), list(trajectory(ORACLE, SHORT, (4, 3), step=ancestral(fixed_large), seed=3))
    x = noise.draw((3,))
    for f, t in zip(frames, range(10, 0, -1)):
        torch.testing.assert_close(f.x, x, rtol=0, atol=1e-6)
        now, then = SHORT.at(t, x), SHORT.at(t - 1, x)
        assert torch.equal(f.x0, ORACLE(f.x, now).x0)
        x = fixed_large(f.x0, f.x, now, then).sample(noise.draw((3,)))
    torch.testing.assert_close(frames[-1].x, x, rtol=0, atol=1e-6)

@pytest.mark.parametrize('times', [range(10, -1, -2), torch.tensor([10, 8, 6, 4, 2, 0]), np.array([10, 8, 6, 4, 2, 0]), (10, 8, 6, 4, 2, 0)])
def test_times_of_any_kind_of_sequence(times):
    assert torch.equal(draw(ORACLE, times=times, seed=0), draw(ORACLE, times=[10, 8, 6, 4, 2, 0], seed=0))

def test_an_image_is_the_same_in_any_batch():
    whole = draw(ORACLE, LINEAR, (7, 3), times=LINEAR.times(20), seed=5)
    for n, first in ((1, 0), (2, 3), (4, 3)):
        torch.testing.assert_close(draw(ORACLE, LINEAR, (n, 3), times=LINEAR.times(20), seed=5, first=first), whole[first:first + n], rtol=1e-5, atol=1e-6)

def test_x_T_made_of_the_same_noise_changes_nothing():
    x_T = Noise(5, 4).draw((3,))
    before = x_T.clone()
    assert torch.equal(draw(ORACLE, x_T=x_T, seed=5), draw(ORACLE, seed=5)) and torch.equal(x_T, before)

def test_starting_in_the_middle():
    x0 = torch.tensor([[-0.7, 0., 0.5]]).expand(50, 3)
    x_t = q_sample(x0, SHORT.at(2, x0), torch.randn(x0.shape, generator=gen()))
    ends = draw(ORACLE, shape=(50, 3), x_T=x_t, times=[2, 1, 0], seed=1)
    assert (ends - x0).abs().mean() < 0.15                    # at a low level the mode survives
    frame = next(trajectory(ORACLE, SHORT, (50, 3), x_T=x_t, times=[2, 0]))
    assert frame.t == 2 and torch.equal(frame.x, x_t)

def test_dtype_follows_weights_or_x_T():
    assert draw(Denoiser(Net(dtype=torch.float64), V), seed=0).dtype == torch.float64
    assert draw(Denoiser(Net(dtype=torch.bfloat16), V), seed=0).dtype == torch.bfloat16
    assert draw(ORACLE, x_T=torch.zeros(4, 3, dtype=torch.float64), seed=0).dtype == torch.float64

def test_a_step_may_be_asked_for_levels_that_are_not_on_the_walk():
    "The factors of a trajectory's steps are made together; any other pair of levels gets its own"
    steps, base = [], ancestral(fixed_large)
    def with_a_detour(x_t, prediction, t, s, memory):
        p = base(x_t, prediction, t, s, memory)
        for a, b in ((t, SHORT.at(0, x_t)), (SHORT.at(10, x_t), s), (t, s)):
            if (a.t > b.t).all(): steps.append((base(x_t, prediction, a, b, memory), base(x_t, prediction, a, b, {})))
        return p
    x = draw(ORACLE, step=with_a_detour, times=[10, 7, 3, 0], seed=2)
    assert torch.equal(x, draw(ORACLE, step=base, times=[10, 7, 3, 0], seed=2)) and len(steps) == 9
    for ours, alone in steps: assert torch.equal(ours.mean, alone.mean) and torch.equal(ours.std.expand_as(x), alone.std.expand_as(x))

@pytest.mark.parametrize('std', [torch.zeros(()), torch.zeros((), dtype=torch.float64), 0., 0], ids=repr)
def test_a_plain_zero_draws_no_noise_and_nothing_else_skips_it(std):
    "One std for all images that is 0 is known without a look at them; any other gets its noise, step by step, in the order of `Noise`"
    drawn = []
    class Recorder(Gaussian):
        def sample(self, eps): drawn.append(eps); return super().sample(eps)
    kinds = [std, torch.zeros(4, 1), std, torch.tensor(0.5), torch.full((4, 1), 0.2), std]
    def step(x_t, prediction, t, s, memory):
        memory['i'] = memory.get('i', -1) + 1
        return Recorder(prediction.x0, kinds[memory['i']])
    x = draw(ORACLE, step=step, times=[10, 8, 6, 4, 3, 1, 0], seed=6)
    noise = Noise(6, 4)
    noise.draw((3,))                                           # x_T
    assert len(drawn) == 3 and all(torch.equal(z, noise.draw((3,))) for z in drawn) and x.isfinite().all()

def test_a_step_may_ask_for_its_own_visits():
    "`visits` lists the times in the order that a step wants them; the walk that the caller gives is checked, and the frames follow the visits"
    seen = []
    def step(x_t, prediction, t, s, memory): seen.append((int(t.t[0]), int(s.t[0]))); return Gaussian(prediction.x0, 0.)
    step.visits = lambda times: [t for t in times[:-1] for _ in range(2)] + [0]
    assert [f.t for f in trajectory(ORACLE, SHORT, (4, 3), step=step, times=[10, 4, 0], seed=0)] == [10, 10, 4, 4, 0]
    assert seen == [(10, 10), (10, 4), (4, 4), (4, 0)]
    with pytest.raises(ValueError, match='4 is followed by 4'): draw(ORACLE, step=step, times=[10, 4, 4, 0])

def test_memory_is_one_dictionary_per_trajectory():
    seen = []
    def counting(x_t, prediction, t, s, memory):
        memory['n'] = memory.get('n', 0) + 1
        seen.append(memory['n'])
        return q_posterior(prediction.x0, x_t, t, s)
    for _ in range(2): draw(ORACLE, times=[10, 5, 2, 0], step=counting)
    assert seen == [1, 2, 3, 1, 2, 3]

def test_a_walk_walked_again_is_the_same_walk():
    "Levels and factors are kept between trajectories; what comes out is that of a schedule never seen before, in each precision and shape"
    for kw in (dict(seed=1), dict(seed=1, shape=(2, 1, 2, 3)), dict(seed=1, x_T=torch.ones(4, 3, dtype=torch.float64)), dict(seed=1, times=[10, 4, 7, 0])):
        for step in (ancestral(), ancestral(fixed_large)):
            fresh = draw(Denoiser(Net()), Schedule(SHORT.betas), step=step, **kw)
            for _ in range(2): assert torch.equal(draw(Denoiser(Net()), step=step, **kw), fresh)

def test_a_walk_first_walked_in_inference_mode_gives_gradients_later():
    schedule = Schedule(linear_betas(10, 0.01, 0.6))
    with torch.inference_mode(): first = draw(Denoiser(Net(), V), schedule, (2, 3), seed=0)
    class Looking(nn.Module):
        def forward(self, x_t, level, y=None):
            with torch.enable_grad(): loss = Denoiser(Net(), V)(x := x_t.detach().requires_grad_(), level).x0.square().sum()
            assert torch.autograd.grad(loss, x)[0].any()
            return Denoiser(Net(), V)(x_t, level)
    assert torch.equal(draw(Looking(), schedule, (2, 3), seed=0), first)

def test_steps_made_anew_leave_nothing_behind():
    def tensors():
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())
    def walk(n):
        for _ in range(n): draw(ORACLE, step=ancestral(), seed=0)
        return tensors()
    assert walk(3) == walk(10)

def test_stopping_early_asks_no_more():
    d = Denoiser(Net(), V)
    for frame in trajectory(d, LINEAR, (2, 3), seed=0):
        if frame.t <= 990: break
    assert frame.t == 990 and d.net.calls == 11

def test_labels_reach_the_denoiser():
    for label, mode in ((0, [-0.7, 0., 0.5]), (1, [0.4, 0.1, -0.5])):
        x = draw(ORACLE, LINEAR, (40, 3), times=LINEAR.times(50), y=torch.full((40,), label), seed=1)
        assert (x - torch.tensor(mode)).abs().max() < 0.6
    assert not torch.equal(draw(Denoiser(Net(), V), y=torch.tensor([0, 1, 2, 3]), seed=0), draw(Denoiser(Net(), V), seed=0))

@pytest.mark.parametrize('progress', [True, False])
def test_progress_bar(progress, capsys):
    sample(ORACLE, SHORT, (2, 3), seed=0, progress=progress)
    sample(ORACLE, SHORT, (2, 3), times=[10, 5, 0], seed=0, progress=progress)
    out, err = capsys.readouterr()
    assert out == '' and (('11/11' in err and '3/3' in err) if progress else err == '')

# ------------------------------------------------------------ no footprints
def modes(d): return [m.training for m in d.modules()]

@pytest.mark.parametrize('arrange', [lambda d: d.train(), lambda d: d.eval(), lambda d: (d.eval(), d.net.drop.train()), lambda d: (d.train(), d.net.eval())])
def test_modes_are_restored_and_dropout_is_off(arrange):
    d = Denoiser(Net(p=0.5), V)
    want = draw(d.eval(), seed=0)
    arrange(d)
    before = modes(d)
    for frame in trajectory(d, SHORT, (4, 3), seed=0): assert modes(d) == before    # also between two steps
    assert torch.equal(frame.x, want) and torch.equal(draw(d, seed=0), want) and modes(d) == before

def test_modes_are_restored_when_the_network_fails():
    class Failing(Net):
        def forward(self, x, t):
            if t[0] < 5: raise RuntimeError('out of memory')
            return super().forward(x, t)
    d = Denoiser(Failing(), V).train()
    with pytest.raises(RuntimeError, match='out of memory'): draw(d, seed=0)
    assert all(modes(d)) and torch.is_grad_enabled()

@pytest.mark.parametrize('part', [lambda d: d, lambda d: d.denoiser, lambda d: d.denoiser.net], ids=['wrapper', 'denoiser', 'network'])
def test_modes_changed_by_the_caller_between_steps_stay(part):
    "Whoever trains the network between two frames, by whatever name it is known, finds it as it was left, and the walk has no dropout"
    d = clipped(Denoiser(Net(p=0.5), V)).eval()
    frames = trajectory(d, SHORT, (4, 3), seed=0)
    next(frames); part(d).train(); next(frames)
    assert all(modes(part(d)))
    assert torch.equal(list(frames)[-1].x, draw(d.eval(), seed=0))

def test_a_denoiser_may_change_the_precision_of_a_walk():
    "Levels are cast once, for the images of the walk; a wrapper that computes in another precision gets them in that"
    class Double(nn.Module):
        def __init__(self): super().__init__(); self.inner = Denoiser(Net().double(), V)
        def forward(self, x_t, level, y=None):
            assert level.to(x_t).signal.dtype == torch.float32 and level.signal.dtype == torch.float64
            return Prediction(*(a.float() for a in self.inner(x_t.double(), level)))
    x_T = torch.randn(4, 3, generator=gen())
    exact = draw(Denoiser(Net().double(), V), x_T=x_T.double(), step=ancestral(), seed=0)
    torch.testing.assert_close(draw(Double(), x_T=x_T, seed=0), exact.float(), rtol=0, atol=1e-5)

def test_global_randomness_and_gradients_are_untouched():
    torch_rng, numpy_rng = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    x_T, times, y = torch.randn(4, 3, generator=gen()).requires_grad_(), [10, 5, 0], torch.zeros(4)
    x = draw(Denoiser(Net(), V), x_T=x_T, times=times, y=y)
    assert not x.requires_grad and not x.is_inference() and x_T.grad is None and times == [10, 5, 0] and (y == 0).all()
    assert torch.equal(torch.random.get_rng_state(), torch_rng) and (np.random.get_state()[1] == numpy_rng).all()

# ------------------------------------------------------------ the right distribution
def exact_variance(data_var):
    "The law of total variance for N(mean, data_var): the step that makes no error at any length"
    def variance(x0, x_t, t, s):
        r = 1 - t.snr / s.snr
        var = (s.noise**2 * r + s.alpha_bar * r**2 / (1 / data_var + t.snr)).where(s.t.view_as(r) > 0, 0.)
        return Gaussian(q_posterior(x0, x_t, t, s).mean, var.sqrt().to(x_t))
    return variance

def test_gaussian_moments_at_any_number_of_steps():
    "With the exact variance three steps suffice; with either of the paper's they do not"
    n, times, oracle = 4000, [1000, 500, 1, 0], GaussianOracle(torch.tensor([0.3]), torch.tensor([[0.25]]))
    def moments(variance):
        x = draw(oracle, LINEAR, (n, 1), step=ancestral(variance), times=times, seed=0)
        return x.mean().item(), x.var().item()
    mean, var = moments(exact_variance(0.25))
    assert abs(mean - 0.3) < 4 * 0.5 / math.sqrt(n) and abs(var / 0.25 - 1) < 4 * math.sqrt(2 / n)
    assert moments(fixed_small)[1] < 0.7 * 0.25 and moments(fixed_large)[1] > 1.2 * 0.25

def test_correlated_gaussian_moments():
    "Mean and covariance of a 3-D Gaussian, 300 steps of an even schedule, each entry within 4.5 standard errors and 2%"
    mean, A = torch.tensor([0.5, -0.3, 0.1]), torch.tensor([[0.6, 0., 0.], [-0.4, 0.3, 0.], [0.2, 0.2, 0.4]])
    cov, n = A @ A.T, 2000
    snr = torch.logspace(3.5, -4, 300, dtype=torch.float64)
    ab = torch.cat([torch.ones(1, dtype=torch.float64), snr / (1 + snr)])
    x = draw(GaussianOracle(mean, cov), Schedule(1 - ab[1:] / ab[:-1]), (n, 3), step=ancestral(fixed_large), seed=1)
    assert ((x.mean(0) - mean) / (cov.diagonal() / n).sqrt()).abs().max() < 4.5
    se = ((cov**2 + cov.diagonal().outer(cov.diagonal())) / n).sqrt()
    assert ((x.T.cov() - cov).abs() < 4.5 * se + 0.02 * cov.max()).all()   # 2% more, for steps that are not infinitely short

@pytest.mark.parametrize('schedule', [LINEAR, Schedule(cosine_betas(1000)), Schedule(zero_terminal_snr(linear_betas(1000)))])
def test_mixture_as_a_whole(schedule):
    "Kolmogorov-Smirnov against the mixture's distribution function"
    class Cloud(nn.Module):  # an image of many points that ignore each other
        def forward(self, x, level, y=None):
            a, s = level.signal, level.noise
            modes, w, v = torch.tensor([-0.5, 0.7]), torch.tensor([0.3, 0.7]), 0.2**2
            var = (a**2 * v + s**2)[..., None]
            d = x[..., None] - a[..., None] * modes
            r = (w.log() - d**2 / (2 * var)).softmax(-1)
            x0 = (r * (modes + a[..., None] * v / var * d)).sum(-1).to(x)
            return Prediction(x0, None)
    x = draw(Cloud(), schedule, (2, 2000), times=schedule.times(500), seed=2).flatten().numpy()
    cdf = lambda z: 0.3 * scipy.stats.norm.cdf(z, -0.5, 0.2) + 0.7 * scipy.stats.norm.cdf(z, 0.7, 0.2)
    assert scipy.stats.kstest(x, cdf).pvalue > 1e-3
    assert scipy.stats.kstest(x + 0.04, cdf).pvalue < 1e-4    # the test has power

def test_real_digits_come_out_of_the_finite_set_as_they_are():
    known = mnist_mini()[:][0][::25]
    x = draw(MixtureOracle(known), LINEAR, (5, 1, 28, 28), times=LINEAR.times(25), seed=3)
    assert all((known == image).flatten(1).all(1).any() for image in x)

def test_clipped_stays_in_range():
    class Wild(nn.Module):
        def forward(self, x, t): return 3 * torch.sin(5 * x)
    frames = list(trajectory(clipped(Denoiser(Wild(), X0)), SHORT, (4, 1, 5, 7), seed=0))
    assert max(f.x0.abs().max() for f in frames) <= 1 and frames[-1].x.abs().max() <= 1
    assert draw(Denoiser(Wild(), X0), shape=(4, 1, 5, 7), seed=0).abs().max() > 1

# ------------------------------------------------------------ what is refused
@pytest.mark.parametrize('kw, error, match', [
    (dict(times=[10, 5]), ValueError, r'down to 0, not end with \[10, 5\]'), (dict(times=[10]), ValueError, 'down to 0'), (dict(times=[]), ValueError, 'down to 0'), (dict(times=[0]), ValueError, 'down to 0'),
    (dict(times=[10, -1, 3, 0]), ValueError, r't = -1, which is outside 1\.\.10'), (dict(times=[10, 5, 5, 0]), ValueError, '5 is followed by 5'), (dict(times=[10, 2.5, 0]), TypeError, 'float'),
    (dict(times=[8, 4, 0]), ValueError, 'times start at 8, but the noise is that of T = 10'), (dict(times=[11, 4, 0]), ValueError, r't = 11, which is outside 1\.\.10'),
    (dict(times=[11, 4, 0], x_T=torch.zeros(4, 3)), ValueError, r't = 11, which is outside 1\.\.10'), (dict(times=torch.linspace(10, 0, 4)), TypeError, r'times must be whole numbers.*6\.6667'), (dict(times=[10, float('nan'), 0]), TypeError, 'times must be whole numbers.*nan'),
    (dict(x_T=torch.zeros(4, 2)), ValueError, r'x_T has shape \(4, 2\) but shape = \(4, 3\)'), (dict(x_T=torch.zeros(4, 3, dtype=torch.long)), TypeError, 'x_T must be float, not torch.int64'),
    (dict(y=torch.zeros(3)), ValueError, '3 labels y for 4 images'), (dict(shape=(0, 3)), ValueError, r'shape = \(0, 3\) holds no image'), (dict(shape=()), ValueError, 'holds no image')])
def test_bad_walks(kw, error, match):
    with pytest.raises(error, match=match): draw(ORACLE, **kw)
    shape = kw.pop('shape', (4, 3))
    with pytest.raises(error, match=match): next(trajectory(ORACLE, SHORT, shape, **kw))

@pytest.mark.parametrize('progress', [True, False])
def test_times_may_be_any_iterable(progress):
    want = draw(ORACLE, times=[10, 4, 0], seed=0)
    for times in ((10, 4, 0), torch.tensor([10, 4, 0]), np.array([10, 4, 0]), iter([10, 4, 0])):
        assert torch.equal(sample(ORACLE, SHORT, (4, 3), times=times, seed=0, progress=progress), want)

def test_options_are_by_name_and_the_same_in_both():
    a, b = (inspect.signature(f).parameters for f in (trajectory, sample))
    assert list(a) == [k for k in b if k != 'progress'] and Step is not None
    assert all(p.kind == p.KEYWORD_ONLY for k, p in b.items() if k not in ('denoiser', 'schedule', 'shape'))
