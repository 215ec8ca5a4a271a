"""The equation ledger: every numbered equation of the book, its code and the tests that check it.

    python tools/ledger.py           # print the table
    python tools/ledger.py --check   # and fail if an equation has no test, or a test no equation

An equation is labelled in a chapter, `$$ ... $$ {#eq-name}`. Code and tests name it, `eq-name`, in
a docstring or a comment: code in an exported cell, tests in a cell of a chapter that asserts
something, or in a function of tests/.
"""
import argparse, ast, json, re, sys
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
# file names of numbered chapters; 00_tiny comes before the first
NUMBERED = re.compile(r'(?!00_)\d')
LABELLED = re.compile(r'(?s)\$\$((?:(?!\$\$).)+)\$\$\s*\{#(eq-[\w-]+)\}')
NAMED = re.compile(r'\beq-[a-zA-Z](?:[\w-]*\w)?')
EXPORTED = re.compile(r'(?m)^#\|\s*exports?\b')
ASSERTS = re.compile(r'(?m)\bassert\b|^\s*test_\w+\(|assert_close')


@dataclass
class Equation:
    label: str
    number: str
    chapter: str  # stem of its notebook
    latex: str
    code: list[str] = field(default_factory=list)
    tests: list[str] = field(default_factory=list)


def chapters(node) -> list[str]:
    "The notebooks of a book, in order, out of the `chapters` of _quarto.yml"
    out = []
    for c in node:
        if isinstance(c, dict):
            if str(c.get('part')).endswith('.ipynb'): out.append(c['part'])
            out += chapters(c.get('chapters', []))
        else: out.append(c)
    return out


def cells(file: Path):
    "(kind, source) of a notebook's cells"
    for c in json.loads(file.read_text(encoding='utf-8'))['cells']:
        yield c['cell_type'], ''.join(c['source'])


def segment(source: str, node: ast.AST) -> str:
    "The text of a part of some Python; `ast.get_source_segment` splits all lines at each call"
    lines = lines_of(source)[node.lineno - 1:node.end_lineno]
    lines[-1] = lines[-1].encode()[:node.end_col_offset].decode()
    lines[0] = lines[0].encode()[node.col_offset:].decode()
    return '\n'.join(lines)


@lru_cache(maxsize=64)
def lines_of(source: str) -> list[str]: return source.split('\n')


def definitions(source: str):
    "(name, text) of each function, class and constant of a piece of Python"
    for node in ast.parse(source).body:
        name = getattr(node, 'name', None)
        if isinstance(node, ast.Assign): name = ast.unparse(node.targets[0])
        if name: yield name, segment(source, node)


def read(root: Path) -> tuple[list[Equation], list[str]]:
    "All equations with what names them, and what is wrong"
    book = yaml.safe_load((root/'_quarto.yml').read_text(encoding='utf-8'))['book']
    names = [n for n in chapters(book['chapters']) if NUMBERED.match(n)]
    notebooks = {Path(n).stem: list(cells(root/'nbs'/n)) for n in names}
    equations, problems = {}, []
    for i, (chapter, cs) in enumerate(notebooks.items(), 1):
        found = [m for kind, s in cs if kind == 'markdown' for m in LABELLED.findall(s)]
        for j, (latex, l) in enumerate(found, 1):
            if l in equations:
                problems.append(f'{chapter}: {l} is already an equation of {equations[l].chapter}')
            equations[l] = Equation(l, f'{i}.{j}', chapter, latex.strip())

    def name(text, where, what):
        for l in set(NAMED.findall(text)):
            if l in equations: getattr(equations[l], what).append(where)
            else: problems.append(f'{where} names {l}, which is no equation')

    for chapter, cs in notebooks.items():
        modules = [m[1] for _, s in cs if (m := re.search(r'#\|\s*default_exp\s+(\S+)', s))]
        module = modules[0] if modules else ''
        for i, (kind, s) in enumerate(cs):
            if kind != 'code': continue
            if EXPORTED.search(s):
                for d, text in definitions(s): name(text, f'{module}.{d}', 'code')
            elif ASSERTS.search(s): name(s, f'{chapter}, cell {i + 1}', 'tests')
    for file in sorted((root/'tests').glob('test_*.py')):
        for d, text in definitions(file.read_text(encoding='utf-8')):
            if d.lower().startswith('test'): name(text, f'tests/{file.name}::{d}', 'tests')
    problems += [f'{e.chapter}: equation {e.number} ({e.label}) has no test'
                 for e in equations.values() if not e.tests]
    return list(equations.values()), problems


def table(equations: list[Equation]) -> str:
    "The ledger for a terminal"
    names = lambda xs: ', '.join(dict.fromkeys(xs))
    return '\n'.join(f'{e.number:5} {e.label:24} {names(e.code) or "(a step on the way)"} '
                     f'<- {names(e.tests)}' for e in equations)


def cells_of(tests: list[str]) -> dict[str, list[int]]:
    "Chapter -> the numbers of its cells that are among some tests"
    found = {}
    for chapter, n in (t.split(', cell ') for t in tests if ', cell ' in t):
        found.setdefault(chapter, []).append(int(n))
    return found


def test_lines(root: Path) -> dict[str, int]:
    "`tests/file.py::name` -> its line"
    return {f'tests/{f.name}::{node.name}': node.lineno
            for f in sorted((root/'tests').glob('test_*.py'))
            for node in ast.parse(f.read_text(encoding='utf-8')).body if hasattr(node, 'name')}


def entry(e: Equation, shown: dict[str, set[int]], url, lines: dict[str, int]) -> str:
    """An equation on the page, with links to it, to its code and to its tests; `shown` has the
    cells that are printed, `url(path, line)` leads to a file of the repository"""
    tests = []
    for chapter, numbers in cells_of(e.tests).items():
        links = [f'[{n}]({chapter}.ipynb#check-{n})' if n in shown.get(chapter, ()) else str(n)
                 for n in dict.fromkeys(numbers)]
        word = 'cells' if len(links) > 1 else 'cell'
        tests.append(f'[{chapter}]({chapter}.ipynb) {word} {", ".join(links)}')
    for t in dict.fromkeys(t for t in e.tests if '::' in t):
        path = t.split('::')[0]
        tests.append(f'[`{t.removeprefix("tests/")}`]({url(path, lines[t])})')
    code = ', '.join(f'`{c.split(".", 1)[1]}`' for c in dict.fromkeys(e.code))
    return '\n\n'.join([f'::: {{.ledger-entry}}\n[-@{e.label}]{{.number}}',
                        f'$$\n{e.latex}\n$$',
                        f'[Code]{{.kind}} {code or "a step on the way"}',
                        f'[Tests]{{.kind}} {"; ".join(tests)}\n:::'])


FILTER = """```{=html}
<p class="ledger-filter"><label for="ledger-filter">Filter</label>
<input type="search" id="ledger-filter" class="form-control" autocomplete="off"
 placeholder="a name, a test, or a part of the LaTeX">
<output for="ledger-filter"></output></p>
<script src="ledger.js" defer></script>
```"""


def page_cells(equations: list[Equation], titles: dict[str, str], shown, url, lines) -> list[str]:
    "The Markdown of the ledger's page; `titles` has those of the chapters, with their numbers"
    text = (f'The book has {len(equations)} numbered equations. This page is written from the '
            'notebooks and the tests when the site is built, and the build of the book fails if an '
            'equation has no test. A test named by a chapter and a cell runs when the chapter '
            'runs; the others are in `tests/`.')
    cells = [f'{text}\n\n{FILTER}']
    for chapter, title in titles.items():
        own = [e for e in equations if e.chapter == chapter]
        if not own: continue
        entries = [entry(e, shown, url, lines) for e in own]
        cells.append('\n\n'.join([f'## {title} {{.unnumbered}}', *entries]))
    return cells


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--check', action='store_true')
    check = ap.parse_args().check
    equations, problems = read(ROOT)
    print(table(equations))
    tests = sum(len(e.tests) for e in equations)
    print(f'\n{len(equations)} equations, {tests} tests that name them')
    for p in problems: print('error:', p, file=sys.stderr)
    sys.exit(bool(check and problems))


if __name__ == '__main__': main()
