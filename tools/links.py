"""Check a built site: every link and picture leads somewhere, and no page asks another host for anything.

    python tools/links.py [_site]
"""
import re, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {('script', 'src'), ('img', 'src'), ('iframe', 'src'), ('source', 'src'), ('video', 'src'), ('link', 'href')}
NOT_LOADED = {'canonical', 'alternate', 'next', 'prev', 'author', 'license'}  # <link rel=...> that a browser only notes


class Page(HTMLParser):
    "The ids of a page, the links on it, and what a browser loads for it"
    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links, self.loads = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a[k] for k in ('id', 'name') if a.get(k)}
        if tag == 'a' and a.get('href'): self.links.append(a['href'])
        for t, k in LOADS:
            if tag == t and a.get(k) and a.get('rel') not in NOT_LOADED: self.loads.append(a[k])


def remote(url: str) -> bool: return bool(urlsplit(url).netloc)


def check(site: Path) -> list[str]:
    "What is broken in a site"
    pages = {f.relative_to(site).as_posix(): Page(f.read_text(encoding='utf-8')) for f in site.rglob('*.html')}
    problems = []
    for name, p in pages.items():
        problems += [f'{name} asks another host for {u}' for u in p.loads if remote(u)]
        for url in p.links + p.loads:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc: continue
            target = (site/name).parent/unquote(parts.path) if parts.path else site/name
            if target.is_dir(): target /= 'index.html'
            if not target.exists(): problems.append(f'{name} links to {url}, which does not exist'); continue
            other = pages.get(target.resolve().relative_to(site.resolve()).as_posix())
            if parts.fragment and other and unquote(parts.fragment) not in other.ids | {'top'}: problems.append(f'{name} links to {url}, but that page has no such place')
    for css in site.rglob('*.css'):
        problems += [f'{css.relative_to(site)} asks another host for {u}' for u in re.findall(r'(?:url\(|@import )\s*["\']?((?:https?:)?//[^"\')\s]+)', css.read_text(encoding='utf-8'))]
    return sorted(set(problems))


def main():
    problems = check(Path(sys.argv[1] if len(sys.argv) > 1 else '_site'))
    for p in problems: print(p, file=sys.stderr)
    sys.exit(bool(problems))


if __name__ == '__main__': main()
