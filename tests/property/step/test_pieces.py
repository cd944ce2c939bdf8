"""The finite computations of pieces and layouts, compared with lists of indices: what they return, and on what they
raise.
"""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from property.step.step_arrays import indices
from tpinit.step.layouts import is_partition, normal_axis, sums_once, uniform, whole_index
from tpinit.step.parts import _split
from tpinit.step.pieces import Pieces, covers_once, joined, length_of, merged, normal, shifted, taken

RUNS = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 4)), max_size=4).map(tuple)


@given(RUNS)
def test_normal_runs_have_the_same_indices(runs: Pieces) -> None:
    found = normal(runs)
    assert indices(found) == indices(runs)
    assert all(length > 0 for _, length in found)
    assert all(offset + length != after for (offset, length), (after, _) in itertools.pairwise(found))
    assert length_of(runs) == len(indices(runs))


@given(RUNS, RUNS)
def test_equal_indices_have_one_normal_form(one: Pieces, other: Pieces) -> None:
    assert (normal(one) == normal(other)) == (indices(one) == indices(other))


@given(RUNS, st.integers(0, 5))
def test_shifted_runs(runs: Pieces, by: int) -> None:
    assert indices(shifted(runs, by)) == [index + by for index in indices(runs)]


@given(RUNS, st.integers(0, 12), st.integers(0, 12))
def test_taken_runs(runs: Pieces, start: int, length: int) -> None:
    assert indices(taken(runs, start, length)) == indices(runs)[start : start + length]


@given(st.lists(RUNS, max_size=3))
def test_joined_runs(parts: list[Pieces]) -> None:
    assert indices(joined(parts)) == [index for part in parts for index in indices(part)]


def _dimension(size: int) -> st.SearchStrategy[Pieces]:
    run = st.integers(0, size - 1).flatmap(lambda low: st.tuples(st.just(low), st.integers(1, size - low)))
    return st.lists(run, max_size=3).map(normal)


DIMENSIONS = st.lists(
    st.integers(1, 4).flatmap(
        lambda size: st.tuples(st.just(size), st.one_of(st.just(((0, size),)), _dimension(size)))
    ),
    min_size=1,
    max_size=3,
)


@given(DIMENSIONS)
def test_merged_runs_are_row_major(parts: list[tuple[int, Pieces]]) -> None:
    expected = []
    for index in itertools.product(*(indices(pieces) for _, pieces in parts)):
        number = 0
        for (size, _), place in zip(parts, index, strict=True):
            number = number * size + place
        expected.append(number)
    assert indices(merged(parts)) == expected


@given(DIMENSIONS)
def test_a_split_dimension_is_one_that_merges_to_it(parts: list[tuple[int, Pieces]]) -> None:
    together = merged(parts)
    found = _split(together, [size for size, _ in parts])
    once = all(len(set(indices(pieces))) == len(indices(pieces)) for _, pieces in parts)
    if once and all(pieces for _, pieces in parts):
        assert found is not None
    if found is not None:
        assert indices(merged([(size, own) for (size, _), own in zip(parts, found, strict=True)])) == indices(together)


AXES = st.integers(1, 3).flatmap(
    lambda size: st.tuples(st.just(size), st.tuples(_dimension(size), _dimension(size), _dimension(size)))
)


@given(st.integers(1, 5), st.lists(RUNS, min_size=1, max_size=3))
def test_ranks_cover_a_dimension_once(size: int, ranks: list[Pieces]) -> None:
    held = sorted(index for pieces in ranks for index in indices(pieces))
    nonempty = [normal(pieces) for pieces in ranks]
    assert covers_once(size, nonempty) == (held == list(range(size)))


@given(st.lists(AXES, max_size=2), st.lists(AXES, max_size=2))
def test_sums_are_once(
    out: list[tuple[int, tuple[Pieces, ...]]], reduced: list[tuple[int, tuple[Pieces, ...]]]
) -> None:
    cells = list(itertools.product(*(range(size) for size, _ in (*out, *reduced))))
    held = [list(itertools.product(*(indices(pieces[rank]) for _, pieces in (*out, *reduced)))) for rank in range(3)]
    expected = all(sum(own.count(cell) for own in held) == 1 for cell in cells)
    assert sums_once(out, reduced, 3) == expected


@given(AXES, AXES)
def test_a_partition_holds_each_element_once(
    one: tuple[int, tuple[Pieces, ...]], other: tuple[int, tuple[Pieces, ...]]
) -> None:
    index = (normal_axis(*one), normal_axis(*other))
    held = [
        cell
        for rank in range(3)
        for cell in itertools.product(
            *(
                range(size) if pieces is None else indices(pieces[rank])
                for (size, _), pieces in zip((one, other), index, strict=True)
            )
        )
    ]
    whole = sorted(itertools.product(range(one[0]), range(other[0])))
    assert is_partition(index, (one[0], other[0]), 3) == (sorted(held) == whole)


@given(AXES)
def test_ranks_with_equal_pieces_are_uniform(axis: tuple[int, tuple[Pieces, ...]]) -> None:
    size, ranks = axis
    index = (normal_axis(size, ranks),)
    assert uniform(index) == (len({tuple(indices(pieces)) for pieces in ranks}) == 1)
    assert (index == whole_index(1)) == all(indices(pieces) == list(range(size)) for pieces in ranks)
