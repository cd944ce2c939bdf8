"""Section 6, item 6: the decision is total and deterministic, and every violation can hold alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace

import z3
from tpinit.proofs.claims import Claim, theorem
from tpinit.proofs.mutants import change_row, drop_row, override
from tpinit.spec.model import Model, Symbols, constant, fresh_symbols
from tpinit.spec.vocabulary import Outcome, Source, ViolationCode


@theorem("6.6", control=drop_row(9))
def the_decision_is_total(m: Model) -> Iterable[Claim]:
    """Every input has a row from 1 to 12 and an outcome: an error exactly when a violation holds, otherwise
    the outcome of the row.
    """
    shown = (m.given_input,)
    yield Claim("row", m.well_typed, z3.And(m.row_number >= 1, m.row_number <= 12), shown=shown)
    is_error = m.outcome == constant(Outcome.ERROR)
    yield Claim("an error exactly when a violation holds", m.well_typed, is_error == m.error, shown=shown)
    succeeds = z3.And(m.well_typed, z3.Not(m.error))
    yield Claim("the row's outcome", succeeds, m.outcome == m.by_table.outcome, shown=shown)


@theorem("6.6", control=change_row(5, "is a success", outcome=Outcome.INIT_FROM_CALL, code=None))
def error_rows_are_always_errors(m: Model) -> Iterable[Claim]:
    """Rows 1, 5, 10 and 12 are errors for all field values, and every other row has an input that succeeds."""
    for row in m.rows:
        holds = m.row_holds(row)
        if row.outcome is Outcome.ERROR:
            yield Claim(f"row {row.number}", z3.And(m.well_typed, holds), m.error, shown=(m.given_input,))
        else:
            yield Claim(f"row {row.number}", m.well_typed, z3.And(holds, z3.Not(m.error)), possible=True)
    errors = {row.number for row in m.rows if row.outcome is Outcome.ERROR}
    yield Claim("1, 5, 10 and 12", z3.BoolVal(True), z3.BoolVal(errors == {1, 5, 10, 12}))


@theorem(
    "6.6",
    control=override(
        ViolationCode.SIZE_INVALID,
        "reads the value of a size that is not given",
        lambda m, right: z3.Or(right, z3.And(m.cfg, m.given_input.alias < 1)),
    ),
)
def the_decision_is_deterministic(m: Model) -> Iterable[Claim]:
    """Two inputs that give the same values get the same decision. The values that the model stores for absent
    fields, or for the fields of an absent section, have no effect.
    """
    other = replace(m, given_input=fresh_symbols("_other"))
    given = z3.And(m.well_typed, other.well_typed, _give_the_same(m, other))
    shown = (m.given_input, other.given_input)
    yield Claim("outcome", given, m.outcome == other.outcome, shown=shown)
    yield Claim("row", given, m.row_number == other.row_number, shown=shown)
    for code in ViolationCode:
        yield Claim(code.value, given, m.violation(code) == other.violation(code), shown=shown)
    for name in ("effective_size", "effective_dtype", "effective_group"):
        mine, theirs = getattr(m, name), getattr(other, name)
        sources = z3.And(*(mine.comes_from[source] == theirs.comes_from[source] for source in mine.comes_from))
        values = z3.Implies(mine.exists, mine.value == theirs.value)
        started = z3.And(given, m.starts)
        yield Claim(name, started, z3.And(mine.exists == theirs.exists, sources, values), shown=shown)


def _give_the_same(m: Model, other: Model) -> z3.BoolRef:
    presence = [
        getattr(m.given_input, item.name) == getattr(other.given_input, item.name)
        for item in fields(Symbols)
        if str(item.type) == "z3.BoolRef"
    ]
    values = [
        z3.Implies(z3.And(m.given(source), other.given(source)), m.value(source) == other.value(source))
        for source in Source
        if source not in (Source.CREATED, Source.UNSET, Source.WORLD_SIZE)
    ]
    # `autotp_size` also decides CFG, so it must be equal even where it is not a given size.
    s, t = m.given_input, other.given_input
    autotp = z3.Implies(z3.And(s.section, s.autotp_given), s.autotp == t.autotp)
    return z3.And(*presence, *values, autotp, s.world == t.world)


@theorem(
    "6.6",
    control=override(
        ViolationCode.GROUP_SIZE_MISMATCH,
        "holds only together with GROUP_IDENTITY_MISMATCH",
        lambda m, right: z3.And(right, m.violation(ViolationCode.GROUP_IDENTITY_MISMATCH)),
    ),
)
def every_violation_is_reachable_alone(m: Model) -> Iterable[Claim]:
    """For each of the ten violations there is an input for which that violation holds and no other."""
    for code in ViolationCode:
        others = (z3.Not(m.violation(other)) for other in ViolationCode if other is not code)
        yield Claim(code.value, m.well_typed, z3.And(m.violation(code), *others), possible=True)
