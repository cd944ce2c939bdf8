"""The lint of the theorems, each rule with something that it must reject."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import tpinit.proofs.theorems  # noqa: F401 - registers the theorems
from tpinit.proofs import lint, main
from tpinit.proofs.claims import THEOREMS
from tpinit.proofs.running import TheoremResult
from tpinit.proofs.step import rules
from tpinit.step import rules_movement


@pytest.fixture
def folder(tmp_path):
    copied = tmp_path / "theorems"
    shutil.copytree(lint.FOLDER, copied, ignore=shutil.ignore_patterns("__pycache__"))
    return copied


def test_the_theorems_as_they_are_have_no_problem(folder):
    assert lint.problems(folder, THEOREMS) == []


def test_a_module_that_nothing_imports_is_found(folder):
    (folder / "forgotten.py").write_text('"""Nothing."""\n', encoding="utf-8")
    (problem,) = lint.problems(folder, THEOREMS)
    assert problem.startswith("theorems/forgotten.py: no module imports it")


def test_a_module_that_another_one_imports_is_reached(folder):
    (folder / "helping.py").write_text('"""Nothing."""\n', encoding="utf-8")
    rows = folder / "rows.py"
    rows.write_text(
        rows.read_text(encoding="utf-8") + "\nfrom tpinit.proofs.theorems import helping\n", encoding="utf-8"
    )
    assert lint.problems(folder, THEOREMS) == []


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("def undecorated(m):\n    yield Claim('', m.a0, m.a0)\n", "undecorated states claims but never runs"),
        ("def lemmas(m):\n    return [Lemma('', m.a0, m)]\n", "lemmas states claims but never runs"),
        (
            "@theorem('6.1', control=drop_row(7))\ndef unseen(m):\n    pass\n",
            "unseen is a theorem that is not",
        ),
        (
            "@claims.theorem('6.1', control=None)\ndef unseen(m):\n    pass\n",
            "unseen is a theorem that is not",
        ),
        (
            "def later():\n    register(Theorem(name='unheard', clause=''))\n",
            "unheard is a theorem that is not",
        ),
        ("def later():\n    register(Theorem('unheard', ''))\n", "unheard is a theorem that is not"),
    ],
)
def test_a_theorem_that_nothing_runs_is_found(folder, added, said):
    rows = folder / "rows.py"
    rows.write_text(rows.read_text(encoding="utf-8") + "\n\n" + added, encoding="utf-8")
    (problem,) = lint.problems(folder, THEOREMS)
    assert said in problem
    assert problem.startswith("theorems/rows.py:")


def test_a_helper_that_a_theorem_uses_is_no_theorem(folder):
    rows = folder / "rows.py"
    added = "def _some(m):\n    yield Claim('', m.a0, m.a0)\n\n\ndef uses():\n    return _some\n"
    rows.write_text(rows.read_text(encoding="utf-8") + "\n\n" + added, encoding="utf-8")
    assert lint.problems(folder, THEOREMS) == []


@pytest.mark.parametrize("clause", lint.CLAUSES)
def test_a_clause_that_no_theorem_names_is_found(folder, clause):
    rest = {name: theorem for name, theorem in THEOREMS.items() if theorem.clause != clause}
    problems = [problem for problem in lint.problems(folder, rest) if problem.startswith("clause")]
    assert len(problems) == 1
    assert problems[0].startswith(f"clause {clause} (")


def test_a_clause_that_the_contract_has_not_is_found(folder):
    odd = replace(THEOREMS["rows_are_exhaustive"], clause="6.13")
    (problem,) = lint.problems(folder, {**THEOREMS, odd.name: odd})
    assert "'6.13', which is not in the contract" in problem


def test_a_theorem_of_an_engine_says_of_which_source_it_is_proven(folder):
    silent = replace(THEOREMS["shipped_row_number"], sources=())
    (problem,) = lint.problems(folder, {**THEOREMS, silent.name: silent})
    assert "does not name the source" in problem


@pytest.mark.parametrize("semantics", ["paths", "translation"])
def test_a_public_function_without_a_theorem_of_each_semantics_is_found(folder, semantics):
    name = "tpinit.runtime.groups.topology.partitions"
    without = {
        theorem.name: replace(theorem, proves=tuple(each for each in theorem.proves if each != name))
        if theorem.engine.startswith(semantics)
        else theorem
        for theorem in THEOREMS.values()
    }
    assert lint.problems(folder, without) == [f"{name}: no theorem of the engine {semantics!r} names it in `proves`"]


def test_a_problem_fails_the_whole_run_and_is_told(monkeypatch, capsys):
    def run(names, *_):
        return [TheoremResult(name, main.Verdict.PROVED) for name in names]

    monkeypatch.setattr(main, "run", run)
    assert main.prove(["--quiet"]) == 0
    monkeypatch.delitem(main.THEOREMS, "a0_is_necessary")
    assert main.prove(["--quiet"]) == 1
    assert "PROBLEM: theorems/rows.py" in capsys.readouterr().out
    assert main.prove(["--quiet", "--only", "rows_are_*"]) == 0


@pytest.fixture
def steps(tmp_path):
    copied = tmp_path / "step"
    shutil.copytree(lint.STEP_FOLDER, copied, ignore=shutil.ignore_patterns("__pycache__"))
    return copied


def test_a_module_of_the_step_proof_that_nothing_imports_is_found(folder, steps):
    (steps / "forgotten.py").write_text('"""Nothing."""\n', encoding="utf-8")
    (problem,) = lint.problems(folder, THEOREMS, steps)
    assert problem.startswith("step/forgotten.py: no module imports it")


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("def undecorated(right):\n    yield base([], right)\n", "undecorated states claims but never runs"),
        ("@rule_theorem((), '', ())\ndef unseen(right):\n    pass\n", "unseen is a theorem that is not"),
    ],
)
def test_a_theorem_of_the_step_proof_that_nothing_runs_is_found(folder, steps, added, said):
    sums = steps / "sums.py"
    sums.write_text(sums.read_text(encoding="utf-8") + "\n\n" + added, encoding="utf-8")
    (problem,) = lint.problems(folder, THEOREMS, steps)
    assert said in problem


def test_each_rule_of_the_step_proof_without_a_theorem_is_found():
    about = [theorem for theorem in THEOREMS.values() if theorem.rules]
    for rule in rules.named():
        without = [replace(one, rules=tuple(each for each in one.rules if each != rule)) for one in about]
        (problem,) = rules.problems(without)
        assert problem.startswith(f"rule {rule} of the step proof: no theorem is about it")


def test_an_entry_that_is_new_in_a_table_is_found(monkeypatch):
    monkeypatch.setitem(rules_movement.MOVEMENT, "flip", rules_movement.MOVEMENT["t"])
    (problem,) = rules.problems(THEOREMS.values())
    assert problem.startswith("rule MOVEMENT.flip")


@pytest.mark.parametrize("name", ["MOVEMENT.flip", "normal form.flip", "pieces.flip", "nothing.flip"])
def test_a_theorem_about_no_rule_is_found(name):
    odd = replace(THEOREMS["step_a_leaf_is_what_its_claim_says"], name="odd", rules=(name,))
    (problem,) = rules.problems([*THEOREMS.values(), odd])
    assert problem == f"theorem odd is about {name!r}, which is no rule of the step proof"
