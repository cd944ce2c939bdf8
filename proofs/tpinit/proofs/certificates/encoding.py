"""The propositional theorems as CNF, made from the rows and the rules as data, without a solver.

The encoding is independent of the Z3 model: they share the data of the contract and no code. Every value of
every column has its own variable, defined by the rows or rules that give this value, so a formulation that
gives two values or none differs from one that gives one. A formula consists of the premises (A0 and the
definitions) and the negation of the theorem; the theorem holds when the formula has no model.
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
    """The two formulations as data. A weakened contract has other rows or rules."""

    rows: tuple[Row, ...] = ROWS
    rules: tuple[Rule, ...] = RULES


@dataclass(frozen=True, slots=True)
class Formula:
    """The premises and the negation of a theorem as clauses. Variable n has the name `variables[n - 1]`.

    The four facts are variables 1 to 4, in the vocabulary's order.
    """

    theorem: str
    negated: str
    variables: tuple[str, ...]
    premises: tuple[Clause, ...]
    negation: tuple[Clause, ...]

    @property
    def clauses(self) -> tuple[Clause, ...]:
        """The premises, then the negation."""
        return self.premises + self.negation


@dataclass(frozen=True, slots=True)
class _Definitions:
    """Variables and the clauses that define them by equivalence (Tseitin encoding)."""

    names: list[str] = field(default_factory=list)
    clauses: list[Clause] = field(default_factory=list)

    def new(self, name: str) -> int:
        self.names.append(name)
        return len(self.names)

    def every(self, name: str, parts: Iterable[int]) -> int:
        """Return a new variable that is true exactly when all literals are true."""
        literals, defined = tuple(parts), self.new(name)
        self.clauses.extend((-defined, literal) for literal in literals)
        self.clauses.append((defined, *(-literal for literal in literals)))
        return defined

    def some(self, name: str, parts: Iterable[int]) -> int:
        """Return a new variable that is true exactly when at least one literal is true; false for no literals."""
        literals, defined = tuple(parts), self.new(name)
        self.clauses.extend((defined, -literal) for literal in literals)
        self.clauses.append((-defined, *literals))
        return defined

    def differ(self, name: str, one: int, other: int) -> int:
        """Return a new variable that is true exactly when the two literals differ."""
        defined = self.new(name)
        self.clauses.extend(
            [(-defined, one, other), (-defined, -one, -other), (defined, -one, other), (defined, one, -other)]
        )
        return defined


def _start() -> tuple[_Definitions, Mapping[Fact, int]]:
    """Return the variables of the facts, with A0 (TPG implies TPI) as a clause."""
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


# For each column and each value, the variable that is true where a formulation gives this value.
_ColumnVariables = Mapping[tuple[str, Enum], int]


def _table(made: _Definitions, facts: Mapping[Fact, int], rows: Sequence[Row]) -> _ColumnVariables:
    holds = list(zip(_row_variables(made, facts, rows), rows, strict=True))

    def says(column: str, value: Enum) -> int:
        return made.some(f"table: {_cell(column, value)}", (v for v, row in holds if getattr(row, column) is value))

    return {(column, value): says(column, value) for column, enum in _COLUMNS.items() for value in enum}


def _prose(made: _Definitions, facts: Mapping[Fact, int], rules: Sequence[Rule]) -> _ColumnVariables:
    """Combine the rules that fire: they add up, and a rejection overrides everything except its code."""
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

    def define(column: str, value: Enum, *parts: int) -> None:
        verdict[column, value] = made.every(f"prose: {_cell(column, value)}", parts)

    def define_default(column: str, value: Enum, *parts: int) -> None:
        verdict[column, value] = made.some(f"prose: {_cell(column, value)}", (rejected, *parts))

    def by_some_rule(column: str, value: Enum, field_of_rule: str) -> int:
        return fired(f"some rule says {_cell(column, value)}", lambda rule: getattr(rule, field_of_rule) is value)

    for outcome in Outcome:
        given = by_some_rule("outcome", outcome, "outcome")
        if outcome is Outcome.ERROR:
            define_default("outcome", outcome, -some_outcome, given)
        else:
            define("outcome", outcome, -rejected, given)
    for code in ViolationCode:
        define("code", code, by_some_rule("code", code, "rejects"))
    neither = made.every("no rule reads a source", (-config, -call))
    define_default("fields_from", FieldsFrom.NOTHING, neither)
    define("fields_from", FieldsFrom.CONFIG, -rejected, config, -call)
    define("fields_from", FieldsFrom.CALL, -rejected, -config, call)
    define("fields_from", FieldsFrom.CONFIG_THEN_CALL, -rejected, config, call)
    for group in GroupFrom:
        given = by_some_rule("group_from", group, "group")
        if group is GroupFrom.NOTHING:
            define_default("group_from", group, -some_group, given)
        else:
            define("group_from", group, -rejected, given)
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
