"""The two MNIST networks that come with the package, from nothing to their numbers. Each command
may be stopped and given again.

    python tools/mnist.py train              # configs/mnist.yaml and mnist_conditional.yaml: hours
    python tools/mnist.py ship               # averaged weights of both runs, in 16 bits, shipped
    python tools/mnist.py measure [PIECE ..] # of these and of checkpoints, into nbs/assets/mnist/
    python tools/mnist.py check              # do both runs measure as the shipped weights did?

`make reproduce-mnist` is train and check. The real digits are MNIST's 60,000, which torchvision
downloads once; --root names a folder that has them already.
"""
import argparse, csv, json, math, subprocess, sys, time
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import numpy as np
import torch

from diffusion_scratch.config import load_config
from diffusion_scratch.data import DATA, fingerprint, mnist, to_float
from diffusion_scratch.denoiser import clipped
from diffusion_scratch.evaluation import (Estimate, confidence, floor, frechet_distance, interval,
                                          nearest, precision_recall)
from diffusion_scratch.features import Features, digit_classifier
from diffusion_scratch.likelihood import bound
from diffusion_scratch.pretrained import SHIPPED, find, save
from diffusion_scratch.report import Report, evaluate_model, generate, reference
from diffusion_scratch.sampling import ancestral
from diffusion_scratch.solvers import ddim, dpm_solver_pp, heun
from diffusion_scratch.checkpoint import atomic

ROOT = Path(__file__).resolve().parent.parent
ASSETS, RUNS = ROOT/'nbs'/'assets'/'mnist', ROOT/'runs'
# The name of the weights -> that of the config and of its run
CONFIG = {'mnist': 'mnist', 'mnist-conditional': 'mnist_conditional'}
SOLVERS = {'ancestral': ancestral(), 'ddim': ddim(), 'dpm_solver_pp': dpm_solver_pp(),
           'dpm_solver_pp(1)': dpm_solver_pp(1.), 'heun': heun()}
CHECKED = 'frechet_distance', 'precision', 'recall', 'confidence', 'memorised', 'label_accuracy'
GUIDANCE, ROW, BATCH = 0.5, 500, 100  # unless a row says otherwise; images of a row, and at a time


def write(file: Path, content):
    "JSON that appears whole or not at all"
    text = json.dumps(content, indent=1, ensure_ascii=False) + '\n'
    with atomic(file) as part: part.write_text(text, encoding='utf-8')

def keep(name: str, **arrays):
    "Arrays that appear whole or not at all"
    with atomic(ASSETS/f'{name}.npz') as part, open(part, 'wb') as f:
        np.savez_compressed(f, **arrays)

def made(**more) -> dict:
    date = datetime.now(timezone.utc).isoformat(timespec='seconds')
    return dict(command='python tools/mnist.py measure', date=date, torch=torch.__version__,
                cpu=cpu(), threads=torch.get_num_threads(), seed=0, **more)

def cpu() -> str:
    "What /proc calls this processor"
    try:
        names = (l.partition(':')[2] for l in open('/proc/cpuinfo') if l.startswith('model name'))
        return next(names).strip()
    except (OSError, StopIteration): return 'unknown'


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
        c, rows = load_config(run/'config.yaml'), list(csv.DictReader(open(run/'metrics.csv')))
        if len(rows) < c.training.steps:
            sys.exit(f'{run} has made {len(rows):,} of {c.training.steps:,} steps; let '
                     '`python tools/mnist.py train` finish it')
        found = find(run)
        session = json.loads((run/'manifest.json').read_text())['sessions'][-1]
        denoiser, schedule = found.load()
        facts = {k: session[k] for k in ('seed', 'date', 'commit', 'torch', 'device', 'threads',
                                         'parameters', 'data', 'data_sha256')}
        batch = c.training.batch_size
        seconds = sum(batch / float(r['images_per_second']) for r in rows)
        about = found.about | dict(ema=True, made=dict(
            command=f'diffusion-train configs/{config}.yaml', **facts,
            cpu=session.get('processor', cpu()), cpu_capability=session.get('cpu_capability'),
            data_name=c.data.name, steps=len(rows), images=len(rows) * batch,
            training_seconds=round(seconds)))
        file = ASSETS/f'{name}.json'
        if file.exists(): about['measured'] = summary(json.loads(file.read_text()))
        print(save(denoiser, schedule, SHIPPED/name, about, dtype=torch.float16))

def summary(report: dict) -> dict:
    "The measures of a report, each as value [95 % interval]"
    def text(e): return f"{e['value']:.4g} [{e['low']:.4g}, {e['high']:.4g}]"
    numbers = {k: f"{text(m['value'])}, real images in their place {text(m['floor'])}"
               for k, m in report['measures'].items() if k in CHECKED}
    return dict(protocol=report['protocol_in_words']) | numbers


# --- measuring

def network(source, ema=True):
    "Weights by name or path, laid out as a CPU likes them, their schedule, and their classes"
    found = find(source)
    denoiser, schedule = found.load(ema)
    return denoiser.to(memory_format=torch.channels_last), schedule, len(found.about['classes'])

def draw(net, n: int, folder: str, guidance=GUIDANCE, **how):
    "n digits of what `network` returned, kept in runs/mnist_images, and what they should be"
    denoiser, schedule, classes = net
    shares = [1 / classes] * classes if classes else None
    return generate(denoiser, schedule, (1, 28, 28), n, RUNS/'mnist_images'/folder, shares=shares,
                    guidance=guidance, batch=BATCH, **how)

def whole(name: str, source, a) -> Report:
    "10,000 images and their numbers, which those of a run of your own are checked against"
    denoiser, schedule, classes = network(source)
    return evaluate_model(denoiser, schedule, mnist(a.root), RUNS/'mnist_images'/name, n=a.n,
                          step=ddim(), steps=50, classes=classes, guidance=GUIDANCE, name=name)

def equally_many(real, fake): return precision_recall(real[:len(fake)], fake)
def of_fakes(real, fake): return confidence(fake)

def numbers(real: Features, fake: Features) -> dict[str, Estimate]:
    "What a row says of its images"
    distance = interval(frechet_distance, real.x, fake.x, within=(0., math.inf))
    shares = interval(equally_many, real.x, fake.x, within=(0., 1.))
    return dict(frechet_distance=distance, frechet_limit=distance.unbiased, **shares._asdict(),
                confidence=interval(confidence, fake.p, within=(0., 1.)))

def floors(real: Features, n: int) -> dict[str, Estimate]:
    "The same of n real digits in their place"
    return dict(frechet_distance=floor(frechet_distance, real.x, n),
                **floor(equally_many, real.x, n)._asdict(),
                confidence=floor(of_fakes, real.p, n))

def plain(estimates: dict[str, Estimate]) -> dict:
    return {k: e._asdict() for k, e in estimates.items()}

class Rows:
    "Rows of a table, each kept as soon as it is there"
    def __init__(self, piece: str, a, **facts):
        self.file, self.eye, data = ASSETS/f'{piece}.json', digit_classifier(), mnist(a.root)
        seen = reference(self.eye, data)
        # the digits of a class do not come in a row, nor do those of a writer
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        self.real = Features(*(v[order] for v in seen))
        self.made = made(extractor=f'{self.eye.name} {self.eye.hash}',
                         real=f'{data.name} {fingerprint(data)[:12]}', **facts)

    def there(self) -> tuple[list[dict], dict]:
        "Rows and floors so far; another process may add to them too"
        table = json.loads(self.file.read_text()) if self.file.exists() else dict(rows=[], floor={})
        return table['rows'], table['floor']

    def add(self, key: dict, source, step=ddim(), steps=50, guidance=GUIDANCE, ema=True, n=ROW):
        if any(r.items() >= key.items() for r in self.there()[0]): return
        net, folder = network(source, ema), '-'.join(map(str, [self.file.stem, *key.values()]))
        there = len(list((RUNS/'mnist_images'/folder).glob('images/*.safetensors')))
        began = time.process_time()
        images, y = draw(net, n, folder, guidance, step=step, steps=steps)
        seconds = (time.process_time() - began) * n / max(BATCH, n - there * BATCH)
        fake = self.eye(images)
        found = numbers(self.real, fake)
        if y is not None:
            right = (fake.p.argmax(1) == y).double()
            share = interval(lambda right: right.mean().item(), right, within=(0., 1.))
            found['label_accuracy'] = share
        calls = len(visits(step, net[1].times(steps))) - 1
        row = key | dict(images=n, calls=calls, cpu_seconds=round(seconds, 1),
                         measures=plain(found))
        rows, floor = self.there()
        if str(n) not in floor: floor[str(n)] = plain(floors(self.real, n))
        write(self.file, dict(made=self.made, floor=floor, rows=[*rows, row]))
        print(key, f"{seconds:.0f} s, Fréchet distance {found['frechet_distance']}", flush=True)

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
    found = {}
    found, columns = {}, ('step', 'loss', 'grad_norm', 'lr')
    for name, config in CONFIG.items():
        rows = csv.DictReader(open(RUNS/config/'metrics.csv'))
        rows = np.array([[float(r[k]) for k in columns] for r in rows])
        means = rows[:len(rows) // 100 * 100].reshape(-1, 100, 4).mean(1)
        found[name] = dict(zip(columns, np.round(means, 6).T.tolist()))
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

def measure(a):
    ASSETS.mkdir(parents=True, exist_ok=True)
    for piece in a.pieces or PIECES:
        print(f'--- {piece}', flush=True); PIECES[piece](a)

def check(a):
    "Exit 1 where a number of a run lies outside the interval of the shipped weights"
    missed = 0
    if missing := [n for n in CONFIG if not (ASSETS/f'{n}.json').exists()]:
        sys.exit(f"{ASSETS} has no numbers of {', '.join(missing)} yet; `python tools/mnist.py "
                 f"measure {' '.join(missing)}` makes them from the shipped weights")
    for name, config in CONFIG.items():
        published = json.loads((ASSETS/f'{name}.json').read_text())['measures']
        own = whole(config, RUNS/config, a).plain()['measures']
        for k in CHECKED:
            if k not in published: continue
            value, there = own[k]['value']['value'], published[k]['value']
            inside = there['low'] <= value <= there['high']
            missed += not inside
            where = f"{'inside' if inside else 'OUTSIDE'} [{there['low']:.4f}, {there['high']:.4f}]"
            print(f'{name:18} {k:17} {value:8.4f}  {where}')
    sys.exit(f'{missed} outside' if missed else 0)


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('command', choices=['train', 'ship', 'measure', 'check'])
    p.add_argument('pieces', nargs='*', help=f"of measure, all if none: {', '.join(PIECES)}")
    p.add_argument('--root', type=Path, default=DATA,
                   help='folder of MNIST (default: where torchvision puts it)')
    p.add_argument('--n', type=int, default=10_000, help='images of a report (default 10000)')
    a = p.parse_args()
    wrong = [piece for piece in a.pieces if piece not in PIECES or a.command != 'measure']
    if wrong: p.error(f"{a.command} {wrong[0]} is not allowed; allowed: {', '.join(PIECES)} "
                      'after measure')
    dict(train=train, ship=ship, measure=measure, check=check)[a.command](a)


if __name__ == '__main__': main()
