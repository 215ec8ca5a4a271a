"""How a run sees whether it gets better: samples evaluated during training, the best checkpoint,
and the smallest effect of the doctor"""
import csv, io, math, shutil, zlib
from contextlib import redirect_stdout
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
from conftest import refused
from helpers_training import SCHEDULE, images, learned, start, tensors
from diffusion_scratch import config as config_module
from diffusion_scratch import run as run_module
from diffusion_scratch.checkpoint import (about_checkpoint, best_checkpoint, checkpoints,
                                          prune_checkpoints, save_checkpoint)
from diffusion_scratch.config import ConfigError, load_config, make_data
from diffusion_scratch.data import ImageSet, mnist_mini
from diffusion_scratch.denoiser import clipped
from diffusion_scratch.doctor import diagnose, trend
from diffusion_scratch.features import digit_classifier
from diffusion_scratch.guidance import guided
from diffusion_scratch.loss import v_weight
from diffusion_scratch.oracle import MixtureOracle
from diffusion_scratch.pictures import loss_curve
from diffusion_scratch.pretrained import load
from diffusion_scratch.report import random_rows
from diffusion_scratch.run import evaluation_cost, plan_evaluations, read_metrics
from diffusion_scratch.run import train as train_run
from diffusion_scratch.sampling import ancestral, sample

N = 65  # samples of an evaluation: one more than the classifier has features
SMALL = ['network={channels: 4, multipliers: [1], attention: []}', 'judge=0', 'threads=1',
         'training.batch_size=8', 'training.warmup=2', 'training.decay=constant',
         'training.ema=0.9', 'sampling.steps=2', 'device=cpu']
EVALUATING = ['training.evaluate_every=2', f'training.evaluate_images={N}']

def config(run='a', *words): return load_config('quickstart', [*SMALL, f'run={run}', *words])

def trained(run, *words):
    "What a small run prints"
    with redirect_stdout(io.StringIO()) as said: train_run(config(run, *words), progress=False)
    return said.getvalue()

# ---------------------------------------------------------------- the best checkpoint
def folder_with(tmp_path, notes):
    "Checkpoints of step 1, 2, ... with such notes"
    state = start()
    for state.step, about in enumerate(notes, 1):
        file = tmp_path/'checkpoints'/f'step_{state.step:08d}.safetensors'
        save_checkpoint(file, state, SCHEDULE, about)
    return tmp_path

def at(loss, frechet=None, how='256 samples'):
    about = dict(loss=loss)
    if frechet is not None: about['evaluated'] = dict(frechet=frechet, precision=0.5, how=how)
    return about

@pytest.mark.parametrize('best, notes', [
    (2, [at(0.1, 30.), at(0.9, 10.), at(0.2, 20.)]),         # by distance, not by loss
    (2, [at(0.1), at(0.9, 10.), at(0.2, 20.)]),              # one that was not evaluated is not it
    (3, [at(0.1, 1., '64 samples'), at(0.9, 10.), at(0.2, 9.)]),  # another measure, not compared
    (1, [at(0.1), at(0.9), at(0.2)]),                        # nothing was evaluated: by loss
    (2, [{}, at(0.3), at(math.nan)]), (None, [{}, {}])])
def test_the_best_checkpoint_is_that_with_the_smallest_distance(tmp_path, best, notes):
    run = folder_with(tmp_path, notes)
    found = best_checkpoint(run)
    assert (found and int(found.stem[5:])) == best
    prune_checkpoints(run, 1)
    assert {int(f.stem[5:]) for f in checkpoints(run)} == {len(notes), best or len(notes)}

# ---------------------------------------------------------------- evaluations of a run
@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "Three runs of 6 steps: without evaluations, with them, and with them but stopped midway"
    folder, patch = tmp_path_factory.mktemp('runs'), pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.setattr(run_module, 'REFERENCE', 300)
    steps = ['training.steps=6', 'save_every=6', 'keep=10']
    said = dict(plain=trained('plain', *steps, 'training.evaluate_every=0', 'log=[]'))
    said['evaluated'] = trained('evaluated', *steps, *EVALUATING, 'log_every=1000')
    trained('stopped', *EVALUATING, 'training.steps=3', 'log=[]')
    said['stopped'] = trained('stopped', *steps, *EVALUATING, 'log=[]')
    patch.undo()
    return folder, said

def distances(run):
    return {int(r['step']): float(r['frechet']) for r in learned(run) if r['frechet'] != 'nan'}

def test_training_does_not_notice_that_samples_were_drawn(runs):
    folder, _ = runs
    a, b = tensors(folder/'plain'), tensors(folder/'evaluated')
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert [r['loss'] for r in learned(folder/'plain')] == [
        r['loss'] for r in learned(folder/'evaluated')]
    assert distances(folder/'plain') == {}

def test_a_stopped_run_measures_the_same(runs):
    folder, _ = runs
    found = distances(folder/'stopped')
    assert found.pop(3) > 0  # its last step, when it was to have three
    assert found == distances(folder/'evaluated') and list(found) == [2, 4, 6]
    assert all(torch.equal(v, tensors(folder/'evaluated')[k])
               for k, v in tensors(folder/'stopped').items())

def frechet_by_eigenvalues(a, b):
    "The squared Frechet distance, by the eigenvalues of the product of the covariances"
    a, b = a.numpy(), b.numpy()
    A, B = np.cov(a.T), np.cov(b.T)
    roots = np.sqrt(np.linalg.eigvals(A @ B).astype(complex)).real.sum()
    return ((a.mean(0) - b.mean(0))**2).sum() + np.trace(A) + np.trace(B) - 2 * roots

def test_the_distance_is_that_of_images_drawn_by_hand(runs):
    folder, _ = runs
    file = folder/'evaluated'/'checkpoints'/'step_00000004.safetensors'
    denoiser, schedule = load(file)
    data, look = mnist_mini(), digit_classifier()
    y = random_rows(data.labels, N, 0)
    x = sample(clipped(guided(denoiser, y, 0.5)), schedule, (N, 1, 28, 28), step=ancestral(),
               times=schedule.times(2), seed=0, progress=False)
    order = np.random.default_rng(0).permutation(len(data))[:300]
    real = look(data[torch.from_numpy(order)][0], progress=False).x
    truth = frechet_by_eigenvalues(real, look(x, progress=False).x)
    noted = about_checkpoint(file)['evaluated']
    assert noted['frechet'] == pytest.approx(truth, rel=1e-4)
    assert distances(folder/'evaluated')[4] == pytest.approx(truth, rel=1e-4)
    assert f'{N} samples' in noted['how'] and look.hash in noted['how']

def test_what_a_run_says_of_its_evaluations(runs):
    folder, said = runs
    assert 'evaluate_every is 0' in said['plain'] and 'training loss' in said['plain']
    assert 'after every 2 steps 65 samples' in said['evaluated']
    assert 'smallest distance' in said['evaluated']
    for step in (2, 4, 6): assert f'step {step}: Frechet distance' in said['evaluated']
    best = best_checkpoint(folder/'evaluated')
    found = distances(folder/'evaluated')
    assert int(best.stem[5:]) == min(found, key=found.get)
    assert f'best: {best.name}, Frechet distance' in said['evaluated']
    assert 'best:' not in said['plain']

def test_loggers_get_the_distance(runs):
    "although it is measured at steps that log_every leaves out"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    folder, _ = runs
    events = next((folder/'evaluated'/'logs').rglob('events*'))
    log = EventAccumulator(str(events)).Reload()
    shown = {e.step: e.value for e in log.Scalars('frechet')}
    assert shown == pytest.approx(distances(folder/'evaluated'), rel=1e-4)
    assert {e.step for e in log.Scalars('precision')} == {2, 4, 6}

def test_the_picture_of_the_loss_shows_the_distance(runs):
    folder, _ = runs
    rows = read_metrics(folder/'evaluated'/'metrics.csv')
    panels = loss_curve(rows).axes
    [line] = [l for ax in panels for l in ax.lines if l.get_label() == 'Frechet distance']
    assert dict(zip(*line.get_data())) == distances(folder/'evaluated')
    assert len(loss_curve(read_metrics(folder/'plain'/'metrics.csv')).axes) == 1

def test_an_evaluation_that_fails_does_not_stop_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    def fails(*_): raise RuntimeError('not enough memory')
    monkeypatch.setattr(run_module.Evaluator, '__call__', fails)
    said = trained('a', *EVALUATING, 'training.steps=2', 'log=[]')
    assert 'step 2: the samples could not be evaluated (not enough memory)' in said
    assert distances('a') == {} and len(learned('a')) == 2

# ---------------------------------------------------------------- when, and at what cost
def test_the_cost_is_counted_in_evaluations_of_the_network(runs, monkeypatch):
    folder, _ = runs
    c = config('a', *EVALUATING, 'sampling.solver=heun', 'training.steps=50')
    denoiser, schedule = load(folder/'evaluated')
    seen = []
    denoiser.net.register_forward_hook(lambda net, given, out: seen.append(len(out)))
    monkeypatch.setattr(run_module, 'REFERENCE', 80)
    run_module.Evaluator(c, mnist_mini(), digit_classifier())(denoiser, schedule)
    assert evaluation_cost(c, mnist_mini()) == pytest.approx(sum(seen) / (3 * 8 * 50))

def planned(*words):
    c = config('a', *words)
    return plan_evaluations(c, make_data(c))

def test_by_default_evaluations_are_few_and_cheap():
    for steps in (800, 3_000, 1_000_000):
        plan = planned(f'training.steps={steps}', 'training.batch_size=64')
        due = [k for k in range(1, steps + 1) if plan.is_due(k, steps)] if steps < 1e5 else []
        if plan.every and due:
            cost = evaluation_cost(config('a', f'training.steps={steps}',
                                          'training.batch_size=64'), mnist_mini())
            assert 2 <= len(due) <= 10 and due[-1] == steps and len(due) * cost <= 0.03
        assert plan.every or 'of the run' in plan.words
    assert plan.every == 100_000                     # ten times in the longest
    assert not planned('training.steps=20').every    # too short: it says so
    assert 'training.evaluate_every=N' in planned('training.steps=20').words

def test_images_without_a_classifier_are_not_evaluated(monkeypatch):
    monkeypatch.setattr(config_module.datasets, 'mnist_mini', images)     # 8 x 8
    plan = planned()
    assert not plan.every and 'no classifier' in plan.words and 'training loss' in plan.words
    refused(lambda: planned('training.evaluate_every=5'),
            'training.evaluate_every: 5 is not allowed.*no classifier.*allowed: 0, or null',
            ConfigError)

@pytest.mark.parametrize('words, said', [
    (['training.evaluate_every=5', 'training.evaluate_images=64'], '64.*64 features'),
    (['training.evaluate_every=-1'], 'training.evaluate_every: -1 is not allowed'),
    (['training.evaluate_every=often'], 'training.evaluate_every'),
    (['training.evaluate_images=1'], 'training.evaluate_images: 1 is not allowed')])
def test_evaluations_that_cannot_be_made_are_refused(words, said):
    refused(lambda: planned(*words), said, ConfigError)

def test_gray_pictures_of_28_pixels_need_not_be_digits(tmp_path):
    for i in range(70): Image.new('L', (28, 28), i).save(tmp_path/f'{i}.png')
    own = ['data.name=folder', f'data.root={tmp_path}', 'data.size=28', 'data.channels=1',
           'training.steps=100000']
    assert 'may not know' in planned(*own).words
    assert planned(*own, 'training.evaluate_every=50').every == 50

# ---------------------------------------------------------------- runs of older versions
def test_a_run_of_an_older_version_goes_on(runs, tmp_path, monkeypatch):
    "its metrics have two columns fewer, and its config does not know the new keys"
    folder, _ = runs
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder/'plain', 'plain')
    rows = [*csv.reader(open('plain/metrics.csv', newline=''))]
    lines = [','.join([*rows[0][:12], 'crc32'])]
    for row in rows[1:]:
        text = ','.join(row[:12])
        lines.append(f'{text},{zlib.crc32(text.encode())}')
    Path('plain/metrics.csv').write_text('\n'.join(lines) + '\n')
    old = read_metrics(Path('plain/metrics.csv'), 6)
    assert [m.step for m in old] == [1, 2, 3, 4, 5, 6] and math.isnan(old[0].frechet)
    trained('plain', 'training.steps=7', 'save_every=6', 'keep=10', 'log=[]')
    assert [m.step for m in read_metrics(Path('plain/metrics.csv'), 7)] == [*range(1, 8)]

# ---------------------------------------------------------------- the doctor
def losses(steps, fall, scatter=0.15, seed=0):
    "Losses whose mean falls by such a fraction from fifth to fifth"
    noise = scatter * np.random.default_rng(seed).standard_normal(steps // 5)
    return np.concatenate([(1 - fall)**k * (1 + noise) for k in range(5)])

@pytest.mark.parametrize('steps, fall, direction', [
    (800_000, 0.002, 0), (800_000, -0.002, 0),       # sure, and too small to matter
    (800_000, 0.01, -1), (800_000, -0.01, 1), (800_000, 0., 0),
    (2_000, 0.1, -1), (2_000, -0.1, 1), (2_000, 0.01, 0)])   # the last is not sure
def test_a_change_counts_if_it_is_sure_and_matters(steps, fall, direction):
    "eq-doctor-trend"
    t = trend(losses(steps, fall))
    assert t.direction == direction
    if steps == 800_000 and fall: assert abs(t.z) > 3

def test_a_fall_of_a_fifth_of_a_percent_is_not_called_learning():
    "eq-doctor-trend, through the verdict"
    g = torch.Generator().manual_seed(0)
    data = ImageSet(torch.randint(0, 256, (60, 1, 2, 2), dtype=torch.uint8, generator=g))
    oracle = MixtureOracle(data[:][0])
    own = diagnose(oracle, SCHEDULE, data, losses(300, 0.), weight=v_weight, n=32).network.over()[0]
    verdicts = {}
    for fall in (0.002, -0.002, 0.02):
        d = diagnose(oracle, SCHEDULE, data, own * losses(800_000, fall), weight=v_weight, n=32)
        verdicts[fall] = d.verdict
        assert ('too small to act on' in str(d)) == (abs(fall) < 0.005), str(d)
        assert ('let it run' in d.advice) == (fall == 0.02)
    assert verdicts[0.02] == 'learning'
    assert verdicts[0.002] == verdicts[-0.002] == 'plateaued as expected'
