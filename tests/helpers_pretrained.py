"Small networks, ours and diffusers', and their folders, for the tests of pretrained and export"
import json
import re
from pathlib import Path

import diffusers
import torch
from diffusers import DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file

from diffusion_scratch.config import SamplingConfig
from diffusion_scratch.denoiser import V, Denoiser
from diffusion_scratch.pretrained import DIFFUSERS_WEIGHTS
from diffusion_scratch.schedule import Schedule, cosine_betas
from diffusion_scratch.unet import UNet

diffusers.utils.logging.disable_progress_bar()

S = Schedule(cosine_betas(20))
SMALL = dict(in_channels=1, channels=16, multipliers=(1, 2), blocks=1, attention=(1,))
ABOUT = dict(shape=[1, 8, 8], classes=['a', 'b', 'c'],
             sampling=SamplingConfig(steps=20, variance='fixed_large', clip=False).model_dump())

PAPER = dict(layers_per_block=2, attention_head_dim=None, downsample_padding=0,
             flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6)
CIFAR = dict(PAPER, sample_size=32, block_out_channels=[128, 256, 256, 256],
             down_block_types=['DownBlock2D', 'AttnDownBlock2D', 'DownBlock2D', 'DownBlock2D'],
             up_block_types=['UpBlock2D', 'UpBlock2D', 'AttnUpBlock2D', 'UpBlock2D'])
CELEBA = dict(PAPER, sample_size=256, block_out_channels=[128, 128, 256, 256, 512, 512],
              down_block_types=['DownBlock2D'] * 4 + ['AttnDownBlock2D', 'DownBlock2D'],
              up_block_types=['UpBlock2D', 'AttnUpBlock2D'] + ['UpBlock2D'] * 4)
TINY = dict(PAPER, sample_size=8, in_channels=1, out_channels=1, layers_per_block=1,
            block_out_channels=[16, 32], down_block_types=['DownBlock2D', 'AttnDownBlock2D'],
            up_block_types=['AttnUpBlock2D', 'UpBlock2D'], norm_num_groups=4)


def shake(net, seed=0):
    """Weights that can all be seen: convolutions that keep the size of what they read,
    norms and biases that differ from 1 and 0"""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for k, p in net.named_parameters():
            if p.ndim > 1: p.normal_(std=p[0].numel()**-0.5, generator=g)
            else: p.normal_(std=0.2, generator=g).add_('norm' in k and k.endswith('weight'))
    return net.eval()


def make(parameterization=V, seed=0, **options):
    with torch.random.fork_rng(): net = UNet(**{**SMALL, **options})
    return Denoiser(shake(net, seed), parameterization).eval()


def theirs(config, seed=0):
    with torch.device('meta'): net = UNet2DModel(**config)
    return shake(net.to_empty(device='cpu'), seed)


def publish(folder, net, old=False, **scheduler):
    "A folder as the first ones were published: flat, and in old ones attention has other names"
    net.save_pretrained(folder)
    DDPMScheduler(**scheduler).save_pretrained(folder)
    index = dict(_class_name='DDPMPipeline', _diffusers_version='0.1.1',
                 scheduler=['diffusers', 'DDPMScheduler'], unet=['diffusers', 'UNet2DModel'])
    (folder/'model_index.json').write_text(json.dumps(index))
    if old:
        names = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'proj_attn'}
        old_name = lambda k: re.sub(r'to_[qkv]|to_out\.0', lambda m: names[m[0]], k)
        file = folder/DIFFUSERS_WEIGHTS
        save_file({old_name(k): v for k, v in load_file(file).items()}, file, {'format': 'pt'})
    return folder


def images(*shape, seed=0): return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
def gap(a, b): return ((a - b).abs().max() / b.abs().max()).item()


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def compare(net, reference, x, times, tolerance=1e-5):
    "Our t is theirs plus 1: eq-t-shift"
    with torch.no_grad():
        for t in times:
            ours = net(x, torch.full((len(x),), t))
            assert gap(ours, reference(x, t - 1).sample) < tolerance, t


def tree(folder): return sorted(f.relative_to(folder).as_posix() for f in Path(folder).rglob('*'))
def edit(file, **values): file.write_text(json.dumps(json.loads(file.read_text()) | values))


def drop(file, key):
    values = json.loads(file.read_text())
    del values[key]
    file.write_text(json.dumps(values))
