"""The plan of a run: the user's, else that of `partition_config`, a preset, the model's tp_plan, or the data flow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from tpinit.reference.errors import TpinitError
from tpinit.runtime.errors import PlanError
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
) -> Plan:
    """Return the plan of `model` over `tp_size` ranks, for rank 0.

    `section` is the `tensor_parallel` section that the decision carries. `example` are keyword arguments of one small
    forward, for models whose inputs their config does not describe.

    Raises TpinitError if both `user_plan` and `sequence_parallel` are given, ConfigError for a `partition_config` that
    contradicts the decision, and PlanError for a model, request or plan that can't be sharded exactly.
    """
    if user_plan is not None:
        if sequence_parallel:
            raise TpinitError(
                "sequence_parallel and plan were both given, but a plan says itself whether tokens are sharded: leave "
                "sequence_parallel out"
            )
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
