"What must hold on a GPU as it does on a CPU. Skipped where there is none, and beside other tests, which must not see one: pytest tests/test_gpu.py"
import contextlib, copy, os, subprocess, sys
from functools import partial
from pathlib import Path
import pytest, torch
from torch.testing import assert_close
from dtir_nb.core import Batch, rng
from dtir_nb.schedule import cosine_schedule, sample
from dtir_nb.backbones import nafnet_small
from dtir_nb.conditioning import Clocked, add_sites, seeded
from dtir_nb.data import Clean, Synthetic, embedded_photos, stream
from dtir_nb.degradations import TASKS, degrade
from dtir_nb.explore import look_at, make_scene
from dtir_nb.finetuning import PLAIN, FinetuneConfig, finetune
from dtir_nb.importance import gen_loss_at, importance, noised
from dtir_nb.incremental import train_incremental
from dtir_nb.matching import match, match_curve
from dtir_nb.metrics import psnr, ssim
from dtir_nb.moe import MoE
from dtir_nb.orthogonality import displaced_agreement, every_digit
from dtir_nb.parallel import fork_workers
from dtir_nb.plan import measure, plan_text
from dtir_nb.pretraining import gen_loss, pretrain
from dtir_nb.recipes import recipe
from dtir_nb.restoring import pretrained
from dtir_nb.training import FitConfig, fit
from dtir_nb import orthogonality
DEV = os.environ.get('DTIR_TEST_DEVICE', 'cuda')   # 'cpu' tries the tests themselves
pytestmark = pytest.mark.skipif(DEV == 'cuda' and not torch.cuda.is_available(), reason='no GPU in sight')
HERE = Path(__file__).parent

@pytest.fixture(scope='module')
def photos(): return [p.image for p in embedded_photos('train')]

@pytest.fixture(scope='module', autouse=True)
def deterministic(): torch.backends.cudnn.deterministic = True

def nets(experts=0):
    with seeded(0):
        net = Clocked(nafnet_small(), cosine_schedule())
        if experts: net = add_sites(net, partial(MoE, n=experts, k=2))
        for n,p in net.named_parameters():
            if n.endswith(('beta','gamma')) or p.abs().sum() == 0: torch.nn.init.normal_(p, std=.1)
    net.eval(); return net, copy.deepcopy(net).to(DEV)

def batch(n=4, side=48):
    x = torch.rand(n, 3, side//8, side//8, generator=rng(0,'x'))
    x = torch.nn.functional.interpolate(x, (side,side), mode='bilinear')
    return x, degrade(x, 'rainy', rng(0,'y'))[0]

@pytest.mark.parametrize('experts', (0,4))
def test_one_forward_and_backward_pass(experts):
    a, b = nets(experts); x, y = batch(); t = torch.tensor([1,9,20,50])
    with every_digit(DEV):
        la, lb = (a(y, t)-x).square().mean(), (b(y.to(DEV), t.to(DEV))-x.to(DEV)).square().mean()
        ga, gb = (torch.autograd.grad(l, list(n.parameters()), allow_unused=True) for l,n in ((la,a), (lb,b)))
    assert_close(lb.cpu(), la, rtol=1e-4, atol=1e-6)
    for u,v in zip(ga, gb):
        assert (u is None) == (v is None)
        if u is not None and u.norm() > 1e-6: assert (v.cpu()-u).norm() < 2e-3*u.norm()

@pytest.mark.parametrize('task', TASKS)
def test_degradations(task):
    x, _ = batch(2, 64); a, _ = degrade(x, task, rng(1)); b, _ = degrade(x.to(DEV), task, rng(1))
    assert b.device.type == DEV and ((a-b.cpu()).abs() > 2/255).float().mean() < .01

def test_metrics():
    x, y = batch()
    assert_close(psnr(y.to(DEV), x.to(DEV)).cpu(), psnr(y, x), rtol=1e-5, atol=1e-4)
    assert_close(ssim(y.to(DEV), x.to(DEV)).cpu(), ssim(y, x), rtol=1e-5, atol=1e-5)

def test_matching_curve():
    a, b = nets(); x, y = batch()
    with every_digit(DEV):
        assert_close(match_curve(b, x.to(DEV), y.to(DEV)).cpu(), match_curve(a, x, y), rtol=1e-3, atol=1e-6)
    single = torch.stack([(b(y.to(DEV), t)-x.to(DEV)).square().mean((1,2,3)) for t in range(1, 34)],
                         1).detach()
    assert_close(match_curve(b, x.to(DEV), y.to(DEV)), single, rtol=2e-2, atol=1e-5)

def test_importance_in_batches_is_the_loop():
    a, b = nets(); x, _ = batch(); s = noised(x, a.schedule, rng(0))
    sg = tuple(v.to(DEV) for v in s); loss = gen_loss_at(a.schedule)
    with every_digit(DEV):
        loop, vmap, cpu = importance(loss, b, sg, chunk=1), importance(loss, b, sg), importance(loss, a, s)
    for n in loop.I2:
        scale = cpu.I2[n].norm()
        assert ((loop.I2[n]-vmap.I2[n]).norm().cpu() <= 1e-3*scale + 1e-12
                and (loop.I2[n].cpu()-cpu.I2[n]).norm() <= 5e-3*scale + 1e-12)

def test_displaced_gradient_keeps_its_digits():
    "With PyTorch's TF32 for convolutions left on, and under autocast."
    _, net = nets(); net.train(); x, y = (v.to(DEV) for v in batch()); ps = list(net.parameters())
    gen = [lambda i=i: gen_loss(net, x[i:i+1], rng(i, device=DEV)) for i in (0,1)]
    rec = [lambda i=i: ((net(y[i:i+1], 9)-x[i:i+1]).square()+1e-6).sqrt().mean((1,2,3)) for i in (2,3)]
    assert torch.backends.cudnn.allow_tf32; good = displaced_agreement(gen, rec, ps); assert good > .95
    with torch.autocast(DEV, torch.bfloat16): assert displaced_agreement(gen, rec, ps, least=-2) > good-.1
    was = torch.backends.cudnn.allow_tf32
    with pytest.MonkeyPatch.context() as m:
        m.setattr(orthogonality, 'every_digit', lambda kind: contextlib.nullcontext())
        bare = displaced_agreement(gen, rec, ps, least=-2)
    print('without every_digit:', bare); assert torch.backends.cudnn.allow_tf32 == was

def test_networks_are_made_repeatably_on_the_default_device():
    "The same weights whatever was drawn before, and what is drawn after does not know of them."
    def made():
        with torch.device(DEV), seeded(3): return torch.nn.Linear(2, 2).weight
    def after(f): torch.manual_seed(0); torch.rand(1, device=DEV); f(); return torch.rand(1, device=DEV)
    a = made(); torch.rand(5, device=DEV); assert a.device.type == DEV and torch.equal(made(), a)
    assert torch.equal(after(made), after(lambda: None))

def test_dropout_is_drawn_once():
    with seeded(0):
        net = torch.nn.Sequential(torch.nn.Conv2d(3,24,3,padding=1), torch.nn.GELU(), torch.nn.Dropout(.3),
                                  torch.nn.Conv2d(24,3,3,padding=1)).to(DEV)
    ps = list(net.parameters())
    x = torch.rand(4,3,16,16, generator=rng(0,'dropout')).to(DEV)
    fs = [lambda i=i: (net(x[i:i+1])-.5*x[i:i+1]).square().mean((1,2,3)) for i in range(4)]
    assert displaced_agreement(fs[:2], fs[2:], ps) > .999

def test_dropout_belongs_to_the_step(tmp_path):
    with seeded(0):
        net = torch.nn.Sequential(torch.nn.Conv2d(3,8,3,padding=1), torch.nn.GELU(), torch.nn.Dropout(.3),
                                  torch.nn.Conv2d(8,3,3,padding=1)).to(DEV)
    x = torch.rand(4,3,16,16, generator=rng(0,'dropout'))
    step = lambda net, b, gen, reduce: {'loss': (net(b.x)-.5*b.x).square().mean()}
    state = torch.cuda.get_rng_state if DEV == 'cuda' else torch.get_rng_state
    cfg = FitConfig(steps=6, lr=1e-3, save_every=2, ema=0., progress=False)
    def weights(run=None, **kw):
        torch.rand(7, device=DEV); was = state(); m = copy.deepcopy(net)
        fit(m, lambda k: Batch(x), step, cfg, run=run, **kw)
        assert torch.equal(state(), was); return [p.detach() for p in m.parameters()]
    def stop(k, *_): assert k != 3, 'stopped here'
    one = weights(); assert_close(weights(), one, rtol=0, atol=0)
    with pytest.raises(AssertionError, match='stopped here'): weights(tmp_path, after=[stop])
    assert_close(weights(tmp_path), one, rtol=0, atol=0)

@pytest.mark.parametrize('amp', (False, 'bf16', 'fp16'))
def test_pretraining_learns_in_every_precision(photos, amp):
    net, log = Clocked(nafnet_small(), cosine_schedule()).to(DEV), []
    pretrain(net, photos, FitConfig(steps=60, lr=1e-3, amp=amp, seed=0, progress=False), patch=48, batch=8,
             after=[lambda k, n, a, l: log.append(l['loss'])])
    assert sum(log[-10:]) < .8*sum(log[:10]), log

FORMS = dict(plain=PLAIN, displaced=FinetuneConfig(samples=4, lam_orth=.01, lengths=False),
             exact=FinetuneConfig(samples=4, lam_orth=.01, lengths=False, eps=0.),
             lengths=FinetuneConfig(samples=4, lam_orth=.03, lengths=True),
             projected=FinetuneConfig(samples=4, lam_orth=0., project=True))
@pytest.mark.parametrize('form', FORMS)
def test_finetuning_and_resuming(photos, form, tmp_path):
    "The same numbers twice, and in two parts."
    start = nets()[1].train(); kw = dict(patch=32, batch=4, t=9, gef=FORMS[form])
    def go(steps, run):
        net = copy.deepcopy(start)
        return finetune(net, Synthetic(photos, 'rainy', patch=32), Clean(photos, patch=32),
                        cfg=FitConfig(steps=6, lr=1e-4, save_every=2, ema=.9, seed=3, progress=False),
                        run=run, **kw, **steps)
    a, b = go({}, tmp_path/'a'), go({}, tmp_path/'b')
    assert all(u.equal(v) for u,v in zip(a.state_dict().values(), b.state_dict().values()))
    class Cut(Exception): pass
    def cut(k, *_):
        if k == 3: raise Cut
    with pytest.raises(Cut): go(dict(after=[cut]), tmp_path/'c')
    c = go({}, tmp_path/'c')
    assert (all(u.equal(v) for u,v in zip(a.state_dict().values(), c.state_dict().values()))
            and all(v.isfinite().all() for v in a.parameters()))

def test_incremental_with_experts(photos):
    _, net = nets(4); net.train(); src = {k: Synthetic(photos, k, patch=32) for k in ('noisy','rainy')}
    r = train_incremental(net, src, dict(noisy=3, rainy=9), Clean(photos, patch=32),
                          FitConfig(steps=4, lr=1e-4, progress=False), FinetuneConfig(samples=4),
                          patch=32, batch=4)
    assert all(v.isfinite().all() for v in r.net.parameters())

def test_match_and_sample(photos):
    net = nets()[1]
    b = stream(Synthetic(photos, 'noisy', .1, patch=32), batch=4)(0)
    assert 1 <= match(net, b.to(DEV)).t <= 50
    z = sample(net, (2,3,32,32), net.schedule, rng(0, device=DEV), like=torch.zeros((), device=DEV))
    assert z.device.type == DEV and z.isfinite().all()

def test_restoring_on_gpu_is_restoring_on_cpu():
    R, G = pretrained(), pretrained(); G.net.to(DEV); x = torch.rand(3, 700, 600, generator=rng(0))
    with every_digit(DEV): a, b = R(x, t=5), G(x, t=5)
    assert_close(b.cpu(), a, rtol=0, atol=2e-3)

def test_exploring():
    R = pretrained(); R.net.to(DEV); s = make_scene(R, torch.rand(3, 96, 96, generator=rng(0)), 'rainy', side=64)
    o = look_at(R, s, s.t)
    assert {v.device.type for v in (s.y, s.curve, o.forward, o.estimate, *o.usage.values())} == {'cpu'}

def test_a_plan_times_the_gpu():
    r = recipe('demo:tiny', 'tasks=noisy,rainy', 'width=4', 'enc=1,1')
    if DEV == 'cuda': assert torch.cuda.get_device_name() in plan_text(r, seconds=0., device=DEV)
    assert measure(r, 'pre', 0., DEV) > 0

def test_compiled():
    _, net = nets(); x, y = (v.to(DEV) for v in batch()); f = torch.compile(net)
    t = torch.tensor([1,9,20,50], device=DEV)
    with torch.no_grad(), every_digit(DEV): a, b = f(y, t), net(y, t)
    assert (a-b).norm() < 1e-3*b.norm()

def line(*args):
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(HERE.parent), *filter(None, sys.path)]),
           'OMP_NUM_THREADS': '1'}
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, env=env, timeout=150)

def torchrun(n, out, *more):
    return line('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(n), '-m', 'dtir_nb.launch',
                'demo:tiny', '--set', 'width=4', '--set', 'enc=1,1', '--set', 'tasks=noisy,rainy', '--out', str(out),
                *more)

@pytest.mark.parametrize('team', ('ddp','exact'))
def test_torchrun_over_nccl(tmp_path, team):
    "In exact mode every operation has a form whose bits repeat: no warning names one that has not."
    r = torchrun(1, tmp_path/'run', '--set', f'team={team}')
    assert r.returncode == 0 and (tmp_path/'run/net.safetensors').exists(), r.stderr[-2000:]
    assert 'deterministic' not in r.stderr, r.stderr

@pytest.mark.skipif(DEV == 'cpu', reason='a CPU takes any number of workers')
def test_more_workers_than_gpus(tmp_path):
    r = torchrun(torch.cuda.device_count()+1, tmp_path/'run')
    assert r.returncode and 'each takes one of its own' in r.stderr and 'invalid device' not in r.stderr, r.stderr

@pytest.mark.skipif(DEV == 'cpu', reason='a CPU can be split')
def test_a_process_that_sees_a_gpu_is_not_split():
    with pytest.raises(ValueError, match='CUDA_VISIBLE_DEVICES'): fork_workers(dict, 1)

def test_the_command(tmp_path):
    r = line('-m', 'dtir_nb.command', 'demo', '--scale', 'tiny', '--device', DEV, '--out',
             str(tmp_path/'demo'))
    assert r.returncode == 0, r.stderr[-2000:]
