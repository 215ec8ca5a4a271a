"""What training costs beside bare steps. Writes benchmarks/trainer.md.

    python benchmarks/trainer.py

A step of `fit`, and a step of a whole run of diffusion-train with metrics.csv, TensorBoard and the
progress bar. After each comes a bare step in the same process: forward, backward and the same
fused Adam on a batch noised beforehand.
"""
import contextlib
import copy
import io
import tempfile
import time
from statistics import median

import torch
from common import HERE, OVERHEADS, collect, measured, overhead_row, quickstart, table, timed

from diffusion_scratch.config import (
    load_config, make_data, make_denoiser, make_fit_options, make_schedule
)
from diffusion_scratch.loss import draw_level
from diffusion_scratch.noising import q_sample
from diffusion_scratch.run import (
    RunFolder, describe_session, make_accelerator, plan_evaluations, train_loop
)
from diffusion_scratch.training import TrainState, fit

TARGET = 6  # percent


class Enough(Exception): pass


def bare_step(config, data, schedule, denoiser):
    "A function that does forward, backward and the optimizer on one batch, noised beforehand"
    c, g = config.training, torch.Generator().manual_seed(0)
    net = copy.deepcopy(denoiser).net.train()
    optimizer = torch.optim.Adam(net.parameters(), lr=c.lr, betas=c.adam, fused=True)
    x0, y = data[torch.randperm(len(data), generator=g)[:c.batch_size]]
    level, eps = draw_level(schedule, x0, g)
    x_t = q_sample(x0, level, eps)
    target = denoiser.parameterization.target(x0, eps, level)
    def step():
        (net(x_t, level.t, y) - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return step


def steps_of_fit(config, data, schedule, denoiser):
    "Pairs (one step of `fit`, one bare step) in ms"
    bare = bare_step(config, data, schedule, denoiser)
    state = TrainState(denoiser, config.training.adam, config.training.ema)
    run = fit(state, schedule, data, **make_fit_options(config))
    while True: yield timed(next, run)[1], timed(bare)[1]


def steps_of_a_run(folder, seconds):
    """Pairs (one step of a run, one bare step) in ms, the share of loading in each, ms and MB of a
    checkpoint, and the steps between two by default"""
    never = ['preview_every=1000000', 'save_every=1000000']
    options = ['data.name=mnist_mini', f'run={folder}/run', *never]
    config = load_config(HERE.parent/'configs'/'mnist.yaml', options)
    data, schedule, run = make_data(config), make_schedule(config), RunFolder(config)
    state = TrainState(make_denoiser(config, data), config.training.adam, config.training.ema)
    bare, cpu = bare_step(config, data, schedule, state.denoiser), torch.device('cpu')
    accelerator = make_accelerator(config, cpu)
    run.claim()
    run.open(describe_session(config, state, data, accelerator, cpu))
    accelerator.init_trackers('training')
    pairs, loading, left = [], [], time.perf_counter()
    end = left + seconds
    plan = plan_evaluations(config, data)
    def between(m):
        nonlocal left
        ours = 1e3 * (time.perf_counter() - left)
        pairs.append((ours, timed(bare)[1]))
        loading.append(m.loading)
        if time.perf_counter() > end: raise Enough
        left = time.perf_counter()
    with contextlib.suppress(Enough), contextlib.redirect_stderr(io.StringIO()):
        train_loop(run, state, schedule, data, plan, accelerator, True, between)
    saving = [timed(run.save, state, schedule, dict(loss=1.))[1] for _ in range(10)]
    size = next((run.path/'checkpoints').iterdir()).stat().st_size / 2**20
    accelerator.end_training()
    run.close()
    every = type(config).model_fields['save_every'].default
    return pairs[10:], loading[10:], median(saving), size, every


def main(seconds=60):
    began = time.perf_counter()
    config, data, schedule, denoiser = quickstart()
    parameters = sum(p.numel() for p in denoiser.parameters())
    fits = collect(steps_of_fit(config, data, schedule, denoiser), seconds)
    with tempfile.TemporaryDirectory() as folder:
        pairs, loading, saving, size, every = steps_of_a_run(folder, seconds)
    share = 100 * saving / (every * median(p[0] for p in pairs) + saving)
    speed = 1e3 * config.training.batch_size / median(p[0] for p in fits)
    met = 'met' if share <= 1 else '**missed**'
    page = [f'''# The trainer

<!-- Written by benchmarks/trainer.py; run it to write this page anew. -->

What training costs beside bare steps, with the network of `configs/quickstart.yaml` and
`configs/mnist.yaml` ({parameters:,} parameters, batch {config.training.batch_size}). A bare step is
forward, backward and the same fused Adam on a batch noised beforehand: no data, no noise, no
clipping of the gradient, no moving average, no check for NaN. A whole run has metrics.csv,
TensorBoard, the progress bar and the loss by quarter as well. One of each in turn.
''', *table(*OVERHEADS), overhead_row('a step of `fit`', fits, TARGET),
        overhead_row('a step of a run', pairs, TARGET), f'''
The quickstart's training step, with everything in it: **{speed:,.0f} images per second**.

A checkpoint ({size:.0f} MB: weights, average, Adam, checksum, fsync) takes {saving:.0f} ms; every
{every} steps, the default, that is **{share:.2f} %** of the wall time (target 1 %, {met}).
Waiting for images takes {100 * median(loading):.2f} % of a step (target 3 %).
''', measured('trainer.py', began)]
    (HERE/'trainer.md').write_text('\n'.join(page), encoding='utf-8')


if __name__ == '__main__': main()
