"""Training and sampling on a quiet machine and beside a busy process. Writes benchmarks/busy.md.

    python benchmarks/busy.py

Each row is a process of its own, with OpenMP threads that wait in another way. The rows run in
turn, on the quiet machine and beside one process of the lowest priority that never rests.
"""
import argparse
import itertools
import os
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import contextmanager
from statistics import median

SETTINGS = {  # name -> what is set in the environment before Python starts
    '1 thread': dict(OMP_NUM_THREADS='1'),
    '2 threads, passive': dict(OMP_NUM_THREADS='2', OMP_WAIT_POLICY='passive'),
    '2 threads, as libgomp has it': dict(OMP_NUM_THREADS='2', GOMP_SPINCOUNT='300000'),
    '2 threads, of this package': dict(OMP_NUM_THREADS='2'),
    'a command of this package': {},
}
OURS, BEFORE = list(SETTINGS)[4], list(SETTINGS)[2]
BETTER_OF = list(SETTINGS)[:2]
WAITS = 'OMP_NUM_THREADS', 'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT'
JOBS = 'training', 'sampling'
ROUNDS = 2


def images_per_second(job: str, seconds: float) -> float:
    "Of the quickstart's network in this process: training steps, or network calls of sampling"
    from diffusion_scratch.config import make_fit_options
    from diffusion_scratch.run import OtherLoad, threads_beside
    from diffusion_scratch.sampling import trajectory
    from diffusion_scratch.training import TrainState, fit

    import torch
    from common import quickstart  # after the package, which must come before torch
    config, data, schedule, denoiser = quickstart()
    batch = config.training.batch_size
    torch.set_num_threads(threads_beside(OtherLoad().cores()))
    if job == 'training':
        state = TrainState(denoiser, config.training.adam, config.training.ema)
        steps = fit(state, schedule, data, **make_fit_options(config))
    else: steps = trajectory(denoiser, schedule, (batch, *data.shape), seed=0)
    for _ in range(3): next(steps)  # not timed
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        next(steps)
        done += 1
    return batch * done / (time.perf_counter() - began)


@contextmanager
def busy(there: bool):
    "One process that never rests, of the lowest priority, if there is to be one"
    if not there:
        yield
        return
    endless = subprocess.Popen([sys.executable, '-c', 'while True: pass'],
                               preexec_fn=lambda: os.nice(19), start_new_session=True)
    try: yield
    finally:
        endless.kill()
        endless.wait()


def measured_apart(job: str, setting: str, seconds: float) -> float:
    "The same, in a fresh process that waits as `setting` says"
    environment = {k: v for k, v in os.environ.items() if k not in WAITS} | SETTINGS[setting]
    command = [sys.executable, __file__, '--seconds', str(seconds), '--job', job]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--seconds', type=float, default=10, help='of each measurement')
    p.add_argument('--job', choices=JOBS, help='measure this in this process, and print it')
    a = p.parse_args()
    if a.job: return print(images_per_second(a.job, a.seconds))
    began, rates = time.perf_counter(), defaultdict(list)
    for _, job, beside, setting in itertools.product(range(ROUNDS), JOBS, (False, True), SETTINGS):
        with busy(beside): rate = measured_apart(job, setting, a.seconds)
        rates[job, beside, setting].append(rate)
        print(f'{job:9} {"busy" if beside else "quiet":6} {setting:35} {rate:8.1f}', flush=True)
    write_page({k: median(v) for k, v in rates.items()}, began)


def write_page(rate: dict, began: float):
    "benchmarks/busy.md"
    from common import HERE, measured, table
    lines = []
    for job, setting in itertools.product(JOBS, SETTINGS):
        quiet, beside = (rate[job, b, setting] for b in (False, True))
        better = max(rate[job, True, s] for s in BETTER_OF)
        before = rate[job, False, BEFORE]
        lines.append(f'| {job}, {setting} | {quiet:,.0f} | {quiet / before:.2f} | {beside:,.0f} '
                     f'| {beside / better:.2f} |')
    def met(good): return 'met' if good else '**missed**'
    for job in JOBS:
        quiet = rate[job, False, OURS] / rate[job, False, BEFORE]
        beside = rate[job, True, OURS] / max(rate[job, True, s] for s in BETTER_OF)
        lines += ['', f'{job.capitalize()}: {quiet:.2f} of what libgomp does on the quiet machine '
                  f'(target 0.95, {met(quiet >= 0.95)}); beside the busy process {beside:.2f} of '
                  f'the better of one thread and two passive ones (target 0.8, '
                  f'{met(beside >= 0.8)}).']
    page = [f'''# A busy machine

<!-- Written by benchmarks/busy.py; run it to write this page anew. -->

PyTorch computes with threads of GNU OpenMP (libgomp). At every barrier they wait for each other,
and by default they spin while they wait. Where another process wants a core, a thread that spins
keeps the one it waits for from running. `import diffusion_scratch` lets them spin for a short while
only, unless `GOMP_SPINCOUNT` or `OMP_WAIT_POLICY` is set. The commands take no more threads than
find a core free when they begin, unless the number is given; a run keeps that number.

Images per second with the network of `configs/quickstart.yaml`, batch 64: training steps, and calls
of the network in sampling. Median of {ROUNDS} processes each, in turn; *busy* is beside one endless
process of the lowest priority (19), in a session of its own, as one that was started in another
terminal: Linux then gives both equal shares.
''', *table('what', 'quiet', 'of libgomp', 'busy', 'of the better'), *lines, '',
        measured('busy.py', began)]
    (HERE/'busy.md').write_text('\n'.join(page), encoding='utf-8')


if __name__ == '__main__': main()
