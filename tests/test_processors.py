"""The same on any processor: a run, an evaluation and weights that move between two settings of
ATEN_CPU_CAPABILITY,
which chooses the instructions that PyTorch uses. `default` is there on every machine; where that
is all there is,
nothing moves, and the tests that compare two processors have nothing to see."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from diffusion_scratch.run import changed_since
from diffusion_scratch.denoiser import EPS, Denoiser
from diffusion_scratch.pretrained import SHIPPED, load
from diffusion_scratch.export import export_diffusers
from diffusion_scratch.report import generate
from diffusion_scratch.schedule import Schedule, cosine_betas, linear_betas
from diffusion_scratch.checkpoint import checkpoints
from diffusion_scratch.unet import UNet

SMALL = dict(
    device='cpu',
    threads=1,
    save_every=2,
    preview_every=10**6,
    log=[],
    judge=0,
    parameterization='v',
    schedule=dict(name='cosine'),
    network=dict(channels=8, multipliers=[1], attention=[], unshuffle=4),
    training=dict(batch_size=8, steps=6),
    sampling=dict(steps=2),
)


def python(program, *words, capability=None):
    """A program in a process of its own, with the instructions that are named, or all that this
    machine has"""
    env = {k: v for k, v in os.environ.items() if k != 'ATEN_CPU_CAPABILITY'} | dict(
        OMP_NUM_THREADS='1'
    )
    if capability: env['ATEN_CPU_CAPABILITY'] = capability
    p = subprocess.run(
        [sys.executable, '-c', program, *map(str, words)],
        capture_output=True,
        text=True,
        env=env,
        timeout=300,
    )
    assert p.returncode == 0, p.stderr
    return p.stdout


# ---------------------------------------------------------------- a run

TRAIN = '''
import sys
from diffusion_scratch import run
from diffusion_scratch.config import load_config
fit = run.fit
def stopped(state, *a, **k):
    for m in fit(state, *a, **k):
        yield m
        if m.step == int(sys.argv[1]) < 6: raise SystemExit
run.fit = stopped
run.train(load_config('c.yaml'), progress=False)
'''


def test_a_run_moves_to_another_processor_on_its_way_and_back(tmp_path, monkeypatch):
    """It goes on with the betas of its first checkpoint, and says what has changed, in a line and
    in its manifest"""
    monkeypatch.chdir(tmp_path)
    Path('c.yaml').write_text(yaml.safe_dump(SMALL | dict(run='run')))
    said, betas = [], []
    for capability in ('default', None, 'default'):
        said.append(python(TRAIN, 2 * len(said) + 2, capability=capability))
        betas.append(load_file(checkpoints('run')[0])['schedule.betas'])
    sessions = json.loads(Path('run/manifest.json').read_text())['sessions']
    used = [s['cpu_capability'] for s in sessions]
    assert [s['after_step'] for s in sessions] == [0, 2, 4] and used[0] == used[2] == 'DEFAULT'
    assert (
        all(torch.equal(b, betas[0]) for b in betas)
        and sessions[0]['changed'] == {}
        and 'changed' not in said[0]
    )
    assert (
        len(Path('run/metrics.csv').read_text().splitlines()) == 1 + 6
        and Path('run/samples.png').exists()
    )
    for i in (1, 2):
        moved = used[i - 1] != used[i]
        line = (
            f'its checkpoint was made: cpu_capability from {used[i - 1]} to {used[i]}; the last'
            ' digits'
        )
        assert f'going on after step {2 * i} of 6' in said[i] and (line in said[i]) == moved
        assert sessions[i]['changed'] == (dict(cpu_capability=used[i - 1:i + 1]) if moved else {})


def session(after_step, **facts):
    return dict(after_step=after_step, torch='2', threads=1, device='cpu') | facts


@pytest.mark.any_processor
def test_what_has_changed_is_told_against_the_session_that_made_the_checkpoint():
    sessions = [
        session(0),
        session(10, threads=2),
        session(10, torch='3', device='H100', data='others'),
    ]
    assert changed_since([], session(0)) == {} and changed_since(sessions[:1], session(5)) == {}
    assert changed_since(sessions, session(10)) == {}  # the second and the third saved nothing
    assert changed_since(sessions[:2], session(20)) == dict(threads=[2, 1])
    assert changed_since(sessions, session(20)) == dict(torch=['3', '2'], device=['H100', 'cpu'])
    # an older version wrote it
    assert changed_since([dict(date='long ago')], session(5, cpu_capability='AVX2')) == {}


# ---------------------------------------------------------------- an evaluation

GENERATE = '''
import sys, torch
from diffusion_scratch.pretrained import load
from diffusion_scratch.report import generate
from diffusion_scratch.schedule import Schedule, cosine_betas
denoiser, schedule = load('mnist-mini')[0], Schedule(cosine_betas())
generate(denoiser, schedule, (1, 28, 28), 4, sys.argv[1], steps=3, batch=2, progress=False)
print(torch.backends.cpu.get_cpu_capability())
'''


def test_images_of_an_evaluation_go_on_on_another_processor(tmp_path):
    "With a schedule that is made anew on each"
    python(GENERATE, tmp_path/'images', capability='default')
    before = {f: f.read_bytes() for f in (tmp_path/'images'/'images').iterdir()}
    denoiser, schedule = load('mnist-mini')[0], Schedule(cosine_betas())
    images, _ = generate(
        denoiser, schedule, (1, 28, 28), 6, tmp_path / 'images', steps=3, batch=2, progress=False
    )
    own, _ = generate(
        denoiser, schedule, (1, 28, 28), 6, tmp_path / 'own', steps=3, batch=2, progress=False
    )
    assert len(before) == 2 and all(f.read_bytes() == blob for f, blob in before.items())
    assert (images.int() - own.int()).abs().max() <= 1  # a byte on the edge is rounded either way


# ---------------------------------------------------------------- weights

NAMES = sorted(f.name for f in SHIPPED.iterdir() if f.is_dir())
PREDICT = '''
import torch
from diffusion_scratch.pretrained import load
torch.set_num_threads(1)
def predicted(name):
    denoiser, schedule = load(name)
    x = torch.linspace(-1, 1, 4 * 784).view(4, 1, 28, 28)
    with torch.no_grad(): x0 = denoiser(x, schedule.at(torch.tensor([1, 300, 700, 1000]), x)).x0
    return dict(x0=x0, betas=schedule.betas)
'''
SAVE = '''
import sys
from safetensors.torch import save_file
for name in sys.argv[2:]: save_file(predicted(name), f'{sys.argv[1]}/{name}.safetensors')
'''


def test_shipped_weights_say_the_same_on_every_processor(tmp_path):
    """The betas are those of the file, to the last bit; what the networks predict, to float32's
    rounding"""
    python(PREDICT + SAVE, tmp_path, *NAMES, capability='default')
    exec(PREDICT, here := {})
    assert len(NAMES) >= 3
    for name in NAMES:
        there, own = load_file(tmp_path/f'{name}.safetensors'), here['predicted'](name)
        assert torch.equal(there['betas'], own['betas'])
        torch.testing.assert_close(there['x0'], own['x0'], rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- export

def other_digits(betas):
    return betas * (
        1 + 1e-13 * torch.randn(len(betas), generator=torch.Generator().manual_seed(0)).double()
    )


@pytest.mark.any_processor
def test_a_straight_line_of_another_processor_is_exported_as_one(tmp_path):
    denoiser, about = Denoiser(UNet(1, 8, (1,), 1, ()), EPS), dict(shape=(1, 8, 8))
    curved = linear_betas() * (1 + 1e-6 * torch.linspace(-1, 1, 1000).double().square())
    for betas, straight in ((other_digits(linear_betas()), True), (curved, False)):
        folder = export_diffusers(denoiser, Schedule(betas), tmp_path/str(straight), about)
        config = json.loads((folder/'scheduler'/'scheduler_config.json').read_text())
        assert (config['trained_betas'] is None) == straight and config['beta_schedule'] == 'linear'
        assert load(folder)[1].is_close(Schedule(betas))
