"""DeepSpeed's names for the whole weights of a sharded model give those of the unsharded one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.distributed


def test_the_consolidated_state_dict_is_that_of_the_unsharded_model(world3: Any, tmp_path: Path) -> None:
    for result in world3.run("scenarios.whole_weights:consolidate", folder=str(tmp_path)):
        assert result["state"]
        assert result["frozen"]
        assert result["own"]
        assert result["saved"] == (True, True)
        assert result["read"]
        assert result["failed"].startswith("CheckpointError: ")
        assert result["loaded"]
        assert result["names"] == ["file", "model.safetensors", "pytorch_model.bin"]
        assert result["in_step"]


def test_gathered_parameters_are_whole_and_their_edits_are_cut(world2: Any) -> None:
    for result in world2.run("scenarios.whole_weights:gathered"):
        whole, local, after = result["shapes"]
        assert whole == (65, 32)
        assert local == after != whole
        assert result["edited"]
        assert result["norm"]
        assert result["unread"]
        assert result["masters"]
        assert result["disabled"]
        assert "shape was" in result["refused"]
        assert "modifier_rank is 9" in result["rank"]
        assert result["in_step"]


def test_a_written_directory_has_the_tokenizer_and_the_defaults_of_generation(world2: Any, tmp_path: Path) -> None:
    for rank, result in enumerate(world2.run("scenarios.whole_weights:exported", folder=str(tmp_path))):
        assert result["generates"]
        assert result["weights"] == {"sharded": True, "given": True, "of rank 0": True}
        assert result["defaults"] == [24, 24, 24, 24]
        assert result["tokenizers"] == [result["tokenizers"][0]] * 4
        assert result["missing"] == []
        assert result["equal"]
        assert result["written"] == [rank == 0, rank == 0, True]  # a model that is read from a pickle has no engine
        assert [error["type"] for error in result["errors"]] == ["CheckpointError", "EngineError"]
        assert "save_16bit_model" in result["errors"][1]["text"]
        assert result["in_step"]
