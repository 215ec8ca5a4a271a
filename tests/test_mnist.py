"The networks of MNIST: what they draw, and the tool that measures them. Facts: test_shipped.py"
import json, math
from functools import partial
from types import SimpleNamespace
import pytest
import torch
from conftest import write_mnist
from diffusion_scratch.cli import edit_command, sample_command
from diffusion_scratch.data import mnist, mnist_mini, to_uint8
from diffusion_scratch.denoiser import clipped
from diffusion_scratch.evaluation import frechet_distance
from diffusion_scratch.features import digit_classifier
from diffusion_scratch.guidance import guided
from diffusion_scratch.pretrained import about, load, save
from diffusion_scratch.report import random_labels
from diffusion_scratch.sampling import ancestral, sample
from diffusion_scratch.solvers import ddim, dpm_solver_pp, heun
import mnist as tool

NAMES = 'mnist', 'mnist-conditional'

def seen(name, n, step, steps):
    "What the classifier sees in n digits, and what they were asked to be"
    (denoiser, schedule), asked, digits = load(name), random_labels([0.1] * 10, n, 0), []
    how = dict(step=step, times=schedule.times(steps), seed=0, progress=False)
    for first in range(0, n, 100):
        net = denoiser
        if about(name)['classes']: net = guided(net, asked[first:first + 100], tool.GUIDANCE)
        digits.append(sample(clipped(net), schedule, (100, 1, 28, 28), first=first, **how))
    return digit_classifier()(to_uint8(torch.cat(digits))), asked

def test_the_conditional_network_draws_what_is_asked_for():
    "The published share within 4 standard errors, and a point more for 15 steps in place of 50"
    found, asked = seen('mnist-conditional', 200, dpm_solver_pp(), 15)
    published = json.loads((tool.ASSETS/'mnist-conditional.json').read_text())
    share = published['measures']['label_accuracy']['value']['value']
    right = (found.p.argmax(1) == asked).double().mean().item()
    assert right > share - 4 * math.sqrt(share * (1 - share) / 200) - 0.01

@pytest.mark.parametrize('step', [ancestral(), ddim(), ddim(1.), dpm_solver_pp(),
                                  dpm_solver_pp(1.), heun()], ids=repr)
def test_an_image_is_the_same_in_any_batch(step):
    "`sample` promises 1e-3: a walk may stretch rounding a hundredfold"
    (denoiser, schedule), labels = load('mnist-conditional'), torch.arange(6)
    def drawn(first, n):
        return sample(clipped(denoiser), schedule, (n, 1, 28, 28), y=labels[first:first + n],
                      step=step, times=schedule.times(15), seed=0, first=first, progress=False)
    whole = drawn(0, 6)
    for first, n in ((0, 1), (1, 2), (5, 1)):
        torch.testing.assert_close(drawn(first, n), whole[first:first + n], rtol=0, atol=1e-3)

def test_a_class_asked_of_mnist_is_drawn_by_its_sister(monkeypatch, tmp_path, capsys):
    "With a word about it; not without a class, nor where a run of that name lies here"
    monkeypatch.chdir(tmp_path)
    def draw(words): sample_command(f'{words} --n 2 --steps 3 --solver dpm++'.split())
    def picture(name): return (tmp_path/f'{name}.png').read_bytes()
    draw('mnist --class 7 --guidance 2 --seed 0 --animate')
    assert 'mnist learned no classes; mnist-conditional is used' in capsys.readouterr().err
    assert (tmp_path/'mnist-conditional_seed0.gif').exists()
    draw('mnist-conditional --class 7 --guidance 2 --out sister.png')
    draw('mnist --out own.png')
    draw('mnist --guidance 0 --out zero.png')
    assert picture('mnist-conditional_seed0') == picture('sister') != picture('own')
    assert picture('own') == picture('zero')
    assert 'learned no classes' not in capsys.readouterr().err
    for name in NAMES:
        edit_command(f'{name} sister.png --class 9 --n 1 --steps 3 --out edited_{name}.png'.split())
    assert picture('edited_mnist') == picture('edited_mnist-conditional')
    save(*load('mnist'), tmp_path/'mnist', about('mnist'))
    with pytest.raises(SystemExit): sample_command('mnist --class 7'.split())
    says = '--class: 7 is not allowed; allowed: none, because this model learned no classes'
    assert says in capsys.readouterr().err

@pytest.mark.parametrize('name', NAMES)
def test_samples_are_nearer_to_digits_than_blurred_digits_are(name):
    "Fréchet distance of 200 samples, and of 200 digits averaged over three rows"
    eye, data = digit_classifier(), mnist_mini()
    real, own = eye(data.images).x, data.images[::25].int()
    blurred = eye(((own + own.roll(1, 2) + own.roll(2, 2)) // 3).to(torch.uint8)).x
    drawn = seen(name, 200, dpm_solver_pp(1.), 25)[0].x
    assert frechet_distance(real, drawn) < frechet_distance(real, blurred)

def test_check_passes_the_same_weights_and_finds_worse_ones(tmp_path, monkeypatch, capsys):
    "`make reproduce-mnist`, its second half, with 80 images and 400 digits in MNIST's format"
    write_mnist(tmp_path, mnist_mini(), slice(0, 5000, 12), slice(0, 5000, 12))
    (tmp_path/'assets').mkdir()
    monkeypatch.setattr(tool, 'ASSETS', tmp_path/'assets')
    monkeypatch.setattr(tool, 'mnist', partial(mnist, check=False))  # the digits are few
    monkeypatch.setattr(tool, 'CONFIG', {'mnist-conditional': 'run'})
    name, a, (denoiser, schedule) = NAMES[1], SimpleNamespace(root=tmp_path, n=80), load(NAMES[1])
    def measured(folder):  # images of other weights do not belong in the same folder
        monkeypatch.setattr(tool, 'RUNS', tmp_path/folder)
        save(denoiser, schedule, tmp_path/folder/'run', about(name))
        with pytest.raises(SystemExit) as e: tool.check(a)
        return e.value.code, 'OUTSIDE' in capsys.readouterr().out
    monkeypatch.setattr(tool, 'RUNS', tmp_path/'same')
    tool.report(name, a)
    assert measured('same') == (0, False)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in denoiser.parameters(): p += 0.2 * p.std() * torch.randn(p.shape, generator=g)
    code, outside = measured('worse')
    assert 'outside' in code and outside
