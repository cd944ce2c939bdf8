"""Drawing helpers that reuse strategies: constructing a strategy costs more than drawing from it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TypeVar

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

__all__ = ["BOOLS", "maybe", "pick", "shuffled"]

T = TypeVar("T")

BOOLS = st.booleans()


@cache
def _up_to(last: int) -> SearchStrategy[int]:
    return st.integers(0, last)


def pick(draw: DrawFn, options: Sequence[T]) -> T:
    """Draw one of the options; shrinks towards the first."""
    return options[draw(_up_to(len(options) - 1))]


def maybe(draw: DrawFn, options: Sequence[T]) -> T | None:
    """Draw None or one of the options; shrinks towards None."""
    return pick(draw, options) if draw(BOOLS) else None


def shuffled(draw: DrawFn, items: Sequence[T]) -> list[T]:
    """Draw a permutation of the items; shrinks towards the given order."""
    left = list(items)
    return [left.pop(draw(_up_to(len(left) - 1))) for _ in items]
