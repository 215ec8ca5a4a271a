"""What training costs on faces: the networks of configs/celeba_hq.yaml at 64, 128 and 256, and that
of configs/faces.yaml. Writes faces.md and nbs/assets/faces/cost.json.

    python benchmarks/faces.py

Each network trains a few steps of one image in a process of its own, with `fit`, on one thread. The
seconds are those of the processor, so that other programs on the machine hardly count. Memory is
the peak of the process beyond what it held before the network was made. The operations are counted
by torch for the forward and the backward pass of one image. The hours on GPUs are arithmetic from
this count, not measured.
"""
import argparse
import json
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from statistics import median

import torch
import yaml
from common import HERE, cpu, measured, table
from torch.utils.flop_counter import FlopCounterMode

from diffusion_scratch.checkpoint import atomic
from diffusion_scratch.config import make_denoiser, make_fit_options, make_schedule, parse_config
from diffusion_scratch.data import ImageSet
from diffusion_scratch.training import TrainState, fit

PAPER = dict(network=dict(channels=128, multipliers=[1, 1, 2, 2, 4, 4], blocks=2, attention=[4]),
             training=dict(steps=500_000, batch_size=64))
SIZES = {'faces, 64': ('faces', 64, {}), 'celeba_hq, 64': ('celeba_hq', 64, {}),
         'celeba_hq, 128': ('celeba_hq', 128, {}), 'celeba_hq, 256': ('celeba_hq', 256, {}),
         "celeba_hq, 256, the paper's network": ('celeba_hq', 256, PAPER)}
SUSTAINED = 100e12  # operations a second of a GPU in bf16, assumed: a third of an A100's peak
SHARED = 0.9        # of the speed of eight GPUs that is left: an assumption
COLUMNS = ('network, size', 'parameters', '10^9 operations an image', 'peak memory at batch 1, GB',
           'CPU seconds an image', "images of the config's run", 'one CPU core, days',
           'one GPU, hours', 'eight GPUs, hours')


def config_of(name):
    "The config of a row without its data, for one image at a time; steps and batch of a real run"
    file, size, changes = SIZES[name]
    values = yaml.safe_load((HERE.parent/'configs'/f'{file}.yaml').read_text(encoding='utf-8'))
    for section, keys in changes.items(): values[section] |= keys
    values['data'] = dict(name='folder', root='.', size=size)
    run = {k: values['training'][k] for k in ('steps', 'batch_size')}
    values['training'] |= dict(precision='fp32', batch_size=1)
    return parse_config(values), run


def operations(config, size):
    "Floating-point operations of forward and backward for one image, as torch counts them"
    data = ImageSet(torch.zeros(2, 3, size, size, dtype=torch.uint8))
    net = make_denoiser(config, data).net.to('meta')
    x, t = torch.empty(1, 3, size, size, device='meta'), torch.ones(1, device='meta').long()
    with FlopCounterMode(display=False) as counter: net(x, t).square().mean().backward()
    return counter.get_total_flops()


def high_water():
    "Bytes that this process has held at most"
    with open('/proc/self/status') as lines:
        return 1024 * int(next(l for l in lines if l.startswith('VmHWM')).split()[1])


def measure(name, steps):
    "The numbers of one row, printed as JSON; in a process of its own"
    torch.set_num_threads(1)
    (config, run), size = config_of(name), SIZES[name][1]
    data = ImageSet(torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8))
    flop, before = operations(config, size), high_water()
    denoiser = make_denoiser(config, data)
    parameters = sum(p.numel() for p in denoiser.parameters())
    state = TrainState(denoiser.to(memory_format=torch.channels_last), config.training.adam,
                       config.training.ema)
    training = fit(state, make_schedule(config), data, **make_fit_options(config))
    seconds = []
    for _ in range(steps + 1):  # the first one also sets up the optimizer
        began = time.process_time()
        next(training)
        seconds.append(time.process_time() - began)
    row = dict(name=name, parameters=parameters, flop=flop, peak_bytes=high_water() - before,
               cpu_seconds=round(median(seconds[1:]), 4), **run)
    print(json.dumps(row))


def short(x):
    "Two digits, or all before the point"
    return f'{x:,.0f}' if x >= 10 else f'{x:.2g}'


def line(r):
    "A row of the page"
    images = r['steps'] * r['batch_size']
    hours = images * r['flop'] / SUSTAINED / 3600
    days = images * r['cpu_seconds'] / 86400
    return (f"| {r['name']} | {r['parameters']:,} | {r['flop'] / 1e9:,.1f} "
            f"| {r['peak_bytes'] / 1e9:.2f} | {r['cpu_seconds']:.3g} | {images:,} | {short(days)} "
            f'| {short(hours)} | {short(hours / 8 / SHARED)} |')


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--steps', type=int, default=5, help='measured steps of each (default 5)')
    p.add_argument('--row', choices=SIZES, help=argparse.SUPPRESS)
    p.add_argument('--out', type=Path, default=HERE/'faces.md', help='the page to write')
    p.add_argument('--json', type=Path, default=HERE.parent/'nbs'/'assets'/'faces'/'cost.json',
                   help='the numbers, for the chapter')
    a = p.parse_args()
    if a.row: return measure(a.row, a.steps)
    began, rows = time.perf_counter(), []
    for name in SIZES:
        command = [sys.executable, __file__, '--row', name, '--steps', str(a.steps)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode: sys.exit(done.stderr)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(line(rows[-1]), flush=True)
    made = dict(command=f'python benchmarks/faces.py --steps {a.steps}', cpu=cpu(), threads=1,
                torch=torch.__version__, sustained=SUSTAINED, shared=SHARED,
                date=datetime.now(timezone.utc).isoformat(timespec='seconds'))
    a.json.parent.mkdir(parents=True, exist_ok=True)
    with atomic(a.json) as part:
        part.write_text(json.dumps(dict(made=made, rows=rows), indent=1) + '\n', encoding='utf-8')
    page = [f"""# What training on faces costs

<!-- Written by benchmarks/faces.py; run it to write this page anew. -->

The networks of `configs/celeba_hq.yaml` at three sizes, the paper's network that its comment names,
and the network of `configs/faces.yaml`. Measured: parameters, memory and seconds of training steps
of one image with `fit`, fp32, on one thread. Counted by torch: the operations of forward and
backward. **Arithmetic, not measured**: one CPU core is images times seconds. A GPU is images times
operations, at {SUSTAINED / 1e12:.0f} * 10^12 a second, which is an assumption (a third of the
peak that is stated for an A100 in bf16). Eight GPUs keep {SHARED:.0%} of their speed together,
which is an assumption too. Loading, previews and checkpoints are not counted.
""", *table(*COLUMNS), *map(line, rows), '', measured(f'faces.py --steps {a.steps}', began)]
    a.out.write_text('\n'.join(page), encoding='utf-8')
    print(f'wrote {a.out}')


if __name__ == '__main__': main()
