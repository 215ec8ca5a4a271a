"""What each solver costs beside the network, and the same walk in diffusers. Writes benchmarks/solvers.md.

    python benchmarks/solvers.py

Both sides of every ratio run in turn, so that whatever else the machine does falls on both; the numbers are medians over
the pairs. The network is that of configs/quickstart.yaml, or one that returns what it gets, where only the rest is of interest.
"""
import argparse, itertools, os, platform, time
from datetime import datetime, timezone
from pathlib import Path
from statistics import median, quantiles
import diffusers, torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler
from torch import nn
from diffusion_scratch.denoiser import Denoiser, V, clipped
from diffusion_scratch.sampling import ancestral, sample, trajectory, visits
from diffusion_scratch.solvers import ddim, dpm_solver_pp, heun
from overhead import collect, cpu, quickstart, row, timed

HERE = Path(__file__).resolve().parent
SOLVERS = {'ancestral()': (ancestral(), DDPMScheduler, {}), 'ddim()': (ddim(), DDIMScheduler, {}), 'ddim(1.)': (ddim(1.), DDIMScheduler, dict(eta=1.)),
           'dpm_solver_pp()': (dpm_solver_pp(), DPMSolverMultistepScheduler, {}), 'dpm_solver_pp(1.)': (dpm_solver_pp(1.), DPMSolverMultistepScheduler, dict(algorithm_type='sde-dpmsolver++')),
           'heun()': (heun(), HeunDiscreteScheduler, {})}
TARGET = {1: 3, 64: 1}   # percent beside the network

class Echo(nn.Module):
    "A network that costs nothing"
    def forward(self, x, t, y=None): return x

def each_step(step, denoiser, schedule, shape, y, n):
    "Pairs (one moment of `trajectory`, the bare call of the network with the same inputs); the first of a walk makes its factors too"
    times = schedule.times(n)
    for seed in itertools.count():
        frames = trajectory(clipped(denoiser), schedule, shape, step=step, times=times, y=y, seed=seed)
        for i in range(1, last := len(visits(step, times))):
            frame, ours = timed(next, frames)
            t = torch.full((shape[0],), frame.t)
            with torch.no_grad(): _, bare = timed(denoiser.net, frame.x, t, y)
            if i == last - 1: ours += timed(next, frames)[1]
            yield ours, bare

def whole(step, denoiser, schedule, shape, y, n):
    "Pairs (one call of `sample`, as many bare calls of the network as it makes), a call's share of each"
    times = schedule.times(n)
    inputs = [(f.x, torch.full((shape[0],), f.t)) for f in trajectory(clipped(denoiser), schedule, shape, step=step, times=times, y=y, seed=0)][:-1]
    @torch.no_grad()
    def bare():
        for x, t in inputs: denoiser.net(x, t, y)
    ours = lambda: sample(clipped(denoiser), schedule, shape, step=step, times=times, y=y, seed=0, progress=False)
    while True: yield timed(ours)[1] / len(inputs), timed(bare)[1] / len(inputs)

def theirs(make, options, net, schedule, shape, y, n):
    "The loop of diffusers' pipelines around a scheduler, without their progress bar"
    step = {k: v for k, v in options.items() if k == 'eta'}
    config = {k: v for k, v in options.items() if k != 'eta'} | (dict() if make is DPMSolverMultistepScheduler else dict(clip_sample=False))
    scheduler, g = make(trained_betas=schedule.betas.tolist(), prediction_type='v_prediction', timestep_spacing='trailing', **config), torch.Generator().manual_seed(0)
    @torch.no_grad()
    def run():
        scheduler.set_timesteps(n)
        x = torch.randn(shape, generator=g) * scheduler.init_noise_sigma
        for t in scheduler.timesteps: x = scheduler.step(net(scheduler.scale_model_input(x, t), t.long().expand(shape[0]) + 1, y), t, x, **step).prev_sample
    return run

def against(solver, net, schedule, shape, y, n):
    "Pairs (our whole walk, that of diffusers), milliseconds for one of n steps"
    step, make, options = SOLVERS[solver]
    denoiser, times = Denoiser(net, V).eval(), schedule.times(n)
    ours, field = lambda: sample(denoiser, schedule, shape, step=step, times=times, y=y, progress=False, seed=0), theirs(make, options, net, schedule, shape, y, n)
    while True: yield timed(ours)[1] / n, timed(field)[1] / n

def faster(name, pairs, unit=1, target=None):
    "A row: ours, theirs and how many times as fast ours is"
    ours, field = (unit * median(p) for p in zip(*pairs))
    low, _, high = quantiles((b / a for a, b in pairs), n=4)
    met = '' if target is None else f' {target} | {"yes" if field >= target * ours else "**no**"} |'
    return f'| {name} | {ours:.2f} | {field:.2f} | **{field / ours:.2f}** | {low:.2f} .. {high:.2f} |{met} {len(pairs):,} |'

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--threads', type=int, default=0, help="CPU threads (default: torch's choice)")
    p.add_argument('--seconds', type=float, default=15, help='for each row')
    p.add_argument('--steps', type=int, default=50, help='of each walk')
    p.add_argument('--solvers', nargs='+', default=list(SOLVERS), choices=list(SOLVERS), metavar='NAME', help='some of: %(choices)s')
    p.add_argument('--out', type=Path, default=HERE/'solvers.md', help='the page to write')
    a = p.parse_args()
    if a.threads: torch.set_num_threads(a.threads)
    began = time.perf_counter()
    _, data, schedule, denoiser = quickstart()
    params, tables = sum(q.numel() for q in denoiser.parameters()), {k: [] for k in ('step', 'whole', 'field', 'echo 1', 'echo 64')}
    def add(table, line): tables[table].append(line); print(line, flush=True)
    for B in (1, 64):
        y, shape = torch.arange(B) % data.num_classes, (B, *data.shape)
        for name in a.solvers:
            step = SOLVERS[name][0]
            add('step', row(f'`{name}`, batch {B}', collect(each_step(step, denoiser, schedule, shape, y, a.steps), a.seconds), TARGET[B]))
            if B == 1: add('whole', row(f'`{name}`, batch 1', collect(whole(step, denoiser, schedule, shape, y, a.steps), a.seconds, warmup=2), TARGET[B]))
            add('field', faster(f'`{name}`, batch {B}', collect(against(name, denoiser.net, schedule, shape, y, a.steps), a.seconds, warmup=1)))
            pairs = collect(against(name, Echo().eval(), schedule, shape, None, a.steps), a.seconds / 3, warmup=3)
            add(f'echo {B}', faster(f'`{name}`', pairs, 1e3, 3 if B == 1 else None))
    lines = lambda rows: '\n'.join(rows)
    text = f'''# Solvers

<!-- Written by benchmarks/solvers.py; run it to write this page anew. -->

What the solvers of chapter 10 cost beside the network, with the network of `configs/quickstart.yaml` ({params:,} parameters, images of {' x '.join(map(str, data.shape))}),
{a.steps} steps, `clipped`. `heun()` calls the network {2 * a.steps - 1} times; its numbers are for one call. A solver with noise (`ancestral()`, `ddim(1.)`, `dpm_solver_pp(1.)`) makes
a fresh normal number for each pixel, from a stream of each image's own.

| a moment of `trajectory` | with the library, ms | bare call, ms | overhead of the medians | middle half of the pairs | target | met | pairs |
| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |
{lines(tables['step'])}

A whole call of `sample` with all that it sets up, for one of its calls of the network:

| `sample` | with the library, ms | bare call, ms | overhead of the medians | middle half of the pairs | target | met | pairs |
| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |
{lines(tables['whole'])}

## Beside diffusers {diffusers.__version__}

Whole walks, for one of {a.steps} steps: `sample` against the loop of their pipelines around the scheduler of the same method (`DDPMScheduler`, `DDIMScheduler`,
`DPMSolverMultistepScheduler`, `HeunDiscreteScheduler`), without their progress bar; the same network, `v` prediction, no clipping. Each side makes its own noise, theirs from one stream for the batch.

| the quickstart's network | ours, ms a step | diffusers, ms a step | diffusers / ours | middle half of the pairs | pairs |
| --- | ---: | ---: | ---: | ---: | ---: |
{lines(tables['field'])}

The same with a network that returns what it gets, so that what is left is the samplers' own:

| a network that costs nothing, batch 1 | ours, us a step | diffusers, us a step | diffusers / ours | middle half of the pairs | target | met | pairs |
| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |
{lines(tables['echo 1'])}

| the same, batch 64 | ours, us a step | diffusers, us a step | diffusers / ours | middle half of the pairs | pairs |
| --- | ---: | ---: | ---: | ---: | ---: |
{lines(tables['echo 64'])}

Measured {datetime.now(timezone.utc):%Y-%m-%d} by `python benchmarks/solvers.py` in {time.perf_counter() - began:.0f} s: {cpu()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads,
Python {platform.python_version()}, torch {torch.__version__}.
'''
    a.out.write_text(text, encoding='utf-8')
    print(f'\nwrote {a.out}')

if __name__ == '__main__': main()
