"Codecs equal the programs that they replace, and text goes through preprocess, train and interactive with `--bpe` alone."
import io
import json
import pickle
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from seqlit.base.errors import SeqlitError
from seqlit.cli.preprocess import main as preprocess
from seqlit.data.codecs import FastBPE, FastOptions, SentencepieceBPE, SentencepieceOptions
from seqlit.data.indexed import IndexedDataset
from seqlit.data.learning import learn_merges
from seqlit.data.text import BPES, SubwordBPE, SubwordOptions, build_codec, merge_pairs, recorded_codecs

BPE_NAMES = ('bert', 'byte_bpe', 'bytes', 'characters', 'fastbpe', 'gpt2', 'hf_byte_bpe', 'sentencepiece', 'subword_nmt')
LIBRARIES = {'moses': 'sacremoses', 'nltk': 'nltk', 'sentencepiece': 'sentencepiece', 'huggingface': 'tokenizers'}


@pytest.fixture(scope='module')
def text(shared) -> list[str]:
    return (shared/'golden'/'text'/'train.de').read_text(encoding='utf-8').splitlines()


@pytest.fixture(scope='module')
def codes(text, tmp_path_factory) -> Path:
    "Merges that subword-nmt has learnt."
    from subword_nmt.learn_bpe import learn_bpe
    path = tmp_path_factory.mktemp('codes')/'codes'
    with open(path, 'w', encoding='utf-8') as file:
        learn_bpe(io.StringIO('\n'.join(text[:1500])), file, 400)
    return path


def test_learns_what_subword_nmt_learns(text, codes):
    theirs = [tuple(line.split()) for line in codes.read_text(encoding='utf-8').splitlines()[1:]]
    assert list(learn_merges(Counter(' '.join(text[:1500]).split()), 400)) == theirs


def test_splits_as_subword_nmt(text, codes):
    from subword_nmt.apply_bpe import BPE
    theirs = BPE(io.StringIO(codes.read_text(encoding='utf-8')))
    dropping = BPE(io.StringIO(codes.read_text(encoding='utf-8')))  # apart: it remembers what it split at random
    ours = SubwordBPE(SubwordOptions(str(codes), bpe_dropout=.2))
    for number, line in enumerate(text[-300:]):
        assert ours.encode(line) == theirs.process_line(line)
        assert ours.decode(ours.encode(line)) == line
        random.seed(number)
        assert ours.sample(line, number) == dropping.process_line(line, dropout=.2)


@settings(max_examples=60, deadline=None)
@given(st.text('abc', min_size=1, max_size=12), st.lists(st.tuples(st.text('abc', min_size=1, max_size=2), st.text('abc', min_size=1, max_size=2)),
                                                        max_size=8, unique=True))
def test_pieces_join_to_the_word(word, merges):
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    pieces = merge_pairs(word, ranks, end='')
    assert ''.join(pieces) == word
    assert not any(pair in ranks for pair in zip(pieces, pieces[1:]))


def test_first_version_of_subword_nmt(tmp_path):
    from subword_nmt.apply_bpe import BPE
    (tmp_path/'old').write_text('r a\nn </w>\nra v\ne n</w>\n', encoding='utf-8')
    theirs = BPE(io.StringIO((tmp_path/'old').read_text(encoding='utf-8')))
    ours = SubwordBPE(SubwordOptions(str(tmp_path/'old')))
    for word in 'raven', 'rave', 'n', 'even':
        assert ours.encode(word).split() == theirs.process_line(word).split()


def test_fastbpe_reads_counts(codes, text, tmp_path):
    lines = codes.read_text(encoding='utf-8').splitlines()[1:]
    (tmp_path/'fast').write_text('\n'.join(f'{line} {9999 - n}' for n, line in enumerate(lines)), encoding='utf-8')
    fast, slow = FastBPE(FastOptions(str(tmp_path/'fast'))), SubwordBPE(SubwordOptions(str(codes)))
    assert [fast.encode(line) for line in text[:100]] == [slow.encode(line) for line in text[:100]]


def test_sentencepiece_is_the_library(text, tmp_path):
    import sentencepiece
    with open(tmp_path/'model', 'wb') as file:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(text), model_writer=file, vocab_size=500, minloglevel=2)
    ours = SentencepieceBPE(SentencepieceOptions(str(tmp_path/'model'), True, .3))
    library = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path/'model'))
    samples = set()
    for line in text[:100]:
        assert ours.encode(line).split() == library.encode(line, out_type=str)
        assert ours.decode(ours.encode(line)) == library.decode(library.encode(line, out_type=str))
    for seed in range(30):
        samples.add(ours.sample(text[0], seed))
        assert ours.sample(text[0], seed) == ours.sample(text[0], seed)
    assert len(samples) > 15


@pytest.mark.parametrize('extra, module', LIBRARIES.items())
def test_missing_library_says_what_to_install(extra, module, tmp_path):
    "In a process of its own, in which the library cannot be imported."
    (tmp_path/'file').write_text('x', encoding='utf-8')
    code = f'''
import sys; sys.modules[{module!r}] = None
from seqlit.base.config import options_of
import seqlit.data.pretrained
from seqlit.data.text import BPES, TOKENIZERS
registry = TOKENIZERS if {extra!r} in TOKENIZERS else BPES
cls = registry.get({extra!r})
paths = {{name: {str(tmp_path/"file")!r} for name in ('sentencepiece_model', 'huggingface_tokenizer')}}
cls(options_of(cls).from_values(paths))'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert f'pip install seqlit[{extra}]' in done.stderr.splitlines()[-1], done.stderr


def corpus(folder: Path):
    "Raw text in two languages."
    numbers = dict(one='eins', two='zwei', three='drei', four='vier', five='fünf', six='sechs')
    draw = random.Random(0)
    for split, size in ('train', 300), ('valid', 40):
        rows = [draw.choices(list(numbers), k=3) for _ in range(size)]
        for language, lines in ('en', rows), ('de', [[numbers[w] for w in row] for row in rows]):
            text = '\n'.join(', '.join(line).capitalize() + '.' for line in lines)
            (folder/f'{split}.{language}').write_text(text + '\n', encoding='utf-8')


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in ('.bin', '.idx', '.txt', '.model', '.json')}


@pytest.mark.parametrize('flags', [['--bpe', 'sentencepiece', '--learn-bpe', '34'], ['--bpe', 'subword_nmt', '--learn-bpe', '20', '--tokenizer', 'moses'],
                                   ['--bpe', 'fastbpe', '--learn-bpe', '20', '--joined-bpe'], ['--bpe', 'characters']],
                         ids=lambda flags: flags[1])
def test_preprocess_splits_on_the_way(flags, tmp_path, capsys):
    corpus(tmp_path)
    common = ['-s', 'en', '-t', 'de', '--trainpref', str(tmp_path/'train'), '--validpref', str(tmp_path/'valid'), *flags]
    if flags[1] == 'sentencepiece':
        common += ['--joined-bpe']
    for workers in '1', '2':
        assert preprocess([*common, '--workers', workers, '--destdir', str(tmp_path/workers)]) == 0, capsys.readouterr().err
    assert files(tmp_path/'1') == files(tmp_path/'2')
    # What lies there splits the text again to the same numbers.
    from seqlit.data.dictionary import Dictionary
    from seqlit.data.text import TOKENIZERS
    from seqlit.base.config import options_of
    for language in 'en', 'de':
        steps = []
        record = recorded_codecs(tmp_path/'1', language)
        for registry in TOKENIZERS, BPES:
            if registry.kind in record:
                name = record[registry.kind]['_name']
                chosen = options_of(registry.get(name)).from_values({}, name)
                steps.append(build_codec(registry, chosen, tmp_path/'1', language, language))
        words = Dictionary.load(tmp_path/'1'/f'dict.{language}.txt')
        stored = IndexedDataset(tmp_path/'1'/f'valid.en-de.{language}')
        for line, row in zip((tmp_path/f'valid.{language}').read_text(encoding='utf-8').splitlines(), stored, strict=True):
            units = line
            for codec in steps:
                units = codec.encode(units)
            assert words.encode_line(units).tolist() == np.asarray(row).tolist()
            for codec in reversed(steps):
                units = codec.decode(units)
            assert units == line


def test_errors_are_one_line(tmp_path, capsys):
    corpus(tmp_path)
    common = ['-s', 'en', '-t', 'de', '--trainpref', str(tmp_path/'train'), '--destdir', str(tmp_path/'out')]
    for flags, part in [(['--learn-bpe', '9'], 'which kind'), (['--bpe', 'sentencepiece'], '--sentencepiece-model FILE'),
                        (['--bpe', 'sentencepiece', '--learn-bpe', '5000'], 'Vocabulary size too high'),
                        (['--bpe', 'gpt2', '--learn-bpe', '9'], 'not learnt here'), (['--bpe', 'subword'], "did you mean 'subword_nmt'?"),
                        (['--bpe', 'subword_nmt', '--bpe-codes', 'nowhere'], 'nowhere: no such file')]:
        assert preprocess([*common, *flags]) == 2
        error = capsys.readouterr().err.strip()
        assert part in error and '\n' not in error
    assert not (tmp_path/'out').exists()


def test_record_names_files_beside_it(tmp_path):
    corpus(tmp_path)
    assert preprocess(['-s', 'en', '-t', 'de', '--trainpref', str(tmp_path/'train'), '--destdir', str(tmp_path/'data'),
                       '--bpe', 'subword_nmt', '--learn-bpe', '12']) == 0
    record = json.loads((tmp_path/'data'/'codec.json').read_text(encoding='utf-8'))
    assert record['de']['bpe'] == {'_name': 'subword_nmt', 'bpe_codes': {'file': 'de.codes'}}
    (tmp_path/'data').rename(tmp_path/'moved')
    chosen = SubwordOptions.from_values({}, 'subword_nmt')
    assert build_codec(BPES, chosen, tmp_path/'moved', 'en', 'de').encode('One')
    (tmp_path/'moved'/'codec.json').write_text('{"en": 3', encoding='utf-8')
    with pytest.raises(SeqlitError, match='not a record of codecs'):
        build_codec(BPES, chosen, tmp_path/'moved', 'en', 'de')


def test_from_raw_text_to_the_hub(tmp_path):
    "Nobody but preprocess is told how to split, and the hub finds it out."
    from seqlit.cli.train import make_trainer
    from seqlit.hub.hub import Hub
    from seqlit.train.loggers import follow
    corpus(tmp_path)
    assert preprocess(['-s', 'en', '-t', 'de', '--trainpref', str(tmp_path/'train'), '--validpref', str(tmp_path/'valid'), '--destdir',
                       str(tmp_path/'data'), '--tokenizer', 'moses', '--bpe', 'subword_nmt', '--learn-bpe', '30']) == 0
    follow(make_trainer(tmp_path/'data', arch='transformer_tiny', optimizer='adam', lr=5e-3, dropout=0., max_tokens=300, max_epoch=12, cpu=True,
                        save_dir=str(tmp_path/'run'), no_epoch_checkpoints=True, num_workers=0, disable_validation=True))
    hub = Hub.from_pretrained(tmp_path/'run')
    assert type(hub.bpe).__name__ == 'SubwordBPE' and hub.tokenizer.options.target_lang == 'de'
    lines = [(tmp_path/f'valid.{language}').read_text(encoding='utf-8').splitlines() for language in ('en', 'de')]
    outputs = hub.translate(lines[0], beam=2)
    right = sum(a == b for a, b in zip(outputs, lines[1]))
    assert right > len(outputs) / 2, outputs[:3]
    scores = hub.score(list(zip(lines[0], lines[1])))
    assert sum(s.score for s in scores) / len(scores) > -.5


def test_codecs_travel_to_workers(text, codes, tmp_path):
    "Where processes do not fork, a codec is pickled; its copy must split alike."
    import sentencepiece
    import tokenizers
    from seqlit.base.config import options_of
    import seqlit.data.pretrained  # noqa: F401  (registers its codecs)
    from seqlit.data.text import TOKENIZERS
    learner = tokenizers.ByteLevelBPETokenizer()
    learner.train_from_iterator(text[:200], vocab_size=300, show_progress=False)
    numbers, merges = learner.save_model(str(tmp_path))
    learner.save(str(tmp_path/'tokenizer.json'))
    words = sorted({*(c for line in text[:200] for c in line), *('##' + c for line in text[:200] for c in line), *'[UNK] [CLS] [SEP] [PAD] [MASK]'.split()})
    (tmp_path/'vocab.txt').write_text('\n'.join(words), encoding='utf-8')
    with open(tmp_path/'model', 'wb') as file:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(text), model_writer=file, vocab_size=300, minloglevel=2)
    values = dict(bpe_codes=str(codes), sentencepiece_model=str(tmp_path/'model'), sentencepiece_model_path=str(tmp_path/'model'), bpe_merges=merges,
                  bpe_vocab=numbers, gpt2_encoder_json=numbers, gpt2_vocab_bpe=merges, bpe_vocab_file=str(tmp_path/'vocab.txt'),
                  huggingface_tokenizer=str(tmp_path/'tokenizer.json'))
    known = {BPES: [*BPE_NAMES, 'huggingface'], TOKENIZERS: ['moses', 'nltk', 'space']}
    for registry, names in known.items():
        for name in names:
            codec = registry.get(name)(options_of(registry.get(name)).from_values(values, name))
            copy = pickle.loads(pickle.dumps(codec))
            for line in text[:20]:
                assert copy.encode(line) == codec.encode(line), name
                assert copy.decode(codec.encode(line)) == codec.decode(codec.encode(line)), name
