"""Gradients are means over the data-parallel ranks, of every parameter, however they are sent and who uses what."""

from __future__ import annotations

from typing import Any

import pytest

ROUNDING = 1e-7  # the gradients are about 0.01

# In the updates of `scenarios.gradient_buckets.STEPS`: three or more buckets and the flags, then what was used again
# after an update without it, which is sent when the backward has ended.
SENT = [4, 4, 5, 5, 4, 5, 5, 4]
LATE_ONCE = [4, 5, 5, 5, 4, 5, 5, 4]  # a weight of two checkpoints gets a second addend; after that it waits for it
TO_OWNERS = [5, 5, 7, 5, 4, 6, 6, 5]  # buckets of one owner each
CASES: dict[str, tuple[dict[str, Any], list[int] | None]] = {
    "plain": ({"recompute": ""}, SENT),
    "checkpointing": ({"recompute": "flat"}, SENT),
    "reentrant checkpointing": ({"recompute": "reentrant"}, LATE_ONCE),
    "accumulation": ({"recompute": "", "micro_batches": 2}, SENT),
    "bf16": ({"recompute": "", "bf16": True}, SENT),
    "ZeRO 2": ({"recompute": "", "stage": 2}, TO_OWNERS),
    "ZeRO 2, accumulation": ({"recompute": "reentrant", "stage": 2, "micro_batches": 2}, None),
}


@pytest.mark.parametrize("case", CASES)
def test_every_gradient_is_the_mean(world2: Any, case: str) -> None:
    arguments, sent = CASES[case]
    for result in world2.run("scenarios.gradient_buckets:means", **arguments):
        assert result["worst"] < ROUNDING
        assert result["wrong"] == []
        assert result["in_step"]
        copies = [1] if "ZeRO" in case else [2]
        assert all(holders == copies for holders in result["holders"])
        assert result["had_gradients"], "a hook of the user on a parameter did not see its gradient"
        if sent is not None:
            assert result["sent"] == sent
        # The first update knows no parameter that is used; the next one sends all buckets but the last in its backward.
        if case != "reentrant checkpointing" and sent is not None:
            assert result["early"][:2] == [0, 2]


def test_a_backward_that_raises_can_be_dropped_and_not_used(world2: Any) -> None:
    for result in world2.run("scenarios.gradient_buckets:interrupted"):
        backward, step, by_hand = result["refused"]
        assert "engine.zero_grad()" in backward
        assert step.startswith("EngineError")
        assert by_hand.startswith("EngineError")
        assert result["equal"]
        assert result["in_step"]


def test_a_plain_backward_does_not_add_to_gradients_that_are_on_their_owners(world2: Any) -> None:
    for mixed, *apart in world2.run("scenarios.gradient_buckets:mixed"):
        assert "engine.zero_grad()" in mixed
        assert apart == ["", ""]


def test_partial_gradients_of_tensor_parallel_ranks_are_sums_and_means(world4: Any) -> None:
    for result in world4.run("scenarios.gradient_buckets:beside_tensor_parallelism"):
        assert result["equal"] == [True] * 3  # in buckets and with ZeRO 2, to the bit
        for norms in result["norms"][1:]:
            assert norms == pytest.approx(result["norms"][0], rel=1e-12)
        at_once, in_buckets, _ = result["calls"]
        assert in_buckets == at_once + 3
        assert result["in_step"]
