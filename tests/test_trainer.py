"""A trainer that can be trusted, from outside: real runs of the command line, killed, cut, shared
among processes and given nonsense"""
import json, math, os, random, re, resource, shutil, signal, subprocess, sys
from functools import partial
from pathlib import Path
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from diffusion_scratch.checkpoint import (about_checkpoint, checkpoints, load_checkpoint,
                                          newest_checkpoint, save_checkpoint)
from diffusion_scratch.cli import train_command
from diffusion_scratch.config import parse_config
from diffusion_scratch.run import train
from diffusion_scratch.training import TrainState
from helpers_processes import Command
from helpers_training import assert_same_run, learned, tensors

pytestmark = pytest.mark.skipif(os.name == 'nt', reason='signals and limits of POSIX')
BIN = Path(sys.executable).parent
TORCHRUN = BIN/'torchrun', '--nproc-per-node', '2'
SMALL = dict(device='cpu', threads=1, preview_every=10**6, save_every=7, log=[], log_every=5,
             parameterization='v', schedule=dict(name='cosine'),
             network=dict(channels=8, multipliers=[1], attention=[], unshuffle=4, dropout=0.1),
             training=dict(batch_size=8, ema=0.9, steps=400, warmup=20, adam=[0.9, 0.99]),
             sampling=dict(steps=2))

def small(steps): return SMALL | dict(training=SMALL['training'] | dict(steps=steps))
def write_config(config, folder='.'): Path(folder, 'c.yaml').write_text(yaml.safe_dump(config))

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    write_config(SMALL)

def no_file_above(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

def finished(*words, status=0, limit=None):
    "What the command says in a process of its own; `limit` is the largest file it may write"
    return Command('c.yaml', *words, before=limit and partial(no_file_above, limit)).ends(status)

def samples_from(run, *own):
    words = [BIN/'diffusion-sample', run, '--n', '2', '--steps', '2', *own]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout

def lines(run):
    try: return Path(run, 'metrics.csv').read_bytes().count(b'\n')
    except FileNotFoundError: return 0

def losses(run): return [float(row['loss']) for row in learned(run)]
def sessions(run): return json.loads(Path(run, 'manifest.json').read_text())['sessions']

def assert_says(pattern, text): assert re.search(pattern, text, re.S), text

# ---------------------------------------------------------------- killed
DEADLY = '''
import os, signal, sys
from diffusion_scratch.loss import v_weight
left = {what: int(os.environ.get(what, 0)) for what in ('STEP', 'FILE')}
def count(what):
    left[what] -= 1
    if left[what] == 0: os.kill(os.getpid(), signal.SIGKILL)
def weight(level): count('STEP'); return v_weight(level)
def look(event, args):
    if event in ('open', 'os.rename') and 'checkpoints/.part_' in str(args[0]): count('FILE')
sys.addaudithook(look)
'''
# the n-th loss that a process computes, or the n-th time that it opens or renames a new checkpoint
MOMENTS = [dict([moment]) for moment in (
    ('STEP', '2'), ('STEP', '9'), ('STEP', '30'), ('FILE', '2'), ('FILE', '3'), ('STEP', '11'),
    ('FILE', '5'), ('FILE', '1'), ('FILE', '6'), ('STEP', '25'))]

@pytest.mark.fault('a run is killed up to ten times (SIGKILL), once or more while it saves',
                   'the same command goes on; weights and records equal those of a run that was '
                   'never stopped')
def test_killed_at_ten_moments_one_of_them_inside_a_checkpoint():
    "In a step, or between a checkpoint's writing and its name: the same bits as never stopped"
    Path('deadly.py').write_text(DEADLY)
    words = 'c.yaml judge=0 training.steps=80 training.weight=deadly:weight'.split()
    unfinished = 0
    for moment in MOMENTS:
        killed = Command(*words, 'run=killed', **moment)
        killed.process.join(120)
        assert killed.process.exitcode == -signal.SIGKILL, (moment, killed.said())
        unfinished += any(Path('killed').rglob('.part_*'))
    assert unfinished >= 3 and 'going on after step' in Command(*words, 'run=killed').ends()
    Command(*words, 'run=whole').ends()
    assert len(learned('whole')) == 80 and not list(Path('killed').rglob('*part*'))
    assert_same_run('whole', 'killed')
    assert Path('whole/samples.png').read_bytes() == Path('killed/samples.png').read_bytes()
    told = sessions('killed')
    assert len(told) > 5 and told[-1]['after_step'] > 40
    assert len({s['data_sha256'] for s in told}) == 1

@pytest.fixture(scope='module')
def stopped_run(tmp_path_factory):
    "A folder with a run of 35 steps, with checkpoints at 21, 28 and 35 left"
    folder = tmp_path_factory.mktemp('stopped')
    write_config(small(35), folder)
    with pytest.MonkeyPatch.context() as patch: patch.chdir(folder); finished('run=run')
    return folder

@pytest.fixture
def stopped(stopped_run, tmp_path, monkeypatch):
    "A copy of that run, `run`, in the current folder"
    shutil.copytree(stopped_run, tmp_path/'copy')
    monkeypatch.chdir(tmp_path/'copy')
    return stopped_run

def flipped(blob, at): return blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1:]

@pytest.mark.fault('the newest checkpoint is changed, cut or emptied',
                   'it is renamed; the run goes on from the one before, to the same weights')
@pytest.mark.parametrize('damaged', [
    lambda blob: flipped(blob, len(blob) // 2), lambda blob: blob[:-100], lambda blob: b'',
    lambda blob: flipped(blob, blob.index(b'"step"') + 10)])
def test_a_damaged_newest_checkpoint_is_passed_over(damaged, stopped):
    newest, older, *_ = checkpoints('run')
    blob = damaged(newest.read_bytes())
    newest.write_bytes(blob)
    said = finished('run=run')
    for words in (f'{newest} is not a whole checkpoint', f'going back to {older.name}',
                  'going on after step 28 of 35'): assert words in said
    assert newest.with_suffix('.damaged').read_bytes() == blob
    assert_same_run(stopped/'run', 'run')

@pytest.mark.fault('the disk is full when a checkpoint or a line of metrics.csv is written',
                   'the run stops and prints how to go on; with more space it goes on to the same '
                   'weights')
def test_a_disk_that_fills_up_in_a_checkpoint_and_in_the_middle_of_a_line(stopped):
    "All that was there is whole, and a run made longer again and again is the longest one"
    write_config(small(100))
    err = finished('run=run', status=2, limit=60_000)
    assert_says(r'error: cannot write run/checkpoints/step_00000042.safetensors .*The run stopped '
                r'after step 42; its last checkpoint is run/checkpoints/step_00000035.safetensors. '
                r'Free some space.*same command', err)
    assert newest_checkpoint('run')[1]['step'] == 35 and not list(Path('run').rglob('.part_*'))
    finished('run=run', 'training.steps=90', 'save_every=90')
    err = finished('run=run', status=2, limit=Path('run/metrics.csv').stat().st_size + 130)
    assert_says(r'error: .*The run stopped after step 9\d; its last checkpoint is '
                r'run/checkpoints/step_00000090.safetensors. Free some', err)
    finished('run=run'); finished('run=whole')
    assert_same_run('whole', 'run')

@pytest.mark.fault('the last line of metrics.csv is incomplete',
                   'it is left out; the run goes on, and no row is lost')
@pytest.mark.parametrize('end', ['36', '36,1,0.5', '36,1,0.123,0.001,1,600,0.1,0.2,0.3,0.4,0.01,40',
                                 '\0' * 50])
def test_a_torn_line_of_records_is_left_out(end, stopped, capsys):
    "What a kill, a full disk or a power cut may leave at the end of metrics.csv"
    with open('run/metrics.csv', 'a') as f: f.write(end)
    train_command(['c.yaml', 'run=run'])
    assert 'going on after step 35' in capsys.readouterr().out
    assert learned('run') == learned(stopped/'run')

def test_a_lone_checkpoint_knows_no_config(stopped_run):
    "A config that happens to lie about is not read, and nothing that it names is imported"
    Path('config.yaml').write_text('model: os:system\nfoo: 3\n'); Path('a').mkdir()
    shutil.copy(checkpoints(stopped_run/'run')[0], 'a/alone.safetensors')
    assert samples_from('a/alone.safetensors') == 'a/samples_seed0.png\n'

# ---------------------------------------------------------------- one process and two
THREADS_AT_EXIT = """
import atexit
from contextlib import suppress
from pathlib import Path
from diffusion_scratch.cli import train_command
def names():
    for file in Path('/proc/self/task').glob('*/comm'):
        with suppress(OSError): yield file.read_text()  # it may have ended just now
atexit.register(lambda: print('gloo threads at exit:', sum('gloo' in n for n in names())))
train_command()
"""

def test_two_processes_learn_what_one_learns():
    """torchrun with gloo, in two goes: the same but for the order of sums; own dropout for each.
    No thread of the group is left at the end: it could abort the process while Python ends"""
    words, plain = ('training.steps=30', 'save_every=30'), 'network.dropout=0'
    half = 'network.dropout=0.5'
    for run, dropout in dict(one=plain, alone=half).items(): finished(f'run={run}', dropout, *words)
    one, files = tensors('one'), sorted(f.name for f in Path('one').iterdir())
    for run, more in dict(two=[plain, 'training.accumulate=2'], both=[half]).items():
        Path('train.py').write_text(THREADS_AT_EXIT)
        command = [*TORCHRUN, 'train.py', 'c.yaml', f'run={run}', *words, *more]
        env = dict(OMP_NUM_THREADS='1', MASTER_PORT=str(random.randint(20_000, 60_000)))
        p = subprocess.run(command, capture_output=True, text=True, env=os.environ | env)
        if p.returncode: pytest.fail(f'{p.stdout}\n{p.stderr}')  # all of it, should it happen
        assert p.stdout.count('Look at') == 1
        assert p.stdout.count('gloo threads at exit: 0') == 2, p.stdout
        assert sessions(run)[0]['processes'] == 2 and len(losses(run)) == 30
        assert sorted(f.name for f in Path(run).iterdir()) == files
        if half in more: break
        for k, w in tensors(run).items():
            if k.startswith('optimizer') or k.endswith('k.bias'): continue
            torch.testing.assert_close(w, one[k], rtol=0, atol=2e-6, msg=lambda m: f'{k}: {m}')
        np.testing.assert_allclose(losses(run), losses('one'), rtol=1e-4)
    np.testing.assert_allclose(losses('both'), losses('alone'), rtol=0.2)
    both, alone = tensors('both'), tensors('alone')  # other masks for half of each batch
    assert any((both[k] - w).abs().max() > 1e-3 for k, w in alone.items() if w.is_floating_point())

# ---------------------------------------------------------------- what a run says of itself
def save_noise(file, height, width, seed):
    x = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(x).save(file)

def test_a_folder_with_classes_and_bad_files_from_the_command_line():
    "Nested files, two classes, one that is no image; a second start reads no image again"
    for i in range(24):
        kind, ending = (('cats', 'png'), ('dogs', 'jpg'))[i % 2]
        save_noise(f'pictures/{kind}/deep{i % 3}/{i}.{ending}', 20 + i, 30, i)
    Path('pictures/cats/broken.jpg').write_bytes(b'no picture')
    data = ('data={name: folder, root: pictures, size: 16, subfolders: true, corrupt: skip, '
            'flip: true}')
    err = finished('run=run', data.replace('skip', 'refuse'), status=2)
    assert 'broken.jpg' in err and not Path('run').exists()
    words = 'run=run', data, 'training.steps=6'
    out = finished(*words)
    assert '2 classes' in out and '1 files were skipped, such as cats/broken.jpg' in out
    [session] = sessions('run')
    assert session['data_skipped'] == 1 and 'broken.jpg' in session['skipped'][0]
    assert len(session['data_sha256']) == 64
    assert about_checkpoint('run')['classes'] == ['cats', 'dogs']
    def cache(): return {f: f.stat().st_mtime_ns for f in Path('run/data').iterdir()}
    before = cache()
    finished(*words, 'sampling.steps=3')
    assert cache() == before and before

def test_the_budget_is_said_and_warned_of():
    out = finished('run=run', 'training.steps=7')
    out = '\n'.join(l for l in out.split('\n') if 'other programs' not in l)  # the tests' own
    assert_says(r'budget: about 0 min of training at [\d,]+ images/s; memory .* of .* GB '
                r'.*checkpoints \d+ MB of .* free', out)
    assert 'warning: ' not in out
    p = Command('c.yaml', 'run=huge', 'training.steps=1000000000', 'keep=100000000')
    p.wait_until(lambda: lines('huge') > 2)
    assert_says(r'about [\d,.]+ days of training.*warning: the checkpoints will not fit on the disk'
                '.*warning: that is long', p.kill(signal.SIGTERM).ends(130))

def test_the_doctor_from_the_command_line(stopped, capsys):
    train_command(['--diagnose', 'run'])
    said = capsys.readouterr().out
    assert any(v in said for v in ('learning', 'too early to tell'))
    assert Path('run/diagnosis.png').stat().st_size > 10_000
    denoiser, schedule = load_checkpoint('run')
    with torch.no_grad(): next(denoiser.parameters())[0] = math.nan
    spoilt = TrainState(denoiser)
    spoilt.step = 35
    save_checkpoint(checkpoints('run')[0], spoilt, schedule, about_checkpoint('run'))
    train_command(['--diagnose', 'run'])
    assert 'broken' in capsys.readouterr().out

def test_tensorboard_has_the_curve_and_the_pictures():
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    finished('run=run', 'training.steps=20', 'preview_every=10', 'log=[tensorboard]')
    events = EventAccumulator(str(next(Path('run/logs').rglob('events*')).parent)).Reload()
    def steps(read, name): return [e.step for e in read(name)]
    assert steps(events.Scalars, 'loss') == [5, 10, 15, 20]
    assert {'lr', 'grad_norm', 'images_per_second', 'memory'} <= {*events.Tags()['scalars']}
    assert steps(events.Images, 'samples') == steps(events.Images, 'samples_raw') == [10, 20]
    assert events.Scalars('loss')[0].value == pytest.approx(losses('run')[4], rel=1e-5)

def test_live_plots_in_a_notebook(capsys):
    "In a notebook an updating picture; here, where none is, its name"
    train(parse_config(small(4) | dict(run='run')), progress=False, plot=True)
    assert 'IPython.core.display.HTML' in capsys.readouterr().out

# ---------------------------------------------------------------- networks and losses of one's own
def test_a_network_and_a_loss_of_ones_own():
    Path('mine.py').write_text('''
import torch
class MyNet(torch.nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.a = torch.nn.Conv2d(1, width, 3, padding=1)
        self.b = torch.nn.Conv2d(width, 1, 3, padding=1)
    def forward(self, x, t, y=None): return self.b(torch.tanh(self.a(x)))
def my_weight(level): return 2 * torch.ones_like(level.snr)
''')
    finished('run=own', 'model=mine:MyNet', 'model_args={width: 6}', 'training.steps=8',
             'training.weight=mine:my_weight')
    assert tensors('own')['ema.a.weight'].shape == (6, 1, 3, 3)
    assert samples_from('own', '--model', 'mine:MyNet') == 'own/samples_seed0.png\n'
