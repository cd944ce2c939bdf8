"""Certificates: what is written is checked by a checker that knows nothing of it, and forgeries are rejected."""

from __future__ import annotations

import ast
import hashlib
import subprocess
import sys
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pysat.solvers import Cadical153
from tpinit.proofs import main
from tpinit.proofs.certificates import check as checker
from tpinit.proofs.certificates import encoding, refuting
from tpinit.proofs.certificates.check import Rejected, check
from tpinit.proofs.certificates.encoding import FORMULAS, Contract
from tpinit.proofs.certificates.refuting import Certificate, Counterexample, Vacuous, bound, premises_witness, refute
from tpinit.proofs.claims import THEOREMS, Verdict
from tpinit.proofs.running import judge
from tpinit.proofs.theorems import certified
from tpinit.spec.prose import RULES
from tpinit.spec.table import ROWS
from tpinit.spec.vocabulary import Fact, FieldsFrom, GroupFrom, Outcome, ViolationCode

EXHAUSTIVE, DISJOINT, TABLE_IS_PROSE = FORMULAS
RIGHT = {name: refute(make(Contract())) for name, make in FORMULAS.items()}
A0 = [facts for facts in product((False, True), repeat=4) if facts[0] or not facts[1]]


def cnf(*clauses, variables=3):
    body = "".join(" ".join(map(str, (*clause, 0))) + "\n" for clause in clauses)
    return f"p cnf {variables} {len(clauses)}\n{body}".encode()


def proof(formula, *steps):
    return f"c cnf-sha256 {hashlib.sha256(formula).hexdigest()}\n".encode() + "".join(f"{s}\n" for s in steps).encode()


def rejection(formula, steps):
    with pytest.raises(Rejected) as caught:
        check(formula, steps)
    return str(caught.value)


SQUARE = cnf((1, 2), (1, -2), (-1, 2), (-1, -2))


# --- the checker -------------------------------------------------------------------------------------


def test_a_refutation_is_verified_and_its_steps_are_counted():
    said = check(SQUARE, proof(SQUARE, "c in words", "1 0", "d 1 2 0", "0"))
    assert (said.variables, said.clauses, said.lemmas, said.deletions) == (3, 4, 2, 1)


def test_the_empty_clause_is_derived_even_where_propagation_alone_refutes():
    formula = cnf((1,), (-1, 2), (-2,))
    assert check(formula, proof(formula, "0")).lemmas == 1
    assert "without the empty clause" in rejection(formula, proof(formula))


def test_the_empty_clause_of_a_formula_refutes_it():
    formula = cnf((1,), ())
    assert check(formula, proof(formula, "0")).lemmas == 1


def test_a_lemma_that_does_not_follow_by_propagation_is_rejected():
    assert "line 2: does not follow" in rejection(SQUARE, proof(SQUARE, "0"))
    assert "line 3: does not follow" in rejection(SQUARE, proof(SQUARE, "c 0", "3 0", "1 0", "0"))


def test_a_formula_with_a_model_has_no_proof():
    formula = cnf((1, 2), (-1, 2))
    assert "line 3: does not follow" in rejection(formula, proof(formula, "2 0", "0"))


@pytest.mark.parametrize("steps", [(), ("1 0",), ("c 0",), ("1 0", "2 0")])
def test_a_proof_that_stops_before_the_empty_clause_is_rejected(steps):
    assert "without the empty clause" in rejection(SQUARE, proof(SQUARE, *steps))


def test_what_was_deleted_can_no_longer_be_used():
    steps = ("d 1 2 0", "d -2 1 0", "1 0", "0")
    assert "line 4: does not follow" in rejection(SQUARE, proof(SQUARE, *steps))


def test_a_deleted_unit_no_longer_propagates():
    formula = cnf((1,), (-1, 2), (-1, -2))
    assert check(formula, proof(formula, "0"))
    assert "does not follow" in rejection(formula, proof(formula, "d 1 0", "0"))


def test_a_clause_is_there_as_often_as_it_was_given():
    twice = cnf((1, 2), (2, 1), (1, -2), (-1, 2), (-1, -2))
    assert check(twice, proof(twice, "d 2 1 0", "1 0", "0")).deletions == 1
    assert "does not follow" in rejection(twice, proof(twice, "d 1 2 0", "d 1 2 0", "1 0", "0"))
    assert "not there" in rejection(twice, proof(twice, "d 1 2 0", "d 1 2 0", "d 1 2 0"))


def test_a_deletion_of_what_is_not_there_is_rejected():
    assert "line 2: deletes" in rejection(SQUARE, proof(SQUARE, "d 1 3 0", "1 0", "0"))


def test_nothing_follows_the_empty_clause():
    assert "after the empty clause" in rejection(SQUARE, proof(SQUARE, "1 0", "0", "2 0"))


MALFORMED_STEPS = [
    *("1", "1 0 0", "1 2 0 3 0", "+1 0", "01 0", "1_0 0", "-0", "--1 0", "1.0 0", "x 0", "", " 1 0", "1 0 ", "1  0"),
    *(
        "d",
        "d 0 d",
        "D 1 0",
        "d1 0",
        "d d 1 0",
        "1\t0",
        "1 0\r",
        "comment",
        "e 1 0",
        "9999999999999 0",
        "4 0",
        "d -4 0",
    ),
    *("1 0\x0b0", "1 0\x1c", "o proof DRUP"),
]


@pytest.mark.parametrize("step", MALFORMED_STEPS)
def test_a_malformed_step_is_refused(step):
    assert "proof, line 2" in rejection(SQUARE, proof(SQUARE, step, "1 0", "0"))


MALFORMED_FORMULAS = [
    b"",
    b"\n",
    b"1 0\n",
    b"c p cnf 1 1\n",
    b"p cnf 1 1\n",
    b"p cnf 1 1\n1 0",
    b"p cnf 1 1\n1\n",
    b"p cnf 1 1\n1 0\n-1 0\n",
    b"p cnf 1 2\n1 0\n",
    b"p cnf 1 2\n1 0 -1 0\n",
    b"p cnf 1 2\n2 0\n-2 0\n",
    b"p cnf 1 2\n1 0\np cnf 1 2\n-1 0\n",
    b"p dnf 1 2\n1 0\n-1 0\n",
    b"p cnf 1 -2\n1 0\n-1 0\n",
    b"p cnf 1 2 \n1 0\n-1 0\n",
    b"p cnf 1 2\n1 0\n\n-1 0\n",
    b"p cnf 1 2\n1 0\n-1 0\n%\n0\n",
    b"p cnf 1 2\r\n1 0\r\n-1 0\r\n",
    b"p cnf 1 2\n1 0\n\xe2\x88\x921 0\n",
    b"p cnf 1 2\n1 0\n\xef\xbc\x91 0\n",
]


@pytest.mark.parametrize("formula", MALFORMED_FORMULAS)
def test_a_malformed_formula_is_refused(formula):
    assert rejection(formula, proof(formula, "0")).startswith("cnf")


def test_a_proof_names_the_formula_it_is_of():
    assert check(SQUARE, proof(SQUARE, "1 0", "0"))
    for text in (b"", b"\n", b"1 0\n0\n", proof(SQUARE, "1 0", "0").replace(b"sha256", b"sha512")):
        assert "first line must be" in rejection(SQUARE, text)
    changed = b"c another comment\n" + SQUARE
    assert "different SHA-256" in rejection(changed, proof(SQUARE, "1 0", "0"))


CLAUSES = st.lists(st.lists(st.integers(1, 4).map(int) | st.integers(-4, -1), max_size=3), max_size=12)


def has_a_model(clauses):
    return any(
        all(any((literal > 0) is model[abs(literal) - 1] for literal in clause) for clause in clauses)
        for model in product((False, True), repeat=4)
    )


@given(CLAUSES, CLAUSES)
def test_the_checker_verifies_nothing_that_has_a_model(clauses, lemmas):
    formula = cnf(*clauses, variables=4)
    steps = [" ".join(map(str, (*lemma, 0))) for lemma in lemmas if lemma]
    try:
        check(formula, proof(formula, *steps, "0"))
    except Rejected:
        return
    assert not has_a_model(clauses)


@given(st.lists(st.lists(st.sampled_from([-4, -3, -2, -1, 1, 2, 3, 4]), min_size=1, max_size=3), max_size=40))
def test_what_the_sat_solver_refutes_is_verified_and_nothing_else(clauses):
    with Cadical153(bootstrap_with=clauses, with_proof=True) as solver:
        satisfiable = solver.solve()
        steps = [] if satisfiable else solver.get_proof()
    assert satisfiable is has_a_model(clauses)
    formula = cnf(*clauses, variables=4)
    if not satisfiable:
        assert check(formula, bound(steps, formula)).lemmas > 0


# --- that it shares nothing ---------------------------------------------------------------------------


def imports(module):
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_the_checker_imports_the_standard_library_alone():
    assert {name.partition(".")[0] for name in imports(checker)} <= sys.stdlib_module_names
    assert any(name.startswith("tpinit") for name in imports(encoding))  # the test can tell


def test_the_encoder_and_the_writer_know_no_model_and_no_z3():
    code = (
        "import sys, tpinit.proofs.certificates.refuting; "
        "print([name for name in ('z3', 'tpinit.spec.model') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def run_checker(*arguments):
    return subprocess.run(
        [sys.executable, "-I", "-S", checker.__file__, *map(str, arguments)], capture_output=True, text=True, timeout=60
    )


def test_the_checker_runs_as_a_script_without_the_project(tmp_path):
    right, wrong, formula = tmp_path / "right.drup", tmp_path / "wrong.drup", tmp_path / "square.cnf"
    formula.write_bytes(SQUARE)
    right.write_bytes(proof(SQUARE, "1 0", "0"))
    wrong.write_bytes(proof(SQUARE, "0"))
    done = run_checker(formula, right)
    assert (done.returncode, done.stdout.splitlines()[-1], done.stderr) == (0, "s VERIFIED", "")
    for arguments in ((formula, wrong), (right, formula), (formula, tmp_path / "none"), (tmp_path, right)):
        done = run_checker(*arguments)
        assert (done.returncode, done.stdout.splitlines()[-1], done.stderr) == (1, "s NOT VERIFIED", "")
    assert run_checker(formula).returncode == 2


# --- the encoding -------------------------------------------------------------------------------------


def models(formula, facts):
    """Give all models of the premises for these facts: the names of the variables that are true."""
    found = []
    with Cadical153(bootstrap_with=[list(clause) for clause in formula.premises]) as solver:
        assumed = [place if truth else -place for place, truth in enumerate(facts, 1)]
        while solver.solve(assumptions=assumed):
            model = solver.get_model()
            found.append({formula.variables[literal - 1] for literal in model if literal > 0})
            solver.add_clause([-literal for literal in model])
    return found


COLUMNS = {"outcome": Outcome, "code": ViolationCode, "fields_from": FieldsFrom, "group_from": GroupFrom}


@pytest.mark.parametrize("facts", A0)
def test_the_formula_says_of_all_facts_what_the_row_says_and_nothing_else(facts):
    (row,) = (row for row in ROWS if (row.tpi, row.tpg, row.cfg, row.mpu) == facts)
    (true,) = models(FORMULAS[TABLE_IS_PROSE](Contract()), facts)
    expected = {f"row {row.number} holds"}
    for column in COLUMNS:
        value = getattr(row, column)
        if value is not None:
            expected |= {f"table: {column} is {value.name}", f"prose: {column} is {value.name}"}
    assert {name for name in true if name.startswith(("row", "table", "prose", "they differ"))} == expected
    firing = {
        f"rule {i} ({r.clause}) fires"
        for i, r in enumerate(RULES, 1)
        if all(facts[list(Fact).index(f)] is t for f, t in r.when.items())
    }
    assert {name for name in true if name.endswith("fires")} == firing


@pytest.mark.parametrize("name", FORMULAS)
def test_premises_hold_for_just_the_facts_that_a0_allows(name):
    formula = FORMULAS[name](Contract())
    witness = premises_witness(formula)
    assert sorted(map(abs, witness)) == list(range(1, len(formula.variables) + 1))
    assert all(set(clause) & set(witness) for clause in formula.premises)
    for facts in product((False, True), repeat=4):
        assert len(models(formula, facts)) == (facts in A0)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (((1,), (-1,)), "exclude TPI is false, TPG is false, CFG is false, MPU is false"),
        (((-1, -2, -3, -4),), "exclude TPI is true, TPG is true, CFG is true, MPU is true"),
        (((2, 3),), "exclude TPI is false, TPG is false, CFG is false, MPU is false"),
    ],
)
def test_a_formula_whose_premises_exclude_facts_is_vacuous(monkeypatch, name, extra, says):
    right = FORMULAS[name](Contract())
    vacuous = replace(right, premises=right.premises + extra)
    with pytest.raises(Vacuous, match=says):
        refute(vacuous)
    monkeypatch.setattr(certified, "FORMULAS", {name: lambda _contract: vacuous})
    assert certified.decide(name, Contract()).verdict is Verdict.VACUOUS


def test_premises_without_a0_are_not_what_they_should_be():
    right = FORMULAS[EXHAUSTIVE](Contract())
    assert right.premises[0] == (-2, 1)
    with pytest.raises(Vacuous, match="allow TPI is false, TPG is true"):
        premises_witness(replace(right, premises=right.premises[1:]))


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
    monkeypatch.setattr(certified, "check", lambda *_: checker.Verified(1, 1, 1, 0))
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
    with pytest.raises(RuntimeError, match="none"):
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
