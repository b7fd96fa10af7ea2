"The search: equal whatever the batch, no repetitions, and candidates as a full sort finds them."
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from seqlit.search.beam import top_candidates
from seqlit.search.generator import SequenceGenerator
from seqlit.search.options import GenerationOptions
from seqlit.search.rules import ban_repeats


@pytest.fixture(scope='module')
def trained(shared):
    "fairseq's small Transformer, its dictionary and its test set."
    from seqlit.cli.generate import Translator
    golden = shared/'golden'
    translator = Translator.load(golden/'models'/'transformer'/'checkpoint_best.pt', data=golden/'preprocess'/'joined')
    translator.task.load_dataset('test')
    return translator.models, translator.task.target_dictionary, translator.task.dataset('test')


def outputs(trained, size: int, **options) -> dict[int, list]:
    "Hypotheses of 80 test sentences by id, searched in batches of that size."
    models, dictionary, dataset = trained
    generator = SequenceGenerator(models, dictionary, GenerationOptions(**options))
    found, order = {}, dataset.ordered_indices().tolist()[:160:2]
    for first in range(0, len(order), size):
        sample = dataset.collater([dataset[i] for i in order[first:first + size]])
        found |= dict(zip(sample['id'].tolist(), generator.generate(sample)))
    return found


@pytest.mark.parametrize('options', [dict(beam=5), dict(beam=1), dict(beam=4, match_source_len=True),
                                     dict(beam=3, max_len_a=.4, max_len_b=3, no_repeat_ngram_size=2)], ids=str)
def test_batch_size_never_changes_a_result(trained, options):
    alone, together = outputs(trained, 1, **options), outputs(trained, 64, **options)
    assert alone.keys() == together.keys() and len(alone) == 80
    for number, hypotheses in alone.items():
        assert [h.tokens.tolist() for h in hypotheses] == [h.tokens.tolist() for h in together[number]], number
        for one, other in zip(hypotheses, together[number]):
            assert one.score == pytest.approx(other.score, abs=1e-5)


def repeats(tokens: list[int], size: int) -> bool:
    "Whether a run of `size` words stands twice."
    runs = [tuple(tokens[i:i + size]) for i in range(len(tokens) - size + 1)]
    return len(set(runs)) < len(runs)


@pytest.mark.parametrize('size', [1, 2, 3])
def test_no_repetitions(trained, size):
    "fairseq's own record of this option (transformer.nogram) repeats pairs of words in three sentences of four."
    plain = outputs(trained, 50, beam=5)
    found = outputs(trained, 50, beam=5, no_repeat_ngram_size=size)
    assert any(repeats(hs[0].tokens.tolist(), size) for hs in plain.values())
    assert not any(repeats(h.tokens.tolist(), size) for hs in found.values() for h in hs)


def test_wider_beams_find_likelier_outputs(trained):
    "Not for each sentence, but by far for most, and never with a score that is not the sum of its parts."
    narrow, wide = (outputs(trained, 50, beam=beam, unnormalized=True) for beam in (1, 6))
    better = sum(wide[i][0].score >= narrow[i][0].score - 1e-5 for i in narrow)
    assert better > .9 * len(narrow)
    for hypotheses in wide.values():
        assert all(h.score == pytest.approx(h.positional_scores.sum().item(), abs=1e-3) for h in hypotheses)
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)
        assert all(h.tokens[-1] == 2 and (h.tokens[:-1] != 2).all() for h in hypotheses)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(2, 300), st.integers(1, 9), st.sampled_from([4, 16, 64]),
       st.integers(0, 2**31))
def test_candidates_equal_a_full_sort(sentences, beam, words, number, block, seed):
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(sentences, beam, words, generator=generator)
    table[torch.rand(table.shape, generator=generator) < .3] = -math.inf
    scores = torch.randn(sentences, beam, generator=generator)
    found = top_candidates(table, scores, number, block)
    totals = (table + scores[:, :, None]).flatten(1)
    best = totals.sort(descending=True).values[:, :number]
    best = torch.nn.functional.pad(best, (0, number - best.size(1)), value=-math.inf)
    assert torch.equal(found.scores, best)
    there = totals.gather(1, found.beams * words + found.tokens)
    assert torch.equal(there[best > -math.inf], best[best > -math.inf])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=7, max_size=7), min_size=1, max_size=4), st.integers(1, 4), st.integers(0, 7))
def test_banned_words_are_those_that_repeat(rows, size, length):
    tokens = torch.tensor(rows)[:, :length]
    table = torch.zeros(len(rows), 5)
    ban_repeats(table, tokens, size)
    for row, banned in zip(tokens.tolist(), table):
        runs = {tuple(row[i:i + size]) for i in range(len(row) - size + 1)}
        for word in range(5):
            candidate = (*row, word)[len(row) - size + 1:] if len(row) >= size - 1 else None
            assert (banned[word] == -math.inf) == (candidate in runs), (row, word, size)
