"Every architecture that fairseq's facts resolve, resolves to the same values here."
import ast
import re

import pytest

import seqlit.builtins  # noqa: F401  (registers all names)
from seqlit.cli.common import parse, resolve
from seqlit.cli.train import TRAIN

LANGUAGE_MODELS = ('TransformerLanguageModel', 'LSTMLanguageModel', 'FConvLanguageModel')
TASKS = dict.fromkeys(LANGUAGE_MODELS, 'language_modeling') | {'RobertaModel': 'masked_lm', 'BARTModel': 'denoising'}
NAMES = ('transformer', 'transformer_tiny', 'transformer_iwslt_de_en', 'transformer_wmt_en_de', 'transformer_vaswani_wmt_en_de_big', 'lstm',
         'lstm_wiseman_iwslt_de_en', 'lstm_luong_wmt_en_de', 'fconv', 'fconv_iwslt_de_en', 'transformer_lm_wiki103', 'transformer_lm_gbw',
         'transformer_lm_gpt', 'transformer_lm_gpt2_small', 'lstm_lm', 'fconv_lm', 'fconv_lm_dauphin_wikitext103', 'lightconv_iwslt_de_en',
         'roberta_base', 'bart_base')
# Options that seqlit has not, at the value that switches them off: pruning, quantisation, sharding and experts are out of the text core.
ABSENT = {'cross_self_attention': False, 'quant_noise_pq': 0, 'quant_noise_pq_block_size': 8, 'quant_noise_scalar': 0, 'base_layers': 0,
          'base_shuffle': False, 'base_sublayers': 1, 'character_embeddings': False, 'ffn_blocks_to_remove': -1, 'ffn_reg_scale_factor': 0.0,
          'mha_heads_to_keep': -1, 'mha_reg_scale_factor': 0.0, 'min_params_to_wrap': 100000000}
# Unset here until the model is built: the width of a convolution is the embedding's, and RoBERTa norms its embeddings.
UNSET = {'decoder_conv_dim': 512, 'encoder_conv_dim': 512, 'layernorm_embedding': True}


def recorded(shared) -> dict:
    "Architecture -> (class, {option: value})."
    text = (shared / 'fairseq' / 'flags.md').read_text(encoding='utf-8')
    text = text[text.index('## Resolved values per named architecture'):text.index('# Optimizers (')]
    rows = re.findall(r'^- \*\*(\w+)\*\* \((\w+)\): (\w+=.*)$', text, re.M)
    return {name: (cls, {k.arg: ast.literal_eval(k.value) for k in ast.parse(f'dict({row})').body[0].value.keywords})
            for name, cls, row in rows}


def same(ours, theirs) -> bool:
    "Whether two values mean the same: fairseq keeps some lists and numbers as text."
    if ours in ('True', 'False'):
        return ours == str(theirs)
    if isinstance(ours, bool) or isinstance(theirs, bool):
        return ours is theirs
    if isinstance(ours, list):
        return ','.join(map(str, ours)) == theirs or ours == theirs
    return ours == theirs or str(ours) == str(theirs)


def test_the_list_is_whole(shared):
    assert set(NAMES) == set(recorded(shared))


@pytest.mark.parametrize('name', NAMES)
def test_architecture_resolves_to_fairseqs_values(shared, name):
    cls, theirs = recorded(shared)[name]
    criterion = 'adaptive_loss' if 'lstm' in name else 'cross_entropy'  # fairseq's LSTMs drop their cutoff with all others
    argv = ['data', '--task', TASKS.get(cls, 'translation'), '--arch', name, '--criterion', criterion]
    config = resolve(TRAIN, parse(TRAIN, argv))
    ours = vars(config.model)
    missing = sorted(set(theirs) - set(ours))
    other = {k: (ours[k], v) for k, v in theirs.items()
             if k in ours and not (ours[k] is None and UNSET.get(k) == v) and not same(ours[k], v)}
    assert (other, {k: theirs[k] for k in missing if (k, theirs[k]) not in ABSENT.items()}) == ({}, {})
