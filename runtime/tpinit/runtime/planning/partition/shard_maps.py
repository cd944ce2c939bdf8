"""Shard maps: which output features of the column layers and input features of the row layers each rank may hold.

The sizes of a region's layers allow several shardings: whole heads, fused parts, single features. This module
yields them all, the likeliest first; the dry run finds the one that is right.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tpinit.runtime.planning.schema import Cut
from tpinit.runtime.shards import aligned_shard, pieces, shard
from tpinit.runtime.slicing import Pieces

__all__ = [
    "HeadSharding",
    "Placement",
    "RegionSharding",
    "ShardMap",
    "even_shard_map",
    "feature_shardings",
    "head_shardings",
    "legal_sizes",
    "per_head_shard_map",
    "respects_fused_sizes",
]

_HEADS, _KV_HEADS = 0, 1  # indices into an element of HeadSharding.slices


@dataclass(frozen=True, slots=True)
class ShardMap:
    """How one dimension is distributed over the ranks: `slices[r]` lists the (offset, length) that rank r holds.

    If `unit` is not 0, `unit` and `fused_sizes` describe the same slices as `shards.pieces` does: each fused part is
    sharded on its own in whole units. `overlaps`: two ranks hold the same element.
    """

    slices: tuple[Pieces, ...]
    unit: int = 0
    fused_sizes: tuple[int, ...] = ()
    overlaps: bool = False


@dataclass(frozen=True, slots=True)
class Placement:
    """How a parameter is sharded: the kind of cut, the dimension, and the slices of the ranks."""

    cut: Cut
    dim: int
    shard_map: ShardMap


@dataclass(frozen=True, slots=True)
class HeadSharding:
    """How attention heads are distributed over the ranks.

    `num_heads` query heads share `num_kv_heads` key/value heads. `slices[r]` is the (offset, length) of rank r's
    query heads, and that of its key/value heads; two ranks may hold the same key/value head.
    """

    num_heads: int
    num_kv_heads: int
    slices: tuple[tuple[tuple[int, int], tuple[int, int]], ...]

    def local(self, rank: int) -> tuple[int, int]:
        """Return how many query heads and how many key/value heads a rank holds."""
        (_, heads), (_, kv_heads) = self.slices[rank]
        return heads, kv_heads


@dataclass(frozen=True, slots=True)
class RegionSharding:
    """One way to shard a region: the output features of each column layer, and the input features of its row layers.

    `heads` is None for a region without attention.
    """

    columns: Mapping[str, ShardMap]
    row: ShardMap
    heads: HeadSharding | None = None


def feature_shardings(
    columns: Mapping[str, int],
    width: int,
    tp_size: int,
    fused_sizes: Mapping[str, tuple[int, ...]] | None = None,
    row_fused_sizes: tuple[int, ...] = (),
) -> Iterator[RegionSharding]:
    """Yield the shardings of a region without attention, by single features.

    `columns` are the output features of the column layers, `width` the input features of the row layers. A column
    layer with `2 * width` features is two fused parts, one after the other or interleaved. If `fused_sizes` or
    `row_fused_sizes` name the lengths of fused parts, only shardings of these are yielded; a column layer then
    has the parts of the row layers once or several times.
    """
    if width < tp_size:
        return
    if row_fused_sizes or any(len(sizes) > 1 for sizes in (fused_sizes or {}).values()):
        row_sizes = row_fused_sizes or (width,)
        requested = {name: (fused_sizes or {}).get(name, row_sizes) for name in columns}
        if all(sizes == row_sizes * (len(sizes) // len(row_sizes)) for sizes in requested.values()):
            shard_maps = {name: _fused_shard_map(sizes, 1, tp_size) for name, sizes in requested.items()}
            yield RegionSharding(shard_maps, _fused_shard_map(row_sizes, 1, tp_size))
        return
    row = _fused_shard_map((width,), 1, tp_size)
    single = {name: row for name, features in columns.items() if features == width}
    double = [name for name, features in columns.items() if features == 2 * width]
    if len(single) + len(double) != len(columns):
        return
    yield RegionSharding({**single, **dict.fromkeys(double, _fused_shard_map((width, width), 1, tp_size))}, row)
    if double:
        yield RegionSharding({**single, **dict.fromkeys(double, _fused_shard_map((2 * width,), 2, tp_size))}, row)


def head_shardings(
    columns: Mapping[str, int],
    width: int,
    head_counts: Sequence[int],
    tp_size: int,
    fused_sizes: Mapping[str, tuple[int, ...]] | None = None,
) -> Iterator[tuple[HeadSharding, RegionSharding]]:
    """Yield the shardings of an attention region, by whole heads.

    `columns` are the output features of the column layers, `width` the input features of the row layers, and
    `head_counts` the numbers that may count heads or key/value heads, the likeliest first. Query, key and value are
    column layers of their own, or fused: one after the other, or interleaved by key/value head. `fused_sizes` names
    the lengths of fused parts, in order. If there are fewer key/value heads than ranks, or their number does not
    divide, several ranks may hold the same one.
    """
    for num_heads in dict.fromkeys(count for count in head_counts if count > 0 and width % count == 0):
        divisors = [count for count in head_counts if count > 0 and num_heads % count == 0]
        for num_kv_heads in dict.fromkeys([num_heads, *divisors, 1]):
            heads = _shard_heads(num_heads, num_kv_heads, tp_size)
            if heads is None:
                continue
            row = _per_head_shard_map(width // num_heads, [(0, num_heads, _HEADS)], heads, tp_size)
            for shard_maps in _column_shard_maps(columns, width, heads, tp_size, fused_sizes or {}):
                yield heads, RegionSharding(shard_maps, row, heads)


def legal_sizes(width: int, num_heads: int, num_kv_heads: int, largest: int) -> list[int]:
    """Return the TP sizes up to `largest` over which a region can be sharded.

    It has `num_heads` heads, or, if that is 0, no attention and `width` features.
    """
    if not num_heads:
        return list(range(1, min(width, largest) + 1))
    return [size for size in range(1, largest + 1) if _shard_heads(num_heads, num_kv_heads, size) is not None]


def _shard_heads(num_heads: int, num_kv_heads: int, tp_size: int) -> HeadSharding | None:
    """Give each rank whole heads, and the key/value heads that these read; None if there is no such sharding.

    On each rank, every key/value head is read by the same number of heads, because attention modules assume so.
    """
    group = num_heads // num_kv_heads
    if tp_size > num_heads:
        return None
    if num_kv_heads >= tp_size:
        kv_slices = [shard(num_kv_heads, tp_size, rank) for rank in range(tp_size)]
        slices = tuple(((begin * group, length * group), (begin, length)) for begin, length in kv_slices)
        return HeadSharding(num_heads, num_kv_heads, slices)
    even_slices = [shard(num_heads, tp_size, rank) for rank in range(tp_size)]
    kv_read = [(begin // group, (begin + length - 1) // group) for begin, length in even_slices]
    if all(first == last for first, last in kv_read):
        slices = tuple((held, (kv_head, 1)) for held, (kv_head, _) in zip(even_slices, kv_read, strict=True))
        return HeadSharding(num_heads, num_kv_heads, slices)
    # In an even cut, heads of one rank would read two key/value heads: each of these gets ranks of its own instead.
    ranks: list[tuple[tuple[int, int], tuple[int, int]]] = []
    for kv_head in range(num_kv_heads):
        _, rank_count = shard(tp_size, num_kv_heads, kv_head)
        if rank_count > group:
            return None
        for index in range(rank_count):
            begin, length = shard(group, rank_count, index)
            ranks.append(((kv_head * group + begin, length), (kv_head, 1)))
    return HeadSharding(num_heads, num_kv_heads, tuple(ranks))


def respects_fused_sizes(shard_map: ShardMap, fused_sizes: Sequence[int], unit: int = 1) -> bool:
    """Return whether each rank holds one contiguous piece of each fused part, in whole units."""
    for held in shard_map.slices:
        if any(offset % unit or length % unit for offset, length in held):
            return False
        start = 0
        for size in fused_sizes:
            inside = [
                (max(offset, start), min(offset + length, start + size))
                for offset, length in held
                if offset < start + size and offset + length > start
            ]
            if not inside or any(end != begin for (_, end), (begin, _) in itertools.pairwise(inside)):
                return False
            start += size
    return True


def _column_shard_maps(
    columns: Mapping[str, int],
    width: int,
    heads: HeadSharding,
    tp_size: int,
    fused_sizes: Mapping[str, tuple[int, ...]],
) -> Iterator[dict[str, ShardMap]]:
    """Yield the shard maps of the column layers of an attention region, for one sharding of its heads."""
    num_heads, num_kv_heads = heads.num_heads, heads.num_kv_heads
    head_size = width // num_heads
    if any(len(sizes) > 1 for sizes in fused_sizes.values()):
        requested = {
            name: _requested_shard_map(fused_sizes.get(name, (features,)), width, heads)
            for name, features in columns.items()
        }
        fitting = {name: shard_map for name, shard_map in requested.items() if shard_map is not None}
        if len(fitting) == len(requested):
            yield fitting
        return
    if set(columns.values()) == {width + 2 * num_kv_heads * head_size}:
        # Query, key and value are fused in one layer; a second layer of this size is its adapter.
        for unit, runs in _fused_attention_ways(head_size, num_heads, num_kv_heads):
            yield dict.fromkeys(columns, _per_head_shard_map(unit, runs, heads, tp_size))
        return
    shard_maps = {}
    for name, features in columns.items():
        if features == width or (features != num_kv_heads * head_size and features % num_heads == 0):
            shard_maps[name] = _per_head_shard_map(features // num_heads, [(0, num_heads, _HEADS)], heads, tp_size)
        elif features % num_kv_heads == 0:
            runs = [(0, num_kv_heads, _KV_HEADS)]
            shard_maps[name] = _per_head_shard_map(features // num_kv_heads, runs, heads, tp_size)
        else:
            return
    yield shard_maps


def _fused_attention_ways(
    head_size: int, num_heads: int, num_kv_heads: int
) -> list[tuple[int, list[tuple[int, int, int]]]]:
    """Return the ways to fuse query, key and value, the likelier first, as arguments of `_per_head_shard_map`.

    One after the other, in units of a head; or interleaved, in units of a key/value head with its query heads.
    """
    group = num_heads // num_kv_heads
    in_sequence = [
        (0, num_heads, _HEADS),
        (num_heads, num_kv_heads, _KV_HEADS),
        (num_heads + num_kv_heads, num_kv_heads, _KV_HEADS),
    ]
    ways = [(head_size, in_sequence)]
    ways.insert(0 if group == 1 else 1, ((group + 2) * head_size, [(0, num_kv_heads, _KV_HEADS)]))
    return ways


def per_head_shard_map(size: int, heads: HeadSharding, tp_size: int) -> ShardMap:
    """Return the shard map of a dimension with one element for each head, or for each key/value head, by its `size`."""
    kind = _HEADS if size == heads.num_heads else _KV_HEADS
    return _per_head_shard_map(1, [(0, size, kind)], heads, tp_size)


def _requested_shard_map(fused_sizes: Sequence[int], width: int, heads: HeadSharding) -> ShardMap | None:
    """Give each rank its heads of every fused part; None if the size of one is not that of heads."""
    num_heads, num_kv_heads = heads.num_heads, heads.num_kv_heads
    head_size = width // num_heads
    parts = []  # (which heads, features of each)
    for size in fused_sizes:
        if size == width or (size != num_kv_heads * head_size and size % num_heads == 0):
            parts.append((_HEADS, size // num_heads))
        elif size % num_kv_heads == 0:
            parts.append((_KV_HEADS, size // num_kv_heads))
        else:
            return None
    slices = []
    for held in heads.slices:
        start, rank_pieces = 0, []
        for (kind, unit), size in zip(parts, fused_sizes, strict=True):
            first, count = held[kind]
            rank_pieces.append((start + first * unit, count * unit))
            start += size
        slices.append(tuple(rank_pieces))
    return ShardMap(tuple(slices), overlaps=_total_length(slices) > sum(fused_sizes))


def _per_head_shard_map(unit: int, runs: Sequence[tuple[int, int, int]], heads: HeadSharding, tp_size: int) -> ShardMap:
    """Return the shard map that gives each rank its heads of each run, with `unit` features for each head.

    A run is (index of its first head, number of heads, `_HEADS` or `_KV_HEADS`).
    """
    slices = []
    for held in heads.slices:
        rank_pieces = []
        for begin, _, kind in runs:
            first, count = held[kind]
            rank_pieces.append(((begin + first) * unit, count * unit))
        slices.append(tuple(rank_pieces))
    sizes = tuple(count * unit for _, count, _ in runs)
    group = heads.num_heads // heads.num_kv_heads
    for width in (unit, unit * group):
        if all(size % width == 0 for size in sizes):
            regular = tuple(pieces(sizes, width, tp_size, rank) for rank in range(tp_size))
            if regular == tuple(slices):
                return ShardMap(regular, width, sizes if len(sizes) > 1 else ())
    return ShardMap(tuple(slices), overlaps=_total_length(slices) > sum(sizes))


def _total_length(slices: Sequence[Pieces]) -> int:
    """Return the sum of the lengths on all ranks: more than the dimension's length if ranks hold the same elements."""
    return sum(length for held in slices for _, length in held)


def _fused_shard_map(sizes: tuple[int, ...], unit: int, tp_size: int) -> ShardMap:
    """Shard each fused part on its own, in whole units."""
    slices = tuple(pieces(sizes, unit, tp_size, rank) for rank in range(tp_size))
    return ShardMap(slices, unit, sizes if len(sizes) > 1 else ())


def even_shard_map(length: int, tp_size: int, unit: int = 1) -> ShardMap:
    """Shard one dimension in whole units; where their number does not divide, the first ranks hold one unit more."""
    slices = tuple((aligned_shard(length, unit, tp_size, rank),) for rank in range(tp_size))
    return ShardMap(slices, unit)
