"What is built and what it asks for: wheel, source distribution, entry points, pinned versions."

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from book import ROOT

PYTHONS = ['3.10', '3.11', '3.12', '3.13']


@pytest.fixture(scope='module')
def settings():
    "What stands in settings.ini."
    parser = ConfigParser(delimiters=['='], interpolation=None)
    parser.read(ROOT / 'settings.ini', encoding='utf-8')
    return parser['DEFAULT']


@pytest.fixture(scope='module')
def built(tmp_path_factory) -> dict[str, Path]:
    "The source distribution, made from a copy of the tree, and the wheel that is built from it alone."
    source, out = tmp_path_factory.mktemp('source') / 'seqlit', tmp_path_factory.mktemp('dist')
    unwanted = shutil.ignore_patterns(
        '.*', '__pycache__', '*.egg-info', 'build', 'dist', '_docs', '_proc', 'node_modules'
    )
    shutil.copytree(ROOT, source, ignore=unwanted)
    shutil.copy(ROOT / '.pytest.ini', source)
    done = subprocess.run(
        [sys.executable, '-m', 'build', '--no-isolation', '--outdir', str(out), str(source)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return {'wheel': next(out.glob('*.whl')), 'sdist': next(out.glob('*.tar.gz'))}


def modules() -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / 'seqlit').rglob('*.py')}


def test_wheel_is_the_package_and_nothing_else(built):
    names = zipfile.ZipFile(built['wheel']).namelist()
    assert {name for name in names if '.dist-info/' not in name} == modules()
    assert any(name.endswith('licenses/LICENSE') for name in names)


def test_sdist_has_what_it_is_made_from(built):
    names = {name.split('/', 1)[1] for name in tarfile.open(built['sdist']).getnames() if '/' in name}
    notebooks = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / 'nbs').rglob('*.ipynb')
        if '.ipynb_checkpoints' not in path.parts
    }
    wanted = (
        modules()
        | notebooks
        | {
            'settings.ini',
            'setup.py',
            'README.md',
            'LICENSE',
            'CHANGELOG.md',
            'constraints.txt',
            '.pytest.ini',
        }
    )
    assert wanted <= names, sorted(wanted - names)
    assert not [
        name
        for name in names
        if re.search(r'\.ipynb_checkpoints|__pycache__|\.pyc$|^(_docs|_proc|build|dist)/', name)
    ]


def test_metadata(built, settings):
    wheel = zipfile.ZipFile(built['wheel'])
    text = wheel.read(next(name for name in wheel.namelist() if name.endswith('METADATA'))).decode()
    head, body = text.split('\n\n', 1)
    for line in [
        f"Version: {settings['version']}",
        'License-Expression: Apache-2.0',
        'Requires-Python: >=3.10',
        'Provides-Extra: dev',
    ]:
        assert line in head.splitlines(), line
    assert (
        body.startswith('# seqlit') and '](nbs/' not in body
    ), 'links of the long description are whole ones'


def test_version_has_one_home(settings):
    text = (ROOT / 'seqlit' / '__init__.py').read_text(encoding='utf-8')
    assert re.search(r"__version__ = ['\"](.+)['\"]", text)[1] == settings['version']
    assert f"## [{settings['version']}]" in (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8')


def test_commands_exist(settings):
    "Every console script names a function that is there."
    for line in settings['console_scripts'].split():
        module, function = line.split('=')[1].split(':')
        text = ROOT.joinpath(*module.split('.')).with_suffix('.py').read_text(encoding='utf-8')
        assert re.search(
            rf'^(def {function}\(|{function} = )', text, re.M
        ), f'{line}: no {function} in {module}'


def pins() -> list[Requirement]:
    lines = (ROOT / 'constraints.txt').read_text(encoding='utf-8').splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith('#')]


@pytest.mark.parametrize('python', PYTHONS)
def test_each_requirement_is_pinned_once(settings, python):
    where = default_environment() | dict(python_version=python, python_full_version=f'{python}.9', extra='')
    found = {}
    for pin in pins():
        assert re.fullmatch(r'==[^*]+', str(pin.specifier)), f'{pin} is not one version'
        if pin.marker is None or pin.marker.evaluate(where):
            name = canonicalize_name(pin.name)
            assert name not in found, f'{name} is pinned twice on Python {python}'
            found[name] = str(pin.specifier)[2:]
    for key in ['requirements', 'dev_requirements']:
        for wanted in map(Requirement, settings[key].split()):
            if wanted.marker and not wanted.marker.evaluate(where):
                continue
            version = found.get(canonicalize_name(wanted.name))
            assert version, f'constraints.txt does not pin {wanted.name} on Python {python}'
            assert wanted.specifier.contains(version), f'{wanted.name} {version} is not {wanted.specifier}'


@pytest.mark.skipif(
    os.environ.get('CI') != 'true', reason='only in CI is the environment nothing but the README\'s line'
)
def test_everything_installed_is_pinned():
    known = {
        canonicalize_name(pin.name): pin for pin in pins() if pin.marker is None or pin.marker.evaluate()
    }
    given = re.compile(r'nvidia-|cuda-|triton$|seqlit$|pip$')
    loose = [
        f'{dist.name}=={dist.version}'
        for dist in metadata.distributions()
        if not given.match(canonicalize_name(dist.name))
        and (
            canonicalize_name(dist.name) not in known
            or not known[canonicalize_name(dist.name)].specifier.contains(dist.version)
        )
    ]
    assert not loose, f'not as in constraints.txt: {", ".join(sorted(loose))}'


def test_readme_lines_are_complete():
    "Both lines start from nothing, and .ci/run finds the second by its mark."
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    for mark, end in [
        ('run the demonstration', '.venv/bin/seqlit demo'),
        ('run the tests', '.venv/bin/pytest'),
    ]:
        line = re.search(rf'<!-- {mark} -->\n```sh\n(.+)\n```', text)[1]
        assert line.startswith(
            'python3 -m venv .venv && .venv/bin/pip install -c constraints.txt '
        ) and line.endswith(end)


def test_workflows_cover_the_pythons(settings):
    text = (ROOT / '.github' / 'workflows' / 'tests.yml').read_text(encoding='utf-8')
    for python in PYTHONS:
        assert f"'{python}'" in text
    assert settings['min_python'] == PYTHONS[0]
