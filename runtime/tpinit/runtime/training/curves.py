"""Learning rates and momenta as functions of the iteration, by DeepSpeed's formulas.

An iteration is the number of the last update, counted from 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Curve", "CycleCurve", "LinearCurve", "Warmup", "WarmupCosineCurve", "WarmupCurve"]


class Curve(Protocol):
    """A learning rate as a function of the iteration."""

    def __call__(self, iteration: int, /) -> float:
        """Return the learning rate after update number `iteration`."""


@dataclass(frozen=True, slots=True)
class Warmup:
    """A rise from 0 to 1 over `steps` iterations (at least 2), linear or logarithmic."""

    steps: int
    linear: bool

    def __call__(self, iteration: int) -> float:
        """Return the height at an iteration before `steps`."""
        return iteration / self.steps if self.linear else math.log(iteration + 1) / math.log(self.steps)


@dataclass(frozen=True, slots=True)
class WarmupCurve:
    """A rise from `low` to `high`, then constant, or a linear decay that reaches `low` at iteration `total_steps`."""

    low: float
    high: float
    rise: Warmup
    total_steps: int | None

    def __call__(self, iteration: int) -> float:
        """Return the learning rate after update number `iteration`."""
        return self.low + (self.high - self.low) * self._height(iteration)

    def _height(self, iteration: int) -> float:
        if iteration < self.rise.steps:
            return self.rise(iteration)
        if self.total_steps is None:
            return 1.0
        return max(0.0, (self.total_steps - iteration) / max(1.0, self.total_steps - self.rise.steps))


@dataclass(frozen=True, slots=True)
class WarmupCosineCurve:
    """A rise from `low` x `own` to `own`, then half a cosine down to `final` x `own` at iteration `total_steps`."""

    own: float
    low: float
    final: float
    rise: Warmup
    total_steps: int

    def __call__(self, iteration: int) -> float:
        """Return the learning rate after update number `iteration`."""
        if iteration < self.rise.steps:
            return self.own * (self.low + self.rise(iteration) * (1.0 - self.low))
        progress = min(1.0, (iteration - self.rise.steps + 1) / max(1, self.total_steps - self.rise.steps))
        cosine = (1 + math.cos(math.pi * progress)) / 2
        return self.own * max(0.0, self.final + (1.0 - self.final) * cosine)


@dataclass(frozen=True, slots=True)
class LinearCurve:
    """A rise without end: `low` more for each `period` iterations, times `rate`; in stairs, or continuous."""

    low: float
    rate: float
    period: int
    stairs: bool

    def __call__(self, iteration: int) -> float:
        """Return the learning rate after update number `iteration`."""
        periods = (iteration + 1) / self.period
        return self.low * (1 + self.rate * (math.floor(periods) if self.stairs else periods))


@dataclass(frozen=True, slots=True)
class CycleCurve:
    """One cycle: `rise` iterations from `low` to `high`, `fall` iterations back, then a decay.

    `falls_first` is a momentum's cycle: from `high` to `low` and back. `rise_stairs` and `fall_stairs` are numbers of
    stairs; 0 is continuous. After the cycle a rate is `low` / (1 + `decay` x n) and a momentum `high` x (1 + `decay` x
    n), n being the iterations after it over `decay_period`; a period of 0 is no decay.
    """

    low: float
    high: float
    decay: float
    rise: float
    fall: float
    rise_stairs: int
    fall_stairs: int
    decay_period: float
    falls_first: bool = False

    def __call__(self, iteration: int) -> float:
        """Return the learning rate, or the momentum, after update number `iteration`."""
        length = self.rise + self.fall
        if iteration < length:
            part = (self.high - self.low) * self._height(iteration + 1)
            return self.high - part if self.falls_first else self.low + part
        end = self.high if self.falls_first else self.low
        if self.decay_period == 0:
            return end
        factor = 1 + self.decay * ((iteration - length + 1) / self.decay_period)
        return end * factor if self.falls_first else end / factor

    def _height(self, count: int) -> float:
        """Return the position between the ends, 0 to 1, after `count` updates."""
        length = self.rise + self.fall
        share = self.rise / length
        position = 1.0 + count / length - math.floor(1 + count / length)
        rises = position <= share
        stairs = self.rise_stairs if rises else self.fall_stairs
        if stairs == 0:
            return position / share if rises else (position - 1) / (share - 1)
        # From the count, because the position may lie a rounding below an exact stair.
        within = count % length
        stair = within * stairs / self.rise if within <= self.rise else (length - within) * stairs / self.fall
        return math.floor(stair) / stairs
