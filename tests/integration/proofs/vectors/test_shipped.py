"""The shipped conformance vectors are what the spec gives, and every oracle answers them."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from dataclasses import replace

import pytest
from jsonschema import Draft202012Validator
from tpinit.conformance.messages import check_case
from tpinit.conformance.oracle import comparable, oracle
from tpinit.conformance.vectors import (
    answer_of,
    load,
    manifest,
    schema,
    to_inputs,
)
from tpinit.proofs.edited_source import edited
from tpinit.proofs.vectors import generating
from tpinit.proofs.vectors.boundaries import HUGE
from tpinit.proofs.vectors.flags import REASONS, reason
from tpinit.proofs.vectors.generating import OraclesDisagree, check, committed, generate, vector_of
from tpinit.reference.resolver import resolve
from tpinit.spec.concrete import evaluate
from tpinit.spec.table import ROWS
from tpinit.spec.vocabulary import Decision, Effective, Inputs, Outcome, Section, ViolationCode

VECTORS = load()
MANIFEST = manifest()
FAST = {"resolver": resolve, "brute force": oracle}
QUICK = {"resolver": resolve}


# --- what is shipped -----------------------------------------------------------------------------------


def test_the_vectors_are_what_the_spec_gives(generated):
    assert check(generated, committed()) == []


def test_every_vector_fits_the_schema_and_the_protocol():
    Draft202012Validator.check_schema(schema())
    validator = Draft202012Validator(schema())
    for vector in VECTORS:
        assert list(validator.iter_errors(json.loads(json.dumps(vector.to_json())))) == []
        assert check_case(vector.input) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda v: v.pop("why"),
        lambda v: v.update(note="more"),
        lambda v: v.update(row=13),
        lambda v: v.update(id="R1"),
        lambda v: v.update(clauses=["D12"]),
        lambda v: v.update(clauses=[]),
        lambda v: v["input"].update(world_size=0),
        lambda v: v["input"].update(precision="fp32"),
        lambda v: v["input"].update(call={"tp_size": True, "dtype": "bf16", "tp_group": None}),
        lambda v: v["input"].update(groups={"g1": 0}),
        lambda v: v["input"].update(section={}),
        lambda v: v["expected"].update(violations=["OTHER"]),
        lambda v: v["expected"].update(outcome="ERROR"),
        lambda v: v["expected"]["dtype"].update(source="nowhere"),
    ],
)
def test_the_schema_refuses(spoil):
    body = VECTORS[0].to_json()
    validator = Draft202012Validator(schema())
    body = json.loads(json.dumps(body))
    assert validator.is_valid(body)
    spoil(body)
    assert not validator.is_valid(body)


def test_ids_are_unique_and_say_the_row_the_answer_and_the_input():
    assert len({vector.id for vector in VECTORS}) == len(VECTORS)
    assert [vector.id for vector in VECTORS] == sorted(vector.id for vector in VECTORS)
    for vector in VECTORS:
        words = [*vector.expected["violations"], vector.expected["outcome"]]
        assert re.fullmatch(
            rf"r{vector.row:02}-{words[0].lower().replace('_', '-')}(-and-[1-9]-more)?-[0-9a-f]{{8}}", vector.id
        )


def test_an_id_depends_on_nothing_but_its_own_vector():
    vector = VECTORS[700]
    assert vector_of(to_inputs(vector.input), oracles=QUICK).id == vector.id


def test_no_input_is_there_twice():
    assert len({to_inputs(vector.input) for vector in VECTORS}) == len(VECTORS)


def test_numbers_survive_a_parser_that_reads_floats():
    text = "".join(json.dumps(vector.to_json()) for vector in VECTORS)
    numbers = {int(number) for number in re.findall(r"(?<=: )-?\d+(?=[,}])", text)}
    assert max(map(abs, numbers)) == HUGE
    assert all(int(float(number)) == number for number in numbers)


def test_the_counts_are_told_right():
    counts, rows = MANIFEST["counts"], Counter(vector.row for vector in VECTORS)
    assert counts["vectors"] == len(VECTORS)
    assert counts["smoke"] == len(load(smoke=True))
    assert counts["classes"] == sum(len(family["classes"]) for family in MANIFEST["families"].values())
    assert counts["rows"] == {str(row): rows[row] for row in range(1, 13)}
    witnessed = {name for family in MANIFEST["families"].values() for name in family["classes"].values()}
    assert witnessed | set(MANIFEST["boundaries"]) == {vector.id for vector in VECTORS}


def test_the_smoke_subset_is_every_row_and_every_code_and_no_more():
    smoke = load(smoke=True)
    by_row = {(v.row, v.expected["outcome"], *v.expected["violations"]) for v in smoke}
    for row in ROWS:
        assert (row.number, row.outcome.value, *([row.code.value] if row.code else [])) in by_row
    alone = [v.expected["violations"][0] for v in smoke if len(v.expected["violations"]) == 1]
    assert set(alone) == {code.value for code in ViolationCode}
    codes_of_rows = {row.code for row in ROWS if row.code}
    assert len(smoke) == len(ROWS) + len(ViolationCode) - len(codes_of_rows)


def test_what_is_runnable_can_be_given_to_real_ranks():
    by_id = {vector.id: vector for vector in VECTORS}
    smoke = {vector.id for vector in load(smoke=True)}
    assert smoke <= {name for names in MANIFEST["runnable"].values() for name in names}
    for world, names in MANIFEST["runnable"].items():
        assert names
        for name in names:
            given = by_id[name].input
            assert given["world_size"] == int(world)
            assert all(int(world) % size == 0 for size in given["groups"].values())


def test_every_reason_is_some_vectors_and_every_vector_has_one_of_them():
    used = Counter(vector.why["flag"] for vector in VECTORS)
    assert {why.flag for why, _ in REASONS} <= set(used)
    assert {flag for flag in used if not flag.startswith("BOUNDARY_")} == {why.flag for why, _ in REASONS}


def test_an_input_without_a_reason_is_refused():
    wrong = Decision(3, Outcome.INIT_FROM_CONFIG, tp_size=Effective(), dtype=Effective(), tp_group=Effective())
    with pytest.raises(LookupError, match="no reason fits"):
        reason(Inputs(4), wrong)


# --- every oracle --------------------------------------------------------------------------------------


def test_the_resolver_answers_every_vector(capsys):
    cases = [(to_inputs(vector.input), vector) for vector in VECTORS]
    started = time.perf_counter()
    decisions = [resolve(inputs) for inputs, _ in cases]
    seconds = time.perf_counter() - started
    for (inputs, vector), decision in zip(cases, decisions, strict=True):
        assert answer_of(decision, vector.input["groups"]) == vector.expected
        assert oracle(inputs) == comparable(decision)
    with capsys.disabled():
        print(f" [{len(cases) / seconds:,.0f} vectors a second]", end="")


def test_z3_answers_some_vectors():
    for vector in (*load(smoke=True), *VECTORS[::40]):
        decision = evaluate(to_inputs(vector.input))
        assert answer_of(decision, vector.input["groups"]) == vector.expected


def test_a_vector_on_which_the_oracles_disagree_is_refused():
    blind = edited("section.tp_size is not None:\n        sizes", "False:\n        sizes")
    inputs = Inputs(4, None, Section(None, 2))
    with pytest.raises(OraclesDisagree, match="the oracles disagree") as refusal:
        vector_of(inputs, oracles={**FAST, "z3": evaluate, "blind": blind.resolve})
    assert re.search(r"blind: .*SIZE_MISSING", str(refusal.value))
    assert re.search(r"z3: .*config\.tp\.tp_size", str(refusal.value))
    assert vector_of(inputs, oracles={**FAST, "z3": evaluate}).expected["tp_size"]["source"] == "config.tp.tp_size"


@pytest.mark.parametrize(
    "change",
    [
        lambda d: replace(d, row=d.row % 12 + 1),
        lambda d: replace(d, outcome=Outcome.INIT_FROM_CALL),
        lambda d: replace(d, tp_size=replace(d.tp_size, value=4)),
        lambda d: replace(d, tp_size=replace(d.tp_size, source=None)),
        lambda d: replace(d, dtype=Effective()),
        lambda d: replace(d, tp_group=Effective()),
        lambda d: replace(d, section_disabled=True),
    ],
)
def test_oracles_must_agree_on_every_part_of_the_answer(change):
    with pytest.raises(OraclesDisagree):
        vector_of(Inputs(4, None, Section(2)), oracles={**FAST, "wrong": lambda inputs: change(resolve(inputs))})


def test_nothing_is_generated_where_one_oracle_is_wrong_once(monkeypatch):
    listed = {name: tuple(family["classes"]) for name, family in MANIFEST["families"].items()}
    monkeypatch.setattr(generating, "classes", lambda family: listed[family.name])

    def wrong(inputs):
        decision = resolve(inputs)
        return replace(decision, violations=()) if decision.row == 12 and len(decision.violations) == 5 else decision

    with pytest.raises(OraclesDisagree, match="the oracles disagree"):
        generate({**FAST, "wrong": wrong})
