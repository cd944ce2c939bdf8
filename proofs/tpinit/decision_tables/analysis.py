"""Analyse a decision table: what is wrong, and what could be simpler, each with a concrete example input.

Gaps, overlaps, conflicts, unreachable and masked rows are findings; subsumed and mergeable rows are notes. Only
inputs that the axioms allow count.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from itertools import combinations

from tpinit.decision_tables.gaps import Gap, find_gaps
from tpinit.decision_tables.model import Cube, DecisionRow, HitPolicy, Point, Table, bits, contains, meet
from tpinit.decision_tables.space import Space
from tpinit.decision_tables.suggestions import Suggestions, suggest
from tpinit.reference.errors import ConfigError, Problem

__all__ = ["Analysis", "Covered", "Mergeable", "Overlap", "Severity", "Unreachable", "analyse"]


class Severity(str, Enum):
    """The severity of one kind of result under the table's hit policy."""

    FINDING = "finding"  # wrong: exit code 1
    NOTE = "note"  # could be simpler
    ALLOWED = "allowed"  # the hit policy allows it


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two rows (indices) that match one input; `where` is the intersection of their cells."""

    rows: tuple[int, int]
    where: Cube
    witness: Point


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A row (index) all of whose inputs the axioms (indices) exclude."""

    row: int
    axioms: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Covered:
    """A row (index) whose inputs are all matched by the rows `by`; `witness` is one of these inputs."""

    row: int
    by: tuple[int, ...]
    witness: Point


@dataclass(frozen=True, slots=True)
class Mergeable:
    """Rows with one outcome that differ in one condition; one row with the cells `merged` can replace them."""

    rows: tuple[int, ...]
    condition: int
    merged: Cube
    witness: Point


@dataclass(frozen=True, slots=True)
class Analysis:
    """All results. Rows and axioms are indices into the table; a count is None where counting took too long."""

    table: Table
    allowed: int | None
    gap_inputs: int | None
    gaps: tuple[Gap, ...]
    gaps_complete: bool  # whether the listed gaps are all of them
    suggestions: Suggestions
    overlaps: tuple[Overlap, ...]  # of rows with equal outcomes
    conflicts: tuple[Overlap, ...]  # of rows with different outcomes
    unreachable: tuple[Unreachable, ...]
    masked: tuple[Covered, ...]  # by rows that come first, where these decide
    subsumed: tuple[Covered, ...]  # by rows with the same outcome
    mergeable: tuple[Mergeable, ...]

    def severity(self, kind: str) -> Severity:
        """Return the severity of a kind of result (the name of a field)."""
        policy = self.table.policy
        if kind in ("subsumed", "mergeable"):
            return Severity.NOTE
        if kind == "overlaps" and policy is not HitPolicy.UNIQUE:
            return Severity.ALLOWED
        if kind == "conflicts" and policy is HitPolicy.FIRST:
            return Severity.ALLOWED
        return Severity.FINDING

    def number(self, severity: Severity) -> int:
        """Return the number of results of this severity."""
        kinds = ("gaps", "conflicts", "overlaps", "unreachable", "masked", "subsumed", "mergeable")
        return sum(len(getattr(self, kind)) for kind in kinds if self.severity(kind) is severity)


def analyse(table: Table, limit: int = 20) -> Analysis:
    """Analyse a table. At most `limit` gaps and at most `limit` candidates for a missing axiom are searched.

    Raises ConfigError where the axioms contradict each other, and UndecidedTable where the solver gives up.
    """
    space = Space(table)
    if space.witness(space.full) is None:
        raise ConfigError([_inconsistent(table, space.blame(space.full))])
    reachable = [space.witness(row.cells) for row in table.rows]
    gaps, complete = find_gaps(space, limit)
    overlaps, conflicts = _overlaps(space, reachable)
    return Analysis(
        table=table,
        allowed=space.count(space.full),
        gap_inputs=space.count(space.full, uncovered=True) if gaps else 0,
        gaps=gaps,
        gaps_complete=complete,
        suggestions=suggest(space, limit) if gaps else Suggestions(),
        overlaps=overlaps,
        conflicts=conflicts,
        unreachable=tuple(
            Unreachable(place, tuple(space.blame(row.cells)))
            for place, row in enumerate(table.rows)
            if reachable[place] is None
        ),
        masked=_masked(space, reachable) if table.policy is HitPolicy.FIRST else (),
        subsumed=_subsumed(space, reachable) if table.policy is not HitPolicy.FIRST else (),
        mergeable=_mergeable(space, reachable),
    )


def _inconsistent(table: Table, core: list[int]) -> Problem:
    texts = "; ".join(f"{table.axioms[place].name}: {table.axioms[place].text}" for place in core)
    message = "no input satisfies these axioms together, so every statement about the table would be true"
    if len(core) == 1:
        message = "no input satisfies this axiom, so every statement about the table would be true"
    return Problem("axioms", texts, message, "remove one of them, or weaken it")


def _overlaps(space: Space, reachable: list[Point | None]) -> tuple[tuple[Overlap, ...], tuple[Overlap, ...]]:
    """Return the pairs of rows that match one allowed input: with equal outcomes, and with different outcomes."""
    rows = space.table.rows
    agreeing: list[Overlap] = []
    conflicting: list[Overlap] = []
    for one, row in enumerate(rows):
        if reachable[one] is None:
            continue
        later = space.matching(row.cells) >> (one + 1) << (one + 1)
        for other in bits(later):
            where = meet(row.cells, rows[other].cells)
            witness = None if where is None else space.witness(where)
            if where is not None and witness is not None:
                kind = agreeing if row.outcome == rows[other].outcome else conflicting
                kind.append(Overlap((one, other), where, witness))
    return tuple(agreeing), tuple(conflicting)


def _covered(space: Space, cells: Cube, candidates: list[int]) -> list[int] | None:
    """Return rows that cover every allowed input of the cells, a single one if possible; None where they don't."""
    for place in candidates:
        other = space.table.rows[place].cells
        beyond = (
            (*cells[:c], cells[c] & ~other[c], *cells[c + 1 :]) for c in range(len(cells)) if cells[c] & ~other[c]
        )
        if all(space.witness(cube) is None for cube in beyond):
            return [place]
    return space.cover(cells, candidates) if len(candidates) > 1 else None


def _subsumed(space: Space, reachable: list[Point | None]) -> tuple[Covered, ...]:
    rows = space.table.rows
    same: dict[object, int] = {}
    for place, row in enumerate(rows):
        if reachable[place] is not None:
            same[row.outcome] = same.get(row.outcome, 0) | 1 << place
    found = []
    for place, row in enumerate(rows):
        witness = reachable[place]
        if witness is None:
            continue
        by = _covered(space, row.cells, list(bits(space.matching(row.cells) & same[row.outcome] & ~(1 << place))))
        if by is not None:
            found.append(Covered(place, tuple(by), witness))
    return tuple(found)


def _masked(space: Space, reachable: list[Point | None]) -> tuple[Covered, ...]:
    found = []
    for place, row in enumerate(space.table.rows):
        witness = reachable[place]
        if witness is None:
            continue
        by = _covered(space, row.cells, list(bits(space.matching(row.cells) & ((1 << place) - 1))))
        if by is not None:
            found.append(Covered(place, tuple(by), witness))
    return tuple(found)


def _mergeable(space: Space, reachable: list[Point | None]) -> tuple[Mergeable, ...]:
    rows = space.table.rows
    found = []
    for c in range(len(space.full)):
        groups: dict[object, list[int]] = {}
        for place, row in enumerate(rows):
            if reachable[place] is not None:
                groups.setdefault((row.outcome, row.cells[:c], row.cells[c + 1 :]), []).append(place)
        for group in groups.values():
            places = _widest(rows, group, c)
            if space.table.policy is HitPolicy.FIRST:
                places = _movable(space, places)
            witness = reachable[places[-1]]
            if len(places) > 1 and witness is not None:
                mask = 0
                for place in places:
                    mask |= rows[place].cells[c]
                cells = rows[places[0]].cells
                found.append(Mergeable(tuple(places), c, (*cells[:c], mask, *cells[c + 1 :]), witness))
    return tuple(sorted(found, key=lambda item: item.rows))


def _widest(rows: tuple[DecisionRow, ...], group: list[int], c: int) -> list[int]:
    """Drop the rows that another row of the group contains: they are reported as subsumed."""
    return [
        place
        for place in group
        if not any(
            contains(rows[other].cells, rows[place].cells)
            and (rows[other].cells[c] != rows[place].cells[c] or other < place)
            for other in group
            if other != place
        )
    ]


def _movable(space: Space, places: list[int]) -> list[int]:
    """Return the rows of a group that can be moved up to its first row without a change under hit policy `first`."""
    rows, first = space.table.rows, places[0]

    def can_move(place: int) -> bool:
        between = space.matching(rows[place].cells) & ((1 << place) - 1) & ~((1 << (first + 1)) - 1)
        for other in bits(between):
            where = meet(rows[place].cells, rows[other].cells)
            if rows[other].outcome != rows[place].outcome and where and space.witness(where) is not None:
                return False
        return True

    return [first, *(place for place in places[1:] if can_move(place))]


def mergeable_pairs(analysis: Analysis) -> set[tuple[int, int]]:
    """Return the mergeable rows as pairs of indices."""
    return {pair for item in analysis.mergeable for pair in combinations(item.rows, 2)}
