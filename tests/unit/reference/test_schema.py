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


JUNK: list[Any] = ["", "2", "on", 1.5, [], {}, [1], {"a": 1}, True, False, 0, -1, -2, 3, None, "auto", [None], [[]]]
BOOLS: list[Any] = [True, False, None, "auto"]
NAMES = ["llama", "Qwen2", "PHI3", "bloom", "lama", "llama "]


class Draw:
    """Random JSON data for the section, mostly legal. What a schema can't express is left out (see `schema`)."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def mostly(self, *legal: Any) -> Any:
        return copy.deepcopy(self.rng.choice(legal) if self.rng.random() < 0.93 else self.rng.choice(JUNK))

    def some(self, block: dict[str, Any], unknown: tuple[str, ...], share: float) -> dict[str, Any]:
        chosen = {key: value for key, value in block.items() if self.rng.random() < share}
        if self.rng.random() < 0.04:
            chosen[self.rng.choice(unknown)] = self.rng.choice(JUNK)
        return chosen

    def tp(self) -> Any:
        groups = [None, "auto", [0], [0, 1], [2, 5, 3]]
        block = {
            "tp_size": self.mostly(1, 2, 0, -4, "auto", None, 10**30),
            "tp_grain_size": self.mostly(1, 64),
            "mpu": self.rng.choice([None, None, "auto", "auto", {}, "x"]),
            "tp_group": self.mostly(*groups, *groups, [1, 1], [-1], ["0"]),
        }
        return self.mostly(self.some(block, ("size", "tp_sise", "autotp_size"), 0.5), None, "auto")

    def layer_spec(self) -> Any:
        spec = {
            "partition_type": self.mostly("column", "COLUMN", "Column", "auto"),
            "shape": self.mostly([3, -1], [[4, 2], -1], [8], [2, 3, -1], None),
            "model_types": self.mostly(["llama"], [], None),
            "gather_output": self.mostly(*BOOLS),
            "grad_allreduce": self.mostly(*BOOLS),
        }
        chosen = self.some(spec, ("pattern", "shapes"), 0.5)
        if self.rng.random() < 0.95:
            chosen["patterns"] = self.mostly(["a.*"], ["a", "b$"])
        return self.mostly(chosen)

    def partition(self) -> Any:
        block = {
            "use_default_specs": self.mostly(*BOOLS),
            "layer_specs": self.mostly([self.layer_spec() for _ in range(self.rng.randrange(3))], None),
            "strict_mode": self.mostly(*BOOLS),
            "lm_head_patterns": self.mostly(["lm_head"], []),
            "embedding_partition_dim": self.mostly(0, 1),
        }
        return self.mostly(self.some(block, ("strict", "tp"), 0.5), None)

    def section(self) -> Any:
        section = {
            "autotp_size": self.mostly(1, 2, 0, -1, "auto", None),
            "dtype": self.mostly("bf16", "torch.half", "float32", "auto", None),
            "tp_overlap_comm": self.mostly(*BOOLS),
            "tp": self.tp(),
            "partition_config": self.partition(),
            "preset_model": self.mostly(*NAMES[:4], self.rng.choice(NAMES)),
            "keep_module_on_host": self.mostly(*BOOLS),
            "injection_policy_tuple": self.mostly(["a"], [["a", "b"]], None),
            "replace_with_kernel_inject": self.mostly(*BOOLS),
            "vocab_parallel_lm_head": self.mostly(*BOOLS),
            "vocab_parallel_ce_backend": self.mostly("torch", "liger", "auto"),
        }
        chosen = self.some(section, ("tp_size", "mpu", "Dtype", "layer_specs"), 0.4)
        if self.rng.random() < 0.15:
            chosen["tensor_parallel"] = self.tp()
        if self.rng.random() < 0.15:
            chosen["kernel_inject"] = self.mostly(*BOOLS)
        return chosen


SECTIONS = [Draw(seed).section() for seed in range(800)]
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
