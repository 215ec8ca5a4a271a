"Latents and images of four channels, from a .npy file through a run to numbers: nothing is rounded"
from pathlib import Path
import numpy as np
import pytest
import torch
from conftest import refused
from diffusion_scratch.cli import edit_command, evaluate_command, export_command, sample_command
from diffusion_scratch.config import ConfigError, make_data, parse_config
from diffusion_scratch.data import array_file, fingerprint
from diffusion_scratch.guidance import guided
from diffusion_scratch.pretrained import load
from diffusion_scratch.run import train
from diffusion_scratch.sampling import ancestral, sample
from helpers_training import assert_same_run

RNG = np.random.default_rng(0)
LATENTS = RNG.uniform(-5, 5, (64, 4, 8, 8)).astype('float32')
LABELS = np.arange(64) % 3
SMALL = dict(device='cpu', threads=1, log=[], preview_every=3, save_every=3, run='run',
             parameterization='v', network=dict(channels=8, multipliers=[1], attention=[]),
             training=dict(batch_size=8, steps=6, warmup=2, ema=0.9))

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    np.save('latents.npy', LATENTS)
    np.save('labels.npy', LABELS)

def config(run='run', clip=False, steps=6, **data):
    data = dict(name='array', root='latents.npy', range=5.) | data
    training = SMALL['training'] | dict(steps=steps)
    sampling = dict(steps=2, clip=clip, guidance=0.)
    return parse_config(SMALL | dict(run=run, data=data, training=training, sampling=sampling))

@pytest.mark.parametrize('kind', ['float16', 'float32', 'float64'])
def test_a_file_gives_its_numbers(kind):
    np.save('x.npy', LATENTS.astype(kind))
    data = array_file('x.npy', 'labels.npy', limit=5.1)
    x, y = data[[7, 2]]
    assert torch.equal(x, torch.from_numpy(LATENTS.astype(kind)[[7, 2]]).float())
    assert y.tolist() == [1, 2] and data.num_classes == 3 and data.shape == (4, 8, 8)

def test_fingerprints_tell_latents_apart_that_are_the_same_bytes():
    moved = np.where(LATENTS > 1, LATENTS + 0.001, LATENTS)  # a byte would be 255
    np.save('moved.npy', moved)
    first, other = (fingerprint(array_file(f, limit=6)) for f in ('latents.npy', 'moved.npy'))
    assert first != other == fingerprint(array_file('moved.npy', limit=6))

@pytest.mark.parametrize('labels', [None, 'labels.npy'])
def test_a_run_draws_numbers_that_are_not_clipped(labels):
    train(config(labels_file=labels), progress=False)
    numbers = np.load('run/samples.npy')
    assert numbers.dtype == np.float32 and np.abs(numbers).max() > 1
    assert Path('run/samples.png').stat().st_size and Path('run/previews/step_000003.png').exists()
    sample_command(['run', '--n', '6', '--seed', '3'])
    found = np.load('run/samples_seed3.npy')
    denoiser, schedule = load('run')
    if labels: denoiser = guided(denoiser, torch.arange(6) % 3, 0.)
    expected = sample(denoiser, schedule, (6, 4, 8, 8), step=ancestral(), progress=False, seed=3,
                      times=schedule.times(2))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5)  # of another batch
    sample_command(['run', '--n', '6', '--out', 'six.png'])
    assert Path('six.png').read_bytes().startswith(b'\x89PNG')

def test_a_run_goes_on_to_the_same_bits():
    constant = dict(labels_file='labels.npy')
    train(config('whole', **constant), progress=False)
    train(config('parts', steps=3, **constant), progress=False)
    train(config('parts', **constant), progress=False)
    assert_same_run('whole', 'parts')

def test_bytes_of_four_channels():
    x = RNG.integers(0, 256, (64, 4, 8, 8), dtype=np.uint8)
    np.save('rgba.npy', x)
    c = config(root='rgba.npy', range=1., clip=True)
    assert torch.equal(make_data(c).images, torch.from_numpy(x))
    train(c, progress=False)
    assert np.load('run/samples.npy').shape == (64, 4, 8, 8)

def test_what_needs_images_refuses_latents(capsys):
    train(config(), progress=False)
    Path('x.png').write_bytes(Path('run/samples.png').read_bytes())
    for command in (lambda: evaluate_command(['run']), lambda: edit_command(['run', 'x.png'])):
        with pytest.raises(SystemExit): command()
        said = capsys.readouterr().err
        assert 'draws numbers of shape (4, 8, 8) in [-5, 5]' in said and 'diffusion-sample' in said
    export_command(['run', '--to', 'folder', 'copy'])
    for model in ('run', 'copy'): sample_command([model, '--n', '2'])
    numbers = [np.load(f'{model}/samples_seed0.npy') for model in ('run', 'copy')]
    np.testing.assert_array_equal(*numbers)

@pytest.mark.parametrize('array, words', [
    (LATENTS[0], r'has type float32 and shape \(4, 8, 8\); allowed: .*4 dimensions'),
    (LATENTS[:0], r'shape \(0, 4, 8, 8\); allowed: .*at least one row'),
    (LATENTS.astype(int), 'has type int64'),
    (LATENTS * np.nan, r'must lie in \[-5, 5\]; the values of image 0 lie in \[nan'),
    (np.array([None, 1]), 'not a .npy file of numbers')])
def test_a_bad_file_is_refused(array, words):
    np.save('bad.npy', array, allow_pickle=True)
    refused(lambda: array_file('bad.npy', limit=5.), words)

@pytest.mark.parametrize('labels, words', [
    (LABELS[:9], r'labels have shape \(9,\); 64 images need \(64,\)'),
    (LABELS - 1, r'labels lie in -1\.\.1'), (LABELS / 2, 'has type float64')])
def test_bad_labels_are_refused(labels, words):
    np.save('labels.npy', labels)
    refused(lambda: array_file('latents.npy', 'labels.npy', 5.), words)

@pytest.mark.parametrize('options, words', [
    (dict(clip=True), 'sampling.clip: True is not allowed with data.range 5'),
    (dict(name='folder'), 'data.range: 5.0 is not allowed with data.name folder'),
    (dict(range=0.), 'data.range: 0.0 is not allowed')])
def test_a_config_that_makes_no_sense_is_refused(options, words):
    refused(lambda: config(**options), words, ConfigError)

def test_an_array_without_a_file_is_refused():
    refused(lambda: parse_config(dict(data=dict(name='array'))), 'data.root: the array of your')
    refused(lambda: make_data(config(root='none.npy')), 'none.npy is not a file', FileNotFoundError)
