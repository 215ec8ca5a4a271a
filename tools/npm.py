"""Packages from npm, taken when the site is built: none is committed, none loaded from there."""
import re, shutil, subprocess, tarfile, tempfile
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent/'.cache'


def moved(part: Path, folder: Path) -> Path:
    "Move a whole folder to its place, unless another process was there first"
    try: part.rename(folder)
    except OSError:
        if not folder.exists(): raise
    return folder


def npm_files(package: str, number: str, wanted: str) -> Path | None:
    "The files of an npm package whose names match, kept in .cache; none without npm"
    folder = CACHE/'npm'/f'{package}-{number}'
    if folder.exists(): return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as part:
        pack = ['npm', 'pack', f'{package}@{number}', '--silent']
        if not shutil.which('npm'): return None
        if subprocess.run(pack, cwd=part, capture_output=True).returncode: return None
        [archive] = Path(part).glob('*.tgz')
        with tarfile.open(archive) as t:
            t.extraction_filter = getattr(tarfile, 'data_filter', None)  # none before 3.11.4
            t.extractall(part, [m for m in t.getmembers() if re.search(wanted, m.name)])
        return moved(Path(part)/'package', folder)
