"A configuration file says what the flags say, is answered when it errs, and `config.yaml` makes the same run again."
import re
from pathlib import Path

import pytest
import torch

from flag_runs import SMALL, make_data, run, trainer_of
from seqlit.base.errors import SeqlitError
from seqlit.cli.common import named_file, parse, resolve
from seqlit.cli.generate import main as generate
from seqlit.cli.train import TRAIN, build_trainer
from seqlit.cli.train import main as train
from seqlit.models.model import ARCHITECTURES, Architecture
from seqlit.train.events import Update


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp('config'), dict(train=40, valid=12, test=9))


def configured(*words):
    "The configuration of a command line."
    argv = list(map(str, words))
    file = named_file(argv)
    return resolve(TRAIN, parse(TRAIN, argv, file), file)


def written(folder: Path, text: str, name='run.yaml') -> Path:
    (folder/name).write_text(text, encoding='utf-8')
    return folder/name


def again(config: Path, folder: Path):
    "The run of a configuration file, with nothing said but where it goes."
    trainer = build_trainer(configured('--config', config, '--save-dir', folder))
    return trainer, [(event.num_updates, event.values) for event in trainer.run() if isinstance(event, Update)]


RUNS = {
    'plain': [],
    'schedule': ['--lr-scheduler', 'cosine', '--warmup-updates', '3', '--max-update', '8', '--criterion', 'label_smoothed_cross_entropy', '--label-smoothing', '0.1'],
    'mean': ['--store-ema', '--ema-decay', '0.9', '--clip-norm', '0.5', '--update-freq', '2,1', '--adam-betas', '(0.8, 0.9)', '--weight-decay', '0.01'],
    'tokens': ['--max-tokens', '60', '--lr', '0.01,0.001', '--seed', '4', '--validate-interval-updates', '3', '--patience', '9', '--fixed-validation-seed', '3'],
    'adafactor': ['--optimizer', 'adafactor', '--scale-parameter', '--relative-step', '--warmup-init', '--lr', '0.1', '--share-all-embeddings', '--sentence-avg'],
}


@pytest.mark.parametrize('name', RUNS)
def test_config_yaml_makes_the_same_run(data, tmp_path, name):
    "Bit for bit: losses, gradients, rates and the last parameters."
    words = [w for w in RUNS[name] if name != 'adafactor' or w != '--share-all-embeddings']
    one = run(data, tmp_path/'one', '--max-epoch', '2', *words)
    other, losses = again(tmp_path/'one'/'config.yaml', tmp_path/'two')
    assert losses == one.losses
    for (key, p), q in zip(one.trainer.model.state_dict().items(), other.model.state_dict().values()): assert torch.equal(p, q), key
    files = [(tmp_path/f/'config.yaml').read_text(encoding='utf-8').replace(str(tmp_path/f), '') for f in ('one', 'two')]
    assert files[0] == files[1]


def test_an_architecture_that_changes_later(data, tmp_path, monkeypatch):
    "What an architecture stood for when the run began is recorded: also the options that it did not set."
    model = ARCHITECTURES.get('transformer_tiny').model
    def define(**settings): monkeypatch.setitem(ARCHITECTURES.classes, 'test_arch', Architecture(model, settings))
    define(dropout=0.3)
    one = run(data, tmp_path/'one', '--arch', 'test_arch', '--max-epoch', '1')
    define(dropout=0., encoder_learned_pos=True, decoder_layers_to_keep=[0], encoder_layerdrop=0.5)
    other, losses = again(tmp_path/'one'/'config.yaml', tmp_path/'two')
    assert losses == one.losses and other.cfg.model.record() == one.trainer.cfg.model.record()
    assert other.cfg.model.decoder_layers_to_keep is None


def test_the_command_line_wins_over_the_file(data, tmp_path):
    run(data, tmp_path/'one', '--max-epoch', '1', '--dropout', '0.3')
    config = configured('--config', tmp_path/'one'/'config.yaml', '--max-epoch', '7', '--lr', '0.5', '--dropout', '0.2')
    assert (config.optimization.max_epoch, config.optimization.lr, config.lr_scheduler.lr, config.model.dropout) == (7, [0.5], [0.5], 0.2)
    config = configured('--config', tmp_path/'one'/'config.yaml', '--arch', 'lstm')   # takes the file's group with it
    assert config.model._name == 'lstm' and config.model.dropout == 0.1


def test_generate_takes_the_runs_config(data, tmp_path, capsys):
    "Data, task and batches are those of the run; what only training knows is passed over."
    run(data, tmp_path, '--max-epoch', '1', '--store-ema', '--patience', '3')
    path = ['--path', str(tmp_path/'checkpoint_last.pt'), '--beam', '2', '--max-len-b', '5']
    def output(*words):
        assert generate([*words, *path]) == 0, capsys.readouterr().err
        return [line for line in capsys.readouterr().out.splitlines() if line[1:2] == '-']
    assert output('--config', str(tmp_path/'config.yaml')) == output(str(data), '--cpu', '--batch-size', '8', '--num-workers', '0')


# ---- what a file may look like

FLAT = '''
arch: transformer_tiny
task: translation
criterion: label_smoothed_cross_entropy
optimizer: adam
lr-scheduler: inverse_sqrt
lr: 1e-3
adam_betas: (0.9, 0.98)
label-smoothing: 0.1
warmup_updates: 7
max_tokens: 400
update_freq: [2, 1]
dropout: 0.25
cpu: true
'''

HYDRA = '''
# @package _group_
defaults:
  - base_config
common:
  fp16: false
  cpu: true
  log_interval: 20
  tpu: false
  aim_repo: null
task:
  _name: translation
  data: ???
  source_lang: null
criterion:
  _name: label_smoothed_cross_entropy
  label_smoothing: 0.1
  sentence_avg: ${optimization.sentence_avg}
dataset:
  max_tokens: 400
  max_tokens_valid: ${dataset.max_tokens}
optimization:
  max_update: 500
  lr: [0.001]
  update_freq: [2, 1]
  sentence_avg: false
optimizer:
  _name: adam
  adam_betas: (0.9, 0.98)
  lr: ${optimization.lr}
  fp16_adam_stats: false
  tpu: ${common.tpu}
lr_scheduler:
  _name: inverse_sqrt
  warmup_updates: 7
  lr: ${optimization.lr}
model:
  _name: transformer_tiny
  dropout: 0.25
  activation_dropout: ${model.dropout}
  decoder_layers_to_keep: null
bmuf:
  block_lr: 1
hydra:
  run: {dir: x}
'''


@pytest.mark.parametrize('text', [FLAT, HYDRA], ids=['flat', 'hydra'])
def test_two_forms(tmp_path, text):
    config = configured('data-bin', '--config', written(tmp_path, text))
    assert (config.model._name, config.model.dropout, config.model.encoder_layers) == ('transformer_tiny', 0.25, 2)
    assert (config.criterion._name, config.criterion.label_smoothing) == ('label_smoothed_cross_entropy', 0.1)
    assert (config.optimization.lr, config.lr_scheduler.lr, config.optimization.update_freq) == ([0.001], [0.001], [2, 1])
    assert (config.lr_scheduler._name, config.lr_scheduler.warmup_updates) == ('inverse_sqrt', 7)
    assert (config.optimizer._name, config.optimizer.adam_betas, config.dataset.max_tokens, config.dataset.max_tokens_valid) == (
        'adam', '(0.9, 0.98)', 400, 400)
    assert config.common.cpu is True and config.task.data == 'data-bin'
    if text is HYDRA: assert (config.model.activation_dropout, config.common.log_interval, config.optimization.max_update) == (0.25, 20, 500)


def test_components_as_words_beside_groups(tmp_path):
    "`criterion: name` and `model: name` choose as the flags do; a group without a name goes with the one chosen elsewhere."
    config = configured('data-bin', '--config', written(tmp_path, 'model: transformer_tiny\ncriterion: label_smoothed_cross_entropy\nlabel_smoothing: 0.2\n'))
    assert (config.model._name, config.criterion._name, config.criterion.label_smoothing) == ('transformer_tiny', 'label_smoothed_cross_entropy', 0.2)
    path = written(tmp_path, 'optimizer: {adam_betas: "(0.5, 0.6)"}\ncriterion: {label_smoothing: 0.3}\n')
    config = configured('data-bin', '--config', path, '--optimizer', 'adam', '--criterion', 'label_smoothed_cross_entropy')
    assert config.optimizer.adam_betas == '(0.5, 0.6)' and config.criterion.label_smoothing == 0.3


WRONG = {
    'max_tokns: 100': r"run.yaml, max_tokns: unknown option --max-tokns; did you mean '--max-tokens'\?",
    'optimization: {max_updates: 100}': r"run.yaml, optimization.max_updates: unknown option --max-updates; did you mean '--max-update'\?",
    'optimisation: {max_update: 100}': r"run.yaml: unknown group 'optimisation'; did you mean 'optimization'\?",
    'model: {_name: transformer, encoder_layer: 3}': r"model.encoder_layer: unknown option --encoder-layer; did you mean '--encoder-layers'\?",
    'model: {_name: transfromer}': r"unknown architecture 'transfromer'; did you mean 'transformer'\?",
    'criterion: label_smoothed_cross_entrop': r"unknown criterion 'label_smoothed_cross_entrop'; did you mean 'label_smoothed_cross_entropy'\?",
    'label_smoothing: 0.1': r'run.yaml, label_smoothing: --label-smoothing belongs to --criterion .*, which was not chosen',
    'common: {tpu: true}': r"run.yaml, common.tpu: --tpu is a flag of fairseq's \(.*\) that seqlit does not have",
    'optimization: {lr: fast}': r"--lr: expected a list of numbers, got 'fast' \(--config .*run.yaml, optimization.lr\)",
    'max_epoch: 2.5': r'--max-epoch: expected int, got 2.5 \(--config .*run.yaml, max_epoch\)',
    'cpu: maybe': r"--cpu: expected bool, got 'maybe' \(--config .*run.yaml, cpu\)",
    'optimizer: {_name: adam, lr: "${optimisation.lr}"}': r'run.yaml, optimizer.lr: \$\{optimisation.lr\} refers to nothing in the file',
    'save_dir: "${hydra:run.dir}"': r'run.yaml, save_dir: \$\{hydra:run.dir\} refers to nothing in the file',
    'lr: 0.1\nlr: 0.2': r"run.yaml: not YAML.*'lr' stands there twice",
    '- lr': r'run.yaml: expected lines such as',
    'lr: [0.1': r'run.yaml: not YAML',
}


@pytest.mark.parametrize('text', WRONG)
def test_files_that_err(tmp_path, text):
    with pytest.raises(SeqlitError) as told: configured('data-bin', '--config', written(tmp_path, text))
    assert re.search(WRONG[text], str(told.value)), str(told.value)


def test_show_config_tells_where_each_value_came_from(tmp_path, capsys):
    path = written(tmp_path, 'optimizer: {_name: adam, weight_decay: 0.1}\noptimization: {lr: [0.5]}\n')
    assert train(['data-bin', '--config', str(path), '--arch', 'transformer_iwslt_de_en', '--max-epoch', '3', '--show-config']) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    def source(name): return re.split(r'  +', rows[name])[2]
    assert source('optimization.max_epoch') == source('model._name') == source('task.data') == 'command line'
    assert source('optimizer._name') == source('optimizer.weight_decay') == source('lr_scheduler.lr') == str(path)
    assert source('model.encoder_ffn_embed_dim') == 'architecture transformer_iwslt_de_en' and ' 1024 ' in rows['model.encoder_ffn_embed_dim']
    assert source('optimization.clip_norm') == source('task._name') == 'default'


# ---- command lines of a newcomer

LINES = {
    '--lr fast': "--lr: expected a list of numbers, got 'fast'",
    '--max-epoch 1.5': "--max-epoch: expected int, got '1.5'",
    '--max-epochs 3': "unknown option --max-epochs; did you mean '--max-epoch'?",
    '--arch transfomer': "unknown architecture 'transfomer'; did you mean 'transformer'?",
    '--optimizer adamm': "unknown optimizer 'adamm'; did you mean 'adam'?",
    '--criterion crossentropy': "unknown criterion 'crossentropy'; did you mean 'cross_entropy'?",
    '--lr-scheduler inverse-sqrt': "unknown lr_scheduler 'inverse-sqrt'; did you mean 'inverse_sqrt'?",
    '--task translate': "unknown task 'translate'; did you mean 'translation'?",
    '--label-smoothing 0.1': '--label-smoothing belongs to --criterion label_smoothed_cross_entropy',
    '--fp16 --bf16': '--bf16 and --fp16 exclude each other',
    '--lr 1e-3, 1e-4': "unexpected argument '1e-4'",
    '--lr -0.1': '--lr [-0.1]: give at least one number, none below 0',
    '--update-freq 0': '--update-freq [0]: give at least one number, none below 1',
    '--update-freq 1e999': "--update-freq: expected a list of numbers, got '1e999'",
    '--lr nan': "--lr: expected a list of numbers, got 'nan'",
    '--batch-size -3': '--batch-size -3: must be 1 or more',
    '--max-update -5': '--max-update -5: must be 0 or more',
    '--max-epoch -1': '--max-epoch -1: must be 0 or more',
    '--save-interval 0': '--save-interval 0: must be 1 or more',
    '--lr 1e999': "--lr: expected a list of numbers, got '1e999'",
    '--dropout nan': "--dropout: expected float, got 'nan'",
    '--validate-interval 0': '--validate-interval 0: must be 1 or more',
    '--patience 3 --disable-validation': '--patience 3 counts validations and --disable-validation leaves them out',
    '--optimizer-overrides {lr': '--optimizer-overrides {lr: expected a dictionary',
    '--ema-decay 2': '--ema-decay 2.0: must be from 0 to 1',
    '--warmup-init-lr -1e-7 --lr-scheduler inverse_sqrt': "one that begins with '-' is written --warmup-init-lr=-VALUE",
    '--warmup-updates -4': '--warmup-updates -4: must be 0 or more',
    '--lr-scheduler cosine --max-update 9 --warmup-updates -4': '--warmup-updates -4: must be 0 or more',
    '--lr-scheduler step --warmup-updates -4': '--warmup-updates -4: must be 0 or more',
    '--lr-scheduler polynomial_decay --max-update 9 --warmup-updates -4': '--warmup-updates -4: must be 0 or more',
    '--lr-scheduler reduce_lr_on_plateau --warmup-updates -4': '--warmup-updates -4: must be 0 or more',
    '--arch lstm --encoder-ffn-embed-dim 8': '--encoder-ffn-embed-dim belongs to --arch ',
    '--lr-scheduler inverse_sqrt --lr 1e-3,1e-4': 'inverse_sqrt takes one learning rate; --lr-scheduler fixed takes one for each epoch',
    '--dropout 1.5': '1.5',
    '--encoder-attention-heads 3': '3 heads',
    '--seed -3': '--seed -3: must be',
    '--ema-seed-model none.pt --store-ema': 'none.pt: no such file',
    '--train-subset trian': "no 'trian' set",
    '--config': '--config: expected one argument',
    '--config none.yaml': '--config none.yaml: no such file',
}


@pytest.mark.parametrize('line', LINES)
def test_one_line_for_each_mistake(data, tmp_path, capsys, line):
    "Code 2, no traceback, nothing written."
    assert train([str(data), *SMALL, '--save-dir', str(tmp_path/'run'), '--max-epoch', '1', '--max-update', '1', *line.split()]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and told[0].startswith('seqlit-train: error: ') and LINES[line] in told[0], told
    assert not (tmp_path/'run').exists()


@pytest.mark.parametrize('line', ['--lr [0.001]', '--lr 1e-3', '--lr 1e-3,1e-4', '--update-freq [4]', '--update-freq 4,2', '--adam-betas [0.9,0.98]',
                                  '--adam-betas (0.9,0.98)', '--lr=0.1', '--max-tokens 4e2', '--warmup-init-lr=-1e-7 --lr-scheduler inverse_sqrt'])
def test_spellings_that_fairseq_takes(data, tmp_path, line):
    if line == '--max-tokens 4e2':   # fairseq does not
        with pytest.raises(SeqlitError, match="--max-tokens: expected int, got '4e2'"): trainer_of(data, tmp_path, *line.split())
        return
    trainer_of(data, tmp_path, *line.split())


def test_a_folder_that_cannot_be_written(data, tmp_path, capsys):
    "Said before the first update."
    (tmp_path/'file').write_text('x')
    assert train([str(data), *SMALL, '--save-dir', str(tmp_path/'file'/'run'), '--max-epoch', '1']) == 2
    assert str(tmp_path/'file') in capsys.readouterr().err


def test_data_that_is_missing(data, tmp_path, capsys):
    for words, told in [(['nowhere'], 'nowhere'), ([], 'data')]:
        assert train([*words, *SMALL, '--save-dir', str(tmp_path/'run')]) == 2
        assert told in capsys.readouterr().err
    for words in ([], ['--ignore-unused-valid-subsets']):
        assert train([str(data), *SMALL, '--save-dir', str(tmp_path/'run'), '--valid-subset', 'valdi', '--max-update', '1', *words]) == 2
        told = capsys.readouterr().err
        assert 'valdi' in told and 'not used' not in told, told
