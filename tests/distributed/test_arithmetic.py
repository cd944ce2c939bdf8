"""Groups and shards as integers, and that they need no torch."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
from tpinit.runtime import shards
from tpinit.runtime.groups import topology

WORLDS = [(world, tp) for world in range(1, 13) for tp in range(1, world + 1) if world % tp == 0]


@pytest.mark.parametrize(("world", "tp"), WORLDS)
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


@pytest.mark.parametrize("length", [0, 1, 5, 12, 64, 1000003])
@pytest.mark.parametrize("parts", [1, 2, 3, 7, 64])
def test_shards_tile_the_dimension(length: int, parts: int) -> None:
    held = [shards.shard(length, parts, index) for index in range(parts)]
    assert held[0][0] == 0
    assert all(first + size == second for (first, size), (second, _) in pairwise(held))
    assert sum(held[-1]) == length == shards.shard_offset(length, parts, parts)
    assert max(size for _, size in held) - min(size for _, size in held) <= 1


def test_the_arithmetic_and_the_package_import_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import tpinit.runtime, tpinit.runtime.groups.topology, tpinit.runtime.shards\n"
        "assert 'initialize' in dir(tpinit.runtime)\n"
        "try: tpinit.runtime.initialize\n"
        "except ImportError: print('torch is asked for on use')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout.strip() == "torch is asked for on use", result.stderr
