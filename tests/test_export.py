"Weights out: diffusers' pipelines draw our images, and onnxruntime computes our network"
import copy, json, os, subprocess, sys
import onnxruntime, pytest, torch
from diffusers import DDIMPipeline, DDPMPipeline, UNet2DModel
from PIL import Image
from helpers_pretrained import ABOUT, S, gap, images, make, tree
from torch import nn
from diffusion_scratch.checkpoint import json_with_checksum
from diffusion_scratch.config import parse_config
from diffusion_scratch.denoiser import EPS, V, X0, Denoiser, clipped
from diffusion_scratch.export import export_diffusers, export_onnx
from diffusion_scratch.pretrained import about, load
from diffusion_scratch.report import model_hash
from diffusion_scratch.run import train
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

HUB = '''
import base64, contextlib, http.server, io, json, os, sys, threading, time
there, large, tokens, made, public, busy = {}, {}, set(), [], False, False
class Server(http.server.BaseHTTPRequestHandler):
    "As much of the hub as an upload and a download take, for one model"
    def answer(self, content, status=200, **headers):
        blob = content if isinstance(content, bytes) else json.dumps(content).encode()
        headers = {'X-Repo-Commit': 'a' * 40, 'Content-Length': len(blob)} | headers
        self.send_response(status)
        for k, v in headers.items(): self.send_header(k.replace('_', '-'), str(v))
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(blob)
    def body(self): return self.rfile.read(int(self.headers['Content-Length']))
    def do_POST(self):
        body = self.body()
        tokens.add(self.headers['Authorization'])
        if busy: return self.answer(dict(error='broken'), 500)
        if self.path == '/api/repos/create':
            made.append(json.loads(body))
            return self.answer(dict(url=f'{address}/me/net'), 409 if len(made) > 1 else 200)
        if self.path == '/api/validate-yaml': return self.answer(dict(errors=[], warnings=[]))
        if '/preupload/' in self.path:
            names = [f['path'] for f in json.loads(body)['files']]
            mode = lambda n: 'lfs' if n.endswith('.safetensors') else 'regular'
            files = [dict(path=n, uploadMode=mode(n), shouldIgnore=False) for n in names]
            return self.answer(dict(files=files))
        if self.path.endswith('/objects/batch'):
            def upload(o): return dict(upload=dict(href=f'{address}/lfs/{o["oid"]}'))
            objects = [o | dict(actions=upload(o)) for o in json.loads(body)['objects']]
            return self.answer(dict(transfer='basic', objects=objects))
        assert self.path == '/api/models/me/net/commit/main', self.path
        for line in map(json.loads, body.splitlines()):
            v = line['value']
            if line['key'] == 'file': there[v['path']] = base64.b64decode(v['content'])
            if line['key'] == 'lfsFile': there[v['path']] = large[v['oid']]
        commit = f'{address}/me/net/commit/{"a" * 40}'
        self.answer(dict(success=True, commitUrl=commit, commitOid='a' * 40))
    def do_PUT(self):
        large[self.path.rpartition('/')[2]] = self.body()
        self.answer({})
    def do_GET(self):
        name = self.path.rpartition('/')[2]
        answer = dict(id='me/net', sha='a' * 40, private=not public,
                      siblings=[dict(rfilename=f) for f in there])
        if '/tree/' in self.path:
            answer = [dict(type='file', path=f, size=len(b), oid=f) for f, b in there.items()]
        self.answer(there[name] if '/resolve/' in self.path else answer, ETag=name)
    do_HEAD = do_GET
    def log_message(self, *args): pass
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
address = f'http://127.0.0.1:{server.server_port}'
os.environ.update(HF_ENDPOINT=address, HF_HUB_OFFLINE='0', HF_HUB_DISABLE_PROGRESS_BARS='1',
                  HF_HUB_DISABLE_XET='1', HF_TOKEN='hf_secret')
import torch, yaml
from diffusion_scratch.cli import export_command
from diffusion_scratch.export import push_to_hub
from diffusion_scratch.pretrained import about, load
def command(words):
    "What a command prints, and its exit status"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: status = export_command(words.split())
        except SystemExit as e: status = e.code
    return out.getvalue(), err.getvalue(), status
def refused(*says, words='run --to hub me/net'):
    _, said, status = command(words)
    assert status == 2 and all(s in said for s in says), said
    assert 'hf_secret' not in said
out, said, status = command('run --to hub me/net --license mit --private')
assert out == f'{address}/me/net\\n' and not status, (out, said)
assert tokens == {'Bearer hf_secret'}
assert made[0].get('private') or made[0].get('visibility') == 'private'  # older and newer clients
assert sorted(there) == ['README.md', 'config.json', 'model.safetensors', 'samples.png',
                         'schedule.json', 'training.yaml']
_, front, card = there['README.md'].decode().split('---\\n', 2)
assert yaml.safe_load(front)['license'] == 'mit' and "load('me/net')" in card
assert '| precision | 0.75 [0.50, 1.00], real images in their place' in card, card
assert '/secret' not in there['training.yaml'].decode() and b'secret' not in there['config.json']
assert there['samples.png'] == open('run/samples.png', 'rb').read()
(back, betas), (here, same) = load('me/net'), load('run')
assert all(torch.equal(v, here.state_dict()[k]) for k, v in back.state_dict().items())
assert torch.equal(betas.betas, same.betas) and about('me/net')['source'] == 'me/net'
public = True
there.clear()
refused('public; nothing was uploaded', words='run --to hub me/net --private')
assert not there
assert push_to_hub('run', 'me/net', ema=False).endswith('/me/net')  # other weights: measured not
assert b'license:' not in there['README.md'] and b'None is stated' in there['README.md']
assert b'precision' not in there['README.md']
busy = True
refused('me/net cannot be written', '500', 'hf upload me/net FOLDER')
busy = False
for name in ('net', 'me/net/x', 'me/..x y'):
    refused('owner/name', words=f'run --to hub {name.replace(" ", "?")}')
refused('cc-by-4.0', words='run --to hub me/net --license Mine,all')
refused('--license goes with --to hub', words='run --to folder x --license mit')
server.shutdown(); server.server_close()
refused('me/net cannot be written', 'ConnectError', 'hf upload me/net FOLDER')
del os.environ['HF_TOKEN']
refused('no token', 'hf auth login')
sys.modules['huggingface_hub'] = None
refused('pip install huggingface_hub', 'hf upload me/net FOLDER')
'''

def test_the_hub(tmp_path):
    """A run goes up and comes back, from Python and the command line: weights to the bit, the card,
    results of these weights only, no path, no token in a message. A name, licence or visibility
    that cannot be is refused; so is a hub that breaks, none, no token and no client. In a process
    of its own, for the hub's address is read when its client is imported"""
    tiny = ['schedule.name=cosine', 'network={channels: 8, multipliers: [1], attention: []}',
            'training.batch_size=8', 'sampling.steps=2', 'threads=1', 'device=cpu',
            'training.steps=2', f'run={tmp_path}/run', 'data.name=folder', 'data.size=8',
            f'data.root={tmp_path}/secret', 'data.channels=1']
    for i in range(9):
        (tmp_path/'secret').mkdir(exist_ok=True)
        Image.new('L', (8, 8), 25 * i).save(tmp_path/'secret'/f'{i}.png')
    run = train(parse_config({}, tiny), progress=False)
    denoiser, schedule = load(run)
    estimate = dict(value=0.75, low=0.5, high=1., n=8)
    report = dict(protocol=dict(weights=f'run {model_hash(denoiser, schedule)}'),
                  protocol_in_words='8 images', refused={},
                  measures=dict(precision=dict(value=estimate, floor=estimate)))
    (run/'evaluation_seed0').mkdir()
    (run/'evaluation_seed0'/'report.json').write_bytes(json_with_checksum(report))
    env = {k: v for k, v in os.environ.items() if not k.startswith(('HF_', 'HUGGING'))}
    env |= dict(HF_HOME=str(tmp_path/'hub'), HF_HUB_DISABLE_TELEMETRY='1')
    subprocess.run([sys.executable, '-c', HUB], check=True, env=env, cwd=tmp_path)
