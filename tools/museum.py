"""The bug museum (chapter 34): one classic bug at a time is put into a copy of the book's code, a
small network is trained and draws digits with it, and the doctor is asked.

    python tools/museum.py               # all pieces; each may be stopped and given again
    python tools/museum.py runs          # train and draw: every exhibit with seed 0, then 1, 2;
                                         # the healthy program with ten seeds: an hour or two
    python tools/museum.py doctor        # what the doctor says of each run: some minutes
    python tools/museum.py pictures      # twenty digits of each exhibit, with seed 0
    python tools/museum.py runs --exhibits healthy labels --seeds 0   # some of them

The rows of nbs/assets/museum/runs.json appear one by one; what a run left lies in runs/museum. The
digits are the 5,000 that come with the package: nothing is downloaded. A bug is a change of lines
in EXHIBITS, and the chapter shows it from there. Where its old lines do not occur exactly once in
the code, the program stops. The doctor and the measures are always the healthy ones: of the bug
they get what its author would give them, his network, schedule, images, losses and drawn digits.
"""
import argparse, difflib, json, os, re, shutil, subprocess, sys, time
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from diffusion_scratch.checkpoint import atomic
from diffusion_scratch.data import fingerprint, mnist_mini
from diffusion_scratch.evaluation import confidence, frechet_distance
from diffusion_scratch.features import Features, digit_classifier

from depends import LIB, Code
from provenance import digest, machine, now
from results import write

ROOT = Path(__file__).resolve().parent.parent
ASSETS, RUNS = ROOT/'nbs'/'assets'/'museum', ROOT/'runs'/'museum'
TABLE, PROGRAM = ASSETS/'runs.json', 'tools/museum_run.py'
SEEDS, HEALTHY, CLASSES = 3, 10, 10


class Change(NamedTuple):
    file: str  # a module of the package, or the program
    old: str
    new: str

class Exhibit(NamedTuple):
    title: str
    what: str           # one sentence
    changes: tuple[Change, ...]
    trains: bool=True   # or it draws with the weights of the healthy run

def of(file: str, *lines: str) -> tuple[Change, ...]:
    "Changes of one file: old, new, old, new ..."
    path = f'{LIB}/{file}.py' if file != 'program' else PROGRAM
    return tuple(Change(path, *pair) for pair in zip(lines[::2], lines[1::2]))

EXHIBITS = {
    'healthy': Exhibit('No bug', 'The program as it is.', ()),

    # --- the images
    'range': Exhibit('Images in [0, 1]', 'The bytes are divided by 255, as for a classifier.', of(
        'program', 'data = mnist_mini()', 'data = mnist_mini()\n'
        'data = ImageSet(data.images / 255, data.labels, data.classes)')),
    'labels': Exhibit('Labels shuffled', 'The images were shuffled and the labels were not.', of(
        'program', 'data = mnist_mini()', 'data = mnist_mini()\n'
        'order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))\n'
        'data = ImageSet(data.images, data.labels[order], data.classes)')),
    'never-dropped': Exhibit('Labels never dropped',
                             'No label is dropped in training, and guidance is used.', of(
        'program', 'label_dropout=0.1', 'label_dropout=0.')),
    'padding': Exhibit('Mean over a padded batch',
                       'A quarter of each batch is padding, and the loss is averaged over it too.',
                       of('training',
                          '    for step, (epoch, x, y) in enumerate(read, start):',
                          '    for step, (epoch, x, y) in enumerate(read, start):\n'
                          '        x[3 * batch_size // 4:] = 0')),
    'bytes': Exhibit('Bytes that wrap',
                     'Floats become bytes without a clamp: white is 256, and 256 is 0.', of(
        'data', 'return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)',
        'return ((images.float() + 1) * 128).to(torch.uint8)'), trains=False),

    # --- noise and schedule
    'sqrt': Exhibit('A square root forgotten',
                    'Training noises the images with alpha_bar and 1 - alpha_bar.', of(
        'noising', '    signal, noise = cast_like(x0, level.signal, level.noise)',
        '    signal, noise = cast_like(x0, level.signal**2, level.noise**2)')),
    'rand': Exhibit('rand for randn in training', 'The noise of training is uniform in [0, 1].', of(
        'loss', 'torch.randn(x.shape, generator=generator',
        'torch.rand(x.shape, generator=generator')),
    'shared': Exhibit('One noise for a batch', 'All images of a batch get the same noise.', of(
        'loss', 'return schedule.at(t, x0), normal_like(x0, generator)',
        'return schedule.at(t, x0), normal_like(x0[:1], generator).expand_as(x0)')),
    'one-t': Exhibit('One timestep for a batch', 'All images of a batch get the same t.', of(
        'loss', '(len(x0),), generator=generator, device=device)',
        '(1,), generator=generator, device=device).expand(len(x0))')),
    'same-seed': Exhibit('The same seed every epoch',
                         'Each epoch repeats the order, the timesteps and the noise of the first.',
                         of('training', 'order = shuffled(n, seed, epoch)',
                            'order = shuffled(n, seed, 0)',
                            'with random_at(seed, state.step, engine.device)',
                            'with random_at(seed, state.step % (len(data) // batch_size), '
                            'engine.device)')),
    'short': Exhibit('Linear betas at T = 100',
                     'The betas of T = 1000 are used for 100 steps, and are not made ten times '
                     'larger.', of('program', 'schedule = Schedule(cosine_betas(1000))',
                                   'schedule = Schedule(linear_betas(100))')),
    'no-signal': Exhibit('Zero terminal SNR with eps',
                         'The last step has no signal, and the network predicts eps.', of(
        'program', 'schedule = Schedule(cosine_betas(1000))',
        'schedule = Schedule(zero_terminal_snr(linear_betas(1000)))',
        'Denoiser(net, V)', 'Denoiser(net, EPS)')),

    # --- network, loss and training
    'no-time': Exhibit('Constant timestep', 'The network embeds 0 in the place of t.', of(
        'unet', 'timestep_embedding(t, self.time[0].in_features)',
        'timestep_embedding(t * 0, self.time[0].in_features)')),
    'reshape': Exhibit('Reshape for pixel shuffle',
                       'The last layer folds its channels into pixels in the wrong order.', of(
        'unet', 'return F.pixel_shuffle(self.head(h), self.unshuffle)[..., :H, :W]',
        'return self.head(h).reshape(x.shape)')),
    'target': Exhibit('Loss against x_t', 'The prediction is compared with the noised image.', of(
        'loss', 'error = denoiser(x_t, level, y).x0 - x0',
        'error = denoiser(x_t, level, y).x0 - x_t')),
    'clip': Exhibit('Gradient clipped at 0.001', 'The largest norm is 0.001 and not 1.', of(
        'program', 'clip=1.,', 'clip=1e-3,')),
    'average': Exhibit('Average without warm-up',
                       'The average has a decay of 0.9999 from the first of 1,000 steps.', of(
        'program', 'ema=0.99', 'ema=0.9999') + of(
        'training', 'ema_decay(self.step, self.decay))', 'self.decay)')),

    # --- drawing, with the weights of the healthy run
    'raw': Exhibit('Average never loaded', 'The digits are drawn by the last weights.', of(
        'program', "denoiser, _ = load(folder/'average')", "denoiser, _ = load(folder/'last')"),
        trains=False),
    'read-as': Exhibit('v read as eps', 'The network predicts v, and it is taken for the noise.',
                       of('program', "denoiser, _ = load(folder/'average')",
                          "denoiser, _ = load(folder/'average')\n"
                          '    denoiser = Denoiser(denoiser.net, EPS)'), trains=False),
    'scale': Exhibit('Guidance of 20', 'The scale of the guidance is 20 and not 2.', of(
        'program', 'scale=2.', 'scale=20.'), trains=False),
    'start': Exhibit('rand for randn in sampling', 'Noise of sampling is uniform in [0, 1].', of(
        'sampling', 'row.normal_(generator=stream)', 'row.uniform_(generator=stream)'),
        trains=False),
    'off-by-one': Exhibit('t - 1 for t', 'The network gets timesteps from 0, and learned them '
                          'from 1.', of('denoiser',
                                        'call_network(self.net, x_t, level.t, y, self.first)',
                                        'call_network(self.net, x_t, level.t - 1, y, self.first)'),
                          trains=False),
    'next': Exhibit('One sampling step ahead',
                    'The denoiser gets the level where the step ends, not where it starts.', of(
        'sampling', 'levels = levels_of_walk(schedule, times, x)',
        'levels = levels_of_walk(schedule, [*times[1:-1], 1], x)'), trains=False),
    'schedule': Exhibit('Another schedule at drawing',
                        'The network learned with a cosine schedule and draws with linear betas.',
                        of('program', "denoiser, _ = load(folder/'average')",
                           "denoiser, _ = load(folder/'average')\n"
                           '    schedule = Schedule(linear_betas(1000))'), trains=False),
    'alpha-bar': Exhibit('alpha_bar for alpha',
                         'The reverse step is computed with alpha_bar of t.', of(
        'noising', 'scale = t.signal / s.signal', 'scale = t.signal'), trains=False),
    'last-noise': Exhibit('Noise at the last step', 'Noise is added after the last step too.', of(
        'sampling', 'return Coefficients(of_x0, of_x_t, zero, std)',
        'return Coefficients(of_x0, of_x_t, zero, std.where(s.t > 0, t.noise))'),
        trains=False),
    'clip-mean': Exhibit('The mean clipped, not x0',
                         'Each x_t of sampling is clipped to [-1, 1], and the predicted image is '
                         'not.', of('program', 'clipped(guided(denoiser, y, scale=2.))',
                                    'guided(denoiser, y, scale=2.)') + of(
        'sampling', 'x = c.x0 * x0 + c.x_t * x\n', 'x = (c.x0 * x0 + c.x_t * x).clamp(-1, 1)\n'),
        trains=False),
}
# what an author hands over with a network: the doctor meets these changes, and no others
HANDED_OVER = PROGRAM, f'{LIB}/unet.py'


# --- a copy with a bug

def sources(exhibit: Exhibit, changed=None) -> dict[str, str]:
    "Path -> text of the package and the program, with the changes, or those of some files"
    paths = [PROGRAM, *(str(f.relative_to(ROOT)) for f in sorted((ROOT/LIB).glob('*.py')))]
    found = {p: (ROOT/p).read_text(encoding='utf-8') for p in paths}
    for file, old, new in exhibit.changes:
        if (n := found[file].count(old)) != 1:
            raise ValueError(f'{exhibit.title}: {n} times in {file}, not once: {old!r}')
        if changed is None or file in changed: found[file] = found[file].replace(old, new)
    return found

def diff(exhibit: Exhibit) -> str:
    "The change as lines of - and +, file by file"
    before, after, out = sources(EXHIBITS['healthy']), sources(exhibit), []
    for file in sorted({c.file for c in exhibit.changes}):
        lines = difflib.unified_diff(before[file].splitlines(), after[file].splitlines(), n=0,
                                     lineterm='')
        out += [file, *(line for line in lines if line[:2] not in ('--', '++', '@@'))]
    return '\n'.join(out)

def code_hash(exhibit: Exhibit, *commands: str) -> str:
    "Of what commands of the program use, with the bug"
    code = Code(sources(exhibit).get)
    used = code.used([f'{PROGRAM}:{command}' for command in commands])
    return digest(json.dumps(code.hashes(used)).encode())

def run(texts: dict[str, str], command: str, seed: int, folder: Path) -> str:
    "Run a copy of the program; what it printed as warnings, or the last line of its error"
    with TemporaryDirectory() as there:
        for path, text in texts.items():
            file = Path(there, path)
            file.parent.mkdir(exist_ok=True)
            file.write_text(text, encoding='utf-8')
        done = subprocess.run([sys.executable, Path(there, PROGRAM), command, str(seed), folder],
                              env={**os.environ, 'PYTHONPATH': there}, capture_output=True,
                              text=True)
    if done.returncode: raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return ' '.join(re.findall(r'UserWarning: (.*)', done.stderr))


# --- the runs

def rows() -> list[dict]: return json.loads(TABLE.read_text())['runs'] if TABLE.exists() else []

def described(exhibit: Exhibit) -> dict:
    "What the chapter shows of a bug"
    return dict(title=exhibit.title, what=exhibit.what, trains=exhibit.trains, diff=diff(exhibit))

def keep(row: dict):
    "Into the table, in the place of an earlier one"
    def key(r): return r['seed'], list(EXHIBITS).index(r['exhibit'])
    others = [r for r in rows() if key(r) != key(row)]
    ASSETS.mkdir(parents=True, exist_ok=True)
    write(TABLE, dict(made=dict(command='python tools/museum.py', machine=machine()),
                      exhibits={name: described(e) for name, e in EXHIBITS.items()},
                      floor=floor(), runs=sorted([*others, row], key=key)))

def wanted(a) -> list[tuple[str, int]]:
    "Seed by seed, so that an unfinished table is balanced; the healthy runs after the first seed"
    found = [(name, seed) for seed in a.seeds or range(HEALTHY) for name in a.exhibits or EXHIBITS
             if seed < (HEALTHY if name == 'healthy' else SEEDS)]
    return sorted(found, key=lambda r: r[1] > 0 and r[0] != 'healthy')

@cache
def real() -> Features: return digit_classifier()(mnist_mini().images)

@cache
def floor() -> dict:
    "1,000 test digits in the place of drawn ones: their features are stored for chapter 16"
    stored = np.load(ROOT/'nbs'/'assets'/'evaluation'/'unseen.npz')
    x, p = (torch.from_numpy(stored[k]).double() for k in ('x', 'p'))
    return dict(frechet_distance=frechet_distance(real().x, x), confidence=confidence(p))

def means(losses: np.ndarray, n: int=50) -> list[float]:
    "Of n equal parts of the run"
    return [round(float(part.mean()), 5) for part in np.array_split(losses, n)]

def measured(folder: Path) -> dict:
    "Of the drawn digits and their walk"
    images = torch.from_numpy(np.load(folder/'images.npy'))
    seen, y = digit_classifier()(images), torch.arange(len(images)) % CLASSES
    read = seen.p.argmax(1)
    return dict(frechet_distance=frechet_distance(real().x, seen.x),
                confidence=confidence(seen.p), label_accuracy=(read == y).double().mean().item(),
                classes=read.bincount(minlength=CLASSES).tolist(),
                walk=json.loads((folder/'walk.json').read_text()))

def runs(a):
    for name, seed in wanted(a):
        exhibit, folder = EXHIBITS[name], RUNS/f'{name}-{seed}'
        made = dict(exhibit=name, seed=seed, code=code_hash(exhibit, 'train', 'draw'))
        if any(r.items() >= made.items() for r in rows()): continue
        began = time.time()
        row = made | dict(command=f'python tools/museum.py runs --exhibits {name} --seeds {seed}',
                          data=fingerprint(mnist_mini())[:12], machine=machine(), date=now())
        try:
            if exhibit.trains: row['warning'] = trained(exhibit, seed, folder)
            else: copy_weights(RUNS/f'healthy-{seed}', folder)
            run(sources(exhibit), 'draw', seed, folder)
        except RuntimeError as e: row['refused'] = str(e)
        else: row |= dict(loss=means(np.load(folder/'losses.npy')), **measured(folder))
        keep(row | dict(seconds=round(time.time() - began, 1)))
        print(name, seed, row.get('refused') or f"{row['frechet_distance']:.1f}",
              f'{time.time() - began:.0f} s', flush=True)

def trained(exhibit: Exhibit, seed: int, folder: Path) -> str:
    "Train, unless weights of this code are there; the warnings of the training"
    kept, code = folder/'trained.json', code_hash(exhibit, 'train')
    if kept.exists() and (known := json.loads(kept.read_text()))['code'] == code:
        return known['warning']
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    warning = run(sources(exhibit), 'train', seed, folder)
    kept.write_text(json.dumps(dict(code=code, warning=warning)))
    return warning

def copy_weights(healthy: Path, folder: Path):
    if not (healthy/'losses.npy').exists(): sys.exit(f'{healthy} is not there: give runs healthy')
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ('average', 'last'): shutil.copytree(healthy/name, folder/name)
    shutil.copy(healthy/'losses.npy', folder)


# --- the doctor

def doctor(a):
    for name, seed in wanted(a):
        row = next((r for r in rows() if (r['exhibit'], r['seed']) == (name, seed)), None)
        if row is None or 'refused' in row: continue
        folder = RUNS/f'{name}-{seed}'
        run(sources(EXHIBITS[name], HANDED_OVER), 'diagnose', seed, folder)
        found = json.loads((folder/'diagnosis.json').read_text())
        keep(row | dict(doctor=found))
        print(name, seed, found['verdict'], *found['signs'], sep='; ', flush=True)


# --- pictures

def pictures(a):
    "Two rows of ten digits for each exhibit that drew some, in the order of EXHIBITS"
    there = {name: RUNS/f'{name}-0'/'images.npy' for name in EXHIBITS}
    rows = [np.concatenate(list(row)[:10], axis=-1) for file in there.values() if file.exists()
            for row in np.load(file)[:20, 0].reshape(2, 10, 28, 28)]
    with atomic(ASSETS/'digits.webp') as part:
        Image.fromarray(np.concatenate(rows)).save(part, 'WEBP', lossless=True)


PIECES = {'runs': runs, 'doctor': doctor, 'pictures': pictures}

def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('pieces', nargs='*', choices=[*PIECES, []], default=[], metavar='PIECE',
                   help=f"all if none: {', '.join(PIECES)}")
    p.add_argument('--exhibits', nargs='+', choices=EXHIBITS, metavar='NAME', default=[],
                   help=f"all if none: {', '.join(EXHIBITS)}")
    p.add_argument('--seeds', nargs='+', type=int, default=[], help='all if none')
    a = p.parse_args()
    torch.set_num_threads(1)
    for piece in a.pieces or PIECES: PIECES[piece](a)


if __name__ == '__main__': main()
