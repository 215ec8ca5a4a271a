"""A run from outside: what it draws, writes, refuses and leaves alone, and how it goes on. Runs
that are killed without a warning: test_trainer.py"""
import io, json, os, shutil, signal, sys
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
from diffusion_scratch import config as config_module
from diffusion_scratch.checkpoint import checkpoints
from diffusion_scratch.config import ConfigError, SamplingConfig, load_config, parse_config
from diffusion_scratch.data import ImageSet
from diffusion_scratch.denoiser import V, Denoiser, clipped
from diffusion_scratch.guidance import guided
from diffusion_scratch.pretrained import load, save
from diffusion_scratch.report import model_hash
from diffusion_scratch.run import RunFolder, draw, draw_images, labels_in_turn, stop_signals, train
from diffusion_scratch.sampling import ancestral, fixed_large, sample
from diffusion_scratch.schedule import Schedule, cosine_betas
from diffusion_scratch.solvers import ddim, dpm_solver_pp, heun
from diffusion_scratch.unet import UNet
from helpers_training import same, tensors

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

def files(folder='.'): return sorted(str(p) for p in Path(folder).rglob('*'))
def contents(folder='.'):
    return {f: Path(f).read_bytes() for f in files(folder) if Path(f).is_file()}

def lines(run): return len(Path(run, 'metrics.csv').read_text().splitlines())

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
SHAPE, LABELS = (1, 8, 8), torch.tensor([0, 1, 1])

@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(1, 8, (1, 2), 1, (), 0.5, num_classes=2)
        for p in net.parameters(): torch.nn.init.normal_(p, std=0.1)  # a fresh one gives nearly 0
    return Denoiser(net, V), Schedule(cosine_betas(50))

@pytest.mark.parametrize('options, y, step, asked', [
    (dict(guidance=2., variance='fixed_large', clip=True), LABELS, ancestral(fixed_large),
     lambda denoiser: clipped(guided(denoiser, LABELS, 2.))),
    (dict(clip=False), None, ancestral(), lambda denoiser: denoiser),
    *((dict(solver=name), None, step, clipped) for name, step in (
        ('ancestral', ancestral()), ('ddim', ddim()), ('dpm++', dpm_solver_pp()),
        ('dpm++sde', dpm_solver_pp(eta=1.)), ('heun', heun())))])
def test_draw_is_sample_with_the_configs_choices(options, y, step, asked, model):
    denoiser, schedule = model
    frames = draw(denoiser, schedule, SHAPE, 3, y, SamplingConfig(steps=5, **options), seed=4,
                  moments=6, progress=False)
    expected = sample(asked(denoiser), schedule, (3, *SHAPE), step=step, times=schedule.times(5),
                      seed=4, progress=False)
    assert torch.equal(frames[-1].x, expected) and [f.t for f in frames] == [50, 40, 30, 20, 10, 0]
    assert denoiser.training  # no footprints

@pytest.mark.parametrize('name, n, labels, scale, steps, step', [
    ('mnist', 1, None, 0, 50, ddim()), ('mnist-mini', 2, None, 0.5, 100, ancestral()),
    ('mnist-mini', 3, [3, 8], 0.5, 100, ancestral())])
def test_draw_images_is_sample_as_the_weights_say(name, n, labels, scale, steps, step):
    "Steps, solver and scale stand here as in the configs of those networks"
    denoiser, schedule = load(name)
    if name != 'mnist':
        y = torch.arange(n) % 10 if labels is None else torch.tensor([3, 8, 3])
        denoiser = guided(denoiser, y, scale)
    x = sample(clipped(denoiser), schedule, (n, 1, 28, 28), step=step, seed=5, progress=False,
               times=schedule.times(steps))
    torch.testing.assert_close(draw_images(name, n, labels=labels, seed=5, progress=False), x)

@pytest.mark.parametrize('name, options, says', [
    ('mnist', dict(labels=[1]), 'allowed: None: it learned no classes'),
    ('mnist-mini', dict(labels=[10]), 'allowed: numbers from 0 to 9'),
    ('mnist-mini', dict(labels=['3']), 'allowed: numbers from 0 to 9'),
    ('mnist-mini', dict(n=0), 'n = 0 must be at least 1'),
    ('mnist-mini', dict(n=10**12), 'do not fit into'), ('mnits', {}, 'mnits')])
def test_draw_images_refuses_what_cannot_be_drawn(name, options, says):
    with pytest.raises((ValueError, OSError), match=says): draw_images(name, **options)

@pytest.mark.parametrize('moments, times', [
    (1, [0]), (2, [50, 0]), (3, [50, 30, 0]), (6, [50, 40, 30, 20, 10, 0]),
    (50, [50, 40, 30, 20, 10, 0])])
def test_draw_keeps_the_moments_it_was_asked_for_in_batches_of_any_size(moments, times, model):
    "The first, the last and others evenly between; each image is the same in any batch"
    a, b = (draw(*model, SHAPE, 7, torch.arange(7) % 2, SamplingConfig(steps=5, batch_size=n),
                 seed=1, moments=moments, progress=False) for n in (7, 3))
    assert [f.t for f in a] == [f.t for f in b] == times
    for f, g in zip(a, b):
        assert f.x.shape == (7, *SHAPE)
        assert torch.allclose(f.x, g.x, atol=1e-4) and torch.allclose(f.x0, g.x0, atol=1e-4)

# ---------------------------------------------------------------- a run
def test_a_whole_run_in_little(capsys):
    config = tiny('run', 6, 'preview_every=3', 'judge=30')
    assert train(config, progress=False) == Path('run')
    said = capsys.readouterr().out
    wanted = ['checkpoints', *(f'checkpoints/step_0000000{i}.safetensors' for i in (2, 4, 6)),
              'config.yaml', 'logs', 'loss.png', 'manifest.json', 'metrics.csv',
              'noise_to_images.gif', 'previews', 'run.json', 'samples.png',
              *(f'previews/step_00000{i}{raw}.png' for i in (3, 6) for raw in ('', '_raw'))]
    assert [f for f in files('run') if not f.startswith('run/logs/')] == sorted(
        f'run/{name}' for name in wanted)
    for f in Path('run').iterdir(): assert str(f) in said
    assert len(list(Path('run/logs').rglob('events.out.tfevents.*'))) == 1
    assert load_config('run/config.yaml') == config
    with Image.open('run/samples.png') as im:  # a row of 10 for each class
        assert im.size == (2 * (10 * 9 + 1), 2 * (2 * 9 + 1))
    header, *rows = Path('run/metrics.csv').read_text().splitlines()
    assert header == ('step,epoch,loss,lr,grad_norm,images_per_second,'
                      'loss_q1,loss_q2,loss_q3,loss_q4,loading,memory,frechet,precision,'
                      'crc32')
    assert len(rows) == 6 and rows[5].startswith('6,1,')
    result = json.loads(Path('run/run.json').read_text(encoding='utf-8'))
    assert result.items() >= dict(
        steps=6, seed=0, threads=1, device='cpu', command='diffusion-train run/config.yaml',
        readable_real='100.0% ± 0.0% of 40').items() and result['readable'].endswith('of 30')
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

def sessions(run): return json.loads(Path(run, 'manifest.json').read_text())['sessions']

def test_a_run_begins_with_given_weights_and_goes_on_bit_for_bit():
    """With a learning rate too small to change a weight, the new run ends with the weights that it
    was given, which is the average of the run, or the folder in 16 bits"""
    save(*load(trained('first', 4)), 'folder', dict(name='a'), dtype=torch.float16)
    for start in 'first', 'folder':
        begun = trained(f'from_{start}', 2, 'training.lr=1e-30', 'training.warmup=0',
                        f'training.start={start}')
        there, here = (load(p)[0].state_dict() for p in (start, begun))
        assert all((there[k].float() - here[k]).abs().max() < 1e-20 for k in here)  # 0 moves too
        [session] = sessions(begun)
        assert session['start'] == f'{start} {model_hash(load(start)[0].float())}'
    whole = trained('whole', 6, 'training.start=first')
    for steps in (2, 6): trained('parts', steps, 'training.start=first')
    assert same(tensors(whole), tensors('parts'))
    assert [s.get('start', '')[:5] for s in sessions('parts')] == ['first', '']

@pytest.mark.parametrize('says, change', [
    ('nowhere is neither a path', ['training.start=nowhere']),
    ('another network', ['network.channels=12']), ('predicts eps', ['parameterization=v']),
    ('was trained with', ['schedule.T=50'])])
def test_weights_that_cannot_begin_a_run_are_refused(says, change):
    trained('first', 2)
    with pytest.raises(ConfigError, match=f'(?s)training.start: .*{says}'):
        trained('second', 2, 'training.start=first', *change)
    assert not Path('second').exists()

@pytest.mark.fault('Ctrl-C comes in the middle of a step',
                   'the step is finished and saved; the command prints how to go on')
def test_ctrl_c_in_the_middle_of_a_step():
    "The step is finished, saved and said; handlers and threads are as they were"
    def handlers(): return [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    before, threads = handlers(), torch.get_num_threads()
    # the first three calls are of the copy that is measured
    net = own_network('''if self.calls == 4: os.kill(os.getpid(), signal.SIGINT)
        return self.conv(x)''')
    with pytest.raises(KeyboardInterrupt, match=(
            'stopped after step 4, saved in run.checkpoints.step_00000004.safetensors; '
            'the same command goes on from there')): trained('run', 6, net, 'threads=2')
    assert handlers() == before and torch.get_num_threads() == threads and lines('run') == 1 + 4

@pytest.mark.parametrize('first, second', [
    (signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT),
    (signal.SIGINT, signal.SIGTERM)])
def test_a_second_signal_stops_at_once(first, second):
    "Also one of the other kind: a scheduler's SIGTERM, then Ctrl-C"
    with pytest.raises(KeyboardInterrupt), stop_signals() as signals:
        os.kill(os.getpid(), first)
        assert signals == [first]
        os.kill(os.getpid(), second)

def test_a_finished_run_is_drawn_again_and_not_trained(capsys):
    before, weights = contents(trained('run')), tensors('run')
    trained('run', 6, 'sampling.steps=5', 'sampling.guidance=3', 'preview_every=7')
    assert 'going on after step 6 of 6' in capsys.readouterr().out
    after = contents('run')
    assert same(weights, tensors('run'))
    assert before['run/metrics.csv'] == after['run/metrics.csv']
    assert before['run/samples.png'] != after['run/samples.png']
    assert load_config('run/config.yaml').sampling.steps == 5

def test_a_folder_with_another_run_is_left_alone():
    "A run can be made longer (test_options.py), but not shorter"
    def refused(message, *words):
        with pytest.raises(ConfigError, match=message): trained(*words)
    trained('run'); trained('cosine', 4, 'training.decay=cosine')
    before = contents()
    refused('training.steps: 5 is not allowed; allowed: whole number >= 6, because so many '
            'were done in run', 'run', 5)
    refused('training.steps: 4 there, 3 here', 'cosine', 3, 'training.decay=cosine')
    refused(r'run: run holds a run with another config \(parameterization: eps there, v here, '
            r'training.lr: 0.0002 there, 0.5 here\)', 'run', 6, 'training.lr=0.5',
            'parameterization=v')
    assert before == contents()

@pytest.mark.parametrize('existed', (False, True))
def test_a_start_that_fails_after_the_loggers_were_opened(existed, monkeypatch):
    def full(file): raise OSError(28, 'No space left on device')
    if existed: Path('run').mkdir()
    monkeypatch.setattr('diffusion_scratch.run.dump_config', full)
    with pytest.raises(OSError, match='No space'):
        train(tiny('run', 6, 'log=[tensorboard]'), progress=False)
    assert Path('run').exists() == existed

def test_a_folder_where_nothing_was_saved_is_free_for_another_config():
    "Nothing to lose there: a run killed before its first checkpoint does not stand in the way"
    first = RunFolder(tiny('run'))
    first.claim(); first.open(dict(date='2026-11-25')); first.close()
    Path('run/metrics.csv').write_text('step,epoch,loss,lr,grad_norm,images_per_second\n'
                                       '1,0,0.5,1,1,1\n2,0,0.')  # killed while writing
    Path('run/previews/step_000001.png').write_bytes(b'')
    trained('run', 3, 'training.lr=0.001')
    assert load_config('run/config.yaml').training.lr == 0.001
    assert lines('run') == 1 + 3 and not list(Path('run/previews').iterdir())

def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint():
    diverges = own_network("return self.conv(x) * (float('nan') if self.calls > 3 else 1)")
    with pytest.raises(FloatingPointError, match='step 4 .*nan'): trained('run', 6, diverges)
    assert all(v.isfinite().all() for v in tensors('run').values()) and lines('run') == 1 + 3
    assert checkpoints('run')[0].stem == 'step_00000002' and 'run/samples.png' not in files('run')

def test_colour_images_without_labels():
    "A folder of pictures: colour, not square, no classes, no judge"
    colour_run()
    with Image.open('run/samples.png') as im:
        assert im.mode == 'RGB' and im.size == (2 * (8 * 13 + 1), 2 * (8 * 9 + 1))
    with Image.open('run/noise_to_images.gif') as im: assert im.n_frames == 4
    assert 'readable' not in json.loads(Path('run/run.json').read_text())

def colour_run(name='run'):
    Path('pictures').mkdir()
    for i, x in enumerate(np.random.default_rng(0).integers(0, 256, (8, 20, 30, 3), np.uint8)):
        Image.fromarray(x).save(f'pictures/{i}.png')
    trained(name, 2, 'data={name: folder, root: pictures, size: [8, 12]}', 'judge=10',
            'preview_every=2')

def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert RunFolder(tiny('~/runs/x')).path == tmp_path/'runs'/'x'

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

# ---------------------------------------------------------------- torch.compile
@pytest.mark.skipif(not (shutil.which('g++') or shutil.which('clang++')), reason='no C++ compiler')
def test_a_compiled_run_resumes_to_the_same_bits_and_has_plain_names():
    "Its numbers are those of an ordinary run but for rounding, which 6 steps of Adam magnify"
    whole = trained('whole', 6, 'training.compile=true')
    trained('parts', 4, 'training.compile=true')
    parts = trained('parts', 6, 'training.compile=true')
    ordinary = trained('ordinary')
    weights = [tensors(run) for run in (whole, parts, ordinary)]
    assert same(*weights[:2]) and weights[2].keys() == weights[0].keys()
    a, b = (load(run)[0].state_dict() for run in (whole, ordinary))
    assert max((a[k] - b[k]).abs().max() for k in a) < 1e-4
    with pytest.raises(ConfigError, match='training.compile: True there, False here'):
        trained('parts', 8)

def test_a_machine_without_a_compiler_says_so(monkeypatch):
    monkeypatch.setenv('CXX', '/nowhere')
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(Path('cache').absolute()))
    monkeypatch.setattr(torch._inductor.config.cpp, 'cxx', (None, '/nowhere'))
    torch._dynamo.reset()
    with pytest.raises(ConfigError, match='training.compile: true is not allowed here.*g..'):
        trained('run', 6, 'training.compile=true')
    assert not files('run')
