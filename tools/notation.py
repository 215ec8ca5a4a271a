r"""Does each symbol of the book stand in the notation table, once, with one meaning?

    python tools/notation.py [PREFIX ...]         # what is wrong, chapter by chapter; fails if any
    python tools/notation.py --where [PREFIX ...] # also a formula for each symbol that is unknown
    python tools/notation.py --table FILE ...     # read the table from a file of Markdown

A PREFIX is the beginning of a chapter's file name, such as `07`; without one, all are read.
Read are the formulas of the prose, of captions and of strings (labels of figures). The page of
`QUOTES` shows other people's symbols and is not read.

The table is the section `{#sec-notation}` of a chapter: the first column of each of its tables
lists symbols, `$\mu$, $\sigma$`. A symbol is a letter with its font: $x$, $\mu$, $\mathcal N$,
$\mathbb E$. In the table, what follows an `=` explains a symbol, and so do its index and its
arguments. A hat, a bar, a tilde and a prime make variants of a symbol: a chapter may use them where
the letter stands in the table. Words in roman type, $\mathrm{signal}$, explain themselves.

- unknown   A symbol of a formula that is not in the table.
- banned    A way to write a symbol that the book has another for: `BANNED`.
- twice     A Greek letter, a capital or a letter with a font which has two rows in the table in
            the same form. $L$, $L_T$ and $\pi$, $\pi_k$ are different forms; $x_t$, $x_s$ are not.
"""
import argparse, re, sys
from collections import Counter
from pathlib import Path
from typing import Iterator, NamedTuple

import ledger, reading

ROOT = Path(__file__).resolve().parent.parent

QUOTES = {'glossary'}

# Commands that are no symbols: relations, operators, functions with a name, spaces, sizes
ORDINARY = set(r"""
    approx arg bigcup bigcap bmod bot cap cdot cdots circ cos cosh cup dagger div dots equiv exists
    exp forall frac ge geq gg iff implies in inf infty int leftarrow leftrightarrow le leq lim ln
    ldots ll log longrightarrow Longrightarrow lnot mapsto max mid min mod mp nabla ne neq neg notin
    odot oint oplus otimes parallel partial perp pm pmod Pr prime prod propto Rightarrow rightarrow
    setminus sim simeq sin sinh sqrt star subset subseteq sum sup tan tanh times tfrac dfrac binom
    to top uparrow downarrow varnothing emptyset vdots wedge xrightarrow bigoplus land lor det dim
    left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr middle langle rangle
    lbrace rbrace lceil rceil lfloor rfloor lVert rVert lvert rvert Vert vert lbrack rbrack
    quad qquad textstyle displaystyle scriptstyle limits nolimits phantom hphantom vphantom
    underbrace overbrace underset overset stackrel boxed not colon hline displaylines substack
    mathstrut smash nonumber notag cases cfrac ast bullet triangleq cot sec csc ker deg coloneqq
""".split())
ACCENTS = dict(hat='hat', widehat='hat', bar='bar', overline='bar', tilde='tilde',
               widetilde='tilde', dot='dot', ddot='ddot', vec='vec', underline='underline',
               check='check')
FONTS = {'mathcal', 'mathbb', 'mathbf', 'boldsymbol', 'bm', 'mathfrak', 'mathscr', 'mathit'}
ROMAN = {'mathrm', 'operatorname', 'mathsf', 'mathtt', 'textsf'}
WORDS = {'text', 'textrm', 'textbf', 'textit', 'mbox', 'texttt'}
# Commands with an argument that is not mathematics
DROPPED = {'begin', 'end', 'tag', 'label', 'hspace', 'vspace', 'color', 'textcolor', 'class'}

# A regular expression, tried on a formula -> what to write instead
BANNED = {
    r'(?<![_^{])\\text\s*\{(signal|noise)\}': r'\mathrm{signal}_t, \mathrm{noise}_t',
    r'(?<![a-zA-Z\\{])[sn]_(t|\{t\})': r'\mathrm{signal}_t, \mathrm{noise}_t',
    r'\\(cos|sin|tan)\b\s*[\\,;(]*\\(theta|phi|alpha|gamma|omega)\b': r'an angle is \varphi',
    r'd\\theta|\\theta\s*=': r'\theta is the weights; an angle is \varphi',
    r'\\lambda_\{?[ijkn]\b': r'an eigenvalue is \kappa_i; \lambda is log(signal/noise)',
    r'\\delta_\{?[ijkmn]{2}': r'write [i = j]',
    r'\\mathcal\s*\{?L': 'a loss is L',
    r'\\(mathbf|boldsymbol|bm)\b': 'letters are not bold',
    r'\\bar\s*\{?\\?(?:lambda|sigma|rho)\b': r'only \bar\alpha_t is a product up to t',
}
# An unknown symbol -> what the book writes
INSTEAD = {
    r'\phi': r'an angle \varphi, a feature map \psi, the normal distribution function \Phi',
    r'\xi': 'another draw of noise is z', r'\chi': 'write it in words', r'\nu': 'a free letter',
    'E': r'the mean is \mathbb E', r'\varrho': r'\rho', r'\vartheta': r'\theta',
    r'\Lambda': r'\Sigma or a free letter',
}


class Found(NamedTuple):
    chapter: str
    rule: str
    symbol: str
    formula: str


# ---------------------------------------------------------------- formulas
FENCED = re.compile(r'^```.*?^```|`[^`\n]+`', re.M | re.S)
MATH = re.compile(r'\$\$(.+?)\$\$|(?<![\\$])\$(?!\$)([^$]+?)\$', re.S)


def formulas_of(markdown: str) -> Iterator[str]:
    "The inline and the displayed formulas of some Markdown, without the code"
    for display, inline in MATH.findall(FENCED.sub(' ', markdown)): yield display or inline


def formulas_of_code(source: str) -> Iterator[str]:
    "The formulas in captions and in strings of a code cell"
    for kind, text in reading.words_of_code(source):
        if kind == 'caption': yield from formulas_of(text.replace('\\\\', '\\'))
        if kind != 'string' or re.match(r'\w*[fF]', text): continue
        for formula in formulas_of(text):
            if re.search(r'[\\_^]|^\s*\w\s*$', formula): yield formula


def formulas(file: Path) -> Iterator[str]:
    "All the formulas of a chapter"
    for kind, source in ledger.cells(file):
        if kind == 'markdown': yield from formulas_of(source)
        elif kind == 'code': yield from formulas_of_code(source)


# ---------------------------------------------------------------- symbols
TOKEN = re.compile(r"\\[a-zA-Z]+\*?|\\.|[a-zA-Z]|[{}_^'=()\[\]|,]|\d+|\S|\s+", re.S)


class Reader:
    """Symbols of a formula, `(letter, accents, depth)`.

    A letter is `x`, `\\mu`, `\\mathcal N` or `\\mathrm{signal}`; its depth is 0 outside of
    indices, exponents, and the arguments of commands.
    """
    def __init__(self, formula: str):
        formula = re.sub(r'\\\\\s*\[[^\]]*\]', ' ', formula)  # a new line with its distance
        formula = re.sub(r'\\begin\s*\{(array|alignedat)\}\s*\{[^}]*\}', ' ', formula)
        self.tokens, self.at = TOKEN.findall(formula), 0

    def skip_spaces(self):
        while self.at < len(self.tokens) and self.tokens[self.at].isspace(): self.at += 1

    def argument(self) -> list[str]:
        "The tokens of a command's argument: a group without its braces, or one token"
        self.skip_spaces()
        if self.at >= len(self.tokens): return []
        start = self.at
        if self.tokens[start] != '{':
            self.at += 1
            if self.tokens[start][1:] in FONTS | ROMAN | ACCENTS.keys():
                return [self.tokens[start], '{', *self.argument(), '}']
            return [self.tokens[start]]
        depth = 0
        while self.at < len(self.tokens):
            depth += {'{': 1, '}': -1}.get(self.tokens[self.at], 0)
            self.at += 1
            if not depth: break
        return self.tokens[start + 1:self.at - 1]

    def inner(self, tokens: list[str], accents=(), depth=0):
        reader = Reader('')
        reader.tokens = tokens
        yield from reader.symbols(accents, depth)

    def symbols(self, accents=(), depth=0) -> Iterator[tuple[str, tuple[str, ...], int]]:
        while self.at < len(self.tokens):
            token = self.tokens[self.at]
            self.at += 1
            name = token[1:].rstrip('*') if token[0] == '\\' else ''
            if name in ACCENTS:
                yield from self.inner(self.argument(), (*accents, ACCENTS[name]), depth)
            elif name in FONTS:
                letters = ''.join(self.argument()).strip()
                if not letters.isdigit(): yield rf'\{name} {letters}', accents, depth
            elif name in ROMAN:
                word = re.sub(r'\\([a-zA-Z]+|.)', ' ', ''.join(self.argument())).strip()
                yield rf'\mathrm{{{word}}}', accents, depth
            elif name in WORDS:
                for formula in formulas_of(''.join(self.argument())):
                    yield from Reader(formula).symbols(accents, depth)
            elif name in DROPPED: self.argument()
            elif token in '_^': yield from self.inner(self.argument(), (), depth + 1)
            elif name in ORDINARY: continue
            elif name and name[0].isalpha(): yield token, accents, depth
            elif token.isalpha() and token.isascii(): yield token, accents, depth


def symbols(formula: str) -> Counter:
    "How often each letter stands in a formula, with its font and without its accents"
    return Counter(letter for letter, _, _ in Reader(formula).symbols())


def head(formula: str) -> str | None:
    "The symbol that a formula of the table's first column is about: `\\bar\\alpha`"
    for letter, accents, depth in Reader(formula.split('=')[0]).symbols():
        if not depth: return ''.join(rf'\{a} ' for a in accents) + letter


# ---------------------------------------------------------------- the table
def section(file: Path) -> str:
    "The text of the section `{#sec-notation}`, up to the next heading"
    for kind, source in ledger.cells(file):
        m = re.search(r'(?ms)^##[^\n]*\{#sec-notation\}(.*?)(?=^## |\Z)', source)
        if kind == 'markdown' and m: return m[1]
    return ''


class Entry(NamedTuple):
    "A symbol of the table, as `head` writes it, and its form: with which index and arguments"
    symbol: str
    form: str


def rows(markdown: str) -> list[list[Entry]]:
    "The symbols of each row of the tables"
    found = []
    for line in markdown.splitlines():
        m = re.match(r'\|((?:\$[^$]*\$|[^|$])*)\|', line.strip())
        if m and (formulas := list(formulas_of(m[1]))):
            found.append([e for f in formulas for e in entries(f)])
    return found


def entries(formula: str) -> list[Entry]:
    "The symbols of a formula that lists some: `\\mu, \\sigma`; arguments are no symbols of a list"
    bare = re.sub(r'\([^()]*\)|\[[^\[\]]*\]', '()', formula.split('=')[0])
    depth, parts, start = 0, [], 0
    for i, character in enumerate(bare):
        depth += {'{': 1, '}': -1}.get(character, 0)
        if character == ',' and not depth and bare[i - 1:i] != '\\':
            parts.append(bare[start:i]); start = i + 1
    return [Entry(h, form(part)) for part in [*parts, bare[start:]] if (h := head(part))]


def form(formula: str) -> str:
    "A symbol as it is written, with one name for all indices that count: t, s, i, t - 1"
    return re.sub(r'_(\{[a-z](-1)?\}|[a-z])', '_t', re.sub(r'\s|\\[,;!]', '', formula))


def twice(table: list[list[Entry]]) -> list[str]:
    "Greek letters, capitals and letters with a font that have two rows in the same form"
    n = Counter(entry for row in table for entry in set(row))
    small = re.compile(r'(\\(hat|bar|tilde) )?[a-z]')
    return [e.symbol for e, k in n.items() if k > 1 and not small.fullmatch(e.symbol)]


def bare(symbol: str) -> str:
    "A symbol of the table without its accents"
    return re.sub(r'^(\\(hat|bar|tilde|dot|ddot|vec|underline|check) )+', '', symbol)


# ---------------------------------------------------------------- the book
def problems(file: Path, known: set[str]) -> Iterator[Found]:
    "What is wrong with the formulas of a chapter"
    for formula in formulas(file):
        shown = ' '.join(formula.split())
        for pattern, instead in BANNED.items():
            for m in re.finditer(pattern, formula):
                yield Found(file.stem, 'banned', f'{m[0]} ({instead})', shown)
        for symbol in symbols(formula):
            if symbol.startswith(r'\mathrm') or symbol in known: continue
            why = f' ({INSTEAD[symbol]})' if symbol in INSTEAD else ''
            yield Found(file.stem, 'unknown', symbol + why, shown)


def chapters(root: Path) -> list[Path]:
    return [f for f in sorted((root/'nbs').glob('*.ipynb')) if f.stem not in QUOTES]


def read_table(root: Path) -> list[list[Entry]]:
    "The rows of the notation table, wherever in the book it is"
    for file in chapters(root):
        if text := section(file): return rows(text)
    return []


def check(table: list[list[Entry]], files: list[Path]) -> tuple[list[str], list[Found]]:
    "(symbols with two rows in the table, what is wrong in the chapters)"
    known = {bare(e.symbol) for row in table for e in row}
    return twice(table), [found for file in files for found in problems(file, known)]


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    ap.add_argument('prefix', nargs='*')
    ap.add_argument('--where', action='store_true', help='show a formula for each symbol')
    ap.add_argument('--table', type=Path, help='read the table from this file of Markdown')
    a = ap.parse_args()
    files = [f for f in chapters(ROOT) if f.name.startswith(tuple(a.prefix) or '')]
    table = rows(a.table.read_text(encoding='utf-8')) if a.table else read_table(ROOT)
    double, found = check(table, files)
    for symbol in double: print(f'the table has two rows for {symbol}')
    for chapter in dict.fromkeys(f.chapter for f in found):
        here = [f for f in found if f.chapter == chapter]
        for (rule, symbol), n in Counter((f.rule, f.symbol) for f in here).items():
            print(f'{chapter}: {rule}: {symbol}, {n} formula{"s"*(n > 1)}')
            where = dict.fromkeys(f.formula for f in here if (f.rule, f.symbol) == (rule, symbol))
            if a.where: print(*(f'    $ {f[:140]} $' for f in list(where)[:6]), sep='\n')
    kinds = {(f.chapter, f.rule, f.symbol) for f in found}
    print(f'{len(kinds) + len(double)} to mend; the table has {sum(map(len, table))} symbols')
    return bool(found or double or not table)


if __name__ == '__main__': sys.exit(main())
