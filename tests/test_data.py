"Images in, images out: from outside, against hand-made files and other libraries"
import hashlib, json, os, pickle, signal, socket, struct, subprocess, sys, threading, time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.utils.data import Subset, TensorDataset

from diffusion_scratch import data
from diffusion_scratch.data import (DATA, ImageSet, check_varied, cifar10, fingerprint,
                                    image_folder, image_set, mnist, to_float, to_uint8)

EVERY, T = torch.arange(256, dtype=torch.uint8), Image.Transpose
SOME = torch.randint(0, 256, (5, 3, 6, 7), dtype=torch.uint8,
                     generator=torch.Generator().manual_seed(0))
FLOAT, NAN, INF = to_float(SOME), float('nan'), float('inf')

def test_every_byte_lies_where_the_formula_says_and_comes_back():
    "eq-bytes; 1.2e-7 is the last place near 1"
    x = to_float(EVERY)
    assert x.dtype == torch.float32 and x[0] == -1 and x[255] == 1
    np.testing.assert_allclose(x.double().numpy(), np.arange(256) / 127.5 - 1, atol=1.2e-7)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        assert torch.equal(to_uint8(x.to(dtype)), EVERY)

def test_less_than_half_a_byte_is_rounded_away_and_what_lies_outside_is_clamped():
    x, half = to_float(EVERY).double(), 0.5 / 127.5
    for sign in (-1, 1):
        assert torch.equal(to_uint8(x + sign * 0.99 * half), EVERY)
        moved = sign * (to_uint8(x + sign * 1.01 * half).int() - EVERY.int())
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

def test_own_floats_come_back_to_half_a_byte_and_without_labels():
    x = torch.rand(6, 2, 5, 9, generator=torch.Generator().manual_seed(0)) * 2 - 1
    s = ImageSet(x, classes=('a', 'b'), name='own')  # classes without labels are no classes
    got, y = s[:]
    assert (got - x).abs().max() <= 0.5 / 127.5 + 1e-6
    assert y is None and s.num_classes == 0 and s.skipped == ()
    assert repr(s) == "ImageSet('own': 6 images (2, 5, 9))"

def labelled(y): return ImageSet(torch.zeros(3, 1, 8, 8), y, classes=('a', 'b'))

@pytest.mark.parametrize('make', [ImageSet, image_set])
@pytest.mark.parametrize('images, message', [
    (torch.zeros(0, 1, 8, 8), r'not \(0, 1, 8, 8\)'), (torch.zeros(8, 8), r'not \(8, 8\)'),
    (SOME[0], r'not \(3, 6, 7\)'), (SOME[:, :, :0], r'not \(5, 3, 0, 7\)'),
    (1.01 * torch.ones(2, 1, 8, 8), r'\[1.01, 1.01\]'), (2 * FLOAT, r'\[-2, 2\]'),
    (255 * torch.ones(2, 1, 8, 8), r'\[255, 255\]'), (NAN * FLOAT, 'nan'),
    (torch.tensor([0., NAN]).view(1, 1, 1, 2), 'nan'),
    (torch.tensor([0., INF]).view(1, 1, 1, 2), 'inf'),
    (torch.zeros(9, 32, 32, 3, dtype=torch.uint8), r'channels last.*permute\(0, 3, 1, 2\)')])
def test_images_that_are_refused(make, images, message):
    with pytest.raises(ValueError, match=message): make(images)

@pytest.mark.parametrize('make, source, message', [
    (to_uint8, torch.tensor([0.]*5 + [NAN]*3), '3 of 8 pixels are NaN'),
    (labelled, [0, 1], r'labels have shape \(2,\); 3 images need \(3,\)'),
    (labelled, np.eye(3, dtype=int), r'\(3, 3\)'),
    (labelled, [0, 1, -1], r'-1..1; allowed are 0..1'),
    (labelled, [0, 1, 2], r'0..2; allowed are 0..1, one for each class'),
    *[(lambda s: image_set(s, [0, 1]), s, r'5 images need \(5,\)')
      for s in (SOME, list(SOME), ImageSet(SOME))],
    (image_set, [*SOME[:2], SOME[2, :, :5]], r'image 2 is \(3, 5, 7\).* before it \(3, 6, 7\)'),
    (image_set, [SOME[0], SOME[1, :1]], r'image 1 is \(1, 6, 7\)'),
    (image_set, [SOME[0], Image.new('L', (7, 6))], r'image 1 is \(1, 6, 7\)'),
    (image_set, [SOME[0, 0]], r'image 0 is \(6, 7\); it must be \(C,H,W\)'),
    (image_set, list(torch.zeros(3, 32, 32, 3, dtype=torch.uint8)), 'channels last'),
    (image_set, [FLOAT[0], SOME[1].float()], r'the values of image 1 lie in \[\d+, 25\d\]'),
    (image_set, [FLOAT[0], NAN * FLOAT[1]], 'image 1 lie in .nan, nan'),
    (image_set, [Image.new(m, (4, 4)) for m in 'LF'], 'image 1: its pixels are 32-bit'),
    (image_set, [(SOME[0], 1), SOME[1]], 'item 1 has no label'),
    (image_set, [(SOME[0], -1)], '-1..-1; allowed'), (image_set, [], 'holds no items')])
def test_values_that_are_refused(make, source, message):
    with pytest.raises(ValueError, match=message): make(source)

@pytest.mark.parametrize('make, source, message', [
    (to_float, FLOAT, 'torch.float32'), (to_float, SOME.long(), 'torch.int64'),
    (ImageSet, SOME.long(), 'torch.int64'), (image_set, SOME.long(), 'torch.int64'),
    (labelled, [0., 1., 2.], 'torch.float32'),
    (image_set, [SOME[0].long()], 'image 0 must be uint8.*int64'),
    (image_set, [(SOME[0], 1), (SOME[1], 'cat')], "label of item 1 is 'cat'; .* a whole number"),
    (image_set, [(SOME[0], 1), (SOME[1], 0.5)], 'label of item 1 is 0.5'),
    (image_set, [(SOME[0], 1, 2)], 'item 0 is a tuple; allowed are'),
    (image_set, [{'image': SOME[0]}], 'item 0 is a dict'),
    (image_set, 'a/path', 'cannot read a str.*image_folder'),
    (image_set, Path('a'), 'image_folder'), (image_set, iter(SOME), 'with a length'),
    (image_set, Image.new('L', (4, 4)), 'cannot read a Image'),
    (image_set, {'a': SOME}, 'cannot read a dict')])
def test_types_that_are_refused(make, source, message):
    with pytest.raises(TypeError, match=message): make(source)

def test_data_in_0_to_1_are_taken_with_one_warning():
    from torchvision.datasets import FakeData
    from torchvision.transforms import ToTensor
    for make in (lambda: ImageSet(torch.linspace(0, 1, 64).view(1, 1, 8, 8)),
                 lambda: image_set(FakeData(5, (1, 8, 8), transform=ToTensor()))):
        with pytest.warns(UserWarning, match=r'2 \* images - 1') as found: make()
        assert len(found) == 1

def test_mnist_mini_is_500_real_digits_of_each_class(mini):
    assert torch.equal(mini.labels.bincount(), torch.full((10,), 500)) and len(mini) == 5000
    assert mini.classes == tuple('0123456789') and mini.num_classes == 10 and mini.skipped == ()
    border, whole = mini.images[:, :, 0].float().mean(), mini.images.float().mean()
    assert border < 1 and 30 < whole < 36                          # MNIST's mean gray is 33.3
    assert len({im.numpy().tobytes() for im in mini.images}) == 5000  # no digit twice

def test_every_digit_of_mnist_mini_is_a_digit_of_mnist(mini, whole_mnist):
    whole, test = (mnist(whole_mnist, train=t, download=False) for t in (True, False))
    assert len(whole) == 60000 and len(test) == 10000
    known = {im.numpy().tobytes(): y for im, y in zip(whole.images, whole.labels.tolist())}
    for im, y in zip(mini.images, mini.labels.tolist()): assert known[im.numpy().tobytes()] == y

def write_idx(file, array):
    sizes = struct.pack(f'>{array.ndim}I', *array.shape)
    file.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.numpy().tobytes())

def test_mnist_reads_files_in_its_own_format(mini, tmp_path):
    "mnist_mini in MNIST's layout: 417 digits to train on, 50 to test on"
    raw, parts = tmp_path/'MNIST'/'raw', dict(train=slice(0, 5000, 12), t10k=slice(5, 5000, 100))
    raw.mkdir(parents=True)
    for part, s in parts.items():
        write_idx(raw/f'{part}-images-idx3-ubyte', mini.images[s, 0])
        write_idx(raw/f'{part}-labels-idx1-ubyte', mini.labels[s].byte())
    train = mnist(tmp_path)  # nothing is missing, so nothing is fetched
    test = mnist(str(tmp_path), train=False, download=False)
    for found, s in zip((train, test), parts.values()):
        assert torch.equal(found.images, mini.images[s]) and found.shape == (1, 28, 28)
        assert torch.equal(found.labels, mini.labels[s]) and found.num_classes == 10
    f = raw/'train-images-idx3-ubyte'
    f.write_bytes(f.read_bytes()[:5000])
    with pytest.raises(FileNotFoundError, match='delete damaged ones first.*mnist_mini'):
        mnist(tmp_path)

def test_cifar10_reads_files_in_its_own_format(tmp_path, monkeypatch):
    "The format stores planes: red, green, blue"
    from torchvision.datasets import CIFAR10
    folder, rng, md5 = tmp_path/CIFAR10.base_folder, np.random.default_rng(0), {}
    folder.mkdir()
    def write(name, obj):
        (folder/name).write_bytes(pickle.dumps(obj))
        md5[name] = hashlib.md5((folder/name).read_bytes()).hexdigest()
    planes = {name: rng.integers(0, 256, (4, 3072), dtype=np.uint8)
              for name, _ in CIFAR10.train_list + CIFAR10.test_list}
    for i, (n, p) in enumerate(planes.items()): write(n, dict(data=p, labels=[i, 9, 0, 1]))
    write('batches.meta', dict(label_names=list('abcdefghij')))
    for which in ('train_list', 'test_list'):
        monkeypatch.setattr(CIFAR10, which, [[n, md5[n]] for n, _ in getattr(CIFAR10, which)])
    monkeypatch.setattr(CIFAR10, 'meta', {**CIFAR10.meta, 'md5': md5['batches.meta']})
    train, test = (cifar10(tmp_path, train=t, download=False) for t in (True, False))
    assert train.shape == (3, 32, 32) and len(train) == 20 and train.images.is_contiguous()
    assert train.classes == tuple('abcdefghij') and train.labels[::4].tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(train.images.flatten(1), np.concatenate([*planes.values()][:5]))
    assert np.array_equal(test.images[2, 1].flatten(), planes['test_batch'][2, 1024:2048])  # green

@pytest.fixture(params=['timed out', 'refused'])
def server(request):
    """One that takes calls and says nothing (and hangs up after 20 seconds, which is another
    error than impatience), or one that is not there"""
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
    with pytest.raises(FileNotFoundError, match='download=False.*not found.*mnist_mini'):
        load(tmp_path, download=False)
    assert list(tmp_path.iterdir()) == []
    message = f'{name} in .*{tmp_path.name}.*{why}.*Connect to the network.*mnist_mini'
    with pytest.raises(FileNotFoundError, match=message): load(tmp_path)
    assert socket.getdefaulttimeout() == 77

def picture(h=30, w=50):
    y, x = np.mgrid[:h, :w]
    return Image.fromarray(np.stack([255 * x // w, 255 * y // h, 128 + 0 * x], 2).astype(np.uint8))

def scene(h=90, w=150):
    "With half its contrast, so that palettes and JPEG keep it well"
    return Image.blend(picture(h, w), Image.new('RGB', (w, h), 'gray'), 0.5)

def folder(root, size=8, *more, **options):
    return image_folder(root, size, *more, progress=False, **options)

def read(tmp_path, im, size, channels=3, name='a.png', **save):
    (tmp_path/'d').mkdir(parents=True, exist_ok=True)
    im.save(tmp_path/'d'/name, **save)
    return folder(tmp_path/'d', size, channels).images[0]

def pixels(im): return torch.from_numpy(np.array(im)).permute(2, 0, 1)

def exif(orientation):
    e = Image.Exif()
    e[274] = orientation
    return e

@pytest.mark.parametrize('h, w, H, W', [(40, 100, 20, 20), (80, 48, 40, 60), (64, 64, 32, 32),
                                        (10, 10, 33, 17)])
def test_the_middle_is_kept_in_proportion(h, w, H, W, tmp_path):
    """eq-cover. Red says the column and green the row that a pixel came from; compare with the
    formula at the middle and near the corners"""
    im = read(tmp_path, picture(h, w), (H, W)).double()
    s = max(H / h, W / w)
    i, j = torch.arange(H // 4, 3 * H // 4), torch.arange(W // 4, 3 * W // 4)
    row = ((i + 0.5 - H / 2) / s + h / 2 - 0.5) * 255 / h
    column = ((j + 0.5 - W / 2) / s + w / 2 - 0.5) * 255 / w
    red, green = im[0, i][:, j], im[1, i][:, j]
    assert (green - row[:, None]).abs().max() < 4 and (red - column[None]).abs().max() < 4

@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK'])
@pytest.mark.parametrize('channels', [1, 3])
def test_modes_agree_with_pillow_where_pillow_is_right(mode, channels, tmp_path):
    im = picture(16, 16).convert(mode)
    want = np.array(im.convert('RGB').convert('L' if channels == 1 else 'RGB'))
    got = read(tmp_path, im, 16, channels, 'a.tif' if mode == 'CMYK' else 'a.png')
    off = got.permute(1, 2, 0).numpy().astype(int) - want.reshape(16, 16, channels)
    assert got.shape == (channels, 16, 16) and np.abs(off).max() <= 1
    if channels == (1 if mode in ('1', 'L', 'LA') else 3):  # from memory as from a file
        assert torch.equal(image_set([im]).images[0], got)

def test_transparent_pixels_lie_on_white(tmp_path):
    im = Image.new('RGBA', (8, 8), (255, 0, 0, 0))
    im.paste((0, 0, 255, 255), (0, 0, 4, 8))
    im.paste((0, 0, 0, 128), (4, 4, 8, 8))
    got = read(tmp_path, im, 8)
    assert got[:, 0, 0].tolist() == [0, 0, 255] and got[:, 0, 7].tolist() == [255]*3
    assert (got[:, 7, 7].float() - 127).abs().max() <= 1
    assert torch.equal(image_set([im]).images[0], got)
    assert read(tmp_path, im.quantize(8), 8)[:, 0, 7].tolist() == [255]*3
    im = Image.new('RGB', (8, 8), (9, 8, 7))
    assert read(tmp_path, im, 8, transparency=(9, 8, 7))[:, 0, 0].tolist() == [255]*3

@pytest.mark.parametrize('name, orientation', [('a.png', o) for o in (*range(10), 77)] +
                                              [('a.tif', 6)])
def test_photographs_stand_upright(name, orientation, tmp_path):
    "0, 9 and 77 mean nothing, and Pillow has turned a TIFF already"
    im = picture(32, 48)
    undo = {2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE,
            6: T.ROTATE_90, 7: T.TRANSVERSE, 8: T.ROTATE_270}
    lying = im.transpose(undo[orientation]) if orientation in undo else im
    got = read(tmp_path, lying, (32, 48), name=name, exif=exif(orientation))
    assert torch.equal(got, pixels(im))

def test_sixteen_bits_keep_their_grays(tmp_path):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)  # 0, 257, 514 ...
    im = Image.fromarray(ramp)
    for name, channels in [(n, c) for n in ('a.png', 'a.tif') for c in (1, 3)]:
        got = read(tmp_path/name, im, 16, channels, name)
        assert len(got) == channels and all(torch.equal(c.flatten(), EVERY) for c in got)
    assert torch.equal(image_set([im]).images.flatten(), EVERY)

@pytest.mark.parametrize('name, tolerance', [('a.png', 0), ('a.jpg', 3)])
@pytest.mark.parametrize('w, h', [(1, 1), (2, 3), (1, 900), (900, 1), (9, 1300)])
def test_thin_and_tiny_pictures(w, h, name, tolerance, tmp_path):
    im, colour = Image.new('RGB', (w, h), (60, 120, 180)), torch.tensor([60., 120, 180])
    for o in (1, 8):
        got = read(tmp_path, im, (6, 11), name=name, exif=exif(o))
        assert got.shape == (3, 6, 11)
        assert (got.float() - colour.view(3, 1, 1)).abs().max() <= tolerance

@pytest.mark.filterwarnings('ignore')
def test_bytes_of_no_sense_never_give_another_error(tmp_path):
    "A hundred images with random bytes in them: each is read, or refused by name"
    rng, refused = np.random.default_rng(0), []
    for fmt in ('png', 'jpg', 'gif', 'bmp', 'tif'):
        f = tmp_path/f'x.{fmt}'
        picture().save(f)
        whole = np.frombuffer(f.read_bytes(), np.uint8)
        for _ in range(20):
            b = whole.copy()
            b[rng.integers(0, min(len(b), 400), 8)] = rng.integers(0, 256, 8)
            f.write_bytes(b)
            try: assert folder(tmp_path).shape == (3, 8, 8)
            except ValueError as e: refused.append(f.name in str(e))
        f.unlink()
    assert len(refused) > 10 and all(refused)

def test_empty_and_missing_folders(tmp_path):
    (tmp_path/'.hidden').write_text('')
    for path, message in ((tmp_path, 'holds no files; put images there'),
                          (tmp_path/'nowhere', 'nowhere is not a folder'),
                          (tmp_path/'.hidden', 'hidden is not a folder')):
        with pytest.raises(FileNotFoundError, match=message): image_folder(path)

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
    'a/cut.jpg': cut, 'a/cut.png': cut, 'a/cut.gif': cut,
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
    s = folder(zoo, (30, 50), labels=True, corrupt='skip')
    names = sorted(GOOD, key=Path)
    small = scene().resize((50, 30), Image.Resampling.LANCZOS)
    colour, gray = np.asarray(small).astype(int), np.asarray(small.convert('L'))[..., None]
    for name, im in zip(names, s.images, strict=True):
        want = gray if name in ('b/gray.jpg', 'b/sixteen bits.png') else colour
        off = np.abs(im.permute(1, 2, 0).numpy() - want.astype(int)).mean()
        assert off < 3, (name, off)  # palettes and JPEG cost so much; a turned scene costs 20
    assert s.classes == ('a', 'b') and s.labels.tolist() == [0] * 4 + [1] * 8
    x, y = s[torch.tensor([8, 0])]
    assert x.shape == (2, 3, 30, 50) and y.tolist() == [1, 0]
    skipped = dict(line.split(': ', 1) for line in s.skipped)
    assert list(skipped) == sorted(BAD, key=Path) and all(skipped.values())
    assert 'truncated' in skipped['a/cut.jpg'] and '32-bit numbers' in skipped['b/int32.tif']
    assert 'no format that Pillow knows' in skipped['b/notes/list.txt']
    assert not any(str(zoo) in line or '\n' in line for line in s.skipped)
    assert repr(s).endswith('2 classes, 9 files skipped)')
    plain = [folder(zoo, 16, c, corrupt='skip') for c in (3, 1)]
    assert [t.shape for t in plain] == [(3, 16, 16), (1, 16, 16)]
    for t in plain:
        assert len(t) == 12 and t.labels is None and t.classes == () and t.skipped == s.skipped

@pytest.mark.parametrize('name', BAD)
def test_a_file_that_is_no_image_is_named(name, tmp_path):
    (tmp_path/name).parent.mkdir(parents=True)
    scene().save(tmp_path/'z.png')
    BAD[name](scene(), tmp_path/name)
    why = '32-bit numbers' if '32' in name else ''
    message = f"{tmp_path/name} is not an image that .*{why}.*repair or remove it, or let corrupt="
    with pytest.raises(ValueError, match=message + "'skip'"): folder(tmp_path)

def no_good(zoo):
    for name in GOOD: (zoo/name).unlink()

def loose(zoo): scene().save(zoo/'loose.png')

SKIP = dict(corrupt='skip', labels=True)

@pytest.mark.parametrize('change, options, message', [
    *[(lambda zoo: None, {}, 'a/cut.gif is not an image')] * 3,  # the first, whatever threads do
    (no_good, SKIP, 'holds no image that can be read: all 9 files.*a/cut.gif: '),
    (lambda zoo: (zoo/'b'/'notes').rename(zoo/'c'), SKIP, "class 'c': none of the files"),
    (loose, SKIP, 'loose.png lies in no subfolder'),
    (loose, dict(labels=True), 'loose.png lies in no subfolder'),  # sooner than corrupt ones
    *[(loose, dict(corrupt=c), f"corrupt = {c!r}; 'refuse'.*'skip'") for c in ('all', None, True)],
    (loose, dict(channels=4), 'channels = 4.*1.*3'), (loose, dict(size=0), 'size = 0'),
    (loose, dict(size=(8, -1)), r'size = \(8, -1\)')])
def test_folders_and_wishes_that_are_refused(change, options, message, zoo):
    change(zoo)
    with pytest.raises(ValueError, match=message): folder(zoo, **options)

@pytest.mark.parametrize('orientation', [1, 6, 7])
@pytest.mark.parametrize('h, w, size', [
    (1024, 1024, (64, 64)), (1001, 777, (64, 64)), (517, 1203, (64, 64)), (1200, 400, (32, 100)),
    (260, 131, (128, 64)), (1024, 1024, (256, 256)), (800, 3200, (50, 200))])
def test_decoding_a_jpeg_smaller_changes_little(h, w, size, orientation, tmp_path):
    """Against a whole decode, Pillow's rotation, crop and resize. Pictures differ by the filter
    alone, a box in the decoder and then Lanczos in place of Lanczos alone: 4 bytes at the most and
    1 on average. Without the care for edges that fill no whole block it is 20 and 3; below twice
    the wanted size it is more as well"""
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
    with pytest.raises(ValueError, match='1.png is not an image'): folder(six, cache=cache)

@pytest.mark.parametrize('other', [dict(size=9), dict(channels=1), dict(labels=True),
                                   dict(corrupt='skip'), dict(size=(8, 9))])
def test_other_wishes_are_read_again_and_replace_what_was_there(other, six, cache):
    old = set(cache.iterdir())
    s, want = (folder(six, cache=c, **other) for c in (cache, None))
    assert fingerprint(s) == fingerprint(want) and s.classes == want.classes
    assert kept_in(cache) == ['.json', '.npy'] and len(set(cache.iterdir()) & old) == 1

@pytest.mark.parametrize('harm', [
    halve, Path.unlink, *[lambda f, text=text: f.write_text(text) for text in ('', '[1, 2]', '{}')],
    lambda f: np.save(f.open('wb'), np.zeros((6, 3, 8, 9), np.uint8))])
@pytest.mark.parametrize('suffix', ['npy', 'json'])
def test_a_damaged_cache_is_made_again(suffix, harm, six, cache):
    want = fingerprint(folder(six))
    harm(next(cache.glob(f'*.{suffix}')))
    assert fingerprint(folder(six, cache=cache)) == want and kept_in(cache) == ['.json', '.npy']

def test_an_error_leaves_nothing_half_written_and_the_old_cache_as_it_was(six, cache):
    before = {f.name: f.read_bytes() for f in cache.iterdir()}
    (six/'b'/'z.txt').write_text('no image')      # found last, when all others are written
    with pytest.raises(ValueError, match='z.txt'): folder(six, cache=cache)
    assert {f.name: f.read_bytes() for f in cache.iterdir()} == before
    (six/'b'/'z.txt').unlink()
    assert fingerprint(folder(six, cache=cache)) == fingerprint(folder(six))

def test_what_a_killed_run_left_goes_away_in_the_end(six, tmp_path):
    old, new, mine = (tmp_path/'c'/n for n in ('decoded-0.npy.1.part', 'decoded-1.npy.2.part', 'a'))
    (tmp_path/'c').mkdir()
    for f in (old, new, mine): f.write_bytes(b'')  # `new` may be another run, at work
    for f in (old, mine): os.utime(f, (0, 0))
    folder(six, cache=tmp_path/'c')
    assert not old.exists() and new.exists() and mine.exists()

def test_a_cache_that_cannot_be_written_says_so_and_leaves_nothing(six, tmp_path, full_disk):
    (tmp_path/'file').write_text('no folder')
    full_disk(10_000)  # the images need 18 kB
    for cache in (tmp_path/'file', tmp_path/'c'):
        with pytest.raises(OSError, match='cannot write the cache.*GB there. Give another folder'):
            folder(six, 32, cache=cache)
    assert list((tmp_path/'c').iterdir()) == []

def test_a_cache_among_the_images_is_refused_unless_hidden(six, tmp_path):
    for cache in (six, six/'cache', six/'a'/'..'/'cache'):
        with pytest.raises(ValueError, match='lies among the images'): folder(six, cache=cache)
    for _ in range(2): assert len(folder(six, cache=six/'.cache')) == 6
    assert len(folder(six, cache=tmp_path)) == 6   # around it is no harm

def reading(root, size, cache=None):
    "A fresh process that reads a folder and says how many megabytes that took at its worst"
    code = f'''
import signal
from diffusion_scratch.data import image_folder
def mb():  # of this process alone, unlike getrusage
    status = open('/proc/self/status').read() if {sys.platform == 'linux'} else 'VmHWM: 0'
    return int(status.split('VmHWM:')[1].split()[0]) / 1024
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
before = mb()
s = image_folder({str(root)!r}, {size}, progress=False, cache={cache and str(cache)!r})
s[len(s) // 2]
print(len(s), s.shape, mb() - before, sep='|')'''
    env = os.environ | dict(PYTHONPATH=str(Path(data.__file__).parent.parent), OMP_NUM_THREADS='1')
    return subprocess.Popen([sys.executable, '-c', code], text=True, env=env,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)

def peak(n, root, size, cache=None):
    if sys.platform != 'linux': pytest.skip('no /proc there')
    out, err = reading(root, size, cache).communicate()
    assert out.startswith(f'{n}|(3, {size}, {size})|'), err
    return float(out.split('|')[2])

def test_decoded_bytes_are_never_held_twice_and_a_large_jpeg_not_even_once(tmp_path):
    """60 pictures of 3 MB: in memory once; and with a cache, when it is written and when it is
    read, not even that. A JPEG takes 192 MB when it is decoded whole, and an eighth of it 3"""
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
    p = reading(root, 64, cache)
    while p.poll() is None and kept_in(cache) != ['.part']: time.sleep(0.05)
    p.send_signal(signal.SIGINT)
    assert 'KeyboardInterrupt' in p.communicate(timeout=60)[1] and list(cache.iterdir()) == []

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

def test_a_fingerprint_stays_what_it_is():
    "A change of it would tell everyone that their data have changed"
    images = torch.arange(24, dtype=torch.uint8).view(2, 1, 3, 4)
    known = '8b641684accdeba6e04e2d518f44cf02eff087d3c02d41f257f8d1e8915d0b25'
    assert fingerprint(ImageSet(images, [1, 0], ('a', 'b'))) == known
    facts = json.dumps([[2, 1, 3, 4], 'torch.uint8', False, []]).encode()
    assert fingerprint(ImageSet(images)) == hashlib.sha256(facts + bytes(range(24))).hexdigest()

@pytest.mark.parametrize('byte, says', [(0, '-1'), (255, '1'), (128, '0.00392')])
def test_a_set_of_one_value_is_refused(byte, says):
    blank = ImageSet(torch.full((3, 3, 8, 8), byte, dtype=torch.uint8), name='blank')
    with pytest.raises(ValueError, match=(
            rf'every pixel of the 3 images.*blank.* is {says} \(byte {byte}\).*'
            rf'range seen is \[{says}, {says}\], within \[-1, 1\]')): check_varied(blank)

def test_one_pixel_that_differs_is_enough_wherever_it_is(mini):
    check_varied(mini)
    for where in ((0, 0, 0, 1), (2999, 2, 31, 31), (1500, 1, 3, 4), (0, 0, 0, 0)):
        images = torch.full((3000, 3, 32, 32), 9, dtype=torch.uint8)  # 9 MB: more than one block
        images[where] = 10
        check_varied(ImageSet(images))
    flat = torch.tensor([0, 9], dtype=torch.uint8).view(2, 1, 1, 1)   # each image its own value
    check_varied(ImageSet(flat))
