"Every flag of fairseq's text commands is here with its default, or is named as not here yet."
import ast
import re
from dataclasses import fields

import pytest

from seqlit.base.config import default_of, flag_of, options_of
from seqlit.cli.fairseq_flags import FAIRSEQ_FLAGS
from seqlit.cli.generate import GENERATE
from seqlit.cli.interactive import INTERACTIVE
from seqlit.cli.preprocess import IgnoredOptions
from seqlit.cli.train import TRAIN

SECTIONS = {'COMMON': TRAIN, 'fairseq-train': TRAIN, 'fairseq-generate': GENERATE, 'fairseq-interactive': INTERACTIVE,
            '--task translation (': TRAIN, '--arch transformer model': TRAIN, 'Optimizer `adam`': TRAIN, 'LR scheduler `fixed`': TRAIN,
            'LR scheduler `inverse_sqrt`': TRAIN, 'Criterion `label_smoothed_cross_entropy` ': TRAIN}
# The default follows another option (None here), as fairseq's architecture functions do; or is a flag of another command's slot.
FOLLOWS = {'--distributed-world-size', '--distributed-num-procs', '--decoder-embed-dim', '--decoder-ffn-embed-dim', '--decoder-output-dim', '--max-tokens-valid', '--batch-size-valid'}


def declared(command, chosen: str = '') -> dict[str, object]:
    "Every spelling of every flag of a command, with its default; the components that `chosen` speaks of come first."
    found = {}
    words = re.findall(r'[\w]+', chosen)
    components = sorted(((slot, name) for slot in command.slots for name in slot.registry), key=lambda pair: pair[1] not in words)
    for group in [*(options_of(slot.settings(name)[0]) for slot, name in components), *command.groups.values()]:
        for f in fields(group):
            for spelling in (flag_of(f.name), *f.metadata['flags']):
                found.setdefault(spelling, default_of(f))
    return found | {spelling: slot.default for slot in command.slots for spelling in (flag_of(slot.flag), *slot.flags)}


def rows(text: str, section: str):
    "Flags, type and default of a table."
    start = text.index('## ' + section)
    for line in text[start:text.index('\n## ', start + 5)].splitlines():
        cells = [cell.strip() for cell in line.split(' | ')]
        if line.startswith('| `-') and len(cells) >= 3:
            yield re.findall(r'`(-[\w-]+)`', cells[0]), cells[1], cells[2].strip('`| ').split('`')[0]


@pytest.mark.parametrize('section', SECTIONS)
def test_defaults_are_fairseqs(shared, section):
    ours, known = declared(SECTIONS[section], section), {flag for flags in FAIRSEQ_FLAGS.values() for flag in flags}
    elsewhere = set(declared(TRAIN)) | set(declared(GENERATE))   # --save-dir means nothing to generate, --bpe nothing to train
    text = (shared/'fairseq'/'flags.md').read_text(encoding='utf-8')
    checked = 0
    for spellings, kind, default in rows(text, section):
        here = [s for s in spellings if s in ours]
        if not here:
            assert any(s in known for s in spellings) or set(spellings) <= elsewhere, spellings
            continue
        assert set(spellings) <= set(ours), f'{spellings}: {set(spellings) - set(ours)} is missing'
        if spellings[0] in FOLLOWS or default.startswith('${'):
            continue
        want = ast.literal_eval(default) if default else None
        have = ours[here[0]]
        if isinstance(have, list):
            want = ast.literal_eval(want) if isinstance(want, str) else want
            want = list(want) if isinstance(want, (tuple, list)) else [want]
        if isinstance(want, tuple):
            want = str(want)
        assert have == want or (have is False and want is None), f'{spellings[0]}: {have!r} here, {want!r} in fairseq'
        checked += 1
    assert checked


def test_what_is_named_as_missing_is_missing():
    have = set().union(*(declared(command) for command in (TRAIN, GENERATE, INTERACTIVE)))
    for topic, flags in FAIRSEQ_FLAGS.items():
        assert not flags & have, (topic, flags & have)
    assert '--tpu' in FAIRSEQ_FLAGS['every command'] and hasattr(IgnoredOptions(), 'fp16')
