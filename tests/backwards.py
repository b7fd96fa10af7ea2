"A task small enough to train in a second: letters in, the same letters backwards out. `python backwards.py FOLDER key=value ...` trains it."
import ast
import sys
from pathlib import Path

import numpy as np
import torch

from seqlit.base.config import Config
from seqlit.data.batches import batch_by_size, numpy_seed
from seqlit.data.datasets import LanguagePairDataset, SequenceList
from seqlit.data.dictionary import Dictionary
from seqlit.data.iterator import EpochBatchIterator
from seqlit.models.transformer import TransformerModel, TransformerOptions
import seqlit.builtins  # registers all names
from seqlit.train.averaging import AveragingOptions
from seqlit.train.checkpoints import CheckpointOptions
from seqlit.train.criterions import LabelSmoothedCrossEntropyCriterion, LabelSmoothingOptions, batch_metrics
from seqlit.train.lr_schedulers import LR_SCHEDULERS
from seqlit.train.optimizers import AdamOptions
from seqlit.train.options import CommonOptions, DatasetOptions, OptimizationOptions
from seqlit.train.trainer import Trainer
from seqlit.train.world import World


class Backwards:
    "What the trainer asks of a task, and no more."
    several_losses = False

    def __init__(self, train=64, valid=16):
        self.source_dictionary = self.target_dictionary = Dictionary()
        for letter in 'abcdefgh': self.source_dictionary.add_symbol(letter)
        self.counts, self.datasets, self.valid_epochs = dict(train=train, valid=valid, valid1=valid), {}, 0

    def load_dataset(self, split, epoch=1, combine=False):
        rng = np.random.default_rng(len(split))
        words = [rng.integers(4, 12, rng.integers(2, 8)) for _ in range(self.counts[split])]
        source, target = SequenceList([[*w, 2] for w in words]), SequenceList([[*w[::-1], 2] for w in words])
        self.datasets[split] = LanguagePairDataset(source, source.sizes, self.source_dictionary, target, target.sizes,
                                                   self.target_dictionary, shuffle=split == 'train')

    def dataset(self, split): return self.datasets[split]
    def max_positions(self): return 100, 100
    def has_sharded_data(self, split): return False
    def begin_epoch(self, epoch, model): pass
    def begin_valid_epoch(self, epoch, model): self.valid_epochs += 1
    def state_dict(self): return {'valid_epochs': self.valid_epochs}
    def load_state_dict(self, state): self.valid_epochs = state['valid_epochs']

    def get_batch_iterator(self, dataset, max_tokens=None, max_sentences=None, required_batch_size_multiple=1, seed=1, epoch=1,
                           num_workers=0, data_buffer_size=0, num_shards=1, shard_id=0, **others):
        with numpy_seed(seed): indices = dataset.ordered_indices()
        batches = batch_by_size(indices, dataset.num_tokens_vec(indices), max_tokens=max_tokens, max_sentences=max_sentences,
                                required_batch_size_multiple=required_batch_size_multiple)
        return EpochBatchIterator(dataset, batches, seed=seed, epoch=epoch, num_workers=num_workers, buffer_size=data_buffer_size,
                                  num_shards=num_shards, shard_id=shard_id)

    def train_step(self, sample, model, criterion, optimizer, update_num=0, ignore_grad=False):
        loss, size, log = criterion(model, sample)
        optimizer.backward(loss*0 if ignore_grad else loss)
        return loss, size, log

    def valid_step(self, sample, model, criterion): return criterion(model, sample)
    def reduce_metrics(self, logs, criterion): return batch_metrics(logs) | criterion.reduce_metrics(logs)


def make_trainer(folder: Path, task: Backwards | None = None, world: World | None = None, **settings) -> Trainer:
    "A trainer for the task; settings are options of any group."
    values = dict(save_dir=str(folder), cpu=True, log_interval=3, batch_size=12, num_workers=0, required_batch_size_multiple=1,
                  max_epoch=3, clip_norm=1., lr=0.01, adam_betas='(0.9, 0.98)', warmup_updates=5, label_smoothing=0.1,
                  lr_scheduler='inverse_sqrt', dropout=0.2) | settings
    groups = dict(common=CommonOptions, dataset=DatasetOptions, optimization=OptimizationOptions, checkpoint=CheckpointOptions,
                  ema=AveragingOptions, optimizer=AdamOptions, lr_scheduler=LR_SCHEDULERS.get(values['lr_scheduler']).Options, criterion=LabelSmoothingOptions)
    cfg, task = Config(**{name: kind.from_values(values) for name, kind in groups.items()}), task or Backwards()
    sizes = {f'{side}_{name}': n for side in ('encoder', 'decoder')
             for name, n in dict(embed_dim=16, ffn_embed_dim=16, layers=1, attention_heads=2).items()}
    torch.manual_seed(cfg.common.seed)
    model = TransformerModel.build_model(TransformerOptions(**sizes, dropout=values['dropout']), task)
    return Trainer(cfg, task, model, LabelSmoothedCrossEntropyCriterion.build_criterion(cfg.criterion, task), world)


if __name__ == '__main__':
    from seqlit.train.loggers import JsonLogger, follow, set_up_logging
    torch.set_num_threads(1)
    options = {key: ast.literal_eval(value) for key, value in (word.split('=', 1) for word in sys.argv[2:])}
    trainer = make_trainer(Path(sys.argv[1]), **options)
    set_up_logging(trainer.cfg.common)
    with trainer.interruptible():
        follow(trainer, JsonLogger(), lambda event: print(f'@ {event.num_updates} {type(event).__name__}', flush=True))
    torch.save(trainer.model.state_dict(), Path(sys.argv[1])/'final.pt')
