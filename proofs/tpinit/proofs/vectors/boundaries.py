"""Boundary inputs of the classes: huge sizes, size 1, size = world, off by one, every dtype.

Predicates such as `size divides world` define the classes. An implementation can be correct for the small
sizes of a class's witness and wrong for 32-bit or floating-point overflow, or for a size of 1.
"""

from __future__ import annotations

from collections.abc import Iterator

from tpinit.proofs.vectors.flags import VectorReason
from tpinit.spec.vocabulary import Call, DType, Group, Inputs, Mpu, Section

__all__ = ["HUGE", "boundaries"]

# The largest integer that a JSON parser with 64-bit floats reads exactly.
HUGE = 2**53 - 1

_ONE = VectorReason("BOUNDARY_SIZE_ONE", ("4",), "a size of 1 is taken for `no tensor parallelism`, or for false")
_WORLD = VectorReason("BOUNDARY_SIZE_IS_WORLD", ("4",), "a size that is the whole world's is off by one")
_BIG = VectorReason("BOUNDARY_HUGE", ("4",), "a size beyond 32 bits wraps around")
_FLOAT = VectorReason(
    "BOUNDARY_OFF_BY_ONE", ("P3", "4"), "sizes are compared or divided in floating point, and 1 is lost"
)
_TILES = VectorReason("BOUNDARY_DIVISION", ("4",), "`divides` is mixed up with `is smaller`, or with sharing a factor")
_NEGATIVE = VectorReason("BOUNDARY_NEGATIVE", ("D7", "4"), "a huge negative size wraps around, or -1 means `all ranks`")
_DTYPE = VectorReason("BOUNDARY_DTYPE", ("D6", "D8"), "one dtype is a special case: fp32 counts as unset, fp16 as bf16")


def boundaries() -> Iterator[tuple[VectorReason, Inputs]]:
    """Yield each boundary input with its reason. Some are also the witness of a class."""
    for size, world in ((1, 1), (1, 2), (1, 4)):
        yield from ((_ONE, inputs) for inputs in _initialising(size, world))
    for size in (2, 4, 8):
        yield from ((_WORLD, inputs) for inputs in _initialising(size, size))
    for size, world in ((2**31, 2**31), (2**32, 2**33), (HUGE, HUGE)):
        yield from ((_BIG, inputs) for inputs in _initialising(size, world))
    yield from _off_by_one()
    yield from _divisions()
    for size in (-1, -(2**31), -HUGE):
        yield from ((_NEGATIVE, inputs) for inputs in _initialising(size, 4))
    yield from ((_DTYPE, inputs) for inputs in _every_dtype())


def _initialising(size: int, world: int) -> Iterator[Inputs]:
    """Yield one input for each row that starts AutoTP (3, 4, 6, 7, 8, 9, 11), and one more for row 3 with the alias."""
    group = Group(1, max(size, 1))
    mpu, call, own = Mpu(group), Call(size, DType.BF16), Call(size, DType.BF16, group)
    yield Inputs(world, None, Section(size))
    yield Inputs(world, None, Section(None, size))
    yield Inputs(world, None, Section(size), mpu=mpu)
    yield Inputs(world, call, mpu=mpu)
    yield Inputs(world, call, Section(size))
    yield Inputs(world, call, Section(size), mpu=mpu)
    yield Inputs(world, own)
    yield Inputs(world, own, Section(size))


def _off_by_one() -> Iterator[tuple[VectorReason, Inputs]]:
    for size in (2**24 + 1, HUGE):  # near the limits of exact integers in 32-bit and 64-bit floats
        other = size - 1
        yield _FLOAT, Inputs(size, Call(size, DType.BF16), Section(other))
        yield _FLOAT, Inputs(size, None, Section(size, other))
        yield _FLOAT, Inputs(size, Call(size, DType.BF16, Group(1, other)))
        yield _FLOAT, Inputs(size, None, Section(size), mpu=Mpu(Group(1, other)))
        yield _FLOAT, Inputs(size, None, Section(other))
        yield _FLOAT, Inputs(other, None, Section(size))


def _divisions() -> Iterator[tuple[VectorReason, Inputs]]:
    for size, world in ((3, 4), (4, 2), (4, 6), (6, 4), (5, 8), (2, 1), (3, 8), (2, 8), (4, 8), (3, 6)):
        yield _TILES, Inputs(world, None, Section(size))
        yield _TILES, Inputs(world, None, Section(None, size))
        yield _TILES, Inputs(world, Call(size, DType.BF16), Section())


def _every_dtype() -> Iterator[Inputs]:
    group = Group(1, 2)
    for dtype in DType:
        yield Inputs(2, Call(2, dtype, group))
        yield Inputs(2, Call(2, dtype), Section(2))
        yield Inputs(2, None, Section(2, dtype=dtype))
        for other in DType:
            yield Inputs(2, Call(2, other), Section(2, dtype=dtype))
    for precision in (DType.FP16, DType.BF16):
        yield Inputs(2, None, Section(2), precision)
        yield Inputs(2, mpu=Mpu(group), precision=precision)
        for dtype in DType:
            yield Inputs(2, None, Section(2, dtype=dtype), precision)
            yield Inputs(2, Call(2, dtype, group), precision=precision)
