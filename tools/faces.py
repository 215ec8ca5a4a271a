"""Cartoon faces with a table of their attributes: a data set that anyone can make, and whose truth
is known. About 4 ms a face on one core, so two minutes for 20,000.

    pip install 'diffusion_scratch[faces]'
    python tools/faces.py faces                             # 20,000 faces of 64 x 64
    python tools/faces.py faces --without hat=yes,beard=red # nobody with a hat has a red beard
    diffusion-train configs/faces.yaml data.root=faces

The folder holds images/00000.png and so on, attributes.csv (a row for each file: its path and its
attributes) and .manifest.json (what made it, how often each value occurs, checksums).

Every attribute is drawn independently of the others, all values with the same probability (`no`
beard has that of two colours). Each attribute can be seen in every face, with two rules for this: a
hat is drawn over the hair so that the hair shows below it, and the hat has the colour of the
clothes. The neckline and the eyebrows vary too, and stand in no table.

Face i depends on the seed and on i alone, so --n 100 makes the first 100 of 20,000. With --without,
the attributes of a face are drawn again until the combination does not occur; all other faces stay
as they are. You may stop this program: the same command goes on, and makes missing or damaged files
again. It refuses a folder that other settings made.
"""
import argparse, csv, hashlib, io, json, math, os, sys
from datetime import datetime, timezone
from functools import lru_cache
from importlib.metadata import version
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image
from tqdm import tqdm

PACKAGES = 'python_avatars', 'resvg_py'
BLOCK = 1000  # faces under one checksum
DRAWN = 4     # pixels, along a side, that are averaged to one

# Attribute -> its values -> what draws them: a part of python_avatars, or a colour
ATTRIBUTES = dict(
    hat=dict(no=None, yes='winter_hat_3'),
    glasses=dict(no='NONE', yes='PRESCRIPTION_2', sunglasses='WAYFARERS'),
    beard=dict(no=None, black='#2C1B18', brown='#724133', blond='#D6B370', red='#C93305'),
    hair=dict(short='PIXIE', bob='BOB', long='STRAIGHT_STRAND', curly='CURLY'),
    hair_color=dict(black='#2C1B18', brown='#724133', blond='#D6B370', red='#C93305',
                    gray='#A7A7AD'),
    skin=dict(light='#FFDBB4', tan='#D08B5B', brown='#AE5D29', dark='#614335'),
    mouth=dict(smile='SMILE', serious='SERIOUS', open='SCREAM_OPEN', teeth='GRIMACE'),
    clothes=dict(red='#FF5C5C', yellow='#FFCF56', green='#59B86E', blue='#5199E4',
                 violet='#8E6BD8'))
WEIGHTS = {('beard', 'no'): 2}  # all others have 1
UNLISTED = dict(neckline=('SHIRT_CREW_NECK', 'SHIRT_V_NECK', 'SHIRT_SCOOP_NECK'),
                eyebrows=('DEFAULT_NATURAL', 'RAISED_EXCITED_NATURAL', 'FLAT_NATURAL'))


# --- what a face has

def choose(options: list, *key):
    "One of the options, by a hash of the key: the same with any version of any library"
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return options[int.from_bytes(digest[:8], 'big') % len(options)]

def weighted(name: str) -> list[str]:
    "The values of an attribute, each as often as its weight"
    return [v for v in ATTRIBUTES[name] for _ in range(WEIGHTS.get((name, v), 1))]

def attributes(seed: int, i: int, without=()) -> dict[str, str]:
    "The attributes of face i, drawn again until no combination of `without` occurs"
    tried = 0
    while True:
        face = {name: choose(weighted(name), seed, i, name, tried) for name in ATTRIBUTES}
        if not any(c.items() <= face.items() for c in without): return face
        tried += 1

def parse_combination(text: str) -> dict[str, str]:
    "'hat=yes,beard=red' -> {'hat': 'yes', 'beard': 'red'}"
    found = {}
    for part in text.split(','):
        name, equals, value = (s.strip() for s in part.partition('='))
        if not equals:
            raise ValueError(f'{part!r} is no attribute=value; write for example hat=yes,beard=red')
        if name not in ATTRIBUTES:
            raise ValueError(f"{name!r} is no attribute; allowed: {', '.join(ATTRIBUTES)}")
        if value not in ATTRIBUTES[name]:
            raise ValueError(f'{name}={value} is not allowed; the values of {name}: '
                             f"{', '.join(ATTRIBUTES[name])}")
        if name in found: raise ValueError(f'{name} is named twice in {text!r}; name it once')
        found[name] = value
    return found

def check_possible(without: list[dict]):
    "Refuse combinations that leave no face at all"
    named = sorted({name for c in without for name in c})
    faces = (dict(zip(named, values)) for values in product(*(ATTRIBUTES[n] for n in named)))
    if not any(all(not c.items() <= f.items() for c in without) for f in faces):
        raise ValueError('--without excludes every face; hold out fewer combinations')


# --- how it is drawn

def packages():
    "python_avatars and resvg_py, or the error that says how to get them"
    try: import python_avatars, resvg_py
    except ImportError as e:
        raise ImportError(f"{e.name or e} is missing, and draws the faces: "
                          f"pip install 'diffusion_scratch[faces]'") from None
    return python_avatars, resvg_py

def raster(svg: str, size: int) -> Image.Image:
    "A drawing as RGBA of DRAWN * size pixels a side: the upper 8/9 of its width, from the middle"
    side = DRAWN * size
    png = packages()[1].svg_to_bytes(svg_string=svg, width=9 * side // 8, skip_system_fonts=True)
    return Image.open(io.BytesIO(png)).convert('RGBA').crop((side // 16, 0, 17 * side // 16, side))

@lru_cache(maxsize=400)  # layers are few, faces are many
def layer(groups: tuple, size: int, **parts) -> Image.Image:
    "Some groups of an avatar's drawing, such as Face, without the others"
    p = packages()[0]
    plain = dict(style='TRANSPARENT', clothing='NONE', mouth='SERIOUS', eyebrows='NONE',
                 eyes='DEFAULT', nose='DEFAULT', top='NONE', facial_hair='NONE', accessory='NONE',
                 shirt_graphic='SKULL')  # not drawn; the default is random
    kinds = dict(style=p.AvatarStyle, clothing=p.ClothingType, mouth=p.MouthType,
                 eyebrows=p.EyebrowType, eyes=p.EyeType, nose=p.NoseType, top=p.HairType,
                 facial_hair=p.FacialHairType, accessory=p.AccessoryType,
                 shirt_graphic=p.ClothingGraphic)
    svg = p.Avatar(**{k: kinds[k][v] if k in kinds else v for k, v in (plain | parts).items()})
    root = ElementTree.fromstring(svg.render())
    [whole] = [g for g in root if g.get('id', '').endswith('Avataaar/Default')]
    for g in list(whole):
        if g.get('id', '').removeprefix('transparent_') not in groups: whole.remove(g)
    return raster(ElementTree.tostring(root, encoding='unicode'), size)

def darker(color: str, by=0.72) -> str:
    return '#' + ''.join(f'{round(int(color[i:i + 2], 16) * by):02x}' for i in (1, 3, 5))

@lru_cache
def hat(part: str, color: str, size: int) -> Image.Image:
    "The hat alone, wider and lower than the package has it, so that hair shows below it"
    from python_avatars.svg_parser import SVGParser
    svg = SVGParser(Path(packages()[0].__file__).parent/'avatar_parts'/'top'/'hat'/f'{part}.svg')
    svg.get_element_by_id('Fabric-Color').set_attr('fill', color)
    placed = '<g transform="translate(133 4) scale(1.08 0.8) translate(-133 -2)">'
    text = svg.render().replace('#F4F4F4', darker(color))  # the brim and the bobble
    return raster(text.replace('</defs>', '</defs>' + placed).replace('</svg>', '</g></svg>'), size)

def draw(face: dict, seed: int, i: int, size: int=64) -> Image.Image:
    "A face on white, drawn at DRAWN times its size and averaged"
    of = {name: ATTRIBUTES[name][value] for name, value in face.items()}
    free = {name: choose(options, seed, i, name) for name, options in UNLISTED.items()}
    body = layer(('Body', 'Clothing'), size, skin_color=of['skin'], clothing=free['neckline'],
                 clothing_color=of['clothes'])
    features = layer(('Face',), size, mouth=of['mouth'], eyebrows=free['eyebrows'])
    head = layer(('Top',), size, top=of['hair'], hair_color=of['hair_color'],
                 facial_hair='BEARD_MEDIUM' if of['beard'] else 'NONE',
                 facial_hair_color=of['beard'] or '#000000', accessory=of['glasses'])
    picture = Image.alpha_composite(Image.new('RGBA', body.size, 'white'), body)
    for above in (features, head): picture = Image.alpha_composite(picture, above)
    if face['hat'] == 'yes':
        top = 11 * picture.height // 64  # above this line, hair would stand out of the hat
        picture.paste('white', (0, 0, picture.width, top))
        picture = Image.alpha_composite(picture, hat(of['hat'], of['clothes'], size))
    return picture.convert('RGB').reduce(DRAWN)


# --- the folder

def write(file: Path, content: bytes):
    "A file that appears whole or not at all"
    part = file.with_name(f'.{os.getpid()}-{file.name}')
    try:
        part.write_bytes(content)
        os.replace(part, file)
    finally: part.unlink(missing_ok=True)

def image_file(i: int) -> str: return f'images/{i:05d}.png'

def read(file: Path, size: int) -> bytes | None:
    "The pixels of a face; None if the file is missing or damaged"
    try:
        with Image.open(file) as im: im.verify()  # the checksums that a PNG carries
        with Image.open(file) as im:
            return im.tobytes() if (im.mode, im.size) == ('RGB', (size, size)) else None
    except Exception: return None  # a decoder may raise any error on a damaged file

def table(rows: list[dict]) -> bytes:
    "attributes.csv"
    text = io.StringIO(newline='')
    columns = csv.DictWriter(text, ['file', *ATTRIBUTES], lineterminator='\n')
    columns.writeheader()
    columns.writerows(dict(file=image_file(i)) | row for i, row in enumerate(rows))
    return text.getvalue().encode()

def settings(seed: int, size: int, without: list[dict]) -> dict:
    "What decides the pixels"
    return dict(seed=seed, size=size, without=without, drawn_by={p: version(p) for p in PACKAGES})

def started(folder: Path, wanted: dict) -> dict:
    "The manifest of a folder that these settings began, or a new one. Refuses other folders"
    file = folder/'.manifest.json'
    if not file.exists():
        there = folder.iterdir() if folder.exists() else ()
        if others := [f.name for f in there if not f.name.startswith('.')]:
            raise ValueError(f'{folder} holds {others[0]!r} and no .manifest.json, so this program '
                             'did not make it; name an empty or a new folder')
        return wanted | dict(n=0, blocks=[])
    try: found = json.loads(file.read_text(encoding='utf-8'))
    except ValueError: raise ValueError(f'{file} is damaged; delete it and {folder}/images, and '
                                        'give the command again') from None
    for k, v in wanted.items():
        if found.get(k) != v:
            raise ValueError(f'{folder} was made with {k} = {found.get(k)}, not {v}; name another '
                             'folder, or give the settings that made it')
    return found

def make(folder: Path, n: int=20_000, seed: int=0, size: int=64, without: list[dict]=(),
         progress=True) -> dict:  # the manifest
    "Make the faces that a folder lacks, and its table and manifest"
    packages()
    without = list(without)
    check_possible(without)
    manifest = started(folder, settings(seed, size, without))
    if n < manifest['n']:
        raise ValueError(f"{folder} holds {manifest['n']:,} faces, more than n = {n:,}; "
                         'name another folder')
    folder.mkdir(parents=True, exist_ok=True)
    rows = [attributes(seed, i, without) for i in range(n)]
    if n > manifest['n']: manifest['blocks'] = manifest['blocks'][:manifest['n'] // BLOCK]
    manifest |= dict(n=n, complete=False)
    known, blocks = manifest['blocks'], []
    keep_manifest(folder, manifest)
    (folder/'images').mkdir(exist_ok=True)
    write(folder/'attributes.csv', table(rows))
    with tqdm(total=n, desc='faces', unit='face', disable=not progress) as bar:
        for first in range(0, n, BLOCK):
            span, wanted = range(first, min(first + BLOCK, n)), known[len(blocks):len(blocks) + 1]
            digest = make_block(folder, rows, span, seed, size, bar)
            if wanted and digest != wanted[0]:  # a file was exchanged for another whole one
                bar.update(-len(span))
                digest = make_block(folder, rows, span, seed, size, bar, again=True)
            blocks.append(digest)
            manifest['blocks'] = blocks + known[len(blocks):]
            keep_manifest(folder, manifest)
    counts = {name: {v: sum(r[name] == v for r in rows) for v in values}
              for name, values in ATTRIBUTES.items()}
    pixels = hashlib.sha256(''.join(blocks).encode()).hexdigest()
    manifest |= dict(complete=True, counts=counts, pixels_sha256=pixels,
                     table_sha256=hashlib.sha256(table(rows)).hexdigest(),
                     date=datetime.now(timezone.utc).isoformat(timespec='seconds'))
    keep_manifest(folder, manifest)
    return manifest

def make_block(folder: Path, rows: list, span: range, seed: int, size: int, bar,
               again=False) -> str:
    "Draw what is missing of a block of faces, or all of it again; the SHA-256 of its pixels"
    digest = hashlib.sha256()
    for i in span:
        file = folder/image_file(i)
        pixels = None if again else read(file, size)
        if pixels is None:
            image, png = draw(rows[i], seed, i, size), io.BytesIO()
            image.save(png, 'PNG')
            write(file, png.getvalue())
            pixels = image.tobytes()
        digest.update(pixels)
        bar.update()
    return digest.hexdigest()

def keep_manifest(folder: Path, manifest: dict):
    first = dict(made_by='tools/faces.py of diffusion_scratch',
                 license='python_avatars: MIT, (c) its authors')
    text = json.dumps(first | manifest, indent=1, ensure_ascii=False) + '\n'
    write(folder/'.manifest.json', text.encode())


def whole(least: int, most: int, even=False):
    "A whole number in a range"
    def parse(text: str) -> int:
        value = int(text) if text.lstrip('-').isdigit() else None
        if value is None or not least <= value <= most or even and value % 16:
            kind = f'a multiple of 16 from {least} to {most}' if even else \
                   f'a whole number from {least:,} to {most:,}'
            raise argparse.ArgumentTypeError(f'{text!r}: {kind} is allowed')
        return value
    return parse

def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    values = '\n'.join(f"  {name:<10} {', '.join(v)}" for name, v in ATTRIBUTES.items())
    p.epilog = f'attributes and their values:\n{values}'
    p.add_argument('folder', type=Path, help='where the faces go; it is made if it is missing')
    p.add_argument('--n', type=whole(1, 99_999), default=20_000, help='faces (default 20000)')
    p.add_argument('--seed', type=whole(0, 2**31 - 1), default=0, help='default 0')
    p.add_argument('--size', type=whole(32, 256, even=True), default=64,
                   help='height and width, a multiple of 16 (default 64)')
    p.add_argument('--without', action='append', default=[], metavar='A=V,B=W',
                   help='a combination that never occurs; may be given several times')
    a = p.parse_args()
    try:
        without = [parse_combination(text) for text in a.without]
        m = make(a.folder, a.n, a.seed, a.size, without)
    except (ValueError, ImportError, OSError) as e: sys.exit(f'{p.prog}: {e}')
    except KeyboardInterrupt: sys.exit('\nstopped; the same command goes on')
    count = math.prod(map(len, ATTRIBUTES.values()))
    print(f"{m['n']:,} faces of {m['size']} x {m['size']} in {a.folder} (of {count:,} combinations "
          f"of attributes); pixels {m['pixels_sha256'][:16]}, table {m['table_sha256'][:16]}")


if __name__ == '__main__': main()
