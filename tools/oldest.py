"The oldest versions that settings.ini allows, as constraints for pip: `make test-oldest` tests with them."
import re, shlex
from configparser import ConfigParser
from pathlib import Path

def oldest(cfg):
    "What `>=` says, at that very minor version; what another line pins stays pinned."
    lines = [r for k in ('requirements','dev_requirements','export_requirements') for r in shlex.split(cfg[k])]
    pinned = {re.split('[=<>; ]', r)[0] for r in lines if '==' in r}
    low = dict(m.groups() for r in lines if (m := re.match(r'([\w.-]+)>=([\w.]+)', r)))
    return [f'{k}=={v}{"" if v.count(".") > 1 else ".*"}' for k,v in sorted(low.items()) if k not in pinned]

if __name__ == '__main__':
    cp = ConfigParser(delimiters=['=']); cp.read(Path(__file__).resolve().parents[1]/'settings.ini', encoding='utf-8')
    print('\n'.join(oldest(cp['DEFAULT'])))
