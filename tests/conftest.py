"What pytest must know of these tests"
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


# Seeded draws: the tests of noising, denoiser and loss
def gen(seed=0): return torch.Generator().manual_seed(seed)

def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=gen(seed), dtype=dtype)
