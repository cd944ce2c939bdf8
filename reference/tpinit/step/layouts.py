"""Layouts: how the tensors of the ranks make up one whole value.

A `Lifted` is a claim about a tensor of each rank. Let w be the value of its term, and p_r the indices of rank r, the
product over dimensions of its pieces:

* SHARD: on each rank r the tensor is w at p_r. All dimensions whole is DTensor's Replicate.
* PARTIAL: w is the sum over ranks of the tensors, each placed at p_r in zeros of w's shape.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from tpinit.step.pieces import Pieces, length_of, normal
from tpinit.step.terms import Shape, Term

__all__ = [
    "Blank",
    "Filler",
    "Index",
    "Joined",
    "Kind",
    "Lifted",
    "Local",
    "LocalIds",
    "Masked",
    "RangeMask",
    "Root",
    "Stuck",
    "Tensors",
    "is_partition",
    "normal_axis",
    "sums_once",
    "uniform",
    "whole_index",
]

Index = tuple["tuple[Pieces, ...] | None", ...]
"""For each dimension the pieces of every rank, or None where all ranks hold the whole dimension."""


class Kind(str, Enum):
    """What the tensors of the ranks are to the whole value."""

    SHARD = "shard"
    PARTIAL = "partial"


class Stuck(Exception):  # not an error of the user: the lifter has no rule
    """No rule applies: `reason` in words. A value that needs a stuck value is stuck for the same reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Lifted:
    """A tensor of each rank, as parts of the value of a term."""

    term: Term
    kind: Kind
    index: Index

    @property
    def is_replicated(self) -> bool:
        """Whether every rank holds all of the value."""
        return self.kind is Kind.SHARD and all(pieces is None for pieces in self.index)

    def local_shape(self, rank: int) -> Shape:
        """Return the shape of the tensor of one rank."""
        return tuple(
            size if pieces is None else length_of(pieces[rank])
            for size, pieces in zip(self.term.shape, self.index, strict=True)
        )


@dataclass(frozen=True, slots=True)
class RangeMask:
    """Booleans: on rank r, whether `ids` lie in [low_r, high_r), or the opposite if `negated`.

    They have the shape of the ids, with one more dimension of size 1 if `trailing`.
    """

    ids: Term
    ranges: tuple[tuple[int, int], ...]
    negated: bool = False
    trailing: bool = False


@dataclass(frozen=True, slots=True)
class LocalIds:
    """Ids relative to the range of the rank; where they lie outside, 0 if `zeroed`, else any id outside of it.

    They have the shape of the ids, with one more dimension of size 1 if `trailing`.
    """

    ids: Term
    ranges: tuple[tuple[int, int], ...]
    zeroed: bool
    trailing: bool = False


@dataclass(frozen=True, slots=True)
class Masked:
    """On rank r the value of the term where `ids` (its leading dimensions) lie in the rank's range.

    Elsewhere it is 0 if `zeroed`, and anything if not.
    """

    term: Term
    ids: Term
    ranges: tuple[tuple[int, int], ...]
    zeroed: bool


@dataclass(frozen=True, slots=True)
class Root:
    """On each rank the square root of its tensor of `squared`, which is PARTIAL: only the square is a part."""

    squared: Lifted


@dataclass(frozen=True, slots=True)
class Local:
    """An expression of claims that each rank computes for itself.

    `term` names its operations; it is no function of the whole values.
    """

    term: Term


@dataclass(frozen=True, slots=True)
class Filler:
    """A part of joined tensors that is zero, or, if `is_zero` is false, anything."""

    is_zero: bool


@dataclass(frozen=True, slots=True)
class Blank:
    """A tensor of one shape on all ranks, whose elements are anything."""

    shape: Shape


@dataclass(frozen=True, slots=True)
class Joined:
    """Tensors of each rank that are joined along one dimension.

    Each of the `parts` gives its own claim, or raises Stuck; `sizes` are the lengths of the parts, equal on all ranks.
    """

    dim: int
    sizes: tuple[int, ...]
    parts: tuple[Callable[[], Tensors], ...]


Tensors = Lifted | RangeMask | LocalIds | Masked | Root | Local | Filler | Blank | Joined


def whole_index(rank: int) -> Index:
    """Return the index of a value with `rank` dimensions that every rank holds whole."""
    return (None,) * rank


def normal_axis(size: int, pieces: Sequence[Pieces]) -> tuple[Pieces, ...] | None:
    """Return the pieces of one dimension, None if all ranks hold it whole."""
    held = tuple(normal(one) for one in pieces)
    return None if all(one == ((0, size),) for one in held) else held


def uniform(index: Index) -> bool:
    """Return whether all ranks hold the same indices."""
    return all(pieces is None or len(set(pieces)) == 1 for pieces in index)


def sums_once(
    out: Sequence[tuple[int, tuple[Pieces, ...]]], reduced: Sequence[tuple[int, tuple[Pieces, ...]]], ranks: int
) -> bool:
    """Return whether for every index of the result the ranks that hold it hold every reduced index exactly once.

    `out` and `reduced` are the cut dimensions of each: (size, pieces of every rank).
    """
    cuts = [_segments(size, pieces) for size, pieces in (*out, *reduced)]
    for cell in itertools.product(*cuts):
        count = 0
        for rank in range(ranks):
            held = 1
            for position, (_, pieces) in zip(cell, (*out, *reduced), strict=True):
                held *= _multiplicity(pieces[rank], position)
            count += held
        if count != 1:
            return False
    return True


def _segments(size: int, ranks: Sequence[Pieces]) -> list[int]:
    """Return the first index of each run of indices that all ranks treat alike."""
    edges = {0}
    for pieces in ranks:
        for offset, length in pieces:
            edges |= {offset, offset + length}
    return sorted(edge for edge in edges if 0 <= edge < size)


def _multiplicity(pieces: Pieces, position: int) -> int:
    return sum(offset <= position < offset + length for offset, length in pieces)


def is_partition(index: Index, shape: Shape, ranks: int) -> bool:
    """Return whether every element of the value is held exactly once, counted over all ranks."""
    cut = [(size, pieces) for size, pieces in zip(shape, index, strict=True) if pieces is not None]
    return sums_once(cut, [], ranks) if cut else ranks == 1
