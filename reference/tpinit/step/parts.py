"""Views and concatenations of the parts that the ranks hold, as claims about a view or a concatenation of the whole."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

from tpinit.step.layouts import Index, Kind, Lifted, Stuck, normal_axis
from tpinit.step.pieces import Pieces, joined, length_of, merged, normal, shifted
from tpinit.step.terms import Shape, dim_groups

if TYPE_CHECKING:
    from tpinit.step.lift import Lifter

__all__ = ["concatenated", "viewed"]


def _whole(size: int) -> Pieces:
    return ((0, size),)


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
