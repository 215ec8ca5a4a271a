"A trainer that can be trusted, from outside: real runs of the command line, killed, cut, shared among processes and given nonsense"
import csv
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from diffusion_scratch import training
from diffusion_scratch.cli import train_command
from diffusion_scratch.config import parse_config
from diffusion_scratch.data import ImageSet
from diffusion_scratch.denoiser import V, Denoiser
from diffusion_scratch.loss import v_weight
from diffusion_scratch.schedule import Schedule, cosine_betas
from diffusion_scratch.training import (TrainState, about_checkpoint, checkpoints, fit, load_checkpoint, measure, newest_checkpoint, prune_checkpoints, resume,
                                        save_checkpoint, warmup_constant)
from diffusion_scratch.unet import UNet

pytestmark = pytest.mark.skipif(os.name == 'nt', reason='signals and limits of POSIX')
BIN = Path(sys.executable).parent
SMALL = dict(device='cpu', threads=1, preview_every=10**6, save_every=7, log=[], log_every=5, parameterization='v', schedule=dict(name='cosine'),
             network=dict(channels=8, multipliers=[1], attention=[], unshuffle=4, dropout=0.1), training=dict(batch_size=8, ema=0.9, steps=400, warmup=20, adam=[0.9, 0.99]), sampling=dict(steps=2))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    threads = torch.get_num_threads(); torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    Path('c.yaml').write_text(yaml.safe_dump(SMALL))
    yield
    torch.set_num_threads(threads)


def command(*words, launcher=(), limit=None):
    "The real command, in a process of its own"
    env = os.environ | dict(OMP_NUM_THREADS='1', MKL_NUM_THREADS='1', MASTER_PORT=str(random.randint(20_000, 60_000)))
    lower = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))) if limit else None
    return subprocess.Popen([*map(str, launcher), str(BIN/'diffusion-train'), 'c.yaml', *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, preexec_fn=lower)


def finished(*words, status=0, **k):
    p = command(*words, **k)
    out, err = p.communicate(timeout=120)
    assert p.returncode == status and 'Traceback' not in err, (out, err)
    return out, err


def lines(run):
    try: return Path(run, 'metrics.csv').read_bytes().count(b'\n')
    except FileNotFoundError: return 0


def wait_for(ready, process, seconds=60):
    end = time.time() + seconds
    while time.time() < end and process.poll() is None:
        if ready(): return True
        time.sleep(0.0005)  # the run needs this core more
    return False


def learned(run):
    "What metrics.csv says of each step, but for time and memory"
    with open(f'{run}/metrics.csv', newline='') as f: return [{k: v for k, v in row.items() if k not in ('images_per_second', 'loading', 'memory')} for row in csv.DictReader(f)]


def assert_same_run(a, b):
    x, y = (load_file(checkpoints(run)[0]) for run in (a, b))
    assert x.keys() == y.keys() and len(x) > 100
    for k in x: assert torch.equal(x[k], y[k]), k
    assert learned(a) == learned(b)


# ---------------------------------------------------------------- killed

def test_killed_at_ten_moments_one_of_them_inside_a_checkpoint(tmp_path):
    "SIGKILL, ten times on the way, at random moments and in the middle of writing a checkpoint; resumed by the same command each time: the run of one that was never stopped, to the last bit"
    whole, moments, inside = command('run=whole'), [], 0
    chance = random.Random(time.time_ns())
    for i in range(10):
        p, before = command('run=killed'), lines('killed')
        if i < 9 or inside:
            assert wait_for(lambda: lines('killed') > max(before, 1), p), p.communicate()
            end = time.time() + chance.random() * 0.25
            while time.time() < end and lines('killed') < 360: time.sleep(0.0005)
        else: assert wait_for(lambda: any(f.startswith('.part_') for f in os.listdir('killed/checkpoints')), p), p.communicate()
        p.send_signal(signal.SIGKILL); p.communicate()
        moments.append(lines('killed') - 1)
        inside += any(f.startswith('.part_') for f in os.listdir('killed/checkpoints'))
    assert inside >= 1 and moments[-1] < 400, (inside, moments)
    out, _ = finished('run=killed')
    assert 'going on after step' in out and not list(Path('killed').rglob('*part*')), (out, moments)
    whole.communicate(timeout=120)
    assert len(learned('whole')) == 400
    assert_same_run('whole', 'killed')
    sessions = json.loads(Path('killed/manifest.json').read_text())['sessions']
    assert len(sessions) >= 2 and len({s['data_sha256'] for s in sessions}) == 1 and sessions[-1]['after_step'] > 0


@pytest.fixture(scope='module')
def stopped_run(tmp_path_factory):
    "A run of 35 steps, with checkpoints at 21, 28 and 35 left"
    folder = tmp_path_factory.mktemp('stopped'); (folder/'c.yaml').write_text(yaml.safe_dump(SMALL | dict(training=SMALL['training'] | dict(steps=35))))
    here = os.getcwd(); os.chdir(folder)
    try: finished('run=run')
    finally: os.chdir(here)
    return folder


@pytest.mark.parametrize('damage', ['flip', 'cut', 'empty', 'header'])
def test_a_damaged_newest_checkpoint_is_passed_over(damage, stopped_run, monkeypatch, tmp_path):
    shutil.copytree(stopped_run, tmp_path/'copy'); monkeypatch.chdir(tmp_path/'copy')
    newest, older, *_ = checkpoints('run'); blob = bytearray(newest.read_bytes())
    if damage == 'flip': blob[len(blob) // 2] ^= 1
    elif damage == 'cut': blob = blob[:-100]
    elif damage == 'empty': blob = b''
    else: blob[blob.index(b'"step"') + 10] ^= 1
    newest.write_bytes(blob)
    out, err = finished('run=run')
    assert f'{newest} is not a whole checkpoint' in err and f'going back to {older.name}' in err and 'going on after step 28 of 35' in out
    assert newest.with_suffix('.damaged').read_bytes() == blob
    a, b = (load_file(f'{run}/{newest}') for run in (stopped_run, '.'))
    for k in a: assert torch.equal(a[k], b[k]), k
    assert learned(stopped_run/'run') == learned('run')


def test_any_flipped_bit_is_found(tmp_path):
    state, schedule = small_state(), Schedule(cosine_betas(50))
    save_checkpoint('x.safetensors', state, schedule); whole = Path('x.safetensors').read_bytes()
    chance = random.Random(0)
    for at in [0, 3, 9, 40, 300, len(whole) - 1, *(chance.randrange(len(whole)) for _ in range(200))]:
        blob = bytearray(whole); blob[at] ^= 1 << chance.randrange(8)
        Path('y.safetensors').write_bytes(blob)
        with pytest.raises(ValueError, match='y.safetensors is not a whole checkpoint'): newest_checkpoint('y.safetensors')
    assert newest_checkpoint('x.safetensors')[1]['step'] == 0


def test_a_disk_that_fills_up(stopped_run, monkeypatch, tmp_path):
    "The system refuses to write the next checkpoint: one line that says how to go on, all that was there is whole, and it goes on"
    shutil.copytree(stopped_run, tmp_path/'copy'); monkeypatch.chdir(tmp_path/'copy')
    Path('c.yaml').write_text(yaml.safe_dump(SMALL | dict(training=SMALL['training'] | dict(steps=50))))
    _, err = finished('run=run', status=2, limit=60_000)
    assert re_search(r'error: cannot write run/checkpoints/step_00000042.safetensors .*The run stopped after step 42; its last checkpoint is run/checkpoints/step_00000035.safetensors. Make room.*same command', err)
    assert newest_checkpoint('run')[1]['step'] == 35 and not list(Path('run').rglob('.part_*'))
    finished('run=run'); finished('run=whole')
    assert_same_run('whole', 'run')


@pytest.mark.parametrize('end', ['36', '36,1,0.5', '36,1,0.123,0.001,1,600,0.1,0.2,0.3,0.4,0.01,40', '\0' * 50])
def test_a_torn_line_of_records_is_left_out(end, stopped_run, monkeypatch, tmp_path):
    "What a kill, a full disk or a power cut may leave at the end of metrics.csv"
    shutil.copytree(stopped_run, tmp_path/'copy'); monkeypatch.chdir(tmp_path/'copy')
    with open('run/metrics.csv', 'a') as f: f.write(end)
    out, _ = finished('run=run')
    assert 'going on after step 35' in out and learned('run') == learned(stopped_run/'run')


def test_a_disk_that_fills_up_in_the_middle_of_a_line(stopped_run, monkeypatch, tmp_path):
    shutil.copytree(stopped_run, tmp_path/'copy'); monkeypatch.chdir(tmp_path/'copy')
    Path('c.yaml').write_text(yaml.safe_dump(SMALL | dict(training=SMALL['training'] | dict(steps=100))))
    finished('run=run', 'training.steps=90', 'save_every=90')
    _, err = finished('run=run', status=2, limit=Path('run/metrics.csv').stat().st_size + 130)
    assert re_search(r'error: .*The run stopped after step 9\d; its last checkpoint is run/checkpoints/step_00000090.safetensors. Make room', err)
    finished('run=run'); finished('run=whole')
    assert_same_run('whole', 'run')


def test_one_process_at_a_time(stopped_run, monkeypatch, tmp_path):
    first = command('run=busy', 'training.steps=100000')
    assert wait_for(lambda: lines('busy') > 2, first)
    _, err = finished('run=busy', 'training.steps=100000', status=2)
    assert 'error: run: another process is training in busy' in err and first.poll() is None
    first.send_signal(signal.SIGKILL); first.communicate()
    again = command('run=busy', 'training.steps=100000')  # the lock went with the process
    before = lines('busy')
    assert wait_for(lambda: lines('busy') > max(3, before), again)
    again.send_signal(signal.SIGTERM); again.communicate()


def test_a_folder_of_something_else_is_not_taken(capsys):
    Path('home').mkdir(); Path('home/letter.txt').write_text('dear')
    with pytest.raises(SystemExit) as e: train_command(['c.yaml', 'run=home'])
    assert e.value.code == 2 and 'run: home is not empty and holds no run (there is letter.txt)' in capsys.readouterr().err and os.listdir('home') == ['letter.txt']


def test_other_images_are_noticed():
    from PIL import Image
    Path('pictures').mkdir()
    for i in range(12): Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(f'pictures/{i}.png')
    words = ['run=run', 'data={name: folder, root: pictures, size: 8}', 'training.decay=constant']
    finished(*words, 'training.steps=3')
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save('pictures/99.png')
    _, err = finished(*words, 'training.steps=5', status=2)
    assert 'error: data: the images are not those that run was trained on' in err and '12 images' in err and '13 images' in err and newest_checkpoint('run')[1]['step'] == 3


def test_a_lone_checkpoint_knows_no_config(stopped_run, monkeypatch, tmp_path):
    "A config that happens to lie about is not read, and nothing that it names is imported"
    (tmp_path/'config.yaml').write_text('model: os:system\nfoo: 3\n'); (tmp_path/'a').mkdir()
    (tmp_path/'a'/'alone.safetensors').write_bytes(checkpoints(stopped_run/'run')[0].read_bytes())
    p = subprocess.run([BIN/'diffusion-sample', 'a/alone.safetensors', '--n', '2', '--steps', '2'], capture_output=True, text=True)
    assert p.returncode == 0 and p.stdout == 'a/samples_seed0.png\n', p.stderr


def re_search(pattern, text):
    assert re.search(pattern, text, re.S), text
    return True


def test_the_last_few_and_the_best_are_kept():
    state, schedule = small_state(), Schedule(cosine_betas(50))
    for step, loss in enumerate([0.9, 0.2, 0.5, 0.4, 0.6, 0.3], 1):
        state.step = step
        save_checkpoint(f'run/checkpoints/step_{step:08d}.safetensors', state, schedule, dict(loss=loss))
        prune_checkpoints('run', 2)
    assert [about_checkpoint(f)['loss'] for f in checkpoints('run')] == [0.3, 0.6, 0.2]
    assert newest_checkpoint('run')[1]['step'] == 6


# ---------------------------------------------------------------- one process, two, four goes

def small_state(seed=0, dropout=0., net=None):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TrainState(Denoiser(net or UNet(1, 8, (1, 2), 1, (1,), dropout, num_classes=4), V), ema=0.9)


def images(n=40, seed=0):
    g = torch.Generator().manual_seed(seed)
    return ImageSet(torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=g), torch.arange(n) % 4)


OPTIONS = dict(batch_size=8, lr=warmup_constant(1e-3, 5), weight=v_weight, seed=3)
def go(state, steps=10, data=None, **k): return list(fit(state, Schedule(cosine_betas(50)), data or images(), steps=steps, **{**OPTIONS, **k}))


def close(a, b, tolerance):
    "Weights that differ by float32's rounding of sums in another order; Adam divides a gradient that is zero but for rounding by itself, so the few such weights (keys' biases) may differ by its steps"
    pairs = [(k, (p - q).abs().max().item()) for (k, p), q in zip(a.named_parameters(), b.parameters()) if not k.endswith('attentions.0.k.bias') and not k.endswith('1.k.bias')]
    assert len(pairs) > 30 and max(d for _, d in pairs) < tolerance, sorted(pairs, key=lambda x: -x[1])[:5]


@pytest.mark.parametrize('goes', [2, 4, 8])
def test_a_batch_in_several_goes_is_the_same_batch(goes):
    a, b = small_state(), small_state()
    one, many = go(a), go(b, accumulate=goes)
    np.testing.assert_allclose([m.loss for m in many], [m.loss for m in one], rtol=1e-4)
    np.testing.assert_allclose([m.grad_norm for m in many], [m.grad_norm for m in one], rtol=1e-3)
    close(a.denoiser, b.denoiser, 2e-5)


@pytest.mark.parametrize('goes', [3, 16])
def test_a_batch_that_cannot_be_shared_is_refused(goes):
    with pytest.raises(ValueError, match=f'batch_size = 8 cannot be shared by 1 process.* in {goes} equal goes.*multiple of {goes}'): go(small_state(), accumulate=goes)


def test_two_processes_learn_what_one_learns():
    "torchrun with gloo on the CPU: the same global batch, so the same weights but for the order of float32 sums; and one process alone writes"
    words = ['training.steps=30', 'network.dropout=0', 'save_every=30']
    p = [command('run=one', *words), command('run=two', *words, launcher=(BIN/'torchrun', '--nproc-per-node', 2))]
    for q in p: out, err = q.communicate(timeout=180); assert q.returncode == 0, (out, err)
    assert out.count('Look at') == 1 and json.loads(Path('two/manifest.json').read_text())['sessions'][0]['processes'] == 2
    a, b = load_file(checkpoints('one')[0]), load_file(checkpoints('two')[0])
    for k in a:
        if k.startswith(('denoiser.', 'ema.')) and not k.endswith('k.bias'): torch.testing.assert_close(b[k], a[k], rtol=0, atol=2e-6, msg=lambda m: f'{k}: {m}')
    x, y = ([float(r['loss']) for r in learned(run)] for run in ('one', 'two'))
    np.testing.assert_allclose(x, y, rtol=1e-4)
    assert len(x) == len(y) == 30 and sorted(f.name for f in Path('one').iterdir()) == sorted(f.name for f in Path('two').iterdir())


def test_a_batch_that_two_processes_cannot_share(tmp_path):
    p = command('run=odd', 'training.batch_size=9', launcher=(BIN/'torchrun', '--nproc-per-node', 2))
    out, err = p.communicate(timeout=120)
    assert p.returncode and 'error: batch_size = 9 cannot be shared by 2 process(es)' in err and not Path('odd').exists()


# ---------------------------------------------------------------- health

class Sick(nn.Module):
    "Three layers, of which the middle one can be made to overflow"
    def __init__(self): super().__init__(); self.first, self.middle, self.last, self.factor = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 1, 1), 1.
    def forward(self, x, t, y=None): return self.last(self.middle(self.first(x) * self.factor))


def test_a_nan_is_traced_to_its_layer_and_timesteps():
    state = small_state(net=Sick())
    def sick(k):
        if k == 4: state.denoiser.net.factor = math.inf
        return 1e-3
    steps = fit(state, Schedule(cosine_betas(50)), images(), steps=20, **OPTIONS | dict(lr=sick))
    with pytest.raises(FloatingPointError, match=r'step 6 was not taken: loss nan.*learning rate 0.001.*Not finite for timesteps \d+\.\.\d+; first in net.middle'):
        for m in steps: before = {k: v.clone() for k, v in state.denoiser.state_dict().items()}
    assert m.step == 5 and all(torch.equal(before[k], v) for k, v in state.denoiser.state_dict().items()) and not any(p.grad is not None for p in state.denoiser.parameters())
    assert not state.denoiser.net.middle._forward_hooks


@pytest.mark.parametrize('goes', [1, 2, 4])
def test_a_nan_in_any_part_of_a_batch_is_found(goes):
    "One image that is lost, in the first or the last part"
    class Picky(Sick):
        def forward(self, x, t, y=None):
            h = self.middle(self.first(x))
            return self.last(torch.where((t > 40).view(-1, 1, 1, 1), math.nan, h))
    with pytest.raises(FloatingPointError, match=r'loss nan.*Not finite for timesteps 4[1-9]\.\.(4[1-9]|50); first in net.last'): go(small_state(net=Picky()), accumulate=goes)


def test_one_process_may_train_in_one_precision_and_then_in_another():
    from accelerate import Accelerator
    from diffusion_scratch.training import new_accelerator
    half, full, plain = small_state(), small_state(), small_state()
    a = go(half, accelerator=new_accelerator(cpu=True, mixed_precision='bf16'))
    b, c = go(full, accelerator=new_accelerator(cpu=True)), go(plain)
    assert [m.loss for m in b] == [m.loss for m in c] != [m.loss for m in a]


def test_weights_that_are_not_finite_are_named():
    state = small_state(net=Sick())
    with torch.no_grad(): state.denoiser.net.last.bias[0] = math.nan
    with pytest.raises(FloatingPointError, match='first in the weights net.last.bias'): go(state)


def test_a_loss_of_ones_own_that_overflows_in_some_timesteps():
    weight = lambda level: v_weight(level) * torch.where(level.t.view(-1, 1, 1, 1) > 40, math.inf, 1.)
    with pytest.raises(FloatingPointError, match=r'Not finite for timesteps 4[1-9]\.\.(4[1-9]|50); first in the loss itself'): go(small_state(), weight=weight)


def test_a_gradient_that_explodes_stops_the_run():
    with pytest.raises(FloatingPointError, match=r'step 1 was not taken: .*gradient norm .* \(allowed: 1e-06\).*the gradient of net\..* is the largest'): go(small_state(), explode=1e-6)
    assert len(go(small_state(), explode=1e6)) == 10


def test_images_that_are_all_alike_are_refused():
    with pytest.raises(ValueError, match='-1'): go(small_state(), data=ImageSet(torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.arange(40) % 4))


def test_metrics_by_quarter_and_of_time():
    rows = go(small_state(), 40)
    quarters = np.array([[m.loss_q1, m.loss_q2, m.loss_q3, m.loss_q4] for m in rows])
    assert np.isnan(quarters).any() and (np.nanmean(quarters, 1) > 0).all()  # 8 images may leave a quarter empty
    assert all(0 <= m.loading < 1 and m.memory > 1 for m in rows)
    many = go(small_state(), 1, images(400), batch_size=400)[0]
    mean = np.mean([many.loss_q1, many.loss_q2, many.loss_q3, many.loss_q4])
    assert abs(mean - many.loss) < 0.1 * many.loss  # quarters of about 100 images each


def test_measuring_changes_nothing():
    a, b = small_state(dropout=0.2), small_state(dropout=0.2)
    torch.manual_seed(4); want = torch.rand(1); torch.manual_seed(4)
    assert [m.step for m in measure(a, Schedule(cosine_betas(50)), images(), 3, **OPTIONS)] == [1, 2, 3] and a.step == 0
    assert torch.rand(1) == want
    go(a), go(b)
    for p, q in zip(a.denoiser.parameters(), b.denoiser.parameters()): assert torch.equal(p, q)


# ---------------------------------------------------------------- what a run says of itself

def test_a_folder_with_classes_and_bad_files_from_the_command_line():
    "Nested JPEG and PNG files of several sizes, two classes, a file that is no image: named, counted, passed over; a second start reads nothing again"
    from PIL import Image
    chance = np.random.default_rng(0)
    for i in range(24):
        f = Path('pictures', ('cats', 'dogs')[i % 2], f'deep{i % 3}', f'{i}.{("png", "jpg")[i % 2]}'); f.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(chance.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)).save(f)
    Path('pictures/cats/broken.jpg').write_bytes(b'no picture')
    words = ['run=run', 'data={name: folder, root: pictures, size: 16, subfolders: true, corrupt: skip, flip: true}', 'training.steps=6']
    _, err = finished('run=run', words[1].replace('skip', 'refuse'), status=2)
    assert 'broken.jpg' in err and not Path('run').exists()
    out, _ = finished(*words)
    assert '2 classes' in out and '1 files were skipped, such as cats/broken.jpg' in out
    [session] = json.loads(Path('run/manifest.json').read_text())['sessions']
    assert session['data_skipped'] == 1 and 'broken.jpg' in session['skipped'][0] and len(session['data_sha256']) == 64
    assert about_checkpoint('run')['classes'] == ['cats', 'dogs']
    kept = {f: f.stat().st_mtime_ns for f in Path('run/data').iterdir()}
    finished(*words, 'sampling.steps=3')
    assert kept == {f: f.stat().st_mtime_ns for f in Path('run/data').iterdir()} and kept


def test_the_budget_is_said_and_warned_of():
    out, _ = finished('run=run', 'training.steps=7')
    assert re_search(r'budget: about 0 min of training at [\d,]+ images/s; memory .* of .* GB .*checkpoints \d+ MB of .* free', out) and 'warning' not in out
    p = command('run=huge', 'training.steps=1000000000', 'keep=100000000', 'training.decay=constant')
    assert wait_for(lambda: lines('huge') > 2, p)
    p.send_signal(signal.SIGTERM); out, err = p.communicate(timeout=60)
    assert p.returncode == 130 and 'warning: the checkpoints will not fit on the disk' in out and re_search('about [\\d,.]+ days of training', out) and 'warning: that is long' in out


def test_the_doctor_from_the_command_line(capsys):
    finished('run=run', 'training.steps=60')
    train_command(['--diagnose', 'run'])
    said = capsys.readouterr().out
    assert any(v in said for v in ('learning', 'too early to tell')) and Path('run/diagnosis.png').stat().st_size > 10_000
    state, schedule = load_checkpoint('run')
    with torch.no_grad(): next(state.parameters())[0] = math.nan
    spoilt = TrainState(state); spoilt.step = 60
    save_checkpoint(checkpoints('run')[0], spoilt, schedule, about_checkpoint('run'))
    train_command(['--diagnose', 'run'])
    assert 'broken' in capsys.readouterr().out
    for words in ([], ['c.yaml', '--diagnose', 'run']):
        with pytest.raises(SystemExit) as e: train_command(words)
        assert e.value.code == 2
    with pytest.raises(SystemExit) as e: train_command(['--diagnose', 'nowhere'])
    assert e.value.code == 2 and 'nowhere' in capsys.readouterr().err


def test_sixteen_bits_learn_what_thirty_two_learn():
    "bf16 on the CPU: the loss agrees to the 3 digits that it has; the weights that are kept are float32"
    finished('run=half', 'training.steps=15', 'training.precision=bf16', 'network.dropout=0')
    finished('run=full', 'training.steps=15', 'network.dropout=0')
    half, full = ([float(r['loss']) for r in learned(run)] for run in ('half', 'full'))
    np.testing.assert_allclose(half, full, rtol=0.03)
    assert half != full and load_file(checkpoints('half')[0])['ema.stem.weight'].dtype == torch.float32


def test_tensorboard_has_the_curve_and_the_pictures():
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    finished('run=run', 'training.steps=20', 'preview_every=10', 'log=[tensorboard]')
    events = EventAccumulator(str(next(Path('run/logs').rglob('events*')).parent)); events.Reload()
    assert [e.step for e in events.Scalars('loss')] == [5, 10, 15, 20] and {'lr', 'grad_norm', 'images_per_second', 'memory'} <= set(events.Tags()['scalars'])
    assert [e.step for e in events.Images('samples')] == [e.step for e in events.Images('samples_raw')] == [10, 20]
    assert events.Scalars('loss')[0].value == pytest.approx(float(learned('run')[4]['loss']), rel=1e-5)


def test_live_plots_in_a_notebook(capsys):
    "In a notebook an updating picture; here, where none is, its name"
    from diffusion_scratch.run import train
    train(parse_config(SMALL | dict(run='run', training=SMALL['training'] | dict(steps=4))), progress=False, plot=True)
    assert 'IPython.core.display.HTML' in capsys.readouterr().out


# ---------------------------------------------------------------- networks and losses of one's own

MINE = '''
import torch
class MyNet(torch.nn.Module):
    def __init__(self, width=4): super().__init__(); self.a, self.b = torch.nn.Conv2d(1, width, 3, padding=1), torch.nn.Conv2d(width, 1, 3, padding=1)
    def forward(self, x, t, y=None): return self.b(torch.tanh(self.a(x)))
def my_weight(level): return 2 * torch.ones_like(level.snr)
NotANet = dict
'''


def test_a_network_and_a_loss_of_ones_own():
    Path('mine.py').write_text(MINE)
    finished('run=own', 'model=mine:MyNet', 'model_args={width: 6}', 'training.weight=mine:my_weight', 'training.steps=8')
    assert load_file(checkpoints('own')[0])['ema.a.weight'].shape == (6, 1, 3, 3)
    p = subprocess.run([BIN/'diffusion-sample', 'own', '--n', '4', '--steps', '3'], capture_output=True, text=True)
    assert p.returncode == 0 and p.stdout == 'own/samples_seed0.png\n', p.stderr


@pytest.mark.parametrize('words, message', [
    (['model=nowhere:Net'], 'model: nowhere:Net cannot be imported (No module named'), (['model=mine:Other'], "model: mine:Other cannot be imported (module 'mine' has no attribute"),
    (['model=mine:MyNet', 'model_args={depth: 3}'], "model_args: {'depth': 3} is not allowed for mine:MyNet"), (['model=mine:NotANet'], 'model: mine:NotANet is not a torch.nn.Module'),
    (['model=os:system', 'model_args={command: "echo > owned"}'], 'model: os:system is not a torch.nn.Module'), (['model=subprocess:run', 'model_args={args: [touch, owned]}'], 'model: subprocess:run is not'),
    (['data.flip=true'], 'data.flip: True is not allowed with data.name mnist_mini, for a mirrored digit is no digit'),
    (['model_args={width: 3}'], "model_args: {'width': 3} is not allowed with model unet"), (['training.weight=mine:none'], 'training.weight: mine:none cannot be imported'),
    (['model=os.system'], "model: 'os.system' is not allowed; allowed: unet, or module:name"), (['log=[wandb]'], 'log: wandb is not installed')])
def test_what_cannot_be_made_is_refused(words, message, capsys):
    Path('mine.py').write_text(MINE)
    before = sorted(map(str, Path('.').rglob('*')))
    with pytest.raises(SystemExit) as e: train_command(['c.yaml', 'run=bad', *words])
    err = capsys.readouterr().err
    assert e.value.code == 2 and message in err and 'Traceback' not in err, err
    assert sorted(p for p in map(str, Path('.').rglob('*')) if '__pycache__' not in p) == before


# ---------------------------------------------------------------- nonsense

def malformed(n=100):
    "YAML that is cut, twisted and mistyped, and well-formed YAML with wrong keys, types, ranges and sizes"
    chance, whole = random.Random(0), yaml.safe_dump(parse_config(SMALL).model_dump(mode='json'))
    values = ['', 'null', '[]', '{}', '-1', '0', '1e999', '.nan', 'yes', 'text', '[1, 2, 3]', '{a: 1}', '"\\0"', '99999999999999999999', '!!python/object/apply:os.system [touch owned]', '&a [*a]', "'\N{SNOWMAN}'", '2026-11-25']
    keys = [l.split(':')[0].strip() for l in whole.splitlines()]
    for i in range(n):
        if i % 4 == 0: yield whole[:chance.randrange(len(whole))] + '\n' + chance.choice(['{', '[', '"', '\t- x', '@x', '\x00', 'bad'])
        elif i % 4 == 1: yield f'{chance.choice(keys)}x{i}: {chance.choice(values)}\n' + whole
        elif i % 4 == 2: yield '\n'.join(f'{k}: {chance.choice(values)}' for k in chance.sample(['seed', 'threads', 'keep', 'data', 'network', 'training', 'sampling', 'schedule', 'log', 'model'], 4)) + '\nsave_every: -3'
        elif i % 8 == 3: yield chance.choice(['[' * 3000, 'a: !!map [1]', '!!map [[a, b]]', '!!set [a]', 'seed: !!int ""', 'x: !!bool q', 'x: !!timestamp z', 'x: 2026-99-99', '? [a, b]\n: c', '- a', '"text"', '? {a: b}\n: c'])
        else: yield chance.choice(['training', 'network', 'sampling', 'schedule', 'data']) + ': {' + ', '.join(f'k{j}: {chance.choice(values)}' for j in range(3)) + '}'


def test_a_hundred_malformed_configs(capsys):
    "Each gets a message and status 2; none a traceback, a file or a command that it smuggled in"
    for i, text in enumerate(malformed()):
        Path('bad.yaml').write_text(text, encoding='utf-8')
        before = sorted(os.listdir())
        with pytest.raises(SystemExit) as e: train_command(['bad.yaml', 'run=bad', 'training.steps=1'])
        err = capsys.readouterr().err
        assert e.value.code == 2 and err.startswith('error: ') and 'Traceback' not in err, (i, text, err)
        assert sorted(os.listdir()) == before, (i, text)
