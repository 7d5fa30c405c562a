"A training run over a folder with bad files stops with the list, or goes on and says how many it skipped, as set."
import io, json, os, re, shutil, struct, tempfile, zlib
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from dtir_nb.command import dtir
from dtir_nb.core import ImageError, save_image, rng
from dtir_nb.data import BadFiles, Pairs, files, stream
from dtir_nb.doctor import doctor, make_lq
from dtir_nb.leaks import leaks
from dtir_nb.training import FitConfig, fit

def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind+data))

@pytest.fixture
def folder(tmp_path):
    "Eight pairs, four of which cannot be used, and two files without a partner."
    for side in ('LQ', 'GT'): (tmp_path/side).mkdir()
    for i in range(8):
        x = torch.rand(3, 40, 40, generator=rng(0, i))
        save_image(x, tmp_path/'GT'/f'{i}.png'); save_image(x*.5, tmp_path/'LQ'/f'{i}.png')
    lq = tmp_path/'LQ'
    (lq/'1.png').write_text('not a picture')
    (lq/'2.png').write_bytes((lq/'2.png').read_bytes()[:900])
    header = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0))
    (lq/'3.png').write_bytes(header + chunk(b'IDAT', zlib.compress(b'\0')) + chunk(b'IEND', b''))
    save_image(torch.rand(3, 40, 30, generator=rng(1)), lq/'4.png')
    (lq/'5.png').unlink(); (tmp_path/'GT'/'6.png').unlink()
    return tmp_path

BAD = {('1.png', 'E_NOT_IMAGE'), ('2.png', 'E_TRUNCATED'), ('3.png', 'E_TOO_LARGE'), ('4.png', 'E_PAIR_SIZE'),
       ('5.png', 'E_NO_PARTNER'), ('6.png', 'E_NO_PARTNER')}
names = lambda errors: {(Path(e.path).name, e.code) for e in errors}

def step(net, batch, gen, reduce): return {'loss': (net(batch.y)-batch.x).square().mean()}
def train(pairs, steps=6, after=()):
    net = torch.nn.Conv2d(3, 3, 1)
    return fit(net, stream(pairs, 2), step, FitConfig(steps=steps, lr=1e-3, ema=0, progress=False),
               after=after)

def test_stops_with_the_list(folder):
    with pytest.raises(BadFiles) as e:
        train(Pairs.from_folder(folder/'LQ', folder/'GT', 'low_light', patch=32))
    assert names(e.value.errors) == BAD
    assert all(name in str(e.value) and code in str(e.value) for name,code in names(e.value.errors))

def test_goes_on_and_says_how_many(folder):
    with pytest.warns(UserWarning) as said:
        pairs = Pairs.from_folder(folder/'LQ', folder/'GT', 'low_light', patch=32, bad='skip')
    assert names(pairs.skipped) == BAD and len(pairs) == 2
    assert (any('4 of 6 pictures are skipped' in str(w.message) for w in said)
            and any('2 files are skipped' in str(w.message) for w in said))
    net = train(pairs)
    assert all(p.isfinite().all() for p in net.parameters())

def test_a_file_that_changes_during_the_run_is_named(folder):
    with pytest.warns(UserWarning):
        pairs = Pairs.from_folder(folder/'LQ', folder/'GT', 'low_light', patch=32, bad='skip')
    pairs.lq.cache.budget = pairs.gt.cache.budget = 0
    victim = Path(pairs.lq.items[0])
    def exchange(k, *_):
        if k == 2: victim.write_bytes(b'something else')
    with pytest.raises(ImageError, match='E_CHANGED') as e: train(pairs, 40, [exchange])
    assert Path(e.value.path) == victim

NB = json.loads((Path(__file__).parent.parent/'nbs/01a_inspection.ipynb').read_text())
BY_ROOT = {'link_out.png': None, 'endless.png': 'E_NOT_FILE'}     # without a root, a link may lead anywhere

@pytest.fixture(scope='module')
def corpus():
    "The folder of bad files of notebook 01a, one of each stem, beside a good picture; and why each is refused."
    cells = {c['id']: ''.join(c['source']) for c in NB['cells']}
    ns = {k: globals()[k] for k in ('io', 'np', 'os', 're', 'struct', 'tempfile', 'zlib', 'Image', 'Path')}
    ns['tiny'] = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8))
    exec(next(l for l in cells['aaeb7336'].splitlines() if l.startswith('def as_bytes')), ns)
    for k in ('2c68b392', '40335556', 'b85ca22a', 'eb5d16f0'): exec(cells[k], ns)
    pit, want = ns['pit'], ns['want'] | BY_ROOT | {'good.png': None}
    (pit/'good.png').write_bytes(ns['png'])
    (pit/'work.jpg').rename(pit.parent/'work.jpg'); del want['work.jpg']     # only a question of the time that is left for it
    seen = {}
    for k in sorted(want):
        if seen.setdefault(Path(k).stem, k) != k: (pit/k).unlink()
    yield pit, {k: want[k] for k in seen.values()}
    shutil.rmtree(pit.parent)

def refused(errors, want):
    got = {Path(e.path).name: e.code for e in errors}
    assert got.keys() == {k for k,v in want.items() if v}
    assert [(k, v, want[k]) for k,v in got.items() if v not in want[k].split('|')] == []

def test_make_lq_survives_the_corpus(corpus, tmp_path):
    pit, want = corpus
    with pytest.raises(BadFiles) as e: make_lq(pit, tmp_path/'out', 'noisy', seconds=60, memory=3e8)
    refused(e.value.errors, want)
    assert not (tmp_path/'out/LQ').exists()
    with pytest.warns(UserWarning, match='pictures are skipped'):
        make_lq(pit, tmp_path/'out', 'noisy', bad='skip', seconds=60, memory=3e8)
    assert sorted(p.name for p in (tmp_path/'out/LQ').iterdir()) == ['good.png', 'link_out.png']

def test_a_file_that_takes_too_long_is_given_up(corpus, tmp_path):
    "Two seconds are enough for no decoder of this one; a busy machine may need them for a good one, too."
    (tmp_path/'clean').mkdir(); shutil.copy(corpus[0].parent/'work.jpg', tmp_path/'clean')
    with pytest.raises(BadFiles) as e: make_lq(tmp_path/'clean', tmp_path/'out', 'noisy', seconds=2, memory=3e8)
    errors = leaks(tmp_path/'clean', tmp_path/'clean', seconds=2, memory=3e8)[1]
    assert {x.code for x in (*e.value.errors, *errors)} == {'E_TIMEOUT'}

def test_leaks_survive_the_corpus(corpus, tmp_path):
    pit, want = corpus
    (tmp_path/'test').mkdir(); shutil.copy(pit/'good.png', tmp_path/'test')
    found, errors = leaks(pit, tmp_path/'test', seconds=60, memory=3e8)
    refused(errors, {k: None if v == 'E_ALPHA' else v for k,v in want.items()})   # its alpha is ignored
    assert {Path(l.train).name for l in found} >= {'good.png', 'link_out.png'}

def test_a_tree_deeper_than_functions_can_call(tmp_path):
    spots = [tmp_path/'deep']
    for _ in range(1200): spots.append(spots[-1]/'d')
    for p in spots: os.mkdir(p)
    save_image(torch.rand(3, 24, 24, generator=rng(0)), spots[-1]/'1.png')
    try:
        assert files(spots[0]) == [spots[-1]/'1.png']
        r = doctor(spots[0]); assert r.ok and r.groups[0]['found'] == 1
    finally:
        (spots[-1]/'1.png').unlink()
        for p in reversed(spots): os.rmdir(p)

def test_the_command_says_so(folder, tmp_path, capsys):
    d = str(folder)
    assert dtir(['data', 'doctor', d]) == 65 and 'E_NOT_IMAGE' in capsys.readouterr().out
    assert dtir(['data', 'make-lq', f'{d}/LQ', f'{d}/out', 'noisy']) == 65 and 'E_NOT_IMAGE' in capsys.readouterr().err
    assert dtir(['data', 'make-lq', f'{d}/LQ', f'{d}/out', 'noisy', '--bad', 'skip']) == 0
    assert 'E_NOT_IMAGE' in capsys.readouterr().out and dtir(['data', 'doctor', f'{d}/out']) == 0
    assert dtir(['data', 'leaks', f'{d}/LQ', f'{d}/GT', '--out', f'{d}/l']) == 65
    assert 'files could not be examined: ' in capsys.readouterr().out
    (folder/'empty').mkdir(); (folder/'empty/a.gif').touch()
    for args, why in ((['doctor', 'empty'], '.gif ×1'), (['leaks', 'empty', 'GT'], "train is"),
                      (['prepare', 'nowhere'], 'not a folder'), (['make-lq', 'GT', 'o', 'hazy', '--strength', 'daclip'], "task is 'hazy'"),
                      (['make-lq', 'GT', 'o', 'noisy', '--strength', 'much'], "strength is 'much'")):
        places = [f'{d}/{a}' if a in ('empty', 'GT', 'nowhere', 'o') else a for a in args]
        assert dtir(['data', *places]) == 2
        said = capsys.readouterr().err; assert why in said and said.count('\n') == 1, said
