"""Sharded training equals unsharded training, in fp32, to 1e-5: losses, gradients, norm, weights."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.distributed

CLOSE = 1e-5
LAYERS = 2


def assert_equal_training(results: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(results):
        for what in ("loss", "gradient", "norm", "weight"):
            assert result[what] < CLOSE, (rank, what, result[what], result.get("where"))
        assert result["steps"] == 5
        assert result["losses"][0] != result["losses"][-1]


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
@pytest.mark.parametrize(("world", "tp"), [(2, 2), (4, 2), (4, 4)])
def test_a_sharded_model_trains_as_the_whole_one(worlds: Any, family: str, world: int, tp: int) -> None:
    results = worlds[world].run("compare", family=family, tp=tp, clipping=0.5)
    assert_equal_training(results)
    assert results[0]["cut"] == LAYERS * (10 if family == "qwen2" else 7)
