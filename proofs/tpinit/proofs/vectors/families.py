"""Families: which predicates of the contract decide each part of the answer.

An atom is one predicate of the contract: a fact, a field is given, two given values are equal, the sign of a
size, a size divides the world. A family is a set of atoms and the parts of the answer that they decide. A
valuation of a family's atoms is a class of inputs. Together the families decide the whole answer;
`theorems.classes` proves that each family decides its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from types import MappingProxyType

import z3
from tpinit.spec.model import SIZE_OF, FieldTerm, Model
from tpinit.spec.vocabulary import Source, ViolationCode

__all__ = ["ATOMS", "FAMILIES", "VectorFamily", "AnswerPart", "PARTS", "formula", "valuation"]

Term = Callable[[Model], z3.BoolRef]


def _fact(name: str) -> Term:
    return lambda m: getattr(m.given_input, name)


def _in_section(name: str) -> Term:
    return lambda m: z3.And(m.given_input.section, getattr(m.given_input, name))


# Whether each value is written, also in a disabled section, whose values are not given.
_WRITTEN: Mapping[str, Term] = MappingProxyType(
    {
        "call.tp_size": _fact("tpi"),
        "call.dtype": _fact("tpi"),
        "call.tp_group": _fact("tpg"),
        "config.autotp_size": _in_section("autotp_given"),
        "config.tp.tp_size": _in_section("alias_given"),
        "config.dtype": _in_section("dtype_given"),
        "config.tp.tp_group": _in_section("cgroup_given"),
        "precision": _fact("precision_given"),
        "mpu.tp_group": _fact("mpu"),
        "mesh.tp_group": _fact("mesh"),
    }
)
_SIZES = ("config.autotp_size", "config.tp.tp_size", "call.tp_size")
_DTYPES = ("config.dtype", "precision", "call.dtype")
_GROUPS = ("call.tp_group", "mpu.tp_group", "config.tp.tp_group", "mesh.tp_group")


def _value(m: Model, name: str) -> z3.ExprRef:
    return m.value(Source(name))


def _equal(one: str, other: str) -> Term:
    return lambda m: z3.And(_WRITTEN[one](m), _WRITTEN[other](m), _value(m, one) == _value(m, other))


def _below_one(name: str) -> Term:
    return lambda m: z3.And(_WRITTEN[name](m), _value(m, name) < 1)


def _of_effective_size(group: str) -> Term:
    return lambda m: z3.And(
        _WRITTEN[group](m), m.effective_size.exists, SIZE_OF(_value(m, group)) == m.effective_size.value
    )


def _is_zero(m: Model) -> z3.BoolRef:
    return z3.And(_WRITTEN["config.autotp_size"](m), m.given_input.autotp == 0)


def _valid(m: Model) -> z3.BoolRef:
    return z3.And(m.effective_size.exists, m.effective_size.value >= 1)


def _divides(m: Model) -> z3.BoolRef:
    return z3.And(_valid(m), m.given_input.world % m.effective_size.value == 0)


def _violation(code: ViolationCode) -> Term:
    return lambda m: m.violation(code)


def _pairs(names: tuple[str, ...]) -> dict[str, Term]:
    return {f"{one} = {other}": _equal(one, other) for one, other in combinations(names, 2)}


_FACTS: Mapping[str, Term] = {
    "TPI": _fact("tpi"),
    "TPG": _fact("tpg"),
    "MPU": _fact("mpu"),
    "a section": _fact("section"),
    "CFG": lambda m: m.cfg,
}
_SIGNS: Mapping[str, Term] = {f"{name} < 1": _below_one(name) for name in _SIZES} | {"config.autotp_size = 0": _is_zero}
_FITS: Mapping[str, Term] = {f"{group} has the effective size": _of_effective_size(group) for group in _GROUPS}
_CODES: Mapping[str, Term] = {code.value: _violation(code) for code in ViolationCode}

ATOMS: Mapping[str, Term] = MappingProxyType(
    {
        **_FACTS,
        **{f"{name} is written": term for name, term in _WRITTEN.items()},
        **_SIGNS,
        **_pairs(_SIZES),
        **_pairs(_DTYPES),
        **_pairs(_GROUPS),
        **_FITS,
        "the effective size is 1 or more": _valid,
        "the effective size divides world_size": _divides,
        **_CODES,
    }
)


# --- the parts of an answer ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AnswerPart:
    """One part of the answer: the Z3 terms that must have the same value for all inputs of a class."""

    name: str
    terms: Callable[[Model], Mapping[str, z3.ExprRef]]


def _sources(name: str) -> AnswerPart:
    def terms(m: Model) -> Mapping[str, z3.ExprRef]:
        field: FieldTerm = getattr(m, name)
        comes = {f"{name} comes from {source.value}": term for source, term in field.comes_from.items()}
        return {f"there is an {name}": field.exists, **comes}

    return AnswerPart(name, terms)


def _holds(code: ViolationCode) -> AnswerPart:
    return AnswerPart(code.value, lambda m: {code.value: m.violation(code)})


PARTS: Mapping[str, AnswerPart] = MappingProxyType(
    {
        part.name: part
        for part in (
            AnswerPart("row", lambda m: {"row": m.row_number}),
            AnswerPart("section_disabled", lambda m: {"section_disabled": m.disabled}),
            AnswerPart("outcome", lambda m: {"outcome": m.outcome}),
            *map(_holds, ViolationCode),
            _sources("effective_size"),
            _sources("effective_dtype"),
            _sources("effective_group"),
        )
    }
)


# --- the families --------------------------------------------------------------------------------------


def _always(_: Model) -> z3.BoolRef:
    return z3.BoolVal(True)


@dataclass(frozen=True, slots=True)
class VectorFamily:
    """Atoms, the names of the answer parts that they decide, and a term for the inputs that the family is about."""

    name: str
    description: str
    atoms: tuple[str, ...]
    decides: tuple[str, ...]
    within: Term = _always


def _written(*names: str) -> tuple[str, ...]:
    return tuple(f"{name} is written" for name in names)


_SECTION_SIZES = _written("config.autotp_size", "config.tp.tp_size")
_OTHER_GROUPS = _written("config.tp.tp_group", "mesh.tp_group")
_ROW_ERRORS = (ViolationCode.NO_TP_INTENT, ViolationCode.NO_GROUP_SOURCE, ViolationCode.GROUP_AND_MPU)
_SIZE_ERRORS = (ViolationCode.SIZE_MISSING, ViolationCode.SIZE_INVALID, ViolationCode.SIZE_MISMATCH)

FAMILIES: tuple[VectorFamily, ...] = (
    VectorFamily(
        "sizes",
        "which sizes are given, their signs, and which of them are equal",
        (*_FACTS, *_SECTION_SIZES, *_SIGNS, *_pairs(_SIZES)),
        ("row", "section_disabled", *(code.value for code in (*_ROW_ERRORS, *_SIZE_ERRORS))),
    ),
    VectorFamily(
        "dtypes",
        "which dtypes are given, and which of them are equal",
        (*_FACTS, *_written("config.dtype", "precision"), *_pairs(_DTYPES)),
        (ViolationCode.DTYPE_MISMATCH.value,),
    ),
    VectorFamily(
        "identities",
        "which groups are supplied, and which of them are the same object",
        (*_FACTS, *_OTHER_GROUPS, *_pairs(_GROUPS)),
        (ViolationCode.GROUP_IDENTITY_MISMATCH.value,),
    ),
    VectorFamily(
        "group-sizes",
        "which sizes and groups are given, and which groups have the effective size",
        (*_FACTS, *_SECTION_SIZES, *_OTHER_GROUPS, *_FITS),
        (ViolationCode.GROUP_SIZE_MISMATCH.value,),
    ),
    VectorFamily(
        "division",
        "which sizes and groups are given, and whether the effective size is valid and divides the world",
        (
            *_FACTS,
            *_SECTION_SIZES,
            *_OTHER_GROUPS,
            "the effective size is 1 or more",
            "the effective size divides world_size",
        ),
        (ViolationCode.SIZE_NOT_DIVIDING_WORLD.value,),
    ),
    VectorFamily(
        "successes",
        "everything that can be given or not, where no violation holds",
        (
            *_FACTS,
            *_SECTION_SIZES,
            *_written("config.dtype", "config.tp.tp_group", "precision", "mesh.tp_group"),
            "config.autotp_size = 0",
        ),
        ("outcome", "effective_size", "effective_dtype", "effective_group"),
        within=lambda m: z3.Not(m.error),
    ),
    VectorFamily(
        "errors",
        "every set of violations that can hold together, in each row, with and without a disabled section",
        (*_FACTS, *_CODES),
        ("outcome",),
        within=lambda m: m.error,
    ),
)


def valuation(family: VectorFamily, model: Model) -> tuple[z3.BoolRef, ...]:
    """Return the terms of the family's atoms over one model, in order."""
    return tuple(ATOMS[name](model) for name in family.atoms)


def formula(atoms: tuple[z3.BoolRef, ...], signature: str) -> z3.BoolRef:
    """Return the term that is true where exactly the atoms with a 1 in the signature hold."""
    pairs = zip(atoms, signature, strict=True)
    return z3.And(*(atom if bit == "1" else z3.Not(atom) for atom, bit in pairs))
