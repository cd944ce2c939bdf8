"""The propositional theorems as CNF, made from the rows and the rules as data. No solver takes part.

A path of its own from the contract to a formula: it shares the data with the Z3 model and no line of
code. Every value of every column is a variable of its own, defined by the rows or rules that say it, so
that a formulation which says two values, or none, differs from one that says one. A formula is the
premises, which are A0 and the definitions, and the negation of the theorem: no model, no exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import combinations
from types import MappingProxyType

from tpinit.spec.prose import RULES, Rule
from tpinit.spec.table import ROWS, Row
from tpinit.spec.vocabulary import Fact, FieldsFrom, GroupFrom, Outcome, ViolationCode

__all__ = ["FORMULAS", "Clause", "Contract", "Formula"]

Clause = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Contract:
    """The two formulations, as data. A weakened contract is one with other rows or rules."""

    rows: tuple[Row, ...] = ROWS
    rules: tuple[Rule, ...] = RULES


@dataclass(frozen=True, slots=True)
class Formula:
    """A theorem's premises and its negation, in clauses. Variable n is named by `variables[n - 1]`.

    The four facts are variables 1 to 4, in the vocabulary's order.
    """

    theorem: str
    says: str
    variables: tuple[str, ...]
    premises: tuple[Clause, ...]
    negation: tuple[Clause, ...]

    @property
    def clauses(self) -> tuple[Clause, ...]:
        """The premises, then the negation."""
        return self.premises + self.negation


@dataclass(frozen=True, slots=True)
class _Definitions:
    """Variables, and the clauses that define them: each is equivalent to what it stands for (Tseitin)."""

    names: list[str] = field(default_factory=list)
    clauses: list[Clause] = field(default_factory=list)

    def new(self, name: str) -> int:
        self.names.append(name)
        return len(self.names)

    def every(self, name: str, parts: Iterable[int]) -> int:
        """Make a variable that is true exactly when all the literals are."""
        literals, whole = tuple(parts), self.new(name)
        self.clauses.extend((-whole, literal) for literal in literals)
        self.clauses.append((whole, *(-literal for literal in literals)))
        return whole

    def some(self, name: str, parts: Iterable[int]) -> int:
        """Make a variable that is true exactly when one of the literals is. Of none it is false."""
        literals, whole = tuple(parts), self.new(name)
        self.clauses.extend((whole, -literal) for literal in literals)
        self.clauses.append((-whole, *literals))
        return whole

    def differ(self, name: str, one: int, other: int) -> int:
        """Make a variable that is true exactly when the two literals are not equal."""
        whole = self.new(name)
        self.clauses.extend([(-whole, one, other), (-whole, -one, -other), (whole, -one, other), (whole, one, -other)])
        return whole


def _start() -> tuple[_Definitions, Mapping[Fact, int]]:
    """Make the facts, and A0: TPG implies TPI."""
    made = _Definitions()
    facts = {fact: made.new(fact.value) for fact in Fact}
    made.clauses.append((-facts[Fact.TPG], facts[Fact.TPI]))
    return made, facts


def _conditions(facts: Mapping[Fact, int], holds: Iterable[tuple[Fact, bool]]) -> list[int]:
    return [facts[fact] if truth else -facts[fact] for fact, truth in holds]


def _row_variables(made: _Definitions, facts: Mapping[Fact, int], rows: Sequence[Row]) -> list[int]:
    return [made.every(f"row {row.number} holds", _conditions(facts, row.facts)) for row in rows]


def _exhaustive(contract: Contract) -> Formula:
    made, facts = _start()
    rows = _row_variables(made, facts, contract.rows)
    return Formula(
        "certified_rows_are_exhaustive",
        "no row holds",
        tuple(made.names),
        tuple(made.clauses),
        tuple((-row,) for row in rows),
    )


def _disjoint(contract: Contract) -> Formula:
    made, facts = _start()
    rows = _row_variables(made, facts, contract.rows)
    pairs = [
        made.every(f"rows {one.number} and {other.number} hold", (this, that))
        for (this, one), (that, other) in combinations(zip(rows, contract.rows, strict=True), 2)
    ]
    return Formula(
        "certified_rows_are_disjoint", "two rows hold", tuple(made.names), tuple(made.clauses), (tuple(pairs),)
    )


# A formulation's verdict: for each column, each value and the variable that says it.
_Verdict = Mapping[tuple[str, Enum], int]


def _table(made: _Definitions, facts: Mapping[Fact, int], rows: Sequence[Row]) -> _Verdict:
    holds = list(zip(_row_variables(made, facts, rows), rows, strict=True))

    def says(column: str, value: Enum) -> int:
        return made.some(f"table: {_cell(column, value)}", (v for v, row in holds if getattr(row, column) is value))

    return {(column, value): says(column, value) for column, enum in _COLUMNS.items() for value in enum}


def _prose(made: _Definitions, facts: Mapping[Fact, int], rules: Sequence[Rule]) -> _Verdict:
    """Sum the rules up: those that fire add to each other, a rejection overrides all but its code."""
    fires = [
        (made.every(f"rule {place} ({rule.clause}) fires", _conditions(facts, rule.when.items())), rule)
        for place, rule in enumerate(rules, 1)
    ]

    def fired(name: str, which: Callable[[Rule], object]) -> int:
        return made.some(name, (variable for variable, rule in fires if which(rule)))

    rejected = fired("some rule rejects", lambda rule: rule.rejects)
    some_outcome = fired("some rule says an outcome", lambda rule: rule.outcome)
    some_group = fired("some rule says a group", lambda rule: rule.group)
    config = fired("some rule reads the config", lambda rule: rule.reads_config)
    call = fired("some rule reads the call", lambda rule: rule.reads_call)
    verdict: dict[tuple[str, Enum], int] = {}

    def says(column: str, value: Enum, *parts: int) -> None:
        verdict[column, value] = made.every(f"prose: {_cell(column, value)}", parts)

    def says_nothing(column: str, value: Enum, *parts: int) -> None:
        verdict[column, value] = made.some(f"prose: {_cell(column, value)}", (rejected, *parts))

    def said(column: str, value: Enum, field_of_rule: str) -> int:
        return fired(f"some rule says {_cell(column, value)}", lambda rule: getattr(rule, field_of_rule) is value)

    for outcome in Outcome:
        of_this = said("outcome", outcome, "outcome")
        if outcome is Outcome.ERROR:
            says_nothing("outcome", outcome, -some_outcome, of_this)
        else:
            says("outcome", outcome, -rejected, of_this)
    for code in ViolationCode:
        says("code", code, said("code", code, "rejects"))
    neither = made.every("no rule reads a source", (-config, -call))
    says_nothing("fields_from", FieldsFrom.NOTHING, neither)
    says("fields_from", FieldsFrom.CONFIG, -rejected, config, -call)
    says("fields_from", FieldsFrom.CALL, -rejected, -config, call)
    says("fields_from", FieldsFrom.CONFIG_THEN_CALL, -rejected, config, call)
    for group in GroupFrom:
        of_this = said("group_from", group, "group")
        if group is GroupFrom.NOTHING:
            says_nothing("group_from", group, -some_group, of_this)
        else:
            says("group_from", group, -rejected, of_this)
    return verdict


_COLUMNS: Mapping[str, type[Enum]] = MappingProxyType(
    {"outcome": Outcome, "code": ViolationCode, "fields_from": FieldsFrom, "group_from": GroupFrom}
)


def _cell(column: str, value: Enum) -> str:
    return f"{column} is {value.name}"


def _table_is_prose(contract: Contract) -> Formula:
    made, facts = _start()
    table, prose = _table(made, facts, contract.rows), _prose(made, facts, contract.rules)
    differences = [made.differ(f"they differ: {_cell(*cell)}", table[cell], prose[cell]) for cell in table]
    return Formula(
        "certified_table_is_prose",
        "the table and the prose differ in an outcome, a code, or where the fields or the group come from",
        tuple(made.names),
        tuple(made.clauses),
        (tuple(differences),),
    )


FORMULAS: Mapping[str, Callable[[Contract], Formula]] = MappingProxyType(
    {
        "certified_rows_are_exhaustive": _exhaustive,
        "certified_rows_are_disjoint": _disjoint,
        "certified_table_is_prose": _table_is_prose,
    }
)
