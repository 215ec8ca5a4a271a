"The network of faces that ships: what its folder promises, what it draws, and the tool"
import json, sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from diffusion_scratch import report
from diffusion_scratch.config import parse_config
from diffusion_scratch.data import image_folder, to_uint8
from diffusion_scratch.denoiser import V, clipped
from diffusion_scratch.evaluation import evaluate
from diffusion_scratch.features import face_classifier
from diffusion_scratch.guidance import guided
from diffusion_scratch.pretrained import SHIPPED, about, load
from diffusion_scratch.report import model_hash
from diffusion_scratch.run import attributes_named, train
from diffusion_scratch.sampling import sample
from diffusion_scratch.schedule import Schedule, cosine_betas

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
import faces, faces_network as tool

@pytest.mark.any_processor
def test_the_folder_says_how_its_weights_came_about():
    facts, file = about('faces'), SHIPPED/'faces'/'model.safetensors'
    made, (denoiser, schedule) = facts['made'], load('faces')
    assert file.stat().st_size <= 6e6 and denoiser.parameterization is V
    assert sum(p.numel() for p in denoiser.parameters()) == made['parameters']
    assert schedule.is_close(Schedule(cosine_betas(1000))) and facts['ema']
    assert facts['shape'] == [3, 64, 64]
    assert facts['classes'] == {k: sorted(v) for k, v in faces.ATTRIBUTES.items()}
    assert made['images'] == 64 * made['steps'] and 'red beard' in made['origin']
    assert made['command'].startswith('diffusion-train configs/faces.yaml')

@pytest.mark.any_processor
def test_the_published_numbers_are_of_these_weights():
    eye, weights = face_classifier(), model_hash(*load('faces'))
    found = json.loads((tool.ASSETS/'seed0.json').read_text())
    assert found['protocol']['weights'] == f'faces {weights}'
    assert found['protocol']['extractor'] == f'{eye.name} {eye.hash}'
    for piece in ('independent', 'combined'):
        made = json.loads((tool.ASSETS/f'{piece}.json').read_text())['made']
        assert made['weights'] == f'faces {weights}' and made['extractor'].endswith(eye.hash)

def test_a_hat_and_glasses_are_drawn_where_they_are_named():
    """Three wishes at the same noise, 8 faces each. By chance the classifier would read half of the
    hats and a third of the glasses; at most one face in four may miss"""
    denoiser, schedule = load('faces')
    wishes = 'hat=yes,glasses=sunglasses', 'hat=no,glasses=no', 'hat=yes,glasses=no'
    classes = about('faces')['classes']
    y = torch.tensor([attributes_named(w, classes) for w in wishes for _ in range(8)])
    x = sample(clipped(guided(denoiser, y, 1.)), schedule, (24, 3, 64, 64), step=tool.STEP,
               times=schedule.times(tool.STEPS), seed=0, progress=False)
    seen = tool.read(to_uint8(x))
    assert ((seen == y) | (y < 0)).all(1).float().mean() >= 0.75

# ---- the tool, on a run of a minute's hundredth

TINY = ['schedule.name=cosine',
        'network={channels: 8, multipliers: [1], attention: [], unshuffle: 8}',
        'training.batch_size=8', 'sampling.steps=2', 'threads=1', 'device=cpu', 'log=[]',
        'parameterization=v', 'training.ema=0.5', 'training.steps=4', 'judge=0', 'data.size=64',
        'data.name=folder', 'data.root=train', 'data.attributes=attributes.csv']

@pytest.fixture
def small(tmp_path, monkeypatch):
    "A run of four steps on 120 faces, and 60 others"
    for package in faces.PACKAGES: pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))  # features are kept there
    faces.make(Path('train'), 120, without=[tool.WITHOUT], progress=False)
    faces.make(Path('others'), 60, seed=2, progress=False)
    sets = [image_folder(name, 64, attributes='attributes.csv') for name in ('train', 'others')]
    monkeypatch.setattr(tool, 'images', lambda root, held_out=False: sets[held_out])
    for name in ('ASSETS', 'RUNS'): monkeypatch.setattr(tool, name, tmp_path/name)
    return train(parse_config({}, [*TINY, 'run=run']), progress=False)

def test_ship_measure_and_check(small, tmp_path, capsys):
    "With a network that has learned next to nothing; beside itself it lies in its own intervals"
    tool.ship(SimpleNamespace(run=small, to=tmp_path/'w'))
    made = about(tmp_path/'w')['made']
    assert (made['steps'], made['images'], made['epochs']) == (4, 32, 0.3)  # 32 of 120
    assert str(tmp_path) not in str(made)
    a = SimpleNamespace(root=tmp_path, run=small, weights=tmp_path/'w', n=40, seeds=1, row=32,
                        pieces=[], name='seed')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, 'evaluate', partial(evaluate, pairs=4))
        patch.setattr(tool, 'STEPS', 2)
        tool.measure(a)
        free = json.loads((tool.ASSETS/'independent.json').read_text())
        for pair, table in free['drawn'].items():
            assert sum(map(sum, table)) == 32 and pair in free['training']
        hats = list(zip(*free['training']['hat, beard']))  # beard -> (no hat, hat)
        assert sum(hats[4]) > 0 and hats[4][1] == 0        # red ones, never with a hat
        rows = json.loads((tool.ASSETS/'combined.json').read_text())['rows']
        assert {r['beard'] for r in rows} == {'black', 'brown', 'blond', 'red'}
        assert all(r['both'] <= min(r['hats'], r['beards']) <= r['images'] for r in rows)
        with pytest.raises(SystemExit) as e:
            tool.check(SimpleNamespace(root=tmp_path, run=tmp_path/'w', n=40))
        assert e.value.code == 0 and 'OUTSIDE' not in capsys.readouterr().out
