"""What share of a training step its images take; decoding a folder. Writes benchmarks/loading.md.

    python benchmarks/loading.py

The loader's part is `next(batches(...))`: the order, the bytes, floats in [-1, 1], and the flip
where the config asks for one. It and a whole step of `fit`, which has another one in it, run in
turn; the share is the ratio of the medians. The networks are those of the configs.
"""
import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from common import HERE, collect, measured, table, timed
from PIL import Image

from diffusion_scratch.config import load_config, make_denoiser, make_fit_options, make_schedule
from diffusion_scratch.data import image_folder, mnist_mini
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


def main():
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
''', *table(jpegs, 'images', 's', 'images per second', 's for 30,000'), *decoding, '',
        measured(command, began)]
    a.out.write_text('\n'.join(page), encoding='utf-8')
    print(f'\nwrote {a.out}')


if __name__ == '__main__': main()
