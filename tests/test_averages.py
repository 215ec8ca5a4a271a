"""Averages whose width is chosen after the training: against the weights of every step, against
closed forms, and through files"""
import math
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from conftest import refused
from helpers_training import SCHEDULE, Coin, everything, images, same, start, train
from diffusion_scratch import config as config_module
from diffusion_scratch.checkpoint import checkpoints, resume, save_checkpoint
from diffusion_scratch.config import ConfigError, load_config, make_data, make_denoiser
from diffusion_scratch.data import ImageSet
from diffusion_scratch.denoiser import EPS, Denoiser
from diffusion_scratch.pretrained import load
from diffusion_scratch.run import load_average
from diffusion_scratch.run import train as train_run
from diffusion_scratch.training import (TrainState, combination, combined, ema_decay, fit, gamma_of,
                                        power_decay, profile, relative_width)

COINS = ImageSet(torch.tensor([-1., 1.]).repeat(64).view(-1, 1, 1, 1), name='coins')

def weights_by_gamma_functions(gamma, k):
    "p_1 ... p_k of eq-power-decay, in closed form"
    log = [math.lgamma(j + gamma + 2) - math.lgamma(j + 2) for j in range(1, k + 1)]
    rest = math.lgamma(k + 2) - math.lgamma(k + gamma + 3)
    return np.exp(np.array(log) + rest) * (gamma + 1)

# ---------------------------------------------------------------- profiles
def test_the_growing_decay_of_the_book_is_one_of_the_family():
    "eq-power-decay"
    for k in (1, 5, 100, 4000): assert power_decay(k, 8) == ema_decay(k, 0.9999)

@pytest.mark.parametrize('gamma', [0.5, 3., 8., 16.97, 60.])
def test_a_profile_is_what_gamma_functions_say(gamma):
    "eq-power-decay"
    p = profile(relative_width(gamma), 300, 320).numpy()
    np.testing.assert_allclose(p[1:301], weights_by_gamma_functions(gamma, 300), rtol=1e-9)
    assert p.sum() == pytest.approx(1, abs=1e-12) and (p[301:] == 0).all() and len(p) == 321

@pytest.mark.parametrize('width', [0.01, 0.05, 0.1, 0.2, 0.28])
def test_the_width_is_the_standard_deviation_of_the_steps(width):
    "eq-power-width, over a long run"
    p, tau = profile(width, 20_000, 20_000).numpy(), np.arange(20_001) / 20_000
    measured = math.sqrt((p * tau**2).sum() - (p * tau).sum()**2)
    assert measured == pytest.approx(width, rel=3e-3)
    assert relative_width(gamma_of(width)) == pytest.approx(width, rel=1e-9)

def test_the_widths_of_the_paper():
    "eq-power-width: Karras et al. (2024) give gamma for their two widths"
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.005)

# ---------------------------------------------------------------- averages of a training
@pytest.fixture(scope='module')
def coins():
    "A training on coins: its state, the weights of every step, and what it kept every 25 steps"
    torch.manual_seed(0)
    state = TrainState(Denoiser(Coin(), EPS), widths=(0.05, 0.1))
    copy = lambda d: {k: w.clone() for k, w in d.state_dict().items()}
    steps, kept = [copy(state.denoiser)], []
    for m in fit(state, SCHEDULE, COINS, steps=400, batch_size=32, lr=lambda k: 3e-3):
        steps.append(copy(state.denoiser))
        if m.step % 25: continue
        kept += [(w, m.step, copy(d)) for w, d in state.averages.items()]
    return state, steps, kept

def flat(weights): return torch.cat([w.flatten().double() for w in weights.values()])

def exact(steps, width):
    "The weighted sum of the weights of all steps, with weights in closed form"
    gamma, k = gamma_of(width), len(steps) - 1
    p = weights_by_gamma_functions(gamma, k)
    return sum(a * flat(w) for a, w in zip([1 - p.sum(), *p], steps))

def test_the_averages_of_a_state_are_the_weighted_sums_of_all_its_weights(coins):
    "eq-power-decay, eq-ema"
    state, steps, _ = coins
    for width, average in state.averages.items():
        torch.testing.assert_close(flat(average.state_dict()), exact(steps, width),
                                   rtol=1e-4, atol=1e-6)

@pytest.mark.parametrize('width', [0.04, 0.05, 0.07, 0.1, 0.15, 0.2])
def test_any_width_afterwards_is_the_exact_average_of_all_weights(coins, width):
    "eq-posthoc"
    _, steps, kept = coins
    profiles = torch.stack([profile(w, step, 400) for w, step, _ in kept])
    c = combination(profiles, profile(width, 400, 400))
    found = flat(combined([w for *_, w in kept], c.tolist()))
    truth, last = exact(steps, width), flat(steps[-1])
    assert (found - truth).norm() < 0.02 * (last - truth).norm()
    assert c.sum().item() == pytest.approx(1, abs=1e-9)

def test_the_combination_is_the_nearest_whose_coefficients_sum_to_1():
    "eq-posthoc: by Lagrange's equations"
    rows = torch.stack([profile(w, k, 200) for k in (100, 150, 200) for w in (0.06, 0.12)])
    wanted, n = profile(0.09, 200, 200), len(rows)
    matrix = np.block([[(rows @ rows.T).numpy(), np.ones((n, 1))], [np.ones((1, n)), 0]])
    truth = np.linalg.solve(matrix, [*(rows @ wanted).tolist(), 1])[:n]
    np.testing.assert_allclose(combination(rows, wanted), truth, rtol=1e-5, atol=1e-8)

def test_a_kept_average_is_its_own_combination_and_constants_stay():
    "eq-posthoc"
    rows = torch.stack([profile(w, 50, 50) for w in (0.05, 0.1)])
    np.testing.assert_allclose(combination(rows, rows[0]), [1, 0], atol=1e-9)
    assert combination(rows[:1], rows[1]).tolist() == [1]        # a single one: nothing to choose
    parts = [dict(w=torch.full((3,), 7.), n=torch.tensor(k)) for k in (1, 2)]
    found = combined(parts, combination(rows, profile(0.07, 50, 50)).tolist())
    assert found['w'].tolist() == pytest.approx([7] * 3) and found['n'] == 2

# ---------------------------------------------------------------- states and files
def averaging(seed=0, widths=(0.05, 0.1)):
    return TrainState(start(seed).denoiser, ema=0.9, widths=widths)

def test_further_averages_change_nothing_else():
    a, b = averaging(), averaging(widths=())
    assert [m.loss for m in train(a, 6)] == [m.loss for m in train(b, 6)]
    rest = {k: v for k, v in everything(a).items() if not k.startswith('average.')}
    assert same(rest, everything(b)) and len(everything(a)) > len(rest)

def test_a_state_with_averages_goes_on_to_the_same_bits(tmp_path):
    straight, stopped, again = averaging(), averaging(), averaging(seed=1)
    train(straight, 9)
    train(stopped, 4)
    save_checkpoint(tmp_path/'a.safetensors', stopped, SCHEDULE)
    resume(tmp_path/'a.safetensors', again, SCHEDULE)
    assert same(everything(again), everything(stopped))
    train(again, 9)
    assert same(everything(again), everything(straight))

@pytest.mark.parametrize('there, here', [((), (0.1,)), ((0.1,), ()), ((0.1,), (0.1, 0.05))])
def test_a_checkpoint_of_other_widths_is_refused(tmp_path, there, here):
    train(state := averaging(widths=there), 2)
    save_checkpoint(tmp_path/'a.safetensors', state, SCHEDULE)
    other = averaging(widths=here)
    before = everything(other)
    refused(lambda: resume(tmp_path/'a.safetensors', other, SCHEDULE),
            'holds averages of the widths')
    assert same(everything(other), before)

@pytest.mark.parametrize('width', [0., -0.1, 0.3, math.nan, '0.1', None])
def test_impossible_widths_are_refused(width):
    refused(lambda: averaging(widths=(width,)), 'width.*0.28', (ValueError, TypeError))

# ---------------------------------------------------------------- runs
@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    "An empty folder, and small images in the place of the digits"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config_module.datasets, 'mnist_mini', images)

def config(run, *words):
    return load_config('quickstart', [
        f'run={run}', 'network={channels: 4, multipliers: [1], attention: []}', 'judge=0',
        'training.steps=8', 'training.batch_size=8', 'training.warmup=2',
        'training.decay=constant', 'threads=1', 'sampling.steps=2', 'device=cpu',
        'save_every=1', 'keep=100', 'log=[]', *words])

def finished(*words): return train_run(config(*words), progress=False)

def test_a_run_makes_any_width_from_its_files(elsewhere, capsys):
    "eq-posthoc: against the weights of every step, which its checkpoints contain"
    finished('a', 'training.averages=[0.05, 0.1]')
    c, steps = config('a'), [load(f, ema=False)[0] for f in reversed(checkpoints('a'))]
    steps = [w.state_dict() for w in [make_denoiser(c, make_data(c)), *steps]]
    for width in (0.08, 0.15):
        denoiser, schedule = load_average('a', width)
        torch.testing.assert_close(flat(denoiser.state_dict()), exact(steps, width),
                                   rtol=1e-4, atol=1e-6)
    assert schedule.T == 1000 and not denoiser.training
    assert 'load_average' in capsys.readouterr().out
    refused(lambda: load_average('a', 0.9), r'width = 0.9 is outside \(0, 0.28')

def test_a_stopped_run_keeps_the_same_averages(elsewhere, tmp_path):
    wide = 'training.averages=[0.07]'
    finished('a', wide)
    finished('b', wide, 'training.steps=5')
    finished('b', wide)
    names = [sorted(p.name for p in (tmp_path/run/'averages').iterdir()) for run in 'ab']
    assert names[0] == names[1] == [f'step_{k:08d}.safetensors' for k in range(1, 9)]
    for name in names[0]:
        assert same(*(load_file(tmp_path/run/'averages'/name) for run in 'ab'))

def test_what_a_run_kept_no_averages_for_is_refused(elsewhere, tmp_path):
    finished('a', 'training.steps=2')
    refused(lambda: load_average('a', 0.1), 'a kept no averages.*training.averages')
    assert not (tmp_path/'a'/'averages').exists()
    with pytest.raises(ConfigError, match='training.averages'):  # a run is not changed midway
        finished('a', 'training.averages=[0.1]')
    finished('b', 'training.averages=[0.02]', 'training.steps=40', 'save_every=40')
    refused(lambda: load_average('b', 0.28), '0.28.*error.*training.averages')

@pytest.mark.parametrize('value', ['[0.3]', '[0]', '[0.1, 0.1]', '[a]', '0.1'])
def test_widths_that_a_config_refuses(value):
    with pytest.raises(ConfigError, match='training.averages'):
        load_config('quickstart', [f'training.averages={value}'])
