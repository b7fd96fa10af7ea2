"`--eval-bleu`: the score of a validation is that of its translations, and nothing else of the run changes."
import json
import random
import re
from pathlib import Path

import pytest
import test_commands
import torch
from sacrebleu.metrics import BLEU
from test_commands import refused
from test_multilingual import seqlit

from seqlit.cli.generate import generate
from seqlit.cli.train import make_trainer
from seqlit.train.events import Validated

NUMBERS = dict(one='eins', two='zwei', three='drei', four='vier', five='fünf', six='se@@ chs', seven='sie@@ ben')
WORDS = dict(task='translation', arch='transformer', encoder_layers=1, decoder_layers=1, encoder_embed_dim=32, decoder_embed_dim=32,
             encoder_ffn_embed_dim=64, decoder_ffn_embed_dim=64, encoder_attention_heads=4, decoder_attention_heads=4, dropout=.1,
             optimizer='adam', lr=[5e-3], batch_size=32, cpu=True, seed=3)
FLAGS = [word for name, value in WORDS.items() for word in (
    ['--' + name.replace('_', '-')] + ([] if value is True else [str(value[0] if name == 'lr' else value)]))]
FLAGS += ['--no-progress-bar', '--log-format', 'json']
SEARCH = dict(beam=2, lenpen=.6, max_len_a=1.5, max_len_b=3)
ASKED = dict(eval_bleu=True, eval_bleu_args=json.dumps(SEARCH), eval_bleu_remove_bpe='@@ ')


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    "Sentences of four to seven numbers, read backwards, with an end that a tokenizer has cut off."
    text, rng = tmp_path_factory.mktemp('text'), random.Random(1)
    for split, count in [('train', 320), ('valid', 45)]:
        rows = [rng.choices(list(NUMBERS), k=rng.randint(4, 7)) for _ in range(count)]
        (text / f'{split}.en').write_text('\n'.join(' '.join(row) + ' .' for row in rows) + '\n', encoding='utf-8')
        german = [' '.join(NUMBERS[word] for word in reversed(row)) + ' .' for row in rows]
        (text / f'{split}.de').write_text('\n'.join(german) + '\n', encoding='utf-8')
    seqlit('preprocess', '-s', 'en', '-t', 'de', '--trainpref', text / 'train', '--validpref', text / 'valid', '--destdir', text / 'bin')
    return text / 'bin'


def run(data, save, **options) -> tuple[list[dict], object]:
    "What each validation reported, and the trainer."
    trainer = make_trainer(data, save_dir=str(save), **{**WORDS, **options})
    reports = [event.report for event in trainer.run() if isinstance(event, Validated)]
    return [{name: value for name, value in report.items() if name != 'wps'} for report in reports], trainer


@pytest.fixture(scope='module')
def trained(data, tmp_path_factory) -> tuple[Path, list[dict]]:
    "A run of ten epochs that kept the best checkpoint by BLEU, and its reports."
    save = tmp_path_factory.mktemp('run')
    return save, run(data, save, max_epoch=10, best_checkpoint_metric='bleu', maximize_best_checkpoint_metric=True, **ASKED)[0]


def test_equals_generate_and_sacrebleu(data, trained):
    save, reports = trained
    scores = [report['bleu'] for report in reports]
    assert len(set(scores)) > 5 and max(scores) > 20, scores
    for epoch in (1, 6, 10):
        found = generate(data, save / f'checkpoint{epoch}.pt', gen_subset='valid', post_process='@@ ', scoring='sacrebleu', cpu=True,
                         batch_size=7, **SEARCH)
        assert round(found.scorer.score(), 2) == scores[epoch - 1]


@pytest.mark.parametrize('asked, said', [
    (dict(eval_bleu_detok='moses', eval_bleu_remove_bpe='@@ '), dict(tokenizer='moses', post_process='@@ ')),
    (dict(eval_tokenized_bleu=True, eval_bleu_remove_bpe='@@ '), dict(sacrebleu_tokenizer='none', post_process='@@ ')),
    (dict(eval_tokenized_bleu=True), dict(sacrebleu_tokenizer='none')),
    (dict(eval_bleu_args='{"beam": 1, "max_len_b": 6}'), dict(beam=1, max_len_a=0, max_len_b=6, lenpen=1.))])
def test_ways_to_compare(data, trained, asked, said):
    pytest.importorskip('sacremoses')
    path = trained[0] / 'checkpoint10.pt'
    found = generate(data, path, gen_subset='valid', cpu=True, **{'scoring': 'sacrebleu', **SEARCH, **said})
    asked = {**ASKED, 'eval_bleu_remove_bpe': 'none', **asked}
    words = [word for name, value in asked.items()
             for word in ['--' + name.replace('_', '-')] + ([] if value is True else [value])]
    # `seqlit-validate` judges with the task of the checkpoint, changed by the flags
    out = seqlit('validate', data, '--path', path, '--cpu', '--task', 'translation', '--log-format', 'json', '--max-tokens', 100,
                 *words).stdout
    assert float(re.search(r'"valid_bleu": "([\d.]+)"', out)[1]) == round(found.scorer.score(), 2)


def test_the_best_checkpoint_is_the_one_with_the_highest_score(trained):
    save, reports = trained
    scores = [report['bleu'] for report in reports]
    best = 1 + scores.index(max(scores))
    kept, own = (torch.load(save / name, weights_only=True) for name in ('checkpoint_best.pt', f'checkpoint{best}.pt'))
    assert kept['extra_state']['best'] == max(scores)
    assert all(torch.equal(kept['model'][name], value) for name, value in own['model'].items())
    assert reports[-1]['best_bleu'] == max(scores)


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


ARCHITECTURES = dict(
    transformer={}, learned_positions=dict(encoder_learned_pos=True, decoder_learned_pos=True, max_target_positions=60),
    lstm=dict(arch='lstm', encoder_hidden_size=32, decoder_hidden_size=32, decoder_out_embed_dim=32),
    lightconv=dict(arch='lightconv', encoder_kernel_size_list='[3]', decoder_kernel_size_list='[3]'),
    fconv=dict(arch='fconv', encoder_layers='[(32, 3)] * 2', decoder_layers='[(32, 3)] * 2', decoder_out_embed_dim=32))
WITHOUT_LAYERS = [f'{side}_{part}' for side in ('encoder', 'decoder') for part in ('ffn_embed_dim', 'attention_heads')]


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_training_and_losses_do_not_notice(data, tmp_path, name):
    asked = dict(eval_bleu=True, eval_bleu_args='{"sampling": true, "beam": 1, "max_len_b": 40}')
    skipped = WITHOUT_LAYERS if name in ('lstm', 'fconv') else ()
    settings = {key: value for key, value in WORDS.items() if key not in skipped} | ARCHITECTURES[name]
    found = []
    for more in ({}, asked):
        trainer = make_trainer(data, save_dir=str(tmp_path), no_save=True, max_epoch=2, **settings, **more)
        reports = [event.report for event in trainer.run() if isinstance(event, Validated)]
        found.append((reports, trainer.model.state_dict()))
    (plain, left), (judged, right) = found
    assert same(left, right) and len(plain) == 2
    for before, after in zip(plain, judged, strict=True):
        assert [name for name in after if name not in before] == ['bleu']
        assert all(after[name] == before[name] for name in before if name != 'wps')


def test_batches_do_not_matter(data, trained):
    path, shown = trained[0] / 'checkpoint10.pt', []
    for size in (['--batch-size', 1], ['--batch-size', 45], ['--max-tokens', 60]):
        log = seqlit('validate', data, '--path', path, '--cpu', '--log-format', 'json', *size).stdout
        shown.append(float(re.search(r'"valid_bleu": "([\d.]+)"', log)[1]))
    assert shown == [trained[1][-1]['bleu']] * 3


def test_a_resumed_run_reports_the_same(data, trained, tmp_path):
    best = dict(best_checkpoint_metric='bleu', maximize_best_checkpoint_metric=True)
    first, _ = run(data, tmp_path, max_update=37, **best, **ASKED)
    second, trainer = run(data, tmp_path, max_epoch=6, **best, **ASKED)
    assert [report['num_updates'] for report in first + second] == [10, 20, 30, 37, 40, 50, 60]
    for mine, whole in zip(first[:3] + second, trained[1]):
        assert {**mine, 'best_bleu': 0} == {**whole, 'best_bleu': 0}      # the best so far may be that of update 37
    scores = [report['bleu'] for report in first + second]
    assert trainer.manager.best == max(scores) == second[-1]['best_bleu']


def test_the_log(data, tmp_path):
    done = seqlit('train', data, *FLAGS, '--max-epoch', 2, '--save-dir', tmp_path, '--eval-bleu', '--eval-bleu-remove-bpe',
                  '--eval-bleu-args', '{"beam": 1, "max_len_b": 10}', '--eval-bleu-print-samples', '--max-valid-steps', 1).stdout
    assert done.count('signature of the validation BLEU: nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp') == 1
    assert done.count('example hypothesis: ') == done.count('example reference: ') == 2
    assert re.search(r'example reference: (\w+ ){4,7}\.\n', done) and '@@' not in done
    assert len(re.findall(r'"valid_bleu": "[\d.]+"', done)) == 2 and '_bleu_' not in done.replace('valid_bleu', '')


@pytest.mark.parametrize('words, why', [
    (['--eval-bleu-args', "{'beam': 1}"], 'not JSON at character 2'),
    (['--eval-bleu-args', '{"bem": 1}'], "did you mean 'beam'?"),
    (['--eval-bleu-args', '{"beam": 0}'], 'must be 1 or more'),
    (['--eval-bleu-detok', 'mose'], "did you mean 'moses'?"),
    (['--eval-bleu-detok', 'moses', '--eval-bleu-detok-args', '{"langs": "de"}'], "no 'langs' to set here"),
    (['--eval-bleu-remove-bpe', 'sentencepeace'], "did you mean 'sentencepiece'?")])
def test_mistakes_are_told_at_once(data, tmp_path, words, why):
    refused(seqlit('train', data, *FLAGS, '--save-dir', tmp_path, '--eval-bleu', *words, check=False), words[-2], why)
    assert not list(tmp_path.iterdir())


def test_flags_of_training_do_not_hinder_translating(data, trained, tmp_path):
    state = torch.load(trained[0] / 'checkpoint10.pt', weights_only=True)
    state['cfg']['task'] |= dict(eval_bleu_detok='of_a_plugin', eval_bleu_args='{"lenpenalty": 1}')     # fairseq lets both pass
    torch.save(state, tmp_path / 'other.pt')
    assert generate(data, tmp_path / 'other.pt', gen_subset='valid', cpu=True, beam=1).translations
    refused(seqlit('validate', data, '--path', tmp_path / 'other.pt', '--cpu', check=False), "unknown tokenizer 'of_a_plugin'")


def test_workers_share_a_validation(data, trained, tmp_path):
    path, logs = trained[0] / 'checkpoint10.pt', []
    stand = ['--restore-file', path, '--reset-optimizer', '--reset-dataloader', '--reset-meters', '--max-update', 1, '--no-save']
    flags = [word for word in FLAGS if word != '0.005']
    flags.insert(flags.index('--lr') + 1, '1e-12')
    words = ['train', data, *flags, *stand, '--eval-bleu', '--eval-bleu-remove-bpe', '--eval-bleu-args', json.dumps(SEARCH),
             '--batch-size-valid', 7, '--save-dir', tmp_path]
    two = ['--distributed-world-size', 2]
    for start, more in [(seqlit, []), (test_commands.seqlit, two), (test_commands.seqlit, [*two, '--ddp-backend', 'fully_sharded'])]:
        log = start(*words, *more).stdout
        logs.append([float(re.search(rf'"valid_{name}": "([\d.]+)"', log)[1]) for name in ('loss', 'bleu')])
    assert logs[0] == logs[1] == logs[2] and logs[0][1] == trained[1][-1]['bleu']
