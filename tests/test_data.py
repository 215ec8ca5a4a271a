"Images in, images out: from outside, against hand-made files and other libraries"
import gzip, hashlib, json, os, pickle, shutil, signal, socket, struct, subprocess, sys, threading
import time, warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from test_pictures import full_disk
from torch.utils.data import Dataset, Subset, TensorDataset

from diffusion_scratch import data
from diffusion_scratch.data import (DATA, ImageSet, check_varied, cifar10, fingerprint,
                                    image_folder, image_set, mnist, mnist_mini, to_float, to_uint8)

EVERY = torch.arange(256, dtype=torch.uint8)
REAL = os.environ.get('DIFFUSION_SCRATCH_DATA')  # a folder with MNIST/raw/*.gz
T = Image.Transpose

@pytest.fixture(scope='module')
def digits(): return mnist_mini()

# ---- bytes and floats: eq-bytes

def test_every_byte_survives_and_lies_where_the_formula_says():
    x = to_float(EVERY)
    assert torch.equal(to_uint8(x), EVERY) and x.dtype == torch.float32
    assert x[0] == -1 and x[255] == 1
    formula = np.arange(256) / 127.5 - 1
    np.testing.assert_allclose(x.double().numpy(), formula, atol=1.2e-7)  # the last place near 1

@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
def test_every_byte_survives_other_precisions(dtype):
    assert torch.equal(to_uint8(to_float(EVERY).to(dtype)), EVERY)

def test_a_disturbance_below_half_a_byte_is_rounded_away_and_a_larger_one_is_not():
    x, half = to_float(EVERY).double(), 0.5 / 127.5
    for sign in (-1, 1):
        assert torch.equal(to_uint8(x + sign * 0.99 * half), EVERY)
        moved = sign * (to_uint8(x + sign * 1.01 * half).int() - EVERY.int())
        assert moved.min() >= 0 and moved.sum() == 255  # all but the one at the end of the range

def test_what_lies_outside_is_clamped_not_wrapped():
    x = torch.tensor([-torch.inf, -300., -1.02, -1.004, 1.004, 1.02, 300., torch.inf])
    assert to_uint8(x).tolist() == [0]*4 + [255]*4

def test_ranges_and_types_that_are_refused():
    with pytest.raises(TypeError, match='torch.float32'): to_float(torch.zeros(2, 1, 4, 4))
    with pytest.raises(TypeError, match='torch.int64'): to_float(torch.zeros(2, 1, 4, 4).long())
    x = torch.tensor([0.]*5 + [float('nan')]*3)
    with pytest.raises(ValueError, match='3 of 8 pixels are NaN'): to_uint8(x)

# ---- ImageSet

def test_an_image_set_indexes_like_a_tensor_and_keeps_bytes(digits):
    assert digits.images.dtype == torch.uint8 and digits.shape == (1, 28, 28)
    assert len(digits) == 5000 and digits.num_classes == 10
    which = torch.tensor([4999, 0, 2500])
    x, y = digits[which]
    assert torch.equal(to_uint8(x), digits.images[which]) and y.tolist() == [9, 0, 5]
    x, y = digits[3:5]
    assert x.shape == (2, 1, 28, 28) and y.shape == (2,)
    x, y = digits[7]
    assert x.shape == (1, 28, 28) and y == 0
    assert repr(digits) == "ImageSet('mnist_mini': 5,000 images (1, 28, 28), 10 classes)"

def test_own_floats_come_back_to_half_a_byte_and_without_labels():
    x = torch.rand(6, 2, 5, 9, generator=torch.Generator().manual_seed(0)) * 2 - 1
    s = ImageSet(x, name='own')
    got, y = s[:]
    assert (got - x).abs().max() <= 0.5 / 127.5 + 1e-6 and y is None and s.num_classes == 0
    assert repr(s) == "ImageSet('own': 6 images (2, 5, 9))"

def test_classes_without_labels_are_no_classes():
    assert ImageSet(torch.zeros(2, 1, 4, 4), classes=('a', 'b')).num_classes == 0

def test_labels_of_any_whole_type_become_long():
    s = ImageSet(torch.zeros(3, 1, 4, 4), np.array([0, 2, 1], dtype=np.uint8))
    assert s.labels.dtype == torch.long and s.num_classes == 3

@pytest.mark.parametrize('images, message', [
    (torch.zeros(0, 1, 8, 8), r'not \(0, 1, 8, 8\)'),
    (torch.zeros(8, 8), r'not \(8, 8\)'),
    (torch.full((2, 1, 8, 8), 1.01), r'\[1.01, 1.01\]'),
    (torch.full((2, 1, 8, 8), 255.), r'\[255, 255\]'),
    (torch.full((2, 1, 8, 8), float('nan')), 'nan'),
    (torch.tensor([0., float('nan')]).view(1, 1, 1, 2), 'nan'),
    (torch.tensor([0., float('inf')]).view(1, 1, 1, 2), 'inf'),
    (torch.zeros(10, 32, 32, 3, dtype=torch.uint8), r'channels last.*permute\(0, 3, 1, 2\)'),
])
def test_images_that_are_refused(images, message):
    with pytest.raises(ValueError, match=message): ImageSet(images)

def test_whole_numbers_that_are_not_bytes_are_refused():
    with pytest.raises(TypeError, match='torch.int64'): ImageSet(torch.zeros(2, 1, 8, 8).long())

@pytest.mark.parametrize('labels, error, message', [
    ([0, 1], ValueError, r'labels have shape \(2,\); 3 images need \(3,\)'),
    (np.eye(3, dtype=int), ValueError, r'\(3, 3\)'),
    ([0., 1., 2.], TypeError, 'torch.float32'),
    ([0, 1, -1], ValueError, r'-1..1; allowed are 0..1'),
    ([0, 1, 2], ValueError, r'0..2; allowed are 0..1, one for each class'),
])
def test_labels_that_are_refused(labels, error, message):
    images = torch.zeros(3, 1, 8, 8)
    with pytest.raises(error, match=message): ImageSet(images, labels, classes=('a', 'b'))

def test_data_in_0_to_1_is_taken_with_a_warning():
    images = torch.linspace(0, 1, 64).view(1, 1, 8, 8)
    with pytest.warns(UserWarning, match=r'2 \* images - 1'): ImageSet(images)

# ---- mnist_mini and what torchvision reads

def test_mnist_mini_is_500_real_digits_of_each_class(digits):
    assert torch.equal(digits.labels.bincount(), torch.full((10,), 500))
    assert digits.classes == tuple('0123456789')
    border, whole = digits.images[:, :, 0].float().mean(), digits.images.float().mean()
    assert border < 1 and 30 < whole < 36                          # MNIST's mean gray is 33.3
    assert len({im.numpy().tobytes() for im in digits.images}) == 5000  # no digit twice

def write_idx(file, array):
    sizes = struct.pack(f'>{array.ndim}I', *array.shape)
    file.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.numpy().tobytes())

@pytest.fixture
def idx_root(digits, tmp_path):
    "MNIST's layout with mnist_mini in it: 417 digits to train on, 50 to test on"
    raw = tmp_path/'MNIST'/'raw'
    raw.mkdir(parents=True)
    for part, s in (('train', slice(0, 5000, 12)), ('t10k', slice(5, 5000, 100))):
        write_idx(raw/f'{part}-images-idx3-ubyte', digits.images[s, 0])
        write_idx(raw/f'{part}-labels-idx1-ubyte', digits.labels[s].byte())
    return tmp_path

def test_mnist_reads_files_in_its_own_format(digits, idx_root):
    train = mnist(idx_root)  # nothing is missing, so nothing is fetched
    test = mnist(str(idx_root), train=False, download=False)
    for found, s in ((train, slice(0, 5000, 12)), (test, slice(5, 5000, 100))):
        assert torch.equal(found.images, digits.images[s]) and found.shape == (1, 28, 28)
        assert torch.equal(found.labels, digits.labels[s]) and found.num_classes == 10

def test_a_damaged_mnist_file_says_what_to_do(idx_root):
    f = idx_root/'MNIST'/'raw'/'train-images-idx3-ubyte'
    f.write_bytes(f.read_bytes()[:5000])
    with pytest.raises(FileNotFoundError, match='delete damaged ones first.*mnist_mini'):
        mnist(idx_root)

def test_cifar10_reads_files_in_its_own_format(tmp_path, monkeypatch):
    "The format stores planes: red, green, blue"
    from torchvision.datasets import CIFAR10
    folder, rng, md5 = tmp_path/CIFAR10.base_folder, np.random.default_rng(0), {}
    folder.mkdir()
    def write(name, obj):
        (folder/name).write_bytes(pickle.dumps(obj))
        md5[name] = hashlib.md5((folder/name).read_bytes()).hexdigest()
    names = [n for n, _ in CIFAR10.train_list + CIFAR10.test_list]
    pixels = {n: rng.integers(0, 256, (4, 3072), dtype=np.uint8) for n in names}
    for i, (n, p) in enumerate(pixels.items()): write(n, dict(data=p, labels=[i, 9, 0, 1]))
    write('batches.meta', dict(label_names=list('abcdefghij')))
    for which in ('train_list', 'test_list'):
        hashes = [[n, md5[n]] for n, _ in getattr(CIFAR10, which)]
        monkeypatch.setattr(CIFAR10, which, hashes)
    monkeypatch.setattr(CIFAR10, 'meta', {**CIFAR10.meta, 'md5': md5['batches.meta']})
    train, test = (cifar10(tmp_path, train=t, download=False) for t in (True, False))
    assert train.shape == (3, 32, 32) and len(train) == 20 and train.images.is_contiguous()
    assert train.classes == tuple('abcdefghij') and train.labels[::4].tolist() == [0, 1, 2, 3, 4]
    rows = np.concatenate(list(pixels.values())[:5])
    assert torch.equal(train.images.flatten(1), torch.from_numpy(rows))
    green = torch.from_numpy(pixels['test_batch'][2, 1024:2048]).view(32, 32)
    assert torch.equal(test.images[2, 1], green)

@pytest.fixture
def silent_server():
    "A server that takes calls and never answers"
    s, calls = socket.create_server(('127.0.0.1', 0)), []
    def take():
        try:
            while True: calls.append(s.accept()[0])
        except OSError: pass
    threading.Thread(target=take, daemon=True).start()
    yield f'http://127.0.0.1:{s.getsockname()[1]}/'
    s.shutdown(socket.SHUT_RDWR)
    for c in [s, *calls]: c.close()

@pytest.fixture
def closed_server():
    with socket.create_server(('127.0.0.1', 0)) as s: port = s.getsockname()[1]
    return f'http://127.0.0.1:{port}/'

@pytest.mark.parametrize('load, name', [(mnist, 'MNIST'), (cifar10, 'CIFAR10')])
@pytest.mark.parametrize('server', ['silent_server', 'closed_server'])
def test_no_network_and_no_files_says_what_to_do_and_soon(load, name, server, tmp_path,
                                                          monkeypatch, request):
    from torchvision import datasets
    url = request.getfixturevalue(server)
    monkeypatch.setenv('no_proxy', '*')
    monkeypatch.setattr(datasets.MNIST, 'mirrors', [url, url])
    monkeypatch.setattr(datasets.CIFAR10, 'url', url + 'cifar.tar.gz')
    monkeypatch.setattr(data, 'PATIENCE', 0.3)
    message = f'{name} in .*{tmp_path.name}.*Connect to the network.*mnist_mini'
    socket.setdefaulttimeout(77.)
    try:
        began = time.perf_counter()
        with pytest.raises(FileNotFoundError, match=message): load(tmp_path)
        assert time.perf_counter() - began < 10 and socket.getdefaulttimeout() == 77.  # as before
    finally: socket.setdefaulttimeout(None)

@pytest.mark.parametrize('load', [mnist, cifar10])
def test_download_false_asks_no_server(load, tmp_path, monkeypatch):
    monkeypatch.setattr('urllib.request.urlopen', lambda *a, **k: pytest.fail('asked a server'))
    with pytest.raises(FileNotFoundError, match='download=False.*mnist_mini'):
        load(tmp_path, download=False)
    assert list(tmp_path.iterdir()) == []

def test_downloads_go_below_the_home_folder():
    assert DATA.parts[0] == '~' and data.PATIENCE <= 30

@pytest.mark.skipif(not REAL, reason='DIFFUSION_SCRATCH_DATA names no folder with MNIST/raw/*.gz')
def test_every_digit_of_mnist_mini_is_a_digit_of_mnist(digits, tmp_path):
    raw = tmp_path/'MNIST'/'raw'
    raw.mkdir(parents=True)
    for f in (Path(REAL)/'MNIST'/'raw').glob('*.gz'):
        with gzip.open(f) as a, open(raw/f.stem, 'wb') as b: shutil.copyfileobj(a, b)
    whole, test = (mnist(tmp_path, train=t, download=False) for t in (True, False))
    assert len(whole) == 60000 and len(test) == 10000
    known = {im.numpy().tobytes(): y for im, y in zip(whole.images, whole.labels.tolist())}
    for im, y in zip(digits.images, digits.labels.tolist()): assert known[im.numpy().tobytes()] == y

# ---- a folder of images

def picture(h=30, w=50):
    y, x = np.mgrid[:h, :w]
    return Image.fromarray(np.stack([255 * x // w, 255 * y // h, 128 + 0 * x], 2).astype(np.uint8))

def read(tmp_path, im, size, channels=3, name='a.png', **save):
    (tmp_path/'d').mkdir(exist_ok=True)
    im.save(tmp_path/'d'/name, **save)
    return image_folder(tmp_path/'d', size, channels, progress=False).images[0]

def pixels(im): return torch.from_numpy(np.array(im)).permute(2, 0, 1)

def exif(orientation):
    e = Image.Exif()
    e[274] = orientation
    return e

def test_a_picture_of_the_right_size_is_not_touched(tmp_path):
    im = picture()
    assert torch.equal(read(tmp_path, im, (30, 50)), pixels(im))

@pytest.mark.parametrize('h, w, H, W', [(40, 100, 20, 20), (80, 48, 40, 60), (64, 64, 32, 32),
                                        (10, 10, 33, 17)])
def test_the_middle_is_kept_in_proportion(h, w, H, W, tmp_path):  # eq-cover
    """Red says the column and green the row that a pixel came from; compare with the formula at
    the middle and near the corners"""
    im = read(tmp_path, picture(h, w), (H, W)).double()
    s = max(H / h, W / w)
    i, j = torch.arange(H // 4, 3 * H // 4), torch.arange(W // 4, 3 * W // 4)
    row = ((i + 0.5 - H / 2) / s + h / 2 - 0.5) * 255 / h
    column = ((j + 0.5 - W / 2) / s + w / 2 - 0.5) * 255 / w
    red, green = im[0, i][:, j], im[1, i][:, j]
    assert (green - row[:, None]).abs().max() < 4 and (red - column[None]).abs().max() < 4

def test_shrinking_averages(tmp_path):
    board = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8))
    got = read(tmp_path, board, 16, 1)
    assert (got.float() - 127.5).abs().max() <= 2  # picking pixels would give 0 or 255

@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA'])
@pytest.mark.parametrize('channels', [1, 3])
def test_modes_agree_with_pillow_where_pillow_is_right(mode, channels, tmp_path):
    im = picture(16, 16).convert(mode)
    want = np.array(im.convert('RGB').convert('L' if channels == 1 else 'RGB'))
    got = read(tmp_path, im, 16, channels)
    off = got.permute(1, 2, 0).numpy().astype(int) - want.reshape(16, 16, channels)
    assert got.shape == (channels, 16, 16) and np.abs(off).max() <= 1

def test_cmyk_becomes_colour(tmp_path):
    got = read(tmp_path, Image.new('CMYK', (8, 8), (0, 255, 255, 0)), 8, name='a.tif')
    assert got[0].min() > 200 and got[1:].max() < 60  # red

def test_transparent_pixels_lie_on_white(tmp_path):
    im = Image.new('RGBA', (8, 8), (255, 0, 0, 0))
    im.paste((0, 0, 255, 255), (0, 0, 4, 8))
    im.paste((0, 0, 0, 128), (4, 4, 8, 8))
    got = read(tmp_path, im, 8)
    assert got[:, 0, 0].tolist() == [0, 0, 255] and got[:, 0, 7].tolist() == [255]*3
    assert (got[:, 7, 7].float() - 127).abs().max() <= 1
    assert read(tmp_path, im.quantize(8), 8)[:, 0, 7].tolist() == [255]*3
    im = Image.new('RGB', (8, 8), (9, 8, 7))
    assert read(tmp_path, im, 8, transparency=(9, 8, 7))[:, 0, 0].tolist() == [255]*3

@pytest.mark.parametrize('orientation', range(1, 9))
def test_photographs_stand_upright(orientation, tmp_path):
    im = picture(32, 48)
    undo = {2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE,
            6: T.ROTATE_90, 7: T.TRANSVERSE, 8: T.ROTATE_270}
    lying = im.transpose(undo[orientation]) if orientation > 1 else im
    assert torch.equal(read(tmp_path, lying, (32, 48), exif=exif(orientation)), pixels(im))

@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('name', ['a.png', 'a.tif'])
def test_sixteen_bits_keep_their_grays(channels, name, tmp_path):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)  # 0, 257, 514 ...
    got = read(tmp_path, Image.fromarray(ramp), 16, channels, name)
    assert all(torch.equal(c.flatten(), EVERY) for c in got)

@pytest.mark.parametrize('dtype', [np.int32, np.float32])
def test_32_bit_pixels_of_unknown_range_are_refused(dtype, tmp_path):
    im = Image.fromarray(np.full((8, 8), 1000, dtype))
    with pytest.raises(ValueError, match='a.tif.*32-bit numbers'):
        read(tmp_path, im, 8, name='a.tif')

def test_files_at_any_depth_in_order_and_hidden_ones_passed_over(tmp_path):
    names = ['b/c/x.png', 'a.jpg', 'b/a.bmp', '.hidden.png', '.git/x.png', '.DS_Store']
    for i, name in enumerate(names):
        f = tmp_path/name
        f.parent.mkdir(parents=True, exist_ok=True)
        if name == '.DS_Store': f.write_bytes(b'rubbish')
        else: Image.new('L', (9, 9), 60 * i).save(f)
    s = image_folder(tmp_path, 4, 1, progress=False)
    assert s.images[:, 0, 0, 0].tolist() == [60, 120, 0]  # a.jpg, b/a.bmp, b/c/x.png
    assert s.name == tmp_path.name and s.labels is None

def test_thin_and_tiny_pictures(tmp_path):
    for i, s in enumerate([(1, 1), (1, 300), (300, 1), (2, 3)]):
        Image.new('RGB', s, (10, 20, 30)).save(tmp_path/f'{i}.png')
    s = image_folder(tmp_path, (6, 11), progress=False)
    assert s.shape == (3, 6, 11)
    for c, v in zip(s.images.transpose(0, 1), (10, 20, 30)): assert (c == v).all()

def truncated(f):
    picture(200, 200).save(f)
    f.write_bytes(f.read_bytes()[:len(f.read_bytes()) // 2])

@pytest.mark.parametrize('name, make', [
    ('notes.txt', lambda f: f.write_text('hello')), ('empty.png', lambda f: f.write_bytes(b'')),
    ('cut.png', truncated), ('cut.jpg', truncated), ('cut.gif', truncated),
    ('wrong.png', lambda f: f.write_bytes(b'\x89PNG\r\n\x1a\n' + b'\0' * 50)),
])
def test_a_file_that_is_no_image_is_named(name, make, tmp_path):
    picture().save(tmp_path/'good.png')
    make(tmp_path/name)
    message = f'{name} is not an image that can be read.*repair or remove it'
    with pytest.raises(ValueError, match=message): image_folder(tmp_path, progress=False)

@pytest.mark.filterwarnings('ignore')
def test_bytes_of_no_sense_never_give_another_error(tmp_path):
    "A hundred images with random bytes in them: each is read, or refused by name"
    rng, refused = np.random.default_rng(0), 0
    for fmt in ('png', 'jpg', 'gif', 'bmp', 'tif'):
        f = tmp_path/f'x.{fmt}'
        picture().save(f)
        whole = np.frombuffer(f.read_bytes(), np.uint8)
        for _ in range(20):
            b = whole.copy()
            b[rng.integers(0, min(len(b), 400), 8)] = rng.integers(0, 256, 8)
            f.write_bytes(b.tobytes())
            try: assert image_folder(tmp_path, 8, progress=False).shape == (3, 8, 8)
            except ValueError as e:
                refused += 1
                assert f'x.{fmt}' in str(e)
        f.unlink()
    assert refused > 10

@pytest.mark.parametrize('options, message', [
    (dict(channels=4), 'channels = 4.*1.*3'), (dict(size=0), 'size = 0'),
    (dict(size=(8, -1)), r'size = \(8, -1\)')])
def test_sizes_and_channels_that_are_refused(options, message, tmp_path):
    picture().save(tmp_path/'a.png')
    with pytest.raises(ValueError, match=message): image_folder(tmp_path, **options)

def test_empty_and_missing_folders(tmp_path):
    (tmp_path/'.hidden').write_text('')
    for path, message in ((tmp_path, 'holds no files; put images there'),
                          (tmp_path/'nowhere', 'nowhere is not a folder'),
                          (tmp_path/'.hidden', 'hidden is not a folder')):
        with pytest.raises(FileNotFoundError, match=message): image_folder(path)

# ---- a folder with everything in it

def drawing(h=90, w=150):
    "A smooth scene that JPEG keeps well: colours that run, and a soft disc left of the middle"
    y, x = np.mgrid[:h, :w]
    disc = 1 / (1 + np.exp((np.hypot(y - h / 2, x - w * 0.4) - h / 4) / (h / 20)))
    a = np.stack([40 + 150 * x / w, 200 - 120 * y / h, 60 + 150 * disc], 2)
    return Image.fromarray(a.round().astype(np.uint8))

def save_animation(im, f):
    im.save(f, save_all=True, append_images=[Image.new('RGB', im.size, 'black')] * 3)

def save_turned(im, f):
    im = im.transpose(T.ROTATE_90).resize((900, 1500), Image.Resampling.BICUBIC)
    im.save(f, exif=exif(6), quality=95)

def save_deep(im, f): Image.fromarray(np.asarray(im.convert('L')).astype(np.uint16) * 257).save(f)

GOOD = {  # name -> how to make it from the scene; all but the two gray ones are read as the scene
    'a/plain.png': lambda im, f: im.save(f),
    'a/odd size.png': lambda im, f: im.resize((301, 181), Image.Resampling.BICUBIC).save(f),
    'a/alpha.png': lambda im, f: im.convert('RGBA').save(f),
    'a/palette.png': lambda im, f: im.quantize(256).save(f),
    'b/gray.jpg': lambda im, f: im.convert('L').save(f, quality=95),
    'b/sixteen bits.png': save_deep, 'b/animated.gif': save_animation,
    'b/deep/er/cmyk.jpg': lambda im, f: im.convert('CMYK').save(f, quality=95),
    'b/deep/turned.jpg': save_turned,
}
BAD = {
    'a/cut.jpg': lambda f: (drawing().save(f), f.write_bytes(f.read_bytes()[:700])),
    'a/empty.png': lambda f: f.write_bytes(b''),
    'b/Thumbs.db': lambda f: f.write_bytes(b'\xd0\xcf\x11\xe0 rubbish'),
    'b/deep/list.txt': lambda f: f.write_text('cut.jpg\n'),
}

@pytest.fixture
def zoo(tmp_path):
    root, scene = tmp_path/'zoo', drawing()
    for name in [*GOOD, *BAD]: (root/name).parent.mkdir(parents=True, exist_ok=True)
    for name, make in GOOD.items(): make(scene, root/name)
    for name, make in BAD.items(): make(root/name)
    return root

def test_everything_in_one_folder(zoo):
    s = image_folder(zoo, (30, 50), progress=False, labels=True, corrupt='skip')
    names = sorted(GOOD, key=Path)
    small = drawing().resize((50, 30), Image.Resampling.LANCZOS)
    colour, gray = np.asarray(small).astype(int), np.asarray(small.convert('L'))[..., None]
    for name, im in zip(names, s.images, strict=True):
        want = gray if name in ('b/gray.jpg', 'b/sixteen bits.png') else colour
        off = np.abs(im.permute(1, 2, 0).numpy() - want.astype(int)).mean()
        assert off < 3, (name, off)  # palettes and JPEG cost so much; a turned scene costs 20
    assert s.classes == ('a', 'b') and s.labels.tolist() == [0] * 4 + [1] * 5
    x, y = s[torch.tensor([8, 0])]
    assert x.shape == (2, 3, 30, 50) and y.tolist() == [1, 0]
    skipped = dict(line.split(': ', 1) for line in s.skipped)
    assert list(skipped) == sorted(BAD, key=Path) and all(skipped.values())
    assert 'truncated' in skipped['a/cut.jpg']
    assert 'no format that Pillow knows' in skipped['b/deep/list.txt']
    assert not any(str(zoo) in line or '\n' in line for line in s.skipped)
    assert repr(s).endswith('2 classes, 4 files skipped)')

def test_without_labels_or_in_gray_it_is_the_same_folder(zoo):
    s, g = (image_folder(zoo, 16, c, corrupt='skip', progress=False) for c in (3, 1))
    assert len(s) == len(g) == 9 and s.labels is None and s.classes == ()
    assert g.shape == (1, 16, 16) and s.skipped == g.skipped and len(s.skipped) == 4

@pytest.mark.parametrize('name', BAD)
def test_each_bad_file_is_refused_by_name(name, zoo):
    for n in BAD:
        if n != name: (zoo/n).unlink()
    message = f"{zoo/name} is not an image.*repair or remove it, or let corrupt='skip'"
    with pytest.raises(ValueError, match=message): image_folder(zoo, 16, progress=False)

def test_the_first_bad_file_is_named_whatever_the_threads_do(zoo):
    for _ in range(3):
        with pytest.raises(ValueError, match='cut.jpg'): image_folder(zoo, 16, progress=False)

def test_a_folder_of_nothing_but_bad_files_is_refused(zoo):
    for n in GOOD: (zoo/n).unlink()
    message = 'holds no image that can be read: all 4 files.*a/cut.jpg: '
    with pytest.raises(ValueError, match=message):
        image_folder(zoo, 16, corrupt='skip', progress=False)

def test_a_class_of_nothing_but_bad_files_is_refused(zoo):
    (zoo/'__MACOSX').mkdir()
    (zoo/'__MACOSX'/'x').write_text('')
    with pytest.raises(ValueError, match="class '__MACOSX': none of the files"):
        image_folder(zoo, 16, labels=True, corrupt='skip', progress=False)
    assert len(image_folder(zoo, 16, corrupt='skip', progress=False)) == 9

def test_a_file_without_a_class_is_named_before_anything_is_read(zoo):
    drawing().save(zoo/'loose.png')
    for corrupt in ('skip', 'refuse'):  # sooner than the corrupt ones
        with pytest.raises(ValueError, match='loose.png lies in no subfolder'):
            image_folder(zoo, 16, labels=True, corrupt=corrupt, progress=False)

@pytest.mark.parametrize('corrupt', ['ignore', None, True])
def test_other_ways_with_corrupt_files_are_refused(corrupt, zoo):
    with pytest.raises(ValueError, match=f"corrupt = {corrupt!r}; 'refuse'.*'skip'"):
        image_folder(zoo, corrupt=corrupt)

def test_classes_go_by_name_and_not_by_where_their_images_lie(tmp_path):
    names = ['10/x.png', '9/deep/y.png', 'ab/z.png', 'ab/a/b/c.png', 'Z/q.png']
    for i, n in enumerate(names):
        (tmp_path/n).parent.mkdir(parents=True, exist_ok=True)
        Image.new('L', (8, 8), 40 * i).save(tmp_path/n)
    (tmp_path/'nothing').mkdir()
    (tmp_path/'.hidden').mkdir()
    (tmp_path/'.hidden'/'x').write_text('')
    s = image_folder(tmp_path, 8, 1, labels=True, progress=False)
    found = {int(im[0, 0, 0]): s.classes[y] for im, y in zip(s.images, s.labels)}
    assert s.classes == ('10', '9', 'Z', 'ab')
    assert found == {0: '10', 40: '9', 80: 'ab', 120: 'ab', 160: 'Z'}

def test_other_sets_have_skipped_nothing(digits):
    assert digits.skipped == () and ImageSet(torch.zeros(1, 1, 2, 2)).skipped == ()

def test_an_animation_gives_its_first_picture(tmp_path):
    red, blue = (Image.new('RGB', (8, 8), c) for c in ((250, 0, 0), (0, 0, 250)))
    for name in ('a.gif', 'a.png', 'a.webp'):
        red.save(tmp_path/name, save_all=True, append_images=[blue] * 2)
    s = image_folder(tmp_path, 8, progress=False)
    assert len(s) == 3 and s.images[:, 0].min() > 245 and s.images[:, 2].max() < 5

def test_threads_keep_the_order_of_the_names(tmp_path):
    "Files of very different cost, which finish in another order than they start"
    for i in range(100):
        side = 1500 if i % 7 == 0 else 9
        Image.new('L', (side, side), i).save(tmp_path/f'{i:03}.png', compress_level=1)
    for cache in (None, tmp_path.parent/'order'):
        s = image_folder(tmp_path, 4, 1, progress=False, cache=cache)
        assert s.images[:, 0, 0, 0].tolist() == list(range(100))

@pytest.mark.parametrize('w, h', [(1, 1), (1, 900), (900, 1), (9, 1300)])
def test_thin_and_tiny_jpegs(w, h, tmp_path):
    im, colour = Image.new('RGB', (w, h), (60, 120, 180)), torch.tensor([60., 120, 180])
    for o in (1, 8):
        got = read(tmp_path, im, (6, 11), name='a.jpg', exif=exif(o))
        assert (got.float() - colour.view(3, 1, 1)).abs().max() <= 3

# ---- JPEGs are decoded smaller where that does no harm

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
    def noise(k):
        small = Image.fromarray(rng.random((k, k)).astype(np.float32))
        return np.asarray(small.resize((w, h), Image.Resampling.BICUBIC))
    for k in (4, 16, 64, 200): im += np.stack([noise(k) for _ in range(3)], 2) / k**0.7
    im = Image.fromarray((255 * (im - im.min()) / np.ptp(im)).astype(np.uint8))
    im.save(tmp_path/'a.jpg', quality=95, exif=exif(orientation))
    upright = ImageOps.exif_transpose(Image.open(tmp_path/'a.jpg'))
    whole = pixels(ImageOps.fit(upright, size[::-1], Image.Resampling.LANCZOS))
    off = (image_folder(tmp_path, size, progress=False).images[0].float() - whole).abs()
    assert off.max() <= 4 and off.mean() <= 1, (off.max(), off.mean())

def test_a_large_jpeg_is_read_faster_than_it_can_be_decoded_whole(tmp_path):
    drawing(3000, 4000).save(tmp_path/'a.jpg')
    took = []
    for _ in range(3):
        a = time.perf_counter()
        image_folder(tmp_path, 64, progress=False)
        b = time.perf_counter()
        Image.open(tmp_path/'a.jpg').load()
        took.append((b - a) / (time.perf_counter() - b))
    assert min(took) < 0.6  # about 0.2

def test_a_phones_multi_picture_jpeg(tmp_path):
    im, other = drawing(600, 900), Image.new('RGB', (900, 600))
    im.save(tmp_path/'a.jpg', format='MPO', save_all=True, append_images=[other], quality=95)
    assert Image.open(tmp_path/'a.jpg').format == 'MPO'
    got = image_folder(tmp_path, (40, 60), progress=False).images[0]
    want = pixels(im.resize((60, 40), Image.Resampling.LANCZOS))
    assert (got.float() - want).abs().mean() < 2

@pytest.mark.parametrize('orientation', [0, 9, 77])
def test_an_orientation_that_means_nothing_is_passed_over(orientation, tmp_path):
    im = drawing(16, 16)
    assert torch.equal(read(tmp_path, im, 16, exif=exif(orientation)), pixels(im))

def test_a_tiff_is_not_turned_twice(tmp_path):
    im = picture(32, 48)
    got = read(tmp_path, im.transpose(T.ROTATE_90), (32, 48), name='a.tif', exif=exif(6))
    assert torch.equal(got, pixels(im))

# ---- the cache of decoded bytes

def spoil(f):
    "Other bytes in a file that looks unchanged"
    s = f.stat()
    f.write_bytes(bytes(s.st_size))
    os.utime(f, ns=(s.st_atime_ns, s.st_mtime_ns))

def kept_in(cache): return sorted(f.suffix for f in cache.iterdir())

def test_a_second_start_reads_no_image(zoo, tmp_path):
    cache, options = tmp_path/'c'/'d', dict(size=(20, 24), labels=True, corrupt='skip')
    plain = image_folder(zoo, **options, progress=False)
    first = image_folder(zoo, **options, cache=cache, progress=False)
    for f in zoo.rglob('*.*'): spoil(f)            # whoever decodes now finds no image at all
    again = image_folder(zoo, **options, cache=cache, progress=False)
    for s in (first, again):
        assert torch.equal(s.images, plain.images) and torch.equal(s.labels, plain.labels)
        assert fingerprint(s) == fingerprint(plain) and s.images.dtype == torch.uint8
        assert (s.classes, s.skipped, s.name, s.shape) == (
            plain.classes, plain.skipped, 'zoo', (3, 20, 24))
    assert torch.equal(to_uint8(again[torch.tensor([3, 1])][0]), plain.images[[3, 1]])
    assert kept_in(cache) == ['.json', '.npy']

@pytest.fixture
def folder(tmp_path): return folder_of(tmp_path)

def folder_of(tmp_path, n=6):
    root = tmp_path/'d'
    for i in range(n):
        f = root/'ab'[i % 2]/f'{i}.png'
        f.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (12, 12), (40 * i, 7, 200)).save(f)
    return root

def cached(root, cache, size=8, **options):
    return image_folder(root, size, progress=False, cache=cache, **options)

def touch(root): os.utime(root/'a'/'0.png', ns=(10**18, 10**18))
def rename(root): (root/'a'/'0.png').rename(root/'a'/'zero.png')
def remove(root): (root/'b'/'5.png').unlink()
def add(root): Image.new('RGB', (9, 9)).save(root/'a'/'9.png')

def grow(root):
    f = root/'a'/'0.png'
    s = f.stat()
    f.write_bytes(f.read_bytes() + b'0')
    os.utime(f, ns=(s.st_atime_ns, s.st_mtime_ns))

@pytest.mark.parametrize('change', [touch, rename, remove, add, grow])
def test_a_folder_that_changed_is_read_again(change, folder, tmp_path):
    cached(folder, tmp_path/'c')
    change(folder)
    spoil(folder/'b'/'1.png')
    with pytest.raises(ValueError, match='1.png is not an image'):  # it looked
        cached(folder, tmp_path/'c')

@pytest.mark.parametrize('other', [dict(size=9), dict(channels=1), dict(labels=True),
                                   dict(corrupt='skip'), dict(size=(8, 9))])
def test_other_wishes_are_read_again_and_replace_what_was_there(other, folder, tmp_path):
    cache = tmp_path/'c'
    cached(folder, cache)
    old = set(cache.iterdir())
    s, want = (cached(folder, c, **other) for c in (cache, None))
    assert fingerprint(s) == fingerprint(want) and s.classes == want.classes
    assert kept_in(cache) == ['.json', '.npy'] and len(set(cache.iterdir()) & old) == 1

def test_the_cache_goes_with_a_folder_that_moved(folder, tmp_path):
    first = cached(folder, tmp_path/'c')
    root = folder.rename(tmp_path/'elsewhere')
    for f in root.rglob('*.png'): spoil(f)
    again = cached(str(root), str(tmp_path/'c'))
    assert fingerprint(again) == fingerprint(first) and again.name == 'elsewhere'

def test_writing_to_a_cached_set_does_not_change_the_cache(folder, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        s = cached(folder, tmp_path/'c')
    before = fingerprint(s)
    s.images.fill_(3)
    assert fingerprint(cached(folder, tmp_path/'c')) == before != fingerprint(s)

HARM = [lambda f: f.write_bytes(f.read_bytes()[:f.stat().st_size // 2]),
        lambda f: f.write_bytes(b''), lambda f: f.unlink(), lambda f: f.write_text('[1, 2]'),
        lambda f: f.write_text('{}'),
        lambda f: np.save(f.open('wb'), np.zeros((6, 3, 8, 9), np.uint8))]

@pytest.mark.parametrize('harm', HARM)
@pytest.mark.parametrize('suffix', ['npy', 'json'])
def test_a_damaged_cache_is_made_again(suffix, harm, folder, tmp_path):
    cache = tmp_path/'c'
    want = fingerprint(cached(folder, cache))
    harm(next(cache.glob(f'*.{suffix}')))
    assert fingerprint(cached(folder, cache)) == want and kept_in(cache) == ['.json', '.npy']

def test_an_error_leaves_nothing_half_written_and_the_old_cache_as_it_was(folder, tmp_path):
    cache = tmp_path/'c'
    want = fingerprint(cached(folder, cache))
    before = {f.name: f.read_bytes() for f in cache.iterdir()}
    (folder/'b'/'z.txt').write_text('no image')      # found last, when all others are written
    with pytest.raises(ValueError, match='z.txt'): cached(folder, cache)
    assert {f.name: f.read_bytes() for f in cache.iterdir()} == before
    (folder/'b'/'z.txt').unlink()
    assert fingerprint(cached(folder, cache)) == want

def test_what_a_killed_run_left_goes_away_in_the_end(folder, tmp_path):
    cache = tmp_path/'c'
    cache.mkdir()
    (cache/'mine.txt').write_text('mine')
    old, new = cache/'decoded-0.npy.1.part', cache/'decoded-1.npy.2.part'
    old.write_bytes(b'')
    os.utime(old, (0, 0))
    new.write_bytes(b'')                             # this one may be another run, at work
    cached(folder, cache)
    assert not old.exists() and new.exists() and (cache/'mine.txt').exists()

def test_a_cache_that_cannot_be_written_says_so(folder, tmp_path):
    (tmp_path/'c').write_text('a file')
    with pytest.raises(OSError, match='cannot write the cache.*GB there'):
        cached(folder, tmp_path/'c')

def test_a_full_disk_leaves_nothing_behind(tmp_path):
    root = folder_of(tmp_path, 60)
    with full_disk(100_000):
        with pytest.raises(OSError, match='cannot write the cache.*Give another folder'):
            cached(root, tmp_path/'c', 32)
    assert list((tmp_path/'c').iterdir()) == []

def test_a_cache_among_the_images_is_refused_unless_hidden(folder, tmp_path):
    for cache in (folder, folder/'cache', folder/'a'/'..'/'cache'):
        with pytest.raises(ValueError, match='lies among the images'): cached(folder, cache)
    for _ in range(2): assert len(cached(folder, folder/'.cache')) == 6
    assert len(cached(folder, tmp_path)) == 6   # around it is no harm

def fresh_env():
    return os.environ | dict(PYTHONPATH=str(Path(data.__file__).parent.parent), OMP_NUM_THREADS='1')

def peak(code, *args):
    "Megabytes that a fresh process took at its worst, beyond what it had taken before"
    code = f'''
import sys
from diffusion_scratch.data import *
def mb():  # of this process alone, unlike getrusage
    line = next(l for l in open('/proc/self/status') if l.startswith('VmHWM'))
    return int(line.split()[1]) / 1024
before = mb()
{code}
print(mb() - before)'''
    done = subprocess.run([sys.executable, '-c', code, *map(str, args)], capture_output=True,
                          text=True, check=True, env=fresh_env())
    return float(done.stdout)

@pytest.mark.skipif(sys.platform != 'linux', reason='no /proc there')
def test_decoded_bytes_are_never_held_twice(tmp_path):
    """60 pictures of 3 MB: in memory once; and with a cache, when it is written and when it is
    read, not even that"""
    root = tmp_path/'d'
    root.mkdir()
    Image.new('RGB', (64, 64), 'red').save(root/'0.png')
    for i in range(1, 60): shutil.copy(root/'0.png', root/f'{i}.png')
    code = '''
s = image_folder(sys.argv[1], 1024, progress=False, cache=(sys.argv[2:] or [None])[0])
assert len(s) == 60 and s.shape == (3, 1024, 1024)
s[7]'''
    assert 175 < peak(code, root) < 290
    for _ in range(2): assert peak(code, root, tmp_path/'c') < 110

def test_ctrl_c_stops_soon_and_leaves_no_part(tmp_path):
    root, cache = tmp_path/'d', tmp_path/'c'
    root.mkdir()
    drawing(1200, 1600).save(root/'0.png')
    for i in range(1, 400): os.link(root/'0.png', root/f'{i}.png')
    code = '''
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
from diffusion_scratch.data import image_folder
print('go', flush=True)
image_folder(sys.argv[1], 64, progress=False, cache=sys.argv[2])'''
    p = subprocess.Popen([sys.executable, '-c', code, root, cache], stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, env=fresh_env())
    p.stdout.readline()
    time.sleep(1)
    assert p.poll() is None and kept_in(cache) == ['.part']
    p.send_signal(signal.SIGINT)
    began = time.perf_counter()
    _, err = p.communicate(timeout=60)
    assert time.perf_counter() - began < 5 and b'KeyboardInterrupt' in err
    assert list(cache.iterdir()) == []

# ---- images from Python

class Items(Dataset):
    def __init__(self, items, **more):
        self.items = items
        self.__dict__.update(more)

    def __len__(self): return len(self.items)
    def __getitem__(self, i): return self.items[i]

SOME = torch.randint(0, 256, (5, 3, 6, 7), dtype=torch.uint8,
                     generator=torch.Generator().manual_seed(0))
FLOAT = to_float(SOME)

@pytest.mark.parametrize('source', [
    SOME, SOME.numpy(), FLOAT, FLOAT.double().numpy(), SOME.numpy()[::-1][::-1], list(SOME),
    tuple(FLOAT), [im.numpy() for im in SOME],
    [Image.fromarray(im.permute(1, 2, 0).numpy()) for im in SOME], Items(list(SOME)),
    ImageSet(SOME), Items(list(zip(SOME, [None] * 5)))])
def test_the_same_images_however_they_come(source):
    s = image_set(source, name='mine')
    assert torch.equal(s.images, SOME) and s.labels is None and s.name == 'mine'
    assert fingerprint(s) == fingerprint(ImageSet(SOME))
    assert image_set(source, torch.arange(5)).labels.tolist() == [0, 1, 2, 3, 4]
    assert image_set(source, [1] * 5).num_classes == 2

@pytest.mark.parametrize('label', [int, np.int64, np.uint8, torch.tensor,
                                   lambda y: torch.tensor(y, dtype=torch.uint8)])
def test_labels_of_items(label):
    pairs = [(im, label(y)) for im, y in zip(SOME, [2, 0, 1, 1, 2])]
    for source in (pairs, Items(pairs), [list(p) for p in pairs]):
        s = image_set(source)
        assert s.labels.tolist() == [2, 0, 1, 1, 2] and s.num_classes == 3
    s = image_set(Items(pairs, classes=['x', 'y', 'z', 'w']))
    assert s.classes == ('x', 'y', 'z', 'w') and s.num_classes == 4
    assert image_set(Items(pairs, classes=['x', 'y'])).classes == ()   # they name other things
    s = image_set(Items(pairs, classes=['x', 'y', 'z']), [0, 1, 0, 1, 0])
    assert s.labels.tolist() == [0, 1, 0, 1, 0] and s.classes == ()

def test_torch_and_torchvision_sets(digits):
    from torchvision.datasets import FakeData
    from torchvision.transforms import Compose, Normalize, ToTensor
    normalised = Compose([ToTensor(), Normalize([0.5] * 3, [0.5] * 3)])
    raw = FakeData(6, (3, 10, 12), num_classes=4)
    a = image_set(raw)
    b = image_set(FakeData(6, (3, 10, 12), num_classes=4, transform=normalised))
    assert a.shape == (3, 10, 12) and torch.equal(a.images[2], pixels(raw[2][0]))
    assert fingerprint(a) == fingerprint(b)
    assert a.labels.tolist() == [int(raw[i][1]) for i in range(6)]
    part = image_set(Subset(digits, [4999, 0]))
    assert torch.equal(part.images, digits.images[[4999, 0]]) and part.labels.tolist() == [9, 0]
    assert torch.equal(image_set(TensorDataset(SOME, torch.arange(5))).images, SOME)
    again = image_set(digits)
    assert fingerprint(again) == fingerprint(digits) and again.classes == digits.classes

def test_a_torchvision_set_in_0_to_1_is_taken_with_one_warning():
    from torchvision.datasets import FakeData
    from torchvision.transforms import ToTensor
    source = FakeData(5, (1, 8, 8), transform=ToTensor())
    with pytest.warns(UserWarning, match=r'2 \* images - 1') as found: image_set(source)
    assert len(found) == 1

def test_odd_pictures_from_pil():
    def blank(*modes): return image_set([Image.new(m, (4, 4)) for m in modes])
    assert blank('1', 'L', 'LA').shape == (1, 4, 4)
    assert blank('RGB', 'RGBA', 'P', 'CMYK').shape == (3, 4, 4)
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    assert torch.equal(image_set([Image.fromarray(ramp)]).images.flatten(), EVERY)
    clear = Image.new('RGBA', (4, 4), (255, 0, 0, 0))
    assert image_set([clear]).images.min() == 255   # on white
    with pytest.raises(ValueError, match='image 1: its pixels are 32-bit'): blank('L', 'F')

def test_read_only_memory_is_read_without_a_warning(tmp_path):
    np.save(tmp_path/'a.npy', SOME.numpy())
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert torch.equal(image_set(np.load(tmp_path/'a.npy', mmap_mode='r')).images, SOME)

@pytest.mark.parametrize('source, error, message', [
    ([SOME[0], SOME[1], SOME[2, :, :5]], ValueError,
     r'image 2 is \(3, 5, 7\), and those before it \(3, 6, 7\)'),
    ([SOME[0], SOME[1, :1]], ValueError, r'image 1 is \(1, 6, 7\)'),
    ([SOME[0], Image.new('L', (7, 6))], ValueError, r'image 1 is \(1, 6, 7\)'),
    ([SOME[0, 0]], ValueError, r'image 0 is \(6, 7\); it must be \(C,H,W\)'),
    (list(torch.zeros(3, 32, 32, 3, dtype=torch.uint8)), ValueError, 'channels last'),
    ([FLOAT[0], SOME[1].float()], ValueError, r'the values of image 1 lie in \[\d+, 25\d\]'),
    ([FLOAT[0], torch.full((3, 6, 7), float('nan'))], ValueError, 'image 1 lie in .nan, nan'),
    ([SOME[0].long()], TypeError, 'image 0 must be uint8.*int64'),
    ([(SOME[0], 1), (SOME[1], 'cat')], TypeError,
     "label of item 1 is 'cat'; it must be a whole number"),
    ([(SOME[0], 1), (SOME[1], 0.5)], TypeError, 'label of item 1 is 0.5'),
    ([(SOME[0], 1), SOME[1]], ValueError, 'item 1 has no label'),
    ([(SOME[0], -1)], ValueError, '-1..-1; allowed'),
    ([(SOME[0], 1, 2)], TypeError, 'item 0 is a tuple; allowed are'),
    ([{'image': SOME[0]}], TypeError, 'item 0 is a dict'),
    ([], ValueError, 'holds no items'),
    ('a/path', TypeError, 'cannot read a str.*image_folder'),
    (Path('a'), TypeError, 'image_folder'),
    (Image.new('L', (4, 4)), TypeError, 'cannot read a Image'),
    ({'a': SOME}, TypeError, 'cannot read a dict'),
    (iter(SOME), TypeError, 'with a length'),
    (SOME[0], ValueError, r'not \(3, 6, 7\)'),
    (SOME.long(), TypeError, 'int64'),
    (2 * FLOAT, ValueError, r'\[-2, 2\]'),
    (SOME[:, :, :0], ValueError, r'not \(5, 3, 0, 7\)'),
])
def test_sources_that_are_refused(source, error, message):
    with pytest.raises(error, match=message): image_set(source)

@pytest.mark.parametrize('source', [SOME, list(SOME), ImageSet(SOME)])
def test_labels_that_do_not_fit_a_source_are_refused(source):
    with pytest.raises(ValueError, match=r'5 images need \(5,\)'): image_set(source, [0, 1])

# ---- fingerprint and check_varied

def test_a_fingerprint_is_the_same_for_the_same_and_another_for_any_change(digits, tmp_path):
    x, y, classes = digits.images[:40], digits.labels[:40], digits.classes
    f = fingerprint(ImageSet(x, y, classes, 'few'))
    assert len(f) == 64 and int(f, 16) >= 0
    np.save(tmp_path/'a.npy', x.numpy())
    mapped = torch.from_numpy(np.load(tmp_path/'a.npy', mmap_mode='c'))
    strided = x.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    subset = image_set(Subset(digits, range(40)), y)
    subset.classes = classes
    same = [ImageSet(x.clone(), y.int(), classes, 'another name'), subset,
            ImageSet(to_float(x), y, list('0123456789')), ImageSet(strided, y, classes),
            ImageSet(mapped, y, classes)]
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

def test_one_pixel_that_differs_is_enough_wherever_it_is(digits):
    check_varied(digits)
    for where in ((0, 0, 0, 1), (2999, 2, 31, 31), (1500, 1, 3, 4), (0, 0, 0, 0)):
        images = torch.full((3000, 3, 32, 32), 9, dtype=torch.uint8)  # 9 MB: more than one block
        images[where] = 10
        check_varied(ImageSet(images))
    flat = torch.tensor([0, 9], dtype=torch.uint8).view(2, 1, 1, 1)   # each image its own value
    check_varied(ImageSet(flat))
