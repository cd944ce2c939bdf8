"""Deciding claims with Z3: proved, refuted with a counterexample, vacuous, or unknown (a failure)."""

from __future__ import annotations

from collections.abc import Iterable

import z3
from tpinit.proofs.claims import Claim, Result, Verdict
from tpinit.proofs.words import tell

__all__ = ["decide", "decide_all"]

TIMEOUT_MS = 30_000


def decide_all(claims: Iterable[Claim]) -> Result:
    """Decide the claims in turn, up to the first that is not as claimed. No claims at all is vacuous."""
    count = 0
    for claim in claims:
        result = decide(claim)
        count += 1
        if result.verdict is not Verdict.PROVED:
            return Result(result.verdict, count, detail=result.detail)
    return Result(Verdict.PROVED if count else Verdict.VACUOUS, count)


def decide(claim: Claim) -> Result:
    """Decide one claim over all inputs."""
    if claim.possible:
        answer, _ = _check(claim.given, claim.then)
        if answer == z3.sat:
            return Result(Verdict.PROVED, 1)
        return _not_proved(answer, z3.unsat, f"{claim.says}: no input does that")
    answer, counterexample = _check(claim.given, z3.Not(claim.then))
    if answer == z3.unsat:
        premises, _ = _check(claim.given)
        if premises == z3.sat:
            return Result(Verdict.PROVED, 1)
        if premises == z3.unsat:
            return Result(Verdict.VACUOUS, 1, detail=f"{claim.says}: no input satisfies the premises")
        return Result(Verdict.UNKNOWN, 1, detail=f"{claim.says}: the solver did not decide the premises")
    words = "" if counterexample is None else "; ".join(tell(counterexample, shown) for shown in claim.shown)
    return _not_proved(answer, z3.sat, f"{claim.says}: falls for {words}" if words else f"{claim.says}: falls")


def _not_proved(answer: z3.CheckSatResult, refutes: z3.CheckSatResult, detail: str) -> Result:
    if answer == refutes:
        return Result(Verdict.REFUTED, 1, detail=detail)
    return Result(Verdict.UNKNOWN, 1, detail=f"{detail.partition(':')[0]}: the solver did not decide it")


def _check(*terms: z3.BoolRef) -> tuple[z3.CheckSatResult, z3.ModelRef | None]:
    solver = z3.Solver()
    solver.set("timeout", TIMEOUT_MS)
    solver.add(*terms)
    answer = solver.check()
    return answer, solver.model() if answer == z3.sat else None
