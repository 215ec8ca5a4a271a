"The book's own checks notice what they are there to notice"
import json, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
import check, ledger, links, references, run_nbs


ONE = 'eq-one'  # the label of an equation of the book below


def notebook(file, *cells):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(dict(cells=[dict(cell_type=k, source=[s], metadata={}, id=f'c{i}', **({'outputs': [], 'execution_count': None} if k == 'code' else {}))
                                           for i, (k, s) in enumerate(cells)], metadata={}, nbformat=4, nbformat_minor=5)))


@pytest.fixture
def book(tmp_path):
    "A book of one chapter with one equation, its code and its test"
    (tmp_path/'tests').mkdir()
    (tmp_path/'_quarto.yml').write_text('book: {chapters: [index.ipynb, 01_one.ipynb]}')
    cells = [('markdown', '# One'), ('markdown', '$$\na = b\n$$ {#eq-one}'), ('code', '#| default_exp one'),
             ('code', '#| exports\ndef f(x):\n    "eq-one"\n    return x'), ('code', 'assert f(1) == 1  # eq-one')]
    return tmp_path, cells


def test_ledger_accepts_a_tested_equation(book):
    root, cells = book
    notebook(root/'nbs'/'01_one.ipynb', *cells)
    [e], problems = ledger.read(root)
    assert (e.number, e.code, problems) == ('1.1', ['one.f'], []) and len(e.tests) == 1


@pytest.mark.parametrize('last, says', [(f'f(1)  # {ONE}', 'has no test'), (f'assert f(1)  # {ONE}-b', f'names {ONE}-b, which is no equation')])
def test_ledger_refuses(book, last, says):
    root, cells = book
    notebook(root/'nbs'/'01_one.ipynb', *cells[:-1], ('code', last))
    assert any(says in p for p in ledger.read(root)[1])


def test_ledger_reads_pytest_functions(book):
    root, cells = book
    notebook(root/'nbs'/'01_one.ipynb', *cells[:-1])
    (root/'tests'/'test_one.py').write_text(f'def test_f():\n    "{ONE}"\n    assert f(1) == 1\n')
    [e], problems = ledger.read(root)
    assert e.tests == ['tests/test_one.py::test_f'] and not problems


def test_stamp_sees_code_and_not_comments(tmp_path):
    lib = tmp_path/'lib'; lib.mkdir()
    stamp = lambda code, module: ((lib/'m.py').write_text(module), run_nbs.stamp(dict(cells=[dict(cell_type='code', source=[code])]), lib))[1]
    first = stamp('from lib.m import f\nf(1)', 'def f(x):\n    "says"\n    return x  # why')
    assert first == stamp('#| label: fig-a\nfrom lib.m import f\n\nf(1)', '# hello\ndef f(x):\n    "says more"\n    return x')
    assert first != stamp('from lib.m import f\nf(2)', 'def f(x):\n    return x')
    assert first != stamp('from lib.m import f\nf(1)', 'def f(x):\n    return -x')


def test_check_of_outputs(tmp_path):
    "Current outputs pass; code changed since, an error, or a path of the machine do not"
    nb = dict(cells=[dict(cell_type='code', source=['1 + 1'], outputs=[dict(output_type='stream', name='stdout', text=['2'])])], metadata={})
    def problems(text, ran=run_nbs.stamp(nb, tmp_path), kind='stream'):
        nb['metadata']['ran'], nb['cells'][0]['outputs'][0] = ran, dict(output_type=kind, name='stdout', text=[text])
        (tmp_path/'a.ipynb').write_text(json.dumps(nb))
        return run_nbs.problems(tmp_path/'a.ipynb', tmp_path)
    assert problems('2') == []
    for args, says in [(('2', 'other'), 'older than its code'), (('2', nb['metadata']['ran'], 'error'), 'is an error'), (('in /home/me/x.py',), 'path of the machine')]:
        [p] = problems(*args)
        assert says in p


def test_settle_makes_runs_equal():
    "Progress bars go, and matplotlib's random names become numbers"
    player = lambda name: dict(output_type='display_data', data={'text/html': f'<img id="_anim_img{name}"><script>anim{name}.play()</script>'})
    bar = dict(output_type='stream', name='stderr', text='\r 50%|#####')
    nbs = [dict(cells=[dict(cell_type='code', outputs=[bar, player(n)])], metadata={}) for n in ('a'*32, 'b'*32)]
    for nb in nbs: run_nbs.settle(nb)
    assert nbs[0] == nbs[1] and len(nbs[0]['cells'][0]['outputs']) == 1 and 'b'*32 not in str(nbs)


def test_check_finds_imports_among_other_code():
    nb = lambda *sources: json.dumps(dict(cells=[dict(cell_type='code', source=[s]) for s in sources]))
    assert check.mixed('a', nb('import os\nimport sys', 'x = 1', '#| exports\nimport os\nx = 1', '%magic\nimport os')) == []
    [p] = check.mixed('a', nb('import os', 'import os\nx = os.name'))
    assert 'cell 2' in p


def test_signatures_on_the_site():
    "A class is called a class, and a signature that says nothing is left out"
    assert references.signature('```python\ndef Net(\n    n:int, # of [`f`](x.html#f)\n):\n```') == '```python\nclass Net(\n    n:int, # of `f`\n):\n```'
    assert references.signature('### A\n```python\ndef A(\n    *args, **kwargs\n):\n```\n*says*') == '### A\n*says*'
    assert references.signature('```python\ndef f(x):\n```') == '```python\ndef f(x):\n```'


def test_links_finds_what_is_broken(tmp_path):
    (tmp_path/'a.html').write_text('<h1 id="top">A</h1><a href="b.html#here">fine</a><a href="#top">fine</a><a href="https://example.org">fine</a>')
    (tmp_path/'b.html').write_text('<p id="here"></p>')
    assert links.check(tmp_path) == []
    (tmp_path/'b.html').write_text('<a href="c.html">c</a><a href="a.html#nowhere">n</a><img src="no.png"><script src="https://cdn.example.org/x.js"></script>')
    assert links.check(tmp_path) == ['a.html links to b.html#here, but that page has no such place', 'b.html asks another host for https://cdn.example.org/x.js',
                                     'b.html links to a.html#nowhere, but that page has no such place', 'b.html links to c.html, which does not exist', 'b.html links to no.png, which does not exist']


def test_train_example_is_the_command(tmp_path):
    "The original project's command still answers"
    out = subprocess.run([sys.executable, ROOT/'examples'/'train.py', '--help'], capture_output=True, text=True, cwd=tmp_path)
    assert out.returncode == 0 and 'config' in out.stdout
