"""Adapters with dropout: masks of whole features are equal on all ranks, and those of sharded features are not."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    ("targets", "attention", "kind", "masks"),
    [
        ("all-linear", 0.2, "", 16),
        ("all-linear", 0.2, "copy", 16),
        (["v_proj", "o_proj", "down_proj"], 0.2, "checkpointing", 8),
        (["o_proj", "down_proj"], 0.2, "sequence parallel", 6),
    ],
)
def test_a_step_is_that_of_the_unsharded_model_with_the_same_masks(
    world2: Any, targets: Any, attention: float, kind: str, masks: int
) -> None:
    arguments = {"targets": targets, "attention": attention, "kind": kind}
    for result in world2.run("scenarios.adapter_dropout:same_masks", **arguments):
        assert result["masks"] == masks
        assert result["gap"] < 1e-5
        assert result["gradients"] < 1e-4
        assert result["in_step"]


def test_without_its_hooks_the_masks_are_wrong(world2: Any) -> None:
    arguments = {"targets": "all-linear", "attention": 0.2, "hooks": False}
    for result in world2.run("scenarios.adapter_dropout:same_masks", **arguments):
        assert result["gap"] is None
        assert result["in_step"]
