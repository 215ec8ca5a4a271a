"""What surrounds the text of a page: its head, its footer, and the files that a site should have.

`furnish` changes the pages that smalldocs has written; it comes last, since it joins all style
sheets into one, without what no page and no script uses (stylesheet.py).
"""
import html, re, shutil
from pathlib import Path
from urllib.parse import urlsplit

import pieces, stylesheet
from references import page

SIZE = 1200, 630  # of the picture that tools/social.py draws
TOOLS = Path(__file__).parent
SCHEME = """<script>(d=>{let s=null;try{s=localStorage.getItem('smalldocs-scheme')}catch{}
const dark=s?s==='alternate':matchMedia('(prefers-color-scheme: dark)').matches
d.dataset.bsTheme=dark?'dark':'light';d.dataset.scheme=dark?'alternate':'default'
d.classList.toggle('quarto-dark',dark)})(document.documentElement)</script>"""
SCHEME_OF_SMALLDOCS = re.compile(r'<script>\(function\(\)\{var d=document\.documentElement.*?'
                                 r'</script>', re.S)
BOOTSTRAP = re.compile(r'<script src="[^"]*bootstrap\.bundle\.min\.js"></script>')
OWN_SCRIPT = re.compile(r'(<script src="([^"]*site_libs/)smalldocs\.js"[^>]*></script>)')
SCRIPT = re.compile(r'<script src="([^"]+)"></script>')
ACTIONS = re.compile(r'<div class="toc-actions">(?:<div class="action-links">.*?</div>)*</div>',
                     re.S)
FOOTER = '<div class="nav-footer-center">'
ICONS = {'Edit this page': 'pencil', 'View source': 'code', 'Open in Colab': 'play-circle',
         'Report an issue': 'chat-right'}


def address(base: str, name: str) -> str:
    "Where the world finds a page"
    return f'{base.rstrip("/")}/{"" if name == "index.html" else name}'


def head(text: str, name: str, book: dict) -> str:
    "A page with its address and icons; scripts no longer hold up its text"
    folder, up = urlsplit(book['site-url']).path.rstrip('/') + '/', '../'*name.count('/')
    url, alt = html.escape(address(book['site-url'], name)), html.escape(book['title'])
    if name == '404.html':  # a host shows it at any address
        first = ('<script>if(!location.pathname.endsWith("/404.html"))document.write('
                 f'\'<base href="{folder}">\')</script><meta name="robots" content="noindex">')
    else:
        first = (f'<link rel="canonical" href="{url}"><meta property="og:url" content="{url}">'
                 '<meta property="og:type" content="article">')
    icons = (f'<link rel="icon" type="image/svg+xml" href="{up}assets/favicon.svg">'
             f'<link rel="apple-touch-icon" href="{up}assets/touch-icon.png">')
    card = (f'<meta property="og:image:width" content="{SIZE[0]}">'
            f'<meta property="og:image:height" content="{SIZE[1]}">'
            f'<meta property="og:image:alt" content="{alt}">')
    text = SCHEME_OF_SMALLDOCS.sub(lambda m: SCHEME, BOOTSTRAP.sub('', text))
    text = OWN_SCRIPT.sub(r'\1<script src="\2page.js" defer></script>', text)
    text = SCRIPT.sub(r'<script src="\1" defer></script>', text)
    text = re.sub(r'(?=<title>)', first, text, count=1)
    return re.sub(r'(?=<link rel="stylesheet")', icons + card, text, count=1)


def actions(notebook: str | None, book: dict) -> dict[str, str]:
    "What a reader can do with the source of a page: the words and where they lead"
    repository, branch = book['repo-url'].rstrip('/'), book['repo-branch']
    issue = {'Report an issue': f'{repository}/issues/new'}
    if not notebook: return issue
    file = f'{branch}/{book["repo-subdir"]}/{notebook}'
    colab = urlsplit(repository).path + '/blob/' + file
    return {'Edit this page': f'{repository}/edit/{file}',
            'View source': f'{repository}/blob/{file}',
            'Open in Colab': f'https://colab.research.google.com/github{colab}', **issue}


def foot(text: str, links: dict[str, str]) -> str:
    "A page with these links beside its text, and on a phone below it"
    beside = ''.join(f'<div class="action-links"><a href="{url}" class="toc-action"><i class="bi '
                     f'bi-{ICONS[words]}" aria-hidden="true"></i> {words}</a></div>'
                     for words, url in links.items())
    text = ACTIONS.sub(lambda m: f'<div class="toc-actions">{beside}</div>', text)
    below = ''.join(f'<a href="{url}">{words}</a>' for words, url in links.items())
    return text.replace(FOOTER, f'{FOOTER}<div class="page-actions">{below}</div>')


def furnish(site: Path, book: dict, notebooks: list[str]):
    "Give the pages of `site`, a book as _quarto.yml describes it, all that surrounds their text"
    sources = {Path(page(f)).with_suffix('.html').name: f for f in notebooks}
    pages = {f.relative_to(site).as_posix(): f.read_text(encoding='utf-8')
             for f in sorted(site.rglob('*.html'))}
    pages = {name: text for name, text in pages.items() if 'name="smalldocs:offset"' in text}
    for name, text in pages.items():
        text = foot(head(text, name, book), actions(sources.get(name), book))
        (site/name).write_text(pieces.divide(text), encoding='utf-8')
    shutil.copy2(TOOLS/'page.js', site/'site_libs/page.js')
    shutil.rmtree(site/'site_libs/bootstrap', ignore_errors=True)
    stylesheet.join(site)
    listed = ''.join(f'<url><loc>{html.escape(address(book["site-url"], name))}</loc></url>\n'
                     for name in pages if name != '404.html')
    (site/'sitemap.xml').write_text(
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{listed}</urlset>\n')
    (site/'robots.txt').write_text(
        f'User-agent: *\nAllow: /\n\nSitemap: {address(book["site-url"], "sitemap.xml")}\n')
