"""The two MNIST networks that come with the package, from nothing to their numbers. Each command
may be stopped and given again.

    python tools/mnist.py train              # configs/mnist.yaml and mnist_conditional.yaml: hours
    python tools/mnist.py ship               # averaged weights of both runs, in 16 bits, shipped
    python tools/mnist.py measure [PIECE ..] # of these and of checkpoints, into nbs/assets/mnist/
    python tools/mnist.py check              # do both runs measure as the shipped weights did?

`make reproduce-mnist` is train and check. The real digits are MNIST's 60,000, which torchvision
downloads once; --root names a folder that has them already.
"""
import argparse, json, subprocess, sys
from functools import partial
from pathlib import Path

import torch

from diffusion_scratch.config import load_config
from diffusion_scratch.data import DATA, fingerprint, mnist, to_float
from diffusion_scratch.denoiser import clipped
from diffusion_scratch.evaluation import nearest
from diffusion_scratch.features import digit_classifier
from diffusion_scratch.likelihood import bound
from diffusion_scratch.pretrained import SHIPPED
from diffusion_scratch.report import Report, evaluate_model, reference
from diffusion_scratch.solvers import ddim, dpm_solver_pp

import results
from results import (SOLVERS, compare, floors, in_random_order, network, numbers, steps_done,
                     write)

ROOT = Path(__file__).resolve().parent.parent
ASSETS, RUNS = ROOT/'nbs'/'assets'/'mnist', ROOT/'runs'
# The name of the weights -> that of the config and of its run
CONFIG = {'mnist': 'mnist', 'mnist-conditional': 'mnist_conditional'}
GUIDANCE, ROW, SHAPE = 0.5, 500, (1, 28, 28)  # unless a row says otherwise; images of a row


def keep(name: str, **arrays): results.keep(ASSETS/f'{name}.npz', **arrays)

def made(**more) -> dict: return results.made('python tools/mnist.py measure', **more)

# --- training, and into the package

def train(a):
    program = Path(sys.executable).with_name('diffusion-train')
    root = [f'data.root={a.root}'] if a.root != DATA else []
    for config in CONFIG.values():
        line = [program, f'configs/{config}.yaml', f'run={RUNS/config}', *root]
        subprocess.run(line, cwd=ROOT, check=True)

def ship(a):
    for name, config in CONFIG.items():
        run = RUNS/config
        c, rows = load_config(run/'config.yaml'), steps_done(run)
        if len(rows) < c.training.steps:
            sys.exit(f'{run} has made {len(rows):,} of {c.training.steps:,} steps; let '
                     '`python tools/mnist.py train` finish it')
        results.ship(run, SHIPPED/name, ROOT/'configs'/f'{config}.yaml', 'MNIST',
                     ASSETS/f'{name}.json')


# --- measuring

def draw(net, n: int, folder: str, guidance=GUIDANCE, **how):
    "n digits of what `network` returned, kept in runs/mnist_images, and what they should be"
    return results.draw(net, SHAPE, n, RUNS/'mnist_images'/folder, guidance, **how)

def whole(name: str, source, a) -> Report:
    "10,000 images and their numbers, which those of a run of your own are checked against"
    denoiser, schedule, classes = network(source)
    return evaluate_model(denoiser, schedule, mnist(a.root), RUNS/'mnist_images'/name, n=a.n,
                          step=ddim(), steps=50, classes=classes, guidance=GUIDANCE, name=name)

class Rows(results.Rows):
    "Rows of a table of this chapter"
    def __init__(self, piece: str, a, **facts):
        eye, data = digit_classifier(), mnist(a.root)
        # the digits of a class do not come in a row, nor do those of a writer
        real = in_random_order(reference(eye, data))
        facts = made(extractor=f'{eye.name} {eye.hash}',
                     real=f'{data.name} {fingerprint(data)[:12]}', **facts)
        super().__init__(ASSETS/f'{piece}.json', SHAPE, RUNS/'mnist_images', eye, facts,
                         partial(numbers, real), partial(floors, real))

    def add(self, key: dict, source, step=ddim(), steps=50, guidance=GUIDANCE, ema=True, n=ROW):
        super().add(key, source, step, steps, guidance, n, ema)

def by_steps(a):
    rows = Rows('steps', a, weights='mnist')
    for steps in (5, 10, 20, 50, 100, 250, 1000):
        for solver, step in SOLVERS.items():
            n = ROW if steps < 1000 else 200
            rows.add(dict(solver=solver, steps=steps), 'mnist', step, steps, n=n)

def by_guidance(a):
    rows = Rows('guidance', a, weights='mnist-conditional', solver='ddim', steps=50)
    for w in (0., 0.2, 0.3, 0.5, 1., 2., 4.):
        rows.add(dict(guidance=w), 'mnist-conditional', guidance=w)

def by_training(a):
    "Checkpoints on the way, averaged weights and last ones"
    rows = Rows('training', a, solver='dpm_solver_pp', steps=20, guidance=GUIDANCE)
    for name, config in CONFIG.items():
        for step in (1000, 2000, 4000, 8000, 15000):
            file = RUNS/config/'checkpoints'/f'step_{step:08d}.safetensors'
            for ema in (True, False):
                key = dict(weights=name, step=step, ema=ema)
                rows.add(key, file, dpm_solver_pp(), 20, ema=ema)

def bits(a):
    "The variational bound of digits that were learned, and of digits that were not"
    found, sets = {}, {'trained on': mnist(a.root), 'held out': mnist(a.root, train=False)}
    for name in CONFIG:
        denoiser, schedule, classes = network(name)
        for what, data in sets.items():
            i = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:500]
            y = data.labels[i] if classes else None
            b = bound(clipped(denoiser), schedule, to_float(data.images[i]), y, draws=50, seed=0)
            found |= {f'{name}, {what}': {k: v for k, v in b._asdict().items() if k != 'each'}}
    write(ASSETS/'bits.json', dict(made=made(), found=found))

def neighbours(a):
    "The real digits that are nearest to the first 64 of each network, in pixels and in features"
    eye, data = digit_classifier(), mnist(a.root)
    real, pixels, kept = reference(eye, data), to_float(data.images).flatten(1), {}
    for name in CONFIG:
        images = draw(network(name), 64, f'{name}-nearest')[0]
        near = dict(pixels=nearest(to_float(images).flatten(1), pixels),
                    features=nearest(eye(images).x, real.x))
        kept |= {f'{name} {space}': data.images[n.index].numpy() for space, n in near.items()}
        kept[name] = images.numpy()
    keep('nearest', **kept)

def losses(a):
    "Means over each 100 steps"
    found = {name: results.loss_curve(steps_done(RUNS/config)) for name, config in CONFIG.items()}
    write(ASSETS/'loss.json', dict(made=made(), found=found))

def report(name, a):
    "The numbers of 10,000 images, and the 32 of them that the classifier is least sure of"
    found = whole(name, name, a)
    write(ASSETS/f'{name}.json', found.plain())
    unsure = digit_classifier()(found.images).p.amax(1).argsort()[:32]
    keep(f'{name}-worst', worst=found.images[unsure].numpy())

PIECES = {'loss': losses, 'nearest': neighbours, 'guidance': by_guidance,
          **{n: partial(report, n) for n in CONFIG},
          'training': by_training, 'bits': bits, 'steps': by_steps}

def measure(a): results.measure(ASSETS, PIECES, a)

def check(a):
    "Exit 1 where a number of a run lies outside the interval of the shipped weights"
    missed = 0
    if missing := [n for n in CONFIG if not (ASSETS/f'{n}.json').exists()]:
        sys.exit(f"{ASSETS} has no numbers of {', '.join(missing)} yet; `python tools/mnist.py "
                 f"measure {' '.join(missing)}` makes them from the shipped weights")
    for name, config in CONFIG.items():
        published = json.loads((ASSETS/f'{name}.json').read_text())['measures']
        own = whole(config, RUNS/config, a).plain()['measures']
        missed += compare(name, published, own)
    sys.exit(f'{missed} outside' if missed else 0)


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('command', choices=['train', 'ship', 'measure', 'check'])
    p.add_argument('pieces', nargs='*', help=f"of measure, all if none: {', '.join(PIECES)}")
    p.add_argument('--root', type=Path, default=DATA,
                   help='folder of MNIST (default: where torchvision puts it)')
    p.add_argument('--n', type=int, default=10_000, help='images of a report (default 10000)')
    a = p.parse_intermixed_args()
    wrong = [piece for piece in a.pieces if piece not in PIECES or a.command != 'measure']
    if wrong: p.error(f"{a.command} {wrong[0]} is not allowed; allowed: {', '.join(PIECES)} "
                      'after measure')
    dict(train=train, ship=ship, measure=measure, check=check)[a.command](a)


if __name__ == '__main__': main()
