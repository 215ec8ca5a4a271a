"Images in, images out: from outside, against hand-made files and other libraries"
import gzip, hashlib, os, pickle, shutil, socket, struct, threading, time
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
from diffusion_scratch import data
from diffusion_scratch.data import DATA, ImageSet, cifar10, grid, image_folder, mnist, mnist_mini, to_float, to_uint8

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
