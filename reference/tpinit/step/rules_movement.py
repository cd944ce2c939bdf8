"""Rules of data movement: each moves the indices that a rank holds as it moves the elements.

So SHARD and PARTIAL stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import TYPE_CHECKING, Any

from tpinit.step.calls import slice_bounds
from tpinit.step.layouts import Index, Kind, Lifted, Stuck, Tensors, normal_axis
from tpinit.step.operations_movement import every_nth, spread
from tpinit.step.pieces import Pieces, joined, length_of, merged, normal, shifted, taken
from tpinit.step.rules_joined import joined_slice, joined_view, padded
from tpinit.step.terms import Shape, dim_groups

if TYPE_CHECKING:
    from tpinit.step.lift import Lifter, Ranks

__all__ = ["MOVEMENT", "viewed"]

Rule = Callable[["Lifter", "Ranks"], "list[Tensors] | None"]


def _whole(size: int) -> Pieces:
    return ((0, size),)


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
    shapes = lifter.shape(tuple(op.outputs[0] for op in ranks.ops))
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
    shapes = lifter.shape(tuple(op.outputs[0] for op in ranks.ops))
    if not isinstance(operand, Lifted):
        return joined_view(operand, shapes)
    return [viewed(lifter, operand, shapes)]


def viewed(lifter: Lifter, operand: Lifted, shapes: tuple[Shape, ...]) -> Lifted:
    """Return the claim about a view to `shapes` (that of each rank). Raises Stuck if the parts are not parts of a view.

    The whole shape is not recorded on a rank. Of the shapes that fit, one whose view is a value of the whole step is
    taken, and else the one that mixes the sharded dimension with the fewest others: the claim holds for each.
    """
    if 0 in operand.term.shape or any(0 in shape for shape in shapes):
        raise Stuck("a view of a tensor without elements")
    fits = []
    for shape in sorted(_whole_shapes(operand, shapes), key=lambda one: _mixed(operand, one)):
        index = _view_index(operand, shape, shapes)
        if index is not None:
            claim = Lifted(lifter.of.view(operand.term, shape), operand.kind, index)
            if claim.term in lifter.whole.known:
                return claim
            fits.append(claim)
    if not fits:
        raise Stuck(f"a view of {list(operand.local_shape(0))} as {list(shapes[0])} splits a sharded dimension")
    return fits[0]


def _mixed(operand: Lifted, shape: Shape) -> int:
    """Return the number of elements in the groups of dimensions of a view in which one is sharded."""
    before = operand.term.shape
    return sum(
        prod(before[dim] for dim in group)
        for group, _ in dim_groups(before, shape)
        if any(operand.index[dim] is not None for dim in group)
    )


def _whole_shapes(operand: Lifted, shapes: tuple[Shape, ...]) -> Iterator[Shape]:
    """Yield the shapes of which those of the ranks may be parts: one or two dimensions are longer."""
    total = prod(operand.term.shape)
    first = shapes[0]
    fixed = [len({shape[dim] for shape in shapes}) == 1 for dim in range(len(first))]
    if all(fixed) and prod(first) == total:
        yield first
        return
    cuts = [dim for dim in range(len(first)) if not fixed[dim]]
    for dim in cuts or range(len(first)):
        rest = prod(size for place, size in enumerate(first) if place != dim)
        if len(cuts) <= 1 and rest and total % rest == 0:
            yield (*first[:dim], total // rest, *first[dim + 1 :])
    sizes = {size for size, pieces in zip(operand.term.shape, operand.index, strict=True) if pieces is not None}
    if sum(pieces is not None for pieces in operand.index) < 2:
        return
    for one in range(len(first)):
        for other in range(len(first)):
            for size in sizes:
                rest = size * prod(held for place, held in enumerate(first) if place not in (one, other))
                if one != other and rest and total % rest == 0:
                    shape = list(first)
                    shape[one], shape[other] = size, total // rest
                    yield tuple(shape)


def _view_index(operand: Lifted, shape: Shape, shapes: tuple[Shape, ...]) -> Index | None:
    """Return the index of a view of the whole to `shape`; None if a rank's view is no part of it."""
    ranks = len(shapes)
    index: list[tuple[Pieces, ...] | None] = [None] * len(shape)
    for before, after in dim_groups(operand.term.shape, shape):
        if all(operand.index[dim] is None for dim in before):
            if any(one[dim] != shape[dim] for one in shapes for dim in after):
                return None
            continue
        sizes = [shape[dim] for dim in after]
        split: list[list[Pieces]] = []
        for rank in range(ranks):
            parts = [
                (operand.term.shape[dim], _whole(operand.term.shape[dim]) if pieces is None else pieces[rank])
                for dim in before
                for pieces in [operand.index[dim]]
            ]
            found = _split(merged(parts), sizes)
            if found is None or [length_of(pieces) for pieces in found] != [shapes[rank][dim] for dim in after]:
                return None
            split.append(found)
        for place, dim in enumerate(after):
            index[dim] = normal_axis(shape[dim], [held[place] for held in split])
    return tuple(index)


def _split(pieces: Pieces, sizes: list[int]) -> list[Pieces] | None:
    """Return the pieces of each dimension of a merged one; None if they are no product of such."""
    if len(sizes) == 1:
        return [pieces]
    inner = prod(sizes[1:])
    rows: dict[int, list[tuple[int, int]]] = {}
    order = []
    for offset, length in pieces:
        while length:
            row, start = divmod(offset, inner)
            run = min(length, inner - start)
            if row not in rows:
                rows[row] = []
                order.append(row)
            rows[row].append((start, run))
            offset, length = offset + run, length - run
    held = {normal(runs) for runs in rows.values()}
    if len(held) != 1:
        return None
    rest = _split(held.pop(), sizes[1:])
    if rest is None:
        return None
    found = [normal((row, 1) for row in order), *rest]
    return found if merged(list(zip(sizes, found, strict=True))) == normal(pieces) else None


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
            pieces = (_whole(size),) * lifter.ranks
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
    return [viewed(lifter, part, lifter.shape(tuple(op.outputs[0] for op in ranks.ops)))]


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


def concatenated(lifter: Lifter, parts: list[Lifted], dim: int) -> Lifted:
    """Return the claim about parts that every rank concatenates. Raises Stuck if they differ in another dimension."""
    if not parts or len({len(part.index) for part in parts}) > 1:
        raise Stuck("parts with different numbers of dimensions are concatenated")
    kinds = {part.kind for part in parts}
    others = {tuple(pieces for place, pieces in enumerate(part.index) if place != dim) for part in parts}
    if len(kinds) > 1 or len(others) > 1:
        raise Stuck("parts that are sharded differently are concatenated")
    kind, index = parts[0].kind, list(parts[0].index)
    held = [part.index[dim] for part in parts]
    if kind is Kind.SHARD and all(one is not None for one in held) and len({part.term for part in parts}) == 1:
        together = [joined(one[rank] for one in held if one is not None) for rank in range(lifter.ranks)]
        index[dim] = normal_axis(parts[0].term.shape[dim], together)
        return Lifted(parts[0].term, kind, tuple(index))
    if all(one is None for one in held):
        return Lifted(lifter.of.cat([part.term for part in parts], dim), kind, tuple(index))
    runs: list[list[Pieces]] = [[] for _ in range(lifter.ranks)]
    start = 0
    for part, one in zip(parts, held, strict=True):
        size = part.term.shape[dim]
        for rank in range(lifter.ranks):
            runs[rank].append(shifted(_whole(size) if one is None else one[rank], start))
        start += size
    index[dim] = normal_axis(start, [joined(one) for one in runs])
    return Lifted(lifter.of.cat([part.term for part in parts], dim), kind, tuple(index))


MOVEMENT: dict[str, Rule] = {
    **dict.fromkeys(("permute", "t", "transpose"), _permuted),
    "expand": _expanded,
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "_reshape_alias"), _view),
    "slice": _sliced,
    "select": _selected,
    "slice_backward": _slice_gradient,
    "select_backward": _select_gradient,
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "unbind"), _pieces),
}

__all__ += ["concatenated"]
