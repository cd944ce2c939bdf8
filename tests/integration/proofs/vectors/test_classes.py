"""The classes of inputs: two methods find the same ones, and each has a witness among the vectors."""

from __future__ import annotations

import re

import numpy as np
import pytest
import z3
from tpinit.conformance.vectors import (
    input_of,
    load,
    manifest,
    to_inputs,
)
from tpinit.proofs.claims import THEOREMS, Verdict, right_model
from tpinit.proofs.mutants import no_disabling, without_code
from tpinit.proofs.theorems.classes import judge_witnesses
from tpinit.proofs.vectors import candidates, classes
from tpinit.proofs.vectors.candidates import MissingWitness, columns_of, signatures_of, witnesses
from tpinit.proofs.vectors.families import ATOMS, FAMILIES, PARTS, formula, valuation
from tpinit.spec.concrete import assume
from tpinit.spec.vocabulary import Call, DType, Group, Inputs, Section, ViolationCode

VECTORS = load()
MANIFEST = manifest()


# --- classes -------------------------------------------------------------------------------------------


def test_the_families_decide_the_whole_answer_and_use_every_atom():
    assert {name for family in FAMILIES for name in family.decides} == set(PARTS)
    assert {atom for family in FAMILIES for atom in family.atoms} | {
        "call.tp_size is written", "call.dtype is written", "call.tp_group is written", "mpu.tp_group is written"
    } == set(ATOMS)  # fmt: skip # the four are the facts TPI, TPG and MPU again


@pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])
def test_the_solver_and_the_candidates_find_the_same_classes(family):
    columns = candidates._candidates(candidates._VALUES[family.name])
    codes, within = signatures_of(family, right_model(), columns)
    seen = {format(code, f"0{len(family.atoms)}b") for code in np.unique(codes[within]).tolist()}
    assert seen == set(classes.classes(family)) == set(MANIFEST["families"][family.name]["classes"])


@pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])
def test_z3_finds_a_witness_in_its_class(family):
    """Evaluated by Z3, for some classes: the theorem evaluates all of them without a solver."""
    by_id = {vector.id: vector for vector in VECTORS}
    model = right_model()
    atoms = valuation(family, model)
    for signature, name in list(MANIFEST["families"][family.name]["classes"].items())[::25]:
        solver = z3.Solver()
        solver.add(assume(to_inputs(by_id[name].input), model.given_input))
        solver.add(model.well_typed, family.within(model))
        assert solver.check(formula(atoms, signature)) == z3.sat
        assert solver.check(z3.Not(formula(atoms, signature))) == z3.unsat


@pytest.mark.parametrize(
    ("name", "mutant"), [("sizes", no_disabling()), ("errors", without_code(ViolationCode.DTYPE_MISMATCH))]
)
def test_another_contract_has_other_classes(name, mutant):
    (family,) = (family for family in FAMILIES if family.name == name)
    found = classes.classes(family, mutant.apply(right_model()))
    assert set(found) != set(MANIFEST["families"][name]["classes"])


def test_a_solver_that_gives_up_is_no_enumeration(monkeypatch):
    monkeypatch.setattr(classes, "_STEPS", 1)
    with pytest.raises(classes.UndecidedClasses, match="family sizes"):
        classes.classes(FAMILIES[0])


def test_a_class_without_a_candidate_is_told():
    impossible = "00001".ljust(len(FAMILIES[0].atoms), "0")  # CFG without a section
    with pytest.raises(MissingWitness, match="no candidate has the signature 00001"):
        witnesses(FAMILIES[0], [impossible])


def test_columns_hold_what_the_inputs_hold():
    inputs = Inputs(
        8, Call(4, DType.FP16, Group(7, 4)), Section(0, -1, DType.FP32, Group(9, 2)), DType.BF16, mesh=Group(7, 4)
    )
    columns = columns_of([inputs, Inputs(1)])
    assert candidates._inputs(columns, 1) == Inputs(1)
    assert input_of(candidates._inputs(columns, 0)) == input_of(inputs)


# --- the theorem about the witnesses -------------------------------------------------------------------


def shipped():
    inputs = {vector.id: to_inputs(vector.input) for vector in VECTORS}
    return manifest()["families"], inputs, {vector.id: dict(vector.expected) for vector in VECTORS}


def test_every_class_has_its_witness_and_the_control_falls():
    theorem = THEOREMS["every_class_has_its_witness"]
    assert theorem.prove().verdict is Verdict.PROVED
    assert theorem.refute().verdict is Verdict.REFUTED


def spoiled_family(families, inputs, answers):
    families["sizes"]["atoms"].reverse()
    return "other atoms or parts"


def spoiled_class(families, inputs, answers):
    del families["identities"]["classes"][next(iter(families["identities"]["classes"]))]
    return "class 0000000000000 is not listed"


def spoiled_name(families, inputs, answers):
    families["dtypes"]["classes"]["0000000000"] = "r01-nowhere"
    return "r01-nowhere does not belong to class"


def spoiled_answer(families, inputs, answers):
    answers["r01-no-tp-intent-cccedeea"]["violations"] = []
    return r"the model decides the violations \['NO_TP_INTENT'\]"


def spoiled_row(families, inputs, answers):
    answers["r01-no-tp-intent-cccedeea"]["row"] = 2
    return "the model decides row 1"


@pytest.mark.parametrize("spoil", [spoiled_family, spoiled_class, spoiled_name, spoiled_answer, spoiled_row])
def test_what_is_not_so_is_refuted(spoil):
    parts = shipped()
    said = spoil(*parts)
    result = judge_witnesses(*parts)
    assert result.verdict is Verdict.REFUTED
    assert re.search(said, result.detail)
