"Whatever is trained: a run that stops within an epoch and goes on is the unbroken run, bit for bit."

import contextlib
import io
import logging
import random

import pytest
from test_resume import assert_equal, story

from seqlit.cli.main import main
from seqlit.cli.train import make_trainer
from seqlit.tasks.language_modeling import load_plain_dictionary
from seqlit.tasks.sentence_prediction import write_rows, write_sentence_data

LINES = {'train': 30, 'valid': 8}


def lines(count: int, alphabet: str, seed: int) -> list[str]:
    "Letters at random, one to nine in a line."
    draw = random.Random(seed)
    return [' '.join(draw.choices(alphabet, k=draw.randint(1, 9))) for _ in range(count)]


def preprocess(*words):
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(['preprocess', *map(str, words)]) == 0


def prefixes(folder, end=''):
    return [word for split in LINES for word in (f'--{split}pref', folder / f'{split}{end}')]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "Folders for all kinds of tasks: pairs with alignments, text, labelled sentences, candidates, two directions."
    to, before = tmp_path_factory.mktemp('data'), logging.root.handlers[:]
    for split, count in LINES.items():
        rows = lines(count, 'abcdef', count)
        (to / f'{split}.en').write_text('\n'.join(rows) + '\n')
        (to / f'{split}.de').write_text('\n'.join(' '.join(reversed(row.split())) for row in rows) + '\n')
        sizes = [len(row.split()) for row in rows]
        (to / f'{split}.align').write_text(
            '\n'.join(' '.join(f'{i}-{n - 1 - i}' for i in range(n)) for n in sizes) + '\n')
        # documents of three lines, with empty lines between them
        (to / split).write_text('\n'.join(row + '\n' * (n % 3 == 2) for n, row in enumerate(rows)) + '\n')
        write_sentence_data(to / 'classes', split, rows, ['long' if n > 4 else 'short' for n in sizes])
        write_sentence_data(to / 'numbers', split, [(row, row[:1]) for row in rows], [n / 9 for n in sizes])
        write_sentence_data(to / 'choices', split, rows, [n % 2 for n in sizes])
        for number in (1, 2):
            write_rows(to / 'choices' / f'input{number}', split, lines(count, 'abcdef', number),
                       load_plain_dictionary(to / 'choices' / 'input0'))
        for pair, ends in [('de-en', ('de', 'en')), ('en-fr', ('en', 'de'))]:
            for language, end in zip(pair.split('-'), ends):
                (to / f'{split}.{pair}.{language}').write_text((to / f'{split}.{end}').read_text())
    preprocess('-s', 'en', '-t', 'de', *prefixes(to), '--joined-dictionary', '--align-suffix', 'align', '--destdir',
               to / 'pairs')
    preprocess('--only-source', *prefixes(to), '--destdir', to / 'text')
    preprocess('--only-source', '--trainpref', to / 'train.de', '--validpref', to / 'valid.de', '--srcdict',
               to / 'text' / 'dict.txt', '--destdir', to / 'more')
    for source, target in [('de', 'en'), ('en', 'fr')]:
        preprocess('-s', source, '-t', target, *prefixes(to, f'.{source}-{target}'), '--srcdict',
                   to / 'text' / 'dict.txt', '--tgtdict', to / 'text' / 'dict.txt', '--destdir', to / 'many')
    logging.root.handlers[:] = before
    return to


NARROW = {f'{half}_{name}': size for half in ('encoder', 'decoder')
          for name, size in dict(embed_dim=16, ffn_embed_dim=16, layers=1, attention_heads=2).items()}
READS = {name: size for name, size in NARROW.items() if name.startswith('encoder')}
WRITES = {name: size for name, size in NARROW.items() if name.startswith('decoder')}
PAIRS = dict(data='pairs', arch='transformer', criterion='label_smoothed_cross_entropy', label_smoothing=0.1, **NARROW)
CONVS = PAIRS | dict(arch='fconv', encoder_layers='[(16, 3)] * 2', decoder_layers='[(16, 3)] * 2',
                     decoder_out_embed_dim=16) | dict.fromkeys(
                         [name for name in NARROW if name.endswith(('ffn_embed_dim', 'heads'))])
LIGHT = PAIRS | dict(arch='lightconv', encoder_kernel_size_list=[3], decoder_kernel_size_list=[3])
LSTM = dict(data='pairs', arch='lstm', encoder_embed_dim=16, encoder_hidden_size=16, decoder_embed_dim=16,
            decoder_hidden_size=16, decoder_out_embed_dim=16)
TEXT = dict(data='text', task='language_modeling', arch='transformer_lm', tokens_per_sample=10, **WRITES)
REFINE = dict(data='pairs', task='translation_lev', criterion='nat_loss', label_smoothing=0.1,
              share_all_embeddings=True, **NARROW)
HIDDEN = dict(data='text', task='masked_lm', criterion='masked_lm', arch='roberta', tokens_per_sample=8,
              max_positions=16, **READS)
SPOILT = dict(data='text', task='denoising', arch='bart_base', mask=0.3, mask_length='span-poisson', poisson_lambda=2.,
              replace_length=1, permute_sentences=1., insert=0.1, rotate=0.5, tokens_per_sample=12, full_stop='a',
              **NARROW)
SAYS = dict(data='classes', task='sentence_prediction', criterion='sentence_prediction', arch='roberta',
            max_positions=16, init_token=0, **READS)
MANY = dict(data='many', task='multilingual_translation', lang_pairs='de-en,en-fr',
            arch='multilingual_transformer', **NARROW)
SAMPLED = dict(data='many', task='translation_multi_simple_epoch', lang_pairs='de-en,en-fr', arch='transformer',
               decoder_langtok=True, share_all_embeddings=True, **NARROW)
CROPPED = dict(shorten_method='random_crop', tokens_per_sample=5)
CASES = {
    'transformer': PAIRS,
    'layers left out': PAIRS | dict(encoder_layerdrop=0.5, decoder_layerdrop=0.5, encoder_layers=3, decoder_layers=3),
    'adaptive softmax': PAIRS | dict(criterion='adaptive_loss', label_smoothing=None, adaptive_softmax_cutoff=[6, 8],
                                     adaptive_softmax_dropout=0.1),
    'computed again': PAIRS | dict(checkpoint_activations=True),
    'R-Drop': PAIRS | dict(criterion='label_smoothed_cross_entropy_with_rdrop', rdrop_alpha=1.),
    'fp16': PAIRS | dict(fp16=True, fp16_init_scale=2**14, fp16_scale_window=3),
    'bf16': PAIRS | dict(bf16=True),
    'cut and turned': PAIRS | dict(truncate_source=True, max_source_positions=6, left_pad_source=False),
    'transformer_align': PAIRS | dict(
        arch='transformer_align', criterion='label_smoothed_cross_entropy_with_alignment', load_alignments=True,
        alignment_layer=0, full_context_alignment=True),
    'from text files': PAIRS | dict(data='.', task='text_translation', source_lang='en', target_lang='de'),
    'fconv': CONVS,
    'lightconv': LIGHT | dict(encoder_conv_type='lightweight', decoder_conv_type='lightweight', weight_dropout=0.1),
    'dynamicconv': LIGHT,
    'lstm': LSTM,
    'lstm of two layers': LSTM | dict(encoder_bidirectional=True, encoder_layers=2, decoder_layers=2),
    'cmlm_transformer': REFINE | dict(arch='cmlm_transformer', noise='random_mask'),
    'nonautoregressive_transformer': REFINE | dict(arch='nonautoregressive_transformer', noise='full_mask',
                                                   src_embedding_copy=True),
    'levenshtein_transformer': REFINE | dict(arch='levenshtein_transformer', noise='random_delete',
                                             early_exit='1,1,1'),
    'blocks of any tokens': TEXT,
    'blocks of lines': TEXT | dict(sample_break_mode='complete'),
    'blocks of documents': TEXT | dict(sample_break_mode='complete_doc'),
    'a line a block': TEXT | dict(sample_break_mode='eos', add_bos_token=True, tokens_per_sample=11),
    'lines cropped': TEXT | CROPPED | dict(sample_break_mode='eos'),
    'folders in turn': TEXT | dict(data='text:more', sample_break_mode='eos'),
    'several losses added': TEXT | dict(update_freq=[2, 1], store_ema=True, ema_decay=0.9),
    'lightconv_lm': TEXT | dict(arch='lightconv_lm', decoder_kernel_size_list=[3]),
    'fconv_lm': dict(data='text', task='language_modeling', arch='fconv_lm', decoder_layers='[(16, 3)] * 2',
                     decoder_embed_dim=16, tokens_per_sample=8),
    'lstm_lm': dict(data='text', task='language_modeling', arch='lstm_lm', decoder_embed_dim=16,
                    decoder_hidden_size=16, decoder_out_embed_dim=16, tokens_per_sample=8),
    'masked_lm': HIDDEN | dict(mask_multiple_length=2, mask_stdev=0.5),
    'masked_lm cropped': HIDDEN | CROPPED | dict(sample_break_mode='eos'),
    'denoising': SPOILT,
    'denoising cropped': SPOILT | CROPPED | dict(sample_break_mode='eos', tokens_per_sample=6),
    'classes': SAYS,
    'classes cropped': SAYS | dict(shorten_method='random_crop', max_positions=5),
    'classes by bart': SAYS | NARROW | dict(arch='bart_base', add_prev_output_tokens=True),
    'classes by a classifier': SAYS | dict(arch='classifier', pooling='attention'),
    'numbers': SAYS | dict(data='numbers', regression_target=True, separator_token=2),
    'ranking': SAYS | dict(data='choices', max_positions=24, task='sentence_ranking', criterion='sentence_ranking'),
    'multilingual_translation': MANY | dict(share_encoders=True),
    'translation_multi_simple_epoch': SAMPLED,
    'virtual epochs': SAMPLED | dict(sampling_method='temperature', sampling_temperature=3., virtual_epoch_size=24),
}


@pytest.mark.parametrize('case', CASES)
def test_stopped_within_two_epochs(data, tmp_path, case):
    settings = {name: value for name, value in CASES[case].items() if value is not None}
    folder = ':'.join(str(data / name) for name in settings.pop('data').split(':'))
    dropout = {} if settings['arch'] == 'fconv_lm' else dict(dropout=0.1)
    settings = dropout | dict(optimizer='adam', lr=[1e-3], batch_size=8, cpu=True, max_epoch=3, num_workers=0,
                              required_batch_size_multiple=1, no_epoch_checkpoints=True) | settings

    def begin(name):
        return make_trainer(folder, save_dir=str(tmp_path / name), **settings)

    unbroken = begin('unbroken')
    told, reason = story(unbroken)
    assert reason == 'max_epoch' and unbroken.num_updates >= 7
    first, reason = story(begin('stopped'), until=2)
    assert reason == 'stopped'
    second, reason = story(begin('stopped'), until=unbroken.num_updates // 2 + 1)
    assert reason == 'stopped'
    last = begin('stopped')
    third, reason = story(last)
    assert reason == 'max_epoch'
    assert first + second + third == told
    assert_equal(unbroken, last)
