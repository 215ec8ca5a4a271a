"Pictures of the site: files of their own, said in words, legible on a light and on a dark page"
import base64, io, json, re, sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
import matplotlib as mpl, numpy as np, pytest
from matplotlib.animation import FuncAnimation
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from fontTools.pens.recordingPen import RecordingPen
from fontTools.svgLib.path import parse_path
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
import figures, links, references

ONE = 'eq-one'  # the label of an equation below
LIGHT, DARK = '#ffffff', '#222222'  # pages
PIXELS = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)

@pytest.fixture(autouse=True)
def style():
    with mpl.rc_context(fname=ROOT/'nbs'/'matplotlibrc'): yield

def linear(colour: str) -> np.ndarray:
    "The light of red, green and blue (WCAG 2.2)"
    c = np.array(list(bytes.fromhex(colour.lstrip('#')))) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055)**2.4)

def contrast(a: str, b: str) -> float:
    low, high = sorted(linear(c) @ (0.2126, 0.7152, 0.0722) for c in (a, b))
    return (high + 0.05) / (low + 0.05)

def plot() -> Figure:
    fig = Figure(figsize=(6, 2))
    left, right = fig.subplots(1, 2)
    left.plot([1, 3, 2], label='a'); left.plot([2, 1, 3], 'k--'); left.axhline(2, color='0.5')
    left.set(title='title', xlabel='x'); left.legend()
    right.imshow(PIXELS, cmap='gray', vmin=0, vmax=255)
    return fig

def svg(fig) -> str:
    out = io.StringIO()
    fig.savefig(out, format='svg')
    return out.getvalue()

def png(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, 'PNG')
    return base64.b64encode(out.getvalue()).decode()

def player(frame_format: str) -> str:
    fig = Figure(figsize=(3, 1))
    FigureCanvasAgg(fig)
    ax = fig.subplots()
    def draw(i): ax.set_title(f'frame {i}'); ax.axvspan(i, i + 1, color='C0')
    with mpl.rc_context({'animation.frame_format': frame_format}):
        return FuncAnimation(fig, draw, 4, interval=80, init_func=lambda: None).to_jshtml()

class Images(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.img = []
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        if tag == 'img': self.img.append(dict(attrs))

CAPTION = '#| fig-cap: ' + json.dumps('Figure 1.2: What "a" & `b` do, \\(x_t\\).')

def site(folder, kind, picture, options=CAPTION):
    "What stands in a page for the output of a cell, its images and the problems"
    cell = dict(cell_type='code', source=options + '\nplot()',
                outputs=[dict(output_type='display_data', data={kind: [picture]})])
    problems = figures.take_out(dict(cells=[cell]), 'a', folder)
    [output] = cell['outputs']
    assert list(output['data']) == ['text/html']
    return output['data']['text/html'], Images(output['data']['text/html']).img, problems

SVG, PNG, HTML = 'image/svg+xml', 'image/png', 'text/html'
SVG_NAMES = 'http://www.w3.org/2000/svg'
DRAWING = Path('assets')/'figures'/'a-1.svg'

@pytest.fixture
def drawing(tmp_path):
    "The file of a drawing"
    site(tmp_path, SVG, svg(plot()))
    return (tmp_path/DRAWING).read_text()

def test_a_drawing_is_a_file_with_two_faces(tmp_path):
    plain = svg(plot())
    text, images, problems = site(tmp_path, SVG, plain)
    assert problems == [] and (tmp_path/DRAWING).stat().st_size < len(plain)
    assert 'data:' not in text and '<svg' not in text
    assert [i['src'] for i in images] == ['assets/figures/a-1.svg', 'assets/figures/a-1.svg#dark']
    assert ['in-light' in i['class'] for i in images] == [True, False]
    for i in images:
        assert i['alt'] == 'What "a" & b do, x_t.'
        assert (i['loading'], i['decoding']) == ('lazy', 'async')
        assert (int(i['width']), int(i['height'])) == (6 * 96, 2 * 96)
    assert text.count('<figcaption>Figure 1.2: What &quot;a&quot; &amp; ') == 1
    assert '<code>b</code>' in text and '<span class="math inline">\\(x_t\\)</span>' in text

def test_what_is_legible_on_a_light_page_is_so_on_a_dark_one(drawing):
    there = dict(re.findall(r'(--g[0-9a-f]{6}):(#[0-9a-f]{6})', drawing))  # colours on a dark page
    found = {(light, there[name]) for name, light
             in re.findall(r'(?:fill|stroke): var\((--g\w+), (#[0-9a-f]{6})\)', drawing)}
    found |= {(c, c) for c in re.findall(r'(?:fill|stroke): (#[0-9a-f]{6})', drawing)}
    assert len(found) >= 4 and LIGHT not in dict(found)  # no white card
    for light, dark in found:
        assert contrast(light, LIGHT) >= 3 and contrast(dark, DARK) >= 3, (light, dark)
    # black has no fill in SVG
    letters = re.search(r'#dark:target\{fill:(#[0-9a-f]{6})', drawing)[1]
    assert contrast(letters, DARK) >= 7

def test_pixels_of_a_drawing_stay_what_they_are(drawing):
    [image] = [e for e in ET.fromstring(drawing).iter() if e.tag.endswith('}image')]
    data = image.get('href').split(',')[1]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert('RGB'))
    times = len(shown) // 28
    matrix = re.search(r'matrix\(([\d.]+)', image.get('transform'))[1]
    assert times >= 2 and len(shown) == times * 28 == times * float(image.get('width'))
    assert 28 * times >= 28 * float(matrix)  # one dot or more for a point of the figure
    values = PIXELS.repeat(times, 0).repeat(times, 1)[..., None].astype(int)
    assert np.abs(shown - values).max() <= 1  # matplotlib rounds colours so

@pytest.mark.parametrize('white, times', [(False, 2), (True, 1)])
def test_pixels_become_a_file(tmp_path, white, times):
    "Without loss; what has a white border is a card on a dark page"
    pixels = np.pad(PIXELS, 3, constant_values=255) if white else np.minimum(PIXELS, 200)
    text, [image], problems = site(tmp_path, PNG, png(Image.fromarray(pixels)))
    assert problems == [] and ('on-white' in image['class']) == white
    assert (int(image['height']), int(image['width'])) == pixels.shape
    stored = Image.open(tmp_path/image['src'])
    assert stored.format == 'WEBP'
    whole = np.asarray(stored.convert('L'))
    assert (whole == pixels.repeat(times, 0).repeat(times, 1)).all()

def test_large_pixels_lose_what_no_eye_sees(tmp_path):
    "A colourful slope with noise: a fifth of the bytes, and 2 % of the range by root mean square"
    slope = np.stack(np.meshgrid(np.linspace(0, 200, 96), np.linspace(200, 0, 96)) * 2, -1)[..., :3]
    noise = np.random.default_rng(0).normal(20, 10, (96, 96, 1))
    pixels = (slope + noise).clip(0, 255).astype(np.uint8)
    exact, shown = io.BytesIO(), pixels.repeat(2, 0).repeat(2, 1)
    Image.fromarray(shown).save(exact, 'WEBP', lossless=True)
    [image] = site(tmp_path, PNG, png(Image.fromarray(pixels)))[1]
    off = np.asarray(Image.open(tmp_path/image['src']).convert('RGB')) - shown.astype(float)
    assert (tmp_path/image['src']).stat().st_size < 0.8 * len(exact.getvalue())
    assert (off**2).mean()**0.5 < 0.02 * 255

@pytest.mark.parametrize('frame_format', ['svg', 'png'])
def test_a_player_shows_the_frames_of_one_file(tmp_path, frame_format):
    text, images, problems = site(tmp_path, HTML, player(frame_format))
    assert problems == [] and 'data:' not in text and 'Animation(' not in text
    shared = [i for i in images if 'player-back' in i['class']]  # the axes of all frames
    images = [i for i in images if i not in shared]
    assert all(i['alt'].startswith('What "a"') for i in images)
    assert not any(i['alt'] for i in shared)
    for part in ('aria-label="Play"', 'type="range"'): assert text.count(part) == 1
    for part in ('--frames:4;', 'data-interval="80', 'max="3"', 'aria-label="Frame"'):
        assert part in text
    width, height = int(images[0]['width']), int(images[0]['height'])
    assert height % 4 == 0 and f'aspect-ratio:{width}/{height // 4}' in text
    file = tmp_path/images[0]['src']
    assert file.suffix == dict(svg='.svg', png='.webp')[frame_format]
    if frame_format == 'png':
        assert Image.open(file).size == (width, height)
        return
    tall, back = (ET.parse(f).getroot() for f in (file, tmp_path/shared[0]['src']))
    assert len([e for e in tall.iter() if e.tag.endswith('}svg')]) == 1 + 4
    for drawing in (tall, back):
        names = {e.get('id') for e in drawing.iter()}
        assert {e.get('href')[1:] for e in drawing.iter() if e.tag.endswith('}use')} <= names
    paper = f'{{{SVG_NAMES}}}path[@d="m0 72l216 0l0-72l-216 0z"]'  # 3 x 1 inches
    assert back.find(f'.//{paper}') is not None and tall.find(f'.//{paper}') is None

def test_short_paths_are_the_same_paths():
    "Read by fontTools: curves, lines and contours of letters and of a plot, to half a hundredth"
    paths = re.findall(r' d="([^"]*)"', figures.lean(svg(plot())))
    assert len(paths) > 20 and {*'MLQz'} <= {*''.join(paths)}
    def points(path):
        pen = RecordingPen()
        parse_path(path, pen)
        return [name for name, _ in pen.value], [xy for _, part in pen.value for xy in part]
    for path in paths:
        (names, long), (same, brief) = points(path), points(figures.relative(path))
        assert names == same
        np.testing.assert_allclose(brief, long, rtol=0, atol=0.005)

@pytest.mark.parametrize('kind, picture', [(SVG, lambda: svg(plot())),
                                           (PNG, lambda: png(Image.fromarray(PIXELS)))])
def test_a_picture_without_words_is_a_problem(tmp_path, kind, picture):
    _, _, [problem] = site(tmp_path, kind, picture(), options='')
    assert problem.startswith('a: ')
    _, [image, *_], problems = site(tmp_path, kind, picture(), '#| fig-alt: "noise"')
    assert problems == [] and image['alt'] == 'noise'

def test_pictures_with_a_file(tmp_path):
    "Size for all, lazy loading for all but the first; the end of an animation in place of motion"
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    frames[0].save(tmp_path/'b.png')
    frames[0].save(tmp_path/'c.webp', save_all=True, append_images=frames[1:], lossless=True)
    (tmp_path/'d.svg').write_text('<svg width="90" height="41"/>')
    (tmp_path/'a.html').write_text('<body><img src="b.png"><img alt="moves" src="c.webp">'
                                   '<img src="d.svg" alt="a map"></body>')
    assert figures.finish(tmp_path) == ['a.html: b.png has no alternative text']
    text = (tmp_path/'a.html').read_text()
    first, second, drawing = Images(text).img
    assert [(i['width'], i['height']) for i in (first, second, drawing)] == [
        ('28', '28'), ('28', '28'), ('90', '41')]
    assert second['loading'] == 'lazy' and 'loading' not in first  # which is there at once
    [still] = re.findall(r'<picture><source media="\(prefers-reduced-motion: reduce\)" '
                         r'srcset="([^"]+)"><img alt="moves"', text)
    assert (np.asarray(Image.open(tmp_path/still).convert('L')) == 255 - PIXELS).all()

def test_lean_drawings_are_the_same_whenever_they_are_made():
    first, second = (figures.lean(svg(plot())) for _ in range(2))
    assert first == second and '<dc:date>' not in first and len(first) < 0.9 * len(svg(plot()))

def test_references_in_captions():
    "Resolved before the build; one that is left is found in a page, but not in its code"
    source = f'#| label: fig-a\n#| fig-cap: "By @{ONE}, of $x$."\nplot()'
    nb = dict(cells=[dict(cell_type='markdown', source=f'$$\nx\n$$ {{#{ONE}}}', id='a'),
                     dict(cell_type='code', source=source, outputs=[], id='b')])
    book = references.Book({})
    book.number('one.ipynb', nb, 3)
    cell = nb['cells'][1]
    book.caption(cell, 'one.ipynb')
    caption = references.opts(cell['source'])['fig-cap']
    assert caption.startswith(f'Figure 3.1: By [Equation 3.1](#{ONE})')
    assert figures.inline(caption).startswith(
        f'Figure 3.1: By <a href="#{ONE}" class="quarto-xref">Equation 3.1</a>, of <span')
    assert figures.plain(caption) == 'By Equation 3.1, of x.'

def test_references_that_are_left(tmp_path):
    page = '<p>{}</p><pre><code>@tbl-code</code></pre><img src="a.png" alt="{}">'
    (tmp_path/'a.png').write_bytes(b'')
    (tmp_path/'a.html').write_text(page.format('see @fig-a', 'by @tbl-b'))
    assert links.check(tmp_path) == ['a.html: @fig-a is not resolved',
                                     'a.html: @tbl-b is not resolved']
    (tmp_path/'a.html').write_text(page.format('me@tbl-mail.org', 'by tbl-b'))
    assert links.check(tmp_path) == []

# Machado, Oliveira & Fernandes (2009), severity 1, in linear RGB
SEEN = dict(all=np.eye(3),
            protan=[[.152286, 1.052583, -.204868], [.114503, .786281, .099216],
                    [-.003882, -.048116, 1.051998]],
            deutan=[[.367322, .860646, -.227968], [.280085, .672501, .047413],
                    [-.011820, .042940, .968881]])

def oklab(linear):
    "Ottosson (2020): distances are about those that people see"
    m1 = [[.4122214708, .5363325363, .0514459929], [.2119034982, .6806995451, .1073969566],
          [.0883024619, .2817188376, .6299787005]]
    m2 = [[.2104542553, .7936177850, -.0040720468], [1.9779984951, -2.4285922050, .4505937099],
          [.0259040371, .7827717662, -.8086757660]]
    return np.array(m2) @ np.cbrt(np.array(m1) @ linear)

@pytest.mark.parametrize('seen', SEEN)
def test_colours_of_the_book_can_be_told_apart(seen):
    "The first four differ by 0.07 or more (black and white by 1), on any page, for most eyes"
    colours = [c['color'] for c in mpl.rcParams['axes.prop_cycle']]
    for c in colours: assert min(contrast(c, LIGHT), contrast(c, DARK)) >= 3, c
    labs = [oklab(np.clip(SEEN[seen] @ linear(c), 0, 1)) for c in colours[:4]]
    apart = [np.linalg.norm(a - b) for i, a in enumerate(labs) for b in labs[:i]]
    assert min(apart) >= 0.07, apart
