"""Optimizers, learning-rate schedules and loss scaling by DeepSpeed's names and defaults; fp32 master weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from tpinit.runtime.errors import EngineError, UnsupportedError
from tpinit.runtime.planning.schema import ParameterPlan, Plan
from tpinit.runtime.settings import ComponentSettings, LossScaling

__all__ = ["LossScaler", "ParamState", "WarmupSchedule", "build_optimizer", "build_schedule", "make_param_states"]


@dataclass(slots=True)
class ParamState:
    """One parameter in training: the local tensor of the model, and the tensor that the optimizer updates.

    `target` is the parameter itself, or its fp32 master copy where the parameter is bf16 or fp16. Gradients
    are accumulated, averaged and clipped on the target.
    """

    parameter: nn.Parameter
    target: nn.Parameter
    record: ParameterPlan

    def collect(self) -> None:
        """Move the gradient of the last backward to the master, in fp32; nothing without a master."""
        if self.target is self.parameter or self.parameter.grad is None:
            return
        grad = self.parameter.grad.float()
        self.target.grad = grad if self.target.grad is None else self.target.grad.add_(grad)
        self.parameter.grad = None

    def publish(self) -> None:
        """Copy the updated master back into the model's parameter; nothing without a master."""
        if self.target is not self.parameter:
            with torch.no_grad():
                self.parameter.copy_(self.target)


def make_param_states(model: nn.Module, plan: Plan, optimizer: Optimizer | None) -> list[ParamState]:
    """Return one slot a parameter, in the plan's order, and point the optimizer at the master copies.

    The optimizer holds the model's own Parameter objects, which were cut in place, so only those in bf16
    or fp16 are exchanged. Its options, groups and order stay.
    """
    groups: list[dict[str, Any]] = optimizer.param_groups if optimizer is not None else []
    held = {id(parameter) for group in groups for parameter in group["params"]}
    parameters = dict(model.named_parameters())
    slots = []
    for record in plan.parameters:
        parameter = parameters[record.name]
        low = parameter.dtype in (torch.bfloat16, torch.float16) and id(parameter) in held
        target = nn.Parameter(parameter.detach().float()) if low else parameter
        slots.append(ParamState(parameter, target, record))
    masters = {id(slot.parameter): slot.target for slot in slots}
    for group in groups:
        group["params"] = [masters.get(id(parameter), parameter) for parameter in group["params"]]
    return slots


def build_optimizer(part: ComponentSettings, parameters: Iterable[Any]) -> Optimizer:
    """Return the torch optimizer that the config names. Adam means AdamW unless `adam_w_mode` is false.

    Raises UnsupportedError for `bias_correction` false, which torch's Adam has no word for.
    """
    params = dict(part.params)
    if part.kind == "sgd":
        return SGD(parameters, **params)  # type: ignore[arg-type]  # checked by name and kind in settings
    if params.pop("bias_correction", True) is not True:
        raise UnsupportedError("optimizer.params.bias_correction = false is not implemented: leave it out")
    decoupled = part.kind == "adamw" or params.pop("adam_w_mode", True) is True
    params.pop("adam_w_mode", None)
    # DeepSpeed's own Adam decays nothing by default; torch's AdamW, which torch_adam asks for, does.
    if params.pop("torch_adam", False) is not True:
        params.setdefault("weight_decay", 0.0)
    if "betas" in params:
        params["betas"] = tuple(params["betas"])  # type: ignore[arg-type]  # a pair, checked in settings
    # Fused: one pass over the numbers instead of ten, as DeepSpeed's own Adam does, and the same arithmetic.
    return (AdamW if decoupled else Adam)(parameters, **params, fused=True)  # type: ignore[arg-type]  # same


class WarmupSchedule:
    """WarmupLR and WarmupDecayLR: rise from the least to the greatest rate, then stay, or fall to 0 linearly.

    `step` is called once after each optimizer step. Before the first the rate is the least one. `decay_to`
    is the step at which the fall ends, None for none.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        least: float,
        greatest: float | None,
        steps: int,
        linear: bool,
        decay_to: int | None,
        last: int,
    ) -> None:
        self.optimizer = optimizer
        self.least = least
        self.greatest = [group["lr"] if greatest is None else greatest for group in optimizer.param_groups]
        self.steps = max(2, steps)
        self.linear = linear
        self.decay_to = decay_to
        self.last_batch_iteration = last
        if last == -1:
            self._set([least for _ in self.greatest])

    def factor(self) -> float:
        """Return how far the rate is from least (0) to greatest (1) at the current iteration."""
        done = self.last_batch_iteration
        if done < self.steps:
            return done / self.steps if self.linear else math.log(done + 1) / math.log(self.steps)
        if self.decay_to is None:
            return 1.0
        return max(0.0, (self.decay_to - done) / max(1.0, self.decay_to - self.steps))

    def step(self, last_batch_iteration: int | None = None) -> None:
        """Go to the next iteration, or to the given one, and set the optimizer's rates."""
        done = self.last_batch_iteration + 1 if last_batch_iteration is None else last_batch_iteration
        self.last_batch_iteration = done
        factor = self.factor()
        self._set([self.least + (greatest - self.least) * factor for greatest in self.greatest])

    def get_last_lr(self) -> list[float]:
        """Return the rates in force, one a parameter group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, int]:
        """Return what a resumed schedule needs."""
        return {"last_batch_iteration": self.last_batch_iteration}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a saved iteration."""
        self.last_batch_iteration = state["last_batch_iteration"]

    def _set(self, rates: list[float]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def build_schedule(part: ComponentSettings, optimizer: Optimizer) -> WarmupSchedule:
    """Return the schedule that the config names, with DeepSpeed's defaults."""
    params: dict[str, Any] = dict(part.params)
    decay = part.kind == "warmupdecaylr"
    return WarmupSchedule(
        optimizer,
        least=params.get("warmup_min_lr", 0.0),
        greatest=params.get("warmup_max_lr", 0.001 if decay else None),
        steps=params.get("warmup_num_steps", 1000),
        linear=params.get("warmup_type", "log") == "linear",
        decay_to=params["total_num_steps"] if decay else None,
        last=params.get("last_batch_iteration", -1),
    )


class LossScaler:
    """The factor by which an fp16 loss is multiplied so that small gradients survive; 1 for other dtypes.

    Dynamic: after `hysteresis` overflows each further one halves it, down to `min_loss_scale`; after
    `loss_scale_window` steps without an overflow it doubles, and the hysteresis is full again.
    """

    def __init__(self, settings: LossScaling, active: bool) -> None:
        self.settings = settings
        self.active = active
        self.dynamic = active and settings.static == 0
        self.scale = (settings.static or 2.0**settings.initial_scale_power) if active else 1.0
        self._patience = settings.hysteresis
        self._step = 0
        self._last_overflow = -1

    def update(self, overflow: bool) -> None:
        """Adapt the scale after a step. Every rank calls this with the same verdict.

        Raises EngineError when a step overflows at the least scale: training can't go on.
        """
        if not self.dynamic:
            return
        settings = self.settings
        if overflow:
            if self._patience > 1:
                self._patience -= 1
            elif self.scale <= settings.min_loss_scale:
                raise EngineError(
                    f"gradients overflow in fp16 at the least loss scale {settings.min_loss_scale}: "
                    "train in bf16, or lower the learning rate"
                )
            else:
                self.scale = max(self.scale / 2, settings.min_loss_scale)
            self._last_overflow = self._step
        else:
            if settings.consecutive_hysteresis:
                self._patience = settings.hysteresis
            calm = self._step - self._last_overflow - 1
            if calm > 0 and calm % settings.loss_scale_window == 0:
                self._patience = settings.hysteresis
                self.scale *= 2
        self._step += 1
