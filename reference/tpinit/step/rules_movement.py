"""Rules of data movement: each moves the indices that a rank holds as the elements, so SHARD and PARTIAL stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tpinit.step.calls import VIEWS, slice_bounds
from tpinit.step.layouts import Index, Kind, Lifted, Stuck, Tensors, normal_axis
from tpinit.step.operations_movement import every_nth, spread
from tpinit.step.parts import viewed
from tpinit.step.pieces import length_of, shifted, taken
from tpinit.step.rules_joined import joined_slice, joined_view, padded

if TYPE_CHECKING:
    from tpinit.step.lift import Lifter, Ranks

__all__ = ["MOVEMENT"]

Rule = Callable[["Lifter", "Ranks"], "list[Tensors] | None"]


# --- permutations and broadcasts -----------------------------------------------------------------------------


def _permuted(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    operand = ranks.args[0]
    if not isinstance(operand, Lifted):
        return None
    rank = len(operand.term.shape)
    order = list(range(rank))
    if ranks.name == "permute":
        order = [dim % rank for dim in ranks.constant(1)]
    elif ranks.name == "t":
        order.reverse()
    else:
        first, second = (ranks.constant(place) % rank for place in (1, 2))
        order[first], order[second] = order[second], order[first]
    index = tuple(operand.index[dim] for dim in order)
    return [lifter.checked(lifter.of.permute(operand.term, order), operand.kind, index, ranks.ops)]


def _expanded(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    """A dimension of size 1 that all ranks hold is broadcast to one size on all ranks; new dimensions come first."""
    operand = ranks.args[0]
    if not isinstance(operand, Lifted):
        return None
    shapes = lifter.made(ranks)
    new = len(shapes[0]) - len(operand.term.shape)
    index: list[Any] = [None] * new + list(operand.index)
    shape = []
    for dim, size in enumerate((1,) * new + operand.term.shape):
        if index[dim] is not None:
            shape.append(size)
            continue
        sizes = {one[dim] for one in shapes}
        if len(sizes) > 1 or (size not in (1, *sizes)):
            raise Stuck("the ranks broadcast one dimension to different sizes")
        shape.append(sizes.pop())
    return [lifter.checked(lifter.of.expand(operand.term, tuple(shape)), operand.kind, tuple(index), ranks.ops)]


# --- views ---------------------------------------------------------------------------------------------------


def _view(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    operand = ranks.args[0]
    shapes = lifter.made(ranks)
    if not isinstance(operand, Lifted):
        return joined_view(operand, shapes)
    return [viewed(lifter, operand, shapes)]


# --- slices and concatenations -------------------------------------------------------------------------------


def _sliced(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    operand = ranks.args[0]
    if not isinstance(operand, Lifted):
        return joined_slice(
            operand, [op.args for op in ranks.ops], len(lifter.graphs[0].values[ranks.ops[0].outputs[0]].shape)
        )
    dim = ranks.constant(1) % len(operand.term.shape)
    if ranks.constant(4) != 1:
        if operand.index[dim] is not None or len({op.args[2:4] for op in ranks.ops}) > 1:
            raise Stuck("a slice with a step along a sharded dimension")
        term = every_nth(lifter.of, (operand.term, *ranks.ops[0].args[1:]), dim)
        return [lifter.checked(term, operand.kind, operand.index, ranks.ops)]
    bounds = []
    for rank, op in enumerate(ranks.ops):
        found = slice_bounds(op.args, operand.local_shape(rank)[dim])
        if found is None:
            raise Stuck("a slice with a step other than 1")
        bounds.append(found)
    return [lifter.checked(*_slice(lifter, operand, dim, bounds), ranks.ops)]


def _slice(lifter: Lifter, operand: Lifted, dim: int, bounds: list[tuple[int, int]]) -> tuple[Any, Kind, Index]:
    """Return the claim about a slice (start, length) of each rank, as a slice of the whole."""
    size, pieces = operand.term.shape[dim], operand.index[dim]
    if pieces is None:
        if len(set(bounds)) > 1:
            pieces = (((0, size),),) * lifter.ranks
        else:
            start, length = bounds[0]
            return lifter.of.slice(operand.term, dim, start, length), operand.kind, operand.index
    held = [taken(one, *bound) for one, bound in zip(pieces, bounds, strict=True)]
    runs = sorted(run for one in held for run in one)
    if not runs:
        raise Stuck("a slice of nothing")
    low, high = runs[0][0], max(offset + length for offset, length in runs)
    if operand.kind is Kind.PARTIAL:
        for one, own in zip(held, pieces, strict=True):
            if length_of(one) != sum(max(min(o + n, high) - max(o, low), 0) for o, n in own):
                raise Stuck("a slice of addends leaves out a part of its range")
    index = list(operand.index)
    index[dim] = normal_axis(high - low, [shifted(one, -low) for one in held])
    return lifter.of.slice(operand.term, dim, low, high - low), operand.kind, tuple(index)


def _slice_gradient(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    """The gradient of a slice: zeros around it, along a dimension that all ranks hold."""
    operand = ranks.args[0]
    if not isinstance(operand, Lifted):
        return None
    dim = ranks.constant(2) % len(operand.term.shape)
    sizes = {op.args[1][dim] for op in ranks.ops}
    if len(sizes) > 1:
        raise Stuck("the gradient of a slice, of different lengths on the ranks")
    size = sizes.pop()
    bounds = slice_bounds((None, dim, *(ranks.constant(place) for place in (3, 4, 5))), size)
    if bounds is None:
        if operand.index[dim] is not None:
            raise Stuck("the gradient of a slice with a step along a sharded dimension")
        start, step = ranks.constant(3), ranks.constant(5)
        term = spread(lifter.of, operand.term, dim, max(start + size if start < 0 else start, 0), step, size)
        return [lifter.checked(term, operand.kind, operand.index, ranks.ops)]
    if any(operand.local_shape(rank)[dim] != bounds[1] for rank in range(lifter.ranks)):
        raise Stuck("the gradient of a slice of another length")
    if operand.index[dim] is not None:
        return [padded(operand, dim, *bounds, size)]
    term = lifter.of.pad(operand.term, dim, bounds[0], size)
    return [lifter.checked(term, operand.kind, operand.index, ranks.ops)]


def _select_gradient(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    """The gradient of one index: zeros around it."""
    operand = ranks.args[0]
    if not isinstance(operand, Lifted):
        return None
    dim = ranks.constant(2) % (len(operand.term.shape) + 1)
    sizes = {op.args[1][dim] for op in ranks.ops}
    if len(sizes) > 1:
        raise Stuck("the gradient of an index of a sharded dimension")
    size = sizes.pop()
    term, index = operand.term, operand.index
    one = lifter.of.view(term, (*term.shape[:dim], 1, *term.shape[dim:]))
    padded_term = lifter.of.pad(one, dim, ranks.constant(3) % size, size)
    return [lifter.checked(padded_term, operand.kind, (*index[:dim], None, *index[dim:]), ranks.ops)]


def _selected(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    operand = ranks.args[0]
    if not isinstance(operand, Lifted):
        return None
    dim = ranks.constant(1) % len(operand.term.shape)
    bounds = [(op.args[2] % operand.local_shape(rank)[dim], 1) for rank, op in enumerate(ranks.ops)]
    part = Lifted(*_slice(lifter, operand, dim, bounds))
    return [viewed(lifter, part, lifter.made(ranks))]


def _pieces(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    """split, chunk and unbind: one slice after another."""
    operand = ranks.args[0]
    if not isinstance(operand, Lifted):
        return None
    place = 1 if ranks.name == "unbind" else 2
    dim = ranks.constant(place) % len(operand.term.shape) if len(ranks.args) > place else 0
    starts = [0] * lifter.ranks
    found: list[Tensors] = []
    for outputs in zip(*(op.outputs for op in ranks.ops), strict=True):
        shapes = lifter.shape(outputs)
        lengths = [1 if ranks.name == "unbind" else shape[dim] for shape in shapes]
        part = Lifted(*_slice(lifter, operand, dim, list(zip(starts, lengths, strict=True))))
        found.append(viewed(lifter, part, shapes) if ranks.name == "unbind" else part)
        starts = [start + length for start, length in zip(starts, lengths, strict=True)]
    return found


MOVEMENT: dict[str, Rule] = {
    **dict.fromkeys(("permute", "t", "transpose"), _permuted),
    "expand": _expanded,
    **dict.fromkeys(VIEWS, _view),
    "slice": _sliced,
    "select": _selected,
    "slice_backward": _slice_gradient,
    "select_backward": _select_gradient,
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "unbind"), _pieces),
}
