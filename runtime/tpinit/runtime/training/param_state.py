"""Training state of each parameter: its record of the plan, its fp32 master copy, its share of the gradient norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from tpinit.runtime.planning.schema import GradientRule, ParameterPlan, Plan
from tpinit.runtime.slicing import take_pieces

__all__ = ["ParamState", "make_param_states"]


@dataclass(slots=True)
class ParamState:
    """One parameter in training: the model's local tensor, and the tensor that the optimizer updates.

    `target` is the parameter itself, or its fp32 master copy if the optimizer updates a bf16 or fp16 parameter.
    Gradients are accumulated, averaged and clipped on the target. `counted` are the indices along the sharded dimension
    (int64, 1-d, on the parameter's device) that this rank adds to the gradient norm; None means all of them.
    """

    parameter: nn.Parameter
    target: nn.Parameter
    record: ParameterPlan
    counted: torch.Tensor | None = None

    def accumulate(self) -> None:
        """Add the gradient of the last backward to the master copy's, in fp32; does nothing without a master copy."""
        if self.target is self.parameter or self.parameter.grad is None:
            return
        grad = self.parameter.grad.float()
        self.target.grad = grad if self.target.grad is None else self.target.grad.add_(grad)
        self.parameter.grad = None

    def copy_back(self) -> None:
        """Copy the updated master copy to the model's parameter; does nothing without a master copy."""
        if self.target is not self.parameter:
            with torch.no_grad():
                self.parameter.copy_(self.target)


def make_param_states(model: nn.Module, plan: Plan, optimizer: Optimizer | None) -> list[ParamState]:
    """Return the state of each parameter, in the plan's order, and give the optimizer the master copies to update.

    The optimizer holds the model's own Parameter objects, which are already sharded in place. Only those in bf16 or
    fp16 are replaced; the optimizer's options, groups and their order stay.
    """
    groups: list[dict[str, Any]] = optimizer.param_groups if optimizer is not None else []
    optimized = {id(parameter) for group in groups for parameter in group["params"]}
    parameters = dict(model.named_parameters())
    states = []
    for record in plan.parameters:
        parameter = parameters[record.name]
        half = parameter.dtype in (torch.bfloat16, torch.float16) and id(parameter) in optimized
        target = nn.Parameter(parameter.detach().float()) if half else parameter
        counted = _counted_indices(record, plan.tp_size, plan.tp_rank)
        if counted is not None:
            counted = counted.to(parameter.device)
        states.append(ParamState(parameter, target, record, counted))
    masters = {id(state.parameter): state.target for state in states}
    for group in groups:
        group["params"] = [masters.get(id(parameter), parameter) for parameter in group["params"]]
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
