"The eyes of a metric; the shipped classifier; Inception, beside torchmetrics on the same weights"
import dataclasses, hashlib, json, shutil, sys
import numpy as np
import pytest
import torch
from conftest import gen, refused
from helpers_damage import never_silent
from safetensors.torch import save_file
from torch import nn
from diffusion_scratch import features
from diffusion_scratch.data import ImageSet, mnist, to_float
from diffusion_scratch.features import (EXTRACTORS, Classifier, Extractor, Features,
                                        ResidualClassifier, digit_classifier, face_classifier,
                                        fitting_extractor, inception, load_classifier, most_likely,
                                        object_classifier, save_classifier, shifted_and_blurred,
                                        shifted_and_mirrored, train_classifier)
from diffusion_scratch.export import export_diffusers
from diffusion_scratch.denoiser import Denoiser
from diffusion_scratch.pretrained import load, save
from diffusion_scratch.schedule import Schedule
from diffusion_scratch.unet import UNet

FOLDER = EXTRACTORS/'digit-classifier'

@pytest.fixture(scope='module')
def digits(): return digit_classifier()

@pytest.fixture(scope='module')
def record(): return json.loads((FOLDER/'config.json').read_text(encoding='utf-8'))['about']

@pytest.mark.parametrize('batch', [1, 7, 250])
def test_features_are_float64_rows_with_probabilities_whatever_the_batch(mini, digits, batch):
    "float32 may sum in another order: 1e-5 of the largest feature is a hundred roundings"
    a, b = digits(mini.images[:70]), dataclasses.replace(digits, batch=batch)(mini.images[:70])
    assert a.x.shape == (70, digits.dim) and (a.x >= 0).all() and a.x.dtype == torch.float64
    assert (a.p.sum(1) - 1).abs().max() < 1e-12 and a.p.dtype == torch.float64
    assert (a.x - b.x).abs().max() < 1e-5 * a.x.abs().max() and (a.p - b.p).abs().max() < 1e-5

def test_images_are_looked_at_as_bytes(mini, digits):
    x, seen = to_float(mini.images[:20]), digits(mini.images[:20]).x
    assert torch.equal(digits(x + 0.9 / 255).x, seen)  # less than half a gray value
    assert torch.equal(digits(torch.where(x == 1, 3., x).double()).x, seen)  # clamped to [-1, 1]
    assert not torch.equal(digits(x + 1.1 / 255).x, seen)

@pytest.mark.parametrize('error, call, says', [
    *[(ValueError, lambda shape=shape: digit_classifier()(torch.zeros(shape)),
       r'(?s)shape.*\(N, 1, 28, 28\).*inception')
      for shape in ((0, 1, 28, 28), (4, 3, 28, 28), (4, 1, 32, 32), (1, 28, 28), (4, 28, 28, 1))],
    (TypeError, lambda: digit_classifier()(torch.zeros(2, 1, 28, 28).long()), 'int64'),
    (ValueError, lambda: digit_classifier()(torch.full((1, 1, 28, 28), torch.nan)), 'NaN'),
    (ValueError, lambda: Extractor('liar', '', 3, lambda x: Features(x.flatten(1).float()))(
        torch.zeros(2, 1, 8, 8).byte()), 'promises'),
    *[(ValueError, lambda sizes=sizes: most_likely(torch.rand(4, 5), sizes), r'sizes = .*\(4, 5\)')
      for sizes in ((), (2, 2), (5, 0), (2, 3, 1))],
    (ValueError, lambda: train_classifier(ImageSet(torch.zeros(9, 1, 28, 28).byte())), 'labels'),
    (ValueError, lambda: train_classifier(ImageSet(
        torch.zeros(9, 1, 28, 28).byte(), torch.arange(9))), 'batch = 128.*2..9'),
    (ValueError, lambda: Classifier((1, 7, 28)), 'at least 8')])
def test_what_does_not_fit_is_refused(error, call, says): refused(call, says, error)

def test_images_in_0_to_1_are_told_of(mini, digits):
    with pytest.warns(UserWarning, match=r'\[0, 1\]'): digits(mini.images[:2] / 255)

def test_reads_the_digits_of_mnist_mini(mini, digits):
    "They were among the 60,000 it learned from; test digits are in the next test"
    assert (digits(mini.images).p.argmax(1) == mini.labels).double().mean() > 0.997

def test_reads_the_test_digits_as_the_record_says(digits, record, whole_mnist):
    test = mnist(whole_mnist, train=False, download=False)
    p = digits(test.images).p
    right, sure = (p.argmax(1) == test.labels).double().mean(), p.max(1).values.mean()
    assert float(right) == pytest.approx(record['test']['accuracy'], abs=2e-4)
    assert float(sure) == pytest.approx(record['test']['confidence'], abs=2e-4)

def test_training_learns(mini):
    part = ImageSet(mini.images[::2], mini.labels[::2], mini.classes)
    net, losses = train_classifier(part, epochs=3, batch=50, seed=0, progress=False)
    with torch.inference_mode(): read = net(to_float(mini.images[1::2]))[1].argmax(1)
    assert losses[-1] < 0.4 < losses[0] and (read == mini.labels[1::2]).double().mean() > 0.93

@pytest.mark.parametrize('shape', [(3, 32, 32), (1, 8, 8), (2, 9, 23)])
def test_any_shape_saves_and_loads_and_nothing_else_does(tmp_path, shape):
    "16 bits keep 11 digits of two: features agree to a relative 1e-2 of the largest"
    refused(lambda: load_classifier(tmp_path), 'config.json', FileNotFoundError)
    images = torch.randint(256, (40, *shape), dtype=torch.uint8,
                           generator=gen(0))
    four = ImageSet(images, torch.arange(40) % 4)
    net, _ = train_classifier(four, epochs=1, batch=20, progress=False)
    folder = save_classifier(net, tmp_path/'eye', dict(name='four'))
    eye = load_classifier(folder)
    with torch.inference_mode(): x, scores = net(to_float(images))
    seen = eye(images)
    assert (eye.name, eye.shape, eye.dim) == ('four', shape, 64)
    assert (seen.x - x).abs().max() < 1e-2 * x.abs().max()
    torch.testing.assert_close(seen.p, scores.double().softmax(1), atol=1e-2, rtol=0)
    save_file(Classifier(shape, 4).state_dict(), folder/'model.safetensors')
    refused(lambda: load_classifier(folder), 'SHA-256')

def colours():
    g, y = gen(0), torch.arange(60) % 3
    x = torch.randint(90, (60, 3, 16, 16), generator=g) + 80 * y.view(-1, 1, 1, 1)
    return ImageSet(x.byte(), y)

def of_colours(**options):
    options = dict(augment=shifted_and_mirrored) | options
    return train_classifier(colours(), network=ResidualClassifier, batch=20, progress=False,
                            **options)

def test_a_training_depends_on_data_and_seed_alone_also_if_it_is_stopped(tmp_path):
    "Of the residual classifier, which learns; its folder names it, as that of digits did not yet"
    batches, dies_at, state = [], 5, torch.random.get_rng_state()  # in the second epoch
    def augment(x, g):
        if len(batches) == dies_at: raise KeyboardInterrupt
        batches.append(x)
        return shifted_and_mirrored(x, g)
    options = dict(epochs=4, augment=augment)
    with pytest.raises(KeyboardInterrupt): of_colours(**options, keep=tmp_path/'state')
    dies_at = None
    again, found = of_colours(**options, keep=tmp_path/'state')
    assert len(batches) < 5 + 12  # it did not begin again
    whole, losses = of_colours(**options)
    assert found == losses and all(torch.equal(v, again.state_dict()[k])
                                   for k, v in whole.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state) and not whole.training
    assert len(losses) == 4 and of_colours(epochs=1, seed=1)[1] != losses[:1]
    refused(lambda: of_colours(epochs=4, lr=1e-3, keep=tmp_path/'state'),
            'keep = .*another training')
    eye = load_classifier(save_classifier(whole, tmp_path/'eye', dict(name='three')))
    seen = eye(colours().images)
    assert losses[-1] < losses[0] and (seen.p.argmax(1) == colours().labels).double().mean() > 0.9
    network, of_digits = (json.loads((f/'config.json').read_text()).get('network')
                          for f in (tmp_path/'eye', FOLDER))
    assert (network, of_digits) == ('ResidualClassifier', None) and seen.x.shape == (60, 128)

def test_shifts_and_mirrors():
    "Each image is one of the 2 x 9 x 9 that numpy cuts from the padded image, with all shifts"
    x = torch.rand(400, 1, 5, 6, generator=gen(0))
    moved, found = shifted_and_mirrored(x, gen(1)).numpy(), set()
    for before, after in zip(x.numpy(), moved):
        for mirror in (0, 1):
            wide = np.pad(before[:, :, ::-1] if mirror else before, ((0, 0), (4, 4), (4, 4)))
            found |= {(mirror, i, j) for i in range(9) for j in range(9)
                      if np.array_equal(wide[:, i:i + 5, j:j + 6], after) and after.any()}
    assert len(found) > 120 and {m for m, _, _ in found} == {0, 1}  # of 162, drawn 400 times
    assert moved.shape == (400, 1, 5, 6)

# ---------------------------------------------------------------- attributes

SIDES = dict(half=('left', 'right'), shade=('a', 'b', 'c'))

def halves(hide=()):
    "Images whose left or right half has one of three grays; attributes in `hide` are not stated"
    g, y = gen(0), torch.arange(120)
    table = torch.stack([y % 2, y // 2 % 3], 1)
    images = torch.randint(40, (120, 1, 16, 16), generator=g)
    for image, (half, shade) in zip(images, table.tolist()):
        image[:, :, 8 * half:8 * half + 8] += 60 + 70 * shade
    for a in hide: table[:, list(SIDES).index(a)] = -1
    return ImageSet(images.byte(), table, SIDES)

@pytest.mark.parametrize('network', [Classifier, ResidualClassifier])
def test_a_classifier_of_attributes(network, tmp_path):
    "Trained, saved and loaded: probabilities side by side, each group adds up to 1"
    data = halves()
    net, losses = train_classifier(data, network=network, augment=shifted_and_blurred, epochs=8,
                                   batch=40, progress=False)
    eye = load_classifier(save_classifier(net, tmp_path/'eye', dict(name='halves')))
    p = eye(data.images).p
    assert losses[-1] < losses[0] and eye.classes == SIDES and p.shape == (120, 5)
    for group in (p[:, :2], p[:, 2:]): assert (group.sum(1) - 1).abs().max() < 1e-12
    read = most_likely(p, (2, 3))
    assert torch.equal(read, torch.stack([p[:, :2].argmax(1), p[:, 2:].argmax(1)], 1))
    assert (read == data.labels).double().mean() > 0.95

def test_what_is_not_stated_counts_nothing():
    "In the loss of the first batch, counted here from the same seed, and in the learned scores"
    def still(x, g): return x
    options = dict(augment=still, progress=False, weight_decay=0.)
    some = halves()
    some.labels[::3, 1] = some.labels[5:40, 0] = -1
    _, [loss] = train_classifier(some, epochs=1, batch=120, **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        logs = Classifier((1, 16, 16), SIDES)(to_float(some.images))[1].double().detach()
    logs = [logs[:, :2].log_softmax(1), logs[:, 2:].log_softmax(1)]
    by_hand = -sum(group[i, k] for i, row in enumerate(some.labels.tolist())
                   for group, k in zip(logs, row) if k >= 0) / 120
    assert loss == pytest.approx(by_hand.item(), rel=1e-5)
    heads = [train_classifier(halves(['shade']), epochs=e, batch=40, **options)[0].head.weight
             for e in (1, 3)]
    assert torch.equal(heads[0][2:], heads[1][2:]) and not torch.equal(heads[0][:2], heads[1][:2])

def test_shifts_repeat_the_border_and_noise_stays_small():
    x = torch.ones(50, 3, 9, 8)
    assert torch.equal(shifted_and_blurred(x, gen(0), noise=0.), x)
    noise = shifted_and_blurred(x, gen(0)) - x
    assert 0 < noise.std() < 0.15 and (noise.std((1, 2, 3)).max() - 0.15).abs() < 0.02
    moved = torch.arange(9.).view(1, 1, 9, 1).expand(60, 1, 9, 8).contiguous()
    found = shifted_and_blurred(moved, gen(0), noise=0.)[:, 0, 4, 3]
    assert set(found.round().tolist()) == {2., 3., 4., 5., 6.}

def test_which_classifier_judges_which_images(digits):
    "That of faces judges no photographs of that size, nor other attributes"
    eye = face_classifier()
    assert fitting_extractor((3, 64, 64), classes=eye.classes).hash == eye.hash
    assert fitting_extractor((1, 28, 28)).hash == digits.hash
    assert fitting_extractor((3, 32, 32)).hash == object_classifier().hash
    few = {k: v[:1] for k, v in eye.classes.items()}
    for classes in ((), ('cat', 'dog'), few, dict(reversed(eye.classes.items()))):
        refused(lambda: fitting_extractor((3, 64, 64), classes=classes),
                'face-classifier .3, 64, 64. with the attributes hat')
    refused(lambda: fitting_extractor((3, 65, 64)), 'inception')

def test_every_file_of_an_extractor_is_read_whole_or_refused(tmp_path, mini):
    with torch.random.fork_rng(): net = Classifier((1, 8, 8), 2, 4)
    folder = save_classifier(net, tmp_path/'eye', dict(name='é|\udce9', made=dict(seed=0)))
    image = mini.images[:2, :, 8:16, 8:16]
    def read():
        eye = load_classifier(folder)
        return eye.name, eye.hash, eye(image).x.tolist()
    for file in folder.iterdir(): assert never_silent(file, read)['refused'] > 100
    shipped = shutil.copytree(FOLDER, tmp_path/'shipped')
    for name in ('config.json', 'model.safetensors'):
        never_silent(shipped/name, lambda: load_classifier(shipped).hash)

@pytest.mark.parametrize('write', [
    lambda folder: save(*load('mnist-mini'), folder, dict(name='a model')),
    lambda folder: export_diffusers(Denoiser(UNet(1, 8, (1,), 1, ())), Schedule([0.1, 0.5]), folder,
                                    dict(shape=[1, 8, 8])),
    lambda folder: save_classifier(Classifier(), folder, dict(name=7)),
    lambda folder: save_classifier(Classifier(), folder, {}),
    lambda folder: (folder/'config.json').write_text('{"args": 3}')])
def test_folders_that_are_no_extractor(tmp_path, write):
    "A model for an extractor, and facts that make none"
    (tmp_path/'eye').mkdir()
    write(tmp_path/'eye')
    (tmp_path/'eye'/'model.safetensors').touch()
    says = 'config.json (.|\n)*save_classifier wrote'
    refused(lambda: load_classifier(tmp_path/'eye'), says, (ValueError, OSError))

@pytest.fixture(scope='module')
def random_weights(tmp_path_factory):
    "Nobody trained them: by He, so that features neither vanish nor explode on their way"
    module = pytest.importorskip('torch_fidelity.feature_extractor_inceptionv3')
    file = tmp_path_factory.mktemp('fid')/'weights.pth'
    torch.save({}, file)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patch.setattr(nn.Module, 'load_state_dict', lambda *a: None)
        net = module.FeatureExtractorInceptionV3('inception', ['2048'], str(file))
        for m in net.modules():
            if isinstance(m, (nn.Conv2d, nn.Linear)): nn.init.kaiming_normal_(m.weight)
    torch.save(net.state_dict(), file)
    return file

def test_inception_is_the_fields(random_weights, tmp_path, mini):
    "That of torchmetrics with the resize of TensorFlow 1, not with torchmetrics' own default"
    from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3
    eye, images = inception(random_weights), mini.images[:1]
    sha256 = hashlib.sha256(random_weights.read_bytes()).hexdigest()
    assert eye.hash == sha256[:12] and eye.dim == 2048
    three, seen = images.expand(-1, 3, -1, -1), eye(images)
    assert seen.x.shape == (1, 2048) and seen.p.shape == (1, 1008) and seen.x.std() > 0.01
    fid = FrechetInceptionDistance(2048, antialias=False,
                                   feature_extractor_weights_path=str(random_weights))
    their_own = NoTrainInceptionV3('theirs', ['2048'], str(random_weights))
    fid.update(three, real=True)
    save_file(torch.load(random_weights, weights_only=True), tmp_path/'weights.safetensors')
    for same in (fid.real_features_sum[None], inception(tmp_path/'weights.safetensors')(three).x):
        torch.testing.assert_close(same, seen.x, rtol=1e-5, atol=1e-5)
    assert (seen.x - their_own(three).double()).abs().max() > 1e-2 * seen.x.abs().max()
    refused(lambda: eye(images.expand(-1, 2, -1, -1)), '2 channels')

def test_nothing_is_unpickled(tmp_path, capsys):
    class Boom:
        def __reduce__(self): return print, ('a pickle has run',)
    torch.save(Boom(), tmp_path/'evil.pth')
    for name in ('short.pth', 'short.safetensors'): (tmp_path/name).write_bytes(b'PK')
    for name in ('evil.pth', 'short.pth', 'short.safetensors'):
        refused(lambda: inception(tmp_path/name), f'{name}.*is not loaded')
    assert 'a pickle has run' not in capsys.readouterr().out

def test_inception_says_what_is_missing(tmp_path, monkeypatch):
    def no_network(*a, **k): raise OSError('no network')
    monkeypatch.setattr(torch.hub, 'download_url_to_file', no_network)
    monkeypatch.setattr(features, 'DATA', tmp_path/'cache')
    said = r'cache/weights-inception.*no network.*put that file there'
    for call, words in ((lambda: inception(tmp_path/'nowhere.pth'), 'nowhere.pth.*github.com'),
                        (inception, said)):
        refused(call, words, FileNotFoundError)
    monkeypatch.setitem(sys.modules, 'torch_fidelity.feature_extractor_inceptionv3', None)
    refused(inception, r'diffusion_scratch\[fid\]', ImportError)

def test_download_is_whole_and_true_or_nothing(tmp_path):
    "A file whose digest is not the one in its name is thrown away"
    (tmp_path/'there').mkdir()
    true, false = f'w-{hashlib.sha256(b"weights").hexdigest()[:8]}.pth', 'w-00000000.pth'
    def fetch(name):
        (tmp_path/'there'/name).write_bytes(b'weights')
        features.download((tmp_path/'there'/name).as_uri(), tmp_path/'here'/name)
    fetch(true)
    refused(lambda: fetch(false), 'hash', FileNotFoundError)
    assert [(f.name, f.read_bytes()) for f in (tmp_path/'here').iterdir()] == [(true, b'weights')]
