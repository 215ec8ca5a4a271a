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
LABEL = re.compile(r'\$\$\s*\{#(eq-[\w-]+)\}')
NAMED = re.compile(r'\beq-[a-zA-Z](?:[\w-]*\w)?')
EXPORTED = re.compile(r'(?m)^#\|\s*exports?\b')
ASSERTS = re.compile(r'(?m)\bassert\b|^\s*test_\w+\(|assert_close')


@dataclass
class Equation:
    label: str
    number: str
    chapter: str  # stem of its notebook
    code: list[str] = field(default_factory=list)
    tests: list[str] = field(default_factory=list)


def chapters(node) -> list[str]:
    "The notebooks of a book, in order, out of the `chapters` of _quarto.yml"
    out = []
    for c in node:
        if isinstance(c, dict): out += chapters(c.get('chapters', []))
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
        labels = [l for kind, s in cs if kind == 'markdown' for l in LABEL.findall(s)]
        for j, l in enumerate(labels, 1):
            if l in equations:
                problems.append(f'{chapter}: {l} is already an equation of {equations[l].chapter}')
            equations[l] = Equation(l, f'{i}.{j}', chapter)

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


def row(e: Equation) -> str:
    "A line of the page's table, with links to the equation, the code and the chapters"
    cells = {}
    for chapter, n in (t.split(', cell ') for t in e.tests if ', cell ' in t):
        cells.setdefault(chapter, []).append(n)
    tests = [f'[{c}]({c}.ipynb) {"cells" if len(n) > 1 else "cell"} {", ".join(n)}'
             for c, n in cells.items()]
    tests += [f'`{t.removeprefix("tests/")}`' for t in dict.fromkeys(e.tests) if '::' in t]
    code = [f'`{c.split(".", 1)[1]}`' for c in dict.fromkeys(e.code)]
    return f'| [-@{e.label}] | {", ".join(code) or "a step on the way"} | {", ".join(tests)} |'


def page(equations: list[Equation]) -> dict:
    "The ledger as a notebook, for the site"
    title = ('# Equation ledger {.unnumbered}\n\n> Every numbered equation, the code that says the '
             'same, and the test that would fail if it did not')
    text = (f'The book has {len(equations)} numbered equations. This page is written from the '
            'notebooks and the tests when the site is built, and the build of the book fails if a '
            'row has no test. A test named by a chapter and a cell runs when the chapter runs; the '
            'others are in `tests/`.\n\n')
    lines = ['::: {.ledger}\n', '| equation | code | tests |', '| --- | --- | --- |']
    table = '\n'.join([*lines, *map(row, equations), '\n:::'])
    cells = [dict(cell_type='markdown', id=f'ledger{i}', metadata={}, source=s)
             for i, s in enumerate((title, text + table))]
    return dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)


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
