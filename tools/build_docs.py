"""Build the site from the notebooks in `nbs/`. Nothing is run: outputs are those stored in them.

    python tools/build_docs.py [--out _site] [--strict]    # the site
    python tools/build_docs.py --readme                    # only README.md and the map of chapters

nbdev turns each notebook into a page: hidden cells go, names in backticks become links. It prints
no signature beside a definition, whose code is on the page (`skip_procs` in settings.ini). Where
Quarto is installed it renders the pages. Elsewhere references.py resolves cross-references and
citations, and smalldocs, pure Python, writes the HTML.
"""
import argparse, json, os, re, shutil, subprocess, sys, tarfile
from contextlib import contextmanager
from pathlib import Path

import yaml
from nbdev.config import get_config
from nbdev.doclinks import _build_modidx
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs

import chapter_map, figures, ledger, links
from references import Book, bare_title, opts, page, prose, read_bib, text

KATEX_VERSION = '0.16.11'  # the one that smalldocs links
KATEX = re.compile(r'https://cdn\.jsdelivr\.net/npm/katex@[^/]+/dist')
KATEX_FILES = re.compile(r'package/dist/(katex\.min\.(css|js)|contrib/auto-render\.min\.js'
                         r'|fonts/.*\.woff2)$')
GOOGLE_FONTS = re.compile(r'@import url\([^)]*fonts\.googleapis[^)]*\);?')

def rename(x):
    if isinstance(x, dict): return {k: rename(v) for k, v in x.items()}
    if isinstance(x, list): return [rename(v) for v in x]
    return page(x) if isinstance(x, str) and re.fullmatch(r'[\w-]+\.ipynb', x) else x

def readme(cfg):
    "Write README.md from nbs/index.ipynb: prose, code in fences, stored text, pictures of assets"
    nb = json.loads((cfg.nbs_path/cfg.readme_nb).read_text(encoding='utf-8'))
    book, parts = Book(read_bib(cfg.nbs_path/'references.bib')), []
    for cell in nb['cells']:
        if cell['cell_type'] == 'raw': parts += readme_title(cell)
        elif cell['cell_type'] == 'markdown': parts.append(readme_prose(cell, book, cfg))
        else: parts += readme_code(cell)
    note = (f'<!-- Written by tools/build_docs.py from {cfg.nbs_path.name}/{cfg.readme_nb}; '
            'edit that notebook. -->')
    whole = '\n\n'.join([note, *parts]) + '\n'
    (cfg.config_path/'README.md').write_text(whole, encoding='utf-8')

def readme_title(cell) -> list[str]:
    head = yaml.safe_load(text(cell['source']).strip().strip('-')) or {}
    title = '# ' + bare_title(head['title'])
    return [title, '> ' + head['description']] if head.get('description') else [title]

def readme_prose(cell, book: Book, cfg) -> str:
    "Without attributes of headings; citations and links lead to where they are from the top"
    s = re.sub(r'(?m)^(#.*?)\s*\{[^}\n]*\}[ \t]*$', r'\1', text(cell['source']).strip())
    s = prose(lambda part: book.cites(part, cfg.readme_nb, []), s)
    s = re.sub(r'\(#ref-([\w:-]+)\)', lambda m: f'({book.bib[m[1]].fields["url"]})', s)
    s = re.sub(r'\b(src|srcset)="(?!\w+:|/)', lambda m: f'{m[0]}{cfg.nbs_path.name}/', s)
    return re.sub(r'\]\((?!\w+:|#|/)([^)]+)\)', lambda m: f']({cfg.nbs_path.name}/{m[1]})', s)

def readme_code(cell) -> list[str]:
    "The code, if it is not hidden, and its outputs that are text"
    s = text(cell['source']).strip()
    if re.search(r'(?m)^#\|\s*(hide|default_exp|include:\s*false)\b', s): return []
    code = re.sub(r'(?m)^#\|.*\n?', '', s).strip()
    parts = [f'```python\n{code}\n```'] if code and opts(s).get('echo') is not False else []
    for output in cell.get('outputs', []):
        data = output.get('data', {})
        shown = text(data.get('text/markdown') or output.get('text') or data.get('text/plain'))
        if any(kind.startswith('image/') for kind in data) or not shown.rstrip(): continue
        indent = '' if 'text/markdown' in data else '    '
        parts.append('\n'.join(indent + line for line in shown.rstrip().split('\n')))
    return parts

@contextmanager
def ledger_page(nbs: Path):
    "The equation ledger as a page of the book, for the time of the build"
    file = nbs/'ledger.ipynb'
    file.write_text(json.dumps(ledger.page(ledger.read(nbs.parent)[0])), encoding='utf-8')
    try: yield
    finally: file.unlink()

def fetch_katex(assets: Path) -> bool:
    "KaTeX from npm, once, so that the site needs no other host"
    if (assets/'katex').exists(): return True
    pack = ['npm', 'pack', f'katex@{KATEX_VERSION}', '--silent']
    if not shutil.which('npm') or subprocess.run(pack, cwd=assets, capture_output=True).returncode:
        print('npm or its registry is not at hand: '
              'mathematics will be fetched from a CDN by whoever reads the site', file=sys.stderr)
        return False
    [archive] = assets.glob('katex-*.tgz')
    with tarfile.open(archive) as t:
        wanted = [m for m in t.getmembers() if KATEX_FILES.match(m.name)]
        t.extraction_filter = getattr(tarfile, 'data_filter', None)  # none before Python 3.11.4
        t.extractall(assets, wanted)
    archive.unlink()
    (assets/'package/dist').rename(assets/'katex')
    (assets/'package').rmdir()
    return True

def definitions(source: str) -> list[str]:
    "The public functions, classes and constants that a printed, exported cell defines"
    if not re.search(r'(?m)^#\|\s*exports\b', source): return []
    return [name for name, _ in ledger.definitions(source) if re.fullmatch(r'[^\W_]\w*', name)]

def anchored(nb: dict, source: dict) -> dict:
    "A page by nbdev with a place before each exported definition: nbdev links to `#its_name`"
    names = {c['id']: definitions(text(c['source'])) for c in source['cells']
             if c['cell_type'] == 'code'}
    cells, places = [], set()
    for cell in nb['cells']:
        for place in (name.lower() for name in names.get(cell['id'], [])):
            if place in places: continue
            places.add(place)
            div = f'::: {{#{place} .definition}}\n:::'
            cells.append(dict(cell_type='markdown', id=f'at-{place}', metadata={}, source=div))
        cells.append(cell)
    return {**nb, 'cells': cells}

def make_pages(cfg) -> Path:
    "The notebooks as pages, by nbdev: their folder"
    refresh_quarto_yml()
    _build_modidx()
    proc = proc_nbs(n_workers=2, force=True)
    for source in cfg.nbs_path.glob('*.ipynb'):
        file = proc/source.name
        nb, before = (json.loads(f.read_text(encoding='utf-8')) for f in (file, source))
        nb = json.dumps(anchored(nb, before), ensure_ascii=False, indent=1)
        file.write_text(nb, encoding='utf-8')
    return proc

def copy_pages(proc: Path, work: Path):
    "What nbdev made, without the notebooks"
    shutil.rmtree(work, ignore_errors=True); work.mkdir()
    for f in proc.rglob('*'):
        r = f.relative_to(proc)
        built = any(p.startswith('.') or p == '_site' for p in r.parts)
        if f.is_file() and f.suffix != '.ipynb' and not built:
            (work/r).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(f, work/r)

def title_of(nb: dict, chapter: int | None):
    "Put the chapter's number before its title, which nbdev has put in a raw cell"
    cell = nb['cells'][0]
    if cell['cell_type'] != 'raw': return
    d = yaml.safe_load(cell['source'].strip().strip('-')) or {}
    d.pop('output-file', None)
    d['title'] = (f'{chapter}\u2002' if chapter else '') + bare_title(d.get('title', ''))
    cell['source'] = '---\n' + yaml.safe_dump(d, sort_keys=False, allow_unicode=True) + '---\n'

def website(quarto: dict) -> dict:
    "`book:` as a website with the same sidebar: smalldocs makes no books"
    def side(chapters):
        return [dict(section=c['part'], contents=side(c['chapters'])) if isinstance(c, dict) else c
                for c in chapters]
    book = quarto['book']
    web = {k: v for k, v in book.items() if k not in ('chapters', 'author', 'sidebar')}
    web['sidebar'] = {**book.get('sidebar', {}), 'contents': rename(side(book['chapters']))}
    web['navbar'] = {'search': True, 'background': 'primary'}
    html = {k: v for k, v in quarto['format']['html'].items() if k != 'html-math-method'}
    project = {'type': 'website', 'output-dir': '_site',
               'resources': quarto['project'].get('resources', [])}
    return dict(project=project, website=web, format=dict(html=html))

def render(proc: Path, cfg, own_katex: bool) -> tuple[Path, list[str]]:
    "References by references.py, HTML by smalldocs: the folder of the site, and the warnings"
    work = proc/'.smalldocs'
    copy_pages(proc, work)
    quarto = yaml.safe_load((proc/'_quarto.yml').read_text())
    book, pages, n = Book(read_bib(proc/quarto['bibliography'])), {}, 0
    for f in ledger.chapters(quarto['book']['chapters']):
        nb = json.loads((proc/f).read_text(encoding='utf-8'))
        numbered = ledger.NUMBERED.match(Path(f).name)
        n += bool(numbered)
        pages[page(f)] = nb, n if numbered else None
        book.number(page(f), *pages[page(f)])
    for name, (nb, chapter) in pages.items():
        nb = book.resolve(name, nb, cfg)
        book.errors += figures.take_out(nb, Path(name).stem, work)
        title_of(nb, chapter)
        (work/name).write_text(json.dumps(nb, ensure_ascii=False, indent=1), encoding='utf-8')
    web = yaml.safe_dump(website(quarto), sort_keys=False, allow_unicode=True)
    (work/'_quarto.yml').write_text(web)
    from smalldocs.site import build
    site = build(work)
    for f in (work/'_site').rglob('*.css'):  # Bootswatch asks Google for fonts
        f.write_text(GOOGLE_FONTS.sub('', f.read_text(encoding='utf-8')), encoding='utf-8')
    for f in (work/'_site').glob('*.html'):
        html = book.link_code(f.read_text(encoding='utf-8'), f.with_suffix('.ipynb').name)
        f.write_text(KATEX.sub('assets/katex', html) if own_katex else html, encoding='utf-8')
    return work/'_site', [*site.warnings, *book.errors]

def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--out', type=Path, help='where to put the site (default _site)')
    ap.add_argument('--strict', action='store_true',
                    help='fail on any warning, broken link or request to another host')
    ap.add_argument('--readme', action='store_true', help='write only README.md and the map')
    a = ap.parse_args()
    cfg = get_config()
    os.chdir(cfg.config_path)
    chapter_map.write(cfg.config_path)
    readme(cfg)
    if a.readme: return
    out = a.out or cfg.config_path/'_site'
    (cfg.nbs_path/'assets').mkdir(exist_ok=True)
    own_katex = fetch_katex(cfg.nbs_path/'assets')
    with ledger_page(cfg.nbs_path):
        proc = make_pages(cfg)
    shutil.rmtree(out, ignore_errors=True)
    if shutil.which('quarto'):
        subprocess.run(['quarto', 'render', '--no-cache'], cwd=proc, check=True)
        shutil.move(proc/'_site', out)
        return
    site, warnings = render(proc, cfg, own_katex)
    shutil.move(site, out)
    warnings += figures.finish(out)
    warnings += [w for w in links.check(out) if own_katex or 'katex' not in w]
    for w in warnings: print('warning:', w, file=sys.stderr)
    print(f'{len(list(out.glob("*.html")))} pages in {out}')
    sys.exit(bool(a.strict and warnings))

if __name__ == '__main__': main()
