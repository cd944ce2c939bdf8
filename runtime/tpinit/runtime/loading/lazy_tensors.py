"""Tensors that are read slice by slice: stored tensors, and what transformers' conversions make of them.

A lazy tensor has a shape, a dtype and no data. Torch's functions that join, split and reshape tensors return lazy
tensors for lazy tensors, so that code written for tensors (transformers' conversions of checkpoints) runs on them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

__all__ = ["LazyTensor", "Slices", "StoredTensor", "full_slices"]

Slices = tuple[tuple[int, int], ...]
"""The (offset, length) of a slice along each dimension of a tensor."""

ReadInto = Callable[[torch.Tensor, int], None]

_CHUNK_BYTES = 1 << 20  # of a read that needs a copy: large enough for a disk, small beside a parameter


class LazyTensor(ABC):
    """A tensor whose data is elsewhere. `shape` and `dtype` are known; `read_into` reads a slice of the data."""

    shape: torch.Size
    dtype: torch.dtype

    @abstractmethod
    def read_into(self, out: torch.Tensor, slices: Slices) -> None:
        """Write the elements in `slices` to `out`, which has the lengths of `slices` as its shape, in out's dtype."""

    # The methods that conversions call on tensors.

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    def dim(self) -> int:
        """Return the number of dimensions."""
        return len(self.shape)

    def size(self, dim: int) -> int:
        """Return the length of one dimension."""
        return self.shape[dim]

    def contiguous(self) -> LazyTensor:
        """Return the lazy tensor itself: it has no memory layout."""
        return self

    def transpose(self, dim0: int, dim1: int) -> LazyTensor:
        """Return the lazy tensor with two dimensions exchanged."""
        return _Transposed(self, dim0 % self.ndim, dim1 % self.ndim)

    def reshape(self, *shape: Any) -> LazyTensor:
        """Return a lazy tensor of the same elements in another shape."""
        requested = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        return _Reshaped(self, torch.empty(self.shape, device="meta").reshape(tuple(requested)).shape)

    view = reshape

    def squeeze(self, dim: int) -> LazyTensor:
        """Return the lazy tensor without a dimension of length 1."""
        return self.reshape(tuple(length for place, length in enumerate(self.shape) if place != dim % self.ndim))

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the functions of torch that join, split or reshape tensors on lazy tensors."""
        del types
        lazy_function = _FUNCTIONS.get(function.__name__)
        return NotImplemented if lazy_function is None else lazy_function(*args, **(kwargs or {}))


class StoredTensor(LazyTensor):
    """A dense tensor in a file. `file_name` is for messages.

    `read(out, offset)` fills a dense CPU tensor with the bytes of the file from `offset` on; the tensor begins at
    `begin`.
    """

    def __init__(self, file_name: str, shape: Sequence[int], dtype: torch.dtype, begin: int, read: ReadInto) -> None:
        self.file_name = file_name
        self.shape = torch.Size(shape)
        self.dtype = dtype
        self._begin = begin
        self._read = read

    def read_into(self, out: torch.Tensor, slices: Slices) -> None:
        """Write the elements in `slices` to `out`.

        Whole rows of the same dtype are read straight into `out`; anything else a megabyte at a time, by way of a copy.
        """
        if not out.numel():
            return
        if not slices:
            self._copy_rows(torch.empty((), dtype=self.dtype), out, 0, ())
            return
        (begin, length), rest = slices[0], slices[1:]
        row_shape = self.shape[1:]
        is_dense = out.dtype is self.dtype and out.device.type == "cpu" and out.is_contiguous()
        if is_dense and rest == full_slices(row_shape):
            self._read(out, self._begin + begin * out.itemsize * math.prod(row_shape))
            return
        rows = min(length, max(1, _CHUNK_BYTES // (self.dtype.itemsize * math.prod(row_shape))))
        chunk = torch.empty((rows, *row_shape), dtype=self.dtype)
        for first in range(0, length, rows):
            count = min(rows, length - first)
            self._copy_rows(chunk[:count], out.narrow(0, first, count), begin + first, rest)

    def _copy_rows(self, chunk: torch.Tensor, out: torch.Tensor, row: int, rest: Slices) -> None:
        """Read whole rows, from `row` on, into `chunk`, and copy the slices `rest` of each row to `out`."""
        self._read(chunk, self._begin + row * chunk.itemsize * math.prod(self.shape[1:]))
        for dim, (offset, length) in enumerate(rest, 1):
            chunk = chunk.narrow(dim, offset, length)
        out.copy_(chunk)


class _Stacked(LazyTensor):
    def __init__(self, parts: Sequence[LazyTensor], dim: int) -> None:
        _check_equal([part.shape for part in parts])
        self._parts, self.dtype = parts, _common_dtype(parts)
        self._dim = dim % (parts[0].ndim + 1)
        self.shape = torch.Size((*parts[0].shape[: self._dim], len(parts), *parts[0].shape[self._dim :]))

    def read_into(self, out: torch.Tensor, slices: Slices) -> None:
        begin, length = slices[self._dim]
        rest = (*slices[: self._dim], *slices[self._dim + 1 :])
        for index in range(length):
            self._parts[begin + index].read_into(out.select(self._dim, index), rest)


class _Concatenated(LazyTensor):
    def __init__(self, parts: Sequence[LazyTensor], dim: int) -> None:
        self._parts, self.dtype = parts, _common_dtype(parts)
        self._dim = dim % parts[0].ndim
        _check_equal([(*part.shape[: self._dim], *part.shape[self._dim + 1 :]) for part in parts])
        length = sum(part.shape[self._dim] for part in parts)
        self.shape = torch.Size((*parts[0].shape[: self._dim], length, *parts[0].shape[self._dim + 1 :]))

    def read_into(self, out: torch.Tensor, slices: Slices) -> None:
        begin, length = slices[self._dim]
        start = 0
        for part in self._parts:
            stop = start + part.shape[self._dim]
            first, last = max(begin, start), min(begin + length, stop)
            if first < last:
                of_part = (*slices[: self._dim], (first - start, last - first), *slices[self._dim + 1 :])
                part.read_into(out.narrow(self._dim, first - begin, last - first), of_part)
            start = stop


class _Transposed(LazyTensor):
    def __init__(self, base: LazyTensor, dim0: int, dim1: int) -> None:
        self._base, self._dims, self.dtype = base, (dim0, dim1), base.dtype
        self.shape = torch.Size(_exchanged(base.shape, dim0, dim1))

    def read_into(self, out: torch.Tensor, slices: Slices) -> None:
        self._base.read_into(out.transpose(*self._dims), tuple(_exchanged(slices, *self._dims)))


class _Narrowed(LazyTensor):
    def __init__(self, base: LazyTensor, dim: int, begin: int, length: int) -> None:
        self._base, self._dim, self._begin, self.dtype = base, dim, begin, base.dtype
        self.shape = torch.Size((*base.shape[:dim], length, *base.shape[dim + 1 :]))

    def read_into(self, out: torch.Tensor, slices: Slices) -> None:
        offset, length = slices[self._dim]
        of_base = (*slices[: self._dim], (self._begin + offset, length), *slices[self._dim + 1 :])
        self._base.read_into(out, of_base)


class _Reshaped(LazyTensor):
    """A slice in the new shape need not be a slice in the old one, so the whole tensor is read and then sliced."""

    def __init__(self, base: LazyTensor, shape: torch.Size) -> None:
        self._base, self.shape, self.dtype = base, shape, base.dtype

    def read_into(self, out: torch.Tensor, slices: Slices) -> None:
        whole = torch.empty(self._base.shape, dtype=out.dtype)
        self._base.read_into(whole, full_slices(self._base.shape))
        part = whole.reshape(self.shape)
        for dim, (offset, length) in enumerate(slices):
            part = part.narrow(dim, offset, length)
        out.copy_(part)


def full_slices(shape: Sequence[int]) -> Slices:
    """Return the slices that cover a whole tensor of this shape."""
    return tuple((0, length) for length in shape)


def _exchanged(values: Sequence[Any], dim0: int, dim1: int) -> list[Any]:
    exchanged = list(values)
    exchanged[dim0], exchanged[dim1] = exchanged[dim1], exchanged[dim0]
    return exchanged


def _common_dtype(parts: Sequence[LazyTensor]) -> torch.dtype:
    found = parts[0].dtype
    for part in parts[1:]:
        found = torch.promote_types(found, part.dtype)
    return found


def _check_equal(shapes: Sequence[Any]) -> None:
    if len({tuple(shape) for shape in shapes}) > 1:
        raise ValueError(f"shapes that do not fit together: {sorted({tuple(shape) for shape in shapes})}")


def _split(base: LazyTensor, sizes: int | Sequence[int], dim: int = 0) -> tuple[LazyTensor, ...]:
    dim = dim % base.ndim
    length = base.shape[dim]
    if isinstance(sizes, int):
        sizes = [min(sizes, length - begin) for begin in range(0, length, sizes)]
    if sum(sizes) != length:
        raise ValueError(f"sizes {list(sizes)} do not add up to {length}")
    begins = [sum(sizes[:index]) for index in range(len(sizes))]
    return tuple(_Narrowed(base, dim, begin, size) for begin, size in zip(begins, sizes, strict=True))


def _chunk(base: LazyTensor, count: int, dim: int = 0) -> tuple[LazyTensor, ...]:
    return _split(base, -(-base.shape[dim] // count), dim)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "stack": lambda tensors, dim=0: _Stacked(tensors, dim),
    "cat": lambda tensors, dim=0: _Concatenated(tensors, dim),
    "transpose": lambda input, dim0, dim1: input.transpose(dim0, dim1),
    "reshape": lambda input, shape: input.reshape(shape),
    "split": _split,
    "chunk": _chunk,
}
