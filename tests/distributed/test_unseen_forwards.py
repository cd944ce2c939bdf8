"""A forward that does in training what planning has not seen is checked when it does so, and right or refused."""

from __future__ import annotations

from typing import Any

import pytest

from scenarios.unseen_forwards import INNER, RIGHT

pytestmark = pytest.mark.distributed

AT_INIT = ("clock", "gate", "large")  # what a condition, a zero or a small batch hides is seen by planning


def test_what_planning_has_not_seen_is_refused_where_it_is_wrong(world2: Any) -> None:
    for results in world2.run("scenarios.unseen_forwards:train_all"):
        assert {name: results[name] for name in RIGHT} == dict.fromkeys(RIGHT, "exact")
        for name in INNER.keys() - set(RIGHT):
            step = -1 if name in AT_INIT else 3
            assert results[name].startswith(f"refused at {step}: {'PlanError' if step < 0 else 'EngineError'}"), name


def test_without_the_check_the_same_forwards_are_wrong(world2: Any) -> None:
    for results in world2.run("scenarios.unseen_forwards:train_all", verify="none"):
        wrong = {name for name, result in results.items() if result == "WRONG"}
        assert wrong == INNER.keys() - set(RIGHT) - set(AT_INIT)
