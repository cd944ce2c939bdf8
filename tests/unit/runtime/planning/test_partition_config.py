"""partition_config and presets: which layers a spec matches, what its shape says, and what is reported."""

import re

import pytest
import torch
from torch import nn
from tpinit.reference import ConfigError, read_config
from tpinit.reference.fields import SECTION
from tpinit.runtime.errors import PlanError
from tpinit.runtime.planning.analysis.linears import LinearInfo
from tpinit.runtime.planning.partition.shard_maps import (
    even_shard_map,
    feature_shardings,
    head_shardings,
    respects_fused_sizes,
)
from tpinit.runtime.planning.requests.layer_specs import Spec, SpecError, fused_parts
from tpinit.runtime.planning.requests.partition_config import request_from_section
from tpinit.runtime.planning.requests.presets import PRESETS, preset_specs
from tpinit.runtime.planning.requests.request import LayerRequest

# GPT-2's, as far as the planner looks at it.
Conv1D = type("Conv1D", (nn.Module,), {"__module__": "transformers.pytorch_utils"})


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.zeros(4, 16, 8))
        self.down_proj = nn.Parameter(torch.zeros(4, 8, 8))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)
        self.norm = nn.LayerNorm(8)
        self.experts = Experts()


class Model(nn.Module):
    def __init__(self, kind="tiny"):
        super().__init__()
        self.config = type("Config", (), {"model_type": kind})()
        self.embed = nn.Embedding(12, 8)
        self.layers = nn.ModuleList([Block(), Block()])
        self.lm_head = nn.Linear(8, 12, bias=False)


COLUMN = {"patterns": [r"layers\.\d+\.up\.weight$"], "partition_type": "column"}
ROW = {"patterns": [r".*\.down\."], "partition_type": "row"}


def request(*specs, model=None, tp_size=2, section=None, **more):
    config = {"tensor_parallel": {"autotp_size": 2, **(section or {})}}
    config["tensor_parallel"]["partition_config"] = {"layer_specs": list(specs), **more}
    read = read_config(config).section
    assert read is not None
    return request_from_section(read.carried, model or Model(), tp_size)


def refusal(*specs, **more):
    with pytest.raises(PlanError) as caught:
        request(*specs, **more)
    return str(caught.value)


# --- matching ----------------------------------------------------------------------------------------------


def test_a_pattern_is_matched_at_the_start_of_the_full_name_of_a_parameter():
    found = request(COLUMN, ROW)
    assert found.layers == {
        **{f"layers.{place}.up": LayerRequest(column=True) for place in (0, 1)},
        **{f"layers.{place}.down": LayerRequest(row=True) for place in (0, 1)},
    }
    assert found.from_user
    assert found.source == "partition_config"
    assert "matches no parameter" in request(COLUMN, {"patterns": ["up"]}).notes[0]
    assert "layers.0.up" in request({"patterns": [r"layers\.0\.up"]}).layers  # no need to match to the end
    assert "up.weight" in refusal({"patterns": [r".*up$"]})  # the name ends in .weight


def test_the_first_spec_that_matches_counts_and_what_comes_too_late_is_noted():
    found = request({**COLUMN, "partition_type": "SKIP"}, {"patterns": [r".*\.up\.w"]}, ROW)
    assert "layers.0.up" not in found.layers
    assert found.reasons["layers.0.up"] == "layer_specs[0] skips it"
    assert "layer_specs[1] has no effect: layer_specs[0] matches its parameters first" in found.notes


@pytest.mark.parametrize(
    ("types", "counts"), [(["TINY"], True), (["other", "tiny"], True), (["other"], False), ([], True)]
)
def test_a_spec_for_other_types_of_models_is_passed_over(types, counts):
    found = request({**COLUMN, "model_types": types}, ROW)
    assert ("layers.0.up" in found.layers) is counts
    assert any("is for models of type other; this model has type tiny" in note for note in found.notes) is not counts


def test_without_a_config_the_type_of_a_model_is_what_its_class_begins_with():
    class TinyBlock(Block):
        pass

    model = TinyBlock()
    spec = {"patterns": ["up"], "model_types": [str(TinyBlock.__qualname__).split(".")[-1].removesuffix("Block")]}
    assert "up" in request(spec, model=model).layers
    assert "shards no layer" in refusal({**spec, "model_types": ["other"]}, model=model)


def test_experts_are_cut_where_both_tensors_are_meant():
    both = {"patterns": [r".*\.experts\.(gate_up|down)_proj"]}
    assert request(both).layers == {f"layers.{place}.experts": LayerRequest(experts=True) for place in (0, 1)}
    one = request(COLUMN, {"patterns": [r".*\.experts\.down_proj"]})
    assert "only some of its tensors" in one.reasons["layers.0.experts"]
    shaped = request({**both, "shape": [4, -1, 8], "partition_dim": 1})
    assert any("a dry run finds how it is fused" in note for note in shaped.notes)


def test_gathered_columns_and_rows_at_the_end_are_whole_outside():
    found = request({**COLUMN, "gather_output": True}, {"patterns": ["lm_head"], "partition_type": "row"})
    assert found.layers["layers.0.up"] == LayerRequest(column=True, standalone=True)
    assert found.layers["lm_head"] == LayerRequest(row=True, standalone=True)
    assert "lm_head" in found.replicated
    other = request({**ROW, "patterns": [r".*\.down"]}, lm_head_patterns=["down"])
    assert other.layers["layers.0.down"] == LayerRequest(row=True, standalone=True)


def test_a_preset_supplies_what_no_spec_matches_unless_it_shall_not():
    model = nn.Module()
    model.a = nn.ModuleDict({"self_attn": nn.ModuleDict({"q_proj": nn.Linear(4, 4), "o_proj": nn.Linear(4, 4)})})
    spec = {"patterns": [r".*\.o_proj"], "partition_type": "skip"}
    found = request(spec, model=model, section={"preset_model": "llama"})
    assert found.layers == {"a.self_attn.q_proj": LayerRequest(column=True)}
    assert found.source == "partition_config over preset_model llama"
    assert "shards no layer" in refusal(spec, model=model, section={"preset_model": "llama"}, use_default_specs=False)


def test_without_either_the_model_itself_is_asked():
    assert request_from_section({}, Model(), 2) is None
    assert request_from_section({"partition_config": {}}, Model(), 2) is None


# --- the vocabulary ----------------------------------------------------------------------------------------


def test_the_vocabulary_is_cut_by_default_and_where_a_spec_says_so():
    assert not request(COLUMN).replicated
    alone = request(COLUMN, use_default_specs=False)
    assert {"embed", "lm_head"} <= alone.replicated
    assert not {"embed", "lm_head"} & request(COLUMN, use_default_specs=False, embedding_partition_dim=0).replicated
    said = request(COLUMN, {"patterns": ["embed", "lm_head"]}, use_default_specs=False)
    assert not {"embed", "lm_head"} & said.replicated
    assert any("which is vocab-parallel (dimension 0)" in note for note in said.notes)
    assert "embed" in request(COLUMN, {"patterns": ["embed"], "partition_type": "skip"}).replicated
    assert "dimensions 0 and 1" in refusal(COLUMN, embedding_partition_dim=2)


def test_a_tied_head_is_cut_with_its_embedding():
    model = Model()
    model.lm_head.weight = model.embed.weight
    assert (
        not {"embed", "lm_head"}
        & request(COLUMN, {"patterns": ["embed"]}, model=model, use_default_specs=False).replicated
    )


def test_a_head_that_must_be_cut_by_vocabulary_needs_no_spec():
    head = {"vocab_parallel_lm_head": True}
    strict = {"strict_mode": True, "section": head}
    rest = {"patterns": [".*experts"], "partition_type": "skip"}
    assert "lm_head" not in request(COLUMN, ROW, rest, **strict).replicated
    found = request(COLUMN, {"patterns": ["lm_head"], "partition_type": "row"}, section=head)
    assert "lm_head" not in found.layers
    assert any("vocab_parallel_lm_head" in note for note in found.notes)


# --- what is reported --------------------------------------------------------------------------------------


def test_strict_mode_refuses_specs_and_weights_without_a_match_all_at_once():
    text = refusal(COLUMN, {"patterns": ["nothing"]}, {"patterns": ["lm_haed"]}, strict_mode=True)
    for words in (
        "layer_specs[1] matches no parameter of this model: nothing",
        "layer_specs[2] matches no parameter",
        "layers.0.down.weight (strict_mode)",
        "lm_head.weight (strict_mode)",
        "layers.1.experts.gate_up_proj (strict_mode)",
    ):
        assert words in text
    assert "embed" not in text  # DeepSpeed asks for no spec of an embedding
    assert "norm" not in text  # nor of a weight of one dimension
    loose = request(COLUMN, {"patterns": ["nothing"]})
    assert "layer_specs[1] matches no parameter of this model: nothing" in loose.notes
    assert loose.reasons["layers.0.down"] == "no spec of partition_config matches it"


def test_heads_that_are_not_there_are_reported_when_they_were_named():
    assert any("named elsewhere" in note for note in request(COLUMN, lm_head_patterns=["elsewhere"]).notes)
    assert not any("named" in note for note in request(COLUMN).notes)


def test_keys_that_say_nothing_of_a_cut_are_noted_or_refused():
    assert any("no effect on a row layer" in note for note in request(COLUMN, {**ROW, "gather_output": True}).notes)
    assert "grad_allreduce is legal for partition_type skip only" in refusal({**COLUMN, "grad_allreduce": True})
    skipped = {"patterns": [".*norm"], "partition_type": "skip", "grad_allreduce": True}
    assert any("all-reduced wherever the data flow" in note for note in request(COLUMN, skipped).notes)


def test_a_repeated_tp_size_must_be_the_one_that_was_decided():
    assert request(COLUMN, tp_size=2, section={"partition_config": {}}) is not None
    section = {"partition_config": {"tp_size": 2, "layer_specs": [COLUMN]}}
    assert request_from_section(section, Model(), 2) is not None
    with pytest.raises(ConfigError, match="differs from the TP size that was decided, 4"):
        request_from_section(section, Model(), 4)


def test_unknown_keys_are_the_readers_to_name():
    with pytest.raises(ConfigError) as caught:
        request({"pattern": ["x"], "partition_typ": "row"}, strict=True)
    text = str(caught.value)
    assert 'the nearest legal key is "patterns"' in text
    assert "partition_config.layer_specs[0].partition_typ" in text
    assert 'the nearest legal key is "strict_mode"' in text


# --- shapes ------------------------------------------------------------------------------------------------


def linear(out, inside):
    return LinearInfo("m", nn.Linear(inside, out, device="meta"), 0)


def conv1d(out, inside):
    module = Conv1D()
    module.weight = nn.Parameter(torch.empty(inside, out, device="meta"))
    return LinearInfo("m", module, 1)


SHAPES = {
    "none": (linear(12, 8), "column", None, None, ((), 1)),
    "three equal parts": (linear(12, 8), "column", (3, -1), 0, ((4, 4, 4), 1)),
    "three unequal parts": (linear(12, 8), "column", ((6, 3, 3), -1), None, ((6, 3, 3), 1)),
    "parts and the input": (linear(12, 8), "column", ((6, 6), 8), None, ((6, 6), 1)),
    "parts alone, the input given": (linear(12, 8), "column", (2, 8), None, ((6, 6), 1)),
    "one part": (linear(12, 8), "column", (-1, 8), None, ((12,), 1)),
    "inside experts": (linear(12, 8), "column", (3, -1, 8), 1, ((4, 4, 4), 1)),
    "whole heads": (linear(12, 8), "column", (-1, 3, 8), 0, ((12,), 3)),
    "parts of heads": (linear(24, 8), "column", (2, 4, 3, 8), 1, ((3,) * 8, 3)),
    "a row of two inputs": (linear(8, 12), "row", (-1, 2), None, ((6, 6), 1)),
    "a row of unequal inputs": (linear(8, 12), "row", (8, (4, 8)), None, ((4, 8), 1)),
    "conv1d": (conv1d(12, 8), "column", (3, -1), None, ((4, 4, 4), 1)),
    "conv1d as stored": (conv1d(12, 8), "column", (-1, 3), 1, ((4, 4, 4), 1)),
    "conv1d, a row": (conv1d(8, 12), "row", (-1, 2), None, ((6, 6), 1)),
    "conv1d, a dimension as stored": (conv1d(12, 8), "column", None, 1, ((), 1)),
}


@pytest.mark.parametrize("case", SHAPES)
def test_a_shape_says_what_is_fused(case):
    matrix, cut, shape, dim, parts = SHAPES[case]
    assert fused_parts(Spec((".*",), cut, shape, dim), matrix) == parts


BAD_SHAPES = {
    "not divisible": (linear(12, 8), "column", (5, 8), None, "5 equal parts"),
    "another sum": (linear(12, 8), "column", ((6, 5), 8), None, "does not hold the 96 elements"),
    "nothing to infer": (linear(12, 8), "column", ((5,), -1), None, "does not hold the 96 elements"),
    "another input": (linear(12, 8), "column", (24, 4), None, "must be the weight's, 8"),
    "ambiguous": (linear(12, 8), "column", (3, -1, 8), 0, "leaves more than one size open"),
    "a column of the input": (linear(12, 8), "column", (-1, 2), 1, "is the input, but a column spec shards the output"),
    "a row of the output": (linear(12, 8), "row", (2, 6, 8), 1, "is the output, but a row spec shards the input"),
    "a dimension alone": (linear(12, 8), "column", None, 1, "partition_dim is 1"),
    "conv1d, nonsense": (conv1d(12, 8), "column", (5, -1), None, "splits 12 into 5"),
}


@pytest.mark.parametrize("case", BAD_SHAPES)
def test_a_shape_that_can_not_be_meant_is_refused_with_the_reason(case):
    matrix, cut, shape, dim, words = BAD_SHAPES[case]
    with pytest.raises(SpecError, match=re.escape(words)):
        fused_parts(Spec((".*",), cut, shape, dim), matrix)


def test_a_bad_shape_names_the_spec_and_the_layer():
    assert "layer_specs[0] for layers.0.up: its shape [3, -1] splits 16" in refusal({**COLUMN, "shape": [3, -1]})
    assert request({**COLUMN, "shape": [2, -1]}).layers["layers.0.up"] == LayerRequest(column=True, fused_sizes=(8, 8))


def test_layouts_cut_every_part_that_was_said_to_be_fused():
    (layout,) = feature_shardings({"up": 16}, 8, 2, {"up": (8, 8)})
    assert layout.columns["up"].slices == (((0, 4), (8, 4)), ((4, 4), (12, 4)))
    (layout,) = feature_shardings({"up": 16}, 8, 2, {"up": (3, 5, 3, 5)}, (3, 5))
    assert layout.row.slices == (((0, 2), (3, 3)), ((2, 1), (6, 2)))
    assert not list(feature_shardings({"up": 16}, 8, 2, {"up": (4, 4, 4, 4)}))
    told = [layout for _, layout in head_shardings({"qkv": 16}, 8, [4, 2], 2, {"qkv": (4, 4, 8)})]
    assert told[0].columns["qkv"].slices == (((0, 2), (4, 2), (8, 4)), ((2, 2), (6, 2), (12, 4)))


def test_a_spread_follows_parts_where_a_rank_has_one_piece_of_each():
    assert respects_fused_sizes(even_shard_map(8, 2), (8,))
    assert not respects_fused_sizes(
        even_shard_map(8, 2), (4, 4)
    )  # a rank has the first part, and nothing of the second
    assert respects_fused_sizes(even_shard_map(8, 2, 4), (8,), 4)
    assert not respects_fused_sizes(even_shard_map(8, 4, 2), (8,), 4)


# --- presets -----------------------------------------------------------------------------------------------


def test_the_presets_are_those_that_the_config_may_name():
    field = next(one for one in SECTION if one.name == "preset_model")
    assert tuple(PRESETS) == field.choices


def test_an_unknown_preset_is_an_error_with_the_list_and_the_nearest():
    with pytest.raises(PlanError, match="did you mean llama"):
        preset_specs("lama")
    with pytest.raises(PlanError, match="the presets are llama, bloom, chatglm, mixtral, deepseek_v2, qwen2, phi3"):
        preset_specs("gpt-17")
    assert preset_specs("LLaMA") == preset_specs("llama")


NAMES = {
    "llama": {
        "column": ["self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj"],
        "row": ["self_attn.o_proj", "mlp.down_proj"],
    },
    "qwen2": {"column": ["self_attn.v_proj", "mlp.gate_proj"], "row": ["mlp.down_proj"]},
    "bloom": {"column": ["self_attention.query_key_value", "mlp.dense_h_to_4h"], "row": ["self_attention.dense"]},
    "chatglm": {"column": ["mlp.dense_h_to_4h"], "row": ["mlp.dense_4h_to_h"]},
    "mixtral": {
        "column": ["self_attn.q_proj", "block_sparse_moe.experts.3.w1", "block_sparse_moe.experts.11.w3"],
        "row": ["block_sparse_moe.experts.3.w2"],
        "skip": ["block_sparse_moe.gate", "mlp.gate"],
    },
    "deepseek_v2": {
        "column": [
            "self_attn.q_b_proj",
            "self_attn.kv_b_proj",
            "mlp.experts.7.up_proj",
            "mlp.shared_experts.gate_proj",
        ],
        "row": ["self_attn.o_proj", "mlp.experts.7.down_proj", "mlp.shared_experts.down_proj", "mlp.down_proj"],
        "skip": ["self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa", "mlp.gate"],
    },
    "phi3": {"column": ["self_attn.qkv_proj", "mlp.gate_up_proj"], "row": ["self_attn.o_proj", "mlp.down_proj"]},
}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_cuts_the_layers_that_it_is_for(preset):
    for cut, layers in NAMES[preset].items():
        for layer in layers:
            name = f"model.layers.0.{layer}.weight"
            assert [one.partition_type for one in preset_specs(preset) if one.matches(name)][:1] == [cut], layer
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.layers.0.input_layernorm.weight"):
        assert not any(one.matches(name) for one in preset_specs(preset))
