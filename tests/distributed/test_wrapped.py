"""Sharded models inside of wrappers and beside each other are right, and are not sharded a second time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("engine_steps", [False, True])
def test_ddp_around_a_sharded_model_trains_as_the_unsharded_one(world4: Any, engine_steps: bool) -> None:
    for result in world4.run("scenarios.wrapped:data_parallel", engine_steps=engine_steps):
        assert result["gap"] < 1e-5
        assert result["alone"] > 1e-3  # a replica alone trains to other weights


def test_fully_shard_is_refused_by_name(world4: Any, tmp_path: Path) -> None:
    for result in world4.run("scenarios.wrapped:fully_sharded", folder=str(tmp_path)):
        assert result["call"].startswith("EngineError: fully_shard: this model is sharded")
        assert result["trained"] == ""  # the refusal changed nothing
        assert "fully_shard was applied" in result["forward"]
        assert result["state_dict"].startswith("EngineError")
        assert result["save"].startswith("EngineError")
        assert result["in_step"]


def test_wrappers_over_the_ranks_of_a_tp_group_are_refused_at_their_call(world2: Any) -> None:
    for result in world2.run("scenarios.wrapped:over_the_world"):
        assert len(result["texts"]) == 12
        assert [name for name, text in result["texts"].items() if not text.startswith("EngineError")] == []
        assert "one data-parallel rank" in result["texts"]["model"]
        assert max(result["gap"], result["averaged"]) < 1e-5
        assert result["without"] > 1e-3  # the control: each rank gets the first one's parts
        assert result["in_step"]


def test_two_models_of_different_sizes_train_in_one_process(world4: Any) -> None:
    for result in world4.run("scenarios.wrapped:two_sizes"):
        assert max(result["gaps"]) < 1e-5
        assert result["in_step"]


def test_what_is_sharded_is_not_sharded_again(world2: Any) -> None:
    for result in world2.run("scenarios.wrapped:given_again"):
        assert result.pop("replicated") == ""  # a replicated module may be shared
        assert "is already initialized" in result.pop("model")
        assert [name for name, text in result.items() if "that initialize has sharded" not in text] == []
        assert len(result) == 5
