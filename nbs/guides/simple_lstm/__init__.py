"""An LSTM that hands one vector from encoder to decoder: a model as a plug-in.

    seqlit-train data-bin --user-dir simple_lstm --arch tutorial_simple_lstm ...

The guide `930_simple_lstm.ipynb` writes the same classes cell by cell and tells why.
"""
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from seqlit.base.config import Options, option
from seqlit.models.model import (
    Encoder, EncoderDecoderModel, EncoderOut, IncrementalDecoder, register_architecture,
    register_model)
from seqlit.nn.incremental import RowSlot


@dataclass
class SimpleLSTMOptions(Options):
    "Options of the simple LSTM."
    encoder_embed_dim: int = option(256, 'width of source embeddings')
    encoder_hidden_dim: int = option(256, 'width of the vector that is handed over')
    decoder_embed_dim: int = option(256, 'width of target embeddings')
    decoder_hidden_dim: int = option(256, "width of the decoder's state")


class SimpleLSTMEncoder(Encoder):
    "Reads a sentence and keeps its last state."

    def __init__(self, options, dictionary):
        super().__init__(dictionary)
        self.embed_tokens = nn.Embedding(len(dictionary), options.encoder_embed_dim,
                                         dictionary.pad())
        self.lstm = nn.LSTM(options.encoder_embed_dim, options.encoder_hidden_dim,
                            batch_first=True)

    def forward(self, src_tokens, src_lengths=None, return_all_hiddens=False):
        "(B, S) tokens become one vector a sentence: output (B, 1, D)."
        is_token = src_tokens != self.dictionary.pad()
        first = is_token.int().argmax(1, keepdim=True)  # words first, padding last
        places = (torch.arange(src_tokens.size(1), device=first.device) + first)
        x = self.embed_tokens(src_tokens.gather(1, places % src_tokens.size(1)))
        packed = pack_padded_sequence(x, is_token.sum(1).cpu(), batch_first=True,
                                      enforce_sorted=False)
        _, (last, _) = self.lstm(packed)
        return EncoderOut(last.transpose(0, 1), tokens=src_tokens, lengths=src_lengths)


class SimpleLSTMDecoder(IncrementalDecoder):
    "Reads the encoder's vector beside every word, and remembers its own state."

    def __init__(self, options, dictionary):
        super().__init__(dictionary)
        self.embed_tokens = nn.Embedding(len(dictionary), options.decoder_embed_dim,
                                         dictionary.pad())
        self.lstm = nn.LSTM(options.encoder_hidden_dim + options.decoder_embed_dim,
                            options.decoder_hidden_dim, batch_first=True)
        self.output_projection = nn.Linear(options.decoder_hidden_dim, len(dictionary))

    def extract_features(self, prev_output_tokens, encoder_out=None,
                         incremental_state=None):
        "(R, T) words become (R, T, D) states; with a memory only new words are read."
        known = incremental_state and incremental_state.get(self)
        done = incremental_state.step if known else 0
        words = self.embed_tokens(prev_output_tokens[:, done:])
        sentence = encoder_out.output
        sentence = sentence.repeat_interleave(len(words) // len(sentence), 0)
        x = torch.cat([words, sentence.expand(-1, words.size(1), -1)], 2)
        start = None
        if known:
            start = [x[None].contiguous() for x in known.tensors.values()]
        x, (hidden, cell) = self.lstm(x, start)
        if incremental_state is not None:
            slot = RowSlot({'hidden': hidden[0], 'cell': cell[0]})
            incremental_state.set(self, slot)
            incremental_state.advance(x.size(1))
        return x, {'attn': None}


@register_model('simple_lstm', SimpleLSTMOptions)
class SimpleLSTMModel(EncoderDecoderModel):
    "Two LSTMs and one vector between them."

    @classmethod
    def build_model(cls, options, task):
        "Make both halves for a task's dictionaries."
        return cls(SimpleLSTMEncoder(options, task.source_dictionary),
                   SimpleLSTMDecoder(options, task.target_dictionary))


register_architecture('simple_lstm', 'tutorial_simple_lstm', encoder_embed_dim=64,
                      encoder_hidden_dim=128, decoder_embed_dim=64,
                      decoder_hidden_dim=128)
