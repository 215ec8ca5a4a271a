"""Faults of the world around a run: other processes, other people, disks and file systems. Each
test that is marked as a fault is a row of the table in the chapter on runs (`make faults`)"""
import errno, fcntl, json, os, random, shutil, signal, stat, subprocess, warnings
from functools import partial
from pathlib import Path
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load, save
from diffusion_scratch.checkpoint import (NO_SUM, checkpoints, newest_checkpoint, read_header,
                                          read_json, with_checksum)
from diffusion_scratch.cli import evaluate_command, train_command
from diffusion_scratch.config import load_config, make_data, parse_config
from diffusion_scratch.run import RunFolder, read_metrics, run_config, train
from helpers_damage import never_silent
from helpers_processes import Command
from helpers_training import assert_same_run, learned

pytestmark = pytest.mark.skipif(os.name == 'nt', reason='signals and limits of POSIX')
CONFIG = dict(device='cpu', threads=1, preview_every=10**6, save_every=7, log=[], run='run',
              parameterization='v', schedule=dict(name='cosine'),
              network=dict(channels=8, multipliers=[1], attention=[], unshuffle=2),
              training=dict(batch_size=8, ema=0.9, steps=30), sampling=dict(steps=2),
              data=dict(name='folder', root='pictures', size=8, channels=1))
LONG = 'training.steps=100000'
SLOW = '''
import time
from pathlib import Path
Path('looking').touch()
for _ in range(12_000):
    if Path('go').exists(): break
    time.sleep(0.01)
from diffusion_scratch.loss import v_weight
'''

def write_pictures(folder, seed=0, n=24):
    Path(folder).mkdir(parents=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 8, 8), np.uint8)
    for i, x in enumerate(pixels): Image.fromarray(x).save(f'{folder}/{i}.png')

@pytest.fixture(scope='module')
def finished_run(tmp_path_factory):
    "A folder with pictures and a run of 30 steps, with checkpoints at 21, 28 and 30 left"
    folder = tmp_path_factory.mktemp('finished')
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_pictures('pictures')
        Path('c.yaml').write_text(yaml.safe_dump(CONFIG))
        train(load_config('c.yaml'), progress=False)
    return folder

@pytest.fixture(autouse=True)
def here(finished_run, tmp_path, monkeypatch, one_thread):
    "A folder with pictures, a config and a module that is slow to import; `run` is not there"
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run/'pictures', 'pictures')
    shutil.copy(finished_run/'c.yaml', 'c.yaml')
    Path('slow.py').write_text(SLOW)

@pytest.fixture
def finished(finished_run, here):
    "With the finished run, too"
    shutil.copytree(finished_run/'run', 'run')
    return finished_run/'run'

def slow_start(*words):
    "A start that has looked at everything, and has written nothing yet"
    command = Command('c.yaml', 'training.weight=slow:v_weight', *words)
    command.wait_until(Path('looking').exists)
    return command

def contents(folder='run'):
    return {f: f.read_bytes() for f in sorted(Path(folder).rglob('*')) if f.is_file()}

def rows(): return Path('run/metrics.csv').exists() and len(read_metrics(Path('run/metrics.csv')))

# ---------------------------------------------------------------- several processes
@pytest.mark.fault('a second process starts in a folder while the first one prepares its run',
                   'it is refused in a line that names the first, and changes no file')
def test_who_looks_first_owns_the_folder():
    first = slow_start()
    said = Command('c.yaml', 'training.lr=0.001', 'seed=5').ends(2)
    assert f'run: another process is training in run (process {first.pid} on ' in said
    assert len(said.splitlines()) == 1
    assert {f.name for f in Path('run').iterdir()} == {'.lock', 'data'}
    Path('go').touch()
    first.ends()
    assert load_config('run/config.yaml').seed == 0 and rows() == 30
    assert not Path('run/.lock').exists() and not list(Path('run').rglob('*.damaged'))

@pytest.mark.fault('a start in a new folder fails, or is stopped by Ctrl-C, before its first step',
                   'it removes the folders and files that it made, and nothing else')
@pytest.mark.parametrize('failure', ['ctrl-c', 'batch'])
@pytest.mark.parametrize('others', [False, True])
def test_a_failed_start_removes_only_what_it_made(failure, others):
    if failure == 'ctrl-c':
        first = slow_start('run=deep/run')
        if others: Path('deep/letter.txt').write_text('dear')
        first.kill(signal.SIGINT).ends(130)
    else:
        if others: Path('deep').mkdir(); Path('deep/letter.txt').write_text('dear')
        assert 'batch_size: 6000' in Command(
            'c.yaml', 'run=deep/run', 'training.batch_size=6000').ends(2)
    assert not Path('deep/run').exists() and Path('deep').exists() == others

@pytest.mark.fault('two processes with other configs start in the folder of a run that starts',
                   'both are refused; the first trains to the same weights as without them')
def test_three_processes_one_fails_early_one_late(finished_run):
    first = slow_start('training.steps=30')
    early, late = Command('c.yaml', 'training.batch_size=6000'), Command('c.yaml', 'training.lr=1')
    for other in early, late: assert 'another process is training' in other.ends(2)
    Path('go').touch()
    first.ends()
    early = Command('c.yaml', 'training.batch_size=6000')
    before = contents()
    assert 'holds a run with another config (training.batch_size' in early.ends(2)
    assert contents() == before
    assert_same_run('run', finished_run/'run')

@pytest.mark.fault('three processes start in one folder at the same moment',
                   'one trains; each of the others is refused, or finds the run finished')
def test_three_at_once(finished_run):
    three = [Command('c.yaml') for _ in range(3)]
    for command in three: command.process.join(120)
    ended = [command.process.exitcode for command in three]
    assert 0 in ended and set(ended) <= {0, 2}, [c.said() for c in three]
    for command, status in zip(three, ended):
        assert (status == 2) == ('another process is training in run' in command.ends(status))
    assert_same_run('run', finished_run/'run')

@pytest.mark.fault('the process that owns the folder is killed (SIGKILL)',
                   'the system releases its lock; the same command trains to the end')
def test_a_lock_goes_with_its_process(finished_run):
    slow_start().kill(signal.SIGKILL)
    assert Path('run/.lock').exists()
    Command('c.yaml').ends()
    assert_same_run('run', finished_run/'run')

@pytest.mark.fault('a run of two processes starts in a folder that another process owns',
                   'both are refused, and neither waits for the other')
def test_processes_of_one_run_are_refused_together():
    first = slow_start()
    port = str(random.randint(20_000, 60_000))
    two = [Command('c.yaml', RANK=str(i), LOCAL_RANK=str(i), WORLD_SIZE='2', LOCAL_WORLD_SIZE='2',
                   MASTER_ADDR='127.0.0.1', MASTER_PORT=port) for i in range(2)]
    for command in two: assert 'another process is training in run' in command.ends(2)
    first.kill(signal.SIGKILL)

@pytest.mark.fault('a run is diagnosed, evaluated or drawn from while it trains',
                   'training goes on; config, manifest and the cache of images do not change')
@pytest.mark.parametrize('line, says', [
    ('--diagnose run', 'run/diagnosis.png'), ('sample run --n 2', 'run/samples_seed0.png'),
    ('evaluate run --n 8 --steps 2', 'run/evaluation_seed0/report.html')])
def test_looking_does_not_disturb(line, says):
    first = Command('c.yaml', LONG, 'data.size=28')
    first.wait_until(lambda: checkpoints('run'))
    def kept(): return contents('run/data'), *(Path('run', name).read_bytes()
                                               for name in ('config.yaml', 'manifest.json'))
    before = kept()
    assert says in Command(*line.split()).ends()
    assert first.process.is_alive() and kept() == before
    first.kill(signal.SIGTERM).ends(130)

# ---------------------------------------------------------------- folders and disks
PAUSE = '''
import time
from pathlib import Path
from diffusion_scratch.loss import v_weight
log = Path('run/metrics.csv')
def weight(level):  # waits after step 10 until the file `go` is there
    if log.exists() and log.read_bytes().count(b'\\n') > 10 and not Path('paused').exists():
        Path('paused').touch()
        for _ in range(12_000):
            if Path('go').exists(): break
            time.sleep(0.01)
    return v_weight(level)
'''

def paused_run(*words):
    "A run that waits after step 10, with a checkpoint of step 7, until `go` is there"
    Path('pause.py').write_text(PAUSE)
    command = Command('c.yaml', 'training.weight=pause:weight', *words)
    command.wait_until(Path('paused').exists)
    return command

@pytest.mark.fault('the folder of a run is removed while it trains',
                   'the next save creates it again, with all files but the image cache')
def test_a_folder_that_is_removed_is_made_again(finished_run):
    first = paused_run()
    shutil.rmtree('run')
    Path('go').touch()
    assert 'run was removed or replaced while the run went on; it is created again' in first.ends()
    assert_same_run('run', finished_run/'run')
    assert len(RunFolder(load_config('c.yaml')).sessions()) == 1
    names = lambda folder: {f.name for f in Path(folder).iterdir()}
    assert names('run') == names(finished_run/'run') - {'data'}
    Command('c.yaml', 'training.weight=pause:weight', 'training.steps=31').ends()

@pytest.mark.fault('the folder of a run is replaced by that of another run while it trains',
                   'the run stops with an error; the other run does not change')
def test_a_folder_that_is_replaced_is_left_alone(finished_run):
    first = paused_run()
    os.rename('run', 'moved')
    shutil.copytree(finished_run/'run', 'run')
    before = contents()
    Path('go').touch()
    said = first.ends(2)
    assert 'error: run was removed or replaced while the run went on: it now holds' in said
    assert 'The run stopped after step 14' in said and contents() == before

@pytest.mark.fault('the folder of checkpoints can no longer be written while the run trains',
                   'the run stops at the next save and prints how to go on')
def test_a_folder_that_cannot_be_written_any_more():
    first = paused_run()
    shutil.rmtree('run/checkpoints')
    os.symlink('/proc', 'run/checkpoints')
    Path('go').touch()
    said = first.ends(2)
    assert 'error: cannot write run/checkpoints/step_00000014.safetensors' in said
    assert 'Free some space or make the folder writable, then give the same command' in said

@pytest.mark.fault('a folder cannot be created or written',
                   'the start is refused in one line that names the folder')
@pytest.mark.parametrize('folder', ['/proc/run', 'c.yaml', 'c.yaml/run', 'nowhere'])
def test_a_folder_that_cannot_be_written(folder, capsys):
    os.symlink('missing', 'nowhere')
    with pytest.raises(SystemExit): train_command(['c.yaml', f'run={folder}'])
    err = capsys.readouterr().err
    assert err.startswith(f'error: run: {folder} cannot be written (') and err.count('\n') == 1

def poor_file_system(error):
    "A stand-in for a system that has no locks and cannot push folders to the disk"
    def no_locks(*_): raise OSError(error, os.strerror(error))
    def fsync(descriptor, real=os.fsync):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode): raise OSError(errno.EINVAL, 'no such thing')
        real(descriptor)
    fcntl.flock, os.fsync = no_locks, fsync

@pytest.mark.fault('the file system has no locks, and cannot flush folders to the disk',
                   'the command warns; a file that names the process is the lock')
@pytest.mark.parametrize('error', [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks(error, finished_run):
    poor = partial(poor_file_system, error)
    first = Command('c.yaml', 'training.weight=slow:v_weight', before=poor)
    first.wait_until(Path('looking').exists)
    said = Command('c.yaml', before=poor).ends(2)
    assert f'another process is training in run (process {first.pid} on ' in said
    assert 'If that process has ended, remove run/.lock' in said
    first.kill(signal.SIGKILL)
    said = Command('c.yaml', before=poor).ends()
    assert f'run is on a file system without locks ({os.strerror(error)})' in said
    assert_same_run('run', finished_run/'run')
    assert not list(Path('run').glob('.lock*'))

def test_a_lock_of_another_machine_stands_until_it_is_removed():
    Path('run').mkdir()
    owner = dict(host='elsewhere', pid=os.getpid(), started=0, since='2026-11-29')
    Path('run/.lock').write_text(json.dumps(owner))
    poor = partial(poor_file_system, errno.ENOLCK)
    assert 'on elsewhere, since 2026-11-29' in Command('c.yaml', before=poor).ends(2)
    Path('run/.lock').unlink()
    Command('c.yaml', before=poor).ends()

@pytest.fixture
def full_logs():
    "run/logs is a small disk, and it is full"
    Path('run/logs').mkdir(parents=True)
    mount = 'mount', '-t', 'tmpfs', '-o', 'size=16k', 'tmpfs', 'run/logs'
    if subprocess.run(mount, capture_output=True).returncode: pytest.skip('no right to mount')
    with pytest.raises(OSError), open('run/logs/full', 'wb', buffering=0) as f:
        while f.write(bytes(512)): pass
    yield
    subprocess.run(['umount', '-l', 'run/logs'], check=True)

@pytest.mark.fault('the disk is full when TensorBoard opens its file',
                   'the start is refused in one line; no other file is written but the image cache')
def test_a_full_disk_for_tensorboard(full_logs):
    said = Command('c.yaml', 'log=[tensorboard]').ends(2)
    assert {f.name for f in Path('run').iterdir()} <= {'logs', 'data'}
    assert 'error: log: tensorboard cannot write to run/logs (' in said and 'log=[]' in said
    assert 'No space left' in said and not Path('run/config.yaml').exists()

def test_no_place_for_tensorboard():
    Path('run').mkdir(); Path('run/logs').touch()
    said = Command('c.yaml', 'log=[tensorboard]').ends(2)
    assert 'error: log: tensorboard cannot write to run/logs (' in said
    assert not Path('run/config.yaml').exists()

@pytest.mark.fault('the folder of the logs is removed while the run trains',
                   'the run goes on without them, to the same weights')
def test_logs_that_are_removed_under_way(finished_run):
    first = paused_run('log=[tensorboard]', 'log_every=1')
    shutil.rmtree('run/logs')
    Path('go').touch()
    first.ends()
    assert_same_run('run', finished_run/'run')

# ---------------------------------------------------------------- records
def flipped(blob, at): return blob[:at] + bytes([blob[at] ^ 4]) + blob[at + 1:]
def without_lines(blob): return b''.join(blob.splitlines(True)[:20])

@pytest.mark.fault('metrics.csv is changed, cut, emptied or removed',
                   'the run goes on; valid rows are kept; the number of lost rows is printed')
@pytest.mark.parametrize('damage, lost', [
    (lambda blob: flipped(blob, 1000), 1), (lambda blob: flipped(blob, blob.index(b'\n5,') + 1), 1),
    (lambda blob: flipped(blob, 3), 0), (lambda blob: blob.replace(b'\n', b'\xff'), 30),
    (without_lines, 11), (lambda blob: without_lines(blob)[:-9], 12), (lambda blob: b'', 30),
    (None, 30)])
def test_damaged_metrics_never_stop_a_run(damage, lost, finished):
    file, whole = Path('run/metrics.csv'), learned('run')
    blob = damage(file.read_bytes()) if damage else None
    if damage: file.write_bytes(blob)
    else: file.unlink()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        train_command(['c.yaml', 'training.steps=32'])
    told = [str(w.message) for w in said if f'the lines of {lost} of 30' in str(w.message)]
    assert bool(told) == bool(lost)
    *kept, _, _ = learned('run')
    assert len(kept) == 30 - lost and all(row in whole for row in kept)
    if aside := [*Path('run').glob('metrics.csv.damaged')]:
        assert aside[0].read_bytes() == blob and str(aside[0]) in told[0]

def test_old_metrics_without_checksums_are_read_as_they_are(finished):
    "And numbers that are none are left out: once they stopped a healthy run"
    file, whole = Path('run/metrics.csv'), learned('run')
    lines = [line.rpartition(b',')[0] for line in file.read_bytes().splitlines()]
    lines[5] = lines[5].replace(b'.', b'*')
    file.write_bytes(b'\n'.join([*lines, b'']))
    with pytest.warns(UserWarning, match='the lines of 1 of 30 steps'):
        train_command(['c.yaml', 'training.steps=31'])
    assert learned('run')[:-1] == whole[:4] + whole[5:] and len(read_metrics(file)) == 30

@pytest.mark.fault('manifest.json is changed, cut, emptied or removed',
                   'the run goes on with the record in its newest checkpoint; a damaged file is '
                   'renamed')
@pytest.mark.parametrize('damage', [lambda blob: flipped(blob, 300), lambda blob: blob[:700],
                                    lambda blob: b'[]', lambda blob: b'', None])
def test_a_damaged_manifest_never_stops_a_run(damage, finished):
    file = Path('run/manifest.json')
    before = read_json(file)['sessions'][0]
    if damage: file.write_bytes(damage(file.read_bytes()))
    else: file.unlink()
    with pytest.warns(UserWarning, match='run/manifest.json.*1 sessions are known from the newest'):
        train_command(['c.yaml', 'training.steps=31'])
    assert Path('run/manifest.json.damaged').exists() == bool(damage)
    first, second = read_json(file)['sessions']
    before.pop('skipped')
    assert first == before and second['data_sha256'] == first['data_sha256']

@pytest.mark.fault('config.yaml of a run is edited, cut, overwritten or removed',
                   'the command warns and names the keys that differ; it uses the config in the '
                   'checkpoint')
@pytest.mark.parametrize('damage, message', [
    (lambda text: text.replace('steps: 2 ', 'steps: 5 '), 'sampling.steps: 2 there, 5 here'),
    (lambda text: text.replace('lr: 0.0002', 'lr: 0.5'), 'training.lr: 0.0002 there, 0.5 here'),
    (lambda text: text[:200], '.'), (lambda text: '\0', 'is not YAML'), (None, 'does not exist')])
def test_a_damaged_config_never_stops_a_run(damage, message, finished):
    file = Path('run/config.yaml')
    whole = file.read_text()
    if damage: file.write_text(damage(whole))
    else: file.unlink()
    with pytest.warns(UserWarning, match=f'run/config.yaml is not what this run wrote.*{message}'):
        assert run_config(Path('run')) == load_config('c.yaml')
    with pytest.warns(UserWarning, match=f'run/config.yaml is not what this run wrote.*{message}'):
        train_command(['c.yaml'])
    assert file.read_text() == whole

def without_record(run):
    "Make checkpoints those of an older version, which say nothing of config and data"
    for f in checkpoints(run):
        facts, blob = read_header(f)
        facts['about'].pop('run', None)
        header = {k: json.dumps(v) for k, v in facts.items()} | dict(sha256=NO_SUM)
        f.write_bytes(with_checksum(save(load(blob), header)))

def test_a_run_of_an_older_version_goes_on(finished, capsys):
    "Its config is that of config.yaml, its images those of the manifest, neither with a checksum"
    without_record('run')
    manifest = json.loads(Path('run/manifest.json').read_text())
    Path('run/manifest.json').write_text(json.dumps(dict(sessions=manifest['sessions'])))
    train_command(['c.yaml', 'training.steps=31'])
    assert newest_checkpoint('run')[1]['about']['run']['config']['training']['steps'] == 31
    without_record('run')
    for f in Path('pictures').iterdir(): f.unlink()
    Path('pictures').rmdir(); write_pictures('pictures', seed=1)
    def refused(message, *words):
        with pytest.raises(SystemExit): train_command(['c.yaml', *words])
        assert message in capsys.readouterr().err
    refused('data: the images are not those', 'training.steps=32')
    Path('run/config.yaml').unlink()
    refused('run: run holds a checkpoint, but not the config it was made with')

# ---------------------------------------------------------------- other pictures
@pytest.mark.fault('a run is diagnosed or evaluated from a folder where data.root is other images',
                   'it is refused; no file of the run changes')
def test_the_data_of_a_run_are_its_own(finished, tmp_path, monkeypatch, capsys):
    write_pictures('elsewhere/pictures', seed=1)
    before = contents()
    monkeypatch.chdir('elsewhere')
    for command, words in ((train_command, ['--diagnose', '../run']),
                           (evaluate_command, ['../run', '--n', '2'])):
        with pytest.raises(SystemExit): command(words)
        err = capsys.readouterr().err
        assert 'data: the images are not those that ../run was trained on' in err
        assert 'It was trained from' in err
    monkeypatch.chdir(tmp_path)
    assert contents() == before

@pytest.mark.fault('the images change, and the run is to go on or to be drawn again',
                   'it is refused; no file of the run changes but the image cache')
def test_other_pictures_are_refused_before_anything_is_replaced(finished, capsys):
    shutil.rmtree('pictures'); write_pictures('pictures', seed=1)
    before = {f: blob for f, blob in contents().items() if 'data' not in f.parts}
    words = 'sampling.steps=7', 'training.steps=40'
    with pytest.raises(SystemExit): train_command(['c.yaml', *words])
    assert 'data: the images are not those that run was trained on' in capsys.readouterr().err
    assert before == {f: blob for f, blob in contents().items() if 'data' not in f.parts}

# ---------------------------------------------------------------- every file, every bit
def strictly(read):
    "Let a warning count as an error"
    def strict():
        with warnings.catch_warnings():
            warnings.simplefilter('error', UserWarning)
            try: return read()
            except UserWarning as e: raise ValueError(str(e)) from None
    return strict

READERS = {  # a file that decides something -> who reads it
    'checkpoints/step_*.safetensors': lambda file, config: newest_checkpoint(file),
    'config.yaml': lambda file, config: run_config(config.run),
    'manifest.json': lambda file, config: RunFolder(config).sessions(),
    'metrics.csv': lambda file, config: str(RunFolder(config).metrics()),  # NaN is not itself
    'run.json': lambda file, config: read_json(file)}
DECIDE_NOTHING = {  # files that nobody reads again -> what they are
    '*.png': 'pictures', '*.gif': 'pictures that move',
    'data/decoded*': 'decoded images, made again where they are damaged: the test below',
    'logs/training/events.out.tfevents.*': 'curves for TensorBoard, which are also in metrics.csv'}

@pytest.mark.fault('in each checkpoint, config.yaml, manifest.json, metrics.csv and run.json: one '
                   'bit is flipped (200 times), or the end is cut off (30 times)',
                   'a warning or an error names the file, or the contents are read unchanged')
def test_no_file_of_a_run_is_believed_when_it_is_damaged():
    words = dict(run='run', log=['tensorboard'], preview_every=15)
    config = parse_config(CONFIG | words)
    train(config, progress=False)
    files, tried = [f for f in Path('run').rglob('*') if f.is_file()], set()
    for file in files:
        name = file.relative_to('run')
        if any(name.match(pattern) for pattern in DECIDE_NOTHING): continue
        patterns = [pattern for pattern in READERS if name.match(pattern)]
        assert patterns, f'{file} is new: who reads it, and how does it know that it is whole?'
        read = strictly(partial(READERS[patterns[0]], file, config))
        said = never_silent(file, read)
        tried.add(patterns[0])
        print(name, said)
    assert tried == {*READERS}

@pytest.mark.fault('in the cache of decoded images: one bit is flipped (200 times), or the end is '
                   'cut off (30 times)',
                   'the images are decoded again and do not change, or an error names the file')
def test_a_damaged_cache_is_made_again(finished):
    config = load_config('c.yaml')
    def images():
        data = make_data(config, progress=False, cache='run/data')
        return data.images.tolist(), data.skipped
    for file in Path('run/data').iterdir():
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            assert never_silent(file, images)['harmless']
