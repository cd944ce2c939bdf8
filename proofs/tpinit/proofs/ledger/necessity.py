"""Necessity of each part of the contract: drop the part and find the first theorem that is then false.

No proof would depend on a part that can be dropped without a false theorem. The parts are A0, each row of
the table, each rule of the prose, and each violation code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import z3
from tpinit.proofs.claims import THEOREMS, Mutant, right_model
from tpinit.proofs.ledger.evidence import first_to_fall
from tpinit.proofs.mutants import drop_row, without_code
from tpinit.proofs.processes import in_processes
from tpinit.spec.model import Model
from tpinit.spec.prose import RULES
from tpinit.spec.table import ROWS
from tpinit.spec.vocabulary import ViolationCode

__all__ = ["A0", "NecessityResult", "drops", "needed_by", "needed_by_each"]

A0 = "A0 (TPG implies TPI)"


@dataclass(frozen=True, slots=True)
class NecessityResult:
    """The first theorem that is false without a part, and its false claim; both empty where no theorem is false."""

    dropped: str
    theorem: str = ""
    falls: str = ""


@dataclass(frozen=True)
class _NotAssumingA0(Model):
    """The model in which A0 is no premise. The term A0 stays defined because theorems use it."""

    @cached_property
    def typing(self) -> Mapping[str, z3.BoolRef]:
        """The conditions that every input satisfies by its type, without A0."""
        return {name: term for name, term in super().typing.items() if name != A0}


def _without_a0(model: Model) -> Model:
    if A0 not in model.typing:
        raise ValueError(f"no premise of the model is named {A0!r}")
    return _NotAssumingA0(**{item.name: getattr(model, item.name) for item in fields(Model)})


def _without_rule(place: int) -> Callable[[Model], Model]:
    return lambda model: replace(model, rules=(*model.rules[:place], *model.rules[place + 1 :]))


def drops() -> Iterator[Mutant]:
    """Yield every contract without one part; its description is the name of the part."""
    yield Mutant(A0, _without_a0)
    for row in ROWS:
        yield Mutant(f"row {row.number}", drop_row(row.number).apply)
    for place, rule in enumerate(RULES):
        yield Mutant(f"{rule.clause}: {rule.says}", _without_rule(place))
    for code in ViolationCode:
        yield Mutant(code.value, without_code(code).apply)


def needed_by(drop: Mutant, names: Sequence[str]) -> NecessityResult:
    """Return the first of the named theorems that is false without the part."""
    for name in names:
        claims = THEOREMS[name].claims
        falls = None if claims is None else first_to_fall(claims(drop.apply(right_model())))
        if falls is not None:
            return NecessityResult(drop.description, name, falls)
    return NecessityResult(drop.description)


def _needed_by_place(place: int, names: Sequence[str]) -> tuple[int, NecessityResult]:
    import tpinit.proofs.theorems  # registers them in this process

    del tpinit
    return place, needed_by(list(drops())[place], names)


def needed_by_each(names: Sequence[str], jobs: int) -> list[NecessityResult]:
    """Return for every part the first of the named theorems that is false without it; runs in `jobs` processes."""
    arguments = [(place, names) for place in range(len(list(drops())))]
    found = dict(in_processes(_needed_by_place, arguments, jobs))
    return [found[place] for place, _ in arguments]
