"The UNet by closed forms, in numpy; what it shares with the transformer: test_networks"
import math
import numpy as np, pytest, torch
from helpers_networks import T2, make, numpy, randn, wake
from scipy.special import softmax
from torch import nn
from torch.nn import functional as F
from diffusion_scratch.unet import Attention, Downsample, ResBlock, UNet, timestep_embedding

def test_default_arguments_are_the_cifar10_network():
    with torch.device('meta'): net = UNet()
    # Ho et al.: 32 groups everywhere
    assert {(m.num_channels, m.num_groups, m.eps) for m in net.modules()
            if isinstance(m, nn.GroupNorm)} == {(c, 32, 1e-6) for c in (128, 256, 384, 512)}
    assert [n for n, m in net.named_modules() if isinstance(m, Attention)] == [
        'down.1.attentions.0', 'down.1.attentions.1', 'middle.1',
        *(f'up.2.attentions.{i}' for i in range(3))]

@pytest.mark.parametrize('dim', [4, 6, 16, 32, 128])
def test_embedding_is_its_formula(dim):
    "eq-sinusoid; float32 angles up to 999: 6e-5. It tells all timesteps apart"
    t = torch.arange(1, 1001)
    angle = (t.numpy() - 1.)[:, None] / 10_000.**(np.arange(dim // 2) / (dim // 2 - 1))
    e = timestep_embedding(t, dim)
    assert np.abs(e.numpy() - np.concatenate([np.sin(angle), np.cos(angle)], 1)).max() < 1e-4
    assert dim < 16 or (torch.cdist(e, e) + 9 * torch.eye(1000)).min() > 0.05

@pytest.mark.parametrize('dim', [0, 2, 5])
def test_embedding_refuses_dimensions_it_cannot_fill(dim):
    with pytest.raises(ValueError, match=f'dim = {dim} '): timestep_embedding(T2, dim)

def test_resblock_is_its_formula():  # eq-resblock, eq-groupnorm, in numpy but for the convolutions
    block, x, e = ResBlock(8, 12, 5, 2), randn(2, 8, 6, 7), randn(2, 5, seed=1)
    for p in block.parameters():
        nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(p.numel()))
    silu = lambda x: x / (1 + np.exp(-x))
    def norm(x, layer):
        g = x.reshape(len(x), layer.num_groups, -1)
        g = (g - g.mean(-1, keepdims=True)) / np.sqrt(g.var(-1, keepdims=True) + 1e-6)
        scale, shift = (numpy(p)[:, None, None] for p in (layer.weight, layer.bias))
        return g.reshape(x.shape) * scale + shift
    conv = lambda x, layer: numpy(F.conv2d(torch.from_numpy(x).float(), layer.weight, layer.bias,
                                           padding=layer.weight.shape[-1] // 2))
    h = conv(silu(norm(numpy(x), block.norm1)), block.conv1)
    h = h + (silu(numpy(e)) @ numpy(block.time.weight).T + numpy(block.time.bias))[:, :, None, None]
    want = conv(numpy(x), block.shortcut) + conv(silu(norm(h, block.norm2)), block.conv2)
    np.testing.assert_allclose(numpy(block(x, e)), want, atol=1e-4)

@pytest.mark.parametrize('H, W, C', [(3, 5, 16), (1, 1, 4), (8, 8, 32)])
def test_attention_is_a_softmax(H, W, C):  # eq-attention
    layer, x = wake(Attention(C, C // 4)), randn(2, C, H, W)
    q, k, v = (numpy(f(layer.norm(x)).flatten(2).mT) for f in (layer.q, layer.k, layer.v))
    mixed = softmax(q @ k.transpose(0, 2, 1) / math.sqrt(C), -1) @ v
    want = x + layer.out(torch.from_numpy(mixed.transpose(0, 2, 1).reshape(2, C, H, W)).float())
    assert torch.allclose(layer(x), want, atol=1e-5)

def test_down():
    "eq-halving: zeros only below and to the right; a kernel that picks its corner: even pixels"
    down, x = Downsample(4), randn(1, 4, 6, 6)
    with torch.no_grad(): down.conv.weight.zero_()[range(4), range(4), 0, 0] = 1
    assert torch.equal(down(x), x[:, :, ::2, ::2])

@pytest.mark.parametrize('channels', [4, 8, 12, 16, 20, 32, 36, 48, 64, 100, 128])
def test_no_width_is_deaf_to_the_time(channels):  # eq-deaf
    net = UNet(1, channels, (1, 2), 1, ())
    block, x, width = wake(net.middle[0]), randn(1, 2 * channels, 5, 5), 4 * channels
    early, late = torch.full((1, width), -2.), torch.linspace(-2, 3, width)[None]
    assert all(m.num_channels // m.num_groups >= 4 for m in net.modules()
               if isinstance(m, nn.GroupNorm))
    assert (block(x, early) - block(x, late)).std() > 0.02

def test_dropout_is_active_only_in_training():
    net, x = make(UNet, dropout=0.5), randn(2, 1, 8, 8)
    assert torch.equal(net(x, T2), net(x, T2))
    assert not torch.equal(net.train()(x, T2), net(x, T2))

@pytest.mark.parametrize('options, least', [
    (dict(multipliers=(1, 1, 1)), 4), (dict(unshuffle=4), 8),
    (dict(multipliers=(1, 1, 1), unshuffle=3), 12), (dict(channels=32, attention=(1,)), 2)])
def test_the_smallest_size_trains_at_batch_one_and_no_smaller_is_taken(options, least):
    "One pixel in the middle of the U: a norm over a single value would raise in training"
    net = make(UNet, **{'attention': (), **options}).train()
    assert net(randn(1, 1, least, least), T2[:1]).shape == (1, 1, least, least)
    message = (rf'images of {least - 1} x {2*least} are too small: {len(net.down)} levels and '
               f'unshuffle {net.unshuffle} need at least {least} x {least}')
    with pytest.raises(ValueError, match=message): net(randn(1, 1, least - 1, 2*least), T2[:1])
