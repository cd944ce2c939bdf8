"""Mutants of a recorded step: the graphs of the ranks with one operation changed, on all ranks or on one."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tpinit.step.calls import VIEWS, base_name
from tpinit.step.graph import Graph, Op, Ref
from tpinit.step.whole import needed_ops

# Another operation with the same arguments.
_OTHER = {
    "aten.add.Tensor": "aten.sub.Tensor",
    "aten.add_.Tensor": "aten.sub.Tensor",
    "aten.sub.Tensor": "aten.add.Tensor",
    "aten.mul.Tensor": "aten.add.Tensor",
    "aten.silu.default": "aten.relu.default",
    "aten.neg.default": "aten.abs.default",
    "aten.ge.Scalar": "aten.gt.Scalar",
    "aten.lt.Scalar": "aten.le.Scalar",
    "aten.cos.default": "aten.sin.default",
    "aten.rsqrt.default": "aten.sqrt.default",
    "aten.exp_.default": "aten.log.default",
}
_ALPHA = 2  # the place of the factor of an addend
_ADDS = ("aten.add.Tensor", "aten.add_.Tensor", "aten.sub.Tensor")
_COPIES = (
    "aten._to_copy.default",
    "aten.clone.default",
    "aten.detach.default",
    "aten.alias.default",
    "aten.contiguous.default",
)
_COMMUTE = ("aten.add.Tensor", "aten.add_.Tensor", "aten.mul.Tensor", "aten.bitwise_and.Tensor")


@dataclass(frozen=True, slots=True)
class StepMutant:
    """The graphs of all ranks with operation `index` changed; `kind` says how, and `op` is the one of rank 0."""

    kind: str
    index: int
    op: Op
    ranks: tuple[Graph, ...]


def step_mutants(ranks: Sequence[Graph]) -> Iterator[StepMutant]:
    """Yield the mutants of each operation that the results of rank 0 need; the ranks issue the same operations.

    A collective is deleted, doubled, or reduces by the maximum. Of any other operation a number is changed by one, its
    name, the order of its first two tensors, or its first tensor is another value of the same shape.
    """
    equal = _equal_values(ranks[0])
    for index in needed_ops(ranks[0]):
        op = ranks[0].ops[index]
        if any(index >= len(one.ops) or _form(one.ops[index]) != _form(op) for one in ranks):
            continue  # with uneven shards a rank may issue one operation more
        found = _collective(ranks, index) if op.name.startswith("collective.") else _plain(ranks, index, equal)
        for kind, graphs in found:
            yield StepMutant(kind, index, op, tuple(graphs))


def _form(op: Op) -> tuple[str, list[type]]:
    return op.name, [type(arg) for arg in op.args]


def _collective(ranks: Sequence[Graph], index: int) -> Iterator[tuple[str, list[Graph]]]:
    yield "deleted", [_deleted(graph, index) for graph in ranks]
    if "all_reduce" in ranks[0].ops[index].name:
        yield "doubled", [_doubled(graph, index) for graph in ranks]
        other = "max" if ranks[0].ops[index].args[1] == "sum" else "sum"
        yield f"reduced by {other}", [_with_argument(graph, index, 1, other) for graph in ranks]


def _plain(ranks: Sequence[Graph], index: int, equal: dict[int, Any]) -> Iterator[tuple[str, list[Graph]]]:
    op, graph = ranks[0].ops[index], ranks[0]
    for place, arg in enumerate(op.args):
        if isinstance(arg, (int, float)) and not isinstance(arg, bool) and not (_adds_zero(op) and place == _ALPHA):
            for by in (1, -1):
                if _equal_argument(op, arg, arg + by, graph):
                    continue
                changed = [_with_argument(one, index, place, one.ops[index].args[place] + by) for one in ranks]
                yield from _on(f"argument {place} {by:+}", ranks, changed)
    if op.name in _OTHER and not _adds_zero(op):
        changed = [_with_op(one, index, replace(one.ops[index], name=_OTHER[op.name])) for one in ranks]
        yield from _on(f"made {_OTHER[op.name]}", ranks, changed)
    tensors = [arg.value for arg in op.args[:2] if isinstance(arg, Ref)]
    shapes = {graph.values[value].shape for value in tensors}
    if len(set(tensors)) == 2 and len(shapes) == 1 and op.name not in _COMMUTE:
        yield "operands exchanged", [_exchanged(one, index) for one in ranks]
    if op.args and isinstance(op.args[0], Ref):
        read = op.args[0].value
        alike = [one for one in range(read) if graph.values[one] == graph.values[read] and equal[one] != equal[read]]
        if alike:
            other = random.Random(index).choice(alike)
            yield from _on("reads another value", ranks, [_with_argument(one, index, 0, Ref(other)) for one in ranks])


def _equal_values(graph: Graph) -> dict[int, Any]:
    """Return for each value a key: equal for those that the same operations make from the same leaves.

    Copies, and views of views with one shape, are equal.
    """
    keys: dict[int, Any] = {leaf.value: ("leaf", leaf.kind, leaf.name) for leaf in graph.leaves}
    viewed: dict[int, int] = {}  # of each view the value at the root of its chain of views
    numbers: dict[Any, int] = {}
    for op in graph.ops:
        args = _keyed(op.args, keys)
        for output, value in enumerate(op.outputs):
            shape = graph.values[value].shape
            source = op.args[0].value if op.args and isinstance(op.args[0], Ref) else -1
            if base_name(op.name) in VIEWS:
                viewed[value] = source = viewed.get(source, source)
                args = ("view", keys.get(source))
            if source >= 0 and _is_copy(op, shape, graph.values[source].shape):
                keys[value] = keys.get(source)
            else:
                name = "view" if base_name(op.name) in VIEWS else op.name
                keys[value] = numbers.setdefault((name, args, output, shape), len(numbers))
    return keys


def _is_copy(op: Op, shape: tuple[int, ...], source: tuple[int, ...]) -> bool:
    """Return whether a result has all elements of the first argument, in their order."""
    if op.name == "aten.mul.Tensor":
        return op.args[1] == 1
    return op.name in _COPIES or (shape == source and base_name(op.name) in (*VIEWS, "expand", "slice"))


def _keyed(arg: Any, keys: dict[int, Any]) -> Any:
    if isinstance(arg, Ref):
        return ("value", keys.get(arg.value, arg.value))
    return tuple(_keyed(one, keys) for one in arg) if isinstance(arg, tuple) else (type(arg), arg)


def _equal_argument(op: Op, arg: float, other: float, graph: Graph) -> bool:
    """Return whether a number means the same: one rounded to itself, or a dimension counted from the end."""
    if arg == other:
        return True
    dimensions = len(graph.values[op.args[0].value].shape) if op.args and isinstance(op.args[0], Ref) else 0
    return dimensions == 1 and {arg, other} == {0, -1}


def _adds_zero(op: Op) -> bool:
    return op.name in _ADDS and op.args[1] == 0


def _on(kind: str, ranks: Sequence[Graph], changed: list[Graph]) -> Iterator[tuple[str, list[Graph]]]:
    yield f"{kind} on all ranks", changed
    yield f"{kind} on the last rank", [*ranks[:-1], changed[-1]]


def _with_op(graph: Graph, index: int, op: Op) -> Graph:
    return replace(graph, ops=(*graph.ops[:index], op, *graph.ops[index + 1 :]))


def _with_argument(graph: Graph, index: int, place: int, arg: Any) -> Graph:
    args = graph.ops[index].args
    return _with_op(graph, index, replace(graph.ops[index], args=(*args[:place], arg, *args[place + 1 :])))


def _exchanged(graph: Graph, index: int) -> Graph:
    first, second, *rest = graph.ops[index].args
    return _with_op(graph, index, replace(graph.ops[index], args=(second, first, *rest)))


def _deleted(graph: Graph, index: int) -> Graph:
    """Return the graph in which what is sent stands for what would be received."""
    op = graph.ops[index]
    sent = op.args[0]
    assert isinstance(sent, tuple)
    renamed = {value: sent[0].value for value in op.outputs if isinstance(sent[0], Ref)}
    ops = tuple(replace(one, args=_renamed(one.args, renamed)) for one in graph.ops if one is not op)
    return replace(graph, ops=ops, results={name: renamed.get(value, value) for name, value in graph.results.items()})


def _doubled(graph: Graph, index: int) -> Graph:
    """Return the graph in which the result of a collective is sent by the same collective once more."""
    op, fresh = graph.ops[index], len(graph.values)
    renamed = {op.outputs[0]: fresh}
    again = replace(op, args=((Ref(op.outputs[0]),), *op.args[1:]), outputs=(fresh,))
    later = tuple(replace(one, args=_renamed(one.args, renamed)) for one in graph.ops[index + 1 :])
    return replace(
        graph,
        values=(*graph.values, graph.values[op.outputs[0]]),
        ops=(*graph.ops[: index + 1], again, *later),
        results={name: renamed.get(value, value) for name, value in graph.results.items()},
    )


def _renamed(arg: Any, renamed: dict[int, int]) -> Any:
    if isinstance(arg, Ref):
        return Ref(renamed.get(arg.value, arg.value))
    return tuple(_renamed(one, renamed) for one in arg) if isinstance(arg, tuple) else arg
