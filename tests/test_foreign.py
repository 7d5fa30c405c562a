"""The whole method on networks that we have never seen: at least twelve architectures, unedited, at smoke size.

The chain: clock and experts, pre-training, averaging, matching, checkpoint, fine-tuning with each form of orthogonality, incremental training, compilation, export. `-m "not slow"` runs a part of it on eighteen of them in
about a minute, `-m long` the rest: all forms, all networks, `torch.compile`, ONNX.
The published architectures come from `spandrel` (a development requirement), at random initial weights; without it they are skipped.
"""
import copy, warnings
from dataclasses import replace
from functools import partial
import pytest, torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint
from dtir_nb.backbones import NAFNet, load_public_nafnet
from dtir_nb.checkpoints import load_net, save_net
from dtir_nb.conditioning import Clocked, add_sites, depth_of, find_sites
from dtir_nb.core import Batch, rng
from dtir_nb.data import Clean, Synthetic
from dtir_nb.degradations import STRENGTHS
from dtir_nb.exporting import check_export, export_onnx
from dtir_nb.finetuning import FinetuneConfig, finetune_step, hold
from dtir_nb.foreign import Adapted, check_backbone, freeze_batchnorm, second_derivative_error
from dtir_nb.importance import gen_loss_at, importance, noised
from dtir_nb.incremental import train_incremental
from dtir_nb.matching import match_curve, match_timestep
from dtir_nb.moe import MoE, balance_loss, expert_usage
from dtir_nb.pretraining import pretrain_step
from dtir_nb.restoring import Restorer
from dtir_nb.schedule import cosine_schedule
from dtir_nb.training import FitConfig, fit
from dtir_nb.unet import UNet
from dtir_nb.xrestormer import XRestormer
torch.set_num_threads(1); warnings.filterwarnings('ignore')


# ---- networks of our own, each with one habit of real code ----
class InPlace(nn.Module):
    "In-place activations and additions."
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(i, o, 3, padding=1) for i,o in ((3,8), (8,8), (8,3)))
    def forward(self, x):
        h = F.relu_(self.a(x)); g = self.b(h); g += h; out = self.c(F.leaky_relu_(g)); out += x; return out

class Tied(nn.Module):
    "One layer used three times, and a decoder that shares the encoder's weights."
    def __init__(self):
        super().__init__()
        self.head, self.body, self.act = (nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1),
                                          nn.PReLU())
    def forward(self, x):
        h = self.head(x)
        for _ in range(3): h = h + self.act(self.body(h))
        return x + F.conv_transpose2d(h, self.head.weight, padding=1)

class Tokens(nn.Module):
    "PyTorch's own transformer over patches: features are (B,N,C), not (B,C,H,W)."
    def __init__(self, c=16, p=8):
        super().__init__(); self.p = p
        self.embed, self.back = nn.Linear(3*p*p, c), nn.Linear(c, 3*p*p)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(c, 2, 2*c, dropout=0., batch_first=True,
                                        norm_first=True) for _ in range(2))
    def forward(self, x):
        H,W = x.shape[-2:]; h = self.embed(F.unfold(x, self.p, stride=self.p).transpose(1, 2))
        for b in self.blocks: h = b(h)
        return x + F.fold(self.back(h).transpose(1, 2), (H,W), self.p, stride=self.p)

class DoubleConv(nn.Sequential):
    def __init__(self, i, o):
        super().__init__(nn.Conv2d(i, o, 3, padding=1), nn.GroupNorm(2, o), nn.ReLU(inplace=True),
                         nn.Conv2d(o, o, 3, padding=1), nn.GroupNorm(2, o), nn.ReLU(inplace=True))

class TutorialUNet(nn.Module):
    "The U-Net of a hundred tutorials: max pooling, bilinear upsampling, concatenation."
    def __init__(self, c=8):
        super().__init__()
        self.d1, self.d2, self.mid = DoubleConv(3, c), DoubleConv(c, 2*c), DoubleConv(2*c, 2*c)
        self.u2, self.u1, self.out = DoubleConv(4*c, c), DoubleConv(2*c, c), nn.Conv2d(c, 3, 1)
        self.pool, self.up = nn.MaxPool2d(2), nn.Upsample(scale_factor=2, mode='bilinear',
                                                          align_corners=False)
    def forward(self, x):
        a = self.d1(x); b = self.d2(self.pool(a)); m = self.mid(self.pool(b))
        return self.out(self.u1(torch.cat([self.up(self.u2(torch.cat([self.up(m), b], 1))), a], 1)))

class Guided(nn.Module):
    "Several inputs, of which only the first is the picture."
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1),
                                  nn.Conv2d(8, 3, 3, padding=1))
    def forward(self, x, mask=None, gain=1.):
        mask = x.new_ones(len(x), 1, *x.shape[-2:]) if mask is None else mask
        h = F.gelu(self.a(torch.cat([x, mask], 1))); return x + gain*self.c(h + F.gelu(self.b(h)))

class Recurrent(nn.Module):
    "The whole network three times, around a convolutional LSTM, as PReNet has it: nothing in it runs once."
    def __init__(self, c=8):
        super().__init__(); self.c, self.block = c, DoubleConv(c, c)
        self.head, self.gates, self.tail = (nn.Conv2d(i, o, 3, padding=1) for i,o in ((6,c), (2*c,4*c), (c,3)))
    def forward(self, x):
        y, h, c = x, x.new_zeros(x.shape[0], self.c, *x.shape[-2:]), 0.
        for _ in range(3):
            i,f,o,g = self.gates(torch.cat([F.gelu(self.head(torch.cat([x, y], 1))), h], 1)).chunk(4, 1)
            c = f.sigmoid()*c + i.sigmoid()*g.tanh(); h = o.sigmoid()*c.tanh()
            y = x + self.tail(h + self.block(h))
        return y

class OneSize(nn.Module):
    "A transformer with a table of positions that was learnt for one size, and fits no other."
    def __init__(self, side, c=16, p=8):
        super().__init__(); self.p, self.where = p, nn.Parameter(.02*torch.randn(1, (side//p)**2, c))
        self.embed, self.back = nn.Conv2d(3, c, p, p), nn.ConvTranspose2d(c, 3, p, p)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(c, 2, 2*c, dropout=0., batch_first=True,
                                        norm_first=True) for _ in range(2))
    def forward(self, x):
        h = self.embed(x); v = h.flatten(2).transpose(1, 2) + self.where
        for b in self.blocks: v = b(v)
        return x + self.back(v.transpose(1, 2).reshape(h.shape))

class Again(nn.Module):
    "Blocks that it computes again in the backward pass, by its own hand."
    def __init__(self, c=8):
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, c, 3, padding=1), nn.Conv2d(c, 3, 3, padding=1)
        self.blocks = nn.ModuleList(DoubleConv(c, c) for _ in range(2))
    def forward(self, x):
        h = self.head(x)
        for b in self.blocks: h = h + (checkpoint(b, h, use_reentrant=False) if self.training else b(h))
        return x + self.tail(h)

def sequential():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.LeakyReLU(.2, inplace=True),
                         nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.SiLU()),
                         nn.Conv2d(8, 3, 3, padding=1))

def wild(module, name, **kw):
    def make():
        pytest.importorskip('spandrel')
        return getattr(__import__('spandrel.architectures.'+module, fromlist=['x']), name)(**kw)
    return make

window = dict(img_size=32, embed_dim=12, num_heads=[2,2], window_size=8)
ZOO = {
    'sequential': sequential, 'in place': InPlace, 'tied': Tied, 'tokens': Tokens,
    'tutorial U-Net': TutorialUNet, 'several inputs': Guided, 'recurrent': Recurrent, 'computed again': Again,
    'one size': lambda: OneSize(64), 'one size, 128': lambda: OneSize(128),
    'own NAFNet': lambda: NAFNet(8, (1,1), 1, (1,1)), 'own U-Net': lambda: UNet(8, (1,2)),
    'own X-Restormer': lambda: XRestormer(4, blocks=(1,1), heads=(1,2), refine=1, dim=2, window=4),
    'NAFNet':        wild('NAFNet', 'NAFNet', width=8, middle_blk_num=1, enc_blk_nums=[1,1],
                          dec_blk_nums=[1,1]),
    'KBNet':         wild('KBNet', 'KBNet_s', width=8, middle_blk_num=1, enc_blk_nums=[1,1],
                          dec_blk_nums=[1,1]),
    'DnCNN':         wild('DnCNN', 'DnCNN', in_nc=3, out_nc=3, nc=8, nb=4, act_mode='R'),
    'DRUNet':        wild('DRUNet', 'DRUNet', in_nc=3, out_nc=3, nc=[8,8,16,16], nb=1),
    'SwinIR':        wild('SwinIR', 'SwinIR', **window, depths=[1,1], mlp_ratio=2., drop_path_rate=0.),
    'Uformer':       wild('Uformer', 'Uformer', img_size=32, embed_dim=8, depths=[1]*9,
                          num_heads=[1,1,2,2,2,2,2,1,1], win_size=4, drop_path_rate=0.),
    'MixDehazeNet':  wild('MixDehazeNet', 'MixDehazeNet', embed_dims=[8,16,32,16,8], depths=[1]*5),
    'Retinexformer': wild('RetinexFormer', 'RetinexFormer', n_feat=8, stage=1),
    'FFTformer':     wild('FFTformer', 'FFTformer', dim=8, num_blocks=[1,1,1], num_refinement_blocks=1),
    'ATD':           wild('ATD', 'ATD', **window, depths=(1,1), category_size=32, num_tokens=8),
    'RCAN':          wild('RCAN', 'RCAN', scale=1, n_resgroups=1, n_resblocks=2, n_feats=8, reduction=4,
                          rgb_range=1),
    'PLKSR':         wild('PLKSR', 'PLKSR', dim=16, n_blocks=2, upscaling_factor=1),
    'SAFMN':         wild('SAFMN', 'SAFMN', dim=12, n_blocks=2, upscaling_factor=1),
}
WRONG_SECOND = ('NAFNet', 'KBNet')  # ship a layer normalisation with a hand-written backward pass
# the others run by default
SLOW = ('FFTformer', 'ATD', 'Uformer', 'own X-Restormer', 'own U-Net', 'Retinexformer',
        'MixDehazeNet', 'SAFMN')
SIZE = {'MixDehazeNet': 64, 'FFTformer': 64, 'one size': 64, 'one size, 128': 128}
marked = lambda names: [pytest.param(n, marks=pytest.mark.long) if n in SLOW else n for n in names]
# networks whose forward takes every size, so that an exported file is tried at others than it was traced at
ANY_SIZE = ('sequential', 'in place', 'tied', 'recurrent', 'computed again', 'own NAFNet', 'DnCNN', 'RCAN')
PLACES = {'tutorial U-Net': [f'{k}.{i}' for k in ('d1', 'd2', 'mid', 'u2', 'u1') for i in (0, 1, 3, 4)],
          'own NAFNet': ['encoders.0.0', 'encoders.1.0', 'middle_blks.0', 'decoders.0.0', 'decoders.1.0']}
DEPTHS = {'tied': {'net.head.inner.weight': .4, 'net.head.mods.0.proj.weight': .6, 'net.body.weight': .8},
          'tokens': {'net.embed.weight': .1333, 'net.blocks.1.inner.self_attn.in_proj_weight': .6667},
          'own NAFNet': {'net.encoders.1.0.inner.norm2.weight': .3509, 'net.decoders.0.0.inner.conv4.weight': .7544},
          'tutorial U-Net': {'net.mid.3.mods.0.proj.weight': .5476, 'embed.2.weight': .0238}}
sched = cosine_schedule(T=50)

def make(name):
    with torch.random.fork_rng(devices=[]): torch.manual_seed(0); return ZOO[name]().train()

def pictures(name, n=2):
    s = SIZE.get(name, 32)
    x = F.interpolate(torch.rand(n, 3, 5, 5, generator=rng(0, 'x')), (s, s), mode='bicubic').clamp(0, 1)
    return x, (x + .1*torch.randn(x.shape, generator=rng(0, 'noise'))).clamp(0, 1)

def alive(net):
    "Move every parameter a little, so that nothing is zero by initialisation."
    with torch.no_grad():
        for i,p in enumerate(net.parameters()): p.add_(.02*torch.randn(p.shape, generator=rng(0, 'alive', i)))
    return net


# ---- the chain ----
@pytest.mark.parametrize('name', marked(ZOO))
def test_clock_changes_nothing_at_first(name):
    net, (x, _) = make(name).eval(), pictures(name)
    before = {k: v.clone() for k,v in net.state_dict().items()}
    clocked = add_sites(Clocked(net, sched, scale=False), partial(MoE, n=4, k=2)).eval()
    with torch.no_grad():
        plain = net(x.clone())
        for t in (0, 1, 33, 50): assert torch.equal(clocked(x, t), plain), t
        a = sched.alpha[7].float()
        assert_close(Clocked(net, sched).eval()(x, 7), net(a*x)/a, rtol=1e-4, atol=1e-5)
    assert len(clocked.sites) >= 1 and all(s.why for s in clocked.sites)
    for k,v in net.state_dict().items(): assert torch.equal(v, before[k])

@pytest.mark.parametrize('name', marked(ZOO))
def test_pretraining_matching_checkpoint(name, tmp_path):
    net, (x, y) = Clocked(make(name), sched), pictures(name)
    start = copy.deepcopy(net)
    avg = fit(net, lambda k: Batch(x), pretrain_step,
              FitConfig(steps=2, lr=1e-3, warmup=0, ema=.9, progress=False))
    assert any(not torch.equal(a, b) for a,b in zip(net.parameters(), start.parameters()))
    assert any(not torch.equal(a, b) for a,b in zip(net.parameters(), avg.parameters()))
    curve = match_curve(avg, x, y, t_max=4)
    assert torch.isfinite(curve[:, :4]).all() and 1 <= match_timestep(curve) <= 4
    save_net(avg, tmp_path/'net.safetensors')
    load_net(tmp_path/'net.safetensors', lambda config: start)
    with torch.no_grad(): assert torch.equal(start.eval()(y, 5), avg.eval()(y, 5))

GEF = dict(displaced=FinetuneConfig(samples=2), exact=FinetuneConfig(samples=2, eps=0.),
           projected=FinetuneConfig(samples=2, lam_orth=0., project=True))

def fine_tune(name, gef, net=None):
    "A network with clock and adapters, and what one step of fine-tuning says about it."
    net, (x, y) = net or alive(add_sites(Clocked(make(name), sched), partial(MoE, n=4, k=2))), pictures(name)
    held = hold(net, Clean(list(x), patch=x.shape[-1]), gef)
    return net, held, finetune_step(net, Batch(x, y, clean=x), rng(0, 'step'), lambda v: v, t_star=5,
                                    cfg=gef, held=held)

def flat(gs): return torch.cat([g.flatten() for g in gs if g is not None])

@pytest.mark.parametrize('name', marked(ZOO))
def test_fine_tuning(name):
    net, held, log = fine_tune(name, GEF['displaced'])
    assert (all(torch.isfinite(log[k]).all() for k in ('loss','rec','gen','reg','orth'))
            and 0 < log['orth'] <= 3)
    assert torch.isfinite(flat(log['grads'])).all() and flat(log['grads']).abs().max() > 0
    assert held.shallow and set(held.shallow) < set(held.names) and len(log['grads']) == len(held.names)
    _,_,other = fine_tune(name, GEF['projected'], net)
    assert torch.isfinite(flat(other['grads'])).all() and not torch.equal(flat(other['grads']),
        flat(log['grads']))
    copy.deepcopy(net)(pictures(name)[0], 3)

@pytest.mark.parametrize('name', WRONG_SECOND)
def test_importance_goes_one_by_one_where_the_network_cannot_be_vectorised(name):
    "On a GPU the default is 8 at a time; the hand-written layer normalisation knows no `vmap`."
    net, (x, _) = alive(Clocked(make(name), sched)).eval(), pictures(name, 3)
    one, three = (importance(gen_loss_at(sched), net, noised(x, sched, rng(0)), chunk) for chunk in (1, 3))
    for n in one.I2: assert torch.equal(one.I1[n], three.I1[n]) and torch.equal(one.I2[n], three.I2[n])

@pytest.mark.long
@pytest.mark.parametrize('name', [n for n in ZOO if n not in WRONG_SECOND])
def test_exact_and_displaced_orthogonality(name):
    "On smooth networks the two agree. ReLU has kinks that a displacement crosses and double backward does not see: there only the loss is common."
    strong = FinetuneConfig(samples=2, lam_orth=100., lengths=False)
    # fused attention has no second derivative
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        net, _, near = fine_tune(name, strong)
        _,_,exact = fine_tune(name, replace(strong, eps=0.), net)
    assert_close(near['orth'], exact['orth'], rtol=1e-3, atol=1e-3)
    assert torch.isfinite(flat(near['grads'])).all() and torch.isfinite(flat(exact['grads'])).all()
    if name in ('several inputs', 'own NAFNet', 'own U-Net'):
        assert F.cosine_similarity(flat(near['grads']), flat(exact['grads']), 0) > .9

@pytest.mark.long
def test_fused_attention_is_refused_in_exact_mode():
    with pytest.raises(RuntimeError, match='not implemented'): fine_tune('tokens', GEF['exact'])
    assert any(f.check == '2nd derivative' and f.level == 'warn' and 'sdpa_kernel' in f.remedy
               for f in check_backbone(make('tokens')))

@pytest.mark.parametrize('name',
                         [n if n in ('tied', 'tokens', 'tutorial U-Net', 'DRUNet', 'recurrent', 'one size',
                                     'computed again') else pytest.param(n,
                              marks=pytest.mark.long) for n in ZOO])
def test_incremental_training_with_experts(name):
    net, (x, _) = add_sites(Clocked(make(name), sched), partial(MoE, n=4, k=2)), pictures(name)
    kw = dict(patch=x.shape[-1], batch=2)
    sources = {k: Synthetic(list(x), k, STRENGTHS[k].source, patch=x.shape[-1])
               for k in ('noisy', 'low_light')}
    gef = replace(GEF['displaced'], mix=1.)
    start = copy.deepcopy(net)
    h = train_incremental(net, sources, dict(low_light=9, noisy=4), list(x),
                          FitConfig(steps=2, lr=1e-3, warmup=0, ema=0., progress=False), gef, **kw)
    assert [s.new for s in h.stages] == ['noisy', 'low_light']
    moved = {'experts' if '.experts.' in k else 'net'
             for (k,a),b in zip(h.net.named_parameters(), start.parameters()) if not torch.equal(a, b)}
    assert {'net', 'experts'} <= moved

# ---- what the chain does not see ----
def test_places_and_depths_are_those_of_old_runs():
    "What earlier versions found, since weights and depths of existing runs hang on it."
    names = lambda name: [s.name for s in find_sites(make(name))]
    assert names('sequential') == ['0', '2.0'] and names('in place') == ['a', 'b'] and names('tied') == ['head']
    assert names('tokens') == ['blocks.0', 'blocks.1'] and names('several inputs') == ['a', 'b']
    assert names('tutorial U-Net') == PLACES['tutorial U-Net'] and names('own NAFNet') == PLACES['own NAFNet']
    for name,want in DEPTHS.items():
        got = depth_of(Clocked(make(name), sched))
        assert {k: round(got[k], 4) for k in want} == want, name

def test_experts_of_a_recurrent_network_count_in_all_their_runs():
    net, (x, _) = alive(add_sites(Clocked(make('recurrent'), sched), partial(MoE, n=4, k=2))), pictures('recurrent')
    m, heard = net.site(net.sites[0]).mods[1], []
    m.gates = lambda h, e: (heard.append((h, e)), MoE.gates(m, h, e))[1]
    net(x, 5); del m.gates
    assert len(heard) == 3 and 'runs 3 times' in net.sites[0].why
    alone = copy.deepcopy(m); seen = []
    for h,e in heard: alone.gates(h, e); seen.append(alone.routing)
    p, idx = (torch.cat([s[i] for s in seen]) for i in (0, 1))
    share = F.one_hot(idx, 4).float().mean((0, 1))
    assert_close(expert_usage(net)[f'net.{net.sites[0].name}.mods.1'], share)
    for s in net.sites[1:]: del net.site(s).mods[1]
    assert_close(balance_loss(net), 4*(share*p.mean(0)).sum())
    for _ in range(2): net(x, 5); assert len(m.routing[0]) == 3*len(x)         # a new call, a new account

def test_pictures_of_one_size_are_trained_padded_and_cut():
    net = Clocked(Adapted(make('one size'), multiple=64), sched)
    assert [s.name for s in net.sites] == ['net.blocks.0', 'net.blocks.1']
    y = torch.rand(3, 100, 30, generator=rng(0, 'large'))
    assert Restorer(net, 5, tile=64)(y).shape == y.shape

def test_computing_again_by_its_own_hand_changes_no_gradient():
    net, (x, y) = alive(add_sites(Clocked(make('computed again'), sched), partial(MoE, n=4, k=2))), pictures('tied')
    loss = lambda: net(x, 5).square().mean() + net(y, torch.tensor([3, 40])).abs().mean()
    grads = lambda: flat(torch.autograd.grad(loss(), list(net.parameters()), allow_unused=True))
    again = grads(); assert torch.equal(again, (net.eval(), grads())[1])

def test_public_nafnet_weights_give_the_same_pictures():
    theirs = alive(make('NAFNet')).eval(); ours = load_public_nafnet(theirs.state_dict()).eval()
    x, _ = pictures('NAFNet')
    with torch.no_grad(): assert_close(ours(x[..., :29, :31]), theirs(x[..., :29, :31]), rtol=1e-4, atol=1e-5)

def test_further_inputs_pass_through_the_clock():
    net = alive(Guided()); clocked = Clocked(net, sched, scale=False); x, _ = pictures('several inputs')
    mask = torch.rand(2, 1, 32, 32, generator=rng(0, 'mask'))
    with torch.no_grad():
        assert (torch.equal(clocked(x, 5, mask, 2.), net(x, mask, 2.))
                and not torch.equal(clocked(x, 5, mask, 2.), clocked(x, 5)))

def test_networks_that_cannot_work_say_why():
    bn = wild('DnCNN', 'DnCNN', in_nc=3, out_nc=3, nc=8, nb=4, act_mode='BR')()
    bad = {f.check: f for f in check_backbone(bn) if f.level == 'fail'}
    assert set(bad) == {'one by one'} and 'freeze_batchnorm' in bad['one by one'].remedy
    assert not any(f.level == 'fail' for f in check_backbone(freeze_batchnorm(bn)))
    bad = {f.check: f for f in check_backbone(make('DRUNet')) if f.level == 'fail'}
    assert 'multiple=8' in bad['any size'].remedy
    assert not any(f.level == 'fail' for f in check_backbone(Adapted(make('DRUNet'), multiple=8)))
    assert any('training mode' in f.remedy for f in check_backbone(make('PLKSR')))
    assert any(f.level == 'warn' and 'eps=0' in f.remedy for f in check_backbone(make('in place')) if f.check
               == '2nd derivative')
    found = {f.check: f for f in check_backbone(make('NAFNet'))}
    assert not any(f.level == 'fail' for f in found.values()) and 'native' in found['2nd derivative'].remedy
    thin = next(f for f in check_backbone(make('SwinIR')) if f.check == 'any size')
    assert thin.level == 'warn' and 'multiple=8' in thin.remedy
    assert torch.isfinite(Adapted(make('SwinIR'), multiple=8)(torch.rand(1, 3, 1, 40))).all()
    bad = {f.check: f
           for f in check_backbone(wild('SPAN', 'SPAN', num_in_ch=3, num_out_ch=3, feature_channels=8,
                                        upscale=2)()) if f.level == 'fail'}
    assert 'keeps the size' in bad['output'].remedy


# ---- compilation and export ----
@pytest.mark.long
@pytest.mark.parametrize('name', list(ZOO))
def test_compiles(name):
    net, (x, _) = add_sites(Clocked(alive(make(name)), sched), partial(MoE, n=4, k=2)).eval(), pictures(name)
    t = torch.tensor([3, 30]); torch._dynamo.reset()
    with torch.no_grad():
        assert_close(torch.compile(net, backend='aot_eager')(x, t), net(x, t), rtol=1e-4, atol=1e-5)

@pytest.mark.long
# which sorts its tokens by argsort(stable=False): the exporter has no such operator, with a clock or without
@pytest.mark.parametrize('name', [n for n in ZOO if n != 'ATD'])
def test_exports_to_onnx(name, tmp_path):
    "By the library's own export and check, which tries other sizes; where a network has none, at the one that it takes."
    ort, _ = pytest.importorskip('onnxruntime'), pytest.importorskip('onnxscript')
    net, (x, _) = add_sites(Clocked(alive(make(name)), sched), partial(MoE, n=4, k=2)).eval(), pictures(name)
    if name in ANY_SIZE:
        check_export(export_onnx(net, tmp_path/'net.onnx'), net); return
    t = torch.tensor([3, 30])
    torch.onnx.export(net, (x, t), str(tmp_path/'net.onnx'), dynamo=True, verbose=False)
    run = ort.InferenceSession(str(tmp_path/'net.onnx'))
    got = run.run(None, {i.name: v.numpy() for i,v in zip(run.get_inputs(), (x, t))})[0]
    with torch.no_grad(): assert_close(torch.from_numpy(got), net(x, t), rtol=1e-4, atol=1e-4)
