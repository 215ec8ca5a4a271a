"""Files with one bit flipped, or cut off, and what a reader makes of each"""
import random
from pathlib import Path
from typing import Callable, Iterator

FLIPS, CUTS = 200, 30

def damages(blob: bytes, seed: int=0) -> Iterator[tuple[str, bytes]]:
    "What was done, and the bytes after it: single bits flipped, and cuts, at random places"
    rng = random.Random(seed)
    bits = range(8 * len(blob))
    for i in rng.sample(bits, min(FLIPS, len(bits))):
        bad = bytearray(blob)
        bad[i // 8] ^= 1 << i % 8
        yield f'bit {i} flipped', bytes(bad)
    for n in rng.sample(range(len(blob)), min(CUTS, len(blob))):
        yield f'cut to {n} bytes', blob[:n]

def never_silent(file: Path, read: Callable, same: Callable=lambda a, b: a == b,
                 seed: int=0) -> dict:
    """Every damage to `file` is told of in an error that names the file, or changes nothing of what
    `read()` returns; any error but ValueError and OSError is a traceback for a user. Returns how
    often each happened; the file is whole again afterwards"""
    blob, want, told = file.read_bytes(), read(), dict(refused=0, harmless=0)
    try:
        for what, bad in damages(blob, seed):
            file.write_bytes(bad)
            try: got = read()
            except (ValueError, OSError) as e:
                assert file.name in str(e), f'{what}: the message names no file: {e}'
                told['refused'] += 1
            else:
                assert same(got, want), f'{file.name}, {what}: read as if nothing had happened'
                told['harmless'] += 1
            file.write_bytes(blob)
    finally: file.write_bytes(blob)
    return told
