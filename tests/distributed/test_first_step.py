"""What runs in a first step is counted against the plan."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.distributed


def test_a_forward_with_more_or_fewer_collectives_than_planned_is_refused(world2: Any) -> None:
    for results in world2.run("scenarios.first_step:break_forwards"):
        assert len(results) == 5
        for case, (expected, error, together) in results.items():
            assert error.startswith("EngineError: ranks 0, 1, first step: "), (case, error)
            assert expected in error, (case, error)
            assert together, case


def test_a_backward_without_its_collectives_is_refused_before_the_update(world2: Any) -> None:
    for results in world2.run("scenarios.first_step:break_backwards"):
        assert set(results) == {"engine", "by hand", "fused"}
        for case, (expected, error, good) in results.items():
            assert expected in error, (case, error)
            assert good, case


def test_one_rank_that_runs_something_else_stops_all(world2: Any) -> None:
    for error, together in world2.run("scenarios.first_step:break_one_rank"):
        assert error.startswith("AgreementError: "), error
        assert "rank 1: first step: " in error
        assert "rank 0: no error" in error
        assert together


def test_a_module_whose_hooks_are_passed_by_is_refused(world2: Any) -> None:
    for results in world2.run("scenarios.first_step:break_hooks"):
        assert "(experts): " in results["mixtral"]
        assert "(shared output): " in results["deepseek_v2"]


def test_right_programs_are_counted_once_and_run(world2: Any) -> None:
    for results in world2.run("scenarios.first_step:run_right_programs", timeout=120):
        for case, (error, ended, counted) in results.items():
            assert not error, (case, error)
            assert ended or case == "compiled", case  # nothing outside of its graph was there to count
            assert counted or case.startswith("compiled"), case
