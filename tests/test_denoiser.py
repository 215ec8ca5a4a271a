"""Chapter 3 from outside: linear algebra by NumPy, derivatives by autograd, and what a user may
get wrong"""
import dataclasses
import numpy as np
import pytest
import torch
from torch import nn
from diffusion_scratch.denoiser import (
    EPS,
    PARAMETERIZATIONS,
    V,
    X0,
    Denoiser,
    Parameterization,
    Prediction,
    clipped,
    evaluating,
)
from diffusion_scratch.guidance import guided
from diffusion_scratch.loss import uniform, v_weight, x0_weight
from diffusion_scratch.noising import q_sample
from diffusion_scratch.oracle import GaussianOracle, MixtureOracle
from diffusion_scratch.schedule import Schedule, cosine_betas, linear_betas, zero_terminal_snr

ALL = [EPS, X0, V]
SCHEDULE = Schedule(linear_betas())
TS = torch.tensor([1, 2, 50, 300, 700, 999, 1000])

def rng(seed=0): return torch.Generator().manual_seed(seed)
def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=rng(seed), dtype=dtype)

def batch(shape=(3, 4, 5), seed=0, dtype=torch.float64, schedule=SCHEDULE, ts=TS):
    "x0, eps, level, x_t for one image at each timestep"
    x0, eps = randn(len(ts), *shape, seed=seed, dtype=dtype), randn(
        len(ts), *shape, seed=seed + 1, dtype=dtype
    )
    level = schedule.at(ts, x0)
    return x0, eps, level, q_sample(x0, level, eps)

# --- coordinates
# -------------------------------------------------------------------------------------------

@pytest.mark.parametrize('p', ALL, ids=repr)
@pytest.mark.parametrize('betas', [linear_betas(), cosine_betas()], ids=['linear', 'cosine'])
def test_belief_solves_the_two_equations(p, betas):
    """eq-eps-x0, eq-v, eq-v-inverse: x_t and the output are two linear equations for
    (x0, eps); NumPy solves them for an arbitrary output"""
    ts = torch.tensor([1, 10, 400, 900])
    _, _, level, x_t = batch(schedule=Schedule(betas), ts=ts)
    out = randn(*x_t.shape, seed=7)
    got = p.predict(out, x_t, level)
    for i in range(len(ts)):
        s, n = float(level.signal[i]), float(level.noise[i])
        # the output as a combination of (x0, eps)
        second = {'eps': (0, 1), 'x0': (1, 0), 'v': (-n, s)}[p.name]
        want = np.linalg.solve(
            [[s, n], second], np.stack([x_t[i].numpy().ravel(), out[i].numpy().ravel()])
        )
        np.testing.assert_allclose(
            torch.stack(list(got))[:, i].reshape(2, -1), want, rtol=1e-9, atol=1e-9
        )

@pytest.mark.parametrize('p', ALL, ids=repr)
@pytest.mark.parametrize('dtype, tol', [(torch.float64, 1e-12), (torch.float32, 2e-4)])
def test_target_then_predict_is_the_truth(p, dtype, tol):
    """Float32 loses 6e-8 times the largest division, 1/signal_T = 157, times values of up to 4:
    2e-4 is generous"""
    x0, eps, level, x_t = batch(dtype=dtype)
    got = p.predict(p.target(x0, eps, level), x_t, level)
    assert got.x0.dtype == got.eps.dtype == dtype
    torch.testing.assert_close(got.x0, x0, rtol=0, atol=tol)
    torch.testing.assert_close(got.eps, eps, rtol=0, atol=tol)

@pytest.mark.parametrize('p', ALL, ids=repr)
def test_error_gains(p):
    "eq-sensitivity, by autograd: the derivative of the belief with respect to the output"
    _, _, level, x_t = batch(shape=(1,))
    out = randn(*x_t.shape, seed=3).requires_grad_()
    got = p.predict(out, x_t, level)
    d_x0, = torch.autograd.grad(got.x0.sum(), out, retain_graph=True, allow_unused=True)
    d_eps, = torch.autograd.grad(got.eps.sum(), out)
    angle = torch.atan2(level.noise, level.signal)
    want = {
        'eps': (-angle.tan(), angle * 0 + 1),
        'x0': (angle * 0 + 1, -1 / angle.tan()),
        'v': (-angle.sin(), angle.cos()),
    }[p.name]
    torch.testing.assert_close(d_x0, want[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(d_eps, want[1], rtol=1e-9, atol=1e-12)

@pytest.mark.parametrize(
    'p, weight', [(EPS, uniform), (X0, x0_weight), (V, v_weight)], ids=['eps', 'x0', 'v']
)
def test_squared_error_in_a_coordinate_is_a_weight_on_x0(p, weight):
    "eq-error-weights, for two arbitrary beliefs about one x_t"
    _, _, level, x_t = batch()
    a, b = (X0.predict(randn(*x_t.shape, seed=s), x_t, level) for s in (5, 6))
    sq = lambda u, v: (u - v).square().flatten(1).sum(1)
    torch.testing.assert_close(
        sq(p.target(*a, level), p.target(*b, level)),
        weight(level).flatten() * sq(a.x0, b.x0),
        rtol=1e-9,
        atol=0,
    )

def test_v_is_the_speed_of_turning():
    """eq-v: v is dx_t/dphi (Salimans & Ho 2022, appendix D), by central differences; error h^2/6 <
    1e-10"""
    x0, eps, level, _ = batch()
    phi, h = torch.atan2(level.noise, level.signal), 1e-5
    at = lambda a: a.cos()*x0 + a.sin()*eps
    torch.testing.assert_close(
        V.target(x0, eps, level), (at(phi + h) - at(phi - h)) / (2 * h), rtol=0, atol=1e-9
    )

def test_linear_fits_in_all_coordinates_are_one_and_equal_the_oracle():
    """An affine least-squares fit from x_t to each target, on one sample, gives the *same*
    belief in all three coordinates; and for
    Gaussian data it is the oracle up to sampling error: with n = 20,000 the coefficients are
    off by about 1/sqrt(n) = 0.7%
    """
    mean, A = torch.tensor([0.5, -1.0], dtype=torch.float64), torch.tensor(
        [[1.0, 0.0], [0.8, 0.3]], dtype=torch.float64
    )
    n = 20_000
    x0, eps = mean + randn(n, 2) @ A.T, randn(n, 2, seed=1)
    level = SCHEDULE.at(250, x0)
    x_t = q_sample(x0, level, eps)
    design = torch.cat([x_t, torch.ones(n, 1, dtype=torch.float64)], 1)
    beliefs = [
        p.predict(
            design @ torch.linalg.lstsq(design, p.target(x0, eps, level)).solution, x_t, level
        ).x0
        for p in ALL
    ]
    for b in beliefs[1:]: torch.testing.assert_close(b, beliefs[0], rtol=0, atol=1e-9)
    exact = GaussianOracle(mean, A @ A.T)(x_t, level).x0
    assert (beliefs[0] - exact).square().mean().sqrt() < 0.03 * x0.std()

def test_parameterizations_are_named_values():
    assert PARAMETERIZATIONS == {'eps': EPS, 'x0': X0, 'v': V}
    assert [repr(p) for p in ALL] == ['EPS', 'X0', 'V']
    with pytest.raises(dataclasses.FrozenInstanceError): V.name = 'eps'

def test_a_coordinate_of_ones_own():
    "The score, exercise 2"
    score = Parameterization(
        'score',
        target=lambda x0, eps, level: -eps / level.noise.to(eps),
        x0=lambda x_t, out, level: EPS.x0(x_t, -level.noise.to(x_t) * out, level),
    )
    x0, eps, level, x_t = batch(dtype=torch.float32)
    got = Denoiser(lambda x, t: score.target(x0, eps, level), score)(x_t, level)
    assert torch.allclose(got.x0, EPS.predict(eps, x_t, level).x0, atol=1e-4)

@pytest.mark.parametrize(
    'wrap', [clipped, lambda d: guided(d, torch.zeros(2).long(), 1.0)], ids=['clipped', 'guided']
)
@pytest.mark.parametrize('training', [True, False])
def test_a_wrapper_starts_in_the_mode_of_what_it_wraps(wrap, training):
    d = Denoiser(nn.Linear(3, 3)).train(training)
    assert all(m.training == training for m in wrap(d).modules())

# --- zero terminal SNR
# -------------------------------------------------------------------------------------

DARK = Schedule(zero_terminal_snr(linear_betas()))

def test_no_signal_v_and_x0_work_and_eps_is_refused():
    x_t = randn(2, 3)
    level = DARK.at(1000, x_t)
    assert (level.signal == 0).all()
    out = randn(2, 3, seed=1)
    assert torch.equal(Denoiser(lambda x, t: out, V)(x_t, level).x0, -out)
    assert torch.equal(Denoiser(lambda x, t: out, V)(x_t, level).eps, x_t)
    assert torch.equal(Denoiser(lambda x, t: out, X0)(x_t, level).eps, x_t)
    with pytest.raises(ValueError, match='no signal is left at t = 1000 .*predict V or X0'):
        Denoiser(lambda x, t: out, EPS)(x_t, level)
    with pytest.raises(ValueError, match='t = 1000'):
        clipped(Denoiser(lambda x, t: out, EPS))(x_t, level)

def test_no_signal_in_one_image_of_a_batch_is_enough():
    x_t = randn(3, 2)
    net = Denoiser(lambda x, t: x)
    assert net(x_t, DARK.at(torch.tensor([1, 500, 999]), x_t)).x0.isfinite().all()
    with pytest.raises(ValueError, match='t = 1000'):
        net(x_t, DARK.at(torch.tensor([1, 1000, 999]), x_t))

# --- Denoiser
# ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('shape', [(), (7,), (1, 9, 5), (3, 2, 4, 5)], ids=str)
@pytest.mark.parametrize('p', ALL, ids=repr)
def test_any_shape_and_every_belief_adds_up(p, shape):
    """x_t = signal x0 + noise eps for an arbitrary output; one-pixel batches (B,) and video
    (B,C,T,H,W) too"""
    _, _, level, x_t = batch(shape)
    got = Denoiser(lambda x, t: x.sin() + 1, p)(x_t, level)
    assert isinstance(got, Prediction) and got.x0.shape == got.eps.shape == x_t.shape
    torch.testing.assert_close(
        level.signal * got.x0 + level.noise * got.eps, x_t, rtol=0, atol=1e-12
    )

def test_what_the_network_is_given():
    seen = []
    def net(*args): seen.append(args); return torch.zeros_like(args[0])
    x_t, y = randn(3, 2, dtype=torch.float32), torch.tensor([4, 0, -1])
    ts = torch.tensor([1, 500, 1000])
    before = x_t.clone()
    Denoiser(net)(x_t, SCHEDULE.at(ts, x_t))
    Denoiser(net)(x_t, SCHEDULE.at(ts, x_t), y)
    Denoiser(net)(x_t, SCHEDULE.at(9, x_t))
    assert [len(a) for a in seen] == [2, 3, 2]  # y is left out when there is none
    assert all(a[0] is x_t for a in seen) and torch.equal(x_t, before)
    assert (
        seen[0][1].dtype == torch.long
        and seen[0][1].tolist() == [1, 500, 1000]
        and seen[2][1].tolist() == [9, 9, 9]
    )
    assert torch.equal(seen[1][2], y)

def test_a_module_inside_is_a_submodule():
    net = nn.Linear(4, 4)
    class Wrap(nn.Module):
        def __init__(self): super().__init__(); self.net, self.drop = net, nn.Dropout(0.5)
        def forward(self, x, t): return self.drop(self.net(x))
    d = clipped(Denoiser(Wrap(), V))
    assert {id(p) for p in d.parameters()} == {id(p) for p in net.parameters()}
    assert not d.eval().denoiser.net.drop.training and d.train().denoiser.net.drop.training
    x_t = 0.1 * randn(5, 4, dtype=torch.float32)
    d.eval()(x_t, SCHEDULE.at(400, x_t)).x0.sum().backward()
    assert net.weight.grad.abs().sum() > 0

@pytest.mark.parametrize('p', ALL, ids=repr)
@pytest.mark.parametrize('half', [torch.bfloat16, torch.float16])
def test_a_half_precision_network_answers_in_the_precision_of_the_images(p, half):
    "As under autocast: only the output is rounded, never the coefficients of the level"
    x0, eps, level, x_t = batch(dtype=torch.float32, ts=torch.tensor([300, 500, 999]))
    out = p.target(x0, eps, level).to(half)
    got, want = Denoiser(lambda x, t: out, p)(x_t, level), p.predict(
        out.double(), x_t.double(), level
    )
    assert got.x0.dtype == got.eps.dtype == torch.float32
    torch.testing.assert_close(got.x0.double(), want.x0, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(got.eps.double(), want.eps, rtol=1e-5, atol=1e-4)

def test_bad_inputs_are_refused_by_name():
    x_t = randn(4, 3, 6, 4)
    level = SCHEDULE.at(10, x_t)
    same, yes = Denoiser(lambda x, t: x), Denoiser(lambda x, t, y: x)
    with pytest.raises(ValueError, match='t = 0 is the data itself.*1..T'):
        same(x_t, SCHEDULE.at(0, x_t))
    with pytest.raises(ValueError, match='t = 0'):
        same(x_t, SCHEDULE.at(torch.tensor([3, 0, 1, 2]), x_t))
    with pytest.raises(ValueError, match=r'\(4, 2, 6, 4\) for an input of \(4, 3, 6, 4\)'):
        Denoiser(lambda x, t: x[:, :2])(x_t, level)
    # would broadcast
    with pytest.raises(ValueError, match=r'\(4, 1, 6, 4\)'):
        Denoiser(lambda x, t: x[:, :1])(x_t, level)
    # learned variances
    with pytest.raises(ValueError, match=r'the network returned \(4, 6, 6, 4\)'):
        Denoiser(lambda x, t: torch.cat([x, x], 1))(x_t, level)
    with pytest.raises(TypeError, match='returned a tuple'): Denoiser(lambda x, t: (x,))(x_t, level)
    with pytest.raises(TypeError, match='returned a NoneType'):
        Denoiser(lambda x, t: None)(x_t, level)
    # would broadcast
    with pytest.raises(ValueError, match=r'y has shape \(1,\); .* 4 images'):
        yes(x_t, level, torch.tensor([3]))
    with pytest.raises(ValueError, match=r'y has shape \(\)'): yes(x_t, level, torch.tensor(3))

@pytest.mark.parametrize(
    'like', [(1, 3, 6, 4), (6, 3, 6, 4), (4, 72), (6, 4), (4, 1, 3, 6, 4)], ids=str
)
def test_a_level_of_another_batch_is_refused(like):
    "(1, ...) and (6, 4) would broadcast without a word: the second over the rows of each image"
    x_t = randn(4, 3, 6, 4)
    with pytest.raises(ValueError, match=r'the level has shape .* needs \(4, 1, 1, 1\)'):
        Denoiser(lambda x, t: x)(x_t, SCHEDULE.at(10, torch.zeros(like)))

# --- clipped
# -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('p', ALL, ids=repr)
def test_clipping_brings_every_pixel_closer_to_any_image(p):
    "eq-clip-x0: in x0 and in eps; the belief still adds up; twice is once"
    x0 = 2*torch.rand(len(TS), 3, 4, 5, generator=rng(3), dtype=torch.float64) - 1
    eps = randn(*x0.shape, seed=4)
    level = SCHEDULE.at(TS, x0)
    x_t = q_sample(x0, level, eps)
    plain = Denoiser(lambda x, t: p.target(x0, eps, level) + randn(*x0.shape, seed=5), p)
    a, b = plain(x_t, level), clipped(plain)(x_t, level)
    assert a.x0.abs().max() > 1.5 and b.x0.min() >= -1 and b.x0.max() <= 1
    assert ((b.x0 - x0).abs() <= (a.x0 - x0).abs() + 1e-12).all()
    assert ((b.eps - eps).abs() <= (a.eps - eps).abs() + 1e-10).all()
    torch.testing.assert_close(level.signal * b.x0 + level.noise * b.eps, x_t, rtol=0, atol=1e-12)
    twice = clipped(clipped(plain))(x_t, level)
    assert torch.equal(twice.x0, b.x0) and torch.equal(twice.eps, b.eps)

def test_clipping_leaves_a_good_denoiser_alone():
    "The posterior mean of images in [-1, 1] lies there itself"
    images = 2*torch.rand(20, 6, generator=rng(), dtype=torch.float64) - 1
    oracle = MixtureOracle(images)
    x_t = 3 * randn(len(TS), 6)
    level = SCHEDULE.at(TS, x_t)
    assert torch.equal(clipped(oracle)(x_t, level).x0, oracle(x_t, level).x0)

def test_clipping_passes_labels_on_and_keeps_the_dtype():
    means = torch.tensor([[-3.], [0.25], [3.]])
    d = clipped(Denoiser(lambda x, t, y: means[y], X0))
    x_t = torch.zeros(3, 1)
    got = d(x_t, SCHEDULE.at(500, x_t), torch.arange(3))
    assert got.x0.flatten().tolist() == [-1, 0.25, 1] and got.eps.dtype == torch.float32
    # labels are never ignored
    with pytest.raises(TypeError, match='takes no labels'):
        clipped(Denoiser(lambda x, t: x))(x_t, SCHEDULE.at(500, x_t), torch.arange(3))

# --- eval mode for a while (it was wrong for a wrapper with two parts, one of them put into
# training mode on the way) ---
class Pair(nn.Module):
    "A wrapper with two networks"
    def __init__(self):
        super().__init__()
        self.a, self.b = (
            Denoiser(nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 3))) for _ in range(2)
        )

def modes(module): return [m.training for m in module.modules()]

@pytest.mark.parametrize(
    'arrange',
    [
        lambda p: p.train(),
        lambda p: p.eval(),
        lambda p: p.eval().a.train(),
        lambda p: p.train().b.net.eval(),
    ],
)
def test_evaluating_any_wrapper_leaves_every_mode_as_it_was(arrange):
    pair = Pair(); arrange(pair)
    before, quiet = modes(pair), evaluating(pair)
    for _ in range(2):                                       # may be entered again
        with quiet: assert not any(modes(pair)) and not torch.is_grad_enabled()
        assert modes(pair) == before and torch.is_grad_enabled()
    with pytest.raises(RuntimeError, match='on the way'):
        with quiet: raise RuntimeError('on the way')
    assert modes(pair) == before and torch.is_grad_enabled()
    pair.eval(); pair.b.train()  # by whoever holds it, between two calls
    with quiet: assert not any(modes(pair))
    assert all(modes(pair.b)) and not any(modes(pair.a))
    with torch.no_grad():
        with quiet: pass
        assert not torch.is_grad_enabled()

class Linear(nn.Linear):
    def forward(self, x, t): return super().forward(x)

def test_a_network_computes_in_the_precision_of_its_weights():
    x = randn(7, 3, dtype=torch.float32)
    for dtype in (torch.bfloat16, torch.float64):
        net = Linear(3, 3).to(dtype)
        got = Denoiser(net, X0)(x, SCHEDULE.at(TS, x)).x0
        assert got.dtype == x.dtype and torch.equal(got, net(x.to(dtype), None).to(x))
