"""Enumerate the satisfiable classes of a family: all valuations of its atoms that some input has."""

from __future__ import annotations

import z3
from tpinit.proofs.claims import right_model
from tpinit.proofs.vectors.families import VectorFamily, formula, valuation
from tpinit.spec.model import Model

__all__ = ["UndecidedClasses", "classes", "coverage"]

# Z3's resource limit counts steps instead of seconds, so the machine's load has no effect.
_STEPS = 100_000_000


class UndecidedClasses(RuntimeError):
    """The solver could not decide whether there is another class."""


def classes(family: VectorFamily, model: Model | None = None) -> tuple[str, ...]:
    """Return the signatures of a family's classes in order. A signature has one digit per atom, 1 where it holds.

    Each class that is found is excluded until no input is left, so the result covers all inputs.
    Raises UndecidedClasses where the solver gives up.
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
        raise UndecidedClasses(f"family {family.name}: {solver.reason_unknown()} after {len(found)} classes")
    return tuple(sorted(found))


def coverage(family: VectorFamily, model: Model, signatures: tuple[str, ...]) -> z3.BoolRef:
    """Return the term that is true where an input belongs to one of the classes."""
    atoms = valuation(family, model)
    return z3.Or(*(formula(atoms, signature) for signature in signatures))
