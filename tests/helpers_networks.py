"Small networks, for the tests of the UNet, of the transformer and of what both promise"
import torch
from torch import nn
from diffusion_scratch.transformer import DiT
from diffusion_scratch.unet import UNet

SMALL = {UNet: dict(in_channels=1, channels=16, multipliers=(1, 2), blocks=1),
         DiT: dict(in_channels=1, patch=4, width=24, depth=2, heads=3)}
T2 = torch.tensor([1, 2])

def wake(module, seed=1):
    "Give what starts at zero, or nearly, weights that can be seen"
    g = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, (nn.Linear, nn.Conv2d)) and m.weight.abs().max() < 1e-3:
            nn.init.xavier_uniform_(m.weight, generator=g)
            nn.init.normal_(m.bias, std=0.3, generator=g)
    return module

def make(kind, seed=0, awake=True, **options):
    "A UNet or a DiT"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = kind(**SMALL[kind] | options)
    return (wake(net) if awake else net).eval()

def randn(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
def size(m): return sum(p.numel() for p in m.parameters())
def numpy(x): return x.detach().double().numpy()
