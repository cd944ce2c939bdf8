"""Operations as labelled index maps: the one rule that lifts elementwise functions, products, sums and kernels alike.

Each dimension of an operand and of a result has a label. Dimensions with the same label have the same index. A label is
either in the results (free), or the operation sums over it (reduced), or it mixes its indices (`mixed`: softmax, a
norm).

The rule, for operands that are SHARD or PARTIAL values of the ranks:
* all dimensions with one label have the same pieces on each rank, and mixed labels are whole;
* operands all SHARD: the result is SHARD if no reduced label is cut; it is PARTIAL if the ranks that hold an index of
  the result hold every reduced index exactly once;
* operands PARTIAL: the operation must be linear in just these operands together; every other operand is whole along
  each label that a PARTIAL operand lacks; the result is PARTIAL.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tpinit.step.layouts import Index, Kind, Lifted, Stuck, is_partition, sums_once
from tpinit.step.pieces import Pieces
from tpinit.step.terms import Term

__all__ = ["LabelSpec", "labelled"]

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LabelSpec:
    """The labels of an operation: of each tensor operand, and of each result.

    A dimension of size 1 that broadcasts has the label "". `linear` are the sets of operands (by position) in which the
    operation is linear together; `mixed` are the labels over which it is not elementwise and no sum.
    """

    operands: tuple[Labels, ...]
    results: tuple[Labels, ...]
    linear: tuple[frozenset[int], ...] = ()
    mixed: frozenset[str] = field(default=frozenset())


def labelled(spec: LabelSpec, operands: Sequence[Lifted], ranks: int) -> list[tuple[Kind, Index]]:
    """Return kind and index of each result. Raises Stuck if the rule does not apply."""
    sizes, cuts = _cuts(spec, operands)
    for label in spec.mixed:
        if cuts.get(label) is not None:
            raise Stuck(f"dimension {label!r}, over which the operation is not elementwise, is sharded")
    partial = frozenset(place for place, one in enumerate(operands) if one.kind is Kind.PARTIAL)
    operands, partial = _as_partial(spec, operands, partial, ranks)
    if partial:
        _check_linear(spec, partial, cuts)
    found: list[tuple[Kind, Index]] = []
    for labels in spec.results:
        index = tuple(cuts.get(label) for label in labels)
        cut_reduced = _cut(sorted(set(cuts) - set(labels)), sizes, cuts)
        if partial:
            found.append((Kind.PARTIAL, index))
        elif not cut_reduced:
            found.append((Kind.SHARD, index))
        else:
            if not sums_once(_cut(labels, sizes, cuts), cut_reduced, ranks):
                raise Stuck("the ranks do not hold each addend of the sum exactly once")
            found.append((Kind.PARTIAL, index))
    return found


def _cut(
    labels: Sequence[str], sizes: dict[str, int], cuts: dict[str, tuple[Pieces, ...] | None]
) -> list[tuple[int, tuple[Pieces, ...]]]:
    """Return size and pieces of the labels that are cut."""
    found = [(sizes[label], cuts.get(label)) for label in labels if label in sizes]
    return [(size, pieces) for size, pieces in found if pieces is not None]


def _cuts(spec: LabelSpec, operands: Sequence[Lifted]) -> tuple[dict[str, int], dict[str, tuple[Pieces, ...] | None]]:
    sizes: dict[str, int] = {}
    cuts: dict[str, tuple[Pieces, ...] | None] = {}
    for labels, operand in zip(spec.operands, operands, strict=True):
        for label, size, pieces in zip(labels, operand.term.shape, operand.index, strict=True):
            if not label:
                if pieces is not None:
                    raise Stuck("a dimension that broadcasts is sharded")
                continue
            if label in cuts and (cuts[label] != pieces or sizes[label] != size):
                raise Stuck("operands are sharded differently along one dimension")
            sizes[label], cuts[label] = size, pieces
    return sizes, cuts


def _as_partial(
    spec: LabelSpec, operands: Sequence[Lifted], partial: frozenset[int], ranks: int
) -> tuple[Sequence[Lifted], frozenset[int]]:
    """Return the operands with SHARD ones as PARTIAL where linearity needs it: each element on exactly one rank."""
    if not partial or partial in spec.linear:
        return operands, partial
    for group in spec.linear:
        if partial < group and all(
            is_zero(operands[place].term) or is_partition(operands[place].index, operands[place].term.shape, ranks)
            for place in group - partial
        ):
            held = [
                Lifted(one.term, Kind.PARTIAL, one.index) if place in group else one
                for place, one in enumerate(operands)
            ]
            return held, group
    raise Stuck("the operation is not linear in the operands of which each rank has an addend")


def is_zero(term: Term) -> bool:
    """Return whether a term is 0 everywhere: the ranks then hold addends of it too."""
    inner = term.args[0] if term.op == "expand" else term
    return isinstance(inner, Term) and inner.op == "sum" and not inner.args


def _check_linear(spec: LabelSpec, partial: Iterable[int], cuts: dict[str, tuple[Pieces, ...] | None]) -> None:
    common = set.intersection(*(set(spec.operands[place]) for place in partial))
    for label, pieces in cuts.items():
        if label not in common and pieces is not None:
            raise Stuck(f"dimension {label!r} is sharded, and an operand of which each rank has an addend lacks it")
