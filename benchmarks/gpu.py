"""Training on an accelerator: speed and memory, in several ways. Writes benchmarks/gpu.md.

    python benchmarks/gpu.py

The paper's network for CIFAR-10 at its batch of 128, by steps of `fit` on random images in memory.
Each way is measured in a process of its own. Beside it stands a plain training loop with diffusers'
UNet2DModel of the same shape, in bf16, as in diffusers' training example. Where there is no
accelerator, nothing is measured; `--device cpu --batch 4 --channels 16` tries the program there.
"""
import argparse
import json
import subprocess
import sys
import time
from itertools import islice
from statistics import median

import torch
from common import HERE, measured, table
from networks import NETWORKS, theirs

from diffusion_scratch.config import load_config, make_denoiser, make_fit_options, make_schedule
from diffusion_scratch.data import ImageSet
from diffusion_scratch.engine import memory_in_use
from diffusion_scratch.loss import draw_level
from diffusion_scratch.noising import q_sample
from diffusion_scratch.run import make_accelerator
from diffusion_scratch.training import TrainState, fit

PAPER = "the paper's for CIFAR-10, same weights"
WAYS = {  # name: changes of the config; memory format; diffusers instead of ours
    '32 bits': ([], torch.contiguous_format, False),
    '32 bits, channels last': ([], torch.channels_last, False),
    'bf16': (['training.precision=bf16'], torch.contiguous_format, False),
    'bf16, channels last': (['training.precision=bf16'], torch.channels_last, False),
    'bf16, channels last, compiled':
        (['training.precision=bf16', 'training.compile=true'], torch.channels_last, False),
    'bf16, channels last, recomputed':
        (['training.precision=bf16', 'training.recompute=true'], torch.channels_last, False),
    "diffusers' UNet2DModel, bf16": ([], torch.contiguous_format, True),
    "diffusers' UNet2DModel, bf16, channels last": ([], torch.channels_last, True),
}
WARMUP = 10  # steps; the first ones choose kernels, or compile


def steps_of_fit(config, data, device, layout):
    "Steps of `fit`; each yields when its metrics are there"
    state = TrainState(make_denoiser(config, data).to(device).to(memory_format=layout),
                       config.training.adam, config.training.ema)
    options = make_fit_options(config) | dict(accelerator=make_accelerator(config, device))
    return fit(state, make_schedule(config), data, **options)


def steps_of_diffusers(config, data, device, layout):
    "Steps of a plain loop: noise, autocast, Adam, clipping; each reads the loss, as `fit` does"
    net = theirs(NETWORKS[PAPER]._replace(channels=config.network.channels))
    net = net.to(device).to(memory_format=layout).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=config.training.lr, fused=True)
    schedule, B = make_schedule(config), config.training.batch_size
    while True:
        x0 = data[torch.randperm(len(data))[:B]][0].to(device)
        level, eps = draw_level(schedule, x0)
        with torch.autocast(device.type, torch.bfloat16):
            out = net(q_sample(x0, level, eps), level.t.to(device) - 1).sample
        loss = (out.float() - eps).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def measure_way(way: str, device: torch.device, a):
    "Print seconds a step and memory of one way, as JSON"
    changes, layout, peer = WAYS[way]
    size = [f'training.batch_size={a.batch}', f'network.channels={a.channels}', 'data.flip=false']
    config = load_config(HERE.parent/'configs'/'cifar10.yaml', [*size, *changes])
    pixels = torch.randint(0, 256, (4 * a.batch, 3, 32, 32), dtype=torch.uint8)
    steps = (steps_of_diffusers if peer else steps_of_fit)(config, ImageSet(pixels), device, layout)
    for _ in islice(steps, WARMUP): pass
    times = []
    for _ in range(a.steps):
        began = time.perf_counter()
        next(steps)
        times.append(time.perf_counter() - began)
    print(json.dumps(dict(seconds=median(times), memory=memory_in_use(device))))


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--device', help='by default the accelerator of this machine')
    p.add_argument('--batch', type=int, default=128, help='images a step')
    p.add_argument('--channels', type=int, default=128, help='of the network at full size')
    p.add_argument('--steps', type=int, default=50, help='steps to measure of each way')
    p.add_argument('--way', choices=WAYS, help=argparse.SUPPRESS)
    a, began = p.parse_args(), time.perf_counter()
    found = torch.accelerator.current_accelerator(check_available=True)
    if not (a.device or found):
        return print(f'No accelerator here (torch {torch.__version__} finds only the CPU): '
                     'nothing was measured.')
    device = torch.device(a.device or found)
    if a.way: return measure_way(a.way, device, a)
    rows, words = [], ['--device', str(device), '--batch', str(a.batch),
                       '--channels', str(a.channels), '--steps', str(a.steps)]
    for way in WAYS:
        out = subprocess.run([sys.executable, __file__, *words, '--way', way],
                             capture_output=True, text=True)
        if out.returncode: rows.append(f'| {way} | failed: {out.stderr.splitlines()[-1]} | | |')
        else:
            m = json.loads(out.stdout.splitlines()[-1])
            rows.append(f'| {way} | {1e3 * m["seconds"]:.1f} | {a.batch / m["seconds"]:,.0f} '
                        f'| {m["memory"]:,.0f} |')
        print(rows[-1], flush=True)
    if device.type == 'cpu': return
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type
    page = [f'''# Training on an accelerator

<!-- Written by benchmarks/gpu.py; run it to write this page anew. -->

On {name}: a step with the paper's network for CIFAR-10, {a.batch} images a batch, median of
{a.steps} steps. Memory is the peak of the tensors on the device.
''', *table('way', 'ms a step', 'images a second', 'memory, MB'), *rows, '',
            measured('gpu.py', began)]
    (HERE/'gpu.md').write_text('\n'.join(page), encoding='utf-8')
    print(f'\nwrote {HERE/"gpu.md"}')


if __name__ == '__main__': main()
