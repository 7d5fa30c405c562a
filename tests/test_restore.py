"`dtir restore` and `dtir export` as people use them: files, folders, pipes, what is no picture, memory, time to start."
import io, json, os, re, resource, statistics, struct, subprocess, sys, time, zlib
from functools import partial
from pathlib import Path
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
ENV = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}

def dtir(*args, stdin=b'', **kw):
    "The command; (return code, stdout, stderr)."
    p = subprocess.run([sys.executable, '-m', 'dtir_nb.command', *map(str, args)], env=ENV, input=stdin,
                       capture_output=True, **kw)
    err = p.stderr.decode()
    assert 'Traceback' not in err, err
    return p.returncode, p.stdout, err

def make_run(folder, **kw):
    "A saved restorer with untrained, generic weights and experts, and an estimator."
    import torch
    from dtir_nb.conditioning import seeded
    from dtir_nb.restoring import TimestepEstimator, build_net, save_restorer
    spec = dict(backbone='NAFNet', args=dict(width=8, enc=[1], middle=1, dec=[1]), T=50,
                experts=dict(n=4, k=2))
    with seeded(0):
        net, who = build_net(spec), TimestepEstimator(dict(noisy=6, rainy=2), 8)
        for n,p in net.named_parameters():
            if n.endswith(('beta','gamma','up')): torch.nn.init.normal_(p, std=.1)
    save_restorer(folder, net, spec, dict(noisy=6, rainy=2), who, **kw)
    return folder

@pytest.fixture(scope='module')
def run(tmp_path_factory): return make_run(tmp_path_factory.mktemp('runs')/'a', leave=1.)

@pytest.fixture(scope='module')
def shy(tmp_path_factory):
    "A restorer that takes everything for clean."
    return make_run(tmp_path_factory.mktemp('runs')/'b', leave=0.)

def noise(w, h, mode='RGB'):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (h, w, 3), np.uint8)).convert(mode)

def chunk(kind, data): return struct.pack('>I', len(data))+kind+data+struct.pack('>I', zlib.crc32(kind+data))
def header(w, h): return b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0))
def film(path, *frames): frames[0].save(path, save_all=True, append_images=frames[1:])

BAD = {  # name, how it is made, code
    'bomb.png':    (
    lambda p: p.write_bytes(header(60000,60000)+chunk(b'IDAT', zlib.compress(bytes(999)))+chunk(b'IEND',
                                b'')), 'E_TOO_LARGE'),
    'big.png':     (
    lambda p: p.write_bytes(header(13000,12000)+chunk(b'IDAT', zlib.compress(bytes(999)))+chunk(b'IEND',
                                b'')), 'E_TOO_LARGE'),
    'comment.png': (
    lambda p: p.write_bytes(header(4,4)+chunk(b'zTXt', b'k\0\0'+zlib.compress(bytes(80_000_000)))+chunk(
                                b'IDAT', zlib.compress(bytes(52)))+chunk(b'IEND', b'')), 'E_CORRUPT'),
    'archive.png': (lambda p: p.write_bytes(b'PK\3\4'+bytes(400)), 'E_NOT_IMAGE'),
    'empty.jpg':   (lambda p: p.touch(), 'E_EMPTY'),
    'text.jpg':    (lambda p: p.write_text('no picture'), 'E_NOT_IMAGE'),
    'cut.jpg':     (lambda p: (noise(64,64).save(p), p.write_bytes(p.read_bytes()[:900])), 'E_TRUNCATED'),
    'film.png':    (lambda p: film(p, noise(9,9), noise(9,9).rotate(90)), 'E_FRAMES'),
    'film.webp':   (lambda p: film(p, noise(9,9), noise(9,9).rotate(90)), 'E_FRAMES'),
    'pages.tif':   (lambda p: film(p, noise(9,9), noise(9,9).rotate(90)), 'E_FRAMES'),
    'ink.jpg':     (lambda p: noise(9,9,'CMYK').save(p), 'E_MODE'),
    'float.tif':   (lambda p: noise(9,9,'F').save(p), 'E_MODE'),
    'pipe.png':    (lambda p: os.mkfifo(p), 'E_NOT_FILE'),
    'gone.png':    (lambda p: p.symlink_to('nowhere'), 'E_MISSING'),
}
GOOD = {'phone.jpg': (64,40), 'logo.png': (40,30), 'dot.png': (1,1), 'line.png': (20000,1),
        'tower.png': (1,3000), 'grey.tif': (33,31), 'noname': (20,20)}

@pytest.fixture
def mixed(tmp_path):
    d = tmp_path/'mixed'; (d/'sub').mkdir(parents=True)
    for n,(make,_) in BAD.items(): make(d/'sub'/n)
    exif = Image.Exif(); exif[0x0112] = 6
    for n,size in GOOD.items():
        im = noise(*size, mode={'logo.png':'RGBA', 'grey.tif':'L'}.get(n, 'RGB'))
        im.save(d/n, **({'exif': exif} if n == 'phone.jpg' else {}), format='PNG' if n == 'noname' else None)
    (d/'notes.txt').write_text('buy milk')
    film(d/'film.gif', noise(9,9), noise(9,9).rotate(90))
    (d/'.hidden').write_bytes(b'x')
    return d

@pytest.mark.parametrize('name', BAD)
def test_bad_files_are_named(name, tmp_path):
    "One by one, as the function that the command calls."
    from dtir_nb.core import ImageError
    from dtir_nb.photographs import read_photo
    BAD[name][0](tmp_path/name)
    with pytest.raises(ImageError) as e: read_photo(tmp_path/name)
    assert e.value.code == BAD[name][1] and name in str(e.value)

@pytest.mark.parametrize('workers', [1, 2])
def test_folder_of_everything(workers, mixed, run):
    code, out, err = dtir('restore', mixed, '-o', mixed.parent/'out', '--run', run, '--task', 'rainy',
                          '--workers', workers)
    text = out.decode(); assert code == 65, err
    assert (f'{len(GOOD)} restored, 0 clean already and copied, 2 skipped, {len(BAD)} refused' in text
            and f'rainy (t*=2): {len(GOOD)}' in text)
    for n,(_,why) in BAD.items(): assert re.search(rf"refused 'sub/{re.escape(n)}': {why}", text), (n, text)
    assert "skipped 'notes.txt'" in text and "skipped 'film.gif'" in text and 'hidden' not in text
    made = {p.relative_to(mixed.parent/'out').as_posix(): Image.open(p)
            for p in (mixed.parent/'out').rglob('*') if p.is_file()}
    assert ({n: im.size for n,im in made.items()}
            == {('noname.png' if n=='noname' else n): (s[::-1] if n=='phone.jpg' else s)
                for n,s in GOOD.items()})
    assert np.array_equal(np.asarray(made['logo.png'])[...,3],
                          np.asarray(Image.open(mixed/'logo.png'))[...,3])

def die(photo):
    "A restorer whose estimator kills its process on pictures of 20 pixels' width."
    from dtir_nb.restoring import Estimate, Restorer
    import torch
    class Deadly(torch.nn.Module):
        def __init__(self): super().__init__(); self.w = torch.nn.Parameter(torch.zeros(1))
        def estimate(self, img):
            if img.shape[-1] == 20: os.kill(os.getpid(), 9)
            return Estimate('noisy', 6, 1., {'noisy': 1., 'clean': 0.})
    return Restorer(lambda v, t: v, {'noisy': 6}, Deadly())

def test_a_dead_worker_is_replaced(tmp_path):
    from dtir_nb.restoring import restore_folder
    for i in range(6): noise(20 if i == 2 else 10, 10).save(tmp_path/f'{i}.png')
    done = restore_folder(tmp_path, tmp_path/'out', partial(die, None), workers=2)
    assert ([o.done for o in done] == ['restored','restored','refused','restored','restored','restored']
            and 'E_CRASH' in done[2].why and '-9' in done[2].why)

def test_clean_pictures_are_returned(shy, tmp_path):
    noise(40,30).save(tmp_path/'a.jpg')
    code, out, _ = dtir('restore', tmp_path/'a.jpg', '-o', tmp_path/'b.jpg', '--model', shy)
    assert (code == 0 and b'looks clean' in out and b'left as it is' in out
            and (tmp_path/'b.jpg').read_bytes() == (tmp_path/'a.jpg').read_bytes())

def test_through_a_pipe(run, tmp_path):
    noise(40,30).save(tmp_path/'a.png')
    code, out, err = dtir('restore', '-', '--run', run, '--t', 13, stdin=(tmp_path/'a.png').read_bytes())
    assert code == 0 and Image.open(io.BytesIO(out)).size == (40,30) and 't*=13' in err
    code, out, err = dtir('restore', '-', '--run', run, stdin=b'hello')
    assert code == 65 and out == b'' and "E_NOT_IMAGE: '-'" in err

def test_options(run, tmp_path):
    noise(90,70).save(tmp_path/'a.png')
    results = {}
    for name, more in dict(plain=(), tiles=('--tile',64), settled=('--tile',64,'--settle',3),
                           whole=('--tile',0), ensemble=('--ensemble',), t=('--t',13)).items():
        code, out, err = dtir('restore', tmp_path/'a.png', '-o', tmp_path/f'{name}.png', '--run', run,
                              *(() if name=='t' else ('--task','rainy')), '--compare', *more)
        assert code == 0, err
        results[name] = np.asarray(Image.open(tmp_path/f'{name}.png')).astype(int)
        assert Image.open(tmp_path/f'{name}_compare.png').size == (188,70)
    far = lambda a, b: abs(results[a]-results[b]).max()
    assert (far('plain','whole') == 0 and far('settled','whole') <= 1 and far('ensemble','whole') > 0
            and far('t','whole') > 0)
    for more, words in ((('--task','muddy'),'muddy'), (('--t',51),'0..50'), (('--tile',40),'overlap'),
                        (('--device','cuda'),'GPU')):
        code, _, err = dtir('restore', tmp_path/'a.png', '-o', tmp_path/'x.png', '--run', run, *more)
        assert ((code, len(err.strip().splitlines())) == (2, 1) and words in err
                and not (tmp_path/'x.png').exists())

def test_sixteen_bits_survive(run, tmp_path):
    import tifffile
    from torchvision.io import decode_image, ImageReadMode
    a = np.random.default_rng(1).integers(0, 65536, (40,50,3)).astype(np.uint16)
    tifffile.imwrite(tmp_path/'a.tif', a, photometric='rgb')
    for out in ('b.png', 'b.tif'):
        code, _, err = dtir('restore', tmp_path/'a.tif', '-o', tmp_path/out, '--run', run, '--task', 'rainy')
        assert code == 0, err
    b, c = (decode_image(str(tmp_path/'b.png'), ImageReadMode.UNCHANGED).permute(1,2,0).numpy(),
            tifffile.imread(tmp_path/'b.tif'))
    assert b.dtype == np.uint16 and np.array_equal(b, c) and len(np.unique(b & 255)) > 200

def test_export_of_a_run(run, tmp_path):
    code, out, err = dtir('export', tmp_path/'net.pt', '--run', run, '--task', 'rainy')
    assert code == 0 and b't*=2 folded in' in out, err
    code, _, err = dtir('export', tmp_path/'net.zip', '--run', run); assert code == 2 and '.onnx' in err

@pytest.mark.long
def test_export_to_onnx(run, tmp_path):
    code, out, err = dtir('export', tmp_path/'net.onnx', '--run', run)
    assert code == 0 and b't is an input' in out, err
    assert [p.name for p in tmp_path.iterdir()] == ['net.onnx']

def seconds(code):
    t = time.perf_counter()
    subprocess.run([sys.executable, '-c', code], env=ENV, check=True)
    return time.perf_counter()-t

@pytest.mark.long
def test_starts_as_fast_as_torch(run):
    "Alternating runs; the middle of the ratios."
    start = f'from dtir_nb.restoring import load_restorer; load_restorer({str(run)!r})'
    seconds('import torch'); seconds(start)
    ratios = [(seconds(start), seconds('import torch')) for _ in range(7)]
    ratio = statistics.median(a for a,_ in ratios)/statistics.median(b for _,b in ratios)
    print(f'loading a restorer takes {ratio:.2f} × import torch')
    assert ratio < 1.2, ratios

PEAK = '''
import resource, sys
from dtir_nb.command import dtir
code = dtir(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss//1024)
sys.exit(code)'''

@pytest.mark.long
@pytest.mark.parametrize('name,more,most', [('big.jpg', (), 2e9), ('big.jpg', ('--settle', '1', '--compare'), 2e9),
                                            ('deep.tif', (), 2.3e9), ('big.jpg', ('--ensemble',), 2.4e9)])
def test_memory_of_24_megapixels(name, more, most, run, tmp_path):
    "Peak resident memory of the whole command, as the kernel counts it: 2 GB; more for 16 bits with transparency and for eight versions at once."
    side = np.linspace(0, 255, 6000, dtype=np.uint8)
    a = np.stack([np.broadcast_to(side, (4000,6000)), np.broadcast_to(side[::-1], (4000,6000)),
                  np.full((4000,6000), 99, np.uint8)], -1)
    if name == 'big.jpg': Image.fromarray(a).save(tmp_path/name, quality=90)
    else:
        deep = np.concatenate([a.astype(np.uint16)*257, np.full((4000,6000,1), 30000, np.uint16)], -1)
        from dtir_nb.photographs import _write_tiff
        _write_tiff(tmp_path/name, deep, {})
    del a; out = tmp_path/f'out{(tmp_path/name).suffix.replace(".jpg", ".png")}'
    p = subprocess.run([sys.executable, '-c', PEAK, 'restore', tmp_path/name, '-o', out,
                        '--run', run, '--task', 'rainy', *more], env=ENV, capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    peak = int(p.stdout.split()[-1]); print(f'{peak} MiB')
    assert peak*2**20 < most and Image.open(out).size == (6000,4000)
