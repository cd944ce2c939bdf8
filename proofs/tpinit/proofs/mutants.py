"""Negative controls: contracts that are wrong in one place, each of which a theorem must refute."""

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
    """Return the mutant without one row of the table."""
    return Mutant(
        f"the table without row {number}",
        lambda m: replace(m, rows=tuple(row for row in m.rows if row.number != number)),
    )


def change_row(number: int, description: str, **changes: object) -> Mutant:
    """Return the mutant with one row of the table changed; `description` completes `row N ...`."""
    return Mutant(
        f"row {number} {description}",
        lambda m: replace(
            m,
            rows=tuple(
                replace(row, **changes) if row.number == number else row  # type: ignore[arg-type] # a mutant may be anything
                for row in m.rows
            ),
        ),
    )


def drop_rule(clause: str, index: int = 0) -> Mutant:
    """Return the mutant without one rule of a clause of the prose; `index` counts from 0."""

    def apply(m: Model) -> Model:
        victim = [rule for rule in m.rules if rule.clause == clause][index]
        return replace(m, rules=tuple(rule for rule in m.rules if rule is not victim))

    return Mutant(f"the prose without rule {index + 1} of {clause}", apply)


def override(code: ViolationCode, description: str, predicate: Callable[[Model, z3.BoolRef], z3.BoolRef]) -> Mutant:
    """Return the mutant with another predicate of one violation; `predicate` gets the model and the correct term."""

    def apply(m: Model) -> Model:
        correct = m.predicates[code]
        return replace(
            m, predicates=MappingProxyType({**m.predicates, code: lambda model: predicate(model, correct(model))})
        )

    return Mutant(f"{code.value} {description}", apply)


def without_code(code: ViolationCode) -> Mutant:
    """Return the mutant in which one violation never holds."""
    return override(code, "never holds", lambda _model, _correct: z3.BoolVal(False))


def reorder_sizes(*order: Source) -> Mutant:
    """Return the mutant with another precedence of sizes."""
    return Mutant("sizes in the order " + ", ".join(order), lambda m: replace(m, size_order=order))


def reorder_dtypes(*order: Source) -> Mutant:
    """Return the mutant with another precedence of dtypes."""
    return Mutant("dtypes in the order " + ", ".join(order), lambda m: replace(m, dtype_order=order))


def reorder_groups(*order: Source) -> Mutant:
    """Return the mutant with another precedence of the config's and the mesh's group."""
    return Mutant("groups in the order " + ", ".join(order), lambda m: replace(m, config_group_order=order))


def redefine(name: str, description: str, make: Callable[[Model, Any], object]) -> Mutant:
    """Return the mutant with another derived term; `make` gets the model and the correct term.

    The mutated model is a subclass, so that `dataclasses.replace` keeps the change.
    """
    correct = Model.__dict__[name].func
    changed = cached_property(lambda m: make(m, correct(m)))
    changed.__set_name__(Model, name)
    mutated = type("MutatedModel", (Model,), {name: changed})
    return Mutant(
        f"{name} {description}", lambda m: mutated(**{item.name: getattr(m, item.name) for item in fields(Model)})
    )


def no_disabling() -> Mutant:
    """Return the mutant without D2: `autotp_size: 0` never disables a section."""
    return Mutant("the contract without D2", lambda m: replace(m, disabled_by=lambda _symbols: z3.BoolVal(False)))


def forget_mesh() -> Mutant:
    """Return the mutant in which a mesh is no group source (D4): a group is created although a mesh supplies one."""
    return Mutant("the mesh is no group source", lambda m: replace(m, config_group_order=(Source.CONFIG_TP_GROUP,)))


ROW_8_INITS_NOTHING = change_row(8, "has the outcome `no AutoTP`", outcome=Outcome.NO_AUTOTP)
