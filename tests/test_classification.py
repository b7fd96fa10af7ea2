"Masked language models, classifiers, regression and ranking through the commands, on tiny data."

import ast
import contextlib
import dataclasses
import io
import json
import logging
import random
import shutil
from types import SimpleNamespace

import pytest
import torch

from seqlit.base.config import default_of, flag_of
from seqlit.cli import main, validate
from seqlit.hub.mask_filler import MaskFiller
from seqlit.hub.sentence_classifier import SentenceClassifier
from seqlit.tasks.language_modeling import load_plain_dictionary
from seqlit.tasks.masked_lm import MaskedLMOptions
from seqlit.tasks.sentence_prediction import SentenceTaskOptions, write_rows, write_sentence_data
from seqlit.train.checkpoints import load_checkpoint
from seqlit.train.sentence_losses import SentencePredictionOptions, SentenceRankingOptions
from test_commands import refused
from test_flags import rows as flag_rows

LETTERS = 'a b c d e f g h'.split()
TINY = ['--encoder-layers', 1, '--encoder-embed-dim', 32, '--encoder-ffn-embed-dim', 64,
        '--encoder-attention-heads', 2]  # fmt: skip
RUN = ['--optimizer', 'adam', '--cpu', '--log-format', 'json', '--required-batch-size-multiple', 1,
       '--num-workers', 0]  # fmt: skip
BERT = ['--init-token', 0, '--separator-token', 2, '--max-positions', 16, '--dropout', 0, '--attention-dropout', 0]


def seqlit(command: str, *words, check: bool = True) -> SimpleNamespace:
    "Run a command in this process: what it returned, and what it wrote."
    root, out, err = logging.getLogger(), io.StringIO(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            if command == 'validate':
                code = validate.main(list(map(str, words)))
            else:
                code = main.main([command, *map(str, words)])
    finally:
        root.handlers[:], root.level = handlers, level
    assert not check or code == 0, err.getvalue()
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def rows(count: int, seed: int = 1) -> list[tuple[str, str]]:
    "Strings of letters that go up or down the alphabet, and which way."
    draw, found = random.Random(seed), []
    for _ in range(count):
        start, step = draw.randrange(8), draw.choice([1, -1])
        found.append(
            (' '.join(LETTERS[(start + step * n) % 8] for n in range(10)), 'up' if step > 0 else 'down')
        )
    return found


def last(done, tag: str) -> dict:
    "The last report of a kind in a JSON log."
    found = [line.split(' | ', 3)[3] for line in done.stdout.splitlines() if f'| {tag} | {{' in line]
    return json.loads(found[-1])


@pytest.fixture(scope='session')
def texts(tmp_path_factory):
    "Text files with sentences and labels."
    folder = tmp_path_factory.mktemp('sentences')
    for split, count, seed in [('train', 400, 1), ('valid', 100, 2)]:
        made = rows(count, seed)
        for number, kind in enumerate(('text', 'label')):
            (folder / f'{split}.{kind}').write_text('\n'.join(r[number] for r in made) + '\n')
    return folder


@pytest.fixture(scope='session')
def data(texts, tmp_path_factory):
    "The same, made into a data folder by two calls of preprocess."
    folder = tmp_path_factory.mktemp('layout')
    for part, kind in [('input0', 'text'), ('label', 'label')]:
        seqlit('preprocess', '--only-source', '--trainpref', texts / f'train.{kind}',
               '--validpref', texts / f'valid.{kind}', '--destdir', folder / part)  # fmt: skip
    return folder


@pytest.fixture(scope='session')
def pretrained(data, tmp_path_factory):
    "A masked language model of the sentences, and its last report."
    folder = tmp_path_factory.mktemp('roberta')
    done = seqlit('train', data / 'input0', '--task', 'masked_lm', '--arch', 'roberta', '--criterion', 'masked_lm',
                  *TINY, *RUN, '--dropout', 0, '--attention-dropout', 0, '--sample-break-mode', 'eos',
                  '--tokens-per-sample', 16, '--max-positions', 16, '--mask-prob', 0.15, '--lr', 5e-3,
                  '--batch-size', 25, '--max-epoch', 30, '--save-dir', folder, '--no-epoch-checkpoints')  # fmt: skip
    return folder / 'checkpoint_best.pt', last(done, 'valid')


def train(data, folder, *more, task='sentence_prediction', **kwargs):
    "Train something that sorts sentences."
    return seqlit('train', data, '--task', task, '--criterion', task, *RUN, '--batch-size', 40,
                  '--save-dir', folder, '--no-epoch-checkpoints', *more, **kwargs)  # fmt: skip


def test_a_masked_model_learns_a_text_that_can_be_foreseen(pretrained):
    path, report = pretrained
    assert float(report['valid_accuracy']) > 95
    assert float(report['valid_ppl']) < 1.5
    best = MaskFiller.load(path).fill_mask('a b c d <mask> f g h a b')[0]
    assert (best.word, best.text) == ('e', 'a b c d e f g h a b') and best.probability > 0.9


def test_pretraining_becomes_a_classifier(pretrained, data, tmp_path):
    "As RoBERTa is fine-tuned: --restore-file with everything else reset, and a head that is new."
    done = train(data, tmp_path, '--arch', 'roberta', *TINY, *BERT, '--restore-file', pretrained[0],
                 '--reset-optimizer', '--reset-dataloader', '--reset-meters', '--num-classes', 2, '--lr', 1e-3,
                 '--best-checkpoint-metric', 'accuracy', '--maximize-best-checkpoint-metric', '--report-mcc',
                 '--max-epoch', 20)  # fmt: skip
    report = last(done, 'valid')
    assert float(report['valid_accuracy']) > 95 and float(report['valid_mcc']) > 90
    before, after = (load_checkpoint(p)['model'] for p in (pretrained[0], tmp_path / 'checkpoint_best.pt'))
    assert {n for n in after if n not in before} == {
        f'classification_heads.sentence_classification_head.{layer}.{kind}'
        for layer in ('dense', 'out_proj')
        for kind in ('weight', 'bias')
    }
    moved = max(float((after[n] - x).abs().max()) for n, x in before.items())
    drawn = float(before['encoder.sentence_encoder.embed_tokens.weight'].std())
    assert 0 < moved < 2 * drawn  # it went on from there
    classifier = SentenceClassifier.load(tmp_path / 'checkpoint_best.pt')
    answers = classifier.predict(['a b c d e f g h a b', 'f e d c b a h g f e'])
    assert [answer.label for answer in answers] == ['up', 'down']


@pytest.mark.parametrize('pooling', ['mean', 'attention'])
def test_a_classifier_from_nothing(data, tmp_path, pooling):
    done = train(data, tmp_path, '--arch', 'classifier', *TINY, '--pooling', pooling, '--dropout', 0, '--lr', 5e-3,
                 '--report-acc-and-f1', '--max-epoch', 16)  # fmt: skip
    report = last(done, 'valid')
    assert float(report['valid_accuracy']) > 95 and float(report['valid_f1']) > 95
    classifier = SentenceClassifier.load(tmp_path / 'checkpoint_best.pt', data)
    made = rows(50, 3)
    right = [answer.label == label for answer, (_, label) in zip(classifier.predict([t for t, _ in made]), made)]
    assert sum(right) >= 48
    again = train(data, tmp_path, '--arch', 'classifier', *TINY, '--pooling', pooling, '--lr', 5e-3, '--max-epoch', 17)
    assert 'loaded checkpoint' in again.stdout


def test_numbers_of_pairs(tmp_path):
    "Regression: how far apart two letters are, in pairs written by one function."
    draw, folder = random.Random(4), tmp_path / 'pairs'
    for split, count in [('train', 600), ('valid', 80)]:
        ends = [(draw.randrange(8), draw.randrange(8)) for _ in range(count)]
        write_sentence_data(folder, split, [(LETTERS[x], LETTERS[y]) for x, y in ends],
                            [(y - x) / 4 for x, y in ends])  # fmt: skip
    assert sorted(p.name for p in folder.iterdir()) == ['input0', 'input1', 'label']
    done = train(folder, tmp_path / 'save', '--arch', 'roberta', *TINY, *BERT, '--regression-target',
                 '--report-pearson-and-spearman', '--lr', 1e-3, '--max-epoch', 8)  # fmt: skip
    report = last(done, 'valid')
    assert float(report['valid_pearson']) > 95 and float(report['valid_spearman']) > 95
    assert 'valid_accuracy' not in report and report['valid_judged'] == '80'
    model = SentenceClassifier.load(tmp_path / 'save' / 'checkpoint_best.pt')
    near, far = model.predict([('a', 'b'), ('a', 'h')])
    assert near.label < far.label and abs(far.label - 7 / 4) < 0.5


def test_ranking(tmp_path):
    "Which letter is next? The answers of the validation are written to a file."
    folder, draw = tmp_path / 'choices', random.Random(5)
    for split, count in [('train', 400), ('valid', 60)]:
        starts, right = zip(*[(draw.randrange(8), draw.randrange(2)) for _ in range(count)])
        write_sentence_data(folder, split, [f'{LETTERS[s]} {LETTERS[(s + 1) % 8]}' for s in starts], right)
        for n in range(2):
            column = [LETTERS[(s + 2 + (0 if r == n else draw.randrange(2, 7))) % 8] for s, r in zip(starts, right)]
            write_rows(folder / f'input{n + 1}', split, column, load_plain_dictionary(folder / 'input0'))
    answers = tmp_path / 'answers.tsv'
    done = train(folder, tmp_path / 'save', '--arch', 'classifier', *TINY, '--init-token', 0, '--separator-token', 2,
                 '--dropout', 0, '--lr', 5e-3, '--max-epoch', 10, '--save-predictions', answers,
                 task='sentence_ranking')  # fmt: skip
    assert float(last(done, 'valid')['valid_accuracy']) > 95
    lines = [line.split('\t') for line in answers.read_text().splitlines()][-60:]
    assert sorted(int(i) for i, _, _ in lines) == list(range(60))
    assert sum(said == truth for _, said, truth in lines) > 57


def test_whole_words_are_hidden_together(data, tmp_path):
    (tmp_path / 'text').write_text('\u2581ab c \u2581d e f \u2581g\n' * 30)
    seqlit('preprocess', '--only-source', '--trainpref', tmp_path / 'text', '--validpref', tmp_path / 'text',
           '--destdir', tmp_path / 'bin')  # fmt: skip
    done = seqlit('train', tmp_path / 'bin', '--task', 'masked_lm', '--arch', 'roberta_prenorm', '--criterion',
                  'masked_lm', *TINY, *RUN, '--mask-whole-words', '--mask-multiple-length', 2, '--mask-stdev', 0.5,
                  '--tokens-per-sample', 16, '--sample-break-mode', 'complete', '--lr', 1e-3, '--batch-size', 8,
                  '--max-update', 3, '--save-dir', tmp_path / 'save')  # fmt: skip
    assert float(last(done, 'valid')['valid_loss']) > 0


def test_what_is_wrong_is_said_in_one_line(data, texts, pretrained, tmp_path):
    refused(train(data, tmp_path, '--arch', 'transformer', '--lr', 1e-3, check=False), 'no classification heads')
    refused(train(data / 'input0', tmp_path, '--arch', 'classifier', '--lr', 1e-3, check=False), 'label', 'no such folder')
    refused(train(data, tmp_path, '--arch', 'classifier', '--encoder-arch', 'lstn', '--lr', 1e-3, check=False), 'lstn')
    refused(train(data, tmp_path, '--arch', 'roberta', *TINY, '--max-positions', 16, '--num-classes', 1,
                  '--restore-file', pretrained[0], '--reset-optimizer', '--reset-dataloader', '--reset-meters',
                  '--lr', 1e-3, check=False), 'class 1', '--num-classes')  # fmt: skip
    done = train(data, tmp_path, '--arch', 'roberta', *TINY, '--max-positions', 32, '--lr', 1e-3,
                 '--restore-file', pretrained[0], '--reset-optimizer', check=False)  # fmt: skip
    assert done.returncode == 2 and 'embed_positions.weight: (18, 32) in the checkpoint, (34, 32)' in done.stderr
    refused(seqlit('train', data / 'input0', '--task', 'masked_lm', '--arch', 'roberta', '--optimizer', 'adam',
                   '--batch-size', 8, '--mask-prob', 1.5, check=False), '--mask-prob 1.5')  # fmt: skip
    words = seqlit('train', data, '--task', 'sentence_prediction', '--arch', 'roberta', *TINY, *RUN, '--lr', 1e-3,
                   '--batch-size', 8, '--save-dir', tmp_path, check=False)  # fmt: skip
    refused(words, '--criterion cross_entropy judges words', '--criterion sentence_prediction')
    refused(seqlit('generate', data / 'input0', '--path', pretrained[0], '--cpu', '--gen-subset', 'valid', check=False),
            'writes no text', 'MaskFiller.load(PATH)')  # fmt: skip


def test_a_checkpoint_of_2019_loads(pretrained, tmp_path):
    "The names of the first RoBERTa: `decoder`, `emb_layer_norm`, one matrix for query, key and value; plain args."
    state = load_checkpoint(pretrained[0])
    old, today = {}, state['model']
    for name, x in today.items():
        if '.k_proj.' in name or '.v_proj.' in name or name.endswith('version'):
            continue
        if '.q_proj.' in name:
            x = torch.cat([today[name.replace('q_proj', f'{n}_proj')] for n in 'qkv'])
        for new, before in [('encoder.', 'decoder.'), ('q_proj.', 'in_proj_'), ('layernorm_embedding', 'emb_layer_norm')]:
            name = name.replace(new, before, 1)
        old[name] = x
    model, task = state['cfg']['model'], state['cfg']['task']
    args = {k: v for k, v in (task | model).items() if k not in ('_name', 'layernorm_embedding')}
    torch.save({'model': old, 'args': args | {'arch': 'roberta', 'task': 'masked_lm'}}, tmp_path / 'old.pt')
    found = [MaskFiller.load(path).fill_mask('a b c d <mask> f g h a b')[0] for path in (pretrained[0], tmp_path / 'old.pt')]
    assert found[0] == found[1]


@pytest.mark.parametrize('section, options', [
    ('--task masked_lm (', MaskedLMOptions), ('--task sentence_prediction (', SentenceTaskOptions),
    ('Criterion `sentence_prediction` (', SentencePredictionOptions),
    ('Criterion `sentence_ranking` (', SentenceRankingOptions)])  # fmt: skip
def test_flags_and_defaults_are_fairseqs(shared, section, options):
    "All but the one flag of data2vec, which is not a model of the text core."
    ours = {flag_of(f.name): default_of(f) for f in dataclasses.fields(options)}
    text = (shared / 'fairseq' / 'flags.md').read_text(encoding='utf-8')
    found = {flag: default for (flag,), _, default in flag_rows(text, section)}
    assert set(found) - set(ours) <= {'--d2v2-multi'}
    for flag, default in found.items():
        assert flag not in ours or ours[flag] == ast.literal_eval(default), flag


def test_validate_and_learn_from_a_folder_that_moved(data, tmp_path):
    "A checkpoint is judged again by another command, on data that lies elsewhere."
    done = train(data, tmp_path, '--arch', 'classifier', *TINY, '--lr', 5e-3, '--max-epoch', 2, '--report-mcc')
    moved = shutil.copytree(data, tmp_path / 'moved')
    again = seqlit('validate', moved, '--path', tmp_path / 'checkpoint_last.pt', '--cpu', '--results-path', tmp_path)
    report = json.loads((tmp_path / 'validate-valid.json').read_text())
    assert float(last(done, 'valid')['valid_loss']) == float(report['loss'])
    assert float(last(done, 'valid')['valid_mcc']) == float(report['mcc']), again.stdout
