"""Configs at the edges that mutants of the reader found open."""

import pytest
from tpinit.reference.config import read_config
from tpinit.reference.errors import ConfigError
from tpinit.reference.fields import SECTION, TP, FieldKind


def problems_of(section):
    with pytest.raises(ConfigError) as caught:
        read_config({"tensor_parallel": section})
    return {problem.path.removeprefix("tensor_parallel."): problem for problem in caught.value.problems}


def layer(**spec):
    return {"partition_config": {"layer_specs": [{"patterns": ["a"], **spec}]}}


def fix_of(section):
    (problem,) = problems_of(section).values()
    return problem.fix


# --- what is offered for a wrong value -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "fix"),
    [
        (layer(model_types="llama"), 'write ["llama"]'),
        (layer(model_types=""), 'write ["...", "..."]'),
        (layer(model_types=3), 'write ["...", "..."]'),
        ({"autotp_size": 1.5}, "write an integer"),
        ({"autotp_size": 2.0}, "write 2"),
        ({"autotp_size": " -2 "}, "write -2 without quotes"),
        ({"preset_model": "lama"}, 'write "llama"'),
        ({"preset_model": "xyz"}, "write one of these"),
        ({"dtype": "xyz"}, "write one of these"),
    ],
)
def test_what_was_probably_meant_is_offered_and_nothing_else(section, fix):
    assert fix_of(section) == fix


@pytest.mark.parametrize(
    ("section", "message", "fix"),
    [
        *(
            ({key: {}}, "unknown key", "move it to the top level of the config, beside tensor_parallel")
            for key in ("bf16", "fp16", "bfloat16")
        ),
        ({"layer_specs": []}, "unknown key", "it belongs in tensor_parallel.partition_config: move it there"),
        (
            {"tp": {"preset_model": "llama"}},
            "unknown key",
            "it belongs in tensor_parallel: move it there",
        ),
        (
            {"tp": {"autotp_size": 2}},
            'unknown key; the nearest legal key is "tp_size"',
            'it belongs in tensor_parallel: move it there, or write "tp_size"',
        ),
        (
            {"partition_config": {"patterns": ["a"]}},
            'unknown key; the nearest legal key is "lm_head_patterns"',
            'it belongs in tensor_parallel.partition_config.layer_specs[]: move it there, or write "lm_head_patterns"',
        ),
        ({"tp": {"tp_sise": 2}}, 'unknown key; the nearest legal key is "tp_size"', 'write "tp_size"'),
        ({"tp": {"xyz": 2}}, "unknown key", "legal keys here: tp_size, tp_grain_size, mpu, tp_group"),
    ],
)
def test_an_unknown_key_is_told_where_it_belongs_or_what_it_is_near(section, message, fix):
    (problem,) = problems_of(section).values()
    assert (problem.message, problem.fix) == (message, fix)


# --- layer specs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        {"model_types": ("llama", "qwen2"), "patterns": ("a", "b")},
        {"shape": [[64, 16, 16], -1]},
        {"shape": ((64, 16, 16), -1)},
        {"shape": (-1, (8, 4)), "partition_type": "row"},
        {"shape": [4, 1, [8, 4]], "partition_dim": 2},
    ],
)
def test_tuples_are_as_good_as_lists_and_the_cut_has_its_default(spec):
    section = {"partition_config": {"layer_specs": ({"patterns": ["a"], **spec},)}}
    carried = read_config({"tensor_parallel": section}).section.carried
    assert carried["partition_config"]["layer_specs"] == [{"patterns": ["a"], **spec}]


@pytest.mark.parametrize(
    ("spec", "path", "says"),
    [
        ({"model_types": ["llama", 3]}, "model_types", "a list of non-empty strings"),
        ({"shape": []}, "shape", "a list of at least one size"),
        ({"shape": ()}, "shape", "a list of at least one size"),
        ({"shape": [-1.0, 4]}, "shape[0]", "an integer of at least 1, -1 (inferred)"),
        ({"shape": [2.0, 4]}, "shape[0]", "an integer of at least 1"),
        ({"shape": (4, (2, 2))}, "shape[1]", "only at the sharded dimension, which is 0"),
        ({"shape": [[2, 2], 4], "partition_type": "row"}, "shape[0]", "which is 1"),
        ({"shape": ((1, 2), (3,))}, "shape", "at most one -1 and at most one nested list"),
        ({"shape": [-1, 2, -1]}, "shape", "at most one -1"),
        ({"shape": (4,), "partition_type": "row"}, "shape", "dimension 1 is sharded, but the shape has length 1"),
    ],
)
def test_a_wrong_shape_is_told_in_what(spec, path, says):
    ((at, problem),) = problems_of(layer(**spec)).items()
    assert at == f"partition_config.layer_specs[0].{path}"
    assert says in problem.message


def test_a_shape_is_checked_to_its_end():
    problems = problems_of(layer(shape=[0, -1, 2.5, -1]))
    assert [path.rpartition(".")[2] for path in problems] == ["shape", "shape[0]", "shape[2]"]


# --- what decides, and what is carried -----------------------------------------------------------------

DECIDES = ("autotp_size", "dtype", "tp_size", "tp_group")  # section 4
VALUES = {
    FieldKind.SIZE: 2,
    FieldKind.COUNT: 1,
    FieldKind.BOOL: True,
    FieldKind.DTYPE: "bf16",
    FieldKind.TUPLE: ["a"],
    FieldKind.GROUP: [0, 1],
    FieldKind.OBJECT: {},
}


def value_of(field):
    return field.choices[0] if field.choices else VALUES[field.kind]


@pytest.mark.parametrize("field", [field for field in SECTION if field.name != "tp"], ids=lambda field: field.name)
def test_a_field_is_carried_unless_it_decides(field):
    carried = read_config({"tensor_parallel": {field.name: value_of(field)}}).section.carried
    assert carried == ({} if field.name in DECIDES else {field.name: value_of(field)})


@pytest.mark.parametrize(
    "field", [field for field in TP if field.kind is not FieldKind.FORBIDDEN], ids=lambda field: field.name
)
def test_a_field_of_tp_is_carried_unless_it_decides(field):
    carried = read_config({"tensor_parallel": {"tp": {field.name: value_of(field)}}}).section.carried
    assert carried == ({} if field.name in DECIDES else {"tp": {field.name: value_of(field)}})


# --- keys at the top level -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "fix"),
    [
        ("autotp_size", "move it to tensor_parallel.autotp_size"),
        ("tp_grain_size", "move it to tensor_parallel.tp.tp_grain_size"),
        ("tensorparallel", 'rename it to "tensor_parallel"'),
        ("tensr_paralel", 'rename it to "tensor_parallel"'),
        ("bf_16", 'rename it to "bf16"'),
    ],
)
def test_a_near_key_is_told_where_it_belongs(key, fix):
    with pytest.raises(ConfigError) as caught:
        read_config({key: {}})
    assert [problem.fix for problem in caught.value.problems] == [fix]


@pytest.mark.parametrize("key", ["tensr_parael", "bfloat", "optimizer"])
def test_a_key_that_is_not_near_is_the_rest_of_the_config(key):
    assert read_config({key: {}}).config == {key: {}}


@pytest.mark.parametrize(("key", "near"), [("keep_modul_on_hos", True), ("keep_modul_on_ho", False)])
def test_a_key_of_the_section_at_the_top_is_near_up_to_two_letters(key, near):
    if not near:
        assert read_config({key: True}).config == {key: True}
        return
    with pytest.raises(ConfigError, match=r"move it to tensor_parallel\.keep_module_on_host"):
        read_config({key: True})


@pytest.mark.parametrize(("key", "near"), [("enabld", True), ("enabl", True), ("enab", False)])
def test_a_key_of_a_precision_block_is_near_up_to_two_letters(key, near):
    if not near:
        assert read_config({"bf16": {key: True}}).precision is None
        return
    with pytest.raises(ConfigError, match='write "enabled"'):
        read_config({"bf16": {key: True}})


@pytest.mark.parametrize(("block", "path"), [(3, "bf16"), ({"enabled": "yes"}, "bf16.enabled")])
def test_a_malformed_block_is_not_taken_for_an_enabled_one(block, path):
    with pytest.raises(ConfigError) as caught:
        read_config({"bf16": block, "fp16": {"enabled": True}})
    assert [problem.path for problem in caught.value.problems] == [path]
