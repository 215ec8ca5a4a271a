"""CPU threads on a machine that does something else too"""
import json, os, subprocess, sys, time
from contextlib import contextmanager
from pathlib import Path
import pytest
import torch
import yaml
from diffusion_scratch.run import OtherLoad, threads_beside, usable_cores
from test_trainer import small

pytestmark = pytest.mark.skipif(not hasattr(os, 'sched_setaffinity'), reason='cores of Linux')
BIN = Path(sys.executable).parent
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in
               ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')}

def printed(code, **environment):
    done = subprocess.run([sys.executable, '-c', code], env=ENVIRONMENT | environment,
                          capture_output=True, text=True, check=True)
    return done.stdout.split()

@contextmanager
def endless(n):
    "So many processes that never rest"
    others = [subprocess.Popen([sys.executable, '-c', 'while True: pass']) for _ in range(n)]
    try: yield
    finally:
        for p in others: p.kill(); p.wait()

@pytest.mark.parametrize('given, found', [
    ({}, ['20000', 'None']), (dict(GOMP_SPINCOUNT='7'), ['7', 'None']),
    (dict(OMP_WAIT_POLICY='active'), ['None', 'active'])])
def test_openmp_spins_for_a_short_while_unless_the_user_has_said_how_to_wait(given, found):
    code = 'import os, diffusion_scratch as d; print(*map(os.environ.get, '\
           '["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"]))'
    assert printed(code, **given) == found

def test_other_programs_are_seen_and_this_one_is_not_taken_for_one():
    "The others get at least a third of a core on the busiest machine; ours burns all it can get"
    load = OtherLoad()
    with endless(2): assert load.cores(least=1.) > 0.3
    alone = OtherLoad(processes=1000)  # its own work, a thousand times: more than all there is
    end = time.process_time() + 0.3
    while time.process_time() < end: pass
    assert alone.cores() == 0

@pytest.mark.parametrize('others, threads',
                         [(0., 4), (0.4, 4), (0.6, 3), (2., 2), (3.8, 1), (99., 1)])
def test_threads_leave_other_programs_their_cores(others, threads, monkeypatch, one_thread):
    "On a machine of four cores; torch has as many threads by itself"
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: range(4))
    torch.set_num_threads(4)
    assert threads_beside(others) == threads
    monkeypatch.setenv('OMP_NUM_THREADS', '4')
    assert threads_beside(others) == 4

def trained(steps, cores, *words):
    "A real run up to a step, on these cores; what it printed"
    Path('c.yaml').write_text(yaml.safe_dump(small(steps) | dict(threads=0)))
    done = subprocess.run([BIN/'diffusion-train', 'c.yaml', 'run=r', *words], env=ENVIRONMENT,
                          capture_output=True, text=True,
                          preexec_fn=lambda: os.sched_setaffinity(0, cores))
    assert done.returncode == 0, done.stderr
    return done.stdout

@pytest.mark.skipif(usable_cores() < 2, reason='needs two cores')
def test_a_run_keeps_the_number_of_threads_that_it_began_with(tmp_path, monkeypatch):
    "Begun where one core is free, it goes on with one thread where two are; unless told"
    monkeypatch.chdir(tmp_path)
    one, two = [*os.sched_getaffinity(0)][:1], [*os.sched_getaffinity(0)][:2]
    trained(4, one)
    trained(8, two)
    trained(12, two, 'threads=2')
    trained(16, one)
    sessions = json.loads(Path('r/manifest.json').read_text())['sessions']
    assert [s['threads'] for s in sessions] == [1, 1, 2, 1]
    assert [s['changed'] for s in sessions] == [{}, {}, {'threads': [1, 2]}, {'threads': [2, 1]}]

def test_the_budget_says_that_the_machine_is_busy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with endless(2 * usable_cores()): out = trained(4, os.sched_getaffinity(0))
    assert 'warning: other programs use about' in out and 'Training uses 1 CPU thread' in out, out
