"""The map of chapters on the first page: which chapter builds on which, from the imports.

    python tools/chapter_map.py          # write nbs/assets/map.svg and map_narrow.svg
    python tools/chapter_map.py --edges  # print what each chapter builds on

A chapter builds on the chapters whose modules its exported cells import; one that exports nothing,
on those that it imports. An arrow that follows from two others is left out. The boxes lie in rows,
each below all that it builds on; long arrows have a place in the rows that they cross, and the
rows are sorted so that few arrows cross. The site and README.md show the wide picture, and on a
narrow screen the other one. `build_docs.py` writes both, and `check.py` fails where they are stale.
"""
import argparse, html, re, textwrap
from dataclasses import dataclass, field
from pathlib import Path

import yaml

import ledger, reading

ROOT = Path(__file__).resolve().parent.parent
COLOURS = ['#e8eaed', '#cfe3f7', '#d5efd9', '#fdeac4', '#f6d3d9', '#e3d8f3', '#cdeeee', '#e8eaed']
INK, LINE = '#1c2536', '#8390a3'


@dataclass
class Chapter:
    name: str    # its module, or its file without the number
    number: str  # as on the site; nothing for the page that comes before the first
    title: str
    part: int
    on: set[str] = field(default_factory=set)  # names of the chapters that it builds on


@dataclass
class Style:
    "Sizes in pixels: of a box, of the room between boxes and rows, of the letters"
    file: str
    box: tuple[int, int]
    gap: int
    lane: int  # the width of a place that only an arrow takes
    row: int
    font: float
    in_a_row: int
    titles: bool  # the title of a chapter in its box, or its name

STYLES = [Style('map.svg', (118, 40), 6, 9, 80, 11.2, 6, True),
          Style('map_narrow.svg', (68, 34), 5, 5, 66, 11, 5, False)]


# ---------------------------------------------------------------- the chapters and their imports
def parts(root: Path) -> list[tuple[int, str]]:
    "(number of the part, file) of each chapter of the book with a number in its file's name"
    book, found = yaml.safe_load((root/'_quarto.yml').read_text(encoding='utf-8'))['book'], []
    for i, entry in enumerate(book['chapters']):
        found += [(i, f) for f in ledger.chapters([entry]) if re.match(r'\d', f)]
    places = {p: k for k, p in enumerate(dict.fromkeys(p for p, _ in found))}
    return [(places[p], f) for p, f in found]


def title_of(file: Path) -> str:
    text = next(s for kind, s in ledger.cells(file) if kind in ('markdown', 'raw'))
    title = re.search(r'(?m)^(?:title: *)?["\']?# +(.*?)["\']?$', text)[1]
    return re.sub(r'\s*\{[^}]*\}', '', title)


def read(root: Path) -> list[Chapter]:
    "The chapters in the order of the book, each with those that it builds on directly"
    cells = {Path(c.file).name: c for c in reading.read(root)}
    modules = {c.module for c in cells.values()} - {None}
    found, n = [], 0
    for part, file in parts(root):
        chapter, numbered = cells[file], ledger.NUMBERED.match(file)
        n += bool(numbered)
        name = chapter.module or re.sub(r'^\d+_', '', Path(file).stem)
        code = [c for c in chapter.cells if c.exported or not chapter.module]
        ours = [i for c in code for i in reading.imports(c.tree) if i.ours]
        on = {i.module.split('.')[1] if '.' in i.module else i.name for i in ours} & modules
        title = title_of(root/'nbs'/file)
        found.append(Chapter(name, str(n) if numbered else '', title, part, on - {name}))
    return reduced(found)


def reduced(chapters: list[Chapter]) -> list[Chapter]:
    "Without what follows: if C builds on B and B on A, no arrow from A to C"
    on = {c.name: c.on for c in chapters}
    def below(name: str) -> set[str]: return set().union(*(({b} | below(b)) for b in on[name]))
    for c in chapters: c.on = c.on - set().union(*(below(b) for b in c.on))
    return chapters


# ---------------------------------------------------------------- rows
def in_rows(chapters: list[Chapter], most: int) -> dict[str, int]:
    "A row for each chapter: below all that it builds on, at most `most` in one, arrows short"
    by = {c.name: c for c in chapters}
    after = {c.name: [d.name for d in chapters if c.name in d.on] for c in chapters}
    height = {}
    def height_of(name):
        if name not in height: height[name] = 1 + max(map(height_of, after[name]), default=0)
        return height[name]
    row, waiting = {}, sorted(by, key=lambda n: -height_of(n))
    while waiting:
        here = max(row.values(), default=-1) + 1
        free = [n for n in waiting if all(row.get(b, here) < here for b in by[n].on)]
        for n in free[:most]: row[n] = here
        waiting = [n for n in waiting if n not in row]
    for _ in chapters:  # lower what can be lowered without making arrows longer
        for n in sorted(by, key=lambda n: -row[n]):
            lowest = min((row[a] for a in after[n]), default=row[n] + 1) - 1
            for r in range(lowest, row[n], -1):
                if len(after[n]) >= len(by[n].on) and sum(q == r for q in row.values()) < most:
                    row[n] = r
                    break
    return row


def with_lanes(chapters: list[Chapter], row: dict) -> tuple[list[list], list[tuple]]:
    "The rows with a place for each arrow that crosses them; the arrows as chains of places"
    rows = [[] for _ in range(max(row.values()) + 1)]
    for c in chapters: rows[row[c.name]].append(c.name)
    chains = []
    for c in chapters:
        for b in sorted(c.on):
            lanes = [(b, c.name, r) for r in range(row[b] + 1, row[c.name])]
            for lane in lanes: rows[lane[2]].append(lane)
            chains.append([b, *lanes, c.name])
    return rows, chains


def crossings(upper: list, lower: list, below: dict) -> int:
    at = {p: i for i, p in enumerate(lower)}
    ends = [(i, at[q]) for i, p in enumerate(upper) for q in below.get(p, [])]
    return sum((a[0] - b[0])*(a[1] - b[1]) < 0 for k, a in enumerate(ends) for b in ends[:k])


def sorted_rows(rows: list[list], chains: list[list]) -> list[list]:
    "Rows in an order with few crossings: each place near the mean of its neighbours"
    below, above = {}, {}
    for chain in chains:
        for p, q in zip(chain, chain[1:]):
            below.setdefault(p, []).append(q)
            above.setdefault(q, []).append(p)
    def total(rows): return sum(crossings(a, b, below) for a, b in zip(rows, rows[1:]))
    best, least = rows, total(rows)
    for sweep in range(40):
        rows = [list(r) for r in rows]
        down = sweep % 2 == 0
        order, near = (range(1, len(rows)), above) if down else (
            range(len(rows) - 2, -1, -1), below)
        for i in order:
            other = rows[i - 1 if down else i + 1]
            at = {p: (k + .5)/len(other) for k, p in enumerate(other)}
            was = {p: (k + .5)/len(rows[i]) for k, p in enumerate(rows[i])}
            mean = {p: sum(at[q] for q in near[p])/len(near[p]) if p in near else was[p]
                    for p in rows[i]}
            rows[i].sort(key=lambda p: mean[p])
        for a, b in zip(rows, rows[1:]): exchange(rows, b, below, above)
        if (n := total(rows)) < least: best, least = [list(r) for r in rows], n
    return best


def exchange(rows: list[list], row: list, below: dict, above: dict):
    "Exchange neighbours in a row while this takes crossings away"
    i = rows.index(row)
    def cost():
        return (crossings(rows[i - 1], row, below) if i else 0) + (
            crossings(row, rows[i + 1], below) if i + 1 < len(rows) else 0)
    for k in range(len(row) - 1):
        before = cost()
        row[k], row[k + 1] = row[k + 1], row[k]
        if cost() >= before: row[k], row[k + 1] = row[k + 1], row[k]


def centres(rows: list[list], chains: list[list], style: Style) -> tuple[dict, float]:
    "Where the middle of each place is, and how wide the picture: places near their neighbours"
    size = lambda p: style.box[0] + style.gap if isinstance(p, str) else style.lane
    width = max(sum(map(size, r)) for r in rows)
    x, near = {}, {}
    for r in rows:
        left = (width - sum(map(size, r)))/2
        for p in r:
            x[p] = left + size(p)/2
            left += size(p)
    for chain in chains:
        for p, q in zip(chain, chain[1:]):
            near.setdefault(p, []).append(q)
            near.setdefault(q, []).append(p)
    for sweep in range(60):
        for r in rows if sweep % 2 else reversed(rows):
            wish = {p: sum(x[q] for q in near[p])/len(near[p]) if p in near else x[p] for p in r}
            low, left = {}, 0.
            for p in r:  # as far left as the order and the edge allow
                low[p] = left + size(p)/2
                left += size(p)
            high, right = {}, width
            for p in reversed(r):
                high[p] = right - size(p)/2
                right -= size(p)
            end = 0.
            for p in r:
                x[p] = min(max(wish[p], low[p], end + size(p)/2), high[p])
                end = x[p] + size(p)/2
    return x, width


# ---------------------------------------------------------------- the picture
def label(c: Chapter, style: Style) -> list[str]:
    if not style.titles: return [c.number, c.name] if c.number else [c.name]
    words = f'{c.number}\u2002{c.title}' if c.number else c.title
    return textwrap.wrap(words, 18, break_long_words=False)[:2]


def svg(chapters: list[Chapter], style: Style) -> str:
    rows, chains = with_lanes(chapters, in_rows(chapters, style.in_a_row))
    rows = sorted_rows(rows, chains)
    x, width = centres(rows, chains, style)
    (w, h), by = style.box, {c.name: c for c in chapters}
    level = {p: i for i, r in enumerate(rows) for p in r}
    top = {p: 8 + level[p]*style.row for p in level}
    height = 16 + (len(rows) - 1)*style.row + h
    names = {c.name: f'{c.number} {c.title}'.strip() for c in chapters}
    says = '; '.join(f'{names[c.name]}: {", ".join(names[b] for b in by if b in c.on) or "nothing"}'
                     for c in chapters)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width + 8:.0f}" height="{height}" '
           f'viewBox="-4 0 {width + 8:.0f} {height}" role="img" '
           f'font-family="system-ui, Segoe UI, Roboto, Helvetica, Arial, sans-serif" '
           f'font-size="{style.font}">',
           '<!-- Written by tools/chapter_map.py from the imports of the chapters -->',
           '<title>The chapters, and on which others each builds</title>',
           f'<desc>{html.escape(says)}</desc>',
           '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" '
           'markerHeight="6" orient="auto">'
           f'<path d="M0 0L8 4L0 8z" fill="{LINE}"/></marker></defs>',
           f'<rect x="-4" width="{width + 8:.0f}" height="{height}" rx="8" fill="#fff"/>']
    for chain in chains: out.append(arrow(chain, x, top, h))
    for c in chapters:
        left, y, lines = x[c.name] - w/2, top[c.name], label(c, style)
        out.append(f'<rect x="{left:.1f}" y="{y}" width="{w}" height="{h}" rx="6" '
                   f'fill="{COLOURS[c.part % len(COLOURS)]}" stroke="{INK}" stroke-width=".7"/>')
        first = y + h/2 - (len(lines) - 2)*style.font*.6 - style.font*.25
        for k, line in enumerate(lines):
            out.append(f'<text x="{x[c.name]:.1f}" y="{first + k*style.font*1.2:.1f}" '
                       f'text-anchor="middle" fill="{INK}">{html.escape(line)}</text>')
    return '\n'.join([*out, '</svg>', ''])


def arrow(chain: list, x: dict, top: dict, h: int) -> str:
    "A smooth line from the bottom of a box, straight down through its lanes, to the top of another"
    a, *lanes, b = chain
    points = [(x[a], top[a] + h)]
    for lane in lanes: points += [(x[lane], top[lane]), (x[lane], top[lane] + h)]
    points.append((x[b], top[b] - 1))
    path = f'M{points[0][0]:.1f} {points[0][1]}'
    for (x0, y0), (x1, y1) in zip(points, points[1:]):
        bend = (y1 - y0)/2
        path += f'C{x0:.1f} {y0 + bend:.1f} {x1:.1f} {y1 - bend:.1f} {x1:.1f} {y1}'
    look = f'fill="none" stroke="{LINE}" stroke-width="1.1" marker-end="url(#tip)"'
    return f'<path d="{path}" {look}/>'


def write(root: Path):
    "Both pictures"
    chapters = read(root)
    (root/'nbs'/'assets').mkdir(parents=True, exist_ok=True)
    for style in STYLES:
        (root/'nbs'/'assets'/style.file).write_text(svg(chapters, style), encoding='utf-8')


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    ap.add_argument('--edges', action='store_true', help='print what each chapter builds on')
    if not ap.parse_args().edges: return write(ROOT)
    for c in read(ROOT): print(f'{c.number:>3} {c.name:12} {", ".join(sorted(c.on))}')


if __name__ == '__main__': main()
