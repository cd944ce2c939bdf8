"""Grouped-query attention over more ranks than key/value heads, also with a mask, which a dry run does not have."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(("heads", "kv_heads", "groups"), [(8, 2, (2, 2, 2, 2)), (9, 3, (2, 1, 3, 3))])
def test_padding_over_shared_key_value_heads(world4: Any, heads: int, kv_heads: int, groups: tuple[int, ...]) -> None:
    losses, attributes = world4.run("scenarios.grouped_heads:masked_losses", heads=heads, kv_heads=kv_heads)[0]
    assert attributes == (("num_key_value_groups", groups),)
    for sharded, whole in losses:
        assert sharded == pytest.approx(whole, rel=1e-5)
    assert losses[0][1] != losses[1][1]
