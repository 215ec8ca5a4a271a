"""Pictures of the site: each in a file of its own, loaded when a reader comes to it.

Outputs of cells hold pictures as matplotlib and Pillow gave them. Before the pages are rendered, a
drawing (SVG) becomes one file that is legible on a light and on a dark page: its address with
`#dark` turns black into white. Pixels become WebP, without loss unless a loss that no eye sees
saves much; an animation becomes one tall picture of all its frames, which figures.js plays. Every
picture gets its size and an alternative text (`fig-alt`, or its caption).
"""
import base64, html, io, re
from collections import Counter
from copy import deepcopy
from math import ceil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from references import opts, text

FRAME = re.compile(r'frames\[\d+\] = "data:image/([\w+]+);base64,([^"]+)"')
NAMESPACES = ('xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
              'version="1.1"')
LINK = re.compile(r'\[([^]\[]+)\]\(([^)\s]+)\)(?:\{[^}]*\})?')

# ---------------------------------------------------------------- drawings
def two_decimals(x: float) -> str:
    "A number with at most two decimals, without zeros at its end"
    return f'{x:.2f}'.rstrip('0').rstrip('.')

def lean(svg: str) -> str:
    "A drawing without what no reader sees: date, comments, more than two decimals of a coordinate"
    svg = re.sub(r'<\?xml[^>]*>|<!DOCTYPE[^>]*>|<metadata>.*?</metadata>|<!--.*?-->', '', svg,
                 flags=re.S)
    svg = re.sub(r'\b(?:d|x|y)="[^"]*"|translate\([^)]*\)',
                 lambda m: re.sub(r'-?\d+\.\d{3,}', lambda n: two_decimals(float(n[0])), m[0]), svg)
    svg = re.sub(r'\s*\n\s*', ' ', svg).replace('> <', '><')
    return svg.replace('<defs></defs>', '').strip()

def lean_frames(player: str) -> str:
    "A player by matplotlib whose frames are lean drawings"
    def frame(m):
        svg = lean(base64.b64decode(m[2].replace('\\\n', '')).decode())
        return m[0].replace(m[2], base64.b64encode(svg.encode()).decode())
    return re.sub(FRAME.pattern.replace(r'[\w+]+', 'svg.xml'), frame, player)

def size(svg: str) -> tuple[int, int]:
    "Width and height of a drawing in pixels of CSS; matplotlib gives points"
    points = re.findall(r'(?:width|height)="([\d.]+)pt"', svg)
    width, height = (round(float(x) * 4 / 3) for x in points[:2])
    return width, height

def dark(gray: int) -> int:
    "The gray (0 to 255) of a dark page that stands for one of a light page"
    return round(230 - gray * (230 - 33) / 255)

def bare(svg: str) -> str:
    "A drawing without its white background"
    return re.sub(r'(<g id="patch_1">\s*<path\b[^>]*fill: )#ffffff', r'\1none', svg, count=1)

def inside(svg: str) -> str: return re.sub(r'^.*?<svg\b[^>]*>|</svg>\s*$', '', svg, flags=re.S)

def themed(svg: str) -> str:
    "A drawing whose grays change where its address ends with `#dark`"
    grays = set()
    def gray(m):
        r, g, b = bytes.fromhex(m[2])
        if max(r, g, b) - min(r, g, b) > 12: return m[0]
        grays.add(m[2])
        return f'{m[1]}: var(--g{m[2]}, #{m[2]})'
    svg = re.sub(r'(fill|stroke): #([0-9a-f]{6})', gray, svg)
    light = {g: dark(round(sum(bytes.fromhex(g)) / 3)) for g in sorted(grays)}
    values = ''.join(f';--g{g}:#{bytes([v] * 3).hex()}' for g, v in light.items())
    style = f'<style>#dark:target{{fill:#{bytes([dark(0)] * 3).hex()}{values}}}</style>'
    start = svg[:svg.index('>', svg.index('<svg')) + 1]
    return brief(f'{start}{style}<g id="dark">{inside(svg)}</g></svg>')

def brief(svg: str) -> str:
    """The same drawing in fewer letters: styles by name, short names of what is named, paths
    relative, letters at whole hundredths of their size, and no group that says nothing"""
    svg = re.sub(r'(<use\b[^>]*) transform="translate\(([-\d.]+) 0\)"/>',
                 lambda m: f'{m[1]} x="{float(m[2]):.0f}"/>', svg)
    for long, short in (('xlink:href', 'href'), ('<defs></defs>', ''), ('<defs/>', '')):
        svg = svg.replace(long, short)
    defined, named = (re.findall(f, svg) for f in (r' id="([^"]+)"', r'#([\w-]+)["\')]'))
    names = {name: f'a{i}' for i, name in enumerate(sorted({*defined} & {*named}))}
    names['dark'] = 'dark'
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{names[m[1]]}"' if m[1] in names else '', svg)
    svg = re.sub(r'#([\w-]+)(?=["\')])', lambda m: '#' + names.get(m[1], m[1]), svg)
    svg = re.sub(r' d="([^"]*)"', lambda m: f' d="{relative(m[1])}"', svg)
    svg = without_bare_groups(svg)
    often = [s for s, n in Counter(re.findall(r' style="([^"]*)"', svg)).most_common() if n > 2]
    for i, style in enumerate(often): svg = svg.replace(f' style="{style}"', f' class="s{i}"')
    rules = ''.join(f'.s{i}{{{style}}}' for i, style in enumerate(often))
    rules = rules.replace(': ', ':').replace('; ', ';')
    return svg.replace('</style>', rules + '</style>', 1)

def without_bare_groups(svg: str) -> str:
    "A drawing without groups that are empty, or that neither move nor style what is in them"
    kept = []
    def group(m):
        if m[0].endswith('/>'): return ''
        if m[0] == '</g>': return m[0]*kept.pop()
        kept.append(m[0] != '<g>')
        return m[0]*kept[-1]
    return re.sub(r'<g\b[^>]*>|</g>', group, svg)

NUMBERS = dict(M=2, L=2, Q=4, C=6)  # of each command of a path by matplotlib

def relative(path: str) -> str:
    "A path in which each command counts from the end of the one before: shorter numbers"
    out, x, y, start = '', 0., 0., (0., 0.)
    for command, rest in re.findall(r'([A-Za-z])([^A-Za-z]*)', path):
        if command == 'z': out, (x, y) = out + 'z', start; continue
        numbers = [float(n) for n in rest.split()]
        for i in range(0, len(numbers), NUMBERS[command]):
            part = numbers[i:i + NUMBERS[command]]
            steps = [two_decimals(n - (y if k % 2 else x)) for k, n in enumerate(part)]
            x, y = part[-2:]
            if command == 'M': start = x, y
            out += command.lower() + ' '.join(steps).replace(' -', '-')
    return re.sub(r'(?<![\d.])0\.', '.', out)

def sharp(svg: str) -> str:
    "A drawing whose images have two dots or more for each of a screen, in equal squares"
    def image(m):
        tag, data = m[0], re.search(r'xlink:href="data:image/png;base64,\s*([^"]+)"', m[0])
        pixels = Image.open(io.BytesIO(base64.b64decode(data[1])))
        scale = re.search(r'matrix\(([\d.e-]+)', tag) if 'pixelated' in tag else None
        times = min(4, max(1, ceil(2 * 4 / 3 * float(scale[1])))) if scale else 1
        tag = tag.replace(data[0], f'xlink:href="{in_line(small_webp(enlarged(pixels, times)))}"')
        return re.sub(r' style="image-rendering:[^"]*"', '', tag)
    return re.sub(r'<image\b[^>]*>', image, svg)

def strip(frames: list[str]) -> str:
    "Drawings of one size below each other, as one"
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', frames[0])
    width, height = float(box[1]), float(box[2])
    seen = set()
    def once(m):  # letters and markers
        if m[1] in seen: return ''
        seen.add(m[1])
        return m[0]
    rows = ''.join(f'<svg y="{i * height:g}" width="{width:g}" height="{height:g}">'
                   + re.sub(r'<path id="([^"]+)"[^>]*/>', once, inside(f)) + '</svg>'
                   for i, f in enumerate(frames))
    tall = len(frames) * height
    return (f'<svg {NAMESPACES} width="{width:g}pt" height="{tall:g}pt" '
            f'viewBox="0 0 {width:g} {tall:g}">{rows}</svg>')

SVG = 'http://www.w3.org/2000/svg'
DEFS = f'{{{SVG}}}defs'

def drawn(e: ElementTree.Element) -> str: return ElementTree.tostring(e, encoding='unicode')
ElementTree.register_namespace('', SVG)
ElementTree.register_namespace('xlink', 'http://www.w3.org/1999/xlink')

def parted(frames: list[str]) -> tuple[str, list[str]]:
    "What all frames of a player share, such as axes, as one drawing, and the frames without it"
    roots = [with_one_defs(ElementTree.fromstring(f)) for f in frames]
    shared = deepcopy(roots[0])
    key = lambda e: e.get('id') or ElementTree.tostring(e)
    def part(own, others):  # leave in `own` what all have, and in `others` what they do not
        for child in list(own):
            if child.tag == DEFS: continue  # both need it
            each = [next((e for e in o if key(e) == key(child)), None) for o in others]
            found = all(e is not None and alike(*(str(x.attrib) for x in (e, child)))
                        for e in each)
            if found and all(alike(drawn(e), drawn(child)) for e in each):
                for parent, e in zip(others, each): parent.remove(e)
            elif found and len(child): part(child, each)
            else: own.remove(child)
    part(shared, roots)
    return written(shared), [written(r) for r in roots]

def alike(one: str, other: str) -> bool:
    "Do two drawings differ by half a point at most? The layout of a frame depends on its title"
    if one == other: return True
    numbers, others = (re.split(r'(-?\b\d+\.\d+|-?\b\d+\b)', x) for x in (one, other))
    return (numbers[::2] == others[::2] and
            all(abs(float(a) - float(b)) <= 0.5 for a, b in zip(numbers[1::2], others[1::2])))

def with_one_defs(root: ElementTree.Element) -> ElementTree.Element:
    "A drawing whose letters, markers and clips are defined at its start"
    whole = ElementTree.Element(DEFS)
    for parent in list(root.iter()):
        for defs in parent.findall(DEFS):
            whole.extend(defs)
            parent.remove(defs)
    root.insert(0, whole)
    return root

def written(root: ElementTree.Element) -> str:
    "A drawing that defines only what it uses"
    used = set(re.findall(r'#([\w-]+)["\')]', drawn(root)))
    for e in list(root.find(DEFS)):
        if e.get('id', '') not in used | {''}: root.find(DEFS).remove(e)
    return drawn(root)

# ---------------------------------------------------------------- pixels
def webp(image: Image.Image, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, 'WEBP', method=6, **options)
    return out.getvalue()

def small_webp(image: Image.Image) -> bytes:
    "Without loss, unless the picture is opaque and large, and a small loss saves a fifth or more"
    exact = webp(image, lossless=True, quality=90)
    seen_through = image.mode == 'RGBA' and image.getextrema()[3][0] < 255
    if seen_through or len(exact) < 4000: return exact
    near = webp(image.convert('RGB'), quality=85, use_sharp_yuv=True)
    return near if len(near) < 0.8 * len(exact) else exact

def in_line(data: bytes) -> str:
    return 'data:image/webp;base64,' + base64.b64encode(data).decode()

def enlarged(image: Image.Image, times: int) -> Image.Image:
    "Each pixel as a square of pixels"
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)

def on_white(image: Image.Image) -> bool:
    "Has a picture white corners, as what matplotlib saved as PNG?"
    corners = np.asarray(image.convert('RGB'))[[0, 0, -1, -1], [0, -1, 0, -1]]
    return bool((corners > 250).all())

# ---------------------------------------------------------------- pages
class Pictures:
    "The pictures of one page, in files of `assets/figures` below `folder`"
    def __init__(self, name: str, folder: Path):
        self.name, self.folder, self.made, self.problems = name, folder, 0, []

    def store(self, data: bytes, ending: str) -> str:
        self.made += 1
        path = f'assets/figures/{self.name}-{self.made}{ending}'
        (self.folder/path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder/path).write_bytes(data)
        return path

    def img(self, src, width, height, alt, classes='') -> str:
        return (f'<img src="{src}" width="{width}" height="{height}" alt="{html.escape(alt)}" '
                f'class="img-fluid{classes}" loading="lazy" decoding="async">')

    def pair(self, svg: str, width: int, height: int, alt: str, classes='') -> str:
        "Both faces of one drawing: the theme shows one of them"
        src = self.store(svg.encode(), '.svg')
        return (self.img(src, width, height, alt, classes + ' in-light')
                + self.img(src + '#dark', width, height, alt, classes + ' in-dark'))

    def drawing(self, svg: str, alt: str) -> str:
        width, height = size(svg)
        wide = ' figure-wide' if width > 480 else ''
        images = self.pair(themed(bare(sharp(lean(svg)))), width, height, alt)
        return f'<span class="figure-drawing{wide}">{images}</span>'

    def pixels(self, data: bytes, alt: str) -> str:
        image = Image.open(io.BytesIO(data))
        width, height = image.size
        card = on_white(image)
        src = self.store(small_webp(image if card else enlarged(image, 2)), '.webp')
        return self.img(src, width, height, alt, ' on-white' if card else '')

    def player(self, source: str, alt: str) -> str:
        frames = FRAME.findall(source)
        data = [base64.b64decode(d.replace('\\\n', '')) for _, d in frames]
        if frames[0][0].startswith('svg'):
            drawings = [bare(sharp(lean(d.decode()))) for d in data]
            width, height = size(drawings[0])
            shared, drawings = parted(drawings)
            tall = (self.pair(themed(shared), width, height, '', ' player-back')
                    + self.pair(themed(strip(drawings)), width, height * len(drawings), alt))
        else:
            images = [Image.open(io.BytesIO(d)).convert('RGB') for d in data]
            width, height = images[0].size
            whole = Image.new('RGB', (width, height * len(images)))
            for i, image in enumerate(images): whole.paste(image, (0, i * height))
            src = self.store(webp(whole, quality=80), '.webp')
            tall = self.img(src, width, height * len(images), alt, ' on-white')
        last, interval = len(frames) - 1, re.search(r'slider_id, ([\d.]+)', source)[1]
        return (f'<div class="player" data-interval="{interval}" style="--frames:{len(frames)};'
                f'--frame:{last};max-width:{width}px">'
                f'<div class="player-stage" style="aspect-ratio:{width}/{height}">{tall}</div>'
                '<div class="player-controls"><button type="button" aria-label="Play">▶</button>'
                f'<input type="range" min="0" max="{last}" value="{last}" aria-label="Frame" '
                f'aria-valuetext="{last + 1} of {last + 1}"></div></div>')

    def output(self, data: dict, alt: str) -> str:
        "The picture of one output, or nothing"
        if 'image/svg+xml' in data: return self.drawing(text(data['image/svg+xml']), alt)
        for kind in ('image/png', 'image/jpeg'):
            if kind in data: return self.pixels(base64.b64decode(text(data[kind])), alt)
        player = text(data.get('text/html'))
        return self.player(player, alt) if 'class="animation"' in player else ''

    def cell(self, cell: dict):
        "Files in place of the pictures among the outputs of a cell"
        o, shown = opts(text(cell['source'])), 0
        captions, alts = ([x] if isinstance(x, str) else x or []
                          for x in (o.get('fig-cap'), o.get('fig-alt')))
        for output in cell.get('outputs', []):
            caption, alt = (x[shown] if shown < len(x) else '' for x in (captions, alts))
            picture = self.output(output.get('data', {}), alt or plain(caption))
            if not picture: continue
            shown += 1
            if not (alt or caption):
                self.problems.append(f'{self.name}: a picture without a caption')
            output['data'] = {'text/html': figure(picture, caption)}

def figure(picture: str, caption: str) -> str:
    said = f'<figcaption>{inline(html.escape(caption))}</figcaption>' if caption else ''
    return ('<div class="quarto-figure quarto-figure-center"><figure class="figure">'
            f'{picture}{said}</figure></div>')

def inline(caption: str) -> str:
    "Code, mathematics and links of a caption, which smalldocs takes for plain text"
    caption = LINK.sub(r'<a href="\2" class="quarto-xref">\1</a>', caption)
    caption = re.sub(r'`([^`<]+)`', r'<code>\1</code>', caption)
    return re.sub(r'\\\(.*?\\\)', r'<span class="math inline">\g<0></span>', caption)

def plain(caption: str) -> str:
    "A caption as an alternative text: without its number and its markup"
    caption = re.sub(r'`|\\[()]', '', LINK.sub(r'\1', caption))
    return re.sub(r'^(?:Figure|Table) [\d.]+(?:\(\w\))?: ', '', caption)

def take_out(nb: dict, name: str, folder: Path) -> list[str]:
    "Move the pictures of a notebook to files; the problems that a reader would have with them"
    pictures = Pictures(name, folder)
    for cell in nb['cells']:
        if cell['cell_type'] == 'code': pictures.cell(cell)
    return pictures.problems

# ---------------------------------------------------------------- pictures that have a file
IMG = re.compile(r'<img\b[^>]*\bsrc="(?!data:|assets/figures/|\w+://)([^"#?]+)[^>]*>')
SCRIPT = '<script src="assets/figures.js" defer></script>'

def smaller(tag: str, site: Path) -> str:
    "An image of a page with a WebP in place of a large PNG"
    file = site/IMG.match(tag)[1]
    if file.suffix != '.png' or not file.exists() or file.stat().st_size < 50_000: return tag
    made = file.with_suffix('.webp')
    made.write_bytes(small_webp(Image.open(file)))
    return tag.replace(file.name, made.name)

def sized(tag: str, site: Path, problems: list[str]) -> str:
    "An image of a page with its size, loaded lazily; an animation's end for who wants no motion"
    tag = smaller(tag, site)
    src = IMG.match(tag)[1]
    file, still = site/src, ''
    if not re.search(r'\balt="[^"]', tag): problems.append(f'{src} has no alternative text')
    more = '' if 'loading=' in tag else ' loading="lazy" decoding="async"'
    if file.suffix in ('.png', '.jpg', '.gif', '.webp') and file.exists():
        with Image.open(file) as im:
            if 'width=' not in tag: more += ' width="{}" height="{}"'.format(*im.size)
            if (frames := getattr(im, 'n_frames', 1)) > 1:
                im.seek(frames - 1)
                still = Path(src).with_suffix('.still.webp').as_posix()
                (site/still).write_bytes(small_webp(im.convert('RGB')))
    elif file.suffix == '.svg' and file.exists() and 'width=' not in tag:
        own = re.search(r'<svg\b[^>]* (width="\d+" height="\d+")', file.read_text(encoding='utf-8'))
        if own: more += ' ' + own[1]
    tag = tag.rstrip('>').rstrip('/') + more + '>'
    if not still: return tag
    return ('<picture><source media="(prefers-reduced-motion: reduce)" '
            f'srcset="{still}">{tag}</picture>')

def first_at_once(page: str) -> str:
    "The first picture of a page need not wait for its reader to come to it"
    if not (first := re.search(r'<img\b[^>]*\bsrc="([^"#?]+)', page)): return page
    return re.sub(rf'<img\b[^>]*\bsrc="{re.escape(first[1])}[^>]*>',
                  lambda m: m[0].replace(' loading="lazy"', ' fetchpriority="high"'), page)

def finish(site: Path) -> list[str]:
    "The other pictures of the pages; the script of the players"
    problems = []
    for file in sorted(site.glob('*.html')):
        page, found = file.read_text(encoding='utf-8'), []
        page = first_at_once(IMG.sub(lambda m: sized(m[0], site, found), page))
        if 'class="player"' in page or 'figure-wide' in page:
            page = page.replace('</body>', SCRIPT + '</body>')
        file.write_text(page, encoding='utf-8')
        problems += [f'{file.name}: {p}' for p in found]
    return problems
