"fairseq's convolutional checkpoint gives fairseq's scores, hypotheses and BLEU."
import numpy as np
import pytest
import torch

from seqlit.data.dictionary import Dictionary
from seqlit.models.fconv import FConvModel
from seqlit.train.checkpoints import load_checkpoint
from test_generate_golden import compare, run
from test_logits_golden import Joined


@pytest.fixture(scope='module')
def loaded(shared):
    "The recorded model, and what the file holds."
    folder = shared/'golden'/'preprocess'/'separate'
    task = Joined(Dictionary.load(folder/'dict.en.txt'), Dictionary.load(folder/'dict.de.txt'))
    state = load_checkpoint(shared/'golden'/'models'/'fconv'/'checkpoint_best.pt')
    model = FConvModel.build_model(FConvModel.Options.from_values(state['cfg']['model']), task)
    model.load_state_dict(state['model'])
    return model.eval(), state


def test_logits_are_fairseqs(shared, loaded):
    recorded = {key: torch.from_numpy(x) for key, x in np.load(shared/'golden'/'logits'/'fconv.npz').items()}
    with torch.no_grad():
        scores, _ = loaded[0](recorded['src_tokens'], recorded['src_lengths'], recorded['prev_output_tokens'])
    is_token = recorded['target'] != 1
    assert float((scores - recorded['logits'])[is_token].abs().max()) < 1e-4


def test_a_saved_state_has_fairseqs_names_in_fairseqs_order(loaded):
    model, state = loaded
    assert list(model.state_dict()) == list(state['model'])


def test_an_untrained_model_has_fairseqs_spread(loaded):
    "Weights start from the spreads that the paper derives."
    task = Joined(loaded[0].encoder.dictionary, loaded[0].decoder.dictionary)
    torch.manual_seed(1)
    drawn = FConvModel.build_model(loaded[0].options, task).state_dict()
    wanted = {'encoder.embed_tokens.weight': 0.1, 'decoder.embed_positions.weight': 0.1,
              'encoder.fc1.weight_v': (0.9 / 64) ** 0.5, 'encoder.fc2.weight_v': 64 ** -0.5,
              'decoder.convolutions.1.weight_v': (4 * 0.9 / (3 * 64)) ** 0.5,
              'decoder.attention.0.in_projection.weight_v': 64 ** -0.5,
              'decoder.fc3.weight_v': (0.9 / 64) ** 0.5}
    for name, spread in wanted.items():
        assert abs(drawn[name].std().item() / spread - 1) < 0.05, name


def test_generate(shared):
    wanted, got = run(shared, 'generate', 'generate', 'fconv.beam5')
    compare(wanted, got)
    assert got[-1] == wanted[-1]
