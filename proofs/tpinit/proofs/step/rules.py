"""The rules of the step proof by name, read from its tables, and the lint that each has a theorem."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType

from tpinit.proofs.claims import Theorem
from tpinit.step import (
    layouts,
    movement,
    pieces,
    rules,
    rules_collectives,
    rules_joined,
    rules_loss,
    rules_movement,
    rules_vocabulary,
    specs,
)

__all__ = ["LABELLED", "named", "problems"]

LABELLED = (
    "spec.all SHARD",
    "spec.reduced label cut",
    "spec.PARTIAL under joint linearity",
    "spec.SHARD as PARTIAL",
    "spec.mixed label",
)
"""The cases of the one rule for labelled operations (`labels.labelled`)."""

# What the normal form only reads: these make no term.
_READERS = ("addends", "cat_layout", "cat_parts")
_LIFTER = ("lift.Lifter.replicated", "lift.Lifter._leaf", "lift._same_values")


def _tables() -> Mapping[str, Iterable[str]]:
    return {
        "VOCABULARY": rules_vocabulary.VOCABULARY,
        "STARTS": rules_loss.STARTS,
        "LATE": rules_loss.LATE,
        "ENDS": _private(rules_loss, "_ENDS"),
        "JOINED": rules_joined.JOINED,
        "MOVEMENT": rules_movement.MOVEMENT,
        "COLLECTIVES": rules_collectives.COLLECTIVES,
        "RULES": _private(rules, "_RULES"),
        "linear": _private(specs, "_LINEAR"),
        "softmax": _private(specs, "_SOFTMAX"),
        "labels": _private(specs, "_RULES"),
    }


def _private(module: ModuleType, name: str) -> Iterable[str]:
    """Return a table that no other module of the step proof reads."""
    found: Mapping[str, object] = getattr(module, name)
    return found


def named() -> list[str]:
    """Return the names of all rules that need a theorem.

    `TABLE.OPERATION` is an entry of a table; `linear.OPERATION` says in which operands an operation is linear;
    `labels.` and `softmax.` have the labels of a class; `elementwise` are all other functions of elements; `spec.` are
    the cases of the labelled rule; `normal form.` are the laws of terms; the rest are functions by module.
    """
    found = [f"{table}.{name}" for table, names in _tables().items() for name in names]
    laws = (name for kind in movement.Movement.__mro__[:-1] for name, held in vars(kind).items() if callable(held))
    found += [
        f"normal form.{name}" for name in dict.fromkeys(laws) if not name.startswith("__") and name not in _READERS
    ]
    for module in (pieces, layouts):
        short = module.__name__.rpartition(".")[2]
        functions = (
            name
            for name in module.__all__
            if getattr(getattr(module, name), "__code__", None) and vars(module)[name].__module__ == module.__name__
        )
        found += [f"{short}.{name}" for name in functions]
    return [*found, *LABELLED, "elementwise", *_LIFTER]


def problems(theorems: Iterable[Theorem], listed: Iterable[str] | None = None) -> Iterator[str]:
    """Yield a line for each rule (by default `named()`) without a theorem, and for each name in a theorem that is no
    rule.
    """
    wanted = list(named() if listed is None else listed)
    proven = {rule: theorem.name for theorem in theorems for rule in theorem.rules}
    for rule in wanted:
        if rule not in proven:
            yield f"rule {rule} of the step proof: no theorem is about it; name it in `rules` of one that proves it"
    for rule, theorem in proven.items():
        if rule not in wanted and not _exists(rule):
            yield f"theorem {theorem} is about {rule!r}, which is no rule of the step proof"


def _exists(rule: str) -> bool:
    """Return whether a name is that of something in a module of the step proof, as `rules._rescaled`."""
    module, _, path = rule.partition(".")
    if not module.islower() or " " in rule:
        return False
    try:
        found: object = importlib.import_module(f"tpinit.step.{module}")
    except ModuleNotFoundError:
        return False
    for name in path.split("."):
        if not hasattr(found, name):
            return False
        found = getattr(found, name)
    return True
