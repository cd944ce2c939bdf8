"""The learning-rate schedule that the config names: WarmupLR and WarmupDecayLR, with DeepSpeed's defaults."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tpinit.runtime.settings import ComponentSettings

__all__ = ["WarmupCurve", "WarmupSchedule", "build_schedule"]


@dataclass(frozen=True, slots=True)
class WarmupCurve:
    """The learning rate as a function of the iteration: a rise from `min_lr` to a maximum, then constant or a decay.

    The rise takes `warmup_steps` iterations (at least 2), linear or logarithmic. `total_steps` is the iteration at
    which a linear decay reaches `min_lr`; None means that the rate stays at the maximum.
    """

    min_lr: float
    warmup_steps: int
    linear: bool
    total_steps: int | None

    def rate(self, max_lr: float, iteration: int) -> float:
        """Return the learning rate after update number `iteration`, counted from 0, for a maximum of `max_lr`."""
        return self.min_lr + (max_lr - self.min_lr) * self._fraction(iteration)

    def _fraction(self, iteration: int) -> float:
        """Return the position between `min_lr` (0) and the maximum (1)."""
        if iteration < self.warmup_steps:
            if self.linear:
                return iteration / self.warmup_steps
            return math.log(iteration + 1) / math.log(self.warmup_steps)
        if self.total_steps is None:
            return 1.0
        return max(0.0, (self.total_steps - iteration) / max(1.0, self.total_steps - self.warmup_steps))


class WarmupSchedule:
    """DeepSpeed's WarmupLR or WarmupDecayLR over torch's LambdaLR; `step` is called once after each update.

    Iterations count as in DeepSpeed: `last_batch_iteration` is -1 before the first `step`, when every rate is `min_lr`.
    A schedule that is built at another iteration leaves the optimizer's rates alone until its first `step`.
    `max_lr` None means each parameter group's own learning rate.
    """

    def __init__(
        self, optimizer: Optimizer, curve: WarmupCurve, max_lr: float | None, last_batch_iteration: int = -1
    ) -> None:
        self.optimizer = optimizer
        functions: list[Callable[[int], float]] = []
        for group in optimizer.param_groups:
            now = float(group["lr"])
            first = curve.min_lr if last_batch_iteration == -1 else now
            functions.append(partial(_rate_at_epoch, curve, now if max_lr is None else max_lr, first))
            group["initial_lr"] = 1.0  # LambdaLR multiplies this by the function's result, which is the rate itself
        self._lambda_lr = LambdaLR(optimizer, functions)
        self.load_state_dict({"last_batch_iteration": last_batch_iteration})

    @property
    def last_batch_iteration(self) -> int:
        """The number of the last update, counted from 0; -1 before the first."""
        return int(self._lambda_lr.last_epoch) - 1

    def step(self, last_batch_iteration: int | None = None) -> None:
        """Advance to the next iteration, or to the given one, and set the optimizer's learning rates."""
        if last_batch_iteration is not None:
            self._lambda_lr.last_epoch = last_batch_iteration
        self._lambda_lr.step()

    def get_last_lr(self) -> list[float]:
        """Return the current learning rate of each parameter group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, int]:
        """Return what `load_state_dict` needs to resume; the rates themselves are in the optimizer's state."""
        return {"last_batch_iteration": self.last_batch_iteration}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a saved iteration. The rates change at the next `step`."""
        self._lambda_lr.last_epoch = state["last_batch_iteration"] + 1


def _rate_at_epoch(curve: WarmupCurve, max_lr: float, first: float, epoch: int) -> float:
    """Return the rate at an epoch of LambdaLR, which counts from 0 where DeepSpeed counts iterations from -1."""
    return first if epoch == 0 else curve.rate(max_lr, epoch - 1)


def build_schedule(component: ComponentSettings, optimizer: Optimizer) -> WarmupSchedule:
    """Return the schedule that the config names, with DeepSpeed's defaults."""
    params: dict[str, Any] = dict(component.params)
    decays = component.kind == "warmupdecaylr"
    curve = WarmupCurve(
        min_lr=params.get("warmup_min_lr", 0.0),
        warmup_steps=max(2, params.get("warmup_num_steps", 1000)),
        linear=params.get("warmup_type", "log") == "linear",
        total_steps=params["total_num_steps"] if decays else None,
    )
    max_lr = params.get("warmup_max_lr", 0.001 if decays else None)
    return WarmupSchedule(optimizer, curve, max_lr, params.get("last_batch_iteration", -1))
