"""The two commands from outside: the real console scripts, stopped and started again; and, in this process, what they write, refuse and leave alone."""
import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diffusion_scratch import cli
from diffusion_scratch import config as config_module
from diffusion_scratch.cli import as_text, draw, edit_command, export_command, sample_command, save_animation, save_loss_curve, train, train_command
from diffusion_scratch.config import Config, ConfigError, SamplingConfig, dump_config, load_config, parse_config
from diffusion_scratch.data import ImageSet, grid
from diffusion_scratch.denoiser import V, Denoiser, clipped
from diffusion_scratch.guidance import guided
from diffusion_scratch.pretrained import load
from diffusion_scratch.sampling import ancestral, fixed_large, sample
from diffusion_scratch.schedule import Schedule, cosine_betas
from diffusion_scratch.solvers import ddim, dpm_solver_pp, heun
from diffusion_scratch.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from diffusion_scratch.training import Metrics, TrainState, fit
from diffusion_scratch.unet import UNet

ROOT = Path(__file__).parent.parent
TINY = ['schedule.name=cosine', 'network={channels: 8, multipliers: [1], attention: []}', 'training.batch_size=8', 'sampling.steps=3', 'threads=1', 'device=cpu', 'training.ema=0.9', 'save_every=2']


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    "Each test in an empty folder, with 40 small images of 2 classes in the place of the 5,000 digits"
    monkeypatch.chdir(tmp_path)
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 2
    images = (torch.randint(0, 60, (40, 1, 8, 8), generator=g) + 190 * labels.view(-1, 1, 1, 1)).to(torch.uint8)  # dark ones and bright ones
    monkeypatch.setattr(config_module.datasets, 'mnist_mini', lambda: ImageSet(images, labels, ('dark', 'bright'), 'tiny'))


def tiny(run, steps=6, *overrides): return parse_config({}, [*TINY, f'run={run}', f'training.steps={steps}', *overrides])
def tensors(run): return load_file(checkpoints(run)[0])
def learned(run):
    "What metrics.csv says of each step, but for time and memory"
    timed = ('images_per_second', 'loading', 'memory')
    with open(f'{run}/metrics.csv', newline='') as f: return [{k: v for k, v in row.items() if k not in timed} for row in csv.DictReader(f)]
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
def files(folder='.'): return sorted(str(p) for p in Path(folder).rglob('*'))


def fails(command, line, capsys, status=2):
    "What a command that fails says, in the one place where it should"
    capsys.readouterr()
    with pytest.raises(SystemExit) as e: command(line)
    out, err = capsys.readouterr()
    assert e.value.code == status and 'Traceback' not in err
    return err


# ---------------------------------------------------------------- the real commands
def start(*words, cwd): return subprocess.Popen([str(w) for w in words], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | dict(OMP_NUM_THREADS='1', MKL_NUM_THREADS='1'))


def script(name): return Path(sys.executable).parent/name


def stopped(process, metrics, number, more_than=0):
    "Wait for some lines of metrics, then send a signal"
    deadline = time.time() + 300  # a busy machine takes a minute to import torch
    while time.time() < deadline and process.poll() is None and (not metrics.exists() or metrics.read_text().count('\n') < more_than + 4): time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.mark.skipif(os.name == 'nt', reason='signals of POSIX')
def test_stop_go_on_finish_and_sample(tmp_path, capsys):
    "SIGTERM and Ctrl-C save and say how to go on; the same command (here the script in examples/) goes on; diffusion-sample draws from what there is"
    (tmp_path/'c.yaml').write_text(dump_config(tiny('run', 100_000, 'network={channels: 8, multipliers: [1], attention: [], unshuffle: 4}')))
    command, run = [script('diffusion-train'), 'c.yaml'], tmp_path/'run'
    code, out, err = stopped(start(*command, cwd=tmp_path), run/'metrics.csv', signal.SIGTERM)
    assert code == 130 and 'Traceback' not in err and "ImageSet('mnist_mini': 5,000 images (1, 28, 28), 10 classes)" in out
    first = int(re.search(r'stopped after step ([\d,]+), saved in run/checkpoints/step_\d{8}.safetensors; the same command goes on from there', err)[1].replace(',', ''))
    assert 'loss ' in err and 'images/s' in err
    same_command = [sys.executable, ROOT/'examples'/'train.py', 'c.yaml']
    code, out, err = stopped(start(*same_command, cwd=tmp_path), run/'metrics.csv', signal.SIGINT, more_than=first)
    second = int(re.search(r'stopped after step ([\d,]+)', err)[1].replace(',', ''))
    assert code == 130 and f'going on after step {first:,} of 100,000' in out and second > first
    rows = np.loadtxt(run/'metrics.csv', delimiter=',', skiprows=1)
    assert rows[:, 0].tolist() == list(range(1, second + 1))
    assert not [f for f in files(run) if 'part' in f]

    p = start(script('diffusion-sample'), 'run', '--n', '6', '--labels', '7', '1', '--animation', cwd=tmp_path)
    out, err = p.communicate(timeout=300)
    assert p.returncode == 0 and out == 'run/samples_seed0.png\n'
    with Image.open(run/'samples_seed0.png') as im: assert im.size == (2 * (2 * 29 + 1), 2 * (3 * 29 + 1))
    with Image.open(run/'samples_seed0.gif') as im: assert im.n_frames == 4  # 3 steps have 4 moments


# ---------------------------------------------------------------- train
def test_a_whole_run_in_little(capsys):
    folder = train(tiny('run', 6, 'preview_every=3', 'judge=30'), progress=False)
    said = capsys.readouterr().out
    assert folder == Path('run')
    assert [f for f in files('run') if not f.startswith('run/logs/')] == sorted([
        'run/checkpoints', *(f'run/checkpoints/step_0000000{i}.safetensors' for i in (2, 4, 6)), 'run/config.yaml', 'run/logs', 'run/loss.png', 'run/manifest.json', 'run/metrics.csv',
        'run/noise_to_images.gif', 'run/previews', *(f'run/previews/step_00000{i}{raw}.png' for i in (3, 6) for raw in ('', '_raw')), 'run/run.json', 'run/samples.png'])
    for f in Path('run').iterdir(): assert str(f) in said
    assert len(list(Path('run/logs').rglob('events.out.tfevents.*'))) == 1
    assert load_config('run/config.yaml') == tiny('run', 6, 'preview_every=3', 'judge=30')
    result = json.loads(Path('run/run.json').read_text(encoding='utf-8'))
    assert result['steps'] == 6 and result['seed'] == 0 and result['threads'] == 1 and result['device'] == 'cpu' and result['command'] == 'diffusion-train run/config.yaml'
    assert result['readable'].endswith('of 30') and result['readable_real'] == '100.0% ± 0.0% of 40'
    assert result['readable'] + ' generated' in said and result['readable_real'] + ' real' in said
    header, *rows = Path('run/metrics.csv').read_text().splitlines()
    assert header == 'step,epoch,loss,lr,grad_norm,images_per_second,loss_q1,loss_q2,loss_q3,loss_q4,loading,memory' and len(rows) == 6 and rows[5].startswith('6,1,')
    with Image.open('run/samples.png') as im: assert im.size == (2 * (10 * 9 + 1), 2 * (2 * 9 + 1))  # a row of 10 for each class


def test_a_row_for_each_class(monkeypatch):
    "An oracle that paints its label: the grid has a row for each, and any first part of the images has all classes"
    class Painter(torch.nn.Module):
        num_classes = 2
        def forward(self, x, t, y=None): return torch.zeros_like(x) if y is None else (y.view(-1, 1, 1, 1) * 1.6 - 0.8).expand_as(x)  # predicts x0
    c = tiny('run', 6, 'parameterization=x0', 'sampling.guidance=0')
    data, schedule = cli.make_data(c), cli.make_schedule(c)
    run, state = cli._Run(c), type('State', (), dict(step=6))
    state.ema = state.denoiser = Denoiser(Painter(), cli.make_denoiser(c, data).parameterization)
    state.denoiser.register_parameter('home', torch.nn.Parameter(torch.zeros(1)))
    seen = []
    monkeypatch.setattr(cli, '_judge', lambda images, data: seen.append(images) or {})
    run.open(dict(date='2026-11-25'))
    cli._finish(cli._Run(tiny('run', 6, 'parameterization=x0', 'sampling.guidance=0', 'judge=7')), state, schedule, data, False)
    pixels = np.asarray(Image.open('run/samples.png').convert('L'))
    top, bottom = pixels[2:18], pixels[20:36]
    assert len(np.unique(top)) == len(np.unique(bottom)) == 2  # one gray and the line between
    assert top.min() < 30 and bottom.max() > 220
    assert seen[0].mean((1, 2, 3)).sign().tolist() == [-1, 1, -1, 1, -1, 1, -1]


@pytest.mark.parametrize('where', [1, 3, 4])
def test_killed_and_gone_on_is_the_same_run(where, monkeypatch):
    "Killed without a warning, before the first checkpoint (at step 2), after it, or with it: the end is the same to the last bit"
    train(tiny('whole'), progress=False)
    def killed(state, *a, **k):
        for m in fit(state, *a, **k):
            yield m
            if m.step == where: raise MemoryError('as good as a power cut')
    with monkeypatch.context() as mp:
        mp.setattr(cli, 'fit', killed)
        with pytest.raises(MemoryError): train(tiny('killed'), progress=False)
    assert bool(checkpoints('killed')) == (where >= 2)
    train(tiny('killed'), progress=False)
    assert same(tensors('whole'), tensors('killed'))
    assert Path('whole/samples.png').read_bytes() == Path('killed/samples.png').read_bytes()
    assert learned('whole') == learned('killed')


def test_ctrl_c_in_a_notebook(monkeypatch):
    "The step is finished, saved and said; handlers and threads are as they were"
    handlers, threads = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)], torch.get_num_threads()
    def pressed(state, *a, **k):
        for m in fit(state, *a, **k):
            if m.step == 3: os.kill(os.getpid(), signal.SIGINT)
            yield m
    monkeypatch.setattr(cli, 'fit', pressed)
    with pytest.raises(KeyboardInterrupt, match='stopped after step 3, saved in run.checkpoints.step_00000003.safetensors; the same command goes on from there'): train(tiny('run', 6, 'threads=2'), progress=False)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers and torch.get_num_threads() == threads
    assert len(Path('run/metrics.csv').read_text().splitlines()) == 1 + 3


def test_a_second_signal_stops_at_once():
    with pytest.raises(KeyboardInterrupt), cli._stop_signals() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked == [signal.SIGINT]
        os.kill(os.getpid(), signal.SIGINT)


def test_a_finished_run_is_drawn_again_and_not_trained(capsys):
    train(tiny('run'), progress=False)
    weights, picture, records = tensors('run'), Path('run/samples.png').read_bytes(), Path('run/metrics.csv').read_bytes()
    train(tiny('run', 6, 'sampling.steps=5', 'sampling.guidance=3', 'preview_every=7'), progress=False)
    assert 'going on after step 6 of 6' in capsys.readouterr().out
    assert same(weights, tensors('run')) and records == Path('run/metrics.csv').read_bytes() and picture != Path('run/samples.png').read_bytes()
    assert load_config('run/config.yaml').sampling.steps == 5


def test_training_longer(capsys):
    "Where the learning rate knows nothing of the end, a run can be made longer, and is the longer run; it cannot be made shorter"
    train(tiny('whole', 6), progress=False); train(tiny('grown', 4), progress=False); train(tiny('grown', 6), progress=False)
    assert same(tensors('whole'), tensors('grown'))
    before = {f: Path(f).read_bytes() for f in files('grown') if Path(f).is_file()}
    with pytest.raises(ConfigError, match='training.steps: 5 is not allowed; allowed: whole number >= 6, for so many are done in grown'): train(tiny('grown', 5), progress=False)
    train(tiny('cosine', 4, 'training.decay=cosine'), progress=False)
    with pytest.raises(ConfigError, match='training.steps: 4 there, 6 here'): train(tiny('cosine', 6, 'training.decay=cosine'), progress=False)
    assert before == {f: Path(f).read_bytes() for f in files('grown') if Path(f).is_file()}


def test_a_folder_with_another_run():
    train(tiny('run'), progress=False)
    before = {f: Path(f).read_bytes() for f in files('run') if Path(f).is_file()}
    with pytest.raises(ConfigError, match=r'run: run holds a run with another config \(parameterization: eps there, v here, training.lr: 0.0002 there, 0.5 here\)'):
        train(tiny('run', 6, 'training.lr=0.5', 'parameterization=v'), progress=False)
    Path('run/config.yaml').write_text('seed: none\n')
    with pytest.raises(ConfigError, match="run: run holds a checkpoint, but not the config it was made with .seed: 'none' is not allowed"): train(tiny('run'), progress=False)
    Path('run/config.yaml').unlink()
    with pytest.raises(ConfigError, match='run: run holds a checkpoint, but not the config'): train(tiny('run'), progress=False)
    del before['run/config.yaml']
    assert before == {f: Path(f).read_bytes() for f in files('run') if Path(f).is_file()}


def test_a_folder_where_nothing_was_saved_is_free_for_another_config():
    "Nothing to lose there: a run that was killed before its first checkpoint does not stand in the way"
    first = cli._Run(tiny('run')); first.open(dict(date='2026-11-25')); first.close()
    Path('run/metrics.csv').write_text('step,epoch,loss,lr,grad_norm,images_per_second\n1,0,0.5,1,1,1\n2,0,0.')  # killed while writing
    Path('run/previews/step_000001.png').write_bytes(b'')
    train(tiny('run', 3, 'training.lr=0.001'), progress=False)
    assert load_config('run/config.yaml').training.lr == 0.001
    assert len(Path('run/metrics.csv').read_text().splitlines()) == 1 + 3 and not list(Path('run/previews').iterdir())


def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(monkeypatch, capsys):
    def diverging(state, *a, **k):
        for m in fit(state, *a, **k):
            yield m
            if m.step == 3: state.update(next(state.denoiser.parameters()).sum() * float('nan'), 1e-3, 1.)
    monkeypatch.setattr(cli, 'fit', diverging)
    Path('c.yaml').write_text(dump_config(tiny('run')))
    said = fails(train_command, ['c.yaml'], capsys)
    assert 'step 4' in said and 'nan' in said
    denoiser, _ = load_checkpoint('run')
    assert all(p.isfinite().all() for p in denoiser.parameters()) and 'run/samples.png' not in files('run')
    assert len(Path('run/metrics.csv').read_text().splitlines()) == 1 + 3


@pytest.mark.parametrize('words, message', [
    ('no.yaml', 'no.yaml does not exist'), ('c.yaml data.name=cifar', "data.name: 'cifar' is not allowed; allowed: mnist_mini, mnist, cifar10, folder. Did you mean cifar10?"),
    ('c.yaml training.batch_size=41', 'training.batch_size: 41 is not allowed; allowed: whole number >= 1 and <= 40'), ('c.yaml device=warp', "device: 'warp' is not here; allowed: auto, cpu"),
    ('c.yaml device=cuda:99', "device: 'cuda:99' is not here; allowed: auto, cpu"), ('c.yaml device=meta', "device: 'meta' is not here"),
    ('c.yaml run=c.yaml', 'run: c.yaml cannot be written (Not a directory)'), ('c.yaml run=c.yaml/deep/er', 'run: c.yaml/deep/er cannot be written (Not a directory)'),
    ('c.yaml data={name:\tfolder}', 'data is not YAML'), ('c.yaml data={name: folder, root: nowhere}', 'nowhere is not a folder'), ('c.yaml data={name: folder, root: empty}', 'empty holds no files'),
    ('c.yaml data={name: folder, root: texts}', 'is not an image that can be read'), ('c.yaml network.multipliers=[1,1,1,1,1]', 'network.multipliers: 5 levels')])
def test_bad_input_leaves_nothing_behind(words, message, capsys):
    Path('c.yaml').write_text(dump_config(tiny('run')))
    Path('empty').mkdir(); Path('texts').mkdir(); Path('texts/a.png').write_text('not a picture')
    before = files()
    said = fails(train_command, words.split(' ', 1), capsys)
    assert re.search('^error: ', said, re.M) and message in said
    assert files() == before


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may write everywhere')
def test_an_unwritable_folder(capsys):
    Path('locked').mkdir(mode=0o500)
    Path('c.yaml').write_text(dump_config(tiny('locked/run')))
    assert 'run: locked/run cannot be written (Permission denied)' in fails(train_command, ['c.yaml'], capsys)


def test_a_folder_that_the_system_refuses(monkeypatch, capsys):
    "The same for root, who may write everywhere: the system says no"
    def refuse(dir): raise PermissionError(13, 'Permission denied', str(dir))
    monkeypatch.setattr(cli.tempfile, 'TemporaryFile', refuse)
    with pytest.raises(ConfigError, match=r'run: run cannot be written \(Permission denied\)'): train(tiny('run'), progress=False)
    assert not files()


def test_colour_images_without_labels(capsys):
    "A folder of pictures: colour, not square, no classes, no judge"
    Path('pictures').mkdir()
    rng = np.random.default_rng(0)
    for i in range(8): Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(f'pictures/{i}.png')
    train(tiny('run', 2, 'data={name: folder, root: pictures, size: [8, 12]}', 'judge=10', 'preview_every=2'), progress=False)
    with Image.open('run/samples.png') as im: assert im.mode == 'RGB' and im.size == (2 * (8 * 13 + 1), 2 * (8 * 9 + 1))
    with Image.open('run/noise_to_images.gif') as im: assert im.n_frames == 4
    assert 'readable' not in json.loads(Path('run/run.json').read_text())
    assert 'allowed: none, for this model learned no classes' in fails(sample_command, 'run --labels 1'.split(), capsys)
    assert '--class: 1 is not allowed; allowed: none, for this model learned no classes; leave it out' in fails(sample_command, 'run --class 1'.split(), capsys)
    sample_command('run --n 5 --out new/grid.png'.split())
    with Image.open('new/grid.png') as im: assert im.size == (2 * (3 * 13 + 1), 2 * (2 * 9 + 1))


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path/'home')); (tmp_path/'home').mkdir()
    assert cli._Run(tiny('~/runs/x')).path == tmp_path/'home'/'runs'/'x'


def test_what_a_terminal_shows(monkeypatch):
    class Terminal(io.StringIO):
        encoding = 'UTF-8'
        def isatty(self): return True
    with monkeypatch.context() as mp:
        mp.setattr(sys, 'stdout', Terminal())
        train(tiny('run', 2, 'preview_every=2'), progress=False)
        shown = sys.stdout.getvalue()
    dots = [line for line in shown.splitlines() if line and all(0x2800 <= ord(c) < 0x2900 for c in line)]
    assert len(dots) == 2 and all(len(line) == 2 * 4 for line in dots) and 'preview: run/previews/step_000002.png' in shown  # two images of 8 x 8
    Terminal.encoding = 'cp1252'
    monkeypatch.setattr(sys, 'stdout', Terminal())
    assert cli._dots(torch.zeros(1, 1, 8, 8)) == ''


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as e: train_command(['--help'])
    said = capsys.readouterr().out
    assert e.value.code == 0 and dump_config(Config()) in said and 'diffusion-train configs/quickstart.yaml' in said
    with pytest.raises(SystemExit): sample_command(['--help'])
    said = capsys.readouterr().out
    for option in ('--n', '--labels', '--steps', '--guidance', '--seed', '--out', '--animation', '--raw', '--device', 'examples:', 'google/ddpm-ema-celebahq-256'): assert option in said


# ---------------------------------------------------------------- draw and sample
@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(1, 8, (1, 2), 1, (), 0.5, num_classes=2)
        for p in net.parameters(): torch.nn.init.normal_(p, std=0.1)  # the fresh network's output is nearly zero
    return Denoiser(net, V), Schedule(cosine_betas(50))


def test_draw_is_sample_with_the_configs_choices(model):
    denoiser, schedule = model
    y = torch.tensor([0, 1, 1])
    s = SamplingConfig(steps=6, guidance=2., variance='fixed_large', clip=True)
    [frame] = draw(denoiser, schedule, (1, 8, 8), 3, y, s, seed=4, progress=False)
    expected = sample(clipped(guided(denoiser, y, 2.)), schedule, (3, 1, 8, 8), step=ancestral(fixed_large), times=schedule.times(6), seed=4, progress=False)
    assert torch.equal(frame.x, expected) and frame.t == 0
    [free] = draw(denoiser, schedule, (1, 8, 8), 3, None, SamplingConfig(steps=6, clip=False), seed=4, progress=False)
    assert torch.equal(free.x, sample(denoiser, schedule, (3, 1, 8, 8), times=schedule.times(6), seed=4, progress=False))
    assert denoiser.training  # no footprints


def test_draw_does_not_depend_on_the_batch(model):
    denoiser, schedule = model
    y = torch.arange(7) % 2
    a, b = (draw(denoiser, schedule, (1, 8, 8), 7, y, SamplingConfig(steps=5, batch_size=n), seed=1, moments=3, progress=False) for n in (7, 3))
    assert [f.t for f in a] == [f.t for f in b] == [50, 30, 0]  # of 50, 40, 30, 20, 10, 0 the first, one in the middle, the last
    for f, g in zip(a, b): assert f.x.shape == (7, 1, 8, 8) and torch.allclose(f.x, g.x, atol=1e-4) and torch.allclose(f.x0, g.x0, atol=1e-4)


@pytest.mark.parametrize('moments', [1, 2, 6, 50])
def test_draw_keeps_no_more_than_it_was_asked(model, moments):
    frames = draw(*model, (1, 8, 8), 2, None, SamplingConfig(steps=5), moments=moments, progress=False)
    assert len(frames) == min(moments, 6) and frames[-1].t == 0 and (moments == 1 or frames[0].t == 50)


@pytest.mark.parametrize('solver, step', [('ancestral', ancestral()), ('ddim', ddim()), ('dpm++', dpm_solver_pp()), ('dpm++sde', dpm_solver_pp(eta=1.)), ('heun', heun())])
def test_draw_by_every_solver(model, solver, step):
    denoiser, schedule = model
    frames = draw(denoiser, schedule, (1, 8, 8), 3, None, SamplingConfig(steps=5, solver=solver), seed=1, moments=6, progress=False)
    assert [f.t for f in frames] == [50, 40, 30, 20, 10, 0]
    assert torch.equal(frames[-1].x, sample(clipped(denoiser), schedule, (3, 1, 8, 8), step=step, times=schedule.times(5), seed=1, progress=False))


@pytest.fixture
def run():
    train(tiny('run', 2), progress=False)
    return Path('run')


def test_sample_command(run, capsys):
    sample_command('run --n 6 --seed 9'.split())
    assert capsys.readouterr().out == 'run/samples_seed9.png\n'
    denoiser, schedule = load_checkpoint('run')
    expected = draw(denoiser, schedule, (1, 8, 8), 6, torch.arange(6) % 2, SamplingConfig(steps=3), seed=9, progress=False)[-1].x
    assert np.array_equal(np.asarray(Image.open('run/samples_seed9.png')), np.asarray(grid(expected, 2, scale=2)))
    sample_command(f'{checkpoints(run)[0]} --n 6 --seed 9 --class bright --guidance 4 --steps 2 --solver ddim --raw --out a.png'.split())
    denoiser, schedule = load_checkpoint('run', ema=False)
    expected = draw(denoiser, schedule, (1, 8, 8), 6, torch.ones(6, dtype=torch.long), SamplingConfig(steps=2, solver='ddim', guidance=4.), seed=9, progress=False)[-1].x
    assert np.array_equal(np.asarray(Image.open('a.png')), np.asarray(grid(expected, 3, scale=2)))


@pytest.mark.parametrize('words, message', [
    ('nowhere', 'nowhere is no path here and no name that is known'), ('empty', 'empty holds no model; allowed: a run of diffusion-train'), ('text.safetensors', 'text.safetensors is not a whole checkpoint'),
    ('foreign.safetensors', 'foreign.safetensors does not say how large its images are'), ('run --n 0', '--n: 0 is not allowed; allowed: whole number >= 1'),
    ('run --labels dark grey', '--labels: grey is not allowed; allowed: dark, bright'), ('run --class dark grey', '--class: grey is not allowed; allowed: dark, bright'), ('run --steps 0', 'steps: 0 is not allowed; allowed: whole number >= 1'),
    ('run --steps 1001', '--steps: 1001 is not allowed; allowed: whole number >= 1 and <= 1000'), ('run --guidance -3', 'guidance: -3.0 is not allowed; allowed: number >= -1'),
    ('run --solver dpm', "solver: 'dpm' is not allowed; allowed: ancestral, ddim, dpm++, dpm++sde, heun. Did you mean dpm++?"), ('run --guidance nan', 'guidance: nan is not allowed'), ('run --device warp', "device: 'warp' is not here"), ('run --out grid.jpeg', '--out: grid.jpeg is not allowed; allowed: a name that ends in .png'),
    ('run --out text.safetensors/a.png', '--out: text.safetensors cannot be written (Not a directory)'), ('run --seed -1', 'seed = -1 is outside')])
def test_sample_command_refuses(run, words, message, capsys):
    Path('empty').mkdir(); Path('text.safetensors').write_text('hello' * 100)
    state = TrainState(Denoiser(UNet(1, 8, (1,), 1, ()), V))
    save_checkpoint('foreign.safetensors', state, Schedule(cosine_betas(10)))
    before = files()
    assert message in fails(sample_command, words.split(), capsys)
    assert files() == before


def test_a_labelled_model_without_guidance_and_one_without_labels(run, capsys):
    train(tiny('plain', 2, 'network.labels=false'), progress=False); capsys.readouterr()
    assert '--guidance: 2.0 is not allowed; allowed: 0, for this model learned no classes' in fails(sample_command, 'plain --guidance 2'.split(), capsys)
    sample_command('plain --n 2'.split())
    assert Image.open('plain/samples_seed0.png').size == (2 * 19, 2 * 10)


# ---------------------------------------------------------------- export

def test_exported_folder_draws_the_same_images(run, capsys):
    export_command('run --to folder kept'.split())
    assert capsys.readouterr().out == 'kept\n'
    sample_command('run --n 4 --out a.png'.split()); sample_command('kept --n 4 --out b.png'.split())
    assert np.array_equal(np.asarray(Image.open('a.png')), np.asarray(Image.open('b.png')))
    export_command('run --raw --to folder kept'.split())       # a model of ours is replaced
    raw, kept = load_checkpoint('run', ema=False)[0].net.state_dict(), load('kept')[0].net.state_dict()
    assert same(raw, kept)
    export_command('kept --half --to folder half'.split())
    assert load_file('half/model.safetensors')['stem.weight'].dtype == torch.float16


@pytest.mark.parametrize('label, index', [(None, -1), ('bright', 1)])
def test_exported_pipeline_is_the_network_at_that_label(run, label, index):
    diffusers = pytest.importorskip('diffusers')
    export_command(['run', '--to', 'diffusers', 'pipe', *(['--label', label] if label else [])])
    net, pipe = load_checkpoint('run')[0].net, diffusers.DDPMPipeline.from_pretrained('pipe')
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 700])
    with torch.no_grad(): ours, theirs = net(x, t, torch.full((2,), index)), pipe.unet(x, t - 1).sample
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-6)  # float32, sums in another order
    assert pipe.scheduler.config.prediction_type == 'epsilon' and pipe.scheduler.config.clip_sample


def test_exported_onnx_is_the_network(run):
    onnxruntime = pytest.importorskip('onnxruntime'); pytest.importorskip('onnxscript')
    export_command('run --to onnx net.onnx'.split())
    net, session = load_checkpoint('run')[0].net, onnxruntime.InferenceSession('net.onnx')
    x, t, y = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 30, 1000]), torch.tensor([0, 1, -1])
    with torch.no_grad(): ours = net(x, t, y)
    [theirs] = session.run(None, dict(x=x.numpy(), t=t.numpy(), y=y.numpy()))
    torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('words, message', [
    ('nowhere --to folder a', 'nowhere is no path here and no name that is known'), ('run --to folder b', 'b is there already'),
    ('run --to onnx a', 'a is not allowed; allowed: a file that ends in .onnx'), ('run --to diffusers a --label grey', '--label: grey is not allowed; allowed: dark, bright'),
    ('run --to onnx a.onnx --label dark', '--label goes with --to diffusers, not with --to onnx'), ('run --to diffusers a --half', '--half goes with --to folder, not with --to diffusers'),
    ('run --to folder run/metrics.csv/a', 'cannot write run/metrics.csv/a'), ('run --to tensorflow a', "invalid choice: 'tensorflow'")])
def test_export_command_refuses(run, words, message, capsys):
    Path('b').mkdir(); Path('b/notes.txt').write_text('mine')
    before = files()
    assert message in fails(export_command, words.split(), capsys)
    assert files() == before


# ---------------------------------------------------------------- edit

@pytest.fixture
def picture():
    "8 x 8 bytes, and a mask whose white half is to be drawn anew"
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save('picture.png')
    mask = np.zeros((8, 8), np.uint8); mask[4:] = 255
    Image.fromarray(mask).save('mask.png')
    return pixels


def cells(file, n):
    "The pictures in a row of a grid, one pixel for each of theirs"
    a = np.asarray(Image.open(file).convert('L'))[::2, ::2]
    return [a[1:9, 1 + 9 * i:9 + 9 * i] for i in range(n)]


@pytest.mark.parametrize('more', ['', '--solver dpm++ --class dark --guidance 1', '--solver ddim --repeats 3', '--solver heun --strength 0.4', '--repeats 2'])
def test_what_the_mask_keeps_is_kept_to_the_last_bit(run, picture, more):
    edit_command(f'run picture.png --mask mask.png --n 3 --seed 1 {more}'.split())
    original, *drawn = cells('picture_edited.png', 4)
    assert np.array_equal(original, picture) and len(drawn) == 3
    for d in drawn: assert np.array_equal(d[:4], picture[:4]) and not np.array_equal(d[4:], picture[4:])
    assert not np.array_equal(drawn[0], drawn[1])


def test_a_little_strength_changes_little(run, picture):
    change = {}
    for strength in ('0.001', '0.3', '1'):
        edit_command(f'run picture.png --n 2 --strength {strength} --out s.png --steps 50'.split())
        original, *drawn = cells('s.png', 3)
        change[strength] = np.abs(np.stack(drawn).astype(float) - original).mean()
    assert change['0.001'] < 4 < change['0.3'] < change['1']  # t = 1 of 1,000 adds a std of 0.6 % of the range, and one step takes most of it off


def test_versions_depend_on_the_seed_and_their_number(run, picture):
    edit_command('run picture.png --n 2 --seed 5 --out a.png'.split()); edit_command('run picture.png --n 4 --seed 5 --out b.png'.split())
    for a, b in zip(cells('a.png', 3), cells('b.png', 3)): assert np.abs(a.astype(int) - b).max() <= 1  # sums in another order


@pytest.mark.parametrize('words, message', [
    ('nowhere picture.png', 'nowhere is no path here and no name that is known'), ('run gone.png', 'picture: gone.png cannot be read (No such file or directory); give an image file'),
    ('run picture.png --mask text.txt', '--mask: text.txt cannot be read (it is in no format that Pillow knows)'), ('run picture.png --strength 0', '--strength: 0.0 is not allowed; allowed: number > 0 and <= 1'),
    ('run picture.png --strength nan', '--strength: nan is not allowed'), ('run picture.png --repeats 0', 'repeats = 0 must'), ('run picture.png --n 0', '--n: 0 is not allowed'),
    ('run picture.png --class grey', '--class: grey is not allowed; allowed: dark, bright'), ('run picture.png --label grey', '--label: grey is not allowed; allowed: dark, bright'), ('run picture.png --solver euler', "solver: 'euler' is not allowed"),
    ('run picture.png --guidance 3', '--guidance: 3.0 goes with --class, the class to draw; allowed: dark, bright; give --class too, or leave --guidance out'), ('plain picture.png --guidance 3', '--guidance: 3.0 is not allowed; allowed: 0, for this model learned no classes')])
def test_edit_command_refuses(run, picture, words, message, capsys):
    Path('text.txt').write_text('no image')
    if words.startswith('plain'): train(tiny('plain', 2, 'network.labels=false'), progress=False)
    before = files()
    assert message in fails(edit_command, words.split(), capsys)
    assert files() == before


def paint(file, h, w, white=np.s_[:0], value=255, **how):
    "A black picture with a part of it white"
    pixels = np.zeros((h, w), np.uint8); pixels[white] = value
    Image.fromarray(pixels).save(file, **how)


def turned():
    "Metadata of a picture that lies on its side"
    exif = Image.Exif(); exif[0x0112] = 6
    return exif


WHITE = 'white (128 to 255) is drawn anew, black is kept; paint white what is to change'
LOST = f'--mask: m.png has no white left when it is cropped to its middle and resized to 28 x 28 pixels, as its picture is; {WHITE}'
@pytest.mark.parametrize('picture, mask, message', [
    (dict(h=28, w=28), dict(h=28, w=56, white=np.s_[:, 20:]), '--mask: m.png is 56 x 28 pixels and p.png 28 x 28; a mask must be as large as its picture; give one of 28 x 28 pixels'),
    (dict(h=28, w=56), dict(h=28, w=28, white=np.s_[14:]), '--mask: m.png is 28 x 28 pixels and p.png 56 x 28; a mask must be as large as its picture; give one of 56 x 28 pixels'),
    (dict(h=28, w=28), dict(h=56, w=56, white=np.s_[28:]), 'm.png is 56 x 56 pixels and p.png 28 x 28; a mask must be as large'),
    (dict(h=28, w=28), dict(h=1, w=1, white=0), 'm.png is 1 x 1 pixels and p.png 28 x 28; a mask must be as large'),
    (dict(h=28, w=56, exif=turned()), dict(h=28, w=56, white=np.s_[14:]), 'm.png is 56 x 28 pixels and p.png 28 x 56; a mask must be as large'),
    (dict(h=28, w=28), dict(h=28, w=28), f'--mask: m.png has no white; {WHITE}'), (dict(h=28, w=56), dict(h=28, w=56), f'--mask: m.png has no white; {WHITE}'),
    (dict(h=28, w=28), dict(h=28, w=28, white=np.s_[:], value=127), f'--mask: m.png has no white; {WHITE}'),
    (dict(h=28, w=56), dict(h=28, w=56, white=np.s_[:, :14]), LOST), (dict(h=280, w=280), dict(h=280, w=280, white=np.s_[0, 0]), LOST)])
def test_edit_command_refuses_a_mask_that_does_not_fit(picture, mask, message, capsys):
    paint('p.png', **picture); paint('m.png', **mask)
    before = files()
    assert message in fails(edit_command, 'mnist-mini p.png --mask m.png --n 1 --steps 2'.split(), capsys)
    assert files() == before


@pytest.mark.parametrize('picture, mask, kept', [
    (dict(h=8, w=8), dict(h=8, w=8, white=np.s_[:]), np.s_[:0]),                             # all of it is drawn anew
    (dict(h=8, w=8), dict(h=8, w=8, white=np.s_[4:], value=128), np.s_[:4]),
    (dict(h=8, w=16), dict(h=8, w=16, white=np.s_[:, 8:]), np.s_[:, :4]),                    # the same crop for both
    (dict(h=8, w=16, exif=turned()), dict(h=16, w=8, white=np.s_[8:]), np.s_[:4])])          # upright, 8 wide and 16 high
def test_a_mask_as_large_as_its_picture(run, picture, mask, kept):
    paint('p.png', **picture); paint('m.png', **mask)
    edit_command('run p.png --mask m.png --n 1 --out o.png'.split())
    original, drawn = cells('o.png', 2)
    changed = original != drawn
    assert not changed[kept].any() and changed.sum() > 0.5 * (64 - original[kept].size)  # a few pixels of what is drawn anew may come out black again


@pytest.mark.parametrize('out', ['picture.png', '{here}/picture.png', '../{here.name}/picture.png', 'link.png', 'mask.png', '{here}/mask.png', 'picture_edited.png'])
def test_edit_command_does_not_overwrite_its_picture_or_its_mask(picture, out, tmp_path, capsys):
    Path('link.png').symlink_to('picture.png'); Path('picture_edited.png').symlink_to(tmp_path/'mask.png')
    before = {f: (Path(f).is_symlink(), Path(f).read_bytes()) for f in files()}
    said = fails(edit_command, f'mnist-mini picture.png --mask mask.png --n 1 --steps 2 --out {out.format(here=tmp_path)}'.split(), capsys)
    assert f'--out: {out.format(here=tmp_path)} is not allowed; allowed: a name that ends in .png, and not the picture or the mask itself' in said
    assert {f: (Path(f).is_symlink(), Path(f).read_bytes()) for f in files()} == before


def test_guidance_of_the_config_needs_no_class(run, picture):
    "And neither does 0, which is none. `diffusion-sample` draws every class if none is named, so there guidance alone means something"
    train(tiny('strong', 2, 'sampling.guidance=10000'), progress=False)  # 10,000, for two steps of training teach next to nothing of classes
    for words in ('run picture.png --out own.png', 'strong picture.png --out strong.png', 'strong picture.png --guidance 0 --out zero.png'): edit_command(f'{words} --n 2'.split())
    assert Path('own.png').read_bytes() == Path('strong.png').read_bytes() == Path('zero.png').read_bytes()
    for words in ('run --out own.png', 'run --guidance 10000 --out asked.png', 'strong --out strong.png'): sample_command(f'{words} --n 2'.split())
    assert Path('own.png').read_bytes() != Path('asked.png').read_bytes() == Path('strong.png').read_bytes()


# ---------------------------------------------------------------- files and text
def test_a_file_is_whole_or_not_there(monkeypatch):
    "The disk is full in the middle of a picture: the old one is still there, and nothing else"
    def half(self, file, *a, **k): Path(file).write_bytes(b'half'); raise OSError(28, 'No space left on device')
    monkeypatch.setattr(Image.Image, 'save', half); monkeypatch.setattr(cli.Figure, 'savefig', half)
    Path('a.gif').write_bytes(b'the old one')
    with pytest.raises(OSError): save_animation([torch.zeros(2, 1, 4, 4)] * 2, Path('a.gif'), 2)
    with pytest.raises(OSError): save_loss_curve([Metrics(1, 0, 1., 1., 1., 1.)], Path('loss.png'))
    assert files() == ['a.gif'] and Path('a.gif').read_bytes() == b'the old one'


@pytest.mark.parametrize('steps', [1, 2, 49, 500])
def test_save_loss_curve(steps):
    save_loss_curve([Metrics(i + 1, 0, 1 / (i + 1), 1e-3, 1., 1.) for i in range(steps)], Path('loss.png'))
    with Image.open('loss.png') as im: assert im.size == (840, 480)
    assert files() == ['loss.png']


@pytest.mark.parametrize('channels', [1, 3])
def test_save_animation(channels):
    pictures = [torch.full((4, channels, 6, 6), v) for v in (-1., 0., 1.)]
    save_animation(pictures, Path('a.gif'), 2, seconds=3.)
    with Image.open('a.gif') as im:
        assert im.n_frames == 3 and im.size == (15, 15)
        times, grays = [], []
        for i in range(3): im.seek(i); times.append(im.info['duration']); grays.append(im.convert('L').getpixel((3, 3)))
    assert times == [1000, 1000, 2000] and grays == pytest.approx([0, 128, 255], abs=3)


def test_as_text_has_the_bits_of_braille():
    "Unicode's order of the 8 dots: 1, 2, 3 down the left, 4, 5, 6 down the right, then 7 and 8 below (U+2800 plus the bits)"
    for dot, (row, column) in enumerate([(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (3, 0), (3, 1)]):
        x = torch.full((1, 1, 4, 2), -1.); x[0, 0, row, column] = 1
        assert as_text(x) == chr(0x2800 + 2**dot)


def test_as_text_breaks_lines_and_pads():
    x = torch.ones(5, 1, 6, 7)
    lines = as_text(x, width=8).splitlines()
    assert len(lines) == 3 * 2 and [len(l) for l in lines] == [8, 8, 8, 8, 4, 4]
    assert lines[0][0] == '⣿' and lines[0][3] == '⡇' and lines[1][0] == '⠛' and lines[1][3] == '⠃'  # whole; half wide; half high; both
