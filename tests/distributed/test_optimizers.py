"""Optimizers update slices only if they are elementwise; others update whole tensors, or are refused."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.distributed


GATHERS = {
    "muon": 1,
    "config muon": 1,
    "adafactor": 1,
    "lamb": 1,
    "signs": 0,
    "adamw": 0,
    "lion": 0,
    "uncorrected": 0,
}  # in each update


@pytest.mark.parametrize("name", sorted(GATHERS))
def test_an_update_is_that_of_the_unsharded_model_to_the_bit(world2: Any, name: str) -> None:
    for result in world2.run("scenarios.optimizers:update", name=name):
        assert result["different"] == []
        assert result["calls"] == ["all_reduce", *["all_gather"] * GATHERS[name]] * 3  # the norm, then the tensors
        assert result["own"]
        assert result["in_step"]


@pytest.mark.parametrize("name", ["muon", "adafactor", "lamb"])
def test_an_update_of_slices_differs(world2: Any, name: str) -> None:
    """Without the gather the update is wrong, and the comparison above sees it."""
    for result in world2.run("scenarios.optimizers:update", name=name, gather=False):
        assert result["different"]


def test_an_optimizer_that_runs_the_model_itself_is_refused(world2: Any) -> None:
    for result in world2.run("scenarios.optimizers:refused"):
        assert result["type"] == "UnsupportedError"
        assert "LBFGS" in result["text"]
        assert "NaN or infinite" in result["tried"]["GlobalNorm"]
        assert "draws random numbers" in result["tried"]["Noise"]
        assert result["in_step"]
