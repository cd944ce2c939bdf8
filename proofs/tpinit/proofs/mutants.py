"""Negative controls: contracts that are wrong in one place, each to be caught by a theorem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import z3
from tpinit.proofs.claims import Mutant
from tpinit.spec.model import Model
from tpinit.spec.vocabulary import Outcome, Source, ViolationCode

__all__ = [
    "change_row",
    "drop_row",
    "drop_rule",
    "forget_mesh",
    "no_disabling",
    "override",
    "redefine",
    "reorder_dtypes",
    "reorder_groups",
    "reorder_sizes",
    "without_code",
]


def drop_row(number: int) -> Mutant:
    """Make the table without one row."""
    return Mutant(
        f"the table without row {number}",
        lambda m: replace(m, rows=tuple(row for row in m.rows if row.number != number)),
    )


def change_row(number: int, says: str, **changes: object) -> Mutant:
    """Make the table with one row changed."""
    return Mutant(
        f"row {number} {says}",
        lambda m: replace(
            m,
            rows=tuple(
                replace(row, **changes) if row.number == number else row  # type: ignore[arg-type] # a mutant may be anything
                for row in m.rows
            ),
        ),
    )


def drop_rule(clause: str, index: int = 0) -> Mutant:
    """Make the prose without the index-th rule of one clause."""

    def apply(m: Model) -> Model:
        victim = [rule for rule in m.rules if rule.clause == clause][index]
        return replace(m, rules=tuple(rule for rule in m.rules if rule is not victim))

    return Mutant(f"the prose without {clause} ({index + 1})", apply)


def override(code: ViolationCode, says: str, predicate: Callable[[Model, z3.BoolRef], z3.BoolRef]) -> Mutant:
    """Make one violation's predicate another, given the model and the right predicate."""

    def apply(m: Model) -> Model:
        right = m.predicates[code]
        return replace(
            m, predicates=MappingProxyType({**m.predicates, code: lambda model: predicate(model, right(model))})
        )

    return Mutant(f"{code.value} {says}", apply)


def without_code(code: ViolationCode) -> Mutant:
    """Make a contract in which one violation never holds."""
    return override(code, "never holds", lambda _model, _right: z3.BoolVal(False))


def reorder_sizes(*order: Source) -> Mutant:
    """Make another precedence of sizes."""
    return Mutant("sizes in the order " + ", ".join(order), lambda m: replace(m, size_order=order))


def reorder_dtypes(*order: Source) -> Mutant:
    """Make another precedence of dtypes."""
    return Mutant("dtypes in the order " + ", ".join(order), lambda m: replace(m, dtype_order=order))


def reorder_groups(*order: Source) -> Mutant:
    """Make another precedence of the groups that are no direct source."""
    return Mutant("groups in the order " + ", ".join(order), lambda m: replace(m, config_group_order=order))


def redefine(name: str, says: str, make: Callable[[Model, Any], object]) -> Mutant:
    """Make one derived term of the model another, given the model and the right term; `replace` keeps the change."""
    right = Model.__dict__[name].func
    changed = cached_property(lambda m: make(m, right(m)))
    changed.__set_name__(Model, name)
    mutated = type("MutatedModel", (Model,), {name: changed})
    return Mutant(f"{name} {says}", lambda m: mutated(**{item.name: getattr(m, item.name) for item in fields(Model)}))


def no_disabling() -> Mutant:
    """Forget D2: `autotp_size: 0` never switches a section off."""
    return Mutant("D2 forgotten", lambda m: replace(m, disabled_by=lambda _symbols: z3.BoolVal(False)))


def forget_mesh() -> Mutant:
    """Forget that a mesh is a group source (D4): a group is created beside it."""
    return Mutant("the mesh forgotten", lambda m: replace(m, config_group_order=(Source.CONFIG_TP_GROUP,)))


ROW_8_INITS_NOTHING = change_row(8, "says no AutoTP", outcome=Outcome.NO_AUTOTP)
