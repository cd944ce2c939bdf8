"""The arithmetic of shards, against a definition that deals positions out one by one."""

import subprocess
import sys
from itertools import pairwise

import pytest
from tpinit.runtime import shards


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


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
@pytest.mark.parametrize("unit", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("length", range(12))
def test_no_position_is_lost_where_a_unit_does_not_divide(length: int, unit: int, parts: int) -> None:
    held = [shards.pieces([length], unit, parts, index)[0] for index in range(parts)]
    assert [at for begin, size in held for at in range(begin, begin + size)] == list(range(length))
    assert all(begin % unit == 0 or begin == length for begin, _ in held)
