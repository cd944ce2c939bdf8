"""`tpinit prove`: every theorem of the contract, proven on this machine."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["run"]


def run(argv: Sequence[str]) -> int:
    """Prove what the arguments ask for and return 0 when all of it holds, else 1."""
    from tpinit.proofs.main import prove

    return prove(list(argv))
