"""The runs of chapter 33: DDPM beside GANs, a VAE and a VQ-VAE with a prior, of as many parameters
and as many seconds of training, on MNIST. Each command may be stopped and given again.

    python tools/claims.py calibrate     # steps that the seconds buy: first, on a quiet machine
    python tools/claims.py stable        # models x learning rates x seeds: hours
    python tools/claims.py light         # distance against seconds of training and of drawing
    python tools/claims.py control       # successes among 100 images each
    python tools/claims.py again MODEL LR SEED  # a run of `stable` again, and compare

Each but the last writes a file in nbs/assets/claims/; without a word, all are made. After
`calibrate` a run depends on its model, learning rate, seed and number of steps alone. The models
are those that the chapter shows. The digits are MNIST's, which torchvision downloads once; --root
names a folder that has them already.
"""
import argparse, hashlib, json, math, subprocess, sys, time
from functools import cache, partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from diffusion_scratch.data import (DATA, ImageSet, fingerprint, mnist, mnist_mini, to_float,
                                    to_uint8)
from diffusion_scratch.denoiser import clipped
from diffusion_scratch.editing import inpaint, resampled, steered
from diffusion_scratch.engine import forked_random
from diffusion_scratch.evaluation import (class_coverage, confidence, frechet_distance, interval,
                                          moments, precision_recall)
from diffusion_scratch.features import digit_classifier, train_classifier
from diffusion_scratch.guidance import guided
from diffusion_scratch.pretrained import load
from diffusion_scratch.report import reference
from diffusion_scratch.run import keep_freed_memory, processor_name
from diffusion_scratch.sampling import sample, trajectory
from diffusion_scratch.solvers import ddim, dpm_solver_pp

from depends import Code
from results import in_random_order, keep, made, write
from trainings import program

ROOT = Path(__file__).resolve().parent.parent
CHAPTER, ASSETS = ROOT/'nbs'/'33_claims.ipynb', ROOT/'nbs'/'assets'/'claims'
BUDGET, SEEDS, IMAGES, ON_THE_WAY = 120, 10, 1000, 250  # seconds; images at the end, and of curves
FACTORS, SHARES = (0.6, 2., 0.2, 6.), (1/16, 1/8, 1/4, 1/2, 3/4)  # of the usual rate, of a run
RATES = dict(ddpm=2e-3, gan=5e-4, gan_sn=5e-4, gan_r1=5e-4)  # best ones of short trials


# --- models, and what they draw

@cache
def models() -> dict:
    "The classes that the chapter shows"
    space = {}
    exec('\n'.join(program(CHAPTER, 'MODELS')), space)
    return space['MODELS']

def parameters(model) -> int: return sum(p.numel() for net in model.nets for p in net.parameters())

class Judge:
    "What the digit classifier says of images, against the 10,000 digits of the test set"
    def __init__(self, root: Path):
        self.eye, self.data = digit_classifier(), mnist(root, download=root == DATA)
        self.test = mnist(root, train=False, download=root == DATA)
        self.real = in_random_order(reference(self.eye, self.test, progress=False))
        self.moments = moments(self.real.x)

    def distance(self, images) -> float:
        return frechet_distance(self.moments, self.eye(images).x)

    def __call__(self, images) -> dict:
        seen = self.eye(images)
        near = precision_recall(self.real.x[:len(images)], seen.x)
        found = class_coverage(seen.p)._asdict() | near._asdict()
        return dict(frechet_distance=frechet_distance(self.moments, seen.x), **found,
                    confidence=confidence(seen.p))

    def in_place(self) -> dict:
        "Training digits, and independent pixels of their frequencies, in the place of images"
        order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(0))
        digits = self.data.images[order]
        columns = torch.randint(60_000, (IMAGES, 784), generator=torch.Generator().manual_seed(0))
        pixels = self.data.images.flatten(1).gather(0, columns).view(-1, 1, 28, 28)
        return dict(real=self(digits[:IMAGES]), pixels=self(pixels),
                    real_on_the_way=self.distance(digits[:ON_THE_WAY]))


# --- one run

def trained(kind: str, lr: float, seed: int, steps, data: ImageSet, look=None, shares=()):
    """A model after its steps, and whether all numbers were finite; look(model, steps done) is
    called after these shares of them"""
    torch.manual_seed(seed)
    model, total, done = models()[kind](lr), sum(np.atleast_1d(steps)), 0
    stops = {max(1, round(share * total)) for share in shares}
    try:
        for done, loss in enumerate(model.fit(data, steps, seed), 1):
            if not math.isfinite(loss): return model, False
            if done in stops: look(model, done)
    except FloatingPointError: return model, False
    return model, all(p.isfinite().all() for net in model.nets for p in net.parameters())

def on_the_way(kind: str) -> dict:
    return dict(steps=10) if kind == 'ddpm' else {}

def run(judge: Judge, kind: str, lr: float, seed: int, steps, shares=SHARES):
    "A row of a table, the images, and the model"
    data, began, curve = ImageSet(judge.data.images), time.process_time(), []
    def look(model, done):
        images = model.draw(ON_THE_WAY, 0, **on_the_way(kind))
        curve.append((done, judge.distance(images) if images.isfinite().all() else None))
    with forked_random(torch.device('cpu')):
        model, finite = trained(kind, lr, seed, steps, data, look, shares)
    row = dict(model=kind, lr=lr, seed=seed, steps=steps, parameters=parameters(model))
    images = model.draw(IMAGES, 0) if finite else torch.full((IMAGES, 1, 28, 28), math.nan)
    finite = bool(images.isfinite().all())
    measures = judge(images) if finite else None
    if finite: look(model, int(sum(np.atleast_1d(steps))))
    row |= dict(finite=finite, measures=measures, curve=curve)
    return row | dict(cpu_seconds=round(time.process_time() - began, 1)), images, model


# --- steps that seconds buy

ROUND, ROUNDS = 5, 7  # steps at a time

def phases(data: ImageSet) -> dict:
    "Endless trainings by name; the two stages of the VQ-VAE are two"
    endless, found = 10**6, {}
    for kind, Model in models().items():
        torch.manual_seed(0)
        if kind != 'vqvae': found[kind] = Model(1e-3).fit(data, endless, 0)
        else:
            found['vqvae'] = Model(1e-3).fit(data, (endless, 0), 0)
            found['prior'] = Model(1e-3).fit(data, (0, endless), 0)
    return found

def calibrate(a):
    "Medians of seconds a step, all models in turn; once, for all rows count on these steps"
    if (ASSETS/'steps.json').exists(): return print('steps.json is there already')
    data = ImageSet(mnist(a.root, download=a.root == DATA).images)
    trainings, seconds = phases(data), {}
    for _ in range(ROUNDS + 1):  # the first is to warm up
        for kind, training in trainings.items():
            began = time.process_time()
            for _ in range(ROUND): next(training)
            seconds.setdefault(kind, []).append((time.process_time() - began) / ROUND)
    found = {kind: median(s[1:]) for kind, s in seconds.items()}
    write(ASSETS/'steps.json', dict(made=facts('calibrate'), budget=BUDGET, seconds=found,
                                    spread={k: [min(s[1:]), max(s[1:])]
                                            for k, s in seconds.items()}))

AUTOENCODER = 0.25  # share of the seconds of the VQ-VAE; the rest is the prior's

def steps_for(kind: str, budget: float):
    "The steps that this many seconds buy, of both stages for the VQ-VAE"
    seconds = json.loads((ASSETS/'steps.json').read_text())['seconds']
    if kind != 'vqvae': return round(budget / seconds[kind])
    return [round(AUTOENCODER * budget / seconds['vqvae']),
            round((1 - AUTOENCODER) * budget / seconds['prior'])]


# --- tables

def facts(piece: str, **more) -> dict: return made(f'python tools/claims.py {piece}', **more)

@cache
def code_of() -> str:
    "A hash of the code that a run depends on"
    code = Code(lambda path: (ROOT/path).read_text() if (ROOT/path).is_file() else None)
    used = code.used(['tools/claims.py:run', 'nbs/33_claims.ipynb:MODELS'])
    text = json.dumps(code.hashes(used), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]

def here(judge: Judge) -> dict:
    "What a row says of where it was made"
    return dict(code=code_of(), data=fingerprint(judge.data)[:12], machine=processor_name(),
                torch=torch.__version__, threads=torch.get_num_threads())

def read(name: str) -> dict:
    file = ASSETS/f'{name}.json'
    return json.loads(file.read_text()) if file.exists() else dict(rows=[])

def pictures(name: str) -> dict:
    file = ASSETS/f'{name}.npz'
    return dict(np.load(file)) if file.exists() else {}

def add(piece: str, judge: Judge, row: dict, images, name: str, **top):
    "A row more in a table, and some of its images"
    if images.isfinite().all():
        some = to_uint8(images[:10]).numpy()
        keep(ASSETS/f'{piece}.npz', **pictures(piece) | {name: some})
    table = read(piece)
    about = dict(made=facts(piece, extractor=f'{judge.eye.name} {judge.eye.hash}'), **top)
    write(ASSETS/f'{piece}.json', table | about | dict(rows=[*table['rows'], row]))
    found = row['measures'] or {}
    print(name, f"{row['cpu_seconds']:.0f} s", {k: round(v, 2) for k, v in found.items()},
          flush=True)

def stable(a):
    judge, planned = Judge(a.root), []
    for seed in range(SEEDS):
        planned += [(kind, factor * rate, seed) for factor in FACTORS
                    for kind, rate in RATES.items()]
    there, top = read('stable'), {}
    if 'in_place' not in there:
        top = dict(in_place=judge.in_place(), budget=BUDGET, seeds=SEEDS, rates=RATES)
    ready = {(r['model'], r['lr'], r['seed']) for r in there['rows']}
    for kind, lr, seed in planned:
        lr = float(f'{lr:.6g}')
        if (kind, lr, seed) in ready: continue
        row, images, _ = run(judge, kind, lr, seed, steps_for(kind, BUDGET))
        command = f'python tools/claims.py again {kind} {lr:g} {seed}'
        row |= dict(command=command, **here(judge))
        add('stable', judge, row, images, f'{kind} {lr:g} {seed}', **top)

def again(a):
    "One run of the table again: exit 1 where its numbers are not those of the table"
    kind, lr, seed = a.words[0], float(a.words[1]), int(a.words[2])
    [old] = [r for r in read('stable')['rows']
             if (r['model'], r['lr'], r['seed']) == (kind, lr, seed)]
    new, _, _ = run(Judge(a.root), kind, lr, seed, old['steps'])
    for k in ('finite', 'measures', 'curve'): print(k, old[k], new[k], sep='\n  ')
    sys.exit(json.loads(json.dumps(new['measures'])) != old['measures'])


# --- light and fast

BUDGETS = (30, 60, 120, 240)
LIGHT = dict(ddpm=2e-3, gan_r1=1e-3, vae=1e-3, vqvae=2e-3)
SAMPLERS = {f'ddim {n}': dict(solver=ddim(), steps=n) for n in (5, 10, 50)}
SAMPLERS |= {f'dpm++ {n}': dict(solver=dpm_solver_pp(), steps=n) for n in (5, 10, 20)}

def distance_with_interval(judge: Judge, images) -> dict:
    "Over images; it says nothing of other seeds"
    return interval(frechet_distance, judge.real.x, judge.eye(images).x,
                    within=(0., math.inf))._asdict()

def seconds_of_thousand(model, first=20) -> float:
    "To draw 1,000 images by DDIM in 1,000 steps, from the first steps of a batch of 100"
    frames = trajectory(clipped(model.state.ema), model.schedule, (100, 1, 28, 28), step=ddim(),
                        seed=0)
    next(frames)
    began = time.process_time()
    for _ in range(first): next(frames)
    return (time.process_time() - began) / first * 1000 * 10

def drawing(judge: Judge, kind: str, model) -> list[dict]:
    "Seconds to draw 1,000 images, and their distance"
    found = []
    for name, how in SAMPLERS.items() if kind == 'ddpm' else [('', {})]:
        began = time.process_time()
        images = model.draw(IMAGES, 1, **how)
        seconds = time.process_time() - began
        found.append(dict(sampler=name, calls=how.get('steps', 1), seconds=seconds,
                          frechet_distance=distance_with_interval(judge, images)))
    if kind == 'ddpm':
        found.append(dict(sampler='ddim 1000', calls=1000, seconds=seconds_of_thousand(model),
                          frechet_distance=None))
    return found

CONTROLLED = 'gan_r1'
def kept_weights(kind: str) -> Path: return ROOT/'runs'/'claims'/f'{kind}.safetensors'

def keep_weights(kind: str, model):
    kept_weights(kind).parent.mkdir(parents=True, exist_ok=True)
    weights = {k: v.contiguous() for k, v in model.fixed().state_dict().items()}
    save_file(weights, kept_weights(kind))

def light(a):
    judge = Judge(a.root)
    for budget in BUDGETS:
        for kind, lr in LIGHT.items():
            rows = read('light')['rows']
            if any((r['model'], r['budget']) == (kind, budget) for r in rows): continue
            steps = steps_for(kind, budget)
            row, images, model = run(judge, kind, lr, 0, steps, ())
            row |= dict(budget=budget, distance=distance_with_interval(judge, images),
                        command='python tools/claims.py light', **here(judge))
            if budget == BUDGET:
                row |= dict(drawing=drawing(judge, kind, model), memory=peak_memory(kind))
            if budget == BUDGET and kind == CONTROLLED: keep_weights(kind, model)
            add('light', judge, row, images, f'{kind} {budget}', budgets=BUDGETS)

def peak_memory(kind: str) -> int:
    "MB that a training takes on top of its process and the digits, from a process of its own"
    words = [sys.executable, __file__, 'peak', kind]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])

def peak(a):
    "Print the most memory that 3 steps took, in MB (Linux)"
    noise = torch.randint(256, (1000, 1, 28, 28), dtype=torch.uint8)
    def most():
        lines = Path('/proc/self/status').read_text().splitlines()
        [line] = [x for x in lines if x.startswith('VmHWM')]
        return int(line.split()[1])
    before = most()
    steps = [3, 3] if a.words[0] == 'vqvae' else 3
    trained(a.words[0], 1e-3, 0, steps, ImageSet(noise))
    print(round((most() - before) / 1024))


# --- controllable

ASKED = torch.arange(10).repeat(10)    # classes of 100 images
GUIDANCE, WALK, LATENT_STEPS, SHIFT = 0.5, 50, 200, 3
CLOSE, QUANTILES = 0.02, dict(bright=0.95, asymmetry=0.05)  # of the test digits
ZETA = dict(bright=3000., symmetric=40., classifier=12.)

def brightness(x): return x.flatten(1).mean(1)
def asymmetry(x): return (x - x.flip(-1)).square().flatten(1).mean(1)
def centre(x):
    "The column of the centre of mass of the ink"
    ink = (x[:, 0] + 1).sum(1)
    return (ink * torch.arange(28)).sum(1) / ink.sum(1)

@cache
def small_classifier():
    "A classifier that is not the judge: what steers must not count the successes"
    net = train_classifier(mnist_mini(), epochs=4, seed=0, progress=False)[0].eval()
    return net.requires_grad_(False)

def class_loss(y): return lambda x: F.cross_entropy(small_classifier()(x)[1], y, reduction='none')

class Goals:
    "What counts as success: a function of images -> which of them succeed, for each task"
    def __init__(self, judge: Judge):
        self.judge, self.test = judge, judge.test
        floats = to_float(self.test.images)
        self.bright = brightness(floats).quantile(QUANTILES['bright']).item()
        self.asymmetry = asymmetry(floats).quantile(QUANTILES['asymmetry']).item()
        first = torch.cat([(self.test.labels == c).nonzero()[:10, 0] for c in range(10)])
        order = first.view(10, 10).T.flatten()            # classes in turn, as ASKED
        self.known, self.left = floats[order], torch.zeros(1, 1, 28, 28, dtype=torch.bool)
        self.left[..., :14] = True

    def read(self, x): return self.judge.eye(x).p.argmax(1)
    def as_asked(self, x): return self.read(x) == ASKED
    def kept(self, x): return (x == self.known).masked_fill(~self.left, True).flatten(1).all(1)
    def is_bright(self, x): return (brightness(x) - self.bright).abs() < CLOSE
    def is_symmetric(self, x): return asymmetry(x) < self.asymmetry
    def bright_loss(self, x): return (brightness(x) - self.bright).square()
    def known_loss(self, x): return (x - self.known).square().where(self.left, 0.).flatten(1).sum(1)

def timed(f):
    began = time.process_time()
    return f(), time.process_time() - began

def by_network(goals: Goals):
    "For each task: images that mnist-conditional draws with and without control, what succeeded"
    net, schedule = load('mnist-conditional')
    net = net.to(memory_format=torch.channels_last)
    def draw(denoiser, times=schedule.times(WALK)):
        return sample(clipped(denoiser), schedule, (100, 1, 28, 28), step=ddim(), times=times,
                      seed=0, progress=False)
    asked = guided(net, ASKED, GUIDANCE)
    free, plain = draw(net), draw(asked)
    both = lambda a, b: lambda x: a(x) & b(x)
    yield 'class', free, partial(draw, asked), goals.as_asked
    known, left = goals.known, goals.left
    yield 'known pixels', plain, partial(draw, inpaint(net, known, left)), goals.kept
    yield 'inpainting', free, partial(draw, inpaint(net, known, left)), goals.as_asked
    again = resampled(schedule.times(WALK), 10, 5)
    yield 'inpainting, resampled', free, partial(draw, inpaint(net, known, left), again), \
        goals.as_asked
    yield 'inpainting and class', plain, partial(draw, inpaint(asked, known, left)), goals.as_asked
    yield 'brightness', plain, partial(draw, steered(asked, goals.bright_loss, ZETA['bright'])), \
        both(goals.as_asked, goals.is_bright)
    yield 'symmetry', plain, partial(draw, steered(asked, asymmetry, ZETA['symmetric'])), \
        both(goals.as_asked, goals.is_symmetric)
    yield 'classifier', free, partial(draw, steered(net, class_loss(ASKED), ZETA['classifier'])), \
        goals.as_asked
    def moved():
        frames = trajectory(clipped(asked), schedule, (100, 1, 28, 28), step=ddim(),
                            times=schedule.times(WALK), seed=0)
        with torch.no_grad():
            for i, frame in enumerate(frames):
                if i == WALK // 2: frame.x.copy_(frame.x.roll(SHIFT, -1))
        return frame.x
    yield 'one frame', plain, moved, both(goals.as_asked, is_moved(plain))

def is_moved(before):
    return lambda x: ((centre(x) - centre(before)) - SHIFT).abs() < 1

def by_latent(goals: Goals, net, latent: int):
    "The same tasks for a GAN: Adam on the latent of each image"
    z = torch.randn(100, latent, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): free = net(z).tanh()
    of_class = class_loss(ASKED)
    def search(loss, z=z):
        z = z.clone().requires_grad_()
        optimizer = torch.optim.Adam([z], 0.05)
        for _ in range(LATENT_STEPS):
            optimizer.zero_grad()
            loss(net(z).tanh()).sum().backward()
            optimizer.step()
        with torch.no_grad(): return net(z).tanh()
    both = lambda a, b: lambda x: a(x) & b(x)
    yield 'class', free, partial(search, of_class), goals.as_asked
    yield 'known pixels', free, partial(search, goals.known_loss), goals.kept
    def pasted(loss): return goals.known.where(goals.left, search(loss))
    yield 'inpainting', free, partial(pasted, goals.known_loss), goals.as_asked
    weighted = lambda a, w: lambda x: of_class(x) + w * a(x)
    yield 'inpainting and class', free, partial(pasted, weighted(goals.known_loss, 0.1)), \
        goals.as_asked
    yield 'brightness', free, partial(search, weighted(goals.bright_loss, 1000.)), \
        both(goals.as_asked, goals.is_bright)
    yield 'symmetry', free, partial(search, weighted(asymmetry, 10.)), \
        both(goals.as_asked, goals.is_symmetric)
    plain = search(of_class)
    target = plain.roll(SHIFT, -1)
    near = lambda x: of_class(x) + 0.1 * (x - target).square().flatten(1).sum(1)
    yield 'one frame', plain, partial(search, near), both(goals.as_asked, is_moved(plain))

def control(a):
    judge = Judge(a.root)
    goals, gan = Goals(judge), models()[CONTROLLED](1e-3)
    net = gan.average.eval().requires_grad_(False)
    if not kept_weights(CONTROLLED).exists():
        steps, data = steps_for(CONTROLLED, BUDGET), ImageSet(judge.data.images)
        keep_weights(CONTROLLED, trained(CONTROLLED, LIGHT[CONTROLLED], 0, steps, data)[0])
    net.load_state_dict(load_file(kept_weights(CONTROLLED)))
    tasks = [(name, *task) for name, tasks in {
        'mnist-conditional': by_network(goals), CONTROLLED: by_latent(goals, net, gan.latent)
    }.items() for task in tasks]
    for name, task, before, draw, succeeds in tasks:
        rows = read('control')['rows']
        if any((r['model'], r['task']) == (name, task) for r in rows): continue
        x, seconds = timed(draw)
        row = dict(model=name, task=task, n=len(x), before=int(succeeds(before).sum()),
                   successes=int(succeeds(x).sum()), seconds=round(seconds, 2))
        some = {f'{name} {task}': to_uint8(x[:10]).numpy(),
                'known': to_uint8(goals.known[:10]).numpy()}
        keep(ASSETS/'control.npz', **pictures('control') | some)
        right = goals.read(judge.test.images) == judge.test.labels
        write(ASSETS/'control.json', dict(
            made=facts('control') | here(judge), rows=[*rows, row], walk=WALK, guidance=GUIDANCE,
            latent_steps=LATENT_STEPS, shift=SHIFT, close=CLOSE, quantiles=QUANTILES,
            accuracy=right.double().mean().item()))
        print(row, flush=True)


PIECES = dict(calibrate=calibrate, light=light, control=control, stable=stable)
OTHERS = dict(again=again, peak=peak)

def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('command', nargs='?', choices=[*PIECES, *OTHERS], help='all if none')
    p.add_argument('words', nargs='*', help='of again: MODEL LR SEED')
    p.add_argument('--root', type=Path, default=DATA, help='folder that has the files of MNIST')
    a = p.parse_intermixed_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    ASSETS.mkdir(parents=True, exist_ok=True)
    for piece in [a.command] if a.command else PIECES: (PIECES | OTHERS)[piece](a)


if __name__ == '__main__': main()
