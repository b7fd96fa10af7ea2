"What a run leaves to read: log lines for people, programs and nobody, curves that others draw, a timeline."
import gzip
import json
import logging
import os
import re
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest
import torch

from backwards import make_trainer
from seqlit.base.errors import SeqlitError
from seqlit.cli import preprocess, train
from seqlit.train.dashboards import Curves, Profile, TensorBoard, WeightsAndBiases, make_readers
from seqlit.train.events import EpochEnd, Restored, Stopped, Update, Validated
from seqlit.train.loggers import JsonLogger, SimpleLogger, follow

LINE = re.compile(r'(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) \| (\w+) \| ([\w.]+) \| (.*)')
TIMES = re.compile(r'(wps|ups|wall)$')   # differ between two runs


class Rows(Curves):
    "Keeps every report."
    def __init__(self): self.rows = {}
    def add(self, tag, values, step): self.rows.setdefault(tag, {})[step] = values


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    "A binarised corpus of a hundred pairs."
    folder = tmp_path_factory.mktemp('data')
    words = [f'{a} {b} {c}'.split()[:2 + (i % 2)] for i, (a, b, c) in enumerate((a, b, c) for a in 'klmno' for b in 'pqrst' for c in 'uvwx')]
    for split, step in [('train', 1), ('valid', 7)]:
        (folder/f'{split}.en').write_text(''.join(' '.join(w) + '\n' for w in words[::step]), encoding='utf-8')
        (folder/f'{split}.de').write_text(''.join(' '.join(reversed(w)) + '\n' for w in words[::step]), encoding='utf-8')
    sets = ['--trainpref', f'{folder}/train', '--validpref', f'{folder}/valid']
    assert preprocess.main(['-s', 'en', '-t', 'de', *sets, '--destdir', f'{folder}/bin']) == 0
    return folder/'bin'


def words(data, folder, *more) -> list[str]:
    "A command line of `seqlit-train`: two epochs of seven updates."
    return [str(word) for word in (data, '--arch', 'transformer_tiny', '--encoder-layers', 1, '--decoder-layers', 1, '--optimizer', 'adam', '--lr',
                                   '1e-3', '--batch-size', 16, '--max-epoch', 2, '--cpu', '--num-workers', 0, '--log-interval', 3,
                                   '--save-dir', folder/'run', *more)]


@pytest.fixture
def lines(data, tmp_path, capsys, monkeypatch):
    "A function that trains and returns the lines of standard output and of `--log-file`."
    monkeypatch.setattr(logging.root, 'level', logging.root.level)
    monkeypatch.delenv('LOGLEVEL', raising=False)
    def run(*more, code=0):
        file = tmp_path/'log.txt'
        capsys.readouterr()
        assert train.main(words(data, tmp_path, '--log-file', file, *more)) == code
        out, err = capsys.readouterr()
        assert err == ''
        return out.splitlines(), file.read_text(encoding='utf-8').splitlines()
    return run


def test_json_lines_are_json(lines):
    shown, filed = lines('--log-format', 'json')
    assert shown == filed and all(map(LINE.fullmatch, shown))
    rows = [(tag, json.loads(text)) for _, _, tag, text in map(lambda line: LINE.fullmatch(line).groups(), shown) if text.startswith('{')]
    assert Counter(tag for tag, _ in rows) == dict(train_inner=4, valid=2, train=2)   # 14 updates, one line after three
    for tag, row in rows:
        assert isinstance(row.pop('epoch'), int) and isinstance(row.pop('update', 0.), float)
        for name, value in row.items():
            assert name.startswith(tag + '_') or tag == 'train_inner'
            assert isinstance(value, str) and (float(value) or True)
    assert [row['num_updates'] for tag, row in rows if tag == 'train_inner'] == ['3', '6', '9', '12']
    assert 'valid_best_loss' in rows[-2][1] and 'done training in' in shown[-1]


def test_a_resumed_run_continues_its_file(lines):
    first = lines('--log-format', 'simple', '--max-update', 5)[1]
    shown, filed = lines('--log-format', 'simple')
    assert filed == first + shown and any('loaded checkpoint' in line for line in shown)


def test_simple_and_json_tell_the_same(shared, tmp_path, caplog):
    "The values of fairseq's own rows, laid out as its simple format does."
    recorded = json.loads((shared/'golden'/'training'/'adam_fixed'/'log.json').read_text(encoding='utf-8'))['rows']
    row = dict(recorded[0])
    epoch, update = row.pop('epoch'), row.pop('update')
    with caplog.at_level(logging.INFO):
        SimpleLogger()(Update(epoch, 1, report={k: float(v) for k, v in row.items()}, batch=1, batches=round(1/update)))
    assert caplog.messages == [f'epoch 001:      1 / {round(1/update)} ' + ', '.join(f'{k}={v}' for k, v in row.items())]
    ends = [r for r in recorded if any(k.startswith('valid_') for k in r)]
    values = {k.removeprefix('valid_'): v for k, v in ends[0].items() if k != 'epoch'}
    caplog.clear()
    with caplog.at_level(logging.INFO):
        SimpleLogger()(Validated(ends[0]['epoch'], 1, 'valid', {k: float(v) for k, v in values.items()}))
    assert caplog.messages == [f"epoch {ends[0]['epoch']:03d} | valid on 'valid' subset | " + ' | '.join(f'{k} {v}' for k, v in values.items())]


def test_none_is_silent(lines, tmp_path, data, capsys):
    assert lines('--log-format', 'none') == ([], [])
    assert (tmp_path/'run'/'checkpoint_last.pt').exists()
    assert train.main(words(data, tmp_path, '--log-format', 'none', '--max-tokens', 0)) == 2
    out, err = capsys.readouterr()
    assert out == '' and err.count('\n') == 1 and '--max-tokens 0: must be 1 or more' in err


def test_none_still_warns(lines, monkeypatch):
    "Sentences that are too long are left out, with a warning of the batch maker's."
    shown, filed = lines('--log-format', 'none', '--max-source-positions', 3, '--skip-invalid-size-inputs-valid-test')
    assert shown == filed and shown and all(' | WARNING | ' in line for line in shown)
    monkeypatch.setenv('LOGLEVEL', 'ERROR')
    assert lines('--log-format', 'simple', '--max-epoch', 3, '--max-source-positions', 3, '--skip-invalid-size-inputs-valid-test')[0] == []


def test_a_level_that_is_none(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('LOGLEVEL', 'loud')
    assert train.main(words(data, tmp_path)) == 2
    assert 'LOGLEVEL=loud: must be DEBUG' in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == 'win32', reason='needs a pseudo-terminal')
def test_a_bar_on_a_terminal_only(data, tmp_path, capsys, monkeypatch):
    import fcntl, pty, termios   # not on Windows
    master, slave = pty.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 100, 0, 0))   # a screen without size has no room for a bar
    screen = bytearray()
    def watch():
        while not screen.endswith(b'the end'): screen.extend(os.read(master, 65536))
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    monkeypatch.setattr(logging.root, 'level', logging.root.level)
    with open(slave, 'w', encoding='utf-8') as terminal:
        monkeypatch.setattr(sys, 'stderr', terminal)
        assert train.main(words(data, tmp_path)) == 0
        print('the end', end='', file=terminal, flush=True)
        watcher.join(20)
    os.close(master)
    drawn = screen.decode()
    assert 'epoch 001:' in drawn and "epoch 002 | valid on 'valid' subset:" in drawn and 'loss=' in drawn and '| 7/7 [' in drawn
    shown = [LINE.fullmatch(line) for line in capsys.readouterr().out.splitlines()]
    assert all(shown) and [m[3] for m in shown].count('train') == 2
    assert not any(m[3] == 'train_inner' for m in shown)   # those stand behind the bar


# Curves

def event_files(folder: Path, tag: str):
    "What TensorBoard itself reads in a folder: name -> step -> value, and the names of its texts."
    reason = 'needs tensorboard: pip install "seqlit[tensorboard]"'
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator', reason=reason)
    files = accumulator.EventAccumulator(str(folder/tag))
    files.Reload()
    tags = files.Tags()
    return {name: {e.step: e.value for e in files.Scalars(name)} for name in tags['scalars']}, tags['tensors']


def settled(rows: dict) -> dict:
    "Without what depends on the clock."
    return {step: {k: v for k, v in values.items() if not TIMES.search(k)} for step, values in rows.items()}


def test_tensorboard_reads_what_the_run_told(tmp_path):
    pytest.importorskip('tensorboard', reason='needs tensorboard: pip install "seqlit[tensorboard]"')
    trainer, rows = make_trainer(tmp_path/'run', max_epoch=2, valid_subset='valid,valid1'), Rows()
    follow(trainer, rows, TensorBoard(tmp_path/'curves', trainer.cfg.record()))
    assert {p.name for p in (tmp_path/'curves').iterdir()} == set(rows.rows) == {'train_inner', 'train', 'valid', 'valid1'}
    for tag, told in rows.rows.items():
        scalars, texts = event_files(tmp_path/'curves', tag)
        found = {step: {name: scalars[name][step] for name in values} for step, values in told.items()}
        for step, values in told.items(): assert found[step] == pytest.approx(values, rel=1e-6)
        assert 'num_updates' not in scalars and any('config' in name for name in texts)


class Killed(Exception): pass


def killed_at(update: int):
    "A reader that ends the run as a power cut would."
    def read(event):
        if event.num_updates == update: raise Killed
    return read


def test_curves_of_a_resumed_run_are_those_of_the_unbroken(tmp_path):
    "Killed at update 11, three after its last checkpoint: what it had written beyond is not seen again."
    pytest.importorskip('tensorboard', reason='needs tensorboard: pip install "seqlit[tensorboard]"')
    settings, rows = dict(log_interval=1, save_interval_updates=8), Rows()
    follow(make_trainer(tmp_path/'unbroken', **settings), rows)
    with pytest.raises(Killed):
        follow(make_trainer(tmp_path/'run', **settings), TensorBoard(tmp_path/'curves'), killed_at(11))
    before, _ = event_files(tmp_path/'curves', 'train_inner')
    assert max(before['loss']) in (10, 11)
    time.sleep(1.1)   # TensorBoard orders files by the second of their making
    resumed, again = make_trainer(tmp_path/'run', **settings), Rows()
    follow(resumed, again, TensorBoard(tmp_path/'curves'))
    first = min(again.rows['train_inner'])
    assert 1 < first <= 9
    for tag, told in rows.rows.items():
        scalars, _ = event_files(tmp_path/'curves', tag)
        assert list(scalars['loss']) == sorted(told), tag
        for step, values in settled(told).items():
            assert {name: scalars[name][step] for name in values} == pytest.approx(values, rel=1e-6), (tag, step)


def test_a_run_that_is_continued_in_its_process(tmp_path):
    "Stopped and run again, as in a notebook: the curves go on in new files and lose nothing."
    pytest.importorskip('tensorboard', reason='needs tensorboard: pip install "seqlit[tensorboard]"')
    trainer, board = make_trainer(tmp_path/'run', log_interval=1, max_epoch=2), TensorBoard(tmp_path/'curves')
    follow(trainer, lambda event: trainer.stop() if isinstance(event, Update) and event.num_updates == 4 else None, board)
    time.sleep(1.1)
    follow(trainer, board)
    assert list(event_files(tmp_path/'curves', 'train_inner')[0]['loss']) == list(range(1, trainer.num_updates + 1))


@pytest.mark.parametrize('module, option', [('torch.utils.tensorboard', 'tensorboard_logdir'), ('wandb', 'wandb_project')])
def test_a_missing_package_is_named_before_the_run(tmp_path, monkeypatch, module, option):
    monkeypatch.setitem(sys.modules, module, None)
    trainer = make_trainer(tmp_path/'run', **{option: str(tmp_path/'curves')})
    with pytest.raises(SeqlitError, match=rf'--{option.replace("_", "-")} needs .* pip install .seqlit\[\w+\]'):
        make_readers(trainer.cfg)
    assert list(tmp_path.iterdir()) == []


def test_the_extras_are_there(root):
    "What the message says to install exists."
    text = (root/'settings.ini').read_text(encoding='utf-8')
    for extra in ('tensorboard', 'wandb'): assert re.search(rf'^{extra}_requirements = {extra}>=', text, re.M)


def test_no_dashboard_costs_no_import(data, tmp_path):
    "A run that asks for none imports neither package."
    code = ("import sys; from seqlit.cli.train import main; assert main(sys.argv[1:]) == 0; "
            "print(sorted({name.split('.')[0] for name in sys.modules} & {'tensorboard', 'wandb', 'tensorflow'}))")
    done = subprocess.run([sys.executable, '-c', code, *words(data, tmp_path, '--max-update', 1)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == '[]', done.stdout + done.stderr


def test_wandb_offline(tmp_path, monkeypatch):
    "The package itself, without a server; its file is read back with its own reader."
    pytest.importorskip('wandb', reason='needs wandb: pip install "seqlit[wandb]"')
    if tuple(map(int, metadata.version('wandb').split('.')[:2])) < (0, 19): pytest.skip('needs wandb 0.19 or newer')
    for name, value in dict(WANDB_MODE='offline', WANDB_DIR=str(tmp_path), WANDB_SILENT='true', WANDB_NAME='mine',
                            WANDB_CONFIG_DIR=str(tmp_path), WANDB_CACHE_DIR=str(tmp_path), WANDB_DATA_DIR=str(tmp_path)).items(): monkeypatch.setenv(name, value)
    curves = WeightsAndBiases('numbers', 'tiny', {'common': {'seed': 1}})
    for event in [Restored(1, 0), Update(1, 50, report=dict(loss=4., num_updates=50), batch=50, batches=100), Validated(1, 50, 'valid', dict(loss=3.)),
                  EpochEnd(1, 50, dict(loss=5.)), Stopped(1, 50, 'max_update')]: curves(event)
    file, = tmp_path.rglob('run-*.wandb')
    until = time.monotonic() + 30
    while not (found := history_of(file))['is_over'] and time.monotonic() < until: time.sleep(0.1)   # a process of the package's writes it
    assert found['run'] == ('numbers', 'mine') and found['config'] == {'common': {'seed': 1}}
    assert {k: v for k, v in found['history'].items() if not k.startswith('_')} == {'train_inner/loss': 4., 'valid/loss': 3., 'train/loss': 5.}
    assert found['history']['_step'] == 50


def history_of(file: Path) -> dict:
    "Project and name, configuration and the last row of an offline run."
    from wandb.proto import wandb_internal_pb2
    found = dict(config={}, history={}, is_over=False)
    for data in logged(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField('run'):
            found['run'] = record.run.project, record.run.display_name
            found['config'] |= {item.key: json.loads(item.value_json) for item in record.run.config.update if not item.key.startswith('_')}
        found['is_over'] |= record.HasField('exit')
        if record.HasField('history'):
            found['history'] |= {item.key or '.'.join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
    return found


def logged(data: bytes):
    "The records of a file in the layout of LevelDB's log: pieces of blocks of 32 KiB; seven bytes of its own come first."
    place, record = 7, b''
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:   # the rest of a block that has no room for a header
            place += left
            continue
        size, kind = int.from_bytes(data[place + 4:place + 6], 'little'), data[place + 6]
        record, place = record + data[place + 7:place + 7 + size], place + 7 + size
        if kind in (1, 4):   # whole, or the last piece
            yield record
            record = b''


# A timeline

def test_a_profile_changes_nothing(tmp_path):
    plain, measured = Rows(), Rows()
    follow(make_trainer(tmp_path/'plain', log_interval=1), plain)
    follow(make_trainer(tmp_path/'run', log_interval=1), measured, Profile(tmp_path/'run'/'profile.json.gz'))
    assert {tag: settled(rows) for tag, rows in plain.rows.items()} == {tag: settled(rows) for tag, rows in measured.rows.items()}
    with gzip.open(tmp_path/'run'/'profile.json.gz', 'rt') as file: names = Counter(e['name'] for e in json.load(file)['traceEvents'])
    assert sum(name.startswith('ProfilerStep#') for name in names) == 3
    assert sum(n for name, n in names.items() if name.startswith('Optimizer.step#')) == 3
    assert names['aten::addmm'] > 30
    assert not torch.autograd.profiler._is_profiler_enabled


# For the end of tests/test_loggers.py

def test_a_command_keeps_curves_and_a_timeline(data, tmp_path):
    pytest.importorskip('tensorboard', reason='needs tensorboard: pip install "seqlit[tensorboard]"')
    assert train.main(words(data, tmp_path, '--tensorboard-logdir', tmp_path/'curves', '--profile', '--log-format', 'none')) == 0
    assert list(event_files(tmp_path/'curves', 'train_inner')[0]['loss']) == [3, 6, 9, 12]
    assert list(event_files(tmp_path/'curves', 'valid')[0]['loss']) == [7, 14]
    assert (tmp_path/'run'/'profile.json.gz').exists()


def test_a_command_names_a_missing_package_at_once(tmp_path, monkeypatch, capsys):
    "Before the data folder, which is not there either."
    monkeypatch.setitem(sys.modules, 'wandb', None)
    assert train.main(words(tmp_path/'nowhere', tmp_path, '--wandb-project', 'numbers')) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and "--wandb-project needs a package that is not here: pip install 'seqlit[wandb]'" in err
