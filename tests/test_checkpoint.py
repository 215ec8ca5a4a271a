"""Checkpoints: runs that go on, files cut, changed and refused. Runs that are killed, ten times and
while they write: test_trainer.py"""
import copy, json, os, random, subprocess, sys
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn
from conftest import refused
from diffusion_scratch.checkpoint import (about_checkpoint, checkpoints, load_checkpoint,
                                          newest_checkpoint, prune_checkpoints, resume,
                                          save_checkpoint)
from diffusion_scratch.data import ImageSet
from diffusion_scratch.denoiser import EPS, V, X0, Denoiser
from diffusion_scratch.schedule import Schedule, cosine_betas, linear_betas
from diffusion_scratch.training import TrainState
from helpers_training import SCHEDULE, Coin, everything, same, start, train

pytestmark = pytest.mark.usefixtures('one_thread')

@pytest.fixture
def file(tmp_path): return tmp_path/'x.safetensors'

@pytest.fixture
def trained(file):
    "A state after step 2, which is saved"
    s = start(); train(s, 2); save_checkpoint(file, s, SCHEDULE)
    return s

def names(folder): return sorted(f.name for f in folder.iterdir())

# ---------------------------------------------------------------- what is in a file
def test_a_checkpoint_holds_everything_and_no_code(trained, tmp_path):
    f = tmp_path/'a'/'b'/'x.safetensors'
    save_checkpoint(f, trained, SCHEDULE, dict(shape=(1, 8, 8), classes=['a', 'b']))
    with safe_open(f, 'pt') as h: got = {k: h.get_tensor(k) for k in h.keys()}
    want = everything(trained)
    assert want.pop('step') == 2 and same(got, want)
    assert {'optimizer.0.exp_avg_sq', 'schedule.betas'} <= got.keys()
    assert about_checkpoint(f) == dict(shape=[1, 8, 8], classes=['a', 'b'])
    assert names(f.parent) == ['x.safetensors']
    n = int.from_bytes(f.read_bytes()[:8], 'little')
    json.loads(f.read_bytes()[8:8+n])  # a JSON header, then numbers

def test_load_gives_a_denoiser_ready_to_sample(trained, file):
    f = file.rename(file.with_name('checkpoint.safetensors'))
    for path in (f, f.parent, str(f.parent)):
        d, schedule = load_checkpoint(path)
        assert same(d.state_dict(), trained.ema.state_dict()) and not d.training
        assert d.parameterization is V and torch.equal(schedule.betas, SCHEDULE.betas)
    raw, _ = load_checkpoint(f, ema=False)
    assert same(raw.state_dict(), trained.denoiser.state_dict())
    assert not same(raw.state_dict(), d.state_dict()) and about_checkpoint(f) == {}
    x, y = torch.randn(3, 1, 8, 8), torch.tensor([0, -1, 3])
    level = SCHEDULE.at(torch.tensor([1, 20, 50]), x)
    torch.testing.assert_close(d(x, level, y).x0, trained.ema(x, level, y).x0)

def test_any_network_can_be_saved_and_must_be_given_to_be_loaded(file):
    s, net = TrainState(Denoiser(Coin(), X0)), nn.Linear(2, 2)
    s.denoiser.net.config = object()  # a name of its own, which is not ours
    save_checkpoint(file, s, SCHEDULE)
    d, _ = load_checkpoint(file, net=Coin())
    assert same(d.state_dict(), s.ema.state_dict()) and d.parameterization is X0
    refused(lambda: load_checkpoint(file), 'give load_checkpoint the network, net=')
    before = copy.deepcopy(net.state_dict())
    refused(lambda: load_checkpoint(file, net=net),
            r'another network: bias is missing there and \(2,\) here')
    assert same(net.state_dict(), before)

class Tied(nn.Module):
    "Uses one weight twice"
    def __init__(self): super().__init__(); self.a = nn.Linear(1, 1); self.b = self.a
    def forward(self, x, t): return self.b(self.a(x))

def test_a_network_that_uses_one_weight_twice(file):
    data = ImageSet(torch.randint(0, 256, (16, 1, 4, 1), dtype=torch.uint8))
    s, t = start(net=Tied()), start(net=Tied())
    train(s, 2, data); save_checkpoint(file, s, SCHEDULE); resume(file, t, SCHEDULE)
    train(s, 4, data); train(t, 4, data)
    assert same(everything(s), everything(t)) and t.denoiser.net.a is t.denoiser.net.b

# ---------------------------------------------------------------- stopped, and gone on
@pytest.mark.any_processor
@pytest.mark.parametrize('cut', [0, 1, 5, 13])
def test_a_resumed_run_equals_one_that_was_never_stopped(cut, file):
    "The same bits, metrics included, with dropout, flips, hidden labels and channels_last"
    straight, first, second = start(), start(), start(seed=9)
    a = train(straight, 15)
    train(first, cut); save_checkpoint(file, first, SCHEDULE)
    resume(file, second, SCHEDULE)
    assert second.step == cut and same(everything(second), everything(first))
    b = train(second, 15); train(first, 15)
    for other in (first, second): assert same(everything(other), everything(straight))
    assert [m[:5] for m in b] == [m[:5] for m in a[cut:]]
    p = second.denoiser.net.stem.weight
    assert second.optimizer.state[p]['exp_avg'].stride() == p.stride()

@pytest.mark.any_processor
def test_a_run_goes_on_with_the_betas_of_its_checkpoint(trained, file):
    "Made on another processor, they differ in their last digits from those that are made here"
    there = Schedule(SCHEDULE.betas * (1 + 1e-13))
    save_checkpoint(file, trained, there)
    assert torch.equal(resume(file, start(), SCHEDULE).betas, there.betas)
    assert not torch.equal(there.betas, SCHEDULE.betas)

# ---------------------------------------------------------------- files that cannot be written
@pytest.mark.parametrize('name, notes, error, message', [
    ('run', None, ValueError, 'run must end in .safetensors'),
    ('taken/x.safetensors', None, OSError, 'cannot write .*taken.*untouched'),
    ('y.safetensors', None, OSError, 'cannot write .*y.safetensors'),
    ('new/x.safetensors', dict(x=torch.zeros(1)), TypeError, 'Tensor'),
    ('closed/x.safetensors', None, OSError, 'cannot write .*closed')])
def test_what_cannot_be_saved_is_refused_and_nothing_is_written(
        name, notes, error, message, trained, tmp_path):
    if 'closed' in name and not getattr(os, 'geteuid', int)(): pytest.skip('root may write there')
    (tmp_path/'taken').write_text('a file')
    (tmp_path/'y.safetensors').mkdir()
    (tmp_path/'closed').mkdir(0o555)
    before = names(tmp_path)
    refused(lambda: save_checkpoint(tmp_path/name, trained, SCHEDULE, notes), message, error)
    assert names(tmp_path) == before and names(tmp_path/'closed') == []
    assert (tmp_path/'taken').read_text() == 'a file'

# ---------------------------------------------------------------- files that do not fit
def test_a_file_cut_anywhere_or_changed_in_any_bit_is_refused(trained, file):
    "And those of other programs; nothing is read from them. More bits: test_faults.py"
    whole, chance, fresh = file.read_bytes(), random.Random(0), start(seed=1)
    before = everything(fresh)
    def is_refused(blob, *readers):
        file.write_bytes(blob)
        for read in readers:
            refused(lambda: read(file), 'x.safetensors is not a whole checkpoint')
    readers = lambda f: resume(f, fresh, SCHEDULE), load_checkpoint, about_checkpoint
    for n in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1): is_refused(whole[:n], *readers)
    is_refused(whole + b'more', *readers)
    for metadata in (None, dict(format='pt'), dict(step='3')):
        is_refused(save(dict(w=torch.zeros(2)), metadata), *readers)
    for at in (0, 3, 9, 40, 300, len(whole) // 2, len(whole) - 1):
        blob = bytearray(whole)
        blob[at] ^= 1 << chance.randrange(8)
        is_refused(blob, newest_checkpoint, *readers[:2])
    assert same(everything(fresh), before)

def test_missing_files_are_named(tmp_path):
    for path, name in ((tmp_path/'no.safetensors', 'no'), (tmp_path, 'checkpoint')):
        refused(lambda: load_checkpoint(path), f'{name}.safetensors does not exist; give a run '
                'folder', FileNotFoundError)

@pytest.mark.parametrize('options, schedule, message', [
    ({}, Schedule(linear_betas(50)),
     r'trained with other betas, Schedule\(T=50.*than this schedule, Schedule\(T=50'),
    ({}, Schedule(cosine_betas(51)), r'betas, Schedule\(T=50.*Schedule\(T=51'),
    ({}, Schedule(SCHEDULE.betas * (1 - 1e-7)), 'trained with other betas'),
    (dict(parameterization=EPS), SCHEDULE, 'predicts v, not eps'),
    (dict(num_classes=5), SCHEDULE,
     r'another network: label.weight is \(5, 32\) there and \(6, 32\) here'),
    (dict(net=Coin()), SCHEDULE, 'another network: .* is .* there and missing here|missing there')])
def test_a_checkpoint_that_does_not_fit_changes_nothing(options, schedule, message, trained, file):
    s = start(seed=1, **options)
    before = everything(s)
    refused(lambda: resume(file, s, schedule), message)
    assert same(everything(s), before)

# ---------------------------------------------------------------- the checkpoints of a run
def test_the_last_few_and_the_best_are_kept_and_the_newest_whole_one_is_read(tmp_path):
    state = start()
    for state.step, loss in enumerate([0.9, 0.2, 0.5, 0.4, 0.6, 0.3], 1):
        file = tmp_path/'checkpoints'/f'step_{state.step:08d}.safetensors'
        save_checkpoint(file, state, SCHEDULE, dict(loss=loss))
        prune_checkpoints(tmp_path, 2)
    newest, older, best = checkpoints(tmp_path)
    assert [about_checkpoint(f)['loss'] for f in (newest, older, best)] == [0.3, 0.6, 0.2]
    assert newest_checkpoint(tmp_path)[1]['step'] == 6
    newest.write_bytes(newest.read_bytes()[:-1])
    message = f'{newest.name} is not a whole .*; going back to {older.name}'
    with pytest.warns(UserWarning, match=message): assert newest_checkpoint(tmp_path)[0] == older
    for f in (older, best): f.write_bytes(b'')
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=f'{best.name} is not a whole'):
        newest_checkpoint(tmp_path)

def test_checkpoints_need_no_trainer():
    "Whoever only reads or writes a file does not pay for importing accelerate"
    program = 'import sys, diffusion_scratch.checkpoint; sys.exit("accelerate" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', program]).returncode == 0
