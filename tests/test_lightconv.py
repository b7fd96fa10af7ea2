"Light convolutions from the commands, with fairseq's way of writing their flags."
import os
import random
import subprocess
import sys

from seqlit.train.checkpoints import load_checkpoint


def seqlit(*words) -> str:
    "Run a command; its standard output."
    done = subprocess.run([sys.executable, '-m', 'seqlit.cli.main', *map(str, words)], capture_output=True, text=True,
                          env=os.environ | {'PYTHONPATH': os.getcwd(), 'OMP_NUM_THREADS': '1'}, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_trains_and_translates(tmp_path):
    draw = random.Random(1)
    for split, lines in (('train', 120), ('valid', 16), ('test', 16)):
        rows = [draw.choices('abcdefgh', k=draw.randint(3, 9)) for _ in range(lines)]
        for language, step in (('xx', 1), ('yy', -1)):
            text = '\n'.join(' '.join(row[::step]) for row in rows) + '\n'
            (tmp_path/f'{split}.{language}').write_text(text, encoding='utf-8')
    seqlit('preprocess', '-s', 'xx', '-t', 'yy', '--trainpref', tmp_path/'train', '--validpref', tmp_path/'valid', '--testpref',
           tmp_path/'test', '--destdir', tmp_path/'bin')
    seqlit('train', tmp_path/'bin', '--arch', 'lightconv_iwslt_de_en', *'--encoder-embed-dim 16 --decoder-embed-dim 16 '
           '--encoder-ffn-embed-dim 32 --decoder-ffn-embed-dim 32 --encoder-layers 2 --decoder-layers 2 '
           '--encoder-kernel-size-list [3,7] --decoder-kernel-size-list 3,7 --encoder-glu 1 --decoder-glu 0 --weight-softmax True '
           '--encoder-conv-type lightweight --optimizer adam --lr 0.005 --max-tokens 400 --max-epoch 2 --log-format none '
           '--cpu'.split(), '--save-dir', tmp_path/'model')
    state = load_checkpoint(tmp_path/'model'/'checkpoint_last.pt')
    assert state['model']['encoder.layers.1.conv.weight'].shape == (4, 1, 7)
    assert state['model']['decoder.layers.1.conv.weight_linear.weight'].shape == (28, 16)
    assert state['model']['encoder.layers.0.linear1.weight'].shape == (32, 16)  # values and gates
    shown = [seqlit('generate', tmp_path/'bin', '--path', tmp_path/'model'/'checkpoint_last.pt', '--beam', 3, '--batch-size', size,
                    '--cpu').splitlines() for size in (1, 16)]
    texts = [[line.split('\t')[0::2] for line in lines if line.startswith('H-')] for lines in shown]
    assert len(texts[0]) == 16
    assert texts[0] == texts[1]
