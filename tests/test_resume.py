"A run that was stopped, interrupted or killed and continued is the unbroken run, bit for bit."
import contextlib
import io
import logging
import os
import pickle
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from backwards import Backwards, make_trainer
from seqlit.cli import preprocess, train
from seqlit.train.checkpoints import load_checkpoint
from seqlit.train.events import Restored, Saved, Skipped, Stopped, Update, Validated, Validating


def story(trainer, until=None):
    "What a run did, without times; with `until`, it is asked to stop at that update."
    lines = []
    for event in trainer.run():
        match event:
            case Update(num_updates=n, values=values):
                lines.append((n, values))
                if n == until: trainer.stop()
            case Validated(subset=subset, report=report):
                lines.append((subset, {k: v for k, v in report.items() if k not in ('wps', 'best_loss')}))
    assert isinstance(event, Stopped)
    return lines, event.reason


def assert_equal(one, other):
    "Two trainers in the same state, down to the last bit."
    for (name, p), q in zip(one.model.state_dict().items(), other.model.state_dict().values()): assert torch.equal(p, q), name
    a, b = one.state_dict(), other.state_dict()
    for number, entries in a['last_optimizer_state']['state'].items():
        for key, value in entries.items():
            twin = b['last_optimizer_state']['state'][number][key]
            assert torch.equal(value, twin) if torch.is_tensor(value) else value == twin, (number, key)
    assert a['last_optimizer_state']['param_groups'] == b['last_optimizer_state']['param_groups']
    assert a['optimizer_history'][-1] == b['optimizer_history'][-1]
    for name, mean in a['extra_state'].get('ema', {}).items(): assert torch.equal(mean, b['extra_state']['ema'][name]), name
    for key in ('train_iterator', 'best', 'stopper', 'loss_scale'): assert a['extra_state'].get(key) == b['extra_state'].get(key), key
    assert a['task_state'] == b['task_state']


CASES = {
    'plain': {},
    'accumulation': dict(update_freq=[2, 3]),
    'within epochs': dict(validate_interval_updates=4, save_interval_updates=3, patience=100),
    'fixed': dict(lr_scheduler='fixed', lr=[0.01, 0.005], force_anneal=3, warmup_updates=7),
    'tokens': dict(batch_size=None, max_tokens=60, required_batch_size_multiple=8, curriculum=1),
    'two sets': dict(valid_subset='valid,valid1', fixed_validation_seed=5),
    'workers': dict(num_workers=1, data_buffer_size=2),
    'running mean': dict(store_ema=True, ema_decay=0.9, ema_update_freq=2, ema_start_update=3),
    'bf16': dict(bf16=True, store_ema=True, ema_decay=0.9),
    'fp16': dict(fp16=True, fp16_init_scale=2**20, fp16_scale_window=3),
    'plateau': dict(lr_scheduler='reduce_lr_on_plateau', lr_shrink=0.5, lr_threshold=0.5, warmup_updates=7),
    'polynomial': dict(lr_scheduler='polynomial_decay', total_num_update=30, force_anneal=2),
    'cosine': dict(lr_scheduler='cosine', lr_period_updates=5, t_mult=2.),
}


@pytest.mark.parametrize('case', CASES)
def test_stopped_anywhere(tmp_path, case):
    settings = CASES[case]
    unbroken = make_trainer(tmp_path/'unbroken', **settings)
    lines, reason = story(unbroken)
    assert reason == 'max_epoch'
    last = unbroken.num_updates
    for cut in sorted({1, last//2 + 1, last - 1}):
        folder = tmp_path/f'cut{cut}'
        first, why = story(make_trainer(folder, **settings), until=cut)
        assert why == 'stopped'
        resumed = make_trainer(folder, **settings)
        second, why = story(resumed)
        assert why == 'max_epoch' and first + second == lines, cut
        assert_equal(unbroken, resumed)


def test_stopped_again_and_again(tmp_path):
    unbroken = make_trainer(tmp_path/'unbroken')
    lines, _ = story(unbroken)
    pieces, cut = [], 0
    while True:
        trainer = make_trainer(tmp_path/'pieces')
        piece, why = story(trainer, until=(cut := cut + 2))
        pieces += piece
        if why == 'max_epoch': break
    assert pieces == lines
    assert_equal(unbroken, trainer)


def test_closed_at_every_event(tmp_path):
    "Asking for one event at a time, each from a new iterator."
    unbroken, dropped = make_trainer(tmp_path/'unbroken', save_interval_updates=4), make_trainer(tmp_path/'dropped', save_interval_updates=4)
    lines, _ = story(unbroken)
    updates = []
    for _ in range(1000):
        events = dropped.run()
        event = next(events)
        while isinstance(event, (Validating, Validated)): event = next(events)   # a validation that is left begins again
        events.close()
        if isinstance(event, Update): updates.append((event.num_updates, event.values))
        if isinstance(event, Stopped): break
    assert updates == [line for line in lines if isinstance(line[0], int)]
    assert_equal(unbroken, dropped)


def test_averages_of_a_resumed_epoch(tmp_path):
    "The means that the end of an epoch reports include the updates before the resume."
    def means(trainer, until=None):
        reports = []
        for event in trainer.run():
            if isinstance(event, Update) and event.num_updates == until: trainer.stop()
            if hasattr(event, 'complete') and event.complete: reports.append({k: event.report[k] for k in ('loss', 'ppl', 'wpb', 'gnorm')})
        return reports
    whole = means(make_trainer(tmp_path/'whole'))
    assert means(make_trainer(tmp_path/'cut'), until=8) + means(make_trainer(tmp_path/'cut')) == whole


def test_patience_is_kept(tmp_path):
    "A rate of zero never improves: with patience 2 the third validation is the last, resumed or not."
    settings = dict(patience=2, lr=[0.], lr_scheduler='fixed', warmup_updates=0, max_epoch=9, dropout=0.)
    lines, reason = story(make_trainer(tmp_path/'whole', **settings))
    assert reason == 'patience'
    trainer = make_trainer(tmp_path/'cut', **settings)
    first, _ = story(trainer, until=2*len(trainer.train_iterator(1)) + 1)
    second, reason = story(make_trainer(tmp_path/'cut', **settings))
    assert reason == 'patience' and first + second == lines
    assert story(make_trainer(tmp_path/'cut', **settings)) == ([], 'patience')


def test_bounds_hold_for_restored_runs(tmp_path):
    assert story(make_trainer(tmp_path, max_update=4))[1] == 'max_update'
    assert story(make_trainer(tmp_path, max_update=4)) == ([], 'max_update')
    lines, reason = story(make_trainer(tmp_path, max_update=6))
    assert reason == 'max_update' and [line[0] for line in lines if isinstance(line[0], int)] == [5, 6]
    assert story(make_trainer(tmp_path, stop_min_lr=1., max_epoch=0))[1] == 'stop_min_lr'


def test_resets(tmp_path):
    story(make_trainer(tmp_path/'first', max_epoch=1))
    last = str(tmp_path/'first'/'checkpoint_last.pt')
    def begin(**settings):
        trainer = make_trainer(tmp_path/'second', restore_file=last, **settings)
        trainer.restore()
        return trainer
    full = begin()
    assert (full.num_updates, full.epochs.next_epoch_index) == (6, 2) and full.manager.best is not None
    assert begin(reset_dataloader=True).epochs.next_epoch_index == 1
    assert begin(reset_optimizer=True).num_updates == 0
    assert begin(reset_meters=True).manager.best is None
    assert begin(reset_lr_scheduler=True).lr_scheduler.best is None and full.lr_scheduler.best is not None
    assert begin(optimizer_overrides="{'weight_decay': 0.3}").optimizer.optimizer.param_groups[0]['weight_decay'] == 0.3
    tuned = make_trainer(tmp_path/'third', finetune_from_model=last)
    assert tuned.restore().path == Path(last) and tuned.num_updates == 0 and tuned.previous_time == 0
    for p, q in zip(tuned.model.parameters(), full.model.parameters()): assert torch.equal(p, q)


def test_without_optimizer_state(tmp_path, caplog):
    story(make_trainer(tmp_path, max_epoch=1, no_save_optimizer_state=True))
    assert 'last_optimizer_state' not in load_checkpoint(tmp_path/'checkpoint_last.pt')
    trainer = make_trainer(tmp_path)
    trainer.restore()
    assert trainer.num_updates == 0 and 'no optimizer state' in caplog.text


def test_nothing_is_saved_with_no_save(tmp_path):
    trainer = make_trainer(tmp_path/'none', no_save=True)
    assert not any(isinstance(event, Saved) for event in trainer.run())
    assert not (tmp_path/'none').exists() and trainer.manager.best is not None


def test_gpu_memory(tmp_path, monkeypatch):
    "An update that does not fit is left out and named; the run goes on."
    trainer, plain = make_trainer(tmp_path, max_epoch=1), Backwards.train_step
    def step(self, sample, *args, **more):
        if sample['nsentences'] == 4: raise torch.OutOfMemoryError('CUDA out of memory')
        return plain(self, sample, *args, **more)
    monkeypatch.setattr(Backwards, 'train_step', step)
    events = list(trainer.run())
    skipped, = [event for event in events if isinstance(event, Skipped)]
    assert len(skipped.ids) == 4 and 'out of memory' in skipped.reason
    assert trainer.num_updates == 5 and any(isinstance(event, Saved) for event in events)


def test_readers_that_end_with_ctrl_c(tmp_path):
    "Where Ctrl-C reaches the processes that read ahead, too, the batches they had begun are not lost."
    lines, _ = story(make_trainer(tmp_path/'unbroken', update_freq=[2]))
    trainer = make_trainer(tmp_path/'broken', update_freq=[2])
    first = []
    for event in trainer.run():
        if isinstance(event, Update): first.append((event.num_updates, event.values))
        if event.num_updates == 1 and isinstance(event, Update):
            data, calls = trainer.task.datasets['train'], []
            def batch(indices, make=data.batch):
                calls.append(1)
                if len(calls) == 2:
                    trainer.stop('interrupted')
                    raise RuntimeError('DataLoader worker (pid 7) exited unexpectedly')
                return make(indices)
            data.batch = batch
    assert event.reason == 'interrupted' and len(first) == 1
    assert first + story(make_trainer(tmp_path/'broken', update_freq=[2]))[0] == lines


def start(folder, *words):
    command = [sys.executable, str(Path(__file__).with_name('backwards.py')), str(folder), 'max_epoch=6', 'save_interval_updates=4', *words]
    environment = os.environ | {'PYTHONPATH': str(Path(__file__).parent.parent)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, env=environment)


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
    "The parameters at the end of a run that nobody disturbs."
    folder = tmp_path_factory.mktemp('unbroken')
    process = start(folder)
    output = process.communicate(timeout=100)[0]
    assert process.returncode == 0, output
    return torch.load(folder/'final.pt')


@pytest.mark.parametrize('sign, workers', [(signal.SIGINT, 0), (signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGKILL, 1)])
def test_signals(tmp_path, unbroken, sign, workers):
    "Ctrl-C and SIGTERM leave a checkpoint; SIGKILL falls back to the last one. Either way the end is the same."
    process = start(tmp_path, f'num_workers={workers}')
    for line in process.stdout:
        if line.startswith('@ 23 Update'): break
    os.killpg(process.pid, sign)   # as a terminal does: to the readers, too
    rest = process.communicate(timeout=100)[0]
    asked = {signal.SIGINT: 'interrupted', signal.SIGTERM: 'SIGTERM'}.get(sign)  # as the log says it
    assert process.returncode == (0 if asked else -sign), rest
    if asked: assert 'Traceback' not in rest and asked in rest and 'Stopped' in rest, rest
    process = start(tmp_path, f'num_workers={workers}')
    output = process.communicate(timeout=100)[0]
    assert process.returncode == 0 and 'loaded checkpoint' in output, output
    final = torch.load(tmp_path/'final.pt')
    for name in unbroken: assert torch.equal(unbroken[name], final[name]), name


@pytest.fixture(scope='module')
def letters(tmp_path_factory):
    "Letters in, the same letters backwards out, in the form that `seqlit-train` reads."
    folder, dice, before = tmp_path_factory.mktemp('letters'), random.Random(1), logging.root.handlers[:]
    for split, count in dict(train=38, valid=8).items():
        rows = [' '.join(dice.choices('abcdef', k=dice.randint(1, 9))) for _ in range(count)]
        (folder/f'{split}.en').write_text('\n'.join(rows) + '\n')
        (folder/f'{split}.de').write_text('\n'.join(row[::-1] for row in rows) + '\n')
    with contextlib.redirect_stdout(io.StringIO()):
        assert preprocess.main(['-s', 'en', '-t', 'de', '--trainpref', str(folder/'train'), '--validpref', str(folder/'valid'), '--destdir', str(folder/'bin')]) == 0
    logging.root.handlers[:] = before
    return folder/'bin'


SCHEDULES = [
    dict(lr_scheduler='fixed', lr=[0.01, 0.004], force_anneal=2, lr_shrink=0.5), dict(lr_scheduler='inverse_sqrt', warmup_updates=4), dict(lr_scheduler='cosine', lr_period_updates=4, t_mult=2.),
    dict(lr_scheduler='polynomial_decay', total_num_update=14, warmup_updates=2), dict(lr_scheduler='reduce_lr_on_plateau', lr_shrink=0.5, lr_threshold=0.5), dict(lr_scheduler='step', lr_deacy_period=3),
    dict(lr_scheduler='tri_stage', warmup_steps=3, hold_steps=2, decay_steps=6), dict(lr_scheduler='triangular', max_lr=0.02, lr_period_updates=6), dict(lr_scheduler='manual', update2lr="{'3-6': 0.002}"),
]
OPTIMIZERS = [dict(optimizer='adam', weight_decay=0.01), dict(optimizer='adafactor', lr=[0.01]), dict(optimizer='nag', momentum=0.9), dict(optimizer='sgd', momentum=0.9), dict(optimizer='adagrad'),
              dict(optimizer='adadelta'), dict(optimizer='adamax'), dict(optimizer='lamb')]
PRECISIONS = [{}, {}, dict(bf16=True), dict(fp16=True, fp16_init_scale=2**18, fp16_scale_window=3)]


def drawn(dice: random.Random) -> dict:
    "Some combination of what can be combined; about twelve updates."
    return dict(
        arch='transformer', encoder_embed_dim=16, encoder_ffn_embed_dim=16, encoder_layers=1, encoder_attention_heads=2, decoder_embed_dim=16, decoder_ffn_embed_dim=16, decoder_layers=1,
        decoder_attention_heads=2, dropout=0.2, cpu=True, max_epoch=3, batch_size=dice.choice([4, 5]), required_batch_size_multiple=1, update_freq=dice.choice([[1], [2], [1, 3]]), lr=[0.01],
        num_workers=dice.choice([0, 0, 2]), data_buffer_size=dice.choice([2, 10]), curriculum=dice.choice([0, 1]), save_interval_updates=dice.choice([0, 0, 3]), keep_interval_updates=1,
        clip_norm=dice.choice([0., 1.]), patience=dice.choice([-1, 2, 5]), seed=dice.randint(1, 99), no_epoch_checkpoints=dice.random() < 0.5, log_interval=2,
        skip_remainder_batch=dice.random() < 0.3, sentence_avg=dice.random() < 0.3, validate_interval_updates=dice.choice([0, 4]),
    ) | dice.choice([{}, dict(store_ema=True, ema_decay=0.9, ema_update_freq=dice.choice([1, 2]))]) | dice.choice(PRECISIONS) | dice.choice(SCHEDULES) | dice.choice(OPTIMIZERS)


def watched(data, folder, settings):
    "A trainer, and the sentences of each batch it learns from, in their order."
    trainer, seen = train.make_trainer(data, save_dir=str(folder), **settings), []
    learn = trainer.task.train_step
    def train_step(sample, *args, **more):
        seen.append(sample['id'].tolist())
        return learn(sample, *args, **more)
    trainer.task.train_step = train_step
    return trainer, seen


def terminated(data, folder, settings, update: int):
    "What a process did that is sent SIGTERM at an update: lines, reason, sentences."
    read, write = os.pipe()
    number = os.fork()
    if number == 0:
        try:
            trainer, seen = watched(data, folder, settings)
            with trainer.interruptible():
                lines, steps = [], trainer.run()
                for event in steps:
                    match event:
                        case Update(num_updates=n, values=values):
                            lines.append((n, values))
                            if n == update: os.kill(os.getpid(), signal.SIGTERM)
                        case Validated(subset=subset, report=report):
                            lines.append((subset, {k: v for k, v in report.items() if k not in ('wps', 'best_loss')}))
            with os.fdopen(write, 'wb') as file: pickle.dump((lines, event.reason, seen), file)
        finally: os._exit(0)
    os.close(write)
    with os.fdopen(read, 'rb') as file: told = file.read()
    os.waitpid(number, 0)
    return pickle.loads(told)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system cannot fork')
@pytest.mark.parametrize('seed', range(10))
def test_any_combination_stopped_at_random(tmp_path, letters, seed):
    "Stopped or sent SIGTERM, once or twice, anywhere: losses, rates, batches, parameters, optimizer and patience are the unbroken run's."
    dice = random.Random(seed)
    settings = drawn(dice)
    whole, batches = watched(letters, tmp_path/'whole', settings)
    lines, reason = story(whole)
    cuts = sorted(dice.sample(range(1, whole.num_updates), k=min(dice.choice([1, 2]), whole.num_updates - 1)))
    told, seen = [], []
    for cut in cuts:
        if dice.random() < 0.5:
            piece, why, part = terminated(letters, tmp_path/'cut', settings, cut)
            assert why == 'terminated'
        else:
            trainer, part = watched(letters, tmp_path/'cut', settings)
            piece, why = story(trainer, until=cut)
            assert why == 'stopped'
        told, seen = told + piece, seen + part
    last, part = watched(letters, tmp_path/'cut', settings)
    piece, why = story(last)
    assert why == reason and whole.num_updates >= 5, settings
    assert seen + part == batches, (cuts, settings)
    assert told + piece == lines, (cuts, settings)
    assert_equal(whole, last)
