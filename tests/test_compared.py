"Two models compared: paired differences, what is said of them, and what evaluations refuse"
import json, math
import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from diffusion_scratch import cli
from diffusion_scratch.cli import evaluate_command
from diffusion_scratch.data import ImageSet, mnist_mini, to_float, to_uint8
from diffusion_scratch.evaluation import (
    Estimate, Evaluation, Protocol, compare, difference, evaluate,
    frechet_distance, interval, kernel_distance, memorised, memorised_floor, near_threshold,
    paired_shares, precision_recall)
from diffusion_scratch.features import Extractor, Features
from diffusion_scratch.likelihood import decode, encode
from diffusion_scratch.oracle import MixtureOracle
from diffusion_scratch.report import compare_reports, evaluate_model
from diffusion_scratch.schedule import Schedule, cosine_betas

def randn(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)

def protocol(weights, n, D, **more):
    return Protocol('eyes 1', D, n, 'normal 0', 1000, f'{weights} 0123456789ab', seed=0, **more)

def holds(e: Estimate, truth: float) -> bool: return e.low <= truth <= e.high

# ---- the difference of two sets of paired images
def test_the_difference_of_means_has_the_textbook_interval_of_pairs():
    "eq-paired: the standard error is that of the differences of pairs, not of both means"
    z = randn(500, 1)
    a, b = 3 * z + 0.1 * randn(500, 1, seed=1), 3 * z + 0.1 * randn(500, 1, seed=2)
    mean = difference(lambda real, x: x.mean().item())
    e = interval(mean, randn(700, 1, seed=3), torch.stack([a, b], 1), pairs=2000)
    error = (a - b).std().item() / 500**0.5
    assert e.value == pytest.approx((a - b).mean().item(), abs=1e-12)
    assert (e.high - e.low) / 2 == pytest.approx(1.96 * error, rel=0.07)
    assert error < 0.05 * a.std().item() / 500**0.5                # pairs are what helps

@pytest.mark.parametrize('statistic', [frechet_distance, kernel_distance, precision_recall])
def test_a_difference_is_that_of_both_values_and_never_separates_pairs(statistic):
    "eq-paired: of two equal sets it is exactly 0, with an interval of no width"
    real, a, b = randn(60, 3), randn(40, 3, seed=1) + 0.5, 1.3 * randn(40, 3, seed=2)
    both = interval(difference(statistic), real, torch.stack([a, b], 1), pairs=4)
    same = interval(difference(statistic), real, torch.stack([a, a], 1), pairs=4)
    one, other = statistic(real, a), statistic(real, b)
    if isinstance(one, float): both, same, one, other = (both,), (same,), (one,), (other,)
    for e, x, y in zip(both, one, other): assert e.value == pytest.approx(x - y, abs=1e-12)
    for e in same: assert e[:3] == pytest.approx((0, 0, 0), abs=1e-9)

def test_the_interval_of_a_difference_holds_the_true_one_and_finds_what_is_there():
    "eq-paired, eq-limit: distances of known normal laws, 0.32 for both, and 0.40"
    D, n, equal, found = 8, 250, [], []
    for i in range(80):
        real, z = randn(2, n, D, seed=100 + i)
        made = [z + 0.2, z - 0.2, z + 0.05**0.5]
        def paired(a, b):
            f = difference(frechet_distance)
            return interval(f, real, torch.stack([a, b], 1), pairs=20, seed=i).unbiased
        equal.append(holds(paired(made[0], made[1]), 0.))
        e = paired(made[2], made[0])
        found.append((holds(e, 0.40 - 0.32), e.low > 0))
    right, seen = (sum(x) / 80 for x in zip(*found))
    assert sum(equal) / 80 > 0.95 - 4 * (0.95 * 0.05 / 80)**0.5
    assert right > 0.95 - 4 * (0.95 * 0.05 / 80)**0.5 and seen > 0.9

def test_paired_shares_are_those_of_the_literature():
    "The example of R's PropCIs, diffpropci.mp(b=40, c=20, n=160): Agresti & Min's interval"
    a, b = torch.zeros(2, 160)
    b[:40], a[40:60] = 1, 1
    a[100:], b[100:] = 1, 1
    e = paired_shares(a, b)
    assert e[1:3] == pytest.approx((-0.21601726, -0.03089632), abs=1e-7)
    assert e.value == pytest.approx(-20 / 160) and e.n == 160
    e = paired_shares(torch.ones(50), torch.ones(50))              # no difference, not certain
    assert e.value == 0 and e.low == pytest.approx(-e.high) and 0.02 < e.high < 0.1

# ---- all measures, and the sentence
def seen(x): return Features(x, (3 * x[:, :4]).softmax(1))

REAL = seen(randn(600, 6))

def compared(a, b, names=('one', 'other'), **more):
    sets = [seen(x) for x in (a, b)]
    results = tuple(evaluate(REAL, f, protocol(name, len(f.x), 6), training=REAL, pairs=5)
                    for f, name in zip(sets, names))
    return compare(REAL, *sets, results, training=REAL, pairs=20, **more), results

def test_a_comparison_has_each_measure_of_both_and_says_which_is_closer():
    z = randn(300, 6, seed=1)
    near, far = 1.02 * z, 1.5 * z + 0.5
    found, (a, b) = compared(near, far)
    assert set(found.measures) == set(a.measures) == set(b.measures) and not found.refused
    for k, m in found.measures.items():
        assert (m.first, m.second, m.floor) == (a.measures[k].value, b.measures[k].value,
                                                a.measures[k].floor)
        if k != 'frechet_limit':
            assert m.difference.value == pytest.approx(m.first.value - m.second.value, abs=1e-9)
    assert found.conclusion.startswith('one is closer to the real images than other: its Frechet')
    assert 'precision' in found.conclusion and str(found).endswith(found.conclusion)
    turned = compared(far, near)[0]
    assert turned.conclusion.startswith('other is closer to the real images than one')
    assert found.conclusion.split('lower by ')[1].split(']')[0] \
        == turned.conclusion.split('lower by ')[1].split(']')[0]
    assert json.loads(json.dumps(found.plain()))['conclusion'] == found.conclusion

def test_equal_models_have_no_difference_that_so_many_images_can_show():
    z = randn(300, 6, seed=1)
    found = compared(z, -z)[0]
    assert 'no difference of the distance that 300 images can show' in found.conclusion
    assert holds(found.measures['frechet_limit'].difference, 0.)
    same = compared(z, z)[0]
    assert all(m.difference.value == 0 for m in same.measures.values())
    assert 'differ in' not in same.conclusion

def test_too_few_images_for_the_frechet_distance_leave_the_kernel_distance():
    z = randn(30, 6, seed=1)
    found = compared(z, 2 * z + 2)[0]
    assert 'frechet_limit' in found.refused and 'frechet_limit' not in found.measures
    assert 'kernel distance is lower' in found.conclusion

def test_models_of_one_name_are_told_apart():
    z = randn(300, 6, seed=1)
    assert compared(z, z, ('one', 'one'))[0].conclusion.startswith('the first or the second')

@pytest.mark.parametrize('change, says', [
    (dict(seed=1), 'seed: 0 and 1'), (dict(reference='others 1'), 'reference'),
    (dict(extractor='ears 1'), 'extractor')])
def test_evaluations_of_other_images_are_not_compared(change, says):
    z = seen(randn(40, 6, seed=1))
    a = Evaluation(protocol('one', 40, 6), {}, {})
    b = a._replace(protocol=a.protocol._replace(**change))
    with pytest.raises(ValueError, match=says): compare(REAL, z, z, (a, b))
    with pytest.raises(ValueError, match='as many images'):
        compare(REAL, z, Features(z.x[:20], z.p[:20]), (a, a))

# ---- what an interval says after its shift, and limits from few images
def test_ends_are_cut_after_the_shift():
    "eq-limit: a lower end that was cut at 0 first would become minus the bias"
    real, fake = randn(80, 2), randn(80, 2, seed=1)
    cut = interval(frechet_distance, real, fake, within=(0., math.inf), pairs=20)
    free = interval(frechet_distance, real, fake, pairs=20)
    assert free.low < 0 == cut.low and free.bias == cut.bias > 0
    low, high = (max(0., e - free.bias) for e in (free.low, free.high))
    assert cut.unbiased[:3] == pytest.approx((max(0., free.value - free.bias), low, high))
    assert cut.unbiased.low == 0 and cut.low - cut.bias < 0        # the old one

def test_a_limit_is_refused_where_the_bias_does_not_fall_like_1_over_n():
    "64 features, truth 0: 140 images extrapolate to -1.7, and 700 to nearly 0"
    real = Features(randn(4000, 64))
    few, many = (evaluate(real, Features(randn(n, 64, seed=1)), protocol('x', n, 64), pairs=2)
                 for n in (140, 700))
    few_limit = interval(frechet_distance, real.x, randn(140, 64, seed=1), pairs=10).unbiased
    assert few_limit.value < -1 and 'frechet_limit' not in few.measures
    assert '640' in few.refused['frechet_limit']
    assert many.measures['frechet_limit'].value.value < 0.15

# ---- copies
def test_held_out_images_of_the_training_set_do_not_hide_copies():
    training, new = randn(1000, 8), randn(500, 8, seed=1)
    near_copies = training[:500] + 1e-3 * randn(500, 8, seed=2)
    overlaps = dict(all=training[:500], half=torch.cat([training[:250], randn(250, 8, seed=3)]),
                    rounded=(training[:500] * (1 + 1e-7)))
    for name, held_out in overlaps.items():
        assert memorised(near_copies, training, held_out).value == 1, name
        assert memorised(new, training, held_out).value < 0.04, name
    twice = torch.cat([training, training[:100]])                  # images stored twice
    assert memorised(near_copies, twice).value == 1
    part = evaluate(Features(training[:400]), Features(near_copies), protocol('x', 500, 8),
                    training=Features(training), pairs=2)
    assert part.measures['memorised'].value.value == 1

def test_the_share_of_new_real_images_lies_in_the_interval_of_the_floor():
    "eq-memorised-floor: in about 95 % of draws of both sets"
    n, m, within = 400, 600, []
    for i in range(150):
        training, held_out, new = (randn(k, 2, seed=3 * i + j)
                                   for j, k in enumerate((300, m, n)))
        floor = memorised_floor(n, m)
        assert near_threshold(training, held_out).n == m and floor.n == n
        within.append(holds(floor, memorised(new, training, held_out).value))
    assert 0.89 < sum(within) / 150 <= 1
    wide, narrow = memorised_floor(400, 100), memorised_floor(400, 10**9)
    assert wide.high - wide.low > 1.3 * (narrow.high - narrow.low)

# ---- many features, faster
@pytest.mark.filterwarnings('ignore:Matrix is singular')
@pytest.mark.parametrize('constant', [False, True])
def test_frechet_distances_of_many_subsets_are_those_of_each(constant):
    "eq-frechet: by the matrix root; also where covariances are singular"
    a, b = 5 + randn(90, 6), randn(71, 6, seed=1) * 1.4
    if constant: a[:, 2], b[:, 2] = 1., 1.
    g = torch.Generator().manual_seed(0)
    orders = [(torch.randperm(90, generator=g), torch.randperm(71, generator=g)) for _ in range(4)]
    rows = [part for i, j in orders for part in ((i[:45], j[:35]), (i[45:], j[35:]), (i[:70], j))]
    for (i, j), found in zip(rows, frechet_distance.of_subsets((a, b), rows)):
        S, R = np.cov(a[i].T), np.cov(b[j].T)
        root = np.trace(S + R - 2 * sqrtm(S @ R).real)
        exact = ((a[i].mean(0) - b[j].mean(0))**2).sum().item() + root
        assert constant or found == pytest.approx(exact, rel=1e-6)
        assert found == pytest.approx(frechet_distance(a[i], b[j]), rel=1e-6)

def test_many_features_change_no_measure():
    "Precision and recall with 6 features, and with 294 constant ones beside them: a faster way"
    def wide(x): return Features(torch.cat([x, torch.ones(len(x), 294, dtype=x.dtype)], 1))
    real, fake = randn(120, 6), 1.05 * randn(80, 6, seed=1)
    few, many = (evaluate(f(real), f(fake), protocol('x', 80, 6), pairs=4, seed=2).measures
                 for f in (Features, wide))
    for k in ('precision', 'recall'): assert few[k] == many[k]

# ---- reports of two networks, and the command
SHAPE = (1, 8, 8)
EYES = Extractor('quarters', 'v1', 4, lambda x: Features(
    torch.nn.functional.avg_pool2d(x.double(), 4).flatten(1) / 255,
    torch.stack([1 - x.double().mean((1, 2, 3)) / 255, x.double().mean((1, 2, 3)) / 255], 1)),
    SHAPE)

@pytest.fixture(scope='module')
def data():
    g, y = torch.Generator().manual_seed(0), torch.arange(300) % 2
    noise = torch.randint(0, 100, (300, *SHAPE), generator=g)
    return ImageSet((noise + 155 * y.view(-1, 1, 1, 1)).byte(), y, ('dark', 'bright'), 'tiny')

def report(data, folder, std, **more):
    denoiser = MixtureOracle(to_float(data.images), std, labels=data.labels)
    return evaluate_model(denoiser, Schedule(cosine_betas(50)), data, folder, extractor=EYES,
                          cache=folder.parent/'cache', **dict(n=80, steps=4, progress=False) | more)

def test_reports_are_compared_and_the_page_says_so(data, tmp_path):
    first, second = report(data, tmp_path/'a', 0.1), report(data, tmp_path/'b', 0.9)
    how = dict(extractor=EYES, cache=tmp_path/'cache', progress=False)
    found = compare_reports(first, second, data, tmp_path/'ab', **how)
    assert {'frechet_distance', 'memorised', 'label_accuracy'} <= set(found.measures)
    right = [(r.seen.p.argmax(1) == r.labels).double() for r in (first, second)]
    accuracy = found.measures['label_accuracy'].difference
    assert accuracy == paired_shares(*right)
    there = json.loads((tmp_path/'ab/comparison.json').read_text(encoding='utf-8'))
    assert there['conclusion'] == found.conclusion and set(there['measures']) == set(found.measures)
    for file in ('comparison.md', 'comparison.html'):
        page = (tmp_path/'ab'/file).read_text(encoding='utf-8')
        assert found.conclusion in page.replace('&#x27;', "'")
        for m in found.measures.values(): assert str(m.difference) in page
    assert (tmp_path/'ab/comparison.png').stat().st_size > 1000
    with pytest.raises(ValueError, match='seed'):
        compare_reports(first, report(data, tmp_path/'c', 0.1, seed=1), data, tmp_path/'d', **how)
    other = ImageSet(data.images.flip(0), data.labels.flip(0), data.classes, 'tiny')
    with pytest.raises(ValueError, match='real images of both'):
        compare_reports(first, second, other, tmp_path/'d', **how)

def test_the_report_says_which_real_images_took_their_place(data, tmp_path):
    "and of how many images their value is, in words and in the table"
    half = ImageSet(data.images[:100], data.labels[:100], data.classes, 'half')
    r = report(half, tmp_path/'a', 0.1)                            # 80 of 100: parts of 50
    assert 'real in their place: parts of the reference' in str(r.evaluation)
    assert '(of 50 images)' in str(r.evaluation) and '(50 images)' in str(r)
    r = report(half, tmp_path/'b', 0.1, held_out=data)
    assert 'real in their place: tiny ' in str(r.evaluation)
    assert '(of 50' not in str(r.evaluation)

def test_the_command_compares_two_models(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    whole = mnist_mini()
    few = ImageSet(whole.images[:150], whole.labels[:150], whole.classes, 'few')
    monkeypatch.setattr(cli, 'mnist_mini', lambda: few)
    line = 'mnist-mini mnist-mini --data mnist_mini --n 40 --steps 2 --batch 40 --out both'
    evaluate_command(line.split())
    said = capsys.readouterr().out
    assert 'no difference' in said and 'both/comparison.html' in said.replace('\\', '/')
    found = json.loads((tmp_path/'both/comparison.json').read_text(encoding='utf-8'))
    assert found['measures']['precision']['difference']['value'] == 0
    assert (tmp_path/'both/first/report.html').is_file()
    with pytest.raises(SystemExit): evaluate_command('mnist-mini cifar10 --n 70'.split())
    assert 'same size' in capsys.readouterr().err

# ---- the test images of a known set take the place of generated ones
def test_mnist_is_compared_with_its_test_images_if_they_can_be_read(tmp_path, monkeypatch, capsys):
    whole, taken = mnist_mini(), []
    train, test = (ImageSet(whole.images[i], whole.labels[i], whole.classes, 'mnist')
                   for i in (slice(100), slice(100, 150)))
    def mnist(train_images=train, *, train=True): return train_images if train else test
    def stop(*_, held_out, **__): taken.append(held_out); raise ValueError('stopped here')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, 'mnist', mnist)
    monkeypatch.setattr(cli, 'evaluate_model', stop)
    def run():
        with pytest.raises(SystemExit): evaluate_command('mnist-mini --data mnist'.split())
        return capsys.readouterr().err
    assert 'stopped here' in run() and taken[-1] is test
    def missing(train=True):
        if train: return mnist()
        raise FileNotFoundError('t10k is missing')
    monkeypatch.setattr(cli, 'mnist', missing)
    assert 't10k is missing. So parts of the training images' in run() and taken[-1] is None

def test_one_image_can_be_encoded():
    "No standard error is computed, so two images are not needed"
    x, times = torch.tensor([[[[-1., 1.]]]]), [20, 10, 5, 0]
    known = torch.tensor([[[[-1., 1.]]], [[[1., 0.]]]])
    code = MixtureOracle(known, 0.1), Schedule(cosine_betas(20))
    data = encode(*code, x, times=times, patience=2**10)
    *_, last = decode(data, *code, x.shape, times=times)
    assert torch.equal(to_uint8(last.x.float()), to_uint8(x))
