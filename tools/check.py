"""Check that what is derived from the notebooks is in step with them.

    python tools/check.py

That is the library, clean metadata, README.md and the map of chapters. And imports have cells of
their own, so that a page can fold them away. The work is done in a copy: nothing here is changed,
and the tree need be neither clean nor under git.
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
    extra = sorted(here.keys() - there.keys())
    other = [f for f in sorted(there) if here.get(f) != there[f]]
    return ([f'{name}/{f} comes from no notebook: delete it' for f in extra] +
            [f'{name}/{f} is not what the notebooks say: {advice}' for f in other])


def mixed(name: str, notebook: str) -> list[str]:
    "The cells of a notebook, given as its text, that import and do something else too"
    if name == 'index.ipynb': return []  # its lines are there to be copied
    found = []
    for i, cell in enumerate(json.loads(notebook)['cells'], 1):
        source = ''.join(cell['source'])
        if cell['cell_type'] != 'code': continue
        if re.search(r'(?m)^#\|\s*exports?\b', source): continue
        try: statements = ast.parse(source).body
        except SyntaxError: continue  # magics
        imports = [isinstance(s, (ast.Import, ast.ImportFrom)) for s in statements]
        if any(imports) and not all(imports):
            found.append(f'nbs/{name}, cell {i}: put its imports in a cell of their own')
    return found


def copy_tree(to: Path):
    "What the check needs, without the library, which is made anew"
    unneeded = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
    for k in KEEP:
        if (ROOT/k).is_dir(): shutil.copytree(ROOT/k, to/k, symlinks=True, ignore=unneeded)
        else: shutil.copy2(ROOT/k, to/k)
    for f in (to/'diffusion_scratch').glob('*.py'):
        if f.name != '__init__.py': f.unlink()  # nbdev writes its version only


def main():
    make_readme = [sys.executable, 'tools/build_docs.py', '--readme']
    steps = [('diffusion_scratch', '*.py', 'run nbdev_export'),
             ('nbs', '*.ipynb', 'run nbdev_clean'),
             ('.', 'README.md', 'run python tools/build_docs.py --readme'),
             ('nbs/assets', 'map*.svg', 'run python tools/chapter_map.py')]
    problems = []
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp)
        copy_tree(copy)
        for command in ([BIN/'nbdev_export'], [BIN/'nbdev_clean'], make_readme):
            subprocess.run(command, cwd=copy, check=True)
        for folder, pattern, advice in steps:
            here, there = files(ROOT/folder, pattern), files(copy/folder, pattern)
            problems += compare(folder, here, there, advice)
    notebooks = files(ROOT/'nbs', '*.ipynb')
    problems += [p for name, text in notebooks.items() for p in mixed(name, text)]
    for p in problems: print(p, file=sys.stderr)
    if problems: sys.exit(f'{len(problems)} problem(s)')
    print('library, notebooks, README.md and the map of chapters are in step', file=sys.stderr)


if __name__ == '__main__': main()
