"""Check a clausal refutation: `python -m tpinit.proofs.certificates.check FILE.cnf FILE.drup`.

The files are a formula in DIMACS CNF and a proof in DRUP: lemmas, and deletions of clauses that are no
longer needed, one per line. A lemma is accepted when assuming all its literals false and propagating unit
clauses ends in a conflict (reverse unit propagation), so that it follows from the current clauses; a
deletion must delete a current clause. The last lemma must be the empty clause: the formula then has no
model. No line is skipped or repaired; a malformed file is rejected.

A proof belongs to one formula: its first line, `c cnf-sha256 HEX`, is the SHA-256 of the whole CNF file. The
hash guards against a mixed-up pair of files; the verdict is sound because every lemma is checked.

This file needs only the standard library, no other file of this project, and shares no code with the
writer of the files. It runs as a script too: `python check.py FILE.cnf FILE.drup`.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

__all__ = ["RejectedCertificate", "CertificateSize", "check", "main"]

_HEADER = re.compile(r"p cnf (0|[1-9][0-9]{0,8}) (0|[1-9][0-9]{0,8})")
_CLAUSE = re.compile(r"(?:-?[1-9][0-9]{0,8} )*0")
_STEP = re.compile(r"(d )?((?:-?[1-9][0-9]{0,8} )*0)")
_BINDING = re.compile(r"c cnf-sha256 ([0-9a-f]{64})")

ClauseSet = frozenset[int]


class RejectedCertificate(Exception):
    """The two files are not a certificate. The message names the file and the line, and gives the reason."""


@dataclass(frozen=True, slots=True)
class CertificateSize:
    """The size of a verified certificate: variables and clauses of the formula, lemmas and deletions of the proof."""

    variables: int
    clauses: int
    lemmas: int
    deletions: int


class _Clauses:
    """The current clauses with their multiplicities, and unit propagation over them."""

    def __init__(self) -> None:
        self._copies: Counter[ClauseSet] = Counter()
        self._short: set[ClauseSet] = set()  # clauses of at most one literal, where propagation starts
        self._with: defaultdict[int, set[ClauseSet]] = defaultdict(set)

    def add(self, clause: ClauseSet) -> None:
        self._copies[clause] += 1
        if len(clause) < 2:
            self._short.add(clause)
        for literal in clause:
            self._with[literal].add(clause)

    def remove(self, clause: ClauseSet) -> bool:
        """Remove one copy. Return False when there is none."""
        if not self._copies[clause]:
            return False
        self._copies[clause] -= 1
        if not self._copies[clause]:
            self._short.discard(clause)
            for literal in clause:
                self._with[literal].discard(clause)
        return True

    def conflict(self, assumed: Iterable[int]) -> bool:
        """Return whether unit propagation from the assumed literals makes some clause false."""
        if frozenset() in self._short:
            return True
        true: set[int] = set()
        waiting = [*assumed, *(literal for clause in self._short for literal in clause)]
        while waiting:
            literal = waiting.pop()
            if -literal in true:
                return True
            if literal in true:
                continue
            true.add(literal)
            for clause in self._with[-literal]:
                if not true.isdisjoint(clause):
                    continue
                left = [other for other in clause if -other not in true]
                if not left:
                    return True
                if len(left) == 1:
                    waiting.append(left[0])
        return False


def _lines(text: bytes, name: str) -> list[str]:
    try:
        lines = text.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise RejectedCertificate(f"{name}: not a text file in ASCII") from None
    if lines.pop() != "":
        raise RejectedCertificate(f"{name}: the last line does not end: the file was cut off")
    return lines


def _is_comment(line: str) -> bool:
    return line == "c" or line.startswith("c ")


def _clause(words: str, variables: int, where: str) -> ClauseSet:
    literals = [int(word) for word in words.split()[:-1]]
    for literal in literals:
        if abs(literal) > variables:
            raise RejectedCertificate(
                f"{where}: {literal} is not a literal of the formula, which has {variables} variables"
            )
    return frozenset(literals)


def _formula(text: bytes) -> tuple[int, list[ClauseSet]]:
    header, clauses = None, []
    for number, line in enumerate(_lines(text, "cnf"), 1):
        where = f"cnf, line {number}"
        if _is_comment(line):
            continue
        if header is None:
            header = _HEADER.fullmatch(line)
            if header is None:
                raise RejectedCertificate(f"{where}: 'p cnf VARIABLES CLAUSES' must come first, not {line[:40]!r}")
        elif _CLAUSE.fullmatch(line):
            clauses.append(_clause(line, int(header[1]), where))
        else:
            raise RejectedCertificate(f"{where}: not a clause that ends in 0: {line[:40]!r}")
    if header is None:
        raise RejectedCertificate("cnf: there is no 'p cnf' line")
    if len(clauses) != int(header[2]):
        raise RejectedCertificate(f"cnf: {len(clauses)} clauses where 'p cnf' says {header[2]}")
    return int(header[1]), clauses


def _steps(text: bytes, digest: str, variables: int) -> Iterator[tuple[str, bool, ClauseSet]]:
    """Yield for each step of the proof its location, whether it is a deletion, and its clause."""
    lines = _lines(text, "proof")
    binding = _BINDING.fullmatch(lines[0]) if lines else None
    if binding is None:
        raise RejectedCertificate("proof: the first line must be 'c cnf-sha256 HEX', the SHA-256 of the CNF file")
    if binding[1] != digest:
        raise RejectedCertificate("proof: of another formula: the CNF file has a different SHA-256")
    for number, line in enumerate(lines, 1):
        if _is_comment(line):
            continue
        where, step = f"proof, line {number}", _STEP.fullmatch(line)
        if step is None:
            raise RejectedCertificate(f"{where}: not a lemma or a deletion that ends in 0: {line[:40]!r}")
        yield where, step[1] is not None, _clause(step[2], variables, where)


def check(cnf: bytes, proof: bytes) -> CertificateSize:
    """Check that the proof refutes the formula, both given as the contents of their files.

    Raises RejectedCertificate where a file is malformed, the proof is of another formula, a lemma does not follow
    by unit propagation, a deletion deletes what is not there, or the empty clause is not the last step.
    """
    variables, formula = _formula(cnf)
    clauses = _Clauses()
    for clause in formula:
        clauses.add(clause)
    lemmas = deletions = 0
    refuted = False
    for where, deletes, clause in _steps(proof, hashlib.sha256(cnf).hexdigest(), variables):
        if refuted:
            raise RejectedCertificate(f"{where}: a step after the empty clause")
        if deletes:
            if not clauses.remove(clause):
                raise RejectedCertificate(f"{where}: deletes a clause that is not there")
            deletions += 1
            continue
        if not clauses.conflict(-literal for literal in clause):
            raise RejectedCertificate(f"{where}: does not follow by unit propagation")
        clauses.add(clause)
        lemmas += 1
        refuted = not clause
    if not refuted:
        raise RejectedCertificate("proof: ends without the empty clause, so it refutes nothing")
    return CertificateSize(variables, len(formula), lemmas, deletions)


def main(arguments: Sequence[str]) -> int:
    """Check the two files. Return 0 when the proof holds, 1 when it does not, 2 for wrong arguments."""
    if len(arguments) != 2:
        sys.stderr.write("usage: check FILE.cnf FILE.drup\n")
        return 2
    try:
        contents = []
        for path in arguments:
            with open(path, "rb") as file:
                contents.append(file.read())
        size = check(*contents)
    except (RejectedCertificate, OSError) as problem:
        sys.stdout.write(f"c {problem}\ns NOT VERIFIED\n")
        return 1
    sys.stdout.write(
        f"c {size.variables} variables, {size.clauses} clauses; {size.lemmas} lemmas, the empty clause the last of "
        f"them, and {size.deletions} deletions\ns VERIFIED\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
