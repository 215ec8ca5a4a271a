"""The config from outside: what it refuses and how it says so, what comes back, what it makes."""
import math
import re
from pathlib import Path

import pytest
import torch
import yaml

import diffusion_scratch.config as module
from diffusion_scratch.config import (Config, ConfigError, DataConfig, NetworkConfig,
                                      SamplingConfig, ScheduleConfig, TrainingConfig, dump_config,
                                      load_config, make_data, make_denoiser, make_fit_options,
                                      make_schedule, parse_config)
from diffusion_scratch.data import ImageSet
from diffusion_scratch.schedule import Schedule, cosine_betas, linear_betas, sigmoid_betas

CONFIGS = sorted((Path(__file__).parent.parent/'configs').glob('*.yaml'))


# One mistake a line: the override, and what the message must hold
REFUSED = [
    # unknown keys
    ('training.stesp=3', 'training.stesp: unknown key; did you mean training.steps?'),
    ('trainig.steps=3', 'trainig: unknown key; did you mean training?'),
    ('lr=0.1', 'lr: unknown key; did you mean training.lr?'),
    ('network.multiplier=[1]', 'did you mean network.multipliers?'),
    ('training.channels=8', 'did you mean data.channels or network.channels?'),
    ('training.learning_rate=1',
     'training.learning_rate: unknown key; the keys of training are steps, batch_size, '
     'accumulate, precision, lr,'),
    ('qqq=1', 'qqq: unknown key; the keys and sections are run, seed,'),
    ('training={1: 2}', 'training.1: unknown key'),
    # words
    ('data.name=MNIST',
     "data.name: 'MNIST' is not allowed; allowed: mnist_mini, mnist, cifar10, folder. Did you "
     "mean mnist?"),
    ('data.name=3', 'data.name: 3 is not allowed; allowed: mnist_mini'),
    ('schedule.name=cosin', 'allowed: linear, cosine, sigmoid. Did you mean cosine?'),
    ('parameterization=velocity',
     "parameterization: 'velocity' is not allowed; allowed: eps, x0, v"),
    ('training.weight=minsnr',
     "training.weight: 'minsnr' is not allowed; allowed: eps, x0, v, min_snr, or module:name, "
     "of your own code, or null. Did you mean min_snr?"),
    # whole numbers
    ('training.steps=0', 'training.steps: 0 is not allowed; allowed: whole number >= 1'),
    ('training.steps=many', "training.steps: 'many' is not allowed; allowed: whole number >= 1"),
    ('training.steps=1.5', 'training.steps: 1.5 is not allowed'),
    ('training.steps=', 'training.steps: null is not allowed; allowed: whole number >= 1'),
    ('training.steps=yes', 'training.steps: True is not allowed'),
    ('training.steps=[1]', 'training.steps: [1] is not allowed'),
    ('seed=-1', 'seed: -1 is not allowed; allowed: whole number >= 0'),
    (f'seed={2**63}', f'seed: {2**63} is not allowed'),
    ('threads=100000', 'threads: 100000 is not allowed; allowed: whole number >= 0 and <= 1024'),
    ('network.channels=30',
     'network.channels: 30 is not allowed; allowed: whole number >= 4 and multiple of 4'),
    # numbers
    ('training.lr=0', 'training.lr: 0 is not allowed; allowed: number > 0 and <= 1'),
    ('training.lr=2', 'training.lr: 2 is not allowed; allowed: number > 0 and <= 1'),
    ('training.lr=fast', "training.lr: 'fast' is not allowed; allowed: number > 0 and <= 1"),
    ('training.lr=true', 'training.lr: True is not allowed'),
    ('training.clip=.inf', 'training.clip: inf is not allowed; allowed: number > 0'),
    ('training.ema=.nan', 'training.ema: nan is not allowed; allowed: number >= 0 and < 1'),
    ('network.dropout=1', 'network.dropout: 1 is not allowed; allowed: number >= 0 and < 1'),
    ('sampling.guidance=-2', 'sampling.guidance: -2 is not allowed; allowed: number >= -1'),
    # lists, unions and the rest
    ('training.adam=[0.9]',
     'training.adam: [0.9] is not allowed; allowed: list of 2, each number >= 0 and < 1'),
    ('training.adam=[0.9, 0.9, 0.9]',
     'training.adam: [0.9, 0.9, 0.9] is not allowed; allowed: list of 2'),
    ('training.adam=[0.9, 1]', 'training.adam: [0.9, 1] is not allowed'),
    ('network.multipliers=[]',
     'network.multipliers: [] is not allowed; allowed: list of 1 or more, each whole number >= 1'),
    ('network.multipliers=2', 'network.multipliers: 2 is not allowed; allowed: list of 1 or more'),
    ('network.attention=[-1]',
     'network.attention: [-1] is not allowed; allowed: list of any length, each whole number >= 0'),
    ('data.size=0',
     'data.size: 0 is not allowed; allowed: whole number >= 1, or list of 2, each whole number '
     '>= 1'),
    ('data.size=[1, 2, 3]',
     'data.size: [1, 2, 3] is not allowed; allowed: whole number >= 1, or list of 2'),
    ('data.channels=2', 'data.channels: 2 is not allowed; allowed: 1, 3'),
    ('data.flip=maybe', "data.flip: 'maybe' is not allowed; allowed: true or false"),
    ('run=', 'run: null is not allowed; allowed: path'),
    ('device=3', 'device: 3 is not allowed; allowed: text'),
    ('training=5',
     'training: 5 is not allowed; allowed: a section with the keys steps, batch_size'),
    # fine alone, wrong together
    ('schedule.zero_terminal_snr=true',
     'parameterization: eps is not allowed with schedule.zero_terminal_snr'),
    ('schedule.T=100',
     'schedule.T: 100 is not allowed with schedule.name linear, which then leaves 36% of the '
     'variance'),
    ('sampling.steps=1001',
     'sampling.steps: 1001 is not allowed; allowed: whole number >= 1 and <= 1000'),
    ('network.attention=[0, 2]', 'network.attention: level 2 is not allowed; allowed: 0..1'),
    ('training.label_dropout=0',
     'sampling.guidance: 0.5 is not allowed with training.label_dropout 0'),
    ('data.size=32', 'data.size: 32 is not allowed with data.name mnist_mini'),
    ('data.channels=1', 'data.channels: 1 is not allowed with data.name mnist_mini'),
    ('data.root=/tmp', 'data.root: /tmp is not allowed with data.name mnist_mini'),
    ('data.name=folder', 'data.root: the folder of your images is missing'),
    # overrides that are none
    ('training.steps', "'training.steps' is not an override; write section.key=value"),
    ('training.lr=[1', 'training.lr is not YAML'),
    ('device.x=1', "device: {'x': 1} is not allowed; allowed: text"),
]


@pytest.mark.parametrize('override, message', REFUSED, ids=[o for o, _ in REFUSED])
def test_refused(override, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as e: parse_config({}, [override])
    # no words of pydantic's own
    assert 'Input should' not in str(e.value) and 'pydantic' not in str(e.value)


def test_the_wrong_value_is_refused_wherever_it_came_from():
    "From YAML, from Python and from the command line, the message is the same"
    said = set()
    for make in (lambda: parse_config(dict(training=dict(adam=[0.9]))),
                 lambda: parse_config({}, ['training.adam=[0.9]']),
                 lambda: parse_config(yaml.safe_load('training: {adam: [0.9]}'))):
        with pytest.raises(ConfigError) as e: make()
        said.add(str(e.value))
    assert len(said) == 1


def test_all_mistakes_at_once():
    with pytest.raises(ConfigError) as e:
        parse_config(dict(seed=-1, trainig={}, data=dict(name='x'),
                          network=dict(attention=['a', 'b', -1])))
    keys = [line.split(':')[0] for line in str(e.value).splitlines()]
    assert keys == ['seed', 'data.name', 'network.attention', 'trainig']
    with pytest.raises(ConfigError) as e:
        parse_config(dict(sampling=dict(steps=2000), network=dict(attention=[7, 8])))
    assert len(str(e.value).splitlines()) == 3


def test_the_override_of_a_value_that_is_no_section():
    with pytest.raises(ConfigError, match="run.x: run holds the value 'here', not keys"):
        parse_config(dict(run='here'), ['run.x=1'])


@pytest.mark.parametrize('values', [{'training': None}, {'training': {}}, {}, None])
def test_an_empty_section_is_all_defaults(values):
    assert parse_config(values) == Config()
    assert parse_config(values, ['training.steps=3']).training == TrainingConfig(steps=3)


def test_values_are_typed_and_the_last_override_wins():
    c = parse_config(dict(training=dict(lr='2e-4', steps=10.0)),
                     ['data={name: folder, root: pictures, size: [32, 48], flip: yes}',
                      'training.steps=5', 'training.steps=7', 'run=a=b'])
    assert (c.training.lr, c.training.steps, c.data.size) == (2e-4, 7, (32, 48))
    assert c.data.flip and c.run == Path('a=b')
    assert type(c.training.lr) is float and type(c.training.steps) is int


def test_parse_config_changes_nothing_of_the_callers():
    values = dict(training=dict(steps=5), data=None)
    parse_config(values, ['training.steps=6', 'network.blocks=2'])
    assert values == dict(training=dict(steps=5), data=None)


def test_a_config_does_not_change():
    with pytest.raises(ValueError, match='frozen'): Config().seed = 1
    with pytest.raises(ValueError, match='frozen'): Config().training.lr = 1.


def test_sections_are_checked_alone():
    for make in (lambda: SamplingConfig(steps=0), lambda: NetworkConfig(channels=6),
                 lambda: ScheduleConfig(T=0), lambda: DataConfig(nam='mnist')):
        with pytest.raises(ValueError): make()


# YAML
def test_load_config(tmp_path):
    file = tmp_path/'c.yaml'
    file.write_text('# a comment\nseed: 3\ntraining:\n  lr: 1e-3\nsampling:\n')
    assert load_config(file, ['seed=4']) == parse_config(dict(seed=4, training=dict(lr=1e-3)))
    file.write_text('')
    assert load_config(str(file)) == Config()


@pytest.mark.parametrize('text, message', [
    ('- 1\n- 2', 'must hold keys and values, not list'),
    ('just words', 'must hold keys and values, not str'),
    ('a: [1', 'is not YAML'),
    ('training:\n  lr: 0.1\n  steps: 2\n  lr: 0.2\n', 'the key lr stands twice'),
    ('seed: 1\nseed: 1\n', 'the key seed stands twice'),
    ('training.steps: 3', 'training.steps: write it as steps in the section training'),
    ('1: 2', '1: unknown key'),
    ('\ttabs: 1', 'is not YAML')])
def test_load_config_refuses_text_that_is_no_config(tmp_path, text, message):
    file = tmp_path/'c.yaml'; file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)): load_config(file)


def test_load_config_refuses_what_is_no_text_file(tmp_path, monkeypatch):
    (tmp_path/'bytes.yaml').write_bytes(bytes(range(128, 256)))
    with pytest.raises(ConfigError, match='bytes.yaml is not text'):
        load_config(tmp_path/'bytes.yaml')
    with pytest.raises(ConfigError, match='is a folder'): load_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    says = 'quickstrat.yaml does not exist.*in ./configs there is none'
    with pytest.raises(ConfigError, match=says): load_config('quickstrat.yaml')
    (tmp_path/'configs').mkdir(); (tmp_path/'configs'/'quickstart.yaml').touch()
    says = re.escape(f'in ./configs there are {Path("configs/quickstart.yaml")}')
    with pytest.raises(ConfigError, match=says): load_config('quickstrat.yaml')


# There and back
@pytest.mark.parametrize('overrides', [
    [],
    ['data={name: folder, root: my pictures, size: [32, 48]}', 'training.weight=min_snr',
     'run="a b/c: d"', 'training.lr=1e-5'],
    ['run=~/x', 'seed=9223372036854775807', 'network={multipliers: [1, 2, 3], attention: []}',
     'device="cuda:1"']])
def test_round_trip(tmp_path, overrides):
    config = parse_config({}, overrides)
    (tmp_path/'c.yaml').write_text(dump_config(config))
    assert load_config(tmp_path/'c.yaml') == config


def test_the_dump_tells_every_key_what_it_means_and_what_it_allows():
    text = dump_config(Config())
    leaves = lambda values: {f'{s}.{k}' if k else s for s, v in values.items()
                             for k in (v if isinstance(v, dict) and v else [''])}
    assert leaves(yaml.safe_load(text)) == leaves(Config().model_dump())
    assert all(re.search(r' # \S', line) for line in text.splitlines())
    assert re.search(r'lr: 0.0002 +# peak learning rate: number > 0 and <= 1\n', text)


@pytest.mark.parametrize('file', CONFIGS, ids=lambda f: f.stem)
def test_shipped_configs(file, tmp_path):
    config = load_config(file)
    (tmp_path/'c.yaml').write_text(dump_config(config))
    assert load_config(tmp_path/'c.yaml') == config
    assert config.run == Path('runs')/file.stem and config.training.warmup < config.training.steps
    shape = dict(mnist_mini=(1, 28, 28), mnist=(1, 28, 28), cifar10=(3, 32, 32),
                 folder=(3, 64, 64))[config.data.name]
    images, labels, classes = torch.zeros(4, *shape, dtype=torch.uint8), None, ()
    if config.network.labels and config.data.name != 'folder':
        labels, classes = torch.zeros(4, dtype=torch.long), tuple('0123456789')
    denoiser = make_denoiser(config, ImageSet(images, labels, classes))
    x, schedule = torch.zeros(1, *shape), make_schedule(config)
    y = None if labels is None else labels[:1]
    with torch.no_grad(): assert denoiser(x, schedule.at(schedule.T, x), y).x0.shape == x.shape


def test_cifar10_is_the_papers(tmp_path):
    "Network size, schedule, optimizer and sampler of Ho et al. (2020), appendix B, and their code"
    c = load_config([f for f in CONFIGS if f.stem == 'cifar10'][0])
    denoiser = make_denoiser(c, ImageSet(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)))
    assert sum(p.numel() for p in denoiser.parameters()) == 35_746_307
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    assert torch.equal(make_schedule(c).betas, betas)
    o = make_fit_options(c)
    assert (o['steps'], o['batch_size'], o['clip'], o['flip']) == (800_000, 128, 1., True)
    assert [o['lr'](0), o['lr'](4999)] == pytest.approx([2e-4 / 5000, 2e-4])
    assert o['lr'](700_000) == 2e-4
    assert (c.training.ema, c.network.dropout, c.parameterization) == (0.9999, 0.1, 'eps')
    assert (c.sampling.variance, c.sampling.steps) == ('fixed_large', 1000)


# Objects
def test_linear_schedules_are_refused_exactly_where_they_leave_more_than_a_twentieth():
    for T in (1, 10, 100, 250, 296, 297, 300, 1000):
        left = math.prod(1 - (1e-4 + (0.02 - 1e-4) * t / max(1, T - 1)) for t in range(T))
        values = dict(schedule=dict(T=T), sampling=dict(steps=1))
        if left > 0.05:
            with pytest.raises(ConfigError, match=f'schedule.T: {T} is not allowed'):
                parse_config(values)
        else:
            kept = make_schedule(parse_config(values)).alpha_bar[-1].item()
            assert kept == pytest.approx(left, rel=1e-9)


@pytest.mark.parametrize('name, betas', [
    ('linear', linear_betas), ('cosine', cosine_betas), ('sigmoid', sigmoid_betas)])
def test_make_schedule(name, betas):
    c = parse_config(dict(schedule=dict(name=name, T=400)))
    assert torch.equal(make_schedule(c).betas, Schedule(betas(400)).betas)
    zero = parse_config(dict(parameterization='v',
                             schedule=dict(name=name, T=20, zero_terminal_snr=True),
                             sampling=dict(steps=20)))
    assert make_schedule(zero).alpha_bar[-1] == 0 and make_schedule(zero).T == 20


@pytest.fixture
def two_classes(monkeypatch):
    "A tiny data set in the place of the 5,000 digits"
    g = torch.Generator().manual_seed(0)
    data = ImageSet(torch.randint(0, 256, (6, 1, 8, 12), generator=g, dtype=torch.uint8),
                    torch.tensor([0, 1] * 3), ('zero', 'one'), 'tiny')
    monkeypatch.setattr(module.datasets, 'mnist_mini', lambda: data)
    return data


def small(*overrides):
    return parse_config({}, ['training.batch_size=6', 'network.channels=8', *overrides])


def test_make_data(two_classes, monkeypatch, tmp_path):
    assert make_data(small()) is two_classes
    bare = make_data(small('network.labels=false'))
    assert bare.labels is None and bare.num_classes == 0
    assert torch.equal(bare.images, two_classes.images)
    asked = []
    for name in ('mnist', 'cifar10'):
        monkeypatch.setattr(module.datasets, name,
                            lambda root, download, name=name: asked.append((name, root, download))
                            or two_classes)
    monkeypatch.setattr(module.datasets, 'image_folder',
                        lambda *a, **k: asked.append(('folder', *a[:3])) or two_classes)
    for c in (small('data.name=mnist', f'data.root={tmp_path}'), small('data.name=cifar10'),
              small('data={name: folder, root: here, size: [4, 8], channels: 1}')):
        make_data(c)
    assert asked == [('mnist', tmp_path, False), ('cifar10', module.DATA, True),
                     ('folder', Path('here'), (4, 8), 1)]


def test_make_data_refuses_what_does_not_fit(two_classes):
    says = 'batch_size: 7 is not allowed; allowed: whole number >= 1 and <= 6, the images of tiny'
    with pytest.raises(ConfigError, match=says): make_data(small('training.batch_size=7'))
    with pytest.raises(ConfigError, match='network.multipliers: 3 levels with unshuffle 4 need '
                       'images of at least 16 x 16, and those of tiny have 8 x 12'):
        make_data(small('network.multipliers=[1, 1, 1]', 'network.unshuffle=4'))
    make_data(small('network.multipliers=[1, 1, 1, 1]'))  # 8 x 12, 4 x 6, 2 x 3, 1 x 2


def test_the_refusal_of_small_images_is_the_networks_own_limit(two_classes):
    "What make_data lets through, the network can take; what it refuses, the network cannot"
    for levels in (1, 2, 3, 4, 5):
        c = small(f'network.multipliers={[1] * levels}', 'network.attention=[]')
        def forward():
            x = torch.zeros(1, *two_classes.shape)
            make_denoiser(c, two_classes)(x, make_schedule(c).at(5, x), torch.tensor([0]))
        if levels < 5: make_data(c); forward()
        else:
            with pytest.raises(ConfigError): make_data(c)
            with pytest.raises(ValueError): forward()


def test_make_denoiser(two_classes):
    c = small('parameterization=v', 'seed=5', 'network.dropout=0.25', 'network.unshuffle=2',
              'network.blocks=2')
    before = torch.get_rng_state()
    a, b = make_denoiser(c, two_classes), make_denoiser(c, two_classes)
    other = make_denoiser(small('seed=6'), two_classes)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert not torch.equal(a.net.label.weight, other.net.label.weight)
    assert a.net.config == dict(in_channels=1, channels=8, multipliers=(1, 2), blocks=2,
                                attention=(1,), dropout=0.25, num_classes=2, unshuffle=2)
    assert (a.parameterization.name, other.parameterization.name) == ('v', 'eps')
    assert a.net.stem.weight.is_contiguous(memory_format=torch.channels_last)


def test_make_fit_options():
    o = make_fit_options(small('training={steps: 100, lr: 0.5, warmup: 10, decay: cosine, clip: 2, '
                               'label_dropout: 0.3}', 'data={name: cifar10, flip: true}', 'seed=4'))
    want = dict(steps=100, batch_size=64, label_dropout=0.3, clip=2., flip=True, seed=4)
    assert {k: o[k] for k in want} == want
    rates = [o['lr'](step) for step in (4, 9, 55, 100)]
    assert rates == pytest.approx([0.25, 0.5, 0.25, 0], abs=1e-9)


@pytest.mark.parametrize('overrides, weight', [
    (['parameterization=eps'], lambda snr: snr),
    (['parameterization=x0'], lambda snr: 1 + 0 * snr),
    (['parameterization=v'], lambda snr: snr + 1),
    (['parameterization=v', 'training.weight=eps'], lambda snr: snr),
    (['training.weight=min_snr'], lambda snr: snr.clamp(max=5))])
def test_the_weight_of_the_loss(overrides, weight):
    """null is the parameterization's own: an error in eps, x0 or v counts the same at every level
    (as weights of the error in x0: SNR, 1, SNR + 1)"""
    c = small(*overrides)
    level = make_schedule(c).at(torch.tensor([1, 50, 300, 1000]), torch.zeros(4, 1, 1, 1))
    assert torch.allclose(make_fit_options(c)['weight'](level), weight(level.snr), rtol=1e-9)
