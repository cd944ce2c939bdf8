"""The integer arithmetic of groups and shards against definitions that count one by one."""

import pytest
from tpinit.runtime import shards
from tpinit.runtime.groups import topology

WORLDS = [(world, size) for world in range(1, 9) for size in range(1, world + 1) if world % size == 0]


@pytest.mark.parametrize(("world", "size"), WORLDS)
def test_created_groups_are_runs_of_neighbours_and_cross_once(world, size):
    ranks = list(range(world))
    runs = [tuple(ranks[start : start + size]) for start in range(0, world, size)]
    strides = [tuple(ranks[start::size]) for start in range(size)]
    assert topology.tp_groups(world, size) == tuple(runs)
    assert topology.dp_groups(world, size) == tuple(strides)
    assert topology.orthogonal_groups(runs) == tuple(strides)
    assert topology.dp_size(world, size) == len(runs)
    assert topology.partitions(runs, world)
    assert topology.partitions(strides, world)
    assert topology.crosses_once(runs, strides)
    for index, run in enumerate(runs):
        assert topology.tp_group(index, size) == run
        for position, rank in enumerate(run):
            assert (topology.dp_rank(rank, size), topology.tp_rank(rank, size)) == (index, position)
            assert topology.rank_at(index, position, size) == rank
    for position, stride in enumerate(strides):
        assert topology.dp_group(position, world, size) == stride


@pytest.mark.parametrize("groups", [[(0, 1)], [(0, 1), (1, 2)], [(0, 1), (2, 3), (3,)], [(1, 2), (3, 4)], []])
def test_what_is_no_partition(groups):
    assert not topology.partitions(groups, 4)


def test_a_partition_may_be_in_any_order():
    assert topology.partitions([(3, 0), (2, 1)], 4)


@pytest.mark.parametrize(
    ("tp_groups", "dp_groups"),
    [
        ([(0, 1), (2, 3)], [(0, 1), (2, 3)]),  # two in common, or none
        ([(0, 1), (2, 3)], [(0, 2), (1, 3)]),
        ([(0, 1), (2, 3)], [(0, 2), (0, 1)]),  # one in common, two, one, none
        ([(0, 1)], [(0, 1)]),
        ([(0, 1)], [(2, 3)]),
    ],
)
def test_what_does_not_cross_once(tp_groups, dp_groups):
    crossings = [sum(rank in other for rank in one) for one in tp_groups for other in dp_groups]
    assert topology.crosses_once(tp_groups, dp_groups) == (set(crossings) == {1})


def test_groups_of_different_sizes_have_none_that_cross_them():
    with pytest.raises(ValueError, match="zip"):
        topology.orthogonal_groups([(0, 1, 2), (3, 4)])


def dealt(length, parts):
    """Lengths of the shards, dealt out one position at a time."""
    held = [0] * parts
    for position in range(length):
        held[position % parts] += 1
    return held


@pytest.mark.parametrize("parts", range(1, 7))
@pytest.mark.parametrize("length", range(14))
def test_shards_are_dealt_out_in_order(length, parts):
    held = dealt(length, parts)
    for index in range(parts):
        offset = sum(held[:index])
        assert shards.shard_length(length, parts, index) == held[index]
        assert shards.shard_offset(length, parts, index) == offset
        assert shards.shard(length, parts, index) == (offset, held[index])
    assert shards.shard_offset(length, parts, parts) == length


@pytest.mark.parametrize("parts", range(1, 5))
@pytest.mark.parametrize("unit", [1, 2, 3])
@pytest.mark.parametrize("units", range(6))
def test_aligned_shards_are_whole_units(units, unit, parts):
    held = dealt(units, parts)
    for index in range(parts):
        expected = sum(held[:index]) * unit, held[index] * unit
        assert shards.aligned_shard(units * unit, unit, parts, index) == expected


@pytest.mark.parametrize("blocks", [(4,), (4, 4), (8, 2, 2), (6, 10), (0, 4), ()])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_pieces_of_fused_blocks_are_put_back_by_their_offsets(blocks, parts):
    unit = 2
    whole = [(block, position) for block, length in enumerate(blocks) for position in range(length)]
    back = [None] * len(whole)
    for index in range(parts):
        found = shards.pieces(blocks, unit, parts, index)
        assert [held for _, held in found] == [dealt(length // unit, parts)[index] * unit for length in blocks]
        for block, (offset, held) in enumerate(found):
            for position in range(offset, offset + held):
                assert back[position] is None
                assert whole[position][0] == block
                back[position] = whole[position]
    assert back == whole
