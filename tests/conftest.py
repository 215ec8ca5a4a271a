"What pytest must know of these tests"


def pytest_configure(config):
    config.addinivalue_line('markers', 'any_processor: cheap, and holds on any processor: `make test` runs it '
                                       'a second time with ATEN_CPU_CAPABILITY=default')
