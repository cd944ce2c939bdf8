"""Planning: how every parameter of a model is sharded or replicated, and which modules are replaced or patched."""

from tpinit.runtime.planning.check.user_plan import check_plan
from tpinit.runtime.planning.make_plan import make_plan
from tpinit.runtime.planning.planner import plan_model
from tpinit.runtime.planning.requests.partition_config import request_from_section
from tpinit.runtime.planning.requests.user_plan import UserPlan, read_plan
from tpinit.runtime.planning.schema import BlockPlan, Cut, GradientRule, LayerKind, LayerPlan, ParameterPlan, Plan

__all__ = [
    "BlockPlan",
    "Cut",
    "GradientRule",
    "LayerKind",
    "LayerPlan",
    "ParameterPlan",
    "Plan",
    "UserPlan",
    "check_plan",
    "make_plan",
    "plan_model",
    "read_plan",
    "request_from_section",
]
