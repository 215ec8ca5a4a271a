"""What `nbs/live/`, the digits drawn in the browser, needs beside its own files.

    python tools/live.py            # nbs/live/built/: network, tables, the program that runs it
    python tools/live.py animation  # nbs/live/noise_to_digits.webp, which stands there without it

The network is exported to ONNX with weights of 16 bits, which is what they were rounded to when
they were saved. The export takes half a minute and is kept in `.cache/`. onnxruntime-web comes
from npm. Without npm, `about.mjs` says that there is no engine, and the page shows the animation.
"""
import argparse, base64, gzip, hashlib, inspect, json, re, shutil, sys, tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path

from npm import CACHE, moved, npm_files

ROOT = Path(__file__).resolve().parent.parent
LIVE = ROOT/'nbs/live'
NETWORK, PACKAGE = 'mnist-conditional', ROOT/'diffusion_scratch'
ENGINE = 'onnxruntime-web', '1.30.0'
ENGINE_FILES = 'ort.wasm.bundle.min.mjs', 'ort-wasm-simd-threaded.wasm'


def made_from() -> str:
    "A hash of what the exported network depends on"
    files = [*sorted((PACKAGE/'weights'/NETWORK).iterdir())]
    files += [PACKAGE/f'{name}.py' for name in ('export', 'unet', 'schedule')]
    versions = [version(p) for p in ('torch', 'onnx', 'onnxscript')]
    code = [inspect.getsource(f) for f in (with_half_weights, export)]
    digest = hashlib.sha256(repr([versions, code]).encode())
    for f in files: digest.update(f.read_bytes())
    return digest.hexdigest()[:16]


def with_half_weights(model):
    "An ONNX model whose large weights are stored with 16 bits, without notes on how it was traced"
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper
    graph = model.graph
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ''
    del graph.value_info[:], graph.metadata_props[:]
    casts = []
    for weight in graph.initializer:
        if weight.data_type != TensorProto.FLOAT: continue
        values, name = numpy_helper.to_array(weight), weight.name
        half = values.astype(np.float16)
        if values.size < 64 or not (half.astype(np.float32) == values).all(): continue
        weight.CopyFrom(numpy_helper.from_array(half, f'{name}_half'))
        casts.append(helper.make_node('Cast', [weight.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def export(folder: Path):
    "The network, its schedule and some real digits"
    import onnx
    from diffusion_scratch.data import mnist_mini
    from diffusion_scratch.export import export_onnx
    from diffusion_scratch.pretrained import about, load
    denoiser, schedule = load(NETWORK)
    shape, file = about(NETWORK)['shape'], folder/'network.onnx'
    onnx.save(with_half_weights(onnx.load(export_onnx(denoiser, file, shape))), file)
    tables = dict(shape=shape, signal=schedule.signal.tolist(), noise=schedule.noise.tolist())
    digits = mnist_mini()
    first = [int((digits.labels == k).nonzero()[3]) for k in range(10)]
    real = [base64.b64encode(digits.images[i].numpy().tobytes()).decode() for i in first]
    (folder/'tables.json').write_text(json.dumps(tables))
    (folder/'digits.json').write_text(json.dumps(real))


def exported() -> Path:
    "The folder of `export`, from the cache if nothing has changed"
    folder = CACHE/'live'/made_from()
    if folder.exists(): return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as part:
        made = Path(part)/'made'
        made.mkdir()
        export(made)
        return moved(made, folder)


def build(built: Path = LIVE/'built') -> bool:
    "Write what the page loads; is there an engine?"
    engine = npm_files(*ENGINE, rf'package/dist/({"|".join(map(re.escape, ENGINE_FILES))})$')
    try: network = exported() if engine else None
    except ImportError as e: engine = network = print(e, file=sys.stderr)
    shutil.rmtree(built, ignore_errors=True)
    built.mkdir(parents=True)
    about = dict(engine=bool(engine))
    if engine:
        files = [*(engine/'dist'/f for f in ENGINE_FILES), *network.iterdir()]
        for f in files: shutil.copy2(f, built)
        size = sum(len(gzip.compress(f.read_bytes(), 6)) for f in files)
        about['megabytes'] = round(size / 1e6, 1)
    else:
        print('npm or its registry is not at hand: the site will show recorded digits, '
              'and draw none in the browser', file=sys.stderr)
    (built/'about.mjs').write_text(f'export const about = {json.dumps(about)}\n')
    return bool(engine)


def frames() -> list:
    "The ten digits from noise, in twenty steps"
    import torch
    from diffusion_scratch.denoiser import clipped
    from diffusion_scratch.guidance import guided
    from diffusion_scratch.pretrained import load
    from diffusion_scratch.sampling import trajectory
    from diffusion_scratch.solvers import ddim
    denoiser, schedule = load(NETWORK)
    denoiser = clipped(guided(denoiser, torch.arange(10), 0.5))
    return list(trajectory(denoiser, schedule, (10, 1, 28, 28), step=ddim(), seed=0,
                           times=schedule.times(20)))


def animation():
    "Their way from noise, played once"
    from PIL import Image
    sheets = [Image.fromarray(sheet(f.x)) for f in frames()]
    file, config = LIVE/'noise_to_digits.webp', PACKAGE/'weights'/NETWORK/'config.json'
    sheets[0].save(file, save_all=True, append_images=sheets[1:], duration=[400] + [110] * 20,
                   loop=1, quality=30, method=6)
    sheets[-1].save(LIVE/'digits.webp', lossless=True)
    made = dict(command='python tools/live.py animation', date=date.today().isoformat(),
                network=NETWORK, sha256=json.loads(config.read_text())['sha256'], seed=0, steps=20,
                guidance=0.5, solver='ddim')
    (LIVE/'noise_to_digits.json').write_text(json.dumps(made, indent=1) + '\n')


def sheet(images):
    "Ten images as bytes, in two rows"
    from diffusion_scratch.data import to_uint8
    x = to_uint8(images)[:, 0]
    out = x.new_zeros(2 * 28 + 2, 5 * 28 + 8)
    for i, image in enumerate(x):
        top, left = 30 * (i // 5), 30 * (i % 5)
        out[top:top + 28, left:left + 28] = image
    return out.numpy()


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('what', nargs='?', default='build', choices=['build', 'animation'])
    if ap.parse_args().what == 'animation': animation()
    else: build()


if __name__ == '__main__': main()
