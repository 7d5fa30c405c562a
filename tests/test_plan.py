"An estimate that nobody checks is a wish: a small run is planned on this machine, then trained, and the two are compared."
import json, os, resource, sys, time
from dataclasses import replace
from pathlib import Path
import pytest, torch
from types import SimpleNamespace
from dtir_nb import launch, plan, training
from dtir_nb.experiments.records import once
from dtir_nb.plan import Peak, counted, count, cycle, trial
from dtir_nb.recipes import recipe
torch.set_num_threads(1)
SETTINGS = ['tasks=noisy,rainy', 'pre=60', 'tune=60', 'experts=2', 'batch=8', 'patch=48', 'width=8']

def seconds(r, stage, steps, first=0):
    "Processor seconds per step of a run of so many steps, without the first ones; another process on the same core costs none of them."
    marks = [time.process_time()]
    trial(r, stage, steps)[0](after=[lambda *_: marks.append(time.process_time())])
    return (marks[-1]-marks[first])/(steps-first)

def compare(settings):
    "Estimated from short trials against measured on the whole run: processor time of each stage, bytes held at once, processor memory."
    r, rows = recipe('demo', *settings), []
    for stage in ('pre','tune'):
        # the first steps look for fast algorithms, and are not like the others
        n = 3*cycle(r); estimated = seconds(r, stage, n+2, first=2)*getattr(r, stage)
        rows.append(dict(what=f'{stage}: seconds of {getattr(r, stage)} steps, from {n}', estimated=estimated,
                         measured=seconds(r, stage, getattr(r, stage))*getattr(r, stage)))
        _, fixed, per_pixel = count(r, stage, (16, 32))
        with Peak() as p: f, _ = trial(r, stage, cycle(r), r.patch); p.most = p.now; f()
        rows.append(dict(what=f'{stage}: MB held at once, from 16 and 32 pixels',
                         estimated=(fixed+per_pixel*r.patch**2*r.batch)/1e6, measured=p.most/1e6))
    return dict(table=rows)

@pytest.mark.slow
def test_the_estimate_is_within_a_quarter():
    for _ in range(3):   # a busy machine gets three chances
        ratios = [o['estimated']/o['measured'] for o in compare(SETTINGS)['table']]
        if all(.75 < q < 1.25 for q in ratios): return
    raise AssertionError(ratios)

def seconds_of(text):
    "The time in the last row of a printed plan."
    value, unit = [l for l in text.splitlines() if '**all**' in l][-1].split('|')[5].split()
    return float(value.replace(',','')) * dict(s=1, min=60, h=3600)[unit]

@pytest.mark.slow
def test_the_printed_total_is_within_a_quarter(monkeypatch, tmp_path, capsys):
    "What `--dry-run` prints for all stages together, against the whole run: pre-training, matching, importance, fine-tuning. Processor time on both sides, which a busy machine leaves alone."
    for module in (plan, training):
        monkeypatch.setattr(module, 'time',
                            SimpleNamespace(perf_counter=time.process_time, time=time.time, sleep=time.sleep))
    line = ['demo', *(v for s in SETTINGS for v in ('--set', s))]; ratios = []
    for i in range(3):
        capsys.readouterr(); launch.main([*line, '--dry-run']); said = seconds_of(capsys.readouterr().out)
        t = time.process_time()
        launch.main([*line, '--out', str(tmp_path/str(i))])
        ratios.append(said/(time.process_time()-t))
        if .75 < ratios[-1] < 1.25: return
    raise AssertionError(ratios)

def test_hardware_without_16_bits_gains_nothing_from_them():
    r = recipe('demo', 'lam_orth=0', 'amp=bf16'); cost = dict(pre=(1e12, 1e6, 10.), tune=(2e12, 1e6, 10.))
    hours = lambda r, hw: sum(o.hours for o in plan.rows(r, hw, cost=cost))
    assert (hours(r, '8x1080ti') == hours(replace(r, amp=''), '8x1080ti') and hours(r, '8xh100')
            < hours(replace(r, amp=''), '8xh100')/5)

if __name__ == '__main__':   # keeps the record that 18c shows
    print(json.dumps(
              once(sys.argv[1] if len(sys.argv)
                   > 1 else Path(__file__).parents[1]/'nbs'/'experiments'/'results'/'estimate.json', compare,
                   settings=SETTINGS), indent=1))
