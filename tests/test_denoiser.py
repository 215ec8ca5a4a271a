"Chapter 3 from outside: linear algebra by NumPy, derivatives by autograd, and a user's mistakes"
import numpy as np, pytest, torch
from conftest import gen, randn, refused, within
from torch import nn
from diffusion_scratch.denoiser import (EPS, PARAMETERIZATIONS, V, VELOCITY, X0, Denoiser,
                                        Prediction, clipped, evaluating)
from diffusion_scratch.guidance import guided
from diffusion_scratch.noising import q_sample
from diffusion_scratch.schedule import Schedule, cosine_betas, linear_betas, zero_terminal_snr

ALL = [EPS, X0, V]
SCHEDULE = Schedule(linear_betas())
DARK = Schedule(zero_terminal_snr(linear_betas()))
TS = torch.tensor([1, 2, 50, 300, 700, 999, 1000])
every_p = pytest.mark.parametrize('p', ALL, ids=repr)

class Net(nn.Sequential):
    def forward(self, x, t): return super().forward(x)

def batch(shape=(3, 4, 5), dtype=torch.float64, schedule=SCHEDULE, ts=TS):
    "x0, eps, level, x_t for one image at each timestep"
    x0, eps = (randn(len(ts), *shape, seed=seed, dtype=dtype) for seed in (0, 1))
    level = schedule.at(ts, x0)
    return x0, eps, level, q_sample(x0, level, eps)

@every_p
@pytest.mark.parametrize('betas', [linear_betas(), cosine_betas()], ids=['linear', 'cosine'])
def test_prediction_solves_the_two_equations(p, betas):
    "eq-eps-x0, eq-v, eq-v-inverse: NumPy solves x_t and any output for (x0, eps)"
    _, _, level, x_t = batch(schedule=Schedule(betas), ts=torch.tensor([1, 10, 400, 900]))
    out = randn(*x_t.shape, seed=7)
    got = torch.stack(list(p.predict(out, x_t, level)))
    for i in range(4):
        s, n = level.signal[i].item(), level.noise[i].item()
        # the output as a combination of (x0, eps)
        second = {'eps': (0, 1), 'x0': (1, 0), 'v': (-n, s)}[p.name]
        want = np.linalg.solve([[s, n], second], torch.stack([x_t[i], out[i]]).reshape(2, -1))
        np.testing.assert_allclose(got[:, i].reshape(2, -1), want, rtol=1e-9, atol=1e-9)

@every_p
@pytest.mark.parametrize('dtype, tol', [(torch.float64, 1e-12), (torch.float32, 2e-4)])
def test_target_then_predict_is_the_truth(p, dtype, tol):
    "Float32 loses 6e-8 times the largest division, 157, times values of up to 4: 2e-4 is generous"
    x0, eps, level, x_t = batch(dtype=dtype)
    for a, b in zip(p.predict(p.target(x0, eps, level), x_t, level), (x0, eps)):
        assert a.dtype == dtype
        within(a, b, tol)

def test_parameterizations_are_named_values():
    assert PARAMETERIZATIONS == {'eps': EPS, 'x0': X0, 'v': V, 'velocity': VELOCITY}
    assert [repr(p) for p in ALL] == ['EPS', 'X0', 'V']
    with pytest.raises(AttributeError, match='cannot assign'): V.name = 'eps'

# Denoiser
def test_no_signal_v_and_x0_work_and_eps_is_refused():
    "Zero terminal SNR; one such image of a batch is enough"
    x_t, out = randn(2, 3), randn(2, 3, seed=1)
    level = DARK.at(1000, x_t)
    by = lambda p: Denoiser(lambda x, t: out, p)
    assert (level.signal == 0).all() and torch.equal(by(V)(x_t, level).x0, -out)
    for p in (V, X0): assert torch.equal(by(p)(x_t, level).eps, x_t)
    assert by(EPS)(x_t, DARK.at(torch.tensor([1, 999]), x_t)).x0.isfinite().all()
    for t in (1000, torch.tensor([1, 1000])):
        for denoiser in (by(EPS), clipped(by(EPS))):
            with pytest.raises(ValueError, match='no signal is left at t = 1000 .*predict V or X0'):
                denoiser(x_t, DARK.at(t, x_t))

@every_p
@pytest.mark.parametrize('shape', [(), (7,), (1, 9, 5), (3, 2, 4, 5)], ids=str)
def test_any_shape_and_every_prediction_adds_up(p, shape):
    "x_t = signal x0 + noise eps for any output; one-pixel batches (B,) and video (B,C,T,H,W) too"
    _, _, level, x_t = batch(shape)
    got = Denoiser(lambda x, t: x.sin() + 1, p)(x_t, level)
    assert isinstance(got, Prediction) and got.x0.shape == got.eps.shape == x_t.shape
    within(level.signal * got.x0 + level.noise * got.eps, x_t, 1e-12)

def test_what_the_network_is_given():
    "x_t itself, whole timesteps, one for each image, and the labels if there are some"
    seen = []
    def net(*args): seen.append(args); return torch.zeros_like(args[0])
    x_t, y, ts = randn(3, 2, dtype=torch.float32), torch.tensor([4, 0, -1]), [1, 500, 1000]
    for t, *labels in ((torch.tensor(ts),), (torch.tensor(ts), y), (9,)):
        Denoiser(net)(x_t, SCHEDULE.at(t, x_t), *labels)
    assert [len(a) for a in seen] == [2, 3, 2] and torch.equal(seen[1][2], y)
    assert all(a[0] is x_t and a[1].dtype == torch.long for a in seen)
    assert [a[1].tolist() for a in seen] == [ts, ts, [9, 9, 9]]
    assert torch.equal(x_t, randn(3, 2, dtype=torch.float32))

def test_a_module_inside_is_a_submodule():
    net = Net(nn.Linear(4, 4), nn.Dropout(0.5))
    d = clipped(Denoiser(net, V))
    assert {id(p) for p in d.parameters()} == {id(p) for p in net.parameters()}
    assert d.train() and net[1].training and d.eval() and not net[1].training
    x_t = 0.1 * randn(5, 4, dtype=torch.float32)
    d(x_t, SCHEDULE.at(400, x_t)).x0.sum().backward()
    assert net[0].weight.grad.abs().sum() > 0

@every_p
@pytest.mark.parametrize('half', [torch.bfloat16, torch.float16])
def test_a_half_precision_network_answers_in_the_precision_of_the_images(p, half):
    "As under autocast: only the output is rounded, never the coefficients of the level"
    x0, eps, level, x_t = batch(dtype=torch.float32, ts=torch.tensor([300, 500, 999]))
    out = p.target(x0, eps, level).to(half)
    got = Denoiser(lambda x, t: out, p)(x_t, level)
    for a, b in zip(got, p.predict(out.double(), x_t.double(), level)):
        assert a.dtype == torch.float32
        within(a.double(), b, 1e-4, 1e-5)

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_a_network_computes_in_the_precision_of_its_weights(dtype):
    "Also one that was put in the place of another"
    x, net = randn(7, 3, dtype=torch.float32), Net(nn.Linear(3, 3)).to(dtype)
    changed = Denoiser(Net(nn.Linear(3, 3)), X0)
    changed.net = net
    for d in (Denoiser(net, X0), changed):
        got = d(x, SCHEDULE.at(TS, x)).x0
        assert got.dtype == x.dtype and torch.equal(got, net(x.to(dtype), None).to(x))

@pytest.mark.parametrize('case', [
    (dict(t=0), 't = 0 is the data itself.*1..T'), (dict(t=torch.tensor([3, 0, 1, 2])), 't = 0'),
    (dict(y=torch.tensor([3])), r'y has shape \(1,\); .* 4 images'),  # would broadcast
    (dict(y=torch.tensor(3)), r'y has shape \(\)'),
    (dict(net=lambda x, t: x[:, :2]), r'\(4, 2, 6, 4\) for an input of \(4, 3, 6, 4\)'),
    (dict(net=lambda x, t: x[:, :1]), r'\(4, 1, 6, 4\)'),  # would broadcast
    # learned variances
    (dict(net=lambda x, t: torch.cat([x, x], 1)), r'the network returned \(4, 6, 6, 4\)'),
    *((dict(net=lambda x, t, out=out: out), f'returned a {type(out).__name__}', TypeError)
      for out in ((), None)),
    # (1, ...) and (6, 4) would broadcast without a word: the second over the rows of each image
    *((dict(like=torch.zeros(shape)), r'the level has shape .* needs \(4, 1, 1, 1\)')
      for shape in [(1, 3, 6, 4), (6, 3, 6, 4), (4, 72), (6, 4), (4, 1, 3, 6, 4)]),
])
def test_bad_inputs_and_outputs_are_refused_by_name(case):
    given, says, *error = case
    x_t = randn(4, 3, 6, 4)
    o = dict(net=lambda x, t, y=None: x, t=10, y=None, like=x_t) | given
    refused(lambda: Denoiser(o['net'])(x_t, SCHEDULE.at(o['t'], o['like']), o['y']), says, *error)

# Wrappers
@every_p
def test_clipping_brings_every_pixel_closer_to_any_image(p):
    "eq-clip-x0: in x0 and in eps; the prediction still adds up; twice is once"
    x0 = 2*torch.rand(len(TS), 3, 4, 5, generator=gen(3), dtype=torch.float64) - 1
    eps, level = randn(*x0.shape, seed=4), SCHEDULE.at(TS, x0)
    x_t = q_sample(x0, level, eps)
    plain = Denoiser(lambda x, t: p.target(x0, eps, level) + randn(*x0.shape, seed=5), p)
    a, b = plain(x_t, level), clipped(plain)(x_t, level)
    assert a.x0.abs().max() > 1.5 and b.x0.min() >= -1 and b.x0.max() <= 1
    assert ((b.x0 - x0).abs() <= (a.x0 - x0).abs() + 1e-12).all()
    assert ((b.eps - eps).abs() <= (a.eps - eps).abs() + 1e-10).all()
    within(level.signal * b.x0 + level.noise * b.eps, x_t, 1e-12)
    for once, twice in zip(b, clipped(clipped(plain))(x_t, level)): assert torch.equal(once, twice)

def test_clipping_passes_labels_on_and_keeps_the_dtype():  # labels are never ignored
    means, x_t = torch.tensor([[-3.], [0.25], [3.]]), torch.zeros(3, 1)
    ask = lambda d: clipped(d)(x_t, SCHEDULE.at(500, x_t), torch.arange(3))
    got = ask(Denoiser(lambda x, t, y: means[y], X0))
    assert got.x0.flatten().tolist() == [-1, 0.25, 1] and got.eps.dtype == torch.float32
    with pytest.raises(TypeError, match='takes no labels'): ask(Denoiser(lambda x, t: x))

@pytest.mark.parametrize('wrap', [clipped, lambda d: guided(d, torch.zeros(2).long(), 1.0)])
@pytest.mark.parametrize('training', [True, False])
def test_a_wrapper_starts_in_the_mode_of_what_it_wraps(wrap, training):
    d = Denoiser(nn.Linear(3, 3)).train(training)
    assert all(m.training == training for m in wrap(d).modules())

@pytest.mark.parametrize('arrange', [lambda p: p.train(), lambda p: p.eval(),
                                     lambda p: p.eval()[0].train(),
                                     lambda p: p.train()[1][0].eval()])
def test_evaluating_any_wrapper_leaves_every_mode_as_it_was(arrange):
    "Also of a wrapper with two parts, in different modes; it may be entered again"
    pair = nn.Sequential(*(nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 3)) for _ in range(2)))
    arrange(pair)
    modes = lambda m: [part.training for part in m.modules()]
    before, quiet = modes(pair), evaluating(pair)
    for _ in range(2):
        with quiet: assert not any(modes(pair)) and not torch.is_grad_enabled()
        assert modes(pair) == before and torch.is_grad_enabled()
    with pytest.raises(RuntimeError, match='on the way'):
        with quiet: raise RuntimeError('on the way')
    assert modes(pair) == before and torch.is_grad_enabled()
    pair.eval()[1].train()  # by whoever holds it, between two calls
    with quiet: assert not any(modes(pair))
    assert all(modes(pair[1])) and not any(modes(pair[0]))
    with torch.no_grad():
        with quiet: pass
        assert not torch.is_grad_enabled()
