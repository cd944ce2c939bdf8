"""The collectives that the forecast counts are those that are sent: how many, and of what size."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

pytestmark = pytest.mark.distributed

FAMILIES = (
    "llama",
    "llama_tied",
    "llama_uneven",
    "qwen3",
    "gpt2",
    "gptj",
    "gpt_neox",
    "mixtral",
    "gpt_oss",
    "llama4",
    "dbrx",
    "qwen2_moe",
    "deepseek_v3",
    "falcon_new",
)


@pytest.mark.parametrize(("world", "tp"), [(2, 2), (4, 2)])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_forecast_collectives_are_those_that_are_sent(worlds: Any, family: str, world: int, tp: int) -> None:
    if world == 4 and family not in ("llama", "qwen3", "mixtral"):
        pytest.skip("two groups send what one does, and average: a few families are enough")
    for result in worlds[world].run("scenarios.cost:count_step", name=family, tp=tp):
        assert Counter(map(tuple, result["seen_passes"])) == Counter(map(tuple, result["passes"]))
        assert result["alone"] == 0
        # The second micro batch's own backward is among what the update is counted with.
        forward = Counter(map(tuple, result["passes"]))
        seen = Counter(map(tuple, result["seen_update"]))
        foreseen = Counter(map(tuple, result["update"]))
        assert foreseen <= seen
        assert seen - foreseen <= forward


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_a_llama_issues_four_a_layer_and_none_of_the_size_of_its_logits(worlds: Any, layers: int) -> None:
    for result in worlds[2].run("scenarios.cost:count_step", name="llama", tp=2, num_hidden_layers=layers):
        seen = result["seen_passes"]
        assert result["layers"] == layers
        assert len(seen) == 4 * layers + 3 <= 4 * layers + 5
        assert max(elements for _, elements in seen) < result["logits"]
        sent = sum(elements for _, elements in seen)
        assert sent <= 1.02 * sum(elements for _, elements in result["passes"])


def test_one_rank_sends_nothing(worlds: Any) -> None:
    for result in worlds[2].run("scenarios.cost:count_step", name="llama", tp=1):
        assert result["passes"] == result["seen_passes"] == []
        assert result["alone"] == 0
