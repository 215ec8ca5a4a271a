"A process of several is killed: torchrun starts them all again, and the run goes on"
import json, os, subprocess, sys
from pathlib import Path
import pytest
import yaml
from helpers_training import assert_same_run

pytestmark = pytest.mark.skipif(os.name == 'nt', reason='signals of POSIX')
CONFIG = dict(device='cpu', threads=1, preview_every=10**6, save_every=4, log=[],
              parameterization='v', schedule=dict(name='cosine'), sampling=dict(steps=2),
              network=dict(channels=8, multipliers=[1], attention=[], unshuffle=4, dropout=0.1),
              training=dict(batch_size=8, ema=0.9, steps=14, warmup=3, decay='cosine',
                            weight='deadly:weight'))
# three checks of the weight, three steps that measure, and in the tenth step of the run a process
# dies, but only once
DEADLY = '''
import os, signal
from pathlib import Path
from diffusion_scratch.loss import v_weight
left = int(os.environ.get('LOSS', 0))
def weight(level):
    global left
    left -= 1
    if left == 0 and os.environ['RANK'] == os.environ['DIES'] and not Path('killed').exists():
        Path('killed').touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return v_weight(level)
'''

def launched(run, **environment):
    "What two processes of torchrun say, which communicate through gloo, and its exit status"
    torchrun = Path(sys.executable).parent/'torchrun'
    words = [torchrun, '--standalone', '--nproc-per-node', '2', '--max-restarts', '1',
             'train.py', 'c.yaml', f'run={run}']
    env = dict(OMP_NUM_THREADS='1', LOSS='16', TORCH_DISABLE_SHARE_RDZV_TCP_STORE='1')
    env |= os.environ | environment
    p = subprocess.run(words, capture_output=True, text=True, env=env, timeout=300)
    sessions = json.loads(Path(run, 'manifest.json').read_text())['sessions']
    return p.stdout + p.stderr, p.returncode, [s['after_step'] for s in sessions]

@pytest.mark.fault('one process of two is killed (SIGKILL), the first or the second',
                   'torchrun --max-restarts starts both again; weights and records equal those '
                   'of a run that was not disturbed')
def test_torchrun_starts_all_again(tmp_path, monkeypatch):
    """Either process dies between two checkpoints: the same bits as without. The variable makes
    torchrun forget the addresses of the processes that died, as the chapter says"""
    monkeypatch.chdir(tmp_path)
    Path('c.yaml').write_text(yaml.safe_dump(CONFIG))
    Path('deadly.py').write_text(DEADLY)
    Path('train.py').write_text('from diffusion_scratch.cli import train_command\ntrain_command()')
    said, status, began = launched('whole', DIES='none')
    assert (status, began) == (0, [0]), said
    for dies in '01':
        said, status, began = launched(dies, DIES=dies)
        assert (status, began) == (0, [0, 8]) and Path('killed').exists(), said
        assert_same_run('whole', dies)
        Path('killed').unlink()
