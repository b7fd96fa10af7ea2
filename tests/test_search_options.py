"Every option of the search through the commands and from Python; what is found never depends on the batch."
import contextlib
import io
import logging
import math

import pytest
import torch

from seqlit.cli.generate import generate, main as generate_main
from seqlit.cli.interactive import main as interactive_main
from seqlit.cli.preprocess import PreprocessOptions, preprocess
from seqlit.cli.train import make_trainer
from seqlit.hub.translator import Translator
from seqlit.train.loggers import follow

WORDS = dict(one='eins', two='zwei', three='drei', four='vier', five='fünf', six='sechs')
LINES = [f'{a} {b} {c}' for a in WORDS for b in WORDS for c in WORDS]
TEST = ['two', 'one one', *LINES[4::17], 'one two three four five', 'six five', 'seven one two']
TINY = dict(optimizer='adam', lr=4e-3, dropout=0., max_tokens=300, no_epoch_checkpoints=True, cpu=True, num_workers=0,
            disable_validation=True)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder with data, two translation models of different kinds and a language model of the target."
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp('options')
    for split, chosen in dict(train=LINES, valid=LINES[::9], test=TEST).items():
        backwards = [' '.join(WORDS.get(word, 'x') for word in reversed(line.split())) for line in chosen]
        (folder/f'{split}.en').write_text('\n'.join(chosen) + '\n', encoding='utf-8')
        (folder/f'{split}.de').write_text('\n'.join(backwards) + '\n', encoding='utf-8')
    data = folder/'data'
    preprocess(PreprocessOptions(source_lang='en', target_lang='de', trainpref=str(folder/'train'), validpref=str(folder/'valid'),
                                 testpref=str(folder/'test'), destdir=str(data)))
    preprocess(PreprocessOptions(only_source=True, trainpref=str(folder/'train.de'), srcdict=str(data/'dict.de.txt'),
                                 destdir=str(folder/'text')))
    for name, arch, more in [('a', 'transformer_tiny', {}), ('b', 'lstm', dict(
            encoder_embed_dim=32, encoder_hidden_size=32, decoder_embed_dim=32, decoder_hidden_size=32, decoder_out_embed_dim=32))]:
        follow(make_trainer(data, arch=arch, save_dir=str(folder/name), max_epoch=12, **TINY, **more))
    follow(make_trainer(folder/'text', task='language_modeling', arch='transformer_lm', save_dir=str(folder/'lm'), max_epoch=1,
                        decoder_embed_dim=16, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_embed_dim=32,
                        tokens_per_sample=32, **TINY))
    return folder


def checkpoint(place, name: str = 'a') -> str:
    "One of the three models."
    return str(place/name/'checkpoint_last.pt')


def run(main, *words) -> list[str]:
    "What a command prints."
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as told:
        code = main([*map(str, words), '--cpu'])
    logging.getLogger().handlers.clear()
    assert code == 0, told.getvalue()
    return out.getvalue().splitlines()


def printed(place, *flags, path: str | None = None) -> list[str]:
    "What `generate` prints."
    return run(generate_main, place/'data', '--path', path or checkpoint(place), '--no-progress-bar', *flags)


def typed(place, lines: list[str], *flags) -> list[str]:
    "What `interactive` prints."
    (place/'typed').write_text('\n'.join(lines) + '\n', encoding='utf-8')
    found = run(interactive_main, place/'data', '--path', checkpoint(place), '--input', place/'typed', *flags)
    return [line for line in found if line[0] != 'W']


def marked(lines: list[str], mark: str) -> list[str]:
    "The last field of the lines with a mark."
    return [line.split('\t')[-1] for line in lines if line.startswith(f'{mark}-')]


def assert_same(one: list, other: list):
    "Texts equal, scores within 1e-4."
    assert [t.id for t in one] == [t.id for t in other]
    for a, b in zip(one, other):
        assert a.outputs == b.outputs, a.id
        for x, y in zip(a.hypotheses, b.hypotheses):
            assert x.score == pytest.approx(y.score, abs=1e-4)
            assert x.positional_scores.tolist() == pytest.approx(y.positional_scores.tolist(), abs=1e-4)


ASKED = [dict(sampling=True), dict(sampling=True, sampling_topk=3), dict(sampling=True, sampling_topp=.8, temperature=1.5),
         dict(diverse_beam_groups=5), dict(diverse_beam_groups=1, diverse_beam_strength=2.), dict(diversity_rate=.4),
         dict(match_source_len=True), dict(min_len=4, max_len_a=.5, max_len_b=3), dict(min_len_a=1.5, min_len=0),
         dict(repetition_penalty=1.7), dict(no_repeat_ngram_size=1), dict(prefix_size=1), dict(constraints='ordered'),
         dict(constraints='unordered'), dict(lm=.4), dict(ensemble=True), dict(ensemble=True, print_alignment='soft'),
         dict(replace_unk='', unkpen=-20., print_alignment='hard', max_len_b=6), dict(print_step=True, retain_iter_history=True)]


@pytest.mark.parametrize('asked', ASKED, ids=str)
def test_batch_1_equals_batch_64(place, asked):
    asked = dict(asked)
    path = checkpoint(place)
    if asked.pop('ensemble', False):
        path = f'{path}:{checkpoint(place, "b")}'
    if 'lm' in asked:
        asked |= dict(lm_path=checkpoint(place, 'lm'), lm_weight=asked.pop('lm'))
    if 'constraints' in asked:
        (place/'phrases').write_text('vier\n\n' + 'sechs eins\tzwei\n\n' * 8)
        asked['constraints_file'] = str(place/'phrases')
    asked = dict(beam=5, nbest=5, cpu=True) | asked
    alone = generate(place/'data', path, batch_size=1, **asked).translations
    together = generate(place/'data', path, batch_size=64, **asked).translations
    assert [t.id for t in alone] == list(range(len(TEST)))
    assert_same(alone, together)
    assert [list(t.lines())[-2:][0][:2] for t in alone] == [list(t.lines())[-2:][0][:2] for t in together]


def test_each_option_changes_something(place):
    plain = marked(printed(place, '--nbest', 5), 'H')
    for flags in ('--sampling', '--sampling --sampling-topk 2 --temperature 3', '--diverse-beam-groups 5', '--diversity-rate 1',
                  '--min-len 5', '--min-len-a 2', '--max-len-b 2', '--match-source-len', '--repetition-penalty 3 --min-len 5',
                  '--no-repeat-ngram-size 1', f'--lm-path {checkpoint(place, "lm")} --lm-weight 2', '--unkpen -20 --max-len-b 5'):
        assert marked(printed(place, '--nbest', 5, *flags.split()), 'H') != plain, flags
    one_group = printed(place, '--nbest', 5, '--diverse-beam-groups', 1)
    assert marked(one_group, 'H') == plain
    no_weight = printed(place, '--nbest', 5, '--lm-path', checkpoint(place, 'lm'))
    assert marked(no_weight, 'H') == plain


def test_samples_come_from_the_seed_and_are_scored_truly(place):
    flags = ('--sampling', '--beam', 3, '--nbest', 3, '--sampling-topp', .9)
    first = printed(place, *flags, '--seed', 7)
    assert first == printed(place, *flags, '--seed', 7)
    assert marked(first, 'H') == marked(printed(place, *flags, '--seed', 7, '--batch-size', 2), 'H')
    assert marked(first, 'H') != marked(printed(place, *flags, '--seed', 8), 'H')
    torch.manual_seed(7)
    lines = LINES[:6]
    translator = Translator.load(checkpoint(place), sampling=True, beam=3, nbest=3)
    found = translator.translate_all(lines)
    scorer = translator.models[0]
    for translation in found:
        for hypothesis in translation.hypotheses:
            tokens = hypothesis.tokens
            source = torch.tensor(translator.task.source_dictionary.encode_line(translation.source))[None]
            before = torch.cat([torch.tensor([2]), tokens[:-1]])[None]
            with torch.inference_mode():
                log_probs = scorer(source, torch.tensor([source.size(1)]), before)[0][0].log_softmax(1)
            steps = log_probs.gather(1, tokens[:, None])[:, 0]
            assert hypothesis.positional_scores.tolist() == pytest.approx(steps.tolist(), abs=1e-4)


def test_interactive_numbers_run_on(place):
    lines = ['one two three', 'four', 'one two three', 'six two']
    flags = ('--sampling', '--beam', 2, '--nbest', 2, '--temperature', 2)
    each = typed(place, lines, *flags)
    assert marked(each, 'H') == marked(typed(place, lines, *flags, '--buffer-size', 4, '--batch-size', 4), 'H')
    samples = [[line.split('\t')[-1] for line in each if line.startswith(f'H-{i}\t')] for i in (0, 2)]
    assert samples[0] != samples[1]   # the same sentence under another number throws other dice


@pytest.mark.parametrize('kind', ['ordered', 'unordered'])
def test_constraints_everywhere(place, kind):
    lines = ['one two three\tvier\teins', 'four\t', 'five six', 'one\tsechs sechs zwei']
    shown = typed(place, lines, '--constraints', kind)
    assert [line for line in shown if line[0] == 'C'] == ['C-0\tvier', 'C-0\teins', 'C-3\tsechs sechs zwei']
    outputs = marked(shown, 'D')
    plain = marked(typed(place, [line.split('\t')[0] for line in lines]), 'D')
    assert outputs[1:3] == plain[1:3]
    assert 'sechs sechs zwei' in outputs[3] and 'vier' in outputs[0] and 'eins' in outputs[0]
    if kind == 'ordered':
        assert outputs[0].index('vier') < outputs[0].rindex('eins')
    translator = Translator.load(checkpoint(place), constraints=kind)
    asked = [[phrase for phrase in line.split('\t')[1:]] for line in lines]
    assert translator.translate([line.split('\t')[0] for line in lines], constraints=asked) == outputs
    (place/'wishes').write_text('sechs\n' + '\n' * (len(TEST) - 1))
    found = printed(place, '--constraints', kind, '--constraints-file', place/'wishes')
    assert 'sechs' in marked(found, 'D')[0] and marked(found, 'C') == ['sechs']
    assert marked(found, 'D')[1:] == marked(printed(place), 'D')[1:]


def test_a_function_allows_words(place):
    translator = Translator.load(checkpoint(place), beam=3)
    writes, asked = translator.task.target_dictionary, []

    def only_even_words(sentence, tokens):
        asked.append(sentence)
        return [writes.index(word) for word in ('zwei', 'vier', 'sechs')] + ([writes.eos()] if len(tokens) > 2 else [])
    translator.generator.prefix_allowed_tokens_fn = only_even_words
    outputs = translator.translate(['one two three', 'five', 'six one'])
    assert {word for line in outputs for word in line.split()} <= {'zwei', 'vier', 'sechs'}
    assert all(len(line.split()) >= 2 for line in outputs) and set(asked) == {0, 1, 2}
    translator.generator.prefix_allowed_tokens_fn = None
    assert translator.translate('one two three') == 'drei zwei eins'


def test_language_model_fusion_is_a_sum(place):
    translator = Translator.load(checkpoint(place), lm_path=checkpoint(place, 'lm'), lm_weight=.5, unnormalized=True)
    best = translator.translate_all(['four six one'])[0].hypotheses[0]
    before = torch.cat([torch.tensor([2]), best.tokens[:-1]])[None]
    source = torch.tensor(translator.task.source_dictionary.encode_line('four six one'))[None]
    with torch.inference_mode():
        mine = translator.models[0](source, torch.tensor([4]), before)[0].log_softmax(2)
        lm = translator.generator.language_model(before)[0].log_softmax(2)
    steps = (mine + .5 * lm)[0].gather(1, best.tokens[:, None])[:, 0]
    assert best.positional_scores.tolist() == pytest.approx(steps.tolist(), abs=1e-4)
    assert best.score == pytest.approx(steps.sum().item(), abs=1e-4)


def test_unknown_words_are_replaced(place):
    flags = ('--unkpen', '-100', '--max-len-b', 3)
    assert '<unk>' in marked(printed(place, *flags), 'H')[-1]
    binarised = marked(printed(place, *flags, '--replace-unk', '--print-alignment'), 'H')
    assert binarised[0].split()[0] == 'two' and '<unk>' not in binarised[0]
    (place/'lexicon').write_text('two ZWEI\nseven SIEBEN\n')
    with_words = printed(place, *flags, '--replace-unk', place/'lexicon')
    assert marked(with_words, 'H')[0].split()[0] == 'ZWEI' and not marked(with_words, 'A')
    shown = typed(place, ['seven seven'], *flags, '--replace-unk')
    assert marked(shown, 'H')[0].split()[0] == 'seven'   # typed text still has the word that no dictionary knows
    assert marked(shown, 'S') == ['<unk> <unk>']


def test_steps_and_history(place):
    found = printed(place, '--print-step', '--retain-iter-history', '--beam', 2)
    assert [int(n) for n in marked(found, 'I')] == [len(p.split()) for p in marked(found, 'P')]
    leaders = [line for line in found if line.startswith('E-0_')]
    assert leaders and leaders[0].startswith('E-0_0\t')
    assert not marked(printed(place, '--beam', 2), 'I')


def test_shards_put_together_equal_the_whole(place):
    whole = printed(place, '--batch-size', 4)[:-1]
    for shards in (2, 3, 7):
        parts = [printed(place, '--batch-size', 4, '--num-shards', shards, '--shard-id', i)[:-1] for i in range(shards)]
        assert all(parts[:2])
        joined = sorted((line for part in parts for line in part), key=lambda line: int(line[2:].split('\t')[0]))
        assert joined == whole, shards


def test_ensembles_of_different_kinds(place, tmp_path):
    both = f'{checkpoint(place)}:{checkpoint(place, "b")}'
    found = printed(place, path=both)
    assert len(marked(found, 'H')) == len(TEST)
    assert marked(found, 'P') != marked(printed(place), 'P')
    preprocess(PreprocessOptions(source_lang='en', target_lang='de', trainpref=str(place/'train'), padding_factor=50,
                                 destdir=str(tmp_path/'data')))
    follow(make_trainer(tmp_path/'data', arch='transformer_tiny', save_dir=str(tmp_path/'c'), max_update=1, **TINY))
    with contextlib.redirect_stderr(io.StringIO()) as told:
        assert generate_main([str(place/'data'), '--cpu', '--path', f'{checkpoint(place)}:{tmp_path}/c/checkpoint_last.pt']) == 2
    logging.getLogger().handlers.clear()
    assert 'vocabulary an ensemble must share' in told.getvalue()


def test_wishes_that_do_not_go_together(place):
    for flags, why in [('--sampling', 'make the two equal'), ('--diverse-beam-groups 2', 'equal groups'),
                       ('--constraints --sampling --nbest 5', 'exclude each other'), ('--sampling-topk 5', 'need --sampling'),
                       ('--constraints', '--constraints-file'), (f'--lm-path {checkpoint(place)}', 'not a language model'),
                       ('--constraints-file x', 'needs --constraints'), ('--repetition-penalty 0', 'must be above 0')]:
        with contextlib.redirect_stderr(io.StringIO()) as told:
            assert generate_main([str(place/'data'), '--path', checkpoint(place), '--cpu', *flags.split()]) == 2, flags
        logging.getLogger().handlers.clear()
        assert why in told.getvalue(), (flags, told.getvalue())


def test_an_output_that_cannot_hold_its_constraints_ends_with_a_warning(place, caplog):
    translator = Translator.load(checkpoint(place), max_len_b=2)
    with caplog.at_level(logging.WARNING):
        found = translator.translate_all(['one two three'], constraints=[['sechs fünf vier']])[0]
    assert len(found.outputs) == 1 and math.isfinite(found.hypotheses[0].score)
    assert 'sentence 0: the longest output was reached' in caplog.text
