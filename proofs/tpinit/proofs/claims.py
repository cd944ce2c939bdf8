"""What a theorem is: claims about the model, an English statement, and a control that must fail.

A theorem is a function from a model to claims, registered by `@theorem`. Its docstring is its English
statement. It holds when every claim is decided as claimed, no claim is vacuous, and the control, a
mutated model, makes at least one claim fall.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

import z3
from tpinit.spec.model import Model, Symbols, fresh_symbols

__all__ = ["THEOREMS", "Claim", "Mutant", "Result", "Theorem", "Verdict", "register", "theorem"]


class Verdict(str, Enum):
    """How a theorem ended. Only `proved` is a pass."""

    PROVED = "proved"
    REFUTED = "refuted"
    UNKNOWN = "unknown"
    VACUOUS = "vacuous"
    CONTROL_SURVIVED = "control survived"


@dataclass(frozen=True, slots=True)
class Claim:
    """One statement to decide over all inputs.

    With `possible` false: `given` implies `then` (and `given` must be satisfiable, else the claim is
    vacuous). With `possible` true: some input satisfies both. `shown` are the inputs in whose words a
    counterexample is told.
    """

    says: str
    given: z3.BoolRef
    then: z3.BoolRef
    possible: bool = False
    shown: tuple[Symbols, ...] = ()


@dataclass(frozen=True, slots=True)
class Mutant:
    """A wrong contract: what is wrong with it, and how to make it of the right one."""

    says: str
    apply: Callable[[Model], Model]


@dataclass(frozen=True, slots=True)
class Result:
    """What deciding gave: the verdict, the number of claims or paths, and words for a reader."""

    verdict: Verdict
    checked: int = 0
    unit: str = "claims"
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Theorem:
    """A named statement, the clause of contract section 6 that it discharges, and how to decide it.

    `prove` decides it for the contract as it is, `refute` for the control, which must fall.
    """

    name: str
    statement: str
    clause: str
    control: str
    prove: Callable[[], Result]
    refute: Callable[[], Result]


THEOREMS: dict[str, Theorem] = {}


def register(theorem: Theorem) -> None:
    """Add a theorem to those that `tpinit prove` runs.

    Raises ValueError for a name that is taken and for a theorem without a statement.
    """
    if theorem.name in THEOREMS:
        raise ValueError(f"two theorems are named {theorem.name}")
    if not theorem.statement:
        raise ValueError(f"theorem {theorem.name} has no English statement")
    THEOREMS[theorem.name] = theorem


ClaimsOf = Callable[[Model], Iterable[Claim]]


def theorem(clause: str, control: Mutant) -> Callable[[ClaimsOf], ClaimsOf]:
    """Register a function from a model to claims as a theorem; its docstring is the statement."""

    def decorate(claims_of: ClaimsOf) -> ClaimsOf:
        from tpinit.proofs.solvers import decide_all

        def model() -> Model:
            return Model(fresh_symbols())

        register(
            Theorem(
                name=claims_of.__name__,
                statement=" ".join((claims_of.__doc__ or "").split()),
                clause=clause,
                control=control.says,
                prove=lambda: decide_all(claims_of(model())),
                refute=lambda: decide_all(claims_of(control.apply(model()))),
            )
        )
        return claims_of

    return decorate
