"""Write the API pages from the source alone: a page a module, an entry a name, a table of its parameters.

The text of a parameter is the comment on its line; that of an option is its help. Nothing is imported, so the
pages do not wait for torch. tools/site.py calls this.
"""

import ast, io, json, re, tokenize
from dataclasses import dataclass
from pathlib import Path

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass
class Module:
    name: str  # seqlit.data.dictionary
    notebook: str  # data/100_dictionary.ipynb
    tree: ast.Module
    comments: dict[int, str]
    methods: dict[str, list]  # the methods of each class, patched ones too

    @property
    def short(self) -> str:
        return self.name.split('.', 1)[1]

    @property
    def page(self) -> str:
        return f'{self.short}.qmd'

    @property
    def about(self) -> str:
        return (ast.get_docstring(self.tree) or '').split('\n')[0]

    @property
    def public(self) -> list:
        return [
            node
            for node in self.tree.body
            if isinstance(node, (*FUNCTIONS, ast.ClassDef))
            and not node.name.startswith('_')
            and patched_class(node) is None
        ]


def patched_class(node: ast.AST) -> str | None:
    "The class that a function is patched into."
    if not isinstance(node, FUNCTIONS) or not any('patch' in ast.unparse(d) for d in node.decorator_list):
        return None
    return ast.unparse(node.args.args[0].annotation)


def read_module(path: Path, root: Path) -> Module | None:
    "One exported module; None for a file that no notebook wrote."
    text = path.read_text(encoding='utf-8')
    cell = re.search(r'^# %% (?:\.\./)+nbs/(\S+\.ipynb)', text, re.M)
    if cell is None or path.name.startswith('_'):
        return None
    comments = {
        t.start[0]: t.string.lstrip('# ').strip()
        for t in tokenize.generate_tokens(io.StringIO(text).readline)
        if t.type == tokenize.COMMENT
    }
    tree = ast.parse(text)
    methods = {
        node.name: [n for n in node.body if isinstance(n, FUNCTIONS)]
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
    for node in tree.body:
        if patched_class(node) in methods:
            methods[patched_class(node)].append(node)
    name = '.'.join(path.relative_to(root).with_suffix('').parts)
    return Module(name, cell[1], tree, comments, methods)


def read_package(root: Path) -> list[Module]:
    "Every module of the package, in the order of the book."
    found = filter(None, (read_module(path, root) for path in (root / 'seqlit').rglob('*.py')))
    return sorted(found, key=lambda module: Path(module.notebook).name)


def plain(text: str) -> str:
    "Text in which Markdown reads nothing but code between backticks."
    parts = re.split(r'(`[^`]*`)', text)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r'([\\<>*_$\[\]])', r'\\\1', parts[i])
    return ''.join(parts)


def code(text: str) -> str:
    return f'`{text}`' if text else ''


def table(head: list[str], rows: list[list[str]]) -> str:
    "A Markdown table, or nothing when there are no rows."
    lines = [head, ['---'] * len(head)] + rows
    text = '\n'.join('| ' + ' | '.join(cell.replace('|', '\\|') for cell in line) + ' |' for line in lines)
    return f'::: {{.parameters}}\n{text}\n:::' if rows else ''


def arguments(function: ast.FunctionDef) -> list[tuple[str, ast.arg, ast.expr | None]]:
    "The arguments as (prefix, argument, default), without self and cls."
    args = function.args
    ordered = args.posonlyargs + args.args
    defaults = [None] * (len(ordered) - len(args.defaults)) + args.defaults
    is_method = bool(ordered) and ordered[0].arg in ('self', 'cls')
    found = [('', *pair) for pair in zip(ordered, defaults)][is_method:]
    if args.vararg:
        found.append(('*', args.vararg, None))
    found += [('', *pair) for pair in zip(args.kwonlyargs, args.kw_defaults)]
    return found + ([('**', args.kwarg, None)] if args.kwarg else [])


def signature(name: str, function: ast.FunctionDef) -> str:
    "How to call it, on one line where that fits in 80 characters."
    parts = []
    for prefix, arg, default in arguments(function):
        if arg in function.args.kwonlyargs[:1] and not function.args.vararg:
            parts.append('*')
        kind = f': {ast.unparse(arg.annotation)}' if arg.annotation else ''
        equals = ' = ' if kind else '='
        parts.append(prefix + arg.arg + kind + (equals + ast.unparse(default) if default is not None else ''))
    result = (
        f' -> {ast.unparse(function.returns)}' if function.returns and function.name != '__init__' else ''
    )
    line = f"{name}({', '.join(parts)}){result}"
    if len(line) > 80 and parts:
        line = f'{name}(\n' + ''.join(f'    {part},\n' for part in parts) + f'){result}'
    return f'```python\n{line}\n```'


def parameter_table(module: Module, function: ast.FunctionDef) -> str:
    "The parameters and the result with type, default and text."

    def said(node):
        return plain(module.comments.get(node.lineno) or module.comments.get(node.end_lineno, ''))

    rows = [
        [
            code(prefix + arg.arg),
            code(ast.unparse(arg.annotation)) if arg.annotation else '',
            code(ast.unparse(default)) if default is not None else '',
            said(arg),
        ]
        for prefix, arg, default in arguments(function)
    ]
    if function.returns and ast.unparse(function.returns) != 'None' and function.name != '__init__':
        rows.append(
            [
                '*returns*',
                code(ast.unparse(function.returns)),
                '',
                said(function.returns) if function.returns.end_lineno in module.comments else '',
            ]
        )
    return table(
        ['Parameter', 'Type', 'Default', 'Meaning'], rows if len(rows) > 1 or rows and rows[0][3] else []
    )


def field_table(module: Module, node: ast.ClassDef) -> str:
    "The fields of a dataclass or named tuple; an option shows its help and, if it has more spellings, those."
    rows = []
    for field in node.body:
        if not isinstance(field, ast.AnnAssign) or field.target.id.startswith('_'):
            continue
        value, said = field.value, module.comments.get(field.lineno) or module.comments.get(
            field.end_lineno, ''
        )
        if isinstance(value, ast.Call) and ast.unparse(value.func) == 'option':
            given = dict(zip(['default', 'help'], value.args)) | {k.arg: k.value for k in value.keywords}
            said = text_of(given.get('help'))
            flags = text_of(given.get('flags'))
            value, said = given.get('default'), said + (f' (also {flags})' if flags else '')
        rows.append(
            [
                code(field.target.id),
                code(ast.unparse(field.annotation)),
                code(ast.unparse(value)) if value is not None else '',
                plain(said),
            ]
        )
    return table(['Field', 'Type', 'Default', 'Meaning'], rows)


def text_of(node: ast.expr | None) -> str:
    "A constant, a tuple of them or an f-string as text."
    if node is None:
        return ''
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, (ast.Tuple, ast.List)):
        return ', '.join(f'`{text_of(item)}`' for item in node.elts)
    return ''.join(str(n.value) for n in ast.walk(node) if isinstance(n, ast.Constant)) or ast.unparse(node)


def entry(module: Module, node: ast.AST, name: str, source: str, depth: int = 2) -> list[str]:
    "One name: heading, how to call it, what it is, its parameters; for a class its methods too."
    head = f"{'#' * depth} {'class ' if isinstance(node, ast.ClassDef) else ''}{name} {{#{name}}}"
    link = f'[source]({source}/{module.name.replace(".", "/")}.py#L{node.lineno}){{.source-link}}'
    doc = ast.get_docstring(node) or ''
    if isinstance(node, FUNCTIONS):
        kinds = [
            ast.unparse(d)
            for d in node.decorator_list
            if ast.unparse(d)
            in ('property', 'classmethod', 'staticmethod', 'cached_property', 'contextmanager')
        ]
        shown = code(name) if kinds and 'property' in kinds[0] else signature(name, node)
        return [
            head,
            link,
            shown,
            doc,
            f"*{kinds[0].replace('_', ' ')}*" if kinds else '',
            parameter_table(module, node),
        ]
    bases = [ast.unparse(base) for base in node.bases]
    parts = [head, link, doc, 'Derived from ' + ', '.join(map(code, bases)) + '.' if bases else '']
    is_fields = any('dataclass' in ast.unparse(d) for d in node.decorator_list) or {
        'NamedTuple',
        'TypedDict',
    } & set(bases)
    if is_fields:
        parts.append(field_table(module, node))
    for method in module.methods[node.name]:
        if method.name == '__init__':
            parts += [signature(node.name, method), parameter_table(module, method)]
    for method in module.methods[node.name]:
        is_setter = any(ast.unparse(d).endswith('.setter') for d in method.decorator_list)
        if method.name == '__call__' or not method.name.startswith('_') and not is_setter:
            parts += entry(module, method, f'{node.name}.{method.name}', source, depth + 1)
    return parts


def module_page(module: Module, source: str, order: int) -> str:
    "The page of one module."
    parts = [
        f'---\ntitle: {json.dumps(module.short)}\ndescription: {json.dumps(module.about)}\norder: {order}\n---',
        f'Told in the chapter [{module.notebook.removesuffix(".ipynb")}](../{module.notebook}).',
    ]
    for node in module.public:
        parts += entry(module, node, node.name, source)
    return '\n\n'.join(filter(None, parts)) + '\n'


def index_page(modules: list[Module]) -> str:
    "All modules with what they hold, part by part."
    parts = [
        '---\ntitle: API\ndescription: Every public name, by module, in the order of the book.\norder: 0\n---'
    ]
    for part in dict.fromkeys(module.notebook.split('/')[0] for module in modules):
        parts.append(f'## {part}')
        for module in modules:
            if module.notebook.split('/')[0] != part:
                continue
            names = ', '.join(f'[`{node.name}`]({module.page}#{node.name})' for node in module.public)
            parts.append(
                f'**[{module.short}]({module.page})** {plain(module.about)}' + f'\\\n{names}' * bool(names)
            )
    return '\n\n'.join(parts) + '\n'


def symbols(modules: list[Module]) -> dict[str, str]:
    "Where each name is told, for names that one module alone has; written as seen from the site's root."
    places = {}
    for module in modules:
        for node in module.public:
            names = [node.name] + [
                f'{node.name}.{m.name}'
                for m in module.methods.get(node.name, [])
                if not m.name.startswith('_')
            ]
            for name in names:
                places.setdefault(name, []).append(f'api/{module.page}#{name}')
    return {name: found[0] for name, found in places.items() if len(set(found)) == 1}


def write(root: Path, folder: Path, source: str) -> list[Module]:
    "Write all pages into a folder."
    modules = read_package(root)
    folder.mkdir(parents=True, exist_ok=True)
    for order, module in enumerate(modules, 1):
        (folder / module.page).write_text(module_page(module, source, order), encoding='utf-8')
    (folder / 'index.qmd').write_text(index_page(modules), encoding='utf-8')
    return modules
