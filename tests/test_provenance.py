"A stored result turns stale with the code that it depends on, and with no other"
import json, re, subprocess
import pytest
from conftest import ROOT
import provenance, spot_checks
from provenance import Result, Tree

LIBRARY = {
    'one': 'def f(x):\n    "Doubled"\n    return 2 * x  # twice\ndef unused(): return 0\n',
    'two': 'from diffusion_scratch.one import f\nSCALE = 3\ndef g(x): return SCALE * f(x)\n'
           'class Late:\n    def h(self): return 1\n'}
PROGRAM = '''import sys
from pathlib import Path
import diffusion_scratch.one as one
from diffusion_scratch.two import g
ASSETS = Path(__file__).parent.parent/'nbs'/'assets'
def first(): return one.f(1)
def second(): return g(1)
def main(): (ASSETS/sys.argv[1]).write_text(str(globals()[sys.argv[1][:-4]]()))
if __name__ == '__main__': main()
'''

@pytest.fixture
def tree(tmp_path, monkeypatch):
    "A small repository with two results, one page, and a record of each"
    results = {n: Result((f'{n}.txt',), f'python tools/program.py {n}.txt',
                         (f'tools/program.py:{n}',), check='again') for n in ('first', 'second')}
    monkeypatch.setattr(provenance, 'RESULTS', results)
    for folder in ('diffusion_scratch', 'tools', 'nbs/assets'):
        (tmp_path/folder).mkdir(parents=True)
    (tmp_path/'diffusion_scratch'/'__init__.py').touch()
    for name, code in LIBRARY.items(): (tmp_path/'diffusion_scratch'/f'{name}.py').write_text(code)
    (tmp_path/'tools'/'program.py').write_text(PROGRAM)
    (tmp_path/'nbs'/'page.qmd').write_text('read("assets/first.txt"), "assets/second.txt"')
    for name, content in dict(first='2', second='6').items():
        (tmp_path/'nbs'/'assets'/f'{name}.txt').write_text(content)
        provenance.record(name, Tree(tmp_path))
    return tmp_path

def states(root) -> dict:
    records = provenance.read(root)
    return {n: provenance.state(n, records.get(n), Tree(root)) for n in provenance.RESULTS}

def words(root) -> list[str]: return [s.word for s in states(root).values()]

def edit(file, old, new):
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))

@pytest.mark.parametrize('module, old, new, stale', [
    ('one', 'return 2 * x', 'return x + x', {'first': 'one', 'second': 'one'}),
    ('two', 'SCALE = 3', 'SCALE = 4', {'second': 'two'}),
    ('two', 'SCALE * f(x)', 'SCALE * f(x) + 0', {'second': 'two'}),
    ('one', '# twice', '# two times', {}), ('one', '"Doubled"', '"Twice"', {}),
    ('one', 'unused(): return 0', 'unused(): return 1', {}), ('two', 'return 1', 'return 2', {})])
def test_exactly_what_depends_on_a_definition_turns_stale(tree, module, old, new, stale):
    assert words(tree) == ['fresh', 'fresh']
    edit(tree/'diffusion_scratch'/f'{module}.py', old, new)
    found = {n: s.why for n, s in states(tree).items() if s.word == 'stale'}
    assert found == {n: f'because of {m}' for n, m in stale.items()}

def test_files_without_a_program_a_page_or_a_record(tree):
    assets = tree/'nbs'/'assets'
    (assets/'third.txt').write_text('3')
    edit(tree/'nbs'/'page.qmd', 'second', 'other')
    assert provenance.orphans(tree) == [('second.txt', 'no page reads it'),
                                        ('third.txt', 'no program makes it')]
    (assets/'first.txt').write_text('by hand')
    (assets/'second.txt').unlink()
    assert words(tree) == ['changed', 'missing']
    (tree/provenance.RECORDS).unlink()
    assert words(tree) == ['no record', 'no record']

def test_a_reason_is_kept_until_the_result_is_made_again(tree, monkeypatch, capsys):
    def run(*line):
        monkeypatch.setattr('sys.argv', ['provenance.py', '--tree', str(tree), *line])
        provenance.main()
        return capsys.readouterr().out
    edit(tree/'diffusion_scratch'/'two.py', 'SCALE = 3', 'SCALE = 4')
    with pytest.raises(SystemExit, match='1 results need a word'): run('--check')
    run('--reason', 'second', '--words', 'waits for a free night')
    assert run('--check') == '' and 'waits for a free night (because of two)' in run('second')
    run('--again', 'second')
    record = provenance.read(tree)['second']
    assert (tree/'nbs'/'assets'/'second.txt').read_text() == '8'
    assert words(tree) == ['fresh', 'fresh'] and 'reason' not in record
    assert {'command', 'seed', 'date', 'machine', 'seconds', 'files', 'code'} <= record.keys()

def test_a_command_that_fails_is_not_recorded(tree):
    edit(tree/'diffusion_scratch'/'two.py', 'SCALE = 3', 'SCALE = 1 / 0')
    before = (tree/provenance.RECORDS).read_bytes()
    with pytest.raises(SystemExit, match='failed; nothing is recorded'):
        provenance.again('second', Tree(tree), None)
    assert (tree/provenance.RECORDS).read_bytes() == before

@pytest.mark.parametrize('now, same', [(6.0005, True), (6.1, False)])
def test_a_spot_check_renews_a_record_only_of_the_same_numbers(tree, monkeypatch, now, same):
    def again(root): yield 'the number', now, 6., 1e-3
    monkeypatch.setattr(spot_checks, 'again', again, raising=False)
    edit(tree/'diffusion_scratch'/'two.py', 'return SCALE * f(x)', 'return f(x) * SCALE')
    before = (tree/provenance.RECORDS).read_bytes()
    if same:
        provenance.confirm('second', Tree(tree), None)
        assert words(tree) == ['fresh', 'fresh']
        assert provenance.read(tree)['second']['checked']['what'].startswith('the number')
    else:
        with pytest.raises(AssertionError, match='the number: differs by 0.1, 0.001 allowed'):
            provenance.confirm('second', Tree(tree), None)
        assert (tree/provenance.RECORDS).read_bytes() == before and words(tree)[1] == 'stale'

def test_a_record_of_a_commit_has_the_code_of_that_commit(tree):
    "The code changes after the files were committed: stale, and not because the record is new"
    def git(*line): subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *line],
                                   cwd=tree, check=True, capture_output=True)
    git('init'); git('add', '.'); git('commit', '-m', 'results')
    edit(tree/'diffusion_scratch'/'two.py', 'SCALE = 3', 'SCALE = 4')
    git('commit', '-am', 'code')
    (tree/provenance.RECORDS).unlink()
    for name in ('first', 'second'): provenance.record(name, Tree(tree))
    assert words(tree) == ['fresh', 'stale']

def test_of_the_book_exactly_the_results_that_use_the_bound_depend_on_it():
    "The bound is used by what reports bits, and by the reports that may hold it"
    class Changed(Tree):
        def text(self, path):
            text = super().text(path)
            if path == 'diffusion_scratch/likelihood.py':
                head = 'class Bound(NamedTuple):'
                text = text.replace(head, f'{head}\n    x = 1')
            return text
    before, after = Tree(ROOT), Changed(ROOT)
    found = {n for n, r in provenance.RESULTS.items()
             if provenance.depends(r, before)['code'] != provenance.depends(r, after)['code']}
    assert found == {'likelihood/mnist', 'likelihood/label', 'loss/variance', 'mnist/bits',
                     'mnist/mnist', 'mnist/mnist-conditional', 'cifar10/report', 'faces/report',
                     'report/report'}

def test_the_table_of_faults_has_the_words_of_the_tests_that_make_test_runs():
    assert spot_checks.run_check('faults', None)

def test_records_are_of_the_results_and_name_no_path_of_a_machine():
    text = (ROOT/provenance.RECORDS).read_text(encoding='utf-8')
    assert not re.search(r'(?<![\w.])/(tmp|home|root|Users|work|mnt)\b', text)
    assert json.loads(text).keys() == provenance.RESULTS.keys()
