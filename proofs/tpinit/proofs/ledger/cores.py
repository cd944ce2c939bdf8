"""The premises that a claim needs: an unsatisfiable core, minimal and deterministic.

The premises are dropped one by one, in order; a premise stays dropped where the claim holds without it. The
rest is a core of which no premise can be dropped. Every step is a decision, so the core does not depend on
the solver, its version or its seed, unlike the core that a solver returns.
"""

from __future__ import annotations

from collections.abc import Sequence

import z3
from tpinit.proofs.claims import Claim
from tpinit.proofs.ledger.naming import conjuncts, name_of

__all__ = ["CoreError", "core", "needs"]

# Z3's resource limit counts steps instead of seconds, so that the result does not depend on the machine's load.
_STEPS = 50_000_000


class CoreError(Exception):
    """A claim has no core: it does not hold, is undecided, or only claims that something is possible."""


def needs(claim: Claim) -> list[str]:
    """Return the names of the premises that a claim needs. An empty list means that it holds by definition.

    Raises CoreError for a claim that does not hold, and for a claim that something is possible.
    """
    if claim.possible:
        raise CoreError(f"{claim.label}: a claim that something is possible has a witness, not a core")
    return [name_of(premise) for premise in core(claim)]


def core(claim: Claim) -> list[z3.BoolRef]:
    """Return a minimal set of premises from which the claim follows. Raises CoreError as `needs` does."""
    premises = conjuncts(claim.premises)
    solver = z3.Solver()
    solver.set("rlimit", _STEPS)
    solver.add(z3.Not(claim.conclusion))
    marks = [z3.FreshBool("premise") for _ in premises]
    for mark, premise in zip(marks, premises, strict=True):
        solver.add(z3.Implies(mark, premise))
    kept = list(range(len(premises)))
    if solver.check([marks[index] for index in kept]) != z3.unsat:
        raise CoreError(f"{claim.label}: does not follow from its premises")
    for index in range(len(premises)):
        without = [other for other in kept if other != index]
        if solver.check([marks[other] for other in without]) == z3.unsat:
            kept = without
    chosen = [premises[index] for index in kept]
    _confirm(claim, chosen)
    return chosen


def _confirm(claim: Claim, chosen: Sequence[z3.BoolRef]) -> None:
    """Check in a new solver that the claim follows from the core and needs all of it. Raises CoreError otherwise."""
    solver = z3.Solver()
    solver.set("rlimit", _STEPS)
    solver.add(z3.Not(claim.conclusion))
    for index, premise in enumerate(chosen):
        solver.assert_and_track(premise, f"premise {index}")
    if solver.check() != z3.unsat or len(solver.unsat_core()) != len(chosen):
        raise CoreError(f"{claim.label}: the core is wrong or not minimal")
