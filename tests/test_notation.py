"The notation table has each symbol of the book once, and its check notices what is missing"
import json, pytest
from conftest import ROOT
import notation

def test_each_symbol_of_the_book_stands_in_the_table_once():
    table = notation.read_table(ROOT)
    assert table, 'no notation table was found'
    double, found = notation.check(table, notation.chapters(ROOT))
    wrong = [f'the table has two rows for {symbol}' for symbol in double]
    wrong += sorted({f'{f.chapter}: {f.rule}: {f.symbol}' for f in found})
    assert not wrong, '\n'.join(['run python tools/notation.py --where', *wrong])

@pytest.mark.parametrize('formula, letters', [
    (r'x_t = \sqrt{\bar\alpha_t}\,x_0', {'x', 't', r'\alpha'}),
    (r'\mathbb E[\hat x_0] \sim \mathcal{N}(\mu, \sigma^2)',
     {r'\mathbb E', r'\mathcal N', 'x', r'\mu', r'\sigma'}),
    (r'\mathrm{signal}_s \operatorname{Var} x^\top',
     {r'\mathrm{signal}', r'\mathrm{Var}', 's', 'x'}),
    (r'\begin{aligned} a &= b && \text{rule of $\nu$ and words} \\[4pt] &\le c \end{aligned}',
     {'a', 'b', 'c', r'\nu'}),
    (r'\begin{array}{ll} a & b \end{array} \tag{3x}', {'a', 'b'}),
    (r'\tfrac12 \textstyle\sum_{i=1}^{N} \Big(\frac{r_i}{\rho}\Big)', {'i', 'N', 'r', r'\rho'}),
    (r'\hat{\bar\alpha}, \widehat{\mathbb E}', {r'\alpha', r'\mathbb E'}),
    (r"x' \in \mathbb R^{C \times H}, \varepsilon \ne \epsilon",
     {'x', r'\mathbb R', 'C', 'H', r'\varepsilon', r'\epsilon'}),
    (r'\underbrace{q(y)}_{\text{noise}} \operatorname*{arg\,min}',
     {'q', 'y', r'\mathrm{arg min}'})])
def test_symbols_of_a_formula(formula, letters):
    assert set(notation.symbols(formula)) == letters

def test_formulas_are_found_and_code_is_not():
    text = 'With $a_t$ and\n$$\nb = c\n$$ {#eq-' 'x}\n`$HOME`, costs \\$5.\n```\nx = "$z$"\n```\n'
    assert [f.strip() for f in notation.formulas_of(text)] == ['a_t', 'b = c']
    code = '#| fig-cap: "Where $\\\\mu$ is"\nplt.plot(label=r"$\\bar\\alpha_t$"); cost = "$5 or $6"'
    assert list(notation.formulas_of_code(code)) == [r'\mu', r'\bar\alpha_t']

TABLE = r'''
| symbol | meaning |
| --- | --- |
| $t$, $s$ | timesteps, $0 \le s < t \le T$ |
| $T$ | their number |
| $\alpha_t = 1 - \beta_t$ | kept |
| $\bar\alpha_t = \alpha_1 \cdots \alpha_t$, $\hat x_0$ | kept of all; a prediction |
| $\mathcal N(\mu, \sigma^2)$, $p_\theta(x_0 \mid x_t)$ | a Gaussian \| the model |

| free letters | |
| --- | --- |
| $a, b, G$ | for local use |
'''

def test_rows_of_the_table():
    "Indices, arguments and what follows an equals sign are no symbols of the table"
    assert [[e.symbol for e in row] for row in notation.rows(TABLE)] == [
        ['t', 's'], ['T'], [r'\alpha'], [r'\bar \alpha', r'\hat x'], [r'\mathcal N', 'p'],
        ['a', 'b', 'G']]

@pytest.mark.parametrize('row, double', [
    ('', []), (r'| $\alpha_{t-1}$ | an angle |', [r'\alpha']), ('| $G$ | gradient |', ['G']),
    (r'| $\alpha_s, t_i$ | more |', [r'\alpha']), (r'| $\alpha(u)$, $\alpha_T$, $G^\top$ | |', []),
    (r'| $\pi$ | number |' + '\n| $\\pi_k$ | |', []),
    (r'| $\pi_i$ | number |' + '\n| $\\pi_{k}$ | |', [r'\pi'])])
def test_a_symbol_has_one_row(row, double):
    assert notation.twice(notation.rows(TABLE + row)) == double

@pytest.mark.parametrize('formula, rule', [
    (r'\bar\alpha_T', None), (r"\hat\alpha'_s", None), (r'\mathrm{SNR}(t)', None),
    (r'\beta_t', 'unknown'), (r'\mathbb E', 'unknown'), (r'\text{signal}_t', 'banned'),
    (r'b_{\text{noise}}', None), ('s_t', 'banned'), ('a s_{t}', 'banned')])
def test_what_a_chapter_may_write(tmp_path, formula, rule):
    nb = dict(cells=[dict(cell_type='markdown', source=f'so ${formula}$')])
    (tmp_path/'01_one.ipynb').write_text(json.dumps(nb))
    _, found = notation.check(notation.rows(TABLE), [tmp_path/'01_one.ipynb'])
    assert [f.rule for f in found] == ([rule] if rule else [])
