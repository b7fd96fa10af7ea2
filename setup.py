"Everything about the package stands in settings.ini, which nbdev reads too; this file hands it to setuptools."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.sdist import sdist

parser = ConfigParser(delimiters=['='], interpolation=None)
parser.read(Path(__file__).with_name('settings.ini'), encoding='utf-8')
cfg = parser['DEFAULT']
readme = Path(__file__).with_name('README.md').read_text(encoding='utf-8')
STATUSES = ['Planning', 'Pre-Alpha', 'Alpha', 'Beta', 'Production/Stable', 'Mature', 'Inactive']
PYTHONS = ['3.10', '3.11', '3.12', '3.13']


class SourceDist(sdist):
    "Carries what the package is made from: the notebooks, with their tests, and settings.ini."

    def make_distribution(self):
        for name in ['settings.ini', 'constraints.txt', 'CHANGELOG.md', '_quarto.yml', '.pytest.ini']:
            self.filelist.include(name)
        for folder, kinds in {
            'nbs': ['ipynb', 'yml', 'css', 'svg', 'woff', 'txt', 'py'],
            'tests': ['py'],
            'tools': ['py'],
        }.items():
            for kind in kinds:
                self.filelist.recursive_include(folder, f'*.{kind}')
        self.filelist.global_exclude('*-checkpoint.ipynb')
        super().make_distribution()


setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=readme.replace('](nbs/', f"]({cfg['git_url']}/blob/{cfg['branch']}/nbs/"),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    author_email=cfg['author_email'],
    keywords=cfg['keywords'].split(),
    license_expression='Apache-2.0',
    license_files=['LICENSE'],
    url=cfg['git_url'],
    project_urls={
        'Documentation': cfg['doc_host'] + cfg['doc_baseurl'],
        'Changelog': cfg['git_url'] + '/blob/' + cfg['branch'] + '/CHANGELOG.md',
        'Issues': cfg['git_url'] + '/issues',
    },
    classifiers=[
        f"Development Status :: {cfg['status']} - {STATUSES[int(cfg['status']) - 1]}",
        f"Intended Audience :: {cfg['audience']}",
        'Intended Audience :: Science/Research',
        'Operating System :: OS Independent',
        *(f'Programming Language :: Python :: {version}' for version in PYTHONS),
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Text Processing :: Linguistic',
    ],
    packages=find_packages(include=[cfg['lib_path'], cfg['lib_path'] + '.*']),
    python_requires='>=' + cfg['min_python'],
    install_requires=cfg['requirements'].split(),
    extras_require={
        key.removesuffix('_requirements').replace('_', '-'): value.split()
        for key, value in cfg.items()
        if key.endswith('_requirements')
    },
    entry_points={
        'console_scripts': cfg['console_scripts'].split(),
        'nbdev': [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"],
    },
    cmdclass={'sdist': SourceDist},
)
