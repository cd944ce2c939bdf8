"""Refute a formula with a SAT solver and write the certificate files, or return a model of the formula."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from tpinit.proofs.certificates.check import CertificateSize, check
from tpinit.proofs.certificates.encoding import FORMULAS, Clause, Contract, Formula
from tpinit.spec.vocabulary import Fact

__all__ = [
    "Certificate",
    "Counterexample",
    "NoCertificate",
    "VacuousPremises",
    "bound",
    "premises_witness",
    "refute",
    "write",
]

_README = """\
Certificates of tpinit: the table is exhaustive, it is disjoint, and it is equivalent to the prose.

Each theorem has two files. NAME.cnf is its negation in DIMACS CNF; the comments name every variable, the
clauses that are premises, and a model of the premises alone. NAME.drup is a proof, found by a SAT solver,
that the formula has no model: lemmas that each follow by unit propagation (RUP), deletions of clauses that
are no longer needed, and the empty clause as the last line. Its first line is the SHA-256 of the CNF file.

Check them with a checker that shares no code with the encoder (one file, standard library only):

{commands}

It prints 's VERIFIED' and exits with 0, or 's NOT VERIFIED' with the reason and exits with 1. Any other
checker of DRUP or DRAT proofs will do, for example drat-trim NAME.cnf NAME.drup.
"""


class NoCertificate(Exception):
    """There is no certificate. The message names the theorem and gives the reason."""


class VacuousPremises(NoCertificate):
    """The premises exclude or allow the wrong facts, which the message names."""


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
        values = [f"{name} is {str(truth).lower()}" for name, truth in self.truths.items() if name in facts]
        return ", ".join(values + [name for name, truth in self.truths.items() if truth and name not in facts])


def _holds(clauses: Iterable[Clause], model: Sequence[int]) -> bool:
    true = set(model)
    return all(any(literal in true for literal in clause) for clause in clauses)


def _solve(clauses: Sequence[Clause], assuming: Sequence[int] = ()) -> list[int] | None:
    """Return a model of the clauses, None when there is none. The model of the solver is checked by evaluation."""
    from pysat.solvers import Cadical153

    with Cadical153(bootstrap_with=[list(clause) for clause in clauses]) as solver:
        if not solver.solve(assumptions=list(assuming)):
            return None
        model: list[int] = solver.get_model()
    if not _holds([*clauses, *((literal,) for literal in assuming)], model):
        raise RuntimeError("the SAT solver returned an assignment that is not a model")
    return model


def premises_witness(formula: Formula) -> tuple[int, ...]:
    """Check that the premises are satisfiable for exactly the facts that A0 allows, and return a model of them.

    The model is a tuple of literals. Raises VacuousPremises where the premises exclude facts that A0 allows, for
    which the theorem would be vacuous, or allow facts that A0 excludes.
    """
    witness: tuple[int, ...] = ()
    for truths in product((False, True), repeat=len(Fact)):
        facts = dict(zip(Fact, truths, strict=True))
        allowed = facts[Fact.TPI] or not facts[Fact.TPG]
        model = _solve(formula.premises, [place if truth else -place for place, truth in enumerate(truths, 1)])
        if (model is not None) is not allowed:
            described = ", ".join(f"{fact.value} is {str(truth).lower()}" for fact, truth in facts.items())
            raise VacuousPremises(f"{formula.theorem}: the premises {'exclude' if allowed else 'allow'} {described}")
        witness = witness or tuple(model or ())
    return witness


def _dimacs(formula: Formula, witness: Sequence[int]) -> bytes:
    count = len(formula.premises)
    lines = [
        f"c {formula.theorem}, negated: {formula.negated}",
        f"c clauses 1 to {count} are the premises: A0 and the definitions of the variables",
        f"c clauses {count + 1} to {len(formula.clauses)} are the negation: without a model, the theorem holds",
        *(f"c variable {place}: {name}" for place, name in enumerate(formula.variables, 1)),
        "c the premises alone have a model: " + " ".join(map(str, witness)),
        f"p cnf {len(formula.variables)} {len(formula.clauses)}",
        *(" ".join(map(str, (*clause, 0))) for clause in formula.clauses),
    ]
    return "".join(line + "\n" for line in lines).encode("ascii")


def bound(steps: Iterable[str], cnf: bytes) -> bytes:
    """Return the steps as a DRUP proof of this CNF file: its SHA-256 first, nothing after the empty clause."""
    lines = [f"c cnf-sha256 {hashlib.sha256(cnf).hexdigest()}"]
    for step in steps:
        lines.append(" ".join(step.split()))
        if lines[-1] == "0":
            break
    return "".join(line + "\n" for line in lines).encode("ascii")


def refute(formula: Formula) -> Certificate | Counterexample:
    """Let the SAT solver refute the formula. Return its proof, not yet checked, or a checked model of the formula.

    Raises VacuousPremises as `premises_witness` does.
    """
    from pysat.solvers import Cadical153

    cnf = _dimacs(formula, premises_witness(formula))
    with Cadical153(bootstrap_with=[list(clause) for clause in formula.clauses], with_proof=True) as solver:
        if not solver.solve():
            return Certificate(formula.theorem, cnf, bound(solver.get_proof(), cnf))
    model = _solve(formula.clauses) or []
    return Counterexample({formula.variables[abs(literal) - 1]: literal > 0 for literal in model}, cnf)


def write(directory: Path) -> dict[str, CertificateSize]:
    """Write the two files of every theorem and a README.txt, and return the size of each verified certificate.

    The directory is created where it is missing. Raises NoCertificate where a theorem has no refutation and
    RejectedCertificate where the checker rejects a proof, both before anything is written; OSError where the
    directory can't be written to.
    """
    certificates, verified = [], {}
    for name in FORMULAS:
        answer = refute(FORMULAS[name](Contract()))
        if isinstance(answer, Counterexample):
            raise NoCertificate(f"{name} has no refutation: {answer}")
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
