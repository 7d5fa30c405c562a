"A training run over a folder with bad files stops with the list, or goes on and says how many it skipped, as set."
import struct, zlib
from pathlib import Path
import pytest, torch
from dtir_nb.core import ImageError, save_image, rng
from dtir_nb.data import BadFiles, Pairs, stream
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
