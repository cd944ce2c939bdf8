"""A SAT solver refutes a formula, or finds a model of it; both are told in files that others can read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from tpinit.proofs.certificates.check import Verified, check
from tpinit.proofs.certificates.encoding import FORMULAS, Clause, Contract, Formula
from tpinit.spec.vocabulary import Fact

__all__ = ["Certificate", "Counterexample", "Refused", "Vacuous", "bound", "premises_witness", "refute", "write"]

_README = """\
Certificates of tpinit: the table is exhaustive, it is disjoint, and it says what the prose says.

Each theorem has two files. NAME.cnf is its negation in DIMACS CNF: the comments say what every variable
stands for, which clauses are premises, and a witness that the premises alone can hold. NAME.drup is a
proof, found by a SAT solver, that the formula has no model: lemmas that each follow by unit propagation
(RUP), deletions of clauses no longer needed, the empty clause as the last line. Its first line is the
SHA-256 of the CNF file that it is about.

Check them, with a checker that shares no code with what made them (one file, standard library only):

{commands}

It prints 's VERIFIED' and exits with 0, or 's NOT VERIFIED' with the reason and exits with 1. Any other
checker of DRUP or DRAT proofs will do, for example drat-trim NAME.cnf NAME.drup.
"""


class Refused(Exception):
    """There is no certificate: the message names the theorem and says why."""


class Vacuous(Refused):
    """The premises do not say what they should: the message names the facts for which they fail."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """The contents of the two files: a formula in DIMACS CNF and its refutation in DRUP."""

    theorem: str
    cnf: bytes
    proof: bytes


@dataclass(frozen=True, slots=True)
class Counterexample:
    """A model of a theorem's negation: the truth of each variable by name, and the formula as DIMACS CNF."""

    truths: Mapping[str, bool]
    cnf: bytes

    def __str__(self) -> str:
        facts = {fact.value for fact in Fact}
        told = [f"{name} is {str(truth).lower()}" for name, truth in self.truths.items() if name in facts]
        return ", ".join(told + [name for name, truth in self.truths.items() if truth and name not in facts])


def _holds(clauses: Iterable[Clause], model: Sequence[int]) -> bool:
    true = set(model)
    return all(any(literal in true for literal in clause) for clause in clauses)


def _solve(clauses: Sequence[Clause], assuming: Sequence[int] = ()) -> list[int] | None:
    """Find a model of the clauses; None when there is none. A model is not believed but evaluated."""
    from pysat.solvers import Cadical153

    with Cadical153(bootstrap_with=[list(clause) for clause in clauses]) as solver:
        if not solver.solve(assumptions=list(assuming)):
            return None
        model: list[int] = solver.get_model()
    if not _holds([*clauses, *((literal,) for literal in assuming)], model):
        raise RuntimeError("the SAT solver gave a model that is none")
    return model


def premises_witness(formula: Formula) -> tuple[int, ...]:
    """Show that the premises are not vacuous: they hold for just those facts that A0 allows.

    Returns a model of the premises, as literals. Raises Vacuous where they exclude facts that A0 allows,
    so that the theorem would say nothing of them, or allow facts that A0 excludes.
    """
    witness: tuple[int, ...] = ()
    for truths in product((False, True), repeat=len(Fact)):
        facts = dict(zip(Fact, truths, strict=True))
        allowed = facts[Fact.TPI] or not facts[Fact.TPG]
        model = _solve(formula.premises, [place if truth else -place for place, truth in enumerate(truths, 1)])
        if (model is not None) is not allowed:
            told = ", ".join(f"{fact.value} is {str(truth).lower()}" for fact, truth in facts.items())
            raise Vacuous(f"{formula.theorem}: the premises {'exclude' if allowed else 'allow'} {told}")
        witness = witness or tuple(model or ())
    return witness


def _dimacs(formula: Formula, witness: Sequence[int]) -> bytes:
    count = len(formula.premises)
    lines = [
        f"c {formula.theorem}, negated: {formula.says}",
        f"c clauses 1 to {count} are the premises: A0, and what each defined variable means",
        f"c clauses {count + 1} to {len(formula.clauses)} are the negation: without a model, the theorem holds",
        *(f"c variable {place}: {name}" for place, name in enumerate(formula.variables, 1)),
        "c the premises alone have a model: " + " ".join(map(str, witness)),
        f"p cnf {len(formula.variables)} {len(formula.clauses)}",
        *(" ".join(map(str, (*clause, 0))) for clause in formula.clauses),
    ]
    return "".join(line + "\n" for line in lines).encode("ascii")


def bound(steps: Iterable[str], cnf: bytes) -> bytes:
    """Write steps down as a proof of this formula: the file's SHA-256 first, nothing after the refutation."""
    lines = [f"c cnf-sha256 {hashlib.sha256(cnf).hexdigest()}"]
    for step in steps:
        lines.append(" ".join(step.split()))
        if lines[-1] == "0":
            break
    return "".join(line + "\n" for line in lines).encode("ascii")


def refute(formula: Formula) -> Certificate | Counterexample:
    """Have the SAT solver refute the formula: what it gives is a proof to check, or a model, evaluated.

    Raises Vacuous where the premises are not what they should be.
    """
    from pysat.solvers import Cadical153

    cnf = _dimacs(formula, premises_witness(formula))
    with Cadical153(bootstrap_with=[list(clause) for clause in formula.clauses], with_proof=True) as solver:
        if not solver.solve():
            return Certificate(formula.theorem, cnf, bound(solver.get_proof(), cnf))
    model = _solve(formula.clauses) or []
    return Counterexample({formula.variables[abs(literal) - 1]: literal > 0 for literal in model}, cnf)


def write(directory: Path) -> dict[str, Verified]:
    """Write every theorem's two files and a README.txt that says how to check them. Say what was checked.

    The directory is made where there is none. Raises OSError where it can't be written to, and before
    anything is written Refused where a theorem has no refutation, Rejected where the checker refuses it.
    """
    certificates, verified = [], {}
    for name in FORMULAS:
        answer = refute(FORMULAS[name](Contract()))
        if isinstance(answer, Counterexample):
            raise Refused(f"{name} has no refutation: {answer}")
        certificates.append(answer)
        verified[name] = check(answer.cnf, answer.proof)
    directory.mkdir(parents=True, exist_ok=True)
    for certificate in certificates:
        (directory / f"{certificate.theorem}.cnf").write_bytes(certificate.cnf)
        (directory / f"{certificate.theorem}.drup").write_bytes(certificate.proof)
    command = "    python -m tpinit.proofs.certificates.check {0}.cnf {0}.drup"
    commands = "\n".join(command.format(name) for name in FORMULAS)
    (directory / "README.txt").write_text(_README.format(commands=commands), encoding="ascii")
    return verified
