"""The propositional theorems of section 6, items 1 and 2, each with a certificate that a checker verified.

The same theorems are decided by the solvers too (`rows`, `equivalence`); here they go another way: from
the rows and rules as data to CNF, to a SAT solver's proof, to a checker that reads two files and shares
no code with the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from tpinit.proofs.certificates.check import Rejected, check
from tpinit.proofs.certificates.encoding import FORMULAS, Contract
from tpinit.proofs.certificates.refuting import Counterexample, Vacuous, bound, refute
from tpinit.proofs.claims import Result, Theorem, Verdict, register
from tpinit.spec.table import Row
from tpinit.spec.vocabulary import Outcome

__all__ = ["changed_row", "decide", "without_row"]


def without_row(number: int) -> Contract:
    """Make the contract without one row of the table."""
    right = Contract()
    return replace(right, rows=tuple(row for row in right.rows if row.number != number))


def changed_row(number: int, change: Callable[[Row], Row]) -> Contract:
    """Make the contract with one row of the table changed."""
    right = Contract()
    return replace(right, rows=tuple(change(row) if row.number == number else row for row in right.rows))


def decide(name: str, contract: Contract) -> Result:
    """Decide a theorem about a contract: proved when the checker verified the refutation of its negation."""
    try:
        answer = refute(FORMULAS[name](contract))
        if isinstance(answer, Counterexample):
            return Result(Verdict.REFUTED, 1, "models", f"falls for {answer}")
        said = check(answer.cnf, answer.proof)
    except Vacuous as problem:
        return Result(Verdict.VACUOUS, detail=str(problem))
    except Rejected as problem:
        return Result(Verdict.UNKNOWN, detail=f"the checker rejects the SAT solver's proof: {problem}")
    return Result(Verdict.PROVED, said.lemmas + said.deletions, "proof steps")


def _refute(name: str, weakened: Contract) -> Result:
    """Decide the control: the weakened contract has a model, and no forged proof gets past the checker.

    The proof of the right contract is forged onto the weakened one's formula: as it is, and with its
    first line rewritten so that it claims to be about that formula.
    """
    wrong, right = refute(FORMULAS[name](weakened)), refute(FORMULAS[name](Contract()))
    if not isinstance(wrong, Counterexample) or isinstance(right, Counterexample):
        return decide(name, weakened)
    forged = bound(right.proof.decode("ascii").splitlines()[1:], wrong.cnf)
    for proof in (right.proof, forged):
        try:
            check(wrong.cnf, proof)
        except Rejected:
            continue
        return Result(Verdict.PROVED, detail="the checker verifies a forged proof of a formula that has a model")
    return decide(name, weakened)


def _certified(clause: str, name: str, statement: str, control: str, weakened: Contract) -> None:
    register(
        Theorem(
            name,
            statement,
            clause,
            f"{control}; the right contract's proof, forged onto it, is rejected",
            engine="certificate",
            sources=("tpinit.spec.table", "tpinit.spec.prose"),
            prove=partial(decide, name, Contract()),
            refute=partial(_refute, name, weakened),
        )
    )


_certified(
    "6.1",
    "certified_rows_are_exhaustive",
    "Under A0, every combination of the four facts is described by some row: a clausal proof, checked.",
    "the table without row 7",
    without_row(7),
)
_certified(
    "6.1",
    "certified_rows_are_disjoint",
    "Under A0, no combination of the four facts is described by two rows: a clausal proof, checked.",
    "row 6 also about CFG, like row 8",
    changed_row(6, lambda row: replace(row, cfg=True)),
)
_certified(
    "6.2",
    "certified_table_is_prose",
    "Under A0, for every combination of the four facts the table and the prose say the same outcome, code, place of "
    "size and dtype, and place of the group: a clausal proof, checked.",
    "row 8 says no AutoTP",
    changed_row(8, lambda row: replace(row, outcome=Outcome.NO_AUTOTP)),
)
