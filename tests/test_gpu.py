"""The main job on an accelerator, `pytest -m gpu`: train, stop, go on, draw, evaluate. The same job
runs on the CPU here, so that the test itself cannot rot"""
import json
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
from diffusion_scratch.cli import evaluate_command, sample_command
from diffusion_scratch.config import parse_config
from diffusion_scratch.pretrained import load
from diffusion_scratch.run import train
from helpers_training import learned

gpu = torch.accelerator.current_accelerator(check_available=True)
without = pytest.mark.skipif(gpu is None, reason='torch finds no accelerator here')
ON_GPU = pytest.param(str(gpu), 'bf16', marks=[pytest.mark.gpu, without], id='gpu-bf16')
GPU_32 = pytest.param(str(gpu), 'fp32', marks=[pytest.mark.gpu, without], id='gpu-fp32')
CPU = pytest.param('cpu', 'fp32', id='cpu')

def config(device, precision, run, steps):
    return parse_config(dict(
        run=run, device=device, threads=1, log=[], judge=0, save_every=20, preview_every=20,
        parameterization='v', schedule=dict(name='cosine'), sampling=dict(steps=5),
        network=dict(channels=16, multipliers=[1, 2], unshuffle=2, dropout=0.1),
        training=dict(steps=steps, batch_size=16, precision=precision, evaluate_every=0,
                      warmup=5, lr=2e-3)))

@pytest.mark.parametrize('device, precision', [CPU, ON_GPU, GPU_32])
def test_the_main_job(device, precision, tmp_path, monkeypatch, capsys, one_thread):
    """In one go and in two: the same losses (to the bit on a CPU; on a GPU sums may come in another
    order, so to 2 %). Checkpoints are read on the CPU; samples and distances come out"""
    monkeypatch.chdir(tmp_path)
    train(config(device, precision, 'whole', 40), progress=False)
    for steps in (20, 40): train(config(device, precision, 'run', steps), progress=False)
    whole, run = ([float(row['loss']) for row in learned(name)] for name in ('whole', 'run'))
    assert len(run) == 40 and np.mean(run[-10:]) < 0.9 * np.mean(run[:10])
    np.testing.assert_allclose(run, whole, rtol=0 if device == 'cpu' else 0.02)
    [session, _] = json.loads(Path('run/manifest.json').read_text())['sessions']
    assert session['precision'] == precision
    assert next(load('run')[0].parameters()).device.type == 'cpu'
    sample_command(['run', '--n', '10', '--steps', '5', '--out', 'drawn.png', '--device', device])
    assert np.asarray(Image.open('drawn.png')).std() > 10
    capsys.readouterr()
    evaluate_command(['run', '--n', '150', '--steps', '5', '--device', device])
    assert 'rechet' in capsys.readouterr().out
