"""Find the allowed inputs that no row covers, as a small set of maximal partial assignments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tpinit.decision_tables.model import Cube, Point, bits, meet, volume
from tpinit.decision_tables.space import Space

__all__ = ["Gap", "find_gaps", "is_gap"]


@dataclass(frozen=True, slots=True)
class Gap:
    """A partial assignment none of whose allowed inputs is covered by a row, and one of these inputs.

    It is maximal: adding a value to any condition adds a covered input. `inputs` is the number of its allowed
    inputs, or None where counting took too long.
    """

    where: Cube
    witness: Point
    inputs: int | None


def find_gaps(space: Space, limit: int) -> tuple[tuple[Gap, ...], bool]:
    """Return at most `limit` maximal gaps, none redundant, and whether they are all gaps."""
    found: list[tuple[Cube, Point]] = []
    with space.uncovered() as solver:
        complete = not space.check(solver)
        while not complete and len(found) < limit:
            point = space.point(solver)
            cube = _widened(space, point)
            found.append((cube, point))
            solver.add(space.outside(cube))
            complete = not space.check(solver)
    if complete:
        found = _needed(space, found)
    found.sort(key=lambda gap: (-volume(gap[0]), gap[0]))
    return tuple(Gap(cube, point, space.count(cube)) for cube, point in found), complete


def is_gap(space: Space, cube: Cube) -> bool:
    """Return whether no row covers any allowed input of the cube."""
    for place in bits(space.matching(cube)):
        common = meet(space.table.rows[place].cells, cube)
        if common is not None and space.witness(common) is not None:
            return False
    return True


def _widened(space: Space, point: Point) -> Cube:
    """Return the largest of a few maximal gaps around an uncovered input."""
    order = list(range(len(point)))
    mentions = [sum(row.cells[c] != space.full[c] for row in space.table.rows) for c in order]
    orders = (order, order[::-1], sorted(order, key=lambda c: mentions[c]))
    return max((_widen(space, point, way) for way in orders), key=volume)


def _widen(space: Space, point: Point, order: Sequence[int]) -> Cube:
    cube = tuple(1 << v for v in point)
    for c in order:
        # Try all other values at once, then one by one; only the added part of the cube must be checked.
        others = space.full[c] & ~cube[c]
        for mask in (others, *(1 << v for v in bits(others))):
            added = (*cube[:c], mask, *cube[c + 1 :])
            if mask and mask & ~cube[c] and is_gap(space, added):
                cube = (*cube[:c], cube[c] | mask, *cube[c + 1 :])
    return cube


def _needed(space: Space, gaps: list[tuple[Cube, Point]]) -> list[tuple[Cube, Point]]:
    """Drop each gap whose inputs are all in the other gaps."""
    for gap in list(gaps):
        others = [other for other in gaps if other is not gap]
        with space.uncovered() as solver:
            for cube, _ in others:
                solver.add(space.outside(cube))
            if not space.check(solver):
                gaps = others
    return gaps
