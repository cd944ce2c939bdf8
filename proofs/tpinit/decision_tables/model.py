"""A decision table as data: conditions with finitely many values, rows as cubes, axioms as expressions.

A cube is a product of value sets, one bit mask per condition; bit v is the condition's value v. The cells of a
row are a cube, and so is a partial assignment. A point is one input: one value index per condition.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from math import prod
from typing import TypeAlias

__all__ = [
    "BOOL_VALUES",
    "And",
    "Axiom",
    "Condition",
    "Const",
    "Cube",
    "Expr",
    "HitPolicy",
    "Iff",
    "Lit",
    "Not",
    "Or",
    "Point",
    "DecisionRow",
    "Table",
    "bits",
    "literals",
    "contains",
    "holds",
    "meet",
    "simplify",
    "volume",
]

Cube: TypeAlias = tuple[int, ...]
Point: TypeAlias = tuple[int, ...]

BOOL_VALUES = ("N", "Y")


class HitPolicy(str, Enum):
    """The meaning of two rows that match one input."""

    UNIQUE = "unique"  # an error
    ANY = "any"  # legal if the outcomes are equal
    FIRST = "first"  # legal: the first row decides


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition: its name and its values in order. A Boolean condition has the values N and Y."""

    name: str
    values: tuple[str, ...]
    boolean: bool

    @property
    def full(self) -> int:
        """The mask of all values, which is a don't-care."""
        return (1 << len(self.values)) - 1


@dataclass(frozen=True, slots=True)
class Lit:
    """The condition has one of the values of the mask."""

    condition: int
    mask: int


@dataclass(frozen=True, slots=True)
class Const:
    """True or false."""

    value: bool


@dataclass(frozen=True, slots=True)
class Not:
    """Negation."""

    part: Expr


@dataclass(frozen=True, slots=True)
class And:
    """Conjunction."""

    parts: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Disjunction."""

    parts: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Iff:
    """Equivalence."""

    left: Expr
    right: Expr


Expr: TypeAlias = Lit | Const | Not | And | Or | Iff


@dataclass(frozen=True, slots=True)
class Axiom:
    """A rule that every input satisfies: its name, its text as given, and its expression."""

    name: str
    text: str
    expr: Expr


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """One row: its id, the inputs it covers, and its outcomes by name (JSON values as canonical JSON text)."""

    id: str
    cells: Cube
    outcome: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A well-formed table, which may still have findings."""

    title: str
    policy: HitPolicy
    conditions: tuple[Condition, ...]
    rows: tuple[DecisionRow, ...]
    axioms: tuple[Axiom, ...]

    @property
    def full(self) -> Cube:
        """The cube of all inputs, allowed by the axioms or not."""
        return tuple(condition.full for condition in self.conditions)


def bits(mask: int) -> Iterator[int]:
    """Yield the positions of the bits that are set, lowest first."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def meet(one: Cube, other: Cube) -> Cube | None:
    """Return the intersection of two cubes, or None where it is empty."""
    both = tuple(a & b for a, b in zip(one, other, strict=True))
    return both if all(both) else None


def contains(outer: Cube, inner: Cube) -> bool:
    """Return whether every point of the inner cube is in the outer cube."""
    return all(b & ~a == 0 for a, b in zip(outer, inner, strict=True))


def volume(cube: Cube) -> int:
    """Return the number of points of a cube."""
    return prod(mask.bit_count() for mask in cube)


def simplify(expr: Expr, cube: Cube) -> Expr:
    """Return an expression simplified for the inputs of a cube; `Const` where it is constant by its parts."""
    if isinstance(expr, Const):
        return expr
    if isinstance(expr, Lit):
        inside = expr.mask & cube[expr.condition]
        return Const(inside != 0) if inside in (0, cube[expr.condition]) else expr
    if isinstance(expr, Not):
        part = simplify(expr.part, cube)
        return Const(not part.value) if isinstance(part, Const) else Not(part)
    if isinstance(expr, Iff):
        return _iff(simplify(expr.left, cube), simplify(expr.right, cube))
    conjunction = isinstance(expr, And)
    parts = []
    for part in expr.parts:
        left = simplify(part, cube)
        if not isinstance(left, Const):
            parts.append(left)
        elif left.value is not conjunction:  # false decides a conjunction, true a disjunction
            return left
    if len(parts) < 2:
        return parts[0] if parts else Const(conjunction)
    return And(tuple(parts)) if conjunction else Or(tuple(parts))


def _iff(left: Expr, right: Expr) -> Expr:
    if isinstance(left, Const):
        left, right = right, left
    if not isinstance(right, Const):
        return Iff(left, right)
    if isinstance(left, Const):
        return Const(left.value is right.value)
    return left if right.value else Not(left)


def holds(expr: Expr, point: Sequence[int]) -> bool:
    """Return whether an expression is true at a point."""
    result = simplify(expr, tuple(1 << value for value in point))
    assert isinstance(result, Const)  # every expression is constant at a point
    return result.value


def literals(expr: Expr) -> Iterator[Lit]:
    """Yield every literal of an expression."""
    if isinstance(expr, Lit):
        yield expr
    elif isinstance(expr, Not):
        yield from literals(expr.part)
    elif isinstance(expr, Iff):
        yield from literals(expr.left)
        yield from literals(expr.right)
    elif not isinstance(expr, Const):
        for part in expr.parts:
            yield from literals(part)
