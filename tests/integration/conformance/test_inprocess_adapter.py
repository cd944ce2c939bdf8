"""The adapter of callables in this process: what they return or raise is the answer, and they never return late."""

import contextlib
import json
import threading
import time

import pytest
from tpinit.conformance.adapters.inprocess import CallableAdapter, plain
from tpinit.conformance.protocol import (
    Crashed,
    Errored,
    Garbage,
    Result,
    Skip,
    Skipped,
    TimedOut,
)
from tpinit.conformance.vectors import load
from tpinit.spec.vocabulary import DType

SMOKE = load(smoke=True)
CASE = next(vector for vector in SMOKE if vector.row == 7).input
RIGHT = {"outcome": "init_from_config"}


def asked(answer, timeout=20.0):
    return CallableAdapter(answer).run(CASE, timeout)


def raising(error):
    def answer(case):
        raise error

    return answer


def test_a_callable_is_judged_by_what_it_returns_or_raises():
    assert asked(lambda case: RIGHT) == Result(RIGHT)
    assert asked(lambda case: {**RIGHT, "dtype": {"value": DType.BF16}}).answer["dtype"]["value"] == "bf16"
    assert asked(raising(Skip("too big"))) == Skipped("too big")
    assert asked(raising(ValueError("no"))) == Errored("ValueError: no")
    assert isinstance(asked(raising(SystemExit(3))), Crashed)
    assert isinstance(asked(lambda case: None), Garbage)
    assert isinstance(asked(lambda case: {**RIGHT, "observed": {"model": object()}}), Garbage)
    with pytest.raises(KeyboardInterrupt):
        asked(raising(KeyboardInterrupt()))


def test_a_callable_that_never_returns_is_interrupted():
    def stubborn(case):
        while True:
            with contextlib.suppress(Exception):
                time.sleep(10)

    assert asked(stubborn, 0.1) == TimedOut("no answer in 0.1 s")
    assert asked(lambda case: RIGHT) == Result(RIGHT)


def test_in_another_thread_there_is_no_limit_and_no_harm():
    answers = []
    thread = threading.Thread(target=lambda: answers.append(asked(lambda case: RIGHT)))
    thread.start()
    thread.join()
    assert answers == [Result(RIGHT)]


def test_a_callable_gets_a_copy_and_what_it_returns_is_copied():
    before = json.dumps(CASE)
    kept = {"outcome": "error", "violations": []}

    def answer(case):
        case["groups"]["g9"] = 1
        kept["violations"] = [*kept["violations"], "SIZE_MISSING"][:1]
        return kept

    adapter = CallableAdapter(answer)
    first = adapter.run(CASE, 20)
    kept["violations"].append("SIZE_INVALID")
    assert first.answer["violations"] == ["SIZE_MISSING"]
    assert first.observed == {"input_changed": True}
    assert json.dumps(CASE) == before


def test_plain_data_is_copied_whole():
    value = {"a": [1, (2.5, None)], "b": {"c": DType.FP16, "d": True}}
    assert plain(value) == {"a": [1, [2.5, None]], "b": {"c": "fp16", "d": True}}
    assert type(plain(DType.FP16)) is str
