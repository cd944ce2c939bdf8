"""Section 6, item 2: the table and the prose, written independently, give the same outcome."""

from __future__ import annotations

from collections.abc import Iterable

import z3
from tpinit.proofs.claims import Claim, theorem
from tpinit.proofs.mutants import ROW_8_INITS_NOTHING, change_row, drop_rule, without_code
from tpinit.spec.model import Model, constant
from tpinit.spec.vocabulary import FieldsFrom, GroupFrom, Outcome, Source, ViolationCode

_P3_CODES = (
    ViolationCode.SIZE_MISMATCH,
    ViolationCode.DTYPE_MISMATCH,
    ViolationCode.GROUP_IDENTITY_MISMATCH,
    ViolationCode.GROUP_SIZE_MISMATCH,
)
_ROW_CODES = (ViolationCode.NO_TP_INTENT, ViolationCode.NO_GROUP_SOURCE, ViolationCode.GROUP_AND_MPU)


@theorem("6.2", control=ROW_8_INITS_NOTHING)
def table_and_prose_agree_on_the_outcome(m: Model) -> Iterable[Claim]:
    """For every input the table and the prose give the same outcome and, for an error, the same code."""
    table, prose = m.by_table, m.by_prose
    shown = (m.given_input,)
    yield Claim("outcome", m.well_typed, table.outcome == prose.outcome, shown=shown)
    rejected = z3.And(m.well_typed, table.outcome == constant(Outcome.ERROR))
    yield Claim("code", rejected, table.code == prose.code, shown=shown)


@theorem("6.2", control=drop_rule("P5", 1))
def table_and_prose_agree_on_the_sources(m: Model) -> Iterable[Claim]:
    """For every input the table and the prose take size and dtype from the same source, and the group from the
    same source.
    """
    table, prose = m.by_table, m.by_prose
    shown = (m.given_input,)
    yield Claim("size and dtype", m.well_typed, table.fields_from == prose.fields_from, shown=shown)
    yield Claim("group", m.well_typed, table.group_from == prose.group_from, shown=shown)


@theorem("6.2", control=drop_rule("P6"))
def rows_reject_exactly_by_their_codes(m: Model) -> Iterable[Claim]:
    """NO_TP_INTENT, NO_GROUP_SOURCE and GROUP_AND_MPU, which depend on the four facts only, hold exactly where
    the table names them and exactly where the prose names them.
    """
    for code in _ROW_CODES:
        for formulation, verdict in (("table", m.by_table), ("prose", m.by_prose)):
            named = z3.And(verdict.outcome == constant(Outcome.ERROR), verdict.code == constant(code))
            yield Claim(
                f"{code.value}, {formulation}", m.well_typed, m.violation(code) == named, shown=(m.given_input,)
            )


@theorem("6.2", control=without_code(ViolationCode.GROUP_IDENTITY_MISMATCH))
def section_four_is_p3(m: Model) -> Iterable[Claim]:
    """The disagreements of P3 are the mismatches of section 4: the same codes hold. One exception: P3 compares
    every given size with every group, so it can add GROUP_SIZE_MISMATCH where SIZE_MISMATCH holds already.
    """
    by_code = {what.code: m.disagree(what) for what in m.disagreements}
    for code in _P3_CODES:
        given = m.well_typed
        if code is ViolationCode.GROUP_SIZE_MISMATCH:
            given = z3.And(given, z3.Not(m.violation(ViolationCode.SIZE_MISMATCH)))
        yield Claim(code.value, given, m.violation(code) == by_code[code], shown=(m.given_input,))


@theorem("6.2", control=without_code(ViolationCode.DTYPE_MISMATCH))
def both_formulations_decide_alike(m: Model) -> Iterable[Claim]:
    """The decision is an error by the table with section 4 exactly when it is an error by the prose with P3.
    SIZE_MISSING, SIZE_INVALID and SIZE_NOT_DIVIDING_WORLD are defined in section 4 only and count on both sides.
    """
    common = (ViolationCode.SIZE_MISSING, ViolationCode.SIZE_INVALID, ViolationCode.SIZE_NOT_DIVIDING_WORLD)
    by_table = z3.Or(m.by_table.outcome == constant(Outcome.ERROR), m.error)
    by_prose = z3.Or(
        m.by_prose.outcome == constant(Outcome.ERROR),
        *(m.disagree(what) for what in m.disagreements),
        *(m.violation(code) for code in common),
    )
    yield Claim("error", m.well_typed, by_table == by_prose, shown=(m.given_input,))


@theorem("6.2", control=change_row(4, "takes the group from the config", group_from=GroupFrom.CONFIG))
def columns_say_where_values_come_from(m: Model) -> Iterable[Claim]:
    """Where AutoTP starts, size and dtype come from the source in the table's column `size and dtype from`, and
    the group from the source in its column `TP group from`; for example, a row that reads `config` never takes
    them from the call.
    """
    table, group = m.by_table, m.effective_group
    shown = (m.given_input,)
    started = z3.And(m.well_typed, m.starts)

    def where(column: FieldsFrom) -> z3.BoolRef:
        return z3.And(started, table.fields_from == constant(column))

    never = z3.Not
    size, dtype = m.effective_size.comes_from, m.effective_dtype.comes_from
    yield Claim("size, config", where(FieldsFrom.CONFIG), never(size[Source.CALL_TP_SIZE]), shown=shown)
    yield Claim("dtype, config", where(FieldsFrom.CONFIG), never(dtype[Source.CALL_DTYPE]), shown=shown)
    yield Claim("size, call", where(FieldsFrom.CALL), size[Source.CALL_TP_SIZE], shown=shown)
    from_config = z3.Or(
        *(size[source] for source in (Source.CONFIG_AUTOTP_SIZE, Source.CONFIG_TP_SIZE)), size[Source.CALL_TP_SIZE]
    )
    yield Claim("size, filled", where(FieldsFrom.CONFIG_THEN_CALL), from_config, shown=shown)
    by_mpu = z3.And(started, m.given_input.mpu)
    yield Claim("group, mpu", by_mpu, group.comes_from[Source.MPU_TP_GROUP], shown=shown)
    by_call = z3.And(started, m.given_input.tpg)
    yield Claim("group, call", by_call, group.comes_from[Source.CALL_TP_GROUP], shown=shown)
