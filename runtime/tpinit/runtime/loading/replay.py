"""Replaying one recorded initialisation step: whole, or drawn in order and kept where a rank holds the values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tpinit.runtime.errors import LoadError
from tpinit.runtime.internals.torch_private import NORMAL_BLOCK
from tpinit.runtime.slicing import take_pieces

__all__ = ["InitStep", "ScratchMemory", "copy_pieces", "draw_and_discard", "draw_pieces"]

_CHUNK_ELEMENTS = 1 << 20  # drawn at once


@dataclass(slots=True)
class InitStep:
    """One operation that wrote to a tensor on the meta device.

    `size`, `stride` and `offset` are the tensor's view of its storage; `args` and `kwargs` the operation's other
    arguments; `state` the RNG state before it, None if it draws nothing. `problem`: why it can't be replayed, or "".
    """

    operation: Any
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    state: torch.Tensor | None
    problem: str = ""

    def run(self, memory: torch.Tensor) -> None:
        """Replay the step on `memory`, the flat storage with the results of the steps before. Raises LoadError."""
        if self.problem:
            raise LoadError(self.problem)
        if self.state is not None:
            torch.set_rng_state(self.state)
        self.operation(memory.as_strided(self.size, self.stride, self.offset), *self.args, **self.kwargs)

    def draws_in_order(self, dtype: torch.dtype) -> bool:
        """Return whether drawing consecutive chunks of the tensor gives the values of drawing it at once."""
        is_plain = self.operation in (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default)
        contiguous = tuple(math.prod(self.size[dim + 1 :]) for dim in range(len(self.size)))
        is_dense = self.offset == 0 and self.stride == contiguous
        return is_plain and is_dense and not self.problem and dtype in (torch.float32, torch.float64)


@dataclass(slots=True)
class ScratchMemory:
    """Memory for values that are drawn and copied, reused: allocating it for each draw would fragment the heap."""

    memory: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))

    def take(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor of `count` elements, valid until the next call."""
        needed = count * dtype.itemsize
        if needed > self.memory.numel():
            self.memory = torch.empty(0, dtype=torch.uint8, device="cpu")  # frees the old memory first
            self.memory = torch.empty(needed, dtype=torch.uint8, device="cpu")
        return self.memory[:needed].view(dtype)


def draw_and_discard(step: InitStep, target: torch.Tensor, scratch: ScratchMemory) -> None:
    """Draw the values of a step and drop them, so that the RNG state is what it would be after the step."""
    if step.draws_in_order(target.dtype):
        for _ in _chunks(step, target.dtype, 1, target.numel(), scratch):
            pass
        return
    memory = torch.empty(target.untyped_storage().nbytes() // target.element_size(), dtype=target.dtype, device="cpu")
    step.operation(memory.as_strided(step.size, step.stride, step.offset), *step.args, **step.kwargs)


def draw_pieces(
    step: InitStep,
    whole: torch.Tensor,
    dim: int | None,
    pieces: Sequence[tuple[int, int]],
    out: torch.Tensor,
    scratch: ScratchMemory,
) -> None:
    """Draw the parameter `whole` (on the meta device) in order, and write the pieces along `dim` to `out`."""
    shape = tuple(whole.shape)
    outer = math.prod(shape[:dim]) if dim is not None else 1
    assert step.state is not None
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.set_rng_state(step.state)
        if dim is None:
            flat = out.view(-1)
            for begin, values in _chunks(step, whole.dtype, 1, whole.numel(), scratch):
                flat[begin : begin + values.numel()].copy_(values)
        elif outer == 1:
            row = math.prod(shape[dim + 1 :])
            rows = out.view(-1, row)
            for begin, values in _chunks(step, whole.dtype, row, shape[dim], scratch):
                _copy_rows(values.view(-1, row), begin, pieces, rows)
        else:
            inner = math.prod(shape[dim:])
            blocks = out.view(outer, out.shape[dim], -1)
            for begin, values in _chunks(step, whole.dtype, inner, outer, scratch):
                block = values.view(-1, shape[dim], math.prod(shape[dim + 1 :]))
                copy_pieces(block, 1, pieces, blocks[begin : begin + block.shape[0]])


def copy_pieces(whole: torch.Tensor, dim: int | None, pieces: Sequence[tuple[int, int]], out: torch.Tensor) -> None:
    """Copy the pieces along `dim` of a tensor to `out`; the whole tensor for `dim` None."""
    out.copy_(whole if dim is None else take_pieces(whole, dim, pieces))


def _chunks(
    step: InitStep, dtype: torch.dtype, unit: int, count: int, scratch: ScratchMemory
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (index of the first unit, values) of chunks of whole units, `count` units of `unit` elements in all.

    Every chunk but the last has a multiple of NORMAL_BLOCK elements, since `normal_` draws in such blocks.
    """
    units_of_block = NORMAL_BLOCK // math.gcd(unit, NORMAL_BLOCK)
    units = max(1, _CHUNK_ELEMENTS // (unit * units_of_block)) * units_of_block
    begin = 0
    while begin < count:
        length = min(units, count - begin)
        if 0 < (count - begin - length) * unit < NORMAL_BLOCK:  # `normal_` draws a shorter tensor in another way
            length = count - begin
        values = scratch.take(unit * length, dtype)
        step.operation(values, *step.args, **step.kwargs)
        yield begin, values
        begin += length


def _copy_rows(rows: torch.Tensor, begin: int, pieces: Sequence[tuple[int, int]], out: torch.Tensor) -> None:
    """Copy those of the rows [begin, begin + len(rows)) of a parameter that are in `pieces` to their place in `out`."""
    place = 0
    for offset, length in pieces:
        first, last = max(offset, begin), min(offset + length, begin + rows.shape[0])
        if first < last:
            out[place + first - offset : place + last - offset].copy_(rows[first - begin : last - begin])
        place += length
