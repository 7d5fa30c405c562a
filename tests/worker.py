"One worker of a torchrun job: the small run of chaos.py, with faults on demand from the environment."
import json, os, signal, sys, time
from pathlib import Path
from torch.distributed.elastic.multiprocessing.errors import record
import chaos
from dtir_nb import training as tr
from dtir_nb.parallel import exact, init_workers

def fault(k, *_):
    rank, first = int(os.environ['RANK']), os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') == '0'
    time.sleep(float(os.environ.get('SLOW', 0)))
    for name,s in (('KILL', signal.SIGKILL), ('STALL', signal.SIGSTOP)):
        if first and os.environ.get(name) == f'{rank}:{k}': os.kill(os.getpid(), s)

@record
def main(run):
    patience = float(os.environ.get('PATIENCE', 30))
    init_workers(timeout=patience)
    try:
        tr.fit(chaos.network(), chaos.stream, chaos.step, chaos.config(), run=run,
               reduce=exact(4, patience/2), after=[fault])
    # leave with 0, or torchrun would start the workers again; the launcher reads the code
    except tr.Preempted as e:
        if os.environ['RANK'] == '0':
            (Path(run).parent/'status.json').write_text(json.dumps({'code': tr.exit_code(e), 'step': e.step}))

if __name__ == '__main__': main(sys.argv[1])
