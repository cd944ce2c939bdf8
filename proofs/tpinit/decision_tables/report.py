"""An analysis as text, 100 columns wide, and as a JSON object."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tpinit.decision_tables.analysis import Analysis, Covered, Mergeable, Overlap, Severity, Unreachable
from tpinit.decision_tables.expressions import quoted
from tpinit.decision_tables.gaps import Gap
from tpinit.decision_tables.model import Condition, Cube, DecisionRow, Point, Table
from tpinit.decision_tables.suggestions import Candidate, Suggestions

__all__ = ["KINDS", "as_object", "as_text"]

WIDTH = 100

KINDS = {
    "gaps": "inputs that no row covers",
    "conflicts": "pairs of rows that match one input and disagree",
    "overlaps": "pairs of rows that match one input and agree",
    "unreachable": "rows that the axioms exclude",
    "masked": "rows that never decide: earlier rows match all their inputs",
    "subsumed": "rows that are redundant because of other rows with the same outcome",
    "mergeable": "rows that one row could replace",
}


# --- as an object ----------------------------------------------------------------------------------------


def as_object(analysis: Analysis, limit: int) -> dict[str, object]:
    """Return the analysis as plain data: each kind with its severity, its count and at most `limit` items."""
    table = analysis.table
    kinds: dict[str, object] = {}
    for kind, as_item in _as_items(table).items():
        found = getattr(analysis, kind)
        kinds[kind] = {
            "severity": analysis.severity(kind).value,
            "count": len(found),
            "items": [as_item(item) for item in found[:limit]],
        }
    return {
        "title": table.title,
        "hit_policy": table.policy.value,
        "conditions": [{"name": c.name, "values": list(c.values)} for c in table.conditions],
        "outcomes": [name for name, _ in table.rows[0].outcome],
        "rows": len(table.rows),
        "axioms": [{"name": axiom.name, "text": axiom.text} for axiom in table.axioms],
        "inputs": {"all": _all(table), "allowed": analysis.allowed, "uncovered": analysis.gap_inputs},
        "findings": analysis.number(Severity.FINDING),
        "notes": analysis.number(Severity.NOTE),
        "gaps_complete": analysis.gaps_complete,
        **kinds,
        "missing_axioms": _missing_axioms_object(table, analysis.suggestions),
    }


def _as_items(table: Table) -> dict[str, Callable[[Any], dict[str, object]]]:
    """Return for each kind of result the function that makes plain data of one item."""
    return {
        "gaps": lambda gap: {
            "where": _where(table, gap.where),
            "inputs": gap.inputs,
            "witness": _witness(table, gap.witness),
        },
        "conflicts": lambda overlap: _overlap_object(table, overlap),
        "overlaps": lambda overlap: _overlap_object(table, overlap),
        "unreachable": lambda row: {
            "row": table.rows[row.row].id,
            "axioms": [table.axioms[place].name for place in row.axioms],
            "witness": _where(table, table.rows[row.row].cells),
        },
        "masked": lambda row: _covered_object(table, row),
        "subsumed": lambda row: _covered_object(table, row),
        "mergeable": lambda rows: {
            "rows": _ids(table, rows.rows),
            "condition": table.conditions[rows.condition].name,
            "merged": _where(table, rows.merged),
            "witness": _witness(table, rows.witness),
        },
    }


def _missing_axioms_object(table: Table, suggestions: Suggestions) -> dict[str, object]:
    return {
        "count": suggestions.found,
        "literals": suggestions.searched,
        "closing": None
        if suggestions.closing is None
        else [suggestions.candidates[place].text for place in suggestions.closing],
        "items": [
            {
                "text": candidate.text,
                "excludes": _where(table, candidate.excludes),
                "inputs": candidate.inputs,
                "witness": _witness(table, candidate.witness),
            }
            for candidate in suggestions.candidates
        ],
    }


def _overlap_object(table: Table, overlap: Overlap) -> dict[str, object]:
    return {
        "rows": _ids(table, overlap.rows),
        "where": _where(table, overlap.where),
        "outcomes": [_outcome_object(table.rows[place]) for place in overlap.rows],
        "witness": _witness(table, overlap.witness),
    }


def _covered_object(table: Table, covered: Covered) -> dict[str, object]:
    return {
        "row": table.rows[covered.row].id,
        "by": _ids(table, covered.by),
        "witness": _witness(table, covered.witness),
    }


def _outcome_object(row: DecisionRow) -> Mapping[str, object]:
    return {name: json.loads(value) for name, value in row.outcome}


def _ids(table: Table, places: Sequence[int]) -> list[str]:
    return [table.rows[place].id for place in places]


def _where(table: Table, cube: Cube) -> dict[str, list[str]]:
    """Return the values that a cube allows for each condition; a don't-care is left out."""
    return {
        condition.name: _inside(condition, mask)
        for condition, mask in zip(table.conditions, cube, strict=True)
        if mask != condition.full
    }


def _witness(table: Table, point: Point) -> dict[str, str]:
    return {condition.name: condition.values[v] for condition, v in zip(table.conditions, point, strict=True)}


def _inside(condition: Condition, mask: int) -> list[str]:
    return [value for v, value in enumerate(condition.values) if mask >> v & 1]


def _all(table: Table) -> int:
    size = 1
    for condition in table.conditions:
        size *= len(condition.values)
    return size


# --- as text ---------------------------------------------------------------------------------------------


def as_text(analysis: Analysis, limit: int) -> str:
    """Return the analysis as text: a summary, each kind with at most `limit` items, and the verdict."""
    lines = [*_heading(analysis), "", *_summary(analysis)]
    for kind in KINDS:
        found = getattr(analysis, kind)
        if found and analysis.severity(kind) is not Severity.ALLOWED:
            lines += ["", f"{kind}: {KINDS[kind]}"]
            for item in found[:limit]:
                lines += _item(analysis.table, item, kind)
            if len(found) > limit:
                lines.append(f"  ... and {len(found) - limit} more: see --limit")
            if kind == "gaps":
                lines += [*_not_all(analysis), *_missing_axioms(analysis, limit)]
    findings, notes = analysis.number(Severity.FINDING), analysis.number(Severity.NOTE)
    some = "" if analysis.gaps_complete else " or more"
    verdict = f"{_count(findings, 'finding')}{some}, {_count(notes, 'note')}"
    return "\n".join([*lines, "", f"verdict: {verdict}"])


def _heading(analysis: Analysis) -> Iterator[str]:
    table = analysis.table
    title = table.title or "decision table"
    yield from _wrapped(
        f"{title}: {_count(len(table.rows), 'row')}, {_count(len(table.conditions), 'condition')}, "
        f"{_count(len(table.axioms), 'axiom')}, hit policy {table.policy.value}",
        "",
    )
    yield from _wrapped(f"conditions: {', '.join(condition.name for condition in table.conditions)}", "  ")
    yield from _wrapped(f"outcomes: {', '.join(name for name, _ in table.rows[0].outcome)}", "  ")
    for axiom in table.axioms:
        yield from _wrapped(f"{axiom.name}: {axiom.text}", "  ")
    allowed = "of which the axioms allow too many to count" if analysis.allowed is None else ""
    if analysis.allowed is not None and table.axioms:
        allowed = f"of which the axioms allow {analysis.allowed:,}"
    yield f"  {' '.join([_count(_all(table), 'input'), allowed]).strip()}"


def _summary(analysis: Analysis) -> Iterator[str]:
    for kind in KINDS:
        if kind == "masked" and analysis.table.policy.value != "first":
            continue
        if kind == "subsumed" and analysis.table.policy.value == "first":
            continue
        number, severity = len(getattr(analysis, kind)), analysis.severity(kind)
        found = "none"
        if number and severity is Severity.ALLOWED:
            found = f"{number} (allowed by the hit policy)"
        elif number:
            found = _count(number, severity.value)
        if kind == "gaps" and number:
            inputs = "too many inputs to count" if analysis.gap_inputs is None else _count(analysis.gap_inputs, "input")
            found += f"{'' if analysis.gaps_complete else ' or more'}: {inputs}"
        yield f"{kind:<12} {found}"


def _item(table: Table, item: object, kind: str) -> Iterator[str]:
    if isinstance(item, Gap):
        inputs = "" if item.inputs is None else f"  ({_count(item.inputs, 'input')})"
        yield from _wrapped(f"{_cube(table, item.where)}{inputs}", "  ")
        yield from _example(table, item.witness)
    elif isinstance(item, Overlap):
        one, other = (table.rows[place] for place in item.rows)
        yield from _wrapped(f"rows {one.id} and {other.id}: {_cube(table, item.where)}", "  ")
        if kind == "conflicts":
            yield from _wrapped(f"{one.id}: {_outcome(one, other)};  {other.id}: {_outcome(other, one)}", "      ")
        yield from _example(table, item.witness)
    elif isinstance(item, Unreachable):
        row = table.rows[item.row]
        by = ", ".join(table.axioms[place].name for place in item.axioms)
        yield from _wrapped(f"row {row.id}: excluded by {by}", "  ")
        yield from _wrapped(f"its inputs: {_cube(table, row.cells)}", "      ")
    elif isinstance(item, Covered):
        by = ", ".join(_ids(table, item.by))
        yield from _wrapped(
            f"row {table.rows[item.row].id}: covered by {'row' if len(item.by) == 1 else 'rows'} {by}", "  "
        )
        yield from _example(table, item.witness)
    elif isinstance(item, Mergeable):
        ids = ", ".join(_ids(table, item.rows))
        name = table.conditions[item.condition].name
        yield from _wrapped(f"rows {ids}: one outcome, and only {name} differs", "  ")
        yield from _wrapped(f"one row: {_cube(table, item.merged)}", "      ")
        yield from _example(table, item.witness)


def _not_all(analysis: Analysis) -> Iterator[str]:
    if not analysis.gaps_complete:
        yield "  ... and more: see --limit"


def _missing_axioms(analysis: Analysis, limit: int) -> Iterator[str]:
    suggestions, table = analysis.suggestions, analysis.table
    yield ""
    if not suggestions.candidates:
        yield f"missing axioms: no rule of up to {suggestions.searched} conditions that all rows satisfy excludes a gap"
        return
    yield "missing axioms: rules that all rows satisfy and that exclude gaps. They are candidates only:"
    yield "whether they are true does not follow from the table."
    for candidate in suggestions.candidates[:limit]:
        yield from _candidate(table, candidate)
    if suggestions.found > limit:
        yield f"  ... and {suggestions.found - limit} more: see --limit"
    if suggestions.closing is None:
        yield "  All of them together leave a gap: a row is missing."
    else:
        texts = "; ".join(suggestions.candidates[place].text for place in suggestions.closing)
        yield from _wrapped(
            f"{'This' if len(suggestions.closing) == 1 else 'These'} would close every gap: {texts}", "  "
        )


def _candidate(table: Table, candidate: Candidate) -> Iterator[str]:
    inputs = "" if candidate.inputs is None else f"  (excludes {_count(candidate.inputs, 'input')})"
    yield from _wrapped(f"{candidate.text}{inputs}", "  ")
    yield from _example(table, candidate.witness)


def _example(table: Table, point: Point) -> Iterator[str]:
    shown = (f"{quoted(c.name)}={quoted(c.values[v])}" for c, v in zip(table.conditions, point, strict=True))
    yield from _wrapped(f"e.g. {' '.join(shown)}", "      ")


def _cube(table: Table, cube: Cube) -> str:
    parts = []
    for condition, mask in zip(table.conditions, cube, strict=True):
        inside = _inside(condition, mask)
        if mask != condition.full:
            shown = quoted(inside[0]) if len(inside) == 1 else f"{{{', '.join(map(quoted, inside))}}}"
            parts.append(f"{quoted(condition.name)}={shown}")
    return " ".join(parts) or "every input"


def _outcome(row: DecisionRow, other: DecisionRow) -> str:
    """Return the outcomes of a row that differ from those of another row."""
    differing = [(name, value) for name, value in row.outcome if (name, value) not in other.outcome]
    return ", ".join(f"{name} {value}" for name, value in differing)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _wrapped(text: str, indent: str) -> list[str]:
    # Control characters in a table's texts are escaped, so that they can't affect the terminal.
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    return textwrap.wrap(
        shown, WIDTH, initial_indent=indent, subsequent_indent=f"{indent}    ", break_on_hyphens=False
    ) or [indent]
