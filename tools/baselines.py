"""The bits of MNIST's test digits in files, by frequencies and by the networks that come with the
package, and where a network spends its bits (chapter 17).

    python tools/baselines.py files     # a minute: compressors and frequencies
    python tools/baselines.py levels    # some minutes: the squared error of `mnist` by level
    python tools/baselines.py label     # some minutes: the same digits with and without labels
    python tools/baselines.py flow      # some minutes: the flow of `mnist`

Each writes a file in nbs/assets/likelihood/; without a word, all are made. The digits are MNIST's,
which torchvision downloads once; --root names a folder that has them already.
"""
import bz2, gzip, lzma, math, time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from diffusion_scratch.data import DATA, mnist, mnist_mini, to_float
from diffusion_scratch.denoiser import clipped, evaluating
from diffusion_scratch.likelihood import (bound, compressed_bits, flow_bits, frequency_bits,
                                          gray_posterior, pixel_frequencies, png_bits)
from diffusion_scratch.loss import decoder_nll, decoder_std
from diffusion_scratch.noising import Gaussian, q_sample
from diffusion_scratch.pretrained import load
from diffusion_scratch.schedule import log_snr

from results import keep, made, make_pieces, network, write

ASSETS = Path(__file__).resolve().parent.parent/'nbs'/'assets'/'likelihood'
COMPRESSORS = dict(gzip=gzip.compress, bz2=bz2.compress, xz=lzma.compress)
DIGITS, BATCH, LOW = 100, 50, 60  # of `levels`; timesteps with gray_posterior
TIMES = *range(1, 61), *range(70, 1001, 10)


def seeded(seed: int) -> torch.Generator: return torch.Generator().manual_seed(seed)

def facts(piece: str, began: float, **more) -> dict:
    return made(f'python tools/baselines.py {piece}', seconds=round(time.time() - began), **more)

def held_out(root: Path, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    "n digits of the test set, and their labels"
    test = mnist(root, train=False, download=root == DATA)
    return test[torch.randperm(len(test), generator=seeded(0))[:n]]


# --- compressors and frequencies

def of_frequencies(training: torch.Tensor, test: torch.Tensor) -> dict:
    b = frequency_bits(pixel_frequencies(training), test)
    return dict(total=b.total, error=b.error, n=b.n)

def files(a):
    began, mini = time.time(), mnist_mini()[:][0]
    train, test = (to_float(mnist(a.root, train=v, download=a.root == DATA).images)
                   for v in (True, False))
    together = {name: compressed_bits(test, f) for name, f in COMPRESSORS.items()}
    together['PNG'] = png_bits(test)
    sizes = torch.tensor([png_bits(x) for x in test.split(1)])
    apart = dict(total=sizes.mean().item(), error=sizes.std().item() / len(sizes)**0.5)
    counted = {str(len(x)): of_frequencies(x, test) for x in (train, mini)}
    write(ASSETS/'files.json', dict(
        together=together, apart=dict(PNG=apart), frequencies=counted, test_digits=len(test),
        made=facts('files', began)))


# --- where the bits are spent

def squared_errors(net, schedule, x0, t: int) -> torch.Tensor:
    x_t = noised(schedule, x0, t)
    parts = zip(x_t.split(BATCH), x0.split(BATCH))
    with evaluating(net):
        return torch.cat([(net(x, schedule.at(t, x)).x0 - clean).square() for x, clean in parts])

def noised(schedule, x0, t: int) -> torch.Tensor:
    "The same noise for whoever looks at level t"
    eps = torch.randn(x0.shape, generator=seeded(t))
    return q_sample(x0, schedule.at(t, x0), eps)

def errors_of_frequencies(P, schedule, x0, t: int) -> torch.Tensor:
    "Of the mean gray value given x_t, where the pixels are independent"
    x_t, grays = noised(schedule, x0, t), torch.arange(256).double() / 127.5 - 1
    means = [gray_posterior(P, x, schedule.at(t, x)) @ grays for x in x_t.split(10)]
    return (torch.cat(means).view_as(x0) - x0).square()

def last_steps(net, P, schedule, x0) -> dict[str, torch.Tensor]:
    "L_0 of each pixel in bits (N,D), by the network and by the frequencies"
    x_1, std = noised(schedule, x0, 1), decoder_std(schedule, schedule.times(schedule.T), x0[:1])
    k = ((x0 + 1) * 127.5).round().long().flatten(1)[..., None]
    with evaluating(net): hat = torch.cat([net(x, schedule.at(1, x)).x0 for x in x_1.split(BATCH)])
    parts = zip(x_1.split(10), k.split(10))
    chosen = [gray_posterior(P, x, schedule.at(1, x)).gather(2, i)[..., 0] for x, i in parts]
    return dict(network=decoder_nll(x0, Gaussian(hat, std)).flatten(1).double() / math.log(2),
                frequencies=-torch.cat(chosen).log2())

def level(net, P, schedule, x0, t: int) -> dict[str, torch.Tensor]:
    "Mean squared errors at level t: of each image, on black pixels and on others (N,)"
    black, e = (x0 == -1).flatten(1), squared_errors(net, schedule, x0, t).flatten(1).double()
    found = dict(black=(e * black).mean(1), others=(e * ~black).mean(1))
    if t > 1:  # what the best variance of each place of a pixel leaves, at best
        gap = (schedule.at(t - 1, x0[:1]).snr - schedule.at(t, x0[:1]).snr).double().flatten()
        found['places'] = (0.5 * (gap * e.mean(0)).log1p().mean() / math.log(2))[None]
    if t <= LOW: found['frequencies'] = errors_of_frequencies(P, schedule, x0, t).flatten(1).mean(1)
    return found

def levels(a, times=TIMES):
    began, (net, schedule, _) = time.time(), network('mnist')
    net, (x0, _) = clipped(net), held_out(a.root, DIGITS)
    train = mnist(a.root, train=True, download=a.root == DATA)
    P, table = pixel_frequencies(to_float(train.images)), {}
    for t in tqdm(times, desc='levels', unit='level'):
        for k, v in level(net, P, schedule, x0, t).items(): table.setdefault(k, []).append(v)
    last = {f'last_{k}': v for k, v in last_steps(net, P, schedule, x0).items()}
    table = {k: torch.stack(v) for k, v in table.items()} | last
    kept = {k: v.numpy() for k, v in summary(table, (x0 == -1).flatten(1)).items()}
    if times != TIMES: return kept
    keep(ASSETS/'levels.npz', times=np.array(times), **kept)
    write(ASSETS/'levels.json', dict(made=facts('levels', began, network='mnist', digits=DIGITS)))

def summary(table: dict, black: torch.Tensor) -> dict:
    "Means over images of each level, and the last step of each image"
    found = {k: table[k].mean(1) for k in ('black', 'others', 'places', 'frequencies')}
    found['each'] = (table['black'] + table['others']).float()  # (levels, images)
    for k in ('last_network', 'last_frequencies'):
        found[k] = table[k].mean(1)  # (images,)
        found[f'{k}_black'] = (table[k] * black).mean(1)
    return found


# --- what a label is worth, and the flow

def with_and_without(x0, y) -> dict[str, torch.Tensor]:
    "The bound of each digit by one network, with the same noise"
    net, schedule, _ = network('mnist-conditional')
    how = dict(draws=20, seed=0, batch_size=BATCH, progress=False)
    return {k: bound(clipped(net), schedule, x0, labels, **how).each
            for k, labels in dict(without=None, labelled=y).items()}

def label(a):
    began, (x0, y) = time.time(), held_out(a.root, 300)
    each = {k: [round(v, 6) for v in b.tolist()] for k, b in with_and_without(x0, y).items()}
    write(ASSETS/'label.json', each | dict(made=facts('label', began, network='mnist-conditional')))

def flow_of(x0, steps=100):
    net, schedule = load('mnist')
    return flow_bits(net, schedule, x0, times=schedule.times(steps, log_snr), seed=0,
                     batch_size=30, progress=False)

def flow(a):
    began, b = time.time(), flow_of(held_out(a.root, 60)[0])
    write(ASSETS/'flow.json', dict(total=b.total, error=b.error, n=b.n, each=b.each.tolist(),
                                   made=facts('flow', began, network='mnist', steps=100)))


PIECES = {'files': files, 'levels': levels, 'label': label, 'flow': flow}

if __name__ == '__main__': make_pieces(__doc__, PIECES)
