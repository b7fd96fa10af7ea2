"A corpus of three million pairs: in memory are numbers of sentences and their order, not the sentences; epochs and readers do not add to it."
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

ROLLUP = Path('/proc/self/smaps_rollup')
pytestmark = pytest.mark.skipif(not ROLLUP.exists() or 'Pss_Anon' not in ROLLUP.read_text(), reason='needs what Linux tells of the memory of a process')
PAIRS = 3_000_000
READER = '''
import gc, json, sys
import numpy as np, torch
torch.set_num_threads(1)
import seqlit.cli.train
from seqlit.data.batches import resolve_max_positions
from seqlit.tasks.translation import TranslationOptions, TranslationTask

def say(word, **more):
    gc.collect()
    print(json.dumps({'at': word, **more}), flush=True)
    sys.stdin.readline()

workers, epochs = int(sys.argv[2]), int(sys.argv[3])
task = TranslationTask.setup_task(TranslationOptions(data=sys.argv[1], source_lang='en', target_lang='de'))
say('before')
data = task.load_dataset('train')
say('loaded', pairs=len(data))
batches = task.get_batch_iterator(data, max_tokens=4000, max_positions=(100, 100), ignore_invalid_inputs=True,
                                  required_batch_size_multiple=8, num_workers=workers, data_buffer_size=10)
say('cut', batches=len(batches))
for epoch in range(epochs):
    read, seen = batches.next_epoch(), 0
    for _ in range(40): seen += next(read)['nsentences']
    if epoch in (0, epochs - 1): say('read', epoch=epoch + 1, seen=seen)
    batches.current.n = batches.current.total   # the rest of the epoch is passed over
    del read
'''


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    "Three million pairs of one to nine words, in the form that `seqlit-preprocess` writes."
    folder, rng = tmp_path_factory.mktemp('corpus'), np.random.default_rng(1)
    for language in ('en', 'de'):
        sizes = rng.integers(2, 11, PAIRS, dtype=np.int32)
        words = rng.integers(4, 204, int(sizes.sum()), dtype=np.uint16)
        words[np.cumsum(sizes) - 1] = 2
        name = folder/f'train.en-de.{language}'
        words.tofile(f'{name}.bin')
        with open(f'{name}.idx', 'wb') as file:
            file.write(b'MMIDIDX\0\0' + (1).to_bytes(8, 'little') + bytes([8]) + PAIRS.to_bytes(8, 'little'))
            file.write(sizes.tobytes() + ((np.cumsum(sizes, dtype=np.int64) - sizes)*2).tobytes())
        (folder/f'dict.{language}.txt').write_text(''.join(f'w{n} 1\n' for n in range(200)))
    return folder


def shared_out(process: int) -> int:
    "Bytes of a process that are not pages of files; of a page that several processes have, each has its share."
    text = Path(f'/proc/{process}/smaps_rollup').read_text(encoding='utf-8')
    return 1024*int(text.split('Pss_Anon:')[1].split()[0])


def anonymous(process: int) -> int:
    "Bytes of a process that are not pages of files."
    text = Path(f'/proc/{process}/status').read_text(encoding='utf-8')
    return 1024*int(text.split('RssAnon:')[1].split()[0])


def family(process: int) -> list[int]:
    "A process and those that it started."
    children = Path(f'/proc/{process}/task/{process}/children').read_text(encoding='utf-8').split()
    return [process, *map(int, children)]


class Watch(threading.Thread):
    "Looks at the memory of a process every millisecond."
    def __init__(self, process): super().__init__(daemon=True); self.process, self.peak, self.over = process, 0, False
    def run(self):
        while not self.over:
            try: self.peak = max(self.peak, anonymous(self.process))
            except (OSError, IndexError): return
            time.sleep(0.001)


def measure(corpus, root, workers: int, epochs: int) -> dict[str, dict]:
    "What the reader says at each moment, with the memory at that moment and the most since it began."
    reader = subprocess.Popen([sys.executable, '-c', READER, str(corpus), str(workers), str(epochs)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)
    said, watch = {}, Watch(reader.pid)
    for line in reader.stdout:
        found = json.loads(line)
        if found['at'] == 'before': watch.start()
        found['now'], found['peak'] = anonymous(reader.pid), watch.peak
        found['together'] = sum(map(shared_out, family(reader.pid)))
        said[f"{found['at']} {found.get('epoch', '')}".strip()] = found
        reader.stdin.write('\n'), reader.stdin.flush()
    watch.over = True
    assert reader.wait(timeout=100) == 0
    return said


@pytest.mark.parametrize('workers', [0, 2])
def test_three_million_pairs(corpus, root, workers):
    "A pair takes 36 bytes at most: two sizes (8), a number in the order of length (8), and what it takes to sort them (18 more for a moment)."
    said = measure(corpus, root, workers, epochs=6)
    begin = said['before']['now']
    assert said['loaded']['pairs'] == PAIRS and said['cut']['batches'] > 5000 and said['read 6']['seen'] > 10_000
    assert (said['loaded']['now'] - begin)/PAIRS < 9, 'two sizes a pair'
    assert 20 < (said['read 6']['peak'] - begin)/PAIRS < 36
    growth = said['read 6']['together'] - said['read 1']['together']
    assert growth < 2_000_000, f'{growth} bytes more after six epochs than after one'
    mine = said['read 6']['together'] - said['before']['together']
    assert mine < 36*PAIRS + workers*45_000_000, 'a reader shares the order with the trainer; Python and some batches are its own'
