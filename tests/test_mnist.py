"""The networks that ship: what their folders promise, what they draw, and the tool that measures
them"""
import json, math, sys
from pathlib import Path
from types import SimpleNamespace
import pytest
import torch
from diffusion_scratch.cli import edit_command, sample_command
from diffusion_scratch.data import mnist_mini, to_uint8
from diffusion_scratch.denoiser import V, clipped
from diffusion_scratch.evaluation import frechet_distance
from diffusion_scratch.features import digit_classifier
from diffusion_scratch.guidance import guided
from diffusion_scratch.pretrained import SHIPPED, about, load, save
from diffusion_scratch.report import model_hash, random_labels
from diffusion_scratch.sampling import ancestral, sample
from diffusion_scratch.schedule import Schedule, cosine_betas
from diffusion_scratch.solvers import ddim, dpm_solver_pp, heun

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
import mnist as tool
from test_data import write_idx

NAMES = 'mnist', 'mnist-conditional'


@pytest.mark.any_processor
@pytest.mark.parametrize('name', NAMES)
def test_a_folder_says_how_its_weights_came_about(name):
    file, facts = SHIPPED/name/'model.safetensors', about(name)
    denoiser, schedule = load(name)  # which compares the SHA-256 too
    assert (
        file.stat().st_size < 5e6
        and sum(p.numel() for p in denoiser.parameters()) == facts['made']['parameters'] < 2.5e6
    )
    assert (
        denoiser.parameterization is V
        and not denoiser.training
        and schedule.is_close(Schedule(cosine_betas(1000)))
    )
    assert facts['shape'] == [1, 28, 28] and len(facts['classes']) == (
        10 if name == 'mnist-conditional' else 0
    )
    assert (
        facts['made']['command'] == f'diffusion-train configs/{tool.CONFIG[name]}.yaml'
        and (ROOT / 'configs' / f'{tool.CONFIG[name]}.yaml').exists()
    )
    assert (
        facts['made']['images'] == 64 * facts['made']['steps']
        and facts['made']['training_seconds'] > 3600
    )
    assert (
        len(facts['made']['data_sha256']) == 64
        and {'seed', 'date', 'commit', 'torch', 'cpu', 'threads'} <= facts['made'].keys()
    )


def published_report(name): return json.loads((tool.ASSETS/f'{name}.json').read_text())


def seen(name, n, step, steps):
    "What the classifier sees in n digits, and what they were asked to be"
    (denoiser, schedule), asked, digits = load(name), random_labels([0.1] * 10, n, 0), []
    for first in range(0, n, 100):
        d = clipped(
            guided(denoiser, asked[first : first + 100], tool.GUIDANCE)
            if about(name)['classes']
            else denoiser
        )
        digits.append(
            to_uint8(
                sample(
                    d,
                    schedule,
                    (100, 1, 28, 28),
                    step=step,
                    times=schedule.times(steps),
                    seed=0,
                    first=first,
                    progress=False,
                )
            )
        )
    return digit_classifier()(torch.cat(digits)), asked


def test_the_conditional_network_draws_what_is_asked_for():
    """200 digits hold the published share within 4 standard errors, and a point more for 15 steps
    in place of 50 (without labels it would be 1 in 10)"""
    found, asked = seen('mnist-conditional', 200, dpm_solver_pp(), 15)
    published = published_report('mnist-conditional')['measures']['label_accuracy']['value'][
        'value'
    ]
    right = (found.p.argmax(1) == asked).double().mean().item()
    assert right > published - 4 * math.sqrt(published * (1 - published) / 200) - 0.01


@pytest.mark.parametrize(
    'step',
    [ancestral(), ddim(), ddim(1.0), dpm_solver_pp(), dpm_solver_pp(1.0), heun()],
    ids=['ancestral', 'ddim', 'ddim(1)', 'dpm_solver_pp', 'dpm_solver_pp(1)', 'heun'],
)
def test_an_image_is_the_same_in_any_batch(step):
    """`sample` promises 1e-3: matrix products of other sizes round otherwise, and a walk may
    stretch that a hundredfold"""
    (denoiser, schedule), y = load('mnist-conditional'), torch.arange(6)
    kw = dict(step=step, times=schedule.times(15), seed=0, progress=False)
    whole = sample(clipped(denoiser), schedule, (6, 1, 28, 28), y=y, **kw)
    for first, n in ((0, 1), (1, 2), (5, 1)):
        part = sample(
            clipped(denoiser), schedule, (n, 1, 28, 28), y=y[first : first + n], first=first, **kw
        )
        torch.testing.assert_close(part, whole[first:first + n], rtol=0, atol=1e-3)

def test_a_class_asked_of_mnist_is_drawn_by_its_sister(monkeypatch, tmp_path, capsys):
    """On the command line: the same pictures, and a word about it; without a class it draws
    itself, and where a run of that name lies here, it is meant"""
    monkeypatch.chdir(tmp_path)
    sample_command(
        'mnist --n 2 --steps 3 --solver dpm++ --class 7 --guidance 2 --seed 0 --animate'.split()
    )
    assert (
        'mnist learned no classes; mnist-conditional did, and draws' in capsys.readouterr().err
        and (tmp_path / 'mnist-conditional_seed0.gif').exists()
    )
    for more in (
        'mnist-conditional --class 7 --guidance 2 --out sister.png',
        'mnist --out own.png',
        'mnist --guidance 0 --out zero.png',
    ):
        sample_command(f'{more} --n 2 --steps 3 --solver dpm++'.split())
    drawn = {
        name: (tmp_path / f'{name}.png').read_bytes()
        for name in ('mnist-conditional_seed0', 'sister', 'own', 'zero')
    }
    assert (
        drawn['mnist-conditional_seed0'] == drawn['sister'] != drawn['own'] == drawn['zero']
        and 'learned no classes' not in capsys.readouterr().err
    )
    edit_command('mnist sister.png --class 9 --n 1 --steps 3 --out nine.png'.split())
    edit_command('mnist-conditional sister.png --class 9 --n 1 --steps 3 --out also.png'.split())
    assert (tmp_path/'nine.png').read_bytes() == (tmp_path/'also.png').read_bytes()
    denoiser, schedule = load('mnist')
    save(denoiser, schedule, tmp_path/'mnist', about('mnist'))
    with pytest.raises(SystemExit): sample_command('mnist --class 7'.split())
    assert (
        '--class: 7 is not allowed; allowed: none, for this model learned no classes'
        in capsys.readouterr().err
    )


@pytest.mark.parametrize('name', NAMES)
def test_samples_are_nearer_to_digits_than_blurred_digits_are(name):
    """Fréchet distance of 500 samples to mnist_mini (25 steps with noise, chapter 29's best for so
    few), against 500 real digits averaged with their neighbours one pixel down: readable, and
    not the real thing"""
    eye, data = digit_classifier(), mnist_mini()
    real, own = eye(data.images).x, data.images[::10]
    blurred = ((own.int() + own.roll(1, 2).int() + own.roll(2, 2).int()) // 3).to(torch.uint8)
    assert frechet_distance(real, seen(name, 500, dpm_solver_pp(1.0), 25)[0].x) < frechet_distance(
        real, eye(blurred).x
    )


@pytest.mark.any_processor
@pytest.mark.parametrize('name', NAMES)
def test_the_published_numbers_are_of_these_weights(name):
    report, eye = published_report(name), digit_classifier()
    protocol = report['protocol']
    assert (
        protocol['weights'] == f'{name} {model_hash(*load(name))}'
        and protocol['extractor'] == f'{eye.name} {eye.hash}'
    )
    assert (
        protocol['generated'] == 10_000
        and protocol['real'] == 60_000
        and protocol['reference']
        == f"mnist {about('mnist-conditional')['made']['data_sha256'][:12]}"
    )
    assert about(name)['measured'] == tool.summary(report)


def test_check_passes_the_same_weights_and_finds_worse_ones(tmp_path, monkeypatch, capsys):
    """The second half of `make reproduce-mnist`, with 80 images, and 400 real digits in MNIST's
    own file format"""
    data, raw = mnist_mini(), tmp_path/'MNIST'/'raw'
    raw.mkdir(parents=True)
    for part in ('train', 't10k'):
        write_idx(raw / f'{part}-images-idx3-ubyte', data.images[::12, 0])
        write_idx(raw / f'{part}-labels-idx1-ubyte', data.labels[::12].byte())
    for k, v in dict(
        ASSETS=tmp_path / 'assets',
        RUNS=tmp_path / 'runs',
        CONFIG={'mnist-conditional': 'mnist_conditional'},
    ).items():
        monkeypatch.setattr(tool, k, v)
    a = SimpleNamespace(root=tmp_path, n=80)
    (tmp_path/'assets').mkdir(); tool.report('mnist-conditional', a)
    denoiser, schedule = load('mnist-conditional')
    save(denoiser, schedule, tmp_path/'runs'/'mnist_conditional', about('mnist-conditional'))
    with pytest.raises(SystemExit) as e: tool.check(a)
    assert e.value.code == 0 and 'OUTSIDE' not in capsys.readouterr().out
    with torch.no_grad():
        for p in denoiser.parameters():
            p.add_(0.2 * p.std() * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    tool.RUNS = tmp_path/'worse'  # images of other weights do not belong in the first folder
    save(denoiser, schedule, tmp_path/'worse'/'mnist_conditional', about('mnist-conditional'))
    with pytest.raises(SystemExit, match='outside') as e: tool.check(a)
    assert 'OUTSIDE' in capsys.readouterr().out
