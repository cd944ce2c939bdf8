"""A size is an integer and nothing like it, from every kind of source; and nothing of the caller's is kept."""

from __future__ import annotations

import base64
import copy
import json
import sys
from decimal import Decimal
from fractions import Fraction

import pytest
from tpinit.reference.config import read_config
from tpinit.reference.errors import ConfigError, Problem
from tpinit.reference.groups import GroupTable
from tpinit.reference.spellings import MAX_DIGITS, show

PLACES = {
    "tensor_parallel.autotp_size": lambda size: {"autotp_size": size},
    "tensor_parallel.tp.tp_size": lambda size: {"tp": {"tp_size": size}},
}
# Each equals an integer, or reads like one.
LIKE_SIZES = (1.0, 4.0, -1.0, True, False, "1", "-1", " 2 ", "4.0", "1e0", [2], {"size": 2})


def texts(config, tmp_path):
    """The same config as JSON, as HJSON (comments, no quotes around keys), and as base64, with and without a BOM."""
    text = json.dumps(config)
    for index, raw in enumerate([text, "\ufeff" + text, text.replace("{", "{ # a comment\n", 1)]):
        path = tmp_path / f"config{index}.json"
        path.write_text(raw, encoding="utf-8")
        yield str(path)
        yield base64.b64encode(raw.encode()).decode()
        yield base64.urlsafe_b64encode(raw.encode()).decode().rstrip("=")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("size", LIKE_SIZES, ids=repr)
def test_what_is_like_a_size_is_none_whatever_it_was_read_from(tmp_path, place, size):
    config = {"tensor_parallel": PLACES[place](size)}
    for source in (config, *texts(config, tmp_path)):
        with pytest.raises(ConfigError) as caught:
            read_config(source)
        assert [problem.path for problem in caught.value.problems] == [place]
        assert "a size is an integer" in caught.value.problems[0].message


@pytest.mark.parametrize("size", [Decimal(2), Fraction(2), 2 + 0j, b"2"], ids=repr)
def test_a_number_of_another_type_is_no_size(size):
    with pytest.raises(ConfigError, match="a size is an integer"):
        read_config({"tensor_parallel": {"autotp_size": size}})


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("size", [-3, 0, 1, 16, 12289])
def test_every_integer_is_a_size_from_every_source(tmp_path, place, size):
    config = {"tensor_parallel": PLACES[place](size)}
    for source in (config, *texts(config, tmp_path)):
        section = read_config(source).section
        assert section is not None
        found = section.autotp_size if "autotp" in place else section.tp_size
        assert (found, type(found)) == (size, int)


def test_what_the_caller_changes_afterwards_changes_nothing():
    ranks = [0, 1]
    section = {
        "autotp_size": 2,
        "injection_policy_tuple": ["a", "b"],
        "partition_config": {"layer_specs": [{"patterns": ["x"], "shape": [[1, 2], -1]}]},
        "tp": {"tp_group": ranks},
    }
    config = {"tensor_parallel": section, "tags": ["one"]}
    reading = read_config(config)
    before = copy.deepcopy((reading.config["tags"], reading.section.carried))
    ranks.append(2)
    config["tags"].append("two")
    section["injection_policy_tuple"].append("c")
    spec = section["partition_config"]["layer_specs"][0]
    spec["patterns"].append("y")
    spec["shape"][0].append(3)
    assert (reading.config["tags"], reading.section.carried) == before
    group = reading.section.tp_group
    assert (group.handle, group.size) == ((0, 1), 2)


def test_a_list_of_ranks_is_kept_as_it_was_when_it_was_given():
    table, problems = GroupTable(), list[Problem]()
    ranks = [3, 4]
    group = table.group(ranks, "tp_group", problems)
    ranks.append(5)
    assert group.handle == (3, 4)
    assert table.group([3, 4], "tp_group", problems) is group
    assert table.group(ranks, "tp_group", problems).identity != group.identity
    assert problems == []


class Word(str):
    """A text of another type, such as a member of a str enum."""


def test_a_choice_may_be_a_text_of_another_type():
    section = read_config({"tensor_parallel": {"autotp_size": 1, "preset_model": Word("llama")}}).section
    assert section.carried["preset_model"] == "llama"


@pytest.mark.parametrize("keys", [("enable", "other"), ("other", "enable"), ("loss_scale", "Enabled", "x")])
def test_a_misspelled_key_of_a_block_is_found_wherever_it_stands(keys):
    with pytest.raises(ConfigError, match='"enabled" was probably meant'):
        read_config({"fp16": dict.fromkeys(keys, True)})


def test_ranks_may_be_any_integers():
    problems = list[Problem]()
    assert GroupTable().group([Number(1), Number(0)], "tp_group", problems).handle == (1, 0)
    assert problems == []


def test_an_integer_that_is_too_long_is_shown_by_its_bits_whatever_python_would_print():
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        assert show(10**MAX_DIGITS) == f"an integer of {(10**MAX_DIGITS).bit_length()} bits"
    finally:
        sys.set_int_max_str_digits(before)


class Number(int):
    """An integer of another type."""
