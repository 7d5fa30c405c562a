"""Is every number on the site traceable?

A *claim* is a number with a unit of measurement (dB, %, ×, s, MB, GMACs, …) in the prose of a notebook. Prose is typed by hand, so each claim stands in `tools/numbers.tsv`
with where it comes from, and this program follows it there:

    defined   the page sets it: a tolerance, a setting, a convention                    nothing to follow
    paper     somebody else printed it; the source says who                             nothing to follow
    derived   arithmetic: the source is the expression                                  computed again
              its numbers, but for 0 to 10 and powers of ten, stand in an output        looked up
              or a test of the page or in another row of it, or the source says
              what they are: `100*8/63; 63: GMACs, Table 4`
    page      an output of the same page shows it, or a test of the page asserts it     looked up
    record    a file in nbs/experiments/results has it: `expression; a=FILE#path.to.it`  read and computed

A claim that is not listed, a listed one that is gone, and one whose source says something else fail. Outputs of cells marked `#| slow` are not made again by the tests, so a copy of each, with the
hash of the source that made it, lies in `nbs/experiments/results/pages`; an output that is not the copy, or whose source has changed, fails too.

    python tools/check_numbers.py          check
    python tools/check_numbers.py --keep   after slow cells were run: keep their outputs
"""
import ast, csv, hashlib, json, operator, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UNIT = r'dB|%|×(?!\s*[\d(])|times\b|ms\b|s\b|min\b|minutes?\b|hours?\b|seconds?\b|GB\b|MB\b|kB\b|GMACs?\b|images/s|pictures/s'
CLAIM = re.compile(rf'(?<![\w.^_/{{]) *([-−+]?\d[\d,]*(?:\.\d+)?)\s*({UNIT})')

def join(s): return ''.join(s) if isinstance(s, list) else (s or '')
def cells(nb): return json.loads(nb.read_text(encoding='utf-8'))['cells']
def pages(nbs):
    return {p.relative_to(nbs).as_posix(): p for p in sorted(nbs.rglob('*.ipynb'))
            if '.ipynb_checkpoints' not in p.parts}

def prose(text):
    "What a reader reads: no code, no addresses, TeX's spaces as spaces."
    text = re.sub(r'```.*?```', ' ', text, flags=re.S)
    text = re.sub(r'`[^`\n]*`', ' ', text)
    text = re.sub(r'\]\([^)]*\)', '] ', text)
    return re.sub(r'\\[,;~ ]', ' ', text).replace('\\%', '%').replace('{,}', '').replace('\\times', '×')

def claims(cs):
    "The claims of a page, as written: '3.7 ×'."
    return list(dict.fromkeys(f'{m[1]} {m[2]}' for c in cs if c['cell_type'] == 'markdown'
                              for m in CLAIM.finditer(prose(join(c['source'])))))

def value(claim):
    "Its number, and half a unit of its last digit."
    n = claim.split()[0].replace(',', '').replace('−', '-')
    return float(n), .5*10**-len(n.partition('.')[2])

# --- following a claim -----------------------------------------------------------------------------------------------------------------
OPS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
       ast.Pow: operator.pow, ast.USub: operator.neg}
CALLS = dict(max=max, min=min, abs=abs, sum=sum, len=len, sqrt=lambda v: v**.5,
             exp=lambda v: 2.718281828459045**v)

def compute(expr, names=None):
    "Arithmetic on numbers and names; nothing else is understood."
    def do(n):
        if isinstance(n, ast.Constant) and isinstance(n.value, (int, float)): return n.value
        if isinstance(n, ast.Name) and n.id in (names or {}): return names[n.id]
        if isinstance(n, ast.BinOp) and type(n.op) in OPS: return OPS[type(n.op)](do(n.left), do(n.right))
        if isinstance(n, ast.UnaryOp) and type(n.op) in OPS: return OPS[type(n.op)](do(n.operand))
        if isinstance(n, ast.Call) and getattr(n.func, 'id', '') in CALLS and not n.keywords:
            return CALLS[n.func.id](*map(do, n.args))
        raise ValueError(f'not arithmetic: {ast.unparse(n)}')
    return do(ast.parse(expr.strip(), mode='eval').body)

def read(where, results):
    "The entry of a record: `FILE#key.key.0`; keys may be quoted."
    file, _, path = where.partition('#')
    o = json.loads((results/file).read_text(encoding='utf-8'))
    for q, k in re.findall(r"'([^']*)'|([^.']+)", path): o = o[int(k)] if isinstance(o, list) else o[q or k]
    return o

def shown(cs):
    "All numbers in the text outputs and in the tests of a page."
    text = (' '.join(join(c['source']) for c in cs if c['cell_type']
                     == 'code' and re.search(r'^ *(assert|test_)', join(c['source']), re.M)) + ' '
            + ' '.join(join(o.get('text')) + ' '
                       + ' '.join(join(v) for k,v in o.get('data', {}).items() if k.startswith('text/'))
                       for c in cs if c['cell_type'] == 'code' for o in c.get('outputs', [])))
    return [float(n.replace(',', '')) for n in re.findall(r'(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?', text)]

def untold(expr, words, cs, own):
    "The numbers of an expression that neither the page shows, nor another claim of it (`own`), nor `words` explain."
    seen = [abs(v) for v in [*shown(cs), *own]]
    said = [float(n) for n,_,why in (w.partition(':') for w in words) if why.strip()]
    def close(n): return any(abs(v-n) <= .5005*10**-len(f'{n:.10f}'.rstrip('0').partition('.')[2]) for v in seen)
    free = [*range(11), *(10.**k for k in range(-9, 13))]
    ns = [k.value for k in ast.walk(ast.parse(expr.strip(), mode='eval')) if isinstance(k, ast.Constant)]
    return [n for n in ns if n not in free and n not in said and not close(n)]

def follow(claim, kind, source, cs, results, own=()):
    "None if the claim agrees with its source, else what is wrong; `own` are the numbers of the other claims of its page."
    v, tol = value(claim)
    close = lambda w: abs(w-v) <= tol*1.001 or claim.endswith('%') and abs(100*w-v) <= tol*1.001
    if kind in ('defined', 'paper'): return None if source.strip() else 'says nothing of its source'
    if kind == 'page': return None if any(map(close, shown(cs))) else 'no output or test of the page shows it'
    if kind not in ('derived', 'record'): return f'is of no known kind: {kind!r}'
    expr, *where = source.split(';')
    try:
        w = compute(expr, {k.strip(): read(p.strip(), results) for k,_,p in (o.partition('=') for o in where)
                           if kind == 'record'})
        lost = untold(expr, where, cs, own) if kind == 'derived' else []
    except (OSError, KeyError, IndexError, ValueError, SyntaxError, TypeError) as e:
        return f'cannot be followed: {type(e).__name__} {e}'
    if lost: return f'its source reckons with {lost[0]:g}, which no output or test of the page shows'
    return None if close(w) else f'its source gives {w:g}'

# --- slow cells ------------------------------------------------------------------------------------------------------------------------
def sha(text): return hashlib.sha256(text.encode()).hexdigest()[:16]
def slow(cs):
    "{id: what a slow cell said, and the hash of its source}."
    def said(o):
        return (join(o.get('text'))
                or (f"picture {sha(join(o['data'][k]))}"
                    if (k := next((k for k in o.get('data', {}) if k.startswith('image/')), ''))
                    else join(next((o['data'][k] for k in ('text/markdown', 'text/plain')
                                    if k in o.get('data', {})), ''))))
    return {c['id']: dict(source=sha(join(c['source'])), says=[said(o) for o in c.get('outputs', [])])
            for c in cs
            if c['cell_type'] == 'code' and re.search(r'^#\|\s*(slow|cuda)\b', join(c['source']), re.M)
            and c.get('outputs')}

def keep(root=ROOT):
    "Write the outputs of slow cells into the results."
    out = root/'nbs/experiments/results/pages'; out.mkdir(parents=True, exist_ok=True)
    for p in out.rglob('*.json'): p.unlink()
    for name, nb in pages(root/'nbs').items():
        if s := slow(cells(nb)):
            p = out/f'{name.removesuffix(".ipynb")}.json'
            p.parent.mkdir(exist_ok=True)
            p.write_text(json.dumps(s, indent=1, ensure_ascii=False)+'\n', encoding='utf-8')

# --- the card of the weights that ship -------------------------------------------------------------------------------------------------
def card(root):
    "A gain on the card, `set +1.23 dB (pictures)`, against the record of the blind study; a set that the card leaves out."
    table, text = (read('blind/blind.json#result.table', root/'nbs/experiments/results'),
                   (root/'dtir_nb/weights/card.md').read_text(encoding='utf-8'))
    says = {k: (g.replace('−', '-'), int(n))
            for k,g,n in re.findall(r'(\w+) ([-−+]\d+\.\d+) dB \((\d+)\)', text)}
    is_ = {k: (f"{v['gain']:+.2f}", v['n']) for k,v in table.items()}
    return [f'card.md: {k} {says.get(k, "is not there")}, the record says {is_.get(k, "nothing")}'
            for k in sorted(says.keys() | is_.keys()) if says.get(k) != is_.get(k)]

# --- the check -------------------------------------------------------------------------------------------------------------------------
def ledger(path):
    "Rows (page, claim, kind, source)."
    with open(path, encoding='utf-8', newline='') as f:
        return [r for r in csv.reader(f, delimiter='\t', quoting=csv.QUOTE_NONE) if r
                and not r[0].startswith('#')]

def check(root=ROOT):
    "What is wrong, one sentence each."
    nbs, results, bad = root/'nbs', root/'nbs/experiments/results', []
    bad += card(root)
    rows = {(r[0], r[1]): r[2:] for r in ledger(root/'tools/numbers.tsv')}
    all_ = {name: cells(nb) for name, nb in pages(nbs).items()}
    found = {(name, c) for name, cs in all_.items() for c in claims(cs)}
    bad += [f'{n}: "{c}" is not in tools/numbers.tsv' for n,c in sorted(found-rows.keys())]
    bad += [f'{n}: "{c}" is in tools/numbers.tsv, but not on the page' for n,c in sorted(rows.keys()-found)]
    for n,c in sorted(found & rows.keys()):
        own = [value(q)[0] for p,q in rows if p == n and q != c and rows[p,q][0] != 'derived']
        if why := follow(c, *(rows[n,c]+['', ''])[:2], all_[n], results, own): bad.append(f'{n}: "{c}" {why}')
    for name, cs in all_.items():
        p = results/'pages'/f'{name.removesuffix(".ipynb")}.json'
        was, now = json.loads(p.read_text(encoding='utf-8')) if p.exists() else {}, slow(cs)
        bad += [f'{name}: the output of slow cell {i} is not the one in {p.relative_to(root)}: run the cell, '
                f'then tools/check_numbers.py --keep' for i in sorted(was.keys() | now.keys())
                if was.get(i) != now.get(i)]
    return bad

def main():
    if '--keep' in sys.argv: keep()
    if bad := check(): sys.exit('\n'.join(bad) + f'\n{len(bad)} numbers cannot be traced')
    print(f'every number can be traced: {len(ledger(ROOT/"tools/numbers.tsv"))} in prose')

if __name__ == '__main__': main()
