"""`tpinit mutate`: every theorem and test, tried on contracts and sources that are wrong in one place."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["run"]


def run(argv: Sequence[str]) -> int:
    """Judge the mutants that the arguments ask for and return 0 when none survives that may not, else 1."""
    from tpinit.proofs.mutation.main import mutate

    return mutate(list(argv))
