"""A copy of a parameter or a buffer that changes on one rank by one bit is found, and named on all ranks."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    ("what", "bf16", "name"),
    [
        ("copy", False, "model.norm.weight"),
        ("buffer", False, "model.rotary_emb.inv_freq (buffer)"),
        ("master", True, "model.norm.weight (fp32 master)"),
    ],
)
def test_copies_in_a_tp_group_are_compared(world2: Any, what: str, bf16: bool, name: str) -> None:
    results = world2.run("scenarios.replica_check:train_changed", what=what, bf16=bf16)
    for result in results:
        assert [error["type"] for error in result["errors"]] == [None, None, None, "AgreementError"]
        error = result["errors"][-1]
        assert name in error["fields"]
        assert error["text"] == results[0]["errors"][-1]["text"]
        assert "step 4" in error["text"]
        assert "rank 1 has" in error["text"]
        assert result["collective"]


@pytest.mark.parametrize("what", ["copy", "shard"])
def test_replicas_of_the_model_are_compared(world4: Any, what: str) -> None:
    name = {"copy": "model.norm.weight", "shard": "model.layers.1.mlp.up_proj.weight"}[what]
    for result in world4.run("scenarios.replica_check:train_changed", what=what):
        error = result["errors"][-1]
        assert error["type"] == "AgreementError"
        assert name in error["fields"]
        assert "rank 3" in error["text"]
        assert result["collective"]


@pytest.mark.parametrize(("what", "every"), [("copy", 0), ("copy", 5), ("", 1)])
def test_nothing_is_raised_without_a_difference_or_without_the_check(world2: Any, what: str, every: int) -> None:
    """The negative control: nothing else finds a bit."""
    for result in world2.run("scenarios.replica_check:train_changed", what=what, every=every):
        assert [error["type"] for error in result["errors"]] == [None] * 4
