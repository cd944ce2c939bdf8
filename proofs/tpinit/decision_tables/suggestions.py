"""Missing axioms: the smallest rules that every row satisfies and that would exclude a gap.

A rule of one, two or three literals excludes one cube, so the candidates are the cubes of up to three literals
that no row covers and that contain an allowed input. A candidate may be false: the table does not decide it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from tpinit.decision_tables.expressions import literal_text
from tpinit.decision_tables.model import Cube, Point, Table, bits, contains, meet
from tpinit.decision_tables.space import Space

__all__ = ["Candidate", "Suggestions", "suggest"]

MAX_TRIPLES = 2_000_000
MAX_FOUND = 3_000


@dataclass(frozen=True, slots=True)
class Candidate:
    """A rule as an axiom text, the cube that it excludes, an input of it, and the number of inputs (None: unknown)."""

    text: str
    excludes: Cube
    witness: Point
    inputs: int | None


@dataclass(frozen=True, slots=True)
class Suggestions:
    """The candidates, best first, and the indices of those that together close every gap (None if none do)."""

    candidates: tuple[Candidate, ...] = ()
    found: int = 0
    closing: tuple[int, ...] | None = None
    searched: int = 3  # the largest number of literals that was searched


def suggest(space: Space, limit: int) -> Suggestions:
    """Return the best `limit` candidates for a table that has gaps."""
    if all(space.witness(row.cells) is None for row in space.table.rows):
        return Suggestions()  # no row matches an input, so every rule is a candidate
    cubes, searched = _Search(space).run()
    ranked = sorted(cubes, key=lambda cube: (_literals(space, cube), -_size(space, cube), _order(cube)))
    closing = _closing(space, ranked)
    # The candidates that close every gap together are included regardless of their rank.
    shown = sorted({*range(min(limit, len(ranked))), *(closing or ())})
    candidates = []
    for place in shown:
        witness = space.witness(ranked[place])
        assert witness is not None  # the search keeps only cubes with an allowed input
        text = rule_text(space.table, ranked[place])
        candidates.append(Candidate(text, ranked[place], witness, space.count(ranked[place])))
    chosen = None if closing is None else tuple(shown.index(place) for place in closing)
    return Suggestions(tuple(candidates), len(ranked), chosen, searched)


def rule_text(table: Table, cube: Cube) -> str:
    """Return the text of the rule that excludes a cube; its premises are positive where possible."""
    conditions = table.conditions
    fixed = [c for c, mask in enumerate(cube) if mask != conditions[c].full]
    negative = [c for c in fixed if (cube[c] == 1 if conditions[c].boolean else cube[c].bit_count() > 1)]
    last = negative[0] if negative else fixed[-1]
    conclusion = literal_text(conditions[last], conditions[last].full & ~cube[last])
    premises = [literal_text(conditions[c], cube[c]) for c in fixed if c != last]
    return f"{' and '.join(premises)} implies {conclusion}" if premises else conclusion


def _literals(space: Space, cube: Cube) -> int:
    return sum(mask != full for mask, full in zip(cube, space.full, strict=True))


def _size(space: Space, cube: Cube) -> float:
    share = 1.0
    for mask, full in zip(cube, space.full, strict=True):
        share *= mask.bit_count() / full.bit_count()
    return share


def _order(cube: Cube) -> Cube:
    return tuple(-mask for mask in cube)


class _Search:
    """Searches all cubes of one, two, then three literals; skips a cube that is inside a cube found earlier."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.cubes: list[Cube] = []
        self.literals: list[tuple[int, int]] = []
        for c, full in enumerate(space.full):
            singles = [1 << v for v in bits(full)]
            # The complements first: a rule that excludes more makes one that excludes less redundant.
            wide = [full & ~single for single in singles] if len(singles) > 2 else []
            self.literals += [(c, mask) for mask in (*wide, *singles) if mask != full]
        witnesses = [space.witness(row.cells) for row in space.table.rows]
        reachable = sum(1 << place for place, witness in enumerate(witnesses) if witness is not None)
        self.matching = [reachable & space.matching(self.cube(index)) for index in range(len(self.literals))]
        # The covered inputs found so far, as one mask per literal: a cube with such an input is no gap.
        self.met = 0
        self.met_by = [0] * len(self.literals)
        for witness in witnesses:
            if witness is not None:
                self.meet(witness)

    def cube(self, *indices: int) -> Cube:
        masks = list(self.space.full)
        for index in indices:
            c, mask = self.literals[index]
            masks[c] &= mask
        return tuple(masks)

    def run(self) -> tuple[list[Cube], int]:
        for size in (1, 2):
            for indices in self.combinations(size):
                self.try_cube(indices)
        n = len(self.literals)
        if n * n * n > 6 * MAX_TRIPLES:
            return self.cubes, 2
        for indices in self.combinations(3):
            if len(self.cubes) >= MAX_FOUND:
                return self.cubes, 2
            self.try_cube(indices)
        return self.cubes, 3

    def combinations(self, size: int) -> Iterator[tuple[int, ...]]:
        """Yield index tuples of literals of different conditions."""
        for indices in combinations(range(len(self.literals)), size):
            if len({self.literals[index][0] for index in indices}) == size:
                yield indices

    def try_cube(self, indices: tuple[int, ...]) -> None:
        rows, met = -1, -1
        for index in indices:
            rows &= self.matching[index]
            met &= self.met_by[index]
        if (rows and met) or (rows and not self.space.table.axioms):
            return
        cube = self.cube(*indices)
        if self.space.witness(cube) is None:
            return
        for place in bits(rows):
            common = meet(self.space.table.rows[place].cells, cube)
            point = None if common is None else self.space.witness(common)
            if point is not None:
                self.meet(point)
                return
        if any(contains(found, cube) for found in self.cubes):
            return
        self.cubes = [*(found for found in self.cubes if not contains(cube, found)), cube]

    def meet(self, point: Point) -> None:
        for index, (c, mask) in enumerate(self.literals):
            if mask >> point[c] & 1:
                self.met_by[index] |= 1 << self.met
        self.met += 1


def _closing(space: Space, cubes: list[Cube]) -> tuple[int, ...] | None:
    """Return the indices of cubes, none redundant, that contain every gap; None where all cubes leave a gap."""
    chosen: list[int] = []
    with space.uncovered() as solver:
        while space.check(solver):
            point = space.point(solver)
            place = next((p for p, cube in enumerate(cubes) if _has(cube, point)), None)
            if place is None:
                return None
            chosen.append(place)
            solver.add(space.outside(cubes[place]))
    for place in list(chosen):
        rest = [other for other in chosen if other != place]
        with space.uncovered() as solver:
            for other in rest:
                solver.add(space.outside(cubes[other]))
            if not space.check(solver):
                chosen = rest
    return tuple(sorted(chosen))


def _has(cube: Cube, point: Point) -> bool:
    return all(mask >> v & 1 for mask, v in zip(cube, point, strict=True))
