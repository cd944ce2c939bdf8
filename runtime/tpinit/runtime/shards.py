"""Which part of a dimension a shard holds: integer arithmetic, no torch (contract, section 6, item 9).

A dimension of `length` is cut into `parts` shards, in order, without gap or overlap. Where `parts` does not
divide `length`, the first `length % parts` shards are one longer.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["aligned_shard", "pieces", "shard", "shard_length", "shard_offset"]


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


def aligned_shard(length: int, unit: int, parts: int, index: int) -> tuple[int, int]:
    """Return (offset, length) of shard `index` of a dimension whose units stay whole (heads of head_dim).

    `unit` is at least 1 and divides `length`; with unit 1 this is `shard`.
    """
    offset, held = shard(length // unit, parts, index)
    return offset * unit, held * unit


def pieces(blocks: Sequence[int], unit: int, parts: int, index: int) -> tuple[tuple[int, int], ...]:
    """Return the (offset, length) of every piece that shard `index` holds of a fused dimension.

    `blocks` are the lengths of the fused blocks in order (q, k, v; gate, up; one block where nothing is
    fused). Each block is cut on its own, in whole units, so that a shard is its piece of the first block,
    then of the second, and so on. Writing all shards' pieces back to these offsets gives the whole.
    """
    found, start = [], 0
    for length in blocks:
        offset, held = aligned_shard(length, unit, parts, index)
        found.append((start + offset, held))
        start = start + length
    return tuple(found)
