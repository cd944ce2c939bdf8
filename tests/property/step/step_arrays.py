"""Exact arithmetic on arrays: what torch's operations compute, on numpy arrays of Fractions.

Functions of which the lifter knows nothing (silu, softmax) are drawn functions: each set of arguments has its own
arbitrary number, so that two different uses of one differ. Exponentials are powers of 2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fractions import Fraction
from math import log2
from typing import Any

import numpy as np
from tpinit.step.pieces import Pieces

Array = Any
"""A numpy array of Fractions."""


def exact(values: Any) -> Array:
    """Return an array of Fractions."""
    held = np.empty(np.shape(values), dtype=object)
    for place, value in np.ndenumerate(np.asarray(values, dtype=object)):
        held[place] = Fraction(value)
    return held


def array(value: Any) -> Array:
    """Return an array: numpy gives bare numbers for those without dimensions."""
    return value if isinstance(value, np.ndarray) else exact(value)


def drawn(name: str, *args: Any) -> Fraction:
    """Return an arbitrary number for a name and arguments."""
    digest = hashlib.sha256(repr((name, args)).encode()).digest()
    return Fraction(digest[0] % 7 - 3, 1 + digest[1] % 3)


def elementwise(name: str, operands: Sequence[Array], constants: Any = ()) -> Array:
    """Return the function of that name of each element."""
    shape = np.broadcast_shapes(*(one.shape for one in operands))
    held = [np.broadcast_to(one, shape) for one in operands]
    found = np.empty(shape, dtype=object)
    for place in np.ndindex(shape):
        found[place] = _at(name, [one[place] for one in held], constants)
    return found


def _at(name: str, values: list[Fraction], constants: Any) -> Fraction:
    if name == "exp" and values[0].denominator == 1:  # 2^x has the laws of exponentials, and is exact
        return Fraction(2) ** int(values[0])
    if name == "log" and values[0] > 0:
        return Fraction(round(log2(values[0]) * 2**30), 2**30)
    if name == "where":
        return values[1] if values[0] else values[2]
    if name == "to int64":
        return Fraction(int(values[0]))
    if name == "to bool":
        return Fraction(bool(values[0]))
    if name in ("ge", "lt", "ne"):
        bound = values[1] if len(values) > 1 else Fraction(constants[-1])
        return Fraction({"ge": values[0] >= bound, "lt": values[0] < bound, "ne": values[0] != bound}[name])
    if name == "silu_backward":
        return values[0] * drawn(name, values[1])
    return drawn(name, *values, *constants)


def rows(name: str, operands: Sequence[Array], dim: int) -> Array:
    """Apply a drawn function to whole rows along `dim`; of two operands it is linear in the first."""
    moved = [np.moveaxis(one, dim, -1) for one in operands]
    found = np.empty(moved[-1].shape, dtype=object)
    for place in np.ndindex(found.shape):
        key = (name, place[-1], tuple(moved[-1][place[:-1]]))
        if len(moved) == 1:
            found[place] = drawn(*key)
        else:
            found[place] = sum((value * drawn(*key, at) for at, value in enumerate(moved[0][place[:-1]])), Fraction(0))
    return np.moveaxis(found, -1, dim)


def contracted(one: Array, other: Array, batch: Any, summed: Any) -> Array:
    """Return the contraction: dimensions are the pairs of `batch`, the rest of `one`, the rest of `other`."""
    free = [dim for dim in range(one.ndim) if dim not in {a for a, _ in (*batch, *summed)}]
    rest = [dim for dim in range(other.ndim) if dim not in {b for _, b in (*batch, *summed)}]
    if any(one.shape[a] != other.shape[b] for a, b in (*batch, *summed)):
        raise ValueError("the dimensions of a contraction differ")
    left = one.transpose([a for a, _ in batch] + free + [a for a, _ in summed])
    right = other.transpose([b for _, b in batch] + rest + [b for _, b in summed])
    count, sums = len(batch), len(summed)
    left = left.reshape(left.shape[: count + len(free)] + (1,) * len(rest) + left.shape[left.ndim - sums :])
    right = right.reshape(right.shape[:count] + (1,) * len(free) + right.shape[count:])
    return total(left * right, tuple(range(count + len(free) + len(rest), count + len(free) + len(rest) + sums)))


def total(array: Array, dims: tuple[int, ...]) -> Array:
    """Return the sum over dimensions, which are dropped."""
    found = array
    for dim in sorted(dims, reverse=True):
        kept = found.shape[:dim] + found.shape[dim + 1 :]
        found = exact(np.sum(found, axis=dim)) if found.shape[dim] else exact(np.zeros(kept, dtype=int))
    return found


def looked_up(table: Array, ids: Array) -> Array:
    """Return the rows of a table at ids."""
    found = np.empty((*ids.shape, table.shape[1]), dtype=object)
    for place in np.ndindex(ids.shape):
        found[place] = table[int(ids[place])]
    return found


def table_gradient(grad: Array, ids: Array, rows: int, padding: int) -> Array:
    """Return the gradient of a table of so many rows."""
    found = exact(np.zeros((rows, grad.shape[-1]), dtype=int))
    for place in np.ndindex(ids.shape):
        if int(ids[place]) != padding:
            found[int(ids[place])] = found[int(ids[place])] + grad[place]
    return found


def inverse(x: Array) -> Array:
    """Return 1 / x of each element. Raises ZeroDivisionError for a 0."""
    found = np.empty(x.shape, dtype=object)
    for place in np.ndindex(x.shape):
        found[place] = 1 / x[place]
    return found


def padded(array: Array, dim: int, start: int, size: int) -> Array:
    """Return zeros along a dimension with the array from `start` on."""
    found = exact(np.zeros((*array.shape[:dim], size, *array.shape[dim + 1 :]), dtype=int))
    np.moveaxis(found, dim, 0)[start : start + array.shape[dim]] = np.moveaxis(array, dim, 0)
    return found


def indices(pieces: Pieces) -> list[int]:
    """Return the indices of runs, in local order."""
    return [index for offset, length in pieces for index in range(offset, offset + length)]


def part(whole: Array, index: Any, rank: int) -> Array:
    """Return the tensor of a rank that holds these indices of a whole."""
    held = [
        list(range(size)) if one is None else indices(one[rank]) for size, one in zip(whole.shape, index, strict=True)
    ]
    return array(whole[np.ix_(*held)]) if held else whole
