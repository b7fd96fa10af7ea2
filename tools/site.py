"""Build the site into _docs/: every notebook with its stored outputs, a page for every module, search.

    python tools/site.py            # build; a broken link, an address outside or a formula that fails ends it
    python tools/site.py --draft    # build in spite of broken links, as while a chapter is being written
    python tools/site.py --serve    # build, then serve on http://127.0.0.1:8000

Nothing is executed. nbdev prepares the notebooks in _proc/, smalldocs makes the pages by _quarto.yml, and
formulas become MathML here, so a page needs nothing from any other host.
"""

import argparse, html, json, re, shutil, subprocess, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import yaml

import api

ROOT = Path(__file__).resolve().parent.parent
PROC, OUT = ROOT / '_proc', ROOT / '_docs'


# Before smalldocs


def stage():
    "Notebooks as nbdev shows them, API pages, and names in backticks linked to those."
    from nbdev.serve import proc_nbs  # not the command nbdev_proc_nbs, which wants Quarto and calls sudo

    shutil.rmtree(PROC, ignore_errors=True)
    proc_nbs(str(ROOT / 'nbs'), force=True, n_workers=1)
    site = yaml.safe_load((ROOT / '_quarto.yml').read_text(encoding='utf-8'))['website']
    modules = api.write(ROOT, PROC / 'api', f"{site['repo-url']}/blob/main")
    places, homes = api.symbols(modules), {module.notebook: f'api/{module.page}' for module in modules}
    for path in PROC.rglob('*.ipynb'):
        nb = json.loads(path.read_text(encoding='utf-8'))
        name = path.relative_to(PROC)
        for cell in nb['cells']:
            prepare(cell, name, places, homes.get(name.as_posix()))
        path.write_text(json.dumps(nb, indent=1, ensure_ascii=False), encoding='utf-8')


def prepare(cell: dict, page: Path, places: dict[str, str], home: str | None):
    "Link the names that a text mentions and another chapter defines; drop front matter that only Quarto reads."
    text = ''.join(cell['source'])

    def link(match):
        place = places.get(match[1], '')
        is_name = match[2] or '_' in match[1] or re.match(r'[A-Z]\w*[a-z]', match[1])
        if not place or not is_name or place.split('#')[0] == home:
            return match[0]
        return f"[{match[0]}]({'../' * (len(page.parts) - 1)}{place})"

    if cell['cell_type'] == 'raw':
        text = re.sub(r'^output-file: .*\n', '', text, flags=re.M)
    if cell['cell_type'] == 'markdown':
        blocks = re.split(r'(^```.*?^```)', text, flags=re.M | re.S)
        name = re.compile(r'(?<![\[`\w])`([A-Za-z_][\w.]*)(\(\))?`(?![`\]])')
        text = ''.join(block if i % 2 else name.sub(link, block) for i, block in enumerate(blocks))
    cell['source'] = text


# After smalldocs


class Page(HTMLParser):
    "What a page links to, what it loads, and which places in it can be linked to."

    def __init__(self, text: str):
        super().__init__()
        self.links, self.loads, self.ids = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[key] for key in ('id', 'name') if given.get(key)}
        if tag in ('a', 'area') and given.get('href'):
            self.links.append(given['href'])
        elif tag == 'link' and given.get('href') and given.get('rel') != 'canonical':
            self.loads.append(given['href'])
        for key in ('src', 'poster', 'data'):
            if given.get(key):
                self.loads.append(given[key])
        if given.get('srcset'):
            self.loads += [part.split()[0] for part in given['srcset'].split(',') if part.strip()]


def draw_formulas(text: str, page: str) -> str:
    "TeX as MathML, which browsers draw by themselves."
    from latex2mathml.converter import convert

    def draw(match):
        tex = html.unescape(match[2]).strip()
        drawn = convert(tex[2:-2].strip(), display='block' if match[1] == 'display' else 'inline')
        drawn = drawn.replace('\\_', '_')  # in \text and \texttt it is left as it was
        shown = html.unescape(re.sub(r'<[^>]+>', '', drawn))
        if '\\' in shown:
            sys.exit(f'site: {page}: this formula has a command that latex2mathml does not know: {tex}')
        return f'<span class="math {match[1]}">{drawn}</span>'

    text = re.sub(r'<(?:script|link)[^>]*katex[^>]*>(?:</script>)?', '', text)
    return re.sub(r'<span class="math (inline|display)">(.*?)</span>', draw, text, flags=re.S)


def number_chapters(text: str) -> str:
    "Chapter numbers in the sidebar: they are the order in which the book may be read, and in which it imports."
    return re.sub(
        r'(<a href="(?:[^"]*/)?(\d{3})_[^"/]*\.html" class="sidebar-item-text[^>]*><span class="menu-text">)',
        r'\1<span class="chapter-number">\2</span> ',
        text,
    )


def finish(site: Path):
    "Formulas, chapter numbers, and no font from elsewhere."
    for path in site.rglob('*.html'):
        text = path.read_text(encoding='utf-8')
        path.write_text(
            number_chapters(draw_formulas(text, path.relative_to(site).as_posix())), encoding='utf-8'
        )
    for path in site.rglob('*.css'):
        text = path.read_text(encoding='utf-8')
        path.write_text(re.sub(r'@import url\([^)]*\)[^;]*;', '', text), encoding='utf-8')


def faults(site: Path) -> list[str]:
    "Broken links, things loaded from elsewhere, and notebooks without a page."
    pages = {path.resolve(): Page(path.read_text(encoding='utf-8')) for path in site.rglob('*.html')}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve()).as_posix()
        for target in dict.fromkeys(page.links + page.loads):
            scheme = urlsplit(target).scheme
            if scheme in ('http', 'https') or target.startswith('//'):
                if target in page.loads:
                    found.append(f'{name} loads {target}')
            elif scheme not in ('mailto', 'data', 'javascript'):
                where, place = urldefrag(target)
                file = (path.parent / unquote(urlsplit(where).path)).resolve() if where else path
                if file.is_dir():
                    file = file / 'index.html'
                if not file.exists():
                    found.append(f'{name}: nothing is at {target}')
                elif place and file in pages and unquote(place) not in pages[file].ids:
                    found.append(f'{name}: no such place on the page: {target}')
    for path in site.rglob('*.css'):
        for target in re.findall(
            r'url\(["\']?([^)"\']+)|@import ["\']([^"\']+)', path.read_text(encoding='utf-8')
        ):
            if re.match(r'(https?:)?//', ''.join(target)):
                found.append(f'{path.relative_to(site)} loads {"".join(target)}')
    for path in (ROOT / 'nbs').rglob('*.ipynb'):
        inside = path.relative_to(ROOT / 'nbs')
        if any(part[0] in '_.' for part in inside.parts):
            continue
        if not (site / inside.with_suffix('.html')).exists():
            found.append(f'{inside} has no page')
    return found


def build(is_draft: bool):
    "The whole site."
    stage()
    done = subprocess.run(
        [sys.executable, '-m', 'smalldocs.cli', 'render', str(PROC)],
        capture_output=True,
        text=True,
        encoding='utf-8',
    )
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    finish(PROC / '_docs')
    told = [line for line in done.stderr.splitlines() if ': broken link ' not in line]
    found = [line for line in told if not line.startswith('wrote ')] + faults(PROC / '_docs')
    for line in found:
        print(f'site: {line}', file=sys.stderr)
    if found and not is_draft:
        sys.exit(f'site: {len(found)} faults, so _docs/ is left as it was')
    shutil.rmtree(OUT, ignore_errors=True)
    shutil.move(PROC / '_docs', OUT)
    shutil.rmtree(PROC)
    print(f"{OUT.name}/: {len(list(OUT.rglob('*.html')))} pages")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--draft', action='store_true', help='tell of faults, but build')
    parser.add_argument('--serve', action='store_true', help='serve the site afterwards')
    args = parser.parse_args()
    if sys.version_info < (3, 11):
        sys.exit('site: smalldocs needs Python 3.11 or newer')
    build(args.draft)
    if args.serve:
        subprocess.run(
            [sys.executable, '-m', 'http.server', '8000', '--bind', '127.0.0.1', '--directory', str(OUT)]
        )


if __name__ == '__main__':
    main()  # the guard matters: proc_nbs starts processes
