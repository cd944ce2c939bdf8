"""All ranks of a TP group run the same forwards, on the same batch, with the same random numbers; or all raise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.distributed

NAMED = {
    "values": "input input_ids",
    "length": "input input_ids",
    "module": "input input_ids",
    "labels": "input labels",
    "one label less": "input labels",
    "a mask": "input attention_mask",
    "a flag": "input output_attentions",
    "embeddings": "input inputs_embeds",
    "gradients": "mode",
    "evaluation": "mode",
    "autocast": "mode",
    "frozen": "trainable parameters",
    "generate": "call",
    "generated tokens": "input max_new_tokens",
}


def test_ranks_that_call_the_model_differently_raise_the_same_error(world2: Any) -> None:
    results = world2.run("scenarios.call_check:different_calls")
    for result in results:
        assert set(result["errors"]) == set(NAMED)
        for name, error in result["errors"].items():
            assert error["type"] == "AgreementError", (name, error)
            assert NAMED[name] in error["fields"], (name, error)
            assert error["text"] == results[0]["errors"][name]["text"]
            assert "step 2" in error["text"]
        assert "[2, 12]" in result["errors"]["length"]["text"]
        assert "[2, 15]" in result["errors"]["length"]["text"]
        assert result["collective"]
        assert result["after"]["type"] is None, "a corrected call goes on"


@pytest.mark.parametrize("updates", [0, 2])  # before the first update the ranks have more to compare
def test_a_step_that_one_rank_leaves_out_is_an_error_on_all(world2: Any, updates: int) -> None:
    for result in world2.run("scenarios.call_check:a_step_that_one_rank_leaves_out", updates=updates):
        assert result["error"]["type"] == "AgreementError", result["error"]
        assert "forward" in result["error"]["text"]
        assert "step" in result["error"]["text"]
        assert result["collective"]
        assert result["after"]["type"] is None, result["after"]


@pytest.mark.parametrize("by_hand", [False, True])
def test_an_option_of_the_optimizer_that_differs_is_an_error_before_anything_is_updated(
    world2: Any, by_hand: bool
) -> None:
    for result in world2.run("scenarios.call_check:other_options", by_hand=by_hand):
        assert result["error"]["type"] == "AgreementError", result["error"]
        assert result["error"]["fields"] == ["lr of group 0 of the optimizer"]
        assert "rank 0 has 0.01" in result["error"]["text"]
        assert result["unchanged"]
        assert result["collective"]
        assert result["after"]["type"] is None, result["after"]


def test_two_calls_of_any_pair_are_an_error_on_both_ranks(world2: Any, tmp_path: Path) -> None:
    """None of them may wait for the other, or send what the other takes for its own: gloo aborts the process then."""
    for result in world2.run("scenarios.call_check:pairs_of_calls", folder=str(tmp_path)):
        assert len(result["errors"]) == 66
        assert set(result["errors"].values()) == {"AgreementError"}, result["errors"]
        assert result["collective"]
        assert result["after"]["type"] is None, result["after"]


def test_calls_of_one_meaning_raise_nothing(world2: Any) -> None:
    for result in world2.run("scenarios.call_check:equal_calls"):
        assert set(result["errors"].values()) == {""}
        assert result["collective"]


def test_ranks_that_know_other_groups_compare_their_calls(world4: Any) -> None:
    assert all(world4.run("scenarios.call_check:among_other_groups"))


@pytest.mark.parametrize(("every", "raising"), [(1, [1, 1, 1, 1]), (2, [0, 1, 0, 1]), (0, [0, 0, 0, 0])])
def test_every_so_many_forwards_are_compared(world2: Any, every: int, raising: list[int]) -> None:
    """The negative control: without the comparison nothing else finds the difference."""
    for result in world2.run("scenarios.call_check:unchecked", every=every):
        assert result["types"] == ["AgreementError" if one else None for one in [*raising, *raising]]


def test_dropout_is_the_same_on_all_ranks_whatever_single_ranks_draw(world2: Any) -> None:
    for result in world2.run("scenarios.call_check:drifting"):
        assert result == {"different masks": 0, "repeated masks": 0, "apart": 0}


def test_without_shared_states_every_disturbance_from_the_first_one_on_is_seen(world2: Any) -> None:
    """The negative control of the test before."""
    assert world2.run("scenarios.call_check:drifting", broken=True)[1]["different masks"] >= 3


def test_the_callers_random_states_come_back(world2: Any) -> None:
    for result in world2.run("scenarios.call_check:restored"):
        assert all(result.values()), result


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_model_draws_its_numbers_again(world2: Any, reentrant: bool) -> None:
    for result in world2.run("scenarios.call_check:checkpointed", reentrant=reentrant):
        assert result["apart"] <= 1e-6 * result["size"]


def test_sampled_tokens_are_the_same_on_all_ranks(world2: Any) -> None:
    results = world2.run("scenarios.call_check:sampled")
    assert results[0] == results[1]
    assert results[0]["drawn"][0] != results[0]["drawn"][1] != results[0]["greedy"]
    assert results[0]["control"] == "AgreementError", "the class's own generate draws on each rank by itself"
