"The training loop from outside: against Adam and Algorithm 1 written out, runs killed and resumed, files cut and refused"
import copy, json, math, os, random, signal, subprocess, sys, time
from pathlib import Path
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from diffusion_scratch import training
from diffusion_scratch.data import ImageSet, to_uint8
from diffusion_scratch.denoiser import EPS, V, X0, Denoiser
from diffusion_scratch.guidance import NULL
from diffusion_scratch.loss import v_weight, x0_weight
from diffusion_scratch.oracle import MixtureOracle
from diffusion_scratch.schedule import Schedule, cosine_betas, linear_betas
from diffusion_scratch.training import (Metrics, TrainState, about_checkpoint, batches, ema_decay, ema_update, fit, load_checkpoint, resume, save_checkpoint,
                                        warmup_constant, warmup_cosine)
from diffusion_scratch.unet import UNet, timestep_embedding

SCHEDULE = Schedule(cosine_betas(50))
LR = warmup_constant(1e-3, 5)

@pytest.fixture(autouse=True)
def one_thread():
    "These networks are too small for more, and a run is the same to the last bit only at the same number of threads"
    threads = torch.get_num_threads(); torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

def images(n=40, classes=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return ImageSet(torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=g), torch.arange(n) % classes if classes else None)

def unet(seed=0, **k):
    "A small network with everything in it: dropout, labels, attention, channels_last"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet(1, 8, (1, 2), 1, (1,), **{**dict(dropout=0.2, num_classes=4), **k}).to(memory_format=torch.channels_last)

def start(seed=0, parameterization=V, **k): return TrainState(Denoiser(unet(seed, **k), parameterization), ema=0.9)
OPTIONS = dict(batch_size=8, lr=warmup_cosine(2e-3, 5, 40), weight=v_weight, label_dropout=0.3, flip=True, seed=3)
def go(state, steps, data=None, **k): return list(fit(state, SCHEDULE, data or images(), steps=steps, **{**OPTIONS, **k}))

def everything(state): return {k: v.detach().clone() for k, v in training._tensors(state, SCHEDULE)} | dict(step=torch.tensor(state.step))
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

class Linear(nn.Module):
    "The smallest network, whose gradient is known"
    def __init__(self, w=0.5): super().__init__(); self.w = nn.Parameter(torch.tensor([w, -w]))
    def forward(self, x, t): return self.w[0] * x + self.w[1]

# ---- learning rates: eq-warmup, eq-cosine-lr

def test_learning_rates():
    up, wave = warmup_constant(0.4, 4), warmup_cosine(0.4, 4, 24)
    np.testing.assert_allclose([up(k) for k in range(6)], [0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    np.testing.assert_allclose([wave(k) for k in range(4)], [up(k) for k in range(4)])
    np.testing.assert_allclose([wave(k) for k in (4, 9, 14, 19, 24)], 0.2 * (1 + np.cos(np.pi * np.array([0, .25, .5, .75, 1]))), atol=1e-15)
    assert wave(100) == pytest.approx(0, abs=1e-15) and all(type(wave(k)) is float for k in range(30))

def test_learning_rates_without_warmup_and_with_nothing_but_warmup():
    assert warmup_constant(0.4, 0)(0) == 0.4 and warmup_cosine(0.4, 0, 10)(0) == 0.4
    assert [warmup_cosine(1., 5, 5)(k) for k in range(5)] == [0.2, 0.4, 0.6, 0.8, 1.]

# ---- the moving average: eq-ema, eq-ema-decay

def test_the_decay_grows_to_its_limit():
    assert ema_decay(1, 0.9999) == 2/11 and ema_decay(90, 0.9999) == 0.91 and ema_decay(10**7, 0.9999) == 0.9999 and ema_decay(3, 0.) == 0
    switch = [k for k in range(10**4) if (1 + k) / (10 + k) >= 0.998][0]
    assert switch == 4490 and ema_decay(switch, 0.998) == ema_decay(switch + 1, 0.998) == 0.998 > ema_decay(switch - 1, 0.998)

def test_the_average_is_the_weighted_sum_of_the_past():
    net, history, decays = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), [], [0.5, 0.9, 0.7]
    ema = copy.deepcopy(net); history.append(net[0].weight.detach().clone())
    for d in decays:
        with torch.no_grad(): net[0].weight.normal_(generator=torch.Generator().manual_seed(len(history)))
        net[1].running_mean.add_(1.); before = net[0].weight.detach().clone(); history.append(before)
        ema_update(ema, net, d)
        assert torch.equal(net[0].weight, before)
    a, b, c = decays
    want = a*b*c * history[0] + (1-a)*b*c * history[1] + (1-b)*c * history[2] + (1-c) * history[3]
    torch.testing.assert_close(ema[0].weight, want)  # single precision
    assert torch.equal(ema[1].running_mean, torch.full((2,), 3.)) and ema[0].weight.requires_grad

@pytest.mark.parametrize('ema', [1., -0.1, 1.5, math.nan])
def test_a_decay_outside_its_range_is_refused(ema):
    with pytest.raises(ValueError, match=f'ema = {ema} is outside'): TrainState(Denoiser(Linear()), ema=ema)

# ---- one step: eq-adam, eq-clip

def test_steps_are_those_of_adam_written_out():
    s = TrainState(Denoiser(Linear()), betas=(0.8, 0.95), ema=0.999)
    w, m, u, ema = np.array([0.5, -0.5]), np.zeros(2), np.zeros(2), np.array([0.5, -0.5])
    for k, a in enumerate([[3., 4.], [0.1, -0.2], [0., 7.], [-1., 0.01]], 1):
        a = np.array(a); loss = (torch.tensor(a, dtype=torch.float32) * s.denoiser.net.w).sum()
        value, norm = s.update(loss, lr=0.01 * k, clip=2.)
        assert value == pytest.approx(a @ w, rel=1e-5, abs=1e-6) and norm == pytest.approx(np.linalg.norm(a), rel=1e-5)
        g = a * min(1, 2 / np.linalg.norm(a))
        m, u = 0.8*m + 0.2*g, 0.95*u + 0.05*g**2
        w = w - 0.01 * k * (m / (1 - 0.8**k)) / (np.sqrt(u / (1 - 0.95**k)) + 1e-8)
        d = (1 + k) / (10 + k); ema = d * ema + (1 - d) * w
        np.testing.assert_allclose(s.denoiser.net.w.detach(), w, rtol=1e-5); np.testing.assert_allclose(s.ema.net.w, ema, rtol=1e-5)
        assert s.step == k and s.denoiser.net.w.grad is None

def test_clip_infinity_clips_nothing():
    s = TrainState(Denoiser(Linear()))
    s.update(1e6 * s.denoiser.net.w[0], 0.1, math.inf)
    assert s.optimizer.state[s.denoiser.net.w]['exp_avg'][0] == pytest.approx(1e5)

@pytest.mark.parametrize('clip', [0., -1., math.nan])
def test_a_clip_that_is_not_positive_is_refused(clip):
    s = start(); before = everything(s)
    with pytest.raises(ValueError, match=f'clip = {clip} must be positive'): go(s, 3, clip=clip)
    assert same(everything(s), before)

@pytest.mark.parametrize('loss, lr, message', [
    (lambda w: w.sum() * math.nan, 0.1, 'step 3 was not taken: loss nan'), (lambda w: (w * math.inf).sum(), 0.1, 'loss nan|loss inf|loss -inf'),
    (lambda w: (w - w.detach()).abs().sqrt().sum(), 0.1, 'loss 0, gradient norm nan'),  # a finite loss whose gradient is not
    (lambda w: w.sum(), math.inf, 'learning rate inf'), (lambda w: w.sum(), math.nan, 'learning rate nan')])
def test_a_step_that_is_not_finite_is_not_taken(loss, lr, message):
    one, two = (TrainState(Denoiser(Linear())) for _ in range(2))
    for s in (one, two):
        for _ in range(2): s.update(s.denoiser.net.w.square().sum(), 0.1, 1.)
    before = everything(one)
    with pytest.raises(FloatingPointError, match=message): one.update(loss(one.denoiser.net.w), lr, 1.)
    assert same(everything(one), before)
    for s in (one, two): s.update(s.denoiser.net.w.square().sum(), 0.1, 1.)
    assert same(everything(one), everything(two))  # and it leaves no trace

def test_an_interrupted_step_leaves_no_gradient(monkeypatch):
    s, untouched = start(), start()
    with monkeypatch.context() as m:
        m.setattr(nn.utils, 'clip_grad_norm_', lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt): go(s, 1)
    go(s, 2); go(untouched, 2)
    assert same(everything(s), everything(untouched))

# ---- batches: eq-epoch

def numbered(n): return ImageSet((torch.arange(n, dtype=torch.uint8)).view(n, 1, 1, 1), torch.arange(n))
def take(n, *a, **k): return [(e, y.tolist()) for (e, x, y), _ in zip(batches(*a, **k), range(n))]

def test_an_epoch_shows_each_image_at_most_once_and_the_rest_gets_its_turn():
    got = take(3 * 50, numbered(23), 7)
    assert [e for e, _ in got] == [e for e in range(50) for _ in range(3)]
    epochs = [sum((y for _, y in got[3*e:3*e+3]), []) for e in range(50)]
    assert all(len(set(e)) == 21 for e in epochs) and len({tuple(e) for e in epochs}) == 50
    missed = np.bincount([i for e in epochs for i in set(range(23)) - set(e)], minlength=23)
    assert missed.sum() == 100 and missed.max() < 15  # 100 places over 23 images: Poisson(4.3), P(any >= 15) < 1e-3, and the seed is fixed

def test_the_order_depends_on_seed_and_step_alone():
    whole = take(30, numbered(23), 5, seed=1)
    for first in (1, 3, 4, 5, 17): assert take(30 - first, numbered(23), 5, seed=1, start=first) == whole[first:]
    assert take(30, numbered(23), 5, seed=2) != whole

def test_images_and_labels_stay_together():
    for _, x, y in [b for b, _ in zip(batches(numbered(23), 4), range(12))]: assert torch.equal(to_uint8(x).flatten().long(), y)

def test_half_of_the_images_are_mirrored_and_the_same_ones_again():
    left = ImageSet(torch.tensor([0, 255], dtype=torch.uint8).expand(64, 1, 1, 2).contiguous())
    seen = [x[:, 0, 0, 0] for (_, x, _), _ in zip(batches(left, 32, flip=True), range(50))]
    share = torch.cat(seen).gt(0).float().mean().item()
    assert abs(share - 0.5) < 4.5 * 0.5 / 1600**0.5 and not torch.equal(seen[0], seen[1])  # 4.5 standard errors
    assert torch.equal(next(batches(left, 32, flip=True, start=7))[1][:, 0, 0, 0], seen[7])
    assert all((x[:, 0, 0, 0] == -1).all() for (_, x, _), _ in zip(batches(left, 32), range(5)))

@pytest.mark.parametrize('size', [24, 0, -1])
def test_batches_that_cannot_be_filled_are_refused(size):
    with pytest.raises(ValueError, match=f"batch_size = {size} is outside 1..23, the size of the data set 'images'"): next(batches(numbered(23), size))
    with pytest.raises(ValueError, match=f'batch_size = {size}'): go(start(), 2, numbered(23), batch_size=size)

def test_a_batch_may_be_the_whole_set(): assert sorted(take(1, numbered(23), 23)[0][1]) == list(range(23))

# ---- fit

def test_a_step_of_fit_is_algorithm_1_written_out():
    "With the chance of the step given, the same loss and the same weights by eps - net(...) and torch's own optimizer"
    data, s = images(classes=0), TrainState(Denoiser(unet(num_classes=0), EPS))
    net = copy.deepcopy(s.denoiser.net).train()
    adam = torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.9, 0.99), fused=False)
    [m] = go(s, 1, data, lr=LR, weight=training.uniform, flip=False)
    _, x0, _ = next(batches(data, 8, seed=3))
    with training._random_at(3, 0, torch.device('cpu')):
        t, eps = torch.randint(1, 51, (8,)), torch.randn(8, 1, 8, 8)
        ab = SCHEDULE.alpha_bar[t].float().view(-1, 1, 1, 1)
        loss = (eps - net(ab.sqrt() * x0 + (1 - ab).sqrt() * eps, t)).square().mean()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(net.parameters(), 1.)
    adam.step()
    assert m.loss == pytest.approx(loss.item(), rel=1e-4) and m.grad_norm == pytest.approx(norm.item(), rel=1e-3) and m.lr == LR(0) == 2e-4
    close = [torch.isclose(p, q, atol=2e-6, rtol=0).float().mean() for p, q in zip(net.parameters(), s.denoiser.net.parameters())]
    assert torch.stack(close).mean() > 0.97  # Adam's first step is lr * sign(gradient): a gradient of nearly 0 may have either sign

def test_metrics_tell_what_happened():
    ms = go(start(), 12)
    assert [m.step for m in ms] == list(range(1, 13)) and [m.epoch for m in ms] == [0]*5 + [1]*5 + [2]*2
    assert [m.lr for m in ms] == [OPTIONS['lr'](k) for k in range(12)]
    assert all(m.loss > 0 and m.grad_norm > 0 and m.images_per_second > 0 and isinstance(m, Metrics) for m in ms)

def test_a_run_is_a_function_of_its_seed_and_nothing_outside():
    one, two, other = start(), start(), start()
    a = go(one, 6)
    torch.manual_seed(123); np.random.seed(5)
    b = []
    for m in fit(two, SCHEDULE, images(), steps=6, **OPTIONS):
        b.append(m); torch.rand(100); two.denoiser.eval(); two.denoiser(torch.zeros(2, 1, 8, 8), SCHEDULE.at(3, torch.zeros(2, 1, 8, 8)))  # as a preview would
    assert same(everything(one), everything(two)) and [m[:5] for m in a] == [m[:5] for m in b]
    go(other, 6, seed=4)
    assert not same(everything(one), everything(other))

def test_fit_leaves_torchs_random_numbers_alone():
    torch.manual_seed(7); want = torch.rand(3)
    torch.manual_seed(7); go(start(), 2)
    assert torch.equal(torch.rand(3), want)

def test_fit_does_nothing_where_nothing_is_left_to_do():
    s = start(); go(s, 3); before = everything(s)
    assert go(s, 3) == [] and go(s, 1) == [] and same(everything(s), before)

class Spy(nn.Module):
    "Notes the labels it is given, and learns nothing"
    def __init__(self): super().__init__(); self.w, self.seen = nn.Parameter(torch.zeros(1)), []
    def forward(self, x, t, y=None): self.seen.append((y, self.training, t)); return x * self.w

def test_the_share_of_hidden_labels_and_the_spread_of_timesteps():
    s = TrainState(Denoiser(Spy())); data = images(400)
    go(s, 100, data, batch_size=64, label_dropout=0.1, weight=training.uniform)
    ys, modes, ts = zip(*s.denoiser.net.seen)
    y, t = torch.cat(ys), torch.cat(ts)
    assert abs((y == NULL).float().mean() - 0.1) < 4.5 * (0.1 * 0.9 / len(y))**0.5 and set(y.tolist()) == {-1, 0, 1, 2, 3} and all(modes)
    counts = t.bincount(minlength=51)
    assert counts[0] == 0 and len(counts) == 51 and ((counts[1:] - 128) / 128**0.5).square().sum() < 49 + 4.5 * (2*49)**0.5  # chi-squared, 49 degrees of freedom

def test_label_dropout_ends_and_data_without_labels():
    for p, data, check in ((0., images(), lambda y: (y >= 0).all()), (1., images(), lambda y: (y == NULL).all()), (0.5, images(classes=0), lambda y: y is None)):
        s = TrainState(Denoiser(Spy())); go(s, 3, data, label_dropout=p)
        assert all(check(y) for y, _, _ in s.denoiser.net.seen)
    with pytest.raises(ValueError, match='p = 1.1 is outside 0..1'): go(start(), 1, label_dropout=1.1)

def test_the_weight_is_the_one_given():
    a, b, c = (go(start(), 1, weight=w)[0].loss for w in (v_weight, x0_weight, lambda level: 3 * x0_weight(level)))
    assert c == pytest.approx(3 * b, rel=1e-5) and a > b

class Coin(nn.Module):
    def __init__(self): super().__init__(); self.layers = nn.Sequential(nn.Linear(33, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
    def forward(self, x, t): return self.layers(torch.cat([x.flatten(1), timestep_embedding(t, 32)], 1)).view(x.shape)

def test_it_learns_what_there_is_to_learn():
    "Pixels of -1 or 1: the exact answer is tanh(signal x_t / noise^2) (eq-coin); the best straight line, signal x_t, is where a network that learns too little stays"
    torch.manual_seed(0)
    schedule, coins = Schedule(linear_betas()), ImageSet(torch.tensor([-1., 1.]).repeat(256).view(-1, 1, 1, 1))
    s = TrainState(Denoiser(Coin(), EPS), ema=0.999)
    level = schedule.at(torch.arange(1, 1001).repeat_interleave(4), torch.zeros(4000, 1, 1, 1))
    x_t = level.signal.float() * torch.tensor([-1., 1.]).repeat(2000).view(-1, 1, 1, 1) + level.noise.float() * torch.randn(4000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    exact = torch.tanh(level.signal * x_t / level.noise**2)
    torch.testing.assert_close(MixtureOracle(torch.tensor([-1., 1.]).view(2, 1, 1, 1))(x_t.double(), level).x0, exact)
    excess = lambda x0: (level.snr.view(-1, 1, 1, 1) * (x0 - exact).square()).mean().item()
    for _ in fit(s, schedule, coins, steps=700, batch_size=256, lr=warmup_cosine(1e-2, 50, 700)): pass
    with torch.no_grad(): assert excess(s.ema(x_t, level).x0) < excess(level.signal * x_t) / 4

# ---- checkpoints

@pytest.fixture
def trained():
    s = start(); go(s, 6); return s

def test_a_checkpoint_holds_everything_and_no_code(trained, tmp_path):
    f = tmp_path/'a'/'b'/'x.safetensors'
    save_checkpoint(f, trained, SCHEDULE, dict(shape=(1, 8, 8), classes=['a', 'b']))
    with safe_open(f, 'pt') as h: got = {k: h.get_tensor(k) for k in h.keys()}
    want = everything(trained); assert want.pop('step') == 6 and same(got, want) and 'optimizer.0.exp_avg_sq' in got and 'schedule.betas' in got
    assert about_checkpoint(f) == dict(shape=[1, 8, 8], classes=['a', 'b']) and [p.name for p in f.parent.iterdir()] == ['x.safetensors']
    n = int.from_bytes(f.read_bytes()[:8], 'little'); json.loads(f.read_bytes()[8:8+n])  # a JSON header, then numbers

def test_load_gives_a_denoiser_ready_to_sample(trained, tmp_path):
    f = tmp_path/'checkpoint.safetensors'; save_checkpoint(f, trained, SCHEDULE)
    for path in (f, tmp_path, str(tmp_path)):
        d, schedule = load_checkpoint(path)
        assert same(d.state_dict(), trained.ema.state_dict()) and not d.training and d.parameterization is V and torch.equal(schedule.betas, SCHEDULE.betas)
    raw, _ = load_checkpoint(f, ema=False)
    assert same(raw.state_dict(), trained.denoiser.state_dict()) and not same(raw.state_dict(), d.state_dict())
    x = torch.randn(3, 1, 8, 8); level = SCHEDULE.at(torch.tensor([1, 20, 50]), x)
    torch.testing.assert_close(d(x, level, torch.tensor([0, -1, 3])).x0, trained.ema(x, level, torch.tensor([0, -1, 3])).x0)
    assert about_checkpoint(f) == {}

def test_any_network_can_be_saved_and_must_be_given_to_be_loaded(tmp_path):
    f, s = tmp_path/'x.safetensors', TrainState(Denoiser(Coin(), X0)); s.denoiser.net.config = object()  # a name of its own, which is not ours
    save_checkpoint(f, s, SCHEDULE)
    d, _ = load_checkpoint(f, net=Coin())
    assert same(d.state_dict(), s.ema.state_dict()) and d.parameterization is X0
    with pytest.raises(ValueError, match='give load_checkpoint the network, net='): load_checkpoint(f)
    net = nn.Linear(2, 2); before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r'another network: bias is missing there and \(2,\) here'): load_checkpoint(f, net=net)
    assert same(net.state_dict(), before)

class Tied(nn.Module):
    def __init__(self): super().__init__(); self.a = nn.Linear(1, 1); self.b = self.a
    def forward(self, x, t): return self.b(self.a(x))

def test_a_network_that_uses_one_weight_twice(tmp_path):
    f, data = tmp_path/'x.safetensors', ImageSet(torch.randint(0, 256, (16, 1, 4, 1), dtype=torch.uint8))
    s, t = TrainState(Denoiser(Tied())), TrainState(Denoiser(Tied()))
    go(s, 2, data); save_checkpoint(f, s, SCHEDULE); resume(f, t, SCHEDULE)
    go(s, 4, data); go(t, 4, data)
    assert same(everything(s), everything(t)) and t.denoiser.net.a is t.denoiser.net.b

@pytest.mark.any_processor
@pytest.mark.parametrize('cut', [0, 1, 5, 13])
def test_a_resumed_run_equals_one_that_was_never_stopped(cut, tmp_path):
    "Dropout, flips, hidden labels, changing learning rate, channels_last: the same bits in weights, average, optimizer and metrics"
    f, straight, first, second = tmp_path/'x.safetensors', start(), start(), start(seed=9)
    a = go(straight, 20)
    go(first, cut); save_checkpoint(f, first, SCHEDULE)
    resume(f, second, SCHEDULE)
    assert second.step == cut and same(everything(second), everything(first))
    b = go(second, 20)
    assert same(everything(second), everything(straight)) and [m[:5] for m in b] == [m[:5] for m in a[cut:]]
    p = second.denoiser.net.stem.weight
    assert second.optimizer.state[p]['exp_avg'].stride() == p.stride()

@pytest.mark.any_processor
def test_a_run_goes_on_with_the_betas_of_its_checkpoint(tmp_path):
    "Made on another processor, they differ in their last digits from those that are made here"
    f, there = tmp_path/'x.safetensors', Schedule(SCHEDULE.betas * (1 + 1e-13))
    s = start(); go(s, 2); save_checkpoint(f, s, there)
    schedule = resume(f, start(), SCHEDULE)
    assert torch.equal(schedule.betas, there.betas) and not torch.equal(schedule.betas, SCHEDULE.betas)
    with pytest.raises(ValueError, match='trained with other betas'): resume(f, start(), Schedule(SCHEDULE.betas * (1 - 1e-7)))

def test_saving_does_not_disturb_a_run(tmp_path):
    a, b = start(), start(); go(a, 8)
    for m in fit(b, SCHEDULE, images(), steps=8, **OPTIONS): save_checkpoint(tmp_path/'x.safetensors', b, SCHEDULE)
    assert same(everything(a), everything(b))

def child(folder):
    "Train, saving after every step, going on from what is there; slowly enough to be killed"
    torch.set_num_threads(1)
    f, s = Path(folder)/'checkpoint.safetensors', start()
    if f.exists(): resume(f, s, SCHEDULE)
    for m in fit(s, SCHEDULE, images(), steps=60, **OPTIONS):
        save_checkpoint(f, s, SCHEDULE); print(m.step, flush=True); time.sleep(0.01)

def test_a_run_killed_at_random_moments_goes_on_as_if_nothing_had_happened(tmp_path):
    f, stops = tmp_path/'checkpoint.safetensors', []
    for _ in range(2):
        p = subprocess.Popen([sys.executable, __file__, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert p.stdout.readline()
        time.sleep(random.random() * 0.5)
        p.send_signal(signal.SIGKILL); p.communicate()
        stops.append(load_step(f))
    assert 1 <= stops[0] < stops[1] <= 60, stops
    assert {p.name for p in tmp_path.iterdir()} <= {f.name, f'.part_{f.name}'}  # at most the file that the next save will write over
    straight, last = start(), start(seed=5)
    go(straight, 60); resume(f, last, SCHEDULE); go(last, 60)
    assert same(everything(last), everything(straight)), f'killed after steps {stops}'

def load_step(f):
    with safe_open(f, 'pt') as h: return int(h.metadata()['step'])

def test_nan_stops_the_run_and_the_last_good_checkpoint_stays(tmp_path):
    f, s = tmp_path/'x.safetensors', start()
    with pytest.raises(FloatingPointError, match='step 8 was not taken: loss nan.*of step 7.*checkpoint.*lower learning rate'):
        for m in fit(s, SCHEDULE, images(), steps=20, **{**OPTIONS, 'weight': lambda level: v_weight(level) * (math.nan if s.step == 7 else 1)}):
            if m.step % 3 == 0: save_checkpoint(f, s, SCHEDULE)
    assert load_step(f) == 6 and s.step == 7 and all(p.isfinite().all() for d in (s.denoiser, s.ema) for p in d.parameters())
    again, straight = start(seed=2), start()
    resume(f, again, SCHEDULE); go(again, 10); go(straight, 10)
    assert same(everything(again), everything(straight))

# ---- files that cannot be written

def test_a_checkpoint_needs_its_ending(trained, tmp_path):
    with pytest.raises(ValueError, match='run must end in .safetensors'): save_checkpoint(tmp_path/'run', trained, SCHEDULE)
    assert list(tmp_path.iterdir()) == []

def test_a_folder_that_cannot_be_made(trained, tmp_path):
    (tmp_path/'taken').write_text('a file')
    with pytest.raises(OSError, match='cannot write .*taken.*untouched'): save_checkpoint(tmp_path/'taken'/'x.safetensors', trained, SCHEDULE)
    (tmp_path/'y.safetensors').mkdir()
    with pytest.raises(OSError, match='cannot write .*y.safetensors'): save_checkpoint(tmp_path/'y.safetensors', trained, SCHEDULE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['taken', 'y.safetensors'] and (tmp_path/'taken').read_text() == 'a file'

@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may write anywhere')
def test_a_folder_without_permission(trained, tmp_path):
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(OSError, match='cannot write'): save_checkpoint(tmp_path/'x.safetensors', trained, SCHEDULE)
    finally: tmp_path.chmod(0o755)
    assert list(tmp_path.iterdir()) == []

def test_a_full_disk(trained, tmp_path):
    "The system refuses to write more than 20 kB, in the middle of the file"
    resource = pytest.importorskip('resource', reason='limits of the file size are a POSIX thing')
    f = tmp_path/'x.safetensors'; save_checkpoint(f, trained, SCHEDULE); before = f.read_bytes()
    go(trained, 7); soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        with pytest.raises(OSError, match='cannot write .*x.safetensors.*untouched'): save_checkpoint(f, trained, SCHEDULE)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(before) > 20_000 and f.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ['x.safetensors']

@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError(28, 'No space left on device')])
def test_a_write_that_stops_halfway_leaves_the_old_file(error, trained, tmp_path, monkeypatch):
    f = tmp_path/'x.safetensors'; save_checkpoint(f, trained, SCHEDULE); before = f.read_bytes()
    go(trained, 7); written = []
    def stop(fd): written.append(os.fstat(fd).st_size); raise error
    monkeypatch.setattr(os, 'fsync', stop)
    with pytest.raises((KeyboardInterrupt, OSError)): save_checkpoint(f, trained, SCHEDULE)
    assert written == [len(before)]  # it was all in the other file
    assert f.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ['x.safetensors']

def test_a_note_that_is_not_json_is_refused_before_anything_is_written(trained, tmp_path):
    with pytest.raises(TypeError, match='Tensor'): save_checkpoint(tmp_path/'new'/'x.safetensors', trained, SCHEDULE, dict(x=torch.zeros(1)))
    assert list(tmp_path.iterdir()) == []

# ---- files that do not fit

def test_a_file_cut_anywhere_is_refused(trained, tmp_path):
    f, g = tmp_path/'x.safetensors', tmp_path/'cut.safetensors'; save_checkpoint(f, trained, SCHEDULE); whole = f.read_bytes()
    fresh = start(seed=1); before = everything(fresh)
    for n in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        g.write_bytes(whole[:n])
        for read in (lambda: resume(g, fresh, SCHEDULE), lambda: load_checkpoint(g), lambda: about_checkpoint(g)):
            with pytest.raises(ValueError, match='cut.safetensors is not a whole checkpoint'): read()
    g.write_bytes(whole + b'more')
    with pytest.raises(ValueError, match='not a whole checkpoint'): resume(g, fresh, SCHEDULE)
    assert same(everything(fresh), before)

@pytest.mark.parametrize('metadata', [None, dict(format='pt'), dict(step='3')])
def test_files_of_other_programs_are_refused(metadata, tmp_path):
    f = tmp_path/'x.safetensors'; save_file(dict(w=torch.zeros(2)), f, metadata)
    with pytest.raises(ValueError, match='x.safetensors is not a whole checkpoint'): load_checkpoint(f)

def test_missing_files_are_named(tmp_path):
    for path, name in ((tmp_path/'no.safetensors', 'no.safetensors'), (tmp_path, 'checkpoint.safetensors')):
        with pytest.raises(FileNotFoundError, match=f'{name} does not exist; give a run folder'): load_checkpoint(path)

@pytest.mark.parametrize('state, schedule, message', [
    (lambda: start(seed=1), Schedule(linear_betas(50)), r'trained with other betas, Schedule\(T=50.*than this schedule, Schedule\(T=50'),
    (lambda: start(seed=1), Schedule(cosine_betas(51)), r'other betas, Schedule\(T=50.*Schedule\(T=51'),
    (lambda: start(seed=1, parameterization=EPS), SCHEDULE, 'predicts v, not eps'),
    (lambda: start(seed=1, num_classes=5), SCHEDULE, r'another network: label.weight is \(5, 32\) there and \(6, 32\) here'),
    (lambda: TrainState(Denoiser(Coin(), V)), SCHEDULE, 'another network: .* is .* there and missing here|missing there'),
])
def test_a_checkpoint_that_does_not_fit_is_refused_and_nothing_changes(state, schedule, message, trained, tmp_path):
    f = tmp_path/'x.safetensors'; save_checkpoint(f, trained, SCHEDULE)
    s = state(); before = everything(s)
    with pytest.raises(ValueError, match=message): resume(f, s, schedule)
    assert same(everything(s), before)

if __name__ == '__main__': child(sys.argv[1])
