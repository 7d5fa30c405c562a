import os

def pytest_configure(config):
    # where a GPU is in sight, a forked worker computes no gradients; the tests that want one run by themselves
    if not all('test_gpu' in a for a in config.args): os.environ['CUDA_VISIBLE_DEVICES'] = ''
    for line in ('slow: the promises of a long run, with real launchers and many processes; `make test-all` '
                 'runs them', 'long: every page in a browser, every foreign network, every Python; `make '
                 'test-long` runs them'):
        config.addinivalue_line('markers', line)
