"""Rules of collectives: what the ranks hold after one, given what they held before."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from tpinit.step.layouts import Joined, Kind, Lifted, Stuck, Tensors, uniform
from tpinit.step.pieces import Pieces, joined
from tpinit.step.terms import Term

if TYPE_CHECKING:
    from tpinit.step.lift import Lifter, Ranks

__all__ = ["COLLECTIVES"]

Rule = Callable[["Lifter", "Ranks"], "list[Tensors]"]


def _check_group(ranks: Ranks, lifter: Lifter) -> None:
    group = ranks.constant(2)
    if tuple(group) != tuple(range(lifter.ranks)):
        raise Stuck(f"a collective over the ranks {list(group)}, which are not those of the TP group")


def _sent(ranks: Ranks, lifter: Lifter) -> Tensors:
    _check_group(ranks, lifter)
    if len(ranks.args[0]) != 1:
        raise Stuck(f"no rule for {ranks.name} of several tensors")
    sent: Tensors
    (sent,) = ranks.args[0]
    return sent


def _all_reduce(lifter: Lifter, ranks: Ranks) -> list[Tensors]:
    return [_reduced(lifter, _sent(ranks, lifter), ranks.constant(1))]


def _reduced(lifter: Lifter, sent: Tensors, operation: Any) -> Tensors:
    """The sum of addends is the whole; the sum of n equal tensors is n times it, the greatest of them is each."""
    if isinstance(sent, Joined):
        parts = tuple(_later(lifter, part, operation) for part in sent.parts)
        return Joined(sent.dim, sent.sizes, parts)
    if not isinstance(sent, Lifted):
        raise Stuck(f"no rule for an all-reduce of a {type(sent).__name__}")
    if not uniform(sent.index):
        raise Stuck("an all-reduce of tensors that are different parts of a whole")
    if sent.kind is Kind.PARTIAL and operation == "sum":
        return Lifted(sent.term, Kind.SHARD, sent.index)
    if sent.kind is Kind.SHARD and operation == "sum":
        return Lifted(lifter.of.times(Fraction(lifter.ranks), sent.term), Kind.SHARD, sent.index)
    if sent.kind is Kind.SHARD and operation in ("max", "min", "avg"):
        return sent
    raise Stuck(f"no rule for an all-reduce with {operation} of addends")


def _later(lifter: Lifter, part: Callable[[], Tensors], operation: Any) -> Callable[[], Tensors]:
    return lambda: _reduced(lifter, part(), operation)


def _all_gather(lifter: Lifter, ranks: Ranks) -> list[Tensors]:
    """Every rank receives, as output j, the tensor of rank j.

    Or one tensor that joins them along the first dimension.
    """
    sent = _sent(ranks, lifter)
    if not isinstance(sent, Lifted):
        raise Stuck(f"no rule for an all-gather of a {type(sent).__name__}")
    if sent.kind is Kind.PARTIAL:
        raise Stuck("an all-gather of addends, which are not summed")
    received = [_of_rank(sent, rank, lifter.ranks) for rank in range(lifter.ranks)]
    if len(ranks.ops[0].outputs) == lifter.ranks > 1:
        return [lifter.checked(one.term, one.kind, one.index, ranks.ops, place) for place, one in enumerate(received)]
    first = sent.index[0]
    if first is None:
        raise Stuck("an all-gather into one tensor of tensors that are not sharded along their first dimension")
    together = (joined(first),) * lifter.ranks
    index = (None if together[0] == ((0, sent.term.shape[0]),) else together, *received[0].index[1:])
    if any(pieces is not None and len(set(pieces)) > 1 for pieces in sent.index[1:]):
        raise Stuck("an all-gather of tensors that are sharded along two dimensions")
    return [lifter.checked(sent.term, Kind.SHARD, index, ranks.ops)]


def _of_rank(sent: Lifted, rank: int, ranks: int) -> Lifted:
    """Return what every rank holds when it has the tensor of one rank."""
    return Lifted(
        sent.term, sent.kind, tuple(None if pieces is None else (pieces[rank],) * ranks for pieces in sent.index)
    )


def _reduce_scatter(lifter: Lifter, ranks: Ranks) -> list[Tensors]:
    """Rank r receives the sum of the r-th tensors; of one tensor.

    Of the r-th of equal parts along the first dimension.
    """
    _check_group(ranks, lifter)
    sent = list(ranks.args[0])
    if ranks.constant(1) != "sum" or not all(isinstance(one, Lifted) and uniform(one.index) for one in sent):
        raise Stuck("no rule for this reduce-scatter")
    sums = [_reduced(lifter, one, "sum") for one in sent]
    shapes = lifter.made(ranks)
    if len(sums) == 1 and isinstance(sums[0], Lifted):
        whole, length = sums[0], shapes[0][0]
        if whole.index[0] is not None or whole.term.shape[0] != sum(shape[0] for shape in shapes):
            raise Stuck("a reduce-scatter of tensors that are sharded along their first dimension")
        pieces = tuple(((rank * length, length),) for rank in range(lifter.ranks))
        return [lifter.checked(whole.term, Kind.SHARD, (pieces, *whole.index[1:]), ranks.ops)]
    parts = [one for one in sums if isinstance(one, Lifted) and all(held is None for held in one.index)]
    if len(parts) != lifter.ranks:
        raise Stuck("a reduce-scatter of tensors that are sharded, or of another number than there are ranks")
    return [_scattered(lifter, ranks, [part.term for part in parts])]


def _scattered(lifter: Lifter, ranks: Ranks, terms: list[Term]) -> Lifted:
    """Return the claim that rank r holds the r-th term: its part of their concatenation along any dimension that fits.

    Of the dimensions one whose concatenation is a value of the whole step is taken, and else one that is not longer
    than the terms need, so that slices of one term make it again.
    """
    fits = []
    for dim in range(len(terms[0].shape)):
        if len({(*term.shape[:dim], *term.shape[dim + 1 :]) for term in terms}) > 1:
            continue
        whole = lifter.of.cat(terms, dim)
        starts = [sum(term.shape[dim] for term in terms[:rank]) for rank in range(len(terms))]
        pieces = tuple(((start, term.shape[dim]),) for start, term in zip(starts, terms, strict=True))
        index: list[tuple[Pieces, ...] | None] = [None] * len(whole.shape)
        index[dim] = pieces
        claim = lifter.checked(whole, Kind.SHARD, tuple(index), ranks.ops)
        if whole in lifter.whole.known:
            return claim
        fits.append((whole.op == "cat", claim))
    if not fits:
        raise Stuck("a reduce-scatter of tensors of different shapes")
    return min(fits, key=lambda pair: pair[0])[1]


def _broadcast(lifter: Lifter, ranks: Ranks) -> list[Tensors]:
    sent = _sent(ranks, lifter)
    if isinstance(sent, Lifted) and sent.kind is Kind.SHARD and uniform(sent.index):
        return [sent]
    raise Stuck("a broadcast of tensors that are not equal")


COLLECTIVES: dict[str, Rule] = {
    "collective.all_reduce": _all_reduce,
    "collective.all_gather": _all_gather,
    "collective.reduce_scatter": _reduce_scatter,
    "collective.broadcast": _broadcast,
}
