"""Every family trains sharded as it does whole: losses, gradients, their norm and the weights, in real processes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.distributed

sys.path.insert(0, str(Path(__file__).parents[1] / "families"))

import catalogue  # noqa: E402 - of the folder above

CLOSE = 1e-5
FAMILIES = list(catalogue.FAMILIES)
NOT_SEPARABLE = ("clip",)  # its loss contrasts all samples of a batch, so it is not the mean over its parts


def assert_exact(results: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(results):
        for what in ("loss", "gradient", "norm", "weight"):
            assert result[what] < CLOSE, (rank, what, result[what], result["where"])
        assert result["cut"] > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_over_two_ranks(world2: Any, name: str) -> None:
    assert_exact(world2.run("family", name=name, tp=2))


@pytest.mark.parametrize("name", FAMILIES)
def test_over_three_ranks(world3: Any, name: str) -> None:
    assert_exact(world3.run("family", name=name, tp=3))


@pytest.mark.parametrize("name", FAMILIES)
def test_over_four_ranks(world4: Any, name: str) -> None:
    assert_exact(world4.run("family", name=name, tp=4))


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in NOT_SEPARABLE])
def test_over_two_ranks_and_two_replicas(world4: Any, name: str) -> None:
    assert_exact(world4.run("family", name=name, tp=2, steps=3))


# Where the whole is held by several ranks, or unevenly, each has its part: what the ranks hold besides is small.
BUSY = {"llama": 0.28, "llama_kv1": 0.30, "llama_kv2": 0.30, "llama_uneven": 0.34, "mixtral": 0.28, "gpt2": 0.35}


@pytest.mark.parametrize("name", BUSY)
def test_every_rank_holds_its_part_and_little_more(world4: Any, name: str) -> None:
    for result in world4.run("family", name=name, tp=4, steps=1):
        assert result["cut_numbers"] <= BUSY[name] * result["numbers"]


@pytest.mark.parametrize("attention", ["sdpa"])
@pytest.mark.parametrize("name", ["llama_kv2", "gpt2", "bert", "t5"])
def test_with_fused_attention(world2: Any, name: str, attention: str) -> None:
    assert_exact(world2.run("family", name=name, tp=2, steps=2, attn_implementation=attention))


@pytest.mark.parametrize("name", ["llama", "llama_uneven", "gpt2", "gemma2"])
def test_a_loss_computed_from_the_logits_gets_whole_ones(world2: Any, name: str) -> None:
    for result in world2.run("from_logits", name=name):
        assert result["losses"][0] == pytest.approx(result["losses"][1], rel=1e-5)
        assert result["logits"] < 1e-4
        assert result["gradients"] < CLOSE
        assert result["whole_without_gradients"]
        assert result["dropped_with_labels"]


@pytest.mark.parametrize("tp", [2, 4])
def test_in_bf16_the_difference_is_that_of_another_order_of_summation(world4: Any, tp: int) -> None:
    for result in world4.run("coarse", tp=tp):
        assert 0 < result["ours"] < 2 * result["noise"]
        assert result["loss"] <= 2 * result["step"]


ADAPTERS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_over_cut_layers(world2: Any, name: str) -> None:
    assert_exact(world2.run("lora", name=name, targets=ADAPTERS[name]))


def test_dropout_outside_of_cut_regions_is_that_of_the_whole_model(world2: Any) -> None:
    """The ranks start with other random states: those of a group go on with the first one's."""
    results = world2.run("dropout", name="gpt2", resid_pdrop=0.2, embd_pdrop=0.2)
    for result in results:
        assert result["random"] == 0
        assert result["loss"] == pytest.approx(result["whole"], rel=1e-5)
        assert result["gradients"] < CLOSE


def test_dropout_inside_differs_between_ranks_and_nothing_else_does(world2: Any) -> None:
    results = world2.run("dropout", name="gpt2", attn_pdrop=0.5, resid_pdrop=0.2)
    assert results[0]["random"] > 0
    assert results[0]["loss"] == results[1]["loss"]
    assert results[0]["replicated"] == results[1]["replicated"]
    assert results[0]["loss"] != pytest.approx(results[0]["whole"], rel=1e-5)


def test_features_that_are_dropped_inside_are_other_ones_on_each_rank(world2: Any) -> None:
    results = world2.run("dropout", name="t5", dropout_rate=0.5, row="wo")
    assert results[0]["zeros"] != results[1]["zeros"]
    without = world2.run("dropout", name="t5", dropout_rate=0.5, row="wo", training=False)
    assert without[0]["zeros"] == without[1]["zeros"]
    assert results[0]["loss"] == results[1]["loss"]


def test_activation_checkpointing_draws_the_same_numbers_again(world2: Any) -> None:
    plain = world2.run("dropout", name="gpt2", attn_pdrop=0.5, resid_pdrop=0.2)
    again = world2.run("dropout", name="gpt2", attn_pdrop=0.5, resid_pdrop=0.2, checkpointing=True)
    assert again[0]["calls"] > plain[0]["calls"]
    assert again[0]["zeros"][: plain[0]["calls"]] == plain[0]["zeros"]
    assert again[0]["replicated"] == pytest.approx(plain[0]["replicated"], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", ["llama", "mixtral", "bert"])
def test_the_probe_passes_what_is_exact(world2: Any, name: str) -> None:
    for result in world2.run("probed", name=name):
        assert result["text"] == ""


@pytest.mark.parametrize(("name", "how"), [("llama", "entry"), ("mixtral", "sum")])
def test_the_probe_refuses_what_is_not_before_anything_is_cut(world2: Any, name: str, how: str) -> None:
    results = world2.run("probed", name=name, break_with=how)
    assert len({result["text"] for result in results}) == 1
    for result in results:
        assert result["text"].startswith("PlanError: the sharded model is not the whole one")
        assert result["untouched"]
