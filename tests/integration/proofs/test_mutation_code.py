"""Judging mutants of the shipped code: when the theorems alone excuse one, and when they don't."""

from __future__ import annotations

import pytest
from tpinit.proofs.mutation.code import TARGETS, judge_code, mutants_of
from tpinit.proofs.mutation.result import MutantStatus
from tpinit.proofs.mutation.test_runner import Coverage, temporary_bytecode

RESOLVER = TARGETS[0]
# No test reaches the resolver here: what its theorems say stands alone. The one test is for the way there.
NO_TESTS = Coverage({"tests/unit/reference/test_evidence.py::test_what_a_decision_carries_is_its_inputs": 0.0}, {})


@pytest.fixture(scope="module", autouse=True)
def _bytecode():
    with temporary_bytecode():
        yield


def judged(name, listed=()):
    return judge_code(RESOLVER, name, NO_TESTS, dict.fromkeys(listed, "It is excused by hand, for a reason."))


# The same: a group of one rank leaves none over. The evidence of that violation does not come from there.
EQUAL = "resolver.size_not_dividing_world: `size >= 1` -> `size > 1`"
# The same for every input: a group is itself. Yet the evidence comes from there, of which there is no theorem.
EVIDENCE = "resolver._differing_groups: `1` -> `0`"
# Another decision: of sizes that leave ranks over, none is refused.
WRONG = "resolver.size_not_dividing_world: `size >= 1` -> `size < 1`"


def test_the_resolver_comes_first():
    assert RESOLVER.name == "resolver"
    assert {EQUAL, EVIDENCE, WRONG} <= mutants_of(RESOLVER).keys()


def test_what_all_theorems_about_it_still_prove_is_equivalent():
    found = judged(EQUAL)
    assert (found.status, found.killer) == (MutantStatus.EQUIVALENT, "z3")
    assert found.message.endswith("evidence does not depend on it: shipped_size_not_dividing_world")


def test_what_gives_evidence_is_never_excused_by_theorems():
    assert judged(EVIDENCE).status is MutantStatus.SURVIVED
    assert judged(EVIDENCE, listed=[EVIDENCE]).status is MutantStatus.LISTED


def test_what_decides_otherwise_is_killed_though_listed():
    found = judged(WRONG, listed=[WRONG])
    assert (found.status, found.killer) == (MutantStatus.KILLED, "shipped_size_not_dividing_world")
