"The book's own checks notice what they are there to notice"
import json, re, shutil, subprocess, sys
from pathlib import Path
from types import SimpleNamespace
import pytest
from conftest import ROOT
import build_docs, check, furniture, katex, ledger, links, pieces, reading, references, run_nbs
import screen, stylesheet, trainings

ONE = 'eq-one'  # the label of an equation of the book below

def notebook(file, *cells):
    "A notebook of cells, each (kind, source) or the source of code"
    nb = dict(cells=[], metadata={}, nbformat=4, nbformat_minor=5)
    for i, cell in enumerate(cells):
        kind, source = cell if isinstance(cell, tuple) else ('code', cell)
        nb['cells'].append(dict(cell_type=kind, source=[source], metadata={}, id=f'c{i}'))
        if kind == 'code': nb['cells'][i] |= dict(outputs=[], execution_count=None)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(nb))
    return nb

CHAPTER = [('markdown', '# One'), ('markdown', '$$\na = b\n$$ {#eq-one}'), '#| default_exp one',
           '#| exports\ndef f(x):\n    "eq-one"\n    return x']

@pytest.mark.parametrize('last, pytest_file, tests, problems', [
    (f'assert f(1) == 1  # {ONE}', '', ['01_one, cell 5'], []),
    ('', f'def test_f():\n    "{ONE}"\n    assert f(1) == 1\n', ['tests/test_one.py::test_f'], []),
    (f'f(1)  # {ONE}', '', [], ['has no test']),
    (f'assert f(1)  # {ONE}-b', '', [], [f'names {ONE}-b, which is no equation', 'has no test'])])
def test_ledger(tmp_path, last, pytest_file, tests, problems):
    "An equation has its code, and a test in a chapter or in tests/"
    (tmp_path/'_quarto.yml').write_text('book: {chapters: [index.ipynb, 01_one.ipynb]}')
    notebook(tmp_path/'nbs'/'01_one.ipynb', *CHAPTER, last)
    (tmp_path/'tests').mkdir()
    (tmp_path/'tests'/'test_one.py').write_text(pytest_file)
    [e], found = ledger.read(tmp_path)
    assert (e.number, e.code, e.tests) == ('1.1', ['one.f'], tests)
    assert len(found) == len(problems) and all(says in p for says, p in zip(problems, found))

def test_stamp_sees_code_and_not_comments(tmp_path):
    def stamp(code, module):
        (tmp_path/'m.py').write_text(module)
        return run_nbs.stamp(dict(cells=[dict(cell_type='code', source=[code])]), tmp_path)
    code, module = f'from {tmp_path.name}.m import f\nf(1)', 'def f(x):\n    "says"\n    return x'
    first = stamp(code, module)
    assert first == stamp(f'#| label: fig-a\n{code}'.replace('\nf', '\n\nf'),
                          '# hello\ndef f(x):\n    "says more"\n    return x  # why')
    assert first != stamp(code.replace('f(1)', 'f(2)'), module)
    assert first != stamp(code, module.replace('return x', 'return -x'))

@pytest.mark.parametrize('source, change, says', [
    ('1 + 1', {}, []), ('1 + 1', dict(ran='other'), ['older than its code']),
    ('1 + 1', dict(output_type='error'), ['is an error']),
    ('1 + 1', dict(text=['in /home/me/x.py']), ['path of the machine']),
    ('#| eval: false\n1', {}, ['Jupyter'])])
def test_check_of_outputs(tmp_path, source, change, says):
    "Current ones pass; not code changed since, an error, a machine's path, or a mark of no use"
    nb = notebook(tmp_path/'a.ipynb', source)
    nb['metadata']['ran'] = change.pop('ran', run_nbs.stamp(nb, tmp_path))
    nb['cells'][0]['outputs'] = [dict(output_type='stream', name='stdout', text=['2']) | change]
    (tmp_path/'a.ipynb').write_text(json.dumps(nb))
    found = run_nbs.problems(tmp_path/'a.ipynb', tmp_path)
    assert len(found) == len(says) and all(word in p for word, p in zip(says, found))

def test_all_cells_run_and_what_they_leave_behind_is_found(tmp_path):
    nbs, lib = tmp_path/'nbs', tmp_path/'lib'
    lib.mkdir()
    notebook(nbs/'fine.ipynb', 'from pathlib import Path', 'assert Path("fails.ipynb").exists()')
    notebook(nbs/'fails.ipynb', '#| eval: false\nopen("new", "w").close()',
             '#| eval: false\nraise ValueError("all of them run")')
    cfg = SimpleNamespace(config_path=tmp_path, nbs_path=nbs, lib_path=lib)
    before = [f.read_text() for f in sorted(nbs.iterdir())]
    error, left = run_nbs.test(sorted(nbs.iterdir()), cfg, 2)
    assert 'fails.ipynb' in error and 'ValueError: all of them run' in error
    assert left.startswith('nbs/new was changed, removed or left behind')
    assert [f.read_text() for f in sorted(nbs.glob('*.ipynb'))] == before

def test_settle_makes_runs_equal():
    "Progress bars and widgets go, matplotlib's random names become numbers, sliders' pages stay"
    def settled(*outputs):
        nb = dict(cells=[dict(cell_type='code', outputs=[*outputs])], metadata=dict(widgets={}))
        run_nbs.settle(nb)
        assert nb['metadata'] == {}
        return nb['cells'][0]['outputs']
    def data(values): return dict(output_type='display_data', data=values)
    def run(name):
        html = f'<img id="_anim_img{name}"><script>anim{name}.play()</script>'
        bar = dict(output_type='stream', name='stderr', text='\r 50%|#####')
        return settled(bar, data({'text/html': html}))
    one, two = run('a'*32), run('b'*32)
    assert one == two and len(one) == 1 and 'b'*32 not in str(two)
    page, widget = {'text/html': '<div></div>'}, {run_nbs.WIDGET: dict(model_id='1')}
    words = {'text/plain': 'sliders'}
    assert settled(data(widget | words), data(widget | words | page)) == [data(words | page)]

def test_check_finds_imports_among_other_code(tmp_path):
    def mixed(*sources): return check.mixed('a', json.dumps(notebook(tmp_path/'a.ipynb', *sources)))
    assert mixed('import os\nimport sys', 'x = 1', '#| exports\nimport os\nx = 1',
                 '%magic\nimport os') == []
    [p] = mixed('import os', 'import os\nx = os.name')
    assert 'cell 2' in p

def test_exported_definitions_can_be_linked_to(tmp_path):
    "A place before each printed definition: hidden and private ones have none, nor a second one"
    nb = notebook(tmp_path/'a.ipynb', '#| export\ndef hidden(): pass', 'def plain(): pass',
                  '#| exports\nclass Net: pass\nnet = Net()\ndef _private(): pass',
                  '#| exports\n#| code-fold: true\ndef check(): pass')
    cells = build_docs.anchored(nb, nb)['cells']
    assert [c['source'] for c in cells if c['cell_type'] == 'markdown'] == [
        '::: {#net .definition}\n:::', '::: {#check .definition}\n:::']
    assert [c['id'] for c in cells] == ['c0', 'c1', 'at-net', 'c2', 'at-check', 'c3']

def test_code_on_the_site_links_to_its_equations():
    book = references.Book({})
    book.add(ONE, 'eq', '1.1', 'one.ipynb')
    code = '<code class="sourceCode python"><span>{}</span></code>'.format
    links = code(f'({ONE}), {ONE}-b')
    linked = code(f'(<a href="{{}}#{ONE}" title="Equation 1.1">{ONE}</a>), {ONE}-b').format
    assert book.link_code(links, 'one.ipynb') == linked('')
    assert book.link_code(links, 'two.ipynb') == linked('one.html')
    assert book.link_code(f'<p>{ONE}</p>', 'one.ipynb') == f'<p>{ONE}</p>'

def test_links_finds_what_is_broken(tmp_path):
    (tmp_path/'a.html').write_text('<h1 id="top">A</h1><a href="b.html#here">fine</a>'
                                   '<a href="#top">fine</a><a href="https://example.org">fine</a>')
    (tmp_path/'b.html').write_text('<p id="here"></p>')
    assert links.check(tmp_path) == []
    (tmp_path/'b.html').write_text(
        '<a href="c.html">c</a><a href="a.html#nowhere">n</a><source srcset="no.svg">'
        '<img src="no.png"><script src="https://cdn.example.org/x.js"></script>')
    assert links.check(tmp_path) == [
        'a.html links to b.html#here, but that page has no such place',
        'b.html asks another host for https://cdn.example.org/x.js',
        'b.html links to a.html#nowhere, but that page has no such place',
        *(f'b.html links to {file}, which does not exist'
          for file in ('c.html', 'no.png', 'no.svg'))]

SOUND = ('<html lang="en"><body><a href="#text">Skip</a><main id="text"><h1>A</h1><h2>B</h2>'
         '<nav aria-label="Chapters"><a href="b.html">b</a></nav></main></body></html>')

@pytest.mark.parametrize('old, new, problem', [
    (' lang="en"', '', 'has no lang'),
    ('href="#text"', 'href="#end"', 'has no skip link'),
    ('h2', 'h3', 'has h3 after h1'),
    ('</nav>', '</nav><p id="text">', 'has two elements with id text'),
    ('</nav>', '</nav><input type="search">', 'has an input without a label'),
    ('</nav>', '</nav><button><i></i></button>', 'has <button id=""> without a name'),
    ('</nav>', '</nav><table><th></th></table>', 'has <th id=""> without a name'),
    ('</nav>', '</nav><div data-bs-toggle="a"></div>', 'has a <div> that only a mouse can fold'),
    (' aria-label="Chapters"', '', 'has <nav id=""> without a name')])
def test_screen_finds_what_a_keyboard_or_a_screen_reader_misses(tmp_path, old, new, problem):
    page = tmp_path/'a.html'
    page.write_text(SOUND)
    assert screen.check(tmp_path) == []
    page.write_text(SOUND.replace(old, new))
    assert screen.check(tmp_path) == [f'a.html {problem}']

def test_a_folded_callout_becomes_a_fold_for_the_keyboard():
    "The bodies, with divs of their own, stay whole; a callout may stand in another"
    def callout(body, shown):
        return ('<div class="callout callout-tip"><div class="callout-header" '
                'data-bs-toggle="collapse" data-bs-target="#c"><div>Solution</div></div><div '
                f'id="c" class="callout-collapse collapse{shown}"><div>{body}</div></div></div>')
    def fold(body, shown):
        return (f'<details class="callout callout-tip"{shown}><summary class="callout-header"><div>'
                f'Solution</div></summary><div><div>{body}</div></div></details>')
    html = callout('a<div>b</div>' + callout('c', ' show'), '') + '<p>d</p>'
    assert screen.callouts(html) == fold('a<div>b</div>' + fold('c', ' open'), '') + '<p>d</p>'

def test_an_aligned_equation_gets_lines_that_may_break():
    r"One row at `\\` and one pair at `&`, but not those within a group or an environment"
    line = r'x &= \begin{cases} a & b \\ c \end{cases} & y &= \text{\&} && \text{by } z_\text{f}'
    assert screen.split(line + r' \\ &= w', r'\\') == [line + ' ', ' &= w']
    formulas = r'x = \begin{cases} a & b \\ c \end{cases}', r'y = \text{\&}'
    shown = ' '.join(rf'\(\displaystyle {f}\)' for f in formulas)
    assert screen.plain(screen.narrow(line)) == shown + r'by \(\displaystyle z_\text{f}\)'
    spaced = screen.plain(screen.math(r'a\;b\,c_{d\;e}\,\nabla f'))
    assert spaced == r'\(\displaystyle a\allowbreak\;b\,c_{d\;e}\allowbreak\,\nabla f\)'

def test_a_table_of_sentences_has_labels_in_its_rows():
    words = 'a sentence of more than five words'
    table = ('<table class="table"><thead><tr><th></th><th>what it is</th></tr></thead><tbody><tr>'
             f'<td>name</td><td>{words}</td></tr></tbody></table>')
    found = screen.table(table)
    assert '<th></th>' not in found and 'class="blocks table"' in found
    assert screen.plain(found) == f'what it isnamewhat it is: {words}'
    assert screen.table(table.replace(words, '1.5')) == table.replace(words, '1.5').replace(
        '<th></th>', '<td></td>')

def test_readme_shows_the_pictures_of_the_first_page():
    "Paths are those from the top; other hosts stay as they are; and what a cell keeps is shown"
    cfg = SimpleNamespace(nbs_path=Path('nbs'), readme_nb='index.ipynb')
    text = ('## A {.unnumbered}\n<source srcset="assets/a.svg"><img src="assets/b.svg"> '
            '![c](assets/c.png) <img src="https://d.org/d.svg">')
    assert build_docs.readme_prose(dict(source=text), references.Book({}), cfg) == (
        text.replace('assets/', 'nbs/assets/').replace(' {.unnumbered}', ''))
    png = dict(output_type='execute_result', data={'image/png': '...', 'text/plain': '<Image>'})
    source = '#| keep: assets/a.png\n#| fig-cap: "A"\ndraw()'
    assert build_docs.readme_code(dict(source=source, outputs=[png]), cfg) == [
        '```python\ndraw()\n```', '![A](nbs/assets/a.png)']

PLUMBING = '#| exports\n#| code-fold: true\n#| code-summary: "Plumbing: checks of input"\n'
LINES, LONG_NET = 'x = 1\n', 'class UNet:\n' + '    x = 1\n'*40
DEFINES_F, DEFINES_ONE = 'def f(): pass', f'def f():\n    "{ONE}"'
CALLS_F, SELF_F = (f'#| exports\nclass A:\n    def f(self): {name}()' for name in ('f', 'self._f'))

def read_page(root, *cells, rule=None, **files):
    "Problems of a book of one chapter with these code cells, and of files of Python"
    (root/'setup.py').write_text('')
    notebook(root/'nbs'/'01_one.ipynb', '#| default_exp one', *cells)
    for folder, code in files.items():
        (root/folder).mkdir(exist_ok=True)
        (root/folder/'a.py').write_text(code)
    return [p for p in reading.problems(root) if rule in (None, p.rule)]

@pytest.mark.parametrize('rule, broken, kept', [
    ('taught', ['#| export\nf = lambda: 1', 'f()'], ['#| export\nf = lambda: 1', 'f']),
    ('taught', [f'#| hide\n{DEFINES_F}', 'f()'], [DEFINES_F, 'f()']),
    ('taught', [f'#| echo: false\n{DEFINES_F}', 'f()'], [PLUMBING + DEFINES_F, 'f()']),
    ('taught', [f'#| include: false\n{DEFINES_F}', '@f\ndef g(): pass'],
     ['#| hide\nfrom math import floor', 'floor(1.5)\nprint(1)\n[].copy()']),
    ('taught', ['#| hide\nclass f: pass', 'class A(f): pass'],
     ['#| hide\nclass f: pass', 'def g(f): return f()']),
    ('taught', ['#| hide\n@patch\ndef _f(self: A): pass', SELF_F],
     ['@patch\ndef _f(self: A): pass', SELF_F]),
    ('taught', [f'#| hide\n{DEFINES_F}', CALLS_F], [DEFINES_F, CALLS_F]),
    ('hidden', [f'#| export\n{DEFINES_F}'], ['#| export\nimport os\nx = 1']),
    ('plumbing', [f'#| exports\n#| code-fold: true\n#| code-summary: "Checks"\n{DEFINES_F}'],
     [PLUMBING + DEFINES_F, '#| code-fold: true\n#| code-summary: "Plot"\n1 + 1']),
    ('formula', [PLUMBING + DEFINES_ONE], [f'#| exports\n{DEFINES_ONE}']),
    ('formula', [f'#| export\n# {ONE}\n{DEFINES_F}'], [f'#| hide\nassert 1 == 1  # {ONE}']),
    ('width', ['#' + 'x'*88], ['#| label: ' + 'x'*200 + '\n#' + 'x'*87]),
    ('width', ['#| hide\n#' + 'x'*100], ['#| hide\n#' + 'x'*99]),
    ('size', [LINES*7, LINES*7, LINES], [LINES*6, LINES*6, LINES*8, '#| hide\n' + LINES*50]),
    ('size', ['y = 1', 'z = 1', LINES*31], ['y = 1', 'z = 1', LONG_NET]),
    ('private', ['from diffusion_scratch.two import _f'], ['from diffusion_scratch.two import f'])])
def test_reading_of_chapters(tmp_path, rule, broken, kept):
    assert [p.rule for p in read_page(tmp_path, *broken, rule=rule)] == [rule]
    assert read_page(tmp_path, *kept, rule=rule) == []

@pytest.mark.parametrize('options, found', [('#| export\n', 1), ('#| exports\n', 0)])
def test_reading_follows_imports_between_chapters(tmp_path, options, found):
    "What another chapter hides is found, though a module between has only imported it"
    notebook(tmp_path/'nbs'/'02_two.ipynb', '#| default_exp two', '#| export\nfrom .three import f')
    notebook(tmp_path/'nbs'/'03_three.ipynb', '#| default_exp three', options + DEFINES_F)
    problems = read_page(tmp_path, 'from diffusion_scratch.two import f as g', 'g()', rule='taught')
    assert len(problems) == found
    assert all('hidden in nbs/03_three.ipynb, cell 2' in p.text for p in problems)

@pytest.mark.parametrize('rule, broken, kept', [
    ('private', 'from .b import _f', 'from .b import f\nfrom . import __version__'),
    ('private', 'from . import b\nb._f()', 'import numpy as b\nb._f()\nself._f()'),
    ('private', 'import diffusion_scratch.b as b\nmonkeypatch.setattr(b, "_f", 1)',
     'from diffusion_scratch.b import Frame\nFrame(1)._replace(x=1)\nFrame._fields'),
    ('width', 'x = 1  #' + ' '*93, '# %% ../nbs/' + 'x'*100)])
@pytest.mark.parametrize('folder', ['diffusion_scratch', 'tests', 'benchmarks'])
def test_reading_of_files(tmp_path, folder, rule, broken, kept):
    [p] = read_page(tmp_path, 'x = 1', **{folder: broken})
    assert (p.rule, p.file) == (rule, f'{folder}/a.py')
    assert read_page(tmp_path, 'x = 1', **{folder: kept}) == []

def test_reading_as_a_command(tmp_path):
    "It fails and says where, may look at one chapter alone, and prints how dense the code is"
    def run(*args):
        command = [sys.executable, ROOT/'tools'/'reading.py', '--root', tmp_path, *args]
        return subprocess.run(command, capture_output=True, text=True)
    read_page(tmp_path, '#' + 'x'*88, diffusion_scratch='x = 1\n')
    out = run()
    assert out.returncode == 1 == run('01').returncode and run('02').returncode == 0
    assert 'nbs/01_one.ipynb, cell 2, line 1: 89 characters, 88 allowed [width]' in out.stdout
    rows = [line.split()[:3] for line in run('--table', 'a').stdout.splitlines()[1:]]
    assert rows == [['a', '1', '5.0'], ['chosen', '1', '5.0'], ['all', '1', '5.0']]

def test_trainings_take_a_function_with_what_it_uses(tmp_path):
    "And another comment is the same code; another definition is not, and two of them are refused"
    def taken(*cells):
        notebook(tmp_path/'01_one.ipynb', 'import math', *cells)
        return trainings.program(tmp_path/'01_one.ipynb', 'run')
    cells = 'n, unused = 3, 4\nother = 5', '@cache\ndef half(x): return x / n', 'y = half(1)', (
        'def run():\n    n = 2\n    return [half(math.pi)]')
    imports, code = taken(*cells)
    assert imports == 'import math' and code == '\n'.join(['n, unused = 3, 4', cells[1], cells[3]])
    same, changed = (trainings.code_hash(taken(first, *cells[1:])[1])
                     for first in ('n, unused = 3, 4  # three', 'n, unused = 2, 4'))
    assert same == trainings.code_hash(code) != changed
    with pytest.raises(SystemExit, match="defined twice: .'n'"): taken(*cells, 'n = 7')

# ---------------------------------------------------------------- the site around the text

def test_a_style_sheet_keeps_what_a_page_can_use():
    sheet = '''/* a } in a comment */
.used, .not-there > a { color : red; }
.gone { background: url("data:image/svg+xml;{}") }
.button:is([class~="a,b" i], .x):hover{ margin : 0 auto }
@media (min-width: 10px) { .gone { top: 0 } #here { content: "} ;" ; } }
@media print { .gone { top: 0 } }
@font-face { font-family: F; src: url(fonts/f.woff2) format("woff2") }
'''
    assert stylesheet.purged(sheet, {'used', 'here', 'button'}) == (
        '.used{color:red}.button:is([class~="a,b" i],.x):hover{margin:0 auto}'
        '@media (min-width:10px){#here{content:"} ;"}}'
        '@font-face{font-family:F;src:url(fonts/f.woff2) format("woff2")}')

def test_style_sheets_are_joined(tmp_path):
    "In the order of the pages' links, with addresses that still lead to the same file"
    (tmp_path/'site_libs').mkdir(); (tmp_path/'assets').mkdir()
    (tmp_path/'a.css').write_text('.a{color:red}.b{color:blue}')
    (tmp_path/'assets'/'b.css').write_text('.made{background:url(fonts/x.woff2)}')
    link = '<link rel="stylesheet" href="{}">'
    (tmp_path/'one.html').write_text(f'<head>{link.format("a.css")}{link.format("assets/b.css")}'
                                     '</head><p class="a">')
    (tmp_path/'assets'/'two.html').write_text(link.format('../a.css'))
    (tmp_path/'x.js').write_text('e.className = "made"')
    stylesheet.join(tmp_path)
    joined = (tmp_path/stylesheet.NAME).read_text()
    assert joined == '.a{color:red}.made{background:url(../assets/fonts/x.woff2)}'
    assert (tmp_path/'one.html').read_text() == (
        f'<head>{link.format("site_libs/site.css")}</head><p class="a">')
    assert (tmp_path/'assets'/'two.html').read_text() == link.format('../site_libs/site.css')
    assert not (tmp_path/'a.css').exists()

@pytest.mark.parametrize('size', [1, 40, 10**6])
def test_a_page_in_pieces_has_the_same_text_and_headings_stand_apart(size, monkeypatch):
    monkeypatch.setattr(pieces, 'SIZE', size)
    text = ('<header><h1>T</h1></header><p>one<br>two</p> <img src="a"><section id="s"><h2>A</h2>'
            '<div><p>x</p><div></div></div>&amp; <p>y</p><section><h3>B</h3>z</section></section>')
    page = f'<body><main id="m">\n{text}</main><footer></footer>'
    made = pieces.divide(page)
    assert made.count('<div class="piece shown">') == made.count('class="piece') > 0
    monkeypatch.setattr(pieces, 'IN_SIGHT', -1)
    made = pieces.divide(page)
    assert re.sub(r'<div class="piece">', '', made).replace('</div>', '') == page.replace(
        '</div>', '')
    assert made.count('</div>') == page.count('</div>') + made.count('<div class="piece">')
    open_divs, found = [], set()  # whether a heading lies within a piece
    for tag, piece in re.findall(r'<(/?div|h\d)\b( class="piece")?', made):
        if tag == 'div': open_divs.append(bool(piece))
        elif tag == '/div': open_divs.pop()
        else: found.add(any(open_divs))
    assert found == {False}

def test_every_page_has_its_address_and_its_source(tmp_path):
    (tmp_path/'site_libs').mkdir()
    for name in ('index', 'one', '404'):
        (tmp_path/f'{name}.html').write_text(
            '<head><title>T</title><link rel="stylesheet" href="s.css">'
            '<meta name="smalldocs:offset" content="./"><script src="x.js"></script></head>'
            '<main><p>text</p></main><div class="toc-actions"></div>'
            '<div class="nav-footer-center"></div>')
    (tmp_path/'s.css').touch()
    site, code = 'https://b.org/b', 'github.com/b/b'
    book = {'title': 'B', 'site-url': site, 'repo-url': f'https://{code}', 'repo-branch': 'main',
            'repo-subdir': 'nbs'}
    furniture.furnish(tmp_path, book, ['index.ipynb', '01_one.ipynb'])
    one, lost = ((tmp_path/f).read_text() for f in ('one.html', '404.html'))
    assert f'<link rel="canonical" href="{site}/one.html">' in one
    assert '<script src="x.js" defer></script>' in one
    for at in (f'{code}/edit', f'{code}/blob', 'colab.research.google.com/github/b/b/blob'):
        # beside the text, and below it
        assert one.count(f'href="https://{at}/main/nbs/01_one.ipynb"') == 2
    assert 'canonical' not in lost and 'noindex' in lost and 'colab' not in lost
    listed = re.findall('<loc>(.*)</loc>', (tmp_path/'sitemap.xml').read_text())
    assert listed == [f'{site}/', f'{site}/one.html']
    assert f'{site}/sitemap.xml' in (tmp_path/'robots.txt').read_text()

@pytest.mark.skipif(not shutil.which('node'), reason='KaTeX runs in node')
def test_formulas_are_rendered(tmp_path):
    "Both kinds, with MathML and the equation's number; one that is wrong is named and left"
    assets = ROOT/'nbs'/'assets'
    if not (assets/'katex'/'katex.min.js').exists(): pytest.skip('KaTeX has not been fetched')
    shutil.copytree(assets/'katex', tmp_path/'assets'/'katex')
    (tmp_path/'a.html').write_text(
        '<script src="assets/katex/katex.min.js" defer></script>'
        r'<span class="math inline">\(a &lt; b\)</span>'
        r'<span class="math display">\[x \tag{1.2}\]</span>'
        r'<span class="math inline">\(\mathrm{signal}_t\)</span>'
        r'<span class="math inline">\(\wrong\)</span>')
    [error] = katex.prerender(tmp_path)
    page = (tmp_path/'a.html').read_text()
    assert error.startswith('a.html: ') and r'\wrong' in error
    assert '<script' not in page and page.count('<math') == 3 and r'>\wrong</span>' in page
    assert 'katex-display' in page and '1.2' in page and '<mo>&lt;</mo>' in page
    assert '<mi mathvariant="normal">signal</mi>' in page  # read as a word, not letter by letter
    assert not (tmp_path/'assets'/'katex'/'katex.min.js').exists()
