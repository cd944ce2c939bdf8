"""Read a table from plain data. All problems are collected, each with its path and the nearest legal name.

The format is described in docs/check-table.md: `conditions`, `rows`, and optionally `title`, `axioms` and `hit_policy`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tpinit.decision_tables.expressions import ExpressionError, parse, value_index
from tpinit.decision_tables.model import BOOL_VALUES, Axiom, Condition, DecisionRow, HitPolicy, Table
from tpinit.decision_tables.source import load
from tpinit.reference.errors import ConfigError, Problem
from tpinit.reference.spellings import nearest, printable, show

__all__ = ["read_table", "table_from"]

MAX_CONDITIONS, MAX_VALUES, MAX_ROWS, MAX_AXIOMS = 100, 100, 5000, 500
ANY = ("-", "*")
_TABLE = ("title", "hit_policy", "conditions", "rows", "axioms")
_CONDITION = ("name", "kind", "values", "meaning")
_ROW = ("id", "cells", "outcome", "note")
_AXIOM = ("name", "text", "note")


def read_table(file: str, *, axioms: Sequence[str] = (), number: int | None = None) -> Table:
    """Read a table from a file (`-`: stdin) and add axioms to it. Raises ConfigError with every problem."""
    return table_from(load(file, number), more_axioms=axioms)


def table_from(data: object, *, more_axioms: Sequence[str] = ()) -> Table:
    """Return the table that plain data describes. Raises ConfigError with every problem."""
    return _Reader().table(data, more_axioms)


@dataclass(slots=True)
class _Reader:
    """Collects problems: an element with a problem is dropped, and in the end `table` raises instead of returning."""

    problems: list[Problem] = field(default_factory=list)

    def note(self, path: str, given: object, message: str, fix: str) -> None:
        self.problems.append(Problem(path, "" if given is _NOTHING else show(given), message, fix))

    def table(self, data: object, more_axioms: Sequence[str]) -> Table:
        if not isinstance(data, Mapping):
            raise ConfigError(
                [Problem("table", show(data), "a table must be an object", 'write { "conditions": ... }')]
            )
        self.keys(data, "", _TABLE, ("conditions", "rows"))
        title = self.text(data.get("title", ""), "title")
        policy = self.policy(data.get("hit_policy", "unique"))
        conditions = self.conditions(data.get("conditions", _NOTHING))
        rows: tuple[DecisionRow, ...] = ()
        axioms: tuple[Axiom, ...] = ()
        if not self.problems:  # with wrong conditions, every row would only repeat their problems
            rows = self.rows(data.get("rows", _NOTHING), conditions)
            axioms = self.axioms(data.get("axioms", []), more_axioms, conditions)
        if self.problems:
            raise ConfigError(self.problems)
        return Table(title, policy, conditions, rows, axioms)

    # --- parts ---------------------------------------------------------------------------------------

    def keys(self, data: Mapping[str, object], path: str, legal: Sequence[str], needed: Sequence[str]) -> None:
        for key in data:
            if key not in legal:
                close = nearest(key, legal)
                fix = f'write "{close}"' if close else f"legal are {', '.join(legal)}"
                self.note(_below(path, printable(str(key))), _NOTHING, "there is no such key", fix)
        for key in needed:
            if key not in data:
                self.note(_below(path, key), _NOTHING, "is missing", f'add "{key}"')

    def text(self, value: object, path: str) -> str:
        if isinstance(value, str):
            return value
        self.note(path, value, "must be a text", "write it in quotes")
        return ""

    def policy(self, value: object) -> HitPolicy:
        legal = [policy.value for policy in HitPolicy]
        if isinstance(value, str) and value in legal:
            return HitPolicy(value)
        close = nearest(value, legal)
        fix = f'write "{close}"' if close else f"write one of {', '.join(legal)}"
        self.note("hit_policy", value, "there is no such hit policy", fix)
        return HitPolicy.UNIQUE

    def items(self, value: object, path: str, most: int, least: int = 1) -> Sequence[object]:
        if value is _NOTHING:
            return []
        if not isinstance(value, list):
            self.note(path, value, "must be a list", "write [ ... ]")
            return []
        if not least <= len(value) <= most:
            fix = "add some" if len(value) < least else "split the table"
            self.note(path, _NOTHING, f"has {len(value)} items; {least} to {most} are legal", fix)
            return []
        return value

    def conditions(self, value: object) -> tuple[Condition, ...]:
        found: list[Condition] = []
        seen: dict[str, str] = {}
        for index, item in enumerate(self.items(value, "conditions", MAX_CONDITIONS)):
            path = f"conditions[{index}]"
            condition = self.condition(item, path)
            if condition is None:
                continue
            found.append(condition)
            self.unique(condition.name, path, seen)
        return tuple(found)

    def unique(self, name: str, path: str, seen: dict[str, str]) -> None:
        if name in seen:
            self.note(path, name, f"this name is already used by {seen[name]}", "give each its own name")
        seen.setdefault(name, path)

    def condition(self, item: object, path: str) -> Condition | None:
        if isinstance(item, str):
            item = {"name": item}
        if not isinstance(item, Mapping):
            self.note(path, item, "a condition is a name or an object", 'write { "name": ... }')
            return None
        self.keys(item, path, _CONDITION, ("name",))
        name = self.text(item.get("name", ""), f"{path}.name").strip()
        if "name" in item and (not name or {"'", '"'} <= set(name)):
            self.note(
                f"{path}.name", item["name"], "a name must not be empty or contain both kinds of quotes", "rename it"
            )
        self.text(item.get("meaning", ""), f"{path}.meaning")
        kind = item.get("kind", "enum" if "values" in item else "bool")
        if kind not in ("bool", "enum"):
            close = nearest(kind, ("bool", "enum", "boolean"))
            self.note(f"{path}.kind", kind, "legal are bool and enum", f'write "{(close or "bool")[:4]}"')
        elif kind == "bool":
            if "values" in item:
                self.note(f"{path}.values", item["values"], "a Boolean condition has the values Y and N", "remove it")
            return Condition(name, BOOL_VALUES, True)
        elif "values" not in item:
            self.note(f"{path}.values", _NOTHING, "is missing", 'list the values: ["a", "b"]')
        else:
            return Condition(name, self.values(item["values"], f"{path}.values"), False)
        return None

    def values(self, value: object, path: str) -> tuple[str, ...]:
        found: list[str] = []
        for index, item in enumerate(self.items(value, path, MAX_VALUES, least=2)):
            word = _word(item)
            if word is None or not word or word in ANY or "," in word or {"'", '"'} <= set(word):
                fix = "a value is an integer or a text without commas; - and * are don't-cares"
                self.note(f"{path}[{index}]", item, "this can't be a value", fix)
            elif word in found:
                self.note(f"{path}[{index}]", item, "this value is given twice", "keep one of them")
            else:
                found.append(word)
        return tuple(found)

    def rows(self, value: object, conditions: tuple[Condition, ...]) -> tuple[DecisionRow, ...]:
        found: list[DecisionRow] = []
        seen: dict[str, str] = {}
        for index, item in enumerate(self.items(value, "rows", MAX_ROWS)):
            path = f"rows[{index}]"
            if not isinstance(item, Mapping):
                self.note(path, item, "a row is an object", 'write { "cells": ..., "outcome": ... }')
                continue
            self.keys(item, path, _ROW, ("cells", "outcome"))
            name = _word(item.get("id", index + 1))
            if not name:
                self.note(f"{path}.id", item["id"], "an id is a text or an integer", "write it in quotes")
            else:
                self.unique(name, path, seen)
            self.text(item.get("note", ""), f"{path}.note")
            cells = self.cells(item.get("cells", []), f"{path}.cells", conditions) if "cells" in item else ()
            outcome = self.outcome(item["outcome"], f"{path}.outcome") if "outcome" in item else ()
            if found and outcome and found[0].outcome:
                self.same_names(found[0], outcome, path)
            found.append(DecisionRow(name or "", cells, outcome))
        return tuple(found)

    def cells(self, value: object, path: str, conditions: tuple[Condition, ...]) -> tuple[int, ...]:
        if isinstance(value, Mapping):
            names = [condition.name for condition in conditions]
            for key in value:
                if key not in names:
                    close = nearest(key, names)
                    fix = f'write "{close}"' if close else f"legal are {_some(names)}"
                    self.note(_below(path, printable(str(key))), _NOTHING, "there is no such condition", fix)
            return tuple(self.cell(value.get(c.name, "-"), f"{path}.{printable(c.name)}", c) for c in conditions)
        items = value.split() if isinstance(value, str) else value
        if not isinstance(items, list):
            self.note(path, value, "cells are an object, a list, or a text with one word per condition", "write one")
            return ()
        if len(items) != len(conditions):
            message = f"there are {len(items)} cells and {len(conditions)} conditions"
            self.note(path, value, message, f"give one for each of {_some([c.name for c in conditions])}")
            return ()
        words = isinstance(value, str)
        parts = [item.split(",") if words and "," in item else item for item in items]
        return tuple(
            self.cell(part, f"{path}[{i}]", c) for i, (part, c) in enumerate(zip(parts, conditions, strict=True))
        )

    def cell(self, value: object, path: str, condition: Condition) -> int:
        if isinstance(value, str) and value in ANY:
            return condition.full
        mask = 0
        for item in value if isinstance(value, list) else [value]:
            word = _word(item, boolean=condition.boolean)
            index = None if word is None else value_index(condition, word)
            if index is None:
                close = nearest(item, condition.values)
                legal = f"{_some(condition.values)} or - for any"
                message = f"{printable(condition.name)} has no such value"
                self.note(path, item, message, f'write "{close}"' if close else f"write {legal}")
            else:
                mask |= 1 << index
        if value == []:
            self.note(path, value, "an empty list matches nothing", "list values, or write - for any")
        return mask

    def outcome(self, value: object, path: str) -> tuple[tuple[str, str], ...]:
        named = value if isinstance(value, Mapping) else {"outcome": value}
        if not named:
            self.note(path, value, "an outcome is a text or an object of named outcomes", "name the outcome")
        found = []
        for name, item in named.items():
            if isinstance(item, (Mapping, list)):
                below = _below(path, printable(str(name))) if isinstance(value, Mapping) else path
                self.note(below, item, "an outcome is a text, a number, true, false or null", "write one of these")
            else:
                found.append((str(name), json.dumps(item)))
        return tuple(sorted(found))

    def same_names(self, first: DecisionRow, outcome: tuple[tuple[str, str], ...], path: str) -> None:
        """Check that a row names the outcomes of the first row: a misspelled name would make equal rows differ."""
        legal, given = [name for name, _ in first.outcome], [name for name, _ in outcome]
        for name in given:
            if name not in legal:
                close = nearest(name, legal)
                fix = f'write "{close}"' if close else f"name {_some(legal)}"
                self.note(f"{path}.outcome.{printable(name)}", _NOTHING, "the first row has no such outcome", fix)
        for name in legal:
            if name not in given:
                self.note(
                    f"{path}.outcome.{printable(name)}", _NOTHING, "is missing, and the first row has it", "add it"
                )

    def axioms(self, value: object, more: Sequence[str], conditions: tuple[Condition, ...]) -> tuple[Axiom, ...]:
        given: list[tuple[str, object]] = [
            (f"axioms[{index}]", item) for index, item in enumerate(self.items(value, "axioms", MAX_AXIOMS, least=0))
        ]
        given += [("--axiom", text) for text in more]
        found: list[Axiom] = []
        seen: dict[str, str] = {}
        for index, (path, item) in enumerate(given):
            if isinstance(item, str):
                item = {"text": item}
            else:
                path = f"{path}.text"
            if not isinstance(item, Mapping):
                self.note(path.removesuffix(".text"), item, "an axiom is a text or an object", 'write "A implies B"')
                continue
            self.keys(item, path.removesuffix(".text"), _AXIOM, ("text",))
            text = self.text(item.get("text", ""), path)
            name = self.text(item.get("name", f"axiom {index + 1}"), f"{path.removesuffix('.text')}.name")
            self.text(item.get("note", ""), f"{path.removesuffix('.text')}.note")
            self.unique(name, path, seen)
            try:
                found.append(Axiom(name, text, parse(text, conditions)))
            except ExpressionError as error:
                if "text" in item and isinstance(item["text"], str):
                    self.note(path, text, f"column {error.column}: {error.message}", error.fix)
        return tuple(found)


_NOTHING = object()  # marks a missing value; null is a value


def _below(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _word(value: object, *, boolean: bool = False) -> str | None:
    """Return a text, or an integer as text; true and false are values of Boolean conditions only."""
    if isinstance(value, bool):
        return str(value) if boolean else None
    if isinstance(value, int) and not boolean:
        return show(value)
    return value.strip() if isinstance(value, str) else None


def _some(names: Sequence[str]) -> str:
    shown = [printable(name) for name in names[:8]]
    return ", ".join(shown if len(names) <= 8 else [*shown, "..."])
