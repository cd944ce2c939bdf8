"""Section 6, items 4 and 5: no given value is silently ignored, and a success is safe."""

from __future__ import annotations

from collections.abc import Iterable

import z3
from tpinit.proofs.claims import Claim, theorem
from tpinit.proofs.mutants import no_disabling, override, without_code
from tpinit.spec.model import DTYPES, GROUPS, SIZE_OF, SIZES, Model
from tpinit.spec.vocabulary import Source, ViolationCode


def _started(m: Model) -> z3.BoolRef:
    return z3.And(m.well_typed, m.starts)


@theorem("6.4", control=without_code(ViolationCode.SIZE_MISMATCH))
def no_size_is_ignored(m: Model) -> Iterable[Claim]:
    """Where AutoTP starts, every given size equals the effective one."""
    for source in SIZES:
        given = z3.And(_started(m), m.given(source))
        yield Claim(source.value, given, m.value(source) == m.effective_size.value, shown=(m.given_input,))


@theorem("6.4", control=without_code(ViolationCode.DTYPE_MISMATCH))
def no_dtype_is_ignored(m: Model) -> Iterable[Claim]:
    """On success every given dtype equals the effective one, also where there is no AutoTP (row 2)."""
    for source in DTYPES:
        given = z3.And(m.well_typed, z3.Not(m.error), m.given(source))
        yield Claim(source.value, given, m.value(source) == m.effective_dtype.value, shown=(m.given_input,))


@theorem("6.4", control=without_code(ViolationCode.GROUP_IDENTITY_MISMATCH))
def no_group_is_ignored(m: Model) -> Iterable[Claim]:
    """Where AutoTP starts, every supplied group is the effective group."""
    for source in GROUPS:
        given = z3.And(_started(m), m.given(source))
        same = z3.And(m.effective_group.exists, m.value(source) == m.effective_group.value)
        yield Claim(source.value, given, same, shown=(m.given_input,))


@theorem("6.4", control=no_disabling())
def only_zero_disables_a_section(m: Model) -> Iterable[Claim]:
    """D1, D2: a section is disabled exactly when it sets `autotp_size: 0` and there is neither a call nor a
    `tp.tp_size`; a disabled section never starts AutoTP.
    """
    s = m.given_input
    off = z3.And(s.section, s.autotp_given, s.autotp == 0, z3.Not(s.alias_given), z3.Not(s.tpi))
    yield Claim("disabled exactly when", z3.And(m.well_typed, s.section), z3.Not(m.cfg) == off, shown=(s,))
    yield Claim("does not start", z3.And(m.well_typed, off), z3.Not(m.starts), shown=(s,))


@theorem("6.5", control=without_code(ViolationCode.SIZE_INVALID))
def size_is_at_least_one(m: Model) -> Iterable[Claim]:
    """Where AutoTP starts there is a size and it is at least 1; in particular, a size of 0 never starts it (D2)."""
    size = m.effective_size
    yield Claim("at least 1", _started(m), z3.And(size.exists, size.value >= 1), shown=(m.given_input,))


@theorem("6.5", control=without_code(ViolationCode.GROUP_SIZE_MISMATCH))
def the_group_has_the_size(m: Model) -> Iterable[Claim]:
    """Where AutoTP starts with a supplied group, the number of ranks in the group is the effective size."""
    given = z3.And(_started(m), m.effective_group.exists)
    yield Claim("size", given, SIZE_OF(m.effective_group.value) == m.effective_size.value, shown=(m.given_input,))


@theorem("6.5", control=without_code(ViolationCode.SIZE_NOT_DIVIDING_WORLD))
def created_groups_tile_the_world(m: Model) -> Iterable[Claim]:
    """Where AutoTP starts with a created group, the size divides the world."""
    given = z3.And(_started(m), m.effective_group.comes_from[Source.CREATED])
    tiles = m.given_input.world % m.effective_size.value == 0
    yield Claim("divides", given, tiles, shown=(m.given_input,))


@theorem(
    "6.5",
    control=override(
        ViolationCode.GROUP_AND_MPU,
        "does not hold where both groups are the same",
        lambda m, right: z3.And(right, m.given_input.call_group != m.given_input.mpu_group),
    ),
)
def a_calls_group_never_meets_an_mpu(m: Model) -> Iterable[Claim]:
    """P4: a call's own group together with an mpu is always an error, even where both supply the same group."""
    given = z3.And(m.well_typed, m.given_input.tpg, m.given_input.mpu)
    yield Claim("an error", given, m.error, shown=(m.given_input,))
