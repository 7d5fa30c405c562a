"Rules of the house that a machine can see: modules import what they use, exported cells are short."
import ast, json, re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

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
