"""What the programs that train the shipped networks share: files that appear whole, tables that
grow by a row, images that are drawn once, and the facts of a training"""
import argparse, csv, json, math, subprocess, sys, time
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Callable

import numpy as np
import torch

from diffusion_scratch.checkpoint import atomic, newest_checkpoint
from diffusion_scratch.config import Config, flat_config, load_config
from diffusion_scratch.data import DATA
from diffusion_scratch.evaluation import (Estimate, confidence, floor, frechet_distance, interval,
                                          precision_recall)
from diffusion_scratch.features import Extractor, Features
from diffusion_scratch.pretrained import about, find, load, save
from diffusion_scratch.report import generate, model_hash
from diffusion_scratch.run import processor_name
from diffusion_scratch.sampling import ancestral
from diffusion_scratch.solvers import ddim, dpm_solver_pp, heun

SOLVERS = {'ancestral': ancestral(), 'ddim': ddim(), 'dpm_solver_pp': dpm_solver_pp(),
           'dpm_solver_pp(1)': dpm_solver_pp(1.), 'heun': heun()}
CHECKED = 'frechet_distance', 'precision', 'recall', 'confidence', 'memorised', 'label_accuracy'
BATCH = 100  # images at a time


# --- files

def write(file: Path, content):
    "JSON that appears whole or not at all"
    text = json.dumps(content, indent=1, ensure_ascii=False) + '\n'
    with atomic(file) as part: part.write_text(text, encoding='utf-8')

def keep(file: Path, **arrays):
    "Arrays that appear whole or not at all"
    with atomic(file) as part, open(part, 'wb') as f: np.savez_compressed(f, **arrays)

def made(command: str, **more) -> dict:
    "What a stored result was made by"
    date = datetime.now(timezone.utc).isoformat(timespec='seconds')
    return dict(command=command, date=date, torch=torch.__version__, cpu=processor_name(),
                threads=torch.get_num_threads(), seed=0, **more)

def measure(assets: Path, pieces: dict[str, Callable], a):
    "The pieces that were named, or all"
    assets.mkdir(parents=True, exist_ok=True)
    for piece in a.pieces or pieces:
        print(f'--- {piece}', flush=True); pieces[piece](a)


# --- the command line of a program that trains one network

def make_pieces(doc: str, pieces: dict[str, Callable]):
    "The command line of a program that makes stored results of MNIST, or some of them"
    p = argparse.ArgumentParser(description=doc,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('pieces', nargs='*', choices=[*pieces, []], default=[], metavar='PIECE',
                   help=f"all if none: {', '.join(pieces)}")
    p.add_argument('--root', type=Path, default=DATA, help='folder that has the files of MNIST')
    a = p.parse_args()
    torch.set_num_threads(1)
    for piece in a.pieces or pieces:
        print(f'--- {piece}', flush=True)
        pieces[piece](a)

def arguments(p: argparse.ArgumentParser, commands: dict, pieces: dict) -> argparse.Namespace:
    "A command, and after it pieces to measure or, for train, changes to the config"
    p.add_argument('command', choices=list(commands))
    p.add_argument('pieces', nargs='*', help=f"of measure, all if none: {', '.join(pieces)}; "
                   'of train, changes to the config, key=value')
    p.add_argument('--start', help='of train: weights to begin with')
    a = p.parse_intermixed_args()
    a.changes = a.pieces if a.command == 'train' else []
    wrong = [piece for piece in a.pieces
             if a.command != 'train' and (piece not in pieces or a.command != 'measure')]
    if wrong: p.error(f"{a.command} {wrong[0]} is not allowed; allowed: {', '.join(pieces)} "
                      'after measure, key=value after train')
    return a

def train(config: Path, a, images: list): # words that say where the images are
    "Train as a config says, with the changes and the first weights that were given"
    program = Path(sys.executable).with_name('diffusion-train')
    start = [f'training.start={a.start}'] if a.start else []
    line = [program, config, f'run={a.run}', *images, *start, *a.changes]
    subprocess.run(line, cwd=config.parent.parent, check=True)


# --- trainings

def steps_done(run: Path) -> list[dict]:
    "The rows of metrics.csv, as text"
    with open(run/'metrics.csv') as f: return list(csv.DictReader(f))

def session_facts(session: dict) -> dict:
    "What a manifest says of a session, without the paths of a machine"
    keys = ('seed', 'date', 'commit', 'torch', 'device', 'threads', 'parameters', 'data',
            'data_sha256')
    return {k: session[k] for k in keys} | dict(
        cpu=session.get('processor', processor_name()),
        cpu_capability=session.get('cpu_capability'))

def as_typed(config: Config, file: Path) -> str:
    "The command that trains with a config that began as a file, without the paths of a machine"
    usual = flat_config(load_config(file))
    ways = ('run', 'device', 'threads', 'preview_every', 'save_every', 'keep', 'log', 'judge',
            'sampling')
    changed = {k: v for k, v in flat_config(config).items()
               if v != usual[k] and not k.startswith(ways)}
    if 'data.root' in changed: changed['data.root'] = f'.../{Path(config.data.root).name}'
    return ' '.join([f'diffusion-train configs/{file.name}',
                     *(f'{k}={v}'.replace(' ', '') for k, v in changed.items())])

def earlier(config: Config, sessions: list[dict]) -> list[dict]:
    "The sittings whose weights a run began with"
    start = config.training.start
    if not start: return []
    there, noted = model_hash(load(start)[0].float()), sessions[0].get('start', '').split()[-1:]
    if noted != [there]:
        sys.exit(f'the run began with weights {" ".join(noted)}, and {start} has {there} now; '
                 'give ship before these weights are replaced')
    return about(start).get('made', {}).get('sittings', [])

def ship(run: Path, to: Path, config_file: Path, origin: str,
         report: Path): # of these weights, if it was made: its numbers go with them
    "Save the averaged weights of the newest checkpoint, with the facts of all sittings"
    config = load_config(run/'config.yaml')
    sessions = json.loads((run/'manifest.json').read_text())['sessions']
    file, meta, _ = newest_checkpoint(run)
    found, done, batch = find(file), meta['step'], config.training.batch_size
    rows = [r for r in steps_done(run) if int(r['step']) <= done]
    sitting = dict(command=as_typed(config, config_file), **session_facts(sessions[-1]),
                   sessions=len(sessions), precision=config.training.precision, steps=done,
                   images=done * batch, training_seconds=round(
                       sum(batch / float(r['images_per_second']) for r in rows)))
    sittings = [*earlier(config, sessions), sitting]
    if len(sittings) > 1: sitting['start'] = ('the averaged weights of the sitting before, in 16 '
                                              'bits; the optimizer began anew')
    total = {k: sum(s[k] for s in sittings) for k in ('steps', 'images', 'training_seconds')}
    count = int(sitting['data'].split(': ')[1].split(' ')[0].replace(',', ''))
    made = sitting | total | dict(epochs=round(total['images'] / count, 1),
                                  planned_steps=config.training.steps, origin=origin,
                                  data_name=config.data.name, sittings=sittings)
    denoiser, schedule = found.load()
    facts = found.about | dict(ema=True, made=made)
    if report.exists():
        measured = json.loads(report.read_text())
        with TemporaryDirectory() as folder:  # as they come back from a file of 16 bits
            half = load(save(denoiser, schedule, Path(folder)/'half', dtype=torch.float16))
        if measured['protocol']['weights'].endswith(model_hash(*half)):
            facts['measured'] = summary(measured)
    print(save(denoiser, schedule, to, facts, dtype=torch.float16))
    print(f"{made['steps']:,} steps, {made['epochs']} epochs, "
          f"{made['training_seconds'] / 3600:.1f} hours")

def loss_curve(rows: list[dict]) -> dict:
    "Means over each 100 steps"
    columns = 'step', 'loss', 'grad_norm', 'lr'
    table = np.array([[float(r[k]) for k in columns] for r in rows])
    means = table[:len(table) // 100 * 100].reshape(-1, 100, len(columns)).mean(1)
    return dict(zip(columns, np.round(means, 6).T.tolist()))

def summary(report: dict) -> dict:
    "The measures of a report, each as value [95 % interval]"
    def text(e): return f"{e['value']:.4g} [{e['low']:.4g}, {e['high']:.4g}]"
    numbers = {k: f"{text(m['value'])}, real images in their place {text(m['floor'])}"
               for k, m in report['measures'].items() if k in CHECKED}
    return dict(protocol=report['protocol_in_words']) | numbers


# --- images and their numbers

def network(source, ema=True):
    "Weights by name or path, laid out as a CPU likes them, their schedule, and their classes"
    found = find(source)
    denoiser, schedule = found.load(ema)
    return denoiser.to(memory_format=torch.channels_last), schedule, len(found.about['classes'])

def draw(net, shape: tuple, n: int, folder: Path, guidance: float, **how):
    "n images of what `network` returned, kept in a folder, and what they should be"
    denoiser, schedule, classes = net
    shares = [1 / classes] * classes if classes else None
    return generate(denoiser, schedule, shape, n, folder, shares=shares, guidance=guidance,
                    batch=BATCH, **how)

def equally_many(real, fake): return precision_recall(real[:len(fake)], fake)
def of_fakes(real, fake): return confidence(fake)

def numbers(real: Features, fake: Features) -> dict[str, Estimate]:
    "What a row says of its images"
    distance = interval(frechet_distance, real.x, fake.x, within=(0., math.inf))
    shares = interval(equally_many, real.x, fake.x, within=(0., 1.))
    return dict(frechet_distance=distance, frechet_limit=distance.unbiased, **shares._asdict(),
                confidence=interval(confidence, fake.p, within=(0., 1.)))

def floors(real: Features, n: int) -> dict[str, Estimate]:
    "The same of n real images in their place"
    return dict(frechet_distance=floor(frechet_distance, real.x, n),
                **floor(equally_many, real.x, n)._asdict(),
                confidence=floor(of_fakes, real.p, n))

def read_right(p, y) -> Estimate:
    "The share of images that are read as the class asked for"
    right = (p.argmax(1) == y).double()
    return interval(lambda right: right.mean().item(), right, within=(0., 1.))

def plain(estimates: dict[str, Estimate]) -> dict:
    return {k: e._asdict() for k, e in estimates.items()}

def in_random_order(seen: Features, seed=0) -> Features:
    "The images of a class do not come in a row"
    order = torch.randperm(len(seen.x), generator=torch.Generator().manual_seed(seed))
    return Features(*(v[order] for v in seen))

class Rows:
    "Rows of a table, each kept as soon as it is there"
    def __init__(self, file: Path, shape: tuple, images: Path, eye: Extractor, made: dict,
                 numbers: Callable,  # features of images -> estimates by name
                 floor_of: Callable  # number of images -> those of real ones in their place
                ):
        self.file, self.shape, self.images, self.eye = file, shape, images, eye
        self.made, self.numbers, self.floor_of = made, numbers, floor_of

    def there(self) -> tuple[list[dict], dict]:
        "Rows and floors so far; another process may add to them too"
        table = json.loads(self.file.read_text()) if self.file.exists() else dict(rows=[], floor={})
        return table['rows'], table['floor']

    def add(self, key: dict, source, step, steps: int, guidance: float, n: int, ema=True):
        if any(r.items() >= key.items() for r in self.there()[0]): return
        net, folder = network(source, ema), '-'.join(map(str, [self.file.stem, *key.values()]))
        there = len(list((self.images/folder).glob('images/*.safetensors')))
        began = time.process_time()
        images, y = draw(net, self.shape, n, self.images/folder, guidance, step=step, steps=steps)
        seconds = (time.process_time() - began) * n / max(BATCH, n - there * BATCH)
        fake = self.eye(images)
        found = self.numbers(fake)
        if y is not None: found['label_accuracy'] = read_right(fake.p, y)
        calls = len(step.visits(net[1].times(steps))) - 1
        row = key | dict(images=n, calls=calls, cpu_seconds=round(seconds, 1),
                         measures=plain(found))
        rows, floor = self.there()
        if str(n) not in floor: floor[str(n)] = plain(self.floor_of(n))
        write(self.file, dict(made=self.made, floor=floor, rows=[*rows, row]))
        first = next(iter(found))
        print(key, f'{seconds:.0f} s, {first} {found[first]}', flush=True)


def compare(name: str, published: dict, own: dict) -> int:
    "Print which measures of a report lie outside the published intervals, and return how many"
    missed = 0
    for k in CHECKED:
        if k not in published: continue
        value, there = own[k]['value']['value'], published[k]['value']
        inside = there['low'] <= value <= there['high']
        missed += not inside
        where = f"{'inside' if inside else 'OUTSIDE'} [{there['low']:.4f}, {there['high']:.4f}]"
        print(f'{name:18} {k:17} {value:8.4f}  {where}')
    return missed
