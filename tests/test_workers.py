"Several processes are one: the losses of accumulation, exact resume, agreement on trouble, and no hang when one dies."
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from backwards import make_trainer
from test_commands import SMALL, call, data, preprocess, seqlit, text  # noqa: F401
from workers import run

HERE = Path(__file__).resolve().parent
BACKENDS = ('ddp', 'after', 'parts', 'files')


def together(count: int, folder: Path, *scenarios: str) -> dict[str, list[dict]]:
    "Run scenarios on so many workers; what each of them told, by scenario."
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        common = os.environ | dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(probe.getsockname()[1]), WORLD_SIZE=str(count))
    started = [subprocess.Popen([sys.executable, HERE/'workers.py', folder, *scenarios], env=common | {'RANK': str(rank)},
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for rank in range(count)]
    said = [process.communicate(timeout=280)[0] for process in started]
    assert not any(process.returncode for process in started), '\n'.join(said)
    names = [name.partition('=')[0] for name in scenarios]
    return {name: [json.loads((folder/f'{name}-{rank}of{count}.json').read_text()) for rank in range(count)] for name in names}


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    return together(2, tmp_path_factory.mktemp('two'), 'compared', 'resumed', 'memory')


@pytest.fixture(scope='module')
def four(tmp_path_factory, two):
    folder = tmp_path_factory.mktemp('four')
    return together(4, folder, 'compared', f'moved={next(tmp_path_factory.getbasetemp().glob("two*"))/"resumed"}')


def close(a, b, tolerance: float) -> bool:
    "Whether two nested records agree."
    if isinstance(a, dict): return a.keys() == b.keys() and all(close(a[k], b[k], tolerance) for k in a)
    if isinstance(a, list): return len(a) == len(b) and all(close(x, y, tolerance) for x, y in zip(a, b))
    return a == b or (isinstance(a, (int, float)) and math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance))


@pytest.mark.parametrize('backend', ('ddp', 'after', 'parts'))
@pytest.mark.parametrize('size', (2, 4))
def test_workers_equal_accumulation(tmp_path, request, size, backend):
    "Six batches on four workers: the last round of an epoch is half empty."
    alone = run(make_trainer(tmp_path, dropout=0., update_freq=[size], save_interval_updates=2))
    assert len(alone['updates']) == 3 * -(-6 // size)
    for told in request.getfixturevalue('two' if size == 2 else 'four')['compared']:
        for part in ('updates', 'valid'):
            assert close(told[backend][part], alone[part], 1e-5), (told[backend][part], alone[part])
        for name, values in alone['numbers'].items():  # the bias of keys has no gradient but rounding, which Adam blows up
            if '.k_proj.bias' not in name and not name[0].isdigit():
                assert close(told[backend]['numbers'][name], values, 1e-3), name


@pytest.mark.parametrize('backend', BACKENDS)
def test_resume_is_exact(two, backend):
    "One worker asks for the end in mid-epoch; going on gives the bits of the unbroken run on every worker."
    for rank, told in enumerate(two['resumed']):
        unbroken, first, second = told[backend]
        assert [run['reason'] for run in told[backend]] == ['max_epoch', 'terminated', 'max_epoch']
        assert first['updates'] + second['updates'] == unbroken['updates'] and len(first['updates']) in (4, 5)
        assert first['valid'] + second['valid'] == unbroken['valid']
        assert second['numbers'] == unbroken['numbers']
        assert unbroken['numbers'] == two['resumed'][0][backend][0]['numbers'], f'worker {rank} has other parameters'


def test_parts_are_joined_by_any_number_of_workers(two, four, tmp_path_factory):
    "What two workers have written in parts, or whole, is the same for four workers that keep parts, and for one."
    written = {f'{name}-unbroken': two['resumed'][0][name][0]['numbers'] for name in BACKENDS}
    folder = next(tmp_path_factory.getbasetemp().glob('two*'))/'resumed'
    for name, numbers in written.items():
        kept = {k: v for k, v in numbers.items() if k in four['moved'][0][name]}
        assert len(kept) > 50
        for told in four['moved']:
            assert all(told[name][k] == v for k, v in kept.items() if k in told[name])
        trainer = make_trainer(folder/name, dropout=0., no_save=True)
        assert trainer.restore().path is not None
        for parameter, value in trainer.model.state_dict().items():
            assert value.double().flatten().tolist() == numbers[parameter]
    shards = sorted(path.name for path in (folder/'files-unbroken').glob('shard*'))
    assert shards and all('of2.pt' in name for name in shards)
    named = {path.name for path in (folder/'files-unbroken').glob('checkpoint*.pt')}
    assert len(shards) == 2 * 3 and {'checkpoint1.pt', 'checkpoint_last.pt'} <= named  # one state an epoch


@pytest.mark.parametrize('backend', ('ddp', 'after'))
def test_out_of_memory_is_agreed_on(two, backend):
    "In the forward pass, in the middle of the backward pass and after it: all skip the same update, and stay equal."
    first, second = (told[backend] for told in two['memory'])
    assert first['skipped'] == second['skipped'] and first['updates'] == second['updates']
    assert [(n, reason) for n, _, reason in first['skipped']] == [(n, 'worker 1: no room') for n in (1, 2, 3)]
    assert all(len(ids) > 12 for _, ids, _ in first['skipped'])  # the sentences of both workers
    assert first['numbers'] == second['numbers'] and len(first['updates']) == 6


WORKERS = [*SMALL, '--distributed-world-size', '2', '--max-epoch', '8', '--num-workers', '0', '--save-interval-updates', '4',
           '--log-format', 'simple', '--log-interval', '1']


def children(pid: int) -> list[int]:
    "The processes that a process has started."
    return [int(n) for n in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]


def start(data, folder: Path, *more) -> subprocess.Popen:
    "Train on two workers, as far as the first checkpoint."
    process = subprocess.Popen(call('train', data, *WORKERS, '--save-dir', folder, *more), stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if 'saved checkpoint' in line: return process
    raise AssertionError(f'no checkpoint was saved; exit code {process.wait()}')


def last_state(folder: Path) -> dict:
    import torch
    return torch.load(folder/'checkpoint_last.pt', weights_only=True)


def same_end(one: Path, other: Path):
    "Two runs ended in the same bits."
    import torch
    a, b = last_state(one), last_state(other)
    assert a['optimizer_history'][-1]['num_updates'] == b['optimizer_history'][-1]['num_updates']
    for name, value in a['model'].items():
        assert torch.equal(value, b['model'][name]), name


@pytest.fixture(scope='module')
def unbroken(data, tmp_path_factory):
    "A run of the command on two workers."
    folder = tmp_path_factory.mktemp('unbroken')
    done = seqlit('train', data, *WORKERS, '--save-dir', folder)
    assert done.stdout.count('done training') == 1 and done.stderr == ''
    return folder


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
@pytest.mark.parametrize('victim', (0, 1))
def test_a_worker_that_dies_ends_the_run(data, unbroken, tmp_path, victim):
    "Nobody hangs, the reason is named, and the same command goes on."
    process = start(data, tmp_path)
    began = time.monotonic()
    os.kill(children(process.pid)[victim], signal.SIGKILL)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 2 and time.monotonic() - began < 40
    assert f'seqlit-train: error: worker {victim}: ended by SIGKILL' in said.splitlines()[-1]
    seqlit('train', data, *WORKERS, '--save-dir', tmp_path)
    same_end(tmp_path, unbroken)


@pytest.mark.parametrize('sign, code', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_reach_all_workers(data, unbroken, tmp_path, sign, code):
    "The launcher passes a signal on; all stop after the same update."
    process = start(data, tmp_path)
    process.send_signal(sign)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == code, said
    assert 'Traceback' not in said and said.count('stopping after this update') <= 1
    assert 'continue' not in said and not list(tmp_path.glob('*.tmp'))
    seqlit('train', data, *WORKERS, '--save-dir', tmp_path)
    same_end(tmp_path, unbroken)


def test_torchrun_and_the_command_do_the_same(data, unbroken, tmp_path):
    "The workers of torchrun find each other by themselves."
    words = [word for word in WORKERS if word not in ('--distributed-world-size', '2')]
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', '-m', 'seqlit.cli.main',
                           'train', str(data), *words, '--save-dir', str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    same_end(tmp_path, unbroken)


def test_one_error_for_all_workers(data, tmp_path):
    "A mistake is told once, although each worker has made it."
    done = seqlit('train', tmp_path/'nowhere', *WORKERS, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and 'nowhere' in done.stderr


def test_generation_is_shared(data, unbroken):
    "Two workers print what one prints, in the order of the set."
    words = [data, '--path', unbroken/'checkpoint_last.pt', '--beam', '2', '--batch-size', '7', '--cpu', '--no-progress-bar']
    alone, shared = seqlit('generate', *words), seqlit('generate', *words, '--distributed-world-size', '2')
    assert alone.stdout == shared.stdout and alone.stdout.count('H-') > 10


def test_validation_is_shared(data, unbroken, tmp_path):
    "Two workers measure the same numbers as one, to the last bit."
    found = []
    for count in (1, 2):
        seqlit('validate', data, '--path', unbroken/'checkpoint_last.pt', '--cpu', '--batch-size', '3', '--results-path', tmp_path/str(count),
               '--distributed-world-size', count)
        values = json.loads((tmp_path/str(count)/'validate-valid.json').read_text())
        found.append({name: value for name, value in values.items() if name != 'wps'})
    assert found[0] == found[1] and found[0]['loss'] > 0


def test_evaluation_of_language_models_is_shared(text, tmp_path):
    "Two workers print the words and the perplexity that one prints."
    seqlit('preprocess', '--only-source', '-s', 'en', '--trainpref', text/'train', '--testpref', text/'test', '--destdir', tmp_path/'bin')
    for path in (tmp_path/'bin').glob('*.en-None.en.*'):
        path.rename(tmp_path/'bin'/path.name.replace('.en-None.en', ''))
    if (tmp_path/'bin'/'dict.en.txt').exists():
        (tmp_path/'bin'/'dict.en.txt').rename(tmp_path/'bin'/'dict.txt')
    seqlit('train', tmp_path/'bin', '--task', 'language_modeling', '--arch', 'transformer_lm', '--decoder-layers', '1', '--decoder-embed-dim', '16',
           '--decoder-ffn-embed-dim', '16', '--decoder-attention-heads', '2', '--optimizer', 'adam', '--lr', '1e-3',
           '--tokens-per-sample', '20', '--max-tokens', '100', '--cpu', '--max-update', '2', '--disable-validation', '--save-dir', tmp_path/'run')
    words = [tmp_path/'bin', '--path', tmp_path/'run'/'checkpoint_last.pt', '--cpu', '--max-tokens', '40', '--sample-break-mode', 'eos',
             '--output-word-probs', '--output-word-stats']
    alone, shared = (seqlit('eval-lm', *words, *more).stdout.splitlines() for more in ([], ['--distributed-world-size', '2']))
    assert [line for line in alone if 'tokens/s' not in line] == [line for line in shared if 'tokens/s' not in line] and len(alone) > 10
