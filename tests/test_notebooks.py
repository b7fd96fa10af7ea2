"Every notebook runs from its first cell to its last, in a process of its own."

import importlib.util
import json
import os
import time
from pathlib import Path

import pytest

import book

LIMIT = 240  # seconds; style.md allows 20 on two cores, and a busy machine is slower
SKIPPED = {'.ipynb', '.ipynb_checkpoints'}

spec = importlib.util.spec_from_file_location('exec_nbs', book.ROOT / 'tools' / 'exec_nbs.py')
exec_nbs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(exec_nbs)


def files(folder: Path) -> set[str]:
    "What lies in a folder, notebooks aside."
    return {path.name for path in folder.iterdir() if path.suffix not in SKIPPED and path.name not in SKIPPED}


@pytest.mark.parametrize(
    'notebook',
    exec_nbs.find_notebooks([str(book.NBS)]),
    ids=lambda path: path.relative_to(book.NBS).as_posix(),
)
def test_notebook(notebook, request):
    before = files(notebook.parent)
    code, report = exec_nbs.start(
        notebook, store=False, slow=request.config.getoption('--slow'), timeout=LIMIT
    )
    if code:
        pytest.fail(report or f'{notebook.name} ended with code {code} and no report', pytrace=False)
    left = files(notebook.parent) - before
    assert (
        not left
    ), f'{notebook.name} leaves files beside itself: {sorted(left)}; let it write into a temporary folder'


@pytest.fixture
def failing(tmp_path):
    "A function that runs a notebook of the given code cells and returns exit code and report."

    def run(*sources, timeout=60, slow=False):
        cells = [
            dict(cell_type='code', id=f'id{i}', metadata={}, source=s, outputs=[], execution_count=None)
            for i, s in enumerate(sources)
        ]
        path = tmp_path / '00_case.ipynb'
        path.write_text(
            json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)), encoding='utf-8'
        )
        return exec_nbs.start(path, store=False, slow=slow, timeout=timeout)

    return run


def test_failure_names_notebook_and_cell(failing):
    code, report = failing('def f():\n    return 1 / 0', 'x = 2', 'print("so far")\nf()')
    assert code == 1
    for part in [
        '00_case.ipynb, cell 3 (id id2): ZeroDivisionError',
        '   2 | f()',
        'so far',
        '<cell 1>", line 2',
        'return 1 / 0',
    ]:
        assert part in report, report
    assert 'IPython' not in report


def test_syntax_error_is_reported(failing):
    code, report = failing('x = 1', 'y = = 2')
    assert code == 1 and 'cell 2' in report and 'SyntaxError' in report


def test_skipped_cells(failing):
    assert failing('#| eval: false\n1 / 0', '#| slow\n1 / 0', '#| notest\n1 / 0')[0] == 0
    code, report = failing('#| eval: false\n1 / 0', '#| slow\nraise OSError', slow=True)
    assert code == 1 and 'cell 2' in report


@pytest.mark.skipif(os.name != 'posix', reason='process groups are a POSIX thing')
def test_endless_notebook_is_stopped_with_its_children(failing, tmp_path):
    beats = tmp_path / 'beats'
    child = f'import time\nwhile True: open({str(beats)!r}, "a").write("."); time.sleep(0.05)'
    cell = (
        f'import subprocess, sys, time\nsubprocess.Popen([sys.executable, "-c", {child!r}])\ntime.sleep(600)'
    )
    for seconds in [4, 16, 64]:  # a busy machine may need longer to come as far as the cell
        code, report = failing(cell, timeout=seconds)
        assert code == 124 and f'more than {seconds} s' in report
        if beats.exists():
            break
    size = beats.stat().st_size
    time.sleep(0.5)
    assert beats.stat().st_size == size, 'the process that the notebook started is still running'


def test_notebooks_share_nothing(failing):
    "A second run would see what the first left in sys.modules or in its temporary folder."
    source = (
        "import sys, tempfile, pathlib, types\n"
        "assert 'leak' not in sys.modules\nsys.modules['leak'] = types.ModuleType('leak')\n"
        "mark = pathlib.Path(tempfile.gettempdir())/'mark'\nassert not mark.exists()\nmark.touch()"
    )
    assert failing(source)[0] == 0
    assert failing(source)[0] == 0
