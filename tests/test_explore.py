"`explore()` in a real JupyterLab in Chromium: the sliders move, the pictures change, no request leaves the machine."
import importlib.util, json, os, secrets, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path
import pytest
from test_restore import ROOT, make_run, noise

def missing():
    "Why this cannot run here, or ''."
    if any(importlib.util.find_spec(p) is None for p in ('jupyterlab','ipywidgets','ipykernel')):
        return 'no JupyterLab with ipywidgets'
    if not shutil.which('node') or not (ROOT/'node_modules/playwright-core').exists():
        return 'no node_modules: run tools/install_browser.sh'
    return '' if Path(os.environ.get('CHROMIUM', '/usr/bin/chromium')).exists() else 'no Chromium'

GUARD = '''import socket
connect = socket.socket.connect
def guarded(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(('127.', '::1', 'localhost')): open('calls.txt', 'a').write(str(address)); raise OSError('refused by the test')
    return connect(self, address)
socket.socket.connect = guarded'''

def notebook(path, *sources):
    cells = [dict(cell_type='code', id=f'c{i}', metadata={}, source=s, outputs=[], execution_count=None)
             for i,s in enumerate(sources)]
    path.write_text(
        json.dumps(dict(cells=cells,
                        metadata=dict(kernelspec=dict(name='python3', display_name='python3',
                                                      language='python')), nbformat=4, nbformat_minor=5)))

@pytest.fixture
def lab(tmp_path):
    "JupyterLab on loopback with one notebook; the address of that notebook."
    make_run(tmp_path/'run'); (tmp_path/'home').mkdir(); (tmp_path/'nbs').mkdir()
    notebook(tmp_path/'nbs/w.ipynb', GUARD, f'from dtir_nb.explore import explore\nfrom dtir_nb.restoring '
             f'import load_restorer\nexplore(load_restorer({str(tmp_path/"run")!r}))')
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    token, home = secrets.token_hex(8), str(tmp_path/'home')
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'HOME': home,
           'JUPYTER_CONFIG_DIR': home, 'JUPYTER_DATA_DIR': home, 'JUPYTER_RUNTIME_DIR': home,
           'IPYTHONDIR': home}
    args = ['--no-browser', '--ip=127.0.0.1', f'--port={port}', f'--IdentityProvider.token={token}',
            f'--ServerApp.root_dir={tmp_path/"nbs"}', '--allow-root', '--LabApp.news_url=',
            '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate',
            '--LabApp.extension_manager=readonly']
    log = open(tmp_path/'lab.log', 'w')
    p = subprocess.Popen([sys.executable, '-m', 'jupyterlab', *args], env=env, stdout=log, stderr=log)
    try:
        for _ in range(600):
            try: urllib.request.urlopen(f'http://127.0.0.1:{port}/api?token={token}', timeout=2); break
            except OSError: assert p.poll() is None, (tmp_path/'lab.log').read_text()[-2000:]; time.sleep(.2)
        yield f'http://127.0.0.1:{port}/lab/tree/w.ipynb?token={token}&reset'
    finally: p.terminate(); p.wait(20)

@pytest.mark.long
@pytest.mark.skipif(bool(missing()), reason=missing())
def test_explore_in_jupyterlab(lab, tmp_path):
    noise(120, 90).save(tmp_path/'own.png')
    shot = Path(os.environ.get('SITE_SHOTS', tmp_path))/'explore.png'
    r = subprocess.run(['node', ROOT/'tests/explore.mjs', lab, shot], capture_output=True, text=True,
                       timeout=400, env={**os.environ, 'UPLOAD': str(tmp_path/'own.png')})
    assert r.returncode == 0, r.stderr[-3000:]+(tmp_path/'lab.log').read_text()[-2000:]
    d = json.loads(r.stdout)
    assert int(d['t_after']) == int(d['t_before'])+6
    assert {'forward','estimate','curve','curtain'} <= set(d['t']) and not {'x','y'} & set(d['t'])
    assert d['curtain'] == ['curtain']
    assert 'y' in d['damage'] and 'x' not in d['damage']
    assert {'x','y','forward','curve'} <= set(d['photo']) and {'x','y'} <= set(d['upload'])
    assert (not (tmp_path/'nbs/calls.txt').exists() and d['foreign'] == [] and d['errors'] == []
            and shot.stat().st_size > 10_000)
