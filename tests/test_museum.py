"The bug museum: its bugs still fit into the code, and its table says what the chapter says"
import json
import sys
from pathlib import Path
import numpy as np
import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT/'tools'))

import museum
from diffusion_scratch import training
from diffusion_scratch.data import ImageSet
from diffusion_scratch.denoiser import X0, Denoiser
from diffusion_scratch.doctor import diagnose
from diffusion_scratch.loss import draw_level, x0_weight
from diffusion_scratch.schedule import Schedule, cosine_betas
from diffusion_scratch.training import TrainState, fit, warmup_cosine

TABLE = json.loads(museum.TABLE.read_text(encoding='utf-8'))

@pytest.mark.parametrize('name', museum.EXHIBITS)
def test_a_bug_fits_into_the_code_and_is_the_one_that_is_shown(name):
    "Its old lines occur once; the copy is Python; the diff on the page is the change"
    exhibit = museum.EXHIBITS[name]
    assert museum.described(exhibit) == TABLE['exhibits'][name]
    healthy, changed = museum.sources(museum.EXHIBITS['healthy']), museum.sources(exhibit)
    files = {file for file in healthy if healthy[file] != changed[file]}
    assert files == {c.file for c in exhibit.changes}
    for file in files: compile(changed[file], file, 'exec')
    lines = [line for line in museum.diff(exhibit).splitlines() if line[0] == '+']
    assert len(lines) <= 3

def test_a_bug_that_no_longer_fits_is_refused():
    exhibit = museum.Exhibit('Gone', '', museum.of('loss', 'no such line', ''))
    with pytest.raises(ValueError, match='0 times in diffusion_scratch/loss.py'):
        museum.sources(exhibit)

def words(run):
    "What the library or the doctor said of a run"
    doctor = run.get('doctor', {})
    return [run.get('refused'), run.get('warning'), *doctor.get('signs', []),
            *(doctor['reasons'] if doctor.get('verdict') == 'broken' else [])]

def test_the_table_names_at_least_twelve_bugs_and_no_healthy_run():
    named = {name: [any(words(r)) for r in TABLE['runs'] if r['exhibit'] == name]
             for name in museum.EXHIBITS}
    assert len(named['healthy']) >= 10 and not any(named['healthy'])
    assert sum(all(found) for found in named.values() if found) >= 12, named

def test_a_row_says_what_made_it():
    for r in TABLE['runs']:
        assert {'code', 'data', 'command', 'machine', 'date', 'seconds'} <= set(r)
    codes = {(r['exhibit'], r['code']) for r in TABLE['runs']}
    assert {name for name, _ in codes} == {*museum.EXHIBITS}
    assert len({code for _, code in codes}) == len(codes)     # each bug changes what is hashed

# ---- a short run
def one_t(schedule, x0, generator=None):
    "The exhibit one-t"
    level, eps = draw_level(schedule, x0, generator)
    return schedule.at(int(level.t[0]), x0), eps

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 1))
    def forward(self, x, t, y=None):
        return self.layers(torch.cat([x.flatten(1), t[:, None] / 1000], 1)).view(x.shape)

@pytest.mark.parametrize('bug', [False, True])
def test_a_short_run_with_a_bug_is_named_and_one_without_is_not(bug, monkeypatch):
    coins = ImageSet(torch.tensor([-1., 1.]).repeat(128).view(-1, 1, 1, 1))
    schedule = Schedule(cosine_betas())
    if bug: monkeypatch.setattr(training, 'draw_level', one_t)
    torch.manual_seed(0)
    state = TrainState(Denoiser(Net(), X0), ema=0.98)
    losses = [m.loss for m in fit(state, schedule, coins, steps=400, batch_size=32,
                                  lr=warmup_cosine(1e-2, 20, 400), weight=x0_weight)]
    monkeypatch.undo()
    found = diagnose(state.ema, schedule, coins, losses, weight=x0_weight, n=64,
                     last=state.denoiser, batch_size=32)
    assert any('as if a batch' in s for s in found.signs) == bug, found
    assert len(found.signs) == bug, found
