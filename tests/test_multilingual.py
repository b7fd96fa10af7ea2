"Several pairs of languages from a folder as fairseq's preprocessing leaves it: train, resume, translate, through the commands."

import random
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path

import pytest
import torch

from test_commands import refused

WORDS = {
    'en': 'one two three four five six'.split(),
    'de': 'eins zwei drei vier fünf sechs'.split(),
    'fr': 'un deux trois quatre cinq six'.split(),
}
TINY = '--encoder-layers 1 --decoder-layers 1 --encoder-embed-dim 32 --decoder-embed-dim 32 --encoder-ffn-embed-dim 64'
TINY += ' --decoder-ffn-embed-dim 64 --encoder-attention-heads 4 --decoder-attention-heads 4 --dropout 0'
TRAIN = [*TINY.split(), '--optimizer', 'adam', '--lr', '5e-3', '--batch-size', '32', '--cpu', '--no-progress-bar', '--log-format', 'none']


def seqlit(command: str, *words, check: bool = True, stdin: str = '') -> subprocess.CompletedProcess:
    "Run a command in this process, which has loaded torch already."
    from seqlit.cli.main import main

    out, err, before = StringIO(), StringIO(), sys.stdin
    sys.stdin = TextIOWrapper(BytesIO(stdin.encode()), encoding='utf-8')
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = main([command, *map(str, words)])
    finally:
        sys.stdin = before
    assert not check or code == 0, err.getvalue()
    return subprocess.CompletedProcess([], code, out.getvalue(), err.getvalue())


def write_text(folder: Path, pair: str, split: str, count: int, seed: int):
    "Random numbers in two languages, the second read backwards."
    rng, (source, target) = random.Random(seed), pair.split('-')
    rows = [[rng.randrange(6) for _ in range(rng.randint(1, 3))] for _ in range(count)]
    for language, step in [(source, 1), (target, -1)]:
        lines = ''.join(' '.join(WORDS[language][i] for i in row[::step]) + '\n' for row in rows)
        (folder / f'{split}.{pair}.{language}').write_text(lines, encoding='utf-8')


@pytest.fixture(scope='session')
def folder(tmp_path_factory) -> Path:
    "One data folder with two pairs and a dictionary that all languages have in common."
    text, data = tmp_path_factory.mktemp('text'), tmp_path_factory.mktemp('multi') / 'data-bin'
    everything = ''.join(f'{word} 1\n' for words in WORDS.values() for word in words if word != 'six')
    (text / 'dict.txt').write_text(everything + 'six 2\n', encoding='utf-8')
    for number, (pair, count) in enumerate([('de-en', 400), ('en-fr', 400)]):
        for split, size in [('train', count), ('valid', 20 + 10 * number), ('test', 12)]:
            write_text(text, pair, split, size, seed=10 * number + len(split))
        source, target = pair.split('-')
        stage = data.parent / pair
        prefs = [word for split in ('train', 'valid', 'test') for word in (f'--{split}pref', text / f'{split}.{pair}')]
        seqlit('preprocess', '-s', source, '-t', target, *prefs, '--srcdict', text / 'dict.txt', '--tgtdict', text / 'dict.txt',
               '--destdir', stage)
        data.mkdir(exist_ok=True)
        for file in stage.iterdir():
            if file.name != 'preprocess.log':
                (data / file.name).write_bytes(file.read_bytes())
    return data


def exact(out: str) -> float:
    "The share of translations that equal their reference, of all."
    lines = dict(line.split('\t', 1) for line in out.splitlines() if line[:2] in ('T-', 'D-'))
    pairs = [(lines[key], lines['D-' + key[2:]].split('\t')[1]) for key in lines if key.startswith('T-')]
    assert len(pairs) == 12
    return sum(a == b for a, b in pairs) / len(pairs)


def parameters(path: Path) -> dict:
    return torch.load(path, weights_only=True)['model']


MULTI = ['--task', 'multilingual_translation', '--lang-pairs', 'de-en,en-fr', '--encoder-langtok', 'tgt', '--decoder-langtok']


@pytest.fixture(scope='session')
def table(folder, tmp_path_factory) -> Path:
    "Checkpoints of a table of models, with common embeddings."
    save = tmp_path_factory.mktemp('table')
    seqlit('train', folder, *MULTI, '--arch', 'multilingual_transformer', '--share-encoders', '--share-decoders', *TRAIN,
           '--max-epoch', 12, '--save-dir', save, '--no-epoch-checkpoints')
    return save


@pytest.mark.parametrize('pair', ['de-en', 'en-fr'])
def test_a_table_of_models_translates_each_pair(folder, table, pair):
    source, target = pair.split('-')
    state = parameters(table / 'checkpoint_best.pt')
    assert {name.split('.')[1] for name in state} == {'de-en', 'en-fr'}
    assert 'models.de-en.encoder.layers.0.fc1.weight' in state
    done = seqlit('generate', folder, '-s', source, '-t', target, '--path', table / 'checkpoint_best.pt', '--beam', 3, '--cpu',
                  '--task', 'multilingual_translation')
    assert exact(done.stdout) > 0.7, done.stdout
    typed = seqlit('interactive', folder, '-s', source, '-t', target, '--path', table / 'checkpoint_best.pt', '--cpu',
                   '--task', 'multilingual_translation', stdin=' '.join(WORDS[source][:2]) + '\n')
    assert f'\t{" ".join(WORDS[target][:2][::-1])}\n' in typed.stdout, typed.stdout


def test_the_log_has_the_loss_of_each_pair(folder, tmp_path):
    from seqlit.cli.train import make_trainer
    from seqlit.train.events import Validated

    trainer = make_trainer(
        folder, task='multilingual_translation', lang_pairs='de-en,en-fr', arch='multilingual_transformer', encoder_layers=1,
        decoder_layers=1, encoder_embed_dim=16, optimizer='adam', lr=[1e-3], batch_size=32, cpu=True, max_update=2,
        encoder_attention_heads=2, decoder_attention_heads=2, save_dir=str(tmp_path), criterion='label_smoothed_cross_entropy')
    report = next(event.report for event in trainer.run() if isinstance(event, Validated))
    assert {'loss', 'ppl', 'de-en:loss', 'de-en:nll_loss', 'de-en:ppl', 'en-fr:loss'} <= report.keys()
    low, high = sorted([report['de-en:loss'], report['en-fr:loss']])
    assert low <= report['loss'] <= high


def run_twice(folder: Path, base: Path, *words) -> list[dict]:
    "The parameters after two epochs, in one go and in two runs."
    whole, parts = base / 'whole', base / 'parts'
    seqlit('train', folder, *words, '--save-dir', whole, '--max-epoch', 3)
    seqlit('train', folder, *words, '--save-dir', parts, '--max-update', 5)
    seqlit('train', folder, *words, '--save-dir', parts, '--max-epoch', 3)
    return [parameters(save / 'checkpoint_last.pt') for save in (whole, parts)]


SIMPLE = ['--task', 'translation_multi_simple_epoch', '--lang-pairs', 'de-en,en-fr', '--decoder-langtok', '--arch', 'transformer',
          '--share-all-embeddings']


@pytest.mark.parametrize('words', [
    [*MULTI, '--arch', 'multilingual_transformer'],
    [*SIMPLE, '--sampling-method', 'temperature', '--sampling-temperature', 5, '--virtual-epoch-size', 96, '--num-workers', 2],
], ids=['table', 'sampled'])
def test_a_resumed_run_is_the_unbroken_one(folder, tmp_path, words):
    whole, parts = run_twice(folder, tmp_path, *words, *TRAIN, '--dropout', 0.1)
    assert whole.keys() == parts.keys()
    for name in whole:
        assert torch.equal(whole[name], parts[name]), name


@pytest.mark.parametrize('how', [[], ['--lang-tok-replacing-bos-eos']], ids=['prepended', 'replacing'])
def test_one_model_writes_two_languages(folder, tmp_path, how):
    seqlit('train', folder, *SIMPLE, *how, '--sampling-method', 'uniform', *TRAIN, '--max-epoch', 16, '--save-dir', tmp_path,
           '--no-epoch-checkpoints')
    path = tmp_path / 'checkpoint_best.pt'
    for source, target in [('de', 'en'), ('en', 'fr')]:
        done = seqlit('generate', folder, '-s', source, '-t', target, '--path', path, '--beam', 3, '--cpu', *SIMPLE[:2])
        assert exact(done.stdout) > 0.7, done.stdout
        assert '__' not in done.stdout.split('Generate')[0], 'language tokens are not words'
    done = seqlit('generate', folder, '-s', 'en', '-t', 'fr', '--path', path, '--beam', 1, '--cpu', '--keep-inference-langtok',
                  *SIMPLE[:2])
    assert ('\t__fr__ ' in done.stdout) == (not how)
    typed = seqlit('interactive', folder, '-s', 'en', '-t', 'fr', '--path', path, '--cpu', *SIMPLE[:2], stdin='one two\n')
    assert '\tdeux un\n' in typed.stdout, typed.stdout


def test_a_table_of_models_is_known_by_its_checkpoint(folder, table):
    asked = 'generate', folder, '-s', 'de', '-t', 'en', '--path', table / 'checkpoint_best.pt', '--cpu'
    found = seqlit(*asked)
    assert found.stdout.splitlines()[-1].startswith('Generate test with beam=5: BLEU4 = ')
    refused(seqlit(*asked, '--task', 'translation', check=False), 'multilingual')


def test_what_does_not_fit_is_named(folder, tmp_path):
    words = ['--optimizer', 'adam', '--batch-size', 8, '--cpu', '--save-dir', tmp_path]
    done = seqlit('train', folder, '--task', 'multilingual_translation', '--arch', 'multilingual_transformer', *words, check=False)
    refused(done, '--lang-pairs is missing')
    done = seqlit('train', folder, *MULTI, '--arch', 'transformer', *words, check=False)
    refused(done, 'translation_multi_simple_epoch')
    done = seqlit('train', folder, '--task', 'translation_multi_simple_epoch', '--lang-pairs', 'de-en,xx-en', '--arch', 'transformer',
                  *words, check=False)
    refused(done, "language 'xx'")
