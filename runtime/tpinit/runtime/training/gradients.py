"""Gradients over ranks: the average over the data-parallel group, and the norm that the plan defines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache

import torch
import torch.distributed as dist
from tpinit.runtime.groups.process_groups import GroupView
from tpinit.runtime.planning.schema import GradientRule
from tpinit.runtime.slicing import local_part, write_part
from tpinit.runtime.training.optimizers import ParamState

__all__ = ["average", "global_norm", "scale", "sum_parts"]

_BUCKET = 1 << 25  # elements in one all-reduce: large enough to be bandwidth-bound, small beside a model


def sum_parts(slots: Sequence[ParamState], side: GroupView, device: torch.device) -> None:
    """Sum over the TP group the gradients of what several of its ranks hold, each having a part, in place.

    One all-reduce for each dtype. A parameter that no rank used stays without a gradient.
    """
    parts = [
        slot for slot in slots if slot.record.gradient_rule is GradientRule.PARTIAL and slot.parameter.requires_grad
    ]
    if side.group is None or not parts:
        return
    for dtype in dict.fromkeys(slot.target.dtype for slot in parts):
        alike = [slot for slot in parts if slot.target.dtype == dtype]
        used = torch.tensor([slot.target.grad is not None for slot in alike], dtype=dtype, device=device)
        wholes = [_whole(slot, side) for slot in alike]
        flat = torch.cat([used, *(whole.reshape(-1) for whole in wholes)])
        dist.all_reduce(flat, group=side.group)
        summed = torch.split(flat[len(alike) :], [whole.numel() for whole in wholes])
        for slot, whole, total, count in zip(alike, wholes, summed, flat[: len(alike)].tolist(), strict=True):
            if count:
                slot.target.grad = local_part(total.view_as(whole), slot.record, side.size, side.position).clone(
                    memory_format=torch.contiguous_format
                )


def _whole(slot: ParamState, side: GroupView) -> torch.Tensor:
    """Return a gradient in the place that its part has in the whole, with zeros around it."""
    grad, record = slot.target.grad, slot.record
    whole = torch.zeros(record.shape, dtype=slot.target.dtype, device=slot.target.device)
    if grad is not None and record.dim is None:
        whole.copy_(grad)
    elif grad is not None:
        write_part(whole, grad, record, side.size, side.position)
    return whole


def average(slots: Sequence[ParamState], side: GroupView, device: torch.device) -> None:
    """Replace every gradient by its mean over the data-parallel group, in place.

    A parameter without a gradient on this rank counts as zero where another rank has one, and stays
    without one where none has: so ranks that used different parameters neither hang nor mix them up.
    """
    if side.group is None:
        return
    live = torch.tensor([slot.target.grad is not None for slot in slots], dtype=torch.int32, device=device)
    dist.all_reduce(live, op=dist.ReduceOp.MAX, group=side.group)
    used = [slot for slot, flag in zip(slots, live.tolist(), strict=True) if flag]
    for slot in used:
        if slot.target.grad is None:
            slot.target.grad = torch.zeros_like(slot.target)
    for grads in _buckets(used):
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        dist.all_reduce(flat, group=side.group)
        flat /= side.size
        for grad, part in zip(grads, torch.split(flat, [grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view_as(grad))


def _buckets(slots: Sequence[ParamState]) -> Iterator[list[torch.Tensor]]:
    """Yield the gradients in runs of one dtype and bounded size, in the plan's order."""
    bucket: list[torch.Tensor] = []
    count = 0
    for grad in _grads(slots):
        if bucket and (grad.dtype != bucket[0].dtype or count + grad.numel() > _BUCKET):
            yield bucket
            bucket, count = [], 0
        bucket.append(grad)
        count += grad.numel()
    if bucket:
        yield bucket


def _grads(slots: Sequence[ParamState]) -> Iterator[torch.Tensor]:
    for slot in slots:
        if slot.target.grad is not None:
            yield slot.target.grad


def global_norm(slots: Sequence[ParamState], side: GroupView, device: torch.device) -> Callable[[], torch.Tensor]:
    """Return what waits for the 2-norm of the whole model's gradient, a float64 scalar, equal on every rank.

    Slices count on each rank of the TP group and are summed over it; gradients that are the same on all of
    them count once. One all-reduce of one number, which is on its way when this returns: the gradients may change.
    """
    own = _square([_counted(slot, side) for slot in slots if slot.record.dim is not None], device)
    same = _square([slot.target.grad for slot in slots if slot.record.dim is None], device)
    pending = dist.all_reduce(own, group=side.group, async_op=True) if side.group is not None else None

    @cache
    def norm() -> torch.Tensor:
        if pending is not None:
            pending.wait()
        return (own + same).sqrt()

    return norm


def _counted(slot: ParamState, side: GroupView) -> torch.Tensor | None:
    """Return what of a slice's gradient this rank counts: all that no rank before it holds too."""
    grad, record = slot.target.grad, slot.record
    if grad is None or record.gradient_rule is not GradientRule.PARTIAL:
        return grad
    assert record.dim is not None
    before = {
        place
        for rank in range(side.position)
        for offset, length in record.pieces_of(side.size, rank)
        for place in range(offset, offset + length)
    }
    held = [
        place
        for offset, length in record.pieces_of(side.size, side.position)
        for place in range(offset, offset + length)
    ]
    kept = torch.tensor([place not in before for place in held], device=grad.device)
    return grad.transpose(0, record.dim)[kept]


def _square(grads: Sequence[torch.Tensor | None], device: torch.device) -> torch.Tensor:
    norms = [
        torch.linalg.vector_norm(grad, dtype=torch.promote_types(grad.dtype, torch.float32))
        for grad in grads
        if grad is not None
    ]
    if not norms:
        return torch.zeros((), dtype=torch.float64, device=device)
    return torch.stack([norm.double() for norm in norms]).square().sum()


def scale(slots: Sequence[ParamState], factor: torch.Tensor) -> None:
    """Multiply every gradient by a scalar, in place."""
    for grad in _grads(slots):
        grad.mul_(factor.to(grad.dtype))
