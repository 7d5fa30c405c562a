"The site's navigation, from the notebooks that exist: Start, Tutorials, The method, Experiments, API."
import re
from pathlib import Path
import yaml
from docs_stage import front
import json

# what a reader would open first, in each folder; whatever is not named here follows by name
ORDER = dict(tutorials=('restore_a_photo', 'your_own_degradation', 'your_own_backbone', 'reproduce_a_table',
                        'from_one_gpu_to_many'),
             experiments=('claims', 'protocol', 'two_passes', 'one_clock', 'matching_study', 'preconditioning', 'search',
                          'shipping', 'blind', 'efficiency', 'benchmarks', 'data_speed', 'records'))

def title(path):
    "The title in a staged notebook's front matter."
    return front(json.loads(path.read_text(encoding='utf-8'))).get('title') or path.stem

def entry(dst, nb, page):
    "A line of the sidebar; the notebooks of the method keep their number."
    n = re.match(r'(\d\d\w?)_', Path(nb).name)
    return dict(text=f'{n[1]} · {title(dst/page)}' if n and '/' not in nb else title(dst/page), href=page)

def sections(names, dst):
    "{section: [entries]} in the order of the site; empty sections are left out."
    def place(nb):
        first, stem = ORDER.get(str(Path(nb).parent), ()), Path(nb).stem
        return (first.index(stem) if stem in first else len(first), nb)
    def pick(test): return [entry(dst, nb, names[nb]) for nb in sorted(names, key=place) if test(nb)]
    def under(folder): return lambda nb: nb.startswith(folder + '/')
    start = [entry(dst, nb, names[nb]) for nb in ('index.ipynb', 'how_to_read.ipynb') if nb in names]
    lens  = [entry(dst, nb, names[nb]) for nb in ('score_view.ipynb', 'between_the_lines.ipynb')
             if nb in names]
    numbered = pick(lambda nb: re.match(r'\d\d\w?_', nb))
    known = {'index.ipynb', 'how_to_read.ipynb', 'score_view.ipynb', 'between_the_lines.ipynb'}
    other = pick(lambda nb: '/' not in nb and not re.match(r'\d\d\w?_', nb) and nb not in known)
    found = {'Start': start, 'Tutorials': pick(under('tutorials')), 'The method': numbered + lens + other,
             'Experiments': pick(under('experiments')), 'API': [dict(text='All names', href='api.md')]}
    return {k: v for k,v in found.items() if v}

def write_nav(dst, names):
    "Put the sections into the staged `sidebar.yml` and their first pages into the bar at the top."
    secs = sections(names, dst)
    bar = [dict(section=k, contents=v) for k,v in secs.items()]
    (dst/'sidebar.yml').write_text(yaml.safe_dump(dict(website=dict(sidebar=dict(contents=bar))),
                                                  sort_keys=False, allow_unicode=True), encoding='utf-8')
    q = dst/'_quarto.yml'
    cfg = yaml.safe_load(q.read_text(encoding='utf-8'))
    cfg['website']['navbar']['left'] = [dict(text=k, href=v[0]['href'])
                                        for k,v in secs.items() if k != 'Start']
    q.write_text(yaml.safe_dump(cfg, sort_keys=False, allow_unicode=True), encoding='utf-8')
