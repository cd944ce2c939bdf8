"""The JSON Schema: shipped as generated, documented, and of one mind with the reader."""

from __future__ import annotations

import copy
import itertools
import json
import random
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import tpinit.reference.schema as schema_module
from jsonschema import Draft202012Validator
from tpinit.reference.config import read_config, section_schema
from tpinit.reference.errors import ConfigError
from tpinit.reference.fields import LAYER_SPEC, PARTITION_CONFIG, SECTION, TP, all_names
from tpinit.reference.schema import config_schema, shipped_files, write

GOOD: list[dict[str, Any]] = [
    {},
    {"autotp_size": 4},
    {"autotp_size": "auto", "dtype": None},
    {"autotp_size": 0, "dtype": "torch.bfloat16", "tp_overlap_comm": True},
    {"autotp_size": -1},  # the decision says SIZE_INVALID; as data it is a size
    {"tp": {"tp_size": 2, "tp_grain_size": 64, "mpu": None, "tp_group": [0, 2]}},
    {"tensor_parallel": {"tp_size": 2}, "tp": None},
    {"preset_model": "LLaMA", "kernel_inject": False, "vocab_parallel_lm_head": "auto"},
    {"vocab_parallel_ce_backend": "liger", "injection_policy_tuple": ["a", ["b"], 1]},
    {
        "partition_config": {
            "use_default_specs": False,
            "layer_specs": [
                {"patterns": ["a"], "partition_type": "Row", "shape": [3, -1]},
                {"patterns": ["b"], "shape": [[4, 2, 2], -1], "partition_dim": 0, "model_types": ["qwen2"]},
            ],
        }
    },
]

BAD: list[Any] = [
    None,
    [],
    2,
    "auto",
    {"autotp_size": "2"},
    {"autotp_size": 1.5},
    {"autotp_size": True},
    {"autotp_sise": 2},
    {"dtype": "BF16"},
    {"dtype": "fp64"},
    {"tp_overlap_comm": "true"},
    {"tp": {"tp_size": 2}, "tensor_parallel": {"tp_size": 2}},
    {"kernel_inject": True, "replace_with_kernel_inject": True},
    {"tp": {"mpu": {}}},
    {"tp": {"tp_grain_size": 0}},
    {"tp": {"tp_group": [0, 0]}},
    {"tp": {"tp_group": [-1]}},
    {"tp": {"tp_group": []}},
    {"tp": {"unknown": None}},
    {"preset_model": "lama"},
    {"vocab_parallel_ce_backend": "Torch"},
    {"injection_policy_tuple": "a"},
    {"partition_config": {"layer_specs": [{}]}},
    {"partition_config": {"layer_specs": [{"patterns": "auto"}]}},
    {"partition_config": {"layer_specs": [{"patterns": []}]}},
    {"partition_config": {"layer_specs": [{"patterns": ["a"], "partition_type": "rows"}]}},
    {"partition_config": {"layer_specs": [{"patterns": ["a"], "shape": [-1, -1]}]}},
    {"partition_config": {"layer_specs": [{"patterns": ["a"], "shape": [[1], [2]]}]}},
    {"partition_config": {"layer_specs": [{"patterns": ["a"], "shape": [0]}]}},
    {"partition_config": {"layer_specs": [{"patterns": ["a"], "shapes": [1]}]}},
    {"partition_config": {"embedding_partition_dim": -1}},
]

SCHEMA = section_schema()


def reads(section: object) -> bool:
    # Wrapped in a dict of its own: a section of None is no section at all, which is no question of the schema's.
    try:
        return read_config({"tensor_parallel": section}).section is not None
    except ConfigError:
        return False


def validates(section: object, schema: dict[str, object] = SCHEMA) -> bool:
    return Draft202012Validator(schema).is_valid(section)


# --- the files -------------------------------------------------------------------------------------


def test_the_shipped_files_are_what_is_generated():
    folder = resources.files("tpinit.reference")
    shipped = {name: (folder / name).read_text("utf-8") for name in shipped_files()}
    assert shipped == shipped_files(), "run: python -m tpinit.reference.schema"
    assert json.loads(shipped["tensor_parallel.schema.json"]) == section_schema()
    assert json.loads(shipped["ds_config.schema.json"]) == config_schema()


def test_writing_makes_the_same_files(tmp_path):
    write(tmp_path)
    assert {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()} == shipped_files()
    assert Path(schema_module.__file__).parent.joinpath("tensor_parallel.schema.json").is_file()


@pytest.mark.parametrize("schema", [section_schema(), config_schema()])
def test_it_is_a_schema_of_the_draft_it_names(schema):
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(schema)


def test_every_field_is_there_under_every_name_with_a_description():
    def properties(schema: Any) -> dict[str, Any]:
        return schema["properties"]

    def within(schema: Any, name: str) -> Any:
        return next(case for case in properties(schema)[name]["anyOf"] if case.get("type") in ("object", "array"))

    partition = within(SCHEMA, "partition_config")
    blocks = [(SCHEMA, SECTION), (within(SCHEMA, "tp"), TP), (partition, PARTITION_CONFIG)]
    blocks += [(within(SCHEMA, "tensor_parallel"), TP), (within(partition, "layer_specs")["items"], LAYER_SPEC)]
    for schema, fields in blocks:
        assert set(properties(schema)) == {name for field in fields for name in all_names(field)}
        assert all(len(entry["description"]) > 20 for entry in properties(schema).values())


# --- good and bad ----------------------------------------------------------------------------------


@pytest.mark.parametrize("section", GOOD)
def test_good_sections_validate_and_are_read(section):
    assert validates(section)
    assert reads(section)


@pytest.mark.parametrize("section", BAD)
def test_bad_sections_do_neither(section):
    assert not validates(section)
    assert not reads(section)


# --- of one mind -----------------------------------------------------------------------------------


def some_section(rng: random.Random) -> Any:
    """Return a section of JSON data, mostly sound. Left out is what a schema can't say (see `schema`)."""
    junk: list[Any] = ["", "2", "on", 1.5, [], {}, [1], {"a": 1}, True, False, 0, -1, -2, 3, None, "auto", [None], [[]]]
    bools, names = [True, False, None, "auto"], ["llama", "Qwen2", "PHI3", "bloom", "lama", "llama "]

    def mostly(*sound: Any) -> Any:
        return copy.deepcopy(rng.choice(sound) if rng.random() < 0.93 else rng.choice(junk))

    def some(block: dict[str, Any], unknown: tuple[str, ...], share: float) -> dict[str, Any]:
        chosen = {key: value for key, value in block.items() if rng.random() < share}
        if rng.random() < 0.04:
            chosen[rng.choice(unknown)] = rng.choice(junk)
        return chosen

    def tp() -> Any:
        groups = [None, "auto", [0], [0, 1], [2, 5, 3]]
        block = {
            "tp_size": mostly(1, 2, 0, -4, "auto", None, 10**30),
            "tp_grain_size": mostly(1, 64),
            "mpu": rng.choice([None, None, "auto", "auto", {}, "x"]),
            "tp_group": mostly(*groups, *groups, [1, 1], [-1], ["0"]),
        }
        return mostly(some(block, ("size", "tp_sise", "autotp_size"), 0.5), None, "auto")

    def layer_spec() -> Any:
        spec = {
            "partition_type": mostly("column", "COLUMN", "Column", "auto"),
            "shape": mostly([3, -1], [[4, 2], -1], [8], [2, 3, -1], None),
            "model_types": mostly(["llama"], [], None),
            "gather_output": mostly(*bools),
            "grad_allreduce": mostly(*bools),
        }
        chosen = some(spec, ("pattern", "shapes"), 0.5)
        if rng.random() < 0.95:
            chosen["patterns"] = mostly(["a.*"], ["a", "b$"])
        return mostly(chosen)

    def partition() -> Any:
        block = {
            "use_default_specs": mostly(*bools),
            "layer_specs": mostly([layer_spec() for _ in range(rng.randrange(3))], None),
            "strict_mode": mostly(*bools),
            "lm_head_patterns": mostly(["lm_head"], []),
            "embedding_partition_dim": mostly(0, 1),
        }
        return mostly(some(block, ("strict", "tp"), 0.5), None)

    section = {
        "autotp_size": mostly(1, 2, 0, -1, "auto", None),
        "dtype": mostly("bf16", "torch.half", "float32", "auto", None),
        "tp_overlap_comm": mostly(*bools),
        "tp": tp(),
        "partition_config": partition(),
        "preset_model": mostly(*names[:4], rng.choice(names)),
        "keep_module_on_host": mostly(*bools),
        "injection_policy_tuple": mostly(["a"], [["a", "b"]], None),
        "replace_with_kernel_inject": mostly(*bools),
        "vocab_parallel_lm_head": mostly(*bools),
        "vocab_parallel_ce_backend": mostly("torch", "liger", "auto"),
    }
    chosen = some(section, ("tp_size", "mpu", "Dtype", "layer_specs"), 0.4)
    if rng.random() < 0.15:
        chosen["tensor_parallel"] = tp()
    if rng.random() < 0.15:
        chosen["kernel_inject"] = mostly(*bools)
    return chosen


SECTIONS = [some_section(random.Random(seed)) for seed in range(800)]
READ = [reads(section) for section in SECTIONS]


def disagreement(schema: dict[str, object]) -> Any:
    """Return the first section on which this schema and the reader differ, in a list."""
    validator = Draft202012Validator(schema)
    differ = (section for section, read in zip(SECTIONS, READ, strict=True) if validator.is_valid(section) is not read)
    return list(itertools.islice(differ, 1))


def test_the_schema_and_the_reader_agree():
    assert disagreement(SCHEMA) == []
    assert 200 < sum(READ) < 600, "the sections must try both answers"


@pytest.mark.parametrize("name", ["autotp_size", "dtype", "tp", "partition_config", "preset_model", "kernel_inject"])
def test_a_schema_that_is_wrong_about_one_field_is_found_out(name):
    loose, narrow = copy.deepcopy(SCHEMA), copy.deepcopy(SCHEMA)
    loose["properties"][name] = True
    del narrow["properties"][name]
    assert disagreement(loose)
    assert disagreement(narrow)


@pytest.mark.parametrize("word", ["additionalProperties", "not"])
def test_a_schema_without_a_rule_is_found_out(word):
    broken = copy.deepcopy(SCHEMA)
    del broken[word]
    assert disagreement(broken)


def test_what_only_the_reader_says():
    """The limits that the module's text states, each really there."""
    spec = {"patterns": ["a"]}
    for section in (
        {"autotp_size": 2.0},
        {"partition_config": {"layer_specs": [{"patterns": ["("]}]}},
        {"partition_config": {"layer_specs": [{**spec, "shape": [4], "partition_dim": 1}]}},
        {"partition_config": {"layer_specs": [{**spec, "shape": [4, [2, 2]]}]}},
        {"autotp_size": 4, "partition_config": {"tp_size": 2}},
    ):
        assert validates(section)
        assert not reads(section)


# --- the whole config ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "good"),
    [
        ({}, True),
        ({"tensor_parallel": None}, True),
        ({"tensor_parallel": {}, "train_batch_size": 8, "optimizer": {}}, True),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": "auto"}}, True),
        ({"bfloat16": {"enabled": True}, "bf16": None}, True),
        ({"fp16": {"enabled": False, "loss_scale": 0}, "bf16": {"enabled": True}}, True),
        ([], False),
        ({"tensor_parallel": "auto"}, False),
        ({"tensor_parallel": {"autotp_size": "2"}}, False),
        ({"bf16": True}, False),
        ({"bf16": {"enabled": "yes"}}, False),
        ({"bf16": {"enabled": 1}}, False),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, False),
        ({"bfloat16": {"enabled": True}, "fp16": {"enabled": True}}, False),
        ({"bf16": {}, "bfloat16": {}}, False),
    ],
)
def test_the_schema_of_a_whole_config(config, good):
    assert validates(config, config_schema()) is good
    try:
        read_config(config)
    except ConfigError:
        assert not good
    else:
        assert good
