"""Sequence parallelism trains exactly as the whole model does, sends as many bytes, or is refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest

from families import catalogue

pytestmark = pytest.mark.distributed

CLOSE = 1e-5
REFUSED = {
    "opt": "has no hidden states [batch, tokens, features] as input or output",
    "opt_projected": "has no hidden states [batch, tokens, features] as input or output",
    "llama4": "has no hidden states [batch, tokens, features] as input or output",
}
ODD = ("vit", "clip")  # pictures of 17 tokens
COARSE = ("stablelm_qk_layernorm",)  # gradients of its norms a head are so small that fp32 is too coarse to tell
FAMILIES = [name for name in catalogue.FAMILIES if name not in (*REFUSED, *ODD)]
CUT = {"initialize_with": {"sequence_parallel": True}}


def assert_exact(results: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(results):
        for what in ("loss", "gradient", "norm", "weight"):
            assert result[what] < CLOSE, (rank, what, result[what], result["where"])
        assert result["cut"] > 0
        assert any(name in ("all_gather", "reduce_scatter") for name, _, _ in result["calls"])


@pytest.mark.parametrize("name", FAMILIES)
def test_over_two_ranks(world2: Any, name: str) -> None:
    assert_exact(world2.run("scenarios.families:train_family", name=name, tp=2, steps=3, double=name in COARSE, **CUT))


@pytest.mark.parametrize("name", ["llama_kv1", "gpt2", "bloom", "gptj", "qwen2_moe", "deepseek_v2", "t5", "bert"])
def test_over_three_ranks(world3: Any, name: str) -> None:
    assert_exact(world3.run("scenarios.families:train_family", name=name, tp=3, steps=3, **CUT))


@pytest.mark.parametrize("name", ["llama", "falcon_new", "mixtral", "whisper"])
def test_over_two_ranks_and_two_replicas(world4: Any, name: str) -> None:
    assert_exact(world4.run("scenarios.families:train_family", name=name, tp=2, steps=3, **CUT))


@pytest.mark.parametrize("name", REFUSED)
def test_layers_that_need_all_tokens_are_refused_before_anything_is_cut(world2: Any, name: str) -> None:
    for result in world2.run("scenarios.sequence_parallel:initialize_refused", name=name):
        assert result["text"].startswith("PlanError: sequence_parallel: the tokens of this model can't be sharded")
        assert REFUSED[name] in result["text"]
        assert result["untouched"]


@pytest.mark.parametrize(("name", "length"), [("llama", 13), ("vit", 12)])
def test_a_sequence_that_does_not_divide_is_refused_on_every_rank(world2: Any, name: str, length: int) -> None:
    for result in world2.run("scenarios.sequence_parallel:run_length", name=name, length=length):
        assert result["text"].startswith("EngineError: sequence_parallel cuts the tokens")
        assert "multiple of 2" in result["text"]


def test_hidden_states_of_all_layers_are_refused(world2: Any) -> None:
    for result in world2.run(
        "scenarios.sequence_parallel:run_length", name="llama", length=12, output_hidden_states=True
    ):
        assert result["text"].startswith("EngineError: output_hidden_states")


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_tokens_that_are_split_and_gathered_at_once_are_in_the_forecast(world2: Any, name: str) -> None:
    for result in world2.run("scenarios.sequence_parallel:count_step", name=name):
        assert result["sent"] == result["foreseen"]


def test_it_sends_what_the_plan_foresees_and_holds_fewer_activations(world2: Any) -> None:
    for result in world2.run("scenarios.sequence_parallel:count_step", name="llama"):
        assert result["sent"] == result["foreseen"]
        assert result["bytes"] <= 1.3 * result["plain_bytes"]
        assert result["kept"] < 0.9 * result["plain_kept"]


def test_dropout_draws_other_numbers_on_each_part_of_the_tokens(world2: Any) -> None:
    results = world2.run("scenarios.sequence_parallel:train_with_dropout", name="gpt2", resid_pdrop=0.5)
    assert results[0]["zeros"] != results[1]["zeros"]
    assert results[0]["loss"] == results[1]["loss"]
    without = world2.run("scenarios.sequence_parallel:train_with_dropout", name="gpt2", resid_pdrop=0.0)
    assert not any(without[0]["zeros"])


def test_activation_checkpointing_gathers_again(world2: Any) -> None:
    results = world2.run(
        "scenarios.sequence_parallel:train_with_dropout", name="gpt2", resid_pdrop=0.5, checkpointing=True
    )
    plain = world2.run("scenarios.sequence_parallel:train_with_dropout", name="gpt2", resid_pdrop=0.5)
    assert results[0]["norm"] == pytest.approx(plain[0]["norm"], rel=1e-6)


def test_a_model_that_no_rank_holds_whole_cuts_its_tokens_too(world2: Any) -> None:
    for result in world2.run("scenarios.sequence_parallel:start_from_config"):
        assert result["loss"] == pytest.approx(result["whole"], rel=1e-5)
        assert result["stacks"] == ["model.layers"]


def test_a_plan_with_cut_tokens_can_be_passed_back(world2: Any) -> None:
    for result in world2.run("scenarios.sequence_parallel:pass_plan_back", name="llama"):
        assert result["same"]
        assert result["edited"].startswith("PlanError: this plan does not fit this model:")
        assert "sequence model.layers: its gather_inputs" in result["edited"]
        assert result["both"].startswith("TpinitError: sequence_parallel and plan were both given")


@pytest.mark.parametrize("how", ["entry", "sum"])
def test_the_probe_refuses_a_plan_that_leaves_something_out(world2: Any, how: str) -> None:
    for result in world2.run("scenarios.sequence_parallel:probe_broken_plan", name="llama", how=how):
        assert result["text"].startswith("PlanError: the sharded model differs from the unsharded one")


def test_the_probe_passes_a_plan_that_is_whole(world2: Any) -> None:
    for result in world2.run("scenarios.sequence_parallel:probe_broken_plan", name="llama", how=""):
        assert result["text"] == ""


def test_a_forward_that_skips_the_end_of_a_stack_is_refused(world2: Any) -> None:
    for result in world2.run("scenarios.skipped_layers:layer_drop"):
        refused = [text for text in result["refused"] if text]
        assert 0 < len(refused) < len(result["refused"])
        assert all("skipped one of these two" in text for text in refused), refused
        assert result["far"] < 1e-4  # of a loss around 4
        assert result["in_step"]
