"""The learning-rate schedule that the config names: DeepSpeed's five with its defaults, and those of torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LambdaLR
from tpinit.reference.errors import ConfigError, Problem
from tpinit.reference.spellings import show
from tpinit.runtime.settings import ComponentSettings
from tpinit.runtime.training.curves import Curve, CycleCurve, LinearCurve, Warmup, WarmupCosineCurve, WarmupCurve

__all__ = ["Schedule", "build_schedule", "check_schedule"]

_log = logging.getLogger("tpinit")
_BETA2 = 0.99  # DeepSpeed's OneCycle sets the second beta too


class Schedule:
    """One of DeepSpeed's schedules over torch's LambdaLR; `step` is called once after each update.

    Iterations count as in DeepSpeed: `last_batch_iteration` is -1 before the first `step`, when the rates are `first`.
    A schedule that is built at another iteration leaves the optimizer's rates alone until its first `step`. `curves`
    and `first` have one entry for each parameter group; so has `momenta`, if the first beta follows a curve too.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        curves: Sequence[Curve],
        first: Sequence[float],
        last_batch_iteration: int = -1,
        momenta: Sequence[CycleCurve] = (),
    ) -> None:
        self.optimizer = optimizer
        self._momenta = momenta
        functions: list[Callable[[int], float]] = []
        for group, curve, rate in zip(optimizer.param_groups, curves, first, strict=True):
            start = rate if last_batch_iteration == -1 else float(group["lr"])
            functions.append(partial(_rate_at_epoch, curve, start))
            group["initial_lr"] = 1.0  # LambdaLR multiplies this by the function's result, which is the rate itself
        self._lambda_lr = LambdaLR(optimizer, functions)
        self.load_state_dict({"last_batch_iteration": last_batch_iteration})
        if last_batch_iteration == -1:
            self._set_betas([curve.low for curve in momenta])

    @property
    def last_batch_iteration(self) -> int:
        """The number of the last update, counted from 0; -1 before the first."""
        return int(self._lambda_lr.last_epoch) - 1

    def step(self, last_batch_iteration: int | None = None) -> None:
        """Advance to the next iteration, or to the given one, and set the optimizer's learning rates and momenta."""
        if last_batch_iteration is not None:
            self._lambda_lr.last_epoch = last_batch_iteration
        self._lambda_lr.step()
        self._set_betas([curve(self.last_batch_iteration) for curve in self._momenta])

    def get_last_lr(self) -> list[float]:
        """Return the current learning rate of each parameter group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, int]:
        """Return what `load_state_dict` needs to resume; the rates themselves are in the optimizer's state."""
        return {"last_batch_iteration": self.last_batch_iteration}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a saved iteration. The rates change at the next `step`."""
        self._lambda_lr.last_epoch = state["last_batch_iteration"] + 1

    def _set_betas(self, momenta: list[float]) -> None:
        for group, momentum in zip(self.optimizer.param_groups, momenta):  # noqa: B905  # none without momenta
            group["betas"] = (momentum, _BETA2)


def _rate_at_epoch(curve: Curve, first: float, epoch: int) -> float:
    """Return the rate at an epoch of LambdaLR, which counts from 0 where DeepSpeed counts iterations from -1."""
    return first if epoch == 0 else curve(epoch - 1)


def build_schedule(component: ComponentSettings, optimizer: Optimizer) -> Any:
    """Return the schedule that the config names, with DeepSpeed's defaults: a `Schedule`, or a schedule of torch.

    Raises ConfigError if a list has not one value for each parameter group, or if torch refuses a parameter.
    """
    build = _BUILDERS.get(component.kind)
    try:
        if build is not None:
            return build(dict(component.params), optimizer)
        names = {name.lower(): name for name in lr_scheduler.__all__}
        return getattr(lr_scheduler, names[component.kind])(optimizer, **component.params)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        if isinstance(error, ConfigError):
            raise
        path = "scheduler.params"
        raise ConfigError([Problem(path, show(dict(component.params)), str(error), "correct this value")]) from error


class _Groups(Optimizer):
    """The parameter groups of another optimizer, each with a parameter of one element."""


def check_schedule(component: ComponentSettings, optimizer: Optimizer) -> None:
    """Raise ConfigError if the schedule can't be built for this optimizer, which stays as it is."""
    groups = [{**group, "params": [torch.nn.Parameter(torch.zeros(1))]} for group in optimizer.param_groups]
    build_schedule(component, _Groups(groups, dict(optimizer.defaults)))


def _per_group(value: Any, optimizer: Optimizer, name: str) -> list[float]:
    """Return one value for each parameter group: a number is that of all groups."""
    count = len(optimizer.param_groups)
    values = list(value) if isinstance(value, (list, tuple)) else [value] * count
    if len(values) != count or None in values:
        message = f"this has {len(values)} values, and the optimizer has {count} parameter groups"
        problem = Problem(f"scheduler.params.{name}", show(value), message, "give one number, or one for each group")
        raise ConfigError([problem])
    return values


def _own_rates(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def _warmup(params: dict[str, Any], optimizer: Optimizer, decays: bool) -> Schedule:
    lows = _per_group(params.get("warmup_min_lr", 0.0), optimizer, "warmup_min_lr")
    high = params.get("warmup_max_lr", 0.001 if decays else None)
    highs = _own_rates(optimizer) if high is None else _per_group(high, optimizer, "warmup_max_lr")
    rise = _rise(params)
    total = int(params["total_num_steps"]) if decays else None
    curves = [WarmupCurve(low, high, rise, total) for low, high in zip(lows, highs, strict=True)]
    return Schedule(optimizer, curves, lows, params.get("last_batch_iteration", -1))


def _rise(params: dict[str, Any]) -> Warmup:
    return Warmup(max(2, int(params.get("warmup_num_steps", 1000))), params.get("warmup_type", "log") == "linear")


def _warmup_cosine(params: dict[str, Any], optimizer: Optimizer) -> Schedule:
    low, final = params.get("warmup_min_ratio", 0.0), params.get("cos_min_ratio", 0.0001)
    total = int(params["total_num_steps"])
    curves = [WarmupCosineCurve(own, low, final, _rise(params), total) for own in _own_rates(optimizer)]
    return Schedule(optimizer, curves, [0.0] * len(curves), params.get("last_batch_iteration", -1))


def _range_test(params: dict[str, Any], optimizer: Optimizer) -> Schedule:
    lows = _per_group(params.get("lr_range_test_min_lr", 0.001), optimizer, "lr_range_test_min_lr")
    size, rate = int(params.get("lr_range_test_step_size", 2000)), params.get("lr_range_test_step_rate", 1.0)
    curves = [LinearCurve(low, rate, size, params.get("lr_range_test_staircase", False)) for low in lows]
    return Schedule(optimizer, curves, lows, params.get("last_batch_iteration", -1))


def _one_cycle(params: dict[str, Any], optimizer: Optimizer) -> Schedule:
    lows = _per_group(params["cycle_min_lr"], optimizer, "cycle_min_lr")
    highs = _per_group(params["cycle_max_lr"], optimizer, "cycle_max_lr")
    rises = float(params.get("cycle_first_step_size", 2000))
    stairs = int(params.get("cycle_first_stair_count", 0))
    shape: dict[str, Any] = {
        "rise": rises,
        "fall": float(params.get("cycle_second_step_size", rises)),
        "rise_stairs": stairs,
        "fall_stairs": int(params.get("cycle_second_stair_count", stairs)),
        "decay_period": params.get("decay_step_size", 0),
    }
    decay = params.get("decay_lr_rate", 0.0)
    curves = [CycleCurve(low, high, decay, **shape) for low, high in zip(lows, highs, strict=True)]
    momenta = _cycle_momenta(params, optimizer, shape) if params.get("cycle_momentum", True) else []
    return Schedule(optimizer, curves, lows, params.get("last_batch_iteration", -1), momenta)


def _cycle_momenta(params: dict[str, Any], optimizer: Optimizer, shape: dict[str, Any]) -> list[CycleCurve]:
    """Return the curve of the first beta of each group; none, with a warning, for an optimizer without betas."""
    if "betas" not in optimizer.defaults:
        if not isinstance(optimizer, _Groups):
            _log.warning("OneCycle: %s has no betas, so its momentum stays as it is", type(optimizer).__name__)
        return []
    lows = _per_group(params.get("cycle_min_mom", 0.8), optimizer, "cycle_min_mom")
    highs = _per_group(params.get("cycle_max_mom", 0.9), optimizer, "cycle_max_mom")
    decay = params.get("decay_mom_rate", 0.0)
    return [CycleCurve(low, high, decay, falls_first=True, **shape) for low, high in zip(lows, highs, strict=True)]


_BUILDERS: dict[str, Callable[[dict[str, Any], Optimizer], Schedule]] = {
    "warmuplr": partial(_warmup, decays=False),
    "warmupdecaylr": partial(_warmup, decays=True),
    "warmupcosinelr": _warmup_cosine,
    "lrrangetest": _range_test,
    "onecycle": _one_cycle,
}
