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
