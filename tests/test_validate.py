"`seqlit-validate` says what the log of the run said."
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from seqlit.cli.preprocess import main as preprocess
from seqlit.cli.validate import main as validate_main, validate
from seqlit.train.checkpoints import load_checkpoint

WORDS = dict(one='eins', two='zwei', three='drei', four='vier', five='fünf', six='sechs')


def seqlit(command: str, *words) -> str:
    "What a command prints, in a process of its own."
    code = f'import sys; from seqlit.cli.{command} import main; sys.exit(main())'
    done = subprocess.run([sys.executable, '-c', code, *map(str, words)], capture_output=True, text=True, encoding='utf-8', timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> Path:
    "A folder with data and a short run, whose log is kept."
    folder = tmp_path_factory.mktemp('run')
    lines = [f'{a} {b} {c}' for a in WORDS for b in WORDS for c in WORDS]
    for split, rows in dict(train=lines[:150], valid=lines[3::7]).items():
        (folder/f'{split}.en').write_text('\n'.join(rows) + '\n', encoding='utf-8')
        german = [' '.join(WORDS[w] for w in reversed(row.split())) for row in rows]
        (folder/f'{split}.de').write_text('\n'.join(german) + '\n', encoding='utf-8')
    assert preprocess(['-s', 'en', '-t', 'de', '--trainpref', str(folder/'train'), '--validpref', str(folder/'valid'),
                       '--destdir', str(folder/'data')]) == 0
    log = seqlit('train', folder/'data', '--arch', 'transformer_tiny', '--encoder-layers', 1, '--decoder-layers', 1, '--optimizer', 'adam',
                 '--lr', '2e-3', '--max-tokens', 60, '--max-epoch', 3, '--cpu', '--criterion', 'label_smoothed_cross_entropy',
                 '--label-smoothing', .1, '--save-dir', folder/'run', '--log-format', 'json', '--save-interval-updates', 4,
                 '--keep-best-checkpoints', 2, '--num-workers', 0)
    (folder/'log').write_text(log, encoding='utf-8')
    return folder


def logged(run: Path) -> dict[str, dict]:
    "num_updates -> what the log said of the validation."
    found = {}
    for line in (run/'log').read_text(encoding='utf-8').splitlines():
        if '| valid | {' in line:
            values = json.loads(line.split(' | ')[3])
            found[values['valid_num_updates']] = values
    return found


def test_equals_the_log(run):
    told = logged(run)
    assert len(told) >= 4
    names = [f'checkpoint{epoch}.pt' for epoch in (1, 2, 3)] + [path.name for path in (run/'run').glob('checkpoint_1_*.pt')]
    assert len(names) > 3
    for name in names:
        path = run/'run'/name
        updates = load_checkpoint(path)['optimizer_history'][-1]['num_updates']
        values = validate(run/'data', path, cpu=True, num_workers=0)['valid']
        wanted = told[str(updates)]
        for key in 'loss', 'nll_loss', 'ppl', 'wpb', 'bsz':
            assert f'{values[key]:g}' == wanted[f'valid_{key}'], (name, key)


def test_command_prints_the_line(run):
    text = seqlit('validate', run/'data', '--path', run/'run'/'checkpoint3.pt', '--cpu', '--valid-subset', 'valid', '--batch-size', 16)
    line, = [line for line in text.splitlines() if "valid on 'valid' subset" in line]
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \| INFO \| valid \| valid on 'valid' subset \| loss [\d.]+ \| nll_loss ", line)


def test_errors(run, capsys):
    for argv, part in [(['--path', 'nowhere.pt'], 'nowhere.pt'), ([], '--path is missing'),
                       (['--path', str(run/'run'/'checkpoint3.pt'), '--valid-subset', 'tset'], 'tset'),
                       (['--path', str(run/'run'/'checkpoint3.pt'), '--model-overrides', '3'], '--model-overrides 3')]:
        assert validate_main([str(run/'data'), '--cpu', *argv]) == 2
        error = capsys.readouterr().err.strip()
        assert part in error and 'Traceback' not in error
