"fairseq's LSTM: its checkpoint loads, its scores and translations are ours."
import numpy as np
import pytest
import torch

from seqlit.data.dictionary import Dictionary
from seqlit.models.lstm import LSTMModel
from seqlit.models.model import resolve_architecture
from seqlit.search.generator import Writer
from seqlit.train.checkpoints import load_checkpoint
from test_generate_golden import by_sentence, compare, run


@pytest.fixture(scope='module')
def loaded(shared):
    "The recorded model, and its checkpoint."
    folder = shared/'golden'/'preprocess'/'separate'

    class Task:
        source_dictionary = Dictionary.load(folder/'dict.en.txt')
        target_dictionary = Dictionary.load(folder/'dict.de.txt')
    state = load_checkpoint(shared/'golden'/'models'/'lstm'/'checkpoint_best.pt')
    record = state['cfg']['model']
    model_class, _ = resolve_architecture(record['_name'])
    assert model_class is LSTMModel
    model = LSTMModel.build_model(model_class.Options.from_values(record), Task())
    model.load_state_dict(state['model'])
    return model.eval(), state


@pytest.fixture(scope='module')
def recorded(shared):
    return {key: torch.from_numpy(x) for key, x in np.load(shared/'golden'/'logits'/'lstm.npz').items()}


def test_logits_are_fairseqs(loaded, recorded):
    with torch.no_grad():
        scores, _ = loaded[0](recorded['src_tokens'], recorded['src_lengths'], recorded['prev_output_tokens'])
    assert float((scores - recorded['logits'])[recorded['target'] != 1].abs().max()) < 1e-4


@torch.no_grad()
def test_one_word_at_a_time_gives_the_same(loaded, recorded):
    model, before = loaded[0], recorded['prev_output_tokens']
    writer = Writer(model, {'src_tokens': recorded['src_tokens'], 'src_lengths': recorded['src_lengths']})
    wanted = recorded['logits'].log_softmax(-1)
    for t in range(1, 8):
        assert float((writer.log_probs(before[:, :t]) - wanted[:, t - 1]).abs().max()) < 1e-4


def test_names_order_and_number_of_parameters_are_fairseqs(loaded):
    model, state = loaded
    assert list(model.state_dict()) == list(state['model'])
    assert sum(p.numel() for p in model.parameters()) == sum(x.numel() for x in state['model'].values())


def test_a_record_of_fairseqs_cutoff_counts_only_for_the_adaptive_loss(loaded):
    record = loaded[1]['cfg']['model']
    assert record['adaptive_softmax_cutoff'] == '10000,50000,200000' and record['criterion'] == 'cross_entropy'
    assert loaded[0].options.adaptive_softmax_cutoff is None


@pytest.mark.parametrize('name', ['lstm.beam5', 'ensemble.beam5'])
def test_generate(shared, name):
    wanted, got = run(shared, 'generate', 'generate', name)
    compare(wanted, got)
    assert got[-1] == wanted[-1]
    assert len(by_sentence(got)) == 5 * 200


@pytest.mark.parametrize('name', ['valid.beam5', 'chrf'])
def test_other_scores(shared, name):
    wanted, got = run(shared, 'generate', 'generate', name)
    assert got[-1] == wanted[-1]
