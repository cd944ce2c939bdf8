"""A plan that the user passes to `initialize`: a Plan, what `Plan.to_json` returned, or the path of its JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from tpinit.runtime.errors import PlanError
from tpinit.runtime.planning.schema import Plan

__all__ = ["UserPlan", "read_plan"]

UserPlan = Plan | Mapping[str, Any] | str | PathLike[str]


def read_plan(user_plan: UserPlan) -> Plan:
    """Return the plan that a user passed. Raises PlanError if it can't be read or is not a plan."""
    if isinstance(user_plan, Plan):
        return user_plan
    if isinstance(user_plan, Mapping):
        return Plan.from_json(user_plan)
    if not isinstance(user_plan, (str, PathLike)):
        kind = type(user_plan).__qualname__
        raise PlanError(f"plan has type {kind}: give a Plan, what Plan.to_json() returned, or the path of a JSON file")
    try:
        page = json.loads(Path(user_plan).read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"the plan {str(user_plan)!r} can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise PlanError(f"the plan {str(user_plan)!r} is not JSON: {error}") from error
    if not isinstance(page, dict):
        raise PlanError(f"the plan {str(user_plan)!r} is not a JSON object: write what Plan.to_json() returned")
    return Plan.from_json(page)
