"""Section 6, item 1: the table is exhaustive and disjoint under A0, and A0 is necessary."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

import z3
from tpinit.proofs.claims import Claim, theorem
from tpinit.proofs.mutants import change_row, drop_row
from tpinit.spec.model import Model, constant, fresh_symbols
from tpinit.spec.vocabulary import Fact, GroupFrom


def _some_row(m: Model) -> z3.BoolRef:
    return z3.Or(*(m.row_holds(row) for row in m.rows))


@theorem("6.1", control=drop_row(7))
def rows_are_exhaustive(m: Model) -> Iterable[Claim]:
    """Under A0, every combination of the four facts matches at least one row."""
    yield Claim("some row holds", m.well_typed, _some_row(m), shown=(m.given_input,))


@theorem("6.1", control=change_row(6, "requires CFG, like row 8", cfg=True))
def rows_are_disjoint(m: Model) -> Iterable[Claim]:
    """No input matches two rows."""
    for one, other in combinations(m.rows, 2):
        both = z3.And(m.row_holds(one), m.row_holds(other))
        yield Claim(f"rows {one.number} and {other.number}", m.well_typed, z3.Not(both), shown=(m.given_input,))


@theorem("6.1", control=drop_row(3))
def a0_is_necessary(m: Model) -> Iterable[Claim]:
    """Without A0 the table is not exhaustive: the inputs that match no row are exactly those that A0 excludes."""
    anything = z3.BoolVal(True)
    yield Claim("an input without a row", anything, z3.Not(_some_row(m)), possible=True)
    yield Claim("A0 is what is missing", anything, z3.Not(m.a0) == z3.Not(_some_row(m)), shown=(m.given_input,))


@theorem("6.1", control=change_row(11, "holds without a call", tpi=False))
def every_row_is_reachable(m: Model) -> Iterable[Claim]:
    """Every row matches some input for which the decision has the outcome of the row."""
    for row in m.rows:
        happens = z3.And(m.row_holds(row), m.outcome == constant(row.outcome))
        yield Claim(f"row {row.number}", m.well_typed, happens, possible=True)


@theorem("6.1", control=change_row(8, "takes its group from the same source as row 7", group_from=GroupFrom.CONFIG))
def one_pair_differs_in_a_single_condition(m: Model) -> Iterable[Claim]:
    """Rows 10 and 12 differ in a single condition and in nothing else, and no other pair of rows does."""
    other = Model(fresh_symbols("_other"), rows=m.rows)
    differing = z3.Sum(*(z3.If(m.fact(fact) != other.fact(fact), 1, 0) for fact in Fact))
    mine, theirs = m.by_table, other.by_table
    same = z3.And(
        mine.outcome == theirs.outcome,
        mine.code == theirs.code,
        mine.fields_from == theirs.fields_from,
        mine.group_from == theirs.group_from,
    )
    numbers = z3.And(m.row_number < other.row_number, m.row_number > 0)
    pair = z3.And(m.well_typed, other.well_typed, differing == 1, same, numbers)
    ten_and_twelve = z3.And(m.row_number == 10, other.row_number == 12)
    yield Claim("only 10 and 12", pair, ten_and_twelve, shown=(m.given_input, other.given_input))
    yield Claim("10 and 12 do", pair, ten_and_twelve, possible=True)
