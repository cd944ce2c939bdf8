"""The plan: which parameter is cut how, one record a parameter; and what becomes of each module."""

from tpinit.runtime.plan.partition import from_section
from tpinit.runtime.plan.passed import PassedPlan, check_plan, read_plan
from tpinit.runtime.plan.planner import plan_model
from tpinit.runtime.plan.records import BlockPlan, Cut, GradientRule, LayerKind, LayerPlan, ParameterPlan, Plan

__all__ = [
    "BlockPlan",
    "Cut",
    "GradientRule",
    "LayerKind",
    "LayerPlan",
    "ParameterPlan",
    "PassedPlan",
    "Plan",
    "check_plan",
    "from_section",
    "plan_model",
    "read_plan",
]
