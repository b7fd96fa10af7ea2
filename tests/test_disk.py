"A disk that is full ends the run with one line; the last good checkpoint is whole, and with room the run goes on as if nothing had been."
import contextlib
import io
import logging
import os
import random
import subprocess
import tempfile
import traceback
from dataclasses import dataclass

import pytest
import torch

from seqlit.cli.preprocess import main as seqlit_preprocess
from seqlit.cli.train import main as seqlit_train
from seqlit.train.checkpoints import load_checkpoint

resource = pytest.importorskip('resource', reason='this system bounds no process')

SETTINGS = ['--arch', 'transformer_tiny', '--optimizer', 'adam', '--lr', '1e-3', '--batch-size', '8', '--max-epoch', '3', '--no-epoch-checkpoints',
            '--cpu', '--num-workers', '0', '--disable-validation', '--log-format', 'none']


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "Pairs of letters and the same letters backwards."
    folder, dice, before = tmp_path_factory.mktemp('text'), random.Random(1), logging.root.handlers[:]
    rows = [' '.join(dice.choices('abcdef', k=dice.randint(1, 9))) for _ in range(30)]
    (folder/'train.en').write_text('\n'.join(rows) + '\n')
    (folder/'train.de').write_text('\n'.join(row[::-1] for row in rows) + '\n')
    with contextlib.redirect_stdout(io.StringIO()):
        assert seqlit_preprocess(['-s', 'en', '-t', 'de', '--trainpref', str(folder/'train'), '--destdir', str(folder/'bin')]) == 0
    logging.root.handlers[:] = before
    return folder/'bin'


@dataclass
class Done:
    "How a process ended."
    code: int
    said: str


def train(data, folder, *words, largest: int = 0) -> Done:
    "`seqlit-train` in a process of its own, whose files may be as large as `largest` bytes."
    with tempfile.NamedTemporaryFile('w+', encoding='utf-8') as said:
        number = os.fork()
        if number == 0:
            code = 99
            try:
                if largest: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
                with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                    try: code = seqlit_train([str(data), '--save-dir', str(folder), *SETTINGS, *words])
                    except BaseException: traceback.print_exc()
                said.flush()
            finally: os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
        said.seek(0)
        return Done(code, said.read())


@pytest.fixture(scope='module')
def unbroken(data, tmp_path_factory):
    "The end of a run that had room."
    folder = tmp_path_factory.mktemp('unbroken')
    done = train(data, folder)
    assert done.code == 0, done.said
    return folder/'checkpoint_last.pt'


def assert_same_end(one, other):
    a, b = load_checkpoint(one), load_checkpoint(other)
    for name, value in a['model'].items(): assert torch.equal(value, b['model'][name]), name
    for number, entries in a['last_optimizer_state']['state'].items():
        for key, value in entries.items(): assert torch.equal(torch.as_tensor(value), torch.as_tensor(b['last_optimizer_state']['state'][number][key])), key
    assert a['extra_state']['train_iterator'] == b['extra_state']['train_iterator']
    assert a['optimizer_history'][-1]['num_updates'] == b['optimizer_history'][-1]['num_updates']


def assert_one_line(done, path, reason):
    "The command says where and why, and nothing else goes wrong."
    assert done.code == 2 and 'Traceback' not in done.said
    line, = [line for line in done.said.splitlines() if 'error' in line]
    assert line.startswith('seqlit-train: error: ') and str(path) in line and reason in line, line


def test_files_may_not_be_that_large(data, unbroken, tmp_path):
    "A bound on the size of files (a quota is one) ends the write in the middle."
    last = tmp_path/'checkpoint_last.pt'
    assert train(data, tmp_path, '--max-epoch', '1').code == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert 'checkpoint_last.pt' in before
    failed = train(data, tmp_path, largest=last.stat().st_size//2)
    assert_one_line(failed, last, 'File too large')
    assert {path.name for path in tmp_path.iterdir()} == before.keys()
    assert last.read_bytes() == before['checkpoint_last.pt']
    assert train(data, tmp_path).code == 0
    assert_same_end(last, unbroken)


@pytest.fixture
def small_disk(tmp_path, unbroken):
    "A disk with room for one checkpoint and a half, and a function that enlarges it."
    folder, size = tmp_path/'disk', unbroken.stat().st_size
    folder.mkdir()
    try: mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size*3//2}', 'tmpfs', str(folder)], capture_output=True).returncode == 0
    except FileNotFoundError: mounted = False
    if not mounted: pytest.skip('only root may mount a file system here')
    yield folder, lambda: subprocess.run(['mount', '-o', f'remount,size={size*4}', str(folder)], check=True)
    subprocess.run(['umount', str(folder)], check=True)


def test_no_space_left(data, unbroken, small_disk):
    "The first checkpoint fits, the second does not, and with more room the run goes on."
    folder, enlarge = small_disk
    last = folder/'checkpoint_last.pt'
    failed = train(data, folder)
    assert_one_line(failed, last, 'no space left on the device')
    assert load_checkpoint(last)['optimizer_history'][-1]['num_updates'] == 4, 'the end of the first epoch'
    assert sorted(path.name for path in folder.iterdir()) == ['checkpoint_last.pt', 'config.yaml']
    again = train(data, folder)
    assert_one_line(again, last, 'no space left on the device')
    enlarge()
    done = train(data, folder)
    assert done.code == 0, done.said
    assert_same_end(last, unbroken)


def test_no_space_for_the_first_one(data, small_disk):
    "A disk that is full from the beginning says so before any training."
    folder, _ = small_disk
    with contextlib.suppress(OSError):
        with open(folder/'filled', 'wb') as file:
            while True: file.write(bytes(4096)), file.flush()
    failed = train(data, folder)
    assert_one_line(failed, folder, 'no space left on the device')
    assert 'num_updates' not in failed.said and [path.name for path in folder.iterdir()] == ['filled']
