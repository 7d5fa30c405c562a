def pytest_configure(config): config.addinivalue_line('markers', 'slow: minutes, or many processes; `make test-all` runs them')
