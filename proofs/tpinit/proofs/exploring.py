"""Take every path of a function: one branch of each decision, then the others (SELECT; Boyer, Elspas, Levitt, 1975).

Whenever the code needs the truth value of a term, the explorer takes one branch, remembers the other, and runs the
function again until every branch was taken. At the end Z3 checks that the paths cover every input. `Unsupported` is
no `Exception`, and the explorer remembers that it was raised, so that code under proof can't swallow a refusal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import z3

__all__ = ["Explorer", "Path", "Unsupported", "decide", "explore"]

T = TypeVar("T")
MAX_PATHS, MAX_DECISIONS = 200_000, 500
_CURRENT: list[Explorer] = []


class Unsupported(BaseException):
    """The code under proof did something that the engine does not model.

    It is no `Exception`: `except Exception` in the code under proof does not catch it.
    """

    def __init__(self, *reason: object) -> None:
        super().__init__(*reason)
        if _CURRENT:
            _CURRENT[-1].refused.append(self)


@dataclass(frozen=True)
class Path(Generic[T]):
    """One path: its condition on the inputs, and the result or the exception of the function."""

    condition: z3.BoolRef
    result: T | None
    raised: BaseException | None


class Explorer:
    """Takes one branch of every decision, in depth-first order, and keeps the branches still to take.

    Where nothing is assumed and all decisions so far are about distinct Boolean constants, another constant has both
    values, and no solver is asked.
    """

    def __init__(self, assuming: z3.BoolRef) -> None:
        self._solver = z3.Solver()
        self._solver.add(assuming)
        self._free = z3.is_true(assuming)
        self._plan: list[tuple[bool, bool]] = []  # (branch taken, other branch still to take)
        self._taken: list[z3.BoolRef] = []
        self._constants: dict[int, bool] = {}  # the value of each constant, while all decisions are about constants
        self._pushed = 0
        self.refused: list[Unsupported] = []

    @property
    def condition(self) -> z3.BoolRef:
        """The conjunction of all branches taken on the current path."""
        return z3.And(*self._taken) if self._taken else z3.BoolVal(True)

    def decide(self, term: z3.BoolRef) -> bool:
        """Return a truth value of `term` that some input has, and keep the other one for a later path."""
        index = len(self._taken)
        if index == MAX_DECISIONS:
            raise Unsupported(f"more than {MAX_DECISIONS} decisions on one path: it may not terminate")
        if index == len(self._plan):
            sides = self._sides(term)
            if not sides:
                raise Unsupported("no input reaches this point, though an earlier decision allowed it")
            self._plan.append((sides[0], len(sides) == 2))
        side = self._plan[index][0]
        if _is_constant(term) and len(self._constants) == len({*self._constants, term.get_id()}) - 1 == index:
            self._constants[term.get_id()] = side
        self._taken.append(term if side else z3.Not(term))
        return side

    def _sides(self, term: z3.BoolRef) -> list[bool]:
        if self._free and _is_constant(term) and len(self._constants) == len(self._taken):
            known = self._constants.get(term.get_id())
            return [True, False] if known is None else [known]
        for chosen in self._taken[self._pushed :]:
            self._solver.push()
            self._solver.add(chosen)
        self._pushed = len(self._taken)
        return [side for side in (True, False) if self._feasible(term if side else z3.Not(term))]

    def rewind(self) -> bool:
        """Go back to the last decision with a branch left and take that branch. Return False when there is none."""
        if self._pushed:
            self._solver.pop(self._pushed)
        self._pushed = 0
        self._taken.clear()
        self._constants.clear()
        while self._plan and not self._plan[-1][1]:
            self._plan.pop()
        if not self._plan:
            return False
        self._plan[-1] = (not self._plan[-1][0], False)
        return True

    def _feasible(self, term: z3.BoolRef) -> bool:
        answer = self._solver.check(term)
        if answer == z3.unknown:
            raise Unsupported(f"the solver could not decide whether a path exists: {term}")
        return bool(answer == z3.sat)


def _is_constant(term: z3.BoolRef) -> bool:
    return bool(z3.is_const(term) and term.decl().kind() == z3.Z3_OP_UNINTERPRETED)


def decide(term: z3.BoolRef) -> bool:
    """Return the truth value of a term on the current path, taking a branch where it has two."""
    simple = z3.simplify(term)
    if z3.is_true(simple) or z3.is_false(simple):
        return bool(z3.is_true(simple))
    if not _CURRENT:
        raise Unsupported(f"a truth value was asked for outside of a path: {simple}")
    return _CURRENT[-1].decide(term)


def explore(function: Callable[[], T], assuming: z3.BoolRef) -> Iterator[Path[T]]:
    """Run `function` once for every path that inputs satisfying `assuming` can take.

    Raises Unsupported where there are too many paths, one is too long, or they do not cover every input.
    """
    explorer = Explorer(assuming)
    conditions: list[z3.BoolRef] = []
    for _ in range(MAX_PATHS):
        _CURRENT.append(explorer)
        result, raised = None, None
        try:
            result = function()
        except Unsupported:
            raise
        except Exception as exception:  # an exception of the code is part of the path's result
            raised = exception
        finally:
            _CURRENT.pop()
        if explorer.refused:
            raise explorer.refused[0]
        conditions.append(explorer.condition)
        yield Path(explorer.condition, result, raised)
        if not explorer.rewind():
            break
    else:
        raise Unsupported(f"more than {MAX_PATHS} paths")
    cover = z3.Solver()
    cover.add(assuming, z3.Not(z3.Or(*conditions)))
    if cover.check() != z3.unsat:
        raise Unsupported("the explored paths do not cover every input")
