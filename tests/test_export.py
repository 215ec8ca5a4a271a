"Weights out: diffusers' pipelines draw our images, and onnxruntime computes our network"
import copy, json, os, sys

import onnxruntime
import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, UNet2DModel
from diffusers.schedulers import scheduling_ddpm
from helpers_pretrained import ABOUT, CIFAR, S, gap, images, make, publish, same, theirs, tree
from torch import nn

from diffusion_scratch.denoiser import EPS, V, X0, Denoiser, clipped
from diffusion_scratch.export import export_diffusers, export_onnx
from diffusion_scratch.noising import q_posterior
from diffusion_scratch.pretrained import about, load
from diffusion_scratch.sampling import Noise, ancestral, fixed_large, fixed_small, trajectory
from diffusion_scratch.schedule import Schedule, cosine_betas, linear_betas, zero_terminal_snr
from diffusion_scratch.solvers import ddim

# ---- diffusers' pipelines draw our images

def test_the_published_network_comes_out_as_it_came_in(tmp_path):  # eq-pointwise
    reference = theirs(CIFAR)
    folder = publish(tmp_path/'in', reference, variance_type='fixed_large')
    export_diffusers(*load(folder), tmp_path/'out', about(folder))
    assert same(UNet2DModel.from_pretrained(tmp_path/'out'/'unet'), reference)

LINEAR, ZERO = Schedule(linear_betas(20, 0.01, 0.3)), Schedule(zero_terminal_snr(cosine_betas(20)))
SMALL_CLIPPED = ABOUT | dict(sampling=dict(variance='fixed_small', clip=True))

@pytest.mark.parametrize('parameterization, schedule, variance, steps', [
    (V, S, 'fixed_small', 20), (EPS, LINEAR, 'fixed_large', 20), (X0, S, 'fixed_small', 7),
    (V, ZERO, 'fixed_large', 5)])
def test_ddpm_pipeline_walks_our_trajectory(tmp_path, monkeypatch, parameterization, schedule,
                                            variance, steps):
    """The same first noise and the same draws, every frame. Differences are those of float32
    coefficients, which grow from step to step: 1e-3 on images of size 1"""
    denoiser, shape = make(parameterization, num_classes=3), (3, 1, 8, 8)
    facts = ABOUT | dict(sampling=dict(variance=variance, clip=True))
    export_diffusers(denoiser, schedule, tmp_path/'out', facts, y=1)
    pipeline = DDPMPipeline.from_pretrained(tmp_path/'out')
    pipeline.scheduler.set_timesteps(steps)
    times = [int(t) + 1 for t in pipeline.scheduler.timesteps] + [0]
    if variance == 'fixed_small': assert times == schedule.times(steps)
    noise = Noise(5, 3)
    x = noise.draw(shape[1:])
    monkeypatch.setattr(scheduling_ddpm, 'randn_tensor', lambda *_, **__: noise.draw(shape[1:]))
    step = ancestral(dict(fixed_small=fixed_small, fixed_large=fixed_large)[variance])
    frames = trajectory(clipped(denoiser), schedule, shape, step=step, times=times,
                        y=torch.ones(3, dtype=torch.long), seed=5,
                        x_T=x if times[0] < schedule.T else None)
    with torch.no_grad():
        for t, frame in zip(pipeline.scheduler.timesteps, frames):
            assert (x - frame.x).abs().max() < 1e-3, frame.t
            x = pipeline.scheduler.step(pipeline.unet(x, t).sample, t, x).prev_sample
    assert (x - next(frames).x).abs().max() < 1e-3

def drawn_by(pipeline, *args, **options):
    "Images as diffusers returns them, (B,H,W) in [0, 1]"
    return torch.from_numpy(pipeline(*args, output_type='np', **options).images[..., 0])

def test_ddpm_pipeline_as_it_is_called(tmp_path):
    "Against Algorithm 2 by hand, with the noise of a torch.Generator"
    denoiser, g = make(EPS), torch.Generator().manual_seed(1)
    pipeline = DDPMPipeline.from_pretrained(export_diffusers(denoiser, S, tmp_path/'out',
                                                             SMALL_CLIPPED))
    made = drawn_by(pipeline, 2, torch.Generator().manual_seed(1), 20)
    x = torch.randn(2, 1, 8, 8, generator=g)
    for t in range(20, 0, -1):
        now, then = S.at(t, x), S.at(t - 1, x)
        with torch.no_grad(): x0 = clipped(denoiser)(x, now).x0
        z = torch.randn(x.shape, generator=g) if t > 1 else torch.zeros_like(x)
        x = q_posterior(x0, x, now, then).sample(z)
    assert (made - (x[:, 0] / 2 + 0.5).clamp(0, 1)).abs().max() < 1e-3

@pytest.mark.parametrize('parameterization', [V, EPS])
def test_ddim_pipeline_walks_our_trajectory(tmp_path, parameterization):
    denoiser, seed = make(parameterization), lambda: torch.Generator().manual_seed(2)
    pipeline = DDIMPipeline.from_pretrained(export_diffusers(denoiser, S, tmp_path/'out',
                                                             SMALL_CLIPPED))
    made = drawn_by(pipeline, 3, seed(), eta=0., num_inference_steps=10,
                    use_clipped_model_output=True)
    x_T = torch.randn(3, 1, 8, 8, generator=seed())
    *_, last = trajectory(clipped(denoiser), S, x_T.shape, step=ddim(0.), times=S.times(10),
                          x_T=x_T, seed=0)
    assert (made - (last.x[:, 0] / 2 + 0.5).clamp(0, 1)).abs().max() < 1e-3

@pytest.mark.parametrize('y', [None, -1, 0, 2])
def test_a_label_becomes_a_bias(tmp_path, y):  # eq-fold
    denoiser = make(num_classes=3)
    export_diffusers(denoiser, S, tmp_path/'out', ABOUT, y=y)
    x, t = images(4, 1, 8, 8), torch.tensor([1, 5, 10, 20])
    want = denoiser.net(x, t, None if y is None else torch.full((4,), y))
    net = UNet2DModel.from_pretrained(tmp_path/'out'/'unet').eval()
    assert gap(net(x, t - 1).sample, want) < 1e-5
    back, schedule = load(tmp_path/'out')
    assert gap(back.net(x, t), want) < 1e-5 and back.net.num_classes == 0
    assert torch.equal(schedule.betas, S.betas) and back.parameterization is V
    told = about(tmp_path/'out')['sampling']
    assert (told['variance'], told['clip']) == ('fixed_large', False)

@pytest.mark.parametrize('options, keywords, says', [
    (dict(unshuffle=2), {}, 'unshuffle 2(.|\n)*export_onnx'),
    (dict(multipliers=(2, 2)), {}, 'begin with 1(.|\n)*export_onnx'),
    (dict(), dict(about=None), 'shape'),
    (dict(), dict(about=dict(shape=(1, 9, 8))), 'multiples of 2(.|\n)*export_onnx'),
    (dict(), dict(y=0), 'y: 0 is not allowed; allowed: none'),
    (dict(num_classes=3), dict(y=3), r'y: 3 is not allowed; allowed: 0\.\.2')])
def test_what_diffusers_cannot_express_is_refused(tmp_path, options, keywords, says):
    with pytest.raises(ValueError, match=says):
        export_diffusers(make(**options), S, tmp_path/'out', **{'about': ABOUT, **keywords})
    assert tree(tmp_path) == []

def test_own_networks_are_not_for_diffusers(tmp_path):
    with pytest.raises(ValueError, match='Conv2d(.|\n)*export_onnx'):
        export_diffusers(Denoiser(nn.Conv2d(1, 1, 1)), S, tmp_path/'out', ABOUT)

# ---- ONNX

@pytest.fixture(scope='module')
def onnx_file(tmp_path_factory):
    denoiser = make(num_classes=3, unshuffle=2, attention=()).train()
    file = tmp_path_factory.mktemp('onnx')/'net.onnx'
    return denoiser, export_onnx(denoiser, file, (1, 12, 8), schedule=S)

@pytest.mark.parametrize('B, H, W', [(1, 12, 8), (3, 8, 8), (2, 9, 13), (5, 17, 4)])
def test_onnxruntime_says_the_same(onnx_file, B, H, W):
    "At sizes and batches that it was not exported at, odd ones too, with labels and without"
    denoiser, file = onnx_file
    session = onnxruntime.InferenceSession(file)
    x, t, y = images(B, 1, H, W), torch.arange(1, B + 1) * 4, torch.arange(B) % 4 - 1
    [out] = session.run(None, dict(x=x.numpy(), t=t.numpy(), y=y.numpy()))
    assert denoiser.training
    with torch.no_grad():
        assert gap(torch.from_numpy(out), copy.deepcopy(denoiser.net).eval()(x, t, y)) < 1e-5
    kinds = {i.name: i.type for i in session.get_inputs()}
    assert kinds == dict(x='tensor(float)', t='tensor(int64)', y='tensor(int64)')
    notes = session.get_modelmeta().custom_metadata_map
    assert notes['parameterization'] == 'v' and json.loads(notes['betas']) == S.betas.tolist()
    assert os.listdir(file.parent) == ['net.onnx']

class Points(nn.Module):
    "A network of your own, of points in the plane, that takes labels"
    def __init__(self):
        super().__init__()
        self.layer, self.label = nn.Linear(3, 2), nn.Embedding(4, 2)
    def forward(self, x, t, y):
        return self.layer(torch.cat([x, t[:, None] / 20], 1)) + self.label(y + 1)

class Stubborn(nn.Module):
    "A network that decides by what it sees, which no list of multiplications can"
    def forward(self, x, t): return 2 * x if x.mean() > 0 else x

def test_own_networks_as_onnx(tmp_path, monkeypatch):
    net = Points()
    file = export_onnx(Denoiser(net), tmp_path/'net.onnx', (2,), labels=True)
    x, t, y = images(4, 2), torch.arange(1, 5), torch.arange(4) - 1
    session = onnxruntime.InferenceSession(file)
    [out] = session.run(None, dict(x=x.numpy(), t=t.numpy(), y=y.numpy()))
    assert gap(torch.from_numpy(out), net(x, t, y).detach()) < 1e-5
    before = file.read_bytes()
    with pytest.raises(ValueError, match='Stubborn cannot be exported'):
        export_onnx(Denoiser(Stubborn()), file, (1, 8, 8))
    def failing(a, b): raise OSError('no rename today')
    monkeypatch.setattr(os, 'replace', failing)
    with pytest.raises(OSError, match='no rename today(.|\n)*untouched'):
        export_onnx(Denoiser(Points()), file, (2,), labels=True)
    monkeypatch.undo()
    assert file.read_bytes() == before and os.listdir(tmp_path) == ['net.onnx']

def test_onnx_refuses(tmp_path, monkeypatch):
    for name in ('net.bin', 'net'):
        with pytest.raises(ValueError, match='ends in .onnx'):
            export_onnx(make(), tmp_path/name, (1, 8, 8))
    with pytest.raises(TypeError, match='Denoiser itself'):
        export_onnx(clipped(make()), tmp_path/'net.onnx', (1, 8, 8))
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(ImportError, match='pip install onnx onnxscript'):
        export_onnx(make(), tmp_path/'net.onnx', (1, 8, 8))
