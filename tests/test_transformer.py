"The transformer against numpy and torch's layers; what it shares with the UNet: test_networks"
import csv, json
from pathlib import Path
import numpy as np, pytest, torch
from helpers_networks import T2, make, numpy, randn, size, wake
from PIL import Image
from torch import nn
from torch.nn import functional as F
from diffusion_scratch.checkpoint import load_checkpoint, save_checkpoint
from diffusion_scratch.config import load_config, make_data, make_denoiser
from diffusion_scratch.data import mnist_mini
from diffusion_scratch.denoiser import V, Denoiser, clipped
from diffusion_scratch.export import export_onnx
from diffusion_scratch.guidance import guided
from diffusion_scratch.loss import v_weight
from diffusion_scratch.pretrained import load, save
from diffusion_scratch.sampling import sample
from diffusion_scratch.schedule import Schedule, cosine_betas
from diffusion_scratch.training import TrainState, fit, warmup_constant
from diffusion_scratch.transformer import (
    DiT, DiTBlock, SelfAttention, ada_norm, patchify, positions, unpatchify)
from diffusion_scratch.unet import timestep_embedding

ROOT = Path(__file__).parent.parent
CONFIG = ROOT/'configs'/'mnist_dit.yaml'

def dense(a, layer): return a @ numpy(layer.weight).T + numpy(layer.bias)
def norm(a): return (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-6)

@pytest.mark.parametrize('C, H, W, p', [(1, 4, 4, 4), (3, 6, 10, 2), (2, 5, 3, 1), (4, 21, 14, 7)])
def test_patches_are_their_formula_and_come_back(C, H, W, p):  # eq-patches
    x = randn(2, C, H, W)
    want = [[a[:, i:i+p, j:j+p].ravel() for i in range(0, H, p) for j in range(0, W, p)]
            for a in x.numpy()]
    assert np.array_equal(patchify(x, p).numpy(), want)
    assert torch.equal(unpatchify(patchify(x, p), p, H // p, W // p), x)

@pytest.mark.parametrize('width, heads, N', [(24, 3, 7), (8, 1, 5), (16, 16, 4), (12, 2, 1)])
def test_attention_is_that_of_torch(width, heads, N):
    "eq-heads, by torch's layer without its fused kernel; float32 round-off"
    layer, x = SelfAttention(width, heads), randn(2, N, width)
    for i, b in enumerate((layer.qkv.bias, layer.out.bias)): b.data = randn(len(b), seed=i)
    theirs = nn.MultiheadAttention(width, heads, batch_first=True)
    theirs.load_state_dict({'in_proj_weight': layer.qkv.weight, 'in_proj_bias': layer.qkv.bias,
                            'out_proj.weight': layer.out.weight, 'out_proj.bias': layer.out.bias})
    want, _ = theirs(x, x, x, need_weights=True)
    torch.testing.assert_close(layer(x), want, atol=1e-6, rtol=1e-5)

@pytest.mark.parametrize('rows, columns, width', [(1, 1, 8), (7, 7, 96), (3, 11, 12), (1, 40, 20)])
def test_places_are_their_formula(rows, columns, width):  # eq-places
    half = width // 4
    wave = lambda n: np.concatenate([f(n / 10_000.**(np.arange(half) / (half - 1)))
                                     for f in (np.sin, np.cos)])
    want = [np.concatenate([wave(r), wave(s)]) for r in range(rows) for s in range(columns)]
    e = positions(rows, columns, width)
    assert np.abs(e.numpy() - want).max() < 1e-5
    assert len(e.round(decimals=4).unique(dim=0)) == rows * columns

def test_a_fresh_block_is_the_identity_and_a_fresh_network_is_zero():  # eq-adaln-zero
    assert (make(DiT, awake=False)(randn(2, 1, 8, 8), T2) == 0).all()
    for seed in range(3):
        assert torch.equal(DiTBlock(24, 3)(x := randn(2, 9, 24, seed=seed), 100 * randn(2, 24)), x)

def test_block_is_its_formula():
    "eq-adaln, eq-adaln-zero, in numpy but for attention, which is tested above"
    block, x, c = wake(DiTBlock(12, 2)), 3 * randn(2, 6, 12) + 1, randn(2, 12, seed=1)
    gelu = lambda a: 0.5 * a * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)))
    b1, g1, a1, b2, g2, a2 = np.split(dense(numpy(c), block.ada)[:, None], 6, -1)
    told = torch.from_numpy((1 + g1) * norm(numpy(x)) + b1).float()
    got = ada_norm(x, *(torch.from_numpy(a).float() for a in (b1, g1)))
    np.testing.assert_allclose(got, told, atol=1e-5)
    h = numpy(x) + a1 * numpy(block.attention(told))
    want = h + a2 * dense(gelu(dense((1 + g2) * norm(h) + b2, block.mlp[0])), block.mlp[2])
    np.testing.assert_allclose(numpy(block(x, c)), want, atol=2e-5)

def test_network_is_its_parts_written_out():
    "In float64, from the state dict, with patches, places and blocks as tested above"
    net = make(DiT, in_channels=2, num_classes=3).double()
    x, t, y = randn(3, 2, 8, 12).double(), torch.tensor([1, 40, 1000]), torch.tensor([2, -1, 0])
    s = net.state_dict()
    dense = lambda a, name: a @ s[f'{name}.weight'].T + s[f'{name}.bias']
    time = dense(F.silu(dense(timestep_embedding(t, 24).double(), 'time.0')), 'time.2')
    told = F.silu(time + s['label.weight'][y + 1])
    h = dense(patchify(x, 4), 'stem') + positions(2, 3, 24)
    for block in net.blocks: h = block(h, told)
    shift, scale = dense(told, 'ada')[:, None].split(24, -1)
    h = (1 + scale) * torch.from_numpy(norm(numpy(h))) + shift
    want = unpatchify(dense(h, 'head'), 4, 2, 3)
    assert want.std() > 0.1
    torch.testing.assert_close(net(x, t, y), want, atol=1e-9, rtol=0)

def test_default_arguments_are_the_paper_s_small_network():
    with torch.device('meta'): config = DiT().config
    assert config == dict(in_channels=3, patch=2, width=384, depth=12, heads=6, num_classes=0)

def test_names_of_weights_are_those_that_checkpoints_hold():
    "Written files outlive the code: a renamed part would orphan them"
    names = [f'{n}.{k}' for n in '''time.0 time.2 stem blocks.0.attention.qkv blocks.0.attention.out
             blocks.0.ada blocks.0.mlp.0 blocks.0.mlp.2 ada head'''.split()
             for k in ('weight', 'bias')]
    names.insert(4, 'label.weight')
    assert list(make(DiT, num_classes=2, depth=1).state_dict()) == names

def test_trainer_checkpoint_and_sampler_take_it(tmp_path):
    "The loss falls; written and read, in two ways, the network draws the same with guidance"
    data, schedule = mnist_mini(), Schedule(cosine_betas(100))
    net = make(DiT, awake=False, num_classes=10, width=32, heads=4)
    state = TrainState(Denoiser(net, V), ema=0.9)
    losses = [m.loss for m in fit(state, schedule, data, steps=40, batch_size=16,
                                  lr=warmup_constant(3e-3, 5), weight=v_weight)]
    assert losses[0] > 0.9 and sum(losses[-5:]) / 5 < 0.75
    def draw(denoiser, schedule):
        d = clipped(guided(denoiser, torch.tensor([3, 8]), 1.))
        return sample(d, schedule, (2, 1, 28, 28), times=schedule.times(5), seed=0, progress=False)
    images = draw(state.ema, schedule)
    assert images.isfinite().all() and images.std() > 0.1
    save_checkpoint(tmp_path/'a.safetensors', state, schedule)
    loaded = load_checkpoint(tmp_path/'a.safetensors', net=DiT(**net.config))
    # made again by its name, from its config
    for again in (loaded, load(save(*loaded, tmp_path/'folder'))):
        assert torch.equal(images, draw(*again))

def test_it_leaves_as_onnx(tmp_path):
    "Another runtime computes what torch does, at other batches, sizes and sides to be padded"
    onnxruntime = pytest.importorskip('onnxruntime')
    net = make(DiT, num_classes=3)
    file = export_onnx(Denoiser(net, V), tmp_path/'dit.onnx', (1, 12, 8))
    session = onnxruntime.InferenceSession(file)
    for B, H, W in ((2, 12, 8), (3, 16, 8), (1, 13, 9)):
        x, t, y = randn(B, 1, H, W), torch.tensor([1, 50, 1000])[:B], torch.tensor([0, -1, 2])[:B]
        [got] = session.run(None, dict(x=x.numpy(), t=t.numpy(), y=y.numpy()))
        np.testing.assert_allclose(got, numpy(net(x, t, y)), atol=1e-4)

def test_the_book_s_config_makes_its_network_and_its_stored_run():
    "What chapter 28 shows was made by the config that stands in configs/, to its last step"
    config, asset = load_config(CONFIG), ROOT/'nbs'/'assets'/'transformer'
    data, last = make_data(config, progress=False), config.training.steps
    net = make_denoiser(config, data).net
    assert isinstance(net, DiT) and size(net) == 710_800 and net.config == dict(config.model_args)
    assert net.num_classes == data.num_classes
    unet = make_denoiser(load_config(ROOT/'configs'/'quickstart.yaml'), data).net
    assert abs(size(net) / size(unet) - 1) < 0.02  # equal parameters, as the chapter says
    stored, result = load_config(asset/'config.yaml'), json.loads((asset/'run.json').read_text())
    assert stored.model_copy(update=dict(threads=config.threads)) == config
    assert (result['steps'], result['seed'], result['parameters']) == (last, config.seed, 710_800)
    with open(asset/'metrics.csv', newline='') as f:
        assert [int(row['step']) for row in csv.DictReader(f)] == list(range(1, last + 1))
    with Image.open(asset/'samples.png') as picture: assert picture.width == picture.height
