"""Break runs in every way we know, many times, and compare what is left with a run that nobody disturbed.

`make chaos` runs all of it (at least 200 kills), prints a table and keeps it in nbs/experiments/results/chaos.json; cut off, it goes on
from there. tests/test_faults.py imports the pieces.
"""
import argparse, json, os, random, shutil, signal, sys, tempfile, time
from pathlib import Path
import torch
from torch import nn
from dtir_nb import checkpoints as ck, training as tr
from dtir_nb.core import rng, Batch
from dtir_nb.parallel import digest, exact
from dtir_nb.experiments.records import commit, machine
torch.set_num_threads(1)

# A run small enough to be killed hundreds of times, with everything in it that a large one has: average, moments, noise, shards, a best score
STEPS, EVERY = 12, 3
def network():
    net = nn.Sequential(nn.Linear(4,8), nn.Tanh(), nn.Linear(8,4))
    for i,p in enumerate(net.parameters()): nn.init.normal_(p, 0, .3, generator=rng(0, 'init', i))
    return net

def stream(k, shard=0, shards=1): return Batch(torch.rand(8, 4, generator=rng(7, k)).chunk(shards)[shard])
def step(net, b, gen, reduce):
    mean = reduce(net(b.x).detach().mean(0))
    return {'loss': (net(b.x+.1*torch.randn(b.x.shape, generator=gen))-b.x*mean).square().mean()}

def config(**kw):
    return tr.FitConfig(**(dict(steps=STEPS, lr=.01, ema=.9, save_every=EVERY, progress=False) | kw))
def train(run, after=(), shards=4, stream=stream, step=step, **kw):
    "Train (or go on training) in a directory; the digest of all that the run has become."
    tr.fit(network(), stream, step, config(**kw), run=run, reduce=exact(shards), after=after)
    return final(run)

def final(run):
    c = ck.load_checkpoint(run)
    return None if c is None else (c.step, digest(c.tensors).hex()[:16])

# The fork server: this process has imported torch once, each trial is a fork of it
def start(f, quiet=True):
    "Run f() in a fork; its pid."
    if (pid := os.fork()): return pid
    rc = 1
    try:
        if quiet: null = os.open(os.devnull, os.O_WRONLY); os.dup2(null, 1); os.dup2(null, 2)
        f(); rc = 0
    except BaseException as e: rc = tr.exit_code(e) if isinstance(e, Exception) else 1
    finally: os._exit(rc)

def wait(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])   # negative: killed by that signal

class Disk:
    "Stands in for the module `os` inside `checkpoints`, and strikes at the n-th operation that changes the disk."
    CALLS = ('mkdir', 'open', 'fsync', 'rename', 'replace', 'unlink', 'rmdir')
    def __init__(self, at=-1, strike=lambda: os.kill(os.getpid(), signal.SIGKILL)):
        self.at, self.strike, self.n, self.half = at, strike, 0, False
    def point(self):
        self.n += 1
        if self.n == self.at: self.strike()
    def write(self, fd, data):   # every file in two halves
        self.point(); self.half = not self.half
        return os.write(fd, data[:max(1, len(data)//2)] if self.half else data)
    def __getattr__(self, name):
        f = getattr(os, name)
        if name not in self.CALLS: return f
        def call(*a, **k): self.point(); return f(*a, **k)
        return call

class Ledger:
    "What was tried, how often, and how often it was survived; with a `path`, on the disk after every run."
    def __init__(self, path=None, **config):
        self.rows, self.t, self.path, self.config, self.before, self.commit = ({}, time.time(),
            path and Path(path), config, 0., commit())
        if self.path and self.path.exists():
            old = json.loads(self.path.read_text())
            if old['config'] == config and old['commit'] == self.commit and not old['result']['finished']:
                self.rows, self.before = {r['fault']: (r['runs'], r['survived'], r['kills'])
                                          for r in old['result']['table']}, old['seconds']
    def add(self, what, ok, kills=1):
        n, good, k = self.rows.get(what, (0,0,0))
        self.rows[what] = (n+1, good+bool(ok), k+kills); self.save()
    def runs(self, what): return self.rows.get(what, (0,0,0))[0]
    # SIGKILLs; polite signals do not count
    def kills(self): return sum(r[2] for k,r in self.rows.items() if k != SIGNALS)
    def ok(self): return all(n == good for n,good,_ in self.rows.values())
    def seconds(self): return self.before+time.time()-self.t
    def save(self, finished=False):
        if not self.path: return
        table = [dict(fault=k, runs=n, kills=kills, survived=good) for k,(n,good,kills) in self.rows.items()]
        result = dict(finished=finished, kills=self.kills(), survived=self.ok(), table=table,
                      weights=reference()[1] if finished else None)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        tmp = self.path.with_suffix(f'.{os.getpid()}.tmp')
        tmp.write_text(json.dumps(dict(config=self.config, result=result, commit=self.commit,
                                       machine=machine(), seconds=round(self.seconds(), 1),
                                       date=time.strftime('%Y-%m-%d')), indent=1))
        os.replace(tmp, self.path)
    def __str__(self):
        w = max(map(len, self.rows))
        return '\n'.join([f'| {"fault":{w}} | runs | kills | survived |',
                          f'|{"-"*(w+2)}|-----:|------:|---------:|'] +
            [f'| {k:{w}} | {n:4} | {kills:5} | {good:8} |' for k,(n,good,kills) in self.rows.items()] +
            [f'\n{sum(r[0] for r in self.rows.values())} runs, {self.kills()} kills, {self.seconds():.0f} s. '
             f'Survived = the weights, the average and the moments are those of the undisturbed run, '
             f'bit for bit.'])

def reference():
    with tempfile.TemporaryDirectory() as d: return train(Path(d)/'run')

def duration():
    "Seconds that an undisturbed run takes, on this machine and as busy as it is."
    with tempfile.TemporaryDirectory() as d:
        t = time.perf_counter(); wait(start(lambda: train(Path(d)/'run'))); return time.perf_counter()-t

# each trial has its own luck, whenever it is run
def lot(what, trial): return random.Random(f'{what} {trial}')
def at_step(k0, f): return lambda k, *_: k == k0 and f()
def kill_self(): os.kill(os.getpid(), signal.SIGKILL)

EVERYWHERE = {False: 'SIGKILL at every operation of a save', True: 'the same, written in the background'}
def kill_everywhere(ledger, stride=1, first=1, background=False):
    "SIGKILL at every single operation on the disk, until a run gets through; then finish it."
    what = EVERYWHERE[background]; want, at = reference(), first+stride*ledger.runs(what)
    with tempfile.TemporaryDirectory() as d:
        while True:
            run = Path(d)/str(at)
            def trial(): ck.os = Disk(at); train(run, background=background)
            if wait(start(trial)) == 0: return at
            ledger.add(what, wait(start(lambda: train(run))) == 0 and final(run) == want)
            shutil.rmtree(run); at += stride

RANDOM = 'SIGKILL at a random moment, many per run'
def kill_at_random(ledger, kills):
    "SIGKILL after a random while, again and again until the run is through; until so many kills have been dealt out. Every other run writes in the background. A run that no kill has hit does not count."
    want, longest = reference(), .6*duration()
    with tempfile.TemporaryDirectory() as d:
        while ledger.rows.get(RANDOM, (0,0,0))[2] < kills:
            trial = ledger.runs(RANDOM)
            r, run, mine, patience, seen = lot(RANDOM, trial), Path(d)/str(trial), 0, longest, []
            while True:
                pid = start(lambda: train(run, background=bool(trial % 2)))
                time.sleep(r.uniform(.001, patience))
                if os.waitpid(pid, os.WNOHANG)[0] == pid:
                    if mine: break
                    shutil.rmtree(run); patience, seen = longest, []; continue
                os.kill(pid, signal.SIGKILL); mine += wait(pid) < 0
                # a busy machine: let it get somewhere
                if seen == (seen := [p.name for p in ck.checkpoints(run)]): patience *= 1.2
            ledger.add(RANDOM, wait(start(lambda: train(run))) == 0 and final(run) == want, mine)
            shutil.rmtree(run)

SIGNALS = 'SIGTERM, SIGINT, SIGUSR1 at a random moment'
def stop_at_random(ledger, runs):
    "A polite signal at a random moment: the run leaves with 85 after saving, or had not yet begun; start again until done. A run that no signal has hit does not count."
    want, longest = reference(), .8*duration()
    with tempfile.TemporaryDirectory() as d:
        for trial in range(ledger.runs(SIGNALS), runs):
            r, run, ok, n = lot(SIGNALS, trial), Path(d)/str(trial), True, 0
            for _ in range(200):
                was = len(tr.read_log(run))
                pid = start(lambda: train(run, background=bool(trial % 2))); time.sleep(r.uniform(.001, longest))
                if os.waitpid(pid, os.WNOHANG)[0] == pid:
                    if n: break
                    shutil.rmtree(run); continue
                s = r.choice((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)); os.kill(pid, s); n += 1
                # 1 and -s: before the loop or after it, where the signal is not ours
                rc = wait(pid); outside = len(tr.read_log(run)) <= was or final(run) == want
                ok &= rc == 85 or rc == 0 and final(run) == want or rc in (1, -s) and outside
            ledger.add(SIGNALS, ok and wait(start(lambda: train(run))) == 0 and final(run) == want, n)

DAMAGE = 'SIGKILL, then the newest checkpoint damaged'
def damage_newest(ledger, runs):
    "Kill a run, then flip a bit or cut a file of its newest checkpoint: the run goes on from the one before."
    want = reference()
    with tempfile.TemporaryDirectory() as d:
        for trial in range(ledger.runs(DAMAGE), runs):
            r, run = lot(DAMAGE, trial), Path(d)/str(trial)
            wait(start(lambda: train(run, after=[at_step(10, kill_self)])))
            f = r.choice(sorted(ck.checkpoints(run)[0].iterdir())); data = bytearray(f.read_bytes())
            i = r.randrange(len(data))
            if trial % 3: data[i] ^= 1 << r.randrange(8)
            else: del data[i:]
            f.write_bytes(data)
            ledger.add(DAMAGE, wait(start(lambda: train(run))) == 0 and final(run) == want)

FULL = 'SIGKILL, then a full disk'
def small_disk(n):
    "No file of this process may grow beyond n bytes; a full disk for those who cannot mount one."
    import resource
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

def disk_full(ledger, runs):
    "The run stops with 74, and goes on when there is room."
    want = reference()
    with tempfile.TemporaryDirectory() as d:
        for trial in range(ledger.runs(FULL), runs):
            r, run = lot(FULL, trial), Path(d)/str(trial)
            wait(start(lambda: train(run, after=[at_step(4, kill_self)])))
            def small(): small_disk(r.randrange(700, 1500)); train(run)
            rc, left = wait(start(small)), final(run)
            ledger.add(FULL, rc == 74 and left[0] == 3 and wait(start(lambda: train(run)))
                       == 0 and final(run) == want)

WORKERS, STALLED = ('one of 2 or 4 workers killed, another number goes on',
                    'one of 2 workers stands still, all killed, one goes on')
def crowd(run, n, after, patience=5):
    "Train on n forked workers; the pid of the process that holds them, leader of a group of its own."
    from dtir_nb.parallel import fork_workers
    def f():
        os.setpgrp()
        try:
            fork_workers(lambda: tr.fit(network(), stream, step, config(), run=run, reduce=exact(4, patience),
                                        after=after) and {}, n, timeout=patience)
        except RuntimeError: pass
    return start(f)
def rank(): return int(tr.Team().rank)

def change_workers(ledger, runs):
    "SIGKILL one of several workers at a random moment, go on with another number of them."
    want = reference()
    with tempfile.TemporaryDirectory() as d:
        for trial in range(ledger.runs(WORKERS), runs):
            r, run = lot(WORKERS, trial), Path(d)/str(trial)
            for _ in range(3):
                W, at, who = r.choice((2,4)), r.randrange(1, STEPS), r.randrange(2)
                wait(crowd(run, W, [at_step(at, lambda: rank() == who and kill_self())]))
            ledger.add(WORKERS, wait(start(lambda: train(run))) == 0 and final(run) == want, 3)

def stalled_worker(ledger, runs):
    "SIGSTOP one of two workers; the other names it and leaves; what is left is killed, and one worker finishes the run."
    want = reference()
    with tempfile.TemporaryDirectory() as d:
        for trial in range(ledger.runs(STALLED), runs):
            r, run = lot(STALLED, trial), Path(d)/str(trial); at = r.randrange(4, STEPS-1)
            pid = crowd(run, 2, [at_step(at, lambda: rank() == 1 and os.kill(os.getpid(), signal.SIGSTOP))],
                        2)
            time.sleep(6); os.killpg(pid, signal.SIGKILL); wait(pid)
            ledger.add(STALLED, wait(start(lambda: train(run))) == 0 and final(run) == want, 2)

POWER = 'power cut after every operation of a save, in four ways'
def power_cuts(ledger):
    "What a disk may hold after a power cut loads as the last finished save, or the one under way."
    import powerloss
    if ledger.runs(POWER): return
    with tempfile.TemporaryDirectory() as d: n, lost = powerloss.cuts(Path(d))
    for i in range(4*n): ledger.rows[POWER] = (i+1, i+1-min(len(lost), i+1), 0)
    ledger.save()

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--kills', type=int, default=200)
    p.add_argument('--stride', type=int, default=1)
    p.add_argument('--out', default=Path(__file__).parents[1]/'nbs'/'experiments'/'results'/'chaos.json')
    a = p.parse_args(); ledger = Ledger(a.out, kills=a.kills, stride=a.stride)
    rest = lambda led: kill_at_random(led,
                                      max(a.kills//4, a.kills-led.kills()+led.rows.get(RANDOM, (0,0,0))[2]))
    for f in (power_cuts, lambda led: damage_newest(led, max(3, a.kills//10)),
              lambda led: disk_full(led, max(2, a.kills//20)),
              lambda led: stop_at_random(led, max(1, a.kills//20)),
              lambda led: change_workers(led, max(1, a.kills//60)),
              lambda led: stalled_worker(led, max(1, a.kills//100)),
              lambda led: kill_everywhere(led, a.stride),
              lambda led: kill_everywhere(led, a.stride, background=True), rest):
        f(ledger)
        print(f'{list(ledger.rows)[-1]}: {ledger.kills()} kills so far, {ledger.seconds():.0f} s', flush=True)
    ledger.save(finished=True); print(ledger)
    sys.exit(0 if ledger.ok() else 1)

if __name__ == '__main__': main()
