"""Read a pipe table of a Markdown text as plain data in the JSON format.

Columns are read from left to right: an id (headed row, rule, id or #), the conditions, the outcomes. The cells
of a Boolean condition are Y, N or a don't-care; the head of an enum condition lists its values in braces,
`mode {train, eval}`; one column may hold several Boolean conditions, `TPI TPG` over `Y N`. A head that begins
with `>` makes a column an outcome for any cells. Lines `Axiom: ...`, `Axiom A0: ...` and `Hit policy: ...`
outside the table give the axioms and the hit policy.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tpinit.decision_tables.expressions import bool_value
from tpinit.reference.errors import ConfigError, Problem
from tpinit.reference.spellings import printable

__all__ = ["read_markdown"]

ANY = ("-", "*")
_IDS = frozenset({"row", "rule", "id", "#", "no", "no."})
_AXIOM = re.compile(r"^[\s>*+-]*axiom(?:\s+([^:]+?))?\s*:\s*(.+?)\s*$", re.IGNORECASE)
_POLICY = re.compile(r"^[\s>*+-]*hit[ -]policy\s*:\s*(.+?)\s*$", re.IGNORECASE)
_RULE = re.compile(r"^:?-+:?$")
_ENUM = re.compile(r"^(.*?)\s*\{(.*)\}$")


@dataclass(frozen=True, slots=True)
class _Grid:
    """A pipe table: its first line (from 1), its heads, and its rows with their line numbers."""

    line: int
    heads: list[str]
    rows: list[tuple[int, list[str]]]


def read_markdown(text: str, number: int | None = None) -> dict[str, object]:
    """Return the only decision table of a Markdown text, or the table with the given number (from 1).

    Raises ConfigError where there is no table, where there are several and `number` is None, and for cells
    that don't fit their column.
    """
    lines = text.splitlines()
    grids = _grids(lines)
    if number is not None:
        if not 1 <= number <= len(grids):
            raise _refusal("--table", str(number), f"the text has {len(grids)} tables", f"give 1 to {len(grids)}")
        chosen = grids[number - 1]
    else:
        likely = [grid for grid in grids if any(_conditions(grid, column) for column in range(len(grid.heads)))]
        if not grids or (len(grids) > 1 and not likely):
            raise _refusal(
                "table", "", "there is no decision table in this text", "add one whose conditions have cells Y, N and -"
            )
        if len(likely) > 1:
            where = ", ".join(f"{grids.index(grid) + 1} in line {grid.line}" for grid in likely)
            raise _refusal("table", "", f"this text has several decision tables: {where}", "pick one with --table N")
        chosen = likely[0] if likely else grids[0]
    data = _as_data(chosen)
    axioms = [match for match in map(_AXIOM.match, lines) if match]
    data["axioms"] = [
        {"name": match[1].strip("* _"), "text": match[2]} if match[1] else match[2].strip("`") for match in axioms
    ]
    policies = [match[1].strip("`* _.").casefold() for match in map(_POLICY.match, lines) if match]
    if policies:
        data["hit_policy"] = policies[-1]
    return data


def _grids(lines: Sequence[str]) -> list[_Grid]:
    grids: list[_Grid] = []
    problems = []
    at = 0
    while at + 1 < len(lines):
        heads, rule = _cells(lines[at]), _cells(lines[at + 1])
        if not heads or len(rule) != len(heads) or not all(_RULE.match(cell) for cell in rule):
            at += 1
            continue
        grid = _Grid(at + 1, heads, [])
        at += 2
        while at < len(lines) and (cells := _cells(lines[at])):
            grid.rows.append((at + 1, cells))
            if len(cells) != len(heads):
                message = f"this row has {len(cells)} cells and the head has {len(heads)}"
                problems.append(
                    Problem(f"line {at + 1}", printable(lines[at].strip()), message, "give one cell per column")
                )
            at += 1
        grids.append(grid)
    if problems:
        raise ConfigError(problems)
    return grids


def _cells(line: str) -> list[str]:
    line = line.strip()
    if not line.startswith("|"):
        return []
    parts = re.split(r"(?<!\\)\|", line.removeprefix("|").removesuffix("|"))
    return [part.replace("\\|", "|").replace("`", "").strip() for part in parts]


def _column(grid: _Grid, column: int) -> list[str]:
    return [cells[column] for _, cells in grid.rows]


def _is_id(grid: _Grid, column: int) -> bool:
    return column == 0 and grid.heads[0].casefold() in _IDS


def _conditions(grid: _Grid, column: int) -> list[dict[str, object]]:
    """Return the conditions of a column; an empty list where it is the id or an outcome."""
    head, cells = grid.heads[column], _column(grid, column)
    if _is_id(grid, column) or head.startswith(">") or not cells:
        return []
    if match := _ENUM.match(head):
        return [{"name": match[1], "values": [value.strip() for value in match[2].split(",")]}]
    names = head.split()
    if len(names) > 1 and all(len(cell.split()) == len(names) and _boolean(*cell.split()) for cell in cells):
        return [{"name": name} for name in names]
    return [{"name": head}] if all(_boolean(cell) for cell in cells) else []


def _boolean(*words: str) -> bool:
    return all(word in ANY or bool_value(word) is not None for word in words)


def _as_data(grid: _Grid) -> dict[str, object]:
    columns = [_conditions(grid, column) for column in range(len(grid.heads))]
    outcomes = [c for c, found in enumerate(columns) if not found and not _is_id(grid, c)]
    problems = [problem for c in outcomes for problem in _mixed(grid, c, bool(any(columns[c + 1 :])))]
    if problems:
        raise ConfigError(problems)
    rows = []
    for line, cells in grid.rows:
        row: dict[str, object] = {"id": cells[0]} if _is_id(grid, 0) else {"id": f"line {line}"}
        values: list[object] = []
        for column, found in enumerate(columns):
            words = cells[column].split() if len(found) > 1 else [cells[column]]
            values += [[part.strip() for part in word.split(",")] if "," in word else word for word in words if found]
        row["cells"] = values
        row["outcome"] = {grid.heads[c].removeprefix(">").strip(): cells[c] for c in outcomes}
        rows.append(row)
    return {"conditions": [condition for found in columns for condition in found], "rows": rows}


def _mixed(grid: _Grid, column: int, left_of_conditions: bool) -> list[Problem]:
    """Return a problem where a column may not be an outcome: it has cells of a condition, or conditions after it."""
    head = grid.heads[column]
    if head.startswith(">"):
        return []
    some = [cell for cell in _column(grid, column) if bool_value(cell) is not None]
    odd = [(line, cells[column]) for line, cells in grid.rows if not _boolean(cells[column])]
    fix = f'correct the cell, list the values in the head ("{printable(head)} {{a, b}}"), or begin the head with >'
    if some or left_of_conditions:
        line, cell = odd[0] if odd else (grid.line, head)
        message = f'in the column "{printable(head)}", which otherwise looks like a condition: legal are Y, N and -'
        return [Problem(f"line {line}", f'"{printable(cell)}"', message, fix)]
    return []


def _refusal(path: str, given: str, message: str, fix: str) -> ConfigError:
    return ConfigError([Problem(path, given, message, fix)])
