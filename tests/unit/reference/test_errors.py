"""The errors: everything at once, in order, and through a process boundary."""

from __future__ import annotations

import pickle

import pytest
from tpinit.reference.errors import ConfigError, ConflictingCallsError, DecisionError, Problem, TpinitError
from tpinit.reference.resolver import resolve
from tpinit.spec.vocabulary import Call, DType, Inputs, Section

PROBLEMS = [
    Problem("tensor_parallel.tp.mpu", "1", "an mpu here is malformed", "pass it to initialize"),
    Problem("bf16.enabled", '"yes"', "this must be true or false", "write true"),
]


def test_a_config_error_has_every_problem_sorted_by_path():
    error = ConfigError(PROBLEMS)
    assert [problem.path for problem in error.problems] == ["bf16.enabled", "tensor_parallel.tp.mpu"]
    for problem in PROBLEMS:
        for part in (problem.path, problem.given, problem.message, problem.fix):
            assert part in str(error)
    assert "2 problems" in str(error)
    assert "1 problem:" in str(ConfigError(PROBLEMS[:1]))


def test_a_config_error_survives_pickling():
    error = pickle.loads(pickle.dumps(ConfigError(PROBLEMS)))
    assert error.problems == ConfigError(PROBLEMS).problems
    assert str(error) == str(ConfigError(PROBLEMS))


def test_what_a_users_object_raised_is_the_cause():
    cause = RuntimeError("not initialised")
    error = ConfigError([Problem("mpu", "", "raised", "fix", cause=cause)])
    assert error.__cause__ is cause
    assert ConfigError(PROBLEMS).__cause__ is None


def test_a_decision_error_explains_every_violation_with_its_fix():
    decision = resolve(Inputs(8, Call(2, DType.BF16), Section(autotp_size=4, dtype=DType.FP16)))
    error = DecisionError(decision)
    assert error.decision is decision
    assert len(decision.violations) == 2
    for violation in decision.violations:
        assert violation.code.value in str(error)
    assert str(error).count("fix:") == 2


def test_all_errors_are_value_errors_of_one_family():
    assert issubclass(TpinitError, ValueError)
    for kind in (ConfigError, DecisionError, ConflictingCallsError):
        assert issubclass(kind, TpinitError)
    assert ConflictingCallsError("differs").code == "CONFLICTING_CALLS"
    with pytest.raises(TpinitError, match="differs"):
        raise ConflictingCallsError("differs")
