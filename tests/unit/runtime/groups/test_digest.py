"""A digest depends on the words of a tensor, their order, the shape and the dtype, and not on the memory layout."""

import pytest
import torch
from tpinit.runtime.groups.digest import _device_digest, digest


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
        assert _device_digest(changed(tensor, place)) != _device_digest(tensor)


@pytest.mark.parametrize("how", [digest, _device_digest])
def test_the_order_counts(how: object) -> None:
    assert how(torch.tensor([1.0, 2.0, 3.0, 4.0])) != how(torch.tensor([3.0, 4.0, 1.0, 2.0]))


def test_shape_and_dtype_count_and_layout_does_not() -> None:
    tensor = torch.randn(4, 6)
    assert digest(tensor) != digest(tensor.view(6, 4))
    assert digest(torch.zeros(4)) != digest(torch.zeros(4, dtype=torch.int32))
    assert digest(tensor.t().contiguous()) == digest(tensor.t())
    assert digest(torch.zeros(0, 3)) == digest(torch.zeros(0, 3))


def test_what_moves_by_whole_rows_or_columns_is_told_apart() -> None:
    # One total would not change: 512 fp32 values are a row of the table, whose sums count row by row.
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


def test_the_cpu_digest_misses_only_differences_that_cancel_in_every_row_and_column() -> None:
    table = torch.zeros(4, 256, dtype=torch.int64)
    one, two, three, four = (table.clone() for _ in range(4))
    one[1, 2] = 1
    two[1, 2], two[1, 7] = 1, -1
    three[1, 2], three[1, 7], three[3, 2] = 1, -1, -1
    four[1, 2], four[1, 7], four[3, 2], four[3, 7] = 1, -1, -1, 1
    assert digest(table) not in {digest(changed_table) for changed_table in (one, two, three)}
    assert digest(table) == digest(four)


def test_the_device_digest_sees_a_word_whose_mixed_value_is_inverted() -> None:
    """A shift that repeats the sign bit gives a number and its complement one code, so such a pair collided."""
    modulus, factor, position = 1 << 64, 0x369DEA0F31A53F85, 0x2545F4914F6CDD1D
    mixed = (12345 ^ position) * factor % modulus
    partner = ((mixed ^ (modulus - 1)) * pow(factor, -1, modulus) % modulus) ^ position
    words = [torch.tensor([word - modulus if word >= 1 << 63 else word]) for word in (12345, partner)]
    assert _device_digest(words[0]) != _device_digest(words[1])
