"""Check a built site: links, pictures and results of the search lead somewhere, references are
resolved, and no page asks another host for anything.

    python tools/links.py [_site]
"""
import json, re, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {('script', 'src'), ('img', 'src'), ('iframe', 'src'), ('source', 'src'),
         ('source', 'srcset'), ('video', 'src'), ('link', 'href')}
NOT_LOADED = {'canonical', 'alternate', 'next', 'prev', 'author', 'license'}  # <link rel=...>
SEARCH = 'search-index.json'
OTHER_HOST = re.compile(r'(?:url\(|@import )\s*["\']?((?:https?:)?//[^"\')\s]+)')


RAW = re.compile(r'(?<![\w`])@(?:eq|fig|tbl|sec)-\w[\w-]*')  # a reference that nothing resolved
CODE = ('code', 'pre', 'script', 'style')


class Page(HTMLParser):
    "The ids of a page, the links on it, what a browser loads for it, references left in its text"
    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links, self.loads, self.raw = set(), [], [], []
        self.code = 0
        self.feed(text)

    def handle_data(self, text):
        if not self.code: self.raw += RAW.findall(text)

    def handle_endtag(self, tag): self.code -= tag in CODE

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.code += tag in CODE
        self.raw += RAW.findall(a.get('alt') or '')
        self.ids |= {a[k] for k in ('id', 'name') if a.get(k)}
        if tag == 'a' and a.get('href'): self.links.append(a['href'])
        for t, k in LOADS:
            if tag == t and a.get(k) and a.get('rel') not in NOT_LOADED: self.loads.append(a[k])


def remote(url: str) -> bool: return bool(urlsplit(url).netloc)


def read(file: Path) -> str: return file.read_text(encoding='utf-8')


def drop_unnamed(site: Path):
    "Delete the files of `assets` that no page links to or loads, such as measurements"
    pages, others = {}, ''  # folder -> attributes of its pages
    for file in site.rglob('*'):
        if file.suffix in {'.css', '.js', '.mjs', '.xml'}: others += read(file)
        if file.suffix == '.html':
            attributes = ' '.join(re.findall(r'="([^"]*)"', read(file)))
            pages[file.parent] = pages.get(file.parent, '') + attributes
    for file in (site/'assets').rglob('*'):
        kept = not file.is_file() or {'katex', 'minisearch'} & set(file.parts)
        named = file.name in others or any(file.relative_to(folder).as_posix() in text for
                                           folder, text in pages.items() if folder in file.parents)
        if not (kept or named): file.unlink()


def broken(site: Path, name: str, url: str, pages: dict[str, Page]) -> str:
    "What is wrong with a link on a page, or nothing"
    parts = urlsplit(url)
    if parts.scheme or parts.netloc: return ''
    target = (site/name).parent/unquote(parts.path) if parts.path else site/name
    if target.is_dir(): target /= 'index.html'
    if not target.exists(): return f'{name} links to {url}, which does not exist'
    other = pages.get(target.resolve().relative_to(site.resolve()).as_posix())
    place = unquote(parts.fragment)
    if not place or not other or place in other.ids | {'top'}: return ''
    return f'{name} links to {url}, but that page has no such place'


def check(site: Path) -> list[str]:
    "What is broken in a site"
    pages = {f.relative_to(site).as_posix(): Page(read(f)) for f in site.rglob('*.html')}
    problems = []
    for name, p in pages.items():
        problems += [f'{name} asks another host for {u}' for u in p.loads if remote(u)]
        problems += [f'{name}: {r} is not resolved' for r in p.raw]
        problems += filter(None, (broken(site, name, u, pages) for u in p.links + p.loads))
    results = json.loads(read(site/SEARCH))['documents'] if (site/SEARCH).exists() else []
    problems += filter(None, (broken(site, SEARCH, d['href'], pages) for d in results))
    for css in site.rglob('*.css'):
        name = css.relative_to(site)
        problems += [f'{name} asks another host for {u}' for u in OTHER_HOST.findall(read(css))]
    return sorted(set(problems))


def main():
    problems = check(Path(sys.argv[1] if len(sys.argv) > 1 else '_site'))
    for p in problems: print(p, file=sys.stderr)
    sys.exit(bool(problems))


if __name__ == '__main__': main()
