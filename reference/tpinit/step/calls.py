"""Operations as they are read: their names, numbers, dtypes, dimensions and bounds."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from tpinit.step.graph import Op, Value
from tpinit.step.terms import Term

__all__ = [
    "BLANKS",
    "COPIES",
    "FUNCTIONS",
    "VIEWS",
    "Args",
    "Operation",
    "axes",
    "axis_of",
    "base_name",
    "clamped",
    "constant",
    "converts",
    "is_exact",
    "is_random",
    "is_real",
    "number_of",
    "slice_bounds",
]

Args = tuple[Any, ...]

COPIES = ("clone", "detach", "alias", "contiguous", "lift_fresh")
"""The operations whose result is their first argument."""
VIEWS = ("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "_reshape_alias")
"""The operations that give the same elements, in the same order, another shape: the shape of the result says all."""
BLANKS = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided")
"""The operations that make a tensor whose elements are anything."""
FUNCTIONS = (
    "silu",
    "gelu",
    "relu",
    "tanh",
    "sigmoid",
    "exp",
    "expm1",
    "log",
    "log1p",
    "sin",
    "cos",
    "erf",
    "abs",
    "sign",
    "softplus",
    "leaky_relu",
    "elu",
    "mish",
    "clamp",
    "clamp_min",
    "clamp_max",
    "maximum",
    "minimum",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "bitwise_and",
    "bitwise_or",
    "bitwise_not",
    "bitwise_xor",
    "logical_and",
    "logical_or",
    "logical_not",
    "isfinite",
    "isnan",
)
"""Functions of which each element of the result depends on those of the operands at its place, and no more is known."""


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation on whole values: its name without underscore and overload, its arguments, what it makes and reads.

    In `args` a tensor is a Term; tuples hold terms too. `outputs` are the shapes and dtypes of the results, `read` the
    dtypes of the tensor arguments, in order.
    """

    name: str
    args: Args
    outputs: tuple[Value, ...]
    read: tuple[str, ...]


def base_name(name: str) -> str:
    """Return "add" for "aten.add_.Tensor": in-place writes are values of their own.

    And overloads differ in their arguments.
    """
    parts = name.split(".")
    if parts[0] != "aten" or parts[-1] == "dtype":
        return name
    return parts[1].removesuffix("_") if not parts[1].startswith("__") else parts[1]


def number_of(value: Any) -> Fraction | None:
    """Return a finite number of Python as a Fraction; None for anything else."""
    if isinstance(value, bool):
        return Fraction(int(value))
    if isinstance(value, int) or (isinstance(value, float) and value - value == 0):
        return Fraction(value)
    return None


_RANDOM = (
    "bernoulli",
    "native_dropout",
    "rand",
    "randn",
    "rand_like",
    "randn_like",
    "normal",
    "uniform",
    "multinomial",
    "randint",
    "randperm",
    "exponential",
)


def is_random(op: Op) -> bool:
    """Return whether an operation draws random numbers: the recorder notes the generator that one has changed."""
    noted = any(isinstance(arg, str) and arg.startswith("rng:") for arg in op.args)
    return noted or base_name(op.name) in _RANDOM


def is_real(dtype: str) -> bool:
    """Return whether numbers of a dtype stand for real numbers."""
    return dtype.startswith(("float", "bfloat"))


def is_exact(dtype: str) -> bool:
    """Return whether sums and products of a dtype are those of numbers: reals, and integers that do not overflow."""
    return is_real(dtype) or dtype in ("int64", "int32")


def converts(source: str, target: str) -> bool:
    """Return whether a conversion keeps every number."""
    if source == target or source == "bool":
        return source == target or is_exact(target)
    if is_real(target):
        return is_real(source) or source.startswith(("int", "uint"))
    return target == "int64" and source.startswith(("int", "uint"))


def constant(arg: Any) -> Any:
    """Return an argument as it stands in a term: floats are exact fractions."""
    if isinstance(arg, tuple):
        return tuple(constant(one) for one in arg)
    if isinstance(arg, float):
        return Fraction(arg) if arg - arg == 0 else str(arg)
    return arg


def axis_of(dim: int, term: Term) -> int:
    """Return a dimension of a term as a non-negative number."""
    return dim % len(term.shape) if term.shape else 0


def axes(dims: Any, rank: int) -> tuple[int, ...]:
    """Return dimensions as non-negative numbers; None and () mean all."""
    if dims is None or dims == ():
        return tuple(range(rank))
    return tuple(sorted(dim % rank for dim in (dims if isinstance(dims, tuple) else (dims,))))


def slice_bounds(args: Args, size: int) -> tuple[int, int] | None:
    """Return (start, length) of `slice(self, dim, start, end, step)`; None for another step."""
    _, _, start, end, step = args
    if step != 1:
        return None
    low = clamped(0 if start is None else start, size)
    high = clamped(size if end is None else end, size)
    return low, max(high - low, 0)


def clamped(position: int, size: int) -> int:
    """Return a bound of a slice, negative ones from the end, in [0, size]."""
    return min(max(position + size if position < 0 else position, 0), size)
