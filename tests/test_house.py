"Rules of the house that a machine can see: modules import what they use, exported cells are short."
import ast, base64, io, json, re, sys
from pathlib import Path
import matplotlib.figure, numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/'tools'))

def unused(source):
    "Names that a module imports at its top and never uses."
    tree = ast.parse(source)
    imported = {(a.asname or a.name).split('.')[0] for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))
                for a in n.names}
    return sorted(imported - {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)})

def test_modules_import_what_they_use():
    assert unused('import os, re\nfrom a import b as c, d\nprint(os.sep, d)') == ['c', 're']
    for p in sorted((ROOT/'dtir_nb').rglob('*.py')):
        if p.name not in ('all.py', '__init__.py', '_modidx.py'): assert not unused(p.read_text()), p

def test_exported_cells_are_short():
    for p in sorted((ROOT/'nbs').rglob('*.ipynb')):
        for c in json.loads(p.read_text(encoding='utf-8'))['cells']:
            source = ''.join(c['source'])
            if c['cell_type'] != 'code' or not re.search(r'^#\|\s*exports?\b', source, re.M): continue
            lines = [l for l in source.splitlines() if l.strip() and not l.startswith('#|')]
            assert len(lines) <= 25, f'{p.name}: {lines[0]}'

def test_plots_get_a_palette_and_photographs_stay():
    from execnbs import with_palette
    read = lambda png: np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert('RGB')).astype(int)
    def png(save): save(out := io.BytesIO()); return base64.b64encode(out.getvalue()).decode()
    fig = matplotlib.figure.Figure(figsize=(4, 3)); ax = fig.subplots()
    for i in range(5): ax.plot([0, 1, 2], [i, i*i % 3, 1], label=f'a line {i}')
    ax.set_title('a plot'); ax.legend()
    plot = png(lambda out: fig.savefig(out, format='png', dpi=160))
    small = with_palette(plot)
    assert len(small) < len(plot)/2 and abs(read(small)-read(plot)).max() <= 16
    assert with_palette(small) == small                       # once is enough
    photo = png(lambda out: Image.open(ROOT/'nbs/images/degraded.jpg').save(out, 'png'))
    assert with_palette(photo) == photo

# what is longer, and how long it may be: (cells, kB)
LONGER = {'01_degradations': (105, 500), '02_data': (100, 700), '02a_doctor': (115, 500), '06a_perceptual': (100, 780),
          '08_training': (145, 500), '18a_figures': (100, 700), 'claims': (125, 500), 'benchmarks': (130, 500),
          '19_launch': (110, 500)}
def test_notebooks_are_short():
    found = {p.stem: (len(json.loads(t)['cells']), len(t.encode())/1e3) for p in (ROOT/'nbs').rglob('*.ipynb')
             if '.ipynb_checkpoints' not in p.parts for t in (p.read_text(encoding='utf-8'),)}
    limit = lambda k: LONGER.get(k, (100, 500))
    assert not {k: v for k,v in found.items() if v[0] > limit(k)[0] or v[1] > limit(k)[1]}
    assert LONGER.keys() <= found.keys()
