"""What the runtime sees of a user's loss functions and hooks."""

from __future__ import annotations

from typing import Any


def test_a_users_loss_is_computed_from_all_logits(world2: Any) -> None:
    for gaps in world2.run("scenarios.visibility:compare_losses"):
        assert set(gaps) == {"own", "compiled", "before", "after", "patched", "after and removed"}
        assert max(gaps.values()) < 1e-4, gaps


def test_hooks_on_whole_modules_see_and_change_what_they_do_without_sharding(world2: Any) -> None:
    for gaps in world2.run("scenarios.visibility:compare_hooks"):
        assert len(gaps) == 5
        assert max(gaps.values()) < 1e-4, gaps


def test_a_forward_can_not_read_a_sharded_weight(world2: Any) -> None:
    for results in world2.run("scenarios.visibility:read_weights_in_a_forward"):
        assert results.pop("outside")
        assert abs(results.pop("metadata")) < 1e-6
        assert set(results) == {"mlp", "bare", "data", "item", "embedding"}
        for name, error in results.items():
            weight = "model.embed_tokens.weight" if name == "embedding" else "model.layers.0.mlp.up_proj.weight"
            assert error is not None, name
            assert "EngineError" in str(error), name
            assert f"{weight} is sharded" in str(error), name
