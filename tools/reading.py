"""Does the printed page read? Checks of what a reader of the site sees; how dense the code is.

    python tools/reading.py [PREFIX ...]          # problems, their number a file; fails if any
    python tools/reading.py --counts [PREFIX ...] # only their number a file
    python tools/reading.py --table [MODULE ...]  # width of lines, syntax and guards a line

`--root DIR` looks at another checkout. A PREFIX is the beginning of a file's name or path, such as
`07` or `tests/test_data`. Without one, all files are checked.
A code cell of a chapter is of one of four kinds:

- open      printed whole: plain cells and `#| exports`
- plumbing  folded, with `#| code-summary: "Plumbing: why"`: checks of input, files, processes
- folded    folded with another summary: figures
- hidden    not on the page: `#| export`, `#| hide`, `#| echo: false`, `#| include: false`

The rules:

- taught    What an open cell calls, inherits from or decorates with is printed somewhere in the
            book, or is a library's. Methods are not followed, but for `self._x`.
- hidden    `#| export` is for imports: it defines no function and no class.
- plumbing  A folded cell that exports says why: `Plumbing: why`.
- formula   No definition in a hidden or plumbing cell names an equation, `eq-name`.
- width     A line has at most 88 characters in an open cell, 100 elsewhere.
- size      An open cell has at most 30 lines; the median of a chapter is at most 6.
- private   No name with a leading underscore is taken from a module of the package.

The table measures lines of code, without blank lines, comments and docstrings. Width includes the
indentation. A node is a statement or an expression of the syntax tree. A guard is a `raise`, an
`assert`, or an `if` that does nothing but raise; guards are counted in lines and in statements.
"""
import argparse, ast, builtins, io, json, re, statistics, sys, tokenize
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Iterator, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = 'diffusion_scratch'
RULES = 'taught hidden plumbing formula width size private'.split()
WIDTH_OPEN, WIDTH, MEDIAN, LONGEST = 88, 100, 6, 30
EQUATION = re.compile(r'\beq-[a-zA-Z]')
PRIVATE = re.compile(r'_(?!_)(?!replace$|asdict$|fields$|make$)')  # without namedtuple's methods
DEFINITIONS = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef

# Modules whose hidden definitions may be called by open cells -> why, in one line
PLUMBING_MODULES = {}

# Definitions that may make an open cell longer than 30 lines -> why
LONG = {
    'UNet': 'a network',
    'DiT': 'a network',
    'fit': "the trainer's loop",
}


class Problem(NamedTuple):
    file: str
    rule: str
    text: str


# ---------------------------------------------------------------- imports and private names
class Import(NamedTuple):
    "`from module import name as here`; `name` is empty for `import module as here`"
    module: str
    name: str
    here: str

    @property
    def ours(self) -> bool: return self.module.split('.')[0] == PACKAGE


def imports(tree: ast.AST) -> Iterator[Import]:
    "All the imports of some code; relative ones are taken to be of the package"
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for a in node.names: yield Import(a.name, '', a.asname or a.name.split('.')[0])
        elif isinstance(node, ast.ImportFrom):
            module = '.'.join(filter(None, [PACKAGE if node.level else '', node.module]))
            for a in node.names: yield Import(module, a.name, a.asname or a.name)


def private_names(tree: ast.AST) -> Iterator[str]:
    "Private names that some code takes from the package: by import, as an attribute, by setattr"
    ours = {i.here for i in imports(tree) if i.ours}
    yield from (i.name for i in imports(tree) if i.ours and PRIVATE.match(i.name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and PRIVATE.match(node.attr):
            if ast.unparse(node.value).split('.')[0] in ours: yield ast.unparse(node)
        elif isinstance(node, ast.Call) and len(node.args) > 1:
            place, name = ast.unparse(node.args[0]), getattr(node.args[1], 'value', None)
            if place in ours and PRIVATE.match(str(name)): yield f'{place}.{name}'


# ---------------------------------------------------------------- chapters
@dataclass
class Cell:
    "A code cell; `number` is its place in the notebook, from 1"
    number: int
    source: str

    @cached_property
    def options(self) -> dict[str, str]:
        "Its lines `#| key: value`"
        return dict(re.findall(r'(?m)^#\|[ \t]*([\w-]+):?[ \t]*(.*?)[ \t]*$', self.source))

    @cached_property
    def kind(self) -> str:
        o = self.options
        if o.keys() & {'export', 'exporti', 'hide', 'default_exp'}: return 'hidden'
        if 'false' in (o.get('echo'), o.get('include')): return 'hidden'
        if o.get('code-fold') != 'true': return 'open'
        says_why = re.match(r'["\']?Plumbing: \w', o.get('code-summary', ''))
        return 'plumbing' if says_why else 'folded'

    @property
    def exported(self) -> bool: return bool(self.options.keys() & {'export', 'exporti', 'exports'})

    @cached_property
    def lines(self) -> list[str]:
        "What is printed: no options"
        return [line for line in self.source.splitlines() if not line.startswith('#|')]

    @property
    def size(self) -> int: return sum(bool(line.strip()) for line in self.lines)

    @cached_property
    def tree(self) -> ast.Module:
        try: return ast.parse(re.sub(r'(?m)^(\s*)[%!].*', r'\1pass', self.source))  # no magics
        except SyntaxError: return ast.Module([], [])

    @cached_property
    def definitions(self) -> dict[str, str]:
        "Functions and classes -> their text, with the comments above them"
        found, end, lines = {}, 0, self.source.splitlines()
        for node in self.tree.body:
            text = '\n'.join(lines[end:node.end_lineno])
            if isinstance(node, DEFINITIONS): found[node.name] = text
            end = node.end_lineno
        return found

    @cached_property
    def names(self) -> set[str]:
        "What it defines or assigns for the cells that follow"
        others = [node for node in self.tree.body if not isinstance(node, DEFINITIONS)]
        assigned = {n.id for node in others for n in ast.walk(node) if is_stored(n)}
        return self.definitions.keys() | assigned

    @cached_property
    def methods(self) -> set[str]:
        "Functions in its classes, and those that @patch puts into a class"
        bodies = [n.body for n in ast.walk(self.tree) if isinstance(n, (ast.ClassDef, ast.Module))]
        return {f.name for body in bodies for f in body if isinstance(f, DEFINITIONS)}

    @cached_property
    def called(self) -> list[str]:
        "The names that it calls, inherits from or decorates with, and `self._x`"
        used = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call): used.append(node.func)
            if isinstance(node, ast.ClassDef): used += node.bases
            if isinstance(node, DEFINITIONS): used += node.decorator_list
        names = [ast.unparse(u) for u in used if isinstance(u, (ast.Name, ast.Attribute))]
        return [n for n in dict.fromkeys(names) if re.fullmatch(r'\w+|self\._\w+', n)]


def is_stored(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def bound(tree: ast.AST) -> Iterator[str]:
    "Variables, parameters, functions and classes of some code, in functions too; no methods"
    methods = {f for n in ast.walk(tree) if isinstance(n, ast.ClassDef) for f in n.body}
    for node in ast.walk(tree):
        if is_stored(node): yield node.id
        elif isinstance(node, ast.arg): yield node.arg
        elif isinstance(node, DEFINITIONS) and node not in methods: yield node.name


def words_of_code(source: str) -> Iterator[tuple[str, str]]:
    "(kind, text) of the captions, comments and strings of a code cell; strings with their quotes"
    for line in re.findall(r'(?m)^#\|\s*(?:fig-cap|tbl-cap|code-summary):\s*(.*)', source):
        yield 'caption', line
    try: tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (tokenize.TokenError, IndentationError, SyntaxError): return
    for token in tokens:
        if token.type == tokenize.STRING: yield 'string', token.string
        elif token.type == tokenize.COMMENT and not token.string.startswith('#|'):
            yield 'comment', token.string.lstrip('# ')


class Chapter:
    def __init__(self, file: str, cells: list[Cell]):
        self.file, self.cells = file, cells
        modules = [c.options['default_exp'] for c in cells if 'default_exp' in c.options]
        self.module = modules[0] if modules else None
        self.imports = {i.here: i for c in cells for i in imports(c.tree)}
        self.open = [c for c in cells if c.kind == 'open']


def read(root: Path) -> list[Chapter]:
    "The chapters of the book"
    book = []
    for file in sorted((root/'nbs').glob('*.ipynb')):
        cells = enumerate(json.loads(file.read_text(encoding='utf-8'))['cells'], 1)
        code = [Cell(i, ''.join(c['source'])) for i, c in cells if c['cell_type'] == 'code']
        book.append(Chapter(file.relative_to(root).as_posix(), code))
    return book


# ---------------------------------------------------------------- the rules for a chapter
def places(name: str, chapter: Chapter, book: list[Chapter]) -> list[tuple[str, Cell]]:
    "(file, cell) where a name is defined: in this chapter, or in that of the module it is from"
    if name.startswith('self.'):
        method = name.removeprefix('self.')
        found = [(ch.file, c) for ch in book for c in ch.cells if method in c.methods]
        return [(file, c) for file, c in found if file == chapter.file] or found
    for _ in book:  # a module may have imported the name itself
        here = [(chapter.file, c) for c in chapter.cells if name in c.names]
        origin = chapter.imports.get(name)
        if here or not origin or not origin.ours: return here
        module, name = origin.module.removeprefix(f'{PACKAGE}.'), origin.name
        chapter = next((ch for ch in book if ch.module == module), None)
        if not chapter or module in PLUMBING_MODULES: return []
    return []


def not_shown(chapter: Chapter, book: list[Chapter]) -> Iterator[tuple[str, str]]:
    "Rule `taught`: calls in open cells of what is defined in hidden cells only"
    for cell in chapter.open:
        for name in cell.called:
            if name in bound(cell.tree) or hasattr(builtins, name): continue
            found = places(name, chapter, book)
            if found and all(c.kind == 'hidden' for _, c in found):
                where = f'{found[0][0]}, cell {found[0][1].number}'
                yield 'taught', f'cell {cell.number} calls {name}, hidden in {where}'


def badly_folded(chapter: Chapter) -> Iterator[tuple[str, str]]:
    "Rules `hidden`, `plumbing` and `formula`"
    for cell in chapter.cells:
        where = f'cell {cell.number}'
        if cell.exported and cell.kind == 'folded':
            yield 'plumbing', f'{where} exports and is folded, and no `Plumbing: why` says why'
        if cell.kind not in ('hidden', 'plumbing'): continue
        for name, text in cell.definitions.items():
            if cell.exported and cell.kind == 'hidden': yield 'hidden', f'{where} defines {name}'
            if EQUATION.search(text): yield 'formula', f'{where}, {cell.kind}, has formula {name}'


def too_long(chapter: Chapter) -> Iterator[tuple[str, str]]:
    "Rules `width` and `size`"
    for cell in chapter.cells:
        limit = WIDTH_OPEN if cell.kind == 'open' else WIDTH
        for i, line in enumerate(cell.lines, 1):
            if len(line) > limit:
                where = f'cell {cell.number}, line {i}'
                yield 'width', f'{where}: {len(line)} characters, {limit} allowed'
    for cell in chapter.open:
        if cell.size > LONGEST and not cell.names & LONG.keys():
            yield 'size', f'cell {cell.number} has {cell.size} lines, {LONGEST} allowed'
    median = statistics.median([c.size for c in chapter.open if c.size] or [0])
    if median > MEDIAN: yield 'size', f'the median open cell has {median:g} lines, {MEDIAN} allowed'


def chapter_problems(chapter: Chapter, book: list[Chapter]) -> Iterator[Problem]:
    found = [*not_shown(chapter, book), *badly_folded(chapter), *too_long(chapter)]
    found += [('private', f'cell {c.number} takes {name}') for c in chapter.cells
              for name in private_names(c.tree)]
    for rule, text in found: yield Problem(chapter.file, rule, text)


# ---------------------------------------------------------------- the rules for a file of Python
def python_files(root: Path) -> list[Path]:
    folders = [PACKAGE, 'tests', 'tools', 'benchmarks', 'examples']
    files = [f for folder in folders for f in sorted((root/folder).glob('*.py'))]
    return [root/'setup.py', *(f for f in files if f.name != '_modidx.py')]


def file_problems(file: Path, root: Path) -> Iterator[Problem]:
    name, code = file.relative_to(root).as_posix(), file.read_text(encoding='utf-8')
    tree = ast.parse(code)
    written = lines_of_nbdev(tree) if name.startswith(PACKAGE) else set()
    for i, line in enumerate(code.splitlines(), 1):
        if len(line) > WIDTH and i not in written and not line.startswith(('# %% ', '#| ')):
            yield Problem(name, 'width', f'line {i}: {len(line)} characters, {WIDTH} allowed')
    for taken in private_names(tree): yield Problem(name, 'private', f'takes {taken}')


def lines_of_nbdev(tree: ast.Module) -> set[int]:
    "The lines of a module that nbdev writes: the subtitle of the chapter, and `__all__`"
    ours = [n for n in tree.body[:1] if isinstance(n, ast.Expr)]
    ours += [n for n in tree.body if isinstance(n, ast.Assign) and
             getattr(n.targets[0], 'id', '') == '__all__']
    return {i for n in ours for i in range(n.lineno, n.end_lineno + 1)}


def problems(root: Path, prefixes: tuple[str, ...] = ()) -> list[Problem]:
    "All that is wrong in the files whose name or path begins so"
    def wanted(file: str) -> bool:
        return any(name.startswith(prefixes or '') for name in (file, Path(file).name))
    book = read(root)
    found = [p for ch in book if wanted(ch.file) for p in chapter_problems(ch, book)]
    files = [f for f in python_files(root) if wanted(f.relative_to(root).as_posix())]
    return found + [p for f in files for p in file_problems(f, root)]


def counts(found: list[Problem]) -> str:
    "How many problems a file has of each kind"
    n, files = Counter((p.file, p.rule) for p in found), dict.fromkeys(p.file for p in found)
    rows = [['', *RULES]]
    rows += [[file, *(n[file, rule] or '.' for rule in RULES)] for file in files]
    rows += [['all', *(sum(p.rule == rule for p in found) for rule in RULES)]]
    return columns(rows, 36, 10)


def columns(rows: list[list], first: int, other: int) -> str:
    "Rows of a table as lines; widths of the first column and the others"
    return '\n'.join(f'{name:{first}}' + ''.join(f'{x:>{other}}' for x in row)
                     for name, *row in rows)


# ---------------------------------------------------------------- the table
def span(node: ast.AST) -> set[int]: return set(range(node.lineno, node.end_lineno + 1))


def is_guard(node: ast.AST) -> bool:
    if isinstance(node, ast.If) and not node.orelse: return all(map(is_guard, node.body))
    return isinstance(node, (ast.Raise, ast.Assert))


class Density(NamedTuple):
    "Sums over code; added up, they are those of several files"
    lines: int
    characters: int
    wide: int
    nodes: int
    guard_lines: int
    statements: int
    guards: int

    @classmethod
    def of(cls, code: str) -> 'Density':
        tree = ast.parse(code)
        nodes = [n for n in ast.walk(tree) if isinstance(n, (ast.stmt, ast.expr))]
        statements = [n for n in nodes if isinstance(n, ast.stmt)]
        documented = [n for n in (tree, *statements) if isinstance(n, (ast.Module, *DEFINITIONS))]
        strings = [n.body[0] for n in documented if ast.get_docstring(n) is not None]
        docs = set().union(*map(span, strings))
        lines = [line.rstrip() for i, line in enumerate(code.splitlines(), 1)
                 if i not in docs and line.strip() and not line.lstrip().startswith('#')]
        guards = [s for s in statements if is_guard(s)]
        return cls(lines=len(lines), characters=sum(map(len, lines)),
                   wide=sum(len(line) > WIDTH for line in lines), nodes=len(nodes),
                   guard_lines=len(set().union(*map(span, guards))),
                   statements=len(statements), guards=len(guards))

    def row(self) -> list[str]:
        lines = max(self.lines, 1)
        return [f'{self.lines}', f'{self.characters/lines:.1f}', f'{self.wide/lines:.1%}',
                f'{self.nodes/lines:.1f}', f'{self.guard_lines/lines:.1%}',
                f'{self.guards/max(self.statements, 1):.1%}']


def table(root: Path, modules: list[str] = ()) -> str:
    "The density of each module of the package, of the chosen ones together, and of all"
    folder = root/PACKAGE
    each = {f.stem: Density.of(f.read_text(encoding='utf-8')) for f in sorted(folder.glob('*.py'))
            if f.name not in ('_modidx.py', '__init__.py')}
    total = lambda densities: Density(*map(sum, zip(*densities)))
    rows = [['', 'lines', 'mean width', f'over {WIDTH}', 'nodes/line', 'guard lines', 'guards']]
    rows += [[name, *d.row()] for name, d in each.items()]
    if modules: rows.append(['chosen', *total(each[m] for m in modules).row()])
    rows.append(['all', *total(each.values()).row()])
    return columns(rows, 14, 13)


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('names', nargs='*', metavar='PREFIX',
                    help='files whose names begin so; all if none')
    ap.add_argument('--root', type=Path, default=ROOT, help='the folder of the project')
    ap.add_argument('--counts', action='store_true', help='only the number of problems a file')
    ap.add_argument('--table', action='store_true', help='how dense the modules named are, and all')
    args = ap.parse_args()
    root = args.root.resolve()
    if args.table: print(table(root, args.names)); return
    found = problems(root, tuple(args.names))
    if not args.counts:
        for p in found: print(f'{p.file}, {p.text} [{p.rule}]')
    print(counts(found) if found else 'the printed page reads')
    sys.exit(bool(found))


if __name__ == '__main__': main()
