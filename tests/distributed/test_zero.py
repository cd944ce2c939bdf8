"""ZeRO's stages 1 and 2 over data-parallel ranks: stage 0's weights, each state on one rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

ADAM = {"type": "AdamW", "params": {"lr": 1e-2, "weight_decay": 0.1}}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "AdamW": (ADAM, {}),
    "AdamW in bf16": (ADAM, {"bf16": {"enabled": True}}),
    "SGD, predivided": (
        {"type": "SGD", "params": {"lr": 0.05, "momentum": 0.9}},
        {"gradient_predivide_factor": 2.0},
    ),
    "Muon": ({"type": "Muon", "params": {"lr": 0.01, "adam_lr": 1e-3}}, {}),
    "Lion": ({"type": "Lion", "params": {"lr": 1e-3}}, {}),
}


ROUNDING = {"fp32": 2e-6, "bf16": 8e-3}  # of weights below 1; one unit in the last place of bf16 is 4e-3


def check(results: list[Any], precision: str = "fp32") -> None:
    for result in results:
        assert result["in_step"]
        for stage, found in result["found"].items():
            # Stage 1 is equal to the bit. Stage 2 adds means of micro batches, stage 0 averages their sum.
            assert found["difference"] <= (0.0 if stage == "1" else ROUNDING[precision])
            assert found["norms"] <= (0.0 if stage == "1" else ROUNDING[precision])
            assert found["rates"]
            assert found["stage"] == int(stage)
            # Exactly one data-parallel rank of each TP position has the state of a parameter.
            assert all(holders and set(holders) == {1} for holders in found["holders"]), found["holders"]


@pytest.mark.parametrize("case", CASES)
def test_the_weights_are_those_of_stage_0(world2: Any, case: str) -> None:
    optimizer, extra = CASES[case]
    precision = "bf16" if "bf16" in extra else "fp32"
    check(world2.run("scenarios.zero:stages", tp_size=1, optimizer=optimizer, extra=extra), precision)


def test_the_weights_are_those_of_stage_0_beside_tensor_parallelism(world4: Any) -> None:
    check(world4.run("scenarios.zero:stages", tp_size=2, optimizer=ADAM, extra={}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_checkpoint_has_the_states_of_all_ranks(world2: Any, tmp_path: Path, precision: str) -> None:
    extra = {"bf16": {"enabled": True}} if precision == "bf16" else {}
    results = world2.run("scenarios.zero:resumed", folder=str(tmp_path / "run"), extra=extra)
    for result in results:
        assert result["equal"] == [True, True]
        trained_on, loaded, held, whole = result["stage 2"]
        assert trained_on <= ROUNDING[precision]
        assert loaded == 0
        assert 0 < held < whole
        assert result["dropped"]
        assert result["in_step"]
    first, second = (result["held"] for result in results)
    assert first[2] == second[2] == first[0] + second[0] == first[1] + second[1]


def test_parameters_that_are_added_later_get_an_owner(world2: Any) -> None:
    for result in world2.run("scenarios.zero:added"):
        assert result["equal"]
        assert result["calls"] == 2  # one broadcast for each rank


def test_an_optimizer_of_whole_tensors_is_refused_beside_tensor_parallelism(world4: Any) -> None:
    for error in world4.run("scenarios.zero:refused"):
        assert error["type"] == "UnsupportedError"
        assert "Adafactor" in error["text"]
        assert "stage 0" in error["text"]
