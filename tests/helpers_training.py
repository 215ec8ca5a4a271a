"Small networks, data and runs that the tests of training, engine and checkpoint share"
import torch
from torch import nn

from diffusion_scratch.checkpoint import checkpoint_tensors
from diffusion_scratch.data import ImageSet
from diffusion_scratch.denoiser import V, Denoiser
from diffusion_scratch.loss import v_weight
from diffusion_scratch.schedule import Schedule, cosine_betas
from diffusion_scratch.training import TrainState, fit, warmup_cosine
from diffusion_scratch.unet import UNet, timestep_embedding

SCHEDULE = Schedule(cosine_betas(50))
OPTIONS = dict(batch_size=8, lr=warmup_cosine(2e-3, 5, 40), weight=v_weight, label_dropout=0.3,
               flip=True, seed=3)


def images(n=40, classes=4, seed=0):
    "Random 8 x 8 images"
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=g)
    return ImageSet(x, torch.arange(n) % classes if classes else None)


def unet(seed=0, **options):
    "A small network with everything in it: dropout, labels, attention, channels_last"
    options = dict(dropout=0.2, num_classes=4) | options
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet(1, 8, (1, 2), 1, (1,), **options).to(memory_format=torch.channels_last)


def start(seed=0, parameterization=V, net=None, **options):
    return TrainState(Denoiser(net or unet(seed, **options), parameterization), ema=0.9)


def train(state, steps, data=None, **options):
    "Train to a step; the metrics of each"
    return list(fit(state, SCHEDULE, data or images(), steps=steps, **OPTIONS | options))


def everything(state):
    "A copy of all that a state remembers"
    tensors = {k: v.detach().clone() for k, v in checkpoint_tensors(state, SCHEDULE)}
    return tensors | dict(step=torch.tensor(state.step))


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Coin(nn.Module):
    "A network for one pixel"
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(33, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
                                    nn.Linear(64, 1))

    def forward(self, x, t):
        h = torch.cat([x.flatten(1), timestep_embedding(t, 32)], 1)
        return self.layers(h).view(x.shape)


class Sick(nn.Module):
    "Three layers, of which the middle one can be made to overflow"
    def __init__(self):
        super().__init__()
        self.first, self.middle = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1)
        self.last, self.factor = nn.Conv2d(4, 1, 1), 1.

    def forward(self, x, t, y=None): return self.last(self.middle(self.first(x) * self.factor))
