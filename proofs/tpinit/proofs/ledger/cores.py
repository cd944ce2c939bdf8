"""Which premises a claim needs: an unsatisfiable core of them, minimal and always the same one.

The premises are dropped one by one in their own order, and one that the claim holds without stays
dropped. What is left is a core of which no part can be dropped; since every step is decided, it does
not depend on the solver, its version or its seeds, as the core that a solver offers would.
"""

from __future__ import annotations

from collections.abc import Sequence

import z3
from tpinit.proofs.claims import Claim
from tpinit.proofs.ledger.naming import conjuncts, name_of

__all__ = ["CoreError", "core", "needs"]

# A count of the solver's steps and not of seconds, so that a busy machine changes nothing.
_STEPS = 50_000_000


class CoreError(Exception):
    """A claim of which a core was asked does not hold, or could not be decided."""


def needs(claim: Claim) -> list[str]:
    """Say the premises that a claim needs. None at all means that it holds by the definitions alone.

    Raises CoreError for a claim that does not hold, and for one that only says that something is possible.
    """
    if claim.possible:
        raise CoreError(f"{claim.says}: what is possible needs no premises, it has a witness")
    return [name_of(premise) for premise in core(claim)]


def core(claim: Claim) -> list[z3.BoolRef]:
    """Find a minimal set of the premises from which the claim follows. Raises CoreError as `needs` does."""
    premises = conjuncts(claim.given)
    solver = z3.Solver()
    solver.set("rlimit", _STEPS)
    solver.add(z3.Not(claim.then))
    marks = [z3.FreshBool("premise") for _ in premises]
    for mark, premise in zip(marks, premises, strict=True):
        solver.add(z3.Implies(mark, premise))
    kept = list(range(len(premises)))
    if solver.check([marks[index] for index in kept]) != z3.unsat:
        raise CoreError(f"{claim.says}: does not follow from its premises")
    for index in range(len(premises)):
        without = [other for other in kept if other != index]
        if solver.check([marks[other] for other in without]) == z3.unsat:
            kept = without
    chosen = [premises[index] for index in kept]
    _confirm(claim, chosen)
    return chosen


def _confirm(claim: Claim, chosen: Sequence[z3.BoolRef]) -> None:
    """Have the solver track the core in a fresh run: it must need all of it."""
    solver = z3.Solver()
    solver.set("rlimit", _STEPS)
    solver.add(z3.Not(claim.then))
    for index, premise in enumerate(chosen):
        solver.assert_and_track(premise, f"premise {index}")
    if solver.check() != z3.unsat or len(solver.unsat_core()) != len(chosen):
        raise CoreError(f"{claim.says}: the core is not one, or not minimal")
