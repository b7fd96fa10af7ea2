"`seqlit-eval-lm` finds what fairseq found: tokens, loss and perplexity, and word by word what the recorded scores say."

import logging
import math
import re
import shlex

import numpy as np
import pytest

from seqlit.cli.eval_lm import main


@pytest.fixture
def run(shared, monkeypatch, capsys):
    "A function that gives the recorded lines, and ours for the same arguments."
    golden = shared / 'golden'
    monkeypatch.chdir(golden)

    def call(name: str, *more: str) -> tuple[list[str], list[str]]:
        words = shlex.split((golden / 'eval_lm' / f'{name}.args').read_text(encoding='utf-8'))
        assert main([*words, '--cpu', '--num-workers', '0', *more]) == 0
        wanted = (golden / 'eval_lm' / f'{name}.out').read_text(encoding='utf-8').splitlines()
        return wanted, capsys.readouterr().out.splitlines()

    yield call
    logging.getLogger().handlers.clear()


def counted(lines: list[str]) -> list[str]:
    "How many tokens were evaluated."
    pattern = r'Evaluated ([\d,]+) tokens in [\d.]+s \([\d.]+ tokens/s\)'
    return [re.search(pattern, line)[1] for line in lines if 'Evaluated' in line]


def judged(lines: list[str]) -> list[str]:
    "Loss and perplexity as they are printed."
    return [x[x.index('Loss (base 2)') :] for x in lines if 'Loss (base 2)' in x]


@pytest.mark.parametrize('name', ['block', 'context', 'words', 'stats'])
def test_tokens_loss_and_perplexity_are_fairseqs(run, name):
    wanted, got = run(name)
    assert counted(got) == counted(wanted) and counted(got)
    assert judged(got) == judged(wanted) and judged(got)


def test_pieces_of_the_softmax_change_nothing(run):
    wanted, got = run('block', '--softmax-batch', '37')
    assert judged(got) == judged(wanted)


def test_words_are_those_of_the_recorded_scores(run, shared):
    "The recorded batch of the language model holds blocks of the test text, with fairseq's scores for every token."
    _, got = run('words')
    blocks = [line.split(' ', 1) for line in got if '\t' in line]
    words = {int(block): re.findall(r'(\S+) \[(-[\d.]+)\]', text) for block, text in blocks}
    assert sorted(words) == list(words) == list(range(22))
    recorded = np.load(shared / 'golden' / 'logits' / 'transformer_lm.npz')
    logits = recorded['logits'].astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    dictionary = ['<s>', '<pad>', '</s>', '<unk>']
    text = (shared / 'golden' / 'preprocess' / 'onlysrc' / 'dict.txt').read_text(encoding='utf-8')
    dictionary += [line.rsplit(' ', 1)[0] for line in text.splitlines()]
    for block, target, scores in zip(recorded['id'].tolist(), recorded['target'], log_probs):
        kept = [(dictionary[t], s[t]) for t, s in zip(target, scores) if t != 1]
        assert [w for w, _ in kept] == [w for w, _ in words[block]]
        assert all(abs(a - float(b)) < 2e-3 for (_, a), (_, b) in zip(kept, words[block]))


def test_statistics_add_up_to_the_words(run):
    _, got = run('stats')
    rows = [line.split('\t') for line in got if line.count('\t') == 5]
    counts = [int(row[1]) for row in rows]
    assert counts == sorted(counts, reverse=True) and sum(counts) == 2748
    assert sum(int(row[5]) for row in rows) == 2748 - 22  # no word follows the last one of a block
    bits = -sum(float(row[2]) for row in rows) / 2748 / math.log(2)
    assert abs(bits - 5.8688) < 1e-3
