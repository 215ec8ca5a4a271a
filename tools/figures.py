"""Pictures of a built site: each in a file of its own, loaded when a reader comes to it.

    python tools/figures.py [_site]

Outputs of cells stand in the pages as matplotlib and Pillow gave them. A drawing (SVG) becomes
one file that is legible on a light and on a dark page: its address with `#dark` turns black into
white. Pixels become WebP without loss, an animation one tall picture of all its frames, which
figures.js plays. Every picture gets its size, an alternative text (`fig-alt`, or its caption), and
captions get their links.
"""
import base64, html, io, re, sys
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image

SVG = re.compile(r'(?:<\?xml[^>]*>\s*)?(?:<!DOCTYPE[^>]*>\s*)?<svg\b(?=[^>]*xlink).*?</svg>',
                 re.S)
DATA = re.compile(r'<img\b[^>]*\bsrc="data:image/[\w+]+;base64,([^"]+)"[^>]*>')
PLAYER = re.compile(r'<script language="javascript">(?:(?!</script>).)*?</script>\s*'
                    r'(?:<style>.*?</style>\s*)?<div class="animation">.*?var frames = .*?'
                    r'</script>', re.S)
FRAME = re.compile(r'frames\[\d+\] = "data:image/([\w+]+);base64,([^"]+)"')
PICTURE = re.compile(f'(?:{PLAYER.pattern}|{SVG.pattern}|{DATA.pattern})'
                     r'(?=(?:\s*</p>)?\s*(?:<figcaption>(.*?)</figcaption>)?)', re.S)
NAMESPACES = ('xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
              'version="1.1"')
LINK = re.compile(r'\[([^]\[]+)\]\(([^)\s]+)\)(?:\{[^}]*\})?')

# ---------------------------------------------------------------- drawings
def lean(svg: str) -> str:
    "A drawing without what no reader sees: date, comments, more than two decimals of a coordinate"
    svg = re.sub(r'<\?xml[^>]*>|<!DOCTYPE[^>]*>|<metadata>.*?</metadata>|<!--.*?-->', '', svg,
                 flags=re.S)
    short = lambda m: f'{float(m[0]):.2f}'.rstrip('0').rstrip('.')
    svg = re.sub(r'\b(?:d|x|y)="[^"]*"|translate\([^)]*\)',
                 lambda m: re.sub(r'-?\d+\.\d{3,}', short, m[0]), svg)
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
    return f'{start}{style}<g id="dark">{inside(svg)}</g></svg>'

def sharp(svg: str) -> str:
    "A drawing whose images have two dots or more for each of a screen, in equal squares"
    def image(m):
        tag, data = m[0], re.search(r'xlink:href="data:image/png;base64,\s*([^"]+)"', m[0])
        pixels = Image.open(io.BytesIO(base64.b64decode(data[1])))
        scale = re.search(r'matrix\(([\d.e-]+)', tag) if 'pixelated' in tag else None
        times = min(4, max(1, ceil(2 * 4 / 3 * float(scale[1])))) if scale else 1
        tag = tag.replace(data[0], f'xlink:href="{in_line(webp(enlarged(pixels, times)))}"')
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

# ---------------------------------------------------------------- pixels
def webp(image: Image.Image, lossless=True) -> bytes:
    out = io.BytesIO()
    image.save(out, 'WEBP', lossless=lossless, quality=90 if lossless else 80, method=4)
    return out.getvalue()

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
class Page:
    "A page whose pictures move to files in `site/figures`"
    def __init__(self, file: Path):
        self.file, self.folder, self.made = file, file.parent/'figures', 0
        self.problems = []

    def store(self, data: bytes, ending: str) -> str:
        self.made += 1
        name = f'{self.file.stem}-{self.made}{ending}'
        self.folder.mkdir(exist_ok=True)
        (self.folder/name).write_bytes(data)
        return f'figures/{name}'

    def img(self, src, width, height, alt, classes='') -> str:
        return (f'<img src="{src}" width="{width}" height="{height}" alt="{alt}" '
                f'class="img-fluid{classes}" loading="lazy" decoding="async">')

    def pair(self, svg: str, width: int, height: int, alt: str) -> str:
        "Both faces of one drawing: the theme shows one of them"
        src = self.store(svg.encode(), '.svg')
        return (self.img(src, width, height, alt, ' in-light')
                + self.img(src + '#dark', width, height, alt, ' in-dark'))

    def drawing(self, svg: str, alt: str) -> str:
        width, height = size(svg)
        wide = ' figure-wide' if width > 480 else ''
        images = self.pair(themed(bare(sharp(lean(svg)))), width, height, alt)
        return f'<span class="figure-drawing{wide}">{images}</span>'

    def pixels(self, data: bytes, alt: str) -> str:
        image = Image.open(io.BytesIO(data))
        width, height = image.size
        card = on_white(image)
        src = self.store(webp(image if card else enlarged(image, 2)), '.webp')
        return self.img(src, width, height, alt, ' on-white' if card else '')

    def player(self, source: str, alt: str) -> str:
        frames = FRAME.findall(source)
        data = [base64.b64decode(d.replace('\\\n', '')) for _, d in frames]
        interval = re.search(r'slider_id, ([\d.]+)', source)[1]
        if frames[0][0].startswith('svg'):
            drawings = [bare(sharp(lean(d.decode()))) for d in data]
            width, height = size(drawings[0])
            tall = self.pair(themed(strip(drawings)), width, height * len(drawings), alt)
        else:
            images = [Image.open(io.BytesIO(d)).convert('RGB') for d in data]
            width, height = images[0].size
            whole = Image.new('RGB', (width, height * len(images)))
            for i, image in enumerate(images): whole.paste(image, (0, i * height))
            src = self.store(webp(whole, lossless=False), '.webp')
            tall = self.img(src, width, height * len(images), alt, ' on-white')
        last = len(frames) - 1
        return (f'<div class="player" data-interval="{interval}" style="--frames:{len(frames)};'
                f'--frame:{last};max-width:{width}px">'
                f'<div class="player-stage" style="aspect-ratio:{width}/{height}">{tall}</div>'
                '<div class="player-controls"><button type="button" aria-label="Play">▶</button>'
                f'<input type="range" min="0" max="{last}" value="{last}" aria-label="Frame" '
                f'aria-valuetext="{last + 1} of {last + 1}"></div></div>')

    def output(self, m) -> str:
        "What a cell drew"
        source, data, caption = m[0], m[1], m[2]
        own = re.match(r'<(?:svg|img)[^>]*\balt="([^"]+)"', source)
        alt = own[1] if own else plain(caption or '')
        if not alt: self.problems.append(f'{self.file.name}: a picture without a caption')
        if data: return self.pixels(base64.b64decode(data), alt)
        return self.player(source, alt) if 'var frames' in source else self.drawing(source, alt)

    def asset(self, m) -> str:
        "A picture that has a file already; of an animation, its end for who wants no motion"
        tag, still = m[0], ''
        src = re.search(r'\bsrc="([^"#?]+)', tag)[1]
        file = self.file.parent/src
        if not re.search(r'\balt="[^"]', tag):
            self.problems.append(f'{self.file.name}: {src} without an alternative text')
        more = '' if 'loading=' in tag else ' loading="lazy" decoding="async"'
        if file.suffix in ('.png', '.jpg', '.gif', '.webp') and file.exists():
            with Image.open(file) as im:
                if 'width=' not in tag: more += ' width="{}" height="{}"'.format(*im.size)
                if (frames := getattr(im, 'n_frames', 1)) > 1:
                    im.seek(frames - 1)
                    still = self.store(webp(im.convert('RGB')), '.webp')
        tag = tag.rstrip('>').rstrip('/') + more + '>'
        if not still: return tag
        return ('<picture><source media="(prefers-reduced-motion: reduce)" '
                f'srcset="{still}">{tag}</picture>')

    def write(self):
        text = self.file.read_text(encoding='utf-8')
        text = re.sub(r'<figcaption>(.*?)</figcaption>',
                      lambda m: f'<figcaption>{inline(m[1])}</figcaption>', text, flags=re.S)
        text = PICTURE.sub(self.output, text)
        text = re.sub(r'<img\b[^>]*\bsrc="(?!data:|figures/)[^"]*"[^>]*>', self.asset, text)
        if 'class="player"' in text or 'figure-wide' in text:
            text = text.replace('</body>', '<script src="assets/figures.js" defer></script></body>')
        self.file.write_text(text, encoding='utf-8')

def inline(caption: str) -> str:
    "Code and links of a caption, which is one line of text"
    caption = LINK.sub(r'<a href="\2" class="quarto-xref">\1</a>', caption)
    caption = re.sub(r'`([^`<]+)`', r'<code>\1</code>', caption)
    return re.sub(r'(?<!inline">)(\\\(.*?\\\))', r'<span class="math inline">\1</span>', caption)

def plain(caption: str) -> str:
    "A caption as an alternative text: without its number and its markup"
    text = html.unescape(re.sub(r'<[^>]*>|\\[()]', '', caption))
    return html.escape(re.sub(r'^(?:Figure|Table) [\d.]+(?:\(\w\))?: ', '', text.strip()))

def take_out(site: Path) -> list[str]:
    "Move the pictures of a site's pages to files; the problems that a reader would have with them"
    problems = []
    for file in sorted(site.glob('*.html')):
        page = Page(file)
        page.write()
        problems += page.problems
    return problems

if __name__ == '__main__':
    found = take_out(Path(sys.argv[1] if len(sys.argv) > 1 else '_site'))
    for problem in found: print(problem, file=sys.stderr)
    sys.exit(bool(found))
