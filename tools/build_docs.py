"""Build the site from the notebooks in `nbs/`. Nothing is run: every output is the one stored in a notebook.

    python tools/build_docs.py [--out _site] [--strict]    # the site
    python tools/build_docs.py --readme                    # only README.md

nbdev turns each notebook into a page (`#| hide`, `show_doc`, links on names in backticks). Where Quarto is installed it renders
the pages; elsewhere references.py resolves cross-references and citations, and smalldocs, pure Python, writes the HTML.
"""
import argparse, json, os, re, shutil, subprocess, sys, tarfile
from contextlib import contextmanager
from pathlib import Path

import yaml
from nbdev.config import get_config
from nbdev.doclinks import _build_modidx
from nbdev.quarto import nbdev_docs, refresh_quarto_yml
from nbdev.serve import proc_nbs

import ledger, links
from references import Book, bare_title, opts, page, prose, read_bib, text

KATEX_VERSION = '0.16.11'                                       # the one that smalldocs links
KATEX = re.compile(r'https://cdn\.jsdelivr\.net/npm/katex@[^/]+/dist')

def rename(x):
    if isinstance(x, dict): return {k: rename(v) for k, v in x.items()}
    if isinstance(x, list): return [rename(v) for v in x]
    return page(x) if isinstance(x, str) and re.fullmatch(r'[\w-]+\.ipynb', x) else x

def readme(cfg):
    "Write README.md from nbs/index.ipynb: prose as it is, code in fences, stored text outputs; pictures from nbs/assets"
    nb, out, cited = json.loads((cfg.nbs_path/cfg.readme_nb).read_text(encoding='utf-8')), [], Book(read_bib(cfg.nbs_path/'references.bib'))
    for c in nb['cells']:
        s = text(c['source']).strip(); o = opts(s)
        if c['cell_type'] == 'raw':
            d = yaml.safe_load(s.strip('-')) or {}
            out.append('# ' + bare_title(d['title']))
            if d.get('description'): out.append('> ' + d['description'])
        elif c['cell_type'] == 'markdown':
            s = re.sub(r'(?m)^(#.*?)\s*\{[^}\n]*\}[ \t]*$', r'\1', s)
            s = prose(lambda part: cited.cites(part, cfg.readme_nb, []), s)
            s = re.sub(r'\(#ref-([\w:-]+)\)', lambda m: f'({cited.bib[m[1]].fields["url"]})', s)
            out.append(re.sub(r'\]\((?!\w+:|#|/)([^)]+)\)', lambda m: f']({cfg.nbs_path.name}/{m[1]})', s))
        elif not re.search(r'(?m)^#\|\s*(hide|default_exp|include:\s*false)\b', s):
            code = re.sub(r'(?m)^#\|.*\n?', '', s).strip()
            if code and o.get('echo') is not False: out.append(f'```python\n{code}\n```')
            for x in c.get('outputs', []):
                d = x.get('data', {})
                t = text(d.get('text/markdown') or x.get('text') or d.get('text/plain')).rstrip()
                if 'image/png' not in d and t: out.append(t if 'text/markdown' in d else '\n'.join('    ' + l for l in t.split('\n')))
    note = f'<!-- Written by tools/build_docs.py from {cfg.nbs_path.name}/{cfg.readme_nb}; edit that notebook. -->'
    (cfg.config_path/'README.md').write_text(note + '\n\n' + '\n\n'.join(out) + '\n', encoding='utf-8')

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
    if not shutil.which('npm') or subprocess.run(['npm', 'pack', f'katex@{KATEX_VERSION}', '--silent'], cwd=assets, capture_output=True).returncode:
        print('npm or its registry is not at hand: mathematics will be fetched from a CDN by whoever reads the site', file=sys.stderr); return False
    [archive] = assets.glob('katex-*.tgz')
    with tarfile.open(archive) as t: t.extractall(assets, [m for m in t.getmembers() if re.match(r'package/dist/(katex\.min\.(css|js)|contrib/auto-render\.min\.js|fonts/.*\.woff2)$', m.name)], filter='data')
    archive.unlink()
    (assets/'package/dist').rename(assets/'katex'); (assets/'package').rmdir()
    return True

def copy_pages(proc: Path, work: Path):
    "What nbdev made, without the notebooks"
    shutil.rmtree(work, ignore_errors=True); work.mkdir()
    for f in proc.rglob('*'):
        r = f.relative_to(proc)
        if f.is_file() and f.suffix != '.ipynb' and not any(p.startswith('.') or p == '_site' for p in r.parts):
            (work/r).parent.mkdir(parents=True, exist_ok=True); shutil.copy2(f, work/r)

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
    def side(cs): return [dict(section=c['part'], contents=side(c['chapters'])) if isinstance(c, dict) else c for c in cs]
    book = quarto['book']
    web = {k: v for k, v in book.items() if k not in ('chapters', 'author', 'sidebar')}
    web['sidebar'] = {**book.get('sidebar', {}), 'contents': rename(side(book['chapters']))}
    web['navbar'] = {'search': True, 'background': 'primary'}
    html = {k: v for k, v in quarto['format']['html'].items() if k != 'html-math-method'}
    return dict(project=dict(type='website', **{'output-dir': '_site', 'resources': quarto['project'].get('resources', [])}), website=web, format=dict(html=html))

def render(cfg, own_katex: bool) -> tuple[Path, list[str]]:
    "Pages by nbdev, references by references.py, HTML by smalldocs: the folder of the site, and the warnings"
    refresh_quarto_yml(); _build_modidx()
    proc = proc_nbs(n_workers=2, force=True)
    work = proc/'.smalldocs'
    copy_pages(proc, work)
    quarto = yaml.safe_load((proc/'_quarto.yml').read_text())
    book, pages, n = Book(read_bib(proc/quarto['bibliography'])), {}, 0
    for f in ledger.chapters(quarto['book']['chapters']):
        nb, numbered = json.loads((proc/f).read_text(encoding='utf-8')), re.match(r'\d', Path(f).name)
        n += bool(numbered)
        pages[page(f)] = nb, n if numbered else None
        book.number(page(f), *pages[page(f)])
    for name, (nb, chapter) in pages.items():
        nb = book.resolve(name, nb, cfg)
        title_of(nb, chapter)
        (work/name).write_text(json.dumps(nb, ensure_ascii=False, indent=1), encoding='utf-8')
    (work/'_quarto.yml').write_text(yaml.safe_dump(website(quarto), sort_keys=False, allow_unicode=True))
    from smalldocs.site import build
    site = build(work)
    for f in (work/'_site').rglob('*.css'):                 # Bootswatch asks Google for fonts
        f.write_text(re.sub(r'@import url\([^)]*fonts\.googleapis[^)]*\);?', '', f.read_text(encoding='utf-8')), encoding='utf-8')
    if own_katex:
        for f in (work/'_site').glob('*.html'): f.write_text(KATEX.sub('assets/katex', f.read_text(encoding='utf-8')), encoding='utf-8')
    return work/'_site', [*site.warnings, *book.errors]

def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('--out', type=Path, help='where to put the site (default _site)')
    ap.add_argument('--strict', action='store_true', help='fail on any warning, broken link or request to another host')
    ap.add_argument('--readme', action='store_true', help='write only README.md')
    a = ap.parse_args()
    cfg = get_config(); os.chdir(cfg.config_path)
    readme(cfg)
    if a.readme: return
    out = a.out or cfg.config_path/'_site'
    (cfg.nbs_path/'assets').mkdir(exist_ok=True)
    own_katex = fetch_katex(cfg.nbs_path/'assets')
    with ledger_page(cfg.nbs_path):
        if shutil.which('quarto'): nbdev_docs.__wrapped__(); return
        site, warnings = render(cfg, own_katex)
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(site, out)
    warnings += [w for w in links.check(out) if own_katex or 'katex' not in w]
    for w in warnings: print('warning:', w, file=sys.stderr)
    print(f'{len(list(out.glob("*.html")))} pages in {out}')
    sys.exit(bool(a.strict and warnings))

if __name__ == '__main__': main()
