"Small networks, ours and diffusers', and their folders, for the tests of pretrained and export"
import json
import diffusers
import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusion_scratch.config import SamplingConfig
from diffusion_scratch.denoiser import V, Denoiser
from diffusion_scratch.schedule import Schedule, cosine_betas
from diffusion_scratch.unet import UNet

diffusers.utils.logging.disable_progress_bar()

S = Schedule(cosine_betas(20))
SMALL = dict(in_channels=1, channels=16, multipliers=(1, 2), blocks=1, attention=(1,))
ABOUT = dict(shape=[1, 8, 8], classes=['a', 'b', 'c'],
             sampling=SamplingConfig(steps=20, variance='fixed_large', clip=False).model_dump())

def paper(size, widths, attention, **options):
    "The config of a UNet2DModel like those of the paper, with attention at some levels"
    kinds = ['Attn' * (i in attention) for i in range(len(widths))]
    return dict(sample_size=size, block_out_channels=widths, layers_per_block=2, norm_eps=1e-6,
                down_block_types=[f'{a}DownBlock2D' for a in kinds], attention_head_dim=None,
                up_block_types=[f'{a}UpBlock2D' for a in kinds[::-1]], downsample_padding=0,
                flip_sin_to_cos=False, freq_shift=1) | options

CELEBA = paper(256, [128, 128, 256, 256, 512, 512], [4])
TINY = paper(8, [16, 32], [1], in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=4)

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
    with torch.random.fork_rng(): net = UNet(**SMALL | options)
    return Denoiser(shake(net, seed), parameterization).eval()

def theirs(config):
    with torch.device('meta'): net = UNet2DModel(**config)
    return shake(net.to_empty(device='cpu'))

def publish(folder, net, **scheduler):
    "A folder as the first ones were published: flat"
    net.save_pretrained(folder)
    DDPMScheduler(**scheduler).save_pretrained(folder)
    index = dict(_class_name='DDPMPipeline', _diffusers_version='0.1.1',
                 scheduler=['diffusers', 'DDPMScheduler'], unet=['diffusers', 'UNet2DModel'])
    (folder/'model_index.json').write_text(json.dumps(index))
    return folder

def images(*shape, seed=0): return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
def gap(a, b): return ((a - b).abs().max() / b.abs().max()).item()
def tree(folder): return sorted(f.relative_to(folder).as_posix() for f in folder.rglob('*'))

def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())

def compare(net, reference, x, times):
    "Our t is theirs plus 1: eq-t-shift"
    with torch.no_grad():
        for t in times:
            assert gap(net(x, torch.full((len(x),), t)), reference(x, t - 1).sample) < 1e-5, t

def edit(file, **values):
    "Other values of some keys of a JSON file, on purpose: without its checksum; ... drops a key"
    values = json.loads(file.read_text()) | dict(checksum=...) | values
    file.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))
