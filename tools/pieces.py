"""Pages in pieces, which a browser can lay out one after the other.

A chapter has up to 20,000 elements, most of them in formulas. Laid out at once they hold up a
phone for seconds. styles.css lets a browser skip the pieces that are not in sight, and page.js
shows them all, one whenever the browser is idle, once the page has been drawn. A heading is never
within a piece: the table of contents asks where the headings are.
"""
import re
from html.parser import HTMLParser

SIZE = 5_000  # characters of HTML in a piece, about
IN_SIGHT = 3_500  # characters of text that the largest window may show at first
PIECE = '<div class="piece">'
TABLE = re.compile(r'<table\b[^>]*\bblocks\b.*?</table>', re.S)  # on a phone each row is a block
MAIN = re.compile(r'(<main\b[^>]*>)(.*)(</main>)', re.S)
SECTION = re.compile(r'(<section\b[^>]*>)(.*)(</section>\s*)', re.S)
VOID = {'area', 'base', 'br', 'col', 'embed', 'hr', 'img', 'input', 'link', 'meta', 'source', 'wbr'}
APART = re.compile(r'<(?:h[1-6]|header|nav|a|script)\b')  # headings, and what floats above the text


class Blocks(HTMLParser):
    "Where the outermost elements of some HTML start and end"
    def __init__(self, html: str):
        super().__init__()
        self.starts = [0]
        for line in html.split('\n'): self.starts.append(self.starts[-1] + len(line) + 1)
        self.open, self.cuts = 0, []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if not self.open: self.cut()
        self.open += tag not in VOID

    def handle_startendtag(self, tag, attrs):
        if not self.open: self.cut()

    def handle_endtag(self, tag): self.open -= tag not in VOID

    def cut(self):
        line, column = self.getpos()
        self.cuts.append(self.starts[line - 1] + column)


def blocks(html: str) -> list[str]:
    "The outermost elements, each with the text after it"
    cuts = [0, *Blocks(html).cuts, len(html)]
    return [html[a:b] for a, b in zip(cuts, cuts[1:]) if a < b]


def divided(html: str) -> str:
    "The blocks of `html` in pieces; what a section holds, again"
    whole, piece = [], []

    def close():
        text = ''.join(piece)
        whole.append(f'{PIECE}{text}</div>' if text.strip() else text)
        piece.clear()

    for block in blocks(html):
        section = SECTION.fullmatch(block)
        if section or APART.match(block) or sum(map(len, piece)) > SIZE: close()
        if section: whole.append(section[1] + divided(section[2]) + section[3])
        elif APART.match(block): whole.append(block)
        else: piece.append(block)
    close()
    return ''.join(whole)


def begun(html: str) -> str:
    "Text in pieces of which the first are shown at once: what is in sight must not move"
    first, *others = html.split(PIECE)
    seen = 0
    for i, piece in enumerate(others):
        others[i] = (PIECE if seen > IN_SIGHT else PIECE.replace('">', ' shown">')) + piece
        seen += len(re.sub(r'<[^>]*>', '', piece))
    return first + ''.join(others)


def rows(table: str) -> str:
    "A long table whose rows are pieces"
    if len(table) < 2 * SIZE: return table
    head, body = table.split('<tbody', 1)
    return f'{head}<tbody{body.replace("<tr ", """<tr class="piece" """)}'


def divide(page: str) -> str:
    "A page whose text is in pieces"
    def whole(m): return m[1] + begun(divided(TABLE.sub(lambda t: rows(t[0]), m[2]))) + m[3]
    return MAIN.sub(whole, page, count=1)
