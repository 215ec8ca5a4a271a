"The package imports without the notebooks, and its code reads no name that only a notebook had"
import builtins, dis, importlib, pkgutil, re, subprocess, sys, types
from pathlib import Path
import pytest
import diffusion_scratch

FOLDER = Path(diffusion_scratch.__file__).parent
MODULES = sorted(m.name for m in pkgutil.iter_modules([FOLDER]) if not m.name.startswith('_'))
def source(name): return (FOLDER/f'{name}.py').read_text(encoding='utf-8')

@pytest.fixture(params=MODULES)
def module(request): return importlib.import_module(f'diffusion_scratch.{request.param}')

def test_imports_alone(tmp_path):
    "Each module can be the first one imported, from anywhere, in a process without a notebook"
    program = """import importlib, sys
for name in sys.argv[1:]:
    for m in [m for m in sys.modules if m.startswith('diffusion_scratch')]: del sys.modules[m]
    importlib.import_module(f'diffusion_scratch.{name}')"""
    subprocess.run([sys.executable, '-c', program, *MODULES], cwd=tmp_path, check=True)

def names(code, *operations):
    "What a code object and those inside it load or store"
    inside = [names(c, *operations) for c in code.co_consts if isinstance(c, types.CodeType)]
    return {i.argval for i in dis.get_instructions(code) if i.opname in operations}.union(*inside)

def test_no_notebook_global_leaks(module):
    "Every global that a module loads exists in it: the classic bug of exported notebooks"
    code = compile(source(module.__name__.split('.')[1]), 'module', 'exec')
    inside_classes = names(code, 'STORE_NAME') | {'__module__', '__qualname__', '__name__'}
    loaded = names(code, 'LOAD_GLOBAL', 'LOAD_NAME') - inside_classes
    assert not [n for n in loaded if not hasattr(module, n) and not hasattr(builtins, n)]

def test_all_is_true(module):
    "What a module says it exports, it has; and every public function and class has a docstring"
    values = {n: getattr(module, n) for n in module.__all__}
    docs = {n: v.__doc__ for n, v in values.items() if isinstance(v, (types.FunctionType, type))}
    assert values and all(docs.values()), docs

def test_imports_go_one_way():
    "No module imports a later one of the book; networks and data know no diffusion"
    order = '''schedule noising denoiser oracle unet transformer loss sampling solvers data guidance
        editing engine training checkpoint pictures reader features evaluation likelihood config
        report doctor pretrained run export cli'''.split()
    assert sorted(order) == MODULES
    for i, name in enumerate(order):
        later = '|'.join(order[i:])
        wrong = rf'(?m)^\s*from (\.({later}) import|\. import .*\b({later})\b)'
        assert not re.search(wrong, source(name)), name
    of_ours = r'(?m)^\s*(?:from|import)\s+(?:diffusion_scratch|\.)(\S*)'
    for name, known in dict(unet=set(), data=set(), transformer={'unet'}).items():
        assert set(re.findall(of_ours, source(name))) == known
