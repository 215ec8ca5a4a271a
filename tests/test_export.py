"Weights out: diffusers' pipelines draw our images, and onnxruntime computes our network"
import copy, json, os, sys
import onnxruntime, pytest, torch
from diffusers import DDIMPipeline, DDPMPipeline, UNet2DModel
from helpers_pretrained import ABOUT, S, gap, images, make, tree
from torch import nn
from diffusion_scratch.denoiser import EPS, V, X0, Denoiser, clipped
from diffusion_scratch.export import export_diffusers, export_onnx
from diffusion_scratch.pretrained import about, load
from diffusion_scratch.sampling import Noise, ancestral, fixed_large, fixed_small, trajectory
from diffusion_scratch.schedule import Schedule, cosine_betas, linear_betas, zero_terminal_snr
from diffusion_scratch.solvers import ddim

LINEAR, ZERO = Schedule(linear_betas(20, 0.01, 0.3)), Schedule(zero_terminal_snr(cosine_betas(20)))

@pytest.mark.parametrize('step, parameterization, schedule, steps', [
    (ancestral(fixed_small), V, S, 20), (ancestral(fixed_small), EPS, S, 20),
    (ancestral(fixed_large), EPS, LINEAR, 20), (ancestral(fixed_small), X0, S, 7),
    (ancestral(fixed_large), V, ZERO, 5), (ddim(0.), V, S, 10), (ddim(0.), EPS, S, 10)], ids=repr)
def test_pipelines_walk_our_trajectory(tmp_path, step, parameterization, schedule, steps):
    "From the same noise, every frame: float32 coefficients differ, 1e-3 on images of size 1"
    denoiser, noise = make(parameterization, num_classes=3), Noise(5, 3)
    variance = getattr(step, 'variance', fixed_small).__name__
    kind, options, per_step = DDPMPipeline, {}, dict(generator=noise.streams)
    if isinstance(step, ddim):
        kind, options = DDIMPipeline, dict(eta=0., use_clipped_model_output=True)
        per_step = options
    facts = ABOUT | dict(sampling=dict(variance=variance, clip=True))
    export_diffusers(denoiser, schedule, tmp_path/'out', facts, y=1)
    pipeline = kind.from_pretrained(tmp_path/'out')
    pipeline.scheduler.set_timesteps(steps)
    times = [int(t) + 1 for t in pipeline.scheduler.timesteps] + [0]
    if variance == 'fixed_small': assert times == schedule.times(steps)
    x = noise.draw((1, 8, 8))
    frames = trajectory(clipped(denoiser), schedule, x.shape, step=step, times=times, seed=5,
                        y=torch.ones(3, dtype=torch.long), x_T=x if times[0] < schedule.T else None)
    with torch.no_grad():
        for t, frame in zip(pipeline.scheduler.timesteps, frames):
            assert (x - frame.x).abs().max() < 1e-3, frame.t
            x = pipeline.scheduler.step(pipeline.unet(x, t).sample, t, x, **per_step).prev_sample
    last = next(frames).x
    drawn = pipeline(3, Noise(5, 3).streams, num_inference_steps=steps, output_type='np', **options)
    assert (x - last).abs().max() < 1e-3
    drawn = torch.from_numpy(drawn.images).movedim(3, 1)
    assert (drawn - (last / 2 + 0.5).clamp(0, 1)).abs().max() < 1e-3

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

@pytest.mark.parametrize('denoiser, keywords, says', [
    (make(unshuffle=2), {}, 'unshuffle 2(.|\n)*export_onnx'), (make(), dict(about=None), 'shape'),
    (make(multipliers=(2, 2)), {}, 'begin with 1(.|\n)*export_onnx'),
    (make(), dict(about=dict(shape=(1, 9, 8))), 'multiples of 2(.|\n)*export_onnx'),
    (make(), dict(y=0), 'y: 0 is not allowed; allowed: none'),
    (make(num_classes=3), dict(y=3), r'y: 3 is not allowed; allowed: 0\.\.2'),
    (Denoiser(nn.Conv2d(1, 1, 1)), {}, 'Conv2d(.|\n)*export_onnx')])
def test_what_diffusers_cannot_express_is_refused(tmp_path, denoiser, keywords, says):
    with pytest.raises(ValueError, match=says):
        export_diffusers(denoiser, S, tmp_path/'out', **{'about': ABOUT, **keywords})
    assert tree(tmp_path) == []

@pytest.fixture(scope='module')
def onnx_file(tmp_path_factory):
    denoiser = make(num_classes=3, unshuffle=2, attention=()).train()
    file = tmp_path_factory.mktemp('onnx')/'net.onnx'
    return denoiser, export_onnx(denoiser, file, (1, 12, 8), schedule=S)

def computed(file, **inputs):
    "What onnxruntime makes of tensors, and its session"
    session = onnxruntime.InferenceSession(file)
    [out] = session.run(None, {k: v.numpy() for k, v in inputs.items()})
    return torch.from_numpy(out), session

@pytest.mark.parametrize('B, H, W', [(1, 12, 8), (3, 8, 8), (2, 9, 13), (5, 17, 4)])
def test_onnxruntime_says_the_same(onnx_file, B, H, W):
    "At sizes and batches that it was not exported at, odd ones too, with labels and without"
    denoiser, file = onnx_file
    x, t, y = images(B, 1, H, W), torch.arange(1, B + 1) * 4, torch.arange(B) % 4 - 1
    out, session = computed(file, x=x, t=t, y=y)
    assert denoiser.training
    with torch.no_grad(): assert gap(out, copy.deepcopy(denoiser.net).eval()(x, t, y)) < 1e-5
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
    net, x, t, y = Points(), images(4, 2), torch.arange(1, 5), torch.arange(4) - 1
    file = export_onnx(Denoiser(net), tmp_path/'net.onnx', (2,), labels=True)
    assert gap(computed(file, x=x, t=t, y=y)[0], net(x, t, y).detach()) < 1e-5
    before = file.read_bytes()
    with pytest.raises(ValueError, match='Stubborn cannot be exported'):
        export_onnx(Denoiser(Stubborn()), file, (1, 8, 8))
    def failing(a, b): raise OSError('no rename today')
    monkeypatch.setattr(os, 'replace', failing)
    with pytest.raises(OSError, match='no rename today(.|\n)*untouched'):
        export_onnx(Denoiser(Points()), file, (2,), labels=True)
    assert file.read_bytes() == before and os.listdir(tmp_path) == ['net.onnx']

def test_onnx_refuses(tmp_path, monkeypatch):
    (tmp_path/'folder.onnx').mkdir()
    def refused(error, says, name='net.onnx', denoiser=make()):
        with pytest.raises(error, match=says): export_onnx(denoiser, tmp_path/name, (1, 8, 8))
    for name in ('net.bin', 'net'): refused(ValueError, 'ends in .onnx', name)
    refused(ValueError, 'folder.onnx', 'folder.onnx')
    refused(TypeError, 'Denoiser itself', denoiser=clipped(make()))
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    refused(ImportError, 'pip install onnx onnxscript')
    assert tree(tmp_path) == ['folder.onnx']
