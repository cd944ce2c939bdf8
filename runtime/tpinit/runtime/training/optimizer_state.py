"""State dicts of an optimizer over shards: parts that know their place, whole ones for torch, and whole ones cut.

A tensor of an optimizer's state is a part if it has the shape of the shard that the optimizer updates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from tpinit.runtime.errors import EngineError
from tpinit.runtime.groups.process_groups import GroupView
from tpinit.runtime.internals.state_dict_private import wants_full_state_dict
from tpinit.runtime.planning.schema import ParameterPlan, Plan
from tpinit.runtime.slicing import local_part
from tpinit.runtime.training.local_shards import mark, place_of, plain
from tpinit.runtime.training.master_copies import MASTER
from tpinit.runtime.training.param_state import ParamState
from tpinit.runtime.training.whole_model import gather_parameter

__all__ = ["mark_optimizer_state"]


def mark_optimizer_state(
    optimizer: Optimizer, param_states: Sequence[ParamState], plan: Plan, tp: GroupView, elementwise: bool
) -> None:
    """Let state dicts of an optimizer hold a `LocalShard` for each part, and let it load parts and whole tensors.

    For torch's get_optimizer_state_dict with full_state_dict=True, the parts are gathered: all ranks must call it.
    `elementwise`: each tensor of the state has one element or one for each of the parameter; the state of another
    optimizer is of whole tensors, but for the master copies. Loading raises EngineError for a tensor of another shape.
    """

    def save(owner: Optimizer, state: dict[str, Any]) -> None:
        gathers = wants_full_state_dict()

        def to_saved(value: torch.Tensor, record: ParameterPlan, key: str) -> torch.Tensor:
            if not elementwise and key != MASTER:
                return value
            place = place_of(record, plan)
            if place is None or value.shape != place.local_shape:
                return value
            return gather_parameter(value, record, tp) if gathers else mark(value, place)

        state["state"] = _converted(owner, state, _records(param_states), to_saved)

    def load(owner: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        def to_own(value: torch.Tensor, record: ParameterPlan, key: str) -> torch.Tensor:
            local = record.local_shape(plan.tp_size, plan.tp_rank)
            if (not elementwise and key != MASTER) or value.shape == local or value.numel() == 1:
                return plain(value)
            if value.shape == record.shape:
                return local_part(plain(value), record, plan.tp_size, plan.tp_rank).clone()
            raise EngineError(
                f"optimizer.load_state_dict: {key} of {record.name} has shape {list(value.shape)}; this rank's part "
                f"has {list(local)}, and the whole parameter {list(record.shape)}: load a state of the same model, "
                "saved by this rank with the same TP size, by an unsharded run, or by torch.distributed.checkpoint"
            )

        return {**state, "state": _converted(owner, state, _records(param_states), to_own)}

    optimizer.register_state_dict_post_hook(save)
    optimizer.register_load_state_dict_pre_hook(load)


def _records(param_states: Sequence[ParamState]) -> dict[int, ParameterPlan]:
    """Return the record of each parameter, by the ids of the tensors that may be in the optimizer's groups."""
    return {id(tensor): state.record for state in param_states for tensor in (state.parameter, state.target)}


def _converted(
    owner: Optimizer,
    state: Mapping[str, Any],
    records: Mapping[int, ParameterPlan],
    convert: Callable[[torch.Tensor, ParameterPlan, str], torch.Tensor],
) -> dict[Any, Any]:
    """Return the states of a state dict, with the tensors of the optimizer's parameters converted."""
    keys = [key for group in state["param_groups"] for key in group["params"]]
    tensors = [tensor for group in owner.param_groups for tensor in group["params"]]
    by_key = {key: records.get(id(tensor)) for key, tensor in zip(keys, tensors, strict=False)}
    result = {}
    for key, values in state["state"].items():
        record = by_key.get(key)
        if record is None or not isinstance(values, Mapping):
            result[key] = values
        else:
            result[key] = {
                name: convert(value, record, name) if isinstance(value, torch.Tensor) else value
                for name, value in values.items()
            }
    return result
