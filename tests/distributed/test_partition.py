"""What a user requests of the sharding: partition_config, presets and plans; followed exactly, refused, or noted."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.distributed

CLOSE = 1e-5


def assert_exact(results: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(results):
        for what in ("loss", "gradient", "norm", "weight"):
            assert result[what] < CLOSE, (rank, what, result[what], result["where"])
        assert result["cut"] > 0


def column(*patterns: str, **more: Any) -> dict[str, Any]:
    return {"patterns": list(patterns), "partition_type": "column", **more}


def row(*patterns: str, **more: Any) -> dict[str, Any]:
    return {"patterns": list(patterns), "partition_type": "row", **more}


def skip(*patterns: str) -> dict[str, Any]:
    return {"patterns": list(patterns), "partition_type": "skip"}


def section(*specs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"partition_config": {"use_default_specs": False, "layer_specs": list(specs), **more}}


LLAMA = (
    column(r".*\.self_attn\.[qkv]_proj\.weight$", r".*\.mlp\.(up|gate)_proj\.weight$"),
    row(r".*\.self_attn\.o_proj\.weight$", r".*\.mlp\.down_proj\.weight$"),
)
GPT2_MLP = (column(r".*\.c_fc"), row(r".*\.c_proj"))
PHI3_MLP = (column(r".*\.gate_up_proj\.weight$", shape=[2, -1], partition_dim=0), row(r".*\.(down|o)_proj\.weight$"))
PHI3_QKV = r".*\.qkv_proj\.weight$"

# The family, the section, and how many parameters it shards.
EXACT = {
    "llama": ("llama", section(*LLAMA), 14),
    "llama with its vocabulary": ("llama", section(*LLAMA, column("model.embed_tokens", "lm_head")), 16),
    "llama, the rest by default": ("llama", {"partition_config": {"layer_specs": list(LLAMA)}}, 16),
    "llama over a preset": (
        "llama",
        {"preset_model": "llama", "partition_config": {"layer_specs": [skip(r".*\.mlp\.")]}},
        10,
    ),
    "llama, gathered": (
        "llama",
        section(column(r".*\.(q|up|gate)_proj", gather_output=True), column("lm_head", gather_output=True)),
        7,
    ),
    "llama, a row head": ("llama", section(*LLAMA, row("lm_head")), 15),
    "llama, gathered with a bias": ("llama_bias", section(column(r".*\.[qkv]_proj", gather_output=True)), 12),
    "gpt2, fused": ("gpt2", section(column(r".*\.c_attn", shape=[3, -1]), *GPT2_MLP), 12),
    "gpt2, fused as stored": ("gpt2", section(column(r".*\.c_attn", shape=[-1, 3], partition_dim=1), *GPT2_MLP), 12),
    "gpt2, shape found": ("gpt2", section(column(r".*\.c_attn"), *GPT2_MLP), 12),
    "phi3, unequal": ("phi3", section(column(PHI3_QKV, shape=[[48, 24, 24], -1]), *PHI3_MLP), 8),
    "bloom, by heads": ("bloom", section(column(r".*query_key_value", shape=[-1, 48]), row(r".*n\.dense\.weight")), 6),
}


@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize("case", EXACT)
def test_a_partition_config_is_followed_exactly(worlds: Any, case: str, tp: int) -> None:
    name, said, cut = EXACT[case]
    results = worlds[tp].run("scenarios.families:train_family", name=name, tp=tp, section=said, steps=3)
    assert results[0]["source"].startswith("partition_config")
    assert results[0]["cut"] == cut, results[0]["notes"]
    assert_exact(results)


PRESETS = {
    "llama": ("llama", 16),
    "qwen2": ("qwen2", 22),
    "mixtral": ("mixtral", 14),
    "bloom": ("bloom", 13),
    "phi3": ("phi3", 10),
    "deepseek_v2": ("deepseek_v2", 16),
    "deepseek_v2 without a query rank": ("deepseek_v2_lite", 16),
}


@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize("case", PRESETS)
def test_a_preset_is_followed_exactly(worlds: Any, case: str, tp: int) -> None:
    name, cut = PRESETS[case]
    preset = case.split(" ")[0]
    results = worlds[tp].run(
        "scenarios.families:train_family", name=name, tp=tp, section={"preset_model": preset}, steps=3
    )
    assert_exact(results)
    assert results[0]["source"] == f"preset_model {preset}"
    assert results[0]["cut"] == cut


@pytest.mark.parametrize(("name", "cut"), [("olmo2", 16), ("cohere_qk_norm", 19)])
def test_gathered_and_sliced_layers_of_the_models_own_plan_are_exact(world4: Any, name: str, cut: int) -> None:
    results = world4.run("scenarios.families:train_family", name=name, tp=4)
    assert_exact(results)
    assert results[0]["cut"] >= cut


# A shape that is wrong for the model: the layer is replicated with a note, and training is exact.
WRONG = {
    "gpt2 in two": ("gpt2", section(column(r".*\.c_attn", shape=[2, -1]), *GPT2_MLP), "c_attn [72, 72]"),
    "gpt2 in one": ("gpt2", section(column(r".*\.c_attn", shape=[-1, 48]), *GPT2_MLP), "c_attn [144]"),
    "phi3 in equal parts": ("phi3", section(column(PHI3_QKV, shape=[3, -1]), *PHI3_MLP), "qkv_proj [32, 32, 32]"),
    "phi3, values first": (
        "phi3",
        section(column(PHI3_QKV, shape=[[24, 24, 48], -1]), *PHI3_MLP),
        "qkv_proj [24, 24, 48]",
    ),
    "llama, queries alone": ("llama", section(column(r".*\.q_proj"), *LLAMA[1:], column(".*(up|gate)_proj")), "q_proj"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_layer_that_can_not_be_sharded_as_requested_is_replicated_with_a_note(world2: Any, case: str) -> None:
    name, said, words = WRONG[case]
    results = world2.run("scenarios.families:train_family", name=name, tp=2, section=said, steps=2)
    assert_exact(results)
    assert any(words in note for note in results[0]["notes"]), results[0]["notes"]


REFUSED = {
    "a shape that does not hold the weight": (section(column(".*q_proj", shape=[[40], -1])), "does not hold"),
    "a pattern that matches nothing, in strict mode": (
        section(*LLAMA, row("lm_heat"), column("lm_head"), strict_mode=True),
        "layer_specs[2] matches no parameter",
    ),
    "a layer that nothing matches, in strict mode": (section(*LLAMA, strict_mode=True), "lm_head.weight (strict_mode)"),
    "nothing to cut": (section(skip(".*")), "shards no layer of this model"),
    "a preset of another model": ({"preset_model": "bloom"}, "preset_model bloom can't be followed"),
    "a sum over parts": (
        section(column(".*q_proj", grad_allreduce=True), *LLAMA),
        "grad_allreduce is legal for partition_type skip only",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_impossible_request_is_refused_on_every_rank(world2: Any, case: str) -> None:
    said, words = REFUSED[case]
    for result in world2.run("scenarios.user_plan:initialize_by_request", name="llama", section=said):
        assert (result["type"], result["untouched"]) == ("PlanError", True), result
        assert words in result["text"]


# --- a user's plan ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["plan", "mapping", "file"])
@pytest.mark.parametrize("name", ["llama", "phi3", "mixtral", "gpt_oss", "deepseek_v2", "olmo2", "bloom"])
def test_a_plan_can_be_saved_and_passed_back(world2: Any, tmp_path: Any, name: str, form: str) -> None:
    results = world2.run(
        "scenarios.user_plan:train_by_passed_plan", name=name, form=form, file=str(tmp_path / "plan.json")
    )
    assert_exact(results)
    assert results[0]["same"]


EDITS = {"mlp whole": 13, "head whole": 15, "uneven": 16}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_plan_is_exact_too(world2: Any, tmp_path: Any, edit: str) -> None:
    results = world2.run("scenarios.user_plan:train_by_passed_plan", name="llama", form="mapping", file="", edit=edit)
    assert_exact(results)
    assert results[0]["cut"] == EDITS[edit]
    assert not results[0]["same"]


WRONG_EDITS = {
    "one column whole": "without all of the layers that must be sharded together",
    "another shape": "its shape is [48], not [47]",
    "another tp_size": "for a TP size of 4, and 2 was decided",
    "a gap": "no rank holds 40:60",
    "one column uneven": "the plan fails its dry run: ",
    "a sum of whole gradients": "its gradient_rule is partial, and must be replicated",
    "no layers": "the records of the plan contradict each other",
}


@pytest.mark.parametrize("edit", WRONG_EDITS)
def test_a_plan_that_does_not_fit_the_model_is_refused_on_every_rank(world2: Any, edit: str) -> None:
    for result in world2.run("scenarios.user_plan:initialize_by_request", name="llama", edit=edit):
        assert (result["type"], result["untouched"]) == ("PlanError", True), result
        assert WRONG_EDITS[edit] in result["text"]


WRONG_BIASES = {
    "a bias added by all": "its first_rank_only is (), and must be ('down_proj_bias',)",
    "a bias that is not there": "it has no parameter bias",
}


@pytest.mark.parametrize("edit", WRONG_BIASES)
def test_a_plan_that_adds_a_bias_on_all_ranks_is_refused(world2: Any, edit: str) -> None:
    for result in world2.run("scenarios.user_plan:initialize_by_request", name="gpt_oss", edit=edit):
        assert (result["type"], result["untouched"]) == ("PlanError", True), result
        assert WRONG_BIASES[edit] in result["text"]


def test_ranks_with_different_plans_all_raise(world2: Any) -> None:
    for result in world2.run("scenarios.user_plan:initialize_by_request", name="llama", edit="mlp whole", on_rank=1):
        assert (result["type"], result["untouched"]) == ("AgreementError", True), result
        assert "mlp.gate_proj.weight" in result["text"]


@pytest.mark.parametrize(("said", "cut"), [(True, 16), (False, 14)])
def test_the_head_is_vocab_parallel_as_requested(world2: Any, said: bool, cut: int) -> None:
    results = world2.run(
        "scenarios.families:train_family", name="llama", tp=2, section={"vocab_parallel_lm_head": said}, steps=2
    )
    assert_exact(results)
    assert results[0]["cut"] == cut


def test_a_vocab_parallel_head_of_a_model_without_one_is_refused(world2: Any) -> None:
    for result in world2.run(
        "scenarios.user_plan:initialize_by_request", name="vit", section={"vocab_parallel_lm_head": True}
    ):
        assert (result["type"], result["untouched"]) == ("PlanError", True), result
        assert "no output head that can be vocab-parallel" in result["text"]
