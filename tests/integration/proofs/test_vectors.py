"""The conformance vectors: what is shipped is what the spec gives, and what must be refused is refused."""

from __future__ import annotations

import json
import re
import struct
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import z3
from jsonschema import Draft202012Validator
from tpinit.cli import main as cli
from tpinit.cli import vectors as command
from tpinit.conformance.messages import check_case
from tpinit.conformance.oracle import comparable, oracle
from tpinit.conformance.vectors import (
    MalformedInput,
    answer_of,
    input_of,
    load,
    manifest,
    schema,
    to_inputs,
)
from tpinit.proofs.claims import THEOREMS, Verdict, right_model
from tpinit.proofs.mutants import no_disabling, without_code
from tpinit.proofs.shipping import edited
from tpinit.proofs.theorems.classes import judge_witnesses
from tpinit.proofs.vectors import candidates, classes, generating
from tpinit.proofs.vectors.boundaries import HUGE
from tpinit.proofs.vectors.candidates import MissingWitness, columns_of, signatures_of, witnesses
from tpinit.proofs.vectors.families import ATOMS, FAMILIES, PARTS, formula, valuation
from tpinit.proofs.vectors.flags import REASONS, reason
from tpinit.proofs.vectors.generating import Refused, check, committed, generate, hash_of, spec_hash, vector_of
from tpinit.reference.resolver import resolve
from tpinit.spec.concrete import assume, evaluate
from tpinit.spec.table import ROWS
from tpinit.spec.vocabulary import Call, Decision, DType, Effective, Group, Inputs, Mpu, Outcome, Section, ViolationCode

VECTORS = load()
MANIFEST = manifest()
FAST = {"resolver": resolve, "brute force": oracle}
QUICK = {"resolver": resolve}


@pytest.fixture(scope="module")
def generated():
    """All of it again, asked of the two oracles that are quick; `tpinit vectors --check` asks Z3 as well."""
    return generate(FAST)


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
    with pytest.raises(Refused, match="the oracles disagree") as refusal:
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
    with pytest.raises(Refused):
        vector_of(Inputs(4, None, Section(2)), oracles={**FAST, "wrong": lambda inputs: change(resolve(inputs))})


def test_nothing_is_generated_where_one_oracle_is_wrong_once(monkeypatch):
    listed = {name: tuple(family["classes"]) for name, family in MANIFEST["families"].items()}
    monkeypatch.setattr(generating, "classes", lambda family: listed[family.name])

    def wrong(inputs):
        decision = resolve(inputs)
        return replace(decision, violations=()) if decision.row == 12 and len(decision.violations) == 5 else decision

    with pytest.raises(Refused, match="the oracles disagree"):
        generate({**FAST, "wrong": wrong})


# --- wrong implementations -----------------------------------------------------------------------------


def failed(implementation, vectors=VECTORS):
    return [v.id for v in vectors if answer_of(implementation(to_inputs(v.input)), v.input["groups"]) != v.expected]


def test_the_shipped_resolver_fails_none():
    assert failed(resolve) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("section.autotp_size == 0 and section.tp_size is None and inputs.call is None", "section.autotp_size == 0"),
        ("return None if section_disabled(inputs) else inputs.section", "return inputs.section"),
        ("not in_scope(inputs) and inputs.mpu is None", "not in_scope(inputs)"),
        ("call.tp_group is None and live_section(inputs) is None and", "live_section(inputs) is None and"),
        ("live_section(inputs) is None and inputs.mpu is None", "live_section(inputs) is inputs.mpu is inputs.mesh"),
        ("given.value < 1 and not", "given.value < 0 and not"),
        ("given.source is Source.CONFIG_AUTOTP_SIZE and given.value == 0", "given.value == 0"),
        ("return in_scope(inputs) and bool(_strangers(inputs))", "return bool(_strangers(inputs))"),
        ("not excepted and one.value.identity", "one.value.identity"),
        ("one.value.identity != other.value.identity", "one.value.size != other.value.size"),
        ("size >= 1 and inputs.world_size % size != 0", "size >= 1 and inputs.world_size < size"),
        ("not created(inputs) or not sizes", "live_section(inputs) is None or not sizes"),
        ("    if not in_scope(inputs):\n        return Effective()\n", ""),
        ("given[0].value for other in given[1:]", "given[0].value for other in given[1:2]"),
        ("inputs.mpu is not None:\n        groups", "inputs.mpu is not None and not groups:\n        groups"),
        ("is not None and not given_sizes(inputs)", "is not None and not given_sizes(inputs) and not inputs.mpu"),
        ("sizes and given.value.size != sizes[0].value", "sizes and given.value.size > sizes[0].value"),
    ],
)  # fmt: skip
def test_a_resolver_that_is_wrong_in_one_place_fails_some(old, new):
    assert failed(edited(old, new).resolve)


def test_a_resolver_that_is_written_otherwise_and_is_right_fails_none():
    """Out of scope a precision is the only dtype that can be given, so that nothing differs there anyway."""
    same = edited("return in_scope(inputs) and _differ(given_dtypes(inputs))", "return _differ(given_dtypes(inputs))")
    assert failed(same.resolve) == []


def test_wrong_in_one_class_of_one_family_fails_that_classs_vector():
    """Each class in turn: an implementation that is right everywhere else fails, for it fails on the witness."""
    by_id = {vector.id: vector for vector in VECTORS}
    for family in MANIFEST["families"].values():
        for name in family["classes"].values():
            target = to_inputs(by_id[name].input)

            def wrong(inputs, target=target):
                decision = resolve(inputs)
                return replace(decision, row=0) if inputs == target else decision

            assert failed(wrong, [by_id[name]]) == [name]


def in_32_bits(inputs):
    """The resolver, were its sizes 32-bit integers that wrap around."""

    def wrapped(size):
        return None if size is None else (size + 2**31) % 2**32 - 2**31

    return resolve_with(inputs, wrapped)


def in_floats(inputs):
    """The resolver, were its sizes 32-bit floats."""

    def rounded(size):
        return None if size is None else int(struct.unpack("f", struct.pack("f", size))[0])

    return resolve_with(inputs, rounded)


def resolve_with(inputs, change):
    groups = [inputs.call and inputs.call.tp_group, inputs.section and inputs.section.tp_group, inputs.mesh]
    groups = [group and replace(group, size=max(change(group.size), 1)) for group in groups]
    mpu = inputs.mpu and Mpu(replace(inputs.mpu.tp_group, size=max(change(inputs.mpu.tp_group.size), 1)))
    call, section = inputs.call, inputs.section
    return resolve(
        Inputs(
            max(change(inputs.world_size), 1),
            call and replace(call, tp_size=change(call.tp_size), tp_group=groups[0]),
            section
            and replace(
                section,
                autotp_size=change(section.autotp_size),
                tp_size=change(section.tp_size),
                tp_group=groups[1],
            ),
            inputs.precision,
            mpu,
            groups[2],
        )
    )


@pytest.mark.parametrize("wrong", [in_32_bits, in_floats])
def test_only_the_boundaries_notice_numbers_that_are_too_short(wrong):
    edges = set(MANIFEST["boundaries"])
    assert failed(wrong, [v for v in VECTORS if v.id in edges])
    assert failed(wrong, [v for v in VECTORS if v.id not in edges]) == []


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
    with pytest.raises(classes.Undecided, match="family sizes"):
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
    return "another family"


def spoiled_class(families, inputs, answers):
    del families["identities"]["classes"][next(iter(families["identities"]["classes"]))]
    return "no class 0000000000000 is listed"


def spoiled_name(families, inputs, answers):
    families["dtypes"]["classes"]["0000000000"] = "r01-nowhere"
    return "r01-nowhere is not of class"


def spoiled_answer(families, inputs, answers):
    answers["r01-no-tp-intent-cccedeea"]["violations"] = []
    return r"the model says \['NO_TP_INTENT'\]"


def spoiled_row(families, inputs, answers):
    answers["r01-no-tp-intent-cccedeea"]["row"] = 2
    return "the model says row 1"


@pytest.mark.parametrize("spoil", [spoiled_family, spoiled_class, spoiled_name, spoiled_answer, spoiled_row])
def test_what_is_not_so_is_refuted(spoil):
    parts = shipped()
    said = spoil(*parts)
    result = judge_witnesses(*parts)
    assert result.verdict is Verdict.REFUTED
    assert re.search(said, result.detail)


# --- checking files ------------------------------------------------------------------------------------


def changed(name, change):
    texts = committed()
    return texts | {name: change(texts[name])}


def first_line_dropped(text):
    return text.partition("\n")[2]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (changed("vectors.jsonl", lambda t: t.replace('"smoke": true', '"smoke": false', 1)), "differs in smoke"),
        (changed("vectors.jsonl", lambda t: t.replace("NO_TP_INTENT", "NO_GROUP_SOURCE", 1)), "differs in expected"),
        (changed("vectors.jsonl", first_line_dropped), f"{VECTORS[0].id}: is not committed"),
        (changed("vectors.jsonl", lambda t: t + '{"id": "r01-more"}\n'), "r01-more: is committed, and generated no"),
        (changed("vectors.jsonl", lambda t: t + "{\n"), "line 1599 of vectors.jsonl, which is no vector"),
        (changed("manifest.json", lambda t: t.replace(spec_hash(), "0" * 64)), "spec: the spec has changed"),
        (
            changed("manifest.json", lambda t: t.replace('"0000000000": "r01', '"0000000000": "r02')),
            "families: differs",
        ),
        (changed("manifest.json", lambda _: "{"), "manifest.json: is missing, or not JSON"),
        (changed("manifest.json", lambda _: "[]"), "manifest.json: format: differs"),
        (changed("vector.schema.json", lambda t: t.replace('"maximum": 12', '"maximum": 13')), "vector.schema.json"),
        (changed("vector.schema.json", lambda t: t + "\n"), "vector.schema.json"),
        (changed("vectors.jsonl", lambda t: t.replace(", ", ",", 1)), "layout only"),
        ({}, "is not committed"),
    ],
)
def test_a_difference_is_told(generated, texts, said):
    assert said in "\n".join(check(generated, texts))


def test_files_that_are_written_are_read_back_the_same(generated, tmp_path):
    generating.write(generated, tmp_path)
    assert {path.name: path.read_bytes().decode() for path in tmp_path.iterdir()} == committed()


def test_the_hash_sees_the_source_and_not_its_line_ends():
    assert MANIFEST["spec"]["sha256"] == spec_hash()
    one = hash_of({"table.py": "a = 1\nb = 2\n"})
    assert hash_of({"table.py": "a = 1  \r\nb = 2\r\n"}) == one
    assert len({one, hash_of({"prose.py": "a = 1\nb = 2\n"}), hash_of({"table.py": "a = 1\nb = 3\n"})}) == 3


# --- loading -------------------------------------------------------------------------------------------


def test_a_vector_that_somebody_changed_is_loaded_unchanged():
    load()[0].input["world_size"] = 99
    assert load()[0].input["world_size"] != 99


def test_inputs_and_their_json_are_the_same_thing():
    for vector in VECTORS:
        assert input_of(to_inputs(vector.input)) == vector.input


def test_the_same_handle_is_the_same_object_and_keeps_its_name():
    case = {
        "world_size": 4,
        "groups": {"other": 2, "g1": 2},
        "call": {"tp_size": 2, "dtype": "bf16", "tp_group": "g1"},
        "section": {"autotp_size": None, "tp_size": None, "dtype": None, "tp_group": "g1"},
        "precision": None,
        "mpu": None,
        "mesh": "other",
    }
    inputs = to_inputs(case)
    assert inputs.call.tp_group == inputs.section.tp_group != inputs.mesh
    assert inputs.call.tp_group.handle == "g1"
    alone = resolve(replace(inputs, mesh=None))
    assert answer_of(alone, case["groups"])["tp_group"] == {"value": "g1", "source": "call.tp_group"}
    with pytest.raises(ValueError, match="not among the groups"):
        answer_of(alone, {"other": 2})


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda case: case.pop("mesh"), "no 'mesh'"),
        (lambda case: case.update(mesh="g9"), "no 'g9'"),
        (lambda case: case.update(precision="int8"), "int8"),
        (lambda case: case.update(world_size=0), "at least 1 rank"),
        (lambda case: case.update(world_size="4"), "str"),
        (lambda case: case.update(call=3), "subscriptable"),
        (lambda case: case.update(groups=None), "None"),
    ],
)
def test_a_malformed_input_is_told(spoil, said):
    case = input_of(Inputs(4, Call(2, DType.BF16)))
    spoil(case)
    with pytest.raises(MalformedInput, match=said):
        to_inputs(case)


# --- the command ---------------------------------------------------------------------------------------


def test_the_command_counts_and_lists(capsys):
    assert cli.main(["vectors"]) == 0
    said = capsys.readouterr().out
    assert f"{len(VECTORS)} vectors\n" in said
    assert MANIFEST["spec"]["sha256"] in said
    assert cli.main(["vectors", "--smoke"]) == 0
    assert "19 vectors in the smoke subset\n" in capsys.readouterr().out
    assert cli.main(["vectors", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [v.id for v in VECTORS]
    assert cli.main(["vectors", "--list", "--smoke"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 19


def test_the_command_checks(generated, monkeypatch, capsys):
    monkeypatch.setattr(generating, "generate", lambda: generated)
    assert cli.main(["vectors", "--check"]) == 0
    assert f"all {len(VECTORS)} vectors are what the spec gives" in capsys.readouterr().out
    monkeypatch.setattr(generating, "committed", dict)
    assert cli.main(["vectors", "--check"]) == 1
    said = capsys.readouterr().out
    assert f"{VECTORS[0].id}: is not committed" in said
    assert f"... and {len(VECTORS) + 2 - command.MAX_SHOWN} more" in said


def test_the_command_writes(generated, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(generating, "generate", lambda: generated)
    monkeypatch.setattr(command, "_folder", lambda: tmp_path)
    assert cli.main(["vectors", "--write"]) == 0
    assert str(tmp_path) in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == set(generating.FILES)
    monkeypatch.setattr(command, "_folder", lambda: tmp_path / "nowhere")
    assert cli.main(["vectors", "--write"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_oracles_that_disagree_end_with_1_and_write_nothing(monkeypatch, capsys):
    def refuse():
        raise Refused("the oracles disagree on this")

    monkeypatch.setattr(generating, "generate", refuse)
    monkeypatch.setattr(generating, "write", lambda *_: pytest.fail("it wrote"))
    assert cli.main(["vectors", "--write"]) == 1
    assert "nothing was written: the oracles disagree on this" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"), [(("--check", "--write"), "not allowed with"), (("--what",), "unrecognized")]
)
def test_wrong_options_are_a_usage_error(arguments, said, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["vectors", *arguments])
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_a_subset_cannot_be_regenerated(capsys):
    assert cli.main(["vectors", "--check", "--smoke"]) == 2
    assert "--smoke is for counting and listing" in capsys.readouterr().err


def test_a_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "z3" else SimpleNamespace())
    assert cli.main(["vectors", "--check"]) == 2
    assert "'tpinit vectors --check' needs z3, not installed here" in capsys.readouterr().err
    assert cli.main(["vectors", "--list", "--smoke"]) == 0
