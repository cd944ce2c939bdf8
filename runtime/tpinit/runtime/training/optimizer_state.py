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
from tpinit.runtime.internals.state_dict_private import names_optimizer_state, wants_full_state_dict
from tpinit.runtime.planning.schema import ParameterPlan, Plan
from tpinit.runtime.slicing import local_part
from tpinit.runtime.training.local_shards import mark, place_of, plain
from tpinit.runtime.training.param_state import ParamState
from tpinit.runtime.training.whole_model import gather_parameter

__all__ = ["mark_optimizer_state"]


def mark_optimizer_state(optimizer: Optimizer, param_states: Sequence[ParamState], plan: Plan, tp: GroupView) -> None:
    """Let state dicts of an optimizer hold a `LocalShard` for each part, and let it load parts and whole tensors.

    For torch's get_optimizer_state_dict with full_state_dict=True, the parts are gathered: all ranks must call it.
    """
    has_masters = any(state.target is not state.parameter for state in param_states)
    records = {id(state.target): state.record for state in param_states if state.record.dim is not None}

    def save(owner: Optimizer, state: dict[str, Any]) -> None:
        if has_masters and names_optimizer_state():
            raise EngineError(
                "get_optimizer_state_dict: the optimizer updates fp32 master copies of the parameters, and these have "
                "no names in the model; call optimizer.state_dict(), on every rank"
            )
        gathers = wants_full_state_dict()

        def to_saved(value: torch.Tensor, record: ParameterPlan) -> torch.Tensor:
            place = place_of(record, plan)
            if place is None or value.shape != place.local_shape:
                return value
            return gather_parameter(value, record, tp) if gathers else mark(value, place)

        state["state"] = _converted(owner, state, records, to_saved)

    def load(owner: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        def to_own(value: torch.Tensor, record: ParameterPlan) -> torch.Tensor:
            whole = value.shape == record.shape
            return local_part(plain(value), record, plan.tp_size, plan.tp_rank).clone() if whole else plain(value)

        return {**state, "state": _converted(owner, state, records, to_own)}

    optimizer.register_state_dict_post_hook(save)
    optimizer.register_load_state_dict_pre_hook(load)


def _converted(
    owner: Optimizer,
    state: Mapping[str, Any],
    records: Mapping[int, ParameterPlan],
    convert: Callable[[torch.Tensor, ParameterPlan], torch.Tensor],
) -> dict[Any, Any]:
    """Return the states of a state dict, with the tensors of sharded parameters converted."""
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
                name: convert(value, record) if isinstance(value, torch.Tensor) else value
                for name, value in values.items()
            }
    return result
