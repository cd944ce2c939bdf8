"""How heads and features may lie over ranks: whole heads, nothing lost, nothing twice that is not shared."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tpinit.runtime.planning.partition.shard_maps import (
    RegionSharding,
    ShardMap,
    even_shard_map,
    feature_shardings,
    head_shardings,
    legal_sizes,
)


def places(spread: ShardMap) -> list[list[int]]:
    return [[place for begin, length in held for place in range(begin, begin + length)] for held in spread.slices]


def layouts(count: int, kv_count: int, size: int, tp_size: int) -> Iterator[RegionSharding]:
    columns = {"q": count * size, "k": kv_count * size, "v": kv_count * size}
    for heads, layout in head_shardings(columns, count * size, [count, kv_count], tp_size):
        if (heads.num_heads, heads.num_kv_heads) == (count, kv_count):
            yield layout


@pytest.mark.parametrize("tp_size", range(1, 33))
def test_heads_of_every_number_over_every_number_of_ranks(tp_size: int) -> None:
    """Every number of ranks up to 32, those of usual machines among them, over the heads of usual models and others."""
    for kv_count in (1, 2, 3, 4, 5, 8, 16, 32):
        for group in (1, 2, 3, 4, 5, 8, 16):
            check_heads(kv_count, group, 1, tp_size)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.integers(1, 9))
def test_every_head_is_on_one_rank_and_its_key_value_head_with_it(
    kv_count: int, group: int, size: int, tp_size: int
) -> None:
    check_heads(kv_count, group, size, tp_size)


def check_heads(kv_count: int, group: int, size: int, tp_size: int) -> None:
    count = kv_count * group
    found = next(layouts(count, kv_count, size, tp_size), None)
    if found is None:
        # Refused only where there are fewer heads than ranks, or a key/value head has fewer heads than helpers.
        assert tp_size > count or (tp_size > kv_count and -(-tp_size // kv_count) > group)
        return
    queries, keys = places(found.columns["q"]), places(found.columns["k"])
    assert places(found.row) == queries
    assert sorted(place for held in queries for place in held) == list(range(count * size))
    assert {place for held in keys for place in held} == set(range(kv_count * size))
    for mine, read in zip(queries, keys, strict=True):
        assert mine, "every rank is busy"
        heads = sorted({place // size for place in mine})
        assert len(mine) == len(heads) * size
        assert sorted({head // group for head in heads}) == sorted({place // size for place in read})
        # Each key/value head on a rank is read by equally many of its heads: a block repeats them evenly.
        readers = [sum(head // group == kv for head in heads) for kv in sorted({place // size for place in read})]
        assert len(set(readers)) == 1
    assert found.columns["k"].overlaps == (sum(map(len, keys)) > kv_count * size)


@given(st.integers(1, 40), st.integers(1, 9))
def test_features_are_cut_evenly(width: int, tp_size: int) -> None:
    found = list(feature_shardings({"gate": width, "up": width, "fused": 2 * width}, width, tp_size))
    assert bool(found) == (width >= tp_size)
    for layout in found:
        row = places(layout.row)
        assert sorted(place for held in row for place in held) == list(range(width))
        assert max(map(len, row)) - min(map(len, row)) <= 1
        assert places(layout.columns["gate"]) == row
    for layout, both in zip(found, (lambda one: [one, one + width], lambda one: [2 * one, 2 * one + 1]), strict=False):
        for mine, fused in zip(places(layout.row), places(layout.columns["fused"]), strict=True):
            assert sorted(fused) == sorted(place for one in mine for place in both(one))


def test_a_column_of_another_width_is_not_cut() -> None:
    assert list(feature_shardings({"up": 10, "gate": 11}, 10, 2)) == []


@pytest.mark.parametrize(
    ("count", "kv_count", "expected"),
    [(8, 8, [1, 2, 3, 4, 5, 6, 7, 8]), (8, 1, [1, 2, 3, 4, 5, 6, 7, 8]), (8, 2, [1, 2, 3, 4, 5, 6, 7, 8])],
)
def test_legal_sizes_are_those_that_give_every_rank_a_head(count: int, kv_count: int, expected: list[int]) -> None:
    assert legal_sizes(64, count, kv_count, 12) == expected


def test_fused_blocks_come_head_by_head_or_one_after_the_other() -> None:
    found = [layout.columns["qkv"] for _, layout in head_shardings({"qkv": 24}, 8, [4], 2) if layout.columns]
    assert ((0, 12),) in [spread.slices[0] for spread in found]
    assert ((0, 4), (8, 4), (16, 4)) in [spread.slices[0] for spread in found]


def test_even_takes_units() -> None:
    assert even_shard_map(10, 2, 5).slices == (((0, 5),), ((5, 5),))
