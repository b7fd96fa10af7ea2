"An iterator that is stopped anywhere goes on with exactly the rest."
import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from seqlit.data.iterator import EpochBatchIterator, GroupedIterator


class Numbers:
    "Batches that are the numbers themselves."
    def batch(self, indices): return {'id': [int(i) for i in indices]} if len(indices) else {}
    def set_epoch(self, epoch): pass


def cut(count: int) -> list[np.ndarray]:
    "Batches of one to four numbers."
    order, sizes = np.arange(count * 4), np.random.default_rng(count).integers(1, 5, count)
    return np.split(order[:sizes.sum()], sizes.cumsum()[:-1])


def stream(epochs: EpochBatchIterator, size: int):
    "Updates of `size` batches, for ever; the state after each."
    while True:
        for group in GroupedIterator(epochs.next_epoch(), size):
            yield [batch.get('id') for batch in group], epochs.state_dict()


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 20), seed=st.integers(0, 99), shards=st.integers(1, 3), size=st.integers(1, 3), stop=st.integers(1, 25),
       grouped=st.booleans())
def test_resume_is_the_rest(count, seed, shards, size, stop, grouped):
    def fresh():
        return EpochBatchIterator(Numbers(), cut(count), seed=seed, num_shards=shards, shard_id=shards - 1, grouped_shuffling=grouped)
    whole = [update for update, _ in itertools.islice(stream(fresh(), size), 30)]
    taken = list(itertools.islice(stream(fresh(), size), stop))
    resumed = fresh()
    resumed.load_state_dict(taken[-1][1])
    rest = [update for update, _ in itertools.islice(stream(resumed, size), 30 - stop)]
    assert [update for update, _ in taken] + rest == whole


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 40), shards=st.integers(1, 5))
def test_workers_share_an_epoch_without_loss(count, shards):
    parts = [list(EpochBatchIterator(Numbers(), cut(count), num_shards=shards, shard_id=i).next_epoch()) for i in range(shards)]
    assert len({len(part) for part in parts}) == 1
    given_out = sorted(i for part in parts for batch in part for i in batch.get('id', []))
    assert given_out == [int(i) for batch in cut(count) for i in batch]


@pytest.mark.parametrize('workers', [1, 2])
def test_processes_change_nothing(workers):
    here, there = (EpochBatchIterator(Numbers(), cut(30), seed=5, num_workers=n) for n in (0, workers))
    for _ in range(2):
        assert list(there.next_epoch()) == list(here.next_epoch())
    there.load_state_dict({'epoch': 2, 'iterations_in_epoch': 11, 'shuffle': True, 'len': 30})
    assert list(there.next_epoch()) == list(EpochBatchIterator(Numbers(), cut(30), seed=5, epoch=2).next_epoch())[11:]
