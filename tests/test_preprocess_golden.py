"Dictionaries and indexed files equal fairseq's byte for byte, and failures leave nothing behind."
import errno
import filecmp
import gzip
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from seqlit.base.errors import SeqlitError
from seqlit.cli.preprocess import PreprocessOptions, main, preprocess
from seqlit.data import indexed
from seqlit.data.binarize import binarize, count_lines, count_words, find_chunks, in_order, read_chunk
from seqlit.data.dictionary import Dictionary
from seqlit.data.indexed import IndexedDataset, IndexedWriter, RawTextDataset
from seqlit.data.text import SubwordBPE, SubwordOptions

PAIR = dict(source_lang='en', target_lang='de')
# The recipes of ../shared/golden/README.md; a value that begins with a folder's name is a path in golden/.
RECIPES = {
    'separate': dict(PAIR, trainpref='text/train', validpref='text/valid', testpref='text/test', thresholdsrc=2, thresholdtgt=3),
    'joined': dict(PAIR, trainpref='text/train', validpref='text/valid,text/test', testpref='text/test', joined_dictionary=True,
                   nwordssrc=1500, nwordstgt=1500, padding_factor=16),
    'odd': dict(PAIR, trainpref='text/odd', validpref='text/odd'),
    'onlysrc': dict(only_source=True, trainpref='text/train.en', validpref='text/valid.en', testpref='text/test.en', thresholdsrc=2),
    'raw': dict(PAIR, testpref='text/test', srcdict='preprocess/separate/dict.en.txt', tgtdict='preprocess/separate/dict.de.txt',
                dataset_impl='raw'),
}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize('workers', [1, 2, 3])
@pytest.mark.parametrize('recipe', RECIPES)
def test_equals_fairseq(recipe, workers, shared, tmp_path, monkeypatch):
    expected = shared/'golden'/'preprocess'/recipe
    monkeypatch.chdir(shared/'golden')
    done = preprocess(PreprocessOptions(**RECIPES[recipe], destdir=str(tmp_path/'out'), workers=workers))
    assert set(names(tmp_path/'out')) - {'preprocess.log'} == set(names(expected))
    for name in names(expected):
        assert filecmp.cmp(expected/name, tmp_path/'out'/name, shallow=False), f'{recipe}/{name} differs'
    assert (tmp_path/'out'/'preprocess.log').read_text(encoding='utf-8') == ''.join(done.log)


def test_any_chunking_equals_fairseq(shared, tmp_path):
    "The corpus of odd lines cut at every place a chunk can end."
    text, expected = shared/'golden'/'text'/'odd.en', shared/'golden'/'preprocess'/'odd'
    dictionary = Dictionary.load(expected/'dict.en.txt')
    whole = [line for chunk in find_chunks(text) for line in read_chunk(text, chunk)]
    assert len(whole) == count_lines(text) == 300
    for size in [1, 7, 100, 1000, 10_000]:
        assert [line for chunk in find_chunks(text, size) for line in read_chunk(text, chunk)] == whole
    stored, raw = IndexedDataset(expected/'train.en-de.en'), RawTextDataset(text, dictionary)
    assert len(stored) == len(raw) and all(np.array_equal(a, b) for a, b in zip(stored, raw))
    flat, sizes = stored.gather(np.arange(len(stored)))
    assert np.array_equal(flat, stored.tokens) and np.array_equal(sizes, stored.sizes)


def test_bpe_equals_subword_nmt(shared):
    folder = shared/'data'/'multi30k'
    codec = SubwordBPE(SubwordOptions(str(folder/'bpe10k.codes')))
    for language in ['en', 'de']:
        with gzip.open(folder/f'val.tok.{language}.gz', 'rt', encoding='utf-8') as tokenised, \
                gzip.open(folder/f'val.bpe.{language}.gz', 'rt', encoding='utf-8') as pieces:
            for line, expected in zip(tokenised, pieces):
                assert codec.encode(line) == ' '.join(expected.split())
                assert codec.decode(expected.strip()) == ' '.join(line.split())


# Any text at all

odd_lines = st.lists(st.text(st.characters(blacklist_categories=['Cs'], blacklist_characters='\0'), max_size=20), min_size=1, max_size=20)


def as_python_reads(path: Path) -> list[str]:
    "The lines of a file by Python's own text mode, which fairseq used."
    with open(path, encoding='utf-8') as file:
        return [line.removesuffix('\n') for line in file]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=odd_lines, ends=st.sampled_from(['\n', '\r\n', '\r', '\n\n']), size=st.integers(1, 40), last=st.booleans())
def test_any_text(lines, ends, size, last, tmp_path):
    path = tmp_path/'text'
    path.write_bytes((ends.join(lines) + ends * last).encode('utf-8'))
    expected = as_python_reads(path)
    assert [line for chunk in find_chunks(path, size) for line in read_chunk(path, chunk)] == expected
    assert count_lines(path) == len(expected)
    counts = count_words(path)
    dictionary = Dictionary()
    for line in expected: dictionary.encode_line(line, add_if_not_exist=True)
    assert {word: n for word, n in counts.items() if word != '</s>'} == \
        {word: dictionary.count[i] - (i < 4) for word, i in dictionary.indices.items() if word != '</s>' and (i > 3 or dictionary.count[i] > 1)}
    dictionary.finalize(threshold=2)
    binarize(path, dictionary, tmp_path/'data')
    assert [row.tolist() for row in IndexedDataset(tmp_path/'data')] == [dictionary.encode_line(line).tolist() for line in expected]
    dictionary.save(tmp_path/'dict.txt')
    loaded = Dictionary.load(tmp_path/'dict.txt')
    assert loaded == dictionary and loaded.count[4:] == dictionary.count[4:]


# Processes

def test_spawned_workers_in_a_script(tmp_path):
    "Where processes cannot fork (macOS, Windows), and that they load no torch."
    (tmp_path/'corpus').write_text('a b c\n' * 200_000, encoding='utf-8')
    script = tmp_path/'script.py'
    script.write_text(textwrap.dedent('''
        import sys
        from functools import partial
        from seqlit.data import binarize as b

        def loaded(_): return 'torch' in sys.modules, 'seqlit.data.binarize' in sys.modules

        if __name__ == '__main__':
            chunks = b.find_chunks('corpus', pieces=8)
            assert len(chunks) > 3
            count = partial(b._count_chunk, 'corpus', 'strict')
            assert list(b.in_order(count, chunks, 2, 'spawn')) == list(b.in_order(count, chunks))
            print(list(b.in_order(loaded, [1, 2], 2, 'spawn')))
    '''), encoding='utf-8')
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True,
                          env=os.environ | dict(PYTHONPATH=str(Path(__file__).parent.parent)))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == '[(False, True), (False, True)]'


def test_error_in_a_worker_keeps_its_message(tmp_path):
    path = tmp_path/'text'
    path.write_bytes(b'fine line\n' * 100_000 + b'\xff\n' + b'fine line\n' * 100_000)
    with pytest.raises(SeqlitError, match='text, line 100001: byte 0xff'):
        count_words(path, workers=2)
    assert count_words(path, workers=2, errors='replace')['\ufffd'] == 1


def test_leaving_early_ends_the_workers():
    results = in_order(abs, list(range(1000)), 2)
    assert next(results) == 0
    results.close()
    import multiprocessing
    assert not multiprocessing.active_children()


# Failures leave nothing

@pytest.fixture
def corpus(tmp_path):
    for language, lines in [('en', 'one\ntwo\nthree\n'), ('de', 'eins\nzwei\ndrei\n')]:
        for split in ['train', 'valid']: (tmp_path/f'{split}.{language}').write_text(lines, encoding='utf-8')
    return tmp_path


def options(folder: Path, **more) -> PreprocessOptions:
    values = dict(PAIR, trainpref=str(folder/'train'), validpref=str(folder/'valid'), destdir=str(folder/'data'))
    return PreprocessOptions(**(values | more))


CASES = {
    'invalid UTF-8 at the very end': ('valid.de', b'eins\nzwei\ndr\xe9i\n', r'valid\.de, line 3: byte 0xe9 at position 2'),
    'binary': ('valid.en', b'\x7fELF\0\0\0\n\n\n', r'valid\.en, line 1: contains a NUL byte'),
    'a line too few': ('valid.de', b'eins\nzwei', r'valid\.en has 3, .*valid\.de has 2'),
    'empty': ('train.en', b'', r'train\.en: the file is empty'),
    'blank': ('train.en', b'\n \n\xe3\x80\x80\n', r'train\.en: no word is left'),
}


@pytest.mark.parametrize('case', CASES)
def test_failure_leaves_nothing(case, corpus):
    name, content, message = CASES[case]
    (corpus/name).write_bytes(content)
    before = names(corpus)
    with pytest.raises(SeqlitError, match=message):
        preprocess(options(corpus))
    assert names(corpus) == before


@pytest.mark.parametrize('missing', ['train.en', 'valid.de'])
def test_missing_file(missing, corpus):
    (corpus/missing).unlink()
    before = names(corpus)
    with pytest.raises(SeqlitError, match=f'{missing}: no such file'):
        preprocess(options(corpus))
    assert names(corpus) == before


def test_failure_keeps_what_was_there(corpus):
    preprocess(options(corpus))
    before = {path.name: path.read_bytes() for path in (corpus/'data').iterdir()}
    (corpus/'valid.de').write_bytes(b'\xff\n\n\n')
    given_dicts = dict(srcdict=str(corpus/'data'/'dict.en.txt'), tgtdict=str(corpus/'data'/'dict.de.txt'))
    with pytest.raises(SeqlitError, match='line 1'):
        preprocess(options(corpus, **given_dicts))
    assert {path.name: path.read_bytes() for path in (corpus/'data').iterdir()} == before
    preprocess(options(corpus, errors='replace', **given_dicts))
    assert len((corpus/'data'/'preprocess.log').read_bytes()) > len(before['preprocess.log'])


def test_full_disk(corpus, monkeypatch, capsys):
    def full(self, tokens, sizes): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(IndexedWriter, 'extend', full)
    before = names(corpus)
    assert main(['-s', 'en', '-t', 'de', '--trainpref', str(corpus/'train'), '--destdir', str(corpus/'data')]) == 2
    assert names(corpus) == before
    error = capsys.readouterr().err
    assert error.startswith(f'seqlit-preprocess: error: {corpus}/data/train.en-de.en.bin: no space left') and error.count('\n') == 1


# Alignments, raw text, names

def test_alignments(corpus):
    (corpus/'train.align').write_text('0-0\n0-0\n\n', encoding='utf-8')
    done = preprocess(options(corpus, align_suffix='align', alignfile=str(corpus/'train.align')))
    assert [row.tolist() for row in IndexedDataset(corpus/'data'/'train.align.en-de')] == [[0, 0], [0, 0], []]
    assert IndexedDataset(corpus/'data'/'train.align.en-de').dtype == np.uint32
    assert (corpus/'data'/'alignment.en-de.txt').read_text(encoding='utf-8') == 'one eins\ntwo zwei\n'
    assert any('parsed 3 alignments' in line for line in done.log)
    (corpus/'train.align').write_text('0-0\n', encoding='utf-8')
    with pytest.raises(SeqlitError, match='train.align has 1'):
        preprocess(options(corpus, align_suffix='align', destdir=str(corpus/'again')))


@pytest.mark.parametrize('more, expected', [
    (dict(only_source=True, source_lang='en', target_lang=None), ['dict.en.txt', 'train.en-None.en.bin', 'train.en-None.en.idx']),
    (dict(source_lang=None, target_lang=None, dataset_impl='raw', trainpref='train.en'), ['dict.txt', 'train.None-None']),
    (dict(dict_only=True), ['dict.de.txt', 'dict.en.txt']),
    (dict(joined_dictionary=True, dict_only=True), ['dict.de.txt', 'dict.en.txt']),
])
def test_names(more, expected, corpus, monkeypatch):
    monkeypatch.chdir(corpus)
    preprocess(options(Path(), **(dict(validpref=None) | more)))
    assert names(corpus/'data') == sorted([*expected, 'preprocess.log'])
    assert not list((corpus/'data').glob('.*'))


def test_log_lines_as_fairseq_writes_them(corpus, capsys):
    root = logging.getLogger()
    handlers, level, root.handlers = root.handlers, root.level, []
    try:
        code = main(['-s', 'en', '-t', 'de', '--trainpref', str(corpus/'train'), '--destdir', str(corpus/'data'), '--nwordssrc', '6'])
    finally:
        root.handlers = handlers
        root.setLevel(level)
    shown = [line.split(' | ') for line in capsys.readouterr().out.splitlines()]
    assert code == 0 and {tuple(line[1:3]) for line in shown} == {('INFO', 'seqlit.cli.preprocess')}
    assert [line[3] for line in shown[1:]] == [
        '[en] Dictionary: 8 types', '[de] Dictionary: 8 types',
        f'[en] {corpus}/train.en: 3 sents, 6 tokens, 16.7% replaced (by <unk>)',
        f'[de] {corpus}/train.de: 3 sents, 6 tokens, 0.0% replaced (by <unk>)',
        f'Wrote preprocessed data to {corpus}/data']


def test_large_numbers_and_types(tmp_path):
    for size, dtype in [(65_499, 'uint16'), (65_500, 'uint32')]:
        with IndexedWriter(tmp_path/'x', indexed.best_dtype(size)) as writer: writer.add(np.array([size - 1, 2]))
        assert IndexedDataset(tmp_path/'x').dtype == dtype and IndexedDataset(tmp_path/'x')[0].tolist() == [size - 1, 2]


def test_every_flag_of_fairseq_preprocess(shared):
    "Flag, type and default of its own twenty flags, as the table in ../shared/fairseq/flags.md has them."
    text = (shared/'fairseq'/'flags.md').read_text(encoding='utf-8')
    table = text.split('## fairseq-preprocess')[1].split('\n## ')[0]
    made = PreprocessOptions()
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in table.splitlines() if line.startswith('| `')]
    assert len(rows) == 20
    for flags, kind, default, *_ in rows:
        name = [flag.strip(' `') for flag in flags.split(',')][-1].removeprefix('--').replace('-', '_')
        value = {'None': None, 'False': False}.get(default.strip('`'), default.strip("`'"))
        assert str(vars(made)[name]) == str(value), name
