"""The settings of a run as plain data: batch sizes, clipping, optimizer, scheduler, loss scaling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["BatchSizes", "ComponentSettings", "LossScaling", "Settings"]


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """Batch sizes in samples: `train = micro x accumulation x data-parallel size` (D16).

    `train` and `micro` are None if the config gives neither.
    """

    train: int | None
    micro: int | None
    accumulation: int


@dataclass(frozen=True, slots=True)
class ComponentSettings:
    """An optimizer or a scheduler: its type in lower case, and its parameters as the config gives them."""

    kind: str
    params: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class LossScaling:
    """Loss scaling for fp16, with DeepSpeed's names and defaults: a fixed scale if `static` is not 0, else dynamic."""

    static: float = 0.0
    initial_scale_power: int = 16
    loss_scale_window: int = 1000
    hysteresis: int = 2
    consecutive_hysteresis: bool = False
    min_loss_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that the engine reads from the config, beside the decision.

    `clipping` is the largest 2-norm of the whole model's gradient; 0 means no clipping.
    """

    batch: BatchSizes = field(default_factory=lambda: BatchSizes(None, None, 1))
    clipping: float = 1.0
    optimizer: ComponentSettings | None = None
    scheduler: ComponentSettings | None = None
    scaling: LossScaling = field(default_factory=LossScaling)
    drop_last: bool = False
