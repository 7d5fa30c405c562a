"""Keep what a demonstration run found, for the home page: python tools/keep_demo.py runs/demo

Writes nbs/experiments/results/demo/{scores,config,provenance}.json; and nbs/images/{degraded,restored}.jpg with the weights that ship (no run needed: python tools/keep_demo.py).
"""
import json, sys
from dataclasses import replace
from pathlib import Path
from dtir_nb.core import save_image
from dtir_nb.experiments.records import commit, machine
from dtir_nb.launch import Recipe, held_out, photos
from dtir_nb.restoring import Restorer

ROOT = Path(__file__).resolve().parents[1]

def keep(run, root=ROOT):
    "Copy the numbers of `run`."
    run, out = Path(run), root/'nbs/experiments/results/demo'; out.mkdir(parents=True, exist_ok=True)
    for name in ('scores.json', 'config.json'): (out/name).write_text((run/name).read_text())
    m, seconds = machine(), json.loads((run/'timing.json').read_text())['seconds']
    where = f"{m['cores']} cores ({m['cpu']}), torch {m['torch']}" + (f", {m['gpu']}" if m['gpu'] else '')
    (out/'provenance.json').write_text(
        json.dumps(dict(commit=commit(), machine=where, seconds=seconds, photographs=len(photos('held_out'))),
                   indent=1))

def pictures(task='noisy', root=ROOT):
    "A held-out photograph, degraded, and restored by the weights that ship, which are not told what is wrong with it."
    pics = root/'nbs/images'; pics.mkdir(parents=True, exist_ok=True)
    (_, y), *_ = held_out(replace(Recipe(), size=512), 'source')[task]
    save_image(y[0], pics/'degraded.jpg'); save_image(Restorer.pretrained()(y[0]), pics/'restored.jpg')

if __name__ == '__main__':
    for run in sys.argv[1:]: keep(run)
    pictures()
