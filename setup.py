"Metadata comes from settings.ini; edit there, not here."
from configparser import ConfigParser
from pathlib import Path
import shlex, setuptools

root = Path(__file__).parent
cp = ConfigParser(delimiters=['='])
cp.read(root/'settings.ini', encoding='utf-8')
cfg = cp['DEFAULT']

def reqs(key): return shlex.split(cfg.get(key, ''), comments=True)
def lines(key): return [o.strip() for o in cfg.get(key, '').splitlines() if o.strip()]

statuses = ['1 - Planning', '2 - Pre-Alpha', '3 - Alpha', '4 - Beta', '5 - Production/Stable', '6 - Mature',
            '7 - Inactive']
spdx = dict(apache2='Apache-2.0', mit='MIT', bsd3='BSD-3-Clause')

setuptools.setup(
    name = cfg['lib_name'],
    version = cfg['version'],
    description = cfg['description'],
    keywords = cfg['keywords'],
    author = cfg['author'],
    author_email = cfg['author_email'],
    license = spdx.get(cfg['license'].lower(), cfg['license']),
    classifiers = ['Development Status :: ' + statuses[int(cfg['status'])-1],
                   'Intended Audience :: ' + cfg['audience'].title(),
                   'Natural Language :: ' + cfg['language'].title(),
                   *[f'Programming Language :: Python :: {v}'
                     for v in ('3', '3.10', '3.11', '3.12', '3.13')]],
    url = cfg['git_url'],
    project_urls = {'Documentation': cfg['doc_host']+cfg['doc_baseurl']},
    packages = setuptools.find_packages(include=[cfg['lib_path'], cfg['lib_path']+'.*']),
    package_data = {cfg['lib_path']: ['weights/*', 'photos/*', 'recipes/*', '*.json', '*.tsv']},   # what the code reads beside itself
    python_requires = '>=' + cfg['min_python'],
    install_requires = reqs('requirements') + reqs('pip_requirements'),
    extras_require = {k: reqs(f'{k}_requirements') for k in ('dev', 'export', 'explore', 'bench')},
    entry_points = {'console_scripts': lines('console_scripts'),
                    'nbdev': [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]},
    long_description = (root/'README.md').read_text(encoding='utf-8') if (root/'README.md').exists() else '',
    long_description_content_type = 'text/markdown',
    zip_safe = False)
