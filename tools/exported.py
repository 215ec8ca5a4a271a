"""The tables "What we exported" of the chapters, written from the code that they export.

    python tools/exported.py [PREFIX ...]   # write them
    python tools/exported.py --check        # fail where one is not what the code says

A row has a public name that the chapter defines and exports, its signature, what its docstring says
first, and the equations that its code names. What the chapter prints whole has rows in the table,
and so have the names of folded cells which the map of the first page lists; the other folded names
have a table of their own, folded too. A long default is left out, `name=…`. Notes that stand below
the tables are kept; a chapter without the section gets one, before its exercises.
"""
import argparse, ast, json, re, sys
from functools import cached_property
from pathlib import Path
from typing import Iterator

import ledger, reading

ROOT = Path(__file__).resolve().parent.parent
WIDTH, DEFAULT, LONG = 40, 14, 160  # characters in a line of a signature, a default, a signature
HEADING = '## What we exported'
TABLE, FOLD = '::: {.exports}\n', (
    '::: {.callout-note .exports collapse="true"}\n## Plumbing: checks and helpers\n')
# The generated part of the section: a table with its caption, and a folded one
HAND_MADE = r'(?:^\|[^\n]*\n?)+(?:\s*^: [^\n]*\{#tbl-[\w-]+\}[ \t]*\n?)?'
TABLES = re.compile(rf'\n*(?:{HAND_MADE}|^{TABLE}.*?^:::[ \t]*$\n?)?'
                    rf'(?:\s*^{re.escape(FOLD)}.*?^:::[ \t]*$\n?)?\n*', re.M | re.S)
CAPTION = re.compile(r'^: [^\n]*\{#tbl-[\w-]+\}', re.M)
EQUATION = r'eq-[a-zA-Z](?:[\w-]*\w)?'


# ---------------------------------------------------------------- what a chapter exports
class Exported:
    "A public name of a chapter: its definition, the methods patched into it, its kind of cell"
    def __init__(self, name: str, node: ast.stmt, cell: reading.Cell, module: 'Module'):
        self.name, self.node, self.cell, self.module = name, node, cell, module
        self.patched: list[ast.FunctionDef] = []

    @cached_property
    def methods(self) -> list[ast.FunctionDef]:
        if not isinstance(self.node, ast.ClassDef): return []
        own = [n for n in self.node.body if isinstance(n, ast.FunctionDef)]
        return own + self.patched

    def method(self, name: str) -> ast.FunctionDef | None:
        return next((m for m in self.methods if m.name == name), None)

    @property
    def bases(self) -> list[str]: return [ast.unparse(b) for b in self.node.bases]

    @property
    def has_fields(self) -> bool:
        "Are the annotations of the class the arguments that make it?"
        decorators = map(ast.unparse, self.node.decorator_list)
        if any(d.startswith('dataclass') for d in decorators): return True
        above = filter(None, map(self.module.find, self.bases))
        return 'NamedTuple' in self.bases or 'BaseModel' in self.bases or any(
            e.has_fields for e in above)

    def signature(self) -> str:
        if isinstance(self.node, ast.FunctionDef): return function_signature(self.node)
        if not isinstance(self.node, ast.ClassDef): return value_of(self.node.value)
        if init := self.method('__init__'): return function_signature(init, returns=False)
        if self.has_fields: return in_brackets(fields_of(self.node))
        above = list(filter(None, map(self.module.find, self.bases)))
        return above[0].signature() if above else ''

    def uses(self) -> Iterator[str]:
        "Of a class: how an object is called, and its public methods and properties"
        for name in ('forward', '__call__'):
            if call := self.method(name):
                yield 'then'
                yield function_signature(call)
        plumbing = self.cell.kind == 'plumbing'
        for m in self.methods:
            if m.name.startswith('_') or m.name == 'forward': continue
            decorators = [ast.unparse(d) for d in m.decorator_list]
            bare = plumbing or any('property' in d for d in decorators)
            yield f'.{m.name}' + ('' if bare else function_signature(m))

    @property
    def text(self) -> str:
        "What it says of itself: its docstring, or the comment of a constant"
        if isinstance(self.node, (ast.FunctionDef, ast.ClassDef)):
            return ast.get_docstring(self.node) or ''
        lines = self.cell.source.splitlines()
        beside = re.search(r'#(?!\|)\s*(.*)', lines[self.node.end_lineno - 1])
        if beside: return beside[1]
        above = []
        for line in reversed(lines[:self.node.lineno - 1]):
            if not re.match(r'#(?!\|)', line): break
            above.insert(0, line.lstrip('# '))
        return ' '.join(above)


class Module:
    "What the exported cells of a chapter define"
    def __init__(self, chapter: reading.Chapter, book: 'dict[str, Module]'):
        self.name, self.chapter, self.book = chapter.module, chapter, book
        self.all: dict[str, Exported] = {}
        self.patches: list[tuple[ast.FunctionDef, reading.Cell]] = []
        for cell in chapter.cells:
            if not cell.exported or 'exporti' in cell.options: continue
            for node in cell.tree.body: self.add(node, cell)

    def add(self, node: ast.stmt, cell: reading.Cell):
        decorators = map(ast.unparse, getattr(node, 'decorator_list', []))
        if isinstance(node, ast.FunctionDef) and any(d.startswith('patch') for d in decorators):
            owner = ast.unparse(node.args.args[0].annotation)
            if owner in self.all:
                self.all[owner].patched.append(node)
                self.patches.append((node, cell))
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            self.all[node.name] = Exported(node.name, node, cell, self)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                for name in target.elts if isinstance(target, ast.Tuple) else [target]:
                    if isinstance(name, ast.Name):
                        self.all[name.id] = Exported(name.id, node, cell, self)

    @property
    def public(self) -> list[Exported]:
        return [e for name, e in self.all.items() if not name.startswith('_')]

    def find(self, name: str) -> Exported | None:
        "A class of this module, or one that it imports from another chapter"
        if name in self.all: return self.all[name]
        origin = self.chapter.imports.get(name)
        module = origin and self.book.get(origin.module.split('.')[-1])
        return module.all.get(origin.name) if module else None


def read(root: Path) -> dict[str, Module]:
    "Module -> what it exports"
    book = {}
    for chapter in reading.read(root):
        if chapter.module: book[chapter.module] = Module(chapter, book)
    return book


def on_the_map(root: Path) -> set[str]:
    "The names that the first page lists"
    file = root/'nbs'/'index.ipynb'
    if not file.exists(): return set()
    return {name for _, text in ledger.cells(file) for name in re.findall(r'`(\w+)`', text)}


# ---------------------------------------------------------------- signatures
def default_of(value: ast.expr) -> str:
    "A default as it is written, if it is short"
    if isinstance(value, ast.Call) and ast.unparse(value.func) == 'setting': value = value.args[0]
    text = ast.unparse(value)
    return '=' + (text if len(text) <= DEFAULT else '…')


def arguments_of(args: ast.arguments) -> list[str]:
    "Names with defaults, `*` before those that must be named; without `self`"
    plain = [*args.posonlyargs, *args.args]
    defaults = [None]*(len(plain) - len(args.defaults)) + args.defaults
    found = [a.arg + (default_of(d) if d else '') for a, d in zip(plain, defaults)]
    if plain and plain[0].arg in ('self', 'cls'): found = found[1:]
    if args.vararg: found.append('*' + args.vararg.arg)
    elif args.kwonlyargs: found.append('*')
    found += [a.arg + (default_of(d) if d else '')
              for a, d in zip(args.kwonlyargs, args.kw_defaults)]
    return found + (['**' + args.kwarg.arg] if args.kwarg else [])


def fields_of(node: ast.ClassDef) -> list[str]:
    return [n.target.id + (default_of(n.value) if n.value else '') for n in node.body
            if isinstance(n, ast.AnnAssign) and not n.target.id.startswith('_')]


def in_brackets(arguments: list[str]) -> str:
    "The arguments in brackets; all defaults are left out where they would be too long"
    whole = ', '.join(arguments)
    if len(whole) > LONG: whole = ', '.join(re.sub('=.*', '=…', a) for a in arguments)
    return f'({whole})'


def function_signature(node: ast.FunctionDef, returns: bool = True) -> str:
    after = ''
    if returns and node.returns and ast.unparse(node.returns) != 'None':
        after = ' -> ' + type_of(node.returns)
    return in_brackets(arguments_of(node.args)) + after


def type_of(annotation: ast.expr) -> str:
    text = annotation.value if isinstance(annotation, ast.Constant) else ast.unparse(annotation)
    return re.sub(r'\b(torch|nn|np|Image)\.(?=[A-Z])', '', text).replace(' | ', ' or ')


def value_of(value: ast.expr) -> str:
    "What a constant is, if it is short; or what is called to make it"
    text = ast.unparse(value)
    if len(text) <= WIDTH: return text
    if not isinstance(value, ast.Call): return '…'
    given = [ast.unparse(a) for a in value.args if isinstance(a, ast.Constant)]
    return f'{ast.unparse(value.func)}({", ".join([*given, "…"])})'


def in_lines(signature: str) -> str:
    "A signature as code in lines that fit a column"
    lines = ['']
    for word in re.findall(r'-> .*|\S+\s*', signature):
        if lines[-1] and len((lines[-1] + word).rstrip()) > WIDTH: lines.append('')
        lines[-1] += word
    return '<br>'.join('`' + line.strip().replace('|', 'or') + '`' for line in lines if line)


# ---------------------------------------------------------------- the rest of a row
def first_sentence(text: str) -> str:
    "Of a docstring; equations in brackets or after a colon at the end have a column of their own"
    text = ' '.join(re.split(r'\n\s*\n', text.strip())[0].split())
    text = without_equations(text)
    text = re.sub(rf'[:;,]\s*{EQUATION}(?:,? (?:and )?{EQUATION})*(?=[.;]?\s*(?:$|\())', '', text)
    sentence = re.split(r'(?<=[a-z0-9)`\]][.;])\s+(?=[A-Z`])', text)[0].rstrip('.;:, ')
    return escaped(sentence)


def without_equations(text: str) -> str:
    "Without the equations in brackets"
    return re.sub(rf'\s*\(((?:[^()]|\([^()]*\))*\b{EQUATION}[^()]*)\)', brackets_without, text)


def brackets_without(m: re.Match) -> str:
    "(Ho et al. 2020; eq-linear) -> (Ho et al. 2020)"
    kept = [p.strip() for p in re.split(r'[;,](?=\s*eq-)|;', m[1])]
    kept = [p for p in kept if p and not re.fullmatch(EQUATION, p)]
    return f' ({"; ".join(kept)})' if kept else ''


def escaped(text: str) -> str:
    "Plain text with code in backticks as Markdown in a table; equations become references"
    def plain(s: str) -> str:
        s = re.sub(r'([*$<\[\]|~^])', r'\\\1', s)
        s = re.sub(r'(?<!\w)_|_(?!\w)', r'\\_', s)
        return re.sub(rf'(?<![\w@-])({EQUATION})', r'@\1', s)
    parts = re.split(r'(`[^`]*`)', text)
    return ''.join(p.replace('|', r'\|') if i % 2 else plain(p) for i, p in enumerate(parts))


def row(e: Exported, equations: dict[str, list[str]]) -> str:
    names = [e.name, *(m.name for m in e.patched)]
    labels = dict.fromkeys(l for n in names for l in equations.get(f'{e.module.name}.{n}', []))
    uses, parts = list(e.uses()), [in_lines(e.signature())] if e.signature() else []
    while uses:
        use = uses.pop(0)
        if use == 'then': parts.append(f'then {in_lines(uses.pop(0))}')
        else: parts.append(in_lines(use))
    refs = ', '.join(f'[-@{l}]' for l in labels)
    return f'| {"<br>".join([f"`{e.name}`", *parts])} | {first_sentence(e.text)} | {refs} |'


def table(rows: list[str]) -> str:
    return '\n'.join(['| name and signature | what it is | equation |', '| --- | --- | --- |',
                      *rows]) + '\n'


def tables(module: Module, equations: dict, promoted: set[str], caption: str) -> str:
    "The generated part of a section"
    first = [e for e in module.public if e.cell.kind == 'open' or e.name in promoted]
    second = [e for e in module.public if e not in first]
    if not first: first, second = second, []
    text = f'{TABLE}\n{table([row(e, equations) for e in first])}\n{caption}\n\n:::\n'
    if second: text += f'\n{FOLD}\n{table([row(e, equations) for e in second])}\n:::\n'
    return text


# ---------------------------------------------------------------- chapters
def updated(cell: str, module: Module, equations: dict, promoted: set[str]) -> str:
    "The text of a cell with the section, its tables written again"
    before, after = re.split(rf'(?m)^{HEADING}[^\n]*$', cell, maxsplit=1)
    heading = cell[len(before):len(cell) - len(after)]
    found = TABLES.match(after)
    caption = CAPTION.search(found[0])
    caption = caption[0] if caption else (
        f': The module `{module.name}`. {{#tbl-{module.name}-exports}}')
    rest = after[found.end():]
    text = f'{before}{heading}\n\n{tables(module, equations, promoted, caption)}'
    return text.rstrip('\n') + (f'\n\n{rest}' if rest.strip() else '')


def new_section(cells: list[dict]) -> dict:
    "An empty section in a cell of its own, before the exercises"
    def begins(cell: dict) -> bool:
        return cell['cell_type'] == 'markdown' and bool(
            re.match(r'## (Exercise|Next)', ''.join(cell['source'])))
    at = next((i for i, c in enumerate(cells) if begins(c)), len(cells))
    cells.insert(at, dict(cell_type='markdown', id='exports', metadata={}, source=[HEADING]))
    return cells[at]


def update(notebook: dict, module: Module, equations: dict, promoted: set[str]) -> bool:
    "Write the section of a notebook; has it changed?"
    cells = notebook['cells']
    section = re.compile(rf'(?m)^{HEADING}')
    found = [c for c in cells if c['cell_type'] == 'markdown' and
             section.search(''.join(c['source']))]
    cell = found[0] if found else new_section(cells)
    text = updated(''.join(cell['source']), module, equations, promoted)
    changed = not found or text != ''.join(cell['source'])
    cell['source'] = text.splitlines(keepends=True)
    return changed


def equations_of(root: Path) -> dict[str, list[str]]:
    "module.name -> labels of the equations that its code names"
    found = {}
    for e in ledger.read(root)[0]:
        for name in e.code: found.setdefault(name, []).append(e.label)
    return found


def run(root: Path, prefixes: tuple[str, ...] = (), write: bool = True) -> list[str]:
    "The chapters whose tables are not what their code says; with `write`, now they are"
    equations, promoted, changed = equations_of(root), on_the_map(root), []
    for module in read(root).values():
        file = root/module.chapter.file
        if not module.public or not file.name.startswith(prefixes or ''): continue
        notebook = json.loads(file.read_text(encoding='utf-8'))
        if not update(notebook, module, equations, promoted): continue
        changed.append(module.chapter.file)
        if write:
            text = json.dumps(notebook, sort_keys=True, indent=1, ensure_ascii=False) + '\n'
            file.write_text(text, encoding='utf-8')
    return changed


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    ap.add_argument('prefix', nargs='*')
    ap.add_argument('--check', action='store_true', help='write nothing, fail if a table is stale')
    a = ap.parse_args()
    changed = run(ROOT, tuple(a.prefix), not a.check)
    says = 'is not what its code says: run python tools/exported.py' if a.check else 'written'
    for file in changed: print(f'{file}: the table of exports {says}')
    sys.exit(bool(a.check and changed))


if __name__ == '__main__': main()
