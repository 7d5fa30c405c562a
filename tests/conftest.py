def pytest_configure(config):
    for line in ('slow: the promises of a long run, with real launchers and many processes; `make test-all` '
                 'runs them', 'long: every page in a browser, every foreign network, every Python; `make '
                 'test-long` runs them'):
        config.addinivalue_line('markers', line)
