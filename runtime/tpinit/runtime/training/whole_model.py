"""Whole tensors of a sharded model: its state dict, gathered over the TP group, and a whole one cut for this rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from tpinit.runtime.groups.process_groups import GroupView
from tpinit.runtime.planning.schema import ParameterPlan, Plan
from tpinit.runtime.slicing import assemble, local_part

__all__ = ["cut_state_dict", "gather_parameter", "gather_state_dict"]


def gather_parameter(part: torch.Tensor, record: ParameterPlan, tp: GroupView) -> torch.Tensor:
    """Return the whole tensor of this rank's part, without a gradient; the part itself if it is replicated.

    Every rank of the TP group must call this, for the parameters in one order: one broadcast for each rank.
    """
    part = part.detach()
    if record.dim is None or tp.group is None:
        return part
    parts = []
    for position, rank in enumerate(tp.ranks):
        sent = part.contiguous() if position == tp.position else part.new_empty(record.local_shape(tp.size, position))
        dist.broadcast(sent, rank, group=tp.group)
        parts.append(sent)
    return assemble(parts, record)


def gather_state_dict(model: nn.Module, plan: Plan, tp: GroupView) -> dict[str, Any]:
    """Return the state dict of the unsharded model, with its keys and ties. Every rank of the TP group must call this.

    Needs memory for the whole model on every rank.
    """
    records = _records(model, plan)
    gathered: dict[int, torch.Tensor] = {}
    result: dict[str, Any] = {}
    for name, value in nn.Module.state_dict(model, keep_vars=True).items():
        if not isinstance(value, torch.Tensor):
            result[name] = value
            continue
        if name in records and id(value) not in gathered:
            gathered[id(value)] = gather_parameter(value, records[name], tp)
        result[name] = gathered[id(value)] if name in records else value.detach()
    return result


def cut_state_dict(model: nn.Module, plan: Plan, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict in which every whole tensor of a sharded parameter is cut to this rank's part.

    Tensors of any other shape stay as they are: torch compares their shapes.
    """
    records = _records(model, plan)
    result = dict(state)
    for name, value in state.items():
        record = records.get(name)
        if record is not None and isinstance(value, torch.Tensor) and tuple(value.shape) == tuple(record.shape):
            result[name] = local_part(value, record, plan.tp_size, plan.tp_rank)
    return result


def _records(model: nn.Module, plan: Plan) -> dict[str, ParameterPlan]:
    """Return the plan's record of each parameter by every name that the parameter has."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_name = {record.name: record for record in plan.parameters}
    return {
        name: by_name[names[id(parameter)]]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if names[id(parameter)] in by_name
    }
