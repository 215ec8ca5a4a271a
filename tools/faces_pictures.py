"""What the chapter Faces shows of the data set without the packages that draw it: a grid of the
first faces, a row of each attribute's values, faces of the combination that is held out, and the
counts of each pair of values.

    python tools/faces_pictures.py    # into nbs/assets/faces/: a minute

Needs `pip install 'diffusion_scratch[faces]'`. data.json says what made the files.
"""
import argparse, json
from datetime import datetime, timezone
from itertools import combinations
from pathlib import Path

import faces
from PIL import Image

ASSETS = Path(__file__).resolve().parent.parent/'nbs'/'assets'/'faces'
SEED, N, WITHOUT = 0, 20_000, dict(hat='yes', beard='red')
ONE = dict(hat='no', glasses='no', beard='no', hair='short', hair_color='brown', skin='light',
           mouth='smile', clothes='blue')  # the other values of this face are shown one by one


def sheet(pictures: list, columns: int) -> Image.Image:
    "Faces in rows, without a gap"
    side, rows = pictures[0].width, -(-len(pictures) // columns)
    whole = Image.new('RGB', (columns * side, rows * side), 'white')
    for k, picture in enumerate(pictures):
        whole.paste(picture, (k % columns * side, k // columns * side))
    return whole

def keep(name: str, picture: Image.Image):
    picture.save(ASSETS/f'{name}.webp', lossless=True, method=6)

def pairs(rows: list[dict]) -> dict:
    "For each two attributes, how often each two values occur together"
    table = {}
    for a, b in combinations(faces.ATTRIBUTES, 2):
        counts = {(v, w): 0 for v in faces.ATTRIBUTES[a] for w in faces.ATTRIBUTES[b]}
        for row in rows: counts[row[a], row[b]] += 1
        table[f'{a}, {b}'] = [[counts[v, w] for w in faces.ATTRIBUTES[b]]
                              for v in faces.ATTRIBUTES[a]]
    return table

def main():
    argparse.ArgumentParser(description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    ASSETS.mkdir(parents=True, exist_ok=True)
    whole = [faces.attributes(SEED, i) for i in range(N)]
    held = [faces.attributes(SEED, i, [WITHOUT]) for i in range(N)]
    keep('grid', sheet([faces.draw(held[i], SEED, i) for i in range(96)], 16))
    for name, values in faces.ATTRIBUTES.items():
        keep(name, sheet([faces.draw(ONE | {name: v}, SEED, 0) for v in values], len(values)))
    out = [i for i in range(N) if WITHOUT.items() <= whole[i].items()]
    keep('held_out', sheet([faces.draw(whole[i], SEED, i) for i in out[:16]], 16))
    made = dict(command='python tools/faces_pictures.py', seed=SEED, n=N, without=WITHOUT,
                drawn_by=faces.settings(SEED, 64, [])['drawn_by'],
                date=datetime.now(timezone.utc).isoformat(timespec='seconds'))
    tables = dict(all=pairs(whole), without=pairs(held))
    facts = dict(made=made, values={k: list(v) for k, v in faces.ATTRIBUTES.items()},
                 changed=len(out), pairs=tables)
    faces.write(ASSETS/'data.json', (json.dumps(facts, separators=(',', ':')) + '\n').encode())


if __name__ == '__main__': main()
