"""The eyes of a metric: shapes, bytes, batches, hashes; the shipped classifier;
Inception's plumbing, beside torchmetrics on the same weights"""
import dataclasses, gzip, hashlib, json, os, shutil, sys
from pathlib import Path
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from diffusion_scratch import features
from diffusion_scratch.data import ImageSet, mnist, mnist_mini, to_float
from diffusion_scratch.features import (EXTRACTORS, Classifier, Extractor, Features,
                                        digit_classifier, inception, load_classifier,
                                        save_classifier, train_classifier)

REAL = os.environ.get('DIFFUSION_SCRATCH_DATA')

@pytest.fixture(scope='module')
def data(): return mnist_mini()

@pytest.fixture(scope='module')
def digits(): return digit_classifier()

# ---- Extractor

def test_features_are_float64_rows_with_probabilities(data, digits):
    seen = digits(data.images[:70])
    assert seen.x.shape == (70, digits.dim) and (seen.x >= 0).all()
    assert seen.x.dtype == seen.p.dtype == torch.float64
    np.testing.assert_allclose(seen.p.sum(1), 1, atol=1e-12)

@pytest.mark.parametrize('batch', [1, 7, 250])
def test_batches_change_the_last_digits_only(data, digits, batch):
    """float32 convolutions may sum in another order for another batch: a relative 1e-5 of the
    largest feature is a hundred roundings"""
    a, b = digits(data.images[:70]), dataclasses.replace(digits, batch=batch)(data.images[:70])
    assert (a.x - b.x).abs().max() < 1e-5 * a.x.abs().max() and (a.p - b.p).abs().max() < 1e-5

def test_images_are_looked_at_as_bytes(data, digits):
    x, seen = to_float(data.images[:20]), digits(data.images[:20])
    def same(images): torch.testing.assert_close(digits(images).x, seen.x, atol=0, rtol=0)
    same(x + 0.9 / 255)                                # less than half a gray value
    same(torch.where(x == 1, 3., x).double())          # outside [-1, 1] is clamped
    assert not torch.equal(digits(x + 1.1 / 255).x, seen.x)

def test_any_function_can_look(data):
    mean = Extractor('mean', 'v1', 1, lambda x: Features(x.float().mean((2, 3))))
    seen = mean(data.images[:9])
    assert seen.p is None
    exact = data.images[:9].double().mean((1, 2, 3))
    torch.testing.assert_close(seen.x[:, 0], exact, rtol=1e-6, atol=0)  # float32 inside
    assert mean(torch.zeros(2, 1, 5, 4, dtype=torch.uint8)).x.shape == (2, 1)

@pytest.mark.parametrize('shape', [(0, 1, 28, 28), (4, 3, 28, 28), (4, 1, 32, 32), (1, 28, 28),
                                   (4, 28, 28, 1)])
def test_wrong_shapes_are_refused(digits, shape):
    with pytest.raises(ValueError, match=r'(?s)shape.*\(N, 1, 28, 28\).*inception'):
        digits(torch.zeros(shape))

def test_wrong_numbers_are_refused(data, digits):
    with pytest.raises(TypeError, match='int64'): digits(data.images[:2].long())
    with pytest.raises(ValueError, match='NaN'): digits(torch.full((1, 1, 28, 28), float('nan')))
    with pytest.warns(UserWarning, match=r'\[0, 1\]'): digits(data.images[:2] / 255)
    liar = Extractor('liar', '', 3, lambda x: Features(x.flatten(1).float()))
    with pytest.raises(ValueError, match='promises'): liar(data.images[:2])

# ---- the shipped classifier

def test_hash_is_that_of_the_file(digits):
    blob = (EXTRACTORS/'digit-classifier'/'model.safetensors').read_bytes()
    assert digits.hash == hashlib.sha256(blob).hexdigest()[:12]
    assert digits.name == 'digit-classifier'
    assert len(blob) < 2**20
    readme = EXTRACTORS/'digit-classifier'/'README.md'
    assert readme.read_text(encoding='utf-8').count(digits.hash)

def record():
    "What is kept of the training of the shipped classifier"
    config = EXTRACTORS/'digit-classifier'/'config.json'
    return json.loads(config.read_text(encoding='utf-8'))['about']

def test_record_says_how_it_was_made():
    made, test = record()['made'], record()['test']
    assert {'command', 'seed', 'data', 'data_sha256', 'date', 'wall_s'} <= made.keys()
    assert {'device', 'threads', 'torch', 'losses'} <= made.keys()
    assert test['accuracy'] >= 0.994 and abs(test['confidence'] - test['accuracy']) < 0.002

def test_reads_the_digits_of_mnist_mini(data, digits):
    "They were among the 60,000 it learned from; test digits are in the next test"
    p = digits(data.images).p
    assert (p.argmax(1) == data.labels).double().mean() > 0.997

@pytest.mark.skipif(not REAL, reason='DIFFUSION_SCRATCH_DATA names no folder with MNIST/raw/*.gz')
def test_reads_the_test_digits_as_the_record_says(digits, tmp_path):
    raw = tmp_path/'MNIST'/'raw'; raw.mkdir(parents=True)
    for f in (Path(REAL)/'MNIST'/'raw').glob('*.gz'):
        with gzip.open(f) as a, open(raw/f.stem, 'wb') as b: shutil.copyfileobj(a, b)
    test = mnist(tmp_path, train=False, download=False)
    p = digits(test.images).p
    right, sure = (p.argmax(1) == test.labels).double().mean(), p.max(1).values.mean()
    assert float(right) == pytest.approx(record()['test']['accuracy'], abs=2e-4)
    assert float(sure) == pytest.approx(record()['test']['confidence'], abs=2e-4)

def test_classes_lie_apart_in_features_more_than_in_pixels(data, digits):
    "Nearest neighbours: the share of digits whose nearest other digit has their label"
    def agree(x):
        d = torch.cdist(x, x).fill_diagonal_(torch.inf)
        return (data.labels[::5][d.argmin(1)] == data.labels[::5]).double().mean()
    images = data.images[::5].roll((2, -2), (2, 3))
    assert agree(digits(images).x) > 0.985 > 0.97 > agree(to_float(images).flatten(1))

# ---- training, saving, loading

def test_training_is_a_function_of_data_and_seed_and_leaves_no_footprint(data):
    part = ImageSet(data.images[::25], data.labels[::25], data.classes)
    torch.manual_seed(5); state = torch.random.get_rng_state()
    nets = [train_classifier(part, epochs=1, batch=50, seed=s, progress=False) for s in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), state)
    a, b, c = (net.state_dict()['head.weight'] for net, _ in nets)
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert not nets[0][0].training and len(nets[0][1]) == 1

def test_training_learns(data):
    part = ImageSet(data.images[::2], data.labels[::2], data.classes)
    net, losses = train_classifier(part, epochs=3, batch=50, seed=0, progress=False)
    with torch.inference_mode(): read = net(to_float(data.images[1::2]))[1].argmax(1)
    assert losses[-1] < 0.4 < losses[0] and (read == data.labels[1::2]).double().mean() > 0.93

@pytest.mark.parametrize('shape', [(3, 32, 32), (1, 8, 8), (2, 9, 23)])
def test_any_shape_saves_and_loads(tmp_path, shape):
    "16 bits keep 11 digits of two: features agree to a relative 1e-2 of the largest"
    torch.manual_seed(0)
    images = torch.randint(256, (40, *shape), dtype=torch.uint8)
    four = ImageSet(images, torch.arange(40) % 4)
    net, _ = train_classifier(four, epochs=1, batch=20, progress=False)
    eye = load_classifier(save_classifier(net, tmp_path/'eye', dict(name='four')))
    with torch.inference_mode(): x, scores = net(to_float(images))
    seen = eye(images)
    assert (eye.name, eye.shape, eye.dim) == ('four', shape, 64)
    assert (seen.x - x).abs().max() < 1e-2 * x.abs().max()
    torch.testing.assert_close(seen.p, scores.double().softmax(1), atol=1e-2, rtol=0)

def test_damaged_or_missing_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='config.json'): load_classifier(tmp_path)
    folder = save_classifier(Classifier(), tmp_path/'eye', dict(name='x'))
    save_file(Classifier().state_dict(), folder/'model.safetensors')
    with pytest.raises(ValueError, match='SHA-256'): load_classifier(folder)

def test_what_cannot_be_learned_is_refused(data):
    with pytest.raises(ValueError, match='labels'): train_classifier(ImageSet(data.images[:9]))
    with pytest.raises(ValueError, match='batch = 128.*2..9'):
        train_classifier(ImageSet(data.images[:9], data.labels[:9]))
    with pytest.raises(ValueError, match='at least 8'): Classifier((1, 7, 28))

# ---- Inception, with weights that nobody trained

@pytest.fixture(scope='module')
def random_weights(tmp_path_factory):
    "He's initialisation, so that random features neither vanish nor explode on their way"
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    file = tmp_path_factory.mktemp('fid')/'weights.pth'
    net = FeatureExtractorInceptionV3.__new__(FeatureExtractorInceptionV3)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patch.setattr(torch, 'load', lambda *a, **k: {})
        patch.setattr(FeatureExtractorInceptionV3, 'load_state_dict', lambda self, state: None)
        net.__init__('inception', ['2048'], 'nowhere')
        for m in net.modules():
            if isinstance(m, (nn.Conv2d, nn.Linear)): nn.init.kaiming_normal_(m.weight)
    torch.save(net.state_dict(), file)
    return file

def test_inception_is_the_fields(random_weights, tmp_path, data):
    """Exactly what torchmetrics computes with the resize of TensorFlow 1, on the same weights; with
    torchmetrics' own default resize it is something else"""
    pytest.importorskip('torch_fidelity')
    from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3
    eye, images = inception(random_weights), data.images[:1]
    sha256 = hashlib.sha256(random_weights.read_bytes()).hexdigest()
    assert eye.hash == sha256[:12] and eye.dim == 2048
    three = images.expand(-1, 3, -1, -1)
    seen = eye(images)
    assert seen.x.shape == (1, 2048) and seen.p.shape == (1, 1008) and seen.x.std() > 0.01
    fid = FrechetInceptionDistance(2048, antialias=False,
                                   feature_extractor_weights_path=str(random_weights))
    their_own = NoTrainInceptionV3('theirs', ['2048'], str(random_weights))
    fid.update(three, real=True)
    torch.testing.assert_close(fid.real_features_sum, seen.x.sum(0), rtol=1e-5, atol=1e-5)
    assert (seen.x - their_own(three).double()).abs().max() > 1e-2 * seen.x.abs().max()
    save_file(torch.load(random_weights, weights_only=True), tmp_path/'weights.safetensors')
    again = inception(tmp_path/'weights.safetensors')(three)
    torch.testing.assert_close(again.x, seen.x, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match='2 channels'): eye(images.expand(-1, 2, -1, -1))

class Boom:
    def __reduce__(self): return print, ('a pickle has run',)

def test_nothing_is_unpickled(tmp_path, capsys):
    torch.save(Boom(), tmp_path/'evil.pth')
    (tmp_path/'short.pth').write_bytes(b'PK'); (tmp_path/'short.safetensors').write_bytes(b'PK')
    for name in ('evil.pth', 'short.pth', 'short.safetensors'):
        with pytest.raises(ValueError, match=f'{name}.*is not loaded'): inception(tmp_path/name)
    assert 'a pickle has run' not in capsys.readouterr().out

def test_inception_says_what_is_missing(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match='nowhere.pth.*github.com'):
        inception(tmp_path/'nowhere.pth')
    def refused(*a, **k): raise OSError('no network')
    monkeypatch.setattr(torch.hub, 'download_url_to_file', refused)
    monkeypatch.setattr(features, 'DATA', tmp_path/'cache')
    said = r'cache/weights-inception.*no network.*put that file there'
    with pytest.raises(FileNotFoundError, match=said): inception()
    monkeypatch.setitem(sys.modules, 'torch_fidelity.feature_extractor_inceptionv3', None)
    with pytest.raises(ImportError, match=r'diffusion_scratch\[fid\]'): inception()

def test_download_is_whole_and_true_or_nothing(tmp_path):
    "A file whose digest is not the one in its name is thrown away"
    good = tmp_path/'there'; good.mkdir(); blob = b'weights'
    name = f'w-{hashlib.sha256(blob).hexdigest()[:8]}.pth'
    (good/name).write_bytes(blob); (good/'w-00000000.pth').write_bytes(blob)
    features.download((good/name).as_uri(), tmp_path/'here'/name)
    assert (tmp_path/'here'/name).read_bytes() == blob
    with pytest.raises(FileNotFoundError, match='hash'):
        features.download((good/'w-00000000.pth').as_uri(), tmp_path/'here'/'w-00000000.pth')
    assert [f.name for f in (tmp_path/'here').iterdir()] == [name]
