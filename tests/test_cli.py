"""The commands from outside: the real console scripts, stopped and started again; and, in this
process, what they write, refuse and leave alone"""
import os, re, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_run import colour_run, contents, elsewhere, files, same, tiny, trained

from diffusion_scratch.cli import edit_command, export_command, sample_command, train_command
from diffusion_scratch.config import Config, SamplingConfig, dump_config
from diffusion_scratch.denoiser import V, Denoiser
from diffusion_scratch.pictures import grid
from diffusion_scratch.pretrained import load
from diffusion_scratch.run import draw
from diffusion_scratch.schedule import Schedule, cosine_betas
from diffusion_scratch.training import TrainState
from diffusion_scratch.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from diffusion_scratch.unet import UNet

ROOT = Path(__file__).parent.parent

def fails(command, line, capsys, status=2):
    "What a command that fails says, in the one place where it should"
    capsys.readouterr()
    with pytest.raises(SystemExit) as e: command(line)
    out, err = capsys.readouterr()
    assert e.value.code == status and 'Traceback' not in err
    return err

def pixels(file): return np.asarray(Image.open(file))

# ---------------------------------------------------------------- the real commands
def start(*words, cwd):
    env = os.environ | dict(OMP_NUM_THREADS='1', MKL_NUM_THREADS='1')
    return subprocess.Popen([str(w) for w in words], cwd=cwd, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env=env)

def script(name): return Path(sys.executable).parent/name

def stopped(process, metrics, number, more_than=0):
    "Wait for some lines of metrics, then send a signal"
    deadline = time.time() + 300  # a busy machine takes a minute to import torch
    def lines(): return metrics.read_text().count('\n') if metrics.exists() else 0
    while time.time() < deadline and process.poll() is None and lines() < more_than + 4:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err

@pytest.mark.skipif(os.name == 'nt', reason='signals of POSIX')
def test_stop_go_on_finish_and_sample(tmp_path, capsys):
    """SIGTERM and Ctrl-C save and say how to go on; the same command (here the script in
    examples/) goes on; diffusion-sample draws from what there is"""
    net = 'network={channels: 8, multipliers: [1], attention: [], unshuffle: 4}'
    (tmp_path/'c.yaml').write_text(dump_config(tiny('run', 100_000, net)))
    command, metrics = [script('diffusion-train'), 'c.yaml'], tmp_path/'run'/'metrics.csv'
    code, out, err = stopped(start(*command, cwd=tmp_path), metrics, signal.SIGTERM)
    assert code == 130 and 'Traceback' not in err and 'loss ' in err and 'images/s' in err
    assert "ImageSet('mnist_mini': 5,000 images (1, 28, 28), 10 classes)" in out
    said = re.search(r'stopped after step ([\d,]+), saved in run/checkpoints/step_\d{8}\.'
                     r'safetensors; the same command goes on from there', err)
    first = int(said[1].replace(',', ''))

    command = [sys.executable, ROOT/'examples'/'train.py', 'c.yaml']
    code, out, err = stopped(start(*command, cwd=tmp_path), metrics, signal.SIGINT, first)
    second = int(re.search(r'stopped after step ([\d,]+)', err)[1].replace(',', ''))
    assert code == 130 and f'going on after step {first:,} of 100,000' in out and second > first
    rows = np.loadtxt(metrics, delimiter=',', skiprows=1)
    assert rows[:, 0].tolist() == list(range(1, second + 1))
    assert not [f for f in files('run') if 'part' in f]

    words = 'run --n 6 --labels 7 1 --animation'.split()
    p = start(script('diffusion-sample'), *words, cwd=tmp_path)
    out, err = p.communicate(timeout=300)
    assert p.returncode == 0 and out == 'run/samples_seed0.png\n'
    assert Image.open('run/samples_seed0.png').size == (2 * (2 * 29 + 1), 2 * (3 * 29 + 1))
    assert Image.open('run/samples_seed0.gif').n_frames == 4  # 3 steps have 4 moments

# ---------------------------------------------------------------- train
ALLOWED = 'is not allowed; allowed:'

@pytest.mark.parametrize('words, message', [
    ('no.yaml', 'no.yaml does not exist'),
    ('c.yaml data.name=cifar', f"data.name: 'cifar' {ALLOWED} mnist_mini, mnist, cifar10, folder. "
                               'Did you mean cifar10?'),
    ('c.yaml training.batch_size=41',
     f'training.batch_size: 41 {ALLOWED} whole number >= 1 and <= 40'),
    ('c.yaml device=warp', "device: 'warp' is not here; allowed: auto, cpu"),
    ('c.yaml device=cuda:99', "device: 'cuda:99' is not here; allowed: auto, cpu"),
    ('c.yaml device=meta', "device: 'meta' is not here"),
    ('c.yaml run=c.yaml', 'run: c.yaml cannot be written (Not a directory)'),
    ('c.yaml run=c.yaml/deep/er', 'run: c.yaml/deep/er cannot be written (Not a directory)'),
    ('c.yaml data={name:\tfolder}', 'data is not YAML'),
    ('c.yaml data={name: folder, root: nowhere}', 'nowhere is not a folder'),
    ('c.yaml data={name: folder, root: empty}', 'empty holds no files'),
    ('c.yaml data={name: folder, root: texts}', 'is not an image that can be read'),
    ('c.yaml network.multipliers=[1,1,1,1,1]', 'network.multipliers: 5 levels')])
def test_bad_input_leaves_nothing_behind(words, message, capsys):
    Path('c.yaml').write_text(dump_config(tiny('run')))
    Path('empty').mkdir()
    Path('texts').mkdir()
    Path('texts/a.png').write_text('not a picture')
    before = files()
    said = fails(train_command, words.split(' ', 1), capsys)
    assert re.search('^error: ', said, re.M) and message in said and files() == before

@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0,
                    reason='root may write everywhere')
def test_an_unwritable_folder(capsys):
    Path('locked').mkdir(mode=0o500)
    Path('c.yaml').write_text(dump_config(tiny('locked/run')))
    said = fails(train_command, ['c.yaml'], capsys)
    assert 'run: locked/run cannot be written (Permission denied)' in said

def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as e: train_command(['--help'])
    said = capsys.readouterr().out
    assert e.value.code == 0 and dump_config(Config()) in said
    assert 'diffusion-train configs/quickstart.yaml' in said
    with pytest.raises(SystemExit): sample_command(['--help'])
    said = capsys.readouterr().out
    for word in ('--n --labels --steps --guidance --seed --out --animation --raw --device '
                 'examples: google/ddpm-ema-celebahq-256').split(): assert word in said

# ---------------------------------------------------------------- sample
@pytest.fixture
def run(): return trained('run', 2)

def test_sample_command(run, capsys):
    def expected(y, ema=True, **how):
        denoiser, schedule = load_checkpoint('run', ema=ema)
        sampling = SamplingConfig(**how)
        return draw(denoiser, schedule, (1, 8, 8), 6, y, sampling, seed=9, progress=False)[-1].x
    sample_command('run --n 6 --seed 9'.split())
    assert capsys.readouterr().out == 'run/samples_seed9.png\n'
    x = expected(torch.arange(6) % 2, steps=3)
    assert np.array_equal(pixels('run/samples_seed9.png'), np.asarray(grid(x, 2, scale=2)))
    sample_command(f'{checkpoints(run)[0]} --n 6 --seed 9 --class bright --guidance 4 --steps 2 '
                   '--solver ddim --raw --out a.png'.split())
    y = torch.ones(6, dtype=torch.long)
    x = expected(y, ema=False, steps=2, solver='ddim', guidance=4.)
    assert np.array_equal(pixels('a.png'), np.asarray(grid(x, 3, scale=2)))

@pytest.mark.parametrize('words, message', [
    ('nowhere', 'nowhere is no path here and no name that is known'),
    ('empty', 'empty holds no model; allowed: a run of diffusion-train'),
    ('text.safetensors', 'text.safetensors is not a whole checkpoint'),
    ('foreign.safetensors', 'foreign.safetensors does not say how large its images are'),
    ('run --n 0', f'--n: 0 {ALLOWED} whole number >= 1'),
    ('run --labels dark grey', f'--labels: grey {ALLOWED} dark, bright'),
    ('run --class dark grey', f'--class: grey {ALLOWED} dark, bright'),
    ('run --steps 0', f'steps: 0 {ALLOWED} whole number >= 1'),
    ('run --steps 1001', f'--steps: 1001 {ALLOWED} whole number >= 1 and <= 1000'),
    ('run --guidance -3', f'guidance: -3.0 {ALLOWED} number >= -1'),
    ('run --solver dpm', f"solver: 'dpm' {ALLOWED} ancestral, ddim, dpm++, dpm++sde, heun. "
                         'Did you mean dpm++?'),
    ('run --guidance nan', 'guidance: nan is not allowed'),
    ('run --device warp', "device: 'warp' is not here"),
    ('run --out grid.jpeg', f'--out: grid.jpeg {ALLOWED} a name that ends in .png'),
    ('run --out text.safetensors/a.png',
     '--out: text.safetensors cannot be written (Not a directory)'),
    ('run --seed -1', 'seed = -1 is outside')])
def test_sample_command_refuses(run, words, message, capsys):
    Path('empty').mkdir()
    Path('text.safetensors').write_text('hello' * 100)
    state = TrainState(Denoiser(UNet(1, 8, (1,), 1, ()), V))
    save_checkpoint('foreign.safetensors', state, Schedule(cosine_betas(10)))
    before = files()
    assert message in fails(sample_command, words.split(), capsys) and files() == before

def test_a_model_without_labels(capsys):
    trained('plain', 2, 'network.labels=false')
    said = fails(sample_command, 'plain --guidance 2'.split(), capsys)
    assert f'--guidance: 2.0 {ALLOWED} 0, for this model learned no classes' in said
    sample_command('plain --n 2'.split())
    assert Image.open('plain/samples_seed0.png').size == (2 * 19, 2 * 10)

def test_colour_images_without_labels(capsys):
    colour_run()
    for option in ('--labels', '--class'):
        said = fails(sample_command, f'run {option} 1'.split(), capsys)
        none = 'none, for this model learned no classes; leave it out'
        assert f'{option}: 1 {ALLOWED} {none}' in said
    sample_command('run --n 5 --out new/grid.png'.split())
    assert Image.open('new/grid.png').size == (2 * (3 * 13 + 1), 2 * (2 * 9 + 1))

# ---------------------------------------------------------------- export
def test_exported_folder_draws_the_same_images(run, capsys):
    export_command('run --to folder kept'.split())
    assert capsys.readouterr().out == 'kept\n'
    for model in ('run', 'kept'): sample_command(f'{model} --n 4 --out {model}.png'.split())
    assert np.array_equal(pixels('run.png'), pixels('kept.png'))
    export_command('run --raw --to folder kept'.split())       # a model of ours is replaced
    raw, kept = load_checkpoint('run', ema=False)[0], load('kept')[0]
    assert same(raw.net.state_dict(), kept.net.state_dict())
    export_command('kept --half --to folder half'.split())
    assert load_file('half/model.safetensors')['stem.weight'].dtype == torch.float16

def batch(n): return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))

@pytest.mark.parametrize('label, index', [(None, -1), ('bright', 1)])
def test_exported_pipeline_is_the_network_at_that_label(run, label, index):
    diffusers = pytest.importorskip('diffusers')
    export_command(['run', '--to', 'diffusers', 'pipe', *(['--label', label] if label else [])])
    net, pipe = load_checkpoint('run')[0].net, diffusers.DDPMPipeline.from_pretrained('pipe')
    x, t = batch(2), torch.tensor([3, 700])
    with torch.no_grad():
        ours, theirs = net(x, t, torch.full((2,), index)), pipe.unet(x, t - 1).sample
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-6)  # sums in another order
    how = pipe.scheduler.config
    assert how.prediction_type == 'epsilon' and how.clip_sample

def test_exported_onnx_is_the_network(run):
    onnxruntime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    export_command('run --to onnx net.onnx'.split())
    net, session = load_checkpoint('run')[0].net, onnxruntime.InferenceSession('net.onnx')
    x, t, y = batch(3), torch.tensor([1, 30, 1000]), torch.tensor([0, 1, -1])
    with torch.no_grad(): ours = net(x, t, y)
    [theirs] = session.run(None, dict(x=x.numpy(), t=t.numpy(), y=y.numpy()))
    torch.testing.assert_close(torch.from_numpy(theirs), ours, rtol=1e-4, atol=1e-5)

@pytest.mark.parametrize('words, message', [
    ('nowhere --to folder a', 'nowhere is no path here and no name that is known'),
    ('run --to folder b', 'b is there already'),
    ('run --to onnx a', f'a {ALLOWED} a file that ends in .onnx'),
    ('run --to diffusers a --label grey', f'--label: grey {ALLOWED} dark, bright'),
    ('run --to onnx a.onnx --label dark',
     '--label goes with --to diffusers, not with --to onnx'),
    ('run --to diffusers a --half', '--half goes with --to folder, not with --to diffusers'),
    ('run --to folder run/metrics.csv/a', 'cannot write run/metrics.csv/a'),
    ('run --to tensorflow a', "invalid choice: 'tensorflow'")])
def test_export_command_refuses(run, words, message, capsys):
    Path('b').mkdir()
    Path('b/notes.txt').write_text('mine')
    before = files()
    assert message in fails(export_command, words.split(), capsys) and files() == before

# ---------------------------------------------------------------- edit
def paint(file, h, w, white=np.s_[:0], value=255, **how):
    "A black picture with a part of it white"
    a = np.zeros((h, w), np.uint8)
    a[white] = value
    Image.fromarray(a).save(file, **how)

@pytest.fixture
def picture():
    "8 x 8 bytes, and a mask whose white half is to be drawn anew"
    a = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(a).save('picture.png')
    paint('mask.png', 8, 8, np.s_[4:])
    return a

def cells(file, n):
    "The pictures in a row of a grid, one pixel for each of theirs"
    a = np.asarray(Image.open(file).convert('L'))[::2, ::2]
    return [a[1:9, 1 + 9 * i:9 + 9 * i] for i in range(n)]

@pytest.mark.parametrize('more', [
    '', '--solver dpm++ --class dark --guidance 1', '--solver ddim --repeats 3',
    '--solver heun --strength 0.4', '--repeats 2'])
def test_what_the_mask_keeps_is_kept_to_the_last_bit(run, picture, more):
    edit_command(f'run picture.png --mask mask.png --n 3 --seed 1 {more}'.split())
    original, *drawn = cells('picture_edited.png', 4)
    assert np.array_equal(original, picture) and len(drawn) == 3
    for d in drawn:
        assert np.array_equal(d[:4], picture[:4]) and not np.array_equal(d[4:], picture[4:])
    assert not np.array_equal(drawn[0], drawn[1])

def test_a_little_strength_changes_little(run, picture):
    "t = 1 of 1,000 adds a std of 0.6 % of the range, and one step takes most of it off"
    change = []
    for strength in ('0.001', '0.3', '1'):
        line = f'run picture.png --n 2 --strength {strength} --out s.png --steps 50'
        edit_command(line.split())
        original, *drawn = cells('s.png', 3)
        change.append(np.abs(np.stack(drawn).astype(float) - original).mean())
    assert change[0] < 4 < change[1] < change[2]

def test_versions_depend_on_the_seed_and_their_number(run, picture):
    for n in (2, 4): edit_command(f'run picture.png --n {n} --seed 5 --out {n}.png'.split())
    for a, b in zip(cells('2.png', 3), cells('4.png', 3)):
        assert np.abs(a.astype(int) - b).max() <= 1  # sums in another order

@pytest.mark.parametrize('words, message', [
    ('nowhere picture.png', 'nowhere is no path here and no name that is known'),
    ('run gone.png', 'picture: gone.png cannot be read (No such file or directory); '
                     'give an image file'),
    ('run picture.png --mask text.txt',
     '--mask: text.txt cannot be read (it is in no format that Pillow knows)'),
    ('run picture.png --strength 0', f'--strength: 0.0 {ALLOWED} number > 0 and <= 1'),
    ('run picture.png --strength nan', '--strength: nan is not allowed'),
    ('run picture.png --repeats 0', 'repeats = 0 must'),
    ('run picture.png --n 0', '--n: 0 is not allowed'),
    ('run picture.png --class grey', f'--class: grey {ALLOWED} dark, bright'),
    ('run picture.png --label grey', f'--label: grey {ALLOWED} dark, bright'),
    ('run picture.png --solver euler', "solver: 'euler' is not allowed"),
    ('run picture.png --guidance 3',
     '--guidance: 3.0 goes with --class, the class to draw; allowed: dark, bright; '
     'give --class too, or leave --guidance out'),
    ('plain picture.png --guidance 3',
     f'--guidance: 3.0 {ALLOWED} 0, for this model learned no classes')])
def test_edit_command_refuses(run, picture, words, message, capsys):
    Path('text.txt').write_text('no image')
    if words.startswith('plain'): trained('plain', 2, 'network.labels=false')
    before = files()
    assert message in fails(edit_command, words.split(), capsys) and files() == before

def turned():
    "Metadata of a picture that lies on its side"
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif

WHITE = 'white (128 to 255) is drawn anew, black is kept; paint white what is to change'
NONE = f'--mask: m.png has no white; {WHITE}'
LOST = ('--mask: m.png has no white left when it is cropped to its middle and resized to 28 x 28 '
        f'pixels, as its picture is; {WHITE}')
def size(mask, picture):
    return (f'--mask: m.png is {mask} pixels and p.png {picture}; a mask must be as large as its '
            f'picture; give one of {picture} pixels')

@pytest.mark.parametrize('picture, mask, message', [
    (dict(h=28, w=28), dict(h=28, w=56, white=np.s_[:, 20:]), size('56 x 28', '28 x 28')),
    (dict(h=28, w=56), dict(h=28, w=28, white=np.s_[14:]), size('28 x 28', '56 x 28')),
    (dict(h=28, w=28), dict(h=56, w=56, white=np.s_[28:]), size('56 x 56', '28 x 28')),
    (dict(h=28, w=28), dict(h=1, w=1, white=0), size('1 x 1', '28 x 28')),
    (dict(h=28, w=56, exif=turned()), dict(h=28, w=56, white=np.s_[14:]),
     size('56 x 28', '28 x 56')),
    (dict(h=28, w=28), dict(h=28, w=28), NONE), (dict(h=28, w=56), dict(h=28, w=56), NONE),
    (dict(h=28, w=28), dict(h=28, w=28, white=np.s_[:], value=127), NONE),
    (dict(h=28, w=56), dict(h=28, w=56, white=np.s_[:, :14]), LOST),
    (dict(h=280, w=280), dict(h=280, w=280, white=np.s_[0, 0]), LOST)])
def test_edit_command_refuses_a_mask_that_does_not_fit(picture, mask, message, capsys):
    paint('p.png', **picture)
    paint('m.png', **mask)
    before, line = files(), 'mnist-mini p.png --mask m.png --n 1 --steps 2'
    assert message in fails(edit_command, line.split(), capsys) and files() == before

@pytest.mark.parametrize('picture, mask, kept', [
    (dict(h=8, w=8), dict(h=8, w=8, white=np.s_[:]), np.s_[:0]),           # all is drawn anew
    (dict(h=8, w=8), dict(h=8, w=8, white=np.s_[4:], value=128), np.s_[:4]),
    (dict(h=8, w=16), dict(h=8, w=16, white=np.s_[:, 8:]), np.s_[:, :4]),  # both are cropped
    (dict(h=8, w=16, exif=turned()), dict(h=16, w=8, white=np.s_[8:]),     # upright: 8 wide
     np.s_[:4])])
def test_a_mask_as_large_as_its_picture(run, picture, mask, kept):
    paint('p.png', **picture)
    paint('m.png', **mask)
    edit_command('run p.png --mask m.png --n 1 --out o.png'.split())
    original, drawn = cells('o.png', 2)
    changed = original != drawn  # a few pixels that are drawn anew may come out black again
    assert not changed[kept].any() and changed.sum() > 0.5 * (64 - original[kept].size)

@pytest.mark.parametrize('out', [
    'picture.png', '{here}/picture.png', '../{here.name}/picture.png', 'link.png', 'mask.png',
    '{here}/mask.png', 'picture_edited.png'])
def test_edit_command_does_not_overwrite_its_picture_or_its_mask(picture, out, tmp_path, capsys):
    Path('link.png').symlink_to('picture.png')
    Path('picture_edited.png').symlink_to(tmp_path/'mask.png')
    before, links = contents(), [Path(f).is_symlink() for f in files()]
    out = out.format(here=tmp_path)
    line = f'mnist-mini picture.png --mask mask.png --n 1 --steps 2 --out {out}'
    said = fails(edit_command, line.split(), capsys)
    assert (f'--out: {out} {ALLOWED} a name that ends in .png, and not the picture or the mask '
            'itself') in said
    assert contents() == before and [Path(f).is_symlink() for f in files()] == links

def test_guidance_of_the_config_needs_no_class(run, picture):
    """And neither does 0, which is none. `diffusion-sample` draws every class if none is named,
    so there guidance alone means something. 10,000, for two steps teach next to nothing"""
    trained('strong', 2, 'sampling.guidance=10000')
    for words in ('run picture.png --out own.png', 'strong picture.png --out strong.png',
                  'strong picture.png --guidance 0 --out zero.png'):
        edit_command(f'{words} --n 2'.split())
    own, strong, zero = (Path(f'{f}.png').read_bytes() for f in ('own', 'strong', 'zero'))
    assert own == strong == zero
    for words in ('run --out own.png', 'run --guidance 10000 --out asked.png',
                  'strong --out strong.png'): sample_command(f'{words} --n 2'.split())
    own, asked, strong = (Path(f'{f}.png').read_bytes() for f in ('own', 'asked', 'strong'))
    assert own != asked == strong
