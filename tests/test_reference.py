"The API reference, the page of the ledger and the search say and find what the code has"
import ast, functools, gzip, importlib, inspect, json, re, shutil
import pytest
from conftest import ROOT
import api, ledger, search

PACKAGE = 'diffusion_scratch'

@functools.cache
def library(): return api.Library(ROOT)

def on_the_page(code: str) -> str:
    "The arguments of a signature, every default as 0, without annotations and self"
    body = re.sub(r'(?s).*?(?=(async )?def )', '', code, count=1) + ': ...'
    args = ast.parse(inspect.cleandoc(body)).body[0].args
    for node in ast.walk(args):
        if isinstance(node, ast.arg): node.annotation = None
    args.defaults = [ast.Constant(0) for _ in args.defaults]
    args.kw_defaults = [d and ast.Constant(0) for d in args.kw_defaults]
    return re.sub(r'^(self|cls)(, |$)', '', ast.unparse(args))

def in_python(function) -> str:
    plain = [p.replace(annotation=p.empty, default=p.empty if p.default is p.empty else 0)
             for p in inspect.signature(function).parameters.values()]
    return re.sub(r'^(self|cls)(, |$)', '', str(inspect.Signature(plain))[1:-1])

def test_every_public_name_has_its_signature():
    "As Python itself sees the package: names, order, those that must be named, defaults"
    seen = {}
    for name, entries in library().entries.items():
        module = importlib.import_module(f'{PACKAGE}.{name}')
        assert {e.name for e in entries} == set(module.__all__)
        for e in (e for top in entries for e in (top, *top.methods)):
            owner = getattr(module, e.owner) if e.owner else module
            function = inspect.getattr_static(owner, e.name.split('.')[-1], None)
            function = inspect.unwrap(getattr(function, '__func__', function))
            if isinstance(e.node, ast.ClassDef):
                function = vars(getattr(module, e.name)).get('__init__')
                if 'def __init__' not in e.code: continue
            if not inspect.isfunction(function): continue
            seen[e.name] = on_the_page(e.code)
            assert seen[e.name] == in_python(function), e.name
    assert len(seen) > 300
    assert sum('*, ' in arguments for arguments in seen.values()) > 15

def test_an_entry_says_what_the_source_says():
    code = lambda name: library().all[name].code
    assert 'step: Solver=ancestral(),' in code('sample') and '    *,\n' in code('sample')
    assert 'multipliers: tuple=(1,2,2,2),' in code('UNet')
    assert code('ancestral').endswith('    variance: Callable = fixed_small')
    assert code('Schedule.from_tables').startswith('@classmethod\ndef from_tables(')
    assert '1e-4' in code('linear_betas')  # and not 0.0001
    entry = library().all['Schedule.at']
    assert dict(entry.parameters)['t'] == 'timesteps (B,) or one for all, 0..T'
    assert ('ValueError', 't = {extreme} is outside 1..{T} (0 is the data itself)') in entry.errors
    assert {'T', 's', 'return'} == {n for n, _ in library().all['cosine_betas'].parameters}
    assert library().labels(library().all['cosine_betas']) == ['eq-' + 'cosine']

@functools.cache
def lines(path): return (ROOT/path).read_text(encoding='utf-8').splitlines()

@functools.cache
def places(chapter: str) -> set[str]:
    "The names that its cells print"
    cells = [s for _, s in ledger.cells(ROOT/'nbs'/chapter)]
    return {n.lower() for s in cells if s.startswith('#|') for n in api.names_printed(s)}

def test_entries_link_to_their_line_and_to_their_chapter():
    for e in library().all.values():
        text = library().whence(e)
        path, line = re.search(rf'\[Source\]\({library().source("")}(\S+)#L(\d+)\)', text).groups()
        assert re.search(rf'\b{e.name.split(".")[-1]}\b', lines(path)[int(line) - 1])
        for chapter, place in re.findall(r'\]\((\d\w+\.ipynb)(?:#(\w+))?\)', text):
            assert not place or place in places(chapter)

def test_no_link_between_the_pages_is_dead(tmp_path):
    library().write(tmp_path)
    pages = {f.name: '\n'.join(s for _, s in ledger.cells(f)) for f in tmp_path.glob('*.ipynb')}
    assert len(pages) == len(library().modules) + 1
    places = {name: set(re.findall(r'\{#([\w.]+)', text)) for name, text in pages.items()}
    links = [link for text in pages.values()
             for link in re.findall(r'\]\((api\w*\.ipynb)#([\w.]+)\)', library().link_prose(text))]
    assert len(links) > 500 and all(place in places[file] for file, place in links)
    assert [file for file, _ in links if file == 'api_sampling.ipynb']

def test_quarto_and_smalldocs_get_all_pages(tmp_path):
    "Quarto's parts hold no parts; both list each page once"
    shutil.copy(ROOT/'_quarto.yml', tmp_path/'_quarto.yml')
    library().write_quarto(tmp_path/'_quarto.yml')
    chapters = api.quarto_of(tmp_path)['book']['chapters']
    assert all(isinstance(f, str) for c in chapters if isinstance(c, dict) for f in c['chapters'])
    nested = library().in_book(api.quarto_of(ROOT)['book']['chapters'])
    pages = [api.INDEX, *(api.file_of(m.name) for m in library().modules)]
    for found in map(ledger.chapters, (chapters, nested)):
        assert len(set(found)) == len(found) and set(pages) <= set(found)

def test_names_in_prose_link_to_their_entries():
    link = library().link_prose
    site = library().settings['doc_host'] + library().settings['doc_baseurl']
    assert link('`sample` and `sample()`') == (
        '[`sample`](api_sampling.ipynb#sample) and [`sample()`](api_sampling.ipynb#sample)')
    assert link(f'[`Schedule.times`]({site}/schedule.html#schedule.times)') == (
        '[`Schedule.times`](api_schedule.ipynb#Schedule.times)')
    for text in ('[`sample`](07_sampling.ipynb)', '`no_such_name`', '``sample``', '## `sample`',
                 '```python\n`sample`\n```'):
        assert link(text) == text
    assert link(f'## [`sample`]({site}/sampling.html#sample)') == '## `sample`'

def test_names_in_code_link_to_their_entries():
    "What is imported, used or defined; not what the block itself assigns, nor strings"
    page = '<code class="sourceCode python">{}</code>'.format
    names = dict(sample='api_sampling.html#sample', draws='api_sampling.html#draws')
    a = '<a href="api_sampling.html#sample">sample</a>'
    code = 'x = <span class="fu">sample</span>(&quot;sample&quot;)\ndraws = <b>sample</b> # sample'
    assert api.link_code(page(code), names) == page(
        f'x = <span class="fu">{a}</span>(&quot;sample&quot;)\ndraws = <b>{a}</b> # sample')
    assert api.link_code(page('from x import é, sample'), names) == page(f'from x import é, {a}')
    assert api.link_code(page('def sample(a) -&gt; int'), names) == page(f'def {a}(a) -&gt; int')
    assert api.link_code(page('not python: sample('), names) == page('not python: sample(')

def test_the_ledger_shows_the_equations_and_links_to_their_tests():
    equations, of_tests = ledger.read(ROOT)[0], ledger.test_lines(ROOT)
    e = next(e for e in equations if e.label == 'eq-' + 'cosine')
    assert r'\cos' in e.latex and '$$' not in e.latex
    url = lambda path, line: f'{path}:{line}'
    chapter, cells = next(iter(ledger.cells_of(e.tests).items()))
    text = ledger.entry(e, {chapter: {cells[0]}}, url, of_tests)
    assert e.latex in text and f'({chapter}.ipynb#check-{cells[0]})' in text
    for path, line in re.findall(r'\((tests/\w+\.py):(\d+)\)', text):
        assert re.match(r'def test_|class Test', lines(path)[int(line) - 1])
    page = '\n'.join(ledger.page_cells(equations, {e.chapter: '1 A'}, {}, url, of_tests))
    assert page.count('.ledger-entry') == sum(x.chapter == e.chapter for x in equations)

# ---------------------------------------------------------------- search
def test_names_of_a_term():
    assert search.names_of('variational lower bound (ELBO)', 'evidence lower bound; VLB') == [
        'variational lower bound', 'ELBO', 'evidence lower bound', 'VLB']
    assert search.names_of('Frechet distance', 'Fréchet inception distance (FID) in features of '
                           'Inception; the $W_2$ distance (EDM)')[:3] == [
        'Frechet distance', 'Fréchet inception distance', 'FID']
    assert 'EDM' not in search.names_of('a', 'b (EDM); $x$; `C` (diffusers, where c)')

@functools.cache
def index(): return search.index(library())

def test_the_index_has_what_it_must_in_plain_text_and_is_small():
    text = json.dumps(index(), ensure_ascii=False, separators=(',', ':')).encode()
    assert len(gzip.compress(text)) < 400_000
    documents = index()['documents']
    hrefs = [d['href'] for d in documents]
    assert len(set(hrefs)) == len(hrefs)
    assert {api.on_site(e.href) for e in library().all.values()} <= set(hrefs)
    assert {'schedule.html#sec-notation', 'data.html#a-folder-of-your-own-images'} <= set(hrefs)
    markup = r'\$|\]\(|\{#|:::|\*\*|\[@|```|\\hat'
    assert not [d for d in documents if re.search(markup, d['text'])]

def test_the_search_finds(tmp_path):
    minisearch = ROOT/'nbs'/'assets'/'minisearch'
    if not shutil.which('node'): pytest.skip('node is not installed')
    if not (minisearch/'index.js').exists(): pytest.skip('the site was not built: no MiniSearch')
    search.write(index(), tmp_path)
    queries = (*search.QUERIES, 'sample', 'guidance_scale', 'DDIMSchedul', 'xyzzyq')
    found = search.try_queries(tmp_path, minisearch, queries)
    assert search.missed({q: found[q] for q in search.QUERIES}) == []
    assert found['sample'][0] == 'api_sampling.html#sample'
    assert any(h.startswith('guidance.html') for h in found['guidance_scale'][:3])
    assert 'glossary.html#term-ddim' in found['DDIMSchedul'][:3]
    assert found['xyzzyq'] == []
