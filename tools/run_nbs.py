"""Run the notebooks and keep their outputs, or check that the outputs kept are not stale.

    python tools/run_nbs.py [NAME ...]         # run, store outputs and a stamp of the code, clean
    python tools/run_nbs.py --test [NAME ...]  # run, store nothing: fail where a cell fails, or
                                               # where a file was changed or left behind
    python tools/run_nbs.py --check            # run nothing: fail where code has changed since

Every cell runs, in the folder of the notebooks, as with Run All of Jupyter. The stamp covers a
notebook's own code and the modules of the library that it imports, without comments and
docstrings. The library is the one of this checkout. The same code gives the same file, but for
what it draws at random.
"""
import argparse, ast, base64, hashlib, io, json, os, re, sys, tempfile, time, tokenize
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from nbdev.clean import nbdev_clean
from nbdev.config import get_config

import figures

def source(cell: dict) -> str: return ''.join(cell['source'])

def is_code(cell: dict) -> bool: return cell['cell_type'] == 'code'

def not_for_jupyter(cell: dict) -> bool:
    "Does a cell ask not to be run? Quarto and nbdev obey, Jupyter does not"
    return is_code(cell) and bool(re.search(r'(?m)^#\|\s*eval:\s*false', source(cell)))


def modules(code: str, lib: Path, seen: set) -> set[Path]:
    "The library files that `code` imports, and the ones that those import"
    for name in re.findall(rf'(?:from|import)\s+(?:{lib.name})?\.([\w.]+)', code):
        file = lib/(name.replace('.', '/') + '.py')
        if not file.exists() or file in seen: continue
        seen.add(file)
        modules(file.read_text(encoding='utf-8'), lib, seen)
    return seen


def meaning(code: str) -> str:
    "Code without what changes no output: comments, empty lines, docstrings"
    try: tree, tokens = ast.parse(code), list(tokenize.generate_tokens(io.StringIO(code).readline))
    except (SyntaxError, tokenize.TokenError): return code  # magics
    lines = code.splitlines()
    for t in tokens:
        if t.type == tokenize.COMMENT: lines[t.start[0] - 1] = lines[t.start[0] - 1][:t.start[1]]
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)): continue
        if ast.get_docstring(node) is None: continue
        doc = node.body[0]
        for i in range(doc.lineno - 1, doc.end_lineno): lines[i] = ''
    return '\n'.join(l.rstrip() for l in lines if l.strip())


def stamp(nb: dict, lib: Path) -> str:
    cells = [source(c) for c in nb['cells'] if is_code(c)]
    files = sorted(modules('\n'.join(cells), lib, set()))
    texts = [*cells, *(f.read_text(encoding='utf-8') for f in files)]
    whole = '\n'.join(map(meaning, texts))
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


WIDGET = 'application/vnd.jupyter.widget-view+json'

def passing(output: dict) -> bool:
    "Is this a progress bar, or a widget, which a page without a kernel cannot show?"
    if WIDGET in output.get('data', {}): return 'text/html' not in output['data']
    return output.get('name') == 'stderr' and '\r' in output['text']


def settle(nb: dict):
    """Take out what two runs of the same code do not share: progress bars, random names of players,
    dates of drawings; and what no page shows"""
    nb['metadata'].pop('widgets', None)
    players = 0
    for cell in nb['cells']:
        if cell['cell_type'] != 'code': continue
        cell['outputs'] = [o for o in cell['outputs'] if not passing(o)]
        for data in (o['data'] for o in cell['outputs'] if 'data' in o):
            if 'image/png' in data: data.pop('image/jpeg', None)  # Pillow gives both
            if 'image/svg+xml' in data: data['image/svg+xml'] = figures.lean(data['image/svg+xml'])
            if 'text/html' not in data: continue
            data.pop(WIDGET, None)  # the HTML stands for it on a page
            data['text/html'] = figures.lean_frames(data['text/html'])
            for name in dict.fromkeys(re.findall(r'_anim_img([0-9a-f]{32})', data['text/html'])):
                data['text/html'] = data['text/html'].replace(name, f'{players:032x}')
                players += 1


def keep_pictures(nb: dict, folder: Path):
    "Store the picture of a cell with `#| keep: assets/name.png` there too: a page can open with it"
    for cell in nb['cells']:
        if not (named := re.search(r'(?m)^#\|\s*keep:\s*(\S+)', source(cell))): continue
        made = [o.get('data', {}) for o in cell['outputs']]
        [png] = [data['image/png'] for data in made if 'image/png' in data]
        (folder/named[1]).write_bytes(base64.b64decode(png))


def execute(nb, file: Path, lib: Path):
    "Run every cell of a notebook from top to bottom, with the library of this checkout"
    from nbclient import NotebookClient
    def first(place, name): return os.pathsep.join(filter(None, [str(place), os.environ.get(name)]))
    env = {**os.environ, 'PYTHONPATH': first(lib.parent, 'PYTHONPATH'),
           'PATH': first(Path(sys.executable).parent, 'PATH')}
    where = {'metadata': {'path': str(file.parent)}}
    client = NotebookClient(nb, timeout=1800, kernel_name='python3', resources=where,
                            extra_arguments=["--InlineBackend.figure_formats={'svg'}"])
    with tempfile.TemporaryDirectory() as sockets:  # two kernels may choose the same port of TCP
        client.create_kernel_manager()
        if os.name == 'posix': client.km.transport, client.km.ip = 'ipc', f'{sockets}/kernel'
        client.execute(env=env)


def run(file: Path, lib: Path):
    "Execute a notebook and store its outputs and its stamp in it"
    import nbformat
    before, began = file.read_text(encoding='utf-8'), time.time()
    nb = nbformat.reads(before, 4)
    execute(nb, file, lib)
    settle(nb)
    nb.metadata['ran'] = stamp(nb, lib)
    if file.read_text(encoding='utf-8') != before:
        sys.exit(f'{file.name} was edited while it ran: nothing is stored, run it again')
    nbformat.write(nb, file)
    keep_pictures(nb, file.parent)
    nbdev_clean.__wrapped__(str(file))
    print(f'{file.name} {time.time() - began:.1f} s')


def fails(file: Path, lib: Path) -> list[str]:
    "Execute a notebook and store nothing: the error, if there is one"
    import nbformat
    from nbclient.exceptions import CellControlSignal, CellExecutionError, CellTimeoutError
    began = time.time()
    try: execute(nbformat.read(file, 4), file, lib)
    except (CellExecutionError, CellTimeoutError, CellControlSignal) as e:
        plain = re.sub(r'\x1b\[[\d;]*m', '', str(e))
        return [f'{file.name}: {plain[-3000:]}']
    print(f'{file.name} {time.time() - began:.1f} s', flush=True)
    return []


def snapshot(root: Path, folders: list[Path]) -> dict[str, str]:
    "File -> hash of what lies in these folders, and at the top of the repository"
    there = [f for f in root.iterdir() if f.is_file()]
    there += [f for folder in folders for f in folder.rglob('*') if f.is_file()]
    passing = {'__pycache__', '.ipynb_checkpoints'}
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest()
            for f in there if not passing & set(f.parts)}


def test(files: list[Path], cfg, workers: int) -> list[str]:
    "What is wrong if all these notebooks run: errors, and files that they change or leave behind"
    look = partial(snapshot, cfg.config_path, [cfg.nbs_path, cfg.lib_path])
    before = look()
    with ProcessPoolExecutor(workers) as pool:
        found = sum(pool.map(partial(fails, lib=cfg.lib_path), files), [])
    after = look()
    changed = sorted(k for k in before | after if before.get(k) != after.get(k))
    return found + [f'{k} was changed, removed or left behind by a notebook' for k in changed]


def problems(file: Path, lib: Path) -> list[str]:
    "What is wrong with a notebook's stored outputs"
    nb = json.loads(file.read_text(encoding='utf-8'))
    outputs = [o for c in nb['cells'] for o in c.get('outputs', [])]
    words = '\n'.join(''.join(o.get('text') or o.get('data', {}).get('text/plain', ''))
                      for o in outputs)
    here = rf'{re.escape(str(lib.parent))}/|/site-packages/|(?<![\w.])/(tmp|home|root|Users)/'
    found = []
    if nb['metadata'].get('ran') != stamp(nb, lib):
        found.append('its outputs are older than its code; '
                     f'run `python tools/run_nbs.py {file.stem}`')
    if any(o['output_type'] == 'error' for o in outputs):
        found.append('a stored output is an error')
    if re.search(here, words):
        found.append('a stored output names a path of the machine that it ran on')
    if any(map(not_for_jupyter, nb['cells'])):
        found.append('Jupyter runs a cell with `eval: false` too: make it text, or let it run')
    return [f'{file.name}: {what}' for what in found]


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('names', nargs='*', metavar='NAME',
                    help='notebooks whose names start so; all if none')
    ap.add_argument('--check', action='store_true',
                    help='run nothing; fail if stored outputs are stale or errors')
    ap.add_argument('--test', action='store_true',
                    help='run and store nothing; fail if a cell fails, or a file was changed')
    ap.add_argument('--workers', type=int, default=1, metavar='N',
                    help='with --test: so many notebooks at once')
    args, cfg = ap.parse_args(), get_config()
    wanted = tuple(args.names) or ''
    files = [f for f in sorted(cfg.nbs_path.glob('*.ipynb')) if f.name.startswith(wanted)]
    found = test(files, cfg, args.workers) if args.test else []
    for f in [] if args.test else files:
        if args.check: found += problems(f, cfg.lib_path)
        else: run(f, cfg.lib_path)
    for p in found: print(p, file=sys.stderr)
    sys.exit(bool(found))


if __name__ == '__main__': main()
