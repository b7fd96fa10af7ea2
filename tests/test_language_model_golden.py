"fairseq's language model gives fairseq's scores, under fairseq's names."

import numpy as np
import pytest
import torch

import seqlit.builtins  # registers all names
from seqlit.base.config import options_of
from seqlit.data.dictionary import Dictionary
from seqlit.models.model import resolve_architecture
from seqlit.nn.incremental import IncrementalState
from seqlit.train.checkpoints import load_checkpoint


@pytest.fixture
def loaded(shared):
    "The recorded model with its parameters, and its checkpoint."
    golden = shared / 'golden'

    class Task:
        source_dictionary = target_dictionary = Dictionary.load(golden / 'preprocess' / 'onlysrc' / 'dict.txt')

    state = load_checkpoint(golden / 'models' / 'transformer_lm' / 'checkpoint_best.pt')
    record = state['cfg']['model']
    model_class, _ = resolve_architecture(record['_name'])
    model = model_class.build_model(options_of(model_class).from_values(record), Task())
    model.load_state_dict(state['model'])
    return model.eval(), state


@pytest.fixture
def recorded(shared) -> dict:
    "The recorded batch and its scores."
    arrays = np.load(shared / 'golden' / 'logits' / 'transformer_lm.npz')
    return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def test_logits_are_fairseqs(loaded, recorded):
    model, _ = loaded
    with torch.no_grad():
        scores, _ = model(recorded['src_tokens'])
    is_token = recorded['target'] != 1
    assert float((scores - recorded['logits'])[is_token].abs().max()) < 1e-4


def test_word_by_word_gives_them_too(loaded, recorded):
    model, _ = loaded
    tokens, state = recorded['src_tokens'][:2, :16], IncrementalState()
    with torch.no_grad():
        for width in range(1, 17):
            scores, _ = model(tokens[:, :width], incremental_state=state)
            assert torch.allclose(scores[:, -1], recorded['logits'][:2, width - 1], atol=1e-4)


def test_names_and_order_of_parameters_are_fairseqs(loaded):
    model, state = loaded
    assert sorted(model.state_dict()) == sorted(state['model'])
    order = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert order == [name for name in state['model'] if name in set(order)]
