"""What `nbs/live/`, the images drawn in the browser, needs beside its own files.

    python tools/live.py            # nbs/live/built/: networks, tables, the program that runs them
    python tools/live.py animation  # nbs/live/noise_to_*.webp, which stand there without it

A network whose weights do not come with the package is left out, and so is the cell of a page
that names it. A network is exported to ONNX with weights of 16 bits, which is what they were
rounded to when they were saved. An export takes half a minute and is kept in `.cache/`.
onnxruntime-web comes from npm. Without npm, `about.mjs` says that there is no engine, and the
page shows the animation.
"""
import argparse, base64, gzip, hashlib, inspect, json, re, shutil, sys, tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path

from npm import CACHE, moved, npm_files

ROOT = Path(__file__).resolve().parent.parent
LIVE = ROOT/'nbs/live'
PACKAGE = ROOT/'diffusion_scratch'
NOUNS = {'mnist-conditional': 'digit', 'faces': 'face'}  # what a network draws
ENGINE = 'onnxruntime-web', '1.30.0'
ENGINE_FILES = 'ort.wasm.bundle.min.mjs', 'ort-wasm-simd-threaded.wasm'


def networks() -> list[str]:
    "Those whose weights come with the package"
    return [name for name in NOUNS if (PACKAGE/'weights'/name).is_dir()]


def is_left_out(source: str) -> bool:
    "Does a cell hold the component with a network that does not come with the package?"
    named = re.search(r'<diffusion-live\b[^>]* network="([^"]*)"', source)
    return bool(named) and named[1] not in networks()


def made_from(network: str) -> str:
    "A hash of what an exported network depends on"
    files = [*sorted((PACKAGE/'weights'/network).iterdir())]
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


def export(network: str, folder: Path):
    "The network, what the page must know of it, and for digits some real ones"
    import onnx
    from diffusion_scratch.data import mnist_mini
    from diffusion_scratch.export import export_onnx
    from diffusion_scratch.pretrained import about, load
    denoiser, schedule = load(network)
    facts, file = about(network), folder/'network.onnx'
    onnx.save(with_half_weights(onnx.load(export_onnx(denoiser, file, facts['shape']))), file)
    tables = dict(shape=facts['shape'], signal=schedule.signal.tolist(),
                  noise=schedule.noise.tolist())
    (folder/'tables.json').write_text(json.dumps(tables))
    if NOUNS[network] != 'digit': return
    digits = mnist_mini()
    first = [int((digits.labels == k).nonzero()[3]) for k in range(10)]
    real = [base64.b64encode(digits.images[i].numpy().tobytes()).decode() for i in first]
    (folder/'digits.json').write_text(json.dumps(real))


def exported(network: str) -> Path:
    "The folder of `export`, from the cache if nothing has changed"
    folder = CACHE/'live'/f'{network}-{made_from(network)}'
    if folder.exists(): return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as part:
        made = Path(part)/'made'
        made.mkdir()
        export(network, made)
        return moved(made, folder)


def build(built: Path = LIVE/'built') -> bool:
    "Write what the page loads; is there an engine?"
    engine = npm_files(*ENGINE, rf'package/dist/({"|".join(map(re.escape, ENGINE_FILES))})$')
    try: folders = {name: exported(name) for name in networks()} if engine else {}
    except ImportError as e: engine = print(e, file=sys.stderr)
    shutil.rmtree(built, ignore_errors=True)
    built.mkdir(parents=True)
    about = dict(engine=bool(engine))
    if engine:
        program = [shutil.copy2(engine/'dist'/f, built) for f in ENGINE_FILES]
        about['networks'] = {name: about_network(name, folder, program)
                             for name, folder in folders.items()}
        for name, folder in folders.items(): shutil.copytree(folder, built/name)
    else:
        print('npm or its registry is not at hand: the site will show recorded digits, '
              'and draw none in the browser', file=sys.stderr)
    (built/'about.mjs').write_text(f'export const about = {json.dumps(about)}\n')
    return bool(engine)


def about_network(name: str, folder: Path, program: list[Path]) -> dict:
    "What the page knows before it loads a network"
    from diffusion_scratch.pretrained import about
    facts, noun = about(name), NOUNS[name]
    files = [*program, *(f for f in folder.iterdir() if f.name != 'digits.json')]
    size = sum(len(gzip.compress(Path(f).read_bytes(), 6)) for f in files)
    named = dict(attributes=facts['classes']) if isinstance(facts['classes'], dict) else {}
    return dict(noun=noun, shape=facts['shape'], megabytes=round(size / 1e6, 1), **named)


def frames(network: str) -> list:
    "Ten images from noise, in twenty steps"
    import torch
    from diffusion_scratch.data import count_classes
    from diffusion_scratch.denoiser import clipped
    from diffusion_scratch.guidance import guided
    from diffusion_scratch.pretrained import about, load
    from diffusion_scratch.sampling import trajectory
    from diffusion_scratch.solvers import ddim
    facts, (denoiser, schedule) = about(network), load(network)
    sizes, labels = count_classes(facts['classes']), torch.arange(10)
    if isinstance(sizes, tuple):               # of attribute a, image k has value k mod K_a
        labels = labels[:, None] % torch.tensor(sizes)
    denoiser = clipped(guided(denoiser, labels, 0.5))
    return list(trajectory(denoiser, schedule, (10, *facts['shape']), step=ddim(), seed=0,
                           times=schedule.times(20)))


def animation(network: str):
    "Their way from noise, played once"
    from PIL import Image
    sheets, plural = [Image.fromarray(sheet(f.x)) for f in frames(network)], f'{NOUNS[network]}s'
    file, config = LIVE/f'noise_to_{plural}.webp', PACKAGE/'weights'/network/'config.json'
    sheets[0].save(file, save_all=True, append_images=sheets[1:], duration=[400] + [110] * 20,
                   loop=1, quality=30, method=6)
    sheets[-1].save(LIVE/f'{plural}.webp', lossless=True)
    made = dict(command='python tools/live.py animation', date=date.today().isoformat(),
                network=network, sha256=json.loads(config.read_text())['sha256'], seed=0, steps=20,
                guidance=0.5, solver='ddim')
    (LIVE/f'noise_to_{plural}.json').write_text(json.dumps(made, indent=1) + '\n')


def sheet(images):
    "Ten images as bytes, in two rows: (H,W) of gray ones, (H,W,3) of coloured ones"
    from diffusion_scratch.data import to_uint8
    x = to_uint8(images)
    n, channels, height, width = x.shape
    out = x.new_zeros(channels, 2 * height + 2, 5 * width + 8)
    for i, image in enumerate(x):
        top, left = (height + 2) * (i // 5), (width + 2) * (i % 5)
        out[:, top:top + height, left:left + width] = image
    return out.permute(1, 2, 0).squeeze(2).numpy()


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('what', nargs='?', default='build', choices=['build', 'animation'])
    if ap.parse_args().what == 'build': build()
    else:
        for network in networks(): animation(network)


if __name__ == '__main__': main()
