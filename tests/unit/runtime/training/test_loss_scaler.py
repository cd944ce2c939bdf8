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


def test_the_least_scale_is_reached_and_never_crossed() -> None:
    settings = LossScaling(initial_scale_power=3, hysteresis=1, min_loss_scale=3.0)
    assert scales(settings, "xx") == [4, 3]
    with pytest.raises(EngineError, match=r"loss scale 3\.0"):
        scales(settings, "xxx")


def test_a_doubling_restarts_the_count_of_overflows() -> None:
    settings = LossScaling(initial_scale_power=3, hysteresis=2, loss_scale_window=1)
    assert scales(settings, "x..xx") == [8, 8, 16, 16, 8]
    assert scales(settings, "..") == [8, 16]
    assert scales(LossScaling(initial_scale_power=3, hysteresis=2, loss_scale_window=3), "x....xx") == [8] * 4 + [
        16,
        16,
        8,
    ]


@pytest.mark.parametrize("updates", range(9))
def test_a_saved_scaler_goes_on_as_if_it_had_not_stopped(updates: int) -> None:
    settings = LossScaling(initial_scale_power=6, hysteresis=2, loss_scale_window=2)
    overflows = "x..x..x.x...."
    whole = scales(settings, overflows)
    scaler = LossScaler(settings, active=True)
    for update in overflows[:updates]:
        scaler.update(update == "x")
    state = scaler.state_dict()
    again = LossScaler(LossScaling(initial_scale_power=1, hysteresis=2, loss_scale_window=2), active=True)
    again.load_state_dict(state)
    assert again.state_dict() == state
    for update in overflows[updates:]:
        again.update(update == "x")
        scaler.update(update == "x")
        assert again.state_dict() == scaler.state_dict()
    assert again.scale == whole[-1]


def test_a_saved_scale_is_nothing_to_a_static_or_inactive_one() -> None:
    state = {"scale": 2.0, "hysteresis_left": 5, "updates": 7, "last_overflow": 3}
    for scaler in (LossScaler(LossScaling(static=64.0), active=True), LossScaler(LossScaling(), active=False)):
        before = scaler.state_dict()
        scaler.load_state_dict(state)
        assert scaler.state_dict() == before
        assert not scaler.dynamic
    assert LossScaler(LossScaling(static=64.0), active=False).scale == 1.0
    assert LossScaler(LossScaling(initial_scale_power=5), active=True).scale == 32.0
    assert [LossScaler(LossScaling(), active=active).active for active in (True, False)] == [True, False]
