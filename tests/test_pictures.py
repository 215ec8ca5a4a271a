"Sheets, animations, curves and text: pixel for pixel, and whole files or none"
import os, subprocess, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pytest, torch
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

@pytest.mark.parametrize('images, options, message', [
    *[(torch.zeros(shape), {}, 'C = 1 or 3')
      for shape in ((1, 8, 8), (2, 2, 8, 8), (2, 4, 8, 8))],
    (torch.zeros(0, 1, 8, 8), {}, '0 images of 8 x 8 pixels make no sheet'),
    (noise(2, 1, 0, 8), {}, 'make no sheet'),
    *[(noise(2, 1, 8, 8), {name: value}, f'{name} = {value}; a whole number >= 1')
      for name in ('columns', 'scale') for value in (0, -1, 1.5)],
    *[(noise(2, 1, 8, 8), dict(scale=scale), r'sheet of .* images of 8 x 8 .*needs more memory '
       r'than the .* GB of this machine; show fewer images, or lower scale')
      for scale in (10**5, 10**200)]])
def test_sheets_that_cannot_be_are_refused_in_a_line(images, options, message):
    with pytest.raises(ValueError, match=message) as e: grid(images, **options)
    assert '\n' not in str(e.value)

def still(n, size=8): return torch.zeros(1, 1, 1, 1).expand(n, 1, size, size)

def animation(pictures_, name='a.gif', columns=2, seconds=4.):
    return lambda folder: save_animation(pictures_, folder/name, columns, seconds)

@pytest.mark.parametrize('save, message', [
    (animation([]), 'needs one batch of images or more, not 0'),
    *((animation([still(4)], name), f'{name} must end in .gif') for name in ('a.png', 'a')),
    (animation([still(4)], columns=0), 'columns = 0'),
    (animation([still(4)], seconds=-1.), 'seconds = -1.0; 0 to 600 are allowed'),
    (animation([still(4)], seconds=1e9), 'seconds = 1000000000.0'),
    (animation([still(4)], seconds=float('nan')), 'seconds = nan'),
    (animation([still(8000)], columns=1), '8,000 images of 8 x 8 in 1 columns are 10 x 72,001 '
                                          'pixels, and a GIF holds 65,535 a side; show fewer'),
    (animation([still(8000)], columns=8000), '72,001 x 10 pixels'),
    *((lambda folder, name=name: save_loss_curve(metrics(3), folder/name),
       f'{name} must end in .png or') for name in ('loss', 'loss.xyz', '.png'))])
def test_files_that_cannot_be_are_refused_in_a_line_and_nothing_is_written(save, message, tmp_path):
    with pytest.raises(ValueError, match=message) as e: save(tmp_path)
    assert '\n' not in str(e.value) and os.listdir(tmp_path) == []

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('losses', [
    *([1 / (i + 1) for i in range(n)] for n in (1, 2, 49, 500)),
    [], [float('nan')], [float('inf'), 1.], [0., 0.], [-1., 2.]], ids=lambda x: str(x[:2]))
def test_a_loss_curve_is_one_picture_of_odd_losses_too(losses, tmp_path):
    rows = [m._replace(loss=loss) for m, loss in zip(metrics(500), losses)]
    save_loss_curve(rows, tmp_path/'loss.png')
    with Image.open(tmp_path/'loss.png') as im: assert im.size == (840, 480)
    assert os.listdir(tmp_path) == ['loss.png']

def test_commands_do_not_wait_for_what_they_do_not_use():
    "Each of these takes up to seconds to import, and every `--help` would wait for it"
    program = """import sys, diffusion_scratch.cli
print(*{'torchvision', 'matplotlib', 'sklearn', 'mlxtend', 'tensorboard', 'torchmetrics',
        'diffusers', 'onnx', 'onnxscript', 'IPython'} & sys.modules.keys())"""
    p = subprocess.run([sys.executable, '-c', program], check=True, text=True, capture_output=True,
                       cwd=Path(pictures.__file__).parent.parent)
    assert p.stdout == '\n'

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

def test_the_largest_gif_is_written(tmp_path):
    "7,281 rows of 9 pixels and a line are 65,530; and a name may be text"
    save_animation([still(7281)] * 2, str(tmp_path/'a.GIF'), 1, seconds=600)
    with Image.open(tmp_path/'a.GIF') as im: assert im.size == (10, 65530) and im.n_frames >= 1

def metrics(n): return [Metrics(i + 1, 0, 1 / (i + 1), 1e-3, 1., 1.) for i in range(n)]

def test_a_file_is_whole_or_not_there(tmp_path, full_disk):
    "The disk is full in the middle of a picture: the old one is still there, and nothing else"
    old = tmp_path/'a.gif'
    old.write_bytes(b'the old one')
    with full_disk(1000):
        with pytest.raises(OSError): save_animation([noise(9, 3, 28, 28)] * 3, old, 3)
        with pytest.raises(OSError): save_loss_curve(metrics(9), tmp_path/'loss.png')
    assert os.listdir(tmp_path) == ['a.gif'] and old.read_bytes() == b'the old one'

def test_text_has_the_bits_of_braille_breaks_lines_and_pads():
    "Unicode: dots 1, 2, 3 down the left, 4, 5, 6 down the right, 7 and 8 below, from U+2800"
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
