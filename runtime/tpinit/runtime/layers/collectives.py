"""The two collectives of tensor parallelism, each the other's mirror under autograd.

Entering a cut region copies the input to the group: identity forward, all-reduce backward. Leaving it sums
the partial results: all-reduce forward, identity backward. A region with one entry and one exit issues one
all-reduce each way, however many sibling layers read the entry.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

__all__ = ["copy_to_group", "sum_over_group"]


class _CopyToGroup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        # A copy, because autograd may hand the same tensor to a hook or to another branch.
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None


class _SumOverGroup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, partial: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
        # The matrix product that made `partial` does not save its output, so summing in place is safe.
        ctx.mark_dirty(partial)
        dist.all_reduce(partial, group=group)
        return partial

    @staticmethod
    def backward(_: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0], None


def copy_to_group(hidden: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
    """Return `hidden` unchanged; its gradient is summed over the group. Any shape, any float dtype."""
    return _CopyToGroup.apply(hidden, group)  # type: ignore[no-untyped-call, no-any-return]  # torch leaves apply() untyped


def sum_over_group(partial: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
    """Return the sum of `partial` over the group, in place; the gradient passes unchanged."""
    return _SumOverGroup.apply(partial, group)  # type: ignore[no-untyped-call, no-any-return]  # torch leaves apply() untyped
