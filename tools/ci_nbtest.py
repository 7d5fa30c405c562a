"Test every notebook with nbdev_test, each in a process of its own, and close with the line 'N passed, N failed'. Arguments: [--n_workers 2] [NB…]"
import os, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from nbdev.config import get_config
from nbdev.doclinks import nbglob

def test(nb):
    "Run one notebook with nbdev_test of this environment; (path, passed, seconds, output)."
    tool, t = Path(sys.executable).with_name('nbdev_test'), time.time()
    p = subprocess.run([tool, '--path', nb, '--n_workers', '1', '--do_print'], stdin=subprocess.DEVNULL,
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                       env={**os.environ, 'CUDA_VISIBLE_DEVICES': ''})   # some fork workers, see 07a
    return nb, p.returncode == 0, time.time()-t, p.stdout

def main(args):
    n = int(args.pop(args.index('--n_workers')+1)) if '--n_workers' in args else 2
    nbs = ([Path(a).absolute() for a in args if a != '--n_workers']
           or sorted(nbglob(get_config().nbs_path, as_path=True)))
    failed = []
    with ThreadPoolExecutor(n) as pool:
        for nb, ok, seconds, out in pool.map(test, nbs):
            print(f'{"ok" if ok else "FAILED":6} {seconds:5.0f} s  {os.path.relpath(nb)}', flush=True)
            if not ok: failed.append(nb); print(out, flush=True)
    print(f'{len(nbs)-len(failed)} passed, {len(failed)} failed')
    return bool(failed) or not nbs

if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
