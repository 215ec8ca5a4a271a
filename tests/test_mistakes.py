"Likely mistakes in Python -> an error in a line or two that names the argument and what to write"
import gc, warnings
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

def sample(*args, **options):
    return sampling.sample(*args, **dict(seed=0, progress=False) | options)

def fit(state=STATE, plan=S, data=DATA, **options):
    next(iter(training.fit(state, plan, data, **dict(steps=99, batch_size=4, lr=LR) | options)))

def likelihood_of(f, x0=GRAY, **options): return f(D, S, x0, **dict(progress=False) | options)

def level_losses(**options):
    return doctor.loss_by_level(D, S, X, **dict(weight=loss.v_weight, times=[1]) | options)

MISTAKES = [
    # schedule
    (lambda: Schedule(1000), 'betas = 1000|linear_betas(1000)'),
    (lambda: Schedule('linear'), "betas = 'linear'|linear_betas()"),
    (lambda: Schedule(schedule.linear_betas), 'betas|linear_betas()'),
    (lambda: Schedule([]), 'betas|T >= 1'),
    (lambda: schedule.cosine_betas(10.5), 'T = 10.5|whole'),
    (lambda: schedule.sigmoid_betas('10'), "T = '10'|whole"),
    (lambda: schedule.linear_betas(1e-4, 0.02), 'T = 0.0001|whole'),
    (lambda: schedule.zero_terminal_snr(S), 'betas|schedule.betas'),
    (lambda: S.at(0.5, X), 't must be whole numbers'),
    (lambda: S.at(None, X), 't = None|whole'),
    (lambda: S.at('3', X), "t = '3'|whole"),
    (lambda: S.at(3, SHAPE), 'like|batch of images'),
    (lambda: S.at(3, X.numpy()), 'like|torch.from_numpy'),
    (lambda: S.is_close(S.betas), 'Schedule(betas)'),
    # noising
    (lambda: noising.q_sample(X, 3, EPS_), 'level = 3|schedule.at'),
    (lambda: noising.q_sample(X, torch.tensor([3, 3]), EPS_), 'level|schedule.at'),
    (lambda: noising.q_sample(X, S, EPS_), 'level|Schedule|schedule.at'),
    (lambda: noising.q_sample(X, EPS_, LEVEL), 'eps|Level'),
    (lambda: noising.q_sample(DATA.images[:2], LEVEL, EPS_), 'uint8|to_float'),
    (lambda: noising.q_sample(X.numpy(), LEVEL, EPS_), 'x0|torch.from_numpy'),
    (lambda: noising.q_sample(X, LEVEL, EPS_.to('meta')), 'x0|cpu|eps|meta|.to('),
    (lambda: noising.q_step(X, 3, 2, EPS_), 'level = 3|schedule.at'),
    (lambda: noising.q_posterior(X, X, 3, 2), 'level = 3|schedule.at'),
    # denoiser
    (lambda: Denoiser(NET, 'v'), "parameterization = 'v'|EPS|V"),
    (lambda: Denoiser(V, NET), 'net = V|Denoiser(net, V)'),
    (lambda: Denoiser(unet.UNet), 'net|UNet|brackets'),
    (lambda: Denoiser('model.pt'), "net = 'model.pt'|load"),
    (lambda: Denoiser(D), 'net|already a Denoiser'),
    (lambda: D(X, 3), 'level = 3|schedule.at'),
    (lambda: D(X, torch.tensor([3, 3])), 'level|schedule.at'),
    (lambda: D(LEVEL, X), 'x_t|Level'),
    (lambda: D(X, LEVEL, 3), 'y = 3|torch.tensor'),
    (lambda: D(X, LEVEL, [3, 4]), 'y = [3, 4]|torch.tensor'),
    (lambda: D(X, LEVEL, torch.tensor([3, 10])), '10|0..9'),
    (lambda: D(X.permute(0, 2, 3, 1), LEVEL), '(2, 4, 4, 1)|(B,1,H,W)'),
    (lambda: clipped(NET)(X, LEVEL), 'Denoiser(net'),
    (lambda: clipped('model.pt'), "denoiser = 'model.pt'|Denoiser(net"),
    (lambda: eps_from_x0(X, X, 3), 'level = 3|schedule.at'),
    # networks
    (lambda: unet.UNet((1, 28, 28)), 'in_channels = (1, 28, 28)|whole'),
    (lambda: unet.UNet(multipliers=2), 'multipliers = 2|(1, 2)'),
    (lambda: unet.UNet(attention=1), 'attention = 1|(1,)'),
    (lambda: unet.UNet(channels=64.), 'channels = 64.0|whole'),
    (lambda: unet.UNet(channels='64'), "channels = '64'|whole"),
    (lambda: unet.UNet(num_classes=None), 'num_classes = None|whole'),
    (lambda: unet.UNet(dropout='0.1'), "dropout = '0.1'|number"),
    (lambda: NET(X, 3), 't = 3|torch.tensor'),
    (lambda: NET(X, LEVEL), 't|Level|Denoiser(net'),
    (lambda: NET(X, LEVEL.t, 3), 'y = 3|torch.tensor'),
    (lambda: NET(X.numpy(), LEVEL.t), 'x|torch.from_numpy'),
    (lambda: NET(DATA.images[:2], LEVEL.t), 'uint8|[-1, 1]'),
    (lambda: unet.timestep_embedding(3, 32), 't = 3|torch.tensor'),
    (lambda: transformer.DiT(width=64.), 'width = 64.0|whole'),
    (lambda: transformer.DiT(patch='2'), "patch = '2'|whole"),
    (lambda: transformer.DiT(num_classes=None), 'num_classes = None|whole'),
    # oracle
    (lambda: oracle.MixtureOracle(DATA), 'means|ImageSet|data[:][0]'),
    (lambda: oracle.MixtureOracle(DATA.images), 'means|uint8|to_float'),
    (lambda: oracle.GaussianOracle(np.zeros(4), np.eye(4)), 'mean|torch.from_numpy'),
    (lambda: oracle.MixtureOracle(X)(X, 3), 'level = 3|schedule.at'),
    # loss
    (lambda: loss.diffusion_loss(D, X, S), 'schedule|Tensor'),
    (lambda: loss.diffusion_loss(NET, S, X), 'Denoiser(net'),
    (lambda: loss.diffusion_loss(D, S, DATA.images), 'uint8|to_float'),
    (lambda: loss.diffusion_loss(D, S, DATA), 'x0|ImageSet|data[:][0]'),
    (lambda: loss.diffusion_loss(D, S, X, generator=0),
     'generator = 0|torch.Generator().manual_seed(0)'),
    (lambda: loss.diffusion_loss(D, S, X, weight='uniform'), "weight = 'uniform'|uniform"),
    (lambda: loss.diffusion_loss(D, S, X, weight=1.), 'weight = 1.0|uniform'),
    (lambda: loss.diffusion_loss(D, S, X, weight=loss.min_snr), 'min_snr()'),
    (lambda: loss.diffusion_loss(D, S, X, weight=loss.vlb_weight), 'vlb_weight(schedule)'),
    (lambda: loss.loss_at(D, X, 3, EPS_), 'level = 3|schedule.at'),
    (lambda: loss.vlb_terms(D, S, X, times=5), 'times = 5|schedule.times(5)'),
    (lambda: loss.vlb_terms(D, S, DATA), 'x0|ImageSet|data[:][0]'),
    (lambda: loss.decoder_std(S, 5, X), 'times = 5|schedule.times(5)'),
    # sampling
    (lambda: sample(D, S, SHAPE, times=5), 'times = 5|schedule.times(5)'),
    (lambda: sample(D, S, SHAPE, times=schedule.trailing), 'times|schedule.times(n)'),
    (lambda: sample(D, S, SHAPE, times=[0, 4, 8]), 'down to 0|times(n)'),
    (lambda: sample(D, S, SHAPE, times=[8., 4., 0.]), 'whole numbers'),
    (lambda: sample(NET, S, SHAPE), 'Denoiser(net'),
    (lambda: sample(NoLabels(), S, SHAPE), 'NoLabels|Denoiser(net'),
    (lambda: sample(lambda x, level, y: x, S, SHAPE), 'denoiser|nn.Module'),
    (lambda: sample(STATE, S, SHAPE), 'denoiser|TrainState|state.ema'),
    (lambda: sample(S, D, SHAPE), 'denoiser|Schedule'),
    (lambda: sample(D, SHAPE, S), 'schedule|(2, 1, 4, 4)'),
    (lambda: sample((D, S), S, SHAPE), 'denoiser|tuple'),
    (lambda: sample(D, S, 16), 'shape = 16|(16, channels'),
    (lambda: sample(D, S, (1, 4, 4)), '(1, 4, 4)|(B,1,H,W)'),
    (lambda: sample(D, S, (2, 1, -4, 4)), 'shape|-4|at least 1'),
    (lambda: sample(D, S, (2, 1, 4., 4)), 'shape|whole'),
    (lambda: sample(D, S, SHAPE, x_T=X.to('meta')), 'x_T|meta|cpu|.to('),
    (lambda: sample(D, S, SHAPE, x_T=DATA.images[:2]), 'x_T|float'),
    (lambda: sample(D, S, SHAPE, x_T=X / 0), 'x_T|not finite'),
    (lambda: sample(D, S, SHAPE, x_T=5), 'x_T = 5|seed=5'),
    (lambda: sample(D, S, SHAPE, y=3), 'y = 3|torch.full((2,), 3)'),
    (lambda: sample(D, S, SHAPE, y=['cat', 'dog']), "y|'cat'|whole"),
    (lambda: sample(D, S, SHAPE, seed=torch.Generator()), 'seed|whole'),
    (lambda: sample(D, S, SHAPE, first=0.5), 'first = 0.5|whole'),
    (lambda: sample(Denoiser(NoLabels()), S, SHAPE, y=[1, 2]), 'NoLabels takes no labels'),
    (lambda: sample(Denoiser(Own()), S, SHAPE), 'Own|y|null_label_last'),
    (lambda: sampling.ancestral('large'), "variance = 'large'|fixed_large"),
    (lambda: sampling.ancestral(0.), 'variance = 0.0|fixed_large'),
    (lambda: sampling.ancestral(loss.optimal), 'optimal|class|optimal(table)'),
    # solvers
    (lambda: solvers.ddim('0'), "eta = '0'|0..1"),
    (lambda: solvers.dpm_solver_pp('2M'), "eta = '2M'|0..1"),
    (lambda: solvers.heun(5), 'rule = 5|trapezoid'),
    (lambda: solvers.heun('trapezoid'), "rule = 'trapezoid'|exponential"),
    # training
    (lambda: training.TrainState(NET), 'UNet|Denoiser(net'),
    (lambda: training.TrainState(D, ema='0.9'), "ema = '0.9'|[0, 1)"),
    (lambda: fit(lr=1e-3), 'lr = 0.001|warmup_constant(0.001, 0)'),
    (lambda: fit(lr=STATE.optimizer), 'lr|warmup_constant'),
    (lambda: fit(data=Subset(DATA, [0, 1])), 'data|Subset|image_set('),
    (lambda: fit(data=DataLoader(DATA)), 'data|DataLoader|image_set('),
    (lambda: fit(data=X), 'data|Tensor|image_set('),
    (lambda: fit(D), 'state|Denoiser|TrainState(denoiser)'),
    (lambda: fit(S, STATE), 'state|Schedule'),
    (lambda: fit(STATE, DATA, S), 'schedule|ImageSet'),
    (lambda: fit(STATE, S.betas), 'schedule|Schedule(betas)'),
    (lambda: fit(steps=1e4), 'steps = 10000.0|whole'),
    (lambda: fit(batch_size=4.), 'batch_size = 4.0|whole'),
    (lambda: fit(accumulate=2.), 'accumulate = 2.0|whole'),
    (lambda: fit(seed=-1), 'seed = -1'),
    (lambda: fit(seed=None), 'seed = None|whole'),
    (lambda: fit(seed=torch.Generator()), 'seed|whole'),
    (lambda: fit(label_dropout=10), 'label_dropout = 10|0..1'),
    (lambda: fit(label_dropout='0.1'), "label_dropout = '0.1'|0..1"),
    (lambda: fit(clip=None), 'clip = None|math.inf'),
    (lambda: fit(explode=None), 'explode = None|math.inf'),
    (lambda: fit(weight='min_snr'), "weight = 'min_snr'|uniform"),
    (lambda: fit(training.TrainState(Denoiser(NoLabels()))),
     'NoLabels|takes no labels|ImageSet(data.images)'),
    (lambda: fit(training.TrainState(Denoiser(unet.UNet(1, 4, (1,), 1, ())))),
     'num_classes=0|num_classes=10'),
    (lambda: fit(training.TrainState(Denoiser(Own(10)))), 'Own|-1|null_label_last'),
    (lambda: fit(training.TrainState(Denoiser(Wraps(10)))), 'Wraps|-1|9|null_label_last'),
    (lambda: fit(training.TrainState(Denoiser(Wraps(10, start=0.)))), 'Wraps|-1|9|null_label_last'),
    # guidance
    (lambda: guidance.guided(D, [3, 4], '2'), "scale = '2'|number"),
    (lambda: guidance.guided(D, [3, 4], torch.ones(2)), 'scale|number'),
    (lambda: guidance.guided(D, 2., [3, 4]), 'y|one label for each'),
    (lambda: guidance.guided(D, ['cat'], 2.), "y|'cat'|whole"),
    (lambda: sample(guidance.guided(NET, [3, 4], 2.), S, SHAPE), 'Denoiser(net'),
    (lambda: sample(guidance.guided(D, [3, 4], 2.), S, SHAPE, y=[3, 4]), 'holds its labels'),
    (lambda: sample(guidance.guided(Denoiser(Own(10)), [3, 4], 2.), S, SHAPE),
     'Own|null_label_last'),
    (lambda: guidance.drop_labels(DATA.labels, 0.1, 0), 'generator = 0|torch.Generator()'),
    (lambda: guidance.null_label_last(NET, 0), 'num_classes = 0'),
    # editing
    (lambda: editing.inpaint(D, X, (X > 0).byte()), 'mask|torch.bool'),
    (lambda: editing.inpaint(D, X > 0, X), 'known|bool'),
    (lambda: sample(editing.inpaint(NET, X, X > 0), S, SHAPE), 'Denoiser(net'),
    (lambda: editing.resampled(5, 1, 2), 'times = 5|schedule.times(5)'),
    (lambda: editing.steered(D, 5, 1.), 'loss = 5'),
    (lambda: editing.steered(D, torch.norm, '1'), "scale = '1'|number"),
    (lambda: editing.steered(D, torch.norm, torch.ones(2)), 'scale|number'),
    (lambda: editing.steered(D, torch.norm, 1., least='0'), "least = '0'|0..1"),
    (lambda: editing.gray('rgb'), "weights = 'rgb'|numbers"),
    (lambda: editing.consistent(D, X, editing.pooled), 'view|pooled(k)'),
    (lambda: editing.invert(D, S, X, 5), 'times = 5|schedule.times(5)'),
    (lambda: editing.invert(D, S, X, S.times(4), step=solvers.ddim), 'step|ddim()'),
    (lambda: editing.invert(NET, S, X, S.times(4)), 'Denoiser(net'),
    (lambda: editing.invert(D, S, DATA.images, S.times(4)), 'x0|to_float'),
    (lambda: editing.invert(D, X, S, S.times(4)), 'schedule|Tensor'),
    (lambda: editing.interpolate(X, EPS_, '0.5'), "w = '0.5'|number"),
    (lambda: editing.interpolate(X.numpy(), EPS_, 0.5), 'a|torch.from_numpy'),
    # likelihood
    (lambda: likelihood_of(likelihood.bound, DATA), 'x0|ImageSet|data[:][0]'),
    (lambda: likelihood_of(likelihood.bound, times=5), 'times = 5|schedule.times(5)'),
    (lambda: likelihood_of(likelihood.bound, draws=2.), 'draws = 2.0|whole'),
    (lambda: likelihood_of(likelihood.bound, posterior='large'), "posterior = 'large'|fixed_large"),
    (lambda: likelihood_of(likelihood.bound, decoder='density'), "decoder = 'density'|density_nll"),
    (lambda: likelihood_of(likelihood.bound, batch_size=2.), 'batch_size = 2.0|whole'),
    (lambda: likelihood.bound(NET, S, GRAY, progress=False), 'Denoiser(net'),
    (lambda: likelihood_of(likelihood.bound, y=['a', 'b']), "y|'a'|whole"),
    (lambda: likelihood_of(likelihood.flow_bits, probes=likelihood.rademacher), 'rademacher()'),
    (lambda: likelihood_of(likelihood.flow_bits, probes=4), 'probes = 4|rademacher(4)'),
    (lambda: likelihood_of(likelihood.flow_bits, width='8bit'), "width = '8bit'|number"),
    (lambda: likelihood_of(likelihood.flow_bits, seed=-1), 'seed = -1'),
    (lambda: likelihood.rademacher(1.5), 'n = 1.5|whole'),
    (lambda: likelihood_of(likelihood.rate_distortion, times=5), 'times = 5|schedule.times(5)'),
    # doctor
    (lambda: doctor.diagnose(D, S, DataLoader(DATA), [1.], weight=loss.v_weight),
     'data|DataLoader|image_set('),
    (lambda: doctor.diagnose(D, S, DATA, [training.Metrics(1, 0, *range(4))], weight=loss.v_weight),
     'losses|m.loss'),
    (lambda: doctor.diagnose(D, DATA, S, [1.], weight=loss.v_weight), 'schedule|ImageSet'),
    (lambda: doctor.diagnose(D, S, DATA, [1.], weight='v'), "weight = 'v'|uniform"),
    (lambda: level_losses(times=5), 'times = 5|[5]'),
    (lambda: level_losses(batch_size=2.), 'batch_size = 2.0|whole'),
    (lambda: level_losses(seed=None), 'seed = None|whole')]

@pytest.mark.parametrize('make, words', MISTAKES)
def test_a_mistake_is_answered_with_what_to_write(make, words):
    with pytest.raises((TypeError, ValueError)) as found: make()
    said = str(found.value)
    assert all(w in said for w in words.split('|')), said
    assert len(said) < 320 and said.count('\n') < 2, said

@pytest.mark.parametrize('same', [
    lambda: (sample(D, S, SHAPE, y=[3, 8]), sample(D, S, SHAPE, y=torch.tensor([3, 8]))),
    lambda: (sample(D, S, SHAPE, y=np.array([3, 8])), sample(D, S, SHAPE, y=torch.tensor([3, 8]))),
    lambda: (sample(D, S, list(SHAPE)), sample(D, S, SHAPE)),
    lambda: (sample(D, S, torch.Size(SHAPE)), sample(D, S, SHAPE)),
    lambda: (sample(D, S, np.array(SHAPE)), sample(D, S, SHAPE)),
    lambda: (sample(D, S, SHAPE, x_T=X.numpy()), sample(D, S, SHAPE, x_T=X)),
    lambda: (sample(D, S, SHAPE, x_T=X.double()).float(), sample(D, S, SHAPE, x_T=X)),
    lambda: (sample(D, S, SHAPE, times=torch.tensor([8, 4, 0])),
             sample(D, S, SHAPE, times=[8, 4, 0])),
    lambda: (sample(D, S, SHAPE, seed=np.int64(3)), sample(D, S, SHAPE, seed=3)),
    lambda: (guidance.guided(D, np.array([3, 8]), np.float32(2))(X, LEVEL).x0,
             guidance.guided(D, torch.tensor([3, 8]), torch.tensor(2.))(X, LEVEL).x0),
    lambda: (Schedule(schedule.cosine_betas(np.int64(8))).betas, S.betas),
    lambda: (Schedule(S.betas.numpy()).betas, S.betas),
    lambda: (likelihood_of(likelihood.bound, y=[3, 8], seed=0).each,
             likelihood_of(likelihood.bound, y=torch.tensor([3, 8]), seed=0).each),
], ids=range(13))
def test_what_means_the_same_gives_the_same(same):
    a, b = same()
    torch.testing.assert_close(a, b)

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
    fit(training.TrainState(Denoiser(Shifted(11))))
    fit(training.TrainState(Denoiser(Own(10))), label_dropout=0.)  # -1 is never passed
    fit(training.TrainState(Denoiser(NoLabels())), data=ImageSet(DATA.images))
