"What several workers do together, told as JSON: `python workers.py FOLDER scenario ...`, started as torchrun would start it."
import json
import sys
from pathlib import Path

import torch
from backwards import Backwards, make_trainer

from seqlit.train.checkpoints import load_checkpoint
from seqlit.train.events import Skipped, Update, Validated
from seqlit.train.exchange import whole
from seqlit.train.trainer import Trainer
from seqlit.train.world import DistributedOptions, World, find_place, joined

BACKENDS = {'ddp': dict(ddp_backend='pytorch_ddp'), 'after': dict(ddp_backend='legacy_ddp'),
            'parts': dict(ddp_backend='fully_sharded'), 'files': dict(ddp_backend='fully_sharded', use_sharded_state=True)}


def numbers(trainer: Trainer) -> dict:
    "Every parameter and every entry of the optimizer, as exact numbers."
    state = whole(trainer.state_here())
    entries = {f'{n}.{k}': v for n, entry in state['last_optimizer_state']['state'].items() for k, v in entry.items()}
    mean = {f'mean.{name}': x for name, x in state['extra_state'].get('ema', {}).items()}
    found = {**state['model'], **entries, **mean}
    return {name: torch.as_tensor(x).double().flatten().tolist() for name, x in found.items()}


def run(trainer: Trainer, until: int | None = None, asker: int = 0) -> dict:
    "A run to its end, or until one of the workers asks for it."
    updates, valid, skipped = [], [], []
    for event in trainer.run():
        if isinstance(event, Update):
            updates.append([event.num_updates, *(event.values[k] for k in ('loss', 'nll_loss', 'gnorm', 'lr', 'wpb', 'bsz'))])
            if event.num_updates == until and trainer.world.rank == asker: trainer.stop('terminated')
        if isinstance(event, Validated): valid.append([event.num_updates, event.report['loss'], event.report['ppl']])
        if isinstance(event, Skipped): skipped.append([event.num_updates, event.ids, event.reason])
    return dict(updates=updates, valid=valid, skipped=skipped, reason=event.reason, numbers=numbers(trainer))


def compared(folder: Path, world: World) -> dict:
    "A whole run with each backend."
    found = {}
    for name in ('ddp', 'after', 'parts'):
        vars(world.options).update(BACKENDS[name])
        found[name] = run(make_trainer(folder/name, world=world, dropout=0., save_interval_updates=2))
    return found


def resumed(folder: Path, world: World) -> dict:
    "A whole run, and one that the last worker stops in mid-epoch; with dropout, an average and 16 bits."
    found, last = {}, world.size - 1
    for name in BACKENDS:
        vars(world.options).update(DistributedOptions().record() | BACKENDS[name])
        more = dict(world=world, dropout=0.2, store_ema=True, ema_decay=0.9, bf16=name == 'ddp', num_workers=2 if name == 'after' else 0)
        first = run(make_trainer(folder/f'{name}-broken', **more), until=4, asker=last)
        second = run(make_trainer(folder/f'{name}-broken', **more))
        found[name] = [run(make_trainer(folder/f'{name}-unbroken', **more)), first, second]
    return found


def moved(folder: Path, world: World) -> dict:
    "Go on from checkpoints that another number of workers has written."
    vars(world.options).update(DistributedOptions().record() | BACKENDS['files'])
    found = {}
    for path in sorted(folder.glob('*/checkpoint_last.pt')):
        trainer = make_trainer(path.parent, world=world, dropout=0., max_epoch=3, restore_file=str(path), no_save=True)
        trainer.restore()
        found[path.parent.name] = numbers(trainer)
    return found


class OutOfMemory(Backwards):
    "A task whose memory runs out on the last worker: before, during and after the second, fourth and sixth step."
    def __init__(self, world: World):
        super().__init__()
        self.world, self.steps = world, 0

    def train_step(self, sample, model, criterion, optimizer, update_num=0, ignore_grad=False):
        self.steps += 1
        fails = self.steps if self.world.rank == self.world.size - 1 else 0

        def no_room(*_): raise torch.OutOfMemoryError('no room')
        handle = None
        if fails == 2: handle = model.decoder.register_forward_hook(no_room)
        if fails == 4: handle = model.decoder.layers[0].register_full_backward_hook(no_room)
        try:
            found = super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)
        finally:
            if handle is not None: handle.remove()
        if fails == 6: no_room()
        return found


def memory(folder: Path, world: World) -> dict:
    "Updates that one worker cannot do."
    found = {}
    for name in ('ddp', 'after'):
        vars(world.options).update(DistributedOptions().record() | BACKENDS[name])
        found[name] = run(make_trainer(folder/name, OutOfMemory(world), world, dropout=0., no_save=True))
    return found


if __name__ == '__main__':
    torch.set_num_threads(1)
    with joined(find_place(DistributedOptions()), DistributedOptions()) as world:
        for name in sys.argv[2:]:
            scenario, _, source = name.partition('=')
            found = globals()[scenario](Path(source or f'{sys.argv[1]}/{scenario}'), world)
            Path(f'{sys.argv[1]}/{scenario}-{world.rank}of{world.size}.json').write_text(json.dumps(found))
