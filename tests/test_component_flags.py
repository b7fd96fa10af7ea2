"Tokenizers, BPE codecs, scorers and criterions take fairseq's flags with fairseq's defaults."
import ast

import pytest

import seqlit.builtins  # noqa: F401  (registers all names)
from seqlit.base.config import options_of
from seqlit.cli.validate import VALIDATE
from seqlit.data.text import BPES, TOKENIZERS
from seqlit.search.scorers import SCORERS
from seqlit.train.criterions import CRITERIONS
from test_flags import declared, rows

BPE_NAMES = ('bert', 'byte_bpe', 'bytes', 'characters', 'fastbpe', 'gpt2', 'hf_byte_bpe', 'sentencepiece', 'subword_nmt')
SECTIONS = {f'BPE `{name}`': BPES for name in BPE_NAMES} | {f'Tokenizer `{name}`': TOKENIZERS for name in ('moses', 'nltk', 'space')} | {
    f'Scorer `{name}`': SCORERS for name in ('bleu', 'chrf', 'sacrebleu', 'wer')} | {
    f'Criterion `{name}`': CRITERIONS for name in ('composite_loss', 'ctc', 'label_smoothed_cross_entropy_with_rdrop')}
# Paths that fairseq requires or downloads are None here; a language model beside CTC is for speech.
NOT_HERE = {'--wer-kenlm-model', '--wer-lexicon', '--wer-lm-weight', '--wer-word-score', '--wer-sil-weight', '--wer-args'}


@pytest.mark.parametrize('section', SECTIONS)
def test_flags_and_defaults(shared, section):
    name = section.split('`')[1]
    ours = vars(options_of(SECTIONS[section].get(name))())
    text = (shared/'fairseq'/'flags.md').read_text(encoding='utf-8').replace('\n# ', '\n## ')
    start = text.index(f'## {section}')
    count = int(text[start:text.index('\n', start)].split('(')[1].split(')')[0])
    found = list(rows(text, section)) if count else []
    assert len(found) == count
    for spellings, _, default in found:
        if spellings[-1] in NOT_HERE:
            continue
        field = max(spellings, key=len).lstrip('-').replace('-', '_')
        assert field in ours, spellings
        want = ast.literal_eval(default) if default else None
        is_path = isinstance(want, str) and (want == '???' or want.startswith('https://'))
        assert ours[field] == (None if is_path else want), (field, ours[field], want)


def test_validate_takes_what_fairseq_validate_takes(shared):
    ours = declared(VALIDATE)
    text = (shared/'fairseq'/'flags.md').read_text(encoding='utf-8')
    part = text[text.index('## fairseq-validate'):text.index('# Task flags')]
    wanted = part[part.index('**Evaluation**'):]
    for flag in '--path', '--post-process', '--remove-bpe', '--quiet', '--model-overrides', '--results-path':
        assert f'`{flag}`' in wanted and flag in ours
