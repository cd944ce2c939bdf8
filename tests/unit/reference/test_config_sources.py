"""Where a config comes from: mappings, JSON, HJSON, base64, and everything that is none of them."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tpinit.reference.config import read_config
from tpinit.reference.errors import ConfigError, Problem
from tpinit.reference.source import MAX_BYTES, MAX_DEPTH, MAX_VALUES
from tpinit.reference.spellings import MAX_DIGITS, printable, show
from tpinit.spec.vocabulary import Section

CONFIG = {"tensor_parallel": {"autotp_size": 2}, "note": "???>>>~~~"}  # its base64 differs in the two alphabets

MANUAL = Path(__file__).parents[3] / "docs/config.md"


def problems_of(config: object) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        read_config(config)
    return caught.value.problems


def problem_of(config: object) -> Problem:
    (problem,) = problems_of(config)
    return problem


@pytest.fixture
def write(tmp_path):
    def written(text: str | bytes, name: str = "ds_config.json") -> str:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return written


# --- good sources ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_path_as_text_or_as_a_path(write, mark):
    path = write(mark + json.dumps(CONFIG).encode())
    assert read_config(path) == read_config(Path(path)) == read_config(CONFIG)


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("padding", [True, False])
def test_base64_in_both_alphabets(encode, padding):
    text = encode(json.dumps(CONFIG).encode()).decode()
    assert read_config(text if padding else text.rstrip("=")) == read_config(CONFIG)


def test_the_two_alphabets_really_differ_on_this_config():
    raw = json.dumps(CONFIG).encode()
    assert base64.b64encode(raw) != base64.urlsafe_b64encode(raw)


HJSON = """
{
  # the size
  tensor_parallel: {
    autotp_size: 2   // in ranks
    "dtype": bf16
    tp: { tp_size: 2, },
  }
  /* beside it */ gradient_clipping: 1.0
}
"""


@pytest.mark.parametrize("text", [HJSON, HJSON.strip().removeprefix("{").removesuffix("}")])
def test_hjson_with_and_without_braces(write, text):
    reading = read_config(write(text, "ds_config.hjson"))
    assert reading.section is not None
    assert (reading.section.autotp_size, reading.section.tp_size, reading.section.dtype.value) == (2, 2, "bf16")
    assert reading.config["gradient_clipping"] == 1.0
    assert type(reading.config["gradient_clipping"]) is float


def test_hjson_in_base64(write):
    assert read_config(base64.b64encode(HJSON.strip().encode()).decode()).section.autotp_size == 2


@pytest.mark.parametrize("literal", ["0.0", "-0.0", "1.0", "-1.0", "2e0", "1e300"])
def test_a_float_of_hjson_stays_one(write, literal):
    (value,) = read_config(write(f"{{gradient_clipping: {literal}\n}}")).config.values()
    assert (type(value), repr(value)) == (float, repr(float(literal)))


def test_a_path_in_bytes_is_a_path(write):
    class Bytes(os.PathLike):
        def __fspath__(self) -> bytes:
            return os.fsencode(write(json.dumps(CONFIG)))

    assert read_config(Bytes()) == read_config(CONFIG)


def test_the_hjson_library_does_not_turn_floats_into_sizes(write):
    for literal in ("2.0", "2e0", "1.5"):
        assert problem_of(write(f"{{tensor_parallel: {{autotp_size: {literal}\n}}\n}}")).path.endswith("autotp_size")


def test_without_the_hjson_library_json_works_and_hjson_says_what_to_install(write):
    code = """
import sys
sys.modules["hjson"] = None
from tpinit.reference import read_config, ConfigError
assert read_config(sys.argv[1]).section.autotp_size == 2
try:
    read_config(sys.argv[2])
except ConfigError as error:
    print(error)
"""
    args = [write(json.dumps(CONFIG)), write(HJSON, "ds_config.hjson")]
    run = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60, check=True)
    assert "tpinit[hjson]" in run.stdout


def test_a_text_that_only_the_hjson_library_reads_is_shown_where_that_is_missing(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "hjson", None)
    path = write(HJSON)
    problem = problem_of(path)
    assert problem.given == show(path)
    assert problem.message.startswith("this is not JSON: ")


def test_plain_json_never_loads_the_hjson_library(write):
    code = "import sys; from tpinit.reference import read_config; read_config(sys.argv[1]); assert 'hjson' not in "
    code += "sys.modules"
    subprocess.run([sys.executable, "-c", code, write(json.dumps(CONFIG))], timeout=60, check=True)


# --- no source -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("ds_config.json", "neither the path of an existing file nor base64"),
        ("", "neither the path"),
        ("abcd", "neither the path"),
        (f"!{base64.b64encode(b'{}').decode()}!", "neither the path"),
        ("a" * 5000, "neither the path"),
        ("no\0file", "neither the path"),
        (base64.b64encode(b"[1]").decode(), "neither the path"),
        (base64.b64encode(b"\xff\xfe{").decode(), "neither the path"),
        ('{"tensor_parallel": {}}', "json.loads"),
        (base64.b64encode(b'{"a": ').decode(), "neither JSON"),
    ],
)
def test_a_text_that_is_neither_a_path_nor_base64(text, hint):
    problem = problem_of(text)
    assert hint in problem.message + problem.fix
    assert problem.given == ('"the base64 text"' if hint == "neither JSON" else show(text))
    assert len(problem.given) < 70


@pytest.mark.parametrize("config", [3, True, 2.5, b"{}", [], [{}], ("a",), object(), {1, 2}])
def test_a_config_of_another_type(config):
    problem = problem_of(config)
    assert (problem.path, problem.given) == ("config", show(config))
    assert problem.message == f"a config can't be of type {type(config).__name__}"


def test_files_that_are_no_files(tmp_path):
    assert "directory" in problem_of(tmp_path).message
    assert "directory" in problem_of(str(tmp_path)).message
    assert "no such file" in problem_of(tmp_path / "none.json").message
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "not a regular file" in problem_of(pipe).message
    assert "not a regular file" in problem_of("/dev/zero").message


def test_a_file_that_cannot_be_read(write, monkeypatch):
    path = write("{}")

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    assert "Permission denied" in problem_of(path).message


@pytest.mark.parametrize(
    ("raw", "hint"),
    [
        (b"", "empty"),
        (b" \n\t", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b'{"note": "\xff"}', "not UTF-8 text: byte 0xff at offset 10"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b"[1, 2]", "object at its top level"),
        (b"null", "object at its top level"),
        (b"3", "object at its top level"),
        (b'"text"', "object at its top level"),
        (b'{"a": 1', "neither JSON"),
        (b'{"a": 1 "b": 2}', "neither JSON"),
        (b"{/* never closed", "neither JSON"),
        (b"{a: '''never closed", "neither JSON"),
        (b"{a: -1e999\n}", "finite"),
        (b"\x00\x01", "object at its top level"),
        (b" " * (MAX_BYTES + 1), "at most"),
    ],
)
def test_files_that_are_no_configs(write, raw, hint):
    assert hint in problem_of(write(raw)).message


def test_the_limits_are_those_of_the_manual_and_exact(write):
    manual = " ".join(MANUAL.read_text(encoding="utf-8").split())
    limits = (f"{MAX_DEPTH} levels", f"{MAX_BYTES // 1024} KiB", f"{MAX_VALUES:,} values", f"{MAX_DIGITS} digits")
    for limit in limits:
        assert limit in manual
    assert MAX_BYTES % 1024 == 0
    assert read_config(write(b"{}" + b" " * (MAX_BYTES - 2))).config == {}


# --- data that is no config ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["c.json", "c.hjson"])
def test_duplicate_keys_at_any_depth_are_named_with_their_path(write, name):
    text = '{"a": 1, "tensor_parallel": {"tp": {"tp_size": 2, "tp_size": 4}, "dtype": "fp16"}, '
    text += '"a": 2, "l": [{"k": 1, "k": 1}]}'
    if name == "c.hjson":
        text = "# not JSON\n" + text
    problems = problems_of(write(text, name))
    assert [problem.path for problem in problems] == ["a", "l[0].k", "tensor_parallel.tp.tp_size"]
    assert all("more than once" in problem.message for problem in problems)


def test_duplicate_keys_in_base64():
    text = base64.b64encode(b'{"bf16": {}, "bf16": {"enabled": true}}').decode()
    assert problem_of(text).path == "bf16"


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize("where", ["tensor_parallel.autotp_size", "optimizer.params.lr"])
def test_numbers_that_are_not_finite_in_a_text(write, literal, where):
    text = literal
    for key in reversed(where.split(".")):
        text = f'{{"{key}": {text}}}'
    assert problem_of(write(text)).path == where


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_in_a_dict(number):
    assert problem_of({"optimizer": {"betas": [0.9, number]}}).path == "optimizer.betas[1]"
    assert problem_of({"optimizer": {"betas": (0.9, number)}}).path == "optimizer.betas[1]"
    assert problem_of({"tensor_parallel": {"tp": {"tp_size": number}}}).path == "tensor_parallel.tp.tp_size"


def nested(levels: int, kind: str) -> object:
    value: object = 1
    for _ in range(levels):
        value = {"a": value} if kind == "object" else [value]
    return value


@pytest.mark.parametrize("kind", ["object", "list"])
def test_the_limit_on_nesting_is_exact(kind):
    read_config({"a": nested(MAX_DEPTH - 1, kind)})
    problem = problem_of({"a": nested(MAX_DEPTH, kind)})
    assert str(MAX_DEPTH) in problem.message
    assert problem.path == printable("a" + (".a" if kind == "object" else "[0]") * (MAX_DEPTH - 1))


@pytest.mark.parametrize("kind", ["object", "list"])
def test_absurd_nesting_in_a_dict(kind):
    assert "nests" in problem_of({"optimizer": nested(50_000, kind)}).message
    assert any("nests" in problem.message for problem in problems_of({"tensor_parallel": nested(50_000, kind)}))


@pytest.mark.parametrize("opening", ['{"a":', "[", "{a:", "{#\na:["])
def test_absurd_nesting_in_a_text(write, opening):
    problem = problem_of(write('{"a":' + opening * 50_000))
    assert (problem.path, problem.given) == ("config", "")
    assert "nests" in problem.message
    assert "nests" in problem_of(base64.b64encode(("{a:" + opening * 50_000).encode()).decode()).message


def test_a_config_that_contains_itself():
    config: dict[str, object] = {"tensor_parallel": {}}
    config["again"] = config
    assert "itself" in problem_of(config).message
    looped: list[object] = []
    looped.append(looped)
    assert problem_of({"tensor_parallel": {"injection_policy_tuple": looped}}).path.endswith(
        "injection_policy_tuple[0]"
    )


def test_shared_parts_are_no_cycle_unless_they_unfold_without_end():
    part = {"x": 1}
    assert read_config({"a": part, "b": part}).config == {"a": {"x": 1}, "b": {"x": 1}}
    huge: object = 1
    for _ in range(40):
        huge = [huge, huge]
    assert problem_of({"a": huge}).message == f"a config has at most {MAX_VALUES} values"


def test_the_limit_on_values_is_exact():
    assert read_config({"a": [1] * (MAX_VALUES - 1)}).config == {"a": [1] * (MAX_VALUES - 1)}
    assert "at most" in problem_of({"a": [1] * MAX_VALUES}).message


def test_a_key_that_is_given_many_times_is_one_problem(write):
    assert problem_of(write("a: 1\n" * 1000, "c.hjson")).path == "a"


@pytest.mark.parametrize("digits", [4301, 100_000])
def test_integers_beyond_pythons_limit(write, digits):
    literal = "9" * digits
    text = f'{{"tensor_parallel": {{"autotp_size": {literal}}}}}'
    for source in (write(text), write("# hjson\n" + text, "c.hjson"), base64.b64encode(text.encode()).decode()):
        problem = problem_of(source)
        assert problem.path == "tensor_parallel.autotp_size"
        assert problem.given == f"an integer of {digits} digits"
    assert problem_of({"tensor_parallel": {"autotp_size": 10**digits}}).path == "tensor_parallel.autotp_size"


def test_an_integer_that_this_interpreter_does_not_read(write):
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        problem = problem_of(write(f'{{"seed": {"9" * 700}}}'))
    finally:
        sys.set_int_max_str_digits(before)
    assert (problem.path, problem.given) == ("seed", "an integer of 700 digits")


def test_the_longest_integer_is_read(write):
    assert read_config(write(f'{{"tensor_parallel": {{"autotp_size": {"9" * 4300}}}}}')).section == Section(
        10**4300 - 1
    )


@pytest.mark.parametrize("key", [1, None, True, 2.5, (1,), b"dtype"])
def test_keys_that_are_no_strings(key):
    assert problem_of({key: 1}).path == "config"
    assert problem_of({"tensor_parallel": {"tp": {key: 1}}}).path == "tensor_parallel.tp"


def test_what_was_given_is_shown_on_one_short_line():
    for value in ("x" * 10_000, "a\nb\x1b[31m\ud800", ["y"] * 9_000, {"k": "\n" * 500}, object()):
        problem = problem_of({"tensor_parallel": {"autotp_size": value, "dtype": "bf16"}})
        assert len(problem.given) < 70
        assert problem.given.isprintable()
    path = problem_of({"tensor_parallel": {"\n\ud800" * 500: 1}}).path
    assert len(path) < 90
    assert path.isprintable()
    str(problem).encode()


def test_an_object_whose_own_text_raises_is_shown_by_its_type():
    class Mute:
        def __repr__(self) -> str:
            raise RuntimeError("no words")

    assert problem_of({"tensor_parallel": {"dtype": Mute()}}).given == "<Mute>"
