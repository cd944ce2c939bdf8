"""Slices of tensors: what a rank takes, and that writing all parts back restores the tensor, for every small cut."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from tpinit.runtime.shards import pieces
from tpinit.runtime.slicing import Pieces, assemble, local_part, take_pieces, write_part, write_pieces


@dataclass
class Sharded:
    shape: tuple[int, ...]
    dim: int | None
    fused: tuple[int, ...]
    unit: int = 1

    def pieces_of(self, tp_size: int, tp_rank: int) -> Pieces:
        return pieces(self.fused, self.unit, tp_size, tp_rank)


RECORDS = [
    Sharded((7, 3), 0, (7,)),
    Sharded((3, 7), 1, (7,)),
    Sharded((10, 2), 0, (6, 4), 2),
    Sharded((2, 3, 12), 2, (4, 4, 4), 2),
]


def full(record: Sharded) -> torch.Tensor:
    return torch.arange(torch.Size(record.shape).numel(), dtype=torch.float32).reshape(record.shape)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: f"{record.shape} by {record.dim}")
@pytest.mark.parametrize("tp_size", [1, 2, 3, 5])
def test_the_parts_of_all_ranks_hold_every_element_once_and_go_back(record: Sharded, tp_size: int) -> None:
    tensor = full(record)
    parts = [local_part(tensor, record, tp_size, rank) for rank in range(tp_size)]
    assert sorted(value for part in parts for value in part.flatten().tolist()) == tensor.flatten().tolist()
    assert torch.equal(assemble(parts, record), tensor)
    for rank, part in enumerate(parts):
        alone = torch.full_like(tensor, -1)
        write_part(alone, part, record, tp_size, rank)
        held = alone >= 0
        assert torch.equal(alone[held], tensor[held])
        assert int(held.sum()) == part.numel()


def test_pieces_are_taken_in_their_order() -> None:
    tensor = torch.arange(12).reshape(2, 6)
    assert take_pieces(tensor, 1, [(4, 2), (0, 1)]).tolist() == [[4, 5, 0], [10, 11, 6]]
    back = torch.zeros_like(tensor)
    write_pieces(back, torch.tensor([[1, 2, 3], [4, 5, 6]]), 1, [(4, 2), (0, 1)])
    assert back.tolist() == [[3, 0, 0, 0, 1, 2], [6, 0, 0, 0, 4, 5]]


def test_one_piece_is_a_view_and_several_are_a_copy() -> None:
    tensor = torch.zeros(6)
    take_pieces(tensor, 0, [(1, 2)]).fill_(1)
    take_pieces(tensor, 0, [(3, 1), (5, 1)]).fill_(2)
    assert tensor.tolist() == [0, 1, 1, 0, 0, 0]


def test_a_replicated_tensor_is_whole_on_every_rank() -> None:
    record, tensor = Sharded((4,), None, ()), torch.ones(4)
    assert local_part(tensor, record, 3, 2) is tensor
    whole = assemble([tensor, torch.zeros(4)], record)
    assert torch.equal(whole, tensor)
    whole.fill_(5)
    assert tensor.tolist() == [1] * 4
    with pytest.raises(AssertionError):
        write_part(torch.zeros(4), tensor, record, 3, 2)
