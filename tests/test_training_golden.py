"Training gives fairseq's numbers, update by update, from the same command line."
import json
import math

import pytest
import torch

from seqlit.cli.common import parse, resolve
from seqlit.cli.train import TRAIN, build_trainer
from seqlit.train.checkpoints import load_checkpoint
from seqlit.train.events import Stopped, Validated
from seqlit.train.loggers import JsonLogger, follow

TIMES = ('wps', 'ups', 'wall')


class Rows(JsonLogger):
    "Keeps the JSON lines."
    def __init__(self):
        super().__init__()
        self.rows = []

    def say(self, text, level=20, tag=None):
        if text.startswith('{'): self.rows.append(json.loads(text))


def trainer_of(argv: list[str], golden, save_dir) -> tuple:
    "The trainer of a recorded command; its paths are those of the record's folder."
    words = [str(golden/word) if word.startswith(('preprocess/', 'training/init', 'models/')) else word for word in argv]
    if '--save-dir' in words: words[words.index('--save-dir') + 1] = str(save_dir)
    else: words += ['--save-dir', str(save_dir)]
    return build_trainer(resolve(TRAIN, parse(TRAIN, words)))


RUNS = ['adam_inverse_sqrt', 'adam_fixed', 'sgd_cosine', 'nag_plateau', 'adadelta_step', 'adamax_tri_stage',
        'adafactor_polynomial', 'adagrad_triangular']


@pytest.mark.parametrize('run', RUNS)
def test_update_by_update(shared, tmp_path, run):
    golden = shared/'golden'
    recorded = json.loads((golden/'training'/run/'log.json').read_text(encoding='utf-8'))
    trainer, log = trainer_of(recorded['argv'], golden, tmp_path), Rows()
    follow(trainer, log)
    assert len(log.rows) == len(recorded['rows'])
    for ours, theirs in zip(log.rows, recorded['rows']):
        assert list(ours) == list(theirs)
        for key, value in theirs.items():
            name, place = key.removeprefix('train_').removeprefix('valid_'), f'{key} at update {theirs.get("num_updates", "the end")}'
            if name.endswith(TIMES): continue
            if name in ('loss', 'nll_loss'): assert abs(float(ours[key]) - float(value)) < 0.002, place
            elif name in ('ppl', 'gnorm', 'clip'): assert math.isclose(float(ours[key]), float(value), rel_tol=0.01), place
            else: assert ours[key] == value, place
    if run == 'adam_inverse_sqrt':
        final = torch.load(golden/'training'/run/'final_model.pt', weights_only=True)
        state = trainer.model.state_dict()
        assert state.keys() == final.keys()
        for name, value in final.items(): assert (state[name] - value).abs().max() < 1e-3, name


def test_a_checkpoint_of_fairseq_goes_on(shared, tmp_path):
    "With its optimizer: the validation loss is the one it was saved with, and the next epoch is better."
    golden = shared/'golden'
    argv = (golden/'models'/'transformer'/'train.args').read_text(encoding='utf-8').split()
    path = golden/'models'/'transformer'/'checkpoint_best.pt'
    theirs = load_checkpoint(path)
    trainer = trainer_of([*argv, '--cpu', '--seed', '7', '--max-tokens', '2000', '--max-epoch', '4', '--restore-file', str(path)], golden, tmp_path)
    trainer.restore()
    assert (trainer.num_updates, trainer.epochs.next_epoch_index, trainer.manager.best) == (132, 4, 5.493)
    assert trainer.optimizer.get_lr() == theirs['last_optimizer_state']['param_groups'][0]['lr']
    for entries in trainer.optimizer.state_dict()['state'].values(): assert entries['step'] == 132
    assert list(trainer.validate('valid'))[-1].report['loss'] == pytest.approx(5.493, abs=0.002)
    events = list(trainer.run())
    assert isinstance(events[-1], Stopped) and events[-1].reason == 'max_epoch'
    better, = [event.report['loss'] for event in events if isinstance(event, Validated)]
    assert better < 5.4

    ours = torch.load(tmp_path/'checkpoint_last.pt', weights_only=True)
    assert list(ours) == list(theirs)
    assert ours['model'].keys() == theirs['model'].keys()
    groups = [state['last_optimizer_state']['param_groups'][0] for state in (ours, theirs)]
    assert groups[0].keys() == groups[1].keys() and groups[0]['params'] == groups[1]['params']
    entries = [state['last_optimizer_state']['state'][0] for state in (ours, theirs)]
    assert entries[0].keys() == entries[1].keys() and type(entries[0]['step']) is type(entries[1]['step'])
    steps = [state['optimizer_history'][-1] for state in (ours, theirs)]
    assert steps[0].keys() == steps[1].keys()
    assert {k: v for k, v in steps[0].items() if k.endswith('_name')} == {k: v for k, v in steps[1].items() if k.endswith('_name')}
    assert ours['extra_state'].keys() >= theirs['extra_state'].keys()
    assert ours['extra_state']['train_iterator'].keys() >= theirs['extra_state']['train_iterator'].keys()
