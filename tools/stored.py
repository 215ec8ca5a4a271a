"""Results of chapters that take minutes and that no other program makes. Each is kept in
nbs/assets/, where its page reads it.

    python tools/stored.py              # all, an hour of one thread
    python tools/stored.py sweep report # these

unseen and likelihood need the digits of MNIST, which torchvision downloads once; --root names a
folder that has them already. quickstart and transformer train in runs/stored/, where a
run that was stopped goes on.
"""
import json, shutil, tempfile, time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffusion_scratch.cli import evaluate_command, train_command
from diffusion_scratch.config import load_config, make_denoiser, make_fit_options, make_schedule
from diffusion_scratch.data import ImageSet, fingerprint, mnist, mnist_mini, to_uint8
from diffusion_scratch.denoiser import clipped
from diffusion_scratch.evaluation import Protocol, evaluate
from diffusion_scratch.features import digit_classifier
from diffusion_scratch.guidance import guided
from diffusion_scratch.likelihood import bound, flow_bits
from diffusion_scratch.pictures import grid
from diffusion_scratch.pretrained import SHIPPED, find, load
from diffusion_scratch.reader import Reader
from diffusion_scratch.report import model_hash, random_labels
from diffusion_scratch.run import draw
from diffusion_scratch.sampling import ancestral, fixed_large, fixed_small, sample
from diffusion_scratch.schedule import log_snr
from diffusion_scratch.solvers import ddim, dpm_solver_pp, heun
from diffusion_scratch.training import TrainState, fit

from results import SOLVERS, keep, made, make_pieces, write

ROOT = Path(__file__).resolve().parent.parent
ASSETS, SHAPE, MINI = ROOT/'nbs'/'assets', (1, 28, 28), 'mnist-mini'


def mosaic(images: torch.Tensor, columns: int) -> Image.Image:
    "Bytes (N,1,28,28) in rows, without a gap"
    tiles = images.view(-1, columns, 28, 28).transpose(1, 2)
    return Image.fromarray(tiles.reshape(-1, columns * 28).numpy())

def tiles(file: Path) -> torch.Tensor:
    "The images (N,1,28,28) of a mosaic"
    whole = torch.from_numpy(np.array(Image.open(file)))
    rows, columns = (n // 28 for n in whole.shape)
    return whole.view(rows, 28, columns, 28).transpose(1, 2).reshape(-1, 1, 28, 28)

def facts(piece: str, began: float, **more) -> dict:
    "What the pages print of how it was made"
    digest = json.loads((SHIPPED/MINI/'config.json').read_text())['sha256']
    return more | made(f'python tools/stored.py {piece}') | dict(
        network=MINI, weights_sha256=digest, seconds=round(time.time() - began))


# --- chapters 12 and 14: one network at five scales

SCALES = -1, 0, 0.5, 2, 8

def swept(n=200) -> torch.Tensor:
    "The first n images of each scale"
    net, schedule = load(MINI)
    denoisers = [clipped(guided(net, torch.arange(n) % 10, w)) for w in SCALES]
    return to_uint8(torch.stack([sample(d, schedule, (n, *SHAPE), times=schedule.times(100), seed=0)
                                 for d in denoisers]))

def sweep(a):
    began = time.time()
    mosaic(swept(), 40).save(ASSETS/'guidance'/'sweep.png')
    sampling = '100 ancestral steps, fixed_small, clipped, seed 0'
    write(ASSETS/'guidance'/'sweep.json', facts('sweep', began, scales=SCALES, images_per_scale=200,
                                                labels='0..9 in turn', sampling=sampling))


# --- chapter 13: one noise under six solvers, and six scales of guidance

STEPS, WAYS = (5, 10, 20, 50, 1000), ('with labels', 'without')
STEPPED = {'ddim': ddim(), 'dpm_solver_pp': dpm_solver_pp(), 'heun': heun(),
           'ancestral': ancestral(), 'ddim(1.)': ddim(1.), 'dpm_solver_pp(1.)': dpm_solver_pp(1.)}

def by_solver(solver: str, way: str, steps: int, n=50) -> torch.Tensor:
    net, schedule = load(MINI)
    y = torch.arange(n) % 10 if way == 'with labels' else None
    return sample(clipped(net), schedule, (n, *SHAPE), step=STEPPED[solver], y=y, seed=0,
                  times=schedule.times(steps))

def compared(solver: str, way: str) -> tuple[torch.Tensor, dict]:
    """For each number of steps: five of the digits; how many of 50 have the class of their image
    of 1,000 steps, how many are nearest to it, and the rms distance"""
    xs = [by_solver(solver, way, n) for n in STEPS]
    read = [digit_classifier()(x, progress=False).p.argmax(1) for x in xs]
    near = [torch.cdist(x.flatten(1), xs[-1].flatten(1)).argmin(1) for x in xs]
    return torch.stack(xs)[:, :5], dict(
        digit=[(r == read[-1]).sum().item() for r in read],
        nearest=[(i == torch.arange(50)).sum().item() for i in near],
        apart=[round((x - xs[-1]).square().mean().sqrt().item(), 3) for x in xs])

def solvers(a):
    began = time.time()
    drawn = {way: {s: compared(s, way) for s in STEPPED} for way in WAYS}
    images = torch.stack([x for d in drawn.values() for x, _ in d.values()])
    mosaic(to_uint8(images), 25).save(ASSETS/'editing'/'solvers.png')
    counts = {way: {s: row for s, (_, row) in d.items()} for way, d in drawn.items()}
    sampling = 'clipped, seed 0, against 1,000 steps of the same solver'
    write(ASSETS/'editing'/'solvers.json', facts(
        'solvers', began, steps=STEPS, **counts, images=50, labels='0..9 in turn',
        sampling=sampling, classifier=digit_classifier().hash))

GUIDANCES = 0, 0.5, 1, 2, 4, 8

def at_scale(scale: float, n=400) -> torch.Tensor:
    net, schedule = load(MINI)
    denoiser = clipped(guided(net, torch.arange(n) % 10, scale))
    return sample(denoiser, schedule, (n, *SHAPE), step=dpm_solver_pp(), times=schedule.times(25),
                  seed=0)

def distances(x: torch.Tensor) -> torch.Tensor:
    "Between pairs of a class that share no digit; the classes come in turn"
    one, other = x.view(-1, 2, 10, *SHAPE).unbind(1)
    return (one - other).square().flatten(2).mean(2).sqrt().flatten()

def judged(scale: float, x: torch.Tensor, reader: Reader) -> dict:
    read, apart = reader.agrees(x, torch.arange(400) % 10), distances(x)
    return dict(scale=scale, accuracy=round(read.value, 4), accuracy_error=round(read.error, 4),
                variety=round(apart.mean().item(), 4),
                variety_error=round(apart.std().item() / 200**0.5, 4))

def of_real_digits() -> dict:
    "The variety of 400 of each class, in turn; a reader of one half of them, on the other"
    data = mnist_mini()
    one, other = (ImageSet(data.images[i::2], data.labels[i::2], name='half') for i in (0, 1))
    i = torch.arange(400).repeat_interleave(10) + torch.arange(10).repeat(400) * 500
    return dict(variety_of_real_digits=round(distances(data[:][0][i]).mean().item(), 4),
                reader_of_one_half_on_the_other=str(Reader(one).agrees(other.images, other.labels)))

def guidance(a):
    began, reader = time.time(), Reader(mnist_mini())
    drawn = {w: at_scale(w) for w in GUIDANCES}
    rows = [judged(w, x, reader) for w, x in drawn.items()]
    mosaic(to_uint8(torch.cat([x[:20] for x in drawn.values()])), 20).save(
        ASSETS/'editing'/'guidance.png')
    write(ASSETS/'editing'/'guidance.json', facts(
        'guidance', began, scales=GUIDANCES, judged=rows, **of_real_digits(), images_per_scale=400,
        labels='0..9 in turn', sampling='dpm_solver_pp, 25 steps, clipped, seed 0'))


# --- chapter 16: how few steps, and real digits that no network has seen

PLANNED = dict.fromkeys(SOLVERS, (5, 10, 20, 50)) | dict(ancestral=(5, 10, 20, 50, 100),
                                                         heun=(3, 5, 10, 25))
PLAN = [(solver, n) for solver, numbers in PLANNED.items() for n in numbers]

def of_plan(solver: str, steps: int, n=1000) -> torch.Tensor:
    "The first n of a row's images, as bytes"
    net, schedule = load(MINI)
    net, batches = net.to(memory_format=torch.channels_last), []
    labels = random_labels([0.1] * 10, 1000, 0)
    for first in range(0, n, 50):
        denoiser = clipped(guided(net, labels[first:first + 50], 0.5))
        batches.append(to_uint8(sample(denoiser, schedule, (50, *SHAPE), step=SOLVERS[solver],
                                       times=schedule.times(steps), seed=0, first=first,
                                       progress=False)))
    return torch.cat(batches)

def few_steps(a):
    eye, data, rows = digit_classifier(), mnist_mini(), []
    real, (net, schedule), began = eye(data.images), load(MINI), time.process_time()
    weights = f'{MINI} {model_hash(net, schedule)}'
    for solver, steps in PLAN:
        start = time.process_time()
        images = of_plan(solver, steps)
        seconds = time.process_time() - start
        how = Protocol(f'{eye.name} {eye.hash}', eye.dim, 1000,
                       f'mnist_mini {fingerprint(data)[:8]}', 5000, weights, solver, steps, 0.5, 0,
                       clipped=True)
        measures = evaluate(real, eye(images), how, training=real).plain()['measures']
        calls = len(SOLVERS[solver].visits(schedule.times(steps))) - 1
        rows.append(dict(solver=solver, steps=steps, calls=calls, seconds=seconds,
                         measures=measures))
        if (solver, steps) == ('ddim', 50): mosaic(images, 40).save(
            ASSETS/'evaluation'/'ddim-50.png')
    write(ASSETS/'evaluation'/'few-steps.json', made('python tools/stored.py few-steps') | dict(
        plan=PLAN, weights=weights, images_per_row=1000, labels='at random (seed 0)', guidance=0.5,
        cpu_seconds=round(time.process_time() - began), rows=rows))

def unseen(a):
    "Features of 1,000 test digits"
    test = mnist(a.root, train=False)
    some = torch.randperm(10_000, generator=torch.Generator().manual_seed(0))[:1000]
    found = digit_classifier()(test.images[some])
    keep(ASSETS/'evaluation'/'unseen.npz', **{k: getattr(found, k).float().numpy() for k in 'xp'})


# --- chapter 17: bits

def bits_of(x: torch.Tensor, y: torch.Tensor) -> dict:
    "Bits per pixel of 300 digits, and by the flow of the first 60"
    net, schedule = load(MINI)
    found = {v.__name__: bound(clipped(net), schedule, x, y, posterior=v, draws=20, seed=0)
             for v in (fixed_small, fixed_large)}
    found['flow'] = flow_bits(net, schedule, x[:60], y[:60], times=schedule.times(50, log_snr),
                              seed=0)
    return {k: dict(text=str(b)) | {f: getattr(b, f) for f in ('total', 'error', 'n')}
            for k, b in found.items()}

def flow_in(steps: int) -> float:
    "Bits per pixel of 16 digits by the flow"
    (net, schedule), (x, y) = load(MINI), mnist_mini()[::313]
    return flow_bits(net, schedule, x, y, times=schedule.times(steps, log_snr), seed=0).total

def likelihood(a):
    began, g = time.time(), torch.Generator().manual_seed(0)
    sets = {'trained on': mnist_mini(), 'held out': mnist(a.root, train=False)}
    found = {name: bits_of(*data[torch.randperm(len(data), generator=g)[:300]])
             for name, data in sets.items()}
    found['flow by steps'] = {str(n): flow_in(n) for n in (12, 25, 50, 100)}
    write(ASSETS/'likelihood'/'mnist.json', found | dict(made=facts('likelihood', began)))


# --- chapter 18: a report

def report(a):
    "The command of the chapter; its page of HTML is left out"
    began, target = time.time(), ASSETS/'report'
    words = f'{MINI} --solver dpm++ --steps 20 --bits 200 --out'
    with tempfile.TemporaryDirectory() as folder:
        evaluate_command([*words.split(), folder])
        for name in ('report.json', 'report.md', 'classes.png', 'measures.png', 'nearest.png',
                     'samples.png'): shutil.copy(Path(folder)/name, target/name)
    write(target/'about.json', dict(command=f'diffusion-evaluate {words} report', seed=0,
                                    wall_s=round(time.time() - began)))


# --- chapters 27 and 28: what a command leaves in the folder of its run

def trained(config: str, folder: str, names: tuple) -> Path:
    "Train, and keep these files of the run, with its record"
    run, target = ROOT/'runs'/'stored'/config, ASSETS/folder
    train_command([str(ROOT/'configs'/f'{config}.yaml'), f'run={run}'])
    for name in names: shutil.copy(run/name, target/name)
    facts = json.loads((run/'run.json').read_text())
    facts = {k: v for k, v in facts.items() if k != 'checksum'}
    write(target/'run.json', facts | dict(command=f'diffusion-train configs/{config}.yaml'))
    return run

def quickstart(a):
    "With forty of the images on their way from noise, a column for each class"
    run = trained('quickstart', 'quickstart',
                  ('config.yaml', 'metrics.csv', 'samples.png', 'loss.png'))
    (denoiser, schedule), config = find(run).load(), load_config(run/'config.yaml')
    frames = draw(denoiser, schedule, SHAPE, 40, torch.arange(40) % 10, config.sampling,
                  seed=config.seed, moments=14, progress=False)
    first, *others = [grid(f.x, 10) for f in frames]
    first.save(ASSETS/'quickstart'/'noise_to_images.webp', save_all=True, append_images=others,
               duration=200, loop=1, quality=30, method=6)

def transformer(a):
    trained('mnist_dit', 'transformer', ('config.yaml', 'metrics.csv', 'samples.png'))

def first_losses(config: str, n: int) -> list[float]:
    "The losses of the first n steps of such a run, in no folder"
    c, data = load_config(ROOT/'configs'/f'{config}.yaml'), mnist_mini()
    state = TrainState(make_denoiser(c, data), c.training.adam, c.training.ema)
    training = fit(state, make_schedule(c), data, **make_fit_options(c))
    return [next(training).loss for _ in range(n)]


PIECES = {'sweep': sweep, 'solvers': solvers, 'guidance': guidance, 'few-steps': few_steps,
          'unseen': unseen, 'likelihood': likelihood, 'report': report, 'quickstart': quickstart,
          'transformer': transformer}

if __name__ == '__main__': make_pieces(__doc__, PIECES)
