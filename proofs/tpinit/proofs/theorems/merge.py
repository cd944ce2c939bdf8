"""Section 6, item 3: the merge of config and call."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import z3
from tpinit.proofs.claims import Claim, theorem
from tpinit.proofs.mutants import forget_mesh, override, reorder_dtypes, reorder_sizes, without_code
from tpinit.spec.model import DTYPES, GROUPS, SIZES, FieldTerm, Model
from tpinit.spec.vocabulary import Source, ViolationCode

_CONFIG_SIZES = (Source.CONFIG_AUTOTP_SIZE, Source.CONFIG_TP_SIZE)
_CALL_FIRST = (Source.CALL_TP_SIZE, Source.CONFIG_AUTOTP_SIZE, Source.CONFIG_TP_SIZE)
_DTYPE_CALL_FIRST = (Source.CALL_DTYPE, Source.CONFIG_DTYPE, Source.PRECISION)


def _fields(m: Model) -> tuple[tuple[str, FieldTerm], ...]:
    return ("size", m.effective_size), ("dtype", m.effective_dtype), ("group", m.effective_group)


def _all_are(m: Model, sources: tuple[Source, ...], value: z3.ExprRef) -> z3.BoolRef:
    return z3.And(*(z3.Implies(m.given(source), m.value(source) == value) for source in sources))


@theorem("6.3", control=reorder_sizes(*_CALL_FIRST))
def config_is_canonical(m: Model) -> Iterable[Claim]:
    """P1: a size or dtype that the config gives is the effective one, and the config is named as its source,
    also where the call gives one. Of the two keys of the size, `autotp_size` comes first (D5).
    """
    shown = (m.given_input,)
    size, dtype = m.effective_size, m.effective_dtype
    given = z3.And(m.well_typed, m.given(Source.CONFIG_AUTOTP_SIZE))
    yield Claim("autotp_size", given, size.comes_from[Source.CONFIG_AUTOTP_SIZE], shown=shown)
    yield Claim("its value", given, size.value == m.given_input.autotp, shown=shown)
    alias = z3.And(m.well_typed, m.given(Source.CONFIG_TP_SIZE), z3.Not(m.given(Source.CONFIG_AUTOTP_SIZE)))
    yield Claim("tp.tp_size", alias, size.comes_from[Source.CONFIG_TP_SIZE], shown=shown)
    dtype_given = z3.And(m.well_typed, m.given(Source.CONFIG_DTYPE))
    yield Claim("dtype", dtype_given, dtype.comes_from[Source.CONFIG_DTYPE], shown=shown)
    precision = z3.And(m.well_typed, m.given(Source.PRECISION), z3.Not(m.given(Source.CONFIG_DTYPE)))
    yield Claim("precision", precision, dtype.comes_from[Source.PRECISION], shown=shown)


@theorem("6.3", control=reorder_dtypes(*_DTYPE_CALL_FIRST))
def the_call_fills_only_what_is_missing(m: Model) -> Iterable[Claim]:
    """P2: the size or dtype comes from the call exactly when there is a call and the config does not give it."""
    shown = (m.given_input,)
    size, dtype = m.effective_size.comes_from, m.effective_dtype.comes_from
    no_size = z3.Not(z3.Or(*(m.given(source) for source in _CONFIG_SIZES)))
    no_dtype = z3.Not(z3.Or(m.given(Source.CONFIG_DTYPE), m.given(Source.PRECISION)))
    filled = z3.And(m.given_input.tpi, no_size)
    yield Claim("size", m.well_typed, size[Source.CALL_TP_SIZE] == filled, shown=shown)
    dtype_filled = z3.And(m.given_input.tpi, no_dtype)
    yield Claim("dtype", m.well_typed, dtype[Source.CALL_DTYPE] == dtype_filled, shown=shown)


@theorem(
    "6.3",
    control=override(
        ViolationCode.SIZE_MISMATCH,
        "ignores the size 48271",
        lambda m, right: z3.And(right, m.given_input.call_size != 48271),
    ),
)
def mismatch_exactly_when_values_differ(m: Model) -> Iterable[Claim]:
    """P3: where TPI or CFG holds, SIZE_MISMATCH and DTYPE_MISMATCH hold exactly when two given values of the field
    differ.
    """
    shown = (m.given_input,)
    for code, sources in ((ViolationCode.SIZE_MISMATCH, SIZES), (ViolationCode.DTYPE_MISMATCH, DTYPES)):
        agree = z3.Or(*(_all_are(m, sources, m.value(source)) for source in sources))
        given = z3.And(m.well_typed, m.in_scope)
        yield Claim(code.value, given, m.violation(code) == z3.Not(agree), shown=shown)


@theorem("6.3", control=reorder_sizes(Source.CONFIG_TP_SIZE, Source.CALL_TP_SIZE, Source.CONFIG_AUTOTP_SIZE))
def merging_is_idempotent(m: Model) -> Iterable[Claim]:
    """Writing the effective size and dtype into the config and merging again changes neither value, and the
    config is then their source. This holds for every input, errors included.
    """
    size, dtype = m.effective_size, m.effective_dtype
    written = replace(
        m.given_input,
        autotp=size.value,
        autotp_given=size.exists,
        dtype=dtype.value,
        dtype_given=dtype.exists,
    )
    second = replace(m, given_input=written)
    given = z3.And(m.well_typed, m.cfg, second.cfg)
    shown = (m.given_input,)
    for name, before, after, source in (
        ("size", size, second.effective_size, Source.CONFIG_AUTOTP_SIZE),
        ("dtype", dtype, second.effective_dtype, Source.CONFIG_DTYPE),
    ):
        had = z3.And(given, before.exists)
        yield Claim(name, had, z3.And(after.exists, after.value == before.value), shown=shown)
        yield Claim(f"source of {name}", had, after.comes_from[source], shown=shown)


@theorem("6.3", control=without_code(ViolationCode.SIZE_MISSING))
def the_named_source_holds_the_value(m: Model) -> Iterable[Claim]:
    """Where AutoTP starts, each effective field has exactly one source, that source is given, and its value is
    the field's value; in particular there is always a size and a source of the group.
    """
    shown = (m.given_input,)
    for name, term in _fields(m):
        for source, comes in term.comes_from.items():
            if source in (Source.CREATED, Source.UNSET):
                continue
            started = z3.And(m.well_typed, m.starts, comes)
            holds = z3.And(m.given(source), m.value(source) == term.value)
            yield Claim(f"{name} from {source.value}", started, holds, shown=shown)
        exactly_one = z3.Sum(*(z3.If(comes, 1, 0) for comes in term.comes_from.values())) == 1
        yield Claim(f"one source of {name}", z3.And(m.well_typed, m.starts), exactly_one, shown=shown)


@theorem("6.3", control=forget_mesh())
def a_group_is_created_only_when_none_is_supplied(m: Model) -> Iterable[Claim]:
    """Where AutoTP starts, the group's source is `created` exactly when CFG holds and no group is supplied (D4):
    in no row does a new group replace a supplied one.
    """
    created = m.effective_group.comes_from[Source.CREATED]
    started = z3.And(m.well_typed, m.starts)
    supplied = z3.Or(*(m.given(source) for source in GROUPS))
    yield Claim("created", started, created == z3.And(m.cfg, z3.Not(supplied)), shown=(m.given_input,))
    both = z3.And(started, m.given(Source.CALL_TP_GROUP), m.given(Source.MPU_TP_GROUP))
    yield Claim("never two direct sources", started, z3.Not(both), shown=(m.given_input,))
