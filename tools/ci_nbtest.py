"Run nbdev_test and close with the line 'N passed, N failed'"
import re, subprocess, sys
p = subprocess.Popen(['nbdev_test','--do_print',*sys.argv[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
out = []
for l in p.stdout: out.append(l); sys.stdout.write(l); sys.stdout.flush()
rc = p.wait(); txt = ''.join(out)
done = re.findall(r'^- Completed (\S+\.ipynb)', txt, flags=re.M)
m = re.search(r'Tests Failed On The Following Notebooks:\n=+\n((?:\t\S+\n)+)', txt)
failed = m[1].split() if m else []
lost = len(set(re.findall(r'^Starting (\S+\.ipynb)', txt, flags=re.M)) - set(done))   # worker died
nf = len(failed)+lost
if rc and not nf: nf = 1
if not done: nf = max(nf,1)
print(f'{max(len(done)-len(failed),0)} passed, {nf} failed')
sys.exit(rc or bool(nf))
