"""Where the numbers of a parameter lie: tensors in files, and what is put together from them, read piece by piece.

A source has a shape and no numbers. Torch's own functions that put tensors together or take them apart give
sources of sources, so that code written for tensors (transformers' conversions of checkpoints) runs on them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

__all__ = ["Box", "StoredTensor", "LazyTensor", "full_box"]

Box = tuple[tuple[int, int], ...]
ReadInto = Callable[[torch.Tensor, int], None]

_BYTES = 1 << 20  # what is read at once and not in its place: large enough for a disk, small beside a parameter


class LazyTensor(ABC):
    """A tensor that is not here. `shape` is known; `read_into` brings a part of the numbers."""

    shape: torch.Size

    @abstractmethod
    def read_into(self, out: torch.Tensor, box: Box) -> None:
        """Write the numbers of `box`, one (offset, length) for each dimension, to `out`, in its dtype."""

    @abstractmethod
    def leaves(self) -> list[StoredTensor]:
        """Return the stored tensors that this is made of."""

    # What code for tensors asks of one.

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
        """Return the source itself: it has no layout."""
        return self

    def transpose(self, dim0: int, dim1: int) -> LazyTensor:
        """Return the source with two dimensions exchanged."""
        return _Turned(self, dim0 % self.ndim, dim1 % self.ndim)

    def reshape(self, *shape: Any) -> LazyTensor:
        """Return the source with its numbers in another shape."""
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        return _Shaped(self, torch.empty(self.shape, device="meta").reshape(tuple(wanted)).shape)

    view = reshape

    def squeeze(self, dim: int) -> LazyTensor:
        """Return the source without a dimension of length 1."""
        return self.reshape(tuple(size for place, size in enumerate(self.shape) if place != dim % self.ndim))

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Answer for the functions of torch that put tensors together or take them apart."""
        del types
        answer = _FUNCTIONS.get(function.__name__)
        return NotImplemented if answer is None else answer(*args, **(kwargs or {}))


class StoredTensor(LazyTensor):
    """One stored tensor, dense from a place in a file on. `read` fills a dense tensor; `where` is for people."""

    def __init__(self, where: str, shape: Sequence[int], dtype: torch.dtype, begin: int, read: ReadInto) -> None:
        self.where = where
        self.shape = torch.Size(shape)
        self._dtype = dtype
        self._begin = begin
        self._read = read

    def read_into(self, out: torch.Tensor, box: Box) -> None:
        """Write the numbers of `box` to `out`: at once where they lie as there, else a megabyte after the other."""
        if not out.numel():
            return
        if not box:
            self._part(torch.empty((), dtype=self._dtype), out, 0, ())
            return
        (begin, length), rest = box[0], box[1:]
        inner = self.shape[1:]
        if rest == full_box(inner) and out.dtype is self._dtype and out.device.type == "cpu" and out.is_contiguous():
            self._read(out, self._begin + begin * out.itemsize * math.prod(inner))
            return
        rows = min(length, max(1, _BYTES // (self._dtype.itemsize * math.prod(inner))))
        held = torch.empty((rows, *inner), dtype=self._dtype)
        for first in range(0, length, rows):
            count = min(rows, length - first)
            self._part(held[:count], out.narrow(0, first, count), begin + first, rest)

    def _part(self, held: torch.Tensor, out: torch.Tensor, row: int, rest: Box) -> None:
        """Read whole rows to `held`, from one row on, and write what `rest` has of each to `out`."""
        self._read(held, self._begin + row * held.itemsize * math.prod(self.shape[1:]))
        for dim, (offset, length) in enumerate(rest, 1):
            held = held.narrow(dim, offset, length)
        out.copy_(held)

    def leaves(self) -> list[StoredTensor]:
        """Return this one."""
        return [self]


class _Stacked(LazyTensor):
    def __init__(self, parts: Sequence[LazyTensor], dim: int) -> None:
        _alike([part.shape for part in parts])
        self.parts = parts
        self.dim_ = dim % (parts[0].ndim + 1)
        self.shape = torch.Size((*parts[0].shape[: self.dim_], len(parts), *parts[0].shape[self.dim_ :]))

    def read_into(self, out: torch.Tensor, box: Box) -> None:
        begin, length = box[self.dim_]
        inner = (*box[: self.dim_], *box[self.dim_ + 1 :])
        for place in range(length):
            self.parts[begin + place].read_into(out.select(self.dim_, place), inner)

    def leaves(self) -> list[StoredTensor]:
        return [leaf for part in self.parts for leaf in part.leaves()]


class _Joined(LazyTensor):
    def __init__(self, parts: Sequence[LazyTensor], dim: int) -> None:
        self.parts = parts
        self.dim_ = dim % parts[0].ndim
        _alike([(*part.shape[: self.dim_], *part.shape[self.dim_ + 1 :]) for part in parts])
        whole = sum(part.shape[self.dim_] for part in parts)
        self.shape = torch.Size((*parts[0].shape[: self.dim_], whole, *parts[0].shape[self.dim_ + 1 :]))

    def read_into(self, out: torch.Tensor, box: Box) -> None:
        begin, length = box[self.dim_]
        start = 0
        for part in self.parts:
            stop = start + part.shape[self.dim_]
            first, last = max(begin, start), min(begin + length, stop)
            if first < last:
                inner = (*box[: self.dim_], (first - start, last - first), *box[self.dim_ + 1 :])
                part.read_into(out.narrow(self.dim_, first - begin, last - first), inner)
            start = stop

    def leaves(self) -> list[StoredTensor]:
        return [leaf for part in self.parts for leaf in part.leaves()]


class _Turned(LazyTensor):
    def __init__(self, whole: LazyTensor, dim0: int, dim1: int) -> None:
        self.whole, self.dims = whole, (dim0, dim1)
        self.shape = torch.Size(_exchanged(whole.shape, dim0, dim1))

    def read_into(self, out: torch.Tensor, box: Box) -> None:
        self.whole.read_into(out.transpose(*self.dims), tuple(_exchanged(box, *self.dims)))

    def leaves(self) -> list[StoredTensor]:
        return self.whole.leaves()


class _Part(LazyTensor):
    def __init__(self, whole: LazyTensor, dim: int, begin: int, length: int) -> None:
        self.whole, self.dim_, self.begin = whole, dim, begin
        self.shape = torch.Size((*whole.shape[:dim], length, *whole.shape[dim + 1 :]))

    def read_into(self, out: torch.Tensor, box: Box) -> None:
        offset, length = box[self.dim_]
        self.whole.read_into(out, (*box[: self.dim_], (self.begin + offset, length), *box[self.dim_ + 1 :]))

    def leaves(self) -> list[StoredTensor]:
        return self.whole.leaves()


class _Shaped(LazyTensor):
    """The same numbers in another shape: a part of them may be anywhere, so all of them are read."""

    def __init__(self, whole: LazyTensor, shape: torch.Size) -> None:
        self.whole, self.shape = whole, shape

    def read_into(self, out: torch.Tensor, box: Box) -> None:
        every = torch.empty(self.whole.shape, dtype=out.dtype)
        self.whole.read_into(every, full_box(self.whole.shape))
        found = every.reshape(self.shape)
        for dim, (offset, length) in enumerate(box):
            found = found.narrow(dim, offset, length)
        out.copy_(found)

    def leaves(self) -> list[StoredTensor]:
        return self.whole.leaves()


def full_box(shape: Sequence[int]) -> Box:
    """Return the box that holds all of a shape."""
    return tuple((0, length) for length in shape)


def _exchanged(values: Sequence[Any], dim0: int, dim1: int) -> list[Any]:
    found = list(values)
    found[dim0], found[dim1] = found[dim1], found[dim0]
    return found


def _alike(shapes: Sequence[Any]) -> None:
    if len({tuple(shape) for shape in shapes}) > 1:
        raise ValueError(f"shapes that do not fit together: {sorted({tuple(shape) for shape in shapes})}")


def _split(whole: LazyTensor, sizes: int | Sequence[int], dim: int = 0) -> tuple[LazyTensor, ...]:
    place = dim % whole.ndim
    length = whole.shape[place]
    if isinstance(sizes, int):
        sizes = [min(sizes, length - begin) for begin in range(0, length, sizes)]
    if sum(sizes) != length:
        raise ValueError(f"parts of {list(sizes)} do not make {length}")
    begins = [sum(sizes[:index]) for index in range(len(sizes))]
    return tuple(_Part(whole, place, begin, size) for begin, size in zip(begins, sizes, strict=True))


def _chunk(whole: LazyTensor, count: int, dim: int = 0) -> tuple[LazyTensor, ...]:
    return _split(whole, -(-whole.shape[dim] // count), dim)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "stack": lambda tensors, dim=0: _Stacked(tensors, dim),
    "cat": lambda tensors, dim=0: _Joined(tensors, dim),
    "transpose": lambda input, dim0, dim1: input.transpose(dim0, dim1),
    "reshape": lambda input, shape: input.reshape(shape),
    "split": _split,
    "chunk": _chunk,
}
