"""Mathematics as HTML and MathML, made when the site is built: a page needs no script for it.

`fetch` takes KaTeX from npm; `prerender` runs node once for all formulas of the site. Without
node or npm the pages stay as they are, and the reader's browser renders them.
"""
import html, json, re, shutil, subprocess, sys
from pathlib import Path

from npm import npm_files

VERSION = '0.16.11'  # the one that smalldocs links
FILES = (r'package/dist/(katex\.min\.(css|js)|contrib/auto-render\.min\.js'
         r'|fonts/.*\.woff2)$')
CDN = re.compile(r'https://cdn\.jsdelivr\.net/npm/katex@[^/]+/dist')
FORMULA = re.compile(r'(?s)(<span class="math (inline|display)">)\\[(\[](.*?)\\[)\]](?=</span>)')
KEPT = re.compile(r'(?s)([(\[“‘]*)(<span class="math inline">\\\(.*?\\\)</span>)([^\s<]*)')
SCRIPT = re.compile(r'<script src="[^"]*katex[^"]*"[^>]*></script>')


def fetch(assets: Path) -> bool:
    "KaTeX from npm, once, so that the site needs no other host"
    if (assets/'katex').exists(): return True
    if not (package := npm_files('katex', VERSION, FILES)):
        print('npm or its registry is not at hand: '
              'mathematics will be fetched from a CDN by whoever reads the site', file=sys.stderr)
        return False
    shutil.copytree(package/'dist', assets/'katex')
    return True


def render(formulas: list[tuple[str, bool]], katex: Path) -> dict:
    """`formulas`: `html` or `error` of each, given as TeX and whether it stands on a line of its
    own; `rules`: what their classes mean; `outlines`: id -> path of what is drawn"""
    node = ['node', Path(__file__).with_suffix('.cjs'), katex/'katex.min.js']
    done = subprocess.run(node, input=json.dumps(formulas), capture_output=True, check=True,
                          encoding='utf-8')
    return json.loads(done.stdout)


def prerender(site: Path) -> list[str]:
    "Write rendered formulas into the pages of `site`; what KaTeX could not read"
    katex = site/'assets/katex'
    if not katex.exists() or not shutil.which('node'):
        print('without node and npm, the reader\'s browser renders the mathematics',
              file=sys.stderr)
        return []
    pages = {f: kept(f.read_text(encoding='utf-8')) for f in sorted(site.rglob('*.html'))}
    key = lambda m: (html.unescape(m[3]), m[2] == 'display')
    formulas = list(dict.fromkeys(key(m) for s in pages.values() for m in FORMULA.finditer(s)))
    rendered, errors = render(formulas, katex), []
    made = dict(zip(formulas, rendered['formulas']))
    for file, page in pages.items():
        for m in FORMULA.finditer(page):
            if 'error' in made[key(m)]: errors.append(f'{file.name}: {made[key(m)]["error"]}')
        page = FORMULA.sub(lambda m: m[1] + made[key(m)].get('html', m[3]), page)
        page = page.replace('</body>', outlines(page, rendered['outlines']) + '</body>')
        file.write_text(SCRIPT.sub('', page), encoding='utf-8')
    with open(katex/'katex.min.css', 'a', encoding='utf-8') as css:
        css.write(Path(__file__).with_suffix('.css').read_text() + rendered['rules'])
    (katex/'katex.min.js').unlink()
    shutil.rmtree(katex/'contrib')
    return errors


def kept(page: str) -> str:
    "Brackets and punctuation on the line of the formula that they touch"
    wrapped = lambda m: f'<span class="kept">{m[0]}</span>' if m[1] or m[3] else m[0]
    return KEPT.sub(wrapped, page)


def outlines(page: str, paths: dict[str, str]) -> str:
    "The roots and braces that the formulas of a page name, each once"
    used = ''.join(f'<path id="{name}" stroke="none" d="{paths[name]}"/>'
                   for name in dict.fromkeys(re.findall(r'<use href="#(outline-\d+)"', page)))
    return ('<svg width="0" height="0" style="position:absolute" aria-hidden="true">'
            f'<defs>{used}</defs></svg>')*bool(used)
