"""`tpinit prove`: proves every theorem of the contract on this machine."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["run"]


def run(argv: Sequence[str]) -> int:
    """Prove the theorems that the arguments select; return 0 if all of them are proven, else 1."""
    from tpinit.proofs.main import prove

    return prove(list(argv))
