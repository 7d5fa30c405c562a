"Run notebooks in place and keep their outputs, skipping the cells that nbdev_test skips: python tools/execnbs.py [--flags 'slow'] NB…"
import base64, io, os, sys
from pathlib import Path
from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell
from fastcore.all import working_directory
from nbdev.clean import clean_nb
from nbdev.config import get_config
from nbdev.frontmatter import FrontmatterProc
from nbdev.process import NBProcessor
from PIL import Image

def with_palette(png, most=4000):
    "A PNG (base64) of few colours, as plots are, with a palette: a third of the bytes, no channel off by more than a few of 255; photographs stay."
    im = Image.open(io.BytesIO(base64.b64decode(png))).convert('RGB')
    if not im.getcolors(most): return png
    im.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(out := io.BytesIO(), 'png', optimize=True,
        dpi=im.info.get('dpi'))
    small = base64.b64encode(out.getvalue()).decode()
    return small if len(small) < len(png) else png

def run(path, flags=''):
    "Execute one notebook; cells marked with a flag of `tst_flags` run only if it is named in `flags`, else keep their outputs."
    cfg, path = get_config(), Path(path).absolute()
    sys.path.insert(0, str(cfg.config_path))
    skip = set(cfg.tst_flags.split()) - set(flags.split())
    parsed = NBProcessor(path, procs=FrontmatterProc, process=True).nb
    directives = {c.id: (getattr(c, 'directives_', None) or {}) for c in parsed.cells if 'id' in c}
    def no_eval(c):
        d = directives.get(c.get('id'), {})
        return (c.cell_type != 'code' or 'nbdev_export(' in c.source or d.get('eval:', [''])[0].lower()
                == 'false' or bool(skip & d.keys()))
    nb = read_nb(path)
    for c in nb.cells:
        if not no_eval(c): c['outputs'] = []     # what a cell no longer prints must not stay
    with working_directory(path.parent): CaptureShell(path).run_all(nb, exc_stop=True, preproc=no_eval)
    clean_nb(nb)
    for o in (o for c in nb.cells for o in c.get('outputs', []) if 'image/png' in o.get('data', {})):
        o['data']['image/png'] = with_palette(''.join(o['data']['image/png']))
    write_nb(nb, path)

if __name__ == '__main__':
    args = sys.argv[1:]
    flags = args.pop(args.index('--flags')+1) if '--flags' in args else ''
    if 'cuda' not in flags: os.environ['CUDA_VISIBLE_DEVICES'] = ''   # some notebooks fork workers, see 07a
    for f in args:
        if f != '--flags': run(f, flags); print('ran', f)
