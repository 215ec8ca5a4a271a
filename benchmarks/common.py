"What the benchmarks share: timing in pairs, rows of tables, the network of the quickstart"
import os
import platform
import time
from datetime import datetime, timezone
from pathlib import Path
from statistics import median, quantiles

import torch

from diffusion_scratch.config import load_config, make_data, make_denoiser, make_schedule
from diffusion_scratch.run import keep_freed_memory

HERE = Path(__file__).resolve().parent


def timed(f, *args, clock=time.perf_counter):
    "What f returns, and the milliseconds it took"
    began = clock()
    out = f(*args)
    return out, 1e3 * (clock() - began)


def collect(pairs, seconds: float, warmup: int=10) -> list:
    "As many pairs as fit into so many seconds, the first ones left out"
    out, end = [], time.perf_counter() + seconds
    for pair in pairs:
        out.append(pair)
        if time.perf_counter() > end and len(out) > 2 * warmup: return out[warmup:]


def table(*titles: str) -> list[str]:
    "The head of a table: the first column to the left, the others to the right"
    return ['| ' + ' | '.join(titles) + ' |', '| --- |' + ' ---: |' * (len(titles) - 1)]


def overhead_row(name: str, pairs: list, target: float) -> str:
    """Pairs (with the library, bare) in ms: the overhead of the medians, and the middle half of
    the pairs"""
    ours, bare = (median(p) for p in zip(*pairs))
    low, _, high = (100 * (q - 1) for q in quantiles((a / b for a, b in pairs), n=4))
    over = 100 * (ours / bare - 1)
    met = 'yes' if over <= target else '**no**'
    return (f'| {name} | {ours:.2f} | {bare:.2f} | **{over:.2f} %** | {low:.2f} .. {high:.2f} % | '
            f'{target:g} % | {met} | {len(pairs):,} |')


OVERHEADS = ('what', 'ours, ms', 'bare, ms', 'overhead', 'middle half', 'target', 'met', 'pairs')


def quickstart():
    """Config, data, schedule and a fresh denoiser of the quickstart; memory is kept as
    diffusion-train does"""
    keep_freed_memory()
    config = load_config(HERE.parent/'configs'/'quickstart.yaml')
    data = make_data(config)
    return config, data, make_schedule(config), make_denoiser(config, data).eval()


def cpu() -> str:
    "The processor's name, where the system tells it"
    try:
        lines = open('/proc/cpuinfo')
        return next(l.split(':')[1].strip() for l in lines if l.startswith('model name'))
    except (OSError, StopIteration): return platform.processor() or platform.machine()


def measured(script: str, began: float) -> str:
    "The last lines of a page: when, where and how it was measured"
    return (
        f'Measured {datetime.now(timezone.utc):%Y-%m-%d} by `python benchmarks/{script}` in'
        f' {time.perf_counter() - began:.0f} s: {cpu()}, {os.cpu_count()} cores,'
        f' {torch.get_num_threads()} threads, Python {platform.python_version()}, torch'
        f' {torch.__version__}.\n'
    )
