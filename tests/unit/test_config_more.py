"""Configs at the edges that mutants of the reader found open."""

import sys

import pytest
from tpinit.reference.config import read_config
from tpinit.reference.errors import ConfigError
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
