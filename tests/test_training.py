"Training from outside: against Adam and Algorithm 1 written out; steps that are refused"
import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from diffusion_scratch.data import ImageSet, to_uint8
from diffusion_scratch.denoiser import EPS, V, Denoiser
from diffusion_scratch.guidance import NULL, drop_labels
from diffusion_scratch.loss import draw_level, loss_at, uniform, v_weight, x0_weight
from diffusion_scratch.oracle import MixtureOracle
from diffusion_scratch.schedule import Schedule, linear_betas
from diffusion_scratch.training import (Metrics, TrainState, batches, ema_decay, ema_update, fit,
                                        measure, random_at, warmup_constant, warmup_cosine)
from helpers_training import (OPTIONS, SCHEDULE, Coin, Sick, everything, images, same, start, train,
                              unet)

pytestmark = pytest.mark.usefixtures('one_thread')
LR = warmup_constant(1e-3, 5)


class Linear(nn.Module):
    "The smallest network, whose gradient is known"
    def __init__(self, w=0.5): super().__init__(); self.w = nn.Parameter(torch.tensor([w, -w]))
    def forward(self, x, t): return self.w[0] * x + self.w[1]


# ---------------------------------------------------------------- learning rates

def test_learning_rates():
    "eq-warmup, eq-cosine-lr"
    up, wave = warmup_constant(0.4, 4), warmup_cosine(0.4, 4, 24)
    np.testing.assert_allclose([up(k) for k in range(6)], [0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    np.testing.assert_allclose([wave(k) for k in range(4)], [up(k) for k in range(4)])
    want = 0.2 * (1 + np.cos(np.pi * np.array([0, .25, .5, .75, 1])))
    np.testing.assert_allclose([wave(k) for k in (4, 9, 14, 19, 24)], want, atol=1e-15)
    assert wave(100) == pytest.approx(0, abs=1e-15)
    assert all(type(wave(k)) is float for k in range(30))


def test_learning_rates_without_warmup_and_with_nothing_but_warmup():
    assert warmup_constant(0.4, 0)(0) == 0.4 and warmup_cosine(0.4, 0, 10)(0) == 0.4
    assert [warmup_cosine(1., 5, 5)(k) for k in range(5)] == [0.2, 0.4, 0.6, 0.8, 1.]


# ---------------------------------------------------------------- the moving average

def test_the_decay_grows_to_its_limit():
    "eq-ema-decay"
    assert ema_decay(1, 0.9999) == 2/11 and ema_decay(90, 0.9999) == 0.91
    assert ema_decay(10**7, 0.9999) == 0.9999 and ema_decay(3, 0.) == 0
    switch = [k for k in range(10**4) if (1 + k) / (10 + k) >= 0.998][0]
    assert switch == 4490 and ema_decay(switch - 1, 0.998) < 0.998
    assert ema_decay(switch, 0.998) == ema_decay(switch + 1, 0.998) == 0.998


def test_the_average_is_the_weighted_sum_of_the_past():
    "eq-ema"
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    ema, history = copy.deepcopy(net), [net[0].weight.detach().clone()]
    for d in (0.5, 0.9, 0.7):
        g = torch.Generator().manual_seed(len(history))
        with torch.no_grad(): net[0].weight.normal_(generator=g)
        net[1].running_mean.add_(1.)
        history.append(net[0].weight.detach().clone())
        ema_update(ema, net, d)
        assert torch.equal(net[0].weight, history[-1])
    a, b, c = 0.5, 0.9, 0.7
    shares = a*b*c, (1-a)*b*c, (1-b)*c, 1-c
    torch.testing.assert_close(ema[0].weight, sum(s * w for s, w in zip(shares, history)))
    assert torch.equal(ema[1].running_mean, torch.full((2,), 3.)) and ema[0].weight.requires_grad


@pytest.mark.parametrize('ema', [1., -0.1, 1.5, math.nan])
def test_a_decay_outside_its_range_is_refused(ema):
    with pytest.raises(ValueError, match=f'ema = {ema} is outside'):
        TrainState(Denoiser(Linear()), ema=ema)


# ---------------------------------------------------------------- one step

def test_steps_are_those_of_adam_written_out():
    "eq-adam, eq-clip, eq-ema"
    s = TrainState(Denoiser(Linear()), betas=(0.8, 0.95), ema=0.999)
    w, m, u, ema = np.array([0.5, -0.5]), np.zeros(2), np.zeros(2), np.array([0.5, -0.5])
    for k, a in enumerate(np.array([[3., 4.], [0.1, -0.2], [0., 7.], [-1., 0.01]]), 1):
        loss = (torch.tensor(a, dtype=torch.float32) * s.denoiser.net.w).sum()
        value, norm = s.update(loss, lr=0.01 * k, clip=2.)
        assert value == pytest.approx(a @ w, rel=1e-5, abs=1e-6)
        assert norm == pytest.approx(np.linalg.norm(a), rel=1e-5)
        g = a * min(1, 2 / np.linalg.norm(a))
        m, u = 0.8*m + 0.2*g, 0.95*u + 0.05*g**2
        w = w - 0.01 * k * (m / (1 - 0.8**k)) / (np.sqrt(u / (1 - 0.95**k)) + 1e-8)
        d = (1 + k) / (10 + k)
        ema = d * ema + (1 - d) * w
        np.testing.assert_allclose(s.denoiser.net.w.detach(), w, rtol=1e-5)
        np.testing.assert_allclose(s.ema.net.w, ema, rtol=1e-5)
        assert s.step == k


def test_clip_infinity_clips_nothing():
    s = TrainState(Denoiser(Linear()))
    s.update(1e6 * s.denoiser.net.w[0], 0.1, math.inf)
    assert s.optimizer.state[s.denoiser.net.w]['exp_avg'][0] == pytest.approx(1e5)


@pytest.mark.parametrize('clip', [0., -1., math.nan])
def test_a_clip_that_is_not_positive_is_refused(clip):
    s = start(); before = everything(s)
    with pytest.raises(ValueError, match=f'clip = {clip} must be positive'): train(s, 3, clip=clip)
    with pytest.raises(ValueError, match=f'clip = {clip} must be positive'):
        s.update(sum(w.sum() for w in s.denoiser.parameters()), 0.1, clip)
    assert same(everything(s), before)


@pytest.mark.parametrize('loss, lr, message', [
    (lambda w: w.sum() * math.nan, 0.1, 'step 3 was not taken: loss nan'),
    (lambda w: (w * math.inf).sum(), 0.1, 'loss nan|loss inf|loss -inf'),
    (lambda w: (w - w.detach()).abs().sqrt().sum(), 0.1, 'loss 0, gradient norm nan'),
    (lambda w: w.sum(), math.inf, 'learning rate inf'),
    (lambda w: w.sum(), math.nan, 'learning rate nan')])
def test_a_step_that_is_not_finite_is_not_taken_and_leaves_no_trace(loss, lr, message):
    one, two = (TrainState(Denoiser(Linear())) for _ in range(2))
    def good_step(s): s.update(s.denoiser.net.w.square().sum(), 0.1, 1.)
    for s in (one, two): good_step(s); good_step(s)
    before = everything(one)
    with pytest.raises(FloatingPointError, match=message):
        one.update(loss(one.denoiser.net.w), lr, 1.)
    assert same(everything(one), before)
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

def numbered(n):
    return ImageSet(torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1), torch.arange(n))


def take(n, *a, **k): return [(e, y.tolist()) for (e, x, y), _ in zip(batches(*a, **k), range(n))]


def test_an_epoch_shows_each_image_at_most_once_and_the_rest_gets_its_turn():
    "eq-epoch"
    got = take(3 * 50, numbered(23), 7)
    assert [e for e, _ in got] == [e for e in range(50) for _ in range(3)]
    epochs = [sum((y for _, y in got[3*e:3*e+3]), []) for e in range(50)]
    assert all(len(set(e)) == 21 for e in epochs) and len({tuple(e) for e in epochs}) == 50
    missed = np.bincount([i for e in epochs for i in set(range(23)) - set(e)], minlength=23)
    # 100 places over 23 images: Poisson(4.3), P(any >= 15) < 1e-3, and the seed is fixed
    assert missed.sum() == 100 and missed.max() < 15


def test_the_order_depends_on_seed_and_step_alone():
    whole = take(30, numbered(23), 5, seed=1)
    for first in (1, 3, 4, 5, 17):
        assert take(30 - first, numbered(23), 5, seed=1, start=first) == whole[first:]
    assert take(30, numbered(23), 5, seed=2) != whole


def test_images_and_labels_stay_together():
    for (_, x, y), _ in zip(batches(numbered(23), 4), range(12)):
        assert torch.equal(to_uint8(x).flatten().long(), y)


def test_half_of_the_images_are_mirrored_and_the_same_ones_again():
    left = ImageSet(torch.tensor([0, 255], dtype=torch.uint8).expand(64, 1, 1, 2).contiguous())
    seen = [x[:, 0, 0, 0] for (_, x, _), _ in zip(batches(left, 32, flip=True), range(50))]
    share = torch.cat(seen).gt(0).float().mean().item()
    assert abs(share - 0.5) < 4.5 * 0.5 / 1600**0.5  # 4.5 standard errors
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(next(batches(left, 32, flip=True, start=7))[1][:, 0, 0, 0], seen[7])
    assert all((x[:, 0, 0, 0] == -1).all() for (_, x, _), _ in zip(batches(left, 32), range(5)))


@pytest.mark.parametrize('size', [24, 0, -1])
def test_batches_that_cannot_be_filled_are_refused(size):
    message = f"batch_size = {size} is outside 1..23, the size of the data set 'images'"
    with pytest.raises(ValueError, match=message): next(batches(numbered(23), size))
    with pytest.raises(ValueError, match=f'batch_size = {size}'):
        train(start(), 2, numbered(23), batch_size=size)


def test_a_batch_may_be_the_whole_set():
    assert sorted(take(1, numbered(23), 23)[0][1]) == list(range(23))


# ---------------------------------------------------------------- fit

def test_a_step_of_fit_is_algorithm_1_written_out():
    "With the randomness of the step given: eps - net(...), and torch's own optimizer"
    data, s = images(classes=0), start(parameterization=EPS, num_classes=0)
    net = copy.deepcopy(s.denoiser.net).train()
    adam = torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.9, 0.99), fused=False)
    [m] = train(s, 1, data, lr=LR, weight=uniform, flip=False)
    _, x0, _ = next(batches(data, 8, seed=3))
    with random_at(3, 0):
        t, eps = torch.randint(1, 51, (8,)), torch.randn(8, 1, 8, 8)
        ab = SCHEDULE.alpha_bar[t].float().view(-1, 1, 1, 1)
        loss = (eps - net(ab.sqrt() * x0 + (1 - ab).sqrt() * eps, t)).square().mean()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(net.parameters(), 1.)
    adam.step()
    assert m.loss == pytest.approx(loss.item(), rel=1e-4) and m.lr == LR(0) == 2e-4
    assert m.grad_norm == pytest.approx(norm.item(), rel=1e-3)
    pairs = list(zip(net.parameters(), s.denoiser.net.parameters()))
    close = [torch.isclose(p, q, atol=2e-6, rtol=0).float().mean() for p, q in pairs]
    # Adam's first step is lr * sign(gradient): a gradient of nearly 0 may have either sign
    assert torch.stack(close).mean() > 0.97


def test_fit_is_the_loop_that_a_reader_writes():
    "To the last bit, with dropout, hidden labels and flips: 14 steps by hand, 14 by fit"
    by_hand, by_fit, rows = start(), start(), []
    for epoch, x0, y in batches(images(), 8, seed=3, flip=True):
        by_hand.denoiser.train()
        with random_at(3, by_hand.step):
            y = drop_labels(y, 0.3)
            level, eps = draw_level(SCHEDULE, x0)
            loss = loss_at(by_hand.denoiser, x0, level, eps, y, weight=v_weight).mean()
            rate = OPTIONS['lr'](by_hand.step)
            rows.append((by_hand.step + 1, epoch, *by_hand.update(loss, rate, 1.)))
        if by_hand.step == 14: break
    assert [(m.step, m.epoch, m.loss, m.grad_norm) for m in train(by_fit, 14)] == rows
    assert same(everything(by_hand), everything(by_fit))


def test_metrics_tell_what_happened():
    ms = train(start(), 12)
    assert [m.step for m in ms] == list(range(1, 13))
    assert [m.epoch for m in ms] == [0]*5 + [1]*5 + [2]*2
    assert [m.lr for m in ms] == [OPTIONS['lr'](k) for k in range(12)]
    assert all(isinstance(m, Metrics) and min(m.loss, m.grad_norm) > 0 for m in ms)
    assert all(m.images_per_second > 0 and 0 <= m.loading < 1 and m.memory > 1 for m in ms)


def test_metrics_by_quarter():
    rows = train(start(), 40)
    quarters = np.array([[m.loss_q1, m.loss_q2, m.loss_q3, m.loss_q4] for m in rows])
    assert np.isnan(quarters).any() and (np.nanmean(quarters, 1) > 0).all()  # 8 images may miss one
    many = train(start(), 1, images(400), batch_size=400)[0]
    mean = np.mean([many.loss_q1, many.loss_q2, many.loss_q3, many.loss_q4])
    assert abs(mean - many.loss) < 0.1 * many.loss  # quarters of about 100 images each


def test_a_run_is_a_function_of_its_seed_and_nothing_outside():
    one, two, other = start(), start(), start()
    a, b = train(one, 6), []
    torch.manual_seed(123); np.random.seed(5)
    x = torch.zeros(2, 1, 8, 8)
    for m in fit(two, SCHEDULE, images(), steps=6, **OPTIONS):
        b.append(m)
        torch.rand(100)                                          # as a preview does
        two.denoiser.eval(); two.denoiser(x, SCHEDULE.at(3, x))
    assert same(everything(one), everything(two)) and [m[:5] for m in a] == [m[:5] for m in b]
    train(other, 6, seed=4)
    assert not same(everything(one), everything(other))


def test_random_numbers_outside_are_left_alone():
    def after(use):
        torch.manual_seed(7); use()
        return torch.rand(3)
    want = after(lambda: None)
    assert torch.equal(after(lambda: train(start(), 2)), want)
    assert torch.equal(after(lambda: measure(start(), SCHEDULE, images(), 3, **OPTIONS)), want)
    def failing():
        with pytest.raises(FloatingPointError): train(start(), 2, explode=1e-9)
    assert torch.equal(after(failing), want)


def test_fit_does_nothing_where_nothing_is_left_to_do():
    s = start(); train(s, 3); before = everything(s)
    assert train(s, 3) == [] and train(s, 1) == [] and same(everything(s), before)


class Spy(nn.Module):
    "Notes the labels it is given, and learns nothing"
    def __init__(self): super().__init__(); self.w, self.seen = nn.Parameter(torch.zeros(1)), []

    def forward(self, x, t, y=None):
        self.seen.append((y, self.training, t))
        return x * self.w


def test_the_share_of_hidden_labels_and_the_spread_of_timesteps():
    s = start(net=Spy())
    train(s, 100, images(400), batch_size=64, label_dropout=0.1, weight=uniform)
    ys, modes, ts = zip(*s.denoiser.net.seen)
    y, t = torch.cat(ys), torch.cat(ts)
    assert abs((y == NULL).float().mean() - 0.1) < 4.5 * (0.1 * 0.9 / len(y))**0.5
    assert set(y.tolist()) == {-1, 0, 1, 2, 3} and all(modes)
    counts = t.bincount(minlength=51)
    assert counts[0] == 0 and len(counts) == 51
    chi_squared = ((counts[1:] - 128) / 128**0.5).square().sum()  # 49 degrees of freedom
    assert chi_squared < 49 + 4.5 * (2*49)**0.5


@pytest.mark.parametrize('p, classes, check', [
    (0., 4, lambda y: (y >= 0).all()), (1., 4, lambda y: (y == NULL).all()),
    (0.5, 0, lambda y: y is None)])
def test_label_dropout_ends_and_data_without_labels(p, classes, check):
    s = start(net=Spy()); train(s, 3, images(classes=classes), label_dropout=p)
    assert all(check(y) for y, _, _ in s.denoiser.net.seen)


def test_a_label_dropout_outside_its_range_is_refused():
    with pytest.raises(ValueError, match='p = 1.1 is outside 0..1'):
        train(start(), 1, label_dropout=1.1)


def test_the_weight_is_the_one_given():
    weights = v_weight, x0_weight, lambda level: 3 * x0_weight(level)
    a, b, c = (train(start(), 1, weight=w)[0].loss for w in weights)
    assert c == pytest.approx(3 * b, rel=1e-5) and a > b


def test_images_that_are_all_alike_are_refused():
    alike = ImageSet(torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.arange(40) % 4)
    with pytest.raises(ValueError, match='-1'): train(start(), 10, alike)


def test_it_learns_what_there_is_to_learn():
    """Pixels of -1 or 1: the exact answer is tanh(signal x_t / noise^2) (eq-coin); the best
    straight line, signal x_t, is where a network that learns too little stays"""
    torch.manual_seed(0)
    values = torch.tensor([-1., 1.])
    schedule, coins = Schedule(linear_betas()), ImageSet(values.repeat(256).view(-1, 1, 1, 1))
    s = TrainState(Denoiser(Coin(), EPS), ema=0.999)
    level = schedule.at(torch.arange(1, 1001).repeat_interleave(4), torch.zeros(4000, 1, 1, 1))
    eps = torch.randn(4000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    x_t = level.signal.float() * values.repeat(2000).view(-1, 1, 1, 1) + level.noise.float() * eps
    exact = torch.tanh(level.signal * x_t / level.noise**2)
    oracle = MixtureOracle(values.view(2, 1, 1, 1))
    torch.testing.assert_close(oracle(x_t.double(), level).x0, exact)
    def excess(x0): return (level.snr.view(-1, 1, 1, 1) * (x0 - exact).square()).mean().item()
    lr = warmup_cosine(1e-2, 50, 700)
    for _ in fit(s, schedule, coins, steps=700, batch_size=256, lr=lr): pass
    with torch.no_grad(): assert excess(s.ema(x_t, level).x0) < excess(level.signal * x_t) / 4


def test_measuring_changes_nothing():
    a, b = start(), start()
    rows = measure(a, SCHEDULE, images(), 3, **OPTIONS)
    assert [m.step for m in rows] == [1, 2, 3] and same(everything(a), everything(b))
    train(a, 10); train(b, 10)
    assert same(everything(a), everything(b))


# ---------------------------------------------------------------- steps that are refused

def test_a_nan_is_traced_to_its_layer_and_timesteps():
    state = start(net=Sick())
    def sick(k):
        if k == 4: state.denoiser.net.factor = math.inf
        return 1e-3
    message = (r'step 6 was not taken: loss nan.*learning rate 0.001.*Not finite for timesteps '
               r'\d+\.\.\d+; first in net.middle')
    with pytest.raises(FloatingPointError, match=message):
        for m in fit(state, SCHEDULE, images(), steps=20, **OPTIONS | dict(lr=sick)):
            before = everything(state)
    assert m.step == 5 and same(before, everything(state))
    assert not any(p.grad is not None for p in state.denoiser.parameters())
    assert not state.denoiser.net.middle._forward_hooks


class Picky(Sick):
    "Cannot bear much noise"
    def forward(self, x, t, y=None):
        h = self.middle(self.first(x))
        return self.last(torch.where((t > 40).view(-1, 1, 1, 1), math.nan, h))


@pytest.mark.parametrize('goes', [1, 2, 4])
def test_a_nan_in_any_part_of_a_batch_is_found(goes):
    "One image that is lost, in the first or the last part"
    message = r'loss nan.*Not finite for timesteps 4[1-9]\.\.(4[1-9]|50); first in net.last'
    with pytest.raises(FloatingPointError, match=message):
        train(start(net=Picky()), 20, accumulate=goes)


class Unlucky(Sick):
    "Is lost when dropout hits six times in a row"
    def forward(self, x, t, y=None):
        kept = nn.functional.dropout(torch.ones(len(x), 6), 0.5, self.training).sum(1)
        h = torch.where((kept == 0).view(-1, 1, 1, 1), math.inf, self.middle(self.first(x)))
        return self.last(h)


@pytest.mark.parametrize('goes', [1, 2])
def test_the_step_is_computed_again_with_the_same_dropout(goes):
    "With other masks nothing would be found, for one image in 64 is lost"
    with pytest.raises(FloatingPointError, match='Not finite for timesteps .*; first in net.last'):
        train(start(net=Unlucky()), 200, accumulate=goes)


def test_weights_that_are_not_finite_are_named():
    state = start(net=Sick())
    with torch.no_grad(): state.denoiser.net.last.bias[0] = math.nan
    with pytest.raises(FloatingPointError, match='first in the weights net.last.bias'):
        train(state, 10)


def test_a_loss_of_ones_own_that_overflows_in_some_timesteps():
    def weight(level): return v_weight(level) / (level.t <= 40).view(-1, 1, 1, 1)
    message = r'Not finite for timesteps 4[1-9]\.\.(4[1-9]|50); first in the loss itself'
    with pytest.raises(FloatingPointError, match=message): train(start(), 10, weight=weight)


class Root(Sick):
    "A finite output, whose gradient is not"
    def forward(self, x, t, y=None):
        h = self.first(x)
        return self.last(self.middle(h + (h - h.detach()).abs().sqrt()))


def test_a_gradient_that_is_not_finite_is_traced_to_its_layer():
    message = 'gradient norm nan.*; first in the gradient of net.first'
    with pytest.raises(FloatingPointError, match=message): train(start(net=Root()), 10)


def test_a_gradient_that_explodes_stops_the_run():
    message = (r'step 1 was not taken: .*gradient norm .* \(allowed: 1e-06\).*'
               r'the gradient of net\..* is the largest')
    with pytest.raises(FloatingPointError, match=message): train(start(), 10, explode=1e-6)
    assert len(train(start(), 10, explode=1e6)) == 10
