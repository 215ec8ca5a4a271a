"""The search of the site: its documents, and a check that it finds what it must.

    python tools/search.py [QUERY ...]    # what a query finds, by node; without one, try QUERIES

A document is a section of a chapter, an entry of the API or a term of the glossary. The glossary is
also the table of synonyms: a query with any name of a term finds what the book calls it. The
browser ranks with MiniSearch, from npm, and nbs/finder.js, loaded when the search box gets the
focus. Without npm the site keeps the search of smalldocs.
"""
import json, re, shutil, subprocess, sys, tempfile
from pathlib import Path
from typing import Iterator, NamedTuple

from smalldocs.markdown import pandoc_id

import api, ledger, live
from links import SEARCH as INDEX
from npm import npm_files
from references import CODE_BLOCK, DIVS, Book, bare_title, opts, page, read_bib, text

ROOT = Path(__file__).resolve().parent.parent
MINISEARCH = '7.2.0'
BOX = re.compile(r'<div class="smalldocs-search" id="quarto-search".*?</div></div>', re.S)
FUSE = re.compile(r'<script src="[^"]*fuse[^"]*"[^>]*></script>')
NOT_FOUND_BY = re.compile(r'[\d.\s]*(What we exported|Next|References|Solutions?)$')

# Query -> the beginnings of the addresses one of which must be among the first three results
QUERIES = {
    'FID': ['evaluation.html', 'features.html#inception', 'glossary.html#term-frechet-distance'],
    'classifier-free guidance': ['guidance.html'],
    'cosine schedule': ['api_schedule.html#cosine_betas', 'schedule.html#draw-the-curve-first'],
    'train on my own images': ['data.html#a-folder-of-your-own-images'],
    'negative log likelihood': ['likelihood.html', 'api_likelihood.html', 'loss.html'],
    'ELBO': ['loss.html#the-bound', 'loss.html#the-whole-bound', 'glossary.html#term-variational'],
    'EMA': ['training.html#an-exponential-moving-average'],
    'DDIM': ['solvers.html', 'api_solvers.html#ddim'],
    'inpainting': ['editing.html'],
    'resume training': ['training.html#stop-and-resume', 'run.html#stopped-and-continued'],
    'NaN': ['training.html#where-it-breaks-nan'],
    'learning rate': ['training.html#the-learning-rate'],
    'v-prediction': ['denoiser.html', 'glossary.html#term-v-prediction'],
    'attention': ['unet.html#self-attention'],
    'number of steps': ['solvers.html', 'evaluation.html#on-real-data-how-few-steps',
                        'mnist.html#how-few-steps', 'api_schedule.html#Schedule.times'],
    'GPU': ['engine.html', 'run.html#the-machine', 'run.html#several-processes'],
}


class Document(NamedTuple):
    "What a result leads to; `names` are found like the title but not shown"
    title: str
    page: str
    href: str
    text: str
    kind: str  # section, exercise, api, method, helper or term
    names: str = ''


class Concept(NamedTuple):
    "A term of the glossary: its names, the book's own first, and the pages that explain it"
    names: list[str]
    pages: list[str]


# ---------------------------------------------------------------- Markdown as plain text
TEX = re.compile(r'\$\$.*?\$\$|\$[^$\n]+\$', re.S)
COMMANDS = re.compile(r'\\(?:hat|bar|tilde|math[a-z]+|operatorname|text|[lr]Vert|left|right'
                      r'|[bB]igg?[lr]?|q?quad|tag|label|mid|sim|cdot|[,;!:|])(?![a-zA-Z])')
RULES = [(re.compile(pattern, re.M | re.S), by) for pattern, by in [
    (r'^```.*?^```[^\n]*$', ' '),                         # code
    (r'^:{3,}[^\n]*$|\{[#.][^}\n]*\}|\{fig-[^}\n]*\}', ' '),  # divs, attributes
    (r'^#+ +([^\n]*)$', r'\1. '),                         # headings of callouts
    (r'^\|[ :|-]+\|$|\|', ' '),                           # tables
    (r'!?\[([^\]]*)\]\([^)]*\)', r'\1'),
    (r'\[[^\]]*@[^\]]*\]|@[\w:-]+\w|<[^>\n]*>', ''),      # references, citations, HTML
    (r'\*\*|(?<![\w\\])\*(?=\S)|(?<=[^\s\\])\*(?!\w)|`|^> ?|^[-*] ', ''),
    (r'\\([\\*_$\[\]|<>~^#])', r'\1'),
    (r'\s+', ' '), (r' (?=[.,;:)])', ''), (r'\(\)', '')]]


def plain(markdown: str) -> str:
    "Markdown as text; of mathematics, the letters; no displayed equations and no code"
    def letters(m):
        if m[0].startswith('$$'): return ' '
        return re.sub(r'[{}$\\]', '', COMMANDS.sub(' ', m[0]))
    s = TEX.sub(letters, CODE_BLOCK.sub(' ', markdown))
    for rule, by in RULES: s = rule.sub(by, s)
    return s.strip()


# ---------------------------------------------------------------- documents
HEADING = re.compile(r'^(#{2,4})[ \t]+(.*?)[ \t]*(\{[^}\n]*\})?[ \t]*$', re.M)


def sections(nb: dict, name: str, title: str) -> Iterator[Document]:
    "A document for each section of a notebook whose headings have numbers"
    href, used = page(name).replace('.ipynb', '.html'), {}
    current, parts = ('', ''), []
    def document():
        heading, place = current
        kind = 'exercise' if 'Exercise' in heading else 'section'
        return Document(heading or title, title, href + place, plain('\n\n'.join(parts)), kind)
    for cell in nb['cells']:
        s = text(cell['source'])
        if cell['cell_type'] == 'code':
            captions = opts(s).get('fig-cap') or []
            parts += [captions] if isinstance(captions, str) else captions
        if cell['cell_type'] != 'markdown': continue
        for i, part in enumerate(DIVS.split(s)):
            if i % 2 and not part.startswith('```'):  # a callout: text, but its headings have ids
                for m in HEADING.finditer(part): slug(m, used)
            if i % 2 or not HEADING.search(part):
                parts.append(part)
                continue
            at = 0
            for m in HEADING.finditer(part):
                parts.append(part[at:m.start()])
                yield document()
                current, parts, at = (plain(m[2]), '#' + slug(m, used)), [], m.end()
            parts.append(part[at:])
    yield document()


def slug(heading: re.Match, used: dict[str, int]) -> str:
    "The id of a heading: its own, or as Pandoc makes it"
    own = re.search(r'#([\w-]+)', heading[3] or '')
    if own: return own[1]
    base = pandoc_id(re.sub(r'[`*$]|\[@[^\]]*\]', '', heading[2]))
    used[base] = used.get(base, -1) + 1
    return base if not used[base] else f'{base}-{used[base]}'


def of_chapters(root: Path) -> Iterator[Document]:
    book, n = Book(read_bib(root/'nbs'/'references.bib')), 0
    quarto = api.quarto_of(root)
    for name in ledger.chapters(quarto['book']['chapters']):
        file = root/'nbs'/name
        if not file.exists() or name == 'glossary.ipynb': continue  # not there before the build
        nb = json.loads(file.read_text(encoding='utf-8'))
        nb['cells'] = [c for c in nb['cells'] if not live.is_left_out(text(c['source']))]
        numbered = bool(ledger.NUMBERED.match(name))
        n += numbered
        book.number(page(name), nb, n if numbered else None)
        title = title_and_subtitle(nb)
        title = f'{n} {title}' if numbered else title
        for d in sections(nb, name, title):
            if d.text and not NOT_FOUND_BY.match(d.title): yield d


def title_and_subtitle(nb: dict) -> str:
    "The title in the first cell, which becomes text"
    cell = nb['cells'][0]
    title, _, rest = text(cell['source']).partition('\n')
    cell['source'] = rest
    return plain(bare_title(title))


def of_api(library: api.Library) -> Iterator[Document]:
    for entry in library.all.values():
        top = library.all[entry.owner] if entry.owner else entry
        said = '; '.join(f'{name}: {what}' for name, what in entry.parameters if name != 'return')
        words = api.exported.without_equations(f'{entry.text}. {said}')
        kind = 'helper' if top.cell.kind != 'open' else 'method' if entry.owner else 'api'
        href = api.on_site(entry.href)
        yield Document(entry.name, f'API: {entry.module}', href, plain(words).strip('. '), kind)


# ---------------------------------------------------------------- the glossary
ROW = re.compile(r'(?m)^\| (?:\[\]\{[^}]*\})?\*\*(.+?)\*\*(.*?) \| (.*?) \| (.*?) \| (.*?) \|$')


SEPARATOR = re.compile(r'(?:;|,|\bor\b)(?![^(]*\))')
NO_NAME = re.compile(r'(with|where|our|is|up|in|half|for|of|about)\b|\W|.$')


def names_of(term: str, elsewhere: str) -> list[str]:
    """The names of a term: `variational lower bound (ELBO)` has two; those in the column
    *elsewhere* are separated by `;`, and what stands in brackets there says who uses them, or is
    an abbreviation"""
    found, elsewhere = [], re.sub(r'\$[^$]*\$', '', elsewhere)
    for i, part in enumerate([term, *re.split(SEPARATOR, elsewhere)]):
        m = re.match(r'(?:an? |the )?([^()`]+|`[^`]+`) *(?:\(([^)]*)\))?', part.strip())
        if not m: continue
        name, bracket = m[1].strip(' `').split('(')[0], m[2] or ''
        if i and (NO_NAME.match(name) or len(name.split()) > 4): continue
        found.append(name)
        initials = ''.join(re.findall(r'\b\w', name)).lower()
        if bracket and (i == 0 or bracket.lower() in (initials, initials[1:])):
            found.append(bracket)
    return list(dict.fromkeys(found))


def place_of(term: str) -> str: return 'term-' + pandoc_id(re.sub(r'\(.*?\)', '', term))


def with_places(markdown: str) -> str:
    "The tables of the glossary with a place for each term"
    return ROW.sub(lambda m: m[0].replace('| **', f'| []{{#{place_of(m[1])}}}**', 1), markdown)


def glossary(root: Path) -> tuple[list[Document], list[Concept]]:
    documents, concepts = [], []
    for kind, s in ledger.cells(root/'nbs'/'glossary.ipynb'):
        for term, symbol, meaning, elsewhere, where in ROW.findall(s):
            names = names_of(term, elsewhere)
            pages = [page(f).replace('.ipynb', '.html')
                     for f in re.findall(r'\]\(([\w-]+\.ipynb)', where)]
            said = plain(meaning) + (f' Elsewhere: {plain(elsewhere)}.' if elsewhere else '')
            documents.append(Document(term, 'Glossary', f'glossary.html#{place_of(term)}', said,
                                      'term', ' '.join(names)))
            concepts.append(Concept(names, pages))
    return documents, concepts


# ---------------------------------------------------------------- the build
def index(library: api.Library) -> dict:
    "Documents and synonyms, as finder.js reads them"
    terms, concepts = glossary(library.root)
    documents = [*of_chapters(library.root), *of_api(library), *terms]
    return dict(documents=[d._asdict() for d in documents],
                concepts=[c._asdict() for c in concepts])


def fetch(assets: Path) -> bool:
    "MiniSearch from npm, once"
    if (assets/'minisearch'/'index.js').exists(): return True
    wanted = 'dist/es/index.js', 'LICENSE.txt'
    if not (package := npm_files('minisearch', MINISEARCH, f'package/({"|".join(wanted)})$')):
        print('npm or its registry is not at hand: the site has the search of smalldocs',
              file=sys.stderr)
        return False
    (assets/'minisearch').mkdir(exist_ok=True)
    for name in wanted:
        data = re.sub(rb'//# sourceMappingURL.*', b'', (package/name).read_bytes())
        (assets/'minisearch'/Path(name).name).write_bytes(data)
    return True


def install(site: Path, library: api.Library) -> list[str]:
    "Put the search into a built site, in the place of that of smalldocs: what went wrong"
    write(index(library), site)
    (site/'search.json').unlink(missing_ok=True)
    problems = []
    for file in site.glob('*.html'):
        html = file.read_text(encoding='utf-8')
        html, n = BOX.subn('', FUSE.sub('', html))
        if n != 1 or html.count(TOGGLER) != 1:
            problems.append(f'{file.name}: no place for the search box in its header')
        html = html.replace(TOGGLER, WIDGET + TOGGLER).replace('</head>', f'{SCRIPT}</head>', 1)
        file.write_text(html, encoding='utf-8')
    return [*problems, *missed(try_queries(site, site/'assets'/'minisearch'))]


TOGGLER = '<button class="navbar-toggler"'
SCRIPT = '<script src="search.js" type="module"></script>'
WIDGET = (
    '<div class="book-search" id="quarto-search" role="search">'
    '<i class="bi bi-search" aria-hidden="true"></i>'
    '<input type="search" class="form-control form-control-sm" placeholder="Search" role="combobox"'
    ' aria-label="Search the book" aria-autocomplete="list" aria-expanded="false"'
    ' aria-controls="search-results" autocomplete="off" spellcheck="false"></div>')


def write(data: dict, folder: Path):
    text = json.dumps(data, ensure_ascii=False, separators=(',', ':'))
    (folder/INDEX).write_text(text, encoding='utf-8')


# ---------------------------------------------------------------- does it find?
TRY = """
import fs from 'fs'
import MiniSearch from './minisearch.js'
import { makeFinder } from './finder.js'
const { data, queries } = JSON.parse(fs.readFileSync(0))
const finder = makeFinder(MiniSearch, data)
finder.addAll()
console.log(JSON.stringify(queries.map(q => finder.find(q).slice(0, 20).map(d => d.href))))
"""


def try_queries(folder: Path, minisearch: Path, queries=tuple(QUERIES)) -> dict[str, list[str]]:
    "Query -> the addresses found, by node with the code of the site"
    if not shutil.which('node'):
        print('node is not at hand: the queries of the search were not tried', file=sys.stderr)
        return {}
    data = json.loads((folder/INDEX).read_text(encoding='utf-8'))
    with tempfile.TemporaryDirectory() as d:
        shutil.copy(ROOT/'nbs'/'finder.js', d)
        shutil.copy(minisearch/'index.js', f'{d}/minisearch.js')
        Path(d, 'package.json').write_text('{"type": "module"}')
        Path(d, 'try.js').write_text(TRY)
        asked = json.dumps(dict(data=data, queries=list(queries)))
        done = subprocess.run(['node', 'try.js'], cwd=d, input=asked, capture_output=True,
                              text=True, check=True)
    return dict(zip(queries, json.loads(done.stdout)))


def rank(query: str, hrefs: list[str]) -> int | None:
    "The place of the first right result, from 1"
    right = tuple(QUERIES[query])
    return next((i for i, h in enumerate(hrefs, 1) if h.startswith(right)), None)


def missed(found: dict[str, list[str]]) -> list[str]:
    "The queries without a right result among the first three"
    return [f'the search for {q!r} finds {hrefs[:3]}, not {QUERIES[q]}'
            for q, hrefs in found.items() if (rank(q, hrefs) or 4) > 3]


def main():
    assets = ROOT/'nbs'/'assets'
    if not fetch(assets): sys.exit(1)
    with tempfile.TemporaryDirectory() as d:
        write(index(api.Library()), Path(d))
        found = try_queries(Path(d), assets/'minisearch', sys.argv[1:] or tuple(QUERIES))
    for q, hrefs in found.items():
        print(f'{q in QUERIES and rank(q, hrefs) or "-":>4} {q}: {", ".join(hrefs[:5])}')
    sys.exit(bool(missed({q: h for q, h in found.items() if q in QUERIES})))


if __name__ == '__main__': main()
