"""The engine of the theorems about the step proof: what it must not take for proven."""

from __future__ import annotations

import pytest
import z3
from tpinit.proofs import solvers
from tpinit.proofs.claims import THEOREMS, Theorem, Verdict
from tpinit.proofs.running import judge
from tpinit.proofs.step.lemmas import base, claim, rule_theorem, step, when

_X, _SUM = z3.Reals("x sum")


@pytest.fixture
def stated(monkeypatch):
    """Return a function that registers claims as a theorem and returns it; nothing stays registered."""
    monkeypatch.setattr("tpinit.proofs.claims.THEOREMS", {})

    def state(right, wrong) -> Theorem:
        def lemmas(is_right):
            """Says something."""
            yield right if is_right else wrong

        rule_theorem(("elementwise",), control="another claim", sources=("labels",))(lemmas)
        from tpinit.proofs import claims

        return claims.THEOREMS.pop("step_lemmas")

    return state


TRUE = base([_SUM == 0], _SUM + _X == _X)
FALSE = step([_SUM == 0], _SUM + _X == 1)
VACUOUS = claim("no such number", [_SUM == 0, _SUM == 1], _X == 1)


def test_a_true_claim_with_a_false_control_is_proven_by_both_solvers(stated):
    assert judge(stated(TRUE, FALSE)).verdict is Verdict.PROVED


@pytest.mark.parametrize(
    ("right", "wrong", "verdict"),
    [
        (FALSE, FALSE, Verdict.REFUTED),
        (VACUOUS, FALSE, Verdict.VACUOUS),
        (TRUE, TRUE, Verdict.CONTROL_SURVIVED),
        (TRUE, VACUOUS, Verdict.CONTROL_SURVIVED),
    ],
)
def test_nothing_else_is(stated, right, wrong, verdict):
    assert judge(stated(right, wrong)).verdict is verdict


@pytest.mark.parametrize("answer", [solvers.SolverAnswer.SAT, solvers.SolverAnswer.UNKNOWN])
@pytest.mark.parametrize("solver", ["z3", "cvc5"])
def test_a_solver_that_answers_otherwise_is_not_overruled(stated, monkeypatch, solver, answer):
    theorem = stated(TRUE, FALSE)
    monkeypatch.setitem(solvers.SOLVERS, solver, lambda _: answer)
    assert judge(theorem).verdict in (Verdict.DISAGREEMENT, Verdict.UNKNOWN)


def test_a_rank_that_lacks_an_element_adds_nothing():
    held = z3.Bool("held")
    assert solvers.decide(claim("", [z3.Not(held)], when(held, _X) == 0)).verdict is Verdict.PROVED
    assert solvers.decide(claim("", [held], when(held, _X) == _X)).verdict is Verdict.PROVED


def test_no_theorem_stays_registered(stated):
    stated(TRUE, FALSE)
    assert "step_lemmas" not in THEOREMS
