"Every reader meets thousands of broken files: a clear error or a result each time, never a crash, a hang or all the memory."
import random
import resource
import time

import numpy as np
import pytest
import torch

from seqlit.base.config_file import read_config_file
from seqlit.base.errors import SeqlitError
from seqlit.data.binarize import count_words
from seqlit.data.dictionary import Dictionary
from seqlit.data.indexed import IndexedWriter, load_indexed
from seqlit.data.text import read_merges
from seqlit.train.checkpoints import load_checkpoint, write_checkpoint

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
