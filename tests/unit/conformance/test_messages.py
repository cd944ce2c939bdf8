"""What may be said in the protocol: every shipped vector, and none of its deformations."""

import copy
import json

import pytest
from tpinit.conformance.messages import check_case, check_request, check_result, read_answer, read_implementation
from tpinit.conformance.protocol import Broken, Errored, Garbage, Result, Skipped, answer_to_json
from tpinit.conformance.vectors import load, schema

CASE = {
    "world_size": 4,
    "groups": {"g1": 2, "g2": 2},
    "call": {"tp_size": 2, "dtype": "bf16", "tp_group": "g1"},
    "section": {"autotp_size": 2, "tp_size": None, "dtype": "bf16", "tp_group": None},
    "precision": "bf16",
    "mpu": {"tp_group": "g2"},
    "mesh": "g1",
}
RESULT = {
    "row": 7,
    "outcome": "init_from_config",
    "violations": [],
    "tp_size": {"value": 2, "source": "config.autotp_size"},
    "dtype": {"value": "bf16", "source": "config.dtype"},
    "tp_group": {"value": "g1", "source": "mesh.tp_group"},
    "section_disabled": False,
}
START = {
    "version": 1,
    "implementation": {"name": "x", "version": "1", "language": "X"},
    "dialects": ["documented"],
    "choices": ["row5-creates-group"],
}
CHOICES = ("row1-plain-data-parallel", "row5-creates-group")


def changed(value, path, new):
    value = copy.deepcopy(value)
    *parents, last = path
    place = value
    for key in parents:
        place = place[key]
    if new is KeyError:
        del place[last]
    else:
        place[last] = new
    return value


def test_every_shipped_vector_is_legal_in_both_directions():
    for vector in load():
        assert check_case(vector.input) == []
        assert check_result(vector.expected, vector.input) == []


@pytest.mark.parametrize(
    ("path", "new"),
    [
        (("world_size",), 0),
        (("world_size",), True),
        (("world_size",), 4.0),
        (("world_size",), KeyError),
        (("extra",), 1),
        (("groups",), []),
        (("groups", "g1"), "2"),
        (("groups", "g1"), 0),
        (("groups", "1g"), 2),
        (("call",), []),
        (("call", "tp_size"), None),
        (("call", "tp_size"), True),
        (("call", "dtype"), "bfloat16"),
        (("call", "dtype"), ["bf16"]),
        (("call", "tp_group"), "g3"),
        (("call", "tp_group"), ["g1"]),
        (("section",), {}),
        (("section", "autotp_size"), "auto"),
        (("section", "tp_size"), 1.0),
        (("section", "more"), 1),
        (("section", "tp_group"), "g9"),
        (("precision",), "fp32"),
        (("mpu", "tp_group"), None),
        (("mesh",), "g3"),
    ],
)
def test_a_malformed_case_is_told_with_its_path(path, new):
    assert check_case(CASE) == []
    problems = check_case(changed(CASE, path, new))
    assert problems
    assert all(path[-1] in problem for problem in problems)


def test_the_case_is_what_the_schema_of_vectors_says():
    jsonschema = pytest.importorskip("jsonschema")
    legal = jsonschema.Draft202012Validator(schema())
    vector = load(smoke=True)[0].to_json()
    assert legal.is_valid({**vector, "input": CASE})
    for path, new in ((("world_size",), 0), (("call", "dtype"), "x"), (("section",), {}), (("precision",), "fp32")):
        assert not legal.is_valid({**vector, "input": changed(CASE, path, new)})


@pytest.mark.parametrize(
    ("path", "new"),
    [
        (("outcome",), KeyError),
        (("outcome",), "ok"),
        (("outcome",), ["error"]),
        (("row",), 13),
        (("row",), True),
        (("violations",), "SIZE_MISSING"),
        (("violations",), ["SIZE"]),
        (("violations",), [["SIZE_MISSING"]]),
        (("violations",), ["SIZE_MISSING", "SIZE_MISSING"]),
        (("tp_size",), 2),
        (("tp_size", "value"), "2"),
        (("tp_size", "value"), True),
        (("tp_size", "source"), "config"),
        (("tp_size", "why"), 1),
        (("dtype", "value"), "float32"),
        (("tp_group", "value"), "g7"),
        (("tp_group", "value"), {}),
        (("section_disabled",), 0),
        (("expected",), {}),
    ],
)
def test_a_malformed_result_is_garbage_and_told_with_its_path(path, new):
    assert read_answer({"seq": 3, "result": RESULT}, 3, CASE) == Result(RESULT)
    answer = read_answer({"seq": 3, "result": changed(RESULT, path, new)}, 3, CASE)
    assert isinstance(answer, Garbage)
    assert path[-1] in answer.message or path[0] in answer.message


def test_all_but_the_outcome_may_be_left_out():
    assert read_answer({"seq": 1, "result": {"outcome": "error"}}, 1, CASE) == Result({"outcome": "error"})


@pytest.mark.parametrize(
    "reply",
    [
        None,
        [],
        "done",
        {},
        {"seq": 1},
        {"seq": 2, "result": RESULT},
        {"seq": True, "result": RESULT},
        {"seq": "1", "result": RESULT},
        {"result": RESULT},
        {"seq": 1, "result": RESULT, "skipped": True, "reason": "x"},
        {"seq": 1, "result": RESULT, "time": 3},
        {"seq": 1, "result": None},
        {"seq": 1, "result": {**RESULT, "observed": 3}},
        {"seq": 1, "skipped": True},
        {"seq": 1, "skipped": 1, "reason": "x"},
        {"seq": 1, "skipped": True, "reason": None},
        {"seq": 1, "errored": True, "reason": "x"},
    ],
)
def test_what_is_no_answer_is_garbage(reply):
    assert isinstance(read_answer(reply, 1, CASE), Garbage)


def test_answers_are_read():
    assert read_answer({"seq": 1, "skipped": True, "reason": "no"}, 1, CASE) == Skipped("no")
    assert read_answer({"seq": 1, "errored": True, "message": "no"}, 1, CASE) == Errored("no")
    seen = read_answer({"seq": 1, "result": {**RESULT, "observed": {"input_changed": True, "loss": 1.5}}}, 1, CASE)
    assert seen == Result(RESULT, {"input_changed": True, "loss": 1.5})
    # What is compared and recorded has the faults, and not the numbers that differ from run to run.
    assert answer_to_json(seen) == {"result": RESULT, "input_changed": True}


@pytest.mark.parametrize(
    ("path", "new", "word"),
    [
        (("version",), 2, "version"),
        (("version",), KeyError, "version"),
        (("implementation",), "x", "implementation"),
        (("implementation", "name"), "", "name"),
        (("implementation", "language"), KeyError, "language"),
        (("dialects",), "documented", "dialects"),
        (("dialects",), [1], "dialects"),
        (("choices",), ["row2-guesses"], "row2-guesses"),
        (("hello",), 1, "hello"),
    ],
)
def test_a_malformed_start_is_refused(path, new, word):
    assert read_implementation(START, CHOICES).choices == ("row5-creates-group",)
    with pytest.raises(Broken, match=word):
        read_implementation(changed(START, path, new), CHOICES)


@pytest.mark.parametrize(
    "request_",
    [
        None,
        {"cmd": "go"},
        {"cmd": "start"},
        {"cmd": "start", "version": 1, "expected": {}},
        {"cmd": "dialect"},
        {"cmd": "dialect", "dialect": 3},
        {"cmd": "run", "seq": 1},
        {"cmd": "run", "seq": True, "case": CASE},
        {"cmd": "run", "seq": 1, "case": CASE, "expected": RESULT},
        {"cmd": "run", "seq": 1, "case": {**CASE, "expected": RESULT}},
        {"cmd": "stop", "now": True},
    ],
)
def test_a_malformed_request_is_never_sent(request_):
    assert check_request({"cmd": "run", "seq": 1, "case": CASE}) == []
    assert check_request(request_) != []


def test_problems_are_short_however_long_the_value():
    (problem,) = check_case({**CASE, "mesh": "g" * 10_000})
    assert len(problem) < 200
    assert json.dumps(problem)
    assert len(check_case({**CASE, "world_size": -(10**5000)})[0]) < 200
