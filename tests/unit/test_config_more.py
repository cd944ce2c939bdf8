"""Configs at the edges that mutants of the reader found open."""

import sys

import pytest
from tpinit.reference.config import read_config
from tpinit.reference.errors import ConfigError
from tpinit.reference.fields import SECTION, TP, Field, Kind, named
from tpinit.reference.spellings import show_int


def problems_of(section):
    with pytest.raises(ConfigError) as caught:
        read_config({"tensor_parallel": section})
    return {problem.path.removeprefix("tensor_parallel."): problem for problem in caught.value.problems}


def layer(**spec):
    return {"partition_config": {"layer_specs": [{"patterns": ["a"], **spec}]}}


@pytest.mark.parametrize(("value", "fix"), [("llama", 'write ["llama"]'), ("", 'write ["...", "..."]')])
def test_a_word_for_a_list_of_words_is_offered_as_one(value, fix):
    (problem,) = problems_of(layer(model_types=value)).values()
    assert problem.fix == fix


@pytest.fixture
def few_digits():
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    yield
    sys.set_int_max_str_digits(before)


@pytest.mark.usefixtures("few_digits")
def test_an_interpreter_that_prints_fewer_digits_than_we_read():
    assert show_int(10**700) == f"an integer of {(10**700).bit_length()} bits"


# --- what decides, and what is carried -----------------------------------------------------------------

VALUES = {
    Kind.SIZE: 2,
    Kind.COUNT: 1,
    Kind.BOOL: True,
    Kind.DTYPE: "bf16",
    Kind.TUPLE: ["a"],
    Kind.GROUP: [0, 1],
    Kind.OBJECT: {},
}


def value_of(field):
    return field.choices[0] if field.choices else VALUES[field.kind]


@pytest.mark.parametrize("field", [field for field in SECTION if field.name != "tp"], ids=lambda field: field.name)
def test_a_field_is_carried_unless_it_decides(field):
    carried = read_config({"tensor_parallel": {field.name: value_of(field)}}).section.carried
    assert (field.name in carried) is not field.decides


@pytest.mark.parametrize(
    "field", [field for field in TP if field.kind is not Kind.FORBIDDEN], ids=lambda field: field.name
)
def test_a_field_of_tp_is_carried_unless_it_decides(field):
    carried = read_config({"tensor_parallel": {"tp": {field.name: value_of(field)}}}).section.carried
    assert carried == ({} if field.decides else {"tp": {field.name: value_of(field)}})


def test_tp_decides_and_a_field_does_not_unless_it_says_so():
    assert named(SECTION)["tp"].decides
    assert not Field("name", Kind.BOOL, "").decides


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
