"The engine: the same step in any number of goes and processes, in 32 bits or 16"
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from diffusion_scratch.checkpoint import resume, save_checkpoint
from diffusion_scratch.engine import Engine, new_accelerator, parts_of_batch, step_seed
from diffusion_scratch.loss import draw_level, loss_at
from diffusion_scratch.training import fit
from helpers_training import OPTIONS, SCHEDULE, everything, images, same, start, train

pytestmark = pytest.mark.usefixtures('one_thread')


def assert_close(a, b, tolerance):
    """Weights that differ by float32's rounding of sums in another order. Adam divides a gradient
    that is zero but for rounding by itself: such weights, keys' biases, may differ by its steps"""
    gaps = {k: (p - q).abs().max().item() for (k, p), q in zip(a.named_parameters(), b.parameters())
            if not k.endswith('k.bias')}
    worst = sorted(gaps.items(), key=lambda gap: -gap[1])[:5]
    assert len(gaps) > 30 and worst[0][1] < tolerance, worst


# ---------------------------------------------------------------- one batch, shared

@pytest.mark.parametrize('processes', [1, 2, 3])
@pytest.mark.parametrize('goes', [1, 2, 4])
def test_every_image_belongs_to_one_part(processes, goes):
    "eq-parts: equal parts, each process's in a row, in order"
    parts = [p for rank in range(processes) for p in parts_of_batch(24, goes, rank, processes)]
    assert [i for p in parts for i in range(24)[p]] == list(range(24))
    assert {p.stop - p.start for p in parts} == {24 // (processes * goes)}


@pytest.mark.parametrize('batch_size, goes, processes, multiple', [
    (8, 3, 1, 3), (8, 16, 1, 16), (9, 1, 2, 2), (8, 2, 3, 6), (8, 0, 2, 2), (0, 1, 1, 1)])
def test_a_batch_that_cannot_be_shared_is_refused(batch_size, goes, processes, multiple):
    message = (rf'batch_size = {batch_size} cannot be shared by {processes} process\(es\) '
               f'in {goes} equal goes each; it must be a multiple of {multiple}')
    with pytest.raises(ValueError, match=message): parts_of_batch(batch_size, goes, 0, processes)
    if processes == 1:
        with pytest.raises(ValueError, match=message):
            train(start(), 10, batch_size=batch_size, accumulate=goes)


@pytest.mark.parametrize('goes', [2, 4, 8])
def test_a_batch_in_several_goes_is_the_same_batch(goes):
    "eq-parts"
    a, b = start(dropout=0.), start(dropout=0.)
    one, many = train(a, 10), train(b, 10, accumulate=goes)
    np.testing.assert_allclose([m.loss for m in many], [m.loss for m in one], rtol=1e-4)
    np.testing.assert_allclose([m.grad_norm for m in many], [m.grad_norm for m in one], rtol=1e-3)
    assert_close(a.denoiser, b.denoiser, 2e-5)


def test_seeds_of_steps_and_processes_differ():
    keys = [(seed, step) for seed in range(40) for step in range(40)]
    keys += [(*key, 1) for key in keys[:100]]
    assert len({step_seed(*k) for k in keys}) == len(keys) and step_seed(3, 4) == step_seed(3, 4)


TWO = '''
import sys, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from diffusion_scratch.engine import new_accelerator
from helpers_training import everything, start, train
accelerator, saved = new_accelerator(cpu=True), {{}}
for name, dropout, goes in (('plain', 0., 1), ('goes', 0., 2), ('dropout', 0.2, 1)):
    state = start(dropout=dropout)
    rows = train(state, 10, accumulate=goes, accelerator=accelerator)
    saved[name] = everything(state), [m.loss for m in rows]
torch.save(saved, f'{{sys.argv[1]}}/{{accelerator.process_index}}.pt')
'''


@pytest.mark.skipif(os.name == 'nt', reason='torchrun with gloo')
def test_two_processes_take_the_steps_of_one(tmp_path):
    "The same weights but for the order of float32 sums; and each process has its own dropout"
    (tmp_path/'two.py').write_text(TWO.format(tests=os.path.dirname(__file__)))
    port = random.randint(20_000, 60_000)
    launcher = ['-m', 'torch.distributed.run', '--nproc-per-node', '2', '--master-port', str(port)]
    subprocess.run([sys.executable, *launcher, str(tmp_path/'two.py'), str(tmp_path)], check=True,
                   capture_output=True, timeout=300, env=os.environ | dict(OMP_NUM_THREADS='1'))
    first, second = (torch.load(tmp_path/f'{rank}.pt') for rank in (0, 1))
    for name, (tensors, losses) in first.items():
        assert same(tensors, second[name][0]) and losses == second[name][1]
    one = start(dropout=0.); losses = [m.loss for m in train(one, 10)]
    for name in ('plain', 'goes'):
        np.testing.assert_allclose(first[name][1], losses, rtol=1e-4)
        for k, w in one.denoiser.net.named_parameters():
            if k.endswith('k.bias'): continue
            two = first[name][0][f'denoiser.{k}']
            torch.testing.assert_close(two, w.detach(), rtol=0, atol=2e-5)
    alone = start(); dropped = [m.loss for m in train(alone, 10)]
    np.testing.assert_allclose(first['dropout'][1], dropped, rtol=0.2)
    assert not np.allclose(first['dropout'][1], dropped, rtol=1e-4)  # other masks for half of it


# ---------------------------------------------------------------- what accelerate could spoil

def test_one_process_may_train_in_one_precision_and_then_in_another():
    half, full, plain = start(), start(), start()
    a = train(half, 10, accelerator=new_accelerator(cpu=True, mixed_precision='bf16'))
    b = train(full, 10, accelerator=new_accelerator(cpu=True))
    c = train(plain, 10)
    assert [m.loss for m in b] == [m.loss for m in c] != [m.loss for m in a]
    assert same(everything(full), everything(plain))
    np.testing.assert_allclose([m.loss for m in a], [m.loss for m in b], rtol=0.05)
    assert {p.dtype for p in half.denoiser.parameters()} == {torch.float32}


def test_one_accelerator_serves_one_run_after_another():
    a, b, accelerator = start(), start(), new_accelerator(cpu=True)
    train(a, 5, accelerator=accelerator); train(a, 10, accelerator=accelerator); train(b, 10)
    assert same(everything(a), everything(b))


def test_training_leaves_the_network_unwrapped():
    s = start(); net, names = s.denoiser.net, [*s.denoiser.state_dict()]
    forward = net.forward
    train(s, 2, accelerator=new_accelerator(cpu=True, mixed_precision='bf16'))
    assert s.denoiser.net is net and [*s.denoiser.state_dict()] == names and net.forward == forward


@pytest.mark.parametrize('accelerator', [None, new_accelerator, lambda **k: Accelerator(**k)])
def test_the_environment_does_not_divide_gradients(accelerator, monkeypatch):
    "accelerate reads this variable, whatever its caller says"
    want = train(start(), 2)
    monkeypatch.setenv('ACCELERATE_GRADIENT_ACCUMULATION_STEPS', '4')
    options = dict(accelerator=accelerator(cpu=True)) if accelerator else {}
    got = train(start(), 2, **options)
    assert [m.grad_norm for m in got] == [m.grad_norm for m in want]


# ---------------------------------------------------------------- fp16

def scaling(scale, interval=2000):
    "accelerate scales losses on GPUs only; here are its switches, and torch's scaler for the CPU"
    accelerator = new_accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler('cpu', init_scale=scale, growth_interval=interval)
    accelerator.state._mixed_precision, accelerator.native_amp = 'fp16', True
    return accelerator


def test_a_scaled_loss_takes_the_same_steps():
    a, b = start(), start()
    x, y = train(a, 10, accelerator=scaling(2.**10)), train(b, 10)
    np.testing.assert_allclose([m.loss for m in x], [m.loss for m in y], rtol=0.01)
    np.testing.assert_allclose([m.grad_norm for m in x], [m.grad_norm for m in y], rtol=0.05)
    assert a.scaler['scale'] == 2.**10 and b.scaler is None


def test_a_gradient_that_overflows_halves_the_scale_and_skips_the_step():
    s = start(); before = everything(s)
    steps = fit(s, SCHEDULE, images(), steps=30, accelerator=scaling(2.**30), **OPTIONS)
    assert not np.isfinite(next(steps).grad_norm) and s.scaler['scale'] == 2.**29 and s.step == 1
    after = everything(s)
    assert same({k: v for k, v in after.items() if k.startswith('denoiser')},
                {k: v for k, v in before.items() if k.startswith('denoiser')})
    rows = list(steps)
    assert rows[-1].step == 30 and np.isfinite(rows[-1].grad_norm)
    assert 1 < s.scaler['scale'] < 2.**29
    assert not same(everything(s), after)


def test_a_resumed_run_goes_on_with_its_scale(tmp_path):
    straight, first, second = start(), start(), start(seed=7)
    train(straight, 12, accelerator=scaling(2.**10, interval=4))
    train(first, 6, accelerator=scaling(2.**10, interval=4))
    save_checkpoint(tmp_path/'x.safetensors', first, SCHEDULE)
    resume(tmp_path/'x.safetensors', second, SCHEDULE)
    train(second, 12, accelerator=scaling(2.**16, interval=4))
    assert straight.scaler == second.scaler and straight.scaler['scale'] == 2.**13
    assert same(everything(second), everything(straight))


def test_a_gradient_that_overflows_at_the_smallest_scale_is_an_error():
    with pytest.raises(FloatingPointError, match='loss nan|loss inf'):
        train(start(), 10, weight=lambda level: level.snr / 0, accelerator=scaling(1.))


# ---------------------------------------------------------------- by itself

def test_an_engine_takes_the_steps_of_a_state_in_plain_pytorch():
    plain, by_engine = start(), start()
    (x0, y), engine = images()[:8], Engine(by_engine, batch_size=8, accumulate=1)
    for k in range(3):
        level, eps = draw_level(SCHEDULE, x0, torch.Generator().manual_seed(k))
        plain.denoiser.train()
        torch.manual_seed(k)
        losses = loss_at(plain.denoiser, x0, level, eps, y)
        loss, norm = plain.update(losses.mean(), lr=1e-3, clip=1.)
        torch.manual_seed(k)
        assert torch.equal(engine.backward(loss_at, x0, level, eps, y), losses)
        assert engine.step(1e-3, clip=1.) == norm
        by_engine.advance()
    assert same(everything(plain), everything(by_engine))
