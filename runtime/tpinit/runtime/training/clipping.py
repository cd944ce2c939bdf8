"""The norm of whole gradients or weights, given one rank's part of each, and clipping by it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from tpinit.runtime.errors import EngineError
from tpinit.runtime.groups.issuing import collective
from tpinit.runtime.training.gradient_parts import plain_gradient
from tpinit.runtime.training.param_state import ParamState
from tpinit.runtime.training.sharded_tensors import ShardedTensors

__all__ = ["check_finite", "clip_factor", "clip_gradients", "whole_norm"]

_EPSILON = 1e-6  # torch's and DeepSpeed's, added to the norm that divides


def whole_norm(
    found: Sequence[tuple[ParamState, torch.Tensor]], model: ShardedTensors, norm_type: float
) -> torch.Tensor:
    """Return the p-norm of whole tensors, given this rank's part of each: a scalar, equal on all ranks of a TP group.

    It is float32, on the model's device. One all-reduce, and with ZeRO 2 one more over the
    data-parallel group. Raises EngineError unless p is greater than 0.
    """
    order = float(norm_type)
    if not order > 0:
        raise EngineError(f"norm_type is {norm_type}: over a sharded model it must be greater than 0, or inf")
    tp, owned_in = model.groups.tp, model.hooks.owned_in()
    counted = {id(state) for state in model.hooks.counted()}
    found = [(state, plain_gradient(tensor)) for state, tensor in found if id(state) in counted]
    sharded = [state.counted_part(tensor) for state, tensor in found if state.record.dim is not None]
    replicated = [tensor for state, tensor in found if state.record.dim is None]
    parts = torch.stack([_power_sum(tensors, order, model.device) for tensors in (sharded, replicated)])
    operation = dist.ReduceOp.MAX if math.isinf(order) else dist.ReduceOp.SUM
    for group in (tp.group, owned_in.group if owned_in is not None else None):
        if group is not None:
            collective("all_reduce", "the norm of the gradient", parts, op=operation, group=group)
    if math.isinf(order):
        return parts.max().float()
    parts[1] /= tp.size
    return parts.sum().pow(1 / order).float()


def _power_sum(tensors: Sequence[torch.Tensor], order: float, device: torch.device) -> torch.Tensor:
    """Return the sum of the p-th powers of all elements, or the greatest magnitude for inf: a float64 scalar."""
    norms = [
        torch.linalg.vector_norm(tensor.detach(), order, dtype=torch.promote_types(tensor.dtype, torch.float32))
        for tensor in tensors
        if tensor.numel()
    ]
    if not norms:
        return torch.zeros((), dtype=torch.float64, device=device)
    joined = torch.stack([norm.double() for norm in norms])
    return joined.max() if math.isinf(order) else joined.pow(order).sum()


def clip_factor(norm: torch.Tensor, max_norm: float) -> torch.Tensor:
    """Return the factor, at most 1, that brings a norm down to `max_norm`."""
    return (max_norm / (norm + _EPSILON)).clamp(max=1.0)


@torch.no_grad()
def clip_gradients(
    model: ShardedTensors, max_norm: float, norm_type: float, error_if_nonfinite: bool, scale: float
) -> torch.Tensor:
    """Scale all gradients so that their norm over the whole model is at most `max_norm`; return the norm before.

    `scale` is the loss scale by which the gradients are multiplied; the norm is without it. Raises EngineError if
    `error_if_nonfinite` is true and the norm is NaN or infinite.
    """
    model.hooks.unmark()
    for state in model.states:
        state.take_grad()
    try:
        found = [(state, state.target.grad) for state in model.states if state.target.grad is not None]
        norm = whole_norm(found, model, norm_type) / scale
        check_finite(norm, norm_type, error_if_nonfinite)
        factor = clip_factor(norm, float(max_norm))
        for _, grad in found:
            grad.mul_(factor.to(grad.dtype))
    finally:
        model.hooks.show()
    return norm


def check_finite(norm: torch.Tensor, norm_type: float, error_if_nonfinite: bool) -> None:
    """Raise EngineError if the norm is NaN or infinite and `error_if_nonfinite` is true."""
    if error_if_nonfinite and not bool(torch.isfinite(norm)):
        raise EngineError(
            f"the norm of order {norm_type} of the whole model's gradient is {float(norm)}, and the gradients were not "
            "clipped: look at this batch, or set error_if_nonfinite=False"
        )
