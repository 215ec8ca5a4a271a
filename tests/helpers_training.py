"Small networks, data and runs that the tests of training, engine, checkpoint and run share"
import csv
import torch
from safetensors.torch import load_file
from torch import nn
from diffusion_scratch.checkpoint import checkpoint_tensors, checkpoints
from diffusion_scratch.data import ImageSet
from diffusion_scratch.denoiser import V, Denoiser
from diffusion_scratch.loss import v_weight
from diffusion_scratch.schedule import Schedule, cosine_betas
from diffusion_scratch.training import TrainState, fit, warmup_cosine
from diffusion_scratch.unet import UNet, timestep_embedding

SCHEDULE = Schedule(cosine_betas(50))
OPTIONS = dict(batch_size=8, lr=warmup_cosine(2e-3, 5, 40), weight=v_weight, label_dropout=0.3,
               flip=True, seed=3)

def images(n=40, classes=4):
    "Random 8 x 8 images"
    g = torch.Generator().manual_seed(0)
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
        return self.layers(torch.cat([x.flatten(1), timestep_embedding(t, 32)], 1)).view(x.shape)

def learned(run):
    "What metrics.csv says of each step, but for time and memory"
    with open(f'{run}/metrics.csv', newline='') as f: rows = [*csv.DictReader(f)]
    of_time = 'images_per_second', 'loading', 'memory', 'crc32'
    return [{k: v for k, v in row.items() if k not in of_time} for row in rows]

def tensors(run): return load_file(checkpoints(run)[0])

def assert_same_run(a, b):
    x, y = tensors(a), tensors(b)
    assert x.keys() == y.keys() and len(x) > 100
    for k in x: assert torch.equal(x[k], y[k]), k
    assert learned(a) == learned(b)
