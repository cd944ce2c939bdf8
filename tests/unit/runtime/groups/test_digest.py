"""A digest depends on the words of a tensor, their order, the shape and the dtype, and not on the memory layout."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tpinit.runtime.groups import digest as digest_module
from tpinit.runtime.groups.digest import digest, fold
from tpinit.runtime.training.replica_check import _norm

from support.live_bytes import LiveBytes


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


def test_the_order_counts() -> None:
    assert digest(torch.tensor([1.0, 2.0, 3.0, 4.0])) != digest(torch.tensor([3.0, 4.0, 1.0, 2.0]))


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


def edits() -> st.SearchStrategy[tuple[tuple[int, ...], bytes]]:
    """Return shapes of matrices and the bytes from which they are filled."""
    return st.tuples(st.tuples(st.integers(2, 9), st.integers(2, 700)), st.binary(min_size=8, max_size=64))


def matrix_of(shape: tuple[int, ...], seed: bytes, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(int.from_bytes(seed[:8], "little") >> 1)
    return torch.randint(-100, 100, shape, generator=generator).to(dtype)


@given(edits(), st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.int8]), st.data())
def test_every_edit_is_seen(drawn: tuple[tuple[int, ...], bytes], dtype: torch.dtype, data: st.DataObject) -> None:
    """Swapped rows and columns, edits that cancel, negated rows, blocks and pairs, and any bit."""
    tensor = matrix_of(*drawn, dtype)
    rows, columns = (
        sorted(data.draw(st.lists(st.integers(0, n - 1), min_size=2, max_size=2, unique=True))) for n in drawn[0]
    )
    edited = {name: tensor.clone() for name in ("rows", "columns", "cancelling", "rectangle", "negated", "bit")}
    edited["rows"][rows] = tensor[rows[::-1]]
    edited["columns"][:, columns] = tensor[:, columns[::-1]]
    edited["cancelling"][rows[0], columns[0]] += 1
    edited["cancelling"][rows[1], columns[1]] -= 1
    for row, sign in zip(rows, (1, -1), strict=True):
        edited["rectangle"][row, columns[0]] += sign
        edited["rectangle"][row, columns[1]] -= sign
    edited["negated"][rows] = -tensor[rows]
    raw = edited["bit"].view(-1).view(torch.uint8)
    raw[data.draw(st.integers(0, raw.numel() - 1))] ^= 1 << data.draw(st.integers(0, 7))
    for name, other in edited.items():
        if not torch.equal(other.view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8)):
            assert digest(other) != digest(tensor), name


def test_rows_that_differ_in_signs_only_are_told_apart_when_they_swap() -> None:
    """The control: with one factor for a word, and none for its upper half, an even number of signs cancels."""
    tensor = torch.ones(2, 256, dtype=torch.float64)
    tensor[1] = -1
    swapped = tensor.flip(0)
    assert digest(swapped) != digest(tensor)
    words = tensor.view(torch.int64)
    plain = words @ digest_module._column_factors(torch.device("cpu"))[0]
    assert plain[0] == plain[1]


def test_a_device_computes_the_same_digest_with_other_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [torch.randn(size) for size in (1, 500, 70_000)]
    expected = [int(fold(tensor)) for tensor in tensors]
    monkeypatch.setattr(digest_module, "_CPU_ROWS", 3)  # parts of another size
    assert [int(fold(tensor)) for tensor in tensors] == expected
    words = torch.randint(-(2**62), 2**62, (5, 256))
    for_words, for_upper = digest_module._column_factors(torch.device("cpu"))
    elementwise = ((words >> 32) * for_upper).addcmul_(words, for_words).sum(1)
    assert torch.equal(words @ for_words + (words >> 32) @ for_upper, elementwise)


def test_the_factors_of_no_two_columns_cancel() -> None:
    """Two equal or opposite changes of 32-bit halves must not cancel: the factors differ, also negated, modulo 2^33."""
    for_words, for_upper = (table.tolist() for table in digest_module._column_factors(torch.device("cpu")))
    upper = [(word << 32) + half for word, half in zip(for_words, for_upper, strict=True)]
    factors = [factor % (1 << 33) for factor in (*for_words, *upper)]
    assert all(factor % 2 for factor in factors)
    assert len({*factors, *(-factor % (1 << 33) for factor in factors)}) == 2 * len(factors)


@pytest.mark.parametrize("layout", ["contiguous", "at an odd place", "transposed", "strided"])
def test_a_digest_takes_a_few_megabytes_whatever_the_size_and_the_layout(layout: str) -> None:
    whole = torch.zeros(4 * 1024 * 1024 + 3, dtype=torch.int16)
    tensor = {
        "contiguous": whole[:-3].view(2048, 2048),
        "at an odd place": whole[3:].view(2048, 2048),
        "transposed": whole[:-3].view(2048, 2048).t(),
        "strided": whole[:-3].view(1024, 2, 2048)[:, 1],
    }[layout]
    digest(tensor)  # makes the factors, once
    with LiveBytes() as used:
        found = digest(tensor)
    assert used.peak < 3.5 * 1024 * 1024
    assert found == digest(tensor.clone(memory_format=torch.contiguous_format))
    with LiveBytes() as copied:  # the negative control: what copies the tensor
        tensor.clone()
    assert copied.peak >= 2 * tensor.numel() >= 4 * 1024 * 1024


@pytest.mark.parametrize("shape", [(7, 13, 5), (1, 1000, 3), (600, 2), (3, 2048)])
def test_parts_of_a_tensor_that_is_not_contiguous_have_the_digest_of_its_copy(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest_module, "_CPU_ROWS", 1)
    tensor = torch.randn(*shape[::-1]).permute(*reversed(range(len(shape))))
    assert not tensor.is_contiguous()
    assert digest(tensor) == digest(tensor.contiguous())
    assert digest(changed(tensor.contiguous(), 4)) != digest(tensor)


def test_a_norm_in_float64_copies_nothing() -> None:
    tensor = torch.randn(1 << 20).bfloat16()
    with LiveBytes() as used:
        norm = _norm(tensor)
    assert used.peak < 1 << 16
    assert norm == pytest.approx(float(tensor.double().norm()), rel=1e-12)
