"""A sharded model that is changed after `initialize`."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.distributed

# Calls, casts and assignments of parameters are refused where they are made, and not at the next forward.
AT_ONCE = (
    "can't be computed",
    "sharded over a TP group",
    "would leave the optimizer with others",
    "initialize chose the device",
)


def test_a_change_that_may_be_wrong_is_refused_on_all_ranks_at_the_next_forward(world2: Any) -> None:
    for results in world2.run("scenarios.changes:refuse_changes"):
        assert len(results) > 25
        for case, (error, together) in results.items():
            assert error.startswith("EngineError: "), (case, error)
            at_once = any(text in error for text in AT_ONCE)
            assert at_once or "the model was changed after initialize" in error, (case, error)
            assert together, case


def test_a_change_on_one_rank_is_refused_on_all(world2: Any) -> None:
    for error, together in world2.run("scenarios.changes:refuse_a_change_on_one_rank"):
        assert error.startswith("AgreementError: "), error
        assert "down_proj: a forward hook" in error
        assert together


def test_what_is_right_on_a_sharded_model_runs_as_on_a_whole_one(world2: Any) -> None:
    for gaps in world2.run("scenarios.changes:allow_changes", timeout=120):
        assert max(gaps.values()) < 1e-4, gaps


def test_a_mode_of_torch_runs(world2: Any) -> None:
    for gap, count in world2.run("scenarios.changes:in_a_mode_of_torch"):
        assert gap < 1e-4
        assert count > 0


def test_without_the_check_such_changes_are_wrong_without_a_sign(world2: Any) -> None:
    for gaps in world2.run("scenarios.changes:what_a_change_does_unseen"):
        assert min(gaps.values()) > 1e-3, gaps


def test_a_copied_model_is_checked_too(world2: Any) -> None:
    for results in world2.run("scenarios.changes:change_a_copy"):
        assert results["first"] == results["original"] == ""
        assert "down_proj: a forward hook" in results["changed"]


def test_a_gradient_of_a_gradient_is_refused_wherever_it_is_taken(world2: Any) -> None:
    for results in world2.run("scenarios.changes:second_derivatives"):
        for place in ("last hidden states", "embeddings"):
            assert results[place].startswith("EngineError: a gradient of a sharded model was differentiated again")
            assert results[f"{place}, first"] < 1e-5
        assert results["in step"]
