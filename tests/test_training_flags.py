"Every training flag means what it says: loop, validation, checkpoints, running mean, schedules."
import math
import os
import re
from pathlib import Path

import pytest
import torch

from flag_runs import Run, make_data, run, trainer_of
from seqlit.base.errors import SeqlitError
from seqlit.cli.generate import main as generate
from seqlit.cli.train import main as train
from seqlit.train.checkpoints import load_checkpoint
from seqlit.train.events import EpochEnd, Restored, Saved, Update, Validated, Validating

SCHEDULES = {'fixed': [], 'inverse_sqrt': [], 'cosine': ['--lr-period-updates', '40'], 'step': [], 'polynomial_decay': ['--total-num-update', '40'],
             'reduce_lr_on_plateau': []}


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    "40 sentences to train on, which are five batches of eight; 12 and 7 to validate on."
    return make_data(tmp_path_factory.mktemp('flags'), dict(train=40, valid=12, valid1=7, test=9))


class Go:
    "Runs in folders of one test; on one validation set unless the flags say otherwise."
    def __init__(self, data, home): self.data, self.home = data, home

    def __call__(self, *words, folder='run', until=None) -> Run:
        return run(self.data, self.home/folder, '--ignore-unused-valid-subsets', *words, until=until)

    def trainer(self, *words, folder='run'):
        "A trainer that has not begun."
        return trainer_of(self.data, self.home/folder, '--ignore-unused-valid-subsets', *words)

    def files(self, folder='run') -> list[str]:
        "The checkpoints there are."
        return sorted(path.name for path in (self.home/folder).glob('*.pt'))


@pytest.fixture
def go(data, tmp_path) -> Go:
    return Go(data, tmp_path)


def equal(one, other) -> bool:
    "Whether two models (or two dictionaries of tensors) are the same, to the last bit."
    one, other = [m if isinstance(m, dict) else m.state_dict() for m in (one, other)]
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# ---- updates

def test_update_freq_for_each_epoch(go):
    "One number for each epoch, the last one for all that follow; a remainder is an update of its own."
    whole = go('--update-freq', '4,2', '--max-epoch', '3')
    assert [(e.epoch, e.values['bsz']) for e in whole.updates] == [
        (1, 32), (1, 8), (2, 16), (2, 16), (2, 8), (3, 16), (3, 16), (3, 8)]


def test_accumulated_batches_are_one_large_batch(go):
    "Five batches of eight sentences move the parameters as one batch of forty does, padding or not."
    everything = ['--max-epoch', '1', '--dropout', '0', '--optimizer', 'sgd', '--lr', '0.5']
    one = go(*everything, '--batch-size', '40', folder='a')
    many = go(*everything, '--batch-size', '8', '--update-freq', '5', folder='b')
    assert len(one.updates) == len(many.updates) == 1
    for p, q in zip(one.trainer.model.parameters(), many.trainer.model.parameters()): torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5)


def test_skip_remainder_batch(go):
    r = go('--update-freq', '2', '--skip-remainder-batch', '--max-epoch', '2')
    assert [e.values['bsz'] for e in r.updates] == [16, 16, 16, 16] and r.reason == 'max_epoch'


def test_clip_norm(go):
    "The gradient's length is shown as it was; the step is as long as allowed."
    flags = ['--optimizer', 'sgd', '--lr', '1', '--max-update', '1', '--dropout', '0']
    before = {k: v.clone() for k, v in trainer_of_start(go, flags).items()}
    free, clipped = go(*flags, folder='free'), go(*flags, '--clip-norm', '0.1', folder='clipped')
    def length(r): return math.sqrt(sum(((p - before[k])**2).sum().item() for k, p in r.trainer.model.named_parameters()))
    norm = free.updates[0].values['gnorm']
    assert norm > 0.1 and clipped.updates[0].values['gnorm'] == norm
    assert length(free) == pytest.approx(norm, rel=1e-4) and length(clipped) == pytest.approx(0.1, rel=1e-4)
    assert clipped.updates[0].values['clip'] == 100 and 'clip' not in free.updates[0].values
    loose = go(*flags, '--clip-norm', str(norm*2), folder='loose')
    assert equal(loose.trainer.model, free.trainer.model) and loose.updates[0].values['clip'] == 0


def trainer_of_start(go, flags) -> dict:
    "The parameters with which a run begins."
    return go(*flags, '--lr', '0', folder='start').trainer.model.state_dict()


def test_sentence_avg(go):
    "The gradient is divided by sentences instead of by target tokens."
    flags = ['--optimizer', 'sgd', '--lr', '0.1', '--max-update', '1', '--dropout', '0']
    tokens, sentences = go(*flags, folder='tokens').updates[0].values, go(*flags, '--sentence-avg', folder='sentences').updates[0].values
    assert tokens['wpb'] == sentences['wpb'] and tokens['bsz'] == sentences['bsz'] == 8
    assert sentences['gnorm']/tokens['gnorm'] == pytest.approx(tokens['wpb']/tokens['bsz'], rel=1e-4)


def test_bounds(go):
    assert (r := go('--max-update', '7')).reason == 'max_update' and r.trainer.num_updates == 7
    assert (r := go('--max-epoch', '2', folder='b')).reason == 'max_epoch' and r.trainer.num_updates == 10
    assert (r := go('--max-epoch', '2', '--max-update', '4', folder='c')).reason == 'max_update' and r.trainer.num_updates == 4
    assert r.validations == [(4, 'valid')] and r.saves == [4]   # the last state is judged and saved


def test_stop_time_hours(go):
    "The hour is over after the second update: it is judged and saved, and nothing follows."
    trainer, events = go.trainer('--stop-time-hours', '1'), []
    for event in trainer.run():
        events.append(event)
        if isinstance(event, Update) and event.num_updates == 2: trainer.previous_time = 3601.
    r = Run(trainer, events)
    assert r.reason == 'stop_time_hours' and r.trainer.num_updates == 2 and r.validations == [(2, 'valid')] and r.saves == [2]


def test_stop_time_counts_over_a_resume(go):
    "Hours of training before a resume are part of the bound."
    go('--max-epoch', '1')
    state = load_checkpoint(go.home/'run'/'checkpoint_last.pt')
    state['extra_state']['previous_training_time'] = 3600.
    torch.save(state, go.home/'run'/'checkpoint_last.pt')
    assert go('--stop-time-hours', '1.5', '--max-update', '6').reason == 'max_update'
    assert go('--stop-time-hours', '1', '--max-update', '9').reason == 'stop_time_hours'


def test_stop_min_lr(go):
    "Looked at between epochs, as in fairseq; a warm-up from zero is no end."
    r = go('--lr', '0.1,0.01,0.001', '--stop-min-lr', '0.01')
    assert r.reason == 'stop_min_lr' and r.epochs == [1, 2]
    r = go('--lr-scheduler', 'inverse_sqrt', '--warmup-updates', '100', '--stop-min-lr', '1e-9', '--max-update', '6', folder='warm')
    assert r.reason == 'max_update' and r.trainer.num_updates == 6


def test_seed(go):
    "One seed, one run; another seed, another start and another order."
    one, again, other = go('--max-epoch', '2'), go('--max-epoch', '2', folder='b'), go('--max-epoch', '2', '--seed', '2', folder='c')
    assert one.losses == again.losses and equal(one.trainer.model, again.trainer.model)
    assert [v['wpb'] for _, v in one.losses] != [v['wpb'] for _, v in other.losses]
    assert not equal(trainer_of_start(go, ['--max-update', '1']), go('--max-update', '1', '--lr', '0', '--seed', '2', folder='d').trainer.model)


def test_train_subset(go):
    r = go('--train-subset', 'test', '--max-epoch', '1')
    assert sum(e.values['bsz'] for e in r.updates) == 9


# ---- schedules

def rates(r: Run) -> list[float]:
    "The rate after each update: the one of the next."
    return [round(e.values['lr'], 10) for e in r.updates]


def test_a_rate_for_each_epoch(go):
    r = go('--lr', '0.1,0.02', '--force-anneal', '3', '--lr-shrink', '0.5', '--max-epoch', '4')
    assert [r_ for r_ in rates(r)[::5]] == [0.1, 0.02, 0.01, 0.005]
    assert rates(r)[4] == 0.1 and rates(r)[5] == 0.02
    assert rates(go('--lr', '0.1,0.02', '--max-epoch', '4', folder='b'))[::5] == [0.1, 0.02, 0.02, 0.02]


@pytest.mark.parametrize('name', SCHEDULES)
def test_warmup_updates(go, name):
    "The rate rises in equal steps, reaches --lr at the end of the warm-up and not before."
    r = go('--lr-scheduler', name, '--warmup-updates', '4', '--lr', '0.08', '--max-update', '6', *SCHEDULES[name])
    first = rates(r)[:4]
    steps = [b - a for a, b in zip(first, first[1:])]
    assert max(first) == pytest.approx(0.08, rel=0.001) if name != 'fixed' else first[2] == pytest.approx(0.08)
    assert steps[0] == pytest.approx(steps[1]) and steps[0] > 0
    assert all(rate <= 0.08 for rate in rates(r))


@pytest.mark.parametrize('name', ['inverse_sqrt', 'cosine', 'step', 'reduce_lr_on_plateau'])
def test_warmup_init_lr(go, name):
    "The rate of the first update; then equal steps up to --lr."
    flags = ['--lr-scheduler', name, '--warmup-updates', '4', '--lr', '0.08', '--warmup-init-lr', '0.04', '--max-update', '4', *SCHEDULES[name]]
    assert go(*flags).trainer.lr_scheduler.options.warmup_init_lr == 0.04
    trainer = go.trainer(*flags, folder='fresh')
    trainer.restore()
    assert trainer.optimizer.get_lr() == pytest.approx(0.04)
    assert rates(go(*flags, folder='again')) == pytest.approx([0.05, 0.06, 0.07, 0.08])


# ---- validation

def test_validate_interval(go):
    assert go('--validate-interval', '2', '--max-epoch', '4').validations == [(10, 'valid'), (20, 'valid')]


def test_validate_interval_updates(go):
    "Every so many updates besides the epochs'; what is validated within an epoch is not saved for it."
    r = go('--validate-interval-updates', '3', '--max-epoch', '2')
    assert r.validations == [(n, 'valid') for n in (3, 5, 6, 9, 10)] and r.saves == [5, 10]


def test_saving_within_an_epoch_validates(go):
    r = go('--save-interval-updates', '3', '--max-epoch', '2')
    assert r.validations == [(n, 'valid') for n in (3, 5, 6, 9, 10)] and r.saves == [3, 5, 6, 9, 10]
    assert go.files() == ['checkpoint1.pt', 'checkpoint2.pt', 'checkpoint_1_3.pt', 'checkpoint_2_6.pt', 'checkpoint_2_9.pt',
                                         'checkpoint_best.pt', 'checkpoint_last.pt']


def test_validate_after_updates(go):
    r = go('--validate-after-updates', '6', '--validate-interval-updates', '2', '--max-epoch', '2')
    assert r.validations == [(6, 'valid'), (8, 'valid'), (10, 'valid')]
    r = go('--validate-after-updates', '6', '--save-interval-updates', '2', '--max-epoch', '2', folder='b')
    assert r.saves == [5, 6, 8, 10]   # as in fairseq: the flag holds for saving within epochs, too


def test_several_validation_sets(go, data, tmp_path):
    "All are reported; the first one decides."
    r = go('--valid-subset', 'valid1,valid', '--max-epoch', '3')
    assert r.validations == [(n, s) for n in (5, 10, 15) for s in ('valid1', 'valid')]
    reports = {s: [e.report for e in r.of(Validated) if e.subset == s] for s in ('valid', 'valid1')}
    assert [e.value for e in r.of(Saved)] == [report['loss'] for report in reports['valid1']]
    assert all('best_loss' not in report for report in reports['valid']) and 'best_loss' in reports['valid1'][1]
    assert reports['valid'][0]['loss'] != reports['valid1'][0]['loss']


def test_unused_sets_are_not_passed_over_in_silence(data, tmp_path):
    with pytest.raises(SeqlitError, match='validation sets that are not used: valid1'): trainer_of(data, tmp_path)


def test_combine_valid_subsets(data, tmp_path):
    r = run(data, tmp_path, '--combine-valid-subsets', '--max-epoch', '1', '--batch-size-valid', '100', '--required-batch-size-multiple', '1')
    assert r.validations == [(5, 'valid')] and r.of(Validated)[0].report['bsz'] == 12 + 7


def test_disable_validation(go, data):
    r = go('--disable-validation', '--max-epoch', '2', '--valid-subset', 'there,is,none')
    assert r.validations == [] and r.saves == [5, 10] and go.files() == ['checkpoint1.pt', 'checkpoint2.pt', 'checkpoint_last.pt']


def test_max_valid_steps(go):
    one, all_ = go('--max-valid-steps', '1', '--max-epoch', '1'), go('--max-epoch', '1', folder='b')
    assert (len(one.of(Validating)), len(all_.of(Validating))) == (1, 2)
    assert one.of(Validated)[0].report['bsz'] == 8 and one.of(Validated)[0].report['loss'] != all_.of(Validated)[0].report['loss']


def test_batches_of_validation(go):
    r = go('--max-epoch', '1', '--max-tokens-valid', '12', '--required-batch-size-multiple', '1')
    assert len(r.of(Validating)) > 2
    assert go('--max-epoch', '1', '--batch-size-valid', '3', '--required-batch-size-multiple', '1', folder='b').of(Validating)[-1].batches >= 4


def test_fixed_validation_seed(data, tmp_path, monkeypatch):
    "What validation draws at random is the same every time."
    from seqlit.tasks.translation import TranslationTask
    drawn, plain = [], TranslationTask.valid_step
    def step(self, *args, **more):
        drawn.append(torch.rand(()).item())
        return plain(self, *args, **more)
    monkeypatch.setattr(TranslationTask, 'valid_step', step)
    flags = ['--ignore-unused-valid-subsets', '--max-epoch', '3', '--batch-size-valid', '100', '--required-batch-size-multiple', '1']
    run(data, tmp_path/'a', *flags)
    assert len(set(drawn)) == 3
    drawn.clear()
    run(data, tmp_path/'b', *flags, '--fixed-validation-seed', '7')
    assert len(drawn) == 3 and len(set(drawn)) == 1


# ---- which one is best

def test_best_checkpoint_metric(go):
    "Which value decides is said by name; `--maximize-best-checkpoint-metric` turns it round."
    def best(*words, folder):
        r = go('--max-epoch', '4', *words, folder=folder)
        values = [e.value for e in r.of(Saved)]
        return values, [n for e, n in zip(r.of(Saved), range(1, 5)) if any(p.name == 'checkpoint_best.pt' for p in e.paths)]
    values, written = best(folder='a')
    assert written == [n for n, v in enumerate(values, 1) if v == min(values[:n])]
    values, written = best('--best-checkpoint-metric', 'ppl', folder='b')
    assert values == [e.report['ppl'] for e in go('--max-epoch', '4', folder='c').of(Validated)]
    values, written = best('--best-checkpoint-metric', 'ppl', '--maximize-best-checkpoint-metric', folder='d')
    assert written == [n for n, v in enumerate(values, 1) if v == max(values[:n])] == [1]


def test_an_unknown_metric_is_refused_before_training(go):
    with pytest.raises(SeqlitError, match=r"--best-checkpoint-metric blue.*the validation measures.*loss, ppl"):
        go('--best-checkpoint-metric', 'blue', '--max-epoch', '1')
    assert go.files() == []
    trainer = go.trainer('--best-checkpoint-metric', 'blue', folder='b')
    with pytest.raises(SeqlitError, match='blue'): trainer.restore()


def test_patience_counts_validations(go):
    "Also those within an epoch: two that are no better, whatever the epochs."
    still = ['--lr', '0', '--dropout', '0', '--patience', '2', '--max-epoch', '9']
    r = go(*still)
    assert r.reason == 'patience' and r.validations == [(5, 'valid'), (10, 'valid'), (15, 'valid')]
    r = go(*still, '--validate-interval-updates', '2', folder='b')
    assert r.reason == 'patience' and r.validations == [(2, 'valid'), (4, 'valid'), (5, 'valid')] and r.saves == [5]
    r = go(*still, '--validate-interval-updates', '3', folder='c')
    assert r.reason == 'patience' and r.trainer.num_updates == 6 and r.saves == [5, 6]   # the end is saved even where nothing else would be


def test_patience_over_a_resume(go):
    still = ['--lr', '0', '--dropout', '0', '--patience', '2', '--max-epoch', '9', '--validate-interval-updates', '2']
    first, second = go(*still, until=4), go(*still)
    assert first.validations + second.validations == [(2, 'valid'), (4, 'valid'), (5, 'valid')] and second.reason == 'patience'


# ---- which checkpoints there are

def test_save_interval(go):
    go('--save-interval', '2', '--max-epoch', '5')
    assert go.files() == ['checkpoint2.pt', 'checkpoint4.pt', 'checkpoint_best.pt', 'checkpoint_last.pt']


def test_keep_last_epochs(go):
    go('--keep-last-epochs', '2', '--max-epoch', '4')
    assert go.files() == ['checkpoint3.pt', 'checkpoint4.pt', 'checkpoint_best.pt', 'checkpoint_last.pt']


def test_keep_interval_updates(go):
    flags = ['--save-interval-updates', '2', '--max-epoch', '4', '--no-epoch-checkpoints', '--validate-interval', '9']
    def kept(*words, folder):
        go(*flags, *words, folder=folder)
        return sorted(int(name.split('_')[2][:-3]) for name in go.files(folder) if re.match(r'checkpoint_\d', name))
    assert kept('--keep-interval-updates', '2', folder='a') == [16, 18]   # 10 and 20 end an epoch
    assert kept('--keep-interval-updates', '1', '--keep-interval-updates-pattern', '6', folder='b') == [6, 12, 18]
    assert kept(folder='c') == [2, 4, 6, 8, 12, 14, 16, 18]


def test_keep_best_checkpoints(go):
    r = go('--keep-best-checkpoints', '2', '--max-epoch', '5', '--no-epoch-checkpoints')
    best = sorted(round(e.report['loss'], 3) for e in r.of(Validated))[:2]
    found = [float(name[len('checkpoint.best_loss_'):-len('0.pt')]) for name in go.files() if 'best_loss' in name]
    assert found == best and 'checkpoint_best.pt' in go.files()
    worst = load_checkpoint(go.home/'run'/next(n for n in go.files() if 'best_loss' in n))['extra_state']['val_loss']
    assert worst == min(e.report['loss'] for e in r.of(Validated))


@pytest.mark.parametrize('flag, left', [
    ('--no-save', []), ('--no-epoch-checkpoints', ['checkpoint_best.pt', 'checkpoint_last.pt']),
    ('--no-last-checkpoints', ['checkpoint1.pt', 'checkpoint2.pt', 'checkpoint_best.pt'])])
def test_no(go, flag, left):
    go(flag, '--max-epoch', '2')
    assert go.files() == left


def test_checkpoint_suffix(go):
    r = go('--checkpoint-suffix', '_a', '--max-epoch', '1')
    assert go.files() == ['checkpoint1_a.pt', 'checkpoint_best_a.pt', 'checkpoint_last_a.pt']
    r = go('--checkpoint-suffix', '_a', '--max-epoch', '2')
    assert r.of(Restored)[0].path.name == 'checkpoint_last_a.pt' and r.epochs == [2]
    assert go('--max-epoch', '1').of(Restored)[0].path is None


def test_no_save_optimizer_state(go):
    "The checkpoint is small and serves for everything but going on."
    go('--no-save-optimizer-state', '--max-epoch', '1')
    assert 'last_optimizer_state' not in load_checkpoint(go.home/'run'/'checkpoint_last.pt')
    small, large = [os.path.getsize(go('--max-epoch', '1', *w, folder=f).of(Saved)[0].paths[0]) for w, f in ((['--no-save-optimizer-state'], 'b'), ([], 'c'))]
    assert small < 0.7*large


# ---- where a run begins

def test_restore_file(go, tmp_path, monkeypatch):
    "Absolute, relative to the working folder, and of another run."
    go('--max-epoch', '1', folder='one')
    path = tmp_path/'one'/'checkpoint1.pt'
    monkeypatch.chdir(tmp_path)
    wanted = go('--max-epoch', '2', '--restore-file', str(path), folder='two')
    assert wanted.of(Restored)[0].path == path and wanted.epochs == [2] and wanted.trainer.num_updates == 10
    relative = go('--max-epoch', '2', '--restore-file', 'one/checkpoint1.pt', folder='three')
    assert relative.losses == wanted.losses
    with pytest.raises(SeqlitError, match='--restore-file no.pt: no such file'): go('--restore-file', 'no.pt')


def test_continue_once(go, tmp_path):
    "Only while the run has no checkpoint of its own: the same command can be given again and again."
    go('--max-epoch', '1', folder='one')
    flags = ['--continue-once', str(tmp_path/'one'/'checkpoint1.pt')]
    assert go(*flags, '--max-epoch', '2', folder='two').epochs == [2]
    assert go(*flags, '--max-epoch', '3', folder='two').epochs == [3]
    with pytest.raises(SeqlitError, match='--continue-once none.pt: no such file'): go('--continue-once', 'none.pt')


def begun(go, *words, folder='two'):
    "A trainer that has restored, before its first update."
    trainer = go.trainer(*words, folder=folder)
    trainer.restore()
    return trainer


RESETS = dict(optimizer='--reset-optimizer', lr_scheduler='--reset-lr-scheduler', meters='--reset-meters', dataloader='--reset-dataloader')


@pytest.mark.parametrize('reset', [[], *[[name] for name in RESETS], ['optimizer', 'dataloader'], ['optimizer', 'lr_scheduler'],
                                   ['meters', 'dataloader'], list(RESETS)], ids='+'.join)
def test_resets(go, tmp_path, reset):
    "Each one resets its own thing and leaves the others; the parameters are taken always."
    flags = ['--lr-scheduler', 'reduce_lr_on_plateau', '--lr-shrink', '0.5', '--lr-threshold', '0.9', '--patience', '50']
    first = go(*flags, '--max-epoch', '9', until=12, folder='one')   # two epochs and two updates
    trainer = begun(go, *flags, '--restore-file', tmp_path/'one'/'checkpoint_last.pt', *[RESETS[name] for name in reset])
    assert equal(trainer.model, first.trainer.model)
    state, old = [t.optimizer.state_dict()['state'] for t in (trainer, first.trainer)]
    assert (len(state) == 0) == ('optimizer' in reset) and len(old) > 0
    assert trainer.num_updates == (0 if 'optimizer' in reset else 12)
    position = (trainer.epochs.next_epoch_index, trainer.epochs.iterations_in_epoch)
    assert position == ((1, 0) if 'dataloader' in reset else (3, 2))
    kept = 'optimizer' not in reset and 'meters' not in reset
    assert (trainer.manager.best is not None) == kept and (trainer.stopper.best is not None) == kept
    assert (trainer.meters['train'].values().get('bsz') == 8) == ('meters' not in reset)
    assert (trainer.previous_time > 0) == ('meters' not in reset)
    fresh = 'optimizer' in reset or 'lr_scheduler' in reset
    assert (trainer.lr_scheduler.best is None or math.isinf(trainer.lr_scheduler.best)) == fresh


def test_reset_lr_scheduler_takes_a_new_rate(go, tmp_path):
    "A schedule that knows its state goes on with it; reset, it begins with --lr."
    flags = ['--lr-scheduler', 'reduce_lr_on_plateau', '--lr-shrink', '0.5', '--lr-threshold', '0.9', '--max-epoch', '3']
    go(*flags, '--lr', '0.01', folder='one')
    last = ['--restore-file', tmp_path/'one'/'checkpoint_last.pt']
    assert begun(go, *flags, *last, '--lr', '0.02').optimizer.get_lr() < 0.01
    assert begun(go, *flags, *last, '--lr', '0.02', '--reset-lr-scheduler').optimizer.get_lr() == 0.02


def test_another_optimizer_needs_a_reset(go, tmp_path):
    go('--max-epoch', '1')
    with pytest.raises(SeqlitError, match='trained with the optimizer .*this run has .*--reset-optimizer'): go('--optimizer', 'sgd', '--max-epoch', '2')
    assert go('--optimizer', 'sgd', '--reset-optimizer', '--max-epoch', '2').epochs == [2]


def test_optimizer_overrides(go, tmp_path):
    go('--max-epoch', '1', '--weight-decay', '0.1', folder='one')
    last = ['--restore-file', tmp_path/'one'/'checkpoint1.pt']
    groups = lambda *words: begun(go, *last, *words).optimizer.optimizer.param_groups[0]
    assert groups('--weight-decay', '0.2')['weight_decay'] == 0.2   # flags hold for a resumed run, in fairseq they do not
    changed = groups('--optimizer-overrides', "{'weight_decay': 0.3, 'betas': (0.5, 0.6)}")
    assert (changed['weight_decay'], changed['betas'], changed['eps']) == (0.3, (0.5, 0.6), 1e-8)
    for wrong in ('{', '[1]', 'x', "{'wieght_decay': 1}"):
        with pytest.raises(SeqlitError, match='--optimizer-overrides'): begun(go, *last, '--optimizer-overrides', wrong)


# ---- running mean

def test_running_mean(go):
    "The definition, update by update: m <- d m + (1 - d) p, and a copy before --ema-start-update."
    flags = ['--store-ema', '--ema-decay', '0.75', '--ema-start-update', '3', '--max-epoch', '2', '--ema-fp32']
    trainer = go.trainer(*flags)
    mean, every = None, []
    for event in trainer.run():
        if not isinstance(event, Update): continue
        p = trainer.model.decoder.embed_tokens.weight.detach().clone()
        mean = p if event.num_updates < 3 else 0.75*mean + 0.25*p
        torch.testing.assert_close(trainer.averaged.mean['decoder.embed_tokens.weight'], mean)
    ema = load_checkpoint(trainer.manager.folder/'checkpoint_last.pt')['extra_state']['ema']
    torch.testing.assert_close(ema['decoder.embed_tokens.weight'], mean)
    assert not torch.equal(ema['decoder.embed_tokens.weight'], p)


def test_running_mean_every_so_many_updates(go):
    trainer = go.trainer('--store-ema', '--ema-decay', '0.5', '--ema-update-freq', '4', '--max-epoch', '2')
    changed, before = [], None
    for event in trainer.run():
        if not isinstance(event, Update): continue
        now = trainer.averaged.mean['decoder.embed_tokens.weight'].clone()
        if before is not None and not torch.equal(now, before): changed.append(event.num_updates)
        before = now
    assert changed == [4, 8]


def test_running_mean_from_another_model(go, tmp_path):
    go('--max-epoch', '1', '--seed', '9', folder='one')
    seed = tmp_path/'one'/'checkpoint1.pt'
    trainer = begun(go, '--store-ema', '--ema-seed-model', seed)
    assert equal(trainer.averaged.state_dict(), load_checkpoint(seed)['model']) and not equal(trainer.model, load_checkpoint(seed)['model'])


def test_the_running_mean_outlives_resume_and_reset(go, tmp_path):
    "It is none of the optimizer's: --reset-optimizer keeps it. A new run from a model begins a new one."
    flags = ['--store-ema', '--ema-decay', '0.9']
    first = go(*flags, '--max-epoch', '2', folder='one').trainer
    last = tmp_path/'one'/'checkpoint_last.pt'
    for words in ([], ['--reset-optimizer'], ['--reset-lr-scheduler', '--reset-meters'], ['--reset-dataloader']):
        assert equal(begun(go, *flags, '--restore-file', last, *words).averaged.mean, first.averaged.mean), words
    tuned = begun(go, *flags, '--finetune-from-model', last)
    assert equal(tuned.averaged.state_dict(), first.model.state_dict())


def test_generating_from_the_running_mean(go, data, tmp_path, capsys):
    "`--use-ema` gives what a checkpoint with the mean for its parameters gives."
    go('--store-ema', '--ema-decay', '0.9', '--max-epoch', '8', '--no-epoch-checkpoints')
    path, means = go.home/'run'/'checkpoint_last.pt', tmp_path/'mean.pt'
    state = load_checkpoint(path)
    torch.save(state | {'model': state['extra_state']['ema']}, means)
    def output(path, *words):
        assert generate([str(data), '--path', str(path), '--cpu', '--beam', '2', '--max-len-b', '5', '--num-workers', '0', *words]) == 0
        return [line for line in capsys.readouterr().out.splitlines() if line[:2] in ('H-', 'P-')]
    assert output(path, '--use-ema') == output(means) != output(path)


def test_no_running_mean_to_generate_from(go, data, capsys):
    go('--max-epoch', '1')
    assert generate([str(data), '--path', str(go.home/'run'/'checkpoint_last.pt'), '--cpu', '--use-ema']) == 2
    assert 'ema' in capsys.readouterr().err
