"""The spot checks of tools/provenance.py: the first images or numbers of a stored result, made
again from the same seed and weights, and compared with the stored ones.

Each yields (what, made now, stored, the largest difference that is allowed). Images may differ by
two gray values, since other processors add in another order.
"""
import ast, csv, importlib, importlib.util, json, os, sys, tempfile
from pathlib import Path
from types import SimpleNamespace

os.environ['TQDM_DISABLE'] = '1'

import numpy as np
import torch
from PIL import Image

GRAY, NUMBER = 2., 1e-3
ASSETS = Path(__file__).resolve().parent.parent/'nbs'/'assets'

def read(name: str): return json.loads((ASSETS/name).read_text(encoding='utf-8'))


# ---- tools/stored.py

def sweep(_):
    import stored
    there = stored.tiles(ASSETS/'guidance'/'sweep.png').view(5, 200, 1, 28, 28)
    yield '2 images of each scale', stored.swept(2), there[:, :2], GRAY

def solvers(_):
    import stored
    there = stored.tiles(ASSETS/'editing'/'solvers.png').view(2, 6, 5, 5, 1, 28, 28)
    for i, way in enumerate(stored.WAYS):
        for j, solver in enumerate(stored.STEPPED):
            now = stored.to_uint8(stored.by_solver(solver, way, 20, n=5))
            yield f'5 images of {solver} {way}', now, there[i, j, 2], GRAY

def guidance(_):
    import stored
    there = stored.tiles(ASSETS/'editing'/'guidance.png').view(6, 20, 1, 28, 28)
    for scale, images in zip(stored.GUIDANCES, there):
        now = stored.to_uint8(stored.at_scale(scale, 4))
        yield f'4 images of scale {scale}', now, images[:4], GRAY
    numbers, now = read('editing/guidance.json'), stored.of_real_digits()
    for k in now: yield k, as_number(now[k]), as_number(numbers[k]), NUMBER
    reader = stored.Reader(stored.mnist_mini())
    row = stored.judged(0, stored.at_scale(0), reader)
    for k, v in row.items(): yield f'{k} of scale 0', v, numbers['judged'][0][k], NUMBER

def as_number(text) -> float: return float(str(text).split('%')[0])

def few_steps(_):
    import stored
    there = stored.tiles(ASSETS/'evaluation'/'ddim-50.png')
    yield '50 images of ddim in 50 steps', stored.of_plan('ddim', 50, 50), there[:50], GRAY
    eye, row = stored.digit_classifier(), read('evaluation/few-steps.json')['rows'][0]
    fake, real = eye(stored.of_plan(row['solver'], row['steps'])), eye(stored.mnist_mini().images)
    from diffusion_scratch.evaluation import confidence, frechet_distance
    value = lambda k: row['measures'][k]['value']['value']
    yield 'confidence of the first row', confidence(fake.p), value('confidence'), NUMBER
    distance = frechet_distance(real.x, fake.x)
    yield 'Fréchet distance of the first row', distance, value('frechet_distance'), NUMBER

def unseen(root):
    import stored
    test = stored.mnist(root or stored.DATA, train=False, download=False)
    some = torch.randperm(10_000, generator=torch.Generator().manual_seed(0))[:100]
    found = stored.digit_classifier()(test.images[some])
    with np.load(ASSETS/'evaluation'/'unseen.npz') as there:
        for k in 'xp': yield f'{k} of 100 digits', getattr(found, k), there[k][:100], NUMBER

def likelihood(_):
    import stored
    there = read('likelihood/mnist.json')
    now = stored.flow_in(12)
    yield 'bits of 16 digits in 12 steps', now, there['flow by steps']['12'], NUMBER
    g, data = torch.Generator().manual_seed(0), stored.mnist_mini()
    x, y = data[torch.randperm(len(data), generator=g)[:300]]
    net, schedule = stored.load(stored.MINI)
    now = stored.bound(stored.clipped(net), schedule, x, y, posterior=stored.fixed_small, draws=20,
                       seed=0).total
    yield 'the bound of 300', now, there['trained on']['fixed_small']['total'], NUMBER

def run(config: str, folder: str, _):
    "Of a training"
    import stored
    with open(ASSETS/folder/'metrics.csv') as f: rows = list(csv.DictReader(f))[:30]
    there = [float(r['loss']) for r in rows]
    yield 'the losses of 30 steps', stored.first_losses(config, 30), there, NUMBER


# ---- tools/trainings.py, tools/variance.py

def chapter(number: str, file: str, function: str, _):
    "The losses of its first five steps; a shorter training warms up as a long one does"
    import trainings
    imports, definitions = trainings.program(trainings.NBS/f'{number}.ipynb', function)
    space = {}
    os.chdir(trainings.NBS)
    exec(compile(f'{imports}\n{definitions}', number, 'exec'), space)
    now = space[function](5)
    if file.endswith('.npz'):
        with np.load(ASSETS/file) as kept: there = dict(losses=kept['losses'])
        now = now if isinstance(now, dict) else dict(losses=now[1])
    else: there = read(file)['results']
    for k in there:
        n = min(len(now[k]), 5)  # a network that takes longer made fewer
        yield f'{k}: the losses of {n} steps', now[k][:n], there[k][:n], NUMBER

def samples(_):
    import variance
    there = {r['variance']: r for r in read('sampling/variance.json')['rows'] if r['steps'] == 5}
    for r in variance.samples(None, (5,))['rows']:
        yield f"{r['variance']} in 5 steps", r['distance'], there[r['variance']]['distance'], NUMBER

def bits(root):
    import variance
    now = variance.bits(Path(root) if root else variance.DATA, (10,))['bits']['10']
    there = read('loss/variance.json')['bits']['10']
    for k in ('fixed_small', 'fixed_large', 'optimal'):
        yield f'{k} in 10 steps', now[k]['mean'], there[k]['mean'], NUMBER


# ---- tools/baselines.py

def baselines(piece: str, root):
    import baselines as tool
    a = SimpleNamespace(root=Path(root) if root else tool.DATA)
    if piece == 'levels': yield from _levels(tool, a)
    elif piece == 'files': yield from _files(tool, a)
    elif piece == 'label':
        x0, y = tool.held_out(a.root, 300)
        there = read('likelihood/label.json')
        for k, now in tool.with_and_without(x0[:20], y[:20]).items():
            yield f'{k}, 20 digits', now, there[k][:20], 5e-3
    else:
        now = tool.flow_of(tool.held_out(a.root, 60)[0][:2]).each
        yield 'the flow of 2 digits', now, read('likelihood/flow.json')['each'][:2], 5e-3

def _files(tool, a):
    there = read('likelihood/files.json')
    test = tool.to_float(tool.mnist(a.root, train=False, download=False).images)
    for name in ('gzip', 'bz2'):
        now = tool.compressed_bits(test, tool.COMPRESSORS[name])
        yield name, now, there['together'][name], NUMBER
    now = tool.of_frequencies(tool.mnist_mini()[:][0], test)
    yield 'frequencies', now['total'], there['frequencies']['5000']['total'], NUMBER

def _levels(tool, a):
    few = (1, 2, 60)
    now = tool.levels(a, few)
    with np.load(ASSETS/'likelihood'/'levels.npz') as there:
        i = np.isin(there['times'], few)
        for k in ('black', 'others'):
            yield f'{k} at 3 levels, by the stored', now[k] / there[k][i], np.ones(3), 1e-2
        for k in ('last_network', 'last_frequencies'): yield k, now[k], there[k], 1e-2


# ---- tools/mnist.py, tools/cifar10.py

def drawn(source: str, shape: tuple, n: int, guidance: float, step, steps: int):
    import results
    with tempfile.TemporaryDirectory() as folder:
        return results.draw(results.network(source), shape, n, Path(folder)/'images', guidance,
                            step=step, steps=steps, progress=False)

def digits(_):
    import mnist
    with np.load(ASSETS/'mnist'/'nearest.npz') as there:
        for name in mnist.CONFIG:
            images, _ = drawn(name, mnist.SHAPE, 64, mnist.GUIDANCE, mnist.ddim(), 50)
            yield f'64 images of {name}', images, there[name], GRAY

def objects(_):
    import cifar10 as tool
    y = tool.random_labels([0.1] * 10, tool.BATCH, 0)
    first = [int((y == c).nonzero()[0]) for c in (0, 1, 3, 5, 7, 8)]
    images, _ = drawn(tool.NAME, tool.SHAPE, max(first) + 1, tool.GUIDANCE, tool.STEP, tool.STEPS)
    with np.load(ASSETS/'cifar10'/'nearest.npz') as there:
        yield 'the six drawn images', images[first], there['drawn'], GRAY

def test_images(root):
    import cifar10 as tool
    data = tool.images(Path(root) if root else tool.DATA, train=False)
    with np.load(ASSETS/'cifar10'/'real.npz') as there:
        first = [int((data.labels == c).nonzero()[0]) for c in there['labels']]
        yield 'the four test images', data.images[first], there['images'], 0

def row(program: str, piece: str, _):  # tools/PROGRAM.py, nbs/assets/PIECE.json
    "Of the row of a table that takes the fewest calls: what its images show the classifier"
    import results
    from diffusion_scratch.features import EXTRACTORS, load_classifier
    tool, table = importlib.import_module(program), read(f'{piece}.json')
    eye = load_classifier(EXTRACTORS/table['made']['extractor'].split()[0])
    r = min(table['rows'], key=lambda r: r['images'] * r['calls'])
    source, guidance = table['made']['weights'].split()[0], r.get('guidance', tool.GUIDANCE)
    how = getattr(tool, 'STEP', results.ddim()), getattr(tool, 'STEPS', 50)
    if 'solver' in r:  # n steps of heun take 2n - 1 calls
        heun, calls = r['solver'] == 'heun', r['calls']
        how = results.SOLVERS[r['solver']], (calls + 1) // 2 if heun else calls
    images, y = drawn(source, tool.SHAPE, r['images'], guidance, *how)
    fake, there = eye(images), r['measures']
    key = ', '.join(f'{k} {v}' for k, v in r.items() if k in ('guidance', 'solver'))
    now = dict(confidence=results.confidence(fake.p))
    if 'label_accuracy' in there: now['label_accuracy'] = results.read_right(fake.p, y).value
    for k, v in now.items():
        yield f"{k} of {r['images']} images of {key}", v, there[k]['value'], NUMBER


# ---- pictures and tables

def faces(_):
    import faces as tool, faces_pictures
    held = [faces_pictures.WITHOUT]
    with Image.open(ASSETS/'faces'/'grid.webp') as grid:
        for i in range(3):
            now = tool.draw(tool.attributes(0, i, held), 0, i).convert('RGB')
            there = grid.convert('RGB').crop((64 * i, 0, 64 * i + 64, 64))
            yield f'face {i}', np.array(now), np.array(there), GRAY
    rows = [tool.attributes(0, i, held) for i in range(faces_pictures.N)]
    there = read('faces/data.json')['pairs']['without']
    for k, now in faces_pictures.pairs(rows).items(): yield f'counts of {k}', now, there[k], 0

def cost(_):
    "What can be counted; seconds cannot be compared"
    folder = ASSETS.parent.parent/'benchmarks'
    sys.path.append(str(folder))
    spec = importlib.util.spec_from_file_location('cost', folder/'faces.py')  # tools has another
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    for r in read('faces/cost.json')['rows'][:3]:
        now = tool.operations(tool.config_of(r['name'])[0], tool.SIZES[r['name']][1])
        yield f"operations of {r['name']}", now, r['flop'], 0

def conformance(_):
    sys.path.append(str(ASSETS.parent.parent/'tests'))
    import test_solvers
    for *case, there in read('solvers/conformance.json')['rows'][::5]:
        now = test_solvers.measured(*case)
        yield ' '.join(map(str, case)), now, there, max(1e-12, 0.3 * there)

def museum(_):
    "The healthy run of seed 0 again, and a bug of drawing: some minutes"
    import museum as tool
    rows = {r['exhibit']: r for r in tool.rows() if r['seed'] == 0}
    with tempfile.TemporaryDirectory() as folder:
        for name, command in (('healthy', 'train'), ('healthy', 'draw'), ('last-noise', 'draw')):
            tool.run(tool.sources(tool.EXHIBITS[name]), command, 0, Path(folder))
            if command == 'train':
                now = tool.means(np.load(Path(folder, 'losses.npy')))
                yield 'losses', now, rows[name]['loss'], 0.02
            else:
                now, there = tool.measured(Path(folder)), rows[name]
                yield f'{name}, distance', now['frechet_distance'], there['frechet_distance'], 2

def faults(_):
    "The words of the tests that are marked as faults; `make test` runs these tests"
    root, marked = ASSETS.parent.parent, {}
    for file in sorted((root/'tests').glob('test_*.py')):
        for node in ast.parse(file.read_text(encoding='utf-8')).body:
            for mark in getattr(node, 'decorator_list', []):
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == 'pytest.mark.fault':
                    marked[f'tests/{file.name}::{node.name}'] = [*map(ast.literal_eval, mark.args)]
    there = {r['test']: [r['fault'], r['outcome']] for r in read('faults.json')['rows']}
    other = [t for t in marked | there if marked.get(t) != there.get(t)]
    yield ', '.join([f'words of {len(there)} rows', *other]), len(other), 0, 0

def social(_):
    import social as tool
    rows = tool.digits()
    with Image.open(ASSETS/'favicon.png') as there:
        now = tool.icon(rows[-1][tool.ICON], 32)
        yield 'the icon', np.array(now), np.array(there.convert('L')), GRAY
    with Image.open(ASSETS/'social.png') as there:  # of 64 colours
        now = tool.card(rows).quantize(64).convert('RGB')
        yield 'the picture', np.array(now), np.array(there.convert('RGB')), GRAY

def live(network, images, _):
    import live as tool
    now = tool.sheet(tool.frames(network)[-1].x)
    with Image.open(ASSETS.parent/'live'/f'{images}.webp') as there:
        there = np.array(there.convert('L' if now.ndim == 2 else 'RGB'))
        yield 'the last images', now, there, GRAY

def combined(root):
    "The first faces of the combination that was held out, drawn again and read"
    import faces_network as tool
    row = next(r for r in read('faces/combined.json')['rows']
               if (r['beard'], r['guidance']) == (tool.BEARDS[-1], tool.GUIDANCE))
    with tempfile.TemporaryDirectory() as folder:
        tool.RUNS = Path(folder)
        a = SimpleNamespace(root=Path(root or Path(folder)/'faces_data'), weights='faces')
        seen = tool.with_hat(a, row['beard'], row['guidance'], row['images'],
                             len(row['first']))[2]
    same = (seen == torch.tensor(row['first'])).double().mean()  # one may lie between two values
    yield f'what is read of {len(seen)} faces', same, 1., 0.05


# ---- tools/claims.py

def claims(piece: str, root):
    import claims as tool
    judge = tool.Judge(Path(root) if root else tool.DATA)
    if piece == 'control':
        there = {r['task']: r for r in read('claims/control.json')['rows'][::-1]}
        for task, _, draw, succeeds in list(tool.by_network(tool.Goals(judge)))[:3]:
            yield task, int(succeeds(draw()).sum()), there[task]['successes'], 0
        return
    rows = [r for r in read(f'claims/{piece}.json')['rows'] if r['measures']]
    old = min(rows, key=lambda r: r['cpu_seconds'])  # 30 seconds of training, or two minutes
    kind, lr, seed, steps = (old[k] for k in ('model', 'lr', 'seed', 'steps'))
    new = tool.run(judge, kind, lr, seed, steps)[0]
    for k, now in new['measures'].items():
        yield f'{k} of {kind} {lr:g} {seed}', now, old['measures'][k], NUMBER


def run_check(words: str, root: str | None) -> str:
    "Make a check; what was compared, in words. An AssertionError names the first difference"
    name, *given = words.split()
    torch.set_num_threads(1)
    found = []
    for what, now, there, within in globals()[name](*given, root):
        now, there = (torch.as_tensor(v).double() for v in (now, there))
        shapes = tuple(now.shape), tuple(there.shape)
        assert shapes[0] == shapes[1], f'{what}: {shapes[0]} now, {shapes[1]} stored'
        off = (now - there).abs().max().item()
        assert off <= within, f'{what}: differs by {off:.3g}, {within:.3g} allowed'
        print(f'  {what}: differs by {off:.3g}', flush=True)
        found.append((what, off))
    words = '; '.join(w for w, _ in found[:2]) + ('; ..' if found[2:] else '')
    return f'{words} ({len(found)} compared, largest difference {max(o for _, o in found):.2g})'
