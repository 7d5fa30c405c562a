"""Break runs in every way we know, many times, and compare what is left with a run that nobody disturbed.

`make chaos` runs all of it (at least 200 kills) and prints a table; tests/test_faults.py imports the pieces.
"""
import argparse, os, random, shutil, signal, sys, tempfile, time
from pathlib import Path
import torch
from torch import nn
from dtir_nb import checkpoints as ck, training as tr
from dtir_nb.core import rng, Batch
from dtir_nb.parallel import digest, exact
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

def config(**kw): return tr.FitConfig(**(dict(steps=STEPS, lr=.01, ema=.9, save_every=EVERY, progress=False) | kw))
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
    def __init__(self, at=-1, strike=lambda: os.kill(os.getpid(), signal.SIGKILL)): self.at, self.strike, self.n, self.half = at, strike, 0, False
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
    "What was tried, how often, and how often it was survived."
    def __init__(self): self.rows, self.t = {}, time.time()
    def add(self, what, ok, kills=1):
        n, good, k = self.rows.get(what, (0,0,0)); self.rows[what] = (n+1, good+bool(ok), k+kills)
    def kills(self): return sum(r[2] for r in self.rows.values())
    def ok(self): return all(n == good for n,good,_ in self.rows.values())
    def __str__(self):
        w = max(map(len, self.rows))
        return '\n'.join([f'| {"fault":{w}} | runs | kills | survived |', f'|{"-"*(w+2)}|-----:|------:|---------:|'] +
            [f'| {k:{w}} | {n:4} | {kills:5} | {good:8} |' for k,(n,good,kills) in self.rows.items()] +
            [f'\n{sum(r[0] for r in self.rows.values())} runs, {self.kills()} kills, {time.time()-self.t:.0f} s. Survived = the weights, the average and the moments are those of the undisturbed run, bit for bit.'])

def reference():
    with tempfile.TemporaryDirectory() as d: return train(Path(d)/'run')

def kill_everywhere(ledger, stride=1, first=1):
    "SIGKILL at every single operation on the disk, until a run gets through; then finish it."
    want, at = reference(), first
    with tempfile.TemporaryDirectory() as d:
        while True:
            run = Path(d)/str(at)
            def trial(): ck.os = Disk(at); train(run)
            if wait(start(trial)) == 0: return at
            ledger.add('SIGKILL at every operation of a save', wait(start(lambda: train(run))) == 0 and final(run) == want)
            shutil.rmtree(run); at += stride

def kill_at_random(ledger, kills, seed=0, longest=.25, what='SIGKILL at a random moment, many per run'):
    "SIGKILL after a random while, again and again until the run is through."
    want, r, done = reference(), random.Random(seed), 0
    with tempfile.TemporaryDirectory() as d:
        for trial in range(10**6):
            if done >= kills: return
            run, mine, patience, seen = Path(d)/str(trial), 0, longest, []
            while True:
                pid = start(lambda: train(run)); time.sleep(r.uniform(.001, patience))
                if os.waitpid(pid, os.WNOHANG)[0] == pid: break
                os.kill(pid, signal.SIGKILL); mine += wait(pid) < 0
                if seen == (seen := [p.name for p in ck.checkpoints(run)]): patience *= 1.2   # a busy machine: let it get somewhere
            start_again = wait(start(lambda: train(run)))
            ledger.add(what, start_again == 0 and final(run) == want, mine); done += max(mine, 1); shutil.rmtree(run)

def stop_at_random(ledger, runs, seed=1):
    "SIGTERM, SIGINT or SIGUSR1 at a random moment: the run leaves with 85 after saving, or had not yet begun; start again until done."
    want, r = reference(), random.Random(seed)
    with tempfile.TemporaryDirectory() as d:
        for trial in range(runs):
            run, ok, n = Path(d)/str(trial), True, 0
            for _ in range(200):
                pid = start(lambda: train(run)); time.sleep(r.uniform(.02, .15))
                if os.waitpid(pid, os.WNOHANG)[0] == pid: break
                s = r.choice((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)); os.kill(pid, s); n += 1
                ok &= wait(pid) in (85, 0, 1, -s)   # 1 and -s: before or after the loop, where the signal is not ours
            ledger.add('SIGTERM, SIGINT, SIGUSR1 at a random moment', ok and wait(start(lambda: train(run))) == 0 and final(run) == want, n)

def damage_newest(ledger, runs, seed=2):
    "Kill a run, then flip a bit or cut a file of its newest checkpoint: the run goes on from the one before."
    want, r = reference(), random.Random(seed)
    with tempfile.TemporaryDirectory() as d:
        for trial in range(runs):
            run = Path(d)/str(trial)
            def die(k, *_):
                if k == 10: os.kill(os.getpid(), signal.SIGKILL)
            wait(start(lambda: train(run, after=[die])))
            f = r.choice(sorted(ck.checkpoints(run)[0].iterdir())); data = bytearray(f.read_bytes())
            i = r.randrange(len(data))
            if trial % 3: data[i] ^= 1 << r.randrange(8)
            else: del data[i:]
            f.write_bytes(data)
            ledger.add('SIGKILL, then the newest checkpoint damaged', wait(start(lambda: train(run))) == 0 and final(run) == want)

def disk_full(ledger, runs, seed=3):
    "A limit on the size of files plays a full disk; the run stops with 74, and goes on when there is room."
    import resource
    want, r = reference(), random.Random(seed)
    with tempfile.TemporaryDirectory() as d:
        for trial in range(runs):
            run = Path(d)/str(trial); wait(start(lambda: train(run, after=[lambda k, *_: k == 4 and os.kill(os.getpid(), signal.SIGKILL)])))
            def small():
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN); n = r.randrange(700, 1500); resource.setrlimit(resource.RLIMIT_FSIZE, (n, n)); train(run)
            rc, left = wait(start(small)), final(run)
            ledger.add('SIGKILL, then a full disk', rc == 74 and left[0] == 3 and wait(start(lambda: train(run))) == 0 and final(run) == want)

def change_workers(ledger, runs, seed=4):
    "SIGKILL one of several workers at a random moment, go on with another number of them."
    from dtir_nb.parallel import fork_workers
    want, r = reference(), random.Random(seed)
    with tempfile.TemporaryDirectory() as d:
        for trial in range(runs):
            run, kills = Path(d)/str(trial), 0
            for _ in range(3):
                W, at, who = r.choice((2,4)), r.randrange(1, STEPS), r.randrange(2)
                def die(k, *_):
                    if k == at and int(tr.Team().rank) == who: os.kill(os.getpid(), signal.SIGKILL)
                def crowd():
                    try: fork_workers(lambda: train(run, after=[die]) and {}, W, timeout=5)
                    except RuntimeError: pass
                wait(start(crowd)); kills += 1
            ledger.add('one of 2 or 4 workers killed, another number goes on', wait(start(lambda: train(run))) == 0 and final(run) == want, kills)

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0]); p.add_argument('--kills', type=int, default=200); p.add_argument('--stride', type=int, default=1)
    a, ledger = p.parse_args(), Ledger()
    for f,n in ((damage_newest, max(3, a.kills//10)), (disk_full, max(2, a.kills//20)), (stop_at_random, max(1, a.kills//40)), (change_workers, max(1, a.kills//60))):
        f(ledger, n); print(f.__name__, 'done', flush=True)
    kill_everywhere(ledger, a.stride); print('kill_everywhere done', flush=True)
    kill_at_random(ledger, max(50, a.kills-ledger.kills()))
    print(ledger)
    sys.exit(0 if ledger.ok() else 1)

if __name__ == '__main__': main()
