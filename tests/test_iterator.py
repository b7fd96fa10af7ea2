"An iterator that is stopped anywhere goes on with exactly the rest."
import itertools
import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from seqlit.base.errors import SeqlitError
from seqlit.data.batches import make_batches
from seqlit.data.datasets import LanguagePairDataset
from seqlit.data.dictionary import Dictionary
from seqlit.data.indexed import IndexedDataset, IndexedWriter
from seqlit.data.iterator import BatchList, EpochBatchIterator, GroupedIterator


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


def rounds(count: int, state: dict | None, shards: int, most: int, workers: int) -> tuple[list, dict]:
    "What the shards together are given in so many rounds, in the order of the epoch, and the state after it."
    given_out, states = [], []
    for shard in range(shards):
        epochs = EpochBatchIterator(Numbers(), cut(count), seed=3, num_shards=shards, shard_id=shard, num_workers=workers)
        if state: epochs.load_state_dict(state)
        given_out.append([batch.get('id') for batch in itertools.islice(epochs.next_epoch(), most)])
        states.append(epochs.state_dict())
    assert all(state == states[0] for state in states)
    return [batch for turn in zip(*given_out) for batch in turn if batch], states[0]


@settings(max_examples=80, deadline=None)
@given(count=st.integers(1, 30), parts=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), max_size=4), last=st.integers(1, 5))
def test_another_number_of_shards_takes_up_the_rest(count, parts, last):
    "Stopped and taken up by 3, then 1, then 4 workers: together they see what one sees."
    whole = [batch['id'] for batch in EpochBatchIterator(Numbers(), cut(count), seed=3).next_epoch()]
    state, seen = None, []
    for shards, most in [*parts, (last, 99)]:
        more, state = rounds(count, state, shards, most, workers=0)
        seen += more
        if state['epoch'] == 2: break
    assert seen == whole


def test_stopped_while_processes_read_ahead():
    seen, state = rounds(20, None, shards=2, most=4, workers=1)
    assert state['batches_given'] == len(seen) == 8
    rest, state = rounds(20, state, shards=3, most=99, workers=1)
    assert seen + rest == rounds(20, None, shards=1, most=99, workers=0)[0]
    assert (state['epoch'], state['iterations_in_epoch']) == (2, 0)


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


class Broken(Numbers):
    def batch(self, indices):
        if 3 in indices: raise SeqlitError('train.bin: ends too early')
        return super().batch(indices)


@pytest.mark.parametrize('workers', [0, 1])
def test_an_error_reads_the_same_from_another_process(workers):
    with pytest.raises(SeqlitError) as caught:
        list(EpochBatchIterator(Broken(), cut(20), num_workers=workers).next_epoch())
    assert str(caught.value) == 'train.bin: ends too early'


def pairs(folder, count: int) -> LanguagePairDataset:
    "A corpus in indexed files."
    random, dictionary, sides = np.random.default_rng(0), Dictionary(), []
    for side in ('src', 'tgt'):
        with IndexedWriter(folder/side, np.uint16) as writer:
            for length in random.integers(0, 30, count): writer.add(np.append(random.integers(4, 99, length), 2))
        sides.append(IndexedDataset(folder/side))
    source, target = sides
    return LanguagePairDataset(source, source.sizes, dictionary, target, target.sizes, dictionary)


def test_a_dataset_can_be_sent_to_a_fresh_process(tmp_path):
    "Where processes are not forked (macOS, Windows, Python 3.14), the dataset travels as a pickle."
    dataset = pairs(tmp_path, 50)
    listed = BatchList(dataset, make_batches(dataset, max_tokens=200))
    assert len(pickle.dumps(listed)) < 20_000 + 50*30
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        sent = pickle.loads(pool.apply(listed.__getitem__, (2,)))
    here = dataset.batch(listed.batches[2])
    assert torch.equal(sent['target'], here['target']) and torch.equal(sent['id'], here['id'])


def test_batches_of_processes_can_be_kept(tmp_path):
    "Batches that live on need no open file each, as tensors in shared memory do."
    resource = pytest.importorskip('resource')
    dataset = pairs(tmp_path, 600)
    epochs = EpochBatchIterator(dataset, make_batches(dataset, max_sentences=2), num_workers=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(128, hard), hard))
    try: kept = list(epochs.next_epoch())
    finally: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert sorted(int(i) for batch in kept for i in batch['id']) == list(range(600))
