"""Train twice, once in peace and once interrupted at random, and compare what came of it down to the last bit.

    python tools/interrupted_run.py --data multi30k/data-bin --out nbs/guides/interrupted_run.json
    python tools/interrupted_run.py --data data-bin --updates 300 --kills 6 -- --fp16 --store-ema

Both runs are `seqlit-train` in processes of their own, with the same flags; what stands behind `--` is added to them.
One trains to its end. The other is ended again and again, after a random number of seconds and in one of five ways, and
each time the same command is given once more. Then every logged number of every update, every validation and everything
in every checkpoint that both runs kept are compared. The exit code is 0 when all is equal, every process ended as it
should and none was left behind, and 1 otherwise.
"""

import argparse, json, os, platform, random, re, signal, subprocess, sys, tempfile, time
from collections import Counter
from datetime import datetime
from pathlib import Path

import torch

from seqlit.base.unpickle import load_checkpoint_file

# How a run is ended -> the exit codes that may follow; the second one: it had not yet begun to train.
KINDS = {
    'SIGKILL': (-signal.SIGKILL,),
    'SIGKILL in the middle of a write': (-signal.SIGKILL,),
    'SIGKILL, then a flipped bit': (-signal.SIGKILL,),
    'SIGTERM': (143, -signal.SIGTERM),
    'Ctrl-C': (130, -signal.SIGINT),
}
SIDE = '--{0}-layers 2 --{0}-embed-dim 64 --{0}-ffn-embed-dim 128 --{0}-attention-heads 4'
SMALL = f"{SIDE.format('encoder')} {SIDE.format('decoder')} --dropout 0.3".split()
CLOCKS = {'wps', 'ups', 'wall', 'train_wall', 'gb_free'}  # what a log tells of the machine, not of the run


def command(args: argparse.Namespace, folder: Path) -> list[str]:
    "The same `seqlit-train` for both runs, but for the folder."
    words = [args.data, '--arch', args.arch, '--save-dir', folder, '--log-file', folder / 'train.log']
    words += SMALL if args.arch == 'transformer' else []
    words += ['--share-all-embeddings'] if args.arch.startswith('transformer') else []
    words += ['--criterion', 'label_smoothed_cross_entropy', '--label-smoothing', 0.1]
    words += ['--optimizer', 'adam', '--adam-betas', '(0.9, 0.98)', '--lr', 0.003, '--clip-norm', 1.0]
    words += ['--lr-scheduler', 'inverse_sqrt', '--warmup-updates', 200, '--max-tokens', args.max_tokens]
    words += ['--max-update', args.updates, '--save-interval-updates', args.save_interval_updates]
    words += ['--validate-interval-updates', 2 * args.save_interval_updates, '--keep-interval-updates', 4]
    words += ['--log-format', 'json', '--log-interval', 1, '--seed', args.seed, '--cpu', *args.further]
    return [sys.executable, '-m', 'seqlit.cli.main', 'train', *map(str, words)]


def start(words: list[str], folder: Path, threads: int) -> subprocess.Popen:
    "Start a process; what it says goes to a file."
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / 'said.txt', 'ab') as out:
        return subprocess.Popen(
            words, stdout=out, stderr=out, start_new_session=True, env=os.environ | {'OMP_NUM_THREADS': str(threads)}
        )


def read_log(path: Path, tag: str) -> list[tuple[float, dict]]:
    "Time and numbers of the lines of a log that have a tag, the clocks left out."
    rows = []
    for line in path.read_text(encoding='utf-8').splitlines() if path.exists() else []:
        when, _, name, *text = line.split(' | ', 3)
        if name == tag and text:
            row = {key.removeprefix(f'{tag}_'): value for key, value in json.loads(text[0]).items()}
            rows.append((seconds_of(when), {k: v for k, v in row.items() if k not in CLOCKS}))
    return rows


def seconds_of(text: str) -> float:
    "The time of a log line."
    return datetime.strptime(text[:19], '%Y-%m-%d %H:%M:%S').timestamp()


def is_writing(folder: Path, process: subprocess.Popen) -> bool:
    "Whether a process has left a checkpoint half-written so far."
    return any(folder.glob(f'checkpoint*.{process.pid}.tmp'))


def interrupt(kind: str, process: subprocess.Popen, folder: Path, dice: random.Random):
    "End a process, unless it ends by itself before."
    while kind.endswith('write') and process.poll() is None and not is_writing(folder, process):
        time.sleep(0.0005)
    if process.poll() is not None:
        return
    if kind == 'Ctrl-C':  # a terminal tells the processes that read ahead too
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGTERM if kind == 'SIGTERM' else signal.SIGKILL)
    process.wait()
    last = folder / 'checkpoint_last.pt'
    if kind.endswith('bit') and last.exists():
        flip(last, dice.randrange(8 * last.stat().st_size))


def flip(path: Path, bit: int):
    "Change one bit of a file."
    with open(path, 'r+b') as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def run(args: argparse.Namespace, folder: Path, kinds: list[str]) -> list[dict]:
    "Train to the end; for each kind the run is ended so once. Returns what became of each process."
    dice, parts, words = random.Random(args.seed), [], command(args, folder)
    while True:
        kind, began = (kinds[len(parts)] if len(parts) < len(kinds) else None), time.time()
        process, logged = start(words, folder, args.threads), len(read_log(folder / 'train.log', 'train_inner'))
        try:
            process.wait(dice.uniform(*args.pause) if kind else None)
        except subprocess.TimeoutExpired:
            interrupt(kind, process, folder, dice)
        ended = time.time()
        kind = kind if process.returncode else None  # at its end the run may be faster than the signal
        expected = process.returncode in KINDS.get(kind, (0,))
        new = [(when, row) for when, row in read_log(folder / 'train.log', 'train_inner')[logged:]]
        updates = [int(row['num_updates']) for _, row in new]
        first, last = min(updates, default=None), max(updates, default=None)
        parts.append(dict(kind=kind, process=process.pid, code=process.returncode, expected=expected,
                          writing=is_writing(folder, process), began=began, ended=ended, first=first, last=last,
                          first_at=new[0][0] if new else None, leaves_others=leaves_others(process)))  # fmt: skip
        print(json.dumps(parts[-1]), flush=True)
        if kind is None or not expected:
            return parts


def leaves_others(process: subprocess.Popen, patience: float = 10.0) -> bool:
    "Whether processes that an ended one had started outlive it; if so, they are ended here."
    until = time.monotonic() + patience
    while time.monotonic() < until:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    return True


def flatten(value: object, path: str = '') -> dict[str, object]:
    "The leaves of nested dictionaries and lists by their paths, without clocks, folder names and earlier starts."
    if isinstance(value, (list, tuple)) and len(value) == 4 and value[2] in ('TimeMeter', 'StopwatchMeter'):
        return {}
    if isinstance(value, (dict, list, tuple)):
        found = {}
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            entry = entry[-1:] if key == 'optimizer_history' else entry  # it has one entry for each start
            if key not in ('previous_training_time', 'save_dir', 'log_file'):
                found |= flatten(entry, f'{path}/{key}')
        return found
    return {path: value}


def same(one: object, other: object) -> bool:
    "Whether two leaves are equal, tensors bit for bit."
    if torch.is_tensor(one) and torch.is_tensor(other):
        raw = [x.contiguous().reshape(-1).view(torch.uint8) for x in (one, other)]
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*raw)
    return type(one) is type(other) and (one == other or one != one and other != other)


def compare_checkpoints(one: Path, other: Path) -> dict:
    "What is equal in the checkpoints that two folders have."
    both = sorted({p.name for p in one.glob('*.pt')} & {p.name for p in other.glob('*.pt')})
    counts, different = Counter(), []
    for name in both:
        ours, theirs = (flatten(load_checkpoint_file(folder / name)) for folder in (one, other))
        for key in ours.keys() | theirs.keys():
            counts[key.split('/')[1]] += 1
            if key not in ours or key not in theirs or not same(ours[key], theirs[key]):
                different.append(f'{name}{key}')
    return dict(files=both, entries=sum(counts.values()), by_part=dict(counts), different=sorted(different))


def compare_logs(one: Path, other: Path, tag: str, key: str) -> dict:
    "What is equal in two logs; what the second one did several times is compared each time."
    wanted, found = {int(row[key]): row for _, row in read_log(one, tag)}, read_log(other, tag)
    seen = Counter(int(row[key]) for _, row in found)
    different = [int(row[key]) for _, row in found if int(row[key]) in wanted and row != wanted[int(row[key])]]
    missing = sorted(set(wanted) - set(seen))
    return dict(rows=len(wanted), again=sum(seen.values()) - len(seen), different=different, missing=missing)


def kinds_of(args: argparse.Namespace) -> list[str]:
    "As many endings as were asked for, each kind about equally often, in random order."
    kinds = [list(KINDS)[i % len(KINDS)] for i in range(args.kills)]
    random.Random(args.seed).shuffle(kinds)
    return kinds


def report(made: dict):
    "Print a small table."
    parts, log, kept = made['interrupted'], made['updates'], made['checkpoints']
    counts = Counter(part['kind'] for part in parts if part['kind'])
    rows = [*((kind, counts[kind]) for kind in KINDS), ('ended as it should, each time', made['expected'])]
    rows += [('ends that left a process behind', made['left_behind'])]
    rows += [('updates', log['rows']), ('updates done more than once', log['again'])]
    rows += [(f'{name} equal', not (made[name]['different'] or made[name]['missing'])) for name in
             ('updates', 'validations', 'epochs')]  # fmt: skip
    rows += [(f"{kept['entries']} entries of {len(kept['files'])} checkpoints equal", not kept['different'])]
    rows += [(f'seconds {name}', round(made[name][-1]['ended'] - made[name][0]['began'])) for name in
             ('unbroken', 'interrupted')]  # fmt: skip
    for name, value in rows:
        print(f'{name:44}', {True: 'yes', False: 'NO'}.get(value, value) if isinstance(value, bool) else value)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    "The options, and what stands behind `--`."
    words = sys.argv[1:] if argv is None else argv
    cut = words.index('--') if '--' in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get('SEQLIT_MULTI30K', 'multi30k')) / 'data-bin'
    parser.add_argument('--data', type=Path, default=default, help='data folder (default: in SEQLIT_MULTI30K)')
    parser.add_argument('--folder', type=Path, help='where to train; it must be empty (default: a temporary folder)')
    parser.add_argument('--out', type=Path, help='JSON file for what was found')
    parser.add_argument('--updates', type=int, default=2000, help='length of the run')
    parser.add_argument('--kills', type=int, default=20, help='how often it is ended')
    parser.add_argument('--pause', type=float, nargs=2, default=(3.0, 28.0), metavar='SECONDS',
                        help='the least and the most that pass between start and end')  # fmt: skip
    parser.add_argument('--seed', type=int, default=1, help='of the run, and of the interruptions')
    parser.add_argument('--arch', default='transformer', help='the model')
    parser.add_argument('--max-tokens', type=int, default=1000, help='size of a batch')
    parser.add_argument('--save-interval-updates', type=int, default=50, help='updates between two checkpoints')
    parser.add_argument('--threads', type=int, default=1, help='of each run')
    args = parser.parse_args(words[:cut])
    args.further = words[cut + 1:]
    return args


def main():
    args = parse()
    with tempfile.TemporaryDirectory(prefix='seqlit-interrupted-') as scratch:
        folder = args.folder or Path(scratch)
        if folder.exists() and any(folder.iterdir()):
            sys.exit(f'--folder {folder}: is not empty')
        one, other = folder / 'unbroken', folder / 'interrupted'
        # Background jobs of a shell ignore Ctrl-C, and what they start would ignore it too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        made = dict(unbroken=run(args, one, []), interrupted=run(args, other, kinds_of(args)))
        made['left_behind'] = sum(part['leaves_others'] for part in made['interrupted'])
        for name, tag, key in [('updates', 'train_inner', 'num_updates'), ('validations', 'valid', 'num_updates'),
                               ('epochs', 'train', 'num_updates')]:  # fmt: skip
            made[name] = compare_logs(one / 'train.log', other / 'train.log', tag, key)
        made['checkpoints'] = compare_checkpoints(one, other)
        made['expected'] = all(part['expected'] for part in made['unbroken'] + made['interrupted'])
        said = (other / 'said.txt').read_text(encoding='utf-8')
        made['fallbacks'] = len(re.findall('; continuing from ', said))
        flags = command(args, Path('checkpoints'))[5:]
        made |= dict(flags=flags, saves_every=args.save_interval_updates, threads=args.threads,
                     python=platform.python_version(), torch=torch.__version__)  # fmt: skip
    if args.out:
        args.out.write_text(json.dumps(made, indent=1) + '\n', encoding='utf-8')
    report(made)
    parts = [made[name] for name in ('updates', 'validations', 'epochs', 'checkpoints')]
    is_equal = not any(part['different'] or part.get('missing') for part in parts)
    sys.exit(0 if is_equal and made['expected'] and not made['left_behind'] else 1)


if __name__ == '__main__':
    main()
