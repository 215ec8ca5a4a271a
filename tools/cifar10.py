"""The CIFAR-10 classifier and network that come with the package, from nothing to their numbers.
Each command may be stopped and given again.

    python tools/cifar10.py classifier        # trains and ships the classifier: half an hour

The images are CIFAR-10, which torchvision downloads once. --root names a folder that has its
files already, or a folder with train/<class>/ and test/<class>/ of image files.
"""
import argparse, time
from datetime import datetime, timezone
from pathlib import Path

import torch

from diffusion_scratch.checkpoint import atomic
from diffusion_scratch.data import DATA, ImageSet, cifar10, fingerprint, image_folder
from diffusion_scratch.features import (EXTRACTORS, ResidualClassifier, load_classifier,
                                        save_classifier, shifted_and_mirrored, train_classifier)
from diffusion_scratch.run import keep_freed_memory

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT/'runs'
SETTINGS = dict(epochs=12, batch=128, lr=5e-3, weight_decay=0.05, bf16=True, seed=0)


def images(root: Path, train: bool=True) -> ImageSet:
    "CIFAR-10, from a folder of image files for each class if `root` has them"
    folder = root/('train' if train else 'test')
    if not folder.is_dir(): return cifar10(root, train)
    cache = RUNS/'object-classifier'/folder.name
    return image_folder(folder, 32, labels=True, cache=cache)

def origin(root: Path) -> str:
    "Where the images come from, in words"
    if (root/'train').is_dir(): return 'CIFAR-10 as JPEG files (lossy: not the published pixels)'
    return "CIFAR-10, the published pixels"

def classifier(a):
    "Train the classifier, measure it on the test images, and put it into the package"
    keep_freed_memory()
    torch.set_num_threads(1)
    data, test = images(a.root), images(a.root, train=False)
    kept, began = RUNS/'object-classifier'/'state.safetensors', time.process_time()
    resumed = kept.exists()
    net, losses = train_classifier(data, network=ResidualClassifier, augment=shifted_and_mirrored,
                                   keep=kept, **SETTINGS)
    seconds = round(time.process_time() - began)
    words = ', '.join(f'{k}={v}' for k, v in SETTINGS.items())
    made = dict(command=f'python tools/cifar10.py classifier, which is train_classifier(data, '
                        f'network=ResidualClassifier, augment=shifted_and_mirrored, {words})',
                seed=SETTINGS['seed'], origin=origin(a.root), data=repr(data),
                data_sha256=fingerprint(data), parameters=sum(p.numel() for p in net.parameters()),
                date=datetime.now(timezone.utc).date().isoformat(), device='cpu', threads=1,
                cpu_s=None if resumed else seconds, torch=torch.__version__,
                losses=[round(v, 4) for v in losses])
    about = dict(name='object-classifier', made=made)
    draft = save_classifier(net, RUNS/'object-classifier'/'draft', about)
    about['test'] = tested(load_classifier(draft), test, a.root)
    folder = save_classifier(net, EXTRACTORS/'object-classifier', about)
    with atomic(folder/'README.md') as part:
        part.write_text(readme(about, load_classifier(folder).hash), encoding='utf-8')
    print(folder, about['test']['accuracy'])

def tested(eye, test: ImageSet, root: Path) -> dict:
    "Accuracy and mean confidence on images that were not used in training, by confidence"
    p = eye(test.images).p
    sure, right = p.max(1).values, (p.argmax(1) == test.labels).double()
    edges, table = (0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1), []
    for low, high in zip(edges, edges[1:]):
        there = (sure >= low) & ((sure < high) | (high == 1))
        table.append({'from': low, 'to': high, 'n': int(there.sum()),
                      'claimed': round(sure[there].mean().item(), 6),
                      'right': round(right[there].mean().item(), 6)})
    return dict(data=f'the {len(test):,} test images of {origin(root)}',
                data_sha256=fingerprint(test), n=len(test), accuracy=right.mean().item(),
                confidence=round(sure.mean().item(), 6), reliability=table)

def readme(about: dict, digest: str) -> str:
    made, test = about['made'], about['test']
    return f"""# object-classifier

A classifier of CIFAR-10. Its last hidden layer, 128 numbers, is what diffusion_scratch compares images of 3 x 32 x 32 by. A Fréchet distance in these features is not FID.

| | |
| --- | --- |
| network | diffusion_scratch.features:ResidualClassifier, {made['parameters']:,} weights in 16 bits |
| made | {made['command']}; {made['date']}, torch {made['torch']}, cpu, 1 thread, {made['cpu_s'] or 'several sittings, not timed'} s of processor time |
| data | the 50,000 training images of {made['origin']}, fingerprint {made['data_sha256'][:12]} |
| right | {test['accuracy']:.2%} of {test['data']}, at a mean confidence of {test['confidence']:.2%} |
| hash | {digest} |

```python
from diffusion_scratch.features import object_classifier
features, probabilities = object_classifier()(images)
```
"""


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = dict(classifier=classifier)
    p.add_argument('command', choices=list(commands))
    p.add_argument('--root', type=Path, default=DATA,
                   help='folder of CIFAR-10 (default: where torchvision puts it)')
    a = p.parse_args()
    commands[a.command](a)


if __name__ == '__main__': main()
