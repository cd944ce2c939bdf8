"""Calls on the optimizer of a sharded model are those of the unsharded model, or refused on all ranks."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.distributed

SCENARIO = "scenarios.optimizer_calls"


@pytest.mark.parametrize("bf16", [False, True])
def test_closures_groups_schedules_and_unfrozen_parameters(world2: Any, bf16: bool) -> None:
    for result in world2.run(f"{SCENARIO}:closures_and_groups", bf16=bf16):
        assert result["loss"] < (2e-3 if bf16 else 1e-6)
        assert result["weight"] < (2e-2 if bf16 else 1e-5)
        assert (result["rates"], result["moved"], result["in_step"]) == (True, True, True)


def test_what_can_not_be_right_is_refused_and_training_goes_on(world2: Any) -> None:
    for result in world2.run(f"{SCENARIO}:refusals"):
        assert [name for name, text in result["texts"].items() if not text.startswith("EngineError")] == []
        assert "not in engine.plan" in result["texts"]["foreign"]
        assert "has shape [7, 3]; this rank's part has [32, 32]" in result["texts"]["shape"]
        assert "give this optimizer to initialize" in result["texts"]["unknown"]
        assert "rank 1" in result["texts"]["infinite"]
        assert result["weight"] < 1e-5
        assert result["in_step"]


def test_states_are_copied_pickled_and_taken_from_an_unsharded_run(world2: Any) -> None:
    for result in world2.run(f"{SCENARIO}:states"):
        assert result.pop("in_step")
        assert len(result) == 3
        assert max(result.values()) < 1e-4, result


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("overflow_on", [None, 1])
def test_gradient_scaling_skips_a_step_on_all_ranks(world2: Any, overflow_on: int | None, fused: bool) -> None:
    for result in world2.run(f"{SCENARIO}:scaled", overflow_on=overflow_on, fused=fused):
        last = 1024.0 if overflow_on is None else 512.0
        assert result["steps"] == [("", 1024.0), ("", last), ("", last)]
        assert result["updates"] == (3 if overflow_on is None else 2)
        assert result["weight"] < 1e-4
        assert result["in_step"]


def test_without_their_agreement_the_ranks_scale_differently(world2: Any) -> None:
    first, second = world2.run(f"{SCENARIO}:scaled", overflow_on=1, agree=False)
    assert (first["steps"][1][1], second["steps"][1][1]) == (1024.0, 512.0)


@pytest.mark.parametrize("parallel", [False, True])
def test_penalties_on_weights_are_those_of_the_whole_model(world2: Any, parallel: bool) -> None:
    for result in world2.run(f"{SCENARIO}:penalties", parallel=parallel):
        assert len(result["found"]) == 12
        assert max(result["found"].values()) < 1e-5, result["found"]
        assert result["local"].startswith("AgreementError: step 0: the losses of the ranks")
        assert "sum_over_parameters" in result["local"]
        assert result["right"] == ""
        assert result["in_step"]


@pytest.mark.parametrize("bf16", [False, True])
def test_plain_and_engine_backwards_add_up(world2: Any, bf16: bool) -> None:
    check_mixed(world2.run(f"{SCENARIO}:mixed", tp=2, bf16=bf16), bf16)


def test_plain_backwards_average_over_replicas(world4: Any) -> None:
    check_mixed(world4.run(f"{SCENARIO}:mixed", tp=2), bf16=False)


def check_mixed(results: list[dict[str, Any]], bf16: bool) -> None:
    for result in results:
        assert max(result["gradient"], result["autograd.grad"]) < (0.1 if bf16 else 1e-5)
        assert result["norm"] < (5e-3 if bf16 else 1e-5)
        assert result["weight"] < (2e-2 if bf16 else 1e-5)
        assert (result["steps"], result["in_step"]) == (5, True)


def test_without_its_hooks_a_plain_backward_leaves_addends(world2: Any) -> None:
    for result in world2.run(f"{SCENARIO}:mixed", tp=2, hooks=False):
        assert result["gradient"] > 0.1


def test_one_rank_that_clips_or_steps_alone_is_named_on_all(world2: Any) -> None:
    for result in world2.run(f"{SCENARIO}:alone"):
        assert [text.partition(":")[0] for text in result["texts"]] == ["AgreementError"] * 2
        assert "clip_grad_norm_" in result["texts"][0]
        assert "optimizer.step" in result["texts"][1]
        assert result["in_step"]
