"""The plan of a run: the user's, else that of `partition_config`, a preset, the model's tp_plan, or the data flow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from tpinit.reference.errors import TpinitError
from tpinit.runtime.errors import PlanError
from tpinit.runtime.planning.analysis.off_meta import on_device
from tpinit.runtime.planning.check.user_plan import check_plan
from tpinit.runtime.planning.planner import plan_model
from tpinit.runtime.planning.requests.partition_config import request_from_section
from tpinit.runtime.planning.requests.user_plan import UserPlan, read_plan
from tpinit.runtime.planning.schema import LayerKind, Plan

__all__ = ["make_plan"]


def make_plan(
    model: nn.Module,
    tp_size: int,
    section: Mapping[str, object],
    *,
    user_plan: UserPlan | None = None,
    example: Mapping[str, Any] | None = None,
    sequence_parallel: bool = False,
    device: torch.device | None = None,
) -> Plan:
    """Return the plan of `model` over `tp_size` ranks, for rank 0.

    `section` is the `tensor_parallel` section that the decision carries. `example` are keyword arguments of one small
    forward, for models whose inputs their config does not describe. The forwards of planning run where the model is;
    if one fails there, they run on `device`, where the model is going to train, without a move of its weights.

    Raises TpinitError if both `user_plan` and `sequence_parallel` are given, ConfigError for a `partition_config` that
    contradicts the decision, and PlanError for a model, request or plan that can't be sharded exactly.
    """
    if user_plan is not None and sequence_parallel:
        raise TpinitError(
            "sequence_parallel and plan were both given, but a plan says itself whether tokens are sharded: leave "
            "sequence_parallel out"
        )

    def plan(inputs: Mapping[str, Any] | None) -> Plan:
        return _make_plan(model, tp_size, section, user_plan, inputs, sequence_parallel)

    try:
        return plan(example)
    except PlanError as error:
        if not error.forward_failed or device is None or not _is_elsewhere(model, device):
            raise
    with on_device(model, device):
        return plan(example and {name: _moved(value, device) for name, value in example.items()})


def _is_elsewhere(model: nn.Module, device: torch.device) -> bool:
    """Return whether the model trains on an accelerator and is not there yet, in parameters that can be replaced."""
    return device.type != "cpu" and all(
        parameter.device.type in ("cpu", "meta") and type(parameter) is nn.Parameter for parameter in model.parameters()
    )


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _make_plan(
    model: nn.Module,
    tp_size: int,
    section: Mapping[str, object],
    user_plan: UserPlan | None,
    example: Mapping[str, Any] | None,
    sequence_parallel: bool,
) -> Plan:
    """Return the plan of a model whose forwards run where it is."""
    if user_plan is not None:
        return check_plan(read_plan(user_plan), model, tp_size, example)
    vocab_parallel_head = section.get("vocab_parallel_lm_head")
    request = request_from_section(section, model, tp_size) if tp_size > 1 else None
    plan = plan_model(
        model, tp_size, 0, request, example, vocab_parallel_head is not False, sequence_parallel=sequence_parallel
    )
    has_head = any(layer.kind is LayerKind.HEAD for layer in plan.layers)
    if vocab_parallel_head is True and tp_size > 1 and not has_head:
        raise PlanError(
            "tensor_parallel.vocab_parallel_lm_head is true, but this model has no output head that can be "
            f"vocab-parallel over {tp_size} ranks: leave the key out"
        )
    return plan
