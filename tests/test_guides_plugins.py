"The folders of the two tutorials work with the commands, as a newcomer would run them."
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDES = Path(__file__).resolve().parent.parent / 'nbs' / 'guides'


def call(folder: Path, *words, stdin: str | None = None) -> str:
    "What a Python command prints; it must not fail."
    done = subprocess.run([sys.executable, *map(str, words)], cwd=folder, capture_output=True, text=True, encoding='utf-8', input=stdin,
                          env=os.environ | {'PYTHONPATH': str(GUIDES.parent.parent), 'PYTHONUTF8': '1'}, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def seqlit(folder: Path, *words, stdin: str | None = None) -> str:
    return call(folder, '-m', 'seqlit.cli.main', *words, stdin=stdin)


def write(folder: Path, source: str, target: str, pairs: dict[str, list[tuple[str, str]]]):
    "Text of each split, and the data folder made of it."
    for split, rows in pairs.items():
        for language, lines in zip((source, target), zip(*rows)):
            (folder / f'{split}.{language}').write_text('\n'.join(lines) + '\n', encoding='utf-8')
    seqlit(folder, 'preprocess', '-s', source, '-t', target, '--trainpref', 'train', '--validpref', 'valid', '--testpref', 'test',
           '--destdir', 'data-bin')


TRAIN = ['--optimizer', 'adam', '--lr', '0.01', '--max-tokens', '800', '--num-workers', '0', '--no-epoch-checkpoints', '--cpu',
         '--clip-norm', '1']


@pytest.fixture(scope='module')
def translator(tmp_path_factory) -> tuple[Path, str]:
    "A folder with a simple LSTM that reverses two or three letters, and what its training printed."
    folder, draw = tmp_path_factory.mktemp('simple_lstm'), random.Random(1)
    rows = [' '.join(draw.choices('abcd', k=draw.randint(2, 3))) for _ in range(400)]
    pairs = [(row, row[::-1]) for row in rows]
    write(folder, 'forth', 'back', {'train': pairs[:300], 'valid': pairs[300:350], 'test': pairs[350:]})
    told = seqlit(folder, 'train', 'data-bin', '--user-dir', GUIDES / 'simple_lstm', '--arch', 'tutorial_simple_lstm', *TRAIN,
                  '--max-update', 150)
    return folder, told


def test_simple_lstm_learns_and_translates(translator):
    folder, told = translator
    assert 'epoch 50 @ 150 updates' in told
    words = ['generate', 'data-bin', '--path', 'checkpoints/checkpoint_best.pt', '--user-dir', GUIDES / 'simple_lstm', '--cpu']
    found = {beam: dict(re.findall(r'^D-(\d+)\t\S+\t(.*)$', seqlit(folder, *words, '--beam', beam), re.M)) for beam in (1, 4)}
    right = (folder / 'test.back').read_text(encoding='utf-8').splitlines()
    for beam, texts in found.items():
        assert len(texts) == 50
        assert sum(texts[str(i)] == text for i, text in enumerate(right)) > 45, beam


def test_simple_lstm_in_interactive(translator):
    told = seqlit(translator[0], 'interactive', 'data-bin', '--path', 'checkpoints/checkpoint_best.pt', '--user-dir',
                  GUIDES / 'simple_lstm', '--cpu', stdin='a b c\nd a\n')
    assert re.findall(r'^D-\d+\t\S+\t(.*)$', told, re.M) == ['c b a', 'a d']


def test_without_the_folder_the_name_is_unknown(translator):
    done = subprocess.run([sys.executable, '-m', 'seqlit.cli.main', 'generate', 'data-bin', '--path', 'checkpoints/checkpoint_best.pt'],
                          cwd=translator[0], capture_output=True, text=True, timeout=300,
                          env=os.environ | {'PYTHONPATH': str(GUIDES.parent.parent)})
    assert done.returncode == 2 and 'tutorial_simple_lstm' in done.stderr


def test_name_classifier_learns_and_classifies(tmp_path):
    draw = random.Random(1)
    kinds = {'Vowelish': ('aeiou', 'lmn'), 'Hardish': ('a', 'ktrpg')}

    def name(kind):
        vowels, others = kinds[kind]
        return ''.join(draw.choice(others) + draw.choice(vowels) for _ in range(draw.randint(2, 4)))
    pairs = [(' '.join(name(kind)), kind) for kind in draw.choices(list(kinds), k=400)]
    write(tmp_path, 'name', 'label', {'train': pairs[:300], 'valid': pairs[300:350], 'test': pairs[350:]})
    told = seqlit(tmp_path, 'train', 'data-bin', '--user-dir', GUIDES / 'name_classifier', '--task', 'name_classification',
                  '--arch', 'tiny_rnn_classifier', '--criterion', 'label_smoothed_cross_entropy', '--report-accuracy', *TRAIN,
                  '--max-update', 60, '--log-format', 'simple')
    accuracy = [float(x) for x in re.findall(r'accuracy[= ](\d+\.?\d*)', told)]
    assert accuracy and accuracy[-1] > 95
    told = call(tmp_path, GUIDES / 'name_classifier' / 'classify.py', 'checkpoints/checkpoint_best.pt',
                stdin='lemina\nkatapara\nnoli\n')
    answers = [line.split('\t')[:2] for line in told.splitlines() if '\t' in line]
    assert [(name, label.split()[0]) for name, label in answers] == [('lemina', 'Vowelish'), ('katapara', 'Hardish'), ('noli', 'Vowelish')]


def test_a_missing_dictionary_is_named(tmp_path):
    done = subprocess.run([sys.executable, '-m', 'seqlit.cli.main', 'train', str(tmp_path), '--user-dir', str(GUIDES / 'name_classifier'),
                           '--task', 'name_classification', '--arch', 'rnn_classifier', '--optimizer', 'adam', '--cpu'],
                          cwd=tmp_path, capture_output=True, text=True, timeout=300,
                          env=os.environ | {'PYTHONPATH': str(GUIDES.parent.parent)})
    assert done.returncode == 2 and 'dict.name.txt' in done.stderr and '--source-lang name' in done.stderr
