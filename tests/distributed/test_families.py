"""Every family trains sharded as it does unsharded: losses, gradients, their norm and the weights, in fp32."""

from __future__ import annotations

from typing import Any

import pytest

from families import catalogue

pytestmark = pytest.mark.distributed


CLOSE = 1e-5


FAMILIES = list(catalogue.FAMILIES)


COARSE = ("stablelm_qk_layernorm",)  # gradients of its norms a head are so small that fp32 is too coarse to tell


NOT_SEPARABLE = ("clip",)  # its loss contrasts all samples of a batch, so it is not the mean over its parts


SEPARABLE = [name for name in FAMILIES if name not in NOT_SEPARABLE]


def assert_exact(results: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(results):
        for what in ("loss", "gradient", "norm", "weight"):
            assert result[what] < CLOSE, (rank, what, result[what], result["where"])
        assert result["cut"] > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_over_four_ranks(world4: Any, name: str) -> None:
    assert_exact(world4.run("scenarios.families:train_family", name=name, tp=4, double=name in COARSE))


@pytest.mark.parametrize("name", SEPARABLE)
def test_over_two_ranks_and_two_replicas(world4: Any, name: str) -> None:
    assert_exact(world4.run("scenarios.families:train_family", name=name, tp=2))


@pytest.mark.parametrize("name", SEPARABLE)
def test_over_three_ranks_and_two_replicas(world6: Any, name: str) -> None:
    assert_exact(world6.run("scenarios.families:train_family", name=name, tp=3))


# With two replicas, every check of one replica is made too; so one replica is for what can't have two.
@pytest.mark.parametrize("name", [*NOT_SEPARABLE, "llama"])
def test_over_two_ranks(world2: Any, name: str) -> None:
    assert_exact(world2.run("scenarios.families:train_family", name=name, tp=2, steps=5))


@pytest.mark.parametrize("name", [*NOT_SEPARABLE, "llama"])
def test_over_three_ranks(world3: Any, name: str) -> None:
    assert_exact(world3.run("scenarios.families:train_family", name=name, tp=3, steps=5))


def test_the_comparison_detects_one_wrong_value_of_one_shard(world2: Any) -> None:
    for result in world2.run("scenarios.families:train_broken_llama"):
        assert result["gradient"] > 100 * CLOSE
        assert result["weight"] > 100 * CLOSE


# Where the whole is held by several ranks, or unevenly, each has its part: what the ranks hold besides is small.
BUSY = {"llama": 0.28, "llama_kv1": 0.30, "llama_kv2": 0.30, "llama_uneven": 0.34, "mixtral": 0.28, "gpt2": 0.35}


@pytest.mark.parametrize("name", BUSY)
def test_every_rank_holds_its_share_and_little_more(world4: Any, name: str) -> None:
    for result in world4.run("scenarios.families:train_family", name=name, tp=4, steps=1):
        assert result["local_elements"] <= BUSY[name] * result["elements"]


@pytest.mark.parametrize("attention", ["sdpa"])
@pytest.mark.parametrize("name", ["llama_kv2", "gpt2", "bert", "t5"])
def test_with_fused_attention(world2: Any, name: str, attention: str) -> None:
    assert_exact(world2.run("scenarios.families:train_family", name=name, tp=2, steps=2, attn_implementation=attention))


@pytest.mark.parametrize("name", ["llama", "llama_uneven", "gpt2", "gemma2"])
def test_a_loss_computed_outside_the_model_gets_full_logits(world2: Any, name: str) -> None:
    for result in world2.run("scenarios.families:loss_from_logits", name=name):
        assert result["losses"][0] == pytest.approx(result["losses"][1], rel=1e-5)
        assert result["logits"] < 1e-4
        assert result["gradients"] < CLOSE
        assert result["whole_without_gradients"]
        assert result["refused_with_labels"].startswith("MissingOutputError: the logits of a training")


ADAPTERS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "mixtral": ["q_proj", "v_proj", "o_proj", "gate"],
}


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_over_sharded_layers(world2: Any, name: str, sequence_parallel: bool) -> None:
    assert_exact(
        world2.run(
            "scenarios.families:train_adapters",
            name=name,
            targets=ADAPTERS[name],
            sequence_parallel=sequence_parallel,
        )
    )
