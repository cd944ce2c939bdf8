"""One input as Z3 terms: the sorts, the constants of the vocabulary's enums, and `Symbols`.

Sizes are unbounded integers; groups are an uninterpreted sort with an uninterpreted size (section 6, item 7).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from types import MappingProxyType

import z3
from tpinit.spec.vocabulary import DType, FieldsFrom, GroupFrom, Outcome, Source, ViolationCode

__all__ = ["SIZE_OF", "GroupSort", "Symbols", "constant", "fresh_symbols"]

GroupSort = z3.DeclareSort("Group")
SIZE_OF = z3.Function("size_of", GroupSort, z3.IntSort())


def _enum_sort(enum: type[Enum]) -> tuple[z3.DatatypeSortRef, Mapping[Enum, z3.DatatypeRef]]:
    sort, constants = z3.EnumSort(enum.__name__, [f"{enum.__name__}.{member.name}" for member in enum])
    return sort, MappingProxyType(dict(zip(enum, constants, strict=True)))


_ENUMS: tuple[type[Enum], ...] = (DType, Outcome, FieldsFrom, GroupFrom, Source, ViolationCode)
_SORTS = {enum: _enum_sort(enum) for enum in _ENUMS}


def constant(member: Enum) -> z3.DatatypeRef:
    """Return the Z3 constant of a member of one of the vocabulary's enums."""
    return _SORTS[type(member)][1][member]


_SORT_OF_ANNOTATION = {
    "z3.BoolRef": z3.BoolSort(),
    "z3.ArithRef": z3.IntSort(),
    "z3.DatatypeRef": _SORTS[DType][0],
    "z3.ExprRef": GroupSort,
}


@dataclass(frozen=True)
class Symbols:
    """One input as Z3 terms. A value is meaningful only where the term of its presence is true."""

    tpi: z3.BoolRef
    tpg: z3.BoolRef
    section: z3.BoolRef
    mpu: z3.BoolRef
    mesh: z3.BoolRef
    autotp_given: z3.BoolRef
    alias_given: z3.BoolRef
    dtype_given: z3.BoolRef
    precision_given: z3.BoolRef
    cgroup_given: z3.BoolRef
    world: z3.ArithRef
    call_size: z3.ArithRef
    autotp: z3.ArithRef
    alias: z3.ArithRef
    call_dtype: z3.DatatypeRef
    dtype: z3.DatatypeRef
    precision: z3.DatatypeRef
    call_group: z3.ExprRef
    cgroup: z3.ExprRef
    mpu_group: z3.ExprRef
    mesh_group: z3.ExprRef


def fresh_symbols(suffix: str = "") -> Symbols:
    """Return an unconstrained input: each term is a free constant named after its field, plus the suffix."""
    return Symbols(
        **{item.name: z3.Const(item.name + suffix, _SORT_OF_ANNOTATION[str(item.type)]) for item in fields(Symbols)}
    )
