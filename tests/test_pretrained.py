"Weights in: against diffusers' networks, a hub of our own making, and folders that are no model"
import hashlib, inspect, json, os, re, shutil, subprocess, sys
from pathlib import Path
import pytest
import torch
from conftest import refused
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from helpers_damage import never_silent
from helpers_pretrained import (ABOUT, CELEBA, SMALL, TINY, S, compare, edit, images, make,
                                publish, same, theirs, tree)
from safetensors.torch import load_file, save_file
from torch import nn
from diffusion_scratch import pretrained
from diffusion_scratch.checkpoint import (about_checkpoint, bare_weights, load_checkpoint, resume,
                                          save_checkpoint)
from diffusion_scratch.cli import export_command, sample_command, train_command
from diffusion_scratch.config import SamplingConfig, dump_config, parse_config
from diffusion_scratch.data import mnist_mini
from diffusion_scratch.denoiser import EPS, V, X0, Denoiser, Parameterization, clipped
from diffusion_scratch.export import export_diffusers
from diffusion_scratch.guidance import guided
from diffusion_scratch.pretrained import (
    DIFFUSERS_WEIGHTS, PUBLISHED, SCHEDULER_DEFAULTS, UNET2D_DEFAULTS, WEIGHTS, about, convert,
    find, from_diffusers, load, read_scheduler, save, to_diffusers, unet2d_values, unet_arguments)
from diffusion_scratch.schedule import Schedule, linear_betas
from diffusion_scratch.training import TrainState, fit
from diffusion_scratch.unet import UNet

@pytest.fixture
def reference(): return theirs(TINY)

@pytest.fixture
def published(tmp_path, reference): return publish(tmp_path/'published', reference)

@pytest.fixture
def saved(tmp_path): return save(make(), S, tmp_path/'net')

def test_published_network_of_256_pixels():  # eq-t-shift, eq-pointwise
    "On a smaller image to be quick, without files. That of CIFAR-10: chapter 23"
    reference, config = theirs(CELEBA), dict(CELEBA, _class_name='UNet2DModel')
    with torch.device('meta'): net = UNet(**unet_arguments(config, Path('config.json')))
    net = net.to_empty(device='cpu').eval()
    net.load_state_dict(from_diffusers(reference.state_dict(), net, Path('weights')))
    assert sum(p.numel() for p in net.parameters()) == 113_673_219
    compare(net, reference, images(1, 3, 64, 64), (1, 1000))
    with torch.device('meta'): back = UNet2DModel(**CELEBA)
    back.load_state_dict(to_diffusers(net.state_dict()), assign=True)
    assert same(back, reference)

@pytest.mark.parametrize('options', [
    dict(), dict(sample_size=[8, 12]),
    dict(attention_head_dim=32, time_embedding_dim=64, attn_norm_num_groups=4, act_fn='swish',
         num_train_timesteps=77, class_embed_type=None),
    dict(down_block_types=['AttnDownBlock2D', 'DownBlock2D'], dropout=0.3, layers_per_block=2,
         up_block_types=['UpBlock2D', 'AttnUpBlock2D']),
    dict(block_out_channels=[16], down_block_types=['DownBlock2D'], up_block_types=['UpBlock2D'])])
def test_other_networks_in_and_out(tmp_path, options):
    reference, folder = theirs(TINY | options), tmp_path/'net'
    denoiser, schedule = load(publish(folder, reference))
    x = images(3, 1, *about(folder)['shape'][1:])
    compare(denoiser.net, reference, x, (1, 7, 1000))
    export_diffusers(denoiser, schedule, tmp_path/'out', about(folder))
    back = UNet2DModel.from_pretrained(tmp_path/'out'/'unet').eval()
    assert same(back, reference)
    compare(denoiser.net, back, x, (1, 7, 1000))

def test_diffusers_defaults_are_as_written(published):
    "What a config leaves out means diffusers' own default, and a wrong one is named as any other"
    defaults = lambda f: {k: list(p.default) if isinstance(p.default, tuple) else p.default
                          for k, p in inspect.signature(f).parameters.items()
                          if p.default is not p.empty}
    assert UNET2D_DEFAULTS == UNET2D_DEFAULTS | defaults(UNet2DModel.__init__)
    unchecked = {'sample_size', 'num_train_timesteps'}
    assert unet2d_values(**UNet(**SMALL).config).keys() == UNET2D_DEFAULTS.keys() - unchecked
    schedulers = defaults(DDIMScheduler.__init__) | defaults(DDPMScheduler.__init__)
    assert SCHEDULER_DEFAULTS == schedulers | dict(_class_name=None)
    edit(published/'config.json', attention_head_dim=..., freq_shift=..., norm_eps=...)
    says = 'attention_head_dim: 8 .the default(.|\n)*norm_eps: 1e-05(.|\n)*freq_shift: 0'
    refused(lambda: load(published), says)

@pytest.mark.parametrize('settings', [
    dict(), dict(beta_schedule='scaled_linear', beta_start=0.00085, beta_end=0.012),
    dict(beta_schedule='squaredcos_cap_v2', num_train_timesteps=300),
    dict(trained_betas=[0.1, 0.2, 0.35, 0.5], num_train_timesteps=4),
    dict(prediction_type='sample', rescale_betas_zero_snr=True),
    dict(prediction_type='v_prediction', rescale_betas_zero_snr=True,
         beta_schedule='scaled_linear')])
@pytest.mark.parametrize('kind', [DDPMScheduler, DDIMScheduler])
def test_schedules_are_theirs(tmp_path, settings, kind):  # eq-scaled-linear
    "Their tables are float32: 1e-7 a factor, and a thousandth of 1 - alpha_bar = 1e-4 at t = 1"
    kind(**settings).save_pretrained(tmp_path)
    file = tmp_path/'scheduler_config.json'
    betas, name, sampling = read_scheduler(json.loads(file.read_text()), file)
    ours, alpha_bar = Schedule(betas).alpha_bar[1:], kind(**settings).alphas_cumprod.double()
    assert (ours - alpha_bar).abs().max() < 1e-5
    assert ((1 - ours) / (1 - alpha_bar) - 1).abs().max() < 2e-3
    names = dict(epsilon='eps', sample='x0', v_prediction='v')
    assert name == names[settings.get('prediction_type', 'epsilon')]
    assert sampling['steps'] == len(betas)

@pytest.mark.parametrize('settings, variance, clip', [
    ({}, 'small', True), (dict(variance_type='fixed_small_log'), 'small', True),
    (dict(variance_type='fixed_large_log'), 'large', True),
    (dict(variance_type='fixed_large', clip_sample=False, clip_sample_range=7.), 'large', False)])
def test_how_to_draw_is_told(tmp_path, reference, settings, variance, clip):
    "And what is known about a published network"
    found = find(publish(tmp_path/'ddpm-cifar10-32', reference, **settings))
    denoiser, schedule = found.load()
    drawn = SamplingConfig(steps=1000, variance=f'fixed_{variance}', guidance=0., clip=clip)
    facts = dict(shape=[1, 8, 8], classes=[], ema=False, sampling=drawn.model_dump())
    assert found.about == about(found.path) == facts
    assert denoiser.parameterization is EPS and not denoiser.training
    assert torch.equal(schedule.betas, linear_betas(1000))

def spoilt(file, change, says):
    "A folder with this file missing (None), with values or a text changed, or as a function does"
    if change is None: file.unlink()
    elif isinstance(change, dict): edit(file, **change)
    elif isinstance(change, str): file.write_text(change, encoding='latin-1')
    else: change(file)
    refused(lambda: load(file.parent), says, FileNotFoundError if change is None else ValueError)

def weights(change):
    "Other weights by name; None takes one away"
    return lambda file: save_file(
        {k: v for k, v in (load_file(file) | change).items() if v is not None}, file)

def cut(n): return lambda file: file.write_bytes(file.read_bytes()[:n])

MIDDLE = 'mid_block.attentions.0'
WRONG = dict(
    center_input_sample=True, block_out_channels=[16, 40], add_attention=False, mid_block_type=None,
    down_block_types=['DownBlock2D', 'SkipDownBlock2D'], up_block_types=['UpBlock2D', 'UpBlock2D'],
    out_channels=2, attention_head_dim=8, mid_block_scale_factor=2, act_fn='gelu', freq_shift=0,
    downsample_padding=1, downsample_type='resnet', upsample_type='resnet', norm_num_groups=8,
    attn_norm_num_groups=2, norm_eps=1e-5, resnet_time_scale_shift='scale_shift', invented='x',
    time_embedding_type='fourier', time_embedding_dim=32, flip_sin_to_cos=True,
    class_embed_type='timestep', num_class_embeds=10, _class_name='UNet2DConditionModel')

@pytest.mark.parametrize('name, change, says', [
    *[('config.json', {k: v}, f'{k}: .*allowed') for k, v in WRONG.items()],
    ('config.json', dict(in_channels=3), 'out_channels: .*allowed'),  # two that must agree
    ('config.json', dict(layers_per_block=2.5), 'cannot build'),
    ('config.json', dict(dropout=None), 'cannot build'),
    *[('config.json', dict(sample_size=size), 'sample_size') for size in ('big', [8], 0, [8, 'x'])],
    *[('scheduler_config.json', *case) for case in [
        (dict(variance_type='learned_range'),
         "variance_type: 'learned_range' is not allowed; allowed: 'fixed_small'"),
        (dict(thresholding=True), 'thresholding: True'), (dict(invented=3), 'invented: 3'),
        (dict(clip_sample_range=2.), 'clip_sample_range: 2.0'), (dict(beta_end=1.5), 'beta_'),
        (dict(steps_offset=1), 'steps_offset: 1'), (dict(trained_betas='x'), 'betas are not valid'),
        (dict(beta_schedule='sigmoid'), "beta_schedule: 'sigmoid'"),
        (dict(_class_name='EulerDiscreteScheduler'), "_class_name: 'EulerDiscreteScheduler'"),
        (dict(trained_betas=[0.1, 0.2]), 'trained_betas: 2 numbers(.|\n)*1000'),
        (dict(prediction_type='flow'), "prediction_type: 'flow'"),
        (dict(rescale_betas_zero_snr=True), "prediction_type: 'epsilon'"),
        (dict(num_train_timesteps='many'), 'betas are not valid'),
        (dict(set_alpha_to_one=False), 'set_alpha_to_one')]],
    *[(name, text, says) for name in ('config.json', 'scheduler_config.json', 'model_index.json')
      for text, says in (('{"a": 1', 'is not JSON'), ('[1, 2]', 'keys and values'),
                         ('\xff\xfe', 'is not JSON'))],
    ('model_index.json', dict(_class_name='LDMPipeline', vqvae=['diffusers', 'VQModel']),
     'LDMPipeline with vqvae'), *[(name, None, 'is missing')
      for name in ('config.json', 'scheduler_config.json', DIFFUSERS_WEIGHTS)],
    *[(DIFFUSERS_WEIGHTS, cut(n), 'is not a whole safetensors') for n in (0, 5, 500, -1)],
    *[(DIFFUSERS_WEIGHTS, weights(change), says) for change, says in [
        ({'conv_in.bias': None}, 'conv_in.bias is missing there, and .16'),
        ({'extra': torch.zeros(2)}, 'extra is .2,. there, and missing'),
        ({f'{MIDDLE}.to_q.weight': torch.zeros(32, 31)},
         r'to_q.weight is \(32, 31\) there, and \(32, 32\)'),
        ({f'{MIDDLE}.query.bias': torch.zeros(32)}, 'twice')]]])
def test_folders_of_diffusers_that_are_no_model(published, name, change, says):
    spoilt(published/name, change, f'{name}(.|\n)*{says}')

def test_keys_without_meaning_are_let_through_and_any_size_is_right(published, reference):
    edit(published/'config.json', _name_or_path='/somewhere', future_option=None,
         other_option=False, sample_size=None)
    (denoiser, _), x = load(published), images(1, 1, 9, 7)
    assert 'shape' not in about(published) and denoiser.net(x, torch.tensor([2])).shape == x.shape
    with pytest.raises(RuntimeError): reference(x, 1)  # odd sizes are ours alone

@pytest.mark.parametrize('nested', [False, True])
def test_pickles_are_refused_and_the_message_converts_them(tmp_path, reference, nested):
    "As the averaged CIFAR network was published, names of attention included, and flat"
    folder, old = tmp_path/'net', {}
    unet = publish(folder/'unet' if nested else folder, reference)
    if nested:
        (folder/'scheduler').mkdir()
        for name, to in (('model_index.json', ''), ('scheduler_config.json', 'scheduler')):
            (unet/name).rename(folder/to/name)
    names = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'proj_attn'}
    for k, w in load_file(unet/DIFFUSERS_WEIGHTS).items():
        for new, was in names.items(): k = k.replace(f'.{new}.', f'.{was}.')
        old[k] = w
    assert sum('.proj_attn.' in k for k in old) == sum('.query.' in k for k in old) > 2
    torch.save(old, unet/'diffusion_pytorch_model.bin')
    (unet/DIFFUSERS_WEIGHTS).unlink()
    with pytest.raises(ValueError, match='diffusion_pytorch_model.bin is a pickle') as e:
        load(folder)
    follow(e)
    denoiser, schedule = load(folder)
    compare(denoiser.net, reference, images(1, 1, 8, 8), (1, 1000))
    assert torch.equal(schedule.betas, linear_betas(1000)) and denoiser.parameterization is EPS

def follow(error):
    "Run the lines after the first one of a message in Python, as it says"
    exec(str(error.value).split('\n', 1)[1], {})

def in_parallel(weights): return {f'module._orig_mod.{k}': w for k, w in weights.items()}

@pytest.mark.parametrize('name, kept', [
    ("it's $(touch ran) `touch ran` \"w\".pt", lambda w: w), ('a\\b\nc\udce9.ckpt', in_parallel),
    ('trainer.pt', lambda w: dict(step=3, model={}, ema=in_parallel(w), optimizer={})),
    ('bare.safetensors', lambda w: w)])
def test_weights_of_others_become_a_folder(tmp_path, monkeypatch, name, kept):
    "Whatever the name of the file, and where a trainer keeps its weights"
    monkeypatch.chdir(tmp_path)
    denoiser, file = make(EPS, num_classes=3, unshuffle=2, attention=(0,), blocks=2), Path(name)
    weights = kept(denoiser.net.state_dict())
    if file.suffix == '.safetensors': save_file(weights, file)
    else: torch.save(weights, file)
    with pytest.raises(ValueError, match='Convert it once') as e: load(file)
    follow(e)
    found, schedule = load(file.with_suffix(''))
    assert same(found, denoiser) and found.parameterization is EPS
    assert torch.equal(schedule.betas, linear_betas(1000)) and not Path('ran').exists()

def test_what_cannot_be_converted_says_why(tmp_path):
    net = nn.Linear(2, 2)
    for name, held, says in (('a', dict(args=Parameterization), 'more than numbers'),
                             ('b', dict(step=3), 'no weights'), ('c', net.state_dict(), 'net=')):
        torch.save(held, tmp_path/f'{name}.pt')
        refused(lambda: convert(tmp_path/f'{name}.pt', tmp_path/'out'), f'{name}.pt (.|\n)*{says}')
    convert(tmp_path/'c.pt', tmp_path/'out', net=nn.Linear(2, 2), parameterization=X0, schedule=S)
    found, schedule = load(tmp_path/'out', net=nn.Linear(2, 2))
    assert torch.equal(found.net.weight, net.weight) and found.parameterization is X0
    assert torch.equal(schedule.betas, S.betas)

@pytest.mark.parametrize('name', ['model.ckpt', 'weights.pt', 'net.bin'])
def test_no_pickle_is_ever_opened(tmp_path, monkeypatch, name):
    class Bomb:
        def __reduce__(self): return Path.touch, (Path('exploded'),)
    monkeypatch.chdir(tmp_path)
    Path('net').mkdir()
    torch.save(Bomb(), Path('net')/name)
    for path in ('net', f'net/{name}'):
        refused(lambda: load(path), f'{name} is a pickle(.|\n)*\nconvert')
    assert not Path('exploded').exists()

LEAST = dict(channels=8, multipliers=(1,), attention=())
SAVED = ['net', 'net/README.md', 'net/config.json', 'net/model.safetensors', 'net/schedule.json']

def test_what_is_saved_comes_back(tmp_path):  # eq-file
    denoiser, folder = make(EPS, num_classes=3, unshuffle=2), tmp_path/'a'/'net'
    schedule = Schedule(linear_betas(50, 0.001, 0.2))
    assert save(denoiser, schedule, folder, ABOUT) == folder
    assert tree(tmp_path) == ['a', *(f'a/{name}' for name in SAVED)]
    before = torch.get_rng_state()
    back, its = load(folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(back, denoiser) and back.parameterization is EPS and not back.training
    assert type(back.net) is UNet and back.net.config == denoiser.net.config
    assert torch.equal(its.betas, schedule.betas) and about(folder) == ABOUT
    assert same(load(folder/WEIGHTS)[0], denoiser)
    blob, numbers = (folder/WEIGHTS).read_bytes(), sum(p.numel() for p in denoiser.parameters())
    assert len(blob) == 8 + int.from_bytes(blob[:8], 'little') + 4 * numbers
    page, sha256 = (folder/'README.md').read_text(), hashlib.sha256(blob).hexdigest()
    assert json.loads((folder/'config.json').read_text())['sha256'] == sha256
    for word in ('# net', 'eps', 'T=50', '"fixed_large"', sha256, f'{numbers:,}'):
        assert word in page
    x, t, y = images(2, 1, 8, 8), torch.tensor([1, 50]), torch.tensor([-1, 2])
    assert torch.equal(back.net(x, t, y), denoiser.net(x, t, y))

def test_what_cannot_be_kept_is_refused(tmp_path):
    "Numbers that the file's dtype does not hold, what is no denoiser, what is no JSON"
    large, sick, own = make(), make(), Parameterization('eps', EPS.target, lambda *args: None)
    with torch.no_grad():
        large.net.stem.bias[0] = 1e5
        sick.net.stem.bias[0] = float('nan')
    finite = 'stem.bias holds numbers that are not finite'
    cases = [(large, dict(dtype=torch.float16), f'{finite} in torch.float16, which ends at 65504'),
             (sick, {}, f'{finite}$'), (make(), dict(dtype=torch.int8), 'dtype: torch.int8'),
             (make(own), {}, 'parameterization of your own')]
    cases += [(make(), dict(about=dict(a=wrong)), 'about cannot be written as JSON')
              for wrong in (torch.ones(1), float('nan'), Path('x'))]
    for denoiser, options, says in cases:
        refused(lambda: save(denoiser, S, tmp_path/'net', **options), says)
    for wrong in (clipped(make()), guided(make(num_classes=3), torch.tensor([1]), 1.), make().net):
        refused(lambda: save(wrong, S, tmp_path/'net'), 'give the Denoiser itself', TypeError)
    assert tree(tmp_path) == []
    save(large, S, tmp_path/'net', dtype=torch.bfloat16)
    assert tree(tmp_path) == SAVED

WRITE = dict(ours=lambda denoiser, path: save(denoiser, S, path),
             theirs=lambda denoiser, path: export_diffusers(denoiser, S, path, ABOUT))

@pytest.mark.parametrize('killed', [False, True])
@pytest.mark.parametrize('owner, name, fails_at', [(Path, 'write_bytes', 1),
                                                   (Path, 'write_bytes', 4), (os, 'replace', 1)])
@pytest.mark.parametrize('write', WRITE.values(), ids=WRITE)
def test_a_failing_disk_leaves_what_was_there(tmp_path, monkeypatch, write, owner, name, fails_at,
                                              killed):
    "Whole or not at all; also after a kill between the renames, with the old folder aside"
    first, second, work, calls = make(), make(seed=1), getattr(owner, name), []
    write(first, tmp_path/'old')
    if killed:
        os.rename(tmp_path/'old', tmp_path/'.old_old')
        (tmp_path/'.part_old').mkdir()
        (tmp_path/'.part_old'/'junk').write_text('x')
    def failing(path, what):
        calls.append(path)
        if len(calls) < fails_at: return work(path, what)
        if owner is Path: work(path, what[:10])
        raise OSError(28, 'No space left on device')
    with monkeypatch.context() as m:
        m.setattr(owner, name, failing)
        for folder in ('old', 'new'):
            calls.clear()
            says = f'cannot write .*{folder}.*No space left(.|\n)*untouched'
            refused(lambda: write(second, tmp_path/folder), says, OSError)
    assert os.listdir(tmp_path) == ['old'] and same(load(tmp_path/'old')[0], first)
    write(second, tmp_path/'old')
    assert same(load(tmp_path/'old')[0], second) and os.listdir(tmp_path) == ['old']

def test_other_peoples_folders_are_never_replaced(tmp_path, published):
    "Ours are, and empty ones; a folder in an empty folder is somebody's too"
    for kind, write in WRITE.items(): write(make(), tmp_path/kind)
    save(make(), S, tmp_path/'mixed')
    (tmp_path/'folder'/'sub').mkdir(parents=True)
    files = {'file': 'x', 'photos/cat.jpg': 'x', 'deep/unet/notes.txt': 'x',
             'foreign/config.json': '{"model": "somebody\'s"}', 'foreign/README.md': 'hello',
             'readme/README.md': 'hello', 'mixed/samples.png': 'x'}
    for name, text in files.items():
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).write_text(text)
    before = tree(tmp_path)
    for kind, write in WRITE.items():
        for name in {name.split('/')[0] for name in before} - {kind}:
            refused(lambda: write(make(), tmp_path/name), f'{name} is there already',
                    FileExistsError)
    assert tree(tmp_path) == before
    for kind, write in WRITE.items():
        (tmp_path/f'empty_{kind}').mkdir()
        for name in (kind, f'empty_{kind}'): write(make(), tmp_path/name)

@pytest.mark.parametrize('name, change, says', [
    *[('config.json', *case) for case in [
        (dict(version=2), 'version: 2 is not allowed; allowed: 1'), (dict(network=''), 'network'),
        (dict(parameterization='flow'), "'flow'; known are eps, x0, v"),
        (dict(args=dict(channels=17)), 'config.json(.|\n)*channels = 17'),
        (dict(args=dict(depth=3)), 'config.json(.|\n)*depth'), (cut(-9), 'config.json is not JSON'),
        (dict(args=dict(SMALL, channels=32)), 'another network'), (dict(network='.x:y'), 'network'),
        (dict(network='os:getcwd'), 'network os:getcwd, which is not of this package'),
        (dict(network='diffusion_scratch.data:Path'), 'not of this package'),
        (dict(network='diffusion_scratch.nowhere:Net'), 'not of this package'),
        (dict(network='nowhere:Net'), r"--model nowhere:Net.*net='nowhere:Net'.*net=Net\("),
        *[(dict(about=dict([fact])), f'about: {fact[0]}: (.|\n)* is not allowed') for fact in (
            ('shape', [1, -8, 8]), ('shape', 'x'), ('shape', [1, 2**40, 8]), ('classes', [3]),
            ('classes', 'ab'), ('sampling', 7))]]],
    *[('config.json', {key: ...}, f"config.json: {key}: 'nothing'")
      for key in ('version', 'network', 'args', 'parameterization', 'sha256', 'about')],
    *[('schedule.json', *case) for case in [
        ('{', 'schedule.json is not JSON'), (None, 'schedule.json is missing'),
        (dict(betas=[0.1, 2.]), 'betas: beta_2 = 2'), (dict(betas='x'), 'schedule.json: betas'),
        ('{}', 'schedule.json: betas')]],
    (WEIGHTS, None, 'model.safetensors is missing'),
    (WEIGHTS, cut(-9), 'model.safetensors is cut or changed'),
    (WEIGHTS, lambda f: f.write_bytes(f.read_bytes()[:-1] + b'\0'),
     'model.safetensors is cut or changed')])
def test_spoilt_folders_are_refused_and_named(saved, name, change, says):
    spoilt(saved/name, change, says)

def read_whole(folder):
    found = find(folder)
    denoiser, schedule = found.load()
    weights = {k: v.tolist() for k, v in denoiser.state_dict().items()}
    return found.about, denoiser.parameterization.name, schedule.betas.tolist(), weights

@pytest.mark.parametrize('write', [
    lambda path: save(make(**LEAST), S, path, ABOUT),
    lambda path: export_diffusers(make(**LEAST), S, path, ABOUT)], ids=['ours', 'theirs'])
def test_every_file_is_read_whole_or_refused(tmp_path, write):
    "Bits flipped and files cut, in every file but the page for people, which nobody reads"
    write(tmp_path/'net')
    for file in sorted(f for f in tmp_path.rglob('*') if f.is_file()):
        if file.name == 'README.md': continue
        told = never_silent(file, lambda: read_whole(tmp_path/'net'))
        assert told['refused'] > 100, file

def test_folders_without_checksums_stay_readable(tmp_path):
    "As they were written before there were any, and as other programs write them"
    for write, path in ((save, 'old'), (export_diffusers, 'out')):
        folder = write(make(), S, tmp_path/path, ABOUT)
        want = read_whole(folder)
        for file in folder.rglob('*.json'): edit(file, _sha256=...)
        assert read_whole(folder) == want

OWN = '''
from pathlib import Path
import torch
from torch import nn
Path('ran').touch()
class Net(nn.Module):
    def __init__(self, width, sizes=(1, 2)):
        super().__init__()
        self.config = dict(width=width, sizes=sizes)
        self.layer = nn.Linear(width, width)
        self.register_buffer('count', torch.tensor(7))
        self.register_buffer('scale', torch.rand(3), persistent=False)
    def forward(self, x, t): return self.layer(x)
class Mute(nn.Module):
    def __init__(self, width): super().__init__(); self.layer = nn.Linear(width, width)
    def forward(self, x, t): return self.layer(x)
def function(width): raise SystemExit('ran')
'''

@pytest.fixture
def own(tmp_path, monkeypatch):
    "A module of somebody's own, found as Python finds it; it tells of being run"
    (tmp_path/'code').mkdir()
    (tmp_path/'code'/'own_nets.py').write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path/'code')
    monkeypatch.chdir(tmp_path)
    import own_nets
    yield own_nets
    sys.modules.pop('own_nets', None)

def test_own_networks_are_found_by_name(tmp_path, own):
    denoiser, folder = Denoiser(own.Net(4), X0).eval(), tmp_path/'net'
    denoiser.net.count.fill_(9)
    save(denoiser, S, folder, dtype=torch.float16)
    before = torch.get_rng_state()
    back, _ = load(folder, net='own_nets:Net')
    assert torch.equal(torch.get_rng_state(), before) and same(back, load(folder, net=own.Net)[0])
    assert type(back.net) is own.Net and back.net.count == 9 and back.net.count.dtype == torch.int64
    assert torch.equal(back.net.layer.weight, denoiser.net.layer.weight.half().float())
    assert back.parameterization is X0
    for wrong in ('own_nets:function', 'own_nets', '.x:y', '', 7, own.function):
        refused(lambda: load(folder, net=wrong), 'net: .* is not allowed')
    refused(lambda: load(folder, net='nowhere:Net'), 'nowhere')
    edit(folder/'config.json', args=dict(depth=3))
    says = r"args: \{'depth': 3\} is not allowed for Net(.|\n)*net=Net"
    refused(lambda: load(folder, net=own.Net), says)

def test_a_network_without_config_is_filled(tmp_path, own):
    denoiser, folder = Denoiser(own.Mute(4), V), tmp_path/'net'
    save(denoiser, S, folder)
    assert 'net=Mute(...)' in (folder/'README.md').read_text()
    refused(lambda: load(folder), r'self.config = dict\(...\)(.|\n)*net=Mute')
    assert same(load(folder, net=own.Mute(4))[0], denoiser)
    refused(lambda: load(folder, net=own.Mute(5)), 'another network: layer.bias')

@pytest.fixture
def named(own):
    "The network of a saved model and of a run that name its module, which was not imported"
    net, facts = own.Net(8), dict(shape=[1, 8, 8])
    save(Denoiser(net), S, 'net', facts)
    checkpoint = 'run/checkpoints/step_00000001.safetensors'
    save_checkpoint(checkpoint, TrainState(Denoiser(net)), S, facts)
    config = parse_config(dict(model='own_nets:Net', model_args=dict(width=8)))
    Path('run/config.yaml').write_text(dump_config(config))
    Path('ran').unlink()
    del sys.modules['own_nets']
    return net

@pytest.mark.parametrize('place', ['net', 'run', 'run/checkpoints/step_00000001.safetensors'])
def test_no_code_runs_because_a_folder_names_it(named, place, capsys):
    "Neither here nor in a command; what the message says to add makes it run"
    draw = [place, '--n', '1', '--steps', '1', '--out', 'a.png']
    export = [place, '--to', 'folder', 'out']
    for command, line in ((sample_command, draw), (export_command, export)):
        with pytest.raises(SystemExit): command(line)
        assert '--model own_nets:Net' in capsys.readouterr().err and not Path('ran').exists()
    refused(lambda: load(place), "own_nets:Net(.|\\n)*net='own_nets:Net'")
    assert not Path('ran').exists() and 'own_nets' not in sys.modules
    assert type(load(place, net='own_nets:Net')[0].net).__name__ == 'Net' and Path('ran').exists()
    sample_command([*draw, '--model', 'own_nets:Net'])
    export_command([*export, '--model', 'own_nets:Net'])
    assert same(load('out', net='own_nets:Net')[0].net, named)

@pytest.mark.parametrize('line, weight, says', [
    ([], None, '--model own_nets:Net'),
    (['--model', 'own_nets:Net'], 'elsewhere:weight', 'training.weight elsewhere:weight')])
def test_a_diagnosis_runs_no_code_of_a_run(named, line, weight, says, capsys):
    config = parse_config(dict(model='own_nets:Net', model_args=dict(width=8),
                               training=dict(weight=weight)))
    Path('run/config.yaml').write_text(dump_config(config))
    with pytest.raises(SystemExit): train_command(['--diagnose', 'run', *line])
    assert says in capsys.readouterr().err and Path('ran').exists() == bool(line)

@pytest.mark.parametrize('wrap', [
    torch.compile, nn.DataParallel, lambda net: nn.DataParallel(torch.compile(net)),
    lambda net: setattr(net, 'stem', torch.compile(net.stem)) or net,
    lambda net: net.to(memory_format=torch.channels_last)],
    ids=['compiled', 'parallel', 'both', 'a part compiled', 'channels last'])
def test_wrapped_networks_are_saved_as_what_they_are(tmp_path, wrap):
    "And neither their mode nor their layout changes"
    state = TrainState(Denoiser(wrap(make(**LEAST).net), V))
    state.denoiser.train()
    before = [p.stride() for p in state.denoiser.parameters()]
    file = tmp_path/'run'/'checkpoint.safetensors'
    save_checkpoint(file, state, S, ABOUT)
    save(state.denoiser, S, tmp_path/'net')
    export_diffusers(state.denoiser, S, tmp_path/'out', ABOUT)
    assert state.denoiser.training
    assert [p.stride() for p in state.denoiser.parameters()] == before
    for place in (file, tmp_path/'net', tmp_path/'out'): assert same(load(place)[0], make(**LEAST))
    for path in tmp_path.rglob('*.safetensors'):
        assert not any('_orig_mod' in k or 'module.' in k for k in load_file(path))
    again = make(seed=1, **LEAST)
    for net in (again.net, wrap(make(seed=1, **LEAST).net)):  # and the other way round
        for place in (file, tmp_path/'net'):
            again.net.load_state_dict(bare_weights(load(place, net=net)[0].net))
            assert same(again, make(**LEAST))
    resume(file, state := TrainState(make(seed=2, **LEAST)), S)
    assert same(state.denoiser, make(**LEAST))

@pytest.mark.parametrize('name, held, says', [
    ('model.yaml', b'run: runs/x\n', 'a config: diffusion-train'),
    ('a.png', b'\x89PNG\r\n\x1a\n', 'a picture'),
    ('cat.jpg', b'x', 'checkpoint$'),
    ('a.jpg', b'\xff\xd8\xff\xe0' * 9, 'a picture'), ('a.onnx', b'\x08\n\x12' * 9, 'an ONNX'),
    ('w.safetensors', b'version https://git-lfs.github.com/spec/v1\noid sha256:0', 'git lfs pull'),
    ('w.safetensors', b'\n<!DOCTYPE html><title>Sign in</title>', 'a web page'),
    ('w.safetensors', b'', 'checkpoint$'), ('config.json', b'{"format": 1}', 'facts'),
    ('w.safetensors', b'PK\x03\x04' * 9, 'a zip archive, or a pickle')])
def test_other_files_are_told_apart_in_a_line(tmp_path, name, held, says):
    "Alone, and in the place of the weights of a folder; a folder of such files is no model"
    (tmp_path/name).write_bytes(held)
    with pytest.raises(ValueError, match=f'{name} is not a whole.*{says}') as e: load(tmp_path/name)
    assert '\n' not in str(e.value) and 'codec' not in str(e.value)
    refused(lambda: load(tmp_path), 'holds no model; allowed', FileNotFoundError)
    if name != 'w.safetensors': return
    exported = export_diffusers(make(), S, tmp_path/'out', ABOUT)
    for folder in (save(make(), S, tmp_path/'net'), exported):
        [weights] = folder.rglob('*.safetensors')
        weights.write_bytes(held)
        refused(lambda: load(weights), says.replace('checkpoint', 'safetensors file'))

def test_a_terabyte_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path/'w.safetensors', 'wb') as f: f.truncate(2**40)
    refused(lambda: load(tmp_path/'w.safetensors'), 'not a whole checkpoint')

@pytest.mark.parametrize('variant, kind', [
    ('', torch.float16), ('.fp16', torch.float16), ('.bf16', torch.bfloat16),
    ('.non_ema', torch.bfloat16)])
def test_weights_of_16_bits(published, reference, variant, kind):
    "Loaded as 32 bits, variants too where they are all there is; another variant is named"
    whole = published/DIFFUSERS_WEIGHTS
    other = whole.with_name(f'diffusion_pytorch_model{variant}.safetensors')
    half = {k: w.to(kind) for k, w in load_file(whole).items()}
    whole.unlink()
    save_file(half, other)
    if variant == '.non_ema':
        refused(lambda: load(published), f'there is {other.name}', FileNotFoundError)
        return
    for place in (published, other):
        compare(load(place)[0].net, reference.to(kind).float(), images(1, 1, 8, 8), (1, 1000))

NAMES = ['<img src=x onerror=alert(1)>', 'a|b', '`x`', 'new\nline', '\x1b[31mred', 'caf\udce9']

def test_names_are_text_in_a_model_card(tmp_path):
    facts = ABOUT | dict(classes=NAMES, **{name: 'x' for name in NAMES})
    for name in (NAMES[0], 'a|b', "it's $(touch x)", NAMES[4]):
        page = (save(make(), S, tmp_path/name, facts)/'README.md').read_text()
        assert about(tmp_path/name)['classes'] == NAMES
        assert '<img' not in page and not {'\x1b', '\udce9'} & set(page)
        rows = [line for line in page.splitlines() if line.startswith('|')]
        assert all(len(re.findall(r'(?<!\\)\|', row)) == 3 for row in rows)
        assert len(rows) == 2 + 5 + len(facts)

def test_outside_of_this_process(tmp_path, own):
    """Without diffusers, onnx, onnxruntime and onnxscript all but ONNX works, and nothing imports
    the hub's client before it is needed. A class of __main__, as in a notebook, has no name
    elsewhere: it is saved, and the error says what to give"""
    program = f'''
import sys
for name in ('diffusers', 'onnx', 'onnxruntime', 'onnxscript'): sys.modules[name] = None
{OWN}
from diffusion_scratch.denoiser import Denoiser
from diffusion_scratch.export import export_diffusers, export_onnx
from diffusion_scratch.pretrained import load, save
from diffusion_scratch.schedule import Schedule
from diffusion_scratch.unet import UNet
assert 'huggingface_hub' not in sys.modules
denoiser, schedule = Denoiser(UNet(1, 16, (1, 2), 1)), Schedule([0.1, 0.2])
load(save(denoiser, schedule, 'ours'))
load(export_diffusers(denoiser, schedule, 'theirs', dict(shape=(1, 8, 8))))
try: export_onnx(denoiser, 'net.onnx', (1, 8, 8))
except ImportError: print('refused')
load(save(Denoiser(Net(4)), schedule, 'notebook'), net=Net)
'''
    said = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True,
                          check=True, cwd=tmp_path).stdout
    assert said == 'refused\n' and not (tmp_path/'net.onnx').exists()
    assert same(load(tmp_path/'ours')[0], load(tmp_path/'theirs')[0])
    refused(lambda: load(tmp_path/'notebook'), r'network __main__:Net(.|\n)*net=Net\(...\)')
    assert load(tmp_path/'notebook', net=own.Net(4))[0].net.count == 7

def test_a_run_is_read_as_training_reads_it(tmp_path, saved, published):
    "Two steps, so that the average is not the last. Weights are read once, for facts not at all"
    state, path = TrainState(make(num_classes=10, unshuffle=4), ema=0.5), tmp_path/'run'
    file = path/'checkpoints'/'step_00000002.safetensors'
    for m in fit(state, S, mnist_mini(), steps=2, batch_size=8, lr=lambda step: 1e-2): pass
    save_checkpoint(file, state, S, dict(ABOUT, loss=m.loss))
    assert not same(state.ema, state.denoiser)
    for place in (path, file, str(path)):
        for ema, want in ((True, state.ema), (False, state.denoiser)):
            denoiser, schedule = load(place, ema=ema)
            assert same(denoiser, want) and same(denoiser, load_checkpoint(place, ema=ema)[0])
            assert not denoiser.training and torch.equal(schedule.betas, S.betas)
        assert about(place) == about_checkpoint(place)
    found = find(path)
    shutil.rmtree(path)
    assert same(found.load()[0], state.ema) and same(found.load(ema=False)[0], state.denoiser)
    for file in (saved/WEIGHTS, published/DIFFUSERS_WEIGHTS):
        file.write_bytes(b'')
        assert about(file.parent)['sampling']

def test_own_networks_of_a_run(tmp_path, own):
    "Made as the run's config says; without one, filled; and told what to do where neither is there"
    state, run = TrainState(Denoiser(own.Net(28), V)), tmp_path/'run'
    file = run/'checkpoints'/'step_00000001.safetensors'
    state.update(state.denoiser.net(torch.ones(1, 28), None).sum(), 0.1, 1.)
    save_checkpoint(file, state, S, ABOUT)
    config = parse_config(dict(model='own_nets:Net', model_args=dict(width=28)))
    for says in ('no description of its network(.|\n)*net=', 'names the network own_nets:Net'):
        for place in (file, run):
            refused(lambda: load(place), says)
            assert same(load(place, net=own.Net(28))[0], state.ema)
        (run/'config.yaml').write_text(dump_config(config))
    for place in (file, run):
        for net in ('own_nets:Net', own.Net): assert same(load(place, net=net)[0], state.ema)
        assert same(load(place, ema=False, net=own.Net)[0], state.denoiser)

def test_averages_only(tmp_path):
    facts = dict(average=dict(ema=True), last=dict(ema=False), unknown=None)
    for name, told in facts.items(): save(make(), S, tmp_path/name, told)
    refused(lambda: load(tmp_path/'average', ema=False), 'ema: False(.|\n)*only averaged')
    for name in ('last', 'unknown'): assert same(load(tmp_path/name, ema=False)[0], make())
    told = dict(classes=[], sampling=SamplingConfig(steps=20).model_dump())  # by default
    assert about(tmp_path/'unknown') == told

def test_shipped_weights_are_a_listing(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, 'SHIPPED', tmp_path/'weights')
    monkeypatch.chdir(tmp_path)
    says = 'shipped: none; published: google/ddpm-cifar10-32, '
    refused(lambda: load('mnist-mini'), says, FileNotFoundError)
    save(make(), S, tmp_path/'weights'/'mnist-mini', ABOUT)
    save(make(seed=1), S, tmp_path/'weights'/'other')
    assert same(load('mnist-mini')[0], make()) and about('mnist-mini') == ABOUT
    says = 'shipped: mnist-mini, other;(.|\n)*Did you mean mnist-mini'
    refused(lambda: load('mnist-mni'), says, FileNotFoundError)
    save(make(seed=2), S, tmp_path/'mnist-mini')
    assert same(load('mnist-mini')[0], make(seed=2))  # a path that exists is never a name

@pytest.mark.parametrize('name, near', [
    ('ddpm-cifar10-32', 'google/ddpm-cifar10-32'), ('zzz', None),
    ('DDPM-EMA-celeba', 'google/ddpm-ema-celebahq-256'),
    ('runs/x/checkpoints/step_1.safetensors', None)])
def test_unknown_names_are_told_what_is_known(name, near):
    with pytest.raises(FileNotFoundError, match=f'{name} is neither a path') as e: load(name)
    assert (f'Did you mean {near}?' in str(e.value)) if near else 'Did you mean' not in str(e.value)
    assert all(n in str(e.value) for n in PUBLISHED)

HUB = '''
import http.server, json, os, sys, threading, time, torch
from pathlib import Path
folder, asked, commit = Path(sys.argv[1])/'published', [], 'a' * 40
class Server(http.server.BaseHTTPRequestHandler):
    "As much of the hub as a download takes, for one folder; without a folder it is silent"
    def do_GET(self):
        asked.append(self.path)
        if not folder: time.sleep(60)
        files = {f.name: f.read_bytes() for f in folder.glob('*')}
        name = self.path.rpartition('/')[2]
        answer = dict(id='me/net', sha=commit, siblings=[dict(rfilename=f) for f in files])
        if '/tree/' in self.path:
            answer = [dict(type='file', path=f, size=len(b), oid=f) for f, b in files.items()]
        blob = files[name] if '/resolve/' in self.path else json.dumps(answer).encode()
        headers = {'X-Repo-Commit': commit, 'ETag': name, 'Content-Length': len(blob)}
        if not files: headers['X-Error-Code'] = 'RepoNotFound'
        self.send_response(200 if files else 404)
        for k, v in headers.items(): self.send_header(k, v)
        self.end_headers()
        if self.command == 'GET': self.wfile.write(blob)
    do_HEAD = do_GET
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ.update(HF_ENDPOINT=f'http://127.0.0.1:{server.server_port}', HF_HUB_OFFLINE='0',
                  HF_HUB_DISABLE_PROGRESS_BARS='1', HF_HUB_DISABLE_XET='1')
from diffusion_scratch.pretrained import find, load
def refused(name, *says):
    try: load(name)
    except (OSError, ValueError, ImportError) as e: said = f'{type(e).__name__}: {e}'
    assert all(s in said for s in says), said
    return said
net = 'google/ddpm-cifar10-32'
here, fetched = (load(place)[0].state_dict() for place in (folder, net))
assert all(torch.equal(v, here[k]) for k, v in fetched.items())
assert not any(a.endswith('.bin') for a in asked) and any(a.endswith('.safetensors') for a in asked)
asked.clear()
found = find(net)
assert not asked and found.about['source'] == net and not found.about['ema']
assert found.about['sampling']['variance'] == 'fixed_large'
folder = folder.with_name('pickled')
refused('me/pickled', 'FileNotFoundError', 'no safetensors', 'hf download me/pickled')
folder = folder.with_name('own')
refused('me/net', 'ValueError: ', 'names the network helper:Net')
folder = folder.with_name('nothing')
missing = 'FileNotFoundError', 'is no path here, and cannot be downloaded from the Hugging Face'
refused(net[:-3], *missing, 'RepositoryNotFound', f'Did you mean {net}?')
folder, began = None, time.monotonic()
assert 'Did you mean' not in refused('google/ddpm-ema-cat-256', *missing, 'imeout')
assert time.monotonic() - began < 15
server.shutdown(); server.server_close()
load(net)
found.path.joinpath('diffusion_pytorch_model.safetensors').unlink()
refused('me/other', *missing)
by_hand = f'\\n  hf download {net} --local-dir ddpm-cifar10-32\\n', "load('ddpm-cifar10-32')"
refused(net, *missing, *by_hand)
sys.modules['huggingface_hub'] = None
refused(net, 'ImportError', 'pip install huggingface_hub', *by_hand)
'''

def test_the_hub(tmp_path):
    """Fetched once, never a pickle; then from the cache, with no network; a part of the cache is
    not enough; and no code by name. A hub that knows nothing, one that is silent, none at all, and
    no client: the error comes in seconds and says what to do. In a process of its own, for the
    hub's address is read when its client is imported"""
    folder = publish(tmp_path/'published', theirs(TINY), variance_type='fixed_large')
    torch.save(dict(), folder/'diffusion_pytorch_model.bin')
    (publish(tmp_path/'pickled', theirs(TINY))/DIFFUSERS_WEIGHTS).rename(
        tmp_path/'pickled'/'diffusion_pytorch_model.bin')
    edit(save(make(), S, tmp_path/'own')/'config.json', network='helper:Net')
    env = os.environ | dict(HF_HOME=str(tmp_path/'hub'))
    subprocess.run([sys.executable, '-c', HUB, tmp_path], check=True, env=env)
