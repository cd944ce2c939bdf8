"""The collectives of tensor parallelism, each with its mirror under autograd.

Entering a cut region copies the input to the group: identity forward, all-reduce backward. Leaving it sums
the partial results: all-reduce forward, identity backward. A region with one entry and one exit issues one
all-reduce each way, however many sibling layers read the entry. Gathering and splitting are each the other's
mirror too.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup
from tpinit.runtime.slicing import Pieces, take_pieces, write_pieces

__all__ = [
    "TPRegionInput",
    "copy_to_tp_region",
    "gather_from_tp_region",
    "scatter_to_tp_region",
    "reduce_from_tp_region",
]

Ranks = tuple[Pieces, ...]


class _CopyToTPRegion(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
        ctx.group = group
        # No view: the copy must not keep the tensor itself alive, see Entry.
        return hidden.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        # A copy, because autograd may hand the same tensor to a hook or to another branch.
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None


class _ReduceFromTPRegion(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, partial: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
        # The operation that made `partial` does not save its output, so summing in place is safe.
        ctx.mark_dirty(partial)
        dist.all_reduce(partial, group=group)
        return partial

    @staticmethod
    @once_differentiable
    def backward(_: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0], None


class _GatherFromTPRegion(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, group: ProcessGroup, ranks: Ranks) -> torch.Tensor:
        ctx.group, ctx.ranks = group, ranks
        return _gather(part, group, ranks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return take_pieces(grads[0], -1, ctx.ranks[dist.get_rank(ctx.group)]).contiguous(), None, None


class _ScatterToTPRegion(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: torch.Tensor, group: ProcessGroup, ranks: Ranks) -> torch.Tensor:
        ctx.group, ctx.ranks = group, ranks
        return take_pieces(whole, -1, ranks[dist.get_rank(group)]).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _gather(grads[0], ctx.group, ctx.ranks), None, None


def _gather(part: torch.Tensor, group: ProcessGroup, ranks: Ranks) -> torch.Tensor:
    """Put the parts of all ranks together along the last dimension. Shorter ones are padded on the way."""
    lengths = [sum(length for _, length in held) for held in ranks]
    longest = max(lengths)
    sent = part.contiguous()
    if part.shape[-1] < longest:
        sent = torch.nn.functional.pad(sent, (0, longest - part.shape[-1]))
    parts = [torch.empty_like(sent) for _ in ranks]
    dist.all_gather(parts, sent, group=group)
    whole = part.new_empty((*part.shape[:-1], max(offset + length for held in ranks for offset, length in held)))
    for one, held in zip(parts, ranks, strict=True):
        write_pieces(whole, one, -1, held)
    return whole


def copy_to_tp_region(hidden: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
    """Return `hidden` unchanged; its gradient is summed over the group. Any shape, any float dtype."""
    return _CopyToTPRegion.apply(hidden, group)  # type: ignore[no-untyped-call, no-any-return]  # torch leaves apply() untyped


def reduce_from_tp_region(partial: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
    """Return the sum of `partial` over the group, in place; the gradient passes unchanged."""
    return _ReduceFromTPRegion.apply(partial, group)  # type: ignore[no-untyped-call, no-any-return]  # torch leaves apply() untyped


def gather_from_tp_region(part: torch.Tensor, group: ProcessGroup, ranks: Ranks) -> torch.Tensor:
    """Return the whole of [..., part]: `ranks[r]` are the (offset, length) that rank r has. Its gradient is split."""
    return _GatherFromTPRegion.apply(part, group, ranks)  # type: ignore[no-untyped-call, no-any-return]  # torch leaves apply() untyped


def scatter_to_tp_region(whole: torch.Tensor, group: ProcessGroup, ranks: Ranks) -> torch.Tensor:
    """Return this rank's part of [..., whole]; the gradients of all parts are gathered."""
    return _ScatterToTPRegion.apply(whole, group, ranks)  # type: ignore[no-untyped-call, no-any-return]  # torch leaves apply() untyped


class TPRegionInput:
    """The fused_with to the cut layers of a model: siblings that read the same tensor go in together.

    The first of them copies its input to the group; the next ones get the same copy, so that their gradients
    meet before the one all-reduce. The copy goes when its tensor goes: nothing is kept alive, and activation
    checkpointing, which computes its inputs anew, goes in anew. `into` is what copies, and `always` says whether it
    has to where no gradient is asked for.
    """

    def __init__(
        self,
        group: ProcessGroup,
        into: Callable[[torch.Tensor, ProcessGroup], torch.Tensor] = copy_to_tp_region,
        always: bool = False,
    ) -> None:
        self.group = group
        self.into = into
        self.always = always
        self._hidden: weakref.ref[torch.Tensor] | None = None
        self._copied: torch.Tensor | None = None
        self._version = 0

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the copy of `hidden` that is in the group; `hidden` itself where none is needed."""
        if not (self.always or (hidden.requires_grad and torch.is_grad_enabled())):
            return hidden
        if self._hidden is not None and self._hidden() is hidden and self._version == hidden._version:
            assert self._copied is not None
            return self._copied
        copied = self.into(hidden, self.group)
        self._copied, self._version = copied, hidden._version
        self._hidden = weakref.ref(hidden, self._forget)
        return copied

    def _forget(self, gone: weakref.ref[torch.Tensor]) -> None:
        if self._hidden is gone:
            self._hidden = self._copied = None

    def __deepcopy__(self, _: dict[int, Any]) -> TPRegionInput:
        """Return an entry to the same group: a copied model trains in the same one."""
        return TPRegionInput(self.group, self.into, self.always)
