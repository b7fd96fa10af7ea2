"BART from the commands: plain text, pre-training, going on, repairing, and then a translator."
import os
import random
import subprocess
import sys

import pytest
import torch

from seqlit.train.checkpoints import load_checkpoint

TINY = ('--encoder-embed-dim 16 --encoder-ffn-embed-dim 32 --encoder-layers 1 --encoder-attention-heads 2 --decoder-embed-dim 16 '
        '--decoder-ffn-embed-dim 32 --decoder-layers 1 --decoder-attention-heads 2').split()
RUN = '--optimizer adam --lr 0.005 --max-tokens 400 --log-format none --cpu'.split()
NOISE = ('--mask 0.3 --mask-length span-poisson --replace-length 1 --permute-sentences 1 --rotate 0 --poisson-lambda 2 '
         '--tokens-per-sample 24 --sample-break-mode complete').split()


def seqlit(*words) -> str:
    "Run a command; its standard output."
    done = subprocess.run([sys.executable, '-m', 'seqlit.cli.main', *map(str, words)], capture_output=True, text=True,
                          env=os.environ | {'PYTHONPATH': os.getcwd(), 'OMP_NUM_THREADS': '1'}, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def text(tmp_path_factory):
    "A folder with binarised text, and the files it came from."
    folder, draw = tmp_path_factory.mktemp('bart'), random.Random(1)
    for split, lines in (('train', 80), ('valid', 16)):
        rows = [' '.join(draw.choices('abcdefgh', k=draw.randint(3, 9))) + ' .' for _ in range(lines)]
        for suffix in ('', '.xx', '.yy'):
            (folder/f'{split}{suffix}').write_text('\n'.join(rows) + '\n', encoding='utf-8')
    seqlit('preprocess', '--only-source', '--trainpref', folder/'train', '--validpref', folder/'valid', '--destdir', folder/'bin')
    return folder


@pytest.fixture(scope='module')
def trained(text):
    "The same folder, with a model that was trained for two epochs in one go."
    seqlit('train', text/'bin', '--task', 'denoising', '--arch', 'bart_base', *TINY, *NOISE, *RUN, '--max-epoch', 2,
           '--save-dir', text/'whole')
    return text


def test_it_learns_and_remembers_how(trained):
    state = load_checkpoint(trained/'whole'/'checkpoint_last.pt')
    assert state['cfg']['model']['_name'] == 'bart_base'
    assert state['cfg']['task']['mask_length'] == 'span-poisson'
    words = len((trained/'bin'/'dict.txt').read_text(encoding='utf-8').splitlines()) + 4
    assert len(state['model']['encoder.embed_tokens.weight']) == words + 1  # <mask>


def test_going_on_is_the_same_as_never_stopping(trained):
    train = ['train', trained/'bin', '--task', 'denoising', '--arch', 'bart_base', *TINY, *NOISE, *RUN, '--save-dir', trained/'parts']
    for epochs in (1, 2):
        seqlit(*train, '--max-epoch', epochs)
    whole, parts = (load_checkpoint(trained/name/'checkpoint_last.pt')['model'] for name in ('whole', 'parts'))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_it_repairs_the_validation_set(trained):
    shown = seqlit('generate', trained/'bin', '--task', 'denoising', *NOISE, '--path', trained/'whole'/'checkpoint_last.pt',
                   '--gen-subset', 'valid', '--beam', 2, '--max-tokens', 400, '--cpu')
    marks = [line.split('\t')[0] for line in shown.splitlines() if line[1:2] == '-']
    assert {mark[0] for mark in marks} >= set('STHDP')
    assert '<mask>' in shown


def test_it_becomes_a_translator(trained):
    "Fine-tuning on pairs drops the row of `<mask>`."
    dictionary = trained/'bin'/'dict.txt'
    seqlit('preprocess', '-s', 'xx', '-t', 'yy', '--trainpref', trained/'train', '--validpref', trained/'valid', '--destdir',
           trained/'pairs', '--srcdict', dictionary, '--joined-dictionary')
    seqlit('train', trained/'pairs', '--task', 'translation', '--arch', 'bart_base', *TINY, *RUN, '--max-epoch', 1, '--save-dir',
           trained/'translator', '--finetune-from-model', trained/'whole'/'checkpoint_last.pt')
    old, new = (load_checkpoint(trained/name/'checkpoint_last.pt')['model']['encoder.embed_tokens.weight']
                for name in ('whole', 'translator'))
    assert len(new) == len(old) - 1
    assert float((new - old[:-1]).abs().max()) < 0.2  # a few small steps from where it began


def test_it_classifies_sentences(tmp_path):
    "The head that the task asks for learns; the batch has the decoder's inputs or not."
    from seqlit.data.dictionary import Dictionary
    from seqlit.models.bart import BARTOptions
    from seqlit.models.model import resolve_architecture
    from seqlit.tasks.sentence_prediction import SentencePredictionTask, SentenceTaskOptions
    from seqlit.train.sentence_losses import SentencePredictionCriterion, SentencePredictionOptions

    words = Dictionary()
    for letter in 'abcdefgh':
        words.add_symbol(letter)
    _, habits = resolve_architecture('bart_base')
    numbers = {flag[2:].replace('-', '_'): int(number) for flag, number in zip(TINY[::2], TINY[1::2])}
    options = BARTOptions(**{**habits, **numbers, 'dropout': 0.})
    options._name = 'bart_base'
    losses = {}
    for adds in (True, False):
        task = SentencePredictionTask(SentenceTaskOptions(num_classes=3, add_prev_output_tokens=adds), words)
        torch.manual_seed(1)
        model = task.build_model(options)
        assert model.head('sentence_classification_head').out_proj.out_features == 3
        rows = task.build_dataset_for_inference([(words.encode_line(text),) for text in ('a b c', 'd', 'e f')])
        sample = rows.batch([0, 1, 2]) | {'target': torch.tensor([0, 1, 2])}
        assert ('prev_output_tokens' in sample['net_input']) == adds
        criterion = SentencePredictionCriterion(SentencePredictionOptions(), words.pad())
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(40):
            loss, size, _ = criterion(model, sample)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[adds] = loss.item()
    assert losses[True] < 0.1
    assert losses[False] == pytest.approx(losses[True], abs=1e-3)
