"""What the sampler and the trainer cost beside the network itself. Writes the table of benchmarks/README.md.

    python benchmarks/overhead.py

Both sides of every ratio run in turn, one step of each at a time, so that whatever else the machine does falls on both;
the numbers are medians over the pairs. The network is that of configs/quickstart.yaml.
"""
import argparse, copy, itertools, os, platform, time
from datetime import datetime, timezone
from pathlib import Path
from statistics import median, quantiles
import torch
from diffusion_scratch.run import keep_freed_memory
from diffusion_scratch.config import load_config, make_data, make_denoiser, make_fit_options, make_schedule
from diffusion_scratch.denoiser import clipped
from diffusion_scratch.guidance import guided
from diffusion_scratch.noising import q_sample
from diffusion_scratch.sampling import sample, trajectory
from diffusion_scratch.training import TrainState, fit

HERE = Path(__file__).resolve().parent

def timed(f, *args):
    "What f returns, and the milliseconds it took"
    began = time.perf_counter()
    out = f(*args)
    return out, 1e3 * (time.perf_counter() - began)

def collect(pairs, seconds, warmup=10):
    "As many pairs as fit into so many seconds, the first ones left out"
    out, end = [], time.perf_counter() + seconds
    for p in pairs:
        out.append(p)
        if time.perf_counter() > end and len(out) > 2 * warmup: return out[warmup:]

def sampler_steps(denoiser, schedule, shape, y, steps, guidance=None):
    "Pairs (one step of `trajectory`, the bare calls of the network with the same inputs: one, or with guidance two)"
    wrapped, labels = (denoiser, y) if guidance is None else (guided(denoiser, y, guidance), None)
    for seed in itertools.count():
        frames = trajectory(clipped(wrapped), schedule, shape, times=schedule.times(steps), y=labels, seed=seed)
        for i in range(1, steps + 1):
            frame, ours = timed(next, frames)
            t = torch.full((shape[0],), frame.t)
            with torch.no_grad():
                _, bare = timed(denoiser.net, frame.x, t, y)
                if guidance is not None: bare += timed(denoiser.net, frame.x, t)[1]
            if i == steps: ours += timed(next, frames)[1]     # the result: no network, but part of the work
            yield ours, bare

def sampler_whole(denoiser, schedule, shape, y, steps):
    "Pairs (one whole call of `sample`, as many bare calls of the network), a step's share of each"
    times = schedule.times(steps)
    frames = list(trajectory(clipped(denoiser), schedule, shape, times=times, y=y, seed=0))[:-1]
    inputs = [(f.x, torch.full((shape[0],), f.t)) for f in frames]
    @torch.no_grad()
    def bare():
        for x, t in inputs: denoiser.net(x, t, y)
    ours = lambda: sample(clipped(denoiser), schedule, shape, times=times, y=y, seed=0, progress=False)
    while True: yield timed(ours)[1] / steps, timed(bare)[1] / steps

def training_steps(config, data, schedule, denoiser):
    "Pairs (one step of `fit`, one bare step: forward, backward, optimizer, on a batch noised beforehand)"
    net = copy.deepcopy(denoiser).net.train()
    optimizer = torch.optim.Adam(net.parameters(), lr=config.training.lr, betas=config.training.adam, fused=True)
    g = torch.Generator().manual_seed(0)
    x0, y = data[torch.randperm(len(data), generator=g)[:config.training.batch_size]]
    level = schedule.at(torch.randint(1, schedule.T + 1, (len(x0),), generator=g), x0)
    eps = torch.randn(x0.shape, generator=g)
    x_t, target = q_sample(x0, level, eps), denoiser.parameterization.target(x0, eps, level)
    def bare():
        (net(x_t, level.t, y) - target).square().mean().backward()
        optimizer.step(); optimizer.zero_grad()
    state = TrainState(denoiser, config.training.adam, config.training.ema)
    run = fit(state, schedule, data, **make_fit_options(config))
    while True: yield timed(next, run)[1], timed(bare)[1]

def row(name, pairs, target):
    ours, bare = (median(p) for p in zip(*pairs))
    low, _, high = (100 * (q - 1) for q in quantiles((a / b for a, b in pairs), n=4))
    over = 100 * (ours / bare - 1)
    return f'| {name} | {ours:.2f} | {bare:.2f} | **{over:+.1f} %** | {low:+.0f} .. {high:+.0f} % | {target} % | {"yes" if over <= target else "**no**"} | {len(pairs):,} |'

def cpu():
    "The processor's name, where the system tells it"
    try: return next(l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name'))
    except (OSError, StopIteration): return platform.processor() or platform.machine()

def quickstart():
    "The config of the quickstart, its data, its schedule and a fresh denoiser, in a process that keeps its memory as diffusion-train does on a CPU"
    keep_freed_memory()
    config = load_config(HERE.parent/'configs'/'quickstart.yaml')
    data = make_data(config)
    return config, data, make_schedule(config), make_denoiser(config, data).eval()

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--threads', type=int, default=0, help="CPU threads (default: torch's choice)")
    p.add_argument('--out', type=Path, default=HERE/'README.md', help='the page to write')
    a = p.parse_args()
    if a.threads: torch.set_num_threads(a.threads)
    began = time.perf_counter()
    config, data, schedule, denoiser = quickstart()
    params = sum(p.numel() for p in denoiser.parameters())
    batch, rows = config.training.batch_size, []
    def add(name, pairs, target):
        rows.append(row(name, pairs, target)); print(rows[-1], flush=True)
    for B in (1, batch):
        y = torch.arange(B) % data.num_classes
        add(f'a step as the quickstart samples, guided, batch {B}', collect(sampler_steps(denoiser, schedule, (B, *data.shape), y, 100, config.sampling.guidance), 20), 5)
        add(f'a step without guidance, batch {B}', collect(sampler_steps(denoiser, schedule, (B, *data.shape), y, 100), 20), 5)
    y = torch.zeros(1, dtype=torch.long)
    add('`sample`, batch 1, without guidance, for each of its steps', collect(sampler_whole(denoiser, schedule, (1, *data.shape), y, 100), 15, warmup=2), 5)
    pairs = collect(training_steps(config, data, schedule, denoiser), 50)
    add(f'a step of `fit`, batch {batch}', pairs, 10)
    speed = 1e3 * batch / median(p[0] for p in pairs)
    text = f'''# Overhead

<!-- Written by benchmarks/overhead.py; run it to write this page anew. -->

What the library costs beside the network itself, with the network of `configs/quickstart.yaml` ({params:,} parameters, images of {' x '.join(map(str, data.shape))}).
A bare sampling step is the calls of the network that a step makes, with the inputs that the sampler gave it (100 ancestral steps, `clipped`):
two calls where labels guide, as in the quickstart, else one.
A bare training step is forward, backward and the same fused Adam on a batch noised beforehand: no data, no noise, no clipping of the
gradient, no moving average, no check for NaN. Both sides run in turn, a step of each at a time, in one process.
A whole run, with records, loggers and checkpoints: [trainer.md](trainer.md). The images' share of a step: [loading.md](loading.md).
The networks beside diffusers': [networks.md](networks.md). Every solver: [solvers.md](solvers.md).

| what | with the library, ms | bare, ms | overhead of the medians | middle half of the pairs | target | met | pairs |
| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |
{chr(10).join(rows)}

The quickstart's training step, with everything in it: **{speed:,.0f} images per second**.

Measured {datetime.now(timezone.utc):%Y-%m-%d} by `python benchmarks/overhead.py` in {time.perf_counter() - began:.0f} s: {cpu()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads,
Python {platform.python_version()}, torch {torch.__version__}.
'''
    a.out.write_text(text, encoding='utf-8')
    print(f'\n{speed:,.0f} images per second in training; wrote {a.out}')

if __name__ == '__main__': main()
