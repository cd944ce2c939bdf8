"""Decide claims with Z3 and with cvc5 through one interface: proved, refuted, vacuous or unknown.

Z3 decides the terms themselves. cvc5 parses and decides the SMT-LIB 2 text of the terms, so that the two
share no code except that text. Unknown and time-out are failures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from enum import Enum

import z3
from tpinit.proofs.claims import CheckResult, Claim, Verdict
from tpinit.proofs.describe import describe

__all__ = ["SOLVERS", "SolverAnswer", "decide", "decide_all", "digest", "queries", "smt2"]

TIMEOUT_MS = 30_000


class SolverAnswer(str, Enum):
    """A solver's answer for a set of formulas."""

    SAT = "sat"
    UNSAT = "unsat"
    UNKNOWN = "unknown"


Solve = Callable[[Sequence[z3.BoolRef]], SolverAnswer]


def ask_z3(terms: Sequence[z3.BoolRef]) -> SolverAnswer:
    """Return whether the conjunction of the terms is satisfiable, by Z3."""
    return SolverAnswer(str(_z3_solver(terms).check()))


def ask_cvc5(terms: Sequence[z3.BoolRef]) -> SolverAnswer:
    """Return whether the conjunction of the terms is satisfiable, by cvc5 on their SMT-LIB 2 text."""
    import cvc5

    solver = cvc5.Solver()
    solver.setOption("tlimit-per", str(TIMEOUT_MS))
    parser = cvc5.InputParser(solver)
    parser.setStringInput(cvc5.InputLanguage.SMT_LIB_2_6, smt2(terms), "claim")
    symbols, output = parser.getSymbolManager(), ""
    while not (command := parser.nextCommand()).isNull():
        output += command.invoke(solver, symbols)
    words = output.split()
    return SolverAnswer(words[0]) if words in (["sat"], ["unsat"]) else SolverAnswer.UNKNOWN


SOLVERS: dict[str, Solve] = {"z3": ask_z3, "cvc5": ask_cvc5}


def _z3_solver(terms: Sequence[z3.BoolRef]) -> z3.Solver:
    solver = z3.Solver()
    solver.set("timeout", TIMEOUT_MS)
    solver.add(*terms)
    return solver


def smt2(terms: Sequence[z3.BoolRef]) -> str:
    """Return an SMT-LIB 2 script that asks whether the conjunction of the terms is satisfiable."""
    solver = z3.Solver()
    solver.add(*terms)
    return "(set-logic ALL)\n" + "".join(
        line + "\n" for line in solver.to_smt2().splitlines() if line.strip() and not line.startswith(";")
    )


def queries(claim: Claim) -> list[tuple[str, tuple[z3.BoolRef, ...], SolverAnswer]]:
    """Return the queries that decide a claim: the name, the terms and the expected answer of each."""
    if claim.possible:
        return [("witness", (claim.premises, claim.conclusion), SolverAnswer.SAT)]
    return [
        ("counterexample", (claim.premises, z3.Not(claim.conclusion)), SolverAnswer.UNSAT),
        ("premises", (claim.premises,), SolverAnswer.SAT),
    ]


def digest(claims: Iterable[Claim]) -> str:
    """Return the SHA-256 (hex) of the queries of a theorem; it changes exactly when what is proven changes.

    The hash of a term is computed from its operator and the hashes of its children. The text that a solver
    prints is not stable enough: its names for shared subterms depend on all terms made before.
    """
    known: dict[int, str] = {}
    kept = list(claims)  # a term's id is its own only as long as the term lives
    asked = [(name, terms, answer) for claim in kept for name, terms, answer in queries(claim)]
    parts = [
        f"{name} {answer.value} " + " ".join(_hash(term, known) for term in terms) for name, terms, answer in asked
    ]
    return _sha256("\n".join(parts))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _hash(term: z3.ExprRef, known: dict[int, str]) -> str:
    key = term.get_id()
    if key not in known:
        operator = _operator(term)
        known[key] = _sha256(f"{operator}({' '.join(_hash(part, known) for part in term.children())})")
    return known[key]


def _operator(term: z3.ExprRef) -> str:
    """Return the operator and the sort of a term as text. Raises ValueError for a quantifier."""
    if not z3.is_app(term):
        raise ValueError(f"the digest does not support {type(term).__name__}: {term}")
    name = str(term) if z3.is_int_value(term) else term.decl().name()
    sort = term.sort()
    members = ""
    if isinstance(sort, z3.DatatypeSortRef):
        members = " ".join(sort.constructor(place).name() for place in range(sort.num_constructors()))
    free = "free " if term.decl().kind() == z3.Z3_OP_UNINTERPRETED else ""
    return f"{free}{name}: {sort} {members}"


def decide_all(claims: Iterable[Claim], solve: Solve = ask_z3) -> CheckResult:
    """Decide the claims in order, up to the first that is not proved. No claim at all is vacuous."""
    count = 0
    for claim in claims:
        result = decide(claim, solve)
        count += 1
        if result.verdict is not Verdict.PROVED:
            return CheckResult(result.verdict, count, detail=result.detail)
    return CheckResult(Verdict.PROVED if count else Verdict.VACUOUS, count)


def decide(claim: Claim, solve: Solve = ask_z3) -> CheckResult:
    """Decide one claim for all inputs."""
    for name, terms, claimed in queries(claim):
        answer = solve(terms)
        if answer is claimed:
            continue
        if answer is SolverAnswer.UNKNOWN:
            return CheckResult(Verdict.UNKNOWN, 1, detail=f"{claim.label}: the solver did not decide the {name}")
        if name == "premises":
            return CheckResult(Verdict.VACUOUS, 1, detail=f"{claim.label}: no input satisfies the premises")
        if name == "witness":
            return CheckResult(Verdict.REFUTED, 1, detail=f"{claim.label}: no input satisfies it")
        return CheckResult(Verdict.REFUTED, 1, detail=f"{claim.label}: false{_for_which_input(claim, terms)}")
    return CheckResult(Verdict.PROVED, 1)


def _for_which_input(claim: Claim, terms: Sequence[z3.BoolRef]) -> str:
    solver = _z3_solver(terms)
    if not claim.shown or solver.check() != z3.sat:
        return ""
    return " for " + "; ".join(describe(solver.model(), shown) for shown in claim.shown)
