"""Pieces: which indices of one dimension of a whole tensor a rank holds, as (offset, length) runs in local order.

The local index i is the i-th index of the runs, read one after another. Runs may be of several fused matrices, out of
order, or shared by ranks; a dimension that a rank holds whole is the one run (0, size).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["Pieces", "covers_once", "joined", "length_of", "merged", "normal", "shifted", "taken"]

Pieces = tuple[tuple[int, int], ...]


def normal(runs: Iterable[tuple[int, int]]) -> Pieces:
    """Return runs without empty ones, neighbours that continue each other as one."""
    found: list[tuple[int, int]] = []
    for offset, length in runs:
        if not length:
            continue
        if found and sum(found[-1]) == offset:
            found[-1] = (found[-1][0], found[-1][1] + length)
        else:
            found.append((offset, length))
    return tuple(found)


def length_of(pieces: Pieces) -> int:
    """Return how many indices a rank holds."""
    return sum(length for _, length in pieces)


def shifted(pieces: Pieces, offset: int) -> Pieces:
    """Return the pieces with `offset` added to each index."""
    return tuple((start + offset, length) for start, length in pieces)


def taken(pieces: Pieces, start: int, length: int) -> Pieces:
    """Return the pieces of the local indices [start, start + length)."""
    found, position, end = [], 0, start + length
    for offset, run in pieces:
        low, high = max(start, position), min(end, position + run)
        if low < high:
            found.append((offset + low - position, high - low))
        position += run
    return normal(found)


def joined(parts: Iterable[Pieces]) -> Pieces:
    """Return the pieces of local parts that are concatenated."""
    return normal(run for pieces in parts for run in pieces)


def merged(parts: Sequence[tuple[int, Pieces]]) -> Pieces:
    """Return the pieces of one dimension that merges several, row-major.

    Each is (size of the whole dimension, pieces).
    """
    runs: Pieces = ((0, 1),)
    for size, pieces in parts:
        if pieces == ((0, size),):
            runs = tuple((offset * size, length * size) for offset, length in runs)
            continue
        runs = tuple(
            (index * size + offset, length)
            for start, count in runs
            for index in range(start, start + count)
            for offset, length in pieces
        )
    return normal(runs)


def covers_once(size: int, ranks: Sequence[Pieces]) -> bool:
    """Return whether every index in [0, size) is held exactly once, counted over all ranks."""
    position = 0
    for offset, length in sorted(run for pieces in ranks for run in pieces):
        if offset != position:
            return False
        position += length
    return position == size
