"What cannot be right is refused where it enters, by a `ValueError` that names the argument and says what is wrong with it."
from functools import partial
import pytest, torch
from torch import nn
from dtir_nb.backbones import NAFNet
from dtir_nb.conditioning import Clocked, seeded
from dtir_nb.core import Batch, rng, save_image
from dtir_nb.finetuning import agreement, finetune_step, steps_of
from dtir_nb.importance import Importance, gen_loss_at, importance, output_energy, taylor_terms
from dtir_nb.incremental import scores, train_incremental
from dtir_nb.layer_decay import layer_weights, mean_weights, shallow_grads
from dtir_nb.matching import by_finetuning, match, referee
from dtir_nb.orthogonality import displaced_agreement
from dtir_nb.photographs import read_photo, write_photo
from dtir_nb.pretraining import pretrain
from dtir_nb.restoring import Restorer, restore_folder, restore_photo, tiled
from dtir_nb.schedule import cosine_schedule
from dtir_nb.training import FitConfig

SCHED, GEN = cosine_schedule(50), gen_loss_at(cosine_schedule(50))
with seeded(0): NET = Clocked(NAFNet(width=8, enc=(1,1), middle=1, dec=(1,1)), SCHED)
X = torch.rand(2,3,16,16, generator=rng(1)); Y, EPS, T = .5*X, torch.randn(X.shape, generator=rng(2)), torch.tensor([3,4])
WRONG = {'of 255': (lambda v: v*255, r'spans \[.*divide by 255'), 'negative': (lambda v: -v, r'spans \[-'),
         'with NaN': (lambda v: torch.where(v == v.max(), torch.nan, v), 'NaN or infinity')}
ONE = FitConfig(steps=1, progress=False)

class Broken(nn.Module):
    "A network of somebody's own, whose answer is not a picture of the size that it was given."
    schedule, T = SCHED, 50
    def __init__(self, kind): super().__init__(); self.kind, self.c = kind, nn.Conv2d(3, 3, 3, padding=1)
    def forward(self, z, t):
        out = self.c(z)
        return {'small': out[...,1:-1,1:-1], 'grey': out[:,:1], 'nan': out*float('nan'), 'inf': out/0,
                'cut': out.detach()}[self.kind]
SMALL, GREY, NAN, INF, CUT = map(Broken, ('small', 'grey', 'nan', 'inf', 'cut'))
ANSWER, EMPTY = "network's answer has shape", "network's answer holds NaN"

def judged(net=NET, x=X, y=Y, cfg=ONE): return referee(net, lambda k,*a: Batch(X, Y), (x, y), [3], cfg)
def angle(**odd): return agreement(NET, Batch(X, Y, clean=X)._replace(**odd), 3)
def matters(x=X, t=T, loss=GEN, chunk=1, eps=(EPS,), net=NET): return importance(loss, net, (x, t, *eps), chunk)
def terms(x=X):
    ps = dict(NET.named_parameters())
    return taylor_terms(GEN, NET, ps, (x, T, EPS), Importance(ps, ps, 1))
def staged(x, y): return train_incremental(NET, {'a': [(X[0], Y[0])]}, {'a': 3}, [X[0]], ONE, val={'a': (x, y)}, patch=16, batch=2)
def power(p): return lambda t, depth, T: p

CASES = {}
for kind,(spoil,what) in WRONG.items():
    x, y = spoil(X), spoil(Y)
    CASES |= {
        f'referee, x {kind}': (partial(judged, x=x), f'x of pairs.*{what}'),
        f'referee, y {kind}': (partial(judged, y=y), f'y of pairs.*{what}'),
        f'scores, y {kind}': (lambda y=y: scores(NET, {'a': (X, y)}, {'a': 3}), rf"y of pairs\['a'\].*{what}"),
        f'train_incremental, val {kind}': (partial(staged, X, y), rf"y of val\['a'\].*{what}"),
        f'agreement, x {kind}': (partial(angle, x=x), f'batch.x.*{what}'),
        f'agreement, y {kind}': (partial(angle, y=y), f'batch.y.*{what}'),
        f'importance, x {kind}': (partial(matters, x), f'^x.*{what}'),
        f'taylor_terms, x {kind}': (partial(terms, x), f'^x.*{what}')}
for chunk in (1, 8):
    CASES[f'importance of the output, NaN, chunk {chunk}'] = (
        partial(matters, WRONG['with NaN'][0](X), T, output_energy, chunk, ()), 'img holds NaN')
for kind,t,what in (('negative', torch.tensor([-1,3]), 't holds -1'), ('beyond the last', torch.tensor([3,51]), 't holds 51'),
                    ('of fractions', torch.tensor([1.,2.]), 't is torch.float32')):
    CASES |= {f'importance, t {kind}': (partial(matters, t=t, chunk=8), what),
              f'importance of the output, t {kind}': (partial(matters, t=t, loss=output_energy, chunk=8, eps=()), what)}
CASES |= {
    'referee, a size each': (partial(judged, x=X[...,:8]), r'y of pairs.*16, 16\).*16, 8\)'),
    'scores, a size each': (lambda: scores(NET, {'a': (X, Y[...,:8])}, {'a': 3}), r"y of pairs\['a'\].*16, 8\)"),
    'referee, small answer': (partial(judged, SMALL), ANSWER),
    'referee, grey answer': (partial(judged, GREY), ANSWER),
    'referee, grey answer, no step': (partial(judged, GREY, cfg=FitConfig(steps=0, progress=False)), ANSWER),
    'match by_finetuning, grey answer': (lambda: match(GREY, (X, Y), t_max=1, method=by_finetuning(lambda k: Batch(X, Y), ONE)), ANSWER),
    'agreement, no y': (partial(angle, y=None), 'batch.y is a NoneType'),
    'displaced_agreement, NaN': (lambda: displaced_agreement(*[[lambda: (NAN(X, 3)**2).mean((1,2,3))]]*2, list(NAN.parameters())), 'gen and rec.*NaN'),
    'importance, no gradient': (partial(matters, net=CUT), 'loss_fn gives a loss without a gradient'),
    'importance, noise of another size': (partial(matters, eps=(EPS[:,:1],)), 'eps has shape'),
    'shallow_grads, no gradient': (lambda: shallow_grads(X.mean(), NET, [n for n,_ in NET.named_parameters()]), 'loss has no gradient'),
    'pretrain, no gradient': (lambda: pretrain(CUT, [X[0]], ONE, patch=16, batch=2), 'loss has no gradient'),
    'steps_of, a step each': (lambda: steps_of(Batch(X, Y), T), 't_star holds 2 steps'),
    'finetune_step, a step each': (lambda: finetune_step(NET, Batch(X, Y), rng(0), None, T), 't_star holds 2 steps'),
    'layer_weights, rule of NaN': (lambda: layer_weights({'a': .5}, 3, rule=power(float('nan'))), "rule gives the exponent nan for 'a'"),
    'layer_weights, rule that grows': (lambda: layer_weights({'a': .5}, 3, rule=power(-5)), "rule gives the exponent -5 for 'a'"),
    'mean_weights, rule that grows': (lambda: mean_weights({'a': .5}, [3, 4], rule=power(-5)), "rule gives the exponent -5 for 'a'"),
    'tiled, grey answer': (lambda: tiled(lambda v: v[:,:1], X[:1], 8, 4), ANSWER)}
for kind,net,what in (('small', SMALL, ANSWER), ('grey', GREY, ANSWER), ('NaN', NAN, EMPTY), ('infinite', INF, EMPTY)):
    for how,kw in (('at once', {}), ('in tiles', dict(tile=8, overlap=4)), ('eightfold', dict(ensemble=True))):
        CASES[f'Restorer {how}, {kind} answer'] = (partial(Restorer(net, 3, **kw), Y), what)

@pytest.mark.parametrize('name', CASES)
@pytest.mark.filterwarnings('error::UserWarning', 'ignore:Please use the new API settings to control TF32')   # of PyTorch 2.9's own flags
def test_bad_input_is_refused_by_name(name):
    call, what = CASES[name]
    with pytest.raises(ValueError, match=what): call()

def test_the_same_calls_answer_where_nothing_is_wrong():
    judged(); angle(); terms(); scores(NET, {'a': (X, Y)}, {'a': 3}); steps_of(Batch(X, Y), torch.tensor(3))
    assert matters().n == matters(chunk=8).n == 2 and layer_weights({'a': 1.}, 3, rule=power(float('inf'))) == {'a': 0.}
    assert matters(X+50*EPS, loss=output_energy, eps=()).scale > 0      # noised pictures lie outside of [0,1] by nature
    assert Restorer(NET, 3, tile=8, overlap=4)(Y).shape == Y.shape

@pytest.mark.parametrize('net,what', [(NAN, EMPTY), (INF, EMPTY), (SMALL, ANSWER), (GREY, ANSWER)], ids=lambda v: getattr(v, 'kind', ''))
def test_a_broken_answer_becomes_no_file(net, what, tmp_path):
    (tmp_path/'in').mkdir(); save_image(Y[0], tmp_path/'in/a.png')
    with pytest.raises(ValueError, match=what): restore_photo(tmp_path/'in/a.png', tmp_path/'out.png', Restorer(net, 3), compare=tmp_path/'both.png')
    o, = restore_folder(tmp_path/'in', tmp_path/'out', lambda: Restorer(net, 3))
    assert o.done == 'refused' and o.why.startswith('E_NET: the network') and [*tmp_path.rglob('*.png')] == [tmp_path/'in/a.png']

def test_a_photograph_is_written_from_a_picture(tmp_path):
    photo = read_photo(save_image(Y[0], tmp_path/'a.png'))
    for bad,what in ((Y[0]*torch.nan, 'img holds NaN'), (Y[0]*255, 'img spans'), (Y[0,:1], 'img has 1 channels')):
        with pytest.raises(ValueError, match=what): write_photo(photo, bad, tmp_path/'b.png')
    assert not (tmp_path/'b.png').exists()
