"""The network of faces that comes with the package, from nothing to its numbers. Each command may
be stopped and given again.

    pip install 'diffusion_scratch[faces]'
    python tools/faces_network.py train              # configs/faces.yaml: hours
    python tools/faces_network.py ship [--run RUN]   # averaged weights, of a run that may go on
    python tools/faces_network.py measure [PIECE ..] # of these weights, into nbs/assets/faces/
    python tools/faces_network.py check [--run RUN]  # does a run measure as these weights did?

`make reproduce-faces` is train and check. The faces are made where they are missing, by
tools/faces.py: 20,000 for training (seed 0, nobody with a hat has a red beard), 5,000 others (seed
2), which no network has seen. Attributes are read by the classifier of tools/face_classifier.py.
To train the shipped weights further in a new run, give train --start faces.
"""
import argparse, json, sys, time
from functools import cache
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from diffusion_scratch.data import ImageSet, count_classes, fingerprint, image_folder
from diffusion_scratch.features import face_classifier, most_likely
from diffusion_scratch.pretrained import SHIPPED, load
from diffusion_scratch.report import evaluate_model, generate, model_hash, random_rows
from diffusion_scratch.run import keep_freed_memory
from diffusion_scratch.solvers import dpm_solver_pp

import faces, results
from results import BATCH, compare, loss_curve, steps_done, write

ROOT = Path(__file__).resolve().parent.parent
ASSETS, RUNS, CONFIG = ROOT/'nbs'/'assets'/'faces', ROOT/'runs', ROOT/'configs'/'faces.yaml'
NAME, SHAPE, WITHOUT = 'faces', (3, 64, 64), dict(hat='yes', beard='red')
GUIDANCE, STEP, STEPS = 1., dpm_solver_pp(), 20
BEARDS = 'black', 'brown', 'blond', 'red'  # asked for with a hat; the last was held out


# --- images

@cache
def images(root: Path, held_out: bool=False) -> ImageSet:
    "The faces of the training, or those that no network has seen"
    folder = root/('held_out' if held_out else 'train')
    if held_out: faces.make(folder, 5000, seed=2)
    else: faces.make(folder, without=[WITHOUT])
    return image_folder(folder, 64, attributes='attributes.csv',
                        cache=root/f'{folder.name}.cache')

def train(a):
    faces.make(a.root/'train', without=[WITHOUT])
    results.train(CONFIG, a, [f'data.root={a.root}/train'])

def ship(a):
    made_by = 'cartoon faces of tools/faces.py, seed 0, nobody with a hat has a red beard'
    results.ship(a.run, a.to, CONFIG, made_by, ASSETS/'seed0.json')


# --- measuring

def made(a, **more) -> dict:
    eye = face_classifier()
    return results.made('python tools/faces_network.py measure', solver=repr(STEP), steps=STEPS,
                        extractor=f'{eye.name} {eye.hash}',
                        weights=f'{NAME} {model_hash(*load(a.weights))}',
                        real=fingerprint(images(a.root))[:12],
                        held_out=fingerprint(images(a.root, True))[:12], **more)

def network(source):
    denoiser, schedule = load(source)
    return denoiser.to(memory_format=torch.channels_last), schedule

def whole(source, a, seed: int):
    "Many faces and their numbers, with faces that no network has seen in their place"
    denoiser, schedule = network(source)
    return evaluate_model(denoiser, schedule, images(a.root), RUNS/'faces_images'/f'{a.name}{seed}',
                          n=a.n, step=STEP, steps=STEPS, guidance=GUIDANCE, seed=seed, name=NAME,
                          held_out=images(a.root, True), extractor=face_classifier())

def report(a):
    "A report for each seed"
    for seed in range(a.seeds):
        write(ASSETS/f'seed{seed}.json', whole(a.weights, a, seed).plain() | dict(facts=made(a)))

def read(drawn: Tensor) -> Tensor:
    "The attributes that the classifier reads, (n,A)"
    eye = face_classifier()
    return most_likely(eye(drawn).p, count_classes(eye.classes))

def asked_for(a, table: Tensor, n: int, folder: str, guidance: float) -> tuple[Tensor, float]:
    """n faces with the attributes of random rows of a table (-1 stands for any), and the seconds
    that they took"""
    denoiser, schedule = network(a.weights)
    began = time.process_time()
    drawn, _ = generate(denoiser, schedule, SHAPE, n, RUNS/'faces_images'/folder, step=STEP,
                        steps=STEPS, table=table, guidance=guidance, batch=BATCH)
    return drawn, time.process_time() - began

def counted(rows: Tensor, classes: dict) -> dict:
    "For each two attributes, how often each two values occur together"
    sizes = {name: len(values) for name, values in classes.items()}
    table = {}
    for (i, a), (j, b) in combinations(enumerate(sizes), 2):
        cells = rows[:, i] * sizes[b] + rows[:, j]
        table[f'{a}, {b}'] = cells.bincount(minlength=sizes[a] * sizes[b]).view(
            sizes[a], sizes[b]).tolist()
    return table

def independent(a):
    "Faces that are drawn without any attribute: which attributes occur together?"
    data = images(a.root)
    anyone = torch.full((a.row, len(data.classes)), -1)
    drawn, seconds = asked_for(a, anyone, a.row, 'any', 0.)
    facts = made(a, guidance=0., images=a.row, cpu_seconds=round(seconds))
    tables = dict(drawn=counted(read(drawn), data.classes),
                  training=counted(data.labels, data.classes))
    write(ASSETS/'independent.json', dict(made=facts, classes=data.classes, **tables))

def with_hat(a, color: str, guidance: float, rows: int,
             n: int) -> tuple[list, Tensor, Tensor, float]:
    "n faces for a hat and a beard: columns and values of both, what is read, seconds"
    held = images(a.root, True)  # the other attributes come from faces that it has not seen
    columns = [list(held.classes).index(name) for name in ('hat', 'beard')]
    wanted = torch.tensor([held.classes['hat'].index('yes'), held.classes['beard'].index(color)])
    table = random_rows(held.labels, rows, seed=3).clone()
    table[:, columns] = wanted
    drawn, seconds = asked_for(a, table, n, f'hat-{color}-{guidance}', guidance)
    return columns, wanted, read(drawn), seconds

def combined(a):
    "Hats with beards: the combination that was held out, beside three that were not"
    found = []
    for guidance in (0., GUIDANCE, 3.):
        for color in BEARDS:
            n = a.row // 4
            columns, wanted, seen, seconds = with_hat(a, color, guidance, n, n)
            right = seen[:, columns] == wanted
            found.append(dict(
                hat='yes', beard=color, guidance=guidance, images=n,
                cpu_seconds=round(seconds), both=int(right.all(1).sum()),
                hats=int(right[:, 0].sum()), beards=int(right[:, 1].sum()),
                first=seen[:8].tolist()))  # what is read of the first faces
            print(found[-1], flush=True)
    held = images(a.root, True)
    both = (held.labels[:, columns] == wanted).all(1)  # real hats with red beards
    right = (read(held.images[both])[:, columns] == wanted).all(1)
    real = dict(images=int(both.sum()), both=int(right.sum()))
    write(ASSETS/'combined.json', dict(made=made(a), rows=found, real=real))

def losses(a):
    write(ASSETS/'loss.json', dict(made=results.made('python tools/faces_network.py measure loss'),
                                   found=loss_curve(steps_done(a.run))))

PIECES = {'loss': losses, 'report': report, 'independent': independent, 'combined': combined}

def measure(a): results.measure(ASSETS, PIECES, a)

def check(a):
    "Exit 1 where a number of a run lies outside the interval of the shipped weights"
    published = json.loads((ASSETS/'seed0.json').read_text())
    a.n, a.name = published['protocol']['generated'], 'check'
    missed = compare(a.run.name, published['measures'], whole(a.run, a, 0).plain()['measures'])
    sys.exit(f'{missed} outside' if missed else 0)


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = dict(train=train, ship=ship, measure=measure, check=check)
    p.add_argument('--root', type=Path, default=RUNS/'faces_data', help='folder for the faces')
    p.add_argument('--run', type=Path, default=RUNS/'faces', help='(default runs/faces)')
    p.add_argument('--to', type=Path, default=SHIPPED/NAME, help='of ship (default: the package)')
    p.add_argument('--weights', default=NAME, help='of measure (default faces)')
    p.add_argument('--n', type=int, default=500, help='images of a report (default 500)')
    p.add_argument('--seeds', type=int, default=1, help='reports (default 1)')
    p.add_argument('--row', type=int, default=400, help='images of the other pieces (default 400)')
    a = results.arguments(p, commands, PIECES)
    a.name = 'seed'
    keep_freed_memory()
    commands[a.command](a)


if __name__ == '__main__': main()
