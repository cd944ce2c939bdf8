"""Mutation operators of other kinds: magic constants, two inputs at once, sequences, order, sources, types.

Each operator is a function of a node of the syntax tree and of the integers that are inputs there. It yields other
nodes. They are for proven modules: no finite number of tests rules out one constant, a theorem does.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from itertools import pairwise

from tpinit.spec import vocabulary

__all__ = ["OPERATORS", "Inputs", "inputs_of", "swapped_and_doubled"]

# Expressions of an enclosing function's integer parameters, such as `world_size` or `inputs.world_size`.
Inputs = Sequence[ast.expr]
Operator = Callable[[ast.AST, Inputs], Iterator[ast.AST]]

_MAGIC = 12289  # a constant that no test has
_PAIR = 12288, 4  # of which the second divides the first, as a TP size the size of a world
_ORDER = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_INTEGERS = ("size", "rank", "index", "position", "length", "parts", "unit", "value", "identity")
_ENUMS = {name: kind for name, kind in vars(vocabulary).items() if isinstance(kind, type) and issubclass(kind, Enum)}


def inputs_of(function: ast.FunctionDef) -> list[ast.expr]:
    """Return what a function is given as integers: parameters declared int, and the world size of `Inputs`."""
    found = {"int": "{}", "Inputs": "{}.world_size"}
    return [
        _expression(found[one.annotation.id].format(one.arg))
        for one in function.args.args
        if isinstance(one.annotation, ast.Name) and one.annotation.id in found
    ]


def _expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _is(value: ast.expr, constant: int) -> ast.expr:
    return ast.Compare(value, [ast.Eq()], [ast.Constant(constant)])


def _not(value: ast.expr) -> ast.expr:
    return ast.UnaryOp(ast.Not(), value)


# --- truth values and integers --------------------------------------------------------


def _is_integer(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return type(node.value) is int
    named = node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")
    called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "len"
    return isinstance(node, ast.BinOp) or called or named.endswith(_INTEGERS)


def _compared(node: ast.AST) -> ast.expr | None:
    """Return the first side, not a constant, of a comparison of two integers."""
    if not isinstance(node, ast.Compare) or len(node.ops) != 1:
        return None
    sides = [node.left, *node.comparators]
    ordered = isinstance(node.ops[0], _ORDER)
    equal = isinstance(node.ops[0], (ast.Eq, ast.NotEq)) and all(_is_integer(side) for side in sides)
    return next((side for side in sides if not isinstance(side, ast.Constant)), None) if ordered or equal else None


def magic_constants(node: ast.AST, inputs: Inputs) -> Iterator[ast.AST]:
    """One number for which a comparison of integers is false, and one for which it is true."""
    del inputs
    side = _compared(node)
    if side is None or not isinstance(node, ast.Compare):
        return
    fixed = any(isinstance(one, ast.Constant) for one in (node.left, *node.comparators))
    if not (fixed and isinstance(node.ops[0], ast.Eq)):  # where x is 1 it is not 12289 anyway
        yield ast.BoolOp(ast.And(), [node, ast.Compare(side, [ast.NotEq()], [ast.Constant(_MAGIC)])])
    if not (fixed and isinstance(node.ops[0], ast.NotEq)):
        yield ast.BoolOp(ast.Or(), [node, _is(side, _MAGIC)])


def _is_test(node: ast.AST) -> bool:
    return isinstance(node, (ast.Compare, ast.BoolOp)) or (isinstance(node, ast.UnaryOp) and _is_not(node))


def _is_not(node: ast.UnaryOp) -> bool:
    return isinstance(node.op, ast.Not)


def extra_conjuncts(node: ast.AST, inputs: Inputs) -> Iterator[ast.AST]:
    """A test that depends on one number of an input that it does not ask for."""
    if _is_test(node) and isinstance(node, ast.expr):
        for one in inputs[:1]:
            yield ast.BoolOp(ast.And(), [node, ast.Compare(one, [ast.NotEq()], [ast.Constant(_MAGIC)])])


def two_inputs(node: ast.AST, inputs: Inputs) -> Iterator[ast.AST]:
    """A test, or a returned number, that is wrong for one pair of numbers of two inputs."""
    for one, other in pairwise(inputs):
        both = ast.BoolOp(ast.And(), [_is(one, _PAIR[0]), _is(other, _PAIR[1])])
        if _is_test(node) and isinstance(node, ast.expr):
            yield ast.BoolOp(ast.And(), [node, _not(both)])
        elif isinstance(node, ast.Return) and node.value is not None and _is_integer(node.value):
            yield ast.Return(ast.IfExp(both, ast.Constant(0), node.value))


def one_number(node: ast.AST, inputs: Inputs) -> Iterator[ast.AST]:
    """A returned number that is wrong for one number of an input, and one that only its type tells."""
    if isinstance(node, ast.Return) and node.value is not None and _is_integer(node.value):
        for one in inputs:
            yield ast.Return(ast.IfExp(_is(one, _MAGIC), ast.Constant(0), node.value))
            yield ast.Return(ast.IfExp(_expression(f"{ast.unparse(one)} is True"), ast.Constant(0), node.value))


def types_in_tests(node: ast.AST, inputs: Inputs) -> Iterator[ast.AST]:
    """A comparison of integers that a truth value, or a subclass of int, passes otherwise."""
    del inputs
    side = _compared(node)
    if side is not None and isinstance(node, ast.Compare):
        text = ast.unparse(side)
        for test in (f"type({text}) is int", f"not isinstance({text}, bool)", f"{text} is not True"):
            yield ast.BoolOp(ast.And(), [node, _expression(test)])


# --- sequences, order, sources, types ---------------------------------------------------


def _with(node: ast.AST, **changed: object) -> ast.AST:
    twin = copy.copy(node)
    for name, value in changed.items():
        setattr(twin, name, value)
    return twin


def _slices(value: ast.expr) -> Iterator[ast.expr]:
    """The sequence without its first item, without its last, reversed, and twice."""
    for text in ("x[1:]", "x[:-1]", "x[::-1]"):
        part = _expression(text)
        assert isinstance(part, ast.Subscript)
        yield ast.Subscript(value, part.slice, ast.Load())
    yield ast.BinOp(value, ast.Add(), value)


def sequences(node: ast.AST, inputs: Inputs) -> Iterator[ast.AST]:
    """A sequence, made by a comprehension or by `tuple` or `list`, that is cut, reversed or doubled."""
    del inputs
    made = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("tuple", "list")
    if isinstance(node, ast.ListComp) or (made and isinstance(node, ast.Call) and node.args):
        yield from _slices(node)


def items(node: ast.AST, inputs: Inputs) -> Iterator[ast.AST]:
    """A written tuple or list with an item dropped, the first one doubled, or two neighbours swapped."""
    del inputs
    if not isinstance(node, (ast.Tuple, ast.List)) or not isinstance(node.ctx, ast.Load) or len(node.elts) < 2:
        return
    for index in range(len(node.elts)):
        yield _with(node, elts=[*node.elts[:index], *node.elts[index + 1 :]])
    yield _with(node, elts=[node.elts[0], *node.elts])
    yield from (_with(node, elts=swapped) for swapped in _neighbours(node.elts))


def _neighbours(those: Sequence[ast.expr]) -> Iterator[list[ast.expr]]:
    for index, (one, other) in enumerate(pairwise(those)):
        if ast.dump(one) != ast.dump(other):
            yield [*those[:index], other, one, *those[index + 2 :]]


def order_of_arguments(node: ast.AST, inputs: Inputs) -> Iterator[ast.AST]:
    """A call with its second argument swapped with the third, and so on."""
    del inputs
    if isinstance(node, ast.Call) and not any(isinstance(one, ast.Starred) for one in node.args):
        for rest in _neighbours(node.args[1:]):
            yield _with(node, args=[*node.args[:1], *rest])


def appends(node: ast.AST, inputs: Inputs) -> Iterator[ast.AST]:
    """An item that is put in front instead of at the end."""
    del inputs
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "append":
        yield ast.Call(ast.Attribute(node.func.value, "insert", ast.Load()), [ast.Constant(0), *node.args], [])


def sources(node: ast.AST, inputs: Inputs) -> Iterator[ast.AST]:
    """Another member of the same enum of the vocabulary: another source, violation or outcome."""
    del inputs
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in _ENUMS:
        names = list(_ENUMS[node.value.id].__members__)
        if node.attr in names:
            yield _with(node, attr=names[(names.index(node.attr) + 1) % len(names)])


def _fields() -> dict[str, set[str]]:
    """Map each field of a record of the vocabulary to the fields of the same record and type."""
    found: dict[str, set[str]] = {}
    for record in vars(vocabulary).values():
        if isinstance(record, type) and dataclasses.is_dataclass(record):
            fields = dataclasses.fields(record)
            for one in fields:
                alike = {other.name for other in fields if other.type == one.type} - {one.name}
                found[one.name] = found.get(one.name, set()) | alike
    return found


_ALIKE = _fields()


def fields(node: ast.AST, inputs: Inputs) -> Iterator[ast.AST]:
    """Another field of the same record and type."""
    del inputs
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        for other in sorted(_ALIKE.get(node.attr, ())):
            yield _with(node, attr=other)


def types(node: ast.AST, inputs: Inputs) -> Iterator[ast.AST]:
    """`type(x) is kind` for `isinstance(x, kind)`, and `==` for `is True`."""
    del inputs
    called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
    if isinstance(node, ast.Call) and called == "isinstance" and isinstance(node.args[1], ast.Name):
        yield _expression(f"type({ast.unparse(node.args[0])}) is {node.args[1].id}")
    if isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.Is, ast.IsNot)):
        right = node.comparators[0]
        if isinstance(right, ast.Constant) and isinstance(right.value, bool):
            other = ast.Eq() if isinstance(node.ops[0], ast.Is) else ast.NotEq()
            yield _with(node, ops=[other])


OPERATORS: tuple[Operator, ...] = (
    *(magic_constants, extra_conjuncts, two_inputs, one_number, types_in_tests),
    *(sequences, items, order_of_arguments, appends, sources, fields, types),
)


# --- statements -----------------------------------------------------------------------------------------


def swapped_and_doubled(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield a name and the statement with two neighbours of its block swapped, or one that appends doubled."""
    for block in ("body", "orelse"):
        body = getattr(node, block, None)
        if not isinstance(body, list):
            continue
        for index, statement in enumerate(body):
            after = body[index + 1] if index + 1 < len(body) else None
            if not _appends(statement):
                continue
            doubled = [*body[: index + 1], *body[index:]]
            yield f"`{_line(statement)}` twice", _with(node, **{block: doubled})
            if after is not None and _appends(after):
                swapped = [*body[:index], after, statement, *body[index + 2 :]]
                yield f"`{_line(statement)}` after `{_line(after)}`", _with(node, **{block: swapped})


def _line(statement: ast.stmt) -> str:
    return ast.unparse(statement).partition("\n")[0]


def _appends(statement: ast.stmt) -> bool:
    """Return whether a statement adds to a sequence, itself or under a condition, and does nothing else."""
    if isinstance(statement, ast.If) and not statement.orelse:
        return all(_appends(one) for one in statement.body)
    call = statement.value if isinstance(statement, ast.Expr) else None
    added = isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "append"
    return added or (isinstance(statement, ast.AugAssign) and isinstance(statement.op, ast.Add))
