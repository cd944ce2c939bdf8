"""The propositional theorems of section 6, items 1 and 2, each with a certificate that a checker verified.

The SMT solvers decide the same theorems in `rows` and `equivalence`. This module decides them independently:
the rows and rules are encoded as CNF, a SAT solver proves the CNF unsatisfiable, and a checker that shares no
code with the rest verifies that proof.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from tpinit.proofs.certificates.check import RejectedCertificate, check
from tpinit.proofs.certificates.encoding import FORMULAS, Contract
from tpinit.proofs.certificates.refuting import Counterexample, VacuousPremises, bound, refute
from tpinit.proofs.claims import CheckResult, Theorem, Verdict, register
from tpinit.spec.table import Row
from tpinit.spec.vocabulary import Outcome

__all__ = ["changed_row", "decide", "without_row"]


def without_row(number: int) -> Contract:
    """Return the contract without one row of the table."""
    right = Contract()
    return replace(right, rows=tuple(row for row in right.rows if row.number != number))


def changed_row(number: int, change: Callable[[Row], Row]) -> Contract:
    """Return the contract with one row of the table changed."""
    right = Contract()
    return replace(right, rows=tuple(change(row) if row.number == number else row for row in right.rows))


def decide(name: str, contract: Contract) -> CheckResult:
    """Decide a theorem about a contract. It is proved when the checker verifies a refutation of its negation."""
    try:
        answer = refute(FORMULAS[name](contract))
        if isinstance(answer, Counterexample):
            return CheckResult(Verdict.REFUTED, 1, "models", f"false for {answer}")
        size = check(answer.cnf, answer.proof)
    except VacuousPremises as problem:
        return CheckResult(Verdict.VACUOUS, detail=str(problem))
    except RejectedCertificate as problem:
        return CheckResult(Verdict.UNKNOWN, detail=f"the checker rejects the SAT solver's proof: {problem}")
    return CheckResult(Verdict.PROVED, size.lemmas + size.deletions, "proof steps")


def _refute(name: str, weakened: Contract) -> CheckResult:
    """Decide the control: the weakened contract's formula has a model, and the checker rejects every forged proof.

    Two proofs are forged: the correct contract's proof as it is, and the same proof with its first line
    rewritten to the SHA-256 of the weakened contract's formula.
    """
    wrong, right = refute(FORMULAS[name](weakened)), refute(FORMULAS[name](Contract()))
    if not isinstance(wrong, Counterexample) or isinstance(right, Counterexample):
        return decide(name, weakened)
    forged = bound(right.proof.decode("ascii").splitlines()[1:], wrong.cnf)
    for proof in (right.proof, forged):
        try:
            check(wrong.cnf, proof)
        except RejectedCertificate:
            continue
        return CheckResult(Verdict.PROVED, detail="the checker verifies a forged proof of a formula that has a model")
    return decide(name, weakened)


def _certified(clause: str, name: str, statement: str, control: str, weakened: Contract) -> None:
    register(
        Theorem(
            name,
            statement,
            clause,
            f"{control}; the checker rejects the correct contract's proof for its formula",
            engine="certificate",
            sources=("tpinit.spec.table", "tpinit.spec.prose"),
            prove=partial(decide, name, Contract()),
            refute=partial(_refute, name, weakened),
        )
    )


_certified(
    "6.1",
    "certified_rows_are_exhaustive",
    "Under A0, every combination of the four facts matches at least one row. Evidence: a clausal proof that an "
    "independent checker verified.",
    "the table without row 7",
    without_row(7),
)
_certified(
    "6.1",
    "certified_rows_are_disjoint",
    "Under A0, no combination of the four facts matches two rows. Evidence: a clausal proof that an independent "
    "checker verified.",
    "row 6 requires CFG, like row 8",
    changed_row(6, lambda row: replace(row, cfg=True)),
)
_certified(
    "6.2",
    "certified_table_is_prose",
    "Under A0, for every combination of the four facts the table and the prose give the same outcome, violation "
    "code, source of size and dtype, and source of the group. Evidence: a clausal proof that an independent checker "
    "verified.",
    "row 8 has the outcome `no AutoTP`",
    changed_row(8, lambda row: replace(row, outcome=Outcome.NO_AUTOTP)),
)
