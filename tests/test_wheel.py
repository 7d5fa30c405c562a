"The wheel works without the repository, without nbdev and without Jupyter."
import importlib.util, os, shutil, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.long

@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    "The wheel, unpacked into an empty folder by pip."
    tmp = tmp_path_factory.mktemp('wheel')
    local = (['--no-build-isolation'] if importlib.util.find_spec('setuptools')
             and importlib.util.find_spec('wheel') else [])
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', *local, '-w', tmp/'w', ROOT],
                   check=True)
    wheel, = (tmp/'w').glob('dtir_nb-*.whl')
    subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target', tmp/'site', wheel],
                   check=True)
    return tmp

def run(installed, code, *args):
    "Run Python outside the repository with the unpacked wheel first; development tools cannot be imported."
    ban = ("import sys\nclass Ban:\n    def find_spec(self, name, *a):\n        if name.split('.')[0] in "
           "{'nbdev','execnb','jupyterlab','ghapi','smalldocs'}: raise ImportError('banned: '+name)\n"
           "sys.meta_path.insert(0, Ban())\n")
    r = subprocess.run([sys.executable, '-P' if sys.version_info >= (3,11) else '-s', '-c', ban+code, *args],
                       cwd=installed, capture_output=True, text=True,
                       env=dict(PATH='/usr/bin:/bin', HOME=str(installed), PYTHONPATH=str(installed/'site'),
                                OMP_NUM_THREADS='2'))
    assert r.returncode == 0, r.stdout[-1000:] + r.stderr[-3000:]
    return r.stdout

def test_import_is_light(installed):
    out = run(installed, 'import dtir_nb; print(dtir_nb.__file__, "torch" in sys.modules, "matplotlib" in '
              'sys.modules)')
    assert str(installed) in out and 'True' not in out

def test_every_module_imports(installed):
    out = run(installed, 'import importlib, pkgutil, dtir_nb\nms = [m.name for m in '
              'pkgutil.walk_packages(dtir_nb.__path__, "dtir_nb.") if "_modidx" not in '
              'm.name]\n[importlib.import_module(m) for m in ms]; print(len(ms))')
    assert (int(out.split()[-1])
            >= len([p for p in (ROOT/'dtir_nb').rglob('*.py') if not p.name.startswith('_')]))

def test_data_travels(installed):
    for p in (ROOT/'dtir_nb').rglob('*'):
        if p.is_file() and p.suffix not in ('.py', '.pyc'):
            assert (installed/'site/dtir_nb'/p.relative_to(
                        ROOT/'dtir_nb')).exists(), f'{p.name} is not in the wheel: add it to package_data in setup.py'

def test_demo_runs_without_the_repository(installed):
    "`dtir demo --scale tiny`, through the entry point that pip would make a command of."
    start = ('from importlib.metadata import entry_points\nsys.argv[0] = "dtir"; dtir, = [e for e in '
             'entry_points(group="console_scripts") if e.name == "dtir"]; sys.exit(dtir.load()())')
    run(installed, start, 'demo', '--scale', 'tiny', '--out', str(installed/'demo'))
    assert (installed/'demo/table.md').exists() and (installed/'demo/report.html').exists()

def interpreter(version):
    "A Python of that version on this machine, or None."
    found = [shutil.which(f'python{version}'),
             *sorted(str(p) for p in Path.home().glob(f'.pyenv/versions/{version}.*/bin/python'))]
    return next((f for f in found if f
                 and subprocess.run([f, '-c', f'import sys; sys.exit("%d.%d" % sys.version_info[:2] != '
                                     f'"{version}")'], capture_output=True).returncode == 0), None)

@pytest.mark.parametrize('version', ['3.10', '3.11', '3.12', '3.13'])
def test_every_declared_python_can_read_it(version):
    py = interpreter(version)
    if not py: pytest.skip(f'no Python {version} here')
    files = [str(p) for d in ('dtir_nb', 'tools') for p in (ROOT/d).rglob('*.py')]
    subprocess.run([py, '-W', 'error', '-c', 'import sys\nfor f in sys.argv[1:]: compile(open(f, '
                    'encoding="utf-8").read(), f, "exec")', *files], check=True)

@pytest.mark.parametrize('version', ['3.10', '3.11', '3.12', '3.13'])
def test_demo_in_an_empty_environment(installed, version, tmp_path):
    "A new virtual environment of that Python, the wheel with what it asks for and nothing else, and the command that pip makes."
    py = interpreter(version)
    if not py: pytest.skip(f'no Python {version} here')
    # this checkout must not pass for an installation
    env = {k: v for k,v in os.environ.items() if not k.startswith('PYTHON')}
    subprocess.run([py, '-m', 'venv', tmp_path/'env'], check=True, env=env); b = tmp_path/'env/bin'
    wheel, = (installed/'w').glob('dtir_nb-*.whl')
    r = subprocess.run([b/'python', '-m', 'pip', 'install', '-q', '-c', ROOT/'constraints.txt', wheel],
                       capture_output=True, text=True, env=env)
    if r.returncode and 'torch' in r.stderr and 'No matching distribution' in r.stderr:
        pytest.skip(f'the index has no PyTorch for Python {version}')
    assert r.returncode == 0, r.stderr[-2000:]
    have = {l.split()[0].lower() for l in subprocess.run([b/'python', '-m', 'pip', 'list'],
                                                         capture_output=True, text=True, check=True,
                                                         env=env).stdout.splitlines()[2:]}
    assert not have & {'nbdev', 'execnb', 'jupyterlab', 'ipywidgets', 'smalldocs'}, have
    r = subprocess.run([b/'dtir', 'demo', '--scale', 'tiny', '--out', tmp_path/'demo'], cwd=tmp_path,
                       capture_output=True, text=True,
                       env=dict(PATH='/usr/bin:/bin', HOME=str(tmp_path), OMP_NUM_THREADS='2'))
    assert r.returncode == 0 and (tmp_path/'demo/table.md').exists(), r.stdout[-1000:] + r.stderr[-2000:]
