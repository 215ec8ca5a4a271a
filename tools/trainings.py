"""The trainings of chapters that take minutes: run them, and store what they return for the page.

    python tools/trainings.py               # those that are missing, or whose code has changed
    python tools/trainings.py 28_transformer
    python tools/trainings.py --check       # run nothing: fail where a chapter's code has changed

A chapter defines a function of no arguments, and reads what this program stored of it. The function
is taken from the chapter with the definitions that it uses, so the page prints the code that ran.
Lists of numbers are stored as JSON, images as compressed arrays.
"""
import argparse, ast, hashlib, json, os, sys, time
from datetime import date
from pathlib import Path

import numpy as np
import torch

from diffusion_scratch.checkpoint import atomic
from diffusion_scratch.data import fingerprint, mnist_mini
from depends import defined, needed, text
from run_nbs import meaning

NBS = Path(__file__).resolve().parent.parent/'nbs'
# chapter -> its function, and the file that the page reads, in nbs/assets
STORED = {'05_unet': ('other_starts', 'unet/starts.json'),
          '09_training': ('first_run', 'training/digits.npz'),
          '11_names': ('newly_trained', 'names/digits.npz'),
          '12_guidance': ('thick_and_thin', 'guidance/strokes.npz'),
          '28_transformer': ('other_runs', 'transformer/runs.json')}


def program(notebook: Path, name: str) -> tuple[str, str]:
    "The imports of a chapter; the definition of `name` with all the definitions that it uses"
    cells = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    sources = [''.join(c['source']) for c in cells if c['cell_type'] == 'code']
    nodes = [(n, text(s, n)) for s in sources for n in ast.parse(s).body]
    taken, wanted = set(), {name}
    while wanted:
        found = {i for i, (n, _) in enumerate(nodes) if defined(n) & wanted} - taken
        taken |= found
        wanted = set().union(*(needed(nodes[i][0]) - defined(nodes[i][0]) for i in found))
    given = [n for i in taken for n in defined(nodes[i][0])]
    if name not in given: sys.exit(f'{notebook.name} defines no {name}')
    if twice := {n for n in given if given.count(n) > 1}:
        sys.exit(f'{notebook.name}: {name} uses names that are defined twice: {sorted(twice)}')
    imports = [text for n, text in nodes if isinstance(n, (ast.Import, ast.ImportFrom))]
    return '\n'.join(imports), '\n'.join(nodes[i][1] for i in sorted(taken))


def code_hash(definitions: str) -> str:
    "Of code without comments and docstrings"
    return hashlib.sha256(meaning(definitions).encode()).hexdigest()[:16]


def run(chapter: str):
    "Call the function of a chapter, and store what it returns with a record of how it was made"
    name, file = STORED[chapter]
    imports, definitions = program(NBS/f'{chapter}.ipynb', name)
    space, began = {}, time.process_time()
    os.chdir(NBS)
    exec(compile(f'{imports}\n{definitions}', chapter, 'exec'), space)
    results = space[name]()
    made = dict(command=f'python tools/trainings.py {chapter}', code=code_hash(definitions),
                data=f'mnist_mini {fingerprint(mnist_mini())[:12]}', seed=0,
                torch=torch.__version__, device=f'cpu, {torch.get_num_threads()} thread',
                cpu_seconds=round(time.process_time() - began), date=str(date.today()))
    target = NBS/'assets'/file
    if target.suffix == '.npz':
        with atomic(target) as part, open(part, 'wb') as f: np.savez_compressed(f, **results)
        write(target.with_suffix('.json'), dict(made=made))
    else:
        results = {k: [round(v, 5) for v in values] for k, values in results.items()}
        write(target, dict(results=results, made=made))
    print(f'{chapter}: {made["cpu_seconds"]} s of processor time')


def write(file: Path, content: dict):
    with atomic(file) as part: part.write_text(json.dumps(content, indent=1) + '\n')


def problems(chapter: str) -> list[str]:
    "What is wrong with the stored results of a chapter"
    name, file = STORED[chapter]
    record = (NBS/'assets'/file).with_suffix('.json')
    code = code_hash(program(NBS/f'{chapter}.ipynb', name)[1])
    if record.exists() and json.loads(record.read_text())['made']['code'] == code: return []
    return [f'{file}: its code in {chapter} has changed since; '
            f'run `python tools/trainings.py {chapter}`']


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument('chapters', nargs='*', choices=[*STORED, []], default=[])
    p.add_argument('--check', action='store_true', help='run nothing; fail if results are stale')
    args = p.parse_args()
    torch.set_num_threads(1)
    chapters = args.chapters or list(STORED)
    if not args.check:
        for chapter in args.chapters or [c for c in chapters if problems(c)]: run(chapter)
    found = [p for chapter in chapters for p in problems(chapter)]
    for p in found: print(p, file=sys.stderr)
    sys.exit(bool(found))


if __name__ == '__main__': main()
