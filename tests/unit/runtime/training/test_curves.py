"""DeepSpeed's WarmupCosineLR, OneCycle and LRRangeTest, by values written out; torch's schedules by name."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tpinit.reference.errors import ConfigError
from tpinit.runtime.settings import ComponentSettings
from tpinit.runtime.training.schedules import build_schedule, check_schedule

OWN = (0.05, 0.002)  # the rates of the two parameter groups


def optimizer(kind: Any = torch.optim.AdamW, **options: Any) -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": rate} for rate in OWN]
    made: torch.optim.Optimizer = kind(groups, lr=1.0, **options)
    return made


def rates(kind: str, params: dict[str, Any], steps: int, of: torch.optim.Optimizer | None = None) -> list[list[float]]:
    """Return the rates of both groups before the first update and after each of `steps`."""
    made = of if of is not None else optimizer()
    schedule = build_schedule(ComponentSettings(kind, params), made)
    seen = [[group["lr"] for group in made.param_groups]]
    for _ in range(steps):
        made.step()
        schedule.step()
        seen.append([group["lr"] for group in made.param_groups])
    return seen


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize(("low", "final"), [(0.0, 0.0001), (0.1, 0.0), (0.2, 0.3)])
@pytest.mark.parametrize(("warm", "total"), [(1, 200), (10, 300), (50, 40)])
def test_warmup_cosine(linear: bool, low: float, final: float, warm: int, total: int) -> None:
    params = {
        "total_num_steps": total,
        "warmup_num_steps": warm,
        "warmup_min_ratio": low,
        "cos_min_ratio": final,
        "warmup_type": "linear" if linear else "log",
    }
    seen = rates("warmupcosinelr", params, 350)
    assert seen[0] == [0.0, 0.0]
    rise = max(2, warm)
    for iteration, values in enumerate(seen[1:]):
        if iteration < rise:
            height = iteration / rise if linear else math.log(iteration + 1, rise)
            ratio = low + (1 - low) * height
        else:
            angle = math.pi * min(1, (iteration + 1 - rise) / max(1, total - rise))
            ratio = final + (1 - final) * 0.5 * (1 + math.cos(angle))
        assert values == pytest.approx([own * ratio for own in OWN], rel=1e-12, abs=1e-18)


def test_one_cycle_by_hand() -> None:
    params = {
        "cycle_min_lr": 1.0,
        "cycle_max_lr": [3.0, 5.0],
        "cycle_first_step_size": 4,
        "cycle_second_step_size": 2,
        "decay_lr_rate": 0.5,
        "decay_mom_rate": 0.25,
        "decay_step_size": 2,
        "cycle_min_mom": 0.5,
        "cycle_max_mom": 0.9,
    }
    made = optimizer()
    schedule = build_schedule(ComponentSettings("onecycle", params), made)
    assert made.param_groups[0]["betas"] == (0.5, 0.99)
    momenta = []
    seen = [group["lr"] for group in made.param_groups]
    assert seen == [1.0, 1.0]
    lrs: list[float] = []
    for _ in range(10):
        made.step()
        schedule.step()
        lrs.append(made.param_groups[0]["lr"])
        momenta.append(made.param_groups[1]["betas"][0])
        assert made.param_groups[1]["betas"][1] == 0.99
    # Up in 4, down in 2, then 1 / (1 + 0.5 n / 2).
    assert lrs == pytest.approx([1.5, 2, 2.5, 3, 2, 1, 1 / 1.25, 1 / 1.5, 1 / 1.75, 1 / 2])
    # Down in 4, up in 2, then 0.9 (1 + 0.25 n / 2).
    assert momenta == pytest.approx([0.8, 0.7, 0.6, 0.5, 0.7, 0.9, 0.9 * 1.125, 0.9 * 1.25, 0.9 * 1.375, 0.9 * 1.5])


def test_one_cycle_in_stairs() -> None:
    params = {"cycle_min_lr": 0.0, "cycle_max_lr": 6.0, "cycle_first_step_size": 6, "cycle_first_stair_count": 3}
    seen = [values[0] for values in rates("onecycle", params, 14)]
    assert seen == pytest.approx([0, 0, 2, 2, 4, 4, 6, 4, 4, 2, 2, 0, 0, 0, 0])


def test_one_cycle_in_other_stairs_down_than_up() -> None:
    lengths = {"cycle_first_step_size": 6, "cycle_second_step_size": 4}
    stairs = {"cycle_first_stair_count": 3, "cycle_second_stair_count": 2}
    params = {"cycle_min_lr": 0.0, "cycle_max_lr": 6.0, **lengths, **stairs}
    seen = [values[0] for values in rates("onecycle", params, 11)]
    assert seen == pytest.approx([0, 0, 2, 2, 4, 4, 6, 3, 3, 0, 0, 0])


def test_one_cycle_leaves_an_optimizer_without_betas_its_momentum() -> None:
    made = optimizer(torch.optim.SGD, momentum=0.9)
    params = {"cycle_min_lr": 0.0, "cycle_max_lr": 1.0, "cycle_first_step_size": 2}
    assert [values[0] for values in rates("onecycle", params, 4, made)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert made.param_groups[0]["momentum"] == 0.9
    assert "betas" not in made.param_groups[0]


@pytest.mark.parametrize("stairs", [False, True])
def test_range_test(stairs: bool) -> None:
    params = {
        "lr_range_test_min_lr": 0.001,
        "lr_range_test_step_size": 5,
        "lr_range_test_step_rate": 2.0,
        "lr_range_test_staircase": stairs,
    }
    for count, values in enumerate(rates("lrrangetest", params, 300)):
        periods = count // 5 if stairs else count / 5
        assert values == pytest.approx([0.001 * (1 + 2 * periods)] * 2)


def test_a_list_has_a_value_for_each_group() -> None:
    seen = rates("warmuplr", {"warmup_min_lr": [0.1, 0.2], "warmup_max_lr": [1, 2], "warmup_num_steps": 2}, 3)
    assert seen[0] == [0.1, 0.2]
    assert seen[-1] == [1, 2]
    with pytest.raises(ConfigError, match=r"scheduler.params.warmup_min_lr.*3 values, and the optimizer has 2"):
        rates("warmuplr", {"warmup_min_lr": [1, 2, 3]}, 0)


def test_a_schedule_of_torch_is_torchs() -> None:
    seen = rates("cosineannealinglr", {"T_max": 10, "eta_min": 0.0}, 20)
    reference = optimizer()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=10, eta_min=0.0)
    for values in seen:
        assert values == [group["lr"] for group in reference.param_groups]
        reference.step()
        schedule.step()


def test_what_a_schedule_refuses_is_found_before_training_and_leaves_the_optimizer() -> None:
    made = optimizer()
    before = [dict(group) for group in made.param_groups]
    check_schedule(ComponentSettings("onecycle", {"cycle_min_lr": 0.1, "cycle_max_lr": 1.0}), made)
    with pytest.raises(ConfigError, match=r"scheduler\.params"):
        check_schedule(ComponentSettings("onecyclelr", {"max_lr": 1.0}), made)  # torch needs the number of steps
    assert [dict(group) for group in made.param_groups] == before
