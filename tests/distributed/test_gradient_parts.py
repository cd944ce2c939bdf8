"""What would take a part of a gradient or of a parameter for the whole is refused; all else runs as unsharded."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.distributed

SCENARIO = "scenarios.gradient_parts"


@pytest.mark.parametrize("bf16", [False, True])
def test_what_takes_a_part_of_a_gradient_for_the_whole_is_refused(world2: Any, bf16: bool) -> None:
    for result in world2.run(f"{SCENARIO}:by_hand", bf16=bf16):
        assert len(result["texts"]) == 15
        for name, text in result["texts"].items():
            assert text.startswith("EngineError: "), (name, text)
            assert ".weight: this rank has the part [" in text
            assert "engine.sum_over_parameters" in text
        assert result["unchanged"]
        assert result["kinds"] == {True}
        assert result["weight"] < (2e-2 if bf16 else 1e-5)
        assert result["in_step"]


def test_without_the_marks_the_ranks_would_compute_with_their_parts(world2: Any) -> None:
    for result in world2.run(f"{SCENARIO}:by_hand", bf16=False, marked=False):
        del result["texts"]["torch.autograd.grad"]  # it is marked elsewhere
        assert set(result["texts"].values()) == {""}
        assert not result["unchanged"]


def test_no_part_is_drawn_after_initialize(world2: Any) -> None:
    for result in world2.run(f"{SCENARIO}:draws"):
        assert len(result["texts"]) == 6
        for name, text in result["texts"].items():
            assert text.startswith("EngineError: torch.nn.init: model.layers.0.mlp.up_proj.weight is sharded"), name
            assert "GatheredParameters" in text
        assert result["unchanged"]
        assert set(result["legal"]) == {""}
        assert result["kept"]


def test_no_collective_mixes_the_parts_of_a_tp_group(world2: Any) -> None:
    for result in world2.run(f"{SCENARIO}:collectives"):
        assert len(result["texts"]) == 6
        for name, text in result["texts"].items():
            assert text.startswith("EngineError: torch.distributed."), (name, text)
            assert "engine.groups.dp.group" in text
        assert set(result["legal"]) == {""}
        assert result["unchanged"]
        assert result["parts"]
        assert result["in_step"]


def test_without_the_check_every_rank_would_have_one_part(world2: Any) -> None:
    for rank, result in enumerate(world2.run(f"{SCENARIO}:collectives", checked=False)):
        assert set(result["texts"].values()) == {""}
        assert not result["unchanged"]
        assert result["parts"] == (rank == 0)
