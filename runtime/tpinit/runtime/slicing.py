"""Tensor slices: take the pieces that a rank holds of one dimension, and write them back.

`shards` computes the (offset, length) pairs; this module applies them to tensors. Planning, the parallel modules,
loading, gradients and checkpoints all slice through these functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

__all__ = ["Pieces", "ShardedTensor", "assemble", "local_part", "take_pieces", "write_part", "write_pieces"]

Pieces = tuple[tuple[int, int], ...]


class ShardedTensor(Protocol):
    """What slicing reads of a plan's record: the full shape, the sharded dimension, and the pieces of each rank."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the full tensor."""

    @property
    def dim(self) -> int | None:
        """The sharded dimension; None for a replicated tensor."""

    def pieces_of(self, tp_size: int, tp_rank: int) -> Pieces:
        """Return the (offset, length) along `dim` of each piece that a rank holds, in order."""


def take_pieces(full: torch.Tensor, dim: int, pieces: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Return the (offset, length) pieces of one dimension, concatenated in order: a view if there is one piece."""
    found = [full.narrow(dim, offset, length) for offset, length in pieces]
    return found[0] if len(found) == 1 else torch.cat(found, dim=dim)


def write_pieces(full: torch.Tensor, part: torch.Tensor, dim: int, pieces: Sequence[tuple[int, int]]) -> None:
    """Copy `part`, the concatenated pieces of one dimension, to its place in `full`: the inverse of `take_pieces`."""
    start = 0
    for offset, length in pieces:
        full.narrow(dim, offset, length).copy_(part.narrow(dim, start, length))
        start += length


def local_part(full: torch.Tensor, record: ShardedTensor, tp_size: int, tp_rank: int) -> torch.Tensor:
    """Return the part of a full tensor that `tp_rank` holds (a view or a copy); the tensor itself if replicated."""
    if record.dim is None:
        return full
    return take_pieces(full, record.dim, record.pieces_of(tp_size, tp_rank))


def write_part(full: torch.Tensor, part: torch.Tensor, record: ShardedTensor, tp_size: int, tp_rank: int) -> None:
    """Copy the part that `tp_rank` holds of a sharded tensor to its place in the full tensor."""
    assert record.dim is not None
    write_pieces(full, part, record.dim, record.pieces_of(tp_size, tp_rank))


def assemble(parts: Sequence[torch.Tensor], record: ShardedTensor) -> torch.Tensor:
    """Return the full tensor, given the parts of all ranks of a TP group in rank order: the inverse of `local_part`."""
    if record.dim is None:
        return parts[0].clone()
    full = parts[0].new_empty(record.shape)
    for tp_rank, part in enumerate(parts):
        write_part(full, part, record, len(parts), tp_rank)
    return full
