"An evaluation that can be trusted: killed and gone on, other settings, other batches, the cache, the page, and the command from outside"
import json, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from diffusion_scratch import cli, config
from diffusion_scratch.cli import evaluate_command
from diffusion_scratch.data import ImageSet, mnist_mini, to_float
from diffusion_scratch.features import Extractor, Features, save_classifier, train_classifier
from diffusion_scratch.oracle import MixtureOracle
from diffusion_scratch.pretrained import load
from diffusion_scratch.report import MEANING, evaluate_model, generate, random_labels, reference
from diffusion_scratch.run import train
from diffusion_scratch.schedule import Schedule, cosine_betas
from diffusion_scratch.solvers import ddim, dpm_solver_pp, heun

SCHEDULE, SHAPE = Schedule(cosine_betas(100)), (1, 8, 8)

@pytest.fixture(scope='module')
def data():
    "200 small images of two classes, dark and bright"
    g = torch.Generator().manual_seed(0)
    y = torch.arange(200) % 2
    return ImageSet((torch.randint(0, 100, (200, *SHAPE), generator=g) + 155 * y.view(-1, 1, 1, 1)).to(torch.uint8), y, ('dark', 'bright'), 'tiny')

@pytest.fixture(scope='module')
def oracle(data): return MixtureOracle(to_float(data.images), 0.1, labels=data.labels)

def look(images):
    "Four quarters' means, and a class: brighter than gray or not"
    x = images.double().unflatten(2, (2, 4)).unflatten(4, (2, 4)).mean((1, 3, 5)).flatten(1)
    bright = torch.sigmoid((x.mean(1) - 127) / 10)
    return Features(x, torch.stack([1 - bright, bright], 1))

EYE = Extractor('quarters', 'v1', 4, look, SHAPE)
OPTIONS = dict(steps=4, shares=[0.5, 0.5], batch=10, progress=False)

def files(folder): return {f.name: f.read_bytes() for f in (Path(folder)/'images').iterdir() if f.suffix == '.safetensors'}

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
    options = OPTIONS | dict(step=step)
    images, y = generate(oracle, SCHEDULE, SHAPE, 35, tmp_path/'whole', **options)
    for k in (0, 20, 10):                                              # killed before the first image, in a later batch, and again (a batch is 8 calls, with heun 14)
        with pytest.raises(KeyboardInterrupt): generate(Dies(oracle, k), SCHEDULE, SHAPE, 35, tmp_path/'parts', **options)
    again, _ = generate(oracle, SCHEDULE, SHAPE, 35, tmp_path/'parts', **options)
    assert torch.equal(images, again) and files(tmp_path/'whole') == files(tmp_path/'parts')
    assert images.shape == (35, *SHAPE) and images.dtype == torch.uint8 and torch.equal(y, random_labels([0.5, 0.5], 35, 0))

def test_what_is_there_is_not_drawn_again_and_more_images_go_on(oracle, tmp_path):
    few, _ = generate(oracle, SCHEDULE, SHAPE, 25, tmp_path/'a', **OPTIONS)
    nothing, _ = generate(Dies(oracle, 0), SCHEDULE, SHAPE, 25, tmp_path/'a', **OPTIONS)
    more, _ = generate(Dies(oracle, 3 * 4 * 2), SCHEDULE, SHAPE, 45, tmp_path/'a', **OPTIONS)  # three batches: the one of 5 is drawn again, as a whole one
    fresh, _ = generate(oracle, SCHEDULE, SHAPE, 45, tmp_path/'b', **OPTIONS)
    less, _ = generate(oracle, SCHEDULE, SHAPE, 25, tmp_path/'a', **OPTIONS)
    assert torch.equal(few, nothing) and torch.equal(more, fresh) and torch.equal(less, few)

def test_any_batch_gives_the_same_images_but_for_the_last_digits(oracle, tmp_path):
    "Sums in another order move a float by 1e-7, and a byte by one where it was on the edge"
    sets = [generate(oracle, SCHEDULE, SHAPE, 30, tmp_path/str(b), **OPTIONS | dict(batch=b))[0].int() for b in (30, 7, 1)]
    for other in sets[1:]: assert (sets[0] - other).abs().max() <= 1 and (sets[0] != other).double().mean() < 0.01

def test_damaged_parts_are_drawn_again(oracle, tmp_path):
    images, _ = generate(oracle, SCHEDULE, SHAPE, 20, tmp_path/'a', **OPTIONS)
    first, second = sorted((tmp_path/'a'/'images').iterdir())
    first.write_bytes(first.read_bytes()[:50]); second.unlink(); (tmp_path/'a'/'images'/f'.{second.name}.part').write_bytes(b'half')
    assert torch.equal(generate(oracle, SCHEDULE, SHAPE, 20, tmp_path/'a', **OPTIONS)[0], images)

def test_images_are_of_the_class_that_was_asked_for(oracle, data, tmp_path):
    images, y = generate(oracle, SCHEDULE, SHAPE, 30, tmp_path/'a', **OPTIONS)
    assert ((images.double().mean((1, 2, 3)) > 127) == y.bool()).all() and 0 < y.sum() < 30

def test_labels_come_as_often_as_asked_and_do_not_depend_on_how_many():
    "A count of n = 20,000 strays by less than four standard errors, 4 sqrt(p (1 - p) n)"
    y = random_labels([0.1, 0., 0.6, 0.3], 20_000, 7)
    for k, p in enumerate((0.1, 0., 0.6, 0.3)): assert abs(int((y == k).sum()) - 20_000 * p) <= 4 * (p * (1 - p) * 20_000)**0.5
    assert torch.equal(random_labels([0.1, 0., 0.6, 0.3], 300, 7), y[:300]) and not torch.equal(random_labels([0.1, 0., 0.6, 0.3], 300, 8), y[:300])

@pytest.mark.parametrize('change, said', [(dict(seed=1), 'seed: 0 there, 1 here'), (dict(steps=5), 'steps: 4 there, 5 here'), (dict(guidance=2.), 'guidance: 0.5 there, 2.0 here'), (dict(batch=9), 'batch: 10 there, 9 here'),
                                          (dict(shares=None), 'shares: [0.5, 0.5] there, None here'), (dict(shares=[0.4, 0.6]), 'shares: '), (dict(step=dpm_solver_pp()), 'walk: '), (dict(step=ddim(eta=0.1)), 'walk: ')])
def test_other_settings_are_refused_with_the_difference(oracle, tmp_path, change, said):
    generate(oracle, SCHEDULE, SHAPE, 3, tmp_path/'a', **OPTIONS)
    before = files(tmp_path/'a')
    with pytest.raises(ValueError, match='other settings') as e: generate(oracle, SCHEDULE, SHAPE, 3, tmp_path/'a', **OPTIONS | change)
    assert said in str(e.value) and files(tmp_path/'a') == before

def test_other_weights_or_another_schedule_are_refused(oracle, data, tmp_path):
    generate(oracle, SCHEDULE, SHAPE, 3, tmp_path/'a', **OPTIONS)
    other = MixtureOracle(to_float(data.images), 0.1001, labels=data.labels)
    with pytest.raises(ValueError, match='model: '): generate(other, SCHEDULE, SHAPE, 3, tmp_path/'a', **OPTIONS)
    with pytest.raises(ValueError, match=r'betas: .*\(100 numbers\) there, .*\(101 numbers\) here'):
        generate(oracle, Schedule(cosine_betas(101)), SHAPE, 3, tmp_path/'a', **OPTIONS)
    changed = SCHEDULE.betas.clone(); changed[1] *= 1 + 1e-8
    with pytest.raises(ValueError, match='betas: '): generate(oracle, Schedule(changed), SHAPE, 3, tmp_path/'a', **OPTIONS)

@pytest.mark.any_processor
def test_the_last_digits_of_another_processor_are_no_other_settings(oracle, tmp_path):
    images, _ = generate(oracle, SCHEDULE, SHAPE, 10, tmp_path/'a', **OPTIONS)
    settings = json.loads((tmp_path/'a'/'settings.json').read_text(encoding='utf-8'))
    other = settings | dict(betas=[b * (1 + 1e-13) for b in settings['betas']], walk=[w + 1e-6 for w in settings['walk']])
    (tmp_path/'a'/'settings.json').write_text(json.dumps(other), encoding='utf-8')
    assert torch.equal(generate(oracle, SCHEDULE, SHAPE, 10, tmp_path/'a', **OPTIONS)[0], images)

def test_a_foreign_or_damaged_folder_is_refused(oracle, tmp_path):
    (tmp_path/'note.txt').write_text('mine')
    with pytest.raises(FileExistsError, match='not empty'): generate(oracle, SCHEDULE, SHAPE, 3, tmp_path, **OPTIONS)
    (tmp_path/'a').mkdir(); (tmp_path/'a'/'settings.json').write_text('{')
    with pytest.raises(ValueError, match='damaged'): generate(oracle, SCHEDULE, SHAPE, 3, tmp_path/'a', **OPTIONS)
    with pytest.raises(ValueError, match='n = 0'): generate(oracle, SCHEDULE, SHAPE, 0, tmp_path/'b', **OPTIONS)
    with pytest.raises(ValueError, match='batch = 0'): generate(oracle, SCHEDULE, SHAPE, 3, tmp_path/'b', **OPTIONS | dict(batch=0))

# ---- the cache

def test_real_images_are_looked_at_once(data, tmp_path):
    calls = []
    eye = replace(EYE, look=lambda images: calls.append(len(images)) or look(images))
    a, b = (reference(eye, data, tmp_path) for _ in range(2))
    assert sum(calls) == 200 and torch.equal(a.x, b.x) and torch.equal(a.p, b.p) and torch.equal(a.x, look(data.images).x)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:99])
    assert torch.equal(reference(eye, data, tmp_path).x, a.x) and sum(calls) == 400        # damaged: looked at again
    reference(eye, ImageSet(data.images.flip(0), data.labels, data.classes), tmp_path); reference(replace(eye, hash='v2'), data, tmp_path)
    assert sum(calls) == 800 and len(list(tmp_path.iterdir())) == 3

# ---- the report

@pytest.fixture(scope='module')
def made(oracle, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp('report')
    return evaluate_model(oracle, SCHEDULE, data, folder/'r', n=60, steps=4, extractor=EYE, name='oracle', batch=20, cache=folder/'cache', progress=False)

def test_json_is_complete(made):
    found = json.loads((made.folder/'report.json').read_text(encoding='utf-8'))
    assert found == json.loads(json.dumps(made.plain())) and set(found) == {'made', 'protocol', 'protocol_in_words', 'measures', 'refused', 'bits_per_dimension'} and found['bits_per_dimension'] is None
    assert set(found['measures']) == set(MEANING) and not found['refused']
    for m in found['measures'].values():
        for part in ('value', 'floor'): assert m[part]['low'] - 1e-9 <= m[part]['value'] <= m[part]['high'] + 1e-9 and m[part]['n'] > 0
    assert found['protocol']['generated'] == 60 and found['protocol']['extractor'] == 'quarters v1' and found['protocol']['solver'] == 'ddim eta=0.0' and found['protocol']['seed'] == 0
    assert {'date', 'version', 'torch', 'device', 'cpu_capability', 'threads', 'batch'} <= set(found['made'])

def test_page_says_all_and_shows_all(made):
    page = (made.folder/'report.md').read_text(encoding='utf-8')
    assert page == str(made) and str(made.evaluation.protocol) in page
    for name, m in made.evaluation.measures.items(): assert f'| {name} | {m.value} | {m.floor}' in page
    pictures = {'samples.png', 'measures.png', 'nearest.png', 'classes.png'}
    assert {f.name for f in made.folder.glob('*.png')} == pictures and all(f'![]({p})' in page for p in pictures)
    for p in pictures: assert min(Image.open(made.folder/p).size) > 100

def test_label_accuracy_is_a_count(made):
    right = ((made.images.double().mean((1, 2, 3)) > 127).long() == made.labels).double().mean().item()
    assert made.evaluation.measures['label_accuracy'].value.value == right == 1
    assert made.evaluation.measures['label_accuracy'].floor.value == 1

def test_a_wrong_class_counts_as_wrong(oracle, data, tmp_path):
    half = replace(EYE, look=lambda images: look(images)._replace(p=torch.tensor([[1., 0.]]).expand(len(images), 2)))  # dark, whatever it sees
    r = evaluate_model(oracle, SCHEDULE, data, tmp_path/'r', n=40, steps=3, extractor=half, batch=20, cache=tmp_path/'cache', progress=False)
    assert r.evaluation.measures['label_accuracy'].value.value == (r.labels == 0).double().mean().item() < 0.8

def test_gone_on_the_report_is_the_same(oracle, data, made, tmp_path):
    with pytest.raises(KeyboardInterrupt): evaluate_model(Dies(oracle, 12), SCHEDULE, data, tmp_path/'r', n=60, steps=4, extractor=EYE, name='oracle', batch=20, cache=tmp_path/'c', progress=False)
    again = evaluate_model(oracle, SCHEDULE, data, tmp_path/'r', n=60, steps=4, extractor=EYE, name='oracle', batch=20, cache=tmp_path/'c', progress=False)
    assert again.plain()['measures'] == made.plain()['measures'] and again.evaluation.protocol == made.evaluation.protocol
    for p in ('samples.png', 'nearest.png', 'measures.png', 'classes.png'): assert (again.folder/p).read_bytes() == (made.folder/p).read_bytes()

def test_bits_are_the_bound_of_chapter_16(data, tmp_path):
    "Of the network that comes with the package, which has a bound: a mixture of points far apart has none to speak of"
    digits = mnist_mini()
    r = evaluate_model(*load('mnist-mini'), ImageSet(digits.images[::50], digits.labels[::50], digits.classes), tmp_path/'r', n=4, steps=2, bits=3, batch=4, cache=tmp_path/'c', progress=False)
    found = json.loads((tmp_path/'r'/'report.json').read_text(encoding='utf-8'))['bits_per_dimension']
    assert found['n'] == 3 and 0.5 < found['total'] < 5 and found['total'] == pytest.approx(found['L_T'] + found['L_t'] + found['L_0']) and str(r.bits) in str(r)

def test_without_labels(data, tmp_path):
    plain = ImageSet(data.images, name='plain')
    r = evaluate_model(MixtureOracle(to_float(data.images), 0.1), SCHEDULE, plain, tmp_path/'r', n=40, steps=3, extractor=replace(EYE, look=lambda images: Features(look(images).x)), batch=20, cache=tmp_path/'c', progress=False)
    assert r.labels is None and 'label_accuracy' not in r.evaluation.measures and 'frechet_distance' in r.evaluation.measures and r.evaluation.protocol.guidance is None

def test_what_cannot_be_measured_is_refused_before_any_work(oracle, data, tmp_path):
    with pytest.raises(ValueError, match=r'(?s)digit-classifier.*\(N, 1, 28, 28\).*inception'): evaluate_model(oracle, SCHEDULE, data, tmp_path/'r', n=10)
    with pytest.raises(ValueError, match='n = 201.*200 real images'): evaluate_model(oracle, SCHEDULE, data, tmp_path/'r', n=201, extractor=EYE)
    with pytest.raises(ValueError, match='bits = 201'): evaluate_model(oracle, SCHEDULE, data, tmp_path/'r', n=10, bits=201, extractor=EYE)
    with pytest.raises(ValueError, match='classes = 3.*has 2'): evaluate_model(oracle, SCHEDULE, data, tmp_path/'r', n=10, classes=3, extractor=EYE)
    assert not (tmp_path/'r').exists()

# ---- the command, with the network that comes with the package

@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    "An empty folder, with 200 digits in the place of the 5,000"
    digits = mnist_mini()
    few = lambda: ImageSet(digits.images[::25], digits.labels[::25], digits.classes, 'mnist_mini')
    monkeypatch.setattr(cli, 'mnist_mini', few); monkeypatch.setattr(config.datasets, 'mnist_mini', few)
    monkeypatch.setenv('HOME', str(tmp_path)); monkeypatch.chdir(tmp_path)
    return tmp_path

def test_command_killed_and_given_again(elsewhere, capsys):
    line = 'mnist-mini --n 70 --steps 3 --solver dpm++ --batch 20 --data mnist_mini --out r'.split()
    program = 'import sys; from diffusion_scratch.cli import evaluate_command; evaluate_command(sys.argv[1:])'
    p = subprocess.Popen([sys.executable, '-c', program, *line], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not list(Path('r').glob('images/*.safetensors')) and p.poll() is None: time.sleep(0.02)
    p.send_signal(signal.SIGKILL); p.wait()
    assert p.returncode == -signal.SIGKILL and 0 < len(files('r')) and not Path('r/report.json').exists()
    evaluate_command(line)
    generate(*load('mnist-mini'), (1, 28, 28), 70, 'whole', step=dpm_solver_pp(), steps=3, shares=[0.1] * 10, batch=20, progress=False)
    assert files('r') == files('whole') and len(files('r')) == 4
    found = json.loads(Path('r/report.json').read_text(encoding='utf-8'))
    assert found['protocol']['reference'].startswith('mnist_mini ') and found['protocol']['solver'] == 'dpm_solver_pp eta=0.0' and found['measures']['label_accuracy']['value']['value'] > 0.7
    said = capsys.readouterr().out
    assert str(Path('r/report.md')) in said and 'kernel_distance' in said

def test_command_with_eyes_and_real_images_of_ones_own(elsewhere):
    digits = cli.mnist_mini()
    net, _ = train_classifier(digits, epochs=1, batch=50, progress=False)
    save_classifier(net, 'eyes', dict(name='mine'))
    Path('photos').mkdir()
    for i, image in enumerate(digits.images[:84]): Image.fromarray(image[0].numpy()).save(f'photos/{i:03}.png')
    evaluate_command('mnist-mini --n 6 --steps 2 --batch 6 --data photos --extractor eyes --out r'.split())
    found = json.loads(Path('r/report.json').read_text(encoding='utf-8'))
    assert found['protocol']['extractor'].startswith('mine ') and found['protocol']['reference'].startswith('photos ') and found['protocol']['real'] == 84
    assert 'singular' in found['refused']['frechet_distance'] and 'label_accuracy' not in found['measures']   # 6 images have no covariance; the folder has no labels

def test_a_run_is_held_against_what_it_was_trained_on(elsewhere, capsys):
    "And its folder takes the report in; without classes there is no guidance to ask for"
    train(config.parse_config({}, ['run=run', 'training.steps=2', 'training.batch_size=4', 'network={channels: 8, multipliers: [1], attention: [], labels: false}', 'sampling.steps=2', 'judge=0', 'log=[]', 'device=cpu']), progress=False)
    evaluate_command('run --n 6 --steps 2'.split())
    found = json.loads(Path('run/evaluation_seed0/report.json').read_text(encoding='utf-8'))
    assert found['protocol']['real'] == 200 and found['protocol']['guidance'] is None and found['protocol']['weights'].startswith('run ') and 'label_accuracy' not in found['measures']
    with pytest.raises(SystemExit): evaluate_command('run --n 6 --steps 2 --guidance 1'.split())
    assert '--guidance: 1.0 is not allowed' in capsys.readouterr().err
    with pytest.raises(SystemExit): evaluate_command('run --n 6 --steps 3'.split())
    assert 'steps: 2 there, 3 here' in capsys.readouterr().err

def test_real_images_must_be_known(elsewhere, capsys):
    "Here the 5,000 digits that the network was trained on are not at hand"
    with pytest.raises(SystemExit): evaluate_command('mnist-mini --n 6 --steps 2'.split())
    assert '--data: mnist-mini does not say what it was trained on, or it is not at hand' in capsys.readouterr().err

@pytest.mark.parametrize('words, said', [('--n 0', '--n: 0 is not allowed'), ('--batch 0', '--batch: 0 is not allowed'), ('--steps 5000', '--steps: 5000 is not allowed'), ('--solver fast', "'fast' is not allowed; allowed: ancestral, ddim"),
                                         ('--extractor eyes', '--extractor: eyes is not allowed; allowed: digits, inception, or a folder'), ('--data nowhere', '--data: nowhere is not allowed; allowed: mnist_mini, mnist, cifar10, or a folder'),
                                         ('--n 5001', 'n = 5001')])
def test_command_refuses(elsewhere, words, said, capsys):
    with pytest.raises(SystemExit) as e: evaluate_command(['mnist-mini', *words.split()] if '--data' in words else ['mnist-mini', '--data', 'mnist_mini', *words.split()])
    assert e.value.code == 2 and said in capsys.readouterr().err and not list(elsewhere.glob('mnist-mini*'))
