"""Whatever a person can type: a wrong config or command line ends in a line or two that name what
is wrong, without a traceback and without a wait. FUZZ_SEED=1 is another seed"""
import contextlib, io, os, random, re, signal
from pathlib import Path
import pytest
import torch._dynamo  # else the first command waits for it, on a busy machine more than 10 s
from test_run import elsewhere  # 40 small images of two classes, in an empty folder
from diffusion_scratch import cli
from diffusion_scratch.config import (Config, flat_config, make_data, make_denoiser,
                                      make_fit_options, make_schedule)
from diffusion_scratch.engine import parts_of_batch
from diffusion_scratch.run import RunFolder, find_device

CONFIGS, LINES, PATIENCE = 500, 300, 10  # seconds for each
SEED = int(os.environ.get('FUZZ_SEED', 0))

NUMBERS = ['0', '-1', '1', '2', '1e308', '-1e308', '1e-320', '1e400', '1' + '0' * 22, '9' * 500,
           '.nan', '.inf', '-.inf', '0x7fffffffffffffff', '1_0', '0123', '1:30', '0.5', '64']
WORDS = ['', 'null', '~', 'yes', 'no', 'x', 'é', '日本', '\u202etxt', 'a b', '"', "'", '{', '}', '[',
         ']', '[1', '{a: ', '!!python/object/apply:os.system ["true"]', '!!binary "!"', '!!int x',
         '*a', '&a [*a]', '"\\0"', '"\\x1b[31m"', '\x1b[2J', '\udcff', '%', '@', '`', '|', '>',
         '# x', ': :', '? ?', '- -', '2024-05-01', '<<', '=', 'a' * 300, 'a' * 5000, '[' * 400,
         '{a: ' * 400, '[' + '1, ' * 20_000 + '1]', '{1: 2}', '{[1]: 2}', '[null]', '[[1]]',
         '{a: {a: {a: 1}}}', '{a: 1, a: 2}', '!!timestamp x', '!!set {a, b}', '---', '...', 'a: b',
         '!!map [1]', '!!map [[a, b]]', '!!set [a]', '!!int ""', '!!bool q', '2026-99-99',
         '!!python/object/apply:os.system [touch owned]']
PATHS = ['~nosuchuser', '~nosuchuser/x', '/dev/zero', '/dev/null', '/proc/self/mem', '/proc', '/',
         '.', '..', 'fifo', 'file', 'file/x', 'huge', 'empty', 'a\0b', 'x' * 300, '/dev/full',
         '\udcff/x', 'loop', 'runs/try #2', '/proc/self/fd/x']
OWN = ['math:pi', 'math:sin', 'os:getcwd', 'sys:exit', 'torch.nn:Linear', 'torch.nn:Identity',
       'torch.nn:Conv2d', 'nowhere:x', 'broken:x', 'leaves:x', 'torch:zeros', 'builtins:len', ':x',
       'x:', 'a..b:c', 'torch.nn:Module', 'json:loads', '__main__:x',
       'diffusion_scratch.transformer:DiT', 'diffusion_scratch.loss:v_weight']
BOMB = ['a: &a [x, x, x, x, x, x, x, x, x]', *(
    f'{b}: &{b} [{", ".join([f"*{a}"] * 9)}]' for a, b in zip('abcdefgh', 'bcdefghi'))]
KEYS = [*flat_config(Config()), 'data', 'schedule', 'network', 'training', 'sampling']

def odd_key(rng):
    key = rng.choice(KEYS)
    return rng.choice([*[key] * 5, key.upper(), key + 's', key[:-1], key.split('.')[-1],
                       f'{key}.x', f'training.{key}', '', '.', '..', key.replace('.', '..'),
                       '\x1b[0m', '=', 'x' * 1000, 'a.' * 500, '\udcff', 'model_args.a.b',
                       '"' + key, '1', '- a'])

def odd_value(rng): return rng.choice(rng.choice([NUMBERS, NUMBERS, WORDS, PATHS, OWN]))

def odd_text(rng):
    "A YAML file"
    lines = []
    for _ in range(rng.randrange(4)):
        key, value = odd_key(rng), odd_value(rng)
        section, _, name = key.rpartition('.')
        lines += [f'{section}:', f'  {name}: {value}'] if section else [f'{name}: {value}']
    lines += rng.choice([[], [], [], BOMB, ['model_args:', *('  ' + b for b in BOMB)],
                         lines, ['  ' * i + 'a:' for i in range(500)], ['# only words'],
                         ['[' * 1000], ['&a a: *a'], ['\ttabs: 1'], ['run: x', 'run: x'],
                         ['- a'], ['"text"'], ['? [a, b]', ': c'], ['? {a: b}', ': c']])
    text = '\n'.join(lines)
    return rng.choice([text.encode('utf-8', 'replace')] * 8 + [
        text.encode('utf-16', 'replace'), b'', b'\0' * 10,
        bytes(rng.randrange(256) for _ in range(99)),
        b'a: ' + b'x' * 200_000, b'\xef\xbb\xbf' + text.encode('utf-8', 'replace')])

@pytest.fixture(autouse=True)
def odd_files(elsewhere, monkeypatch):
    "Files that are none, or not what they seem; and nobody who answers"
    os.mkfifo('fifo')
    Path('pictures').mkdir()
    Path('loop').symlink_to('loop')
    for name, text in {'file': 'words', 'empty': '', 'c.yaml': '', 'broken.py':
            'raise KeyError("me")', 'leaves.py': 'raise SystemExit(3)'}.items():
        Path(name).write_text(text)
    for name in ('huge', 'huge.safetensors'):
        with open(name, 'wb') as f: f.truncate(2**40)
    monkeypatch.setattr('sys.stdin', open(os.devnull))

def prepare(config, *_, **__):
    "All that a run looks at before its first step"
    RunFolder(config)
    find_device(config.device)
    schedule, data = make_schedule(config), make_data(config, progress=False)
    make_denoiser(config, data)
    make_fit_options(config)
    schedule.times(config.sampling.steps)
    parts_of_batch(config.training.batch_size, config.training.accumulate)

class Hang(BaseException): "No command can catch it"

@contextlib.contextmanager
def no_hang():
    "Where nothing happens for too long, the test ends"
    def fail(*_): raise Hang(f'nothing came in {PATIENCE} seconds')
    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(PATIENCE)
    try: yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)

def said(command, words):
    "The exit status of a command in this process, and what it said on the standard error"
    out, err = (io.TextIOWrapper(io.BytesIO(), 'ascii') for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), no_hang():
        try: status = command(words)
        except SystemExit as e: status = e.code
    err.flush()
    return status or 0, err.buffer.getvalue().decode()

def refused(n, attempt):
    "How many of n attempts are refused; each gives what was tried, its exit status and its words"
    rng, statuses = random.Random(SEED), []
    for i in range(n):
        tried, status, text = attempt(rng)
        if status == 1 and 'Works' in text: continue
        try: is_plain(status, text)
        except AssertionError:
            raise AssertionError(f'{i}: {tried!r:.4000} {status} {text:.3000}') from None
        statuses.append(status)
    return statuses.count(2)

def is_plain(status, text):
    "One or two lines, or one for each wrong key, without a traceback or a word of pydantic's"
    lines = [l for l in text.splitlines() if not l.startswith(('mnist', 'reading images'))]
    assert 'Traceback' not in text and '\x1b' not in text and 'Input should' not in text
    if status == 0: return
    assert status == 2 and lines and len(lines) <= 12 and max(map(len, lines)) <= 1100
    assert lines[0].startswith('error: ') and not re.search(r'\w+Error: \w', lines[0][:40])

def test_bad_configs_are_refused_in_a_few_words(monkeypatch):
    monkeypatch.setattr(cli, 'train', prepare)  # what comes after is training
    monkeypatch.setattr(cli, 'keep_freed_memory', lambda: None)
    before = sorted(os.listdir())
    def attempt(rng):
        number = rng.choice([0, 1, 1, 1, 2, 3])
        changes = [f'{odd_key(rng)}={odd_value(rng)}' for _ in range(number)]
        odd = rng.random() < 0.5 or not changes
        Path('c.yaml').write_bytes(text := odd_text(rng) if odd else b'seed: 1')
        return (changes, text), *said(cli.train_command, ['c.yaml', *changes])
    assert refused(CONFIGS, attempt) > 0.8 * CONFIGS
    assert sorted(os.listdir()) == before  # nor was a file made

OPTIONS = {name: words.split() for name, words in dict(
    train='--diagnose', export='--to --label --half --raw',
    sample='--n --labels --class --steps --solver --guidance --seed --out --animation --raw '
           '--device',
    edit='--mask --strength --repeats --n --label --steps --solver --guidance --seed --out '
         '--device',
    evaluate='--n --steps --solver --guidance --seed --data --corrupt --extractor --held-out '
             '--statistics --out --bits --batch --raw --device').items()}

def odd_line(rng):
    "A command, and words"
    name = rng.choice([*OPTIONS])
    words = [rng.choice(['mnist-mini', 'mnist-mini', 'mnist-mini', odd_value(rng),
                         'huge.safetensors', 'pictures', 'mnist'])]
    if name == 'edit': words.append(rng.choice(['picture.png', 'fifo', odd_value(rng)]))
    kinds = 'folder', 'diffusers', odd_value(rng)
    if name == 'export': words += ['--to', rng.choice(kinds), odd_value(rng)]
    for _ in range(rng.randrange(1, 4)):
        option = rng.choice([*OPTIONS[name], '--nonsense', '-x', '--', '--n', '--=', '--seed=',
                             '--out='])
        words += [option] if rng.random() < 0.2 else [option, odd_value(rng)]
    return name, words

def test_bad_command_lines_are_refused_in_a_few_words(monkeypatch):
    "A line that happens to be right ends where work would begin"
    class Works(Exception): "As far as a check goes"
    def work(*_, **__): raise Works
    for name in ('draw', 'sample', 'evaluate_model', 'train', 'save', 'export_diffusers'):
        monkeypatch.setattr(cli, name, work)
    for name in ('digit_classifier', 'inception'): monkeypatch.setattr(cli, name, lambda device: 0)
    def attempt(rng):
        name, words = odd_line(rng)
        return (name, words), *said(getattr(cli, f'{name}_command'), words)
    assert refused(LINES, attempt) > 0.5 * LINES
