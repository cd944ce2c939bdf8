"""The inputs of a table: which are allowed, which rows match them, and how many there are.

A question about a cube is answered without a solver where the cube decides it; other questions go to Z3, and the
answers are cached by the part of the cube that the axioms mention. Counting does not use a solver.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import z3
from tpinit.decision_tables.model import (
    And,
    Const,
    Cube,
    Expr,
    Iff,
    Lit,
    Not,
    Or,
    Point,
    Table,
    bits,
    literals,
    meet,
    simplify,
)

__all__ = ["Space", "UndecidedTable"]

TIMEOUT_MS = 60_000
"""The time limit of one solver call, in milliseconds."""

MAX_STATES = 400_000
"""The number of states after which counting gives up."""


class UndecidedTable(RuntimeError):
    """The solver gave up on one question, so there is no analysis."""


class _Interned:
    """Indices for tuples of expressions, because comparing the tuples repeatedly is slow."""

    def __init__(self, items: list[tuple[Expr, ...]]) -> None:
        self.items = items
        self._places = {item: place for place, item in enumerate(items)}

    def add(self, item: tuple[Expr, ...] | None) -> int | None:
        """Return the index of an item; None stays None."""
        if item is None:
            return None
        if item not in self._places:
            self._places[item] = len(self.items)
            self.items.append(item)
        return self._places[item]


def _lowest(mask: int) -> int:
    return (mask & -mask).bit_length() - 1


class Space:
    """The inputs of one table, under its axioms."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.full = table.full
        self._bits = [
            [z3.Bool(f"{c}")] if condition.boolean else [z3.Bool(f"{c}={v}") for v, _ in enumerate(condition.values)]
            for c, condition in enumerate(table.conditions)
        ]
        self._decls = [[option.decl() for option in options] for options in self._bits]
        self._axiom_conditions = sorted({lit.condition for axiom in table.axioms for lit in literals(axiom.expr)})
        self._about = [c in self._axiom_conditions for c in range(len(self.full))]
        self._terms: dict[tuple[int, int], Any] = {}
        # _admits[c][v] is the mask of the rows that match value v of condition c.
        self._admits = [
            [sum(1 << r for r, row in enumerate(table.rows) if row.cells[c] >> v & 1) for v in bits(full)]
            for c, full in enumerate(self.full)
        ]
        self._allowed = self._solver()
        self._named: tuple[Any, list[Any]] | None = None
        self._gap_solver: Any = None
        self._without: tuple[Any, list[Any]] | None = None
        self._known: dict[Cube, Point | None] = {}
        # Allowed inputs found so far; _seen_with[c][v] is the mask of those with value v of condition c.
        self._seen: list[Point] = []
        self._seen_with = [[0] * full.bit_length() for full in self.full]

    # --- terms ---------------------------------------------------------------------------------------

    def is_in(self, c: int, mask: int) -> Any:
        """Return the term that condition c has one of the values of the mask."""
        if (c, mask) not in self._terms:
            if mask == self.full[c]:
                term = z3.BoolVal(True)
            elif self.table.conditions[c].boolean:
                term = self._bits[c][0] if mask == 0b10 else z3.Not(self._bits[c][0])
            else:
                term = z3.Or([self._bits[c][v] for v in bits(mask)])
            self._terms[c, mask] = term
        return self._terms[c, mask]

    def outside(self, cube: Cube) -> Any:
        """Return the term that the input is not in the cube."""
        return z3.Or([self.is_in(c, self.full[c] & ~mask) for c, mask in enumerate(cube) if mask != self.full[c]])

    def assumptions(self, cube: Cube) -> list[Any]:
        """Return literals whose conjunction is that the input is in the cube."""
        found = []
        for c, mask in enumerate(cube):
            if mask == self.full[c]:
                continue
            if self.table.conditions[c].boolean:
                found.append(self.is_in(c, mask))
            else:
                found += [self._without_value(c, v) for v in bits(self.full[c] & ~mask)]
        return found

    def _without_value(self, c: int, v: int) -> Any:
        key = c, -1 - v  # no mask is negative
        if key not in self._terms:
            self._terms[key] = z3.Not(self._bits[c][v])
        return self._terms[key]

    def _term(self, expr: Expr) -> Any:
        if isinstance(expr, Lit):
            return self.is_in(expr.condition, expr.mask)
        if isinstance(expr, Const):
            return z3.BoolVal(expr.value)
        if isinstance(expr, Not):
            return z3.Not(self._term(expr.part))
        if isinstance(expr, Iff):
            return self._term(expr.left) == self._term(expr.right)
        if isinstance(expr, And):
            return z3.And([self._term(part) for part in expr.parts])
        assert isinstance(expr, Or)
        return z3.Or([self._term(part) for part in expr.parts])

    def _solver(self, *, axioms: bool = True) -> Any:
        solver = z3.SimpleSolver()
        solver.set("timeout", TIMEOUT_MS)
        for condition, options in zip(self.table.conditions, self._bits, strict=True):
            if not condition.boolean:
                solver.add(z3.PbEq([(option, 1) for option in options], 1))
        if axioms:
            for axiom in self.table.axioms:
                solver.add(self._term(axiom.expr))
        return solver

    def check(self, solver: Any, assumptions: Iterable[Any] = ()) -> bool:
        """Return whether the solver finds a model. Raises UndecidedTable where it answers unknown."""
        answer = solver.check(*assumptions)
        if answer == z3.unknown:
            raise UndecidedTable(f"the solver gave up on one question: {solver.reason_unknown()}")
        return bool(answer == z3.sat)

    def point(self, solver: Any) -> Point:
        """Return the input that the solver found."""
        model = solver.model()
        context = model.ctx.ref()

        def is_true(decl: Any) -> bool:
            # The C interface is called directly: wrapper objects took most of the time of an analysis.
            value = z3.Z3_model_get_const_interp(context, model.model, decl.ast)
            return bool(value) and z3.Z3_get_bool_value(context, value) == z3.Z3_L_TRUE

        return tuple(
            int(is_true(decls[0])) if condition.boolean else next(v for v, decl in enumerate(decls) if is_true(decl))
            for condition, decls in zip(self.table.conditions, self._decls, strict=True)
        )

    # --- questions -----------------------------------------------------------------------------------

    @contextmanager
    def uncovered(self) -> Iterator[Any]:
        """Yield a solver whose models are the allowed inputs that no row covers; added terms are removed at the end."""
        if self._gap_solver is None:
            self._gap_solver = self._solver()
            for row in self.table.rows:
                self._gap_solver.add(self.outside(row.cells))
        self._gap_solver.push()
        try:
            yield self._gap_solver
        finally:
            self._gap_solver.pop()

    def matching(self, cube: Cube) -> int:
        """Return the mask of the rows whose cells intersect the cube."""
        rows = (1 << len(self.table.rows)) - 1
        for c, mask in enumerate(cube):
            if mask != self.full[c]:
                some = 0
                for v in bits(mask):
                    some |= self._admits[c][v]
                rows &= some
        return rows

    def witness(self, cube: Cube) -> Point | None:
        """Return an allowed input of the cube, or None where the axioms exclude all of it."""
        key = tuple(cube[c] for c in self._axiom_conditions)
        if key not in self._known:
            self._known[key] = self._seen_in(cube) or self._find(cube)
        found = self._known[key]
        if found is None:
            return None
        return tuple(
            found[c] if about else _lowest(mask) for c, (mask, about) in enumerate(zip(cube, self._about, strict=True))
        )

    def _seen_in(self, cube: Cube) -> Point | None:
        """Return an earlier allowed input whose axiom conditions are in the cube, or None."""
        seen = (1 << len(self._seen)) - 1
        for c in self._axiom_conditions:
            if cube[c] != self.full[c]:
                some = 0
                for v in bits(cube[c]):
                    some |= self._seen_with[c][v]
                seen &= some
        return self._seen[_lowest(seen)] if seen else None

    def _find(self, cube: Cube) -> Point | None:
        """Return an allowed input of the cube or None: by simplifying the axioms where that decides, else by Z3."""
        undecided = False
        for axiom in self.table.axioms:
            simplified = simplify(axiom.expr, cube)
            if isinstance(simplified, Const) and not simplified.value:
                return None
            undecided = undecided or not isinstance(simplified, Const)
        if not undecided:
            return tuple(map(_lowest, cube))
        projected = tuple(
            mask if about else full for mask, about, full in zip(cube, self._about, self.full, strict=True)
        )
        if not self.check(self._allowed, self.assumptions(projected)):
            return None
        point = self.point(self._allowed)
        for c, v in enumerate(point):
            self._seen_with[c][v] |= 1 << len(self._seen)
        self._seen.append(point)
        return point

    def blame(self, cube: Cube) -> list[int]:
        """Return a set of axioms that together exclude the whole cube and of which none can be dropped."""
        if self._named is None:
            solver, names = self._solver(axioms=False), [z3.Bool(f"axiom {i}") for i in range(len(self.table.axioms))]
            for name, axiom in zip(names, self.table.axioms, strict=True):
                solver.add(z3.Implies(name, self._term(axiom.expr)))
            self._named = solver, names
        solver, names = self._named
        return self._core(solver, self.assumptions(cube), names)

    def cover(self, cube: Cube, rows: Sequence[int]) -> list[int] | None:
        """Return some of the rows, none redundant, that cover every allowed input of the cube; None if all don't."""
        if self._without is None:
            solver, names = self._solver(), [z3.Bool(f"not row {place}") for place in range(len(self.table.rows))]
            for name, row in zip(names, self.table.rows, strict=True):
                solver.add(z3.Implies(name, self.outside(row.cells)))
            self._without = solver, names
        solver, names = self._without
        inside, chosen = self.assumptions(cube), [names[row] for row in rows]
        if self.check(solver, [*inside, *chosen]):
            return None
        return [rows[index] for index in self._core(solver, inside, chosen)]

    def _core(self, solver: Any, always: list[Any], names: list[Any]) -> list[int]:
        """Return the indices of names that contradict `always`, none of them redundant."""
        if self.check(solver, [*always, *names]):
            raise AssertionError("there is no core without a contradiction")
        place = {name.get_id(): index for index, name in enumerate(names)}
        core = sorted(place[term.get_id()] for term in solver.unsat_core() if term.get_id() in place)
        for index in list(core):
            rest = [other for other in core if other != index]
            if not self.check(solver, [*always, *(names[other] for other in rest)]):
                core = rest
        return core

    # --- counting ------------------------------------------------------------------------------------

    def count(self, cube: Cube, *, uncovered: bool = False) -> int | None:
        """Return the number of allowed inputs of the cube, with `uncovered` only those that no row covers.

        None where counting takes too long. The conditions are processed one by one; inputs that no undecided row
        or axiom distinguishes are counted together.
        """
        rows = self.table.rows if uncovered else ()
        order = sorted(range(len(cube)), key=lambda c: sum(row.cells[c] == self.full[c] for row in rows))
        live = sum(1 << r for r, row in enumerate(rows) if meet(row.cells, cube) is not None)
        open_axioms = _Interned([tuple(axiom.expr for axiom in self.table.axioms)])
        states: dict[tuple[int, int], int] = {(live, 0): 1}
        total, visited = 0, 0
        for position, c in enumerate(order):
            after: dict[tuple[int, int], int] = {}
            rest = order[position + 1 :]
            left = prod(cube[other].bit_count() for other in rest)
            done = sum(1 << r for r, row in enumerate(rows) if all(cube[o] & ~row.cells[o] == 0 for o in rest))
            alike = self._alike(rows, cube, rest)
            fixed: dict[tuple[int, int], int | None] = {}
            for (alive, axioms), ways in states.items():
                for v in bits(cube[c]):
                    still = alive & self._admits[c][v] if rows else 0
                    if still & done:
                        continue
                    if (axioms, v) not in fixed:
                        fixed[axioms, v] = open_axioms.add(self._fix(open_axioms.items[axioms], c, v))
                    undecided = fixed[axioms, v]
                    if undecided is None:
                        continue
                    if not still and not open_axioms.items[undecided]:
                        total += ways * left
                        continue
                    for group in alike:
                        found = still & group
                        still ^= found ^ (found & -found)  # the lowest row represents the group
                    after[still, undecided] = after.get((still, undecided), 0) + ways
            states = after
            visited += len(states)
            if visited > MAX_STATES:
                return None
        return total

    def _alike(self, rows: Sequence[Any], cube: Cube, rest: Sequence[int]) -> list[int]:
        """Return the groups of rows that agree on all remaining conditions, where there are few groups."""
        groups: dict[Cube, int] = {}
        for r, row in enumerate(rows):
            key = tuple(row.cells[other] & cube[other] for other in rest)
            groups[key] = groups.get(key, 0) | 1 << r
        return [group for group in groups.values() if group & (group - 1)] if len(groups) <= 40 else []

    def _fix(self, exprs: tuple[Expr, ...], c: int, v: int) -> tuple[Expr, ...] | None:
        """Return the axioms simplified for value v of condition c, or None where they exclude it."""
        inside = (*self.full[:c], 1 << v, *self.full[c + 1 :])
        left = []
        for expr in exprs:
            simpler = simplify(expr, inside)
            if not isinstance(simpler, Const):
                left.append(simpler)
            elif not simpler.value:
                return None
        return tuple(left)
