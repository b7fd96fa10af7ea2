"What every test file has at hand: the recorded facts in ../shared, and one thread per process."

import logging
import os
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
for name in ['OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS']:
    os.environ.setdefault(name, '1')  # before torch is imported; tests share the cores among themselves
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started by a shell in the background; tests press Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption('--slow', action='store_true', help='run the notebook cells marked `#| slow` too')


@pytest.fixture(scope='session')
def root() -> Path:
    "The repository."
    return ROOT


@pytest.fixture(scope='session')
def shared() -> Path:
    "The folder with fairseq's recorded results and real data; it lies beside the repository."
    folder = ROOT.parent / 'shared'
    if folder.is_dir():
        return folder
    if os.environ.get('CI') == 'true' and not os.environ.get('GITHUB_ACTIONS'):
        pytest.fail(f'no folder {folder}: CI needs it beside the clone')
    pytest.skip('needs ../shared (recorded results of fairseq), which is not here')


@pytest.fixture
def threads():
    "A function that sets torch's threads; they are back at one after the test."
    import torch

    yield torch.set_num_threads
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_handler_is_left():
    "Commands that run in the tests' process leave no log handler whose stream is closed later."
    before = logging.root.handlers[:]
    yield
    logging.root.handlers[:] = before
