"""A run that is saved and loaded goes on as if it had not been interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.distributed

RUNS: dict[str, dict[str, Any]] = {
    "fp32 with dropout": {"dropout": 0.2},
    "bf16": {"dtype": "bf16", "dropout": 0.2},
    "fp16": {"dtype": "fp16"},
    "momentum": {"optimizer": {"type": "SGD", "params": {"lr": 0.05, "momentum": 0.9}}},
    "lora": {"lora": True},
    "tied": {"tie_word_embeddings": True},
}


@pytest.mark.parametrize("name", list(RUNS))
def test_three_updates_and_three_equal_six(world2: Any, tmp_path: Path, name: str) -> None:
    for result in world2.run("scenarios.save_load:three_and_three", folder=str(tmp_path), **RUNS[name]):
        assert result["path"] == result["latest"] == "global_step3"
        assert result["client"] == {"epoch": 3, "best": float("inf"), "names": ("a", "b")}
        assert result["loaded"] == []
        assert result["losses"] == [0.0] * 6
        assert result["different"] == []
        assert result["in_step"]


@pytest.mark.parametrize("without", ["optimizer", "rng", "all"])
def test_a_load_that_leaves_out_a_part_is_seen(world2: Any, tmp_path: Path, without: str) -> None:
    """The comparison above finds a run that goes on without the optimizer's state, the RNG states or anything else."""
    arguments = {"folder": str(tmp_path), "without": without, "dropout": 0.2}
    for result in world2.run("scenarios.save_load:three_and_three", **arguments):
        assert result["different"]
        assert result["losses"][3:] != [0.0] * 3
