"""The transformer from outside: numpy, torch's and torchvision's own layers, published sizes, every
shape, what it must refuse, and the two commands"""
import copy, csv, json, math, os, re, subprocess, sys, time
from pathlib import Path
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from scipy.special import softmax
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.vision_transformer import EncoderBlock
from diffusion_scratch import cli
from diffusion_scratch.config import load_config, make_data, make_denoiser
from diffusion_scratch.pictures import grid
from diffusion_scratch.data import mnist_mini
from diffusion_scratch.denoiser import V, Denoiser, clipped
from diffusion_scratch.guidance import guided
from diffusion_scratch.loss import v_weight
from diffusion_scratch.export import export_onnx
from diffusion_scratch.pretrained import load, save
from diffusion_scratch.sampling import sample
from diffusion_scratch.schedule import Schedule, cosine_betas
from diffusion_scratch.training import TrainState, fit, warmup_constant
from diffusion_scratch.checkpoint import load_checkpoint, newest_checkpoint, resume, save_checkpoint
from diffusion_scratch.transformer import (
    DiT, DiTBlock, SelfAttention, ada_norm, patchify, positions, unpatchify)

ROOT = Path(__file__).parent.parent
SMALL = dict(in_channels=1, patch=4, width=24, depth=2, heads=3)
T2 = torch.tensor([1, 2])

def wake(module, seed=1):
    "Give what starts at zero weights that can be seen"
    g = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, nn.Linear) and not m.weight.any():
            nn.init.xavier_uniform_(m.weight, generator=g)
            nn.init.normal_(m.bias, std=0.3, generator=g)
    return module

def make(seed=0, awake=True, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = DiT(**{**SMALL, **options})
    return (wake(net) if awake else net).eval()

def randn(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
def size(m): return sum(p.numel() for p in m.parameters())
def numpy(x): return x.detach().double().numpy()

# ---- patches

@pytest.mark.parametrize('C, H, W, p', [(1, 4, 4, 4), (3, 6, 10, 2), (2, 5, 3, 1), (4, 21, 14, 7)])
def test_patches_are_their_formula_and_come_back(C, H, W, p):  # eq-patches
    x = randn(2, C, H, W)
    want = np.stack([[x[b, :, i:i+p, j:j+p].numpy().ravel() for i in range(0, H, p)
                      for j in range(0, W, p)] for b in range(2)])
    assert np.array_equal(patchify(x, p).numpy(), want)
    assert torch.equal(unpatchify(patchify(x, p), p, H // p, W // p), x)
    assert torch.equal(patchify(x.to(memory_format=torch.channels_last), p), patchify(x, p))

# ---- attention

@pytest.mark.parametrize('width, heads, N', [(24, 3, 7), (8, 1, 5), (16, 16, 4), (12, 2, 1)])
def test_attention_is_a_softmax_for_each_head(width, heads, N):  # eq-heads, in numpy
    layer, x, d = SelfAttention(width, heads), randn(2, N, width), width // heads
    nn.init.normal_(layer.qkv.bias, generator=torch.Generator().manual_seed(1))
    nn.init.normal_(layer.out.bias, generator=torch.Generator().manual_seed(2))
    W, b, O, o = map(numpy, (layer.qkv.weight, layer.qkv.bias, layer.out.weight, layer.out.bias))
    for image, got in zip(numpy(x), numpy(layer(x))):
        q, k, v = np.split(image @ W.T + b, 3, 1)
        heard = np.concatenate([softmax(q[:, s] @ k[:, s].T / math.sqrt(d), 1) @ v[:, s]
                                for s in (slice(h * d, h * d + d) for h in range(heads))], 1)
        np.testing.assert_allclose(got, heard @ O.T + o, atol=2e-6)  # float32 round-off

def test_attention_is_torch_s():  # eq-heads
    ours, x = SelfAttention(24, 4), randn(3, 11, 24)
    theirs = nn.MultiheadAttention(24, 4, batch_first=True)
    theirs.load_state_dict({'in_proj_weight': ours.qkv.weight, 'in_proj_bias': ours.qkv.bias,
                            'out_proj.weight': ours.out.weight, 'out_proj.bias': ours.out.bias})
    # need_weights: written out, no fused kernel
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=True)[0], atol=1e-6, rtol=1e-5)

def test_attention_s_gradient():
    layer = SelfAttention(8, 2).double()
    # against finite differences
    assert torch.autograd.gradcheck(layer, randn(1, 3, 8).double().requires_grad_())

def test_order_of_tokens_means_nothing_to_attention_and_blocks():  # eq-shuffle
    x, c = randn(2, 20, 24), randn(2, 24, seed=1)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    for layer in (SelfAttention(24, 3), lambda x, block=wake(DiTBlock(24, 3)): block(x, c)):
        torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order], atol=1e-5, rtol=1e-5)

# ---- places

@pytest.mark.parametrize('rows, columns, width', [(1, 1, 8), (7, 7, 96), (3, 11, 12), (1, 40, 20)])
def test_places_are_their_formula(rows, columns, width):  # eq-places
    half = width // 4
    wave = lambda n: np.concatenate([f(n / 10_000.**(np.arange(half) / (half - 1)))
                                     for f in (np.sin, np.cos)])
    want = np.stack([np.concatenate([wave(r), wave(s)]) for r in range(rows)
                     for s in range(columns)])
    e = positions(rows, columns, width)
    assert np.abs(e.numpy() - want).max() < 1e-5
    assert len(e.round(decimals=4).unique(dim=0)) == rows * columns

def test_likeness_of_places_depends_on_their_distance_alone():  # eq-places
    e = positions(6, 5, 16).double()
    alike = (e @ e.T).view(6, 5, 6, 5)
    for dr, ds in np.ndindex(3, 3):
        values = [alike[r, s, r + dr, s + ds] for r in range(6 - dr) for s in range(5 - ds)]
        assert max(values) - min(values) < 1e-5

def test_a_network_knows_where_its_tokens_stand():
    "What eq-shuffle forbids to a network without places"
    net, x = make(), randn(1, 1, 12, 12)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    shuffle = lambda x: unpatchify(patchify(x, 4)[:, order], 4, 3, 3)
    assert (net(shuffle(x), T2[:1]) - shuffle(net(x, T2[:1]))).std() > 0.05
    net.places = lambda rows, columns, x: 0
    torch.testing.assert_close(net(shuffle(x), T2[:1]), shuffle(net(x, T2[:1])), atol=1e-5,
                               rtol=1e-5)

# ---- the norm that listens, and the block

def test_norm_is_its_formula():  # eq-adaln
    x, shift, scale = randn(2, 5, 24) * 3 + 1, randn(2, 1, 24, seed=1), randn(2, 1, 24, seed=2)
    a = numpy(x)
    want = (1 + numpy(scale)) * (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True)
                                                                          + 1e-6) + numpy(shift)
    np.testing.assert_allclose(numpy(ada_norm(x, shift, scale)), want, atol=1e-5)

def test_a_fresh_block_is_the_identity_to_the_last_bit():  # eq-adaln-zero
    for seed in range(3):
        assert torch.equal(DiTBlock(24, 3)(x := randn(2, 9, 24, seed=seed), 100 * randn(2, 24)), x)

def test_block_is_its_formula():  # eq-adaln-zero, in numpy but for attention, which is tested above
    block, x, c = wake(DiTBlock(12, 2)), randn(2, 6, 12), randn(2, 12, seed=1)
    norm = lambda a: (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-6)
    gelu = lambda a: 0.5 * a * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)))
    dense = lambda a, layer: a @ numpy(layer.weight).T + numpy(layer.bias)
    b1, g1, a1, b2, g2, a2 = np.split(dense(numpy(c), block.ada)[:, None], 6, -1)
    h = numpy(x) + a1 * numpy(block.attention(torch.from_numpy((1 + g1) * norm(numpy(x))
                                                               + b1).float()))
    want = h + a2 * dense(gelu(dense((1 + g2) * norm(h) + b2, block.mlp[0])), block.mlp[2])
    np.testing.assert_allclose(numpy(block(x, c)), want, atol=2e-5)

@pytest.mark.parametrize('exact, tolerance', [(False, 1e-5), (True, 0.05)])
def test_block_is_torchvision_s(exact, tolerance):  # eq-adaln-zero: constants told, gates open
    """torchvision's GELU is exact where the paper's is by tanh; the two differ by up to 5e-4, times
    weights"""
    theirs, ours, one = EncoderBlock(4, 32, 128, 0., 0.).eval(), DiTBlock(32, 4), torch.ones(32)
    g = torch.Generator().manual_seed(0)
    for p in theirs.parameters(): nn.init.normal_(p, std=0.2, generator=g)
    if not exact: theirs.mlp[1] = nn.GELU(approximate='tanh')
    s = theirs.state_dict()
    ours.load_state_dict({'attention.qkv.weight': s['self_attention.in_proj_weight'],
                          'attention.qkv.bias': s['self_attention.in_proj_bias'],
                          'attention.out.weight': s['self_attention.out_proj.weight'],
                          'attention.out.bias': s['self_attention.out_proj.bias'],
                          'mlp.0.weight': s['mlp.0.weight'], 'mlp.0.bias': s['mlp.0.bias'],
                          'mlp.2.weight': s['mlp.3.weight'], 'mlp.2.bias': s['mlp.3.bias'],
                          'ada.weight': torch.zeros(192, 32),
                          'ada.bias': torch.cat([s['ln_1.bias'], s['ln_1.weight'] - 1, one,
                                                 s['ln_2.bias'], s['ln_2.weight'] - 1, one])})
    x = randn(2, 49, 32)
    assert (ours(x, randn(2, 32)) - theirs(x)).abs().max() < tolerance

def test_block_s_gradient():
    block = wake(DiTBlock(8, 2)).double()
    assert torch.autograd.gradcheck(block, (randn(1, 3, 8).double().requires_grad_(),
                                            randn(1, 8, seed=1).double().requires_grad_()))

# ---- the network

def by_hand(net, x, t, y):
    """The whole forward pass in plain torch, from the state dict alone, with loops in place of
    reshapes"""
    s, c = net.state_dict(), net.config
    p, D, H = c['patch'], c['width'], c['heads']
    dense = lambda a, name: a @ s[f'{name}.weight'].T + s[f'{name}.bias']
    wave = lambda n, d: torch.tensor([f(n / 10_000**(j / (d // 2 - 1)))
                                      for f in (math.sin, math.cos) for j in range(d // 2)],
                                     dtype=x.dtype)
    def attend(a, name):
        q, k, v = dense(a, f'{name}.qkv').split(D, -1)
        cut = lambda a: a.split(D // H, -1)
        return dense(torch.cat([(q @ k.T / (D // H)**0.5).softmax(-1) @ v
                                for q, k, v in zip(cut(q), cut(k), cut(v))], -1), f'{name}.out')
    out = torch.zeros_like(x)
    for b in range(len(x)):
        tokens = torch.stack([x[b, :, i:i+p, j:j+p].reshape(-1) for i in range(0, x.shape[2], p)
                              for j in range(0, x.shape[3], p)])
        places = torch.stack([torch.cat([wave(i, D // 2), wave(j, D // 2)])
                              for i in range(x.shape[2] // p) for j in range(x.shape[3] // p)])
        told = F.silu(dense(F.silu(dense(wave(int(t[b]) - 1, D), 'time.0')), 'time.2')
                      + s['label.weight'][int(y[b]) + 1])
        h = dense(tokens, 'stem') + places
        norm = lambda a: (a - a.mean(-1, keepdim=True)) / (a.var(-1, correction=0, keepdim=True)
                                                           + 1e-6).sqrt()
        for i in range(c['depth']):
            b1, g1, a1, b2, g2, a2 = dense(told, f'blocks.{i}.ada').split(D)
            h = h + a1 * attend((1 + g1) * norm(h) + b1, f'blocks.{i}.attention')
            h = h + a2 * dense(F.gelu(dense((1 + g2) * norm(h) + b2, f'blocks.{i}.mlp.0'),
                                      approximate='tanh'), f'blocks.{i}.mlp.2')
        shift, scale = dense(told, 'ada').split(D)
        pixels = dense((1 + scale) * norm(h) + shift, 'head')
        for n, (i, j) in enumerate((i, j) for i in range(0, x.shape[2], p)
                                   for j in range(0, x.shape[3], p)):
            out[b, :, i:i+p, j:j+p] = pixels[n].view(-1, p, p)
    return out

def test_network_is_its_parts_written_out():
    "In float64, but for the waves, which are float32: angles near 1000 are off by up to 6e-5"
    net = make(in_channels=2, num_classes=3).double()
    x, t, y = randn(3, 2, 8, 12).double(), torch.tensor([1, 40, 1000]), torch.tensor([2, -1, 0])
    want = by_hand(net, x, t, y)
    assert want.std() > 0.1
    torch.testing.assert_close(net(x, t, y), want, atol=5e-4, rtol=0)

@pytest.mark.parametrize('C, H, W, options', [
    (1, 28, 28, {}), (3, 32, 32, {}), (2, 13, 29, {}), (1, 9, 64, dict(patch=7)),
    (5, 7, 7, dict(patch=2)), (1, 1, 1, {}), (1, 1, 17, dict(patch=8)), (4, 3, 5, dict(patch=1)),
    (1, 5, 5, dict(depth=1, width=8, heads=2)), (3, 16, 8, dict(width=20, heads=1))])
def test_any_shape_comes_back(C, H, W, options):
    net, x = make(in_channels=C, **options), randn(2, C, H, W)
    out = net(x, torch.tensor([1, 1000]))
    assert out.shape == x.shape and out.dtype == x.dtype and out.isfinite().all()
    assert out.abs().max() > 0.01

def test_padding_repeats_the_edge_and_is_cut_off_again():
    net, x = make(), randn(2, 1, 10, 7)
    wide = F.pad(x, (0, 1, 0, 2), mode='replicate')
    assert torch.equal(net(x, T2), net(wide, T2)[..., :10, :7])

def test_the_first_answer_is_zero_and_three_steps_wake_everything():
    net, x = make(awake=False, num_classes=4).train(), randn(3, 1, 8, 8)
    y = torch.tensor([0, 1, -1])
    t, target, alive = torch.tensor([1, 10, 1000]), randn(3, 1, 8, 8, seed=1), []
    assert (net(x, t, y) == 0).all()
    for _ in range(3):
        net.zero_grad(); (net(x, t, y) - target).square().mean().backward()
        alive.append({n for n, p in net.named_parameters() if p.grad.abs().max() > 0})
        with torch.no_grad():
            for p in net.parameters(): p -= 0.1 * p.grad
    assert alive[0] == {'head.weight', 'head.bias'}
    assert {n.split('.')[0] for n in alive[1]} == {'head', 'ada', 'stem', 'blocks'}
    assert all('.ada.' in n for n in alive[1] if n.startswith('blocks'))
    assert alive[2] == {n for n, _ in net.named_parameters()}
    # rows: null, 0, 1; 2 and 3 were not asked
    assert net.label.weight.grad.abs().sum(1).gt(0).tolist() == [True, True, True, False, False]

def test_an_image_does_not_depend_on_its_company():
    net, x, t = make(), randn(5, 1, 11, 14), torch.tensor([1, 5, 20, 300, 1000])
    torch.testing.assert_close(net(x, t), torch.cat([net(x[i:i+1], t[i:i+1]) for i in range(5)]),
                               atol=1e-5, rtol=1e-5)

def test_every_pixel_hears_every_other_and_the_time():
    net, x = make(depth=1), randn(1, 1, 16, 16).requires_grad_()
    [g] = torch.autograd.grad(net(x, T2[:1])[0, 0, 0, 0], x)
    assert (patchify(g, 4)[0].abs().amax(1) > 0).all()  # one block is enough
    assert (net(x, torch.tensor([1])) - net(x, torch.tensor([900]))).std() > 0.01

def test_labels_and_the_null_class():
    net, x, t = make(num_classes=10), randn(3, 1, 10, 10), torch.tensor([5, 50, 500])
    null = net(x, t)
    assert torch.equal(null, net(x, t, torch.full((3,), -1)))
    mixed = net(x, t, torch.tensor([9, -1, 0]))
    assert torch.allclose(mixed[1], null[1], atol=1e-5) and (mixed[0] - null[0]).std() > 0.01
    assert (mixed[2] - null[2]).std() > 0.01

def test_channels_last_float64_bfloat16_and_autocast():
    net, x, t = make(num_classes=3), randn(2, 1, 13, 12), torch.tensor([1, 77])
    y = torch.tensor([0, -1])
    want = copy.deepcopy(net).double()(x.double(), t, y)
    # float32 round-off
    assert want.dtype == torch.float64 and (net(x, t, y) - want).abs().max() < 1e-4
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    x_last = x.to(memory_format=torch.channels_last)
    assert torch.allclose(last(x_last, t, y), net(x, t, y), atol=1e-5)
    low = copy.deepcopy(net).bfloat16()(x.bfloat16(), t, y)
    # bfloat16 keeps 8 bits: 0.4 % a number
    assert low.dtype == torch.bfloat16 and (low - want).abs().max() < 0.1 * want.abs().max()
    with torch.autocast('cpu', torch.bfloat16): mixed = net(x, t, y)
    assert (mixed - want).abs().max() < 0.1 * want.abs().max()

def test_arguments_and_randomness_are_left_alone():
    net = make(num_classes=3)
    args = (randn(2, 1, 9, 9), torch.tensor([1, 2]), torch.tensor([0, -1]))
    before, state = [a.clone() for a in args], torch.get_rng_state()
    net(*args)
    assert all(torch.equal(a, b) for a, b in zip(before, args))
    assert torch.equal(torch.get_rng_state(), state)

# ---- size and cost

def cost(net, *shape):
    """Multiplications for one image, counted by torch; in this mode attention is written out, so
    that it is counted too"""
    device = next(net.parameters()).device
    with FlopCounterMode(display=False) as f, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        net(torch.zeros(1, *shape, device=device), torch.ones(1, dtype=torch.long, device=device))
    return f.get_total_flops() / 2

@pytest.mark.parametrize('options, H, W', [
    ({}, 12, 12),
    (dict(in_channels=3, patch=2, width=40, depth=3, heads=5, num_classes=7), 9, 15),
    (dict(patch=1, num_classes=1), 4, 3)])
def test_size_and_cost_are_their_formulas(options, H, W):  # eq-dit-size, eq-dit-cost
    net = make(**options)
    c = net.config
    dense = lambda a, b: a*b + b
    D, pixels = c['width'], c['in_channels'] * c['patch']**2
    N = -(-H // c['patch']) * -(-W // c['patch'])
    block = dense(D, 3*D) + dense(D, D) + dense(D, 4*D) + dense(4*D, D) + dense(D, 6*D)
    labels = (c['num_classes'] > 0) * (c['num_classes'] + 1) * D
    ends = 2 * dense(D, D) + dense(D, 2*D) + dense(pixels, D) + dense(D, pixels)
    assert size(net) == c['depth'] * block + ends + labels
    work = N * (4*D*D + 8*D*D) + 2*N*N*D + 6*D*D
    assert cost(net, c['in_channels'], H, W) == c['depth'] * work + 2*D*D + 2*D*D + 2*N*D*pixels

@pytest.mark.parametrize('width, depth, heads, millions, billions', [
    (384, 12, 6, 33, 6.06), (768, 12, 12, 130, 23.01), (1024, 24, 16, 458, 80.71),
    (1152, 28, 16, 675, 118.64)])
def test_published_sizes(width, depth, heads, millions, billions):  # eq-dit-size, eq-dit-cost
    """DiT-S, B, L and XL with patches of 2 on 4 x 32 x 32 (Peebles & Xie 2023, tables 1 and 4);
    theirs return a variance too, count their places, and embed the time with 256 numbers"""
    with torch.device('meta'): net = DiT(4, 2, width, depth, heads, 1000)
    assert abs(size(net) / 1e6 / millions - 1) < 0.01
    assert abs(cost(net, 4, 32, 32) / 1e9 / billions - 1) < 0.001

def test_it_knows_no_diffusion():
    "Of the package it imports one other module, the UNet's"
    source = (ROOT/'diffusion_scratch'/'transformer.py').read_text(encoding='utf-8')
    assert re.findall(r'(?m)^\s*(?:from|import)\s+(?:diffusion_scratch|\.)(\S*)',
                      source) == ['unet']

def test_default_arguments_are_the_paper_s_small_network():
    with torch.device('meta'):
        assert DiT().config == dict(in_channels=3, patch=2, width=384, depth=12, heads=6,
                                    num_classes=0)

# ---- as others use it

def test_config_survives_json_and_rebuilds_the_network():
    net = make(num_classes=3, in_channels=2)
    twin = DiT(**json.loads(json.dumps(net.config))).eval()
    assert twin.config == net.config
    twin.load_state_dict(net.state_dict())
    args = randn(2, 2, 9, 9), T2, torch.tensor([2, -1])
    assert torch.equal(net(*args), twin(*args))

def test_names_of_weights_are_those_that_checkpoints_hold():
    "Written files outlive the code: a renamed part would orphan them"
    dense = ['time.0', 'time.2', 'stem', 'blocks.0.attention.qkv', 'blocks.0.attention.out',
             'blocks.0.ada', 'blocks.0.mlp.0', 'blocks.0.mlp.2', 'ada', 'head']
    names = [f'{n}.{k}' for n in dense for k in ('weight', 'bias')]
    names.insert(4, 'label.weight')
    assert list(make(num_classes=2, depth=1).state_dict()) == names

def test_first_weights_are_xaviers_and_the_caller_s_randomness_decides():
    a, b, c = make(3, awake=False), make(3, awake=False), make(4, awake=False)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert not torch.equal(a.stem.weight, c.stem.weight)
    w = make(awake=False, width=96, heads=4).blocks[0].mlp[0].weight.detach().double()
    want = math.sqrt(2 / sum(w.shape))
    assert abs(w.std() / want - 1) < 5 * 0.45 / math.sqrt(w.numel())
    assert w.abs().max() <= math.sqrt(3) * want * (1 + 1e-6)

def test_it_can_be_exported():
    "No branch depends on values, so torch.export (and ONNX after it) can follow"
    net = make(num_classes=3)
    args = (randn(2, 1, 12, 10), torch.tensor([1, 2]), torch.tensor([0, -1]))
    assert torch.allclose(torch.export.export(net, args).module()(*args), net(*args), atol=1e-5)

@pytest.mark.parametrize('options, message', [
    (dict(width=30, heads=3), 'width = 30 must be a multiple of 4, for the positions, and of '
     'heads = 3'),
    (dict(heads=5), 'width = 24 .* of heads = 5'),
    (dict(width=4, heads=1), 'width = 4 must be at least 8'),
    (dict(patch=0), 'patch = 0 must be at least 1'),
    (dict(depth=0), 'depth = 0'),
    (dict(heads=0), 'heads = 0'),
    (dict(in_channels=0), 'in_channels = 0'),
    (dict(num_classes=-1), 'num_classes = -1 must be at least 0')])
def test_networks_that_cannot_be_built(options, message):
    with pytest.raises(ValueError, match=message): DiT(**{**SMALL, **options})

@pytest.mark.parametrize('options, args, error, message', [
    ({}, (torch.zeros(2, 3, 9, 9), T2), ValueError, r'x has shape \(2, 3, 9, 9\); this network '
     r'takes \(B,1,H,W\)'),
    ({}, (torch.zeros(1, 9, 9), T2[:1]), ValueError, r'x has shape \(1, 9, 9\)'),
    ({}, (torch.zeros(2, 1, 0, 9), T2), ValueError, r'x has shape \(2, 1, 0, 9\)'),
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

# ---- denoiser, trainer, sampler, checkpoints: all that the book says takes any network

def test_trainer_checkpoint_and_sampler_take_it(tmp_path):
    """fit lowers the loss; what is saved half way, loaded and resumed ends bit for bit like the run
    that was not stopped; sampling draws with labels and guidance"""
    data, schedule = mnist_mini(), Schedule(cosine_betas(100))
    options = dict(batch_size=16, lr=warmup_constant(3e-3, 5), weight=v_weight)
    new = lambda: TrainState(Denoiser(make(awake=False, num_classes=10, width=32, heads=4), V),
                             ema=0.9)
    whole, half = new(), new()
    losses = [m.loss for m in fit(whole, schedule, data, steps=40, **options)]
    assert losses[0] > 0.9 and sum(losses[-5:]) / 5 < 0.75
    for _ in fit(half, schedule, data, steps=20, **options): pass
    save_checkpoint(tmp_path/'half.safetensors', half, schedule)
    again = new()
    resume(tmp_path/'half.safetensors', again, schedule)
    assert again.step == 20
    assert [m.loss for m in fit(again, schedule, data, steps=40, **options)] == losses[20:]
    for a, b in zip(again.ema.parameters(), whole.ema.parameters()): assert torch.equal(a, b)
    save_checkpoint(tmp_path/'whole.safetensors', again, schedule)
    denoiser, loaded = load_checkpoint(tmp_path/'whole.safetensors',
                                       net=DiT(**whole.denoiser.net.config))
    draw = lambda d, s: sample(clipped(guided(d, torch.tensor([3, 8]), 1.)), s, (2, 1, 28, 28),
                               times=s.times(5), seed=0, progress=False)
    images = draw(denoiser, loaded)
    assert torch.equal(images, draw(whole.ema, schedule)) and images.isfinite().all()
    assert images.std() > 0.1
    # made again by its name, from its config
    assert torch.equal(images, draw(*load(save(denoiser, loaded, tmp_path/'folder'))))

def test_it_leaves_as_onnx(tmp_path):
    """What another runtime computes from the exported file, at other batches and sizes, sides that
    must be padded too, is what torch computes"""
    onnxruntime = pytest.importorskip('onnxruntime')
    net = make(num_classes=3)
    session = onnxruntime.InferenceSession(export_onnx(Denoiser(net, V), tmp_path/'dit.onnx',
                                                       (1, 12, 8)))
    for B, H, W in ((2, 12, 8), (3, 16, 8), (1, 13, 9)):
        x, t, y = randn(B, 1, H, W), torch.tensor([1, 50, 1000])[:B], torch.tensor([0, -1, 2])[:B]
        [got] = session.run(None, dict(x=x.numpy(), t=t.numpy(), y=y.numpy()))
        np.testing.assert_allclose(got, net(x, t, y).detach().numpy(), atol=1e-4)

def test_the_book_s_config_makes_its_network():
    config = load_config(ROOT/'configs'/'mnist_dit.yaml')
    data = make_data(config, progress=False)
    net = make_denoiser(config, data).net
    assert isinstance(net, DiT) and size(net) == 710_800 and net.config == dict(config.model_args)
    assert net.num_classes == data.num_classes
    unet = make_denoiser(load_config(ROOT/'configs'/'quickstart.yaml'), data).net
    assert abs(size(net) / size(unet) - 1) < 0.02  # equal parameters, as the chapter says

def test_the_stored_run_is_of_the_book_s_config():
    "What the chapter shows was made by the config that stands in configs/, to its last step"
    asset = ROOT/'nbs'/'assets'/'transformer'
    stored, config = load_config(asset/'config.yaml'), load_config(ROOT/'configs'/'mnist_dit.yaml')
    assert stored.model_copy(update=dict(threads=config.threads)) == config
    result = json.loads((asset/'run.json').read_text())
    with open(asset/'metrics.csv', newline='') as f:
        steps = [int(row['step']) for row in csv.DictReader(f)]
    assert result['steps'] == config.training.steps
    assert steps == list(range(1, config.training.steps + 1)) and result['seed'] == config.seed
    assert result['parameters'] == 710_800
    with Image.open(asset/'samples.png') as picture: assert picture.width == picture.height

# ---- the two commands, from outside: on real digits, with the config of the book and a small width

TINY = ['model_args={in_channels: 1, patch: 7, width: 16, depth: 1, heads: 2, num_classes: 10}',
        'training.batch_size=16', 'training.warmup=2', 'training.decay=constant',
        'training.ema=0.9', 'sampling.steps=4', 'judge=0', 'save_every=5', 'preview_every=1000',
        'threads=1', 'device=cpu', 'log=[]']

def started(*words):
    return subprocess.Popen([sys.executable, '-c',
                             'from diffusion_scratch.cli import train_command; train_command()',
                             *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT)))

def test_both_commands_with_a_kill_in_between(tmp_path, monkeypatch):
    """A run killed without a warning goes on from its last checkpoint and ends with the weights of
    one that was left in peace; then diffusion-sample draws from it"""
    monkeypatch.chdir(tmp_path)
    words = lambda run, steps: [str(ROOT/'configs'/'mnist_dit.yaml'), *TINY, f'run={run}',
                                f'training.steps={steps}']
    process = started(*words('killed', 100_000))
    saved = Path('killed/checkpoints/step_00000010.safetensors')
    deadline = time.time() + 60
    while not saved.exists() and process.poll() is None and time.time() < deadline: time.sleep(0.01)
    process.kill(); process.communicate()
    step = newest_checkpoint('killed')[1]['step']
    assert step >= 10 and step % 5 == 0
    process = started(*words('killed', step + 10))
    cli.train_command(words('peace', step + 10))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert f'going on after step {step:,} of {step + 10:,}' in out
    assert 'diffusion_scratch.transformer:DiT of' in out
    net = lambda: DiT(**yaml.safe_load(TINY[0].partition('=')[2]))
    killed, peace = (load_checkpoint(run, net()) for run in ('killed', 'peace'))
    assert all(torch.equal(p, q) for p, q in zip(killed[0].parameters(), peace[0].parameters()))
    cli.sample_command('killed --n 6 --labels 3 8 --guidance 1 --seed 5'.split())
    with Image.open('killed/samples_seed5.png') as picture: drawn = np.asarray(picture)
    denoiser, schedule = peace
    x = sample(clipped(guided(denoiser, torch.tensor([3, 8] * 3), 1.)), schedule, (6, 1, 28, 28),
               times=schedule.times(4), seed=5, progress=False)
    assert np.array_equal(drawn, np.asarray(grid(x, 2, scale=2)))

@pytest.mark.parametrize('change, message', [
    ('model_args.heads=5', r'width = 16 must be a multiple of 4, for the positions, and of heads '
     r'= 5'),
    ('model_args.sides=4', r"model_args: .*'sides': 4.* is not allowed for "
     r"diffusion_scratch\.transformer:DiT"),
    ('model_args.num_classes=0', 'num_classes=0: it takes no labels'),
    ('model_args.in_channels=3', r'x has shape \(16, 1, 28, 28\); this network takes \(B,3,H,W\)')])
def test_mistakes_in_the_config_are_said_plainly(change, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as e:
        cli.train_command([str(ROOT/'configs'/'mnist_dit.yaml'), *TINY, 'run=run',
                           'training.steps=5', change])
    assert e.value.code == 2 and re.search(message, capsys.readouterr().err)
