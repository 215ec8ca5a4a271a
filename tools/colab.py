"""The cell, hidden on the site, by which a notebook on Colab fetches the book and installs it.

    python tools/colab.py [--check]    # write it below the title of every notebook that has code

Elsewhere the cell does nothing.
"""
import argparse, json, sys
from pathlib import Path

import yaml

ID = 'colab'
SOURCE = """#| hide
# On Colab: fetch the book, install its package, work in the folder of the notebooks
if 'google.colab' in str(get_ipython()):
    get_ipython().system('test -d /content/book || git clone -q --depth 1 '
                         '{url} /content/book')
    get_ipython().system('pip install -q /content/book')
    get_ipython().run_line_magic('cd', '/content/book/nbs')"""


def with_cell(nb: dict, url: str) -> dict:
    "A notebook with the cell below its title"
    if not any(c['cell_type'] == 'code' for c in nb['cells']): return nb
    cell = dict(cell_type='code', execution_count=None, id=ID, metadata={}, outputs=[],
                source=SOURCE.format(url=url).splitlines(keepends=True))
    title, *others = [c for c in nb['cells'] if c['id'] != ID]
    return {**nb, 'cells': [title, cell, *others]}


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--check', action='store_true', help='write nothing; fail if a cell is missing')
    check, root = ap.parse_args().check, Path(__file__).parent.parent
    url, stale = yaml.safe_load((root/'_quarto.yml').read_text())['book']['repo-url'], []
    for file in sorted((root/'nbs').glob('*.ipynb')):
        nb = json.loads(file.read_text(encoding='utf-8'))
        new = with_cell(nb, url)
        if new == nb: continue
        stale.append(file.name)
        if check: continue
        text = json.dumps(new, ensure_ascii=False, indent=1, sort_keys=True) + '\n'
        file.write_text(text, encoding='utf-8')
    if check and stale: sys.exit(f'without the cell for Colab: {", ".join(stale)}; '
                                 'run python tools/colab.py')


if __name__ == '__main__': main()
