"What a browser makes of a page: formulas, punctuation, pieces"
import json, shutil, subprocess, sys
from html import escape
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
import katex, pieces, screen  # noqa: E402
from helpers_browser import browser_or_skip, in_browser  # noqa: E402

FORMULAS = [  # each part of TeX that the book uses, alone and within each other
    r'x_t^2 + \bar\alpha_{t-1}\,\hat\epsilon', r'\sqrt{1 - \beta_t}\;x_{t-1}', r'\sqrt[3]{x_i}',
    r'\frac{a_1^2}{\sqrt{b} + \tfrac12}', r'\sum_{i=1}^n \prod_i x_i \int_0^1 f',
    r'\widehat{MMD}^2',
    r'\left(\frac{a}{1 + \frac bc}\right)^2', r'\Big[\big\lVert x \big\rVert^2\Big]',
    r'\underbrace{x + y}_{L_t}', r'\begin{cases} a & b > 0 \\ c_t^2 & \text{else} \end{cases}',
    r'\begin{aligned} a &= \frac{b}{c} && \text{why} \\ &\approx \sqrt d \end{aligned} \tag{1.2}',
    r'\mathbb E\,\mathcal N(\mu, \sigma^2) \mid \mathrm{SNR}_t', r'\lfloor x \rfloor \mod 2^{32}',
    r'\begin{pmatrix} a & b \\ c & d \end{pmatrix}^{\!\top}', r'\overline{x + y}\;\tilde x\,\dot x',
    r"\text{Cramér's V, naïve}_{\hat 1}"]
SIGNS = (r'As we see (\(x_t\)), the sum \(a\), or \(\sqrt{b}\); see also \(x\)-axis and '
         r'<span id="long">\(a_1 + a_2 + a_3 = b_1 + b_2 + b_3 = c_1 + c_2 + c_3\)</span>'
         r' then \(a = b + c + d + e = f\): end.')

def inline(text: str) -> str:
    "As the pages have it before `prerender`"
    return text.replace(r'\(', r'<span class="math inline">\(').replace(r'\)', r'\)</span>')

@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    "What happened in headless Chromium"
    driver, chromium = browser_or_skip()
    package = katex.npm_files('katex', katex.VERSION, katex.FILES)
    if not package: pytest.skip('npm package katex is not at hand')
    folder = tmp_path_factory.mktemp('site')
    shutil.copytree(package/'dist', folder/'theirs')
    head = '<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="{}/katex.min.css">'
    render = ('const katex = require(process.argv[1]); console.log(JSON.stringify(JSON.parse('
              'process.argv[2]).map(f => katex.renderToString(f, {displayMode: true}))))')
    node = ['node', '-e', render, folder/'theirs/katex.min.js', json.dumps(FORMULAS)]
    made = subprocess.run(node, capture_output=True, text=True, check=True).stdout
    theirs = head.format('theirs') + ''.join(f'<p>{f}</p>' for f in json.loads(made))
    (folder/'theirs.html').write_text(theirs)
    shutil.copytree(package/'dist', folder/'assets/katex')
    ours = head.format('assets/katex')
    for f in FORMULAS: ours += rf'<p><span class="math display">\[{escape(f)}\]</span></p>'
    (folder/'ours.html').write_text(f'<body>{ours}</body>')
    signs = f'{head.format("assets/katex")}<body><p>{inline(SIGNS)}</p></body>'
    (folder/'signs.html').write_text(signs)
    assert katex.prerender(folder) == []
    text = ''.join(f'<section><h2>{i}</h2><p>{"words " * 2500}</p></section>' for i in range(20))
    text += '<h2 id="last">Last</h2><p>a needle</p><p style="height:90vh"></p>'
    page = f'<a id="to-last" href="#last">to the end</a><main>{text}</main>'
    css = [line for line in (ROOT/'nbs/styles.css').read_text().splitlines() if '.piece' in line]
    (folder/'pieces.html').write_text(
        f'<!doctype html><style>{"".join(css)}</style>{pieces.divide(page)}'
        f'<script>{(ROOT/"tools/page.js").read_text()}</script>')
    return in_browser('page_browser.mjs', driver, chromium, folder)

def test_formulas_look_as_katex_draws_them(browser):
    "Each mark within 0.6 pixels, at 19.4 pixels to the em"
    assert len(browser['theirs']) == len(browser['ours']) == len(FORMULAS)
    for formula, theirs, ours in zip(FORMULAS, browser['theirs'], browser['ours']):
        assert [m[0] for m in theirs] == [m[0] for m in ours], formula
        gaps = [abs(a - b) for one, other in zip(theirs, ours) for a, b in zip(one[1:], other[1:])]
        assert max(gaps) <= 0.6, formula

def test_punctuation_stands_on_the_line_of_its_formula(browser):
    assert browser['signs']['kept'] == 5 and browser['signs']['apart'] == []
    assert browser['signs']['lines'] > 2   # a long formula still breaks

def test_a_page_is_laid_out_piece_by_piece(browser):
    rest = browser['atRest']
    assert browser['withoutScript'] < rest['all'] == rest['shown'] and rest['skipped'] == 0
    assert browser['text']                 # the browser's search finds what is not laid out

@pytest.mark.parametrize('arrival', ['atHash', 'afterLink'])
def test_a_link_leads_to_its_place(browser, arrival):
    assert browser[arrival]['skipped'] == 0 and abs(browser[arrival]['top']) < 30

def test_lines_of_a_phone_are_without_the_space_between_rows():
    tex = r'\begin{aligned} a &= b \\[6pt] [c] &= d \end{aligned}'
    html = screen.equations(rf'<span class="math display">\[{escape(tex)}\]</span>')
    narrow = html[html.index('narrow-math'):]
    assert '6pt' not in narrow and '[c] = d' in narrow

@pytest.mark.parametrize('text, focusable', [('x' * 30, False), ('x' * 60, True),
                                             ('x\n' * 30, True)])
def test_code_that_may_scroll_takes_the_focus(text, focusable):
    assert ('tabindex' in screen.code(f'<pre><code>{text}</code></pre>')) is focusable

def test_neighbours_of_one_colour_are_one_element():
    html = '<pre><span class="st">a</span> <span class="ss">b</span><span class="op">+</span></pre>'
    assert screen.code(html) == '<pre><span class="st">a b</span>+</pre>'
