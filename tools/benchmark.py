"""Measure seqlit beside reference workloads, in one run on one machine, and store the figures as JSON.

    python tools/benchmark.py --shared ../shared --out nbs/guides/benchmarks.json

Each figure is the median of several runs. Machines differ and drift, so every seqlit figure stands beside a yardstick that is
measured in the same minutes, and what counts is the ratio. The yardsticks are `reference.py` of the folder given: a plain
PyTorch training loop, CTranslate2 (`pip install ctranslate2`), and a bare read-split-look-up loop. What fairseq reached is known
as a multiple of each (`FAIRSEQ` below), measured once on one quiet machine where fairseq still ran.
"""
import argparse, gzip, json, os, platform, shutil, statistics, subprocess, sys, tempfile, time
from pathlib import Path

# fairseq's figure divided by the yardstick's, both from the same quiet machine
FAIRSEQ = {'preprocess': 1_160_000 / 75.7 / 540_000, 'train': 1.05, 'generate': 134 / 387, 'one sentence': 63 / 4.6}


def shell(*words, **env) -> tuple[float, str]:
    "Run a command; returns seconds and its standard output."
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, env=os.environ | env)
    if done.returncode: sys.exit(done.stdout[-2000:] + done.stderr[-4000:])
    return time.perf_counter() - began, done.stdout


def reference(shared: Path, *words) -> list[dict]:
    "The lines that reference.py prints."
    return [json.loads(line) for line in shell(shared/'bench'/'reference.py', *words)[1].splitlines() if line.startswith('{')]


def seqlit(command: str, *words) -> tuple[float, str]:
    "Run a seqlit command as its own process."
    return shell('-c', f'import sys; from seqlit.cli.main import {command}; sys.exit({command}())', *words)


def unpack(shared: Path, folder: Path, copies: int = 1):
    "Write Multi30k's BPE text to a folder, the training part several times over."
    for split, name in [('train', 'train'), ('valid', 'val'), ('test', 'test_2016_flickr')]:
        for language in ('en', 'de'):
            text = gzip.open(shared/'data'/'multi30k'/f'{name}.bpe.{language}.gz').read()
            (folder/f'{split}.{language}').write_bytes(text * (copies if split == 'train' else 1))


def preprocess(shared: Path, folder: Path, workers: int) -> float:
    "Lines a second of binarising both languages of 580,000 pairs with a joint dictionary, start-up included."
    unpack(shared, folder, copies=20)
    seconds = []
    for _ in range(3):
        shutil.rmtree(folder/'data', ignore_errors=True)
        seconds.append(seqlit('preprocess', '-s', 'en', '-t', 'de', '--trainpref', folder/'train', '--destdir', folder/'data',
                              '--joined-dictionary', '--workers', workers)[0])
    return 2 * 580_000 / statistics.median(seconds)


PAPER = ['--arch', 'transformer', '--encoder-layers', 4, '--decoder-layers', 4, '--encoder-embed-dim', 128, '--decoder-embed-dim', 128,
         '--encoder-ffn-embed-dim', 256, '--decoder-ffn-embed-dim', 256, '--encoder-attention-heads', 4, '--decoder-attention-heads', 4,
         '--share-all-embeddings', '--dropout', 0.3, '--criterion', 'label_smoothed_cross_entropy', '--label-smoothing', 0.1,
         '--optimizer', 'adam', '--adam-betas', '(0.9, 0.98)', '--lr', 1e-4, '--max-tokens', 4096, '--clip-norm', 25]


def data(shared: Path, folder: Path) -> Path:
    "Multi30k, binarised with a joint dictionary."
    unpack(shared, folder)
    seqlit('preprocess', '-s', 'en', '-t', 'de', '--trainpref', folder/'train', '--validpref', folder/'valid', '--testpref', folder/'test',
           '--destdir', folder/'data', '--joined-dictionary', '--workers', 2)
    return folder/'data'


def train(folder: Path, updates: int = 50) -> float:
    "Target tokens a second over windows of ten updates, the first left out, as in reference.py."
    words = [folder, *PAPER, '--max-update', updates, '--log-format', 'json', '--log-interval', 10, '--no-save', '--disable-validation',
             '--cpu', '--log-file', folder/'log.txt']
    (folder/'log.txt').unlink(missing_ok=True)
    seqlit('train', *words)
    rows = [json.loads(line[line.index('{'):]) for line in (folder/'log.txt').read_text().splitlines() if '| train_inner |' in line]
    return statistics.median(float(row['wps']) for row in rows[1:])


def generate(shared: Path, folder: Path) -> float:
    "Sentences a second with beam 5 and batches of 128, loading left out."
    words = [folder, '--path', shared/'bench'/'m30k-fairseq.pt', '--beam', 5, '--batch-size', 128, '--quiet', '--cpu']
    rates = []
    for _ in range(3):
        done = subprocess.run([sys.executable, '-c', 'from seqlit.cli.main import generate; generate()', *map(str, words)],
                              capture_output=True, text=True)
        line = next(l for l in done.stderr.splitlines() + done.stdout.splitlines() if 'Translated' in l)
        rates.append(float(line.split('(')[-1].split(' sentences/s')[0]))
    return statistics.median(rates)


def one_at_a_time(shared: Path, folder: Path) -> float:
    "Median milliseconds for one sentence with beam 5."
    code = ('import sys, time, statistics\nfrom seqlit.cli.generate import Translator\n'
            't = Translator.load(sys.argv[1], data=sys.argv[2], beam=5)\nlines = open(sys.argv[3], encoding="utf-8").read().split("\\n")[:300]\n'
            't.translate(lines[:8]); took = []\n'
            'for line in lines:\n    began = time.perf_counter(); t.translate(line); took.append(time.perf_counter() - began)\n'
            'print(1000 * statistics.median(took))')
    return float(shell('-c', code, shared/'bench'/'m30k-fairseq.pt', folder, folder.parent/'test.en')[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--shared', type=Path, required=True, help='folder with bench/ and data/multi30k/')
    parser.add_argument('--out', type=Path, help='JSON file for the figures')
    parser.add_argument('--threads', type=int, default=2)
    args = parser.parse_args()
    os.environ['OMP_NUM_THREADS'] = str(args.threads)
    rows = []

    def row(work, unit, ours, yardstick, name, better='more'):
        ratio = ours / yardstick if better == 'more' else yardstick / ours
        fairseq = ratio / FAIRSEQ[work] if better == 'more' else ratio * FAIRSEQ[work]
        rows.append(dict(work=work, unit=unit, seqlit=round(ours, 1), yardstick=round(yardstick, 1), yardstick_name=name,
                         to_yardstick=round(ratio, 2), to_fairseq=round(fairseq, 2)))
        print(json.dumps(rows[-1]), flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        small, large = Path(scratch)/'small', Path(scratch)/'large'
        small.mkdir(); large.mkdir()
        folder = data(args.shared, small)
        row('train', 'target tokens/s', train(folder), reference(args.shared, 'train', 'fp32')[0]['tokens_per_s'], 'plain PyTorch loop')
        fast = reference(args.shared, 'decode', 'fp32', '128')
        row('generate', 'sentences/s', generate(args.shared, folder), statistics.median(f['sentences_per_s'] for f in fast), 'CTranslate2 fp32')
        slow = reference(args.shared, 'decode', 'fp32', '1')
        row('one sentence', 'ms', one_at_a_time(args.shared, folder), statistics.median(f['median_ms'] for f in slow), 'CTranslate2 fp32', 'less')
        row('preprocess', 'lines/s', preprocess(args.shared, large, args.threads), reference(args.shared, 'lines')[0]['lines_per_s'], 'bare Python loop')
    if args.out: args.out.write_text(json.dumps(dict(machine=platform.processor() or platform.machine(), threads=args.threads, python=platform.python_version(), rows=rows), indent=1) + '\n')


if __name__ == '__main__': main()
