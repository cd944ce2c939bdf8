"""Buckets hold every item once, in order, of one dtype, and no more elements than one collective should send."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from tpinit.runtime.groups.buckets import fill_buckets, in_buckets, send_order
from tpinit.runtime.groups.gradient_owners import GradientOwners

LIMIT = 1 << 25
ITEMS = st.lists(st.tuples(st.integers(0, 2 * LIMIT), st.sampled_from("ab")))


@given(ITEMS)
def test_buckets_are_the_items_cut_where_the_dtype_or_the_size_demands_it(items: list[tuple[int, str]]) -> None:
    buckets = list(in_buckets(items, lambda item: item[0], lambda item: item[1]))
    assert [item for bucket in buckets for item in bucket] == items
    for bucket in buckets:
        assert len({dtype for _, dtype in bucket}) == 1
        assert len(bucket) == 1 or sum(size for size, _ in bucket) <= LIMIT
    for before, after in pairwise(buckets):
        full = sum(size for size, _ in before) + after[0][0] > LIMIT
        assert full or before[0][1] != after[0][1], "these two could be one"


def test_one_item_may_be_larger_than_a_bucket() -> None:
    assert list(in_buckets([1, LIMIT + 1, 1], int)) == [[1], [LIMIT + 1], [1]]


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from("ab"))), st.integers(1, 12))
def test_filled_buckets_hold_every_item_once_in_order_by_kind(items: list[tuple[int, str]], limit: int) -> None:
    numbered = [(*item, number) for number, item in enumerate(items)]
    buckets = fill_buckets(numbered, lambda item: item[0], lambda item: item[1], limit)
    for kind in "ab":
        of_kind = [bucket for bucket in buckets if bucket[0][1] == kind]
        assert [item for bucket in of_kind for item in bucket] == [item for item in numbered if item[1] == kind]
        for before, after in pairwise(of_kind):
            assert sum(size for size, *_ in before) + after[0][0] > limit, "these two could be one"
    for bucket in buckets:
        assert len(bucket) == 1 or sum(size for size, *_ in bucket) <= limit
    assert sum(map(len, buckets)) == len(items)


def test_buckets_come_in_the_order_in_which_they_are_full() -> None:
    items = [(1, "a"), (1, "b"), (1, "b"), (1, "b"), (1, "a"), (1, "a")]
    buckets = fill_buckets(items, lambda item: item[0], lambda item: item[1], 2)
    assert [(bucket[0][1], len(bucket)) for bucket in buckets] == [("b", 2), ("a", 2), ("b", 1), ("a", 1)]


def test_gradients_are_sent_from_the_last_parameter_to_the_first_and_some_at_the_end() -> None:
    assert send_order([3, 0, 5, 1], []) == [5, 3, 1, 0]
    assert send_order([3, 0, 5, 1], [5, 1, 7]) == [3, 0, 5, 1]
    assert send_order([2], [2]) == [2]


def test_a_parameter_goes_to_the_rank_with_the_fewest_elements_once() -> None:
    owners = GradientOwners([5, 3, 1, 4, 2, 9], 2, 1)
    owners.assign([3, 1, 0, 1])
    assert owners.owners == {0: 0, 1: 1, 3: 1}
    owners.assign([0, 2, 4])
    assert owners.owners == {0: 0, 1: 1, 3: 1, 2: 0, 4: 0}
    assert [index for index in range(6) if owners.is_mine(index)] == [1, 3]
    many = GradientOwners([1] * 9, 2, 0)
    many.assign([8, 1])  # of a set, 8 may come first
    assert many.owners == {1: 0, 8: 1}
    other = GradientOwners([5, 3], 2, 0)
    assert other.is_mine(1), "the first rank has what nobody owns yet"
    other.assign([0, 1])
    assert (other.is_mine(0), other.is_mine(1)) == (True, False)
