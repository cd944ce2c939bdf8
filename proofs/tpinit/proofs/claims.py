"""What a theorem is: claims about the model, an English statement, and a control that must fail.

A theorem is a function from a model to claims, registered by `@theorem`. Its docstring is its English
statement. It holds when every oracle decides every claim as claimed, no claim is vacuous, and the
control, a mutated model, makes at least one claim fall.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

import z3
from tpinit.spec.model import Model, Symbols, fresh_symbols

__all__ = ["THEOREMS", "Claim", "ClaimsOf", "Mutant", "Result", "Theorem", "Verdict", "register", "theorem"]


class Verdict(str, Enum):
    """How a theorem ended. Only `proved` is a pass."""

    PROVED = "proved"
    REFUTED = "refuted"
    UNKNOWN = "unknown"
    VACUOUS = "vacuous"
    CONTROL_SURVIVED = "control survived"
    DISAGREEMENT = "disagreement"


@dataclass(frozen=True, slots=True)
class Claim:
    """One statement to decide over all inputs.

    With `possible` false: `given` implies `then` (and `given` must be satisfiable, else the claim is
    vacuous). With `possible` true: some input satisfies both. `shown` are the inputs in whose words a
    counterexample is told. `beyond` says why a small domain can't decide the claim, where it can't.
    """

    says: str
    given: z3.BoolRef
    then: z3.BoolRef
    possible: bool = False
    shown: tuple[Symbols, ...] = ()
    beyond: str = ""


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


ClaimsOf = Callable[[Model], Iterable[Claim]]


@dataclass(frozen=True, slots=True)
class Theorem:
    """A named statement, the clause of contract section 6 that it discharges, and how to decide it.

    Either `claims` about a model, with a `mutant` of it as control, which every solver decides; or
    `prove`, which decides by one engine named `engine`, and `refute`, the same of a control. `bound` is
    the limit of the argument, in words, empty where there is none. `sources` names the modules whose
    source is what is proven, where it is not the claims.
    """

    name: str
    statement: str
    clause: str
    control: str
    claims: ClaimsOf | None = None
    mutant: Mutant | None = None
    engine: str = ""
    prove: Callable[[], Result] | None = None
    refute: Callable[[], Result] | None = None
    bound: str = ""
    sources: tuple[str, ...] = ()


THEOREMS: dict[str, Theorem] = {}


def register(theorem: Theorem) -> None:
    """Add a theorem to those that `tpinit prove` runs.

    Raises ValueError for a name that is taken, a theorem without a statement, and one that nothing decides.
    """
    if theorem.name in THEOREMS:
        raise ValueError(f"two theorems are named {theorem.name}")
    if not theorem.statement:
        raise ValueError(f"theorem {theorem.name} has no English statement")
    by_claims = theorem.claims is not None and theorem.mutant is not None
    by_engine = theorem.prove is not None and theorem.refute is not None and theorem.engine
    if not (by_claims or by_engine):
        raise ValueError(f"theorem {theorem.name} has nothing that decides it, or no control")
    THEOREMS[theorem.name] = theorem


def theorem(clause: str, control: Mutant) -> Callable[[ClaimsOf], ClaimsOf]:
    """Register a function from a model to claims as a theorem; its docstring is the statement."""

    def decorate(claims_of: ClaimsOf) -> ClaimsOf:
        statement = " ".join((claims_of.__doc__ or "").split())
        name = getattr(claims_of, "__name__", "")
        register(Theorem(name, statement, clause, control.says, claims=claims_of, mutant=control))
        return claims_of

    return decorate


def right_model() -> Model:
    """Make the contract as it is, over one open input."""
    return Model(fresh_symbols())
