"""Activation checkpointing recomputes the operations of the forward, whatever a checkpointed layer begins with."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(("family", "sequence_parallel"), [("bert", False), ("t5", False), ("t5", True)])
def test_a_checkpointed_layer_repeats_the_operations_of_its_forward(
    world2: Any, family: str, reentrant: bool, sequence_parallel: bool
) -> None:
    for result in world2.run(
        "scenarios.checkpointing:checkpointed_layers",
        family=family,
        reentrant=reentrant,
        sequence_parallel=sequence_parallel,
    ):
        for what in ("loss", "gradient", "norm", "weight"):
            assert result[what] < 1e-5, (what, result[what], result["where"])
        assert result["cut"] > 0


def test_selective_checkpointing_keeps_products_as_they_were_before_the_sum(world2: Any) -> None:
    assert max(world2.run("scenarios.checkpointing:selective")) < 1e-5
    assert min(world2.run("scenarios.checkpointing:selective", seen=False)) > 1e-3
