"""How the matrices of one region may lie over the ranks: whole heads, fused parts, single features.

A layout says for each column matrix which of its output features, and for the row matrices which of their
input features, a rank holds. The shapes allow several; which of them is right, the rehearsal tells.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tpinit.runtime.shards import aligned_shard, pieces, shard

__all__ = [
    "HeadSharding",
    "Pieces",
    "RegionSharding",
    "ShardMap",
    "head_shardings",
    "feature_shardings",
    "respects_blocks",
    "per_head_shard_map",
    "legal_sizes",
]

Pieces = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class ShardMap:
    """How one dimension lies over the ranks: `ranks[r]` are the (offset, length) of what rank r holds, in order.

    `unit` and `blocks` say the same in short where they can (see `shards.pieces`), else `unit` is 0. `shared`
    says that some of it is held by more than one rank.
    """

    slices: tuple[Pieces, ...]
    unit: int = 0
    fused_sizes: tuple[int, ...] = ()
    overlaps: bool = False


@dataclass(frozen=True, slots=True)
class HeadSharding:
    """Attention heads: how many there are, and how many key/value heads they share; and what each rank has."""

    num_heads: int
    num_kv_heads: int
    slices: tuple[tuple[tuple[int, int], tuple[int, int]], ...]

    def local(self, rank: int) -> tuple[int, int]:
        """Return how many heads, and key/value heads, a rank has."""
        (_, heads), (_, kv_heads) = self.slices[rank]
        return heads, kv_heads


@dataclass(frozen=True, slots=True)
class RegionSharding:
    """One way to cut a region: the output features of each column matrix, the input features of the row ones."""

    columns: Mapping[str, ShardMap]
    row: ShardMap
    heads: HeadSharding | None = None


def feature_shardings(
    columns: Mapping[str, int],
    width: int,
    tp_size: int,
    blocks: Mapping[str, tuple[int, ...]] | None = None,
    row_blocks: tuple[int, ...] = (),
) -> Iterator[RegionSharding]:
    """Yield the layouts of a region without attention: `columns` gives output features, `width` the row's input.

    Features are cut one by one. A column of twice the width is two fused parts, one after the other or in turn.
    `blocks` and `row_blocks` are the parts that a source says are fused: a column has those of the row, once or
    more often.
    """
    if width < tp_size:
        return
    if row_blocks or any(len(one) > 1 for one in (blocks or {}).values()):
        base = row_blocks or (width,)
        told = {name: (blocks or {}).get(name, base) for name in columns}
        if all(one == base * (len(one) // len(base)) for one in told.values()):
            spreads = {name: _regular(one, 1, tp_size) for name, one in told.items()}
            yield RegionSharding(spreads, _regular(base, 1, tp_size))
        return
    row = _regular((width,), 1, tp_size)
    plain = {name: row for name, size in columns.items() if size == width}
    fused = [name for name, size in columns.items() if size == 2 * width]
    if len(plain) + len(fused) != len(columns):
        return
    yield RegionSharding({**plain, **{name: _regular((width, width), 1, tp_size) for name in fused}}, row)
    if fused:
        yield RegionSharding({**plain, **{name: _regular((2 * width,), 2, tp_size) for name in fused}}, row)


def head_shardings(
    columns: Mapping[str, int],
    width: int,
    numbers: Sequence[int],
    tp_size: int,
    blocks: Mapping[str, tuple[int, ...]] | None = None,
) -> Iterator[tuple[HeadSharding, RegionSharding]]:
    """Yield the layouts of an attention region. `numbers` are those among which its numbers of heads may be.

    Query, key and value may be matrices of their own, or fused: one after the other, or head by head, or
    group by group. Where there are fewer key/value heads than ranks, or they do not divide, several ranks may
    hold one. `blocks` are the parts that a source says are fused in a column, in order.
    """
    for count in dict.fromkeys(number for number in numbers if number > 0 and width % number == 0):
        for kv_count in dict.fromkeys([count, *(one for one in numbers if one > 0 and count % one == 0), 1]):
            heads = _heads_of(count, kv_count, tp_size)
            if heads is None:
                continue
            for found in _spreads(columns, width, heads, tp_size, blocks or {}):
                yield heads, RegionSharding(found, _spread(width // count, [(0, count, 0)], heads, tp_size), heads)


def legal_sizes(width: int, count: int, kv_count: int, largest: int) -> list[int]:
    """Return the TP sizes up to `largest` for which the heads of a region, or its features, can be cut."""
    if not count:
        return list(range(1, min(width, largest) + 1))
    return [size for size in range(1, largest + 1) if _heads_of(count, kv_count, size) is not None]


def _heads_of(count: int, kv_count: int, tp_size: int) -> HeadSharding | None:
    """Give each rank whole heads and the key/value heads that those read, each read by equally many; None if not."""
    group = count // kv_count
    if tp_size > count:
        return None
    if kv_count >= tp_size:
        kv = [shard(kv_count, tp_size, rank) for rank in range(tp_size)]
        return HeadSharding(
            count, kv_count, tuple(((begin * group, held * group), (begin, held)) for begin, held in kv)
        )
    even_shard_map = [shard(count, tp_size, rank) for rank in range(tp_size)]
    read = [(begin // group, (begin + held - 1) // group) for begin, held in even_shard_map]
    if all(first == last for first, last in read):
        return HeadSharding(
            count, kv_count, tuple((one, (kv[0], 1)) for one, kv in zip(even_shard_map, read, strict=True))
        )
    # Each key/value head gets ranks of its own, so that all heads of a rank read the same one.
    ranks = []
    for place in range(kv_count):
        _, helpers = shard(tp_size, kv_count, place)
        if helpers > group:
            return None
        for index in range(helpers):
            begin, held = shard(group, helpers, index)
            ranks.append(((place * group + begin, held), (place, 1)))
    return HeadSharding(count, kv_count, tuple(ranks))


def respects_blocks(spread: ShardMap, blocks: Sequence[int], unit: int = 1) -> bool:
    """Tell whether each rank holds one piece of each fused block, in whole units: what a source says of a cut."""
    for held in spread.slices:
        if any(offset % unit or length % unit for offset, length in held):
            return False
        start = 0
        for length in blocks:
            inside = [
                (max(offset, start), min(offset + taken, start + length))
                for offset, taken in held
                if offset < start + length and offset + taken > start
            ]
            if not inside or any(end != begin for (_, end), (begin, _) in itertools.pairwise(inside)):
                return False
            start += length
    return True


def _spreads(
    columns: Mapping[str, int],
    width: int,
    heads: HeadSharding,
    tp_size: int,
    blocks: Mapping[str, tuple[int, ...]],
) -> Iterator[dict[str, ShardMap]]:
    count, kv_count = heads.num_heads, heads.num_kv_heads
    size = width // count
    group = count // kv_count
    if any(len(one) > 1 for one in blocks.values()):
        told = {name: _told(blocks.get(name, (features,)), width, heads) for name, features in columns.items()}
        found = {name: spread for name, spread in told.items() if spread is not None}
        if len(found) == len(told):
            yield found
        return
    if set(columns.values()) == {width + 2 * kv_count * size}:
        # Fused: one matrix, or that and what adapts it.
        ways = [(size, [(0, count, 0), (count, kv_count, 1), (count + kv_count, kv_count, 1)])]
        ways.insert(0 if group == 1 else 1, ((group + 2) * size, [(0, kv_count, 1)]))
        for unit, parts in ways:
            yield dict.fromkeys(columns, _spread(unit, parts, heads, tp_size))
        return
    found = {}
    for name, features in columns.items():
        if features == width or (features != kv_count * size and features % count == 0):
            found[name] = _spread(features // count, [(0, count, 0)], heads, tp_size)
        elif features % kv_count == 0:
            found[name] = _spread(features // kv_count, [(0, kv_count, 1)], heads, tp_size)
        else:
            return
    yield found


def per_head_shard_map(size: int, heads: HeadSharding, tp_size: int) -> ShardMap:
    """Return how what there is one of for each head, or each key/value head, lies: `size` says which."""
    which = 0 if size == heads.num_heads else 1
    return _spread(1, [(0, size, which)], heads, tp_size)


def _told(blocks: Sequence[int], width: int, heads: HeadSharding) -> ShardMap | None:
    """Give each rank its heads of every block that a source says is fused; None where one does not hold heads."""
    count, kv_count = heads.num_heads, heads.num_kv_heads
    size = width // count
    parts = []
    for length in blocks:
        if length == width or (length != kv_count * size and length % count == 0):
            parts.append((count, 0, length // count))
        elif length % kv_count == 0:
            parts.append((kv_count, 1, length // kv_count))
        else:
            return None
    ranks = []
    for held in heads.slices:
        start, found = 0, []
        for (_, which, unit), length in zip(parts, blocks, strict=True):
            first, taken = held[which]
            found.append((start + first * unit, taken * unit))
            start += length
        ranks.append(tuple(found))
    covered = sum(length for held in ranks for _, length in held)
    return ShardMap(tuple(ranks), overlaps=covered > sum(blocks))


def _spread(unit: int, blocks: Sequence[tuple[int, int, int]], heads: HeadSharding, tp_size: int) -> ShardMap:
    """Give each rank its heads of each block: (first head, heads, 0 for heads and 1 for key/value heads)."""
    ranks = []
    for held in heads.slices:
        found = []
        for begin, _, which in blocks:
            first, length = held[which]
            found.append(((begin + first) * unit, length * unit))
        ranks.append(tuple(found))
    total = sum(count for _, count, _ in blocks) * unit
    covered = sum(length for held in ranks for _, length in held)
    lengths = tuple(count * unit for _, count, _ in blocks)
    group = heads.num_heads // heads.num_kv_heads
    for width in (unit, unit * group):
        if all(length % width == 0 for length in lengths):
            short = tuple(pieces(lengths, width, tp_size, rank) for rank in range(tp_size))
            if short == tuple(ranks):
                return ShardMap(short, width, lengths if len(lengths) > 1 else ())
    return ShardMap(tuple(ranks), overlaps=covered > total)


def _regular(blocks: tuple[int, ...], unit: int, tp_size: int) -> ShardMap:
    ranks = tuple(pieces(blocks, unit, tp_size, rank) for rank in range(tp_size))
    return ShardMap(ranks, unit, blocks if len(blocks) > 1 else ())


def even_shard_map(length: int, tp_size: int, unit: int = 1) -> ShardMap:
    """Cut one dimension in units, the first ranks one longer where it does not divide."""
    ranks = tuple((aligned_shard(length, unit, tp_size, rank),) for rank in range(tp_size))
    return ShardMap(ranks, unit)
