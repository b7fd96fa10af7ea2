"Language models through the commands: a folder of text, training, perplexity, and continuing a beginning."

import io
import json
import logging
import os
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from seqlit.cli import eval_lm as judge, generate, interactive, preprocess, train
from seqlit.hub.translator import Translator
from seqlit.train.events import EpochStart, Validated

WORDS = 'one two three four five six seven eight nine'.split()
SIZES = dict(
    task='language_modeling', arch='transformer_lm', decoder_embed_dim=32, decoder_input_dim=32, decoder_output_dim=32,
    decoder_ffn_embed_dim=64, decoder_layers=1, decoder_attention_heads=4, dropout=0.0, optimizer='adam', lr=6e-3,
    tokens_per_sample=24, max_tokens=400, no_epoch_checkpoints=True, cpu=True, num_workers=0,
)  # fmt: skip


def flags(settings: dict) -> list[str]:
    "Settings as a shell has them."
    words = []
    for name, value in settings.items():
        words += ['--' + name.replace('_', '-')] + ([] if value is True else [str(value)])
    return words


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A folder with text, and beside it the folder that preprocess makes of it."
    root, draw = tmp_path_factory.mktemp('lm'), np.random.RandomState(1)
    for split, count in [('train', 300), ('valid', 40), ('test', 12)]:
        lines = [' '.join(WORDS[draw.randint(9) :]) for _ in range(count)]
        (root / split).write_text('\n'.join(lines) + '\n', encoding='utf-8')
    texts = [str(x) for split in ('train', 'valid', 'test') for x in (f'--{split}pref', root / split)]
    assert preprocess.main(['--only-source', *texts, '--destdir', str(root / 'bin')]) == 0
    return root


@pytest.fixture(scope='module')
def trained(folder):
    "The same folder with a trained model, whose blocks are lines, and what training found at its end."
    save = folder / 'lines'
    settings = SIZES | dict(sample_break_mode='eos', max_epoch=14, save_dir=save, log_format='json')
    assert train.main([str(folder / 'bin'), *flags(settings), '--log-file', str(folder / 'log')]) == 0
    last = [line for line in (folder / 'log').read_text().splitlines() if '"valid_loss"' in line][-1]
    return SimpleNamespace(
        data=folder / 'bin', path=save / 'checkpoint_last.pt', folder=folder, log=json.loads(last[last.index('{') :])
    )


def printed(capsys, command, *words) -> list[str]:
    "The lines that a command prints."
    capsys.readouterr()
    assert command([str(word) for word in words]) == 0
    logging.getLogger().handlers.clear()
    return capsys.readouterr().out.splitlines()


def test_perplexity_is_that_of_validation(trained, capsys):
    lines = printed(capsys, judge.main, trained.data, '--path', trained.path, '--gen-subset', 'valid', '--cpu')
    loss, perplexity = re.fullmatch(r'Loss \(base 2\): ([\d.]+), Perplexity: ([\d.]+)', lines[-1]).groups()
    assert abs(float(loss) - float(trained.log['valid_loss'])) < 2e-3
    assert abs(float(perplexity) - float(trained.log['valid_ppl'])) < 1e-2
    assert float(perplexity) < 2  # only the first word of a line is news


@pytest.mark.parametrize('beam', [1, 4])
def test_generate_continues_each_line(trained, capsys, beam):
    words = [trained.data, '--task', 'language_modeling', '--path', trained.path, '--prefix-size', 2, '--beam', beam]
    lines = printed(capsys, generate.main, *words, '--cpu', '--num-workers', 0)
    targets = [line.split('\t')[1] for line in lines if line.startswith('T-')]
    found = [line.split('\t')[2] for line in lines if line.startswith('H-')]
    assert targets == (trained.folder / 'test').read_text(encoding='utf-8').splitlines()
    assert found == targets
    assert [line[:3] for line in lines if line.startswith('S-')][:3] == ['S-0', 'S-1', 'S-2']


def test_interactive_continues_what_is_typed(trained, capsys, monkeypatch):
    typed = 'three\n\nsix seven\n'
    monkeypatch.setattr(sys, 'stdin', SimpleNamespace(buffer=io.BytesIO(typed.encode()), isatty=lambda: False))
    lines = printed(
        capsys, interactive.main, trained.data, '--task', 'language_modeling', '--path', trained.path, '--cpu', '--beam', 2
    )
    found = {line[2]: line.split('\t')[2] for line in lines if line.startswith('H-')}
    assert found['0'] == ' '.join(WORDS[2:]) and found['2'] == ' '.join(WORDS[5:])
    assert found['1'].endswith('nine') and found['1'] in ' '.join(WORDS)


def test_python_continues_it_too(trained):
    translator = Translator.load(trained.path, trained.data, beam=2)
    begun = [' '.join(WORDS[i : i + 2]) for i in range(8)]
    assert translator.translate(begun) == [' '.join(WORDS[i:]) for i in range(8)]
    one, many = (translator.translate_all(begun, max_sentences=n) for n in (1, 64))
    for a, b in zip(one, many):
        assert abs(a.hypotheses[0].score - b.hypotheses[0].score) < 1e-4


def test_an_ensemble_judges_between_its_members(trained):
    one = judge.eval_lm(trained.data, trained.path, cpu=True, num_workers=0)
    two = judge.eval_lm(trained.data, f'{trained.path}:{trained.path}', cpu=True, num_workers=0)
    assert abs(one.loss - two.loss) < 1e-6 and one.count == two.count


@pytest.mark.parametrize('mode', ['none', 'complete', 'complete_doc', 'eos'])
def test_every_way_to_cut_blocks(folder, mode):
    save = folder / mode
    trainer = train.make_trainer(
        folder / 'bin', **SIZES, sample_break_mode=mode, max_epoch=4, save_dir=str(save), disable_validation=True
    )
    for _ in trainer.run():
        pass
    found = judge.eval_lm(folder / 'bin', save / 'checkpoint_last.pt', cpu=True, num_workers=0)
    words = (folder / 'test').read_text(encoding='utf-8').split()
    assert found.count == len(words) + 12  # each line ends
    assert found.perplexity < 8


@pytest.mark.parametrize('criterion', ['adaptive_loss', 'cross_entropy'])
def test_an_adaptive_model(folder, criterion):
    "Bands, tied at both ends; whichever criterion trains it, evaluation agrees with validation."
    bands = dict(adaptive_softmax_cutoff='6,9', adaptive_input_cutoff='6,9', adaptive_input=True,
                 tie_adaptive_weights=True, tie_adaptive_proj=True, criterion=criterion)  # fmt: skip
    save = folder / criterion
    trainer = train.make_trainer(
        folder / 'bin', **SIZES | bands, sample_break_mode='eos', max_epoch=8, save_dir=str(save)
    )
    losses = [event.report['loss'] for event in trainer.run() if isinstance(event, Validated)]
    found = judge.eval_lm(folder / 'bin', save / 'checkpoint_last.pt', gen_subset='valid', cpu=True, num_workers=0)
    assert abs(found.loss - float(losses[-1])) < 2e-3 and found.perplexity < 3


def test_folders_take_turns(folder):
    "Several folders, one an epoch: each epoch sees the lines of its own folder."
    other = folder / 'other'
    lines = (folder / 'train').read_text(encoding='utf-8').splitlines()
    (folder / 'short').write_text('\n'.join(lines[:30]) + '\n', encoding='utf-8')
    words = ['--only-source', '--trainpref', folder / 'short', '--srcdict', folder / 'bin' / 'dict.txt', '--destdir', other]
    assert preprocess.main([str(word) for word in words]) == 0
    trainer = train.make_trainer(
        f'{folder / "bin"}{os.pathsep}{other}', **SIZES, sample_break_mode='eos', max_epoch=3,
        save_dir=str(folder / 'turns'), disable_validation=True,
    )  # fmt: skip
    sizes = []
    for event in trainer.run():
        if isinstance(event, EpochStart):
            sizes.append(len(trainer.task.dataset('train')))
    assert sizes == [300, 30, 300]


def test_a_line_that_is_wrong_is_told(folder, capsys):
    for words, told in [
        ([folder / 'bin', '--cpu'], '--path is missing'),
        ([folder, '--path', 'none.pt'], 'none.pt'),
    ]:
        assert judge.main([str(word) for word in words]) == 2
        assert told in capsys.readouterr().err
