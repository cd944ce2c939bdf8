"""Rules of a vocabulary that is sharded over the ranks: embeddings and the cross-entropy of sharded logits.

Here an operation's arguments differ between the ranks: the range [low, high) of ids that a rank holds. Where the ranges
are a partition of the vocabulary, an id lies in the range of one rank, so what every other rank replaces by 0 adds
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from tpinit.step.calls import number_of
from tpinit.step.layouts import Kind, Lifted, LocalIds, Masked, RangeMask, Stuck, Tensors, whole_index
from tpinit.step.terms import Term

if TYPE_CHECKING:
    from tpinit.step.lift import Lifter, Ranks

__all__ = ["VOCABULARY"]

Rule = Callable[["Lifter", "Ranks"], "list[Tensors] | None"]
_FAR = 1 << 62


def _bounds(ranks: Ranks) -> tuple[int, ...] | None:
    values = ranks.constants(1)
    return values if all(type(value) is int for value in values) else None


def _compared(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    """Ids >= low_r, ids < high_r, where the bounds differ between the ranks."""
    operand, bounds = ranks.args[0], _bounds(ranks)
    if not isinstance(operand, Lifted) or not operand.is_replicated or bounds is None:
        return None
    if ranks.name == "ge":
        return [RangeMask(operand.term, tuple((bound, _FAR) for bound in bounds))]
    return [RangeMask(operand.term, tuple((-_FAR, bound) for bound in bounds))]


def _as_mask(lifter: Lifter, claim: Any) -> RangeMask | None:
    """Return a mask, also of a comparison that is equal on all ranks."""
    if isinstance(claim, RangeMask):
        return claim
    if not isinstance(claim, Lifted) or not claim.is_replicated or claim.term.op not in ("ge", "lt"):
        return None
    ids, *rest = claim.term.args
    bound = rest[-1]
    if not isinstance(ids, Term) or not isinstance(bound, Fraction) or bound.denominator != 1:
        return None
    bounds = (int(bound), _FAR) if claim.term.op == "ge" else (-_FAR, int(bound))
    return RangeMask(ids, (bounds,) * lifter.ranks)


def _both(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    one, other = (_as_mask(lifter, arg) for arg in ranks.args[:2])
    if one is None or other is None or one.ids is not other.ids or one.negated or other.negated:
        return None
    if one.trailing != other.trailing:
        return None
    together = tuple(
        (max(low, low2), min(high, high2)) for (low, high), (low2, high2) in zip(one.ranges, other.ranges, strict=True)
    )
    return [RangeMask(one.ids, together, trailing=one.trailing)]


def _shifted(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    """Ids - low_r."""
    operand, bounds = ranks.args[0], _bounds(ranks) if len(ranks.args) > 1 else None
    if not isinstance(operand, Lifted) or not operand.is_replicated or bounds is None or len(set(bounds)) == 1:
        return None
    if number_of(ranks.constant(2)) != 1:
        return None
    return [LocalIds(operand.term, tuple((bound, bound) for bound in bounds), zeroed=False)]


def _chosen(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    """where(in range, ids - low_r, 0)."""
    mask, ids, other = ranks.args
    if not isinstance(mask, RangeMask):
        return None
    zero = other.term if isinstance(other, Lifted) else None
    is_zero = zero is not None and other.is_replicated and zero is lifter.of.number(Fraction(0), zero.shape)
    if not isinstance(ids, LocalIds) or ids.zeroed or not is_zero or ids.trailing != mask.trailing:
        raise Stuck("a choice by the range of a rank that is not that of its ids")
    lows = [low for low, _ in ids.ranges]
    if mask.negated or mask.ids is not ids.ids or lows != [low for low, _ in mask.ranges]:
        raise Stuck("ids are shifted by another bound than that of the rank's range")
    _check_shape(lifter, ranks, ids)
    return [LocalIds(ids.ids, mask.ranges, zeroed=True, trailing=ids.trailing)]


def _unsqueezed(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    """A view of a mask that adds a dimension behind the others is the mask of the same ids."""
    operand = ranks.args[0]
    if not isinstance(operand, (RangeMask, LocalIds)):
        return None
    if operand.trailing:
        raise Stuck("a mask of the ids of a rank is reshaped")
    found = replace(operand, trailing=True)
    _check_shape(lifter, ranks, found)
    return [found]


def _check_shape(lifter: Lifter, ranks: Ranks, claim: RangeMask | LocalIds) -> None:
    """Raise Stuck if a result has not the shape of the ids, with one more dimension of size 1 if `trailing`."""
    expected = (*claim.ids.shape, *([1] if claim.trailing else []))
    if set(lifter.made(ranks)) != {expected}:
        raise Stuck("a mask of the ids of a rank is reshaped")


def _is_partition(ranges: tuple[tuple[int, int], ...], size: int) -> bool:
    position = 0
    for low, high in sorted(ranges):
        if low != position or high < low:
            return False
        position = high
    return position == size


def _rows(weight: Lifted) -> tuple[tuple[int, int], ...] | None:
    """Return the range of rows that each rank holds of a table; None if it holds them in pieces."""
    pieces = weight.index[0]
    if pieces is None or any(len(held) > 1 for held in pieces) or weight.kind is not Kind.SHARD:
        return None
    return tuple((held[0][0], sum(held[0])) if held else (0, 0) for held in pieces)


def _looked_up(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    weight, ids = ranks.args[:2]
    if not isinstance(ids, LocalIds):
        return None
    if not ids.zeroed or ids.trailing or not isinstance(weight, Lifted) or _rows(weight) != ids.ranges:
        raise Stuck("the rows of the table on a rank are not those of the range of its ids")
    if not _is_partition(ids.ranges, weight.term.shape[0]) or weight.index[1] is not None:
        raise Stuck("the ranges of ids of the ranks are not a partition of the table")
    term = lifter.of.terms.make("embedding", (weight.term, ids.ids), (*ids.ids.shape, weight.term.shape[1]))
    _check_same(lifter, ranks, term)
    return [Masked(term, ids.ids, ids.ranges, zeroed=False)]


def _check_same(lifter: Lifter, ranks: Ranks, term: Term) -> None:
    if set(lifter.made(ranks)) != {term.shape}:
        raise Stuck("rows of a sharded table are broadcast")


def _filled(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    """masked_fill(x, not in range, 0): of rows, the addend of each rank; of a gradient, its rows of the rank's ids."""
    operand, mask = ranks.args[:2]
    if not isinstance(mask, RangeMask):
        return None
    if number_of(ranks.constant(2)) != 0 or not mask.negated or not mask.trailing:
        raise Stuck("a tensor is filled in the range of a rank")
    if isinstance(operand, (Masked, Lifted)):
        _check_same(lifter, ranks, operand.term)
    if isinstance(operand, Masked) and (operand.ids, operand.ranges) == (mask.ids, mask.ranges):
        shape = operand.term.shape
        return [Lifted(operand.term, Kind.PARTIAL, whole_index(len(shape)))]
    if isinstance(operand, Lifted) and operand.is_replicated and operand.term.shape[:-1] == mask.ids.shape:
        return [Masked(operand.term, mask.ids, mask.ranges, zeroed=True)]
    raise Stuck("a tensor is filled outside of the range of other ids")


def _table_gradient(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    """The rows of the gradient of a table that a rank holds, from the rows of the gradient of its ids."""
    grad, ids = ranks.args[:2]
    if not isinstance(ids, LocalIds):
        return None
    if not isinstance(grad, Masked) or not grad.zeroed or (grad.ids, grad.ranges) != (ids.ids, ids.ranges):
        raise Stuck("the gradient of a sharded table is not zero outside of the range of the rank")
    sizes = ranks.constants(2)
    if any(size != high - low for size, (low, high) in zip(sizes, ids.ranges, strict=True)):
        raise Stuck("the gradient of a sharded table has another number of rows than the range of the rank")
    total = max(high for _, high in ids.ranges)
    if not _is_partition(ids.ranges, total) or ranks.constant(4):
        raise Stuck("the ranges of ids of the ranks are not a partition of the table")
    padding = _whole_padding(ranks.constants(3), ids.ranges)
    features = grad.term.shape[-1]
    args = (grad.term, ids.ids, total, padding, False)
    term = lifter.of.terms.make("embedding_dense_backward", args, (total, features))
    pieces = tuple(((low, high - low),) for low, high in ids.ranges)
    return [lifter.checked(term, Kind.SHARD, (pieces, None), ranks.ops)]


def _whole_padding(local: tuple[Any, ...], ranges: tuple[tuple[int, int], ...]) -> int:
    """Return the padding row of the whole table, of which one rank or none has its own."""
    if any(padding >= high - low for padding, (low, high) in zip(local, ranges, strict=True)):
        raise Stuck("a padding row that the rank does not have")
    held = [padding + low for padding, (low, _) in zip(local, ranges, strict=True) if padding >= 0]
    if len(held) > 1:
        raise Stuck("several ranks have a padding row")
    return held[0] if held else -1


def _scaled(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    """A product of rows with a replicated factor, before the other ranks' rows are filled."""
    operands = ranks.args[:2]
    masked = [arg for arg in operands if isinstance(arg, Masked)]
    if len(masked) != 1:
        return None
    factors = []
    for arg in operands:
        if isinstance(arg, Masked):
            factors.append(arg.term)
            continue
        term = arg.term if isinstance(arg, Lifted) and arg.is_replicated else lifter.of.operand(arg)
        if term is None:
            raise Stuck("rows of a sharded table are multiplied by a tensor that is not replicated")
        factors.append(term)
    (one,) = masked
    _check_same(lifter, ranks, one.term)
    return [Masked(lifter.of.product(factors), one.ids, one.ranges, one.zeroed)]


VOCABULARY: dict[str, Rule] = {
    "ge": _compared,
    "lt": _compared,
    "bitwise_and": _both,
    "logical_and": _both,
    "sub": _shifted,
    "where": _chosen,
    "unsqueeze": _unsqueezed,
    "embedding": _looked_up,
    "masked_fill": _filled,
    "embedding_dense_backward": _table_gradient,
    "mul": _scaled,
}
