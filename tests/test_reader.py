"The judge, judged: exact binomials, hand counts, leaks, and a user's mistakes"
import numpy as np
import pytest
import torch
from scipy.stats import binom
from sklearn.model_selection import StratifiedKFold
from diffusion_scratch.data import ImageSet
from diffusion_scratch.reader import Reader, Share, check_readable

@pytest.fixture(scope='module')
def digits(mini):
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    parts = order[:1500], order[1500:2000]
    return [ImageSet(mini.images[i], mini.labels[i], mini.classes, 'digits') for i in parts]

@pytest.fixture(scope='module')
def reader(digits): return Reader(digits[0])

@pytest.mark.parametrize('n, s, text', [
    (1, 0.3, '30.0% ± 45.8% of 1'), (7, 0.5, '50.0% ± 18.9% of 7'),
    (10, 1., '100.0% ± 0.0% of 10'),
    (256, 0.9, '90.0% ± 1.9% of 256'), (5000, 0.786, '78.6% ± 0.6% of 5,000')])
def test_error_is_the_standard_deviation_of_the_binomial_share(n, s, text):
    "eq-share-error; two of them cover the truth nineteen times in twenty"
    assert str(Share(s, n)) == text
    k = np.arange(n + 1)
    p = binom.pmf(k, n, s)
    assert Share(s, n).error == pytest.approx((p @ (k / n - s)**2)**0.5, rel=1e-9)
    inside = [abs(i / n - s) <= 1.96 * Share(i / n, n).error for i in k]
    assert n < 256 or 0.92 < p[inside].sum() < 0.97

def test_probabilities_are_the_same_for_bytes_floats_and_strays_and_mostly_right(reader, digits):
    p, x = reader.probabilities(digits[1].images), digits[1][:][0]
    assert p.shape == (500, 10) and (p >= 0).all()
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-9)
    assert (p.argmax(1) == digits[1].labels.numpy()).mean() > 0.85
    strays = torch.where(x == 1, 7., torch.where(x == -1, -7., x))
    for alike in (x, x.double(), strays):
        np.testing.assert_array_equal(reader.probabilities(alike), p)

def test_readable_and_agrees_are_counts(reader, digits):
    unseen, labels = digits[1].images, digits[1].labels
    p = reader.probabilities(unseen)
    for t in (0., 0.5, 0.9, 0.99):
        assert reader.readable(unseen, t) == Share(sum(q > t for q in p.max(1)) / 500, 500)
    assert reader.readable(unseen, 0.).value == 1
    assert reader.readable(unseen) == reader.readable(unseen, 0.9)
    read = torch.from_numpy(p.argmax(1))
    assert reader.agrees(unseen, labels) == Share(float((read == labels).double().mean()), 500)
    assert reader.agrees(unseen, read).value == 1 and reader.agrees(unseen, 9 - read).value == 0
    assert reader.agrees(unseen[:4], read[:4].tolist()) == Share(1., 4)

def test_noise_and_rubble_are_not_readable_and_digits_learned_from_more_than_others(reader, digits):
    g, real = torch.Generator().manual_seed(1), digits[1][:][0]
    shuffled = torch.stack([x.flatten()[torch.randperm(784, generator=g)] for x in real])
    noises = torch.rand(real.shape, generator=g) * 2 - 1, torch.randn(real.shape, generator=g)
    empty = torch.full_like(real, -1), torch.full_like(real, 1)
    for rubble in (*noises, shuffled.view(real.shape), *empty):
        assert reader.readable(rubble).value < 0.02
    assert 0.4 < reader.readable(real).value < 0.9
    assert reader.readable(digits[0].images).value > reader.readable(real).value + 0.1

def test_readable_real_is_what_readers_of_the_other_parts_say(digits):
    "Cross-validation by hand: split, train on the rest, read the part"
    d = ImageSet(digits[0].images[:600], digits[0].labels[:600])
    r, right = Reader(d), 0
    for rest, part in StratifiedKFold(2).split(np.zeros(600), d.labels):
        p = Reader(ImageSet(d.images[rest], d.labels[rest])).probabilities(d.images[part])
        right += (p.max(1) > 0.8).sum()
    assert r.readable_real(0.8, folds=2) == Share(right / 600, 600)
    assert r.readable(d.images, 0.8).value > right / 600 + 0.2  # those it has seen

def test_two_clear_classes_in_colour_whose_labels_are_not_0_and_1():
    "The columns of the probabilities are then not the labels"
    images = torch.tensor([-0.8, 0.8]).repeat_interleave(60).view(-1, 1, 1, 1).expand(-1, 3, 4, 5)
    r = Reader(d := ImageSet(images, torch.tensor([3, 7]).repeat_interleave(60)))
    assert r.probabilities(images).shape == (120, 2) and r.agrees(images, d.labels).value == 1
    assert r.readable_real(folds=3) == r.readable(d.images) == Share(1., 120)

def test_two_readers_of_the_same_data_agree_and_leave_no_footprints(digits):
    d = ImageSet(digits[0].images[:300], digits[0].labels[:300])
    def traces():
        return d.images.tolist(), torch.get_rng_state().tolist(), *np.random.get_state()[1]
    before = traces()
    a, b = (Reader(d).probabilities(digits[1].images) for _ in range(2))
    np.testing.assert_array_equal(a, b)
    assert traces() == before

def test_mistakes_are_refused(reader, digits):
    two = digits[1].images[:2]
    def refused(message): return pytest.raises(ValueError, match=message)
    with refused("'pets' has none"): Reader(ImageSet(two, name='pets'))
    for shape in ((4, 1, 14, 14), (4, 3, 28, 28), (1, 28, 28), (0, 1, 28, 28)):
        with refused(r'have shape .*reads \(B, 1, 28, 28\)'): reader.readable(torch.zeros(shape))
    for n in (1, 3, 0):
        with refused(f'{n} labels for 2 images'): reader.agrees(two, torch.zeros(n).long())
    for t in (-0.1, 1, 90, float('nan')):
        with refused(f'threshold = {t} is outside'): reader.readable(two, t)
    for labels, message in (([0] * 6, 'all 6 images of images are of one class'),
                            ([0] * 3 + [2] * 6, 'class 0 of images has 3 images')):
        few = ImageSet(digits[0].images[:len(labels)], torch.tensor(labels))
        with refused(message): check_readable(few)
        with pytest.raises(ValueError): Reader(few).readable_real()
    check_readable(ImageSet(digits[0].images[:10], torch.arange(10) % 2))
    pixels = torch.zeros(1, dtype=torch.uint8).expand(10, 1, 2**17, 2**17)
    with refused('GB of memory'): check_readable(ImageSet(pixels, torch.arange(10) % 2))
