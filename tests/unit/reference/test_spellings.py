"""How what was given is shown, and which legal word is offered for a wrong one."""

from __future__ import annotations

import sys
from enum import Enum
from functools import cache
from itertools import product

import pytest
from tpinit.reference.config import read_config
from tpinit.reference.errors import ConfigError
from tpinit.reference.explain import to_json
from tpinit.reference.resolver import resolve
from tpinit.reference.spellings import DTYPE_SPELLINGS, MAX_DIGITS, is_near, nearest, printable, show, show_int
from tpinit.spec.vocabulary import Call, DType, Group, Inputs

# --- the nearest legal word ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("bfloat", "bfloat16"),
        ("flo", "float"),  # of words that begin so, the shortest
        ("torch.fp", "torch.fp32"),  # of those, the one that is offered first
        ("tor", "torch.fp32"),
        ("to", None),  # two letters are not the beginning of a word
        ("f", None),
        ("  BF16 ", "bf16"),
        ("bf8", "bf16"),  # alike by 4 of 7 letters: less than the default cutoff of difflib
        ("bf_16", "bf16"),
        ("loat", "float"),  # and not float32 or float16, which are less alike
        ("complex", None),
        ("", None),
        (16, None),
        (None, None),
    ],
)
def test_a_wrong_word_is_offered_the_nearest(word, near):
    assert nearest(word, DTYPE_SPELLINGS) == near


def test_among_no_words_none_is_near():
    assert nearest("bf16", ()) is None


@cache
def edits(one, other):
    """Count by definition: the fewest insertions, drops, replacements and swaps of neighbours, each letter once."""
    if not one or not other:
        return len(one) + len(other)
    ways = [edits(one[1:], other) + 1, edits(one, other[1:]) + 1, edits(one[1:], other[1:]) + (one[0] != other[0])]
    if one[:2] == other[1::-1] and len(one) > 1 < len(other):
        ways.append(edits(one[2:], other[2:]) + 1)
    return min(ways)


WORDS = ["".join(letters) for length in range(5) for letters in product("ab", repeat=length)]
WORDS += ["abc", "bca", "cab", "abcd", "badc", "bacd", "dcba", "cabd", "abxy", "abpq", "xypq", "axyz", "apqr", "x"]


@pytest.mark.parametrize("most", [0, 1, 2, 3])
def test_words_are_near_up_to_a_number_of_edits(most):
    for one, other in product(WORDS, WORDS):
        assert is_near(one, other, most) is (edits(one, other) <= most), (one, other)


def test_a_key_without_end_is_told_apart_at_once():
    config = {"x" * 3_000_000: 1}
    assert read_config(config).config == config


# --- numbers -------------------------------------------------------------------------------------------


@pytest.fixture
def digits(request):
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(request.param)
    yield
    sys.set_int_max_str_digits(before)


@pytest.mark.usefixtures("digits")
@pytest.mark.parametrize("digits", [640], indirect=True)
def test_an_interpreter_that_prints_fewer_digits_than_we_read():
    assert show_int(10**600) == f"1{'0' * 600}"
    assert show_int(10**700) == f"an integer of {(10**700).bit_length()} bits"


@pytest.mark.usefixtures("digits")
@pytest.mark.parametrize("digits", [0], indirect=True)
def test_an_interpreter_that_prints_any_number_of_digits():
    assert show_int(10**MAX_DIGITS - 1) == "9" * MAX_DIGITS
    assert show_int(10**MAX_DIGITS) == f"an integer of {(10**MAX_DIGITS).bit_length()} bits"


@pytest.mark.parametrize("sign", [1, -1])
def test_the_limit_on_digits_is_exact(sign):
    longest = sign * (10**MAX_DIGITS - 1)
    assert read_config({"tensor_parallel": {"autotp_size": longest}}).section.autotp_size == longest
    with pytest.raises(ConfigError, match=f"at most {MAX_DIGITS} digits"):
        read_config({"tensor_parallel": {"autotp_size": longest + sign}})


@pytest.mark.parametrize(("size", "kind"), [(10**MAX_DIGITS - 1, int), (10**MAX_DIGITS, str)], ids=["short", "long"])
def test_a_size_that_json_readers_may_refuse_is_told_in_hexadecimal(size, kind):
    told = to_json(resolve(Inputs(size, Call(size, DType.BF16, Group(0, size)))))["tp_size"]["value"]
    assert type(told) is kind
    assert size in (told, int(str(told), 16) if kind is str else told)


# --- text ----------------------------------------------------------------------------------------------


class Colour(str, Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (-3, "-3"),
        (2.5, "2.5"),
        ("two", '"two"'),
        (Colour.RED, '"red"'),
        ("größe", '"größe"'),
        ("a\nb\x1b", '"a\\nb\\x1b"'),
        ([1, "a\n"], "[1, 'a\\n']"),
        (10**61, "1" + "0" * 61),
        (10**62, "1" + "0" * 44 + "..." + "0" * 12),
    ],
)
def test_a_value_is_shown_as_it_was_written(value, shown):
    assert show(value) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a" * 62, "a" * 62),
        ("a" * 63, "a" * 45 + "..." + "a" * 12),
        ("a" * 1000 + "b" * 1000, "a" * 45 + "..." + "b" * 12),
        ("\n" * 31, "\\n" * 31),
        ("\n" * 32, "\\n" * 22 + "\\..." + "\\n" * 6),
    ],
)
def test_a_text_is_shown_whole_or_by_its_two_ends(text, shown):
    assert printable(text) == shown


def test_a_text_in_quotes_may_have_sixty_letters():
    assert show("a" * 60) == f'"{"a" * 60}"'
    assert show("a" * 61) == f'"{"a" * 44}...{"a" * 11}"'


def test_an_object_is_shown_on_one_line():
    class Tall:
        def __repr__(self) -> str:
            return "Tall(\n    1,\n    2)"

    assert show(Tall()) == "Tall( 1, 2)"
