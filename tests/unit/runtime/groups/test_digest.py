"""Digests tell tensors apart by every byte, the order, the shape and the dtype, and not by layout."""

import pytest
import torch
from tpinit.runtime.groups.digest import _on_device, digest


def changed(tensor: torch.Tensor, place: int) -> torch.Tensor:
    other = tensor.clone()
    other.view(-1)[place] += 1
    return other


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.int8])
@pytest.mark.parametrize("size", [1, 3, 8, 1001, 5000])
def test_one_number_more_is_another_digest(dtype: torch.dtype, size: int) -> None:
    tensor = (torch.arange(size) % 100).to(dtype)
    assert digest(tensor) == digest(tensor.clone())
    for place in {0, size // 2, size - 1}:
        assert digest(changed(tensor, place)) != digest(tensor)
        assert _on_device(changed(tensor, place)) != _on_device(tensor)


@pytest.mark.parametrize("how", [digest, _on_device])
def test_the_order_counts(how: object) -> None:
    assert how(torch.tensor([1.0, 2.0, 3.0, 4.0])) != how(torch.tensor([3.0, 4.0, 1.0, 2.0]))


def test_shape_and_dtype_count_and_layout_does_not() -> None:
    tensor = torch.randn(4, 6)
    assert digest(tensor) != digest(tensor.view(6, 4))
    assert digest(torch.zeros(4)) != digest(torch.zeros(4, dtype=torch.int32))
    assert digest(tensor.t().contiguous()) == digest(tensor.t())
    assert digest(torch.zeros(0, 3)) == digest(torch.zeros(0, 3))


def test_what_moves_by_whole_rows_or_columns_is_told_apart() -> None:
    # Sums alone would not see it: 512 numbers of fp32 are a row of the table.
    tensor = torch.randn(8, 512)
    rows, columns = tensor.clone(), tensor.clone()
    rows[[0, 3]] = tensor[[3, 0]]
    columns[:, [0, 1, 6, 7]] = tensor[:, [6, 7, 0, 1]]
    shifted = tensor.flatten().roll(2).view(8, 512)
    assert len({digest(one) for one in (tensor, rows, columns, shifted, -tensor, tensor.flip(0))}) == 6


def test_a_tensor_that_begins_at_an_odd_place_has_the_digest_of_its_copy() -> None:
    memory = torch.randn(3001)
    assert digest(memory[1:]) == digest(memory[1:].clone())
    assert digest(memory[1:3]) == digest(memory[1:3].clone())
