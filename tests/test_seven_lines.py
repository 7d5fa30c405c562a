"The lines that the front page prints run as they stand, but for the device and for how long."
import json, re
from functools import partial
from pathlib import Path
import torch
from dtir_nb.core import rng, save_image
from dtir_nb.finetuning import FinetuneConfig
from dtir_nb.restoring import Restorer
from dtir_nb.training import FitConfig

ROOT = Path(__file__).resolve().parents[1]

def lines():
    "The first block of Python of the index."
    cells = [''.join(c['source']) for c in json.loads((ROOT/'nbs/index.ipynb').read_text(encoding='utf-8'))['cells']]
    return re.search(r'```python\n(.*?)```', '\n'.join(cells), re.S)[1]

def test_seven_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path); text = lines(); own = {}
    assert len([l for l in text.splitlines() if l.strip() and not l.startswith('#')]) == 7
    x = [torch.rand(3,48,48, generator=rng(0,k)) for k in range(4)]; save_image(.5*x[0], tmp_path/'rain.jpg')
    first, rest = text.split('\n', 1); exec(first, own)
    few = dict(cfg=FitConfig(steps=2, progress=False), patch=32, batch=2)
    own |= dict(clean_images=x, pairs=[(v, .5*v) for v in x], pretrain=partial(own['pretrain'], **few),
                finetune=partial(own['finetune'], gef=FinetuneConfig(samples=2), **few))
    exec(rest.replace("'cuda'", "'cpu'").replace('width=32', "width=8, enc=(1,), middle=1, dec=(1,)"), own)
    again = Restorer.from_run('runs/mine')
    assert torch.equal(again(own['load_image']('rain.jpg'), task='rainy'), own['img'])
    assert {p.name for p in Path('runs').iterdir()} == {'pre', 'fine', 'mine'} and (tmp_path/'runs/pre/ckpt').is_dir()
