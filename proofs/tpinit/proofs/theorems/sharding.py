"""Section 6, item 9: the shipped shard arithmetic, for every dimension and every number of shards.

All integers are unbounded. L is a length, N the number of shards, I the index of a shard, U a unit.
"""

from __future__ import annotations

from typing import Any

import z3
from tpinit.proofs.integers import Lemma, lemma_theorem, summarised, term
from tpinit.proofs.symbolic import SymbolicInt
from tpinit.runtime import shards

_L, _N, _I, _J, _U, _UNITS = z3.Ints("length parts index other unit units")
_DIMENSION = z3.And(_L >= 0, _N >= 1)
_SHARD = z3.And(_DIMENSION, _I >= 0, _I < _N)
_ALIGNED = z3.And(_L >= 0, _U >= 1, _UNITS == (_L + _U - 1) / _U, _N >= 1, _I >= 0, _I < _N)

_length, _parts, _index, _other, _unit = map(SymbolicInt, (_L, _N, _I, _J, _U))


@lemma_theorem(
    "6.9",
    shards,
    control=("(1 if index < length % parts else 0)", "(1 if index <= length % parts else 0)"),
    proves=("shard", "shard_offset"),
)
def shards_tile_the_dimension(m: Any) -> list[Lemma]:
    """For every length and every number of shards, whether it divides the length or not: the first shard begins at 0,
    each shard ends where the next begins, the last ends at the length, and no shard has a negative length. So there is
    no gap and no overlap.
    """
    return [
        Lemma("begins at 0", _DIMENSION, lambda: term(m.shard_offset(_length, _parts, 0)) == 0),
        Lemma("ends at the length", _DIMENSION, lambda: term(m.shard_offset(_length, _parts, _parts)) == _L),
        Lemma(
            "ends where the next begins",
            _SHARD,
            lambda: _end(m.shard(_length, _parts, _index)) == term(m.shard_offset(_length, _parts, _index + 1)),
        ),
        Lemma("is not negative", _SHARD, lambda: term(m.shard(_length, _parts, _index)[1]) >= 0),
    ]


def _end(shard: tuple[object, object]) -> z3.ArithRef:
    return term(shard[0]) + term(shard[1])


@lemma_theorem("6.9", shards, control=("index * (length // parts) + (index", "index * (length // parts) - (index"))
def every_position_has_one_shard(m: Any) -> list[Lemma]:
    """For every length, every number of shards and any two different shards, the earlier shard ends at or before the
    offset of the later one: no position is in two shards.
    """

    def apart() -> z3.BoolRef:
        return _end(m.shard(_length, _parts, _index)) <= term(m.shard(_length, _parts, _other)[0])

    return [Lemma("apart", z3.And(_SHARD, _J > _I, _J < _N), apart)]


@lemma_theorem(
    "6.9", shards, control=("return length // parts + (1", "return length // parts + (2"), proves=("shard_length",)
)
def shards_are_balanced(m: Any) -> list[Lemma]:
    """For every length and every number of shards, the lengths of two shards differ by at most 1, the longer shards
    come first, and all lengths are equal where the number of shards divides the length.
    """

    def lengths() -> tuple[z3.ArithRef, z3.ArithRef]:
        return term(m.shard_length(_length, _parts, _index)), term(m.shard_length(_length, _parts, _other))

    def at_most_one() -> z3.BoolRef:
        one, other = lengths()
        return z3.And(one >= other, one - other <= 1)

    def equal() -> z3.BoolRef:
        one, other = lengths()
        return one == other

    later = z3.And(_SHARD, _J > _I, _J < _N)
    return [Lemma("at most 1", later, at_most_one), Lemma("equal", z3.And(later, _L % _N == 0), equal)]


# Uninterpreted functions that replace `shard` and `aligned_shard` in later proofs, with the properties proven of these.
_INTS3, _INTS4 = [z3.IntSort()] * 4, [z3.IntSort()] * 5
_BEGINS, _HOLDS = z3.Function("shard_begins", *_INTS3), z3.Function("shard_holds", *_INTS3)
_ALIGNED_BEGINS, _ALIGNED_HOLDS = z3.Function("aligned_begins", *_INTS4), z3.Function("aligned_holds", *_INTS4)


def _tiles(begins: z3.FuncDeclRef, holds: z3.FuncDeclRef, length: z3.ArithRef, *front: z3.ArithRef) -> z3.BoolRef:
    """State that the shards tile: they begin at 0, have no gap after index I, end at the length, none is negative."""
    ends = begins(*front, _N - 1) + holds(*front, _N - 1)
    goes_on = begins(*front, _I) + holds(*front, _I) == begins(*front, _I + 1)
    return z3.And(begins(*front, 0) == 0, goes_on, ends == length, holds(*front, _I) >= 0)


@lemma_theorem(
    "6.9",
    shards,
    control=("(offset + held) * unit, length)", "offset * unit + held, length)"),
    proves=("aligned_shard",),
)
def aligned_shards_keep_units_whole(m: Any) -> list[Lemma]:
    """For every length and every unit (the size of a head), whether it divides the length or not, an aligned shard is
    the shard of the number of units, multiplied by the unit and cut at the length: it begins at a multiple of the unit
    or at the length, begins where the previous shard ends, and the shards cover 0 to the length. The proof uses of
    `shard` only that its shards tile.
    """

    def shard(index: object) -> Any:
        with summarised(m, "shard", _BEGINS, _HOLDS):
            return m.aligned_shard(_length, _unit, _parts, index)

    def is_shard_of_units() -> z3.BoolRef:
        begin, held = shard(_index)
        begins, holds = _BEGINS(_UNITS, _N, _I), _HOLDS(_UNITS, _N, _I)
        return z3.And(term(begin) == _cut(begins * _U), _end((begin, held)) == _cut((begins + holds) * _U))

    tiled = z3.And(_ALIGNED, _BEGINS(_UNITS, _N, _I) >= 0, _tiles(_BEGINS, _HOLDS, _UNITS, _UNITS, _N))
    return [
        Lemma("the shard of the units", _ALIGNED, is_shard_of_units),
        Lemma("begins at 0", tiled, lambda: term(shard(0)[0]) == 0),
        Lemma("ends where the next begins", tiled, lambda: _end(shard(_index)) == term(shard(_index + 1)[0])),
        Lemma("ends at the length", tiled, lambda: _end(shard(_parts - 1)) == _L),
        Lemma("is not negative", tiled, lambda: term(shard(_index)[1]) >= 0),
    ]


def _cut(position: z3.ArithRef) -> z3.ArithRef:
    return z3.If(position < _L, position, _L)


_BLOCKS = z3.Ints("block_1 block_2 block_3")


@lemma_theorem(
    "6.9",
    shards,
    control=("start = start + length", "start = start + held"),
    proves=("pieces",),
    bound="at most three fused blocks; `translated_pieces_of_any_number_of_blocks` has no such bound",
)
def fused_pieces_are_inverted_by_gather(m: Any) -> list[Lemma]:
    """For one, two and three fused blocks of any lengths and any unit, the pieces of each block tile that block. So the
    pieces of all shards are a permutation of the dimension, and writing each piece back to its offset restores the
    unsharded dimension. The number of blocks is a bound of this theorem. The proof uses of `aligned_shard` only that
    its shards tile.
    """
    lemmas = []
    for count in (1, 2, 3):
        for block in range(count):
            lemmas += _tiling_of_block(m, count, block)
    return lemmas


def _tiling_of_block(m: Any, count: int, block: int) -> list[Lemma]:
    lengths = [SymbolicInt(each) for each in _BLOCKS[:count]]
    tiled = (_tiles(_ALIGNED_BEGINS, _ALIGNED_HOLDS, size, size, _U, _N) for size in _BLOCKS[:count])
    given = z3.And(_N >= 1, _I >= 0, _I < _N, _U >= 1, *(size >= 0 for size in _BLOCKS[:count]), *tiled)
    begin = sum(_BLOCKS[:block], z3.IntVal(0))
    name = f"block {block + 1} of {count}"

    def piece(index: object) -> Any:
        with summarised(m, "aligned_shard", _ALIGNED_BEGINS, _ALIGNED_HOLDS):
            found = m.pieces(lengths, _unit, _parts, index)
        return found[block] if len(found) == count else (0, -1)

    return [
        Lemma(f"{name} begins", given, lambda: term(piece(0)[0]) == begin),
        Lemma(
            f"{name} goes on",
            given,
            lambda: z3.And(_end(piece(_index)) == term(piece(_index + 1)[0]), term(piece(_index)[1]) >= 0),
        ),
        Lemma(f"{name} ends", given, lambda: _end(piece(_parts - 1)) == begin + _BLOCKS[block]),
    ]
