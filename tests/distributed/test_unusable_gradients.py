"""A NaN or infinite loss or gradient, and unequal copies of a gradient, stop all ranks before anything is updated."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.distributed

SPOILED = {
    "nan loss": "loss nan in micro batch 1 of 1",
    "infinite loss": "loss inf in micro batch 1 of 1",
    "constant": "loss inf in micro batch 1 of 1",
    "nan gradient of a shard": "gradient of model.layers.0.mlp.up_proj.weight",
    "nan gradient of a copy": "gradient of model.norm.weight",
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_loss_or_gradient_that_is_not_finite_stops_all_ranks(world2: Any, how: str) -> None:
    results = world2.run("scenarios.unusable_gradients:step_with", how=how)
    for result in results:
        assert result["error"]["type"] == "EngineError"
        assert result["error"]["text"] == results[0]["error"]["text"]
        assert "step 2" in result["error"]["text"]
        assert any("rank 1" in line and SPOILED[how] in line for line in result["error"]["text"].splitlines())
        assert result["kept"]
        assert result["finite"]
        assert (result["count"], result["steps"], result["collective"]) == (1, (3, 0), True)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_of_one_replica_stops_all_replicas(world4: Any, accumulation: int) -> None:
    results = world4.run("scenarios.unusable_gradients:step_with", how="constant", accumulation=accumulation)
    for result in results:
        assert result["error"]["type"] == "EngineError"
        assert result["error"]["text"] == results[0]["error"]["text"]
        assert f"rank 3: loss inf in micro batch {accumulation} of {accumulation}" in result["error"]["text"]
        assert result["kept"]


def test_such_an_update_is_skipped_or_ignored_where_that_was_said(world2: Any) -> None:
    """Ignoring is the negative control: without the check every weight is NaN."""
    for result in world2.run("scenarios.unusable_gradients:step_with", how="nan loss", on_nonfinite="skip"):
        assert (result["error"], result["kept"], result["finite"], result["steps"]) == (None, True, True, (4, 1))
    for result in world2.run("scenarios.unusable_gradients:step_with", how="nan loss", on_nonfinite="ignore"):
        assert (result["error"], result["kept"], result["finite"], result["steps"]) == (None, False, False, (4, 0))


@pytest.mark.parametrize("how", ["clipped by its own norm", "one copy scaled"])
def test_copies_of_a_gradient_that_differ_are_found_in_the_norms_all_reduce(world2: Any, how: str) -> None:
    results = world2.run("scenarios.unusable_gradients:step_with", how=how)
    for result in results:
        assert result["error"]["type"] == "AgreementError"
        assert result["error"]["text"] == results[0]["error"]["text"]
        assert "norm of the gradient of model.norm.weight" in result["error"]["fields"]
        assert result["kept"]
        assert result["collective"]


@pytest.mark.parametrize("how", ["", "rounding"])
def test_good_gradients_and_rounding_raise_nothing(world2: Any, how: str) -> None:
    for result in world2.run("scenarios.unusable_gradients:step_with", how=how):
        assert (result["error"], result["kept"], result["steps"]) == (None, False, (4, 0))
