"""Write README.md from nbs/index.ipynb, and the front page's map of the book from the chapters.

python tools/readme.py             # write both
python tools/readme.py --check     # write nothing; exit 1 when either is out of date
"""

import argparse, json, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INDEX, README = ROOT / 'nbs' / 'index.ipynb', ROOT / 'README.md'
MAP = '## The map of the book'
PARTS = {
    'guides': 'start here: whole runs, from text to translations',
    'base': 'a name becomes an object; one declaration is the flag, the help text and the record',
    'data': 'a corpus is one long array and a list of offsets; a batch is a budget of tokens',
    'nn': 'the decoder\'s memory is the idea, attention its first customer',
    'models': 'encoder and decoder as a contract, and many kinds of memory that fulfil it',
    'search': 'from scores to sentences: beams, dice, phrases that must appear; and how good they are',
    'train': 'the loop, and everything that it needs to continue bit for bit',
    'tasks': 'the object that knows which data, model and loss belong together',
    'show': 'pictures of what the code does',
    'hub': 'a trained model, ready to translate',
    'cli': 'each command is a short function that returns objects',
}


def book_map() -> str:
    "A table of the parts with their chapters, for the front page."
    chapters = sorted(
        (path for path in (ROOT / 'nbs').rglob('[0-9]*.ipynb') if '.ipynb_checkpoints' not in path.parts),
        key=lambda path: path.name,
    )
    unknown = {path.parent.name for path in chapters} - PARTS.keys()
    if unknown:
        sys.exit(f'readme: tell in PARTS what these folders are about: {", ".join(sorted(unknown))}')
    rows = []
    for part, about in PARTS.items():
        names = [path.stem.split('_', 1) for path in chapters if path.parent.name == part]
        links = ', '.join(f'{number}\u00a0[{name}]({part}/{number}_{name}.ipynb)' for number, name in names)
        if names:
            rows.append(f'| **{part}** | {about} | {links} |')
    return (
        f'{MAP}\n\nA chapter is a module: `data/100_dictionary` is `seqlit.data.dictionary`. The numbers are the order '
        'in which they may be read, and in which they import.\n\n| part | what you get | chapters |\n|---|---|---|\n'
        + '\n'.join(rows)
    )


def with_map(nb: dict) -> dict:
    "The front page with today's map."
    for cell in nb['cells']:
        if ''.join(cell['source']).startswith(MAP):
            cell['source'] = book_map().splitlines(True)
    return nb


def readme(nb: dict) -> str:
    "The front page as Markdown, with links as seen from the repository's root."
    parts = []
    for cell in nb['cells']:
        text = ''.join(cell['source']).strip()
        if not text or re.match(r'#\s*\|\s*hide\b', text):
            continue
        if cell['cell_type'] == 'markdown':
            text = re.sub(r'\]\((?!\w+:|#|/)', '](nbs/', text)
            parts.append(re.sub(r'^> (.*)$', r'_\1_', text, flags=re.M))
            continue
        parts.append('```python\n' + re.sub(r'^#\|.*\n', '', text, flags=re.M) + '\n```')
        for out in cell['outputs']:
            shown = out.get('text') or out.get('data', {}).get('text/plain')
            if shown and not any(kind.startswith('image/') for kind in out.get('data', {})):
                parts.append('```\n' + ''.join(shown).rstrip() + '\n```')
    return '\n\n'.join(parts) + '\n'


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--check', action='store_true', help='write nothing, exit 1 when something is out of date'
    )
    args = parser.parse_args()
    nb = with_map(json.loads(INDEX.read_text(encoding='utf-8')))
    wanted = {INDEX: json.dumps(nb, sort_keys=True, indent=1, ensure_ascii=False) + '\n', README: readme(nb)}
    for path, text in wanted.items():
        if path.exists() and path.read_text(encoding='utf-8') == text:
            continue
        if args.check:
            sys.exit(
                f'readme: {path.relative_to(ROOT).as_posix()} is out of date; run python tools/readme.py'
            )
        path.write_text(text, encoding='utf-8', newline='\n')


if __name__ == '__main__':
    main()
