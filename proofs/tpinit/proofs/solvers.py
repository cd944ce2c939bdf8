"""Deciding claims by Z3 and by cvc5, through one interface: proved, refuted, vacuous or unknown.

Z3 decides the terms themselves. cvc5 decides what they print as in SMT-LIB 2, in its own parser, so
that the two share no code beyond that text. Unknown and time-out are failures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from enum import Enum

import z3
from tpinit.proofs.claims import Claim, Result, Verdict
from tpinit.proofs.words import tell

__all__ = ["SOLVERS", "Answer", "decide", "decide_all", "digest", "queries", "smt2"]

TIMEOUT_MS = 30_000


class Answer(str, Enum):
    """What a solver says of a set of formulas."""

    SAT = "sat"
    UNSAT = "unsat"
    UNKNOWN = "unknown"


Solve = Callable[[Sequence[z3.BoolRef]], Answer]


def ask_z3(terms: Sequence[z3.BoolRef]) -> Answer:
    """Ask Z3 whether the terms can hold together."""
    return Answer(str(_z3_solver(terms).check()))


def ask_cvc5(terms: Sequence[z3.BoolRef]) -> Answer:
    """Ask cvc5 the same, of the SMT-LIB 2 text."""
    import cvc5

    solver = cvc5.Solver()
    solver.setOption("tlimit-per", str(TIMEOUT_MS))
    parser = cvc5.InputParser(solver)
    parser.setStringInput(cvc5.InputLanguage.SMT_LIB_2_6, smt2(terms), "claim")
    symbols, said = parser.getSymbolManager(), ""
    while not (command := parser.nextCommand()).isNull():
        said += command.invoke(solver, symbols)
    words = said.split()
    return Answer(words[0]) if words in (["sat"], ["unsat"]) else Answer.UNKNOWN


SOLVERS: dict[str, Solve] = {"z3": ask_z3, "cvc5": ask_cvc5}


def _z3_solver(terms: Sequence[z3.BoolRef]) -> z3.Solver:
    solver = z3.Solver()
    solver.set("timeout", TIMEOUT_MS)
    solver.add(*terms)
    return solver


def smt2(terms: Sequence[z3.BoolRef]) -> str:
    """Print the question whether the terms can hold together in SMT-LIB 2."""
    solver = z3.Solver()
    solver.add(*terms)
    return "(set-logic ALL)\n" + "".join(
        line + "\n" for line in solver.to_smt2().splitlines() if line.strip() and not line.startswith(";")
    )


def queries(claim: Claim) -> list[tuple[str, tuple[z3.BoolRef, ...], Answer]]:
    """List what must be asked to decide a claim, and the answer that is claimed: name, terms, answer."""
    if claim.possible:
        return [("witness", (claim.given, claim.then), Answer.SAT)]
    return [
        ("counterexample", (claim.given, z3.Not(claim.then)), Answer.UNSAT),
        ("premises", (claim.given,), Answer.SAT),
    ]


def digest(claims: Iterable[Claim]) -> str:
    """Hash the formulas of a theorem: the same as long as what is proven is the same (SHA-256, hex).

    A term's hash is made of its operator's and its parts' hashes. (What a solver prints won't do: its names
    for shared parts depend on what else it was ever told.)
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
    """Say what a term does with its parts, its sort included. Raises ValueError for a quantifier."""
    if not z3.is_app(term):
        raise ValueError(f"the digest knows no {type(term).__name__}: {term}")
    name = str(term) if z3.is_int_value(term) else term.decl().name()
    sort = term.sort()
    members = ""
    if isinstance(sort, z3.DatatypeSortRef):
        members = " ".join(sort.constructor(place).name() for place in range(sort.num_constructors()))
    free = "free " if term.decl().kind() == z3.Z3_OP_UNINTERPRETED else ""
    return f"{free}{name}: {sort} {members}"


def decide_all(claims: Iterable[Claim], solve: Solve = ask_z3) -> Result:
    """Decide the claims in turn, up to the first that is not as claimed. No claims at all is vacuous."""
    count = 0
    for claim in claims:
        result = decide(claim, solve)
        count += 1
        if result.verdict is not Verdict.PROVED:
            return Result(result.verdict, count, detail=result.detail)
    return Result(Verdict.PROVED if count else Verdict.VACUOUS, count)


def decide(claim: Claim, solve: Solve = ask_z3) -> Result:
    """Decide one claim over all inputs."""
    for name, terms, claimed in queries(claim):
        answer = solve(terms)
        if answer is claimed:
            continue
        if answer is Answer.UNKNOWN:
            return Result(Verdict.UNKNOWN, 1, detail=f"{claim.says}: the solver did not decide the {name}")
        if name == "premises":
            return Result(Verdict.VACUOUS, 1, detail=f"{claim.says}: no input satisfies the premises")
        if name == "witness":
            return Result(Verdict.REFUTED, 1, detail=f"{claim.says}: no input does that")
        return Result(Verdict.REFUTED, 1, detail=f"{claim.says}: falls{_for_which_input(claim, terms)}")
    return Result(Verdict.PROVED, 1)


def _for_which_input(claim: Claim, terms: Sequence[z3.BoolRef]) -> str:
    solver = _z3_solver(terms)
    if not claim.shown or solver.check() != z3.sat:
        return ""
    return " for " + "; ".join(tell(solver.model(), shown) for shown in claim.shown)
