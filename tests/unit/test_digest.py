"""Digests tell tensors apart by every byte, the order, the shape and the dtype, and not by layout."""

import pytest
import torch
from tpinit.runtime.digest import _on_device, digest


def changed(tensor: torch.Tensor, place: int) -> torch.Tensor:
    other = tensor.clone()
    other.view(-1)[place] += 1
    return other


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.int8])
@pytest.mark.parametrize("size", [1, 3, 8, 1001])
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
