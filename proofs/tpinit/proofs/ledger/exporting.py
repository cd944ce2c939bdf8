"""Write every query of every theorem as an SMT-LIB 2 file, which any SMT solver can decide."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from tpinit.proofs.claims import THEOREMS, Theorem, right_model
from tpinit.proofs.solvers import queries, smt2

__all__ = ["files", "write_smt2"]


def files(theorem: Theorem) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of one file per query of a theorem; none for a theorem with an engine.

    The names are THEOREM.NN.QUERY.smt2, where NN counts the claims from 1. The status in a file is the
    expected answer, not the answer of a solver.
    """
    if theorem.claims is None:
        return
    for number, claim in enumerate(theorem.claims(right_model()), 1):
        for query, terms, answer in queries(claim):
            header = (
                f"theorem: {theorem.name} (contract, section {theorem.clause})",
                f"statement: {theorem.statement}",
                f"claim {number}: {claim.label}",
                f"query: {query}; the claim holds when the answer is {answer.value}",
            )
            head = [f"(set-info :status {answer.value})", "(set-info :smt-lib-version 2.6)"]
            question = smt2(terms).replace("(set-info :status unknown)\n", "")  # Z3's printer writes this status
            yield f"{theorem.name}.{number:02}.{query}.smt2", "\n".join([*_comments(header), *head, question])


def _comments(lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        yield from textwrap.wrap(line, 100, initial_indent="; ", subsequent_indent=";   ")


def write_smt2(directory: Path, names: Sequence[str]) -> int:
    """Write the queries of the named theorems into a directory, create it where it is missing, and return their number.

    Raises OSError where the directory can't be written to.
    """
    directory.mkdir(parents=True, exist_ok=True)
    count = 0
    for name in names:
        for file, text in files(THEOREMS[name]):
            (directory / file).write_text(text, encoding="utf-8")
            count += 1
    return count
