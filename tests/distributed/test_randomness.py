"""Dropout and skipped blocks: the same random numbers on all ranks outside sharded regions, others inside."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.distributed


CLOSE = 1e-5


def test_dropout_outside_sharded_regions_is_that_of_the_unsharded_model(world2: Any) -> None:
    """The ranks start with other random states: those of a group go on with the first one's."""
    results = world2.run("scenarios.randomness:train_with_dropout", name="gpt2", resid_pdrop=0.2, embd_pdrop=0.2)
    for result in results:
        assert result["random"] == 0
        assert result["loss"] == pytest.approx(result["whole"], rel=1e-5)
        assert result["gradients"] < CLOSE


def test_dropout_inside_differs_between_ranks_and_nothing_else_does(world2: Any) -> None:
    results = world2.run("scenarios.randomness:train_with_dropout", name="gpt2", attn_pdrop=0.5, resid_pdrop=0.2)
    assert results[0]["random"] > 0
    assert results[0]["loss"] == results[1]["loss"]
    assert results[0]["replicated"] == results[1]["replicated"]
    assert results[0]["loss"] != pytest.approx(results[0]["whole"], rel=1e-5)


@pytest.mark.parametrize("draws", ["torch", "Python", "numpy"])
def test_all_ranks_skip_the_same_blocks_whichever_library_draws(world2: Any, draws: str) -> None:
    results = world2.run("scenarios.randomness:train_with_skipped_blocks", draws=draws)
    assert results[0]["alone"] != results[1]["alone"], "each rank by itself would skip others"
    for result in results:
        assert result["skipped"] == result["whole"] == results[0]["alone"]
        assert 0 < len(result["skipped"]) < 12
        assert result["cut"] == 24
        assert abs(result["loss"]) < 1e-5
        assert result["gradients"] < CLOSE


def test_dropped_features_inside_sharded_regions_differ_between_ranks(world2: Any) -> None:
    results = world2.run("scenarios.randomness:train_with_dropout", name="t5", dropout_rate=0.5, row="wo")
    assert results[0]["zeros"] != results[1]["zeros"]
    without = world2.run(
        "scenarios.randomness:train_with_dropout", name="t5", dropout_rate=0.5, row="wo", training=False
    )
    assert without[0]["zeros"] == without[1]["zeros"]
    assert results[0]["loss"] == results[1]["loss"]


def test_activation_checkpointing_repeats_the_same_random_numbers(world2: Any) -> None:
    plain = world2.run("scenarios.randomness:train_with_dropout", name="gpt2", attn_pdrop=0.5, resid_pdrop=0.2)
    again = world2.run(
        "scenarios.randomness:train_with_dropout", name="gpt2", attn_pdrop=0.5, resid_pdrop=0.2, checkpointing=True
    )
    assert again[0]["calls"] > plain[0]["calls"]
    assert again[0]["zeros"][: plain[0]["calls"]] == plain[0]["zeros"]
    assert again[0]["replicated"] == pytest.approx(plain[0]["replicated"], rel=1e-6, abs=1e-9)


def test_activation_checkpointing_adds_a_bias_of_experts_once(world2: Any) -> None:
    for result in world2.run("scenarios.randomness:train_with_dropout", name="gpt_oss", checkpointing=True):
        assert result["calls"] == 2  # the row was reached again, to compute what is inside
        assert result["loss"] == pytest.approx(result["whole"], rel=1e-5)
        assert result["gradients"] < CLOSE
