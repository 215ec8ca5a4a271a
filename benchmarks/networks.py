"""Our UNet beside diffusers' UNet2DModel: forward, training step, peak memory. Writes networks.md.

    python benchmarks/networks.py

With the same weights where diffusers has the network: theirs is saved to a folder and loaded into ours, so both compute the same function
(the difference of the outputs is in the table). The quickstart's own network folds 2 x 2 pixels into channels, which diffusers cannot; it
stands beside diffusers' network of the same widths, levels, blocks and attention on the same images.
Both sides run in turn, one call of each at a time; the numbers are medians over the pairs. Memory is the peak of a process of its own.
"""
import argparse, os, platform, subprocess, sys, tempfile, time
from datetime import datetime, timezone
from pathlib import Path
from statistics import median, quantiles
import diffusers, torch
from diffusion_scratch.run import keep_freed_memory
from diffusion_scratch.pretrained import load
from diffusion_scratch.unet import UNet
from common import collect, cpu, timed

HERE = Path(__file__).resolve().parent
NETWORKS = {  # channels, multipliers, blocks, levels with attention, channels and size of the images, unshuffle of ours, batches, least ratio asked for
    "the paper's for CIFAR-10, same weights": (128, (1, 2, 2, 2), 2, (1,), 3, 32, 1, (8,), 1.0),
    "the quickstart's on 28 x 28 x 1, diffusers' of the same shape without folding": (32, (1, 2), 1, (1,), 1, 28, 2, (8, 64), 1.3),
    'the same without folding on both sides, same weights': (32, (1, 2), 1, (1,), 1, 28, 1, (8, 64), 1.0)}

def theirs(channels, multipliers, blocks, attention, c_in, size, *_):
    "diffusers' network of this shape, and none of its last layers silent"
    torch.manual_seed(0)
    levels = range(len(multipliers))
    net = diffusers.UNet2DModel(sample_size=size, in_channels=c_in, out_channels=c_in, layers_per_block=blocks, block_out_channels=[channels * m for m in multipliers],
        down_block_types=['AttnDownBlock2D' if i in attention else 'DownBlock2D' for i in levels],
        up_block_types=['AttnUpBlock2D' if i in attention else 'UpBlock2D' for i in reversed(levels)], norm_num_groups=min(32, channels // 4), norm_eps=1e-6,
        attention_head_dim=None, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1)
    return net.eval()

def ours(net, channels, multipliers, blocks, attention, c_in, size, unshuffle, *_):
    "The same weights in our network, or the network that folds, as diffusion-train lays them out on a CPU"
    if unshuffle > 1: return UNet(c_in, channels, multipliers, blocks, attention, unshuffle=unshuffle).eval().to(memory_format=torch.channels_last)
    with tempfile.TemporaryDirectory() as folder:
        diffusers.DDPMPipeline(net, diffusers.DDPMScheduler()).save_pretrained(folder)
        return load(folder)[0].net.to(memory_format=torch.channels_last)

def sides(shape):
    "Two functions x, t -> images, and their networks"
    net = theirs(*shape); our = ours(net, *shape)
    return (our, lambda x, t: our(x, t)), (net, lambda x, t: net(x, t - 1).sample)

def batch(shape, B):
    g = torch.Generator().manual_seed(0)
    return torch.randn(B, *shape[4:5], *shape[5:6] * 2, generator=g), torch.randint(1, 1001, (B,), generator=g), torch.randn(B, *shape[4:5], *shape[5:6] * 2, generator=g)

def forward(net, f, x, t, eps):
    with torch.inference_mode(): f(x, t)

def trainer(net):
    "One step: forward, backward, the optimizer that `fit` uses"
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-5, fused=True)
    def step(net, f, x, t, eps):
        (f(x, t) - eps).square().mean().backward()
        optimizer.step(); optimizer.zero_grad()
    return step

def pairs(works, both, inputs):
    "Pairs (a call of ours, one of diffusers'), milliseconds"
    while True: yield [timed(work, *side, *inputs)[1] for work, side in zip(works, both)]

def peak(name, side, B, steps=5):
    "MB that a process of its own needs at most, beyond what it held before the first step"
    code = f'import sys; sys.path.insert(0, {str(HERE)!r}); import networks; networks.peak_here({name!r}, {side}, {B}, {steps})'
    return float(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()[-1])

def peak_here(name, side, B, steps):
    net, f = sides(NETWORKS[name])[side]
    rss = lambda: int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]) / 1024
    with open('/proc/self/clear_refs', 'w') as c: c.write('5')  # the high-water mark starts from here
    before, step = rss(), trainer(net.train())
    inputs = batch(NETWORKS[name], B)
    for _ in range(steps): step(net, f, *inputs)
    print(rss() - before)

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--seconds', type=float, default=40., help='of each measurement')
    p.add_argument('--out', type=Path, default=HERE/'networks.md', help='the page to write')
    a = p.parse_args()
    began, rows = time.perf_counter(), []
    keep_freed_memory()                                     # as diffusion-train does on a CPU, for both sides
    for name, shape in NETWORKS.items():
        both = sides(shape)
        params = [sum(q.numel() for q in net.parameters()) for net, _ in both]
        for B in shape[7]:
            inputs = batch(shape, B)
            with torch.no_grad(): x, y = (f(*inputs[:2]) for _, f in both)
            apart = f'{((x - y).norm() / y.norm()).item():.0e}' if shape[6] == 1 else 'other networks'
            memory = [peak(name, side, B) for side in (0, 1)]
            for what, works in (('forward', [forward, forward]), ('training step', [trainer(net.train()) for net, _ in both])):
                ms = collect(pairs(works, both, inputs), a.seconds, warmup=2)
                us, them = (median(s) for s in zip(*ms))
                low, _, high = quantiles((t / u for u, t in ms), n=4)
                met = 'yes' if them / us >= shape[8] else '**no**'
                rows.append(f'| {name} | {params[0]:,} / {params[1]:,} | {B} | {what} | {us:.1f} | {them:.1f} | **{them / us:.2f}** | {low:.2f} .. {high:.2f} | {shape[8]} | {met} | {len(ms):,} | ' +
                            (f'{apart} | |' if what == 'forward' else f'| {memory[0]:,.0f} / {memory[1]:,.0f} |'))
                print(rows[-1], flush=True)
            both = sides(shape)                        # fresh weights, for the steps have moved them apart
    a.out.write_text(f'''# Our UNet beside diffusers'

<!-- Written by benchmarks/networks.py; run it to write this page anew. -->

The `UNet` of this book and diffusers' `UNet2DModel`, with the same weights where diffusers has the network: their folder is loaded by `load`.
The quickstart's own network folds 2 x 2 pixels into channels, which diffusers cannot; it stands beside diffusers' network of the same widths,
levels, blocks and attention on the same images. Ours in channels_last, as `diffusion-train` lays it out on a CPU; theirs as it comes. A training step is forward, squared error, backward and fused Adam.
Both run in turn in one process; memory is the peak of five training steps in a process of its own, beyond what that process held before.
A ratio above 1 means that ours is faster.

| network | parameters, ours / diffusers | batch | what | ours, ms | diffusers, ms | ratio of the medians | middle half of the pairs | target | met | pairs | relative difference of the outputs | peak memory, MB, ours / diffusers |
| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: |
{chr(10).join(rows)}

Measured {datetime.now(timezone.utc):%Y-%m-%d} by `python benchmarks/networks.py` in {time.perf_counter() - began:.0f} s: {cpu()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads,
Python {platform.python_version()}, torch {torch.__version__}, diffusers {diffusers.__version__}.
''', encoding='utf-8')
    print(f'wrote {a.out}')

if __name__ == '__main__': main()
