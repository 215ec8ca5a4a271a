"The network of faces that ships: what it draws, and the tool. How it was made: test_shipped.py"
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
import pytest
import torch
from conftest import LITTLE_RUN
import faces, faces_network as tool
from diffusion_scratch import report
from diffusion_scratch.config import parse_config
from diffusion_scratch.data import image_folder, to_uint8
from diffusion_scratch.denoiser import clipped
from diffusion_scratch.evaluation import evaluate
from diffusion_scratch.guidance import guided
from diffusion_scratch.pretrained import about, load
from diffusion_scratch.run import attributes_named, train
from diffusion_scratch.sampling import sample

def test_a_hat_and_glasses_are_drawn_where_they_are_named():
    "A quarter may miss; by chance half of the hats and a third of the glasses would be right"
    denoiser, schedule = load('faces')
    wishes = 'hat=yes,glasses=sunglasses', 'hat=no,glasses=no', 'hat=yes,glasses=no'
    classes = about('faces')['classes']
    y = torch.tensor([attributes_named(w, classes) for w in wishes for _ in range(8)])
    x = sample(clipped(guided(denoiser, y, 1.)), schedule, (24, 3, 64, 64), step=tool.STEP,
               times=schedule.times(tool.STEPS), seed=0, progress=False)
    seen = tool.read(to_uint8(x))
    assert ((seen == y) | (y < 0)).all(1).float().mean() >= 0.75

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
    words = *LITTLE_RUN, 'training.steps=4', 'judge=0', 'run=run', 'data.name=folder'
    data = 'data.root=train', 'data.size=64', 'data.attributes=attributes.csv'
    return train(parse_config({}, [*words, *data]), progress=False)

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
