"""The CIFAR-10 network and classifier that come with the package, from nothing to their numbers.
Each command may be stopped and given again.

    python tools/cifar10.py classifier         # train and ship the classifier: half an hour
    python tools/cifar10.py train              # configs/cifar10_small.yaml: hours
    python tools/cifar10.py ship [--run RUN]   # averaged weights, of a run that may still go on
    python tools/cifar10.py measure [PIECE ..] # of the shipped weights, into nbs/assets/cifar10/
    python tools/cifar10.py check [--run RUN]  # does a run measure as the shipped weights did?

`make reproduce-cifar10` is train and check. To train the shipped weights further in a new run, give
train --start cifar10: the weights are carried over in 16 bits, and the optimizer begins anew.

The images are CIFAR-10, which torchvision downloads once. --root names a folder that has its
files already, or a folder with train/<class>/ and test/<class>/ of image files.
"""
import argparse, json, sys, time
from datetime import datetime, timezone
from functools import cache, partial
from pathlib import Path

import torch

from diffusion_scratch.checkpoint import atomic, checkpoints
from diffusion_scratch.config import load_config
from diffusion_scratch.data import DATA, ImageSet, cifar10, fingerprint, image_folder, to_float
from diffusion_scratch.evaluation import confidence, interval, kernel_distance, nearest
from diffusion_scratch.features import (EXTRACTORS, Features, ResidualClassifier, load_classifier,
                                        object_classifier, save_classifier, shifted_and_mirrored,
                                        train_classifier)
from diffusion_scratch.pretrained import SHIPPED, load
from diffusion_scratch.report import Report, evaluate_model, model_hash, random_labels, reference
from diffusion_scratch.run import keep_freed_memory, processor_name
from diffusion_scratch.solvers import dpm_solver_pp

import results
from results import (BATCH, SOLVERS, compare, equally_many, in_random_order, loss_curve, network,
                     read_right, steps_done, write)

ROOT = Path(__file__).resolve().parent.parent
ASSETS, RUNS = ROOT/'nbs'/'assets'/'cifar10', ROOT/'runs'
NAME, CONFIG = 'cifar10', 'cifar10_small'  # of the weights, and of their config and run
SETTINGS = dict(epochs=12, batch=128, lr=5e-3, weight_decay=0.05, bf16=True, seed=0)
GUIDANCE, SCALES, SHAPE = 1., (0., 0.5, 1., 2., 4.), (3, 32, 32)
EVALUATIONS = 10, 20, 50
STEP, STEPS = dpm_solver_pp(), 20          # unless a row says otherwise
PUBLISHED = 'CIFAR-10, the published pixels'
LOSSY = 'CIFAR-10 as JPEG files (lossy: not the published pixels)'


# --- images

@cache
def images(root: Path, train: bool=True) -> ImageSet:
    "CIFAR-10, from a folder of image files for each class if `root` has them"
    folder = root/('train' if train else 'test')
    if not folder.is_dir(): return cifar10(root, train)
    return image_folder(folder, 32, labels=True, cache=RUNS/'object-classifier'/folder.name)

def origin(root: Path) -> str:
    "Where the images come from, in words"
    return LOSSY if (root/'train').is_dir() else PUBLISHED


# --- the classifier

def classifier(a):
    "Train the classifier, measure it on the test images, and put it into the package"
    torch.set_num_threads(1)
    data, test = images(a.root), images(a.root, train=False)
    kept, began = RUNS/'object-classifier'/'state.safetensors', time.process_time()
    resumed = kept.exists()
    net, losses = train_classifier(data, network=ResidualClassifier, augment=shifted_and_mirrored,
                                   keep=kept, **SETTINGS)
    seconds = round(time.process_time() - began)
    words = ', '.join(f'{k}={v}' for k, v in SETTINGS.items())
    made = dict(command=f'python tools/cifar10.py classifier, which is train_classifier(data, '
                        f'network=ResidualClassifier, augment=shifted_and_mirrored, {words})',
                seed=SETTINGS['seed'], origin=origin(a.root), data=repr(data),
                data_sha256=fingerprint(data), parameters=sum(p.numel() for p in net.parameters()),
                date=datetime.now(timezone.utc).date().isoformat(), device='cpu', threads=1,
                cpu=processor_name(), cpu_s=None if resumed else seconds, torch=torch.__version__,
                losses=[round(v, 4) for v in losses])
    about = dict(name='object-classifier', made=made)
    draft = save_classifier(net, RUNS/'object-classifier'/'draft', about)
    about['test'] = tested(load_classifier(draft), test, a.root)
    folder = save_classifier(net, EXTRACTORS/'object-classifier', about)
    with atomic(folder/'README.md') as part:
        part.write_text(readme(about, load_classifier(folder).hash), encoding='utf-8')
    print(folder, about['test']['accuracy'])

def tested(eye, test: ImageSet, root: Path) -> dict:
    "Accuracy and mean confidence on images that were not used in training, by confidence"
    p = eye(test.images).p
    sure, right = p.max(1).values, (p.argmax(1) == test.labels).double()
    edges, table = (0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1), []
    for low, high in zip(edges, edges[1:]):
        there = (sure >= low) & ((sure < high) | (high == 1))
        table.append({'from': low, 'to': high, 'n': int(there.sum()),
                      'claimed': round(sure[there].mean().item(), 6),
                      'right': round(right[there].mean().item(), 6)})
    return dict(data=f'the {len(test):,} test images of {origin(root)}',
                data_sha256=fingerprint(test), n=len(test), accuracy=right.mean().item(),
                confidence=round(sure.mean().item(), 6), reliability=table)

def readme(about: dict, digest: str) -> str:
    made, test = about['made'], about['test']
    cost = f"{made['cpu_s']} s of processor time" if made['cpu_s'] else 'several sittings'
    rows = {'network': 'diffusion_scratch.features:ResidualClassifier, '
                       f"{made['parameters']:,} weights in 16 bits",
            'made': f"{made['command']}; {made['date']}, torch {made['torch']}, cpu, 1 thread, "
                    f'{cost}',
            'data': f"the 50,000 training images of {made['origin']}, "
                    f"fingerprint {made['data_sha256'][:12]}",
            'right': f"{test['accuracy']:.2%} of {test['data']}, "
                     f"at a mean confidence of {test['confidence']:.2%}",
            'hash': digest}
    return '\n'.join([
        '# object-classifier', '',
        'A classifier of CIFAR-10. Its last hidden layer, 128 numbers, is what diffusion_scratch '
        'compares images of 3 x 32 x 32 by. A Fréchet distance in these features is not FID.', '',
        '| | |', '| --- | --- |', *(f'| {k} | {v} |' for k, v in rows.items()), '',
        '```python', 'from diffusion_scratch.features import object_classifier',
        'features, probabilities = object_classifier()(images)', '```', ''])


# --- the network: training, and into the package

def of_root(root: Path) -> list[str]:
    "What a config needs to find the images"
    if (root/'train').is_dir():
        return ['data.name=folder', f'data.root={root}/train', 'data.size=32',
                'data.subfolders=true']
    return [] if root == DATA else [f'data.root={root}']

def train(a):
    results.train(ROOT/'configs'/f'{CONFIG}.yaml', a, of_root(a.root))

def ship(a):
    "The averaged weights of the newest checkpoint, with the facts of all sittings"
    published = load_config(a.run/'config.yaml').data.name == NAME
    results.ship(a.run, a.to, ROOT/'configs'/f'{CONFIG}.yaml', PUBLISHED if published else LOSSY,
                 ASSETS/'seed0.json')


# --- measuring

def keep(name: str, **arrays): results.keep(ASSETS/f'{name}.npz', **arrays)

def made(a, **more) -> dict:
    eye, data, test = object_classifier(), images(a.root), images(a.root, train=False)
    return results.made('python tools/cifar10.py measure', extractor=f'{eye.name} {eye.hash}',
                        weights=f'{NAME} {model_hash(*load(a.weights))}', origin=origin(a.root),
                        real=fingerprint(data)[:12], held_out=fingerprint(test)[:12], **more)

def whole(name: str, source, a, seed: int) -> Report:
    "Many images and their numbers, with real test images in their place"
    denoiser, schedule, classes = network(source)
    return evaluate_model(denoiser, schedule, images(a.root), RUNS/'cifar10_images'/f'{name}{seed}',
                          n=a.n, step=STEP, steps=STEPS, classes=classes, guidance=GUIDANCE,
                          seed=seed, name=NAME, held_out=images(a.root, train=False))

def report(a):
    "A report for each seed; of the first, the images that the classifier reads worst, and median"
    for seed in range(a.seeds):
        found = whole('seed', a.weights, a, seed)
        write(ASSETS/f'seed{seed}.json', found.plain() | dict(facts=made(a)))
        if seed: continue
        p = object_classifier()(found.images).p
        order = p[torch.arange(len(p)), found.labels].argsort()  # of the class asked for
        for name, some in dict(worst=order[:20], median=order[len(order) // 2 - 10:][:20]).items():
            keep(name, images=found.images[some].numpy(), asked=found.labels[some].numpy(),
                 read=p[some].argmax(1).numpy())

def row_numbers(real: Features, fake: Features) -> dict:
    "What a row says of its images; a row may have too few for a Fréchet distance"
    shares = interval(equally_many, real.x, fake.x, within=(0., 1.))
    return dict(kernel_distance=interval(kernel_distance, real.x, fake.x), **shares._asdict(),
                confidence=interval(confidence, fake.p, within=(0., 1.)))

class Rows(results.Rows):
    "Rows of a table of this chapter, with real test images in the place of generated ones"
    def __init__(self, piece: str, a, **facts):
        eye, self.source, self.n = object_classifier(), a.weights, a.row
        test = images(a.root, train=False)
        place = in_random_order(reference(eye, test))
        labels = in_random_order(Features(test.labels, test.labels)).x
        real = Features(*(v[:5000] for v in in_random_order(reference(eye, images(a.root)))))
        def floor_of(n):
            some = Features(place.x[:n], place.p[:n])
            return row_numbers(real, some) | dict(label_accuracy=read_right(some.p, labels[:n]))
        facts = made(a, reference=f'{len(real.x):,} of the training images', **facts)
        super().__init__(ASSETS/f'{piece}.json', SHAPE, RUNS/'cifar10_images', eye, facts,
                         partial(row_numbers, real), floor_of)

    def add(self, key: dict, source=None, step=STEP, steps=None, guidance=GUIDANCE):
        super().add(key, source or self.source, step, steps or STEPS, guidance, self.n)

def by_guidance(a):
    rows = Rows('guidance', a, solver=repr(STEP), steps=STEPS)
    for w in SCALES: rows.add(dict(guidance=w), guidance=w)

def by_steps(a):
    rows = Rows('steps', a, guidance=GUIDANCE)
    for steps in EVALUATIONS:
        for solver, step in SOLVERS.items():
            taken = steps // 2 if solver == 'heun' else steps  # evaluations, not steps
            rows.add(dict(solver=solver, evaluations=steps), step=step, steps=taken)

def by_training(a):
    "The averaged weights of all checkpoints that the run has kept"
    rows = Rows('training', a, solver=repr(STEP), steps=STEPS, guidance=GUIDANCE)
    for file in checkpoints(a.run)[::-1]:
        rows.add(dict(step=int(file.stem.removeprefix('step_'))), file)

def neighbours(a):
    "The training images that are nearest to six images of seed 0, in pixels and in features"
    eye, data, y = object_classifier(), images(a.root), random_labels([0.1] * 10, BATCH, 0)
    real, pixels = reference(eye, data), to_float(data.images).flatten(1)
    first = [int((y == c).nonzero()[0]) for c in (0, 1, 3, 5, 7, 8)]
    drawn = results.draw(network(a.weights), SHAPE, max(first) + 1, RUNS/'cifar10_images'/'nearest',
                         GUIDANCE, step=STEP, steps=STEPS)[0][first]
    near = dict(pixels=nearest(to_float(drawn).flatten(1), pixels),
                features=nearest(eye(drawn).x, real.x))
    keep('nearest', drawn=drawn.numpy(),
         **{space: data.images[n.index].numpy() for space, n in near.items()})

def test_images(a):
    "Four real test images, for inpainting: the first of a frog, a horse, a ship and a truck"
    data = images(a.root, train=False)
    first = torch.tensor([int((data.labels == c).nonzero()[0]) for c in (6, 7, 8, 9)])
    keep('real', images=data.images[first].numpy(), labels=data.labels[first].numpy())

def losses(a):
    "The loss of each 100 steps of the run"
    write(ASSETS/'loss.json', dict(made=results.made('python tools/cifar10.py measure loss'),
                                   found=loss_curve(steps_done(a.run))))

PIECES = {'loss': losses, 'real': test_images, 'nearest': neighbours, 'guidance': by_guidance,
          'report': report, 'steps': by_steps, 'training': by_training}

def measure(a): results.measure(ASSETS, PIECES, a)

def check(a):
    "Exit 1 where a number of a run lies outside the interval of the shipped weights"
    if not (ASSETS/'seed0.json').exists():
        sys.exit(f'{ASSETS} has no numbers yet; `python tools/cifar10.py measure report` makes '
                 'them from the shipped weights')
    published = json.loads((ASSETS/'seed0.json').read_text())
    a.n = published['protocol']['generated']
    own = whole('check', a.run, a, 0).plain()['measures']
    missed = compare(a.run.name, published['measures'], own)
    sys.exit(f'{missed} outside' if missed else 0)


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = dict(classifier=classifier, train=train, ship=ship, measure=measure, check=check)
    p.add_argument('--root', type=Path, default=DATA,
                   help='folder of CIFAR-10 (default: where torchvision puts it)')
    p.add_argument('--run', type=Path, default=RUNS/CONFIG, help='(default runs/cifar10_small)')
    p.add_argument('--to', type=Path, default=SHIPPED/NAME, help='of ship (default: the package)')
    p.add_argument('--weights', default=NAME, help='of measure (default cifar10)')
    p.add_argument('--n', type=int, default=10_000, help='images of a report (default 10000)')
    p.add_argument('--seeds', type=int, default=3, help='reports (default 3)')
    p.add_argument('--row', type=int, default=500, help='images of a row (default 500); they are '
                   'kept, and a larger number adds to them')
    a = results.arguments(p, commands, PIECES)
    keep_freed_memory()
    commands[a.command](a)


if __name__ == '__main__': main()
