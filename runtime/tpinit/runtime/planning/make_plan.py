"""The plan of a run: the user's own, else by `partition_config`, preset, the model's tp_plan, or its structure."""

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
    """Return the plan of `model` over `tp_size` ranks, for rank 0. `section` is what the decision carries.

    Raises TpinitError if a plan and `sequence_parallel` are both given, and what the source of the plan raises:
    PlanError, ConfigError.
    """
    if user_plan is not None:
        if sequence_parallel:
            raise TpinitError("sequence_parallel and plan were both given: a plan says itself whether tokens are cut")
        return check_plan(read_plan(user_plan), model, tp_size, example)
    head = section.get("vocab_parallel_lm_head")
    request = request_from_section(section, model, tp_size) if tp_size > 1 else None
    plan = plan_model(model, tp_size, 0, request, example, head is not False, sequence_parallel=sequence_parallel)
    if head is True and tp_size > 1 and not any(one.kind is LayerKind.HEAD for one in plan.layers):
        raise PlanError(
            "tensor_parallel.vocab_parallel_lm_head is true, and this model has no output head that can be cut by "
            f"vocabulary over {tp_size} ranks: leave it out"
        )
    return plan
