"""The merge and section 4 are written twice: a slip in either of the two is refuted."""

from __future__ import annotations

import pytest
import tpinit.proofs.theorems  # noqa: F401 - registers the theorems
from tpinit.proofs.claims import THEOREMS, Claim, Verdict, right_model
from tpinit.proofs.edited_source import edited_module
from tpinit.proofs.mutation.judge import judge_spec
from tpinit.proofs.mutation.result import MutantStatus
from tpinit.proofs.mutation.spec import spec_mutants
from tpinit.proofs.solvers import decide
from tpinit.proofs.theorems.meaning import merges_agree, violations_agree
from tpinit.spec import meaning

THEOREM_NAMES = ("two_merges_agree", "two_sets_of_violations_agree")

# An edit of the second formulation, and the claim that must not hold of it.
SLIPS = {
    "a section of a 0 counts with an mpu": ("s.autotp != 0, s.alias_given, s.tpi)", "s.autotp != 0, s.mpu)", "CFG"),
    "a section without a size is none": ("z3.Not(s.autotp_given), s.autotp != 0", "s.autotp != 0", "CFG"),
    "an mpu alone wants AutoTP": ("z3.And(z3.Not(s.tpi), z3.Not(sec", "z3.And(z3.Not(s.mpu), z3.Not(sec", "in scope"),
    "the alias before its key": (
        "z3.If(in_config, z3.If(s.autotp_given, s.autotp, s.alias), s.call_size)",
        "z3.If(in_config, z3.If(s.alias_given, s.alias, s.autotp), s.call_size)",
        "size",
    ),
    "the call's size before the config's": (
        "z3.If(in_config, key, constant(Source.CALL_TP_SIZE))",
        "z3.If(s.tpi, constant(Source.CALL_TP_SIZE), key)",
        "source of size",
    ),
    "a size of a section that is off": (
        "in_config = z3.And(section_counts(s), z3.Or(s.autotp_given",
        "in_config = z3.And(s.section, z3.Or(s.autotp_given",
        "size exists",
    ),
    "a precision needs a section": (
        "in_config = z3.Or(of_section, s.precision_given)",
        "in_config = z3.Or(of_section, z3.And(s.section, s.precision_given))",
        "dtype exists",
    ),
    "the precision before the section's dtype": (
        "z3.If(of_section, s.dtype, s.precision)",
        "z3.If(s.precision_given, s.precision, s.dtype)",
        "dtype",
    ),
    "no dtype is the precision's": ("constant(Source.UNSET)", "constant(Source.PRECISION)", "source of dtype"),
    "an mpu without AutoTP gives a group": (
        "direct = z3.And(autotp_wanted(s), z3.Or(s.tpg, s.mpu))",
        "direct = z3.Or(s.tpg, s.mpu)",
        "group exists",
    ),
    "the mesh before the config": (
        "z3.If(s.cgroup_given, s.cgroup, s.mesh_group)",
        "z3.If(s.mesh, s.mesh_group, s.cgroup)",
        "group",
    ),
    "a mesh is no source": ("z3.Or(s.cgroup_given, s.mesh))", "s.cgroup_given)", "group exists"),
    "created with a mesh": (
        "z3.If(s.mesh, constant(Source.MESH_TP_GROUP), constant(Source.CREATED))",
        "constant(Source.CREATED)",
        "source of group",
    ),
    "a mesh is an intent": ("z3.Or(s.tpi, s.mpu, section_counts(s)))", "z3.Or(s.tpi, s.mpu, s.mesh))", "NO_TP_INTENT"),
    "a mesh is a direct source": (
        "z3.Not(z3.Or(s.tpg, s.mpu, section_counts(s)))",
        "z3.Not(z3.Or(s.tpg, s.mpu, s.mesh, section_counts(s)))",
        "NO_GROUP_SOURCE",
    ),
    "one of two direct sources": ("z3.Not(z3.Or(z3.Not(s.tpg), z3.Not(s.mpu)))", "s.tpg", "GROUP_AND_MPU"),
    "a size is missing with a group": (
        "z3.And(section_counts(s), z3.Not(merged_size(s).exists))",
        "z3.And(section_counts(s), z3.Not(s.cgroup_given), z3.Not(merged_size(s).exists))",
        "SIZE_MISSING",
    ),
    "a 0 is invalid": ("s.autotp_given, s.autotp < 0)", "s.autotp_given, s.autotp < 1)", "SIZE_INVALID"),
    "one magic size": ("s.alias <= 0)", "s.alias <= 0, s.alias != -48271)", "SIZE_INVALID"),
    "the call's size is not compared": (
        "z3.Or(alias, z3.And(s.tpi, s.call_size != size))",
        "alias",
        "SIZE_MISMATCH",
    ),
    "a precision is compared alone": (
        "z3.And(section_counts(s), s.precision_given, s.precision != dtype)",
        "z3.And(s.section, s.precision_given, s.precision != s.dtype)",
        "DTYPE_MISMATCH",
    ),
    "a call's group and an mpu's must be one": (
        "z3.And(s.mesh, z3.Or(*of_mesh)))",
        "z3.And(s.mesh, z3.Or(*of_mesh)), z3.And(s.tpg, s.mpu, s.call_group != s.mpu_group))",
        "GROUP_IDENTITY_MISMATCH",
    ),
    "the mesh is compared with the call's only": (
        "for there, group in direct]",
        "for there, group in direct[:1]]",
        "GROUP_IDENTITY_MISMATCH",
    ),
    "a mesh may have any size": ("z3.Or(call, mpu, mesh, config)", "z3.Or(call, mpu, config)", "GROUP_SIZE_MISMATCH"),
    "a larger group fits": (
        "SIZE_OF(s.mpu_group) != size.value",
        "SIZE_OF(s.mpu_group) < size.value",
        "GROUP_SIZE_MISMATCH",
    ),
    "a group of the size of the world": (
        "size.value < 1, s.world % size.value == 0",
        "size.value < 1, size.value == s.world + 1, s.world % size.value == 0",
        "SIZE_NOT_DIVIDING_WORLD",
    ),
}


def _claims(second) -> list[Claim]:
    return [*merges_agree(right_model(), second), *violations_agree(right_model(), second)]


def test_the_two_agree():
    assert [claim.label for claim in _claims(meaning) if decide(claim).verdict is not Verdict.PROVED] == []


@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_in_the_second_formulation_is_refuted(name):
    old, new, label = SLIPS[name]
    claims = _claims(edited_module(meaning, old, new))
    named = [claim for claim in claims if claim.label == label]
    assert len(named) == 1
    result = decide(named[0])
    assert result.verdict is Verdict.REFUTED
    assert "false for" in result.detail


def test_a_second_formulation_that_no_input_reaches_is_refuted():
    empty = edited_module(meaning, "z3.And(section_counts(s), z3.Not(merged_size(s).exists))", "z3.BoolVal(False)")
    alone = next(claim for claim in violations_agree(right_model(), empty) if claim.label == "SIZE_MISSING alone")
    assert decide(alone).detail == "SIZE_MISSING alone: no input satisfies it"


SAMPLE = [mutant for mutant in spec_mutants() if mutant.target in ("predicates", "orders", "decisions")][::7]


@pytest.mark.parametrize("mutant", SAMPLE, ids=[mutant.name[:60] for mutant in SAMPLE])
def test_a_slip_in_the_model_is_refuted_by_these_theorems_alone(mutant):
    others = [name for name in THEOREMS if name not in THEOREM_NAMES]
    assert judge_spec(mutant, without=others).status in (MutantStatus.KILLED, MutantStatus.EQUIVALENT)
