"""Refining and aligned models from the raw text to the printed line, through the commands."""
import contextlib
import io
import subprocess

import pytest
import test_commands
from test_commands import preprocess, refused

from seqlit.cli.main import main

# a corpus that is written word for word, so that few updates suffice
WORDS = dict(one='eins', two='zwei', three='drei', four='vier')
SMALL = ['--encoder-embed-dim', 32, '--encoder-ffn-embed-dim', 32, '--encoder-layers', 1, '--encoder-attention-heads', 2,
         '--decoder-embed-dim', 32, '--decoder-ffn-embed-dim', 32, '--decoder-layers', 1, '--decoder-attention-heads', 2,
         '--dropout', 0.0, '--optimizer', 'adam', '--lr', 5e-3, '--batch-size', 32, '--cpu', '--no-progress-bar', '--no-epoch-checkpoints',
         '--save-interval', 10, '--validate-interval', 20]
REFINE = ['--task', 'translation_lev', '--gen-subset', 'test', '--cpu', '--no-progress-bar']


def seqlit(*words, check=True):
    "Run a command in this process; starting one for each would take longer than its work."
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    assert not check or code == 0, err.getvalue()
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "Binarised pairs with alignments."
    text, to = tmp_path_factory.mktemp('text'), tmp_path_factory.mktemp('data') / 'bin'
    lines = [f'{a} {b} {c}' for a in WORDS for b in WORDS for c in WORDS] + [f'{a} {b}' for a in WORDS for b in WORDS]
    for split, step in [('train', 1), ('valid', 5), ('test', 7)]:
        for language, row in [('en', lambda line: line), ('de', lambda line: ' '.join(WORDS[w] for w in line.split())),
                              ('align', lambda line: ' '.join(f'{i}-{i}' for i in range(len(line.split()))))]:
            (text / f'{split}.{language}').write_text('\n'.join(map(row, lines[::step])) + '\n', encoding='utf-8')
    preprocess(text, to, '--joined-dictionary', '--align-suffix', 'align')
    return to


def train(data, to, arch, *more, epochs=60):
    "Train, and give the last checkpoint."
    seqlit('train', data, '--arch', arch, '--save-dir', to, '--max-epoch', epochs, *SMALL, *more)
    return to / 'checkpoint_last.pt'


@pytest.fixture(scope='module')
def cmlm(data, tmp_path_factory):
    return train(data, tmp_path_factory.mktemp('cmlm'), 'cmlm_transformer', '--task', 'translation_lev', '--criterion', 'nat_loss',
                 '--noise', 'random_mask', '--length-loss-factor', 1.0, '--label-smoothing', 0.01, epochs=130)


def rows(done, mark):
    "What stands behind lines that begin with a letter, by sentence."
    return {line.split('\t')[0][2:]: line.split('\t')[1:] for line in done.stdout.splitlines() if line.startswith(mark + '-')}


def right(done):
    "The share of outputs that are their references."
    found, wanted = rows(done, 'H'), rows(done, 'T')
    assert set(found) == set(wanted) == {str(i) for i in range(12)}
    return sum(found[i][1] == wanted[i][0] for i in wanted) / len(wanted)


def test_cmlm_learns_and_refines(data, cmlm):
    done = seqlit('generate', data, '--path', cmlm, *REFINE, '--iter-decode-max-iter', 9, '--print-step', '--retain-iter-history',
                  '--print-alignment')
    assert right(done) > 0.9
    history, found = rows(done, 'E'), rows(done, 'H')
    assert set(history['0_0'][0].split()) == {'<unk>'}
    last = max((k for k in history if k.startswith('0_')), key=lambda k: int(k[2:]))
    assert history[last][0] == found['0'][1]
    assert 0 <= int(rows(done, 'I')['0'][0]) <= 9
    assert len(rows(done, 'A')['0'][0].split()) == len(found['0'][1].split())
    assert len(rows(done, 'P')['0'][0].split()) == len(found['0'][1].split()) + 1
    assert done.stdout.splitlines()[-1].startswith('Generate test with beam=5: BLEU4 = ')


def test_batches_and_ensembles_change_nothing(data, cmlm):
    alone = seqlit('generate', data, '--path', cmlm, *REFINE, '--batch-size', 1)
    twice = seqlit('generate', data, '--path', f'{cmlm}:{cmlm}', *REFINE)
    assert {i: row[1] for i, row in rows(alone, 'H').items()} == {i: row[1] for i, row in rows(twice, 'H').items()}


def test_interactive_refines(data, cmlm):
    done = test_commands.seqlit('interactive', data, '--path', cmlm, '--task', 'translation_lev', '--cpu', '-s', 'en', '-t', 'de',
                  stdin='one two three\n\nfour one\n')
    assert [row[1] for row in rows(done, 'H').values()][::2] == ['eins zwei drei', 'vier eins']


def test_a_model_that_writes_in_order_chooses_among_lengths(data, cmlm, tmp_path):
    judge = train(data, tmp_path, 'transformer', '--share-all-embeddings', epochs=40)
    done = seqlit('generate', data, '--path', f'{cmlm}:{judge}', *REFINE, '--iter-decode-with-beam', 3,
                  '--iter-decode-with-external-reranker')
    assert right(done) > 0.9


def test_levenshtein_learns_and_resumes(data, tmp_path):
    how = ['--task', 'translation_lev', '--criterion', 'nat_loss', '--noise', 'random_delete', '--share-all-embeddings',
           '--early-exit', '1,1,1']
    train(data, tmp_path, 'levenshtein_transformer', *how, epochs=10)
    path = train(data, tmp_path, 'levenshtein_transformer', *how, epochs=240)
    # three words are complete after one round, and --noise random_delete never shows complete drafts
    assert right(seqlit('generate', data, '--path', path, *REFINE, '--iter-decode-max-iter', 0)) > 0.9
    found = rows(seqlit('generate', data, '--path', path, *REFINE, '--iter-decode-force-max-iter', '--print-step'), 'I')
    assert found == {str(i): ['10'] for i in range(12)}
    refused(seqlit('generate', data, '--path', path, *REFINE, '--iter-decode-with-beam', 2, check=False), 'guesses no length')


def test_one_pass_model_trains_and_writes(data, tmp_path):
    path = train(data, tmp_path, 'nonautoregressive_transformer', '--task', 'translation_lev', '--criterion', 'nat_loss', '--noise',
                 'full_mask', '--src-embedding-copy', '--pred-length-offset', epochs=60)
    assert right(seqlit('generate', data, '--path', path, *REFINE, '--iter-decode-max-iter', 0)) > 0.5


def test_mistakes_are_told(data, cmlm, tmp_path):
    refused(seqlit('generate', data, '--path', cmlm, '--cpu', '--task', 'translation', check=False), '--task translation_lev')
    refused(seqlit('train', data, '--arch', 'cmlm_transformer', '--save-dir', tmp_path, *SMALL, check=False),
            '--task translation_lev --criterion nat_loss')
    refused(seqlit('train', data, '--arch', 'cmlm_transformer', '--task', 'translation_lev', '--criterion', 'nat_loss', '--save-dir',
                   tmp_path, *SMALL, check=False), '--noise full_mask or random_mask')
    refused(seqlit('generate', data, '--path', cmlm, *REFINE, '--prefix-size', 1, check=False), '--prefix-size')
    refused(seqlit('train', data, '--arch', 'cmlm_transformer', '--task', 'translation_lev', '--criterion', 'nat_loss', '--noise',
                   'random_mask', '--adaptive-softmax-cutoff', '6,8', '--save-dir', tmp_path, *SMALL, check=False), 'leave it out')
    refused(seqlit('train', data, '--arch', 'transformer_align', '--criterion', 'label_smoothed_cross_entropy_with_alignment',
                   '--alignment-layer', 0, '--save-dir', tmp_path, *SMALL, check=False), '--load-alignments')
    refused(seqlit('generate', data, '--path', cmlm, *REFINE, '--sampling', '--beam', 1, check=False), '--sampling: only a search word')


def test_aligned_transformer_prints_its_alignments(data, tmp_path):
    path = train(data, tmp_path, 'transformer_align', '--criterion', 'label_smoothed_cross_entropy_with_alignment', '--load-alignments',
                 '--alignment-layer', 0, '--alignment-heads', 1, '--alignment-lambda', 0.2, '--full-context-alignment', epochs=120)
    done = seqlit('generate', data, '--path', path, '--cpu', '--no-progress-bar', '--gen-subset', 'test', '--print-alignment')
    assert right(done) > 0.9
    for i, links in rows(done, 'A').items():
        words = rows(done, 'H')[i][1].split()
        assert links[0] == ' '.join(f'{t}-{t}' for t in range(len(words)))
