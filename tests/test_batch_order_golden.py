"Which sentences meet in which batch, in which order, for which worker: as fairseq recorded it."
import json

from seqlit.data.batches import batch_by_size, numpy_seed
from seqlit.data.datasets import LanguagePairDataset
from seqlit.data.dictionary import Dictionary
from seqlit.data.indexed import load_indexed
from seqlit.data.iterator import EpochBatchIterator


def test_batches_are_fairseqs(shared):
    folder = shared/'golden'/'preprocess'/'joined'
    dictionary = Dictionary.load(folder/'dict.en.txt')
    recorded = json.loads((shared/'golden'/'training'/'batch_order.json').read_text())
    assert len(recorded) > 20
    for row in recorded:
        source, target = (load_indexed(folder/f"{row['split']}.en-de.{language}") for language in ('en', 'de'))
        dataset = LanguagePairDataset(source, source.sizes, dictionary, target, target.sizes, dictionary,
                                      shuffle=row['split'] != 'test')
        with numpy_seed(row['seed']):
            indices = dataset.ordered_indices()
        batches = batch_by_size(indices, dataset.num_tokens_vec(indices), row['max_tokens'], row['max_sentences'],
                                row['required_batch_size_multiple'])
        epochs = EpochBatchIterator(dataset, batches, seed=row['seed'], num_shards=row['num_shards'], shard_id=row['shard_id'],
                                    epoch=row['epoch'])
        given = [batch['id'].tolist() if batch else [] for batch in epochs.next_epoch(shuffle=row['split'] == 'train')]
        assert given == row['batches'], {key: value for key, value in row.items() if key != 'batches'}
