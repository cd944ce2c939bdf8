"""Drawn inputs for the comparison: well-typed, of every kind that the contract distinguishes, sizes without bound."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from types import MappingProxyType
from typing import TypeVar

from tpinit.spec.vocabulary import Call, DType, Group, Inputs, Mpu, Section

__all__ = ["draw_inputs"]

T = TypeVar("T")

# Small ones, and some beyond every machine integer.
_BASES = (1, 2, 3, 4, 8, 48271, 2**63, 2**64 + 1, 10**40)
_ODD = (0, -1, 1, 2, 5, -(2**70))


def draw_inputs(seed: int, count: int) -> Iterator[Inputs]:
    """Draw well-typed inputs; the same seed gives the same ones.

    Most sizes of one input are equal, as in a config that someone means to work; the others are 0, negative, or
    another size, so that each violation occurs alone and with others. Groups come from three identities, and equal
    groups have handles of their own.
    """
    random = Random(seed)
    for _ in range(count):
        yield _input(random)


def _input(random: Random) -> Inputs:
    base = random.choice(_BASES)
    alike = random.choice((0.6, 0.9, 1.0))
    sizes = {identity: base if random.random() < alike else random.choice((1, 2, 6)) for identity in (1, 2, 3)}
    favourite, dtype = random.choice((1, 2, 3)), random.choice(tuple(DType))

    def size() -> int:
        return base if random.random() < alike else random.choice(_ODD)

    def kind() -> DType:
        return dtype if random.random() < alike else random.choice(tuple(DType))

    def group() -> Group:
        identity = favourite if random.random() < alike else random.choice((1, 2, 3))
        return Group(identity, sizes[identity], object())

    def maybe(chance: float, value: T) -> T | None:
        return value if random.random() < chance else None

    carried = MappingProxyType({"token": f"c{random.randrange(1000)}"})
    autotp_size = 0 if random.random() < 0.1 else size()
    section = Section(maybe(0.6, autotp_size), maybe(0.3, size()), maybe(0.4, kind()), maybe(0.3, group()), carried)
    return Inputs(
        base * random.randrange(1, 5) if random.random() < 0.7 else random.randrange(1, 99),
        maybe(0.5, Call(size(), kind(), maybe(0.4, group()))),
        maybe(0.7, section),
        maybe(0.3, kind()),
        maybe(0.3, Mpu(group(), maybe(0.5, Group(9, random.randrange(1, 9))))),
        maybe(0.3, group()),
    )
