"What each network of the package promises to its user, the UNet and the transformer alike"
import copy, json, math
import pytest, torch
from conftest import refused
from helpers_networks import SMALL, T2, make, randn
from torch.nn import functional as F
from diffusion_scratch.guidance import NULL
from diffusion_scratch.transformer import DiT, DiTBlock
from diffusion_scratch.unet import NEARLY_ZERO, Attention, ResBlock, UNet, pad_to_multiple

BOTH = pytest.mark.parametrize('kind', [UNet, DiT])
OPTIONS = {UNet: dict(unshuffle=2, multipliers=(1, 2), attention=(0,), dropout=0.1), DiT: {}}
X = torch.zeros(2, 1, 9, 9)

@pytest.fixture(params=[UNet, DiT])
def net(request): return make(request.param, num_classes=10, **OPTIONS[request.param])

@pytest.mark.parametrize('kind, shapes, options', [
    (UNet, [(1, 28, 28), (3, 32, 32), (2, 13, 29), (1, 9, 64), (1, 2, 2)], {}),
    (UNet, [(5, 7, 7)], dict(channels=20)), (UNet, [(1, 28, 28)], dict(unshuffle=2)),
    (UNet, [(1, 1, 1)], dict(multipliers=(1,), attention=(0,))),
    (UNet, [(3, 31, 17), (1, 8, 9)], dict(unshuffle=4)),
    (UNet, [(1, 27, 30)], dict(multipliers=(1, 2, 1), attention=(0, 2), unshuffle=2)),
    (UNet, [(1, 16, 16)], dict(multipliers=(1, 1, 1, 1, 1), attention=())),
    (UNet, [(1, 12, 12)], dict(blocks=3, multipliers=(3, 1))),
    (DiT, [(1, 28, 28), (3, 32, 32), (2, 13, 29), (1, 1, 1)], {}),
    (DiT, [(1, 9, 64)], dict(patch=7)), (DiT, [(5, 7, 7)], dict(patch=2)),
    (DiT, [(1, 1, 17)], dict(patch=8)), (DiT, [(4, 3, 5)], dict(patch=1)),
    (DiT, [(1, 5, 5)], dict(depth=1, width=8, heads=2)),
    (DiT, [(3, 16, 8)], dict(width=20, heads=1))])
def test_any_shape_comes_back(kind, shapes, options):
    for C, H, W in shapes:
        x = randn(2, C, H, W)
        out = make(kind, in_channels=C, **options)(x, torch.tensor([1, 1000]))
        assert out.shape == x.shape and out.dtype == x.dtype and out.isfinite().all()
        assert out.std() > 0.01

def test_padding_repeats_the_edge_and_is_cut_off_again(net):
    x, side = randn(2, 1, 9, 11), 2 if isinstance(net, UNet) else 4
    wide = F.pad(x, (0, -11 % side, 0, -9 % side), mode='replicate')
    assert torch.equal(pad_to_multiple(x, side), wide)
    assert torch.equal(net(x, T2), net(wide, T2)[..., :9, :11])

def test_an_image_does_not_depend_on_its_company(net):
    x, t = randn(5, 1, 11, 14), torch.tensor([1, 5, 20, 300, 1000])
    alone = torch.cat([net(x[i:i+1], t[i:i+1]) for i in range(5)])
    torch.testing.assert_close(net(x, t), alone, atol=1e-5, rtol=1e-5)

def test_labels_and_the_null_class(net):
    x, t = randn(3, 1, 10, 10), torch.tensor([5, 50, 500])
    null, mixed = net(x, t), net(x, t, torch.tensor([9, -1, 0]))
    assert torch.equal(null, net(x, t, torch.full((3,), NULL)))
    assert torch.allclose(mixed[1], null[1], atol=1e-5)
    assert (mixed[0] - null[0]).std() > 0.01 and (mixed[2] - null[2]).std() > 0.01

def test_output_depends_on_time_and_every_parameter_learns(net):
    x, t = randn(3, 1, 12, 12), torch.tensor([1, 10, 100])
    a, b = net(x, t), net(x, torch.tensor([1, 10, 900]))
    assert torch.allclose(a[:2], b[:2], atol=1e-5) and (a[2] - b[2]).std() > 0.01
    net(x, t, torch.tensor([0, 1, -1])).square().mean().backward()
    blind = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    # a shift of all keys by one vector adds the same to every score, which a softmax takes off
    assert all(n.endswith('.k.bias') for n in blind), blind
    # rows: null, 0, 1; 2 to 9 were not asked
    assert net.label.weight.grad.abs().sum(1).gt(0).tolist() == [True] * 3 + [False] * 8

def test_channels_last_float64_bfloat16_and_autocast(net):
    "float32 round-off, 1e-4 through 9 blocks; bfloat16 keeps 8 bits, 0.4 % a number"
    x, *told = args = randn(2, 1, 13, 12), torch.tensor([1, 77]), torch.tensor([0, -1])
    want = copy.deepcopy(net).double()(x.double(), *told)
    assert want.dtype == torch.float64 and (net(*args) - want).abs().max() < 1e-4
    last, loose = torch.channels_last, (0.3 if isinstance(net, UNet) else 0.1) * want.abs().max()
    got = copy.deepcopy(net).to(memory_format=last)(x.to(memory_format=last), *told)
    torch.testing.assert_close(got, net(*args), atol=1e-5, rtol=1e-5)
    low = copy.deepcopy(net).bfloat16()(x.bfloat16(), *told)
    assert low.dtype == torch.bfloat16 and (low - want).abs().max() < loose
    with torch.autocast('cpu', torch.bfloat16): assert (net(*args) - want).abs().max() < loose

def test_arguments_and_randomness_are_left_alone(net):
    args = randn(2, 1, 9, 9), T2.clone(), torch.tensor([0, -1])
    before, state = [a.clone() for a in args], torch.get_rng_state()
    net(*args)
    assert all(map(torch.equal, before, args)) and torch.equal(torch.get_rng_state(), state)

def test_config_survives_json_and_rebuilds_the_network(net):
    twin = type(net)(**json.loads(json.dumps(net.config))).eval()
    assert twin.config == net.config
    twin.load_state_dict(net.state_dict())
    args = randn(2, 1, 9, 9), T2, torch.tensor([2, -1])
    assert torch.equal(net(*args), twin(*args))

@BOTH
def test_same_seed_same_weights_and_the_caller_s_randomness_decides(kind):
    a, b, c = (list(make(kind, seed, awake=False).parameters()) for seed in (3, 3, 4))
    assert all(map(torch.equal, a, b)) and not torch.equal(a[0], c[0])

@pytest.mark.parametrize('layer, scale', [
    (ResBlock(64, 64, 128, 16).conv1, 1.), (ResBlock(64, 64, 128, 16).conv2, NEARLY_ZERO),
    (Attention(128, 32).q, 1.), (Attention(128, 32).out, NEARLY_ZERO),
    (DiTBlock(96, 4).mlp[0], 1.)])
def test_first_weights_are_xaviers(layer, scale):
    "Uniform, variance scale * 2 / (fan in + fan out); std of n known to 0.45 / sqrt(n)"
    w = layer.weight.detach().double()
    want = math.sqrt(scale * 2 / (w.shape[0] + w.shape[1]) / w[0, 0].numel())
    assert abs(w.std() / want - 1) < 5 * 0.45 / math.sqrt(w.numel())
    assert w.abs().max() <= math.sqrt(3) * want * (1 + 1e-6) and (layer.bias == 0).all()

@pytest.mark.parametrize('kind, options, message', [
    *((kind, dict([bad]), f'{bad[0]} = {bad[1]} must be at least ') for kind, bad in [
        (UNet, ('in_channels', 0)), (UNet, ('num_classes', -1)), (UNet, ('blocks', 0)),
        (UNet, ('unshuffle', 0)), (DiT, ('in_channels', 0)), (DiT, ('num_classes', -1)),
        (DiT, ('patch', 0)), (DiT, ('depth', 0)), (DiT, ('heads', 0))]),
    (UNet, dict(channels=30), 'channels = 30 must be a multiple of 4'),
    (UNet, dict(channels=0), 'channels = 0'), (UNet, dict(channels=-4), 'channels = -4'),
    (UNet, dict(attention=(2,)), r'attention at level 2, but the levels are 0\.\.1'),
    (UNet, dict(attention=(-1,)), 'attention at level -1'),
    (UNet, dict(multipliers=()), r'multipliers = \(\)'),
    (UNet, dict(multipliers=(1, 0)), r'multipliers = \(1, 0\)'),
    (UNet, dict(dropout=1.5), r'dropout = 1\.5 is outside 0\.\.1'),
    (DiT, dict(width=30),
     'width = 30 must be a multiple of 4, for the positions, and of heads = 3'),
    (DiT, dict(heads=5), 'width = 24 .* of heads = 5'),
    (DiT, dict(width=4, heads=1), 'width = 4 must be at least 8')])
def test_networks_that_cannot_be_built(kind, options, message):
    refused(lambda: kind(**SMALL[kind] | options), message)

@BOTH
@pytest.mark.parametrize('num_classes, args, message', [
    (0, (torch.zeros(2, 4, 9, 9), T2),
     [r'x has shape \(2, 4, 9, 9\); this network takes \(B,1,H,W\)']),
    (0, (X[0], T2[:1]), [r'x has shape \(1, 9, 9\)']),
    (0, (X[:, :, :0], T2), [r'x has shape \(2, 1, 0, 9\)']),
    (0, (X.byte(), T2), [r'must hold floats.*torch\.uint8', TypeError]),
    (0, (X, torch.tensor(3)), [r't has shape \(\); give one timestep for each of the 2 images']),
    (0, (X, T2[:1]), [r't has shape \(1,\)']),
    (0, (X, T2, T2), ['num_classes=0: it takes no labels']),
    (5, (X, T2, torch.tensor([0, 5])),
     [r'labels y lie in 0\.\.5; this network takes 0\.\.4, and -1 for none']),
    (5, (X, T2, torch.tensor([-2, 0])), [r'lie in -2\.\.0']),
    (5, (X, T2, T2[:1]), [r'of shape \(1,\); give one whole number for each of the 2']),
    (5, (X, T2, T2.float()), [r'labels y are torch\.float32'])])
def test_calls_that_are_refused(kind, num_classes, args, message):
    net = make(kind, num_classes=num_classes, **OPTIONS[kind])
    refused(lambda: net(*args), *message)
