"Sheets, animations, curves and text: pixel for pixel, and whole files or none"
import os, subprocess, sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_scratch import pictures
from diffusion_scratch.data import to_float
from diffusion_scratch.pictures import as_text, grid, save_animation, save_loss_curve, terminal_text
from diffusion_scratch.training import Metrics

def noise(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(0))

@pytest.mark.parametrize('n', [1, 2, 7, 8, 9, 24])
@pytest.mark.parametrize('columns', [1, 5, 8, 30])
@pytest.mark.parametrize('C', [1, 3])
def test_a_grid_is_that_of_torchvision_for_bytes_and_floats_and_any_scale(C, columns, n):
    from torchvision.utils import make_grid
    x = noise(n, C, 5, 3)
    theirs = make_grid(x, nrow=columns, padding=1, pad_value=128).permute(1, 2, 0).numpy()
    assert np.array_equal(grid(x, columns), theirs)
    assert np.array_equal(grid(to_float(x), columns, 2), theirs.repeat(2, 0).repeat(2, 1))

@pytest.mark.parametrize('shape', [(1, 8, 8), (2, 2, 8, 8), (2, 4, 8, 8)])
def test_grids_that_are_refused(shape):
    with pytest.raises(ValueError, match=r'C = 1 or 3'): grid(torch.zeros(shape))

def test_torchvision_is_not_imported():
    "It costs more CPU time than all the rest: every `--help` would wait for it"
    program = "import sys, diffusion_scratch.cli; assert 'torchvision' not in sys.modules"
    root = Path(pictures.__file__).parent.parent
    subprocess.run([sys.executable, '-c', program], check=True, cwd=root)

@pytest.mark.parametrize('channels', [1, 3])
def test_an_animation_shows_each_moment_and_the_last_for_two_seconds(channels, tmp_path):
    batches, seen = [torch.full((4, channels, 6, 6), v) for v in (-1., 0., 1.)], []
    save_animation(batches, tmp_path/'a.gif', 2, seconds=3.)
    with Image.open(tmp_path/'a.gif') as im:
        assert im.n_frames == 3 and im.size == (15, 15)
        for i in range(3):
            im.seek(i)
            seen += im.info['duration'], im.convert('L').getpixel((3, 3))
    assert seen[::2] == [1000, 1000, 2000] and seen[1::2] == pytest.approx([0, 128, 255], abs=3)

def metrics(n): return [Metrics(i + 1, 0, 1 / (i + 1), 1e-3, 1., 1.) for i in range(n)]

@pytest.mark.parametrize('steps', [1, 2, 49, 500])
def test_a_loss_curve_is_one_picture(steps, tmp_path):
    save_loss_curve(metrics(steps), tmp_path/'loss.png')
    with Image.open(tmp_path/'loss.png') as im: assert im.size == (840, 480)
    assert os.listdir(tmp_path) == ['loss.png']

def test_a_file_is_whole_or_not_there(tmp_path, full_disk):
    "The disk is full in the middle of a picture: the old one is still there, and nothing else"
    old = tmp_path/'a.gif'
    old.write_bytes(b'the old one')
    full_disk(1000)
    with pytest.raises(OSError): save_animation([noise(9, 3, 28, 28)] * 3, old, 3)
    with pytest.raises(OSError): save_loss_curve(metrics(9), tmp_path/'loss.png')
    assert os.listdir(tmp_path) == ['a.gif'] and old.read_bytes() == b'the old one'

def test_text_has_the_bits_of_braille_breaks_lines_and_pads():
    """Unicode's order of the 8 dots: 1, 2, 3 down the left, 4, 5, 6 down the right, then 7 and 8
    below (U+2800 plus the bits)"""
    for dot, place in enumerate([(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (3, 0), (3, 1)]):
        x = torch.full((1, 1, 4, 2), -1.)
        x[0, 0][place] = 1
        assert as_text(x) == chr(0x2800 + 2**dot)
    lines = as_text(torch.ones(5, 1, 6, 7), width=8).splitlines()  # the last is half wide and high
    assert lines == ['⣿⣿⣿⡇' * 2, '⠛⠛⠛⠃' * 2] * 2 + ['⣿⣿⣿⡇', '⠛⠛⠛⠃']

@pytest.mark.parametrize('shape, encoding, terminal, shown', [
    ((1, 1, 8, 8), 'UTF-8', True, True), ((1, 1, 8, 8), 'cp1252', True, False),
    ((1, 1, 8, 8), 'UTF-8', False, False), ((1, 3, 8, 8), 'UTF-8', True, False),
    ((1, 1, 8, 161), 'UTF-8', True, False)])
def test_where_a_terminal_shows_text(shape, encoding, terminal, shown, monkeypatch):
    x, output = torch.zeros(shape), SimpleNamespace(isatty=lambda: terminal, encoding=encoding)
    monkeypatch.setattr(sys, 'stdout', output)
    text = terminal_text(x)
    monkeypatch.undo()
    assert text == (as_text(x) + '\n' if shown else '')
