"What a power cut may leave: a file system that keeps only what was synced, and of the rest whatever hurts most."
import os, random, shutil, warnings
from pathlib import Path
import torch
from dtir_nb import checkpoints as ck

class Inode:
    def __init__(self, isdir):
        self.isdir, self.data, self.durable, self.names, self.synced, self.pending = (isdir, b'',
            b'', {}, {}, [])
    # a directory: `names` as programs see them, `synced` as of the last fsync, `pending` changes since, each a dict name -> Inode or None

class Recorder:
    """Stands in for `os` inside `checkpoints`: passes calls on, and keeps a second account of what a disk must have after each of them.
    At any moment `crash(kind, rnd, to)` writes out a state that POSIX allows after a power cut at that moment."""
    def __init__(self, root, after=lambda n: None):
        self.root, self.top, self.fds, self.n, self.after = Path(root), Inode(True), {}, 0, after
    def _at(self, path):
        node = self.top
        for part in Path(path).relative_to(self.root).parts: node = node.names[part]
        return node
    def _change(self, *changes):   # of one directory, at once: (path, Inode or None)
        d = self._at(Path(changes[0][0]).parent); c = {Path(p).name: i for p,i in changes}
        d.pending.append(c); _apply(d.names, c)
    def _did(self): self.n += 1; self.after(self.n)
    def mkdir(self, p, *a): os.mkdir(p, *a); self._change((p, Inode(True))); self._did()
    def open(self, p, flags, *a):
        fd = os.open(p, flags, *a)
        if flags & os.O_CREAT: self._change((p, Inode(False))); self._did()
        self.fds[fd] = self._at(p)
        return fd
    def write(self, fd, data):
        n = os.write(fd, data); self.fds[fd].data += bytes(data[:n]); self._did(); return n
    def fsync(self, fd):
        i = self.fds[fd]; os.fsync(fd)
        if i.isdir: i.synced, i.pending = dict(i.names), []
        else: i.durable = i.data
        self._did()
    def close(self, fd): self.fds.pop(fd, None); os.close(fd)
    def rename(self, a, b): os.rename(a, b); self._change((a, None), (b, self._at(a))); self._did()
    replace = rename
    def unlink(self, p): os.unlink(p); self._change((p, None)); self._did()
    def rmdir(self, p): os.rmdir(p); self._change((p, None)); self._did()
    def __getattr__(self, name): return getattr(os, name)

    def crash(self, kind, rnd, to):
        "`kind`: 'least' keeps only what was synced, 'names' keeps names without their data, 'torn' half the data, 'random' any mixture."
        _dump(self.top, Path(to), kind, rnd)

def _apply(names, change):
    for k,i in change.items():
        if i is None: names.pop(k, None)
        else: names[k] = i

def _dump(node, to, kind, rnd):
    to.mkdir(exist_ok=True); names = dict(node.synced)
    for c in node.pending:
        if {'least': False, 'names': True, 'torn': True, 'random': rnd.random() < .5}[kind]: _apply(names, c)
    for k,i in names.items():
        if i.isdir: _dump(i, to/k, kind, rnd); continue
        lost = i.data[len(i.durable):]
        keep = {'least': 0, 'names': 0, 'torn': len(lost)//2,
                'random': rnd.choice((0, len(lost)//2, len(lost)))}[kind]
        (to/k).write_bytes(i.durable + lost[:keep])

def cuts(tmp, break_it=None, kinds=('least','names','torn','random')):
    "Save steps 1..4; after every operation cut the power in each way; what loads must be the last finished save or the one under way. (operations, what was lost)"
    saved, lost, rnd, real = [0], [], random.Random(0), ck.os
    states = {k: {'model': {'w': torch.full((50,), float(k))}} for k in range(5)}
    def after(n):
        ck.os = real
        for kind in kinds: look(n, kind)
        ck.os = rec
    def look(n, kind):
        to = tmp/'after'; shutil.rmtree(to, ignore_errors=True); rec.crash(kind, rnd, to)
        try: c = ck.load_checkpoint(to/'run')
        except ck.CheckpointError as e: return lost.append((n, kind, str(e)))
        got = c.step if c else 0
        if (got not in (saved[0], saved[0]+1)
            or (c and not torch.equal(c.tensors['model']['w'], states[got]['model']['w']))):
            lost.append((n, kind, f'{got} where {saved[0]} was safe'))
    rec = Recorder(tmp/'disk', after); (tmp/'disk').mkdir()
    ck.os = rec
    if break_it: break_it(rec)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            for k in range(1, 5): ck.save_checkpoint(tmp/'disk'/'run', k, states[k], {'k': k}); saved[0] = k
    finally: ck.os = real
    return rec.n, lost

def of(k):
    n = torch.nn.Linear(40, 4)
    torch.nn.init.constant_(n.weight, float(k))
    torch.nn.init.zeros_(n.bias); return n

def weight(p):
    try: return ck.read_net(p)[0]['weight'][0,0].item()
    except ck.CheckpointError as e: return str(e)

def cuts_of_a_file(tmp, put, see=Path.read_bytes, kinds=('least','names','torn','random')):
    "put(path, k), k = 1..3; after every operation cut the power in each way: the file must be that of the last finished put, or of the one under way. (operations, what was torn)"
    tmp.mkdir(exist_ok=True); whole = {0: None}
    for k in range(1, 4): put(tmp/'want', k); whole[k] = see(tmp/'want')
    done, torn, rnd, real = [0], [], random.Random(0), ck.os
    def after(n):
        ck.os = real
        for kind in kinds:
            to = tmp/'after'; shutil.rmtree(to, ignore_errors=True); rec.crash(kind, rnd, to)
            got = see(to/'file') if (to/'file').exists() else None
            if got not in (whole[done[0]], whole.get(done[0]+1, b'')): torn.append((n, kind, done[0], got))
        ck.os = rec
    rec = Recorder(tmp/'disk', after); (tmp/'disk').mkdir(); ck.os = rec
    try:
        for k in range(1, 4): put(tmp/'disk'/'file', k); done[0] = k
        after(rec.n)
    finally: ck.os = real
    return rec.n, torn
