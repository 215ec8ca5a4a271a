"""Pages for every screen: what smalldocs writes, mended for a phone, a keyboard, a screen reader.

    python tools/screen.py [_site]     # check a built site

`mend` changes the markup of one page when the site is built: places for the keyboard to go to,
names for the parts of a page, folds that are real ones, tables whose rows can stand alone on a
phone. `check` is the pure Python part of what tools/audit.mjs sees in a browser.
"""
import re, sys
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path

from pieces import VOID

CONTENT = 'quarto-document-content'
WIDE, TALL = 40, 20  # characters of a line, and lines, above which code may scroll on a phone
WORDY = 25  # characters of a cell from which a phone shows each row of its table as a block

# ---------------------------------------------------------------- mending a page
RENAMED = [
    (r'(<body\b[^>]*>)', rf'\1<a class="skip-link" href="#{CONTENT}">Skip to the text</a>'),
    (rf'<main ([^>]*id="{CONTENT}")', r'<main tabindex="-1" \1'),
    (r'</head>', '<script src="assets/screen.js" defer></script></head>'),
    (r'<nav class="navbar', '<nav aria-label="Site" class="navbar'),
    (r'<nav (id="quarto-sidebar"[^>]*>)', r'<nav aria-label="Chapters" \1<button type="button" '
     r'class="sidebar-close btn">Close</button>'),
    (r'<nav class="page-navigation"', '<nav aria-label="Next chapter" class="page-navigation"'),
    (r'<div (id="quarto-margin-sidebar".*?)</div>(?=<main)',
     r'<aside aria-label="This page" \1</aside>'),
    (r'<h2 id="toc-title">(.*?)</h2>', r'<p id="toc-title">\1</p>'),
    (r'<nav id="TOC"', '<nav aria-labelledby="toc-title" id="TOC"'),
    (r'<a class="(quarto-color-scheme-toggle[^"]*)" href="" title="([^"]*)" '
     r'onclick="([^"]*?) ?return false;">(.*?)</a>',
     r'<button type="button" class="\1" aria-label="\2" title="\2" onclick="\3">\4</button>'),
    (r'<a onclick="window.scrollTo[^"]*" role="button" id="quarto-back-to-top">',
     f'<a href="#{CONTENT}" id="quarto-back-to-top">')]

def mend(html: str) -> str:
    "A page by smalldocs for every screen"
    for pattern, new in RENAMED: html = re.sub(pattern, new, html, count=1, flags=re.S)
    html = re.sub(r'<table\b.*?</table>', lambda m: table(m[0]), html, flags=re.S)
    html = re.sub(r'<pre\b.*?</pre>', lambda m: code(m[0]), html, flags=re.S)
    return equations(callouts(sections(phone_bar(html))))

PLAIN = re.compile(r'<span class="(?:op|bu)">([^<]*)</span>')  # operators, names of Python
ALIKE = re.compile(r'<span class="(\w\w)">([^<]*)</span>(\s*)<span class="\1">')

def code(html: str) -> str:
    """Code whose neighbours of one colour share an element: half as many for a browser to lay out.
    What scrolls on a phone takes the focus; screen.js takes it back where it does not"""
    html = PLAIN.sub(r'\1', html.replace('<span class="ss">', '<span class="st">'))
    while (merged := ALIKE.sub(r'<span class="\1">\2\3', html)) != html: html = merged
    lines = plain(html).split('\n')
    scrolls = len(lines) > TALL or max(map(len, lines)) > WIDE
    return html.replace('<pre', '<pre tabindex="0"', 1) if scrolls else html

def phone_bar(html: str) -> str:
    "Below the header of a phone: the chapters, and what is on this page"
    toc = re.search(r'<nav [^>]*id="TOC".*?(<ul>.*</ul>)</nav>', html, re.S)
    listed = re.sub(r' (?:id|data-scroll-target)="[^"]*"', '', toc[1]) if toc else ''
    here = (f'<details class="page-toc"><summary>On this page</summary>'
            f'<nav aria-label="On this page">{listed}</nav></details>') if listed else ''
    bar = ('<div class="quarto-secondary-nav"><button type="button" class="quarto-btn-toggle btn" '
           'aria-controls="quarto-sidebar" aria-expanded="false"><i class="bi '
           f'bi-layout-text-sidebar-reverse" aria-hidden="true"></i> Chapters</button>{here}</div>')
    pattern = r'<nav class="quarto-secondary-nav">.*?</div></nav>(?=</header>)'
    return re.sub(pattern, lambda _: bar, html, count=1, flags=re.S)

SECTION = re.compile(
    r'<div class="sidebar-item-container"><a class="[^"]*" data-bs-toggle="collapse"[^>]*>'
    r'(<span class="menu-text">.*?</span>)</a><a class="sidebar-item-toggle.*?</a></div>'
    r'<ul id="[^"]*" class="collapse ([^"]*)">(.*?)</ul></li>', re.S)

def sections(html: str) -> str:
    "The parts of the book in the sidebar as folds"
    def fold(m):
        shown = ' open' if 'show' in m[2].split() else ''
        return (f'<details{shown}><summary class="sidebar-link">{m[1]}</summary>'
                f'<ul class="{m[2]}">{m[3]}</ul></details></li>')
    return SECTION.sub(fold, html)

CALLOUT = re.compile(r'<div class="(callout [^"]*)"([^>]*)><div class="(callout-header[^"]*)" '
                     r'data-bs-toggle="collapse"[^>]*>')
BODY = re.compile(r'<div id="[^"]*" class="callout-collapse collapse( show)?">')

def callouts(html: str) -> str:
    "Callouts that fold as `details`, which a keyboard opens and a link into one, too"
    while m := CALLOUT.search(html):
        header = closing(html, m.end() - 1)
        body = BODY.match(html, header + len('</div>'))
        end = closing(html, m.end() - 1, depth=2)
        shown = ' open' if body[1] else ''
        html = (f'{html[:m.start()]}<details class="{m[1]}"{m[2]}{shown}><summary class="'
                f'{m[3].replace(" collapsed", "")}">{html[m.end():header]}</summary><div>'
                f'{html[body.end():end]}</details>{html[end + len("</div>"):]}')
    return html

def closing(html: str, start: int, depth: int = 1) -> int:
    "Where the `depth` divs that are open at `start` have been closed"
    for m in re.compile(r'<div\b|</div>').finditer(html, start):
        depth += 1 if m[0] == '<div' else -1
        if not depth: return m.start()
    raise ValueError(f'a div that nothing closes: {html[start:start + 200]}')

LONG = re.compile(r'(?<=>)[\w./:-]{24,}(?=<)')  # a name or a hash that fills a cell
MAY_BREAK = re.compile(r'[._/:-](?=\w)|[^\W_]{12}(?=\w{6})')

def table(html: str) -> str:
    "A table without empty headers; one with sentences stands as blocks, with labels, on a phone"
    html = re.sub(r'<th\b([^>]*)>\s*</th>', r'<td\1></td>', html)
    html = LONG.sub(lambda m: MAY_BREAK.sub(r'\g<0><wbr>', m[0]), html)
    head = re.search(r'<thead\b.*?</thead>', html, re.S)
    cells = [plain(c) for c in re.findall(r'<td\b[^>]*>(.*?)</td>', html, re.S)]
    wordy = '<br>' in html or any(len(c) >= WORDY for c in cells)
    if not head or not wordy: return html
    labels = re.findall(r'<t[hd]\b[^>]*>(.*?)</t[hd]>', head[0], re.S)
    def row(m):
        numbered = iter(range(len(labels)))
        def cell(c):
            label = labels[i] if (i := next(numbered, 0)) and c[2].strip() else ''
            label = label and f'<span class="cell-label" aria-hidden="true">{label}: </span>'
            return f'<td role="cell"{c[1]}>{label}{c[2]}</td>'
        return '<tr role="row">' + re.sub(r'(?s)<td\b([^>]*)>(.*?)</td>', cell, m[1]) + '</tr>'
    top = re.sub(r'<tr\b[^>]*>', '<tr role="row">', head[0])
    top = re.sub(r'<th\b', '<th role="columnheader"', top)
    body = re.sub(r'(?s)<tr\b[^>]*>(.*?)</tr>', row, html[head.end():])
    whole = html[:head.start()] + top + body
    whole = re.sub(r'<(thead|tbody)\b', r'<\1 role="rowgroup"', whole)
    return whole.replace('<table class="', '<table role="table" class="blocks ', 1)

def plain(html: str) -> str:
    "The text of some markup"
    return unescape(re.sub(r'<[^>]+>', '', html)).strip()

# ---------------------------------------------------------------- equations on a phone
DISPLAY = re.compile(r'<span class="math display">\\\[(.*?)(?:\\tag\{([^}]*)\})?\s*\\\]</span>',
                     re.S)
ALIGNED = re.compile(r'\s*\\begin\{aligned\}(.*)\\end\{aligned\}\s*', re.S)
GAP = re.compile(r'^\s*\[-?[\d.]+(?:pt|em|ex)\]')  # the space below a row
TOKEN = re.compile(r'\\(?:begin|end)\{\w+\*?\}|\\\\|\\q?quad\b|\\.|[{}&]', re.S)
SPACE = re.compile(r'\\(?:;|q?quad\b|,(?=\s*\\(?:nabla|math\w|operatorname|d?frac|[bB]ig)))')
WORDS = re.compile(r'(?<![_^])\\text\{([^{}]*)\}')

def equations(html: str) -> str:
    "Equations of several parts also as lines that may break: styles.css shows one form of the two"
    def both(m):
        aligned = ALIGNED.fullmatch(tex := unescape(m[1]))
        lines = ([GAP.sub('', line) for line in split(aligned[1], r'\\')]
                 if aligned else split(tex, r'\qquad'))
        if not aligned and len(lines) < 2: return m[0]
        number = f'<span class="number">({m[2]})</span>' if m[2] else ''
        return (f'<span class="wide-math">{m[0]}</span><span class="narrow-math">'
                f'{"".join(map(narrow, filter(str.strip, lines)))}{number}</span>')
    return DISPLAY.sub(both, html)

def narrow(line: str) -> str:
    "A line of an equation: each pair of columns for itself, and below it the reason after `&&`"
    cells = [c.strip() for c in split(line, '&')]
    pairs = [cells[i:i + 2] for i in range(0, len(cells), 2)]
    formulas = [math(' '.join(p)) for i, p in enumerate(pairs) if any(p) and (p[0] or not i)]
    reasons = [p[-1] for p in pairs[1:] if not p[0] and p[-1]]
    start = '' if cells[0] else ' continued'
    rows = [f'<span class="formula{start}">{" ".join(formulas)}</span>']
    rows += [f'<span class="reason">{reason(r)}</span>' for r in reasons]
    return ''.join(rows)

def reason(tex: str) -> str:
    "Words as words, so that they wrap, and the mathematics among them"
    parts = WORDS.split(tex)
    return ''.join(escape(p) if i % 2 else math(p) for i, p in enumerate(parts) if p.strip(' ,\\'))

def math(tex: str) -> str:
    "A formula that may also break where it has a space"
    for m in reversed(list(SPACE.finditer(tex))):
        if split(tex, m.start())[1:]: tex = tex[:m.start()] + r'\allowbreak' + tex[m.start():]
    return rf'<span class="math inline">\(\displaystyle {escape(tex.strip(), quote=False)}\)</span>'

def split(tex: str, at: str | int) -> list[str]:
    "TeX divided at a token, or at a place, that is in no group and no environment"
    parts, start, depth = [], 0, 0
    for m in TOKEN.finditer(tex):
        depth += m[0] == '{' or m[0].startswith(r'\begin{')
        depth -= m[0] == '}' or m[0].startswith(r'\end{')
        if at in (m[0], m.start()) and not depth:
            parts.append(tex[start:m.start()])
            start = m.end()
    return [*parts, tex[start:]]

# ---------------------------------------------------------------- checking a page
NAMED = {'nav', 'button', 'th', 'summary'}  # what a screen reader announces by its name

class Outline(HTMLParser):
    "What is wrong with a page for somebody who does not see it"
    def __init__(self, text: str):
        super().__init__()
        self.problems, self.ids, self.open, self.level, self.first = [], set(), [], 0, ''
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if tag == 'html' and not a.get('lang'): self.problems.append('has no lang')
        if a.get('id') in self.ids: self.problems.append(f'has two elements with id {a["id"]}')
        if a.get('id'): self.ids.add(a['id'])
        if tag == 'a' and not self.first: self.first = a.get('href', '')
        if re.fullmatch('h[1-6]', tag): self.heading(int(tag[1]))
        name = a.get('aria-label') or a.get('aria-labelledby') or a.get('title') or a.get('alt')
        if 'data-bs-toggle' in a and tag not in ('a', 'button'):
            self.problems.append(f'has a <{tag}> that only a mouse can fold')
        if tag == 'input' and not name and a.get('type') != 'hidden' and 'id' not in a:
            self.problems.append('has an input without a label')
        for element in self.open: element['name'] = element['name'] or name
        if tag not in VOID: self.open.append(dict(tag=tag, name=name, id=a.get('id', '')))

    def heading(self, level: int):
        if level > self.level + 1: self.problems.append(f'has h{level} after h{self.level}')
        self.level = level

    def handle_data(self, data):
        if '```{' in data: self.problems.append(f'prints a fence: {data.strip()[:60]}')
        if data.strip():
            for element in self.open:
                if element['tag'] != 'nav': element['name'] = element['name'] or 'its text'

    def handle_endtag(self, tag):
        while any(element['tag'] == tag for element in self.open):
            element = self.open.pop()
            if element['tag'] in NAMED and not element['name']:
                self.problems.append(f'has <{element["tag"]} id="{element["id"]}"> without a name')
            if element['tag'] == tag: break

def check(site: Path) -> list[str]:
    "What is wrong with the pages of a site"
    problems = []
    for file in sorted(site.rglob('*.html')):
        if 'assets' in file.relative_to(site).parts: continue  # not a page of the book
        page = Outline(file.read_text(encoding='utf-8'))
        if page.first.lstrip('#') not in page.ids: page.problems.append('has no skip link')
        problems += [f'{file.relative_to(site)} {p}' for p in page.problems]
    return problems

def main():
    problems = check(Path(sys.argv[1] if len(sys.argv) > 1 else '_site'))
    for p in problems: print(p, file=sys.stderr)
    sys.exit(bool(problems))

if __name__ == '__main__': main()
