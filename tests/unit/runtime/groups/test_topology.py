"""The arithmetic of groups, against definitions that count one by one."""

import pytest
from tpinit.runtime.groups import topology

WORLDS = [(world, size) for world in range(1, 9) for size in range(1, world + 1) if world % size == 0]
LARGER_WORLDS = [(world, tp) for world in range(1, 13) for tp in range(1, world + 1) if world % tp == 0]


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


@pytest.mark.parametrize(("world", "tp"), LARGER_WORLDS)
def test_created_groups_partition_and_cross_once(world: int, tp: int) -> None:
    tp_groups, dp_groups = topology.tp_groups(world, tp), topology.dp_groups(world, tp)
    assert topology.partitions(tp_groups, world)
    assert topology.partitions(dp_groups, world)
    assert topology.crosses_once(tp_groups, dp_groups)
    assert topology.orthogonal_groups(tp_groups) == dp_groups
    for rank in range(world):
        place = topology.dp_rank(rank, tp), topology.tp_rank(rank, tp)
        assert topology.rank_at(*place, tp) == rank
        assert tp_groups[place[0]][place[1]] == rank == dp_groups[place[1]][place[0]]


def test_what_is_no_partition_or_does_not_cross() -> None:
    assert not topology.partitions([(0, 1), (1, 2)], 4)
    assert not topology.partitions([(0, 1)], 4)
    assert not topology.crosses_once([(0, 1), (2, 3)], [(0, 1), (2, 3)])
    assert topology.orthogonal_groups([(0, 3), (1, 2)]) == ((0, 1), (3, 2))
