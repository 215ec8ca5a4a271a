"""What a run of diffusion-train costs beside bare training steps. Writes benchmarks/trainer.md.

    python benchmarks/trainer.py

A run of the network of configs/mnist.yaml as `train` makes it, with metrics.csv, TensorBoard, the progress bar, all of it; after each of its
steps comes a bare one in the same process: forward, backward and the same fused Adam on a batch noised beforehand. The digits are those of
mnist_mini, of MNIST's size.
"""
import copy, contextlib, io, platform, tempfile, time
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
import torch
from overhead import HERE, cpu, row, timed
from diffusion_scratch.config import load_config, make_data, make_denoiser, make_schedule
from diffusion_scratch.noising import q_sample
from diffusion_scratch.run import RunFolder, describe_session, keep_freed_memory
from diffusion_scratch.run import make_accelerator, train_loop
from diffusion_scratch.training import TrainState

class Enough(Exception): pass

def main(seconds=100, warmup=10):
    began = time.perf_counter()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as tmp:
        config = load_config(HERE.parent/'configs'/'mnist.yaml', ['data.name=mnist_mini', f'run={tmp}/run', 'preview_every=1000000', 'save_every=1000000'])
        data, schedule, run = make_data(config), make_schedule(config), RunFolder(config)
        state = TrainState(make_denoiser(config, data), config.training.adam, config.training.ema)
        net, g = copy.deepcopy(state.denoiser.net).train(), torch.Generator().manual_seed(0)
        optimizer = torch.optim.Adam(net.parameters(), lr=config.training.lr, betas=config.training.adam, fused=True)
        x0, y = data[torch.randperm(len(data), generator=g)[:config.training.batch_size]]
        level, eps = schedule.at(torch.randint(1, schedule.T + 1, (len(x0),), generator=g), x0), torch.randn(x0.shape, generator=g)
        x_t, target = q_sample(x0, level, eps), state.denoiser.parameterization.target(x0, eps, level)
        def bare():
            (net(x_t, level.t, y) - target).square().mean().backward()
            optimizer.step(); optimizer.zero_grad()
        accelerator = make_accelerator(config, torch.device('cpu'))
        run.open(describe_session(config, state, data, accelerator, torch.device('cpu')))
        accelerator.init_trackers('training')
        pairs, loading, left = [], [], time.perf_counter()
        def between(m):
            nonlocal left
            ours = 1e3 * (time.perf_counter() - left)
            pairs.append((ours, timed(bare)[1])); loading.append(m.loading)
            if time.perf_counter() - began > seconds: raise Enough
            left = time.perf_counter()
        with contextlib.suppress(Enough), contextlib.redirect_stderr(io.StringIO()): train_loop(run, state, schedule, data, accelerator, True, between)
        saving = [timed(run.save, state, schedule, dict(loss=1.))[1] for _ in range(10)]
        size = next((run.path/'checkpoints').iterdir()).stat().st_size / 2**20
        accelerator.end_training()
    every, step = config.__class__.model_fields['save_every'].default, median(p[0] for p in pairs[warmup:])
    share = 100 * median(saving) / (every * step + median(saving))
    text = f'''# The trainer

<!-- Written by benchmarks/trainer.py; run it to write this page anew. -->

What `diffusion-train` costs beside bare steps, with the network of `configs/mnist.yaml` ({sum(p.numel() for p in net.parameters()):,} parameters, batch {config.training.batch_size}). The run has all of it on: metrics.csv, TensorBoard, the progress bar,
the moving average, clipping, the checks, the loss by quarter. A bare step is forward, backward and the same fused Adam on a batch noised beforehand. One of each in turn.

| what | with the library, ms | bare, ms | overhead of the medians | middle half of the pairs | target | met | pairs |
| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |
{row('a step of a run', pairs[warmup:], 5)}

A checkpoint ({size:.0f} MB: weights, average, Adam, checksum, fsync) takes {median(saving):.0f} ms; every {every} steps, the default, that is **{share:.2f} %** of the wall time (target 1 %, {'met' if share <= 1 else '**missed**'}).
Waiting for images takes {100 * median(loading[warmup:]):.2f} % of a step (target 3 %).

Measured {datetime.now(timezone.utc):%Y-%m-%d} by `python benchmarks/trainer.py` in {time.perf_counter() - began:.0f} s: {cpu()}, {torch.get_num_threads()} threads,
Python {platform.python_version()}, torch {torch.__version__}.
'''
    (HERE/'trainer.md').write_text(text, encoding='utf-8')
    print(text)

if __name__ == '__main__': main()
