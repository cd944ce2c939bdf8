"""Mutants of the contract in which table, prose and section 4 have the same error, so that they still agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from types import MappingProxyType

import z3
from tpinit.proofs.claims import right_model
from tpinit.proofs.mutants import change_row, override, redefine
from tpinit.spec.model import Model
from tpinit.spec.prose import Disagreement
from tpinit.spec.table import Row
from tpinit.spec.vocabulary import Outcome, ViolationCode

__all__ = ["consistent_changes"]

Apply = Callable[[Model], Model]


def consistent_changes(of_rows: Iterable[tuple[str, Apply]]) -> Iterator[tuple[str, Apply]]:
    """Yield the name and the function of each mutant.

    `of_rows` are mutants of the table alone, without those that make a row another error: these need section 4 too.
    """
    for name, apply in of_rows:
        yield f"{name}, in the prose too", _in_prose_too(apply)
    for row in right_model().rows:
        for name, apply in _with_predicates(row):
            yield f"{name}, in the prose and in section 4 too", _in_prose_too(apply)
    for index, what in enumerate(right_model().disagreements):
        for source in what.sources:
            less = replace(what, sources=tuple(one for one in what.sources if one is not source))
            yield f"P3's {what.code.value} without {source.value}, in section 4 too", _in_section_4_too(index, less)


def _in_prose_too(apply: Apply) -> Apply:
    agree = redefine("by_prose", "", lambda m, _: m.by_table).apply
    return lambda m: agree(apply(m))


def _with_predicates(row: Row) -> Iterator[tuple[str, Apply]]:
    """Yield the row with each other outcome, and the predicate of its error changed so that it fits."""
    for outcome in Outcome:
        if row.code is not None and outcome is not Outcome.ERROR:
            changed = change_row(row.number, "", outcome=outcome, code=None).apply
            yield f"row {row.number} ends in {outcome.value}", _both(changed, _except_row(row.code, row))
    code = next(code for code in ViolationCode if code is not row.code)
    changed = change_row(row.number, "", outcome=Outcome.ERROR, code=code).apply
    yield f"row {row.number} is the error {code.value}", _both(changed, _and_row(code, row))


def _both(first: Apply, second: Apply) -> Apply:
    return lambda m: second(first(m))


def _except_row(code: ViolationCode, row: Row) -> Apply:
    return override(code, "", lambda m, right: z3.And(right, z3.Not(m.row_holds(row)))).apply


def _and_row(code: ViolationCode, row: Row) -> Apply:
    return override(code, "", lambda m, right: z3.Or(right, m.row_holds(row))).apply


def _in_section_4_too(index: int, what: Disagreement) -> Apply:
    def apply(m: Model) -> Model:
        disagreements = (*m.disagreements[:index], what, *m.disagreements[index + 1 :])
        predicates = MappingProxyType({**m.predicates, what.code: lambda model: model.disagree(what)})
        return replace(m, disagreements=disagreements, predicates=predicates)

    return apply
