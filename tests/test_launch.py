"The launcher: exit codes, restarts, loopback, several machines. `-m slow` starts real torchruns; the quick ones run workers as forks."
import contextlib, glob, io, json, os, re, shutil, signal, socket, subprocess, sys, time
from pathlib import Path
import pytest, torch
HERE = Path(__file__).parent; sys.path.insert(0, str(HERE))
import chaos
from chaos import wait, start
from dtir_nb import checkpoints as ck, launch, training as tr
from dtir_nb.checkpoints import read_net
slow = pytest.mark.slow
TINY = ['demo:tiny', '--set', 'tasks=noisy,rainy', '--set', 'experts=2', '--set', 'width=4', '--set',
        'enc=1,1', '--set', 'patch=16', '--set', 'lam_orth=0', '--set', 'shards=2', '--set', 'save_every=2']

def line(*args):
    "Exit code and standard error of one worker in a fork of this process."
    r, w = os.pipe()
    def f():
        # not pytest's
        os.dup2(w, 2); os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stdout, sys.stderr = open(1, 'w', closefd=False), open(2, 'w', closefd=False)
        rc = launch.worker([*map(str, args)]); sys.stderr.flush(); os._exit(rc)
    pid = start(f, quiet=False); os.close(w)
    with open(r, errors='replace') as e: said = e.read()
    return wait(pid), [l for l in said.strip().splitlines() if 'Warning' not in l and not l.startswith('  ')]

@pytest.fixture(scope='session')
def one(tmp_path_factory):
    "A finished run in one process; what all others have to equal."
    out = tmp_path_factory.mktemp('launch')/'one'
    rc, said = line(*TINY, '--out', out); assert rc == 0, said
    return out

@pytest.fixture
def half(one, tmp_path):
    "The same run, stopped by a signal in the middle of fine-tuning: a copy without what came after."
    out = tmp_path/'half'; shutil.copytree(one, out)
    (out/'net.safetensors').unlink(); (out/'status.json').unlink()
    for p in (out/'tune').glob('stage-02*'): shutil.rmtree(p)
    return out

def same(a, b):
    x, y = (read_net(p/'net.safetensors')[0] for p in (a, b))
    return x.keys() == y.keys() and all(x[k].equal(y[k]) for k in x)

# Bad input: one clear line, the documented exit code, the last good state intact ----------------------------------------------------------
@pytest.mark.parametrize('args, code, words', [
    (['demo:tiny', '--set', 'patsh=3'], 2, "did you mean 'patch'"),                        # an unknown key
    (['demo:tiny', '--colour', '3'], 2, 'unrecognized arguments'),
    (['dmeo'], 2, 'there is no recipe'),
    (['demo:tiny', '--set', 'pre=many'], 2, 'pre is of type int'),
    (['demo:tiny', '--set', 'project=true'], 2, 'stands in for the orthogonality loss'),   # combinations that cannot work
    (['demo:tiny', '--set', 'amp=fp16'], 2, 'float16 cannot scale'),
    (['demo:tiny', '--set', 'amp=bf16', '--set', 'team=fsdp', '--set', 'experts=0', '--set', 'tasks=rainy'],
     2, 'lam_orth=0'),
    (['demo:tiny', '--set', 'team=fsdp'], 2, 'neither experts (experts=0) nor stages'),
    (['demo:tiny', '--set', 'shards=3'], 2, 'does not divide'),
    (['demo:tiny', '--set', 'top=9'], 2, 'more than the 4 experts'),
    (['setting_a:rainy', '--set', 'data=nowhere'], 65, 'E_MISSING'),                        # data that are not there
    (['demo:tiny', '--dry-run', '--hardware', '8xabacus'], 2, 'such as 8x1080ti')])
def test_bad_input_is_one_line_and_a_code(tmp_path, args, code, words):
    rc, said = line(*args, '--out', tmp_path/'run')
    assert (rc, len(said)) == (code, 1) and words in said[0], said
    assert not list(tmp_path.glob('run/*/ckpt'))

def untouched(out):
    return {p.relative_to(out): p.read_bytes() for p in out.rglob('*') if p.is_file() and 'ckpt' in p.parts
            and not p.name.startswith('.')}

def test_a_directory_in_use(half):
    was = untouched(half)
    with ck.run_lock(half/'pretrain'): rc, said = line(*TINY, '--out', half)
    assert rc == 73 and len(said) == 1 and f'process {os.getpid()} on' in said[0] and untouched(half) == was
    assert not (half/'status.json').exists()  # who is refused leaves no word in a run that goes on

def test_a_run_is_one_run_between_its_stages_too(half, monkeypatch):
    "Without `dtir run`, as by `dtir train` or torchrun, nobody else can begin a stage that the first has not come to."
    was = untouched(half)
    with ck.run_lock(half, '.run'): rc, said = line(*TINY, '--out', half)
    assert rc == 73 and len(said) == 1 and untouched(half) == was, said
    with ck.run_lock(half, '.run'), pytest.raises(ck.Locked): launch.run_demo('tiny', half)
    def meanwhile(*a, **kw):
        with pytest.raises(ck.Locked), ck.run_lock(half, '.run'): pass
        raise ValueError('refused')
    (half/'matches.json').unlink(); monkeypatch.setattr(launch, 'find_steps', meanwhile)
    rc, said = line(*TINY, '--out', half); assert rc == 2 and said == ['dtir: refused'], said

def test_a_worker_hears_a_signal_twice_and_goes_on_saving(monkeypatch):
    "The queue tells every process to stop, and the agent tells its workers once more."
    def f():
        os.environ['RANK'] = '0'
        with launch._stops(), launch.stop_signals() as asked:
            for s in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM): os.kill(os.getpid(), s)
        os.kill(os.getpid(), signal.SIGTERM); os._exit(7 if asked[:2] == ['SIGUSR1','SIGTERM'] else 1)
    assert wait(start(f)) == 7

def test_the_word_of_others_does_not_end_a_run(tmp_path):
    "A parent heeds its own workers only: somebody else's status in its directory neither kills them nor is its verdict."
    def parent(who):
        child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1.5)'], preexec_fn=os.setsid)
        return launch.verdict(launch.attend(child, tmp_path, [], who, grace=.2), tmp_path, [], who)
    launch.said(tmp_path, 73, 'in use', parent='another'); assert parent('me') == (0, '')
    launch.said(tmp_path, 70, 'NaN', parent='me'); assert parent('me') == (70, 'NaN')
    (tmp_path/'status.json').write_text('[1]'); assert launch.read_status(tmp_path) == {}

def test_train_with_workers_ends_with_the_documented_code(tmp_path):
    from dtir_nb.command import train
    with ck.run_lock(tmp_path, '.launcher'), pytest.raises(SystemExit) as e:
        train('demo', str(tmp_path), scale='tiny', workers=2)
    assert e.value.code == 73

def test_p10_a_signal_between_two_matchings(one, tmp_path, monkeypatch):
    out, real = tmp_path/'run', launch.match
    def match(*a, **kw): os.kill(os.getpid(), signal.SIGTERM); return real(*a, **kw)
    monkeypatch.setattr(launch, 'match', match); rc, said = line(*TINY, '--out', out)
    assert rc == 85 and 'start again' in said[-1] and not (out/'tune').exists(), said
    monkeypatch.setattr(launch, 'match', real); assert line(*TINY, '--out', out)[0] == 0 and same(out, one)

def test_a_directory_of_another_recipe(half):
    was = untouched(half); rc, said = line(*TINY, '--set', 'mu=.5', '--out', half)
    assert (rc == 2 and len(said) == 1 and 'another configuration (mu=0.003)' in said[0]
            and untouched(half) == was)

def test_a_checkpoint_of_another_model(half, one):
    p = ck.checkpoints(half/'pretrain')[0]
    files = {f.name: f.read_bytes() for f in p.iterdir() if f.name != 'manifest.json'}
    other = {k: torch.zeros(7) for k in ck.st_load(files['model.safetensors'])}
    files['model.safetensors'] = ck.pack(other)
    shutil.rmtree(p); p.mkdir()
    [(p/n).write_bytes(b) for n,b in files.items()]
    (p/'manifest.json').write_bytes(ck.sign(int(p.name[5:]), files))
    was = untouched(half)
    rc, said = line(*TINY, '--out', half)
    assert (rc == 65 and len(said) == 1 and 'E_SHAPE' in said[0] and 'in the network' in said[0]
            and untouched(half) == was)

def test_a_corrupt_checkpoint_falls_back_and_the_run_ends_as_ever(half, one):
    f = ck.checkpoints(half/'pretrain')[0]/'model.safetensors'
    b = bytearray(f.read_bytes()); b[len(b)//2] ^= 4
    f.write_bytes(b)
    rc, said = line(*TINY, '--out', half); assert rc == 0 and same(half, one), said

def test_nothing_but_corrupt_checkpoints(half):
    for p in ck.checkpoints(half/'pretrain'): f = p/'state.json'; f.write_bytes(f.read_bytes()[:-3])
    was = untouched(half); rc, said = line(*TINY, '--out', half)
    assert rc == 65 and len(said) == 1 and 'no checkpoint is whole' in said[0] and untouched(half) == was

def test_a_foreign_pickle_in_place_of_a_checkpoint(half, one, tmp_path):
    import pickle
    class Trap:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'sprung'),)
    for p in ck.checkpoints(half/'pretrain'): (p/'model.safetensors').write_bytes(pickle.dumps(Trap()))
    rc, said = line(*TINY, '--out', half)
    assert rc == 65 and len(said) == 1 and 'E_DAMAGED' in said[0] and not (tmp_path/'sprung').exists()

def test_a_full_disk(half, one):
    was = untouched(half)
    real, launch.worker = launch.worker, lambda a: (chaos.small_disk(3000), real(a))[1]
    try: rc, said = line(*TINY, '--out', half)
    finally: launch.worker = real
    assert (rc == 74 and len(said) == 1 and 'bytes needed' in said[0]
            and {k: v for k,v in untouched(half).items() if k in was} == was)
    assert line(*TINY, '--out', half)[0] == 0 and same(half, one)

def test_numbers_that_break(tmp_path):
    rc, said = line(*TINY, '--set', 'lr_pre=1e30', '--out', tmp_path/'run')
    assert rc == 70 and len(said) == 1 and 'The weights are unharmed' in said[0], said

def test_a_signal_is_85_and_the_run_goes_on(one, tmp_path):
    out = tmp_path/'run'
    def f():
        os.execve(sys.executable,
                  [sys.executable, '-c', 'import sys; from dtir_nb.launch import worker; sys.exit(worker())',
                   *TINY, '--out', str(out)],
                  {**os.environ, 'PYTHONPATH': str(HERE.parent), 'OMP_NUM_THREADS': '1'})
    pid = start(f)
    for _ in range(3000):
        if len(tr.read_log(out/'pretrain')) > 1: break
        time.sleep(.05)
    os.kill(pid, signal.SIGTERM); assert wait(pid) == 85
    s = json.loads((out/'status.json').read_text())
    assert s['code'] == 85 and s['step'] > 0 and 'start again' in s['message']
    assert line(*TINY, '--out', out)[0] == 0 and same(out, one)

def test_the_environment_that_lets_weights_run_code(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    assert (launch.run_main([*TINY, '--workers', '1', '--out', str(tmp_path/'run')]) == 2
            and 'unset it' in capsys.readouterr().err)

def test_no_operation_of_a_recipe_is_without_a_repeatable_form():
    "Exact mode asks CUDA for operations whose bits repeat; those that PyTorch's manual says have no such form are not used."
    from torch.utils._python_dispatch import TorchDispatchMode
    from dtir_nb.plan import trial
    from dtir_nb.recipes import recipe
    used = set()
    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, f, types, args=(), kwargs=None):
            used.add(f.overloadpacket._qualified_op_name.removeprefix('aten::')); return f(*args, **(kwargs or {}))
    for more in ([], ['project=true','lam_orth=0'], ['experts=0'], ['lengths=true']):
        r = recipe('demo:tiny', 'tasks=noisy,rainy', 'width=4', 'enc=1,1', 'patch=16', 'mix=.5', *more)
        with Record(): [trial(r, stage, 2)[0]() for stage in ('pre','tune')]
    assert {'convolution_backward', 'mm', '_softmax_backward_data'} <= used
    bad = re.compile('(avg_pool3d|adaptive_(avg|max)_pool|fractional_max_pool|reflection_pad|upsample_(linear|bilinear|'
                     'bicubic|trilinear)|grid_sampler).*backward|max_unpool|nll_loss|ctc_loss|put_$|histc|bincount|'
                     'median|scatter_reduce|embedding_bag')
    assert not (found := {o for o in used if bad.search(o) and 'index_put' not in o}), found

# The parent, with real workers ------------------------------------------------------------------------------------------------------------
def dtir_run(out, *more, workers=2, **env):
    cmd = [sys.executable, '-c', 'import sys; from dtir_nb.launch import run_main; sys.exit(run_main())',
           *TINY, '--workers', str(workers), '--out', str(out), *map(str, more)]
    return subprocess.Popen(cmd, env={**os.environ, 'PYTHONPATH': str(HERE.parent), 'OMP_NUM_THREADS': '1',
                                      **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

def after_steps(out, n, stage='pretrain', timeout=400):
    for _ in range(timeout*20):
        if len(tr.read_log(out/stage)) >= n: return int((out/stage/'.lock').read_text().split()[1])
        time.sleep(.05)
    raise TimeoutError

def listening(pid):
    "Addresses on which a process listens, from /proc."
    mine = set()
    for f in glob.glob(f'/proc/{pid}/fd/*'):
        with contextlib.suppress(OSError):
            if (l := os.readlink(f)).startswith('socket:['): mine.add(l[8:-1])
    return [c[1].split(':')[0] for f in ('tcp','tcp6')
            for c in map(str.split, open(f'/proc/net/{f}').read().splitlines()[1:]) if c[3]
            == '0A' and c[9] in mine]

def below(pid): return [int(d) for d in os.listdir('/proc') if d.isdigit() and parent(d) == pid]
def parent(d):
    try: return int(open(f'/proc/{d}/stat').read().rsplit(')', 1)[1].split()[1])
    except OSError: return None

@slow
def test_p4_a_killed_worker_is_replaced_and_nothing_listens_but_on_loopback(one, tmp_path):
    p = dtir_run(tmp_path/'run'); w = after_steps(tmp_path/'run', 2); agent = parent(w)
    where = {a for q in (agent, *below(agent)) for a in listening(q)}
    assert where and where <= {'0100007F', '00000000000000000000000001000000',
                               '0000000000000000FFFF00000100007F'}, where
    os.kill(w, signal.SIGKILL)
    out, err = p.communicate(timeout=600)
    assert p.returncode == 0 and same(tmp_path/'run', one), (out, err,
        (tmp_path/'run'/'workers.log').read_text()[-2000:])

@slow
def test_p10_p18_a_stopped_parent_says_85_a_killed_one_leaves_no_orphans(one, tmp_path):
    run, more = tmp_path/'run', ('--set', 'pre=300', '--set', 'save_every=20')
    p = dtir_run(run, *more); after_steps(run, 2)
    p.send_signal(signal.SIGTERM)
    out, err = p.communicate(timeout=400)
    assert p.returncode == 85 and 'start again' in err and 0 < read_step(run) < 300, (out, err)
    p = dtir_run(run, *more)
    after_steps(run, len(tr.read_log(run/'pretrain'))+1)
    family = [*(a := below(p.pid)), *(w for x in a for w in below(x))]
    assert len(family) >= 3
    p.kill(); p.wait(); time.sleep(1.5)
    assert not [c for c in family if os.path.exists(f'/proc/{c}')
                and open(f'/proc/{c}/stat').read().rsplit(')', 1)[1].split()[0] != 'Z']
    p = dtir_run(run, *more, workers=1); assert p.wait(900) == 0  # and on with one worker
    assert line(*TINY, *more, '--out', tmp_path/'plain')[0] == 0 and same(run, tmp_path/'plain')

def tree(pid): return [pid, *(q for c in below(pid) for q in tree(c))]

@slow
@pytest.mark.parametrize('name', ['SIGUSR1','SIGTERM'])
def test_a_signal_to_every_process(tmp_path, name):
    "As a queue sends it: torchrun survives, the workers save."
    run = tmp_path/'run'; p = dtir_run(run, '--set', 'pre=3000', '--set', 'save_every=3000'); after_steps(run, 4)
    for q in (family := tree(p.pid)): os.kill(q, getattr(signal, name))
    out, err = p.communicate(timeout=400); assert len(family) == 4
    assert p.returncode == 85 and 'and saved in' in err and 0 < read_step(run) < 3000, (out, err)

def read_step(run): return ck.load_checkpoint(run/'pretrain').step

@slow
def test_a_known_error_of_the_workers_is_the_code_of_the_parent(tmp_path):
    p = dtir_run(tmp_path/'run', '--set', 'lr_pre=1e30')
    out, err = p.communicate(timeout=400)
    assert p.returncode == 70 and len(err.strip().splitlines()) == 1, err

@slow
def test_two_machines(one, tmp_path):
    "Two agents that meet on a port: as many machines as PyTorch can tell."
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    ps = [dtir_run(tmp_path/'run', '--nodes', 2, '--master', f'127.0.0.1:{port}', '--job', 'two', workers=1,
                   GLOO_SOCKET_IFNAME='lo') for _ in range(2)]
    said = [p.communicate(timeout=600) for p in ps]
    assert [p.returncode for p in ps] == [0, 0] and same(tmp_path/'run', one), said

@slow
def test_a_machine_that_leaves(one, tmp_path):
    "`--nodes 1:2`: two machines begin, one dies, the other goes on alone, to the same bits."
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    more = ['--set', 'pre=60']; run = tmp_path/'run'; ps = []
    for _ in range(2):
        ps.append(dtir_run(run, *more, '--nodes', '1:2', '--master', f'127.0.0.1:{port}', '--job', 'leaves',
                           workers=1, GLOO_SOCKET_IFNAME='lo'))
        time.sleep(2)
    after_steps(run, 3); assert below(below(ps[1].pid)[0])  # the second machine has a worker
    ps[1].kill(); ps[1].wait()
    out, err = ps[0].communicate(timeout=600)
    assert ps[0].returncode == 0, (err, (run/'workers.log').read_text()[-2000:])
    assert line(*TINY, *more, '--out', tmp_path/'plain')[0] == 0 and same(run, tmp_path/'plain')

@slow
def test_slices_through_the_launcher(tmp_path):
    "A sliced run under the parent; its restorer is that of `ddp`, to rounding."
    more = ['--set', 'tasks=noisy', '--set', 'experts=0', '--set', 'project=true', '--set', 'order=joint',
            '--set', 'lam_reg=0']
    for team in ('fsdp', 'ddp'):
        p = dtir_run(tmp_path/team, *more, '--set', f'team={team}')
        out, err = p.communicate(timeout=500)
        assert p.returncode == 0, (err, (tmp_path/team/'workers.log').read_text()[-2000:])
    x, y = (read_net(tmp_path/k/'net.safetensors')[0] for k in ('fsdp','ddp'))
    assert max((x[k]-y[k]).abs().max() for k in x) < 1e-3
