"An error that is raised in a worker reaches whoever waits for it, with its message and what it knows."
import importlib, inspect, pickle, pkgutil
import dtir_nb
from dtir_nb.core import ImageError

MADE = {'ImageError': ('a.png', 'E_X', 'why'), 'CheckpointError': ('run', 'E_X', 'why'),
        'BadFiles': ([ImageError('a.png', 'E_X', 'why')],), 'NonFinite': (3, dict(loss=1., norm=2.), 0),
        'Preempted': (3, 'run'), 'OtherRun': ('run', ['lr was 1, is 2'])}

def errors():
    "Every exception class of the package."
    for m in pkgutil.iter_modules(dtir_nb.__path__, 'dtir_nb.'):
        if not m.ispkg and not m.name.endswith('_modidx'):
            for n,c in vars(importlib.import_module(m.name)).items():
                if inspect.isclass(c) and issubclass(c, BaseException) and c.__module__ == m.name: yield n, c

def test_errors_cross_processes():
    what = lambda e: (type(e), str(e), {k: str(v) for k,v in vars(e).items()})
    found = dict(errors())
    for n,c in found.items():
        e = c(*MADE.get(n, ('said',))); assert what(pickle.loads(pickle.dumps(e))) == what(e), n
    assert set(MADE) < set(found)
