"""State dicts of a sharded model and of its optimizer are parts that know their place, whole ones, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.distributed


def test_distributed_checkpoints_give_each_rank_its_own_part(world2: Any, tmp_path: Path) -> None:
    for result in world2.run("scenarios.state_dicts:distributed_checkpoints", folder=str(tmp_path)):
        assert max(result["gaps"].values()) < 1e-5, result["gaps"]
        assert min(result["strayed"]) > 0.1  # what is loaded into differs before
        assert len(result["gaps"]) == 8
        assert result["in_step"]


def test_torch_gets_and_sets_whole_models_and_files_are_parts_of_their_rank(world2: Any) -> None:
    for result in world2.run("scenarios.state_dicts:full_state_dicts"):
        assert result["keys"]
        assert max(result["gaps"].values()) < 1e-5, result["gaps"]
        assert result["types"] == {"Tensor"}
        assert "is the part of TP rank" in result["foreign"]
        assert result["assign"].startswith("EngineError: load_state_dict(assign=True)")
        assert "lm_head.weight has shape [3, 3]; legal are [64, 32]" in result["size"]
        assert result["inner"] < 1e-5
        assert result["in_step"]


def test_training_goes_on_from_saved_states_of_the_optimizer(world2: Any, tmp_path: Path) -> None:
    for result in world2.run("scenarios.state_dicts:optimizer_states", folder=str(tmp_path)):
        for name, losses in result["losses"].items():
            assert losses == pytest.approx(result["expected"], abs=1e-5), name
        assert result["strayed"] != pytest.approx(result["expected"], abs=1e-2)
        assert result["types"] == {"Tensor"}
        assert result["half"] == {"with masters": True, "without": False}
        assert result["in_step"]


def test_a_saved_model_passes_through_one_parameter_at_a_time(world2: Any, tmp_path: Path) -> None:
    for result in world2.run("scenarios.state_dicts:whole_files_are_streamed", folder=str(tmp_path)):
        assert 0 < result["peak"] <= 2 * result["largest"], result
        assert result["total"] > 10 * result["largest"]
        assert result["files"] > 1
        assert result["left"] == []
        assert result["gap"] < 1e-5
        assert result["counted"]
        assert result["file"].split(":")[0] in ("EngineError", "AgreementError")
        assert result["given"].startswith("EngineError")
        assert result["distributed"].startswith("EngineError")
        assert result["in_step"]
