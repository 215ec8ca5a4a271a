"Training from outside: against Adam and Algorithm 1 written out; steps that are refused"
import copy, math
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from conftest import refused
from diffusion_scratch.data import ImageSet, to_uint8
from diffusion_scratch.denoiser import EPS, Denoiser
from diffusion_scratch.engine import Engine
from diffusion_scratch.guidance import NULL, drop_labels
from diffusion_scratch.loss import draw_level, loss_at, uniform, v_weight
from diffusion_scratch.training import (Metrics, TrainState, batches, ema_decay, ema_update, fit,
                                        measure, random_at, read_together, warmup_constant,
                                        warmup_cosine)
from helpers_training import OPTIONS, SCHEDULE, everything, images, same, start, train

pytestmark = pytest.mark.usefixtures('one_thread')

class Linear(nn.Module):
    "The smallest network, whose gradient is known"
    def __init__(self): super().__init__(); self.w = nn.Parameter(torch.tensor([0.5, -0.5]))
    def forward(self, x, t): return self.w[0] * x + self.w[1]

def test_learning_rates():
    "eq-warmup, eq-cosine-lr at their ends: without warm-up, with nothing else, and afterwards"
    assert warmup_constant(0.4, 0)(0) == 0.4 and warmup_cosine(0.4, 0, 10)(0) == 0.4
    assert [warmup_cosine(1., 5, 5)(k) for k in range(5)] == [0.2, 0.4, 0.6, 0.8, 1.]
    wave = warmup_cosine(0.4, 4, 24)
    assert [wave(k) for k in (0, 3, 14, 100)] == pytest.approx([0.1, 0.4, 0.2, 0], abs=1e-15)
    assert all(type(wave(k)) is float for k in range(30))

def test_the_decay_grows_to_its_limit():
    "eq-ema-decay: 0.998 from step 4490 on, where (1 + k) / (10 + k) is larger"
    assert [ema_decay(k, 0.9999) for k in (1, 90, 10**7)] == [2/11, 0.91, 0.9999]
    assert [ema_decay(k, 0.998) == 0.998 for k in (4489, 4490, 4491)] == [False, True, True]
    assert ema_decay(3, 0.) == 0

def test_the_average_copies_buffers():
    net = nn.BatchNorm1d(2)
    ema = copy.deepcopy(net)
    net.running_mean.add_(1.)
    ema_update(ema, net, 0.9)
    assert torch.equal(ema.running_mean, net.running_mean) and ema.weight.requires_grad

# ---------------------------------------------------------------- one step
@pytest.mark.parametrize('clip', [2., math.inf])
def test_steps_are_those_of_adam_written_out(clip):
    "eq-adam, eq-clip, eq-ema; infinity clips nothing"
    s = TrainState(Denoiser(Linear()), betas=(0.8, 0.95), ema=0.999)
    w, m, u, ema = np.array([0.5, -0.5]), np.zeros(2), np.zeros(2), np.array([0.5, -0.5])
    for k, a in enumerate(np.array([[3., 4.], [0.1, -0.2], [0., 7e5], [-1., 0.01]]), 1):
        loss = (torch.tensor(a, dtype=torch.float32) * s.denoiser.net.w).sum()
        value, norm = s.update(loss, lr=0.01 * k, clip=clip)
        assert value == pytest.approx(a @ w, rel=1e-5, abs=1e-6)
        assert norm == pytest.approx(np.linalg.norm(a), rel=1e-5)
        g = a * min(1, clip / np.linalg.norm(a))
        m, u = 0.8*m + 0.2*g, 0.95*u + 0.05*g**2
        w = w - 0.01 * k * (m / (1 - 0.8**k)) / (np.sqrt(u / (1 - 0.95**k)) + 1e-8)
        d = (1 + k) / (10 + k)
        ema = d * ema + (1 - d) * w
        np.testing.assert_allclose(s.denoiser.net.w.detach(), w, rtol=1e-5)
        np.testing.assert_allclose(s.ema.net.w, ema, rtol=1e-5)
        assert s.step == k

@pytest.mark.parametrize('loss, lr, message', [
    (lambda w: w.sum() * math.nan, 0.1, 'step 3 was not taken: loss nan'),
    (lambda w: (w * math.inf).sum(), 0.1, 'loss nan|loss inf|loss -inf'),
    (lambda w: (w - w.detach()).abs().sqrt().sum(), 0.1, 'loss 0, gradient norm nan'),
    (lambda w: w.sum(), math.inf, 'learning rate inf'),
    (lambda w: w.sum(), math.nan, 'learning rate nan')])
def test_a_step_that_is_not_finite_is_not_taken_and_leaves_no_trace(loss, lr, message):
    one, two = (TrainState(Denoiser(Linear())) for _ in range(2))
    def good_step(s): s.update(s.denoiser.net.w.square().sum(), 0.1, 1.)
    for s in (one, one, two, two): good_step(s)
    refused(lambda: one.update(loss(one.denoiser.net.w), lr, 1.), message, FloatingPointError)
    assert same(everything(one), everything(two))
    for s in (one, two): good_step(s)
    assert same(everything(one), everything(two))

@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError])
def test_a_step_that_is_interrupted_leaves_no_trace(error):
    "In the second part of a batch, when the first one has left its gradient"
    s, untouched, calls = start(), start(), []
    def weight(level):
        calls.append(len(level.t))
        if len(calls) == 6: raise error
        return v_weight(level)
    with pytest.raises(error): train(s, 20, accumulate=2, weight=weight)
    assert calls == [4] * 6 and s.step == 2
    train(s, 4); train(untouched, 2, accumulate=2); train(untouched, 4)
    assert same(everything(s), everything(untouched))

# ---------------------------------------------------------------- batches
NUMBERED = ImageSet(torch.arange(23, dtype=torch.uint8).view(23, 1, 1, 1), torch.arange(23))

def take(n, size, **options):
    "Epochs and labels of n batches; images and labels stay together"
    rows = [row for row, _ in zip(batches(NUMBERED, size, **options), range(n))]
    assert all(torch.equal(to_uint8(x).flatten().long(), y) for _, x, y in rows)
    return [(epoch, y.tolist()) for epoch, _, y in rows]

def test_an_epoch_shows_each_image_at_most_once_and_the_rest_gets_its_turn():
    "eq-epoch"
    got = take(3 * 50, 7)
    assert [e for e, _ in got] == [e for e in range(50) for _ in range(3)]
    epochs = [sum((y for _, y in got[3*e:3*e+3]), []) for e in range(50)]
    assert all(len(set(e)) == 21 for e in epochs) and len({tuple(e) for e in epochs}) == 50
    missed = np.bincount([i for e in epochs for i in set(range(23)) - set(e)], minlength=23)
    # 100 places over 23 images: Poisson(4.3), P(any >= 15) < 1e-3, and the seed is fixed
    assert missed.sum() == 100 and missed.max() < 15
    assert sorted(take(1, 23)[0][1]) == list(range(23))  # a batch may be the whole set

def test_the_order_depends_on_seed_and_step_alone():
    whole = take(30, 5, seed=1)
    for first in (1, 3, 4, 5, 17): assert take(30 - first, 5, seed=1, start=first) == whole[first:]
    assert take(30, 5, seed=2) != whole

def test_half_of_the_images_are_mirrored_and_the_same_ones_again():
    left = ImageSet(torch.tensor([0, 255], dtype=torch.uint8).expand(64, 1, 1, 2).contiguous())
    def seen(n, **options):
        return [x[:, 0, 0, 0] for (_, x, _), _ in zip(batches(left, 32, **options), range(n))]
    mirrored = seen(50, flip=True)
    share = torch.cat(mirrored).gt(0).float().mean().item()
    assert abs(share - 0.5) < 4.5 * 0.5 / 1600**0.5  # 4.5 standard errors
    assert not torch.equal(*mirrored[:2])
    assert torch.equal(*seen(1, flip=True, start=7), mirrored[7])
    assert (torch.cat(seen(5)) == -1).all()

# ---------------------------------------------------------------- fit
def test_a_step_of_fit_is_algorithm_1_written_out():
    "With the randomness of the step given: eps - net(...), and torch's own optimizer"
    data, s, lr = images(classes=0), start(parameterization=EPS, num_classes=0), 2e-4
    net = copy.deepcopy(s.denoiser.net).train()
    adam = torch.optim.Adam(net.parameters(), lr=lr, betas=(0.9, 0.99), fused=False)
    [m] = train(s, 1, data, lr=warmup_constant(1e-3, 5), weight=uniform, flip=False)
    _, x0, _ = next(batches(data, 8, seed=3))
    with random_at(3, 0):
        t, eps = torch.randint(1, 51, (8,)), torch.randn(8, 1, 8, 8)
        ab = SCHEDULE.alpha_bar[t].float().view(-1, 1, 1, 1)
        loss = (eps - net(ab.sqrt() * x0 + (1 - ab).sqrt() * eps, t)).square().mean()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(net.parameters(), 1.)
    adam.step()
    assert m.loss == pytest.approx(loss.item(), rel=1e-4) and m.lr == lr
    assert m.grad_norm == pytest.approx(norm.item(), rel=1e-3)
    pairs = list(zip(net.parameters(), s.denoiser.net.parameters()))
    close = [torch.isclose(p, q, atol=2e-6, rtol=0).float().mean() for p, q in pairs]
    # Adam's first step is lr * sign(gradient): a gradient of nearly 0 may have either sign
    assert torch.stack(close).mean() > 0.97

def test_fit_is_the_loop_that_a_reader_writes():
    "In plain PyTorch, by `Engine` and by `fit`, with dropout, hidden labels and flips: equal bits"
    by_hand, by_fit, by_engine, rows = start(), start(), start(), []
    engine = Engine(by_engine, batch_size=8, accumulate=1)
    for epoch, x0, y in batches(images(), 8, seed=3, flip=True):
        by_hand.denoiser.train()
        with random_at(3, by_hand.step):
            y = drop_labels(y, 0.3)
            level, eps = draw_level(SCHEDULE, x0)
            random, rate = torch.get_rng_state(), OPTIONS['lr'](by_hand.step)
            losses = loss_at(by_hand.denoiser, x0, level, eps, y, weight=v_weight)
            rows.append((by_hand.step + 1, epoch, *by_hand.update(losses.mean(), rate, 1.)))
            torch.set_rng_state(random)
            assert torch.equal(engine.backward(loss_at, x0, level, eps, y, weight=v_weight), losses)
            assert engine.step(rate, 1.) == rows[-1][-1]
            by_engine.advance()
        if by_hand.step == 6: break  # in the second epoch
    assert [(m.step, m.epoch, m.loss, m.grad_norm) for m in train(by_fit, 6)] == rows
    assert same(everything(by_hand), everything(by_fit))
    assert same(everything(by_hand), everything(by_engine))

class Reads(TorchDispatchMode):
    "Counts the floats that Python reads from tensors: on a GPU, it waits at each"
    def __init__(self): super().__init__(); self.n = 0
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        name = f.overloadpacket.__name__
        self.n += name == '_local_scalar_dense' and args[0].is_floating_point()
        return f(*args, **kwargs or {})

def test_rare_looks_change_no_number_and_read_none_between_them():
    each, rare, reads = start(), start(), []
    rows = fit(rare, SCHEDULE, images(), steps=11, **OPTIONS, look=lambda step: step % 4 == 0)
    found, waiting = [], []
    for step in range(1, 12):
        with Reads() as counted: waiting.append(next(rows))
        reads.append(counted.n)
        if step in (4, 8, 11): found, waiting = found + read_together(waiting), []
    assert [n > 0 for n in reads] == [step in (4, 8, 11) for step in range(1, 12)]
    for a, b in zip(train(each, 11), found, strict=True):
        np.testing.assert_equal(a._replace(images_per_second=0, loading=0, memory=0),
                                b._replace(images_per_second=0, loading=0, memory=0))
    assert same(everything(each), everything(rare))
    assert len({m.images_per_second for m in found[:4]}) == 1

def test_metrics_tell_what_happened():
    ms = train(start(), 20, explode=1e6)  # a limit out of reach stops nothing
    assert [(m.step, m.epoch, m.lr) for m in ms] == [(k + 1, k // 5, OPTIONS['lr'](k))
                                                     for k in range(20)]
    assert all(isinstance(m, Metrics) and min(m.loss, m.grad_norm) > 0 for m in ms)
    assert all(m.images_per_second > 0 and 0 <= m.loading < 1 and m.memory > 1 for m in ms)
    def quarters(m): return [m.loss_q1, m.loss_q2, m.loss_q3, m.loss_q4]
    rows = np.array([quarters(m) for m in ms])
    assert np.isnan(rows).any() and (np.nanmean(rows, 1) > 0).all()  # 8 images may miss one
    [many] = train(start(), 1, images(400), batch_size=400)
    # quarters of about 100 images each
    assert abs(np.mean(quarters(many)) - many.loss) < 0.1 * many.loss

def test_a_run_is_a_function_of_its_seed_and_nothing_outside():
    one, two, other = start(), start(), start()
    a, b, x = train(one, 6), [], torch.zeros(2, 1, 8, 8)
    torch.manual_seed(123); np.random.seed(5)
    for m in fit(two, SCHEDULE, images(), steps=6, **OPTIONS):
        b.append(m)
        torch.rand(100)                                          # as a preview does
        two.denoiser.eval(); two.denoiser(x, SCHEDULE.at(3, x))
    assert same(everything(one), everything(two)) and [m[:5] for m in a] == [m[:5] for m in b]
    train(other, 6, seed=4)
    assert not same(everything(one), everything(other))

def test_random_numbers_outside_are_left_alone():
    def failing(): refused(lambda: train(start(), 2, explode=1e-9), 'not taken', FloatingPointError)
    def after(use): torch.manual_seed(7); use(); return torch.rand(3)
    want = after(lambda: None)
    for use in (failing, lambda: train(start(), 2),
                lambda: measure(start(), SCHEDULE, images(), 3, **OPTIONS)):
        assert torch.equal(after(use), want)

def test_measuring_and_steps_that_are_done_change_nothing():
    a, b = start(), start()
    rows = measure(a, SCHEDULE, images(), 3, **OPTIONS)
    assert [m.step for m in rows] == [1, 2, 3] and same(everything(a), everything(b))
    train(a, 4); train(b, 4)
    assert train(a, 4) == train(a, 1) == [] and same(everything(a), everything(b))

class Spy(nn.Module):
    "Notes the labels it is given, and learns nothing"
    def __init__(self): super().__init__(); self.w, self.seen = nn.Parameter(torch.zeros(1)), []
    def forward(self, x, t, y=None): self.seen.append((y, self.training, t)); return x * self.w

@pytest.mark.parametrize('p, seen', [(0., range(4)), (0.1, range(-1, 4)), (1., [NULL])])
def test_the_share_of_hidden_labels_and_the_spread_of_timesteps(p, seen):
    s, unlabelled = start(net=Spy()), start(net=Spy())
    train(s, 100, images(400), batch_size=64, label_dropout=p, weight=uniform)
    ys, modes, ts = zip(*s.denoiser.net.seen[p > 0:])  # but for the look at label -1
    y, t = torch.cat(ys), torch.cat(ts)
    assert abs((y == NULL).float().mean() - p) <= 4.5 * (p * (1 - p) / len(y))**0.5
    assert set(y.tolist()) == {*seen} and all(modes)
    counts = t.bincount(minlength=51)
    assert counts[0] == 0 and len(counts) == 51
    chi_squared = ((counts[1:] - 128) / 128**0.5).square().sum()  # 49 degrees of freedom
    assert chi_squared < 49 + 4.5 * (2*49)**0.5
    train(unlabelled, 3, images(classes=0), label_dropout=p)
    assert all(y is None for y, _, _ in unlabelled.denoiser.net.seen)

# ---------------------------------------------------------------- what is refused
ALIKE = ImageSet(torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.arange(40) % 4)

def update(s, clip): s.update(sum(w.sum() for w in s.denoiser.parameters()), 0.1, clip)

@pytest.mark.parametrize('use, values, message', [
    (lambda s, ema: TrainState(s.denoiser, ema=ema), (1., -0.1, 1.5, math.nan), 'ema = {} is out'),
    (lambda s, clip: train(s, 3, clip=clip), (0., -1., math.nan), 'clip = {} must be positive'),
    (update, (0., -1., math.nan), 'clip = {} must be positive'),
    (lambda s, n: take(1, n), (24, 0, -1), "batch_size = {} is outside 1..23, .* set 'images'"),
    (lambda s, n: train(s, 2, batch_size=n), (41, 0, -1), 'batch_size = {} '),
    (lambda s, p: train(s, 2, label_dropout=p), (1.1, -0.1), 'label_dropout = {} is outside 0..1'),
    (lambda s, data: train(s, 2, data), [ALIKE], 'every pixel of the 40 images .* is -1')])
def test_what_makes_no_sense_is_refused_and_leaves_no_trace(use, values, message):
    s = start()
    before = everything(s)
    for value in values: refused(lambda: use(s, value), message.format(value))
    assert same(everything(s), before)

class Sick(nn.Module):
    "Three layers, and what `spoil` does to the output of the first"
    def __init__(self, spoil=lambda h, t: h):
        super().__init__()
        self.first, self.middle = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1)
        self.last, self.spoil = nn.Conv2d(4, 1, 1), spoil
    def forward(self, x, t, y=None): return self.last(self.middle(self.spoil(self.first(x), t)))

def test_a_nan_is_traced_to_its_layer_or_weights_and_leaves_no_trace():
    factor = [1.]; state = start(net=Sick(lambda h, t: h * factor[-1]))
    def lr(k):
        if k == 4: factor.append(math.inf)
        return 1e-3
    message = (r'step 6 was not taken: loss nan.*learning rate 0.001.*of step 5.*any checkpoint.*'
               r'lower learning rate.*Not finite for timesteps \d+\.\.\d+; first in net.middle')
    with pytest.raises(FloatingPointError, match=message):
        for m in fit(state, SCHEDULE, images(), steps=20, **OPTIONS | dict(lr=lr)):
            before = everything(state)
    assert m.step == 5 and same(before, everything(state))
    assert not any(p.grad is not None for p in state.denoiser.parameters())
    assert not state.denoiser.net.middle._forward_hooks
    with torch.no_grad(): state.denoiser.net.last.bias[0] = math.nan
    refused(lambda: train(state, 20), 'first in the weights net.last.bias', FloatingPointError)

def lost(h, where, value): return torch.where(where.view(-1, 1, 1, 1), value, h)
def noisy(h, t): return lost(h, t > 40, math.nan)
def root(h, t): return h + (h - h.detach()).abs().sqrt()  # finite; its gradient is not

def unlucky(h, t):
    "Lost when dropout hits six times in a row: one image in 64, and with other masks another"
    return lost(h, nn.functional.dropout(torch.ones(len(h), 6), 0.5).sum(1) == 0, math.inf)

def overflow(level): return v_weight(level) / (level.t <= 40).view(-1, 1, 1, 1)

MANY = r'Not finite for timesteps 4[1-9]\.\.(4[1-9]|50); first in '

@pytest.mark.parametrize('spoil, options, message', [
    *((noisy, dict(accumulate=n), f'loss nan.*{MANY}net.middle') for n in (1, 2, 4)),
    *((unlucky, dict(accumulate=n), 'for timesteps .*; first in net.middle') for n in (1, 2)),
    (root, {}, 'gradient norm nan.*; first in the gradient of net.first'),
    (None, dict(weight=overflow), f'{MANY}the loss itself'),
    (None, dict(explode=1e-6), r'step 1 was not taken: .*gradient norm .* \(allowed: 1e-06\).*'
                               r'the gradient of net\..* is the largest')])
def test_a_refused_step_says_where_it_went_wrong(spoil, options, message):
    "In any part of a batch: the step is computed again, with the same dropout"
    refused(lambda: train(start(net=spoil and Sick(spoil)), 200, **options), message,
            FloatingPointError)

@pytest.mark.parametrize('options, numbers', [
    (dict(weight=overflow), 'loss inf, gradient norm nan'),
    (dict(explode=1e-6), r'loss 0\.\d+, gradient norm .* \(allowed: 1e-06\)')])
def test_a_bad_step_between_two_looks_is_named_at_the_next(options, numbers):
    taken, options = [], OPTIONS | options
    def run():
        for m in fit(start(), SCHEDULE, images(), steps=40, look=lambda step: step % 6 == 0,
                     **options): taken.append(m)
    refused(run, f'step 1 has spoilt the weights: {numbers}.*Go back to the last checkpoint',
            FloatingPointError)
    assert len(taken) == 5
