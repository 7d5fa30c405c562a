"What the records of the experiments say of themselves."
import json, subprocess
from pathlib import Path
import pytest

ROOT, FROZEN = Path(__file__).resolve().parents[1], 'b727899'

def git(*a): return subprocess.run(['git', '-C', str(ROOT), *a], capture_output=True, text=True)

def test_counted_runs_are_younger_than_the_protocol():
    "Every counted run names a clean commit that has the frozen protocol behind it."
    if git('cat-file', '-e', FROZEN+'^{commit}').returncode: pytest.skip('no history here')
    made = {}
    for p in (ROOT/'nbs/experiments/results/claims/small').glob('*/*/*.json'):
        if p.parts[-3] != 'select': made.setdefault(json.loads(p.read_text())['commit'], p)
    assert made
    for c,p in made.items():
        assert c and not c.endswith('+'), p
        assert git('merge-base', '--is-ancestor', FROZEN, c).returncode == 0, p

def test_rows_of_a_seed_start_from_one_network():
    "All rows of one seed that share a pre-training were told the same steps, and name the same start where they name one."
    told, starts = {}, {}
    for p in sorted((ROOT/'nbs/experiments/results/claims/small').glob('*/*/*.json')):
        r = json.loads(p.read_text()); c, row = r['config'], r['config']['row']
        if not row['pre']: continue
        at = (len(c['tasks']) > 1, row['pre'], row['net'], c['seed'])
        for k,t in r['result']['t'] if row['t'] is None else ():
            was, where = told.setdefault((at, k), (t, p))
            assert t == was, f'{p} was told {t} for {k}, {where} {was}: they started from two networks'
        if s := r['result'].get('start'):
            assert starts.setdefault(at, s) == s, f'{p} started from another network than its like'
    assert told
