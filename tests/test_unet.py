"The UNet from outside: published sizes, closed forms, numpy, every shape, and what it must refuse"
import copy, json, math
import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import nn
from torch.nn import functional as F
from diffusion_scratch.denoiser import Denoiser
from diffusion_scratch.schedule import Schedule, linear_betas
from diffusion_scratch.unet import (
    NEARLY_ZERO, Attention, Downsample, ResBlock, Stage, UNet, Upsample, pad_to_multiple,
    timestep_embedding)

SMALL = dict(in_channels=1, channels=16, multipliers=(1, 2), blocks=1)

def make(seed=0, awake=True, **options):
    "A small network; `awake` gives the nearly-zero layers weights that can be seen"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = UNet(**{**SMALL, **options})
        for m in net.modules():
            if awake and isinstance(m, nn.Conv2d) and m.weight.abs().max() < 1e-3:
                nn.init.xavier_uniform_(m.weight)
    return net.eval()

def images(B, C, H, W, seed=0):
    return torch.randn(B, C, H, W, generator=torch.Generator().manual_seed(seed))
def size(m): return sum(p.numel() for p in m.parameters())

# ---- size: a pencil count from the architecture's description, with no look at the code

def pencil(in_channels, channels, multipliers, blocks, attention, num_classes=0, unshuffle=1):
    "Parameters of a UNet: eq-block-size, attention, resizes, stem, head, time, labels"
    e = 4 * channels
    conv = lambda a, b: 9*a*b + b
    block = lambda a, b: 2*a + conv(a, b) + (e + 1)*b + 2*b + conv(b, b) + (a != b)*(a*b + b)
    attend = lambda c: 2*c + 4*(c*c + c)
    widths, pixels = [channels * m for m in multipliers], in_channels * unshuffle**2
    total = (channels*e + e) + (e*e + e) + (num_classes + 1)*e*(num_classes > 0)
    total += conv(pixels, channels) + 2*widths[0] + conv(widths[0], pixels)
    c, stack = channels, [channels]
    for i, w in enumerate(widths):
        for _ in range(blocks):
            total += block(c, w) + (i in attention)*attend(w)
            c = w
            stack.append(c)
        if i < len(widths) - 1:
            total += conv(c, c)
            stack.append(c)
    total += 2*block(c, c) + attend(c)
    for i in reversed(range(len(widths))):
        for _ in range(blocks + 1):
            total += block(c + stack.pop(), widths[i]) + (i in attention)*attend(widths[i])
            c = widths[i]
        if i: total += conv(c, c)
    assert not stack
    return total

@pytest.mark.parametrize('options, published', [
    (dict(in_channels=3, channels=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(1,)),
     35_746_307),
    (dict(in_channels=3, channels=128, multipliers=(1, 1, 2, 2, 4, 4), blocks=2, attention=(4,)),
     113_673_219),
    (dict(in_channels=1, channels=32, multipliers=(1, 2), blocks=1, attention=(1,),
          num_classes=10, unshuffle=2), None),
    (dict(in_channels=2, channels=20, multipliers=(2, 1, 3), blocks=3, attention=(0, 2)), None)])
def test_parameters_are_those_of_the_paper_and_of_a_pencil_count(options, published):
    with torch.device('meta'): n = size(UNet(**options))
    assert n == pencil(**options)
    assert published is None or n == published

def test_default_arguments_are_the_cifar10_network():
    with torch.device('meta'): net = UNet()
    assert size(net) == 35_746_307
    x, t = torch.empty(2, 3, 32, 32, device='meta'), torch.ones(2, dtype=torch.long, device='meta')
    with torch.no_grad(): assert net(x, t).shape == x.shape
    norms = {m.num_channels: m.num_groups for m in net.modules() if isinstance(m, nn.GroupNorm)}
    # Ho et al.: 32 groups everywhere
    assert set(norms.values()) == {32} and set(norms) == {128, 256, 384, 512}
    assert all(m.eps == 1e-6 for m in net.modules() if isinstance(m, nn.GroupNorm))
    with_attention = [n for n, m in net.named_modules() if isinstance(m, Attention)]
    assert with_attention == [*(f'down.1.attentions.{i}' for i in range(2)), 'middle.1',
                              *(f'up.2.attentions.{i}' for i in range(3))]

# ---- parts against closed forms

def test_embedding_is_its_formula():  # eq-sinusoid
    t = torch.tensor([1, 2, 17, 500, 1000])
    for dim in (4, 6, 32, 128):
        angle = (t.numpy() - 1.)[:, None] / 10_000.**(np.arange(dim // 2) / (dim // 2 - 1))
        want = np.concatenate([np.sin(angle), np.cos(angle)], 1)
        # float32 angles up to 999: 6e-5
        assert np.abs(timestep_embedding(t, dim).numpy() - want).max() < 1e-4

def test_embedding_tells_all_timesteps_apart():
    e = timestep_embedding(torch.arange(1, 1001), 16)
    assert (torch.cdist(e, e) + 9 * torch.eye(1000)).min() > 0.05

@pytest.mark.parametrize('dim', [0, 2, 5])
def test_embedding_refuses_dimensions_it_cannot_fill(dim):
    with pytest.raises(ValueError, match=f'dim = {dim} '):
        timestep_embedding(torch.tensor([1]), dim)

def test_resblock_is_its_formula():  # eq-resblock, eq-groupnorm, in numpy but for the convolutions
    block, x = ResBlock(8, 12, 5, 2), images(2, 8, 6, 7)
    e = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
    for p in block.parameters():
        nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(p.numel()))
    silu = lambda x: x / (1 + np.exp(-x))
    def norm(x, layer):
        g = x.reshape(len(x), layer.num_groups, -1)
        g = (g - g.mean(-1, keepdims=True)) / np.sqrt(g.var(-1, keepdims=True) + 1e-6)
        scale, shift = (p.detach().numpy()[:, None, None] for p in (layer.weight, layer.bias))
        return g.reshape(x.shape) * scale + shift
    conv = lambda x, layer: F.conv2d(torch.from_numpy(x), layer.weight, layer.bias,
                                     padding=layer.weight.shape[-1] // 2).detach().numpy()
    h = conv(silu(norm(x.numpy(), block.norm1)), block.conv1)
    h = h + (silu(e.numpy()) @ block.time.weight.detach().numpy().T
             + block.time.bias.detach().numpy())[:, :, None, None]
    want = conv(x.numpy(), block.shortcut) + conv(silu(norm(h, block.norm2)), block.conv2)
    np.testing.assert_allclose(block(x, e).detach().numpy(), want, atol=1e-4)

@pytest.mark.parametrize('H, W, C', [(3, 5, 16), (1, 1, 4), (8, 8, 32)])
def test_attention_is_a_softmax(H, W, C):  # eq-attention
    layer, x = Attention(C, C // 4), images(2, C, H, W)
    nn.init.xavier_uniform_(layer.out.weight)
    q, k, v = (f(layer.norm(x)).detach().flatten(2).transpose(1, 2).double().numpy()
               for f in (layer.q, layer.k, layer.v))
    mixed = softmax(q @ k.transpose(0, 2, 1) / math.sqrt(C), -1) @ v
    want = x + layer.out(torch.from_numpy(mixed.transpose(0, 2, 1).reshape(2, C, H, W)).float())
    assert torch.allclose(layer(x), want, atol=1e-5)
    assert torch.allclose(layer(x.to(memory_format=torch.channels_last)), want, atol=1e-5)

def test_down_and_up_sizes():  # eq-halving
    down, up = Downsample(4), Upsample(4)
    for n in range(2, 40):
        small = down(torch.zeros(1, 4, n, 11))
        assert small.shape == (1, 4, n // 2, 5)
        assert up(small, torch.Size((n, 11))).shape == (1, 4, n, 11)

def test_down_reads_what_the_paper_reads():
    """Zeros only below and to the right: with a kernel that picks its top left corner, the even
    pixels come out"""
    down, x = Downsample(4), images(1, 4, 6, 6)
    with torch.no_grad():
        down.conv.weight.zero_(); down.conv.weight[range(4), range(4), 0, 0] = 1
    assert torch.equal(down(x), x[:, :, ::2, ::2])

def test_stage_keeps_its_parts_in_step():
    stage = Stage()
    stage.add(ResBlock(4, 8, 16, 1), nn.Identity())
    stage.add(ResBlock(8, 8, 16, 2), Attention(8, 2))
    assert len(stage.blocks) == len(stage.attentions) == 2 and stage.resize is None
    assert {k.split('.')[0] for k in stage.state_dict()} == {'blocks', 'attentions'}

# ---- every width can hear the time (eq-deaf)

@pytest.mark.parametrize('channels', [4, 8, 12, 16, 20, 32, 36, 48, 64, 100, 128])
def test_no_width_is_deaf_to_the_time(channels):
    net = UNet(1, channels, (1, 2), 1, ())
    block, x, width = net.middle[0], images(1, 2 * channels, 5, 5), 4 * channels
    nn.init.xavier_uniform_(block.conv2.weight)
    early, late = torch.full((1, width), -2.), torch.linspace(-2, 3, width)[None]
    assert all(m.num_channels // m.num_groups >= 4 for m in net.modules()
               if isinstance(m, nn.GroupNorm))
    assert (block(x, early) - block(x, late)).std() > 0.02

# ---- any shape

@pytest.mark.parametrize('C, H, W, options', [
    (1, 28, 28, {}),
    (3, 32, 32, {}),
    (2, 13, 29, {}),
    (1, 9, 64, {}),
    (5, 7, 7, dict(channels=20)),
    (1, 2, 2, {}),
    (1, 1, 1, dict(multipliers=(1,), attention=(0,))),
    (1, 28, 28, dict(unshuffle=2)),
    (3, 31, 17, dict(unshuffle=4)),
    (1, 8, 9, dict(unshuffle=4)),
    (1, 27, 30, dict(multipliers=(1, 2, 1), attention=(0, 2), unshuffle=2)),
    (1, 16, 16, dict(multipliers=(1, 1, 1, 1, 1), attention=())),
    (1, 12, 12, dict(blocks=3, multipliers=(3, 1)))])
def test_any_shape_comes_back(C, H, W, options):
    net, x = make(in_channels=C, **options), images(2, C, H, W)
    out = net(x, torch.tensor([1, 1000]))
    assert out.shape == x.shape and out.dtype == x.dtype and out.isfinite().all()
    assert out.std() > 0.01

def test_smallest_image_at_batch_one_in_training():
    "One pixel in the middle of the U: a norm over a single value would raise here"
    net = make(channels=32, multipliers=(1, 1)).train()
    assert net(images(1, 1, 2, 2), torch.tensor([3])).shape == (1, 1, 2, 2)

def test_unshuffle_sees_the_border_without_making_up_zeros():
    "An odd side is filled with the edge itself: a constant image stays constant when folded"
    x = torch.full((1, 1, 7, 9), 0.3)
    assert torch.equal(pad_to_multiple(x, 4), torch.full((1, 1, 8, 12), 0.3))

def test_an_image_does_not_depend_on_its_company():
    net, x, t = make(), images(5, 1, 11, 14), torch.tensor([1, 5, 20, 300, 1000])
    alone = torch.cat([net(x[i:i+1], t[i:i+1]) for i in range(5)])
    assert torch.allclose(net(x, t), alone, atol=1e-5)

def test_channels_last_float64_and_bfloat16():
    net, x, t = make(num_classes=3, unshuffle=2), images(2, 1, 13, 12), torch.tensor([1, 77])
    y = torch.tensor([0, -1])
    want = copy.deepcopy(net).double()(x.double(), t, y)
    assert want.dtype == torch.float64
    assert (net(x, t, y) - want).abs().max() < 1e-4  # float32 round-off through 9 blocks
    assert torch.allclose(copy.deepcopy(net).to(memory_format=torch.channels_last)(x, t, y),
                          net(x, t, y), atol=1e-4)
    low = copy.deepcopy(net).bfloat16()(x.bfloat16(), t, y)
    assert low.dtype == torch.bfloat16 and (low - want).abs().max() < 0.3 * want.abs().max()

def test_arguments_are_left_alone():
    net, x, t = make(num_classes=3), images(2, 1, 9, 9), torch.tensor([1, 2])
    y = torch.tensor([0, -1])
    before = [a.clone() for a in (x, t, y)]
    net(x, t, y)
    assert all(torch.equal(a, b) for a, b in zip(before, (x, t, y)))

# ---- what the output depends on

def test_output_depends_on_time_and_pixels_and_every_parameter_learns():
    net = make(num_classes=4, multipliers=(1, 2, 2), attention=(0, 1)).train()
    x = images(3, 1, 12, 12)
    a, b = net(x, torch.tensor([1, 10, 100])), net(x, torch.tensor([1, 10, 900]))
    assert torch.allclose(a[:2], b[:2], atol=1e-5) and (a[2] - b[2]).std() > 0.01
    net(x, torch.tensor([1, 10, 100]), torch.tensor([0, 1, -1])).square().mean().backward()
    blind = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    # a shift of all keys by one vector adds the same to every score, which a softmax takes off
    assert all(n.endswith('.k.bias') for n in blind), blind
    # rows: null, 0, 1; 2 and 3 were not asked
    assert net.label.weight.grad.abs().sum(1).gt(0).tolist() == [True, True, True, False, False]

def test_labels_and_the_null_class():
    net, x, t = make(num_classes=10), images(3, 1, 10, 10), torch.tensor([5, 50, 500])
    null = net(x, t)
    assert torch.equal(null, net(x, t, torch.full((3,), -1)))
    mixed = net(x, t, torch.tensor([9, -1, 0]))
    assert torch.allclose(mixed[1], null[1], atol=1e-5) and (mixed[0] - null[0]).std() > 0.01
    assert (mixed[2] - null[2]).std() > 0.01

def test_dropout_is_active_only_in_training():
    net, x, t = make(dropout=0.5), images(2, 1, 8, 8), torch.tensor([5, 50])
    assert torch.equal(net(x, t), net(x, t))
    net.train()
    assert not torch.equal(net(x, t), net(x, t))

def test_fresh_blocks_are_the_identity_and_the_first_answer_is_zero():
    net, x = make(awake=False), images(4, 1, 14, 14)
    assert net(x, torch.tensor([1, 10, 100, 1000])).abs().max() < 1e-3
    for layer in (ResBlock(16, 16, 8, 4), Attention(16, 4)):
        h = images(2, 16, 7, 7)
        assert (layer(h, torch.ones(2, 8)) if isinstance(layer, ResBlock)
                else layer(h)).sub(h).abs().max() < 1e-3

def test_first_weights_are_xaviers():
    """Uniform, with variance scale * 2 / (fan in + fan out): the standard deviation of n uniform
    numbers is known to 0.45 / sqrt(n)"""
    for layer, scale in ((ResBlock(64, 64, 128, 16).conv1, 1.),
                         (ResBlock(64, 64, 128, 16).conv2, NEARLY_ZERO),
                         (Attention(128, 32).out, NEARLY_ZERO), (Attention(128, 32).q, 1.)):
        w = layer.weight.detach().double()
        fans = (w.shape[0] + w.shape[1]) * w.shape[2] * w.shape[3]
        want = math.sqrt(scale * 2 / fans)
        assert abs(w.std() / want - 1) < 5 * 0.45 / math.sqrt(w.numel())
        assert w.abs().max() <= math.sqrt(3) * want * (1 + 1e-6) and (layer.bias == 0).all()

# ---- as others use it

def test_config_survives_json_and_rebuilds_the_network():
    net = make(num_classes=3, unshuffle=2, multipliers=(1, 2), attention=(0,), dropout=0.1)
    twin = UNet(**json.loads(json.dumps(net.config))).eval()
    assert twin.config == net.config
    twin.load_state_dict(net.state_dict())
    x, t, y = images(2, 1, 9, 9), torch.tensor([1, 2]), torch.tensor([2, -1])
    assert torch.equal(net(x, t, y), twin(x, t, y))

def test_names_of_weights_are_those_that_checkpoints_hold():
    "Written files outlive the code: a renamed part would orphan them"
    net = make(num_classes=2)
    names = list(net.state_dict())
    outer = ['time.0', 'time.2', 'label', 'stem', 'head.0', 'head.2']
    found = [n for n in names if n.endswith('weight') and n.count('.') <= 2]
    assert found == [f'{n}.weight' for n in outer]
    assert {'down.0.blocks.0.norm1.weight', 'down.0.blocks.0.conv1.bias',
            'down.0.blocks.0.time.weight', 'down.0.blocks.0.norm2.bias',
            'down.0.blocks.0.conv2.weight', 'down.0.resize.conv.weight',
            'down.1.blocks.0.shortcut.weight', 'down.1.attentions.0.norm.weight',
            'down.1.attentions.0.q.weight', 'down.1.attentions.0.k.weight',
            'down.1.attentions.0.v.weight', 'down.1.attentions.0.out.weight',
            'middle.0.conv1.weight', 'middle.1.q.weight', 'up.0.resize.conv.weight'} <= set(names)

def test_same_seed_same_weights_and_the_caller_s_randomness_decides():
    a, b, c = make(3), make(3), make(4)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert not torch.equal(a.stem.weight, c.stem.weight)

def test_a_denoiser_takes_it():
    net, schedule = make(num_classes=3), Schedule(linear_betas())
    x = images(2, 1, 9, 9)
    out = Denoiser(net)(x, schedule.at(torch.tensor([1, 1000]), x), torch.tensor([0, -1]))
    eps = net(x, torch.tensor([1, 1000]), torch.tensor([0, -1]))
    # 1e-4: eps is computed from x0; float32 rounding / noise at t = 1
    torch.testing.assert_close(out.eps, eps, rtol=0, atol=1e-4)

def test_it_can_be_exported():
    "No branch depends on values, so torch.export (and ONNX after it) can follow"
    net = make(num_classes=3, unshuffle=2)
    args = images(2, 1, 12, 12), torch.tensor([1, 2]), torch.tensor([0, -1])
    assert torch.allclose(torch.export.export(net, args).module()(*args), net(*args), atol=1e-5)

# ---- bad input

@pytest.mark.parametrize('options, message', [
    (dict(channels=30), 'channels = 30 must be a multiple of 4'),
    (dict(channels=0), 'channels = 0'),
    (dict(channels=-4), 'channels = -4'),
    (dict(attention=(2,)), r'attention at level 2, but the levels are 0\.\.1'),
    (dict(attention=(-1,)), 'attention at level -1'),
    (dict(multipliers=()), r'multipliers = \(\)'),
    (dict(multipliers=(1, 0)), r'multipliers = \(1, 0\)'),
    (dict(blocks=0), 'blocks = 0 must be at least 1'),
    (dict(in_channels=0), 'in_channels = 0'),
    (dict(unshuffle=0), 'unshuffle = 0'),
    (dict(num_classes=-1), 'num_classes = -1 must be at least 0'),
    (dict(dropout=1.5), r'dropout = 1\.5 is outside 0\.\.1')])
def test_networks_that_cannot_be_built(options, message):
    with pytest.raises(ValueError, match=message): UNet(**{**SMALL, **options})

T2 = torch.tensor([1, 2])
@pytest.mark.parametrize('options, args, error, message', [
    (dict(multipliers=(1, 1, 1)), (torch.zeros(2, 1, 28, 3), T2), ValueError,
     'images of 28 x 3 are too small: 3 levels and unshuffle 1 need at least 4 x 4'),
    (dict(unshuffle=4), (torch.zeros(2, 1, 7, 9), T2), ValueError, 'at least 8 x 8'),
    ({}, (torch.zeros(2, 3, 9, 9), T2), ValueError, r'x has shape \(2, 3, 9, 9\); this network '
     r'takes \(B,1,H,W\)'),
    (dict(unshuffle=2), (torch.zeros(2, 4, 9, 9), T2), ValueError, r'takes \(B,1,H,W\)'),
    ({}, (torch.zeros(1, 9, 9), T2[:1]), ValueError, r'x has shape \(1, 9, 9\)'),
    ({}, (torch.zeros(2, 1, 9, 9, dtype=torch.uint8), T2), TypeError,
     r'must hold floats.*torch\.uint8'),
    ({}, (torch.zeros(2, 1, 9, 9), torch.tensor(3)), ValueError,
     r't has shape \(\); give one timestep for each of the 2 images'),
    ({}, (torch.zeros(2, 1, 9, 9), T2[:1]), ValueError, r't has shape \(1,\)'),
    ({}, (torch.zeros(2, 1, 9, 9), T2, T2), ValueError, 'num_classes=0: it takes no labels'),
    (dict(num_classes=5), (torch.zeros(2, 1, 9, 9), T2, torch.tensor([0, 5])), ValueError,
     r'labels y lie in 0\.\.5; this network takes 0\.\.4, and -1 for none'),
    (dict(num_classes=5), (torch.zeros(2, 1, 9, 9), T2, torch.tensor([-2, 0])), ValueError,
     r'lie in -2\.\.0'),
    (dict(num_classes=5), (torch.zeros(2, 1, 9, 9), T2, T2[:1]), ValueError,
     r'of shape \(1,\); give one whole number for each of the 2'),
    (dict(num_classes=5), (torch.zeros(2, 1, 9, 9), T2, T2.float()), ValueError,
     r'labels y are torch\.float32')])
def test_calls_that_are_refused(options, args, error, message):
    with pytest.raises(error, match=message): make(**options)(*args)

def test_the_smallest_allowed_size_works():
    for options in (dict(multipliers=(1, 1, 1)), dict(unshuffle=4),
                    dict(multipliers=(1, 1, 1), unshuffle=3)):
        net = make(**{'attention': (), **options})
        least = net.unshuffle * 2**(len(net.down) - 1)
        assert net(images(1, 1, least, least), T2[:1]).shape == (1, 1, least, least)
        with pytest.raises(ValueError, match='too small'):
            net(images(1, 1, least - 1, least), T2[:1])
