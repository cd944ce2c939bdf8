"""Operations on sequences of the translation: slices, concatenation, quantifiers, and the builtins of topology.

The rules for `sorted`, `set` and `zip` state what the documentation of Python says of them. A rule applies only to a
sequence that the caller gave and nothing changed; it has a token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import z3
from tpinit.proofs.exploring import Unsupported
from tpinit.proofs.translation.values import Indexed, Items, Value, choose, count, length, truth

__all__ = ["CARDINALITY", "OCCURS", "CommonRanks", "Flat", "RankSet", "Range", "RanksSort", "Sorted", "concatenated"]
__all__ += ["all_of", "any_of", "is_permutation", "sliced", "transposed"]

RanksSort = z3.DeclareSort("Ranks")
# How often a rank occurs in a sequence of groups, and how many ranks two groups have in common.
OCCURS = z3.Function("occurs", RanksSort, z3.IntSort(), z3.IntSort())
CARDINALITY = z3.Function("common", RanksSort, RanksSort, z3.IntSort())

Fresh = Callable[[], z3.ArithRef]


@dataclass(frozen=True)
class Range:
    """`list(range(stop))`."""

    stop: z3.ArithRef


@dataclass(frozen=True)
class Flat:
    """The members of all groups, one after another. `token` stands for the groups where they are whole."""

    groups: Indexed
    token: z3.ExprRef | None


@dataclass(frozen=True)
class Sorted:
    """The members of groups in ascending order."""

    flat: Flat


@dataclass(frozen=True)
class RankSet:
    """The set of the ranks of one group."""

    token: z3.ExprRef


@dataclass(frozen=True)
class CommonRanks:
    """The ranks that two groups have in common."""

    one: RankSet
    other: RankSet


def is_permutation(ranks: Sorted, whole: Range, fresh: Fresh) -> z3.BoolRef:
    """Return whether sorted ranks equal `list(range(n))`: each of 0 to n - 1 occurs once, nothing else does."""
    if ranks.flat.token is None:
        raise Unsupported("the sorted ranks are not those of all given groups")
    rank = fresh()
    inside = z3.And(rank >= 0, rank < whole.stop)
    return z3.ForAll([rank], OCCURS(ranks.flat.token, rank) == z3.If(inside, z3.IntVal(1), z3.IntVal(0)))


def all_of(value: Value, fresh: Fresh) -> z3.BoolRef:
    """Return whether all items of a sequence of any kind are true."""
    if isinstance(value, Items):
        return z3.And(*(z3.Implies(guard, truth(each)) for guard, each in value.items))
    if isinstance(value, Indexed):
        index = fresh()
        return z3.ForAll([index], z3.Implies(z3.And(index >= 0, index < value.length), truth(value.at(index))))
    if isinstance(value, Flat):
        groups = value.groups
        return all_of(Indexed(groups.length, lambda index: all_of(groups.at(index), fresh)), fresh)
    raise Unsupported(f"all() of a {type(value).__name__} is not translated")


def any_of(value: Value, fresh: Fresh) -> z3.BoolRef:
    """Return whether an item of a sequence of any kind is true."""
    if isinstance(value, Items):
        return z3.Or(*(z3.And(guard, truth(each)) for guard, each in value.items))
    if isinstance(value, Indexed):
        index = fresh()
        return z3.Exists([index], z3.And(index >= 0, index < value.length, truth(value.at(index))))
    raise Unsupported(f"any() of a {type(value).__name__} is not translated")


def concatenated(one: Value, other: Value) -> Value:
    """Return the items of one sequence, then those of the other."""
    if isinstance(one, Items) and isinstance(other, Items):
        return Items((*one.items, *other.items))
    if isinstance(one, Indexed) and isinstance(other, Indexed):
        return Indexed(
            one.length + other.length,
            lambda index: choose(index < one.length, one.at(index), other.at(index - one.length)),
        )
    raise Unsupported("the concatenation of a bounded and an unbounded sequence is not translated")


def sliced(sequence: Value, start: Value, stop: Value, step: Value) -> Value:
    """Return `sequence[start:stop:step]`. Each bound is a number or None; the only step is -1, without bounds."""
    if step is not None:
        step = z3.simplify(step)
        if start is not None or stop is not None or not z3.is_int_value(step) or step.as_long() != -1:
            raise Unsupported("a slice with a step is not translated")
        return _reversed(sequence)
    size = length(sequence)
    low = z3.IntVal(0) if start is None else _bound(start, size)
    high = size if stop is None else _bound(stop, size)
    if isinstance(sequence, Items):
        guards = [guard for guard, _ in sequence.items]
        kept = []
        for index, (guard, value) in enumerate(sequence.items):
            place = count(guards[:index])
            inside = z3.simplify(z3.And(guard, low <= place, place < high))
            if not z3.is_false(inside):
                kept.append((inside, value))
        return Items(tuple(kept))
    assert isinstance(sequence, Indexed)
    whole = sequence
    number = z3.If(high > low, high - low, z3.IntVal(0))
    return Indexed(number, lambda index: whole.at(low + index))


def _bound(bound: z3.ArithRef, size: z3.ArithRef) -> z3.ArithRef:
    from_end = z3.If(bound + size < 0, z3.IntVal(0), bound + size)
    return z3.simplify(z3.If(bound < 0, from_end, z3.If(bound > size, size, bound)))


def _reversed(sequence: Value) -> Value:
    if isinstance(sequence, Items):
        return Items(tuple(reversed(sequence.items)))
    whole: Indexed = sequence
    return Indexed(whole.length, lambda index: whole.at(whole.length - 1 - index))


def transposed(groups: Value) -> Indexed:
    """Return `tuple(zip(*groups, strict=True))` of groups of one size, in which there is at least one group or none."""
    if not isinstance(groups, Indexed):
        raise Unsupported("zip() of a bounded sequence is not translated")
    size = z3.If(groups.length > 0, length(groups.at(z3.IntVal(0))), z3.IntVal(0))
    return Indexed(size, lambda place: Indexed(groups.length, lambda index: groups.at(index).at(place)))
