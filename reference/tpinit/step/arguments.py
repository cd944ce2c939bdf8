"""Arguments of operations in which claims stand for tensors."""

from __future__ import annotations

from typing import Any

from tpinit.step.graph import Arg, Ref
from tpinit.step.layouts import Lifted, Tensors

__all__ = ["claims_in", "terms_of", "with_claims"]


def with_claims(arg: Arg, claims: dict[int, Tensors]) -> Any:
    """Return an argument, or a tuple of them, with claims in the places of values."""
    if isinstance(arg, Ref):
        return claims[arg.value]
    return tuple(with_claims(one, claims) for one in arg) if isinstance(arg, tuple) else arg


def claims_in(args: Any) -> list[Tensors]:
    """Return the claims among arguments, in order."""
    found: list[Tensors] = []
    for arg in args:
        if isinstance(arg, tuple):
            found.extend(claims_in(arg))
        elif isinstance(arg, Tensors):
            found.append(arg)
    return found


def terms_of(arg: Any) -> Any:
    """Return an argument, or a tuple of them, with the terms of claims in their places."""
    if isinstance(arg, Lifted):
        return arg.term
    return tuple(terms_of(one) for one in arg) if isinstance(arg, tuple) else arg
