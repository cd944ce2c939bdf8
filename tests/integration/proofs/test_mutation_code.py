"""Judging mutants of proven modules: the checker of the subset and the theorems, without a test."""

from __future__ import annotations

import pytest
from tpinit.proofs.mutation.by_theorems import equal
from tpinit.proofs.mutation.code import TARGETS, checkout, judge_code, mutants_of
from tpinit.proofs.mutation.result import MutantStatus
from tpinit.proofs.mutation.test_runner import Coverage

BY_NAME = {target.name: target for target in TARGETS}
NO_TESTS = Coverage({}, {})


def judged(name, listed=()):
    target = BY_NAME[name.partition(".")[0]]
    return judge_code(target, name, NO_TESTS, dict.fromkeys(listed, "It is excused by hand, for a reason."))


WRONG = "resolver.size_not_dividing_world: `size >= 1` -> `size < 1`"
EQUAL = "resolver._differing_groups: `1` -> `0`"  # a group is compared with itself too, and equals itself
NO_MPU = "inputs.mpu is None"
PAIR = "(shard_offset(length, parts, index), shard_length(length, parts, index))"


def test_three_modules_are_judged_by_theorems():
    assert [name for name, target in BY_NAME.items() if target.proven] == ["resolver", "topology", "shards"]


@pytest.mark.parametrize(
    ("name", "killer"),
    [
        (WRONG, "shipped_size_not_dividing_world"),
        (
            "resolver.no_tp_intent: `inputs.mpu is None` -> `inputs.mpu is None and inputs.world_size != 12289`",
            "shipped",
        ),
        ("resolver.given_sizes: `Source.CALL_TP_SIZE` -> `Source.CALL_DTYPE`", "shipped"),
        ("resolver._differing_groups: `(one, other)` -> `(other, one)`", "shipped_evidence_of_group_identity_mismatch"),
        (f"shards.shard: `{PAIR}` -> `(shard_offset(length, parts, index),)`", "shard"),
        ("shards.shard_offset: `index < longer` -> `index < longer and type(index) is int`", "proven_modules_are_in"),
        ("topology.tp_rank: `return rank % tp_size` -> `return 0 if rank == 12289 else rank % tp_size`", "every_rank"),
    ],
)
def test_wrong_code_is_refused_without_a_test_though_listed(name, killer):
    found = judged(name, listed=[name])
    assert found.status is MutantStatus.KILLED
    assert found.killer.startswith(killer)
    assert found.message


@pytest.mark.parametrize("name", [EQUAL, "shards.shard_offset: `index < longer` -> `index <= longer`"])
def test_what_the_solvers_show_equal_is_equivalent(name):
    assert judged(name).status is MutantStatus.EQUIVALENT


def test_no_proof_of_equality_is_made_up():
    target = BY_NAME["shards"]
    source = (checkout() / target.file).read_text(encoding="utf-8")
    wrong = source.replace("index < longer", "index < longer and index != 12289")
    assert equal(target.module, source, wrong, "shard_offset") == ""
    assert equal(target.module, source, source, "shard_offset") != ""
    assert equal(target.module, source, source, "pieces") == ""  # it is not a function of integers


def test_magic_numbers_are_put_into_proven_modules_alone():
    assert {WRONG, EQUAL} <= mutants_of(BY_NAME["resolver"]).keys()
    assert any("12289" in name for name in mutants_of(BY_NAME["topology"]))
    assert not any("12289" in name for name in mutants_of(BY_NAME["values"]))
