"""The settings of a run as plain data: batch sizes, clipping, optimizer, scheduler, loss scaling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tpinit.reference.errors import TpinitError
from tpinit.spec.vocabulary import DType

__all__ = [
    "DEFAULT_CLIPPING",
    "LARGEST_BUCKET",
    "Averaging",
    "BatchSizes",
    "Checks",
    "ComponentSettings",
    "LossScaling",
    "Note",
    "Settings",
]

DEFAULT_CLIPPING = 1.0
"""The largest norm of the gradient if the config has no `gradient_clipping`, as in DeepSpeed 0.19.8."""

LARGEST_BUCKET = 1 << 23
"""The most elements of gradients that are sent at once: larger ones would leave little to overlap with the backward."""

ON_NONFINITE = ("raise", "skip", "ignore")


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
class Averaging:
    """How gradients are averaged over data-parallel ranks, in DeepSpeed's order of operations.

    A gradient is divided by `predivide` before the all-reduce and by the rest of the number of ranks after it;
    `prescale` divides by all of it before. `mean` False leaves out every division. `dtype` is that of the all-reduce;
    None is the gradient's own. `bucket` is the most elements that are sent at once; `overlap`: they are sent while the
    backward runs.
    """

    prescale: bool = False
    predivide: float = 1.0
    mean: bool = True
    dtype: DType | None = None
    bucket: int = LARGEST_BUCKET
    overlap: bool = True

    def divisor_before(self, ranks: int) -> float:
        """Return what a gradient is divided by before the all-reduce."""
        if not self.mean:
            return 1.0
        return ranks if self.prescale else self.predivide

    def divisor_after(self, ranks: int) -> float:
        """Return what the sum is divided by after the all-reduce."""
        return ranks / self.divisor_before(ranks) if self.mean else 1.0


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence on the config that rank 0 logs: a warning if the run differs from what its author may expect."""

    text: str
    changes_training: bool = True


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that the engine reads from the config, beside the decision.

    `clipping` is the largest 2-norm of the whole model's gradient; 0 means no clipping. `zero_stage` is the config's
    stage of ZeRO. `notes` say what is accepted and does nothing.
    """

    batch: BatchSizes = field(default_factory=lambda: BatchSizes(None, None, 1))
    clipping: float = DEFAULT_CLIPPING
    optimizer: ComponentSettings | None = None
    scheduler: ComponentSettings | None = None
    scaling: LossScaling = field(default_factory=LossScaling)
    drop_last: bool = False
    averaging: Averaging = field(default_factory=Averaging)
    zero_stage: int = 0
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True)
class Checks:
    """What the engine checks while it trains: keywords of `initialize`, equal on all ranks.

    `inputs_every`: the ranks of a TP group compare their inputs before every so many forwards; 0 means never.
    `replicas_every`: they compare the copies of their parameters after every so many updates; 0 means never.
    `on_nonfinite`: what a NaN or infinite loss or gradient norm does: "raise", "skip" the update, or "ignore" it.
    """

    inputs_every: int = 1
    replicas_every: int = 100
    on_nonfinite: str = "raise"

    @staticmethod
    def from_arguments(inputs_every: object, replicas_every: object, on_nonfinite: object) -> Checks:
        """Return the checks, given the keywords of `initialize`. Raises TpinitError for a value that is not legal."""
        if type(inputs_every) is not int or inputs_every < 0:
            raise TpinitError(
                f"check_inputs_every is {inputs_every!r}, and must be a number of forwards: 1 compares the inputs of "
                "every forward, 0 of none"
            )
        if type(replicas_every) is not int or replicas_every < 0:
            raise TpinitError(
                f"check_replicas_every is {replicas_every!r}, and must be a number of updates: 100 compares the copies "
                "of parameters after every hundredth update, 0 never"
            )
        if on_nonfinite not in ON_NONFINITE:
            raise TpinitError(f"on_nonfinite is {on_nonfinite!r}, and must be one of {', '.join(ON_NONFINITE)}")
        return Checks(inputs_every, replicas_every, str(on_nonfinite))
