"""The site from the notebooks, without Quarto (people who have it can run `nbdev_docs` on the same sources) and without a network.

    python tools/build_docs.py [--out DIR] [--katex DIR]   build the site (default: the doc_path of settings.ini)
    python tools/build_docs.py --readme                    write README.md from nbs/index.ipynb
    python tools/build_docs.py --check-readme              fail if README.md is not what nbs/index.ipynb says
"""
import argparse, re, shutil, sys
from pathlib import Path
from nbdev.config import get_config
from docs_api import api_page, modules, source_urls
from docs_readme import readme

cfg  = get_config()
root = cfg.config_path
doc_url = (cfg.doc_host + cfg.doc_baseurl).rstrip('/')

def check_readme():
    "Exit with a message unless README.md is current."
    index, out = cfg.nbs_path/'index.ipynb', root/'README.md'
    if not index.exists(): print('no nbs/index.ipynb, README.md not checked'); return
    if out.read_text(encoding='utf-8') != readme(index):
        sys.exit('README.md is not what nbs/index.ipynb says: run python tools/build_docs.py --readme')
    print('README.md is current')

def write_readme():
    "README.md, if there is an index to make it from."
    if (cfg.nbs_path/'index.ipynb').exists():
        (root/'README.md').write_text(readme(cfg.nbs_path/'index.ipynb'), encoding='utf-8')

def names_from_module(begin):
    "Let nbdev's documenting shell start with the names of the exported module."
    def begin_(self):
        begin(self)
        exp = next((m[1]
                    for c in self.nb.cells
                    if (m := re.search(r'^#\|\s*default_exp\s+(\S+)', c.source or '', re.M))), None)
        if exp and hasattr(self, 'k'):
            self.k.run_cell(f'import importlib; globals().update({{k: v for k,v in '
                            f'vars(importlib.import_module("{cfg.lib_path.name}.{exp}")).items() if '
                            f'k[:2] != "__"}})')
    return begin_

def process():
    "What `nbdev_proc_nbs` does, but it never installs Quarto, and it runs no cell of a notebook: names come from the exported modules."
    from nbdev import processors
    from nbdev.quarto import refresh_quarto_yml, nbdev_sidebar
    from nbdev.serve import proc_nbs
    processors.exec_show_docs.begin = names_from_module(processors.exec_show_docs.begin)
    processors._do_eval = processors._is_showdoc
    sys.path.insert(0, str(root))
    refresh_quarto_yml(); nbdev_sidebar.__wrapped__()
    return proc_nbs(cfg.nbs_path, n_workers=0, force=True)

def page_of(names):
    "{'00_core.ipynb': 'core.html', …}"
    return {nb: page[:-len('.ipynb')] + '.html' for nb, page in names.items()}

def symbols(pages):
    "{exported name: ['page.html#anchor', …]}, the notebooks of the method before the experiments, in their order."
    out = {}
    for n in (n for _, ns in modules(cfg.lib_path) for n in ns if n.notebook in pages):
        out.setdefault(n.name, []).append(f'{pages[n.notebook]}#{n.anchor}')
    return out

def build_site(out, katex):
    "Process, stage, build, polish."
    from docs_stage import stage
    from docs_nav import write_nav
    from docs_polish import polish, foreign
    from smalldocs.site import build
    src = root/'_site_src'
    names = stage(process(), cfg.nbs_path, src, doc_url, f'{cfg.git_url}/blob/{cfg.branch}',
                  source_urls(cfg.lib_path, cfg.git_url, cfg.branch))
    pages = page_of(names)
    (src/'api.md').write_text(api_page(cfg.lib_path, names, cfg.git_url, cfg.branch), encoding='utf-8')
    write_nav(src, names)
    site = build(src, quiet=True)
    polish(site.out, katex, symbols(pages))
    shutil.rmtree(out, ignore_errors=True); shutil.move(site.out, out); shutil.rmtree(src)
    print(f'{len(list(out.rglob("*.html")))} pages in {out}; from other hosts: {foreign(out) or "nothing"}')
    for w in site.warnings:
        if 'output-file' not in w: print('warning:', w)

def find_katex(given):
    "KaTeX's dist folder, or None with a note."
    katex = Path(given) if given else root/'node_modules/katex/dist'
    if (katex/'katex.min.js').exists(): return katex
    print(f'note: no KaTeX in {katex}, formulas stay as TeX: install node and run `npm ci`')

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', default=cfg.doc_path, type=Path); p.add_argument('--katex')
    p.add_argument('--readme', action='store_true'); p.add_argument('--check-readme', action='store_true')
    a = p.parse_args()
    if a.check_readme: return check_readme()
    write_readme()
    if not a.readme: build_site(a.out.absolute(), find_katex(a.katex))

if __name__ == '__main__': main()
