"""The config from outside: what it refuses and how it says so, what comes back, what it makes"""
import os, re
from pathlib import Path
import pytest
import torch
import yaml
from PIL import Image
from diffusion_scratch import config as module
from diffusion_scratch.config import (Config, ConfigError, dump_config, load_config, make_data,
                                      make_denoiser, make_fit_options, make_schedule, parse_config)
from diffusion_scratch.data import ImageSet
from diffusion_scratch.reader import Reader
from diffusion_scratch.schedule import Schedule, cosine_betas, linear_betas, sigmoid_betas

CONFIGS = {f.stem: f for f in sorted((Path(__file__).parent.parent/'configs').glob('*.yaml'))}

# a key, what it allows, and values that it does not
NOT_ALLOWED = [
    ('data.name', 'mnist_mini, mnist, cifar10, folder, hf, array. Did you mean mnist?', ['MNIST']),
    ('data.name', 'mnist_mini, mnist, cifar10, folder, hf', ['3']),
    ('schedule.name', 'linear, cosine, sigmoid. Did you mean cosine?', ['cosin']),
    ('parameterization', 'eps, x0, v', ['velocity']),
    ('training.weight', 'eps, x0, v, min_snr, or module:name, of your own code, or null. '
                        'Did you mean min_snr?', ['minsnr']),
    ('training.steps', 'whole number >= 1 and <= 1000000000',
     ['0', 'many', '1.5', '', '[1]', str(10**20)]),
    ('seed', 'whole number >= 0', ['-1', str(2**63), str(10**20)]),
    ('schedule.T', 'whole number >= 1 and <= 100000', [str(10**9), str(10**20)]),
    ('network.blocks', 'whole number >= 1 and <= 64', ['10000']),
    ('network.multipliers', 'list of 1..12, each whole number >= 1 and <= 64',
     ['[65]', '[1000000]', '[]', '2']),
    ('network.attention', 'list of 0..12, each whole number >= 0', ['[-1]', str([1] * 13)]),
    ('network.channels', 'whole number >= 4 and <= 8192 and multiple of 4', ['30', '400000']),
    ('network.dropout', 'number >= 0 and < 1', ['1']),
    ('sampling.steps', 'whole number >= 1 and <= 1000', ['1001']),
    ('sampling.guidance', 'number >= -1 and <= 1000000', ['-2', '1e308']),
    ('threads', 'whole number >= 0 and <= 1024', ['100000']),
    ('training.lr', 'number > 0 and <= 1', ['0', '2', 'fast']),
    ('training.clip', 'number > 0', ['.inf']), ('training.ema', 'number >= 0 and < 1', ['.nan']),
    ('training.adam', 'list of 2, each number >= 0 and < 1',
     ['[0.9]', '[0.9, 0.9, 0.9]', '[0.9, 1]']),
    ('data.size',
     'whole number >= 1 and <= 16384, or list of 2, each whole number >= 1 and <= 16384',
     ['0', '[1, 2, 3]', '1000000']),
    ('data.channels', '1, 3', ['2']), ('data.flip', 'true or false', ['maybe']),
    ('device', 'text', ['3']), ('training', 'a section with the keys steps, batch_size', ['5'])]

# an override, and what the message must hold
REFUSED = [
    ('training.stesp=3', 'training.stesp: unknown key; did you mean training.steps?'),
    ('trainig.steps=3', 'trainig: unknown key; did you mean training?'),
    ('lr=0.1', 'lr: unknown key; did you mean training.lr?'),
    ('network.multiplier=[1]', 'did you mean network.multipliers?'),
    ('training.channels=8', 'did you mean data.channels or network.channels?'),
    ('training.learning_rate=1', 'training.learning_rate: unknown key; the keys of training are '
                                 'steps, batch_size, accumulate, precision, recompute, compile,'),
    ('data.background=whit', "'whit' is no colour; allowed: a name such as white, black or gray, "
                             "or '#rrggbb'"),
    ('data.background=#ff0000', 'in quotes where # starts a comment'),
    ('data.background=black', 'data.background: black is not allowed with data.name mnist_mini'),
    ('qqq=1', 'qqq: unknown key; the keys and sections are run, seed,'),
    ('training={1: 2}', 'training.1: unknown key'),
    # fine alone, wrong together
    ('schedule.zero_terminal_snr=true',
     'parameterization: eps is not allowed with schedule.zero_terminal_snr'),
    ('schedule.T=100', 'schedule.T: 100 is not allowed with schedule.name linear, which then '
                       'leaves 36% of the variance'),
    ('schedule.T=296', 'schedule.T: 296 is not allowed'),  # a twentieth is left; 297: below
    ('network.attention=[0, 2]', 'network.attention: level 2 is not allowed; allowed: 0..1'),
    ('training.label_dropout=0',
     'sampling.guidance: 0.5 is not allowed with training.label_dropout 0'),
    *((f'data.{key}={value}', f'data.{key}: {value} is not allowed with data.name mnist_mini')
      for key, value in dict(size=32, channels=1, root='/tmp').items()),
    ('data.name=folder', 'data.root: the folder of your images is missing'),
    ('data.flip=true',
     'True is not allowed with data.name mnist_mini, because a mirrored digit is not a digit'),
    ('model_args={width: 3}', "model_args: {'width': 3} is not allowed with model unet"),
    ('model=os.system', "model: 'os.system' is not allowed; allowed: unet, or module:name"),
    # overrides that are none
    ('training.steps', "'training.steps' is not an override; write section.key=value"),
    ('training.lr=[1', 'training.lr=[1 is not YAML'), ('seed=', 'seed: null is not allowed'),
    ('training.steps=yes', 'steps: True is not allowed (true and false are not numbers); allowed'),
    ('training.steps=1:30', "training.steps: '1:30' is not allowed"),
    ('.=3', "'': unknown key"), ('=3', "'': unknown key"), ('\x1b[2J=3', r"'\x1b[2J': unknown key"),
    ('schedule={T: 1, zero_terminal_snr: true}', 'T: 1 is not allowed with schedule.zero_terminal'),
    ('schedule.T=100000', 'which then leaves a signal too small for a 64-bit number'),
    ('sampling={clip: false, guidance: 101}', 'allowed: at most 100, or clip true'),
    # paths that no file can have
    ('run=', "run: '' is not allowed (it is empty); allowed: path"),
    ('run=a\0b', r"run: 'a\x00b' is not allowed (no name of a file holds the character NUL)"),
    ('run=~nosuchuser/x', "'~nosuchuser/x' is not allowed (there is no home ~nosuchuser)"),
    ('data.root=' + 'x' * 300, '(302 characters) is not allowed (a name has at most 255 bytes'),
    # more than anyone writes
    (f'model_args={[1] * 10_001}', 'holds more than 10,000 values'),
    ('model_args=' + '[' * 50 + ']' * 50, 'nests its values deeper than 20 levels'),
    ('model_args.' * 30 + 'a=1', 'nests its values deeper than 20 levels'),
    ('seed=' + '9' * 100_001, 'holds 100,001 characters; allowed: at most 100,000'),
    ('device.x=1', "device: {'x': 1} is not allowed; allowed: text")]

def shown(value): return 'null' if value == '' else repr(yaml.safe_load(value))

REFUSED += [(f'{key}={value}', f'{key}: {shown(value)} is not allowed; allowed: {allowed}')
            for key, allowed, values in NOT_ALLOWED for value in values]

def refusal(values, overrides=()):
    with pytest.raises(ConfigError) as e: parse_config(values, overrides)
    return str(e.value)

@pytest.mark.parametrize('override, message', REFUSED, ids=[o for o, _ in REFUSED])
def test_refused(override, message):
    "And in no words of pydantic's own"
    said = refusal({}, [override])
    assert message in said and 'Input should' not in said and 'pydantic' not in said

@pytest.mark.parametrize('weight', ['eps', 'min_snr', 'x0', 'v', None])
def test_zero_terminal_snr_needs_a_weight_that_trains_the_last_level(weight):
    "With a weight of 0 at T, the first prediction of every sample would never be trained"
    values = dict(schedule=dict(zero_terminal_snr=True, T=20), sampling=dict(steps=20),
                  parameterization='v', training=dict(weight=weight))
    if weight in ('eps', 'min_snr'):
        assert f'training.weight: {weight} is not allowed with schedule' in refusal(values)
    else:
        config = parse_config(values)
        level = make_schedule(config).at(20, torch.zeros(1, 1, 1, 1))
        assert (make_fit_options(config)['weight'](level) > 0).all()

def test_all_mistakes_at_once_and_the_same_wherever_they_come_from():
    said = refusal(dict(seed=-1, trainig={}, data=dict(name='x'),
                        network=dict(attention=['a', 'b', -1])))
    keys = [line.split(':')[0] for line in said.splitlines()]
    assert keys == ['seed', 'data.name', 'network.attention', 'trainig']
    said = refusal(dict(sampling=dict(steps=2000), network=dict(attention=[7, 8])))
    assert len(said.splitlines()) == 3
    assert refusal(dict(training=dict(adam=[0.9]))) == refusal({}, ['training.adam=[0.9]'])
    assert "run.x: run holds the value 'here', not keys" in refusal(dict(run='here'), ['run.x=1'])

@pytest.mark.parametrize('values', [{'training': None}, {'training': {}}, {}, None])
def test_an_empty_section_is_all_defaults(values):
    assert parse_config(values) == Config()
    assert parse_config(values, ['training.steps=3']).training == module.TrainingConfig(steps=3)

def test_values_are_typed_and_the_last_override_wins(file):
    c = parse_config(dict(training=dict(lr='2e-4', steps=10.0)),
                     ['data={name: folder, root: pictures, size: [32, 48], flip: yes}',
                      'training.steps=5', 'training.steps=007', 'run=a=b'])
    assert repr((c.training.lr, c.training.steps, c.data.size)) == '(0.0002, 7, (32, 48))'
    assert c.data.flip is True and c.run == Path('a=b')
    check_round_trip(c, file)

def test_neither_a_config_nor_what_it_was_made_of_changes():
    values = dict(training=dict(steps=5), data=None)
    parse_config(values, ['training.steps=6', 'network.blocks=2'])
    assert values == dict(training=dict(steps=5), data=None)
    with pytest.raises(ValueError, match='frozen'): Config().seed = 1
    with pytest.raises(ValueError, match='frozen'): Config().training.lr = 1.

# Paths, as they were typed
OF_YAML = '2024 2024-05-01 0123 12:30 no ~ null 1e5 .5'.split()  # numbers, dates and others there
NAMES = [*OF_YAML, 'runs/try #2', '[set]', 'a: b', "it's", '"quoted"', ' x ', '{a: 1}', '*a', '%',
         '- a', '&a b', '!!int 1', 'tr\ny', '\udcff', '日本']

@pytest.mark.parametrize('name', NAMES)
def test_a_path_on_a_command_line_is_what_was_typed_and_comes_back_from_a_file(name, file):
    for key in ('run', 'data.root'):
        config = parse_config(dict(data=dict(name='folder', root='x')), [f'{key}={name}'])
        assert str(config.run if key == 'run' else config.data.root) == name
        check_round_trip(config, file)

@pytest.mark.parametrize('name', OF_YAML)
def test_a_path_in_a_file_is_what_is_written(name, file):
    file.write_text(f'run: {name}\ndata: {{name: folder, root: {name}}}\n')
    config = load_config(file)
    assert str(config.run) == str(config.data.root) == name
    assert str(load_config(file, [f'data={{name: folder, root: {name}}}']).data.root) == name

def test_a_home_is_a_home_wherever_a_path_is_read(file, monkeypatch):
    monkeypatch.setenv('HOME', str(file.parent))
    file.write_text('seed: 1')
    assert load_config('~/c.yaml').seed == 1

# YAML, there and back
@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path/'c.yaml'

def test_load_config(file):
    file.write_text('# a comment\nseed: 3\ntraining:\n  lr: 1e-3\nsampling:\n')
    assert load_config(file, ['seed=4']) == parse_config(dict(seed=4, training=dict(lr=1e-3)))
    for nothing in ('', '# only a comment', '{}'):
        file.write_text(nothing)
        with pytest.raises(ConfigError, match='c.yaml holds no keys'): load_config(str(file))
        assert load_config(file, ['seed=4']) == parse_config(dict(seed=4))

@pytest.mark.parametrize('text, message', [
    ('- 1\n- 2', 'must hold keys and values, not list'),
    ('just words', 'must hold keys and values, not str'),
    ('a: [1', 'is not YAML'), ('\ttabs: 1', 'is not YAML'), ('1: 2', '1: unknown key'),
    ('training:\n  lr: 0.1\n  steps: 2\n  lr: 0.2\n', 'the key lr stands twice'),
    ('seed: 1\nseed: 1\n', 'the key seed stands twice'),
    ('training.steps: 3', 'training.steps: write it as steps in the section training'),
    (bytes(range(128, 256)), 'c.yaml is not text'),
    ('a: &a [x, x, x, x]\n' + '\n'.join(f'{b}: &{b} [{", ".join([f"*{a}"] * 9)}]' for a, b in zip(
        'abcdefgh', 'bcdefghi')), 'c.yaml holds more than 10,000 values, each alias counted'),
    ('a: &a [*a]', 'holds more than 10,000 values'), ('a: ' * 50, 'is not YAML'),
    ('\n'.join(' ' * i + 'a:' for i in range(50)), 'nests its values deeper than 20 levels'),
    ('x' * 100_001, 'holds 100,001 characters'), ('seed: !!timestamp x', 'does not fit its tag'),
    ('"\\ud800": 1', r"'\ud800' is no key (line 1, column 1)")])
def test_load_config_refuses_text_that_is_no_config(file, text, message):
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=re.escape(message)): load_config(file)

@pytest.mark.skipif(os.name == 'nt', reason='files of POSIX')
@pytest.mark.parametrize('name, says', [
    ('.', 'is a folder'), ('pipe', 'is no ordinary file'), ('/dev/zero', 'is no ordinary file'),
    ('huge', 'characters'), ('~nosuchuser', 'no home ~nosuchuser'),
    ('quickstrat', f'quickstrat does not exist.*comes with the package: {", ".join(CONFIGS)}$')])
def test_what_is_no_config_file_is_refused_without_a_wait(name, says, file):
    os.mkfifo('pipe')
    with open('huge', 'wb') as f: f.truncate(2**40)
    with pytest.raises(ConfigError, match=says): load_config(name)

def test_shipped_configs_have_names_in_any_folder(file):
    "A file of that name comes first"
    for name, path in CONFIGS.items(): assert load_config(name) == load_config(path)
    assert load_config('mnist-conditional') == load_config(CONFIGS['mnist_conditional'])
    Path('mnist').write_text('run: mine')
    assert load_config('mnist').run == Path('mine')

def check_round_trip(config, file):
    file.write_text(dump_config(config))
    assert load_config(file) == config

def test_the_dump_tells_every_key_what_it_means_and_what_it_allows():
    text, leaves = dump_config(Config()), lambda values: {
        f'{s}.{k}' for s, v in values.items() for k in (v if isinstance(v, dict) and v else [''])}
    assert leaves(yaml.safe_load(text)) == leaves(Config().model_dump())
    assert all(re.search(r' # \S', line) for line in text.splitlines())
    assert re.search(r'lr: 0.0002 +# peak learning rate: number > 0 and <= 1\n', text)

@pytest.mark.parametrize('name', CONFIGS)
def test_shipped_configs(name, file):
    check_round_trip(config := load_config(CONFIGS[name]), file)
    assert config.run == Path('runs')/name and config.training.warmup < config.training.steps
    shape = dict(mnist_mini=(1, 28, 28), mnist=(1, 28, 28), cifar10=(3, 32, 32),
                 folder=(3, 64, 64))[config.data.name]
    y = torch.tensor([0]) if config.network.labels and config.data.name != 'folder' else None
    data = ImageSet(torch.zeros(1, *shape, dtype=torch.uint8), y,
                    () if y is None else tuple('0123456789'))
    x, schedule = torch.zeros(1, *shape), make_schedule(config)
    level = schedule.at(schedule.T, x)
    with torch.no_grad(): assert make_denoiser(config, data)(x, level, y).x0.shape == x.shape

def test_cifar10_is_the_papers():
    "Network size, schedule, optimizer and sampler of Ho et al. (2020), appendix B, and their code"
    c = load_config(CONFIGS['cifar10'])
    data = ImageSet(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with torch.device('meta'): denoiser = make_denoiser(c, data)
    assert sum(p.numel() for p in denoiser.parameters()) == 35_746_307
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    assert torch.equal(make_schedule(c).betas, betas)
    o = make_fit_options(c)
    assert (o['steps'], o['batch_size'], o['clip'], o['flip']) == (800_000, 128, 1., True)
    rates = [o['lr'](step) for step in (0, 4999, 700_000)]
    assert rates == pytest.approx([2e-4 / 5000, 2e-4, 2e-4])
    assert (c.training.ema, c.network.dropout, c.parameterization) == (0.9999, 0.1, 'eps')
    assert (c.sampling.variance, c.sampling.steps) == ('fixed_large', 1000)

# objects
@pytest.mark.parametrize('name, betas', [
    ('linear', linear_betas), ('cosine', cosine_betas), ('sigmoid', sigmoid_betas)])
def test_make_schedule(name, betas):
    def made(T, **more):
        values = dict(name=name, T=T) | more
        return make_schedule(parse_config(dict(schedule=values, sampling=dict(steps=20),
                                               parameterization='v')))
    assert torch.equal(made(297).betas, Schedule(betas(297)).betas)
    zero = made(20, zero_terminal_snr=True)
    assert zero.alpha_bar[-1] == 0 and zero.T == 20

def put_in_place(monkeypatch, data):
    "A data set in the place of the 5,000 digits"
    monkeypatch.setattr(module.datasets, 'mnist_mini', lambda: data)
    return data

@pytest.fixture
def two_classes(monkeypatch):
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 1, 8, 12), generator=g, dtype=torch.uint8)
    return put_in_place(monkeypatch, ImageSet(images, torch.tensor([0, 1] * 3), ('zero', 'one'),
                                              'tiny'))

def small(*overrides):
    return parse_config({}, ['training.batch_size=6', 'network.channels=8', *overrides])

def test_make_data(two_classes, monkeypatch, tmp_path):
    assert make_data(small()) is two_classes
    bare = make_data(small('network.labels=false'))
    assert bare.labels is None and bare.num_classes == 0
    assert torch.equal(bare.images, two_classes.images)
    asked = []
    for name in ('mnist', 'cifar10', 'image_folder'):
        monkeypatch.setattr(module.datasets, name, lambda *words, name=name, download=None, **_:
                            asked.append((name, *words[:3], download)) or two_classes)
    for c in (small('data.name=mnist', f'data.root={tmp_path}'), small('data.name=cifar10'),
              small('data={name: folder, root: here, size: [4, 8], channels: 1}')): make_data(c)
    assert asked == [('mnist', tmp_path, False), ('cifar10', module.DATA, True),
                     ('image_folder', Path('here'), (4, 8), 1, None)]

@pytest.mark.parametrize('levels', [1, 2, 3, 4, 5])
def test_the_refusal_of_small_images_is_the_networks_own_limit(two_classes, levels):
    "What make_data lets through, the network can take; what it refuses, the network cannot"
    c = small(f'network.multipliers={[1] * levels}', 'network.attention=[]')
    x = torch.zeros(1, *two_classes.shape)
    def forward(): make_denoiser(c, two_classes)(x, make_schedule(c).at(5, x), torch.tensor([0]))
    if levels < 5: make_data(c); forward()   # 8 x 12, 4 x 6, 2 x 3, 1 x 2
    else:
        with pytest.raises(ConfigError): make_data(c)
        with pytest.raises(ValueError): forward()

def test_make_denoiser(two_classes):
    c = small('parameterization=v', 'seed=5', 'network.dropout=0.25', 'network.unshuffle=2',
              'network.blocks=2')
    before = torch.get_rng_state()
    a, b, other = (make_denoiser(c, two_classes) for c in (c, c, small('seed=6')))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.net.label.weight, b.net.label.weight)
    assert not torch.equal(a.net.label.weight, other.net.label.weight)
    assert a.net.config == dict(in_channels=1, channels=8, multipliers=(1, 2), blocks=2,
                                attention=(1,), dropout=0.25, num_classes=2, unshuffle=2)
    assert (a.parameterization.name, other.parameterization.name) == ('v', 'eps')
    assert a.net.stem.weight.is_contiguous(memory_format=torch.channels_last)

def test_make_fit_options():
    o = make_fit_options(small('training={steps: 100, lr: 0.5, warmup: 10, decay: cosine, clip: 2, '
                               'label_dropout: 0.3}', 'data={name: cifar10, flip: true}', 'seed=4'))
    want = dict(steps=100, batch_size=64, label_dropout=0.3, clip=2., flip=True, seed=4)
    rates = [o['lr'](step) for step in (4, 9, 55, 100)]
    assert o | want == o and rates == pytest.approx([0.25, 0.5, 0.25, 0], abs=1e-9)

@pytest.mark.parametrize('overrides, weight', [
    (['parameterization=eps'], lambda snr: snr), (['parameterization=x0'], torch.ones_like),
    (['parameterization=v'], lambda snr: snr + 1),
    (['parameterization=v', 'training.weight=eps'], lambda snr: snr),
    (['training.weight=min_snr'], lambda snr: snr.clamp(max=5))])
def test_the_weight_of_the_loss(overrides, weight):
    """null is the parameterization's own: an error in eps, x0 or v counts the same at every level
    (as weights of the error in x0: SNR, 1, SNR + 1)"""
    c = small(*overrides)
    level = make_schedule(c).at(torch.tensor([1, 50, 300, 1000]), torch.zeros(4, 1, 1, 1))
    assert torch.allclose(make_fit_options(c)['weight'](level), weight(level.snr), rtol=1e-9)

# what would fail later is refused here
@pytest.mark.parametrize('overrides, message', [
    (['network={channels: 8192, multipliers: [64, 64]}'],
     '8192 channels, multipliers (64, 64) and 1 blocks are not allowed: 56,024,949,243,905 '),
    (['model=torch.nn:Linear', 'model_args={in_features: 10000000, out_features: 10000000}'],
     "10000000} are not allowed: 100,000,010,000,000 parameters need 2,000,000.2 GB"),
    (['model=math:pi'], 'model: math:pi is not a torch.nn.Module'),
    (['model=torch.nn:Linear'], 'model_args: {} is not allowed for torch.nn:Linear (TypeError: '),
    (['model=torch.nn:Identity'], 'torch.nn:Identity has no parameters'),
    (['model=torch.nn:Conv2d', 'model_args={in_channels: 1, out_channels: 1, kernel_size: 3}'],
     'model: torch.nn:Conv2d does not work as a network'),
    (['model=raises:Net'], 'model: raises:Net cannot be imported (KeyError'),
    (['model=exits:Net'], 'model: exits:Net cannot be imported (SystemExit')])
def test_networks_that_cannot_be_trained(overrides, message, two_classes, file):
    Path('raises.py').write_text('raise KeyError("me")')
    Path('exits.py').write_text('raise SystemExit(3)')
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_denoiser(parse_config({}, overrides), two_classes)

def test_batches_that_no_memory_holds():
    images = torch.zeros(1, 1, 1, 1, dtype=torch.uint8)
    large = ImageSet(images.expand(64, 3, 16384, 16384))
    with pytest.raises(ConfigError, match='smaller images'): make_denoiser(Config(), large)
    many = ImageSet(images.expand(10**9, 1, 8, 8))
    with pytest.raises(ConfigError, match='allowed: at most [0-9,]+ at a time') as e:
        make_denoiser(small(f'training.batch_size={10**9}'), many)
    fits = int(re.search('at most ([0-9,]+) at a time', str(e.value))[1].replace(',', ''))
    make_denoiser(small(f'training.batch_size={fits}'), many)

@pytest.mark.parametrize('name, why', [
    ('math:pi', "'float' object is not callable"), ('math:sin', 'TypeError'),
    ('sys:exit', 'SystemExit'), ('builtins:len', 'it gives 3'), ('builtins:id', 'it gives'),
    ('nowhere:x', 'cannot be imported')])
def test_weights_that_are_none(name, why):
    with pytest.raises(ConfigError, match=f'training.weight: {name} .*{why}'):
        make_fit_options(small(f'training.weight={name}'))

def test_own_code_that_works_is_taken(two_classes):
    c = small('training.weight=diffusion_scratch.loss:v_weight',
              'model=diffusion_scratch.transformer:DiT',
              'model_args={in_channels: 1, width: 16, depth: 1, heads: 2, num_classes: 2}')
    assert make_denoiser(c, two_classes).training
    level = make_schedule(c).at(5, torch.zeros(1, 1, 1, 1))
    assert make_fit_options(c)['weight'](level) == 1 / level.noise**2

@pytest.mark.parametrize('counts, judge, message', [
    ([4, 8], 10, 'class zero of tiny has 4 images'), ([6, 0], 10, 'are of one class'),
    ([5, 5], 10**9, 'allowed: at most'), ([5, 6], 10, '')])
def test_a_judge_who_could_not_work_is_refused_before_training(counts, judge, message, monkeypatch):
    "And one who could, can: the same images train him"
    y = torch.tensor([0] * counts[0] + [1] * counts[1])
    images = (torch.rand(len(y), 1, 8, 8) * 255).to(torch.uint8)
    put_in_place(monkeypatch, ImageSet(images, y, ('zero', 'one'), 'tiny'))
    config = small(f'judge={judge}')
    if message:
        with pytest.raises(ConfigError, match=f'judge: {judge} is not allowed.*{message}'):
            make_data(config)
        assert make_data(small('judge=0')) and make_data(small('judge=10', 'network.labels=false'))
    else: assert Reader(make_data(config)).readable_real().n == 11

def test_a_folder_of_larger_pictures_than_allowed_is_refused(tmp_path):
    Image.new('L', (40, 50)).save(tmp_path/'large.png')
    def read(limit): return make_data(small(
        'training.batch_size=1',
        f'data={{name: folder, root: {tmp_path}, size: 8, max_pixels: {limit}}}'))
    assert len(read(2000)) == 1
    with pytest.raises(ValueError, match='large.png.*max_pixels'): read(900)
