"How a notebook reads: sizes, texts, captions, and that what is defined is soon used, tested and shown."

import ast
import re
from dataclasses import dataclass
from functools import lru_cache
from statistics import median

import pytest

from book import ROOT, Cell, Definition, Notebook, book, chapters, ids

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
CALLS = ('__init__', '__call__')  # the methods with two underscores that users call
# Chapters with more public names than twelve, each with its reason.
MANY_NAMES: dict[str, str] = {}
# Modules whose work is to write to the terminal.
TERMINAL = ('cli/',)
# Modules whose `open` opens something else than a text file.
NOT_FILES = {'tarfile', 'zipfile', 'os', 'webbrowser', 'Image'}
EXPECTING = ('expect_fail', 'test_fail', 'ExceptionExpected', 'raises')


def where(notebook: Notebook, cell: Cell, text: str) -> str:
    return f'{notebook.name} cell {cell.number}: {text}'


def report(found: list[str]):
    "Fails with a line for each fault."
    if found:
        pytest.fail('\n'.join(found), pytrace=False)


# Sizes


def is_options(cell: Cell) -> bool:
    "Whether the cell is one dataclass of options, which may be as long as its options."
    classes = [node for node in cell.tree.body if isinstance(node, ast.ClassDef)]
    return len(classes) == len(cell.tree.body) == 1 and is_dataclass(classes[0])


def is_dataclass(node: ast.ClassDef) -> bool:
    return any('dataclass' in ast.unparse(decorator) for decorator in node.decorator_list)


def has_fields(node: ast.ClassDef) -> bool:
    return is_dataclass(node) or any(ast.unparse(base) in ('NamedTuple', 'TypedDict') for base in node.bases)


@pytest.mark.parametrize('notebook', chapters(), ids=ids)
def test_sizes(notebook):
    found = []
    if len(notebook.cells) > 70:
        found.append(f'{notebook.name}: {len(notebook.cells)} cells, 70 are the limit')
    size = notebook.path.stat().st_size
    if size > 300_000:
        found.append(f'{notebook.name}: {size} bytes, 300000 are the limit')
    for cell in notebook.exported:
        if len(cell.lines) > 40 and not is_options(cell):
            found.append(where(notebook, cell, f'{len(cell.lines)} lines exported, 40 are the limit'))
        for node in ast.walk(cell.tree):
            if isinstance(node, FUNCTIONS) and (size := node.end_lineno - node.lineno + 1) > 30:
                found.append(where(notebook, cell, f'{node.name} has {size} lines, 30 are the limit'))
    for cell in notebook.code:
        found += [
            where(notebook, cell, f'line {i} has {len(line)} characters, 88 are the limit')
            for i, line in enumerate(cell.source.splitlines(), 1)
            if len(line) > 88 and i > len(cell.directives)
        ]
    report(found)


def own_lines(cell: Cell) -> int:
    "The lines of a cell, less those that hold nothing but one parameter and its text."
    args = {
        arg.lineno for node in ast.walk(cell.tree) if isinstance(node, FUNCTIONS) for arg in parameters(node)
    }
    return len(cell.lines) - len([line for line in args if line in cell.comments])


def test_exported_cells_are_short_in_the_middle():
    only_imports = (ast.Import, ast.ImportFrom)
    sizes = [
        own_lines(cell)
        for notebook in chapters()
        for cell in notebook.exported
        if not all(isinstance(node, only_imports) for node in cell.tree.body)
    ]
    assert median(sizes) <= 20, f'the median exported cell has {median(sizes)} lines'


@pytest.mark.parametrize('notebook', chapters(), ids=ids)
def test_not_too_many_public_names(notebook):
    names = list(dict.fromkeys(d.name for d in notebook.definitions if not d.is_patch))
    assert names or notebook.module == 'seqlit.builtins' or notebook.module == 'seqlit.all', 'exports nothing'
    assert (
        len(names) <= 12 or notebook.name in MANY_NAMES
    ), f'{len(names)} public names, 12 are the limit: {", ".join(names)}'


# The shape of a chapter


@pytest.mark.parametrize('notebook', chapters(), ids=ids)
def test_shape(notebook):
    first, title, problem, last = *notebook.cells[:3], notebook.cells[-1]
    assert re.fullmatch(r'#\|\s*default_exp \S+', first.source.strip()), 'cell 1 is default_exp alone'
    assert re.fullmatch(
        r'# .+\n{1,2}> [^\n]+', title.source.strip()
    ), 'cell 2 is `# Title` and below it `> ` and one sentence'
    assert (
        problem.kind == 'markdown' and len(problem.source.split()) <= 120
    ), 'cell 3 tells the problem in about 90 words'
    assert 'nbdev_export()' in last.source and last.is_hidden, 'the last cell is hidden and exports'
    headings = [
        line
        for cell in notebook.cells
        if cell.kind == 'markdown'
        for line in re.findall(r'^##? .+', cell.source, re.M)
    ]
    assert sum(line.startswith('# ') for line in headings) == 1, 'one title'
    assert headings[-1] == '## In short', 'the last heading is `## In short`'
    assert 1 <= len(headings) - 2 <= 10, f'{len(headings) - 2} beats: three to seven are meant'


# Texts


def parameters(function: ast.FunctionDef) -> list[ast.arg]:
    args = function.args
    found = args.posonlyargs + args.args + args.kwonlyargs + [a for a in (args.vararg, args.kwarg) if a]
    return [arg for arg in found if arg.arg not in ('self', 'cls')]


def is_public(function: ast.FunctionDef) -> bool:
    return not function.name.startswith('_') or function.name in CALLS


def functions_of(definition: Definition) -> list[ast.FunctionDef]:
    "The public functions and methods of an exported definition."
    node = definition.node
    methods = [node] if isinstance(node, FUNCTIONS) else [n for n in node.body if isinstance(n, FUNCTIONS)]
    return [method for method in methods if is_public(method)]


@lru_cache
def ancestors() -> dict[str, tuple[ast.ClassDef, list[str]]]:
    "Every class of the book with the names of its bases."
    found = {}
    for node in (node for notebook in chapters() for cell in notebook.exported for node in cell.tree.body):
        if not isinstance(node, ast.ClassDef):
            continue
        found[node.name] = (node, [ast.unparse(base).split('[')[0].split('.')[-1] for base in node.bases])
    return found


# What the libraries below declare and describe; a class of ours that overrides it need not say it again.
ELSEWHERE = {
    'Module': {'extra_repr', 'state_dict', 'load_state_dict', 'train', 'eval', 'reset_parameters'},
    'ArgumentParser': {'error', 'format_help', 'format_usage'},
}
THEIR_PARAMETERS = {'state', 'state_dict', 'strict', 'assign', 'mode', 'message', 'args', 'kwargs'}


def inherited(name: str, method: str) -> set[str] | None:
    "The parameters of a method that a class takes over from another one; None: it is the first to have it."
    for base in ancestors().get(name, (None, []))[1]:
        if method in ELSEWHERE.get(base, ()):
            return THEIR_PARAMETERS
        if base not in ancestors():
            continue
        for node in ancestors()[base][0].body:
            if isinstance(node, FUNCTIONS) and node.name == method:
                return {arg.arg for arg in parameters(node)}
        if (found := inherited(base, method)) is not None:
            return found
    return None


def gives_value(function: ast.FunctionDef) -> bool:
    "Whether a function returns or yields something."
    nodes = list(ast.walk(function))
    is_generator = any(isinstance(node, (ast.Yield, ast.YieldFrom)) for node in nodes)
    return is_generator or any(isinstance(node, ast.Return) and node.value is not None for node in nodes)


def missing_texts(definition: Definition) -> list[str]:
    "What lacks a text in a definition: itself, fields, parameters, results."
    cell, node = definition.cell, definition.node
    if not isinstance(node, ast.ClassDef):
        found = missing_in_function(cell, node, node.name, node.name)
    else:
        found = [] if ast.get_docstring(node) else [f'{node.name} has no docstring']
        found += missing_in_fields(cell, node) if has_fields(node) else []
        for function in functions_of(definition):
            found += missing_in_function(cell, function, f'{node.name}.{function.name}', node.name)
    return [where(definition.notebook, cell, text) for text in found]


def missing_in_fields(cell: Cell, node: ast.ClassDef) -> list[str]:
    "The fields without a comment; an option has its help."
    found = []
    for field in node.body:
        if not isinstance(field, ast.AnnAssign) or field.target.id.startswith('_'):
            continue
        is_option = isinstance(field.value, ast.Call) and ast.unparse(field.value.func) == 'option'
        if not is_option and not has_comment(cell, field):
            found.append(f'{node.name}.{field.target.id} has no text')
    return found


def missing_in_function(cell: Cell, function: ast.FunctionDef, name: str, owner: str) -> list[str]:
    "What a function lacks. One that overrides another of the book need not repeat what that one says."
    found = []
    above = inherited(owner, function.name)
    is_patch = any('patch' in ast.unparse(d) for d in function.decorator_list)
    is_setter = any(ast.unparse(d).endswith('.setter') for d in function.decorator_list)
    if above is None and function.name not in CALLS and not ast.get_docstring(function) and not is_setter:
        found.append(f'{name} has no docstring')
    args = [arg for arg in parameters(function)[is_patch and function.args.args[0].arg != 'self' :]]
    lines = [arg.lineno for arg in args] + [function.lineno]
    for arg in args:
        if arg.arg in (above or ()):
            continue
        if not has_comment(cell, arg) or lines.count(arg.lineno) > 1:
            found.append(f'{name}: {arg.arg} has no line and text of its own')
        if arg.annotation is None and arg not in (function.args.vararg, function.args.kwarg):
            found.append(f'{name}: {arg.arg} has no annotation')
    if above is not None or not gives_value(function):
        return found
    if function.returns is None:
        found.append(f'{name}: its result has no annotation')
    elif (
        args and ast.unparse(function.returns) != 'None' and function.returns.end_lineno not in cell.comments
    ):
        found.append(f'{name}: its result has no text')
    return found


def has_comment(cell: Cell, node: ast.AST) -> bool:
    "Whether a comment stands on the node's first or last line, or alone on the line above."
    above = node.lineno - 1
    alone = above in cell.comments and cell.source.splitlines()[above - 1].lstrip().startswith('#')
    return node.lineno in cell.comments or node.end_lineno in cell.comments or alone


@pytest.mark.parametrize('notebook', chapters(), ids=ids)
def test_parameters_have_texts(notebook):
    report([line for definition in notebook.definitions for line in missing_texts(definition)])


@pytest.mark.parametrize('notebook', chapters(), ids=ids)
def test_docstrings_are_one_line(notebook):
    found = []
    for cell in notebook.exported:
        for node in ast.walk(cell.tree):
            if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and (text := ast.get_docstring(node)):
                if '\n' in text:
                    found.append(
                        where(notebook, cell, f'the docstring of {node.name} has more than one line')
                    )
                if re.match(r'This (function|method|class)\b', text):
                    found.append(where(notebook, cell, f'{node.name}: {text}'))
    report(found)


# Code


@pytest.mark.parametrize('notebook', chapters(), ids=ids)
def test_exported_code_is_plain(notebook):
    found = []
    for cell in notebook.exported:
        for node in ast.walk(cell.tree):

            def tell(text):
                found.append(where(notebook, cell, f'line {node.lineno}: {text}'))

            if isinstance(node, ast.ImportFrom) and any(alias.name == '*' for alias in node.names):
                tell('star import')
            if isinstance(node, ast.ImportFrom) and node.level:
                tell('relative import')
            if isinstance(node, ast.Global):
                tell('global')
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                tell('bare except')
            if not isinstance(node, ast.Call):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, 'attr', '')
            is_guess = name == 'hasattr' or name == 'getattr' and len(node.args) == 3
            if is_guess and isinstance(node.func, ast.Name):
                tell(f'{name} guesses at an interface')
            if name == 'print' and not notebook.name.startswith(TERMINAL):
                tell('print in library code')
            if opens_text(node) and not any(k.arg in ('encoding', None) for k in node.keywords):
                tell(f'{name} without an encoding')
    report(found)


def opens_text(call: ast.Call) -> bool:
    "Whether a call opens a file as text: open(path), path.open(), path.read_text(), path.write_text(text)."
    is_method = isinstance(call.func, ast.Attribute)
    name = call.func.attr if is_method else getattr(call.func, 'id', '')
    if name in ('read_text', 'write_text'):
        return is_method and len(call.args) <= (name == 'write_text')
    if name != 'open' or is_method and ast.unparse(call.func.value) in NOT_FILES:
        return False
    modes = call.args[not is_method :][:1] + [k.value for k in call.keywords if k.arg == 'mode']
    return all(isinstance(mode, ast.Constant) and 'b' not in str(mode.value) for mode in modes)


@pytest.mark.parametrize('notebook', chapters(), ids=ids)
def test_every_raise_has_its_test(notebook):
    "As many failing tests as errors; what only passes an error on or marks an abstract method needs none."
    raises, tests = [], 0
    for cell in notebook.code:
        for node in ast.walk(cell.tree):
            if isinstance(node, ast.Call):
                tests += ast.unparse(node.func).split('.')[-1] in EXPECTING
            if not cell.is_exported or not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
                continue
            if ast.unparse(node.exc.func) in ('NotImplementedError', 'SystemExit'):
                continue
            raises.append(where(notebook, cell, f'line {node.lineno}: {ast.unparse(node)[:100]}'))
    if tests < len(raises):
        report([f'{tests} failing tests for {len(raises)} errors:', *raises])


# Soon used, tested and shown


@dataclass
class Shares:
    used: list[str]
    asserted: list[str]
    shown: list[str]
    total: int

    def share(self, kind: str) -> float:
        return 1 - len(getattr(self, kind)) / max(self.total, 1)


def shares(notebooks: list[Notebook]) -> Shares:
    "The definitions that the next three code cells do not use, do not test by name, and have no output in."
    missing = Shares([], [], [], 0)
    for definition in (d for notebook in notebooks for d in notebook.definitions):
        later = [cell for cell in definition.following(3) if not cell.is_exported]
        missing.total += 1
        if not any(definition.name in cell.names for cell in later):
            missing.used.append(definition.where)
        if not any(cell.asserts and definition.name in cell.names for cell in later):
            missing.asserted.append(definition.where)
        if not any(cell.shows for cell in later):
            missing.shown.append(definition.where)
    return missing


@pytest.mark.parametrize('kind, least', [('used', 0.8), ('asserted', 0.7), ('shown', 0.5)])
def test_definitions_are_soon(kind, least):
    missing = shares(chapters())
    assert missing.share(kind) >= least, (
        f'{missing.share(kind):.0%} of {missing.total} public definitions are {kind} within '
        f'three code cells, {least:.0%} are meant; not these:\n' + '\n'.join(getattr(missing, kind))
    )


# What the page shows


@pytest.mark.parametrize('notebook', book(), ids=ids)
def test_drawings_have_captions(notebook):
    drawn = [cell for cell in notebook.code if cell.images]
    report(
        [
            where(notebook, cell, 'draws without `#| fig-cap: ...`')
            for cell in drawn
            if not cell.directives.get('fig-cap')
        ]
    )
    if notebook.module:
        assert len(drawn) <= 3, f'{len(drawn)} drawings, three are the limit'


OUTPUT_FAULTS = {
    'a traceback': re.compile(r'Traceback \(most recent call last\)'),
    'a warning': re.compile(r'\b\w*Warning: '),
    'a path of one machine': re.compile(
        r'(?<![\w.])/(?:tmp|home|root|work|Users|var/folders|opt|private)/|[A-Z]:\\\\?Users'
    ),
    'an address': re.compile(r'\bat 0x[0-9a-fA-F]{6,}'),
    'a progress bar': re.compile(r'\d+%\|| \d+(\.\d+)?(it|s)/(s|it)\b'),
}


@pytest.mark.parametrize('notebook', book(), ids=ids)
def test_outputs_are_fit_to_print(notebook):
    found = []
    for cell in notebook.code:
        for out in cell.outputs:
            if out['output_type'] == 'error':
                found.append(where(notebook, cell, f"a stored error: {out['ename']}"))
            if out.get('name') == 'stderr':
                found.append(where(notebook, cell, f"stderr: {''.join(out['text'])[:200]}"))
            kinds = set(out.get('data', {}))
            if kinds == {'application/vnd.jupyter.widget-view+json'}:
                found.append(where(notebook, cell, 'a widget without a still picture'))
        for name, pattern in OUTPUT_FAULTS.items():
            if match := pattern.search(cell.shown_text):
                found.append(
                    where(
                        notebook,
                        cell,
                        f'{name}: {cell.shown_text[max(match.start() - 40, 0):match.end() + 40]!r}',
                    )
                )
    report(found)


@pytest.mark.parametrize('notebook', book(), ids=ids)
def test_prose(notebook):
    found = []
    for cell in notebook.cells:
        if match := re.search(r'\b(TODO|FIXME|XXX)\b', cell.source):
            found.append(where(notebook, cell, f'says {match[0]}'))
        if cell.kind != 'markdown':
            continue
        if match := re.search(r'\bsimply\b', cell.source):
            found.append(where(notebook, cell, f'says {match[0]!r}'))
        if match := re.search('[\U0001f000-\U0001faff\u2600-\u26ff\u2705\u274c\u2728]', cell.source):
            found.append(where(notebook, cell, f'has the emoji {match[0]}'))
    report(found)


def sentences(text: str) -> list[str]:
    "The sentences of a text, without tables, code, maths, headings and link targets."
    text = re.sub(r'```.*?```|\$\$.*?\$\$|^\s*\|.*$|^#.*$|<[^>]+>', '', text, flags=re.M)
    text = re.sub(r'\]\([^)]*\)', ']', re.sub(r'\$[^$]*\$', 'x', text))
    parts = re.split(r'(?<=[.!?:;])["*_`)]*\s+|\n\s*\n|\n\s*[-*\d]+[.)]?\s', text)
    return [part for part in parts if re.search(r'\w', part)]


def test_sentences_are_short():
    every = [
        (len(part.split()), notebook.name, part)
        for notebook in book()
        for cell in notebook.cells
        if cell.kind == 'markdown'
        for part in sentences(cell.source)
    ]
    long = sorted((s for s in every if s[0] > 25), reverse=True)
    assert len(long) <= 0.1 * len(
        every
    ), f'{len(long)} of {len(every)} sentences have more than 25 words:\n' + '\n'.join(map(str, long[:40]))


def test_no_machine_paths_in_the_project():
    "What is committed must not know where it was written."
    found = []
    texts = [
        path
        for folder in ['seqlit', 'tools', '.github', '.ci']
        for path in (ROOT / folder).rglob('*')
        if path.is_file()
    ]
    for path in (
        texts + [path for path in ROOT.iterdir() if path.is_file()] + [notebook.path for notebook in book()]
    ):
        if '__pycache__' in path.parts or path.suffix in ('.png', '.pyc'):
            continue
        for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
            if re.search(r'/work/(main|shared|\.)|/tmp/w/|/root/', line):
                found.append(f'{path.relative_to(ROOT)}:{number}: {line[:120]}')
    report(found)
