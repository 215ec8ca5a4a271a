"""Which code a function depends on: its own definition and, from the names that it uses and the
imports, every definition of this repository that can run because of it.

What lies outside the repository is left out. A statement of a module that defines nothing counts
as used as soon as the module is. Comments and docstrings do not count.
"""
import ast, hashlib, json, re, symtable
from functools import cache
from pathlib import PurePosixPath
from typing import Callable, NamedTuple

from run_nbs import meaning

meaning = cache(meaning)

LIB = 'diffusion_scratch'


def needed(node: ast.stmt) -> set[str]:
    "The names that a statement takes from the module"
    def names(table):
        return {s.get_name() for s in table.get_symbols() if s.is_referenced()
                and (s.is_global() or table.get_type() == 'module')}.union(
                    *map(names, table.get_children()))
    return names(symtable.symtable(ast.unparse(node), 'cell', 'exec'))


def defined(node: ast.stmt) -> set[str]:
    "The names that a statement gives to the module"
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)): return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else []
    return {n.id for t in targets for n in ast.walk(t)
            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def text(source: str, node: ast.stmt) -> str:
    "The lines of a statement, with its decorators"
    first = min([node.lineno, *(d.lineno for d in getattr(node, 'decorator_list', []))])
    return '\n'.join(source.splitlines()[first - 1:node.end_lineno])


class Piece(NamedTuple):
    "A statement of a module"
    text: str
    names: set[str]  # that it defines; none: it counts as soon as the module is used
    node: ast.stmt


def names_given(node: ast.stmt) -> set[str]:
    "As `defined`; a method that is patched in belongs to its class, and a block to its names"
    found = defined(node)
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id}
    if isinstance(node, ast.FunctionDef) and node.args.args:
        patched = any(getattr(d, 'id', '') == 'patch' for d in node.decorator_list)
        kind = node.args.args[0].annotation
        if patched and isinstance(kind, ast.Name): found = found | {kind.id}
    if isinstance(node, (ast.Try, ast.If, ast.With)):
        inside = [n for n in ast.walk(node) if isinstance(n, ast.stmt) and n is not node]
        found = found.union(*map(defined, inside))
    return found


def counts(path: str, node: ast.stmt) -> bool:
    "Does a statement without names run wherever its module is used? No cell of a chapter does"
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    program = isinstance(node, ast.If) and '__name__' in needed(node)
    return not (docstring or program or path.endswith('.ipynb'))


def cells(content: str) -> list[str]:
    "The code of a notebook, cell by cell, without magics"
    found = [''.join(c['source']) for c in json.loads(content)['cells'] if c['cell_type'] == 'code']
    return [c for c in found if not re.search(r'(?m)^\s*[%!]', c)]


class Code:
    "The definitions of the files of a tree, and what they use"
    def __init__(self, read: Callable[[str], str | None]):  # path -> its text, None: no such file
        self.read, self.files = cache(read), {}
        self.targets = cache(self.targets)

    def load(self, path: str):
        "Statements, imports as name -> (path, name there; none: the whole module), names defined"
        if path in self.files: return self.files[path]
        content, pieces, imports = self.read(path), [], {}
        if content is None: self.files[path] = None; return None
        for source in cells(content) if path.endswith('.ipynb') else [content]:
            for node in ast.parse(source).body:
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    imports |= self.imported(path, node)
                    continue
                piece = Piece(text(source, node), names_given(node), node)
                if piece.names or counts(path, node): pieces.append(piece)
        self.files[path] = pieces, imports, set().union(*(p.names for p in pieces))
        return self.files[path]

    def imported(self, path: str, node) -> dict[str, tuple[str, str]]:
        "The names of an import that come from the repository"
        folder, found = PurePosixPath(path).parent, {}
        def file_of(module):
            name = module.replace('.', '/')
            if module == LIB: return f'{LIB}/__init__.py'
            file = f'{name}.py' if module.startswith(f'{LIB}.') else str(folder/f'{name}.py')
            return file if self.read(file) is not None else None
        if isinstance(node, ast.Import):
            for a in node.names:
                if file := file_of(a.name): found[a.asname or a.name.split('.')[0]] = file, ''
            return found
        module = f'{LIB}.{node.module}' if node.level else node.module
        for a in node.names:
            whole = file_of(f'{module}.{a.name}') if module == LIB else None
            if whole: found[a.asname or a.name] = whole, ''
            elif file := file_of(module): found[a.asname or a.name] = file, a.name
        return found

    def targets(self, path: str, number: int) -> set[tuple[str, str]]:
        "What a statement of a file uses, as (path, name)"
        pieces, imports, own = self.load(path)
        piece = pieces[number]
        inside = [n for n in ast.walk(piece.node) if isinstance(n, (ast.Import, ast.ImportFrom))]
        local = {k: v for n in inside for k, v in self.imported(path, n).items()}
        found, parts = set(), {}
        for n in ast.walk(piece.node):  # of a module that has a name: the parts that are named
            if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name):
                parts.setdefault(n.value.id, set()).add(n.attr)
        for name in needed(piece.node) | set(local):
            if name in own and name not in local: found.add((path, name)); continue
            file, there = (imports | local).get(name, ('', ''))
            if file: found |= {(file, there)} if there else {(file, p) for p in parts.get(name, ())}
        return found

    def used(self, entries: list[str]) -> dict[str, set[str]]:
        "Path -> names that count there; an entry is path:name"
        waiting, seen, names = {tuple(e.split(':')) for e in entries}, set(), {}
        while waiting:
            path, name = waiting.pop()
            if (path, name) in seen: continue
            seen.add((path, name))
            if (loaded := self.load(path)) is None: continue
            pieces, imports, _ = loaded
            if name in imports:  # passed on from another module
                file, there = imports[name]
                waiting |= {(file, there)} if there else set()
            if path not in names: names[path] = set()
            names[path].add(name)
            for i, piece in enumerate(pieces):
                if not piece.names or name in piece.names: waiting |= self.targets(path, i)
        return names

    def hashes(self, used: dict[str, set[str]]) -> dict[str, str]:
        "Module -> a hash of the definitions of it that are used"
        found = {}
        for path, names in sorted(used.items()):
            loaded = self.load(path)
            parts = [p.text for p in loaded[0] if not p.names or p.names & names] if loaded else []
            if not parts: continue
            code = '\n'.join(map(meaning, parts))
            module = path.removeprefix(f'{LIB}/').rpartition('.')[0]
            found[module] = hashlib.sha256(code.encode()).hexdigest()[:12]
        return found
