"Small runs for the tests of training flags: a corpus, a command line, and what happened."
from dataclasses import dataclass
from pathlib import Path

from seqlit.cli.common import named_file, parse, resolve
from seqlit.cli.preprocess import main as preprocess
from seqlit.cli.train import TRAIN, build_trainer
from seqlit.train.events import EpochStart, Event, Saved, Skipped, Stopped, Update, Validated
from seqlit.train.trainer import Trainer

WORDS = dict(one='eins', two='zwei', three='drei', four='vier', five='fünf', six='sechs', seven='sieben', eight='acht')
SIZES = ['--encoder-layers', '1', '--decoder-layers', '1', '--encoder-embed-dim', '16', '--encoder-ffn-embed-dim', '16',
         '--encoder-attention-heads', '2', '--decoder-attention-heads', '2', '--dropout', '0.1']
SMALL = ['--arch', 'transformer_tiny', *SIZES, '--optimizer', 'adam', '--lr', '0.01', '--batch-size', '8', '--num-workers', '0', '--cpu',
         '--no-progress-bar', '--log-format', 'none']


def make_data(folder: Path, sets: dict[str, int], words: dict = WORDS) -> Path:
    "A data folder: German numbers are English ones backwards; `sets`: how many sentences each has."
    text, data = folder/'text', folder/'data'
    text.mkdir(parents=True)
    names = list(words)
    flags = []
    for seed, (name, count) in enumerate(sets.items()):
        rows = [[names[(i*k + i//3 + seed) % len(names)] for k in range(1, 2 + (i + seed) % 4)] for i in range(count)]
        (text/f'{name}.en').write_text(''.join(' '.join(row) + '\n' for row in rows), encoding='utf-8')
        (text/f'{name}.de').write_text(''.join(' '.join(words[w] for w in reversed(row)) + '\n' for row in rows), encoding='utf-8')
    valid = ','.join(str(text/name) for name in sets if name.startswith('valid'))
    flags = ['-s', 'en', '-t', 'de', '--trainpref', str(text/'train'), '--destdir', str(data)]
    if valid: flags += ['--validpref', valid]
    if 'test' in sets: flags += ['--testpref', str(text/'test')]
    assert preprocess(flags) == 0
    return data


@dataclass
class Run:
    "What a run told, and its trainer."
    trainer: Trainer
    events: list[Event]

    def of(self, kind: type) -> list[Event]: return [event for event in self.events if isinstance(event, kind)]

    @property
    def updates(self) -> list[Update]: return self.of(Update)

    @property
    def losses(self) -> list[tuple]:
        "All values of all updates: two equal runs have the same."
        return [(event.num_updates, event.values) for event in self.updates]

    @property
    def validations(self) -> list[tuple[int, str]]: return [(event.num_updates, event.subset) for event in self.of(Validated)]

    @property
    def saves(self) -> list[int]: return [event.num_updates for event in self.of(Saved)]

    @property
    def epochs(self) -> list[int]: return [event.epoch for event in self.of(EpochStart)]

    @property
    def reason(self) -> str: return self.events[-1].reason


def trainer_of(data: Path, folder: Path, *words) -> Trainer:
    "The trainer of a command line; of two equal flags the later one counts."
    argv = [str(data), *SMALL, '--save-dir', str(folder), *map(str, words)]
    file = named_file(argv)
    return build_trainer(resolve(TRAIN, parse(TRAIN, argv, file), file))


def run(data: Path, folder: Path, *words, until: int | None = None) -> Run:
    "Train to the end; with `until`, ask for the end at that update."
    trainer, events = trainer_of(data, folder, *words), []
    for event in trainer.run():
        events.append(event)
        if isinstance(event, Update) and event.num_updates == until: trainer.stop()
    assert isinstance(events[-1], Stopped)
    return Run(trainer, events)
