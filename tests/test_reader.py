"The judge, judged: exact binomials, hand counts, leaks, and a user's mistakes"
import math
import numpy as np
import pytest
import torch
from scipy.stats import binom
from sklearn.model_selection import StratifiedKFold
from diffusion_scratch.data import ImageSet, mnist_mini
from diffusion_scratch.reader import Reader, Share

@pytest.fixture(scope='module')
def digits():
    d, order = mnist_mini(), torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    parts = order[:1500], order[1500:2000]
    return [ImageSet(d.images[i], d.labels[i], d.classes, 'digits') for i in parts]

@pytest.fixture(scope='module')
def reader(digits): return Reader(digits[0])

# ---- Share (eq-share-error)

@pytest.mark.parametrize('n, s', [(1, 0.3), (7, 0.5), (256, 0.9), (5000, 0.786)])
def test_error_is_the_standard_deviation_of_the_binomial_share(n, s):
    k = np.arange(n + 1)
    pmf = binom.pmf(k, n, s)
    sd = math.sqrt((pmf * (k / n)**2).sum() - (pmf * k / n).sum()**2)
    assert Share(s, n).error == pytest.approx(sd, rel=1e-9)

def test_two_errors_cover_the_truth_nineteen_times_in_twenty():
    k = np.arange(257)
    inside = [abs(i / 256 - 0.9) <= 1.96 * Share(i / 256, 256).error for i in k]
    assert 0.92 < binom.pmf(k[inside], 256, 0.9).sum() < 0.97

def test_share_prints_what_the_command_line_shows():
    assert str(Share(0.945, 256)) == '94.5% ± 1.4% of 256'
    assert str(Share(0.786, 5000)) == '78.6% ± 0.6% of 5,000'
    assert str(Share(1., 10)) == '100.0% ± 0.0% of 10'

# ---- Reader

def test_probabilities_are_probabilities_and_mostly_right(reader, digits):
    p = reader.probabilities(digits[1].images)
    assert p.shape == (500, 10) and (p >= 0).all()
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-9)
    assert (p.argmax(1) == digits[1].labels.numpy()).mean() > 0.85

def test_readable_is_a_count(reader, digits):
    p = reader.probabilities(digits[1].images).max(1)
    for threshold in (0., 0.5, 0.9, 0.99):
        s = reader.readable(digits[1].images, threshold)
        assert s == Share(sum(q > threshold for q in p) / 500, 500)
    assert reader.readable(digits[1].images, 0.).value == 1
    assert reader.readable(digits[1].images) == reader.readable(digits[1].images, 0.9)

def test_bytes_and_floats_are_read_alike_and_strays_are_clamped(reader, digits):
    x = digits[1][:50][0]
    p = reader.probabilities(digits[1].images[:50])
    np.testing.assert_array_equal(reader.probabilities(x), p)
    np.testing.assert_array_equal(reader.probabilities(x.double()), p)
    strays = torch.where(x == 1, 7., torch.where(x == -1, -7., x))
    np.testing.assert_array_equal(reader.probabilities(strays), p)

def test_noise_and_rubble_are_not_readable_but_unseen_digits_are(reader, digits):
    g = torch.Generator().manual_seed(1)
    real = digits[1][:][0]
    shuffled = torch.stack([x.flatten()[torch.randperm(784, generator=g)] for x in real])
    noises = torch.rand(real.shape, generator=g) * 2 - 1, torch.randn(real.shape, generator=g)
    empty = torch.full_like(real, -1), torch.full_like(real, 1)
    for rubble in (*noises, shuffled.view(real.shape), *empty):
        assert reader.readable(rubble).value < 0.02
    assert 0.4 < reader.readable(real).value < 0.9

def test_digits_it_was_trained_on_do_not_count_as_unseen(reader, digits):
    assert reader.readable(digits[0].images).value > reader.readable(digits[1].images).value + 0.1

def test_agrees_is_a_count(reader, digits):
    images, labels = digits[1].images, digits[1].labels
    read = reader.probabilities(images).argmax(1)
    assert reader.agrees(images, labels) == Share(float((read == labels.numpy()).mean()), 500)
    assert reader.agrees(images, torch.from_numpy(read)).value == 1
    assert reader.agrees(images, (torch.from_numpy(read) + 1) % 10).value == 0
    assert reader.agrees(images[:4], read[:4].tolist()) == Share(1., 4)

def test_agrees_when_some_classes_are_missing(digits):
    "The columns of the probabilities are then not the labels"
    d = digits[0]
    some = (d.labels == 3) | (d.labels == 7)
    r = Reader(ImageSet(d.images[some], d.labels[some], name='threes and sevens'))
    other = (digits[1].labels == 3) | (digits[1].labels == 7)
    assert r.probabilities(digits[1].images[other]).shape[1] == 2
    assert r.agrees(digits[1].images[other], digits[1].labels[other]).value > 0.9

def test_readable_real_is_what_readers_of_the_other_parts_say(digits):
    "Cross-validation by hand: split, train on the rest, read the part"
    d = ImageSet(digits[0].images[:600], digits[0].labels[:600])
    count = 0
    for rest, part in StratifiedKFold(2).split(np.zeros(600), d.labels):
        p = Reader(ImageSet(d.images[rest], d.labels[rest])).probabilities(d.images[part])
        count += (p.max(1) > 0.8).sum()
    r = Reader(d)
    assert r.readable_real(0.8, folds=2) == Share(count / 600, 600)
    assert r.readable(d.images, 0.8).value > count / 600 + 0.2  # those it has seen

def test_readable_real_of_clear_classes_is_high():
    images = torch.cat([torch.full((60, 3, 4, 5), -0.8), torch.full((60, 3, 4, 5), 0.8)])
    d = ImageSet(images, torch.arange(120) // 60, name='dark and light')
    r = Reader(d)
    assert r.readable_real(folds=3).value == 1 and r.readable(d.images).n == 120  # in colour

def test_two_readers_of_the_same_data_agree_and_leave_no_footprints(digits):
    d = ImageSet(digits[0].images[:300], digits[0].labels[:300])
    state, np_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    before = d.images.clone()
    a, b = (Reader(d).probabilities(digits[1].images) for _ in range(2))
    np.testing.assert_array_equal(a, b)
    assert torch.equal(state, torch.get_rng_state()) and torch.equal(before, d.images)
    assert (np_state == np.random.get_state()[1]).all()

# ---- mistakes

def test_data_without_labels_is_refused(digits):
    with pytest.raises(ValueError, match="'pets' has none"):
        Reader(ImageSet(digits[0].images, name='pets'))

@pytest.mark.parametrize('shape', [(4, 1, 14, 14), (4, 3, 28, 28), (1, 28, 28), (0, 1, 28, 28)])
def test_images_of_another_shape_are_refused(reader, shape):
    with pytest.raises(ValueError, match=r'images have shape .*reads \(B, 1, 28, 28\)'):
        reader.readable(torch.zeros(shape))

@pytest.mark.parametrize('n', [1, 3, 0])
def test_a_wrong_number_of_labels_is_refused(reader, digits, n):
    with pytest.raises(ValueError, match=f'{n} labels for 2 images'):
        reader.agrees(digits[1].images[:2], torch.zeros(n).long())

@pytest.mark.parametrize('threshold', [-0.1, 1, 90, float('nan')])
def test_a_threshold_outside_0_1_is_refused(reader, digits, threshold):
    with pytest.raises(ValueError, match=f'threshold = {threshold} is outside'):
        reader.readable(digits[1].images[:2], threshold)
