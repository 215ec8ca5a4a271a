"A table of attributes in the place of labels, from outside: from the network to the commands"
import csv, os, shlex, shutil
from dataclasses import replace
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from conftest import SHORT, gen, refused
from diffusion_scratch import cli
from diffusion_scratch.checkpoint import read_json, resume, save_checkpoint
from diffusion_scratch.config import ConfigError, load_config, make_data
from diffusion_scratch.data import ImageSet, fingerprint, image_folder, image_set
from diffusion_scratch.data import to_float, to_uint8
from diffusion_scratch.denoiser import V, Denoiser
from diffusion_scratch.export import export_diffusers, export_onnx
from diffusion_scratch.evaluation import confidence, wilson_interval
from diffusion_scratch.features import Extractor, Features
from diffusion_scratch.guidance import NULL, drop_labels, guided, null_label_last
from diffusion_scratch.oracle import MixtureOracle
from diffusion_scratch.pretrained import about, convert, load, save
from diffusion_scratch.reader import Reader
from diffusion_scratch.report import evaluate_model, generate, random_rows
from diffusion_scratch.run import draw_images, train
from diffusion_scratch.sampling import sample
from diffusion_scratch.training import TrainState, fit, warmup_constant
from diffusion_scratch.transformer import DiT
from diffusion_scratch.unet import UNet
from helpers_networks import make, randn

X, T2, SIZES = randn(2, 1, 8, 8), torch.tensor([1, 900]), (2, 3, 7)
CLASSES = dict(side=('left', 'right'), tone=('bright', 'dark'))
both_networks = pytest.mark.parametrize('kind', [UNet, DiT])

# ---------------------------------------------------------------- network
@both_networks
def test_each_attribute_has_its_own_none(kind):
    "No y is -1 everywhere; a stated attribute changes its own image; one attribute is a label"
    net, none = make(kind, num_classes=SIZES), torch.full((2, 3), -1)
    table, y = net.label.weight, torch.tensor([[1, -1, 6], [-1, 2, 0]])  # of 3 + 4 + 8 rows
    by_hand = [table[2] + table[3] + table[7 + 7], table[0] + table[3 + 3] + table[7 + 1]]
    assert torch.equal(net.label(y), torch.stack(by_hand)) and len(table) == 15  # eq-attributes
    with torch.no_grad():
        plain = net(X, T2)
        assert torch.equal(net(X, T2, none), plain)
        for i in range(3):
            y = none.clone()
            y[0, i] = 0
            out = net(X, T2, y)
            torch.testing.assert_close(out[1], plain[1])
            assert (out[0] - plain[0]).abs().max() > 1e-3
    label, alone = make(kind, num_classes=5), make(kind, num_classes=(5,))
    alone.load_state_dict(label.state_dict())
    y = torch.tensor([3, -1])
    assert len(label.state_dict()['label.weight']) == 6
    assert torch.equal(alone(X, T2, y[:, None]), label(X, T2, y))

def network_of(num_classes, y): return lambda: make(UNet, num_classes=num_classes)(X, T2, y)

@pytest.mark.parametrize('call, says', [
    (network_of(SIZES, torch.tensor([0, 1])),
     r'\(2,\); give one whole number .* 3 attributes, \(2, 3\)'),
    (network_of(SIZES, torch.zeros(2, 2).long()), r'3 attributes, \(2, 3\)'),
    (network_of(SIZES, torch.zeros(2, 3)), 'float32'),
    *[(network_of(SIZES, torch.tensor([y, [0, 0, 0]])), says) for y, says in [
        ([2, 0, 0], r'attribute 0 lie in 0\.\.2; .* 0\.\.1, and -1'),  # no row of the next one
        ([0, 3, 0], r'attribute 1 lie in 0\.\.3; .* 0\.\.2, and -1'),
        ([0, 0, -2], r'attribute 2 lie in -2\.\.0; .* 0\.\.6, and -1')]],
    *[(lambda kind=kind, sizes=sizes: make(kind, num_classes=sizes),
       r'num_classes = .* for each attribute')
      for kind in (UNet, DiT) for sizes in [(), (2, 0), (2, 1.5), ('a',), [[2]]]]])
def test_values_and_sizes_that_are_refused(call, says): refused(call, says)

# ---------------------------------------------------------------- dropping and guidance
def test_every_number_of_attributes_is_dropped_equally_often():
    "eq-drop-attributes, to 4.5 standard errors; what is not stated stays so; the ends of p"
    y, N = torch.randint(-1, 3, (200_000, 4), generator=gen()), 200_000
    dropped = drop_labels(y, 0.3, gen(1))
    assert ((dropped == NULL) | (dropped == y)).all() and (drop_labels(y, 1.) == NULL).all()
    for p in (0., 0.1):
        gone = drop_labels(y.clamp(min=0), p, gen(1)) == NULL
        share = (1 - p) / 5 + p * (torch.arange(5) == 4)  # of 0..4 that are gone
        each = torch.full((4,), p + (1 - p) / 2)
        for found, want in ((gone.sum(1).bincount() / N, share), (gone.double().mean(0), each)):
            assert ((found - want).abs() < 4.5 * (want * (1 - want) / N).sqrt()).all()

CORNERS = torch.tensor([[a, b] for a in (-1., 1.) for b in (-1., 0., 1.)])
PLANE = MixtureOracle(CORNERS, 0.4, labels=torch.tensor([[a, b] for a in (0, 1) for b in range(3)]))

def test_the_exact_denoiser_of_attributes_is_that_of_the_modes_which_agree():
    x = randn(50, 2)
    level = SHORT.at(30, x)
    for y, keep in (([1, -1], [3, 4, 5]), ([-1, 2], [2, 5]), ([0, 1], [1]), ([-1, -1], range(6))):
        some = MixtureOracle(CORNERS[[*keep]], 0.4)
        given = PLANE(x, level, torch.tensor([y] * 50)).x0
        torch.testing.assert_close(given, some(x, level).x0)
    refused(lambda: PLANE(x, level, torch.tensor([[1, 3]] * 50)),
            r'no mode has the label y = \[1, 3\]')
    refused(lambda: PLANE(x, level, torch.ones(50).long()), 'y has shape')

@pytest.mark.parametrize('y, mean', [([1, -1], (1, 0)), ([-1, 2], (0, 1)), ([0, 1], (-1, 0))])
def test_each_attribute_steers_its_own_coordinate(y, mean):
    "At scale 0 the moments of the modes that agree; at 2 what is stated goes further, alone"
    draws = {w: sample(guided(PLANE, torch.tensor([y] * 2000), w), SHORT, (2000, 2), seed=1,
                       progress=False) for w in (0., 2.)}
    close = 0.05 + 4.5 * draws[0.].std(0) / 2000**0.5  # the steps of the solver are not short
    assert ((draws[0.].mean(0) - torch.tensor(mean)).abs() < close).all()
    for i, (k, m) in enumerate(zip(y, mean)):
        further = draws[2.][:, i].mean() - draws[0.][:, i].mean()
        if k >= 0 and m: assert further * m > 0.1
        if k < 0: assert further.abs() < 0.15

def test_guidance_is_the_formula_and_drops_every_attribute():
    "eq-cfg, with a network: the other branch has no attribute at all"
    d, y = Denoiser(make(UNet, num_classes=SIZES), V), torch.tensor([[1, -1, 3]] * 2)
    level = SHORT.at(30, X)
    with torch.no_grad():
        a, b = d(X, level, y).x0, d(X, level, torch.full((2, 3), -1)).x0
        torch.testing.assert_close(guided(d, y, 1.5)(X, level).x0, 2.5 * a - 1.5 * b)
    refused(lambda: guided(d, y[None], 1.), 'row of attributes')

class Echo(nn.Module):
    def forward(self, x, t, y): return y.double()

def test_a_null_label_in_the_last_row_of_each_table():
    echo, t = null_label_last(Echo(), (2, 5)), torch.ones(2).long()
    assert echo(X, t).tolist() == [[2, 5]] * 2
    assert echo(X, t, torch.tensor([[1, -1], [-1, 3]])).tolist() == [[1, 5], [2, 3]]
    refused(lambda: null_label_last(Echo(), (2, 0)), 'num_classes = 0')

# ---------------------------------------------------------------- data
def pictures(n, seed=0):
    "A block on gray, 8 x 8: left or right, bright or dark. Images and attributes"
    y = torch.randint(2, (n, 2), generator=gen(seed))
    x = torch.full((n, 1, 8, 8), 128, dtype=torch.uint8)
    for image, (side, tone) in zip(x, y.tolist()):
        image[0, 2:6, 4 * side:4 * side + 4] = 255 * (1 - tone)
    return x, y

def seen(images):
    "The attributes of images: where they are furthest from gray, and which way"
    x = images.double().view(-1, 8, 2, 4).mean((1, 3))
    side = x.abs().argmax(1)
    return torch.stack([side, (x[torch.arange(len(x)), side] < 0).long()], 1)

def folder_of(folder, n=60, blank=7):
    "Files and attributes.csv; every `blank`th tone is not stated"
    images, y = pictures(n)
    (folder/'deep').mkdir(parents=True)
    names = [f'deep/{i}.png' if i % 2 else f'{i}.png' for i in range(n)]
    rows = [(name, CLASSES['side'][a], '' if i % blank == 0 else CLASSES['tone'][b])
            for i, (name, (a, b)) in enumerate(zip(names, y.tolist()))]
    for name, x in zip(names, images): Image.fromarray(x[0].numpy()).save(folder/name)
    write_table(folder, ('file', 'side', 'tone'), *rows)
    return rows

def write_table(folder, *rows):
    with open(folder/'attributes.csv', 'w', newline='', encoding='utf-8') as f:
        csv.writer(f).writerows(rows)

def read(folder, **options):
    options = dict(size=8, channels=1, progress=False, attributes='attributes.csv') | options
    return image_folder(folder, **options)

def test_a_folder_with_its_table(tmp_path):
    "Columns in the order of the file; -1: not stated; skipped files leave with their rows"
    rows = {name: cells for name, *cells in folder_of(tmp_path/'f')}
    data = read(tmp_path/'f')
    assert data.classes == CLASSES and data.num_classes == (2, 2) and '2 attributes' in repr(data)
    names = sorted(tmp_path.glob('f/**/*.png'))
    for file, row in zip(names, data.labels.tolist(), strict=True):
        stated = rows[file.relative_to(tmp_path/'f').as_posix()]
        number = {'': -1} | {v: k for values in CLASSES.values() for k, v in enumerate(values)}
        assert row == [number[cell] for cell in stated]
    assert (data.labels == -1).sum() == 9
    told = (data.labels >= 0).all(1)
    assert torch.equal(seen(to_float(data.images))[told], data.labels[told])
    names[2].write_bytes(b'no image')
    left = read(tmp_path/'f', corrupt='skip')
    assert torch.equal(left.labels, torch.cat([data.labels[:2], data.labels[3:]]))
    assert len(left.skipped) == 1

def test_values_are_in_natural_order_and_a_table_may_lie_elsewhere(tmp_path):
    folder_of(tmp_path/'f', 6)
    (tmp_path/'f'/'attributes.csv').unlink()
    values = ['10', '9a', 'b 12', '2', 'B 2', '']
    names = ['0.png', '2.png', '4.png', 'deep/1.png', 'deep/3.png', 'deep/5.png']
    with open(tmp_path/'mine.csv', 'w', encoding='utf-8-sig') as f:  # a spreadsheet's
        f.write('file, k \n' + ''.join(f'{n}, {v}\n\n' for n, v in zip(names, values)))
    data = read(tmp_path/'f', attributes='../mine.csv')
    assert data.classes == {'k': ('2', '9a', '10', 'B 2', 'b 12')}
    assert data.labels[:, 0].tolist() == [2, 1, 4, 0, 3, -1]

ROWS = [('file', 'a', 'b'), ('0.png', 'x', 'y'), ('deep/1.png', 'x', '')]
@pytest.mark.parametrize('table, options, says', [
    *[(rows, {}, says) for rows, says in [
        (ROWS[:2], 'has no line for deep/1.png; give each file a line'),
        (ROWS[:1], 'has no line for 0.png and 1 more'),
        ([*ROWS, ('2.png', 'x', 'y')], "line 4 is of '2.png', and there is no such file"),
        ([*ROWS, ROWS[1]], 'lines 2 and 4 are both of 0.png'),
        ([('file', 'a', 'a'), *ROWS[1:]], "the column 'a' twice"),
        ([('file',), ('0.png',), ('deep/1.png',)], 'no column but file'),
        ([('name', 'a', 'b'), *ROWS[1:]], "first line is 'name,a,b'; allowed: file,<attribute>"),
        ([('file;a;b',)], "first line is 'file;a;b'; allowed: .* commas"),
        ([], "first line is ''"),
        ([*ROWS[:2], ('deep/1.png', 'x')], 'line 3 has 2 cells, and the first line 3'),
        ([*ROWS[:2], ('deep/1.png', 'x=y', '')], "line 3: the name 'x=y' is not allowed; allowed:"),
        ([('file', 'a', ''), *ROWS[1:]], "the name '' is not allowed"),
        ([ROWS[0], ('0.png', 'x', ''), ROWS[2]], "the column 'b' states no value")]],
    *[(blob, {}, 'attributes.csv is not a table that can be read')
      for blob in (b'file,a\n0.png,\xff\n', b'file,a\n0.png,"open\n', b'\x89PNG\r\n')],
    (ROWS, dict(attributes='no.csv'), 'no.csv, the table of attributes, is not a file'),
    (ROWS, dict(labels=True), 'not allowed with labels=True'),
    (ROWS, dict(attributes=None), "attributes='attributes.csv'")])
def test_tables_that_are_refused(tmp_path, table, options, says):
    folder_of(tmp_path/'f', 2)
    if isinstance(table, bytes): (tmp_path/'f'/'attributes.csv').write_bytes(table)
    else: write_table(tmp_path/'f', *table)
    refused(lambda: read(tmp_path/'f', **options), says, (ValueError, FileNotFoundError))

def test_a_cache_never_keeps_old_attributes(tmp_path):
    "Neither a changed table, nor one with the same size and time"
    folder_of(tmp_path/'f', 6)
    table, options = tmp_path/'f'/'attributes.csv', dict(cache=tmp_path/'cache')
    first = read(tmp_path/'f', **options)
    text, stat = table.read_text(), table.stat()
    table.write_text(text.replace('left', 'flat'))
    os.utime(table, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = read(tmp_path/'f', **options)
    assert first.classes['side'] == ('left', 'right')
    assert second.classes['side'] == ('flat', 'right')
    assert torch.equal(first.images, second.images) and fingerprint(first) != fingerprint(second)

IMAGES, Y = pictures(4)
@pytest.mark.parametrize('labels, classes, says', [
    (Y, (), r'labels have shape \(4, 2\); 4 images need \(4,\), or \(4, A\) and classes'),
    (Y, {'a': 'xy', 'b': ('x', 'y')}, 'give a tuple'), (Y, {}, 'shape|at least one'),
    (Y, {'a': ('x', 'y')}, r'need \(4, 1\)'), (Y[:3], CLASSES, r'need \(4, 2\)'),
    (Y + 1, CLASSES, r"labels of 'side' lie in .*2; allowed are 0\.\.1"),
    (Y - 2, CLASSES, "-1 for not stated"), (Y.float(), CLASSES, 'whole numbers'),
    (Y, {'a,b': ('x', 'y'), 'c': ('x', 'y')}, "'a,b' is not allowed; allowed: text without comma"),
    (Y, {'a': ('x', 'x'), 'b': ('x', 'y')}, 'same value twice')])
def test_attributes_in_memory_that_are_refused(labels, classes, says):
    refused(lambda: ImageSet(IMAGES, labels, classes), says, (ValueError, TypeError))

def test_attributes_in_memory():
    data = ImageSet(IMAGES, Y, CLASSES)
    assert torch.equal(data[[0, 2]][1], Y[[0, 2]]) and data.num_classes == (2, 2)
    same_set = image_set(IMAGES, Y, classes=CLASSES)
    assert fingerprint(same_set) == fingerprint(data) == fingerprint(image_set(data))
    swapped = ImageSet(IMAGES, Y, dict(reversed(CLASSES.items())))
    assert fingerprint(swapped) != fingerprint(data)
    refused(lambda: Reader(data), 'one label for each image.*table of attributes')

# ---------------------------------------------------------------- training and files
class Own(nn.Module):
    "A table for each attribute, with or without a row for none"
    def __init__(self, *rows):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(K, 64) for K in rows)
        self.layer = nn.Linear(64, 64)
    def row(self, i, y): return self.tables[i](y + 1)
    def forward(self, x, t, y):
        e = sum(self.row(i, k) for i, k in enumerate(y.unbind(1)))
        return (self.layer(x.flatten(1)) + e).view(x.shape)

class Wraps(Own):
    "Takes -1 of the second attribute for its last value"
    def row(self, i, y): return self.tables[i](y + 1) if i == 0 else self.tables[i].weight[y]

class Fails(Own):
    "Has no row for -1 of the second attribute"
    def row(self, i, y): return self.tables[i](y + 1 - i)

def steps(net, n=1, data=None, **options):
    options = dict(steps=n, batch_size=4, lr=warmup_constant(1e-3, 0)) | options
    state = TrainState(Denoiser(net, V), ema=0.9)
    for _ in fit(state, SHORT, data or ImageSet(IMAGES, Y, CLASSES), **options): pass
    return state

@pytest.mark.parametrize('net, data, says', [
    *[(net, ImageSet(IMAGES, Y, CLASSES), says) for net, says in [
        (lambda: make(UNet, num_classes=2),
         r'labels 0\.\.1, and the data have attributes of \(2, 2\) values'),
        (lambda: make(UNet, num_classes=(2,)), r'attributes of \(2,\) values'),
        (lambda: make(UNet, num_classes=(2, 1)), r'make it with num_classes=\(2, 2\)'),
        (lambda: make(UNet), 'takes no labels'),
        (lambda: Wraps(3, 2), r'for class 1 of attribute 1: .*null_label_last\(net, \(2, 2\)\)'),
        (lambda: Fails(3, 2), r'Fails fails at the label -1.*null_label_last\(net, \(2, 2\)\)')]],
    (lambda: make(UNet, num_classes=(2, 2)), ImageSet(IMAGES, Y[:, 0]),
     r'attributes of \(2, 2\) values, and the data have 2 classes')])
@pytest.mark.parametrize('p', [0., 0.1])
def test_networks_that_do_not_take_these_labels(net, data, says, p):
    refused(lambda: steps(net(), data=data, label_dropout=p), says)

def test_larger_tables_fit():
    for net in (make(UNet, num_classes=(3, 2)), Own(3, 3)): assert steps(net).step == 1

def test_a_checkpoint_of_other_attributes_is_not_gone_on_with(tmp_path):
    state, other = (TrainState(Denoiser(make(UNet, num_classes=n), V)) for n in ((2, 2), (1, 3)))
    save_checkpoint(tmp_path/'a.safetensors', state, SHORT)
    refused(lambda: resume(tmp_path/'a.safetensors', other, SHORT),
            r'num_classes is \[2, 2\] there and \[1, 3\] here')

@both_networks
def test_weights_with_attributes_are_saved_and_loaded(tmp_path, kind):
    net, facts = make(kind, num_classes=(2, 2)), dict(shape=[1, 8, 8], classes=CLASSES)
    save(Denoiser(net, V), SHORT, tmp_path/'net', facts)
    back, y = load(tmp_path/'net')[0].net, torch.tensor([[1, -1], [-1, 0]])
    with torch.no_grad(): assert torch.equal(back(X, T2, y), net(X, T2, y))
    assert [*about(tmp_path/'net')['classes'].items()] == [(k, [*v]) for k, v in CLASSES.items()]
    assert '| attribute side | left, right |' in (tmp_path/'net'/'README.md').read_text()

def test_weights_alone_need_the_names_of_the_attributes(tmp_path):
    torch.save(make(UNet, num_classes=(2, 2)).state_dict(), tmp_path/'a.pt')
    convert(tmp_path/'a.pt', tmp_path/'net', about=dict(classes=CLASSES))
    assert load(tmp_path/'net')[0].net.num_classes == (2, 2)
    other = dict(classes=dict(a='xyz'))
    refused(lambda: convert(tmp_path/'a.pt', tmp_path/'b', about=other),
            r'\(3,\) values of 1 attributes need 4 rows .* has 6')

def test_onnxruntime_and_diffusers_say_the_same(tmp_path):
    "ONNX takes y (B,A); a pipeline has a row of attributes in its bias (eq-fold)"
    onnxruntime = pytest.importorskip('onnxruntime')
    net = make(UNet, num_classes=SIZES, attention=())
    file = export_onnx(Denoiser(net, V), tmp_path/'net.onnx', (1, 8, 8))
    session = onnxruntime.InferenceSession(file)
    inputs = {i.name: (i.type, i.shape[1:]) for i in session.get_inputs()}
    assert inputs['y'] == ('tensor(int64)', [3])
    x, t = randn(3, 1, 8, 8), torch.tensor([1, 5, 9])
    y = torch.tensor([[1, 2, 6], [-1, 0, -1], [-1] * 3])
    [out] = session.run(None, dict(x=x.numpy(), t=t.numpy(), y=y.numpy()))
    with torch.no_grad(): asked = net(x, t, y)
    torch.testing.assert_close(torch.from_numpy(out), asked, rtol=0, atol=1e-5)  # 32-bit sums
    for k, row in enumerate((y[0].tolist(), [-1, 0, -1], None)):
        export_diffusers(Denoiser(net, V), SHORT, tmp_path/f'{k}', dict(shape=[1, 8, 8]), y=row)
        back = load(tmp_path/f'{k}')[0].net
        with torch.no_grad(): out = back(x[[k]], t[[k]])
        torch.testing.assert_close(out, asked[[k]], rtol=0, atol=1e-5)
    for wrong in (1, [0, 0], [0, 3, 0]):
        with pytest.raises(ValueError, match='each attribute: 0..1, or -1 for none; 0..2'):
            export_diffusers(Denoiser(net, V), SHORT, tmp_path/'no', dict(shape=[1, 8, 8]), y=wrong)

# ---------------------------------------------------------------- a run, and the commands
@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A run on a folder with its table: a small network that learns where the block is, and its tone"
    home = tmp_path_factory.mktemp('attributes')
    folder_of(home/'blocks', 200)
    (home/'c.yaml').write_text(f'''
run: {home}/run
parameterization: v
threads: 1
log: []
preview_every: 600
save_every: 600
data: {{name: folder, root: {home}/blocks, size: 8, channels: 1, attributes: attributes.csv}}
schedule: {{name: cosine, T: 60}}
network: {{channels: 32, multipliers: [1], blocks: 1, attention: [], unshuffle: 2}}
training: {{steps: 600, batch_size: 32, lr: 4.0e-3, decay: cosine, warmup: 20, ema: 0.97}}
sampling: {{steps: 15, solver: ddim, guidance: 1.0}}
''')
    cli.train_command([str(home/'c.yaml')])
    return home/'run'

def cells(file, rows, columns):
    "The images of a sheet (n,1,8,8), as `grid` lays them out at scale 2"
    sheet = torch.from_numpy(np.asarray(Image.open(file).convert('L')).copy())[::2, ::2]
    places = [(1 + 9 * i, 1 + 9 * j) for i in range(rows) for j in range(columns)]
    return torch.stack([sheet[None, i:i + 8, j:j + 8] for i, j in places])

@pytest.mark.parametrize('asked, side, tone', [
    ('side=right,tone=dark', 1, 1), ('tone=bright, side=left', 0, 0), ('tone=dark', None, 1),
    ('side=1', 1, None), ('side=left', 0, None)])
def test_a_trained_network_draws_what_is_asked(run, asked, side, tone):
    "And what is not asked varies: neither value in more than 9 of 10 images"
    found = seen(draw_images(run, 60, labels=[asked], progress=False)).double()
    for column, wanted in zip(found.unbind(1), (side, tone)):
        if wanted is None: assert 0.1 < column.mean() < 0.9
        else: assert (column == wanted).double().mean() > 0.9

def test_the_command_draws_the_same_as_python(run, tmp_path):
    "Two requests in turn; names and numbers; a sheet with a column for each"
    out = tmp_path/'a.png'
    words = f'{run} --n 6 --class tone=dark,side=0 side=right --out {out}'
    cli.sample_command(words.split())
    x = draw_images(run, 6, labels=['side=left,tone=1', 'side=1'], progress=False)
    assert torch.equal(cells(out, 3, 2), to_uint8(x))

@pytest.mark.parametrize('words, says', [
    ('--class hat=yes', "'hat=yes' is not allowed; allowed: attribute=value, of side=left|right"),
    ('--class side', "'side' is not allowed; allowed: attribute=value"),
    ('--class side=up',
     "'side=up' is not allowed; allowed: side= one of left, right, or its number, 0..1"),
    ('--class side=2', "'side=2' is not allowed"), ('--class side=-1', "'side=-1' is not allowed"),
    ('--class side=left,side=left', "'side' is given twice in 'side=left,side=left'"),
    ('--class ""', 'attribute=value'), ('--class left', 'attribute=value'),
    ('--guidance 2', '--guidance: 2.0 needs --class, the class to draw; allowed: attribute=value')])
def test_requests_that_are_refused(run, words, says, capsys):
    with pytest.raises(SystemExit):
        cli.sample_command([str(run), '--n', '1', *shlex.split(words)])
    assert says in capsys.readouterr().err

def test_what_a_run_writes(run):
    "samples.png has attributes of rows of the table, and run.json says which"
    told = read_json(run/'run.json')['samples']
    data = read(run.parent/'blocks')
    there = {','.join(f'{a}={CLASSES[a][k]}' for a, k in zip(CLASSES, row) if k >= 0)
             for row in data.labels.tolist()}
    assert len(told) == 64 and set(told) <= there and len(set(told)) > 3
    found = seen(to_float(cells(run/'samples.png', 8, 8)))
    asked = torch.tensor([['side=right' in w, 'tone=dark' in w] for w in told]).long()
    stated = torch.tensor([['side' in w, 'tone' in w] for w in told])
    assert (found == asked)[stated].double().mean() > 0.9

def test_the_other_commands_take_attributes(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(IMAGES[0, 0].numpy()).save('a.png')
    words = f'{run} a.png --n 2 --class side=right,tone=dark --strength 1'
    cli.edit_command(words.split())
    assert seen(to_float(cells('a_edited.png', 1, 3)[1:])).tolist() == [[1, 1]] * 2
    cli.export_command([str(run), '--to', 'folder', 'out'])
    assert load('out')[0].net.num_classes == (2, 2)
    cli.train_command(['--diagnose', str(run)])
    assert (run/'diagnosis.png').exists()

def test_a_changed_table_is_noticed_when_a_run_goes_on(run, tmp_path):
    "One image has the other value, and nothing else is new"
    shutil.copytree(run.parent, tmp_path/'home')
    table = tmp_path/'home'/'blocks'/'attributes.csv'
    rows = list(csv.reader(table.open()))
    rows[5][1] = 'left' if rows[5][1] == 'right' else 'right'
    write_table(table.parent, *rows)
    places = [f'run={tmp_path}/home/run', f'data.root={table.parent}']
    config = load_config(tmp_path/'home'/'c.yaml', places)
    says = 'data: the images are not those .* their labels'
    refused(lambda: train(config, progress=False), says, ConfigError)

@pytest.mark.parametrize('overrides, says', [
    (['data.subfolders=true'], r'data\.attributes: .* not allowed with data\.subfolders true'),
    (['data.name=mnist_mini'], r'data\.attributes: .* not allowed with data\.name'),
    (['judge=20'], 'judge: 20 is not allowed with these images .*table of attributes'),
    (['data.attributes=../no.csv'], 'no.csv, the table of attributes, is not a file')])
def test_configs_that_are_refused(run, overrides, says):
    refused(lambda: make_data(load_config(run/'config.yaml', overrides), progress=False), says,
            (ValueError, OSError))

def test_a_network_without_labels_ignores_the_table(run):
    assert make_data(load_config(run/'config.yaml', ['network.labels=false']), False).labels is None

# ---------------------------------------------------------------- evaluation
EYE = Extractor('halves', 'v1', 2, lambda x: Features(
    x.double().view(-1, 8, 2, 4).mean((1, 3)), torch.full((len(x), 2), 0.5).double()), (1, 8, 8))

def test_rows_of_the_table_are_drawn_as_often_as_they_occur():
    "Row i depends on (seed, i) alone; a share to 4.5 standard errors"
    table = torch.tensor([[0, 1], [1, -1], [0, 1], [1, 0]])
    rows = random_rows(table, 40_000, 3)
    assert torch.equal(rows[:50], random_rows(table, 50, 3))
    share = (rows == torch.tensor([0, 1])).all(1).double().mean()
    assert abs(share - 0.5) < 4.5 * 0.5 / 200
    assert not (rows == torch.tensor([0, 0])).all(1).any()  # a combination that does not occur

def test_an_evaluation_of_attributes(run, tmp_path):
    "With the rows that it says; each image shows its row; another table needs another folder"
    denoiser, schedule = load(run)
    data = read(run.parent/'blocks')
    options = dict(extractor=EYE, steps=10, seed=2, cache=tmp_path/'cache', progress=False)
    report = evaluate_model(denoiser, schedule, data, tmp_path/'r', n=40, bits=4, **options)
    assert torch.equal(report.labels, random_rows(data.labels, 40, 2))
    stated = report.labels >= 0
    assert (seen(to_float(report.images)) == report.labels)[stated].double().mean() > 0.9
    page = (tmp_path/'r'/'report.md').read_text()
    assert 'attributes of random rows of the table of blocks (seed 2)' in page
    assert 'label_accuracy' not in report.evaluation.measures and report.bits is not None
    draw = dict(steps=10, table=data.labels, seed=2, progress=False)
    images, y = generate(denoiser, schedule, (1, 8, 8), 40, tmp_path/'r', **draw)
    assert torch.equal(images, report.images) and torch.equal(y, report.labels)
    other = draw | dict(table=data.labels[1:])
    unlabelled = options | dict(n=4, classes=(2, 2))
    for says, call in [
            ('table: .* there, .* here', lambda: generate(
                denoiser, schedule, (1, 8, 8), 40, tmp_path/'r', **other)),
            ('table with shares', lambda: generate(
                denoiser, schedule, (1, 8, 8), 4, tmp_path/'s', **draw, shares=[1.])),
            ('needs the table of the real images', lambda: evaluate_model(
                denoiser, schedule, ImageSet(data.images), tmp_path/'t', **unlabelled))]:
        refused(call, says)

def read_blocks(images):
    "What each image shows, with a probability of 0.9; its tone with 0.7"
    p = nn.functional.one_hot(seen(to_float(images)).long(), 2).double()
    return EYE.look(images)._replace(p=torch.cat([0.1 + 0.8 * p[:, 0], 0.3 + 0.4 * p[:, 1]], 1))

READS = Extractor('blocks', 'v1', 2, read_blocks, (1, 8, 8), classes=CLASSES)

def test_accuracies_of_attributes_are_counts_of_what_is_stated(run, tmp_path):
    "Of all, and of each with Wilson's interval; generated, and real images with their own table"
    data = read(run.parent/'blocks')
    options = dict(n=40, steps=4, cache=tmp_path/'cache', progress=False)
    report = evaluate_model(*load(run), data, tmp_path/'r', extractor=READS, **options)
    found = report.evaluation.measures
    for i, (images, y) in enumerate([(report.images, report.labels), (data.images, data.labels)]):
        right, stated = seen(to_float(images)) == y, y >= 0
        some = stated.any(1)
        each = ((right & stated).sum(1) / stated.sum(1).double())[some]
        whole, alone = found['label_accuracy'][i], wilson_interval(each.mean().item(), len(each))
        assert whole.value == pytest.approx(each.mean().item()) and whole.n == len(each)
        assert alone.low <= whole.low <= whole.value <= whole.high <= alone.high
        for a, r, s in zip(CLASSES, right.unbind(1), stated.unbind(1)):
            by_hand = wilson_interval(r[s].double().mean().item(), int(s.sum()))
            assert found[f'label_accuracy of {a}'][i] == pytest.approx(by_hand)
        assert found['confidence'][i].value == pytest.approx((0.9 + 0.7) / 2)
    assert not {'inception_score', 'classes'} & found.keys()
    assert not (tmp_path/'r'/'classes.png').exists()
    for page in ('report.md', 'report.html'):
        text = (tmp_path/'r'/page).read_text()
        assert 'label_accuracy of tone' in text and 'requested tone' in text
    other = replace(READS, classes=dict(reversed(CLASSES.items())))
    for eye, says in ((other, 'blocks reads tone, side'), (EYE, 'no attributes')):
        r = evaluate_model(*load(run), data, tmp_path/'r', extractor=eye, **options)
        assert says in r.evaluation.refused['label_accuracy'] and says in str(r)
    swapped = ImageSet(data.images, data.labels, other.classes)
    refused(lambda: evaluate_model(*load(run), data, tmp_path/'s', extractor=READS,
                                   held_out=swapped, **options), 'held_out')

def test_probabilities_that_are_not_of_these_attributes_are_refused():
    p = torch.tensor([[0.5, 0.5, 0.2, 0.8]])
    assert confidence(p, (2, 2)) == pytest.approx(0.65)
    for sizes, says in (((), 'add up to 2.*sizes'), ((1, 3), 'those of an attribute add up'),
                        ((2, 3), r'sizes = \(2, 3\) does not fit probabilities \(1, 4\)')):
        refused(lambda: confidence(p, sizes), says)

@pytest.mark.parametrize('words, says', [
    ('--held-out blocks', 'face-classifier (3, 64, 64) with the attributes hat, glasses'),
    ('--held-out blocks --attributes no.csv', 'no.csv, the table of attributes, is not a file'),
    ('--data f', '--attributes: the attributes of f are none, and'),
    ('--data f --attributes ../t.csv', 'side=middle|right'),
    ('--data f --attributes ../t.csv', 'learned attribute=value,... of side=left|right'),
    ('--attributes t.csv', '--attributes: t.csv is not allowed without a folder')])
def test_real_images_that_evaluate_refuses(run, words, says, tmp_path, monkeypatch, capsys):
    "The first are as they should be, and then it says which extractor is missing"
    monkeypatch.chdir(tmp_path)
    os.symlink(run.parent/'blocks', 'blocks')
    folder_of(tmp_path/'f', 6)
    table = (tmp_path/'f'/'attributes.csv').rename(tmp_path/'t.csv')
    table.write_text(table.read_text().replace('left', 'middle'))
    with pytest.raises(SystemExit):
        cli.evaluate_command([str(run), *'--n 4 --steps 2 --out r'.split(), *words.split()])
    assert says in capsys.readouterr().err
