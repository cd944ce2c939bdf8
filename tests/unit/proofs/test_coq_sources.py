"""The Gallina sources as text: the data is what Python has, every theorem has its sentence, nothing is only stated."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest
from tpinit.conformance.domain import EVERY_FEATURE, features, shape
from tpinit.conformance.oracle import comparable
from tpinit.proofs.coq import building, comparing, generating, sources
from tpinit.proofs.coq.drawing import draw_inputs
from tpinit.proofs.coq.main import DRAWS, SEED, main
from tpinit.reference.resolver import resolve
from tpinit.spec.prose import DISAGREEMENTS, RULES
from tpinit.spec.table import ROWS

from support.paths import ROOT

FOLDER = ROOT / "proofs/coq"
COQ = {source.name: source for source in sources.read(FOLDER)}


def edited(name, old, new):
    assert COQ[name].text.count(old) >= 1
    changed = replace(COQ[name], text=COQ[name].text.replace(old, new, 1))
    return [changed if source.name == name else source for source in COQ.values()]


# --- data ----------------------------------------------------------------------------------------------


def test_the_committed_data_is_what_python_has():
    assert generating.differing(FOLDER) == []


def test_changed_or_missing_data_is_found(tmp_path):
    generating.write(tmp_path)
    assert generating.differing(tmp_path) == []
    (tmp_path / "Table.v").write_text(generating.table_text(ROWS[:-1]), encoding="utf-8")
    (tmp_path / "Prose.v").unlink()
    assert generating.differing(tmp_path) == ["Table.v", "Prose.v"]


def test_each_field_of_a_row_and_of_a_rule_is_written():
    whole = {generating.table_text(), generating.prose_text()}
    row, rule, one = ROWS[7], RULES[0], DISAGREEMENTS[2]
    for change in ("number", "tpi", "tpg", "cfg", "mpu", "outcome", "code", "fields_from", "group_from"):
        other = next(getattr(each, change) for each in ROWS if getattr(each, change) != getattr(row, change))
        whole.add(generating.table_text([replace(row, **{change: other}) if each is row else each for each in ROWS]))
    for change in ("when", "outcome", "reads_config", "reads_call", "group", "rejects"):
        other = next(getattr(each, change) for each in RULES if getattr(each, change) != getattr(rule, change))
        whole.add(generating.prose_text([replace(rule, **{change: other}), *RULES[1:]]))
    for change in ("code", "sources", "groups", "except_pair"):
        other = getattr(DISAGREEMENTS[3], change)
        whole.add(generating.prose_text(RULES, [*DISAGREEMENTS[:2], replace(one, **{change: other}), DISAGREEMENTS[3]]))
    assert len(whole) == 2 + 9 + 6 + 4


def test_the_formulations_require_nothing_of_each_other():
    assert COQ["Table.v"].requires == COQ["Prose.v"].requires == ("Vocabulary",)


# --- theorems ------------------------------------------------------------------------------------------


def test_the_sources_have_no_problem():
    assert sources.problems(COQ.values()) == []


def test_every_item_of_the_contract_has_its_theorems():
    counts = Counter(theorem.clause for theorem in sources.theorems(COQ.values()))
    assert counts == dict(zip(sources.CLAUSES, (7, 8, 7, 4, 4, 14, 2, 6, 7), strict=True))


def test_the_page_counts_them_right():
    page = (ROOT / "docs/proofs.md").read_text(encoding="utf-8")
    counts = Counter(theorem.clause for theorem in sources.theorems(COQ.values()))
    assert {item: int(count) for item, count in re.findall(r"^\| (6\.\d) \| (\d+) \|", page, re.MULTILINE)} == counts
    assert f"These are {sum(counts.values())} theorems;" in page


def test_what_is_assumed_inside_of_sections_is_known():
    # A premise becomes a part of every theorem of its section, so a new one is for a reader to judge.
    every = [
        f"{source.name}: {line}"
        for source in COQ.values()
        for line in source.text.splitlines()
        if re.match(r"\s*(?:Hypothesis|Hypotheses|Variables?|Context)\b", line)
    ]
    one_input = "Context {G D C : Type} {GG : Groups G} (i : input G D C)."
    assert [line for line in every if not line.endswith(one_input)] == [
        "Topology.v: Variables world_size tp_size : Z.",
        "Topology.v: Hypothesis positive : 1 <= tp_size.",
        "Topology.v: Hypothesis world_positive : 1 <= world_size.",
        "Topology.v: Hypothesis divides : (tp_size | world_size).",
        "Unbounded.v: Context {G H D C : Type} {GG : Groups G} {GH : Groups H}.",
        "Unbounded.v: Variable f : G -> H.",
        "Unbounded.v: Hypothesis keeps_identity : forall a b, group_eqb (f a) (f b) = group_eqb a b.",
        "Unbounded.v: Hypothesis keeps_size : forall a, size_of (f a) = size_of a.",
        "Unbounded.v: Variable i : input G D C.",
    ]


PROOF = "Proof. intros [[] [] [] []]; vm_compute; lia. Qed."


@pytest.mark.parametrize(
    ("name", "old", "new", "problem"),
    [
        ("Rows.v", PROOF, "Proof. Admitted.", "Rows.v: line 29: 'Admitted' is refused"),
        ("Rows.v", PROOF, "Proof. admit. Qed.", "Rows.v: line 29: 'admit' is refused"),
        ("Rows.v", PROOF, "Axiom so : False. " + PROOF, "Rows.v: line 29: 'Axiom' is refused"),
        ("Rows.v", PROOF, "Parameter so : False. " + PROOF, "Rows.v: line 29: 'Parameter' is refused"),
        ("Rows.v", PROOF, "Unset Guard Checking. " + PROOF, "Rows.v: line 29: 'Unset' is refused"),
        ("Extract.v", "Extraction Language", "Extract Constant x => y. Extraction Language", "'Extract' is refused"),
        ("Rows.v", PROOF, "Proof. Abort.", "Rows.v: line 29: 'Abort' is refused"),
        ("Rows.v", "Qed.", "Defined.", "Rows.v: 8 statements, 8 Proof and 7 Qed"),
        ("Rows.v", "(* 6.1: no combination of", "(* No combination of", "Theorem rows_are_disjoint has no comment"),
        ("Rows.v", "two rows, with A0 or without. *)", "two rows. *)\n", "Theorem rows_are_disjoint has no comment"),
        (
            "Prose.v",
            "(* One sentence:",
            "Theorem t : True.\nProof. exact I. Qed.\n(* One",
            "stands in a generated file",
        ),
    ],
    ids=lambda value: str(value)[-30:],
)
def test_what_makes_a_proof_mean_less_is_refused(name, old, new, problem):
    assert any(problem in found for found in sources.problems(edited(name, old, new)))


def test_a_clause_without_a_theorem_is_found():
    found = sources.problems(source for source in COQ.values() if source.name != "Unbounded.v")
    assert found == ["no theorem discharges clause 6.7"]


def test_a_missing_file_is_named():
    with pytest.raises(ValueError, match=r"Topology\.v': \['Ranges'\]"):
        sources.compile_order(source for source in COQ.values() if source.name != "Ranges.v")


# --- assumptions ---------------------------------------------------------------------------------------

ASKED = sources.CoqSource("Assumptions.v", "Print Assumptions A.one.\nPrint Assumptions A.two.\n")
CLOSED = "Closed under the global context\n"


def test_all_that_has_a_proof_is_asked_for():
    asked = building.assumptions_source(COQ.values()).text.count("Print Assumptions ")
    assert asked == sum(source.text.count("\nQed.") + source.text.count(" Qed.") for source in COQ.values()) + 1


@pytest.mark.parametrize(
    ("printed", "problem"),
    [
        (CLOSED + "Axioms:\nA.so : False\n", "A.two is not closed: Axioms: A.so : False"),
        ("Axioms:\nA.so : False\n" + CLOSED, "A.one is not closed: Axioms: A.so : False"),
        ("Section Variables:\nx : nat\n" + CLOSED, "A.one is not closed: Section Variables: x : nat"),
        (CLOSED, "2 questions about assumptions have 1 answers"),
        (CLOSED * 3, "2 questions about assumptions have 3 answers"),
        ("", "2 questions about assumptions have 0 answers"),
    ],
)
def test_an_open_assumption_is_found(printed, problem):
    assert building.open_assumptions(ASKED, CLOSED * 2) == []
    (found,) = building.open_assumptions(ASKED, printed)
    assert found.startswith(problem)


# --- drawn inputs --------------------------------------------------------------------------------------


def test_the_drawn_inputs_reach_everything_and_are_the_same_again():
    drawn = list(draw_inputs(SEED, 10_000))
    assert features(shape(comparable(resolve(inputs))) for inputs in drawn) == EVERY_FEATURE
    assert list(draw_inputs(SEED, 50)) == drawn[:50]
    assert sum(inputs.world_size > 2**63 for inputs in drawn) > 500
    assert len({comparing.question_of(inputs) for inputs in drawn}) > 9_000
    assert DRAWS == 100_000


# --- the command ---------------------------------------------------------------------------------------


def test_the_list_names_every_theorem(capsys):
    assert main(["list", "--folder", str(FOLDER)]) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"^6\.\d  \w+\.\w+\n     \S", printed, re.MULTILINE)) == 59
    assert printed.endswith("59 theorems\n")


def test_a_folder_without_the_development_is_named(tmp_path, capsys):
    assert main(["check", "--folder", str(tmp_path)]) == 2
    assert f"tpinit: {tmp_path} does not hold the Coq development. fix: " in capsys.readouterr().err


def test_a_missing_tool_is_named(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["check", "--folder", str(FOLDER)]) == 2
    assert "tpinit: coqc, coqchk, ocamlopt: not installed. fix: as root, apt-get install" in capsys.readouterr().err
