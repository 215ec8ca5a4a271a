"The CIFAR-10 network and classifier: images, the config, the tool. Their facts: test_shipped.py"
import csv, json
from functools import partial
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from conftest import LITTLE_RUN
import cifar10 as tool
from diffusion_scratch import config as config_module, report
from diffusion_scratch.config import load_config, parse_config
from diffusion_scratch.data import CIFAR10_CLASSES, ImageSet
from diffusion_scratch.evaluation import evaluate, interval
from diffusion_scratch.features import EXTRACTORS, object_classifier
from diffusion_scratch.pretrained import about, load
from diffusion_scratch.run import train

def test_reads_the_four_test_images_in_the_repository():
    "Of images that it never saw, it may misread one"
    there = np.load(tool.ASSETS/'real.npz')
    p = object_classifier()(torch.from_numpy(there['images'])).p
    assert (p.argmax(1).numpy() == there['labels']).sum() >= 3

def test_reads_the_test_images_as_the_record_says(whole_cifar10):
    eye, test = object_classifier(), tool.images(whole_cifar10, train=False)
    record = json.loads((EXTRACTORS/'object-classifier'/'config.json').read_text())['about']
    right = (eye(test.images).p.argmax(1) == test.labels).double().mean().item()
    if record['test']['data'].endswith(tool.origin(whole_cifar10)):
        assert right == pytest.approx(record['test']['accuracy'], abs=5e-4)
    assert right >= 0.85  # JPEG changes a few answers

def test_the_config_asks_for_enough():
    c = load_config('cifar10_small')
    assert c.training.steps * c.training.batch_size >= 50 * 50_000 and c.training.decay == 'cosine'
    assert c.data.flip and c.network.labels and c.data.name == 'cifar10'

@pytest.fixture
def small(tmp_path, monkeypatch):
    "400 images of ten colours in the place of CIFAR-10, and a network of a few steps"
    g, y = torch.Generator().manual_seed(0), torch.arange(400) % 10
    hue = torch.randint(0, 200, (10, 3, 1, 1), generator=g)
    x = (hue[y] + torch.randint(0, 50, (400, 3, 32, 32), generator=g)).byte()
    data = ImageSet(x, y, CIFAR10_CLASSES, 'cifar10')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tool, 'images', lambda root, train=True: data)
    monkeypatch.setattr(config_module.datasets, 'cifar10', lambda *a, **k: data)
    for name in ('ASSETS', 'RUNS'): monkeypatch.setattr(tool, name, tmp_path/name)
    monkeypatch.setenv('HOME', str(tmp_path))  # features are kept there
    def run(name, *words):
        words = *LITTLE_RUN, 'save_every=2', 'data.name=cifar10', f'run={name}', *words
        return train(parse_config({}, words), progress=False)
    return run

def shipped(run, to):
    tool.ship(SimpleNamespace(run=run, to=to))
    return about(to)['made']

def test_ship_says_what_was_trained_and_adds_up_sittings(small, tmp_path):
    "And it takes a run that has not ended"
    run = small('first', 'training.steps=4')
    made = shipped(run, tmp_path/'w')
    assert (made['steps'], made['images'], made['epochs']) == (4, 32, 0.1)  # 32 of 400
    assert 'training.batch_size=8' in made['command'] and str(tmp_path) not in str(made)
    rows = list(csv.DictReader(open(run/'metrics.csv')))
    seconds = sum(8 / float(r['images_per_second']) for r in rows)
    assert made['training_seconds'] == round(seconds) and len(made['sittings']) == 1
    there, here = (load(p)[0].float().state_dict() for p in (run, tmp_path/'w'))
    for k in here:  # 11 binary digits, and steps of 6e-8 near 0
        torch.testing.assert_close(here[k], there[k], rtol=5e-4, atol=6e-8)
    second = small('second', 'training.steps=2', 'training.start=w')
    made = shipped(second, tmp_path/'w2')
    assert [s['steps'] for s in made['sittings']] == [4, 2] and made['steps'] == 6
    assert 'start' in made['sittings'][1] and '16 bits' in made['start']
    shipped(small('third', 'training.steps=2'), tmp_path/'w')  # now the weights there are others
    with pytest.raises(SystemExit, match='the run began with weights'):
        shipped(second, tmp_path/'w2')

def test_measure_makes_every_piece_and_check_compares(small, tmp_path, capsys):
    "A network that has learned next to nothing, beside itself, lies inside its own intervals"
    run = small('first', 'training.steps=4')
    shipped(run, tmp_path/'w')
    a = SimpleNamespace(root=tmp_path, run=run, weights=tmp_path/'w', n=300, seeds=1, row=300,
                        pieces=[])
    with pytest.MonkeyPatch.context() as patch:  # a row or two of each table, wide intervals
        few = partial(interval, pairs=4)
        patch.setattr(tool, 'interval', few)
        patch.setattr(tool.results, 'interval', few)
        patch.setattr(report, 'evaluate', partial(evaluate, pairs=4))
        for name, value in dict(STEPS=2, SCALES=(2.,), EVALUATIONS=(4,)).items():
            patch.setattr(tool, name, value)
        patch.setattr(tool, 'SOLVERS', {'ddim': tool.SOLVERS['ddim'],
                                        'heun': tool.SOLVERS['heun']})
        tool.measure(a)
        rows = json.loads((tool.ASSETS/'steps.json').read_text())['rows']
        assert all(r['calls'] in (r['evaluations'], r['evaluations'] - 1) for r in rows)
        for piece in ('guidance', 'training'):
            table = json.loads((tool.ASSETS/f'{piece}.json').read_text())
            assert {'label_accuracy', 'recall'} <= table['floor']['300'].keys()
            assert all('label_accuracy' in r['measures'] for r in table['rows'])
        found = json.loads((tool.ASSETS/'seed0.json').read_text())
        assert found['made']['held_out'] and found['facts']['origin']
        worst, median = (np.load(tool.ASSETS/f'{k}.npz') for k in ('worst', 'median'))
        assert worst['images'].shape == median['images'].shape == (20, 3, 32, 32)
        assert shipped(run, tmp_path/'w2')['steps'] == 4 and 'measured' in about(tmp_path/'w2')
        with pytest.raises(SystemExit) as e:
            tool.check(SimpleNamespace(root=tmp_path, run=tmp_path/'w', n=300))
        assert e.value.code == 0 and 'OUTSIDE' not in capsys.readouterr().out
