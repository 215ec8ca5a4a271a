"Weights in and out: against diffusers' networks and pipelines, onnxruntime, a hub of our own making, and everything a folder can be that is not a model"
import ast, copy, inspect, itertools, json, os, re, shutil, subprocess, sys, time
from pathlib import Path
import diffusers
import diffusers.schedulers.scheduling_ddpm
import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from torch import nn
from diffusion_scratch import pretrained
from diffusion_scratch.config import SamplingConfig, parse_config, dump_config
from diffusion_scratch.data import mnist_mini
from diffusion_scratch.denoiser import EPS, V, X0, Denoiser, Parameterization, clipped
from diffusion_scratch.guidance import guided
from diffusion_scratch.noising import Gaussian
from diffusion_scratch.pretrained import PUBLISHED, about, export_diffusers, export_onnx, find, load, save
from diffusion_scratch.sampling import Noise, ancestral, fixed_large, fixed_small, trajectory
from diffusion_scratch.schedule import Schedule, cosine_betas, linear_betas, zero_terminal_snr
from diffusion_scratch.training import TrainState, about_checkpoint, atomic, fit, load_checkpoint, save_checkpoint
from diffusion_scratch.unet import UNet

SMALL = dict(in_channels=1, channels=16, multipliers=(1, 2), blocks=1, attention=(1,))
ABOUT = dict(shape=[1, 8, 8], classes=['a', 'b', 'c'], sampling=SamplingConfig(steps=20, variance='fixed_large', clip=False).model_dump())
diffusers.utils.logging.disable_progress_bar()


def shake(net, seed=0):
    "Weights that can all be seen: convolutions that keep the size of what they read, norms and biases that differ from 1 and 0"
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for k, p in net.named_parameters():
            if p.ndim > 1: p.normal_(std=p[0].numel()**-0.5, generator=g)
            else: p.normal_(std=0.2, generator=g).add_('norm' in k and k.endswith('weight'))
    return net.eval()

def make(parameterization=V, seed=0, **options):
    with torch.random.fork_rng(): net = UNet(**{**SMALL, **options})
    return Denoiser(shake(net, seed), parameterization).eval()

def images(*shape, seed=0): return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
def gap(a, b): return ((a - b).abs().max() / b.abs().max()).item()
def same(a, b): return a.state_dict().keys() == b.state_dict().keys() and all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
def tree(folder): return sorted(f.relative_to(folder).as_posix() for f in Path(folder).rglob('*'))
def edit(file, **values): file.write_text(json.dumps(json.loads(file.read_text()) | values))
def drop(file, key): values = json.loads(file.read_text()); del values[key]; file.write_text(json.dumps(values))

S = Schedule(cosine_betas(20))

# ---- diffusers' networks: in, out, and the same function

PAPER = dict(layers_per_block=2, attention_head_dim=None, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6)
CIFAR = dict(PAPER, sample_size=32, block_out_channels=[128, 256, 256, 256], down_block_types=['DownBlock2D', 'AttnDownBlock2D', 'DownBlock2D', 'DownBlock2D'],
             up_block_types=['UpBlock2D', 'UpBlock2D', 'AttnUpBlock2D', 'UpBlock2D'])
CELEBA = dict(PAPER, sample_size=256, block_out_channels=[128, 128, 256, 256, 512, 512], down_block_types=['DownBlock2D'] * 4 + ['AttnDownBlock2D', 'DownBlock2D'],
              up_block_types=['UpBlock2D', 'AttnUpBlock2D'] + ['UpBlock2D'] * 4)
TINY = dict(PAPER, sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=[16, 32], down_block_types=['DownBlock2D', 'AttnDownBlock2D'], up_block_types=['AttnUpBlock2D', 'UpBlock2D'], norm_num_groups=4)

def theirs(config, seed=0):
    with torch.device('meta'): net = UNet2DModel(**config)
    return shake(net.to_empty(device='cpu'), seed)

def publish(folder, net, old=False, **scheduler):
    "A folder as the first ones were published: flat"
    net.save_pretrained(folder); DDPMScheduler(**scheduler).save_pretrained(folder)
    (folder/'model_index.json').write_text(json.dumps(dict(_class_name='DDPMPipeline', _diffusers_version='0.1.1', scheduler=['diffusers', 'DDPMScheduler'], unet=['diffusers', 'UNet2DModel'])))
    if old:
        names = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'proj_attn'}
        file = folder/pretrained.THEIRS
        save_file({re.sub(r'to_[qkv]|to_out\.0', lambda m: names[m[0]], k): v for k, v in load_file(file).items()}, file, {'format': 'pt'})
    return folder

def compare(net, reference, x, times, tolerance=1e-5):
    "Our t is theirs plus 1: eq-t-shift"
    with torch.no_grad():
        for t in times: assert gap(net(x, torch.full((len(x),), t)), reference(x, t - 1).sample) < tolerance, t

def test_published_cifar_network(tmp_path):  # eq-t-shift, eq-pointwise
    reference = theirs(CIFAR)
    folder = publish(tmp_path/'ddpm-cifar10-32', reference, variance_type='fixed_large')
    found = find(folder)
    denoiser, schedule = found.load()
    assert sum(p.numel() for p in denoiser.parameters()) == 35_746_307 and denoiser.parameterization is EPS and not denoiser.training
    assert torch.equal(schedule.betas, linear_betas(1000))
    assert found.about == about(folder) == dict(shape=[3, 32, 32], classes=[], ema=False, sampling=SamplingConfig(steps=1000, variance='fixed_large', guidance=0., clip=True).model_dump())
    compare(denoiser.net, reference, images(1, 3, 32, 32), (1, 2, 500, 1000))
    export_diffusers(denoiser, schedule, tmp_path/'out', found.about)
    assert same(UNet2DModel.from_pretrained(tmp_path/'out'/'unet'), reference)

def test_published_network_of_256_pixels():
    "113.7 million parameters, on a smaller image to be quick; in memory, for the files are the same as above"
    reference, config = theirs(CELEBA), dict(CELEBA, _class_name='UNet2DModel')
    net = pretrained._unet(pretrained._of_unet2d(config, Path('config.json')), Path('config.json')).to_empty(device='cpu').eval()
    net.load_state_dict(pretrained._imported(reference.state_dict(), net, Path('weights')))
    assert sum(p.numel() for p in net.parameters()) == 113_673_219
    compare(net, reference, images(1, 3, 64, 64), (1, 1000))
    back = pretrained._exported(net.state_dict())
    assert back.keys() == reference.state_dict().keys() and all(torch.equal(v, back[k]) for k, v in reference.state_dict().items())

@pytest.mark.parametrize('config', [TINY, dict(TINY, attention_head_dim=32, time_embedding_dim=64, attn_norm_num_groups=4, act_fn='swish', num_train_timesteps=77, class_embed_type=None),
                                    dict(TINY, down_block_types=['AttnDownBlock2D', 'DownBlock2D'], up_block_types=['UpBlock2D', 'AttnUpBlock2D'], dropout=0.3, layers_per_block=2),
                                    dict(TINY, block_out_channels=[16], down_block_types=['DownBlock2D'], up_block_types=['UpBlock2D']), dict(TINY, sample_size=[8, 12])])
def test_other_networks(tmp_path, config):
    reference = theirs(config)
    denoiser, schedule = load(publish(tmp_path/'net', reference))
    H, W = about(tmp_path/'net')['shape'][1:]
    compare(denoiser.net, reference, images(3, 1, H, W), (1, 7, 1000))
    export_diffusers(denoiser, schedule, tmp_path/'out', about(tmp_path/'net'))
    back = UNet2DModel.from_pretrained(tmp_path/'out'/'unet').eval()
    assert same(back, reference)
    compare(denoiser.net, back, images(3, 1, H, W), (1, 7, 1000))

def test_gradients_agree(tmp_path):
    "Of every weight and of the input; float32 sums in another order"
    reference = theirs(TINY)
    denoiser, _ = load(publish(tmp_path/'net', reference))
    x, target = images(2, 1, 8, 8), images(2, 1, 8, 8, seed=1)
    xs = [x.clone().requires_grad_() for _ in range(2)]
    (denoiser.net(xs[0], torch.tensor([3, 900])) - target).square().sum().backward()
    (reference(xs[1], torch.tensor([2, 899])).sample - target).square().sum().backward()
    assert gap(xs[0].grad, xs[1].grad) < 1e-5
    ours = pretrained._exported({k: p.grad for k, p in denoiser.net.named_parameters()})
    worst = max(p.grad.norm() for p in reference.parameters())  # the key's bias has a gradient of zero: softmax does not see it
    for k, p in reference.named_parameters(): assert (ours[k] - p.grad).norm() < 1e-5 * max(p.grad.norm(), 0.01 * worst), k

def test_old_names_of_attention(tmp_path):
    reference = theirs(TINY)
    publish(tmp_path/'new', reference), publish(tmp_path/'old', reference, old=True)
    assert any('proj_attn' in k for k in load_file(tmp_path/'old'/pretrained.THEIRS)) and same(load(tmp_path/'old')[0], load(tmp_path/'new')[0])
    file = tmp_path/'old'/pretrained.THEIRS
    save_file(load_file(file) | {'mid_block.attentions.0.to_q.bias': torch.zeros(32)}, file)
    with pytest.raises(ValueError, match='twice'): load(tmp_path/'old')

def test_half_precision_of_diffusers_becomes_float32(tmp_path):
    half = theirs(TINY).half()
    denoiser, _ = load(publish(tmp_path/'net', half))
    assert all(p.dtype == torch.float32 for p in denoiser.parameters())
    compare(denoiser.net, half.float(), images(2, 1, 8, 8), (1, 1000))

def test_odd_sizes_are_ours_alone(tmp_path):
    reference = theirs(TINY)
    denoiser, _ = load(publish(tmp_path/'net', reference))
    x = images(1, 1, 9, 7)
    with pytest.raises(RuntimeError): reference(x, 1)
    assert denoiser.net(x, torch.tensor([2])).shape == x.shape

def test_diffusers_defaults_are_as_written():
    "What a config leaves out means diffusers' own default"
    defaults = lambda f: {k: list(p.default) if isinstance(p.default, tuple) else p.default for k, p in inspect.signature(f).parameters.items() if p.default is not p.empty}
    assert pretrained._UNET2D == defaults(UNet2DModel.__init__) | {k: v for k, v in pretrained._UNET2D.items() if k not in defaults(UNet2DModel.__init__)}
    assert pretrained._unet2d(**UNet(**SMALL).config).keys() == pretrained._UNET2D.keys() - {'sample_size', 'num_train_timesteps'}
    schedulers = defaults(DDIMScheduler.__init__) | defaults(DDPMScheduler.__init__)
    assert pretrained._SCHEDULER == schedulers | dict(_class_name=None)

WRONG = dict(in_channels=3, out_channels=2, center_input_sample=True, block_out_channels=[16, 40], layers_per_block=2.5, dropout=None, down_block_types=['DownBlock2D', 'SkipDownBlock2D'], mid_block_type=None, up_block_types=['UpBlock2D', 'UpBlock2D'],
             add_attention=False, attention_head_dim=8, mid_block_scale_factor=2, act_fn='gelu', downsample_padding=1, downsample_type='resnet', upsample_type='resnet', resnet_time_scale_shift='scale_shift', norm_num_groups=8,
             attn_norm_num_groups=2, norm_eps=1e-5, time_embedding_type='fourier', time_embedding_dim=32, freq_shift=0, flip_sin_to_cos=True, class_embed_type='timestep', num_class_embeds=10, invented='x')

@pytest.mark.parametrize('key', WRONG)
def test_networks_that_cannot_be_are_refused(tmp_path, key):
    folder = publish(tmp_path/'net', theirs(TINY))
    edit(folder/'config.json', **{key: WRONG[key]})
    with pytest.raises(ValueError, match='config.json') as e: load(folder)
    named = dict(in_channels='out_channels', layers_per_block='cannot build', dropout='cannot build', down_block_types='DownBlock2D').get(key, key)  # two keys that must agree; values that the UNet itself refuses
    assert named in str(e.value) and ('allowed' in str(e.value) or 'build' in str(e.value))

def test_every_wrong_key_is_named_at_once_and_missing_ones_mean_their_default(tmp_path):
    folder = publish(tmp_path/'net', theirs(TINY))
    for key in ('attention_head_dim', 'freq_shift', 'norm_eps'): drop(folder/'config.json', key)
    with pytest.raises(ValueError, match='attention_head_dim: 8 .the default(.|\n)*norm_eps: 1e-05(.|\n)*freq_shift: 0'): load(folder)

def test_keys_without_meaning_are_let_through(tmp_path):
    folder = publish(tmp_path/'net', theirs(TINY))
    edit(folder/'config.json', _name_or_path='/somewhere', future_option=None, other_option=False)
    load(folder)

# ---- diffusers' schedulers

@pytest.mark.parametrize('settings', [dict(), dict(beta_schedule='scaled_linear', beta_start=0.00085, beta_end=0.012), dict(beta_schedule='squaredcos_cap_v2', num_train_timesteps=300), dict(trained_betas=[0.1, 0.2, 0.35, 0.5], num_train_timesteps=4),
                                      dict(beta_schedule='scaled_linear', rescale_betas_zero_snr=True, prediction_type='v_prediction'), dict(rescale_betas_zero_snr=True, prediction_type='sample')])
@pytest.mark.parametrize('kind', [DDPMScheduler, DDIMScheduler])
def test_schedules_are_theirs(tmp_path, settings, kind):  # eq-scaled-linear
    "Their tables are float32: alpha_bar is known to 1e-7 a factor, and at t = 1 so is 1 - alpha_bar = 1e-4, to a thousandth"
    kind(**settings).save_pretrained(tmp_path)
    betas, name, sampling = pretrained._of_scheduler(json.loads((tmp_path/'scheduler_config.json').read_text()), Path('scheduler_config.json'))
    alpha_bar = kind(**settings).alphas_cumprod.double()
    assert (Schedule(betas).alpha_bar[1:] - alpha_bar).abs().max() < 1e-5 and ((1 - Schedule(betas).alpha_bar[1:]) / (1 - alpha_bar) - 1).abs().max() < 2e-3
    assert name == dict(epsilon='eps', sample='x0', v_prediction='v')[settings.get('prediction_type', 'epsilon')] and sampling['steps'] == len(betas)

@pytest.mark.parametrize('settings, variance, clip', [(dict(), 'fixed_small', True), (dict(variance_type='fixed_large', clip_sample=False, clip_sample_range=7.), 'fixed_large', False),
                                                      (dict(variance_type='fixed_small_log'), 'fixed_small', True), (dict(variance_type='fixed_large_log'), 'fixed_large', True)])
def test_how_to_draw_is_told(tmp_path, settings, variance, clip):
    told = about(publish(tmp_path/'net', theirs(TINY), **settings))['sampling']
    assert (told['variance'], told['clip'], told['steps']) == (variance, clip, 1000) and SamplingConfig(**told)

@pytest.mark.parametrize('settings, says', [
    (dict(variance_type='learned_range'), "variance_type: 'learned_range' is not allowed; allowed: 'fixed_small'"), (dict(thresholding=True), 'thresholding: True'), (dict(clip_sample_range=2.), 'clip_sample_range: 2.0'), (dict(steps_offset=1), 'steps_offset: 1'),
    (dict(beta_schedule='sigmoid'), "beta_schedule: 'sigmoid'"), (dict(_class_name='EulerDiscreteScheduler'), "_class_name: 'EulerDiscreteScheduler'"), (dict(trained_betas=[0.1, 0.2]), 'trained_betas: 2 numbers(.|\n)*1000'), (dict(prediction_type='flow'), "prediction_type: 'flow'"),
    (dict(rescale_betas_zero_snr=True), "prediction_type: 'epsilon'"), (dict(beta_end=1.5), 'beta_'), (dict(trained_betas='x'), 'no betas'), (dict(num_train_timesteps='many'), 'no betas'), (dict(invented=3), 'invented: 3'), (dict(set_alpha_to_one=False), 'set_alpha_to_one')])
def test_schedulers_that_cannot_be_are_refused(tmp_path, settings, says):
    folder = publish(tmp_path/'net', theirs(TINY))
    edit(folder/'scheduler_config.json', **settings)
    with pytest.raises(ValueError, match=f'scheduler_config.json(.|\n)*{says}'): load(folder)

# ---- diffusers' pipelines draw our images

def ddim(x_t, prediction, t, s, memory):
    "Song et al. 2021, eq. 12 with sigma 0"
    return Gaussian(s.signal.to(x_t) * prediction.x0 + s.noise.to(x_t) * prediction.eps, torch.zeros(1))

@pytest.mark.parametrize('parameterization, schedule, variance, steps', [(V, S, 'fixed_small', 20), (EPS, Schedule(linear_betas(20, 0.01, 0.3)), 'fixed_large', 20), (X0, S, 'fixed_small', 7), (V, Schedule(zero_terminal_snr(cosine_betas(20))), 'fixed_large', 5)])
def test_ddpm_pipeline_walks_our_trajectory(tmp_path, monkeypatch, parameterization, schedule, variance, steps):
    "The same first noise and the same draws, every frame. Differences are those of float32 coefficients, which grow from step to step: 1e-3 on images of size 1"
    denoiser, shape = make(parameterization, num_classes=3), (3, 1, 8, 8)
    export_diffusers(denoiser, schedule, tmp_path/'out', dict(ABOUT, sampling=dict(variance=variance, clip=True)), y=1)
    pipeline = DDPMPipeline.from_pretrained(tmp_path/'out')
    pipeline.scheduler.set_timesteps(steps)
    times = [int(t) + 1 for t in pipeline.scheduler.timesteps] + [0]
    if variance == 'fixed_small': assert times == schedule.times(steps)
    noise = Noise(5, 3).draws(shape[1:], steps + 1)
    x, drawn = next(noise), itertools.chain(noise)
    monkeypatch.setattr(diffusers.schedulers.scheduling_ddpm, 'randn_tensor', lambda *args, **options: next(drawn))
    frames = trajectory(clipped(denoiser), schedule, shape, step=ancestral(dict(fixed_small=fixed_small, fixed_large=fixed_large)[variance]), times=times, y=torch.ones(3, dtype=torch.long), seed=5, x_T=x if times[0] < schedule.T else None)
    with torch.no_grad():
        for t, frame in zip(pipeline.scheduler.timesteps, frames):
            assert (x - frame.x).abs().max() < 1e-3, frame.t
            x = pipeline.scheduler.step(pipeline.unet(x, t).sample, t, x).prev_sample
    assert (x - next(frames).x).abs().max() < 1e-3

def test_ddpm_pipeline_as_it_is_called(tmp_path):
    denoiser = make(EPS)
    export_diffusers(denoiser, S, tmp_path/'out', ABOUT | dict(sampling=dict(variance='fixed_small', clip=True)))
    made = DDPMPipeline.from_pretrained(tmp_path/'out')(2, torch.Generator().manual_seed(1), 20, output_type='np').images
    g, x = torch.Generator().manual_seed(1), None
    x = torch.randn(2, 1, 8, 8, generator=g)
    with torch.no_grad():
        for t in range(20, 0, -1):
            now, then = S.at(t, x), S.at(t - 1, x)
            x = ancestral()(x, clipped(denoiser)(x, now), now, then, {}).sample(torch.randn(x.shape, generator=g) if t > 1 else 0)
    assert np.abs(made[..., 0] - (x[:, 0].numpy() / 2 + 0.5).clip(0, 1)).max() < 1e-3

@pytest.mark.parametrize('parameterization', [V, EPS])
def test_ddim_pipeline_walks_our_trajectory(tmp_path, parameterization):
    denoiser = make(parameterization)
    export_diffusers(denoiser, S, tmp_path/'out', ABOUT | dict(sampling=dict(variance='fixed_small', clip=True)))
    made = DDIMPipeline.from_pretrained(tmp_path/'out')(3, torch.Generator().manual_seed(2), eta=0., num_inference_steps=10, use_clipped_model_output=True, output_type='np').images
    x_T = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    *_, last = trajectory(clipped(denoiser), S, x_T.shape, step=ddim, times=S.times(10), x_T=x_T, seed=0)
    assert np.abs(made[..., 0] - (last.x[:, 0].numpy() / 2 + 0.5).clip(0, 1)).max() < 1e-3

@pytest.mark.parametrize('y', [None, -1, 0, 2])
def test_a_label_becomes_a_bias(tmp_path, y):  # eq-fold
    denoiser = make(num_classes=3)
    export_diffusers(denoiser, S, tmp_path/'out', ABOUT, y=y)
    x, t = images(4, 1, 8, 8), torch.tensor([1, 5, 10, 20])
    want = denoiser.net(x, t, None if y is None else torch.full((4,), y))
    assert gap(UNet2DModel.from_pretrained(tmp_path/'out'/'unet').eval()(x, t - 1).sample, want) < 1e-5
    back, schedule = load(tmp_path/'out')
    assert gap(back.net(x, t), want) < 1e-5 and back.net.num_classes == 0 and schedule.is_close(S) and back.parameterization is V
    told = about(tmp_path/'out')['sampling']
    assert (told['variance'], told['clip']) == ('fixed_large', False)

@pytest.mark.parametrize('options, keywords, says', [(dict(unshuffle=2), {}, 'unshuffle 2(.|\n)*export_onnx'), (dict(multipliers=(2, 2)), {}, 'begin with 1(.|\n)*export_onnx'), (dict(), dict(about=None), 'shape'),
    (dict(), dict(about=dict(shape=(1, 9, 8))), 'multiples of 2(.|\n)*export_onnx'), (dict(), dict(y=0), 'y: 0 is not allowed; allowed: none'), (dict(num_classes=3), dict(y=3), r'y: 3 is not allowed; allowed: 0\.\.2')])
def test_what_diffusers_cannot_express_is_refused(tmp_path, options, keywords, says):
    with pytest.raises(ValueError, match=says): export_diffusers(make(**options), S, tmp_path/'out', **{'about': ABOUT, **keywords})
    assert tree(tmp_path) == []

def test_own_networks_are_not_for_diffusers(tmp_path):
    with pytest.raises(ValueError, match='Conv2d(.|\n)*export_onnx'): export_diffusers(Denoiser(nn.Conv2d(1, 1, 1)), S, tmp_path/'out', ABOUT)

# ---- folders of diffusers that are no model

def weights_file(folder, change):
    file = folder/pretrained.THEIRS
    weights = load_file(file); change(weights); save_file(weights, file)

@pytest.mark.parametrize('change, says', [(lambda w: w.pop('conv_in.bias'), 'conv_in.bias is missing there, and .16'), (lambda w: w.update(extra=torch.zeros(2)), 'extra is .2,. there, and missing'),
                                          (lambda w: w.update({'mid_block.attentions.0.to_q.weight': torch.zeros(32, 31)}), r'to_q.weight is \(32, 31\) there, and \(32, 32\)')])
def test_weights_that_do_not_fit_are_named(tmp_path, change, says):
    folder = publish(tmp_path/'net', theirs(TINY))
    weights_file(folder, change)
    with pytest.raises(ValueError, match=f'{pretrained.THEIRS}(.|\n)*{says}'): load(folder)

@pytest.mark.parametrize('name', ['config.json', 'scheduler_config.json', 'model_index.json'])
@pytest.mark.parametrize('text, says', [('{"a": 1', 'is not JSON'), ('[1, 2]', 'keys and values'), ('\xff\xfe', 'is not JSON')])
def test_broken_json_is_named(tmp_path, name, text, says):
    folder = publish(tmp_path/'net', theirs(TINY))
    (folder/name).write_text(text, encoding='latin-1')
    with pytest.raises(ValueError, match=f'{name} .*{says}'): load(folder)

@pytest.mark.parametrize('name', ['config.json', 'scheduler_config.json', pretrained.THEIRS])
def test_missing_files_are_named(tmp_path, name):
    folder = publish(tmp_path/'net', theirs(TINY))
    (folder/name).unlink()
    with pytest.raises(FileNotFoundError, match=f'{name} is missing'): load(folder)

def test_cut_weights_are_named(tmp_path):
    file = publish(tmp_path/'net', theirs(TINY))/pretrained.THEIRS
    for n in (0, 5, 500, file.stat().st_size - 1):
        file.write_bytes(file.read_bytes()[:n])
        with pytest.raises(ValueError, match=f'{pretrained.THEIRS} is not a whole safetensors file'): load(file.parent)

def test_pickles_are_refused_and_the_command_converts_them(tmp_path):
    "Nothing of the file is run, and what the message says to do works"
    reference = theirs(TINY)
    folder = publish(tmp_path/'net', reference)
    (folder/pretrained.THEIRS).unlink()
    torch.save(reference.state_dict(), folder/'diffusion_pytorch_model.bin')
    with pytest.raises(ValueError, match='is a pickle') as e: load(folder)
    command = str(e.value).splitlines()[1]
    assert command.startswith('python -c')
    subprocess.run(command.replace('python', sys.executable, 1), shell=True, check=True)
    compare(load(folder)[0].net, reference, images(1, 1, 8, 8), (1, 1000))

class Bomb:
    def __reduce__(self): return Path.touch, (Path('exploded'),)

@pytest.mark.parametrize('name', ['model.ckpt', 'weights.pt', 'net.bin'])
def test_no_pickle_is_ever_opened(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'net').mkdir(); torch.save(Bomb(), tmp_path/'net'/name)
    for path in ('net', f'net/{name}'):
        with pytest.raises(ValueError, match=f'{name} is a pickle(.|\n)*python -c'): load(path)
    assert not Path('exploded').exists()

def test_other_pipelines_and_other_folders(tmp_path):
    folder = publish(tmp_path/'net', theirs(TINY))
    edit(folder/'model_index.json', _class_name='LDMPipeline', vqvae=['diffusers', 'VQModel'])
    with pytest.raises(ValueError, match='LDMPipeline with vqvae'): load(folder)
    edit(folder/'config.json', _class_name='UNet2DConditionModel')
    drop(folder/'model_index.json', 'vqvae')
    with pytest.raises(ValueError, match="_class_name: 'UNet2DConditionModel'"): load(folder)
    (tmp_path/'photos').mkdir(); (tmp_path/'photos'/'cat.jpg').write_bytes(b'x')
    with pytest.raises(FileNotFoundError, match='photos holds no model; allowed'): load(tmp_path/'photos')
    with pytest.raises(ValueError, match='not a whole checkpoint'): load(tmp_path/'photos'/'cat.jpg')

@pytest.mark.parametrize('size', ['big', [8], 0, [8, 'x']])
def test_sizes_that_are_none_are_refused(tmp_path, size):
    folder = publish(tmp_path/'net', theirs(TINY))
    edit(folder/'config.json', sample_size=size)
    with pytest.raises(ValueError, match='sample_size'): load(folder)

def test_a_network_that_tells_no_size_loads(tmp_path):
    folder = publish(tmp_path/'net', theirs(TINY))
    edit(folder/'config.json', sample_size=None)
    load(folder)
    assert 'shape' not in about(folder)

# ---- our own folder

def test_what_is_saved_comes_back(tmp_path):  # eq-file
    denoiser, schedule = make(EPS, num_classes=3, unshuffle=2), Schedule(linear_betas(50, 0.001, 0.2))
    assert save(denoiser, schedule, tmp_path/'a'/'net', ABOUT) == tmp_path/'a'/'net'
    assert tree(tmp_path/'a') == ['net', 'net/README.md', 'net/config.json', 'net/model.safetensors', 'net/schedule.json']
    before = torch.get_rng_state()
    back, its = load(tmp_path/'a'/'net')
    assert torch.equal(torch.get_rng_state(), before)
    assert same(back, denoiser) and back.parameterization is EPS and not back.training and type(back.net) is UNet and back.net.config == denoiser.net.config
    assert torch.equal(its.betas, schedule.betas) and about(tmp_path/'a'/'net') == ABOUT
    assert same(load(tmp_path/'a'/'net'/'model.safetensors')[0], denoiser)
    blob = (tmp_path/'a'/'net'/'model.safetensors').read_bytes()
    assert len(blob) == 8 + int.from_bytes(blob[:8], 'little') + 4 * sum(p.numel() for p in denoiser.parameters())
    page = (tmp_path/'a'/'net'/'README.md').read_text()
    for word in ('# net', 'eps', 'T=50', '"fixed_large"', json.loads((tmp_path/'a'/'net'/'config.json').read_text())['sha256'], f'{sum(p.numel() for p in denoiser.parameters()):,}'): assert word in page
    x, t, y = images(2, 1, 8, 8), torch.tensor([1, 50]), torch.tensor([-1, 2])
    assert torch.equal(back.net(x, t, y), denoiser.net(x, t, y))

def test_saving_changes_nothing_and_knows_layouts_and_modes(tmp_path):
    denoiser = make().train()
    denoiser.net.to(memory_format=torch.channels_last)
    save(denoiser, S, tmp_path/'net'); export_diffusers(denoiser, S, tmp_path/'out', ABOUT)
    assert denoiser.training and denoiser.net.stem.weight.is_contiguous(memory_format=torch.channels_last) and same(load(tmp_path/'net')[0], denoiser)
    assert same(load(save(Denoiser(torch.compile(denoiser.net), V), S, tmp_path/'compiled'))[0], denoiser)
    assert about(tmp_path/'net') == dict(classes=[], sampling=SamplingConfig(steps=20).model_dump())

@pytest.mark.parametrize('dtype, p', [(torch.float16, 11), (torch.bfloat16, 8)])
def test_half_the_bytes(tmp_path, dtype, p):  # eq-half
    denoiser = make()
    back, _ = load(save(denoiser, S, tmp_path/'half', dtype=dtype))
    save(denoiser, S, tmp_path/'full')
    assert 0.45 < (tmp_path/'half'/'model.safetensors').stat().st_size / (tmp_path/'full'/'model.safetensors').stat().st_size < 0.55
    for a, b in zip(back.parameters(), denoiser.parameters()):
        assert a.dtype == torch.float32 and ((a - b).abs() <= 2.**-p * b.abs())[b.abs() > 6.2e-5].all() and torch.equal(a, b.to(dtype).float())

def test_numbers_that_cannot_be_kept_are_refused(tmp_path):
    denoiser = make()
    with torch.no_grad(): denoiser.net.stem.bias[0] = 1e5
    with pytest.raises(ValueError, match='stem.bias holds numbers that are not finite in torch.float16, which ends at 65504'): save(denoiser, S, tmp_path/'net', dtype=torch.float16)
    save(denoiser, S, tmp_path/'net', dtype=torch.bfloat16)
    with torch.no_grad(): denoiser.net.stem.bias[0] = float('nan')
    with pytest.raises(ValueError, match='stem.bias holds numbers that are not finite$'): save(denoiser, S, tmp_path/'nan')
    with pytest.raises(ValueError, match='dtype: torch.int8'): save(make(), S, tmp_path/'nan', dtype=torch.int8)
    assert tree(tmp_path) == ['net', 'net/README.md', 'net/config.json', 'net/model.safetensors', 'net/schedule.json']

def test_what_is_no_denoiser_or_no_json_is_refused(tmp_path):
    own = Parameterization('eps', EPS.target, lambda *args: None)
    for wrong in (clipped(make()), guided(make(num_classes=3), torch.tensor([1]), 1.), make().net):
        with pytest.raises(TypeError, match='give the Denoiser itself'): save(wrong, S, tmp_path/'net')
    with pytest.raises(ValueError, match='parameterization of your own'): save(make(own), S, tmp_path/'net')
    for wrong in (dict(a=torch.ones(1)), dict(a=float('nan')), dict(a=Path('x'))):
        with pytest.raises(ValueError, match='about cannot be written as JSON'): save(make(), S, tmp_path/'net', wrong)
    assert tree(tmp_path) == []

# ---- whole or not at all

@pytest.mark.parametrize('export, fails_at', [(lambda d, path: save(d, S, path), n) for n in (1, 4)] + [(lambda d, path: export_diffusers(d, S, path, ABOUT), n) for n in (1, 4)])
def test_a_failing_disk_leaves_what_was_there(tmp_path, monkeypatch, export, fails_at):
    first, second = make(), make(seed=1)
    export(first, tmp_path/'old')
    write, written = Path.write_bytes, []
    def failing(self, blob):
        written.append(self)
        if len(written) % 4 == fails_at % 4: write(self, blob[:10]); raise OSError(28, 'No space left on device')
        return write(self, blob)
    monkeypatch.setattr(Path, 'write_bytes', failing)
    for name in ('old', 'new'):
        written.clear()
        with pytest.raises(OSError, match=f'cannot write .*{name}.*No space left(.|\n)*untouched'): export(second, tmp_path/name)
    monkeypatch.undo()
    assert [f.name for f in tmp_path.iterdir()] == ['old'] and same(load(tmp_path/'old')[0], first)
    export(second, tmp_path/'old')
    assert same(load(tmp_path/'old')[0], second) and [f.name for f in tmp_path.iterdir()] == ['old']

def test_a_failing_rename_brings_the_old_folder_back(tmp_path, monkeypatch):
    save(make(), S, tmp_path/'net')
    def failing(a, b): raise OSError('no rename today')
    monkeypatch.setattr(os, 'replace', failing)
    with pytest.raises(OSError, match='no rename today'): save(make(seed=1), S, tmp_path/'net')
    monkeypatch.undo()
    assert same(load(tmp_path/'net')[0], make()) and [f.name for f in tmp_path.iterdir()] == ['net']

def test_after_a_kill_between_the_renames(tmp_path, monkeypatch):
    "The old folder is aside, the new one not yet in place: the next save goes through, and if that fails the old one is back"
    save(make(), S, tmp_path/'net')
    os.rename(tmp_path/'net', tmp_path/'.old_net'); (tmp_path/'.part_net').mkdir(); (tmp_path/'.part_net'/'junk').write_text('x')
    monkeypatch.setattr(Path, 'write_bytes', lambda self, blob: (_ for _ in ()).throw(OSError('full')))
    with pytest.raises(OSError): save(make(seed=1), S, tmp_path/'net')
    monkeypatch.undo()
    assert same(load(tmp_path/'net')[0], make())
    save(make(seed=1), S, tmp_path/'net')
    assert same(load(tmp_path/'net')[0], make(seed=1)) and [f.name for f in tmp_path.iterdir()] == ['net']

def test_a_file_never_replaces_a_folder(tmp_path):
    (tmp_path/'x.png').mkdir(); (tmp_path/'x.png'/'mine').write_text('x')
    with pytest.raises(OSError, match='cannot write .*x.png'):
        with atomic(tmp_path/'x.png') as part: part.write_text('picture')
    with pytest.raises(ValueError, match='net.onnx'): (tmp_path/'net.onnx').mkdir(); export_onnx(make(), tmp_path/'net.onnx', (1, 8, 8))
    assert tree(tmp_path) == ['net.onnx', 'x.png', 'x.png/mine']

def test_other_peoples_folders_are_never_replaced(tmp_path):
    denoiser = make()
    write = {'ours': lambda p: save(denoiser, S, p), 'theirs': lambda p: export_diffusers(denoiser, S, p, ABOUT)}
    for kind, f in write.items(): f(tmp_path/kind)
    cases = {'photos': ['cat.jpg'], 'deep': ['unet/notes.txt'], 'folder': ['sub/']}
    for name, files in cases.items():
        for file in files:
            (tmp_path/name/file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path/name/file).mkdir(parents=True) if file.endswith('/') else (tmp_path/name/file).write_text('x')
    (tmp_path/'file').write_text('x')
    (tmp_path/'foreign').mkdir(); (tmp_path/'foreign'/'config.json').write_text('{"model": "somebody\'s"}'); (tmp_path/'foreign'/'README.md').write_text('hello')
    (tmp_path/'readme').mkdir(); (tmp_path/'readme'/'README.md').write_text('hello')
    publish(tmp_path/'published', theirs(TINY))
    (tmp_path/'mixed').mkdir(); save(denoiser, S, tmp_path/'mixed'); (tmp_path/'mixed'/'samples.png').write_text('x')
    before = tree(tmp_path)
    for kind, f in write.items():
        for name in ('photos', 'deep', 'folder', 'file', 'foreign', 'readme', 'published', 'mixed', 'theirs' if kind == 'ours' else 'ours'):
            with pytest.raises(FileExistsError, match=f'{name} is there already'): f(tmp_path/name)
    assert tree(tmp_path) == before
    (tmp_path/'empty').mkdir()
    for kind, f in write.items(): f(tmp_path/kind); f(tmp_path/'empty'); shutil.rmtree(tmp_path/'empty'); (tmp_path/'empty').mkdir()

# ---- our own folder, spoilt

@pytest.mark.parametrize('name, change, error, says', [
    ('config.json', lambda f: edit(f, version=2), ValueError, 'version: 2 is not allowed; allowed: 1'), ('config.json', lambda f: edit(f, parameterization='flow'), ValueError, "'flow'; known are eps, x0, v"),
    ('config.json', lambda f: edit(f, args=dict(channels=17)), ValueError, 'config.json(.|\n)*channels = 17'), ('config.json', lambda f: edit(f, args=dict(depth=3)), ValueError, 'config.json(.|\n)*depth'), ('config.json', lambda f: edit(f, args=dict(SMALL, channels=32)), ValueError, 'another network'),
    ('config.json', lambda f: f.write_text(f.read_text()[:-9]), ValueError, 'config.json is not JSON'), ('schedule.json', lambda f: f.write_text('{'), ValueError, 'schedule.json is not JSON'), ('schedule.json', lambda f: f.unlink(), FileNotFoundError, 'schedule.json is missing'),
    ('schedule.json', lambda f: edit(f, betas=[0.1, 2.]), ValueError, 'schedule.json: betas: beta_2 = 2'), ('schedule.json', lambda f: edit(f, betas='x'), ValueError, 'schedule.json: betas'), ('schedule.json', lambda f: f.write_text('{}'), ValueError, 'schedule.json: betas'),
    ('model.safetensors', lambda f: f.unlink(), FileNotFoundError, 'model.safetensors is missing'), ('model.safetensors', lambda f: f.write_bytes(f.read_bytes()[:-1]), ValueError, 'model.safetensors is cut or changed'),
    ('model.safetensors', lambda f: f.write_bytes(f.read_bytes()[:-1] + b'\0'), ValueError, 'model.safetensors is cut or changed'), ('config.json', lambda f: edit(f, network='os:getcwd'), ValueError, 'network: os:getcwd is not a torch.nn.Module'),
    ('config.json', lambda f: edit(f, network='nowhere:Net'), ValueError, r'nowhere:Net cannot be imported(.|\n)*net=Net\('), ('config.json', lambda f: edit(f, network=''), ValueError, 'network'), ('config.json', lambda f: edit(f, network='.x:y'), ValueError, 'network'),
] + [('config.json', lambda f, k=k: drop(f, k), ValueError, f"config.json: {k}: 'nothing'") for k in ('version', 'network', 'args', 'parameterization', 'sha256', 'about')])
def test_spoilt_folders_are_refused_and_named(tmp_path, name, change, error, says):
    folder = save(make(), S, tmp_path/'net')
    change(folder/name)
    with pytest.raises(error, match=says): load(folder)

# ---- networks of your own

OWN = '''
import torch
from torch import nn
made = []
class Net(nn.Module):
    def __init__(self, width, sizes=(1, 2)):
        super().__init__()
        made.append(width)
        self.config = dict(width=width, sizes=sizes)
        self.layer = nn.Linear(width, width)
        self.register_buffer('count', torch.tensor(7)); self.register_buffer('scale', torch.rand(3), persistent=False)
    def forward(self, x, t): return self.layer(x)
class Mute(nn.Module):
    def __init__(self, width): super().__init__(); self.layer = nn.Linear(width, width)
    def forward(self, x, t): return self.layer(x)
def function(width): raise SystemExit('ran')
'''

@pytest.fixture
def own(tmp_path, monkeypatch):
    "A module of somebody's own, found as Python finds it"
    monkeypatch.syspath_prepend(tmp_path/'code')
    (tmp_path/'code').mkdir(); (tmp_path/'code'/'own_nets.py').write_text(OWN)
    import own_nets
    yield own_nets
    del sys.modules['own_nets']

def test_own_networks_are_found_by_name(tmp_path, own):
    denoiser = Denoiser(own.Net(4), X0).eval()
    with torch.no_grad(): denoiser.net.count.fill_(9)
    save(denoiser, S, tmp_path/'net', dtype=torch.float16)
    before = torch.get_rng_state()
    back, _ = load(tmp_path/'net')
    assert torch.equal(torch.get_rng_state(), before)
    assert type(back.net) is own.Net and back.net.count == 9 and back.net.count.dtype == torch.int64 and torch.equal(back.net.layer.weight, denoiser.net.layer.weight.half().float()) and back.parameterization is X0
    edit(tmp_path/'net'/'config.json', args=dict(depth=3))
    with pytest.raises(ValueError, match=r"args: \{'depth': 3\} is not allowed for own_nets:Net(.|\n)*net=Net"): load(tmp_path/'net')
    edit(tmp_path/'net'/'config.json', network='own_nets:function')
    with pytest.raises(ValueError, match='not a torch.nn.Module'): load(tmp_path/'net')  # and SystemExit would tell that it ran

def test_a_network_without_config_is_filled(tmp_path, own):
    denoiser = Denoiser(own.Mute(4), V)
    save(denoiser, S, tmp_path/'net')
    assert 'net=Mute(...)' in (tmp_path/'net'/'README.md').read_text()
    with pytest.raises(ValueError, match=r'self.config = dict\(...\)(.|\n)*net=Mute'): load(tmp_path/'net')
    assert torch.equal(load(tmp_path/'net', net=own.Mute(4))[0].net.layer.weight, denoiser.net.layer.weight)
    with pytest.raises(ValueError, match='another network: layer.bias'): load(tmp_path/'net', net=own.Mute(5))

@pytest.fixture(scope='module')
def outside(tmp_path_factory):
    "What a process makes that has none of diffusers, onnx, onnxruntime and onnxscript, and a network in __main__, as in a notebook; and what it says"
    folder = tmp_path_factory.mktemp('outside')
    program = f'''
import os, sys
for name in ('diffusers', 'onnx', 'onnxruntime', 'onnxscript'): sys.modules[name] = None
{OWN}
from diffusion_scratch.denoiser import Denoiser
from diffusion_scratch.pretrained import export_diffusers, export_onnx, load, save
from diffusion_scratch.schedule import Schedule
from diffusion_scratch.unet import UNet
os.chdir({str(folder)!r})
denoiser, schedule = Denoiser(UNet(1, 16, (1, 2), 1)), Schedule([0.1, 0.2])
load(save(denoiser, schedule, 'ours')); load(export_diffusers(denoiser, schedule, 'theirs', dict(shape=(1, 8, 8))))
try: export_onnx(denoiser, 'net.onnx', (1, 8, 8))
except ImportError: print('refused')
load(save(Denoiser(Net(4)), schedule, 'notebook'))
'''
    return folder, subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True).stdout

def test_a_network_of_a_notebook(outside):
    "A class of __main__ has no name elsewhere: it is saved, and the error says what to give"
    folder = outside[0]/'notebook'
    with pytest.raises(ValueError, match=r'__main__:Net cannot be imported(.|\n)*net=Net\(...\)'): load(folder)
    class Net(nn.Module):
        def __init__(self): super().__init__(); self.layer = nn.Linear(4, 4); self.register_buffer('count', torch.tensor(0))
    assert load(folder, net=Net())[0].net.count == 7

# ---- runs and checkpoints

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A run of two steps, so that the average is not the last"
    path, state = tmp_path_factory.mktemp('runs')/'run', TrainState(make(num_classes=10, unshuffle=4), ema=0.5)
    for m in fit(state, S, mnist_mini(), steps=2, batch_size=8, lr=lambda step: 1e-2): save_checkpoint(path/'checkpoints'/f'step_{m.step:08d}.safetensors', state, S, dict(ABOUT, loss=m.loss))
    return path, state

def test_a_run_is_read_as_training_reads_it(run):
    path, state = run
    for place in (path, path/'checkpoints'/'step_00000002.safetensors', str(path)):
        for ema, want in ((True, state.ema), (False, state.denoiser)):
            denoiser, schedule = load(place, ema=ema)
            assert same(denoiser, want) and same(denoiser, load_checkpoint(place, ema=ema)[0]) and not denoiser.training and torch.equal(schedule.betas, S.betas)
        assert about(place) == about_checkpoint(place)
    assert not same(state.ema, state.denoiser)

def test_a_file_is_read_once(run, tmp_path, monkeypatch):
    read, seen = Path.read_bytes, []
    monkeypatch.setattr(Path, 'read_bytes', lambda self: (seen.append(self.name), read(self))[1])
    found = find(run[0])
    found.about, found.load(), found.load(ema=False)
    assert seen == ['step_00000002.safetensors']
    folders = [save(make(), S, tmp_path/'ours'), publish(tmp_path/'theirs', theirs(TINY))]
    for folder, name in zip(folders, ('model.safetensors', pretrained.THEIRS)):
        seen.clear()
        about(folder)
        assert seen == []  # what is known of it does not take the weights
        find(folder).load()
        assert seen == [name]

def test_a_damaged_checkpoint_is_passed_over(run, tmp_path):
    shutil.copytree(run[0], tmp_path/'run')
    newest = tmp_path/'run'/'checkpoints'/'step_00000002.safetensors'
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.warns(UserWarning, match='going back to step_00000001'): assert about(tmp_path/'run')['loss'] == about(tmp_path/'run'/'checkpoints'/'step_00000001.safetensors')['loss']
    with pytest.raises(ValueError, match='step_00000002.safetensors is not a whole checkpoint'): load(newest)
    shutil.rmtree(tmp_path/'run'/'checkpoints'); (tmp_path/'run'/'checkpoints').mkdir()
    with pytest.raises(FileNotFoundError, match='does not exist'): load(tmp_path/'run')

def test_own_networks_of_a_run(tmp_path, own):
    "Made as the run's config says; without one, filled; and told what to do where neither is there"
    state, file = TrainState(Denoiser(own.Net(28), V)), tmp_path/'run'/'checkpoints'/'step_00000001.safetensors'
    state.update(state.denoiser.net(torch.ones(1, 28), None).sum(), 0.1, 1.)
    save_checkpoint(file, state, S, ABOUT)
    for place in (file, tmp_path/'run'):
        with pytest.raises(ValueError, match='no description of its network(.|\n)*net='): load(place)
        assert same(load(place, net=own.Net(28))[0], state.ema)
    (tmp_path/'run'/'config.yaml').write_text(dump_config(parse_config(dict(model='own_nets:Net', model_args=dict(width=28)))))
    for place in (file, tmp_path/'run'): assert same(load(place)[0], state.ema) and same(load(place, ema=False)[0], state.denoiser)

def test_averages_only(tmp_path):
    save(make(), S, tmp_path/'average', dict(ema=True)); save(make(), S, tmp_path/'last', dict(ema=False)); save(make(), S, tmp_path/'unknown')
    with pytest.raises(ValueError, match='ema: False(.|\n)*only averaged'): load(tmp_path/'average', ema=False)
    for name in ('last', 'unknown'): assert same(load(tmp_path/name, ema=False)[0], load(tmp_path/name)[0])

# ---- names

def test_shipped_weights_are_a_listing(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, 'SHIPPED', tmp_path/'weights')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match='shipped: none; published: google/ddpm-cifar10-32, '): load('mnist-mini')
    save(make(), S, tmp_path/'weights'/'mnist-mini', ABOUT); save(make(seed=1), S, tmp_path/'weights'/'other')
    assert same(load('mnist-mini')[0], make()) and about('mnist-mini') == ABOUT
    with pytest.raises(FileNotFoundError, match='shipped: mnist-mini, other;(.|\n)*Did you mean mnist-mini'): load('mnist-mni')
    save(make(seed=2), S, tmp_path/'mnist-mini')
    assert same(load('mnist-mini')[0], make(seed=2))  # a path that exists is never a name

@pytest.mark.parametrize('name, near', [('ddpm-cifar10-32', 'google/ddpm-cifar10-32'), ('DDPM-EMA-celeba', 'google/ddpm-ema-celebahq-256'), ('zzz', None), ('runs/x/checkpoints/step_1.safetensors', None)])
def test_unknown_names_are_told_what_is_known(name, near):
    with pytest.raises(FileNotFoundError, match=f'{name} is no path') as e: load(name)
    assert (f'Did you mean {near}?' in str(e.value)) if near else 'Did you mean' not in str(e.value)
    assert all(n in str(e.value) for n in PUBLISHED)

HUB = '''
import hashlib, http.server, json, os, socket, sys, threading, time, tempfile
from pathlib import Path
asked, files, known, silent = [], {}, True, False
class Server(http.server.BaseHTTPRequestHandler):
    "As much of the hub as a download takes"
    def answer(self):
        asked.append(self.path.partition('?')[0])
        if silent: time.sleep(60)
        if not known:
            self.send_response(404); self.send_header('X-Error-Code', 'RepoNotFound'); self.send_header('Content-Length', '0'); return self.end_headers()
        *_, name = asked[-1].partition('/resolve/' + 'a' * 40 + '/')
        if '/tree/' in self.path: blob = json.dumps([dict(type='file', path=f, size=len(b), oid=hashlib.sha1(b).hexdigest()) for f, b in files.items()]).encode()
        elif self.path.startswith('/api/models/'): blob = json.dumps(dict(id='me/net', sha='a' * 40, siblings=[dict(rfilename=f) for f in files])).encode()
        elif name in files: blob = files[name]
        else: return self.send_error(404)
        self.send_response(200)
        for k, v in {'Content-Length': len(blob), 'X-Repo-Commit': 'a' * 40, 'ETag': hashlib.sha1(blob).hexdigest()}.items(): self.send_header(k, str(v))
        self.end_headers()
        if self.command == 'GET': self.wfile.write(blob)
    do_GET = do_HEAD = answer
    def log_message(self, *args): pass
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Server)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
home = tempfile.TemporaryDirectory()
os.environ.update(HF_ENDPOINT=f'http://127.0.0.1:{server.server_port}', HF_HOME=home.name, HF_HUB_DISABLE_PROGRESS_BARS='1', HF_HUB_DISABLE_XET='1')
os.environ.pop('HF_HUB_OFFLINE', None)
import torch
from diffusion_scratch.pretrained import about, find, load
def refusal(name):
    began = time.monotonic()
    try: load(name)
    except (OSError, ValueError, ImportError) as e: return f'{type(e).__name__}: {e}', time.monotonic() - began
'''

def test_the_hub(tmp_path):
    """Fetched once, never a pickle; then from the cache, with no network; a part of the cache is not enough; and no code by name.
    A hub that knows nothing, one that is silent, none at all, and no client: the error comes in seconds and says what to do.
    In a process of its own, for the hub's address is read when its client is imported"""
    publish(tmp_path/'net', theirs(TINY), variance_type='fixed_large')
    torch.save(dict(), tmp_path/'net'/'diffusion_pytorch_model.bin')
    save(Denoiser(nn.Linear(2, 2)), S, tmp_path/'own')
    program = HUB + '''
here = Path(sys.argv[1])
files.update({f.name: f.read_bytes() for f in (here/'net').iterdir()})
denoiser, schedule = load('google/ddpm-cifar10-32')
assert all(torch.equal(a, b) for a, b in zip(denoiser.state_dict().values(), load(here/'net')[0].state_dict().values()))
assert not any(a.endswith('.bin') for a in asked) and any(a.endswith('.safetensors') for a in asked), asked
asked.clear()
found = find('google/ddpm-cifar10-32')
assert not asked and (found.about['source'], found.about['ema'], found.about['sampling']['variance']) == ('google/ddpm-cifar10-32', False, 'fixed_large')
files.clear(); files.update({f.name: f.read_bytes() for f in (here/'own').iterdir()})
say = dict(own=refusal('me/net')[0])
known = False
say['unknown'] = refusal('google/ddpm-cifar10')[0]
silent = True
say['silent'], seconds = refusal('google/ddpm-ema-cat-256')
assert seconds < 15, seconds
server.shutdown(); server.server_close()
load('google/ddpm-cifar10-32')
found.path.joinpath('diffusion_pytorch_model.safetensors').unlink()
say['part'], say['none'] = refusal('google/ddpm-cifar10-32')[0], refusal('me/other')[0]
sys.modules['huggingface_hub'] = None
say['client'] = refusal('google/ddpm-cifar10-32')[0]
print(json.dumps(say))
'''
    done = subprocess.run([sys.executable, '-c', program, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    say = json.loads(done.stdout)
    assert say['own'].startswith('ValueError: me/net names a network of its own, torch.nn.modules.linear:Linear')
    for case in ('unknown', 'silent', 'part', 'none'): assert re.match('FileNotFoundError: .* is no path here, and cannot be fetched from the Hugging Face hub', say[case])
    assert 'RepositoryNotFound' in say['unknown'] and 'Did you mean google/ddpm-cifar10-32?' in say['unknown'] and 'imeout' in say['silent'] and 'Did you mean' not in say['silent']
    assert say['client'].startswith('ImportError') and 'pip install huggingface_hub' in say['client']
    for case in ('part', 'client'): assert '\n  hf download google/ddpm-cifar10-32 --local-dir ddpm-cifar10-32\n' in say[case] and "load('ddpm-cifar10-32')" in say[case]

# ---- ONNX

@pytest.fixture(scope='module')
def onnx_file(tmp_path_factory):
    denoiser = make(num_classes=3, unshuffle=2, attention=()).train()
    return denoiser, export_onnx(denoiser, tmp_path_factory.mktemp('onnx')/'net.onnx', (1, 12, 8), schedule=S)

@pytest.mark.parametrize('B, H, W', [(1, 12, 8), (3, 8, 8), (2, 9, 13), (5, 17, 4)])
def test_onnxruntime_says_the_same(onnx_file, B, H, W):
    "At sizes and batches that it was not exported at, odd ones too, with labels and without"
    denoiser, file = onnx_file
    session = onnxruntime.InferenceSession(file)
    x, t, y = images(B, 1, H, W), torch.arange(1, B + 1) * 4, torch.arange(B) % 4 - 1
    [out] = session.run(None, dict(x=x.numpy(), t=t.numpy(), y=y.numpy()))
    assert denoiser.training
    with torch.no_grad(): assert gap(torch.from_numpy(out), copy.deepcopy(denoiser.net).eval()(x, t, y)) < 1e-5
    assert {i.name: i.type for i in session.get_inputs()} == dict(x='tensor(float)', t='tensor(int64)', y='tensor(int64)')
    notes = session.get_modelmeta().custom_metadata_map
    assert notes['parameterization'] == 'v' and json.loads(notes['betas']) == S.betas.tolist()
    assert os.listdir(file.parent) == ['net.onnx']

class Points(nn.Module):
    "A network of your own, of points in the plane, that takes labels"
    def __init__(self): super().__init__(); self.layer, self.label = nn.Linear(3, 2), nn.Embedding(4, 2)
    def forward(self, x, t, y): return self.layer(torch.cat([x, t[:, None] / 20], 1)) + self.label(y + 1)

class Stubborn(nn.Module):
    "A network that decides by what it sees, which no list of multiplications can"
    def forward(self, x, t): return 2 * x if x.mean() > 0 else x

def test_own_networks_as_onnx(tmp_path, monkeypatch):
    net = Points()
    file = export_onnx(Denoiser(net), tmp_path/'net.onnx', (2,), labels=True)
    x, t, y = images(4, 2), torch.arange(1, 5), torch.arange(4) - 1
    [out] = onnxruntime.InferenceSession(file).run(None, dict(x=x.numpy(), t=t.numpy(), y=y.numpy()))
    assert gap(torch.from_numpy(out), net(x, t, y).detach()) < 1e-5
    before = file.read_bytes()
    with pytest.raises(ValueError, match='Stubborn cannot be exported'): export_onnx(Denoiser(Stubborn()), file, (1, 8, 8))
    monkeypatch.setattr(os, 'replace', lambda a, b: (_ for _ in ()).throw(OSError('no rename today')))
    with pytest.raises(OSError, match='no rename today(.|\n)*untouched'): export_onnx(Denoiser(Points()), file, (2,), labels=True)
    monkeypatch.undo()
    assert file.read_bytes() == before and [f.name for f in tmp_path.iterdir()] == ['net.onnx']

def test_onnx_refuses(tmp_path, monkeypatch):
    for name in ('net.bin', 'net'):
        with pytest.raises(ValueError, match='ends in .onnx'): export_onnx(make(), tmp_path/name, (1, 8, 8))
    with pytest.raises(TypeError, match='Denoiser itself'): export_onnx(clipped(make()), tmp_path/'net.onnx', (1, 8, 8))
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(ImportError, match='pip install onnx onnxscript'): export_onnx(make(), tmp_path/'net.onnx', (1, 8, 8))

# ---- what it takes

def test_the_module_needs_none_of_the_others(outside):
    "Without diffusers, onnx, onnxruntime and onnxscript all but ONNX works; and the module itself imports none of them, nor the hub's client"
    folder, said = outside
    assert said == 'refused\n' and not (folder/'net.onnx').exists() and same(load(folder/'ours')[0], load(folder/'theirs')[0])
    top = [n for n in ast.parse(Path(pretrained.__file__).read_text(encoding='utf-8')).body if isinstance(n, (ast.Import, ast.ImportFrom))]
    names = {a.name.split('.')[0] for n in top if isinstance(n, ast.Import) for a in n.names} | {(n.module or '').split('.')[0] for n in top if isinstance(n, ast.ImportFrom)}
    assert not names & {'diffusers', 'onnx', 'onnxruntime', 'onnxscript', 'huggingface_hub'}
