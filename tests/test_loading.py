"""Images that are read when they are needed: the same numbers as from memory, whatever reads them;
a file, row or process that fails is named, and nothing of a run is lost"""
import os, shutil, signal, subprocess, sys, tarfile
from pathlib import Path
import numpy as np
import psutil
import pytest
import torch
import yaml
from PIL import Image
from conftest import refused
from diffusion_scratch.checkpoint import checkpoints
from diffusion_scratch.config import ConfigError, make_data, parse_config
from diffusion_scratch.data import (LazySet, StreamSet, check_varied, fingerprint, hub_set,
                                    image_folder, image_set, unlabelled)
from diffusion_scratch.denoiser import V, Denoiser
from diffusion_scratch.run import train
from diffusion_scratch.schedule import Schedule, cosine_betas
from diffusion_scratch.training import TrainState, batches, fit, warmup_constant
from diffusion_scratch.unet import UNet
from helpers_training import assert_same_run

datasets = pytest.importorskip('datasets')
BIN = Path(sys.executable).parent
TINY = dict(device='cpu', threads=1, preview_every=10**6, save_every=5, log=[], judge=0, run='run',
            parameterization='v', schedule=dict(name='cosine'), sampling=dict(steps=2),
            network=dict(channels=8, multipliers=[1], attention=[], unshuffle=4, dropout=0.1),
            training=dict(batch_size=8, ema=0.9, steps=15, warmup=2))

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, one_thread): monkeypatch.chdir(tmp_path)

@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "40 JPEGs of 40 x 52 pixels in two classes"
    root = tmp_path_factory.mktemp('photos')
    for i in range(40):
        folder = root/('cats', 'dogs')[i % 2]; folder.mkdir(exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((52, 40)).save(folder/f'{i}.jpg')
    return root

@pytest.fixture(scope='module')
def rows(photos):
    "The same files as a set of the library datasets"
    files = sorted(photos.rglob('*.jpg'))
    features = datasets.Features(picture=datasets.Image(), kind=datasets.ClassLabel(
        names=['cats', 'dogs']), number=datasets.Value('int64'))
    return datasets.Dataset.from_dict(dict(
        picture=[str(f) for f in files], kind=[int(f.parent.name == 'dogs') for f in files],
        number=list(range(40))), features=features)

def folder(photos, **own): return image_folder(photos, 16, progress=False, labels=True, **own)
def flat(data, n=7, **own): # images of n batches
    stream = batches(data, 8, seed=3, flip=True, **own)
    return [(x, y) for _, (_, x, y) in zip(range(n), stream)]

def assert_same_batches(a, b):
    for (x, y), (there, labels) in zip(a, b, strict=True):
        assert torch.equal(x, there) and torch.equal(y, labels)

# ---------------------------------------------------------------- the same images
def test_a_lazy_folder_has_the_images_of_a_decoded_one(photos):
    decoded, lazy = folder(photos), folder(photos, lazy=True)
    assert lazy.shape == decoded.shape and lazy.classes == decoded.classes and len(lazy) == 40
    assert torch.equal(lazy.labels, decoded.labels) and torch.equal(lazy.images, decoded.images)
    for rows in (3, slice(5, 9), [4, 1, 4], torch.tensor([39, 0]), np.arange(2)):
        assert torch.equal(lazy[rows][0], decoded[rows][0])

@pytest.mark.parametrize('workers', [0, 1, 2])
@pytest.mark.parametrize('start', [0, 3])
def test_batches_do_not_depend_on_who_reads(photos, workers, start):
    expected = flat(folder(photos), 7)[start:]
    lazy = folder(photos, lazy=True)
    assert_same_batches(flat(lazy, 7 - start, workers=workers, start=start), expected)

def test_a_process_reads_only_its_part(photos):
    "Opened files are counted by the source itself"
    class Counted:
        def __init__(self, source): self.source, self.read = source, []
        def __len__(self): return len(self.source)
        def __getitem__(self, i): self.read.append(i); return self.source[i]
    source = Counted(folder(photos, lazy=True).source)
    lazy = LazySet(source, folder(photos).labels)
    source.read.clear()
    [(x, _)] = flat(lazy, 1, here=slice(4, 6))
    [(whole, _)] = flat(folder(photos), 1)
    assert len(source.read) == 2 and torch.equal(x[4:6], whole[4:6])
    assert not x[:4].any() and not x[6:].any()

def test_a_set_of_the_hub(photos, rows, tmp_path):
    "From Python, from a folder of save_to_disk, and from tar files: the images of the folder"
    decoded = folder(photos)
    assert torch.equal(hub_set(rows, 16).images, decoded.images)
    assert hub_set(rows, 16).classes == ('cats', 'dogs')
    rows.save_to_disk('saved')
    datasets.DatasetDict(held_out=rows.select(range(9))).save_to_disk('parts')
    assert torch.equal(hub_set('saved', 16)[:][1], decoded.labels)
    assert len(hub_set('parts', 16, split='held_out')) == 9
    assert hub_set(rows, 16, label='number').num_classes == 40
    with tarfile.open('shard-0.tar', 'w') as tar:
        for i, f in enumerate(sorted(photos.rglob('*.jpg'))): tar.add(f, f'{i:03}.jpg')
    assert torch.equal(hub_set('.', 16).images, decoded.images)

def test_gray_and_transparent_rows():
    pixels = np.zeros((8, 8, 4), np.uint8)
    rows = datasets.Dataset.from_dict(dict(image=[Image.fromarray(pixels)]))
    assert (hub_set(rows, 8, 1)[0][0] == 1).all()                      # white below
    assert (hub_set(rows, 8, 3, background='black')[0][0] == -1).all()

def test_a_fingerprint_changes_with_what_is_read(photos):
    a, b = folder(photos, lazy=True), folder(photos, lazy=True)
    assert fingerprint(a) == fingerprint(b) != fingerprint(unlabelled(a))
    same = [torch.zeros(1, 4, 4)] * 9
    refused(lambda: check_varied(LazySet(same)), 'every pixel')
    changed = LazySet([torch.zeros(1, 4, 4)] * 8 + [torch.ones(1, 4, 4)])
    check_varied(changed)
    assert fingerprint(changed) != fingerprint(LazySet(same))

# ---------------------------------------------------------------- training
RATE = warmup_constant(1e-3, 1)

def trained(data, steps=6, **own):
    torch.manual_seed(0)
    state = TrainState(Denoiser(UNet(3, 8, (1,), 1, (), unshuffle=2, num_classes=2), V))
    schedule = Schedule(cosine_betas(100))
    for first in (3, steps):  # in two goes
        list(fit(state, schedule, data, steps=first, batch_size=8, lr=RATE, **own))
    return [p.detach() for p in state.denoiser.parameters()]

def test_training_is_the_same_to_the_bit(photos, rows):
    expected = trained(folder(photos))
    for data in (folder(photos, lazy=True), hub_set(rows, 16)):
        for workers in (0, 2):
            for w, there in zip(trained(data, workers=workers), expected, strict=True):
                assert torch.equal(w, there)

def config(**own): return parse_config(TINY | own)

def test_a_killed_run_with_workers_goes_on_at_the_same_image(photos):
    "By the command: SIGKILL after a checkpoint; the workers end; the weights are those of one go"
    data = dict(name='folder', root=str(photos), size=16, subfolders=True, lazy_above=0, workers=2)
    Path('c.yaml').write_text(yaml.safe_dump(TINY | dict(data=data)))
    train(config(data=data | dict(workers=0), run='whole'), progress=False)
    words = [BIN/'diffusion-train', 'c.yaml', 'run=run']
    p = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seen = []
    while p.poll() is None and not checkpoints('run'):
        seen = psutil.Process(p.pid).children() or seen
    p.send_signal(signal.SIGKILL); p.wait()
    gone, alive = psutil.wait_procs(seen, timeout=30)
    assert seen and not alive
    subprocess.run(words, check=True, capture_output=True)
    assert_same_run('run', 'whole')

def test_a_hub_set_by_the_config(photos, rows):
    rows.save_to_disk('saved')
    data = dict(name='hf', path='saved', size=16)
    for workers, run in enumerate('ab'):
        train(config(data=data | dict(workers=workers), run=run), progress=False)
    assert_same_run('a', 'b')
    for change, words in ((dict(path=None), 'data.path: null is not allowed'),
                          (dict(image_column='kind'), "'kind' is not allowed; allowed: picture"),
                          (dict(label_column='x'), 'allowed: kind, number'),
                          (dict(path='nowhere'), 'nowhere, split .train., cannot be read')):
        refused(lambda: make_data(config(data=data | change)), words, ValueError)

# ---------------------------------------------------------------- what fails is named
class Failing:
    "Ten images, of which the last has something wrong with it"
    def __init__(self, last): self.last = last
    def __len__(self): return 10
    def __getitem__(self, i): return self.last() if i == 9 else torch.rand(1, 8, 8)

def die(): os.kill(os.getpid(), signal.SIGKILL)
def fail(): raise OSError('the disk is gone')

@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('last, words', [
    (lambda: torch.rand(1, 8, 9), r'image 9 of .* is \(1, 8, 9\), and the first one \(1, 8, 8\)'),
    (lambda: torch.full((1, 8, 8), 2.), 'the values of image 9 lie in .2, 2.'),
    (lambda: (torch.rand(1, 8, 8), 3), 'item 9 of .images. has the label 3'),
    (lambda: 'text', 'item 9 is a str'), (fail, 'image 9 .* read: the disk is gone')])
def test_a_bad_item_is_named(last, words, workers):
    stream = batches(LazySet(Failing(last)), 5, workers=workers)
    refused(lambda: [next(stream) for _ in range(2)], words, (TypeError, ValueError))

def test_a_worker_that_dies_is_named():
    stream = batches(LazySet(Failing(die)), 5, workers=1)
    refused(lambda: [next(stream) for _ in range(2)], 'fewer workers, or workers=0', RuntimeError)

def test_a_file_that_breaks_later_is_named_and_the_run_goes_on(photos, tmp_path):
    "After five steps a file is no image; once it is repaired, the run ends as one in one go"
    shutil.copytree(photos, 'own')
    data = dict(name='folder', root='own', size=16, subfolders=True, lazy_above=0)
    train(config(data=data, run='whole'), progress=False)
    steps = dict(TINY['training'], steps=5)
    train(config(data=data, training=steps), progress=False)
    bad = Path('own/cats/2.jpg'); jpeg = bad.read_bytes(); bad.write_bytes(b'none')
    refused(lambda: train(config(data=data), progress=False), '2.jpg is not an image', ValueError)
    bad.write_bytes(jpeg)
    train(config(data=data), progress=False)
    assert_same_run('run', 'whole')

def test_what_a_lazy_folder_cannot_do_is_refused(photos):
    refused(lambda: folder(photos, lazy=True, corrupt='skip'), "allowed: 'refuse'")
    refused(lambda: folder(photos, lazy=True, cache='there'), 'allowed: None')
    data = dict(name='folder', root=str(photos), lazy_above=0, corrupt='skip')
    refused(lambda: make_data(config(data=data)), 'data.corrupt: skip is not allowed', ConfigError)
    refused(lambda: LazySet([]), 'holds no items')
    refused(lambda: LazySet('text'), 'LazySet cannot read a str', TypeError)

# ---------------------------------------------------------------- streams
class Stream(torch.utils.data.IterableDataset):
    "Pairs in an order that each pass changes"
    def __init__(self, pairs): self.pairs, self.epoch = pairs, 0
    def set_epoch(self, epoch): self.epoch = epoch
    def __iter__(self):
        order = np.random.default_rng(self.epoch).permutation(len(self.pairs))
        return (self.pairs[i] for i in order)

def streamed(photos):
    data = folder(photos)
    pairs = [(x, int(y)) for x, y in zip(data.images, data.labels)]
    return StreamSet(Stream(pairs), first=10, classes=data.classes)

@pytest.mark.parametrize('workers', [0, 2])
def test_a_stream_goes_on_at_the_same_image(photos, workers):
    "Each pass has all 40 images, and a start after three batches finds the fourth"
    whole = flat(streamed(photos), 10)
    assert_same_batches(flat(streamed(photos), 7, start=3, workers=workers), whole[3:])
    for half in (whole[:5], whole[5:]):
        assert sorted(y for _, labels in half for y in labels.tolist()) == [0] * 20 + [1] * 20
    first, second = (torch.cat([x for x, _ in half]) for half in (whole[:5], whole[5:]))
    assert not torch.equal(first, second)
    for a, b in zip(trained(streamed(photos)), trained(streamed(photos), workers=workers)):
        assert torch.equal(a, b)

def test_a_streamed_hub_set_by_the_config(photos, rows):
    "In one go, and in two, as the command does after a stop"
    rows.save_to_disk('saved')
    data = dict(name='hf', path='saved', size=16, streaming=True)
    train(config(data=data, run='whole'), progress=False)
    train(config(data=data, training=dict(TINY['training'], steps=7)), progress=False)
    train(config(data=data), progress=False)
    assert_same_run('run', 'whole')

def test_what_no_stream_can_be_is_refused():
    x = torch.zeros(1, 4, 4)
    refused(lambda: StreamSet([]), 'has no items')
    refused(lambda: StreamSet(3), 'cannot read a int', TypeError)
    once = StreamSet(iter([x] * 9))                      # a generator does not begin again
    refused(lambda: list(batches(once, 5)), 'must begin again')
    for pairs, words in (([(x, 0)] * 5 + [(x, 3)], r'item 5 of .* is 3; allowed: 0\.\.0, or'),
                         ([(x, 0)] * 5 + [x], 'is None; allowed: 0..0'),
                         ([x] * 5 + [x[:, :2]], r'item 5 .* is \(1, 2, 4\), and the first')):
        stream = batches(StreamSet(pairs, first=5), 6)
        refused(lambda: next(stream), words)

# ---------------------------------------------------------------- options of training
def test_balanced_batches_show_each_class_equally_often():
    "Of 90 images of one class and 10 of another, each pass has 50 and 50; all rare ones are there"
    x = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1)
    data = image_set(x, (torch.arange(100) >= 90).long())
    stream = batches(data, 20, balanced=True)
    first, second = ([next(stream) for _ in range(5)] for _ in range(2))
    for pass_ in (first, second):
        assert sum((y == 1).sum() for _, _, y in pass_) == 50
        rare = torch.cat([x[y == 1] for _, x, y in pass_]).flatten()
        assert rare.unique(return_counts=True)[1].tolist() == [5] * 10
    assert not torch.equal(first[0][1], second[0][1])
    later = batches(data, 20, balanced=True, start=7)
    assert torch.equal(next(later)[1], second[2][1])
    for wrong in (unlabelled(data), StreamSet([x[0]] * 9)):
        refused(lambda: next(batches(wrong, 5, balanced=True)), 'balanced = True is not allowed')

def test_recomputed_activations_change_no_bit_and_need_less_memory(photos):
    "With dropout, whose masks must come again; memory is what autograd keeps for the backward pass"
    held = []
    def most(**own):
        now = 0
        def keep(t):
            nonlocal now
            now += t.nbytes
            return t
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            weights = trained(folder(photos), steps=4, **own)
        held.append(now)
        return weights
    for a, b in zip(most(), most(recompute=True), strict=True): assert torch.equal(a, b)
    assert held[1] < 0.6 * held[0]

def test_latents_are_not_rounded():
    "Numbers within 4, in 4 channels, arrive as they are; without `limit` they are refused"
    x = 4 * torch.rand(20, 4, 8, 8, generator=torch.Generator().manual_seed(0)) - 2
    data = LazySet(list(x), limit=4.)
    _, batch, _ = next(batches(data, 20, seed=1))
    assert torch.equal(batch.flatten(1).sum(1).sort()[0], x.flatten(1).sum(1).sort()[0])
    refused(lambda: LazySet(list(x)), r'declare their range, limit=')
    refused(lambda: data.images, 'decode them to images first')
    state = TrainState(Denoiser(UNet(4, 8, (1,), 1, ()), V))
    options = dict(steps=2, batch_size=5, lr=RATE)
    assert len(list(fit(state, Schedule(cosine_betas(100)), data, **options))) == 2
