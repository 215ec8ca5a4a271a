"""The real commands in processes of their own, which cost little: a server imports the package once
and forks"""
import multiprocessing, os, signal, sys, time
from pathlib import Path

CONTEXT = multiprocessing.get_context('forkserver') if os.name != 'nt' else None
# torch imports the second one with the first optimizer, which takes a second
if CONTEXT: CONTEXT.set_forkserver_preload(['diffusion_scratch.cli', 'torch._dynamo'])

def _run(words, folder, before, environment):
    "What the process does: `before` may change the system around it"
    import torch
    from diffusion_scratch.cli import evaluate_command, sample_command, train_command
    os.chdir(folder)
    sys.path.insert(0, str(folder))  # modules of the test
    os.environ.update(environment)
    out = os.open(f'out_{os.getpid()}', os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2): os.dup2(out, stream)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    if before: before()
    sys.argv = ['diffusion-train', *words]
    others = dict(evaluate=evaluate_command, sample=sample_command)
    if words[0] in others: others[words[0]](words[1:])
    else: train_command(words)

class Command:
    """`diffusion-train`, or after the word `evaluate` or `sample` one of these commands, in the
    current folder"""
    def __init__(self, *words, before=None, **environment):
        words = [str(w) for w in words]
        self.process = CONTEXT.Process(target=_run, args=(words, Path.cwd(), before, environment),
                                       daemon=True)
        self.folder = Path.cwd()
        self.process.start()
        self.pid = self.process.pid

    def said(self) -> str:
        file = self.folder/f'out_{self.pid}'
        return file.read_text(errors='replace') if file.exists() else ''

    def wait_until(self, ready, seconds=120):
        end = time.time() + seconds
        while not ready():
            assert self.process.is_alive() and time.time() < end, self.said()
            time.sleep(0.005)

    def kill(self, number):
        os.kill(self.pid, number)
        self.process.join(120)
        return self

    def ends(self, status=0) -> str:
        "What it said, when it has ended with this status and without a traceback"
        self.process.join(120)
        assert self.process.exitcode == status, (self.process.exitcode, self.said())
        assert 'Traceback' not in self.said(), self.said()
        return self.said()
