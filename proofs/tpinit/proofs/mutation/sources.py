"""Mutation operators for Python source: every small change of a module's syntax tree, each with a stable name.

The name of a mutant depends on its function and its change only, so it survives edits elsewhere. Annotations,
docstrings, messages and `__all__` are not mutated, because they affect no decision. A string is mutated only
where it selects something: a comparison, a look-up or a key.
"""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from tpinit.proofs.mutation.operators import OPERATORS, Inputs, inputs_of, swapped_and_doubled

__all__ = ["SourceMutant", "source_mutants"]

_COMPARE: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mod,
    ast.Mod: ast.FloorDiv,
}
_NAMES = {"any": "all", "all": "any", "min": "max", "max": "min", "startswith": "endswith", "endswith": "startswith"}

# `strict` of zip is not mutated: no code relies on the error that it raises.

# Calls that make messages.
_MESSAGES = ("Problem", "note")

# Calls for which the order of two arguments has no effect, or affects a message only.
_UNORDERED = ("isinstance", "getattr", "Problem", "note", "min", "max", "is_near", "_distance", "equal")


@dataclass(frozen=True, slots=True)
class SourceMutant:
    """One mutated module. `lines` are the lines that run the changed code, empty where it runs on import."""

    name: str
    function: str
    lines: tuple[int, ...]
    tree: ast.Module
    node: ast.AST
    new: ast.AST

    def source(self) -> str:
        """Return the mutated source.

        Raises ValueError where it equals the original, which is a defect of the operator.
        """
        changed = ast.unparse(ast.fix_missing_locations(_Replace(self.node, self.new).visit(self.tree)))
        if changed == ast.unparse(self.tree):
            raise ValueError(f"the mutation operator made no change: {self.name}")
        return changed


@dataclass(frozen=True, slots=True)
class _Place:
    """The location of a node: its function and the lines of its statement, empty where it runs on import."""

    function: str
    lines: tuple[int, ...]
    inputs: Inputs = ()


def source_mutants(module: str, source: str, *, proven: bool = False) -> list[SourceMutant]:
    """Return every mutant of a module's source, in source order; for a `proven` one of all operators."""
    tree = ast.parse(source)
    seen: Counter[str] = Counter()
    mutants = []
    for node, place in _statements(tree.body, _Place("module", ()), on_import=True):
        for says, new in _changes(node, place.inputs, proven):
            name = f"{module}.{place.function}: {says}"
            seen[name] += 1
            number = f" (#{seen[name]})" if seen[name] > 1 else ""
            mutants.append(SourceMutant(name + number, place.function, place.lines, tree, node, new))
    return mutants


class _Replace(ast.NodeTransformer):
    """Copies the path from the root to one node and replaces that node; the original tree is not changed."""

    def __init__(self, node: ast.AST, new: ast.AST) -> None:
        self._node, self._new = node, new

    def visit(self, node: ast.AST) -> ast.AST:
        if node is self._node:
            return self._new
        twin = copy.copy(node)
        for name, value in ast.iter_fields(node):
            if isinstance(value, list):
                setattr(twin, name, [self.visit(item) if isinstance(item, ast.AST) else item for item in value])
            elif isinstance(value, ast.AST):
                setattr(twin, name, self.visit(value))
        return twin


# --- what is mutated -----------------------------------------------------------------------------------


def _statements(body: list[ast.stmt], around: _Place, *, on_import: bool) -> Iterator[tuple[ast.AST, _Place]]:
    function = around.function
    for statement in body:
        if _is_excluded(statement):
            continue
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            yield from _definition(statement, around, on_import=on_import)
            continue
        header = list(_header(statement))
        last = max((one.end_lineno or 0 for one in header), default=statement.end_lineno or statement.lineno)
        lines = () if on_import else tuple(range(statement.lineno, max(last, statement.lineno) + 1))
        name = _constant_name(statement) if on_import and function == "module" else function
        place = _Place(name, lines, around.inputs)
        yield statement, place
        for expression in header:
            yield from _expressions(expression, place)
        for block in ("body", "orelse", "finalbody"):
            yield from _statements(getattr(statement, block, []), around, on_import=on_import)
        for handler in getattr(statement, "handlers", []):
            yield from _statements(handler.body, around, on_import=on_import)


def _definition(
    statement: ast.FunctionDef | ast.ClassDef, around: _Place, *, on_import: bool
) -> Iterator[tuple[ast.AST, _Place]]:
    inner = statement.name if around.function == "module" else f"{around.function}.{statement.name}"
    inputs: Inputs = ()
    if isinstance(statement, ast.FunctionDef):
        for default in (*statement.args.defaults, *(one for one in statement.args.kw_defaults if one)):
            yield from _expressions(default, _Place(inner, ()))
        inputs = inputs_of(statement)
        yield statement, _Place(inner, tuple(range(statement.body[0].lineno, (statement.end_lineno or 0) + 1)))
    stays = on_import and isinstance(statement, ast.ClassDef)
    yield from _statements(statement.body, _Place(inner, (), inputs), on_import=stays)


def _constant_name(statement: ast.stmt) -> str:
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return next((target.id for target in targets if isinstance(target, ast.Name)), "module")


def _header(statement: ast.stmt) -> Iterator[ast.expr]:
    for name, value in ast.iter_fields(statement):
        if name == "annotation":
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, ast.expr):
                yield item


def _is_excluded(statement: ast.stmt) -> bool:
    if isinstance(statement, (ast.Import, ast.ImportFrom, ast.Assert, ast.Global, ast.Nonlocal)):
        return True
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return True  # a docstring, or an ellipsis
    if isinstance(statement, ast.If) and isinstance(statement.test, ast.Name) and statement.test.id == "TYPE_CHECKING":
        return True
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    if isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
        if isinstance(statement.annotation, ast.Name) and statement.annotation.id == "TypeAlias":
            return True
    names = {target.id for target in targets if isinstance(target, ast.Name)}
    value = getattr(statement, "value", None)
    is_type = isinstance(value, ast.Subscript) and isinstance(value.value, ast.Name) and value.value.id == "Callable"
    is_var = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "TypeVar"
    return names == {"__all__"} or is_type or is_var or (bool(names) and names <= {"Ranks"})


def _expressions(node: ast.expr, place: _Place) -> Iterator[tuple[ast.AST, _Place]]:
    if isinstance(node, ast.JoinedStr):
        return  # a message
    yield node, place
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            yield from _expressions(child, place)
        elif isinstance(child, (ast.comprehension, ast.keyword)) and getattr(child, "arg", "") != "strict":
            for one in ast.iter_child_nodes(child):
                if isinstance(one, ast.expr):
                    yield from _expressions(one, place)


# --- how it is mutated ---------------------------------------------------------------------------------


def _changes(node: ast.AST, inputs: Inputs, proven: bool) -> Iterator[tuple[str, ast.AST]]:
    if not isinstance(node, ast.FunctionDef):
        before, made = _short(node), set()
        operators = OPERATORS if proven else ()
        for new in (*_others(node), *(new for operator in operators for new in operator(node, inputs))):
            says = f"`{before}` -> `{_short(new)}`"
            if says not in made:  # two operators can make the same change
                made.add(says)
                yield says, new
    if proven:
        yield from swapped_and_doubled(node)


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split()) if not isinstance(node, ast.Pass) else "pass"
    return text if len(text) <= 100 else f"{text[:70]}...{text[-27:]}"


def _others(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.stmt):
        yield from _other_statements(node)
    elif isinstance(node, ast.Compare):
        yield from _other_comparisons(node)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
        for index in range(len(node.values)):
            left = [*node.values[:index], *node.values[index + 1 :]]
            yield left[0] if len(left) == 1 else ast.BoolOp(node.op, left)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield node.operand
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        yield ast.BinOp(node.left, _ARITHMETIC[type(node.op)](), node.right)
    elif isinstance(node, ast.Constant):
        yield from _other_constants(node)
    elif isinstance(node, ast.IfExp):
        yield node.body
        yield node.orelse
    elif isinstance(node, ast.Call):
        yield from _other_calls(node)
    elif isinstance(node, ast.Slice):
        yield from _other_slices(node)
    elif isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
        yield from _other_comprehensions(node)
    elif isinstance(node, ast.Dict):
        for index, key in enumerate(node.keys):
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield ast.Dict([*node.keys[:index], _renamed(key), *node.keys[index + 1 :]], node.values)
    elif isinstance(node, ast.Subscript) and _is_word(node.slice):
        yield ast.Subscript(node.value, _renamed(node.slice), node.ctx)


def _other_statements(node: ast.stmt) -> Iterator[ast.AST]:
    if isinstance(node, (ast.Expr, ast.AugAssign, ast.Continue, ast.Break, ast.Raise, ast.For)) or _sets_a_part(node):
        yield ast.Pass()
    elif isinstance(node, ast.Return) and node.value is not None:
        if not (isinstance(node.value, ast.Constant) and node.value.value is None):
            yield ast.Return(ast.Constant(None))
        if _is_truth(node.value):
            yield ast.Return(ast.UnaryOp(ast.Not(), node.value))
    elif isinstance(node, (ast.If, ast.While)) and not isinstance(node.test, ast.Compare) and not _is_not(node.test):
        yield _with(node, test=ast.UnaryOp(ast.Not(), node.test))


def _sets_a_part(node: ast.stmt) -> bool:
    """Return whether a statement assigns only to attributes or items; deleting one to a name would be a NameError."""
    return isinstance(node, ast.Assign) and not all(isinstance(one, (ast.Name, ast.Tuple)) for one in node.targets)


def _other_comparisons(node: ast.Compare) -> Iterator[ast.AST]:
    for index, op in enumerate(node.ops):
        for other in _COMPARE[type(op)]:
            yield ast.Compare(node.left, [*node.ops[:index], other(), *node.ops[index + 1 :]], node.comparators)
    if len(node.ops) == 1 and isinstance(node.ops[0], (ast.Eq, ast.NotEq, ast.In, ast.NotIn)):
        right = node.comparators[0]
        if _is_word(right):
            yield ast.Compare(node.left, node.ops, [_renamed(right)])
        if _is_word(node.left):
            yield ast.Compare(_renamed(node.left), node.ops, node.comparators)
        if isinstance(right, (ast.Tuple, ast.List, ast.Set)) and len(right.elts) > 1:
            for index in range(len(right.elts)):
                less = ast.Tuple([*right.elts[:index], *right.elts[index + 1 :]], ast.Load())
                yield ast.Compare(node.left, node.ops, [less])


def _other_constants(node: ast.Constant) -> Iterator[ast.AST]:
    if isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node.value, int):
        for value in sorted({node.value + 1, node.value - 1, 0} - {node.value}):
            yield ast.Constant(value)


def _other_calls(node: ast.Call) -> Iterator[ast.AST]:
    if isinstance(node.func, ast.Name) and node.func.id in _NAMES:
        yield _with(node, func=ast.Name(_NAMES[node.func.id], ast.Load()))
    if isinstance(node.func, ast.Attribute) and node.func.attr in _NAMES:
        yield _with(node, func=_with(node.func, attr=_NAMES[node.func.attr]))
    plain = len(node.args) >= 2 and not any(isinstance(one, ast.Starred) for one in node.args)
    same = plain and ast.dump(node.args[0]) == ast.dump(node.args[1])
    callee = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
    if plain and not same and callee not in _UNORDERED:
        yield _with(node, args=[node.args[1], node.args[0], *node.args[2:]])
    picks = ("get", "pop", "startswith", "endswith", "getattr")
    for index, one in enumerate(node.args):
        if callee in picks and _is_word(one):
            yield _with(node, args=[*node.args[:index], _renamed(one), *node.args[index + 1 :]])
    if callee == "isinstance" and isinstance(node.args[1], ast.Tuple):
        kinds = node.args[1].elts
        for index in range(len(kinds)):
            yield _with(node, args=[node.args[0], ast.Tuple([*kinds[:index], *kinds[index + 1 :]], ast.Load())])
    if callee in ("sorted", "reversed") and len(node.args) == 1:
        yield ast.Call(ast.Name("list", ast.Load()), node.args, [])
    for index, keyword in enumerate(node.keywords):
        if keyword.arg not in (None, "strict") and callee not in _MESSAGES:
            yield _with(node, keywords=[*node.keywords[:index], *node.keywords[index + 1 :]])


def _other_slices(node: ast.Slice) -> Iterator[ast.AST]:
    if node.lower is not None:
        yield ast.Slice(None, node.upper, node.step)
    if node.upper is not None:
        yield ast.Slice(node.lower, None, node.step)


def _other_comprehensions(node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> Iterator[ast.AST]:
    for index, loop in enumerate(node.generators):
        for place in range(len(loop.ifs)):
            less = _with(loop, ifs=[*loop.ifs[:place], *loop.ifs[place + 1 :]])
            yield _with(node, generators=[*node.generators[:index], less, *node.generators[index + 1 :]])


def _with(node: ast.AST, **changed: object) -> ast.AST:
    twin = copy.copy(node)
    for name, value in changed.items():
        setattr(twin, name, value)
    return twin


def _is_not(node: ast.expr) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)


def _is_truth(node: ast.expr) -> bool:
    named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("any", "all", "bool")
    return isinstance(node, ast.BoolOp) or named


def _is_word(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _renamed(node: ast.expr) -> ast.Constant:
    assert isinstance(node, ast.Constant)
    return ast.Constant(str(node.value) + "?")
