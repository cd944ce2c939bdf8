"""Activation checkpointing recomputes the operations of the forward, whatever a checkpointed layer begins with."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_layer_that_begins_with_column_parallel_linears_is_recomputed(world2: Any, reentrant: bool) -> None:
    for result in world2.run("scenarios.checkpointing:post_norm_layers", reentrant=reentrant):
        assert result["far"] < 1e-5
        assert result["in_step"]
