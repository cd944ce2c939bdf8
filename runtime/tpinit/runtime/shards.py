"""Which part of a dimension a shard holds: integer arithmetic, no torch (contract, section 6, item 9).

A dimension of `length` is cut into `parts` shards, in order, without gap or overlap. Where `parts` does not
divide `length`, the first `length % parts` shards are one longer.
"""

from __future__ import annotations

__all__ = ["shard", "shard_length", "shard_offset"]


def shard_offset(length: int, parts: int, index: int) -> int:
    """Return where shard `index` of `parts` begins; `index == parts` gives the end of the dimension."""
    longer = length % parts
    return index * (length // parts) + (index if index < longer else longer)


def shard_length(length: int, parts: int, index: int) -> int:
    """Return how long shard `index` of `parts` is."""
    return length // parts + (1 if index < length % parts else 0)


def shard(length: int, parts: int, index: int) -> tuple[int, int]:
    """Return (offset, length) of shard `index` of `parts`. `parts` is at least 1, 0 <= index < parts."""
    return shard_offset(length, parts, index), shard_length(length, parts, index)
