"""Buckets hold every item once, in order, of one dtype, and no more elements than one collective should send."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from tpinit.runtime.groups.buckets import in_buckets

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
