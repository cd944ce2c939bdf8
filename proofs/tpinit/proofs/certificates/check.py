"""Check a clausal refutation: `python -m tpinit.proofs.certificates.check FILE.cnf FILE.drup`.

The files are a formula in DIMACS CNF and a proof in DRUP: lemmas, and deletions of clauses that are no
longer needed, one a line. A lemma is accepted when assuming all its literals false and propagating unit
clauses ends in a conflict (reverse unit propagation), so that it follows from what is there; a
deletion must delete a clause that is there. The last lemma must be the empty clause: then the
formula has no model. Nothing is skipped and nothing is repaired, a file that is malformed is refused.

A proof is of one formula and no other: its first line, `c cnf-sha256 HEX`, is the SHA-256 of the whole
CNF file. It guards against a mixed-up pair; what makes a verdict sound is that every lemma is checked.

This file needs the standard library alone, not even the rest of this project, and shares no code
with what writes the files. It runs as a script too: `python check.py FILE.cnf FILE.drup`.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Rejected", "Verified", "check", "main"]

_HEADER = re.compile(r"p cnf (0|[1-9][0-9]{0,8}) (0|[1-9][0-9]{0,8})")
_CLAUSE = re.compile(r"(?:-?[1-9][0-9]{0,8} )*0")
_STEP = re.compile(r"(d )?((?:-?[1-9][0-9]{0,8} )*0)")
_BINDING = re.compile(r"c cnf-sha256 ([0-9a-f]{64})")

Clause = frozenset[int]


class Rejected(Exception):
    """The two files are no certificate. The message says which file and line, and why."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What was checked: the formula's variables and clauses, the proof's lemmas and deletions."""

    variables: int
    clauses: int
    lemmas: int
    deletions: int


class _Clauses:
    """The clauses in force, each as often as it was given, and what unit propagation makes of them."""

    def __init__(self) -> None:
        self._copies: Counter[Clause] = Counter()
        self._short: set[Clause] = set()  # those of at most one literal: where propagation starts
        self._with: defaultdict[int, set[Clause]] = defaultdict(set)

    def add(self, clause: Clause) -> None:
        self._copies[clause] += 1
        if len(clause) < 2:
            self._short.add(clause)
        for literal in clause:
            self._with[literal].add(clause)

    def remove(self, clause: Clause) -> bool:
        """Remove one copy. False when there is none."""
        if not self._copies[clause]:
            return False
        self._copies[clause] -= 1
        if not self._copies[clause]:
            self._short.discard(clause)
            for literal in clause:
                self._with[literal].discard(clause)
        return True

    def conflict(self, assumed: Iterable[int]) -> bool:
        """Whether unit propagation from the assumed literals makes some clause false."""
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
        raise Rejected(f"{name}: not a text file in ASCII") from None
    if lines.pop() != "":
        raise Rejected(f"{name}: the last line does not end: the file was cut off")
    return lines


def _is_comment(line: str) -> bool:
    return line == "c" or line.startswith("c ")


def _clause(words: str, variables: int, where: str) -> Clause:
    literals = [int(word) for word in words.split()[:-1]]
    for literal in literals:
        if abs(literal) > variables:
            raise Rejected(f"{where}: {literal} is no literal of the formula, which has {variables} variables")
    return frozenset(literals)


def _formula(text: bytes) -> tuple[int, list[Clause]]:
    header, clauses = None, []
    for number, line in enumerate(_lines(text, "cnf"), 1):
        where = f"cnf, line {number}"
        if _is_comment(line):
            continue
        if header is None:
            header = _HEADER.fullmatch(line)
            if header is None:
                raise Rejected(f"{where}: 'p cnf VARIABLES CLAUSES' must come first, not {line[:40]!r}")
        elif _CLAUSE.fullmatch(line):
            clauses.append(_clause(line, int(header[1]), where))
        else:
            raise Rejected(f"{where}: not a clause that ends in 0: {line[:40]!r}")
    if header is None:
        raise Rejected("cnf: there is no 'p cnf' line")
    if len(clauses) != int(header[2]):
        raise Rejected(f"cnf: {len(clauses)} clauses where 'p cnf' says {header[2]}")
    return int(header[1]), clauses


def _steps(text: bytes, digest: str, variables: int) -> Iterator[tuple[str, bool, Clause]]:
    """Read the proof: where each step is, whether it is a deletion, and its clause."""
    lines = _lines(text, "proof")
    binding = _BINDING.fullmatch(lines[0]) if lines else None
    if binding is None:
        raise Rejected("proof: the first line must be 'c cnf-sha256 HEX', the SHA-256 of the CNF file")
    if binding[1] != digest:
        raise Rejected("proof: of another formula: the CNF file has a different SHA-256")
    for number, line in enumerate(lines, 1):
        if _is_comment(line):
            continue
        where, step = f"proof, line {number}", _STEP.fullmatch(line)
        if step is None:
            raise Rejected(f"{where}: not a lemma or a deletion that ends in 0: {line[:40]!r}")
        yield where, step[1] is not None, _clause(step[2], variables, where)


def check(cnf: bytes, proof: bytes) -> Verified:
    """Check that the proof refutes the formula, both given as the contents of their files.

    Raises Rejected where a file is malformed, the proof is of another formula, a lemma does not follow
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
            raise Rejected(f"{where}: a step after the empty clause")
        if deletes:
            if not clauses.remove(clause):
                raise Rejected(f"{where}: deletes a clause that is not there")
            deletions += 1
            continue
        if not clauses.conflict(-literal for literal in clause):
            raise Rejected(f"{where}: does not follow by unit propagation")
        clauses.add(clause)
        lemmas += 1
        refuted = not clause
    if not refuted:
        raise Rejected("proof: ends without the empty clause, so that it refutes nothing")
    return Verified(variables, len(formula), lemmas, deletions)


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
        said = check(*contents)
    except (Rejected, OSError) as problem:
        sys.stdout.write(f"c {problem}\ns NOT VERIFIED\n")
        return 1
    sys.stdout.write(
        f"c {said.variables} variables, {said.clauses} clauses; {said.lemmas} lemmas, the empty clause the last of "
        f"them, and {said.deletions} deletions\ns VERIFIED\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
