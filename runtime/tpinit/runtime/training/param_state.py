"""Training state of each parameter: its record of the plan, its fp32 master copy, its share of the gradient norm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer
from tpinit.runtime.planning.schema import GradientRule, ParameterPlan, Plan
from tpinit.runtime.slicing import take_pieces
from tpinit.runtime.training.gradient_parts import GradientPart, mark_part, plain_gradient

__all__ = ["ParamState", "adopt_edits", "make_param_states"]

_HALF = (torch.bfloat16, torch.float16)


@dataclass(slots=True)
class ParamState:
    """One parameter in training: the model's local tensor, and the tensor that the optimizer updates.

    `target` is the parameter itself, or its fp32 master copy if the optimizer updates a bf16 or fp16 parameter.
    Gradients are summed, averaged and clipped on the target. `counted` are the indices along the sharded dimension
    (int64, 1-d, on the parameter's device) that this rank adds to the gradient norm; None means all of them. `shown` is
    the rounded copy of the target's gradient that the parameter has as its `grad`, None if it has another or none.
    `taken`: the gradient is on the master copy alone, and the parameter has none or that of a later backward.
    `summed`: a backward outside of the engine left a gradient that is already the sum over the TP group.
    """

    parameter: nn.Parameter
    target: nn.Parameter
    record: ParameterPlan
    counted: torch.Tensor | None = None
    shown: torch.Tensor | None = None
    taken: bool = False
    summed: bool = False

    @property
    def has_master(self) -> bool:
        """Whether the optimizer updates an fp32 master copy of the parameter."""
        return self.target is not self.parameter

    def add_master(self) -> None:
        """Let the optimizer update an fp32 copy of a bf16 or fp16 parameter; does nothing for other dtypes."""
        if not self.has_master and self.parameter.dtype in _HALF:
            self.target = nn.Parameter(self.parameter.detach().float())

    def take_grad(self) -> None:
        """Move the parameter's gradient to the master copy, in fp32; does nothing without a master copy.

        An element that still has the shown value keeps the fp32 value that was rounded to it. So a gradient that the
        user has dropped, replaced or changed in place is so on the master copy.
        """
        if not self.has_master or self.taken:
            return
        shown, grad = self.shown, self.parameter.grad
        if grad is None:
            self.target.grad = None
        elif grad is shown and self.target.grad is not None:
            self.target.grad = _with_edits(self.target.grad, grad)
        else:
            self.target.grad = plain_gradient(grad).float()
        self.parameter.grad = self.shown = None
        self.taken = grad is not None

    def show_grad(self) -> None:
        """Give the parameter a copy of the master copy's gradient, rounded to its dtype, for the user to read."""
        if self.has_master and self.target.grad is not None:
            self.shown = self.target.grad.to(self.parameter.dtype)
            self.parameter.grad = self.shown
        self.taken = False

    def mark_grad(self) -> None:
        """Let the parameter's gradient, a slice, refuse what would take it for the whole; a part stays one."""
        grad = self.parameter.grad
        if type(grad) is torch.Tensor:
            self.parameter.grad = part = mark_part(grad, self.record)
            if self.shown is grad:
                self.shown = part

    def unmark_grad(self) -> None:
        """Let the parameter's gradient be a plain tensor."""
        grad = self.parameter.grad
        if type(grad) is GradientPart:
            self.parameter.grad = plain = plain_gradient(grad)
            if self.shown is grad:
                self.shown = plain

    def accumulate(self) -> None:
        """Add the gradient of the last backward to one that was taken, in fp32."""
        if self.taken and self.target.grad is not None and self.parameter.grad is not None:
            self.target.grad.add_(self.parameter.grad)
            self.parameter.grad = None

    def release_grad(self) -> torch.Tensor | None:
        """Return the gradient, of the master copy in fp32, and drop it; None if there is none."""
        self.accumulate()
        if self.parameter.grad is not None:
            self.take_grad()
        grad = self.target.grad
        self.target.grad = self.parameter.grad = self.shown = None
        self.taken = False
        return grad

    def exact_grad(self) -> torch.Tensor | None:
        """Return the gradient, of the master copy in fp32 where its rounded copy is shown; None if there is none."""
        grad = self.parameter.grad
        if self.taken:
            return self.target.grad
        if self.has_master and grad is not None and grad is self.shown and self.target.grad is not None:
            return _with_edits(self.target.grad, plain_gradient(grad))
        return plain_gradient(grad) if grad is not None else self.target.grad

    def drop_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradient of the parameter and of its master copy, or set it to zero."""
        if set_to_none or self.parameter.grad is None:
            self.parameter.grad = None
        else:
            self.parameter.grad.zero_()
        if self.has_master:
            self.target.grad = self.shown = None
            self.taken = False

    def counted_part(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the elements of a tensor of this shape that no lower rank of the TP group holds (`counted`).

        If these are not all, the sharded dimension is the first.
        """
        if self.counted is None or self.record.dim is None:
            return tensor
        return tensor.transpose(0, self.record.dim)[self.counted]

    def copy_back(self) -> None:
        """Copy the updated master copy to the model's parameter; does nothing without a master copy."""
        if self.has_master:
            with torch.no_grad():
                self.parameter.copy_(self.target)


@contextmanager
def fp32_gradients(states: Sequence[ParamState]) -> Iterator[None]:
    """Let the master copies have the gradients of their parameters, and give each parameter its own back after."""
    masters = [state for state in states if state.has_master]
    before = [(state, state.parameter.grad, state.shown) for state in masters]
    for state in masters:
        state.take_grad()
    try:
        yield
    finally:
        for state, grad, shown in before:
            state.parameter.grad, state.shown, state.taken = grad, shown, False
            if shown is None:
                state.target.grad = None


def _with_edits(exact: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """Return `exact`, with the elements of `rounded` wherever that is not `exact` rounded to its dtype."""
    return torch.where(rounded == exact.to(rounded.dtype), exact, rounded.to(exact.dtype))


@torch.no_grad()
def adopt_edits(states: Sequence[ParamState]) -> None:
    """Write into each master copy the elements of its parameter that are not the rounded master: someone set them.

    On an accelerator the host waits once for all of them; on a CPU comparing bits, four elements at once, is several
    times faster.
    """
    masters = [state for state in states if state.has_master]
    if all(state.target.is_cpu for state in masters):
        edited = [not _equal_on_cpu(state.target.to(state.parameter.dtype), state.parameter) for state in masters]
    else:
        differ = [(state.target.to(state.parameter.dtype) != state.parameter).any() for state in masters]
        edited = torch.stack(differ).tolist()
    for state, is_edited in zip(masters, edited, strict=True):
        if is_edited:
            state.target.copy_(_with_edits(state.target, state.parameter))


def _equal_on_cpu(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors of one 16-bit dtype are equal; +0 and -0 may count as different."""
    one, other = one.detach().reshape(-1), other.detach().reshape(-1)
    if one.numel() % 4 == 0 and one.storage_offset() % 4 == 0 and other.storage_offset() % 4 == 0:
        one, other = one.view(torch.int64), other.view(torch.int64)
    return torch.equal(one, other)


def make_param_states(model: nn.Module, plan: Plan, optimizer: Optimizer | None) -> list[ParamState]:
    """Return the state of each parameter, in the plan's order, with a master copy of those that the optimizer updates.

    The optimizer holds the model's own Parameter objects, which are already sharded in place, and keeps them: the
    master copies of those in bf16 or fp16 take their place during a step only (`optimizer_step`). A frozen parameter
    has none until it is trained.
    """
    groups = optimizer.param_groups if optimizer is not None else []
    optimized = {id(parameter) for group in groups for parameter in group["params"]}
    parameters = dict(model.named_parameters())
    states = []
    for record in plan.parameters:
        parameter = parameters[record.name]
        counted = _counted_indices(record, plan.tp_size, plan.tp_rank)
        if counted is not None:
            counted = counted.to(parameter.device)
        state = ParamState(parameter, parameter, record, counted)
        if id(parameter) in optimized and parameter.requires_grad:
            state.add_master()
        states.append(state)
    return states


def _counted_indices(record: ParameterPlan, tp_size: int, tp_rank: int) -> torch.Tensor | None:
    """Return the local indices along the sharded dimension that no lower TP rank holds; None if these are all.

    Ranks may share slices (key/value heads that are fewer than ranks). Each shared slice counts once in a norm, on the
    lowest rank that holds it.
    """
    if record.dim is None or record.gradient_rule is not GradientRule.PARTIAL:
        return None
    held_before = torch.zeros(record.shape[record.dim], dtype=torch.bool)
    for rank in range(tp_rank):
        for offset, length in record.pieces_of(tp_size, rank):
            held_before[offset : offset + length] = True
    shared = take_pieces(held_before, 0, record.pieces_of(tp_size, tp_rank))
    return (~shared).nonzero().flatten() if bool(shared.any()) else None
