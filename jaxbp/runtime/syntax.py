"""Source files as syntax trees: where a function's tree is, its text without what changes nothing, and the names in it.

>>> import ast
>>> from jaxbp.runtime import syntax
>>> syntax.dump(ast.parse("x = f(1)  # a comment")) == syntax.dump(ast.parse("x=f( 1 )"))
True
>>> syntax.dotted_names(ast.parse("y = np.linalg.norm(x)"))
[('y',), ('np', 'linalg', 'norm'), ('x',)]
"""

import ast
import linecache
import types
from dataclasses import dataclass
from typing import Any

_DOCUMENTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)


@dataclass(frozen=True)
class Source:
    """A parsed file.

    Attributes:
      tree: of the whole file.
      by_line: functions by first line and name.
      by_name: classes by qualified name.
      mentions: top-level statements, other than definitions and assignments, by the names in them.
    """

    tree: ast.AST
    by_line: dict[tuple[int, str], list[ast.AST]]
    by_name: dict[str, list[ast.ClassDef]]
    mentions: dict[str, list[ast.stmt]]


_sources: dict[str, tuple[list[str], Source]] = {}  # by file, with the lines that were parsed


def _parse(text: str) -> Source:
    try:
        tree = ast.parse(text)
    except SyntaxError:  # a cell of a notebook with commands in it
        tree = ast.parse("")
    source = Source(tree, {}, {}, {})

    def visit(node: ast.AST, path: str) -> None:
        for child in ast.iter_child_nodes(node):
            inside = path
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                if isinstance(child, ast.ClassDef):
                    source.by_name.setdefault(path + child.name, []).append(child)
                    inside = f"{path}{child.name}."
                else:
                    line = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
                    source.by_line.setdefault((line, child.name), []).append(child)
                    inside = f"{path}{child.name}.<locals>."
            elif isinstance(child, ast.Lambda):
                source.by_line.setdefault((child.lineno, "<lambda>"), []).append(child)
                inside = f"{path}<lambda>.<locals>."
            visit(child, inside)

    visit(tree, "")
    for statement in tree.body:
        plain = isinstance(statement, ast.Assign) and all(isinstance(target, ast.Name | ast.Tuple) for target in statement.targets)
        defines = isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom | ast.AnnAssign)
        if not (plain or defines or (isinstance(statement, ast.If) and "__name__" in ast.dump(statement.test))):
            for name in {chain[0] for chain in dotted_names(statement)}:
                source.mentions.setdefault(name, []).append(statement)
    return source


def source_of(file: str) -> Source:
    """Parse a file, or a cell of a notebook by the name that Python gives it; again only after a change. Empty where it cannot be read."""
    linecache.checkcache(file)  # a module may have been reloaded
    lines = linecache.getlines(file)
    if file not in _sources or _sources[file][0] is not lines:
        _sources[file] = lines, _parse("".join(lines))
    return _sources[file][1]


def function_node(code: types.CodeType) -> Any:
    """Return the syntax tree of a function; of lambdas in one line, the smallest whose body holds all columns of the code."""
    nodes = source_of(code.co_filename).by_line.get((code.co_firstlineno, code.co_name), [])
    if len(nodes) > 1:
        positions: list[Any] = list(code.co_positions())[1:]
        spans = [span for span in positions if None not in span and span[3] > span[2]]
        places = [place for line, end, column, end_column in spans for place in ((line, column), (end, end_column))]
        nodes = [node for node in nodes if places and _start(_body(node)) <= min(places) and max(places) <= _end(_body(node))]
        nodes.sort(key=_start, reverse=True)
    return nodes[0] if nodes else None


def _body(node: Any) -> Any:
    return node.body if isinstance(node, ast.Lambda) else node


def _start(node: Any) -> tuple[int, int]:
    return node.lineno, node.col_offset


def _end(node: Any) -> tuple[int, int]:
    return node.end_lineno, node.end_col_offset


def dump(node: Any) -> str:
    """Return a syntax tree as text, the same in all versions of Python, without docstrings, places and annotations of functions."""
    if isinstance(node, list):
        return f"[{','.join(map(dump, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = []
    for name in node._fields:
        value: Any = getattr(node, name, None)
        if name == "body" and isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            value = value[1:]
        if value in (None, []) and not isinstance(node, ast.Constant):
            continue
        if name in ("kind", "type_comment", "returns") or (name == "annotation" and isinstance(node, ast.arg)):
            continue
        fields.append(f"{name}={dump(value)}")
    return f"{type(node).__name__}({','.join(fields)})"


def dotted_names(node: ast.AST) -> list[tuple[str, ...]]:
    """Return the dotted names in a syntax tree, annotations of functions left out."""
    chain, item = [], node
    while isinstance(item, ast.Attribute):
        chain.append(item.attr)
        item = item.value
    if isinstance(item, ast.Name):
        return [(item.id, *reversed(chain))]
    return [
        names
        for name, value in ast.iter_fields(item)
        if name != "returns" and not (name == "annotation" and isinstance(item, ast.arg))
        for child in (value if isinstance(value, list) else [value])
        if isinstance(child, ast.AST)
        for names in dotted_names(child)
    ]
