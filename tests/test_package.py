"The installed package, in a fresh process: it imports without the notebooks, and its code reads no name that only a notebook had"
import builtins, dis, importlib, pkgutil, subprocess, sys, types
import pytest
import diffusion_scratch

MODULES = sorted(m.name for m in pkgutil.iter_modules(diffusion_scratch.__path__) if not m.name.startswith('_'))


def test_imports_alone(tmp_path):
    "Each module can be the first one imported, from anywhere, in a process that has seen no notebook"
    program = """
import importlib, sys
for name in sys.argv[1:]:
    for m in [m for m in sys.modules if m.startswith('diffusion_scratch')]: del sys.modules[m]
    importlib.import_module(f'diffusion_scratch.{name}')
"""
    subprocess.run([sys.executable, '-c', program, *MODULES], cwd=tmp_path, check=True)


def codes(code):
    "A code object and those inside it"
    yield code
    for c in code.co_consts:
        if isinstance(c, types.CodeType): yield from codes(c)


@pytest.mark.parametrize('name', MODULES)
def test_no_notebook_global_leaks(name):
    "Every global name that a module's code loads exists in the module: the classic bug of a library exported from notebooks"
    module = importlib.import_module(f'diffusion_scratch.{name}')
    source = compile(open(module.__file__, encoding='utf-8').read(), module.__file__, 'exec')
    loaded = {i.argval for c in codes(source) for i in dis.get_instructions(c) if i.opname in ('LOAD_GLOBAL', 'LOAD_NAME')}
    unknown = {n for n in loaded if not hasattr(module, n) and not hasattr(builtins, n)}
    inside_classes = {i.argval for c in codes(source) for i in dis.get_instructions(c) if i.opname == 'STORE_NAME'}
    assert not unknown - inside_classes - {'__module__', '__qualname__', '__name__'}


@pytest.mark.parametrize('name', MODULES)
def test_all_is_true(name):
    "What a module says it exports, it has; and every public function and class has a docstring"
    module = importlib.import_module(f'diffusion_scratch.{name}')
    assert module.__all__
    for n in module.__all__:
        value = getattr(module, n)
        if isinstance(value, (types.FunctionType, type)): assert value.__doc__, f'{name}.{n} has no docstring'


def test_imports_go_one_way():
    "No module imports one that comes after it in the book (DDPM's own parts know nothing of config and command line)"
    order = '''schedule noising denoiser oracle unet transformer loss sampling solvers data guidance
               editing engine training checkpoint reader features evaluation likelihood report doctor
               config pretrained cli'''.split()
    assert sorted(order) == MODULES
    for i, name in enumerate(order):
        source = open(importlib.import_module(f'diffusion_scratch.{name}').__file__, encoding='utf-8').read()
        for later in order[i:]:
            ways = (f'from .{later} import', f'from diffusion_scratch.{later} import',
                    f'from . import {later}', f'from diffusion_scratch import {later}')
            assert not any(way in source for way in ways), f'{name} imports {later}'


def test_modules_of_the_network_know_no_diffusion():
    for name in ('unet', 'data'):
        assert 'from diffusion_scratch' not in open(importlib.import_module(f'diffusion_scratch.{name}').__file__, encoding='utf-8').read()
