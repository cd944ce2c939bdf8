"""Rules of tensors that are joined from parts with different layouts: the flat buffer of gradients, the sums of a norm.

A concatenation or stack whose parts are no parts of one whole stays in its parts: views, slices and sums work on each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

from tpinit.step.calls import axes, base_name, is_real, number_of, slice_bounds
from tpinit.step.layouts import Blank, Filler, Joined, Kind, Lifted, Root, Stuck, Tensors
from tpinit.step.parts import concatenated, viewed
from tpinit.step.terms import Shape
from tpinit.step.whole import refs

if TYPE_CHECKING:
    from tpinit.step.lift import Lifter, Ranks

__all__ = ["JOINED", "join", "joined_slice", "joined_view", "padded"]

Rule = Callable[["Lifter", "Ranks"], "list[Tensors] | None"]


def join(lifter: Lifter, claim: Joined) -> Lifted:
    """Return joined parts as parts of one concatenation. Raises Stuck if they are not that."""
    parts = [part() for part in claim.parts]
    lifted = [part for part in parts if isinstance(part, Lifted)]
    if len(lifted) != len(parts):
        raise Stuck("parts with different layouts are joined, and this operation reads them as one")
    return concatenated(lifter, lifted, claim.dim)


def padded(operand: Lifted, dim: int, start: int, length: int, size: int) -> Joined:
    """Return the tensors of the ranks with zeros around them."""
    parts = [(start, Filler(is_zero=True)), (length, operand), (size - start - length, Filler(is_zero=True))]
    kept = [(count, part) for count, part in parts if count]
    return Joined(dim, tuple(count for count, _ in kept), tuple(_given(part) for _, part in kept))


def _added(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    """Add joined tensors whose parts lie in each other's gaps."""
    one, other = ranks.args[:2]
    if not isinstance(one, Joined) or not isinstance(other, Joined) or one.dim != other.dim:
        return None
    if ranks.name != "add" or number_of(ranks.constant(2)) != 1 or sum(one.sizes) != sum(other.sizes):
        return None
    if not _same_shapes(lifter, ranks):
        return None
    if any(part() == Filler(is_zero=False) for part in (*one.parts, *other.parts)):
        return None
    placed = {**_places(one), **_places(other)}
    if len(placed) != len(_places(one)) + len(_places(other)):
        return None
    return _with_gaps(one.dim, placed, sum(one.sizes), Filler(is_zero=True))


def _same_shapes(lifter: Lifter, ranks: Ranks) -> bool:
    """Return whether on each rank both operands have the shape of the result."""
    return all(
        len({graph.values[value].shape for value in (*refs(op.args), op.outputs[0])}) == 1
        for graph, op in zip(lifter.graphs, ranks.ops, strict=True)
    )


def _with_gaps(dim: int, placed: dict[tuple[int, int], Tensors], total: int, gap: Filler) -> list[Tensors] | None:
    """Return joined parts at their places (start, length), with gaps between; None if parts overlap."""
    sizes: list[int] = []
    parts: list[Tensors] = []
    position = 0
    for (start, length), part in sorted(placed.items(), key=lambda item: item[0]):
        if start < position:
            return None
        if start > position:
            sizes.append(start - position)
            parts.append(gap)
        sizes.append(length)
        parts.append(part)
        position = start + length
    if position < total:
        sizes.append(total - position)
        parts.append(gap)
    return [Joined(dim, tuple(sizes), tuple(_given(part) for part in parts))]


def _written(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    """A slice of a new tensor is written: its other elements stay anything until they are written too."""
    root, part = ranks.args[:2]
    if not isinstance(root, (Blank, Joined)) or not isinstance(part, Lifted):
        return None
    chains = {op.args[2] for op in ranks.ops}
    chain = next(iter(chains))
    if len(chains) > 1 or len(chain) != 1 or base_name(chain[0][0]) != "slice":
        raise Stuck("a part of a tensor is written that is not one slice")
    _, dim, *bounds = chain[0]
    rank = len(root.shape) if isinstance(root, Blank) else len(part.term.shape)
    dim %= rank
    if isinstance(root, Joined) and root.dim != dim:
        raise Stuck("slices of a tensor along two dimensions are written")
    total = root.shape[dim] if isinstance(root, Blank) else sum(root.sizes)
    found = slice_bounds((None, dim, *bounds), total)
    if found is None:
        raise Stuck("a slice with a step other than 1 is written")
    for graph, op in zip(lifter.graphs, ranks.ops, strict=True):
        before, after = (graph.values[value] for value in refs(op.args[:2]))
        whole = (*before.shape[:dim], found[1], *before.shape[dim + 1 :])
        if (after.shape, after.dtype) != (whole, before.dtype):
            raise Stuck("a slice is written by a tensor of another shape or dtype")
    placed = {} if isinstance(root, Blank) else _places(root)
    placed.pop(found, None)  # it is written over
    if isinstance(root, Joined) and Filler(is_zero=True) in [held() for held in root.parts]:
        raise Stuck("a slice of a gradient is written")
    placed[found] = part
    return _with_gaps(dim, placed, total, Filler(is_zero=False))


def _places(claim: Joined) -> dict[tuple[int, int], Tensors]:
    """Return the parts that are no gaps by (start, length)."""
    found: dict[tuple[int, int], Tensors] = {}
    position = 0
    for size, part in zip(claim.sizes, claim.parts, strict=True):
        held = part()
        if not isinstance(held, Filler):
            found[position, size] = held
        position += size
    return found


def _cat(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    """Concatenate: parts of one whole if they are, else parts that stay apart."""
    parts = list(ranks.args[0])
    outputs = lifter.made(ranks)
    dim = ranks.constant(1) % len(outputs[0])
    shapes = [
        tuple(graph.values[op.args[0][place].value].shape for graph, op in zip(lifter.graphs, ranks.ops, strict=True))
        for place in range(len(parts))
    ]
    if ranks.name == "stack":
        shapes = [tuple((*shape[:dim], 1, *shape[dim:]) for shape in each) for each in shapes]
        parts = [
            viewed(lifter, part, each) if isinstance(part, Lifted) else part
            for part, each in zip(parts, shapes, strict=True)
        ]
    kept = [(part, each) for part, each in zip(parts, shapes, strict=True) if set(each) != {(0,)}]
    if all(isinstance(part, Lifted) for part, _ in kept):
        try:
            found = concatenated(lifter, [part for part, _ in kept], dim)
        except Stuck:
            found = None
        if found is not None:
            return [lifter.checked(found.term, found.kind, found.index, ranks.ops)]
    if not all(isinstance(part, (Lifted, Root)) for part, _ in kept):
        raise Stuck("values that are no parts of a whole are concatenated")
    lengths = [{shape[dim] for shape in each} for _, each in kept]
    if any(len(one) > 1 for one in lengths):
        raise Stuck("parts with different layouts and different lengths on the ranks are concatenated")
    return [Joined(dim, tuple(one.pop() for one in lengths), tuple(_given(part) for part, _ in kept))]


def _given(part: Any) -> Callable[[], Any]:
    return lambda: part


def joined_slice(claim: Tensors, args: Sequence[tuple[Any, ...]], rank: int) -> list[Tensors] | None:
    """Return a slice of joined parts that begins and ends between parts, or lies in one."""
    if not isinstance(claim, Joined):
        return None
    bounds = {slice_bounds(one, sum(claim.sizes)) for one in args}
    if len(bounds) > 1 or None in bounds or {one[1] % rank for one in args} != {claim.dim}:
        raise Stuck("a slice of joined parts that is not along them")
    start, length = next(one for one in bounds if one is not None)
    return [_between(claim, start, length)]


def _between(claim: Joined, start: int, length: int) -> Tensors:
    position, found = 0, []
    for size, part in zip(claim.sizes, claim.parts, strict=True):
        if start <= position and position + size <= start + length:
            found.append((size, part))
        elif position < start + length and start < position + size:
            held = part()
            if not isinstance(held, Filler):
                raise Stuck("a slice of joined parts that splits one")
            found.append((min(position + size, start + length) - max(position, start), _given(held)))
        position += size
    if len(found) == 1:
        return found[0][1]()
    return Joined(claim.dim, tuple(size for size, _ in found), tuple(part for _, part in found))


def joined_view(claim: Tensors, shapes: Sequence[Shape]) -> list[Tensors] | None:
    """Return the joined parts themselves where their shape stays, and a root as it is, whose elements are a scalar."""
    if isinstance(claim, Root) and set(shapes) <= {(), (1,)}:
        return [claim]
    if isinstance(claim, Joined) and set(shapes) == {(sum(claim.sizes),)}:
        return [claim]
    return None


def _pieces(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    claim = ranks.args[0]
    if not isinstance(claim, Joined):
        return None
    rank = len(lifter.graphs[0].values[ranks.ops[0].outputs[0]].shape) + (ranks.name == "unbind")
    place = 1 if ranks.name == "unbind" else 2
    if (ranks.constant(place) if len(ranks.args) > place else 0) % rank != claim.dim:
        raise Stuck("joined parts are split along another dimension")
    start, found = 0, []
    for value in ranks.ops[0].outputs:
        shape = lifter.graphs[0].values[value].shape
        length = shape[claim.dim] if ranks.name != "unbind" else 1
        part = _between(claim, start, length)
        found.append(_scalar(lifter, part) if ranks.name == "unbind" else part)
        start += length
    return found


def _scalar(lifter: Lifter, part: Tensors) -> Tensors:
    return viewed(lifter, part, ((),) * lifter.ranks) if isinstance(part, Lifted) else part


def _selected(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    claim = ranks.args[0]
    if not isinstance(claim, Joined) or len(claim.sizes) != sum(claim.sizes) or ranks.constant(1) != claim.dim:
        return None
    return [_scalar(lifter, claim.parts[ranks.constant(2) % len(claim.sizes)]())]


def _mapped(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    """Apply a square to each part; a conversion between real dtypes changes none."""
    claim = ranks.args[0]
    if not isinstance(claim, Joined):
        return None
    if ranks.name == "_to_copy":
        return [claim] if is_real(lifter.dtype(ranks)) and is_real(lifter.read(ranks)[0]) else None
    if ranks.name == "pow" and number_of(ranks.constant(1)) != 2:
        return None
    return [Joined(claim.dim, claim.sizes, tuple(partial(_squared, lifter, part) for part in claim.parts))]


def _squared(lifter: Lifter, part: Callable[[], Tensors]) -> Tensors:
    found = part()
    if isinstance(found, Root):
        return found.squared
    if isinstance(found, Lifted) and found.kind is Kind.SHARD:
        return Lifted(lifter.of.product([found.term, found.term]), found.kind, found.index)
    raise Stuck("the square of a tensor of which each rank has an addend")


def _summed(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    """The sum of all elements of joined scalars: of one kind."""
    claim = ranks.args[0]
    if not isinstance(claim, Joined):
        return None
    if set(lifter.made(ranks)) != {()}:
        raise Stuck("a sum of joined parts that keeps a dimension")
    if len(claim.sizes) != sum(claim.sizes) or axes(ranks.args[1] if len(ranks.args) > 2 else None, 1) != (0,):
        raise Stuck("a sum of joined parts that are no scalars")
    parts = [_scalar(lifter, part()) for part in claim.parts]
    lifted = [part for part in parts if isinstance(part, Lifted)]
    kinds = {part.kind for part in lifted}
    if len(lifted) != len(parts) or len(kinds) != 1:
        raise Stuck("a sum of parts with different layouts")
    total = lifter.of.linear([(Fraction(1), part.term) for part in lifted], ())
    return [Lifted(total, kinds.pop(), ())]


JOINED: dict[str, Rule] = {
    "add": _added,
    "tpinit.write_view": _written,
    "cat": _cat,
    "stack": _cat,
    "split": _pieces,
    "split_with_sizes": _pieces,
    "unbind": _pieces,
    "select": _selected,
    **dict.fromkeys(("_to_copy", "square", "pow"), _mapped),
    "sum": _summed,
}
