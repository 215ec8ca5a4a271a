"""The classifier of faces that comes with the package, from nothing to its numbers: it draws faces,
learns to read their attributes, is measured on faces that it has not seen, and is put into
diffusion_scratch/extractors/face-classifier. It may be stopped and started again.

    pip install 'diffusion_scratch[faces]'
    python tools/face_classifier.py             # six minutes on one core
    python tools/face_classifier.py --measure   # only measure the one in the package

The faces are those of tools/faces.py, with all combinations of attributes: 20,000 of seed 1 to
learn from, 5,000 of seed 2 to test. The faces of chapter 32 have seed 0.
"""
import argparse, sys, time
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch.nn import functional as F

from diffusion_scratch.checkpoint import atomic, json_with_checksum, read_json
from diffusion_scratch.data import ImageSet, count_classes, fingerprint, image_folder
from diffusion_scratch.evaluation import confidence
from diffusion_scratch.features import (EXTRACTORS, Extractor, load_classifier, most_likely,
                                        save_classifier, shifted_and_blurred, train_classifier)
from diffusion_scratch.run import processor_name

import faces

RUNS = Path(__file__).resolve().parent.parent/'runs'/'face-classifier'
FOLDER = EXTRACTORS/'face-classifier'
SETTINGS = dict(epochs=3, batch=128, lr=5e-3, seed=0)
TRAIN, TEST = dict(n=20_000, seed=1), dict(n=5_000, seed=2)
HELD = dict(hat='yes', beard='red')  # what the network of chapter 32 never sees


def images(name: str, n: int, seed: int) -> ImageSet:
    "Faces with their table, drawn if they are not there"
    faces.make(RUNS/name, n, seed)
    return image_folder(RUNS/name, 64, attributes='attributes.csv', cache=RUNS/f'{name}-decoded')

def of_combination(data: ImageSet, combination: dict) -> torch.Tensor: # (N,), True or False
    "Which images have these values"
    columns = list(data.classes)
    return torch.stack([data.labels[:, columns.index(k)] == data.classes[k].index(v)
                        for k, v in combination.items()]).all(0)

def spoiled(images: torch.Tensor) -> dict[str, torch.Tensor]: # name -> bytes, as many
    "Images that are more blurred, and have more noise, than any that the classifier learned from"
    x, g = images.float(), torch.Generator().manual_seed(0)
    ways = {'blurred by 5 x 5 pixels': F.avg_pool2d(x, 5, 1, 2, count_include_pad=False),
            'noise (std 32 of 255)': x + 32 * torch.randn(x.shape, generator=g)}
    return {k: v.clamp(0, 255).round().to(torch.uint8) for k, v in ways.items()}

def tested(eye: Extractor, test: ImageSet) -> dict:
    "Accuracy by attribute, and mean confidence, on images that were not used in training"
    p, sizes = eye(test.images).p, count_classes(test.classes)
    def right(p, labels): return (most_likely(p, sizes) == labels).double()
    def by_name(rows): return dict(zip(test.classes, rows.mean(0).tolist()))
    whole, held = right(p, test.labels), of_combination(test, HELD)
    words, few = ','.join(f'{k}={v}' for k, v in HELD.items()), slice(0, 1000)
    harmed = {k: by_name(right(eye(v).p, test.labels[few]))
              for k, v in spoiled(test.images[few]).items()}
    return dict(data=f"{len(test):,} faces of tools/faces.py, seed {TEST['seed']}",
                data_sha256=fingerprint(test), n=len(test), accuracy=by_name(whole),
                all_right=whole.all(1).double().mean().item(),
                confidence=round(confidence(p, sizes), 6),
                held={'combination': words, 'n': int(held.sum()), 'accuracy': by_name(whole[held])},
                spoiled={'n': len(test.labels[few]), 'accuracy': harmed})

def readme(about: dict, digest: str) -> str:
    made, test = about['made'], about['test']
    cost = f"{made['cpu_s']} s of processor time" if made['cpu_s'] else 'several sittings'
    facts = {'network': f"diffusion_scratch.features:Classifier, {made['parameters']:,} weights "
                        'in 16 bits',
             'made': f"{made['command']}; {made['date']}, torch {made['torch']}, cpu, 1 thread, "
                     f'{cost}',
             'data': f"{made['origin']}, fingerprint {made['data_sha256'][:12]}",
             'right': f"all attributes of {test['all_right']:.2%} of {test['data']}",
             'hash': digest}
    columns = {f"of {test['n']:,} test faces": test['accuracy'],
               f"of those {test['held']['n']} with {test['held']['combination']}":
                   test['held']['accuracy'],
               **{f"of {test['spoiled']['n']:,}, {k}": v
                  for k, v in test['spoiled']['accuracy'].items()}}
    rows = [' | '.join([f'| {a}', *(f'{c[a]:.2%}' for c in columns.values())]) + ' |'
            for a in test['accuracy']]
    return '\n'.join([
        '# face-classifier', '',
        'A classifier of the attributes of cartoon faces. Its last hidden layer, '
        '64 numbers, is what diffusion_scratch compares these faces by. It knows '
        'no photographs. A Fréchet distance in these features is not FID.', '',
        '| | |', '| --- | --- |', *(f'| {k} | {v} |' for k, v in facts.items()), '',
        ' | '.join(['| right', *columns]) + ' |', '| --- ' * (1 + len(columns)) + '|', *rows, '',
        '```python', 'from diffusion_scratch.features import face_classifier',
        'features, probabilities = face_classifier()(images)', '```', ''])

def train(data: ImageSet):
    "The classifier, into the package, with the facts of its training"
    kept, began = RUNS/'state.safetensors', time.process_time()
    resumed = kept.exists()
    net, losses = train_classifier(data, augment=shifted_and_blurred, keep=kept, **SETTINGS)
    seconds = round(time.process_time() - began)
    words = ', '.join(f'{k}={v}' for k, v in SETTINGS.items())
    made = dict(command='python tools/face_classifier.py, which is train_classifier(data, '
                        f'augment=shifted_and_blurred, {words})',
                seed=SETTINGS['seed'], data=repr(data), data_sha256=fingerprint(data),
                origin=f"{len(data):,} faces of tools/faces.py, seed {TRAIN['seed']}, all "
                       'combinations of attributes',
                parameters=sum(p.numel() for p in net.parameters()),
                date=datetime.now(timezone.utc).date().isoformat(), device='cpu', threads=1,
                cpu=processor_name(), cpu_s=None if resumed else seconds, torch=torch.__version__,
                losses=[round(v, 4) for v in losses])
    save_classifier(net, FOLDER, dict(name=FOLDER.name, made=made))

def measure(test: ImageSet):
    "How well the classifier in the package reads; its facts and README.md are written again"
    eye, facts = load_classifier(FOLDER), read_json(FOLDER/'config.json')
    facts['about']['test'] = tested(eye, test)
    with atomic(FOLDER/'config.json') as part: part.write_bytes(json_with_checksum(facts))
    text = readme(facts['about'], eye.hash)
    with atomic(FOLDER/'README.md') as part: part.write_text(text, encoding='utf-8')
    print(text)

def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--measure', action='store_true',
                   help='only measure the classifier that is in the package')
    a = p.parse_args()
    torch.set_num_threads(1)  # as many as `made` says
    try:
        if not a.measure: train(images('train', **TRAIN))
        measure(images('test', **TEST))
    except (ValueError, ImportError, OSError) as e: sys.exit(f'{p.prog}: {e}')
    except KeyboardInterrupt: sys.exit('\nstopped; the same command goes on')


if __name__ == '__main__': main()
