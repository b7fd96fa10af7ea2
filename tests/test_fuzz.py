"Every reader meets thousands of broken files: a clear error or a result each time, never a crash, a hang or all the memory."
import io
import pickle
import random
import resource
import struct
import time
import zipfile

import numpy as np
import pytest
import torch

from seqlit.base.config_file import read_config_file
from seqlit.base.errors import SeqlitError
from seqlit.cli import interactive as typing
from seqlit.cli.common import resolve
from seqlit.cli.generate import read_constraints
from seqlit.data.binarize import count_words
from seqlit.data.dictionary import Dictionary
from seqlit.data.indexed import LEGACY_MAGIC, MMAP_MAGIC, IndexedWriter, load_indexed
from seqlit.data.text import read_merges
from seqlit.hub.translator import Translator
from seqlit.models.transformer import TransformerModel, TransformerOptions
from seqlit.search.options import GenerationOptions
from seqlit.tasks.translation import TranslationOptions, TranslationTask
from seqlit.train.checkpoints import load_checkpoint, load_newest, write_checkpoint

TEXTS = [b'\x00', b'\xff\xfe', b'\xe2\x80\xa8', b'\xed\xa0\x80', b'#fairseq:overwrite', b' ' * 9, b'\n' * 5, b'-1', b'99999999999999999999', b'!!python/object:os.system',
         b'${a.b}', b'\t', b'{', b'&a [*a, *a]', b'\xf0\x9f\x98\x80']


def mutated(data: bytes, dice: random.Random) -> bytes:
    "A file that is nearly right."
    raw = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        at, kind = dice.randrange(len(raw) + 1), dice.randrange(6)
        if kind == 0 and raw: raw[at % len(raw)] ^= 1 << dice.randrange(8)
        elif kind == 1 and raw: raw[at % len(raw)] = dice.choice([0, 255, 127, 128, 10])
        elif kind == 2: del raw[at:at + dice.randint(1, 40)]
        elif kind == 3: raw[at:at] = dice.choice(TEXTS)
        elif kind == 4: raw[at:at] = raw[at:at + dice.randint(1, 30)]
        else: del raw[at:]
    return bytes(raw)


@pytest.fixture(autouse=True)
def little_memory():
    "A reader that asks for more than 4 GiB beyond what is there fails."
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(open('/proc/self/statm', encoding='utf-8').read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**32, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def throw(data: bytes, read, path, number: int, seed: int):
    "Read so many mutations of a file; returns how many were refused."
    dice, refused = random.Random(seed), 0
    for _ in range(number):
        path.write_bytes(mutated(data, dice))
        started = time.perf_counter()
        try:
            read(path)
        except SeqlitError as error:
            assert str(error) and '\n' not in str(error).strip()[:40]
            refused += 1
        assert time.perf_counter() - started < 20
    return refused


def test_dictionaries(tmp_path):
    lines = ''.join(f'word{n} {100 - n}\n' for n in range(20)) + 'ünï 3 #fairseq:overwrite\n'
    assert throw(lines.encode(), Dictionary.load, tmp_path/'dict.txt', 1500, 1) > 100


def test_indexes(tmp_path):
    with IndexedWriter(tmp_path/'train', np.uint16) as writer:
        for n in range(12): writer.add(np.arange(4, 6 + n))

    def read(path):
        rows = load_indexed(tmp_path/'train')
        for n in range(min(len(rows), 50)): rows[n]
        if len(rows): rows.gather(np.arange(min(len(rows), 50)))

    index, tokens = tmp_path/'train.idx', tmp_path/'train.bin'
    good = index.read_bytes(), tokens.read_bytes()
    assert throw(good[0], read, index, 1500, 2) > 500
    index.write_bytes(good[0])
    throw(good[1], read, tokens, 300, 3)


def test_checkpoints(tmp_path):
    state = {'model': {'weight': torch.arange(12.).view(3, 4), 'bias': torch.ones(4)}, 'cfg': {'model': {'_name': 'lstm', 'sizes': [1, 2]}},
             'extra_state': {'best': 1.5, 'stopper': {'best': None, 'num_runs': 0}}}
    path = tmp_path/'checkpoint.pt'
    write_checkpoint(state, [path])
    assert throw(path.read_bytes(), load_checkpoint, path, 1200, 4) > 400
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert throw(path.read_bytes(), load_checkpoint, path, 1200, 5) > 400


def test_configurations(tmp_path):
    text = 'task: {_name: translation, data: data-bin}\nmodel: {_name: transformer, dropout: 0.3}\noptimization: {lr: [0.1], max_update: 9}\nseed: 3\n'
    assert throw(text.encode(), read_config_file, tmp_path/'run.yaml', 1500, 6) > 300


def test_yaml_that_grows(tmp_path):
    "A small file that stands for a billion items is refused or stays small."
    levels = ['a: &a [x, x, x, x, x, x, x, x, x]'] + [f'{b}: &{b} [' + ', '.join([f'*{a}'] * 9) + ']' for a, b in zip('abcdefgh', 'bcdefghi')]
    path = tmp_path/'laughs.yaml'
    path.write_text('\n'.join(levels), encoding='utf-8')
    try:
        read_config_file(path)
    except SeqlitError:
        pass


def test_merges_and_text(tmp_path):
    merges = '#version: 0.2\n' + ''.join(f'{a} {b}\n' for a in 'abcdef' for b in 'ghij</w>')
    throw(merges.encode(), read_merges, tmp_path/'codes', 800, 7)
    text = ''.join(f'this is line {n} of some text\n' for n in range(30))
    throw(text.encode(), lambda path: count_words(path, workers=1), tmp_path/'train.en', 800, 8)


def test_constraints_files(tmp_path):
    lines = ['a phrase\tanother one', '', 'eins', 'zwei drei\tvier\t\tfünf'] * 3
    options = GenerationOptions(constraints='ordered', constraints_file=str(tmp_path/'asked'))

    def read(path):
        found = read_constraints(options, len(lines))
        text = path.read_bytes().decode('utf-8').replace('\r\n', '\n').replace('\r', '\n').removesuffix('\n').split('\n')
        assert len(text) == len(lines) and found == {i: line.split('\t') for i, line in enumerate(text) if line}

    assert throw(('\n'.join(lines) + '\n').encode(), read, tmp_path/'asked', 1500, 10) > 100


@pytest.fixture(scope='module')
def translator():
    "A tiny model that has learnt nothing; what it says does not matter here."
    words = Dictionary()
    for word in ['one', 'two', 'three', 'ünï', 'four']: words.add_symbol(word)
    task = TranslationTask(TranslationOptions(source_lang='en', target_lang='de', max_source_positions=60, max_target_positions=20), words, words)
    torch.manual_seed(1)
    sizes = {f'{side}_{name}': n for side in ('encoder', 'decoder') for name, n in dict(embed_dim=8, ffn_embed_dim=8, layers=1, attention_heads=1).items()}
    model = TransformerModel.build_model(TransformerOptions(**sizes, max_source_positions=60, max_target_positions=20), task).eval()
    return lambda **options: Translator([model], task, GenerationOptions(**options))


def typed(translator, monkeypatch, options: dict, **search):
    "A function that answers what is typed."
    ready = translator(**search)
    monkeypatch.setattr(typing, 'build_translator', lambda config: ready)
    config = resolve(typing.INTERACTIVE, {**options, 'cpu': True, **search})
    return lambda data: list(typing.interactive(config, io.BytesIO(data)))


def lines_of(data: bytes, errors: str) -> list[str]:
    "What Python's text mode makes of some bytes."
    return [line.removesuffix('\n') for line in io.TextIOWrapper(io.BytesIO(data), 'utf-8', errors)]


def numbers(shown: list[str], kind: str) -> list[int]:
    "The sentences that have an output line of a kind."
    return [int(line.split('\t')[0].removeprefix(kind)) for line in shown if line.startswith(kind)]


GOOD = 'one two three\n\nfour ünï\tone\nthree\n three  two \nnew words here\none\n'.encode()


@pytest.mark.parametrize('errors, buffer', [('strict', 64), ('replace', 64), ('replace', 3)])
def test_what_is_typed(translator, monkeypatch, errors, buffer):
    "As many answers as lines, in order; a line that is no text or too long is named, and those before it are answered."
    answer = typed(translator, monkeypatch, dict(buffer_size=buffer, batch_size=buffer, errors=errors), beam=1, max_len_b=1)
    dice, refused, answered = random.Random(11), 0, 0
    for _ in range(250):
        data = mutated(GOOD, dice)
        if dice.random() < 0.05: data += b'one ' * dice.choice([50, 70, 100_000]) + dice.choice([b'', b'\n', b'\r\n', b'\r'])
        shown, config = [], None
        try:
            shown = answer(data)
        except SeqlitError as error:
            refused += 1
            assert str(error).startswith('standard input, line ')
            assert b'\0' in data or 'length' in str(error) or (errors == 'strict' and 'UTF-8' in str(error))
        else:
            lines = lines_of(data, errors)
            assert numbers(shown, 'H-') == numbers(shown, 'S-') == numbers(shown, 'D-') == list(range(len(lines)))
            known = [' '.join(word if word in GOOD.decode().split()[:6] and word in ('one', 'two', 'three', 'four', 'ünï') else '<unk>' for word in line.split()) for line in lines]
            assert [line.split('\t')[1] for line in shown if line.startswith('S-')] == known
            answered += len(lines)
    assert refused > 5 and answered > 300


def test_lines_before_a_bad_one_are_answered(translator, monkeypatch):
    ready, shown = typed(translator, monkeypatch, dict(buffer_size=4, batch_size=4), beam=1, max_len_b=1), []
    config = resolve(typing.INTERACTIVE, dict(buffer_size=4, batch_size=4, cpu=True))
    with pytest.raises(SeqlitError, match='standard input, line 7: byte 0xff'):
        for line in typing.interactive(config, io.BytesIO(b'one\n' * 6 + b'\xff\n' + b'two\n')): shown.append(line)
    assert numbers(shown, 'H-') == list(range(6))


@pytest.mark.parametrize('kind', ['ordered', 'unordered'])
def test_typed_constraints(translator, monkeypatch, caplog, kind):
    "Whatever stands behind the tabs: an answer for each line, with the constraints repeated."
    answer = typed(translator, monkeypatch, dict(buffer_size=64, batch_size=64, errors='replace'), beam=2, max_len_b=4, constraints=kind)
    dice, answered = random.Random(12), 0
    good = 'one two\tthree one\tone\nfour\t\t\none\ntwo two\tone one one\n\tfour\n'.encode()
    for _ in range(100):
        data = mutated(good, dice)
        try:
            shown = answer(data)
        except SeqlitError as error:
            assert b'\0' in data, error
            continue
        lines = lines_of(data, 'replace')
        assert numbers(shown, 'H-') == list(range(len(lines)))
        assert numbers(shown, 'C-') == [n for n, line in enumerate(lines) for phrase in line.split('\t')[1:] if phrase.split()]
        answered += len(lines)
    assert answered > 200


def test_a_constraint_of_many_words(translator, monkeypatch, caplog):
    "It cannot be met within the length of the output; that is said, and costs no memory."
    answer = typed(translator, monkeypatch, dict(batch_size=1), beam=3, max_len_b=12, constraints='unordered')
    shown = answer(b'one\t' + b'one two three ' * 400 + b'\tfour\n')
    assert numbers(shown, 'H-') == [0] and 'before all of its constraints were met' in caplog.text


def packed(program: bytes, method: int = zipfile.ZIP_STORED, **storages: bytes) -> bytes:
    "A checkpoint in the zip format around a crafted pickle."
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', method) as archive:
        archive.writestr('archive/data.pkl', program)
        for name, raw in storages.items(): archive.writestr(f'archive/data/{name.removeprefix("n")}', raw)
    return file.getvalue()


def laughs(levels: int, kind: type) -> object:
    "A few objects, one within the other nine times over."
    value = kind(['x'] * 9)
    for _ in range(levels): value = kind([value] * 9)
    return value


def tensor(count: int) -> bytes:
    "A pickle that announces a tensor of so many numbers."
    file = io.BytesIO()
    torch.save({'model': {'w': torch.ones(7)}}, file)
    with zipfile.ZipFile(file) as archive: program = archive.read(next(name for name in archive.namelist() if name.endswith('data.pkl')))
    return program.replace(b'K\x07', b'\x8a\x08' + count.to_bytes(8, 'little'))


BOMBS = {
    'a tensor of 10^15 numbers': packed(tensor(10**15), n0=bytes(28)),
    'lists in lists': packed(pickle.dumps({'model': {'w': laughs(30, list)}})),
    'tuples in tuples': packed(pickle.dumps({'model': {'w': laughs(30, tuple)}})),
    'a key that takes for ever': packed(b'\x80\x02}' + pickle.dumps(laughs(30, tuple), 2)[2:-1] + b'K\x01s.'),
    'a text from lists': packed(b'\x80\x02cbuiltins\nstr\n' + pickle.dumps(laughs(30, list), 2)[2:-1] + b'\x85R.'),
    'zeros': packed(b'\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85R.'),
    'an object with a high number': packed(b'\x80\x02]p9999999999\n.'),
    'an object with a high binary number': packed(b'\x80\x02]r\xff\xff\xff\x7f.'),
    'a text of 2^60 letters': packed(b'\x80\x04\x8d' + (1 << 60).to_bytes(8, 'little') + b'a.'),
    'a frame of 2^60 bytes': packed(b'\x80\x04\x95' + (1 << 60).to_bytes(8, 'little') + b'].'),
    'deep': packed(b'\x80\x02' + b']' * 300_000 + b'a' * 299_999 + b'.'),
    'deep tuples': packed(b'\x80\x02)' + b'\x85' * 300_000 + b'.'),
    'a zip bomb': packed(b'\x80\x02X' + (1 << 28).to_bytes(4, 'little') + b'a' * (1 << 28) + b'.', zipfile.ZIP_DEFLATED),
    'a zip bomb for a tensor': packed(tensor(7), zipfile.ZIP_DEFLATED, n0=bytes(1 << 28)),
    'the old format, 10^15 numbers': b'old',
}


@pytest.mark.parametrize('kind', BOMBS)
def test_bombs(tmp_path, kind):
    "A small file that stands for much is refused before it costs much: 200 MB, and some seconds."
    path, data = tmp_path/'bomb.pt', BOMBS[kind]
    if data == b'old':
        torch.save({'model': {'w': torch.ones(7)}}, path, _use_new_zipfile_serialization=False)
        data = path.read_bytes().replace(b'K\x07', b'\x8a\x08' + (10**15).to_bytes(8, 'little'))
    path.write_bytes(data)
    used = int(open('/proc/self/statm', encoding='utf-8').read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20, resource.getrlimit(resource.RLIMIT_AS)[1]))
    started = time.process_time()
    with pytest.raises(SeqlitError, match=r'bomb\.pt: '): load_checkpoint(path)
    assert time.process_time() - started < 10


@pytest.mark.parametrize('count', [2**62, 2**63 - 1, 2**64 - 1, 10**15, 10**9])
def test_indexes_of_absurd_sizes(tmp_path, count):
    "What a header announces is compared with the file before anything is made of it."
    (tmp_path/'train.bin').write_bytes(bytes(100))
    for header in (MMAP_MAGIC + struct.pack('<QBQ', 1, 8, count), LEGACY_MAGIC + struct.pack('<5Q', 1, 4, 4, count, 1)):
        (tmp_path/'train.idx').write_bytes(header + bytes(200))
        with pytest.raises(SeqlitError, match=r'train\.idx: '): load_indexed(tmp_path/'train')


def test_restore_file_may_point_anywhere(tmp_path):
    "A folder, a text, a picture, an index, another pickle: the file is named, and it is said that it is no checkpoint."
    things = {'text': b'hello\n', 'empty': b'', 'picture.png': b'\x89PNG\r\n\x1a\n' + bytes(50), 'train.idx': MMAP_MAGIC + bytes(17), 'list.pt': pickle.dumps([1]), 'archive.zip': packed(b'.'),
              'none.pt': packed(pickle.dumps(None)), 'no_model.pt': packed(pickle.dumps({'cfg': {}})), 'model.pt': packed(pickle.dumps({'model': [1]})), 'config.yaml': b'lr: [0.1]\n',
              'other.zip': packed(b'').replace(b'data.pkl', b'data.txt')}
    for name, data in things.items(): (tmp_path/name).write_bytes(data)
    (tmp_path/'folder').mkdir()
    for path in [*tmp_path.iterdir(), tmp_path/'absent']:
        with pytest.raises(SeqlitError, match=f'{path.name}: (not a complete checkpoint|holds no model|is a folder|no such file)'): load_newest(path)


def test_configurations_that_nest(tmp_path):
    path = tmp_path/'run.yaml'
    for text in ('a: ' + '[' * 50_000, 'a: ' + '[' * 3000 + ']' * 3000, '- ' * 30_000 + 'a', 'a: &a [*a]\nlr: 3\n'):
        path.write_text(text, encoding='utf-8')
        try: read_config_file(path)
        except SeqlitError as error: assert 'run.yaml' in str(error)
