"""The scripts of nbs/explore, run by node, compute what the library computes, or SciPy where they
have a method of their own. Tolerance 1e-6, unless a comment says why another"""
import json, math, re, shutil, subprocess
from base64 import b64decode
from pathlib import Path
import numpy as np, pytest, torch
from conftest import even_schedule
from ipywidgets import IntSlider
from scipy import integrate, stats
from diffusion_scratch import solvers
from diffusion_scratch.data import mnist_mini
from diffusion_scratch.guidance import guided
from diffusion_scratch.noising import q_posterior, q_sample, transition
from diffusion_scratch.oracle import MixtureOracle
from diffusion_scratch.pictures import controls
from diffusion_scratch.sampling import ancestral, sample
from diffusion_scratch.schedule import Level, Schedule
from diffusion_scratch.schedule import cosine_betas, linear_betas, sigmoid_betas

NBS = Path(__file__).resolve().parent.parent/'nbs'
SCRIPTS = {f.stem for f in (NBS/'explore').glob('*.js')} - {'explore', 'diffusion'}
MAKERS = dict(linear=linear_betas, cosine=cosine_betas, sigmoid=sigmoid_betas)
close = lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)

def run(script: str, code: str, given=None):
    "What the JavaScript expression `code` gives; `m` is the module, `given` is JSON"
    if not shutil.which('node'): pytest.skip('node runs the scripts')
    file = (NBS/'explore'/f'{script}.js').as_uri()
    program = (f'import * as m from {json.dumps(file)}; const given = {json.dumps(given)};'
               f'console.log(JSON.stringify({code}))')
    command = ['node', '--input-type=module', '-e', program]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(made.stdout)

def number(x) -> torch.Tensor: return torch.tensor([[float(x)]], dtype=torch.float64)

def straight(n: int) -> Schedule: return even_schedule(n, 18, -10)  # the n levels of solvers.js

def modes(width: float) -> MixtureOracle:
    return MixtureOracle(torch.tensor([[-0.8], [0.5]]).double(), width,
                         torch.tensor([0.4, 0.6]).double())

def outputs() -> dict[str, str]:
    "Script -> the HTML that a chapter stores for it"
    found = {}
    for file in sorted(NBS.glob('*.ipynb')):
        for cell in json.loads(file.read_text(encoding='utf-8'))['cells']:
            for output in cell.get('outputs', []):
                html = ''.join(output.get('data', {}).get('text/html', ''))
                if named := re.search(r'data-explore="(\w+)"', html): found[named[1]] = html
    return found

# ---------------------------------------------------------------- formulas
@pytest.mark.parametrize('kind, T, start, end', [
    *((kind, T, 1e-4, 0.02) for kind in MAKERS for T in (1, 2, 10, 1000)),
    ('linear', 50, 1e-3, 0.4)])
def test_schedule(kind, T, start, end):
    made = run('schedule', 'm.schedule(given)', dict(kind=kind, T=T, start=start, end=end))
    ours = Schedule(linear_betas(T, start, end) if kind == 'linear' else MAKERS[kind](T))
    np.testing.assert_allclose(made['betas'], ours.betas, rtol=1e-9)
    for name, table in dict(alphaBar=ours.alpha_bar, signal=ours.signal, noise=ours.noise).items():
        close([level[name] for level in made['levels']], table)
    log_snr = [level['logSnr'] for level in made['levels'][1:]]
    close(log_snr, (ours.alpha_bar / (1 - ours.alpha_bar)).log()[1:])

@pytest.mark.parametrize('T', [10, 1000])
def test_where_the_signal_is_lost(T):
    given = dict(kind='linear', T=T, start=1e-4, end=0.02)
    first = run('schedule', 'm.lost(m.schedule(given).levels, -2.9)', given)
    assert first == (Schedule(linear_betas(T)).alpha_bar > 1 / (1 + math.exp(2.9))).sum()

@pytest.mark.parametrize('kind', MAKERS)
def test_noising_of_the_embedded_digit(kind):
    html = outputs()['noising']
    data = dict(re.findall(r'data-(x0|eps)="([^"]+)"', html))
    x0 = torch.frombuffer(bytearray(b64decode(data['x0'])), dtype=torch.uint8) / 127.5 - 1
    eps = torch.frombuffer(bytearray(b64decode(data['eps'])), dtype=torch.float32)
    digit = mnist_mini()[1500:1501][0].flatten()
    close(x0, digit)
    assert abs(eps.mean()) < 4 / 28 and abs(eps.std() - 1) < 4 / 28 / 2**0.5  # 4 standard errors
    for t in (0, 1, 400, 1000):
        made = run('noising', 'm.parts(given, m.digit(given.x0), m.floats(given.eps))',
                   dict(kind=kind, t=t, **data))
        level = Schedule(MAKERS[kind]()).at(t, digit[None])
        close(made['x_t'], q_sample(digit[None], level, eps[None])[0])
        close(np.add(made['signal'], made['noise']), made['x_t'])

@pytest.mark.parametrize('t, s', [(20, 10), (600, 500), (990, 10), (990, 980)])
def test_posterior(t, s):
    made = run('posterior', 'm.gaussians(given)', dict(t=t, s=s, x0=0.7, x_t=-1.2))
    schedule = Schedule(cosine_betas())
    at_t, at_s = (schedule.at(i, number(0)) for i in (t, s))
    scale, var = transition(at_t, at_s)
    expected = dict(jump=(at_s.signal * 0.7, at_s.noise), step=(-1.2 / scale, var.sqrt() / scale),
                    posterior=q_posterior(number(0.7), number(-1.2), at_t, at_s))
    for name, gaussian in expected.items():
        close([made[name]['mean'], made[name]['std']], [c.item() for c in gaussian])

@pytest.mark.parametrize('t, s, x_t', [(400, 100, 0.1), (400, 390, -2.), (1000, 700, 1.)])
def test_reverse_step(t, s, x_t):
    step = '(step => ({...step, kl: m.divergence(step), at: given.x.map(step.mixture)}))'
    x = np.linspace(-3, 3, 61)
    made = run('reverse', f'{step}(m.trueStep(given))', dict(t=t, s=s, x_t=x_t, x=x.tolist()))
    schedule, points = Schedule(linear_betas()), number(-1).new_tensor([[-1.], [1.]])
    at_t, at_s = (schedule.at(i, number(0)) for i in (t, s))
    close(made['r'], MixtureOracle(points).responsibilities(number(x_t), at_t)[0])
    scale, var = (c.item() for c in transition(at_t, at_s))
    def marginal(x, level):
        signal, noise = level.signal.item(), level.noise.item()
        return sum(stats.norm.pdf(x, signal * m, noise) for m in (-1, 1)) / 2
    def bayes(x):  # q(x_s | x_t) without any x0
        step = stats.norm.pdf(x_t, scale * x, math.sqrt(var))
        return step * marginal(x, at_s) / marginal(x_t, at_t)
    close(made['at'], bayes(x))
    close(made['apart'], 2 * (at_s.snr - at_t.snr).sqrt().item())
    mean, std = made['best']['mean'], made['best']['std']
    def moment(f): return integrate.quad(lambda x: f(x) * bayes(x), -9, 9, points=[mean])[0]
    close([mean, std], [moment(lambda x: x), math.sqrt(moment(lambda x: (x - mean)**2))])
    best = stats.norm(mean, std)
    close(made['kl'], moment(lambda x: np.log(bayes(x) / best.pdf(x)) if bayes(x) > 0 else 0.))

STEPS = dict(ddim=solvers.ddim(), dpm_solver_pp=solvers.dpm_solver_pp(), heun=solvers.heun())

@pytest.mark.parametrize('n, width', [(2, 0.06), (8, 0.25), (64, 1.)])
@pytest.mark.parametrize('name', STEPS)
def test_solvers(name, n, width):
    starts = torch.linspace(-2, 2, 17, dtype=torch.float64)[:, None]
    given = dict(name=name, n=n, width=width, starts=starts.flatten().tolist())
    code = 'given.starts.map(x => m.solve(given.name, given, x).frames.at(-1))'
    made = run('solvers', code, given)
    ours = sample(modes(width), straight(n), starts.shape, step=STEPS[name], x_T=starts,
                  progress=False)
    close(made, ours.flatten())

@pytest.mark.parametrize('eta', [0., 0.3, 1.])
def test_coefficients(eta):
    schedule = Schedule(cosine_betas(40))
    levels = 'm.levelsOf(m.cosineBetas(40)).reverse()'
    made = run('diffusion', f'm.ddim(given).coefficients({levels})', eta)
    t, s = (schedule.at(torch.arange(i, i - 40, -1), torch.zeros(40)) for i in (40, 39))
    table = solvers.ddim(eta).coefficients(t, s)
    for field, ours in table._asdict().items(): close([c[field] for c in made], ours)
    if eta == 1.: close([c['x_t'] for c in made], ancestral().coefficients(t, s).x_t)

@pytest.mark.parametrize('width', [0.06, 0.25, 1.])
def test_exact_flow_and_error(width):
    "Quantiles against SciPy's solution of the differential equation (eq-flow)"
    starts, oracle, schedule = np.linspace(-2, 2, 17), modes(width), straight(2)
    def slope(log_rho, bar_x):
        angle = torch.full((17, 1), math.exp(log_rho), dtype=torch.float64).atan()
        level = Level(torch.ones(17).long(), angle.cos(), angle.sin())
        x = torch.from_numpy(bar_x)[:, None] * level.signal
        return (math.exp(log_rho) * oracle(x, level).eps).numpy().ravel()
    signal, noise = schedule.signal[-1].item(), schedule.noise[-1].item()
    span = math.log(noise / signal), math.log(1e-8)
    options = dict(method='DOP853', rtol=1e-10, atol=1e-12)
    truth = integrate.solve_ivp(slope, span, starts / signal, **options).y[:, -1]
    given = dict(width=width, starts=starts.tolist())
    close(run('solvers', 'given.starts.map(x => m.exact(given.width, x))', given), truth)
    drawn = sample(oracle, straight(11), (17, 1), step=solvers.heun(), progress=False,
                   x_T=torch.from_numpy(starts)[:, None]).flatten().numpy()
    error = run('solvers', 'm.error("heun", {n: 11, width: given.width}, given.ends)',
                dict(width=width, ends=truth.tolist()))
    close(error, np.sqrt(np.mean((drawn - truth)**2)))

@pytest.mark.parametrize('w, std', [(-1., 0.75), (0., 0.3), (2., 0.75), (8., 1.2)])
def test_guidance(w, std):
    line = MixtureOracle(torch.tensor([[1.], [-1.]]).double(), std, labels=torch.tensor([0, 1]))
    x_T, schedule = torch.linspace(-4, 4, 9).double()[:, None], Schedule(cosine_betas(100))
    ours = sample(guided(line, torch.zeros(9).long(), w), schedule, (9, 1), step=solvers.ddim(),
                  x_T=x_T, progress=False)
    given = dict(w=w, std=std, x_T=x_T.flatten().tolist())
    close(run('guidance', 'given.x_T.map(x => m.guide(given, x))', given), ours.flatten())

@pytest.mark.parametrize('w, std', [(0., 0.3), (6., 0.3), (2., 0.75), (8., 1.2)])
def test_tilted_densities(w, std):
    "Compared with sums over the same grid; those of a smooth density are nearly exact"
    level = Schedule(cosine_betas(100)).at(60, torch.zeros(1))
    signal, noise = level.signal.item(), level.noise.item()
    x = np.linspace(-5, 7, 301)
    def tilt(signal, noise):
        at = np.hypot(std * signal, noise)
        right, left = stats.norm.logpdf(x, signal, at), stats.norm.logpdf(x, -signal, at)
        p = np.exp((1 + w) * right - w * np.logaddexp(right, left))
        return p / p.sum() / (x[1] - x[0])
    given = dict(w=w, std=std, level=dict(signal=signal, noise=noise))
    made = run('guidance', '[m.tilt(given, {signal: 1, noise: 0}), m.tilt(given, given.level), '
               'm.noised(m.tilt(given, {signal: 1, noise: 0}), given.level)]', given)
    kernel = stats.norm.pdf(x[:, None], signal * x, noise)
    for ours, theirs in zip(made, (tilt(1, 0), tilt(signal, noise),
                                   kernel @ tilt(1, 0) * (x[1] - x[0]))): close(ours, theirs)

def test_density_of_guided_samples():
    "Scale 0: the mass between two starts, moved by the flow, is a Gaussian of the class"
    made = run('guidance', 'm.samples({w: 0, std: 0.75})')
    # DDIM in 100 steps makes the class 1.3 % narrower
    assert abs(made['mean'] - 1) < 1e-3 and abs(made['std'] / 0.75 - 1) < 0.02
    peak = stats.norm.pdf(made['x'], made['mean'], made['std'])
    assert np.abs(made['y'] - peak).max() < 0.01 * peak.max()

def test_normal_distribution():
    x = np.linspace(-9, 9, 73)
    made = run('diffusion', 'given.map(m.ndtr)', x.tolist())
    np.testing.assert_allclose(made, stats.norm.cdf(x), atol=1e-14)

# ---------------------------------------------------------------- plots
def test_ticks_and_numbers():
    assert run('explore', 'm.ticks({min: 0, max: 1000}, 3)') == [0, 500, 1000]
    assert run('explore', 'm.ticks({min: 1e-6, max: 1, log: true}, 4)') == \
        pytest.approx([1e-6, 1e-4, 1e-2, 1])
    assert run('explore', 'm.ticks({min: -0.3, max: 0.3}, 4)') == [-0.2, 0, 0.2]
    values = [1000, -2.5, 0.00635123, 4.0358e-5, 1e-4, None]
    shown = run('explore', 'given.map(v => m.number(v ?? Infinity))', values)
    assert shown == ['1000', '−2.5', '0.00635', '4.04 · 10⁻⁵', '10⁻⁴', '∞']

@pytest.mark.parametrize('script', sorted(SCRIPTS))
def test_every_end_of_every_slider_can_be_drawn(script):
    "All numbers are finite, with each control at both ends and at its start"
    data = dict(half='-2.9')
    data |= dict(re.findall(r'data-(x0|eps)="([^"]+)"', outputs()[script]))
    code = """(() => {
      const ends = c => [c.value, ...(c.choices ?? c.values
        ? [(c.choices ?? c.values)[0], (c.choices ?? c.values).at(-1)] : [c.min, c.max])]
      let all = [{}]
      for (const [key, control] of Object.entries(m.page.controls))
        all = all.flatMap(one => ends(control).map(value => ({...one, [key]: value})))
      for (const chosen of Object.values(m.page.presets))
        all.push({...all[0], ...chosen})
      const wrong = values => {
        const {figures, state} = m.page.draw(values, given)
        const numbers = figures.flatMap(f => f.pixels ?? [f.x.min, f.x.max, f.y.min, f.y.max,
          ...f.lines.flatMap(l => [...l.x, ...l.y])])
        return !numbers.every(Number.isFinite) || /NaN|undefined|Infinity/.test(state.join(' '))
      }
      return [all.length, all.filter(wrong)]
    })()"""
    tried, wrong = run(script, code, data)
    assert tried > 9 and wrong == []

# ---------------------------------------------------------------- chapters
def test_every_script_has_its_place():
    "No widget is stored in a chapter, and no script asks another host"
    assert outputs().keys() == SCRIPTS
    for script, html in outputs().items():
        assert f'src="explore/{script}.js"' in html and 'Without it' in html
    for file in NBS.glob('*.ipynb'):
        assert 'jupyter.widget' not in file.read_text(encoding='utf-8'), file.name
    for file in (NBS/'explore').iterdir():
        hosts = re.findall(r'https?://(?!www\.w3\.org)', file.read_text(encoding='utf-8'))
        assert not hosts, file.name

def test_controls_draw_once_and_at_each_change_and_have_two_forms(monkeypatch):
    seen, shown, slider = [], [], IntSlider(value=2, max=8)
    monkeypatch.setattr('IPython.display.display', lambda forms, raw: shown.append(forms))
    def draw(scale=2, name='b'):
        seen.append((scale, name))
        if scale == 7: raise ValueError('broken')
    controls(draw, 'schedule', dict(half=-2.9), scale=slider, name=['a', 'b'])
    [forms] = shown
    assert seen == [(2, 'b')] and slider.description == 'scale'
    assert 'data-half="-2.9"' in forms['text/html']
    assert 'application/vnd.jupyter.widget-view+json' in forms
    slider.value = 5
    assert seen == [(2, 'b'), (5, 'b')]
    with pytest.raises(ValueError, match='broken'): controls(draw, scale=IntSlider(7), name=['b'])
