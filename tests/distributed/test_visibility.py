"""What the runtime sees of a user's loss functions and hooks."""

from __future__ import annotations

from typing import Any


def test_a_users_loss_is_computed_from_all_logits(world2: Any) -> None:
    for gaps in world2.run("scenarios.visibility:compare_losses"):
        assert set(gaps) == {"own", "before", "after", "patched", "after and removed"}
        assert max(gaps.values()) < 1e-4, gaps


def test_hooks_on_whole_modules_see_and_change_what_they_do_without_sharding(world2: Any) -> None:
    for gaps in world2.run("scenarios.visibility:compare_hooks"):
        assert len(gaps) == 5
        assert max(gaps.values()) < 1e-4, gaps
