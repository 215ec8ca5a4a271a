"""What sampling costs beside the network, and the same in diffusers. Writes benchmarks/solvers.md.

    python benchmarks/solvers.py

All times are CPU time of one thread, and all numbers are medians. The networks are those of
configs/quickstart.yaml, the smallest of the book, and of configs/cifar10.yaml, the paper's.
"""
import argparse
import itertools
import time
from collections import defaultdict
from functools import partial
from inspect import signature
from statistics import median, quantiles

import diffusers
import torch
from common import HERE, OVERHEADS, collect, measured, overhead_row, quickstart, table, timed
from diffusers import (
    DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler
)
from diffusers.utils.torch_utils import randn_tensor
from torch import nn
from tqdm.auto import tqdm

from diffusion_scratch.config import load_config, make_denoiser, make_schedule
from diffusion_scratch.data import ImageSet
from diffusion_scratch.denoiser import Denoiser, V
from diffusion_scratch.sampling import ancestral, sample
from diffusion_scratch.solvers import ddim, dpm_solver_pp, heun

SDE = dict(algorithm_type='sde-dpmsolver++')
SOLVERS = [  # ours, theirs, and its options
    (ancestral(), DDPMScheduler, {}),
    (ddim(), DDIMScheduler, {}),
    (ddim(1.), DDIMScheduler, dict(eta=1.)),
    (dpm_solver_pp(), DPMSolverMultistepScheduler, {}),
    (dpm_solver_pp(1.), DPMSolverMultistepScheduler, SDE),
    (heun(), HeunDiscreteScheduler, {}),
]
TARGETS = {('small', 1): 6, ('small', 64): 1.5, ('paper', 1): 1, ('paper', 64): 0.2}  # percent
TURNS = 3  # of each row
BESIDE = ('a step', 'ours, ms', 'diffusers, ms', 'diffusers / ours', 'middle half', 'at least 1',
          'pairs')
cpu_timed = partial(timed, clock=time.thread_time)


class Timed(nn.Module):
    "A network, and the milliseconds of its calls, summed"
    def __init__(self, net):
        super().__init__()
        self.net, self.ms = net, 0.

    def forward(self, *args):
        out, ms = cpu_timed(self.net, *args)
        self.ms += ms
        return out


def whole_and_network(f, net: Timed) -> tuple[float, float]:
    "Milliseconds of f, and of the network in it"
    net.ms = 0.
    return cpu_timed(f)[1], net.ms


def papers():
    "Shape of an image, schedule and denoiser of Ho et al. (2020) for CIFAR-10"
    images = ImageSet(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    config = load_config(HERE.parent/'configs'/'cifar10.yaml')
    return images.shape, make_schedule(config), make_denoiser(config, images).eval()


def walks(step, denoiser, schedule, shape, y, n):
    "Pairs (a walk, the calls of the network in it), in ms for one call"
    net = Timed(denoiser.net)
    around = Denoiser(net, denoiser.parameterization).eval()
    times, calls = schedule.times(n), len(step.visits(schedule.times(n))) - 1
    options = dict(step=step, times=times, y=y, seed=0, progress=False)
    def walk(): sample(around, schedule, shape, **options)
    while True:
        whole, network = whole_and_network(walk, net)
        yield whole / calls, network / calls


def their_walk(make, options, net, schedule, shape, y, n):
    "The loop of diffusers' pipelines around a scheduler, with a generator for each image"
    config = {k: v for k, v in options.items() if k != 'eta'}
    if make is not DPMSolverMultistepScheduler: config['clip_sample'] = False
    scheduler = make(trained_betas=schedule.betas.tolist(), prediction_type='v_prediction',
                     timestep_spacing='trailing', **config)
    step = {k: v for k, v in options.items() if k == 'eta'}
    takes_generator = 'generator' in signature(make.step).parameters
    @torch.no_grad()
    def walk():
        scheduler.set_timesteps(n)
        streams = [torch.Generator().manual_seed(i) for i in range(shape[0])]
        if takes_generator: step['generator'] = streams
        x = randn_tensor(shape, generator=streams) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            out = net(scheduler.scale_model_input(x, t), t.long().expand(shape[0]) + 1, y)
            x = scheduler.step(out, t, x, **step).prev_sample
    return walk


def against(step, make, options, net, schedule, shape, y, n):
    "Pairs (our walk, theirs), in ms for one of n steps; the network counts the same on both sides"
    net = Timed(net)
    denoiser, times = Denoiser(net, V).eval(), schedule.times(n)
    settings = dict(step=step, times=times, y=y, seed=0, progress=False)
    def ours(): sample(denoiser, schedule, shape, **settings)
    theirs = their_walk(make, options, net, schedule, shape, y, n)
    while True:
        whole, inside = whole_and_network(ours, net)
        their_whole, their_inside = whole_and_network(theirs, net)
        network = (inside + their_inside) / 2
        yield (whole - inside + network) / n, (their_whole - their_inside + network) / n


def ratio_row(name: str, pairs: list) -> str:
    "Pairs (ours, theirs): how many times as fast ours is"
    ours, theirs = (median(p) for p in zip(*pairs))
    low, ratio, high = quantiles((b / a for a, b in pairs), n=4)
    met = 'yes' if ratio >= 1 else '**no**'
    return (f'| {name} | {ours:.2f} | {theirs:.2f} | **{ratio:.3f}** | {low:.3f} .. {high:.3f} '
            f'| {met} | {len(pairs):,} |')


def describe(denoiser, shape) -> str:
    "Size of the network and of its images"
    parameters = sum(p.numel() for p in denoiser.parameters())
    return f'{parameters:,} parameters, images of {" x ".join(map(str, shape))}'


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--seconds', type=float, default=9, help=f'for each row, in {TURNS} turns')
    p.add_argument('--steps', type=int, default=50, help='of each walk')
    a = p.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    _, data, schedule, small = quickstart()
    paper_shape, paper_schedule, paper = papers()
    rows, n = {}, a.steps
    for B, (step, make, options) in itertools.product((1, 64), SOLVERS):
        y, name = torch.arange(B) % data.num_classes, f'`{step}`, batch {B}'
        shape, few = (B, *data.shape), n if B == 1 else 2
        rows['small', B, name] = walks(step, small, schedule, shape, y, n)
        rows['paper', B, name] = walks(step, paper, paper_schedule, (B, *paper_shape), None, few)
        rows['diffusers', B, name] = against(step, make, options, small.net, schedule, shape, y, n)
    pairs, lines = defaultdict(list), defaultdict(list)
    for turn, key in tqdm([*itertools.product(range(TURNS), rows)], unit='turn'):
        warmup = int(turn == 0 and key[0] != 'paper')
        pairs[key] += collect(rows[key], a.seconds / TURNS, warmup)
    for key in rows:
        kind, B, name = key
        if kind == 'diffusers': row = ratio_row(name, pairs[key])
        else: row = overhead_row(name, pairs[key], TARGETS[kind, B])
        lines[kind].append(row)
    page = [f'''# The sampler

<!-- Written by benchmarks/solvers.py; run it to write this page anew. -->

## Beside the network

`sample` from a seed to images, in {n} steps, for one call of the network. *Bare* is the network
alone, timed inside the walk. All times are CPU time of one thread; all numbers are medians; each
row was measured in {TURNS} turns.

The network of `configs/quickstart.yaml`, the smallest of the book ({describe(small, data.shape)}):
''', *table(*OVERHEADS), *lines['small'], f'''
The network of `configs/cifar10.yaml`, the paper's ({describe(paper, paper_shape)};
batch 64 in 2 steps):
''', *table(*OVERHEADS), *lines['paper'], f'''
## Beside diffusers {diffusers.__version__}

Whole walks with the same network, number of steps and batch: `sample` against the loop of
diffusers' pipelines around the scheduler of the same method, without a progress bar. Both draw
their noise with a generator for each image. They run in turn, and in each pair the network counts
the same on both sides, with the mean of what it took.
''', *table(*BESIDE), *lines['diffusers'], '', measured('solvers.py', began)]
    (HERE/'solvers.md').write_text('\n'.join(page), encoding='utf-8')


if __name__ == '__main__': main()
