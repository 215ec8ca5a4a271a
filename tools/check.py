"""Check that what is derived from the notebooks is in step with them: the library, clean metadata, README.md.
And that imports have cells of their own: to build the site, nbdev runs the cells that import, and no others.

    python tools/check.py

The work is done in a copy, so nothing here is changed and the tree need be neither clean nor under git.
"""
import ast, json, re, shutil, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEEP = 'settings.ini setup.py _quarto.yml README.md nbs tools diffusion_scratch'.split()
BIN = Path(sys.executable).parent


def files(folder: Path, pattern: str) -> dict[str, str]:
    "Name -> text of the files of a folder"
    return {f.name: f.read_text(encoding='utf-8') for f in folder.glob(pattern)}


def compare(name: str, here: dict, there: dict, advice: str) -> list[str]:
    "What differs between the files here and those made anew"
    return ([f'{name}/{f} comes from no notebook: delete it' for f in sorted(here.keys() - there.keys())] +
            [f'{name}/{f} is not what the notebooks say: {advice}' for f in sorted(there) if here.get(f) != there[f]])


def mixed(name: str, notebook: str) -> list[str]:
    "The cells of a notebook, given as its text, that import and do something else too"
    found = []
    for i, cell in enumerate(json.loads(notebook)['cells'], 1):
        source = ''.join(cell['source'])
        if cell['cell_type'] != 'code' or re.search(r'(?m)^#\|\s*(exports?|eval:\s*false)\b', source): continue
        try: statements = ast.parse(source).body
        except SyntaxError: continue  # magics
        imports = [isinstance(s, (ast.Import, ast.ImportFrom)) for s in statements]
        if any(imports) and not all(imports): found.append(f'nbs/{name}, cell {i}: put its imports in a cell of their own')
    return found


def main():
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp)
        for k in KEEP:
            if (ROOT/k).is_dir(): shutil.copytree(ROOT/k, copy/k, symlinks=True, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
            else: shutil.copy2(ROOT/k, copy/k)
        for f in (copy/'diffusion_scratch').glob('*.py'): f.unlink()
        for command in ([BIN/'nbdev_export'], [BIN/'nbdev_clean'], [sys.executable, 'tools/build_docs.py', '--readme']):
            subprocess.run(command, cwd=copy, check=True)
        notebooks = files(ROOT/'nbs', '*.ipynb')
        problems = (compare('diffusion_scratch', files(ROOT/'diffusion_scratch', '*.py'), files(copy/'diffusion_scratch', '*.py'), 'run nbdev_export') +
                    compare('nbs', notebooks, files(copy/'nbs', '*.ipynb'), 'run nbdev_clean') +
                    compare('.', files(ROOT, 'README.md'), files(copy, 'README.md'), 'run python tools/build_docs.py --readme'))
    problems += [p for name, text in notebooks.items() for p in mixed(name, text)]
    for p in problems: print(p, file=sys.stderr)
    print('library, notebooks and README.md are in step' if not problems else f'{len(problems)} problem(s)', file=sys.stderr)
    sys.exit(bool(problems))


if __name__ == '__main__': main()
