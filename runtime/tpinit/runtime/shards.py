"""Which part of a dimension a shard holds: integer arithmetic, no torch (contract, section 6, item 9).

A dimension of `length` elements is cut into `parts` shards, in order, without gap or overlap. If `parts` does not
divide `length`, the first `length % parts` shards are one element longer.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["aligned_shard", "pieces", "shard", "shard_length", "shard_offset"]


def shard_offset(length: int, parts: int, index: int) -> int:
    """Return the offset of shard `index` of `parts`; for `index == parts`, the end of the dimension."""
    longer = length % parts
    return index * (length // parts) + (index if index < longer else longer)


def shard_length(length: int, parts: int, index: int) -> int:
    """Return the length of shard `index` of `parts`."""
    return length // parts + (1 if index < length % parts else 0)


def shard(length: int, parts: int, index: int) -> tuple[int, int]:
    """Return (offset, length) of shard `index` of `parts`. `parts` is at least 1, 0 <= index < parts."""
    return shard_offset(length, parts, index), shard_length(length, parts, index)


def aligned_shard(length: int, unit: int, parts: int, index: int) -> tuple[int, int]:
    """Return (offset, length) of shard `index` of a dimension whose units are not cut (heads of head_dim features).

    `unit` is at least 1; with unit 1 this is `shard`. If `unit` does not divide `length`, the last unit is shorter, so
    that the shards cover the dimension whatever the unit is.
    """
    offset, held = shard((length + unit - 1) // unit, parts, index)
    begin, end = _at_most(offset * unit, length), _at_most((offset + held) * unit, length)
    return begin, end - begin


def _at_most(position: int, length: int) -> int:
    return position if position < length else length


def pieces(blocks: Sequence[int], unit: int, parts: int, index: int) -> tuple[tuple[int, int], ...]:
    """Return the (offset, length) of every piece that shard `index` holds of a fused dimension.

    `blocks` are the lengths of the fused blocks in order (q, k, v; gate, up), or the one length of a dimension that is
    not fused. Each block is cut separately, between units; a shard is its piece of the first block, then its piece of
    the second, and so on. Writing the pieces of all shards back to these offsets gives the full dimension.
    """
    found: list[tuple[int, int]] = []
    start = 0
    for length in blocks:
        offset, held = aligned_shard(length, unit, parts, index)
        found.append((start + offset, held))
        start = start + length
    return tuple(found)
