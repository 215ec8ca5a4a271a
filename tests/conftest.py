"What pytest must know of these tests"
import gzip, json, os, struct, sys
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
import pytest
import torch
from torch import nn
from diffusion_scratch.guidance import NULL
from diffusion_scratch.sampling import sample
from diffusion_scratch.schedule import Schedule, cosine_betas

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))  # so that tests can import them

FAULTS = {}  # for each test: fault, what happens, in how many cases

def pytest_addoption(parser):
    parser.addoption('--faults', metavar='FILE', help='write the table of the faults that were '
                     'tried and survived: of the tests that are marked as such, and passed')

def pytest_collection_modifyitems(items):
    for item in items:  # the properties travel to the process that writes
        mark = item.get_closest_marker('fault')
        if mark: item.user_properties.append(('fault', mark.args))

def pytest_runtest_logreport(report):
    fault = dict(report.user_properties).get('fault')
    if not fault or report.when != 'call' or not report.passed: return
    row = FAULTS.setdefault(report.nodeid.partition('[')[0], dict(zip(('fault', 'outcome'), fault)))
    row['cases'] = row.get('cases', 0) + 1

def pytest_sessionfinish(session):
    file = session.config.getoption('--faults')
    if not file or hasattr(session.config, 'workerinput'): return  # a worker of xdist
    rows = [row | dict(test=test) for test, row in sorted(FAULTS.items())]
    made = dict(command='make faults', date=datetime.now().date().isoformat(), rows=rows)
    Path(file).write_text(json.dumps(made, indent=1) + '\n', encoding='utf-8')

def pytest_configure(config):
    config.addinivalue_line('markers', 'fault(what, outcome): a row of the table of faults')
    config.addinivalue_line('markers', 'gpu: the main job on an accelerator, where there is one')
    config.addinivalue_line('markers', 'any_processor: cheap, and holds on any processor: `make '
                                       'test` runs it again with ATEN_CPU_CAPABILITY=default')

@pytest.fixture
def one_thread():
    "Small networks need no more, and runs are equal to the last bit at one number of threads only"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

def refused(call, words, error=ValueError):
    "Whatever is wrong with a call is named in such an error"
    with pytest.raises(error, match=words): call()

# Seeded draws
def gen(seed=0): return torch.Generator().manual_seed(seed)

def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=gen(seed), dtype=dtype)

# For the tests of editing, guidance and likelihood: walks, moments, a network with labels
SHORT = Schedule(cosine_betas(60))
def close(a, b, tol=1e-9): torch.testing.assert_close(a, b, rtol=tol, atol=tol)

def draw(denoiser, shape=(3, 1, 4, 4), schedule=SHORT, seed=0, **kw):
    return sample(denoiser, schedule, tuple(shape), seed=seed, progress=False, **kw)

def moments(x, mean, std, share=0., off=0.):
    "Samples (n,...) have this mean and std to 4.5 standard errors, besides `off` and a `share`"
    x = x.double()
    assert ((x.mean(0) - mean).abs() < 4.5 * std / len(x)**0.5 + off).all()
    assert ((x.std(0) / std - 1).abs() < 4.5 / (2 * len(x))**0.5 + share).all()

class Labelled(nn.Module):
    "A small network of images of `size` numbers, with four labels; it keeps the times of its calls"
    def __init__(self, size=16, dropout=0.):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.label, layers = nn.Embedding(5, 8), (nn.Linear(size + 9, 48), nn.SiLU())
            self.body = nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(48, size))
        self.times = []

    def forward(self, x, t, y=None):
        self.times.append(int(t[0]))
        y = torch.full_like(t, NULL) if y is None else y
        told = torch.cat([x.flatten(1), t[:, None].to(x) / 60, self.label(y + 1)], 1)
        return self.body(told).view(x.shape)

# For data, pictures, features and reader: digits, and a disk that is full
@pytest.fixture(scope='session')
def mini():
    from diffusion_scratch.data import mnist_mini
    return mnist_mini()

@pytest.fixture(scope='session')
def whole_mnist(tmp_path_factory):
    "A folder as torchvision lays out MNIST, of $DIFFUSION_SCRATCH_DATA/MNIST/raw/*.gz"
    folder = Path(os.environ.get('DIFFUSION_SCRATCH_DATA', '/nowhere'))
    packed = sorted(folder.glob('MNIST/raw/*.gz'))
    if not packed: pytest.skip('DIFFUSION_SCRATCH_DATA names no folder with MNIST/raw/*.gz')
    raw = tmp_path_factory.mktemp('whole')/'MNIST'/'raw'
    raw.mkdir(parents=True)
    for f in packed: (raw/f.stem).write_bytes(gzip.decompress(f.read_bytes()))
    return raw.parent.parent

@pytest.fixture(scope='session')
def whole_cifar10():
    "A folder with train/<class>/ and test/<class>/, in $DIFFUSION_SCRATCH_DATA/cifar10"
    folder = Path(os.environ.get('DIFFUSION_SCRATCH_DATA', '/nowhere'))/'cifar10'
    if not (folder/'test').is_dir():
        pytest.skip('DIFFUSION_SCRATCH_DATA names no folder with cifar10/test/<class>/*.jpg')
    return folder

@pytest.fixture
def full_disk():
    "Inside `with`, no file grows beyond so many bytes: OSError while writing, as on a full disk"
    resource = pytest.importorskip('resource')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    @contextmanager
    def limited(limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try: yield
        finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))  # pytest writes too
    return limited

# For the tests of samplers and solvers
def within(a, b, atol, rtol=0): torch.testing.assert_close(a, b, rtol=rtol, atol=atol)

def even_schedule(T, top, bottom):
    "A schedule whose log SNR falls on a line: steps of any length, all alike"
    snr = torch.linspace(top, bottom, T, dtype=torch.float64)
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), snr.sigmoid()])
    return Schedule(1 - alpha_bar[1:] / alpha_bar[:-1])

def assert_gaussian(x, mean, cov):
    """Mean and covariance of the draws x, each entry within 4.5 standard errors; in the covariance
    2 % of the largest entry more, for steps that are not infinitely short"""
    var, n = cov.diagonal(), len(x)
    assert ((x.mean(0) - mean) / (var / n).sqrt()).abs().max() < 4.5
    se = ((cov**2 + var.outer(var)) / n).sqrt()
    assert ((x.T.cov() - cov).abs() < 4.5 * se + 0.02 * cov.max()).all(), x.T.cov()

# For data and for the networks of MNIST
def write_mnist(root, data, train, test):
    "Two slices of a set, in MNIST's own format and as torchvision lays it out; their folder"
    raw = root/'MNIST'/'raw'
    raw.mkdir(parents=True)
    for part, some in dict(train=train, t10k=test).items():
        for kind, array in (('images-idx3', data.images[some, 0]),
                            ('labels-idx1', data.labels[some].byte())):
            sizes = struct.pack(f'>{array.ndim}I', *array.shape)
            head = bytes([0, 0, 8, array.ndim]) + sizes
            (raw/f'{part}-{kind}-ubyte').write_bytes(head + array.numpy().tobytes())
    return raw

# For the tools that train and measure what ships: a run of a minute's hundredth
LITTLE_RUN = ['schedule.name=cosine', 'training.batch_size=8', 'sampling.steps=2', 'threads=1',
              'network={channels: 8, multipliers: [1], attention: [], unshuffle: 8}',
              'device=cpu', 'log=[]', 'parameterization=v', 'training.ema=0.5']
