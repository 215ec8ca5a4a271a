"""The engine: the same step in any number of goes, in 32 bits or 16. Two processes that take the
steps of one: test_trainer.py"""
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import refused
from diffusion_scratch.checkpoint import resume, save_checkpoint
from diffusion_scratch.engine import new_accelerator, numeric_environment, parts_of_batch, step_seed
from diffusion_scratch.training import fit
from helpers_training import OPTIONS, SCHEDULE, everything, images, same, start, train

pytestmark = pytest.mark.usefixtures('one_thread')

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
               f'in {goes} equal micro-batches each; it must be a multiple of {multiple}')
    refused(lambda: parts_of_batch(batch_size, goes, 0, processes), message)
    if processes == 1:
        refused(lambda: train(start(), 10, batch_size=batch_size, accumulate=goes), message)

@pytest.mark.parametrize('goes', [2, 4, 8])
def test_a_batch_in_several_goes_is_the_same_batch(goes):
    "eq-parts, but for rounding; keys' biases have no gradient, so Adam magnifies their rounding"
    a, b = start(dropout=0.), start(dropout=0.)
    one, many = train(a, 5), train(b, 5, accumulate=goes)
    np.testing.assert_allclose([m.loss for m in many], [m.loss for m in one], rtol=1e-4)
    np.testing.assert_allclose([m.grad_norm for m in many], [m.grad_norm for m in one], rtol=1e-3)
    gaps = {k: (p - q).abs().max().item() for (k, p), q in
            zip(a.denoiser.named_parameters(), b.denoiser.parameters()) if not k.endswith('k.bias')}
    assert len(gaps) > 30 and max(gaps.values()) < 2e-5, gaps

def test_seeds_of_steps_and_processes_differ():
    keys = [(seed, step) for seed in range(40) for step in range(40)]
    keys += [(*key, 1) for key in keys[:100]]
    assert len({step_seed(*k) for k in keys}) == len(keys) and step_seed(3, 4) == step_seed(3, 4)

# ---------------------------------------------------------------- what accelerate could spoil
def test_one_process_may_train_in_one_precision_and_then_in_another():
    "And one accelerator may serve one run after another; the network stays as it was, unwrapped"
    half, full, plain = start(), start(), start()
    net, names = half.denoiser.net, [*half.denoiser.state_dict()]
    forward = net.forward
    a = train(half, 6, accelerator=new_accelerator(cpu=True, mixed_precision='bf16'))
    assert half.denoiser.net is net and net.forward == forward
    assert [*half.denoiser.state_dict()] == names
    accelerator = new_accelerator(cpu=True)
    b = [m for n in (3, 6) for m in train(full, n, accelerator=accelerator)]
    c = train(plain, 6)
    assert [m.loss for m in b] == [m.loss for m in c] != [m.loss for m in a]
    assert same(everything(full), everything(plain))
    np.testing.assert_allclose([m.loss for m in a], [m.loss for m in b], rtol=0.05)
    assert {p.dtype for p in half.denoiser.parameters()} == {torch.float32}

@pytest.mark.parametrize('accelerator', [None, new_accelerator, lambda **k: Accelerator(**k)])
def test_the_environment_does_not_divide_gradients(accelerator, monkeypatch):
    "accelerate reads this variable, whatever its caller says"
    want = train(start(), 2)
    monkeypatch.setenv('ACCELERATE_GRADIENT_ACCUMULATION_STEPS', '4')
    got = train(start(), 2, accelerator=accelerator and accelerator(cpu=True))
    assert [m.grad_norm for m in got] == [m.grad_norm for m in want]

@pytest.mark.parametrize('engine', 'DEEPSPEED FSDP MEGATRON_LM PARALLELISM_CONFIG'.split())
def test_another_engine_in_the_environment_is_refused(engine, monkeypatch):
    monkeypatch.setenv(f'ACCELERATE_USE_{engine}', 'true')
    for use in (lambda: train(start(), 1), lambda: new_accelerator(cpu=True)):
        refused(use, f'ACCELERATE_USE_{engine}=true.*unset it')
    monkeypatch.setenv(f'ACCELERATE_USE_{engine}', 'false')
    assert len(train(start(), 1)) == 1

# ---------------------------------------------------------------- fp16
def scaling(scale, interval=2000):
    "accelerate scales losses on GPUs only; here are its switches, and torch's scaler for the CPU"
    accelerator = new_accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler('cpu', init_scale=scale, growth_interval=interval)
    accelerator.state._mixed_precision, accelerator.native_amp = 'fp16', True
    return accelerator

def test_a_scaled_loss_takes_the_same_steps():
    a, b = start(), start()
    x, y = train(a, 6, accelerator=scaling(2.**10)), train(b, 6)
    np.testing.assert_allclose([m.loss for m in x], [m.loss for m in y], rtol=0.01)
    np.testing.assert_allclose([m.grad_norm for m in x], [m.grad_norm for m in y], rtol=0.05)
    assert a.scaler['scale'] == 2.**10 and b.scaler is None

def test_a_gradient_that_overflows_halves_the_scale_and_skips_the_step():
    "At the smallest scale it is an error"
    s = start(); before = everything(s)
    steps = fit(s, SCHEDULE, images(), steps=30, accelerator=scaling(2.**30), **OPTIONS)
    assert not np.isfinite(next(steps).grad_norm) and s.scaler['scale'] == 2.**29 and s.step == 1
    after = everything(s)
    assert all(torch.equal(v, before[k]) for k, v in after.items() if k.startswith('denoiser'))
    rows = list(steps)
    assert rows[-1].step == 30 and np.isfinite(rows[-1].grad_norm)
    assert 1 < s.scaler['scale'] < 2.**29 and not same(everything(s), after)
    with pytest.raises(FloatingPointError, match='loss nan|loss inf'):
        train(start(), 10, weight=lambda level: level.snr / 0, accelerator=scaling(1.))

def test_a_resumed_run_goes_on_with_its_scale(tmp_path):
    straight, first, second = start(), start(), start(seed=7)
    train(straight, 12, accelerator=scaling(2.**10, interval=4))
    train(first, 6, accelerator=scaling(2.**10, interval=4))
    save_checkpoint(tmp_path/'x.safetensors', first, SCHEDULE)
    resume(tmp_path/'x.safetensors', second, SCHEDULE)
    train(second, 12, accelerator=scaling(2.**16, interval=4))
    assert straight.scaler == second.scaler and straight.scaler['scale'] == 2.**13
    assert same(everything(second), everything(straight))

def test_the_environment_compiles_nothing_and_shares_no_network(monkeypatch):
    monkeypatch.setenv('ACCELERATE_DYNAMO_BACKEND', 'EAGER')
    monkeypatch.setenv('ACCELERATE_MIXED_PRECISION', 'bf16')
    accelerator = new_accelerator(cpu=True)
    assert accelerator.mixed_precision == 'no'
    assert accelerator.state.dynamo_plugin.backend.value == 'NO'
    layer = accelerator.prepare_model(torch.nn.Linear(2, 2))
    assert type(layer) is torch.nn.Linear and layer(torch.zeros(1, 2)).dtype == torch.float32
    assert numeric_environment()['ACCELERATE_MIXED_PRECISION'] == 'bf16'
