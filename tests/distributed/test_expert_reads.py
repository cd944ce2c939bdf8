"""A weight of sharded experts is read by their own forward only, as that of a sharded linear layer is."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "dbrx"])
def test_a_read_beside_the_experts_is_an_error_and_their_own_forward_is_not(world2: Any, name: str) -> None:
    for result in world2.run("scenarios.expert_reads:read_beside_the_experts", name=name):
        assert "is sharded, and the forward of the model reads its values (sum)" in result["text"]
        assert "experts" in result["text"]
        assert result["same"]
        assert result["outside"]
        assert result["in_step"]
        assert "Experts" in result["class"]
