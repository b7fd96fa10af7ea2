"More readers and thousands of broken files: alignments, the files of codecs, configurations that stand for much."
import io
import json

import pytest
from test_fuzz import lines_of, little_memory, throw

import seqlit.builtins  # registers all names
from seqlit.base.config_file import read_config_file
from seqlit.base.errors import SeqlitError
from seqlit.data.binarize import binarize_alignments
from seqlit.data.indexed import load_indexed
from seqlit.data.text import BPES, recorded_codecs


def test_alignments(tmp_path):
    text = '0-0 1-2 2-1\n\n0-0\n3-3 4-12\n'

    def read(path):
        done = binarize_alignments(path, tmp_path/'out')
        rows = load_indexed(tmp_path/'out')
        lines = lines_of(path.read_bytes(), 'strict')
        assert [rows[n].tolist() for n in range(len(rows))] == [[int(i) for link in line.split() for i in link.split('-')] for line in lines] and done.lines == len(rows)

    assert throw(text.encode(), read, tmp_path/'train.align', 700, 9) > 200


CODECS = {
    'subword_nmt': ('bpe_codes', b'#version: 0.2\na b\nab c</w>\nb c\n'), 'fastbpe': ('bpe_codes', b'a b 12\nab c</w> 7\n'), 'sentencepiece': ('sentencepiece_model', None),
    'byte_bpe': ('sentencepiece_model_path', None), 'gpt2': ('gpt2_vocab_bpe', b'#version: 0.2\na b\nab c\n'), 'hf_byte_bpe': ('bpe_merges', b'#version: 0.2\na b\nab c\n'),
    'bert': ('bpe_vocab_file', '[UNK]\n[SEP]\n[CLS]\nab\n##c\na\nb\nc\nünï\n'.encode()),
}
PIECES = {piece: n for n, piece in enumerate(['a', 'b', 'c', 'ab', 'abc', '\u0120', '\u0120a'])}


@pytest.mark.parametrize('name', CODECS)
def test_files_of_codecs(tmp_path, name):
    "A codec whose file is damaged is refused by name, or splits text as its file says."
    codec, (option, data), other = BPES.get(name), CODECS[name], {}
    pytest.importorskip({'sentencepiece': 'sentencepiece', 'byte_bpe': 'sentencepiece', 'gpt2': 'regex', 'hf_byte_bpe': 'tokenizers', 'bert': 'tokenizers'}.get(name, 're'))
    if data is None:
        import sentencepiece
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(['ab abc cab bca'] * 9), model_writer=model, vocab_size=9, minloglevel=2)
        data = model.getvalue()
    if name in ('gpt2', 'hf_byte_bpe'):
        other = {'gpt2': 'gpt2_encoder_json', 'hf_byte_bpe': 'bpe_vocab'}[name]
        (tmp_path/'vocab.json').write_text(json.dumps(PIECES))
        other = {other: str(tmp_path/'vocab.json')}

    def read(path):
        made = codec(codec.Options.from_values({option: str(path), **other}))
        assert isinstance(made.decode(made.encode('ab abc')), str)

    throw(data, read, tmp_path/'file', 250, 13)


@pytest.mark.parametrize('name, option', [('gpt2', 'gpt2_encoder_json'), ('hf_byte_bpe', 'bpe_vocab'), ('huggingface', 'huggingface_tokenizer')])
def test_vocabularies_in_json(tmp_path, name, option):
    pytest.importorskip('tokenizers')
    (tmp_path/'merges').write_text('#version: 0.2\na b\nab c\n')
    data, other = json.dumps(PIECES), {'gpt2': dict(gpt2_vocab_bpe=str(tmp_path/'merges')), 'hf_byte_bpe': dict(bpe_merges=str(tmp_path/'merges'))}.get(name, {})
    if name == 'huggingface':
        import tokenizers
        data = tokenizers.Tokenizer(tokenizers.models.BPE(PIECES, [('a', 'b'), ('ab', 'c')])).to_str()

    def read(path):
        codec = BPES.get(name)
        made = codec(codec.Options.from_values({option: str(path), **other}))
        assert isinstance(made.decode(made.encode('abc ab')), str)

    assert throw(data.encode(), read, tmp_path/'vocab.json', 400, 14) > 50
    for text in ('[' * 100_000, '[]', '3', 'null', '{"a": "x"}', '{"a": 1e400}', '{"a": [1]}', '"' + 'a' * 1000):
        (tmp_path/'vocab.json').write_text(text)
        with pytest.raises(SeqlitError, match=r'vocab\.json'): read(tmp_path/'vocab.json')


def test_records_of_codecs(tmp_path):
    good = {'en': {'bpe': {'_name': 'subword_nmt', 'bpe_codes': {'file': 'codes'}, 'bpe_separator': '@@'}, 'tokenizer': {'_name': 'space'}}, 'de': {'bpe': {'_name': 'characters'}}}

    def read(path):
        for language in ('en', 'de', None):
            for values in recorded_codecs(tmp_path, language).values(): assert isinstance(values, dict)

    assert throw(json.dumps(good).encode(), read, tmp_path/'codec.json', 700, 15) > 100
    for text in ('[' * 100_000, '[]', '3', '[[1]]', '{"en": 3}', '{"en": {"bpe": 3}}', '{"en": {"bpe": {"bpe_codes": {"file": 3}}}}', '{"en": {"bpe": {"bpe_codes": {}}}}'):
        (tmp_path/'codec.json').write_text(text)
        with pytest.raises(SeqlitError, match=r'codec\.json: not a record of codecs'): read(tmp_path)


@pytest.mark.parametrize('option', ['lr', 'dropout', 'save_dir', 'a'])
def test_yaml_that_grows_in_an_option(tmp_path, option):
    "Neither the value nor the message about it becomes larger than the machine."
    levels = ['  a: &a [x, x, x, x, x, x, x, x, x]'] + [f'  {b}: &{b} [' + ', '.join([f'*{a}'] * 9) + ']' for a, b in zip('abcdefgh', 'bcdefghi')]
    path = tmp_path/'laughs.yaml'
    path.write_text('\n'.join(['hydra:', *levels, f'{option}: *i']), encoding='utf-8')
    with pytest.raises(SeqlitError, match=r'laughs\.yaml: .*stand for more than 100,000 values'): read_config_file(path)
