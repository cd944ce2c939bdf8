"""The merge and section 4 a second time, as Z3 terms: the sentences of P1 to P7 over the raw input.

`model` has the first formulation, which evidence and proofs use. This one is written apart from it and shares only the
vocabulary and the symbols of an input, so that a slip in one of them makes the two differ (`theorems.meaning`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import z3
from tpinit.spec.symbols import SIZE_OF, Symbols, constant
from tpinit.spec.vocabulary import Source, ViolationCode

__all__ = ["BROKEN", "MergedField", "autotp_wanted", "merged_dtype", "merged_group", "merged_size", "section_counts"]


@dataclass(frozen=True)
class MergedField:
    """An effective field: whether there is a value, the value, and the term of its source.

    The value is meaningful where `exists` is true, the source where `has_source` is true.
    """

    exists: z3.BoolRef
    value: z3.ExprRef
    has_source: z3.BoolRef
    source: z3.DatatypeRef


# --- the merge -----------------------------------------------------------------------------------------


def section_counts(s: Symbols) -> z3.BoolRef:
    """CFG: a section is there, and it says more than `autotp_size: 0`, or there is a call (D1, D2)."""
    return z3.And(s.section, z3.Or(z3.Not(s.autotp_given), s.autotp != 0, s.alias_given, s.tpi))


def autotp_wanted(s: Symbols) -> z3.BoolRef:
    """P7, read backwards: there is AutoTP, or an error about it, where there is a call or a section that counts."""
    return z3.Not(z3.And(z3.Not(s.tpi), z3.Not(section_counts(s))))


def merged_size(s: Symbols) -> MergedField:
    """P1: the config's `autotp_size`, or its alias (D5). P2: the call's size where the config has none."""
    in_config = z3.And(section_counts(s), z3.Or(s.autotp_given, s.alias_given))
    key = z3.If(s.autotp_given, constant(Source.CONFIG_AUTOTP_SIZE), constant(Source.CONFIG_TP_SIZE))
    value = z3.If(in_config, z3.If(s.autotp_given, s.autotp, s.alias), s.call_size)
    exists = z3.Or(in_config, s.tpi)
    return MergedField(exists, value, exists, z3.If(in_config, key, constant(Source.CALL_TP_SIZE)))


def merged_dtype(s: Symbols) -> MergedField:
    """P1: the section's dtype, or the precision beside it. P2: the call's where both are missing. Else unset (D6)."""
    of_section = z3.And(section_counts(s), s.dtype_given)
    in_config = z3.Or(of_section, s.precision_given)
    value = z3.If(in_config, z3.If(of_section, s.dtype, s.precision), s.call_dtype)
    key = z3.If(of_section, constant(Source.CONFIG_DTYPE), constant(Source.PRECISION))
    filled = z3.If(s.tpi, constant(Source.CALL_DTYPE), constant(Source.UNSET))
    return MergedField(z3.Or(in_config, s.tpi), value, z3.BoolVal(True), z3.If(in_config, key, filled))


def merged_group(s: Symbols) -> MergedField:
    """P4: the call's group. P5: without one, the mpu's. Without both, a section has the config's, the mesh's, or one
    that is created (D4).
    """
    other = z3.If(s.cgroup_given, s.cgroup, s.mesh_group)
    value = z3.If(s.tpg, s.call_group, z3.If(s.mpu, s.mpu_group, other))
    other_source = z3.If(
        s.cgroup_given,
        constant(Source.CONFIG_TP_GROUP),
        z3.If(s.mesh, constant(Source.MESH_TP_GROUP), constant(Source.CREATED)),
    )
    source = z3.If(s.tpg, constant(Source.CALL_TP_GROUP), z3.If(s.mpu, constant(Source.MPU_TP_GROUP), other_source))
    direct = z3.And(autotp_wanted(s), z3.Or(s.tpg, s.mpu))
    in_section = z3.And(section_counts(s), z3.Or(s.cgroup_given, s.mesh))
    return MergedField(z3.Or(direct, in_section), value, z3.Or(direct, section_counts(s)), source)


# --- section 4 -----------------------------------------------------------------------------------------


def _nothing_at_all(s: Symbols) -> z3.BoolRef:
    """P7: an error when nothing at all was given."""
    return z3.Not(z3.Or(s.tpi, s.mpu, section_counts(s)))


def _no_source(s: Symbols) -> z3.BoolRef:
    """P6: a call alone has neither of the two direct sources."""
    return z3.And(s.tpi, z3.Not(z3.Or(s.tpg, s.mpu, section_counts(s))))


def _two_direct_sources(s: Symbols) -> z3.BoolRef:
    """P4: a call's tp_group rejects any mpu."""
    return z3.Not(z3.Or(z3.Not(s.tpg), z3.Not(s.mpu)))


def _size_missing(s: Symbols) -> z3.BoolRef:
    """A section counts, and after the merge there is no size."""
    return z3.And(section_counts(s), z3.Not(merged_size(s).exists))


def _size_invalid(s: Symbols) -> z3.BoolRef:
    """A size that somebody gave is below 1; the 0 of D2 is not."""
    autotp = z3.And(section_counts(s), s.autotp_given, s.autotp < 0)
    alias = z3.And(section_counts(s), s.alias_given, s.alias <= 0)
    return z3.Or(autotp, alias, z3.And(s.tpi, s.call_size <= 0))


def _size_mismatch(s: Symbols) -> z3.BoolRef:
    """P3: somebody gave another size than the one that the merge takes."""
    size = merged_size(s).value
    alias = z3.And(section_counts(s), s.alias_given, s.alias != size)
    return z3.Or(alias, z3.And(s.tpi, s.call_size != size))


def _dtype_mismatch(s: Symbols) -> z3.BoolRef:
    """P3: somebody gave another dtype than the one that the merge takes."""
    dtype = merged_dtype(s).value
    precision = z3.And(section_counts(s), s.precision_given, s.precision != dtype)
    return z3.Or(precision, z3.And(s.tpi, s.call_dtype != dtype))


def _group_mismatch(s: Symbols) -> z3.BoolRef:
    """P3: the config's or the mesh's group is not each other group; P4 decides between a call's and an mpu's."""
    by_config = z3.And(section_counts(s), s.cgroup_given)
    direct = ((s.tpg, s.call_group), (s.mpu, s.mpu_group))
    of_config = [z3.And(there, group != s.cgroup) for there, group in (*direct, (s.mesh, s.mesh_group))]
    of_mesh = [z3.And(there, group != s.mesh_group) for there, group in direct]
    return z3.And(autotp_wanted(s), z3.Or(z3.And(by_config, z3.Or(*of_config)), z3.And(s.mesh, z3.Or(*of_mesh))))


def _group_of_other_size(s: Symbols) -> z3.BoolRef:
    """P3: some group has not as many ranks as the size that the merge takes."""
    size = merged_size(s)
    call = z3.And(s.tpg, SIZE_OF(s.call_group) != size.value)
    mpu = z3.And(s.mpu, SIZE_OF(s.mpu_group) != size.value)
    mesh = z3.And(s.mesh, SIZE_OF(s.mesh_group) != size.value)
    config = z3.And(section_counts(s), s.cgroup_given, SIZE_OF(s.cgroup) != size.value)
    return z3.And(size.exists, z3.Or(call, mpu, mesh, config))


def _world_not_covered(s: Symbols) -> z3.BoolRef:
    """A group is created, and groups of a valid size leave ranks of the world over."""
    size, group = merged_size(s), merged_group(s)
    to_create = z3.And(section_counts(s), z3.Not(group.exists))
    return z3.And(to_create, size.exists, z3.Not(z3.Or(size.value < 1, s.world % size.value == 0)))


BROKEN: Mapping[ViolationCode, Callable[[Symbols], z3.BoolRef]] = MappingProxyType(
    {
        ViolationCode.NO_TP_INTENT: _nothing_at_all,
        ViolationCode.NO_GROUP_SOURCE: _no_source,
        ViolationCode.GROUP_AND_MPU: _two_direct_sources,
        ViolationCode.SIZE_MISSING: _size_missing,
        ViolationCode.SIZE_INVALID: _size_invalid,
        ViolationCode.SIZE_MISMATCH: _size_mismatch,
        ViolationCode.DTYPE_MISMATCH: _dtype_mismatch,
        ViolationCode.GROUP_IDENTITY_MISMATCH: _group_mismatch,
        ViolationCode.GROUP_SIZE_MISMATCH: _group_of_other_size,
        ViolationCode.SIZE_NOT_DIVIDING_WORLD: _world_not_covered,
    }
)
