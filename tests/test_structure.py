"The order of the book is the import order, and the package is what the notebooks say."

import ast
import filecmp
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import book
from book import NBS, ROOT, book as whole_book, chapters, ids, imports_of

PACKAGE = ROOT / 'seqlit'
HEAVY = {'matplotlib', 'ipywidgets', 'sacrebleu', 'pandas', 'IPython'}
# Commands that only count words must not wait for torch, and `--help` must answer at once.
TORCH_FREE = [
    'seqlit',
    'seqlit.base.errors',
    'seqlit.base.registry',
    'seqlit.base.config',
    'seqlit.base.plugins',
    'seqlit.base.files',
    'seqlit.base.config_file',
    'seqlit.data.dictionary',
    'seqlit.data.text',
    'seqlit.data.indexed',
    'seqlit.data.binarize',
    'seqlit.search.scorers',
    'seqlit.cli.preprocess',
    'seqlit.cli.main',
]


def numbers() -> dict[str, int]:
    "Each module's number in the book."
    return {notebook.module: notebook.number for notebook in chapters()}


def wrong_order(notebook: book.Notebook, known: dict[str, int]) -> list[str]:
    "The imports of a notebook that do not point backwards; outside exports it may import itself."
    found = []
    for cell in notebook.code:
        for name, line in imports_of(cell.tree):
            where = f'{notebook.name} cell {cell.number} line {line}: {name}'
            if name.startswith('.'):
                found.append(f'{where} is relative; write it from seqlit on')
            elif name == 'seqlit':
                continue
            elif name not in known:
                found.append(f'{where} is no notebook\'s module')
            elif notebook.number is None:
                continue
            elif known[name] > notebook.number or cell.is_exported and known[name] == notebook.number:
                found.append(f'{where} is number {known[name]:03}, not smaller')
    return found


@pytest.mark.parametrize('notebook', whole_book(), ids=ids)
def test_imports_point_to_smaller_numbers(notebook):
    wrong = wrong_order(notebook, numbers())
    assert not wrong, '\n'.join(wrong)


def test_numbers_and_modules_are_unique():
    seen = {}
    for notebook in whole_book():
        if notebook.path.name == 'index.ipynb':
            continue
        assert notebook.number is not None and re.match(
            r'\d{3}_[a-z]', notebook.path.name
        ), f'{notebook.name} does not start with three digits'
        for key in [notebook.number, notebook.module]:
            if key is None:
                continue
            assert key not in seen, f'{notebook.name} and {seen[key]} both have {key}'
            seen[key] = notebook.name


@pytest.mark.parametrize('notebook', chapters(), ids=ids)
def test_module_is_folder_and_name(notebook):
    "data/100_dictionary.ipynb is seqlit.data.dictionary, so that either leads to the other."
    folder, name = notebook.path.parent.relative_to(NBS).parts, notebook.path.stem.split('_', 1)[1]
    expected = {('hub', 'builtins'): 'seqlit.builtins', ('cli', 'all'): 'seqlit.all'}.get((*folder, name))
    assert notebook.module == (expected or '.'.join(['seqlit', *folder, name]))


def package_imports() -> dict[str, set[str]]:
    "What each exported module imports of the others, in functions too."
    modules = {}
    for path in PACKAGE.rglob('*.py'):
        name = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
        if name.endswith(('_modidx', '.__init__')):
            continue
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                parts = name.split('.')[: -node.level] if node.level else []
                base = '.'.join(parts + ([node.module] if node.module else []))
                found |= {base} | {f'{base}.{alias.name}' for alias in node.names}
        modules[name] = found
    return {name: found & modules.keys() for name, found in modules.items()}


def ring(graph: dict[str, set[str]]) -> list[str]:
    "A ring in a graph, or nothing."
    done, path = set(), []

    def visit(node):
        if node in path:
            return path[path.index(node) :] + [node]
        if node in done:
            return []
        path.append(node)
        for other in sorted(graph[node]):
            if found := visit(other):
                return found
        done.add(path.pop())
        return []

    return next(filter(None, map(visit, sorted(graph))), [])


def test_no_ring_of_imports():
    assert ring({'a': {'b'}, 'b': {'c'}, 'c': {'b'}}) == ['b', 'c', 'b']
    found = ring(package_imports())
    assert not found, ' -> '.join(found)


@pytest.fixture(scope='module')
def exported(tmp_path_factory) -> Path:
    "A fresh export of the notebooks, with cleaned notebooks, in a folder of its own."
    folder = tmp_path_factory.mktemp('export')
    shutil.copy(ROOT / 'settings.ini', folder)
    shutil.copytree(NBS, folder / 'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    env = os.environ | dict(PYTHONUTF8='1')
    code = 'import nbdev.clean, nbdev.doclinks; nbdev.doclinks.nbdev_export(); nbdev.clean.nbdev_clean()'
    done = subprocess.run([sys.executable, '-c', code], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def same(left: Path, right: Path, pattern: str) -> list[str]:
    "How the files of a kind in two folders differ."
    here, there = (
        {
            path.relative_to(folder).as_posix()
            for path in folder.rglob(pattern)
            if not any(part[0] == '.' for part in path.relative_to(folder).parts)
        }
        for folder in (left, right)
    )
    changed = [name for name in here & there if not filecmp.cmp(left / name, right / name, shallow=False)]
    return sorted(
        [f'{name}: only exported' for name in here - there]
        + [f'{name}: changed' for name in changed]
        + [f'{name}: its notebook is gone' for name in there - here]
    )


def test_modules_equal_their_notebooks(exported):
    found = same(exported / 'seqlit', PACKAGE, '*.py')
    assert not found, 'run nbdev_export, and remove modules without a notebook:\n' + '\n'.join(found)


def test_notebooks_are_clean(exported):
    found = same(exported / 'nbs', NBS, '*.ipynb')
    assert not found, 'run nbdev_clean:\n' + '\n'.join(found)


def test_readme_is_the_front_page():
    done = subprocess.run(
        [sys.executable, ROOT / 'tools' / 'readme.py', '--check'], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('module', TORCH_FREE)
def test_imports_without_torch(module):
    path = ROOT.joinpath(*module.split('.'))
    assert path.with_suffix('.py').exists() or (path / '__init__.py').exists(), f'no module {module}'
    code = (
        f'import sys; sys.modules["torch"] = None; import {module}\n'
        f'heavy = {HEAVY} & sys.modules.keys(); assert not heavy, heavy'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_base_module_is_watched():
    watched = {name for name in numbers() if name.startswith('seqlit.base.')} - {'seqlit.base.unpickle'}
    assert watched <= set(
        TORCH_FREE
    ), f'add to TORCH_FREE or say why not: {sorted(watched - set(TORCH_FREE))}'
