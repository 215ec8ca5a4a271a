"""One small style sheet for the whole site, with the icons in it.

The pages' sheets, joined in their order, without the rules that no page and no script can use,
and a font of only those icons that remain. Bootstrap alone has 230 KB, of which the site uses a
tenth, and its icon font 130 KB.
"""
import base64, io, logging, posixpath, re, shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Iterator

from fontTools import subset, ttLib

logging.getLogger('fontTools').setLevel(logging.ERROR)  # the icons' table of names is too long

NAME = 'site_libs/site.css'
ICONS = 'site_libs/bootstrap-icons'
STRING = r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\''
PART = re.compile(fr'{STRING}|/\*.*?\*/|[{{}};]|[^{{}};"\'/]+|/', re.S)
LINK = re.compile(r'<link rel="stylesheet" href="(?!https?:)([^"]+)"[^>]*>')
URL = re.compile(r'url\(\s*["\']?(?!data:|https?:|/|#)([^"\')]+)["\']?\s*\)')
OTHER_HOST = re.compile(r'@import url\([^)]*//[^)]*\);?')  # Bootswatch asks Google for fonts
LEGACY = re.compile(r',url\([^)]*\) ?format\("(?:woff|truetype)"\)(?=[^{}]*\})')  # after woff2
GROUPS = re.compile(r':(?:not|is|where|has)\([^()]*(?:\([^()]*\)[^()]*)*\)')
CODEPOINT = re.compile(r'content:"\\([ef][0-9a-f]{3})"')
WORD = re.compile(r'[\w-]+')


class Words(HTMLParser):
    "What a page's elements can be selected by, and what its scripts name"
    def __init__(self, page: str):
        super().__init__()
        self.found, self.script = set(), False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.script = tag == 'script'
        for name, value in attrs:
            if name in ('class', 'id'): self.found |= set((value or '').split())

    def handle_data(self, data):
        if self.script: self.found |= set(WORD.findall(data))


def blocks(css: str) -> Iterator[tuple[str, str | None]]:
    "(selector or at-rule, what its braces hold) of a style sheet; None for a statement"
    head, body, depth = [], [], 0
    for part in PART.findall(css):
        if part.startswith('/*'): continue
        if part == '}': depth -= 1
        if part == '}' and depth == 0:
            yield ''.join(head).strip(), ''.join(body)
            head, body = [], []
        elif part == ';' and depth == 0:
            yield ''.join(head).strip(), None
            head = []
        elif part == '{' and depth == 0: depth = 1
        else:
            depth += part == '{'
            (body if depth else head).append(part)


def selectors(head: str) -> list[str]:
    "The selectors of a rule: what stands between its commas outside brackets"
    found, depth = [''], 0
    for part in re.findall(fr'{STRING}|[][(),]|[^][(),"\']+', head):
        depth += (part in '([') - (part in ')]')
        if part == ',' and not depth: found.append('')
        else: found[-1] += part
    return found


def reachable(selector: str, words: set[str]) -> bool:
    "Whether something on the site can match, for all that its classes and ids tell"
    names = re.findall(r'[.#]((?:[\w-]|\\.)+)', re.sub(r'\[[^]]*\]', '', GROUPS.sub('', selector)))
    return all(name.replace('\\', '') in words for name in names)


def squeezed(css: str, around: str) -> str:
    "Without white space that means nothing, outside strings"
    parts = re.split(f'({STRING})', css)
    parts[::2] = [re.sub(fr' ?([{around}]) ?', r'\1', re.sub(r'\s+', ' ', p)) for p in parts[::2]]
    return ''.join(parts).strip(' ;')


def rule(head: str, body: str) -> str: return f'{squeezed(head, ",>")}{{{squeezed(body, "{};:,")}}}'


def purged(css: str, words: set[str]) -> str:
    "The rules of a style sheet that something on the site can match"
    rules = []
    for head, body in blocks(css):
        if body is None: rules.append(f'{squeezed(head, ",")};')
        elif re.match(r'@(media|supports|container|layer)\b', head):
            inner = purged(body, words)
            if inner: rules.append(f'{squeezed(head, ":,")}{{{inner}}}')
        elif head.startswith('@'): rules.append(rule(head, body))
        else:
            kept = [s for s in selectors(head) if reachable(s, words)]
            if kept: rules.append(rule(','.join(kept), body))
    return ''.join(rules)


def rebased(css: str, sheet: str) -> str:
    "Addresses that hold from the joined sheet"
    def move(m):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(sheet), m[1]))
        return f'url({posixpath.relpath(target, posixpath.dirname(NAME))})'
    return URL.sub(move, css)


def icon_font(css: str, folder: Path) -> str:
    "The icons that `css` shows, as a font within it"
    codes = {int(code, 16) for code in CODEPOINT.findall(css)}
    font = ttLib.TTFont(folder/'fonts/bootstrap-icons.woff', recalcTimestamp=False,
                        recalcBBoxes=False)  # the icons stand where the font's boxes say
    chosen = subset.Subsetter(subset.Options(layout_features=[], name_IDs=[], hinting=False))
    chosen.populate(unicodes=codes)
    chosen.subset(font)
    font.flavor, data = 'woff', io.BytesIO()
    font.save(data)
    coded = base64.b64encode(data.getvalue()).decode()
    face = ('@font-face{font-family:bootstrap-icons;font-display:block;'
            f'src:url(data:font/woff;base64,{coded}) format("woff")}}')
    return re.sub(r'@font-face\{[^}]*bootstrap-icons[^}]*\}', lambda m: face, css)


def join(site: Path):
    "Put `NAME` in the place of the style sheets of all pages of `site`"
    pages = {f: f.read_text(encoding='utf-8') for f in sorted(site.rglob('*.html'))}
    sheets, words = {}, set()
    for file, page in pages.items():
        folder = file.relative_to(site).parent.as_posix()
        for href in LINK.findall(page):
            sheets[posixpath.normpath(posixpath.join(folder, href))] = None
        words |= Words(page).found
    for script in [*site.rglob('*.js'), *site.rglob('*.mjs')]:
        words |= set(WORD.findall(script.read_text(encoding='utf-8')))
    css = ''
    for sheet in sheets:
        text = OTHER_HOST.sub('', (site/sheet).read_text(encoding='utf-8'))
        script = (site/sheet).with_name('katex.min.js')  # makes names of parts in the browser
        text = text if script.exists() else purged(text, words)
        css += rebased(LEGACY.sub('', text), sheet)
    if (site/ICONS).exists(): css = icon_font(css, site/ICONS)
    for sheet in sheets: (site/sheet).unlink()
    for folder in (ICONS, 'site_libs/themes'): shutil.rmtree(site/folder, ignore_errors=True)
    (site/NAME).write_text(css, encoding='utf-8')
    for file, page in pages.items():
        up = '../'*(len(file.relative_to(site).parts) - 1)
        one = iter([f'<link rel="stylesheet" href="{up}{NAME}">'])
        file.write_text(LINK.sub(lambda m: next(one, ''), page), encoding='utf-8')
