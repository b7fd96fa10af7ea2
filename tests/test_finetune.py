"A new run from a model that is there: its parameters and nothing else, or an error that names what does not fit."
import pytest
import torch

from flag_runs import WORDS, make_data, run, trainer_of
from seqlit.base.errors import SeqlitError
from seqlit.cli.common import parse, resolve
from seqlit.cli.train import TRAIN, build_trainer
from seqlit.train.events import Restored, Update, Validated


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp('finetune'), dict(train=40, valid=12))


@pytest.fixture(scope='module')
def first(data, tmp_path_factory):
    "A run of three epochs."
    return run(data, tmp_path_factory.mktemp('first'), '--max-epoch', '3', '--store-ema', '--lr-scheduler', 'inverse_sqrt', '--warmup-updates', '5')


def last(done): return done.trainer.manager.folder/'checkpoint_last.pt'


def test_parameters_only(data, first, tmp_path):
    "Updates, epochs, time, optimizer, schedule, early stop, best value and running mean begin anew."
    trainer = trainer_of(data, tmp_path, '--finetune-from-model', last(first), '--lr-scheduler', 'inverse_sqrt', '--warmup-updates', '5',
                         '--store-ema', '--patience', '9')
    assert trainer.restore().path == last(first)
    for (name, p), q in zip(trainer.model.named_parameters(), first.trainer.model.parameters()): assert torch.equal(p, q), name
    assert (trainer.num_updates, trainer.epochs.next_epoch_index, trainer.epochs.iterations_in_epoch, trainer.previous_time) == (0, 1, 0, 0)
    assert trainer.optimizer.state_dict()['state'] == {} and trainer.optimizer.get_lr() == 0
    assert trainer.manager.best is None and trainer.stopper.state_dict() == dict(best=None, num_runs=0)
    assert trainer.meters['train'].values() == {}
    for name, mean in trainer.averaged.mean.items(): assert torch.equal(mean, dict(trainer.model.named_parameters())[name]), name


def test_it_goes_on_with_its_own_checkpoint(data, first, tmp_path):
    "The same command again is a resume, not a second beginning."
    flags = ['--finetune-from-model', last(first)]
    one = run(data, tmp_path, *flags, '--max-epoch', '1')
    assert one.epochs == [1] and one.trainer.num_updates == 5
    two = run(data, tmp_path, *flags, '--max-epoch', '2')
    assert two.of(Restored)[0].path == tmp_path/'checkpoint_last.pt' and two.epochs == [2] and two.trainer.num_updates == 10


def test_it_helps(data, first, tmp_path):
    fresh, tuned = run(data, tmp_path/'fresh', '--max-epoch', '1'), run(data, tmp_path/'tuned', '--max-epoch', '1', '--finetune-from-model', last(first))
    assert tuned.of(Validated)[0].report['loss'] < fresh.of(Validated)[0].report['loss']


def test_another_size(data, first, tmp_path):
    with pytest.raises(SeqlitError, match='encoder.embed_tokens.weight') as told:
        run(data, tmp_path, '--finetune-from-model', last(first), '--encoder-embed-dim', '24', '--decoder-embed-dim', '24')
    text = str(told.value)
    assert '(16, 16) in the checkpoint, (16, 24) in the model' in text and str(last(first)) in text and '--srcdict' not in text


def test_another_depth(data, first, tmp_path):
    with pytest.raises(SeqlitError, match=r'encoder.layers.1.self_attn.\S+: missing in the checkpoint'):
        run(data, tmp_path, '--finetune-from-model', last(first), '--encoder-layers', '2')


def test_another_vocabulary(first, tmp_path):
    "The likely cause of two shapes of an embedding is named, with the remedy."
    words = {f'{a}{b}': f'{x}{y}' for a, x in WORDS.items() for b, y in WORDS.items()}
    other = make_data(tmp_path/'other', dict(train=80, valid=12), words)
    with pytest.raises(SeqlitError) as told: run(other, tmp_path/'run', '--finetune-from-model', last(first))
    text = str(told.value)
    assert 'encoder.embed_tokens.weight: (16, 16) in the checkpoint, (' in text
    assert 'dictionar' in text and '--srcdict' in text and '--tgtdict' in text


def test_flags_that_contradict(data, first, tmp_path):
    for words in (['--restore-file', last(first)], ['--reset-optimizer'], ['--reset-dataloader']):
        with pytest.raises(SeqlitError, match='--finetune-from-model begins anew by itself'): run(data, tmp_path, '--finetune-from-model', last(first), *words)
    with pytest.raises(SeqlitError, match='--finetune-from-model none.pt: no such file'): run(data, tmp_path, '--finetune-from-model', 'none.pt')


def test_a_model_of_fairseqs(shared, tmp_path):
    "fairseq's own checkpoint: its parameters give its validation loss, and a new run begins."
    golden = shared/'golden'
    argv = (golden/'models'/'transformer'/'train.args').read_text(encoding='utf-8').split()
    words = [str(golden/word) if word.startswith('preprocess/') else word for word in argv]
    words += ['--cpu', '--max-update', '1', '--save-dir', str(tmp_path), '--max-tokens', '2000', '--disable-validation']
    path = golden/'models'/'transformer'/'checkpoint_best.pt'
    trainer = build_trainer(resolve(TRAIN, parse(TRAIN, [*words, '--finetune-from-model', str(path)])))
    trainer.restore()
    assert (trainer.num_updates, trainer.epochs.next_epoch_index, trainer.manager.best) == (0, 1, None)
    trainer.task.load_dataset('valid')
    assert list(trainer.validate('valid'))[-1].report['loss'] == pytest.approx(5.493, abs=0.002)
    assert [event.num_updates for event in trainer.run() if isinstance(event, Update)] == [1]
