"""Coq itself: wrong definitions fail at the right statement, axioms are found, and Coq decides as Python does."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace

import pytest
from tpinit.conformance.vectors import load, to_inputs
from tpinit.proofs.coq import building, comparing, sources
from tpinit.proofs.coq.drawing import draw_inputs
from tpinit.proofs.coq.main import SEED, main
from tpinit.reference.resolver import resolve
from tpinit.runtime.groups import topology
from tpinit.spec.vocabulary import Effective, Outcome, Source

from support.paths import ROOT

FOLDER = ROOT / "proofs/coq"
SOURCES = sources.read(FOLDER)
pytestmark = pytest.mark.timeout(900)  # coqc and ocamlopt, on cores that other tests use too


@pytest.fixture(autouse=True)
def tools():
    missing = building.missing_tools()
    if missing and os.environ.get("TPINIT_COQ") == "required":
        pytest.fail(f"{', '.join(missing)}: not installed (TPINIT_COQ=required)")
    if missing:
        pytest.skip(f"{', '.join(missing)}: not installed; make coq-tools installs them")


def needed(names, among=SOURCES):
    """The sources that these files require, directly or not, and the files themselves, in their order."""
    wanted = {name.removesuffix(".v") for name in names}
    for source in reversed(among):
        if source.module in wanted:
            wanted.update(source.requires)
    return [source for source in among if source.module in wanted]


# --- wrong definitions ---------------------------------------------------------------------------------

ROW_4 = "Outcome_INIT_FROM_CONFIG None FieldsFrom_CONFIG GroupFrom_{}"
ROW_8 = "{} None FieldsFrom_CONFIG_THEN_CALL GroupFrom_MPU"
BY_MPU = "Rule [(Fact_CFG, true); (Fact_MPU, true); (Fact_TPG, false)]\n    None false false (Some GroupFrom_{})"

# What is wrong, the edits (file, old, new), and where Coq must reject it (file, statement).
MUTANTS = [
    (
        "row 8 starts nothing",
        [("Table.v", ROW_8.format("Outcome_INIT_FROM_CONFIG"), ROW_8.format("Outcome_NO_AUTOTP"))],
        "Verdicts.v",
        "table_and_prose_agree_on_the_outcome",
    ),
    (
        "row 10 requires CFG",
        [
            (
                "Table.v",
                "(Fact_TPG, true); (Fact_CFG, false); (Fact_MPU, true)",
                "(Fact_TPG, true); (Fact_CFG, true); (Fact_MPU, true)",
            )
        ],
        "Rows.v",
        "rows_are_exhaustive",
    ),
    (
        "P5 forgets a config with an mpu",
        [("Prose.v", BY_MPU.format("MPU"), BY_MPU.format("CONFIG"))],
        "Verdicts.v",
        "table_and_prose_agree_on_the_sources",
    ),
    (
        "row 4 and P5 together take the config's group",
        [
            ("Table.v", ROW_4.format("MPU"), ROW_4.format("CONFIG")),
            ("Prose.v", BY_MPU.format("MPU"), BY_MPU.format("CONFIG")),
        ],
        "Merge.v",
        "effective_group_by_facts",
    ),
    (
        "P3 forgets the mesh",
        [("Prose.v", "IDENTITY_MISMATCH\n    [Source_MESH_TP_GROUP; ", "IDENTITY_MISMATCH\n    [")],
        "Equivalence.v",
        "section_four_is_p3",
    ),
    (
        "the call's size comes first",
        [
            ("Contract.v", "match size_at Source_CONFIG_AUTOTP_SIZE with", "match size_at Source_CALL_TP_SIZE with"),
            ("Contract.v", "Some (Source_CONFIG_AUTOTP_SIZE, v)", "Some (Source_CALL_TP_SIZE, v)"),
        ],
        "Meaning.v",
        "effective_size_iff",
    ),
    (
        "the precision is named as the config",
        [("Contract.v", "(Source_PRECISION, Some v)", "(Source_CONFIG_DTYPE, Some v)")],
        "Merge.v",
        "config_is_canonical",
    ),
    (
        "a 0 disables a section beside a call",
        [("Contract.v", "| Some s, None =>", "| Some s, _ =>")],
        "Meaning.v",
        "live_section_iff",
    ),
    (
        "one world mismatches nothing",
        [("Contract.v", "differ Z.eqb given_sizes", "differ Z.eqb given_sizes && negb (input_world_size i =? 48271)")],
        "Violations.v",
        "violated_exactly_when_section_four_says",
    ),
    (
        "the evidence names sizes that are valid",
        [
            (
                "Contract.v",
                "SizeValue (filter invalid_size given_sizes)",
                "SizeValue given_sizes",
            )
        ],
        "Evidence.v",
        "evidence_is_what_is_given",
    ),
    (
        "the last violation is dropped",
        [("Contract.v", "filter violated ViolationCode_all.", "removelast (filter violated ViolationCode_all).")],
        "Equivalence.v",
        "no_violation_iff",
    ),
    (
        "DP groups are as long as TP groups",
        [("Topology.v", "position tp_size) (range (dp_size world_size tp_size))", "position tp_size) (range tp_size)")],
        "Topology.v",
        "dp_groups_partition_the_ranks",
    ),
    (
        "TP groups are reversed",
        [("Topology.v", "position tp_size) (range tp_size).", "position tp_size) (rev (range tp_size)).")],
        "Topology.v",
        "created_tp_groups_partition_the_ranks",
    ),
    (
        "one shard more is longer",
        [("Sharding.v", "(if index <? length mod parts then 1", "(if index <=? length mod parts then 1")],
        "Sharding.v",
        "shards_follow_each_other",
    ),
    (
        "fused blocks begin too early",
        [("Sharding.v", "pieces_from (start + length) rest", "pieces_from (start + held) rest")],
        "Sharding.v",
        "pieces_from_are_a_permutation",
    ),
]


def edited(edits):
    texts = {source.name: source.text for source in SOURCES}
    for name, old, new in edits:
        assert texts[name].count(old) == 1, (name, old)
        texts[name] = texts[name].replace(old, new)
    return [replace(source, text=texts[source.name]) for source in SOURCES]


def on_trust(source):
    """The file with its statements, and without their proofs, which `make coq` checks."""
    return replace(source, text=re.sub(r"Proof\..*?Qed\.", "Admitted.", source.text, flags=re.DOTALL))


def rejected_at(edits, judged, trusted, into):
    """Compile the judged file with its proofs, after what it rests on; return the statement at which Coq rejects it."""
    chain, changed = needed([judged], edited(edits)), {name.removesuffix(".v") for name, _, _ in edits}
    into.mkdir()
    for source in chain:
        if changed.intersection(source.requires):
            changed.add(source.module)
        if source.module not in changed:
            shutil.copy(trusted / f"{source.module}.vo", into)
    building.compile_sources([on_trust(source) for source in chain[:-1] if source.module in changed], into)
    try:
        building.compile_sources(chain[-1:], into)
    except building.CoqFailure as failure:
        return failure.statement
    return None


def test_every_mutant_is_rejected_at_the_statement_that_it_breaks(tmp_path):
    trusted = tmp_path / "trusted"
    building.compile_sources(map(on_trust, needed({name for _, _, name, _ in MUTANTS})), trusted)
    found = {}
    for place, (name, edits, file, statement) in enumerate(MUTANTS):
        at = rejected_at(edits, file, trusted, tmp_path / str(place))
        if at != statement:
            found[name] = at
    assert found == {}
    assert len(MUTANTS) == 15


def test_an_edit_that_changes_no_definition_is_not_rejected(tmp_path):
    trusted = tmp_path / "trusted"
    building.compile_sources(map(on_trust, needed(["Evidence.v"])), trusted)
    comment = [("Contract.v", "(* --- the merge (section 4) --- *)", "")]
    assert rejected_at(comment, "Evidence.v", trusted, tmp_path / "same") is None


# --- assumptions ---------------------------------------------------------------------------------------

FALSE = "Theorem t : 0 = 1.\nProof. destruct so. Qed.\n"
PLANTED = {
    f"Axiom so : False.\n{FALSE}": "Planted.t is not closed: Axioms: so : False",
    f"Variable so : False.\n{FALSE}": "Planted.t is not closed: Axioms: Planted.so : False",
    "Theorem t : 0 = 1.\nProof. Admitted.\n": "Planted.t is not closed: Axioms: t : 0 = 1",
    "Theorem t : 0 = 0.\nProof. reflexivity. Qed.\n": None,
}


@pytest.mark.parametrize("text", PLANTED)
def test_what_is_assumed_is_read_by_coq_and_by_coqchk(text, tmp_path):
    planted = sources.CoqSource("Planted.v", text)
    building.compile_sources([planted], tmp_path)
    asked = building.assumptions_source([planted])
    printed = building.compile_sources([asked], tmp_path)[asked.name]
    wanted = PLANTED[text]
    assert building.open_assumptions(asked, printed) == ([wanted] if wanted else [])
    checked = building.check_compiled(["Planted"], tmp_path)
    assert [problem.partition(":")[0] for problem in checked] == (["coqchk does not say 'Axioms"] if wanted else [])


# --- the decision --------------------------------------------------------------------------------------


def size_always_from_the_call(inputs):
    found = resolve(inputs)
    return replace(found, tp_size=replace(found.tp_size, source=Source.CALL_TP_SIZE)) if found.tp_size.value else found


def one_world_is_magic(inputs):
    found = resolve(inputs)
    return replace(found, outcome=Outcome.ERROR) if inputs.world_size == 48271 else found


def evidence_backwards(inputs):
    found = resolve(inputs)
    return replace(found, violations=tuple(replace(one, given=one.given[::-1]) for one in found.violations))


def no_dp_group(inputs):
    return replace(resolve(inputs), dp_group=None)


def carried_copied(inputs):
    found = resolve(inputs)
    return replace(found, carried=dict(found.carried))


def group_copied(inputs):
    found = resolve(inputs)
    group = found.tp_group.value
    return replace(found, tp_group=Effective(replace(group), found.tp_group.source)) if group else found


def violation_dropped(inputs):
    found = resolve(inputs)
    return replace(found, violations=found.violations[:1])


WRONG = (
    size_always_from_the_call,
    one_world_is_magic,
    evidence_backwards,
    no_dp_group,
    carried_copied,
    group_copied,
    violation_dropped,
)


def test_coq_decides_as_the_resolver_and_finds_a_wrong_one(tmp_path, monkeypatch):
    building.compile_sources(needed(["Extract.v"]), tmp_path)
    program = building.extract(FOLDER / "main.ml", tmp_path)
    vectors = [to_inputs(vector.input) for vector in load()]
    assert len(vectors) == 1598
    assert comparing.compare(program, vectors) == []
    drawn = list(draw_inputs(SEED, 3000))
    assert comparing.compare(program, drawn) == []
    assert {wrong.__name__ for wrong in WRONG if not comparing.compare(program, drawn, wrong)} == set()

    assert comparing.compare_arithmetic(program) == []
    monkeypatch.setattr(topology, "tp_groups", lambda world, size: topology.dp_groups(world, world // size)[::-1])
    assert comparing.compare_arithmetic(program) != []
    with pytest.raises(RuntimeError, match="answers 1 of 2 questions: not a question: 12"):
        comparing.ask(program, ["topology 10 1", "12"])


def test_the_command_stops_at_data_that_python_does_not_have(tmp_path, capsys):
    folder = tmp_path / "coq"
    shutil.copytree(FOLDER, folder)
    table = folder / "Table.v"
    table.write_text(table.read_text(encoding="utf-8").replace("GroupFrom_MPU", "GroupFrom_CALL", 1), encoding="utf-8")
    assert main(["check", "--folder", str(folder), "--into", str(tmp_path / "into")]) == 1
    assert "refused: Table.v is not what ROWS and RULES give" in capsys.readouterr().out
