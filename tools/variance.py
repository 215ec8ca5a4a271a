"""What the variance of an ancestral step changes: the bits of held-out digits (chapter 6) and the
Fréchet distance of few-step samples (chapter 7), with the network `mnist` that comes with the
package.

    python tools/variance.py bits     # into nbs/assets/loss/variance.json: some minutes
    python tools/variance.py samples  # into nbs/assets/sampling/variance.json: some minutes

The real digits are MNIST's, which torchvision downloads once; --root names a folder that has them
already. Without a word, both are made. With one thread the numbers are those of the book, up to
the last digits of another processor.
"""
import argparse, json, math
from datetime import date
from pathlib import Path

import torch
from tqdm import tqdm

from diffusion_scratch.checkpoint import atomic
from diffusion_scratch.data import DATA, mnist, mnist_mini, to_uint8
from diffusion_scratch.denoiser import clipped
from diffusion_scratch.evaluation import frechet_distance, interval
from diffusion_scratch.features import digit_classifier
from diffusion_scratch.likelihood import bound
from diffusion_scratch.loss import optimal, vlb_terms, x0_variance
from diffusion_scratch.pretrained import SHIPPED, load
from diffusion_scratch.sampling import ancestral, fixed_large, fixed_small, sample

ASSETS = Path(__file__).resolve().parent.parent/'nbs'/'assets'
HELD_OUT, IMAGES, BATCH = 200, 500, 50

def seeded(seed: int) -> torch.Generator: return torch.Generator().manual_seed(seed)

def network():
    net, schedule = load('mnist')
    return clipped(net.to(memory_format=torch.channels_last)), schedule

def variances(net, schedule, digits, times=None) -> dict:
    "The three variances by name; the table of the optimal one comes from training digits"
    table = x0_variance(net, schedule, digits, times=times, generator=seeded(1))
    return dict(fixed_small=fixed_small, fixed_large=fixed_large, optimal=optimal(table))

def of_few_steps(net, schedule, posterior, times, x0) -> tuple[torch.Tensor, float]:
    "The bits of each image when all steps are computed, and the mean of L_0"
    g = seeded(2)
    terms = torch.cat([vlb_terms(net, schedule, x, posterior=posterior, times=times, generator=g)
                       for x in x0.split(BATCH)], 1).double()
    return terms.sum(0), terms[0].mean().item()

def of_all_steps(net, schedule, posterior, x0) -> tuple[torch.Tensor, float]:
    "The bits of each image, estimated from 20 steps of each, and the mean of L_0"
    b = bound(net, schedule, x0, posterior=posterior, draws=20, seed=0, batch_size=BATCH,
              progress=False)
    return b.each.double(), b.L_0

def mean(x: torch.Tensor) -> dict:
    return dict(mean=round(x.mean().item(), 5),
                error=round((x.std() / math.sqrt(len(x))).item(), 5))

def bits(root: Path, numbers=(10, 50, 1000)) -> dict:
    "Bits per dimension of held-out digits with each variance, in 10, 50 and all steps"
    (net, schedule), digits = network(), mnist_mini()[:][0]
    test, rows = mnist(root, train=False, download=root == DATA), {}
    x0, _ = test[torch.randperm(len(test), generator=seeded(0))[:HELD_OUT]]
    for n in tqdm(numbers, desc='bits', unit='row'):
        few = n < schedule.T
        times = schedule.times(n) if few else None
        each, row = {}, {}
        chosen = digits[::50] if few else digits[::250]
        for name, v in variances(net, schedule, chosen, times).items():
            each[name], L_0 = (of_few_steps(net, schedule, v, times, x0) if few else
                               of_all_steps(net, schedule, v, x0))
            row[name] = mean(each[name])
        row |= dict(gain=mean(each['fixed_small'] - each['optimal']), L_0=round(L_0, 5))
        rows[str(n)] = row
    return dict(bits=rows, made=made('bits', images=f'{HELD_OUT} of the test set of MNIST',
                                     seeds=[0, 1, 2]))

def samples(root: Path, numbers=(5, 10, 20, 50)) -> dict:
    "Fréchet distance [95 %] of few-step samples with each variance, against mnist_mini"
    (net, schedule), data, see = network(), mnist_mini(), digit_classifier()
    real, digits, rows = see(data.images, progress=False), data[:][0], []
    for n in tqdm(numbers, desc='samples', unit='row'):
        times = schedule.times(n)
        for name, v in variances(net, schedule, digits[::50], times).items():
            images = torch.cat([
                to_uint8(sample(net, schedule, (BATCH, *data.shape), step=ancestral(v),
                                times=times, seed=0, first=first, progress=False))
                for first in range(0, IMAGES, BATCH)])
            d = interval(frechet_distance, real.x, see(images, progress=False).x)
            rows.append(dict(variance=name, steps=n,
                             distance=[round(v, 4) for v in (d.value, d.low, d.high)]))
    return dict(rows=rows, made=made('samples', images_per_row=IMAGES, seed=0,
                                     features=f'{see.name} {see.hash}'))

def made(what: str, **facts) -> dict:
    weights = json.loads((SHIPPED/'mnist'/'config.json').read_text())['sha256'][:12]
    return dict(command=f'python tools/variance.py {what}', network=f'mnist {weights}', **facts,
                torch=torch.__version__, device=f'cpu, {torch.get_num_threads()} thread',
                date=str(date.today()))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument('what', nargs='*', choices=['bits', 'samples', []], default=[])
    p.add_argument('--root', type=Path, default=DATA, help='folder that has the files of MNIST')
    args = p.parse_args()
    torch.set_num_threads(1)
    files = dict(bits=(bits, 'loss'), samples=(samples, 'sampling'))
    for what in args.what or files:
        make, folder = files[what]
        found = make(args.root)
        with atomic(ASSETS/folder/'variance.json') as part:
            part.write_text(json.dumps(found, indent=1) + '\n')

if __name__ == '__main__': main()
