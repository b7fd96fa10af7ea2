"fairseq's own checkpoints give fairseq's own scores."
import numpy as np
import pytest
import torch

from seqlit.data.dictionary import Dictionary
from seqlit.models.model import resolve_architecture
from seqlit.models.transformer import TransformerModel
from seqlit.train.checkpoints import load_checkpoint

FOLDERS = {'transformer': 'joined', 'transformer_prenorm': 'separate'}


def load(shared, name: str):
    "A model of golden/models with its parameters."
    folder = shared/'golden'/'preprocess'/FOLDERS[name]

    class Task:
        source_dictionary = Dictionary.load(folder/'dict.en.txt')
        target_dictionary = Dictionary.load(folder/'dict.de.txt')
    state = load_checkpoint(shared/'golden'/'models'/name/'checkpoint_best.pt')
    record = state['cfg']['model']
    model_class, _ = resolve_architecture(record['_name'])
    model = TransformerModel.build_model(model_class.Options.from_values(record), Task())
    model.load_state_dict(state['model'])
    return model.eval(), state


@pytest.mark.parametrize('name', FOLDERS)
def test_logits_are_fairseqs(shared, name):
    model, state = load(shared, name)
    recorded = {key: torch.from_numpy(x) for key, x in np.load(shared/'golden'/'logits'/f'{name}.npz').items()}
    with torch.no_grad():
        scores, _ = model(recorded['src_tokens'], recorded['src_lengths'], recorded['prev_output_tokens'])
    is_token = recorded['target'] != 1
    assert float((scores - recorded['logits'])[is_token].abs().max()) < 1e-4


@pytest.mark.parametrize('name', FOLDERS)
def test_a_saved_state_has_fairseqs_names_in_fairseqs_order(shared, name):
    model, state = load(shared, name)
    drop = [key for key in state['model'] if key.endswith('_float_tensor')]
    assert sorted(model.state_dict()) == sorted(set(state['model']) - set(drop))
    order = [key for key, _ in model.named_parameters(remove_duplicate=False)]
    assert order == [key for key in state['model'] if key in set(order)]


@pytest.mark.parametrize('name', FOLDERS)
def test_the_number_of_parameters_is_fairseqs(shared, name):
    model, state = load(shared, name)
    stored = {key: x for key, x in state['model'].items()
              if not key.endswith(('.version', '_float_tensor', 'decoder.output_projection.weight'))}
    if name == 'transformer':
        del stored['decoder.embed_tokens.weight']  # one matrix for source, target and output
    assert sum(p.numel() for p in model.parameters()) == sum(x.numel() for x in stored.values())
    optimizer = state.get('last_optimizer_state')
    assert not optimizer or len(list(model.parameters())) == len(optimizer['param_groups'][0]['params'])


def test_an_untrained_model_is_drawn_as_fairseqs(shared):
    model, _ = load(shared, 'transformer')
    recorded = load_checkpoint(shared/'golden'/'training'/'init.pt')['model']
    torch.manual_seed(1)
    drawn = TransformerModel.build_model(
        model.options, Joined(model.encoder.dictionary, model.decoder.dictionary)).state_dict()
    assert sorted(drawn) == sorted(recorded)
    for key, x in recorded.items():
        assert drawn[key].shape == x.shape, key
        if key.endswith(('norm.weight', 'norm.bias', '.version', 'out_proj.bias')):
            assert torch.equal(drawn[key], x), key
        else:
            few = 0.25 if x.dim() == 1 else 0.05  # a bias has 64 numbers
            assert abs(drawn[key].std() / x.std() - 1) < few, key
            assert abs(drawn[key].abs().max() / x.abs().max() - 1) < 2 * few, key
    assert not drawn['encoder.embed_tokens.weight'][1].any()


class Joined:
    "As much of a task as a model needs."

    def __init__(self, source, target):
        self.source_dictionary, self.target_dictionary = source, target
