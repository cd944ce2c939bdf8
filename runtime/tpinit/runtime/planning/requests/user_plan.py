"""A plan that the user passes to `initialize`: as a Plan, as what `Plan.to_json` returned, or as a JSON file of it."""

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


def read_plan(given: UserPlan) -> Plan:
    """Return a plan from a Plan, from what `Plan.to_json` returned, or from a JSON file of that. Raises PlanError."""
    if isinstance(given, Plan):
        return given
    if isinstance(given, Mapping):
        return Plan.from_json(given)
    if not isinstance(given, (str, PathLike)):
        raise PlanError(f"plan is a {type(given).__qualname__}: give a Plan, what Plan.to_json() returned, or a file")
    try:
        page = json.loads(Path(given).read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"the plan {str(given)!r} can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise PlanError(f"the plan {str(given)!r} is not JSON: {error}") from error
    if not isinstance(page, dict):
        raise PlanError(f"the plan {str(given)!r} is no JSON object: write what Plan.to_json() returned")
    return Plan.from_json(page)
