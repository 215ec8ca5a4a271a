"A practitioner's options: AdamW, weights to begin with, and a finished run made longer"
import copy, os, signal
from pathlib import Path
import pytest
import torch
import yaml
from diffusion_scratch.checkpoint import checkpoints, read_checkpoint, resume, save_checkpoint
from diffusion_scratch.cli import train_command
from diffusion_scratch.config import ConfigError, load_config, parse_config
from diffusion_scratch.run import RunFolder, read_manifest, train
from diffusion_scratch.training import TrainState, restarted_cosine, warmup_cosine
from helpers_processes import Command
from helpers_training import SCHEDULE, assert_same_run, everything, learned, same, start, tensors
from helpers_training import train as steps_of

pytestmark = pytest.mark.skipif(os.name == 'nt', reason='signals of POSIX')
SMALL = dict(device='cpu', threads=1, preview_every=10**6, save_every=4, log=[], run='run',
             parameterization='v', schedule=dict(name='cosine'),
             network=dict(channels=8, multipliers=[1], attention=[], unshuffle=4, dropout=0.1),
             training=dict(batch_size=8, ema=0.9, steps=10, warmup=3, decay='cosine', lr=1e-3),
             sampling=dict(steps=2))
DEADLY = '''
import os, signal
from diffusion_scratch.loss import v_weight
left = int(os.environ.get('STEP', 0))
def weight(level):
    global left
    left -= 1
    if left == 0: os.kill(os.getpid(), signal.SIGKILL)
    return v_weight(level)
'''

SICK = '''
import math
from diffusion_scratch.loss import v_weight
steps = 0
def weight(level):
    global steps
    steps += len(level.t) == 8  # a batch; checks before the run have fewer images
    return v_weight(level) * (math.nan if steps == 9 else 1)
'''

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    Path('c.yaml').write_text(yaml.safe_dump(SMALL))
    Path('deadly.py').write_text(DEADLY)

def rates(run): return [float(row['lr']) for row in learned(run)]

def trained(*overrides): return train(load_config('c.yaml', overrides), progress=False)

def killed(*words, step):
    command = Command('c.yaml', *words, STEP=str(step))
    command.process.join(120)
    assert command.process.exitcode == -signal.SIGKILL, command.said()

# ---------------------------------------------------------------- AdamW
def adamw(weight_decay): return TrainState(start().denoiser, ema=0.9, weight_decay=weight_decay)

def test_adamw_decays_matrices_beside_adams_step():
    """Against the formula: theta - lr * decay * theta, and then Adam's step, which has the same
    gradients in the first step. Vectors take Adam's step alone. Tolerance: rounding of float32"""
    adam, decayed = adamw(None), adamw(0.3)
    before = {k: p.detach().clone() for k, p in adam.denoiser.named_parameters()}
    for state in (adam, decayed): steps_of(state, 1, lr=lambda step: 0.05)
    others = dict(decayed.denoiser.named_parameters())
    kinds = set()
    for k, p in adam.denoiser.named_parameters():
        share = 0.05 * 0.3 if p.ndim > 1 else 0.
        torch.testing.assert_close(others[k], p - share * before[k], rtol=0, atol=1e-6)
        kinds.add(share)
    assert len(kinds) == 2

def test_adamw_goes_on_from_a_checkpoint_to_the_same_bits(tmp_path):
    whole, first, second = adamw(0.1), adamw(0.1), adamw(0.1)
    steps_of(whole, 8)
    steps_of(first, 4)
    save_checkpoint(tmp_path/'c.safetensors', first, SCHEDULE)
    resume(tmp_path/'c.safetensors', second, SCHEDULE)
    steps_of(second, 8)
    assert same(everything(whole), everything(second))

def test_a_run_with_adamw_is_killed_and_goes_on():
    words = 'training.optimizer=adamw', 'training.weight_decay=0.2', 'training.weight=deadly:weight'
    killed(*words, 'run=killed', step=9)
    Command('c.yaml', *words, 'run=killed').ends()
    Command('c.yaml', *words, 'run=whole').ends()
    assert_same_run('whole', 'killed')
    plain = trained('run=plain', 'training.weight=deadly:weight')
    assert not same(tensors('whole'), tensors(plain))
    said = Command('c.yaml', 'run=whole', 'training.weight=deadly:weight').ends(2)
    assert 'training.optimizer: adamw there, adam here' in said

@pytest.mark.parametrize('words, says', [
    ('training.weight_decay=0.1', 'with training.optimizer adam, which does not use it'),
    ('training={optimizer: adamw, weight_decay: -1}', '>= 0 and <= 1'),
    ('training.optimizer=adamq', 'Did you mean adam')])
def test_options_that_cannot_be(words, says):
    with pytest.raises(ConfigError, match=says): parse_config(SMALL, [words])

def test_a_run_of_before_goes_on(monkeypatch):
    "Its config and its record do not know the new keys: it is Adam's, to the same bits"
    new = 'optimizer', 'weight_decay'
    def without(self, record=RunFolder.record_to_keep):
        kept = copy.deepcopy(record(self))
        for key in new: del kept['config']['training'][key]
        return kept
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, 'record_to_keep', without)
        trained('run=old', 'training.decay=constant', 'training.steps=5')
    lines = Path('old/config.yaml').read_text().splitlines()
    kept = [line for line in lines if not line.strip().startswith(new)]
    assert len(lines) - len(kept) == 2
    Path('old/config.yaml').write_text('\n'.join(kept))
    Path('old/manifest.json').unlink()
    with pytest.warns(UserWarning, match='manifest.json'):
        trained('run=old', 'training.decay=constant')
    trained('run=whole', 'training.decay=constant')
    assert_same_run('old', 'whole')

# ---------------------------------------------------------------- weights to begin with
def test_from_begins_with_the_average_of_a_run():
    trained('run=a')
    train_command(['c.yaml', '--from', 'a', 'run=b', 'training.steps=1', 'training.lr=1e-30'])
    begun, there = tensors('b'), tensors('a')
    assert all(torch.equal(v, there[f'ema.{k[9:]}']) for k, v in begun.items()
               if k.startswith('denoiser.'))
    assert load_config('b/config.yaml').training.start == 'a'
    assert read_manifest(Path('b'))['sessions'][0]['start'].startswith('a ')

@pytest.mark.parametrize('words, says', [
    (['c.yaml', '--from', 'no: such [name'], 'training.start: no: such [name'),
    (['c.yaml', '--from', 'mnist'], 'training.start'),
    (['--diagnose', 'a', '--from', 'b'], '--from')])
def test_from_refuses(words, says, capsys):
    with pytest.raises(SystemExit): train_command(words)
    assert says in capsys.readouterr().err and not Path('run').exists()

# ---------------------------------------------------------------- longer
def test_each_part_of_a_longer_run_has_its_own_decay():
    lr = restarted_cosine(0.1, 7, (20, 50, 60))
    want = [(7, 0, 20), (3, 20, 50), (1, 50, 60)]
    want = [warmup_cosine(0.1, up, b - a)(k - a) for up, a, b in want for k in range(a, b)]
    assert [lr(k) for k in range(60)] == want and lr(61) == 0  # `measure` looks a little further
    alone = restarted_cosine(0.1, 7, (20,))
    assert [alone(k) for k in range(25)] == [warmup_cosine(0.1, 7, 20)(k) for k in range(25)]

def test_a_longer_run_killed_at_any_time_is_the_same_run():
    """Before its first new checkpoint, after it, and longer a second time; against a run that was
    never killed, to the last bit. Rates: those of the rule"""
    words = 'training.weight=deadly:weight',
    for run in ('whole', 'killed'): Command('c.yaml', *words, f'run={run}').ends()
    longer = *words, 'training.steps=22'
    killed(*longer, 'run=killed', step=8)  # three checks, three steps that measure, two steps
    assert 10 < len(learned('killed')) < 22
    killed(*longer, 'run=killed', step=14)
    said = Command('c.yaml', *longer, 'run=killed').ends()
    assert 'from step 10 on, the learning rate has a new warm-up' in said
    Command('c.yaml', *longer, 'run=whole').ends()
    for run in ('whole', 'killed'):
        Command('c.yaml', *words, 'training.steps=30', f'run={run}').ends()
    assert_same_run('whole', 'killed')
    lr = restarted_cosine(1e-3, 3, (10, 22, 30))
    assert rates('killed') == pytest.approx([lr(k) for k in range(30)], rel=1e-5)
    assert read_manifest(Path('killed'))['ends'] == [10, 22]
    assert read_checkpoint('killed')[1]['about']['run']['ends'] == [10, 22]

def test_a_run_in_the_middle_of_its_decay_cannot_be_longer():
    words = 'training.weight=deadly:weight',
    killed(*words, step=11)
    said = Command('c.yaml', *words, 'training.steps=20').ends(2)
    assert 'training.steps: 20 is not allowed, because run has done' in said
    assert 'of the 10 steps of its cosine' in said
    Command('c.yaml', *words).ends()
    said = Command('c.yaml', *words, 'training.steps=9').ends(2)
    assert 'training.steps: 10 there, 9 here' in said

def test_with_a_constant_rate_a_longer_run_is_one_run():
    trained('training.decay=constant', 'run=a', 'training.steps=5')
    trained('training.decay=constant', 'run=a')
    trained('training.decay=constant', 'run=b')
    assert same(tensors('a'), tensors('b')) and 'ends' not in read_manifest(Path('a'))

# ---------------------------------------------------------------- looks at the numbers
def test_a_run_that_looks_at_its_numbers_now_and_then_is_the_same_run():
    "Also where it is killed between two looks: the line of each step is there, and the weights"
    trained('run=each')
    trained('run=rare', 'training.look_every=3')
    assert_same_run('each', 'rare')
    words = 'training.weight=deadly:weight', 'training.look_every=3', 'run=killed'
    killed(*words, step=9)  # the last checkpoint is of step 8
    trained(*words)
    assert_same_run('each', 'killed')

def test_a_run_whose_weights_are_spoilt_between_two_looks_keeps_its_checkpoint():
    "The numbers are read before a checkpoint is written: step 6 is seen before that of step 8"
    Path('sick.py').write_text(SICK)
    with pytest.raises(FloatingPointError, match='step 6 has spoilt the weights: loss nan'):
        trained('training.weight=sick:weight', 'training.look_every=5')
    [checkpoint] = checkpoints('run')
    assert checkpoint.name.startswith('step_00000004')
    assert all(t.isfinite().all() for t in tensors('run').values())
