"""Section 6, item 9, by the second semantics: the functions of `shards`, translated.

L is a length, N the number of shards, I the index of a shard, U a unit. `pieces` is proven for any number of blocks, by
induction over its loop.
"""

from __future__ import annotations

import z3
from tpinit.proofs.translation.deciding import Translated, translated_theorem
from tpinit.proofs.translation.ranks import unbounded
from tpinit.proofs.translation.translator import Translator
from tpinit.proofs.translation.values import Indexed, Items, Value
from tpinit.runtime import shards

_L, _N, _I, _J, _U, _UNITS = z3.Ints("length parts index other unit units")
_DIMENSION = z3.And(_L >= 0, _N >= 1)
_SHARD = z3.And(_DIMENSION, _I >= 0, _I < _N)
_ALIGNED = z3.And(_SHARD, _U >= 1)
_BEGINS, _HOLDS = z3.Function("shard_begins", *[z3.IntSort()] * 4), z3.Function("shard_holds", *[z3.IntSort()] * 4)


def _pair(value: Value) -> tuple[z3.ArithRef, z3.ArithRef]:
    (_, offset), (_, held) = value.items
    return offset, held


@translated_theorem(
    "6.9",
    shards,
    ("(1 if index < length % parts else 0)", "(1 if index <= length % parts else 0)"),
    ("shard_offset", "shard_length", "shard"),
)
def translated_shards_tile(t: Translator) -> Translated:
    """For every length and every number of shards: the first shard begins at 0, each ends where the next begins, the
    last ends at the length, none has a negative length, and `shard` is its offset and its length.
    """
    begin, held = _pair(t.call("shard", _L, _N, _I))
    last = z3.And(t.call("shard_offset", _L, _N, _N) == _L)
    return Translated(
        _SHARD,
        [
            ("begins at 0", t.call("shard_offset", _L, _N, z3.IntVal(0)) == 0),
            ("ends where the next begins", begin + held == t.call("shard_offset", _L, _N, _I + 1)),
            ("ends at the length", last),
            ("is not negative", held >= 0),
            ("its offset", begin == t.call("shard_offset", _L, _N, _I)),
            ("its length", held == t.call("shard_length", _L, _N, _I)),
        ],
    )


@translated_theorem("6.9", shards, ("return length // parts + (1", "return length // parts + (2"), ("shard_length",))
def translated_shards_are_balanced(t: Translator) -> Translated:
    """For every length and every number of shards, an earlier shard is at most one element longer than a later one, and
    never shorter.
    """
    one, other = t.call("shard_length", _L, _N, _I), t.call("shard_length", _L, _N, _J)
    return Translated(z3.And(_SHARD, _J > _I, _J < _N), [("at most 1", z3.And(one >= other, one - other <= 1))])


@translated_theorem(
    "6.9", shards, ("(offset + held) * unit, length)", "offset * unit + held, length)"), ("aligned_shard",)
)
def translated_aligned_shards_tile(t: Translator) -> Translated:
    """For every length and every unit, whether it divides the length or not: the first aligned shard begins at 0, each
    ends where the next begins, the last ends at the length, none has a negative length, and each begins at a multiple
    of the unit or at the length. The proof uses of `shard` only that its shards tile.
    """
    t.summaries = {
        "shard": lambda length, parts, index: Items.of(_BEGINS(length, parts, index), _HOLDS(length, parts, index))
    }
    units = (_L + _U - 1) / _U

    def begins(index: z3.ArithRef) -> z3.ArithRef:
        return _BEGINS(units, _N, index)

    tiled = z3.And(
        begins(z3.IntVal(0)) == 0,
        begins(_I) >= 0,
        _HOLDS(units, _N, _I) >= 0,
        begins(_I) + _HOLDS(units, _N, _I) == begins(_I + 1),
        begins(_N - 1) + _HOLDS(units, _N, _N - 1) == units,
    )
    first = _pair(t.call("aligned_shard", _L, _U, _N, z3.IntVal(0)))
    (begin, held), (after, _) = (_pair(t.call("aligned_shard", _L, _U, _N, index)) for index in (_I, _I + 1))
    last = _pair(t.call("aligned_shard", _L, _U, _N, _N - 1))
    return Translated(
        z3.And(_ALIGNED, tiled),
        [
            ("begins at 0", first[0] == 0),
            ("ends where the next begins", begin + held == after),
            ("ends at the length", last[0] + last[1] == _L),
            ("is not negative", held >= 0),
            ("begins at a unit", z3.Or(begin == begins(_I) * _U, begin == _L)),
        ],
    )


_BLOCK, _START = z3.Function("block", z3.IntSort(), z3.IntSort()), z3.Function("start_of_block", *[z3.IntSort()] * 2)
_COUNT, _B = z3.Ints("number_of_blocks some_block")
_ALIGNED_BEGINS = z3.Function("aligned_begins", *[z3.IntSort()] * 5)
_ALIGNED_HOLDS = z3.Function("aligned_holds", *[z3.IntSort()] * 5)


@translated_theorem(
    "6.9", shards, ("found.append((start + offset, held))", "found.append((offset, held))"), ("pieces",)
)
def translated_pieces_of_any_number_of_blocks(t: Translator) -> Translated:
    """For any number of fused blocks of any lengths, `pieces` holds one piece for each block, in order: the aligned
    shard of that block, moved by the lengths of all earlier blocks. So the pieces tile each block, as aligned shards
    do, and writing each piece back to its offset restores the dimension. By induction over the loop.
    """

    def aligned(*arguments: Value) -> Value:
        return Items.of(_ALIGNED_BEGINS(*arguments), _ALIGNED_HOLDS(*arguments))

    t.summaries = {"aligned_shard": aligned}
    t.invariants = {"start": lambda index: _START(index)}
    found = unbounded(t.call("pieces", Indexed(_COUNT, lambda index: _BLOCK(index)), _U, _N, _I))
    offset, held = _pair(found.at(_B))
    begin, length = _pair(aligned(_BLOCK(_B), _U, _N, _I))
    each = z3.Int("each_block")
    sums = z3.ForAll([each], _START(each + 1) == _START(each) + _BLOCK(each), patterns=[_BLOCK(each)])
    inside = z3.And(_COUNT >= 1, _B >= 0, _B < _COUNT, _U >= 1, _N >= 1, _I >= 0, _I < _N)
    return Translated(
        z3.And(inside, _START(0) == 0, sums),
        [
            ("one for each block", found.length == _COUNT),
            ("its offset", offset == _START(_B) + begin),
            ("its length", held == length),
        ],
    )
