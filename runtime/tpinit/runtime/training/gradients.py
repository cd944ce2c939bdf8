"""Gradients over ranks: sums over the TP group, means over the data-parallel group, the norm of the whole gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from tpinit.runtime.groups.buckets import in_buckets
from tpinit.runtime.groups.devices import message_device
from tpinit.runtime.groups.process_groups import GroupView
from tpinit.runtime.planning.schema import GradientRule, ParameterPlan
from tpinit.runtime.settings import TORCH_DTYPES, Averaging
from tpinit.runtime.slicing import local_part, write_part
from tpinit.runtime.training.param_state import ParamState

__all__ = ["GradientNorm", "average", "full_size", "global_norm", "scale", "sum_partial"]

_DEVIATION = 1e-4  # of the replicated gradients of one rank from the others, relative: far above rounding
_PLAIN_MEAN = Averaging()
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
    dist.all_reduce(flat, group=tp.group)
    count = len(states) if on_host else 0
    users = [bool(one) for one in flat[:count].tolist()] if on_host else _live_on_any_rank(states, tp)
    sums = torch.split(flat[count:], [grad.numel() for grad in full])
    for state, grad, total, is_used in zip(states, full, sums, users, strict=True):
        if is_used:
            state.target.grad = local_part(total.view_as(grad), state.record, tp.size, tp.position).clone(
                memory_format=torch.contiguous_format
            )


def _live_on_any_rank(states: Sequence[ParamState], group: GroupView) -> list[bool]:
    """Return which parameters have a gradient on any rank of the group, by one all-reduce of host memory.

    For models on an accelerator: a flag there would be read only when the whole backward is done, and the host would
    wait for it.
    """
    channel = group.control if group.control is not None else group.group
    live = torch.tensor([state.target.grad is not None for state in states], dtype=torch.int32)
    live = live.to(message_device(channel))
    dist.all_reduce(live, op=dist.ReduceOp.MAX, group=channel)
    return [bool(one) for one in live.tolist()]


def _live_and_flag(
    states: Sequence[ParamState], dp: GroupView, device: torch.device, flag: torch.Tensor
) -> tuple[list[bool], torch.Tensor]:
    """Return which parameters have a gradient on any rank, and whether a bool scalar is set on any rank."""
    if device.type != "cpu":
        anywhere = flag.to(torch.int32)
        dist.all_reduce(anywhere, op=dist.ReduceOp.MAX, group=dp.group)
        return _live_on_any_rank(states, dp), anywhere.bool()
    has_grad = torch.tensor([state.target.grad is not None for state in states], dtype=torch.int32)
    flags = torch.cat([has_grad, flag.to(has_grad).reshape(1)])
    dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=dp.group)
    return [bool(one) for one in flags[:-1].tolist()], flags[-1].bool()


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


def average(
    states: Sequence[ParamState],
    dp: GroupView,
    device: torch.device,
    flag: torch.Tensor,
    averaging: Averaging = _PLAIN_MEAN,
) -> torch.Tensor:
    """Replace every gradient by its mean over the data-parallel group, in place, as `averaging` says.

    A parameter that has a gradient on some ranks counts as zero on the others. A parameter that has a gradient on no
    rank keeps none. So ranks that used different parameters all-reduce the same tensors. `flag` is a bool scalar;
    returns whether it is set on any rank of the group.
    """
    if dp.group is None:
        return flag
    live, flag = _live_and_flag(states, dp, device, flag)
    used = [state for state, is_live in zip(states, live, strict=True) if is_live]
    for state in used:
        if state.target.grad is None:
            state.target.grad = torch.zeros_like(state.target)
    for grads in in_buckets(_gradients(used), torch.Tensor.numel, lambda grad: grad.dtype):
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        flat = _mean(flat, dp, averaging)
        for grad, mean in zip(grads, torch.split(flat, [grad.numel() for grad in grads]), strict=True):
            grad.copy_(mean.view_as(grad))
    return flag


def _mean(flat: torch.Tensor, dp: GroupView, averaging: Averaging) -> torch.Tensor:
    """Return the mean over the group, in DeepSpeed's order of operations; may change `flat`. One all-reduce."""
    sent = flat if averaging.dtype is None else flat.to(TORCH_DTYPES[averaging.dtype])
    before = dp.size if averaging.prescale else averaging.predivide
    if averaging.mean and before != 1:
        sent *= 1 / before
    dist.all_reduce(sent, group=dp.group)
    if averaging.mean and before != dp.size:
        sent /= dp.size / before
    return sent


def _gradients(states: Sequence[ParamState]) -> Iterator[torch.Tensor]:
    for state in states:
        if state.target.grad is not None:
            yield state.target.grad


class GradientNorm:
    """The 2-norm of the whole model's gradient, and what the ranks of a TP group learn in the same all-reduce.

    `sums` are float64: the squares of the sharded gradients, those of the replicated ones (r), r squared, a count of
    the ranks whose loss is NaN or infinite, the sum of the losses (l), and l squared; summed over the group when the
    all-reduce `pending` is done.
    """

    def __init__(self, sums: torch.Tensor, pending: dist.Work | None, ranks: int) -> None:
        self._sums = sums
        self._pending = pending
        self._ranks = ranks

    def norm(self) -> torch.Tensor:
        """Return the norm, a float64 scalar that is equal on every rank of the TP group."""
        sums = self._wait()
        return (sums[0] + sums[1] / self._ranks).sqrt()

    def read(self) -> tuple[bool, bool, bool]:
        """Return whether losses and norm are finite, whether replicated gradients agree, and whether the losses do.

        The host waits for the device. n values r are equal if and only if n x sum(r^2) = (sum r)^2.
        """
        sums = self._wait()
        sharded, total, squares, bad_losses, losses, loss_squares = sums.tolist()
        finite = math.isfinite(sharded) and math.isfinite(total) and bad_losses == 0
        allowed = _LOSS_DEVIATION[sums.is_cuda]
        return (
            finite,
            not finite or self._agree(total, squares, _DEVIATION),
            not finite or self._agree(losses, loss_squares, allowed),
        )

    def _agree(self, total: float, squares: float, deviation: float) -> bool:
        return self._ranks * squares - total * total <= deviation**2 * total * total

    def _wait(self) -> torch.Tensor:
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
        return self._sums


def global_norm(
    states: Sequence[ParamState],
    tp: GroupView,
    device: torch.device,
    bad_loss: torch.Tensor | None = None,
    losses: Sequence[torch.Tensor] = (),
) -> GradientNorm:
    """Start the 2-norm of the whole model's gradient; `bad_loss` is a bool scalar that is set for a loss not finite.

    Sharded gradients are summed over the group; a replicated gradient counts once. `losses` are the scalars whose
    gradients these are. The one all-reduce, of six numbers, has started when this returns.
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
    pending = dist.all_reduce(sums, group=tp.group, async_op=True) if tp.group is not None else None
    return GradientNorm(sums, pending, tp.size)


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
