"The demonstration as a stranger runs it: same seed, same table; and the command's errors are one clear line."
import json, os, subprocess, sys, time
from pathlib import Path
import pytest

ROOT = Path(__file__).parents[1]
ENV = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}

def dtir(*args, cwd=None):
    return subprocess.run([sys.executable, '-m', 'dtir_nb.command', *map(str, args)], env=ENV, cwd=cwd,
                          capture_output=True, text=True)

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')/'a'
    p = dtir('demo', '--scale', 'tiny', '--out', out)
    assert p.returncode == 0, p.stderr
    return out

def test_same_seed_same_table(run, tmp_path):
    p = dtir('demo', '--scale', 'tiny', '--out', tmp_path/'b')
    assert p.returncode == 0, p.stderr
    assert (tmp_path/'b'/'table.md').read_bytes() == (run/'table.md').read_bytes()
    assert json.loads((tmp_path/'b'/'scores.json').read_text()) == json.loads((run/'scores.json').read_text())

def test_restore_phone_picture(run, tmp_path):
    from PIL import Image
    exif = Image.Exif(); exif[0x0112] = 6
    Image.effect_noise((320, 200), 60).convert('RGB').save(tmp_path/'phone.jpg', exif=exif)
    p = dtir('restore', tmp_path/'phone.jpg', '-o', tmp_path/'out.png', '--run', run, '--task', 'noisy')
    assert p.returncode == 0, p.stderr
    assert Image.open(tmp_path/'out.png').size == (200, 320)

@pytest.mark.skipif(sys.platform != 'linux', reason='a parent is watched by the kernel')
def test_the_rival_dies_with_the_demo(tmp_path):
    p = subprocess.Popen([sys.executable, '-m', 'dtir_nb.command', 'demo', '--scale', 'tiny', '--out', tmp_path/'a'],
                         env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kids = lambda: [int(k) for t in Path(f'/proc/{p.pid}/task').glob('*') for k in (t/'children').read_text().split()]
    end = time.time()+120
    while not (rival := kids()) and time.time() < end: time.sleep(.05)
    p.kill(); p.wait(); end = time.time()+10
    alive = lambda k: Path(f'/proc/{k}').exists() and '\nState:\tZ' not in Path(f'/proc/{k}/status').read_text()
    while any(map(alive, rival)) and time.time() < end: time.sleep(.05)
    assert rival and not any(map(alive, rival))

@pytest.mark.parametrize('make, words', [
    (lambda d: None, 'E_MISSING'),
    (lambda d: (d/'x.png').write_text('I am not a picture'), 'E_NOT_IMAGE'),
    (lambda d: (d/'x.png').write_bytes(b''), 'E_EMPTY'),
])
def test_bad_input_is_one_line(run, tmp_path, make, words):
    make(tmp_path); (tmp_path/'out.png').write_bytes(b'precious')
    p = dtir('restore', tmp_path/'x.png', '-o', tmp_path/'out.png', '--run', run, '--task', 'noisy')
    assert (p.returncode == 65 and words in p.stderr and len(p.stderr.strip().splitlines()) == 1
            and 'Traceback' not in p.stderr)
    assert (tmp_path/'out.png').read_bytes() == b'precious'

def test_truncated_unwritable_unknown(run, tmp_path):
    from PIL import Image
    Image.effect_noise((64, 64), 60).convert('RGB').save(tmp_path/'a.jpg')
    (tmp_path/'cut.jpg').write_bytes((tmp_path/'a.jpg').read_bytes()[:700])
    for args, words in (((tmp_path/'cut.jpg', '-o', tmp_path/'o.png', '--run', run, '--task', 'noisy'),
                         'E_TRUNCATED'),
                        ((tmp_path/'a.jpg', '-o', tmp_path/'none'/'o.png', '--run', run, '--task', 'noisy'),
                         'E_WRITE'),
                        ((tmp_path/'a.jpg', '-o', tmp_path/'o.png', '--run', tmp_path/'nowhere'),
                         'dtir demo'),
                        ((tmp_path/'a.jpg', '-o', tmp_path/'a.jpg', '--run', run, '--task', 'noisy'),
                         'E_SAME'),
                        ((tmp_path/'a.jpg', '-o', tmp_path/'o.png', '--run', run, '--task', 'muddy'),
                         'muddy')):
        p = dtir('restore', *args)
        assert p.returncode != 0 and words in p.stderr and 'Traceback' not in p.stderr and len(
            p.stderr.strip().splitlines()) == 1, p.stderr
    assert not (tmp_path/'o.png').exists()

def test_help_is_readable_and_quick():
    p = dtir('--help'); assert p.returncode == 0 and 'demo' in p.stdout and 'restore' in p.stdout
    p = dtir('demo', '--help'); assert p.returncode == 0 and '--scale' in p.stdout and 'tiny' in p.stdout
    code = 'import sys, dtir_nb, dtir_nb.command; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], env=ENV).returncode == 0
    p = dtir('paint'); assert p.returncode == 2 and 'paint' in p.stderr
