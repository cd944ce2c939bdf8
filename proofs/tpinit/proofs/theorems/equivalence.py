"""Section 6, item 2: the table and the prose, written independently, give the same outcome."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import z3
from tpinit.proofs.claims import Claim, theorem
from tpinit.proofs.mutants import ROW_8_INITS_NOTHING, change_row, drop_rule, redefine, without_code
from tpinit.spec.model import DTYPES, SIZES, FieldTerm, Model, constant
from tpinit.spec.vocabulary import FieldsFrom, GroupFrom, Outcome, Source, ViolationCode

_P3_CODES = (
    ViolationCode.SIZE_MISMATCH,
    ViolationCode.DTYPE_MISMATCH,
    ViolationCode.GROUP_IDENTITY_MISMATCH,
    ViolationCode.GROUP_SIZE_MISMATCH,
)
_NEVER = z3.BoolVal(False)
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
    """On success the size and the dtype come exactly from the source that the table's column `size and dtype from`
    means, `unset` included; where AutoTP starts, the group comes from its column `TP group from`. For example, a row
    that reads `config` never takes a size or a dtype from the call.
    """
    group, shown = m.effective_group, (m.given_input,)
    success = z3.And(m.well_typed, z3.Not(m.error))
    for column in FieldsFrom:
        where = z3.And(success, m.by_table.fields_from == constant(column))
        for name, term, sources in (
            ("size", m.effective_size, SIZES),
            ("dtype", m.effective_dtype, (*DTYPES, Source.UNSET)),
        ):
            same = (term.comes_from.get(source, _NEVER) == m.column_takes(column, source) for source in sources)
            yield Claim(f"{name}, {column.value}", where, z3.And(*same), shown=shown)
    started = z3.And(m.well_typed, m.starts)
    by_mpu = z3.And(started, m.given_input.mpu)
    yield Claim("group, mpu", by_mpu, group.comes_from[Source.MPU_TP_GROUP], shown=shown)
    by_call = z3.And(started, m.given_input.tpg)
    yield Claim("group, call", by_call, group.comes_from[Source.CALL_TP_GROUP], shown=shown)


@theorem("6.2", control=change_row(10, "takes the group from the call", group_from=GroupFrom.CALL))
def what_does_not_start_names_no_source(m: Model) -> Iterable[Claim]:
    """Where a row is an error or is without AutoTP, neither the table nor the prose names a source of size and dtype or
    of the group.
    """
    for formulation, verdict in (("table", m.by_table), ("prose", m.by_prose)):
        idle = z3.Or(verdict.outcome == constant(Outcome.ERROR), verdict.outcome == constant(Outcome.NO_AUTOTP))
        fields, group = (
            verdict.fields_from == constant(FieldsFrom.NOTHING),
            verdict.group_from == constant(GroupFrom.NOTHING),
        )
        yield Claim(formulation, z3.And(m.well_typed, idle), z3.And(fields, group), shown=(m.given_input,))


def _named_call(m: Model, right: Mapping[Source, z3.BoolRef]) -> Mapping[Source, z3.BoolRef]:
    alone = z3.And(m.given_input.tpi, z3.Not(m.cfg))
    named = {Source.CALL_DTYPE: z3.Or(alone, right[Source.CALL_DTYPE])}
    return {**right, **named, Source.PRECISION: z3.And(z3.Not(alone), right[Source.PRECISION])}


@theorem(
    "6.2",
    control=redefine(
        "effective_dtype",
        "comes from the call in rows 6 and 9, also where a precision is given",
        lambda m, right: FieldTerm(right.exists, right.value, _named_call(m, right.comes_from)),
    ),
)
def a_call_alone_decides_size_and_dtype(m: Model) -> Iterable[Claim]:
    """Rows 6 and 9 take size and dtype from the call: the effective values are the call's, also where a precision is
    given, which is then named as the dtype's source; without a precision the call is.
    """
    s, shown = m.given_input, (m.given_input,)
    alone = z3.And(m.well_typed, m.starts, m.by_table.fields_from == constant(FieldsFrom.CALL))
    size, dtype = m.effective_size, m.effective_dtype
    yield Claim("size", alone, z3.And(size.exists, size.value == s.call_size), shown=shown)
    yield Claim("dtype", alone, z3.And(dtype.exists, dtype.value == s.call_dtype), shown=shown)
    with_precision = z3.And(alone, s.precision_given)
    yield Claim("with a precision", with_precision, dtype.comes_from.get(Source.PRECISION, _NEVER), shown=shown)
    without = z3.And(alone, z3.Not(s.precision_given))
    yield Claim("without one", without, dtype.comes_from.get(Source.CALL_DTYPE, _NEVER), shown=shown)
    yield Claim("rows 6 and 9", alone, z3.Or(m.row_number == 6, m.row_number == 9), shown=shown)
