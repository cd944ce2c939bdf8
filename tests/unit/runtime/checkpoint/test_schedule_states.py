"""The states of torch's schedules: each is taken by a new schedule of its class, and nothing of another form is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiplicativeLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from tpinit.runtime.checkpoint.schedule_states import check_own_schedule
from tpinit.runtime.checkpoint.values import decode, encode
from tpinit.runtime.errors import CheckpointError


class Falls:
    """A rate that falls with the epoch, as an object: its attributes are in the state of a LambdaLR."""

    def __init__(self) -> None:
        self.delay = 2.0

    def __call__(self, epoch: int) -> float:
        return 1 / (self.delay + epoch)


MAKERS: dict[str, Callable[[Any], Any]] = {
    "function": lambda optimizer: LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch)),
    "object": lambda optimizer: LambdaLR(optimizer, Falls()),
    "multiplied": lambda optimizer: MultiplicativeLR(optimizer, lambda epoch: 0.9),
    "steps": lambda optimizer: StepLR(optimizer, 2),
    "milestones": lambda optimizer: MultiStepLR(optimizer, [2, 4]),
    "constant": lambda optimizer: ConstantLR(optimizer, total_iters=2),
    "linear": lambda optimizer: LinearLR(optimizer, total_iters=3),
    "exponential": lambda optimizer: ExponentialLR(optimizer, 0.9),
    "polynomial": lambda optimizer: PolynomialLR(optimizer),
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, 5),
    "restarts": lambda optimizer: CosineAnnealingWarmRestarts(optimizer, 2),
    "cyclic": lambda optimizer: CyclicLR(optimizer, 0.01, 0.1, step_size_up=2),
    "cyclic, scaled": lambda optimizer: CyclicLR(optimizer, 0.01, 0.1, 2, scale_fn=Falls(), scale_mode="iterations"),
    "one cycle": lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=9),
    "plateau": lambda optimizer: ReduceLROnPlateau(optimizer),
    "sequence": lambda optimizer: SequentialLR(
        optimizer, [LinearLR(optimizer, total_iters=2), ExponentialLR(optimizer, 0.9)], milestones=[2]
    ),
    "chain": lambda optimizer: ChainedScheduler([ConstantLR(optimizer), ExponentialLR(optimizer, 0.9)]),
}


def made(name: str, steps: int = 0) -> Any:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    schedule = MAKERS[name](optimizer)
    for _ in range(steps):
        optimizer.step()
        schedule.step(*([1.0] if name == "plateau" else []))
    return schedule


def passed(state: Any) -> Any:
    """Return a state after its way through a checkpoint."""
    return decode(encode(state, "state"))


@pytest.mark.parametrize("name", MAKERS)
def test_a_new_schedule_takes_the_state_of_one_that_stepped(name: str) -> None:
    stepped, fresh = made(name, 3), made(name)
    fresh.load_state_dict(check_own_schedule(fresh, passed(stepped.state_dict()), name))
    fresh.optimizer.load_state_dict(stepped.optimizer.state_dict())
    for schedule in (stepped, fresh):
        schedule.optimizer.step()
        schedule.step(*([1.0] if name == "plateau" else []))
    assert stepped.optimizer.param_groups[0]["lr"] == fresh.optimizer.param_groups[0]["lr"]


def changed(state: Any) -> list[tuple[str, Any]]:
    """Return copies of a state, each with one value replaced: at the top, in a list, or in a dict below."""
    found: list[tuple[str, Any]] = []
    items = state.items() if isinstance(state, dict) else enumerate(state)
    for key, value in items:
        others: list[Any] = ["x", [[]], {"a": 1}, 1 << 70]
        if isinstance(value, (list, tuple)) and value and not str(key).endswith("milestones"):
            others += [[], [*value, value[0]], [object()] * len(value)]
        if isinstance(value, str):
            others.remove("x")
        copies = [(f"{key}: {other!r}", other) for other in others]
        if isinstance(value, (dict, list, tuple)) and not isinstance(value, Counter):
            copies += [(f"{key} {where}", other) for where, other in changed(value)]
        for where, other in copies:
            copy = dict(state) if isinstance(state, dict) else list(state)
            copy[key] = other
            found.append((where, copy))
    return found


@pytest.mark.parametrize("name", MAKERS)
def test_no_schedule_takes_a_state_with_one_value_of_another_form(name: str) -> None:
    fresh = made(name)
    cases = changed(made(name, 3).state_dict())
    assert len(cases) > 10
    for where, state in cases:
        if not where.startswith(("_get_lr_called", "_is_initial", "_step_count")) or "_step_count" in where:
            with pytest.raises((ValueError, CheckpointError)):
                raise AssertionError(where, check_own_schedule(fresh, state, name))


@pytest.mark.parametrize("count", [-2, 1.5, True, 1 << 70, math.inf, None])
def test_a_count_is_a_number_of_updates(count: object) -> None:
    for state in (made("steps").state_dict() | {"last_epoch": count}, {**made("steps").state_dict(), "optimizer": 1}):
        with pytest.raises((ValueError, CheckpointError)):
            check_own_schedule(made("steps"), state, "StepLR")


def test_a_class_of_the_users_may_save_other_values_but_no_attribute_of_ours() -> None:
    class Noam:
        def __init__(self) -> None:
            self.optimizer, self.count = object(), 0

        def state_dict(self) -> dict[str, Any]:
            return {"count": self.count}

    assert check_own_schedule(Noam(), {"count": 3, "best": [1, 2]}, "Noam") == {"count": 3, "best": [1, 2]}
    for state in ({"count": "3"}, {"count": 3, "optimizer": 1}, {"state_dict": 1}, [3]):
        with pytest.raises(ValueError, match="schedule's"):
            check_own_schedule(Noam(), state, "Noam")
