"""Witnesses at the edges of the classes: huge sizes, size 1, size = world, off by one, every dtype.

The classes are decided by predicates such as `size divides world`; an implementation can have them right
for the small numbers of a class's witness and wrong in 32 bits, in floating point, or at 1.
"""

from __future__ import annotations

from collections.abc import Iterator

from tpinit.proofs.vectors.flags import Why
from tpinit.spec.vocabulary import Call, DType, Group, Inputs, Mpu, Section

__all__ = ["HUGE", "boundaries"]

# The greatest integer of which a JSON parser that reads numbers as 64-bit floats keeps all digits.
HUGE = 2**53 - 1

_ONE = Why("BOUNDARY_SIZE_ONE", ("4",), "a size of 1 is taken for `no tensor parallelism`, or for false")
_WORLD = Why("BOUNDARY_SIZE_IS_WORLD", ("4",), "a size that is the whole world's is off by one")
_BIG = Why("BOUNDARY_HUGE", ("4",), "a size beyond 32 bits wraps around")
_FLOAT = Why("BOUNDARY_OFF_BY_ONE", ("P3", "4"), "sizes are compared or divided in floating point, and 1 is lost")
_TILES = Why("BOUNDARY_DIVISION", ("4",), "`divides` is mixed up with `is smaller`, or with sharing a factor")
_NEGATIVE = Why("BOUNDARY_NEGATIVE", ("D7", "4"), "a huge negative size wraps around, or -1 means `all ranks`")
_DTYPE = Why("BOUNDARY_DTYPE", ("D6", "D8"), "one dtype is a special case: fp32 counts as unset, fp16 as bf16")


def boundaries() -> Iterator[tuple[Why, Inputs]]:
    """Give each boundary input with why it exists. Some are also the witness of a class."""
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
    """Give one input for each row that starts AutoTP, rows 3, 4, 6, 7, 8, 9 and 11, and its alias for row 3."""
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


def _off_by_one() -> Iterator[tuple[Why, Inputs]]:
    for size in (2**24 + 1, HUGE):  # where floats of 32 and of 64 bits have no next integer, or soon will not
        other = size - 1
        yield _FLOAT, Inputs(size, Call(size, DType.BF16), Section(other))
        yield _FLOAT, Inputs(size, None, Section(size, other))
        yield _FLOAT, Inputs(size, Call(size, DType.BF16, Group(1, other)))
        yield _FLOAT, Inputs(size, None, Section(size), mpu=Mpu(Group(1, other)))
        yield _FLOAT, Inputs(size, None, Section(other))
        yield _FLOAT, Inputs(other, None, Section(size))


def _divisions() -> Iterator[tuple[Why, Inputs]]:
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
