"Training on text files as they are: the same model as from binarised data, splitting anew, resuming, translating."

from pathlib import Path

import pytest
import torch

from test_commands import preprocess, refused, text  # noqa: F401  the fixture `text` has train, valid and test
from test_multilingual import seqlit

TINY = ['--arch', 'transformer_tiny', '--encoder-layers', 1, '--decoder-layers', 1, '--optimizer', 'adam', '--lr', '2e-3',
        '--max-tokens', 300, '--cpu', '--no-progress-bar', '--log-format', 'none', '--no-epoch-checkpoints']


def parameters(path: Path) -> dict:
    return torch.load(path, weights_only=True)['model']


def equal(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture
def corpus(text, tmp_path) -> Path:  # noqa: F811
    "A folder of its own with the six text files."
    folder = tmp_path / 'corpus'
    folder.mkdir()
    for file in text.glob('*.??'):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_the_same_model_as_from_binarised_data(text, corpus, tmp_path):  # noqa: F811
    preprocess(text, tmp_path / 'bin')
    seqlit('train', tmp_path / 'bin', *TINY, '--max-epoch', 2, '--save-dir', tmp_path / 'binarised')
    seqlit('train', corpus, '--task', 'text_translation', '-s', 'en', *TINY, '--max-epoch', 2, '--save-dir', tmp_path / 'live',
           '--num-workers', 2)
    for language in ('en', 'de'):
        name = f'dict.{language}.txt'
        assert (corpus / name).read_bytes() == (tmp_path / 'bin' / name).read_bytes()
    states = [parameters(tmp_path / name / 'checkpoint_last.pt') for name in ('binarised', 'live')]
    assert equal(*states)


def test_a_checkpoint_from_text_translates(corpus, tmp_path):
    seqlit('train', '--task', 'text_translation', '--train-source', corpus / 'train.en', '--train-target', corpus / 'train.de',
           '--valid-source', corpus / 'valid.en', '--valid-target', corpus / 'valid.de', *TINY, '--max-epoch', 1, '--save-dir', tmp_path)
    path = tmp_path / 'checkpoint_best.pt'
    out = seqlit('generate', corpus, '--task', 'text_translation', '--path', path, '--beam', 2, '--cpu').stdout
    count = len((corpus / 'test.en').read_text(encoding='utf-8').splitlines())
    assert [line[2:].split('\t')[0] for line in out.splitlines() if line.startswith('H-')] == [str(i) for i in range(count)]
    typed = [seqlit('interactive', corpus, '--path', path, '--cpu', *more, stdin='one two\n').stdout
             for more in (['--task', 'text_translation'], ['-s', 'en', '-t', 'de'])]
    lines = [[line for line in out.splitlines() if line[0] in 'SHDP'] for out in typed]
    assert lines[0] == lines[1] and len(lines[0]) == 4


def codes(folder: Path) -> Path:
    "A list of merges for the words of the corpus."
    pairs = ['o n', 'e n</w>', 't w', 'tw o</w>', 'on e</w>', 'e i', 'ei n', 'ein s</w>', 'z w', 'zw e', 'zwe i</w>', 's e', 'se v',
             'sev en</w>', 'v i', 'vi e', 'vie r</w>']
    (folder / 'codes').write_text('\n'.join(pairs) + '\n', encoding='utf-8')
    return folder / 'codes'


def test_splitting_anew_is_the_same_after_a_resume(corpus, tmp_path):
    split = ['--text-bpe', 'subword_nmt', '--text-bpe-args', repr({'bpe_codes': str(codes(tmp_path)), 'bpe_dropout': 0.2})]
    words = [corpus, '--task', 'text_translation', '-s', 'en', '-t', 'de', '--sample-subwords', 'both', *split, *TINY]
    seqlit('train', *words, '--max-epoch', 2, '--save-dir', tmp_path / 'whole')
    seqlit('train', *words, '--max-update', 7, '--save-dir', tmp_path / 'parts')
    seqlit('train', *words, '--max-epoch', 2, '--save-dir', tmp_path / 'parts', '--num-workers', 2)
    seqlit('train', *words, '--max-epoch', 2, '--save-dir', tmp_path / 'other', '--seed', 2)
    whole, parts, other = [parameters(tmp_path / name / 'checkpoint_last.pt') for name in ('whole', 'parts', 'other')]
    assert equal(whole, parts) and not equal(whole, other)
    assert (corpus / 'codec.json').is_file() and (corpus / 'codes').is_file()
    out = seqlit('generate', corpus, '--path', tmp_path / 'whole' / 'checkpoint_last.pt', '--beam', 1, '--cpu', '--bpe', 'subword_nmt',
                 '--task', 'text_translation',
                 '--bpe-codes', corpus / 'codes').stdout
    sources = [line.split('\t')[1] for line in out.splitlines() if line.startswith('S-')]
    assert any('@@' in source for source in sources)
    assert not any('@@' in line.split('\t')[2] for line in out.splitlines() if line.startswith('D-'))


def test_what_was_counted_is_kept(corpus, tmp_path):
    from seqlit.tasks.text_translation import TextTranslationOptions, TextTranslationTask

    def times() -> dict[str, int]:
        task = TextTranslationTask.setup_task(TextTranslationOptions(data=str(corpus), source_lang='en', text_workers=2))
        task.load_dataset('train')
        return {file.name: file.stat().st_mtime_ns for file in corpus.glob('*.npy')}

    first = times()
    assert len(first) == 4 and times() == first  # an index and lengths for each language, made once
    lines = (corpus / 'train.en').read_text(encoding='utf-8')
    (corpus / 'train.en').write_text(lines.replace('one', 'one one'), encoding='utf-8')
    assert len(times()) == 6, 'a text that changed is measured again'


def test_what_does_not_fit_is_named(corpus, tmp_path):
    words = ['--task', 'text_translation', *TINY, '--save-dir', tmp_path]
    refused(seqlit('train', corpus, *words, check=False), 'from which language into which?')
    refused(seqlit('train', *words, check=False), 'no text given')
    with open(corpus / 'valid.de', 'ab') as file:
        file.write(b'zwei\n')
    refused(seqlit('train', corpus, '-s', 'en', *words, check=False), 'not translations line by line')
    with open(corpus / 'train.de', 'ab') as file:
        file.write(b'\xff\n')
    (corpus / 'dict.de.txt').unlink()
    refused(seqlit('train', corpus, '-s', 'en', *words, check=False), 'train.de, line', 'not valid UTF-8')
