"""The commands as a shell sees them: what they print, what they leave, and one clear line when something is wrong."""
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

WORDS = dict(one='eins', two='zwei', three='drei', four='vier', five='fünf', six='sechs', seven='sieben', eight='acht')
SMALL = ['--arch', 'transformer_tiny', '--encoder-layers', '1', '--decoder-layers', '1', '--optimizer', 'adam', '--lr', '1e-3',
         '--max-tokens', '200', '--cpu', '--no-progress-bar']


def seqlit(command: str, *words, check: bool = True, stdin: str | None = None, **env) -> subprocess.CompletedProcess:
    "Run a command in a process of its own."
    done = subprocess.run(call(command, *words), capture_output=True, text=True, encoding='utf-8', input=stdin or '',
                          env=os.environ | env, timeout=120)
    assert not check or done.returncode == 0, done.stderr
    return done


def call(command: str, *words) -> list[str]:
    "The words that start a command."
    return [sys.executable, '-m', 'seqlit.cli.main', command, *map(str, words)]


def refused(done: subprocess.CompletedProcess, *parts: str):
    "The command ended with code 2 and one line that has these parts."
    assert done.returncode == 2, done.stdout + done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(r'seqlit(-\w+)?: error: ', last), done.stderr
    assert 'Traceback' not in done.stderr
    for part in parts:
        assert part in last, last


@pytest.fixture(scope='session')
def text(tmp_path_factory) -> Path:
    "A folder with a small parallel corpus."
    folder = tmp_path_factory.mktemp('text')
    english = [f'{a} {b} {c}' for a in WORDS for b in WORDS for c in ('one', 'two', 'eight')]
    german = [' '.join(reversed([WORDS[w] for w in line.split()])) for line in english]
    for split, step in [('train', 1), ('valid', 9), ('test', 11)]:
        (folder/f'{split}.en').write_text('\n'.join(english[::step]) + '\n', encoding='utf-8')
        (folder/f'{split}.de').write_text('\n'.join(german[::step]) + '\n', encoding='utf-8')
    return folder


def preprocess(text: Path, to: Path, *more, **kwargs) -> subprocess.CompletedProcess:
    "Binarise that corpus."
    return seqlit('preprocess', '-s', 'en', '-t', 'de', '--trainpref', text/'train', '--validpref', text/'valid',
                  '--testpref', text/'test', '--destdir', to, *more, **kwargs)


@pytest.fixture(scope='session')
def data(text, tmp_path_factory) -> Path:
    "A binarised corpus."
    folder = tmp_path_factory.mktemp('data')/'bin'
    preprocess(text, folder)
    return folder


@pytest.fixture(scope='session')
def trained(data, tmp_path_factory) -> Path:
    "A folder of checkpoints, two epochs old."
    folder = tmp_path_factory.mktemp('trained')
    seqlit('train', data, *SMALL, '--max-epoch', 2, '--save-dir', folder)
    return folder


def test_from_text_to_a_score(trained, data, tmp_path):
    assert {'checkpoint1.pt', 'checkpoint2.pt', 'checkpoint_best.pt', 'checkpoint_last.pt'} <= {p.name for p in trained.iterdir()}
    out = seqlit('generate', data, '--path', trained/'checkpoint_best.pt', '--beam', 2, '--nbest', 2, '--cpu').stdout.splitlines()
    ids = [int(line[2:].split('\t')[0]) for line in out if line.startswith('S-')]
    assert ids == list(range(len((data.parent/'bin').joinpath('test.en-de.en.idx').read_bytes()[26:])//12))   # all, in input order
    assert [line[0] for line in out[:8]] == list('STHDPHDP')
    assert re.match(r'Generate test with beam=2: BLEU4 = \d+\.\d\d, ', out[-1])
    for name, mark in [('sys', 'H'), ('ref', 'T')]:
        lines = {}
        for line in out:
            if line.startswith(f'{mark}-'):
                lines.setdefault(int(line[2:].split('\t')[0]), line.split('\t')[-1])
        (tmp_path/name).write_text('\n'.join(lines.values()) + '\n', encoding='utf-8')
    assert 'BLEU4 = ' in seqlit('score', '--sys', tmp_path/'sys', '--ref', tmp_path/'ref').stdout


def test_interactive_answers_every_line_in_order(trained, data):
    lines = ['one two', '', 'eight one five', 'seven unheard-of']
    answers = {}
    for size in (1, 3):
        done = seqlit('interactive', data, '--path', trained/'checkpoint_best.pt', '--cpu', '--buffer-size', size, '--batch-size', size,
                      stdin='\n'.join(lines) + '\n').stdout.splitlines()
        assert [line for line in done if line.startswith('S-')] == [
            'S-0\tone two', 'S-1\t', 'S-2\teight one five', 'S-3\tseven <unk>']
        answers[size] = [line for line in done if line.startswith('D-')]
    assert [line.split('\t')[2] for line in answers[1]] == [line.split('\t')[2] for line in answers[3]]


def test_help_is_a_map():
    shown = seqlit('--help').stdout
    assert all(name in shown for name in ('preprocess', 'train', 'generate', 'interactive', 'score', 'demo'))
    for name in ('preprocess', 'train', 'generate', 'interactive', 'score', 'demo'):
        assert f'seqlit-{name}' in seqlit(name, '--help').stdout


def test_training_flags_that_are_wrong(data, tmp_path):
    refused(seqlit('train', data, *SMALL, '--max-tokns', 100, check=False), '--max-tokns', "did you mean '--max-tokens'?")
    refused(seqlit('train', data, '--arch', 'transfomer', '--optimizer', 'adam', check=False), "did you mean 'transformer'?")
    refused(seqlit('train', data, check=False), '--arch')
    refused(seqlit('train', data, *SMALL, '--label-smoothing', 0.1, check=False), 'belongs to --criterion label_smoothed_cross_entropy')
    refused(seqlit('train', data, *SMALL, '--pipeline-chunks', '4', check=False), 'does not have yet')
    refused(seqlit('train', data, *SMALL, '--lr', 'fast', check=False), '--lr', 'fast')
    refused(seqlit('trian', check=False), "did you mean 'train'?")


def test_data_that_is_not_data(data, text, tmp_path):
    refused(seqlit('train', tmp_path/'nowhere', *SMALL, check=False), 'nowhere', 'no such folder')
    refused(seqlit('train', text, *SMALL, check=False), 'seqlit-preprocess')
    refused(seqlit('train', text/'train.en', *SMALL, check=False), 'train.en')
    copy = tmp_path/'cut'
    copy.mkdir()
    for file in data.iterdir():
        (copy/file.name).write_bytes(file.read_bytes())
    whole = (copy/'train.en-de.en.bin').read_bytes()
    (copy/'train.en-de.en.bin').write_bytes(whole[:-10])
    refused(seqlit('train', copy, *SMALL, '--save-dir', tmp_path/'none', check=False), 'train.en-de.en.bin', str(len(whole)))
    (copy/'train.en-de.en.idx').write_bytes(b'nonsense' * 9)
    refused(seqlit('train', copy, *SMALL, '--save-dir', tmp_path/'none', check=False), 'train.en-de.en.idx')
    assert not (tmp_path/'none').exists() or not any((tmp_path/'none').iterdir())


def second_line(path: Path, raw: bytes):
    "Put other bytes in the place of a file's second line."
    lines = path.read_bytes().split(b'\n')
    path.write_bytes(b'\n'.join([lines[0], raw, *lines[2:]]))


@pytest.mark.parametrize('spoil, told', [
    (lambda f: (f/'train.en').write_text(''), ['train.en', 'empty']),
    (lambda f: (f/'train.de').write_text('eins\n'), ['train.en', 'train.de', '192', '1']),
    (lambda f: second_line(f/'train.en', b'\x00\x01\x02'), ['train.en', 'line 2', 'not a text file']),
    (lambda f: second_line(f/'train.de', 'fünf'.encode('latin-1')), ['train.de', 'line 2', '--errors replace']),
    (lambda f: (f/'train.en').unlink(), ['train.en', 'no such file'])])
def test_text_that_cannot_be_read(text, tmp_path, spoil, told):
    folder = tmp_path/'text'
    folder.mkdir()
    for file in text.iterdir():
        (folder/file.name).write_bytes(file.read_bytes())
    spoil(folder)
    refused(preprocess(folder, tmp_path/'bin', check=False), *told)
    left = [p.name for p in (tmp_path/'bin').rglob('*')] if (tmp_path/'bin').exists() else []
    assert not [name for name in left if name.endswith(('.bin', '.idx', '.tmp'))], left


def test_bytes_that_are_replaced(text, tmp_path):
    folder = tmp_path/'text'
    folder.mkdir()
    for file in text.iterdir():
        (folder/file.name).write_bytes(file.read_bytes().replace('fünf'.encode(), 'fünf'.encode('latin-1')))
    preprocess(folder, tmp_path/'bin', '--errors', 'replace')
    assert 'f\ufffdnf' in (tmp_path/'bin'/'dict.de.txt').read_text(encoding='utf-8')


def test_checkpoints_that_are_not_there(data, tmp_path):
    refused(seqlit('generate', data, check=False), '--path')
    refused(seqlit('generate', data, '--path', tmp_path/'none.pt', check=False), 'none.pt')
    (tmp_path/'broken.pt').write_bytes(b'PK\x03\x04 not a checkpoint')
    refused(seqlit('generate', data, '--path', tmp_path/'broken.pt', check=False), 'broken.pt')


@pytest.mark.skipif(os.name != 'posix', reason='signals of POSIX')
def test_ctrl_c_leaves_a_checkpoint_that_resumes(data, tmp_path):
    def losses(folder):
        rows = [json.loads(line[line.index('{'):]) for line in (folder/'log.txt').read_text().splitlines() if '| train_inner |' in line]
        return {row['num_updates']: (row['loss'], row['lr'], row['gnorm']) for row in rows}

    def words(folder):
        return [data, *SMALL, '--save-dir', folder, '--max-update', 400, '--log-format', 'json', '--log-interval', 1,
                '--log-file', folder/'log.txt', '--no-epoch-checkpoints']
    whole, cut = tmp_path/'whole', tmp_path/'cut'
    whole.mkdir(), cut.mkdir()
    seqlit('train', *words(whole))
    child = subprocess.Popen(call('train', *words(cut)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while time.monotonic() < until and not ((cut/'log.txt').exists() and '"num_updates": "37"' in (cut/'log.txt').read_text()):
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert 'Traceback' not in err
    assert (cut/'checkpoint_last.pt').exists()
    before = losses(cut)
    assert '37' in before and '400' not in before
    seqlit('train', *words(cut))
    assert losses(cut) == losses(whole)


def test_the_map_does_not_wait_for_torch():
    code = 'import sys\nfrom seqlit.cli.main import main\nassert main(["--help"]) == 0\nassert "torch" not in sys.modules'
    subprocess.run([sys.executable, '-c', code], check=True, capture_output=True)
