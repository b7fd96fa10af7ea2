"Activations that are computed again, or kept elsewhere, change the memory of a training step and nothing else."

import weakref

import pytest
import torch
from test_resume_models import CASES, data  # noqa: F401 (a fixture)
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seqlit.cli.train import make_trainer

KINDS = ['transformer', 'transformer_align', 'adaptive softmax', 'R-Drop', 'layers left out', 'bf16', 'lightconv',
         'dynamicconv', 'cmlm_transformer', 'nonautoregressive_transformer', 'levenshtein_transformer', 'blocks of lines',
         'lightconv_lm', 'masked_lm', 'denoising', 'classes', 'classes by bart', 'multilingual_translation']
DEEP = ('encoder_layers', 'decoder_layers')


class Alive(TorchDispatchMode):
    "Counts the bytes of tensors that were made inside and are still there."

    def __init__(self):
        super().__init__()
        self.now, self.most, self.known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for x in tree_leaves(made):
            if torch.is_tensor(x):
                storage = x.untyped_storage()
                if storage._cdata not in self.known:
                    self.known.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self.forget, storage._cdata, storage.nbytes())
        return made

    def forget(self, key, size):
        self.known.discard(key)
        self.now -= size


def saved_bytes(model, compute):
    "Bytes that autograd keeps for the backward pass, parameters not counted; what layers save elsewhere is not seen."
    own, found = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def note(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in own: found[storage.data_ptr()] = storage.nbytes()
        return x

    with saved_tensors_hooks(note, lambda x: x):
        compute()
    return sum(found.values())


def step(data, tmp_path, case, **more):  # noqa: F811
    "Loss and gradients of a batch, bytes saved, and the most that was alive during the step."
    settings = {name: value for name, value in CASES[case].items() if value is not None}
    folder = ':'.join(str(data / name) for name in settings.pop('data').split(':'))
    deep = {name: 4 for name in DEEP if name in settings and isinstance(settings[name], int)}
    deep |= dict(decoder_kernel_size_list=[3] * 4) if 'decoder_kernel_size_list' in settings else {}
    deep |= dict(encoder_kernel_size_list=[3] * 4) if 'encoder_kernel_size_list' in settings else {}
    deep |= dict(decoder_input_dim=16, decoder_output_dim=16) if settings['arch'] == 'transformer_lm' else {}
    settings = dict(optimizer='adam', lr=[1e-3], batch_size=16, cpu=True, num_workers=0, dropout=0.2, no_save=True,
                    attention_dropout=0.1, required_batch_size_multiple=1, save_dir=str(tmp_path)) | settings | deep | more
    trainer = make_trainer(folder, **settings)
    trainer.restore()
    sample = next(iter(trainer.epochs.next_epoch(shuffle=False)))
    model, criterion = trainer.model.train(), trainer.criterion.train()

    def compute():
        torch.manual_seed(7)
        with trainer.precision.autocast():
            return trainer.task.train_step(sample, model, criterion, trainer.optimizer, 0)[0]

    saved = saved_bytes(model, compute)
    model.zero_grad(set_to_none=True)
    with Alive() as alive:
        loss = compute()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}, saved, alive.most


@pytest.mark.parametrize('case', KINDS)
def test_only_memory_changes(data, tmp_path, case):  # noqa: F811
    loss, gradients, saved, most = step(data, tmp_path, case)
    again = step(data, tmp_path, case, checkpoint_activations=True)
    elsewhere = step(data, tmp_path, case, offload_activations=True)
    for other in (again, elsewhere):
        assert torch.equal(loss, other[0])
        for name, gradient in gradients.items():
            twin = other[1][name]
            assert (gradient is None) == (twin is None), name
            assert gradient is None or torch.equal(gradient, twin), name
        assert other[2] < saved / 2
    assert again[3] < 0.6 * most


def test_dropout_is_at_work_in_these_steps(data, tmp_path):  # noqa: F811
    plain = step(data, tmp_path, 'transformer')
    other = step(data, tmp_path, 'transformer', dropout=0.)
    assert not torch.equal(plain[0], other[0])
