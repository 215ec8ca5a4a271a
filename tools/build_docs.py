"""Build the site from the notebooks in `nbs/`. Nothing is run: outputs are those stored in them.

    python tools/build_docs.py [--out _site] [--strict]    # the site
    python tools/build_docs.py --readme                    # only README.md and the map of chapters

nbdev turns each notebook into a page: hidden cells go, names in backticks become links. It prints
no signature beside a definition, whose code is on the page (`skip_procs` in settings.ini). Where
Quarto is installed it renders the pages. Elsewhere references.py resolves cross-references and
citations, smalldocs, pure Python, writes the HTML, and screen.py fits it to every screen.
api.py adds the API reference, to which the names in prose link, and in the HTML of smalldocs also
the names in code. search.py replaces the search of smalldocs where npm is at hand; with Quarto,
Quarto's search stays.
"""
import argparse, json, os, re, shutil, subprocess, sys
from pathlib import Path

import yaml
from nbdev.config import get_config
from nbdev.doclinks import _build_modidx
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs

import api, chapter_map, figures, furniture, katex, ledger, links, live, screen, search
from references import Book, bare_title, opts, page, prose, read_bib, text

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
        elif '<diffusion-live' in text(cell['source']): continue  # for the site only
        elif cell['cell_type'] == 'markdown': parts.append(readme_prose(cell, book, cfg))
        else: parts += readme_code(cell, cfg)
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

def readme_code(cell, cfg) -> list[str]:
    "The code, if it is not hidden, its outputs that are text, and a picture that is kept"
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
    if kept := opts(s).get('keep'):
        parts.append(f'![{opts(s)["fig-cap"]}]({cfg.nbs_path.name}/{kept})')
    return parts

def anchored(nb: dict, source: dict, checks: set[int] = frozenset()) -> dict:
    """A page by nbdev with a place before each exported definition, `#its_name`, to which nbdev
    links, and before each cell whose number is in `checks`, `#check-12`"""
    places = {}
    for i, c in enumerate(source['cells'], 1):
        if c['cell_type'] != 'code': continue
        names = [(name.lower(), '.definition') for name in api.names_printed(text(c['source']))]
        places[c['id']] = names + [(f'check-{i}', '.check')]*(i in checks)
    cells, taken = [], set()
    for cell in nb['cells']:
        for place, kind in places.get(cell['id'], []):
            if place in taken: continue
            taken.add(place)
            div = f'::: {{#{place} {kind}}}\n:::'
            cells.append(dict(cell_type='markdown', id=f'at-{place}', metadata={}, source=div))
        cells.append(cell)
    return {**nb, 'cells': cells}

def make_pages(cfg) -> tuple[Path, api.Library]:
    "The notebooks as pages, by nbdev, and the pages of the reference: their folder"
    refresh_quarto_yml()
    _build_modidx()
    proc, library = proc_nbs(n_workers=2, force=True), api.Library(cfg.config_path)
    equations = ledger.read(cfg.config_path)[0]
    checks, shown = ledger.cells_of([t for e in equations for t in e.tests]), {}
    for source in cfg.nbs_path.glob('*.ipynb'):
        file, numbers = proc/source.name, set(checks.get(source.stem, []))
        nb, before = (json.loads(f.read_text(encoding='utf-8')) for f in (file, source))
        nb['cells'] = [c for c in nb['cells'] if not live.is_left_out(text(c['source']))]
        nb = anchored(nb, before, numbers)
        ids = {c['id'] for c in nb['cells']}
        shown[source.stem] = {n for n in numbers if f'at-check-{n}' in ids}
        for c in nb['cells']:
            if c['cell_type'] != 'markdown': continue
            c['source'] = library.link_prose(text(c['source']))
            if source.stem == 'glossary': c['source'] = search.with_places(c['source'])
        nb = json.dumps(nb, ensure_ascii=False, indent=1)
        file.write_text(nb, encoding='utf-8')
    config = proc/'_quarto.yml'
    config.write_text(config.read_text().replace('{version}', cfg.version))
    library.write(proc)
    library.write_ledger(proc, equations, shown)
    return proc, library

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
        return [section(c) if isinstance(c, dict) else c for c in chapters]
    def section(part):
        if part['part'] != api.INDEX:
            return dict(section=part['part'], contents=side(part['chapters']))
        modules = [dict(text=api.module_of(f), href=f) for f in part['chapters']]
        return dict(section='API', href=api.INDEX, contents=modules)
    book = quarto['book']
    web = {k: v for k, v in book.items() if k not in ('chapters', 'author', 'sidebar')}
    web['sidebar'] = {**book.get('sidebar', {}), 'contents': rename(side(book['chapters']))}
    web['navbar'] = {'search': True, 'background': 'primary'}
    html = {k: v for k, v in quarto['format']['html'].items() if k != 'html-math-method'}
    html['theme'] = dict(light='default', dark='default')  # one sheet has both: furniture.py
    project = {'type': 'website', 'output-dir': '_site',
               'resources': quarto['project'].get('resources', [])}
    return dict(project=project, website=web, format=dict(html=html))

def render(proc: Path, cfg, library: api.Library, own_katex: bool) -> tuple[Path, list[str]]:
    "References by references.py, HTML by smalldocs: the folder of the site, and the warnings"
    work = proc/'.smalldocs'
    copy_pages(proc, work)
    quarto = yaml.safe_load((proc/'_quarto.yml').read_text())
    quarto['book']['chapters'] = library.in_book(quarto['book']['chapters'])
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
    for f in (work/'_site').glob('*.html'):
        html = book.link_code(f.read_text(encoding='utf-8'), f.with_suffix('.ipynb').name)
        html = screen.mend(api.link_code(html, library.names_on.get(f.name, {})))
        f.write_text(katex.CDN.sub('assets/katex', html) if own_katex else html, encoding='utf-8')
    return work/'_site', [*site.warnings, *book.errors]

LARGEST = 25e6  # bytes of the site without the engine and the networks of its live digits

def too_large(site: Path) -> list[str]:
    "A problem if the site has more bytes than `LARGEST`"
    sizes = {f.relative_to(site): f.stat().st_size for f in site.rglob('*')
             if f.is_file() and not f.is_relative_to(site/'live'/'built')}
    if (whole := sum(sizes.values())) <= LARGEST: return []
    first = ', '.join(f'{f} {sizes[f] / 1e6:.2f}' for f in sorted(sizes, key=sizes.get)[:-6:-1])
    return [f'the site has {whole / 1e6:.2f} MB, {LARGEST / 1e6:g} allowed; the largest: {first}']

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
    assets = cfg.nbs_path/'assets'
    assets.mkdir(exist_ok=True)
    own_katex, own_search = katex.fetch(assets), search.fetch(assets)
    live.build()
    proc, library = make_pages(cfg)
    shutil.rmtree(out, ignore_errors=True)
    if shutil.which('quarto'):
        library.write_quarto(proc/'_quarto.yml')
        subprocess.run(['quarto', 'render', '--no-cache'], cwd=proc, check=True)
        shutil.move(proc/'_site', out)
        return
    site, warnings = render(proc, cfg, library, own_katex)
    shutil.move(site, out)
    warnings += figures.finish(out)
    warnings += katex.prerender(out)
    if own_search: warnings += search.install(out, library)
    furniture.furnish(out, yaml.safe_load((proc/'_quarto.yml').read_text())['book'],
                      [f.name for f in cfg.nbs_path.glob('*.ipynb')])
    links.drop_unnamed(out)
    warnings += [w for w in links.check(out) if own_katex or 'katex' not in w]
    warnings += screen.check(out) + too_large(out)
    for w in warnings: print('warning:', w, file=sys.stderr)
    print(f'{len(list(out.glob("*.html")))} pages in {out}')
    sys.exit(bool(a.strict and warnings))

if __name__ == '__main__': main()
