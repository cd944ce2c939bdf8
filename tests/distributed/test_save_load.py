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


UNEVEN: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 50}
FUSED: dict[str, Any] = {"family": "phi3"}
SHARED: dict[str, Any] = {"num_key_value_heads": 2}  # fewer than 3 or 4 ranks: several hold the same ones

# (what, saved over worlds of (ranks, tp), loaded over (ranks, tp), options)
TOPOLOGIES = [
    ("tp 2 to tp 4, uneven", (2, 2), (4, 4), UNEVEN),
    ("tp 4 to tp 2, shared heads", (4, 4), (2, 2), SHARED),
    ("dp 2 x tp 2 to tp 2, bf16", (4, 2), (2, 2), {"dtype": "bf16"}),
    ("tp 2 to dp 2 x tp 2, fused", (2, 2), (4, 2), FUSED),
    ("dp 4 x tp 1 to tp 4, momentum", (4, 1), (4, 4), {"maker": "sgd"}),
    ("tp 2 to dp 2 x tp 1, Adafactor", (2, 2), (2, 1), {"maker": "adafactor"}),
]


@pytest.mark.parametrize(("name", "saved", "loaded", "options"), TOPOLOGIES, ids=[case[0] for case in TOPOLOGIES])
def test_other_ranks_go_on_within_rounding(
    worlds: Any, tmp_path: Path, name: str, saved: Any, loaded: Any, options: Any
) -> None:
    (size, tp), (later_size, later_tp) = saved, loaded
    before = worlds[size].run("scenarios.save_load:begin", folder=str(tmp_path), tp=tp, **options)
    after = worlds[later_size].run("scenarios.save_load:go_on", folder=str(tmp_path), tp=later_tp, **options)
    tolerance = 2e-2 if options.get("dtype") == "bf16" else 1e-5
    for result in after:
        assert result["steps"] == 3
        assert result["losses"] == pytest.approx(before[0]["losses"], rel=tolerance)
        assert result["norm"] == pytest.approx(before[0]["norm"], rel=10 * tolerance)
        assert result["in_step"]


def test_three_ranks_go_on_with_what_two_saved(world2: Any, world3: Any, tmp_path: Path) -> None:
    """8 heads over 3 ranks, of which some share key/value heads."""
    before = world2.run("scenarios.save_load:begin", folder=str(tmp_path), tp=2)
    middle = world3.run("scenarios.save_load:go_on", folder=str(tmp_path), tp=3)
    again = tmp_path / "again"
    between = world3.run("scenarios.save_load:begin", folder=str(again), tp=3)
    after = world2.run("scenarios.save_load:go_on", folder=str(again), tp=2)
    assert middle[0]["losses"] == pytest.approx(before[0]["losses"], rel=1e-5)
    assert after[0]["losses"] == pytest.approx(between[0]["losses"], rel=1e-5)


def test_torch_reads_the_same_tensors(world2: Any, tmp_path: Path) -> None:
    assert world2.run("scenarios.save_load:read_plainly", folder=str(tmp_path), tp=2) == [[], []]
