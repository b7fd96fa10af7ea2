"`seqlit demo`: it learns what it should, and the commands that it prints are the ones that it ran."
import os
import re
import shutil
import subprocess
import sys

import pytest

from seqlit.cli.demo import FILES

SMALL = ['--pairs', '5000', '--held-out', '100', '--max-update', '600']


def run(words, cwd, **how):
    "Run a seqlit command of this checkout in a process of its own."
    program = 'import sys; from seqlit.cli.main import main; sys.exit(main(sys.argv[1:]))'
    return subprocess.run([sys.executable, '-c', program, *words], cwd=cwd, capture_output=True, text=True, encoding='utf-8',
                          timeout=600, **how)


@pytest.fixture(scope='module')
def environment(root):
    paths = os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))
    return os.environ | {'PYTHONPATH': paths, 'OMP_NUM_THREADS': '1', 'PYTHONIOENCODING': 'utf-8'}


@pytest.fixture(scope='module')
def demo(tmp_path_factory, environment):
    "A short demo: its folder, and what it printed."
    place = tmp_path_factory.mktemp('demo')
    done = run(['demo', '--keep', 'numbers', *SMALL], place, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ''
    return place, done.stdout


def test_unseen_numbers_are_right(demo):
    place, printed = demo
    right, total = map(int, re.search(r'(\d+) of (\d+) unseen numbers are right', printed).groups())
    assert total == 100 and right > 95
    read = {split: set((place/f'numbers/text/{split}.de').read_text(encoding='utf-8').splitlines()) for split in ('train', 'valid', 'test')}
    assert len(set.union(*read.values())) == 5200, 'a number is in two sets'


def test_what_it_leaves(demo):
    place, printed = demo
    for name in FILES:
        assert (place/'numbers'/name).exists() and name in printed
    for name in ('loss.png', 'attention.png'):
        assert (place/'numbers'/name).read_bytes().startswith(b'\x89PNG')
    assert printed.count('reference  ') == 6


def test_the_printed_commands_make_the_same_files(demo, environment, tmp_path):
    "Everything that the demo printed, typed into a shell in another place."
    if shutil.which('bash') is None: pytest.skip('needs bash')
    place, printed = demo
    commands = [line.removeprefix('$ ') for line in printed.replace('\\\n', '').splitlines() if line.startswith('$ ')]
    assert [re.match(r'[\w-]+', c)[0] for c in commands] == ['seqlit-preprocess', 'seqlit-train', 'seqlit-generate', 'grep', 'grep', 'seqlit-score']
    ask, = [line.strip() for line in printed.splitlines() if '| seqlit-interactive' in line]
    folder = tmp_path/'bin'
    folder.mkdir()
    for name in ('preprocess', 'train', 'generate', 'interactive', 'score'):
        program = f'import sys; from seqlit.cli.main import main; sys.exit(main(["{name}", *sys.argv[1:]]))'
        (folder/f'seqlit-{name}').write_text(f"#!/bin/sh\nexec '{sys.executable}' -c '{program}' \"$@\"\n")
        (folder/f'seqlit-{name}').chmod(0o755)
    shutil.copytree(place/'numbers/text', tmp_path/'numbers/text')
    environment = environment | {'PATH': f'{folder}{os.pathsep}{os.environ["PATH"]}'}
    for command in commands:
        done = subprocess.run(['bash', '-ec', command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f'{command}\n{done.stdout}\n{done.stderr}'
    assert all(line in printed for line in done.stdout.splitlines()), 'another score'
    same = [path.relative_to(place) for path in (place/'numbers').rglob('*') if path.suffix in ('.bin', '.idx', '.txt', '.sys', '.ref')]
    assert len(same) == 12 + 2 + 1 + 2
    for path in same:
        assert (place/path).read_bytes() == (tmp_path/path).read_bytes(), path
    told = subprocess.run(['bash', '-ec', ask], cwd=tmp_path, env=environment, capture_output=True, text=True, encoding='utf-8', timeout=600)
    assert 'siebenhundertfünfundsechzig' in told.stdout, told.stdout + told.stderr


def test_a_folder_with_something_in_it_is_not_touched(tmp_path, environment):
    (tmp_path/'mine.txt').write_text('precious')
    done = run(['demo', '--keep', '.'], tmp_path, env=environment)
    assert done.returncode == 2 and done.stderr.count('\n') == 1
    assert 'nothing of yours is touched' in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['mine.txt']
