"""When the dynamic loss scale of fp16 changes: the update numbers, as DeepSpeed counts them."""

from __future__ import annotations

import pytest
from tpinit.runtime.errors import EngineError
from tpinit.runtime.settings import LossScaling
from tpinit.runtime.training.loss_scaler import LossScaler


def scales(settings: LossScaling, overflows: str) -> list[float]:
    """Return the scale after each update; `overflows` has an x for an overflow, a dot for none."""
    scaler = LossScaler(settings, active=True)
    found = []
    for update in overflows:
        scaler.update(update == "x")
        found.append(scaler.scale)
    return found


def test_the_first_doubling_comes_after_window_plus_one_updates_and_then_after_each_window() -> None:
    settings = LossScaling(initial_scale_power=3, loss_scale_window=2)
    assert scales(settings, ".......") == [8, 8, 16, 16, 32, 32, 64]
    assert scales(settings, "..x....")[2:] == [8, 8, 8, 16, 16]


def test_the_hysteresis_th_overflow_and_each_later_one_halve() -> None:
    assert scales(LossScaling(initial_scale_power=3, hysteresis=1), "xx") == [4, 2]
    assert scales(LossScaling(initial_scale_power=3, hysteresis=3), "xxxx") == [8, 8, 4, 2]
    assert scales(LossScaling(initial_scale_power=3, hysteresis=2), "x.x") == [8, 8, 4]
    consecutive = LossScaling(initial_scale_power=3, hysteresis=2, consecutive_hysteresis=True)
    assert scales(consecutive, "x.xx") == [8, 8, 8, 4]


def test_an_overflow_at_the_least_scale_ends_the_run() -> None:
    with pytest.raises(EngineError, match=r"loss scale 1\.0, and fp16\.min_loss_scale is 1\.0"):
        scales(LossScaling(initial_scale_power=0, hysteresis=1), "x")


def test_a_static_scale_and_an_inactive_one_never_change() -> None:
    assert scales(LossScaling(static=64.0, hysteresis=1), "x..x") == [64.0] * 4
    inactive = LossScaler(LossScaling(hysteresis=1, loss_scale_window=1), active=False)
    for overflow in (True, False, False):
        inactive.update(overflow)
    assert inactive.scale == 1.0
