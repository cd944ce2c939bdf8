"""Terms: what a value is as a function of the leaves, over the real numbers, in a normal form.

Equal terms are one object, so two values are proven equal where their terms are identical. The normal form uses the
laws of a commutative ring (sums and products without order, constants in front), of index maps (a view of a view is a
view), and of contractions; each law holds for all real values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from typing import Any

__all__ = ["Const", "Shape", "Term", "Terms", "broadcast", "dim_groups"]

Shape = tuple[int, ...]
Const = Any


class Term:
    """One function of the leaves. `args` are terms and constants; `shape` is that of the value, in elements."""

    __slots__ = ("args", "index", "op", "shape")

    def __init__(self, index: int, op: str, args: tuple[Any, ...], shape: Shape) -> None:
        self.index = index
        self.op = op
        self.args = args
        self.shape = shape

    def __repr__(self) -> str:
        return self.text(3)

    def text(self, depth: int) -> str:
        """Return the term in words, `depth` levels deep."""
        if self.op == "leaf":
            return str(self.args[1])
        if not depth:
            return f"{self.op}(...)"
        return f"{self.op}({', '.join(_text(arg, depth - 1) for arg in self.args)})"


def _text(arg: Any, depth: int) -> str:
    if isinstance(arg, Term):
        return arg.text(depth)
    if isinstance(arg, tuple):
        return f"[{', '.join(_text(one, depth) for one in arg)}]"
    return str(arg)


class Terms:
    """The table of all terms: it gives the one object of each."""

    def __init__(self) -> None:
        self._table: dict[tuple[object, ...], Term] = {}

    def make(self, op: str, args: Iterable[Any], shape: Shape) -> Term:
        """Return the term of an operation on terms in normal form. Booleans and integers stay apart."""
        held = tuple(args)
        key = (op, _key(held), shape)
        found = self._table.get(key)
        if found is None:
            found = self._table[key] = Term(len(self._table), op, held, shape)
        return found

    def __len__(self) -> int:
        return len(self._table)


def _key(arg: object) -> object:
    """Return a key in which True is not 1, and a Fraction not an int."""
    if isinstance(arg, tuple):
        return tuple(_key(one) for one in arg)
    return arg if isinstance(arg, Term) else (type(arg).__name__, arg)


def broadcast(shapes: Iterable[Shape]) -> Shape:
    """Return the shape to which the shapes broadcast. Raises ValueError if they don't."""
    held = list(shapes)
    rank = max(map(len, held), default=0)
    result = []
    for column in zip(*((1,) * (rank - len(shape)) + shape for shape in held), strict=True):
        sizes = {size for size in column if size != 1}
        if len(sizes) > 1:
            raise ValueError(f"shapes {held} do not broadcast")
        result.append(sizes.pop() if sizes else 1)
    return tuple(result)


def elements(shape: Shape) -> int:
    """Return the number of elements of a shape."""
    return prod(shape)


def dim_groups(before: Shape, after: Shape) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the smallest groups of neighbouring dimensions, of both shapes, with equal numbers of elements.

    A dimension of size 1 is in the group of the one before it. The shapes have as many elements, and no dimension is 0.
    """
    i = j = 0
    while i < len(before) or j < len(after):
        left, right = [i] if i < len(before) else [], [j] if j < len(after) else []
        have = before[i] if left else 1
        want = after[j] if right else 1
        i, j = i + len(left), j + len(right)
        while have != want or (i < len(before) and before[i] == 1) or (j < len(after) and after[j] == 1):
            if i < len(before) and (have < want or (have == want and before[i] == 1)):
                have *= before[i]
                left.append(i)
                i += 1
            else:
                want *= after[j]
                right.append(j)
                j += 1
        yield left, right
