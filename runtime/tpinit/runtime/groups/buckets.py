"""Buckets: many small tensors are sent in one collective, which is then bandwidth-bound, and small beside a model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

__all__ = ["fill_buckets", "in_buckets", "send_order"]

_BUCKET = 1 << 25  # elements

Item = TypeVar("Item")


def in_buckets(
    items: Iterable[Item], elements: Callable[[Item], int], dtype: Callable[[Item], object] = lambda _: None
) -> Iterator[list[Item]]:
    """Yield items in order, in lists of one dtype with at most 2^25 elements, or with one item that has more."""
    bucket: list[Item] = []
    count = 0
    for item in items:
        if bucket and (dtype(item) != dtype(bucket[0]) or count + elements(item) > _BUCKET):
            yield bucket
            bucket, count = [], 0
        bucket.append(item)
        count += elements(item)
    if bucket:
        yield bucket


def fill_buckets(
    items: Iterable[Item], elements: Callable[[Item], int], key: Callable[[Item], Hashable], limit: int
) -> list[list[Item]]:
    """Return every item once, in lists of one key with at most `limit` elements, or with one item that has more.

    A list for each key is filled at a time. The lists come in the order in which they are full, then those left over.
    """
    full: list[list[Item]] = []
    filling: dict[Hashable, list[Item]] = {}
    counts: dict[Hashable, int] = {}
    for item in items:
        kind = key(item)
        if kind in filling and counts[kind] + elements(item) > limit:
            full.append(filling.pop(kind))
            counts[kind] = 0
        filling.setdefault(kind, []).append(item)
        counts[kind] = counts.get(kind, 0) + elements(item)
    return [*full, *filling.values()]


def send_order(live: Iterable[int], last: Iterable[int]) -> list[int]:
    """Return parameters, by index in the plan, in the order in which a backward has their gradients; `last` last."""
    behind = set(last)
    first = sorted(live, reverse=True)
    return [index for index in first if index not in behind] + [index for index in first if index in behind]
