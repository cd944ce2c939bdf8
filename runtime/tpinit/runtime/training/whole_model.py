"""Whole tensors of a sharded model: its state dict, gathered over the TP group, and a whole one cut for this rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from tpinit.runtime.errors import EngineError
from tpinit.runtime.groups.issuing import collective
from tpinit.runtime.groups.process_groups import GroupView
from tpinit.runtime.internals.state_dict_private import state_metadata, wants_full_state_dict, with_metadata
from tpinit.runtime.planning.schema import ParameterPlan, Plan
from tpinit.runtime.slicing import assemble, local_part
from tpinit.runtime.training.call_check import CallCheck
from tpinit.runtime.training.local_shards import PART_KEY, plain

__all__ = ["gather_parameter", "load_whole_or_part", "records_below", "state_or_whole"]


def records_below(plan: Plan, prefix: str) -> dict[str, ParameterPlan]:
    """Return the records of a module's parameters by every name that they have in the module."""
    start = f"{prefix}." if prefix else ""
    return {
        name.removeprefix(start): record
        for record in plan.parameters
        for name in record.names
        if name.startswith(start)
    }


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
        collective("broadcast", f"the part of {record.name}", sent, rank, group=tp.group)
        parts.append(sent)
    return assemble(parts, record)


def state_or_whole(plan: Plan, tp: GroupView, check: CallCheck) -> Callable[..., Any]:
    """Return the guard of `state_dict`: this rank's part, or the whole model for torch's get_model_state_dict.

    The latter is called with full_state_dict=True, on every rank, and needs memory for the whole model on each.
    """
    records = records_below(plan, "")

    def state_dict(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        state = type(model).state_dict(model, *args, **kwargs)
        if not wants_full_state_dict():
            return state
        check.compare_call("get_model_state_dict", model)
        prefix = kwargs.get("prefix", "")
        gathered: dict[int, torch.Tensor] = {}
        for name in [name for name in state if name.removeprefix(prefix) in records]:
            value, record = state[name], records[name.removeprefix(prefix)]
            key = value.data_ptr()
            if key not in gathered:
                gathered[key] = gather_parameter(plain(value), record, tp)
            state[name] = gathered[key]
        return state

    return state_dict


def load_whole_or_part(plan: Plan, prefix: str) -> Callable[..., Any]:
    """Return the guard of `load_state_dict` of the module `prefix`: each rank keeps its part of whole tensors."""
    records = {name: record for name, record in records_below(plan, prefix).items() if record.dim is not None}

    def load(
        module: nn.Module, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False, **kwargs: Any
    ) -> Any:
        if assign:
            raise EngineError(
                "load_state_dict(assign=True): the optimizer and the plan hold the present parameters; leave assign "
                "out: the values are copied into them"
            )
        state = with_metadata(state_dict)
        parts = [name for name, record in records.items() if _cut(name, record, plan, state)]
        if parts:
            _check_rank(parts[0], plan, state_metadata(state_dict))
        return type(module).load_state_dict(module, state, strict=strict, **kwargs)

    return load


def _cut(name: str, record: ParameterPlan, plan: Plan, state: dict[str, Any]) -> bool:
    """Cut a whole tensor of a state dict in place, and return whether it is a part. Raises EngineError if neither."""
    value = state.get(name)
    if not isinstance(value, torch.Tensor):
        return False
    if value.shape == record.shape:
        state[name] = local_part(plain(value), record, plan.tp_size, plan.tp_rank)
        return False
    own = record.local_shape(plan.tp_size, plan.tp_rank)
    if value.shape != own:
        raise EngineError(
            f"load_state_dict: {name} has shape {list(value.shape)}; legal are {list(record.shape)}, the whole tensor, "
            f"and {list(own)}, the part of TP rank {plan.tp_rank} of {plan.tp_size}"
        )
    return True


def _check_rank(name: str, plan: Plan, metadata: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise EngineError if a state dict with parts comes from another rank of a TP group."""
    own = (plan.tp_size, plan.tp_rank)
    for entry in metadata.values():
        size, rank = entry.get(PART_KEY, own)
        if (size, rank) != own:
            raise EngineError(
                f"load_state_dict: {name} is the part of TP rank {rank} of {size}, and this is rank {plan.tp_rank} of "
                f"{plan.tp_size}; load the file that this rank wrote, or the whole model's state dict"
            )
