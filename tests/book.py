"The notebooks as the tests see them: cells, what they export, import, define and show."

import ast
import io
import json
import re
import tokenize
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / 'nbs'
DIRECTIVE = re.compile(r'#\s*\|\s*(\S+)\s*(.*)')


@dataclass
class Cell:
    "One cell; `number` counts from 1 as the reports of tools/exec_nbs.py do."

    number: int
    kind: str
    source: str
    outputs: list = field(default_factory=list)

    @cached_property
    def directives(self) -> dict[str, str]:
        found = {}
        for line in self.source.splitlines():
            match = DIRECTIVE.match(line.strip())
            if match:
                found[match[1].rstrip(':')] = match[2].strip()
            elif line.strip():
                break
        return found

    @cached_property
    def python(self) -> str:
        "The code with IPython's own `%` and `!` lines left empty."
        return re.sub(r'^[ \t]*[%!].*$', '', self.source, flags=re.M)

    @cached_property
    def tree(self) -> ast.Module:
        "The parsed code."
        return ast.parse(self.python)

    @property
    def is_code(self) -> bool:
        return self.kind == 'code'

    @property
    def is_exported(self) -> bool:
        return self.is_code and any(d.startswith('export') for d in self.directives)

    @property
    def is_hidden(self) -> bool:
        return 'hide' in self.directives

    @cached_property
    def lines(self) -> list[str]:
        "The code without its directives."
        return self.source.splitlines()[len(self.directives) :]

    @cached_property
    def comments(self) -> dict[int, str]:
        "The comment of each line that has one."
        tokens = tokenize.generate_tokens(io.StringIO(self.python).readline)
        return {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}

    @cached_property
    def names(self) -> set[str]:
        "Every identifier that the cell mentions."
        nodes = list(ast.walk(self.tree))
        found = {n.id for n in nodes if isinstance(n, ast.Name)} | {
            n.attr for n in nodes if isinstance(n, ast.Attribute)
        }
        return found | {k.arg for k in nodes if isinstance(k, ast.keyword) and k.arg}

    @cached_property
    def asserts(self) -> bool:
        "Whether the cell tests something."
        calls = {
            n.func.id for n in ast.walk(self.tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        }
        tests = {
            name
            for name in calls
            if name.startswith('test_') or name in ('expect_fail', 'ExceptionExpected', 'raises')
        }
        return bool(tests) or any(isinstance(n, ast.Assert) for n in ast.walk(self.tree))

    @property
    def shows(self) -> bool:
        "Whether a reader of the page sees output of this cell."
        return self.is_code and bool(self.outputs) and not self.is_hidden

    @cached_property
    def shown_text(self) -> str:
        "All text in the stored outputs."
        found = []
        for out in self.outputs:
            found += [out.get('text', ''), out.get('evalue', '')]
            found += [
                text for kind, text in out.get('data', {}).items() if kind.startswith(('text/', 'image/svg'))
            ]
        return '\n'.join(''.join(text) for text in found)

    @property
    def images(self) -> int:
        return sum(any(k.startswith('image/') for k in o.get('data', {})) for o in self.outputs)


@dataclass
class Notebook:
    path: Path
    cells: list[Cell] = field(repr=False)

    @property
    def name(self) -> str:
        return self.path.relative_to(NBS).as_posix() if self.path.is_relative_to(NBS) else self.path.name

    @property
    def number(self) -> int | None:
        match = re.match(r'(\d+)_', self.path.name)
        return int(match[1]) if match else None

    @property
    def code(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.is_code]

    @property
    def exported(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.is_exported]

    @cached_property
    def module(self) -> str | None:
        "The module that this notebook becomes, as it is imported: 'seqlit.data.dictionary'."
        found = [cell.directives['default_exp'] for cell in self.code if 'default_exp' in cell.directives]
        return f'seqlit.{found[0]}' if found else None

    @cached_property
    def definitions(self) -> list['Definition']:
        "The public functions, classes and patched methods that it exports, in order."
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        return [
            Definition(self, cell, node)
            for cell in self.exported
            for node in cell.tree.body
            if isinstance(node, kinds) and not node.name.startswith('_')
        ]


@dataclass
class Definition:
    notebook: Notebook
    cell: Cell
    node: ast.FunctionDef | ast.ClassDef

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def is_patch(self) -> bool:
        return any('patch' in ast.unparse(d) for d in self.node.decorator_list)

    @property
    def where(self) -> str:
        return f'{self.notebook.name} cell {self.cell.number}: {self.name}'

    def following(self, count: int) -> list[Cell]:
        "The code cells after this one's; the prose between them does not count."
        return [cell for cell in self.notebook.code if cell.number > self.cell.number][:count]


def imports_of(tree: ast.AST) -> list[tuple[str, int]]:
    "The seqlit modules that code imports, wherever in it, with the line."
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = '.' * node.level + (node.module or '')
            known = {nb.module for nb in book()}
            found += [
                (f'{base}.{a.name}' if f'{base}.{a.name}' in known else base, node.lineno) for a in node.names
            ]
    return list(dict.fromkeys((name, line) for name, line in found if name.split('.')[0] in ('seqlit', '')))


def read(path: Path) -> Notebook:
    "One notebook."
    try:
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    except (ValueError, KeyError) as error:
        raise ValueError(f'{path} is not a notebook: {error!r}') from error
    return Notebook(
        path,
        [
            Cell(number, cell['cell_type'], ''.join(cell['source']), cell.get('outputs', []))
            for number, cell in enumerate(cells, 1)
        ],
    )


def paths(folder: Path = NBS) -> list[Path]:
    "Every notebook's path, in the order of the book."
    kept = [
        p for p in folder.rglob('*.ipynb') if not any(part[0] in '_.' for part in p.relative_to(folder).parts)
    ]
    return sorted(kept, key=lambda path: (path.name != 'index.ipynb', path.name))


@lru_cache
def book() -> tuple[Notebook, ...]:
    "The whole book, in order."
    return tuple(read(path) for path in paths())


def chapters() -> list[Notebook]:
    "The notebooks that become modules."
    return [notebook for notebook in book() if notebook.module]


def ids(notebook: Notebook) -> str:
    "The name of a notebook in a parametrised test."
    return notebook.name
