"""How much of a training step goes into getting its images, and what it costs to decode a folder. Writes benchmarks/loading.md.

    python benchmarks/loading.py

The loader's part is `next(batches(...))`: the order, the bytes, floats in [-1, 1], and the flip where the config asks for one. It and a whole
step of `fit`, which has another one in it, run in turn; the share is the ratio of the medians. The networks are those of the configs.
"""
import argparse, os, platform, tempfile, time
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
import numpy as np
import torch
from PIL import Image
from diffusion_scratch.run import keep_freed_memory
from diffusion_scratch.config import load_config, make_denoiser, make_fit_options, make_schedule
from diffusion_scratch.data import image_folder, mnist_mini
from diffusion_scratch.training import TrainState, batches, fit
from common import collect, cpu, timed

HERE = Path(__file__).resolve().parent

def draw(root, n, pixels, seed=0):
    "n smooth random colour images with some detail, as JPEG of quality 90 in two subfolders"
    rng = np.random.default_rng(seed)
    for i in range(n):
        big, middle, fine = (Image.fromarray(rng.integers(0, 256, (k, k, 3), dtype=np.uint8)).resize((pixels, pixels), Image.Resampling.BICUBIC) for k in (4, 16, pixels // 4))
        f = root/'ab'[i % 2]/f'{i:05}.jpg'; f.parent.mkdir(parents=True, exist_ok=True)
        Image.blend(Image.blend(big, middle, 0.3), fine, 0.1).save(f, quality=90)
    return sum(f.stat().st_size for f in root.rglob('*.jpg')) / n / 1000

def load_and_step(config, data):
    "Pairs (a batch from the loader, a whole step of `fit`), milliseconds"
    t, schedule = config.training, make_schedule(config)
    stream = batches(data, t.batch_size, config.seed, 0, config.data.flip)
    run = fit(TrainState(make_denoiser(config, data), t.adam, t.ema), schedule, data, **make_fit_options(config))
    while True: yield timed(next, stream)[1], timed(next, run)[1]

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--threads', type=int, default=0, help="CPU threads (default: torch's choice)")
    p.add_argument('--seconds', type=float, default=15, help='to measure each network for')
    p.add_argument('--out', type=Path, default=HERE/'loading.md', help='the page to write')
    a = p.parse_args()
    if a.threads: torch.set_num_threads(a.threads)
    began, rows, decoding = time.perf_counter(), [], []
    keep_freed_memory()                                     # as diffusion-train does on a CPU
    def share(what, config, data, target, warmup):
        pairs = collect(load_and_step(config, data), a.seconds, warmup)
        load, step = (median(x) for x in zip(*pairs))
        rows.append(f'| {what} | {config.training.batch_size} | {load:.3f} | {step:,.1f} | **{100 * load / step:.2f} %** | {target} % | {"yes" if 100 * load / step <= target else "**no**"} | {len(pairs)} |')
        print(rows[-1], flush=True)
        return step
    with tempfile.TemporaryDirectory() as tmp:
        root = Path(tmp)
        def decode(what, folder, size, cache=None):
            s, ms = timed(lambda: image_folder(folder, size, progress=False, cache=cache))
            decoding.append(f'| {what} | {len(s):,} | {ms / 1e3:.2f} | {1e3 * len(s) / ms:,.0f} | {30 * ms / len(s):,.1f} |')
            print(decoding[-1], flush=True)
            return s, ms
        small, large = (draw(root/str(k), n, k) for k, n in ((256, 2000), (1024, 60)))
        data, ms = decode('256 pixels to 64', root/'256', 64)
        decode('the same into a cache', root/'256', 64, root/'cache')
        decode('the same, from the cache', root/'256', 64, root/'cache')
        decode('256 pixels as they are', root/'256', 256, root/'cache')
        decode('1024 pixels to 256', root/'1024', 256)
        share('MNIST (1 x 28 x 28), `configs/mnist.yaml`', load_config(HERE.parent/'configs'/'mnist.yaml'), mnist_mini(), 3, 3)
        config = load_config(HERE.parent/'configs'/'folder.yaml', ['data.root=' + str(root/'256')])
        step = share('folder (3 x 64 x 64), `configs/folder.yaml`', config, data, 10, 1)
        fly = config.training.batch_size * ms / len(data)
    text = f'''# Loading

<!-- Written by benchmarks/loading.py; run it to write this page anew. -->

How much of a training step its images take. The loader is `next(batches(...))`: order, bytes, floats in [-1, 1], and the flip where the
config asks for it (the folder's does); a step is one of `fit`, which has its own batch in it. One of each in turn, in one process.
MNIST stands for any set of its size: these are the 5,000 digits of mnist_mini, and a batch of the 60,000 costs the same.

| data and network | batch | loader, ms | whole step, ms | share (medians) | target | met | pairs |
| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |
{chr(10).join(rows)}

Were the folder's files decoded anew for every batch, that would be {fly:,.0f} ms a step in the same threads, {100 * fly / (step + fly):.1f} % of it here, and a larger part beside a GPU. They are decoded once:

| JPEGs of quality 90 ({small:.0f} kB at 256 pixels, {large:.0f} kB at 1024) | images | s | images per second | s for 30,000 |
| --- | ---: | ---: | ---: | ---: |
{chr(10).join(decoding)}

Measured {datetime.now(timezone.utc):%Y-%m-%d} by `python benchmarks/loading.py --threads {torch.get_num_threads()} --seconds {a.seconds:g}` in {time.perf_counter() - began:.0f} s: {cpu()}, {os.cpu_count()} cores, {os.cpu_count()} threads decode,
Python {platform.python_version()}, torch {torch.__version__}.
'''
    a.out.write_text(text, encoding='utf-8')
    print(f'\nwrote {a.out}')

if __name__ == '__main__': main()
