"Images in, images out: from outside, against hand-made files and other libraries"
import gzip, hashlib, json, os, pickle, shutil, signal, socket, struct, subprocess, sys, threading, time, warnings
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
from diffusion_scratch import data
from torch.utils.data import Dataset, Subset, TensorDataset
from diffusion_scratch.data import DATA, ImageSet, check_varied, cifar10, fingerprint, grid, image_folder, image_set, mnist, mnist_mini, to_float, to_uint8

EVERY = torch.arange(256, dtype=torch.uint8)
REAL = os.environ.get('DIFFUSION_SCRATCH_DATA')  # a folder with MNIST/raw/*.gz, for checks against the whole of MNIST

@pytest.fixture(scope='module')
def digits(): return mnist_mini()

# ---- bytes and floats: eq-bytes

def test_every_byte_survives_and_lies_where_the_formula_says():
    x = to_float(EVERY)
    assert torch.equal(to_uint8(x), EVERY)
    np.testing.assert_allclose(x.double().numpy(), np.arange(256) / 127.5 - 1, atol=1.2e-7)  # one unit in the last place near 1
    assert x.dtype == torch.float32 and x[0] == -1 and x[255] == 1

@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
def test_every_byte_survives_other_precisions(dtype): assert torch.equal(to_uint8(to_float(EVERY).to(dtype)), EVERY)

def test_a_disturbance_below_half_a_byte_is_rounded_away_and_a_larger_one_is_not():
    x, half = to_float(EVERY).double(), 0.5 / 127.5
    for sign in (-1, 1):
        assert torch.equal(to_uint8(x + sign * 0.99 * half), EVERY)
        moved = to_uint8(x + sign * 1.01 * half).int() - EVERY.int()
        assert torch.equal(moved.clamp(min=0) if sign > 0 else moved.clamp(max=0), moved) and moved.abs().sum() == 255  # all but the one at the end of the range

def test_what_lies_outside_is_clamped_not_wrapped():
    x = torch.tensor([-torch.inf, -300., -1.02, -1.004, 1.004, 1.02, 300., torch.inf])
    assert to_uint8(x).tolist() == [0]*4 + [255]*4

def test_ranges_and_types_that_are_refused():
    with pytest.raises(TypeError, match='torch.float32'): to_float(torch.zeros(2, 1, 4, 4))
    with pytest.raises(TypeError, match='torch.int64'): to_float(torch.zeros(2, 1, 4, 4).long())
    with pytest.raises(ValueError, match='3 of 8 pixels are NaN'): to_uint8(torch.tensor([0.]*5 + [float('nan')]*3))

# ---- ImageSet

def test_an_image_set_indexes_like_a_tensor_and_keeps_bytes(digits):
    assert digits.images.dtype == torch.uint8 and digits.shape == (1, 28, 28) and len(digits) == 5000 and digits.num_classes == 10
    which = torch.tensor([4999, 0, 2500])
    x, y = digits[which]
    assert torch.equal(to_uint8(x), digits.images[which]) and y.tolist() == [9, 0, 5]
    x, y = digits[3:5]; assert x.shape == (2, 1, 28, 28) and y.shape == (2,)
    x, y = digits[7]; assert x.shape == (1, 28, 28) and y == 0
    assert repr(digits) == "ImageSet('mnist_mini': 5,000 images (1, 28, 28), 10 classes)"

def test_own_floats_come_back_to_half_a_byte_and_without_labels():
    x = torch.rand(6, 2, 5, 9, generator=torch.Generator().manual_seed(0)) * 2 - 1
    s = ImageSet(x, name='own')
    got, y = s[:]
    assert (got - x).abs().max() <= 0.5 / 127.5 + 1e-6 and y is None and s.num_classes == 0 and repr(s) == "ImageSet('own': 6 images (2, 5, 9))"

def test_classes_without_labels_are_no_classes(): assert ImageSet(torch.zeros(2, 1, 4, 4), classes=('a', 'b')).num_classes == 0

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
    with pytest.raises(error, match=message): ImageSet(torch.zeros(3, 1, 8, 8), labels, classes=('a', 'b'))

def test_data_in_0_to_1_is_taken_with_a_warning():
    with pytest.warns(UserWarning, match=r'2 \* images - 1'): ImageSet(torch.linspace(0, 1, 64).view(1, 1, 8, 8))

# ---- mnist_mini and what torchvision reads

def test_mnist_mini_is_500_real_digits_of_each_class(digits):
    assert torch.equal(digits.labels.bincount(), torch.full((10,), 500)) and digits.classes == tuple('0123456789')
    assert digits.images[:, :, 0].float().mean() < 1 < 30 < digits.images.float().mean() < 36  # black border; MNIST's mean gray is 33.3
    assert len({im.numpy().tobytes() for im in digits.images}) == 5000  # no digit twice

def write_idx(file, array): file.write_bytes(bytes([0, 0, 8, array.ndim]) + struct.pack(f'>{array.ndim}I', *array.shape) + array.numpy().tobytes())

@pytest.fixture
def idx_root(digits, tmp_path):
    "MNIST's layout with mnist_mini in it: 400 digits to train on, 50 to test on"
    raw = tmp_path/'MNIST'/'raw'; raw.mkdir(parents=True)
    for part, s in (('train', slice(0, 5000, 12)), ('t10k', slice(5, 5000, 100))):
        write_idx(raw/f'{part}-images-idx3-ubyte', digits.images[s, 0]); write_idx(raw/f'{part}-labels-idx1-ubyte', digits.labels[s].byte())
    return tmp_path

def test_mnist_reads_files_in_its_own_format(digits, idx_root):
    train, test = mnist(idx_root), mnist(str(idx_root), train=False, download=False)  # nothing is missing, so nothing is fetched
    assert torch.equal(train.images, digits.images[::12]) and torch.equal(train.labels, digits.labels[::12]) and train.shape == (1, 28, 28)
    assert torch.equal(test.images, digits.images[5::100]) and torch.equal(test.labels, digits.labels[5::100]) and test.num_classes == 10

def test_a_damaged_mnist_file_says_what_to_do(idx_root):
    f = idx_root/'MNIST'/'raw'/'train-images-idx3-ubyte'
    f.write_bytes(f.read_bytes()[:5000])
    with pytest.raises(FileNotFoundError, match='delete damaged ones first.*mnist_mini'): mnist(idx_root)

def test_cifar10_reads_files_in_its_own_format(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10
    folder, rng, md5 = tmp_path/CIFAR10.base_folder, np.random.default_rng(0), {}
    folder.mkdir()
    def write(name, obj):
        (folder/name).write_bytes(pickle.dumps(obj)); md5[name] = hashlib.md5((folder/name).read_bytes()).hexdigest()
    pixels = {n: rng.integers(0, 256, (4, 3072), dtype=np.uint8) for n, _ in CIFAR10.train_list + CIFAR10.test_list}
    for i, (n, p) in enumerate(pixels.items()): write(n, dict(data=p, labels=[i, 9, 0, 1]))
    write('batches.meta', dict(label_names=list('abcdefghij')))
    for which in ('train_list', 'test_list'): monkeypatch.setattr(CIFAR10, which, [[n, md5[n]] for n, _ in getattr(CIFAR10, which)])
    monkeypatch.setattr(CIFAR10, 'meta', {**CIFAR10.meta, 'md5': md5['batches.meta']})
    train, test = cifar10(tmp_path, download=False), cifar10(tmp_path, train=False, download=False)
    assert train.shape == (3, 32, 32) and len(train) == 20 and train.classes == tuple('abcdefghij') and train.labels[::4].tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(train.images.flatten(1), torch.from_numpy(np.concatenate(list(pixels.values())[:5])))  # the format stores planes: red, green, blue
    assert torch.equal(test.images[2, 1], torch.from_numpy(pixels['test_batch'][2, 1024:2048]).view(32, 32)) and test.images.is_contiguous()

@pytest.fixture
def silent_server():
    "A server that takes calls and never answers"
    s = socket.create_server(('127.0.0.1', 0)); calls = []
    threading.Thread(target=lambda: [calls.append(c) for c in iter(lambda: _accept(s), None)], daemon=True).start()
    yield f'http://127.0.0.1:{s.getsockname()[1]}/'
    s.shutdown(socket.SHUT_RDWR); s.close(); [c.close() for c in calls]

def _accept(s):
    try: return s.accept()[0]
    except OSError: return None

@pytest.fixture
def closed_server():
    with socket.create_server(('127.0.0.1', 0)) as s: port = s.getsockname()[1]
    return f'http://127.0.0.1:{port}/'

@pytest.fixture
def no_proxy(monkeypatch): monkeypatch.setenv('no_proxy', '*')

@pytest.mark.parametrize('load, name', [(mnist, 'MNIST'), (cifar10, 'CIFAR10')])
@pytest.mark.parametrize('server', ['silent_server', 'closed_server'])
def test_no_network_and_no_files_says_what_to_do_and_soon(load, name, server, tmp_path, monkeypatch, request, no_proxy):
    from torchvision import datasets
    url = request.getfixturevalue(server)
    monkeypatch.setattr(datasets.MNIST, 'mirrors', [url, url]); monkeypatch.setattr(datasets.CIFAR10, 'url', url + 'cifar.tar.gz')
    monkeypatch.setattr(data, 'PATIENCE', 0.3)
    socket.setdefaulttimeout(77.)
    try:
        began = time.perf_counter()
        with pytest.raises(FileNotFoundError, match=f'{name} in .*{tmp_path.name}.*Connect to the network.*mnist_mini'): load(tmp_path)
        assert time.perf_counter() - began < 10 and socket.getdefaulttimeout() == 77.  # as it was
    finally: socket.setdefaulttimeout(None)

@pytest.mark.parametrize('load', [mnist, cifar10])
def test_download_false_asks_no_server(load, tmp_path, monkeypatch):
    monkeypatch.setattr('urllib.request.urlopen', lambda *a, **k: pytest.fail('asked a server'))
    with pytest.raises(FileNotFoundError, match='download=False.*mnist_mini'): load(tmp_path, download=False)
    assert list(tmp_path.iterdir()) == []

def test_downloads_go_below_the_home_folder(): assert DATA.parts[0] == '~' and data.PATIENCE <= 30

@pytest.mark.skipif(not REAL, reason='DIFFUSION_SCRATCH_DATA names no folder with MNIST/raw/*.gz')
def test_every_digit_of_mnist_mini_is_a_digit_of_mnist(digits, tmp_path):
    raw = tmp_path/'MNIST'/'raw'; raw.mkdir(parents=True)
    for f in (Path(REAL)/'MNIST'/'raw').glob('*.gz'):
        with gzip.open(f) as a, open(raw/f.stem, 'wb') as b: shutil.copyfileobj(a, b)
    whole = mnist(tmp_path, download=False)
    assert len(whole) == 60000 and len(mnist(tmp_path, train=False, download=False)) == 10000
    known = {im.numpy().tobytes(): int(y) for im, y in zip(whole.images, whole.labels)}
    assert all(known.get(im.numpy().tobytes()) == y for im, y in zip(digits.images, digits.labels.tolist()))

# ---- a folder of images

def picture(h=30, w=50):
    y, x = np.mgrid[:h, :w]
    return Image.fromarray(np.stack([255 * x // w, 255 * y // h, 128 + 0 * x], 2).astype(np.uint8))

def read(tmp_path, im, size, channels=3, name='a.png', **save):
    (tmp_path/'d').mkdir(exist_ok=True)
    im.save(tmp_path/'d'/name, **save)
    return image_folder(tmp_path/'d', size, channels, progress=False).images[0]

def test_a_picture_of_the_right_size_is_not_touched(tmp_path):
    im = picture()
    assert torch.equal(read(tmp_path, im, (30, 50)).permute(1, 2, 0), torch.from_numpy(np.array(im)))

@pytest.mark.parametrize('h, w, H, W', [(40, 100, 20, 20), (80, 48, 40, 60), (64, 64, 32, 32), (10, 10, 33, 17)])
def test_the_middle_is_kept_in_proportion(h, w, H, W, tmp_path):  # eq-cover
    "Red says the column and green the row that a pixel came from; compare with the formula at the middle and near the corners"
    im = read(tmp_path, picture(h, w), (H, W)).double()
    s = max(H / h, W / w)
    row = lambda i: ((i + 0.5 - H / 2) / s + h / 2 - 0.5) * 255 / h
    col = lambda j: ((j + 0.5 - W / 2) / s + w / 2 - 0.5) * 255 / w
    i, j = torch.arange(H // 4, 3 * H // 4), torch.arange(W // 4, 3 * W // 4)
    assert (im[1, i][:, j] - row(i)[:, None]).abs().max() < 4 and (im[0, i][:, j] - col(j)[None]).abs().max() < 4

def test_shrinking_averages(tmp_path):
    board = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8))
    assert (read(tmp_path, board, 16, 1).float() - 127.5).abs().max() <= 2  # picking pixels would give 0 or 255

@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA'])
@pytest.mark.parametrize('channels', [1, 3])
def test_modes_agree_with_pillow_where_pillow_is_right(mode, channels, tmp_path):
    im = picture(16, 16).convert(mode)
    want = np.array(im.convert('RGB').convert('L' if channels == 1 else 'RGB')).reshape(16, 16, channels)
    got = read(tmp_path, im, 16, channels)
    assert got.shape == (channels, 16, 16) and np.abs(got.permute(1, 2, 0).numpy().astype(int) - want).max() <= 1

def test_cmyk_becomes_colour(tmp_path):
    got = read(tmp_path, Image.new('CMYK', (8, 8), (0, 255, 255, 0)), 8, name='a.tif')
    assert got[0].min() > 200 and got[1:].max() < 60  # red

def test_transparent_pixels_lie_on_white(tmp_path):
    im = Image.new('RGBA', (8, 8), (255, 0, 0, 0)); im.paste((0, 0, 255, 255), (0, 0, 4, 8)); im.paste((0, 0, 0, 128), (4, 4, 8, 8))
    got = read(tmp_path, im, 8)
    assert got[:, 0, 0].tolist() == [0, 0, 255] and got[:, 0, 7].tolist() == [255]*3 and (got[:, 7, 7].float() - 127).abs().max() <= 1
    assert read(tmp_path, im.quantize(8), 8)[:, 0, 7].tolist() == [255]*3
    assert read(tmp_path, Image.new('RGB', (8, 8), (9, 8, 7)), 8, transparency=(9, 8, 7))[:, 0, 0].tolist() == [255]*3

@pytest.mark.parametrize('orientation', range(1, 9))
def test_photographs_stand_upright(orientation, tmp_path):
    im, exif = picture(32, 48), Image.Exif()
    T = Image.Transpose
    undo = {1: None, 2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_90, 7: T.TRANSVERSE, 8: T.ROTATE_270}[orientation]
    exif[274] = orientation
    got = read(tmp_path, im.transpose(undo) if undo is not None else im, (32, 48), exif=exif)
    assert torch.equal(got.permute(1, 2, 0), torch.from_numpy(np.array(im)))

@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('name', ['a.png', 'a.tif'])
def test_sixteen_bits_keep_their_grays(channels, name, tmp_path):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)  # 0, 257, 514 ...
    got = read(tmp_path, Image.fromarray(ramp), 16, channels, name)
    assert all(torch.equal(c.flatten(), EVERY) for c in got)

@pytest.mark.parametrize('dtype', [np.int32, np.float32])
def test_32_bit_pixels_of_unknown_range_are_refused(dtype, tmp_path):
    with pytest.raises(ValueError, match='a.tif.*32-bit numbers'): read(tmp_path, Image.fromarray(np.full((8, 8), 1000, dtype)), 8, name='a.tif')

def test_files_at_any_depth_in_order_and_hidden_ones_passed_over(tmp_path):
    for i, name in enumerate(['b/c/x.png', 'a.jpg', 'b/a.bmp', '.hidden.png', '.git/x.png', '.DS_Store']):
        f = tmp_path/name; f.parent.mkdir(parents=True, exist_ok=True)
        if name == '.DS_Store': f.write_bytes(b'rubbish')
        else: Image.new('L', (9, 9), 60 * i).save(f)
    s = image_folder(tmp_path, 4, 1, progress=False)
    assert s.images[:, 0, 0, 0].tolist() == [60, 120, 0] and s.name == tmp_path.name and s.labels is None  # a.jpg, b/a.bmp, b/c/x.png

def test_thin_and_tiny_pictures(tmp_path):
    for i, s in enumerate([(1, 1), (1, 300), (300, 1), (2, 3)]): Image.new('RGB', s, (10, 20, 30)).save(tmp_path/f'{i}.png')
    s = image_folder(tmp_path, (6, 11), progress=False)
    assert s.shape == (3, 6, 11) and all((c == v).all() for c, v in zip(s.images.transpose(0, 1), (10, 20, 30)))

def _truncated(f): picture(200, 200).save(f); f.write_bytes(f.read_bytes()[:len(f.read_bytes()) // 2])

@pytest.mark.parametrize('name, make', [
    ('notes.txt', lambda f: f.write_text('hello')), ('empty.png', lambda f: f.write_bytes(b'')),
    ('cut.png', _truncated), ('cut.jpg', _truncated), ('cut.gif', _truncated), ('wrong.png', lambda f: f.write_bytes(b'\x89PNG\r\n\x1a\n' + b'\0' * 50)),
])
def test_a_file_that_is_no_image_is_named(name, make, tmp_path):
    picture().save(tmp_path/'good.png'); make(tmp_path/name)
    with pytest.raises(ValueError, match=f'{name} is not an image that can be read.*repair or remove it'): image_folder(tmp_path, progress=False)

@pytest.mark.filterwarnings('ignore')
def test_bytes_of_no_sense_never_give_another_error(tmp_path):
    "A hundred images with random bytes in them: each is read, or refused by name"
    rng, refused = np.random.default_rng(0), 0
    for fmt in ('png', 'jpg', 'gif', 'bmp', 'tif'):
        f = tmp_path/f'x.{fmt}'; picture().save(f); whole = np.frombuffer(f.read_bytes(), np.uint8)
        for _ in range(20):
            b = whole.copy(); b[rng.integers(0, min(len(b), 400), 8)] = rng.integers(0, 256, 8)
            f.write_bytes(b.tobytes())
            try: assert image_folder(tmp_path, 8, progress=False).shape == (3, 8, 8)
            except ValueError as e: refused += 1; assert f'x.{fmt}' in str(e)
        f.unlink()
    assert refused > 10

@pytest.mark.parametrize('kwargs, message', [(dict(channels=4), 'channels = 4.*1.*3'), (dict(size=0), 'size = 0'), (dict(size=(8, -1)), r'size = \(8, -1\)')])
def test_sizes_and_channels_that_are_refused(kwargs, message, tmp_path):
    picture().save(tmp_path/'a.png')
    with pytest.raises(ValueError, match=message): image_folder(tmp_path, **kwargs)

def test_empty_and_missing_folders(tmp_path):
    (tmp_path/'.hidden').write_text('')
    with pytest.raises(FileNotFoundError, match='holds no files; put images there'): image_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match='nowhere is not a folder'): image_folder(tmp_path/'nowhere')
    with pytest.raises(FileNotFoundError, match='hidden is not a folder'): image_folder(tmp_path/'.hidden')

# ---- a folder with everything in it

def drawing(h=90, w=150):
    "A smooth scene that JPEG keeps well: colours that run, and a soft disc left of the middle"
    y, x = np.mgrid[:h, :w]
    disc = 1 / (1 + np.exp((np.hypot(y - h / 2, x - w * 0.4) - h / 4) / (h / 20)))
    return Image.fromarray(np.stack([40 + 150 * x / w, 200 - 120 * y / h, 60 + 150 * disc], 2).round().astype(np.uint8))

def exif(orientation):
    e = Image.Exif(); e[274] = orientation
    return e

GOOD = {  # name -> how to make it from the scene; all but the two gray ones are to be read as the scene itself
    'a/plain.png': lambda im, f: im.save(f), 'a/odd size.png': lambda im, f: im.resize((301, 181), Image.Resampling.BICUBIC).save(f),
    'a/alpha.png': lambda im, f: im.convert('RGBA').save(f), 'a/palette.png': lambda im, f: im.quantize(256).save(f),
    'b/gray.jpg': lambda im, f: im.convert('L').save(f, quality=95), 'b/sixteen bits.png': lambda im, f: Image.fromarray(np.asarray(im.convert('L')).astype(np.uint16) * 257).save(f),
    'b/animated.gif': lambda im, f: im.save(f, save_all=True, append_images=[Image.new('RGB', im.size, 'black')] * 3),
    'b/deep/er/cmyk.jpg': lambda im, f: im.convert('CMYK').save(f, quality=95),
    'b/deep/turned.jpg': lambda im, f: im.transpose(Image.Transpose.ROTATE_90).resize((900, 1500), Image.Resampling.BICUBIC).save(f, exif=exif(6), quality=95),
}
BAD = {'a/cut.jpg': lambda f: (drawing().save(f), f.write_bytes(f.read_bytes()[:700])), 'a/empty.png': lambda f: f.write_bytes(b''),
       'b/Thumbs.db': lambda f: f.write_bytes(b'\xd0\xcf\x11\xe0 rubbish'), 'b/deep/list.txt': lambda f: f.write_text('cut.jpg\n')}

@pytest.fixture
def zoo(tmp_path):
    root = tmp_path/'zoo'
    for name, make in {**{n: lambda f, m=m: m(drawing(), f) for n, m in GOOD.items()}, **BAD}.items():
        f = root/name; f.parent.mkdir(parents=True, exist_ok=True); make(f)
    return root

def test_everything_in_one_folder(zoo):
    s = image_folder(zoo, (30, 50), progress=False, labels=True, corrupt='skip')
    names = sorted(GOOD, key=lambda n: Path(n))
    want = np.asarray(drawing().resize((50, 30), Image.Resampling.LANCZOS)).astype(int)
    gray = np.asarray(Image.fromarray(want.astype(np.uint8)).convert('L')).astype(int)[..., None]
    for name, im in zip(names, s.images, strict=True):
        off = np.abs(im.permute(1, 2, 0).numpy() - (gray if name in ('b/gray.jpg', 'b/sixteen bits.png') else want))
        assert off.mean() < 3, (name, off.mean())  # palettes and JPEG cost so much; a turned or stretched scene costs 20 and more
    assert s.classes == ('a', 'b') and s.labels.tolist() == [0] * 4 + [1] * 5
    skipped = dict(line.split(': ', 1) for line in s.skipped)
    assert list(skipped) == sorted(BAD, key=lambda n: Path(n)) and all(skipped.values())
    assert 'truncated' in skipped['a/cut.jpg'] and 'no format that Pillow knows' in skipped['b/deep/list.txt']
    assert not any(str(zoo) in line or '\n' in line for line in s.skipped) and repr(s).endswith('2 classes, 4 files skipped)')
    x, y = s[torch.tensor([8, 0])]; assert x.shape == (2, 3, 30, 50) and y.tolist() == [1, 0]

def test_without_labels_or_in_gray_it_is_the_same_folder(zoo):
    s, g = image_folder(zoo, 16, corrupt='skip', progress=False), image_folder(zoo, 16, 1, corrupt='skip', progress=False)
    assert len(s) == len(g) == 9 and s.labels is None and s.classes == () and g.shape == (1, 16, 16) and s.skipped == g.skipped and len(s.skipped) == 4

@pytest.mark.parametrize('name', BAD)
def test_each_bad_file_is_refused_by_name(name, zoo):
    for n in BAD:
        if n != name: (zoo/n).unlink()
    with pytest.raises(ValueError, match=f"{zoo/name} is not an image.*repair or remove it, or let corrupt='skip'"): image_folder(zoo, 16, progress=False)

def test_the_first_bad_file_is_named_whatever_the_threads_do(zoo):
    for _ in range(3):
        with pytest.raises(ValueError, match='cut.jpg'): image_folder(zoo, 16, progress=False)

def test_a_folder_of_nothing_but_bad_files_is_refused(zoo):
    for n in GOOD: (zoo/n).unlink()
    with pytest.raises(ValueError, match='holds no image that can be read: all 4 files.*a/cut.jpg: '): image_folder(zoo, 16, corrupt='skip', progress=False)

def test_a_class_of_nothing_but_bad_files_is_refused(zoo):
    (zoo/'__MACOSX').mkdir(); (zoo/'__MACOSX'/'x').write_text('')
    with pytest.raises(ValueError, match="class '__MACOSX': none of the files"): image_folder(zoo, 16, labels=True, corrupt='skip', progress=False)
    assert len(image_folder(zoo, 16, corrupt='skip', progress=False)) == 9

def test_a_file_without_a_class_is_named_before_anything_is_read(zoo):
    drawing().save(zoo/'loose.png')
    with pytest.raises(ValueError, match='loose.png lies in no subfolder'): image_folder(zoo, 16, labels=True, corrupt='skip', progress=False)
    with pytest.raises(ValueError, match='loose.png lies in no subfolder'): image_folder(zoo, 16, labels=True, progress=False)  # sooner than the corrupt ones

@pytest.mark.parametrize('corrupt', ['ignore', None, True])
def test_other_ways_with_corrupt_files_are_refused(corrupt, zoo):
    with pytest.raises(ValueError, match=f"corrupt = {corrupt!r}; 'refuse'.*'skip'"): image_folder(zoo, corrupt=corrupt)

def test_classes_go_by_name_and_not_by_where_their_images_lie(tmp_path):
    for i, n in enumerate(['10/x.png', '9/deep/y.png', 'ab/z.png', 'ab/a/b/c.png', 'Z/q.png']):
        (tmp_path/n).parent.mkdir(parents=True, exist_ok=True); Image.new('L', (8, 8), 40 * i).save(tmp_path/n)
    (tmp_path/'nothing').mkdir(); (tmp_path/'.hidden').mkdir(); (tmp_path/'.hidden'/'x').write_text('')
    s = image_folder(tmp_path, 8, 1, labels=True, progress=False)
    assert s.classes == ('10', '9', 'Z', 'ab') and {int(im[0, 0, 0]): s.classes[y] for im, y in zip(s.images, s.labels)} == {0: '10', 40: '9', 80: 'ab', 120: 'ab', 160: 'Z'}

def test_other_sets_have_skipped_nothing(digits): assert digits.skipped == () and ImageSet(torch.zeros(1, 1, 2, 2)).skipped == ()

def test_an_animation_gives_its_first_picture(tmp_path):
    for name in ('a.gif', 'a.png', 'a.webp'): Image.new('RGB', (8, 8), (250, 0, 0)).save(tmp_path/name, save_all=True, append_images=[Image.new('RGB', (8, 8), (0, 0, 250))] * 2)
    s = image_folder(tmp_path, 8, progress=False)
    assert len(s) == 3 and s.images[:, 0].min() > 245 and s.images[:, 2].max() < 5

def test_threads_keep_the_order_of_the_names(tmp_path):
    "Files of very different cost, which finish in another order than they start"
    for i in range(100): Image.new('L', (1500, 1500) if i % 7 == 0 else (9, 9), i).save(tmp_path/f'{i:03}.png', compress_level=1)
    for cache in (None, tmp_path.parent/'order'): assert image_folder(tmp_path, 4, 1, progress=False, cache=cache).images[:, 0, 0, 0].tolist() == list(range(100))

@pytest.mark.parametrize('w, h', [(1, 1), (1, 900), (900, 1), (9, 1300)])
def test_thin_and_tiny_jpegs(w, h, tmp_path):
    im = Image.new('RGB', (w, h), (60, 120, 180))
    for o in (1, 8): assert (read(tmp_path, im, (6, 11), name='a.jpg', exif=exif(o)).float() - torch.tensor([60., 120, 180]).view(3, 1, 1)).abs().max() <= 3

# ---- JPEGs are decoded smaller where that does no harm

@pytest.mark.parametrize('orientation', [1, 6, 7])
@pytest.mark.parametrize('h, w, size', [(1024, 1024, (64, 64)), (1001, 777, (64, 64)), (517, 1203, (64, 64)), (1200, 400, (32, 100)), (260, 131, (128, 64)), (1024, 1024, (256, 256)), (800, 3200, (50, 200))])
def test_decoding_a_jpeg_smaller_changes_little(h, w, size, orientation, tmp_path):
    """Against a whole decode, Pillow's rotation, crop and resize. Pictures differ by the filter alone, a box in the decoder and then Lanczos in place of Lanczos alone:
    4 bytes at the most and 1 on average. Without the care for edges that fill no whole block it is 20 and 3; below twice the wanted size it is more as well"""
    from PIL import ImageOps
    rng, im = np.random.default_rng(0), np.zeros((h, w, 3))
    for k in (4, 16, 64, 200): im += np.stack([np.asarray(Image.fromarray(rng.random((k, k)).astype(np.float32)).resize((w, h), Image.Resampling.BICUBIC)) for _ in range(3)], 2) / k**0.7
    im = Image.fromarray((255 * (im - im.min()) / np.ptp(im)).astype(np.uint8))
    im.save(tmp_path/'a.jpg', quality=95, exif=exif(orientation))
    whole = ImageOps.fit(ImageOps.exif_transpose(Image.open(tmp_path/'a.jpg')), size[::-1], Image.Resampling.LANCZOS)
    off = np.abs(image_folder(tmp_path, size, progress=False).images[0].permute(1, 2, 0).numpy() - np.asarray(whole).astype(int))
    assert off.max() <= 4 and off.mean() <= 1, (off.max(), off.mean())

def test_a_large_jpeg_is_read_faster_than_it_can_be_decoded_whole(tmp_path):
    drawing(3000, 4000).save(tmp_path/'a.jpg')
    took = []
    for _ in range(3):
        a = time.perf_counter(); image_folder(tmp_path, 64, progress=False)
        b = time.perf_counter(); Image.open(tmp_path/'a.jpg').load(); took.append((b - a) / (time.perf_counter() - b))
    assert min(took) < 0.6  # about 0.2

def test_a_phones_multi_picture_jpeg(tmp_path):
    im = drawing(600, 900)
    im.save(tmp_path/'a.jpg', format='MPO', save_all=True, append_images=[Image.new('RGB', (900, 600))], quality=95)
    got = image_folder(tmp_path, (40, 60), progress=False).images[0].permute(1, 2, 0).numpy().astype(int)
    assert Image.open(tmp_path/'a.jpg').format == 'MPO' and np.abs(got - np.asarray(im.resize((60, 40), Image.Resampling.LANCZOS))).mean() < 2

@pytest.mark.parametrize('orientation', [0, 9, 77])
def test_an_orientation_that_means_nothing_is_passed_over(orientation, tmp_path):
    im = drawing(16, 16)
    assert torch.equal(read(tmp_path, im, 16, exif=exif(orientation)).permute(1, 2, 0), torch.from_numpy(np.array(im)))

def test_a_tiff_is_not_turned_twice(tmp_path):
    im = picture(32, 48)
    assert torch.equal(read(tmp_path, im.transpose(Image.Transpose.ROTATE_90), (32, 48), name='a.tif', exif=exif(6)).permute(1, 2, 0), torch.from_numpy(np.array(im)))

# ---- the cache of decoded bytes

def spoil(f):
    "Other bytes in a file that looks unchanged"
    s = f.stat(); f.write_bytes(bytes(s.st_size)); os.utime(f, ns=(s.st_atime_ns, s.st_mtime_ns))

def kept_in(cache): return sorted(f.suffix for f in cache.iterdir())

def test_a_second_start_reads_no_image(zoo, tmp_path):
    options = dict(size=(20, 24), labels=True, corrupt='skip', cache=tmp_path/'c'/'d', progress=False)
    plain = image_folder(zoo, **{**options, 'cache': None})
    first = image_folder(zoo, **options)
    for f in zoo.rglob('*.*'): spoil(f)            # whoever decodes now finds no image at all
    again = image_folder(zoo, **options)
    for s in (first, again):
        assert torch.equal(s.images, plain.images) and torch.equal(s.labels, plain.labels) and fingerprint(s) == fingerprint(plain)
        assert (s.classes, s.skipped, s.name, s.shape) == (plain.classes, plain.skipped, 'zoo', (3, 20, 24)) and s.images.dtype == torch.uint8
    x, y = again[torch.tensor([3, 1])]; assert torch.equal(to_uint8(x), plain.images[[3, 1]])
    assert kept_in(tmp_path/'c'/'d') == ['.json', '.npy']

def folder_of(tmp_path, n=6):
    root = tmp_path/'d'
    for i in range(n): (root/'ab'[i % 2]).mkdir(parents=True, exist_ok=True); Image.new('RGB', (12, 12), (40 * i, 7, 200)).save(root/'ab'[i % 2]/f'{i}.png')
    return root

def touch(root): os.utime(root/'a'/'0.png', ns=(10**18, 10**18))
def rename(root): (root/'a'/'0.png').rename(root/'a'/'zero.png')
def remove(root): (root/'b'/'5.png').unlink()
def add(root): Image.new('RGB', (9, 9)).save(root/'a'/'9.png')
def grow(root):
    f = root/'a'/'0.png'; s = f.stat(); f.write_bytes(f.read_bytes() + b'0'); os.utime(f, ns=(s.st_atime_ns, s.st_mtime_ns))

@pytest.mark.parametrize('change', [touch, rename, remove, add, grow])
def test_a_folder_that_changed_is_read_again(change, tmp_path):
    root, cache = folder_of(tmp_path), tmp_path/'c'
    image_folder(root, 8, progress=False, cache=cache)
    change(root)
    spoil(root/'b'/'1.png')
    with pytest.raises(ValueError, match='1.png is not an image'): image_folder(root, 8, progress=False, cache=cache)  # it looked

@pytest.mark.parametrize('other', [dict(size=9), dict(channels=1), dict(labels=True), dict(corrupt='skip'), dict(size=(8, 9))])
def test_other_wishes_are_read_again_and_replace_what_was_there(other, tmp_path):
    root, cache = folder_of(tmp_path), tmp_path/'c'
    image_folder(root, **{'size': 8, 'progress': False, 'cache': cache})
    old = set(cache.iterdir())
    s, want = (image_folder(root, **{'size': 8, 'progress': False, 'cache': c, **other}) for c in (cache, None))
    assert fingerprint(s) == fingerprint(want) and s.classes == want.classes and kept_in(cache) == ['.json', '.npy'] and len(set(cache.iterdir()) & old) == 1

def test_the_cache_goes_with_a_folder_that_moved(tmp_path):
    root, cache = folder_of(tmp_path), tmp_path/'c'
    first = image_folder(root, 8, progress=False, cache=cache)
    root = root.rename(tmp_path/'elsewhere')
    for f in root.rglob('*.png'): spoil(f)
    again = image_folder(str(root), 8, progress=False, cache=str(cache))
    assert fingerprint(again) == fingerprint(first) and again.name == 'elsewhere'

def test_writing_to_a_cached_set_does_not_change_the_cache(tmp_path):
    root, cache = folder_of(tmp_path), tmp_path/'c'
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        s = image_folder(root, 8, progress=False, cache=cache)
    before = fingerprint(s)
    s.images.fill_(3)
    assert fingerprint(image_folder(root, 8, progress=False, cache=cache)) == before != fingerprint(s)

def cut_in_half(f): f.write_bytes(f.read_bytes()[:f.stat().st_size // 2])

@pytest.mark.parametrize('harm', [cut_in_half, lambda f: f.write_bytes(b''), lambda f: f.unlink(), lambda f: f.write_text('[1, 2]'), lambda f: f.write_text('{}'), lambda f: np.save(f.open('wb'), np.zeros((6, 3, 8, 9), np.uint8))])
@pytest.mark.parametrize('suffix', ['npy', 'json'])
def test_a_damaged_cache_is_made_again(suffix, harm, tmp_path):
    root, cache = folder_of(tmp_path), tmp_path/'c'
    want = fingerprint(image_folder(root, 8, progress=False, cache=cache))
    harm(next(cache.glob(f'*.{suffix}')))
    assert fingerprint(image_folder(root, 8, progress=False, cache=cache)) == want and kept_in(cache) == ['.json', '.npy']

def test_an_error_leaves_nothing_half_written_and_the_old_cache_as_it_was(tmp_path):
    root, cache = folder_of(tmp_path), tmp_path/'c'
    want = fingerprint(image_folder(root, 8, progress=False, cache=cache))
    before = {f.name: f.read_bytes() for f in cache.iterdir()}
    (root/'b'/'z.txt').write_text('no image')      # found last, when all others are written
    with pytest.raises(ValueError, match='z.txt'): image_folder(root, 8, progress=False, cache=cache)
    assert {f.name: f.read_bytes() for f in cache.iterdir()} == before
    (root/'b'/'z.txt').unlink()
    assert fingerprint(image_folder(root, 8, progress=False, cache=cache)) == want

def test_what_a_killed_run_left_goes_away_in_the_end(tmp_path):
    root, cache = folder_of(tmp_path), tmp_path/'c'
    cache.mkdir(); (cache/'mine.txt').write_text('mine')
    old, new = cache/'decoded-0.npy.1.part', cache/'decoded-1.npy.2.part'
    old.write_bytes(b''); os.utime(old, (0, 0)); new.write_bytes(b'')   # the second may be another run, at work
    image_folder(root, 8, progress=False, cache=cache)
    assert not old.exists() and new.exists() and (cache/'mine.txt').exists()

def test_a_cache_that_cannot_be_written_says_so(tmp_path):
    (tmp_path/'c').write_text('a file')
    with pytest.raises(OSError, match='cannot write the cache.*GB there'): image_folder(folder_of(tmp_path), 8, progress=False, cache=tmp_path/'c')

def test_a_full_disk_leaves_nothing_behind(tmp_path):
    "A limit on the size of files that this process writes is the same error as a full disk: OSError in the middle of the writing"
    resource = pytest.importorskip('resource')
    root, limits = folder_of(tmp_path, 60), resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(OSError, match='cannot write the cache.*Give another folder'): image_folder(root, 32, progress=False, cache=tmp_path/'c')
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limits); signal.signal(signal.SIGXFSZ, old)
    assert list((tmp_path/'c').iterdir()) == []

def test_a_cache_among_the_images_is_refused_unless_hidden(tmp_path):
    root = folder_of(tmp_path)
    for cache in (root, root/'cache', root/'a'/'..'/'cache'):
        with pytest.raises(ValueError, match='lies among the images'): image_folder(root, 8, progress=False, cache=cache)
    for _ in range(2): assert len(image_folder(root, 8, progress=False, cache=root/'.cache')) == 6
    assert len(image_folder(root, 8, progress=False, cache=tmp_path)) == 6   # around it is no harm

def peak(code, *args):
    "Megabytes that a fresh process took at its worst, beyond what it had taken before"
    mb = "mb = lambda: int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]) / 1024"  # of this process alone, unlike getrusage
    code = f"import sys; from diffusion_scratch.data import *; {mb}; a = mb()\n{code}\nprint(mb() - a)"
    return float(subprocess.run([sys.executable, '-c', code, *map(str, args)], capture_output=True, text=True, check=True, env=fresh_env()).stdout)

def fresh_env(): return {**os.environ, 'PYTHONPATH': str(Path(data.__file__).parent.parent), 'OMP_NUM_THREADS': '1'}

@pytest.mark.skipif(sys.platform != 'linux', reason='no /proc there')
def test_decoded_bytes_are_never_held_twice(tmp_path):
    "60 pictures of 3 MB: in memory once; and with a cache, when it is written and when it is read, not even that"
    root = tmp_path/'d'; root.mkdir()
    Image.new('RGB', (64, 64), 'red').save(root/'0.png')
    for i in range(1, 60): shutil.copy(root/'0.png', root/f'{i}.png')
    call = "s = image_folder(sys.argv[1], 1024, progress=False{}); assert len(s) == 60 and s.shape == (3, 1024, 1024); s[7]"
    assert 175 < peak(call.format(''), root) < 290
    for _ in range(2): assert peak(call.format(', cache=sys.argv[2]'), root, tmp_path/'c') < 110

def test_ctrl_c_stops_soon_and_leaves_no_part(tmp_path):
    root = tmp_path/'d'; root.mkdir()
    drawing(1200, 1600).save(root/'0.png')
    for i in range(1, 400): os.link(root/'0.png', root/f'{i}.png')
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored\n"
    code += "from diffusion_scratch.data import image_folder; print('go', flush=True); image_folder(sys.argv[1], 64, progress=False, cache=sys.argv[2])"
    p = subprocess.Popen([sys.executable, '-c', code, root, tmp_path/'c'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=fresh_env())
    p.stdout.readline(); time.sleep(1)
    assert p.poll() is None and kept_in(tmp_path/'c') == ['.part']
    p.send_signal(signal.SIGINT); began = time.perf_counter()
    _, err = p.communicate(timeout=60)
    assert time.perf_counter() - began < 5 and b'KeyboardInterrupt' in err and list((tmp_path/'c').iterdir()) == []

# ---- images from Python

class Items(Dataset):
    def __init__(self, items, **more): self.items = items; self.__dict__.update(more)
    def __len__(self): return len(self.items)
    def __getitem__(self, i): return self.items[i]

SOME = torch.randint(0, 256, (5, 3, 6, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

@pytest.mark.parametrize('source', [SOME, SOME.numpy(), to_float(SOME), to_float(SOME).double().numpy(), SOME.numpy()[::-1][::-1], list(SOME), tuple(to_float(SOME)),
    [im.numpy() for im in SOME], [Image.fromarray(im.permute(1, 2, 0).numpy()) for im in SOME], Items(list(SOME)), ImageSet(SOME), Items(list(zip(SOME, [None] * 5)))])
def test_the_same_images_however_they_come(source):
    s = image_set(source, name='mine')
    assert torch.equal(s.images, SOME) and s.labels is None and s.name == 'mine' and fingerprint(s) == fingerprint(ImageSet(SOME))
    assert image_set(source, torch.arange(5)).labels.tolist() == [0, 1, 2, 3, 4] and image_set(source, [1] * 5).num_classes == 2

@pytest.mark.parametrize('label', [int, np.int64, np.uint8, torch.tensor, lambda y: torch.tensor(y, dtype=torch.uint8)])
def test_labels_of_items(label):
    pairs = [(im, label(y)) for im, y in zip(SOME, [2, 0, 1, 1, 2])]
    assert image_set(pairs).labels.tolist() == [2, 0, 1, 1, 2] and image_set(Items(pairs)).num_classes == 3 and image_set([list(p) for p in pairs]).num_classes == 3
    s = image_set(Items(pairs, classes=['x', 'y', 'z', 'w'])); assert s.classes == ('x', 'y', 'z', 'w') and s.num_classes == 4
    assert image_set(Items(pairs, classes=['x', 'y'])).classes == ()   # they name other things
    s = image_set(Items(pairs, classes=['x', 'y', 'z']), [0, 1, 0, 1, 0]); assert s.labels.tolist() == [0, 1, 0, 1, 0] and s.classes == ()

def test_torch_and_torchvision_sets(digits):
    from torchvision.datasets import FakeData
    from torchvision.transforms import Compose, Normalize, ToTensor
    raw = FakeData(6, (3, 10, 12), num_classes=4)
    norm = FakeData(6, (3, 10, 12), num_classes=4, transform=Compose([ToTensor(), Normalize([0.5] * 3, [0.5] * 3)]))
    a, b = image_set(raw), image_set(norm)
    assert a.shape == (3, 10, 12) and torch.equal(a.images[2].permute(1, 2, 0), torch.from_numpy(np.array(raw[2][0]))) and fingerprint(a) == fingerprint(b)
    assert a.labels.tolist() == [int(raw[i][1]) for i in range(6)]
    part = image_set(Subset(digits, [4999, 0]))
    assert torch.equal(part.images, digits.images[[4999, 0]]) and part.labels.tolist() == [9, 0]
    assert torch.equal(image_set(TensorDataset(SOME, torch.arange(5))).images, SOME)
    again = image_set(digits); assert fingerprint(again) == fingerprint(digits) and again.classes == digits.classes

def test_a_torchvision_set_in_0_to_1_is_taken_with_one_warning():
    from torchvision.datasets import FakeData
    from torchvision.transforms import ToTensor
    with pytest.warns(UserWarning, match=r'2 \* images - 1') as found: image_set(FakeData(5, (1, 8, 8), transform=ToTensor()))
    assert len(found) == 1

def test_odd_pictures_from_pil():
    assert image_set([Image.new(m, (4, 4)) for m in ('1', 'L', 'LA')]).shape == (1, 4, 4)
    assert image_set([Image.new(m, (4, 4)) for m in ('RGB', 'RGBA', 'P', 'CMYK')]).shape == (3, 4, 4)
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    assert torch.equal(image_set([Image.fromarray(ramp)]).images.flatten(), EVERY)
    clear = Image.new('RGBA', (4, 4), (255, 0, 0, 0)); assert image_set([clear]).images.min() == 255   # on white
    with pytest.raises(ValueError, match='image 1: its pixels are 32-bit'): image_set([Image.new('L', (4, 4)), Image.new('F', (4, 4))])

def test_read_only_memory_is_read_without_a_warning(tmp_path):
    np.save(tmp_path/'a.npy', SOME.numpy())
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert torch.equal(image_set(np.load(tmp_path/'a.npy', mmap_mode='r')).images, SOME)

@pytest.mark.parametrize('source, error, message', [
    ([SOME[0], SOME[1], SOME[2, :, :5]], ValueError, r'image 2 is \(3, 5, 7\), and those before it \(3, 6, 7\)'),
    ([SOME[0], SOME[1, :1]], ValueError, r'image 1 is \(1, 6, 7\)'),
    ([SOME[0], Image.new('L', (7, 6))], ValueError, r'image 1 is \(1, 6, 7\)'),
    ([SOME[0, 0]], ValueError, r'image 0 is \(6, 7\); it must be \(C,H,W\)'),
    (list(torch.zeros(3, 32, 32, 3, dtype=torch.uint8)), ValueError, 'channels last'),
    ([to_float(SOME[0]), SOME[1].float()], ValueError, r'the values of image 1 lie in \[\d+, 25\d\]'),
    ([to_float(SOME[0]), torch.full((3, 6, 7), float('nan'))], ValueError, 'image 1 lie in .nan, nan'),
    ([SOME[0].long()], TypeError, 'image 0 must be uint8.*int64'),
    ([(SOME[0], 1), (SOME[1], 'cat')], TypeError, "label of item 1 is 'cat'; it must be a whole number"),
    ([(SOME[0], 1), (SOME[1], 0.5)], TypeError, 'label of item 1 is 0.5'),
    ([(SOME[0], 1), SOME[1]], ValueError, 'item 1 has no label'),
    ([(SOME[0], -1)], ValueError, '-1..-1; allowed'),
    ([(SOME[0], 1, 2)], TypeError, 'item 0 is a tuple; allowed are'),
    ([{'image': SOME[0]}], TypeError, 'item 0 is a dict'),
    ([], ValueError, 'holds no items'),
    ('a/path', TypeError, 'cannot read a str.*image_folder'),
    (Path('a'), TypeError, 'image_folder'), (Image.new('L', (4, 4)), TypeError, 'cannot read a Image'), ({'a': SOME}, TypeError, 'cannot read a dict'),
    (iter(SOME), TypeError, 'with a length'), (SOME[0], ValueError, r'not \(3, 6, 7\)'), (SOME.long(), TypeError, 'int64'), (2 * to_float(SOME), ValueError, r'\[-2, 2\]'),
    (SOME[:, :, :0], ValueError, r'not \(5, 3, 0, 7\)'),
])
def test_sources_that_are_refused(source, error, message):
    with pytest.raises(error, match=message): image_set(source)

@pytest.mark.parametrize('source', [SOME, list(SOME), ImageSet(SOME)])
def test_labels_that_do_not_fit_a_source_are_refused(source):
    with pytest.raises(ValueError, match=r'5 images need \(5,\)'): image_set(source, [0, 1])

# ---- fingerprint and check_varied

def test_a_fingerprint_is_the_same_for_the_same_and_another_for_any_change(digits, tmp_path):
    few = ImageSet(digits.images[:40], digits.labels[:40], digits.classes, 'few')
    f = fingerprint(few)
    assert len(f) == 64 and int(f, 16) >= 0
    np.save(tmp_path/'a.npy', few.images.numpy())
    same = [ImageSet(few.images.clone(), few.labels.int(), digits.classes, 'another name'), ImageSet(to_float(few.images), few.labels, list('0123456789')),
            ImageSet(few.images.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1), few.labels, digits.classes), image_set(Subset(digits, range(40)), few.labels),
            ImageSet(torch.from_numpy(np.load(tmp_path/'a.npy', mmap_mode='c')), few.labels, digits.classes)]
    same[3].classes = digits.classes
    assert {fingerprint(s) for s in same} == {f}
    one = few.images.clone(); one[39, 0, 27, 27] ^= 1
    y = few.labels.clone(); y[39] = 1
    other = [ImageSet(one, few.labels, few.classes), ImageSet(few.images, y, few.classes), ImageSet(few.images), ImageSet(few.images, few.labels), ImageSet(few.images, few.labels, tuple('012345678X')),
             ImageSet(few.images.view(40, 1, 14, 56), few.labels, few.classes), ImageSet(few.images[:39], few.labels[:39], few.classes), ImageSet(few.images.flip(0), few.labels.flip(0), few.classes)]
    assert len({f, *map(fingerprint, other)}) == 9

def test_a_fingerprint_stays_what_it_is():
    "A change of it would tell everyone that their data have changed"
    assert fingerprint(ImageSet(torch.arange(24, dtype=torch.uint8).view(2, 1, 3, 4), [1, 0], ('a', 'b'))) == '8b641684accdeba6e04e2d518f44cf02eff087d3c02d41f257f8d1e8915d0b25'
    whole = ImageSet(torch.arange(24, dtype=torch.uint8).view(2, 1, 3, 4))
    assert fingerprint(whole) == hashlib.sha256(json.dumps([[2, 1, 3, 4], 'torch.uint8', False, []]).encode() + bytes(range(24))).hexdigest()

@pytest.mark.parametrize('byte, says', [(0, '-1'), (255, '1'), (128, '0.00392')])
def test_a_set_of_one_value_is_refused(byte, says):
    with pytest.raises(ValueError, match=rf'every pixel of the 3 images.*blank.* is {says} \(byte {byte}\).*range seen is \[{says}, {says}\], within \[-1, 1\]'):
        check_varied(ImageSet(torch.full((3, 3, 8, 8), byte, dtype=torch.uint8), name='blank'))

def test_one_pixel_that_differs_is_enough_wherever_it_is(digits):
    check_varied(digits)
    for where in ((0, 0, 0, 1), (2999, 2, 31, 31), (1500, 1, 3, 4), (0, 0, 0, 0)):
        images = torch.full((3000, 3, 32, 32), 9, dtype=torch.uint8); images[where] = 10   # 9 MB, more than one block
        check_varied(ImageSet(images))
    check_varied(ImageSet(torch.tensor([0, 9], dtype=torch.uint8).view(2, 1, 1, 1)))       # images flat, each its own

# ---- grid

@pytest.mark.parametrize('C', [1, 3])
def test_a_grid_holds_every_image_in_its_place(C):
    x = torch.randint(0, 256, (5, C, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    a = torch.from_numpy(np.array(grid(x, columns=3, scale=2)))[::2, ::2]
    assert a.shape == (2 * 5 + 1, 3 * 7 + 1, 3)
    for i in range(5):
        r, c = divmod(i, 3)
        assert torch.equal(a[1 + 5*r:5 + 5*r, 1 + 7*c:7 + 7*c].permute(2, 0, 1), x[i].expand(3, 4, 6))
    assert np.array_equal(grid(to_float(x), 3, 2), grid(x, 3, 2))

@pytest.mark.parametrize('shape', [(1, 8, 8), (2, 2, 8, 8), (2, 4, 8, 8)])
def test_grids_that_are_refused(shape):
    with pytest.raises(ValueError, match=r'C = 1 or 3'): grid(torch.zeros(shape))
