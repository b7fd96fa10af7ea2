"Batches: the fast way against the plain one, on any lengths; large corpora whole, in little memory."
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from seqlit.data.batches import batch_by_size, make_batches, numpy_seed
from seqlit.data.datasets import ConcatDataset, LanguagePairDataset, SequenceList, TruncatedDataset
from seqlit.data.dictionary import Dictionary
from seqlit.data.indexed import TokenDataset

ROWS = st.lists(st.lists(st.integers(4, 99), max_size=12).map(lambda row: [*row, 2]), min_size=1, max_size=25)


def is_legal(size: int, multiple: int) -> bool: return size < multiple or size % multiple == 0


def batch_slowly(lengths: list[int], max_tokens: int, max_sentences: int, multiple: int) -> list[int]:
    "How many sentences each batch has: each takes the most that is allowed."
    sizes, start = [], 0
    while start < len(lengths):
        fits = [size for size in range(1, len(lengths) - start + 1)
                if size <= max_sentences and size*max(lengths[start:start + size]) <= max_tokens]
        sizes.append(max(size for size in fits if is_legal(size, multiple)))
        start += sizes[-1]
    return sizes


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(0, 30), max_size=60), in_order=st.booleans(), max_tokens=st.integers(30, 300),
       max_sentences=st.integers(1, 40), multiple=st.sampled_from([1, 2, 3, 8]))
def test_batches_are_the_largest_that_fit(lengths, in_order, max_tokens, max_sentences, multiple):
    lengths = sorted(lengths) if in_order else lengths
    indices = np.random.default_rng(0).permutation(len(lengths))
    batches = batch_by_size(indices, np.array(lengths, dtype=np.int32), max_tokens, max_sentences, multiple)
    assert [len(batch) for batch in batches] == batch_slowly(lengths, max_tokens, max_sentences, multiple)
    assert [i for batch in batches for i in batch] == indices.tolist()


@settings(max_examples=100, deadline=None)
@given(source=ROWS, data=st.data(), left=st.tuples(st.booleans(), st.booleans()), multiple=st.sampled_from([1, 4]),
       buckets=st.integers(0, 3), limit=st.integers(1, 15))
def test_gathered_and_collated_batches_are_equal(source, data, left, multiple, buckets, limit):
    "Through cut and joined rows too; and padding never changes a token."
    target = data.draw(st.lists(st.lists(st.integers(4, 99), max_size=9).map(lambda row: [*row, 2]), min_size=len(source), max_size=len(source)))
    half = len(source)//2
    rows = TruncatedDataset(ConcatDataset([SequenceList(source[:half]), SequenceList(source[half:])]), limit)
    dictionary = Dictionary()
    dataset = LanguagePairDataset(rows, rows.sizes, dictionary, SequenceList(target), np.array([len(t) for t in target]), dictionary,
                                  left_pad_source=left[0], left_pad_target=left[1], pad_to_multiple=multiple, num_buckets=buckets)
    chosen = data.draw(st.lists(st.integers(0, len(source) - 1), min_size=1, max_size=8))
    batch, other = dataset.batch(chosen), dataset.collater([dataset[i] for i in chosen])
    assert batch['ntokens'] == other['ntokens'] == sum(len(target[i]) for i in chosen)
    for name in ('src_tokens', 'src_lengths', 'prev_output_tokens'):
        assert batch['net_input'][name].tolist() == other['net_input'][name].tolist()
    for row, i in enumerate(batch['id'].tolist()):
        cut = source[i] if len(source[i]) <= limit else source[i][:limit - 1] + [2]
        assert batch['net_input']['src_tokens'][row].tolist() == padded(cut, batch['net_input']['src_tokens'].shape[1], left[0])
        assert batch['target'][row].tolist() == padded(target[i], batch['target'].shape[1], left[1])
        assert batch['net_input']['prev_output_tokens'][row].tolist() == padded([2, *target[i][:-1]], batch['target'].shape[1], left[1])


def padded(row: list[int], width: int, left: bool) -> list[int]:
    return [1]*(width - len(row)) + row if left else row + [1]*(width - len(row))


@pytest.fixture(scope='module')
def large() -> LanguagePairDataset:
    "580,000 pairs; the words are never read."
    lengths = np.clip(np.random.default_rng(0).gamma(6, 4, 580_000).astype(np.int32) + 2, 2, 200)
    rows = TokenDataset(np.zeros(1, dtype=np.uint16), lengths, np.zeros(len(lengths), dtype=np.int64))
    return LanguagePairDataset(rows, rows.sizes, Dictionary(), rows, rows.sizes, Dictionary())


def test_half_a_million_pairs_are_all_there(large):
    batches = make_batches(large, max_tokens=4096, max_positions=(1024, 1024), required_batch_size_multiple=8)
    assert sum(map(len, batches)) == len(large)


def test_batches_are_views_of_one_array(large):
    "Memory does not grow with the number of sentences beyond a few arrays of numbers."
    tracemalloc.start()
    batches = make_batches(large, max_tokens=4096)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 10*len(large) and peak < 64*len(large), f'{kept/len(large):.0f} and {peak/len(large):.0f} bytes a sentence'
    assert all(batch.base is batches[0].base for batch in batches)


def test_numpy_seed_puts_the_generator_back_after_an_error():
    np.random.seed(4)
    expected = np.random.rand()
    np.random.seed(4)
    with pytest.raises(ZeroDivisionError):
        with numpy_seed(1): 1/0
    assert np.random.rand() == expected
