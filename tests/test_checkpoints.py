"Checkpoints survive what can happen while they are written."
import errno
import io
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from seqlit.base.errors import SeqlitError
from seqlit.train import checkpoints
from seqlit.train.checkpoints import CheckpointManager, CheckpointOptions, load_checkpoint, write_checkpoint

SAVER = '''
import sys, torch
from pathlib import Path
from seqlit.train.checkpoints import CheckpointManager, CheckpointOptions
manager = CheckpointManager(CheckpointOptions(save_dir=sys.argv[1], keep_last_epochs=2, keep_best_checkpoints=2))
for epoch in range(1, 10_000):
    manager.note(1/epoch)
    manager.save({'model': {'w': torch.full((400, 1000), float(epoch))}, 'cfg': {}}, epoch, epoch, True, 1/epoch)
    print(epoch, flush=True)
'''


@pytest.mark.parametrize('delay', [0.003, 0.011, 0.027])
def test_killed_while_saving(tmp_path, root, delay):
    "Whenever SIGKILL comes, every checkpoint that has its name is whole, and the last one is there."
    process = subprocess.Popen([sys.executable, '-c', SAVER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=root)
    for _ in range(3): process.stdout.readline()
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    done = [3, *map(int, process.communicate()[0].split())]
    names = {path.name for path in tmp_path.glob('*.pt')}
    assert {'checkpoint_last.pt', 'checkpoint_best.pt'} <= names
    for path in tmp_path.glob('*.pt'):
        weight = load_checkpoint(path)['model']['w']
        assert (weight == weight[0, 0]).all()
    assert load_checkpoint(tmp_path/'checkpoint_last.pt')['model']['w'][0, 0] >= done[-1]


class FullDisk(io.FileIO):
    "A file on a disk with room for 100 kB."
    def write(self, data):
        if self.tell() + len(data) > 100_000: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_disk_full(tmp_path, monkeypatch):
    manager = CheckpointManager(CheckpointOptions(save_dir=str(tmp_path), keep_last_epochs=1))
    paths = manager.save({'model': {'w': torch.ones(10)}, 'cfg': {}}, 1, 10, True)
    before = {path.name: path.read_bytes() for path in paths}
    import seqlit.base.files
    monkeypatch.setattr(seqlit.base.files, 'open', lambda path, mode: io.BufferedWriter(FullDisk(path, 'w')), raising=False)
    with pytest.raises(SeqlitError, match='no space left on the device'):
        manager.save({'model': {'w': torch.ones(100_000)}, 'cfg': {}}, 2, 20, True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_without_hard_links(tmp_path, monkeypatch):
    def refuse(*paths): raise OSError(errno.EPERM, 'no links here')
    monkeypatch.setattr(checkpoints.os, 'link', refuse)
    write_checkpoint({'model': {'w': torch.ones(3)}}, [tmp_path/'checkpoint1.pt', tmp_path/'checkpoint_last.pt'])
    assert (tmp_path/'checkpoint_last.pt').read_bytes() == (tmp_path/'checkpoint1.pt').read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['checkpoint1.pt', 'checkpoint_last.pt']


def test_names_are_links_to_one_file(tmp_path):
    write_checkpoint({'model': {}}, [tmp_path/'checkpoint1.pt', tmp_path/'checkpoint_last.pt'])
    write_checkpoint({'model': {'w': torch.ones(1)}}, [tmp_path/'checkpoint_last.pt'])
    assert load_checkpoint(tmp_path/'checkpoint1.pt')['model'] == {}


@pytest.mark.parametrize('maximize', [False, True])
def test_keep_best(tmp_path, maximize):
    options = CheckpointOptions(save_dir=str(tmp_path), keep_best_checkpoints=3, maximize_best_checkpoint_metric=maximize,
                                no_epoch_checkpoints=True, checkpoint_suffix='-a', best_checkpoint_metric='bleu')
    manager = CheckpointManager(options)
    values = [5., 3., 4., 3., 3., 6., 3., 1.]
    for epoch, value in enumerate(values, start=1):
        manager.note(value)
        manager.save({'model': {'w': torch.tensor(value)}}, epoch, epoch, True, value)
    kept = [load_checkpoint(path)['model']['w'].item() for path in manager.best_paths()]
    assert kept == sorted(values, reverse=maximize)[:3]
    assert load_checkpoint(tmp_path/'checkpoint_best-a.pt')['model']['w'] == manager.best == kept[0]
