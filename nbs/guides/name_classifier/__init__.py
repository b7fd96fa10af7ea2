"""Which language is a name from? A model and a task as plug-ins.

    seqlit-train data-bin --user-dir name_classifier --task name_classification \\
        --arch rnn_classifier ...

The guide `931_name_classifier.ipynb` writes the same classes cell by cell and tells why.
"""
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from seqlit.base.config import Options, option
from seqlit.base.errors import SeqlitError
from seqlit.data.datasets import LanguagePairDataset, SequenceList
from seqlit.data.dictionary import Dictionary
from seqlit.data.indexed import load_indexed
from seqlit.models.model import BaseModel, register_architecture, register_model
from seqlit.nn.dropout import Dropout
from seqlit.nn.recurrent import run_layer
from seqlit.tasks.task import Task, register_task


@dataclass
class RNNClassifierOptions(Options):
    "Options of the character RNN."
    embed_dim: int = option(64, 'width of the embeddings of characters')
    hidden_size: int = option(128, 'width of the state')
    dropout: float = option(0.1, 'dropout before the last matrix')


@register_model('rnn_classifier', RNNClassifierOptions)
class RNNClassifier(BaseModel):
    "Reads a name character by character and judges it by the last state."

    def __init__(self, options, characters, labels):
        super().__init__()
        self.pad = characters.pad()
        self.embed_tokens = nn.Embedding(len(characters), options.embed_dim, self.pad)
        self.lstm = nn.LSTM(options.embed_dim, options.hidden_size, batch_first=True)
        self.dropout = Dropout(options.dropout)
        self.output_projection = nn.Linear(options.hidden_size, len(labels))

    @classmethod
    def build_model(cls, options, task):
        "Make the model for a task's characters and labels."
        return cls(options, task.source_dictionary, task.target_dictionary)

    def forward(self, src_tokens, src_lengths=None):
        "(B, S) characters become scores (B, 1, labels): one word to say a name."
        x, is_padding = self.embed_tokens(src_tokens), src_tokens == self.pad
        _, last, _ = run_layer(x, self.lstm.all_weights[0], is_padding)
        return self.output_projection(self.dropout(last))[:, None], {}

    def get_normalized_probs(self, net_output, log_probs, sample=None):
        "Scores as probabilities of the labels."
        scores = net_output[0].float()
        return scores.log_softmax(-1) if log_probs else scores.softmax(-1)

    def max_positions(self):
        "The longest name, and one label."
        return 1_000_000, 1


register_architecture('rnn_classifier', 'tiny_rnn_classifier', embed_dim=16,
                      hidden_size=32)


@dataclass
class NameOptions(Options):
    "Options of the task."
    data: str | None = option(None, 'folder that seqlit-preprocess wrote',
                              positional=True)
    max_positions: int = option(100, 'longest name in characters, the end included')


@register_task('name_classification', NameOptions)
class NameTask(Task):
    "Names in, labels out."

    def __init__(self, options, characters, labels):
        super().__init__(options)
        self.source_dictionary, self.target_dictionary = characters, labels

    @classmethod
    def setup_task(cls, options):
        "Load the dictionaries of characters and labels."
        paths = [Path(options.data or '.') / f'dict.{side}.txt'
                 for side in ('name', 'label')]
        for path in paths:
            if not path.exists():
                raise SeqlitError(f'{path}: no such dictionary; preprocess with '
                                  '--source-lang name --target-lang label')
        return cls(options, *map(Dictionary.load, paths))

    def load_dataset(self, split, epoch=1, combine=False):
        "Names as they are stored; of each label row its one label, without eos."
        prefix = f'{self.options.data}/{split}.name-label'
        names, labels = load_indexed(f'{prefix}.name'), load_indexed(f'{prefix}.label')
        labels = SequenceList([labels[i][:1] for i in range(len(labels))])
        self.datasets[split] = LanguagePairDataset(
            names, names.sizes, self.source_dictionary, labels, labels.sizes,
            self.target_dictionary, shuffle=split == 'train', input_feeding=False)
        return self.datasets[split]

    def max_positions(self):
        "The longest name, and one label."
        return self.options.max_positions, 1

    @torch.no_grad()
    def classify(self, model, names):
        "The probability of every label for each name: (N, labels)."
        encode = self.source_dictionary.encode_line
        rows = SequenceList([encode(' '.join(name)) for name in names])
        batch = LanguagePairDataset(rows, rows.sizes, self.source_dictionary,
                                    shuffle=False).batch(range(len(names)))
        scores = model.eval()(**batch['net_input'])
        found = model.get_normalized_probs(scores, log_probs=False)[:, 0]
        return found[batch['id'].argsort()]  # batches are sorted by length
