"""The optimizer as a person uses it, beside the unsharded model: loops by hand, master copies, clipping, states."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.distributed

SCENARIO = "scenarios.optimizer_loop"
FP32 = {"adamw": 1e-3, "momentum": 1e-5, "muon": 5e-2, "adafactor": 1e-5}  # of the weights; Muon amplifies rounding


@pytest.mark.parametrize("name", sorted(FP32))
def test_a_loop_by_hand_is_that_of_the_unsharded_model(world2: Any, name: str) -> None:
    for result in world2.run(f"{SCENARIO}:by_hand", name=name):
        assert result["loss"] < (1e-6 if name != "muon" else 1e-3)
        assert result["gradient"] < (1e-4 if name != "muon" else 5e-2)
        assert result["weight"] < FP32[name]
        assert (result["steps"], result["in_step"]) == (4, True)


@pytest.mark.parametrize("name", sorted(FP32))
def test_a_loop_by_hand_in_bf16_is_the_engines_to_the_bit(world2: Any, name: str) -> None:
    """And the engine's is compared with the unsharded model in test_bf16."""
    for result in world2.run(f"{SCENARIO}:hand_and_engine", name=name):
        assert result == {"equal": True, "moved": True, "losses": True, "in_step": True}


@pytest.mark.parametrize("clip", ["torch", "engine", "inf", "3", "value"])
def test_gradients_are_clipped_by_the_norm_of_the_whole_model(world2: Any, clip: str) -> None:
    """Replicated weights, shared key/value heads and gradients that are addends are among them."""
    for result in world2.run(f"{SCENARIO}:by_hand", name="momentum", parallel=True, clip=clip):
        assert result["norm"] < 1e-5
        assert result["loss"] < 1e-6
        assert result["gradient"] < 1e-4
        assert result["weight"] < 1e-5


def test_master_copies_follow_what_a_person_does_to_the_parameters(world2: Any) -> None:
    for result in world2.run(f"{SCENARIO}:masters"):
        assert result["gradient"] < 5e-2
        assert (result["dtype"], result["own"]) == ("torch.bfloat16", True)
        assert result["zeroed"] == 0
        assert 0.45 < result["mean"] < 0.55
        assert result["loaded"] < 1e-4
        assert all(text.startswith("EngineError") for text in result["refused"])
        assert result["in_step"]


@pytest.mark.parametrize("way", ["engine", "hand"])
@pytest.mark.parametrize("name", sorted(FP32))
def test_a_state_dict_resumes_to_the_bit(world2: Any, name: str, way: str) -> None:
    for result in world2.run(f"{SCENARIO}:resume", name=name, way=way):
        assert result == {"equal": True, "in_step": True}


def test_without_its_master_copies_a_state_dict_resumes_elsewhere(world2: Any) -> None:
    for result in world2.run(f"{SCENARIO}:resume", name="adamw", drop="master_param"):
        assert result == {"equal": False, "in_step": True}


def test_master_copies_that_ignore_edits_undo_them(world2: Any) -> None:
    for result in world2.run(f"{SCENARIO}:masters", adopt=False):
        assert abs(result["mean"]) < 0.05
        assert result["loaded"] > 0.1
