"From what nbdev made of the notebooks to what the site builder reads: page names, relative links, figure numbers, and the source under each signature."
import ast, json, os, re, shutil
from pathlib import Path
import yaml
from docs_readme import join

def front(nb):
    "The front matter that nbdev wrote into the first cell."
    m = re.match(r'---\n(.*?)\n---', join(nb['cells'][0]['source']), re.S) if nb['cells'] else None
    return yaml.safe_load(m[1]) or {} if m else {}

def page_names(nbs, dst):
    "{'00_core.ipynb': 'core.ipynb', …}: the page name that each notebook asks for, both relative to `dst`."
    def new(p, nb): return p.with_name(Path(front(nb).get('output-file', p.name)).stem + '.ipynb')
    return {p.relative_to(dst).as_posix(): new(p, nb).relative_to(dst).as_posix() for p, nb in nbs.items()}

def relink(text, folder, names, doc_url):
    "Links to notebooks become links to their pages, or plain words where there is no such notebook; links to the published site become relative; of a link inside a link the outer one stays."
    # nbdev links names inside links, too
    text = re.sub(r'\[([^\[\]]*)\[([^\[\]]*)\]\([^()\s]*\)([^\[\]]*)\]\(', r'[\1\2\3](', text)
    text = text.replace(doc_url + '/', '../'*(0 if folder in ('', '.') else folder.count('/')+1) or './')
    def link(m):
        t = os.path.normpath(os.path.join(folder, m[2])).replace(os.sep, '/')
        if t not in names: print(f'note: no notebook {t} to link to'); return m[1]
        return f'[{m[1]}]({os.path.relpath(names[t], folder or ".").replace(os.sep, "/")}{m[3] or ""})'
    return re.sub(r'\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)#:\s]+\.ipynb)(#[^)]*)?\)', link, text)

def outside(text, folder, repo):
    "Links to files of the repository beside the notebooks lead to the code host."
    def link(m):
        t = os.path.normpath(os.path.join(folder, m[1])).replace(os.sep, '/')
        return f']({repo}/{t[3:]})' if t.startswith('../') and not t.startswith('../../') else m[0]
    return re.sub(r'\]\((\.\./[^)\s#]+)\)', link, text)

def slug(m):
    "A heading's anchor as Jupyter spells it, spelt as the site spells it."
    return m[1] + re.sub(r'[^\w\s.-]', '', m[2].replace('%20', '-')).strip('-').lower() + ')'

def number_figures(cells):
    "Number the figures labelled `#| label: fig-…`, and return {label: number}."
    figs = {}
    for c in cells:
        src = join(c['source'])
        m = re.search(r'^#\|\s*label:\s*(fig-[\w-]+)', src, re.M)
        if c['cell_type'] != 'code' or not m: continue
        figs[m[1]] = n = len(figs)+1
        c['source'] = re.sub(r'^(#\|\s*fig-cap:\s*)"?(.*?)"?$', lambda k: f'{k[1]}"Figure {n}: {k[2]}"',
                             src, flags=re.M)
    return figs

def prose(text, folder, names, doc_url, repo, figs):
    "A markdown cell, ready for the site."
    text = outside(relink(text, folder, names, doc_url), folder, repo)
    text = re.sub(r'(\]\([^)#\s]*#)([^)\s]+)\)', slug, text)
    text = re.sub(r'@(fig-[\w-]+)', lambda m: f'[Figure {figs[m[1]]}](#{m[1]})' if m[1] in figs else m[0],
                  text)
    align = r'(?<!\$\$\n)^\\begin\{align(\*?)\}(.*?)\\end\{align\1\}'
    return re.sub(align, r'$$\n\\begin{aligned}\2\\end{aligned}\n$$', text, flags=re.S|re.M)

def tidy(o, md):
    "One output: markdown like prose, widgets replaced by a sentence, terminal colours and progress bars removed."
    d = o.get('data', {})
    if 'text/markdown' in d: d['text/markdown'] = md(join(d['text/markdown']))
    if 'application/vnd.jupyter.widget-view+json' in d:
        o['data'] = {'text/html': '<p class="widget-note"><em>An interactive widget: run this notebook in '
                     'JupyterLab to use it.</em></p>'}
    if o.get('output_type') == 'stream':
        text = re.sub(r'\x1b\[[0-9;]*[A-Za-z]', '', join(o['text']))
        o['text'] = '\n'.join(l.split('\r')[-1] for l in text.split('\n')).strip('\n') + '\n'
    return o if join(o.get('text', 'x')).strip() else None

def defined(src):
    "Top-level names that a cell defines."
    return (re.findall(r'^(?:async def|def|class)\s+(\w+)', src, re.M)
            + re.findall(r'^([A-Za-z]\w*)\s*(?::[^=\n]+)?=(?!=)', src, re.M))

def fields(src, name):
    "The head of a tuple or data class and its fields, as its source writes them, or None: nbdev shows `*args, **kwargs` of the one, and of several fields in a line gives the comment to the last."
    m = re.search(rf'^((?:@dataclass.*\n)?class {name}(?:\(NamedTuple\))?:)\n((?:[ \t]+.*\n|\n)*)',
                  src + '\n', re.M)
    if not m or not (m[1].startswith('@') or 'NamedTuple' in m[1]): return None
    return [*m[1].splitlines(), *(l for l in m[2].splitlines() if re.match(r'    \w+\s*:\s*\S', l))]

def true_signature(cell, src, name):
    "Put the fields of a tuple or data class into its signature."
    fs = fields(src, name)
    for o in cell.get('outputs', []) if fs else []:
        d = o.get('data', {})
        if 'text/markdown' in d:
            d['text/markdown'] = re.sub(rf'def {name}\(\n.*?\n\)(?:->None)?:', lambda m: '\n'.join(fs),
                                        join(d['text/markdown']), count=1, flags=re.S)

def value_end(text, at):
    "Where the value that begins at `at` ends: at the next comma, line end or bracket that belongs to none of its own brackets and strings."
    quote, depth = '', 0
    for i in range(at, len(text)):
        c = text[i]
        if quote: quote = '' if c == quote and text[i-1] != '\\' else quote
        elif c in '\'"': quote = c
        elif depth == 0 and c in ',)\n': return i
        else: depth += (c in '([{') - (c in ')]}')
    return len(text)

def short_defaults(said, src, name, most=60):
    "A default that takes more room than `most` letters as its source names it; if that is long, too, its beginning."
    f = next((n for n in ast.walk(ast.parse(src)) if isinstance(n, ast.FunctionDef) and n.name == name), None)
    head = re.search(rf'^def {name}\(', said, re.M)
    if not f or not head: return said
    args  = [*f.args.posonlyargs, *f.args.args]
    named = [*zip(args[len(args)-len(f.args.defaults):], f.args.defaults),
             *((a, d) for a,d in zip(f.args.kwonlyargs, f.args.kw_defaults) if d)]
    for a,d in named:
        m = re.compile(rf'(?<=[\s(]){a.arg}(?::[^=\n#]*)?=').search(said, head.end())
        end = value_end(said, m.end()) if m else 0
        if end - (m.end() if m else 0) <= most: continue
        new = ast.unparse(d) if len(ast.unparse(d)) <= most else said[m.end():m.end()+most-3] + '…'
        said = said[:m.end()] + new + said[end:]
    return said

def true_doc(cell, urls, nb):
    "What nbdev cannot know of a name: the line of its source, that it says nothing of itself, that a function's address in memory is no default, and t*."
    m = re.search(r'^show_doc\(([\w.]+)\)\s*$', join(cell['source']), re.M)
    for o in cell.get('outputs', []) if m else []:
        d = o.get('data', {})
        if 'text/markdown' in d:
            t = join(d['text/markdown']).replace('*Call self as a function.*', '')
            t = re.sub(r'<function ([\w.<>]+) at 0x[0-9a-f]+>', r'\1', t)
            # it would end the italics
            head, fence, said = t.rpartition('```\n')
            t = head + fence + re.sub(r'\bt\*(?=[\s,.:;)])', r't\\*', said)
            d['text/markdown'] = re.sub(r'\(\S+#LNone\)',
                                        lambda a: f'({urls.get((nb, m[1]), a[0][1:-len("#LNone)")])})', t)

def source_cell(src, shown, urls, nb=''):
    "The source of an exported cell as a markdown cell: folded under its signature, open if there is no signature; for `exports` cells, which nbdev shows itself, the anchors alone."
    body = re.sub(r'^#\|.*\n', '', src, flags=re.M).strip()
    names = defined(body)
    label = ', '.join(f'<code>{n}</code>' for n in names)
    text = ''.join(f'<span id="{n.lower()}"></span>' for n in names if n not in shown
                   and not n.startswith('_'))
    if re.match(r'#\|\s*export\b', src):
        link = next((f'<p class="file"><a href="{urls[nb, n]}">These lines in the module</a></p>\n\n'
                     for n in names if (nb, n) in urls), '')
        text += (f'\n<details class="source"{"" if shown else " open"}><summary>Source of '
                 f'{label}</summary>\n\n```python\n{body}\n```\n\n{link}</details>')
    return dict(cell_type='markdown', metadata={'source': True}, source=text)

def add_sources(cells, raw, urls={}, nb=''):
    "After the signatures of each exported cell put its source; nbdev leaves it out, and this book is about the source."
    docs = {m[1]: i for i,c in enumerate(cells) if c['cell_type']=='code'
            and (m := re.search(r'^show_doc\((\w+)\)\s*$', join(c['source']), re.M))}
    where = {c.get('id'): i for i,c in enumerate(cells)}
    at, after = 0, {}
    for c in raw:
        src = join(c['source'])
        at = max(at, where.get(c.get('id'), at))
        if c['cell_type'] != 'code' or not re.match(r'#\|\s*exports?\b', src) or not defined(src): continue
        shown = [n for n in defined(src) if n in docs]
        for n in shown:
            true_signature(cells[docs[n]], src, n)
            for d in (o.get('data', {}) for o in cells[docs[n]].get('outputs', [])):
                if 'text/markdown' in d: d['text/markdown'] = short_defaults(join(d['text/markdown']), src, n)
        at = max([at] + [docs[n] for n in shown])
        after.setdefault(at, []).append(source_cell(src, shown, urls, nb))
    return [o for i,c in enumerate(cells) for o in [c, *after.get(i, [])]]

SELF = ('how_to_read.ipynb', 'between_the_lines.ipynb')   # they report on the other notebooks

def refresh(nbs_path, dst):
    "Run the notebooks that read the others, so that the site shows today's answer; their files stay as they are."
    from execnb.nbio import read_nb
    from execnb.shell import CaptureShell
    from fastcore.all import working_directory
    for name in SELF:
        if not (nbs_path/name).exists(): continue
        nb, staged = read_nb(nbs_path/name), json.loads((dst/name).read_text(encoding='utf-8'))
        shell = CaptureShell(nbs_path/name)
        with working_directory(nbs_path): shell.run_all(nb, exc_stop=False)
        if shell.exc:
            print(f'note: {name} did not run, its stored outputs are shown: {shell.exc!r}'); continue
        new = {c.get('id'): c.get('outputs', []) for c in nb.cells}
        for c in staged['cells']:
            if c.get('outputs') and c.get('id') in new: c['outputs'] = [dict(o) for o in new[c['id']]]
        (dst/name).write_text(json.dumps(staged), encoding='utf-8')

def stage_nb(p, nb, raw, dst, names, doc_url, repo, urls):
    "Rewrite one processed notebook under its page name."
    rel = p.relative_to(dst).as_posix()
    figs = number_figures(nb['cells'])
    def md(s): return prose(s, os.path.dirname(rel), names, doc_url, repo, figs)
    if raw.exists():
        nb['cells'] = add_sources(nb['cells'], json.loads(raw.read_text(encoding='utf-8'))['cells'], urls,
                                  rel)
    for c in nb['cells']:
        if c['cell_type'] == 'markdown' and 'source' not in c['metadata']: c['source'] = md(join(c['source']))
        if c['cell_type'] == 'code':
            true_doc(c, urls, rel)
            c['source'] = join(c['source']).replace('#| code-fold: show\n', '#| code-fold: true\n')
            c['outputs'] = [o for o in (tidy(o, md) for o in c.get('outputs', [])) if o]
    # a title written '# # Title'
    nb['cells'][0]['source'] = re.sub(r"^(title: ')# ", r'\1', join(nb['cells'][0]['source']), flags=re.M)
    p.unlink()
    (dst/names[rel]).write_text(json.dumps(nb), encoding='utf-8')

def stage(cache, nbs_path, dst, doc_url, repo, urls):
    "Copy nbdev's `cache` to `dst`, ready for the site builder; `repo` is where the code host shows files, `urls` leads from a name to its line. Returns {notebook: page source}."
    shutil.rmtree(dst, ignore_errors=True)
    shutil.copytree(cache, dst, ignore=shutil.ignore_patterns('_docs', '_site', '.ipynb_checkpoints'))
    refresh(nbs_path, dst)
    nbs = {p: json.loads(p.read_text(encoding='utf-8')) for p in sorted(dst.rglob('*.ipynb'))}
    names = page_names(nbs, dst)
    for p, nb in nbs.items(): stage_nb(p, nb, nbs_path/p.relative_to(dst), dst, names, doc_url, repo, urls)
    return names
