"Checkpoints are read without running what is in them: fairseq's, crafted ones and broken ones."
import argparse
import collections
import io
import os
import pickle
import subprocess

import pytest
import torch
from hypothesis import given, settings, strategies as st

from seqlit.base.errors import SeqlitError
from seqlit.base.unpickle import SafeUnpickler, load_checkpoint_file
from seqlit.train.checkpoints import load_checkpoint

MODELS = ['fconv', 'lstm', 'transformer', 'transformer_lm', 'transformer_prenorm']


def same(ours, theirs, path=''):
    "Equal in type, order and every number; a Namespace counts as its dictionary."
    if isinstance(theirs, argparse.Namespace): theirs = vars(theirs)
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs), path
        for key in theirs: same(ours[key], theirs[key], f'{path}.{key}')
    elif torch.is_tensor(theirs):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), path
    elif isinstance(theirs, (list, tuple)):
        assert type(ours) is type(theirs) and len(ours) == len(theirs), path
        for number, (a, b) in enumerate(zip(ours, theirs)): same(a, b, f'{path}[{number}]')
    else: assert type(ours) is type(theirs) and ours == theirs, path


@pytest.mark.parametrize('name', MODELS)
def test_checkpoints_of_fairseq(shared, name):
    path = shared/'golden'/'models'/name/'checkpoint_best.pt'
    same(load_checkpoint_file(path), torch.load(path, map_location='cpu', weights_only=False))
    state = load_checkpoint(path)
    assert state['cfg']['model']['_name'] == name.removesuffix('_prenorm')


def test_configuration_in_nodes_of_omegaconf(shared):
    state = load_checkpoint(shared/'golden'/'training'/'init.pt')
    assert state['cfg']['optimization']['lr'] == [0.25]
    assert state['cfg']['dataset']['required_batch_size_multiple'] == 8
    assert state['cfg']['model']['share_all_embeddings'] is True
    assert state['model']['encoder.embed_tokens.weight'] is not None


class Call:
    "Pickled, it becomes a call."
    def __init__(self, function, *args): self.call = function, args
    def __reduce__(self): return self.call


DANGEROUS = [Call(os.system, 'true'), Call(eval, '1'), Call(exec, '1'), Call(getattr, 'a', 'upper'), Call(open, '/dev/null'),
             Call(subprocess.Popen, ['true']), Call(__import__, 'os'), Call(torch.load, 'x.pt'), Call(setattr, 'a', 'b', 1), Call(map, str, [1])]


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('call', DANGEROUS, ids=lambda call: call.call[0].__name__)
def test_calls_are_refused_by_name(tmp_path, call, zipped):
    path = tmp_path/'evil.pt'
    torch.save({'model': {'w': torch.ones(1)}, 'cfg': call}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(SeqlitError, match=rf'evil.pt: wants to run \S*{call.call[0].__name__}, which is not data'):
        load_checkpoint_file(path)


@pytest.mark.parametrize('program', [
    b'\x80\x02ccollections\nOrderedDict\n}X\x06\x00\x00\x00updateK\x01sb.',          # state for a class
    b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__code__K\x01sb.',  # and for a function
    b'\x80\x02cargparse\nNamespace\nN}X\x08\x00\x00\x00__init__K\x01s\x86b.',
])
def test_a_file_leaves_no_trace_in_another(program):
    before = dict(vars(argparse.Namespace)), collections.OrderedDict.update
    try: SafeUnpickler(io.BytesIO(program), None, 'evil.pt').load()
    except (TypeError, AttributeError, pickle.UnpicklingError): pass
    assert (dict(vars(argparse.Namespace)), collections.OrderedDict.update) == before
    plain = SafeUnpickler(io.BytesIO(pickle.dumps(argparse.Namespace(a=1))), None, 'good.pt').load()
    assert plain.state == {'a': 1} and vars(type(plain)).keys() <= {'path', '__module__', '__doc__', '__dict__', '__weakref__'}


def small(zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save({'model': {'w': torch.arange(6.).view(2, 3)}, 'cfg': argparse.Namespace(lr=[0.1])}, file,
               _use_new_zipfile_serialization=zipped)
    return file.getvalue()


FILES = [small(True), small(False)]


@settings(max_examples=60, deadline=None)
@given(which=st.sampled_from([0, 1]), cut=st.floats(0, 1), flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=3))
def test_broken_files_give_one_line(tmp_path_factory, which, cut, flips):
    raw = bytearray(FILES[which])
    for place, change in flips: raw[int(place*(len(raw) - 1))] ^= change
    path = tmp_path_factory.getbasetemp()/'broken.pt'
    path.write_bytes(raw if cut > 0.9 else raw[:int(cut*len(raw))])
    try: load_checkpoint_file(path)
    except SeqlitError as error: assert '\n' not in str(error) and 'broken.pt' in str(error)
