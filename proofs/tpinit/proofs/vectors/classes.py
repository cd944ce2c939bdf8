"""Every satisfiable class of a family: all valuations of its atoms that some input has, by the solver."""

from __future__ import annotations

import z3
from tpinit.proofs.claims import right_model
from tpinit.proofs.vectors.families import Family, formula, valuation
from tpinit.spec.model import Model

__all__ = ["Undecided", "classes", "coverage"]

# A count of the solver's steps and not of seconds, so that a busy machine changes nothing.
_STEPS = 100_000_000


class Undecided(RuntimeError):
    """The solver could not say whether there is another class."""


def classes(family: Family, model: Model | None = None) -> tuple[str, ...]:
    """Enumerate the signatures of a family's classes, in order: each atom of the family, 1 where it holds.

    Each class that is found is blocked, until no input is left; so what is returned covers all inputs.
    Raises Undecided where the solver gives up.
    """
    model = model or right_model()
    atoms = valuation(family, model)
    solver = z3.Solver()
    solver.set("rlimit", _STEPS)
    solver.add(model.well_typed, family.within(model))
    found: list[str] = []
    while (answer := solver.check()) == z3.sat:
        state = solver.model()
        holds = [z3.is_true(state.eval(atom, model_completion=True)) for atom in atoms]
        found.append("".join("01"[it_holds] for it_holds in holds))
        solver.add(z3.Not(formula(atoms, found[-1])))
    if answer != z3.unsat:
        raise Undecided(f"family {family.name}: {solver.reason_unknown()} after {len(found)} classes")
    return tuple(sorted(found))


def coverage(family: Family, model: Model, signatures: tuple[str, ...]) -> z3.BoolRef:
    """Say that an input is of one of the classes."""
    atoms = valuation(family, model)
    return z3.Or(*(formula(atoms, signature) for signature in signatures))
