"""Gradients over ranks: sums over the TP group, and the norm of the whole gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from tpinit.runtime.groups.devices import message_device
from tpinit.runtime.groups.issuing import PendingCollective, collective
from tpinit.runtime.groups.process_groups import GroupView
from tpinit.runtime.planning.schema import GradientRule, ParameterPlan
from tpinit.runtime.slicing import local_part, write_part
from tpinit.runtime.training.param_state import ParamState

__all__ = ["GradientNorm", "any_rank", "full_size", "global_norm", "greatest", "scale", "sum_partial"]

_DEVIATION = 1e-4  # of the replicated gradients of one rank from the others, relative: far above rounding
_LOSS_DEVIATION = (1e-7, 1e-4)  # of the losses of a TP group, relative, on a CPU and on CUDA: they are computed alike


def sum_partial(states: Sequence[ParamState], tp: GroupView, device: torch.device) -> None:
    """Sum the gradients of PARTIAL parameters over the TP group, in place: each rank has computed one addend.

    One all-reduce for each dtype. A parameter that no rank used keeps no gradient.
    """
    partial = [state for state in states if state.record.gradient_rule is GradientRule.PARTIAL]
    partial = [state for state in partial if state.parameter.requires_grad]
    if tp.group is None or not partial:
        return
    for dtype in dict.fromkeys(state.target.dtype for state in partial):
        _sum_one_dtype([state for state in partial if state.target.dtype == dtype], tp, device)


def _sum_one_dtype(states: Sequence[ParamState], tp: GroupView, device: torch.device) -> None:
    dtype = states[0].target.dtype
    on_host = device.type == "cpu"
    used = torch.tensor([state.target.grad is not None for state in states], dtype=dtype) if on_host else None
    full = [_full_size_gradient(state, tp) for state in states]
    flat = torch.cat([*([] if used is None else [used]), *(grad.reshape(-1) for grad in full)])
    collective("all_reduce", "partial gradients", flat, group=tp.group)
    count = len(states) if on_host else 0
    mine = [state.target.grad is not None for state in states]
    users = [bool(one) for one in flat[:count].tolist()] if on_host else any_rank(mine, tp)
    sums = torch.split(flat[count:], [grad.numel() for grad in full])
    for state, grad, total, is_used in zip(states, full, sums, users, strict=True):
        if is_used:
            state.target.grad = local_part(total.view_as(grad), state.record, tp.size, tp.position).clone(
                memory_format=torch.contiguous_format
            )


def any_rank(flags: Sequence[bool], group: GroupView) -> list[bool]:
    """Return which flags are set on any rank of the group."""
    return [bool(mark) for mark in greatest([int(flag) for flag in flags], group)]


def greatest(marks: Sequence[int], group: GroupView) -> list[int]:
    """Return the greatest of each number over the ranks of the group, by one all-reduce of host memory.

    A number on an accelerator would be read only when the whole backward is done, and the host would wait for it.
    """
    channel = group.control if group.control is not None else group.group
    sent = torch.tensor(marks, dtype=torch.int32).to(message_device(channel))
    collective("all_reduce", "which gradients there are", sent, op=dist.ReduceOp.MAX, group=channel)
    found: list[int] = sent.tolist()
    return found


def full_size(part: torch.Tensor, record: ParameterPlan, tp: GroupView) -> torch.Tensor:
    """Return this rank's part in a tensor of the parameter's full shape, with zeros outside this rank's slice."""
    full = part.new_zeros(record.shape)
    if record.dim is None:
        return full.copy_(part)
    write_part(full, part, record, tp.size, tp.position)
    return full


def _full_size_gradient(state: ParamState, tp: GroupView) -> torch.Tensor:
    grad = state.target.grad
    return full_size(grad, state.record, tp) if grad is not None else state.target.new_zeros(state.record.shape)


def _gradients(states: Sequence[ParamState]) -> Iterator[torch.Tensor]:
    for state in states:
        if state.target.grad is not None:
            yield state.target.grad


class GradientNorm:
    """The 2-norm of the whole model's gradient, and what the ranks learn in the same all-reduce.

    `sums` are float64: the squares of the sharded gradients, those of the replicated ones (r), r squared, a count of
    the ranks whose loss is NaN or infinite, the sum of the losses (l), and l squared; summed over the TP group when the
    all-reduce `pending` is done. `dp` is the data-parallel group if each of its ranks has other gradients (ZeRO 2):
    one more all-reduce, of four numbers.
    """

    def __init__(self, sums: torch.Tensor, pending: PendingCollective | None, ranks: int, dp: GroupView | None) -> None:
        self._sums = sums
        self._pending = pending
        self._ranks = ranks
        self._dp = dp
        self._totals: torch.Tensor | None = None

    def norm(self) -> torch.Tensor:
        """Return the norm, a float64 scalar that is equal on every rank of the TP group."""
        return self._wait()[0].sqrt()

    def read(self) -> tuple[bool, bool, bool]:
        """Return whether losses and norm are finite, whether replicated gradients agree, and whether the losses do.

        The host waits for the device.
        """
        squares, bad_losses, unequal_gradients, unequal_losses = self._wait().tolist()
        finite = math.isfinite(squares) and bad_losses == 0
        return finite, not finite or not unequal_gradients, not finite or not unequal_losses

    def _wait(self) -> torch.Tensor:
        """Return the square of the norm, and the counts of bad losses, unequal gradients and unequal losses."""
        if self._totals is not None:
            return self._totals
        if self._pending is not None:
            self._pending.wait()
        sharded, total, squares, bad_losses, losses, loss_squares = self._sums
        found = [
            sharded + total / self._ranks,
            bad_losses,
            self._differ(total, squares, _DEVIATION),
            self._differ(losses, loss_squares, _LOSS_DEVIATION[self._sums.is_cuda]),
        ]
        self._totals = torch.stack(found)
        if self._dp is not None:
            collective("all_reduce", "the norm of the gradient", self._totals, group=self._dp.group)
        return self._totals

    def _differ(self, total: torch.Tensor, squares: torch.Tensor, deviation: float) -> torch.Tensor:
        """Return 1 if the numbers of the ranks differ, else 0: n of them are equal iff n x sum(r^2) = (sum r)^2."""
        return (self._ranks * squares - total * total > deviation**2 * total * total).to(total)


def global_norm(
    states: Sequence[ParamState],
    tp: GroupView,
    device: torch.device,
    bad_loss: torch.Tensor | None = None,
    losses: Sequence[torch.Tensor] = (),
    owned_in: GroupView | None = None,
) -> GradientNorm:
    """Start the 2-norm of the whole model's gradient; `bad_loss` is a bool scalar that is set for a loss not finite.

    Sharded gradients are summed over the group; a replicated gradient counts once. `losses` are the scalars whose
    gradients these are. The one all-reduce, of six numbers, has started when this returns. `owned_in`: the states are
    those that this rank owns of a data-parallel group (ZeRO 2).
    """
    pairs = [(state, state.target.grad) for state in states]
    used = [(state, grad) for state, grad in pairs if grad is not None]
    sharded = _sum_of_squares(
        [state.counted_part(grad) for state, grad in used if state.record.dim is not None], device
    )
    replicated = _sum_of_squares([grad for state, grad in used if state.record.dim is None], device)
    flag = torch.zeros_like(sharded) if bad_loss is None else bad_loss.to(sharded)
    loss = torch.stack([loss.to(sharded).sum() for loss in losses]).sum() if losses else torch.zeros_like(sharded)
    sums = torch.stack([sharded, replicated, replicated * replicated, flag, loss, loss * loss])
    pending = None
    if tp.group is not None:
        pending = collective("all_reduce", "the norm of the gradient", sums, group=tp.group, async_op=True)
    return GradientNorm(sums, pending, tp.size, owned_in)


def _sum_of_squares(grads: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Return the sum of the squares of all elements, a float64 scalar; each norm is taken in at least fp32."""
    norms = [torch.linalg.vector_norm(grad, dtype=torch.promote_types(grad.dtype, torch.float32)) for grad in grads]
    if not norms:
        return torch.zeros((), dtype=torch.float64, device=device)
    return torch.stack([norm.double() for norm in norms]).square().sum()


def scale(states: Sequence[ParamState], factor: torch.Tensor) -> None:
    """Multiply every gradient by a scalar tensor, in place."""
    for grad in _gradients(states):
        grad.mul_(factor.to(grad.dtype))
