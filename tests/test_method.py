"Laws of the method where its parts meet; each stands for a mistake that the notebook of one part alone would not notice."
import copy, subprocess, sys
from dataclasses import replace
from functools import partial
import pytest, torch
from torch import nn
from torch.testing import assert_close
from dtir_nb.backbones import NAFNet, nafnet_small
from dtir_nb.conditioning import Clocked, add_sites, seeded, time_embedding
from dtir_nb.core import Batch, rng
from dtir_nb.data import Clean, Mixture
from dtir_nb.finetuning import FinetuneConfig, Held, _draws, _groups, as_pairs, charbonnier, finetune, finetune_step, hold, steps_of
from dtir_nb.importance import anchor, importance, importance_penalty
from dtir_nb.incremental import train_incremental
from dtir_nb.layer_decay import layer_weights, per_share
from dtir_nb.matching import match, match_timestep
from dtir_nb.moe import MoE, balance_loss
from dtir_nb.orthogonality import orthogonality_step
from dtir_nb.parallel import Team, each_shard
from dtir_nb.pretraining import ddpm
from dtir_nb.schedule import at, cosine_schedule
from dtir_nb.training import FitConfig

SCHED = cosine_schedule(50)
def chain(c=8): return nn.Sequential(*[m for i,o in ((3,c),(c,c),(c,3)) for m in (nn.Conv2d(i, o, 3, padding=1), nn.GELU())][:-1])
def flat(v, n=1, side=8): return torch.full((n,3,side,side), v)

@pytest.fixture(scope='module')
def tuned():
    "A network whose clock says something, a batch with two clean pictures, and what it holds on to."
    with seeded(0): net = Clocked(nafnet_small(), SCHED)
    for n,p in net.named_parameters(): p.data += .03*torch.randn(p.shape, generator=rng(1, n))
    x = torch.rand(4,3,32,32, generator=rng(2))
    return net, Batch(x, .4*x, None, torch.rand(2,3,32,32, generator=rng(3))), Held(net, FinetuneConfig())

def grads(tuned, cfg, t=3):
    net, b, held = tuned
    return finetune_step(net, b, rng(5), None, t, replace(cfg, mix=.5 if cfg.mix else 0.), held)['grads']

# the clock and t* ------------------------------------------------------------------------------------------------------------
def test_the_clock_reads_the_step_that_it_is_told_whatever_T_is():
    net, read = Clocked(chain(), cosine_schedule(100)), []; net.embed.register_forward_pre_hook(lambda m,a: read.append(a[0]))
    k = torch.tensor([0,1,13,100]); net(torch.rand(4,3,8,8), k)
    assert_close(read[0], time_embedding(k, 64, 100))

def test_the_first_of_equal_steps_of_the_mean_curve_is_taken():
    assert match_timestep(torch.tensor([[4.,1.,3.],[0.,2.,0.]])) == 2      # mean 2, 1.5, 1.5; each normalised first, it would be 3

def test_the_controls_of_matching_are_means_over_pictures():
    "Of three pictures two are untouched, in a batch of their own, and each has one colour."
    m = match(lambda img, t: img, [(torch.cat([flat(.2), flat(.8)]),)*2, (flat(.5), flat(.7))], SCHED)
    assert_close((m.at_input, m.at_mean), (.04/3, 0.), rtol=0, atol=1e-6)

# importance, orthogonality, experts ------------------------------------------------------------------------------------------
def test_freezing_what_has_not_moved_leaves_the_penalty_as_it_was():
    net = nn.Sequential(nn.Linear(2,2), nn.Linear(2,2)); th = anchor(net)
    imp = importance(lambda n, z: n(z).square().mean(1), net, torch.rand(4,2))
    with torch.no_grad(): net[1].weight += .1
    before = importance_penalty(net, th, imp); net[0].requires_grad_(False)
    assert_close(importance_penalty(net, th, imp), before)

@pytest.mark.parametrize('eps', (0., 1e-6))
def test_orthogonality_compares_the_gradients_of_all_shards(eps):
    with seeded(0): net = chain(6).double()
    ps = list(net.parameters()); x, e = (torch.rand(7,3,8,8, generator=rng(i), dtype=torch.float64) for i in (0,1))
    gen = [lambda i=i: (net(x[i:i+1]+.3*e[i:i+1])-x[i:i+1]).square().mean((1,2,3)) for i in range(3)]
    rec = [lambda i=i: (net(.4*x[i:i+1])-x[i:i+1]).square().mean((1,2,3)) for i in range(3,7)]
    whole = orthogonality_step(gen, rec, ps, ps[:4], eps=eps)
    a, b = each_shard(Team(2), lambda s, reduce: orthogonality_step(gen[s::2], rec[s::2], ps, ps[:4], eps=eps, reduce=reduce,
                                                                    world=2))
    assert_close(a.loss, whole.loss); assert_close(b.loss, whole.loss)
    for u,v,w in zip(a.orth, b.orth, whole.orth):
        if w is not None: assert_close((u+v)/2, w, rtol=1e-4, atol=1e-8)

def test_a_router_without_preference_pays_one_at_any_number_of_sites():
    with seeded(0): net = add_sites(Clocked(NAFNet(width=12, enc=(1,1), middle=1, dec=(1,1)), SCHED), partial(MoE, n=8, k=2))
    for m in net.modules():
        if isinstance(m, MoE): nn.init.zeros_(m.router.weight); nn.init.zeros_(m.router.bias)
    net(torch.rand(4,3,24,20), torch.tensor([1,6,12,30]))
    assert sum(isinstance(m, MoE) for m in net.modules()) > 1; assert_close(balance_loss(net), torch.tensor(1.))

# fine-tuning -----------------------------------------------------------------------------------------------------------------
def test_generation_in_fine_tuning_sees_clean_pictures_fresh_noise_and_every_step():
    "Grey pictures, clean .25 and pairs .75: what a spy was shown, less the clean grey, over the level of its step, is white noise."
    class Spy(nn.Module):
        schedule = SCHED
        def forward(self, z, t): seen.append((z,t)); return z
    many, asked = Batch(flat(.75, 400, 4), flat(.75, 400, 4), None, flat(.25, 400, 4)), []
    for lam in (0.,.1):
        seen = []; [f() for f in _groups(Spy(), many, torch.full((400,), 3), rng(5), FinetuneConfig(lam_orth=lam))[0]]
        z, t = map(torch.cat, zip(*seen)); e = (z-.25)/at(SCHED.levels, t, z); asked.append((z,t))
        assert abs(e.mean()) < 4/e.numel()**.5 and abs(e.var()-1) < 4*(2/e.numel())**.5
        assert (t.bincount(minlength=51)[1:] > 0).all() and abs((e[:200]*e[200:]).mean()) < 4/(e.numel()/2)**.5
    assert all(torch.equal(u, v) for u,v in zip(*asked))                   # the same draws with and without orthogonality

@pytest.mark.parametrize('lam', (0.,.1))
def test_three_times_gamma_is_three_times_mu(tuned, lam):
    c = FinetuneConfig(mu=.7, lam_reg=0., lam_orth=lam)
    for u,v in zip(grads(tuned, replace(c, gamma=lambda t,s: 3*ddpm(t,s))), grads(tuned, replace(c, mu=2.1))):
        if u is not None: assert_close(u, v, rtol=1e-3, atol=1e-5)

@pytest.mark.parametrize('mix, want', ((.5,40), (.1,8)))
def test_so_many_clean_pictures_come_as_mix_says(mix, want):
    pics = [torch.rand(3,16,16, generator=rng(9,i)) for i in range(4)]
    draw = _draws([(p,.5*p) for p in pics], pics, FinetuneConfig(mix=mix), 0, 16, 4)[0]
    assert sum(len(c) for c in (draw(k).clean for k in range(20)) if c is not None) == want   # of 20 batches of four

def test_pictures_outside_of_the_comparison_keep_their_steps(tuned):
    net, b, held = tuned; two, far = b._replace(task=('rainy',)*3+('low_light',)), dict(rainy=3, low_light=30)
    with torch.no_grad(): want = charbonnier(net(b.y, steps_of(two, far)), b.x).mean()
    got = finetune_step(net, two, rng(5), None, far, FinetuneConfig(mix=.5, lam_reg=0.), held)['rec']
    assert_close(got, want, rtol=1e-5, atol=0)

def test_layer_weights_fade_orthogonality_after_its_length_was_set(tuned):
    "A length that is set after fading would be another gradient."
    held, c = tuned[2], FinetuneConfig(mu=1e-3, lam_reg=0., lam_orth=.1); off = dict(lam_orth=0., lengths=False)
    w = layer_weights(held.depth, 12)
    four = (grads(tuned, k, 12) for k in (c, replace(c, **off), replace(c, rate=0.), replace(c, rate=0., **off)))
    for n,u,u0,v,v0 in zip(held.names, *four):
        if n in held.shallow and u is not None: assert_close(u-u0, w[n]*(v-v0), rtol=1e-2, atol=1e-5)

def test_layer_weights_know_how_many_steps_there_are():
    with seeded(1): net = Clocked(chain(), cosine_schedule(100))
    x = torch.rand(4,3,32,32, generator=rng(2)); b = Batch(x, .4*x, None, torch.rand(2,3,32,32, generator=rng(3)))
    c = FinetuneConfig(mu=.7, lam_reg=0., lam_orth=0., rule=per_share); held = Held(net, c)
    w = layer_weights(held.depth, 60, rule=per_share, T=100)
    three = (grads((net, b, held), k, 60) for k in (c, replace(c, rate=0.), replace(c, mu=0.)))
    for n,u,v,q in zip(held.names, *three):
        q = 0 if q is None else q
        if n in held.shallow: assert_close(u-q, w[n]*(v-q), atol=1e-6, rtol=1e-3)

# stages ----------------------------------------------------------------------------------------------------------------------
def test_a_stage_goes_on_from_the_average_of_the_one_before():
    with seeded(1): net = Clocked(chain(), SCHED)
    pics = [torch.rand(3,16,16, generator=rng(9,i)) for i in range(4)]; t = dict(a=2, b=6)
    src = {k: [(p,f*p) for p in pics] for k,f in (('a',.5),('b',.8))}; own = {k: as_pairs(v, 16, k) for k,v in src.items()}
    q, cfg = FinetuneConfig(samples=4, lam_orth=0.), FitConfig(steps=4, lr=1e-3, ema=.9, progress=False)
    got = train_incremental(copy.deepcopy(net), src, t, pics, cfg, q, patch=16, batch=4).net
    held = hold(net, Clean(pics, patch=16), q, 0)
    for i,ks in enumerate((('a',),('a','b'))):
        net = finetune(net, Mixture({k: own[k] for k in ks}), pics, {k: t[k] for k in ks}, replace(cfg, steps=2, seed=i), q,
                       patch=16, batch=4, held=held)
    assert all(torch.equal(u, v) for u,v in zip(got.parameters(), net.parameters()))

@pytest.mark.parametrize('said', ("torch.set_float32_matmul_precision('high')", "b.cuda.matmul.allow_tf32 = True", "b.cudnn.conv.fp32_precision = 'tf32'",
                                  "b.fp32_precision = 'tf32'"))
def test_every_digit_in_both_languages(said):
    "Whichever of PyTorch's two ways to ask for TF32 a process used before, inside it is off and afterwards it is as it was."
    code = f"""
import torch; b = torch.backends
from dtir_nb.orthogonality import every_digit
def seen():
    out = []
    for f in (torch.get_float32_matmul_precision, lambda: b.cudnn.allow_tf32, lambda: b.cuda.matmul.allow_tf32,
              lambda: b.cudnn.conv.fp32_precision, lambda: b.cuda.matmul.fp32_precision):
        try: out.append(f())
        except RuntimeError: out.append('mixed')
    return out
{said}
was = seen()
with every_digit():
    now = seen(); assert now[3] == 'ieee' or now[1] is False, now
    assert now[4] == 'ieee' or now[0] == 'highest' or now[2] is False, now
    torch.rand(2,2) @ torch.rand(2,2)
back = seen()
assert [x for x in back[:3]] == was[:3], (was, back)
assert back[3] == was[3] and (back[4] == was[4] or (was[4], back[4]) == ('none', 'ieee')), (was, back)
"""
    subprocess.run([sys.executable, '-c', code], check=True)
