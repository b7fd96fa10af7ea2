"Optimizers on parameters of 16 bits, and optimizers for groups of parameters, in whole runs."

import copy
import json
import logging
from functools import partial

import pytest
import torch
import yaml
from test_resume import assert_equal, story
from test_resume_models import PAIRS, TEXT, data  # noqa: F401 (a fixture)
from torch import nn

import seqlit.builtins  # registers all names
import seqlit.train.optimizers as optimizers
from seqlit.base.errors import SeqlitError
from seqlit.cli.main import main
from seqlit.cli.train import make_trainer
from seqlit.train.checkpoints import load_checkpoint
from seqlit.train.losses import ProjectedLoss
from seqlit.train.optimizers import OPTIMIZERS

HALF = {'bf16': torch.bfloat16, 'fp16': torch.float16}
PLAIN = [name for name in OPTIMIZERS if name != 'composite']
SETTINGS = {'sgd': dict(momentum=0.9), 'nag': dict(weight_decay=0.1), 'adam': dict(weight_decay=0.1),
            'adafactor': dict(scale_parameter=True, beta1=0.9)}


def values(dtype=torch.float32):
    "A matrix, a vector, a larger matrix; numbers that 16 bits can tell."
    torch.manual_seed(1)
    return [nn.Parameter(torch.randn(shape).bfloat16().to(dtype)) for shape in [(3, 5), (7,), (6, 4)]]


def gradients(count, dtype):
    torch.manual_seed(2)
    return [[torch.randn(p.shape).to(dtype) for p in values()] for _ in range(count)]


def make(name, parameters):
    kind = OPTIMIZERS.get(name)
    optimizer = kind(kind.Options(**SETTINGS.get(name, {})), parameters)
    optimizer.set_lr(0.02)
    return optimizer


def same_state(one, other):
    a, b = one.state_dict()['state'], other.state_dict()['state']
    assert a.keys() == b.keys()
    for n in a:
        assert a[n].keys() == b[n].keys()
        for key, value in a[n].items():
            assert torch.equal(value, b[n][key]) if torch.is_tensor(value) else value == b[n][key], (n, key)
            assert not torch.is_tensor(value) or value.dtype == torch.float32


@pytest.mark.parametrize('size', [2**24, 8])
@pytest.mark.parametrize('dtype', HALF.values(), ids=list(HALF))
@pytest.mark.parametrize('name', PLAIN)
def test_a_step_on_16_bits_is_the_step_in_32_rounded_once(name, dtype, size, monkeypatch):
    monkeypatch.setattr(optimizers, 'portions', partial(optimizers.portions, size=size))
    short, wide = values(dtype), values()
    ours, plain = make(name, short), make(name, wide)
    for grads in gradients(4, dtype):
        for p, q, g in zip(short, wide, grads): p.grad, q.grad = g.clone(), g.float()
        ours.step(), plain.step()
        for p, q in zip(short, wide): q.data.copy_(q.detach().to(dtype))
        for p, q in zip(short, wide): assert torch.equal(p.float(), q)
    same_state(ours, plain)
    assert {p.dtype for p in short} == {dtype}
    assert ours.num_steps == plain.num_steps == 4


@pytest.mark.parametrize('dtype', HALF.values(), ids=list(HALF))
@pytest.mark.parametrize('name', PLAIN)
def test_a_state_in_32_bits_is_loaded_as_it_was(name, dtype):
    one = values(dtype)
    first, steps = make(name, one), gradients(5, dtype)

    def run(optimizer, grads):
        for p, g in zip(optimizer.parameters, grads): p.grad = g.clone()
        optimizer.step()

    for grads in steps[:3]: run(first, grads)
    other = values(dtype)
    for p, q in zip(one, other): q.data.copy_(p.detach())
    second = make(name, other)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    same_state(first, second)
    for grads in steps[3:]: run(first, grads), run(second, grads)
    same_state(first, second)
    for p, q in zip(one, other): assert torch.equal(p, q)


def test_an_error_within_a_step_leaves_the_parameters_in_place():
    p, = short = [nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))]
    optimizer = make('sgd', short)
    p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.optimizer.param_groups[0]['lr'] = 'no number'
    with pytest.raises(TypeError): optimizer.step()
    assert optimizer.optimizer.param_groups[0]['params'] == list(optimizer.optimizer.state) == short


@pytest.mark.parametrize('dtype', HALF.values(), ids=list(HALF))
def test_losses_are_summed_in_32_bits(dtype):
    torch.manual_seed(1)
    features, matrix, target = torch.randn(3000, 8), torch.randn(60, 8), torch.randint(60, (3000,))
    found = []
    for kind in (torch.float32, dtype):
        x, weight = (nn.Parameter(v.to(kind).float() if kind is torch.float32 else v.to(kind))
                     for v in (features.to(dtype), matrix.to(dtype)))
        with torch.autocast('cpu', dtype=dtype):
            loss, nll, _ = ProjectedLoss.apply(x, weight, None, target, torch.arange(3000), 0.1, True, 512)
        loss.backward()
        assert nll.dtype == torch.float32
        found.append((nll.item(), loss.item(), weight.grad.float()))
    assert found[0][:2] == found[1][:2]  # far above what float16 can hold
    assert torch.equal(found[0][2].to(dtype).float(), found[1][2])


# Whole runs: these need the trainer to make optimizers by name and to store matrices


RUN = dict(optimizer='adam', lr=[3e-3], batch_size=8, cpu=True, max_epoch=3, num_workers=0, dropout=0.1,
           required_batch_size_multiple=1, no_epoch_checkpoints=True, clip_norm=1.)


def begin(data, folder, case=PAIRS, **settings):  # noqa: F811
    case = dict(case)
    return make_trainer(str(data / case.pop('data')), save_dir=str(folder), **{**RUN, **case, **settings})


def resumed(data, tmp_path, **settings):  # noqa: F811
    "An unbroken run, and one that was stopped twice."
    unbroken = begin(data, tmp_path / 'unbroken', **settings)
    told, _ = story(unbroken)
    first, _ = story(begin(data, tmp_path / 'stopped', **settings), until=2)
    last = begin(data, tmp_path / 'stopped', **settings)
    second, reason = story(last)
    assert reason == 'max_epoch' and first + second == told
    assert_equal(unbroken, last)
    return unbroken


WAYS = {'adam': {}, 'mean': dict(store_ema=True, ema_decay=0.9), 'adafactor': dict(optimizer='adafactor'),
        'added': dict(update_freq=[2]), 'text': dict(case=TEXT), 'again': dict(checkpoint_activations=True)}


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('bits', HALF)
def test_memory_efficient_runs_go_on_where_they_stopped(data, tmp_path, bits, way):  # noqa: F811
    scale = dict(fp16_init_scale=2**14, fp16_scale_window=3) if bits == 'fp16' else {}
    trainer = resumed(data, tmp_path, **{f'memory_efficient_{bits}': True}, **scale, **WAYS[way])
    for name, p in trainer.model.named_parameters():
        assert p.dtype == (HALF[bits] if p.dim() > 1 else torch.float32), name
    state = load_checkpoint(tmp_path / 'unbroken' / 'checkpoint_last.pt')
    assert state['model']['decoder.layers.0.fc1.weight'].dtype == HALF[bits]
    for entries in state['last_optimizer_state']['state'].values():
        assert {x.dtype for x in entries.values() if torch.is_tensor(x)} == {torch.float32}
    for mean in state['extra_state'].get('ema', {}).values(): assert mean.dtype != HALF[bits]


@pytest.mark.parametrize('bits', HALF)
def test_memory_efficient_learns_as_the_plain_run(data, tmp_path, bits):  # noqa: F811
    runs = [story(begin(data, tmp_path / f'{n}', no_save=True, **{flag: True}))[0]
            for n, flag in enumerate([bits, f'memory_efficient_{bits}'])]
    losses = [[values['loss'] for n, values in run if isinstance(n, int)] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=0.03)


def test_generates_from_16_bits(data, tmp_path, capsys):  # noqa: F811
    story(begin(data, tmp_path, memory_efficient_bf16=True, store_ema=True, max_epoch=1))
    for more in ([], ['--use-ema']):
        assert main(['generate', str(data / 'pairs'), '--path', str(tmp_path / 'checkpoint_last.pt'), '--gen-subset',
                     'valid', '--batch-size', '8', '--cpu', *more]) == 0
        assert 'H-0' in capsys.readouterr().out


GROUPS = {'default': {'optimizer': {'_name': 'adam', 'weight_decay': 0.01}},
          'no decay': {'parameters': r'bias$|layer_norm', 'weight_decay': 0},
          'embeddings': {'parameters': 'embed', 'optimizer': 'nag', 'lr': 0.01,
                         'lr_scheduler': {'_name': 'fixed', 'force_anneal': 2}}}


@pytest.mark.parametrize('bits', [{}, dict(memory_efficient_bf16=True)])
def test_groups_go_on_where_they_stopped(data, tmp_path, bits):  # noqa: F811
    trainer = resumed(data, tmp_path, optimizer='composite', groups=json.dumps(GROUPS), lr_scheduler='inverse_sqrt',
                      warmup_updates=3, **bits)
    rates = {name: part.get_lr() for name, part in trainer.optimizer.parts.items()}
    assert rates['default'] == rates['no decay'] == trainer.optimizer.get_lr() == 3e-3 * 3**0.5 * trainer.num_updates**-0.5
    assert rates['embeddings'] == pytest.approx(1e-4)  # annealed in epochs 2 and 3
    names = dict(trainer.model.named_parameters())
    free = sum('bias' in name or 'layer_norm' in name for name in names)
    assert {name: len(numbers) for name, numbers in trainer.optimizer.numbers.items()} == {
        'default': len(names) - free - 2, 'no decay': free, 'embeddings': 2}


def test_groups_from_a_file(data, tmp_path, capsys):  # noqa: F811
    file = tmp_path / 'run.yaml'
    case = {k: v for k, v in {**RUN, **PAIRS, 'max_epoch': 1, 'save_dir': str(tmp_path / 'a')}.items()
            if k not in ('data', 'optimizer')}
    file.write_text(yaml.safe_dump({**case, 'optimizer': {'_name': 'composite', 'groups': GROUPS}}, sort_keys=False))
    before = logging.root.handlers[:]
    assert main(['train', str(data / 'pairs'), '--config', str(file)]) == 0
    again = ['train', '--config', str(tmp_path / 'a' / 'config.yaml'), '--save-dir', str(tmp_path / 'b')]
    assert main(again) == 0
    logging.root.handlers[:] = before
    one, other = (load_checkpoint(tmp_path / name / 'checkpoint_last.pt') for name in 'ab')
    for name, value in one['model'].items(): assert torch.equal(value, other['model'][name]), name
    assert one['last_optimizer_state']['param_groups'] == other['last_optimizer_state']['param_groups']
    assert [group['name'] for group in one['last_optimizer_state']['param_groups']] == list(GROUPS)


def test_groups_that_do_not_fit_are_refused_at_once(data, tmp_path):  # noqa: F811
    with pytest.raises(SeqlitError, match="group 'head': no parameter matches 'hed'"):
        begin(data, tmp_path, optimizer='composite',
              groups={'default': {'optimizer': 'adam'}, 'head': {'parameters': 'hed'}})


def test_adaptive_loss_without_bands_is_refused_at_once(data, tmp_path):  # noqa: F811
    case = {k: v for k, v in PAIRS.items() if k != 'label_smoothing'} | dict(criterion='adaptive_loss')
    with pytest.raises(SeqlitError, match='--adaptive-softmax-cutoff'): begin(data, tmp_path, case=case)
