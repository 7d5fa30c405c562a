"""Keep what a demonstration run found, for the home page: python tools/keep_demo.py runs/demo

Writes nbs/experiments/results/demo/{scores,config,provenance}.json and nbs/images/{degraded,restored}.jpg.
"""
import json, sys
from dataclasses import replace
from pathlib import Path
from dtir_nb.core import save_image
from dtir_nb.experiments.records import commit, machine
from dtir_nb.launch import Recipe, held_out, photos
from dtir_nb.restoring import load_restorer

def keep(run, task='noisy', root=Path(__file__).resolve().parents[1]):
    "Copy the numbers of `run`, and restore one held-out photograph with it."
    run, out, pics = Path(run), root/'nbs/experiments/results/demo', root/'nbs/images'
    out.mkdir(parents=True, exist_ok=True); pics.mkdir(parents=True, exist_ok=True)
    for name in ('scores.json', 'config.json'): (out/name).write_text((run/name).read_text())
    r = Recipe(**json.loads((run/'config.json').read_text()))
    m, seconds = machine(), json.loads((run/'timing.json').read_text())['seconds']
    where = f"{m['cores']} cores ({m['cpu']}), torch {m['torch']}" + (f", {m['gpu']}" if m['gpu'] else '')
    (out/'provenance.json').write_text(json.dumps(dict(commit=commit(), machine=where, seconds=seconds, photographs=len(photos('held_out'))), indent=1))
    (x, y), *_ = held_out(replace(r, size=512), 'source')[task]
    save_image(y[0], pics/'degraded.jpg'); save_image(load_restorer(run)(y[0], task=task), pics/'restored.jpg')

if __name__ == '__main__': keep(sys.argv[1])
