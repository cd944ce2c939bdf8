"""Drawing without making a strategy anew each time, which costs more than the drawing itself."""

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
    """Return one of these; shrinks towards the first."""
    return options[draw(_up_to(len(options) - 1))]


def maybe(draw: DrawFn, options: Sequence[T]) -> T | None:
    """Return None or one of these; shrinks towards None."""
    return pick(draw, options) if draw(BOOLS) else None


def shuffled(draw: DrawFn, items: Sequence[T]) -> list[T]:
    """Return the items in any order; shrinks towards the order given."""
    left = list(items)
    return [left.pop(draw(_up_to(len(left) - 1))) for _ in items]
