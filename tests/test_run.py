"A run from outside: what it draws, writes, refuses and leaves alone, and how it goes on"
import csv, io, json, os, signal, sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diffusion_scratch import config as config_module
from diffusion_scratch import run as run_module
from diffusion_scratch.config import ConfigError, SamplingConfig, load_config, parse_config
from diffusion_scratch.data import ImageSet
from diffusion_scratch.denoiser import V, Denoiser, clipped
from diffusion_scratch.guidance import guided
from diffusion_scratch.run import RunFolder, draw, labels_in_turn, stop_signals, train
from diffusion_scratch.sampling import ancestral, fixed_large, sample
from diffusion_scratch.schedule import Schedule, cosine_betas
from diffusion_scratch.solvers import ddim, dpm_solver_pp, heun
from diffusion_scratch.checkpoint import checkpoints, load_checkpoint
from diffusion_scratch.training import fit
from diffusion_scratch.unet import UNet

TINY = ['schedule.name=cosine', 'network={channels: 8, multipliers: [1], attention: []}',
        'training.batch_size=8', 'sampling.steps=3', 'threads=1', 'device=cpu',
        'training.ema=0.9', 'save_every=2']

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    "An empty folder, with 40 small images of 2 classes in the place of the 5,000 digits"
    monkeypatch.chdir(tmp_path)
    labels = torch.arange(40) % 2
    noise = torch.randint(0, 60, (40, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    images = (noise + 190 * labels.view(-1, 1, 1, 1)).to(torch.uint8)  # dark and bright ones
    data = ImageSet(images, labels, ('dark', 'bright'), 'tiny')
    monkeypatch.setattr(config_module.datasets, 'mnist_mini', lambda: data)
    yield
    sys.modules.pop('mine', None)  # of `own_network`: the next test may have another

def tiny(run, steps=6, *overrides):
    return parse_config({}, [*TINY, f'run={run}', f'training.steps={steps}', *overrides])

def trained(*words):
    "The folder of a small run"
    return train(tiny(*words), progress=False)

def tensors(run): return load_file(checkpoints(run)[0])

def learned(run):
    "What metrics.csv says of each step, but for time and memory"
    timed = ('images_per_second', 'loading', 'memory')
    with open(f'{run}/metrics.csv', newline='') as f:
        return [{k: v for k, v in row.items() if k not in timed} for row in csv.DictReader(f)]

def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

def files(folder='.'): return sorted(str(p) for p in Path(folder).rglob('*'))

def contents(folder='.'):
    return {f: Path(f).read_bytes() for f in files(folder) if Path(f).is_file()}

def lines(file): return len(Path(file).read_text().splitlines())

def own_network(forward):
    "A network in mine.py; `calls` counts the batches that it has seen in training"
    Path('mine.py').write_text(f'''
import os, signal, torch
class Net(torch.nn.Module):
    num_classes = 2
    def __init__(self):
        super().__init__()
        self.conv, self.calls = torch.nn.Conv2d(1, 1, 3, padding=1), 0
    def forward(self, x, t, y=None):
        self.calls += self.training
        {forward}
''')
    sys.modules.pop('mine', None)
    return 'model=mine:Net'

# ---------------------------------------------------------------- draw
@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(1, 8, (1, 2), 1, (), 0.5, num_classes=2)
        for p in net.parameters(): torch.nn.init.normal_(p, std=0.1)  # a fresh one gives nearly 0
    return Denoiser(net, V), Schedule(cosine_betas(50))

def test_draw_is_sample_with_the_configs_choices(model):
    denoiser, schedule = model
    y, how = torch.tensor([0, 1, 1]), dict(times=schedule.times(6), seed=4, progress=False)
    s = SamplingConfig(steps=6, guidance=2., variance='fixed_large', clip=True)
    [frame] = draw(denoiser, schedule, (1, 8, 8), 3, y, s, seed=4, progress=False)
    expected = sample(clipped(guided(denoiser, y, 2.)), schedule, (3, 1, 8, 8),
                      step=ancestral(fixed_large), **how)
    assert torch.equal(frame.x, expected) and frame.t == 0
    s = SamplingConfig(steps=6, clip=False)
    [free] = draw(denoiser, schedule, (1, 8, 8), 3, None, s, seed=4, progress=False)
    assert torch.equal(free.x, sample(denoiser, schedule, (3, 1, 8, 8), **how))
    assert denoiser.training  # no footprints

def test_draw_does_not_depend_on_the_batch(model):
    y = torch.arange(7) % 2
    a, b = (draw(*model, (1, 8, 8), 7, y, SamplingConfig(steps=5, batch_size=n), seed=1,
                 moments=3, progress=False) for n in (7, 3))
    # of 50, 40, 30, 20, 10, 0 the first, one in the middle, the last
    assert [f.t for f in a] == [f.t for f in b] == [50, 30, 0]
    for f, g in zip(a, b):
        assert f.x.shape == (7, 1, 8, 8)
        assert torch.allclose(f.x, g.x, atol=1e-4) and torch.allclose(f.x0, g.x0, atol=1e-4)

@pytest.mark.parametrize('moments', [1, 2, 6, 50])
def test_draw_keeps_no_more_than_it_was_asked(model, moments):
    frames = draw(*model, (1, 8, 8), 2, None, SamplingConfig(steps=5), moments=moments,
                  progress=False)
    assert len(frames) == min(moments, 6) and frames[-1].t == 0
    assert moments == 1 or frames[0].t == 50

@pytest.mark.parametrize('solver, step', [
    ('ancestral', ancestral()), ('ddim', ddim()), ('dpm++', dpm_solver_pp()),
    ('dpm++sde', dpm_solver_pp(eta=1.)), ('heun', heun())])
def test_draw_by_every_solver(model, solver, step):
    denoiser, schedule = model
    s = SamplingConfig(steps=5, solver=solver)
    frames = draw(denoiser, schedule, (1, 8, 8), 3, None, s, seed=1, moments=6, progress=False)
    assert [f.t for f in frames] == [50, 40, 30, 20, 10, 0]
    expected = sample(clipped(denoiser), schedule, (3, 1, 8, 8), step=step,
                      times=schedule.times(5), seed=1, progress=False)
    assert torch.equal(frames[-1].x, expected)

# ---------------------------------------------------------------- a run
def test_a_whole_run_in_little(capsys):
    config = tiny('run', 6, 'preview_every=3', 'judge=30')
    assert train(config, progress=False) == Path('run')
    said = capsys.readouterr().out
    previews = [f'step_00000{i}{raw}.png' for i in (3, 6) for raw in ('', '_raw')]
    assert [f for f in files('run') if not f.startswith('run/logs/')] == sorted(
        ['run/checkpoints', *(f'run/checkpoints/step_0000000{i}.safetensors' for i in (2, 4, 6)),
         'run/config.yaml', 'run/logs', 'run/loss.png', 'run/manifest.json', 'run/metrics.csv',
         'run/noise_to_images.gif', 'run/previews', *(f'run/previews/{f}' for f in previews),
         'run/run.json', 'run/samples.png'])
    for f in Path('run').iterdir(): assert str(f) in said
    assert len(list(Path('run/logs').rglob('events.out.tfevents.*'))) == 1
    assert load_config('run/config.yaml') == config
    with Image.open('run/samples.png') as im:  # a row of 10 for each class
        assert im.size == (2 * (10 * 9 + 1), 2 * (2 * 9 + 1))
    header, *rows = Path('run/metrics.csv').read_text().splitlines()
    assert header == ('step,epoch,loss,lr,grad_norm,images_per_second,'
                      'loss_q1,loss_q2,loss_q3,loss_q4,loading,memory')
    assert len(rows) == 6 and rows[5].startswith('6,1,')
    result = json.loads(Path('run/run.json').read_text(encoding='utf-8'))
    expected = dict(steps=6, seed=0, threads=1, device='cpu',
                    command='diffusion-train run/config.yaml',
                    readable_real='100.0% ± 0.0% of 40')
    assert result.items() >= expected.items() and result['readable'].endswith('of 30')
    assert result['readable'] + ' generated' in said and result['readable_real'] + ' real' in said

def test_a_row_for_each_class():
    "A network that paints its label: the sheet has a row for each"
    paints = 'return 0 * self.conv(x) + 1.6 * y.view(-1, 1, 1, 1) - 0.8'  # predicts x0
    trained('run', 2, own_network(paints), 'parameterization=x0', 'sampling.guidance=0',
            'training.label_dropout=0')
    pixels = np.asarray(Image.open('run/samples.png').convert('L'))
    top, bottom = pixels[2:18], pixels[20:36]
    assert len(np.unique(top)) == len(np.unique(bottom)) == 2  # one gray and the line between
    assert top.min() < 30 and bottom.max() > 220
    assert labels_in_turn(2, 5).tolist() == [0, 1, 0, 1, 0] and labels_in_turn(0, 5) is None

@pytest.mark.parametrize('where', [1, 3, 4])
def test_killed_and_gone_on_is_the_same_run(where, monkeypatch):
    """Killed without a warning, before the first checkpoint (at step 2), after it, or with it:
    the end is the same to the last bit"""
    def killed(state, *args, **options):
        for m in fit(state, *args, **options):
            yield m
            if m.step == where: raise MemoryError('as good as a power cut')
    trained('whole')
    with monkeypatch.context() as mp, pytest.raises(MemoryError):
        mp.setattr(run_module, 'fit', killed)
        trained('killed')
    assert bool(checkpoints('killed')) == (where >= 2)
    trained('killed')
    assert same(tensors('whole'), tensors('killed')) and learned('whole') == learned('killed')
    assert Path('whole/samples.png').read_bytes() == Path('killed/samples.png').read_bytes()

def test_ctrl_c_in_the_middle_of_a_step():
    "The step is finished, saved and said; handlers and threads are as they were"
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    threads = torch.get_num_threads()
    # the first three calls are of the copy that is measured
    net = own_network('''if self.calls == 4: os.kill(os.getpid(), signal.SIGINT)
        return self.conv(x)''')
    with pytest.raises(KeyboardInterrupt, match=(
            'stopped after step 4, saved in run.checkpoints.step_00000004.safetensors; '
            'the same command goes on from there')):
        trained('run', 6, net, 'threads=2')
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert torch.get_num_threads() == threads and lines('run/metrics.csv') == 1 + 4

def test_a_second_signal_stops_at_once():
    with pytest.raises(KeyboardInterrupt), stop_signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals == [signal.SIGINT]
        os.kill(os.getpid(), signal.SIGINT)

def test_a_finished_run_is_drawn_again_and_not_trained(capsys):
    trained('run')
    weights, before = tensors('run'), contents('run')
    trained('run', 6, 'sampling.steps=5', 'sampling.guidance=3', 'preview_every=7')
    assert 'going on after step 6 of 6' in capsys.readouterr().out
    after = contents('run')
    assert same(weights, tensors('run'))
    assert before['run/metrics.csv'] == after['run/metrics.csv']
    assert before['run/samples.png'] != after['run/samples.png']
    assert load_config('run/config.yaml').sampling.steps == 5

def test_training_longer():
    """Where the learning rate knows nothing of the end, a run can be made longer, and is the
    longer run; it cannot be made shorter"""
    trained('whole', 6)
    trained('grown', 4)
    trained('grown', 6)
    assert same(tensors('whole'), tensors('grown'))
    before = contents('grown')
    with pytest.raises(ConfigError, match=('training.steps: 5 is not allowed; allowed: whole '
                                           'number >= 6, for so many are done in grown')):
        trained('grown', 5)
    assert before == contents('grown')
    trained('cosine', 4, 'training.decay=cosine')
    with pytest.raises(ConfigError, match='training.steps: 4 there, 6 here'):
        trained('cosine', 6, 'training.decay=cosine')

def test_a_folder_with_another_run():
    trained('run')
    before = contents('run')
    with pytest.raises(ConfigError, match=(
            r'run: run holds a run with another config \(parameterization: eps there, v here, '
            r'training.lr: 0.0002 there, 0.5 here\)')):
        trained('run', 6, 'training.lr=0.5', 'parameterization=v')
    Path('run/config.yaml').write_text('seed: none\n')
    with pytest.raises(ConfigError, match=("run: run holds a checkpoint, but not the config it was "
                                           "made with .seed: 'none' is not allowed")):
        trained('run')
    Path('run/config.yaml').unlink()
    with pytest.raises(ConfigError, match='run: run holds a checkpoint, but not the config'):
        trained('run')
    del before['run/config.yaml']
    assert before == contents('run')

def test_a_folder_where_nothing_was_saved_is_free_for_another_config():
    "Nothing to lose there: a run killed before its first checkpoint does not stand in the way"
    first = RunFolder(tiny('run'))
    first.open(dict(date='2026-11-25'))
    first.close()
    Path('run/metrics.csv').write_text('step,epoch,loss,lr,grad_norm,images_per_second\n'
                                       '1,0,0.5,1,1,1\n2,0,0.')  # killed while writing
    Path('run/previews/step_000001.png').write_bytes(b'')
    trained('run', 3, 'training.lr=0.001')
    assert load_config('run/config.yaml').training.lr == 0.001
    assert lines('run/metrics.csv') == 1 + 3 and not list(Path('run/previews').iterdir())

def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint():
    diverges = own_network("return self.conv(x) * (float('nan') if self.calls > 3 else 1)")
    with pytest.raises(FloatingPointError, match='step 4 .*nan'): trained('run', 6, diverges)
    assert all(v.isfinite().all() for v in tensors('run').values())
    assert checkpoints('run')[0].stem == 'step_00000002' and 'run/samples.png' not in files('run')
    assert lines('run/metrics.csv') == 1 + 3

def test_a_folder_that_the_system_refuses(monkeypatch):
    "As for everyone but root, who may write everywhere: the system says no"
    def refuse(dir): raise PermissionError(13, 'Permission denied', str(dir))
    monkeypatch.setattr('tempfile.TemporaryFile', refuse)
    with pytest.raises(ConfigError, match=r'run: run cannot be written \(Permission denied\)'):
        trained('run')
    assert not files()

def test_colour_images_without_labels():
    "A folder of pictures: colour, not square, no classes, no judge"
    colour_run()
    with Image.open('run/samples.png') as im:
        assert im.mode == 'RGB' and im.size == (2 * (8 * 13 + 1), 2 * (8 * 9 + 1))
    with Image.open('run/noise_to_images.gif') as im: assert im.n_frames == 4
    assert 'readable' not in json.loads(Path('run/run.json').read_text())

def colour_run():
    Path('pictures').mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f'pictures/{i}.png')
    trained('run', 2, 'data={name: folder, root: pictures, size: [8, 12]}', 'judge=10',
            'preview_every=2')

def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    (tmp_path/'home').mkdir()
    assert RunFolder(tiny('~/runs/x')).path == tmp_path/'home'/'runs'/'x'

def test_what_a_terminal_shows(monkeypatch):
    class Terminal(io.StringIO):
        encoding = 'UTF-8'
        def isatty(self): return True
    with monkeypatch.context() as mp:
        mp.setattr(sys, 'stdout', Terminal())
        trained('run', 2, 'preview_every=2')
        shown = sys.stdout.getvalue()
    dots = [s for s in shown.splitlines() if s and all(0x2800 <= ord(c) < 0x2900 for c in s)]
    assert [len(s) for s in dots] == [8, 8]  # two images of 8 x 8
    assert 'preview: run/previews/step_000002.png' in shown
