"""Hypothesis strategies for the inputs of a decision, and for the configs from which they are read.

`inputs()` draws any legal input. Values drawn independently would nearly always disagree, so it draws three kinds with
equal probability: inputs whose values all agree, inputs with exactly one violation, and inputs whose fields are
independent. Nothing is filtered, so shrinking works field by field: towards absent fields, small integers, and the
first row and code.

`inputs_in_row` and `inputs_violating` draw inputs of one row or with one violation. The strategies for configs are
defined in `config_strategies` and exported here too. Needs Hypothesis (the extra `conformance`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from itertools import combinations
from types import MappingProxyType
from typing import TypeVar

from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from tpinit.conformance._draw import BOOLS, maybe, pick
from tpinit.conformance.config_strategies import (
    FakeProcessGroup,
    MalformedConfig,
    configs,
    malformed_configs,
    reordered,
    spellings_of,
)
from tpinit.conformance.oracle import ROWS, OracleRow
from tpinit.spec.vocabulary import Call, DType, Group, Inputs, Mpu, Section, Source, ViolationCode

__all__ = [
    "MalformedConfig",
    "FakeProcessGroup",
    "calls",
    "configs",
    "dtypes",
    "groups",
    "inputs",
    "inputs_in_row",
    "inputs_succeeding",
    "inputs_violating",
    "malformed_configs",
    "mpus",
    "reached",
    "reordered",
    "sections",
    "sizes",
    "spellings_of",
    "world_sizes",
]

T = TypeVar("T")
Label = TypeVar("Label", bound=Hashable)

# The rows in which a violation can be the only one.
_ONLY_VIOLATION_IN: dict[ViolationCode, tuple[int, ...]] = {
    ViolationCode.NO_TP_INTENT: (1,),
    ViolationCode.NO_GROUP_SOURCE: (5,),
    ViolationCode.GROUP_AND_MPU: (10, 12),
    ViolationCode.SIZE_MISSING: (3, 4),
    ViolationCode.SIZE_INVALID: (3, 7),  # a group that is given has at least one rank, so it would differ too
    ViolationCode.SIZE_MISMATCH: (3, 4, 7, 8, 11),
    ViolationCode.DTYPE_MISMATCH: (3, 4, 6, 7, 8, 9, 11),
    ViolationCode.GROUP_IDENTITY_MISMATCH: (3, 4, 6, 7, 8, 9, 11),
    ViolationCode.GROUP_SIZE_MISMATCH: (3, 4, 6, 7, 8, 9, 11),
    ViolationCode.SIZE_NOT_DIVIDING_WORLD: (3, 7),
}
_SUCCEEDING = (2, 3, 4, 6, 7, 8, 9, 11)


def sizes(min_value: int = 1) -> SearchStrategy[int]:
    """Sizes in ranks of at least `min_value`: mostly small, without an upper bound."""
    return st.integers(min_value, min_value + 7) | st.integers(min_value=min_value)


def world_sizes() -> SearchStrategy[int]:
    """World sizes in ranks: at least 1, without an upper bound."""
    return _SIZES


def dtypes() -> SearchStrategy[DType]:
    """The dtypes that parameters can have (D8)."""
    return _DTYPES


def groups(size: int | None = None) -> SearchStrategy[Group]:
    """One process group of any identity, of this size in ranks or of any.

    Two groups drawn independently may have the same identity and different sizes, which is illegal in one input: draw
    several groups of one input together (`inputs`).
    """
    return _GROUPS if size is None else st.builds(Group, _IDENTITIES, st.just(size))


def calls() -> SearchStrategy[Call]:
    """`tp_model_init` calls with any integer as size, with or without a `tp_group`."""
    return st.builds(Call, _ANY_SIZES, _DTYPES, st.none() | _GROUPS)


def sections() -> SearchStrategy[Section]:
    """`tensor_parallel` sections with any fields, including the empty one (D1) and disabled ones (D2)."""
    number = st.none() | _ANY_SIZES
    return st.builds(Section, number, number, st.none() | _DTYPES, st.none() | _GROUPS, _CARRIED)


def mpus() -> SearchStrategy[Mpu]:
    """Mpus with a TP group, with or without a DP group (which does not affect the decision)."""
    return st.builds(Mpu, _GROUPS, _OPTIONAL_GROUPS)


@st.composite
def inputs(draw: DrawFn) -> Inputs:
    """Any legal input: every row, every violation alone and with others, integers without a bound."""
    kind = pick(draw, ("agreeing", "violating", "any"))
    if kind == "agreeing":
        return _with_only(draw, _row(pick(draw, _SUCCEEDING)), None)
    if kind == "violating":
        code = pick(draw, list(ViolationCode))
        return _with_only(draw, _row(pick(draw, _ONLY_VIOLATION_IN[code])), code)
    return _independent(draw, pick(draw, ROWS))


@st.composite
def inputs_in_row(draw: DrawFn, number: int) -> Inputs:
    """Inputs of one row of the table (1-12), with or without violations.

    Raises ValueError for a number outside 1-12.
    """
    return _in_row(draw, _row(number))


@st.composite
def inputs_succeeding(draw: DrawFn, *rows: int) -> Inputs:
    """Inputs without a violation, of these rows or of all rows that can succeed (2-4, 6-9, 11).

    Raises ValueError for a row that is always an error.
    """
    if wrong := sorted(set(rows) - set(_SUCCEEDING)):
        raise ValueError(f"row {wrong[0]} never succeeds: choose among {', '.join(map(str, _SUCCEEDING))}")
    return _with_only(draw, _row(pick(draw, rows or _SUCCEEDING)), None)


@st.composite
def inputs_violating(draw: DrawFn, code: ViolationCode) -> Inputs:
    """Inputs with this violation and no other, in every row where that is possible."""
    return _with_only(draw, _row(pick(draw, _ONLY_VIOLATION_IN[code])), code)


def reached(
    strategy: SearchStrategy[T], labels: Callable[[T], Iterable[Label]], max_examples: int = 500
) -> frozenset[Label]:
    """Return every label of this strategy's first `max_examples` examples: the cases that it reaches.

    The examples are the same in every run, so an assertion about them does not depend on chance.
    """
    found: set[Label] = set()

    @settings(
        max_examples=max_examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
    )
    @given(strategy)
    def collect(example: T) -> None:
        found.update(labels(example))

    collect()
    return frozenset(found)


# --- parts of the strategies: functions of `draw` ----------------------------------------------------


def _row(number: int) -> OracleRow:
    if not 1 <= number <= len(ROWS):
        raise ValueError(f"there is no row {number}: the table has the rows 1 to {len(ROWS)}")
    return ROWS[number - 1]


def _in_row(draw: DrawFn, row: OracleRow) -> Inputs:
    possible = [code for code, rows in _ONLY_VIOLATION_IN.items() if row.number in rows and code is not row.code]
    kind = pick(draw, ("agreeing", "violating", "any"))
    if kind == "any":
        return _independent(draw, row)
    return _with_only(draw, row, pick(draw, possible) if kind == "violating" and possible else row.code)


def _with_only(draw: DrawFn, row: OracleRow, code: ViolationCode | None) -> Inputs:
    """Draw an input of this row with this violation only; out of scope (rows 1 and 2) no values can disagree."""
    return _agreeing(draw, row, code) if row.tpi or row.cfg else _independent(draw, row)


def _independent(draw: DrawFn, row: OracleRow) -> Inputs:
    """Draw an input of this row with independent fields; a row without a section may have a disabled one (D2)."""
    pool = draw(_POOLS)
    call = section = mpu = None
    if row.tpi:
        call = Call(draw(_ANY_SIZES), draw(_DTYPES), pick(draw, pool) if row.tpg else None)
    disabled = not row.cfg and not row.tpi and draw(BOOLS)
    if row.cfg or disabled:
        autotp_size, tp_size = draw(_OPTIONAL_SIZES), draw(_OPTIONAL_SIZES)
        if disabled:
            autotp_size, tp_size = 0, None
        elif call is None and autotp_size == 0 and tp_size is None:
            autotp_size = None  # a disabled section would make it another row
        section = Section(autotp_size, tp_size, draw(_OPTIONAL_DTYPES), maybe(draw, pool), draw(_CARRIED))
    if row.mpu:
        mpu = Mpu(pick(draw, pool), draw(_OPTIONAL_GROUPS))
    return Inputs(draw(_SIZES), call, section, draw(_OPTIONAL_DTYPES), mpu, maybe(draw, pool))


def _agreeing(draw: DrawFn, row: OracleRow, code: ViolationCode | None) -> Inputs:
    """Draw an input of this row with exactly one violation, or none with `code` None.

    The row must be in scope (TPI or CFG), and `_ONLY_VIOLATION_IN` must list it for the violation.
    """
    # Two sizes can also differ because one of them is autotp_size 0 (D2); a group would then differ as well.
    zero = code is ViolationCode.SIZE_MISMATCH and row.number in (3, 7) and draw(BOOLS)
    if zero:
        size = 0
    elif code is ViolationCode.SIZE_INVALID:
        size = draw(_INVALID_SIZES)
    else:
        size = draw(_SIZES) + (code is ViolationCode.SIZE_NOT_DIVIDING_WORLD)  # 1 divides every world
    size_of = _given_sizes(draw, row, code, size)
    dtype_of = _given_dtypes(draw, row, code)
    no_group = zero or code in (ViolationCode.SIZE_INVALID, ViolationCode.SIZE_NOT_DIVIDING_WORLD)
    group_of: dict[Source, Group] = {} if no_group else _supplied_groups(draw, row, code, size)
    created = row.cfg and not group_of and size_of and size > 0
    world_size = _world_for(draw, code, size) if created else draw(_SIZES)
    call = section = mpu = None
    if row.tpi:
        call = Call(size_of[Source.CALL_TP_SIZE], dtype_of[Source.CALL_DTYPE], group_of.get(Source.CALL_TP_GROUP))
    if row.cfg:
        section = Section(
            size_of.get(Source.CONFIG_AUTOTP_SIZE),
            size_of.get(Source.CONFIG_TP_SIZE),
            dtype_of.get(Source.CONFIG_DTYPE),
            group_of.get(Source.CONFIG_TP_GROUP),
            draw(_CARRIED),
        )
    if row.mpu:
        mpu = Mpu(group_of[Source.MPU_TP_GROUP], draw(_OPTIONAL_GROUPS))
    return Inputs(world_size, call, section, dtype_of.get(Source.PRECISION), mpu, group_of.get(Source.MESH_TP_GROUP))


Places = tuple[Source, ...]


def _choices(must: Places, may: Places, at_least: int = 0) -> list[Places]:
    """Return every set of places with all of `must`, some of `may`, and at least `at_least` members, smallest first."""
    chosen = [(*must, *extra) for count in range(len(may) + 1) for extra in combinations(may, count)]
    return [places for places in chosen if len(places) >= at_least]


def _given_sizes(draw: DrawFn, row: OracleRow, code: ViolationCode | None, size: int) -> dict[Source, int]:
    """Draw sizes by source with the effective size `size`: all equal, except for SIZE_MISMATCH."""
    if code is ViolationCode.SIZE_MISSING:
        return {}
    must = (Source.CALL_TP_SIZE,) if row.tpi else ()
    may = (Source.CONFIG_AUTOTP_SIZE, Source.CONFIG_TP_SIZE) if row.cfg else ()
    choices = _choices(must, may, 2 if code is ViolationCode.SIZE_MISMATCH else 1)
    if code is ViolationCode.SIZE_MISMATCH and size == 0:
        choices = [places for places in choices if Source.CONFIG_AUTOTP_SIZE in places]
    if code is ViolationCode.SIZE_INVALID and size == 0 and not row.tpi:
        choices = [places for places in choices if Source.CONFIG_TP_SIZE in places]  # else it is disabled (D2)
    places = pick(draw, choices)
    if code is not ViolationCode.SIZE_MISMATCH:
        return dict.fromkeys(places, size)
    # In the order of section 4: the first given size is the effective one.
    order = (Source.CONFIG_AUTOTP_SIZE, Source.CONFIG_TP_SIZE, Source.CALL_TP_SIZE)
    first, *others = (source for source in order if source in places)
    values = [size if size and draw(BOOLS) else draw(_SIZES) for _ in others]
    if all(value == size for value in values):
        values[-1] = size + 1
    return {first: size, **dict(zip(others, values, strict=True))}


def _given_dtypes(draw: DrawFn, row: OracleRow, code: ViolationCode | None) -> dict[Source, DType]:
    """Draw dtypes by source: all equal, except for DTYPE_MISMATCH."""
    must = (Source.CALL_DTYPE,) if row.tpi else ()
    may = (Source.PRECISION, Source.CONFIG_DTYPE) if row.cfg else (Source.PRECISION,)
    differ = code is ViolationCode.DTYPE_MISMATCH
    places = pick(draw, _choices(must, may, 2 if differ else 0))
    dtype = draw(_DTYPES)
    values = [draw(_DTYPES) if differ else dtype for _ in places]
    if differ and len(set(values)) == 1:
        values[-1] = pick(draw, [other for other in DType if other is not values[0]])
    return dict(zip(places, values, strict=True))


def _supplied_groups(draw: DrawFn, row: OracleRow, code: ViolationCode | None, size: int) -> dict[Source, Group]:
    """Draw groups by source with `size` ranks and one identity, except for the violation `code`."""
    must = ((Source.CALL_TP_GROUP,) if row.tpg else ()) + ((Source.MPU_TP_GROUP,) if row.mpu else ())
    may = (Source.MESH_TP_GROUP, Source.CONFIG_TP_GROUP) if row.cfg else (Source.MESH_TP_GROUP,)
    at_least = (
        {ViolationCode.GROUP_IDENTITY_MISMATCH: 2, ViolationCode.GROUP_SIZE_MISMATCH: 1}.get(code, 0) if code else 0
    )
    places = pick(draw, _choices(must, may, at_least))
    if code is ViolationCode.GROUP_SIZE_MISMATCH:
        other = draw(_SIZES)
        size = size + 1 if other == size else other
    # Only the groups of the call and the mpu may differ in identity, and only if no third group is given.
    excepted = row.tpg and row.mpu and len(places) == 2
    if code is not ViolationCode.GROUP_IDENTITY_MISMATCH and not excepted:
        return dict.fromkeys(places, Group(draw(_IDENTITIES), size))
    names = draw(_SEVERAL_IDENTITIES)
    chosen = [Group(pick(draw, names), size) for _ in places]
    if code is ViolationCode.GROUP_IDENTITY_MISMATCH and len({group.identity for group in chosen}) == 1:
        chosen[-1] = Group(next(name for name in names if name != chosen[0].identity), size)
    return dict(zip(places, chosen, strict=True))


def _world_for(draw: DrawFn, code: ViolationCode | None, size: int) -> int:
    """Draw a world size that `size` divides or, for SIZE_NOT_DIVIDING_WORLD, does not divide."""
    if code is ViolationCode.SIZE_NOT_DIVIDING_WORLD:
        return size * (draw(_SIZES) - 1) + 1 + draw(st.integers(0, size - 2))
    return size * draw(_SIZES)


_SIZES = sizes()
_INVALID_SIZES = st.integers(-3, 0) | st.integers(max_value=0)
_ANY_SIZES = st.integers(-1, 4) | st.integers()
_OPTIONAL_SIZES = st.none() | _ANY_SIZES
_DTYPES = st.sampled_from(DType)
_OPTIONAL_DTYPES = st.none() | _DTYPES
_IDENTITIES = st.integers(0, 3) | st.integers()
_SEVERAL_IDENTITIES = st.lists(_IDENTITIES, min_size=2, max_size=4, unique=True)
_GROUPS = st.builds(Group, _IDENTITIES, _SIZES)
_OPTIONAL_GROUPS = st.none() | _GROUPS
_POOLS = st.lists(_GROUPS, min_size=1, max_size=4, unique_by=lambda group: group.identity)
_CARRIED: SearchStrategy[Mapping[str, object]] = st.sampled_from(
    [MappingProxyType({}), MappingProxyType({"tp_overlap_comm": True}), MappingProxyType({"tp": {"tp_grain_size": 64}})]
)
