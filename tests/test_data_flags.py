"Every flag about batches and their order does what it says; those that only old scripts need change nothing."
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from seqlit.base.errors import SeqlitError
from seqlit.cli import preprocess
from seqlit.cli.common import parse, resolve
from seqlit.cli.train import TRAIN, build_trainer
from seqlit.base.config_file import read_config_file
from seqlit.train.events import EpochEnd, EpochStart, Update, Validated, Validating

TINY = dict(arch='transformer_tiny', encoder_layers=1, decoder_layers=1, dropout=0., optimizer='adam', lr=1e-3, cpu=True, no_save=True,
            num_workers=0, max_epoch=1, max_tokens=100, required_batch_size_multiple=1, seed=3)


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    "150 pairs of one to nine words, many of one length."
    folder, rng = tmp_path_factory.mktemp('data'), np.random.default_rng(0)
    for split, count in [('train', 150), ('valid', 40)]:
        rows = [[f'w{i}' for i in rng.integers(0, 20, rng.integers(1, 10))] for _ in range(count)]
        (folder/f'{split}.en').write_text(''.join(' '.join(row) + '\n' for row in rows), encoding='utf-8')
        (folder/f'{split}.de').write_text(''.join(' '.join(reversed(row[:rng.integers(1, 10)])) + '\n' for row in rows), encoding='utf-8')
    sets = ['--trainpref', f'{folder}/train', '--validpref', f'{folder}/valid']
    assert preprocess.main(['-s', 'en', '-t', 'de', *sets, '--destdir', f'{folder}/bin']) == 0
    return folder/'bin'


class Seen:
    "A run, and what its task was given: for each epoch its batches, and those of its validations."
    def __init__(self, data, save_dir, **settings):
        self.trainer = build_trainer(resolve(TRAIN, TINY | dict(data=str(data), save_dir=str(save_dir)) | settings))
        self.epochs, self.valid, self.losses, self.valid_losses, self.events = [], [], [], [], []
        self.spy('train_step', lambda sample, loss: (self.epochs[-1].append(sample), self.losses.append(loss)))
        self.spy('valid_step', lambda sample, loss: (self.valid.append(sample), self.valid_losses.append(loss)))
        for event in self.trainer.run():
            self.events.append(event)
            if isinstance(event, EpochStart): self.epochs.append([])
        for name in ('train_step', 'valid_step'): delattr(self.trainer.task, name)   # no ring of references: what reads ahead goes at once

    def spy(self, name, note):
        step = getattr(self.trainer.task, name)
        def noted(sample, *rest, **more):
            result = step(sample, *rest, **more)
            note(sample, result[0].item())
            return result
        setattr(self.trainer.task, name, noted)

    def ids(self, epoch: int) -> list[list[int]]: return [sample['id'].tolist() for sample in self.epochs[epoch]]
    def state(self) -> dict: return self.trainer.model.state_dict()


def equal(one: Seen, other: Seen) -> bool:
    return all(torch.equal(p, q) for p, q in zip(one.state().values(), other.state().values()))


def shape(sample) -> tuple[int, int]: return sample['net_input']['src_tokens'].shape[1], sample['target'].shape[1]


def test_the_first_epochs_of_a_curriculum_are_in_order(data, tmp_path):
    seen = Seen(data, tmp_path, max_epoch=4, curriculum=2)
    longest = [max(shape(sample)) for sample in seen.epochs[0]]
    assert longest == sorted(longest) and len(longest) > 8
    assert seen.ids(0) == seen.ids(1) != seen.ids(2) != seen.ids(3)
    assert sorted(seen.ids(0)) == sorted(seen.ids(2)) == sorted(seen.ids(3))
    assert Seen(data, tmp_path/'other').ids(0) != seen.ids(0)   # without it the first epoch is shuffled too


def test_processes_that_read_ahead_change_nothing(data, tmp_path):
    plain = Seen(data, tmp_path, max_epoch=2)
    for settings in (dict(num_workers=1), dict(num_workers=2), dict(num_workers=1, data_buffer_size=0), dict(num_workers=2, data_buffer_size=50)):
        ahead = Seen(data, tmp_path, max_epoch=2, **settings)
        assert [ahead.ids(e) for e in (0, 1)] == [plain.ids(e) for e in (0, 1)], settings
        assert ahead.losses == plain.losses and ahead.valid_losses == plain.valid_losses and equal(ahead, plain), settings


def test_a_multiple_of_sentences(data, tmp_path):
    one, eight = Seen(data, tmp_path), Seen(data, tmp_path, required_batch_size_multiple=8)
    sizes = [len(ids) for ids in eight.ids(0)]
    assert all(size % 8 == 0 or size < 8 for size in sizes) and max(sizes) > 8
    assert any(size % 8 and size > 8 for size in map(len, one.ids(0)))
    assert Counter(sum(one.ids(0), [])) == Counter(sum(eight.ids(0), [])) == Counter(range(150))


def test_a_multiple_of_lengths_is_only_padding(data, tmp_path):
    plain, padded = Seen(data, tmp_path), Seen(data, tmp_path, required_seq_len_multiple=4)
    assert {length % 4 for sample in padded.epochs[0] for length in shape(sample)} == {0}
    assert {length % 4 for sample in plain.epochs[0] for length in shape(sample)} != {0}
    assert padded.ids(0) == plain.ids(0) and padded.losses == pytest.approx(plain.losses, abs=1e-3)
    assert padded.valid_losses == pytest.approx(plain.valid_losses, abs=1e-3)


def test_buckets_make_few_shapes_and_the_same_loss(data, tmp_path):
    "With a rate of zero the batches of an epoch may differ and their losses still add up to the same."
    plain, buckets = Seen(data, tmp_path, lr=0.), Seen(data, tmp_path, lr=0., num_batch_buckets=3, max_tokens=150)
    shapes = [{length for sample in seen.epochs[0] for length in shape(sample)} for seen in (plain, buckets)]
    assert len(shapes[0]) > 6 >= len(shapes[1])
    for name in ('losses', 'valid_losses'):
        assert sum(vars(buckets)[name]) == pytest.approx(sum(vars(plain)[name]), rel=1e-5)


def test_validation_has_bounds_of_its_own(data, tmp_path):
    as_training = Seen(data, tmp_path, max_tokens=None, batch_size=7)
    assert {len(s['id']) for s in as_training.valid} <= {7, 40 % 7}
    small = Seen(data, tmp_path, max_tokens=None, batch_size=7, batch_size_valid=4)
    assert {len(s['id']) for s in small.valid} == {4} and max(len(ids) for ids in small.ids(0)) == 7
    tokens = Seen(data, tmp_path, max_tokens_valid=30)
    assert all(s['target'].numel() <= 30 for s in tokens.valid) and any(s['target'].numel() > 30 for s in tokens.epochs[0])
    few = Seen(data, tmp_path, batch_size_valid=4, max_valid_steps=3)
    steps = [event for event in few.events if isinstance(event, Validating)]
    assert [(e.batch, e.batches) for e in steps] == [(1, 3), (2, 3), (3, 3)] and len(few.valid) == 3
    report, = [event.report for event in few.events if isinstance(event, Validated)]
    rest = Seen(data, tmp_path, batch_size_valid=4)
    assert len(rest.valid) == 10 and rest.valid_losses[:3] == few.valid_losses and 'loss' in report


def test_a_report_after_so_many_updates(data, tmp_path):
    seen = Seen(data, tmp_path, max_epoch=2, log_interval=5)
    reported = [event.num_updates for event in seen.events if isinstance(event, Update) and event.report is not None]
    assert reported == list(range(5, seen.trainer.num_updates + 1, 5)) and len(reported) > 3
    assert sum(isinstance(event, EpochEnd) for event in seen.events) == 2


OLD = '''--use-plasma-view --plasma-path /tmp/elsewhere --all-gather-list-size 65536 --reset-logging --suppress-crashes
         --fp16-no-flatten-grads --on-cpu-convert-precision --amp-batch-retries 3 --dataset-impl mmap --required-seq-len-multiple 1'''


def test_flags_of_old_scripts_change_nothing(data, tmp_path):
    given = {name: value for name, value in parse(TRAIN, [str(data), *OLD.split()]).items() if name != 'data'}
    assert len(given) == 10
    assert equal(Seen(data, tmp_path), Seen(data, tmp_path, **given))


@pytest.mark.parametrize('task', ['masked_lm', 'denoising', 'sentence_prediction', 'multilingual_translation', 'language_modeling'])
def test_how_data_is_stored_may_be_said_to_any_task(task):
    "fairseq takes these two whatever the task is; scripts say them by habit."
    config = resolve(TRAIN, parse(TRAIN, ['bin', '--task', task, '--dataset-impl', 'mmap', '--required-seq-len-multiple', '8']))
    assert (config.dataset.dataset_impl, config.dataset.required_seq_len_multiple) == ('mmap', 8)
    with pytest.raises(SeqlitError, match='not one of raw, lazy, cached, mmap'): resolve(TRAIN, dict(data='bin', dataset_impl='huffman'))


def test_a_task_has_what_the_batches_have(data):
    "The task pads; it hears the option wherever it was said."
    for values in (dict(required_seq_len_multiple=8), dict(required_seq_len_multiple='8')):
        config = resolve(TRAIN, dict(data=str(data)) | values)
        assert config.task.required_seq_len_multiple == config.dataset.required_seq_len_multiple == 8


def test_groups_of_a_file_reach_all_who_read_them(tmp_path):
    "fairseq-hydra-train writes every default, references among them."
    (tmp_path/'run.yaml').write_text(yaml.safe_dump(dict(
        common=dict(tensorboard_logdir=None, use_plasma_view=False, plasma_path='/tmp/plasma', all_gather_list_size=16384, profile=False,
                    reset_logging=False, suppress_crashes=False, amp_batch_retries=2, fp16_no_flatten_grads=False),
        dataset=dict(required_seq_len_multiple=8, dataset_impl=None, grouped_shuffling=True, update_epoch_batch_itr='${dataset.grouped_shuffling}',
                     update_ordered_indices_seed=False))), encoding='utf-8')
    config = resolve(TRAIN, dict(data='bin'), read_config_file(tmp_path/'run.yaml'))
    assert config.task.required_seq_len_multiple == 8 and config.dataset.update_epoch_batch_itr is True
    again = resolve(TRAIN, dict(data='bin'), None)
    assert again.dataset.update_epoch_batch_itr is False and again.common.plasma_path == '/tmp/plasma'


# For the end of tests/test_data_flags.py

def test_other_sentences_meet_in_each_epoch(data, tmp_path):
    "Batches of one length are drawn anew; fairseq's default keeps them for the whole run."
    def batches(seen): return [sorted(map(sorted, seen.ids(e))) for e in range(3)]
    kept, drawn = batches(Seen(data, tmp_path, max_epoch=3)), batches(Seen(data, tmp_path, max_epoch=3, update_ordered_indices_seed=True))
    assert kept[0] == kept[1] == kept[2] and drawn[0] != drawn[1] != drawn[2] != drawn[0]
    assert all(sorted(sum(epoch, [])) == list(range(150)) for epoch in drawn)
    cut = Seen(data, tmp_path, max_epoch=3, update_epoch_batch_itr=True)
    assert batches(cut) == kept   # the same data, cut again, is the same


@pytest.mark.parametrize('update', [3, 17, 30])
def test_a_resumed_run_meets_the_same_batches(data, tmp_path, update):
    settings = dict(max_epoch=3, update_ordered_indices_seed=True, max_tokens=80, no_save=False, no_epoch_checkpoints=True)
    unbroken = Seen(data, tmp_path/'unbroken', **settings)
    assert len(unbroken.losses) > 30
    first = Seen(data, tmp_path/'run', **settings, max_update=update)
    second = Seen(data, tmp_path/'run', **settings)
    assert first.losses + second.losses == unbroken.losses and equal(second, unbroken)


def test_rounds_stay_together(data):
    "With three workers and --grouped-shuffling a round has three neighbours of one length; all batches are given once."
    made = build_trainer(resolve(TRAIN, TINY | dict(data=str(data), save_dir='unused')))
    made.task.load_dataset('train')
    def epoch(grouped):
        shards = [made.task.get_batch_iterator('train', max_sentences=4, num_shards=3, shard_id=i, grouped_shuffling=grouped) for i in range(3)]
        return [[b['id'].tolist() if b else [] for b in shard.next_epoch()] for shard in shards], shards[0].batches
    (one, two, three), batches = epoch(True)
    place = {tuple(ids): number for number, ids in enumerate(map(sorted, batches))}
    rounds = [[place[tuple(sorted(ids))] for ids in row if ids] for row in zip(one, two, three)]
    assert sorted(sum(rounds, [])) == list(range(len(batches)))
    assert all(row == list(range(row[0], row[0] + len(row))) for row in rounds) and rounds != sorted(rounds)
    plain = [[place[tuple(sorted(ids))] for ids in row if ids] for row in zip(*epoch(False)[0])]
    assert not all(row == list(range(row[0], row[0] + len(row))) for row in plain)
