"""Certificates of the contract's theorems: whole ones are verified, forged and cut ones rejected."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import permutations

import pytest
from pysat.solvers import Cadical153
from tpinit.proofs import main
from tpinit.proofs.certificates import check as checker
from tpinit.proofs.certificates import refuting
from tpinit.proofs.certificates.check import RejectedCertificate, check
from tpinit.proofs.certificates.encoding import FORMULAS, Contract
from tpinit.proofs.certificates.refuting import Certificate, Counterexample, bound, premises_witness, refute
from tpinit.proofs.claims import THEOREMS, Verdict
from tpinit.proofs.running import judge
from tpinit.proofs.theorems import certified
from tpinit.spec.prose import RULES
from tpinit.spec.table import ROWS
from tpinit.spec.vocabulary import Fact, FieldsFrom, GroupFrom, Outcome, ViolationCode

EXHAUSTIVE, DISJOINT, TABLE_IS_PROSE = FORMULAS
RIGHT = {name: refute(make(Contract())) for name, make in FORMULAS.items()}


def rejection(formula, steps):
    with pytest.raises(RejectedCertificate) as caught:
        check(formula, steps)
    return str(caught.value)


COLUMNS = {"outcome": Outcome, "code": ViolationCode, "fields_from": FieldsFrom, "group_from": GroupFrom}


# --- certificates -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMULAS)
def test_the_contract_has_a_certificate_that_is_no_mere_propagation(name):
    right = RIGHT[name]
    assert isinstance(right, Certificate)
    said = check(right.cnf, right.proof)
    assert said.lemmas > 1
    assert "does not follow" in rejection(right.cnf, bound(["0"], right.cnf))


@pytest.mark.parametrize("name", FORMULAS)
def test_the_formula_names_its_variables_and_its_witness(name):
    formula, lines = FORMULAS[name](Contract()), RIGHT[name].cnf.decode().splitlines()
    named = [line.partition(": ")[2] for line in lines if line.startswith("c variable ")]
    assert tuple(named) == formula.variables
    (witness,) = (line for line in lines if line.startswith("c the premises alone have a model: "))
    assert tuple(map(int, witness.partition(": ")[2].split())) == premises_witness(formula)
    clauses = [tuple(map(int, line.split()[:-1])) for line in lines if not line.startswith(("c", "p"))]
    assert tuple(clauses) == formula.clauses


@pytest.mark.parametrize("name", FORMULAS)
def test_every_cut_of_a_certificate_is_rejected(name):
    right = RIGHT[name]
    for end in range(0, len(right.proof), 1 if name == EXHAUSTIVE else 97):
        assert rejection(right.cnf, right.proof[:end])
    for end in range(0, len(right.cnf), 97):
        part = right.cnf[:end]
        assert rejection(part, right.proof)
        assert rejection(part, bound(right.proof.decode().splitlines()[1:], part))


@pytest.mark.parametrize("name", FORMULAS)
def test_a_certificate_without_steps_is_rejected(name):
    assert rejection(RIGHT[name].cnf, b"")
    assert "without the empty clause" in rejection(RIGHT[name].cnf, bound([], RIGHT[name].cnf))


@pytest.mark.parametrize(("one", "other"), list(permutations(FORMULAS, 2)))
def test_a_proof_of_another_theorem_is_rejected(one, other):
    assert "another formula" in rejection(RIGHT[one].cnf, RIGHT[other].proof)


def with_row(number, **changes):
    return certified.changed_row(number, lambda row: replace(row, **changes))


WITHOUT_A_ROW = [(name, certified.without_row(row.number)) for row in ROWS for name in (EXHAUSTIVE, TABLE_IS_PROSE)]
WITHOUT_A_RULE = [(TABLE_IS_PROSE, Contract(rules=tuple(r for r in RULES if r is not gone))) for gone in RULES]


OTHER_CELLS = [
    (TABLE_IS_PROSE, with_row(row.number, **{column: value}))
    for row in ROWS
    for column, enum in COLUMNS.items()
    for value in enum
    if value is not getattr(row, column)
]


TWICE = [
    (DISJOINT, with_row(a.number, tpi=b.tpi, tpg=b.tpg, cfg=b.cfg, mpu=b.mpu)) for a in ROWS for b in ROWS if a is not b
]


WEAKENED = WITHOUT_A_ROW + WITHOUT_A_RULE + OTHER_CELLS + TWICE


def test_there_is_every_weakened_contract():
    assert [len(each) for each in (WITHOUT_A_ROW, WITHOUT_A_RULE, OTHER_CELLS, TWICE)] == [24, 11, 4 * 18 + 8 * 19, 132]


@pytest.mark.parametrize(("name", "weakened"), WEAKENED)
def test_a_weakened_contract_has_a_model_and_no_forged_proof(name, weakened):
    wrong, right = refute(FORMULAS[name](weakened)), RIGHT[name]
    assert isinstance(wrong, Counterexample)
    assert wrong.cnf != right.cnf
    assert "another formula" in rejection(wrong.cnf, right.proof)
    forged = bound(right.proof.decode().splitlines()[1:], wrong.cnf)
    assert "not follow" in (said := rejection(wrong.cnf, forged)) or "not there" in said or "no literal" in said


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.number)
def test_a_counterexample_is_told_in_facts(row):
    wrong = refute(FORMULAS[EXHAUSTIVE](certified.without_row(row.number)))
    assert str(wrong) == ", ".join(f"{fact.value} is {str(truth).lower()}" for fact, truth in row.facts)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.number)
@pytest.mark.parametrize("fact", Fact)
def test_a_flipped_condition_makes_some_theorem_fall(row, fact):
    flipped = with_row(row.number, **{fact.value.lower(): not dict(row.facts)[fact]})
    assert any(isinstance(refute(make(flipped)), Counterexample) for make in FORMULAS.values())


# --- the theorems -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMULAS)
def test_the_theorem_is_proved_and_its_control_refuted(name):
    record = judge(THEOREMS[name])
    assert record.verdict is Verdict.PROVED, record.detail
    (oracle,) = record.oracles.values()
    said = check(RIGHT[name].cnf, RIGHT[name].proof)
    assert (oracle.result.checked, oracle.result.unit) == (said.lemmas + said.deletions, "proof steps")
    assert [result.verdict for result in record.controls.values()] == [Verdict.REFUTED]


@pytest.mark.parametrize("name", FORMULAS)
def test_a_checker_that_verifies_anything_lets_the_control_survive(monkeypatch, name):
    monkeypatch.setattr(certified, "check", lambda *_: checker.CertificateSize(1, 1, 1, 0))
    record = judge(THEOREMS[name])
    assert record.verdict is Verdict.CONTROL_SURVIVED
    assert "forged" in record.detail


def test_a_control_that_is_right_survives():
    assert certified._refute(EXHAUSTIVE, Contract()).verdict is Verdict.PROVED


def test_a_proof_that_the_checker_rejects_proves_nothing(monkeypatch):
    right = RIGHT[EXHAUSTIVE]
    monkeypatch.setattr(certified, "refute", lambda _formula: replace(right, proof=bound(["0"], right.cnf)))
    result = certified.decide(EXHAUSTIVE, Contract())
    assert result.verdict is Verdict.UNKNOWN
    assert "the checker rejects" in result.detail


def test_a_model_of_the_solver_is_not_believed_but_evaluated(monkeypatch):
    monkeypatch.setattr(Cadical153, "get_model", lambda _self: list(range(1, 17)))
    with pytest.raises(RuntimeError, match="not a model"):
        premises_witness(FORMULAS[EXHAUSTIVE](Contract()))


# --- the command --------------------------------------------------------------------------------------


def test_the_command_writes_what_the_checker_verifies(tmp_path, capsys):
    directory = tmp_path / "made" / "here"
    assert main.prove(["--certificates", str(directory)]) == 0
    assert capsys.readouterr().out.count("verified") == len(FORMULAS)
    files = [f"{name}.{end}" for name in FORMULAS for end in ("cnf", "drup")]
    assert sorted(path.name for path in directory.iterdir()) == sorted(["README.txt", *files])
    commands = [line.split() for line in (directory / "README.txt").read_text().splitlines() if "python -m" in line]
    assert len(commands) == len(FORMULAS)
    for _, *arguments in commands:
        done = subprocess.run([sys.executable, *arguments], cwd=directory, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "s VERIFIED"), done.stdout + done.stderr


def test_the_command_refuses_what_is_no_directory(tmp_path, capsys):
    (tmp_path / "file").write_text("", encoding="ascii")
    with pytest.raises(SystemExit) as caught:
        main.prove(["--certificates", str(tmp_path / "file")])
    assert caught.value.code == 2
    assert "give a directory" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == ""


def test_the_command_writes_nothing_where_a_theorem_falls(tmp_path, capsys, monkeypatch):
    weak = {**FORMULAS, TABLE_IS_PROSE: lambda _contract: FORMULAS[TABLE_IS_PROSE](certified.without_row(7))}
    monkeypatch.setattr(refuting, "FORMULAS", weak)
    assert main.prove(["--certificates", str(tmp_path / "none")]) == 1
    assert not (tmp_path / "none").exists()
    assert "has no refutation: TPI is true, TPG is false, CFG is true, MPU is false" in capsys.readouterr().err
