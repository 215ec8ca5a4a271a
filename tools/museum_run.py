"""A small training of digits, as a user of the package writes it: the healthy program of the bug
museum (chapter 34). tools/museum.py puts one bug into a copy of this file, or of the package, and
runs the copy.

    python tools/museum_run.py train SEED FOLDER     # weights, average and losses
    python tools/museum_run.py draw SEED FOLDER      # 1,000 digits, and the walk to them
    python tools/museum_run.py diagnose SEED FOLDER  # what the doctor says of all this
"""
import json, sys
from pathlib import Path

import numpy as np
import torch

from diffusion_scratch import doctor
from diffusion_scratch.data import ImageSet, mnist_mini, to_float, to_uint8
from diffusion_scratch.denoiser import EPS, V, Denoiser, clipped
from diffusion_scratch.guidance import guided
from diffusion_scratch.loss import uniform, v_weight
from diffusion_scratch.pretrained import load, save
from diffusion_scratch.run import keep_freed_memory
from diffusion_scratch.sampling import ancestral, trajectory
from diffusion_scratch.schedule import Schedule, cosine_betas, linear_betas, zero_terminal_snr
from diffusion_scratch.training import TrainState, fit, warmup_cosine
from diffusion_scratch.unet import UNet

STEPS, DIGITS, WALK = 800, 1000, 10  # of training; drawn; steps of the walk

data = mnist_mini()
schedule = Schedule(cosine_betas(1000))

def untrained(seed: int) -> Denoiser:
    torch.manual_seed(seed)
    net = UNet(1, channels=32, multipliers=(1,), blocks=1, attention=(), num_classes=10,
               unshuffle=4)
    return Denoiser(net, V).to(memory_format=torch.channels_last)

def train(seed: int, folder: Path):
    state = TrainState(untrained(seed), ema=0.99)
    lr = warmup_cosine(5e-3, 80, STEPS)
    losses = [m.loss for m in fit(state, schedule, data, steps=STEPS, batch_size=64, lr=lr,
                                  weight=v_weight, label_dropout=0.1, clip=1., seed=seed)]
    save(state.denoiser, schedule, folder/'last')
    save(state.ema, schedule, folder/'average')
    np.save(folder/'losses.npy', losses)

def draw(seed: int, folder: Path):
    denoiser, _ = load(folder/'average')
    y = torch.arange(DIGITS) % 10
    model = clipped(guided(denoiser, y, scale=2.))
    frames = trajectory(model, schedule, (DIGITS, 1, 28, 28), step=ancestral(),
                        times=schedule.times(WALK), seed=seed)
    walk = []
    for t, x, _ in frames: walk.append((t, x.mean().item(), x.std().item()))
    np.save(folder/'images.npy', to_uint8(x))
    (folder/'walk.json').write_text(json.dumps(walk))

def diagnose(seed: int, folder: Path):
    average, last = (load(folder/name)[0] for name in ('average', 'last'))
    samples = torch.from_numpy(np.load(folder/'images.npy'))
    found = doctor.diagnose(average, schedule, data, np.load(folder/'losses.npy'),
                            weight=v_weight, steps_planned=STEPS, last=last, batch_size=64,
                            samples=samples, n=64)
    levels = [[row['t'], round(row['network'], 5)] for row in found.table]
    (folder/'diagnosis.json').write_text(json.dumps(dict(
        verdict=found.verdict, signs=found.signs, reasons=found.reasons, levels=levels)))

if __name__ == '__main__':
    torch.set_num_threads(1)
    keep_freed_memory()
    command, seed, folder = sys.argv[1:]
    globals()[command](int(seed), Path(folder))
