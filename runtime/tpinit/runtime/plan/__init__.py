"""The plan: which parameter is cut how, one record a parameter."""

from tpinit.runtime.plan.decoder import plan_model
from tpinit.runtime.plan.records import Cut, GradientRule, ParameterPlan, Plan, RegionPlan

__all__ = ["Cut", "GradientRule", "ParameterPlan", "Plan", "RegionPlan", "plan_model"]
