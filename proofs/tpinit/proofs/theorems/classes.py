"""The conformance vectors are complete: their classes cover every input and decide every part of the answer.

The theorems prove which predicates decide which part of the answer, that the manifest lists every class, and
that each class has a vector (section 6, item 6: the decision is total and deterministic). It follows that an
implementation whose answer depends on these predicates only, and which passes every vector, answers every
input as the contract does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import z3
from tpinit.conformance.vectors import load, manifest, to_inputs
from tpinit.proofs import brute
from tpinit.proofs.claims import CheckResult, Claim, Mutant, Theorem, Verdict, register, right_model, theorem
from tpinit.proofs.mutants import no_disabling, override
from tpinit.proofs.vectors.candidates import columns_of, signatures_of
from tpinit.proofs.vectors.classes import coverage
from tpinit.proofs.vectors.families import FAMILIES, PARTS, VectorFamily, valuation
from tpinit.spec.model import Model, fresh_symbols
from tpinit.spec.vocabulary import Inputs, ViolationCode

__all__ = ["judge_witnesses"]

_BEYOND = (
    "a disjunction of hundreds of classes needs too much memory over the small domain; every_class_has_its_witness "
    "looks up the class of each of its inputs instead"
)


@theorem("6.6", control=no_disabling())
def the_classes_cover_every_input(m: Model) -> Iterable[Claim]:
    """Every input belongs to a class of each family of the conformance vectors: every success to a class of
    `successes`, every error to a class of `errors`, and every input to a class of each other family.
    """
    listed = manifest()["families"]
    for family in FAMILIES:
        covered = coverage(family, m, tuple(listed[family.name]["classes"]))
        given = z3.And(m.well_typed, family.within(m))
        yield Claim(family.name, given, covered, shown=(m.given_input,), no_brute_force=_BEYOND)


def _only_below_5() -> Mutant:
    return override(
        ViolationCode.SIZE_INVALID,
        "also holds for a call's size of 5 or more",
        lambda m, right: z3.Or(right, z3.And(m.given_input.tpi, m.given_input.call_size >= 5)),
    )


@theorem("6.6", control=_only_below_5())
def a_class_decides_its_part_of_the_answer(m: Model) -> Iterable[Claim]:
    """Two inputs of one class get the same answer in the part that the class's family decides: the row,
    whether the section is disabled, each violation and, on success, the outcome and the source of every field.
    """
    other = replace(m, given_input=fresh_symbols("_other"))
    for family in FAMILIES:
        alike = (one == two for one, two in zip(valuation(family, m), valuation(family, other), strict=True))
        inside = (family.within(m), family.within(other))
        given = z3.And(m.well_typed, other.well_typed, *inside, *alike)
        for name in family.decides:
            mine, theirs = PARTS[name].terms(m), PARTS[name].terms(other)
            same = z3.And(*(mine[key] == theirs[key] for key in mine))
            yield Claim(f"{family.name}: {name}", given, same, shown=(m.given_input, other.given_input))


# --- the shipped vectors -------------------------------------------------------------------------------


def judge_witnesses(
    families: Mapping[str, Any], inputs: Mapping[str, Inputs], answers: Mapping[str, Any]
) -> CheckResult:
    """Decide whether each class has a vector and whether the vectors expect the model's answers.

    `families` is the manifest's object, `inputs` and `answers` map the id of a vector to its input and its
    expected answer. The check also looks up the class of every input of the small domain. No solver takes part.
    """
    model, columns, checked = right_model(), columns_of(list(inputs.values())), 0
    if problem := _wrong_answer(model, columns, answers):
        return CheckResult(Verdict.REFUTED, checked, "inputs", problem)
    places = {name: place for place, name in enumerate(inputs)}
    for family in FAMILIES:
        listed = families[family.name]
        if (listed["atoms"], listed["decides"]) != (list(family.atoms), list(family.decides)):
            return CheckResult(
                Verdict.REFUTED, checked, "inputs", f"{family.name}: the manifest lists other atoms or parts"
            )
        codes, within = signatures_of(family, model, columns)
        for signature, name in listed["classes"].items():
            place = places.get(name)
            if place is None or not within[place] or codes[place] != int(signature, 2):
                return CheckResult(
                    Verdict.REFUTED, checked, "inputs", f"{family.name}: {name} does not belong to class {signature}"
                )
        checked += len(listed["classes"])
        outside = _outside(family, model, listed["classes"])
        if outside:
            return CheckResult(Verdict.REFUTED, checked, "inputs", f"{family.name}: class {outside[0]} is not listed")
    return CheckResult(Verdict.PROVED, checked + len(brute.domain()["size_of"]), "inputs")


def _outside(family: VectorFamily, model: Model, listed: Iterable[str]) -> list[str]:
    codes, within = signatures_of(family, model, brute.domain())
    missing = set(np.unique(codes[within]).tolist()) - {int(signature, 2) for signature in listed}
    return [format(code, f"0{len(family.atoms)}b") for code in sorted(missing)]


def _wrong_answer(model: Model, columns: dict[str, Any], answers: Mapping[str, Any]) -> str:
    known: dict[int, Any] = {}
    terms = [model.row_number, model.disabled, *(model.violation(code) for code in ViolationCode)]
    rows, disabled, *holds = (np.broadcast_to(brute.evaluate(t, columns, known), len(answers)) for t in terms)
    for place, (name, answer) in enumerate(answers.items()):
        codes = [code.value for code, held in zip(ViolationCode, holds, strict=True) if held[place]]
        if (answer["row"], answer["section_disabled"]) != (rows[place], disabled[place]):
            return f"{name}: the model decides row {rows[place]}"
        if answer["violations"] != codes or (answer["outcome"] == "error") != bool(codes):
            return f"{name}: the model decides the violations {codes}"
    return ""


def _shipped() -> tuple[dict[str, Any], dict[str, Inputs], dict[str, Any]]:
    vectors = load()
    inputs = {vector.id: to_inputs(vector.input) for vector in vectors}
    return manifest()["families"], inputs, {vector.id: vector.expected for vector in vectors}


def _swapped(classes: Mapping[str, str]) -> dict[str, str]:
    names: Sequence[str] = list(classes.values())
    return dict(zip(classes, [*names[1:], names[0]], strict=True))


def _prove() -> CheckResult:
    return judge_witnesses(*_shipped())


def _refute() -> CheckResult:
    """Decide the control: in one family, each class has the vector of the next class."""
    families, inputs, answers = _shipped()
    wrong = families["dtypes"] | {"classes": _swapped(families["dtypes"]["classes"])}
    return judge_witnesses(families | {"dtypes": wrong}, inputs, answers)


register(
    Theorem(
        "every_class_has_its_witness",
        "Every class in the manifest has a vector whose input belongs to it, every vector expects the answer that the "
        "model gives, and every input of the small domain belongs to a class in the manifest.",
        "6.6",
        "in one family each class has the vector of the next class",
        engine="evaluation",
        sources=(
            "tpinit.spec.model",
            "tpinit.spec.symbols",
            "tpinit.proofs.vectors.families",
            "tpinit.conformance.vectors",
        ),
        prove=_prove,
        refute=_refute,
    )
)
