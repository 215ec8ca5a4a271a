"An evaluation that can be trusted: killed and gone on, other settings, cache, page, command"
import base64, json, re, signal
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from helpers_damage import never_silent
from helpers_processes import Command
from diffusion_scratch import cli, config
from diffusion_scratch.checkpoint import read_json
from diffusion_scratch.cli import evaluate_command
from diffusion_scratch.data import ImageSet, mnist_mini, to_float
from diffusion_scratch.features import Extractor, Features, save_classifier, train_classifier
from diffusion_scratch.oracle import MixtureOracle
from diffusion_scratch.pretrained import load
from diffusion_scratch.report import (
    MEANING, evaluate_model, generate, model_hash, random_labels, reference)
from diffusion_scratch.run import train
from diffusion_scratch.sampling import ancestral
from diffusion_scratch.schedule import Schedule, cosine_betas
from diffusion_scratch.solvers import ddim, dpm_solver_pp, heun

SCHEDULE, SHAPE = Schedule(cosine_betas(100)), (1, 8, 8)

@pytest.fixture(scope='module')
def data():
    "200 small images of two classes, dark and bright"
    g, y = torch.Generator().manual_seed(0), torch.arange(200) % 2
    noise = torch.randint(0, 100, (200, *SHAPE), generator=g)
    return ImageSet((noise + 155 * y.view(-1, 1, 1, 1)).byte(), y, ('dark', 'bright'), 'tiny')

def oracle_of(data, std=0.1): return MixtureOracle(to_float(data.images), std, labels=data.labels)
def bright(images): return images.double().mean((1, 2, 3)) > 127

@pytest.fixture(scope='module')
def oracle(data): return oracle_of(data)

def look(images):
    "Four quarters' means, and a class: brighter than gray or not"
    x = images.double().unflatten(2, (2, 4)).unflatten(4, (2, 4)).mean((1, 3, 5)).flatten(1)
    p = torch.sigmoid((x.mean(1) - 127) / 10)
    return Features(x, torch.stack([1 - p, p], 1))

EYE = Extractor('quarters', 'v1', 4, look, SHAPE)
def eye_of(change): return replace(EYE, look=lambda images: change(look(images)))

def files(folder):
    return {f.name: f.read_bytes() for f in (Path(folder)/'images').glob('*.safetensors')}

def drawn(denoiser, folder, n, schedule=SCHEDULE, **options):
    options = dict(steps=4, shares=[0.5, 0.5], batch=10, progress=False) | options
    return generate(denoiser, schedule, SHAPE, n, folder, **options)

def evaluated(denoiser, data, folder, n, **options):
    options = dict(extractor=EYE, batch=20, cache=folder/'cache', progress=False) | options
    return evaluate_model(denoiser, SCHEDULE, data, folder/'r', n=n, **options)

def report_of(folder): return read_json(Path(folder)/'report.json')

class Dies(nn.Module):
    "A denoiser that is killed at its kth call"
    def __init__(self, denoiser, k): super().__init__(); self.denoiser, self.k = denoiser, k
    def state_dict(self, *a, **k): return self.denoiser.state_dict(*a, **k)
    def forward(self, *args):
        self.k -= 1
        if self.k < 0: raise KeyboardInterrupt
        return self.denoiser(*args)

# ---- drawing
@pytest.mark.parametrize('step', [ddim(), ddim(eta=1.), dpm_solver_pp(), heun()])
def test_killed_and_gone_on_is_bit_for_bit_the_same(oracle, tmp_path, step):
    "And each image is of the class that was asked for"
    images, y = drawn(oracle, tmp_path/'whole', 35, step=step)
    for k in (0, 20, 10):  # before the first image, in a later batch, again: 8 or 14 calls each
        with pytest.raises(KeyboardInterrupt):
            drawn(Dies(oracle, k), tmp_path/'parts', 35, step=step)
    again, _ = drawn(oracle, tmp_path/'parts', 35, step=step)
    assert torch.equal(images, again) and files(tmp_path/'whole') == files(tmp_path/'parts')
    assert images.shape == (35, *SHAPE) and images.dtype == torch.uint8
    assert torch.equal(y, random_labels([0.5, 0.5], 35, 0))
    assert torch.equal(bright(images), y.bool()) and 0 < y.sum() < 35

def test_what_is_there_is_not_drawn_again_and_more_images_go_on(oracle, tmp_path):
    "But damaged parts are"
    few, _ = drawn(oracle, tmp_path/'a', 25)
    nothing, _ = drawn(Dies(oracle, 0), tmp_path/'a', 25)
    # three batches are left to draw: the one of 5 is drawn again, as a whole one
    more, _ = drawn(Dies(oracle, 3 * 4 * 2), tmp_path/'a', 45)
    fresh, _ = drawn(oracle, tmp_path/'b', 45)
    first, second, *_ = sorted((tmp_path/'a'/'images').iterdir())
    first.write_bytes(first.read_bytes()[:50])
    second.rename(second.with_name(f'.{second.name}.part'))
    less, _ = drawn(oracle, tmp_path/'a', 25)
    assert torch.equal(few, nothing) and torch.equal(more, fresh) and torch.equal(less, few)

def test_any_batch_gives_the_same_images_but_for_the_last_digits(oracle, tmp_path):
    "Sums in another order move a float by 1e-7, and a byte by one where it was on the edge"
    whole, *sets = (drawn(oracle, tmp_path/str(b), 30, batch=b)[0].int() for b in (30, 7, 1))
    for other in sets:
        differ = whole - other
        assert differ.abs().max() <= 1 and (differ != 0).double().mean() < 0.01

def test_labels_come_as_often_as_asked_and_do_not_depend_on_how_many():
    "A count of n = 20,000 strays by less than four standard errors, 4 sqrt(p (1 - p) n)"
    shares = [0.1, 0., 0.6, 0.3]
    y = random_labels(shares, 20_000, 7)
    for k, p in enumerate(shares):
        assert abs(int((y == k).sum()) - 20_000 * p) <= 4 * (p * (1 - p) * 20_000)**0.5
    assert torch.equal(random_labels(shares, 300, 7), y[:300])
    assert not torch.equal(random_labels(shares, 300, 8), y[:300])

NEARLY = SCHEDULE.betas.clone()
NEARLY[1] *= 1 + 1e-8

@pytest.mark.parametrize('change, said', [
    (dict(seed=1), 'seed: 0 there, 1 here'), (dict(steps=5), 'steps: 4 there, 5 here'),
    (dict(guidance=2.), 'guidance: 0.5 there, 2.0 here'),
    (dict(batch=9), 'batch: 10 there, 9 here'), (dict(shares=[0.4, 0.6]), 'shares: '),
    (dict(shares=None), 'shares: [0.5, 0.5] there, None here'),
    (dict(step=dpm_solver_pp()), 'solver: ddim(eta=0.0) there, dpm_solver_pp'),
    (dict(step=ddim(eta=0.1)), 'solver: ddim(eta=0.0) there, ddim(eta=0.1) here'),
    (dict(step=ancestral()), 'solver: '), (dict(step=heun()), 'solver: '),
    (dict(denoiser=0.1001), 'model: '), (dict(schedule=Schedule(NEARLY)), 'betas: '),
    (dict(schedule=Schedule(cosine_betas(101))), '(100 numbers) there, ')])
def test_other_settings_are_refused_with_the_difference(oracle, data, tmp_path, change, said):
    drawn(oracle, tmp_path/'a', 3)
    before = files(tmp_path/'a')
    changed = dict(denoiser=0.1) | change
    changed['denoiser'] = oracle_of(data, changed['denoiser'])
    with pytest.raises(ValueError, match='other settings') as e:
        drawn(folder=tmp_path/'a', n=3, **changed)
    assert said in str(e.value) and files(tmp_path/'a') == before

@pytest.mark.any_processor
def test_the_last_digits_of_another_processor_are_no_other_settings(oracle, tmp_path):
    images, _ = drawn(oracle, tmp_path/'a', 10)
    file = tmp_path/'a'/'settings.json'
    settings = json.loads(file.read_text(encoding='utf-8'))
    betas = [b * (1 + 1e-13) for b in settings['betas']]
    assert betas != settings['betas']
    del settings['checksum']
    file.write_text(json.dumps(settings | dict(betas=betas)), encoding='utf-8')
    assert torch.equal(drawn(oracle, tmp_path/'a', 10)[0], images)

def test_a_foreign_or_damaged_folder_is_refused(oracle, tmp_path):
    (tmp_path/'note.txt').write_text('mine')
    with pytest.raises(FileExistsError, match='not empty'): drawn(oracle, tmp_path, 3)
    (tmp_path/'a').mkdir()
    (tmp_path/'a'/'settings.json').write_text('{')
    with pytest.raises(ValueError, match='damaged'): drawn(oracle, tmp_path/'a', 3)

@pytest.mark.parametrize('wrong, says', [
    (dict(n=0), 'n = 0'), (dict(n=10**15), 'n = 10+; allowed: whole number from 1'),
    (dict(batch=0), 'batch = 0'), (dict(shares=[0., 0.]), 'shares = '),
    (dict(shares=[1., float('nan')]), 'shares = '), (dict(shares=[1., -1., 1.]), 'shares = ')])
def test_what_cannot_be_drawn_is_refused_before_any_work(oracle, tmp_path, wrong, says):
    with pytest.raises(ValueError, match=says):
        drawn(Dies(oracle, 0), tmp_path/'a', **dict(n=6) | wrong)
    assert not (tmp_path/'a').exists()

# ---- the cache
def test_real_images_are_looked_at_once(data, tmp_path):
    calls = []
    eye = replace(EYE, look=lambda images: calls.append(len(images)) or look(images))
    a, b = (reference(eye, data, tmp_path) for _ in range(2))
    assert sum(calls) == 200 and torch.equal(a.x, b.x) and torch.equal(a.p, b.p)
    assert torch.equal(a.x, look(data.images).x)
    reference(eye, ImageSet(data.images.flip(0), data.labels, data.classes), tmp_path)
    reference(replace(eye, hash='v2'), data, tmp_path)
    assert sum(calls) == 600 and len(list(tmp_path.iterdir())) == 3

# ---- the report
PICTURES = {'samples.png', 'measures.png', 'nearest.png', 'classes.png'}

@pytest.fixture(scope='module')
def made(oracle, data, tmp_path_factory):
    return evaluated(oracle, data, tmp_path_factory.mktemp('report'), 60, steps=4, name='oracle')

def test_json_is_complete(made):
    found = report_of(made.folder)
    assert found == json.loads(json.dumps(made.plain())) and found['bits_per_dimension'] is None
    assert found.keys() == {'made', 'protocol', 'protocol_in_words', 'measures', 'refused',
                            'bits_per_dimension'}
    assert found['measures'].keys() == set(MEANING) - {'frechet_to_statistics'}
    assert not found['refused']
    for m in (m[part] for m in found['measures'].values() for part in ('value', 'floor')):
        assert m['low'] - 1e-9 <= m['value'] <= m['high'] + 1e-9 and m['n'] > 0
    assert found['protocol'].items() >= dict(generated=60, extractor='quarters v1',
                                             solver='ddim(eta=0.0)', seed=0).items()
    assert {'date', 'version', 'torch', 'device', 'threads', 'batch',
            'cpu_capability'} <= found['made'].keys()

def test_page_says_all_and_shows_all(made):
    "As Markdown, and as one file with its pictures"
    text, html = ((made.folder/f'report.{kind}').read_text(encoding='utf-8')
                  for kind in ('md', 'html'))
    page, protocol = Page(html), str(made.evaluation.protocol)
    words = ' '.join(page.words)
    assert text == str(made) and protocol in text and protocol in words
    for name, m in made.evaluation.measures.items():
        assert f'| {name} | {m.value} | {m.floor}' in text
        assert {name, str(m.value), MEANING[name]} <= {*page.words} and str(m.floor) in words
    assert {f.name for f in made.folder.glob('*.png')} == PICTURES
    for p in PICTURES:
        assert re.search(rf'!\[\w[^]]+\]\({p}\)', text)
        assert min(Image.open(made.folder/p).size) > 100
    blobs = {base64.b64decode(t['src'].removeprefix('data:image/png;base64,'))
             for t in page.pictures}
    assert blobs == {(made.folder/p).read_bytes() for p in PICTURES}
    assert all(t['alt'] and t['alt'] in words for t in page.pictures)
    assert len(page.pictures) == len(page.links)
    assert 'color-scheme: light dark' in words

class Page(HTMLParser):
    "The words of a page, its pictures, and what it takes from elsewhere"
    def __init__(self, text):
        super().__init__()
        self.words, self.pictures, self.links = [], [], []
        self.feed(text)

    def handle_data(self, data): self.words.append(data)

    def handle_starttag(self, tag, attrs):
        if tag == 'img': self.pictures.append(dict(attrs))
        self.links += [v for k, v in attrs if k in ('src', 'href', 'srcset') or k.startswith('on')]

def test_label_accuracy_is_a_count_and_a_wrong_class_counts_as_wrong(oracle, data, made, tmp_path):
    found = made.evaluation.measures['label_accuracy']
    right = (bright(made.images) == made.labels).double().mean().item()
    assert found.value.value == right == found.floor.value == 1
    eye = eye_of(lambda seen: seen._replace(p=torch.eye(2)[:1].double().expand(len(seen.x), 2)))
    r = evaluated(oracle, data, tmp_path, 40, steps=3, extractor=eye)
    accuracy = r.evaluation.measures['label_accuracy'].value.value
    assert accuracy == (r.labels == 0).double().mean().item() < 0.8

def test_gone_on_the_report_is_the_same(oracle, data, made, tmp_path):
    options = dict(n=60, steps=4, name='oracle')
    with pytest.raises(KeyboardInterrupt): evaluated(Dies(oracle, 12), data, tmp_path, **options)
    again = evaluated(oracle, data, tmp_path, **options)
    assert again.plain()['measures'] == made.plain()['measures']
    assert again.evaluation.protocol == made.evaluation.protocol
    for p in PICTURES: assert (again.folder/p).read_bytes() == (made.folder/p).read_bytes()

def test_bits_are_the_bound_of_chapter_17(tmp_path):
    "Of the package's own network: a mixture of points far apart has no bound to speak of"
    d = mnist_mini()
    digits = ImageSet(d.images[::50], d.labels[::50], d.classes)
    r = evaluate_model(*load('mnist-mini'), digits, tmp_path/'r', n=4, steps=2, bits=3, batch=4,
                       cache=tmp_path/'c', progress=False)
    found = report_of(tmp_path/'r')['bits_per_dimension']
    assert found['n'] == 3 and 0.5 < found['total'] < 5 and str(r.bits) in str(r)
    assert found['total'] == pytest.approx(found['L_T'] + found['L_t'] + found['L_0'])

def test_without_labels(data, tmp_path):
    plain = ImageSet(data.images, name='plain')
    eye = eye_of(lambda seen: Features(seen.x))
    r = evaluated(oracle_of(plain), plain, tmp_path, 40, steps=3, extractor=eye)
    measures = r.evaluation.measures
    assert r.labels is None and r.evaluation.protocol.guidance is None
    assert 'label_accuracy' not in measures and 'frechet_distance' in measures

def test_more_images_than_real_ones_and_statistics_of_a_file(oracle, data, tmp_path):
    """As in the papers: images against the moments of a file, here those of the real images, so
    both Fréchet distances are one number; held-out images stand in the place of generated ones,
    and the real images themselves are at distance 0 from their own moments"""
    seen = EYE(data.images).x.numpy()
    np.savez(tmp_path/'real.npz', mu=seen.mean(0), sigma=np.cov(seen, rowvar=False))
    r = evaluated(oracle, data, tmp_path, 260, steps=2, statistics=tmp_path/'real.npz',
                  held_out=data)
    found, protocol = r.evaluation.measures, r.evaluation.protocol
    whole, file = found['frechet_distance'].value, found['frechet_to_statistics'].value
    assert (protocol.generated, protocol.real, whole.n, file.n) == (260, 200, 200, 260)
    assert file.value == pytest.approx(whole.value, rel=1e-6)
    assert found['frechet_to_statistics'].floor.value < 1e-6 * file.value
    assert found['label_accuracy'].floor.value == 1 and found['confidence'].floor.n == 200
    assert 'real.npz ' in str(protocol) and r.made['held_out'].startswith('tiny ')

@pytest.mark.parametrize('said, write', [
    ('is missing', lambda f: None), ('holds no statistics', lambda f: f.write_bytes(b'PK')),
    ('holds no statistics', lambda f: np.savez(f, mu=np.zeros(4))),
    ('allow_pickle', lambda f: np.savez(f, mu=np.array([{}]), sigma=np.eye(4))),
    ('mu is .*allowed', lambda f: np.savez(f, mu=np.zeros(4), sigma=np.eye(3))),
    ('mu is .*allowed', lambda f: np.savez(f, mu=np.zeros(1), sigma=np.full((1, 1), np.nan))),
    ('has 3 features.*has 4', lambda f: np.savez(f, mu=np.zeros(3), sigma=np.eye(3)))])
def test_files_that_hold_no_statistics(oracle, data, tmp_path, said, write):
    write(tmp_path/'s.npz')
    with pytest.raises((ValueError, OSError), match=f's.npz.*{said}'):
        evaluated(oracle, data, tmp_path, 10, statistics=tmp_path/'s.npz')
    assert not (tmp_path/'r').exists()

# ---- damage, disks and names
def test_every_file_of_an_evaluation_is_read_whole_or_made_again(oracle, data, tmp_path):
    "Whatever an evaluation leaves behind; a file that this does not know fails"
    evaluated(oracle, data, tmp_path, 6, steps=1, batch=3)
    shares = read_json(tmp_path/'r'/'settings.json')['shares']
    def again(): return drawn(oracle, tmp_path/'r', 6, steps=1, batch=3)[0].tolist()
    def seen(): return reference(EYE, data, tmp_path/'cache', False).x.tolist()
    def settled(): return len(drawn(oracle, tmp_path/'r', 6, steps=1, batch=3, shares=shares))
    readers = {'settings.json': settled, 'report.json': lambda: report_of(tmp_path/'r')}
    shown = {'report.md', 'report.html', *PICTURES}  # for people: nothing is read from them
    told = {}
    for file in sorted(f for f in tmp_path.rglob('*') if f.is_file() and f.name not in shown):
        read = readers.get(file.name) or dict(images=again, cache=seen)[file.parent.name]
        told[file.name] = never_silent(file, read)
    assert len(told) == 5 and all(t['refused'] > 200 for k, t in told.items() if k in readers)

@pytest.mark.parametrize('cache', ['file/features', '~nobody_of_this_name/features'])
def test_a_cache_that_cannot_be_written_costs_a_warning(oracle, data, tmp_path, cache):
    (tmp_path/'file').write_text('a file where the folder should be')
    cache = tmp_path/cache if cache[0] != '~' else cache
    with pytest.warns(UserWarning, match='not kept for the next time'):
        r = evaluated(oracle, data, tmp_path, 6, steps=1, cache=cache)
    assert (r.folder/'report.json').exists() and not Path(str(cache)).exists()

ODD = 'a|b `c` <img src=x onerror=alert(1)> [d](http://e) $f$ $\\frac\n\x1b[31m\udce9'

def test_names_are_text_on_the_page_and_on_the_terminal(oracle, data, tmp_path):
    named = ImageSet(data.images, data.labels, data.classes, ODD)
    r = evaluated(oracle, named, tmp_path, 6, steps=1, name=ODD, extractor=replace(EYE, name=ODD))
    page, said = (tmp_path/'r'/'report.md').read_text(encoding='utf-8'), str(r.evaluation)
    for text in (page, said): assert not {'\x1b', '\udce9'} & set(text)
    assert '<img' not in page and '](http' not in page and '\\| b' not in page
    html = Page((tmp_path/'r'/'report.html').read_text(encoding='utf-8'))
    assert all(link.startswith('data:image/png;base64,') for link in html.links)
    assert not {'\x1b', '\udce9'} & set(''.join(html.words))
    assert '<img src=x onerror=alert(1)>' in ''.join(html.words)
    plain = evaluated(oracle, data, tmp_path/'plain', 6, steps=1)
    assert page.count('\n') == str(plain).count('\n')
    assert report_of(tmp_path/'r')['protocol']['reference'].startswith(ODD)

@pytest.mark.parametrize('wrong, says', [
    (dict(n=3), 'n = 3; allowed: 4 or more'), (dict(steps=0), 'steps = 0'),
    (dict(steps=101), 'steps = 101; allowed: whole number from 1 to 100'),
    (dict(steps=2.5), 'steps = 2.5'), (dict(seed=-1), 'seed = -1; allowed: whole number from 0'),
    (dict(seed=2**64), 'seed = '), (dict(batch=10**15), 'batch = '), (dict(batch=0), 'batch = 0'),
    (dict(guidance=1e308), 'guidance = 1e[+]308; allowed'), (dict(guidance=-2), 'guidance = -2'),
    (dict(guidance=float('nan')), 'guidance = nan'), (dict(bits=201), 'bits = 201'),
    (dict(held_out=ImageSet(torch.zeros(9, 1, 5, 5).byte())), 'held_out.*same shape'),
    (dict(classes=3), 'classes = 3.*has 2'),
    (dict(extractor=None), r'(?s)digit-classifier.*\(1, 28, 28\).*inception')])
def test_what_cannot_be_measured_is_refused_before_any_work(oracle, data, tmp_path, wrong, says):
    with pytest.raises(ValueError, match=says):
        evaluated(Dies(oracle, 0), data, tmp_path, **dict(n=6, steps=2) | wrong)
    assert not (tmp_path/'r').exists()

def test_a_compiled_network_is_the_same_model(tmp_path):
    denoiser, schedule = load('mnist-mini')
    plain, denoiser.net = model_hash(denoiser, schedule), torch.compile(denoiser.net)
    assert model_hash(denoiser, schedule) == plain

# ---- the command, with the network that comes with the package
@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    "An empty folder, with 200 digits in the place of the 5,000"
    digits = mnist_mini()
    few = ImageSet(digits.images[::25], digits.labels[::25], digits.classes, 'mnist_mini')
    for module in (cli, config.datasets): monkeypatch.setattr(module, 'mnist_mini', lambda: few)
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return few

def test_command_killed_and_given_again(elsewhere, capsys):
    line = 'mnist-mini --n 40 --steps 3 --solver dpm++ --batch 20 --data mnist_mini --out r'.split()
    killed = Command('evaluate', *line)
    killed.wait_until(lambda: files('r'))
    killed.kill(signal.SIGKILL)
    assert files('r') and not Path('r/report.json').exists()
    evaluate_command(line)
    generate(*load('mnist-mini'), (1, 28, 28), 40, 'whole', step=dpm_solver_pp(), steps=3,
             shares=[0.1] * 10, batch=20, progress=False)
    assert files('r') == files('whole') and len(files('r')) == 2
    found = report_of('r')
    assert found['protocol']['reference'].startswith('mnist_mini ')
    assert found['protocol']['solver'] == 'dpm_solver_pp(eta=0.0)'
    assert found['measures']['label_accuracy']['value']['value'] > 0.7
    said = capsys.readouterr().out
    assert str(Path('r/report.html')) in said and 'kernel_distance' in said

def test_command_with_eyes_and_real_images_of_ones_own(elsewhere):
    net, _ = train_classifier(elsewhere, epochs=1, batch=50, progress=False)
    save_classifier(net, 'eyes', dict(name='mine'))
    Path('photos').mkdir()
    for i, image in enumerate(elsewhere.images[:84]):
        Image.fromarray(image[0].numpy()).save(f'photos/{i:03}.png')
    evaluate_command('mnist-mini --n 6 --steps 2 --batch 6 --data photos --extractor eyes '
                     '--out r'.split())
    found = report_of('r')
    protocol = found['protocol']
    assert protocol['extractor'].startswith('mine ') and protocol['reference'].startswith('photos ')
    # 6 images have no covariance; the folder has no labels
    assert protocol['real'] == 84 and 'singular' in found['refused']['frechet_distance']
    assert 'label_accuracy' not in found['measures']

def refused(line, capsys):
    with pytest.raises(SystemExit): evaluate_command(line.split())
    return capsys.readouterr().err

def test_a_run_is_held_against_what_it_was_trained_on(elsewhere, capsys):
    "And its folder takes the report in; without classes there is no guidance to ask for"
    train(config.parse_config({}, [
        'run=run', 'network={channels: 8, multipliers: [1], attention: [], labels: false}',
        'training.steps=2', 'training.batch_size=4', 'sampling.steps=2', 'judge=0', 'log=[]',
        'device=cpu']), progress=False)
    evaluate_command('run --n 6 --steps 2'.split())
    found = report_of('run/evaluation_seed0')
    protocol = found['protocol']
    assert protocol['real'] == 200 and protocol['guidance'] is None
    assert protocol['weights'].startswith('run ') and 'label_accuracy' not in found['measures']
    said = refused('run --n 6 --steps 2 --guidance 1', capsys)
    assert '--guidance: 1.0 is not allowed' in said
    assert 'steps: 2 there, 3 here' in refused('run --n 6 --steps 3', capsys)

def test_real_images_must_be_known(elsewhere, capsys):
    "Here the 5,000 digits that the network was trained on are not at hand"
    assert ('--data: the images that mnist-mini was trained on are not known or not available'
            in refused('mnist-mini --n 6 --steps 2', capsys))
