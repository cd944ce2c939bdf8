"""Averaging over data-parallel ranks as the config asks, and what rank 0 logs of a config."""

from __future__ import annotations

from typing import Any

import pytest

EXACT = 1e-6
CONFIGS: list[dict[str, Any]] = [
    {},
    {"prescale_gradients": True},
    {"gradient_predivide_factor": 2.0},
    {"gradient_predivide_factor": 3.0},
    {"communication_data_type": "fp32"},
    {"communication_data_type": "bf16"},
    {"communication_data_type": "fp16", "prescale_gradients": True},
    {"communication_data_type": "bf16", "gradient_predivide_factor": 3.0},
]


def test_gradients_are_averaged_in_the_order_and_dtype_of_the_config(world2: Any) -> None:
    for found in world2.run("scenarios.averaging:gradients", configs=CONFIGS):
        for config, differences in zip(CONFIGS, found, strict=True):
            low = config.get("communication_data_type") in ("bf16", "fp16")
            bound = 2e-3 if low and "gradient_predivide_factor" in config else EXACT
            assert differences["formula"] < bound, (config, differences)
            # The negative control: an all-reduce of low precision is not the mean in fp32.
            assert (differences["mean"] > 10 * EXACT) == low, (config, differences)


def test_gradients_are_summed_where_the_config_asks(world2: Any) -> None:
    assert world2.run("scenarios.averaging:sums") == pytest.approx([0, 0], abs=EXACT)


def test_rank_0_logs_what_a_config_has_and_the_run_does_otherwise(world2: Any) -> None:
    first, second = world2.run("scenarios.averaging:logged")
    assert second == []
    assert [level for level, _ in first] == ["WARNING", "WARNING", "INFO"]
    text = "\n".join(line for _, line in first)
    for words in ("no monitor is written", "4 = 1 x 4 x 1", "4 = 1 x 2 x 2", "ZeRO has nothing to shard"):
        assert words in text


def test_a_model_averages_without_its_engine_and_is_freed_when_nobody_holds_it(world2: Any) -> None:
    for found in world2.run("scenarios.averaging:let_go"):
        assert found["gap"] < EXACT
        assert found["parameters"] > 10
        assert found["held"] == 0


def test_a_sharded_model_is_freed_when_nobody_holds_it(world2: Any) -> None:
    assert world2.run("scenarios.averaging:freed") == [[], []]
