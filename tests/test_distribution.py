"What a user gets: wheel and sdist, installed where there is no repository, draw digits"
import json, shutil, subprocess, sys, sysconfig, venv
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = 'diffusion_scratch settings.ini setup.py README.md LICENSE MANIFEST.in'.split()
DRAW = '''
import json, sys, torch, diffusion_scratch
from diffusion_scratch.features import digit_classifier
from diffusion_scratch.data import to_uint8
from diffusion_scratch.guidance import guided
from diffusion_scratch.pretrained import SHIPPED, load
from diffusion_scratch.sampling import sample
from diffusion_scratch.solvers import dpm_solver_pp
torch.set_num_threads(1)
drawn = {}
for name in sorted(f.name for f in SHIPPED.iterdir()):
    denoiser, schedule = load(name)
    asked = torch.arange(10) if denoiser.net.config['num_classes'] else None
    if asked is not None: denoiser = guided(denoiser, asked, 0.5)
    images = sample(denoiser, schedule, (10, 1, 28, 28), step=dpm_solver_pp(),
                    times=schedule.times(15), seed=0, progress=False)
    p = digit_classifier()(to_uint8(images)).p
    right = None if asked is None else (p.argmax(1) == asked).sum().item()
    drawn[name] = dict(confidence=p.amax(1).mean().item(), right=right)
print(json.dumps(dict(home=diffusion_scratch.__file__, drawn=drawn)))
'''


def run(*command, **options):
    return subprocess.run(
        [str(c) for c in command], check=True, capture_output=True, text=True, **options
    ).stdout

@pytest.fixture(scope='module')
def sources(tmp_path_factory):
    "A copy of what is packed, so that building leaves nothing in the repository"
    copy = tmp_path_factory.mktemp('sources')
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns('__pycache__'))
        else: shutil.copy(ROOT/name, copy)
    return copy

@pytest.mark.parametrize('kind', ['sdist', 'bdist_wheel'])
def test_installed_without_the_repository_it_draws_digits(sources, tmp_path, kind):
    "In an environment of its own, which holds the dependencies and nothing of this checkout"
    run(sys.executable, 'setup.py', '-q', kind, '--dist-dir', tmp_path/'dist', cwd=sources)
    [built] = (tmp_path/'dist').iterdir()
    venv.create(home := tmp_path/'env')
    paths = sysconfig.get_paths(vars=dict(base=str(home), platbase=str(home)))
    # a .pth file in that folder, as of an editable install, is not followed
    (Path(paths['purelib'])/'dependencies.pth').write_text(sysconfig.get_path('purelib') + '\n')
    python = Path(paths['scripts'])/Path(sys.executable).name
    assert (
        run(
            python,
            '-c',
            'import importlib.util; print(importlib.util.find_spec("diffusion_scratch"))',
            cwd=tmp_path,
        ).strip()
        == 'None'
    )
    run(
        sys.executable,
        '-m',
        'pip',
        '--python',
        python,
        'install',
        '-q',
        '--no-deps',
        '--no-build-isolation',
        '--no-index',
        '--no-user',
        built,
    )
    found = json.loads(run(python, '-c', DRAW, cwd=tmp_path))
    assert Path(found['home']).is_relative_to(home)
    assert set(found['drawn']) >= {'mnist', 'mnist-conditional', 'mnist-mini'}
    # noise is read with confidence too, so that being right counts: 8 of 10 by chance once in a
    # million
    for name, f in found['drawn'].items():
        assert f['confidence'] > 0.8 and f['right'] in (None, 8, 9, 10), name
