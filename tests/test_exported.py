"The tables of exports say what the code says, the map shows the imports, english.py finds phrases"
import importlib, inspect, json, re
import pytest
from conftest import ROOT
import chapter_map, english, exported
from test_tools import notebook

ONE, TWO = 'eq-' + 'one', 'eq-' + 'two'  # not in one word: these are no equations of the book
CODE = f'''#| exports
class Level(NamedTuple):
    "A level: {ONE}"
    t: Tensor
    noise: Tensor = 1.

    @property
    def snr(self): return 1

    def over(self, rows: int=3, *, keep: bool=True) -> list[Tensor]: return 1

    def _hidden(self): return 1

def f(x, /, y: int=2, *more, z='a default that is long', **options) -> torch.Tensor | None:
    """What `f` does: x|y, [0, 1] (Ho et al. 2020; {ONE}). More comes later.

    And here"""

@patch
def at(self: Level, t) -> Level:
    "{TWO}"

HALF = .5  # a half
def _private(): return 1'''
PLUMBING = ('#| exports\n#| code-fold: true\n#| code-summary: "Plumbing: why"\n'
            'def check(x): "Refuse"')

def book(root, *cells):
    (root/'_quarto.yml').write_text('book: {chapters: [01_one.ipynb]}')
    (root/'tests').mkdir(exist_ok=True)
    equations = ('markdown', f'$$\na\n$$ {{#{ONE}}}\n\n$$\nb\n$$ {{#{TWO}}}')
    return notebook(root/'nbs'/'01_one.ipynb', ('markdown', '# One'), equations,
                    '#| default_exp one', *cells)

def page(root): return [''.join(c['source']) for c in
                        json.loads((root/'nbs'/'01_one.ipynb').read_text())['cells']]

def test_rows_say_what_the_code_says(tmp_path):
    book(tmp_path, CODE, ('markdown', '## What we exported\n\nA note.\n\n## Exercises\n\nOne.'))
    assert exported.run(tmp_path) == ['nbs/01_one.ipynb']
    section = page(tmp_path)[-1]
    rows = [line for line in section.splitlines() if line.startswith('| `')]
    assert rows == [
        '| `Level`<br>`(t, noise=1.0)`<br>`.snr`<br>`.over(rows=3, *, keep=True)`<br>'
        f'`-> list[Tensor]`<br>`.at(t) -> Level` | A level | [-@{ONE}], [-@{TWO}] |',
        '| `f`<br>`(x, y=2, *more, z=…, **options)`<br>`-> Tensor or None` | '
        rf'What `f` does: x\|y, \[0, 1\] (Ho et al. 2020) | [-@{ONE}] |',
        '| `HALF`<br>`0.5` | a half |  |']
    assert section.endswith(
        ': The module `one`. {#tbl-one-exports}\n\n:::\n\nA note.\n\n## Exercises\n\nOne.')
    assert exported.run(tmp_path) == []

def test_tables_are_written_again_and_the_rest_is_kept(tmp_path):
    "Of a table that is stale; the caption is kept, and what is folded has a table of its own"
    old = '| name |\n| --- |\n| `gone` |\n\n: Our own words. {#tbl-one-exports}'
    book(tmp_path, '#| exports\ndef f(x): "Says"', PLUMBING,
         ('markdown', f'**Before**\n\n## What we exported\n\n{old}\n\nAfter\n\n- a | b'))
    for _ in range(2):
        exported.run(tmp_path)
        section = page(tmp_path)[-1]
        assert 'gone' not in section and section.count('#tbl-') == 1
        first, second = section.split(': Our own words. {#tbl-one-exports}')
        assert first.startswith('**Before**\n\n## What') and '`f`<br>`(x)` | Says |' in first
        assert 'collapse' in second and '`check`<br>`(x)` | Refuse |' in second
        assert second.endswith(':::\n\nAfter\n\n- a | b')
    notebook(tmp_path/'nbs'/'index.ipynb', ('markdown', 'We import `check`'))
    exported.run(tmp_path)
    assert 'collapse' not in page(tmp_path)[-1], 'the first page lists it'

def test_a_chapter_without_the_section_gets_one(tmp_path):
    book(tmp_path, '#| exports\ndef f(x): "Says"', ('markdown', '## Exercises'))
    assert exported.run(tmp_path, write=False) == ['nbs/01_one.ipynb']
    assert len(page(tmp_path)) == 5
    exported.run(tmp_path)
    assert '| `f`<br>' in page(tmp_path)[4] and page(tmp_path)[5] == '## Exercises'

@pytest.mark.parametrize('text, says', [
    ('Says (eq-a; Ho et al. 2020, eq. 4)', 'Says (Ho et al. 2020, eq. 4)'),
    ('Says: eq-a (Ho et al. 2020)', 'Says (Ho et al. 2020)'),
    ('Says (eq-a, eq-b). More', 'Says'), ('A mix, eq-a, or a set', 'A mix, @eq-a, or a set'),
    ('`a | b` and x_t in <x>', r'`a \| b` and x_t in \<x>'), ('', '')])
def test_first_sentence(text, says): assert exported.first_sentence(text) == says

def test_tables_list_all_that_a_module_exports_with_the_parameters_that_python_sees():
    for name, table in exported.read(ROOT).items():
        module = importlib.import_module(f'diffusion_scratch.{table.name}')
        assert sorted(e.name for e in table.public) == sorted(module.__all__), name
        for e in table.public if name in ('schedule', 'sampling', 'solvers') else []:
            here = getattr(module, e.name)
            if not callable(here) or not e.signature(): continue
            ours = re.sub(r'=[^,()]*(\([^()]*\))?|\*(?=,)', '', e.signature().split(' -> ')[0])
            assert re.findall(r'\w+', ours) == list(inspect.signature(here).parameters), e.name

# ---------------------------------------------------------------- the map of chapters
def three(root, last='from diffusion_scratch.two import b'):
    (root/'_quarto.yml').write_text('book: {chapters: [index.ipynb, 01_one.ipynb, {part: A, '
                                    'chapters: [02_two.ipynb, 03_last.ipynb]}, end.ipynb]}')
    def chapter(name, *cells): notebook(root/'nbs'/f'{name}.ipynb', *cells)
    chapter('01_one', ('markdown', '# One'), '#| default_exp one', '#| exports\na = 1')
    chapter('02_two', ('markdown', '# Two {#sec-two}'), '#| default_exp two',
            '#| export\nfrom .one import a', '#| exports\nb = a',
            'from diffusion_scratch.last import c')
    chapter('03_last', ('markdown', '# Last'), f'from diffusion_scratch.one import a\n{last}')

def test_map_shows_the_imports(tmp_path):
    "Without what follows: Last imports One and Two, and Two imports One"
    three(tmp_path)
    chapters = chapter_map.read(tmp_path)
    assert [(c.number, c.title, c.part, c.on) for c in chapters] == [
        ('1', 'One', 0, set()), ('2', 'Two', 1, {'one'}), ('3', 'Last', 1, {'two'})]
    chapter_map.write(tmp_path)
    text = (tmp_path/'nbs'/'assets'/'map.svg').read_text()
    assert text.count('marker-end') == 2 and '>3\u2002Last</text>' in text
    assert '3 Last: 2 Two' in text
    three(tmp_path, last='')
    chapter_map.write(tmp_path)
    assert '3 Last: 1 One' in (tmp_path/'nbs'/'assets'/'map.svg').read_text()

@pytest.fixture(scope='module')
def chapters(): return chapter_map.read(ROOT)

@pytest.mark.parametrize('style', chapter_map.STYLES, ids=lambda s: s.file)
def test_map_of_the_book_can_be_read(chapters, style):
    "Boxes do not touch, each lies below what it builds on, and the narrow one fits a phone"
    text = chapter_map.svg(chapters, style)
    boxes = re.findall(r'<rect x="([\d.-]+)" y="(\d+)" width="(\d+)" height="(\d+)" rx="6"', text)
    boxes = [tuple(map(float, b)) for b in boxes]
    assert len(boxes) == len(chapters)
    for i, (x, y, w, h) in enumerate(boxes):
        assert all(abs(x - u) >= w or abs(y - v) >= h for u, v, *_ in boxes[:i])
    top = {c.name: b[1] for c, b in zip(chapters, boxes)}
    assert all(top[b] < top[c.name] for c in chapters for b in c.on)
    width = int(re.search(r'width="(\d+)"', text)[1])
    screen, least = (720, 10) if style.titles else (358, 9)
    assert style.font*min(1, screen/width) > least

# ---------------------------------------------------------------- plain English
def english_problems(tmp_path, *cells, long=False):
    notebook(tmp_path/'99_one.ipynb', *cells)
    return [(p.cell, p.rule) for p in english.problems(tmp_path/'99_one.ipynb', long)]

BAD = 'the network believes'  # one of the phrases to replace

@pytest.mark.parametrize('cell, found', [
    (('markdown', f'Here {BAD} it.'), [(0, 'phrase')]),
    (('markdown', 'Here the network predicts it.'), []),
    (('markdown', f'In `{BAD}` and\n```\n{BAD}\n```\nand ${BAD}$.'), []),
    (f'#| fig-cap: "Where {BAD}."\nx = 1', [(0, 'phrase')]),
    (f'def f(x):\n    "Where {BAD}"\n    return x', [(0, 'phrase')]),
    (f'x = 1  # where {BAD}', [(0, 'phrase')]),
    (f'raise ValueError("{BAD} in it")', [(0, 'phrase')]),
    ('the_network_believes = 1', [])])
def test_english_finds_phrases(tmp_path, cell, found):
    "In prose, captions, docstrings, comments and messages; not in code and formulas"
    assert english_problems(tmp_path, cell) == found

def test_english_lists_long_sentences_and_missing_terms(tmp_path):
    long = 'word ' * (english.LONGEST + 1)
    assert english_problems(tmp_path, ('markdown', long + '.'), long=True) == [(0, 'long')]
    assert english_problems(tmp_path, ('markdown', long + '.')) == []
    notebook(tmp_path/'12_one.ipynb', ('markdown', 'Classifier-free guidance, null label.'))
    missing = [p.text for p in english.problems(tmp_path/'12_one.ipynb')]
    assert missing == ['does not name: classifier guidance']
