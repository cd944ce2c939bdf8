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
    """What slicing reads of a plan's record: the whole shape, the dimension that is cut, and each rank's pieces."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole tensor."""

    @property
    def dim(self) -> int | None:
        """The dimension that is cut; None for a replicated tensor."""

    def pieces_of(self, tp_size: int, tp_rank: int) -> Pieces:
        """Return the (offset, length) along `dim` of each piece that a rank holds, in order."""


def take_pieces(whole: torch.Tensor, dim: int, pieces: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Return the (offset, length) pieces of one dimension, concatenated in order; a view if there is one piece."""
    found = [whole.narrow(dim, offset, length) for offset, length in pieces]
    return found[0] if len(found) == 1 else torch.cat(found, dim=dim)


def write_pieces(whole: torch.Tensor, part: torch.Tensor, dim: int, pieces: Sequence[tuple[int, int]]) -> None:
    """Copy `part`, the concatenated pieces of one dimension, to `whole`: the inverse of `take_pieces`."""
    begin = 0
    for offset, length in pieces:
        whole.narrow(dim, offset, length).copy_(part.narrow(dim, begin, length))
        begin += length


def local_part(whole: torch.Tensor, record: ShardedTensor, tp_size: int, tp_rank: int) -> torch.Tensor:
    """Return the part of a whole tensor that `tp_rank` holds: the tensor itself if the record cuts nothing."""
    if record.dim is None:
        return whole
    return take_pieces(whole, record.dim, record.pieces_of(tp_size, tp_rank))


def write_part(whole: torch.Tensor, part: torch.Tensor, record: ShardedTensor, tp_size: int, tp_rank: int) -> None:
    """Copy the part that `tp_rank` holds of a cut tensor to its place in the whole tensor."""
    assert record.dim is not None
    write_pieces(whole, part, record.dim, record.pieces_of(tp_size, tp_rank))


def assemble(parts: Sequence[torch.Tensor], record: ShardedTensor) -> torch.Tensor:
    """Return the whole tensor from the parts of all ranks of a TP group, in rank order: the inverse of `local_part`."""
    if record.dim is None:
        return parts[0].clone()
    whole = parts[0].new_empty(record.shape)
    for tp_rank, part in enumerate(parts):
        write_part(whole, part, record, len(parts), tp_rank)
    return whole
