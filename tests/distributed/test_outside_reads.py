"""A loss that reads a part of a parameter outside of the model's forward is refused before its backward."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.distributed

SCENARIO = "scenarios.outside_reads"


def test_penalties_and_other_reads_are_refused_before_a_gradient_changes(world2: Any) -> None:
    for result in world2.run(f"{SCENARIO}:refused"):
        assert len(result["texts"]) == 13
        for name, text in result["texts"].items():
            assert text.startswith("EngineError: backward: the loss reads "), (name, text)
            assert "engine.sum_over_parameters" in text
        assert "up_proj.weight outside of a forward of the model (" in result["texts"]["one square"]
        assert "reads lm_head.weight" in result["texts"]["the weight of the head"]
        assert result["no gradients"]
        assert result["weight"] < 1e-5
        assert result["in_step"]


def test_a_norm_whose_gradient_the_ranks_add_up_is_refused_too(world2: Any) -> None:
    for result in world2.run(f"{SCENARIO}:tokens_sharded"):
        for case in ("added up", "by itself"):
            assert "would be added up over the 2 ranks" in result[case], case
        assert result["replicated"] == ""
        assert result["in_step"]


def test_legal_losses_have_the_gradients_of_the_unsharded_model(world2: Any) -> None:
    for result in world2.run(f"{SCENARIO}:legal"):
        assert len(result["gaps"]) == 10
        autocast = result["gaps"].pop("autocast")
        assert autocast < 5e-2  # bfloat16 rounds the addends of two ranks
        assert max(result["gaps"].values()) < 1e-5, result["gaps"]
        assert result["in_step"]
