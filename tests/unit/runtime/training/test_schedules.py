"""WarmupLR and WarmupDecayLR over torch's LambdaLR have exactly the learning rates of DeepSpeed's formula."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from tpinit.runtime.settings import ComponentSettings
from tpinit.runtime.training.schedules import Schedule, build_schedule

OWN_RATES = (0.05, 0.002)  # of the two parameter groups


def optimizer() -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": rate} for rate in OWN_RATES]
    return torch.optim.SGD(groups, lr=1.0)


def schedule_of(kind: str, params: dict[str, Any]) -> Schedule:
    return build_schedule(ComponentSettings(kind, params), optimizer())


def advance(schedule: Schedule, iteration: int | None = None) -> list[float]:
    schedule.optimizer.step()
    schedule.step(iteration)
    return [group["lr"] for group in schedule.optimizer.param_groups]


def expected(kind: str, params: dict[str, Any], iteration: int) -> list[float]:
    """Return the rates of both groups after update number `iteration`, counted from 0, written out by hand."""
    least, steps = params.get("warmup_min_lr", 0.0), max(2, params.get("warmup_num_steps", 1000))
    highest = params.get("warmup_max_lr", 0.001 if kind == "warmupdecaylr" else None)
    if iteration < steps and params.get("warmup_type", "log") == "linear":
        fraction = iteration / steps
    elif iteration < steps:
        fraction = math.log(iteration + 1) / math.log(steps)
    elif kind == "warmuplr":
        fraction = 1.0
    else:
        total = params["total_num_steps"]
        fraction = max(0.0, (total - iteration) / max(1.0, total - steps))
    return [least + ((own if highest is None else highest) - least) * fraction for own in OWN_RATES]


CASES = [
    (kind, {"total_num_steps": 20, "warmup_type": form, "warmup_min_lr": least, "warmup_num_steps": steps, **highest})
    for kind, form, least, steps, highest in itertools.product(
        ("warmuplr", "warmupdecaylr"),
        ("log", "linear"),
        (0.0, 0.0003),
        (0, 1, 7, 20, 25),
        ({}, {"warmup_max_lr": 0.1}, {"warmup_max_lr": None}),
    )
]


@pytest.mark.parametrize(("kind", "params"), CASES)
def test_the_rates_of_30_steps_are_those_of_the_formula(kind: str, params: dict[str, Any]) -> None:
    schedule = schedule_of(kind, params)
    assert schedule.get_last_lr() == [params["warmup_min_lr"]] * 2
    assert schedule.last_batch_iteration == -1
    for iteration in range(30):
        assert advance(schedule) == expected(kind, params, iteration) == schedule.get_last_lr()
        assert schedule.last_batch_iteration == iteration


@pytest.mark.parametrize(("kind", "params"), [CASES[7], CASES[-4]])
@pytest.mark.parametrize("stop", range(1, 30, 4))
def test_a_resumed_schedule_has_the_rates_of_one_that_ran_on(kind: str, params: dict[str, Any], stop: int) -> None:
    first, second = schedule_of(kind, params), schedule_of(kind, params)
    for _ in range(stop):
        advance(first)
    assert first.state_dict() == {"last_batch_iteration": stop - 1}
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    assert second.get_last_lr() == first.get_last_lr()
    for _ in range(stop, 30):
        assert advance(second) == advance(first)


def test_a_schedule_built_at_an_iteration_leaves_the_rates_until_its_first_step() -> None:
    params = {"warmup_num_steps": 7, "last_batch_iteration": 3}
    schedule = schedule_of("warmuplr", params)
    assert schedule.get_last_lr() == list(OWN_RATES)
    assert schedule.last_batch_iteration == 3
    assert advance(schedule) == expected("warmuplr", params, 4)


def test_a_step_to_a_given_iteration_sets_its_rates() -> None:
    params = {"warmup_num_steps": 7}
    schedule = schedule_of("warmuplr", params)
    assert advance(schedule, 5) == expected("warmuplr", params, 5)
    assert advance(schedule) == expected("warmuplr", params, 6)


def test_the_rates_are_lambda_lrs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: a LambdaLR that computes other rates changes those of the schedule."""
    schedule = schedule_of("warmuplr", {"warmup_num_steps": 7})
    monkeypatch.setattr(LambdaLR, "get_lr", lambda self: [0.25 for _ in self.base_lrs])
    assert advance(schedule) == [0.25, 0.25]
