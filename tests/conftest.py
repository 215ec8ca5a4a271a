"What pytest must know of these tests"
import gzip, os
from pathlib import Path

import pytest
import torch


def pytest_configure(config):
    config.addinivalue_line('markers', 'any_processor: cheap, and holds on any processor: `make '
                                       'test` runs it again with ATEN_CPU_CAPABILITY=default')


@pytest.fixture
def one_thread():
    "Small networks need no more, and runs are equal to the last bit at one number of threads only"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

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

@pytest.fixture
def full_disk():
    "Once called, no file grows beyond so many bytes: OSError while writing, as on a full disk"
    resource = pytest.importorskip('resource')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
