"Scores equal fairseq's lines and sacrebleu's numbers, and every flag of `seqlit-score` works."
import io
import sys

import pytest
import sacrebleu
from hypothesis import given, settings, strategies as st

from seqlit.cli.generate import main as generate
from seqlit.cli.score import main
from seqlit.search.edits import count_edits
from seqlit.search.scorers import BleuScorer


def last_line(path):
    return path.read_text(encoding='utf-8').splitlines()[-1]


@pytest.mark.parametrize('name, flags', [('out', []), ('outignorecase', ['--ignore-case']), ('outorder2', ['--order', '2'])])
def test_equals_fairseq(name, flags, shared, capsys):
    folder = shared/'golden'/'score'
    assert main(['--sys', str(folder/'sys.txt'), '--ref', str(folder/'ref.txt'), *flags]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == last_line(folder/f'{name}.txt')


def test_modes_in_which_fairseq_crashes(shared, capsys):
    folder = shared/'golden'/'score'
    files = ['--sys', str(folder/'sys.txt'), '--ref', str(folder/'ref.txt')]
    assert main([*files, '--sentence-bleu']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 200 and all(line.startswith(f'{i} BLEU4 = ') for i, line in enumerate(lines))
    assert main([*files, '--sacrebleu']) == 0
    signature, score = capsys.readouterr().out.splitlines()
    pairs = [(folder/f).read_text(encoding='utf-8').splitlines() for f in ['sys.txt', 'ref.txt']]
    metric = sacrebleu.BLEU()
    assert score == metric.corpus_score(pairs[0], [pairs[1]]).format()
    assert signature == f'signature: {metric.get_signature()}'


@pytest.mark.parametrize('name, start', [('sacrebleu', 'BLEU = '), ('chrf', 'chrF2 = '), ('ter', 'TER = '), ('wer', 'WER: ')])
def test_generate_gives_every_score_and_its_signature(name, start, shared, capsys):
    golden = shared/'golden'
    assert generate([str(golden/'preprocess'/'joined'), '--path', str(golden/'models'/'transformer'/'checkpoint_best.pt'), '--cpu',
                     '--gen-subset', 'valid', '--beam', '1', '--max-len-b', '5', '--quiet', '--no-progress-bar', '--scoring', name]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f'Generate valid with beam=1: {start}')
    assert 'signature of the score: nrefs:1|' in said.err


def test_standard_input(shared, capsys, monkeypatch):
    folder = shared/'golden'/'score'
    monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO((folder/'sys.txt').read_bytes()), encoding='utf-8'))
    assert main(['--ref', str(folder/'ref.txt')]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == last_line(folder/'out.txt')


def test_errors(tmp_path, capsys):
    for name, text in [('two', b'a\nb\n'), ('five', b'a\nb\nc\nd\ne\n'), ('bad', b'a\n\xff\n')]:
        (tmp_path/name).write_bytes(text)
    def complaint(system, reference):
        assert main(['--sys', str(tmp_path/system), '--ref', str(tmp_path/reference)]) == 2
        error = capsys.readouterr().err
        assert error.startswith('seqlit-score: error: ') and error.count('\n') == 1
        return error
    assert '3 more lines' in complaint('five', 'two') and '3 more lines' in complaint('two', 'five')
    assert 'line 2' in complaint('bad', 'two')
    assert 'missing' in complaint('missing', 'two')


words = st.lists(st.sampled_from('a b c d e'.split()), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(words, words.filter(bool)), min_size=1, max_size=8))
def test_equals_sacrebleu(pairs):
    scorer = BleuScorer()
    system, reference = zip(*[(' '.join(a), ' '.join(b)) for a, b in pairs])
    for a, b in zip(system, reference): scorer.add_string(b, a)
    metric = sacrebleu.BLEU(tokenize='none', smooth_method='none', force=True)
    assert scorer.score() == pytest.approx(metric.corpus_score(system, [reference]).score, abs=1e-9)


@pytest.mark.parametrize('flags, part', [([], 'tok:none'), (['--ignore-case'], 'case:lc'), (['--order', '2'], 'order:2'), (['--sacrebleu'], 'tok:13a'),
                                         (['--scoring', 'chrf'], 'nc:6'), (['--scoring', 'ter'], 'case:lc'), (['--scoring', 'wer'], 'unit:word'),
                                         (['--scoring', 'wer', '--wer-char-level'], 'unit:char')])
def test_every_score_has_its_signature(flags, part, shared, capsys):
    folder = shared/'golden'/'score'
    assert main(['--sys', str(folder/'sys.txt'), '--ref', str(folder/'ref.txt'), *flags]) == 0
    signature, _ = capsys.readouterr().out.splitlines()
    assert signature.startswith('signature: nrefs:1|') and part in signature and 'version:' in signature


def test_ter_and_chrf_are_sacrebleu(shared, capsys):
    folder = shared/'golden'/'score'
    system, reference = [(folder/f).read_text(encoding='utf-8').splitlines() for f in ['sys.txt', 'ref.txt']]
    for name, metric in ('ter', sacrebleu.TER()), ('chrf', sacrebleu.CHRF()):
        assert main(['--sys', str(folder/'sys.txt'), '--ref', str(folder/'ref.txt'), '--scoring', name]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == metric.corpus_score(system, [reference]).format()


def levenshtein(a, b):
    "Cell by cell."
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


@settings(max_examples=60, deadline=None)
@given(words, words)
def test_edits(a, b):
    assert count_edits(a, b) == levenshtein(a, b) == count_edits(b, a)


def test_word_error_rate_of_a_corpus(shared, capsys):
    folder = shared/'golden'/'score'
    system, reference = [(folder/f).read_text(encoding='utf-8').splitlines() for f in ['sys.txt', 'ref.txt']]
    edits = sum(levenshtein(s.split(), r.split()) for s, r in zip(system, reference))
    assert main(['--sys', str(folder/'sys.txt'), '--ref', str(folder/'ref.txt'), '--scoring', 'wer']) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == f'WER: {100 * edits / sum(len(r.split()) for r in reference):.2f}'
