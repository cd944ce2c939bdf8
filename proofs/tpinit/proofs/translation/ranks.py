"""Groups of ranks that a caller gives, as unbounded sequences of uninterpreted members."""

from __future__ import annotations

import z3
from tpinit.proofs.exploring import Unsupported
from tpinit.proofs.translation.sequences import RanksSort
from tpinit.proofs.translation.values import Indexed, Value

__all__ = ["GROUP", "MEMBER", "SIZE", "given_groups", "nested", "unbounded"]

# A group of a sequence of groups, its number of ranks, and its rank at each place.
GROUP = z3.Function("group", RanksSort, z3.IntSort(), RanksSort)
SIZE = z3.Function("size", RanksSort, z3.IntSort())
MEMBER = z3.Function("member", RanksSort, z3.IntSort(), z3.IntSort())


def given_groups(name: str, number: z3.ArithRef) -> Indexed:
    """Return `number` arbitrary groups of arbitrary ranks."""
    token = z3.Const(name, RanksSort)

    def at(index: z3.ArithRef) -> Indexed:
        group = GROUP(token, index)
        return Indexed(SIZE(group), lambda place: MEMBER(group, place), group)

    return Indexed(number, at, token)


def unbounded(value: Value) -> Indexed:
    """Return a value that must be a sequence of any length. Raises Unsupported for another value."""
    if not isinstance(value, Indexed):
        raise Unsupported(f"a {type(value).__name__} where a sequence of any length is expected")
    return value


def nested(value: Value, index: z3.ArithRef) -> Indexed:
    """Return the group at an index of a sequence of groups."""
    return unbounded(unbounded(value).at(index))
