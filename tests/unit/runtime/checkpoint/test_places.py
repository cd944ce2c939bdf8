"""Ranks write every element of a tensor once, whoever holds it."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from tpinit.runtime.checkpoint.places import Box, PlacedTensor, RankPlace, chosen_writes, overlap, uncovered
from tpinit.runtime.shards import pieces
from tpinit.runtime.slicing import local_part

PIECES = st.tuples(st.integers(0, 12), st.integers(1, 8))


@given(PIECES, st.lists(PIECES, max_size=4))
def test_what_is_uncovered_is_what_no_piece_covers(piece, taken):
    found = [index for offset, length in uncovered(*piece, taken) for index in range(offset, offset + length)]
    covered = {index for offset, length in taken for index in range(offset, offset + length)}
    assert found == [index for index in range(piece[0], sum(piece)) if index not in covered]


@given(st.integers(0, 9), st.integers(0, 9), st.integers(1, 6), st.integers(1, 6))
def test_an_overlap_is_the_common_elements(first, second, size, other):
    common = set(range(first, first + size)) & set(range(second, second + other))
    found = overlap(Box((0, first), (3, size)), Box((1, second), (1, other)))
    assert (set() if found is None else set(range(found.offsets[1], found.offsets[1] + found.sizes[1]))) == common
    assert found is None or (found.offsets[0], found.sizes[0]) == (1, 1)


def written(held, dim, shape, tp_size, replicas):
    """Return how often each element is written, and the values that are."""
    whole = torch.arange(float(torch.Size(shape).numel())).view(shape)
    counts, values, loads = torch.zeros(shape), torch.zeros(shape), []
    for replica in range(replicas):
        for tp_rank in range(tp_size):
            part = local_part(whole, _Record(shape, dim, held), tp_size, tp_rank)
            tensors = [PlacedTensor(f"model.{name}", part, shape, dim, held) for name in range(4)]
            writes = chosen_writes(tensors, RankPlace(tp_size, tp_rank, replicas, replica))
            loads.append(sum(write.box.count for write in writes))
            for write in writes:
                place = tuple(
                    slice(offset, offset + size)
                    for offset, size in zip(write.box.offsets, write.box.sizes, strict=True)
                )
                counts[place] += 1
                values[place] += write.values
    return counts, torch.equal(values, 4 * whole), loads


class _Record:
    def __init__(self, shape, dim, held):
        self.shape, self.dim, self._held = shape, dim, held

    def pieces_of(self, tp_size, tp_rank):
        return self._held[tp_rank]


@given(st.integers(1, 4), st.integers(1, 3), st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_fused_and_uneven_parts_are_written_once(tp_size, replicas, blocks):
    held = tuple(pieces(blocks, 1, tp_size, rank) for rank in range(tp_size))
    counts, equal, _ = written(held, 1, (2, sum(blocks)), tp_size, replicas)
    assert bool((counts == 4).all())
    assert equal


def test_elements_that_ranks_share_are_written_once_and_replicas_share_the_work():
    shared = (((0, 4),), ((0, 4),), ((2, 6),), ((4, 4),))
    counts, equal, loads = written(shared, 0, (8, 2), 4, 2)
    assert bool((counts == 4).all())
    assert equal
    assert loads[:4] == loads[4:]
    counts, equal, loads = written((), None, (8, 2), 2, 2)
    assert bool((counts == 4).all())
    assert equal
    assert loads == [16] * 4
