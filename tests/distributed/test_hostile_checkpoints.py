"""A checkpoint that can't be trusted is refused on all ranks by one text, and nothing of it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.distributed


def test_every_damage_is_one_error_on_all_ranks_and_loads_nothing(world2: Any, tmp_path: Path) -> None:
    first, second = world2.run("scenarios.hostile_checkpoints:load_damaged", folder=str(tmp_path), timeout=150)
    assert first["found"] == second["found"]
    for name, (kind, text, changed) in first["found"].items():
        assert kind == "CheckpointError", f"{name}: {kind} {text}"
        assert 0 < len(text) < 700, f"{name}: {text}"
        assert "\n" not in text, f"{name}: {text}"
        assert changed == [], name
    assert not first["ran"]
    assert first["whole"]
    assert first["in_step"]


def test_a_checkpoint_of_another_run_is_refused(world2: Any, tmp_path: Path) -> None:
    for result in world2.run("scenarios.hostile_checkpoints:load_foreign", folder=str(tmp_path), timeout=150):
        for name, (kind, text, changed) in result["found"].items():
            assert kind == "CheckpointError", f"{name}: {text}"
            assert changed == [], name
        assert "mlp.gate_proj.weight has shape (48, 32) in it, and (64, 32) here" in result["found"]["model"][1]
        assert "is not in it" in result["found"]["layers"][1]
        assert "float32 in it, and torch.bfloat16 here" in result["found"]["dtype"][1]
        assert "load_optimizer_states=False" in result["found"]["optimizer"][1]
        assert result["nothing"] == (None, {})
        assert result["absent"] == [
            ("CheckpointError", f"{tmp_path} has no checkpoint 'two': it has one"),
            ("CheckpointError", f"{tmp_path}/x has no checkpoint 'two': it has no checkpoint"),
        ]
        assert result["path"] == str(tmp_path / "one")
        assert result["tags"]["type"] == "CheckpointError"
        assert "client_state.model is a transformers" in result["client"]["text"]
        assert "can't be the name of a checkpoint" in result["tag"]["text"]
        assert result["names"] == ["latest", "one"]
        assert result["equal"]
        assert result["in_step"]
