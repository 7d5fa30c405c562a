"The promises of a run, each as a test. The quick ones always run; `-m slow` runs what needs launchers and minutes, `-m long` every kill point; `make chaos` runs hundreds of kills."
import ast, contextlib, functools, json, os, pickle, random, resource, shutil, signal, subprocess, sys, tarfile, time, warnings, zipfile
from pathlib import Path
import pytest, torch
from torch import nn
from torch.testing import assert_close
HERE = Path(__file__).parent; sys.path.insert(0, str(HERE))
import chaos, powerloss
from chaos import STEPS, EVERY, Disk, Ledger, config, final, network, start, train, wait
from dtir_nb import checkpoints as ck, training as tr
from dtir_nb.core import rng, Batch
from dtir_nb.data import ahead
from dtir_nb.parallel import Drift, ddp, digest, exact, fork_workers
from dtir_nb.sharded import fsdp
slow = pytest.mark.slow

@pytest.fixture(scope='session')
def want(): return chaos.reference()

@pytest.fixture(scope='session')
def done(tmp_path_factory): d = tmp_path_factory.mktemp('done')/'run'; train(d); return d

def dies(k0): return lambda k, *_: k == k0 and os.kill(os.getpid(), signal.SIGKILL)

# P1, P2: kills -------------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('background', (False, True))
def test_p1_some_kills_inside_a_save(want, background):
    led = Ledger()
    chaos.kill_everywhere(led, stride=29, background=background)
    assert led.ok() and led.kills() > 3, str(led)

@pytest.mark.long
@pytest.mark.parametrize('background', (False, True))
def test_p1_a_kill_at_every_operation(want, background):
    led = Ledger()
    n = chaos.kill_everywhere(led, background=background)
    assert led.ok() and led.kills() == n-1 > 100, str(led)

def test_p1_the_state_before_the_one_that_is_being_written_stands(tmp_path, want):
    "Killed while step 6 is written in the background and training is at step 8, a run has step 3, whole, and goes on from it."
    def trial():
        real = ck.save_checkpoint
        def slow_disk(run, step, *a, **kw): return time.sleep(60) if step == 6 else real(run, step, *a, **kw)
        ck.save_checkpoint = slow_disk; train(tmp_path/'run', background=True, after=[dies(7)])
    assert wait(start(trial)) == -signal.SIGKILL and len(tr.read_log(tmp_path/'run')) == 7
    assert final(tmp_path/'run')[0] == 3 and train(tmp_path/'run', background=True) == want

def test_p10_a_signal_waits_for_what_is_being_written(tmp_path, want):
    "The state of step 6 is still on its way when the signal comes at step 7: both are whole when the run leaves with 85."
    def trial():
        real = ck.save_checkpoint
        def slow_disk(*a, **kw): time.sleep(.5); return real(*a, **kw)
        ck.save_checkpoint = slow_disk
        train(tmp_path/'run', background=True,
              after=[lambda k, *_: k == 6 and os.kill(os.getpid(), signal.SIGTERM)])
    assert wait(start(trial)) == 85 and [int(p.name[5:]) for p in ck.checkpoints(tmp_path/'run')
                                         if not ck.damage(p)] == [7, 6] and train(tmp_path/'run') == want

def test_p2_kills_at_random_moments():
    led = Ledger(); chaos.kill_at_random(led, 3); assert led.ok(), str(led)

@pytest.mark.long
def test_p2_fifty_kills_at_random_moments():
    led = Ledger(); chaos.kill_at_random(led, 50); assert led.ok() and led.kills() >= 50 and led.kills() >= 2*led.runs(chaos.RANDOM), str(led)

# P3: power cuts ------------------------------------------------------------------------------------------------------------------------
def test_p3_power_cut_after_every_operation(tmp_path):
    n, lost = powerloss.cuts(tmp_path); assert n > 60 and not lost, lost[:3]

@pytest.mark.parametrize('put, see',
                         ((lambda p, k: ck.replace_file(p, b'%d' % k*500), Path.read_bytes),
                          (lambda p, k: ck.save_net(powerloss.of(k), p), powerloss.weight)))
def test_p3_a_power_cut_leaves_the_old_file_or_the_new_one(tmp_path, put, see):
    "The page of a recipe, the restorer: whatever is not a checkpoint goes by `replace_file`."
    n, torn = powerloss.cuts_of_a_file(tmp_path, put, see); assert n >= 15 and not torn, torn[:3]
    ours, ck.sync_dir = ck.sync_dir, lambda p: None
    # without the last sync a finished write can be lost
    try: assert powerloss.cuts_of_a_file(tmp_path/'unsynced', put, see)[1]
    finally: ck.sync_dir = ours

def test_p3_would_notice_a_missing_sync(tmp_path):
    "The same without fsync: the check has to fail, or it checks nothing."
    def no_sync(rec): rec.fsync = lambda fd: None
    def no_dir_sync(rec): real = rec.fsync; rec.fsync = lambda fd: None if rec.fds[fd].isdir else real(fd)
    for i,broken in enumerate((no_sync, no_dir_sync)):
        (tmp_path/str(i)).mkdir(); assert powerloss.cuts(tmp_path/str(i), broken)[1]

# P4, P5, P18, P10: torchrun ---------------------------------------------------------------------------------------------------------------
def torchrun(run, n=2, restarts=0, **env):
    cmd = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(n),
           '--max-restarts', str(restarts), '--monitor-interval', '0.2', str(HERE/'worker.py'), str(run)]
    env = os.environ | dict(TORCH_DISABLE_SHARE_RDZV_TCP_STORE='1', GLOO_SOCKET_IFNAME='lo',
                            OMP_NUM_THREADS='1', PYTHONPATH=str(HERE.parent)) | env
    _jobs.append(p := subprocess.Popen(cmd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                       text=True, start_new_session=True))
    return p

_jobs = []
@pytest.fixture(autouse=True)
def leave_no_job_behind():
    yield
    while _jobs:
        with contextlib.suppress(ProcessLookupError): os.killpg(_jobs.pop().pid, signal.SIGKILL)

def finish(p, timeout=300):
    out = p.communicate(timeout=timeout)[0]
    return p.returncode, out

@slow
def test_p4_one_of_two_workers_killed(tmp_path, want):
    rc, out = finish(torchrun(tmp_path/'run', restarts=1, KILL='1:6'))
    assert rc == 0 and final(tmp_path/'run') == want, out

@slow
def test_p5_a_stalled_worker_is_named_and_replaced(tmp_path, want):
    rc, out = finish(torchrun(tmp_path/'run', restarts=1, STALL='1:6', PATIENCE='16'))
    assert 'Ranks 1 failed to pass' in out, out
    assert rc == 0 and final(tmp_path/'run') == want, out

@slow
@pytest.mark.parametrize('who', ('agent','worker','group'))
def test_p10_a_signal_stops_the_job_after_saving(tmp_path, want, who):
    p = torchrun(tmp_path/'run', SLOW='.3')
    pid = _worker_started(tmp_path/'run')
    dict(agent=lambda: os.kill(p.pid, signal.SIGTERM), worker=lambda: os.kill(pid, signal.SIGTERM),
         group=lambda: os.killpg(p.pid, signal.SIGTERM))[who]()
    rc, out = finish(p)
    step = final(tmp_path/'run')[0]; status = json.loads((tmp_path/'status.json').read_text())
    assert 0 < step < STEPS and status == {'code': 85, 'step': step}, (rc, out)
    rc, out = finish(torchrun(tmp_path/'run')); assert rc == 0 and final(tmp_path/'run') == want, out

def _worker_started(run, step=2, timeout=240):
    for _ in range(int(timeout/.1)):
        if len(tr.read_log(run)) > step: return int((run/'.lock').read_text().split()[1])
        time.sleep(.1)
    raise TimeoutError

@slow
def test_p18_no_orphans_after_the_launcher_was_killed(tmp_path):
    p = torchrun(tmp_path/'run', SLOW='.5')
    pid = _worker_started(tmp_path/'run'); group = _children(p.pid)
    assert pid in group
    os.kill(p.pid, signal.SIGKILL); p.wait(); time.sleep(1)
    assert not [c for c in group if os.path.exists(f'/proc/{c}')
                and open(f'/proc/{c}/stat').read().split()[2] != 'Z']

def _children(pid): return [int(d) for d in os.listdir('/proc') if d.isdigit() and _parent(d) == pid]
def _parent(d):
    try: return int(open(f'/proc/{d}/stat').read().rsplit(')', 1)[1].split()[1])
    except OSError: return None

# P6: numbers of workers; P7, P8: data parallel = one process ---------------------------------------------------------------------------
@slow
def test_p6_workers_come_and_go(want):
    led = Ledger(); chaos.change_workers(led, 4); assert led.ok(), str(led)

@pytest.mark.parametrize('threads', (0, 2))
def test_p6_p20_preparing_batches_ahead_changes_nothing(tmp_path, threads):
    "No thread, or two, stopped twice on the way: the bits of the plain run."
    plain = train(tmp_path/'plain', shards=1)
    source = lambda: ahead(chaos.stream, depth=3, workers=threads) if threads else chaos.stream
    for k in (3, 8):
        with pytest.raises(tr.Preempted):
            train(tmp_path/'run', shards=1, stream=source(),
                  after=[chaos.at_step(k, lambda: os.kill(os.getpid(), signal.SIGTERM))])
    assert train(tmp_path/'run', shards=1, stream=source()) == plain

def test_forked_workers_see_no_gpu():
    "Where a GPU is in sight, PyTorch computes no gradients in a forked process; conftest.py hides them."
    assert os.environ['CUDA_VISIBLE_DEVICES'] == '' and not torch.cuda.is_available()

@slow
def test_ddp_resumes_exactly_on_the_same_number_of_workers(tmp_path):
    "PyTorch's own wrapper fails this for four workers (it rebuilds its buckets); a plain sum has nothing to rebuild."
    def go(run, after=()):
        net = network(); tr.fit(net, chaos.stream, chaos.step, config(), run=run, reduce=ddp(), after=after)
        return {k: v.detach() for k,v in net.state_dict().items()}
    one = fork_workers(lambda: go(tmp_path/'one'), 4)[0]
    for k in (3, 7):
        with pytest.raises(RuntimeError, match='Preempted'):
            fork_workers(lambda: go(tmp_path/'two',
                                    [lambda j, *_: j == k and os.kill(os.getpid(), signal.SIGTERM)]), 4)
    for got in fork_workers(lambda: go(tmp_path/'two'), 4): assert_close(got, one, rtol=0, atol=0)

def the_method(team=None):
    "Pre-training, then fine-tuning with every term of the method and experts, on pictures of 16 pixels."
    from functools import partial
    from dtir_nb.conditioning import Clocked, add_sites
    from dtir_nb.finetuning import FinetuneConfig, finetune
    from dtir_nb.moe import MoE
    from dtir_nb.pretraining import pretrain
    from dtir_nb.schedule import cosine_schedule
    torch.manual_seed(0)
    clean = [torch.rand(3,16,16, generator=rng(5, i)) for i in range(8)]
    pairs = [(x, (x*.7).clamp(0,1)) for x in clean]
    net = Clocked(nn.Sequential(nn.Conv2d(3,8,3,padding=1), nn.GELU(), nn.Conv2d(8,8,3,padding=1), nn.GELU(),
                                nn.Conv2d(8,3,3,padding=1)), cosine_schedule())
    cfg = config(steps=4, lr=1e-3)
    net = pretrain(net, clean, cfg, patch=16, batch=8, reduce=team and team())
    net = add_sites(net, partial(MoE, n=4, k=2, rank=2))
    net = finetune(net, pairs, clean, t=6, cfg=cfg, gef=FinetuneConfig(mix=.5, samples=8), patch=16, batch=8,
                   reduce=team and team())
    return {k: v.detach() for k,v in net.state_dict().items()}

@slow
def test_p6_the_whole_method_on_1_2_and_4_workers():
    "Generation, importance, orthogonality, layer decay and experts: one set of bits."
    one = the_method(lambda: exact(4))
    for W in (2,4):
        for got in fork_workers(lambda: the_method(lambda: exact(4)), W):
            assert_close(got, one, rtol=0, atol=0)

class Conv(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.c1, self.c2, self.head = (nn.Conv2d(3,6,3,padding=1), nn.Conv2d(6,6,3,padding=1),
                                       nn.Conv2d(6,3,3,padding=1))
        self.to(dtype)
        for i,p in enumerate(self.parameters()): nn.init.normal_(p, 0, .2, generator=rng(1, i))
    def forward(self, x): return self.head(torch.tanh(self.c2(torch.tanh(self.c1(x)))))

def images(dtype):
    return lambda k, shard=0, shards=1: Batch(torch.rand(4,3,8,8, generator=rng(2, k),
                                                         dtype=torch.float64).to(dtype).chunk(shards)[shard])
def mse_step(net, b, gen, reduce): return {'loss': (net(b.x)-b.x.flip(1)).square().mean()}

def orth_step(net, b, gen, reduce):
    "Two losses and the squared cosine of their *global* gradients, by a surrogate whose gradient is that of the penalty."
    out, ps = net(b.x), list(net.parameters())
    losses = (out-b.x.flip(1)).square().mean(), (out.mean((2,3))-b.x.mean((2,3))).square().mean()
    gs = [torch.cat([g.reshape(-1) for g in torch.autograd.grad(l, ps, create_graph=True)]) for l in losses]
    G = [reduce(g.detach()).requires_grad_() for g in gs]
    cos2 = torch.dot(*G)**2/(G[0].dot(G[0])*G[1].dot(G[1])+1e-12)
    v = torch.autograd.grad(cos2, G)
    return {'loss': sum(losses) + .7*sum(torch.dot(g, w) for g,w in zip(gs, v)), 'orth': cos2.detach()}

def after_steps(step, dtype, team=None, n=50):
    return dict(tr.fit(Conv(dtype), images(dtype), step, config(steps=n, ema=0., lr=1e-3, clip=0.),
                       reduce=team and team()).named_parameters())

@pytest.mark.parametrize('step,dtype,tol',
                         [(mse_step, torch.float32, 1e-6), (mse_step, torch.float64, 1e-13),
                          (orth_step, torch.float64, 1e-12)])
def test_p7_p8_two_workers_equal_one_with_the_whole_batch(step, dtype, tol):
    one = after_steps(step, dtype)
    for team in (ddp, lambda: exact(2)):
        for got in fork_workers(lambda: after_steps(step, dtype, team), 2):
            assert_close(got, {k: v.detach() for k,v in one.items()}, rtol=0, atol=tol)

def test_p8_would_notice_local_gradients():
    "With each worker's own gradients in the penalty the result is another one, so the test above can fail."
    one = after_steps(orth_step, torch.float64)
    local = lambda net, b, gen, reduce: orth_step(net, b, gen, lambda x: x)
    two = fork_workers(lambda: after_steps(local, torch.float64, ddp), 2)[0]
    assert max((two[k]-v.detach()).abs().max() for k,v in one.items()) > 1e-6

@pytest.mark.parametrize('team', (ddp, lambda: exact(2)))
def test_unused_experts_stay_untouched(team):
    "An expert used on one worker only gets the mean; one that nobody used keeps weights and moments."
    def experts(net, b, gen, reduce):
        return {'loss': net[int(b.x.flatten()[0])](torch.ones(1,2)).square().mean()}
    def go():
        net = nn.ModuleList([nn.Linear(2,2) for _ in range(3)])
        for i,p in enumerate(net.parameters()): nn.init.constant_(p, .1*(i+1))
        tr.fit(net, lambda k, s, n: Batch(torch.full((1,), float(s))), experts, config(steps=5, ema=0.),
               reduce=team())
        return {k: v.detach() for k,v in net.named_parameters()}
    a, b = fork_workers(go, 2); assert_close(a, b, rtol=0, atol=0)
    assert ((a['0.weight'] != .1).all() and (a['1.weight'] != .3).all() and (a['2.weight'] == .5).all()
            and (a['2.bias'] == .6).all())

def test_wrapped_and_sharded_networks_are_refused():
    def wrapped(): tr.fit(nn.parallel.DistributedDataParallel(network()), chaos.stream, chaos.step, config())
    def sharded():
        from torch.distributed.fsdp import fully_shard
        net = network()
        fully_shard(net, mesh=torch.distributed.init_device_mesh('cpu', (1,)))
        tr.fit(net, chaos.stream, chaos.step, config())
    for f,why in ((wrapped, 'pass net.module'), (sharded, 'sliced already')):
        with pytest.raises(RuntimeError, match=why): fork_workers(f, 1)

def test_compile_and_channels_last_change_no_names_and_little_else(monkeypatch):
    # the compiler itself takes minutes
    monkeypatch.setattr(torch, 'compile', functools.partial(torch.compile, backend='eager'))
    one = after_steps(mse_step, torch.float64, n=5)
    for kw in (dict(compile=True), dict(channels_last=True)):
        net = tr.fit(Conv(torch.float64), images(torch.float64), mse_step,
                     config(steps=5, ema=0., lr=1e-3, clip=0., **kw))
        assert_close(dict(net.named_parameters()), one, rtol=0, atol=1e-9)

@slow
@pytest.mark.skipif(shutil.which('g++') is None, reason='no compiler')
def test_compile_with_inductor():
    one = after_steps(mse_step, torch.float64, n=3)
    net = tr.fit(Conv(torch.float64), images(torch.float64), mse_step,
                 config(steps=3, ema=0., lr=1e-3, clip=0., compile=True))
    assert_close(dict(net.named_parameters()), one, rtol=0, atol=1e-9)

def test_tensorboard_is_asked_for_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    with pytest.raises(ImportError, match='pip install tensorboard, or read log.jsonl'):
        tr.tensorboard(tmp_path)

def test_tensorboard_gets_the_numbers(tmp_path):
    acc = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    train(tmp_path/'run', after=[tr.tensorboard(tmp_path/'tb')])
    e = acc.EventAccumulator(str(tmp_path/'tb')); e.Reload()
    assert [(s.step, round(s.value, 5)) for s in e.Scalars('loss')] == [(l['step'], round(l['loss'], 5))
        for l in tr.read_log(tmp_path/'run')]
    fork_workers(lambda: train(tmp_path/'two', after=[tr.tensorboard(tmp_path/'tb2')]) and {}, 2)
    assert len([*(tmp_path/'tb2').iterdir()]) == 1     # the first worker's

# P9: drift -----------------------------------------------------------------------------------------------------------------------------
def test_p9_a_replica_that_drifts_is_named_and_not_saved(tmp_path):
    def nudge(k, net, avg, log):
        if k == 4 and int(tr.Team().rank) == 1:
            net[0].weight.data[0,0] = torch.nextafter(net[0].weight.data[0,0], torch.tensor(9.))
    with pytest.raises(RuntimeError, match=r'workers \[1\] of 4'):
        fork_workers(lambda: train(tmp_path/'run', after=[nudge]) and {}, 4)
    assert final(tmp_path/'run')[0] == EVERY
    # of two, nobody knows who is right
    with pytest.raises(RuntimeError, match=r'workers \[0, 1\] of 2'):
        fork_workers(lambda: train(tmp_path/'two', after=[nudge]) and {}, 2)

@pytest.mark.parametrize('sliced', (True, False))
def test_p9_workers_that_see_different_checkpoints_do_not_go_on(tmp_path, sliced):
    "A disk shows one of them an older one: they would train on, and save, a network of two steps."
    here, stale, team = tmp_path/'run', tmp_path/'stale', lambda: fsdp(10) if sliced else exact(2)
    def part(dirs, until):
        def stop(k, *_): k+1 == until and os.kill(os.getpid(), signal.SIGTERM)
        run = dirs[tr.Team().rank]
        with contextlib.suppress(tr.Preempted): tr.fit(network(), chaos.stream, chaos.step, config(), run=run, reduce=team(), after=[stop])
        return {}
    fork_workers(lambda: part((here, here), 2*EVERY), 2); was = final(here)
    shutil.copytree(here, stale); shutil.rmtree(ck.checkpoints(stale)[0])
    with pytest.raises(RuntimeError, match='went on from another step') as e:
        fork_workers(lambda: part((here, stale), 3*EVERY), 2)
    assert str(e.value).count('Drift: ') == 2 and final(here) == was

# P10: signals --------------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('s', (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1))
def test_p10_a_signal_saves_and_leaves_with_85(tmp_path, want, s):
    assert wait(start(lambda: train(tmp_path/'run',
                                    after=[lambda k, *_: k == 4 and os.kill(os.getpid(), s)]))) == 85
    assert final(tmp_path/'run')[0] == 5 and train(tmp_path/'run') == want

@pytest.mark.parametrize('threads', (0, 2))
def test_p10_a_signal_while_scoring_saves_too(tmp_path, want, threads):
    "The score of a thousand items is not waited for; batches that were being prepared are no obstacle."
    seen = []
    def item(avg, i):
        seen.append(i); i == 1 and os.kill(os.getpid(), signal.SIGTERM); time.sleep(.01); return 0.
    stream = ahead(chaos.stream, workers=threads) if threads else chaos.stream
    with pytest.raises(tr.Preempted):
        train(tmp_path/'run', stream=stream, after=[tr.every(4, tr.scored(item, range(1000)))], save_every=8)
    assert seen == [0, 1] and final(tmp_path/'run')[0] == 4 and train(tmp_path/'run', stream=stream) == want

def test_p10_the_second_signal_kills(tmp_path):
    def twice(k, *_):
        if k == 4: os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGTERM); time.sleep(5)
    assert wait(start(lambda: train(tmp_path/'run', after=[twice]))) == -signal.SIGTERM
    assert final(tmp_path/'run')[0] == EVERY

# P11: disk -----------------------------------------------------------------------------------------------------------------------------
def test_p11_a_full_disk_names_path_and_bytes(tmp_path, want):
    wait(start(lambda: train(tmp_path/'run', after=[dies(4)])))
    def small():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))
        try: train(tmp_path/'run')
        except ck.CheckpointError as e: os.write(told, str(e).encode()[:800]); raise
    told = os.open(tmp_path/'told', os.O_CREAT|os.O_WRONLY)
    assert wait(start(small)) == 74
    assert 'step-000000006' in (m := (tmp_path/'told').read_text()) and 'bytes needed' in m and 'intact' in m
    assert (final(tmp_path/'run')[0] == 3 and not list((tmp_path/'run'/'ckpt').glob('.*'))
            and train(tmp_path/'run') == want)

def test_p11_a_full_disk_behind_the_loop_is_the_same_line_and_code(tmp_path, want):
    wait(start(lambda: train(tmp_path/'run', after=[dies(4)])))
    def small():
        chaos.small_disk(900)
        try: train(tmp_path/'run', background=True)
        except ck.CheckpointError as e: os.write(told, str(e).encode()[:800]); raise
    told = os.open(tmp_path/'told', os.O_CREAT|os.O_WRONLY); assert wait(start(small)) == 74
    assert 'step-000000006' in (m := (tmp_path/'told').read_text()) and 'bytes needed' in m and 'intact' in m
    assert (final(tmp_path/'run')[0] == 3 and not list((tmp_path/'run'/'ckpt').glob('.*'))
            and train(tmp_path/'run', background=True) == want)

def test_p11_a_full_disk_need_not_stop_the_run(tmp_path, want):
    "From step 4 to 10 nothing fits: with `go_on` the run ends as if nothing had been, with the checkpoints it could write."
    free = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    def trial():
        train(tmp_path/'run', full_disk='go_on',
              after=[lambda k, *_: chaos.small_disk(900 if 4 <= k < 10 else free)])
    assert (wait(start(trial)) == 0 and final(tmp_path/'run') == want
            and [c.name for c in ck.checkpoints(tmp_path/'run')] == ['step-000000012', 'step-000000003'])

def fails_at(step, run, **kw):
    "A run in a fork whose disk has no room for one step, and takes its time to say so; the exit code."
    def trial():
        real = ck.save_checkpoint
        def disk(run, k, *a, **kw):
            if k != step: return real(run, k, *a, **kw)
            time.sleep(.5); raise ck.CheckpointError(Path(run)/'ckpt'/ck.step_name(k), 'E_DISK', 'no room')
        ck.save_checkpoint = disk; train(run, background=True, full_disk='go_on', **kw)
    return wait(start(trial))

def test_p11_a_late_failure_costs_no_other_state(tmp_path, want):
    "Step 6 fails while step 9 already waits: 9 is saved nevertheless. A state that is the last word, at the end or after a signal, is not given up."
    assert (fails_at(6, tmp_path/'run') == 0 and final(tmp_path/'run') == want
            and [int(c.name[5:]) for c in ck.checkpoints(tmp_path/'run')] == [12, 9])
    assert fails_at(STEPS, tmp_path/'end') == 74 and fails_at(7, tmp_path/'told',
        after=[lambda k, *_: k == 6 and os.kill(os.getpid(), signal.SIGTERM)]) == 74

@pytest.mark.skipif(os.geteuid() != 0 or shutil.which('mount') is None, reason='mounting needs root')
def test_p11_a_disk_of_40_kilobytes(tmp_path):
    (tmp_path/'tiny').mkdir()
    if subprocess.run(['mount','-t','tmpfs','-o','size=40k','tmpfs',str(tmp_path/'tiny')],
                      capture_output=True).returncode:
        pytest.skip('no mounts here')
    try:
        with pytest.raises(ck.CheckpointError, match='E_DISK.*bytes needed'):
            for k in range(1, 20):
                ck.save_checkpoint(tmp_path/'tiny'/'run', k, {'model': {'w': torch.zeros(500*k)}}, {})
        assert ((c := ck.load_checkpoint(tmp_path/'tiny'/'run')).step == k-1
                and len(c.tensors['model']['w']) == 500*(k-1))
    finally: subprocess.run(['umount', str(tmp_path/'tiny')])

# P12: damage ---------------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('flips', (40, pytest.param(1500, marks=slow)))
def test_p12_no_flip_or_cut_goes_unnoticed(done, tmp_path, flips):
    shutil.copytree(done, tmp_path/'run'); p = ck.checkpoints(tmp_path/'run')[0]; r = random.Random(0)
    for f in sorted(p.iterdir()):
        data = f.read_bytes()
        for i in range(flips):
            b = bytearray(data)
            if i % 8: b[r.randrange(len(b))] ^= 1 << r.randrange(8)
            else: del b[r.randrange(len(b)):]
            f.write_bytes(b); assert (why := ck.damage(p)) and 'E_DAMAGED' in why, (f.name, i)
        f.write_bytes(data); assert ck.damage(p) is None

def test_p12_links_and_devices_are_not_followed(done, tmp_path):
    for i,put in enumerate((lambda f: f.symlink_to(done/'ckpt'/'x'), lambda f: os.mkfifo(f),
                            lambda f: f.mkdir())):
        run = tmp_path/str(i); shutil.copytree(done, run)
        f = ck.checkpoints(run)[0]/'model.safetensors'; f.unlink()
        put(f)
        with pytest.warns(UserWarning, match='passed over'):
            assert ck.load_checkpoint(run).step == STEPS-EVERY

# P13, P14: hostile files ---------------------------------------------------------------------------------------------------------------
class Trap:
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return (os.mkdir, (self.path,))

def hostile(d, canary):
    "Files that would make the directory `canary` if anything unpickled them."
    t = Trap(canary); torch.save({'a': t}, d/'reduce.pth')
    (d/'raw.pth').write_bytes(pickle.dumps(t))
    (d/'renamed.safetensors').write_bytes(pickle.dumps(t))
    torch.save({'a': t}, d/'legacy.pth', _use_new_zipfile_serialization=False)
    torch.save({'params': {'w': torch.zeros(2), 'inner': pickle.dumps(t)}}, d/'nested.pth')
    (d/'dcp').mkdir()
    (d/'dcp'/'.metadata').write_bytes(pickle.dumps(t))
    (d/'dcp'/'__0_0.distcp').write_bytes(b'x')
    with tarfile.open(d/'old.pth', 'w') as f:
        (d/'pickle').write_bytes(pickle.dumps(t)); f.add(d/'pickle', 'pickle')
    return [d/n for n in ('reduce.pth','raw.pth','renamed.safetensors','legacy.pth','nested.pth',
                          'dcp','old.pth')]

@slow
def test_p13_nothing_runs_code(tmp_path, monkeypatch, done):
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1'); canary = tmp_path/'canary'
    for f in hostile(tmp_path, canary):
        with pytest.raises(ck.CheckpointError): ck.import_weights(f)
        with pytest.raises(ck.CheckpointError): ck.read_net(f)
        run = tmp_path/f'run-{f.name}'; shutil.copytree(done, run); p = ck.checkpoints(run)[0]
        if f.is_file(): shutil.copy(f, p/'model.safetensors')
        else: shutil.rmtree(p); shutil.copytree(f, p)
        with pytest.warns(UserWarning, match='passed over'):
            assert ck.load_checkpoint(run).step == STEPS-EVERY
    assert not canary.exists()
    pickle.loads((tmp_path/'raw.pth').read_bytes()); assert canary.exists()   # the trap does work

def test_p14_no_bomb_is_inflated(tmp_path):
    with zipfile.ZipFile(tmp_path/'bomb.pth', 'w', zipfile.ZIP_DEFLATED) as z:
        with z.open('archive/data/0', 'w') as f:
            for _ in range(256): f.write(bytes(1<<20))
    liar = ({'w': {'dtype': 'F32', 'shape': [2**40], 'data_offsets': [0, 2**42]}},
            {'w': {'dtype': 'F32', 'shape': [2**33, 2**33], 'data_offsets': [0, 4]}})
    for i,h in enumerate(liar):
        b = json.dumps(h).encode()
        (tmp_path/f'{i}.safetensors').write_bytes(len(b).to_bytes(8, 'little')+b+bytes(4))
    (tmp_path/'header.safetensors').write_bytes((2**40).to_bytes(8, 'little')+b'{}')
    t, before = time.time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for f in ('bomb.pth','0.safetensors','1.safetensors','header.safetensors'):
        with pytest.raises(ck.CheckpointError): ck.import_weights(tmp_path/f)
    assert time.time()-t < 2 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before < 100_000   # kB

# P15: NaN ------------------------------------------------------------------------------------------------------------------------------
def test_p15_infinite_gradient_with_a_finite_loss(tmp_path):
    # d sqrt at 0
    def root(net, b, gen, reduce):
        return {'loss': (net[0].weight*0).square().sum().sqrt() + sum(p.sum() for p in net.parameters())*0}
    with pytest.raises(tr.NonFinite, match='step 0'): train(tmp_path/'run', step=root)
    assert final(tmp_path/'run') is None and tr.read_log(tmp_path/'run', 'bad_batches.jsonl')[0]['step'] == 0

def test_p15_a_nan_on_one_worker_stops_all_of_them_and_is_named(tmp_path):
    def nan(k, shard, shards):
        b = chaos.stream(k, shard, shards)
        return b._replace(x=b.x*float('nan')) if (k, shard) == (7, 3) else b
    # no mean in the middle, through which a NaN would spread to all shards
    alone = lambda net, b, gen, reduce: {'loss': (net(b.x)-b.x).square().mean()}
    with pytest.raises(RuntimeError, match='step 7') as e:
        fork_workers(lambda: train(tmp_path/'run', stream=nan, step=alone) and {}, 2)
    assert str(e.value).count('NonFinite') >= 2 and final(tmp_path/'run')[0] == 6
    assert ([(l['step'], l['shards'], l['worker']) for l in tr.read_log(tmp_path/'run', 'bad_batches.jsonl')]
            == [(7, [3], 1)])

def test_p15_the_pictures_of_the_batch_are_named(tmp_path):
    "Names and rounds of the pictures in the log of bad batches, so that somebody can look at them."
    from PIL import Image
    from dtir_nb.data import Clean, stream
    for i in range(6): Image.effect_noise((64, 64), 50).convert('RGB').save(tmp_path/f'photo-{i}.png')
    s = stream(Clean(sorted(tmp_path.glob('*.png')), patch=32), batch=4, seed=0, ahead=0)
    def step(net, b, gen, reduce):
        step.k += 1; return {'loss': (net(b.x)-b.x).square().mean()*(float('nan') if step.k == 3 else 1.)}
    step.k = 0
    with pytest.raises(tr.NonFinite, match='step 2'):
        tr.fit(nn.Conv2d(3, 3, 1), s, step, tr.FitConfig(5, progress=False), run=tmp_path/'run')
    said = tr.read_log(tmp_path/'run', 'bad_batches.jsonl')[0]['pictures']
    assert (said == s.names(2) and len(said) == 4
            and all(Path(n.split(',')[0]).name.startswith('photo-') and n.endswith('round 1') for n in said))

# P16: pictures -------------------------------------------------------------------------------------------------------------------------
def bad_pictures(d):
    "Files that are no pictures to train on; code -> path."
    from PIL import Image
    good = d/'good.png'
    Image.effect_noise((64, 64), 50).convert('RGB').save(good)
    Image.effect_noise((64, 64), 50).convert('RGB').save(d/'good.jpg')
    png, jpg = good.read_bytes(), (d/'good.jpg').read_bytes(); (d/'good.jpg').unlink()
    flipped = bytearray(png); flipped[len(png)//2] ^= 255
    for name,data in dict(cut=png[:len(png)//2], header=png[:40], flipped=bytes(flipped), empty=b'',
                          html=b'<html>no</html>', noise=os.urandom(500), cutjpeg=jpg[:len(jpg)//2]).items():
        (d/f'{name}.png').write_bytes(data)
    Image.new('RGBA', (64, 64), (1,2,3,4)).save(d/'alpha.png')
    Image.new('CMYK', (64, 64)).save(d/'cmyk.jpg')
    Image.new('RGB', (8, 64)).save(d/'small.png')
    Image.new('RGB', (64, 64)).save(d/'two.gif', save_all=True,
                                    append_images=[Image.new('RGB', (64, 64), 'red')])
    (d/'two.gif').rename(d/'frames.png')
    (d/'folder.png').mkdir(); os.mkfifo(d/'pipe.png'); (d/'link.png').symlink_to(d/'nothing.png')
    return sorted(p for p in d.iterdir() if p.name != 'good.png')

def test_p16_bad_pictures_are_named_before_training(tmp_path):
    "Each by name and with a code, all of them at once; with 'skip' the good one remains, and the parent survives."
    from dtir_nb.data import BadFiles, Clean
    bad = bad_pictures(tmp_path)
    with pytest.raises(BadFiles) as e: Clean([*bad, tmp_path/'good.png'], patch=32)
    said = str(e.value); assert len(e.value.errors) == len(bad) >= 13 and tr.exit_code(e.value) == 65
    for p in bad: assert p.name in said
    assert all(o.code.startswith('E_') for o in e.value.errors)
    left = Clean([*bad, tmp_path/'good.png'], patch=32, bad='skip')
    assert len(left) == 1 and len(left.skipped) == len(bad)

# P17: the lock -------------------------------------------------------------------------------------------------------------------------
def test_p17_a_second_run_is_refused_and_a_dead_one_forgotten(tmp_path, want):
    pid = start(lambda: train(tmp_path/'run', after=[lambda *_: time.sleep(.2)])); time.sleep(.1)
    for _ in range(100):
        if tr.read_log(tmp_path/'run'): break
        time.sleep(.05)
    assert wait(start(lambda: train(tmp_path/'run'))) == 73
    with pytest.raises(ck.Locked, match=f'process {pid} on'): train(tmp_path/'run')
    os.kill(pid, signal.SIGKILL); wait(pid)
    assert train(tmp_path/'run') == want

# P19: all of the state ------------------------------------------------------------------------------------------------------------------
def test_p19_everything_is_in_the_checkpoint_and_each_entry_is_needed(tmp_path):
    "In a fresh process the state comes back bit for bit; with any one entry taken out the run refuses to go on and names it."
    cfg = dict(amp='fp16'); run = tmp_path/'run'; train(run, **cfg); c = ck.load_checkpoint(run)
    assert ({*c.tensors} == {'model','ema','optim'} and {*c.state} == {'who','skipped','scale'}
            and c.state['scale'][0] > 1)
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import chaos; print(chaos.final({str(run)!r}))"
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                         env={**os.environ, 'PYTHONPATH': str(HERE.parent)}).stdout
    assert out.strip() == str(final(run))
    p = c.path; files = {f.name: f.read_bytes() for f in p.iterdir() if f.name != 'manifest.json'}
    entries = [(f'{g}.safetensors', k) for g,t in c.tensors.items() for k in t] + [('state.json', k)
        for k in c.state]
    for name,key in entries:
        o = ck.st_load(files[name]) if name.endswith('.safetensors') else json.loads(files[name]); o.pop(key)
        new = files | {name: ck.pack(o) if name.endswith('.safetensors') else ck.canonical(o)}
        shutil.rmtree(p); p.mkdir()
        [(p/n).write_bytes(b) for n,b in new.items()]
        (p/'manifest.json').write_bytes(ck.sign(c.step, new))
        with pytest.raises(ck.CheckpointError, match='E_KEYS'): train(run, **cfg)
    assert len(entries) > 15

# P20: every step is a good place to stop -----------------------------------------------------------------------------------------------
def test_p20_resume_at_every_step_sees_the_same_samples(tmp_path):
    "Three epochs of eight samples in batches of two; a stop after every single step."
    n, seen = 8, []
    def epochs(k):
        e, pos = divmod(2*k, n)
        return Batch(torch.randperm(n, generator=rng(3, 'epoch', e))[pos:pos+2].float()[:,None].repeat(1,4)/n)
    def note(net, b, gen, reduce):
        seen.append((b.x[:,0]*n).int().tolist()); return chaos.step(net, b, gen, reduce)
    whole = train(tmp_path/'whole', shards=1, stream=epochs, step=note); order = list(seen); seen.clear()
    for k in range(1, STEPS):
        with pytest.raises(tr.Preempted):
            train(tmp_path/'parts', shards=1, stream=epochs, step=note,
                  after=[lambda *_: os.kill(os.getpid(), signal.SIGTERM)])
    assert train(tmp_path/'parts', shards=1, stream=epochs, step=note) == whole and seen == order
    assert all(sorted(sum(order[4*e:4*e+4], [])) == list(range(n)) for e in range(3))

# P21: a worker that prepares data fails --------------------------------------------------------------------------------------------------
def test_p21_an_error_while_preparing_ahead_comes_through(tmp_path):
    def broken(k, *part): return 1/0 if k == 7 else chaos.stream(k)
    with pytest.raises(ZeroDivisionError): train(tmp_path/'run', shards=1, stream=ahead(broken))
    assert final(tmp_path/'run')[0] == 6

def test_p21_a_process_that_dies_of_memory_goes_on(tmp_path):
    "Batches are made in threads, so what the kernel kills for memory is the whole process: it goes on from its checkpoint."
    plain = train(tmp_path/'plain', shards=1)
    def hungry(k, *part): k == 7 and os.kill(os.getpid(), signal.SIGKILL); return chaos.stream(k)
    assert wait(start(lambda: train(tmp_path/'run', shards=1, stream=ahead(hungry)))) == -signal.SIGKILL
    assert train(tmp_path/'run', shards=1, stream=ahead(chaos.stream)) == plain

# P22, P23: other machines, other versions ------------------------------------------------------------------------------------------------
def test_p22_another_thread_count_warns(done):
    torch.set_num_threads(2)
    try:
        with pytest.warns(UserWarning, match='threads was 1, is 2.*last bits'): ck.load_checkpoint(done)
    finally: torch.set_num_threads(1)

@pytest.mark.parametrize('run', sorted((HERE/'data').glob('checkpoint-v*')), ids=lambda p: p.name)
def test_p23_every_released_format_loads(run):
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); c = ck.load_checkpoint(run)
    facts = json.loads((run/'facts.json').read_text())
    assert ([c.step, digest(c.tensors).hex(), c.state] == [facts['step'], facts['digest'], facts['state']]
            and not c.bad)
    net = ck.load_net(run/'net.safetensors', lambda config: nn.Linear(**config))
    assert digest(net.state_dict()).hex() == facts['net']

def test_p23_a_run_of_an_older_format_goes_on(tmp_path, want):
    "Six steps done by the first version; today's does the rest, to the same bits."
    shutil.copytree(HERE/'data'/'run-v1', tmp_path/'run')
    assert ck.load_checkpoint(tmp_path/'run').format == 1
    assert train(tmp_path/'run') == want and ck.load_checkpoint(tmp_path/'run').format == ck.FORMAT

def test_p23_a_later_format_is_refused(tmp_path, done):
    shutil.copytree(done, tmp_path/'run')
    p = ck.checkpoints(tmp_path/'run')[0]
    m = json.loads((p/'manifest.json').read_text())['body'] | {'format': ck.FORMAT+1}
    (p/'manifest.json').write_bytes(ck.canonical(dict(body=m, sha256=ck.sha256(ck.canonical(m)))))
    with pytest.raises(ck.CheckpointError, match='E_FORMAT.*update dtir_nb'):
        ck.load_checkpoint(tmp_path/'run')

def test_p23_there_is_one_for_the_current_format(): assert (HERE/'data'/f'checkpoint-v{ck.FORMAT}').is_dir()

# The package itself ----------------------------------------------------------------------------------------------------------------------
def test_no_dangerous_calls_in_the_package():
    "No pickle, eval, exec, shell, unfiltered archive, object collective or static graph; torch.load only with a literal weights_only=True."
    bad = []
    for f in sorted((HERE.parent/'dtir_nb').rglob('*.py')):
        for n in ast.walk(ast.parse(f.read_text())):
            if (isinstance(n, (ast.Import, ast.ImportFrom))
                and any(a.name.split('.')[0] in ('pickle','dill','marshal','shelve') for a in n.names)):
                bad.append((f.name, n.lineno, 'import'))
            if not isinstance(n, ast.Call): continue
            name = ast.unparse(n.func); kw = {k.arg: ast.unparse(k.value) for k in n.keywords}
            if (name in ('eval','exec','os.system','yaml.load','pickle.load','pickle.loads')
                or kw.get('shell') == 'True' or kw.get('static_graph') == 'True' or 'gather_object' in name
                or (name == 'torch.load' and kw.get('weights_only') != 'True')
                or (name in ('np.load','numpy.load') and kw.get('allow_pickle', 'False') != 'False')
                or (name.endswith('extractall') and 'filter' not in kw)): bad.append((f.name, n.lineno, name))
    assert not bad, bad
