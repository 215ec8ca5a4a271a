"What pytest must know of these tests"
import pytest
import torch
from diffusion_scratch.schedule import Schedule


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

# For the tests of samplers and solvers (`from conftest import ...`)
def gen(seed=0): return torch.Generator().manual_seed(seed)
def close(a, b, atol, rtol=0): torch.testing.assert_close(a, b, rtol=rtol, atol=atol)

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
