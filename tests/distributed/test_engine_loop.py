"""The engine takes the loops and the names of DeepSpeed's: each trains as the unsharded model, or is refused."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.distributed


def test_every_loop_trains_as_the_unsharded_model(world4: Any) -> None:
    for result in world4.run("scenarios.engine_loop:loops"):
        assert result["in_step"]
        for name, found in result["found"].items():
            assert found["norm"] < 1e-5, (name, found)
            assert found["logits"] < 1e-5, (name, found)
            assert found["steps"] == 3
            assert found["was"]


def test_calls_out_of_order_are_refused_and_training_goes_on(world4: Any) -> None:
    for result in world4.run("scenarios.engine_loop:refusals"):
        assert all(text.startswith("EngineError") for text in result["texts"].values()), result["texts"]
        assert result["steps"] == 1
        assert result["in_step"]


def test_the_engine_is_a_module_that_answers_for_its_run(world4: Any) -> None:
    for rank, result in enumerate(world4.run("scenarios.engine_loop:names")):
        assert result["module"]
        assert result["prefix"] == {"module"}
        assert result["restored"]
        assert result["losses"][-1] < result["losses"][0]
        assert result["evaluated"] < result["losses"][0]
        assert result["modes"] == (False, False, False, True)
        assert result["same"]
        assert result["config"] == 2
        assert result["loader"]
        assert result["epoch"] == 2
        assert result["ranks"] == (rank, 4, 2, 2)
        assert result["batch"] == (12, 2, 3)
        assert result["answers"] == (0, False, 2, [0.05])
        assert result["generated"] == (2, 14)
        assert not result["missing"]
        assert result["in_step"]
