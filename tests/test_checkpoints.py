"Checkpoints survive what can happen while they are written."
import errno
import io
import logging
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from seqlit.base.errors import SeqlitError
from seqlit.train import checkpoints
from seqlit.train.checkpoints import (
    CheckpointManager, CheckpointOptions, find_restore, load_checkpoint, load_newest, _newest_first, write_checkpoint)

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


def state_at(updates: int, best: float | None = None) -> dict:
    "What a run would save."
    return {'model': {'w': torch.arange(30.)*updates}, 'cfg': {}, 'optimizer_history': [{'num_updates': updates}], 'extra_state': {'best': best}}


def updates_in(path) -> int:
    "Whose state a file holds; every bit of it is looked at."
    state = load_checkpoint(path)
    updates = state['optimizer_history'][-1]['num_updates']
    assert torch.equal(state['model']['w'], torch.arange(30.)*updates)
    return updates


def on_disk(folder) -> dict:
    "File -> the update of its state."
    return {path.name: updates_in(path) for path in folder.iterdir()} if folder.is_dir() else {}


def random_options(dice: random.Random, folder) -> CheckpointOptions:
    return CheckpointOptions(
        save_dir=str(folder), save_interval=dice.choice([1, 1, 2]), save_interval_updates=dice.choice([0, 1, 2, 3]), keep_interval_updates=dice.choice([-1, 1, 2]),
        keep_interval_updates_pattern=dice.choice([-1, 3, 6]), keep_last_epochs=dice.choice([-1, 1, 2]), keep_best_checkpoints=dice.choice([-1, 0, 1, 2, 3]),
        no_epoch_checkpoints=dice.random() < 0.4, no_last_checkpoints=dice.random() < 0.4, maximize_best_checkpoint_metric=dice.random() < 0.4,
        best_checkpoint_metric=dice.choice(['loss', 'bleu']), checkpoint_suffix=dice.choice(['', '', '-a']))


def as_promised(o: CheckpointOptions, saves: list, files: dict):
    "What the options say of the files, for (updates, epoch, end, value, names) of all saves."
    end, sign = f'{o.checkpoint_suffix}.pt', 1 if o.maximize_best_checkpoint_metric else -1
    expected = {} if o.no_last_checkpoints else {f'checkpoint_last{end}': saves[-1][0]}
    epochs = {f'checkpoint{epoch}{end}': n for n, epoch, over, _, _ in saves if over and epoch % o.save_interval == 0 and not o.no_epoch_checkpoints}
    expected |= dict(list(epochs.items())[-o.keep_last_epochs if o.keep_last_epochs > 0 else 0:])
    judged = [(sign*value, n) for n, _, _, value, _ in saves if value is not None and not math.isnan(value)]
    if judged: expected[f'checkpoint_best{end}'] = max(judged)[1]
    few = {path: n for path, n in files.items() if path.startswith('checkpoint.best')}
    rounded = sorted(((sign*round(sign*value, 3), n) for value, n in judged if math.isfinite(value)), reverse=True)[:max(o.keep_best_checkpoints, 0)]
    assert sorted(few.values()) == sorted(n for _, n in rounded)
    within = {name: n for name, n in files.items() if name.startswith('checkpoint_') and name.count('_') == 2}
    named = [(n, name) for n, _, _, _, names in saves for name in names if name.startswith('checkpoint_') and name.count('_') == 2]
    pruned = [i for i, save in enumerate(saves) if not save[2]]
    if o.keep_interval_updates > 0 and pruned:
        old = [(n, name) for n, name in named if n <= saves[pruned[-1]][0]][:-o.keep_interval_updates]
        named = [item for item in named if item not in old or (o.keep_interval_updates_pattern > 0 and item[0] % o.keep_interval_updates_pattern == 0)]
    assert within == {name: n for n, name in named}
    assert files == expected | few | within


@pytest.mark.parametrize('seed', range(40))
def test_any_options_any_saves(tmp_path, monkeypatch, seed):
    "Whatever is kept and whenever the disk fails: what the flags promise is there, whole, and the newest state is among it."
    dice, saves, save_tensors = random.Random(seed), [], torch.save
    manager = CheckpointManager(random_options(dice, tmp_path))
    options = manager.options
    for updates in range(1, 18):
        epoch, end, before, best = (updates + 3)//4, updates % 4 == 0, on_disk(tmp_path), manager.best
        asked = dice.random() < 0.15   # the run is told to stop
        if not (end or asked or (options.save_interval_updates and updates % options.save_interval_updates == 0)): continue
        value = dice.choice([None, math.nan, math.inf, *[dice.choice([0., -1.2344, -1.2341, 2., 10., 1234.5])]*6])
        manager.note(value)
        if dice.random() < 0.2:
            def fail(state, file):
                file.write(b'half of it')
                raise OSError(dice.choice([errno.ENOSPC, errno.EIO, errno.EFBIG]), 'the disk')
            monkeypatch.setattr(torch, 'save', fail)
            if manager.names(epoch, updates, end, value):
                with pytest.raises(SeqlitError, match=r'checkpoint\S*\.pt: (no space left|could not be written)'):
                    manager.save(state_at(updates), epoch, updates, end, value)
            assert on_disk(tmp_path) == before, 'a write that fails changes nothing'
            monkeypatch.setattr(torch, 'save', save_tensors)
            manager = CheckpointManager(options)   # the run ended there, and began again
            manager.best = best
            continue
        paths = manager.save(state_at(updates), epoch, updates, end, value)
        files = on_disk(tmp_path)
        assert {path.name: updates for path in paths}.items() <= files.items(), 'what was just written is there'
        assert paths or (end and options.no_last_checkpoints), 'a stop within an epoch is always saved'
        assert before == files or paths
        if paths:
            saves.append((updates, epoch, end, value, [path.name for path in paths]))
            as_promised(options, saves, files)
        assert not saves or saves[-1][0] in files.values()


@pytest.mark.parametrize('seed', range(12))
def test_the_newest_whole_one_is_used(tmp_path, seed):
    "Any of the files may be damaged: the run goes on from the newest that is whole, also in a copy of the folder."
    dice, folder = random.Random(seed), tmp_path/'run'
    options = CheckpointOptions(save_dir=str(folder), save_interval_updates=dice.choice([0, 1]), keep_interval_updates=2, keep_last_epochs=dice.choice([-1, 2]),
                                keep_best_checkpoints=2, no_last_checkpoints=dice.random() < 0.4)
    manager = CheckpointManager(options)
    for updates in range(1, 14):
        if updates % 4 == 0 or options.save_interval_updates:
            manager.note(value := dice.uniform(1, 9))
            manager.save(state_at(updates), (updates + 3)//4, updates, updates % 4 == 0, value)
    inodes = {path.stat().st_ino: path for path in folder.iterdir()}
    for path in dice.sample(sorted(inodes.values()), dice.randint(0, len(inodes))):
        raw = bytearray(path.read_bytes())
        raw[raw.index(torch.arange(30.).mul(updates_in(path)).numpy().tobytes()) + dice.randrange(120)] ^= 1 << dice.randrange(8)
        with open(path, 'r+b') as file: file.write(raw)   # in its place: all its names are damaged
    whole = {}
    for path in folder.iterdir():
        try: whole[path.name] = updates_in(path)
        except SeqlitError: pass
    copy = tmp_path/'copy'
    shutil.copytree(folder, copy)
    for number, path in enumerate(sorted(copy.iterdir(), key=lambda path: dice.random())): os.utime(path, (number, number))
    for place in (folder, copy):
        where = find_restore(CheckpointOptions(save_dir=str(place), no_last_checkpoints=options.no_last_checkpoints)).path
        assert where == place/'checkpoint_last.pt'
        if whole:
            state, path = load_newest(where)
            assert whole[path.name] == max(whole.values()) == state['optimizer_history'][-1]['num_updates']
        else:
            with pytest.raises(SeqlitError, match='no whole checkpoint'): load_newest(where)


def flipped(raw: bytes) -> bytes:
    at = raw.index(torch.arange(30.).mul(2).numpy().tobytes()) + 50
    return raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1:]


DAMAGE = {
    'a bit in a tensor': flipped, 'its end is missing': lambda raw: raw[:-1], 'half of it is missing': lambda raw: raw[:len(raw)//2], 'nothing is left': lambda raw: b'',
    'zeros': lambda raw: bytes(len(raw)), 'other bytes': lambda raw: random.Random(1).randbytes(len(raw)), 'a page of zeros': lambda raw: raw[:512] + bytes(512) + raw[1024:],
    'another format': lambda raw: b'\x89PNG\r\n' + raw, 'only PK': lambda raw: b'PK', 'text': lambda raw: b'<html>404</html>',
}


@pytest.mark.parametrize('kind', DAMAGE)
def test_every_kind_of_damage(tmp_path, caplog, kind):
    for updates in (1, 2):
        write_checkpoint(state_at(updates), [tmp_path/f'checkpoint{updates}.pt', tmp_path/'checkpoint_last.pt'])
    last = tmp_path/'checkpoint_last.pt'
    damaged = DAMAGE[kind](last.read_bytes())
    for name in ('checkpoint2.pt', 'checkpoint_last.pt'): (tmp_path/name).write_bytes(damaged)
    with caplog.at_level(logging.WARNING): state, path = load_newest(last)
    assert path.name == 'checkpoint1.pt' and torch.equal(state['model']['w'], torch.arange(30.))
    line, = caplog.messages
    assert f'{last}: not a complete checkpoint' in line and line.endswith(f'continuing from {path}') and '\n' not in line


def test_every_byte_of_a_checkpoint_counts(tmp_path):
    "A changed byte anywhere is noticed, or changes nothing that is read."
    path = tmp_path/'checkpoint_last.pt'
    write_checkpoint(state_at(3), [path])
    raw, seen, dice = path.read_bytes(), 0, random.Random(2)
    for place in range(0, len(raw), 2):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << dice.randrange(8)]) + raw[place + 1:])
        try:
            state = load_checkpoint(path)
            assert torch.equal(state['model']['w'], torch.arange(30.)*3) and state['optimizer_history'] == [{'num_updates': 3}]
        except SeqlitError: seen += 1
    assert seen > len(raw)//8


def test_the_old_format_has_no_checksum(tmp_path):
    "A wrong bit within a number of a file of before torch 1.6 cannot be seen; a wrong length can."
    path = tmp_path/'checkpoint_last.pt'
    torch.save(state_at(2), path, _use_new_zipfile_serialization=False)
    raw = path.read_bytes()
    path.write_bytes(flipped(raw))
    assert (load_checkpoint(path)['model']['w'] != torch.arange(30.)*2).sum() == 1
    at = raw.index(torch.arange(30.).mul(2).numpy().tobytes())
    for broken in (raw[:-1], raw[:at - 8] + bytes([1]) + raw[at - 7:], raw[:at - 8] + bytes([0]) + raw[at - 7:], raw[:at - 8] + bytes([31]) + raw[at - 7:]):
        path.write_bytes(broken)
        with pytest.raises(SeqlitError, match='not a complete checkpoint'): load_checkpoint(path)


def test_no_last_one(tmp_path, caplog):
    "Where it was removed, the run begins anew and says so; where the flags leave it out, the newest stands for it."
    write_checkpoint(state_at(7), [tmp_path/'checkpoint3.pt'])
    write_checkpoint(state_at(5), [tmp_path/'checkpoint_best.pt'])
    write_checkpoint(state_at(9), [tmp_path/'checkpoint_last-other.pt'])   # another run's
    torch.save({'model': {}}, tmp_path/'checkpoint_average.pt')
    assert find_restore(CheckpointOptions(save_dir=str(tmp_path))).path is None
    assert f'there is no checkpoint_last.pt, so the run begins anew' in caplog.text and f'--restore-file {tmp_path/"checkpoint3.pt"}' in caplog.text
    where = find_restore(CheckpointOptions(save_dir=str(tmp_path), no_last_checkpoints=True))
    assert load_newest(where.path)[1] == tmp_path/'checkpoint3.pt' and where.optimizer and where.dataloader
    assert find_restore(CheckpointOptions(save_dir=str(tmp_path), no_last_checkpoints=True, restore_file=str(tmp_path/'checkpoint_best.pt'))).path.name == 'checkpoint_best.pt'
    assert _newest_first(tmp_path/'checkpoint_last-other.pt') == []
    caplog.clear()
    assert find_restore(CheckpointOptions(save_dir=str(tmp_path/'empty'), no_last_checkpoints=True)).path is None and not caplog.text


def test_a_named_file_is_not_replaced(tmp_path):
    "Another checkpoint in place of the one that was asked for would be a surprise."
    write_checkpoint(state_at(1), [tmp_path/'checkpoint1.pt'])
    (tmp_path/'checkpoint2.pt').write_bytes(b'PK')
    with pytest.raises(SeqlitError, match=r'checkpoint2\.pt: not a complete checkpoint'): load_newest(tmp_path/'checkpoint2.pt')


def test_names_in_the_way(tmp_path):
    "Folders, links to nowhere and foreign files beside the checkpoints harm nothing."
    (tmp_path/'checkpoint2.pt').mkdir()
    (tmp_path/'checkpoint4.pt').symlink_to(tmp_path/'nowhere')
    (tmp_path/'checkpoint5.pt').write_bytes(b'notes')
    write_checkpoint(state_at(3), [tmp_path/'checkpoint3.pt'])
    (tmp_path/'checkpoint_last.pt').write_bytes(b'')
    assert load_newest(tmp_path/'checkpoint_last.pt')[1].name == 'checkpoint3.pt'
    with pytest.raises(SeqlitError, match='could not be written'):
        write_checkpoint(state_at(6), [tmp_path/'checkpoint6.pt', tmp_path/'checkpoint2.pt'])
    assert not list(tmp_path.glob('*.tmp'))


def test_an_earlier_run_in_the_folder(tmp_path):
    "Its checkpoints have larger numbers; what is written now stays nevertheless."
    for epoch in (90, 91): write_checkpoint(state_at(epoch*4), [tmp_path/f'checkpoint{epoch}.pt'])
    manager = CheckpointManager(CheckpointOptions(save_dir=str(tmp_path), keep_last_epochs=1, no_last_checkpoints=True))
    for epoch in (1, 2, 3):
        manager.save(state_at(epoch*4), epoch, epoch*4, True)
        assert on_disk(tmp_path)[f'checkpoint{epoch}.pt'] == epoch*4
