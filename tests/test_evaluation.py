"Distances between sets of features against closed forms and others' code; do intervals hold?"
import json, math
import numpy as np
import pytest
import scipy.linalg
import torch
from conftest import gen, randn, refused
from diffusion_scratch.evaluation import (
    Estimate, Moments, Protocol, class_coverage, confidence, evaluate, extrapolate, floor,
    frechet_distance, inception_score, interval, kernel_distance, memorised, moments, nearest,
    precision_recall, wilson_interval)
from diffusion_scratch.features import Features

# ---- the Frechet distance
def by_matrix_root(a, b):
    "The textbook's formula with scipy's root of S1 S2"
    (m, S), (k, R) = ((x.mean(0), np.cov(x.T)) for x in (a.numpy(), b.numpy()))
    return ((m - k)**2).sum() + np.trace(S + R - 2 * scipy.linalg.sqrtm(S @ R).real)

@pytest.mark.parametrize('n, m, D', [(50, 60, 2), (300, 200, 20), (400, 900, 64)])
def test_frechet_is_that_of_the_matrix_root(n, m, D):
    "eq-frechet; the root of a product that is not symmetric loses about half of the digits"
    mix = randn(D, D, seed=3)
    a, b = randn(n, D) @ mix, 1.3 * randn(m, D, seed=1) @ mix.T + 0.4
    assert frechet_distance(a, b) == pytest.approx(by_matrix_root(a, b), rel=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)

def test_frechet_of_rank_deficient_features_is_exact():
    "Features in 3 of 40 dimensions have their distance in those 3; dead features cost nothing"
    Q, _ = torch.linalg.qr(randn(40, 40, seed=5))
    a, b = randn(200, 3), 1.5 * randn(300, 3, seed=1) + 1
    wide = lambda x: torch.cat([x, torch.zeros(len(x), 37, dtype=torch.float64)], 1)
    exact = frechet_distance(a, b)
    assert frechet_distance(wide(a), wide(b)) == pytest.approx(exact, rel=1e-12)
    turned = frechet_distance(wide(a) @ Q, wide(b) @ Q)
    assert turned == pytest.approx(exact, rel=1e-7)  # rounding of 1e-16 has the root 1e-8

def test_frechet_of_moments():
    "eq-frechet: 5 + 9 of chapter 16 by hand; a set is at 0 from itself; moments do for a set"
    a, b = (Moments(torch.tensor(m).double(), torch.tensor(s).double().square().diag(), math.inf)
            for m, s in (([0., 1., 2.], [1., 2., 0.]), ([1., 1., 0.], [3., 0.5, 1.])))
    assert frechet_distance(a, b) == pytest.approx(1 + 0 + 4 + 4 + 2.25 + 1, rel=1e-12)
    a, b = randn(100, 10), randn(90, 10, seed=1).float()
    assert frechet_distance(a, a) < 1e-10
    exact = frechet_distance(a, b.double())
    assert frechet_distance(moments(a), b) == frechet_distance(a, moments(b)) == exact
    assert moments(a).n == 100 and moments(a[:, :1]).cov.shape == (1, 1)

# ---- the kernel distance
def by_definition(a, b):
    k = lambda x, y: (x @ y / len(x) + 1)**3
    n, m = len(a), len(b)
    def within(x): return sum(k(u, v) for i, u in enumerate(x) for j, v in enumerate(x) if i != j)
    across = sum(k(x, y) for x in a for y in b)
    return (within(a) / (n * (n - 1)) + within(b) / (m * (m - 1)) - 2 * across / (n * m)).item()

def test_kernel_distance_is_its_definition_at_any_block():
    "eq-kid, pair by pair; also one by one on all the halves of an interval, made in one pass"
    a, b = randn(13, 5), randn(9, 5, seed=1) + 0.5
    exact = pytest.approx(by_definition(a, b), rel=1e-11)
    for block in (1, 4, 13, 1000): assert kernel_distance(a, b, block) == exact
    slow = interval(by_definition, a, b, pairs=7, seed=4)
    fast = interval(kernel_distance, a, b, pairs=7, seed=4)
    assert fast[:5] == pytest.approx(slow[:5], rel=1e-9)

def test_kernel_distance_is_unbiased():
    "eq-kid: the mean over small sets is the known distance (eq-mmd), to four standard errors"
    g = gen(1)
    def x(n, shift=0.): return torch.randn(n, 1, generator=g, dtype=torch.float64) + shift
    # one feature, N(0, 1) against N(d, 1): E k(x, y) = 1 + 3 E xy + 3 E x^2 E y^2 + E x^3 E y^3,
    # and the third moment of N(d, 1) is d^3 + 3d
    def k(a, b): return (1 + 3 * a * b + 3 * (a * a + 1) * (b * b + 1)
                         + (a**3 + 3 * a) * (b**3 + 3 * b))
    for shift in (0., 0.6):
        exact = k(0, 0) + k(shift, shift) - 2 * k(0, shift)
        found = torch.tensor([kernel_distance(x(7), x(5, shift)) for _ in range(2000)])
        assert abs(found.mean() - exact) < 4 * found.std() / 2000**0.5
        assert shift or 0.3 < (found < 0).double().mean() < 0.8

# ---- precision, recall, neighbours
def test_precision_and_recall_of_constructed_sets():
    "eq-precision-recall: points on a line, balls to the nearest neighbour"
    real = torch.tensor([[0.], [1.], [2.], [10.], [11.]])
    fake = torch.tensor([[0.5], [1.5], [5.], [30.]])
    # real balls: 0..1, 0..2, 1..3, 9..11, 10..12 hold 0.5 and 1.5;
    # fake balls: [-.5, 1.5], [.5, 2.5], [1.5, 8.5], [5, 55] hold all five
    assert precision_recall(real, fake, k=1) == (0.5, 1.)
    assert precision_recall(randn(60, 3), randn(50, 3) + 100) == (0, 0)
    assert precision_recall(randn(60, 3), randn(60, 3)) == (1, 1)

def test_precision_and_recall_of_torch_fidelity():
    from torch_fidelity.metric_prc import calculate_precision_recall_full
    real, fake = randn(300, 8), 0.8 * randn(300, 8, seed=1) + 0.2
    theirs = calculate_precision_recall_full(fake, real, 3)         # a mean in float32
    assert precision_recall(real, fake) == pytest.approx(theirs, abs=1e-6)

@pytest.mark.parametrize('block', [1, 7, 100, 1000])
def test_blocks_change_nothing(block):
    real, fake = randn(130, 6) + 5, 0.9 * randn(90, 6, seed=1) + 5
    fake[:20] = real[:20]; fake[20:30] = fake[20]  # copies and repetitions
    assert precision_recall(real, fake, block=block) == precision_recall(real, fake)
    for other in (real, None):
        a, b = nearest(fake, other, block=block), nearest(fake, other)
        assert torch.equal(a.distance, b.distance)
        if other is not None: assert torch.equal(a.index, b.index)

def test_nearest_is_the_nearest():
    x, known = (torch.rand(n, 1, 3, 3, generator=gen(seed)) for seed, n in enumerate((20, 30)))
    d = torch.cdist(x.flatten(1).double(), known.flatten(1).double(),
                    compute_mode='donot_use_mm_for_euclid_dist')
    found = nearest(x, known)
    assert torch.equal(found.index, d.argmin(1))
    assert torch.allclose(found.distance, d.min(1).values, rtol=1e-12)
    known[4] = x[2]
    assert nearest(x, known).distance[2] == 0 and nearest(x, known).index[2] == 4
    assert (nearest(x).distance > 0).all() and (nearest(x).index != torch.arange(20)).all()
    assert nearest(x.mul(255).byte(), known.mul(255).byte()).distance.dtype == torch.float64

def test_the_interval_of_a_share_holds_the_share():
    "Also for 0 of n and n of n, which a bound's rounding would shut out"
    for n in range(1, 2000):
        for e in (wilson_interval(0., n), wilson_interval(1., n)):
            assert e.low <= e.value <= e.high, e

def test_memorised_is_the_quantile_for_honest_images_and_one_for_copies():
    "eq-memorised: 1 % within four standard errors of share and quantile; half copies: half"
    training, held_out, honest = randn(1000, 8), randn(4000, 8, seed=1), randn(4000, 8, seed=2)
    for other, n in ((held_out, 4000), (None, 1000)):
        share = memorised(honest, training, other)
        assert abs(share.value - 0.01) < 4 * (0.01 * 0.99 * (1 / 4000 + 1 / n))**0.5
        assert share.low < share.value < share.high
    copies = torch.cat([training, training, honest[2000:]])
    assert memorised(copies, training, held_out).value == pytest.approx(0.5, abs=0.02)
    far = memorised(honest + 50, training)
    assert far.value == 0 and far.high < 0.002

# ---- class probabilities
def test_inception_score_by_hand():
    "eq-inception-score: sure and even, K; sure and always the same, 1; unsure, 1; and between"
    one, K = torch.eye(10, dtype=torch.float64), 10
    assert inception_score(one.repeat(5, 1)) == pytest.approx(K)
    assert inception_score(one[:1].repeat(50, 1)) == pytest.approx(1)
    assert inception_score(torch.full((50, K), 1 / K)) == pytest.approx(1)
    two = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
    assert inception_score(two) == pytest.approx(2 * 0.75**0.75 * 0.25**0.25)
    assert confidence(torch.tensor([[0.75, 0.25], [0.5, 0.5]])) == 0.625

def test_class_coverage_counts():
    "eq-effective"
    p = torch.eye(4, dtype=torch.float64)[[0, 0, 1, 1, 2, 2, 2, 2]]
    H = 2 * 0.25 * math.log(4) + 0.5 * math.log(2)
    assert class_coverage(p) == pytest.approx((3, math.exp(H), 0))
    assert class_coverage(torch.eye(4)) == pytest.approx((4, 4, 1))
    assert class_coverage(torch.eye(4)[:1].repeat(9, 1)) == pytest.approx((1, 1, 0))
    assert inception_score(p) <= math.exp(H) + 1e-9

# ---- intervals
def share(found, truth):
    "How many intervals hold the truth"
    return sum(e.low <= truth <= e.high for e in found) / len(found)

def least(n):
    "0.95 less four standard errors of a share of n"
    return 0.95 - 4 * (0.95 * 0.05 / n)**0.5

def test_interval_of_a_mean_holds_it_19_times_in_20():
    "eq-halves: the textbook's width; for 60 draws of a skewed law a little below 0.95"
    x, g, mean = randn(1000, 1), gen(3), lambda x: x.mean().item()
    e = interval(mean, x, pairs=2000)
    half_width = 1.96 * x.std().item() / 1000**0.5
    assert (e.high - e.low) / 2 == pytest.approx(half_width, rel=4 / 4000**0.5)
    assert abs(e.bias) < 1e-12
    found = [interval(mean, torch.randn(60, 1, generator=g).exp(), pairs=40, seed=i)
             for i in range(400)]
    assert 0.88 < share(found, math.exp(0.5)) < 0.99

def test_interval_of_the_frechet_distance_holds_the_mean_at_this_n_and_its_limit():
    "eq-halves, eq-limit: the plain interval holds the mean alone, `unbiased` the limit alone"
    g, D = gen(5), 8
    draw = lambda: (torch.randn(200, D, generator=g), torch.randn(200, D, generator=g) * 1.2 + 0.2)
    assert Estimate(3., 2., 4., 9, 0.5).unbiased[:4] == (2.5, 1.5, 3.5, 9)
    limit, mean = D * (0.04 + 0.04), sum(frechet_distance(*draw()) for _ in range(800)) / 800
    found = [interval(frechet_distance, *draw(), pairs=20, seed=i) for i in range(120)]
    unbiased = [e.unbiased for e in found]
    assert min(share(found, mean), share(unbiased, limit)) > least(120)
    assert max(share(found, limit), share(unbiased, mean)) < 0.7

def test_intervals_repeat_and_leave_no_footprints():
    a, b = randn(60, 3), randn(50, 3, seed=1)
    state, before = torch.get_rng_state(), a.clone()
    e = interval(frechet_distance, a, b, pairs=5)
    assert e.n == 50 and e == interval(frechet_distance, a, b, pairs=5)
    assert e != interval(frechet_distance, a, b, pairs=5, seed=1)
    assert torch.equal(state, torch.get_rng_state()) and torch.equal(a, before)
    assert interval(confidence, torch.eye(4).repeat(5, 1), within=(0, 1))[:3] == (1, 1, 1)

def test_extrapolation_finds_the_limit_of_a_line():
    "eq-limit: exact for a statistic that is 3 + 50/n; and near the truth for the Frechet distance"
    line = extrapolate(lambda x: 3 + 50 / len(x), randn(200, 1))
    assert line[:2] == pytest.approx((3, 50), rel=1e-12) and line.sizes[-1] == 200
    a, b = randn(2000, 16), 1.2 * randn(2000, 16, seed=1)
    line, e = extrapolate(frechet_distance, a, b), interval(frechet_distance, a, b)
    exact = 16 * 0.04
    assert abs(line.limit - exact) < 0.1 < line.values[-1] - exact + 0.1
    assert line.limit == pytest.approx(e.unbiased.value, abs=0.02)

def test_floor_is_what_equal_sets_of_that_size_have():
    "eq-frechet-bias at n against N - n, within its scatter over a single set of 3000"
    x = randn(3000, 8)
    f = floor(frechet_distance, x, 500)
    assert f.n == 500 and f.low < f.value < f.high and floor(frechet_distance, x, 500) == f
    assert f.value == pytest.approx(8 * 13 / 4 * (1 / 500 + 1 / 2500), rel=0.15)
    assert floor(frechet_distance, x, 5000).n == 1500
    assert floor(precision_recall, x[:300], 100).precision.value > 0.5

@pytest.mark.parametrize('numbers, text', [
    ((2.8123, 2.551, 3.1), '2.81 [2.55, 3.10]'), ((57.31, 52.2, 62.9), '57 [52, 63]'),
    ((0.00123, 0.0010, 0.0015), '0.00123 [0.00100, 0.00150]'),
    ((1., 1., 1.), '1.000 [1.000, 1.000]')])
def test_estimates_print_as_many_digits_as_they_know(numbers, text):
    assert str(Estimate(*numbers, 100)) == text

# ---- all at once
PROTOCOL = Protocol('blobs 0123456789ab', 6, 400, 'normal 00000000', 1200, 'none', 'ddim()', 50,
                    0.5, 0, True)

def blobs(y, seed):
    "Ten clusters on the axes of a space"
    return 4 * torch.eye(10, dtype=torch.float64)[y] + 0.5 * randn(len(y), 10, seed=seed)

def seen(x): return Features(x, (3 * x).softmax(1))  # by a classifier that knows them

REAL = seen(blobs(torch.arange(1200) % 10, 0))

def test_degenerate_generators_are_caught_by_the_right_number():
    y = torch.arange(400) % 10
    kinds = dict(honest=blobs(y, 1), constant=blobs(y[:1], 1).repeat(400, 1), mode=blobs(y * 0, 1),
                 noise=4 * randn(400, 10, seed=2), copies=REAL.x[:400])
    found = {k: evaluate(REAL, seen(x), PROTOCOL, training=REAL, pairs=10).measures
             for k, x in kinds.items()}
    def value(kind, name): return found[kind][name].value
    for k, e in found.items():
        bad = k in ('constant', 'mode', 'noise')
        for name in ('frechet_distance', 'kernel_distance'):
            assert (e[name].value.low > e[name].floor.high) == bad
        assert (value(k, 'memorised').low > 0.05) == (k == 'copies')  # nothing else does
        assert (value(k, 'effective_classes').value < 2) == (k in ('constant', 'mode'))
        assert (value(k, 'recall').value < 0.3) == bad or k == 'noise'
    assert value('noise', 'precision').value < 0.1 and value('mode', 'precision').value > 0.7
    assert value('mode', 'confidence').value > 0.9
    assert value('honest', 'frechet_limit').low < 0.1

def test_evaluation_goes_to_json_and_to_one_line_a_number():
    e = evaluate(REAL, seen(blobs(torch.arange(400) % 10, 1)), PROTOCOL, pairs=5)
    back = json.loads(json.dumps(e.plain()))
    there = back['measures']['frechet_distance']['value']['value']
    assert there == e.measures['frechet_distance'].value.value and back['protocol']['seed'] == 0
    first, *lines = str(e).split('\n')
    assert first == str(PROTOCOL) and len(lines) == len(e.measures)
    assert 'memorised' not in e.measures
    for word in ('400 images', 'none', 'ddim()', 'steps 50', 'guidance 0.5', 'seed 0',
                 'clipped True', 'rounded to bytes True', '1,200 of normal 00000000',
                 'blobs 0123456789ab (6 features)'): assert word in first
    assert 'not stated' in str(Protocol('x', 1, 1, 'y', 1))

def test_too_few_for_frechet_are_told_so_and_get_the_rest():
    few = Features(blobs(torch.arange(15) % 10, 1))
    e = evaluate(Features(REAL.x), few, PROTOCOL, pairs=5)
    assert 'kernel_distance' in e.refused['frechet_distance']
    assert 'frechet_limit' not in e.measures and 'refused' in str(e)
    assert set(e.measures) == {'kernel_distance', 'precision', 'recall'}

# ---- mistakes
def spoilt(x, row):
    x = x.clone()
    x[row, 1] = math.nan
    return x

X = randn(20, 2)

@pytest.mark.parametrize('said, f', [
    *((said, lambda f=f, bad=bad: f(randn(50, 3), bad))
      for f in (frechet_distance, kernel_distance, precision_recall, nearest, memorised)
      for bad, said in (
          (spoilt(randn(50, 3), 7), '1 of 50 rows .* hold NaN or infinity, .*them row 7'),
          (randn(50, 4), '(3 and 4|4 and 3) features; both must come from the same extractor'),
          (randn(0, 3), r'\(N, D\)'))),
    *(('softmax', lambda f=f, p=p: f(torch.tensor(p)))
      for f in (inception_score, confidence, class_coverage)
      for p in ([[0.5] * 3] * 4, [[1.5, -0.5]], [[3., 4.]])),
    (r'shape \(3,\)', lambda: kernel_distance(randn(3), randn(3))),
    ('2 rows of 2 features .* kernel_distance', lambda: frechet_distance(X[:2], X)),
    ('one row has no covariance', lambda: moments(randn(1, 3))),
    ('1 rows are too few.*at least 2', lambda: kernel_distance(X[:1], X)),
    ('3 rows are too few.*k = 3 needs at least 4', lambda: precision_recall(X, X[:3])),
    ('k = 0', lambda: precision_recall(X, X, k=0)),
    ('3 rows are too few to be halved', lambda: interval(lambda x: 0., X[:3])),
    ('made from halves of the sets.*2 rows of 2 features',
     lambda: interval(frechet_distance, X[:5], X)),
    ('two disjoint parts', lambda: floor(kernel_distance, X[:1], 5)),
    ('level = 95', lambda: interval(confidence, X, level=95)),
    ('pairs = 1', lambda: interval(confidence, X, pairs=1)),
    ('quantile = 1', lambda: memorised(X, X, quantile=1)),
    ('shares', lambda: extrapolate(frechet_distance, X, shares=(1.,))),
    ('1 of 400 rows of features hold NaN',
     lambda: evaluate(REAL, Features(spoilt(REAL.x[:400], 3)), PROTOCOL)),
    ('10 and 9 features', lambda: evaluate(REAL, Features(REAL.x[:, :9]), PROTOCOL)),
    ('3 rows are too few: an interval needs at least 4',
     lambda: evaluate(REAL, Features(REAL.x[:3]), PROTOCOL)),
    ('softmax', lambda: evaluate(REAL, Features(REAL.x, 3 * REAL.x), PROTOCOL))])
def test_bad_features_and_odd_arguments_are_refused(said, f): refused(f, said)
