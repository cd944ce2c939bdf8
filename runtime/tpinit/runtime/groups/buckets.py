"""Buckets: many small tensors are sent in one collective, which is then bandwidth-bound, and small beside a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

__all__ = ["in_buckets"]

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
