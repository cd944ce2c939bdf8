"""Where the part of a rank belongs in a whole tensor: boxes, each written by one rank, and their intersections."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tpinit.runtime.slicing import Pieces

__all__ = ["Box", "PlacedTensor", "RankPlace", "Write", "chosen_writes", "local_boxes", "overlap", "uncovered"]

Sizes = tuple[int, ...]
Writer = tuple[int, int]


@dataclass(frozen=True, slots=True)
class RankPlace:
    """Which part of a run this rank is: position `tp_rank` of `tp_size`, in replica `replica` of `replicas`."""

    tp_size: int
    tp_rank: int
    replicas: int
    replica: int


@dataclass(frozen=True, slots=True)
class PlacedTensor:
    """The part of a tensor that this rank holds, and its place in the whole one.

    `shape` is the whole tensor's. `pieces[r]` are the (offset, length) along `dim` that TP rank r holds, one behind the
    other in its part; for `dim` None every rank holds the whole tensor. `single`: no other rank has this tensor.
    """

    name: str
    tensor: torch.Tensor
    shape: Sizes
    dim: int | None = None
    pieces: tuple[Pieces, ...] = ()
    single: bool = False


@dataclass(frozen=True, slots=True)
class Box:
    """A box of a tensor: its first index and its size in each dimension."""

    offsets: Sizes
    sizes: Sizes

    @property
    def count(self) -> int:
        """The number of elements."""
        return math.prod(self.sizes)


@dataclass(frozen=True, slots=True)
class Write:
    """A box of a whole tensor that this rank writes, and a view of its values."""

    name: str
    shape: Sizes
    box: Box
    values: torch.Tensor


def local_boxes(shape: Sizes, dim: int | None, pieces: Pieces) -> Iterator[tuple[Box, int]]:
    """Yield the box of each piece of a rank that is not empty, and the index along `dim` where its part holds it."""
    if dim is None:
        yield Box((0,) * len(shape), shape), 0
        return
    start = 0
    for offset, length in pieces:
        if length:
            yield _box(shape, dim, offset, length), start
        start += length


def _box(shape: Sizes, dim: int, offset: int, length: int) -> Box:
    offsets = tuple(offset if axis == dim else 0 for axis in range(len(shape)))
    return Box(offsets, tuple(length if axis == dim else size for axis, size in enumerate(shape)))


def overlap(first: Box, second: Box) -> Box | None:
    """Return the box that two boxes of a tensor have in common; None if it is empty."""
    begins = tuple(map(max, first.offsets, second.offsets))
    ends = tuple(
        min(a + a_size, b + b_size)
        for a, a_size, b, b_size in zip(first.offsets, first.sizes, second.offsets, second.sizes, strict=True)
    )
    sizes = tuple(end - begin for begin, end in zip(begins, ends, strict=True))
    return Box(begins, sizes) if all(size > 0 for size in sizes) else None


def uncovered(offset: int, length: int, taken: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the (offset, length) parts of one piece that no piece of `taken` covers, in order."""
    found, begin, end = [], offset, offset + length
    for other, size in sorted(taken):
        if other >= end:
            break
        if other > begin:
            found.append((begin, other - begin))
        begin = max(begin, other + size)
    if begin < end:
        found.append((begin, end - begin))
    return found


def chosen_writes(tensors: Sequence[PlacedTensor], place: RankPlace) -> list[Write]:
    """Return what this rank writes, so that all ranks together write each element of each tensor once.

    Ranks that hold the same elements (replicas, replicated tensors, shared key/value heads) get about equally many
    bytes. Every rank computes all choices from the same list, so no message is needed.
    """
    loads: dict[Writer, int] = {}
    me = (place.replica, place.tp_rank)
    found = []
    for placed in tensors:
        if placed.single:
            box = Box((0,) * len(placed.shape), placed.shape)
            found.append(Write(placed.name, placed.shape, box, placed.tensor))
            continue
        size = placed.tensor.element_size()
        for box, tp_rank, start in _owned_boxes(placed, place.tp_size):
            positions = range(place.tp_size) if placed.dim is None else (tp_rank,)
            candidates = [(replica, position) for position in positions for replica in range(place.replicas)]
            writer = min(candidates, key=lambda one: loads.get(one, 0))
            loads[writer] = loads.get(writer, 0) + box.count * size
            if writer == me:
                values = placed.tensor
                if placed.dim is not None:
                    values = values.narrow(placed.dim, start, box.sizes[placed.dim])
                found.append(Write(placed.name, placed.shape, box, values))
    return found


def _owned_boxes(placed: PlacedTensor, tp_size: int) -> Iterator[tuple[Box, int, int]]:
    """Yield disjoint boxes that fill the tensor, the TP rank that writes each, and where its part holds it."""
    if placed.dim is None:
        for box, start in local_boxes(placed.shape, None, ()):
            yield box, 0, start
        return
    taken: list[tuple[int, int]] = []
    for tp_rank in range(tp_size):
        start = 0
        for offset, length in placed.pieces[tp_rank]:
            for own, size in uncovered(offset, length, taken):
                yield _box(placed.shape, placed.dim, own, size), tp_rank, start + own - offset
            start += length
        taken += placed.pieces[tp_rank]
