"""Our UNet beside diffusers' UNet2DModel: forward, training step, peak memory. Writes networks.md.

    python benchmarks/networks.py

With the same weights where diffusers has the network: theirs is saved to a folder and loaded into
ours, so both compute the same function (the difference of the outputs is in the table). The
quickstart's own network folds 2 x 2 pixels into channels, which diffusers cannot; it stands beside
diffusers' network of the same widths, levels, blocks and attention on the same images. Both sides
run in turn, one call of each at a time; the numbers are medians over the pairs. Memory is the peak
of a process of its own.
"""
import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

import diffusers
import torch
from common import HERE, collect, measured, table, timed

from diffusion_scratch.pretrained import load
from diffusion_scratch.run import keep_freed_memory
from diffusion_scratch.unet import UNet


class Shape(NamedTuple):
    "A network, the images and batches for it, and the least ratio asked for"
    channels: int
    multipliers: tuple
    blocks: int
    attention: tuple  # levels with it
    c_in: int         # channels of the images
    size: int         # of the images
    unshuffle: int    # of ours
    batches: tuple
    target: float


NETWORKS = {
    "the paper's for CIFAR-10, same weights":
        Shape(128, (1, 2, 2, 2), 2, (1,), 3, 32, 1, (8,), 1.0),
    "the quickstart's on 28 x 28 x 1, diffusers' of the same shape without folding":
        Shape(32, (1, 2), 1, (1,), 1, 28, 2, (8, 64), 1.3),
    'the same without folding on both sides, same weights':
        Shape(32, (1, 2), 1, (1,), 1, 28, 1, (8, 64), 1.0),
}
COLUMNS = ('network', 'parameters, ours / diffusers', 'batch', 'what', 'ours, ms', 'diffusers, ms',
           'ratio of the medians', 'middle half of the pairs', 'target', 'met', 'pairs',
           'relative difference of the outputs', 'peak memory, MB, ours / diffusers')


def theirs(shape):
    "diffusers' network of this shape, and none of its last layers silent"
    torch.manual_seed(0)
    with_attention = [i in shape.attention for i in range(len(shape.multipliers))]
    down = ['AttnDownBlock2D' if a else 'DownBlock2D' for a in with_attention]
    up = ['AttnUpBlock2D' if a else 'UpBlock2D' for a in reversed(with_attention)]
    net = diffusers.UNet2DModel(
        sample_size=shape.size,
        in_channels=shape.c_in,
        out_channels=shape.c_in,
        layers_per_block=shape.blocks,
        block_out_channels=[shape.channels * m for m in shape.multipliers],
        down_block_types=down,
        up_block_types=up,
        norm_num_groups=min(32, shape.channels // 4),
        norm_eps=1e-6,
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
    )
    return net.eval()


def ours(net, shape):
    """The same weights in our network, or the network that folds, as diffusion-train lays them
    out on a CPU"""
    if shape.unshuffle > 1:
        our = UNet(shape.c_in, shape.channels, shape.multipliers, shape.blocks, shape.attention,
                   unshuffle=shape.unshuffle).eval()
        return our.to(memory_format=torch.channels_last)
    with tempfile.TemporaryDirectory() as folder:
        diffusers.DDPMPipeline(net, diffusers.DDPMScheduler()).save_pretrained(folder)
        return load(folder)[0].net.to(memory_format=torch.channels_last)


def sides(shape):
    "Two networks, each with its function x, t -> images"
    net = theirs(shape)
    our = ours(net, shape)
    return (our, lambda x, t: our(x, t)), (net, lambda x, t: net(x, t - 1).sample)


def batch(shape, B):
    "Images, times and noise"
    g = torch.Generator().manual_seed(0)
    size = B, shape.c_in, shape.size, shape.size
    x = torch.randn(size, generator=g)
    t = torch.randint(1, 1001, (B,), generator=g)
    return x, t, torch.randn(size, generator=g)


def forward(net, f, x, t, eps):
    with torch.inference_mode(): f(x, t)


def trainer(net):
    "One step: forward, backward, the optimizer that `fit` uses"
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-5, fused=True)
    def step(net, f, x, t, eps):
        (f(x, t) - eps).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return step


def pairs(works, both, inputs):
    "Pairs (a call of ours, one of diffusers'), milliseconds"
    while True: yield [timed(work, *side, *inputs)[1] for work, side in zip(works, both)]


def peak(name, side, B, steps=5):
    "MB that a process of its own needs at most, beyond what it held before the first step"
    code = (f'import sys; sys.path.insert(0, {str(HERE)!r}); import networks; '
            f'networks.peak_here({name!r}, {side}, {B}, {steps})')
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def high_water():
    "MB that this process has held at most"
    with open('/proc/self/status') as lines:
        line = next(line for line in lines if line.startswith('VmHWM'))
    return int(line.split()[1]) / 1024


def peak_here(name, side, B, steps):
    net, f = sides(NETWORKS[name])[side]
    with open('/proc/self/clear_refs', 'w') as c: c.write('5')  # the mark starts from here
    before, step = high_water(), trainer(net.train())
    inputs = batch(NETWORKS[name], B)
    for _ in range(steps): step(net, f, *inputs)
    print(high_water() - before)


def row(name, params, B, what, ms, target, outputs, memory):
    "A row of the table from pairs of milliseconds"
    us, them = (median(s) for s in zip(*ms))
    low, _, high = quantiles((t / u for u, t in ms), n=4)
    met = 'yes' if them / us >= target else '**no**'
    return (f'| {name} | {params[0]:,} / {params[1]:,} | {B} | {what} | {us:.1f} | {them:.1f} '
            f'| **{them / us:.2f}** | {low:.2f} .. {high:.2f} | {target} | {met} | {len(ms):,} '
            f'| {outputs} | {memory} |')


def rows_of(name, shape, seconds):
    "Two rows for each batch"
    both = sides(shape)
    params = [sum(q.numel() for q in net.parameters()) for net, _ in both]
    for B in shape.batches:
        inputs = batch(shape, B)
        with torch.no_grad(): x, y = (f(*inputs[:2]) for _, f in both)
        apart = f'{((x - y).norm() / y.norm()).item():.0e}'
        if shape.unshuffle > 1: apart = 'other networks'
        memory = f'{peak(name, 0, B):,.0f} / {peak(name, 1, B):,.0f}'
        trainers = [trainer(net.train()) for net, _ in both]
        ms = collect(pairs([forward, forward], both, inputs), seconds, warmup=2)
        yield row(name, params, B, 'forward', ms, shape.target, apart, '')
        ms = collect(pairs(trainers, both, inputs), seconds, warmup=2)
        yield row(name, params, B, 'training step', ms, shape.target, '', memory)
        both = sides(shape)  # fresh weights, for the steps have moved them apart


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--seconds', type=float, default=40., help='of each measurement')
    p.add_argument('--out', type=Path, default=HERE/'networks.md', help='the page to write')
    a = p.parse_args()
    began, rows = time.perf_counter(), []
    keep_freed_memory()  # as diffusion-train does on a CPU, for both sides
    for name, shape in NETWORKS.items():
        for line in rows_of(name, shape, a.seconds):
            rows.append(line)
            print(line, flush=True)
    page = [f'''# Our UNet beside diffusers'

<!-- Written by benchmarks/networks.py; run it to write this page anew. -->

The `UNet` of this book and the `UNet2DModel` of diffusers {diffusers.__version__}, with the same
weights where diffusers has the network: their folder is loaded by `load`. The quickstart's own
network folds 2 x 2 pixels into channels, which diffusers cannot; it stands beside diffusers'
network of the same widths, levels, blocks and attention on the same images. Ours in channels_last,
as `diffusion-train` lays it out on a CPU; theirs as it comes. A training step is forward, squared
error, backward and fused Adam. Both run in turn in one process; memory is the peak of five
training steps in a process of its own, beyond what that process held before. A ratio above 1 means
that ours is faster.
''', *table(*COLUMNS), *rows, '', measured('networks.py', began)]
    a.out.write_text('\n'.join(page), encoding='utf-8')
    print(f'wrote {a.out}')


if __name__ == '__main__': main()
