"""`generate` of a sharded model gives the unsharded model's tokens on all ranks, or all ranks raise."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {}),
        ("llama", {"lora": True}),
        ("llama", {"sequence_parallel": True}),
        ("gpt2", {}),
        ("t5", {}),
        ("t5", {"sequence_parallel": True}),
    ],
)
def test_every_way_to_generate_gives_the_unsharded_models_tokens(
    world2: Any, name: str, options: dict[str, Any]
) -> None:
    for result in world2.run("scenarios.generation:generated", name=name, **options):
        assert result == {"before": [], "in training mode": [], "after a step": []}


def test_replicas_generate_other_prompts_and_lengths(world4: Any) -> None:
    results = world4.run("scenarios.generation:replicas")
    for result in results:
        assert result["same"] == [True, True, True]
        assert result["in_step"]
    assert sorted(result["shape"][1] for result in results) == [6, 6, 12, 12]


@pytest.mark.parametrize("lora", [False, True])
def test_ranks_that_would_stop_apart_raise_together(world2: Any, lora: bool) -> None:
    """Without the comparison behind the last token these calls end in a hang, or in other tokens on each rank."""
    results = world2.run("scenarios.generation:apart", lora=lora)
    for rank, result in enumerate(results):
        for name in ("lengths", "last token"):
            assert result["errors"][name]["type"] == "AgreementError", (name, result["errors"][name])
        assert result["errors"]["lengths"]["fields"] == ["call"]
        assert result["errors"]["last token"]["fields"] == ["input tokens"]
        assert result["errors"]["raised"]["type"] == ("ValueError" if rank else "AgreementError")
        assert result["bad"] == "EngineError"
        assert result["in_step"]
    assert results[0]["timed"] == results[1]["timed"]
    assert 5 <= len(results[0]["timed"][0]) < 40


def test_without_the_comparison_at_the_end_the_ranks_return_other_tokens(world2: Any) -> None:
    """The negative control of the test before."""
    for first, second in world2.run("scenarios.generation:without_the_end"):
        assert first != second
