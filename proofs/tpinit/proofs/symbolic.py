"""Symbolic execution of the shipped source: the real functions, run by the real interpreter.

The functions are called as users call them, on inputs whose integers and identities are Z3 terms and
whose optional parts are created only when they are read. Whenever the code needs the truth value of a
term, the explorer takes one branch, remembers the other, and runs the function again until every branch
was taken (Boyer, Elspas and Levitt's SELECT, 1975; CrossHair works in the same way). Nothing is
approximated: an operation that a term does not support raises `Unsupported`, which fails the proof. At the
end Z3 checks that the explored paths cover every input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, NoReturn, TypeVar

import z3
from tpinit.spec.model import SIZE_OF, Symbols, constant
from tpinit.spec.vocabulary import DType, Group

__all__ = ["Explorer", "Path", "SymbolicBool", "SymbolicInt", "Unsupported", "explore", "lazy_inputs"]

T = TypeVar("T")
MAX_PATHS, MAX_DECISIONS = 200_000, 500


class Unsupported(Exception):
    """The code under proof used a term in a way that symbolic execution does not support."""


@dataclass(frozen=True)
class Path(Generic[T]):
    """One path: its condition on the inputs, and the result or the exception of the function."""

    condition: z3.BoolRef
    result: T | None
    raised: BaseException | None


class Explorer:
    """Takes one branch of every decision, in depth-first order, and keeps the branches still to take."""

    def __init__(self, assuming: z3.BoolRef) -> None:
        self._solver = z3.Solver()
        self._solver.add(assuming)
        self._plan: list[tuple[bool, bool]] = []  # (branch taken, other branch still to take)
        self._taken: list[z3.BoolRef] = []

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
            both = [side for side in (True, False) if self._feasible(term if side else z3.Not(term))]
            if not both:
                raise Unsupported("no input reaches this point, though an earlier decision allowed it")
            self._plan.append((both[0], len(both) == 2))
        side = self._plan[index][0]
        chosen = term if side else z3.Not(term)
        self._taken.append(chosen)
        self._solver.push()
        self._solver.add(chosen)
        return side

    def rewind(self) -> bool:
        """Go back to the last decision with a branch left and take that branch. Return False when there is none."""
        if self._taken:
            self._solver.pop(len(self._taken))
        self._taken.clear()
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


_CURRENT: list[Explorer] = []


def _decide(term: z3.BoolRef) -> bool:
    simple = z3.simplify(term)
    if z3.is_true(simple) or z3.is_false(simple):
        return bool(z3.is_true(simple))
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


def _refuse(what: str) -> Callable[..., NoReturn]:
    def refuse(*_: object) -> NoReturn:
        raise Unsupported(f"the code under proof {what}")

    return refuse


class SymbolicBool:
    """A bool that depends on the input. `bool()` of it takes a branch."""

    __slots__ = ("term",)

    def __init__(self, term: z3.BoolRef) -> None:
        self.term = term

    def __bool__(self) -> bool:
        return _decide(self.term)

    __eq__ = _refuse("compared a bool with another")
    __hash__ = _refuse("hashed a bool")


def _int_term(value: object) -> z3.ArithRef:
    if isinstance(value, SymbolicInt):
        return value.term
    if isinstance(value, int):
        return z3.IntVal(int(value))
    raise Unsupported(f"the code under proof mixed an integer with {type(value).__name__}")


class SymbolicInt:
    """An unbounded integer that depends on the input. `//` and `%` have Python's meaning."""

    __slots__ = ("term",)

    def __init__(self, term: z3.ArithRef) -> None:
        self.term = term

    def __eq__(self, other: object) -> SymbolicBool:  # type: ignore[override] # the result is a term
        return SymbolicBool(self.term == _int_term(other))

    def __ne__(self, other: object) -> SymbolicBool:  # type: ignore[override]
        return SymbolicBool(self.term != _int_term(other))

    def __lt__(self, other: object) -> SymbolicBool:
        return SymbolicBool(self.term < _int_term(other))

    def __le__(self, other: object) -> SymbolicBool:
        return SymbolicBool(self.term <= _int_term(other))

    def __gt__(self, other: object) -> SymbolicBool:
        return SymbolicBool(self.term > _int_term(other))

    def __ge__(self, other: object) -> SymbolicBool:
        return SymbolicBool(self.term >= _int_term(other))

    def __add__(self, other: object) -> SymbolicInt:
        return SymbolicInt(self.term + _int_term(other))

    def __sub__(self, other: object) -> SymbolicInt:
        return SymbolicInt(self.term - _int_term(other))

    def __rsub__(self, other: object) -> SymbolicInt:
        return SymbolicInt(_int_term(other) - self.term)

    def __mul__(self, other: object) -> SymbolicInt:
        return SymbolicInt(self.term * _int_term(other))

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> SymbolicInt:
        return SymbolicInt(-self.term)

    def __mod__(self, other: object) -> SymbolicInt:
        return _divide(self.term, _int_term(other))[1]

    def __rmod__(self, other: object) -> SymbolicInt:
        return _divide(_int_term(other), self.term)[1]

    def __floordiv__(self, other: object) -> SymbolicInt:
        return _divide(self.term, _int_term(other))[0]

    def __rfloordiv__(self, other: object) -> SymbolicInt:
        return _divide(_int_term(other), self.term)[0]

    def __divmod__(self, other: object) -> tuple[SymbolicInt, SymbolicInt]:
        return _divide(self.term, _int_term(other))

    def __bool__(self) -> bool:
        return _decide(self.term != 0)

    __hash__ = _refuse("hashed an integer")
    __index__ = _refuse("needed a concrete integer")
    __int__ = _refuse("needed a concrete integer")
    __float__ = _refuse("turned an integer into a float")
    __format__ = _refuse("formatted an integer")


def _divide(dividend: z3.ArithRef, divisor: z3.ArithRef) -> tuple[SymbolicInt, SymbolicInt]:
    """Return Python's floor division and modulo. Z3's remainder is never negative: negate for a divisor below 0."""
    if _decide(divisor == 0):
        raise ZeroDivisionError("integer division or modulo by zero")
    if _decide(divisor > 0):
        return SymbolicInt(dividend / divisor), SymbolicInt(dividend % divisor)
    return SymbolicInt((-dividend) / (-divisor)), SymbolicInt(-((-dividend) % (-divisor)))


class SymbolicIdentity:
    """The identity of a group. It supports comparison with another identity and nothing else."""

    __slots__ = ("term",)

    def __init__(self, term: z3.ExprRef) -> None:
        self.term = term

    def __eq__(self, other: object) -> SymbolicBool:  # type: ignore[override] # the result is a term
        return SymbolicBool(self.term == _identity(other))

    def __ne__(self, other: object) -> SymbolicBool:  # type: ignore[override]
        return SymbolicBool(self.term != _identity(other))

    __hash__ = _refuse("hashed an identity")


def _identity(other: object) -> z3.ExprRef:
    if not isinstance(other, SymbolicIdentity):
        raise Unsupported(f"the code under proof compared an identity with {type(other).__name__}")
    return other.term


class Lazy:
    """An object whose attributes are created when first read, so that unread attributes cause no decision."""

    def __init__(self, **parts: Callable[[], object]) -> None:
        self.__dict__["_parts"] = parts

    def __getattr__(self, name: str) -> object:
        if name not in self.__dict__["_parts"]:
            raise Unsupported(f"the code under proof read .{name}, which is not in the contract")
        value = self.__dict__["_parts"][name]()
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: object) -> None:
        raise Unsupported(f"the code under proof wrote .{name} of its input")


def lazy_inputs(s: Symbols) -> Lazy:
    """Return a symbolic `Inputs` over the terms of `s`. Each path needs a new one."""

    def when(term: z3.BoolRef, part: Callable[[], object]) -> Callable[[], object]:
        return lambda: part() if _decide(term) else None

    def integer(term: z3.ArithRef) -> Callable[[], object]:
        return lambda: SymbolicInt(term)

    def dtype(term: z3.DatatypeRef) -> Callable[[], object]:
        return lambda: next(member for member in DType if _decide(term == constant(member)))

    def group(term: z3.ExprRef) -> Callable[[], object]:
        return lambda: Group(SymbolicIdentity(term), SymbolicInt(SIZE_OF(term)))  # type: ignore[arg-type] # terms replace values

    def call() -> object:
        return Lazy(tp_size=integer(s.call_size), dtype=dtype(s.call_dtype), tp_group=when(s.tpg, group(s.call_group)))

    def section() -> object:
        return Lazy(
            autotp_size=when(s.autotp_given, integer(s.autotp)),
            tp_size=when(s.alias_given, integer(s.alias)),
            dtype=when(s.dtype_given, dtype(s.dtype)),
            tp_group=when(s.cgroup_given, group(s.cgroup)),
            carried=dict,
        )

    def mpu() -> object:
        return Lazy(tp_group=group(s.mpu_group), dp_group=lambda: None)

    return Lazy(
        call=when(s.tpi, call),
        section=when(s.section, section),
        precision=when(s.precision_given, dtype(s.precision)),
        mpu=when(s.mpu, mpu),
        mesh=when(s.mesh, group(s.mesh_group)),
        world_size=integer(s.world),
    )
