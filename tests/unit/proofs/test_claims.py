"""Claims, solvers and theorems: what must be rejected is rejected, and a control that holds fails its theorem."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tpinit.proofs.theorems  # noqa: F401 - registers the theorems
import z3
from tpinit.proofs import brute, main, running
from tpinit.proofs.claims import THEOREMS, CheckResult, Claim, Mutant, Theorem, Verdict, register, right_model
from tpinit.proofs.describe import describe
from tpinit.proofs.ledger.entries import ledger
from tpinit.proofs.ledger.page import page
from tpinit.proofs.running import judge
from tpinit.proofs.solvers import SOLVERS, SolverAnswer, decide, decide_all, smt2
from tpinit.spec.concrete import assume
from tpinit.spec.model import Model, fresh_symbols
from tpinit.spec.vocabulary import Call, DType, Group, Inputs, Mpu, Section, ViolationCode

X = z3.Int("x")
# Of the 1,318,032 inputs of the small domain: those that are well-typed, and those of them that start AutoTP.
WELL_TYPED, STARTING = 1_220_400, 8_876
PROVED, REFUTED = CheckResult(Verdict.PROVED, 1), CheckResult(Verdict.REFUTED, 1)


# --- deciding claims ---------------------------------------------------------------------------------


@pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS)
def test_a_true_claim_is_proved_and_a_false_one_refuted(solve):
    assert decide(Claim("", X > 2, X > 1), solve).verdict is Verdict.PROVED
    assert decide(Claim("", X > 1, X > 2), solve).verdict is Verdict.REFUTED


def test_what_is_printed_for_the_second_solver_is_the_question():
    assert SOLVERS["cvc5"]((X > 2, X < 4)) is SolverAnswer.SAT
    assert SOLVERS["cvc5"]((X > 2, X < 3)) is SolverAnswer.UNSAT
    assert smt2((X > 2,)).splitlines()[0] == "(set-logic ALL)"


def test_premises_that_nothing_satisfies_are_vacuous_not_proved():
    assert decide(Claim("", z3.And(X > 2, X < 1), X == 7)).verdict is Verdict.VACUOUS


def test_a_theorem_without_claims_is_vacuous():
    assert decide_all([]).verdict is Verdict.VACUOUS


def test_a_possibility_needs_a_witness():
    assert decide(Claim("", X > 1, X < 3, possible=True)).verdict is Verdict.PROVED
    assert decide(Claim("", X > 1, X < 2, possible=True)).verdict is Verdict.REFUTED


def test_what_the_solver_cannot_decide_is_unknown(monkeypatch):
    monkeypatch.setattr("tpinit.proofs.solvers.TIMEOUT_MS", 50)
    y, w = z3.Ints("y w")
    fermat = Claim("", z3.And(X > 0, y > 0, w > 0), X * X * X + y * y * y != w * w * w)
    for solve in SOLVERS.values():
        assert decide(fermat, solve).verdict is Verdict.UNKNOWN


def test_the_first_claim_that_falls_ends_the_theorem():
    result = decide_all([Claim("one", X > 1, X > 0), Claim("two", X > 1, X > 9), Claim("three", X > 1, X > 0)])
    assert (result.verdict, result.checked) == (Verdict.REFUTED, 2)
    assert result.detail.startswith("two")


def test_a_counterexample_speaks_the_contracts_words():
    model = Model(fresh_symbols())
    inputs = Inputs(6, Call(4, DType.BF16), Section(autotp_size=3), mpu=Mpu(Group(0, 4)))
    solver = z3.Solver()
    solver.add(assume(inputs, model.given_input))
    assert solver.check() == z3.sat
    words = describe(solver.model(), model.given_input)
    for said in (
        "TPI",
        "call.tp_size = 4",
        "call.dtype = BF16",
        "config.autotp_size = 3",
        "of size 4",
        "world_size = 6",
    ):
        assert said in words
    assert "mesh" not in words


# --- judging theorems --------------------------------------------------------------------------------


def _theorem(prove, refute) -> Theorem:
    return Theorem("name", "statement", "6.1", "control", engine="test", prove=prove, refute=refute)


@pytest.mark.parametrize("control", [CheckResult(verdict) for verdict in Verdict if verdict is not Verdict.REFUTED])
def test_a_control_that_is_not_refuted_fails_the_theorem(control):
    assert judge(_theorem(lambda: PROVED, lambda: control)).verdict is Verdict.CONTROL_SURVIVED


def test_a_theorem_passes_only_with_proof_and_refuted_control():
    assert judge(_theorem(lambda: PROVED, lambda: REFUTED)).verdict is Verdict.PROVED
    assert judge(_theorem(lambda: REFUTED, lambda: REFUTED)).verdict is Verdict.REFUTED


def test_a_proof_that_breaks_is_unknown_with_its_reason():
    def breaks() -> CheckResult:
        raise KeyError("lost")

    record = judge(_theorem(breaks, lambda: REFUTED))
    assert record.verdict is Verdict.UNKNOWN
    assert "KeyError" in record.detail


def test_oracles_that_differ_are_a_disagreement(monkeypatch):
    theorem = THEOREMS["rows_are_exhaustive"]
    monkeypatch.setitem(running.SOLVERS, "contrarian", lambda _terms: SolverAnswer.SAT)
    record = judge(theorem)
    assert record.verdict is Verdict.DISAGREEMENT
    assert "contrarian says refuted" in record.detail


def test_an_oracle_that_does_not_know_makes_the_theorem_unknown(monkeypatch):
    monkeypatch.setitem(running.SOLVERS, "shy", lambda _terms: SolverAnswer.UNKNOWN)
    assert judge(THEOREMS["rows_are_exhaustive"]).verdict is Verdict.UNKNOWN


def test_theorems_need_names_of_their_own_and_statements():
    taken = next(iter(THEOREMS.values()))
    with pytest.raises(ValueError, match="two theorems"):
        register(taken)
    with pytest.raises(ValueError, match="no English statement"):
        register(replace(taken, name="new", statement=""))


def test_every_clause_of_section_six_that_is_due_has_theorems():
    assert {theorem.clause for theorem in THEOREMS.values()} >= {f"6.{item}" for item in (1, 2, 3, 4, 5, 6, 7, 10)}


def test_every_violation_has_a_shipped_predicate_proven_by_both_engines():
    for code in ViolationCode:
        assert f"shipped_{code.value.lower()}" in THEOREMS
        assert f"crosshair_{code.value.lower()}" in THEOREMS


@pytest.mark.parametrize("name", [name for name, theorem in THEOREMS.items() if theorem.claims])
def test_every_theorem_of_the_model_holds_and_its_control_falls(name):
    claims, mutant = THEOREMS[name].claims, THEOREMS[name].mutant
    assert claims is not None
    assert mutant is not None
    assert decide_all(claims(right_model())) == CheckResult(Verdict.PROVED, len(list(claims(right_model()))))
    assert decide_all(claims(mutant.apply(right_model()))).verdict is Verdict.REFUTED


def test_brute_force_proves_refutes_and_knows_its_bounds():
    safe = THEOREMS["size_is_at_least_one"]
    assert safe.claims is not None
    assert safe.mutant is not None
    result = brute.decide_all(safe.claims(right_model()))
    assert (result.verdict, result.checked, result.skipped) == (Verdict.PROVED, STARTING, ())
    fallen = brute.decide_all(safe.claims(safe.mutant.apply(right_model())))
    assert fallen.verdict is Verdict.REFUTED
    assert brute.decide_all([Claim("", X > 1, X > 0, no_brute_force="sizes out of it")]).verdict is Verdict.UNKNOWN
    with pytest.raises(ValueError, match="does not support x"):
        brute.decide_all([Claim("", X > 1, X > 0)])


# --- what brute force is credited with -----------------------------------------------------------------


def _two_claims(m: Model) -> list[Claim]:
    small = m.given_input.world <= 3  # true for every input of the small domain, and false
    return [
        Claim("a row", m.well_typed, m.row_number > 0),
        Claim("small", m.well_typed, small, no_brute_force="a large world"),
        Claim("constant", z3.BoolVal(True), z3.BoolVal(True)),
    ]


def _judged(claims) -> tuple[Theorem, running.TheoremResult]:
    drops = Mutant("no row 7", lambda m: replace(m, rows=m.rows[:6] + m.rows[7:]))
    theorem = Theorem("rows_are_exhaustive", "Says.", "6.1", "control", claims=claims, mutant=drops)
    return theorem, judge(theorem)


def test_brute_force_is_credited_with_the_claims_that_it_decided():
    theorem, record = _judged(lambda m: [claim for claim in _two_claims(m) if claim.label != "small"])
    assert record.verdict is Verdict.PROVED
    assert list(record.not_by_brute) == ["constant"]
    entire = ledger({theorem.name: theorem}, [record], [], 0.0)
    (entry,) = entire["theorems"].values()
    assert entry["oracles"]["brute"] == {"verdict": "proved", "checked": WELL_TYPED, "unit": "inputs", "claims": 1}
    assert (entry["claims"], entry["oracles"]["z3"]["claims"]) == (2, 2)
    assert f"brute ({WELL_TYPED:,} inputs, 1 of 2 claims)" in main._oracles(record)
    shown = page(entire)
    assert f"{WELL_TYPED:,} inputs, 1 of 2 claims" in shown
    assert f"brute: {record.not_by_brute['constant']}" in shown


def test_a_claim_that_brute_force_left_out_is_not_its_to_confirm():
    _, record = _judged(_two_claims)
    assert (record.verdict, record.oracles["brute"].result.verdict) == (Verdict.DISAGREEMENT, Verdict.PROVED)
    assert record.not_by_brute == {"small": "a large world", "constant": brute.why_not(_two_claims(right_model())[2])}
    _, alone = _judged(lambda m: _two_claims(m)[1:])
    assert "brute" not in alone.oracles


def test_brute_force_counts_the_inputs_that_satisfy_the_premises():
    model = right_model()
    given = model.given_input
    small = z3.And(model.well_typed, z3.Not(given.tpi), z3.Not(given.section), z3.Not(given.mpu))
    result = brute.decide_all([Claim("", small, model.error)])
    assert result == CheckResult(Verdict.PROVED, 9 * 8, "inputs")  # precision and mesh, worlds and group sizes
