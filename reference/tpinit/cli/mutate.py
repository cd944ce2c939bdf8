"""`tpinit mutate`: runs the theorems and tests on contracts and sources that are wrong in one place."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["run"]


def run(argv: Sequence[str]) -> int:
    """Judge the mutants that the arguments select; return 0 if no unlisted mutant survives, else 1."""
    from tpinit.proofs.mutation.main import mutate

    return mutate(list(argv))
