"""Which program made each stored result of the book, and whether it would still make the same.

    python tools/provenance.py                   # list all results with their state
    python tools/provenance.py mnist             # those whose names begin so
    python tools/provenance.py --check           # fail where one needs a word: for `make test`
    python tools/provenance.py --confirm NAME .. # the first images or numbers again, and compare
    python tools/provenance.py --again [NAME ..] # make these again; none: all that are stale
    python tools/provenance.py --record NAME ..  # of files that were made without this program
    python tools/provenance.py --reason NAME .. --words "why it may stay stale"

A result is fresh if its files, the weights and configs that it was made from, and the code that it
depends on are those of its record in nbs/assets/results.json. The code is found from the function
that makes the result, from the names that it uses and from the imports; comments and docstrings do
not count. The states:

    fresh      nothing that it depends on has changed
    stale      these modules, or weights, have changed: confirm it, make it again or say why not
    changed    its files are not those of the record: record them, or make it again
    no record  it is in the table RESULTS and has no record: record it, or make it again
    missing    a file of the record is not there: make it again
    orphaned   a file without a program that makes it, or that no page reads

A new result: add a line to RESULTS in this file (`pieces` for a program with `measure`), then give
--record NAME. That takes the code of the commit that its files were last changed in, or the present
code if they are not committed yet. A spot check is a function of tools/spot_checks.py; `row` draws
the cheapest row of a table of tools/results.py again.

--again begins anew where the code has changed, and else goes on where it was stopped. --root names
a folder that has the files of MNIST or CIFAR-10. After --again, look at what the page says of the
numbers, and run its chapter (tools/run_nbs.py).
"""
import argparse, hashlib, json, os, re, shlex, shutil, subprocess, sys, time
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

from depends import LIB, Code

ROOT = Path(__file__).resolve().parent.parent
RECORDS = 'nbs/assets/results.json'


# ---- what is stored, and what makes it

class Result(NamedTuple):
    files: tuple[str, ...]        # in nbs/assets/; *: any name
    command: str                  # that makes them
    code: tuple[str, ...]         # the functions that it runs, path:name
    inputs: tuple[str, ...] = ()  # weights and extractors that come with the package, configs
    data: str = ''                # a name of DATA
    check: str = ''               # a function of tools/spot_checks.py, and its arguments

# fingerprints, as diffusion_scratch.data.fingerprint gives them
DATA = {'mnist_mini': '262bbd5983b7', 'mnist': 'e40878bb0d6f', 'CIFAR-10 as JPEG': 'b74358cd57e3',
        'faces': 'a0e338844926'}

def pieces(program: str, folder: str, inputs: tuple, data: str, table: dict[str, dict]):
    """Results of `python tools/PROGRAM.py measure PIECE`: piece -> its function, and what differs
    from a file PIECE.json without a check"""
    found = {}
    for piece, how in table.items():
        files, check = how.get('files', f'{piece}.json').split(), how.get('check', '')
        if check == 'row': check = f'row {program} {folder}/{piece}'
        found[f'{folder}/{piece}'] = Result(
            tuple(f'{folder}/{f}' for f in files), f'python tools/{program}.py measure {piece}',
            (f"tools/{program}.py:{how['function']}",), how.get('inputs', inputs), data, check)
    return found

def stored(name: str, piece: str, files: str, function: str, data='mnist_mini', code=(), **more):
    "A result of tools/stored.py"
    return {name: Result(tuple(files.split()), f'python tools/stored.py {piece}',
                         (f'tools/stored.py:{function}', *code), data=data, **more)}

def chapter(number: str, function: str, files: str, check='', **more) -> dict[str, Result]:
    "A result of tools/trainings.py"
    words = f'chapter {number} {files.split()[0]} {check}' if check else ''
    return {files.split()[0].rpartition('.')[0]: Result(
        tuple(files.split()), f'python tools/trainings.py {number}',
        (f'nbs/{number}.ipynb:{function}',), data='mnist_mini', check=words, **more)}

MNIST, MINI, EYE = ('mnist', 'mnist-conditional'), ('mnist-mini',), ('digit-classifier',)
OBJECTS, FACES = ('cifar10', 'object-classifier'), ('faces', 'face-classifier')
TRAINING = tuple(f'{LIB}/{f}' for f in (
    'training.py:fit', 'config.py:make_data', 'config.py:make_denoiser',
    'config.py:make_fit_options', 'config.py:make_schedule', 'config.py:load_config'))
DRAWING = (*TRAINING, f'{LIB}/run.py:draw_results')

def run_of(config: str, piece: str, training: str, drawn: str, code=()) -> dict[str, Result]:
    "Two results of a run: what the training left, and what was drawn at its end"
    def files(names): return tuple(f'{piece}/{f}' for f in names.split())
    command, inputs = f'python tools/stored.py {piece}', (f'configs/{config}.yaml',)
    whole = Result(files(drawn), command, (*DRAWING, *code), inputs, 'mnist_mini')
    part = whole._replace(files=files(training), code=(*TRAINING, *code),
                          check=f'run {config} {piece}')
    return {f'{piece}/training': part, f'{piece}/drawn': whole}

RESULTS = {
    **stored('guidance/sweep', 'sweep', 'guidance/sweep.json guidance/sweep.png', 'sweep',
             inputs=MINI, check='sweep'),
    **stored('editing/solvers', 'solvers', 'editing/solvers.json editing/solvers.png', 'solvers',
             inputs=(*MINI, *EYE), check='solvers'),
    **stored('editing/guidance', 'guidance', 'editing/guidance.json editing/guidance.png',
             'guidance', inputs=MINI, check='guidance'),
    **stored('evaluation/few-steps', 'few-steps', 'evaluation/few-steps.json '
             'evaluation/ddim-50.png', 'few_steps', inputs=(*MINI, *EYE), check='few_steps'),
    **stored('evaluation/unseen', 'unseen', 'evaluation/unseen.npz', 'unseen', 'mnist',
             inputs=EYE, check='unseen'),
    **stored('likelihood/mnist', 'likelihood', 'likelihood/mnist.json', 'likelihood', 'mnist',
             inputs=MINI, check='likelihood'),
    **stored('report/report', 'report', 'report/*', 'report', inputs=(*MINI, *EYE),
             code=(f'{LIB}/report.py:evaluate_model',)),
    **run_of('quickstart', 'quickstart', 'metrics.csv config.yaml loss.png',
             'samples.png noise_to_images.webp run.json'),
    **run_of('mnist_dit', 'transformer', 'metrics.csv config.yaml', 'samples.png run.json',
             (f'{LIB}/transformer.py:DiT',)),
    **chapter('05_unet', 'other_starts', 'unet/starts.json', 'other_starts'),
    **chapter('09_training', 'first_run', 'training/digits.npz training/digits.json',
              'first_run'),
    **chapter('11_names', 'newly_trained', 'names/digits.npz names/digits.json'),
    **chapter('12_guidance', 'thick_and_thin', 'guidance/strokes.npz guidance/strokes.json',
              'learn_both'),
    **chapter('28_transformer', 'other_runs', 'transformer/runs.json', 'other_runs',
              inputs=('configs/quickstart.yaml', 'configs/mnist_dit.yaml')),
    'loss/variance': Result(('loss/variance.json',), 'python tools/variance.py bits',
                            ('tools/variance.py:bits',), ('mnist',), 'mnist', 'bits'),
    'sampling/variance': Result(('sampling/variance.json',), 'python tools/variance.py samples',
                                ('tools/variance.py:samples',), ('mnist', *EYE), 'mnist_mini',
                                'samples'),
    **{f'likelihood/{piece}': Result(
        tuple(f'likelihood/{f}' for f in files.split()), f'python tools/baselines.py {piece}',
        (f'tools/baselines.py:{piece}',), inputs, 'mnist', f'baselines {piece}')
       for piece, files, inputs in (('files', 'files.json', ()),
                                    ('levels', 'levels.json levels.npz', ('mnist',)),
                                    ('label', 'label.json', ('mnist-conditional',)),
                                    ('flow', 'flow.json', ('mnist',)))},
    **pieces('mnist', 'mnist', (*MNIST, *EYE), 'mnist', {
        'loss': dict(function='losses', inputs=()),
        'nearest': dict(function='neighbours', files='nearest.npz', check='digits'),
        'guidance': dict(function='by_guidance', check='row'),
        'mnist': dict(function='report', files='mnist.json mnist-worst.npz'),
        'mnist-conditional': dict(function='report',
                                  files='mnist-conditional.json mnist-conditional-worst.npz'),
        'training': dict(function='by_training'),
        'bits': dict(function='bits'),
        'steps': dict(function='by_steps', check='row')}),
    **pieces('cifar10', 'cifar10', OBJECTS, 'CIFAR-10 as JPEG', {
        'loss': dict(function='losses', inputs=()),
        'real': dict(function='test_images', files='real.npz', inputs=(), check='test_images'),
        'nearest': dict(function='neighbours', files='nearest.npz', check='objects'),
        'guidance': dict(function='by_guidance', check='row'),
        'report': dict(function='report', files='seed*.json worst.npz median.npz'),
        'steps': dict(function='by_steps', check='row'),
        'training': dict(function='by_training')}),
    **pieces('faces_network', 'faces', FACES, 'faces', {
        'loss': dict(function='losses', inputs=()),
        'report': dict(function='report', files='seed*.json'),
        'independent': dict(function='independent'),
        'combined': dict(function='combined', check='combined')}),
    **{f'claims/{piece}': Result(
        tuple(f'claims/{f}' for f in files.split()), f'python tools/claims.py {piece}',
        (f'tools/claims.py:{piece}', 'nbs/33_claims.ipynb:MODELS'), (*EYE, *inputs), 'mnist',
        f'claims {piece}' if piece != 'calibrate' else '')
       for piece, files, inputs in (('calibrate', 'steps.json', ()),
                                    ('stable', 'stable.json stable.npz', ()),
                                    ('light', 'light.json light.npz', ()),
                                    ('control', 'control.json control.npz', MNIST[1:]))},
    'faces/data': Result(('faces/data.json', 'faces/*.webp'), 'python tools/faces_pictures.py',
                         ('tools/faces_pictures.py:main',), check='faces'),
    'faces/cost': Result(('faces/cost.json',), 'python benchmarks/faces.py',
                         ('benchmarks/faces.py:main', 'benchmarks/faces.py:measure'),
                         ('configs/faces.yaml', 'configs/celeba_hq.yaml'), check='cost'),
    'museum/runs': Result(('museum/runs.json', 'museum/digits.webp'), 'python tools/museum.py',
                          tuple(f'tools/{f}' for f in (
                              'museum.py:runs', 'museum.py:doctor', 'museum.py:pictures',
                              'museum_run.py:train', 'museum_run.py:draw',
                              'museum_run.py:diagnose')), EYE, 'mnist_mini', 'museum'),
    'solvers/conformance': Result(('solvers/conformance.json',), 'python tests/test_solvers.py',
                                  ('tests/test_solvers.py:measured', 'tests/test_solvers.py:CASES'),
                                  check='conformance'),
    # make test runs the tests that the table lists: what they test need not be listed here
    'faults': Result(('faults.json',), 'make faults', ('tests/conftest.py:pytest_sessionfinish',
                     'tests/conftest.py:pytest_runtest_logreport'), check='faults'),
    'social': Result(('first.webp', 'social.png', 'favicon.png', 'favicon.svg', 'touch-icon.png'),
                     'python tools/social.py', ('tools/social.py:main',),
                     ('mnist-conditional', 'cifar10', 'faces'), check='social'),
    **{f'live/{images}': Result(
        (f'../live/noise_to_{images}.webp', f'../live/noise_to_{images}.json',
         f'../live/{images}.webp'), 'python tools/live.py animation',
        ('tools/live.py:animation',), (network,), check=f'live {network} {images}')
       for images, network in dict(digits='mnist-conditional', faces='faces').items()},
}
# made or checked by another program, at each `make test`
ELSEWHERE = {'map.svg': 'tools/check.py', 'map_narrow.svg': 'tools/check.py',
             'tiny_digits.png': 'tools/run_nbs.py', 'three_lines.png': 'tools/run_nbs.py'}
WRITTEN = {'results.json', 'figures.js', 'screen.js'}  # this table; scripts of the site
FETCHED = 'katex', 'minisearch'  # folders that the build of the site takes from npm


# ---- what a record holds

def digest(content: bytes) -> str: return hashlib.sha256(content).hexdigest()[:12]

class Tree:
    "Files of the working tree, or of a commit"
    def __init__(self, root: Path, commit=''):
        self.root, self.commit, self.code = root, commit, Code(self.text)

    def bytes(self, path: str) -> bytes | None:
        if self.commit:
            shown = subprocess.run(['git', 'show', f'{self.commit}:{path}'], cwd=self.root,
                                   capture_output=True)
            return None if shown.returncode else shown.stdout
        file = self.root/path
        return file.read_bytes() if file.is_file() else None

    def text(self, path: str) -> str | None:
        found = self.bytes(path)
        return None if found is None else found.decode('utf-8')

@cache
def earlier(root: Path, commit: str) -> Tree: return Tree(root, commit)

def input_file(name: str) -> str:
    if '/' in name: return name
    folder = 'extractors' if name.endswith('classifier') else 'weights'
    return f'{LIB}/{folder}/{name}/model.safetensors'

def input_hash(name: str, tree: Tree) -> str:
    "Of weights, or of what a config says without its comments"
    content = tree.bytes(input_file(name))
    if content is None: return 'missing'
    if not name.endswith('.yaml'): return digest(content)
    return digest(json.dumps(yaml.safe_load(content), sort_keys=True, default=str).encode())

def entries(result: Result, tree: Tree) -> list[str]:
    "The functions that make a result, and the networks of its weights"
    found = list(result.code)
    for name in result.inputs:
        config = tree.bytes(input_file(name).replace('model.safetensors', 'config.json'))
        if name.startswith('configs/') or config is None: continue
        module, _, network = json.loads(config).get('network', '').rpartition(':')
        if module: found.append(f"{module.replace('.', '/')}.py:{network}")
    return found

def depends(result: Result, now: Tree, then: Tree | None=None) -> dict:
    "Hashes of the code that counts now, and of the inputs: of this tree or of an earlier one"
    tree = then or now
    code = tree.code.hashes(now.code.used(entries(result, now)))
    inputs = {n: input_hash(n, tree) for n in result.inputs}
    return dict(code=code, inputs=inputs, data=DATA.get(result.data, ''))

def files_of(result: Result, root: Path, names=RESULTS) -> list[str]:
    "The files that are there, without those of a pattern that another result names"
    assets = root/'nbs'/'assets'
    named = {f for r in names.values() for f in r.files if '*' not in f}
    found = []
    for pattern in result.files:
        there = sorted(assets.glob(pattern)) if '*' in pattern else [assets/pattern]
        found += [str(f.relative_to(assets)) if '..' not in pattern else pattern for f in there
                  if f.is_file() and ('*' not in pattern or
                                      str(f.relative_to(assets)) not in named)]
    return found

def hashes(result: Result, root: Path) -> dict[str, str]:
    return {f: digest((root/'nbs'/'assets'/f).read_bytes()) for f in files_of(result, root)}

def read(root: Path) -> dict:
    file = root/RECORDS
    return json.loads(file.read_text(encoding='utf-8')) if file.exists() else {}

def keep(root: Path, name: str, record: dict):
    "Written whole or not at all, in the order of names"
    file, records = root/RECORDS, read(root) | {name: record}
    part = file.with_suffix('.part')
    part.write_text(json.dumps(dict(sorted(records.items())), indent=1, ensure_ascii=False) + '\n',
                    encoding='utf-8')
    os.replace(part, file)


# ---- states

class State(NamedTuple):
    word: str
    why: str = ''
    good: bool = True  # for make test

def state(name: str, record: dict | None, tree: Tree) -> State:
    result = RESULTS[name]
    there = hashes(result, tree.root)
    if record is None: return State('no record', f'--record {name}, or --again {name}', False)
    if lost := sorted(record['files'].keys() - there.keys()):
        return State('missing', ', '.join(lost), False)
    if there != record['files']:
        other = sorted(f for f in there if there[f] != record['files'].get(f))
        return State('changed', f"{', '.join(other)}: not the files of the record", False)
    now = depends(result, tree)
    changed = [k for part in ('code', 'inputs') for k in sorted(now[part] | record[part])
               if now[part].get(k) != record[part].get(k)]
    if now['data'] != record['data']: changed.append('data')
    if not changed:
        seen = record.get('checked')
        return State('fresh', f"checked {seen['date'][:10]}: {seen['what']}" if seen else '')
    reason = record.get('reason')
    because = f"because of {', '.join(changed)}"
    return State('stale', f'{reason["words"]} ({because})' if reason else because, bool(reason))

def page_texts(root: Path) -> str:
    "What the pages say, without quotes and spaces: 'assets'/'mnist' reads assets/mnist"
    files = [*root.glob('nbs/*.ipynb'), *root.glob('nbs/*.qmd'), root/'nbs'/'_quarto.yml',
             root/'_quarto.yml', root/'tools'/'furniture.py', root/'tools'/'build_docs.py']
    text = ' '.join(f.read_text(encoding='utf-8') for f in files if f.exists())
    return re.sub(r'[\'"\\ ]', '', text)

def orphans(root: Path) -> list[tuple[str, str]]:
    "Files below nbs/assets that no program makes, or no page reads, and why"
    assets, pages = root/'nbs'/'assets', page_texts(root)
    made = {f for r in RESULTS.values() for f in files_of(r, root)} | set(ELSEWHERE) | WRITTEN
    found = []
    there = (f for f in assets.rglob('*') if f.is_file())
    for file in sorted(f for f in there if f.relative_to(assets).parts[0] not in FETCHED):
        name = str(file.relative_to(assets))
        folder = name.rpartition('/')[0]
        read_as = [f'assets/{name}', *([f'assets/{folder}'] if folder else [])]
        if name not in made: found.append((name, 'no program makes it'))
        elif name not in WRITTEN and not any(r in pages for r in read_as):
            found.append((name, 'no page reads it'))
    return found


# ---- records are made

def from_files(result: Result, root: Path) -> dict:
    "What the files themselves say of how they were made"
    found, keys = {}, ('date', 'cpu', 'device', 'threads', 'torch', 'seconds', 'cpu_seconds')
    for file in files_of(result, root):
        if not file.endswith('.json'): continue
        content = json.loads((root/'nbs'/'assets'/file).read_text(encoding='utf-8'))
        made = content.get('made')
        for part in (content, made if isinstance(made, dict) else {}):
            found |= {k: part[k] for k in keys if k in part}
        if rows := [r.get('cpu_seconds') for r in content.get('rows', []) if 'cpu_seconds' in r]:
            found['cpu_seconds'] = round(sum(rows))
    words = [found.get('cpu'), found.get('device'),
             f"{found['threads']} thread(s)" if 'threads' in found else None,
             f"torch {found['torch']}" if 'torch' in found else None]
    seconds = found.get('seconds', found.get('cpu_seconds'))
    return dict(date=found.get('date'), machine=', '.join(filter(None, words)) or None,
                seconds=seconds)

def machine() -> str:
    "Without a path or a name of a host"
    import torch
    from diffusion_scratch.run import processor_name
    return f'{processor_name()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}'

def now() -> str: return datetime.now(timezone.utc).isoformat(timespec='seconds')

def git(root: Path, *words: str) -> str:
    done = subprocess.run(['git', *words], cwd=root, capture_output=True, text=True)
    return done.stdout.strip()

def last_commit(result: Result, root: Path) -> str:
    "The earliest of the last commits of its files; none where one is not committed as it is"
    files = [f'nbs/assets/{f}' for f in files_of(result, root)]
    if not files or git(root, 'status', '--porcelain', '--', *files): return ''
    commits = [git(root, 'log', '-1', '--format=%ct %h', '--', f) for f in files]
    return min(commits, key=lambda c: int(c.split()[0])).split()[1] if all(commits) else ''

def recorded(name: str, tree: Tree, commit: str='', **facts) -> dict:
    "A record: of a result that was made now, or by the code of a commit"
    result = RESULTS[name]
    then = earlier(tree.root, commit) if commit else None
    about = dict(command=result.command, seed=0) | facts | ({'commit': commit} if commit else {})
    return about | dict(files=hashes(result, tree.root)) | depends(result, tree, then)

def record(name: str, tree: Tree):
    if not files_of(RESULTS[name], tree.root):
        sys.exit(f'{name} has no files yet: `{RESULTS[name].command}` makes them')
    commit = last_commit(RESULTS[name], tree.root)
    facts = from_files(RESULTS[name], tree.root)
    facts['date'] = facts['date'] or (git(tree.root, 'log', '-1', '--format=%cI', commit)
                                      if commit else now())
    keep(tree.root, name, recorded(name, tree, commit, **facts))

def again(name: str, tree: Tree, root_of_data: str | None):
    "Run its command. Where the code of an earlier try was another, its rows and images are removed"
    result = RESULTS[name]
    also = [n for n, r in RESULTS.items() if r.command == result.command]  # one makes several
    present = {n: depends(RESULTS[n], tree) for n in also}  # it may be edited while this runs
    note = tree.root/'runs'/'again'/f"{name.replace('/', '-')}.json"
    if not note.exists() or json.loads(note.read_text()) != present: begin_anew(name, tree.root)
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(present))
    words = shlex.split(result.command)
    if words[0] == 'python': words[0] = sys.executable
    if root_of_data and (result.data and result.data != 'mnist_mini'):
        words += ['--root', root_of_data]
    began, env = time.time(), {**os.environ, 'PYTHONPATH': str(tree.root)}
    if subprocess.run(words, cwd=tree.root, env=env).returncode:
        sys.exit(f'{name}: `{result.command}` failed; nothing is recorded')
    facts = dict(date=now(), machine=machine(), seconds=round(time.time() - began))
    for n in also: keep(tree.root, n, recorded(n, tree, **facts) | present[n])
    note.unlink()

def begin_anew(name: str, root: Path):
    "Tables that grow by a row, images that were drawn for them and runs are not to go on"
    folder, _, piece = name.rpartition('/')
    for file in files_of(RESULTS[name], root) if ' measure ' in RESULTS[name].command else []:
        path = root/'nbs'/'assets'/file
        if file.endswith('.json') and 'rows' in json.loads(path.read_text()): path.unlink()
    for there in (root/'runs').glob(f'{folder}_images/*'):
        if piece in there.name: shutil.rmtree(there)
    for config in RESULTS[name].inputs:
        if config.startswith('configs/'):
            shutil.rmtree(root/'runs'/'stored'/Path(config).stem, ignore_errors=True)

def confirm(name: str, tree: Tree, root_of_data: str | None):
    "The first images or numbers again. Only if they are the stored ones, the record is renewed"
    import spot_checks
    record, result = read(tree.root).get(name), RESULTS[name]
    if record is None: sys.exit(f'{name} has no record: give --record {name} first')
    if hashes(result, tree.root) != record['files']:
        sys.exit(f'{name}: its files are not those of the record; --again {name}')
    if not result.check: sys.exit(f'{name} has no spot check: --again {name}, or --reason')
    for n in result.inputs:  # a config that has changed may still say the same of this result
        if not n.endswith('.yaml') and input_hash(n, tree) != record['inputs'].get(n):
            sys.exit(f'{name}: the weights {n} are not those of the record; --again {name}')
    present = depends(result, tree)  # it may be edited while this runs
    what = spot_checks.run_check(result.check, root_of_data)
    checked = dict(date=now(), machine=machine(), what=what)
    renewed = {k: v for k, v in record.items() if k != 'reason'} | present
    keep(tree.root, name, renewed | dict(checked=checked))
    print(f'{name}: confirmed, {what}')


# ---- the command

def chosen(names: list[str]) -> list[str]:
    found = [n for n in RESULTS if any(n == w or n.startswith(f'{w}/') for w in names)]
    for w in names:
        if not any(n == w or n.startswith(f'{w}/') for n in RESULTS):
            sys.exit(f'{w} is no result; allowed: {", ".join(RESULTS)}')
    return found

def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('names', nargs='*', metavar='NAME', help='results, or folders of them')
    what = p.add_mutually_exclusive_group()
    what.add_argument('--check', action='store_true', help='exit 1 where a result is stale '
                      'without a stated reason, changed, missing, orphaned or not recorded')
    what.add_argument('--confirm', action='store_true', help='make the spot check of these; a '
                      'result that differs keeps its record')
    what.add_argument('--again', action='store_true', help='make these again, or all that are '
                      'not fresh')
    what.add_argument('--record', action='store_true', help='record files that were made by hand')
    what.add_argument('--reason', action='store_true', help='state why these may stay stale')
    p.add_argument('--words', default='', help='the reason')
    p.add_argument('--root', help='folder that has the files of MNIST or CIFAR-10')
    p.add_argument('--tree', type=Path, default=ROOT, help='of the repository (default: this one)')
    a = p.parse_intermixed_args()
    tree = Tree(a.tree.resolve())
    names = chosen(a.names) if a.names else list(RESULTS)
    if a.reason and not a.words.strip(): p.error('--reason needs --words "..."')
    if (a.reason or a.record or a.confirm) and not a.names: p.error('name the results')
    failed = []
    for name in names:
        if a.record: record(name, tree)
        elif a.again:
            if a.names or state(name, read(tree.root).get(name), tree).word != 'fresh':
                print(f'--- {name}', flush=True); again(name, tree, a.root)
        elif a.confirm:
            try: confirm(name, tree, a.root)
            except (AssertionError, FileNotFoundError, RuntimeError) as e:
                failed.append(name); print(f'{name}: NOT confirmed, {e}', flush=True)
        elif a.reason:
            known = read(tree.root).get(name) or sys.exit(f'{name} has no record')
            keep(tree.root, name, known | dict(reason=dict(date=now(), words=a.words.strip())))
    if failed: sys.exit(1)
    show(tree, names, a.check, whole=not a.names)

def show(tree: Tree, names: list[str], check: bool, whole: bool):
    records, bad = read(tree.root), 0
    for name in names:
        s = state(name, records.get(name), tree)
        bad += not s.good
        if not check or not s.good: print(f'{name:23} {s.word:9} {s.why}'.rstrip())
    for file, why in orphans(tree.root) if whole else []:
        bad += 1
        print(f'{file:23} orphaned  {why}')
    if whole and not check:
        for file, program in ELSEWHERE.items(): print(f'{file:23} kept by   {program}')
    for name in sorted(records.keys() - RESULTS.keys()) if whole else []:
        bad += 1
        print(f'{name:23} orphaned  a record without a line in RESULTS')
    if check and bad: sys.exit(f'{bad} results need a word: python tools/provenance.py --help')


if __name__ == '__main__': main()
