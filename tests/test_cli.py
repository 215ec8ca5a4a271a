"The commands from outside: stopped and started again; what they write, refuse and leave alone"
import contextlib, io, os, re, shlex, shutil, signal, subprocess, sys, time
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_run import colour_run, contents, elsewhere, files, same, tiny, trained
from diffusion_scratch import cli
from diffusion_scratch.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from diffusion_scratch.config import Config, SamplingConfig, dump_config, shipped_configs
from diffusion_scratch.denoiser import V, Denoiser
from diffusion_scratch.pictures import grid
from diffusion_scratch.pretrained import load
from diffusion_scratch.run import draw
from diffusion_scratch.schedule import Schedule, cosine_betas
from diffusion_scratch.training import TrainState
from diffusion_scratch.unet import UNet

ROOT, METRICS = Path(__file__).parent.parent, Path('run/metrics.csv')

def command(line):
    "In this process: 'sample run --n 6' is diffusion-sample run --n 6"
    name, *words = shlex.split(line)
    getattr(cli, f'{name}_command')(words)

def fails(line, capsys):
    "What a command that fails says, in the one place where it should"
    capsys.readouterr()
    with pytest.raises(SystemExit) as e: command(line)
    out, err = capsys.readouterr()
    assert e.value.code == 2 and 'Traceback' not in err
    assert re.search(r'^error: ', err, re.M) and len(err.splitlines()) <= 6
    return err

def pixels(file): return np.asarray(Image.open(file))

@pytest.fixture(scope='module')
def runs(tmp_path_factory): return tmp_path_factory.mktemp('runs')

def copied(runs, name, *words):
    "The folder of a small run, which is trained once"
    if (runs/name).exists(): return shutil.copytree(runs/name, name)
    return shutil.copytree(trained(name, 2, *words), runs/name) and Path(name)

@pytest.fixture
def run(runs): return copied(runs, 'run')

# ---- the real commands
def script(name): return Path(sys.executable).parent/name

def stopped(words, number, more_than=0):
    "A real command gets a signal after some lines of metrics: what it prints, and its last step"
    def lines():
        return METRICS.read_text().count('\n') if METRICS.exists() else 0
    env = os.environ | dict(OMP_NUM_THREADS='1', MKL_NUM_THREADS='1')
    p = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    deadline = time.time() + 300  # a busy machine takes a minute to import torch
    while time.time() < deadline and p.poll() is None and lines() < more_than + 4: time.sleep(0.05)
    p.send_signal(number)
    out, err = p.communicate(timeout=300)
    step = re.search(r'stopped after step ([\d,]+), saved in run/checkpoints/step_\d{8}\.'
                     r'safetensors; the same command goes on from there', err)[1]
    assert p.returncode == 130 and 'Traceback' not in err
    return out, err, int(step.replace(',', ''))

@pytest.mark.skipif(os.name == 'nt', reason='signals of POSIX')
def test_stop_go_on_finish_and_sample(capsys):
    "SIGTERM and Ctrl-C save; the same command goes on (here in examples/); then samples are drawn"
    net = 'network={channels: 8, multipliers: [1], attention: [], unshuffle: 4}'
    Path('c.yaml').write_text(dump_config(tiny('run', 100_000, net)))
    out, err, first = stopped([script('diffusion-train'), 'c.yaml'], signal.SIGTERM)
    assert 'loss ' in err and 'images/s' in err
    assert "ImageSet('mnist_mini': 5,000 images (1, 28, 28), 10 classes)" in out
    words = sys.executable, ROOT/'examples'/'train.py', 'c.yaml'
    out, _, second = stopped(words, signal.SIGINT, first)
    assert f'going on after step {first:,} of 100,000' in out and second > first
    rows = np.loadtxt(METRICS, delimiter=',', skiprows=1)
    assert rows[:, 0].tolist() == list(range(1, second + 1))
    assert not [f for f in files('run') if 'part' in f]
    command('sample run --n 6 --labels 7 1 --animation')
    assert capsys.readouterr().out == 'run/samples_seed0.png\n'
    assert Image.open('run/samples_seed0.png').size == (2 * (2 * 29 + 1), 2 * (3 * 29 + 1))
    assert Image.open('run/samples_seed0.gif').n_frames == 4  # 3 steps have 4 moments

# ---- mistakes of all commands
ALLOWED = 'is not allowed; allowed:'
COUNT = '{} whole number >= 1'  # {}: the option and the value on the line, and ALLOWED
UNTAUGHT = 'because this model learned no classes'
UNKNOWN = {'': 'nowhere is neither a path here nor a known name'}
CLASSES = '{} dark, bright'
REFUSED = {  # the line so far, what else is on it, and what is said
    'train no.yaml': {'': 'no.yaml does not exist'},
    'train c.yaml': {
        'training.batch_size=41':
            f'training.batch_size: 41 {ALLOWED} whole number >= 1 and <= 40, the images of tiny',
        'device=warp': "device: 'warp' is not here; allowed: auto, cpu",
        'device=cuda:99': "device: 'cuda:99' is not here; allowed: auto, cpu",
        'device=meta': "device: 'meta' is not here",
        'run=c.yaml': 'run: c.yaml cannot be written (Not a directory)',
        'run=c.yaml/a/b': 'run: c.yaml/a/b cannot be written (Not a directory)',
        '"data={name:\tfolder}"': r'data={name:\tfolder} is not YAML',
        '"data={name: folder, root: nowhere}"': 'nowhere is not a folder',
        '"data={name: folder, root: empty}"': 'empty holds no files',
        '"data={name: folder, root: texts}"': 'is not an image that can be read',
        'network.multipliers=[1,1,1,1,1]': 'network.multipliers: 5 levels',
        '"network={multipliers: [1, 1, 1], unshuffle: 4}"':
            'network.multipliers: 3 levels with unshuffle 4 need images of at least 16 x 16, and '
            'those of tiny have 8 x 8',
        'model=nowhere:Net': 'model: nowhere:Net cannot be imported (No module named',
        'model=json:Net': "model: json:Net cannot be imported (module 'json' has no attribute",
        'model=os:system "model_args={command: touch owned}"': 'os:system is not a torch.nn.Module',
        'log=[wandb]': 'log: wandb is not installed',
        'run=b': 'run: b is not empty and holds no run (there is notes.txt)'},
    'train --diagnose nowhere': UNKNOWN,
    'sample nowhere': UNKNOWN, 'export nowhere --to folder a': UNKNOWN,
    'edit nowhere picture.png': UNKNOWN,
    'sample empty': {'': 'empty holds no model; allowed: a run of diffusion-train'},
    'sample text.safetensors': {'': 'text.safetensors is not a whole checkpoint'},
    'sample foreign.safetensors': {
        '': 'foreign.safetensors does not contain the size of its images'},
    'sample pipe': {'': 'model: pipe is not an ordinary file; allowed: a run folder'},
    'sample huge.safetensors': {'': 'model: huge.safetensors holds 1,100 GB, and there are'},
    'sample run': {
        '--n 0': COUNT, '--n 1e3': '{}', '--steps 1001': '{} whole number >= 1 and <= 1000',
        '--steps 0': f'steps: 0 {ALLOWED} whole number >= 1', '--class dark grey': CLASSES,
        '--labels dark grey': CLASSES, '--device warp': "device: 'warp' is not here",
        '--guidance -3': f'guidance: -3.0 {ALLOWED} number >= -1',
        '--guidance nan': 'guidance: nan is not allowed',
        '--guidance 1e308': f'guidance: 1e+308 {ALLOWED} number >= -1 and <= 1000000',
        '--seed -1': f'{{}} whole number >= 0 and < {2**63}', f'--seed {2**63}': '{}',
        '--n 1000000000000': '--n: 1000000000000 is not allowed: so many images of (1, 8, 8) '
                             'do not fit into',
        '--out "~nosuchuser/a.png"': "--out: '~nosuchuser/a.png' is not allowed (there is no home",
        '--out folder.png': '{} a name that ends in .png', '--out grid.jpeg': '{} a name that ends',
        '--solver dpm': f"solver: 'dpm' {ALLOWED} ancestral, ddim, dpm++, dpm++sde, heun. "
                        'Did you mean dpm++?',
        '--out c.yaml/a.png': '--out: c.yaml cannot be written (Not a directory)'},
    'sample plain': {
        '--guidance 2': f'--guidance: 2.0 {ALLOWED} 0, {UNTAUGHT}',
        '--labels 1': f'{{}} none, {UNTAUGHT}; leave it out',
        '--class 1': f'{{}} none, {UNTAUGHT}; leave it out'},
    'export run --to': {
        'folder b': 'b is there already', 'onnx a': f'a {ALLOWED} a file that ends in .onnx',
        'diffusers a --label grey': CLASSES, "tensorflow a": "invalid choice: 'tensorflow'",
        'onnx a.onnx --label dark': '--label goes with --to diffusers, not with --to onnx',
        'diffusers a --half': '--half goes with --to folder, not with --to diffusers',
        'folder run/metrics.csv/a': 'cannot write run/metrics.csv/a'},
    'edit run gone.png': {'': 'picture: gone.png cannot be read (No such file or directory); give '
                              'an image file'},
    'edit run pipe': {'': 'picture: pipe is not an ordinary file; give an image file'},
    'edit run picture.png': {
        '--mask c.yaml': '--mask: c.yaml cannot be read (it is in no format that Pillow knows)',
        '--mask pipe': 'pipe is not an ordinary file',
        '--mask b': '--mask: b is a folder; give an image file',
        '--strength 0': f'--strength: 0.0 {ALLOWED} number > 0 and <= 1',
        '--strength nan': '--strength: nan is not allowed',
        '--repeats 0': '{} whole number >= 1 and <= 1000', '--repeats 1000000000000': '{}',
        '--n 0': '{}', '--n 1000000000000': '--n: 1000000000000 is not allowed',
        '--solver euler': "solver: 'euler' is not allowed", '--class grey': CLASSES,
        '--label grey': CLASSES,
        '--guidance 3': '--guidance: 3.0 needs --class, the class to draw; allowed: dark, '
                        'bright; give --class too, or leave --guidance out'},
    'edit plain picture.png': {'--guidance 3': f'--guidance: 3.0 {ALLOWED} 0, {UNTAUGHT}'},
    'evaluate mnist-mini --data mnist_mini': {
        '--n 0': '{}', '--batch 0': '{}', '--n 3': 'n = 3; allowed', '--seed -1': '{}',
        '--bits -1': '{} whole number >= 0', '--steps 5000': '--steps: 5000 is not allowed',
        '--extractor exported': '--extractor: exported/config.json describes no classifier',
        '--extractor me': '{} digits, objects, faces, inception, or a folder',
        '--data texts': 'is not an image that can be read',
        '--statistics me.npz': 'me.npz is missing',
        '--solver fast': f"'fast' {ALLOWED} ancestral, ddim",
        '--held-out me': '{} a folder of images'},
    'evaluate mnist-mini': {'--data nowhere': '{} mnist_mini, mnist, cifar10, or a folder'}}

@pytest.mark.parametrize('line, rest, message', [
    (line, rest, said) for line, of in REFUSED.items() for rest, said in of.items()])
def test_what_is_refused_leaves_nothing_behind(picture, runs, line, rest, message, capsys):
    option, value = (re.findall(r'--[\w-]+', rest) or [''])[0], rest.split(' ')[-1]
    line, message = f'{line} {rest}', message.replace('{}', f'{option}: {value} {ALLOWED}')
    Path('c.yaml').write_text(dump_config(tiny('run')))
    for folder in ('empty', 'texts', 'b', 'folder.png'): Path(folder).mkdir()
    Path('texts/a.png').write_text('not a picture')
    Path('b/notes.txt').write_text('mine')
    Path('text.safetensors').write_text('hello' * 100)
    if 'pipe' in line: os.mkfifo('pipe')
    if 'exported' in line: command('export mnist-mini --to folder exported')
    if 'huge' in line:
        with open('huge.safetensors', 'wb') as f: f.truncate(2**40)
    if 'foreign' in line:
        state = TrainState(Denoiser(UNet(1, 8, (1,), 1, ()), V))
        save_checkpoint('foreign.safetensors', state, Schedule(cosine_betas(10)))
    if ' run ' in line: copied(runs, 'run')
    if ' plain ' in line: copied(runs, 'plain', 'network.labels=false')
    before = files(), {} if 'pipe' in line or 'huge' in line else contents()
    assert message in fails(line, capsys) and (files(), before[1] and contents()) == before

@pytest.mark.skipif(getattr(os, 'geteuid', int)() == 0, reason='root may write everywhere')
def test_an_unwritable_folder(capsys):
    Path('locked').mkdir(mode=0o500)
    Path('c.yaml').write_text(dump_config(tiny('locked/run')))
    assert 'run: locked/run cannot be written (Permission denied)' in fails('train c.yaml', capsys)

@pytest.mark.parametrize('name, words', [
    ('train', [dump_config(Config()), 'diffusion-train quickstart', 'name', *shipped_configs()]),
    ('sample', '--n --labels --steps --guidance --seed --out --animation --raw --device '
               'examples: google/ddpm-ema-celebahq-256'.split())])
def test_help_teaches(name, words, capsys):
    with pytest.raises(SystemExit) as e: command(f'{name} --help')
    said = capsys.readouterr().out
    assert not e.value.code and all(word in said for word in words)

def test_examples_of_editing_work_as_printed(capsys):
    "One after the other, in an empty folder; with fewer versions than printed, to save time"
    with pytest.raises(SystemExit): command('edit --help')
    printed = re.findall(r'^  diffusion-(.*)', capsys.readouterr().out, re.M)
    assert [line.split()[0] for line in printed] == ['sample', 'edit', 'edit']
    for line in printed:
        command(line if line.startswith('sample') else line + ' --n 1')
    assert Image.open('seven.png').size == (56, 56)
    assert Image.open('seven_edited.png').size == (2 * 59, 2 * 30)

# ---- sample
def test_sample_command(run, capsys):
    def check(file, y, columns, ema=True, **how):
        x = draw(*load_checkpoint('run', ema=ema), (1, 8, 8), 6, y, SamplingConfig(**how), seed=9,
                 progress=False)[-1].x
        assert np.array_equal(pixels(file), np.asarray(grid(x, columns, scale=2)))
    command('sample run --n 6 --seed 9')
    assert capsys.readouterr().out == 'run/samples_seed9.png\n'
    check('run/samples_seed9.png', torch.arange(6) % 2, 2, steps=3)
    command(f'sample {checkpoints(run)[0]} --n 6 --seed 9 --class bright --guidance 4 --steps 2 '
            '--solver ddim --raw --out a.png')
    check('a.png', torch.ones(6).long(), 3, False, steps=2, solver='ddim', guidance=4.)

@pytest.mark.parametrize('line, columns, rows', [
    ('run --n 64 --labels dark bright', 8, 8), ('run --n 64 --labels dark', 8, 8),
    ('run --n 21 --labels dark bright dark', 6, 4), ('run --n 3 --labels dark', 2, 2),
    ('run --n 2', 2, 1), ('plain --n 2', 2, 1), ('colour --n 5', 3, 2)])
def test_a_sheet_is_nearly_square_and_a_class_has_whole_columns(runs, line, columns, rows):
    "Also without labels, and of colour images wider than high; its folder is made"
    if 'colour' in line: colour_run('colour')
    elif 'plain' in line: copied(runs, 'plain', 'network.labels=false')
    else: copied(runs, 'run')
    command(f'sample {line} --steps 1 --out new/a.png')
    width = 13 if 'colour' in line else 9
    assert Image.open('new/a.png').size == (2 * (width * columns + 1), 2 * (9 * rows + 1))

def test_what_a_run_says_to_try_works_as_printed(capsys, monkeypatch):
    "By name, or by path where the shell does not find the name"
    run_it = lambda path: (monkeypatch.setenv('PATH', path), trained('a b', 2))
    run_it(f'{script("")}{os.pathsep}{os.environ["PATH"]}')
    lines = capsys.readouterr().out.partition('Now try\n')[2].splitlines()
    assert [line.split()[0] for line in lines] == [
        f'diffusion-{name}' for name in ('sample', 'train', 'export')]
    for line in lines: command(line.strip().removeprefix('diffusion-'))
    assert Path('a b/samples_seed0.gif').exists() and Path('my_model/model.safetensors').exists()
    run_it('nowhere')
    lines = capsys.readouterr().out.partition('Now try\n')[2].splitlines()
    assert lines and all(os.access(shlex.split(line)[0], os.X_OK) for line in lines)

# ---- export
def test_exported_folder_draws_the_same_images(run, capsys):
    command('export run --to folder kept')
    assert capsys.readouterr().out == 'kept\n'
    for model in ('run', 'kept'): command(f'sample {model} --n 4 --out {model}.png')
    assert np.array_equal(pixels('run.png'), pixels('kept.png'))
    command('export run --raw --to folder kept')               # a model of ours is replaced
    raw, kept = load_checkpoint('run', ema=False)[0], load('kept')[0]
    assert same(raw.net.state_dict(), kept.net.state_dict())
    command('export kept --half --to folder half')
    assert load_file('half/model.safetensors')['stem.weight'].dtype == torch.float16

def batch(n): return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))

@pytest.mark.parametrize('label, index', [('', -1), ('--label bright', 1)])
def test_exported_pipeline_is_the_network_at_that_label(run, label, index):
    diffusers = pytest.importorskip('diffusers')
    command(f'export run --to diffusers pipe {label}')
    net, pipe = load_checkpoint('run')[0].net, diffusers.DDPMPipeline.from_pretrained('pipe')
    x, t = batch(2), torch.tensor([3, 700])
    with torch.no_grad():  # sums in another order
        torch.testing.assert_close(pipe.unet(x, t - 1).sample,
                                   net(x, t, torch.full((2,), index)), rtol=1e-4, atol=1e-6)
    how = pipe.scheduler.config
    assert how.prediction_type == 'epsilon' and how.clip_sample

def test_exported_onnx_is_the_network(run, capsys):
    onnxruntime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    capsys.readouterr()
    command('export run --to onnx net.onnx')
    said = capsys.readouterr()
    assert said.out == 'net.onnx\n' and len(said.err.splitlines()) > 3  # each stage is named
    x, t, y = batch(3), torch.tensor([1, 30, 1000]), torch.tensor([0, 1, -1])
    [theirs] = onnxruntime.InferenceSession('net.onnx').run(None, dict(
        x=x.numpy(), t=t.numpy(), y=y.numpy()))
    with torch.no_grad(): ours = load_checkpoint('run')[0].net(x, t, y)
    torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=1e-4, atol=1e-5)

# ---- edit
def paint(file, h, w, white=np.s_[:0], value=255, exif=b''):
    "A black picture with a part of it white"
    a = np.zeros((h, w), np.uint8)
    a[white] = value
    Image.fromarray(a).save(file, exif=exif)

@pytest.fixture
def picture():
    "8 x 8 bytes, and a mask whose white half is to be drawn again"
    a = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(a).save('picture.png')
    paint('mask.png', 8, 8, np.s_[4:])
    return a

def cells(file, n):
    "The pictures in a row of a grid, one pixel for each of theirs"
    a = np.asarray(Image.open(file).convert('L'))[::2, ::2]
    return [a[1:9, 1 + 9 * i:9 + 9 * i] for i in range(n)]

@pytest.mark.parametrize('words, kept', [
    *((f'mask.png {more}', np.s_[:4]) for more in (
        '', '--solver dpm++ --class dark --guidance 1', '--solver ddim --repeats 3',
        '--solver heun --strength 0.4', '--repeats 2')),
    ('top', np.s_[4:]), ('bottom', np.s_[:4]), ('left', np.s_[:, 4:]), ('right', np.s_[:, :4])])
def test_what_the_mask_keeps_is_kept_to_the_last_bit(run, picture, words, kept):
    "And the rest is drawn again: where a mask is white, or the half that is named"
    command(f'edit run picture.png --mask {words} --n 3 --seed 1')
    original, *drawn = cells('picture_edited.png', 4)
    assert np.array_equal(original, picture) and not np.array_equal(drawn[0], drawn[1])
    for d in drawn:
        changed = d != picture
        assert not changed[kept].any() and changed.sum() > 16

@pytest.mark.parametrize('background', ['white', 'black', '#404040'])
def test_a_transparent_picture_lies_on_the_background_of_the_training(background, mini):
    "What is kept is eq-background of half-transparent gray; white where the weights say nothing"
    Path('photos').mkdir()
    for i in range(2): Image.fromarray(mini.images[i, 0].numpy()).save(f'photos/{i}.png')
    trained('own', 1, 'training.batch_size=2', 'data={name: folder, root: photos, size: 8, '
            f'channels: 1, background: "{background}"}}')
    Image.new('LA', (8, 8), (100, 128)).save('clear.png')
    paint('mask.png', 8, 8, np.s_[4:])
    command('edit own clear.png --mask mask.png --n 1')
    b = Image.new('L', (1, 1), background).getpixel((0, 0))
    kept = cells('clear_edited.png', 2)[1][:4]
    assert np.abs(kept - (128 * 100 + 127 * b) / 255).max() <= 1

def test_a_little_strength_changes_little(run, picture):
    "t = 1 of 1,000 adds a std of 0.6 % of the range, and one step takes most of it off"
    change = []
    for strength in ('0.001', '0.3', '1'):
        command(f'edit run picture.png --n 2 --strength {strength} --out s.png --steps 50')
        original, *drawn = cells('s.png', 3)
        change.append(np.abs(np.stack(drawn).astype(float) - original).mean())
    assert change[0] < 4 < change[1] < change[2]

def test_versions_depend_on_the_seed_and_their_number(run, picture):
    for n in (2, 4): command(f'edit run picture.png --n {n} --seed 5 --out {n}.png')
    for a, b in zip(cells('2.png', 3), cells('4.png', 3)):
        assert np.abs(a.astype(int) - b).max() <= 1  # sums in another order

EXIF = Image.Exif()
EXIF[0x0112] = 6
ON_ITS_SIDE = (np.s_[:0], 255, EXIF)  # a black picture

WHITE = 'white (128 to 255) is drawn again, black is kept; paint the part white that is to change'
NONE = f'--mask: m.png has no white; {WHITE}'
LOST = ('--mask: m.png has no white left when it is cropped to its middle and resized to 28 x 28 '
        f'pixels, like its picture; {WHITE}')
def size(mask, picture):
    return (f'--mask: m.png is {mask} pixels and p.png {picture}; a mask must be as large as its '
            f'picture; give one of {picture} pixels')

@pytest.mark.parametrize('picture, mask, message', [
    ((28, 28), (28, 56, np.s_[:, 20:]), size('56 x 28', '28 x 28')),
    ((28, 56), (28, 28, np.s_[14:]), size('28 x 28', '56 x 28')),
    ((28, 28), (56, 56, np.s_[28:]), size('56 x 56', '28 x 28')),
    ((28, 28), (1, 1, 0), size('1 x 1', '28 x 28')),
    ((28, 56, *ON_ITS_SIDE), (28, 56, np.s_[14:]), size('56 x 28', '28 x 56')),
    ((28, 28), (28, 28), NONE), ((28, 56), (28, 56), NONE),
    ((28, 28), (28, 28, np.s_[:], 127), NONE), ((28, 56), (28, 56, np.s_[:, :14]), LOST),
    ((280, 280), (280, 280, np.s_[0, 0]), LOST)])
def test_edit_command_refuses_a_mask_that_does_not_fit(picture, mask, message, capsys):
    paint('p.png', *picture)
    paint('m.png', *mask)
    before = files()
    said = fails('edit mnist-mini p.png --mask m.png --n 1 --steps 2', capsys)
    assert message in said and files() == before

@pytest.mark.parametrize('picture, mask, kept', [
    ((8, 8), (8, 8, np.s_[:]), np.s_[:0]),           # all is drawn again
    ((8, 8), (8, 8, np.s_[4:], 128), np.s_[:4]),
    ((8, 16), (8, 16, np.s_[:, 8:]), np.s_[:, :4]),  # both are cropped
    ((8, 16, *ON_ITS_SIDE), (16, 8, np.s_[8:]), np.s_[:4])])
def test_a_mask_as_large_as_its_picture(run, picture, mask, kept):
    "A file with the name of a half comes before the half"
    paint('p.png', *picture)
    paint('m.png', *mask)
    os.rename('m.png', 'left')
    command('edit run p.png --mask left --n 1 --out o.png')
    original, drawn = cells('o.png', 2)
    changed = original != drawn  # some pixels that are drawn again may be black again
    assert not changed[kept].any() and changed.sum() > 0.5 * (64 - original[kept].size)

@pytest.mark.parametrize('out', [
    'picture.png', '{here}/picture.png', '../{here.name}/picture.png', 'link.png', 'mask.png',
    '{here}/mask.png', 'picture_edited.png'])
def test_edit_command_does_not_overwrite_its_picture_or_its_mask(picture, out, tmp_path, capsys):
    Path('link.png').symlink_to('picture.png')
    Path('picture_edited.png').symlink_to(tmp_path/'mask.png')
    before, links = contents(), [Path(f).is_symlink() for f in files()]
    out = out.format(here=tmp_path)
    said = fails(f'edit mnist-mini picture.png --mask mask.png --n 1 --steps 2 --out {out}', capsys)
    assert (f'--out: {out} {ALLOWED} a name that ends in .png, and not the picture or the mask '
            'itself') in said
    assert contents() == before and [Path(f).is_symlink() for f in files()] == links

def test_guidance_of_the_config_needs_no_class(run, picture):
    "Nor does 0. Scale 10,000, for two steps teach next to nothing; sample draws every class"
    trained('strong', 2, 'sampling.guidance=10000')
    def drawn(line):
        command(f'{line} --n 2 --out a.png')
        return Path('a.png').read_bytes()
    own, strong, zero = (drawn(f'edit {words}') for words in (
        'run picture.png', 'strong picture.png', 'strong picture.png --guidance 0'))
    assert own == strong == zero
    own, asked, strong = (drawn(f'sample {words}') for words in (
        'run', 'run --guidance 10000', 'strong'))
    assert own != asked == strong

# ---- consoles, and what nobody foresaw
@contextlib.contextmanager
def console(encoding):
    "A console of this encoding, as Python opens one: it refuses what it cannot show"
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err): yield out, err

@pytest.mark.parametrize('encoding', ['ascii', 'cp1252'])
def test_no_console_stops_a_run_or_a_command(encoding, picture):
    "Neither names nor the plus-minus sign of the judge; and a name cannot command the terminal"
    name = 'runs/日本 ±\x1b[31m'
    Path('c.yaml').write_text(dump_config(tiny('x', 2, 'judge=30')))
    with console(encoding) as (out, err):
        cli.train_command(['c.yaml', f'run={name}'])
        cli.sample_command([name, '--n', '2', '--out', '\udcff\x1b[31m.png'])
        with pytest.raises(SystemExit): cli.sample_command(['\x1b[31m', '--n', '2'])
    for stream in (out, err): stream.flush()
    said = out.buffer.getvalue(), err.buffer.getvalue()
    assert Path(name, 'run.json').is_file() and Path('\udcff\x1b[31m.png').is_file()
    assert rb'\xff\x1b[31m.png' in said[0] and rb'\x1b[31m/samples.png' in said[0]
    assert b'\x1b' not in said[0] + said[1]
    assert rb'error: \x1b[31m is neither a path here' in said[1]

@pytest.mark.skipif(os.name == 'nt', reason='pipes of POSIX')
@pytest.mark.parametrize('line', ['train --help', 'train c.yaml', 'train no.yaml'])
def test_a_reader_who_leaves_takes_nothing_along(line):
    "As `| head` does: no traceback, and a run goes on to its end"
    Path('c.yaml').write_text(dump_config(tiny('run', 2)))
    seen, ours = os.pipe()
    os.close(seen)
    p = subprocess.run([script('diffusion-train'), line.split()[1]], stdout=ours, stderr=ours)
    os.close(ours)
    assert p.returncode == (2 if 'no.yaml' in line else 0)
    assert Path('run/run.json').is_file() == ('c.yaml' in line)

@pytest.mark.parametrize('error, status, message', [
    (KeyError('a\nb'), 1, "error: KeyError: 'a\\nb'\nThis error was not expected"),
    (RecursionError('deep'), 1, 'error: RecursionError: deep\n'),
    (MemoryError(), 2, 'error: the memory of the accelerator or of this machine is full; lower '),
    (torch.OutOfMemoryError('CUDA'), 2, 'error: the memory of the accelerator or of this machine'),
    (RuntimeError("alloc_cpu.cpp: DefaultCPUAllocator: can't allocate memory: you tried to"), 2,
     'error: the memory of the accelerator or of this machine is full; lower training.batch_size'),
    (ValueError('x' * 5000), 2, 'error: ' + 'x' * 600), (KeyboardInterrupt(), 130, 'stopped; ')])
def test_whatever_is_raised_ends_in_a_line_or_two(error, status, message, monkeypatch, capsys):
    def fail(_): raise error
    monkeypatch.setattr(cli, 'train', fail)
    Path('c.yaml').write_text('device: cpu')
    for words in (['c.yaml'], ['c.yaml', '--debug']):
        with pytest.raises(SystemExit) as e: cli.train_command(words)
        said = capsys.readouterr().err
        assert e.value.code == status and message in said
        assert ('Traceback' in said) == ('--debug' in words and status != 130)
        if '--debug' not in words: assert len(said) < 1100 and len(said.splitlines()) <= 2

@pytest.mark.parametrize('line', ['sample nowhere', 'export nowhere --to folder a',
                                  'edit nowhere picture.png', 'evaluate nowhere'])
def test_every_command_shows_the_traceback_if_asked(line, picture, capsys):
    fails(line, capsys)
    with pytest.raises(SystemExit): command(f'{line} --debug')
    assert 'Traceback' in capsys.readouterr().err

@pytest.mark.parametrize('line, says', [
    ('sample run --nonsense', 'unrecognized arguments: --nonsense'),
    ('sample run --n', 'argument --n: expected one argument'),
    ('sample', 'the following arguments are required: model'),
    ('edit run a.png --s 1', 'ambiguous option: --s could match'),
    *((line, 'give a config to train, or --diagnose RUN')
      for line in ('train', 'train c.yaml --diagnose run'))])
def test_a_loose_end_in_the_words_is_named_in_one_line(line, says, capsys):
    said = fails(line, capsys)
    assert says in said and '--help shows all options' in said and said.count('\n') == 1

def test_evaluate_can_pass_over_what_its_error_says_can_be_passed_over(capsys, monkeypatch):
    Path('pictures').mkdir()
    for i in range(3): paint(f'pictures/{i}.png', 28, 28, value=i)
    Path('pictures/a.png').write_text('no picture')
    def fail(denoiser, schedule, data, *_, **__): raise ValueError(f'{len(data)} images')
    monkeypatch.setattr(cli, 'evaluate_model', fail)
    assert '3 images' in fails('evaluate mnist-mini --data pictures --corrupt skip', capsys)
    assert "corrupt='skip'" in fails('evaluate mnist-mini --data pictures', capsys)
