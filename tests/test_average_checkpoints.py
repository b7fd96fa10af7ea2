"The mean of checkpoints is their mean, and loads everywhere."
from pathlib import Path

import pytest
import torch

from seqlit.base.errors import SeqlitError
from seqlit.cli.average_checkpoints import average_checkpoints, main as average
from seqlit.cli.validate import validate
from seqlit.train.checkpoints import load_checkpoint
from test_validate import run, seqlit  # noqa: F401  (a fixture)


def mean(run: Path, *names: str) -> dict[str, torch.Tensor]:
    states = [load_checkpoint(run/'run'/name)['model'] for name in names]
    return {key: torch.stack([state[key].double() for state in states]).mean(0).to(states[0][key].dtype) for key in states[0]}


def test_average(run, tmp_path, capsys):
    out = tmp_path/'mean.pt'
    files = [str(run/'run'/f'checkpoint{n}.pt') for n in (1, 2, 3)]
    for argv, names in [(['--inputs', *files], ('checkpoint1.pt', 'checkpoint2.pt', 'checkpoint3.pt')),
                        (['--inputs', str(run/'run'), '--num-epoch-checkpoints', '2'], ('checkpoint3.pt', 'checkpoint2.pt')),
                        (['--inputs', str(run/'run'), '--num-epoch-checkpoints', '1', '--checkpoint-upper-bound', '2'], ('checkpoint2.pt',))]:
        assert average([*argv, '--output', str(out)]) == 0, capsys.readouterr().err
        state, wanted = load_checkpoint(out), mean(run, *names)
        assert state['model'].keys() == wanted.keys()
        for key, value in wanted.items():
            assert torch.equal(state['model'][key], value), key
        assert 'last_optimizer_state' not in state
    torch.load(out, weights_only=True)


def test_best_and_update_checkpoints(run, tmp_path):
    best = sorted((run/'run').glob('checkpoint.best_loss_*.pt'), key=lambda p: float(p.stem.split('_')[-1]))
    assert average_checkpoints(run/'run', tmp_path/'a.pt', num_best_checkpoints=2) == best
    inner = average_checkpoints(run/'run', tmp_path/'b.pt', num_update_checkpoints=2)
    numbers = sorted((int(p.stem.split('_')[-1]) for p in (run/'run').glob('checkpoint_[0-9]*_*.pt')), reverse=True)
    assert [int(p.stem.split('_')[-1]) for p in inner] == numbers[:2]


def test_the_mean_is_a_checkpoint_like_any_other(run, tmp_path):
    average_checkpoints(run/'run', tmp_path/'mean.pt', num_epoch_checkpoints=2)
    values = validate(run/'data', tmp_path/'mean.pt', cpu=True, num_workers=0)['valid']
    single = [validate(run/'data', run/'run'/f'checkpoint{n}.pt', cpu=True, num_workers=0)['valid']['loss'] for n in (2, 3)]
    assert values['loss'] < max(single) + .1
    text = seqlit('generate', run/'data', '--path', tmp_path/'mean.pt', '--gen-subset', 'valid', '--cpu', '--beam', 2)
    assert text.splitlines()[-1].startswith('Generate valid with beam=2: BLEU4 = ')


def test_models_of_two_kinds_have_no_mean(run, tmp_path):
    state = load_checkpoint(run/'run'/'checkpoint1.pt')
    name = next(name for name, value in state['model'].items() if value.dim() == 2)
    state['model'][name] = torch.zeros(1)
    torch.save(state, tmp_path/'other.pt')
    with pytest.raises(SeqlitError, match=f'(?s)another model.*{name}'):
        average_checkpoints([run/'run'/'checkpoint2.pt', tmp_path/'other.pt'], tmp_path/'mean.pt')
    assert not (tmp_path/'mean.pt').exists()
