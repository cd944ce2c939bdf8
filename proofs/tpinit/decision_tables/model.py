"""A decision table as data: conditions with finitely many values, rows as cubes, axioms as expressions.

A cube is a product of value sets, one a condition: a bit mask each, bit v for the condition's value v. A row
covers a cube, and so does a partial assignment; a point is a cube with one value a condition, kept as indices.
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
    "Row",
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
    """What it means that two rows match one input."""

    UNIQUE = "unique"  # it must not happen
    ANY = "any"  # it may, if the outcomes are equal
    FIRST = "first"  # the row that comes first decides


@dataclass(frozen=True, slots=True)
class Condition:
    """One column: its name and its values, in order. A Boolean one has the values N and Y."""

    name: str
    values: tuple[str, ...]
    boolean: bool

    @property
    def full(self) -> int:
        """The mask of all values: a don't-care."""
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
    """Both or neither."""

    left: Expr
    right: Expr


Expr: TypeAlias = Lit | Const | Not | And | Or | Iff


@dataclass(frozen=True, slots=True)
class Axiom:
    """What holds of every input: its name, its text as given, and its meaning."""

    name: str
    text: str
    expr: Expr


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its id, the inputs it covers, and its outcomes by name (JSON values as canonical JSON text)."""

    id: str
    cells: Cube
    outcome: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A well-formed table. Whether it makes sense is what the analysis finds out."""

    title: str
    policy: HitPolicy
    conditions: tuple[Condition, ...]
    rows: tuple[Row, ...]
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
    """Tell whether every point of the inner cube is in the outer one."""
    return all(b & ~a == 0 for a, b in zip(outer, inner, strict=True))


def volume(cube: Cube) -> int:
    """Return how many points a cube has."""
    return prod(mask.bit_count() for mask in cube)


def simplify(expr: Expr, cube: Cube) -> Expr:
    """Return what is left of an expression inside a cube; `Const` where the parts alone settle it."""
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
        elif left.value is not conjunction:  # false settles a conjunction, true a disjunction
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
    """Tell whether an expression is true at a point."""
    settled = simplify(expr, tuple(1 << value for value in point))
    assert isinstance(settled, Const)  # a point leaves nothing open
    return settled.value


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
