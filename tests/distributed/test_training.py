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


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "phi3"])
@pytest.mark.parametrize(("world", "tp"), [(2, 2), (4, 2), (4, 4)])
def test_a_sharded_model_trains_as_the_unsharded_one(worlds: Any, family: str, world: int, tp: int) -> None:
    results = worlds[world].run("scenarios.training:train_beside_reference", family=family, tp=tp, clipping=0.5)
    assert_equal_training(results)
    # The embedding and the head beside the layers.
    assert results[0]["cut"] == LAYERS * {"qwen2": 10, "phi3": 4}.get(family, 7) + 2


SOURCES = {
    "created": 3,
    "created-from-call": 7,
    "mpu": 4,
    "mpu-strided": 4,
    "mpu-without-dp-strided": 4,
    "megatron-call-strided": 6,
    "call-group": 9,
    "call-group-strided": 9,
    "call-group-and-section-strided": 11,
    "call-and-mpu-and-section": 8,
    "config-group-strided": 3,
    "mesh": 3,
    "mesh-strided": 3,
}


@pytest.mark.parametrize("source", SOURCES)
def test_the_given_group_shards_and_the_orthogonal_one_averages(world4: Any, source: str) -> None:
    results = world4.run("scenarios.training:train_beside_reference", source=source, tp=2, optimizer="sgd")
    assert_equal_training(results)
    strided = source.endswith("strided")
    for rank, result in enumerate(results):
        assert result["row"] == SOURCES[source]
        assert result["tp_ranks"] == ((rank % 2, rank % 2 + 2) if strided else (rank // 2 * 2, rank // 2 * 2 + 1))
        assert result["dp_ranks"] == ((rank // 2 * 2, rank // 2 * 2 + 1) if strided else (rank % 2, rank % 2 + 2))


def test_row_2_trains_unsharded_and_averages_over_the_mpus_group(world4: Any) -> None:
    results = world4.run("scenarios.training:train_beside_reference", source="row2-strided", tp=2, optimizer="sgd")
    assert_equal_training(results)
    for rank, result in enumerate(results):
        assert (result["row"], result["cut"]) == (2, 0)
        assert result["dp_ranks"] == (rank // 2 * 2, rank // 2 * 2 + 1)


@pytest.mark.parametrize("world", [2, 4])
def test_a_tp_size_of_1_is_plain_data_parallelism(worlds: Any, world: int) -> None:
    results = worlds[world].run("scenarios.training:train_beside_reference", tp=1, clipping=0.5)
    assert_equal_training(results)
    assert results[0]["cut"] == 0


@pytest.mark.parametrize(
    "options",
    [
        {"accumulation": 3, "clipping": 0.3},
        {"tie_word_embeddings": True},
        {"attn_implementation": "sdpa"},
        {"attn_implementation": "sdpa", "num_key_value_heads": 8},
        {"attention_bias": True, "mlp_bias": True},
        {"base": True},
        {"base": True, "family": "qwen2"},
        {"base": True, "family": "mistral"},
        {"checkpointing": True},
        {"optimizer": "adam"},
        {"head_dim": 16},
        {"family": "mistral", "sliding_window": 4},
    ],
    ids=lambda options: ",".join(f"{key}={value}" for key, value in options.items()),
)
def test_variants_train_as_the_unsharded_model(world4: Any, options: dict[str, Any]) -> None:
    results = world4.run("scenarios.training:train_beside_reference", tp=2, **options)
    assert_equal_training(results)
    assert all(result["tied"] == ("tie_word_embeddings" in options) for result in results)


@pytest.mark.parametrize("tp", [2, 4])
def test_a_step_takes_four_collectives_a_layer_and_three_for_the_vocabulary(world4: Any, tp: int) -> None:
    """One all-reduce each way for attention, one each way for the MLP; the embedding, the head, the loss."""
    results = world4.run("scenarios.training:train_beside_reference", tp=tp, steps=1, source="created", accumulation=2)
    for result in results:
        kinds = {name for name, _, _ in result["calls"]}
        # The first forward also compares inputs over the TP group, through all_gather.
        assert kinds <= {"all_reduce", "all_gather"}
        tokens = 2 * 12
        reduced = [call[1:] for call in result["calls"] if call[0] == "all_reduce"]
        assert reduced.count((tp, tokens * 32)) == (4 * LAYERS + 2) * 2
        # Of the loss: each rank's largest logit, its sum of exponentials, and the target's logit.
        assert result["calls"].count(("all_gather", tp, 3 * tokens * tp)) == 2
        # Data-parallel averaging: one flag vector and one bucket, over the other group only.
        assert len(reduced) == (4 * LAYERS + 2) * 2 + (2 if tp == 2 else 0)
        assert all(size > 1 for size, _ in reduced)
        # Nothing is as large as the logits, or a rank's part of them.
        assert tp == 2 or all(numbers <= tokens * 32 for _, numbers in reduced)


def test_checkpointing_repeats_only_the_forward(world4: Any) -> None:
    results = world4.run("scenarios.training:train_beside_reference", tp=4, steps=1, checkpointing=True)
    layers = [call for call in results[0]["calls"] if call == ("all_reduce", 4, 2 * 12 * 32)]
    assert 5 * LAYERS + 2 <= len(layers) <= 6 * LAYERS + 2


@pytest.mark.parametrize(
    ("how", "seen", "options"),
    [
        ("no-input-gradient-sum", "gradient", {}),
        ("averages-over-tp", "gradient", {}),
        ("counts-replicated-per-rank", "norm", {}),
        ("bias-per-rank", "loss", {"attention_bias": True}),
    ],
)
def test_the_comparison_detects_a_broken_run(world4: Any, how: str, seen: str, options: dict[str, Any]) -> None:
    """Negative controls: each way of being wrong is far above the tolerance."""
    results = world4.run(
        "scenarios.training:train_beside_reference", tp=2, break_with=how, steps=2, clipping=0.5, **options
    )
    assert max(result[seen] for result in results) > 100 * CLOSE
