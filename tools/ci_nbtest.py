"Run nbdev_test, each notebook of nbs/, and close with the line 'N passed, N failed'. Arguments are handed on, e.g. --n_workers 2."
import re, subprocess, sys
from pathlib import Path

def run(args):
    "Run nbdev_test of this environment, echoing its output; return (exit code, output)."
    tool = Path(sys.executable).with_name('nbdev_test')
    p, out = subprocess.Popen([tool, '--do_print', *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True), []
    for line in p.stdout: out.append(line); sys.stdout.write(line); sys.stdout.flush()
    return p.wait(), ''.join(out)

def count(rc, text):
    "Notebooks passed and failed; one that was started and never completed has failed, too."
    done = re.findall(r'^- Completed (\S+\.ipynb)', text, flags=re.M)
    m = re.search(r'Tests Failed On The Following Notebooks:\n=+\n((?:\t\S+\n)+)', text)
    failed = m[1].split() if m else []
    lost = len(set(re.findall(r'^Starting (\S+\.ipynb)', text, flags=re.M)) - set(done))
    bad = len(failed)+lost or bool(rc) or not done
    return max(len(done)-len(failed), 0), int(bad)

if __name__ == '__main__':
    rc, text = run(sys.argv[1:])
    passed, failed = count(rc, text)
    print(f'{passed} passed, {failed} failed')
    sys.exit(rc or bool(failed))
