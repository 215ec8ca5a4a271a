"Likely mistakes in Python -> an error in a line or two that names the argument and what to write"
import gc, warnings
from functools import partial
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from diffusion_scratch import doctor, editing, guidance, likelihood, loss, noising, oracle
from diffusion_scratch import sampling, schedule, solvers, training, transformer, unet
from diffusion_scratch.data import ImageSet
from diffusion_scratch.denoiser import V, Denoiser, clipped, eps_from_x0
from diffusion_scratch.schedule import Schedule

S = Schedule(schedule.cosine_betas(8))
NET = unet.UNet(1, 4, (1,), 1, (), num_classes=10)
D = Denoiser(NET, V)
SHAPE = 2, 1, 4, 4
X = torch.linspace(-1, 1, 32).view(SHAPE)
GRAY = ((X + 1) * 127.5).round() / 127.5 - 1
EPS_ = torch.ones_like(X)
LEVEL = S.at(3, X)
DATA = ImageSet(torch.arange(20 * 16, dtype=torch.int).remainder(256).to(torch.uint8)
                .view(20, 1, 4, 4), torch.arange(20) % 10)
STATE = training.TrainState(D)
LR = training.warmup_constant(1e-3, 0)

class Own(nn.Module):
    "A network with a table of labels, of as many rows as it is given; row -1 may be any"
    def __init__(self, rows=10, start=None):
        super().__init__()
        self.label, self.out = nn.Embedding(rows, 16), nn.Linear(16, 16)
        if start is not None: nn.init.constant_(self.out.weight, start)
    def row(self, y): return self.label(y)
    def forward(self, x, t, y): return x + self.out(self.row(y)).view(x.shape)

class Wraps(Own):
    def row(self, y): return self.label.weight[y]

class NoLabels(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
    def forward(self, x, t): return x * self.weight / t[:, None, None, None]

def sample(denoiser=D, schedule=S, shape=SHAPE, **options):
    return sampling.sample(denoiser, schedule, shape, **dict(seed=0, progress=False) | options)

def fit(state=STATE, schedule=S, data=DATA, **options):
    options = dict(steps=99, batch_size=4, lr=LR) | options
    next(iter(training.fit(state, schedule, data, **options)))

def fit_own(net, **options): fit(training.TrainState(Denoiser(net)), **options)

bound, flow_bits, rate_distortion = (partial(f, D, S, x0=GRAY, progress=False) for f in (
    likelihood.bound, likelihood.flow_bits, likelihood.rate_distortion))
level_losses = partial(doctor.loss_by_level, D, S, X, weight=loss.v_weight)
diffusion_loss = partial(loss.diffusion_loss, D, S, X)
diagnose = partial(doctor.diagnose, D, S, losses=[1.])
invert = partial(editing.invert, D, S, X)

# a call that lacks one argument, and wrong ones: its name, its value, what to write
ARGUMENTS = [
    (Schedule, ('betas', 1000, 'linear_betas(1000)'), ('betas', 'linear', 'linear_betas()'),
     ('betas', schedule.linear_betas, 'linear_betas()')),
    (schedule.cosine_betas, ('T', 10.5, 'whole')), (schedule.sigmoid_betas, ('T', '10', 'whole')),
    (partial(schedule.linear_betas, start=0.02), ('T', 1e-4, 'whole')),
    (partial(S.at, like=X), ('t', None, 'whole'), ('t', '3', 'whole')),
    (partial(S.at, 3), ('like', X.numpy(), 'torch.from_numpy')),
    (partial(noising.q_sample, level=LEVEL, eps=EPS_), ('x0', X.numpy(), 'torch.from_numpy')),
    (Denoiser, ('net', 'model.pt', 'load'), ('net', unet.UNet, 'UNet|brackets'),
     ('net', D, 'already a Denoiser')), (clipped, ('denoiser', 'model.pt', 'Denoiser(net')),
    (partial(Denoiser, NET), ('parameterization', 'v', 'EPS|V')),
    (partial(D, X), ('level', 3, 'schedule.at')),
    (partial(D, X, LEVEL), ('y', 3, 'torch.tensor'), ('y', [3, 4], 'torch.tensor')),
    (unet.UNet, ('in_channels', (1, 28, 28), 'whole'), ('multipliers', 2, '(1, 2)'),
     ('attention', 1, '(1,)'), ('channels', 64., 'whole'), ('channels', '64', 'whole'),
     ('num_classes', None, 'whole'), ('dropout', '0.1', 'number')),
    (partial(NET, X), ('t', 3, 'torch.tensor')),
    (partial(NET, X, LEVEL.t), ('y', 3, 'torch.tensor')),
    (partial(NET, t=LEVEL.t), ('x', X.numpy(), 'torch.from_numpy')),
    (oracle.MixtureOracle, ('means', DATA, 'ImageSet|data[:][0]'),
     ('means', DATA.images, 'uint8|to_float')),
    (partial(unet.timestep_embedding, dim=32), ('t', 3, 'torch.tensor')),
    (transformer.DiT, ('width', 64., 'whole'), ('patch', '2', 'whole'),
     ('num_classes', None, 'whole')),
    (diffusion_loss, ('generator', 0, 'torch.Generator().manual_seed(0)'),
     ('weight', 'uniform', 'uniform'), ('weight', 1., 'uniform')),
    (partial(loss.vlb_terms, D, S, X), ('times', 5, 'schedule.times(5)')),
    (partial(loss.decoder_std, S, like=X), ('times', 5, 'schedule.times(5)')),
    (sample, ('times', 5, 'schedule.times(5)'), ('x_T', 5, 'seed=5'), ('first', 0.5, 'whole'),
     ('shape', 16, '(16, channels'), ('y', 3, 'torch.full((2,), 3)'),
     ('times', schedule.trailing, 'schedule.times(n)'), ('x_T', X.to('meta'), 'meta|cpu|.to('),
     ('x_T', DATA.images[:2], 'float'), ('x_T', X / 0, 'not finite'),
     ('seed', torch.Generator(), 'whole'), ('denoiser', STATE, 'TrainState|state.ema'),
     ('denoiser', lambda x, level, y: x, 'nn.Module')),
    (sampling.ancestral, ('variance', 'large', 'fixed_large'), ('variance', 0., 'fixed_large')),
    (solvers.ddim, ('eta', '0', '0..1')), (solvers.dpm_solver_pp, ('eta', '2M', '0..1')),
    (solvers.heun, ('rule', 5, 'trapezoid'), ('rule', 'trapezoid', 'exponential')),
    (partial(training.TrainState, D), ('ema', '0.9', '[0, 1)')),
    (fit, ('lr', 1e-3, 'warmup_constant(0.001, 0)'), ('steps', 1e4, 'whole'),
     ('batch_size', 4., 'whole'), ('accumulate', 2., 'whole'), ('seed', -1, ''),
     ('seed', None, 'whole'), ('label_dropout', 10, '0..1'), ('label_dropout', '0.1', '0..1'),
     ('clip', None, 'math.inf'), ('explode', None, 'math.inf'), ('weight', 'min_snr', 'uniform'),
     ('seed', torch.Generator(), 'whole'), ('lr', STATE.optimizer, 'warmup_constant'),
     ('data', DataLoader(DATA), 'DataLoader|image_set('), ('data', X, 'Tensor|image_set('),
     ('data', Subset(DATA, [0, 1]), 'Subset|image_set('), ('schedule', S.betas, 'Schedule(betas)'),
     ('state', D, 'Denoiser|TrainState(denoiser)')),
    (partial(guidance.guided, D, [3, 4]), ('scale', '2', 'number'),
     ('scale', torch.ones(2), 'number')),
    (partial(guidance.drop_labels, DATA.labels, 0.1), ('generator', 0, 'torch.Generator()')),
    (partial(guidance.null_label_last, NET), ('num_classes', 0, '')),
    (partial(editing.resampled, jump=1, repeats=2), ('times', 5, 'schedule.times(5)')),
    (partial(editing.steered, D, scale=1.), ('loss', 5, '')),
    (partial(editing.steered, D, torch.norm), ('scale', '1', 'number'),
     ('scale', torch.ones(2), 'number')),
    (partial(editing.steered, D, torch.norm, 1.), ('least', '0', '0..1')),
    (editing.gray, ('weights', 'rgb', 'numbers')), (invert, ('times', 5, 'schedule.times(5)')),
    (partial(invert, S.times(4)), ('step', solvers.ddim, 'ddim()')),
    (partial(editing.inpaint, D, X), ('mask', (X > 0).byte(), 'torch.bool')),
    (partial(editing.consistent, D, X), ('view', editing.pooled, 'pooled(k)')),
    (partial(editing.interpolate, X, EPS_), ('w', '0.5', 'number')),
    (partial(editing.interpolate, b=EPS_, w=0.5), ('a', X.numpy(), 'torch.from_numpy')),
    (bound, ('times', 5, 'schedule.times(5)'), ('draws', 2., 'whole'), ('batch_size', 2., 'whole'),
     ('posterior', 'large', 'fixed_large'), ('decoder', 'density', 'density_nll')),
    (flow_bits, ('probes', 4, 'rademacher(4)'), ('width', '8bit', 'number'), ('seed', -1, '')),
    (likelihood.rademacher, ('n', 1.5, 'whole')),
    (rate_distortion, ('times', 5, 'schedule.times(5)')),
    (partial(diagnose, DATA), ('weight', 'v', 'uniform')),
    (partial(diagnose, weight=loss.v_weight), ('data', DataLoader(DATA), 'DataLoader|image_set(')),
    (level_losses, ('times', 5, '[5]')),
    (partial(level_losses, times=[1]), ('batch_size', 2., 'whole'), ('seed', None, 'whole'))]

# what a message says of each of some other calls
OTHERS = {
    'level = 3|schedule.at': [
        lambda: noising.q_sample(X, 3, EPS_), lambda: noising.q_step(X, 3, 2, EPS_),
        lambda: noising.q_posterior(X, X, 3, 2), lambda: eps_from_x0(X, X, 3),
        lambda: oracle.MixtureOracle(X)(X, 3), lambda: loss.loss_at(D, X, 3, EPS_)],
    'level|schedule.at': [lambda: noising.q_sample(X, torch.tensor([3, 3]), EPS_),
                          lambda: D(X, torch.tensor([3, 3]))],
    'Denoiser(net': [
        lambda: clipped(NET)(X, LEVEL), lambda: loss.diffusion_loss(NET, S, X),
        lambda: sample(NET), lambda: sample(guidance.guided(NET, [3, 4], 2.)),
        lambda: sample(editing.inpaint(NET, X, X > 0)),
        lambda: editing.invert(NET, S, X, S.times(4)),
        lambda: likelihood.bound(NET, S, GRAY, progress=False)],
    'x0|ImageSet|data[:][0]': [lambda: loss.diffusion_loss(D, S, DATA),
                               lambda: loss.vlb_terms(D, S, DATA), lambda: bound(x0=DATA)],
    'uint8|to_float': [lambda: noising.q_sample(DATA.images[:2], LEVEL, EPS_),
                       lambda: loss.diffusion_loss(D, S, DATA.images)],
    'schedule|ImageSet': [lambda: fit(STATE, DATA, S),
                          lambda: doctor.diagnose(D, DATA, S, [1.], weight=loss.v_weight)],
    'schedule|Tensor': [lambda: loss.diffusion_loss(D, X, S),
                        lambda: editing.invert(D, X, S, S.times(4))],
    "y|'cat'|whole": [lambda: sample(y=['cat', 'dog']), lambda: guidance.guided(D, ['cat'], 2.)],
    'Wraps|-1|9|null_label_last': [lambda: fit_own(Wraps(10)),
                                   lambda: fit_own(Wraps(10, start=0.))]}

def shown(name, value):
    "How a message begins: with the value where it is short"
    short = isinstance(value, (int, float, str, list, tuple, type(None)))
    return f'{name} = {value!r}' if short else name

MISTAKES = [
    *((partial(call, **{name: value}), f'{shown(name, value)}|{words}')
      for call, *wrong in ARGUMENTS for name, value, words in wrong),
    *((call, words) for words, calls in OTHERS.items() for call in calls),
    # schedule, noising
    (lambda: Schedule([]), 'betas|T >= 1'),
    (lambda: schedule.zero_terminal_snr(S), 'betas|schedule.betas'),
    (lambda: S.at(0.5, X), 't must be whole numbers'),
    (lambda: S.at(3, SHAPE), 'like|batch of images'),
    (lambda: S.is_close(S.betas), 'Schedule(betas)'),
    (lambda: noising.q_sample(X, S, EPS_), 'level|Schedule|schedule.at'),
    (lambda: noising.q_sample(X, EPS_, LEVEL), 'eps|Level'),
    (lambda: noising.q_sample(X, LEVEL, EPS_.to('meta')), 'x0|cpu|eps|meta|.to('),
    # denoiser, networks, oracle
    (lambda: Denoiser(V, NET), 'net = V|Denoiser(net, V)'),
    (lambda: D(LEVEL, X), 'x_t|Level'),
    (lambda: D(X, LEVEL, torch.tensor([3, 10])), '10|0..9'),
    (lambda: D(X.permute(0, 2, 3, 1), LEVEL), '(2, 4, 4, 1)|(B,1,H,W)'),
    (lambda: NET(X, LEVEL), 't|Level|Denoiser(net'),
    (lambda: NET(DATA.images[:2], LEVEL.t), 'uint8|[-1, 1]'),
    (lambda: oracle.GaussianOracle(np.zeros(4), np.eye(4)), 'mean|torch.from_numpy'),
    # loss, sampling
    (lambda: diffusion_loss(weight=loss.min_snr), 'min_snr()'),
    (lambda: diffusion_loss(weight=loss.vlb_weight), 'vlb_weight(schedule)'),
    (lambda: sample(times=[0, 4, 8]), 'down to 0|times(n)'),
    (lambda: sample(times=[8., 4., 0.]), 'whole numbers'),
    (lambda: sample(NoLabels()), 'NoLabels|Denoiser(net'),
    (lambda: sample(S, D), 'denoiser|Schedule'),
    (lambda: sample(D, SHAPE, S), 'schedule|(2, 1, 4, 4)'),
    (lambda: sample((D, S)), 'denoiser|tuple'),
    (lambda: sample(shape=(1, 4, 4)), '(1, 4, 4)|(B,1,H,W)'),
    (lambda: sample(shape=(2, 1, -4, 4)), 'shape|-4|at least 1'),
    (lambda: sample(shape=(2, 1, 4., 4)), 'shape|whole'),
    (lambda: sample(Denoiser(NoLabels()), y=[1, 2]), 'NoLabels takes no labels'),
    (lambda: sample(Denoiser(Own())), 'Own|y|null_label_last'),
    (lambda: sampling.ancestral(loss.optimal), 'optimal|class|optimal(table)'),
    # training, guidance
    (lambda: training.TrainState(NET), 'UNet|Denoiser(net'),
    (lambda: fit(S, STATE), 'state|Schedule'),
    (lambda: fit_own(NoLabels()), 'NoLabels|takes no labels|ImageSet(data.images)'),
    (lambda: fit_own(unet.UNet(1, 4, (1,), 1, ())), 'num_classes=0|num_classes=10'),
    (lambda: fit_own(Own(10)), 'Own|-1|null_label_last'),
    (lambda: guidance.guided(D, 2., [3, 4]), 'y|one label for each'),
    (lambda: sample(guidance.guided(D, [3, 4], 2.), y=[3, 4]), 'holds its labels'),
    (lambda: sample(guidance.guided(Denoiser(Own(10)), [3, 4], 2.)), 'Own|null_label_last'),
    # editing, likelihood, doctor
    (lambda: editing.inpaint(D, X > 0, X), 'known|bool'),
    (lambda: editing.invert(D, S, DATA.images, S.times(4)), 'x0|to_float'),
    (lambda: bound(y=['a', 'b']), "y|'a'|whole"),
    (lambda: flow_bits(probes=likelihood.rademacher), 'rademacher()'),
    (lambda: diagnose(DATA, losses=[training.Metrics(1, 0, *range(4))], weight=loss.v_weight),
     'losses|m.loss')]

@pytest.mark.parametrize('make, words', MISTAKES)
def test_a_mistake_is_answered_with_what_to_write(make, words):
    with pytest.raises((TypeError, ValueError)) as found: make()
    said = str(found.value)
    assert all(w in said for w in words.split('|')), said
    assert len(said) < 320 and said.count('\n') < 2, said

@pytest.mark.parametrize('same', [
    *(lambda options=options: (sample(**options[0]), sample(**options[1])) for options in [
        (dict(y=[3, 8]), dict(y=torch.tensor([3, 8]))),
        (dict(y=np.array([3, 8])), dict(y=torch.tensor([3, 8]))),
        (dict(shape=[*SHAPE]), {}), (dict(shape=torch.Size(SHAPE)), {}),
        (dict(shape=np.array(SHAPE)), {}), (dict(x_T=X.numpy()), dict(x_T=X)),
        (dict(times=torch.tensor([8, 4, 0])), dict(times=[8, 4, 0])),
        (dict(seed=np.int64(3)), dict(seed=3))]),
    lambda: (sample(x_T=X.double()).float(), sample(x_T=X)),
    lambda: (guidance.guided(D, np.array([3, 8]), np.float32(2))(X, LEVEL).x0,
             guidance.guided(D, torch.tensor([3, 8]), torch.tensor(2.))(X, LEVEL).x0),
    lambda: (Schedule(schedule.cosine_betas(np.int64(8))).betas, S.betas),
    lambda: (Schedule(S.betas.numpy()).betas, S.betas),
    lambda: (bound(y=[3, 8], seed=0).each, bound(y=torch.tensor([3, 8]), seed=0).each)])
def test_what_means_the_same_gives_the_same(same): torch.testing.assert_close(*same())

def test_a_network_of_numpy_numbers_keeps_plain_ones():
    one = np.int64(1)
    net = unet.UNet(one, np.int64(4), np.array([1]), one, [], num_classes=np.int32(3))
    assert all(type(v) in (int, float, tuple) for v in net.config.values())
    assert type(net.config['multipliers'][0]) is int

def test_training_that_nobody_iterates_is_said():
    state = training.TrainState(D)
    with pytest.warns(RuntimeWarning, match=r'nothing was trained.*for .* in fit\('):
        training.fit(state, S, DATA, steps=2, batch_size=4, lr=LR)
        gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for _ in training.fit(state, S, DATA, steps=2, batch_size=4, lr=LR): break
        gc.collect()
    assert state.step == 1

@pytest.mark.parametrize('table', [Own, Wraps])
def test_a_table_with_a_last_row_for_no_label_trains_and_guides(table):
    "Row K stands for no label: it is taken for -1 and where no labels are given, and it learns"
    net = guidance.null_label_last(table(11), 10)
    x, t = torch.zeros(3, 1, 4, 4), torch.tensor([1, 1, 1])
    net_of = lambda y: net.net(x, t, torch.tensor(y))
    assert torch.equal(net(x, t, torch.tensor([3, -1, 9])), net_of([3, 10, 9]))
    assert torch.equal(net(x, t), net_of([10, 10, 10]))
    before = net.net.label.weight.detach().clone()
    state = training.TrainState(Denoiser(net, V))
    for _ in training.fit(state, S, DATA, steps=1, batch_size=20, lr=LR, label_dropout=1.): pass
    moved = (net.net.label.weight != before).any(1)
    assert moved[10] and not moved[:10].any()
    assert sample(guidance.guided(state.ema, [3, 8], 2.), S, SHAPE).isfinite().all()

def test_a_network_of_ones_own_that_knows_no_label_is_taken():
    class Shifted(Own):
        def row(self, y): return self.label(y + 1)
    fit_own(Shifted(11))
    fit_own(Own(10), label_dropout=0.)  # -1 is never passed
    fit_own(NoLabels(), data=ImageSet(DATA.images))
