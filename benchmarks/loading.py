"""What share of a training step its images take; decoding a folder; images that are read when they
are needed. Writes benchmarks/loading.md.

    python benchmarks/loading.py

The loader's part is `next(batches(...))`: the order, the bytes, floats in [-1, 1], and the flip
where the config asks for one. It and a whole step of `fit`, which has another one in it, run in
turn; the share is the ratio of the medians. The networks are those of the configs.

Sets that are read when they are needed feed a simulated accelerator, a step that sleeps 20 ms. Each
is measured in a process of its own, which also says when its first batch was there and how much
memory it and its workers have in the end.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import torch
from common import HERE, collect, measured, table, timed
from PIL import Image

from diffusion_scratch.config import load_config, make_denoiser, make_fit_options, make_schedule
from diffusion_scratch.data import hub_set, image_folder, mnist_mini
from diffusion_scratch.run import keep_freed_memory
from diffusion_scratch.training import TrainState, batches, fit

SHARES = ('data and network', 'batch', 'loader, ms', 'whole step, ms', 'share (medians)', 'target',
          'met', 'pairs')


def draw(root, n, pixels, seed=0):
    "n smooth random colour images with some detail, as JPEG of quality 90 in two subfolders"
    rng = np.random.default_rng(seed)
    def noise(k):
        "k x k random colours, enlarged"
        colours = Image.fromarray(rng.integers(0, 256, (k, k, 3), dtype=np.uint8))
        return colours.resize((pixels, pixels), Image.Resampling.BICUBIC)
    for i in range(n):
        big, middle, fine = noise(4), noise(16), noise(pixels // 4)
        file = root/'ab'[i % 2]/f'{i:05}.jpg'
        file.parent.mkdir(parents=True, exist_ok=True)
        image = Image.blend(Image.blend(big, middle, 0.3), fine, 0.1)
        image.save(file, quality=90)
    return sum(f.stat().st_size for f in root.rglob('*.jpg')) / n / 1000


def load_and_step(config, data):
    "Pairs (a batch from the loader, a whole step of `fit`), milliseconds"
    t, schedule = config.training, make_schedule(config)
    stream = batches(data, t.batch_size, config.seed, 0, config.data.flip)
    state = TrainState(make_denoiser(config, data), t.adam, t.ema)
    run = fit(state, schedule, data, **make_fit_options(config))
    while True: yield timed(next, stream)[1], timed(next, run)[1]


def share_row(name, config, pairs, target):
    "The loader's share of a step, in percent"
    load, step = (median(x) for x in zip(*pairs))
    share = 100 * load / step
    met = 'yes' if share <= target else '**no**'
    return (f'| {name} | {config.training.batch_size} | {load:.3f} | {step:,.1f} '
            f'| **{share:.2f} %** | {target} % | {met} | {len(pairs)} |')


def decoding_row(name, n, ms):
    "n images in so many ms"
    per_second, for_all = 1e3 * n / ms, 30 * ms / n
    return f'| {name} | {n:,} | {ms / 1e3:.2f} | {per_second:,.0f} | {for_all:,.1f} |'


STEP, BATCH, BATCHES = 0.02, 64, 150  # seconds that a step sleeps; images; steps to measure
LAZY = ('images read when they are needed', 'images', 'workers', 'first batch after, s',
        'waiting', 'memory, MB')


def memory(process) -> float:
    "Resident MB of a process; what it shares with others counts in part (PSS)"
    return process.memory_full_info().pss / 2**20


def wait_for(kind: str, source: str, workers: int):
    "Print how long a step of 20 ms waits for its images, as JSON"
    torch.set_num_threads(1)  # the other cores are for the workers
    began = time.perf_counter()
    if kind == 'folder': data = image_folder(source, 64, progress=False, labels=True, lazy=True)
    elif kind == 'hf': data = hub_set(source, 64)
    else: data = mnist_mini()
    stream = batches(data, BATCH, workers=workers)
    next(stream)
    first, waits = time.perf_counter() - began, []
    for _ in range(BATCHES):
        time.sleep(STEP)
        waits.append(timed(next, stream)[1] / 1e3)
    everyone = [psutil.Process(), *psutil.Process().children(recursive=True)]
    print(json.dumps(dict(n=len(data), first=first, memory=sum(map(memory, everyone)),
                          waiting=sum(waits) / (sum(waits) + BATCHES * STEP))))


def lazy_row(name: str, kind: str, source, workers: int) -> str:
    words = [sys.executable, __file__, '--wait-for', kind, str(source), str(workers)]
    out = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    m = json.loads(out.splitlines()[-1])
    return (f'| {name} | {m["n"]:,} | {workers} | {m["first"]:.1f} | **{m["waiting"]:.1%}** '
            f'| {m["memory"]:,.0f} |')


def copies(root: Path, n: int, there: Path):
    "n files in two subfolders, links to the files of a folder"
    files = sorted(root.rglob('*.jpg'))
    for i in range(n):
        file = there/'ab'[i % 2]/f'{i:06}.jpg'
        file.parent.mkdir(parents=True, exist_ok=True)
        os.link(files[i % len(files)], file)


def save_rows(root: Path, there: Path):
    "The files of a folder as a set of the library datasets"
    import datasets
    files = sorted(root.rglob('*.jpg'))
    columns = dict(image=[str(f) for f in files], label=[int(f.parent.name == 'b') for f in files])
    kinds = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=['a', 'b']))
    rows = datasets.Dataset.from_dict(columns, kinds)
    rows.map(lambda row: row, writer_batch_size=500).save_to_disk(str(there))


def lazy_rows(tmp: Path) -> list[str]:
    "Rows of the table of sets that are read when they are needed"
    draw(tmp/'drawn', 2000, 64, seed=1)
    rows = [lazy_row('MNIST, in memory', 'mnist', '-', 0)]
    for n in (10_000, 20_000, 100_000):
        copies(tmp/'drawn', n, tmp/'files')
        for workers in (0, 2):
            rows.append(lazy_row('folder of JPEGs, 64 x 64', 'folder', tmp/'files', workers))
        if n == 20_000: save_rows(tmp/'files', tmp/'rows')
        shutil.rmtree(tmp/'files')
    for workers in (0, 2):
        rows.append(lazy_row('20,000 of them as a Hugging Face set', 'hf', tmp/'rows', workers))
    for row in rows: print(row, flush=True)
    return rows


def main():
    if sys.argv[1:2] == ['--wait-for']: return wait_for(*sys.argv[2:4], int(sys.argv[4]))
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--threads', type=int, default=0, help="CPU threads (default: torch's choice)")
    p.add_argument('--seconds', type=float, default=15, help='to measure each network for')
    p.add_argument('--out', type=Path, default=HERE/'loading.md', help='the page to write')
    a = p.parse_args()
    if a.threads: torch.set_num_threads(a.threads)
    began, rows, decoding = time.perf_counter(), [], []
    keep_freed_memory()  # as diffusion-train does on a CPU

    def share(name, config, data, target, warmup):
        "A row; milliseconds of a step"
        pairs = collect(load_and_step(config, data), a.seconds, warmup)
        rows.append(share_row(name, config, pairs, target))
        print(rows[-1], flush=True)
        return median(step for _, step in pairs)

    def decode(name, folder, size, cache=None):
        "A row; the images, and milliseconds"
        images, ms = timed(lambda: image_folder(folder, size, progress=False, cache=cache))
        decoding.append(decoding_row(name, len(images), ms))
        print(decoding[-1], flush=True)
        return images, ms

    with tempfile.TemporaryDirectory() as tmp: lazy = lazy_rows(Path(tmp))
    with tempfile.TemporaryDirectory() as tmp:
        root = Path(tmp)
        small, large = draw(root/'256', 2000, 256), draw(root/'1024', 60, 1024)
        data, ms = decode('256 pixels to 64', root/'256', 64)
        decode('the same into a cache', root/'256', 64, root/'cache')
        decode('the same, from the cache', root/'256', 64, root/'cache')
        decode('256 pixels as they are', root/'256', 256, root/'cache')
        decode('1024 pixels to 256', root/'1024', 256)
        configs = HERE.parent/'configs'
        config = load_config(configs/'mnist.yaml')
        share('MNIST (1 x 28 x 28), `configs/mnist.yaml`', config, mnist_mini(), 3, 3)
        config = load_config(configs/'folder.yaml', [f'data.root={root/"256"}'])
        step = share('folder (3 x 64 x 64), `configs/folder.yaml`', config, data, 10, 1)
    fly = config.training.batch_size * ms / len(data)
    jpegs = f'JPEGs of quality 90 ({small:.0f} kB at 256 pixels, {large:.0f} kB at 1024)'
    command = f'loading.py --threads {torch.get_num_threads()} --seconds {a.seconds:g}'
    page = [f'''# Loading

<!-- Written by benchmarks/loading.py; run it to write this page anew. -->

How much of a training step its images take. The loader is `next(batches(...))`: order, bytes,
floats in [-1, 1], and the flip where the config asks for it (the folder's does); a step is one of
`fit`, which has its own batch in it. One of each in turn, in one process. MNIST stands for any set
of its size: these are the 5,000 digits of mnist_mini, and a batch of the 60,000 costs the same.
''', *table(*SHARES), *rows, f'''
Were the folder's files decoded anew for every batch, that would be {fly:,.0f} ms a step in the
same threads, {100 * fly / (step + fly):.1f} % of it here, and a larger part beside a GPU. They are
decoded once, in {os.cpu_count()} threads:
''', *table(jpegs, 'images', 's', 'images per second', 's for 30,000'), *decoding, f'''
Images that are read when they are needed, beside a simulated accelerator: a step of
{1e3 * STEP:.0f} ms that computes nothing and leaves the cores to the workers, {BATCH} images a
batch. *Waiting* is the share of the time that passes without a step. The memory is that of the
process and its workers together.
''', *table(*LAZY), *lazy, '', measured(command, began)]
    a.out.write_text('\n'.join(page), encoding='utf-8')
    print(f'\nwrote {a.out}')


if __name__ == '__main__': main()
