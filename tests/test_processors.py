"""The same on any processor: a run, an evaluation and weights that move between two settings of
ATEN_CPU_CAPABILITY, which chooses the instructions that PyTorch uses. `default` is there on every
machine; where that is all there is, nothing moves, and tests of two processors see nothing"""
import json, os, subprocess, sys
from pathlib import Path
import pytest, torch, yaml
from safetensors.torch import load_file
from diffusion_scratch.checkpoint import checkpoints
from diffusion_scratch.denoiser import EPS, Denoiser
from diffusion_scratch.export import export_diffusers
from diffusion_scratch.pretrained import SHIPPED, load
from diffusion_scratch.run import changed_since
from diffusion_scratch.schedule import Schedule, linear_betas
from diffusion_scratch.unet import UNet

def python(program, *words, capability=None):
    "A program in a process of its own, with the instructions named, or all that this machine has"
    env = {k: v for k, v in os.environ.items() if k != 'ATEN_CPU_CAPABILITY'}
    env |= dict(OMP_NUM_THREADS='1') | (dict(ATEN_CPU_CAPABILITY=capability) if capability else {})
    p = subprocess.run([sys.executable, '-c', program, *map(str, words)], capture_output=True,
                       text=True, env=env, timeout=300)
    assert p.returncode == 0, p.stderr
    return p.stdout

RUN = dict(run='run', device='cpu', threads=1, save_every=2, preview_every=10**6, log=[], judge=0,
           parameterization='v', schedule=dict(name='cosine'), sampling=dict(steps=2),
           network=dict(channels=8, multipliers=[1], attention=[], unshuffle=4),
           training=dict(batch_size=8))
TRAIN = '''
import sys
from diffusion_scratch.cli import train_command
train_command(['c.yaml', f'training.steps={sys.argv[1]}'])
'''

def test_a_run_moves_to_another_processor_on_its_way_and_back(tmp_path, monkeypatch):
    "It goes on with its first betas, and says what has changed, also in its manifest"
    monkeypatch.chdir(tmp_path)
    Path('c.yaml').write_text(yaml.safe_dump(RUN))
    said, betas = [], []
    for stop, capability in zip((2, 4, 6), ('default', None, 'default')):
        said.append(python(TRAIN, stop, capability=capability))
        betas.append(load_file(checkpoints('run')[0])['schedule.betas'])
    sessions = json.loads(Path('run/manifest.json').read_text())['sessions']
    used = [s['cpu_capability'] for s in sessions]
    assert [s['after_step'] for s in sessions] == [0, 2, 4] and used[0] == used[2] == 'DEFAULT'
    assert all(torch.equal(b, betas[0]) for b in betas)
    assert sessions[0]['changed'] == {} and 'changed' not in said[0]
    assert len(Path('run/metrics.csv').read_text().splitlines()) == 1 + 6
    assert Path('run/samples.png').exists()
    for i in (1, 2):
        before, now = used[i - 1:i + 1]
        line = f'its checkpoint was made: cpu_capability from {before} to {now}; the last digits'
        moved = {} if before == now else dict(cpu_capability=[before, now])
        assert f'going on after step {2 * i} of {2 * i + 2}' in said[i]
        assert sessions[i]['changed'] == moved and (line in said[i]) == bool(moved)

@pytest.mark.any_processor
def test_what_has_changed_is_told_against_the_session_that_made_the_checkpoint():
    def session(after_step, **facts):
        return dict(after_step=after_step, torch='2', threads=1, device='cpu') | facts
    sessions = [session(0), session(10, threads=2),
                session(10, torch='3', device='H100', data='others')]
    assert changed_since([], session(0)) == {} and changed_since(sessions[:1], session(5)) == {}
    assert changed_since(sessions, session(10)) == {}  # the second and the third saved nothing
    assert changed_since(sessions[:2], session(20)) == dict(threads=[2, 1])
    assert changed_since(sessions, session(20)) == dict(torch=['3', '2'], device=['H100', 'cpu'])
    older = dict(date='long ago')  # as an older version wrote it
    assert changed_since([older], session(5, cpu_capability='AVX2')) == {}

GENERATE = '''
from diffusion_scratch.pretrained import load
from diffusion_scratch.report import generate
from diffusion_scratch.schedule import Schedule, cosine_betas
def drawn(folder, n=6):
    denoiser, schedule = load('mnist-mini')[0], Schedule(cosine_betas())
    return generate(denoiser, schedule, (1, 28, 28), n, folder, steps=3, batch=2, progress=False)[0]
'''

def test_images_of_an_evaluation_go_on_on_another_processor(tmp_path):
    "With a schedule that is made anew on each"
    python(f'{GENERATE}drawn({str(tmp_path / "images")!r}, 4)', capability='default')
    before = {f: f.read_bytes() for f in (tmp_path/'images'/'images').iterdir()}
    exec(GENERATE, here := {})
    images, own = (here['drawn'](tmp_path/name).int() for name in ('images', 'own'))
    assert len(before) == 2 and all(f.read_bytes() == blob for f, blob in before.items())
    assert (images - own).abs().max() <= 1  # a byte on the edge is rounded either way

NAMES = sorted(f.name for f in SHIPPED.iterdir() if f.is_dir())
PREDICT = '''
import math, sys, torch
from diffusion_scratch.pretrained import about, load
from safetensors.torch import save_file
def predicted(name):
    denoiser, schedule = load(name)
    shape = 4, *about(name)['shape']
    x = torch.linspace(-1, 1, math.prod(shape)).view(shape)
    with torch.no_grad(): x0 = denoiser(x, schedule.at(torch.tensor([1, 300, 700, 1000]), x)).x0
    return dict(x0=x0, betas=schedule.betas)
'''
SAVE = '''
for name in sys.argv[2:]: save_file(predicted(name), f'{sys.argv[1]}/{name}.safetensors')
'''

def test_shipped_weights_say_the_same_on_every_processor(tmp_path, one_thread):
    "The betas are the file's, to the last bit; predictions agree to float32's rounding"
    assert len(NAMES) >= 3
    python(PREDICT + SAVE, tmp_path, *NAMES, capability='default')
    exec(PREDICT, here := {})
    for name in NAMES:
        there, own = load_file(tmp_path/f'{name}.safetensors'), here['predicted'](name)
        assert torch.equal(there['betas'], own['betas'])
        torch.testing.assert_close(there['x0'], own['x0'], rtol=1e-4, atol=1e-4)

@pytest.mark.any_processor
def test_a_straight_line_of_another_processor_is_exported_as_one(tmp_path):
    denoiser, line = Denoiser(UNet(1, 8, (1,), 1, ()), EPS), linear_betas()
    digits = torch.randn(1000, generator=torch.Generator().manual_seed(0)).double()
    curved = line * (1 + 1e-6 * torch.linspace(-1, 1, 1000).double().square())
    for betas, straight in ((line * (1 + 1e-13 * digits), True), (curved, False)):
        folder = tmp_path/str(straight)
        export_diffusers(denoiser, Schedule(betas), folder, dict(shape=(1, 8, 8)))
        config = json.loads((folder/'scheduler'/'scheduler_config.json').read_text())
        assert (config['trained_betas'] is None) == straight and config['beta_schedule'] == 'linear'
        assert load(folder)[1].is_close(Schedule(betas))
