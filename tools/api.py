"""The API reference: a page for each module and an index, written from the chapters' code.

    python tools/api.py [NAME ...]    # print entries as the pages have them

An entry has the signature as it is written in the source, what the docstring says, the parameters
and the result with the comments beside them (fastcore's docments), the errors that the code and its
checks raise, the equations that it names, and links to the place in the chapter where it is
derived and to the source. Nothing is imported or run.

On the site, a public name in prose or in printed code links to its entry.
"""
import argparse, ast, html, io, json, re, textwrap, tokenize
from functools import cached_property
from pathlib import Path
from typing import Iterator

import yaml

import exported, ledger, reading
from ledger import segment
from references import DIVS, bare_title, page

ROOT = Path(__file__).resolve().parent.parent
INDEX = 'api.ipynb'
WIDTH = 80  # characters in a line of a signature
FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef
FENCES = re.compile(r'(?ms)(^[ \t]*```.*?^[ \t]*```[ \t]*$)')
NAME = re.compile(r'(\[)?(?<!`)`([A-Za-z][\w.]*)(\(\))?`(?!`)(?(1)(\]\([^)\s]*\)))')
PRINTED = re.compile(r'(?s)(<code class="sourceCode python">)(.*?)(</code>)')


def file_of(module: str) -> str:
    "The notebook with a module's page"
    return f'api_{module}.ipynb'


def module_of(file: str) -> str: return file.removeprefix('api_').removesuffix('.ipynb')


def write_notebook(file: Path, nb: dict):
    file.write_text(json.dumps(nb, ensure_ascii=False, indent=1), encoding='utf-8')


def names_printed(source: str) -> list[str]:
    "The public functions, classes and constants that a printed, exported cell defines"
    if not re.search(r'(?m)^#\|\s*exports\b', source): return []
    return [name for name, _ in ledger.definitions(source) if re.fullmatch(r'[^\W_]\w*', name)]


# ---------------------------------------------------------------- code as it is written
def comments_of(source: str) -> dict[int, str]:
    "Line -> the comment on it"
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip('# ').strip() for t in tokens
            if t.type == tokenize.COMMENT and not t.string.startswith('#|')}


class Written:
    "A function, a class with fields or a value, with the text of the cell that defines it"
    def __init__(self, node: ast.stmt, source: str): self.node, self.source = node, source

    def text(self, node: ast.AST) -> str:
        "The source of a part of the definition, on one line"
        text = segment(self.source, node)
        return ast.unparse(node) if '#' in text else ' '.join(text.split())

    @cached_property
    def is_function(self) -> bool: return isinstance(self.node, FUNCTIONS)

    @cached_property
    def arguments(self) -> list[tuple[str, ast.arg | None, ast.expr | None]]:
        "(what stands before the name, the argument, its default)"
        a = self.node.args
        plain = [*a.posonlyargs, *a.args]
        defaults = [None]*(len(plain) - len(a.defaults)) + a.defaults
        found = [('', arg, d) for arg, d in zip(plain, defaults)]
        if a.posonlyargs: found.insert(len(a.posonlyargs), ('/', None, None))
        if a.vararg: found.append(('*', a.vararg, None))
        elif a.kwonlyargs: found.append(('*', None, None))
        found += [('', arg, d) for arg, d in zip(a.kwonlyargs, a.kw_defaults)]
        return found + ([('**', a.kwarg, None)] if a.kwarg else [])

    @cached_property
    def fields(self) -> list[ast.AnnAssign]:
        return [n for n in self.node.body
                if isinstance(n, ast.AnnAssign) and not n.target.id.startswith('_')]

    def default(self, value: ast.expr) -> str:
        "A default as it is written; of a key of the config, the first argument of `setting`"
        if isinstance(value, ast.Call) and ast.unparse(value.func) == 'setting':
            value = value.args[0]
        return self.text(value)

    def parts(self) -> list[str]:
        "The arguments, or the fields, as they are written"
        if not self.is_function:
            return [f'{f.target.id}: {self.text(f.annotation)}'
                    + (f' = {self.default(f.value)}' if f.value else '') for f in self.fields]
        return [before + (self.text(arg) if arg else '') + (f'={self.text(d)}' if d else '')
                for before, arg, d in self.arguments]

    def signature(self, name: str, start: str = 'def ') -> str:
        "`def name(arguments) -> result`, an argument a line where they are too long for one"
        returns = self.is_function and self.node.returns
        end = f') -> {self.text(returns)}' if returns else ')'
        parts = self.parts()
        line = f'{start}{name}({", ".join(parts)}{end}'
        if len(line) <= WIDTH or not parts: return line
        return '\n'.join([f'{start}{name}(', *(f'    {p},' for p in parts), end])

    def documented(self) -> Iterator[tuple[str, str]]:
        "(parameter, the comment beside or above it); `return` for the result"
        if not self.is_function:
            for f in self.fields: yield f.target.id, self.said_of_field(f)
            return
        places = {arg.lineno: arg.arg for _, arg, _ in self.arguments if arg}
        if self.node.returns: places[self.node.returns.end_lineno] = 'return'
        places.pop(self.node.body[0].lineno, '')  # a comment there is about the body
        for line, name in places.items():
            yield name, self.comment(line, places)

    def comment(self, line: int, taken) -> str:
        if line in self.comments: return self.comments[line]
        above = []
        while (line := line - 1) in self.comments and line not in taken and not (
                self.lines[line - 1].split('#')[0].strip()):
            above.insert(0, self.comments[line])
        return ' '.join(above)

    def said_of_field(self, f: ast.AnnAssign) -> str:
        "The meaning that `setting` is given, with the bounds; else the comment"
        if isinstance(f.value, ast.Call) and ast.unparse(f.value.func) == 'setting':
            signs = dict(gt='>', ge='>=', lt='<', le='<=')
            bounds = [f'{signs[k.arg]} {self.text(k.value)}' for k in f.value.keywords
                      if k.arg in signs]
            meaning = ast.literal_eval(f.value.args[1])
            return meaning + (f' ({", ".join(bounds)})' if bounds else '')
        return self.comment(f.end_lineno, {g.lineno for g in self.fields})

    @cached_property
    def comments(self) -> dict[int, str]: return comments_of(self.source)

    @cached_property
    def lines(self) -> list[str]: return self.source.splitlines()


# ---------------------------------------------------------------- errors
def message(node: ast.expr) -> str:
    "The text of an error, as far as it stands in the code; {expressions} are as in an f-string"
    if isinstance(node, ast.Constant): return str(node.value)
    if isinstance(node, ast.JoinedStr): return ''.join(map(message, node.values))
    if isinstance(node, ast.FormattedValue): return '{' + ast.unparse(node.value) + '}'
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return message(node.left) + message(node.right)
    return '{' + ast.unparse(node) + '}'


def raised(node: ast.AST, module: exported.Module, seen: set) -> Iterator[tuple[str, str]]:
    "(error, message) that code raises, itself, in checks or in functions of its module"
    for n in ast.walk(node):
        if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call):
            name = ast.unparse(n.exc.func)
            if name[:1].isupper(): yield name, message(n.exc.args[0]) if n.exc.args else ''
        elif isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id not in seen:
            called = module.find(n.func.id)
            if not called or not isinstance(called.node, FUNCTIONS): continue
            if called.cell.kind != 'plumbing' and called.module is not module: continue
            seen.add(n.func.id)
            yield from raised(called.node, called.module, seen)


# ---------------------------------------------------------------- entries
class Entry:
    "A public name on its page; `owner` is the class of a method"
    def __init__(self, e: exported.Exported, node: ast.stmt, cell: reading.Cell, owner: str = ''):
        self.e, self.node, self.cell, self.owner = e, node, cell, owner
        self.written = Written(node, cell.source)
        name = e.name if isinstance(node, ast.Assign) else node.name
        self.name = f'{owner}.{name}' if owner else name
        self.module = e.module.name

    @property
    def href(self) -> str: return f'{file_of(self.module)}#{self.name}'

    @cached_property
    def code(self) -> str:
        "The signature"
        if isinstance(self.node, ast.Assign): return self.value()
        if isinstance(self.node, ast.ClassDef): return self.of_class()
        decorators = [self.written.text(d) for d in self.node.decorator_list]
        lines = [f'@{d}' for d in decorators if not d.startswith('patch')]
        if any('cls_method=True' in d for d in decorators): lines.append('@classmethod')
        start = 'async def ' if isinstance(self.node, ast.AsyncFunctionDef) else 'def '
        return '\n'.join([*lines, self.written.signature(self.node.name, start)])

    def value(self) -> str:
        text = f'{self.name} = {self.written.text(self.node.value)}'
        targets = self.written.text(self.node.targets[0])
        if targets != self.name: text = f'{targets} = {self.written.text(self.node.value)}'
        lines = textwrap.wrap(text, WIDTH, subsequent_indent='    ', break_on_hyphens=False)
        return '\n'.join(lines if len(lines) <= 3 else [*lines[:3], '    …'])

    @cached_property
    def maker(self) -> Written | None:
        "What has the arguments that make an object of the class: `__init__`, or the fields"
        e = self.e
        while e and isinstance(e.node, ast.ClassDef):
            if init := e.method('__init__'): return Written(init, e.cell.source)
            if e.has_fields: return Written(e.node, e.cell.source)
            e = next(filter(None, map(e.module.find, e.bases)), None)

    def of_class(self) -> str:
        "`class Name(Base)`, and how an object is made"
        lines = [f'@{self.written.text(d)}' for d in self.node.decorator_list]
        bases = ', '.join(self.written.text(b) for b in [*self.node.bases, *self.node.keywords])
        lines.append(f'class {self.name}({bases})' if bases else f'class {self.name}')
        if self.maker:
            lines[-1] += ':'
            made = ([self.maker.signature('__init__')] if self.maker.is_function
                    else self.maker.parts())
            lines += [textwrap.indent(part, '    ') for part in made]
        return '\n'.join(lines)

    @cached_property
    def text(self) -> str:
        if isinstance(self.node, ast.Assign): return self.e.text
        return ast.get_docstring(self.node) or ''

    @cached_property
    def parameters(self) -> list[tuple[str, str]]:
        if isinstance(self.node, ast.Assign): return []
        w = self.maker if isinstance(self.node, ast.ClassDef) else self.written
        return [(name, said) for name, said in w.documented() if said] if w else []

    @cached_property
    def errors(self) -> list[tuple[str, str]]:
        code = self.node
        if isinstance(code, ast.Assign): return []
        if isinstance(code, ast.ClassDef):
            makes = [m for m in self.e.methods if m.name in ('__init__', '__post_init__')]
            code = ast.Module(makes, [])
        return list(dict.fromkeys(raised(code, self.e.module, {self.name})))

    @cached_property
    def methods(self) -> list['Entry']:
        "The public methods and properties, and how an object is called"
        if not isinstance(self.node, ast.ClassDef) or self.owner: return []
        shown = [m for m in self.e.methods
                 if not m.name.startswith('_') or m.name in ('__call__', '__getitem__', '__len__')]
        patched = {id(m): cell for m, cell in self.e.module.patches}
        return [Entry(self.e, m, patched.get(id(m), self.cell), self.name) for m in shown]


class Library:
    "All modules of the package with their entries, and where each name stands"
    def __init__(self, root: Path = ROOT):
        self.root = root
        self.settings = settings(root)
        self.equations = exported.equations_of(root)
        files = numbered_chapters(root)
        book = {Path(m.chapter.file).name: m for m in exported.read(root).values() if m.public}
        self.modules = [book[f] for f in files if f in book]
        self.numbers = {book[f].name: n for n, f in enumerate(files, 1) if f in book}
        self.entries = {m.name: [Entry(e, e.node, e.cell) for e in m.public]
                        for m in self.modules}
        self.all = {}
        for entries in self.entries.values():
            for entry in entries:
                for e in (entry, *entry.methods): self.all[e.name] = e
        self.chapters = {m.name: Headings(root/m.chapter.file) for m in self.modules}

    def about(self, module: exported.Module) -> str:
        "What a module says first: the subtitle of its chapter"
        return self.chapters[module.name].subtitle

    def source(self, path: str, line: int = 0) -> str:
        s = self.settings
        return f'{s["git_url"]}/blob/{s["branch"]}/{path}' + (f'#L{line}' if line else '')

    @cached_property
    def lines(self) -> dict[str, dict[str, int]]:
        "Module -> name -> the line of the package's file where it is defined"
        package, found = self.settings['lib_path'], {}
        for m in self.modules:
            tree = ast.parse((self.root/package/f'{m.name}.py').read_text(encoding='utf-8'))
            found[m.name] = dict(definition_lines(tree))
        return found

    def labels(self, entry: Entry) -> list[str]:
        "The equations that the code of an entry names"
        if entry.owner and entry.cell is entry.e.cell:
            return sorted(set(ledger.NAMED.findall(segment(entry.cell.source, entry.node))))
        name = entry.name.split('.')[-1]
        return list(dict.fromkeys(self.equations.get(f'{entry.module}.{name}', [])))

    # ------------------------------------------------------------ pages
    def page(self, module: exported.Module) -> dict:
        "The page of a module, as a notebook"
        entries = self.entries[module.name]
        taught = [e for e in entries if e.cell.kind == 'open']
        helpers = [e for e in entries if e not in taught]
        n, file = self.numbers[module.name], Path(module.chapter.file).name
        package = self.settings['lib_name']
        source = self.source(f'{package}/{module.name}.py')
        cells = [f'The module `{package}.{module.name}`, from [chapter {n}, '
                 f'*{self.chapters[module.name].title}*]({file}). [Its source]({source}).']
        for title, group in ('Shown in the chapter', taught), ('Checks and helpers', helpers):
            if group: cells += [f'## {title} {{.unnumbered}}', *map(self.markdown, group)]
        return notebook(f'API: {module.name}', self.about(module), cells, f'api-{module.name}')

    def index(self) -> dict:
        "The page that lists all modules and names"
        n = sum(map(len, self.entries.values()))
        about = (f'The package has {n} public names in {len(self.modules)} modules, in the order '
                 'of the chapters that define them. A name in the text or in the code of a chapter '
                 'links to its entry here, and an entry to its derivation and to its source.')
        cells = [about]
        for m in self.modules:
            names = self.entries[m.name]
            first = [e for e in names if e.cell.kind == 'open']
            rest = [e for e in names if e not in first]
            text = f'## [`{m.name}`]({file_of(m.name)}) {{#{m.name} .unnumbered}}\n\n'
            text += f'{self.about(m)}.\n\n'.replace('?.', '?')
            text += links_to(first or rest)
            if first and rest: text += f'\n\n[Checks and helpers:]{{.helpers}} {links_to(rest)}'
            cells.append(text)
        return notebook('API reference', 'Every public name, with its signature as it is written',
                        cells, 'api')

    def markdown(self, entry: Entry, level: int = 3) -> str:
        "An entry, with its methods"
        parts = [f'{"#"*level} `{entry.name}` {{#{entry.name} .unnumbered}}',
                 f'```python\n{entry.code}\n```']
        if entry.text: parts.append(prose_of(entry.text))
        if entry.parameters:
            lines = [f'- {self.label(name)}: {exported.escaped(said)}'
                     for name, said in entry.parameters]
            parts.append('::: {.parameters}\n' + '\n'.join(lines) + '\n:::')
        if entry.errors: parts.append(errors_of(entry.errors))
        parts.append(f'::: {{.whence}}\n{self.whence(entry)}\n:::')
        parts += [self.markdown(m, level + 1) for m in entry.methods]
        return '\n\n'.join(parts)

    @staticmethod
    def label(name: str) -> str: return 'returns' if name == 'return' else f'`{name}`'

    def whence(self, entry: Entry) -> str:
        "Equations, the place in the chapter, the source"
        refs = ', '.join(f'[-@{l}]' for l in self.labels(entry) if l not in entry.text)
        found = [f'Equation {refs}'] if refs else []
        if not entry.owner or entry.cell is not entry.e.cell: found.append(self.place(entry))
        line = self.lines[entry.module].get(entry.name)
        path = f'{self.settings["lib_path"]}/{entry.module}.py'
        return ' · '.join([*found, f'[Source]({self.source(path, line)})'])

    def place(self, entry: Entry) -> str:
        "A link to where the chapter defines it, with the section"
        file = Path(entry.e.module.chapter.file).name
        headings = self.chapters[entry.module]
        section = headings.before(entry.cell.number) or headings.title
        own = names_printed(entry.cell.source)
        name = entry.name.split('.')[-1]
        at = f'#{name.lower()}' if name in own else ''
        return f'[Chapter {self.numbers[entry.module]}, *{section}*]({file}{at})'

    # ------------------------------------------------------------ the build
    def write(self, folder: Path):
        "Write the pages of the modules and the index"
        pages = {file_of(m.name): self.page(m) for m in self.modules}
        for file, nb in {INDEX: self.index(), **pages}.items(): write_notebook(folder/file, nb)

    def write_ledger(self, folder: Path, equations: list[ledger.Equation], shown: dict):
        "Write the page of the equation ledger; `shown` has the cells of each chapter on the site"
        titles = {Path(f).stem: f'{n} {Headings(self.root/"nbs"/f).title}'
                  for n, f in enumerate(numbered_chapters(self.root), 1)}
        cells = ledger.page_cells(equations, titles, shown, self.source,
                                  ledger.test_lines(self.root))
        cells = [self.link_prose(c) for c in cells]
        nb = notebook('Equation ledger', 'Every numbered equation, the code that says the same, '
                      'and the test that would fail if it did not', cells, 'ledger')
        write_notebook(folder/'ledger.ipynb', nb)

    def in_book(self, chapters: list) -> list:
        "The chapters of the book, with the pages of the modules below the index of the API"
        part = dict(part=INDEX, chapters=[file_of(m.name) for m in self.modules])
        return [{**c, 'chapters': self.in_book(c['chapters'])} if isinstance(c, dict) else
                part if c == INDEX else c for c in chapters]

    def write_quarto(self, file: Path):
        "The same for Quarto, whose parts have no parts: the API is the last one"
        quarto = yaml.safe_load(file.read_text(encoding='utf-8'))
        chapters = [{**c, 'chapters': [f for f in c['chapters'] if f != INDEX]}
                    if isinstance(c, dict) else c for c in quarto['book']['chapters']]
        quarto['book']['chapters'] = [*chapters, *self.in_book([INDEX])]
        text = yaml.safe_dump(quarto, sort_keys=False, allow_unicode=True)
        file.write_text(text, encoding='utf-8')

    # ------------------------------------------------------------ links to entries
    def link_prose(self, text: str) -> str:
        "Markdown in which names in backticks link to their entries; links made by hand stay"
        base = self.settings['doc_host'] + self.settings['doc_baseurl']
        def link(m):
            before, name, call, target = m.groups()
            if before and not target.startswith(f']({base}'): return m[0]
            shown = f'`{name}{call or ""}`'
            return f'[{shown}]({self.all[name].href})' if name in self.all else m[0]
        def line(m):
            if m[0].startswith('#'): return re.sub(rf'\[(`[^`]+`)\]\({base}[^)]*\)', r'\1', m[0])
            return NAME.sub(link, m[0])
        parts = FENCES.split(text)
        return ''.join(p if i % 2 else re.sub('.+', line, p) for i, p in enumerate(parts))

    @cached_property
    def names_on(self) -> dict[str, dict[str, str]]:
        "Page -> what its code calls our names -> the place of the entry"
        found = {}
        for chapter in reading.read(self.root):
            names = {i.here: i.name for i in chapter.imports.values() if i.ours and i.name}
            if chapter.module in self.entries:
                names |= {e.name: e.name for e in self.entries[chapter.module]}
            names = {here: on_site(self.all[name].href) for here, name in names.items()
                     if name in self.all}
            found[on_site(page(chapter.file))] = names
            if chapter.module in self.entries: found[on_site(file_of(chapter.module))] = names
        return found


def links_to(entries: list[Entry]) -> str:
    return ', '.join(f'[`{e.name}`]({e.href})' for e in entries)


def on_site(href: str) -> str: return href.replace('.ipynb', '.html')


def settings(root: Path) -> dict:
    from nbdev.config import get_config
    cfg = get_config(path=root)
    return {k: cfg.d[k] for k in 'lib_name lib_path git_url branch doc_host doc_baseurl'.split()}


def notebook(title: str, subtitle: str, cells: list[str], name: str) -> dict:
    "A page as nbdev would have left it: its title in a raw cell"
    head = yaml.safe_dump(dict(title=f'{title} {{.unnumbered}}', description=subtitle),
                          sort_keys=False, allow_unicode=True, width=1000)
    first = dict(cell_type='raw', id=f'{name}-title', metadata={}, source=f'---\n{head}---\n')
    rest = [dict(cell_type='markdown', id=f'{name}-{i}', metadata={}, source=s)
            for i, s in enumerate(cells)]
    return dict(cells=[first, *rest], metadata={}, nbformat=4, nbformat_minor=5)


def numbered_chapters(root: Path) -> list[str]:
    files = ledger.chapters(quarto_of(root)['book']['chapters'])
    return [f for f in files if ledger.NUMBERED.match(f)]


def quarto_of(root: Path) -> dict:
    return yaml.safe_load((root/'_quarto.yml').read_text(encoding='utf-8'))


class Headings:
    "The title of a chapter, its subtitle, and the heading above each cell"
    def __init__(self, file: Path):
        self.title, self.subtitle, self.at = '', '', {}
        for i, (kind, s) in enumerate(ledger.cells(file), 1):
            if kind != 'markdown': continue
            bare = ''.join(DIVS.split(s)[::2])
            if not self.title and (m := re.match(r'# (.*)\n+> *(.*)', bare)):
                self.title, self.subtitle = bare_title(m[1]), m[2].rstrip('.')
            found = re.findall(r'(?m)^##+ +(.*?) *(?:\{[^}\n]*\})?$', bare)
            if found: self.at[i] = found[-1]

    def before(self, cell: int) -> str:
        return next((s for i, s in reversed(self.at.items()) if i < cell), '')


def definition_lines(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in tree.body:
        if isinstance(node, FUNCTIONS):
            patched = any(ast.unparse(d).startswith('patch') for d in node.decorator_list)
            owner = patched and ast.unparse(node.args.args[0].annotation)
            yield f'{owner}.{node.name}' if owner else node.name, node.lineno
        elif isinstance(node, ast.ClassDef):
            yield node.name, node.lineno
            for m in node.body:
                if isinstance(m, FUNCTIONS): yield f'{node.name}.{m.name}', m.lineno
        elif isinstance(node, ast.Assign):
            for n in ast.walk(node):
                if reading.is_stored(n): yield n.id, node.lineno


def prose_of(docstring: str) -> str:
    "A docstring as Markdown; indented lines and lists keep their lines"
    parts = []
    for block in re.split(r'\n\s*\n', docstring.strip()):
        lines = block.split('\n')
        if all(line.startswith('    ') for line in lines):
            parts.append(f'```\n{textwrap.dedent(block)}\n```')
        elif re.match(r'\s*[-*] ', lines[0]):
            parts.append('\n'.join(map(exported.escaped, lines)))
        else: parts.append(exported.escaped(' '.join(block.split())))
    return '\n\n'.join(parts)


def errors_of(errors: list[tuple[str, str]]) -> str:
    "Errors, folded: their kinds, and under them their messages"
    kinds = ', '.join(f'<code>{k}</code>' for k in sorted({k for k, _ in errors}))
    items = ''.join(f'<li><code>{k}</code> {html.escape(" ".join(text.split()))}</li>'
                    for k, text in errors)
    return (f'```{{=html}}\n<details class="errors"><summary>Raises {kinds}</summary>'
            f'<ul>{items}</ul></details>\n```')


# ---------------------------------------------------------------- links in printed code
def parsed(code: str) -> ast.Module | None:
    "Printed code, or a signature, as a tree"
    alone = re.sub(r'(?m)^class (\w+\([^:]*\)|\w+)$', r'class \1: ...', code)
    for text in (code, f'{code}: ...', alone, f'{alone}: ...'):
        try: return ast.parse(text)
        except SyntaxError: pass


def names_in(tree: ast.Module, code: str) -> Iterator[tuple[int, str]]:
    "(offset, name) of what code uses, imports or defines; without what it assigns itself"
    starts, lines = [0], code.splitlines(keepends=True)
    for line in lines: starts.append(starts[-1] + len(line))
    def offset(line: int, column: int) -> int:
        before = lines[line - 1].encode()[:column].decode()
        return starts[line - 1] + len(before)
    own = {n.id for n in ast.walk(tree) if reading.is_stored(n)}
    own |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    for n in ast.walk(tree):
        if isinstance(n, ast.Name) and n.id not in own: yield offset(n.lineno, n.col_offset), n.id
        elif isinstance(n, ast.alias): yield offset(n.lineno, n.col_offset), n.name
        elif isinstance(n, reading.DEFINITIONS):
            line = offset(n.lineno, n.col_offset)
            yield code.index(n.name, line + len('def ')), n.name


def link_code(page_html: str, names: dict[str, str]) -> str:
    "A page on which the names in printed code link to their entries"
    def block(m):
        code = html.unescape(re.sub(r'<[^>]*>', '', m[2]))
        tree = parsed(code)
        found = dict(names_in(tree, code)) if tree else {}
        found = {at: name for at, name in found.items() if name in names}
        return m[1] + with_links(m[2], found, names) + m[3] if found else m[0]
    return PRINTED.sub(block, page_html)


def with_links(block: str, found: dict[int, str], names: dict[str, str]) -> str:
    out, at = [], 0
    for part in re.split(r'(<[^>]*>)', block):
        if part.startswith('<'):
            out.append(part)
            continue
        for word in re.split(r'(\w+)', html.unescape(part)):
            shown = html.escape(word)
            linked = found.get(at) == word
            out.append(f'<a href="{names[word]}">{shown}</a>' if linked else shown)
            at += len(word)
    return ''.join(out)


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('names', nargs='*')
    library = Library()
    for name in ap.parse_args().names or library.all: print(library.markdown(library.all[name]))


if __name__ == '__main__': main()
