"""Theorems: claims about the model, an English statement, and a control that must be refuted.

A theorem is a function from a model to claims, registered by `@theorem`. Its docstring is its English
statement. It is proved when every oracle confirms every claim, no claim is vacuous, and at least one claim
is false for the control, which is a mutated model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from types import ModuleType

import z3
from tpinit.spec.model import Model, Symbols, fresh_symbols

__all__ = ["THEOREMS", "Claim", "ClaimsOf", "Mutant", "CheckResult", "Theorem", "Verdict", "register", "theorem"]


class Verdict(str, Enum):
    """The result of a theorem. Only `proved` is a pass."""

    PROVED = "proved"
    REFUTED = "refuted"
    UNKNOWN = "unknown"
    VACUOUS = "vacuous"
    CONTROL_SURVIVED = "control survived"
    DISAGREEMENT = "disagreement"


@dataclass(frozen=True, slots=True)
class Claim:
    """One statement to decide over all inputs; `label` names it within its theorem.

    With `possible` false, the claim is that `premises` imply `conclusion`; it is vacuous where the premises
    are not satisfiable. With `possible` true, the claim is that some input satisfies both. A counterexample
    prints the values of `shown`. `no_brute_force` is the reason why brute force over the small domain can't
    decide the claim, empty where it can.
    """

    label: str
    premises: z3.BoolRef
    conclusion: z3.BoolRef
    possible: bool = False
    shown: tuple[Symbols, ...] = ()
    no_brute_force: str = ""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A wrong contract: a description of what is wrong, and a function that makes it from the correct model."""

    description: str
    apply: Callable[[Model], Model]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one oracle: the verdict, the number of claims (or other units) checked, and a detail to print.

    `skipped` has the label of each claim that this oracle did not decide, with the reason: it is not credited with it.
    """

    verdict: Verdict
    checked: int = 0
    unit: str = "claims"
    detail: str = ""
    skipped: tuple[tuple[str, str], ...] = ()


ClaimsOf = Callable[[Model], Iterable[Claim]]


@dataclass(frozen=True, slots=True)
class Theorem:
    """A named statement, the clause of contract section 6 that it discharges, and how to decide it.

    A theorem has either `claims` about a model, which every solver decides, and a `mutant` of the model as its
    control; or `prove`, which decides by the engine named `engine`, and `refute`, which does the same for the
    control. `bound` states the limit of the proof in English, empty where there is none. `sources` names the
    modules whose source code the theorem is about; it is empty for a theorem about the model. `proves` names the
    functions of these modules that it is about, each as `module.function`. `on` decides the same of another version of
    the module, such as one with a planted bug. `rules` names the rules of the step proof that it is about.
    """

    name: str
    statement: str
    clause: str
    control: str
    claims: ClaimsOf | None = None
    mutant: Mutant | None = None
    engine: str = ""
    prove: Callable[[], CheckResult] | None = None
    refute: Callable[[], CheckResult] | None = None
    bound: str = ""
    sources: tuple[str, ...] = ()
    proves: tuple[str, ...] = ()
    on: Callable[[ModuleType], CheckResult] | None = None
    rules: tuple[str, ...] = ()


THEOREMS: dict[str, Theorem] = {}


def register(theorem: Theorem) -> None:
    """Add a theorem to THEOREMS, which `tpinit prove` runs.

    Raises ValueError for a duplicate name, and for a theorem without a statement, an engine or a control.
    """
    if theorem.name in THEOREMS:
        raise ValueError(f"two theorems are named {theorem.name}")
    if not theorem.statement:
        raise ValueError(f"theorem {theorem.name} has no English statement")
    by_claims = theorem.claims is not None and theorem.mutant is not None
    by_engine = theorem.prove is not None and theorem.refute is not None and theorem.engine
    if not (by_claims or by_engine):
        raise ValueError(f"theorem {theorem.name} needs claims and a mutant, or an engine with prove and refute")
    THEOREMS[theorem.name] = theorem


def theorem(clause: str, control: Mutant) -> Callable[[ClaimsOf], ClaimsOf]:
    """Register a function from a model to claims as a theorem; its docstring is the statement."""

    def decorate(claims_of: ClaimsOf) -> ClaimsOf:
        statement = " ".join((claims_of.__doc__ or "").split())
        name = getattr(claims_of, "__name__", "")
        register(Theorem(name, statement, clause, control.description, claims=claims_of, mutant=control))
        return claims_of

    return decorate


def right_model() -> Model:
    """Return the correct contract as a model over one symbolic input."""
    return Model(fresh_symbols())
