"""The region functions of tensor parallelism: each has one collective in the forward and one in the backward pass.

A module enters and leaves the tensor-parallel region through these functions (Megatron's terms):

==================  ===========================  ===========================
function            forward                      backward
==================  ===========================  ===========================
`copy_to_...`       identity                     all-reduce
`reduce_from_...`   all-reduce, in place         identity
`gather_from_...`   all-gather, last dimension   slice, last dimension
`scatter_to_...`    slice, last dimension        all-gather, last dimension
==================  ===========================  ===========================

`sequence` has those that move tokens. A `RegionFunction` is data as well as code: the layers call it, and the forecast
reads from it which collectives a call issues.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup
from tpinit.runtime.internals.mode_private import dispatch_modes
from tpinit.runtime.internals.torch_private import version_of
from tpinit.runtime.parallel.first_order import first_order
from tpinit.runtime.parallel.tally import BACKWARD, current_place, issue
from tpinit.runtime.slicing import Pieces, take_pieces, write_pieces

__all__ = [
    "BoundRegion",
    "CollectiveKind",
    "RankPieces",
    "RegionFunction",
    "Step",
    "TPRegionInput",
    "copy_to_tp_region",
    "gather_from_tp_region",
    "reduce_from_tp_region",
    "scatter_to_tp_region",
]

RankPieces = tuple[Pieces, ...]
"""For each rank of the TP group, the (offset, length) pieces that it holds of a dimension."""


class CollectiveKind(str, Enum):
    """The collectives that the parallel modules issue."""

    ALL_REDUCE = "all_reduce"
    ALL_GATHER = "all_gather"
    REDUCE_SCATTER = "reduce_scatter"


@dataclass(frozen=True, slots=True)
class Step:
    """What a region function does in one pass: `run(tensor, group, pieces)`, and the collective that `run` issues.

    `collective` is None for a step without communication.
    """

    run: Callable[[torch.Tensor, ProcessGroup, RankPieces], torch.Tensor]
    collective: CollectiveKind | None = None


@dataclass(frozen=True, slots=True)
class RegionFunction:
    """A function at the border of the tensor-parallel region: one step forward, one step for the gradient."""

    forward: Step
    backward: Step

    def __call__(self, tensor: torch.Tensor, group: ProcessGroup, pieces: RankPieces = ()) -> torch.Tensor:
        """Return the result of the forward step on `tensor`, any shape and dtype.

        `pieces`: which part of the last dimension each rank holds, for the functions that gather or slice it.
        """
        result: torch.Tensor = _Border.apply(tensor, group, pieces, self)  # type: ignore[no-untyped-call]  # torch leaves apply() untyped
        place = current_place()
        if place is not None:
            place.apply(self)
            if self.backward.collective is not None:
                place.watch(result, self.backward.collective.value)
        return result

    def collectives(self) -> list[tuple[str, CollectiveKind]]:
        """Return the ("forward" or "backward", collective) pairs that one forward and backward issue, in order."""
        passes = (("forward", self.forward), ("backward", self.backward))
        return [(name, step.collective) for name, step in passes if step.collective is not None]


class _Border(torch.autograd.Function):
    """Runs the two steps of a region function under autograd."""

    @staticmethod
    def forward(
        ctx: Any, tensor: torch.Tensor, group: ProcessGroup, pieces: RankPieces, region: RegionFunction
    ) -> torch.Tensor:
        ctx.group, ctx.pieces, ctx.region, ctx.place = group, pieces, region, current_place()
        result = region.forward.run(tensor, group, pieces)
        if result is tensor:
            ctx.mark_dirty(tensor)
        return result

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        if ctx.place is None:
            return ctx.region.backward.run(grads[0], ctx.group, ctx.pieces), None, None, None
        with ctx.place.runs(BACKWARD):
            return ctx.region.backward.run(grads[0], ctx.group, ctx.pieces), None, None, None


# --- steps -----------------------------------------------------------------------------------------------


def _alias(tensor: torch.Tensor, _: ProcessGroup, __: RankPieces) -> torch.Tensor:
    # Not a view: a view would keep `tensor` itself alive, and TPRegionInput holds the result until `tensor` dies.
    return tensor.detach()


def _identity(grad: torch.Tensor, _: ProcessGroup, __: RankPieces) -> torch.Tensor:
    return grad


def _all_reduce_in_place(partial: torch.Tensor, group: ProcessGroup, _: RankPieces) -> torch.Tensor:
    # Safe: the operations that compute a partial result (matmul, masked_fill, clone) do not save their output. A mode
    # may keep it: selective checkpointing, whose second forward would get the sum, and sum it again.
    if not torch.compiler.is_compiling() and dispatch_modes():
        partial = partial.clone()
    issue("all_reduce", partial, group=group)
    return partial


def _all_reduce(grad: torch.Tensor, group: ProcessGroup, _: RankPieces) -> torch.Tensor:
    # Out of place: autograd may pass the same gradient tensor to a hook or to another branch.
    total = grad.clone(memory_format=torch.contiguous_format)
    issue("all_reduce", total, group=group)
    return total


def _slice(whole: torch.Tensor, group: ProcessGroup, pieces: RankPieces) -> torch.Tensor:
    return take_pieces(whole, -1, pieces[dist.get_rank(group)]).contiguous()


def _all_gather(local: torch.Tensor, group: ProcessGroup, pieces: RankPieces) -> torch.Tensor:
    """Return the whole last dimension from the shards of all ranks. Shards of unequal length are padded to be sent."""
    lengths = [sum(length for _, length in held) for held in pieces]
    longest = max(lengths)
    sent = local.contiguous()
    if local.shape[-1] < longest:
        sent = torch.nn.functional.pad(sent, (0, longest - local.shape[-1]))
    shards = [torch.empty_like(sent) for _ in pieces]
    issue("all_gather", shards, sent, group=group)
    whole = local.new_empty((*local.shape[:-1], max(offset + length for held in pieces for offset, length in held)))
    for shard, held in zip(shards, pieces, strict=True):
        write_pieces(whole, shard, -1, held)
    return whole


# --- region functions ------------------------------------------------------------------------------------

copy_to_tp_region = RegionFunction(Step(_alias), Step(_all_reduce, CollectiveKind.ALL_REDUCE))
"""Returns its input; the gradient is summed over the group. Any shape, any floating dtype."""

reduce_from_tp_region = RegionFunction(Step(_all_reduce_in_place, CollectiveKind.ALL_REDUCE), Step(_identity))
"""Returns the sum of its input over the group, computed in place; the gradient passes unchanged."""

gather_from_tp_region = RegionFunction(Step(_all_gather, CollectiveKind.ALL_GATHER), Step(_slice))
"""Returns [..., whole] from [..., local]; each rank takes its slice of the gradient."""

scatter_to_tp_region = RegionFunction(Step(_slice), Step(_all_gather, CollectiveKind.ALL_GATHER))
"""Returns this rank's slice [..., local] of [..., whole]; the gradients of all slices are gathered."""


@dataclass(frozen=True, slots=True)
class BoundRegion:
    """A region function with its group and pieces: `tensor -> tensor`.

    A copied layer trains in the same group (a process group can't be copied), so a deep copy is the object itself.
    """

    region: RegionFunction
    group: ProcessGroup
    pieces: RankPieces = ()

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the region function's result for `tensor`."""
        return self.region(tensor, self.group, self.pieces)

    def __deepcopy__(self, _: dict[int, Any]) -> BoundRegion:
        """Return the object itself."""
        return self


class TPRegionInput:
    """A region function whose result is shared by all layers that read the same tensor.

    The first of these layers calls the region function; the others get the same result, so that autograd adds their
    gradients before the one collective of the backward pass. The result is dropped when its input tensor is freed or
    written to. Activation checkpointing computes a new input tensor, and so calls the region function again.
    """

    def __init__(self, group: ProcessGroup, region: RegionFunction = copy_to_tp_region) -> None:
        self.group = group
        self.region = region
        self._input: weakref.ref[torch.Tensor] | None = None
        self._result: torch.Tensor | None = None
        self._version = 0

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the shared result for `hidden`.

        Returns `hidden` itself where the forward step is local and no gradient is computed.
        """
        if self.region.forward.collective is None and not (hidden.requires_grad and torch.is_grad_enabled()):
            place = current_place()
            if place is not None:
                place.apply(self.region)
            return hidden
        if self._input is not None and self._input() is hidden and self._version == version_of(hidden):
            assert self._result is not None
            place = current_place()
            if place is not None:
                place.apply(self.region)
            return self._result
        result = self.region(hidden, self.group)
        self._result, self._version = result, version_of(hidden)
        self._input = weakref.ref(hidden, self._forget)
        return result

    def _forget(self, freed: weakref.ref[torch.Tensor]) -> None:
        if self._input is freed:
            self._input = self._result = None

    def __deepcopy__(self, _: dict[int, Any]) -> TPRegionInput:
        """Return a new object for the same group: a copied model trains in the same group."""
        return TPRegionInput(self.group, self.region)
