"""The classifier of faces that comes with the package, from nothing to its numbers: it draws faces,
learns to read their attributes, is measured on faces that it has not seen, and is put into
diffusion_scratch/extractors/face-classifier. It may be stopped and started again.

    pip install 'diffusion_scratch[faces]'
    python tools/face_classifier.py     # ten minutes on one core

The faces are those of tools/faces.py, with all combinations of attributes: 20,000 of seed 1 to
learn from, 5,000 of seed 2 to test. The faces of chapter 32 have seed 0.
"""
import argparse, sys, time
from datetime import datetime, timezone
from pathlib import Path

import torch

from diffusion_scratch.checkpoint import atomic
from diffusion_scratch.data import ImageSet, count_classes, fingerprint, image_folder
from diffusion_scratch.features import (EXTRACTORS, Extractor, by_attribute, load_classifier,
                                        most_likely, save_classifier, shifted_and_blurred,
                                        train_classifier)
from diffusion_scratch.run import processor_name

import faces

RUNS = Path(__file__).resolve().parent.parent/'runs'/'face-classifier'
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

def tested(eye: Extractor, test: ImageSet) -> dict:
    "Accuracy by attribute, and mean confidence, on images that were not used in training"
    p, sizes = eye(test.images).p, count_classes(test.classes)
    right, held = (most_likely(p, sizes) == test.labels).double(), of_combination(test, HELD)
    sure = torch.stack([q.max(1).values for q in by_attribute(p, sizes)]).mean()
    def by_name(rows): return dict(zip(test.classes, rows.mean(0).tolist()))
    words = ','.join(f'{k}={v}' for k, v in HELD.items())
    return dict(data=f"{len(test):,} faces of tools/faces.py, seed {TEST['seed']}",
                data_sha256=fingerprint(test), n=len(test), accuracy=by_name(right),
                all_right=right.all(1).double().mean().item(), confidence=round(sure.item(), 6),
                held={'combination': words, 'n': int(held.sum()), 'accuracy': by_name(right[held])})

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
    rows = [f"| {k} | {v:.2%} | {test['held']['accuracy'][k]:.2%} |"
            for k, v in test['accuracy'].items()]
    return '\n'.join([
        '# face-classifier', '',
        'A classifier of the attributes of cartoon faces. Its last hidden layer, '
        '64 numbers, is what diffusion_scratch compares these faces by. It knows '
        'no photographs. A Fréchet distance in these features is not FID.', '',
        '| | |', '| --- | --- |', *(f'| {k} | {v} |' for k, v in facts.items()), '',
        f"| right | of {test['n']:,} test faces | of those {test['held']['n']} with "
        f"{test['held']['combination']} |", '| --- | --- | --- |', *rows, '',
        '```python', 'from diffusion_scratch.features import face_classifier',
        'features, probabilities = face_classifier()(images)', '```', ''])

def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.parse_args()
    torch.set_num_threads(1)
    try: data, test = images('train', **TRAIN), images('test', **TEST)
    except (ValueError, ImportError, OSError) as e: sys.exit(f'{p.prog}: {e}')
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
    about = dict(name='face-classifier', made=made)
    about['test'] = tested(load_classifier(save_classifier(net, RUNS/'draft', about)), test)
    folder = save_classifier(net, EXTRACTORS/'face-classifier', about)
    with atomic(folder/'README.md') as part:
        part.write_text(readme(about, load_classifier(folder).hash), encoding='utf-8')
    for k, v in about['test']['accuracy'].items():
        print(f"{k:10} {v:.2%}, with {about['test']['held']['combination']} "
              f"{about['test']['held']['accuracy'][k]:.2%}")
    print(f"all right {about['test']['all_right']:.2%}, confidence "
          f"{about['test']['confidence']:.2%}; {folder}")


if __name__ == '__main__': main()
