"""Check that the vocabulary holds data only: frozen records of plain fields and enums of texts.

The engines give a record's fields, its equality and its truth value the meaning that `dataclasses` gives them. So no
class of the vocabulary may define an operation of its own. Only `Inputs` has code, which rejects malformed inputs.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

__all__ = ["check"]

_IMPORTS = {
    "__future__": {"annotations"},
    "collections.abc": {"Mapping"},
    "dataclasses": {"dataclass", "field"},
    "enum": {"Enum"},
    "types": {"MappingProxyType"},
    "typing": {"Generic", "TypeAlias", "TypeVar"},
}
_CALLS_OF_CHECK = {"ValueError", "setdefault"}


def check(source: str, name: str) -> list[str]:
    """Return what is no plain data in the source of the vocabulary, each as `name:line: problem`."""
    return [f"{name}:{line}: {problem}" for line, problem in _module(ast.parse(source, name))]


def _module(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield from _class(node)
        elif isinstance(node, ast.ImportFrom):
            for item in node.names:
                if item.asname or item.name not in _IMPORTS.get(node.module or "", ()):
                    yield node.lineno, f"imports {item.name} from {node.module}"
        elif not _is_plain(node):
            yield node.lineno, f"{ast.unparse(node).splitlines()[0]} is no data"


def _is_plain(node: ast.stmt) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.FunctionDef):
        return node.name == "_nothing" and ast.unparse(node.body[0]) == "return MappingProxyType({})"
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0]) in ("__all__", "T")
    return isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias"


def _class(node: ast.ClassDef) -> Iterator[tuple[int, str]]:
    bases, decorators = [ast.unparse(base) for base in node.bases], [ast.unparse(one) for one in node.decorator_list]
    is_enum = bases == ["str", "Enum"] and not decorators
    is_record = bases in ([], ["Generic[T]"]) and decorators == ["dataclass(frozen=True, slots=True)"]
    if node.keywords or not (is_enum or is_record):
        yield node.lineno, f"{node.name} is neither a frozen record nor an enum of texts"
    for item in node.body:
        text = isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant)
        member = is_enum and isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant)
        field = is_record and isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and _default(item)
        if node.name == "Inputs" and isinstance(item, ast.FunctionDef) and item.name == "__post_init__":
            yield from _check_of_inputs(item)
        elif not (text or member or field):
            yield item.lineno, f"{node.name} has more than plain fields: {ast.unparse(item).splitlines()[0]}"


def _default(item: ast.AnnAssign) -> bool:
    if item.value is None or isinstance(item.value, ast.Constant):
        return True
    return ast.unparse(item.value) in (
        *("()", "Effective()"),
        "field(default=None, compare=False, repr=False)",
        "field(default_factory=_nothing, hash=False)",
    )


def _check_of_inputs(function: ast.FunctionDef) -> Iterator[tuple[int, str]]:
    if function.decorator_list or function.args.defaults:
        yield function.lineno, "the check of Inputs has a decorator or a default"
    for node in ast.walk(function):
        called = node.func if isinstance(node, ast.Call) else None
        if called is not None and getattr(called, "id", getattr(called, "attr", "")) not in _CALLS_OF_CHECK:
            yield called.lineno, f"the check of Inputs calls {ast.unparse(called)}"
        if isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
            yield node.lineno, f"the check of Inputs changes {ast.unparse(node)}"
        if isinstance(node, ast.Return | ast.Try | ast.With | ast.Import | ast.ImportFrom | ast.Global | ast.Lambda):
            yield node.lineno, f"the check of Inputs has a {type(node).__name__}"
