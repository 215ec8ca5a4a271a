"""What each solver costs beside the network, and the same walk in diffusers. Writes benchmarks/solvers.md.

    python benchmarks/solvers.py

All times are CPU time of one thread, and what a walk does beside the network is timed in the walk: the whole, less the calls of
the network in it. The same calls made bare, in turn with those of the walk, have something beside the network too (the call, and
the watch), which is no doing of the walk and is taken off. Beside diffusers, both sides run in turn, each pair with the same time
for the network, the mean of both: it is the same network, and what it took longer on one side was no doing of that side. The
networks are those of configs/quickstart.yaml, the smallest of the book, and of configs/cifar10.yaml, the paper's; or one that
returns what it gets and is not watched, where only the rest is of interest. Their pipelines as they are, where there is one, are
timed by the clock, network and all. The rows take turns, so that minutes in which the
machine is slower fall on all of them. All numbers are medians.
"""
import argparse, itertools, math, os, platform, time
from collections import defaultdict
from datetime import datetime, timezone
from functools import partial
from inspect import signature
from pathlib import Path
from statistics import median, quantiles
from types import SimpleNamespace
import diffusers, torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import nn
from tqdm.auto import tqdm
from diffusion_scratch.config import load_config, make_denoiser, make_schedule
from diffusion_scratch.data import ImageSet
from diffusion_scratch.denoiser import Denoiser, V, clipped
from diffusion_scratch.sampling import Noise, _walk, ancestral, sample, trajectory
from diffusion_scratch.solvers import ddim, dpm_solver_pp, heun
from overhead import collect, cpu, quickstart, timed as by_the_clock

HERE = Path(__file__).resolve().parent
SOLVERS = {'ancestral()': (ancestral, DDPMScheduler, {}), 'ddim()': (ddim, DDIMScheduler, {}), 'ddim(1.)': (partial(ddim, 1.), DDIMScheduler, dict(eta=1.)),
           'dpm_solver_pp()': (dpm_solver_pp, DPMSolverMultistepScheduler, {}), 'dpm_solver_pp(1.)': (partial(dpm_solver_pp, 1.), DPMSolverMultistepScheduler, dict(algorithm_type='sde-dpmsolver++')),
           'heun()': (heun, HeunDiscreteScheduler, {})}
PIPELINES = {DDPMScheduler: DDPMPipeline, DDIMScheduler: DDIMPipeline}   # of images without a text; the others have none
TARGET = {1: 3, 64: 1}   # percent beside the network
TURNS = 3                # of each row
IN_A_ROW = 20            # walks of one side, with a network that costs nothing

class Echo(nn.Module):
    "A network that costs nothing"
    def forward(self, x, t, y=None): return x

class Watched(nn.Module):
    "A network, and the milliseconds of its calls, summed"
    def __init__(self, net):
        super().__init__()
        self.net, self.ms = net, 0.

    def __call__(self, *args):
        out, ms = timed(self.net, *args)
        self.ms += ms
        return out

def timed(f, *args):
    "What f returns, and the milliseconds that this thread worked on it"
    began = time.thread_time()
    out = f(*args)
    return out, 1e3 * (time.thread_time() - began)

def apart(f, net):
    "Milliseconds that f worked beside the watched network, and in it"
    net.ms = 0.
    _, whole = timed(f)
    return whole - net.ms, net.ms

def papers():
    "Shape of an image, schedule and denoiser of Ho et al. (2020) for CIFAR-10"
    config, images = load_config(HERE.parent/'configs'/'cifar10.yaml'), ImageSet(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    return images.shape, make_schedule(config), make_denoiser(config, images).eval()

def bare_calls(net, times, shape, y):
    "A function that does nothing but call the network, once at each time"
    inputs = [(torch.randn(shape), torch.full(shape[:1], t), y) for t in times]
    @torch.no_grad()
    def run():
        for each in inputs: net(*each)
    return run

def walks(step, denoiser, schedule, shape, y, n, wrap=lambda denoiser: denoiser):
    "Pairs (over as many bare calls, in the network) of one call of `sample`, the share of each call of the network"
    net, times = Watched(denoiser.net), schedule.times(n)
    watched, asked = wrap(Denoiser(net, denoiser.parameterization).eval()), step.visits(times)[:-1]
    whole, bare = lambda: sample(watched, schedule, shape, step=step, times=times, y=y, seed=0, progress=False), bare_calls(net, asked, shape, y)
    while True:
        (beside, inside), (call, inside_call) = apart(whole, net), apart(bare, net)
        yield (beside - call) / len(asked), (inside + inside_call) / 2 / len(asked)

def moments(step, denoiser, schedule, shape, n):
    "Pairs (beside the network, in it) of one moment of `trajectory`"
    net = Watched(denoiser.net)
    for seed in itertools.count():
        frames = trajectory(clipped(Denoiser(net, denoiser.parameterization).eval()), schedule, shape, step=step, times=schedule.times(n), seed=seed)
        for _ in range(n): yield apart(lambda: next(frames), net)

def scheduler_of(make, options, schedule):
    "A scheduler of theirs, and the options of its step"
    config = {k: v for k, v in options.items() if k != 'eta'} | (dict() if make is DPMSolverMultistepScheduler else dict(clip_sample=False))
    return make(trained_betas=schedule.betas.tolist(), prediction_type='v_prediction', timestep_spacing='trailing', **config), {k: v for k, v in options.items() if k == 'eta'}

def theirs(make, options, net, schedule, shape, y, n):
    "The loop of diffusers' pipelines around a scheduler, without their progress bar, and with a generator for each image"
    (scheduler, step), draws = scheduler_of(make, options, schedule), 'generator' in signature(make.step).parameters
    @torch.no_grad()
    def run():
        scheduler.set_timesteps(n)
        streams = [torch.Generator().manual_seed(i) for i in range(shape[0])]
        if draws: step['generator'] = streams
        x = randn_tensor(shape, generator=streams) * scheduler.init_noise_sigma
        for t in scheduler.timesteps: x = scheduler.step(net(scheduler.scale_model_input(x, t), t.long().expand(shape[0]) + 1, y), t, x, **step).prev_sample
    return run

def both(solver, net, schedule, shape, y, n):
    "Our whole walk, and that of diffusers"
    ours, make, options = SOLVERS[solver]
    denoiser, step = Denoiser(net, V).eval(), ours()
    return lambda: sample(denoiser, schedule, shape, step=step, times=schedule.times(n), y=y, progress=False, seed=0), theirs(make, options, net, schedule, shape, y, n)

def against(solver, net, schedule, shape, y, n):
    "Pairs (our whole walk, that of diffusers), milliseconds for one of n steps"
    net = Watched(net)
    ours, field = both(solver, net, schedule, shape, y, n)
    while True:
        (beside, inside), (their_beside, their_inside) = apart(ours, net), apart(field, net)
        network = (inside + their_inside) / 2
        yield (beside + network) / n, (their_beside + network) / n

def overheads(solver, schedule, shape, n):
    "Pairs (our whole walks, those of diffusers), with a network that costs nothing and so is not watched, milliseconds for one of n steps"
    ours, field = both(solver, Echo().eval(), schedule, shape, None, n)
    while True: yield in_a_row(ours) / n, in_a_row(field) / n

def in_a_row(f):
    "Milliseconds of one of some calls: the first ones find the caches full of the other side's code and data, and pay some 0.2 ms for it"
    def run():
        for _ in range(IN_A_ROW): f()
    return timed(run)[1] / IN_A_ROW

def first_walks(solver, schedule, shape, n):
    "The same for walks that nobody walked before: our step is a new one, and what earlier walks left is forgotten"
    denoiser, (ours, make, options) = Denoiser(Echo(), V).eval(), SOLVERS[solver]
    field = theirs(make, options, Echo(), schedule, shape, None, n)
    def first():
        _walk.cache_clear()
        sample(denoiser, schedule, shape, step=ours(), times=schedule.times(n), progress=False, seed=0)
    while True: yield in_a_row(first) / n, in_a_row(field) / n

class Theirs(nn.Module):
    "A network as their pipelines call it"
    def __init__(self, net, shape):
        super().__init__()
        self.net, self.config, self.dtype, self.device = net, SimpleNamespace(in_channels=shape[0], sample_size=shape[1]), torch.float32, torch.device('cpu')

    def forward(self, x, t): return SimpleNamespace(sample=self.net(x, t.long().expand(len(x)) + 1))

def pipelines(solver, net, schedule, shape, n):
    "Pairs (ours, their pipeline as it is but for the progress bar), from nothing to an array of images in 0..1, milliseconds by the clock"
    ours, make, options = SOLVERS[solver]
    (scheduler, step), denoiser = scheduler_of(make, options, schedule), Denoiser(net, V).eval()
    pipeline = PIPELINES[make](Theirs(net, shape[1:]), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    def mine():
        x = sample(denoiser, schedule, shape, step=ours(), times=schedule.times(n), progress=False, seed=0)
        return (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    field = lambda: pipeline(batch_size=shape[0], generator=[torch.Generator().manual_seed(i) for i in range(shape[0])], num_inference_steps=n, output_type='np', **step).images
    assert mine().shape == field().shape
    while True: yield by_the_clock(mine)[1], by_the_clock(field)[1]

def normals(shape, n):
    "Pairs (ours, diffusers'), milliseconds for the normal numbers of one of n steps, with a generator for each image"
    def ours():
        for _ in Noise(0, shape[0]).draws(shape[1:], n): pass
    def field():
        streams = [torch.Generator().manual_seed(i) for i in range(shape[0])]
        for _ in range(n): randn_tensor(shape, generator=streams)
    while True: yield timed(ours)[1] / n, timed(field)[1] / n

def percent(name, pairs, target):
    "A row: beside the network, in it, and the share"
    beside, network = map(median, zip(*pairs))
    low, share, high = (100 * q for q in quantiles((a / b for a, b in pairs), n=4))
    return f'| {name} | {1e3 * beside:,.0f} | {network:,.1f} | **{share:.2f} %** | {low:.2f} .. {high:.2f} % | {target} % | {"yes" if share <= target else "**no**"} | {len(pairs):,} |'

def times_faster(name, pairs, target, unit=1):
    "A row: ours, theirs and how many times as fast ours is"
    ours, field = (unit * median(p) for p in zip(*pairs))
    low, ratio, high = quantiles((b / a for a, b in pairs), n=4)
    return f'| {name} | {ours:.2f} | {field:.2f} | **{ratio:.3f}** | {low:.3f} .. {high:.3f} | {target} | {"yes" if ratio >= target else "**no**"} | {len(pairs):,} |'

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--seconds', type=float, default=9, help=f'for each row, in {TURNS} turns')
    p.add_argument('--steps', type=int, default=50, help='of each walk')
    p.add_argument('--solvers', nargs='+', default=list(SOLVERS), choices=list(SOLVERS), metavar='NAME', help='some of: %(choices)s')
    p.add_argument('--out', type=Path, default=HERE/'solvers.md', help='the page to write')
    a = p.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    _, data, schedule, denoiser = quickstart()
    (large, large_schedule, papers_own), rows = papers(), {}
    params, large_params = (sum(q.numel() for q in d.parameters()) for d in (denoiser, papers_own))
    for B in (1, 64):
        y, shape = torch.arange(B) % data.num_classes, (B, *data.shape)
        for name in a.solvers:
            (ours, make, _), row = SOLVERS[name], f'`{name}`, batch {B}'
            step = ours()
            rows['walk', row] = walks(step, denoiser, schedule, shape, y, a.steps), partial(percent, target=TARGET[B])
            rows['clipped', row] = walks(step, denoiser, schedule, shape, y, a.steps, clipped), partial(percent, target=TARGET[B])
            rows['large', row] = moments(step, papers_own, large_schedule, (B, *large), a.steps), partial(percent, target=TARGET[B])
            rows['field', row] = against(name, denoiser.net, schedule, shape, y, a.steps), partial(times_faster, target=1)
            rows['overhead', row] = overheads(name, schedule, (B, 1, 1, 1), a.steps), partial(times_faster, target=3, unit=1e3)
            rows['stub', row] = overheads(name, schedule, shape, a.steps), partial(times_faster, target=3, unit=1e3)
            rows['first', row] = first_walks(name, schedule, shape, a.steps), partial(times_faster, target=1, unit=1e3)
            if make in PIPELINES: rows['pipeline', row] = pipelines(name, denoiser.net, schedule, shape, a.steps), partial(times_faster, target=1, unit=1e-3)
    measured, tables = defaultdict(list), defaultdict(list)
    for turn, key in tqdm([*itertools.product(range(TURNS), rows)], unit='turn'):
        measured[key] += collect(rows[key][0], a.seconds / TURNS, warmup=turn == 0)
    for key, (_, line) in rows.items(): tables[key[0]].append(line(key[1], measured[key]))
    lines, us = lambda rows: '\n'.join(rows), lambda shape: [1e3 * median(p) for p in zip(*collect(normals(shape, a.steps), a.seconds, warmup=1))]
    (noise, their_noise), (large_noise, _) = us(shape), us((1, *large))
    text = f'''# Solvers

<!-- Written by benchmarks/solvers.py; run it to write this page anew. -->

What the solvers of chapter 10 cost beside the network, in {a.steps} steps. `heun()` calls the network {2 * a.steps - 1} times; its numbers are for one call. A solver with noise (`ancestral()`,
`ddim(1.)`, `dpm_solver_pp(1.)`) makes a fresh normal number for each pixel, from a stream of each image's own. All times are CPU time of one thread, all rows of this page were measured in {TURNS} turns each, and all numbers are medians.
What a walk does beside the network is timed in the walk: the whole, less the calls of the network in it. The same calls made bare, in turn with those of the walk, have something
beside the network too, the call itself and the watch; that is taken off.

`sample` from a seed to images, and the network of `configs/quickstart.yaml` and `configs/mnist.yaml`, the smallest of the book ({params:,} parameters, images of {' x '.join(map(str, data.shape))}), for
one of its calls:

| `sample` | over the bare calls, us | the network, ms | overhead | middle half | target | met | times |
| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |
{lines(tables['walk'])}

The same with a denoiser that is `clipped`, one more module round the network. (Beside a network that costs nothing, in the last tables, a step takes
less: there nothing pushes its code out of the processor's caches.)

| `sample`, `clipped` | over the bare calls, us | the network, ms | overhead | middle half | target | met | times |
| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |
{lines(tables['clipped'])}

With the network of `configs/cifar10.yaml`, the paper's ({large_params:,} parameters, images of {' x '.join(map(str, large))}), one moment of `trajectory`, `clipped`; nothing is taken off here.
Small batches get the noise of many steps at once, which these medians then miss: {large_noise:,.0f} us a step at batch 1, for solvers with noise.

| a moment of `trajectory` | beside the network, us | the network, ms | overhead | middle half | target | met | times |
| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |
{lines(tables['large'])}

## Beside diffusers {diffusers.__version__}

Whole walks, for one of {a.steps} steps: `sample` against the loop of their pipelines around the scheduler of the same method (`DDPMScheduler`, `DDIMScheduler`,
`DPMSolverMultistepScheduler`, `HeunDiscreteScheduler`), without their progress bar; the same network, `v` prediction, no clipping. Each side makes its own noise, both with a generator for each image.
Both run in turn, and in each pair the network counts the same on both sides, with the mean of what it took.

| the quickstart's network | ours, ms a step | diffusers, ms a step | diffusers / ours | middle half of the pairs | target | met | pairs |
| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |
{lines(tables['field'])}

Their pipelines as they are (`DDPMPipeline`, `DDIMPipeline`; for the others there is none that makes images of nothing), but for the progress bar: from a seed to an array of images, in
{a.steps} steps, by the clock, network and all. Here whatever else the machine does counts as well: some percent, in which the half to one and a half percent of the table above get lost at batch 64.

| from a seed to images | ours, s | diffusers, s | diffusers / ours | middle half of the pairs | target | met | pairs |
| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |
{lines(tables['pipeline'])}

What a step costs whatever the images: the same with a network that returns what it gets, which is not watched, and images of one pixel. From here on each side walks {IN_A_ROW} times in a row:
in turn after every walk, each would find the caches full of the other's code and data, some 0.2 ms a walk that belong to neither.

| the overhead of a step | ours, us a step | diffusers, us a step | diffusers / ours | middle half of the pairs | target | met | pairs |
| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |
{lines(tables['overhead'])}

The same network that costs nothing, with images of {' x '.join(map(str, data.shape))}: now the method's own work on them counts as well, which both sides have to do. At batch 64 that is sums of {math.prod(shape):,} numbers,
and with noise as many normal numbers a step, which alone take {noise:,.0f} us here and {their_noise:,.0f} us there.

| a network that costs nothing | ours, us a step | diffusers, us a step | diffusers / ours | middle half of the pairs | target | met | pairs |
| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |
{lines(tables['stub'])}

`sample` keeps the levels and factors of the last eight walks (chapter 7), so that the next batch finds them; all tables above are of such batches. A first walk makes them, once for all its steps,
and is to be no slower than diffusers' all the same; here in {a.steps} steps:

| the same, a first walk | ours, us a step | diffusers, us a step | diffusers / ours | middle half of the pairs | target | met | pairs |
| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |
{lines(tables['first'])}

Measured {datetime.now(timezone.utc):%Y-%m-%d} by `python benchmarks/solvers.py` in {time.perf_counter() - began:.0f} s: {cpu()}, {os.cpu_count()} cores, 1 thread,
Python {platform.python_version()}, torch {torch.__version__}.
'''
    a.out.write_text(text, encoding='utf-8')
    print(f'\nwrote {a.out}')

if __name__ == '__main__': main()
