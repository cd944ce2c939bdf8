"""Reading the tensor_parallel section: presence, sizes, dtypes, names, carried fields (contract D1-D3, D5, D7, D8)."""

from __future__ import annotations

import copy
import enum

import pytest
import torch
from tpinit.reference.config import parse_dtype, read_config
from tpinit.reference.errors import ConfigError, Problem
from tpinit.reference.spellings import DTYPE_SPELLINGS, show
from tpinit.spec.vocabulary import DType, Section


def problems_of(config: object) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        read_config(config)
    return caught.value.problems


def problem_of(config: object) -> Problem:
    problems = problems_of(config)
    assert len(problems) == 1, problems
    return problems[0]


def section_of(section: object) -> Section:
    read = read_config({"tensor_parallel": section}).section
    assert read is not None
    return read


# --- what is there (D1, D2, D3) --------------------------------------------------------------------


@pytest.mark.parametrize("config", [None, {}, {"tensor_parallel": None}, {"train_batch_size": 8}])
def test_no_section_is_legal(config):
    reading = read_config(config)
    assert (reading.section, reading.precision) == (None, None)
    assert reading.config == (config or {})


def test_an_empty_section_is_present():
    assert section_of({}) == Section()


@pytest.mark.parametrize("absent", [None, "auto"])
def test_null_and_auto_mean_absent_for_every_field_of_the_section(absent):
    names = ["autotp_size", "dtype", "tp_overlap_comm", "partition_config", "preset_model", "keep_module_on_host"]
    names += ["injection_policy_tuple", "replace_with_kernel_inject", "vocab_parallel_lm_head"]
    names += ["vocab_parallel_ce_backend", "tp"]
    assert section_of(dict.fromkeys(names, absent)) == Section()
    inner = dict.fromkeys(["tp_size", "tp_grain_size", "mpu", "tp_group"], absent)
    assert section_of({"tp": inner}) == Section()
    spec = {"patterns": ["a"], **dict.fromkeys(["partition_type", "shape", "partition_dim", "model_types"], absent)}
    assert section_of({"partition_config": {"layer_specs": [spec], "tp_size": absent}}).carried == {
        "partition_config": {"layer_specs": [{"patterns": ["a"]}]}
    }


def test_a_section_switched_off_is_still_checked():
    assert section_of({"autotp_size": 0}).autotp_size == 0
    assert problem_of({"tensor_parallel": {"autotp_size": 0, "tp_overlap_com": True}}).fix == 'write "tp_overlap_comm"'


@pytest.mark.parametrize("value", ["auto", "on", 2, 2.5, True, False, [], [{"autotp_size": 2}]])
def test_a_section_that_is_no_object_is_malformed(value):
    assert problem_of({"tensor_parallel": value}).path == "tensor_parallel"


# --- sizes and dtypes (D5, D7, D8) -----------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 0, -3, 10**40, enum.IntEnum("Two", "one two")(2)])
def test_any_integer_is_a_size(size):
    section = section_of({"autotp_size": size, "tp": {"tp_size": size}})
    assert section.autotp_size == section.tp_size == int(size)
    assert type(section.autotp_size) is int


@pytest.mark.parametrize(
    ("size", "hint"),
    [
        *((True, "a bool"), (False, "a bool"), (2.0, "write 2"), (1.5, "a float"), ("2", "write 2 without quotes")),
        *(("two", "a string"), ([2], "list"), ({}, "an object"), (b"2", "bytes")),
    ],
)
@pytest.mark.parametrize("path", ["autotp_size", "tp.tp_size", "tensor_parallel.tp_size"])
def test_anything_else_is_not_a_size(size, hint, path):
    outer, _, inner = path.partition(".")
    problem = problem_of({"tensor_parallel": {outer: {inner: size} if inner else size}})
    assert problem.path == f"tensor_parallel.{path}"
    assert problem.given == show(size)
    assert hint in problem.message + problem.fix


def test_the_spellings_of_dtypes_are_exactly_those_of_the_contract():
    words = {"fp32 float32 float": DType.FP32, "fp16 float16 half": DType.FP16, "bf16 bfloat16": DType.BF16}
    legal = {
        prefix + word: dtype for line, dtype in words.items() for word in line.split() for prefix in ("", "torch.")
    }
    assert legal == DTYPE_SPELLINGS
    for word, dtype in legal.items():
        assert section_of({"dtype": word}).dtype is dtype


def test_torch_dtypes_are_dtypes():
    for value, dtype in ((torch.float32, DType.FP32), (torch.half, DType.FP16), (torch.bfloat16, DType.BF16)):
        assert section_of({"dtype": value}).dtype is dtype
        assert parse_dtype(value, "dtype") is dtype
    assert parse_dtype(DType.BF16, "dtype") is DType.BF16


@pytest.mark.parametrize(
    ("value", "near"),
    [
        ("BF16", '"bf16"'),
        ("bfloat", '"bfloat16"'),
        ("Float32", '"float32"'),
        ("torch.bf_16", '"torch.bf16"'),
        ("fp64", '"fp16"'),
        (torch.float64, '"torch.float'),
        ("zzz", "one of these"),
        (torch.int8, ""),
        (16, ""),
        (True, ""),
        (object, ""),
    ],
)
def test_anything_else_is_no_dtype_and_the_nearest_spelling_is_named(value, near):
    problem = problem_of({"tensor_parallel": {"dtype": value}})
    assert (problem.path, problem.given) == ("tensor_parallel.dtype", show(value))
    assert near in problem.fix
    with pytest.raises(ConfigError, match="a dtype is"):
        parse_dtype(value, "dtype")


def test_a_numpy_like_dtype_is_not_torchs():
    class dtype:
        def __str__(self) -> str:
            return "bf16"

    with pytest.raises(ConfigError):
        parse_dtype(dtype(), "call.dtype")


# --- names (D8) ------------------------------------------------------------------------------------


def inside(block: str, content: dict[str, object]) -> dict[str, object]:
    """Return a section that has this content in one of its blocks."""
    if block.endswith("layer_specs[0]"):
        return {"partition_config": {"layer_specs": [{"patterns": ["a"], **content}]}}
    return {block: content} if block else content


@pytest.mark.parametrize(
    ("block", "key", "hint"),
    [
        ("", "autotp_sise", '"autotp_size"'),
        ("", "autoTP_size", '"autotp_size"'),
        ("", "autotp", '"autotp_size"'),
        ("", "Dtype", '"dtype"'),
        ("", "tp_size", "tensor_parallel.tp"),
        ("", "bf16", "top level"),
        ("", "layer_specs", "tensor_parallel.partition_config"),
        ("", "zzzz", "legal keys here: autotp_size"),
        ("", "", "legal keys here"),
        ("tp", "tp_sizes", '"tp_size"'),
        ("tp", "autotp_size", "belongs in tensor_parallel"),
        ("tensor_parallel", "tpgroup", '"tp_group"'),
        ("partition_config", "strict", '"strict_mode"'),
        ("partition_config.layer_specs[0]", "partition_typ", '"partition_type"'),
    ],
)
@pytest.mark.parametrize("value", [2, None, "auto", {"enabled": True}])
def test_an_unknown_key_at_any_depth_is_an_error_whatever_it_holds(block, key, hint, value):
    problem = problem_of({"tensor_parallel": inside(block, {key: value})})
    assert problem.path == ".".join(["tensor_parallel", *([block] if block else []), key])
    assert problem.given == show(value)
    assert hint in problem.message + problem.fix


@pytest.mark.parametrize(
    "section",
    [
        {"tp": {"tp_size": 2}, "tensor_parallel": {"tp_size": 2}},
        {"tp": {}, "tensor_parallel": {}},
        {"replace_with_kernel_inject": True, "kernel_inject": True},
        {"kernel_inject": False, "replace_with_kernel_inject": False},
    ],
)
def test_both_names_of_one_setting_are_an_error(section):
    assert "two names of one setting" in problem_of({"tensor_parallel": section}).message


def test_an_absent_second_name_is_harmless():
    assert section_of({"tp": {"tp_size": 2}, "tensor_parallel": None}).tp_size == 2
    assert section_of({"tp": "auto", "tensor_parallel": {"tp_size": 2}}).tp_size == 2


def test_an_mpu_in_the_section_is_malformed():
    problem = problem_of({"tensor_parallel": {"tp": {"mpu": object()}}})
    assert problem.path == "tensor_parallel.tp.mpu"
    assert "initialize(mpu=" in problem.fix


# --- the fields that are carried -------------------------------------------------------------------

CARRIED = {
    "tp_overlap_comm": True,
    "preset_model": "LLaMA",
    "keep_module_on_host": False,
    "vocab_parallel_lm_head": False,
    "vocab_parallel_ce_backend": "liger",
    "injection_policy_tuple": ("self_attn.o_proj", torch.nn.Linear),
    "replace_with_kernel_inject": True,
    "partition_config": {
        "use_default_specs": False,
        "strict_mode": True,
        "lm_head_patterns": ["head"],
        "embedding_partition_dim": 0,
        "tp_size": 4,
        "layer_specs": [
            {"patterns": [r".*\.o_proj\.weight$"], "partition_type": "ROW"},
            {"patterns": ["qkv"], "shape": [[64, 16, 16], -1], "partition_dim": 0, "model_types": ["llama"]},
            {"patterns": ["norm"], "partition_type": "skip", "grad_allreduce": True, "gather_output": False},
            {"patterns": ["w1"], "shape": (8, -1, 32), "partition_dim": 1},
        ],
    },
}


def test_keys_that_decide_nothing_are_carried_untouched_and_privately():
    given = {**copy.deepcopy(CARRIED), "autotp_size": 4, "tp": {"tp_grain_size": 64, "tp_size": 4}}
    section = section_of(given)
    assert section.carried == {**CARRIED, "tp": {"tp_grain_size": 64}}
    given["partition_config"]["layer_specs"].clear()
    assert section.carried["partition_config"] == CARRIED["partition_config"]
    assert section.carried["injection_policy_tuple"][1] is torch.nn.Linear


def test_an_alias_is_carried_by_the_first_name():
    assert section_of({"kernel_inject": True}).carried == {"replace_with_kernel_inject": True}
    assert section_of({"tensor_parallel": {"tp_grain_size": 2}}).carried == {"tp": {"tp_grain_size": 2}}


@pytest.mark.parametrize(
    ("section", "path"),
    [
        *(({name: value}, name) for name in ("tp_overlap_comm", "kernel_inject") for value in (1, 0, "true", [], {})),
        *(({"preset_model": value}, "preset_model") for value in ("lama", "gpt", "", 3, True, ["llama"])),
        *(({"vocab_parallel_ce_backend": value}, "vocab_parallel_ce_backend") for value in ("Torch", "triton", 1)),
        *(({"tp": {"tp_grain_size": value}}, "tp.tp_grain_size") for value in (0, -1, True, 1.0, "1")),
        *(({"injection_policy_tuple": value}, "injection_policy_tuple") for value in ("a", {}, 1)),
        *(({"tp": value}, "tp") for value in (2, [], "on", True)),
        *(({"partition_config": value}, "partition_config") for value in ([], "llama", 2)),
        *(({"partition_config": {"layer_specs": value}}, "partition_config.layer_specs") for value in ({}, "a", 1)),
        ({"partition_config": {"layer_specs": [None]}}, "partition_config.layer_specs[0]"),
        ({"partition_config": {"lm_head_patterns": "lm_head"}}, "partition_config.lm_head_patterns"),
        ({"partition_config": {"embedding_partition_dim": -1}}, "partition_config.embedding_partition_dim"),
        ({"partition_config": {"tp_size": 0}}, "partition_config.tp_size"),
    ],
)
def test_a_wrong_value_of_a_carried_field_is_an_error(section, path):
    assert problem_of({"tensor_parallel": section}).path == f"tensor_parallel.{path}"


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({}, "patterns"),
        ({"patterns": "auto"}, "patterns"),
        ({"patterns": None}, "patterns"),
        ({"patterns": []}, "patterns"),
        ({"patterns": "o_proj"}, "patterns"),
        ({"patterns": [""]}, "patterns"),
        ({"patterns": [1]}, "patterns"),
        ({"patterns": ["ok", "("]}, "patterns[1]"),
        ({"partition_type": "rows"}, "partition_type"),
        ({"partition_type": 1}, "partition_type"),
        ({"model_types": "llama"}, "model_types"),
        ({"gather_output": "yes"}, "gather_output"),
        ({"partition_dim": -1}, "partition_dim"),
        ({"partition_dim": True}, "partition_dim"),
        ({"shape": []}, "shape"),
        ({"shape": 3}, "shape"),
        ({"shape": [0, -1]}, "shape[0]"),
        ({"shape": [-2, 4]}, "shape[0]"),
        ({"shape": [True, 4]}, "shape[0]"),
        ({"shape": ["auto", 4]}, "shape[0]"),
        ({"shape": [[], 4]}, "shape[0]"),
        ({"shape": [[4, -1], 4]}, "shape[0]"),
        ({"shape": [[4, [2]], 4]}, "shape[0]"),
        ({"shape": [-1, -1]}, "shape"),
        ({"shape": [[1, 2], [3]]}, "shape"),
        ({"shape": [4, [2, 2]]}, "shape[1]"),
        ({"shape": [4], "partition_type": "row"}, "shape"),
        ({"shape": [4, 4], "partition_dim": 2}, "shape"),
    ],
)
def test_a_wrong_layer_spec_is_an_error(spec, path):
    spec = {"patterns": ["a"], **spec} if spec else spec
    problem = problem_of({"tensor_parallel": {"partition_config": {"layer_specs": [spec]}}})
    assert problem.path == f"tensor_parallel.partition_config.layer_specs[0].{path}"


def test_a_pattern_that_is_a_string_is_offered_as_a_list():
    spec = {"patterns": "o_proj"}
    problem = problem_of({"tensor_parallel": {"partition_config": {"layer_specs": [spec]}}})
    assert problem.fix == 'write ["o_proj"]'


def test_a_repeated_size_that_decides_nothing_must_agree():
    repeated = {"partition_config": {"tp_size": 2}}
    assert section_of({"autotp_size": 2, "tp": {"tp_size": 2}, **repeated}).autotp_size == 2
    assert section_of({"autotp_size": 0, **repeated}).autotp_size == 0
    problem = problem_of({"tensor_parallel": {"autotp_size": 4, **repeated}})
    assert problem.path == "tensor_parallel.partition_config.tp_size"
    assert "tensor_parallel.autotp_size = 4" in problem.message
    assert "tp.tp_size = 8" in problem_of({"tensor_parallel": {"tp": {"tp_size": 8}, **repeated}}).message
