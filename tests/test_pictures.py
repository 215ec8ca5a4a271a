"Sheets, animations, curves and text: pixel for pixel, and whole files or none"
import os, signal, subprocess, sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_scratch import pictures
from diffusion_scratch.data import to_float
from diffusion_scratch.pictures import as_text, grid, save_animation, save_loss_curve
from diffusion_scratch.pictures import terminal_text
from diffusion_scratch.training import Metrics

@contextmanager
def full_disk(limit):
    "No file may grow beyond `limit` bytes: OSError in the middle of writing, as on a full disk"
    resource = pytest.importorskip('resource')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)

def noise(*shape):
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=g)

# ---- grid

@pytest.mark.parametrize('C', [1, 3])
def test_a_grid_holds_every_image_in_its_place(C):
    x = noise(5, C, 4, 6)
    a = torch.from_numpy(np.array(grid(x, columns=3, scale=2)))[::2, ::2]
    assert a.shape == (2 * 5 + 1, 3 * 7 + 1, 3)
    for i in range(5):
        r, c = divmod(i, 3)
        image = a[1 + 5*r:5 + 5*r, 1 + 7*c:7 + 7*c].permute(2, 0, 1)
        assert torch.equal(image, x[i].expand(3, 4, 6))
    assert np.array_equal(grid(to_float(x), 3, 2), grid(x, 3, 2))

@pytest.mark.parametrize('n', [1, 2, 7, 8, 9, 24])
@pytest.mark.parametrize('columns', [1, 5, 8, 30])
@pytest.mark.parametrize('C', [1, 3])
def test_a_grid_is_that_of_torchvision(C, columns, n):
    from torchvision.utils import make_grid
    x = noise(n, C, 5, 3)
    theirs = make_grid(x, nrow=columns, padding=1, pad_value=128).permute(1, 2, 0)
    assert np.array_equal(np.asarray(grid(x, columns)), theirs.numpy())

@pytest.mark.parametrize('shape', [(1, 8, 8), (2, 2, 8, 8), (2, 4, 8, 8)])
def test_grids_that_are_refused(shape):
    with pytest.raises(ValueError, match=r'C = 1 or 3'): grid(torch.zeros(shape))

def test_torchvision_is_not_imported():
    "It costs more CPU time than all the rest: every `--help` would wait for it"
    program = "import sys, diffusion_scratch.cli; assert 'torchvision' not in sys.modules"
    env = os.environ | dict(PYTHONPATH=str(Path(pictures.__file__).parent.parent))
    subprocess.run([sys.executable, '-c', program], check=True, env=env)

# ---- files

@pytest.mark.parametrize('channels', [1, 3])
def test_save_animation(channels, tmp_path):
    batches = [torch.full((4, channels, 6, 6), v) for v in (-1., 0., 1.)]
    save_animation(batches, tmp_path/'a.gif', 2, seconds=3.)
    times, grays = [], []
    with Image.open(tmp_path/'a.gif') as im:
        assert im.n_frames == 3 and im.size == (15, 15)
        for i in range(3):
            im.seek(i)
            times.append(im.info['duration'])
            grays.append(im.convert('L').getpixel((3, 3)))
    assert times == [1000, 1000, 2000] and grays == pytest.approx([0, 128, 255], abs=3)

def metrics(n): return [Metrics(i + 1, 0, 1 / (i + 1), 1e-3, 1., 1.) for i in range(n)]

@pytest.mark.parametrize('steps', [1, 2, 49, 500])
def test_save_loss_curve(steps, tmp_path):
    save_loss_curve(metrics(steps), tmp_path/'loss.png')
    with Image.open(tmp_path/'loss.png') as im: assert im.size == (840, 480)
    assert os.listdir(tmp_path) == ['loss.png']

def test_a_file_is_whole_or_not_there(tmp_path):
    "The disk is full in the middle of a picture: the old one is still there, and nothing else"
    old = tmp_path/'a.gif'
    old.write_bytes(b'the old one')
    with full_disk(1000):
        with pytest.raises(OSError): save_animation([noise(9, 3, 28, 28)] * 3, old, 3)
        with pytest.raises(OSError): save_loss_curve(metrics(9), tmp_path/'loss.png')
    assert os.listdir(tmp_path) == ['a.gif'] and old.read_bytes() == b'the old one'

# ---- text

def test_as_text_has_the_bits_of_braille():
    """Unicode's order of the 8 dots: 1, 2, 3 down the left, 4, 5, 6 down the right, then 7 and 8
    below (U+2800 plus the bits)"""
    places = [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (3, 0), (3, 1)]
    for dot, (row, column) in enumerate(places):
        x = torch.full((1, 1, 4, 2), -1.)
        x[0, 0, row, column] = 1
        assert as_text(x) == chr(0x2800 + 2**dot)

def test_as_text_breaks_lines_and_pads():
    lines = as_text(torch.ones(5, 1, 6, 7), width=8).splitlines()
    assert [len(line) for line in lines] == [8, 8, 8, 8, 4, 4]
    assert lines[0][0] == '⣿' and lines[0][3] == '⡇'  # whole; half wide
    assert lines[1][0] == '⠛' and lines[1][3] == '⠃'  # half high; both

@pytest.mark.parametrize('shape, encoding, terminal, shown', [
    ((1, 1, 8, 8), 'UTF-8', True, True), ((1, 1, 8, 8), 'cp1252', True, False),
    ((1, 1, 8, 8), 'UTF-8', False, False), ((1, 3, 8, 8), 'UTF-8', True, False),
    ((1, 1, 8, 161), 'UTF-8', True, False)])
def test_where_a_terminal_shows_text(shape, encoding, terminal, shown, monkeypatch):
    class Output:
        def isatty(self): return terminal
    output, x = Output(), torch.zeros(shape)
    output.encoding = encoding
    with monkeypatch.context() as m:
        m.setattr(sys, 'stdout', output)
        text = terminal_text(x)
    assert text == (as_text(x) + '\n' if shown else '')
