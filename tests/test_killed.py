"A run that is killed fifty times in a row, in the middle of writing too, ends as the one that nobody disturbed."
import os
import random
import signal
import time

import pytest
import torch

from backwards import make_trainer
from seqlit.train.checkpoints import load_checkpoint
from seqlit.train.events import Stopped

SETTINGS = dict(max_epoch=50, save_interval_updates=1, keep_interval_updates=3, no_epoch_checkpoints=True, validate_interval_updates=7, disable_validation=True,
                store_ema=True, ema_decay=0.9)


def run(folder) -> Stopped:
    "Train to the end, without a word."
    for event in make_trainer(folder, **SETTINGS).run(): pass
    return event


def start(folder) -> int:
    "A process that trains; returns its number."
    number = os.fork()
    if number == 0:
        try: run(folder)
        finally: os._exit(0)
    return number


def written(path) -> float:
    "When a file was last replaced; 0 before it is there."
    return path.stat().st_mtime_ns if path.exists() else 0.


def wait_for_saves(path, number: int, process: int):
    "Until a checkpoint was replaced so often, or the process has ended."
    last = written(path)
    while number and os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if (now := written(path)) != last: last, number = now, number - 1
        time.sleep(0.001)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system cannot fork')
def test_killed_fifty_times(tmp_path):
    assert run(tmp_path/'unbroken').reason == 'max_epoch'
    folder, dice, kills, seen = tmp_path/'killed', random.Random(1), 0, set()
    while kills < 50:
        number = start(folder)
        wait_for_saves(folder/'checkpoint_last.pt', dice.randint(0, 4), number)
        time.sleep(dice.uniform(0, 0.03))
        os.kill(number, signal.SIGKILL)
        killed = os.WIFSIGNALED(os.waitpid(number, 0)[1])
        kills += killed
        for path in folder.glob('*.pt'):   # each of them is whole, whenever it was
            seen.add(load_checkpoint(path)['optimizer_history'][-1]['num_updates'])
        if not killed: break
    assert kills == 50 and len(seen) > 30
    assert run(folder).reason == 'max_epoch'
    assert not list(folder.glob('*.tmp')), 'what was half-written is swept away'
    whole, broken = (load_checkpoint(tmp_path/name/'checkpoint_last.pt') for name in ('unbroken', 'killed'))
    for name, value in whole['model'].items(): assert torch.equal(value, broken['model'][name]), name
    for name, value in whole['extra_state']['ema'].items(): assert torch.equal(value, broken['extra_state']['ema'][name]), name
    assert whole['extra_state']['train_iterator'] == broken['extra_state']['train_iterator']
